"""What a run is: `RunConfig`, and how preset, variant, YAML file and `--set key=value` become one.

Later wins: the recipe's preset, its variant, then the file, then each `--set` in order. A key is a field of `RunConfig`
(`steps`), or a field of the recipe's own config, bare (`mask_ratio`) or in full (`recipe_config.mask_ratio`).
Nothing unknown is ignored: a key that nobody has is an error with the nearest name.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.recipes import registry
from usdata.errors import ConfigError, nearest
from usdata.strict_yaml import read_yaml

M = TypeVar("M", bound=BaseModel)

_BY_OPTION = frozenset({"recipe", "preset", "variant"})
_YAML_HINT = "Write lines such as:  steps: 1000"
_COMPLETE = "\0complete"  # among the values of a file: it is a run's config.json

# These do not touch the weights, so a run may be resumed with other values of them.
FREE_ON_RESUME = frozenset(
    {
        "workers",
        "device",
        "log_every",
        "checkpoint_every",
        "probe_every",
        "probe_images",
        "probe_label",
        "collapse_below",
        "pictures_every",
        "picture_images",
        "rank_timeout",
        "tensorboard",
    }
)


# Free on resume too, where the run was stopped by a number that is not finite.
MAY_CURE = frozenset({"lr", "base_lr", "min_lr", "clip_grad", "precision", "recipe_config.disc_lr"})


class RunConfig(BaseModel):
    """Everything that decides a pretraining run, but the cohort and the place it writes to.

    Defaults marked "MAE" are those of the official MAE code, which D2MAE's paper follows; the others are ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    preset: str
    variant: str | None = None  # an ablation or baseline of the recipe, by name; None: the paper's own method
    seed: int = Field(0, ge=0)  # of the weights, the order of the images, and every draw

    steps: int = Field(gt=0)  # optimiser steps; epochs are only counted, never set
    batch_size: int = Field(gt=0)  # images per optimiser step, over all ranks and micro-batches
    accumulate: int = Field(1, gt=0)  # micro-batches per optimiser step and rank
    base_lr: float = Field(1.5e-4, ge=0)  # MAE: peak learning rate at a batch of 256 images
    lr: float | None = Field(None, ge=0)  # peak learning rate itself; None: base_lr * batch_size / 256
    min_lr: float = Field(0.0, ge=0)  # MAE: learning rate after the last step
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the steps with rising rate; MAE: 40 of 800 epochs
    weight_decay: float = Field(0.05, ge=0)  # MAE; never on biases, norms and other 1-D parameters
    weight_decay_end: float | None = Field(None, ge=0)  # decay after the last step, by half a cosine; None: constant
    betas: tuple[float, float] = (0.9, 0.95)  # MAE
    clip_grad: float | None = Field(None, gt=0)  # largest gradient norm, per optimiser; None: as it comes (MAE)

    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where a GPU supports it, else fp32
    compile: bool | Literal["auto"] = "auto"  # auto: on a GPU only; on a CPU it costs a minute and gains nothing
    grad_checkpointing: bool = False  # keep no activations inside the blocks: less memory, a third more computing
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    rank_timeout: float = Field(1800.0, gt=0)  # seconds a rank waits for the others before it gives up

    gamma: float | None = 0.5  # P(group) ~ N^gamma: 1 proportional, 0.5 1/sqrt(N) per image, 0 uniform; null: no draws
    by: str = "organ"  # the catalog column that makes the groups
    epoch_size: int | None = Field(None, gt=0)  # images per epoch; None: as many as the cohort has
    workers: int = Field(0, ge=0)  # threads that prepare batches ahead
    stream_window: int = Field(2, gt=0)  # remote lakes: shards of a group that are shuffled together
    stream_split: Literal["shards", "samples"] = "shards"  # remote lakes: samples lets ranks share a group's shards

    log_every: int = Field(10, gt=0)  # steps between looks at the device; every step is logged all the same
    checkpoint_every: int = Field(500, gt=0)
    probe_every: int = Field(0, ge=0)  # kNN probe and effective rank; 0: never
    probe_images: int = Field(512, gt=1)  # at most so many images of the cohort, drawn once
    collapse_below: float = Field(2.0, ge=0)  # a probe's effective rank that is called a collapse
    probe_label: str | None = None  # catalog column; None: `label` where there are two of it, else `organ`
    pictures_every: int = Field(0, ge=0)  # reconstructions as PNG; 0: never
    picture_images: int = Field(6, gt=0)
    tensorboard: bool | Literal["auto"] = "auto"  # auto: where it is installed

    recipe_config: dict[str, Any] = Field(default_factory=dict)  # the recipe's own, complete with its defaults

    @model_validator(mode="after")
    def _sizes_fit(self) -> "RunConfig":
        if self.batch_size % self.accumulate:
            fits = max(1, self.batch_size // self.accumulate) * self.accumulate
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}, but {fits} is"
            )
        if self.min_lr > self.peak_lr:
            raise ValueError(f"min_lr {self.min_lr} is above the peak learning rate {self.peak_lr}")
        if self.weight_decay_end is not None and not self.weight_decay:
            raise ValueError("weight_decay_end needs a weight_decay above 0 to begin with")
        return self

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warm-up: `lr`, or `base_lr` scaled linearly with the batch (MAE)."""
        return self.base_lr * self.batch_size / 256 if self.lr is None else self.lr

    @property
    def warmup_steps(self) -> int:
        """Steps until the peak learning rate is reached; 0.005 of 80,000 steps (40 of 8,000 epochs) are 400."""
        return round(self.warmup * self.steps)

    @property
    def hash(self) -> str:
        """16 hex digits that change with any value; key order and machine do not matter."""
        values = self.model_dump(mode="json")
        if values["variant"] is None:  # runs older than the variants keep their hash
            del values["variant"]
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def presets(recipe: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The presets of a recipe: name -> {"recipe": overrides of its config, "run": overrides of `RunConfig`}.

    Raises:
        ConfigError: no recipe of that name.
    """
    return dict(registry.get(recipe)[0].presets)


