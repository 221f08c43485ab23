"""Read a lake with DuckDB, NumPy, Pillow and webdataset alone: nothing in this file imports usdata.

Run: python examples/04_read_without_usdata.py [LAKE]       without LAKE, `usdata` first draws one with 60 images
"""

import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import webdataset as wds
from PIL import Image


def pixels(shard: Path, offset: int) -> np.ndarray:
    """An image of the lake by its place: its PNG holds the pixels as they are, each row behind a filter byte."""
    png = np.memmap(shard, np.uint8, "r", offset, 65_865)
    top, last = png[48 : 48 + 255 * 257].reshape(255, 257)[:, 1:], png[65_589 : 65_589 + 256]
    return np.concatenate([top, last[None]])


def main() -> None:
    """The whole example."""
    if len(sys.argv) > 1:
        lake = Path(sys.argv[1])
    else:
        lake = Path(tempfile.mkdtemp()) / "lake"
        subprocess.run(["usdata", "ingest", "phantom", "--images", "60", "--lake", lake], check=True)

    # The catalog is Parquet; duckdb asks it in SQL.
    parts = str(lake / "catalog" / "samples" / "**" / "*.parquet")
    query = 'select sample_id, organ, shard, "offset" from read_parquet(?) order by organ, sample_id limit 5'
    rows = duckdb.execute(query, [parts]).fetchall()

    # One image by its place, and the same one through tarfile and Pillow.
    for key, organ, shard, offset in rows:
        image = pixels(lake / shard, offset)
        with tarfile.open(lake / shard) as tar:
            member = tar.extractfile(f"{key}.png")
            assert member is not None
            assert (np.asarray(Image.open(io.BytesIO(member.read()))) == image).all()
        print(f"{key}  {organ}  mean grey {image.mean():.1f}")

    # All of them as a stream.
    shards = sorted(map(str, lake.glob("shards/*/*.tar")))
    masks = [sample.get("mask.png") for sample in wds.WebDataset(shards, shardshuffle=False).decode("l8")]
    print(f"{len(masks)} images, {sum(mask is not None for mask in masks)} with a mask; usdata was not imported")
    assert "usdata" not in sys.modules


if __name__ == "__main__":
    main()
