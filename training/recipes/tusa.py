"""TUSA: put every pixel into one of K textures, and rebuild the image from that map and K small kernels.

Read `TUSA.step` first: it is the paper's training section, all six terms. The shape of what is seen must go into the
map, its texture into the kernels; afterwards only the encoder's latent vector is used.

Source: Grutman, Shinar, Ilovitsh, "A texture-based framework for foundational ultrasound models", arXiv 2602.01444,
2026. Its code could not be had: what the paper leaves open is marked `ours` and can be set.
"""

import colorsys
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from training.accumulate import among_all, in_mean, rows_of_all
from training.losses_contrast import (
    Positives,
    UsageSource,
    channel_shares,
    logit_consistency,
    nt_xent,
    one_patient,
    perceptual_distance,
    sparsemax,
    ssim,
    usage_entropy,
)
from training.models.perceptual import FrozenFeatures, PerceptualConfig, PerceptualWarning, build_perceptual
from training.models.swin_unetr import NETWORKS, Latent, SwinUNETR2d, network_arguments
from training.models.texture import TextureHead
from training.recipes.registry import decay_groups, recipe
from training.transforms import centre_box, crop, stored
from training.views import ViewConfig, draw_views, photometric_views, spatial_views
from usdata.errors import ConfigError, nearest

SPATIAL, COLOURS = 2, 2  # views of an image: two geometries, each in two colour versions (the paper's)


class TermWeights(BaseModel):
    """Weight of each term in the loss; 0: not computed. The paper gives none: all ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    l1: float = Field(default=1.0, ge=0)
    ssim: float = Field(default=1.0, ge=0)
    lpips: float = Field(default=0.5, ge=0)  # the perceptual term; `lpips.kind` says by which network
    logit: float = Field(default=0.1, ge=0)
    contrast: float = Field(default=0.1, ge=0)
    entropy: float = Field(default=0.01, ge=0)


class TUSAConfig(BaseModel):
    """Every switch of the ablations. Defaults are the paper's setting; `ours` marks what it does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the image
    image_size: int = Field(default=128, ge=64, multiple_of=32)  # pixels per side the network sees
    source_size: int = Field(default=256, gt=0)  # pixels per side of the stored images; the lake's
    views: ViewConfig = ViewConfig()

    # the network; None: as the named one has it
    network: str = "paper"  # ours: of NETWORKS the one nearest to the published 9 M and 22 M parameters
    feature_size: int | None = Field(default=None, gt=0)
    depths: tuple[int, int, int, int] | None = None
    heads: tuple[int, int, int, int] | None = None
    window: int | None = Field(default=None, gt=1)
    residual: bool | None = None
    latent: Latent = "gap"  # ours: the paper does not define its latent vector

    # textures
    textures: int = 5  # K
    kernel_size: int = Field(default=7, ge=1)  # pixels per side of a kernel, odd; ours
    activation: Literal["sparsemax", "softmax"] = "sparsemax"

    # terms of the loss
    weights: TermWeights = TermWeights()
    target: Literal["clean", "input"] = "clean"  # ours: rebuild the view before or after its colours were changed
    lpips: PerceptualConfig = PerceptualConfig()
    positives: Positives = "image"  # ours: the paper does not spell them out
    temperature: float = Field(default=0.5, gt=0)  # ours
    same_patient: Literal["repel", "ignore"] = "repel"  # whether images of one patient are negatives (the paper's)
    proj_head: Literal["mlp", "none"] = "mlp"  # ours: the paper mentions no projection head
    proj_width: int = Field(default=2048, gt=0)  # ours
    proj_out: int = Field(default=512, gt=0)  # ours
    entropy_source: UsageSource = "sparsemax"  # softmax could revive a channel that is used nowhere

    @property
    def perceptual(self) -> bool:
        """Whether the loss has a perceptual term."""
        return self.lpips.kind != "none" and self.weights.lpips > 0

    @property
    def rebuilds(self) -> bool:
        """Whether anything in the loss looks at the rebuilt image."""
        return self.weights.l1 > 0 or self.weights.ssim > 0 or self.perceptual

    @property
    def decodes(self) -> bool:
        """Whether anything in the loss looks at the decoder's logits."""
        return self.rebuilds or self.weights.logit > 0 or self.weights.entropy > 0

    @model_validator(mode="after")
    def _sane(self) -> "TUSAConfig":
        if self.textures < 2:
            raise ValueError(
                f"textures is {self.textures}: a single texture has share 1 in every pixel, so all images would be "
                "rebuilt as the same flat grey; at least 2"
            )
        if self.kernel_size % 2 == 0 or self.kernel_size >= self.image_size:
            raise ValueError(f"kernel_size must be odd and below image_size, not {self.kernel_size}")
        if self.network not in NETWORKS:
            raise ValueError(f"no network {self.network!r}.{nearest(self.network, NETWORKS)}")
        if not self.decodes and self.weights.contrast == 0:
            raise ValueError("all terms of the loss are off: give one of weights.* a positive number")
        return self


