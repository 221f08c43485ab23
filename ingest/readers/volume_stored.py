"""An array that lies in a file as one run of numbers, plain or packed: read frame by frame, never by a native parser.

NIfTI, MetaImage, NRRD and NPY differ in their headers only (`ingest.readers.volume_headers`); the numbers of all four
are read here. Nothing that a header says is believed before the file's size, or its unpacked bytes, bear it out.
"""

import bz2
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ingest.readers.image import MAX_BYTES, MAX_PIXELS
from usdata.errors import DataError

MAX_FRAMES = 100_000  # of one file: more is an absurd header; ours
MAX_STORED = 1 << 36  # bytes of numbers in one file, read a frame at a time; ours
_SLACK = 1 << 20  # bytes after the numbers that are read through for the checksum at the end of a packed file; ours
_PIECE = 1 << 18

Array = NDArray[Any]


class Opened(Protocol):
    """An array whose header has been read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In the order in which the card's `axes` names it."""
        ...

    @property
    def spacing(self) -> tuple[float | None, ...]:
        """Millimetres from one element to the next, of each axis; None: not known."""
        ...

    def frames(self, axis: int | None, indices: Sequence[int]) -> Iterator[Array]:
        """The slices `indices` across `axis`, each without that axis; with None the whole array, once."""
        ...

    def check(self, axis: int | None) -> None:
        """Raises a DataError if the numbers are not all there, as far as that is told without keeping them."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an array's numbers lie in a file, and how. `colours`: numbers per element, which become the last axis."""

    path: Path
    offset: int  # bytes, before unpacking
    packing: Literal["raw", "deflate", "bzip2"]  # deflate: gzip or zlib
    skip: int  # bytes, after unpacking
    sizes: tuple[int, ...]  # in the order of `axes`, without the colours
    dtype: np.dtype[Any]
    first_fastest: bool  # the first of `sizes` varies fastest
    colours: int = 1
    slope: float = 1.0  # value = slope * number + intercept
    intercept: float = 0.0
    spacing: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        text = " x ".join(map(str, self.sizes))
        if not self.sizes or min(self.sizes) < 1 or not 1 <= self.colours <= 256:
            raise DataError("unreadable", f"The header says that the array has {text or 'no'} elements.", step="read")
        if self.bytes > MAX_STORED:
            raise DataError(
                "too_large", f"The header says {text} elements, {self.bytes} bytes; at most {MAX_STORED}.", step="read"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.sizes, self.colours) if self.colours > 1 else self.sizes

    @property
    def bytes(self) -> int:
        """Of all numbers, unpacked."""
        return math.prod(self.sizes) * self.colours * self.dtype.itemsize

    def check(self, axis: int | None) -> None:
        if self.packing == "raw":
            there = self.path.stat().st_size - self.offset
            if there < self.bytes:
                raise _truncated(there, self.bytes)
            return
        with self._numbers() as stream:  # to its end, where the checksum is
            stream.skip(self.bytes)
            stream.drain(_SLACK)

    def frames(self, axis: int | None, indices: Sequence[int]) -> Iterator[Array]:
        sizes = self.sizes[::-1] if self.first_fastest else self.sizes  # the slowest first
        count = len(sizes)
        if axis is not None and axis >= count:
            raise DataError("wrong_axes", "Colours can't be frames; see arrays.axes.", step="read")
        place = None if axis is None else (count - 1 - axis if self.first_fastest else axis)
        inner = (self.colours,) if self.colours > 1 else ()
        if place is None:
            yield self._restored(self._whole((*sizes, *inner)), count)
            return
        rest = (*sizes[:place], *sizes[place + 1 :], *inner)
        forward = self.packing == "raw" or all(a < b for a, b in pairwise(indices))
        if math.prod(sizes[:place]) == 1 and forward:
            blocks = self._blocks(math.prod(rest), indices)
            yield from (self._restored(block.reshape(rest), count - 1) for block in blocks)
        else:
            whole = self._whole((*sizes, *inner))
            yield from (self._restored(whole.take(index, axis=place), count - 1) for index in indices)

    def _restored(self, block: Array, count: int) -> Array:
        """A block as its header's order of axes has it, scaled."""
        if self.first_fastest:
            block = block.transpose(*range(count - 1, -1, -1), *range(count, block.ndim))
        if (self.slope, self.intercept) == (1.0, 0.0):
            return block
        scaled: Array = block * np.float64(self.slope) + np.float64(self.intercept)
        return scaled

    def _whole(self, sizes: tuple[int, ...]) -> Array:
        if self.bytes > MAX_BYTES:
            raise DataError(
                "too_large",
                f"{self.bytes} bytes, more than {MAX_BYTES}, in an order that has to be held in memory at once.",
                step="read",
            )
        with self._numbers() as stream:
            return np.frombuffer(stream.read(self.bytes), self.dtype).reshape(sizes)

    def _blocks(self, length: int, indices: Sequence[int]) -> Iterator[Array]:
        size = length * self.dtype.itemsize
        if size > MAX_BYTES:
            raise DataError("too_large", f"One frame has {size} bytes, more than {MAX_BYTES}.", step="read")
        with self._numbers() as stream:
            position = 0
            for index in indices:
                stream.skip((index - position) * size)
                yield np.frombuffer(stream.read(size), self.dtype)
                position = index + 1

    @contextmanager
    def _numbers(self) -> "Iterator[_Plain | Unpacked]":
        with self.path.open("rb") as file:
            file.seek(self.offset)
            stream = _Plain(file) if self.packing == "raw" else Unpacked(file, self.packing)
            stream.skip(self.skip)
            yield stream


