"""timm's Vision Transformer, fed with patches instead of images, so that masked patches cost nothing.

The module stays timm's own, keys included: what is trained here loads with
`timm.create_model(..., checkpoint_path=...)`.
"""

from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from training.models.positions import sincos_2d
from usdata.errors import ConfigError, nearest


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images into patches: (B, C, H, W) -> (B, N, patch * patch * C).

    N goes row by row over the grid; inside a patch the order is row, column, channel (channel fastest), as in MAE.

    Raises:
        ValueError: H or W is not a multiple of `patch`.
    """
    batch, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(f"images of {height}x{width} can't be cut into patches of {patch}")
    grid = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, channels: int) -> Tensor:
    """The inverse of `patchify` for a square grid: (B, N, patch * patch * C) -> (B, C, S, S).

    Raises:
        ValueError: N is not a square.
    """
    batch, number = patches.shape[:2]
    side = round(number**0.5)
    if side * side != number:
        raise ValueError(f"{number} patches make no square grid")
    grid = patches.reshape(batch, side, side, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * patch, side * patch)


def build_vit(name: str, **arguments: Any) -> VisionTransformer:
    """A timm ViT with fresh weights, initialised as MAE does, its positions fixed sines and cosines.

    Args:
        name: a timm model name, e.g. "vit_base_patch16_224".
        arguments: what to override in it: img_size, in_chans, num_classes, embed_dim, ...

    Raises:
        ConfigError: timm has no such model, or it is no plain ViT (class token, absolute positions, one patch layer).
    """
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}.{nearest(name, timm.list_models('vit_*'))}")
    vit = cast(VisionTransformer, timm.create_model(name, **arguments))
    _check_plain(name, vit)
    init_mae(vit)
    with torch.no_grad():
        positions = position_rows(vit)
        positions.zero_()  # the class token's own row stays zero
        positions[0, 1:] = sincos_2d(vit.embed_dim, *vit.patch_embed.grid_size)
    return vit


def position_rows(vit: VisionTransformer) -> nn.Parameter:
    """The ViT's positions, (1, 1 + N, D), the class token's row first. A level token has no row."""
    return cast(nn.Parameter, vit.pos_embed)


def _check_plain(name: str, vit: VisionTransformer) -> None:
    plain = (
        type(vit) is VisionTransformer
        and vit.has_class_token
        and not vit.num_reg_tokens
        and not vit.no_embed_class
        and vit.pos_embed is not None
        and isinstance(vit.patch_embed.proj, nn.Conv2d)
        and isinstance(vit.patch_embed.norm, nn.Identity)
    )
    if not plain:
        raise ConfigError(
            f"timm's {name!r} is not a plain ViT with a class token and absolute positions.",
            hint="Use vit_tiny/small/base/large_patch16_224 or another of that family.",
        )


def init_mae(module: nn.Module) -> None:
    """MAE's initialisation, in place: Xavier-uniform Linears and patch layer, zero biases, class token N(0, 0.02)."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.view(part.weight.shape[0], -1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        if name.endswith(("cls_token", "mask_token")):
            nn.init.normal_(parameter, std=0.02)


def encode_patches(
    vit: VisionTransformer,
    patches: Tensor,
    keep: Tensor | None = None,
    token: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """The encoder on the patches it may see. Tokens come out as [class, (extra,) patches in the order given].

    Args:
        patches: (B, V, p * p * C) normalised pixels as `patchify` orders them, already reduced to the visible ones.
        keep: (B, V) int64, where each of them sits in the grid; None: all N patches in grid order.
        token: (B, D) one extra token after the class token, without a position; None: no such token.
        shift: (B, D) added to every patch embedding; None: nothing.

    Returns:
        (B, 1 + (1 if token is given) + V, D), after the final norm.
    """
    conv = vit.patch_embed.proj
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # (D, p * p * C): the convolution as a Linear on `patches`
    tokens = nn.functional.linear(patches, weight, conv.bias)
    positions = position_rows(vit)
    position = positions[0, 1:]  # (N, D)
    tokens = tokens + (position if keep is None else position[keep])
    if shift is not None:
        tokens = tokens + shift[:, None]
    prefix = (cast(nn.Parameter, vit.cls_token) + positions[:, :1]).expand(len(patches), -1, -1)
    parts = [prefix, tokens] if token is None else [prefix, token[:, None], tokens]
    joined = torch.cat([part.to(tokens.dtype) for part in parts], dim=1)
    return vit.norm(vit.blocks(vit.norm_pre(joined)))
