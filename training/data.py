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


def merged(draws: dict[str, Tensor], known: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws and conditions as one mapping, which is what `step` gets.

    Raises:
        ValueError: a name is in both.
    """
    if both := draws.keys() & known.keys():
        raise ValueError(f"the recipe draws {sorted(both)}, which its conditions name too")
    return {**draws, **known}


def conditions(recipe: Any, columns: dict[str, Any], n: int) -> dict[str, Tensor]:
    """What a recipe makes of the catalog columns of `n` images; {} where it asks for none.

    Raises:
        ValueError: a tensor whose first dimension is not `n`.
    """
    if not getattr(recipe, "columns", ()):
        return {}
    known: dict[str, Tensor] = recipe.conditions(columns)
    for name, value in known.items():
        if len(value) != n:
            raise ValueError(f"conditions gave {len(value)} rows of {name!r} for {n} images")
    return known


def read_images(cohort: Any, places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images of a cohort at some places of its fixed order, uint8 (n, 256, 256)."""
    images: NDArray[np.uint8] = cohort.images(places)
    return images


class Feed:
    """Endless batches of one rank out of a loader that gives one epoch at a time.

    Args:
        loader: yields dicts with "image", uint8 (n, 1, 256, 256); has `state_dict`, `load_state_dict` and `epoch`.
        images: n, how many images every batch must have.
        columns: catalog columns that come with each batch.

    `waited` sums the seconds spent waiting for the loader.
    """

    def __init__(self, loader: Any, images: int, columns: tuple[str, ...] = ()) -> None:
        self.loader, self.images, self.columns, self.waited = loader, images, columns, 0.0
        self._batches: Iterator[dict[str, Any]] | None = None

    def next(self) -> tuple[Tensor, dict[str, Any]]:
        """The next batch: images, uint8 (n, 1, 256, 256), and the columns' values, as the loader gives them."""
        start = time.perf_counter()
        batch = self._next()
        self.waited += time.perf_counter() - start
        images: Tensor = batch["image"]
        if len(images) != self.images:
            raise UsdataError(f"The loader gave {len(images)} images where a step needs {self.images}.", step="read")
        return images, {name: batch[name] for name in self.columns}

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
