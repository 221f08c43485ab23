"""What an encoder is told of an image beside its pixels: nothing, its organ, its own guess of it, or a wrong organ.

A recipe that can be told has "organ" among its `columns` and takes `encode(images, organ=slots)`; one whose `encode`
takes `mode` too, and which has an `organ_head`, can guess. All others see the pixels alone: condition "null".

Source: ARL, inference modes `label`, `null`, `predict`, and a deliberately wrong label "to measure the risk"; how a
wrong one is chosen is ours.
"""

import inspect
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import stable_seed
from usdata.errors import ConfigError, nearest

CONDITIONS = ("null", "label", "predict", "wrong")
FROM_CATALOG = ("label", "wrong")  # those that read the image's organ in the catalog
TOLD = "organ"  # the one column an encoder can be told


def offered(recipe: Any) -> tuple[str, ...]:
    """The conditions that a recipe's module can encode under; "null" is always the first."""
    if TOLD not in getattr(recipe, "columns", ()):
        return ("null",)
    guesses = _takes_mode(recipe) and getattr(recipe, "organ_head", None) is not None
    return ("null", "label", "predict", "wrong") if guesses else ("null", "label", "wrong")


def chosen(recipe: Any, condition: str | None) -> str:
    """The condition to encode under; None: what the weights' config calls `inference`, else "null".

    Raises:
        ConfigError: no such condition (with the nearest), or these weights can't be told so.
    """
    can = offered(recipe)
    if condition is None:
        usual = str(getattr(recipe.cfg, "inference", "null"))
        return usual if usual in can else "null"
    if condition not in CONDITIONS:
        raise ConfigError(
            f"No condition {condition!r}.{nearest(condition, CONDITIONS)}", hint=f"Conditions: {', '.join(CONDITIONS)}"
        )
    if condition not in can:
        reason = "they have no organ classifier" if len(can) > 1 else "they see nothing but the pixels"
        raise ConfigError(
            f"These weights can't encode with condition {condition!r}: {reason}.",
            hint=f"They know:  --condition {' | '.join(can)}",
        )
    return condition


def slots_of(recipe: Any, organs: Sequence[str | None]) -> Tensor:
    """Class of each organ's name in the recipe's list, (n,) int64; -1: none.

    Raises:
        ConfigError: a name outside the recipe's vocabulary.
    """
    found: Tensor = recipe.conditions({TOLD: list(organs)})[TOLD]
    return found


def class_names(recipe: Any) -> list[str]:
    """The recipe's classes of organs, in the order of their slots."""
    return [str(name) for name in json.loads(recipe.facts()["classes"])]


def wrong_classes(present: Sequence[int], classes: int, seed: int = 0) -> dict[int, int]:
    """For each class that occurs, another one to name in its place; the same for all its images.

    The classes that occur take each other's places in one random cycle, so that the encoder sees the organs it would
    see, each at the wrong images. If only one occurs, a random other class stands for it.

    Args:
        present: classes that occur; -1 (no class) stays untold.
        classes: how many there are.
        seed: of the cycle.

    Raises:
        ConfigError: there is only one class, so none is wrong.
    """
    if classes < 2:
        raise ConfigError("These weights know one organ only: there is no wrong one to tell.")
    known = sorted({int(slot) for slot in present} - {-1})
    random = np.random.default_rng(stable_seed("wrong organ", seed))
    if len(known) == 1:
        other = int(random.integers(classes - 1))
        return {known[0]: other + (other >= known[0])}
    order = [known[place] for place in random.permutation(len(known))]
    return dict(sorted(zip(order, [*order[1:], *order[:1]], strict=True)))


def swapped(slots: Tensor, wrong: dict[int, int]) -> Tensor:
    """(n,) int64 slots with each class's wrong one in its place."""
    return torch.tensor([wrong.get(slot, slot) for slot in slots.tolist()], dtype=torch.int64)


def encode(recipe: Any, images: Tensor, condition: str, slots: Tensor | None = None) -> Tensor:
    """Features of stored images under a condition: (B, D) float32.

    Args:
        images: (B, 1, 256, 256) uint8, on the recipe's device.
        condition: one of `offered(recipe)`.
        slots: (B,) int64 for "label" and "wrong": what is told, right or wrong.

    Raises:
        ValueError: "label" or "wrong" without slots.
    """
    known: dict[str, Any] = {}
    if condition in FROM_CATALOG:
        if slots is None:
            raise ValueError(f"condition {condition!r} needs the slots to tell")
        known = {TOLD: slots.to(images.device)}
    elif _takes_mode(recipe):
        known = {"mode": condition}
    found: Tensor = recipe.encode(images, **known)
    return found.float()


@torch.no_grad()
def features(
    recipe: Any,
    images: NDArray[np.uint8],
    condition: str = "null",
    slots: Tensor | None = None,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """`encode` of many images (n, 256, 256) in eval mode, on the recipe's device: (n, D) float32."""
    was_training, device = recipe.training, next(recipe.parameters()).device
    recipe.eval()
    parts = []
    for start in range(0, len(images), batch_size):
        these = slice(start, start + batch_size)
        told = None if slots is None else slots[these]
        batch = torch.from_numpy(images[these])[:, None].to(device)
        parts.append(encode(recipe, batch, condition, told).cpu().numpy())
    recipe.train(was_training)
    return np.concatenate(parts)


def _takes_mode(recipe: Any) -> bool:
    return "mode" in inspect.signature(recipe.encode).parameters