_MICRO: Mapping[str, Any] = {
    "image_size": 64,
    "network": "tiny",
    "heads": (1, 2, 4, 8),
    "window": 4,
    "proj_width": 64,
    "proj_out": 32,
    "lpips": {"kind": "none"},
}
_SMALL: Mapping[str, Any] = {
    "image_size": 96,
    "network": "tiny",
    "depths": (2, 2, 2, 2),
    "window": 6,
    "proj_width": 256,
    "proj_out": 128,
    "lpips": {"kind": "none"},
}
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "tusa": {},
    "softmax": {"recipe": {"activation": "softmax"}},
    **{f"no_{term}": {"recipe": {"weights": {term: 0.0}}} for term in ("lpips", "logit", "contrast", "entropy")},
}
"""Name -> overrides, usable with every preset. K and the kernels' size are numbers: `--set textures=3`."""
_RUN: Mapping[str, Any] = {"warmup": 0.0, "betas": (0.9, 0.999), "weight_decay": 0.01, "clip_grad": 1.0, "gamma": 0.0}


@recipe("tusa", TUSAConfig)
class TUSA(nn.Module):
    """SwinUNETR -> K logits per pixel -> sparsemax -> K kernels -> image.

    Modules: `network` (MONAI's, its names), `texture` (the kernels), `head` (projection for the contrastive term only,
    absent without it). The perceptual network is no part of the weights: it is frozen and comes from its own file.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "micro": {"recipe": _MICRO, "run": {**_RUN, "steps": 100, "batch_size": 8, "lr": 3e-4}},
        "small": {"recipe": _SMALL, "run": {**_RUN, "steps": 3000, "batch_size": 16, "lr": 5e-4, "min_lr": 5e-6}},
        # 1000 epochs of 10,000 drawn images, organs uniformly
        "paper": {
            "recipe": {},
            "run": {**_RUN, "steps": 313_000, "batch_size": 32, "lr": 1e-4, "min_lr": 1e-6, "epoch_size": 10_000},
        },
    }
    variants: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = VARIANTS
    perceptual_sha256: Tensor

    def __init__(self, cfg: TUSAConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.network = SwinUNETR2d(cfg.textures, **self._arguments(), image_size=cfg.image_size)
        self.texture = TextureHead(cfg.textures, cfg.kernel_size)
        width = self.network.latent_width(cfg.latent)
        self.head: nn.Module | None = None
        if cfg.weights.contrast > 0:
            layers = [nn.Linear(width, cfg.proj_width), nn.GELU(), nn.Linear(cfg.proj_width, cfg.proj_out)]
            self.head = nn.Sequential(*layers) if cfg.proj_head == "mlp" else nn.Identity()
        logits: nn.Conv2d = self.network.net.out.conv.conv
        nn.init.normal_(logits.weight, std=0.02)  # so that all channels start inside sparsemax's support (ours)
        nn.init.zeros_(logits.bias)  # type: ignore[arg-type]
        self.texture.requires_grad_(cfg.rebuilds)
        self.network.requires_grad_(cfg.decodes)
        self.network.net.swinViT.requires_grad_(True)
        chosen = {**cfg.weights.model_dump(), "lpips": cfg.weights.lpips if cfg.perceptual else 0.0}
        self.weights: dict[str, float] = {name: weight for name, weight in chosen.items() if weight > 0}
        self._frozen: list[FrozenFeatures] = []  # in a list: neither in the state dict nor switched by train()
        self.register_buffer("perceptual_sha256", torch.zeros(32, dtype=torch.uint8))  # of its file; 0: of none
        self.register_load_state_dict_post_hook(_refuse_other_weights)

    # ---- pretraining

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """All random numbers of a step on `n` images: what `draw_views` gives for 2 x 2 views."""
        return draw_views(n, SPATIAL, COLOURS, self.cfg.views, generator)

    def step(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """One pretraining step. The loss is here.

        Args:
            images: (B, 1, 256, 256) uint8.
            draws: what `draw(B, ...)` gives, and `conditions` if there are `columns`, on the images' device.

        Returns:
            Scalars: "loss"; each term that is on, raw ("l1", "ssim", "lpips", "logit", "contrast", "entropy") and as it
            enters the loss ("weighted/l1", ...); "textures_used", e to the entropy of the channels' use, 1 ... K; and
            "support", how many channels share a pixel. "contrast" and "entropy" look across the whole batch: all ranks
            and, with what `survey` saw, all micro-batches.

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        cfg = self.cfg
        clean, seen = self.views(images, draws)  # (B, 2, 1, S, S), (B, 2, 2, 1, S, S) in [0, 1]
        encoded = self.network.encode(x := _signed(seen.flatten(0, 2)))  # all four views of all images in one pass
        terms: dict[str, Callable[[], Tensor]] = {}
        if cfg.weights.contrast > 0:
            ignored = one_patient(rows_of_all(draws, "patient")) if "patient" in draws else None
            z = among_all(self.project(encoded.latent(cfg.latent)), draws, "z")  # (all B, 2, 2, proj_out)
            terms["contrast"] = lambda: nt_xent(z, cfg.temperature, cfg.positives, ignored)
        if cfg.decodes:
            logits = self.network.decode(x, encoded.hidden).float()  # (4 B, K, S, S)
            maps = self.activate(logits)
            shares = in_mean(channel_shares(logits, maps, cfg.entropy_source), draws, "shares")  # (K,) of all images
            terms["logit"] = lambda: logit_consistency(logits.unflatten(0, seen.shape[:3]))
            terms["entropy"] = lambda: usage_entropy(shares)
        if cfg.rebuilds:
            target = clean[:, :, None].expand_as(seen) if cfg.target == "clean" else seen
            rebuilt = self.texture(maps).reshape(seen.shape)  # in (-1, 1)
            terms["l1"] = lambda: (rebuilt - _signed(target)).abs().mean()
            terms["ssim"] = lambda: 1 - ssim(_unsigned(rebuilt).flatten(0, 2), target.flatten(0, 2)).mean()
            terms["lpips"] = lambda: self.perceptual_term(rebuilt, clean[:, :, None] if cfg.target == "clean" else seen)
        raw = {name: term() for name, term in terms.items() if name in self.weights}
        weighted = {f"weighted/{name}": self.weights[name] * value for name, value in raw.items()}
        loss = torch.stack(list(weighted.values())).sum()
        watched = _use(shares.detach(), maps.detach()) if cfg.decodes else {}
        return {"loss": loss, **raw, **{name: value.detach() for name, value in weighted.items()}, **watched}

    def survey(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the terms across the batch need of a micro-batch: rows "z", "patient"; of the means "shares".

        Costs one more pass without gradient. Arguments as of `step`.
        """
        cfg, seen = self.cfg, self.views(images, draws)[1]
        encoded = self.network.encode(x := _signed(seen.flatten(0, 2)))
        rows: dict[str, Tensor] = {}
        if cfg.weights.contrast > 0:
            rows = {"z": self.project(encoded.latent(cfg.latent)), **{k: draws[k] for k in ("patient",) if k in draws}}
        if not cfg.decodes:
            return rows, {}
        logits = self.network.decode(x, encoded.hidden).float()
        return rows, {"shares": channel_shares(logits, self.activate(logits), cfg.entropy_source)}

    @property
    def columns(self) -> tuple[str, ...]:
        """Catalog columns that `conditions` needs: the patient, where one patient's images are no negatives."""
        return ("patient",) if self.cfg.same_patient == "ignore" and self.cfg.weights.contrast > 0 else ()

    def conditions(self, columns: Mapping[str, Sequence[str | None]]) -> dict[str, Tensor]:
        """Patients' names -> {"patient": (n,) int64}, equal for equal names in every process; -1 where unknown."""
        codes = [-1 if name is None else _code(str(name)) for name in columns["patient"]]
        return {"patient": torch.tensor(codes, dtype=torch.int64)}

    def views(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Two geometries of each image, (B, 2, 1, S, S), and two colour versions of each, (B, 2, 2, 1, S, S).

        float32 in [0, 1].

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        clean = spatial_views(stored(images, self.cfg.source_size), draws["affine"], self.cfg.image_size)
        return clean, photometric_views(clean, draws, self.cfg.views.sigma[1])

    def activate(self, logits: Tensor) -> Tensor:
        """Logits (B, K, H, W) -> texture maps that sum to 1 over K in every pixel, float32."""
        return sparsemax(logits) if self.cfg.activation == "sparsemax" else logits.float().softmax(1)

    def project(self, latent: Tensor) -> Tensor:
        """Latents of all views -> encodings for the contrastive term, (B, 2, 2, proj_out)."""
        assert self.head is not None
        z: Tensor = self.head(latent)
        return z.unflatten(0, (-1, SPATIAL, COLOURS))

    def perceptual_term(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Perceptual distance of (B, 2, 2, 1, S, S) in (-1, 1) to (B, 2, 1 or 2, 1, S, S) in [0, 1]; scalar."""
        frozen = self.frozen_features(rebuilt.device)
        with torch.no_grad():
            wanted = frozen(target.flatten(0, 2)).unflatten(0, target.shape[:3])
        found = frozen(_unsigned(rebuilt).flatten(0, 2)).unflatten(0, rebuilt.shape[:3])
        return perceptual_distance(found, wanted)

    def frozen_features(self, device: torch.device) -> FrozenFeatures:
        """The perceptual network on `device`, read from its file when it is first asked for.

        Raises:
            ConfigError: see `build_perceptual`.
        """
        if not self._frozen:
            frozen = build_perceptual(self.cfg.lpips)
            if frozen is None:
                raise ConfigError("lpips.kind is 'none': there is no perceptual network.")
            self._frozen = [frozen.to(device)]
            digest = list(bytes.fromhex(frozen.sha256 or "00" * 32))
            self.perceptual_sha256.copy_(torch.tensor(digest, dtype=torch.uint8))
        return self._frozen[0]

    @torch.no_grad()
    def pictures(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The step in pictures of the first view, float32 in [0, 1]: (B, 1, S, S), but "map" (B, 3, S, S) in colour.

        "map" mixes one hue per channel (red, then round the colour circle); "texture k" is channel k alone.
        """
        clean, seen = self.views(images, draws)
        view = seen[:, 0, 0]
        maps = self.activate(self.network(_signed(view))[0])
        hues = [colorsys.hsv_to_rgb(k / self.cfg.textures, 1.0, 1.0) for k in range(self.cfg.textures)]
        colour = torch.einsum("bkhw,kc->bchw", maps, torch.tensor(hues, device=maps.device))
        single = {f"texture {k + 1}": maps[:, k : k + 1] for k in range(self.cfg.textures)}
        rebuilt = _unsigned(self.texture(maps))
        return {"clean": clean[:, 0], "view": view, "map": colour.clamp(0, 1), "rebuilt": rebuilt, **single}

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Two optimiser groups over the trainable parameters: decayed, and not (biases, norms, kernels, bias tables).

        A run asks for them before it touches any data: missing perceptual weights show here.

        Raises:
            ConfigError: the perceptual network's weights are missing or wrong.
        """
        if self.cfg.perceptual:
            self.frozen_features(next(self.parameters()).device)
        if self.cfg.weights.lpips > 0 and self.cfg.lpips.kind != "radimagenet":
            warnings.warn(
                f"The perceptual term is of kind {self.cfg.lpips.kind!r}, not the paper's 'radimagenet'.",
                PerceptualWarning,
                stacklevel=2,
            )
        return decay_groups(self, lambda n: n.startswith("texture.") or n.endswith("position_bias_table"), weight_decay)

    # ---- after pretraining

    def network_input(self, images: Tensor) -> Tensor:
        """The deterministic view of stored uint8 images, all of each: (B, 1, S, S) float32 in [-1, 1].

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        box = centre_box(self.cfg.source_size, 1.0)
        return _signed(crop(stored(images, self.cfg.source_size), box, self.cfg.image_size))

    def encode(self, images: Tensor, patient: Tensor | None = None) -> Tensor:
        """Latent vectors of stored images: neither projection head nor decoder takes part.

        Args:
            images: (B, 1, 256, 256) uint8.
            patient: of `conditions`; no feature depends on it.

        Returns:
            (B, D) float32, D = 576 for the default.

        Raises:
            ValueError: the images are not uint8 of `cfg.source_size`.
        """
        return self.network.encode(self.network_input(images)).latent(self.cfg.latent)

    def feature_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """The encoder's five maps, (B, F * 2^i, S / 2^(i + 1), S / 2^(i + 1)) for i = 0 ... 4, float32."""
        return self.network.encode(self.network_input(images)).hidden

    def checkpointed(self) -> list[nn.Module]:
        """What `grad_checkpointing` computes again: Swin blocks, and the convolutional blocks around them."""
        return self.network.blocks()

    def facts(self) -> dict[str, str]:
        """Of the metadata: the kind of the perceptual network, which no two parts of one run may differ in."""
        return {"perceptual": self.cfg.lpips.kind if self.cfg.perceptual else "none"}

    def encoder_export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The encoder under MONAI's names, and how to build it: `arch` with `arch_args`, not a timm model.

        `SwinUNETR(**arch_args).swinViT` of MONAI loads the weights strictly; its last output, averaged over places, is
        `encode(images)` of `network_input(images)` (latent "gap"), unless the last stage's map, a sixteenth of the
        image, is smaller than the window: MONAI's relative positions are wrong there, and ours are not.
        """
        encoder = self.network.net.swinViT
        state = {name: value.detach().cpu().clone() for name, value in encoder.state_dict().items()}
        args = self._arguments()
        meta = {
            "model_name": None,
            "arch": "monai.networks.nets.SwinUNETR",
            "arch_part": "swinViT",
            "arch_args": {
                "in_channels": 1,
                "out_channels": self.cfg.textures,
                "spatial_dims": 2,
                "feature_size": args["feature_size"],
                "depths": list(args["depths"]),
                "num_heads": list(args["heads"]),
                "window_size": args["window"],
                "use_v2": args["residual"],
            },
            "latent": self.cfg.latent,
            "input_size": [1, self.cfg.image_size, self.cfg.image_size],
            "mean": [0.5],
            "std": [0.5],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            **self.facts(),
            "perceptual_sha256": bytes(self.perceptual_sha256.tolist()).hex(),
        }
        return state, meta

    # ---- small parts

    def _arguments(self) -> dict[str, Any]:
        cfg = self.cfg
        changed = {name: getattr(cfg, name) for name in ("feature_size", "depths", "heads", "window", "residual")}
        return {"heads": (3, 6, 12, 24), "residual": False, **network_arguments(cfg.network, **changed)}


def _refuse_other_weights(module: nn.Module, _: Any) -> None:
    """After loading a run's state: its perceptual network must be the one that is in use."""
    assert isinstance(module, TUSA)
    used = module._frozen[0].sha256 if module._frozen else ""
    saved = bytes(module.perceptual_sha256.tolist()).hex()
    if used and saved != used:
        raise ConfigError(
            f"The run's perceptual weights had SHA-256 {saved}; those in {module.cfg.lpips.weights} have {used}.",
            hint="Give the file that the run began with.",
        )


def _code(name: str) -> int:
    """A number below 2^63 for a name; it names no one and is the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def _use(shares: Tensor, maps: Tensor) -> dict[str, Tensor]:
    entropy = -(shares * shares.clamp(min=1e-6).log()).sum()
    return {"textures_used": entropy.exp(), "support": (maps > 0).sum(1).float().mean()}


def _signed(x: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return 2 * x - 1


def _unsigned(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1]."""
    return (x + 1) / 2
