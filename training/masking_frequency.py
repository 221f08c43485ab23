"""USFM's band-stop: remove rings of frequencies from an image, never those around zero frequency.

Images are real and the rings are mirror-symmetric, so half of the spectrum is enough: `rfft2`, zeros, `irfft2`. That
equals the real part of the full inverse transform, which is what the paper means; its modulus would turn every
negative pixel of a normalised image positive.

Source: USFM (Jiao et al., MedIA 2024), Eq. 3-7. Number of rings, how many are drawn and the protected centre are the
paper's; where the rings begin and end it does not say.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from usdata.errors import ConfigError

Spacing = Literal["linear", "geometric", "equal_area"]


def ring_edges(size: int, bands: int = 7, protect: int = 5, spacing: Spacing = "linear") -> tuple[float, ...]:
    """Radii between the rings, in cycles per image: ring b is edges[b] < r <= edges[b + 1].

    Args:
        size: side of the images in pixels; the last ring ends at the Nyquist frequency, size / 2.
        bands: number of rings.
        protect: where the first ring begins; half the side of the protected square.
        spacing: "linear" cuts size / 2 evenly (5, 16, 32, ..., 112 for 224 pixels; the official mask generator can
            make these); "geometric" by equal factors from `protect` on; "equal_area" into rings of equal area.

    Returns:
        `bands + 1` rising radii.

    Raises:
        ConfigError: the protected centre leaves no room for the first ring.
    """
    top, steps = size / 2, range(1, bands + 1)
    if spacing == "linear":
        edges = [top * k / bands for k in steps]
    elif spacing == "geometric":
        edges = [protect * (top / protect) ** (k / bands) for k in steps]
    else:
        edges = [math.sqrt(protect**2 + (top**2 - protect**2) * k / bands) for k in steps]
    if not 0 < protect < edges[0]:
        raise ConfigError(
            f"A protected centre of {protect} cycles leaves no room for {bands} rings in images of {size} pixels.",
            hint=f"Lower it:  --set protect={max(1, math.ceil(top / bands) - 1)}",
        )
    return (float(protect), *edges)


def band_map(size: int, edges: tuple[float, ...], protect: int) -> Tensor:
    """The ring that each bin of the half spectrum belongs to.

    Args:
        size: side of the images in pixels.
        edges: from `ring_edges`.
        protect: bins with |u| <= protect and |v| <= protect belong to no ring: for 5 a square of 11 x 11, the smallest
            that is symmetric and holds the paper's 10 x 10.

    Returns:
        (size, size // 2 + 1) int64 as `rfft2` lays bins out: 0 ... bands - 1, and `bands` for bins of no ring (the
        protected centre, and the corners beyond the last edge).
    """
    rows = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64).round()[:, None]  # cycles per image
    columns = torch.arange(size // 2 + 1, dtype=torch.float64)
    radius = (rows.square() + columns.square()).sqrt()
    bounds = torch.tensor(edges, dtype=torch.float64)
    ring = torch.bucketize(radius, bounds) - 1  # edges[b] < r <= edges[b + 1]
    bands = len(edges) - 1
    safe = (rows.abs() <= protect) & (columns <= protect)
    return ring.masked_fill(safe | (ring < 0) | (ring >= bands), bands)


def band_stop(images: Tensor, bands: Tensor, rings: Tensor) -> Tensor:
    """Remove the drawn rings from each image.

    Args:
        images: (B, C, S, S) float32, any range.
        bands: (B, n) bool, True for the rings to remove.
        rings: (S, S // 2 + 1) int64 from `band_map` with n rings.

    Returns:
        (B, C, S, S) float32, computed in float32 also under autocast. Mean and protected frequencies stay; values may
        leave the range of the images.

    Source: USFM, Eq. 7.
    """
    gone = torch.nn.functional.pad(bands, (0, 1))[:, rings]  # (B, S, S // 2 + 1); the bins of no ring stay
    with torch.autocast(images.device.type, enabled=False):
        spectrum = torch.fft.rfft2(images.float())
        return torch.fft.irfft2(spectrum.masked_fill(gone[:, None], 0), s=images.shape[-2:])


def removed_share(images: Tensor, filtered: Tensor) -> Tensor:
    """Share of the images' variance that the band-stop took, averaged over the batch: a scalar in [0, 1]."""
    taken = (images - filtered).square().sum((-2, -1))
    variance = (images - images.mean((-2, -1), keepdim=True)).square().sum((-2, -1))
    return (taken / variance.clamp(min=1e-12)).mean()


def log_spectrum(images: Tensor, brightest: Tensor | None = None) -> Tensor:
    """Spectra to look at: zero frequency in the middle, log(1 + modulus).

    Args:
        images: (B, 1, S, S) in [0, 1].
        brightest: (B, 1, 1, 1) the value to show as 1; None: each spectrum's own largest, before the division.

    Returns:
        (B, 1, S, S) float32 in [0, 1] if `brightest` is at least the largest value.
    """
    with torch.autocast(images.device.type, enabled=False):
        modulus = torch.fft.fft2(images.float()).abs().log1p()
    modulus = torch.fft.fftshift(modulus, dim=(-2, -1))  # never over the batch
    return modulus / (modulus.amax((-2, -1), keepdim=True) if brightest is None else brightest).clamp(min=1e-12)
