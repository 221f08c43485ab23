"""The score of a frozen encoder on a labelled cohort, beside what costs no pretraining.

A number alone says nothing: next to the trained encoder stand the same network with random weights, the nearest
neighbour on 16 x 16 thumbnails, and the most frequent class. All are tested on the same grouped folds. An encoder that
is told the organ stands beside what the told organ alone gives away, and is never asked for the organ.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from training import checkpoint, inference
from training.probe import (
    METRICS,
    Floats,
    Fold,
    Ints,
    effective_rank,
    grouped_folds,
    knn,
    linear_probe,
    published_folds,
    with_intervals,
)
from training.run_folder import explain_disk
from training.watch import OWNERS, image_groups, label_column
from usdata.dedup import thumbnails_of
from usdata.errors import ConfigError, UsdataError
from usdata.files import write_json

MOST_IMAGES = 50_000  # 3.3 GB of pixels: what this form of the probe holds in memory
ALL = "all"  # every condition that the encoder knows, side by side
ANSWERS = ("organ", "organ_group")  # labels that a told organ gives away
_TIES = (*OWNERS, "duplicate_group", "group")  # columns that say which images belong together


def probe_cohort(
    cohort: Any,
    encoder: Path | str,
    *,
    label: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    folds: int = 5,
    by_split: bool = False,
    device: str = "auto",
    condition: str | None = None,
) -> dict[str, Any]:
    """Linear probe and kNN of an encoder on a cohort's labels, with baselines and 95 % intervals.

    Args:
        cohort: a `usdata.Cohort`; images without the label are left out and counted.
        encoder: the OUT of `usdata pretrain`.
        label: catalog column; None: `organ` of a cohort of several organs, else `label`.
        out: where scores.json goes; None: into `encoder`.
        seed: of folds, bootstrap and the random encoder.
        folds: at most so many.
        by_split: train and test on the catalog's column `split` instead of folds; see `published_folds`.
        device: auto, cpu or cuda.
        condition: what an ARL encoder is told of each image's organ: null, label (the catalog's), predict (its own
            guess), wrong (another's); "all": null and beside it the others, with their differences from it, but for
            those that are told the answer; None: what the weights' config says, else null.

    Returns:
        What scores.json holds: see `score`, with facts of cohort and encoder around it; "condition" that of "trained"
        and "random", "circular" the conditions that "all" left out, "told_instead" which organ stood for which.

    Raises:
        ConfigError: no such label, more images than fit, or a condition that these weights do not know or that tells
            them the label which they are asked for.
        UsdataError: no encoder there, too few groups of a class for a split, or no split where `by_split` wants one.
    """
    from training.distributed import choose_device

    column = label_column(cohort, label)
    if column is None:
        raise ConfigError(
            "Neither `organ` nor `label` has two values in this cohort: there is nothing to tell apart.",
            hint="Name a column with --label, or choose a wider --cohort.",
        )
    if cohort.rows > MOST_IMAGES:
        raise ConfigError(f"{cohort.rows:,} images are more than the {MOST_IMAGES:,} that a probe holds in memory.")
    place = choose_device(device)
    trained = checkpoint.load_encoder(encoder).to(place)
    wanted = inference.offered(trained) if condition == ALL else (inference.chosen(trained, condition),)
    random = checkpoint.untrained_twin(trained, seed).to(place)
    table = cohort.table(list(dict.fromkeys([column, *_TIES, "split", inference.TOLD])))
    words = table[column].to_pylist()
    known = np.array([word is not None for word in words])
    images = cohort.images()[known]
    labels = [str(word) for word in words if word is not None]
    facts = table.filter(known)
    groups = _groups(facts, images)
    parts = published_folds(facts["split"].to_pylist()) if by_split else None
    tell = _Told(trained, facts[inference.TOLD].to_pylist(), wanted, seed)
    kept = tell.uncircular(column, labels, refuse=condition != ALL)
    encoders = {("trained" if i == 0 else f"trained, {one}"): tell.encoder(trained, one) for i, one in enumerate(kept)}
    encoders["random"] = tell.encoder(random, kept[0])
    result = {
        "label": column,
        "condition": kept[0],
        "circular": [one for one in wanted if one not in kept],
        "told_instead": tell.instead,
        "left_out": int((~known).sum()),
        "seed": seed,
        "cohort": {"name": cohort.name, "sql": cohort.sql, "hash": cohort.hash, "rows": cohort.rows},
        "encoder": {"path": str(encoder), **checkpoint.facts_of(encoder)},
        "code_version": checkpoint.code_version(),
        **score(images, labels, groups, encoders, folds=folds, seed=seed, parts=parts, told=tell.known_of(kept)),
    }
    path = Path(encoder) / "scores.json" if out is None else out
    with explain_disk(path, step="scores"):
        write_json(path, _finite(result))
    return result


def _groups(facts: Any, images: NDArray[np.uint8]) -> Ints:
    """Images that share a patient, study, clip or set of near-copies, or a group of the lake's split.

    The split's groups alone would not do: they are of the day of the split, and a link may have been found since.

    Raises:
        UsdataError: some images came after the lake was split.
    """
    missing = facts["group"].null_count
    if 0 < missing < len(facts):
        raise UsdataError(
            f"{missing:,} of {len(facts):,} images have no group: they came after the lake was split.",
            step="probe",
            hint="Give them one; nothing else moves:  usdata split",
        )
    return image_groups({name: facts[name].to_pylist() for name in _TIES}, images)


class _Told:
    """What each image's encoder is told: the class of its organ, or a wrong one in its place."""

    def __init__(self, recipe: Any, organs: Sequence[str | None], wanted: Sequence[str], seed: int) -> None:
        self.wanted, self.instead = wanted, dict[str, str]()
        self.slots: dict[str, Tensor] = {}
        if not any(one in inference.FROM_CATALOG for one in wanted):
            return
        right = inference.slots_of(recipe, organs)
        self.slots["label"] = right
        if "wrong" in wanted:
            names = inference.class_names(recipe)
            wrong = inference.wrong_classes(right.unique().tolist(), len(names), seed)
            self.slots["wrong"] = inference.swapped(right, wrong)
            self.instead = {names[a]: names[b] for a, b in wrong.items()}

    def uncircular(self, column: str, labels: Sequence[str], *, refuse: bool) -> list[str]:
        """The wanted conditions without those that tell the answer: a wrong organ tells it as well as the right one.

        Raises:
            ConfigError: with `refuse`, there is one.
        """
        told = [one for one in self.wanted if one in inference.FROM_CATALOG]
        if not told or not (column in ANSWERS or self._gives_away(labels)):
            return list(self.wanted)
        if refuse:
            raise ConfigError(
                f"Condition {told[0]!r} tells the encoder the organ, and {column!r} follows from it: "
                "the score would be that of the answer, not of the encoder.",
                hint="Probe with --condition null, or choose another --label.",
            )
        return [one for one in self.wanted if one not in told]

    def _gives_away(self, labels: Sequence[str]) -> bool:
        pairs = set(zip(self.slots["label"].tolist(), labels, strict=True))
        return len(pairs) == len({slot for slot, _ in pairs})

    def encoder(self, recipe: Any, condition: str) -> Callable[[NDArray[np.uint8]], Floats]:
        """Images (all of them, in order) to features."""
        return lambda images: inference.features(recipe, images, condition, self.slots.get(condition))

    def known_of(self, kept: Sequence[str]) -> Ints | None:
        """The class of each image's organ, where any encoder is told it and there are two; else None."""
        if not any(one in inference.FROM_CATALOG for one in kept) or len(self.slots["label"].unique()) < 2:
            return None
        found: Ints = self.slots["label"].numpy()
        return found


def score(
    images: NDArray[np.uint8],
    labels: Sequence[str],
    groups: Ints,
    encoders: dict[str, Callable[[NDArray[np.uint8]], Floats]],
    *,
    folds: int = 5,
    seed: int = 0,
    repeats: int = 1000,
    parts: list[Fold] | None = None,
    told: Ints | None = None,
) -> dict[str, Any]:
    """Pooled out-of-fold scores of each encoder and baseline.

    Args:
        images: (n, 256, 256) uint8; labels, groups: of each image.
        encoders: name -> images to features (n, D); "trained" is compared with "random" if both are there, and each
            "trained, <condition>" with "trained".
        folds, seed: of the grouped stratified folds.
        repeats: bootstrap resamples of groups.
        parts: train and test places in place of folds; images of no test part are not scored.
        told: (n,) what encoders are told of each image; gives a baseline that knows nothing else, "told alone".

    Returns:
        "classes" {name: images}, "groups", "folds", "tested" images, "leaking" groups, which stand in the training and
        the test part of a split that was given; "features" {encoder: {"size", "effective_rank", "C"}}; "scores"
        [{"encoder", "method", metric: {"value", "low", "high"}}]; "gain": trained - random, paired; "told": the same
        of "trained, <condition>" - trained, with the "condition".

    Raises:
        UsdataError: fewer than two classes, or a class with one group only.
    """
    names, codes = np.unique(np.array(labels), return_inverse=True)
    codes = codes.astype(np.int64)
    leaking = 0 if parts is None else _check_parts(parts, codes, groups)
    parts = _folds(codes, names, groups, folds, seed) if parts is None else parts
    tested = np.sort(np.concatenate([part.test for part in parts]))
    classes = len(names)
    pooled: dict[tuple[str, str], Floats] = {}
    features: dict[str, Any] = {}
    for name, encode in encoders.items():
        x = encode(images).astype(np.float64)
        pooled[name, "linear"], strengths = linear_probe(x, codes, groups, parts, classes, seed)
        pooled[name, "knn"] = _by_fold(parts, len(codes), classes, _knn_of(x, codes, classes))
        features[name] = {"size": x.shape[1], "effective_rank": effective_rank(x), "C": strengths}
    thumbnails = thumbnails_of(images, 16).reshape(len(images), -1)
    pooled["thumbnails", "1-nn"] = _by_fold(
        parts, len(codes), classes, lambda a, b: _nearest(thumbnails[a], codes[a], thumbnails[b], classes)
    )
    pooled["none", "majority"] = _by_fold(
        parts, len(codes), classes, lambda a, b: np.tile(np.bincount(codes[a], minlength=classes) / len(a), (len(b), 1))
    )
    if told is not None:
        pooled["told alone", "majority"] = _by_fold(
            parts, len(codes), classes, lambda a, b: _majority_of(told[a], codes[a], told[b], classes)
        )
    pooled = {key: scores[tested] for key, scores in pooled.items()}
    truth, whose = codes[tested], groups[tested]

    def differences(name: str, other: str) -> list[dict[str, Any]]:
        return [
            {
                "method": method,
                **with_intervals(truth, pooled[name, method], whose, repeats, seed, against=pooled[other, method]),
            }
            for method in ("linear", "knn")
        ]

    result: dict[str, Any] = {
        "classes": {str(name): int((codes == i).sum()) for i, name in enumerate(names)},
        "groups": len(np.unique(groups)),
        "folds": len(parts),
        "tested": len(tested),
        "leaking": leaking,
        "features": features,
        "scores": [
            {"encoder": name, "method": method, **with_intervals(truth, scores, whose, repeats, seed)}
            for (name, method), scores in pooled.items()
        ],
        "gain": differences("trained", "random") if {"trained", "random"} <= encoders.keys() else [],
        "told": [
            {"condition": name.removeprefix("trained, "), **line}
            for name in encoders
            if name.startswith("trained, ")
            for line in differences(name, "trained")
        ],
    }
    return result


def could_be_told(result: dict[str, Any]) -> bool:
    """Whether the encoder knows organs, was told none, and its label would not follow from them."""
    knows = '"label"' in result["encoder"].get("conditions", "")
    return knows and result["condition"] == "null" and not result["told"] and result["label"] not in ANSWERS


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A line per method for people: each metric as "0.81 [0.70, 0.90]"."""
    lines = [{"encoder": s["encoder"], "method": s["method"], **_shown(s)} for s in result["scores"]]
    lines += [{"encoder": "trained - random", "method": s["method"], **_shown(s)} for s in result["gain"]]
    usual = result.get("condition", "null")
    lines += [
        {"encoder": f"{s['condition']} - {usual}", "method": s["method"], **_shown(s)} for s in result.get("told", [])
    ]
    return lines


def _shown(scores: dict[str, Any]) -> dict[str, str]:
    return {name: "{value:.3f} [{low:.3f}, {high:.3f}]".format(**scores[name]) for name in METRICS}


def _folds(codes: Ints, names: NDArray[np.str_], groups: Ints, folds: int, seed: int) -> list[Fold]:
    for code, name in enumerate(names):
        if len(np.unique(groups[codes == code])) < 2:
            raise UsdataError(
                f"All images of {str(name)!r} are of one patient or near-duplicates: no split can test that class.",
                step="probe",
                hint="Leave that class out of the --cohort, or add images of it.",
            )
    return grouped_folds(codes, groups, folds, seed)


def _check_parts(parts: list[Fold], codes: Ints, groups: Ints) -> int:
    """How many groups stand on both sides of a part.

    Raises:
        UsdataError: a training part of a single class, from which nothing can be learnt.
    """
    for part in parts:
        if len(np.unique(codes[part.train])) < 2:
            raise UsdataError("A training part of the split has images of one class only.", step="probe")
    both = [np.intersect1d(groups[part.train], groups[part.test]) for part in parts]
    return len(np.unique(np.concatenate(both)))


def _by_fold(parts: list[Fold], n: int, classes: int, method: Callable[[Ints, Ints], Floats]) -> Floats:
    """Scores of all images, (n, classes): `method` gives those of a fold's test places from its training places.

    NaN for images of no test part.
    """
    scores = np.full((n, classes), np.nan)
    for part in parts:
        scores[part.test] = method(part.train, part.test)
    return scores


def _knn_of(features: Floats, codes: Ints, classes: int) -> Callable[[Ints, Ints], Floats]:
    return lambda train, test: knn(features[train], codes[train], features[test], classes)


def _majority_of(train: Ints, labels: Ints, test: Ints, classes: int) -> Floats:
    """Shares of the classes among the training images that were told the same; among all, where none was."""
    table = np.zeros((int(max(train.max(), test.max())) + 2, classes))  # the last row is of -1: told nothing
    np.add.at(table, (train, labels), 1)
    counts = np.where(table.sum(1, keepdims=True) > 0, table, table.sum(0))[test]
    shares: Floats = counts / counts.sum(1, keepdims=True)
    return shares


def _nearest(train: Floats, labels: Ints, test: Floats, classes: int) -> Floats:
    """One-hot class of the training row at the smallest Euclidean distance."""
    distance = (train**2).sum(1)[None] - 2 * test @ train.T  # + |test|^2, the same for a whole row
    return np.eye(classes)[labels[distance.argmin(axis=1)]]


def _finite(value: Any) -> Any:
    """NaN has no place in JSON: null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
