"""A recipe of two small matrices and a cohort in memory: they isolate the trainer from models and files."""

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from training.recipes.registry import recipe


class TinyConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = 16
    width: int = 8
    noise: float = 0.1
    poison_at: int = 0  # the step whose loss is NaN, counted in this process; 0: none


@recipe("tiny", TinyConfig)
class Tiny(nn.Module):
    """A linear autoencoder of 16 x 16 thumbnails under noise."""

    presets: ClassVar[dict[str, Any]] = {
        "micro": {
            "recipe": {},
            "run": {"steps": 12, "batch_size": 8, "lr": 1e-2, "log_every": 2, "checkpoint_every": 4, "warmup": 0.25},
        },
        "small": {"recipe": {"width": 16}, "run": {"steps": 50, "batch_size": 8}},
    }

    def __init__(self, cfg: TinyConfig) -> None:
        super().__init__()
        self.cfg, self.seen = cfg, 0
        self.encoder = nn.Linear(256, cfg.width)
        self.decoder = nn.Linear(cfg.width, 256)

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "noise": torch.randn(n, 256, generator=generator),
            "flip": torch.rand(n, generator=generator) < 0.5,
        }

    def view(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.float() / 255, 16).flatten(1)

    def step(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen += 1
        images = torch.where(draws["flip"][:, None, None, None], images.flip(-1), images)
        sharp = self.view(images)
        mse = F.mse_loss(self.decoder(self.encoder(sharp + self.cfg.noise * draws["noise"])), sharp)
        bias = self.encoder.bias.square().mean()
        if self.seen == self.cfg.poison_at:
            mse = mse * float("nan")
        return {"loss": mse + 0.1 * bias, "mse": mse, "bias": bias}

    def pictures(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        sharp = self.view(images)
        seen = sharp + self.cfg.noise * draws["noise"]
        stages = {"sharp": sharp, "noisy": seen, "rebuilt": self.decoder(self.encoder(seen))}
        return {name: value.view(-1, 1, 16, 16).clamp(0, 1) for name, value in stages.items()}

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [
            {"params": [p for p in self.parameters() if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(self.view(images))

    def encoder_export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.encoder.state_dict()), {"model_name": "", "model_args": {}, "mean": [0.0], "std": [1.0]}


class FakeLoader:
    """A shuffled pass per epoch; of each global batch, rank r takes the r-th stretch."""

    def __init__(
        self,
        images: np.ndarray,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        kill_at: int,
        columns: dict[str, list[Any]] | None = None,
    ) -> None:
        self.columns = columns or {}
        self.images, self.batch_size, self.seed, self.rank, self.world = images, batch_size, seed, rank, world
        self.epoch, self.batch, self.kill_at, self.read = 0, 0, kill_at, 0

    def __len__(self) -> int:
        return len(self.images) // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.images))
        while self.batch < len(self):
            self.read += 1
            if self.read == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            start = (self.batch * self.world + self.rank) * self.batch_size
            self.batch += 1
            these = order[start : start + self.batch_size]
            known = {name: [values[i] for i in these] for name, values in self.columns.items()}
            yield {"image": torch.from_numpy(self.images[these])[:, None], **known}
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


class FakeCohort:
    """`n` images of two organs (bright above or below, so that a probe can tell them apart) of `n / 4` patients."""

    def __init__(self, n: int = 40, hash: str = "c0ffee", kill_at: int = 0) -> None:
        rng = np.random.default_rng(0)
        self.group, self.split = list[str | None](), list[str | None]()  # of a lake that is split
        self.organ = [("breast", "thyroid")[i % 2] for i in range(n)]
        ramp = np.linspace(20, 180, 256)[:, None]
        level = np.stack([ramp if organ == "breast" else ramp[::-1] for organ in self.organ])
        texture = rng.integers(0, 60, (n, 16, 16)).repeat(16, 1).repeat(16, 2)
        self._images = (level + texture).astype(np.uint8)
        self.rows, self.hash, self.name, self.sql, self.kill_at = n, hash, None, "all", kill_at

    def table(self, columns: Sequence[str]) -> pa.Table:
        n = self.rows
        known = {
            "organ": self.organ,
            "label": [None if i % 5 == 0 else f"grade {i % 3}" for i in range(n)],
            "dataset": ["fake"] * n,
            "patient": [f"p{i // 4}" for i in range(n)],
            **dict.fromkeys(("study", "clip", "duplicate_group"), [None] * n),
            "group": self.group or [None] * n,
            "split": self.split or [None] * n,
            "sample_id": [f"fake/{i:03d}" for i in range(n)],
            "licence": ["CC-BY-4.0"] * n,
            "commercial_use": ["yes"] * n,
            "redistribution": ["attribution"] * n,
        }
        return pa.table({name: pa.array(known[name], pa.string()) for name in columns})

    def images(self) -> np.ndarray:
        return self._images

    def loader(self, batch_size: int, **how: Any) -> FakeLoader:
        columns = self.table(how.get("columns", ())).to_pydict()
        return FakeLoader(self._images, batch_size, how["seed"], how["rank"], how["world"], self.kill_at, columns)

    def batches(self, batch_size: int, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        known = self.table(columns).to_pydict()
        for start in range(0, self.rows, batch_size):
            these = slice(start, start + batch_size)
            words = {name: values[these] for name, values in known.items()}
            yield {"image": torch.from_numpy(self._images[these])[:, None], **words}
