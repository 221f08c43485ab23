"""MAT files of version 5 (to 7.2): arrays of numbers, texts, structures and cells, with every length checked.

Our own because scipy's reader crashes the whole process on some damaged files. Source: MATLAB, "MAT-File Format", the
chapter on level 5. Numbers keep the type in which they are stored, which may be smaller than the one they have in
MATLAB. Sparse arrays, objects and function handles are not read.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingest.readers.image import MAX_BYTES
from ingest.readers.volume_stored import Array
from usdata.errors import DataError

MAT5 = b"MATLAB 5.0 MAT-file"
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _PACKED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC = range(6, 16)  # MATLAB's classes of numbers
_COMPLEX, _LOGICAL = 0x08, 0x02
_DEPTH = 16  # of structures in structures; ours
_FIRST = 4096  # bytes of a variable that hold its name and shape

# An array, a text, the structures or cells of an array in MATLAB's order (the first axis fastest), or None: not read.
Value = Any


@dataclass(frozen=True, slots=True)
class Variable:
    """Where a variable lies in the file."""

    name: str
    shape: tuple[int, ...]
    offset: int
    length: int
    packed: bool


class Mat:
    """A MAT file of version 5 whose variables have been counted."""

    def __init__(self, path: Path) -> None:
        """Look through the file without keeping numbers.

        Raises:
            DataError: truncated, unreadable, or more than MAX_BYTES unpacked (too_large).
        """
        self.path = path
        with path.open("rb") as file:
            head = file.read(128)
            if len(head) < 128:
                raise DataError("truncated", "The MAT file ends in its header.", step="read")
            self.order = "<" if head[126:128] == b"IM" else ">"
            self.variables = {one.name: one for one in self._variables(file, path.stat().st_size)}

    def _variables(self, file: Any, size: int) -> Iterator[Variable]:
        total = 0
        while len(tag := file.read(8)) == 8:
            kind, length = struct.unpack(f"{self.order}II", tag)
            start = file.tell()
            if start + length > size:
                raise DataError("truncated", f"The MAT file ends inside a variable, after {size} bytes.", step="read")
            packed = kind == _PACKED
            if packed:
                begin, unpacked = _measure(file, length, MAX_BYTES - total)
                total += unpacked
            else:
                begin, total = tag + file.read(min(length, _FIRST)), total + length
            if total > MAX_BYTES:
                text = f"More than {MAX_BYTES} bytes would have to be held at once."
                raise DataError("too_large", text, step="read")
            file.seek(start + length)
            if packed or kind == _MATRIX:
                content = _Content(memoryview(begin), self.order)
                content.tag()
                _, shape, name = content.heading()
                yield Variable(name, shape, start - (0 if packed else 8), length + (0 if packed else 8), packed)

    def read(self, name: str) -> Value:
        """A variable of `variables`.

        Raises:
            DataError: truncated, unreadable or unsupported.
        """
        one = self.variables[name]
        with self.path.open("rb") as file:
            file.seek(one.offset)
            content = file.read(one.length)
        try:
            whole = zlib.decompressobj().decompress(content, MAX_BYTES) if one.packed else content
        except zlib.error as error:
            raise DataError("unreadable", f"{name!r} is damaged ({error}).", step="read") from error
        return _Content(memoryview(whole), self.order).element(0)


class _Content:
    """Unpacked bytes, read from the front; every step is checked against the end."""

    def __init__(self, view: memoryview, order: str) -> None:
        self.view, self.order, self.place = view, order, 0

    def tag(self) -> tuple[int, int, int]:
        """Of the next element: its type, where its bytes begin, how many they are; moves on to them."""
        if self.place + 8 > len(self.view):
            raise _damaged("it ends early")
        kind, length = struct.unpack_from(f"{self.order}II", self.view, self.place)
        if kind >> 16:  # a short element, with its bytes inside the tag
            return kind & 0xFFFF, self.place + 4, kind >> 16
        self.place += 8
        return kind, self.place, length

    def part(self) -> tuple[int, memoryview]:
        """The type and the bytes of the next element that is no array; moves past them."""
        kind, start, length = self.tag()
        short = start < self.place + 8 and start == self.place + 4
        if start + length > len(self.view) or (short and length > 4):
            raise _damaged("a length leads beyond its end")
        self.place = self.place + 8 if short else start + length + -length % 8
        return kind, self.view[start : start + length]

    def heading(self) -> tuple[int, tuple[int, ...], str]:
        """An array's flags with its class in the lowest byte, its shape and its name."""
        kind, flags = self.part()
        if kind != 6 or len(flags) < 4:
            raise _damaged("an array has no flags")
        (number,) = struct.unpack_from(f"{self.order}I", flags)
        kind, sizes = self.part()
        if kind != 5 or len(sizes) % 4 or not 4 <= len(sizes) <= 4 * 32:
            raise _damaged("an array has no shape")
        shape = struct.unpack(f"{self.order}{len(sizes) // 4}i", sizes)
        if min(shape) < 0:
            raise _damaged(f"an array has the shape {shape}")
        _, name = self.part()
        return number, shape, bytes(name).decode("latin-1")

    def element(self, depth: int) -> Value:
        """The next element, which must be an array; moves past it."""
        kind, start, length = self.tag()
        if kind != _MATRIX or start + length > len(self.view):
            raise _damaged("no array where one is expected")
        if depth > _DEPTH:
            raise DataError("unsupported", f"Structures more than {_DEPTH} deep in the MAT file.", step="read")
        inner = _Content(self.view[start : start + length], self.order)
        self.place = start + length + -length % 8
        return inner.array(depth) if length else np.zeros((0, 0))

    def array(self, depth: int) -> Value:
        number, shape, _ = self.heading()
        what, count = number & 0xFF, math.prod(shape)
        if what in _NUMERIC:
            return self._numbers(number, shape)
        if what == _CHAR:
            kind, content = self.part()
            codec = _TEXT.get(kind, "latin-1") + ({"<": "-le", ">": "-be"}[self.order] if kind in (4, 17, 18) else "")
            return bytes(content).decode(codec, "replace")
        if what == _CELL:
            self._check_room(count)
            return [self.element(depth + 1) for _ in range(count)]
        if what == _STRUCT:
            names = self._field_names()
            self._check_room(count * len(names))
            return [{name: self.element(depth + 1) for name in names} for _ in range(count)]
        return None

    def _numbers(self, number: int, shape: tuple[int, ...]) -> Array:
        kind, content = self.part()
        if kind not in _NUMBERS:
            raise _damaged(f"numbers of the type {kind}")
        if (number >> 8) & _COMPLEX:
            raise DataError("unsupported", "Complex numbers are no grey levels.", step="read")
        dtype = np.dtype(_NUMBERS[kind]).newbyteorder(self.order)  # type: ignore[arg-type]
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise _damaged(f"{len(content)} bytes for the shape {shape}")
        array = np.frombuffer(content, dtype).reshape(shape, order="F")
        return array != 0 if (number >> 8) & _LOGICAL else array

    def _field_names(self) -> list[str]:
        _, length = self.part()
        _, names = self.part()
        size = int.from_bytes(length, "little" if self.order == "<" else "big") if len(length) == 4 else 0
        if not 1 <= size <= 64 or len(names) % size:
            raise _damaged("a structure has no names")
        found = [bytes(names[at : at + size]).split(b"\0")[0].decode("latin-1") for at in range(0, len(names), size)]
        if len(set(found)) < len(found):
            raise _damaged("a structure has a name twice")
        return found

    def _check_room(self, count: int) -> None:
        if count * 8 > len(self.view) - self.place:  # each needs a tag at least
            raise _damaged(f"{count} elements are announced")


def _measure(file: Any, length: int, most: int) -> tuple[bytes, int]:
    """The beginning of a packed variable, and its size unpacked; stops once that exceeds `most`."""
    step, begin, size = zlib.decompressobj(), b"", 0
    try:
        while length and not step.eof and size <= most:
            packed = file.read(min(length, 1 << 16))
            length -= len(packed)
            while packed and not step.eof and size <= most:
                piece = step.decompress(packed, 1 << 20)
                begin, size = begin + piece[: max(_FIRST - len(begin), 0)], size + len(piece)
                packed = step.unconsumed_tail
    except zlib.error as error:
        raise _damaged(str(error)) from error
    if size <= most and not step.eof:
        raise DataError("truncated", "A packed variable of the MAT file ends too early.", step="read")
    return begin, size


def _damaged(what: str) -> DataError:
    return DataError("unreadable", f"The MAT file is damaged: {what}.", step="read")
