"""docs/images/overview.png, the README's picture: images, balanced draws, reconstructions."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from figures.style import BLUE, GREY, SOFT
from training.checkpoint import load_encoder
from training.data import generator
from usdata.lake import Lake
from usdata.reader import ShardReader
from usdata.sampling import sampling_plan

OUTLINES = ("#f5a614", "#56b4e9", "#f0e442", "#2fc79a", "#e08fbd")  # Okabe and Ito, brightened


def overview(lake: Lake, run: Path) -> Figure:
    """Three panels: an image of each organ, the balanced draw plan, reconstructions."""
    figure = plt.figure(figsize=(9.6, 5.5))
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.02, 2), hspace=0)
    above, below = halves
    left, right = below.subfigures(1, 2, width_ratios=(1.62, 1))
    _organs(above, lake)
    _balance(left, lake)
    _reconstructions(right, lake, run)
    return figure


def _title(panel: SubFigure, letter: str, text: str, y: float, x: float = 0.02) -> None:
    panel.text(x, y, f"$\\bf{{{letter}}}$   {text}", size=9, va="top")


def _pick(lake: Lake) -> tuple[list[str], NDArray[np.int64]]:
    """An image of each organ, one with a mask; the fixed rule: the first by id that has the most mask classes."""
    table = lake.cohort("all").table(["organ", "sample_id", "label", "has_mask"]).to_pylist()
    best: dict[str, tuple[bool, str, int]] = {}
    for row, fact in enumerate(table):
        key = (fact["label"] not in ("normal", None), fact["sample_id"], row)
        known = best.get(fact["organ"])
        if known is None or key[0] > known[0] or (key[0] == known[0] and key[1] < known[1]):
            best[fact["organ"]] = key
    organs = sorted(best)
    return organs, np.array([best[organ][2] for organ in organs], np.int64)


def _organs(panel: SubFigure, lake: Lake) -> None:
    organs, rows = _pick(lake)
    reader = ShardReader(lake.cohort("all").index(mask=True))
    images, (masks, _) = reader.images(rows), reader.masks(rows)
    axes = panel.subplots(1, len(organs))
    panel.subplots_adjust(0.02, 0.02, 0.985, 0.8, wspace=0.05)
    for place, (axis, organ, image, mask) in enumerate(zip(axes, organs, images, masks, strict=True)):
        _show(axis, image)
        axis.set_title(organ.replace("_", " "), size=8, pad=3, color=SOFT)
        if place % 2:
            for k in np.unique(mask[mask > 0]).tolist():
                axis.contour(mask == k, [0.5], colors=OUTLINES[(k - 1) % len(OUTLINES)], linewidths=1.1)
    _title(panel, "a", "Simulated B-mode images with exact masks", 0.97)


def _show(axis: Axes, image: NDArray[np.generic]) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=1 if image.dtype.kind == "f" else 255, interpolation="antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def _balance(panel: SubFigure, lake: Lake) -> None:
    cohort = lake.cohort("all")
    codes, names = cohort.groups("organ")
    rows = sampling_plan(codes, names, gamma=0.5, draws=cohort.rows).rows()[::-1]
    axis = panel.subplots()
    panel.subplots_adjust(0.175, 0.115, 0.95, 0.9)
    places = np.arange(len(rows))
    axis.barh(places + 0.19, [100 * r["share"] for r in rows], 0.36, color=GREY, label="share of the images")
    axis.barh(places - 0.19, [100 * r["expected"] for r in rows], 0.36, color=BLUE, label="share drawn (γ = 0.5)")
    for place, row in zip(places, rows, strict=True):
        axis.text(100 * row["share"] + 0.6, place + 0.19, f"{row['images']:,}", va="center", size=7, color=SOFT)
        axis.text(100 * row["expected"] + 0.6, place - 0.19, f"{row['repeats']:.1f} × each", va="center", size=7)
    axis.set_yticks(places, [row["group"].replace("_", " ") for row in rows])
    axis.tick_params(length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("per cent")
    axis.legend(frameon=False, loc="lower right", fontsize=8)
    _title(panel, "b", "Balanced draws: rare organs come more often", 0.975, 0.033)


def _reconstructions(panel: SubFigure, lake: Lake, run: Path) -> None:
    organs, rows = _pick(lake)
    some = [organs.index(organ) for organ in ("breast", "fetal_head", "heart", "thyroid")]
    images = ShardReader(lake.cohort("all").index()).images(rows[some])
    recipe = load_encoder(run)
    draws = recipe.draw(len(some), generator("figure", 0))
    with torch.no_grad():
        stages = recipe.pictures(torch.from_numpy(np.ascontiguousarray(images))[:, None], draws)
    axes = panel.subplots(len(some), len(stages))
    panel.subplots_adjust(0.02, 0.02, 0.96, 0.855, wspace=0.04, hspace=0.04)
    for column, (name, pictures) in enumerate(stages.items()):
        axes[0, column].set_title(name, size=8, pad=3, color=SOFT)
        for axis, picture in zip(axes[:, column], pictures[:, 0].numpy(), strict=True):
            _show(axis, picture)
    _title(panel, "c", "D²MAE micro after a minute on two CPU cores", 0.975, 0.02)
