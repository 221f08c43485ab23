"""Which images come next: balanced draws and plain epochs, exact for any number of images.

`P(group) ∝ N^γ`, uniform inside the group (N: how many images the group has). Read `BalancedSampler.draw` first.

Draw k of an epoch is a pure function of (seed, epoch, k): a counter-based generator gives two 64-bit words per draw,
one picks the group, one the image in it. So any stretch of an epoch can be drawn at once, by any process, and nothing
has to be remembered but k. No sum over images is ever formed, so 10^8 images are drawn as exactly as ten.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from usdata.errors import ConfigError
from usdata.group_index import GroupIndex, Lookup

_WORD = 2**64
_SMALL = 1024  # rows up to which a pass is shuffled by sorting random words
_ROUNDS = 12  # of the Feistel network that shuffles longer ones
_DRAWS = 1 << 15  # draws made at a time


class Sampler(Protocol):
    """What a loader needs: numbered draws of row numbers."""

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Draws `start` to `stop - 1` of an epoch: shape (stop - start,), int64 row numbers."""
        ...


def group_probabilities(counts: Sequence[int] | NDArray[np.integer], gamma: float) -> NDArray[np.float64]:
    """Probability of each group, proportional to `counts ** gamma`.

    Args:
        counts: shape (n_groups,), images of each group; a group without images gets probability 0 for every gamma.
        gamma: 1 follows the data, 0.5 gives each image the weight 1/√N, 0 makes groups equal, −0.5 inverts.

    Returns:
        Shape (n_groups,), float64, dimensionless, sums to 1.

    Raises:
        ConfigError: no images at all, a negative count, or a gamma that is not a finite number.

    Source: USFM (Jiao et al., MedIA 2024), Eq. 1, which lists one weight 1/√N per organ. Giving that weight to each of
        the organ's images (γ = 0.5, the default everywhere) is ours; γ = −0.5 is the literal per-organ reading.
    """
    numbers = np.asarray(counts, np.float64)
    if not math.isfinite(gamma):
        raise ConfigError(f"gamma is {gamma}; it must be a finite number, e.g. 0.5.")
    if numbers.ndim != 1 or (numbers < 0).any() or not (numbers > 0).any():
        raise ConfigError("Nothing to draw from: the groups hold no images.")
    shares = np.zeros(len(numbers))
    some = numbers > 0
    logs = np.log(numbers[some])
    with np.errstate(over="ignore", under="ignore"):  # towards 0, which is right for an extreme gamma
        shares[some] = np.exp(gamma * (logs - (logs.max() if gamma > 0 else logs.min())))  # relative to the largest
    return shares / shares.sum()