def variants(recipe: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The variants of a recipe, in the form of `presets`; the first is the paper's own method and changes nothing.

    Raises:
        ConfigError: no recipe of that name.
    """
    return dict(getattr(registry.get(recipe)[0], "variants", {}))


def resolve(
    recipe: str,
    preset: str | None = None,
    file: Path | None = None,
    sets: Sequence[str] = (),
    variant: str | None = None,
) -> RunConfig:
    """Preset, variant, file and settings, later ones over earlier ones, checked and complete.

    Args:
        recipe: name of a registered recipe.
        preset: name of one of its presets; None: the file's, else "micro".
        file: YAML or JSON mapping of `RunConfig` fields; the `config.json` of an earlier run is one too.
        sets: "key=value" each, the value as YAML writes it (`0.5`, `true`, `[1, 2]`, `null`).
        variant: name of one of its variants, usable with every preset; None: the file's, else the paper's own method,
            which the result calls None too.

    Raises:
        ConfigError: unknown recipe, preset, variant or key (with the nearest), or a value out of range; a run's
            `config.json` with another preset or variant than its own.
    """
    from_file = _read(file, recipe) if file else {}
    given = {"preset": preset, "variant": variant}
    if file and from_file.pop(_COMPLETE, False):
        _refuse_to_relabel(file, from_file, given)
    preset, changes = _named(recipe, "preset", preset or from_file.get("preset") or "micro", presets(recipe))
    named = variant or from_file.get("variant")
    known = variants(recipe)
    variant, over = _named(recipe, "variant", named, known) if named is not None else (None, {})
    values: dict[str, Any] = {"recipe_config": {}}
    for parts in (changes, over):
        _overlay(values, parts.get("run", {}), recipe)
        _overlay(values, {"recipe_config": parts.get("recipe", {})}, recipe)
    _overlay(values, {k: v for k, v in from_file.items() if k not in _BY_OPTION}, recipe)
    for text in sets:
        _overlay(values, _setting(text), recipe)
    values["recipe_config"] = recipe_config(recipe, values["recipe_config"]).model_dump(mode="json")
    variant = None if variant == next(iter(known), None) else variant
    return _validated(RunConfig, {**values, "recipe": recipe, "preset": preset, "variant": variant}, "run")


def recipe_config(recipe: str, values: Mapping[str, Any]) -> BaseModel:
    """The recipe's own frozen config object from plain values.

    Raises:
        ConfigError: unknown recipe or key, or a value out of range.
    """
    model = registry.get(recipe)[1]
    words = {key for key, field in model.model_fields.items() if "null" in get_args(field.annotation)}
    given = {key: "null" if value is None and key in words else value for key, value in values.items()}
    return _validated(model, given, f"recipe {recipe}")  # YAML takes the word null for nothing


def cures(cfg: RunConfig, terms: Iterable[str]) -> str:
    """The settings that a run may go on with after these terms were not finite, as one would type them."""
    slower = f"--set lr={cfg.peak_lr / 10:.3g}"
    if cfg.min_lr > cfg.peak_lr / 10:
        slower += " --set min_lr=0"
    clipped = f"--set clip_grad={1 if cfg.clip_grad is None else cfg.clip_grad / 10:.3g}"
    ways = [slower, clipped]
    if any("discriminator" in term for term in terms) and "disc_lr" in cfg.recipe_config:  # its rate is its own
        ways = [f"--set disc_lr={cfg.recipe_config['disc_lr'] / 10:.3g}", clipped]
    return "   or  ".join(f"--resume {way}" for way in ways)


def differences(then: Mapping[str, Any], now: Mapping[str, Any], free: Set[str] = frozenset()) -> list[str]:
    """What tells two dumped configs apart: "steps was 12, now 13"; of nested mappings only the keys that differ."""
    if then.get("recipe") != now.get("recipe"):  # the rest then differs too, and is no help
        return [f"recipe was {then.get('recipe')!r}, now {now.get('recipe')!r}"]
    found = []
    for key in sorted((now.keys() | then.keys()) - free):
        before, after = then.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            names = [name for name in sorted(before.keys() | after.keys()) if f"{key}.{name}" not in free]
            other = [name for name in names if before.get(name) != after.get(name)]
            before, after = ({name: side.get(name) for name in other} for side in (before, after))
        if before != after:
            found.append(f"{key} was {before!r}, now {after!r}")
    return found


def _named(recipe: str, kind: str, name: Any, known: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(name, str) or name not in known:
        choices = f"{kind.capitalize()}s: {', '.join(known)}" if known else f"It has no {kind}s at all."
        raise ConfigError(f"Recipe {recipe!r} has no {kind} {name!r}.{nearest(str(name), known)}", hint=choices)
    return name, known[name]


def _refuse_to_relabel(file: Path, from_file: Mapping[str, Any], given: Mapping[str, str | None]) -> None:
    """A run's config.json sets every key, so another preset or variant would change its name and nothing else."""
    for kind, name in given.items():
        if name is not None and name != from_file.get(kind):
            raise ConfigError(
                f"{file} is the whole config of a run with {kind} {from_file.get(kind)!r}; {name!r} would change none "
                "of its values.",
                hint=f"Leave --{kind} out, or write a file of only the keys that you change.",
            )


def _validated(model: type[M], values: dict[str, Any], what: str) -> M:
    try:
        return model(**values)
    except ValidationError as error:
        lines = []
        for e in error.errors():
            key = ".".join(str(part) for part in e["loc"])
            if e["type"] == "extra_forbidden":
                lines.append(f"no key {key!r}.{_nearest_key(model, e['loc'])}")
            else:
                message = e["msg"].removeprefix("Value error, ")
                if e["type"] == "multiple_of" and isinstance(e["input"], int):
                    unit = e["ctx"]["multiple_of"]
                    message += f", e.g. {max(1, round(e['input'] / unit)) * unit}"
                lines.append(f"{key} = {e['input']!r}: {message}" if key else message)
        raise ConfigError(
            f"The {what} config is wrong: {'; '.join(lines).rstrip('.')}{'' if lines[-1].endswith('?') else '.'}",
            hint="Change it in the --config file, or by  --set KEY=VALUE   What each key means: docs/settings.md",
        ) from error


def _nearest_key(model: type[BaseModel], path: tuple[int | str, ...]) -> str:
    """The nearest key beside the one at `path`, which may lie in a mapping of a mapping."""
    for part in path[:-1]:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ""
        model = inner
    return nearest(str(path[-1]), model.model_fields)


def _read(file: Path, recipe: str) -> dict[str, Any]:
    try:
        content = read_yaml(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"Cannot read the config file {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no text in UTF-8: {error.reason}.", hint=_YAML_HINT) from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = "" if place is None else f" (line {place.line + 1}: {getattr(error, 'problem', '')})"
        raise ConfigError(f"{file} is not YAML{line}.", hint=_YAML_HINT) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no mapping of keys to values.", hint=_YAML_HINT)
    if isinstance(content.get("config"), dict):  # the config.json of a run wraps it in facts about that run
        content = {**content["config"], _COMPLETE: True}
    if content.get("recipe", recipe) != recipe:
        raise ConfigError(f"{file} is for recipe {content['recipe']!r}, not {recipe!r}.")
    return content


def _setting(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"Cannot read the setting {text!r}.", hint="Write it as key=value, e.g. --set steps=1000")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"Cannot read the value of {text!r} as YAML: {error}") from error
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return dict(parsed)


