"""D2MAE: rebuild the sharp image from a quarter of the patches of a blurred one.

Read `D2MAE.step` first: it is the paper's pretraining section in six lines. DeblurrMAE and plain MAE, the paper's
baselines, are the same code with other settings: see `VARIANTS`.

Source: Kang et al., "D2MAE: Diffusional Deblurring MAE for Ultrasound Image Pre-training", MICCAI 2025; what it leaves
open follows the official MAE and DeblurMIM code, or is marked `ours`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from training.losses import Region, masked_errors, norm_pix, patch_errors, region_mean
from training.masking import blur_bank, gather_patches, gaussian_blur, random_keep, visible_patches
from training.models.decoders import MaskedDecoder
from training.models.positions import LevelEmbedding, LevelVariant
from training.models.vit import build_vit, encode_patches, patchify, position_rows, unpatchify
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
from usdata.errors import ConfigError

Level = Tensor | int

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "d2mae": {},
    "deblurrmae": {"blur": "static", "embed": "none", "finetune_blur": "fixed"},
    "mae": {"blur": "none", "embed": "none", "loss_on": "masked", "finetune_blur": "none"},
}
"""The paper's method and its two baselines as overrides of the config, usable with every preset (`--variant`)."""


class D2MAEConfig(BaseModel):
    """Every switch of the paper's ablations. Defaults are the paper's setting; `ours` marks what it does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the image
    image_size: int = Field(default=224, gt=0)  # pixels per side the network sees; ours (MAE, DeblurMIM: 224)
    source_size: int = Field(default=256, gt=0)  # pixels per side of the stored images; the lake's
    channels: Literal[1, 3] = 3  # 3: grey repeated, as MAE; 1: one-channel stem and target, cheaper
    crop_area: tuple[float, float] = (0.2, 1.0)  # share of the image a random crop keeps; ours (MAE, DeblurMIM)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width/height of a random crop; ours (MAE)
    flip: float = Field(default=0.5, ge=0, le=1)  # probability of mirroring left to right; ours (MAE)
    eval_view: Literal["centre", "whole"] = "centre"  # ours: MAE shows the central 7/8, DeblurMIM's validation all

    # encoder: a plain timm ViT, and what to change in it (None: as timm has it)
    encoder: str = "vit_base_patch16_224"
    patch_size: int = Field(default=16, gt=0)
    encoder_width: int | None = Field(default=None, gt=0, multiple_of=4)
    encoder_depth: int | None = Field(default=None, gt=0)
    encoder_heads: int | None = Field(default=None, gt=0)

    # decoder; ours (MAE's), the paper says only that there is one
    decoder_width: int = Field(default=512, gt=0, multiple_of=4)
    decoder_depth: int = Field(default=8, gt=0)
    decoder_heads: int = Field(default=16, gt=0)

    # corruption
    mask_ratio: float = Field(default=0.75, ge=0, lt=1)  # share of patches the encoder does not see
    blur: Literal["none", "static", "levels"] = "levels"
    sigmas: tuple[float, ...] = tuple(i / 10 for i in range(1, 12))  # pixels; level t has sigma sigmas[t - 1]
    static_sigma: float = Field(default=1.1, gt=0)  # pixels; for blur = static (DeblurMIM)
    blur_at: Literal["crop", "source"] = "crop"  # ours: on the crop's grid, so that t means one blur; DeblurMIM: source

    # what tells the network the level
    embed: Literal["none", "add", "token"] = "token"
    embed_variant: LevelVariant = "sinusoid+vector"  # ours, inferred from the paper's +0.0009 % parameters
    decoder_blur: Literal["keep", "drop"] = "keep"  # ours: whether the decoder gets the level token's output

    # loss
    loss_on: Region = "all"
    norm_pix: bool = False  # ours (DeblurMIM): normalised targets are no image, and OBS needs one

    # before fine-tuning: the optimal blurriness search (training/obs.py)
    finetune_blur: Literal["none", "fixed", "obs"] = "obs"
    fixed_sigma: float = Field(default=0.5, gt=0)  # pixels; for finetune_blur = fixed, a level's; static: static_sigma
    obs_step: int = Field(default=2, gt=0)  # every how many levels the search tries
    obs_criterion: Literal["abs", "rel"] = "abs"  # ours: rel divides by the error of doing nothing
    obs_mask_ratio: float = Field(default=0.0, ge=0, lt=1)  # ours: above 0 for an audit of the search
    obs_masks: int = Field(default=1, gt=0)  # ours: masks to average over when obs_mask_ratio is above 0

    @property
    def levels(self) -> tuple[float, ...]:
        """Sigma in pixels of level t = 0, 1, ..., T; level 0 is no blur and never drawn in pretraining."""
        if self.blur == "levels":
            return (0.0, *self.sigmas)
        return (0.0, self.static_sigma) if self.blur == "static" else (0.0,)

    @property
    def finetune_sigma(self) -> float:
        """Sigma in pixels of the one level for finetune_blur = fixed; with static blur that of the pretraining."""
        return self.static_sigma if self.blur == "static" else self.fixed_sigma

    @model_validator(mode="after")
    def _sane(self) -> "D2MAEConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(f"decoder_width {self.decoder_width} is not a multiple of decoder_heads")
        if not self.sigmas or list(self.sigmas) != sorted(set(self.sigmas)) or self.sigmas[0] <= 0:
            raise ValueError(f"sigmas must be one or more, positive and rising, not {list(self.sigmas)}")
        if self.finetune_blur == "fixed" and self.finetune_sigma not in self.levels:
            raise ValueError(f"fixed_sigma {self.fixed_sigma} is the sigma of no blur level: {list(self.levels)}")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"crop_area must be (smallest, largest) in (0, 1], not {self.crop_area}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must be (smallest, largest) above 0, not {self.crop_ratio}")
        return self


_MICRO: Mapping[str, Any] = {
    "image_size": 64,
    "channels": 1,
    "encoder": "vit_tiny_patch16_224",
    "patch_size": 8,
    "encoder_width": 64,
    "encoder_depth": 2,
    "encoder_heads": 4,
    "decoder_width": 64,
    "decoder_depth": 2,
    "decoder_heads": 4,
}
_SMALL: Mapping[str, Any] = {
    "image_size": 128,
    "channels": 1,
    "encoder": "vit_tiny_patch16_224",
    "decoder_width": 128,
    "decoder_depth": 4,
    "decoder_heads": 4,
}


@recipe("d2mae", D2MAEConfig)
class D2MAE(nn.Module):
    """ViT encoder on class token, level token and visible patches of the blurred image; light decoder on all patches.

    Modules: `encoder` (timm's ViT, timm's keys), `level` (the level embedding, absent for embed = none), `decoder`.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "micro": {"recipe": _MICRO, "run": {"steps": 300, "batch_size": 32, "lr": 1e-3}},
        "small": {"recipe": _SMALL, "run": {"steps": 5000, "batch_size": 64, "lr": 5e-4}},
        # thyroid: 8,000 epochs of 10 steps, 40 of them warm-up; plain shuffle within one organ
        "paper": {"recipe": {}, "run": {"steps": 80_000, "batch_size": 1024, "warmup": 0.005, "gamma": 1.0}},
    }
    variants: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        name: {"recipe": changes} for name, changes in VARIANTS.items()
    }
    bank: Tensor
    source_bank: Tensor | None
    mean: Tensor
    std: Tensor

    def __init__(self, cfg: D2MAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = build_vit(cfg.encoder, **self._encoder_args())
        position_rows(self.encoder).requires_grad_(False)  # fixed while pretraining
        self.grid: tuple[int, int] = self.encoder.patch_embed.grid_size
        self.patches = self.grid[0] * self.grid[1]
        visible_patches(self.patches, cfg.mask_ratio)  # fails early
        width, levels = self.encoder.embed_dim, cfg.levels
        self.level = LevelEmbedding(len(levels) - 1, width, cfg.embed_variant) if cfg.embed != "none" else None
        self.prefix = 2 if cfg.embed == "token" else 1  # tokens before the patches: class, and the level's
        self.decoder = MaskedDecoder(
            width,
            self.grid,
            cfg.patch_size**2 * cfg.channels,
            width=cfg.decoder_width,
            depth=cfg.decoder_depth,
            heads=cfg.decoder_heads,
            prefix=1 if cfg.decoder_blur == "drop" else self.prefix,
        )
        mean, std = IMAGENET_GREY if cfg.channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.register_buffer("bank", blur_bank(levels, cfg.image_size), persistent=False)
        source = blur_bank(levels, cfg.source_size) if cfg.blur_at == "source" else None
        self.register_buffer("source_bank", source, persistent=False)

    # ---- pretraining

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """All random numbers of a step on `n` images, on the generator's device.

        Returns:
            "box" (n, 4) int64 crop (top, left, height, width) in stored pixels; "flip" (n,) bool; "t" (n,) int64 blur
            level, uniform over 1 ... T (0 without blur); "noise" (n, N) float32, whose smallest stay visible.
        """
        cfg, top = self.cfg, len(self.cfg.levels)
        on: dict[str, Any] = {"generator": generator, "device": generator.device}
        return {
            "box": draw_crops(n, cfg.source_size, generator, cfg.crop_area, cfg.crop_ratio),
            "flip": torch.rand(n, **on) < cfg.flip,
            "t": torch.randint(min(1, top - 1), top, (n,), **on),
            "noise": torch.rand(n, self.patches, **on),
        }

    def step(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """One pretraining step. The loss is here.

        Args:
            images: (B, 1, 256, 256) uint8.
            draws: what `draw(B, ...)` gives, on the images' device.

        Returns:
            Scalars: "loss"; "mse_masked" and "mse_visible", its parts over hidden and visible patches (no gradient).

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        sharp, blurred = self.views(images, draws)  # (B, 1, S, S) each
        keep, mask = random_keep(draws["noise"], self.cfg.mask_ratio)  # (B, V), (B, N)
        pred = self.predict(blurred, draws["t"], keep)  # (B, N, p * p * C)
        errors = patch_errors(pred, self.target(sharp))  # the sharp image, not the blurred one
        return {"loss": region_mean(errors, self.cfg.loss_on, mask), **masked_errors(errors, mask)}

    def views(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The sharp crop and the same crop blurred, (B, 1, S, S) float32 in [0, 1] each; one crop, so they are paired.

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        cfg, box, flip = self.cfg, draws["box"], draws["flip"]
        source = stored(images, self.cfg.source_size)
        sharp = crop(source, box, cfg.image_size, flip)
        if self.source_bank is None:
            return sharp, self.blur(sharp, draws["t"])
        return sharp, crop(gaussian_blur(source, self.source_bank, draws["t"]), box, cfg.image_size, flip)

    def blur(self, sharp: Tensor, t: Tensor) -> Tensor:
        """Blur (B, 1, S, S) float32 by level t (B,) int64 on the network's own grid."""
        return sharp if self.cfg.blur == "none" else gaussian_blur(sharp, self.bank, t)

    def predict(self, blurred: Tensor, t: Tensor, keep: Tensor | None = None) -> Tensor:
        """Deblur: what the network makes of the visible patches of a blurred image.

        Args:
            blurred: (B, 1, S, S) float32 in [0, 1]. t: (B,) int64 in [0, T].
            keep: (B, V) int64 visible patches; None: all of them, nothing masked.

        Returns:
            (B, N, p * p * C) normalised pixels (of each patch on its own with `norm_pix`).
        """
        tokens = self.tokens(blurred, t, keep)
        if self.cfg.embed == "token" and self.cfg.decoder_blur == "drop":
            tokens = torch.cat([tokens[:, :1], tokens[:, 2:]], dim=1)
        return self.decoder(tokens, keep)

    def tokens(self, blurred: Tensor, t: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """Encoder outputs (B, prefix + V, D): class, level token if there is one, visible patches.

        `t` None leaves the level out altogether: no token, nothing added.
        """
        grey = patchify(blurred, self.cfg.patch_size)  # (B, N, p * p)
        visible = self._normalise(grey if keep is None else gather_patches(grey, keep))  # before the projection
        level = None if self.level is None or t is None else self.level(t)
        place = "token" if self.cfg.embed == "token" else "shift"
        return encode_patches(self.encoder, visible, keep, **{place: level})

    def target(self, sharp: Tensor) -> Tensor:
        """What `predict` should give: (B, 1, S, S) in [0, 1] -> (B, N, p * p * C)."""
        patches = self._normalise(patchify(sharp, self.cfg.patch_size))
        return norm_pix(patches) if self.cfg.norm_pix else patches

    @torch.no_grad()
    def pictures(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The step in pictures, each (B, 1, S, S) float32 in [0, 1], hidden patches mid-grey in "masked".

        Where only hidden patches are trained (`loss_on` = masked), "reconstruction" shows the input in the others.
        """
        sharp, blurred = self.views(images, draws)
        keep, mask = random_keep(draws["noise"], self.cfg.mask_ratio)
        pred = self.predict(blurred, draws["t"], keep).float()
        if self.cfg.norm_pix:
            target = self._normalise(patchify(sharp, self.cfg.patch_size))
            pred = pred * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
        pixels = (pred.unflatten(-1, (-1, self.cfg.channels)) * self.std + self.mean).mean(-1)  # (B, N, p * p) grey
        hidden = mask[:, :, None]
        input_patches = patchify(blurred, self.cfg.patch_size)
        if self.cfg.loss_on == "masked":
            pixels = torch.where(hidden, pixels, input_patches)
        masked = input_patches.masked_fill(hidden, 0.5)
        stages = {"masked": masked, "reconstruction": pixels}
        drawn = {name: unpatchify(value, self.cfg.patch_size, 1).clamp(0, 1) for name, value in stages.items()}
        return {"sharp": sharp, "blurred": blurred.clamp(0, 1), **drawn}

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Two optimiser groups over the trainable parameters: decayed, and not (biases, norms, level embedding)."""
        return decay_groups(self, lambda name: name.startswith("level."), weight_decay)

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
        channels = (1, -1, 1, 1)
        return (self.view(images) - self.mean.view(channels)) / self.std.view(channels)

    def encode(self, images: Tensor, t: Level | None = None) -> Tensor:
        """Features of stored images: the mean over the patch outputs, never over class or level token.

        Args:
            images: (B, 1, 256, 256) uint8.
            t: blur level in 0 ... T, one for all or (B,) int64: the view is blurred by it and the network told so.
                None: neither, which is exactly what timm computes with the exported weights.

        Returns:
            (B, D) float32.

        Raises:
            ConfigError: `t` is not one of the levels.
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        view = self.view(images)
        if t is None:
            return self.tokens(view, None)[:, 1:].mean(dim=1).float()
        levels = self._levels(t, view)
        return self.tokens(self.blur(view, levels), levels)[:, self.prefix :].mean(dim=1).float()

    def encoder_export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The encoder for others: timm's keys only, and the call that loads them strictly.

        `timm.create_model(meta["model_name"], **meta["model_args"], checkpoint_path=...)` on `network_input(images)`
        gives `encode(images)`. The level embedding is not a ViT's and stays in the recipe's own weights.
        """
        state = {name: value.detach().cpu().clone() for name, value in self.encoder.state_dict().items()}
        args = {**self._encoder_args(), "global_pool": "avg", "fc_norm": False}
        mean, std = self.mean.tolist(), self.std.tolist()
        meta = {
            "model_name": self.cfg.encoder,
            "model_args": args,
            "input_size": [self.cfg.channels, self.cfg.image_size, self.cfg.image_size],
            "mean": mean,
            "std": std,
            "interpolation": "bicubic",
            "crop_pct": shown_share(self.cfg.eval_view),
        }
        return state, meta

    def level_of(self, sigma: float) -> int:
        """The level t whose blur has this sigma, in pixels.

        Raises:
            ConfigError: no level has it.
        """
        for t, known in enumerate(self.cfg.levels):
            if abs(known - sigma) < 1e-9:
                return t
        raise ConfigError(f"No blur level has sigma {sigma}.", hint=f"Levels 0, 1, ...: {self.cfg.levels}")

    # ---- small parts

    def _encoder_args(self) -> dict[str, Any]:
        cfg = self.cfg
        args = {"img_size": cfg.image_size, "patch_size": cfg.patch_size, "in_chans": cfg.channels, "num_classes": 0}
        changed = {"embed_dim": cfg.encoder_width, "depth": cfg.encoder_depth, "num_heads": cfg.encoder_heads}
        return {**args, **{key: value for key, value in changed.items() if value is not None}}

    def _normalise(self, grey: Tensor) -> Tensor:
        """(B, N, p * p) in [0, 1] -> (B, N, p * p * C) normalised, channel fastest."""
        return ((grey[..., None] - self.mean) / self.std).flatten(2)

    def _levels(self, t: Level, like: Tensor) -> Tensor:
        top = len(self.cfg.levels) - 1
        levels = torch.as_tensor(t, dtype=torch.int64)
        if levels.numel() and not 0 <= int(levels.min()) <= int(levels.max()) <= top:
            raise ConfigError(f"Blur level {t} is not in 0 ... {top}.")
        return levels.to(like.device).expand(len(like))
