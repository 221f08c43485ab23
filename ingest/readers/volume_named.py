"""Arrays that bear a name inside a file with others: HDF5, MAT (version 5 and 7.3) and NPZ.

HDF5 is read lazily through h5py, but only what lies in the file itself: links to other files, numbers kept in other
files and virtual arrays are refused, for they would make a data set read what its owner never meant it to. A MAT file
of version 5 is one stream in which nothing can be skipped: it is held in memory whole, after its unpacked size was
counted. None of them says a unit, so none gives a spacing.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ingest.readers.image import MAX_BYTES
from ingest.readers.volume_headers import npy_header, npy_stored
from ingest.readers.volume_mat import Mat
from ingest.readers.volume_stored import MAX_STORED, Array
from usdata.errors import DataError

HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
_SHOWN = 8  # names that a message lists
_LOOKED = 1000  # entries of a file that are looked through for its only array
# What h5py and zipfile are known to raise on damaged files.
_DAMAGE: tuple[type[Exception], ...] = (OSError, KeyError, RuntimeError, ValueError, TypeError, EOFError, struct.error)
_DAMAGE += (zipfile.BadZipFile, zlib.error, LookupError, ArithmeticError, AttributeError, MemoryError)


class Lying:
    """An array in an HDF5 file; opened for each pass, so that it travels between threads."""

    def __init__(self, path: Path, name: str | None) -> None:
        """`name`: of the array, with slashes for groups; None: the file's only one."""
        self.path = path
        with opened_hdf5(path) as file:
            self.name = name or _only(_names(file))
            found = hdf5_array(file, self.name)
            self.shape: tuple[int, ...] = tuple(map(int, found.shape))
            self.size = math.prod(self.shape) * found.dtype.itemsize
        self.spacing: tuple[float | None, ...] = (None,) * len(self.shape)

    def check(self, axis: int | None) -> None:
        """Its structure was checked on opening; a damaged block shows itself on reading."""

    def frames(self, axis: int | None, indices: Sequence[int]) -> Iterator[Array]:
        with opened_hdf5(self.path) as file:
            array = hdf5_array(file, self.name)
            if axis is None or (axis > 0 and self.size <= MAX_BYTES):
                if self.size > MAX_BYTES:
                    raise _too_large(self.size)
                whole = _slice(array, ())
                yield from [whole] if axis is None else (whole.take(index, axis=axis) for index in indices)
                return
            for index in indices:
                yield _slice(array, (slice(None),) * axis + (index,))


class Held:
    """An array that had to be read whole."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape: tuple[int, ...] = array.shape
        self.spacing: tuple[float | None, ...] = (None,) * array.ndim

    def check(self, axis: int | None) -> None:
        """It is here."""

    def frames(self, axis: int | None, indices: Sequence[int]) -> Iterator[Array]:
        yield from [self.array] if axis is None else (self.array.take(index, axis=axis) for index in indices)


@contextmanager
def opened_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file, read-only, without its locks.

    Raises:
        DataError: it can't be opened, or something in it can't be read (reason unreadable).
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except _DAMAGE as error:
        raise DataError("unreadable", f"The HDF5 file is damaged ({_line(error)}).", step="read") from error


def hdf5_array(file: Any, name: str) -> Any:
    """The array `name` of an opened HDF5 file, after checking that its numbers lie in this file.

    Raises:
        DataError: no such array (array_missing), one that lies elsewhere (data_outside), or of no numbers.
    """
    import h5py

    place: Any = file
    for part in name.strip("/").split("/"):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
        if link is None:
            raise _missing(name, _names(file))
        if not isinstance(link, h5py.HardLink):
            raise DataError("data_outside", f"{name!r} is a link, which may lead to another file.", step="read")
        place = place[part]
    if not isinstance(place, h5py.Dataset):
        raise _missing(name, _names(file))
    if place.is_virtual or place.external:
        raise DataError("data_outside", f"The numbers of {name!r} lie in other files.", step="read")
    if place.dtype.kind not in "buifSO" or place.shape is None:
        raise DataError("unsupported", f"{name!r} holds {place.dtype}, no grey levels.", step="read")
    size = math.prod(place.shape) * place.dtype.itemsize
    chunk = math.prod(place.chunks or (0,)) * place.dtype.itemsize
    if size > MAX_STORED or chunk > MAX_BYTES:
        raise DataError("too_large", f"{name!r} has {size} bytes, {chunk} in one block.", step="read")
    if size and not place.id.get_storage_size():
        raise DataError("truncated", f"{name!r} was announced, but none of its numbers was written.", step="read")
    return place


def npz(path: Path, name: str | None) -> Held:
    """An array of an NPZ file.

    Raises:
        DataError: no such array, pickled objects, a damaged or an oversized file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            name = name or _only(sorted(members))
            if name not in members:
                raise _missing(name, sorted(members))
            if members[name].file_size > MAX_BYTES:
                raise _too_large(members[name].file_size)
            with archive.open(members[name]) as file:
                content = io.BytesIO(file.read(MAX_BYTES))
    except _DAMAGE as error:
        raise DataError("unreadable", f"The NPZ file is damaged ({_line(error)}).", step="read") from error
    shape, first_fastest, dtype = npy_header(content)
    stored = npy_stored(path, content.tell(), shape, first_fastest, dtype)
    numbers = content.getbuffer()[content.tell() :]
    if len(numbers) < stored.bytes:
        raise DataError("truncated", f"{len(numbers)} of {stored.bytes} bytes are there.", step="read")
    array = np.frombuffer(numbers[: stored.bytes], dtype)
    return Held(array.reshape(shape, order="F" if first_fastest else "C"))


def mat5(path: Path, name: str | None) -> Held:
    """An array of numbers in a MAT file of version 5 (to 7.2); its axes as NumPy shows them.

    Raises:
        DataError: no such array, no numbers, a damaged or an oversized file.
    """
    file = Mat(path)
    name = name or _only(sorted(file.variables))
    array = mat5_variable(file, name)
    if not isinstance(array, np.ndarray):
        raise DataError("unsupported", f"{name!r} is no array of numbers.", step="read")
    return Held(array)


def mat5_variable(file: Mat, name: str) -> Any:
    """A variable of a MAT file; see `Mat.read`.

    Raises:
        DataError: there is none of that name (reason array_missing).
    """
    if name not in file.variables:
        raise _missing(name, sorted(file.variables))
    return file.read(name)


def _names(file: Any) -> list[str]:
    """Names of the arrays of an opened HDF5 file; of a large one, of its first entries."""
    import h5py

    found: list[str] = []
    seen = 0

    def look(name: str, entry: Any) -> bool | None:
        nonlocal seen
        seen += 1
        if isinstance(entry, h5py.Dataset) and entry.ndim >= 2:
            found.append(name)
        return True if seen >= _LOOKED else None

    file.visititems(look)  # follows no link
    return sorted(found)


def _only(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise DataError(
            "array_missing",
            f"The file holds {len(names)} arrays ({_shown(names)}); say which one in arrays.dataset.",
            step="read",
        )
    return names[0]


def _missing(name: str, names: Sequence[str]) -> DataError:
    return DataError("array_missing", f"There is no array {name!r}, only {_shown(names)}.", step="read")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") or "none"


def _slice(array: Any, index: tuple[Any, ...]) -> Array:
    found: Array = np.asarray(array[index])
    return found


def _too_large(size: int) -> DataError:
    return DataError("too_large", f"{size} bytes would have to be held at once; at most {MAX_BYTES}.", step="read")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