class _Plain:
    """Bytes as they lie in a file; `skip` goes backwards too."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        if len(content) < size:
            raise _truncated(len(content), size)
        return content

    def skip(self, size: int) -> None:
        self.file.seek(size, 1)

    def drain(self, most: int) -> None:
        """Nothing to check after the numbers."""


class Unpacked:
    """The bytes that a gzip, zlib or bzip2 stream unpacks to, a piece at a time whatever the packed bytes claim."""

    def __init__(self, file: BinaryIO, packing: Literal["raw", "deflate", "bzip2"]) -> None:
        self.file, self.packing = file, packing
        self.step: Any = self._start()
        self.ended = False
        self.waiting = b""  # packed bytes that were read from the file and not yet unpacked

    def _start(self) -> Any:
        return bz2.BZ2Decompressor() if self.packing == "bzip2" else zlib.decompressobj(wbits=47)  # gzip and zlib

    def read(self, size: int) -> bytearray:
        """Exactly `size` bytes.

        Raises:
            DataError: they are not there, or what is there is damaged (reasons truncated, unreadable).
        """
        out = bytearray()
        while len(out) < size:
            piece = self._piece(min(size - len(out), _PIECE))
            if not piece:
                raise _truncated(len(out), size)
            out += piece
        return out

    def up_to(self, size: int) -> bytes:
        """At most `size` bytes: fewer where the stream ends."""
        out = bytearray()
        while len(out) < size and (piece := self._piece(size - len(out))):
            out += piece
        return bytes(out)

    def skip(self, size: int) -> None:
        while size:
            piece = self._piece(min(size, _PIECE))
            if not piece:
                raise DataError("truncated", f"The packed numbers end {size} bytes too early.", step="read")
            size -= len(piece)

    def drain(self, most: int) -> None:
        """Read through what is left, so that the checksum at its end is compared."""
        while piece := self._piece(_PIECE):
            most -= len(piece)
            if most < 0:
                raise DataError("unreadable", "The packed file is longer than its header says.", step="read")

    def _piece(self, most: int) -> bytes:
        try:
            return self._unpack(most)
        except (zlib.error, OSError, EOFError, ValueError) as error:
            raise DataError("unreadable", f"The packed numbers are damaged ({error}).", step="read") from error

    def _unpack(self, most: int) -> bytes:
        while True:
            if self.step.eof:
                self.waiting = self.step.unused_data or self.file.read(_PIECE)
                if not self.waiting.startswith((b"\x1f\x8b", b"BZh")):
                    return b""  # what follows is no further member: as gzip does, it is not looked at
                self.step = self._start()
            if not self.waiting and (self.packing == "deflate" or self.step.needs_input):
                self.waiting = self.file.read(_PIECE)
            last = not self.waiting and (self.packing == "deflate" or self.step.needs_input)
            if last and self.packing == "bzip2":
                raise _ends_early()
            piece: bytes = self.step.decompress(self.waiting, most)
            self.waiting = self.step.unconsumed_tail if self.packing == "deflate" else b""
            if piece:
                return piece
            if last and not self.step.eof:
                raise _ends_early()


def _ends_early() -> DataError:
    return DataError("truncated", "The packed file ends too early.", step="read")


def _truncated(there: int, wanted: int) -> DataError:
    return DataError("truncated", f"{max(there, 0)} of {wanted} bytes of numbers are there.", step="read")


def check_frames(count: int, height: int, width: int) -> None:
    """Refuse what no clip or sweep has.

    Raises:
        DataError: reason too_large.
    """
    if count > MAX_FRAMES or height * width > MAX_PIXELS:
        raise DataError("too_large", f"{count} frames of {width} x {height} pixels.", step="read")
