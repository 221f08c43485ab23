"""Draws follow P(group) ∝ N^γ to within chance, whoever asks for them and in whatever pieces."""

import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from usdata import group_index, sampling
from usdata.errors import ConfigError
from usdata.group_index import GroupIndex, Lookup, Runs
from usdata.sampling import BalancedSampler, EpochSampler, group_probabilities
from usdata.schema import taxonomy

USFM = taxonomy()["usfm12_images_in_3m_us"]  # organ -> images, the largest first


def codes_of(*counts: int) -> NDArray[np.int16]:
    """Group numbers in mixed order."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts), dtype=np.int16), counts))


def p_value(observed: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    some = probabilities > 0
    assert not observed[~some].any()
    return float(stats.chisquare(observed[some], probabilities[some] * observed.sum()).pvalue)


# --- probabilities -----------------------------------------------------------------------------------------------


def test_a_group_with_100_times_the_images_is_drawn_10_times_as_often() -> None:
    few, many = group_probabilities([100, 10_000], 0.5)
    assert many / few == pytest.approx(10.0)  # sqrt(10 000) / sqrt(100), not 100


def test_gamma_0_makes_groups_equal_and_leaves_empty_ones_out() -> None:
    assert group_probabilities([5, 0, 1, 2_000_000], 0.0).tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert group_probabilities([5, 0], -0.5).tolist() == [1, 0]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50).filter(any), st.floats(-400, 400))
@settings(deadline=None)
def test_probabilities_sum_to_one_for_any_gamma(counts: list[int], gamma: float) -> None:
    shares = group_probabilities(counts, gamma)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= 0).all() and not shares[np.array(counts) == 0].any()


@pytest.mark.parametrize(
    ("counts", "gamma", "word"),
    [([], 0.5, "no images"), ([0, 0], 0.5, "no images"), ([3, -1], 0.5, "no images"), ([3], math.nan, "gamma is nan"),
     ([3], math.inf, "gamma is inf")],
)  # fmt: skip
def test_impossible_groups_and_gammas_are_refused(counts: list[int], gamma: float, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        group_probabilities(counts, gamma)


# --- balanced draws ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0, -0.5])
def test_a_million_draws_follow_the_shares_and_are_uniform_inside_groups(gamma: float) -> None:
    codes = codes_of(900, 0, 70, 25, 5)
    sampler = BalancedSampler(codes, gamma, seed=3)
    rows = sampler.draw(2, 0, 1_000_000)
    assert p_value(np.bincount(codes[rows], minlength=5), sampler.probabilities) > 1e-4
    each = sampler.probabilities[codes] / sampler.index.counts[codes]
    assert p_value(np.bincount(rows, minlength=1000), each) > 1e-4


@dataclass(frozen=True)
class Drawn:
    """Ten million draws from USFM's 2,187,915 images: the group of each, and its place inside the group in [0, 1)."""

    sampler: BalancedSampler
    group: NDArray[np.int64]
    inside: NDArray[np.float64]


@pytest.fixture(scope="module", params=[1.0, 0.5, 0.0, -0.5])
def drawn(request: pytest.FixtureRequest) -> Drawn:
    codes = np.repeat(np.arange(12), list(USFM.values()))
    sampler = BalancedSampler(codes, request.param, seed=0)
    rows = sampler.draw(0, 0, 10_000_000)
    group = codes[rows]
    index = sampler.index
    return Drawn(sampler, group, (rows - index.starts[group]) / index.counts[group])


def test_ten_million_draws_follow_the_shares(drawn: Drawn) -> None:
    assert p_value(np.bincount(drawn.group, minlength=12), drawn.sampler.probabilities) > 1e-4


def test_ten_million_draws_are_uniform_inside_each_group(drawn: Drawn) -> None:
    stretch = (drawn.inside * 50).astype(np.int64)  # the smallest group has 1,545 images
    for g, images in enumerate(USFM.values()):
        sizes = np.bincount(np.arange(images) * 50 // images)
        assert p_value(np.bincount(stretch[drawn.group == g], minlength=50), sizes / images) > 1e-4


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 256])  # four words make one tick of the generator: two draws
def test_one_draw_tells_nothing_about_a_later_one(drawn: Drawn, lag: int) -> None:
    shares = drawn.sampler.probabilities
    place = (drawn.inside * 10).astype(np.int64)
    known = np.bincount(place) / len(place)
    for start in (0, lag):
        n = (len(place) - start) // (2 * lag) * 2 * lag
        for what, expected in ((drawn.group, shares), (place, known)):
            one, other = np.moveaxis(what[start : start + n].reshape(-1, 2, lag), 1, 0)  # no draw is in two pairs
            pairs = np.bincount((len(expected) * one + other).ravel(), minlength=len(expected) ** 2)
            assert p_value(pairs, np.outer(expected, expected).ravel()) > 1e-4