class BalancedSampler:
    """Draws with replacement, `P(group) ∝ N^γ`, uniform inside the group.

    A group's share is right to one part in 2^45 of itself, an image's share of its group to one in 2^64 / N, however
    many images there are. Other weights or groups need another sampler, and no data is written anew.

    Args:
        groups: group number of each row, shape (n_rows,), integers; or a `GroupIndex`, to share it among samplers.
        gamma: see `group_probabilities`.
        seed: any whole number.

    Raises:
        ConfigError: nothing to draw from, or a gamma or group numbers that make no sense.
    """

    def __init__(self, groups: NDArray[np.integer] | GroupIndex, gamma: float, seed: int) -> None:
        self.index = groups if isinstance(groups, GroupIndex) else GroupIndex.of(groups)
        self.gamma, self.seed = float(gamma), int(seed)
        self.probabilities = group_probabilities(self.index.counts, gamma)
        drawn, thresholds = _thresholds(self.probabilities)
        self._which = Lookup(thresholds, 64)
        self._counts = self.index.counts[drawn].astype(np.uint64)
        self._starts = self.index.starts[drawn]

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Draws `start` to `stop - 1` of an epoch: shape (stop - start,), int64 row numbers."""
        words = _words(f"balanced draw {self.seed} {epoch}", 2 * start, 2 * stop)
        rows = np.empty(stop - start, np.int64)
        for first in range(0, len(rows), _DRAWS):  # pieces that stay in the processor's cache
            piece = words[2 * first : 2 * (first + _DRAWS)]
            group = self._which(piece[::2])
            inside = _scale(piece[1::2], self._counts[group]).astype(np.int64)
            rows[first : first + _DRAWS] = self.index.order[self._starts[group] + inside]
        return rows


class EpochSampler:
    """Each image once, in an order that looks random, then again in another order.

    Epoch e takes the positions e·`epoch_size` … of an endless row of such passes. So epochs as long as the data are
    passes, and shorter ones share a pass out among them: with `epoch_size` a quarter of the rows, four epochs show
    each image once. The order is computed where it is asked for (a keyed permutation), not stored.

    Args:
        rows: number of images.
        seed: any whole number.
        epoch_size: draws per epoch; the number of rows by default.

    Raises:
        ConfigError: no rows, or an epoch without draws.
    """

    def __init__(self, rows: int, seed: int, epoch_size: int | None = None) -> None:
        if rows < 1:
            raise ConfigError("Nothing to draw from: the cohort is empty.")
        self.rows, self.seed = int(rows), int(seed)
        self.epoch_size = self.rows if epoch_size is None else int(epoch_size)
        if self.epoch_size < 1:
            raise ConfigError(f"epoch_size is {epoch_size}; an epoch needs at least one draw.")

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Draws `start` to `stop - 1` of an epoch: shape (stop - start,), int64 row numbers."""
        _check_span(start, stop)
        first, last = epoch * self.epoch_size + start, epoch * self.epoch_size + stop
        parts = [np.empty(0, np.int64)]
        while first < last:
            number, position = divmod(first, self.rows)
            n = min(last - first, self.rows - position)
            parts.append(self._pass(number, position, position + n))
            first += n
        return np.concatenate(parts)

    def _pass(self, number: int, start: int, stop: int) -> NDArray[np.int64]:
        stream = f"pass {self.seed} {number}"
        if self.rows <= _SMALL:
            return np.argsort(_words(stream, 0, self.rows), kind="stable")[start:stop]
        return _permute(np.arange(start, stop, dtype=np.uint64), self.rows, _words(stream, 0, _ROUNDS))


def effective_number(shares: NDArray[np.float64]) -> float:
    """exp(entropy) of shares that sum to 1: how many equal ones would be as diverse."""
    some = shares[shares > 0]
    return float(np.exp(-(some * np.log(some)).sum()))


@dataclass(frozen=True)
class SamplingPlan:
    """What an epoch of balanced draws will show, group by group."""

    gamma: float
    draws: int
    names: tuple[str, ...]
    counts: NDArray[np.int64]  # (n_groups,) images
    expected: NDArray[np.float64]  # (n_groups,) probability
    drawn: NDArray[np.int64]  # (n_groups,) draws of epoch 0, as the loader of that seed makes them

    @property
    def effective_groups(self) -> float:
        """exp(entropy) of the expected shares: how many equal groups would be as diverse."""
        return effective_number(self.expected)

    def rows(self) -> list[dict[str, Any]]:
        """One dict per group, the largest first, all shares in [0, 1].

        `images`; `share` among all images; `expected` and `drawn` share of the draws; `repeats`, expected draws of
        one image in the epoch; `seen`, expected share of the group's images that come at least once.
        """
        return [self._row(g) for g in np.argsort(-self.counts, kind="stable")]

    def _row(self, g: int) -> dict[str, Any]:
        images, draws = int(self.counts[g]), self.draws
        each = float(self.expected[g]) / images if images else 0.0  # probability of one image in one draw
        return {
            "group": self.names[g],
            "images": images,
            "share": images / int(self.counts.sum()),
            "expected": float(self.expected[g]),
            "drawn": int(self.drawn[g]) / draws,
            "repeats": draws * each,
            "seen": -math.expm1(draws * math.log1p(-each)) if each < 1 else 1.0,
        }


