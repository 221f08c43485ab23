"""The loader of this project, plain and with what can be asked of it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rivals.contender import Contender, Source
from usdata.lake import Lake


def _batches(source: Source, folder: Path, batch: int, workers: int, **options: Any) -> Iterator[Tensor]:
    loader = Lake(source.lake).cohort("all").loader(batch_size=batch, gamma=0.5, workers=workers, **options)
    while True:
        for found in loader:
            yield found["image"]


def _contender(title: str, **options: Any) -> Contender:
    return Contender(title, partial(_batches, **options), stored="lake/shards")


def _let_go(source: Source, folder: Path, batch: int, workers: int) -> Iterator[Tensor]:
    """A consumer that is done with a batch before it asks for the next; `for batch in loader` keeps it until then."""
    loader = Lake(source.lake).cohort("all").loader(batch_size=batch, gamma=0.5, workers=workers)
    while True:
        batches = iter(loader)
        for _ in range(len(loader)):
            yield next(batches)["image"]


CONTENDERS = (
    _contender("usdata"),
    Contender("usdata, each batch let go before the next", _let_go, stored="lake/shards"),
    _contender("usdata, checksums=True", checksums=True),
    _contender('usdata, columns=("organ", "label")', columns=("organ", "label")),
    _contender("usdata, mask=True", mask=True),
)
