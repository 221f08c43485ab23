"""How much a linear map or the nearest neighbours can read off frozen features. Pure functions of numpy arrays.

Images of one group (a patient, a set of near-duplicates) never stand on both sides of a split, and intervals come from
resampling groups, not images: frames of one patient are no independent evidence.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usdata.errors import UsdataError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
_CHUNK = 2048  # rows of the similarity matrix at a time
PENALTIES = [10.0**power for power in range(-4, 3)]  # C of scikit-learn: the inverse strength
METRICS = ("accuracy", "macro_f1", "macro_auroc")


def effective_rank(features: Floats) -> float:
    """How many directions the features really use: 1 when all images look alike to the encoder (collapse), at most D.

    Args:
        features: (n, D), n >= 2.

    Returns:
        exp of the entropy of the centred features' singular values over their sum; 1.0 without any spread.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007; centring is ours.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False)
    total = values.sum()
    if not total > 1e-12 * max(1.0, float(np.abs(features).max())):
        return 1.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def knn(train: Floats, labels: Ints, test: Floats, classes: int, k: int = 5, temperature: float = 0.07) -> Floats:
    """Class scores of the k nearest neighbours by cosine similarity.

    Args:
        train: (n, D) features; labels: (n,) in [0, classes); test: (m, D).
        k: neighbours, at most n.
        temperature: neighbour of similarity s votes with exp(s / temperature).

    Returns:
        (m, classes) float64, rows sum to 1.

    Source: the weighting of Wu et al., CVPR 2018, as DINO uses it; k = 5 for small sets is ours.
    """
    return _vote(_unit(test) @ _unit(train).T, labels, classes, k, temperature)


def knn_leave_group_out(
    features: Floats, labels: Ints, groups: Ints, classes: int, k: int = 5, temperature: float = 0.07
) -> Floats:
    """Class scores of each image from its nearest neighbours in other groups; arguments and result as in `knn`.

    Raises:
        UsdataError: all images are of one group.
    """
    if len(np.unique(groups)) < 2:
        raise UsdataError("All images are of one group: there is no other to compare them with.", step="probe")
    unit, scores = _unit(features), []
    for start in range(0, len(unit), _CHUNK):
        similarity = unit[start : start + _CHUNK] @ unit.T
        similarity[groups[start : start + _CHUNK, None] == groups[None]] = -np.inf
        scores.append(_vote(similarity, labels, classes, k, temperature))
    return np.concatenate(scores)


def _unit(features: Floats) -> Floats:
    values = features.astype(np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _vote(similarity: Floats, labels: Ints, classes: int, k: int, temperature: float) -> Floats:
    k = min(k, similarity.shape[1])
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]  # ties go to the first: the same everywhere
    close = np.take_along_axis(similarity, nearest, axis=1)
    weights = np.exp((close - close[:, :1]) / temperature)
    scores = np.zeros((len(similarity), classes))
    np.add.at(scores, (np.arange(len(similarity))[:, None], labels[nearest]), weights)
    return scores / scores.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Fold:
    """Places of the images of one split, int64."""

    train: Ints
    test: Ints


def grouped_folds(labels: Ints, groups: Ints, folds: int, seed: int) -> list[Fold]:
    """Stratified folds in which no group is on both sides; each image is in one test part.

    Args:
        labels: (n,) int64; groups: (n,) int64.
        folds: how many; fewer if a class has fewer groups.
        seed: of the shuffling.

    Raises:
        UsdataError: fewer than two classes, or a class of a single group, which no fold could learn and test.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    classes = np.unique(labels)
    if len(classes) < 2:
        raise UsdataError("A probe needs images of two classes at least.", step="probe")
    per_class = [len(np.unique(groups[labels == c])) for c in classes]
    if min(per_class) < 2:
        raise UsdataError(
            f"Class number {int(classes[int(np.argmin(per_class))])} has images of one group only.", step="probe"
        )
    splitter = StratifiedGroupKFold(min(folds, *per_class), shuffle=True, random_state=seed)
    return [Fold(train, test) for train, test in splitter.split(labels, labels, groups)]


def published_folds(words: Sequence[str | None]) -> list[Fold]:
    """The parts of a split that is there already, from each image's word of the catalog's column `split`.

    Of `train` and `test` one part; `val` and all other images are not used. Of fold0, fold1, ... each is the test part
    once; an image whose word is `test` is then held back.

    Raises:
        UsdataError: neither train and test, nor two folds.
    """
    named = np.array([word or "" for word in words])
    folds = sorted({str(word) for word in named if re.fullmatch(r"fold\d+", word)})
    if len(folds) > 1:
        inside = np.isin(named, folds)
        return [Fold(np.flatnonzero(inside & (named != fold)), np.flatnonzero(named == fold)) for fold in folds]
    part = Fold(np.flatnonzero(named == "train"), np.flatnonzero(named == "test"))
    if not len(part.train) or not len(part.test):
        raise UsdataError(
            f"The split has {len(part.train):,} labelled images in train and {len(part.test):,} in test.",
            step="probe",
            hint="Make one with both:  usdata split        Or leave --split away, for folds of the probe's own.",
        )
    return [part]


def linear_probe(
    features: Floats, labels: Ints, groups: Ints, folds: list[Fold], classes: int, seed: int = 0
) -> tuple[Floats, list[float]]:
    """Multinomial logistic regression on standardised features: out-of-fold class probabilities.

    In each fold the strength of the L2 penalty, C in 10^-4 ... 10^2, is chosen by the log loss of an inner grouped
    cross-validation of the training part (ties: the strongest penalty).

    Args:
        features: (n, D); labels, groups: (n,); classes: number of classes.
        folds: what `grouped_folds` gives.

    Returns:
        (n, classes) float64 probabilities, NaN for images in no test part; and C of each fold.
    """
    from threadpoolctl import threadpool_limits

    scores, chosen = np.full((len(labels), classes), np.nan), []
    with threadpool_limits(1):  # many small problems: on a busy machine two BLAS threads took 30 times as long as one
        for fold in folds:
            c = _best_c(features[fold.train], labels[fold.train], groups[fold.train], classes, seed)
            scores[fold.test] = _logistic(features[fold.train], labels[fold.train], features[fold.test], classes, [c])[
                0
            ]
            chosen.append(c)
    return scores, chosen


def _best_c(features: Floats, labels: Ints, groups: Ints, classes: int, seed: int) -> float:
    per_class = [len(np.unique(groups[labels == c])) for c in np.unique(labels)]
    if len(per_class) < 2 or min(per_class) < 2:
        return 1.0  # too few groups to choose; sklearn's default
    likelihood = np.zeros((len(PENALTIES), len(labels)))
    for fold in grouped_folds(labels, groups, 3, seed):
        path = _logistic(features[fold.train], labels[fold.train], features[fold.test], classes, PENALTIES)
        right = np.stack([scores[np.arange(len(fold.test)), labels[fold.test]] for scores in path])
        likelihood[:, fold.test] = np.log(np.maximum(right, 1e-12))
    return PENALTIES[int(likelihood.mean(axis=1).argmax())]


def _logistic(train: Floats, labels: Ints, test: Floats, classes: int, strengths: Sequence[float]) -> list[Floats]:
    """Class probabilities (m, classes) for each C, rising; every fit starts from the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = train.mean(axis=0), train.std(axis=0)
    spread = np.where(spread > 1e-8, spread, 1.0)
    model, path = LogisticRegression(max_iter=500, warm_start=True), list[Floats]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 steps are near enough; C = 100 may want more
        for c in strengths:
            model.set_params(C=c).fit((train - mean) / spread, labels)
            scores = np.zeros((len(test), classes))
            scores[:, model.classes_] = model.predict_proba((test - mean) / spread)
            path.append(scores)
    return path


