"""Does each recipe learn? A linear probe and kNN on its encoder, beside the same network before training.

    python benchmarks/learns.py [--recipes d2mae usfm] [--seeds 2] [--steps N] [--work DIR]

Each recipe is pretrained (preset micro) on simulated images of one half of the patients; images of the other half are
what the probes learn from and are tested on, in folds that part no patient. Writes docs/learns.json and, from it,
docs/learns.md; `--out` names another JSON. With `--work` lake, runs and probes are kept, and a second call does only
what is missing. About 20 minutes on two quiet cores; `--page` only writes the page anew.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learns_page import page
from machine import describe

from ingest.card import get_card
from ingest.run import ingest
from training import checkpoint
from training.config import RunConfig, resolve
from training.downstream.label_subsets import label_subset
from training.inference import features
from training.probe import (
    METRICS,
    Floats,
    Fold,
    Ints,
    effective_rank,
    group_resamples,
    grouped_folds,
    knn,
    linear_probe,
    metrics,
)
from training.runlog import read
from training.train import pretrain
from training.watch import OWNERS, image_groups
from usdata.files import read_json, write_json
from usdata.lake import Lake

OUT = Path(__file__).parents[1] / "docs" / "learns.json"
SEEN, UNSEEN = "left(md5(patient), 1) < '8'", "left(md5(patient), 1) >= '8'"  # halves of the patients, by chance
FOLDS, FEWEST, RESAMPLES, FEW_LABELS = 5, 5, 2000, 0.1
CURVE_POINTS = 60  # of each term, for the picture of the loss curves


@dataclass(frozen=True)
class Variant:
    """A recipe as it is trained here."""

    recipe: str
    steps: int
    settings: tuple[str, ...] = ()


VARIANTS: Mapping[str, Variant] = {
    "d2mae": Variant("d2mae", 1200),
    "usfm": Variant("usfm", 1000),
    "tusa": Variant("tusa", 200),
    "arl": Variant("arl", 1000),
    "arl-null": Variant("arl", 1000, ("condition=null",)),  # never told the organ: what its labels are worth
}


@dataclass(frozen=True)
class Target:
    """A question put to the encoders: a column, of which images, and the share of the training labels that is used."""

    where: str
    column: str
    share: float = 1.0


TARGETS: Mapping[str, Target] = {
    "organ": Target(UNSEEN, "organ"),
    "organ, a tenth of the labels": Target(UNSEEN, "organ", FEW_LABELS),
    "breast: benign, malignant, normal": Target(f"{UNSEEN} and organ = 'breast'", "label"),
    "thyroid: nodule, normal": Target(f"{UNSEEN} and organ = 'thyroid'", "label"),
}


@dataclass(frozen=True)
class Task:
    """A target's images with truth, groups (patients and near-copies) and folds."""

    images: np.ndarray[Any, np.dtype[np.uint8]]
    names: list[str]
    labels: Ints
    groups: Ints
    folds: list[Fold]
    left_out: list[str]


