"""Thumbnails of some images of a cohort, and how alike two of them are, computed in whole numbers."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from usdata.cohort import Cohort
from usdata.reader import ShardReader
from usdata.schema import IMAGE_SIZE
from usdata.workers import Progress, silent

SIDE = 32
FLAT = 1.0  # grey levels of spread (standard deviation of the thumbnail) below which an image shows nothing; ours
_CELLS = SIDE * SIDE
_BLOCK = IMAGE_SIZE // SIDE
_IN_MEMORY = 1 << 30  # bytes of thumbnails that need no file
_READ = 256  # images read at a time: 16 MiB
_COMPARE = 4096  # pairs compared at a time: 64 MiB


def block_sums(images: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The sum over each of 32 x 32 blocks of 8 x 8 pixels: shape (n, 1024), at most 64 * 255.

    Args:
        images: shape (n, 256, 256), uint8.
    """
    n = len(images)
    bands = images.reshape(n, SIDE, _BLOCK, IMAGE_SIZE).sum(axis=2, dtype=np.uint16)
    return bands.reshape(n, SIDE, SIDE, _BLOCK).sum(axis=3, dtype=np.uint16).reshape(n, _CELLS)


class Thumbnails:
    """32 x 32 thumbnails of the rows of a cohort that are asked for.

    All sums are whole numbers below 2^53, so a correlation is the same on every machine and for every batch size.
    2 KiB per image; beyond 1 GiB they lie in a temporary file.

    Args:
        cohort: of a lake on this machine.
        rows: places in the cohort, sorted, each once.
        workers: threads that read.
        progress: told of the bytes read.

    Raises:
        LakeError: a shard is missing or damaged.
    """

    def __init__(self, cohort: Cohort, rows: NDArray[np.int64], workers: int = 1, progress: Progress = silent) -> None:
        self.rows = rows
        self._sums = _room(len(rows))
        if len(rows):
            self._read(ShardReader(cohort.index()), workers, progress)
        self._totals = self._each(lambda part: part.sum(axis=1))
        squares = self._each(lambda part: np.einsum("ij,ij->i", part, part))
        self._spreads = _CELLS * squares - self._totals**2  # 1024^2 times the variance of a row
        limit = (FLAT * _BLOCK * _BLOCK * _CELLS) ** 2
        self.flat: NDArray[np.bool_] = self._spreads < limit  # (n,) images that show nothing

    def _read(self, reader: ShardReader, workers: int, progress: Progress) -> None:
        def read(start: int) -> int:
            some = self.rows[start : start + _READ]
            self._sums[start : start + len(some)] = block_sums(reader.images(some))
            return len(some)

        done, size = 0, IMAGE_SIZE * IMAGE_SIZE
        with ThreadPoolExecutor(max(1, workers)) as threads:
            for number in threads.map(read, range(0, len(self.rows), _READ)):
                done += number
                progress("compare", done * size, len(self.rows) * size)

    def _each(self, work: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        """One number for each thumbnail."""
        parts = [work(part) for part in self._parts(len(self.rows))]
        return np.concatenate(parts) if parts else np.empty(0)

    def _parts(self, number: int) -> Iterator[NDArray[np.float64]]:
        for start in range(0, number, _COMPARE):
            yield self._sums[start : start + _COMPARE].astype(np.float64)

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the rows' thumbnails are; all must have been asked for."""
        return np.searchsorted(self.rows, rows)

    def correlations(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
        """Correlation of the thumbnails of rows `first` and `second`, shape (m,); 0 where one of them shows nothing."""
        one, other = self.places(first), self.places(second)
        result = np.zeros(len(one))
        for start in range(0, len(one), _COMPARE):
            a, b = one[start : start + _COMPARE], other[start : start + _COMPARE]
            both = np.einsum("ij,ij->i", self._sums[a].astype(np.float64), self._sums[b].astype(np.float64))
            spread = np.sqrt(self._spreads[a]) * np.sqrt(self._spreads[b])
            known = ~(self.flat[a] | self.flat[b])
            shared = _CELLS * both - self._totals[a] * self._totals[b]
            result[start : start + len(a)] = np.where(known, shared / np.where(known, spread, 1), 0)
        return result


def _room(number: int) -> NDArray[np.uint16]:
    if number * _CELLS * 2 <= _IN_MEMORY:
        return np.empty((number, _CELLS), np.uint16)
    with TemporaryFile(prefix="usdata-dedup-") as file:  # goes with the mapping: it has no name any more
        file.truncate(number * _CELLS * 2)
        return np.memmap(file, np.uint16, "r+", shape=(number, _CELLS))
