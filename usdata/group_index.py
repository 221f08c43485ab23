"""Which rows are in which group: the index that balanced draws look images up in, 4 bytes per image or far less."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash
from numpy.typing import NDArray

from usdata.errors import ConfigError

_CHUNK = 1 << 20  # rows indexed at a time
_ROWS_PER_RUN = 512  # at least, on average, for groups to be told by their runs


class Lookup:
    """`np.searchsorted(edges, values, side="right")` for values below `2**bits`, several times as fast.

    A table tells the answer for each value of the leading bits; only values in a cell that holds an edge are searched
    for. 16 cells per edge or more, 4 bytes each, 4 MiB at most.

    Args:
        edges: shape (n,), ascending, each below `2**bits`.
        bits: up to 64.
    """

    def __init__(self, edges: NDArray[np.uint64], bits: int) -> None:
        cells = min(bits, 20, max(8, (16 * len(edges)).bit_length()))
        self._shift = np.uint64(bits - cells)
        self._edges = edges.astype(np.uint64)
        self._upper = np.append(self._edges, np.uint64(2**64 - 1))  # of each answer
        firsts = np.arange(1 << cells, dtype=np.uint64) << self._shift
        self._table = np.searchsorted(self._edges, firsts, side="right").astype(np.int32)

    def __call__(self, values: NDArray[np.uint64]) -> NDArray[np.int32]:
        found = self._table[values >> self._shift]
        late = np.flatnonzero(values >= self._upper[found])
        found[late] = np.searchsorted(self._edges, values[late], side="right")
        return found


class Runs:
    """The rows of all groups, side by side, told by stretches of neighbouring rows: `order[places]` as of an array.

    A catalog lists its shards one after the other, and a shard holds one organ; so a hundred million images are a few
    hundred stretches. At most 170 bytes for each, and nothing for an image.

    Args:
        first: shape (n_runs,), first row of each stretch, in the order of their groups.
        length: shape (n_runs,), rows of each.
    """

    def __init__(self, first: NDArray[np.int64], length: NDArray[np.int64]) -> None:
        self.first, self.length = first, length
        ends = np.cumsum(length)
        self._shift = first - (ends - length)  # from a place to its row
        self._rows = int(ends[-1])
        self._stretch = Lookup(ends[:-1].astype(np.uint64), self._rows.bit_length())

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return places + self._shift[self._stretch(places.astype(np.uint64))]


@dataclass(frozen=True)
class GroupIndex:
    """The rows of each group, side by side.

    `order[starts[g] : starts[g] + counts[g]]` are the rows of group g, ascending: an array of 4 bytes per image (8
    from 2^31 images on), or `Runs`, next to nothing, where each group's rows lie together.
    """

    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    order: NDArray[np.integer] | Runs

    @staticmethod
    def of(codes: NDArray[np.integer]) -> "GroupIndex":
        """Build from the group number of each row, shape (n_rows,), any integer dtype, 0 or more.

        Raises:
            ConfigError: no rows, a negative number, or not integers.
        """
        codes = np.asarray(codes)
        if codes.ndim != 1 or not np.issubdtype(codes.dtype, np.integer):
            raise ConfigError(f"Groups are whole numbers of shape (n_rows,), not {codes.dtype} {codes.shape}.")
        if not len(codes):
            raise ConfigError("Nothing to draw from: the cohort is empty.")
        if codes.min() < 0:
            raise ConfigError(f"Row {int(codes.argmin())} has the negative group number {int(codes.min())}.")
        firsts = _run_starts(codes, len(codes) // _ROWS_PER_RUN)
        counts = _group_sizes(codes, firsts)
        if counts.max() >= 2**32:
            raise ConfigError(f"A group may hold 2^32 images at most, not {int(counts.max())}.")
        starts = np.cumsum(counts) - counts
        if firsts is None:
            return GroupIndex(counts, starts, _sorted_rows(codes, counts, starts))
        by_group = np.argsort(codes[firsts], kind="stable")
        lengths = np.diff(firsts, append=len(codes))
        return GroupIndex(counts, starts, Runs(firsts[by_group], lengths[by_group]))

    def __len__(self) -> int:
        return len(self.order)

    @cached_property
    def digest(self) -> str:
        """Hash of which row is in which group, 16 hex digits: what balanced draws depend on, besides their settings."""
        rows = (self.order.first, self.order.length) if isinstance(self.order, Runs) else (self.order,)
        digest = xxhash.xxh3_64()
        for part in (self.counts, *rows):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


def _run_starts(codes: NDArray[np.integer], most: int) -> NDArray[np.int64] | None:
    """Row 0 and the rows that have another group than the row before; None if they are more than `most`."""
    found, number = [np.zeros(1, np.int64)], 1
    for start in range(1, len(codes), _CHUNK):
        part = codes[start - 1 : start + _CHUNK]
        found.append(np.flatnonzero(part[1:] != part[:-1]) + start)
        number += len(found[-1])
        if number > most:
            return None
    return np.concatenate(found) if number <= most else None


def _group_sizes(codes: NDArray[np.integer], firsts: NDArray[np.int64] | None) -> NDArray[np.int64]:
    sizes = np.zeros(int(codes.max()) + 1, np.int64)
    if firsts is not None:
        np.add.at(sizes, codes[firsts], np.diff(firsts, append=len(codes)))
        return sizes
    for start in range(0, len(codes), _CHUNK):
        part = np.bincount(codes[start : start + _CHUNK].astype(np.int64, copy=False))
        sizes[: len(part)] += part
    return sizes


def _sorted_rows(
    codes: NDArray[np.integer], counts: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.integer]:
    """`np.argsort(codes, kind="stable")`, in pieces: without its eight bytes per row beside the result."""
    order: NDArray[np.integer] = np.empty(len(codes), np.int32 if len(codes) < 2**31 else np.int64)
    free = starts.copy()  # place of each group's next row
    short = np.int16 if len(counts) <= 2**15 else np.int64  # numpy sorts 16-bit keys by radix, eight times as fast
    for start in range(0, len(codes), _CHUNK):
        part = codes[start : start + _CHUNK].astype(short, copy=False)
        sizes = np.bincount(part, minlength=len(counts))
        places = np.arange(len(part)) + np.repeat(free - (np.cumsum(sizes) - sizes), sizes)
        order[places] = np.argsort(part, kind="stable") + start
        free += sizes
    return order
