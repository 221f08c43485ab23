"""Losses of ARL that other recipes do not have: adversarial, the weight of it, and self-distillation. Pure functions.

Source: ARL (ICLR 2026) for L_MIM, L_adv, lambda and L_SD; what its summary leaves open follows VQGAN's code (the layer
of lambda, the clamp), DINO's (centre, temperatures), and is `ours` where the config says so.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["sum", "mean"]


def mim_loss(pred: Tensor, target: Tensor, reduction: Reduction = "sum") -> Tensor:
    """L_MIM = (1 / |Omega|) sum over masked patches of ||x_i - xhat_i||^2, in float32.

    Args:
        pred, target: (B, M, P), the masked patches only.
        reduction: over the P pixels of a patch: "sum" (the equation) or "mean" (MAE; P times smaller).

    Returns:
        Scalar, float32.
    """
    errors = (pred.float() - target.float()).square()
    return (errors.sum(-1) if reduction == "sum" else errors.mean(-1)).mean()


def mim_gradient(pred: Tensor, target: Tensor, reduction: Reduction = "sum") -> Tensor:
    """dL_MIM / dpred in closed form: (B, M, P) float32."""
    patches, pixels = pred.shape[0] * pred.shape[1], pred.shape[2]
    scale = 2.0 / (patches if reduction == "sum" else patches * pixels)
    return scale * (pred.float() - target.float())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """L_adv = -E[log D(xhat)] = mean softplus(-logit): the non-saturating form. Scalar, float32.

    Written with softplus, because log(sigmoid) of a sure discriminator is log 0.
    """
    return F.softplus(-fake_logits.float()).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """0.5 * (mean softplus(-logit_real) + mean softplus(logit_fake)); log 2 while guessing. Scalar, float32.

    The fakes must be detached from the generator by the caller.
    """
    return 0.5 * (F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean())


def adaptive_lambda(mim_gradient: Tensor, adv_gradient: Tensor, eps: float = 1e-6, highest: float = 1e4) -> Tensor:
    """lambda = ||grad L_MIM|| / (||grad L_adv|| + eps), a number, not a function: detached, and clamped.

    Args:
        mim_gradient, adv_gradient: gradients with respect to the same weights, any equal shape.
        eps: keeps the ratio finite; not free of scale, so both gradients must be unscaled (or scaled alike).
        highest: upper end of the clamp (VQGAN: 1e4). A ratio that is not finite becomes 0, and the term is left out.

    Returns:
        Scalar, float32, in [0, highest], without gradient.

    Source: ARL; VQGAN's `calculate_adaptive_weight`.
    """
    with torch.no_grad():
        ratio = mim_gradient.float().norm() / (adv_gradient.float().norm() + eps)
        return torch.nan_to_num(ratio, nan=0.0, posinf=0.0).clamp(0.0, highest)


def pixel_gradients(
    judge: Callable[[Tensor], Tensor], pred: Tensor, target: Tensor, reduction: Reduction = "sum"
) -> tuple[Tensor, Tensor, Tensor]:
    """L_adv, and both gradients at the predicted pixels: dL_MIM / dpred and dL_adv / dpred. All without gradient.

    Args:
        judge: pixels (B, M, P) -> the discriminator's logits; its own weights get no gradient here.
        pred, target, reduction: as of `mim_loss`.

    Returns:
        Scalar, (B, M, P) and (B, M, P), float32.
    """
    with torch.enable_grad():
        leaf = pred.detach().float().requires_grad_()
        adv = generator_loss(judge(leaf))
        (d_adv,) = torch.autograd.grad(adv, leaf)
    return adv.detach(), mim_gradient(pred.detach(), target, reduction), d_adv


def layer_gradient(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Gradient of a Linear's weight from that of its output: d^T h, summed over all tokens.

    Args:
        gradient: (..., P) at the layer's output. inputs: (..., D), what the layer got.

    Returns:
        (P, D) float32, without gradient.
    """
    with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
        return gradient.flatten(0, -2).float().mT @ inputs.flatten(0, -2).float()


def reference_lambda(mim: Tensor, adversarial: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """The same lambda by two autograd passes to the layer's weight: slow, only to check the closed form against.

    Args:
        mim, adversarial: scalars that depend on `weight`; their graphs are kept.
    """
    pair = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (mim, adversarial)]
    return adaptive_lambda(pair[0], pair[1], eps)


def with_gradient(value: Tensor, at: Tensor, gradient: Tensor) -> Tensor:
    """`value` as a loss whose gradient at `at` is known already: backward starts there with `gradient`.

    Args:
        value: scalar; its own graph is not used.
        at: the tensor that the loss is a function of.
        gradient: d value / d at, of its shape.
    """
    result: Tensor = _WithGradient.apply(value.detach(), at, gradient.detach())
    return result


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, at: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient.to(at.dtype))
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, outer[0].to(gradient.dtype) * gradient, None


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    *,
    student_temp: float,
    teacher_temp: float | Tensor,
    same: bool = False,
) -> Tensor:
    """L_SD = -sum_i z_t(i) log z_s(i) over pairs of views, meant over pairs and images.

    Args:
        student: (S, B, N) logits of the student's views, the global ones first. teacher: (T, B, N), T <= S, logits of
            the teacher's views, which are the first T of the student's.
        centre: (N,) subtracted from the teacher's logits: the running mean *before* this batch.
        student_temp, teacher_temp: what the logits are divided by; a low one sharpens.
        same: pair each view with itself only (patch tokens, iBOT) instead of with every other (DINO).

    Returns:
        Scalar, float32; log N if both are uniform.

    Source: ARL's L_SD; DINO (Caron et al., 2021), iBOT (Zhou et al., 2022).
    """
    target = ((teacher.detach().float() - centre) / teacher_temp).softmax(dim=-1)  # over prototypes, never the batch
    logs = (student.float() / student_temp).log_softmax(dim=-1)
    views = range(len(target))
    pairs = [(t, t) for t in views] if same else [(t, s) for t in views for s in range(len(logs)) if s != t]
    return torch.stack([-(target[t] * logs[s]).sum(-1).mean() for t, s in pairs]).mean()


def updated_centre(centre: Tensor, batch_mean: Tensor, momentum: float = 0.9) -> Tensor:
    """The running mean of the teacher's raw logits, after the batch has been used: (N,) and (N,) -> (N,).

    A batch mean that is not finite leaves it as it was.
    """
    fresh = momentum * centre + (1 - momentum) * batch_mean
    return torch.where(fresh.isfinite().all(), fresh, centre)
