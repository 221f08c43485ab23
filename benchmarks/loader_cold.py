"""Images drawn at random from shards that are on the disk, not in memory: how fast, and how much is read for each.

Run: python benchmarks/loader_cold.py [--shards 60] [--images 4096] [--rounds 3]
The shards are copies of one of 1,000 noise images; before each turn they are dropped from the page cache. The rivals
here are other ways to read the same mapped shards.
"""

import argparse
import mmap
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import describe, table

from usdata import png
from usdata.loader import Loader
from usdata.reader import ShardIndex
from usdata.shards import ShardWriter

WAYS = ("usdata loader", "reads not announced", "plain memory mapping, the system reads ahead")


def write_shards(root: Path, shards: int) -> ShardIndex:
    """Equal shards of 1,000 images."""
    random = np.random.default_rng(0)
    names = [f"shards/noise-{i:03d}.tar" for i in range(shards)]
    (root / "shards").mkdir()
    with (root / names[0]).open("wb") as file:
        writer = ShardWriter(file)
        images = (random.integers(0, 256, (1, 256, 256), np.uint8) for _ in range(1000))
        offsets = [writer.add({"sample_id": f"n-{i}"}, png.encode(a)[0].tobytes(), None) for i, a in enumerate(images)]
        writer.close()
    for name in names[1:]:
        shutil.copyfile(root / names[0], root / name)
    offset = np.tile([place["offset"] for place in offsets], shards)
    return ShardIndex(root, names, np.repeat(np.arange(shards), 1000).astype(np.int32), offset)


def forget(root: Path) -> None:
    """Drop the shards from the page cache."""
    for path in (root / "shards").glob("*.tar"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def turn(index: ShardIndex, way: str, images: int) -> tuple[float, float]:
    """Images per second, and kB read from the disk for each."""
    loader = Loader(index, None, batch_size=256, gamma=None, epoch_size=images)
    shards = loader._assembler.reader._map
    if way != WAYS[0]:
        shards.will_need = lambda starts, size: None  # type: ignore[method-assign]
    if way == WAYS[2]:
        with shards.held(np.arange(len(index.shards))):
            shards._memory.madvise(mmap.MADV_NORMAL)
    forget(index.root)
    before, start, seen = read_so_far(), time.perf_counter(), 0
    for batch in loader:
        seen += len(batch["image"])
    return seen / (time.perf_counter() - start), (read_so_far() - before) / seen / 1e3


def read_so_far() -> int:
    """Bytes that this process has had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def main() -> None:
    """Measure the ways in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        index = write_shards(Path(name), options.shards)
        found = [[turn(index, way, options.images) for way in WAYS] for _ in range(options.rounds)]
    rows = []
    for number, way in enumerate(WAYS):
        rates, kilobytes = zip(*(turns[number] for turns in found), strict=True)
        span = f"{statistics.median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"
        rows.append({"what": way, "images/s": span, "kB read per image": f"{statistics.median(kilobytes):.0f}"})
    print(f"{options.images} of {len(index)} images; {describe()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
