"""Lakes with rows as wanted: a data set written straight into a lake, for what no card would give."""

import io
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from usdata import png
from usdata.catalog import canonical, write_duckdb, write_part
from usdata.lake import Lake
from usdata.schema import SAMPLES, table_of
from usdata.shards import ShardWriter


def add_dataset(
    lake: Lake, name: str, rows: list[dict[str, Any]], masks: list[NDArray[np.uint8] | None], per_shard: int = 3
) -> NDArray[np.uint8]:
    """Write a data set of noise images, some rows to a shard, and give the images, shape (n, 256, 256).

    Args:
        rows: what is particular to each sample; what a row needs and does not say is filled in.
        masks: class indices of shape (256, 256), or None; as many as rows.
    """
    images = np.random.default_rng(len(rows)).integers(0, 256, (len(rows), 256, 256), dtype=np.uint8)
    files, done = png.encode(images), []
    lake.shard_folder(name).mkdir(parents=True)
    for start in range(0, len(rows), per_shard):
        shard = lake.shard_folder(name) / f"{name}-mixed-{start // per_shard:06d}.tar"
        with shard.open("wb") as file:
            writer = ShardWriter(file)
            for i in range(start, min(start + per_shard, len(rows))):
                row = _known(name, i, images[i]) | rows[i] | {"has_mask": masks[i] is not None}
                place = writer.add(row, files[i].tobytes(), _png(masks[i]))
                done.append(row | place | {"shard": str(shard.relative_to(lake.root))})
            writer.close()
    write_part(lake.catalog_part(name), canonical(table_of(done), SAMPLES))
    write_duckdb(lake)
    return images


def _known(name: str, i: int, image: NDArray[np.uint8]) -> dict[str, Any]:
    digest = xxhash.xxh3_128(image.tobytes()).hexdigest()
    return {
        "sample_id": f"{name}-{i:016x}",
        "dataset": name,
        "source_id": f"{i}.png",
        "pixel_xxh": digest,
        "phash": int(digest[:16], 16),
        **{"width": 256, "height": 256, "crop_x0": 0, "crop_y0": 0, "crop_x1": 256, "crop_y1": 256},
    }


def _png(mask: NDArray[np.uint8] | None) -> bytes | None:
    if mask is None:
        return None
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()
