"""Speckle images for tests of recipes: Rayleigh noise on a few bright and dark blobs, as an envelope detector gives."""

import torch
from torch import Tensor


def speckle(n: int, seed: int = 0, size: int = 256) -> Tensor:
    """(n, 1, size, size) uint8 images with fine grain and large structures, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    real, imaginary = torch.randn(2, n, 1, size, size, generator=generator)
    grain = torch.nn.functional.avg_pool2d((real**2 + imaginary**2).sqrt(), 3, 1, 1)
    blobs = torch.rand(n, 1, 5, 5, generator=generator)
    tissue = torch.nn.functional.interpolate(blobs, size=(size, size), mode="bicubic").clamp(0.05, 1.0)
    return (grain * tissue * 130).clamp(0, 255).to(torch.uint8)
