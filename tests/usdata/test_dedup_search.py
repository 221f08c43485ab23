import numpy as np
import pytest

from usdata import dedup_search
from usdata.dedup_search import radius_for


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


def test_of_many_near_pairs_the_nearest_of_each_hash_are_kept_whenever_they_are_thinned_out(monkeypatch):
    values, units = flipped(np.repeat(hashes(3), 100), 3), np.arange(300)
    late, every = near_pairs(values, units), by_hand(values, units)
    assert pairs(late) < every
    apart = np.bitwise_count(values[:, None] ^ values[None])
    for i in range(0, 300, 30):
        nearest = min((apart[a, b], b if a == i else a) for a, b in every if i in (a, b))[1]
        assert (min(i, nearest), max(i, nearest)) in pairs(late)
    monkeypatch.setattr(dedup_search, "_FULL", 10)
    assert pairs(near_pairs(values, units)) == pairs(late)


def test_a_crowd_of_one_hash_costs_linear_time_and_says_what_was_spared(monkeypatch):
    monkeypatch.setattr(dedup_search, "_AT_LEAST", 10_000)
    monkeypatch.setattr(dedup_search, "_ALLOWANCE", 1)
    found = near_pairs(np.full(2000, 7, np.uint64), np.arange(2000))
    assert found.skipped > 0
    assert set(found.first.tolist()) | set(found.second.tolist()) == set(range(2000))  # all hang together


def test_in_large_lakes_hashes_must_be_nearer():
    assert (radius_for(0), radius_for(1_000_000), radius_for(1_000_001)) == (12, 12, 10)
