"""Several views of each image, made in one batch on the device: n geometries, each in m photometric versions.

`draw_views` is the only place with random numbers; what it gives says everything about a view, so views that share a
geometry line up pixel by pixel. TUSA takes 2 x 2 views; other recipes may take n x 1.

Source: TUSA (Grutman et al., 2026) for the pairing and the kinds of change; every strength is ours.
"""

import math
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from training.transforms import uncompiled

Range = tuple[float, float]


class ViewConfig(BaseModel):
    """How far views may differ. TUSA names the photometric changes; every number, and all of the geometry, is ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # geometry; never upside down: depth, shadows and attenuation have a direction
    flip: float = Field(default=0.5, ge=0, le=1)  # probability of mirroring left to right
    area: Range = (0.6, 1.0)  # share of the image's area in view
    aspect: Range = (0.9, 1.1)  # width/height of the part in view
    rotate: float = Field(default=10.0, ge=0, le=180)  # degrees, either way
    shift: float = Field(default=0.1, ge=0, le=1)  # share of the side, either way; what lies outside is black

    # photometry, on grey values in [0, 1]
    brightness: float = Field(default=0.2, ge=0)  # added, either way
    contrast: Range = (0.75, 1.3)  # factor around the view's mean
    blur: float = Field(default=0.5, ge=0, le=1)  # probability
    sigma: Range = (0.1, 1.5)  # pixels of the view
    erase: float = Field(default=0.5, ge=0, le=1)  # probability of one box
    erase_area: Range = (0.02, 0.15)  # share of the view
    erase_aspect: Range = (0.5, 2.0)  # width/height of the box
    erase_fill: float = Field(default=0.5, ge=0, le=1)  # probability that the box is black; else the view's mean

    @model_validator(mode="after")
    def _sane(self) -> "ViewConfig":
        for name in ("area", "aspect", "contrast", "sigma", "erase_area", "erase_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be (smallest, largest) above 0, not {(low, high)}")
        if self.area[1] > 1 or self.erase_area[1] >= 1:
            raise ValueError("area and erase_area are shares of the image: at most 1, and below 1")
        return self


def identity_photometry(cfg: ViewConfig) -> ViewConfig:
    """The same geometry without any photometric change."""
    still = {"brightness": 0.0, "contrast": (1.0, 1.0), "blur": 0.0, "erase": 0.0}
    return cfg.model_copy(update=still)


def draw_views(n: int, spatial: int, colours: int, cfg: ViewConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """All random numbers of `spatial` x `colours` views of `n` images, on the generator's device, float32.

    Returns:
        "affine" (n, S, 2, 3): from the view's coordinates in [-1, 1] (x, y) to the image's, as `affine_grid` has it;
        and per view "gain", "offset", "sigma" (n, S, C), "fill" (n, S, C) bool, "box" (n, S, C, 4): left, top, right,
        bottom as shares of the side; sigma 0 and a box without area mean no blur and no erasing.
    """

    def uniform(*shape: int, between: Range = (0.0, 1.0)) -> Tensor:
        values = torch.rand(*shape, generator=generator, device=generator.device)
        return between[0] + (between[1] - between[0]) * values

    size = (n, spatial, colours)
    drawn = {"affine": _affine(uniform(n, spatial, 6), cfg)}
    drawn["gain"] = uniform(*size, between=cfg.contrast)
    drawn["offset"] = uniform(*size, between=(-cfg.brightness, cfg.brightness))
    drawn["sigma"] = uniform(*size, between=cfg.sigma) * (uniform(*size) < cfg.blur)
    area = uniform(*size, between=cfg.erase_area) * (uniform(*size) < cfg.erase)
    drawn["box"] = _boxes(area, uniform(*size), uniform(*size, 2), cfg)
    drawn["fill"] = uniform(*size) < cfg.erase_fill
    return drawn


def _affine(u: Tensor, cfg: ViewConfig) -> Tensor:
    """(..., 6) uniform numbers -> (..., 2, 3): crop, rotate, mirror, shift."""
    flip, area, aspect, angle, right, down = u.unbind(-1)
    share = (cfg.area[0] + (cfg.area[1] - cfg.area[0]) * area).sqrt()
    stretch = torch.exp(_log_between(cfg.aspect, aspect) / 2)
    width, height = share * stretch, share / stretch
    sign = 1.0 - 2.0 * (flip < cfg.flip)
    theta = (2 * angle - 1) * math.radians(cfg.rotate)
    cos, sin = theta.cos(), theta.sin()
    move = [2 * cfg.shift * (2 * way - 1) for way in (right, down)]  # a side is 2 long in these coordinates
    x = torch.stack([cos * width * sign, -sin * height, move[0]], dim=-1)
    y = torch.stack([sin * width * sign, cos * height, move[1]], dim=-1)
    return torch.stack([x, y], dim=-2)


def _boxes(area: Tensor, u: Tensor, corner: Tensor, cfg: ViewConfig) -> Tensor:
    """Areas (...), uniform numbers (...) and (..., 2) -> (..., 4) boxes inside the unit square."""
    ratio = torch.exp(_log_between(cfg.erase_aspect, u))
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1).clamp(max=1.0)
    start = corner * (1 - sides)
    return torch.cat([start, start + sides], dim=-1)


def _log_between(between: Range, u: Tensor) -> Tensor:
    low, high = math.log(between[0]), math.log(between[1])
    return low + (high - low) * u


@uncompiled
def spatial_views(images: Tensor, affine: Tensor, size: int) -> Tensor:
    """Every geometry of every image, in one sampling call.

    The image is sampled about as finely as it is stored and then averaged over squares, so that shrinking makes no
    false speckle (aliasing); ours.

    Args:
        images: (B, 1, H, W) float32 in [0, 1].
        affine: (B, S, 2, 3) from `draw_views`.
        size: side of the views in pixels.

    Returns:
        (B, S, 1, size, size) float32 in [0, 1]; black outside the image.
    """
    batch, spatial = affine.shape[:2]
    finer = max(1, images.shape[-1] // size)
    side = size * finer
    place = (2 * torch.arange(side, device=images.device) + 1) / side - 1  # pixel centres in [-1, 1]
    a = affine.reshape(-1, 2, 3, 1, 1)
    # by hand and not by `affine_grid`, whose matrix product would lose bits under autocast
    grid = a[:, :, 0] * place[None, None, None, :] + a[:, :, 1] * place[None, None, :, None] + a[:, :, 2]
    source = images[:, None].expand(-1, spatial, -1, -1, -1).flatten(0, 1)
    with torch.autocast(images.device.type, enabled=False):
        views = F.grid_sample(source, grid.permute(0, 2, 3, 1), padding_mode="zeros", align_corners=False)
        views = F.avg_pool2d(views, finer) if finer > 1 else views
    return views.unflatten(0, (batch, spatial)).clamp(0.0, 1.0)


@uncompiled
def photometric_views(views: Tensor, draws: dict[str, Tensor], max_sigma: float) -> Tensor:
    """Every photometric version of every view: contrast and brightness, then blur, then one erased box.

    Erasing comes after the split into versions, so that two versions of a view do not share the hole.

    Args:
        views: (B, S, 1, H, W) float32 in [0, 1].
        draws: of `draw_views`.
        max_sigma: the largest sigma that can be drawn, in pixels; it decides how far the blur reaches.

    Returns:
        (B, S, C, 1, H, W) float32 in [0, 1].
    """
    shape = (*draws["gain"].shape, 1, *views.shape[-2:])
    flat: dict[str, Any] = {name: draws[name].flatten(0, 2) for name in ("gain", "offset", "sigma", "fill", "box")}
    x = views[:, :, None].expand(shape).flatten(0, 2)[:, 0]  # (N, H, W), N = B * S * C
    mean = x.mean((1, 2))
    gain = flat["gain"]
    x = x * gain[:, None, None] + ((1 - gain) * mean + flat["offset"])[:, None, None]
    x = blur_each(x.clamp(0.0, 1.0), flat["sigma"], max_sigma)
    colour = torch.where(flat["fill"], torch.zeros_like(mean), x.mean((1, 2)))
    x = torch.where(inside_boxes(flat["box"], shape[-2], shape[-1]), colour[:, None, None], x)
    return x.clamp(0.0, 1.0).reshape(shape)


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels have their centre in the box: (N, 4) left, top, right, bottom as shares -> (N, H, W) bool."""
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    columns, rows = (x >= left) & (x < right), (y >= top) & (y < bottom)
    return rows[:, :, None] & columns[:, None, :]


