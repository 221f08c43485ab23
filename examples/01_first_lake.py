"""Draw simulated images into a lake and ask it questions. Run: python examples/01_first_lake.py [FOLDER]"""

import sys
import tempfile
from pathlib import Path

from ingest.card import get_card
from ingest.run import ingest
from usdata import Lake


def main() -> None:
    """The whole example."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "lake"
    lake = Lake.create(folder)
    report = ingest(get_card("phantom"), None, lake, count=120, workers=2)
    print(f"{report.counts.samples} images in {report.built} shards at {folder}")

    print(
        lake.sql(
            "select organ, count(*) as images, count(distinct patient) as patients from samples group by all"
        ).to_pylist()
    )

    # Labels and targets of all kinds are JSON; the taxonomy is a table to join.
    print(
        lake.sql(
            "select o.usfm12, count(*) as images from samples join organs o using (organ) group by all"
        ).to_pylist()
    )

    cohort = lake.cohort("organ = 'breast' and label in ('benign', 'malignant')")
    cohort.save("breast-lesions")
    print(f"{cohort.rows} images, {cohort.hash}")


if __name__ == "__main__":  # worker processes import this file anew
    main()