def plan(
    counts: Sequence[int] | NDArray[np.integer],
    gamma: float,
    draws: int | None = None,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> SamplingPlan:
    """What `draws` balanced draws from groups of these sizes will show.

    Args:
        counts: shape (n_groups,), images of each group, in the order of the loader's group numbers.
        gamma: see `group_probabilities`.
        draws: length of the epoch; as many as there are images by default.
        names: of the groups; their numbers by default.
        seed: the loader's.

    Raises:
        ConfigError: no images, no draws, or a gamma that is not a finite number.
    """
    expected = group_probabilities(counts, gamma)
    sizes = np.asarray(counts, np.int64)
    draws = int(sizes.sum()) if draws is None else int(draws)
    if draws < 1:
        raise ConfigError(f"A plan needs at least one draw, not {draws}.")
    groups, thresholds = _thresholds(expected)
    which = Lookup(thresholds, 64)
    drawn = np.zeros(len(sizes), np.int64)
    for start in range(0, draws, _DRAWS):
        words = _words(f"balanced draw {seed} 0", 2 * start, 2 * min(start + _DRAWS, draws))[::2]
        drawn += np.bincount(groups[which(words)], minlength=len(sizes))
    labels = tuple(names) if names is not None else tuple(str(g) for g in range(len(sizes)))
    return SamplingPlan(float(gamma), draws, labels, sizes, expected, drawn)


def sampling_plan(
    codes: NDArray[np.integer], names: Sequence[str], *, gamma: float, draws: int | None = None, seed: int = 0
) -> SamplingPlan:
    """`plan` for the group number of each image, shape (n_images,), and the name of each number."""
    return plan(np.bincount(codes, minlength=len(names)), gamma, draws, names=names, seed=seed)


def _thresholds(probabilities: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The groups that can be drawn, and the 64-bit words at which the next of them begins.

    Counted in whole numbers, so the shares add up to exactly 2^64; the rounding (below one part in 2^53 of a share)
    goes to the most frequent group.
    """
    weights = [int(p * float(_WORD)) for p in probabilities.tolist()]
    weights[int(probabilities.argmax())] += _WORD - sum(weights)
    groups = [g for g, weight in enumerate(weights) if weight]
    ends = list(accumulate(weights[g] for g in groups))
    return np.array(groups, np.int64), np.array(ends[:-1], np.uint64)


def _check_span(start: int, stop: int) -> None:
    if not 0 <= start <= stop:
        raise ValueError(f"draws are numbered from 0 upwards; {start} to {stop} is no stretch of them")


def _words(stream: str, start: int, stop: int) -> NDArray[np.uint64]:
    """Words `start` to `stop - 1` of the endless random stream of that name, each uniform in [0, 2^64)."""
    _check_span(start, stop)
    key = int.from_bytes(hashlib.blake2b(f"usdata {stream}".encode(), digest_size=16).digest(), "little")
    block, skip = divmod(start, 4)  # Philox makes four words per tick of its counter
    return Philox(counter=block, key=key).random_raw(stop - start + skip)[skip:]


def _scale(words: NDArray[np.uint64], n: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """floor(word · n / 2^64): uniform in [0, n), each value's bias below n / 2^64. n is at most 2^32 − 1."""
    low, high = words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)
    return (high * n + ((low * n) >> np.uint64(32))) >> np.uint64(32)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit words without visible pattern.

    Source: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), variant 13 of Stafford.
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _permute(positions: NDArray[np.uint64], n: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where a keyed permutation of 0 … n − 1 sends each position, without computing the others.

    A Feistel network on pairs (left < a, right < b) with a·b just above n; the few results that are n or more are
    sent on until they fall below (cycle walking), which keeps it a permutation. Not for small n: it reaches too few
    of the permutations there (only even ones, where a and b are odd).
    """
    a, b = np.uint64(math.isqrt(n - 1) + 1), np.uint64(-(-n // (math.isqrt(n - 1) + 1)))

    def network(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left = x // b
        right = x - left * b
        for i in range(0, _ROUNDS, 2):
            left = _wrapped(left + _scale(_mix(right ^ keys[i]), a), a)
            right = _wrapped(right + _scale(_mix(left ^ keys[i + 1]), b), b)
        return left * b + right

    out = np.empty(len(positions), np.int64)
    for start in range(0, len(positions), _DRAWS):  # pieces that stay in the processor's cache
        piece = network(positions[start : start + _DRAWS])
        while (beyond := np.flatnonzero(piece >= n)).size:
            piece[beyond] = network(piece[beyond])
        out[start : start + _DRAWS] = piece
    return out


def _wrapped(x: NDArray[np.uint64], n: np.uint64) -> NDArray[np.uint64]:
    """x mod n for x below 2·n: where x is less than n, x − n wraps round to a huge number."""
    return np.minimum(x, x - n)
