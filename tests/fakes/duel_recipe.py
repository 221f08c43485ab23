"""A recipe of everything that the trainer offers: two optimisers, a teacher, a centre, a catalog column."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from training.distributed import mean_over_ranks
from training.recipes.registry import recipe

CLASSES = ("breast", "thyroid")


class DuelConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = 16
    width: int = 8
    adv_start: float = 0.0  # share of the steps after which the discriminator begins
    poison: str = ""  # the term that becomes NaN ...
    poison_at: float = 2.0  # ... from this progress on


@recipe("duel", DuelConfig)
class Duel(nn.Module):
    """Rebuilds thumbnails so that a discriminator takes them for real, near the features of its own moving average."""

    presets: ClassVar[dict[str, Any]] = {
        "micro": {
            "recipe": {},
            "run": {"steps": 8, "batch_size": 8, "lr": 1e-2, "log_every": 2, "checkpoint_every": 4, "warmup": 0.25},
        }
    }
    columns: ClassVar[tuple[str, ...]] = ("organ",)
    optimisers: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "discriminator": {"kind": "adam", "betas": (0.5, 0.9), "lr": 1e-3, "weight_decay": 0.0}
    }
    centre: Tensor
    seen: Tensor
    progress: Tensor

    def __init__(self, cfg: DuelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = nn.Linear(256, cfg.width)
        self.organ = nn.Linear(len(CLASSES), cfg.width, bias=False)
        self.decoder = nn.Linear(cfg.width, 256)
        self.discriminator = nn.Linear(256, 1)
        self.teacher = nn.Linear(256, cfg.width).requires_grad_(False)
        self.teacher.load_state_dict(self.encoder.state_dict())
        self.register_buffer("centre", torch.zeros(cfg.width))
        self.register_buffer("seen", torch.zeros(cfg.width + 1))  # sum of the teacher's outputs, and how many
        self.register_buffer("progress", torch.zeros(()))

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"noise": torch.randn(n, 256, generator=generator)}

    def conditions(self, columns: dict[str, Any]) -> dict[str, Tensor]:
        codes = [CLASSES.index(word) if word in CLASSES else -1 for word in columns["organ"]]
        return {"organ": torch.tensor(codes, dtype=torch.int64)}

    def facts(self) -> dict[str, str]:
        return {"classes": json.dumps(CLASSES)}

    def view(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.float() / 255, 16).flatten(1)

    def tokens(self, sharp: Tensor, organ: Tensor | None) -> Tensor:
        features: Tensor = self.encoder(sharp)
        if organ is not None:
            known = (organ >= 0).float()[:, None]
            features = features + self.organ(F.one_hot(organ.clamp(min=0), len(CLASSES)).float() * known)
        return features

    def step(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        sharp = self.view(images)
        features = self.tokens(sharp + 0.1 * draws["noise"], draws["organ"])
        fake = self.decoder(features)
        terms = {"mse": F.mse_loss(fake, sharp)}
        with torch.no_grad():
            target = self.teacher(sharp)
            self.seen += torch.cat([target.sum(0), torch.full((1,), float(len(target)))])
        terms["distil"] = F.mse_loss(features, target - self.centre)
        loss = terms["mse"] + 0.1 * terms["distil"]
        if not self.cfg.adv_start or float(self.progress) >= self.cfg.adv_start:
            terms["adv"] = F.softplus(-self.discriminator(fake)).mean()
            real = F.softplus(-self.discriminator(sharp)).mean()
            terms["loss/discriminator"] = real + F.softplus(self.discriminator(fake.detach())).mean()
            loss = loss + 0.1 * terms["adv"]
        terms["loss"] = loss
        if self.cfg.poison and float(self.progress) >= self.cfg.poison_at:
            terms[self.cfg.poison] = terms[self.cfg.poison] * float("nan")
        return terms

    def after_step(self, progress: float) -> None:
        with torch.no_grad():
            for mean, value in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
                mean.lerp_(value, 0.1 * (1 - progress))
            total = mean_over_ranks(self.seen)
            self.centre.lerp_(total[:-1] / total[-1], 0.1)
            self.seen.zero_()
            self.progress.fill_(progress)

    def pictures(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        sharp = self.view(images)
        rebuilt = self.decoder(self.tokens(sharp, draws["organ"]))
        return {name: v.view(-1, 1, 16, 16).clamp(0, 1) for name, v in (("sharp", sharp), ("rebuilt", rebuilt))}

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [
            {"params": [self.encoder.weight, self.decoder.weight], "weight_decay": weight_decay},
            {"params": [self.encoder.bias, self.decoder.bias], "no_decay": True},
            {"params": list(self.organ.parameters()), "lr_scale": 0.1},
            {"params": list(self.discriminator.parameters()), "optimiser": "discriminator"},
        ]

    def encode(self, images: Tensor, organ: Tensor | None = None) -> Tensor:
        return self.tokens(self.view(images), organ)

    def encoder_export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.encoder.state_dict()), {"model_name": None, "arch": {"width": self.cfg.width}}
