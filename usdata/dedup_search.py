"""Which of millions of 64-bit hashes differ in a few bits: by tables of parts that agree, not by all pairs.

The hash is cut into ten blocks. Two hashes of which k blocks agree stand in one bucket of at least one table, if there
is a table for each choice of k blocks. Only what shares a bucket is compared.

Images that look alike stand in heaps, and many tables find the pairs of a heap again. So pairs are not gathered: each
hash has its nearest ones, and what is farther than the last of them is forgotten when it is seen. So is what a table
that is done has compared already: which tables hold a pair is told by the blocks in which it agrees.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from usdata.errors import ConfigError

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
_FULL = 1 << 22  # sides of pairs that wait, at least, before they are thinned out
_PLACE, _DISTANCE = 28, 7  # bits of a place and of a distance in a number, see `_Nearest`
_HEAD = _PLACE + _DISTANCE

Codes = NDArray[np.int64]
Numbers = NDArray[np.uint64]


@dataclass(frozen=True)
class Near:
    """Pairs of near hashes, sorted, each once.

    Attributes:
        first, second: shape (m,), int64 places of the hashes, first < second.
        bits: shape (m,), uint8: how many bits differ.
        skipped: comparisons that crowded buckets were spared, over all tables; 0: the search was as thorough as it is.
        crowded: hashes near to more than 32 others; farther ones are left out, unless they have fewer themselves.
    """

    first: Codes
    second: Codes
    bits: NDArray[np.uint8]
    skipped: int
    crowded: int


def radius_for(number: int) -> int:
    """How many bits may differ: 12, beyond a million hashes 10.

    Of 10,981 pairs of lung frames that correlate above 0.995, 35 differ in more than 8 bits, 1 in more than 10, none in
    more than 12. Of copies that were cut anew, the hashes of many are farther apart: each bit more finds some. But
    hashes that have nothing to do with each other come as near, too: with 12 bits, two for each of five million images,
    so that all their pixels would be read.
    """
    return _NEAR if number <= _NEAR_UP_TO else _NEARER


def near_pairs(hashes: Numbers, units: Codes, radius: int, workers: int = 1) -> Near:
    """Pairs of hashes of different units that differ in at most `radius` bits; of each hash the 32 nearest ones.

    All pairs with up to 10 - k differing bits are found, k being 1 for up to 20,000 hashes, 2 for up to 500,000, 3
    beyond. Of those with more, if the bits are independent: with 10 bits 99.9, 97 and 78 %, with 12 bits 99, 85, 49 %.

    A bucket may be crowded, because images look alike. A table then compares each hash with the next ones in its bucket
    only, as many as keep the comparisons below 100 per hash on average (50 million are always allowed): time stays
    linear. Memory is some 150 bytes per hash and worker, and some 3 KB for each that has 32 near ones.

    Args:
        hashes: shape (n,), uint64; n below 2^28.
        units: shape (n,), int64: hashes of one unit (the frames of a clip) are not compared with each other.
        radius: in [0, 64].
        workers: threads; the result is the same for any number.

    Raises:
        ConfigError: 2^28 hashes or more.

    Source: the blocks are those of Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007;
        block count and limits are ours.
    """
    if len(hashes) >> _PLACE:
        raise ConfigError(f"{len(hashes):,} hashes are too many for one search; choose a cohort of fewer images.")
    order = np.argsort(units, kind="stable")
    nearest = _Nearest(len(hashes), radius)
    search = _Search(hashes[order], units[order], nearest, np.zeros(1 << _BLOCKS, bool))
    skipped = 0
    if len(hashes) > 1:
        with ThreadPoolExecutor(max(1, workers)) as threads:
            skipped = sum(threads.map(search.table, search.choices()))
    sides, crowded = nearest.result()
    one, other = order[sides >> _HEAD], order[sides & _ones(_PLACE)]
    del sides, nearest, search
    pairs = (np.minimum(one, other) << _PLACE) | np.maximum(one, other)
    del one, other
    pairs = np.unique(pairs)  # both sides may have kept a pair
    first, second = pairs >> _PLACE, pairs & _ones(_PLACE)
    return Near(first, second, np.bitwise_count(hashes[first] ^ hashes[second]), skipped, crowded)


class _Nearest:
    """The nearest ones of each hash among the pairs that were added: by bits, then by place, which is by unit.

    The nearest of a union are the nearest of its parts' nearest: neither the order in which pairs are added, nor when
    they are thinned out, nor how often one is added changes the result. Threads share it.

    A side of a pair is one number: the place of a hash, the differing bits, the place of the other.

    Attributes:
        farthest: shape (n,), uint8: the bits of the last of a hash's nearest ones, at first the radius.
    """

    def __init__(self, number: int, radius: int) -> None:
        self.farthest = np.full(number, radius, np.uint8)
        self._last = np.full(number, np.iinfo(np.int64).max)  # the last side that a hash keeps
        self._sides = np.empty(0, np.int64)
        self._waiting: list[Codes] = []
        self._lock = threading.Lock()

    def add(self, one: Codes, other: Codes, bits: NDArray[np.uint8]) -> None:
        """Take pairs in; those that are too far for both of their hashes are forgotten."""
        new = np.concatenate([self._near(one, other, bits), self._near(other, one, bits)])
        with self._lock:
            self._waiting.append(new)
            if sum(map(len, self._waiting)) > max(_FULL, len(self._sides) // 2):  # all thinning takes linear time
                self._thin_out()

    def result(self) -> tuple[Codes, int]:
        """The sides that are kept; and how many hashes have more than 32 near ones. Nothing can be added any more."""
        with self._lock:
            self._thin_out()
            sides, self._sides = self._sides, np.empty(0, np.int64)
        kept = _first_of_each(sides, _NEAREST)
        return kept, len(sides) - len(kept)

    def _near(self, one: Codes, other: Codes, bits: NDArray[np.uint8]) -> Codes:
        """Those sides that are not beyond what `one` has already."""
        close = np.flatnonzero(bits <= self.farthest[one])
        some = one[close]
        sides = (some << _HEAD) | (bits[close].astype(np.int64) << _PLACE) | other[close]
        return sides[sides <= self._last[some]]

    def _thin_out(self) -> None:
        """Keep 33 of each hash: one more than is asked for tells that there were more."""
        sides = np.concatenate([self._sides, *self._waiting])
        self._waiting, self._sides = [], sides[:0].copy()  # frees their memory before more is taken
        sides.sort()
        new = np.ones(len(sides), bool)
        new[1:] = sides[1:] != sides[:-1]
        sides = sides[new]
        del new
        self._sides = sides = _first_of_each(sides, _NEAREST + 1)
        # Threads read while this writes: a limit of before is farther, so it only lets more pass.
        full = sides[_NEAREST:][_same_hash(sides, _NEAREST)]  # the 33rd of each hash that has so many
        self._last[full >> _HEAD] = full
        self.farthest[full >> _HEAD] = (full >> _PLACE) & _ones(_DISTANCE)


def _first_of_each(sides: Codes, most: int) -> Codes:
    """The first sides of each hash, so many at most; `sides` are sorted."""
    kept = np.ones(len(sides), bool)
    kept[most:] = ~_same_hash(sides, most)
    return sides[kept]


def _same_hash(sides: Codes, apart: int) -> NDArray[np.bool_]:
    """Whether each side from place `apart` on is of the hash that the one so many places before is of."""
    return (sides[apart:] ^ sides[: max(0, len(sides) - apart)]) >> _HEAD == 0


def _ones(bits: int) -> int:
    return (1 << bits) - 1


@dataclass(frozen=True)
class _Search:
    """Hashes ordered by unit, so that a bucket's hashes of one unit stand side by side.

    Attributes:
        compared: shape (1024,): whether a table has compared all pairs that agree in these blocks, a bit for each.
            Threads may see it late: then pairs are added again, which changes nothing.
    """

    hashes: Numbers
    units: Codes
    nearest: _Nearest
    compared: NDArray[np.bool_]

    def choices(self) -> Iterator[tuple[int, ...]]:
        """The blocks that agree, for each table."""
        agree = next((k for k, most in _MANY.items() if len(self.hashes) <= most), 3)
        return combinations(range(_BLOCKS), agree)

    def table(self, blocks: tuple[int, ...]) -> int:
        """Add the near pairs of one table to the nearest ones; how many comparisons were spared."""
        rows, keys = self._sorted(blocks)
        ends = _run_ends(np.diff(keys) != 0)
        starts = _run_ends((np.diff(keys) != 0) | (np.diff(self.units[rows]) != 0))  # of the next unit in the bucket
        others = ends - starts
        counts = np.minimum(others, _affordable(others, max(_AT_LEAST, _ALLOWANCE * len(rows))))
        for low, high in _pieces(counts):
            self._compare(rows, starts[low:high], counts[low:high], low)
        skipped = int((others - counts).sum())
        if not skipped:
            choice = sum(1 << block for block in blocks)
            self.compared[np.arange(1 << _BLOCKS) & choice == choice] = True
        return skipped

    def _compare(self, rows: Codes, starts: Codes, counts: Codes, low: int) -> None:
        """Compare the rows from `low` on, each with so many from its start on."""
        rows = rows[low : int((starts + counts).max())]
        hashes, farthest = self.hashes[rows], self.nearest.farthest[rows]
        first = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        skip = starts - low - (np.cumsum(counts) - counts)  # from a pair's number to its second place
        second = np.arange(len(first), dtype=np.int32) + np.repeat(skip.astype(np.int32), counts)
        differ = hashes[first] ^ hashes[second]
        near = np.flatnonzero(np.bitwise_count(differ) <= np.maximum(farthest[first], farthest[second]))
        near = near[~self.compared[_agreeing(differ[near])]]
        self.nearest.add(rows[first[near]], rows[second[near]], np.bitwise_count(differ[near]))

    def _sorted(self, blocks: tuple[int, ...]) -> tuple[Codes, Numbers]:
        """Places sorted by the hashes' bits in `blocks`, then by place; and those bits.

        Key and place are sorted as one number, several times as fast as an argsort.
        """
        spans = _spans()
        key, width = np.zeros(len(self.hashes), np.uint64), len(self.hashes).bit_length()
        for low, high in (spans[block] for block in blocks):
            part = (self.hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
            key = (key << np.uint64(high - low)) | part
        both = np.sort((key << np.uint64(width)) | np.arange(len(key), dtype=np.uint64))
        return (both & np.uint64((1 << width) - 1)).astype(np.int64), both >> np.uint64(width)


def _spans() -> list[tuple[int, int]]:
    """First bit of each block, and one past its last."""
    return list(pairwise(np.linspace(0, 64, _BLOCKS + 1).astype(int).tolist()))


def _agreeing(differ: Numbers) -> NDArray[np.uint16]:
    """The blocks in which no bit differs, a bit for each."""
    agree = np.zeros(len(differ), np.uint16)
    for block, (low, high) in enumerate(_spans()):
        agree |= ((differ & np.uint64(_ones(high) - _ones(low))) == 0).astype(np.uint16) << np.uint16(block)
    return agree


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
