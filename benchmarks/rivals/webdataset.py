"""webdataset: tar shards of ordinary PNG, of stored (not deflated) PNG as in our shards, and of raw bytes.

Shards in random order, then its shuffle buffer of 1,000 samples. Batches are stacked in the workers, so that only
whole batches cross over to the consumer.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor

from rivals.contender import Contender, Source, decode, from_raw

_PER_SHARD = 1000


def _write(source: Source, folder: Path, *, kind: str) -> None:
    images, pngs = source.images(), source.pngs()
    for start in range(0, len(images), _PER_SHARD):
        with wds.TarWriter(str(folder / f"images-{start // _PER_SHARD:06d}.tar")) as shard:
            for i in range(start, min(start + _PER_SHARD, len(images))):
                shard.write({"__key__": f"{i:08d}", "bin" if kind == "raw" else "png": _bytes(images, pngs, i, kind)})


def _bytes(images: NDArray[np.uint8], pngs: list[Path], i: int, kind: str) -> bytes:
    if kind == "raw":
        return images[i].tobytes()
    if kind == "stored":
        return cv2.imencode(".png", np.asarray(images[i]), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
    return pngs[i].read_bytes()


def _batches(
    source: Source,
    folder: Path,
    batch: int,
    workers: int,
    *,
    member: str,
    read: Callable[[bytes], NDArray[np.uint8]],
) -> Iterator[Tensor]:
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    few = len(shards) < workers  # more workers than shards: the rest would be idle, and webdataset refuses
    data = (
        wds.WebDataset(shards, shardshuffle=len(shards), empty_check=not few)
        .shuffle(1000)
        .map(lambda sample: read(sample[member]))
        .batched(batch, collation_fn=lambda images: torch.from_numpy(np.stack(images)), partial=False)
        .repeat()
    )
    yield from wds.WebLoader(data, batch_size=None, num_workers=workers) if workers else data


CONTENDERS = (
    Contender("webdataset, PNG", partial(_batches, member="png", read=decode), partial(_write, kind="png")),
    Contender("webdataset, stored PNG", partial(_batches, member="png", read=decode), partial(_write, kind="stored")),
    Contender("webdataset, raw", partial(_batches, member="bin", read=from_raw), partial(_write, kind="raw")),
)