def metrics(labels: Ints, scores: Floats, weights: Floats | None = None) -> dict[str, Floats]:
    """Accuracy, macro F1 and macro one-vs-rest AUROC, for many weightings of the images at once.

    Args:
        labels: (n,) int64; scores: (n, classes), higher is more likely; the predicted class is the first highest.
        weights: (R, n) how often each image counts; None: once.

    Returns:
        Name -> (R,) float64. A class absent from truth and prediction does not enter the F1's mean; a class without
        positives or negatives does not enter the AUROC's; NaN if none is left.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights.astype(np.float64)
    predicted, classes = scores.argmax(axis=1), scores.shape[1]
    truth = np.eye(classes)[labels]  # (n, classes)
    guess = np.eye(classes)[predicted]
    hit, said, there = weights @ (truth * guess), weights @ guess, weights @ truth  # (R, classes)
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean over no class is NaN, as promised
        f1 = np.nanmean(np.where(said + there > 0, 2 * hit / (said + there), np.nan), axis=1)
        auroc = np.nanmean([_auroc(truth[:, c], scores[:, c], weights) for c in range(classes)], axis=0)
    return {"accuracy": hit.sum(axis=1) / weights.sum(axis=1), "macro_f1": f1, "macro_auroc": auroc}


def _auroc(positive: Floats, scores: Floats, weights: Floats) -> Floats:
    """P(score of a positive > score of a negative) + half the ties, (R,)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)  # where a new score begins
    starts = starts if len(starts) else np.zeros(1, np.int64)
    up = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    down = np.add.reduceat(weights[:, order] * (1 - positive[order]), starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs: Floats = up.sum(axis=1) * down.sum(axis=1)
    result: Floats = np.where(pairs > 0, (up * (below + down / 2)).sum(axis=1) / np.where(pairs > 0, pairs, 1), np.nan)
    return result


def group_resamples(groups: Ints, repeats: int, seed: int) -> Floats:
    """Bootstrap weights (repeats, n): groups drawn with replacement, an image counts as often as its group."""
    code = np.unique(groups, return_inverse=True)[1]
    number = int(code.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=repeats)
    weights: Floats = drawn[:, code].astype(np.float64)
    return weights


def with_intervals(
    labels: Ints, scores: Floats, groups: Ints, repeats: int = 1000, seed: int = 0, against: Floats | None = None
) -> dict[str, dict[str, float]]:
    """Each metric of pooled scores with its 95 % bootstrap interval over groups.

    Args:
        labels, groups: (n,); scores: (n, classes).
        against: scores of another method on the same images: give the differences scores - against instead, paired
            over the same resamples.

    Returns:
        {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}, "macro_f1": ..., "macro_auroc": ...}
    """
    weights = group_resamples(groups, repeats, seed)
    points, spread = metrics(labels, scores), _in_pieces(labels, scores, weights)
    if against is not None:
        other, other_spread = metrics(labels, against), _in_pieces(labels, against, weights)
        points = {name: points[name] - other[name] for name in METRICS}
        spread = {name: spread[name] - other_spread[name] for name in METRICS}
    result = {}
    for name in METRICS:
        finite = spread[name][np.isfinite(spread[name])]
        low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
        result[name] = {"value": float(points[name][0]), "low": float(low), "high": float(high)}
    return result


def _in_pieces(labels: Ints, scores: Floats, weights: Floats) -> dict[str, Floats]:
    """`metrics`, so many resamples at a time that the arrays stay below about 100 MB."""
    rows = max(1, 10_000_000 // max(1, len(labels)))
    parts = [metrics(labels, scores, weights[i : i + rows]) for i in range(0, len(weights), rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}
