"""What all rivals share: images changed one by one in a DataLoader, plain attention, and the usual loop."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from training.config import RunConfig
from training.data import generator

Grey = NDArray[np.uint8]
Sample = dict[str, Any]

OPTIMISER = "fused AdamW, and no number fetched from the device in a step"
DEVICE = "views, blur and masks of the whole batch at once on the device, from uint8 images"
ATTENTION = "attention in one fused call, no matrix of weights kept"


class Rival(Protocol):
    """A recipe, written plainly. `cfg` is our config of it; `remedies` names what is switched to ours."""

    remedies: frozenset[str]

    def sample(self, image: Grey, rng: np.random.Generator) -> Sample:
        """What the loader makes of one stored image: float32 arrays, and what was drawn for it."""

    def from_ours(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same of a batch of uint8 images by our recipe's own functions and draws."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars: "loss", and the losses of other optimisers."""

    def optimisers(self, run: RunConfig) -> list[tuple[str, torch.optim.Optimizer, float | None]]:
        """The loss of each optimiser, the optimiser, and the largest norm of its gradient."""


class Stopwatch:
    """Seconds by part of a step; waits for a GPU at each lap, so only used where the parts are asked for."""

    def __init__(self, device: torch.device, on: bool = False) -> None:
        self.device, self.on, self.seconds, self.last = device, on, dict[str, float](), 0.0

    def restart(self) -> None:
        """Forget what was measured."""
        self.seconds, self.last = {}, self._now()

    def lap(self, name: str) -> None:
        """Count the time since the last lap for `name`."""
        if self.on:
            now = self._now()
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
            self.last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Images(Dataset[Sample]):
    """A map-style data set as in every public code: one image, its transforms in NumPy, Pillow and OpenCV."""

    def __init__(self, images: NDArray[np.uint8], rival: Any, whole: bool) -> None:
        self.images, self.whole, self.transform = images, whole, rival.sample
        self.rng: np.random.Generator | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        if self.rng is None:  # in each worker its own
            self.rng = np.random.default_rng(torch.initial_seed() % 2**32)
        image = np.ascontiguousarray(self.images[index])
        return {"image": torch.from_numpy(image)[None]} if self.whole else self.transform(image, self.rng)


class Loop:
    """The training loop of the public code: load, move, forward, backward, clip, update, and look at the loss."""

    def __init__(
        self, rival: Any, ours: Any, images: NDArray[np.uint8], run: RunConfig, device: torch.device, workers: int
    ) -> None:
        self.rival, self.ours, self.run, self.device = rival.to(device).train(), ours, run, device
        self.bf16 = run.precision == "bf16"
        self.on_device = "device" in rival.remedies
        self.quiet = "optimiser" in rival.remedies
        self.batches = _endless(Images(images, rival, self.on_device), run.batch_size, workers, device)
        self.optimisers = rival.optimisers(run)
        self.steps, self.watch = 0, Stopwatch(device)

    def step(self) -> None:
        """One optimiser step."""
        self.watch.lap("rest")
        batch = {name: value.to(self.device, non_blocking=True) for name, value in next(self.batches).items()}
        self.watch.lap("data")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            terms = self.rival(self._ours(batch["image"]) if self.on_device else batch)
        self.watch.lap("forward")
        if not self.quiet and not math.isfinite(value := terms["loss"].item()):  # MAE, SimMIM and DINO all fetch it
            raise FloatingPointError(f"loss is {value}")
        for name, optimiser, limit in self.optimisers:
            optimiser.zero_grad()  # also of what another loss left in these parameters
            terms[name].backward()
            self.watch.lap("backward")
            self._update(optimiser, limit)
            self.watch.lap("optimiser")
        if hasattr(self.rival, "after_step"):
            self.rival.after_step()
        self.steps += 1
        self.watch.lap("optimiser")

    def _update(self, optimiser: torch.optim.Optimizer, limit: float | None) -> None:
        params = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(params, math.inf if limit is None else limit)
        if not self.quiet:
            norm.item()  # all three log it
        optimiser.step()

    def _ours(self, images: Tensor) -> dict[str, Tensor]:
        draws = self.ours.draw(len(images), generator("eager", self.steps))
        batch: dict[str, Tensor] = self.rival.from_ours(images, {k: v.to(self.device) for k, v in draws.items()})
        return batch


def _endless(data: Images, batch: int, workers: int, device: torch.device) -> Iterator[Sample]:
    loader = DataLoader(
        data,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=default_collate,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def adam(params: Any, run: RunConfig, remedies: frozenset[str], **others: Any) -> torch.optim.Optimizer:
    """AdamW as everybody calls it, or fused."""
    options = {"lr": run.peak_lr, "betas": run.betas, "weight_decay": run.weight_decay, **others}
    return torch.optim.AdamW(params, fused=True if "optimiser" in remedies else None, **options)


def decay_groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """timm's two groups: 1-D parameters are not decayed."""
    params = [p for p in module.parameters() if p.requires_grad]
    flat, others = [p for p in params if p.ndim <= 1], [p for p in params if p.ndim > 1]
    return [{"params": flat, "weight_decay": 0.0}, {"params": others, "weight_decay": decay}]


def plain_attention(module: nn.Module, remedies: frozenset[str]) -> None:
    """Let timm's attention multiply, soften and multiply again, as MAE's, SimMIM's and DINO's own modules do."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = "attention" in remedies  # type: ignore[assignment]


# ---- one image at a time


def random_box(
    rng: np.random.Generator, side: int, area: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: (left, top, right, bottom) in pixels."""
    for _ in range(10):
        share, shape = rng.uniform(*area), math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(side * math.sqrt(share * shape)), round(side * math.sqrt(share / shape))
        if 0 < width <= side and 0 < height <= side:
            top, left = int(rng.integers(0, side - height + 1)), int(rng.integers(0, side - width + 1))
            return left, top, left + width, top + height
    return 0, 0, side, side


def resized_crop(image: Image.Image, rng: np.random.Generator, cfg: Any, size: int, flip: float) -> Image.Image:
    """Crop, bicubic resize, mirror: Pillow, as torchvision does it."""
    box = random_box(rng, image.width, cfg.crop_area, cfg.crop_ratio)
    image = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < flip else image


def pixels(image: Image.Image) -> NDArray[np.float32]:
    """ToTensor: (H, W, C) float32 in [0, 1]."""
    values = np.asarray(image, np.float32) / 255
    return values if values.ndim == 3 else values[:, :, None]


def blurred(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """OpenCV's Gaussian blur of (H, W, C)."""
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape) if sigma > 0 else image


def planes(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W, C) -> (C, H, W)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
