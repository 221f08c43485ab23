"""USFM on the public SimMIM code (microsoft/SimMIM) with BEiT's encoder, and the official Focal Frequency Loss.

SimMIM's choices: augmentation and a `MaskGenerator` (a NumPy permutation) for each image in the loader, float32 RGB to
the device; attention with its matrix of weights plus the table's bias; the loss and the gradient's norm fetched in each
step. The band-stop as the paper describes it: a complex transform of each channel, in the loader. Focal frequency loss
as published: two complex transforms, real and imaginary part stacked. The rings are computed once, not per image.
"""

import math
from typing import Any

import cv2
import numpy as np
import timm
import torch
from PIL import Image, ImageEnhance
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
from training.losses_frequency import focal_frequency
from training.masking_frequency import ring_edges
from training.models.beit import beit_arguments
from training.transforms import IMAGENET_GREY, IMAGENET_MEAN, IMAGENET_STD

REMEDIES = {
    "attention": ATTENTION,
    "device": DEVICE + "; half-spectrum transforms",
    "spectrum": "focal loss by one half-spectrum transform of the difference",
    "optimiser": OPTIMISER,
}


class Rival(nn.Module):
    """SimMIM with two masks, no mask token, and two losses."""

    def __init__(self, cfg: Any, remedies: frozenset[str], ours: Any = None) -> None:
        super().__init__()
        self.cfg, self.remedies, self._ours = cfg, remedies, (ours,)
        size = {"embed_dim": cfg.encoder_width, "depth": cfg.encoder_depth, "num_heads": cfg.encoder_heads}
        size = {name: value for name, value in size.items() if value is not None}
        shape = {"img_size": cfg.image_size, "patch_size": cfg.patch_size, "in_chans": cfg.channels, "num_classes": 0}
        arguments = beit_arguments(cfg.pos, cfg.layer_scale, **shape, **size)
        self.encoder: Any = timm.create_model(cfg.encoder, drop_path_rate=cfg.drop_path, **arguments)
        self.grid = self.encoder.patch_embed.grid_size
        outputs = cfg.patch_size**2 * cfg.channels
        self.decoder = nn.Sequential(nn.Conv2d(self.encoder.embed_dim, outputs, 1), nn.PixelShuffle(cfg.patch_size))
        plain_attention(self, remedies)
        mean, std = IMAGENET_GREY if cfg.channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)
        self.rings = _rings(cfg)

    def fixed(self, ours: Any) -> None:
        """Nothing is computed in advance."""

    def sample(self, image: Grey, rng: np.random.Generator) -> Sample:
        """The image (C, S, S) float32 normalised, and the same with both masks."""
        cfg = self.cfg
        picture = Image.fromarray(image)
        picture = picture.convert("RGB") if cfg.channels == 3 else picture
        if rng.random() < cfg.rotate:
            picture = picture.rotate(rng.uniform(-cfg.max_angle, cfg.max_angle), Image.Resampling.BILINEAR)
        picture = resized_crop(picture, rng, cfg, cfg.image_size, cfg.flip)
        if rng.random() < cfg.relight:  # ColorJitter
            picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(*cfg.light))
            picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(*cfg.light))
        x = pixels(picture)
        x = blurred(x, rng.uniform(*cfg.blur_sigma)) if rng.random() < cfg.blur else x
        x = (x - self.mean) / self.std
        blocks = cfg.image_size // cfg.block_size
        mask = np.zeros(blocks * blocks, np.uint8)
        mask[rng.permutation(blocks * blocks)[: math.ceil(blocks * blocks * cfg.mask_ratio)]] = 1
        hidden = cv2.resize(mask.reshape(blocks, blocks), x.shape[:2], interpolation=cv2.INTER_NEAREST)[:, :, None]
        gone = np.isin(self.rings, rng.choice(cfg.bands, cfg.bands_masked, replace=False))
        filtered = np.empty_like(x)
        for c in range(x.shape[2]):
            spectrum = np.fft.fftshift(np.fft.fft2(x[:, :, c]))
            filtered[:, :, c] = np.fft.ifft2(np.fft.ifftshift(np.where(gone, 0, spectrum))).real
        return {"sharp": planes(x), "masked": planes(np.where(hidden, x.mean((0, 1)), filtered))}

    def from_ours(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same batch by our recipe."""
        ours = self._ours[0]
        sharp = ours.views(images, draws)
        return {"sharp": ours.normalise(sharp), "masked": ours.normalise(ours.corrupt(sharp, draws)[1])}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """SimMIM's forward with the two losses."""
        tokens = self.encoder.forward_features(batch["masked"])[:, 1:]
        b, _, width = tokens.shape
        pred = self.decoder(tokens.permute(0, 2, 1).reshape(b, width, *self.grid))
        l1 = nn.functional.l1_loss(pred, batch["sharp"])
        if "spectrum" in self.remedies:
            focal = focal_frequency(pred, batch["sharp"], self.cfg.focal_alpha)
        else:
            focal = _focal_frequency(pred.float(), batch["sharp"].float(), self.cfg.focal_alpha)
        return {"loss": self.cfg.lambda_spa * l1 + self.cfg.lambda_freq * focal}

    def optimisers(self, run: RunConfig) -> list[tuple[str, torch.optim.Optimizer, float | None]]:
        """SimMIM's AdamW, its clipping."""
        return [("loss", adam(decay_groups(self, run.weight_decay), run, self.remedies), run.clip_grad)]


def _rings(cfg: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(S, S) the ring of each bin of the centred spectrum; -1 for none."""
    half, edges = cfg.image_size // 2, ring_edges(cfg.image_size, cfg.bands, cfg.protect, cfg.spacing)
    v, u = np.mgrid[-half:half, -half:half]
    ring = np.searchsorted(edges, np.hypot(u, v), side="left") - 1
    ring[(np.abs(u) <= cfg.protect) & (np.abs(v) <= cfg.protect) | (ring >= cfg.bands)] = -1
    return ring


def _focal_frequency(pred: Tensor, target: Tensor, alpha: float) -> Tensor:
    """The official code: EndlessSora/focal-frequency-loss, one patch, one image's own maximum."""
    spectra = [torch.fft.fft2(x, norm="ortho") for x in (pred, target)]
    recon, real = (torch.stack([x.real, x.imag], -1) for x in spectra)
    distance = (recon - real) ** 2
    weight = torch.sqrt(distance[..., 0] + distance[..., 1]).detach() ** alpha
    weight = weight / weight.max(-1).values.max(-1).values[:, :, None, None]
    weight = weight.nan_to_num(0.0).clamp(0.0, 1.0)
    return (weight * (distance[..., 0] + distance[..., 1])).mean()
