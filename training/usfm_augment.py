"""USFM's augmentation of the pretraining image: rotation, light, blur; batched on the images' device.

Each function takes one parameter per image; none draws random numbers, and the parameter that means "unchanged" (angle
0, factors 1, sigma 0) leaves an image exactly as it is. Scaling and cropping are `training.transforms.crop`.

Source: the paper names the operations (USFM, Jiao et al., MedIA 2024) but gives no ranges: those are the recipe's.
"""

import torch
from torch import Tensor

from training.transforms import precise_matmul


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Turn each square image about its centre, bilinear, black outside.

    Args:
        images: (B, C, S, S) float32 in [0, 1].
        angle: (B,) float32, radians, positive counter-clockwise as seen; 0 leaves the image untouched.

    Returns:
        (B, C, S, S) float32 in [0, 1].
    """
    with torch.autocast(images.device.type, enabled=False):
        size = images.shape[-1]
        centres = (torch.arange(size, device=images.device, dtype=torch.float32) * 2 + 1) / size - 1
        y, x = centres[:, None], centres[None, :]
        sine, cosine = (f(angle.float())[:, None, None] for f in (torch.sin, torch.cos))
        places = torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=-1)  # (B, S, S, 2): x, y to read at
        turned = torch.nn.functional.grid_sample(images, places, padding_mode="zeros", align_corners=False)
    return torch.where((angle == 0)[:, None, None, None], images, turned)


def relight(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Multiply each image by `brightness`, then its distance from its mean by `contrast`, and cut off at 0 and 1.

    Args:
        images: (B, C, S, S) float32 in [0, 1]. brightness, contrast: (B,) factors, 1 for no change.

    Returns:
        (B, C, S, S) float32 in [0, 1].
    """
    brighter = images * brightness[:, None, None, None]
    mean = brighter.mean((-3, -2, -1), keepdim=True)
    factor = contrast[:, None, None, None]
    return (brighter * factor + mean * (1 - factor)).clamp(0.0, 1.0)


def blur_matrices(sigmas: Tensor, size: int) -> Tensor:
    """For each sigma the matrix A for which A @ image @ A^T is the image blurred, mirrored (reflect-101) at its border.

    Args:
        sigmas: (B,) standard deviations in pixels, at least 0 and small beside `size`.
        size: side of the images in pixels.

    Returns:
        (B, size, size) float32; rows sum to 1; the identity for sigma 0.
    """
    i = torch.arange(size, device=sigmas.device, dtype=torch.float32)
    row, column, last = i[:, None], i[None, :], size - 1
    scale = -0.5 / sigmas.float().clamp(min=1e-3).square()[:, None, None]  # exp(-5e5) is 0: no blur
    weights = torch.exp(scale * (row - column).square())
    weights = weights + torch.exp(scale * (row + column).square()) * (column > 0)  # the mirror image beyond pixel 0
    weights = weights + torch.exp(scale * (2 * last - row - column).square()) * (column < last)
    return weights / weights.sum(-1, keepdim=True)


def blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each image (B, C, S, S) float32 by its own sigma (B,) in pixels, Gaussian; 0 changes nothing."""
    matrices = blur_matrices(sigmas, images.shape[-1])[:, None]
    return precise_matmul(precise_matmul(matrices, images), matrices.mT)
