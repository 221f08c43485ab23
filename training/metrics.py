"""Scores of classifiers, and how sure one may be of them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from usdata.errors import ConfigError


def accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of right answers, in [0, 1].

    Raises:
        ConfigError: no cases, or not as many predictions as cases.
    """
    y, p = _pair(truth, predicted)
    return float((y == p).mean())


def macro_f1(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Unweighted mean of the F1 of each class that occurs in truth or prediction, in [0, 1]; for two classes too.

    A class that is never predicted rightly has F1 0. (The micro average, which for one label per image is the
    accuracy, and the weighted one are other numbers and are not offered.)

    Raises:
        ConfigError: no cases, or not as many predictions as cases.
    """
    y, p = _pair(truth, predicted)
    return float(f1_score(y, p, average="macro", zero_division=0.0))


def auroc(truth: ArrayLike, probabilities: ArrayLike) -> float:
    """Area under the ROC curve, in [0, 1].

    Args:
        truth: (n,) class indices 0 ... C - 1.
        probabilities: (n, C) softmax outputs. Two classes: the area for class 1 as the positive one. More: the
            unweighted mean over classes, each against the rest.

    Raises:
        ConfigError: not (n, C), rows that do not sum to 1, or a class that never occurs in `truth`.
    """
    y, p = np.asarray(truth), np.asarray(probabilities, np.float64)
    if p.ndim != 2 or len(y) != len(p) or p.shape[1] < 2:
        raise ConfigError(f"AUROC needs (n, classes) probabilities for n cases, not {p.shape} for {len(y)}.")
    missing = sorted(set(range(p.shape[1])) - set(y.tolist()))
    if missing:
        raise ConfigError(f"AUROC is undefined: no case of class {', '.join(map(str, missing))}.")
    if not np.allclose(p.sum(axis=1), 1.0, atol=1e-3):
        raise ConfigError("AUROC needs probabilities (softmax): rows must sum to 1.")
    if p.shape[1] == 2:
        return float(roc_auc_score(y, p[:, 1]))
    p = p / p.sum(axis=1, keepdims=True)  # float32 softmax is off by more than sklearn bears
    return float(roc_auc_score(y, p, multi_class="ovr", average="macro"))


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean of n runs and the half width of its interval, t(level, n - 1) * s / sqrt(n), s with n - 1 below.

    Raises:
        ConfigError: fewer than two runs.
    """
    x = _runs(values)
    half = stats.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half)


def t_test(first: Sequence[float], second: Sequence[float], kind: Literal["paired", "welch"] = "paired") -> float:
    """Two-sided p-value that two methods score alike.

    Args:
        first, second: score of each run.
        kind: "paired" when run i of both shares seed or fold, else "welch" (unequal variances).

    Returns:
        p in [0, 1]; 1 when all paired differences are 0.

    Raises:
        ConfigError: fewer than two runs, or unequal numbers of paired ones.
    """
    a, b = _runs(first), _runs(second)
    if kind == "welch":
        return float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    if len(a) != len(b):
        raise ConfigError(f"A paired test needs as many runs of both methods, not {len(a)} and {len(b)}.")
    return 1.0 if np.array_equal(a, b) else float(stats.ttest_rel(a, b).pvalue)


def _pair(truth: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    y, p = np.asarray(truth), np.asarray(predicted)
    if y.ndim != 1 or y.shape != p.shape or not len(y):
        raise ConfigError(f"Scores need one prediction per case, not {p.shape} for {y.shape}.")
    return y, p


def _runs(values: Sequence[float]) -> NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ConfigError(f"An interval or test needs at least two runs, not {x.size}.")
    return x
