"""MONAI's SwinUNETR in two dimensions, with its latent and feature maps in reach, and faster window attention.

Names and shapes of all weights are MONAI's: its network loads them strictly. What differs in computation:
window attention keeps no copies, the mask of shifted windows is made once, and a map that is smaller than the
window gets the relative positions it has (MONAI reads them from the wrong rows of the table).

Importing this module imports MONAI: only TUSA does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from monai.networks.blocks import UnetrBasicBlock, UnetrUpBlock
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    SwinTransformerBlock,
    SwinUNETR,
    WindowAttention,
    compute_mask,
    get_window_size,
)
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.attention import biased_attention
from usdata.errors import ConfigError, nearest

Latent = Literal["gap", "gap_max", "multi"]

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"feature_size": 36, "depths": (2, 2, 8, 6), "window": 8},  # 9.10 M encoder, 19.7 M in all
    "stock48": {"feature_size": 48, "depths": (2, 2, 2, 2), "window": 7},  # MONAI's defaults at ViT-B's width
    "stock48v2": {"feature_size": 48, "depths": (2, 2, 2, 2), "window": 7, "residual": True},
    "tiny": {"feature_size": 12, "depths": (1, 1, 1, 1), "window": 8},
}
"""TUSA states a "9M" encoder and "22M" in all, which no setting gives; "paper" comes nearest (ours)."""


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of (B, 1, H, W): five maps, (B, F * 2^i, H / 2^(i+1), W / 2^(i+1)), i = 0 ... 4.

    `hidden` are MONAI's hidden states, each normalised over its channels; `raw` is the last one before that.
    """

    hidden: tuple[Tensor, ...]
    raw: Tensor

    def latent(self, kind: Latent = "gap") -> Tensor:
        """One vector per image, float32: the mean of the last map (16 F); with its maximum too (32 F); or the means
        of maps 1 to 4 (30 F). Not defined in the paper: ours."""
        maps = [hidden.float() for hidden in self.hidden]
        if kind == "multi":
            return torch.cat([x.mean((2, 3)) for x in maps[1:]], dim=1)
        mean = maps[-1].mean((2, 3))
        return mean if kind == "gap" else torch.cat([mean, maps[-1].amax((2, 3))], dim=1)


def network_arguments(name: str, **changes: Any) -> dict[str, Any]:
    """A named network's arguments for `SwinUNETR2d`, with what is not None in `changes` put over them.

    Raises:
        ConfigError: no network of that name.
    """
    if name not in NETWORKS:
        raise ConfigError(f"No network {name!r}.{nearest(name, NETWORKS)}", hint=f"Networks: {', '.join(NETWORKS)}")
    return {**NETWORKS[name], **{key: value for key, value in changes.items() if value is not None}}


class SwinUNETR2d(nn.Module):
    """A grey image -> K logits per pixel, by a Swin transformer and a convolutional decoder.

    Args:
        outputs: K.
        feature_size: F, a multiple of 12; the latent is 16 F wide.
        depths: Swin blocks of the four stages; heads: attention heads of each.
        window: side of the attention windows in tokens (ours: 8, which fits 128 px without padding; MONAI: 7).
        residual: a residual convolution before each stage ("v2").
        image_size: side of the images for which masks are kept; others work too.

    Modules: `net`, MONAI's SwinUNETR; its `swinViT` is the encoder.

    Raises:
        ConfigError: sizes that MONAI refuses.
    """

    def __init__(
        self,
        outputs: int,
        *,
        feature_size: int = 36,
        depths: tuple[int, ...] = (2, 2, 8, 6),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: int = 8,
        residual: bool = False,
        image_size: int = 128,
    ) -> None:
        super().__init__()
        if feature_size % 12 or any(feature_size * 2**i % h for i, h in enumerate(heads)):
            raise ConfigError(f"feature_size {feature_size} does not fit 12 and heads {heads}: both must divide it")
        self.net = SwinUNETR(
            in_channels=1,
            out_channels=outputs,
            spatial_dims=2,
            feature_size=feature_size,
            depths=depths,
            num_heads=heads,
            window_size=window,
            use_v2=residual,
        )
        vit = self.net.swinViT
        for i in range(4):
            stages = getattr(vit, f"layers{i + 1}")
            stages[0] = _Stage(stages[0], image_size // 2 ** (i + 1))
        self.width = 16 * feature_size

    def latent_width(self, kind: Latent = "gap") -> int:
        """Length of `Encoded.latent(kind)`."""
        return {"gap": 16, "gap_max": 32, "multi": 30}[kind] * self.width // 16

    def blocks(self) -> list[nn.Module]:
        """Swin blocks and convolutional blocks: the parts worth computing again where memory is short."""
        kinds = (SwinTransformerBlock, UnetrBasicBlock, UnetrUpBlock)
        return [part for part in self.net.modules() if isinstance(part, kinds)]

    def encode(self, x: Tensor) -> Encoded:
        """Latent and feature maps of (B, 1, H, W) in [-1, 1]; the decoder is not run.

        Raises:
            ValueError: the images are not square, or their side is not a multiple of 32.
        """
        if x.shape[-1] % 32 or x.shape[-1] != x.shape[-2]:
            raise ValueError(f"images must be square with a side that is a multiple of 32, not {tuple(x.shape[-2:])}")
        vit = self.net.swinViT
        x = vit.patch_embed(x)
        states = [x]
        for i in range(1, 5):
            x = getattr(vit, f"layers{i}c")[0](x.contiguous()) if vit.use_v2 else x
            x = getattr(vit, f"layers{i}")[0](x.contiguous())
            states.append(x)
        return Encoded(tuple(_norm_channels(state) for state in states), x)

    def decode(self, x: Tensor, hidden: tuple[Tensor, ...]) -> Tensor:
        """Logits (B, K, H, W) of the image and its five hidden states: MONAI's decoder, its order."""
        net = self.net
        up = net.decoder5(net.encoder10(hidden[4]), hidden[3])
        up = net.decoder4(up, net.encoder4(hidden[2]))
        up = net.decoder3(up, net.encoder3(hidden[1]))
        up = net.decoder2(up, net.encoder2(hidden[0]))
        return net.out(net.decoder1(up, net.encoder1(x)))

    def forward(self, x: Tensor) -> tuple[Tensor, Encoded]:
        """Logits (B, K, H, W), and what the encoder made of (B, 1, H, W)."""
        encoded = self.encode(x)
        return self.decode(x, encoded.hidden), encoded


def _norm_channels(x: Tensor) -> Tensor:
    """LayerNorm over the channels of (B, C, H, W), without weights, in float32."""
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x.float().permute(0, 2, 3, 1), [x.shape[1]]).permute(0, 3, 1, 2)


