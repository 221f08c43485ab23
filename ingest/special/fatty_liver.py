"""Fatty liver B-mode sequences (Byra et al.): one MAT file, `data(1, 55)` of structures.

Each structure has id, class (0: normal, 1: fatty liver), fat (per cent) and images (10, 434, 636). The file is one
packed stream, so it is held in memory whole, 152 MB; the last one is kept while its entries are read.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ingest.readers.volume import to_grey_levels
from ingest.readers.volume_mat import Mat
from ingest.readers.volume_named import mat5_variable
from ingest.special import Entry, Read
from usdata.errors import DataError

_FIELDS = ("id", "class", "fat", "images")
_LOADING = Lock()


def entries(path: Path) -> Iterator[Entry]:
    """One entry per patient; words: `id`, `class` and `fat` as the file has them.

    Raises:
        DataError: see `ingest.readers.volume_named`; wrong_fields when the structures are others.
    """
    for key, one in _patients(path).items():
        yield Entry(key, len(one["images"]), {"id": key, "class": _word(one["class"]), "fat": _word(one["fat"])})


def read(path: Path, key: str, indices: Sequence[int]) -> Read:
    """Frames of one patient; there are no masks."""
    one = _patients(path).get(key)
    for index in indices:
        if one is None or index >= len(one["images"]):
            raise DataError("frame_missing", f"There is no frame {index} of {key!r} any more.", step="read")
        yield index, to_grey_levels(np.ascontiguousarray(one["images"][index]), "stored"), None


def _patients(path: Path) -> dict[str, dict[str, Any]]:
    try:
        state = path.stat()
    except OSError as error:
        raise DataError("missing", "The file is not there any more.", step="read") from error
    with _LOADING:  # threads that ask at once get one copy
        return _loaded(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1)
def _loaded(path: Path, size: int, changed: int) -> dict[str, dict[str, Any]]:
    """Patient -> fields; `size` and `changed` are there to notice another file of the same name."""
    data = mat5_variable(Mat(path), "data")
    if not isinstance(data, list) or not all(isinstance(one, dict) and set(one) >= set(_FIELDS) for one in data):
        raise DataError("wrong_fields", f"`data` is no array of structures {', '.join(_FIELDS)}.", step="read")
    out: dict[str, dict[str, Any]] = {}
    for one in data:
        if not isinstance(one["images"], np.ndarray) or one["images"].ndim != 3:
            raise DataError("wrong_fields", "images without frames, rows and columns.", step="read")
        key = _word(one["id"])
        if key in out:
            raise DataError("same_key", f"Two patients have the id {key!r}.", step="list")
        out[key] = one
    return out


def _word(value: Any) -> str:
    """A text, or the one number of an array, without a fraction where it has none."""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise DataError("wrong_fields", "id, class or fat is not one number.", step="read")
    one = float(value.ravel()[0])
    return str(int(one)) if one.is_integer() else str(one)
