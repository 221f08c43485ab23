"""A small lake's shards for the tests of reading: noise as canonical PNGs in webdataset tars, some with masks."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from usdata import png
from usdata.reader import ShardIndex

ORGANS = {"breast": 40, "heart": 12, "lung": 5}


@dataclass
class FakeShards:
    """What was written, in the order of the index."""

    root: Path
    index: ShardIndex
    images: NDArray[np.uint8]  # (n, 256, 256)
    masks: NDArray[np.uint8]  # (n, 256, 256), zeros without a mask
    has_mask: NDArray[np.bool_]
    organs: list[str]
    codes: NDArray[np.int16]  # of the organs, in alphabetical order
    ids: list[str]

    def path(self, row: int) -> Path:
        """The shard of an image."""
        return self.root / self.index.shards[int(self.index.shard[row])]


def make_shards(root: Path, organs: dict[str, int] | None = None, per_shard: int = 10, seed: int = 0) -> FakeShards:
    """Shards of one organ each under `root`; every third image has a mask."""
    organs = dict(sorted((ORGANS if organs is None else organs).items()))
    words = [organ for organ, n in organs.items() for _ in range(n)]
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(words), png.SIDE, png.SIDE), dtype=np.uint8)
    has_mask = np.arange(len(words)) % 3 == 0
    masks = np.zeros_like(images)
    masks[has_mask, 40:80, 50:90] = 1 + np.flatnonzero(has_mask)[:, None, None] % 7
    ids = [f"fake-{i:016x}" for i in range(len(words))]
    places: list[dict[str, int]] = []
    shards: list[str] = []
    for organ in organs:
        mine = [i for i, word in enumerate(words) if word == organ]
        for start in range(0, len(mine), per_shard):
            shards.append(f"shards/fake/fake-{organ}-{start // per_shard:06d}.tar")
            rows = mine[start : start + per_shard]
            places += _write(root / shards[-1], len(shards) - 1, rows, ids, images, masks, has_mask)
    column = {name: np.array([place[name] for place in places], np.int64) for name in places[0]}
    columns = {
        "sample_id": pa.array(ids),
        "organ": pa.array(words).dictionary_encode(),
        "patient": pa.array([None if i % 4 == 0 else f"p{i // 2}" for i in range(len(ids))]),
        "width": pa.array(range(len(ids)), pa.int32()),
        "frame": pa.array([None if i % 5 == 0 else i for i in range(len(ids))], pa.int32()),
        "synthetic": pa.array([i % 2 == 0 for i in range(len(ids))]),
        "mask_classes": pa.array([["lesion"] if m else None for m in has_mask]),
    }
    index = ShardIndex(
        root=root,
        shards=shards,
        shard=column["shard"].astype(np.int32),
        offset=column["png"],
        mask_offset=column["mask"],
        mask_size=column["mask_size"],
        columns=columns,
    )
    codes = np.unique(words, return_inverse=True)[1].astype(np.int16)
    return FakeShards(root, index, images, masks, has_mask, words, codes, ids)


def _write(
    path: Path,
    number: int,
    rows: list[int],
    ids: list[str],
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    has_mask: NDArray[np.bool_],
) -> list[dict[str, int]]:
    """One shard; gives the places of its members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = png.encode(images[rows])
    places = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> int:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            offset = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(info, io.BytesIO(data))
            return offset

        for row, file in zip(rows, files, strict=True):
            add(f"{ids[row]}.json", json.dumps({"sample_id": ids[row], "pad": "x" * (37 * row % 900)}).encode())
            mask = b""
            if has_mask[row]:
                stream = io.BytesIO()
                Image.fromarray(masks[row]).save(stream, "PNG")
                mask = stream.getvalue()
            place = add(f"{ids[row]}.mask.png", mask) if mask else -1
            places.append({"shard": number, "mask": place, "mask_size": len(mask) or -1})
            places[-1]["png"] = add(f"{ids[row]}.png", file.tobytes())
    return places
