"""TUSA's losses and its sparsemax, as pure functions of tensors, in float32 whatever autocast says.

Source: TUSA (Grutman et al., 2026), which names the terms; sparsemax: Martins and Astudillo, 2016; NT-Xent: SimCLR
(Chen et al., 2020), here with several positives; SSIM: Wang et al., 2004, with MONAI's constants.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Positives = Literal["image", "pairwise", "spatial_only"]
UsageSource = Literal["sparsemax", "softmax"]


class _Sparsemax(torch.autograd.Function):
    """Keeps only its output for the way back: J = diag(s) - s s^T / |S|, s the support of the output."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        planes = z.unbind(1)
        count, total = torch.zeros_like(planes[0]), torch.zeros_like(planes[0])
        for plane in planes:  # K^2 passes over planes; a K x K broadcast would hold them all at once
            above = torch.zeros_like(plane)
            for other in planes:
                above += (other - plane).clamp_(min=0)
            inside = above < 1  # exact for any K, without sorting
            count += inside
            total += plane * inside
        tau = (total - 1) / count
        p = (z - tau.unsqueeze(1)).clamp_(min=0)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        support = (p > 0).to(p.dtype)
        inside = grads[0] * support
        return inside - support * (inside.sum(1, keepdim=True) / support.sum(1, keepdim=True))


def sparsemax(z: Tensor) -> Tensor:
    """Euclidean projection of each pixel's logits on to the simplex: (B, K, ...) -> (B, K, ...), over dimension 1.

    p_i = max(z_i - tau, 0) with tau such that they sum to 1. i is in the support if and only if
    sum_j max(z_j - z_i, 0) < 1. float32 (float64 stays).

    Source: Martins and Astudillo, 2016, Eq. 2; the test for the support without sorting is the paper's.
    """
    out: Tensor = _Sparsemax.apply(z if z.dtype == torch.float64 else z.float())
    return out


def usage_entropy(share: Tensor) -> Tensor:
    """log K - H(share) >= 0: 0 if all channels are used alike, log K if only one is.

    Args:
        share: (K,) mean of each channel over batch and pixels. It is the entropy of the mean: that of each pixel would
            work against sparsemax.

    Returns:
        Scalar. The log is clamped at 1e-6, or an unused channel's gradient would be infinity times 0.
    """
    share = share.float()
    return math.log(len(share)) + (share * share.clamp(min=1e-6).log()).sum()


def channel_shares(logits: Tensor, maps: Tensor, source: UsageSource) -> Tensor:
    """(B, K, H, W) each -> (K,): how much each channel is used, of the maps themselves or of softmax(logits).

    A channel outside sparsemax's support everywhere gets no gradient at all through the maps: the entropy can keep a
    channel alive, but revives a dead one only through the softmax.
    """
    return (maps if source == "sparsemax" else logits.float().softmax(1)).mean((0, 2, 3))


def logit_consistency(logits: Tensor) -> Tensor:
    """Mean squared difference between the two colour versions of each spatial view, before sparsemax.

    Args:
        logits: (B, S, 2, K, H, W). Different spatial views are never compared: they do not line up.

    Source: TUSA; gradients to both sides are ours.
    """
    return (logits[:, :, 0].float() - logits[:, :, 1].float()).square().mean()


