"""What ARL does to images before the networks see them: views, hidden patches, other light. Pure functions of draws.

Views stand view by view in a batch: all first views, then all second ones, so `x.unflatten(0, (V, B))` splits them.
"""

from typing import Any

import torch
from torch import Tensor

from training.arl_config import ARLConfig
from training.masking import shuffle, visible_patches
from training.models.vit import patchify, unpatchify
from training.transforms import crop, draw_crops
from training.views import blur_each


def draw_all(n: int, cfg: ARLConfig, patches: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The random numbers of a step on `n` images, as `ARL.draw` describes them; N = `patches` of a view."""
    views = cfg.views
    on: dict[str, Any] = {"generator": generator, "device": generator.device}
    local = cfg.local_crops if cfg.sd else 0
    boxes = draw_crops(n * views, cfg.source_size, generator, cfg.crop_area, cfg.crop_ratio)
    drawn = {
        "box": boxes.unflatten(0, (n, views)),
        "flip": torch.rand(n, views, **on) < cfg.flip,
        "noise": torch.rand(n, views, patches, **on),
        "drop": torch.rand(n, **on) < cfg.cond_dropout,
        "wrong": torch.randint(len(cfg.classes), (n,), **on),
        "paths": torch.rand(n, views + local, cfg.depth, 2, **on),
    }
    if cfg.sd:
        factors = 1 + cfg.photometric_range * (2 * torch.rand(n, views, 2, **on) - 1)
        drawn["light"] = torch.where(torch.rand(n, views, 1, **on) < cfg.photometric, factors, 1.0)
        low, high = cfg.blur_sigma
        sigma = low + (high - low) * torch.rand(n, views, **on)
        drawn["sigma"] = sigma * (torch.rand(n, views, **on) < cfg.blur)
    if local:
        boxes = draw_crops(n * local, cfg.source_size, generator, cfg.local_area, cfg.crop_ratio)
        drawn |= {"local_box": boxes.unflatten(0, (n, local)), "local_flip": torch.rand(n, local, **on) < cfg.flip}
    return drawn


def by_view(values: Tensor) -> Tensor:
    """(B, V, ...) draws -> (V * B, ...), view by view."""
    return values.transpose(0, 1).flatten(0, 1)


def crops(images: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """(B, 1, H, W) in [0, 1], boxes (B, V, 4), flips (B, V) -> (V * B, 1, size, size) float32 in [-1, 1]."""
    parts = [crop(images, box[:, view], size, flip[:, view]) for view in range(box.shape[1])]
    return 2.0 * torch.cat(parts) - 1.0


def hidden_patches(noise: Tensor, grid: tuple[int, int], ratio: float, block: int = 1) -> tuple[Tensor, Tensor]:
    """Which patches are hidden: those with the largest noise, as many in every view.

    Args:
        noise: (B, V, N) uniform in [0, 1), N = rows * columns of `grid`.
        ratio: share to hide; 0.6 of 196 are 118.
        block: side of the squares that are hidden together, in patches; only the last square may be hidden in part.

    Returns:
        places (V * B, M) int64 and mask (V * B, N) bool, True where hidden.
    """
    flat = by_view(noise)
    if block > 1:  # the rank of a square decides; inside the last square each patch's own number does
        own = flat.unflatten(1, grid)
        first = own[:, ::block, ::block]
        rank = shuffle(first.flatten(1))[1].view_as(first)
        squares = rank.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, : grid[0], : grid[1]]
        flat = (squares + own).flatten(1)
    places = shuffle(flat)[0][:, visible_patches(flat.shape[1], ratio) :]
    return places, torch.zeros_like(flat, dtype=torch.bool).scatter(1, places, True)


def relit(sharp: Tensor, light: Tensor, sigma: Tensor, max_sigma: float) -> Tensor:
    """Other brightness and contrast, then light blur. For the teacher's eyes only: never the pixels to rebuild.

    Args:
        sharp: (V * B, 1, S, S) in [-1, 1].
        light: (B, V, 2) factors of brightness and of contrast around the mean. sigma: (B, V) pixels, 0 for no blur.
        max_sigma: the largest sigma that can be drawn.

    Returns:
        The same shape, in [-1, 1].
    """
    factors = by_view(light)[:, :, None, None]
    grey = (sharp[:, 0] + 1) / 2 * factors[:, 0]
    mean = grey.mean((1, 2), keepdim=True)
    grey = ((grey - mean) * factors[:, 1] + mean).clamp(0.0, 1.0)
    return 2.0 * blur_each(grey, by_view(sigma), max_sigma)[:, None] - 1.0


def pasted(pixels: Tensor, sharp: Tensor, places: Tensor, patch: int) -> Tensor:
    """The images with these patches in place: (n, M, p * p) into (n, 1, S, S) at places (n, M)."""
    where = places[:, :, None].expand_as(pixels)
    return unpatchify(patchify(sharp, patch).to(pixels.dtype).scatter(1, where, pixels), patch, 1)
