"""What the report tells of a training run, read from its folder alone: config.json, log.jsonl, pictures, scores*.json.

A log that was cut off or damaged loses the bad lines, which are counted and named on the page.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usdata.errors import UsdataError
from usdata.files import read_json
from usdata.report_figures import Series, colour_of, data_uri, line_chart, whisker

# Columns of the pictures that a recipe draws, and what each shows.
STAGES = {
    "d2mae": (
        ("sharp", "the image, cut out at random: what the network is asked to rebuild"),
        ("blurred", "the same cut-out blurred; how strongly is drawn for each image anew"),
        ("masked", "all that the encoder sees: the patches left over of the blurred image"),
        ("reconstruction", "what the network makes of them; at best equal to the first column"),
    ),
}
METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro F1", "macro_auroc": "Macro AUROC"}
_METHODS = {
    ("trained", "linear"): ("Pretrained encoder", "linear classifier on frozen features"),
    ("trained", "knn"): ("Pretrained encoder", "most similar images vote (kNN)"),
    ("random", "linear"): ("Untrained encoder", "same network, random weights; linear classifier"),
    ("random", "knn"): ("Untrained encoder", "same network, random weights; kNN"),
    ("thumbnails", "1-nn"): ("No encoder", "the most similar 16 × 16 thumbnail"),
    ("none", "majority"): ("No image", "always the most frequent class"),
}
_NOT_TERMS = {"kind", "step", "epoch", "lr", "grad_norm", "images_per_s", "data_wait"}


@dataclass
class Run:
    """A run's folder in plain values; `notes` are the things that were missing or damaged."""

    name: str
    config: dict[str, Any]
    facts: dict[str, Any]  # cohort_sql, cohort_hash, rows, config_hash, code_version
    log: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[tuple[int, str]] = field(default_factory=list)  # step and data URI, first and last
    scores: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The log's records of one kind."""
        return [record for record in self.log if record.get("kind") == kind]

    @property
    def steps_done(self) -> int:
        """The last step in the log; 0 without any."""
        return max((int(record["step"]) for record in self.of_kind("step")), default=0)


