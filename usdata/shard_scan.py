"""Read a shard once, front to back: its hash, its tar structure, its images and masks, and what it says of each sample.

A shard is right if it is exactly what `ShardWriter` writes for its samples. Where it is not, reading goes on at the
next member that can be found, so that every sample that is hit is named.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from usdata import png
from usdata.errors import DataError
from usdata.mask_png import highest_class
from usdata.shards import BLOCK, END, header

_PIECE = 1 << 18  # bytes read at a time: they are still in the processor's cache when they are checked
_NAME, _SIZE = slice(0, 100), slice(124, 135)
_CHECKSUM, _MAGIC = slice(148, 156), slice(257, 263)
_ZEROS = bytes(BLOCK)
_LARGEST = 1 << 26  # bytes of a member: far more than an image, a mask or a row can have


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at a byte of a shard. `sample`: the one it belongs to, as far as that is known."""

    offset: int
    problem: str
    sample: str | None = None


@dataclass(slots=True)
class Found:
    """A sample as it stands in a shard; what is missing is None, or -1 as a place."""

    key: str
    start: int  # of its first member's header
    json: bytes
    json_offset: int
    mask_offset: int = -1
    mask_size: int = -1
    highest_class: int = -1
    offset: int = -1
    size: int = -1
    pixel_xxh: str | None = None


