"""`usdata verify` of a lake against reading the same bytes, and against hashing them and nothing else.

Run: python benchmarks/verify.py [--images 20000] [--masks 0.2] [--workers 2] [--lake DIR]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import xxhash
from machine import describe, table

from ingest.readers.mask import encode_mask
from usdata import png
from usdata.catalog import canonical, write_duckdb, write_part
from usdata.files import file_xxh, write_json
from usdata.lake import Lake
from usdata.schema import QUARANTINE, SAMPLES, organ_group_of, table_of
from usdata.shards import MAX_SAMPLES, ShardWriter
from usdata.verify import rebuild_catalog, verify

DATASET = "noise"
ORGANS = ("breast", "heart", "thyroid")


def write_lake(root: Path, images: int, masks: float) -> Lake:
    """A lake of noise images with the rows of a real one; a share of them has a mask."""
    lake = Lake.create(root)
    rows: list[dict[str, object]] = []
    records: dict[str, dict[str, object]] = {}
    lake.shard_folder(DATASET).mkdir(parents=True)
    for number, start in enumerate(range(0, images, MAX_SAMPLES)):
        organ = ORGANS[min(len(ORGANS) * start // images, len(ORGANS) - 1)]
        name = f"{DATASET}-{organ}-{number:06d}"
        with (lake.shard_folder(DATASET) / f"{name}.tar").open("wb") as file:
            writer = ShardWriter(file)
            rows += _samples(writer, name, organ, range(start, min(start + MAX_SAMPLES, images)), masks)
            writer.close()
        size, xxh, count = writer.size, writer.digest, writer.samples
        records[name] = {"fingerprint": xxh, "rejected": [], "samples": count, "size": size, "xxh": xxh}
    write_part(lake.catalog_part(DATASET), canonical(table_of(rows), SAMPLES))
    write_part(lake.quarantine_part(DATASET), canonical(table_of([], QUARANTINE), QUARANTINE))
    manifest = {
        "card_digest": "",
        "catalog_xxh": file_xxh(lake.catalog_part(DATASET)),
        "counts": {"copies": 0, "files": images, "ignored": 0, "items": images, "quarantined": 0, "samples": images},
        "dataset": DATASET,
        "interpolation": lake.info["interpolation"],
        "quarantine_xxh": file_xxh(lake.quarantine_part(DATASET)),
        "shards": records,
    }
    write_json(lake.manifest(DATASET), manifest)
    write_duckdb(lake)
    return lake


def _samples(writer: ShardWriter, shard: str, organ: str, numbers: range, masks: float) -> list[dict[str, object]]:
    rng = np.random.default_rng(numbers.start)
    base = rng.integers(0, 256, (png.SIDE, png.SIDE), dtype=np.uint8)
    disc = cv2.circle(np.zeros((png.SIDE, png.SIDE), np.uint8), (120, 130), 60, 1, -1)
    rows = []
    for i in numbers:
        image = np.roll(base, i * 257) ^ np.uint8(i % 251)
        mask = encode_mask(np.roll(disc, i % 64)) if (i % 1000) < masks * 1000 else None
        row = _row(i, organ, xxhash.xxh3_128_hexdigest(np.ascontiguousarray(image)), mask is not None)
        place = writer.add(row, png.encode(image[None])[0].tobytes(), mask)
        rows.append(row | place | {"shard": f"shards/{DATASET}/{shard}.tar"})
    return rows


def _row(i: int, organ: str, pixel_xxh: str, has_mask: bool) -> dict[str, object]:
    digest = xxhash.xxh3_128_hexdigest(f"{i}".encode())
    row = {
        **{"dataset": DATASET, "organ": organ, "organ_group": organ_group_of(organ), "mode": "B-mode"},
        **{"sample_id": f"{DATASET}-{digest[:16]}", "source_xxh": digest, "pixel_xxh": pixel_xxh},
        **{"source_id": f"images/{organ}/patient{i // 30:05d}/frame{i:07d}.png", "phash": int(digest[:16], 16)},
        **{"width": 800, "height": 600, "crop_x0": 0, "crop_y0": 0, "crop_x1": 800, "crop_y1": 600},
        **{"patient": f"p{i // 30:05d}", "clip": f"c{i // 10:06d}", "frame": i % 10, "n_frames": 10, "fps": 25.0},
        **{
            "pixel_mm_x": 0.07 + i % 17 / 1000,
            "pixel_mm_y": 0.07 + i % 17 / 1000,
            "label": ("benign", "malignant")[i % 2],
        },
        **{"targets": f'{{"size_mm": {i % 400 / 10}}}', "licence": "CC-BY-4.0", "commercial_use": "yes"},
        **{"redistribution": "yes", "deid_profile": "public", "probe": "linear", "synthetic": False},
    }
    return row | {"has_mask": has_mask} | ({"mask_classes": ["background", "lesion"]} if has_mask else {})


def shards_of(lake: Lake) -> list[Path]:
    """All shards of a lake."""
    return sorted((lake.root / "shards").rglob("*.tar"))


def forget(paths: list[Path]) -> None:
    """Drop files from the page cache; needs no root. Works for what is on the disk already."""
    os.sync()
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    """As `cat` does."""
    piece = memoryview(bytearray(1 << 17))
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def digest(path: Path) -> None:
    """As `xxhsum -H2` does."""
    file_xxh(path)


def over(function: Callable[[Path], None], workers: int) -> Callable[[Lake], None]:
    """`function` of every shard, over as many threads; reading and hashing leave Python's lock."""

    def run(lake: Lake) -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(function, shards_of(lake)))

    return run


