from itertools import pairwise

import pytest

from training.schedules import warmup_cosine


def at(step):
    return warmup_cosine(step, steps=80_000, warmup_steps=400, peak=6e-4)


def test_the_rate_of_mae_is_0_at_first_6e_4_after_the_warm_up_and_0_at_the_end():  # paper check 13
    assert at(0) == 0.0
    assert at(200) == pytest.approx(3e-4)
    assert at(400) == pytest.approx(6e-4)
    assert at(40_200) == pytest.approx(3e-4)  # half way down the cosine
    assert at(80_000) == pytest.approx(0.0, abs=1e-18)


def test_the_rate_rises_in_the_warm_up_and_never_afterwards():
    rates = [at(step) for step in range(0, 80_001, 50)]
    assert all(a < b for a, b in pairwise(rates[:9]))
    assert all(a >= b for a, b in pairwise(rates[8:]))


def test_the_end_value_is_reached_and_kept():
    assert warmup_cosine(10, steps=10, warmup_steps=0, peak=1.0, end=0.1) == pytest.approx(0.1)
    assert warmup_cosine(99, steps=10, warmup_steps=0, peak=1.0, end=0.1) == pytest.approx(0.1)


def test_without_a_warm_up_the_first_rate_is_the_peak():
    assert warmup_cosine(0, steps=10, warmup_steps=0, peak=0.5) == 0.5
