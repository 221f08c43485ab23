"""What a stream shows, without any pixel: shares, passes, ranks and positions."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from usdata.errors import ConfigError
from usdata.sampling import BalancedSampler, group_probabilities
from usdata.stream_plan import EpochPlan, Slices, StreamPlan


def layout(*groups: list[int]) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Groups and shards of rows, from the sizes of each group's shards."""
    sizes = [size for group in groups for size in group]
    codes = np.repeat(np.arange(len(groups)), [sum(group) for group in groups])
    return codes.astype(np.int16), np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)


def make(groups, *, gamma=0.5, seed=0, epoch=None, batch=4, world=1, window=2, split="samples", draws=None):
    codes, shard = layout(*groups)
    epoch = len(codes) if epoch is None else epoch
    slices = Slices(epoch if draws is None else draws, batch, world)
    names = [f"g{g}" for g in range(len(groups))]
    return StreamPlan(
        codes, names, shard, gamma=gamma, seed=seed, epoch_size=epoch, slices=slices, window=window, split=split
    )


def rows_of(plan, epoch=0, rank=0, batch=0):
    one = EpochPlan(plan, epoch, rank, batch)
    return [one.batch(number)[0] for number in range(batch, len(plan.slices))]


SIZES = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=3)


def test_the_groups_of_the_draws_are_those_of_the_random_access_loader():
    plan = make([[50, 50], [7], [300, 1]], seed=5, batch=64, epoch=10_000)
    codes, _ = layout([50, 50], [7], [300, 1])
    wanted = codes[BalancedSampler(codes, 0.5, 5).draw(3, 0, plan.slices.draws)]
    assert (codes[np.concatenate(rows_of(plan, epoch=3))] == wanted).all()


