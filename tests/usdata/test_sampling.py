"""Draws follow P(group) ∝ N^γ to within chance, whoever asks for them and in whatever pieces."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from usdata import sampling
from usdata.errors import ConfigError
from usdata.sampling import BalancedSampler, EpochSampler, GroupIndex, group_probabilities, plan, sampling_plan
from usdata.schema import taxonomy

USFM = taxonomy()["usfm12_images_in_3m_us"]  # organ -> images, the largest first
# Percentages, and draws of one image in an epoch of 2,187,915: N^γ / Σ N^γ for the counts of USFM's Fig. 3.
USFM_PERCENT = {
    1.0: [91.743, 3.288, 0.932, 0.847, 0.579, 0.571, 0.509, 0.479, 0.411, 0.385, 0.185, 0.071],
    0.5: [52.751, 9.986, 5.316, 5.069, 4.192, 4.162, 3.930, 3.811, 3.530, 3.418, 2.372, 1.464],
    0.0: [8.333] * 12,
    -0.5: [0.596, 3.148, 5.913, 6.201, 7.499, 7.554, 7.998, 8.250, 8.906, 9.198, 13.256, 21.480],
}
USFM_REPEATS = {
    0.5: [0.575, 3.04, 5.71, 5.98, 7.24, 7.29, 7.72, 7.96, 8.59, 8.87, 12.79, 20.73],
    0.0: [0.09, 2.53, 8.94, 9.84, 14.38, 14.59, 16.36, 17.41, 20.29, 21.64, 44.94, 118.01],
    -0.5: [0.01, 0.96, 6.35, 7.32, 12.94, 13.23, 15.70, 17.23, 21.68, 23.88, 71.49, 304.19],
}
USFM_EFFECTIVE = {1.0: 1.57, 0.5: 5.90, 0.0: 12.00, -0.5: 10.07}


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


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0, -0.5])
def test_the_twelve_organs_of_usfm_get_the_shares_of_the_table(gamma: float) -> None:
    result = plan(list(USFM.values()), gamma, names=list(USFM))
    assert result.draws == 2_187_915
    rows = result.rows()
    assert [row["group"] for row in rows] == list(USFM)
    assert [round(100 * row["expected"], 3) for row in rows] == USFM_PERCENT[gamma]
    assert round(result.effective_groups, 2) == USFM_EFFECTIVE[gamma]
    if gamma in USFM_REPEATS:
        assert [row["repeats"] for row in rows] == pytest.approx(USFM_REPEATS[gamma], abs=0.0051)
    assert p_value(result.drawn, result.expected) > 1e-4


def test_a_plan_tells_how_many_breast_images_an_epoch_shows() -> None:
    seen = {g: plan(list(USFM.values()), g).rows()[0]["seen"] for g in (1.0, 0.5, 0.0, -0.5)}
    assert [round(100 * seen[g], 1) for g in (1.0, 0.5, 0.0, -0.5)] == [63.2, 43.7, 8.7, 0.6]


# --- balanced draws ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0, -0.5])
def test_a_million_draws_follow_the_shares_and_are_uniform_inside_groups(gamma: float) -> None:
    codes = codes_of(900, 0, 70, 25, 5)
    sampler = BalancedSampler(codes, gamma, seed=3)
    rows = sampler.draw(2, 0, 1_000_000)
    assert p_value(np.bincount(codes[rows], minlength=5), sampler.probabilities) > 1e-4
    each = sampler.probabilities[codes] / sampler.index.counts[codes]
    assert p_value(np.bincount(rows, minlength=1000), each) > 1e-4


@pytest.mark.study
@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0, -0.5])
def test_ten_million_draws_from_usfms_2187915_images_follow_the_shares(gamma: float) -> None:
    codes = np.repeat(np.arange(12), list(USFM.values()))
    sampler = BalancedSampler(codes, gamma, seed=0)
    rows = sampler.draw(0, 0, 10_000_000)
    assert p_value(np.bincount(codes[rows], minlength=12), sampler.probabilities) > 1e-3
    muscle = rows[codes[rows] == 11] - int(sampler.index.starts[11])
    assert p_value(np.bincount(muscle, minlength=1545), np.full(1545, 1 / 1545)) > 1e-3


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


def test_the_order_holds_each_row_once_in_four_bytes() -> None:
    index = GroupIndex.of(codes_of(500, 0, 30))
    assert index.order.dtype == np.int32
    assert sorted(index.order.tolist()) == list(range(530))
    assert index.counts.tolist() == [500, 0, 30] and index.starts.tolist() == [0, 500, 500]


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


@given(st.integers(1, 5000), st.integers(-(2**40), 2**40), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_an_epoch_shows_each_image_once(rows: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(EpochSampler(rows, seed).draw(epoch, 0, rows)), np.arange(rows))


def test_sub_epochs_share_out_one_pass() -> None:
    sampler = EpochSampler(1000, 0, epoch_size=300)
    stretch = np.concatenate([sampler.draw(e, 0, 300) for e in range(10)])
    assert all(np.array_equal(np.sort(part), np.arange(1000)) for part in stretch.reshape(3, 1000))
    assert np.array_equal(stretch[:1000], EpochSampler(1000, 0).draw(0, 0, 1000))


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


@pytest.mark.parametrize(("rows", "epoch_size"), [(0, None), (5, 0), (5, -3)])
def test_a_pass_over_nothing_is_refused(rows: int, epoch_size: int | None) -> None:
    with pytest.raises(ConfigError):
        EpochSampler(rows, 0, epoch_size)


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_counts_the_very_draws_that_the_sampler_makes() -> None:
    codes = codes_of(300, 20, 80)
    result = sampling_plan(codes, ["a", "b", "c"], gamma=0.5, draws=5000, seed=7)
    drawn = codes[BalancedSampler(codes, 0.5, 7).draw(0, 0, 5000)]
    assert result.drawn.tolist() == np.bincount(drawn).tolist()
    assert [row["group"] for row in result.rows()] == ["a", "c", "b"]
    assert sum(row["drawn"] for row in result.rows()) == pytest.approx(1)


def test_a_plan_names_empty_groups_and_a_lone_image() -> None:
    rows = plan([1, 0], 0.5, draws=10, names=["one", "none"]).rows()
    assert rows[0] == {
        "group": "one", "images": 1, "share": 1.0, "expected": 1.0, "drawn": 1.0, "repeats": 10.0, "seen": 1.0,
    }  # fmt: skip
    assert rows[1]["repeats"] == rows[1]["drawn"] == rows[1]["seen"] == 0


def test_a_plan_without_draws_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one draw"):
        plan([3], 0.5, draws=0)
