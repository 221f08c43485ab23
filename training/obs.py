"""Optimal blurriness search (OBS): how much to blur each image before a D2MAE encoder is fine-tuned on it.

For every image, every tried level t blurs the deterministic view and the pretrained model deblurs it with nothing
masked; the level whose result is closest to the view is the image's own. No labels are used, so every split may be
searched. Done once per checkpoint, in eval mode and float32, and kept in Parquet tables (training/obs_cache.py). Whole
cohorts of any size: training/obs_cohort.py, `usdata obs`.

With light blur the input already is the target, so a model that has learned the identity picks the lowest level for
everything: look at the histogram (a warning says so when one level takes more than 90 %).

Source: D2MAE, Algorithm 1 and Table 3c.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from training.losses import patch_errors
from training.masking import random_keep
from training.obs_cache import Cache
from usdata.errors import ConfigError, UsdataError

_TIE = 1e-6  # ours: losses closer than this share are one; float32 sums differ by so much with the place in the batch
_FLOOR = 1e-5  # of the "rel" criterion's denominator
DOMINANT = 0.9  # share of the images at one level, above which the search has told nothing


class OneLevelWarning(UserWarning):
    """Nearly all images got the same blur level: the search has told nothing about them."""


class Deblurrer(Protocol):
    """What the search needs of a model; `D2MAE` has it, and a test's oracle does."""

    cfg: Any
    training: bool

    def train(self, mode: bool = True) -> Any: ...
    def view(self, images: Tensor) -> Tensor: ...
    def blur(self, sharp: Tensor, t: Tensor) -> Tensor: ...
    def predict(self, blurred: Tensor, t: Tensor, keep: Tensor | None = None) -> Tensor: ...
    def target(self, sharp: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Search:
    """Result of the search, in the order of `ids`.

    Attributes:
        ids: image ids, n of them.
        t_star: (n,) int64, the chosen level of each.
        levels: the L levels tried, rising.
        losses: (n, L) float32, the criterion at each level.
        computed: how many were computed now; the rest came from the cache.
    """

    ids: tuple[str, ...]
    t_star: NDArray[np.int64]
    levels: tuple[int, ...]
    losses: NDArray[np.float32]
    computed: int

    @property
    def histogram(self) -> dict[int, int]:
        """How many images chose each level that was tried."""
        return {level: int((self.t_star == level).sum()) for level in self.levels}

    @property
    def curve(self) -> dict[int, float]:
        """Mean of the criterion over all images, per level."""
        return {level: float(mean) for level, mean in zip(self.levels, self.losses.mean(axis=0), strict=True)}


def search_levels(top: int, step: int) -> tuple[int, ...]:
    """The levels to try: 1, 1 + step, ... up to `top`. With 11 levels and step 2: 1, 3, 5, 7, 9, 11.

    Raises:
        ConfigError: step below 1, or a model without blur levels.
    """
    if step < 1 or top < 1:
        raise ConfigError(f"The search needs blur levels and a step of 1 or more, not {top} levels and step {step}.")
    return tuple(range(1, top + 1, step))


def choose(losses: Tensor) -> Tensor:
    """Column of the smallest loss, the first of them on ties: (B, L) -> (B,) int64."""
    lowest = losses.min(dim=1, keepdim=True).values
    return (losses <= lowest + lowest.abs() * _TIE).int().argmax(dim=1)


def level_losses(model: Deblurrer, sharp: Tensor, levels: Sequence[int], noise: Tensor | None = None) -> Tensor:
    """The criterion of each image at each level; all levels go through the model in one batch.

    Args:
        model: the pretrained model; `model.cfg.obs_criterion` "abs" is the mean squared error between its output and
            the sharp view (in normalised pixels), "rel" that over the error of the blurred input itself.
        sharp: (B, 1, S, S) float32 in [0, 1], the deterministic view.
        levels: L levels to try.
        noise: (K, B, N), for K random masks of `model.cfg.obs_mask_ratio` to average over; None: nothing masked.

    Returns:
        (B, L) float32.
    """
    images, tried = len(sharp), len(levels)
    t = torch.tensor(levels, device=sharp.device).repeat_interleave(images)  # (L * B,) level by level
    stacked = sharp.repeat(tried, 1, 1, 1)
    blurred, target = model.blur(stacked, t), model.target(stacked)
    keeps: list[Tensor | None] = [None]
    if noise is not None:
        keeps = [random_keep(n.repeat(tried, 1), model.cfg.obs_mask_ratio)[0] for n in noise]
    errors = torch.stack([patch_errors(model.predict(blurred, t, keep), target).mean(1) for keep in keeps]).mean(0)
    if model.cfg.obs_criterion == "rel":
        errors = errors / patch_errors(model.target(blurred), target).mean(1).clamp(min=_FLOOR)
    return errors.reshape(tried, images).T.contiguous()


@contextmanager
def _inference(model: Deblurrer, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradient, float32; the model's own mode comes back afterwards."""
    training = model.training
    model.train(False)
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        model.train(training)


def search(
    model: Deblurrer,
    images: NDArray[np.uint8] | Tensor,
    ids: Sequence[str],
    *,
    cache: Path | None = None,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> Search:
    """Find every image's level, or read it from the cache.

    Args:
        model: pretrained `D2MAE` on `device`; its config says levels, step, criterion and masks.
        images: (n, H, W) or (n, 1, H, W) uint8, as stored.
        ids: n different names, e.g. sample ids.
        cache: folder of the Parquet tables, made if need be; None: compute everything, keep nothing. A row counts only
            for the same id, pixels, view, search settings and weights.
        batch_size: images at a time; the model sees L times as many. The result does not depend on it.
        device: where the model is.

    Raises:
        ConfigError: wrong number of ids or an id twice, or a model whose output is no image (`norm_pix`).
        LakeError: the cache can't be read or written.
    """
    if len(ids) != len(images) or len(set(ids)) != len(ids):
        raise ConfigError(f"The search needs one name per image: {len(images)} images, {len(set(ids))} names.")
    pixels = torch.as_tensor(images)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels
    with Searcher(model, cache, device) as searcher:
        starts = range(0, len(ids), batch_size)
        found = [searcher.losses(pixels[i : i + batch_size], ids[i : i + batch_size]) for i in starts]
    losses = np.concatenate([np.empty((0, len(searcher.levels)), np.float32), *found])
    result = Search(tuple(ids), searcher.best(losses), searcher.levels, losses, searcher.computed)
    _warn_if_degenerate(result)
    return result


class Searcher:
    """The search, batch by batch; on leaving the `with` what was computed is in the cache, however it is left.

    Args:
        model, cache, device: see `search`.

    Raises:
        ConfigError: a model without blur levels, or whose output is no image (`norm_pix`).
        LakeError: the cache can't be read.
    """

    def __init__(self, model: Deblurrer, cache: Path | None, device: torch.device | str) -> None:
        cfg = model.cfg
        if cfg.norm_pix:
            raise ConfigError("A model trained with norm_pix predicts no image, so no blur level fits best.")
        self.model, self.device, self.computed = model, torch.device(device), 0
        self.levels = search_levels(len(cfg.levels) - 1, cfg.obs_step)
        self.settings = _digest(cfg)
        self.checkpoint = weights_hash(model) if isinstance(model, nn.Module) else self.settings
        self.cache = Cache(cache, self.checkpoint, self.settings, self.levels)

    def losses(self, pixels: Tensor, ids: Sequence[str]) -> NDArray[np.float32]:
        """The criterion of a batch at every level, out of the cache where it is known.

        Args:
            pixels: (n, 1, H, W) uint8, as stored.
            ids: n names.

        Returns:
            (n, L) float32.

        Raises:
            UsdataError: a loss that is not finite.
            LakeError: the cache can't be written.
        """
        views = [_view_hash(self.settings, image) for image in pixels]
        known, losses = self.cache.find(ids, views)
        todo = np.flatnonzero(~known).tolist()
        if todo:
            names = [ids[i] for i in todo]
            with _inference(self.model, self.device):
                sharp = self.model.view(pixels[todo].to(self.device))
                found = level_losses(self.model, sharp, self.levels, _noise(self.model, names, self.device))
            losses[todo] = fresh = found.cpu().numpy()
            if not np.isfinite(fresh).all():
                first = names[int((~np.isfinite(fresh)).any(axis=1).argmax())]
                raise UsdataError(f"The model's error on image {first!r} is not finite.", step="obs")
            self.computed += len(todo)
            self.cache.add(names, [views[i] for i in todo], self.best(fresh).tolist(), fresh)
        return losses

    def best(self, losses: NDArray[np.float32]) -> NDArray[np.int64]:
        """The level with the smallest loss of each image, the lowest on ties: (n, L) float32 -> (n,) int64."""
        if not len(losses):
            return np.empty(0, np.int64)
        return np.array(self.levels)[choose(torch.from_numpy(losses)).numpy()]

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.cache.flush()


def finetune_levels(
    model: Any, images: NDArray[np.uint8] | Tensor, ids: Sequence[str], **search_options: Any
) -> NDArray[np.int64]:
    """The blur level of each image for fine-tuning and testing, as `model.cfg.finetune_blur` says: (n,) int64.

    "none" is level 0 for all, "fixed" the level with `fixed_sigma`, "obs" the search; options go to `search`.

    Raises:
        ConfigError: see `search` and `D2MAE.level_of`.
    """
    if model.cfg.finetune_blur == "obs":
        return search(model, images, ids, **search_options).t_star
    level = 0 if model.cfg.finetune_blur == "none" else model.level_of(model.cfg.finetune_sigma)
    return np.full(len(images), level, np.int64)


def weights_hash(model: nn.Module) -> str:
    """16 hex digits that change with any weight, name, shape or type of the model's state."""
    digest = xxhash.xxh3_64()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(cfg: Any) -> str:
    """Everything but the weights that the losses depend on: the model's whole config."""
    text = json.dumps(cfg.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _view_hash(settings: str, image: Tensor) -> str:
    digest = xxhash.xxh3_64(settings.encode())
    digest.update(image.cpu().numpy().tobytes())
    return digest.hexdigest()


def _noise(model: Deblurrer, ids: Sequence[str], device: torch.device) -> Tensor | None:
    """Noise for the masks, (K, B, N): each image's own, whatever batch it comes in; None if nothing is masked."""
    cfg = model.cfg
    if cfg.obs_mask_ratio == 0:
        return None
    patches = (cfg.image_size // cfg.patch_size) ** 2
    draws = []
    for name in ids:
        generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(name.encode()) >> 1)
        draws.append(torch.rand(cfg.obs_masks, patches, generator=generator))
    return torch.stack(draws, dim=1).to(device)


def _warn_if_degenerate(result: Search) -> None:
    level, count = max(result.histogram.items(), key=lambda item: item[1])
    if len(result.ids) > 1 and len(result.levels) > 1 and count > DOMINANT * len(result.ids):
        curve = ", ".join(f"{t}: {loss:.3g}" for t, loss in result.curve.items())
        warnings.warn(
            f"{count} of {len(result.ids)} images chose blur level {level}; mean loss per level {curve}",
            OneLevelWarning,
            stacklevel=3,
        )
