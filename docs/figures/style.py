"""What the pictures have in common: colours, type, a grey image, a title."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

GREY, BLUE, INK, SOFT, LINE = "#a9b0b4", "#0072b2", "#1a1c1e", "#5d6468", "#d5d9dc"
ORANGE, SKY, GREEN, YELLOW, PINK, RED = "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00"
WHEEL = (ORANGE, SKY, GREEN, YELLOW, PINK, RED, BLUE)  # Okabe and Ito: told apart by colour-blind readers too
NAMES = {"d2mae": "D²MAE", "usfm": "USFM", "tusa": "TUSA", "arl": "ARL", "arl-null": "ARL, never told the organ"}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": INK,
    "savefig.facecolor": "white",
}


def show(axis: Axes, image: NDArray[np.generic], **options: Any) -> None:
    """A grey image without ticks; floats from 0 to 1, integers from 0 to 255. Pixels stay squares."""
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1 if image.dtype.kind == "f" else 255, "interpolation": "nearest"}
    axis.imshow(image, **{**grey, **options})
    bare(axis)


def bare(axis: Axes) -> None:
    """No ticks and no frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def title(panel: Figure | SubFigure, letter: str, text: str, y: float = 0.98, x: float = 0.012) -> None:
    """A panel's letter and what it shows."""
    panel.text(x, y, f"$\\bf{{{letter}}}$   {text}", size=10, va="top")


def columns(axes: NDArray[Any], names: Sequence[str]) -> None:
    """Names over the first row of axes."""
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name, size=9, pad=4, color=SOFT)


def words(name: str) -> str:
    """A catalog word for people."""
    return name.replace("_", " ")
