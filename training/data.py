"""From the loader to the step: endless batches, and the random numbers that belong to each image of the global batch.

The numbers of a step come from a generator seeded by (seed, step) alone and are drawn for the whole global batch;
each rank and micro-batch takes its rows. So one large batch, k small ones and several ranks compute the same sum,
and a resumed run needs no saved random state.
"""

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from usdata.errors import ConfigError, UsdataError


def stable_seed(*parts: str | int) -> int:
    """A seed in [0, 2**63) from words and numbers, the same on every machine and in every Python version.

    Unlike `seed + step` it gives no two purposes overlapping streams.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """A CPU generator seeded by `stable_seed(*parts)`."""
    return torch.Generator().manual_seed(stable_seed(*parts))


def rows(draws: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Rows [start, stop) of every tensor of a draw, views of shape (stop - start, ...)."""
    return {name: value[start:stop] for name, value in draws.items()}


def read_images(cohort: Any, places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images of a cohort at some places of its fixed order, uint8 (n, 256, 256)."""
    images: NDArray[np.uint8] = cohort.images(places)
    return images


class Feed:
    """Endless batches of one rank out of a loader that gives one epoch at a time.

    Args:
        loader: yields dicts with "image", uint8 (n, 1, 256, 256); has `state_dict`, `load_state_dict` and `epoch`.
        images: n, how many images every batch must have.

    `waited` sums the seconds spent waiting for the loader.
    """

    def __init__(self, loader: Any, images: int) -> None:
        self.loader, self.images, self.waited = loader, images, 0.0
        self._batches: Iterator[dict[str, Any]] | None = None

    def next(self) -> Tensor:
        """The next batch of images, uint8 (n, 1, 256, 256)."""
        start = time.perf_counter()
        images: Tensor = self._next()["image"]
        self.waited += time.perf_counter() - start
        if len(images) != self.images:
            raise UsdataError(f"The loader gave {len(images)} images where a step needs {self.images}.", step="read")
        return images

    def _next(self) -> dict[str, Any]:
        for _ in range(2):  # a loader restored at the very end of an epoch has an empty one first
            if self._batches is None:
                self._batches = iter(self.loader)
            for batch in self._batches:
                return batch
            self._batches = None
        raise ConfigError(
            "An epoch of this cohort has no full batch.",
            hint="Lower the batch:  --set batch_size=… (or raise epoch_size)",
        )

    @property
    def epoch(self) -> int:
        """Number of the epoch that the last batch came from, from 0."""
        return int(self.loader.epoch)

    def state_dict(self) -> dict[str, Any]:
        """The loader's place: plain values, so that a restored feed goes on with the batch that would have come."""
        return dict(self.loader.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place saved by `state_dict`; a half-read epoch is dropped."""
        self.loader.load_state_dict(state)
        self._batches = None
