"""What recipes do to images before the network sees them: leave patches out, blur. Pure functions, no random state."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.transforms import precise_matmul
from usdata.errors import ConfigError


def visible_patches(patches: int, mask_ratio: float) -> int:
    """How many of `patches` stay visible: int(patches * (1 - mask_ratio)), cut off, not rounded, as in MAE.

    Raises:
        ConfigError: the ratio is not in [0, 1), or nothing would stay visible.
    """
    visible = int(patches * (1 - mask_ratio)) if 0 <= mask_ratio < 1 else 0
    if visible < 1:
        raise ConfigError(f"mask_ratio {mask_ratio} leaves none of {patches} patches visible")
    return visible


def shuffle(noise: Tensor) -> tuple[Tensor, Tensor]:
    """The order that sorts `noise`, and the order that undoes it.

    Args:
        noise: (B, N) numbers.

    Returns:
        ids_shuffle and ids_restore, each (B, N) int64: `x.gather(1, ids_shuffle).gather(1, ids_restore)` is `x`.
    """
    ids_shuffle = noise.argsort(dim=1, stable=True)
    return ids_shuffle, ids_shuffle.argsort(dim=1)


def random_keep(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Choose the patches that stay visible: those with the smallest noise.

    Args:
        noise: (B, N) uniform random numbers, one per patch.
        mask_ratio: share of patches to leave out, in [0, 1).

    Returns:
        keep: (B, V) int64, places of the visible patches, V = `visible_patches(N, mask_ratio)`.
        mask: (B, N) bool, True where a patch was left out.

    Raises:
        ConfigError: see `visible_patches`.
    """
    visible = visible_patches(noise.shape[1], mask_ratio)
    keep = shuffle(noise)[0][:, :visible]
    mask = torch.ones(noise.shape, dtype=torch.bool, device=noise.device).scatter(1, keep, False)
    return keep, mask


def gather_patches(patches: Tensor, keep: Tensor) -> Tensor:
    """(B, N, P) and (B, V) int64 -> (B, V, P): the patches at `keep`."""
    return patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[2]))


def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """2 * radius + 1 weights of a sampled Gaussian, float64, summing to 1; sigma 0 is the identity. sigma in pixels."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    if sigma == 0:
        return (offsets == 0).double()
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


def blur_radius(sigma: float) -> int:
    """Radius that OpenCV derives from sigma for float images: half of odd(round(8 sigma + 1)); 5 for sigma 1.1."""
    return (round(8 * sigma + 1) | 1) // 2


def blur_bank(sigmas: Sequence[float], size: int) -> Tensor:
    """One matrix A per blur level, so that A @ image @ A^T is the blurred image, reflect-101 border included.

    All levels share the radius of the largest sigma: the tails it adds to the others are below 5e-6.

    Args:
        sigmas: standard deviations in pixels, 0 for no blur.
        size: side of the images in pixels.

    Returns:
        (len(sigmas), size, size) float32; rows sum to 1.

    Raises:
        ConfigError: a sigma is negative, or too large for images of this size.

    Source: D2MAE paper; equals cv2.GaussianBlur on float32 with kernel size (0, 0) and BORDER_REFLECT_101.
    """
    radius = blur_radius(max(sigmas))
    if min(sigmas) < 0 or radius >= size:
        raise ConfigError(f"blur sigmas {tuple(sigmas)} do not fit images of {size} pixels")
    rows = torch.arange(size)[:, None].expand(-1, 2 * radius + 1)
    columns = rows + torch.arange(-radius, radius + 1)
    columns = columns.abs()  # reflect-101: -1 is 1
    columns = torch.where(columns > size - 1, 2 * (size - 1) - columns, columns)
    bank = torch.zeros(len(sigmas), size, size, dtype=torch.float64)
    for matrix, sigma in zip(bank, sigmas, strict=True):
        kernel = gaussian_kernel(sigma, radius).expand(size, -1)
        matrix.index_put_((rows, columns), kernel, accumulate=True)
    return bank.float()


def gaussian_blur(images: Tensor, bank: Tensor, levels: Tensor) -> Tensor:
    """Blur each image by its own level.

    Args:
        images: (B, 1, S, S) float32, never rounded to 8 bits before or after: the first levels would vanish.
        bank: (T, S, S) from `blur_bank`.
        levels: (B,) int64, rows of the bank.

    Returns:
        (B, 1, S, S) float32.
    """
    matrices = bank[levels][:, None]  # (B, 1, S, S)
    return precise_matmul(precise_matmul(matrices, images), matrices.mT)
