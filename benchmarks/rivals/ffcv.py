"""FFCV: raw arrays in its own file, copied by compiled code, from the page cache.

It always fills batches in a thread of its own, so `workers=0` means one thread, as `workers=1` does. Two settings
favour it: an epoch runs over the file many times, because it allocates its batches anew for each (twice as fast as
epochs of 5,000 images), and one batch ahead, which was as fast as more or faster. QUASI_RANDOM was slower than RANDOM.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from ffcv.fields import BytesField, NDArrayField
from ffcv.fields.decoders import BytesDecoder, NDArrayDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter
from numpy.typing import NDArray
from torch import Tensor

from rivals.contender import SIDE, Contender, Source

_EPOCH = 200_000  # draws, at least


class _Rows:
    """What FFCV's writer asks of a data set: tuples of fields."""

    def __init__(self, images: NDArray[np.uint8], flat: bool) -> None:
        self.images, self.flat = images, flat

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8]]:
        image = np.array(self.images[row])
        return (image.reshape(-1) if self.flat else image,)


def _write(source: Source, folder: Path, *, flat: bool) -> None:
    fields = {"image": BytesField() if flat else NDArrayField(np.dtype(np.uint8), (SIDE, SIDE))}
    writer = DatasetWriter(str(folder / "images.beton"), fields, num_workers=1)
    writer.from_indexed_dataset(_Rows(source.images(), flat))


def _batches(source: Source, folder: Path, batch: int, workers: int, *, flat: bool) -> Iterator[Tensor]:
    rows = np.arange(len(source.images()))
    loader = Loader(
        str(folder / "images.beton"),
        batch_size=batch,
        num_workers=max(1, workers),
        os_cache=True,
        order=OrderOption.RANDOM,
        indices=np.tile(rows, -(-_EPOCH // len(rows))),
        pipelines={"image": [BytesDecoder() if flat else NDArrayDecoder(), ToTensor()]},
        batches_ahead=1,
        seed=0,
    )
    while True:
        for (images,) in loader:
            yield images.view(-1, SIDE, SIDE)


CONTENDERS = (
    Contender("FFCV, raw, NDArrayField", partial(_batches, flat=False), partial(_write, flat=False)),
    Contender("FFCV, raw, BytesField", partial(_batches, flat=True), partial(_write, flat=True)),
)