def test_an_image_of_a_rare_organ_is_drawn_more_often() -> None:
    codes = codes_of(990, 10)
    times = np.bincount(BalancedSampler(codes, 0.5, 0).draw(0, 0, 100_000), minlength=1000)
    assert times[codes == 1].mean() / times[codes == 0].mean() == pytest.approx(math.sqrt(99), rel=0.1)


@given(st.lists(st.integers(0, 300), max_size=6), st.integers(0, 3), st.booleans())
@settings(deadline=None)
def test_draws_do_not_depend_on_how_they_are_asked_for(cuts: list[int], epoch: int, balanced: bool) -> None:
    sampler = BalancedSampler(codes_of(40, 7), 0.5, 9) if balanced else EpochSampler(47, 9)
    edges = [0, *sorted(cuts), 300]
    parts = [sampler.draw(epoch, a, b) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), sampler.draw(epoch, 0, 300))


def test_seed_and_epoch_change_the_draws_and_nothing_else_does() -> None:
    codes = codes_of(4000, 96)
    one = BalancedSampler(codes, 0.5, 1)
    assert np.array_equal(one.draw(0, 0, 500), BalancedSampler(codes.astype(np.int64), 0.5, 1).draw(0, 0, 500))
    assert np.array_equal(one.draw(0, 0, 500), BalancedSampler(GroupIndex.of(codes), 0.5, 1).draw(0, 0, 500))
    for other in (one.draw(1, 0, 500), BalancedSampler(codes, 0.5, 2).draw(0, 0, 500), one.draw(0, 500, 1000)):
        assert (one.draw(0, 0, 500) == other).mean() < 0.1


def test_the_draws_of_today_are_those_of_tomorrow() -> None:
    # A change here means that no run of an earlier version can be repeated or resumed.
    assert BalancedSampler(np.arange(1000) % 3, 0.5, 0).draw(0, 0, 6).tolist() == [544, 69, 593, 470, 23, 504]
    assert EpochSampler(1000, 0).draw(0, 0, 6).tolist() == [450, 124, 678, 252, 46, 826]
    assert EpochSampler(100_000, 0).draw(0, 0, 6).tolist() == [68061, 63049, 46295, 98124, 75227, 77910]


def test_a_group_owns_exactly_its_share_of_the_64_bit_words() -> None:
    groups, thresholds = sampling._thresholds(group_probabilities([3, 0, 4, 6, 9], 0.0))
    assert groups.tolist() == [0, 2, 3, 4]  # the empty one owns none
    assert thresholds.tolist() == [2**62, 2**63, 3 * 2**62]
    third = sampling._thresholds(group_probabilities([1, 1, 1], 1.0))[1]
    assert all(abs(int(word) - 2**64 * (i + 1) // 3) < 2**12 for i, word in enumerate(third))


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60), st.sampled_from([1, 0, 2]))
@settings(deadline=None)
def test_shares_are_right_to_one_part_in_2_to_the_45(counts: list[int], gamma: int) -> None:
    groups, thresholds = sampling._thresholds(group_probabilities(counts, float(gamma)))
    words = np.diff([0, *(int(word) for word in thresholds), 2**64])  # whole numbers of Python's, exact
    total = sum(n**gamma for n in counts)
    for g, owned in zip(groups.tolist(), words.tolist(), strict=True):
        share = Fraction(counts[g] ** gamma, total)
        assert abs(Fraction(owned, 2**64) - share) <= share / 2**45 + Fraction(1, 2**64)


def test_groups_beyond_16_bits_are_drawn_too() -> None:
    codes = np.arange(70_000, dtype=np.int32) // 2
    sampler = BalancedSampler(codes, 0.0, 0)
    rows = sampler.draw(0, 0, 200_000)
    assert rows.dtype == np.int64 and rows.min() >= 0 and rows.max() < 70_000
    assert p_value(np.bincount(codes[rows], minlength=35_000), sampler.probabilities) > 1e-4


def test_a_vanishing_group_is_never_drawn_and_breaks_nothing() -> None:
    codes = codes_of(1_000_000, 1)
    assert not codes[BalancedSampler(codes, 40.0, 0).draw(0, 0, 10_000)].any()
    assert codes[BalancedSampler(codes, -40.0, 0).draw(0, 0, 10_000)].all()


# --- the index of groups -----------------------------------------------------------------------------------------


def test_the_order_holds_each_row_once_in_four_bytes() -> None:
    index = GroupIndex.of(codes_of(500, 0, 30))
    assert isinstance(index.order, np.ndarray) and index.order.dtype == np.int32
    assert sorted(index.order.tolist()) == list(range(530)) and len(index) == 530
    assert index.counts.tolist() == [500, 0, 30] and index.starts.tolist() == [0, 500, 500]


