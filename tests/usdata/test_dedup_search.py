import numpy as np
import pytest

from usdata import dedup_search
from usdata.dedup_search import radius_for
from usdata.errors import ConfigError


def near_pairs(values, units, radius=10, **more):
    return dedup_search.near_pairs(values, units, radius, **more)


def hashes(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def flipped(values, bits, seed=0):
    """The hashes with so many of their bits turned over."""
    rng = np.random.default_rng(seed)
    masks = [sum(1 << int(b) for b in rng.choice(64, bits, replace=False)) for _ in values]
    return values ^ np.array(masks, np.uint64)


def pairs(found):
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


def by_hand(values, units, radius=10):
    bits = np.bitwise_count(values[:, None] ^ values[None])
    i, j = np.nonzero(np.triu((bits <= radius) & (units[:, None] != units[None]), 1))
    return set(zip(i.tolist(), j.tolist(), strict=True))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_no_pair_of_hashes_is_no_pair(n):
    assert pairs(near_pairs(hashes(n), np.arange(n))) == set()


@pytest.mark.parametrize("bits", range(11))
def test_what_differs_in_up_to_ten_bits_is_found_and_told_how_near(bits):
    base = hashes(400)
    values = np.concatenate([base, flipped(base, bits)])
    found = near_pairs(values, np.arange(800))
    assert pairs(found) <= by_hand(values, np.arange(800)) == {(i, i + 400) for i in range(400)}
    assert len(found.first) >= (400 if bits < 10 else 396)  # ten bits can lie one in each of the ten blocks
    assert (found.bits == bits).all()


def test_what_differs_in_eleven_bits_is_not_found():
    base = hashes(400)
    assert not len(near_pairs(np.concatenate([base, flipped(base, 11)]), np.arange(800)).first)


@pytest.mark.parametrize(("agree", "surely", "mostly"), [(2, 8, 0.95), (3, 7, 0.7)])
def test_with_more_blocks_agreeing_near_pairs_are_sure_and_farther_ones_are_likely(monkeypatch, agree, surely, mostly):
    monkeypatch.setattr(dedup_search, "_MANY", {agree: 10**9})
    base = hashes(1000)
    for bits, least in ((surely, 1.0), (10, mostly)):
        found = near_pairs(np.concatenate([base, flipped(base, bits)]), np.arange(2000))
        assert len(pairs(found) & {(i, i + 1000) for i in range(1000)}) >= least * 1000


def test_hashes_of_one_unit_are_never_a_pair_wherever_they_stand():
    values = np.concatenate([hashes(300), hashes(300)])
    assert not len(near_pairs(values, np.tile(np.arange(300), 2)).first)
    assert len(near_pairs(values, np.arange(600)).first) == 300
    rng = np.random.default_rng(1)
    some = rng.integers(0, 40, 500)
    few = hashes(30)[rng.integers(0, 30, 500)]
    found = near_pairs(few, some)
    assert pairs(found) <= by_hand(few, some)
    assert (some[found.first] != some[found.second]).all()


def test_the_result_is_the_same_for_any_number_of_threads():
    values = flipped(np.repeat(hashes(200), 10), 4)
    first, second = (near_pairs(values, np.arange(2000), workers=n) for n in (1, 3))
    for name in ("first", "second", "bits"):
        assert getattr(first, name).tolist() == getattr(second, name).tolist()


def nearest_by_hand(values, units, most=32):
    """Pairs that are among the nearest of one of their hashes, and how many hashes have more."""
    place = np.argsort(np.argsort(units, kind="stable")).tolist()  # of equally near ones the first units' count
    sides = {}
    for i, j in by_hand(values, units):
        for one, other in ((i, j), (j, i)):
            sides.setdefault(one, []).append((int(values[i] ^ values[j]).bit_count(), place[other], other))
    kept = {tuple(sorted((one, other))) for one, near in sides.items() for *_, other in sorted(near)[:most]}
    return kept, sum(len(near) > most for near in sides.values())


@pytest.mark.parametrize("full", [10, 1 << 22])
@pytest.mark.parametrize("workers", [1, 3])
def test_of_many_near_pairs_the_nearest_of_each_hash_are_kept_whenever_they_are_thinned_out(monkeypatch, full, workers):
    monkeypatch.setattr(dedup_search, "_FULL", full)
    values = np.concatenate([flipped(np.repeat(hashes(4), 90), 3), flipped(np.repeat(hashes(9, seed=1), 20), 2)])
    units = np.random.default_rng(2).permutation(len(values)) // 2
    found = near_pairs(values, units, workers=workers)
    kept, crowded = nearest_by_hand(values, units)
    assert pairs(found) == kept < by_hand(values, units)
    assert found.crowded == crowded == 360
    assert found.skipped == 0


def test_a_hash_with_as_many_near_ones_as_are_kept_is_not_crowded():
    found = near_pairs(np.full(33, 5, np.uint64), np.arange(33))
    assert (len(found.first), found.crowded) == (33 * 32 // 2, 0)
    assert near_pairs(np.full(34, 5, np.uint64), np.arange(34)).crowded == 34


def test_a_pair_that_many_tables_find_is_taken_in_once(monkeypatch):
    monkeypatch.setattr(dedup_search, "_MANY", {3: 10**9})
    taken, add = [], dedup_search._Nearest.add
    monkeypatch.setattr(
        dedup_search._Nearest, "add", lambda self, one, *more: (taken.append(len(one)), add(self, one, *more))
    )
    values, units = flipped(np.repeat(hashes(20), 20), 3), np.arange(400)
    found = near_pairs(values, units)
    assert sum(taken) == len(pairs(found)) == len(by_hand(values, units)) == 20 * 190


@pytest.mark.parametrize(("budget", "spared"), [(40_000, True), (10**6, False)])
def test_what_a_table_was_spared_another_one_finds(monkeypatch, budget, spared):
    monkeypatch.setattr(dedup_search, "_AT_LEAST", budget)
    monkeypatch.setattr(dedup_search, "_ALLOWANCE", 0)
    low = np.uint64((1 << 18) - 1)  # three blocks in which half of the hashes agree
    values = np.concatenate([hashes(300) & ~low, hashes(300, seed=1)])
    values = np.concatenate([values, flipped(values, 6)])
    found = near_pairs(values, np.arange(1200))
    assert (found.skipped > 0) == spared
    assert {(i, i + 600) for i in range(600)} <= pairs(found)
    monkeypatch.setattr(dedup_search, "_agreeing", lambda differ: np.zeros(len(differ), np.uint16))
    assert pairs(near_pairs(values, np.arange(1200))) == pairs(found)  # as if no table knew of the others


def test_more_hashes_than_a_number_can_name_are_refused(monkeypatch):
    monkeypatch.setattr(dedup_search, "_PLACE", 4)
    with pytest.raises(ConfigError, match="16 hashes are too many"):
        near_pairs(hashes(16), np.arange(16))


def test_a_crowd_of_one_hash_costs_linear_time_and_says_what_was_spared(monkeypatch):
    monkeypatch.setattr(dedup_search, "_AT_LEAST", 10_000)
    monkeypatch.setattr(dedup_search, "_ALLOWANCE", 1)
    found = near_pairs(np.full(2000, 7, np.uint64), np.arange(2000))
    assert found.skipped > 0
    assert set(found.first.tolist()) | set(found.second.tolist()) == set(range(2000))  # all hang together


def test_in_large_lakes_hashes_must_be_nearer():
    assert (radius_for(0), radius_for(1_000_000), radius_for(1_000_001)) == (12, 12, 10)
