"""Files of many images or clips whose inner order no card can say: one module per data set.

A module offers two functions. `entries(path)` tells what the file holds without reading pixels; `read(path, key,
indices)` gives frames of one entry. Both raise `DataError` for whatever is wrong with the file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from usdata.errors import CardError, DataError, nearest

READERS = ("fatty_liver", "stanford_thyroid")
# Index, grey or RGB picture, and the numbers of its mask, which `Card.masks` gives their meaning.
Read = Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8] | None]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One image or clip of a file; `words` may be used in a card's fields and tables like groups of a path."""

    key: str
    frames: int
    words: dict[str, str] = field(default_factory=dict)


class Reader(Protocol):
    """What a module of this package offers."""

    def entries(self, path: Path) -> Iterator[Entry]: ...

    def read(self, path: Path, key: str, indices: Sequence[int]) -> Read: ...


def reader(name: str | None) -> Reader:
    """The module `name` of this package, and of no other: a card can't have anything else imported.

    Raises:
        CardError: there is none.
    """
    if name not in READERS:
        raise CardError(f"There is no reader {name!r}; there are {', '.join(READERS)}.{nearest(name or '', READERS)}")
    module: Reader = import_module(f"ingest.special.{name}")
    return module


def entries(name: str | None, path: Path) -> list[Entry]:
    """What a container holds, checked.

    Raises:
        DataError: the file can't be read, holds nothing, or two of its entries have one key (reasons of the reader,
            empty_container, same_key).
    """
    try:
        found = list(reader(name).entries(path))
    except OSError as error:
        raise DataError("unreadable", f"{error.strerror or error}.", step="list") from error
    if not found:
        raise DataError("empty_container", "The file holds no image.", step="list")
    seen: set[str] = set()
    for entry in found:
        if not entry.key or not entry.key.isprintable() or entry.frames < 1:
            raise DataError("unreadable", f"An entry {entry.key[:80]!r} of {entry.frames} frames.", step="list")
        if entry.key in seen:
            raise DataError("same_key", f"Two entries are called {entry.key!r}.", step="list")
        seen.add(entry.key)
    return found