def _overlay(values: dict[str, Any], changes: Mapping[str, Any], recipe: str) -> None:
    """Put `changes` over `values` in place; bare keys of the recipe's config find their way there."""
    own = registry.get(recipe)[1].model_fields
    run = RunConfig.model_fields.keys() - _BY_OPTION
    for key, value in changes.items():
        if key == "recipe_config":
            if not isinstance(value, Mapping):
                raise ConfigError(f"recipe_config must be a mapping, not {value!r}.")
            for name, inner in value.items():
                if name not in own:
                    raise ConfigError(f"Recipe {recipe!r} has no key {name!r}.{nearest(str(name), own)}")
                _merge(values["recipe_config"], name, inner)
        elif key in _BY_OPTION:
            raise ConfigError(f"{key!r} can't be set: choose it by RECIPE, --preset and --variant.")
        elif key in run:
            values[key] = value
        elif key in own:
            _merge(values["recipe_config"], key, value)
        else:
            raise ConfigError(
                f"No key {key!r} in the run or in recipe {recipe!r}.{nearest(str(key), run | own.keys())}",
                hint=f"Keys: {', '.join(sorted(run | own.keys()))}",
            )


def _merge(into: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, Mapping) and isinstance(into.get(key), dict):
        for name, inner in value.items():
            _merge(into[key], name, inner)
    else:
        into[key] = dict(value) if isinstance(value, Mapping) else value
