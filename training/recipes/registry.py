"""Recipes by name, and the interface that the trainer, the probes and the checkpoints rely on.

A recipe is a module of this package that holds a class under `@recipe(name, Config)`; module and recipe share the name.
Names are known without importing the recipes, so asking for help stays fast.
"""

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel
from torch import Generator, Tensor, nn

from usdata.errors import ConfigError, nearest

_PACKAGE = "training.recipes"
_NOT_RECIPES = frozenset({"registry"})
_registered: dict[str, tuple[Any, type[BaseModel]]] = {}

C = TypeVar("C", bound=type)


@runtime_checkable
class Recipe(Protocol):
    """An `nn.Module` built from its frozen config: `Recipe(cfg)`.

    Besides what is listed below, a recipe may have any of these; the trainer asks whether it does:

    `variants` (ClassVar): the paper's ablations and baselines by name, in the form of `presets` and usable with each of
        them: name -> {"recipe": overrides of the config, "run": overrides of the trainer's}. The first is the paper's
        own method and changes nothing.
    `optimisers` (ClassVar or property): name -> {"kind": "adamw" or "adam", "betas": (b1, b2), "lr": a constant rate
        (None: the run's schedule), "weight_decay", "clip_grad", "eps"}, every key optional, what is left out is the
        run's; see `training.optimisers.OptimiserSpec`. Without it there is one AdamW, "main".
        The groups of `param_groups` then name theirs: {"params", "optimiser": "discriminator", "lr_scale": 0.1,
        "no_decay": True}, again all but "params" optional ("main", 1, False).
        `step` gives each its own loss: "loss" is that of "main", "loss/discriminator" that of "discriminator". Each is
        backpropagated into the parameters of its own optimiser and into no others, so nothing needs to be frozen; an
        optimiser whose loss is not among the terms of a step leaves its parameters as they are.
    `after_step(progress)`: called after each update with the share of the run's steps that are done, in (0, 1]: EMA,
        centre, temperatures. What it keeps lives in registered buffers, or in parameters of no optimiser, changed in
        place, so that a checkpoint holds it and a step whose loss is not finite can be undone. Means over the batch
        that it needs: add up in buffers during `step` (it is called once per micro-batch) and take them through
        `training.distributed.mean_over_ranks` here.
    `survey(images, draws)`: for losses that look across the batch. Gives (rows, means), two dicts: tensors (b, ...) of
        the micro-batch's images, and tensors whose mean over micro-batches counts. Of several, the trainer
        calls it for every micro-batch before the first `step`, without gradient; what all ranks found is then among the
        draws of each `step`, where `training.accumulate` reads it. So the whole batch is one, however it is cut.
    `columns` (ClassVar or property): catalog columns that a step needs beside the image, e.g. ("organ",); and
    `conditions(columns)`: makes tensors of them, {"organ": ["breast", None, ...]} -> {"organ": int64 (n,)}. Words come
        as lists with None where unknown, numbers as tensors. The result is put among the `draws` of `step` and
        `pictures` under the same names, and is passed to `encode(images, **conditions)` where labels may be used;
        `encode(images)` alone must work too.
    `facts()`: {name: text} that goes into the metadata of weights and checkpoint; loading refuses other values, e.g.
        {"classes": '["breast", "heart"]'}.
    `network_input(images)`: what the exported encoder takes.
    `checkpointed()`: the modules that `grad_checkpointing` recomputes; by default every member of a container `blocks`.

    For bf16: `training.precision.full_precision` decorates what must stay fp32 under autocast (FFT, SSIM, log-softmax
    of small temperatures). Which parameters get a gradient may depend on the progress, never on the data or the rank.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]]
    """name -> {"recipe": overrides of the config's defaults, "run": overrides of the trainer's}."""

    @property
    def cfg(self) -> Any:
        """Frozen pydantic model; has at least `image_size`."""

    def draw(self, n: int, generator: Generator) -> dict[str, Tensor]:
        """Every random number that one step on `n` images needs; each tensor's first dimension is `n`.

        The trainer draws for the whole global batch and slices by rank and micro-batch.
        """

    def step(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars: "loss", "loss/<optimiser>" of any other, and each raw term.

        A pure function of weights, buffers, uint8 images (B, 1, 256, 256) and draws.
        """

    def pictures(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named stages of the step, each float32 (B, 1, S, S) in [0, 1]."""

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups over all trainable parameters, without decay for 1-D ones."""

    def encode(self, images: Tensor, **conditioning: Any) -> Tensor:
        """Pooled features (B, D), float32, of the deterministic view of uint8 images (B, 1, 256, 256)."""

    def encoder_export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """State dict and `model_name`, `model_args` of the `timm.create_model` call that loads it strictly.

        Where timm cannot build the encoder: `model_name` None, and the facts to build it by under "arch".
        """


def decay_groups(module: nn.Module, free: Callable[[str], bool], weight_decay: float) -> list[dict[str, Any]]:
    """Two optimiser groups over the trainable parameters: decayed, and not (1-D ones, and those of a `free` name)."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    spared = {name for name, p in named if p.ndim <= 1 or free(name)}
    return [
        {"name": "decay", "params": [p for n, p in named if n not in spared], "weight_decay": weight_decay},
        {"name": "no_decay", "params": [p for n, p in named if n in spared], "weight_decay": 0.0},
    ]


def recipe(name: str, config: type[BaseModel]) -> Callable[[C], C]:
    """Class decorator: register a recipe and its config under `name`.

    Raises:
        ValueError: another class has that name.
    """

    def register(cls: C) -> C:
        if name in _registered and _registered[name][0].__qualname__ != cls.__qualname__:
            raise ValueError(f"two recipes are named {name!r}")
        _registered[name] = (cls, config)
        return cls

    return register


def names() -> list[str]:
    """Names of all recipes, sorted. Imports none of them."""
    package = import_module(_PACKAGE)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    return sorted((modules - _NOT_RECIPES) | _registered.keys())


def get(name: str) -> tuple[Any, type[BaseModel]]:
    """The recipe's class and its config's class.

    Raises:
        ConfigError: no recipe of that name (with the nearest ones).
    """
    known = names()
    if name not in known:
        raise ConfigError(f"No recipe named {name!r}.{nearest(name, known)}", hint=f"Recipes: {', '.join(known)}")
    if name not in _registered:
        import_module(f"{_PACKAGE}.{name}")
    return _registered[name]