def main() -> None:
    """Train, probe, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=list(VARIANTS), default=["d2mae", "usfm", "tusa", "arl"])
    parser.add_argument("--seeds", type=int, default=2, help="runs of each recipe, with seeds 0, 1, ...")
    parser.add_argument("--steps", type=int, help="instead of each recipe's own number")
    parser.add_argument("--images", type=int, default=2000, help="simulated ones, half of them for pretraining")
    parser.add_argument("--work", type=Path, help="keep lake, runs and probes there")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", action="store_true", help="only write the page of the JSON that is there")
    chosen = parser.parse_args()
    if chosen.seeds < 1:
        parser.error("--seeds must be at least 1")
    if not chosen.page:
        torch.set_num_threads(1)  # networks this small gain nothing from a second thread
        with tempfile.TemporaryDirectory() as folder:
            wanted = {name: list(range(chosen.seeds)) for name in chosen.recipes}
            write_json(chosen.out, measure(wanted, chosen.work or Path(folder), chosen.images, chosen.steps))
    chosen.out.with_suffix(".md").write_text(page(read_json(chosen.out)), encoding="utf-8")
    print(chosen.out, chosen.out.with_suffix(".md"))


def measure(wanted: Mapping[str, Sequence[int]], work: Path, images: int, steps: int | None = None) -> dict[str, Any]:
    """Everything that the JSON holds.

    Args:
        wanted: seeds of each variant.
        work: folder of lake and runs; what is there is used again.
        images: simulated ones.
        steps: instead of each variant's own number.
    """
    lake = phantom_lake(work / "lake", images)
    runs: dict[str, Any] = {}
    for name, seeds in wanted.items():
        runs[name] = about([trained(lake, work / "runs", name, seed, steps) for seed in seeds])
        runs[name] |= {"seeds": list(seeds), "settings": list(VARIANTS[name].settings)}
    tasks = {name: task for name, target in TARGETS.items() if (task := task_of(lake, target)) is not None}
    if not tasks:
        raise SystemExit(f"{images} images are too few: no target has two classes of {FEWEST} patients.")
    scores: dict[str, Any] = {name: {} for name in wanted}
    for name, seeds in wanted.items():
        probed = [probes(work / "runs" / f"{name}-{seed}", tasks) for seed in seeds]
        for target, task in tasks.items():
            scores[name][target] = {method: compare(task, target, method, probed) for method in ("linear", "knn")}
            say(name, target, scores[name][target]["linear"]["gain"]["macro_f1"])
        runs[name]["effective_rank"] = {
            kind: [round(float(found[f"{kind}/rank"]), 1) for found in probed] for kind in ("random", "trained")
        }
    return {
        "machine": describe(),
        "usdata": checkpoint.code_version(),
        "images": {
            "pretraining": counts(lake, SEEN),
            "probing": counts(lake, UNSEEN),
            "folds": FOLDS,
            "resamples": RESAMPLES,
        },
        "tasks": {name: facts_of(task) for name, task in tasks.items()},
        "runs": runs,
        "scores": scores,
    }


def say(*words: object) -> None:
    """Progress, to stderr."""
    print(*words, file=sys.stderr, flush=True)


# --- images and training ----------------------------------------------------------------------------------------------


def phantom_lake(place: Path, images: int) -> Lake:
    """A lake of so many simulated images; what an earlier call made is used again."""
    lake = Lake.create(place)
    ingest(get_card("phantom"), None, lake, count=images)
    return lake


def counts(lake: Lake, where: str) -> dict[str, int]:
    """Images and patients of a selection."""
    [row] = lake.sql(f"select count(*) n, count(distinct patient) p from samples where {where}").to_pylist()
    return {"images": row["n"], "patients": row["p"]}


def config(name: str, seed: int, steps: int | None = None) -> RunConfig:
    """The run of a variant: its preset micro, and what is set beside it."""
    variant = VARIANTS[name]
    watched = ("log_every=50", "checkpoint_every=100000", "probe_every=100", "probe_images=256", "probe_label=organ")
    settings = (f"seed={seed}", f"steps={steps or variant.steps}", *watched, *variant.settings)
    return resolve(variant.recipe, "micro", None, settings)


def trained(lake: Lake, runs: Path, name: str, seed: int, steps: int | None = None) -> Path:
    """The folder of a finished run, trained now unless it is there."""
    cfg, cohort, out = config(name, seed, steps), lake.cohort(SEEN), runs / f"{name}-{seed}"
    if _done(out, cfg, cohort.hash):
        return out
    shutil.rmtree(out, ignore_errors=True)
    result = pretrain(cohort, cfg, out)
    (out / "seconds.json").write_text(json.dumps(round(result.seconds, 1)))
    say(f"{name}, seed {seed}: {result.step} steps in {result.seconds:.0f} s, {result.probe}")
    return out


def _done(out: Path, cfg: RunConfig, cohort_hash: str) -> bool:
    """Whether the folder holds this very run, with all of its steps."""
    if not (out / "config.json").is_file() or not (out / "recipe.safetensors").is_file():
        return False
    known, facts = read_json(out / "config.json"), checkpoint.facts_of(out)
    same = (known.get("config_hash"), known.get("cohort_hash")) == (cfg.hash, cohort_hash)
    return same and facts.get("steps") == str(cfg.steps)


def about(folders: Sequence[Path]) -> dict[str, Any]:
    """Settings, times and curves of a variant's runs."""
    known = read_json(folders[0] / "config.json")["config"]
    recipe = checkpoint.load_encoder(folders[0])
    logs = [read(folder / "log.jsonl", "step") for folder in folders]
    shown = ("recipe", "preset", "steps", "batch_size", "lr", "warmup", "weight_decay", "gamma")
    seconds = [
        read_json(folder / "seconds.json") if (folder / "seconds.json").is_file() else None for folder in folders
    ]
    return {
        **{key: known[key] for key in shown},
        "image_size": known["recipe_config"]["image_size"],
        "parameters": sum(p.numel() for p in recipe.parameters()),
        "features": int(recipe.encode(torch.zeros(1, 1, 256, 256, dtype=torch.uint8)).shape[1]),
        "seconds": seconds,
        "curves": curves(logs[0]),
        "loss": [{"first": _mean(log[:10], "loss"), "last": _mean(log[-10:], "loss")} for log in logs],
    }


_NOT_TERMS = ("kind", "step", "epoch", "lr", "grad_norm", "images_per_s", "data_wait", "tokens_per_s", "memory_gb")


