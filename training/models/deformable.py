"""Deformable convolution of a token map, with several back-ends that agree: read `sample_places`, then `_dense`.

y(p) = sum_k w_k S(x, p + p_k + dp_k), S bilinear, zero outside the map, p_k the 3x3 grid (or 0), no modulation mask.
Offsets are (dy, dx) in patches; places and bilinear weights are float32 (or float64) even under autocast, because
bfloat16 has a spacing of 1/16 patch between 8 and 16.

Source: ARL (A-ViT), deformable convolution; the 3x3 base grid and zero padding are DCN's (Dai et al., 2017), ours here.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from usdata.errors import ConfigError, nearest

Backend = Literal["auto", "fused", "grid_sample", "bag", "dense"]
BaseGrid = Literal["3x3", "none"]


def base_offsets(taps: int, base: BaseGrid) -> Tensor:
    """p_k: (taps, 2) float32 of (dy, dx) in patches, row by row; zeros for base "none" or a single tap.

    Raises:
        ValueError: `taps` is neither 1 nor 9.
    """
    if taps not in (1, 9):
        raise ValueError(f"a deformable convolution here has 1 or 9 taps, not {taps}")
    if taps == 1 or base == "none":
        return torch.zeros(taps, 2)
    steps = torch.arange(-1.0, 2.0)
    return torch.cartesian_prod(steps, steps)


def sample_places(offsets: Tensor, base: BaseGrid) -> Tensor:
    """Where each tap samples: p + p_k + dp_k.

    Args:
        offsets: (B, H, W, G, K, 2) of (dy, dx) in patches; G groups of channels, K taps.
        base: the fixed part p_k.

    Returns:
        The same shape, float32 (float64 for float64), in patches: row in [..., 0], column in [..., 1]; the centre of
        the first patch is 0.
    """
    offsets = offsets if offsets.dtype == torch.float64 else offsets.float()
    rows, columns, taps = offsets.shape[1], offsets.shape[2], offsets.shape[4]
    row = torch.arange(rows, device=offsets.device, dtype=offsets.dtype)
    column = torch.arange(columns, device=offsets.device, dtype=offsets.dtype)
    grid = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1)
    return offsets + grid[:, :, None, None] + base_offsets(taps, base).to(offsets)


def deform_conv(
    x: Tensor, offsets: Tensor, weight: Tensor, *, base: BaseGrid = "3x3", backend: Backend = "auto"
) -> Tensor:
    """Deformable convolution of a map of tokens.

    Args:
        x: (B, H, W, D) channels last.
        offsets: (B, H, W, G, K, 2) of (dy, dx) in patches; the D channels fall into G equal consecutive groups.
        weight: w_k as (K,) one for all channels, (D, K) one per channel, or (D, D, K) from all channels to all.
        base: "3x3": taps start on the 3x3 neighbourhood (zero offsets: an ordinary convolution); "none": all at p.
        backend: see `choose_backend`.

    Returns:
        (B, H, W, D), float32 (float64 for float64 `x`), whatever autocast says.

    Raises:
        ConfigError: an unknown back-end, or "fused" where torchvision's operator does not work.
    """
    name = choose_backend(backend, x.device.type)
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        x, offsets, weight = x.to(dtype), offsets.to(dtype), weight.to(dtype)
        if name == "fused":
            return _fused(x, offsets, weight, base)
        return _BACKENDS[name](x, sample_places(offsets, base), weight)


def choose_backend(backend: str, device: str) -> str:
    """The back-end that `backend` means on a device type ("cpu", "cuda").

    "auto": torchvision's fused operator where a tiny call of it works, else "grid_sample" on a GPU and "bag" on a CPU.

    Raises:
        ConfigError: unknown name (with the nearest), or "fused" where torchvision's operator does not work.
    """
    if backend not in get_args(Backend):
        raise ConfigError(f"No deformable back-end {backend!r}.{nearest(backend, get_args(Backend))}")
    if backend == "fused" and not fused_works(device):
        raise ConfigError(
            "torchvision's deform_conv2d does not work here: its compiled operators do not fit this torch.",
            hint="Let the recipe choose:  --set backend=auto",
        )
    if backend != "auto":
        return backend
    if device == "cpu":  # measured: the bag costs half of grid_sample there
        return "fused" if fused_works(device) else "bag"
    return "fused" if fused_works(device) else "grid_sample"


@lru_cache(maxsize=8)
def fused_works(device: str) -> bool:
    """Whether a tiny call of torchvision's compiled operator succeeds on a device type."""
    try:
        from torchvision.ops import deform_conv2d

        x = torch.ones(1, 1, 2, 2, device=device)
        found = deform_conv2d(x, torch.zeros(1, 2, 2, 2, device=device), torch.ones(1, 1, 1, 1, device=device))
    except (ImportError, RuntimeError, NotImplementedError):  # not installed, or built for another torch
        return False
    return bool((found == 1).all())


def _contract(samples: Tensor, weight: Tensor) -> Tensor:
    """(B, N, K, D) samples and the weights in one of their three forms -> (B, N, D)."""
    if weight.ndim == 1:
        return torch.einsum("bnkd,k->bnd", samples, weight)
    if weight.ndim == 2:
        return torch.einsum("bnkd,dk->bnd", samples, weight)
    return torch.einsum("bnkc,dck->bnd", samples, weight)


def _added(total: Tensor | None, sample: Tensor, weight: Tensor, tap: int) -> Tensor:
    """One tap's share of the result, (..., D) samples times w_k, added to that of the taps before."""
    if weight.ndim == 3:
        part = F.linear(sample, weight[..., tap])
        return part if total is None else total + part
    return sample * weight[..., tap] if total is None else torch.addcmul(total, sample, weight[..., tap])