def nt_xent(
    z: Tensor, temperature: float = 0.5, positives: Positives = "image", excluded: Tensor | None = None
) -> Tensor:
    """NT-Xent over all views of a batch: the views of one image attract each other, all others are repelled.

    Args:
        z: (B, S, C, D) encodings of S x C views; their lengths do not matter.
        temperature: of the cosine similarities.
        positives: "image": each of the other S C - 1 views of the image (ours; log(S C - 1) at best, since positives
            share a denominator); "pairwise": mean of SimCLR's loss over all pairs of views; "spatial_only": views
            of the image with another geometry.
        excluded: (B, B) bool, symmetric: pairs of images that are no negatives of each other (one patient's, say).

    Returns:
        Scalar, float32; log(S C B - 1) if all encodings are equal ("image").

    Source: SimCLR, Eq. 1; with two views it is exactly that. TUSA does not spell out the positives.
    """
    batch, spatial, colours, _ = z.shape
    views = spatial * colours
    with torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(z.float().flatten(0, 2), dim=1)
        logits = unit @ unit.T / temperature  # (B V, B V), view fastest
    image = torch.arange(batch, device=z.device).repeat_interleave(views)
    view = torch.arange(views, device=z.device).repeat(batch)
    same, itself = image[:, None] == image, torch.eye(batch * views, dtype=torch.bool, device=z.device)
    hidden = itself if excluded is None else itself | (excluded[image][:, image] & ~same)
    logits = logits.masked_fill(hidden, -torch.inf)
    if positives == "pairwise":
        return _pairwise(logits, view, batch, views)
    chosen = same & ~itself
    if positives == "spatial_only":
        chosen = chosen & (view[:, None] // colours != view // colours)
    log_p = logits - logits.logsumexp(1, keepdim=True)
    return -(log_p.masked_fill(~chosen, 0.0).sum(1) / chosen.sum(1)).mean()


def one_patient(patient: Tensor) -> Tensor:
    """Which images are of one patient: (B,) int64 -> (B, B) bool; negative numbers are unknown and equal to nobody."""
    return (patient[:, None] == patient) & (patient >= 0)


def _pairwise(logits: Tensor, view: Tensor, batch: int, views: int) -> Tensor:
    """Mean over the pairs of views of the two-view loss, whose negatives are those two views of other images."""
    losses = []
    for a in range(views):
        for b in range(a + 1, views):
            rows = torch.cat([torch.arange(batch, device=view.device) * views + v for v in (a, b)])
            pair = logits[rows][:, rows]  # (2 B, 2 B): first all a, then all b
            target = torch.arange(2 * batch, device=view.device).roll(batch)
            losses.append(F.cross_entropy(pair, target))
    return torch.stack(losses).mean()


def ssim(x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of grey images in [0, 1], per image: (B, 1, H, W) twice -> (B,) float32, 1 if equal.

    Gaussian window, no padding, K1 = 0.01, K2 = 0.03, range 1. Sums of shifted images, so that neither bfloat16 nor
    TF32 can touch the differences of nearly equal numbers that variances are.

    Raises:
        ValueError: the images are smaller than the window.

    Source: Wang et al., 2004; constants as in MONAI.
    """
    if min(x.shape[-2:]) < window:
        raise ValueError(f"SSIM needs images of at least {window} pixels, not {tuple(x.shape[-2:])}")
    weights = [math.exp(-0.5 * ((k - window // 2) / sigma) ** 2) for k in range(window)]
    taps = [weight / sum(weights) for weight in weights]
    x, y = x.float(), y.float()
    stack = torch.cat([x, y, x * x, y * y, x * y], dim=1)  # (B, 5, H, W)
    for dim in (2, 3):
        length = stack.shape[dim] - window + 1
        first = stack.narrow(dim, 0, length) * taps[0]
        for k, tap in enumerate(taps[1:], 1):
            first = first + stack.narrow(dim, k, length) * tap
        stack = first
    mean_x, mean_y, xx, yy, xy = stack.unbind(1)
    c1, c2 = 0.01**2, 0.03**2
    variance = (xx - mean_x**2) + (yy - mean_y**2)
    covariance = xy - mean_x * mean_y
    values = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * (2 * covariance + c2) / (variance + c2)
    return values.mean((1, 2))


def perceptual_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance between feature vectors of length 1: (..., N, C) twice, broadcast -> scalar, float32.

    Summed over the channels, averaged over places and images; as MONAI's RadImageNet loss does it (the last map only,
    no learned weights). 1e-10 under the root keeps the gradient of a zero vector finite.
    """

    def unit(x: Tensor) -> Tensor:
        x = x.float()
        return x / (x.square().sum(-1, keepdim=True) + 1e-10).sqrt()

    return (unit(a) - unit(b)).square().sum(-1).mean()
