"""All shards of an index in one stretch of addresses, so that one gather can read from any of them.

The stretch is reserved at once (addresses cost nothing) and each shard is mapped into its place when it is first read.
So a byte's address is a sum, whichever shard it is in, and a batch is one call of a compiled gather, not one per image.
Python's `mmap` can't map at a chosen address, hence the call of the C library. No file stays open.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from usdata.errors import LakeError
from usdata.files import Stamp, file_stamp

WORD = 8  # bytes
_MAP_FIXED = 0x10  # Linux, macOS and the BSDs agree
_MOST_SHARDS = 4096  # mapped at a time: each takes up to two of the 65,530 mappings that Linux allows a process
_EVICT = 8  # a full map drops its eighth, those not read for longest


class ShardMap:
    """Read-only memory of many shards. Safe to use from several threads.

    A shard in use must not be cut short in place; ingest never does that, it renames whole files into place.

    Args:
        root: the lake.
        shards: paths below it.
        stamps: of each shard when the index was made: one that was replaced since is refused. None: not known.
        most: how many shards may be mapped at a time; more only while more are in use.

    Raises:
        LakeError: the process may not have that many addresses.

    Attributes:
        words: all the memory, int64. What is not held reads as zeros.
        starts: (n_shards,) int64, the byte at which each shard begins.
        room: (n_shards,) int64, bytes that may be read from there: the shard in whole pages.
    """

    def __init__(
        self, root: Path, shards: Sequence[str], stamps: Sequence[Stamp | None] = (), most: int | None = None
    ) -> None:
        self._root, self._shards, self._most = root, shards, _MOST_SHARDS if most is None else most
        self._stamps = stamps or [file_stamp(root / shard) for shard in shards]
        sizes = np.array([0 if stamp is None else stamp[2] for stamp in self._stamps], np.int64)
        self.room = -(-sizes // mmap.PAGESIZE) * mmap.PAGESIZE
        ends = np.cumsum(self.room)
        self.starts = ends - self.room
        self._memory = _reserve(int(self.room.sum()), root)
        self.words = np.frombuffer(self._memory, np.int64)
        self._mapped = np.zeros(len(shards), bool)
        self._readers = np.zeros(len(shards), np.int32)  # kept only if shards may have to go
        self._last = np.zeros(len(shards), np.int64)  # tick of the last reading
        self._tick = 0
        self._lock = Lock()

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """All the memory as bytes."""
        return self.words.view(np.uint8)

    @contextmanager
    def held(self, numbers: NDArray[np.integer]) -> Iterator[None]:
        """While the block runs, the shards of these numbers can be read.

        Raises:
            LakeError: a shard is missing, was replaced, or can't be read.
        """
        if len(self._shards) <= self._most:  # nothing ever has to go: no need to count readers
            if not self._mapped[numbers].all():
                self._map_all(np.unique(numbers))
            yield
            return
        used = np.unique(numbers)
        with self._lock:
            self._readers[used] += 1
            self._tick += 1
            self._last[used] = self._tick
        try:
            self._map_all(used)
            yield
        finally:
            with self._lock:
                self._readers[used] -= 1

    def will_need(self, starts: NDArray[np.integer], size: int) -> None:
        """Ask the system to read `size` bytes from each of these addresses ahead, all at once."""
        for start in np.sort(starts).tolist():
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            with suppress(OSError):  # it is only a hint
                self._memory.madvise(mmap.MADV_WILLNEED, first, start - first + size)

    def _map_all(self, numbers: NDArray[np.integer]) -> None:
        with self._lock:
            missing = numbers[~self._mapped[numbers]]
            excess = int(self._mapped.sum()) + len(missing) - self._most
            if excess > 0:
                self._drop(max(excess, self._most // _EVICT))
            for number in missing.tolist():
                self._map(number)
                self._mapped[number] = True

    def _drop(self, n: int) -> None:
        """Give the addresses of `n` shards that nobody reads back to nothing; fewer if there are fewer."""
        idle = np.flatnonzero(self._mapped & (self._readers == 0))
        for number in idle[np.argsort(self._last[idle], kind="stable")[:n]].tolist():
            if self.room[number]:
                _map_at(self._address(number), int(self.room[number]), None)
            self._mapped[number] = False

    def _map(self, number: int) -> None:
        path, stamp = self._root / self._shards[number], self._stamps[number]
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self.error(number, "The shard is missing.") from None
        except OSError as error:
            raise self.error(number, f"The shard can't be read ({error}).") from error
        try:
            now = file_stamp(descriptor)
            if now != stamp:  # the offsets of an index fit the shard it was made from: in a later one they mislead
                raise LakeError(
                    "The shard was replaced after the cohort was opened: data was ingested meanwhile.",
                    item=self._shards[number],
                    step="read",
                    hint="Open the lake and the cohort again.",
                )
            if self.room[number]:
                _map_at(self._address(number), int(self.room[number]), descriptor)
                # no reading ahead: it fetched 15 bytes for each one of an image read at random
                self._memory.madvise(mmap.MADV_RANDOM, int(self.starts[number]), int(self.room[number]))
        except OSError as error:
            raise self.error(number, f"The shard can't be mapped ({error}).") from error
        finally:
            os.close(descriptor)

    def _address(self, number: int) -> int:
        return self.words.ctypes.data + int(self.starts[number])

    def error(self, number: int, message: str) -> LakeError:
        """A LakeError about one shard, with the command that shows all that is wrong."""
        hint = f"All that is wrong, and how to repair it:  usdata verify --lake {self._root}"
        return LakeError(message, item=self._shards[number], step="read", hint=hint)


def _reserve(size: int, root: Path) -> mmap.mmap:
    """Addresses that read as zeros. They can't be written to, so the system counts them as no memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        return mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=flags, prot=mmap.PROT_READ)
    except OSError as error:
        raise LakeError(
            f"The shards of {root} take {size / 2**30:.0f} GiB of addresses, which the system refuses ({error}).",
            step="read",
            hint="Lift the limit of this shell with  ulimit -v unlimited  or choose a smaller cohort.",
        ) from error


def _map_at(address: int, size: int, descriptor: int | None) -> None:
    """Put a file's pages, or empty ones, at an address inside memory that we reserved.

    Raises:
        OSError: the system refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if descriptor is None else mmap.MAP_SHARED
    found = libc.mmap(address, size, mmap.PROT_READ, kind | _MAP_FIXED, -1 if descriptor is None else descriptor, 0)
    if found != address:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
