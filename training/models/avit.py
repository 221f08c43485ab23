"""A-ViT: a ViT whose blocks take keys and values from where the organ says. Read `ACDTBlock.forward` first.

timm's VisionTransformer with timm's keys; the blocks carry one more part, `acdt`. At initialisation, and without that
part, the network is the plain ViT, so weights of plain ViTs load.

Source: ARL, "Anatomy-aware Representation Learning for Medical Ultrasound" (ICLR 2026), from a summary; the choices
that it leaves open are arguments, marked `ours` in the recipe's config.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.deformable import Backend, BaseGrid, base_offsets, deform_conv
from training.models.positions import sincos_2d
from usdata.errors import ConfigError

WeightMode = Literal["depthwise", "scalar", "full"]


@dataclass(frozen=True)
class ACDTOptions:
    """What the paper leaves open of an anatomy-conditional deformable transformer block; every default is ours."""

    classes: int = 16
    taps: int = 9  # K: sampling points per place, 9 or 1
    base_grid: BaseGrid = "3x3"  # "none": the literal formula, all taps start at p
    offset_groups: int = 1  # groups of channels with offsets of their own
    offset_range: float | None = None  # patches; offsets are range * tanh(.); None: unbounded
    w_mode: WeightMode = "depthwise"  # w_k per channel, one for all, or a matrix (the DCN reading)
    w_std: float = 0.0  # noise on the taps at initialisation; above 0 the block no longer starts as the plain one
    backend: Backend = "auto"


class Offsets(nn.Module):
    """g_theta: depthwise 3x3 convolution, LayerNorm, GELU, Linear. Not linear, or organ and content would not interact.

    The last layer starts at zero. Source: the shape is that of deformable attention (DAT); ours here.
    """

    def __init__(self, dim: int, options: ACDTOptions) -> None:
        super().__init__()
        self.options = options
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, 2 * options.taps * options.offset_groups)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, D) conditioned map -> (B, H, W, G, K, 2) of (dy, dx) in patches, float32."""
        mixed = self.depthwise(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        raw = self.out(F.gelu(self.norm(mixed)))
        raw = raw if raw.dtype == torch.float64 else raw.float()
        reach = self.options.offset_range
        return (raw if reach is None else reach * raw.tanh()).unflatten(-1, (self.options.offset_groups, -1, 2))


class ACDT(nn.Module):
    """y_P = sum_k w_k S(x_P, p + p_k + g_theta(x_P + AC)_k): the organ acts through the offsets alone.

    Args:
        dim: channels D.
        options: what the paper leaves open.
        anatomy: AC, a Linear from the organ's vector to D; its bias is the null class. None: one of its own.
    """

    def __init__(self, dim: int, options: ACDTOptions, anatomy: nn.Linear | None = None) -> None:
        super().__init__()
        if dim % options.offset_groups:
            raise ConfigError(f"{dim} channels do not fall into {options.offset_groups} offset groups.")
        self.options = options
        self.anatomy = nn.Linear(options.classes, dim) if anatomy is None else anatomy
        self.offsets = Offsets(dim, options)
        shape = {"depthwise": (dim, options.taps), "scalar": (options.taps,), "full": (dim, dim, options.taps)}
        self.w = nn.Parameter(torch.empty(shape[options.w_mode]))

    def reset(self) -> None:
        """Centre tap 1 (the identity), other taps 0 or small, zero offsets. The vectors of the organs are small."""
        centre = self.options.taps // 2
        with torch.no_grad():
            nn.init.normal_(self.anatomy.weight, std=0.02)
            nn.init.zeros_(self.anatomy.bias)
            nn.init.kaiming_normal_(self.offsets.depthwise.weight, nonlinearity="linear")
            nn.init.zeros_(cast(Tensor, self.offsets.depthwise.bias))
            nn.init.zeros_(self.offsets.out.weight)
            nn.init.zeros_(self.offsets.out.bias)
            nn.init.normal_(self.w, std=self.options.w_std)
            self.w[..., centre] += torch.eye(len(self.w)) if self.options.w_mode == "full" else 1.0
            if self.options.base_grid == "none" and self.options.taps > 1:  # else all taps stay one and the same
                start = base_offsets(self.options.taps, "3x3").flatten().repeat(self.options.offset_groups)
                self.offsets.out.bias.copy_(start)

    def forward(self, patches: Tensor, condition: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Sample the keys' and values' source.

        Args:
            patches: (B, N, D) normalised patch tokens x_P, row by row over `grid`.
            condition: (B, classes) one-hot, probabilities, or zeros for "organ unknown".
            grid: rows and columns, N = rows * columns.

        Returns:
            y_P (B, N, D), and the offsets (B, H, W, G, K, 2) of (dy, dx) in patches.
        """
        conditioned = patches + self.anatomy(condition)[:, None]  # x_P,AC: only g_theta sees it
        offsets = self.offsets(conditioned.unflatten(1, grid))
        sampled = deform_conv(
            patches.unflatten(1, grid), offsets, self.w, base=self.options.base_grid, backend=self.options.backend
        )
        return sampled.flatten(1, 2).to(patches.dtype), offsets


class ACDTBlock(Block):
    """timm's pre-norm block; with `acdt`, keys and values come from the sampled map. Without it, timm's very own.

    Args of `forward`: x (B, 1 + N, D) with the class token first; condition (B, classes); grid (rows, columns);
    scale: (B, 2) factors of the two residual branches (drop path), or None.
    """

    acdt: ACDT | None

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.acdt = None

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        condition: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        scale: Tensor | None = None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        y = self.norm1(x)
        if self.acdt is None:
            mixed = self.attn(y)
        else:
            assert condition is not None and grid is not None
            sampled, offsets = self.acdt(y[:, 1:], condition, grid)
            if record is not None:
                record.append(offsets)
            mixed = self.attend(y, torch.cat([y[:, :1], sampled], dim=1))  # Q of [CLS; x_P], K and V of [CLS; y_P]
        x = x + (mixed if scale is None else mixed * scale[:, :1, None])
        mixed = self.mlp(self.norm2(x))
        return x + (mixed if scale is None else mixed * scale[:, 1:, None])

    def attend(self, queries: Tensor, sources: Tensor) -> Tensor:
        """Multi-head attention of (B, L, D) queries on keys and values of (B, L, D) sources, with timm's weights."""
        attn, width = cast(Any, self.attn), queries.shape[-1]
        weight, bias = attn.qkv.weight, attn.qkv.bias
        q = F.linear(queries, weight[:width], bias[:width])
        k, v = F.linear(sources, weight[width:], bias[width:]).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        projected: Tensor = attn.proj(out)
        return projected


class AViT(VisionTransformer):
    """timm's ViT without head, of `ACDTBlock`s. `acdt` None: plain blocks, with exactly timm's keys and results.

    Args:
        img_size, patch_size, in_chans, embed_dim, depth, num_heads: as timm's.
        acdt: the deformable parts' options; None: none.
        shared_anatomy: one AC for all blocks instead of one each.
        sincos: start the learned positions as sines and cosines instead of N(0, 0.02).
    """

    def __init__(
        self,
        *,
        acdt: ACDTOptions | None,
        shared_anatomy: bool = False,
        sincos: bool = False,
        embed_dim: int = 768,
        depth: int = 12,
        **arguments: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, depth=depth, num_classes=0, block_fn=ACDTBlock, **arguments)
        if sincos:
            with torch.no_grad():
                cast(nn.Parameter, self.pos_embed)[0, 1:] = sincos_2d(embed_dim, *self.patch_embed.grid_size)
        if acdt is None:
            return
        shared = nn.Linear(acdt.classes, embed_dim) if shared_anatomy else None
        for part in self.blocks:
            part.acdt = ACDT(embed_dim, acdt, shared)
            part.acdt.reset()

    def tokens(
        self,
        images: Tensor,
        condition: Tensor,
        *,
        hidden: Tensor | None = None,
        mask_token: Tensor | None = None,
        scales: Tensor | None = None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Encode images of any size that the patches divide.

        Args:
            images: (B, C, S, T) in [-1, 1].
            condition: (B, classes) float; zeros mean "organ unknown". Plain blocks don't look at it.
            hidden: (B, N) bool, True where the embedded patch is replaced by `mask_token` (D,), before positions.
            scales: (B, depth, 2) factors of the residual branches (`drop_path_scales`); None: all 1.
            record: a list that gets each ACDT block's offsets, (B, H, W, G, K, 2).

        Returns:
            (B, 1 + N, D) after the final norm, the class token first.

        Raises:
            ConfigError: the patches do not divide the image.
        """
        side = self.patch_embed.patch_size
        if images.shape[-2] % side[0] or images.shape[-1] % side[1]:
            raise ConfigError(f"Images of {tuple(images.shape[-2:])} can't be cut into patches of {side}.")
        embedded = self.patch_embed.proj(images)  # (B, D, H, W)
        grid = (embedded.shape[-2], embedded.shape[-1])
        patches = embedded.flatten(2).transpose(1, 2)
        if hidden is not None:
            assert mask_token is not None
            patches = torch.where(hidden[:, :, None], mask_token.to(patches.dtype), patches)
        cls = cast(Tensor, self.cls_token).expand(len(images), -1, -1)
        x = torch.cat([cls.to(patches.dtype), patches], dim=1) + self._positions(grid)
        for number, block in enumerate(self.blocks):
            scale = None if scales is None else scales[:, number].to(x.dtype)
            x = block(x, condition, grid, scale, record)
        return cast(Tensor, self.norm(x))

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        positions, own = cast(Tensor, self.pos_embed), self.patch_embed.grid_size
        if grid == tuple(own):
            return positions
        return resample_abs_pos_embed(positions, new_size=list(grid), old_size=list(own), num_prefix_tokens=1)


def drop_path_scales(noise: Tensor, rate: float) -> Tensor:
    """Stochastic depth from given random numbers: 0 drops a branch, 1 / (1 - p) keeps it.

    Args:
        noise: (B, depth, 2) uniform in [0, 1).
        rate: probability p of the last block; it rises linearly from 0 at the first.

    Returns:
        (B, depth, 2) float32.
    """
    chance = torch.linspace(0.0, rate, noise.shape[1], device=noise.device)[:, None]
    return (noise >= chance).float() / (1 - chance)


def load_plain(vit: AViT, state: Mapping[str, Tensor]) -> list[str]:
    """Start from a plain ViT's weights; RGB patch kernels are summed into one channel, the head is left out.

    Returns:
        Names that `state` does not have: those of the ACDT parts, which keep their identity.

    Raises:
        ConfigError: the weights are not of this ViT.
    """
    own = vit.state_dict()
    weights = {name: value for name, value in state.items() if not name.startswith(("head.", "fc_norm."))}
    kernel = weights.get("patch_embed.proj.weight")
    if kernel is not None and kernel.shape[1] == 3 and own["patch_embed.proj.weight"].shape[1] == 1:
        weights["patch_embed.proj.weight"] = kernel.sum(dim=1, keepdim=True)
    missing = sorted(name for name in own.keys() - weights.keys())
    wrong = [f"missing {name}" for name in missing if ".acdt." not in name]
    wrong += [f"unexpected {name}" for name in sorted(weights.keys() - own.keys())]
    wrong += [
        f"{name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    if wrong:
        raise ConfigError(f"These are not the weights of this ViT: {'; '.join(wrong[:5])}.", step="load")
    vit.load_state_dict(weights, strict=False)
    return missing
