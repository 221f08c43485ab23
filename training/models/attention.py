"""Attention with a learned bias, computed in the way that is fastest where it runs."""

import torch
from torch import Tensor
from torch.nn import functional as F


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v.

    PyTorch's fused kernel for CPUs gives no gradient to the bias: it falls back on single operations that copy and look
    for rows without any token besides. Here such rows do not exist, so with a gradient on a CPU the three operations
    that are needed are written out; everywhere else the fused call is made.

    Args:
        q, k, v: (B, H, n, d).
        bias: (1, H, n, n) or (B, H, n, n), finite, of the dtype of `q` or float32.

    Returns:
        (B, H, n, d).
    """
    if q.device.type == "cpu" and bias.requires_grad and torch.is_grad_enabled():
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        return scores.add_(bias).softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
