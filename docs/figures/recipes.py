"""One picture per recipe: what it hides, what it rebuilds, and what is its own (levels, rings, textures, offsets)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Annulus, Circle, Rectangle

from figures.arl import arl
from figures.samples import draws, grey, samples
from figures.style import INK, LINE, RED, SOFT, WHEEL, bare, columns, show, title, words
from training.checkpoint import load_encoder
from training.masking_frequency import ring_edges
from usdata.lake import Lake


def d2mae(lake: Lake, where: str, run: Path) -> Figure:
    """Hidden and blurred images rebuilt; and one image at several blur levels."""
    organs = ("breast", "fetal_head", "gallbladder", "heart", "thyroid")
    recipe, sample = load_encoder(run), samples(lake, where, organs)
    figure = plt.figure(figsize=(9.6, 5.6))
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    strongest = len(recipe.cfg.sigmas)
    with torch.no_grad():
        n = len(sample.organs)
        stages = recipe.pictures(sample.images, draws(recipe, n, t=torch.full((n,), strongest)))
    axes = left.subplots(n, 4)
    left.subplots_adjust(0.05, 0.015, 0.985, 0.87, wspace=0.04, hspace=0.04)
    columns(axes[0], ("sharp image", "blurred", "three quarters\nhidden", "rebuilt"))
    for row, organ in zip(axes, sample.organs, strict=True):
        row[0].set_ylabel(words(organ), color=SOFT)
        for axis, pictures in zip(row, stages.values(), strict=True):
            show(axis, grey(pictures)[sample.organs.index(organ)])
    title(left, "a", "The network sees the third column, and makes the fourth")
    _levels(right, recipe, sample.images[:1])
    return figure


def _levels(panel: SubFigure, recipe: Any, image: Any) -> None:
    levels = list(range(1, len(recipe.cfg.sigmas) + 1, 2))[-5:]
    many = image.expand(len(levels), -1, -1, -1)
    drawn = draws(recipe, len(levels), t=torch.tensor(levels))
    drawn["noise"] = drawn["noise"][:1].expand(len(levels), -1)  # the same patches at every level
    with torch.no_grad():
        stages = recipe.pictures(many, drawn)
        sharp, blurred = recipe.views(many, drawn)
        whole = recipe.predict(blurred, drawn["t"])
        tokens = (whole.unflatten(-1, (-1, recipe.cfg.channels)) * recipe.std + recipe.mean).mean(-1)
    side, p = recipe.grid[0], recipe.cfg.patch_size
    unmasked = tokens.reshape(-1, side, side, p, p).transpose(2, 3).reshape(len(levels), side * p, side * p)
    names = ("blurred", "what the blur\ntook away, × 4", "rebuilt from\na quarter", "rebuilt from\nall patches")
    lost = 0.5 + 4 * (sharp - blurred)
    axes = panel.subplots(len(levels), 4)
    panel.subplots_adjust(0.14, 0.015, 0.985, 0.87, wspace=0.04, hspace=0.04)
    columns(axes[0], names)
    shown = [grey(blurred), grey(lost), grey(stages["reconstruction"]), unmasked.clamp(0, 1).numpy()]
    for place, (row, level) in enumerate(zip(axes, levels, strict=True)):
        text = f"t = {level}\nσ = {recipe.cfg.sigmas[level - 1]:.1f}"
        row[0].set_ylabel(text, color=SOFT, rotation=0, ha="right", va="center")
        for axis, pictures in zip(row, shown, strict=True):
            show(axis, np.clip(pictures[place], 0, 1))
    title(panel, "b", "One image at five blur levels t (σ in pixels)")


def usfm(lake: Lake, where: str, run: Path) -> Figure:
    """Both masks and what is rebuilt; spectra with the seven rings, those removed in colour."""
    recipe, sample = load_encoder(run), samples(lake, where, ("breast", "fetal_head", "thyroid"))
    n = len(sample.organs)
    bands = torch.zeros(n, recipe.cfg.bands, dtype=torch.bool)
    for row, pair in enumerate(((0, 2), (1, 3), (0, 4))):
        bands[row, list(pair)] = True
    still = {"angle": torch.zeros(n), "sigma": torch.zeros(n), "brightness": torch.ones(n), "contrast": torch.ones(n)}
    with torch.no_grad():
        stages = recipe.pictures(sample.images, draws(recipe, n, bands=bands, **still))
    figure = plt.figure(figsize=(9.6, 4.5))
    left, right = figure.subfigures(1, 2)
    names = list(stages)
    for panel, chosen in ((left, names[:4]), (right, names[4:])):
        axes = panel.subplots(n, 4)
        panel.subplots_adjust(0.055, 0.06, 0.99, 0.84, wspace=0.04, hspace=0.04)
        columns(axes[0], ("image", "two rings\nremoved", "and blocks\nfilled in", "rebuilt"))
        for row, line in enumerate(axes):
            line[0].set_ylabel(words(sample.organs[row]), color=SOFT)
            for axis, name in zip(line, chosen, strict=True):
                show(axis, grey(stages[name])[row])
                if panel is right:
                    _rings(axis, recipe.cfg, bands[row].numpy())
    title(left, "a", "The network sees the third column, and makes the fourth")
    title(right, "b", "Their spectra: coarse detail in the middle, fine at the edge")
    legend = "between coloured circles: the rings removed    square: the protected centre"
    right.text(0.055, 0.02, legend, size=8, color=SOFT)
    return figure


def _rings(axis: Axes, cfg: Any, removed: Any) -> None:
    """The seven rings and the protected centre over a spectrum; the removed rings between red lines."""
    edges, middle = ring_edges(cfg.image_size, cfg.bands, cfg.protect, cfg.spacing), cfg.image_size / 2
    for edge in edges[1:]:
        axis.add_patch(Circle((middle, middle), edge, fill=False, color=LINE, lw=0.4, alpha=0.6))
    for band in np.flatnonzero(removed):
        width = edges[band + 1] - edges[band]
        ring = Annulus((middle, middle), edges[band + 1], width * 0.999, facecolor="none", edgecolor=RED, lw=1.1)
        axis.add_patch(ring)
    corner, side = middle - cfg.protect - 0.5, 2 * cfg.protect + 1
    axis.add_patch(Rectangle((corner, corner), side, side, fill=False, color=INK, lw=0.8))


def tusa(lake: Lake, where: str, run: Path) -> Figure:
    """The map of textures in colour, each texture alone, the rebuilt image, and the kernels."""
    recipe, sample = load_encoder(run), samples(lake, where, ("breast", "fetal_head", "gallbladder", "thyroid"))
    with torch.no_grad():
        x = recipe.network_input(sample.images)
        maps = recipe.activate(recipe.network(x)[0])  # (n, K, S, S), sums to 1 in each pixel
        rebuilt = recipe.texture(maps)
    k, n = maps.shape[1], len(sample.organs)
    colours = torch.tensor([to_rgb(c) for c in WHEEL[:k]])
    mixed = torch.einsum("bkhw,kc->bhwc", maps, colours).clamp(0, 1).numpy()
    figure = plt.figure(figsize=(9.6, 7.4))
    above, below = figure.subfigures(2, 1, height_ratios=(4.35, 2.3))
    axes = above.subplots(n, k + 3)
    above.subplots_adjust(0.035, 0.02, 0.99, 0.885, wspace=0.04, hspace=0.04)
    columns(axes[0], ("image", "map of\ntextures", *(f"texture {i + 1}\nalone" for i in range(k)), "rebuilt"))
    for row, line in enumerate(axes):
        line[0].set_ylabel(words(sample.organs[row]), color=SOFT)
        show(line[0], grey(x / 2 + 0.5)[row])
        line[1].imshow(mixed[row], interpolation="nearest")
        for i, axis in enumerate(line[2 : 2 + k]):
            tint = LinearSegmentedColormap.from_list("tint", ("#101214", WHEEL[i]))
            show(axis, maps[row, i].numpy(), cmap=tint)
        show(line[-1], grey(rebuilt / 2 + 0.5)[row])
        bare(line[1])
    title(
        above, "a", f"Every pixel is shared out among {k} textures; map and kernels alone make the rebuilt image", 0.985
    )
    _kernels(below, recipe, maps)
    return figure


def _kernels(panel: SubFigure, recipe: Any, maps: Any) -> None:
    """The kernels as they enter the image, and again without their centres on a finer scale."""
    kernels = recipe.texture.kernels()[0].detach().numpy()
    k, side, used = len(kernels), kernels.shape[1], maps.mean((0, 2, 3)).numpy()
    around = kernels.copy()
    around[:, side // 2, side // 2] = 0.0
    axes = panel.subplots(2, k + 3)
    panel.subplots_adjust(0.035, 0.03, 0.99, 0.78, wspace=0.04, hspace=0.12)
    for row, (line, values, name) in enumerate(zip(axes, (kernels, around), ("whole", "without\ncentre"), strict=True)):
        top = float(np.abs(values).max())
        for axis in (line[0], line[1], line[-1]):
            axis.set_axis_off()
        line[1].text(0.95, 0.5, name, ha="right", va="center", color=SOFT, transform=line[1].transAxes)
        for i, axis in enumerate(line[2 : 2 + k]):
            axis.imshow(values[i], cmap="PuOr_r", vmin=-top, vmax=top, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set(color=WHEEL[i], lw=2.5)
            if row == 0:
                axis.set_title(f"covers {100 * used[i]:.0f} %", size=8.5, pad=5, color=SOFT)
        _scale(line[-1], top)
    title(panel, "b", f"The {k} kernels, {side} × {side} pixels: what a texture adds around each pixel of it", 0.98)


def _scale(axis: Axes, top: float) -> None:
    """What the colours of a row of kernels mean."""
    ramp = np.linspace(1, -1, 64)[:, None]
    bar = axis.inset_axes((0.12, 0.02, 0.1, 0.96))
    bar.imshow(ramp, cmap="PuOr_r", aspect="auto", vmin=-1, vmax=1)
    bare(bar)
    for height, text in ((0.9, f"brighter, +{top:.2g}"), (0.5, "0"), (0.1, f"darker, −{top:.2g}")):
        axis.text(0.28, height, text, size=7.5, va="center", color=SOFT, transform=axis.transAxes)


PICTURES: Mapping[str, Callable[[Lake, str, Path], Figure]] = {"d2mae": d2mae, "usfm": usfm, "tusa": tusa, "arl": arl}