def read_run(folder: Path) -> Run:
    """Read the OUT of `usdata pretrain`.

    Raises:
        UsdataError: no config.json there, or it is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UsdataError(
            f"No run in {folder} (there is no config.json).",
            step="report",
            hint=f"Make one:  usdata pretrain d2mae --cohort all --preset micro --out {folder}",
        )
    facts = read_json(path)
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise UsdataError(f"{path} is not the config of a run.", step="report", hint="Restore it, or leave out --run.")
    run = Run(folder.resolve().name, facts.pop("config"), facts)
    run.log = _log(folder / "log.jsonl", run.notes)
    run.pictures = _pictures(folder / "pictures", run.notes)
    for file in sorted(folder.glob("scores*.json"), key=lambda file: (file.name != "scores.json", file.name)):
        try:
            run.scores.append(score_facts(read_json(file)))
        except (UsdataError, KeyError, TypeError, ValueError, AttributeError):
            run.notes.append(f"{file.name} is damaged and left out.")
    return run


def _log(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        notes.append("There is no log.jsonl in the run's folder.")
        return []
    lines = path.read_bytes().splitlines()
    records = [record for line in lines if line.strip() and (record := _record(line)) is not None]
    bad = sum(1 for line in lines if line.strip()) - len(records)
    if bad:
        notes.append(f"{bad} damaged {'line' if bad == 1 else 'lines'} of log.jsonl left out.")
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    fine = isinstance(record, dict) and "kind" in record and _number(record.get("step")) is not None
    return record if fine else None


def _pictures(folder: Path, notes: list[str]) -> list[tuple[int, str]]:
    """First and last picture of the run."""
    files = sorted(file for file in folder.glob("step-*.png") if file.stem[5:].isdigit())
    shown = []
    for file in dict.fromkeys([*files[:1], *files[-1:]]):
        data = file.read_bytes()
        if data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82"):
            shown.append((int(file.stem[5:]), data_uri(data)))
        else:
            notes.append(f"pictures/{file.name} is no whole PNG and left out.")
    return shown


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _series(records: list[dict[str, Any]], key: str, markers: bool = False) -> Series:
    points = [(float(r["step"]), y) for r in records if (y := _number(r.get(key))) is not None]
    return Series(key, [x for x, _ in points], [y for _, y in points], markers)


def charts(run: Run) -> list[dict[str, Any]]:
    """Title, legend (number of the colour and name), SVG and caption of each curve that the log can give."""
    steps, probes = run.of_kind("step"), run.of_kind("probe")
    names = dict.fromkeys(key for record in steps for key in record if key not in _NOT_TERMS)
    terms = [series for name in names if (series := _series(steps, name)).x]
    found: list[dict[str, Any]] = [
        {
            "title": "Loss",
            "legend": [(colour_of(i), series.name) for i, series in enumerate(terms)],
            "svg": line_chart(terms, x_label="step", y_label="loss"),
            "caption": "Every term as logged, unweighted; “loss” is what was minimised. Shaded: range within a short "
            "stretch of steps.",
        },
        {
            "title": "Learning rate",
            "legend": [],
            "svg": line_chart([_series(steps, "lr")], x_label="step", y_label="learning rate"),
            "caption": "Of the optimiser, at each step.",
        },
        _knn_chart(probes),
    ]
    return [chart for chart in found if chart["svg"]]


def _knn_chart(probes: list[dict[str, Any]]) -> dict[str, Any]:
    curve = _series(probes, "knn_accuracy", markers=True)
    last: dict[str, Any] = next((p for p in reversed(probes) if "knn_accuracy" in p), {})
    majority, rank = _number(last.get("majority")), _number(last.get("effective_rank"))
    caption = (
        f"Share of {last.get('images', 'some')} fixed images whose {last.get('label', 'label')} is guessed right from "
        "the most similar images of other patients, while training."
    )
    if rank is not None:
        caption += f" Effective rank of the features at the end: {rank:.1f} (1 would be collapse)."
    svg = line_chart(
        [curve],
        x_label="step",
        y_label="accuracy",
        y_range=(0.0, 1.0),
        reference=None if majority is None else ("most frequent class", majority),
    )
    return {"title": "kNN accuracy while training", "legend": [], "svg": svg, "caption": caption}


def score_facts(found: dict[str, Any]) -> dict[str, Any]:
    """A scores.json as the page tells it: rows with figures, and sentences.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is none.
    """
    rows = [_score_row(one) for one in found["scores"]]
    reach = _reach(found.get("gain", []))
    gains = [_gain_row(one, reach) for one in found.get("gain", [])]
    classes = {str(name): int(n) for name, n in found["classes"].items()}
    cohort = found.get("cohort") or {}
    return {
        "label": str(found["label"]),
        "classes": classes,
        "images": sum(classes.values()),
        "groups": int(found["groups"]),
        "folds": int(found["folds"]),
        "cohort_sql": str(cohort.get("sql", "")),
        "cohort_hash": str(cohort.get("hash", "")),
        "rows": rows,
        "gains": gains,
        "reach": reach,
        "verdicts": [
            *_what_was_told(str(found.get("condition", "null"))),
            *(_verdict(one) for one in found.get("gain", [])),
            *_against_thumbnails(found["scores"]),
        ],
    }


def _score_row(one: dict[str, Any]) -> dict[str, Any]:
    key = (str(one["encoder"]), str(one["method"]))
    name, how = _METHODS.get(key, key)
    return {"name": name, "how": how, "kind": key[0], "cells": list(_cells(one, (0.0, 1.0), key[0]))}


def _gain_row(one: dict[str, Any], reach: float) -> dict[str, Any]:
    how = {"linear": "linear classifier", "knn": "kNN"}.get(one["method"], str(one["method"]))
    cells = list(_cells(one, (-reach, reach), "gain"))
    return {"name": "Gain", "how": f"pretrained − untrained, {how}", "cells": cells}


def _reach(gains: list[dict[str, Any]]) -> float:
    """Half the length of the axis that holds all intervals, a multiple of 0.1."""
    ends = [_number(one[metric][key]) or 0.0 for one in gains for metric in METRICS for key in ("low", "high")]
    return max(1, math.ceil(10 * max(map(abs, ends), default=0.0))) / 10


def _cells(one: dict[str, Any], axis: tuple[float, float], kind: str) -> Iterator[dict[str, Any]]:
    for metric in METRICS:
        value, low, high = (_number(one[metric][key]) for key in ("value", "low", "high"))
        if value is None or low is None or high is None:
            yield {"value": "–", "interval": "", "svg": ""}
            continue
        sign = "+" if kind == "gain" else ""
        yield {
            "value": minus(f"{value:{sign}.3f}"),
            "interval": minus(f"{low:{sign}.3f} to {high:{sign}.3f}"),
            "svg": whisker(value, low, high, axis, kind if kind in ("trained", "gain") else ""),
        }


def _verdict(one: dict[str, Any]) -> str:
    """What the paired difference in accuracy says, in words."""
    value, low, high = (_number(one["accuracy"][key]) for key in ("value", "low", "high"))
    how = {"linear": "linear classifier", "knn": "nearest neighbours"}.get(one["method"], str(one["method"]))
    if value is None or low is None or high is None:
        return f"By the {how}, pretraining can't be judged: there are too few images."
    points, least, most = (minus(f"{100 * share:+.1f}") for share in (value, low, high))
    span = f"{points} points, 95 % interval {least} to {most}"
    if low > 0:
        return f"By the {how}, pretraining raised the accuracy ({span})."
    if high < 0:
        return f"By the {how}, pretraining lowered the accuracy ({span})."
    return f"By the {how}, pretraining made no difference to the accuracy that these images can show ({span})."


def _what_was_told(condition: str) -> Iterator[str]:
    """That the encoder knew more than the pixels, if it did (`training.inference`)."""
    if condition != "null":
        told = {"label": "the organ in the catalog", "wrong": "a wrong organ", "predict": "its own guess of the organ"}
        yield f"Beside the pixels the encoder was told {told.get(condition, condition)} of each image."


def _against_thumbnails(scores: list[dict[str, Any]]) -> Iterator[str]:
    value = {(s["encoder"], s["method"]): _number(s["accuracy"]["value"]) for s in scores}
    best = max((v for (name, _), v in value.items() if name == "trained" and v is not None), default=None)
    plain = value.get(("thumbnails", "1-nn"))
    if best is None or plain is None:
        return
    if plain >= best:
        yield (
            f"Looking up the most similar 16 × 16 thumbnail, without any network, does as well or better ({plain:.3f} "
            f"against {best:.3f}): this task can't show what the encoder is worth."
        )
    else:
        yield (
            f"Looking up the most similar 16 × 16 thumbnail, without any network, reaches {plain:.3f}; the encoder's "
            f"best is {best:.3f}."
        )


def minus(text: str) -> str:
    """A number with the minus sign of print."""
    return text.replace("-", "−")


def caveats(run: Run, simulated: int, images: int, seen: bool) -> list[str]:
    """What a reader must know before believing the scores.

    Args:
        simulated, images: of the run's cohort; 0 images if it isn't in the lake.
        seen: images were pretrained on and are scored.
    """
    said = []
    if run.config.get("preset") == "micro":
        said.append(
            "The preset micro is a toy: a network of a few layers, trained for about a minute. It shows that the "
            "pipeline works from files to scores, not that the encoder is good."
        )
    if images and simulated:
        share = "All" if simulated == images else f"{simulated:,} of {images:,}"
        said.append(f"{share} training images are simulated. Accuracy on simulated organs says nothing about patients.")
    if seen:
        said.append(
            "The encoder saw the same images in pretraining, without their labels, on which it is scored here; "
            "images of new patients may score lower."
        )
    if run.scores:
        said.append(
            "Images of one patient (where patients are unknown: near-copies) are never on both sides of a split, and "
            "the intervals come from drawing patients, not images, again. They do not cover the chance in pretraining: "
            "one seed was run."
        )
    planned = run.config.get("steps")
    if isinstance(planned, int) and run.steps_done < planned:
        said.append(f"The run stands at step {run.steps_done:,} of {planned:,}: it is not finished.")
    return said
