"""Which of millions of 64-bit hashes differ in a few bits: by tables of parts that agree, not by all pairs.

The hash is cut into ten blocks. Two hashes of which k blocks agree stand in one bucket of at least one table, if there
is a table for each choice of k blocks. Only what shares a bucket is compared.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

RADIUS = (
    10  # differing bits of 64: of 10,981 pairs of lung cine frames that correlate above 0.995, 8 miss 35 and 10 one
)
_NEAR, _NEARER = 12, 10  # differing bits of 64 that count as near, see `radius_for`
_NEAR_UP_TO = 1_000_000  # hashes
_BLOCKS = 10
_MANY = {1: 20_000, 2: 500_000}  # with so many hashes at most, so many blocks must agree; beyond, three
_ALLOWANCE = 100  # comparisons for each hash and table, on average
_AT_LEAST = 50_000_000  # comparisons that a table may always cost
_CHUNK = 1 << 21  # pairs compared at a time: some 100 MB
_NEAREST = 32  # pairs of one hash that are kept, the nearest
_FULL = 1 << 24  # pairs kept before they are thinned out

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Near:
    """Pairs of near hashes, sorted, each once.

    Attributes:
        first, second: shape (m,), int64 places of the hashes, first < second.
        bits: shape (m,), uint8: how many bits differ.
        skipped: comparisons that crowded buckets were spared, over all tables; 0: the search was as thorough as it is.
    """

    first: Codes
    second: Codes
    bits: NDArray[np.uint8]
    skipped: int


def radius_for(number: int) -> int:
    """How many bits may differ: 12, beyond a million hashes 10.

    Of 10,981 pairs of lung frames that correlate above 0.995, 35 differ in more than 8 bits, 1 in more than 10, none in
    more than 12. Of copies that were cut anew, the hashes of many are farther apart: each bit more finds some. But
    hashes that have nothing to do with each other come as near, too: with 12 bits, two for each of five million images,
    so that all their pixels would be read.
    """
    return _NEAR if number <= _NEAR_UP_TO else _NEARER


def near_pairs(hashes: NDArray[np.uint64], units: Codes, radius: int, workers: int = 1) -> Near:
    """Pairs of hashes of different units that differ in at most `radius` bits; of each hash the 32 nearest ones.

    All pairs with up to 10 - k differing bits are found, k being 1 for up to 20,000 hashes, 2 for up to 500,000, 3
    beyond. Of those with more, if the bits are independent: with 10 bits 99.9, 97 and 78 %, with 12 bits 99, 85, 49 %.

    A bucket may be crowded, because images look alike. A table then compares each hash with the next ones in its bucket
    only, as many as keep the comparisons below 100 per hash on average (50 million are always allowed): time stays
    linear. Memory is some 100 bytes per hash and worker.

    Args:
        hashes: shape (n,), uint64.
        units: shape (n,), int64: hashes of one unit (the frames of a clip) are not compared with each other.
        radius: in [0, 64].
        workers: threads; the result is the same for any number.

    Source: the blocks are those of Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007;
        block count and limits are ours.
    """
    if len(hashes) < 2:
        return Near(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8), 0)
    order = np.argsort(units, kind="stable")
    search = _Search(hashes[order], units[order], radius)
    found, skipped = np.empty(0, np.uint64), 0
    with ThreadPoolExecutor(max(1, workers)) as threads:
        for pairs, spared in threads.map(search.table, search.choices()):
            found, skipped = np.union1d(found, pairs), skipped + spared
            if len(found) > _FULL:
                found = search.thinned(found)
    first, second = search.unpacked(search.thinned(found))
    bits = np.bitwise_count(search.hashes[first] ^ search.hashes[second])
    low, high = np.minimum(order[first], order[second]), np.maximum(order[first], order[second])
    sort = np.lexsort((high, low))
    return Near(low[sort], high[sort], bits[sort], skipped)


@dataclass(frozen=True)
class _Search:
    """Hashes ordered by unit, so that a bucket's hashes of one unit stand side by side."""

    hashes: NDArray[np.uint64]
    units: Codes
    radius: int

    @property
    def _width(self) -> int:
        """Bits of a place."""
        return max(1, len(self.hashes).bit_length())

    def choices(self) -> Iterator[tuple[int, ...]]:
        """The blocks that agree, for each table."""
        agree = next((k for k, most in _MANY.items() if len(self.hashes) <= most), 3)
        return combinations(range(_BLOCKS), agree)

    def table(self, blocks: tuple[int, ...]) -> tuple[NDArray[np.uint64], int]:
        """The near pairs of one table as numbers, see `unpacked`; and how many comparisons were spared."""
        rows, keys = self._sorted(blocks)
        ends = _run_ends(np.diff(keys) != 0)
        starts = _run_ends((np.diff(keys) != 0) | (np.diff(self.units[rows]) != 0))  # of the next unit in the bucket
        others = ends - starts
        most = _affordable(others, max(_AT_LEAST, _ALLOWANCE * len(rows)))
        counts = np.minimum(others, most)
        hashes, near = self.hashes[rows], []
        for low, high in _pieces(counts):
            here = counts[low:high]
            first = np.repeat(np.arange(low, high), here)
            before = np.cumsum(here) - here
            second = np.arange(len(first)) + np.repeat(starts[low:high] - before, here)
            fits = np.flatnonzero(np.bitwise_count(hashes[first] ^ hashes[second]) <= self.radius)
            near.append(self._packed(rows[first[fits]], rows[second[fits]]))
            if sum(map(len, near)) > _FULL:
                near = [self.thinned(np.concatenate(near))]
        found = np.unique(np.concatenate(near)) if near else np.empty(0, np.uint64)
        return found, int((others - counts).sum())

    def _sorted(self, blocks: tuple[int, ...]) -> tuple[Codes, NDArray[np.uint64]]:
        """Places sorted by the hashes' bits in `blocks`, then by place; and those bits.

        Key and place are sorted as one number, several times as fast as an argsort.
        """
        edges = np.linspace(0, 64, _BLOCKS + 1).astype(int).tolist()
        spans = list(pairwise(edges))
        key, width = np.zeros(len(self.hashes), np.uint64), self._width
        for low, high in (spans[block] for block in blocks):
            part = (self.hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
            key = (key << np.uint64(high - low)) | part
        both = np.sort((key << np.uint64(width)) | np.arange(len(key), dtype=np.uint64))
        return (both & np.uint64((1 << width) - 1)).astype(np.int64), both >> np.uint64(width)

    def _packed(self, first: Codes, second: Codes) -> NDArray[np.uint64]:
        low, high = np.minimum(first, second).astype(np.uint64), np.maximum(first, second).astype(np.uint64)
        return (low << np.uint64(32)) | high

    def unpacked(self, pairs: NDArray[np.uint64]) -> tuple[Codes, Codes]:
        """First and second place of each pair."""
        return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def thinned(self, pairs: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The pairs that are among the nearest of one of their two hashes.

        What is thinned out early would be thinned out in the end, so the order of the tables does not matter.
        """
        first, second = self.unpacked(pairs)
        bits = np.bitwise_count(self.hashes[first] ^ self.hashes[second])
        kept = np.zeros(len(pairs), bool)
        for one, other in ((first, second), (second, first)):
            counts = np.bincount(one, minlength=1)
            crowded = np.flatnonzero((counts > _NEAREST)[one])
            kept[(counts <= _NEAREST)[one]] = True
            order = crowded[np.lexsort((other[crowded], bits[crowded], one[crowded]))]
            sizes = counts[counts > _NEAREST]
            rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            kept[order[rank < _NEAREST]] = True
        return pairs[kept]


def _run_ends(changes: NDArray[np.bool_]) -> Codes:
    """One past the last place of the run that each place belongs to; `changes`: between which neighbours one ends."""
    ends = np.append(np.flatnonzero(changes) + 1, len(changes) + 1)
    return np.repeat(ends, np.diff(ends, prepend=0))


def _affordable(counts: Codes, budget: int) -> int:
    """The largest number to which all counts can be cut so that their sum is within the budget."""
    if int(counts.sum()) <= budget:
        return int(counts.max(initial=0))
    low, high = 0, int(counts.max())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if int(np.minimum(counts, middle).sum()) <= budget else (low, middle)
    return low


def _pieces(counts: Codes) -> Iterator[tuple[int, int]]:
    """Stretches of places whose counts sum to about `_CHUNK` at most; a single place may have more."""
    total = np.cumsum(counts)
    low = 0
    while low < len(counts):
        done = int(total[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(total, done + _CHUNK, side="right")))
        if total[high - 1] > done:
            yield low, high
        low = high
