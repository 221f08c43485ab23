"""USFM: rebuild an image from which two rings of frequencies and two fifths of the blocks are gone.

Read `USFM.step` first: it is the paper's pretraining section in six lines. The ablations of the paper's tables and the
other readings of its equations are the same code with other settings: see `VARIANTS`.

Source: Jiao et al., "USFM: A universal ultrasound foundation model generalized to tasks and organs towards label
efficient image analysis", Medical Image Analysis 96 (2024) 103202; what it leaves open follows the official mask
generators, SimMIM and Focal Frequency Loss, or is marked `ours`.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from training.losses import Region
from training.losses_frequency import focal_frequency, pixel_l1
from training.masking_frequency import Spacing, band_map, band_stop, log_spectrum, removed_share, ring_edges
from training.masking_spatial import Rounding, dual_mask, enlarge, lowest, masked_blocks
from training.models.beit import (
    TABLE,
    Positions,
    add_drop_path,
    beit_arguments,
    build_beit,
    per_block_tables,
    set_drop_path,
)
from training.models.vit import build_vit
from training.recipes.registry import decay_groups, recipe
from training.transforms import (
    IMAGENET_GREY,
    IMAGENET_MEAN,
    IMAGENET_STD,
    centre_box,
    crop,
    draw_crops,
    shown_share,
    stored,
)
from training.usfm_augment import relight, rotate
from training.views import blur_each

VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "usfm": {},
    "woS": {"run": {"gamma": 1.0}},  # without the balanced sampling: organs as frequent as in the data
    "woF": {"recipe": {"bands_masked": 0, "lambda_freq": 0.0}},  # without the frequency mask and its loss
    "inv_sqrt": {"run": {"gamma": -0.5}},  # Eq. 1 word for word: the organ itself is drawn by 1 / sqrt(N)
    "masked_l1": {"recipe": {"loss_on": "masked"}},  # SimMIM's region
    "vit": {"recipe": {"encoder": "vit_base_patch16_224", "pos": "abs", "layer_scale": None}},
}
"""Name -> {"recipe": overrides of the config, "run": overrides of the trainer's}, usable with every preset."""


class USFMConfig(BaseModel):
    """Every switch of the paper's ablations. Defaults are the paper's setting; `ours` marks what it does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the image
    image_size: int = Field(default=224, gt=0, multiple_of=2)  # pixels per side the network sees
    source_size: int = Field(default=256, gt=0)  # pixels per side of the stored images; the lake's
    channels: Literal[1, 3] = 3  # 3: grey repeated, as the released weights; 1: one-channel stem, cheaper
    eval_view: Literal["centre", "whole"] = "whole"  # ours: official downstream code resizes the whole image

    # augmentation; the paper names the operations, the numbers are ours
    crop_area: tuple[float, float] = (0.67, 1.0)  # share of the image a random crop keeps; ours (SimMIM)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width/height of a random crop; ours (SimMIM)
    flip: float = Field(default=0.5, ge=0, le=1)  # probability of mirroring; ours (SimMIM; not in the paper's list)
    rotate: float = Field(default=0.5, ge=0, le=1)  # probability; ours (TinyUSFM)
    max_angle: float = Field(default=30.0, ge=0, le=180)  # degrees either way; ours (TinyUSFM)
    relight: float = Field(default=0.5, ge=0, le=1)  # probability of brightness and contrast; ours
    light: tuple[float, float] = (0.8, 1.2)  # range of either factor; ours
    blur: float = Field(default=0.2, ge=0, le=1)  # probability; ours
    blur_sigma: tuple[float, float] = (0.1, 1.0)  # pixels of the crop; ours

    # encoder: a BEiT or a plain ViT of timm, and what to change in it (None: as timm has it)
    encoder: str = "beit_base_patch16_224"
    pos: Positions = "rel_shared"  # official code; abs: learned absolute positions, and the only ones of a plain ViT
    layer_scale: float | None = Field(default=0.1, gt=0)  # official code; None: none
    patch_size: int = Field(default=16, gt=0)
    encoder_width: int | None = Field(default=None, gt=0, multiple_of=4)
    encoder_depth: int | None = Field(default=None, gt=0)
    encoder_heads: int | None = Field(default=None, gt=0)
    drop_path: float = Field(default=0.1, ge=0, lt=1)  # of the last block, rising from 0; ours (SimMIM)
    decay_tables: bool = False  # weight decay on tables of relative positions; ours (timm: none)

    # spatial mask
    mask_ratio: float = Field(default=0.4, ge=0, lt=1)  # share of the blocks that are painted over
    block_size: int = Field(default=32, gt=0)  # pixels; ours (SimMIM)
    block_count: Rounding = "ceil"  # ours (official generator)

    # frequency mask
    bands: int = Field(default=7, gt=0)
    bands_masked: int = Field(default=2, ge=0)  # rings removed from each image; 0: no frequency mask
    protect: int = Field(default=5, gt=0)  # cycles per image; 5: 11 x 11, the paper's 10 x 10 made symmetric
    spacing: Spacing = "linear"  # ours: the official generator's numbers are not published
    clamp: bool = False  # cut the band-stop's result off at 0 and 1; ours: no, the removed rings would come back

    # loss
    loss_on: Region = "all"  # of the L1; ours: Eq. 12 prints the whole image, SimMIM has the masked blocks
    lambda_spa: float = Field(default=1.0, ge=0)  # ours: Eq. 11 is a misprint, the text has one factor
    lambda_freq: float = Field(default=0.4, ge=0)
    focal_alpha: float = Field(default=1.0, ge=0)
    loss_units: Literal["normalised", "unit"] = "normalised"  # ours (SimMIM); unit: both terms on [0, 1]

    optimiser: Literal["adamw", "adam"] = "adamw"  # ours (SimMIM); adam: the paper's word for all its models

    @model_validator(mode="after")
    def _sane(self) -> "USFMConfig":
        if self.block_size % self.patch_size or self.image_size % self.block_size:
            raise ValueError(
                f"block_size {self.block_size} must be a multiple of patch_size {self.patch_size} and divide"
                f" image_size {self.image_size}"
            )
        if self.bands_masked > self.bands:
            raise ValueError(f"bands_masked {self.bands_masked} is more than the {self.bands} bands")
        if self.encoder.startswith("vit_") and self.pos != "abs":
            raise ValueError(f"{self.encoder} has absolute positions only: set pos=abs, or take a beit_... encoder")
        for name, low, high in (("crop_area", 0.0, 1.0), ("crop_ratio", 0.0, math.inf), ("light", 0.0, math.inf)):
            smallest, largest = getattr(self, name)
            if not low < smallest <= largest <= high:
                raise ValueError(f"{name} must be (smallest, largest) above {low:g}, at most {high:g}")
        if not 0 <= self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma must be (smallest, largest), not negative: {self.blur_sigma}")
        return self


_MICRO: Mapping[str, Any] = {
    "image_size": 64,
    "channels": 1,
    "patch_size": 8,
    "block_size": 16,
    "protect": 2,  # of 32 cycles; 5 of 112 in the paper
    "layer_scale": 1.0,  # 0.1 holds two blocks back for hundreds of steps
    "encoder_width": 64,
    "encoder_depth": 2,
    "encoder_heads": 4,
    "drop_path": 0.0,
}
_SMALL: Mapping[str, Any] = {
    "image_size": 128,
    "channels": 1,
    "protect": 3,
    "encoder_width": 192,
    "encoder_heads": 3,
    "drop_path": 0.0,
}
_RUN: Mapping[str, Any] = {"betas": (0.9, 0.999), "clip_grad": 5.0}  # SimMIM


@recipe("usfm", USFMConfig)
class USFM(nn.Module):
    """BEiT (or ViT) on all patches of the dual-masked image; one linear layer back to pixels. No mask token.

    Modules: `encoder` (timm's, timm's keys), `decoder` (1 x 1 convolution to p * p * C channels, pixel shuffle).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "micro": {"recipe": _MICRO, "run": {**_RUN, "steps": 300, "batch_size": 32, "lr": 1e-3}},
        "small": {"recipe": _SMALL, "run": {**_RUN, "steps": 5000, "batch_size": 64, "lr": 5e-4}},
        # 200 epochs of 2,187,915 draws, 10 of them warm-up; rates are SimMIM's, 1e-4 and 5e-6 per 512 images
        "paper": {
            "recipe": {},
            "run": {**_RUN, "steps": 213_664, "batch_size": 2048, "base_lr": 5e-5, "min_lr": 2e-5, "gamma": 0.5},
        },
    }
    variants: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = VARIANTS
    rings: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, cfg: USFMConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.blocks = (cfg.image_size // cfg.block_size) ** 2
        self.hidden_blocks = masked_blocks(self.blocks, cfg.mask_ratio, cfg.block_count)
        self.encoder: Any = _build_encoder(cfg)
        if cfg.drop_path:
            add_drop_path(self.encoder, cfg.drop_path)
        self.grid: tuple[int, int] = self.encoder.patch_embed.grid_size
        width, outputs = self.encoder.embed_dim, cfg.patch_size**2 * cfg.channels
        self.decoder = nn.Sequential(nn.Conv2d(width, outputs, 1), nn.PixelShuffle(cfg.patch_size))
        mean, std = IMAGENET_GREY if cfg.channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
        edges = ring_edges(cfg.image_size, cfg.bands, cfg.protect, cfg.spacing)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.register_buffer("rings", band_map(cfg.image_size, edges, cfg.protect), persistent=False)

    # ---- pretraining

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """All random numbers of a step on `n` images, on the generator's device.

        Returns:
            "box" (n, 4) int64 crop (top, left, height, width) in stored pixels; "flip" (n,) bool; "angle" (n,) radians;
            "brightness", "contrast" (n,) factors; "sigma" (n,) pixels; "blocks" (n, N) bool, True where masked;
            "bands" (n, bands) bool, True where removed; with drop path "depth" (n, 2 * blocks) uniform in [0, 1).
        """
        cfg = self.cfg

        def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            return low + (high - low) * torch.rand(n, *shape, generator=generator, device=generator.device)

        turn, light, soft = uniform() < cfg.rotate, uniform() < cfg.relight, uniform() < cfg.blur
        angle = math.radians(cfg.max_angle)
        draws = {
            "box": draw_crops(n, cfg.source_size, generator, cfg.crop_area, cfg.crop_ratio),
            "flip": uniform() < cfg.flip,
            "angle": uniform(low=-angle, high=angle) * turn,
            "brightness": torch.where(light, uniform(low=cfg.light[0], high=cfg.light[1]), 1.0),
            "contrast": torch.where(light, uniform(low=cfg.light[0], high=cfg.light[1]), 1.0),
            "sigma": uniform(low=cfg.blur_sigma[0], high=cfg.blur_sigma[1]) * soft,
            "blocks": lowest(uniform(self.blocks), self.hidden_blocks),
            "bands": lowest(uniform(cfg.bands), cfg.bands_masked),
        }
        return {**draws, "depth": uniform(2 * len(self.encoder.blocks))} if cfg.drop_path else draws

    def step(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """One pretraining step. The loss is here.

        Args:
            images: (B, 1, 256, 256) uint8.
            draws: what `draw(B, ...)` gives, on the images' device.

        Returns:
            Scalars: "loss"; its raw terms "l1" and "focal"; without gradient "l1_masked" and "l1_visible", the L1 over
            painted and other pixels, and "removed", the share of the images' variance that the band-stop took.

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        cfg = self.cfg
        sharp = self.views(images, draws)  # (B, 1, S, S)
        filtered, masked, hidden = self.corrupt(sharp, draws)  # (B, 1, S, S) each
        pred = self.predict(self.normalise(masked), draws.get("depth"))  # (B, C, S, S)
        pred, target = self._loss_units(pred), self._loss_units(self.normalise(sharp))
        l1, focal = pixel_l1(pred, target, cfg.loss_on, hidden), focal_frequency(pred, target, cfg.focal_alpha)
        loss = cfg.lambda_spa * l1 + cfg.lambda_freq * focal
        return {"loss": loss, "l1": l1, "focal": focal, **_watched(pred, target, hidden, sharp, filtered)}

    def views(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """The augmented crop, (B, 1, S, S) float32 in [0, 1]: what is masked, and what is to be rebuilt.

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        turned = rotate(stored(images, self.cfg.source_size), draws["angle"])
        cut = crop(turned, draws["box"], self.cfg.image_size, draws["flip"])
        lit = relight(cut, draws["brightness"], draws["contrast"])
        return blur_each(lit[:, 0], draws["sigma"], self.cfg.blur_sigma[1])[:, None]

    def corrupt(self, sharp: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The crop after the band-stop, after both masks, and which pixels are painted over: (B, 1, S, S) each.

        All channels are equal and normalising only shifts and scales, so one grey channel is masked, before it.
        """
        filtered = band_stop(sharp, draws["bands"], self.rings) if self.cfg.bands_masked else sharp
        filtered = filtered.clamp(0.0, 1.0) if self.cfg.clamp else filtered
        hidden = enlarge(draws["blocks"], self.cfg.block_size)
        return filtered, dual_mask(sharp, filtered, hidden), hidden

    def predict(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
        """Rebuild: normalised images (B, C, S, S) -> normalised images (B, C, S, S).

        Args:
            depth: (B, 2 * blocks) noise for drop path, used in training mode only; None: no branch is dropped.
        """
        set_drop_path(self.encoder, depth)
        tokens = self.encoder.forward_features(x)[:, 1:]  # (B, N, D) without the class token
        return self.decoder(tokens.mT.unflatten(2, self.grid))

    @torch.no_grad()
    def pictures(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The step in pictures, each (B, 1, S, S) float32 in [0, 1]; spectra share the scale of the image's own."""
        sharp = self.views(images, draws)
        filtered, masked, _ = self.corrupt(sharp, draws)
        pred = self.predict(self.normalise(masked), draws.get("depth")).float()
        rebuilt = (pred * self.std + self.mean).mean(1, keepdim=True)
        stages = {"image": sharp, "band-stop": filtered, "both masks": masked, "rebuilt": rebuilt}
        stages = {name: value.clamp(0, 1) for name, value in stages.items()}
        brightest = torch.fft.fft2(sharp).abs().log1p().amax((-2, -1), keepdim=True)
        spectra = {
            "spectrum": sharp,
            "its band-stop": filtered,
            "its both masks": masked,
            "its rebuilt": rebuilt,
        }
        return {**stages, **{name: log_spectrum(value, brightest).clamp(0, 1) for name, value in spectra.items()}}

    @property
    def optimisers(self) -> dict[str, dict[str, Any]]:
        """The one optimiser; rates, decay and betas are the run's."""
        return {"main": {"kind": self.cfg.optimiser}}

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Two optimiser groups: decayed, and not (1-D parameters, class token, positions, and their tables)."""
        exempt = ("cls_token", "pos_embed") if self.cfg.decay_tables else ("cls_token", "pos_embed", TABLE)
        return decay_groups(self, lambda name: name.endswith(exempt), weight_decay)

    # ---- after pretraining

    def view(self, images: Tensor) -> Tensor:
        """The deterministic view of stored uint8 images: (B, 1, S, S) float32 in [0, 1].

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        box = centre_box(self.cfg.source_size, shown_share(self.cfg.eval_view))
        return crop(stored(images, self.cfg.source_size), box, self.cfg.image_size, inside=False)

    def network_input(self, images: Tensor) -> Tensor:
        """What a timm model with the exported weights wants: the view, normalised, (B, C, S, S) float32."""
        return self.normalise(self.view(images))

    def encode(self, images: Tensor) -> Tensor:
        """Features of stored uint8 images (B, 1, 256, 256): the mean over the patch outputs, (B, D) float32.

        The class token's output is left out: no loss of the pretraining reaches it.

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        set_drop_path(self.encoder, None)
        return self.encoder.forward_features(self.network_input(images))[:, 1:].mean(dim=1).float()

    def encoder_export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The encoder for others: timm's keys only, and the call that loads them strictly.

        `timm.create_model(meta["model_name"], **meta["model_args"], checkpoint_path=...)` on `network_input(images)`
        gives `encode(images)`. A BEiT has its table in every block, ready for fine-tuning.
        """
        cfg = self.cfg
        state = {name: value.detach().cpu().clone() for name, value in self.encoder.state_dict().items()}
        state = per_block_tables(state, len(self.encoder.blocks))
        meta = {
            "model_name": cfg.encoder,
            "model_args": _encoder_arguments(cfg, per_block=True),
            "input_size": [cfg.channels, cfg.image_size, cfg.image_size],
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "interpolation": "bicubic",
            "crop_pct": shown_share(cfg.eval_view),
        }
        return state, meta

    # ---- small parts

    def normalise(self, grey: Tensor) -> Tensor:
        """(B, 1, S, S) grey -> (B, C, S, S) minus ImageNet's mean, over its standard deviation."""
        return (grey - self.mean) / self.std

    def _loss_units(self, x: Tensor) -> Tensor:
        """Normalised (B, C, S, S) -> what the loss compares."""
        return x.float() * self.std + self.mean if self.cfg.loss_units == "unit" else x


@torch.no_grad()
def _watched(pred: Tensor, target: Tensor, hidden: Tensor, sharp: Tensor, filtered: Tensor) -> dict[str, Tensor]:
    """What the log shows beside the loss; without gradient."""
    return {
        "l1_masked": pixel_l1(pred, target, "masked", hidden),
        "l1_visible": pixel_l1(pred, target, "masked", ~hidden),
        "removed": removed_share(sharp, filtered),
    }


def _is_vit(cfg: USFMConfig) -> bool:
    return cfg.encoder.startswith("vit_")


def _build_encoder(cfg: USFMConfig) -> Any:
    if _is_vit(cfg):
        return build_vit(cfg.encoder, **_encoder_arguments(cfg))  # positions start as sines and learn; ours
    return build_beit(cfg.encoder, cfg.pos, cfg.layer_scale, **_shape_arguments(cfg))


def _encoder_arguments(cfg: USFMConfig, per_block: bool = False) -> dict[str, Any]:
    """Arguments of the `timm.create_model` call, plain values only."""
    if _is_vit(cfg):
        return {**_shape_arguments(cfg), "init_values": cfg.layer_scale or 0.0, "global_pool": "avg", "fc_norm": False}
    return beit_arguments(cfg.pos, cfg.layer_scale, per_block=per_block, **_shape_arguments(cfg))


def _shape_arguments(cfg: USFMConfig) -> dict[str, Any]:
    args = {"img_size": cfg.image_size, "patch_size": cfg.patch_size, "in_chans": cfg.channels, "num_classes": 0}
    changed = {"embed_dim": cfg.encoder_width, "depth": cfg.encoder_depth, "num_heads": cfg.encoder_heads}
    return {**args, **{key: value for key, value in changed.items() if value is not None}}
