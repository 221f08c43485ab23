"""The bytes of a DICOM file, read where asked for, and the one way in which reading fails.

Nothing that a file says can reach a message: every failure is a `Refusal` that was raised outside the handler of the
error it stands for, so that not even its context holds a value.
"""

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.deid.reasons import Reason, Refusal

MAX_INFLATED = 512 << 20  # bytes of a deflated data set; ours
_WINDOW = 1 << 16
_PIECE = 1 << 22

_P = ParamSpec("_P")
_T = TypeVar("_T")

# What pydicom, Pillow, OpenCV and the decoders are known to raise on damaged input.
_DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError, LookupError, ArithmeticError)
_DAMAGE += (TypeError, AttributeError, RuntimeError, AssertionError, BufferError, struct.error, zlib.error, cv2.error)


def refused(reason: Reason) -> Refusal:
    """The error for an item that can't be read."""
    return Refusal(reason, step="read")


def attempt(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What `work` returns; whatever a decoder raises on damaged input becomes a Refusal without a trace of it.

    Raises:
        Refusal: unreadable, or too_large when memory ran out; a Refusal of `work` itself passes.
    """
    reason = Reason.UNREADABLE
    try:
        return work(*args, **kwargs)
    except Refusal:
        raise
    except MemoryError:
        reason = Reason.TOO_LARGE
    except _DAMAGE:
        pass
    raise refused(reason)


class Source:
    """Random access to the bytes of an open file, or of a data set that was inflated in memory."""

    def __init__(self, fd: int | None, size: int, window: bytes = b"") -> None:
        self._fd, self.size, self._window, self._base = fd, size, window, 0

    def at(self, position: int, length: int) -> bytes:
        """`length` bytes from `position`.

        Raises:
            Refusal: truncated, when the file has not that many.
        """
        start = position - self._base
        if start >= 0 and start + length <= len(self._window):
            return self._window[start : start + length]
        if position < 0 or position + length > self.size or self._fd is None:
            raise refused(Reason.TRUNCATED)
        if length > _WINDOW:
            return self.array(position, length).tobytes()
        self._window, self._base = os.pread(self._fd, _WINDOW, position), position
        if len(self._window) < length:
            raise refused(Reason.TRUNCATED)
        return self._window[:length]

    def array(self, position: int, length: int) -> NDArray[np.uint8]:
        """`length` bytes from `position` as a new array, uint8 (length,).

        Raises:
            Refusal: truncated, when the file has not that many.
        """
        if position < 0 or position + length > self.size:
            raise refused(Reason.TRUNCATED)
        if self._fd is None:
            return np.frombuffer(self._window, np.uint8, length, position).copy()
        out = np.empty(length, np.uint8)
        view, done = memoryview(out.data), 0
        while done < length:
            got = os.preadv(self._fd, [view[done:]], position + done)
            if got <= 0:
                raise refused(Reason.TRUNCATED)
            done += got
        return out

    def inflated(self, position: int) -> "Source":
        """The deflated data set that begins at `position` (PS3.5 A.5), whole, in memory.

        Raises:
            Refusal: too_large (a bomb), truncated, unreadable, or trailing_bytes after the compressed data.
        """
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        pieces, total = [], 0
        while not stream.eof:
            piece = stream.unconsumed_tail
            if not piece and position < self.size:
                piece = self.at(position, min(_WINDOW, self.size - position))
                position += len(piece)
            pieces.append(stream.decompress(piece, _PIECE))
            total += len(pieces[-1])
            if not piece and not pieces[-1] and not stream.eof:
                raise refused(Reason.TRUNCATED)
            if total > MAX_INFLATED:
                raise refused(Reason.TOO_LARGE)
        rest = len(stream.unused_data) + self.size - position
        if rest > 1 or stream.unused_data.strip(b"\0"):  # one zero byte makes the length even
            raise refused(Reason.TRAILING_BYTES)
        return Source(None, total, b"".join(pieces))


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """A file as a Source.

    Raises:
        Refusal: missing, empty_file, unsupported (no plain file), unreadable.
    """
    fd, reason = -1, Reason.UNREADABLE
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for ever
    except FileNotFoundError:
        reason = Reason.MISSING
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        pass
    if fd < 0:
        raise refused(reason)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise refused(Reason.UNSUPPORTED)
        if not status.st_size:
            raise refused(Reason.EMPTY_FILE)
        yield Source(fd, status.st_size)
    finally:
        os.close(fd)
