"""Fixed and learned embeddings of a place in the grid and of a level (how much an image was blurred)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

LevelVariant = Literal["sinusoid+vector", "sinusoid", "table"]


def sincos_2d(width: int, rows: int, columns: int) -> Tensor:
    """Position of every patch of a grid: half of the channels tell the column, half the row.

    Args:
        width: channels, a multiple of 4.
        rows, columns: size of the grid in patches.

    Returns:
        (rows * columns, width), float32 in [-1, 1], row by row.

    Raises:
        ValueError: width is not a multiple of 4.

    Source: MAE's `get_2d_sincos_pos_embed`, which puts the column first and sines before cosines.
    """
    if width % 4:
        raise ValueError(f"2-D positions need a width that is a multiple of 4, not {width}")
    frequencies = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1).float()


def sinusoid(levels: Tensor, width: int) -> Tensor:
    """DDPM's embedding of a step number: [sin(t w), cos(t w)] with w from 1 down to 1/10000.

    Args:
        levels: (n,) numbers t.
        width: channels, even and at least 4.

    Returns:
        (n, width), float32; every row has norm sqrt(width / 2).

    Source: D2MAE, "as DDPM"; order and spacing are those of the DDPM code.
    """
    half = width // 2
    omega = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float64) / (half - 1))
    angles = levels.double()[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class LevelEmbedding(nn.Module):
    """A vector for each level 0 ... `levels`, 0 meaning "not corrupted at all".

    Args:
        levels: highest level T.
        width: channels D.
        variant: "sinusoid+vector" adds one learned vector (D parameters) to the sinusoid of the level;
            "sinusoid" learns nothing; "table" learns T + 1 vectors.

    Source: D2MAE reports 0.0009 % more parameters, which is one vector of 768: hence the default (inferred).
    """

    sinusoids: Tensor

    def __init__(self, levels: int, width: int, variant: LevelVariant = "sinusoid+vector") -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.empty(width)) if variant == "sinusoid+vector" else None
        self.table = nn.Parameter(torch.empty(levels + 1, width)) if variant == "table" else None
        fixed = sinusoid(torch.arange(levels + 1), width) if variant != "table" else None
        self.register_buffer("sinusoids", fixed, persistent=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)  # as CLS and mask token

    def forward(self, levels: Tensor) -> Tensor:
        """levels: (B,) int64 in [0, T]. Returns (B, D)."""
        if self.table is not None:
            return self.table[levels]
        fixed = self.sinusoids[levels]
        return fixed if self.vector is None else fixed + self.vector