@uncompiled
def blur_each(images: Tensor, sigmas: Tensor, max_sigma: float) -> Tensor:
    """Gaussian blur of each image by its own sigma; sigma 0 changes no bit.

    Args:
        images: (N, H, W) float32. sigmas: (N,) pixels, at most `max_sigma`.
        max_sigma: the kernel reaches 4 of these, or to the image's edge if that is nearer; mirrored at the border.

    Returns:
        (N, H, W) float32, the same whatever autocast or TF32 say: sums of shifted images, no matrix products.
    """
    radius = min(math.ceil(4 * max_sigma), images.shape[-1] - 1, images.shape[-2] - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigmas.clamp(min=1e-2)[:, None]) ** 2)  # 1e-2: the neighbours vanish
    weights = weights / weights.sum(1, keepdim=True)  # (N, 2 * radius + 1)
    for dim in (1, 2):
        pad = (radius, radius, 0, 0) if dim == 2 else (0, 0, radius, radius)
        wide, length = F.pad(images[:, None], pad, mode="reflect")[:, 0], images.shape[dim]
        total = torch.zeros_like(images)
        for k in range(2 * radius + 1):  # product and sum in one pass over the images
            total.addcmul_(weights[:, k, None, None], wide.narrow(dim, k, length))
        images = total
    return images