def test_groups_that_lie_together_need_next_to_no_memory() -> None:
    codes = np.repeat(np.array([2, 0, 1, 0], np.int16), [700, 1000, 5000, 3])
    index = GroupIndex.of(codes)
    assert isinstance(index.order, Runs)
    assert index.order.first.tolist() == [700, 6700, 1700, 0]  # of group 0: twice, then 1 and 2
    assert index.order.length.tolist() == [1000, 3, 5000, 700]
    assert index.counts.tolist() == [1003, 5000, 700] and len(index) == 6703
    assert index.order[np.array([0, 999, 1000, 1002, 1003, 6702])].tolist() == [700, 1699, 6700, 6702, 1700, 699]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5000)), min_size=1, max_size=8), st.integers(1, 3000))
@settings(deadline=None)
def test_runs_and_the_written_out_order_draw_the_same(runs: list[tuple[int, int]], chunk: int) -> None:
    codes = np.repeat([g for g, _ in runs], [n for _, n in runs])
    indexes = []
    for rows_per_run in (1, len(codes) + 1):  # runs whenever there are any; never
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(group_index, "_ROWS_PER_RUN", rows_per_run)
            patch.setattr(group_index, "_CHUNK", chunk)
            indexes.append(GroupIndex.of(codes))
    short, long = indexes
    assert isinstance(short.order, Runs) and isinstance(long.order, np.ndarray)
    assert np.array_equal(long.order, np.argsort(codes, kind="stable"))
    assert np.array_equal(short.order[np.arange(len(codes))], long.order)
    assert np.array_equal(short.counts, long.counts) and np.array_equal(short.starts, long.starts)
    one, other = (BalancedSampler(index, 0.5, 3).draw(1, 10, 5000) for index in indexes)
    assert np.array_equal(one, other)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), st.integers(1, 50))
@settings(deadline=None)
def test_an_order_made_in_pieces_is_the_stable_sort(codes: list[int], chunk: int) -> None:
    for dtype in (np.int64, np.uint8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(group_index, "_CHUNK", chunk)
            index = GroupIndex.of(np.array(codes, dtype))
        rows = index.order[np.arange(len(codes))]
        assert np.array_equal(rows, np.argsort(codes, kind="stable"))
        assert np.array_equal(index.counts, np.bincount(codes))


@given(st.integers(1, 64), st.data())
@settings(deadline=None)
def test_a_lookup_finds_what_a_search_finds(bits: int, data: st.DataObject) -> None:
    words = st.integers(0, 2**bits - 1)
    edges = np.array(sorted(data.draw(st.lists(words, max_size=40))), np.uint64)
    asked = [*data.draw(st.lists(words, max_size=40)), 0, 2**bits - 1]
    near = [int(e) + d for e in edges for d in (-1, 0, 1) if 0 <= int(e) + d < 2**bits]
    values = np.array(asked + near, np.uint64)
    assert np.array_equal(Lookup(edges, bits)(values), np.searchsorted(edges, values, side="right"))


def test_the_digest_tells_groups_apart_that_list_the_same_rows_in_the_same_order() -> None:
    digests = [GroupIndex.of(np.repeat([0, 1], sizes)).digest for sizes in ([2, 1], [1, 2], [1000, 2000], [2000, 1000])]
    assert len(set(digests)) == 4
    assert GroupIndex.of(np.array([0, 0, 1], np.int64)).digest == GroupIndex.of(np.array([0, 0, 1], np.int8)).digest


@pytest.mark.parametrize(
    ("codes", "word"),
    [(np.array([], int), "empty"), (np.array([1, -1]), "Row 1"), (np.array([0.5]), "whole numbers"),
     (np.zeros((2, 2), int), "whole numbers")],
)  # fmt: skip
def test_impossible_group_numbers_are_refused(codes: NDArray[np.integer], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        BalancedSampler(codes, 0.5, 0)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4)])
def test_an_impossible_stretch_of_draws_is_refused(start: int, stop: int) -> None:
    for sampler in (BalancedSampler(codes_of(5), 0.5, 0), EpochSampler(5, 0)):
        with pytest.raises(ValueError, match="no stretch"):
            sampler.draw(0, start, stop)


# --- epochs without replacement ------------------------------------------------------------------------------------

# Small sets are shuffled by sorting, longer ones by a keyed permutation: sizes on both sides, squares, primes.
ROWS = st.integers(1, 5000) | st.sampled_from([1024, 1025, 1089, 4096, 9973, 65_536, 65_537, 99_856, 200_003])
SEEDS = st.integers(-(2**40), 2**40)


@given(ROWS, SEEDS, st.integers(0, 2**40))
@settings(deadline=None, max_examples=60)
def test_an_epoch_shows_each_image_once(rows: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(EpochSampler(rows, seed).draw(epoch, 0, rows)), np.arange(rows))


