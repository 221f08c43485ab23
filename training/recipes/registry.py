"""Recipes by name, and the interface that the trainer, the probes and the checkpoints rely on.

A recipe is a module of this package that holds a class under `@recipe(name, Config)`; module and recipe share the name.
Names are known without importing the recipes, so asking for help stays fast.
"""

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel
from torch import Generator, Tensor

from usdata.errors import ConfigError, nearest

_PACKAGE = "training.recipes"
_NOT_RECIPES = frozenset({"registry"})
_registered: dict[str, tuple[Any, type[BaseModel]]] = {}

C = TypeVar("C", bound=type)


@runtime_checkable
class Recipe(Protocol):
    """An `nn.Module` built from its frozen config: `Recipe(cfg)`.

    Optional: `after_step()`, called after each update; `network_input(images)`, what the exported encoder takes.
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
        """Scalars: "loss" and each raw term. A pure function of weights, uint8 images (B, 1, 256, 256) and draws."""

    def pictures(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named stages of the step, each float32 (B, 1, S, S) in [0, 1]."""

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups over all trainable parameters, without decay for 1-D ones."""

    def encode(self, images: Tensor, **conditioning: Any) -> Tensor:
        """Pooled features (B, D), float32, of the deterministic view of uint8 images (B, 1, 256, 256)."""

    def encoder_export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """State dict and `model_name`, `model_args` of the `timm.create_model` call that loads it strictly."""


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
