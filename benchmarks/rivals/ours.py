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


CONTENDERS = (
    _contender("usdata"),
    _contender("usdata, checksums=True", checksums=True),
    _contender('usdata, columns=("organ", "label")', columns=("organ", "label")),
    _contender("usdata, mask=True", mask=True),
)