def test_sub_epochs_share_out_one_pass() -> None:
    sampler = EpochSampler(1000, 0, epoch_size=300)
    stretch = np.concatenate([sampler.draw(e, 0, 300) for e in range(10)])
    assert all(np.array_equal(np.sort(part), np.arange(1000)) for part in stretch.reshape(3, 1000))
    assert np.array_equal(stretch[:1000], EpochSampler(1000, 0).draw(0, 0, 1000))


@given(st.integers(1, 3000), SEEDS, st.integers(1, 7000))
@settings(deadline=None, max_examples=60)
def test_epochs_of_any_length_cut_the_same_passes(rows: int, seed: int, epoch_size: int) -> None:
    sampler, whole = EpochSampler(rows, seed, epoch_size), EpochSampler(rows, seed)
    epochs = min(12, -(-3 * rows // epoch_size))
    cut = np.concatenate([sampler.draw(e, 0, epoch_size) for e in range(epochs)])
    passes = np.concatenate([whole.draw(e, 0, rows) for e in range(-(-len(cut) // rows))])
    assert np.array_equal(cut, passes[: len(cut)])


def test_all_orders_of_four_images_come_equally_often() -> None:
    orders = Counter(tuple(EpochSampler(4, seed).draw(0, 0, 4).tolist()) for seed in range(6000))
    assert p_value(np.array([orders[o] for o in sorted(orders)]), np.full(24, 1 / 24)) > 1e-4


def test_in_a_long_pass_neither_places_nor_neighbours_tell_anything() -> None:
    n = sampling._SMALL + 1
    passes = np.stack([EpochSampler(n, seed).draw(0, 0, n) for seed in range(400)])
    tenth = passes[:, : n // 10].ravel()
    assert stats.chisquare(np.bincount(tenth, minlength=n)).pvalue > 1e-4
    steps = np.diff(passes, axis=1).ravel() % n
    assert stats.chisquare(np.bincount(steps, minlength=n)[1:]).pvalue > 1e-4


def grid_p_value(one: NDArray[np.int64], other: NDArray[np.int64], n: int) -> float:
    """Whether permutations of n that stand side by side, (passes, n) each, fill a grid of 25 x 25 evenly."""
    cells = np.bincount((one * 25 // n * 25 + other * 25 // n).ravel(), minlength=625)
    sizes = np.bincount(np.arange(n) * 25 // n)
    expected = np.outer(sizes, sizes).ravel() / n * len(one)
    statistic = ((cells - expected) ** 2 / expected).sum() * (n - 1) / n  # each pass fills each row of the grid exactly
    return float(stats.chi2.sf(statistic, 24 * 24))


@pytest.mark.parametrize("rows", [1000, 1025, 4096])
def test_every_image_comes_at_every_place_and_no_pass_tells_about_the_next(rows: int) -> None:
    sampler = EpochSampler(rows, 11)
    passes = np.stack([sampler.draw(e, 0, rows) for e in range(1001)])
    places = np.broadcast_to(np.arange(rows), passes.shape)
    assert grid_p_value(places, passes, rows) > 1e-4
    assert grid_p_value(passes[:-1:2], passes[1::2], rows) > 1e-4
    other_seed = np.stack([EpochSampler(rows, 12).draw(e, 0, rows) for e in range(1001)])
    assert grid_p_value(passes, other_seed, rows) > 1e-4
    same = (passes[:-1] == passes[1:]).sum(axis=1)  # one image, on average, comes at the same place as before
    assert stats.chisquare(np.bincount(same.clip(0, 4), minlength=5), POISSON_1 * len(same)).pvalue > 1e-4


POISSON_1 = np.append(stats.poisson.pmf(range(4), 1), stats.poisson.sf(3, 1))


@given(st.integers(1, 2**32 - 1), st.data())
@settings(deadline=None)
def test_each_value_owns_its_share_of_the_words_but_for_one(n: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(0, n - 1))
    first = -(-value * 2**64 // n)  # so the value owns floor or ceil of 2^64 / n words: a bias below n / 2^64
    words = np.array([first] + [first - 1] * (value > 0), np.uint64)
    assert sampling._scale(words, np.uint64(n)).tolist() == [value] + [value - 1] * (value > 0)


def test_a_position_deep_in_the_thousandth_epoch_needs_nothing_before_it() -> None:
    sampler = EpochSampler(10**8, 0)
    assert sampler.draw(999, 99_999_999, 100_000_000).shape == (1,)
    assert len(np.unique(sampler.draw(999, 50_000_000, 50_100_000))) == 100_000


@pytest.mark.parametrize(("rows", "epoch_size"), [(0, None), (5, 0), (5, -3)])
def test_a_pass_over_nothing_is_refused(rows: int, epoch_size: int | None) -> None:
    with pytest.raises(ConfigError):
        EpochSampler(rows, 0, epoch_size)
