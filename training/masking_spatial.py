"""USFM's spatial mask: blocks of pixels painted over with the image's mean. Pure functions, no random state.

Source: USFM (Jiao et al., MedIA 2024), Eq. 2 and 8.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from training.masking import shuffle
from usdata.errors import ConfigError

Rounding = Literal["ceil", "round"]


def masked_blocks(blocks: int, ratio: float, rounding: Rounding = "ceil") -> int:
    """How many of `blocks` are masked: 20 of 49 at 0.4 (the official generator rounds up).

    Raises:
        ConfigError: the ratio is not in [0, 1), or no block would be left.
    """
    exact = round(blocks * ratio, 9)  # 100 * 0.07 is a hair above 7
    count = math.ceil(exact) if rounding == "ceil" else math.floor(exact + 0.5)
    if not 0 <= ratio < 1 or count >= blocks:
        raise ConfigError(f"mask_ratio {ratio} leaves none of {blocks} blocks.")
    return count


def lowest(noise: Tensor, count: int) -> Tensor:
    """Choose `count` of n per row, all subsets alike: (B, n) uniform noise -> (B, n) bool, True for the smallest."""
    chosen = shuffle(noise)[0][:, :count]
    return torch.zeros(noise.shape, dtype=torch.bool, device=noise.device).scatter(1, chosen, True)


def enlarge(blocks: Tensor, factor: int) -> Tensor:
    """Draw each of a square grid of blocks `factor` wide: (B, n * n) -> (B, 1, n * factor, n * factor).

    Raises:
        ValueError: the blocks make no square grid.
    """
    side = math.isqrt(blocks.shape[1])
    if side * side != blocks.shape[1]:
        raise ValueError(f"{blocks.shape[1]} blocks make no square grid")
    grid = blocks.unflatten(1, (1, side, 1, side, 1)).expand(-1, -1, -1, factor, -1, factor)
    return grid.reshape(len(blocks), 1, side * factor, side * factor)


def dual_mask(images: Tensor, filtered: Tensor, hidden: Tensor) -> Tensor:
    """The images after the band-stop, with the blocks painted over last.

    Args:
        images: (B, C, S, S) float32, untouched; each image's and channel's own mean is the colour of its blocks.
        filtered: (B, C, S, S) the same after the band-stop, whose mean is the same.
        hidden: (B, 1, S, S) bool, True in a masked block. A flag, not a value: a normalised image's mean may be 0.

    Returns:
        (B, C, S, S) float32: `filtered` itself where nothing is hidden.

    Source: USFM, Eq. 8. Blocks come after the inverse transform, so the result's spectrum is not band-stopped.
    """
    return torch.where(hidden, images.mean((-2, -1), keepdim=True), filtered)
