"""D2MAE on the public MAE code (facebookresearch/mae), with DeblurMIM's blur in the loader.

MAE's choices: RGB images, cropped, resized and normalised one by one; attention with its matrix of weights; the patch
layer on all patches, three quarters of which are then dropped (`random_masking` after `patch_embed`); mask tokens
concatenated and put in order by a gather; AdamW by its defaults, the loss and the gradient's norm fetched in each
step. DeblurMIM's: OpenCV blurs each float image. Both the sharp and the blurred image go to the device in float32.
"""

from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eager.common import (
    ATTENTION,
    DEVICE,
    OPTIMISER,
    Grey,
    Sample,
    adam,
    blurred,
    decay_groups,
    pixels,
    plain_attention,
    planes,
    resized_crop,
)
from training.config import RunConfig
from training.models.vit import encode_patches, patchify
from training.transforms import IMAGENET_GREY, IMAGENET_MEAN, IMAGENET_STD

REMEDIES = {
    "attention": ATTENTION,
    "device": DEVICE,
    "visible": "only the visible patches are projected",
    "optimiser": OPTIMISER,
}


class Rival(nn.Module):
    """MAE with a level token."""

    def __init__(self, cfg: Any, remedies: frozenset[str], ours: Any = None) -> None:
        super().__init__()
        self.cfg, self.remedies, self._ours = cfg, remedies, (ours,)  # in a tuple: no part of this module
        size = {"embed_dim": cfg.encoder_width, "depth": cfg.encoder_depth, "num_heads": cfg.encoder_heads}
        size = {name: value for name, value in size.items() if value is not None}
        self.encoder: Any = timm.create_model(
            cfg.encoder,
            img_size=cfg.image_size,
            patch_size=cfg.patch_size,
            in_chans=cfg.channels,
            num_classes=0,
            **size,
        )
        self.encoder.pos_embed.requires_grad_(False)
        width, self.patches = self.encoder.embed_dim, self.encoder.patch_embed.num_patches
        self.level = _Level(width)
        self.register_buffer("sinusoids", torch.zeros(len(cfg.levels), width))
        self.decoder = _Decoder(width, self.patches, cfg)
        plain_attention(self, remedies)
        mean, std = IMAGENET_GREY if cfg.channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)

    def fixed(self, ours: Any) -> None:
        """Take over what is computed, not learned."""
        self.sinusoids.copy_(ours.level.sinusoids)
        self.decoder.positions.copy_(ours.decoder.positions)

    def sample(self, image: Grey, rng: np.random.Generator) -> Sample:
        """Sharp and blurred image, (C, S, S) float32 normalised, and the level."""
        picture = Image.fromarray(image)
        picture = picture.convert("RGB") if self.cfg.channels == 3 else picture
        sharp = pixels(resized_crop(picture, rng, self.cfg, self.cfg.image_size, self.cfg.flip))
        t = int(rng.integers(1, len(self.cfg.levels)))
        soft = blurred(sharp, self.cfg.levels[t])
        return {
            "sharp": planes((sharp - self.mean) / self.std),
            "blurred": planes((soft - self.mean) / self.std),
            "t": t,
        }

    def from_ours(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same batch by our recipe."""
        ours = self._ours[0]
        sharp, soft = ours.views(images, draws)
        mean, std = ours.mean.view(-1, 1, 1), ours.std.view(-1, 1, 1)
        views = {"sharp": (sharp - mean) / std, "blurred": (soft - mean) / std}
        return {**views, "t": draws["t"], "noise": draws["noise"]}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """MAE's `forward_encoder`, `forward_decoder`, `forward_loss`."""
        images, vit = batch["blurred"], self.encoder
        noise = batch.get("noise")
        noise = torch.rand(len(images), self.patches, device=images.device) if noise is None else noise
        shuffle = torch.argsort(noise, dim=1)
        restore = torch.argsort(shuffle, dim=1)
        keep = shuffle[:, : int(self.patches * (1 - self.cfg.mask_ratio))]
        level = self.sinusoids[batch["t"]] + self.level.vector
        if "visible" in self.remedies:
            cut = patchify(images, self.cfg.patch_size)
            tokens = encode_patches(vit, _take(cut, keep), keep, token=level)
        else:
            x = vit.patch_embed(images) + vit.pos_embed[:, 1:]
            cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(x), -1, -1)
            tokens = vit.norm(vit.blocks(torch.cat([cls, level[:, None], _take(x, keep)], dim=1)))
        pred = self.decoder(tokens, restore)
        errors = (pred - _patchify(batch["sharp"], self.cfg.patch_size)) ** 2
        return {"loss": errors.mean(dim=-1).mean()}

    def optimisers(self, run: RunConfig) -> list[tuple[str, torch.optim.Optimizer, float | None]]:
        """MAE's AdamW."""
        return [("loss", adam(decay_groups(self, run.weight_decay), run, self.remedies), run.clip_grad)]


class _Level(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width))


class _Decoder(nn.Module):
    """MAE's decoder; two tokens come before the patches."""

    def __init__(self, inputs: int, patches: int, cfg: Any) -> None:
        super().__init__()
        width, norm = cfg.decoder_width, partial(nn.LayerNorm, eps=1e-6)
        self.embed, self.mask_token = nn.Linear(inputs, width), nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", torch.zeros(patches, width))
        blocks = [Block(width, cfg.decoder_heads, qkv_bias=True, norm_layer=norm) for _ in range(cfg.decoder_depth)]
        self.blocks, self.norm = nn.ModuleList(blocks), norm(width)
        self.pred = nn.Linear(width, cfg.patch_size**2 * cfg.channels)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        x = self.embed(tokens)
        blank = self.mask_token.expand(len(x), restore.shape[1] + 2 - x.shape[1], -1)
        x_ = _take(torch.cat([x[:, 2:], blank], dim=1), restore)
        x = torch.cat([x[:, :2], x_ + self.positions], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x))[:, 2:]


def _take(x: Tensor, index: Tensor) -> Tensor:
    return torch.gather(x, dim=1, index=index.unsqueeze(-1).repeat(1, 1, x.shape[2]))


def _patchify(images: Tensor, p: int) -> Tensor:
    n, c, side = images.shape[0], images.shape[1], images.shape[2] // p
    x = images.reshape(n, c, side, p, side, p)
    return torch.einsum("nchpwq->nhwpqc", x).reshape(n, side * side, p * p * c)