def curves(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each raw term of the first seed's run, averaged over equal spans of steps: {"step": [...], term: [...]}."""
    spans = [part for part in np.array_split(np.arange(len(log)), min(CURVE_POINTS, len(log))) if len(part)]
    terms = [key for key, value in log[-1].items() if isinstance(value, float) and key not in _NOT_TERMS]
    lines: dict[str, Any] = {"step": [round(float(np.mean([log[i]["step"] for i in part])), 1) for part in spans]}
    for term in terms:
        if not term.startswith("weighted/"):
            lines[term] = [_mean([log[i] for i in part], term) for part in spans]
    return lines


def _mean(log: Sequence[Mapping[str, Any]], term: str) -> float | None:
    values = [record[term] for record in log if record.get(term) is not None]
    return float(f"{np.mean(values):.5g}") if values else None


# --- probing ----------------------------------------------------------------------------------------------------------


def task_of(lake: Lake, target: Target) -> Task | None:
    """Images, truth and folds; classes of fewer than `FEWEST` groups are left out. None if fewer than two are left."""
    cohort = lake.cohort(f"{target.where} and {target.column} is not null")
    if not cohort.rows:
        return None
    table = cohort.table([target.column, *OWNERS])
    images, words = cohort.images(), np.array(table[target.column].to_pylist())
    groups = image_groups(table.select(list(OWNERS)).to_pydict(), images)
    kept = [str(word) for word in np.unique(words) if len(np.unique(groups[words == word])) >= FEWEST]
    if len(kept) < 2:
        return None
    some, rare = np.isin(words, kept), sorted({str(word) for word in words} - set(kept))
    labels, groups = np.searchsorted(kept, words[some]).astype(np.int64), groups[some]
    folds = grouped_folds(labels, groups, FOLDS, 0)
    if target.share < 1:
        folds = [Fold(_fewer(fold.train, labels, groups, target.share), fold.test) for fold in folds]
    return Task(images[some], kept, labels, groups, folds, rare)


def _fewer(train: Ints, labels: Ints, groups: Ints, share: float) -> Ints:
    return train[label_subset(labels[train].astype(str).tolist(), share, 0, groups[train].astype(str).tolist())]


def facts_of(task: Task) -> dict[str, Any]:
    """What the page says of a target."""
    return {
        "classes": {name: int((task.labels == code).sum()) for code, name in enumerate(task.names)},
        "groups": len(np.unique(task.groups)),
        "labels": [len(fold.train) for fold in task.folds],
        "left_out": task.left_out,
    }


def probes(run: Path, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Out-of-fold class scores of a run's encoder and of the weights it began with.

    Returns:
        "trained/<target>/<method>" and "random/..." -> (n, classes); "trained/rank" -> effective rank.
    """
    file = run / "probes.npz"
    if not file.is_file():
        encoder = checkpoint.load_encoder(run)
        seed = read_json(run / "config.json")["config"]["seed"]
        found: dict[str, Any] = {}
        for kind, recipe in (("random", checkpoint.untrained_twin(encoder, seed)), ("trained", encoder)):
            found |= {f"{kind}/{key}": value for key, value in _probed(recipe, tasks).items()}
        np.savez_compressed(file, **found)
    with np.load(file) as stored:
        return {key: stored[key] for key in stored.files}


def _probed(recipe: Any, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """ARL is not told the organ here: it gets the image alone."""
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        x, classes = features(recipe, task.images).astype(np.float64), len(task.names)
        if "rank" not in found:
            found["rank"] = np.array(effective_rank(x))
        found[f"{name}/linear"], _ = linear_probe(x, task.labels, task.groups, task.folds, classes)
        nearest = np.full((len(x), classes), np.nan)
        for fold in task.folds:
            nearest[fold.test] = knn(x[fold.train], task.labels[fold.train], x[fold.test], classes)
        found[f"{name}/knn"] = nearest
    return found


def compare(task: Task, target: str, method: str, probed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over the seeds before and after training, and their difference, with 95 % intervals.

    Each resample draws patients with replacement, the same for both sides, and seeds with replacement, each with its
    own beginning: the interval of the difference is paired in images and in first weights.

    Returns:
        "random", "trained", "gain" {metric: {"value", "low", "high"}}; "seeds" {metric: the difference of each seed}.
    """
    weights = group_resamples(task.groups, RESAMPLES, 0)
    whose = np.random.default_rng(1).integers(0, len(probed), (RESAMPLES, len(probed)))
    points: dict[str, dict[str, Floats]] = {}
    spreads: dict[str, dict[str, Floats]] = {}
    for kind in ("random", "trained"):
        each = [found[f"{kind}/{target}/{method}"] for found in probed]
        exact, drawn = [metrics(task.labels, s) for s in each], [metrics(task.labels, s, weights) for s in each]
        points[kind] = {m: np.array([e[m][0] for e in exact]) for m in METRICS}
        spreads[kind] = {m: np.take_along_axis(np.stack([d[m] for d in drawn], 1), whose, 1).mean(1) for m in METRICS}
    points["gain"] = {m: points["trained"][m] - points["random"][m] for m in METRICS}
    spreads["gain"] = {m: spreads["trained"][m] - spreads["random"][m] for m in METRICS}
    result: dict[str, Any] = {
        kind: {m: _interval(points[kind][m].mean(), spreads[kind][m]) for m in METRICS} for kind in points
    }
    return {**result, "seeds": {m: [round(float(v), 4) for v in points["gain"][m]] for m in METRICS}}


def _interval(value: float, spread: Floats) -> dict[str, float]:
    low, high = np.nanpercentile(spread, [2.5, 97.5])
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


if __name__ == "__main__":
    main()
