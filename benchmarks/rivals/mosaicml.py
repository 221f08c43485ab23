"""MosaicML Streaming: MDS shards of ordinary PNG bytes and of raw bytes.

Iterated, shuffled by its own algorithm; and asked for random rows, which spares it its threads. PNG is decoded by
OpenCV: the format's own `png` encoding goes through Pillow and is slower, and `bytes` are faster than its `ndarray`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from streaming import MDSWriter, StreamingDataset
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from rivals.contender import Contender, Source, decode, from_raw


def _write(source: Source, folder: Path, *, raw: bool) -> None:
    images = (image.tobytes() for image in source.images()) if raw else (path.read_bytes() for path in source.pngs())
    with MDSWriter(out=str(folder), columns={"image": "bytes"}) as shards:
        for image in images:
            shards.write({"image": image})


def _stack(samples: list[dict[str, Any]], *, read: Callable[[bytes], NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack([read(sample["image"]) for sample in samples]))


def _batches(
    source: Source, folder: Path, batch: int, workers: int, *, read: Callable[[bytes], NDArray[np.uint8]]
) -> Iterator[Tensor]:
    rows = len(source.images())
    loader = DataLoader(
        StreamingDataset(local=str(folder), shuffle=True, batch_size=batch, predownload=rows),  # its default is slower
        batch_size=batch,
        num_workers=workers,
        drop_last=True,
        collate_fn=partial(_stack, read=read),
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


class _Rows(Dataset[Tensor]):
    """Whole batches by row number."""

    def __init__(self, folder: Path, batch: int) -> None:
        self.data = StreamingDataset(local=str(folder), batch_size=batch)

    def __len__(self) -> int:
        return self.data.num_samples

    def __getitem__(self, rows: list[int]) -> Tensor:
        return _stack([self.data[row] for row in rows], read=from_raw)


def _by_row(source: Source, folder: Path, batch: int, workers: int) -> Iterator[Tensor]:
    data = _Rows(folder, batch)
    sampler = BatchSampler(RandomSampler(data), batch, drop_last=True)
    loader = DataLoader(data, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from loader


CONTENDERS = (
    Contender("MosaicML Streaming, PNG", partial(_batches, read=decode), partial(_write, raw=False)),
    Contender("MosaicML Streaming, raw", partial(_batches, read=from_raw), partial(_write, raw=True)),
    Contender("MosaicML Streaming, raw, by row", _by_row, partial(_write, raw=True)),
)
