"""Check 15 of the D2MAE paper: scores and intervals against sklearn, scipy and sums done by hand."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from training.metrics import accuracy, auroc, confidence_interval, macro_f1, t_test
from usdata.errors import ConfigError


def random_case(classes: int, n: int = 300, seed: int = 0):
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=n)
    logits = random.normal(size=(n, classes)) + 1.5 * np.eye(classes)[y]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return y, p


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_check_15_macro_f1_equals_sklearns_and_a_count_by_hand(classes):
    y, p = random_case(classes)
    guess = p.argmax(1)
    by_hand = []
    for c in range(classes):
        hit = ((guess == c) & (y == c)).sum()
        by_hand.append(2 * hit / ((guess == c).sum() + (y == c).sum()))
    assert macro_f1(y, guess) == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert macro_f1(y, guess) == pytest.approx(oracle.f1_score(y, guess, average="macro"), abs=1e-12)


def test_check_15_macro_f1_is_neither_micro_nor_weighted():
    y, guess = np.array([0] * 90 + [1] * 10), np.zeros(100, int)  # the rare class is never found
    assert accuracy(y, guess) == 0.9
    assert macro_f1(y, guess) == pytest.approx((180 / 190) / 2)


def test_check_15_auroc_of_two_classes_is_the_share_of_rightly_ordered_pairs():
    y, p = random_case(2)
    positive, negative = p[y == 1, 1], p[y == 0, 1]
    pairs = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert auroc(y, p) == pytest.approx(pairs, abs=1e-12)


def test_check_15_auroc_of_many_classes_is_the_mean_of_one_against_the_rest():
    y, p = random_case(8)
    each = [oracle.roc_auc_score(y == c, p[:, c]) for c in range(8)]
    assert auroc(y, p) == pytest.approx(np.mean(each), abs=1e-12)
    assert auroc(y, p.astype(np.float32)) == pytest.approx(np.mean(each), abs=1e-6)


def test_check_15_interval_is_students():
    runs = [87.0, 89.5, 88.1, 90.2, 88.8]
    mean, half = confidence_interval(runs)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(runs), scale=stats.sem(runs))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-10)
    assert half == pytest.approx(2.7764451 * np.std(runs, ddof=1) / np.sqrt(5), rel=1e-6)  # t(0.975, 4) from a table


def test_check_15_t_tests_equal_the_textbook_formulas():
    a, b = np.array([0.80, 0.82, 0.85, 0.81, 0.84]), np.array([0.78, 0.81, 0.82, 0.80, 0.80])
    d = a - b
    t = d.mean() / (d.std(ddof=1) / np.sqrt(5))
    assert t_test(a, b) == pytest.approx(2 * stats.t.sf(abs(t), 4), abs=1e-12)
    assert t_test(a, b, "welch") == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, abs=1e-12)
    assert t_test(a, a) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy([], []), "one prediction per case"),
        (lambda: macro_f1([0, 1], [0]), "one prediction per case"),
        (lambda: auroc([0, 0], [[0.5, 0.5]] * 2), "no case of class 1"),
        (lambda: auroc([0, 1], [[0.9, 0.9], [0.2, 0.2]]), "sum to 1"),  # sigmoid scores
        (lambda: auroc([0, 1], [0.2, 0.8]), "needs .n, classes."),
        (lambda: confidence_interval([0.5]), "at least two runs"),
        (lambda: t_test([0.5, 0.6], [0.5, 0.6, 0.7]), "as many runs"),
    ],
)
def test_scores_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
