"""Rare organs drawn more often, and a loader that goes on where it stopped.

Run: python examples/02_balanced_loader.py
"""

import tempfile
from collections import Counter
from pathlib import Path

from ingest.card import get_card
from ingest.run import ingest
from usdata import Lake
from usdata.sampling import sampling_plan


def main() -> None:
    """The whole example."""
    lake = Lake.create(Path(tempfile.mkdtemp()) / "lake")
    ingest(get_card("phantom"), None, lake, count=200, workers=2)
    cohort = lake.cohort("all")

    codes, names = cohort.groups("organ")
    for row in sampling_plan(codes, names, gamma=0.5).rows():
        print(
            f"{row['group']:16} {row['images']:4} images: {row['share']:6.1%} of the lake, {row['expected']:6.1%} drawn"
        )

    loader = cohort.loader(batch_size=32, gamma=0.5, seed=1, columns=("organ",), workers=2)
    first = next(iter(loader))
    print(first["image"].shape, first["image"].dtype, Counter(first["organ"]).most_common(3))

    state = loader.state_dict()  # a few numbers: put it into your checkpoint
    other = cohort.loader(batch_size=32, gamma=0.5, seed=1, columns=("organ",), workers=0)
    other.load_state_dict(state)
    assert (next(iter(loader))["image"] == next(iter(other))["image"]).all()
    print("the resumed loader gives the same batch")


if __name__ == "__main__":  # worker processes import this file anew
    main()
