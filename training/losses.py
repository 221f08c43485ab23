"""Losses as pure functions of tensors."""

from typing import Literal

import torch
from torch import Tensor

Region = Literal["all", "masked"]


def norm_pix(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch minus its mean, over its standard deviation: (B, N, P) -> (B, N, P).

    The variance is the unbiased one, as in MAE's official code.
    """
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + eps).sqrt()


def patch_errors(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each patch, in float32 whatever the precision of `pred`: (B, N, P) twice -> (B, N)."""
    return (pred.float() - target.float()).square().mean(-1)


def patch_mse(pred: Tensor, target: Tensor, region: Region = "all", mask: Tensor | None = None) -> Tensor:
    """Mean squared error over all patches, or over those that were left out.

    Args:
        pred, target: (B, N, P).
        region: "all" (D2MAE, DeblurrMAE) or "masked" (MAE).
        mask: (B, N) bool, True where a patch was left out; needed for "masked".

    Returns:
        Scalar, float32. "masked" with nothing left out is 0.

    Raises:
        ValueError: region "masked" without a mask.
    """
    return region_mean(patch_errors(pred, target), region, mask)


def region_mean(errors: Tensor, region: Region, mask: Tensor | None) -> Tensor:
    """Mean of the (B, N) errors over a region; see `patch_mse`."""
    if region == "all":
        return errors.mean()
    if mask is None:
        raise ValueError("region 'masked' needs the mask")
    weights = mask.to(errors.dtype)
    return (errors * weights).sum() / weights.sum().clamp(min=1.0)


def masked_errors(errors: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The (B, N) errors averaged over hidden and over visible patches, without gradient, for the log."""
    with torch.no_grad():
        return {
            "mse_masked": region_mean(errors, "masked", mask),
            "mse_visible": region_mean(errors, "masked", ~mask),
        }