def checked(workers: int) -> Callable[[Lake], None]:
    """`usdata verify`, start of its processes included."""

    def run(lake: Lake) -> None:
        wrong = [finding for finding in verify(lake, workers) if finding.level == "damage"]
        assert not wrong, wrong[0]

    return run


def rebuilt(workers: int) -> Callable[[Lake], None]:
    """`usdata catalog --rebuild`."""
    return lambda lake: list(rebuild_catalog(lake, workers)).clear()


def best(contender: Callable[[Lake], None], lake: Lake, cold: bool, turns: int) -> float:
    """Seconds of the quickest turn."""
    seconds = []
    for _ in range(turns):
        if cold:
            forget(shards_of(lake))
        start = time.perf_counter()
        contender(lake)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Measure every contender warm and cold; print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--masks", type=float, default=0.2, help="share of the images that have one")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--lake", type=Path, help="an existing lake instead of a generated one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        lake = Lake(options.lake) if options.lake else write_lake(Path(name) / "lake", options.images, options.masks)
        size = sum(path.stat().st_size for path in shards_of(lake))
        images = lake.sql("select count(*) as n from samples")["n"][0].as_py()
        contenders = {"read the same bytes (cat)": over(read, 1), "hash them and nothing else (xxh3)": over(digest, 1)}
        contenders |= {"usdata verify": checked(1), "usdata catalog --rebuild": rebuilt(1)}
        for what, many in (("read", over(read, options.workers)), ("hash", over(digest, options.workers))):
            contenders[f"{what}, {options.workers} threads"] = many
        contenders[f"usdata verify, {options.workers} workers"] = checked(options.workers)
        contenders[f"usdata catalog --rebuild, {options.workers} workers"] = rebuilt(options.workers)
        rows = []
        reading: dict[bool, float] = {}
        for what, contender in contenders.items():
            row: dict[str, object] = {"what": what}
            for cold in (False, True):
                seconds = best(contender, lake, cold, options.turns)
                reading[cold] = min(reading.get(cold, seconds), seconds) if "read" in what else reading[cold]
                row |= {
                    f"GB/s, {'cold' if cold else 'warm'}": f"{size / seconds / 1e9:.2f}",
                    f"of reading, {'cold' if cold else 'warm'}": f"{reading[cold] / seconds:.2f}",
                }
            rows.append(row | {"images/s, cold": f"{images / seconds:,.0f}"})
    print(f"{size / 1e9:.2f} GB in {images:,} images; {describe()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
