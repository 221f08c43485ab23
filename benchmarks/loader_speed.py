"""The loader against one gather of the same bytes, plain webdataset, and a folder of PNGs. Warm page cache.

Run: python benchmarks/loader_speed.py [--images 5000] [--workers 0]
The rivals with formats of their own (LitData, MosaicML Streaming, FFCV) are not in this table yet.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import webdataset as wds
from machine import describe, table

from ingest.card import Card
from ingest.run import ingest
from usdata.lake import Lake

BATCH = 256
CARD = {
    "name": "noise",
    "title": "-",
    "citation": "-",
    "licence": "CC0-1.0",
    "commercial_use": "yes",
    "redistribution": "yes",
    "deid_profile": "public",
    "defaults": {"organ": "breast"},
    "layout": {"image": r"\d+\.png"},
}


def rate(batches: Callable[[], Iterator[int]], least: float = 2.0) -> float:
    """Best images per second of three passes of at least `least` seconds."""
    found = []
    for _ in range(3):
        start, seen = time.perf_counter(), 0
        while time.perf_counter() - start < least:
            seen += sum(batches())
        found.append(seen / (time.perf_counter() - start))
    return max(found)


def main() -> None:
    """Build a lake, measure all in one go, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        random = np.random.default_rng(0)
        for i in range(options.images):
            cv2.imwrite(str(source / f"{i:06d}.png"), random.integers(0, 256, (256, 256), np.uint8))
        lake = Lake.create(Path(name) / "lake")
        ingest(Card(**CARD), source, lake, workers=2)
        rows = measure(lake, source, options.workers)
    print(f"{options.images} images, batch {BATCH}, {options.workers} workers; {describe()}\n\n{table(rows)}")


def measure(lake: Lake, source: Path, workers: int) -> list[dict[str, object]]:
    """Images per second of every contender."""
    cohort = lake.cohort("all")
    held = cohort.images().reshape(cohort.rows, -1)
    out = np.empty((BATCH, held.shape[1]), np.uint8)
    random = np.random.default_rng(0)
    loader = cohort.loader(batch_size=BATCH, gamma=0.5, workers=workers)
    shards = sorted(str(path) for path in lake.shard_folder("noise").glob("*.tar"))
    files = sorted(source.glob("*.png"))

    def gather() -> Iterator[int]:
        for _ in range(20):
            np.take(
                held, random.integers(0, cohort.rows, BATCH), axis=0, out=out, mode="clip"
            )  # "raise" would copy once more
            yield BATCH

    def ours() -> Iterator[int]:
        for batch in loader:
            yield len(batch["image"])

    def tars() -> Iterator[int]:
        for batch in wds.WebDataset(shards, shardshuffle=False).decode("l8").to_tuple("png").batched(BATCH):
            yield len(batch[0])

    def folder() -> Iterator[int]:
        for start in range(0, min(2048, len(files)), BATCH):
            chosen = files[start : start + BATCH]
            yield len(np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in chosen]))

    contenders = {
        "one numpy.take": gather,
        "usdata loader": ours,
        "webdataset, same shards": tars,
        "PNG folder, OpenCV": folder,
    }
    rates = {name: rate(batches) for name, batches in contenders.items()}
    return [
        {"what": name, "images/s": f"{value:.0f}", "usdata is faster by": f"{rates['usdata loader'] / value:.2f}"}
        for name, value in rates.items()
    ]


if __name__ == "__main__":
    main()
