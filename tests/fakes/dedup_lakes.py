"""Lakes of given pictures, for the search for duplicates: with true hashes, and rows as wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import xxhash
from numpy.typing import NDArray

from ingest.preprocess import phash
from usdata import png
from usdata.catalog import canonical, write_duckdb, write_part
from usdata.lake import Lake
from usdata.schema import SAMPLES, table_of
from usdata.shards import ShardWriter


def pictures(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures unlike each other, (n, 256, 256): smooth structure with speckle of some four pixels on it."""
    rng = np.random.default_rng(seed)
    coarse, grain = rng.random((n, 6, 6)).astype(np.float32), rng.rayleigh(0.5, (n, 64, 64)).astype(np.float32)
    smooth = np.stack([cv2.resize(c, (256, 256), interpolation=cv2.INTER_CUBIC) for c in coarse])
    speckle = np.stack([cv2.resize(g, (256, 256), interpolation=cv2.INTER_CUBIC) for g in grain])
    return (smooth.clip(0, 1) * 200 * speckle.clip(0, 1.2)).astype(np.uint8)


def add_pictures(lake: Lake, name: str, images: NDArray[np.uint8], rows: Sequence[dict[str, Any]] = ()) -> list[str]:
    """Write a data set of these images, 50 to a shard, and give the sample ids, which rise with the place.

    Args:
        rows: what is particular to each sample; none: nothing is.
    """
    done, data = [], png.encode(images)
    lake.shard_folder(name).mkdir(parents=True, exist_ok=True)
    for start in range(0, len(images), 50):
        shard = lake.shard_folder(name) / f"{name}-mixed-{start // 50:06d}.tar"
        with shard.open("wb") as file:
            writer = ShardWriter(file)
            for i in range(start, min(start + 50, len(images))):
                row = _row(name, i, images[i]) | (rows[i] if rows else {})
                done.append(row | writer.add(row, data[i].tobytes(), None) | {"shard": _below(shard, lake)})
            writer.close()
    write_part(lake.catalog_part(name), canonical(table_of(done), SAMPLES))
    write_duckdb(lake)
    return [row["sample_id"] for row in done]


def _row(name: str, i: int, image: NDArray[np.uint8]) -> dict[str, Any]:
    return {
        "sample_id": f"{name}-{i:016x}",
        "dataset": name,
        "source_id": f"{i}.png",
        "pixel_xxh": xxhash.xxh3_128(image.tobytes()).hexdigest(),
        "phash": int(phash(image[None])[0]),
        "has_mask": False,
        "licence": "CC-BY-4.0",
        "redistribution": "attribution",
    }


def _below(path: Path, lake: Lake) -> str:
    return str(path.relative_to(lake.root))