class _Stage(nn.Module):
    """MONAI's BasicLayer with its own blocks and names, fast attention in them, and its mask made once."""

    mask: Tensor

    def __init__(self, layer: BasicLayer, side: int) -> None:
        super().__init__()
        self.window, self.shift = layer.window_size, layer.shift_size
        self.blocks, self.downsample = layer.blocks, cast(nn.Module, layer.downsample)
        for block in self.blocks:
            block.attn = _Attention(cast(WindowAttention, block.attn), min(side, self.window[0]))
        self.side = side
        self.register_buffer("mask", self._mask(side, side, None), persistent=False)

    def _mask(self, height: int, width: int, device: torch.device | None) -> Tensor:
        """0 between tokens of one region, -100 between tokens that only the cyclic shift brought together."""
        window, shift = get_window_size((height, width), self.window, self.shift)
        padded = [-(-length // w) * w for length, w in zip((height, width), window, strict=True)]
        return compute_mask(padded, window, shift, device)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2 C, H / 2, W / 2)."""
        height, width = x.shape[-2:]
        kept = (height, width) == (self.side, self.side)
        mask = self.mask if kept else self._mask(height, width, x.device)
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x, mask)
        return self.downsample(x).permute(0, 3, 1, 2)


class _Attention(nn.Module):
    """MONAI's WindowAttention by `biased_attention`; same weights, same names.

    Bias and mask go in as one tensor over (windows x heads), the same for every image, so it is never copied to the
    size of the batch.
    """

    relative_position_index: Tensor
    index: Tensor

    def __init__(self, attention: WindowAttention, side: int) -> None:
        super().__init__()
        self.num_heads, self.window = attention.num_heads, attention.window_size[0]
        self.relative_position_bias_table = attention.relative_position_bias_table
        self.qkv, self.proj = attention.qkv, attention.proj
        saved = cast(Tensor, attention.relative_position_index)  # MONAI keeps it with the weights
        self.register_buffer("relative_position_index", saved)
        self.register_buffer("index", _relative_index(side, side, self.window), persistent=False)
        self.side = side

    def bias(self, tokens: int) -> Tensor:
        """Relative position bias between the tokens of a square window, (heads, tokens, tokens)."""
        side = round(tokens**0.5)
        index = self.index if side == self.side else _relative_index(side, side, self.window).to(self.index.device)
        rows = self.relative_position_bias_table[index.flatten()]
        return rows.reshape(tokens, tokens, -1).permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (B * windows, n, C), windows fastest; mask: (windows, n, n) or None."""
        total, tokens, width = x.shape
        windows = 1 if mask is None else len(mask)
        qkv = self.qkv(x).reshape(total // windows, windows, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)  # (B, windows * heads, n, C / heads) each
        bias = self.bias(tokens)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).flatten(0, 1)[None]  # (1, windows * heads, n, n)
        out = biased_attention(q, k, v, bias)
        out = out.unflatten(1, (windows, self.num_heads)).transpose(2, 3)  # (B, windows, n, heads, C / heads)
        return self.proj(out.reshape(total, tokens, width))


def _relative_index(height: int, width: int, window: int) -> Tensor:
    """Rows of the (2 w - 1)^2 table for every pair of tokens of a height x width window, at most w on a side.

    With height = width = w it is Swin's own index; for a smaller window MONAI takes the first rows and columns of
    that, which belong to other pairs.
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    dy = y.flatten()[:, None] - y.flatten()[None, :] + window - 1
    dx = x.flatten()[:, None] - x.flatten()[None, :] + window - 1
    return dy * (2 * window - 1) + dx