def _grid_sample(x: Tensor, places: Tensor, weight: Tensor) -> Tensor:
    """All taps in one call, stacked along the grid's height; makes the K-fold tensor."""
    batch, rows, columns, width = x.shape
    groups, taps = places.shape[3], places.shape[4]
    size = torch.tensor([rows, columns], dtype=places.dtype, device=places.device)
    scaled = (2 * places + 1) / size - 1  # align_corners=False: the map's border is at -1 and 1
    grid = scaled.flip(-1).permute(0, 3, 4, 1, 2, 5).reshape(batch * groups, taps * rows, columns, 2)  # (x, y)
    maps = x.permute(0, 3, 1, 2).reshape(batch * groups, width // groups, rows, columns)
    found = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    samples = found.reshape(batch, width, taps, rows * columns).permute(0, 3, 2, 1)  # (B, N, K, D)
    return _contract(samples, weight).reshape(x.shape)


def _bag(x: Tensor, places: Tensor, weight: Tensor) -> Tensor:
    """Sums of the four corner rows by embedding bags, tap by tap: the K-fold tensor is never made."""
    batch, rows, columns, width = x.shape
    groups, taps = places.shape[3], places.shape[4]
    table = x.reshape(batch * rows * columns * groups, width // groups)
    index, share = _corners(places, rows, columns)  # (B, N, G, K, 4) each
    index = index.reshape(-1, taps, 4)
    share = share.reshape(-1, taps, 4)
    if weight.ndim == 1:  # every channel weighs alike, so all 4 K rows fit one bag
        share = (share * weight[:, None]).reshape(-1, 4 * taps)
        out = F.embedding_bag(index.reshape(-1, 4 * taps), table, mode="sum", per_sample_weights=share)
        return out.reshape(x.shape)
    total: Tensor | None = None
    for tap in range(taps):
        bags = F.embedding_bag(index[:, tap], table, mode="sum", per_sample_weights=share[:, tap].contiguous())
        total = _added(total, bags.reshape(batch, rows * columns, width), weight, tap)
    assert total is not None
    return total.reshape(x.shape)


def _corners(places: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The four rows of the (B * N * G)-row table around each place, and their bilinear weights, 0 outside the map."""
    batch, groups = places.shape[0], places.shape[3]
    low = places.detach().floor()
    high_share = places - low  # keeps the gradient
    corners = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], device=places.device, dtype=places.dtype)
    at = low[..., None, :] + corners  # (B, H, W, G, K, 4, 2)
    part = torch.where(corners > 0, high_share[..., None, :], 1 - high_share[..., None, :])
    last = torch.tensor([rows - 1, columns - 1], device=places.device, dtype=places.dtype)
    inside = ((at >= 0) & (at <= last)).all(dim=-1)
    share = part.prod(dim=-1) * inside
    row, column = at.clamp(min=0).minimum(last).long().unbind(-1)
    image = torch.arange(batch, device=places.device).view(-1, 1, 1, 1, 1, 1)
    group = torch.arange(groups, device=places.device).view(-1, 1, 1)
    return ((image * rows + row) * columns + column) * groups + group, share


def _dense(x: Tensor, places: Tensor, weight: Tensor) -> Tensor:
    """Each tap as an N x N matrix of tents max(0, 1 - |distance|) times the tokens: no gather, good for compilers."""
    batch, rows, columns, width = x.shape
    groups, taps = places.shape[3], places.shape[4]
    tokens = x.reshape(batch, rows * columns, groups, width // groups).transpose(1, 2)  # (B, G, N, D / G)
    row = torch.arange(rows, device=x.device, dtype=places.dtype)
    column = torch.arange(columns, device=x.device, dtype=places.dtype)
    where = places.flatten(1, 2).transpose(1, 2)  # (B, G, N, K, 2)
    total: Tensor | None = None
    for tap in range(taps):
        tall = (1 - (where[..., tap, :1] - row).abs()).clamp(min=0)  # (B, G, N, H)
        wide = (1 - (where[..., tap, 1:] - column).abs()).clamp(min=0)  # (B, G, N, W)
        matrix = (tall[..., :, None] * wide[..., None, :]).flatten(3)  # (B, G, N, N)
        found = (matrix @ tokens).transpose(1, 2).reshape(batch, rows * columns, width)
        total = _added(total, found, weight, tap)
    assert total is not None
    return total.reshape(x.shape)


def _fused(x: Tensor, offsets: Tensor, weight: Tensor, base: BaseGrid) -> Tensor:
    """torchvision's compiled operator; its taps always start on the kernel's grid, so "none" takes that away again."""
    from torchvision.ops import deform_conv2d

    width, taps = x.shape[-1], offsets.shape[4]
    side = 3 if taps == 9 else 1
    if base == "none":
        offsets = offsets - base_offsets(taps, "3x3").to(offsets)
    flat = offsets.flatten(3).permute(0, 3, 1, 2)  # (B, G * K * 2, H, W): dy before dx, as the operator wants it
    kernel = weight.expand(width, taps) if weight.ndim == 1 else weight
    kernel = kernel.reshape(width, -1, side, side)  # (D, 1 or D, side, side)
    out: Tensor = deform_conv2d(
        x.permute(0, 3, 1, 2).contiguous(), flat.contiguous(), kernel.contiguous(), padding=side // 2
    )
    return out.permute(0, 2, 3, 1)


_BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "grid_sample": _grid_sample,
    "bag": _bag,
    "dense": _dense,
}
