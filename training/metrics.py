"""Scores of classifiers and of segmentations, and how sure one may be of them."""

import warnings
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


def segmentation_scores(truth: ArrayLike, predicted: ArrayLike, classes: int = 2) -> dict[str, float]:
    """Dice, IoU, sensitivity, accuracy and HD95 of one image's mask; class 0 is background and no structure.

    Each is computed per foreground class and then averaged over those classes. A class in neither mask: Dice and IoU 1,
    HD95 0, no sensitivity. A class in one mask only: HD95 is the image's longer side. Average over images afterwards.

    Args:
        truth, predicted: (H, W) class indices 0 ... classes - 1, of any integer type or bool; never written to.
        classes: how many, background included.

    Returns:
        "dice", "iou", "sensitivity" (NaN if no class is there), "accuracy" in [0, 1]; "hd95" in pixels of these masks:
        the larger of the two directed 95th percentiles of Euclidean distances from border to border; "one_empty", how
        many classes were in one mask only.

    Raises:
        ConfigError: not two masks of one shape, an index out of range, or no foreground class.

    Source: USFM (Jiao et al., 2024), metrics; distances by MONAI's `compute_hausdorff_distance`. How empty masks count
        is ours (TinyUSFM's code: the image's side).
    """
    y, p = np.asarray(truth), np.asarray(predicted)
    if y.ndim != 2 or y.shape != p.shape or not y.size:
        raise ConfigError(f"Segmentation needs two masks of one shape (H, W), not {p.shape} for {y.shape}.")
    if classes < 2 or min(y.min(), p.min()) < 0 or max(y.max(), p.max()) >= classes:
        raise ConfigError(f"Masks of {classes} classes hold 0 ... {classes - 1}, not {p.max()} for {y.max()}.")
    each = [_mask_scores(y == c, p == c) for c in range(1, classes)]
    scores = {name: float(np.mean([one[name] for one in each])) for name in ("dice", "iou", "accuracy", "hd95")}
    found = [one["sensitivity"] for one in each if not np.isnan(one["sensitivity"])]
    scores["sensitivity"] = float(np.mean(found)) if found else float("nan")
    return {**scores, "one_empty": float(sum(one["one_empty"] for one in each))}


def _mask_scores(y: NDArray[np.bool_], p: NDArray[np.bool_]) -> dict[str, float]:
    """The same of one structure: two bool masks."""
    hit, both, there = int((y & p).sum()), int(y.sum() + p.sum()), int(y.sum())
    empty = both == 0
    return {
        "dice": 1.0 if empty else 2 * hit / both,
        "iou": 1.0 if empty else hit / (both - hit),
        "sensitivity": hit / there if there else float("nan"),
        "accuracy": float((y == p).mean()),
        "hd95": _hd95(y, p),
        "one_empty": float(y.any() != p.any()),
    }


def _hd95(y: NDArray[np.bool_], p: NDArray[np.bool_]) -> float:
    if not (y.any() and p.any()):  # MONAI gives NaN
        return float(max(y.shape)) if y.any() or p.any() else 0.0
    import torch
    from monai.metrics import compute_hausdorff_distance  # slow to import, and for masks only

    pair = [torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (p, y)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of an argument that it gives itself
        return float(compute_hausdorff_distance(pair[0], pair[1], include_background=True, percentile=95))


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
