"""USFM's two losses: absolute error of the pixels, and focal frequency loss. Pure functions of tensors, in float32."""

import torch
from torch import Tensor

from training.losses import Region


def pixel_l1(pred: Tensor, target: Tensor, region: Region = "all", hidden: Tensor | None = None) -> Tensor:
    """Mean absolute error over all pixels, or over those of masked blocks.

    Args:
        pred, target: (B, C, S, S), any units.
        region: "all" (the paper's Eq. 12 as printed) or "masked" (SimMIM).
        hidden: (B, 1, S, S) bool, True in a masked block; needed for "masked".

    Returns:
        Scalar, float32, in the units of `pred`. "masked" with nothing hidden is 0.

    Raises:
        ValueError: region "masked" without a mask.

    Source: USFM, Eq. 12; the masked form is SimMIM's: sum(|d| * M) / (sum(M) + 1e-5) / C.
    """
    errors = (pred.float() - target.float()).abs()
    if region == "all":
        return errors.mean()
    if hidden is None:
        raise ValueError("region 'masked' needs the mask")
    weights = hidden.float()
    return (errors * weights).sum() / (weights.sum() + 1e-5) / pred.shape[1]


def column_weights(size: int, device: torch.device | None = None) -> Tensor:
    """How often each column of a half spectrum stands in the whole one: (size // 2 + 1,) float32 of 1, 2, ..., 2, 1."""
    weights = torch.full((size // 2 + 1,), 2.0, device=device)
    weights[0] = 1.0
    if size % 2 == 0:
        weights[-1] = 1.0  # the Nyquist column is its own mirror
    return weights


def focal_weights(modulus: Tensor, alpha: float = 1.0) -> Tensor:
    """Weight of each frequency: modulus ** alpha over its largest, per image and channel.

    Args:
        modulus: (..., S, K) float32, at least 0; spectrum of the error, whole or half.
        alpha: 0 weighs all frequencies alike, 1 (default) in proportion to their error.

    Returns:
        Same shape, in [0, 1], the largest exactly 1; without gradient. All 0 where there is no error at all.

    Source: Focal Frequency Loss (Jiang et al., ICCV 2021), Eq. 7-8, official code without its batch-wide maximum.
    """
    weights = modulus.detach() ** alpha
    return (weights / weights.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)).clamp(0, 1)


def focal_frequency(pred: Tensor, target: Tensor, alpha: float = 1.0) -> Tensor:
    """Squared error of the spectrum, each frequency weighted by how wrong it is.

    One half-spectrum transform of the difference replaces two whole ones: the transform is linear, and the spectrum of
    a real image is its own mirror. The transform is orthonormal, so that the loss is at most the mean squared error;
    unnormalised, as Eq. 3 prints it, the loss would be S * S times as large.

    Args:
        pred, target: (B, C, S, S), any units, the same for both.
        alpha: see `focal_weights`.

    Returns:
        Scalar, float32, computed in float32 also under autocast; mean over images, channels and frequencies.

    Source: USFM, Eq. 13-14, where F_r and F_f are the spectra of reconstruction and original.
    """
    with torch.autocast(pred.device.type, enabled=False):
        spectrum = torch.fft.rfft2(pred.float() - target.float(), norm="ortho")  # (B, C, S, S // 2 + 1)
        squared = torch.view_as_real(spectrum).square().sum(-1)
        weights = focal_weights(squared.detach().sqrt(), alpha)
        columns = column_weights(pred.shape[-1], pred.device)
        return (weights * squared * columns).sum() / pred.numel()
