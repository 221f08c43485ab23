"""Light decoders that turn an encoder's tokens back into patches of pixels."""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from training.models.positions import sincos_2d
from training.models.vit import init_mae


class MaskedDecoder(nn.Module):
    """MAE's decoder: mask tokens where the encoder saw nothing, fixed positions, a few blocks, a Linear to pixels.

    Args:
        inputs: width of the encoder's tokens.
        grid: rows and columns of the patch grid; N = rows * columns.
        outputs: values per patch, p * p * C.
        width, depth, heads: of the decoder (MAE: 512, 8, 16).
        prefix: how many tokens before the patches belong to no patch; they get no position and no prediction.

    Source: MAE (He et al., 2022), official code. Filling by one scatter is equal to its concat and gather.
    """

    positions: Tensor

    def __init__(
        self, inputs: int, grid: tuple[int, int], outputs: int, *, width: int, depth: int, heads: int, prefix: int
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(inputs, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_2d(width, *grid), persistent=False)  # (N, width)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.Sequential(*[Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)])
        self.norm = norm(width)
        self.pred = nn.Linear(width, outputs)
        init_mae(self)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Predict every patch.

        Args:
            tokens: (B, prefix + V, inputs) from the encoder.
            keep: (B, V) int64, the patch that each visible token belongs to; None: all N in grid order.

        Returns:
            (B, N, outputs) in grid order, without the prefix.
        """
        x = self.embed(tokens)
        visible = x[:, self.prefix :]  # (B, V, width)
        if keep is not None:
            place = keep[:, :, None].expand_as(visible)
            blank = self.mask_token.to(x.dtype).expand(len(x), len(self.positions), -1)
            visible = blank.scatter(1, place, visible)  # (B, N, width)
        x = torch.cat([x[:, : self.prefix], visible + self.positions], dim=1)  # float32 from here, as in MAE
        return self.pred(self.norm(self.blocks(x))[:, self.prefix :])
