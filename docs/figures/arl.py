"""ARL's picture: what is rebuilt, and where the last block looks, told this organ or another."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from figures.samples import draws, grey, samples
from figures.style import ORANGE, SKY, SOFT, YELLOW, columns, show, title, words
from training.checkpoint import load_encoder
from training.models.deformable import base_offsets
from usdata.lake import Lake

ORGANS = ("breast", "fetal_head")
PLACES = ((2, 2), (2, 5), (5, 2), (5, 5))  # patches whose sampling points are drawn, row and column of 8 x 8
LONGEST = 0.6  # patches: the longest arrow, magnified by a round factor


def arl(lake: Lake, where: str, run: Path) -> Figure:
    """Hidden patches rebuilt; the sampling points of four patches for the organ told, and for another."""
    recipe, sample = load_encoder(run), samples(lake, where, ORGANS)
    n = len(sample.organs)
    with torch.no_grad():
        told = recipe.conditions({"organ": sample.organs})
        stages = recipe.pictures(sample.images, {**draws(recipe, n), **told})
        view = recipe.view(sample.images)
    figure = plt.figure(figsize=(9.6, 6.9))
    above, below = figure.subfigures(2, 1, height_ratios=(1, 2.1))
    axes = above.subplots(1, 3 * n)
    above.subplots_adjust(0.01, 0.02, 0.99, 0.7, wspace=0.05)
    columns(axes, ("image", "six tenths hidden", "rebuilt") * n)
    for place, axis in enumerate(axes):
        row, name = place // 3, ("view", "masked", "reconstruction")[place % 3]
        show(axis, grey(stages[name])[row])
    title(above, "a", "Hidden patches are rebuilt")
    _looks(below, recipe, view, sample.organs)
    return figure


def offsets(recipe: Any, view: Tensor, organ: str) -> Tensor:
    """Offsets of the last block's taps, told `organ`: (n, H, W, K, 2) of (dy, dx) in patches, first offset group."""
    found: list[Tensor] = []
    slots = recipe.conditions({"organ": [organ] * len(view)})["organ"]
    with torch.no_grad():
        condition = torch.nn.functional.one_hot(slots, len(recipe.cfg.classes)).float()
        recipe.trained.tokens(view, condition, record=found)
    return found[-1][:, :, :, 0]


def _looks(panel: SubFigure, recipe: Any, view: Tensor, organs: list[str]) -> None:
    moved = {organ: offsets(recipe, view, organ) for organ in organs}
    shown = torch.stack(
        [found[:, list(r), list(c)] for found in moved.values() for r, c in [zip(*PLACES, strict=True)]]
    )
    factor = _round(LONGEST / float(shown.norm(dim=-1).max().clamp(min=1e-6)))
    axes = panel.subplots(len(organs), len(organs) + 1)
    panel.subplots_adjust(0.02, 0.055, 0.93, 0.86, wspace=0.05, hspace=0.05)
    told = [f'told "{words(organ)}"' for organ in organs]
    columns(axes[0], (*told, "points moved by telling it\nthe other organ, pixels"))
    for row, line in enumerate(axes):
        picture = grey(view / 2 + 0.5)[row]
        for axis, organ in zip(line, organs, strict=False):
            show(axis, picture)
            _points(axis, recipe, moved[organ][row].numpy(), factor)
        apart = (moved[organs[0]] - moved[organs[1]])[row].norm(dim=-1).mean(-1).numpy() * recipe.cfg.patch_size
        heat = line[-1].imshow(apart, cmap="cividis", vmin=0, interpolation="nearest")
        line[-1].set_xticks([])
        line[-1].set_yticks([])
        bar = panel.colorbar(heat, cax=line[-1].inset_axes((1.03, 0.0, 0.05, 1.0)))
        bar.ax.tick_params(labelsize=8, length=0)
        bar.outline.set_visible(False)  # type: ignore[operator]
    title(panel, "b", "Where four patches (squares) of the last block look, by the organ that the network is told")
    legend = f"Arrows, {factor:g} times too long: how far each of the nine points has moved from its place on the grid."
    panel.text(0.02, 0.018, f"{legend} Size of a dot: its weight.", size=8.5, color=SOFT)


def _round(factor: float) -> float:
    """1, 2, 5, 10, 20 ...: the largest that is not above `factor`; 1 at least."""
    steps = [base * 10**power for power in range(6) for base in (1, 2, 5)]
    return max([step for step in steps if step <= factor], default=1)


def _points(axis: Axes, recipe: Any, moved: Any, factor: float) -> None:
    """Squares of the patches, their points on the regular grid, and arrows along the offsets."""
    side, base = recipe.cfg.patch_size, base_offsets(recipe.cfg.taps, recipe.cfg.base_grid).numpy()
    weight = recipe.trained.blocks[-1].acdt.w.detach().abs()
    share = weight.mean(tuple(range(weight.ndim - 1))).numpy()
    size = 5 + 28 * share / share.max()
    for (r, c), colour in zip(PLACES, (ORANGE, SKY, YELLOW, "#ff9ecf"), strict=True):
        axis.add_patch(Rectangle((c * side - 0.5, r * side - 0.5), side, side, fill=False, color=colour, lw=1.2))
        start = (np.array([r, c]) + 0.5 + base) * side - 0.5  # (K, 2) of y, x
        way = moved[r, c] * side * factor
        axis.scatter(start[:, 1], start[:, 0], s=size, color=colour, lw=0)
        arrow = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006, "headwidth": 3.5, "headlength": 4}
        axis.quiver(start[:, 1], start[:, 0], way[:, 1], way[:, 0], color=colour, **arrow)
    axis.set_xlim(-0.5, recipe.cfg.image_size - 0.5)
    axis.set_ylim(recipe.cfg.image_size - 0.5, -0.5)
