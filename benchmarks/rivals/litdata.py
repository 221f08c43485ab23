"""LitData: chunks of 64 MB of ordinary PNG bytes, of bare pixel bytes, and of numpy arrays.

Bare bytes come as views of its mapped chunks, without a copy; with whole chunks opened at once and shuffled wholly
that is the fastest setting we found, several times as fast as numpy arrays with the default settings.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rivals.contender import Contender, Source, decode, from_raw


def _png(path: str) -> bytes:
    return Path(path).read_bytes()


def _raw(place: tuple[str, int]) -> bytes:
    return _array(place)["image"].tobytes()


def _array(place: tuple[str, int]) -> dict[str, NDArray[np.uint8]]:
    return {"image": np.array(Source(Path(place[0])).images()[place[1]])}


def _write(source: Source, folder: Path, *, one: Callable[[Any], Any]) -> None:
    places = [(str(source.root), i) for i in range(len(source.images()))]
    inputs = [str(path) for path in source.pngs()] if one is _png else places
    litdata.optimize(one, inputs, str(folder), chunk_bytes="64MB", num_workers=1, verbose=False)


def _stack(images: list[Any], *, read: Callable[[Any], NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack([read(image) for image in images]))


def _image(sample: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return sample["image"]


def _batches(
    source: Source,
    folder: Path,
    batch: int,
    workers: int,
    *,
    read: Callable[[Any], NDArray[np.uint8]],
    **options: Any,
) -> Iterator[Tensor]:
    loader = litdata.StreamingDataLoader(
        litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True, **options),
        batch_size=batch,
        num_workers=workers,
        drop_last=True,
        collate_fn=partial(_stack, read=read),
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


_WHOLE = {"batch_decode": "all", "item_shuffle_window": "full"}

CONTENDERS = (
    Contender("LitData, PNG", partial(_batches, read=decode, **_WHOLE), partial(_write, one=_png)),
    Contender("LitData, raw bytes", partial(_batches, read=from_raw, **_WHOLE), partial(_write, one=_raw)),
    Contender("LitData, raw arrays, its defaults", partial(_batches, read=_image), partial(_write, one=_array)),
)
