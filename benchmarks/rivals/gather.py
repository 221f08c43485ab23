"""The yardstick: one compiled gather of the same bytes into a batch that is used again."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rivals.contender import Contender, Source


def _batches(
    source: Source, folder: Path, batch: int, workers: int, *, mapped: bool = False, buffers: int = 1
) -> Iterator[NDArray[np.uint8]]:
    """`mode="clip"`, because "raise" would gather into a second buffer and copy that."""
    images = source.images() if mapped else np.array(source.images())
    flat = images.reshape(len(images), -1)
    outs = cycle([np.empty((batch, flat.shape[1]), np.uint8) for _ in range(buffers)])
    random = np.random.default_rng(0)
    for out in outs:
        np.take(flat, random.integers(0, len(flat), batch), axis=0, out=out, mode="clip")
        yield out.reshape(batch, *images.shape[1:])


CONTENDERS = (
    Contender("numpy.take, from memory", _batches, stored="images.npy"),
    Contender("numpy.take, two batches in turn", partial(_batches, buffers=2), stored="images.npy"),
    Contender("numpy.take, from a mapped file", partial(_batches, mapped=True), stored="images.npy"),
)
