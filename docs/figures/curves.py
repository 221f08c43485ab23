"""Pictures of docs/learns.json: the loss curves, and the probes before and after training."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import BLUE, GREY, INK, LINE, NAMES, SOFT, columns, title

TERMS: dict[str, dict[str, str]] = {
    "d2mae": {
        "loss": "squared error\n(the loss)",
        "mse_masked": "of it: hidden\npatches",
        "mse_visible": "of it: visible\npatches",
    },
    "usfm": {
        "l1": "absolute error\n(L1)",
        "focal": "focal frequency\nloss",
        "l1_masked": "L1 under\nthe blocks",
        "l1_visible": "L1 outside\nthe blocks",
    },
    "tusa": {
        "l1": "absolute error\n(L1)",
        "ssim": "1 − SSIM",
        "contrast": "contrast\n(NT-Xent)",
        "logit": "logit\nconsistency",
        "textures_used": "textures in use\n(of 5)",
    },
    "arl": {
        "mim": "hidden patches'\npixels (MIM)",
        "adv": "adversarial",
        "lambda": "weight λ of the\nadversarial term",
        "disc_accuracy": "discriminator's\naccuracy",
        "sd": "self-\ndistillation",
    },
}
MOST = 5  # terms of a recipe


def loss_curves(results: dict[str, Any]) -> Figure:
    """A row per recipe, a panel per raw term, over the steps of the run of seed 0."""
    known = [name for name in TERMS if name in results["runs"]]
    figure = plt.figure(figsize=(9.6, 1.75 * len(known) + 0.35))
    axes = figure.subplots(len(known), MOST, squeeze=False)
    figure.subplots_adjust(0.075, 0.06, 0.99, 0.9, wspace=0.42, hspace=0.75)
    for row, name in zip(axes, known, strict=True):
        run = results["runs"][name]
        for axis in row[len(TERMS[name]) :]:
            axis.set_axis_off()
        for axis, (term, label) in zip(row, TERMS[name].items(), strict=False):
            _curve(axis, run["curves"]["step"], run["curves"].get(term), label)
        row[0].set_ylabel(f"{NAMES[name]}", color=INK, fontweight="bold", labelpad=8)
        row[0].set_xlabel("step", color=SOFT, size=8.5, labelpad=1)
    title(
        figure, "", "Raw terms of each loss over the steps, seed 0, preset micro; each panel has its own scale", 0.992
    )
    return figure


def _curve(axis: Axes, steps: list[float], values: list[float | None] | None, label: str) -> None:
    axis.set_title(label, size=8.5, pad=3, color=SOFT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=2, labelsize=8, colors=SOFT)
    axis.locator_params(axis="y", nbins=3)
    axis.locator_params(axis="x", nbins=3)
    if values is None:
        axis.text(0.5, 0.5, "not in the log", ha="center", va="center", size=8, color=SOFT, transform=axis.transAxes)
        return
    axis.plot(steps, [np.nan if value is None else value for value in values], color=BLUE, lw=1.3)


def probes(results: dict[str, Any], metric: str = "macro_f1") -> Figure:
    """Linear probe before and after training on each target, and the difference, with 95 % intervals."""
    names, targets = list(results["scores"]), list(results["tasks"])
    figure = plt.figure(figsize=(9.6, 1.15 + 0.26 * len(names) * len(targets) + 0.5 * len(targets)))
    axes = figure.subplots(len(targets), 2, squeeze=False, width_ratios=(1.6, 1), sharex="col")
    figure.subplots_adjust(0.215, 0.085, 0.985, 0.865, wspace=0.06, hspace=0.42)
    columns(axes[0], ("", ""))
    for row, target in zip(axes, targets, strict=True):
        for place, name in enumerate(names):
            found = results["scores"][name][target]["linear"]
            for kind, colour, shift in (("random", GREY, 0.16), ("trained", BLUE, -0.16)):
                _interval(row[0], found[kind][metric], place - shift, colour, kind == "trained")
            _interval(row[1], found["gain"][metric], place, INK, found["gain"][metric]["low"] > 0)
        row[0].set_title(target, size=9.5, pad=4, loc="left", color=INK)
        row[0].set_yticks(range(len(names)), [NAMES[name] for name in names], size=8.5)
        row[1].set_yticks([])
        row[1].axvline(0, color=GREY, lw=1)
        for axis in row:
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.spines[["top", "right", "left"]].set_visible(False)
            axis.tick_params(length=0, labelsize=8.5)
            axis.grid(axis="x", color=LINE, lw=0.5)
            axis.set_axisbelow(True)
    axes[-1, 0].set_xlabel("macro F1 of a linear probe")
    axes[-1, 1].set_xlabel("trained − random")
    title(figure, "", "What a linear probe reads off each encoder, on patients that no training saw", 0.99)
    low = 0.94 if len(targets) > 2 else 0.9
    figure.text(0.215, low, "●", color=BLUE, size=11, va="center")
    figure.text(0.235, low, "pretrained", size=9, va="center")
    figure.text(0.33, low, "○", color=SOFT, size=11, va="center")
    figure.text(0.35, low, "the same network before training", size=9, va="center")
    figure.text(0.66, low, "difference, paired; filled: interval above 0", size=9, va="center")
    return figure


def _interval(axis: Axes, found: dict[str, float], place: float, colour: str, filled: bool) -> None:
    axis.plot([found["low"], found["high"]], [place, place], color=colour, lw=2, solid_capstyle="round")
    face = colour if filled else "white"
    axis.plot(found["value"], place, "o", ms=5.5, color=colour, markerfacecolor=face, markeredgewidth=1.4)