class _Window:
    """A file read once, in pieces, each hashed as it comes; the bytes under inspection are held."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._view = memoryview(bytearray(4 * _PIECE))
        self._start = self._filled = 0  # where in the file the buffer begins, and how much it holds
        self._xxh = xxhash.xxh3_128()

    def at(self, offset: int, size: int) -> memoryview:
        """`size` bytes from `offset`, fewer where the file ends; what stands before them is let go."""
        here = offset - self._start
        if here + size > self._filled:
            self._fetch(offset, size)
            here = offset - self._start
        return self._view[here : min(here + size, self._filled)]

    def _fetch(self, offset: int, size: int) -> None:
        while self._start + self._filled < offset:
            self._start, self._filled = self._start + self._filled, 0
            if not self._read():
                self._start = offset  # beyond the end: nothing stands there
                return
        kept = self._start + self._filled - offset
        if size + _PIECE > len(self._view):
            larger = memoryview(bytearray(2 * (size + _PIECE)))
            larger[: self._filled] = self._view[: self._filled]
            self._view = larger
        self._view[:kept] = self._view[self._filled - kept : self._filled]
        self._start, self._filled = offset, kept
        while self._filled < size and self._read():
            pass

    def _read(self) -> int:
        piece = self._view[self._filled : self._filled + _PIECE]
        count = self._file.readinto(piece)  # type: ignore[attr-defined]
        self._xxh.update(piece[:count])
        self._filled += count
        return int(count)

    def finish(self) -> tuple[str, int]:
        """Read what is left; the hash and the size of the whole file."""
        while self._read_and_drop():
            pass
        return self._xxh.hexdigest(), self._start + self._filled

    def _read_and_drop(self) -> int:
        self._start, self._filled = self._start + self._filled, 0
        return self._read()


class ShardScan:
    """What stands in a shard.

    Args:
        path: the shard's file.
        pixels: also look into images and masks, not only at where they are.

    Attributes:
        samples: in their order, those that begin with their JSON.
        faults: what is wrong with structure, images and masks, in the order of the bytes.
        xxh, size: xxh3_128 and size of the whole file.

    Raises:
        OSError: the file can't be read.
    """

    def __init__(self, path: Path, *, pixels: bool = True) -> None:
        self.samples: list[Found] = []
        self.faults: list[Fault] = []
        self._look, self._keys = pixels, set[str]()
        self._out = np.empty((png.SIDE, png.SIDE), np.uint8)
        self._length = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # not on macOS: the disk reads farther ahead, half as fast again when cold
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            self._bytes = _Window(file)
            self._walk()
            self.xxh, self.size = self._bytes.finish()
        del self._bytes

    def _walk(self) -> None:
        position: int | None = 0
        while position is not None:
            head = self._bytes.at(position, BLOCK).tobytes()
            if len(head) < BLOCK:
                self._fault(position, "the shard is cut short: the end of the archive is missing")
                position = None
            elif head == _ZEROS:
                position = self._end(position)
            else:
                position = self._member(position, head)
        self._close_sample()

    def _member(self, position: int, head: bytes) -> int | None:
        """Look at the member whose header is `head`; where the next one is."""
        name, size = _named(head)
        if head != _header(name, size):
            self._fault(position, _header_problem(head, name, size))
            if not self._followed(position, size):  # its size can't be trusted either
                return self._next_header(position + BLOCK)
        padded = size + -size % BLOCK
        if padded > min(_LARGEST, self._length - position - BLOCK):  # not even tried: the header may say anything
            self._fault(position, f"the shard is cut short inside {_shown(name)}, which is to have {size} bytes")
            return self._next_header(position + BLOCK)
        body = self._bytes.at(position + BLOCK, padded)
        if len(body) < padded:
            self._fault(position, f"the shard is cut short inside {_shown(name)}")
            return None
        if body[size:].tobytes() != _ZEROS[: padded - size]:
            self._fault(position + BLOCK + size, f"the bytes that fill the last block of {_shown(name)} are not zero")
        self._take(_shown(name), position, body[:size])
        return position + BLOCK + padded

    def _take(self, name: str, position: int, body: memoryview) -> None:
        key, kind = _split(name)
        if kind == "json":
            self._begin(key, position, body)
            return
        sample = self.samples[-1] if self.samples else None
        if not kind:
            self._fault(position, f"{name} is no part of a sample")
        elif sample is None or sample.key != key or sample.offset >= 0 or (kind == "mask" and sample.mask_offset >= 0):
            self._fault(position, f"{name} does not stand behind the JSON of its sample", key)
        elif kind == "png":
            sample.offset, sample.size = position + BLOCK, len(body)
            self._image(sample, body)
        else:
            sample.mask_offset, sample.mask_size = position + BLOCK, len(body)
            self._mask(sample, body)

    def _begin(self, key: str, position: int, text: memoryview) -> None:
        self._close_sample()
        if key in self._keys:
            self._fault(position, "the sample is twice in the shard", key)
        self._keys.add(key)
        self.samples.append(Found(key, position, text.tobytes(), position + BLOCK))

    def _image(self, sample: Found, body: memoryview) -> None:
        if not self._look:
            return
        try:
            png.read_checked(np.frombuffer(body, np.uint8), self._out)
        except DataError as error:
            self._fault(sample.offset, error.message, sample.key)
            return
        sample.pixel_xxh = xxhash.xxh3_128_hexdigest(self._out.data)

    def _mask(self, sample: Found, body: memoryview) -> None:
        if not self._look:
            return
        try:
            sample.highest_class = highest_class(body.tobytes())
        except DataError as error:
            self._fault(sample.mask_offset, error.message, sample.key)

    def _close_sample(self) -> None:
        if self.samples and self.samples[-1].offset < 0:
            self._fault(self.samples[-1].start, "the sample's image is missing", self.samples[-1].key)

    def _end(self, position: int) -> int | None:
        """Two blocks of zeros must end the file here."""
        if position + len(END) == self._length:
            if self._bytes.at(position, len(END)) != END:
                self._fault(position + BLOCK, "the end of the archive is not all zeros")
            return None
        if position + len(END) > self._length:
            self._fault(position, "the shard is cut short inside the end of the archive")
            return None
        further = self._next_header(position + BLOCK)
        if further is None:
            extra = self._length - position - len(END)
            self._fault(position + len(END), f"{extra} bytes stand behind the end of the archive")
        else:
            self._fault(position, "zeros stand where a member should be")
        return further

    def _next_header(self, position: int) -> int | None:
        """Where the next sound header stands, at a whole block from `position` on; None if there is none."""
        while position + BLOCK <= self._length:
            blocks = np.frombuffer(self._bytes.at(position, _PIECE), np.uint8)
            blocks = blocks[: len(blocks) // BLOCK * BLOCK].reshape(-1, BLOCK)
            if not len(blocks):
                return None
            magic = (blocks[:, _MAGIC] == np.frombuffer(b"ustar\0", np.uint8)).all(1)
            for number in np.flatnonzero(magic):
                head = blocks[number].tobytes()
                if head == _header(*_named(head)):
                    return position + int(number) * BLOCK
            position += blocks.size
        return None

    def _followed(self, position: int, size: int) -> bool:
        """Whether another member, or the end, stands where a header says that its member ends."""
        if not 0 <= size <= min(_LARGEST, self._length - position):
            return False
        padded = BLOCK + size + -size % BLOCK
        after = self._bytes.at(position, padded + BLOCK)[padded:].tobytes()
        return after[_MAGIC] == b"ustar\0" or after == _ZEROS

    def _fault(self, offset: int, problem: str, sample: str | None = None) -> None:
        self.faults.append(Fault(offset, problem, sample))


def _named(head: bytes) -> tuple[bytes, int]:
    """Name and size as a header gives them; a size of -1 if it is no number."""
    try:
        return head[_NAME].rstrip(b"\0"), int(head[_SIZE], 8)
    except ValueError:
        return head[_NAME].rstrip(b"\0"), -1


def _split(name: str) -> tuple[str, str]:
    """Sample and kind (`json`, `mask`, `png`) of a member; an empty kind if it is no part of a sample."""
    if name.endswith(".json"):
        return name[:-5], "json"
    if name.endswith(".mask.png"):
        return name[:-9], "mask"
    return (name[:-4], "png") if name.endswith(".png") else (name, "")


def _header(name: bytes, size: int) -> bytes | None:
    return header(name, size) if size >= 0 else None


def _header_problem(head: bytes, name: bytes, size: int) -> str:
    total = sum(head) - sum(head[_CHECKSUM]) + 8 * ord(" ")
    if head[_CHECKSUM] != b"%06o\0 " % total:
        return f"the tar header of {_shown(name)} does not match its checksum"
    return f"the tar header of {_shown(name)} (mode, owner, time, kind) is not as usdata writes it"


def _shown(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")
