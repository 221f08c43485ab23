"""From stored uint8 images to what a network sees, batched on the images' own device.

Cropping, resizing and flipping are one pair of matrix products, `rows @ image @ columns^T`, with a matrix per image.
Nothing here draws random numbers but `draw_crops`; nothing waits for the device.
"""

import math
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_GREY = (0.449,), (0.226,)  # ours: mean and std of the three, for a one-channel stem

_ATTEMPTS = 10  # torchvision's: so many boxes are tried before the whole image is taken


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: leave `function` out of what torch.compile sees.

    Views are many small steps in loops over taps: they cost minutes to compile and gain nothing. This is
    `torch.compiler.disable`, but without importing the compiler (a second) before it is used.
    """
    return cast(Callable[P, R], torch._disable_dynamo(function))


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0 ... 255 -> float32 in [0, 1], same shape.

    Raises:
        ValueError: the images are not uint8 (scaling twice would go unnoticed otherwise).
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    return images.float().div_(255.0)


def stored(images: Tensor, size: int) -> Tensor:
    """Stored uint8 images as float32 in [0, 1].

    Raises:
        ValueError: they are not uint8 (B, 1, size, size).
    """
    if tuple(images.shape[1:]) != (1, size, size):
        raise ValueError(f"images must be (B, 1, {size}, {size}), not {tuple(images.shape)}")
    return to_float(images)


def precise_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Batched float32 matrix product whose result does not depend on autocast or on TF32 being allowed.

    TF32 keeps 10 bits of mantissa, which would drown blur levels that differ by 1e-5. On a GPU each factor is
    therefore split into a part that TF32 holds exactly and the rest; three products bring back about 20 bits, whatever
    the global switches say. Images are small beside the network, so the extra products do not show.

    Args:
        a: (..., m, k) float32. b: (..., k, n) float32.

    Returns:
        (..., m, n) float32.
    """
    with torch.autocast(a.device.type, enabled=False):
        if a.device.type != "cuda":
            return a @ b
        a_high, a_low = split_tf32(a)
        b_high, b_low = split_tf32(b)
        return a_high @ b_high + (a_high @ b_low + a_low @ b_high)


def split_tf32(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 -> (the part with at most 10 bits of mantissa, the rest); their sum is `x` exactly."""
    high = (x.contiguous().view(torch.int32) & -(1 << 13)).view(torch.float32)
    return high, x - high


def draw_crops(
    n: int,
    size: int,
    generator: torch.Generator,
    area: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Boxes of torchvision's RandomResizedCrop for square images, all at once.

    The share of the area is uniform, the ratio width/height log-uniform; a box that does not fit is drawn again, and
    after ten failures the whole image is taken.

    Args:
        n: number of boxes.
        size: side of the images in pixels.
        generator: source of the random numbers; the boxes are on its device.
        area: smallest and largest share of the image's area, in (0, 1].
        ratio: smallest and largest width/height.

    Returns:
        (n, 4) int64: top, left, height, width in pixels.
    """
    u = torch.rand(4, n, _ATTEMPTS, generator=generator, dtype=torch.float64, device=generator.device)
    share = area[0] + (area[1] - area[0]) * u[0]
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[1])
    width = torch.round(size * (share * aspect).sqrt()).long()
    height = torch.round(size * (share / aspect).sqrt()).long()
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.int().argmax(dim=1, keepdim=True)
    width, height = width.gather(1, first)[:, 0], height.gather(1, first)[:, 0]
    none = ~fits.any(dim=1)
    width, height = width.masked_fill(none, size), height.masked_fill(none, size)
    top = (u[2, :, 0] * (size - height + 1)).long()
    left = (u[3, :, 0] * (size - width + 1)).long()
    return torch.stack([top, left, height, width], dim=1)


def shown_share(eval_view: Literal["centre", "whole"]) -> float:
    """Share of an image's side that the deterministic view shows: 7/8 of it, as MAE does, or all."""
    return 224 / 256 if eval_view == "centre" else 1.0


def centre_box(size: int, share: float = 224 / 256) -> Tensor:
    """The deterministic view: the central `share` of a `size` x `size` image, (1, 4) float32 as `crop` takes it.

    Resizing 256 to 256 and cutting out the central 224 (MAE's evaluation view) is `share` 7/8; for other sizes of the
    result the same part of the image is shown (ours).
    """
    side = size * share
    return torch.tensor([[(size - side) / 2, (size - side) / 2, side, side]])


@uncompiled
def crop(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None, inside: bool = True) -> Tensor:
    """Cut a box out of each image and resize it to `size` x `size`: bicubic, antialiased, as Pillow and torchvision do.

    Args:
        images: (B, 1, H, W) float32 in [0, 1].
        boxes: (B, 4) or (1, 4): top, left, height, width in pixels, integers or not.
        size: side of the result in pixels.
        flip: (B,) bool, which to mirror left to right; None: none.
        inside: whether only pixels of the box count (crop, then resize) or also their neighbours (resize, then crop).

    Returns:
        (B, 1, size, size) float32 in [0, 1]; overshoot of the bicubic filter is cut off.
    """
    top, left, height, width = boxes.to(images.device, torch.float32).unbind(1)
    rows = _resampling(top, height, size, images.shape[-2], None, inside)  # (B, size, H)
    columns = _resampling(left, width, size, images.shape[-1], flip, inside)  # (B, size, W)
    out = precise_matmul(precise_matmul(rows[:, None], images), columns[:, None].mT)
    return out.clamp(0.0, 1.0)


def _resampling(start: Tensor, length: Tensor, size: int, pixels: int, flip: Tensor | None, inside: bool) -> Tensor:
    """Weights (B, size, pixels) that resample `length` <= `pixels` pixels from `start` on to `size`; rows sum to 1.

    Few of them are not zero, so only those are computed, as many as the widest box can need.
    """
    index = torch.arange(size, device=start.device, dtype=torch.float32) + 0.5
    steps = index.expand(len(start), -1) if flip is None else torch.where(flip[:, None], size - index, index)
    scale = (length / size)[:, None]
    centre = start[:, None] + steps * scale  # (B, size) place in the source, in pixels
    stretch = scale.clamp(min=1.0)  # shrinking widens the kernel: antialiasing
    count = math.ceil(4 * max(1.0, pixels / size)) + 2
    taps = (centre - 2 * stretch).floor()[:, :, None] + torch.arange(count, device=start.device)  # (B, size, count)
    weights = _cubic((taps + 0.5 - centre[:, :, None]) / stretch[:, :, None])
    lowest, highest = torch.zeros_like(start), torch.full_like(start, pixels)
    if inside:
        lowest, highest = start, start + length
    usable = (taps + 0.5 > lowest[:, None, None]) & (taps + 0.5 < highest[:, None, None])
    weights = weights * usable
    weights = weights / weights.sum(dim=-1, keepdim=True)
    dense = torch.zeros(len(start), size, pixels, device=start.device)
    return dense.scatter_add_(2, taps.long().clamp_(0, pixels - 1), weights)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5 (Pillow's, and torch's when antialiased); zero from 2 on."""
    x = x.abs().clamp_(max=2.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1.0, near, far)