@pytest.mark.parametrize("gamma", [1, 0.5, 0, -0.5])
def test_group_shares_are_exact_within_chance(gamma):
    sizes = [[1000, 900], [100], [500, 500, 20], [10]]
    plan = make(sizes, gamma=gamma, batch=500, epoch=100_000)
    codes, _ = layout(*sizes)
    drawn = np.bincount(codes[np.concatenate(rows_of(plan))], minlength=4)
    expected = group_probabilities(np.bincount(codes), gamma) * drawn.sum()
    assert chisquare(drawn, expected).pvalue > 1e-4


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_without_gamma_the_ranks_show_every_image_once_per_epoch(sizes, world, window, seed):
    n = sum(map(sum, sizes))
    plan = make(sizes, gamma=None, seed=seed, world=world, window=window, batch=2)
    for epoch in range(2):
        shown = np.concatenate([rows for rank in range(world) for rows in rows_of(plan, epoch, rank)])
        assert sorted(shown.tolist()) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_with_gamma_no_image_of_a_group_comes_twice_more_than_another(sizes, world, window, seed):
    n = sum(map(sum, sizes))
    plan = make(sizes, seed=seed, world=world, window=window, batch=3, epoch=9 * world * (n // 2 + 1))
    shown = np.concatenate([rows for rank in range(world) for rows in rows_of(plan, 1, rank)])
    times = np.bincount(shown, minlength=n)
    for g in range(len(sizes)):
        own = times[plan.codes == g]
        assert own.max() - own.min() <= 1


def test_epochs_of_a_quarter_show_each_image_once_in_four():
    plan = make([[30, 11], [9], [25, 25]], gamma=None, epoch=25, world=2, batch=4)
    shown = Counter(
        int(row) for epoch in range(8) for rank in range(2) for rows in rows_of(plan, epoch, rank) for row in rows
    )
    assert set(shown.values()) == {2}
    assert len(shown) == 100


@pytest.mark.parametrize("window", [1, 2])
def test_every_image_is_as_likely_at_any_position_however_uneven_the_shards(window):
    ids = np.array([rows_of(make([[1, 9, 2]], seed=seed, window=window, batch=12))[0] for seed in range(1500)])
    for position in (0, 1, 5, 11):
        assert chisquare(np.bincount(ids[:, position], minlength=12)).pvalue > 1e-4


def test_the_order_of_an_epoch_depends_on_seed_and_epoch():
    one = rows_of(make([[20, 20, 20]], batch=60))[0]
    assert not (one == rows_of(make([[20, 20, 20]], batch=60), epoch=1)[0]).all()
    assert not (one == rows_of(make([[20, 20, 20]], batch=60, seed=1))[0]).all()
    assert (one == rows_of(make([[20, 20, 20]], batch=60))[0]).all()


@pytest.mark.parametrize("gamma", [0.5, None])
def test_a_plan_can_begin_at_any_batch(gamma):
    plan = make([[30, 11], [9], [25, 25]], gamma=gamma, world=2, batch=4, epoch=70)
    for rank in range(2):
        whole = rows_of(plan, 1, rank)
        for batch in range(len(whole)):
            rest = rows_of(plan, 1, rank, batch)
            assert all((a == b).all() for a, b in zip(whole[batch:], rest, strict=True))


def test_ranks_read_different_shards_but_for_one_window_at_each_border():
    world, window = 4, 2
    plan = make([[10] * 40], gamma=None, world=world, window=window, batch=10)
    read = [set((np.concatenate(rows_of(plan, 0, rank)) // 10).tolist()) for rank in range(world)]
    assert set.union(*read) == set(range(40))
    assert sum(map(len, read)) <= 40 + world * window + window


def test_the_parts_of_a_batch_say_where_its_images_come_from():
    plan = make([[5, 5, 5], [4, 4]], batch=7)
    one = EpochPlan(plan, 0, 0, 0)
    for number in range(len(plan.slices)):
        rows, parts = one.batch(number)
        assert sorted(np.concatenate([part.places for part in parts]).tolist()) == list(range(len(rows)))
        for part in parts:
            assert (rows[part.places] == part.visit.rows[part.first : part.last]).all()
            assert len(set((part.visit.rows // 1).tolist())) == len(part.visit.rows)


def test_a_window_holds_the_images_of_so_many_shards_shuffled():
    plan = make([[10] * 6], gamma=None, window=3, batch=60)
    _, parts = EpochPlan(plan, 0, 0, 0).batch(0)
    for part in parts[1:-1]:  # the first and the last are the two ends of one window
        assert len(set((part.visit.rows // 10).tolist())) == 3
    assert any(np.any(np.diff(part.visit.rows // 10) != 0) for part in parts)


def test_the_group_with_the_fewest_shards_is_named():
    with pytest.raises(ConfigError, match=r"'g1' has 1 shard\(s\) for 3 ranks \(and 1 more groups have too few\)"):
        make([[5] * 3, [50], [5, 5]], world=3, split="shards")
    make([[5] * 3, [5] * 3], world=3, split="shards")


def test_a_group_of_fewer_images_than_ranks_is_shared_out():
    plan = make([[2], [50, 50]], gamma=0, world=4, batch=5, epoch=200)
    shown = [Counter(row for rows in rows_of(plan, 0, rank) for row in rows.tolist()) for rank in range(4)]
    assert all(sum(count.values()) == 50 for count in shown)
    together = sum(shown, Counter())
    assert abs(together[0] - together[1]) <= 1


def test_planning_a_batch_of_an_epoch_of_millions_takes_no_time():
    codes = np.repeat(np.arange(12), 100_000)
    shard = (np.arange(len(codes)) // 1000).astype(np.int32)
    slices = Slices(len(codes), 256, 1)
    plan = StreamPlan(
        codes, [str(g) for g in range(12)], shard, gamma=0.5, seed=0, epoch_size=len(codes), slices=slices, window=2,
        split="shards",
    )  # fmt: skip
    one = EpochPlan(plan, 0, 0, len(slices) - 20)
    assert len(np.concatenate([one.batch(number)[0] for number in range(len(slices) - 20, len(slices))])) > 19 * 256
