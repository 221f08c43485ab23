"""A second MAE, written down from the paper with loops: the reference that shares no code with the recipe."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def positions(width: int, side: int) -> Tensor:
    """MAE's fixed positions, (side * side, width), entry by entry."""
    table = np.zeros((side * side, width))
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                rate = 1.0 / 10000 ** (i / quarter)
                table[row * side + column, i] = math.sin(column * rate)
                table[row * side + column, quarter + i] = math.cos(column * rate)
                table[row * side + column, 2 * quarter + i] = math.sin(row * rate)
                table[row * side + column, 3 * quarter + i] = math.cos(row * rate)
    return torch.from_numpy(table).float()


def block(x: Tensor, w: Weights, name: str, heads: int) -> Tensor:
    """One pre-norm Transformer block on (T, D), head by head."""
    h = F.layer_norm(x, x.shape[-1:], w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"], 1e-6)
    q, k, v = (h @ w[f"{name}.attn.qkv.weight"].T + w[f"{name}.attn.qkv.bias"]).chunk(3, dim=-1)
    size = x.shape[-1] // heads
    parts = []
    for i in range(heads):
        own = slice(i * size, (i + 1) * size)
        parts.append(torch.softmax(q[:, own] @ k[:, own].T / math.sqrt(size), dim=-1) @ v[:, own])
    x = x + torch.cat(parts, -1) @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
    h = F.layer_norm(x, x.shape[-1:], w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"], 1e-6)
    h = F.gelu(h @ w[f"{name}.mlp.fc1.weight"].T + w[f"{name}.mlp.fc1.bias"])
    return x + h @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"]


def cut(image: Tensor, patch: int) -> list[Tensor]:
    """(C, S, S) -> patches row by row, each (patch * patch * C) in the order row, column, channel."""
    side = image.shape[-1] // patch
    found = []
    for r in range(side):
        for c in range(side):
            piece = image[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            found.append(piece.permute(1, 2, 0).reshape(-1))
    return found


def mae_loss(images: Tensor, noise: Tensor, w: Weights, patch: int, keep: int, heads: tuple[int, int]) -> Tensor:
    """Mean squared error over the hidden patches of normalised images (B, C, S, S)."""
    hidden_errors = []
    for image, order in zip(images, noise.argsort(dim=1), strict=True):
        patches = cut(image, patch)
        kernel = w["encoder.patch_embed.proj.weight"]
        side = image.shape[-1] // patch
        embedded = F.conv2d(image[None], kernel, w["encoder.patch_embed.proj.bias"], stride=patch)[0].flatten(1).T
        embedded = embedded + positions(kernel.shape[0], side)
        visible = order[:keep].tolist()
        x = torch.cat([w["encoder.cls_token"][0], embedded[visible]])
        for i in range(sum(name.endswith("norm1.weight") for name in w if name.startswith("encoder."))):
            x = block(x, w, f"encoder.blocks.{i}", heads[0])
        x = F.layer_norm(x, x.shape[-1:], w["encoder.norm.weight"], w["encoder.norm.bias"], 1e-6)
        x = x @ w["decoder.embed.weight"].T + w["decoder.embed.bias"]
        full = [x[1 + visible.index(n)] if n in visible else w["decoder.mask_token"][0, 0] for n in range(len(patches))]
        x = torch.cat([x[:1], torch.stack(full) + positions(x.shape[-1], side)])
        for i in range(sum(name.endswith("norm1.weight") for name in w if name.startswith("decoder."))):
            x = block(x, w, f"decoder.blocks.{i}", heads[1])
        x = F.layer_norm(x, x.shape[-1:], w["decoder.norm.weight"], w["decoder.norm.bias"], 1e-6)
        pred = (x @ w["decoder.pred.weight"].T + w["decoder.pred.bias"])[1:]
        for n, truth in enumerate(patches):
            if n not in visible:
                hidden_errors.append(((pred[n] - truth) ** 2).mean())
    return torch.stack(hidden_errors).mean()
