"""What a run leaves on disk: its exact state to go on from, and its weights for others.

OUT/checkpoint/last.pt    everything a resumed run needs; plain values and tensors, loaded with `weights_only=True`
OUT/recipe.safetensors    the whole model; `load_encoder(OUT)` rebuilds it
OUT/encoder.safetensors   the encoder under timm's names; `timm.create_model(..., checkpoint_path=...)` loads it

Each file is written beside its place, brought to the disk and renamed: a reader sees the old one or the new one.
"""

import json
import pickle
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from training.config import FREE_ON_RESUME, RunConfig, recipe_config, resolve
from training.data import stable_seed
from training.recipes import registry
from usdata.errors import ConfigError, UsdataError
from usdata.files import explain_os_errors, replacing

STATE_FORMAT = 1


def code_version() -> str:
    """Version of the installed package, as the weights' metadata and the checkpoint name it."""
    try:
        return version("usdata")
    except PackageNotFoundError:
        return "unknown"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the training state atomically; only tensors, numbers, strings, lists and dicts may be in it.

    Raises:
        LakeError: no room, or no permission; what stood at `path` is untouched.
    """
    with explain_os_errors(path, step="checkpoint"), replacing(path) as file:
        torch.save({"format": STATE_FORMAT, **state}, file)


def load_state(path: Path) -> dict[str, Any]:
    """The training state saved by `save_state`, on the CPU. Nothing in the file is executed.

    Raises:
        UsdataError: the file is unreadable, or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UsdataError(f"Cannot read the checkpoint {path}: {reason}", step="resume") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UsdataError(
            f"The checkpoint {path} has format {found}; this version reads {STATE_FORMAT}.", step="resume"
        )
    return state


def refuse_another_run(saved: Mapping[str, Any], cfg: RunConfig, cohort_hash: str) -> None:
    """Only the run that was interrupted may go on, or its end would be a mixture that nobody can repeat.

    Raises:
        ConfigError: names each config key, the cohort or the code version that differs.
    """
    now, then = cfg.model_dump(mode="json"), dict(saved["config"])
    reasons = [
        f"{key} was {then.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if key not in FREE_ON_RESUME and now.get(key) != then.get(key)
    ]
    if saved["cohort_hash"] != cohort_hash:
        reasons.append(f"the cohort's images changed (hash {saved['cohort_hash']}, now {cohort_hash})")
    if saved["code_version"] != code_version():
        reasons.append(f"usdata was {saved['code_version']}, now {code_version()}")
    if reasons:
        raise ConfigError(
            f"This is not the run that was interrupted at step {saved['step']}: {'; '.join(reasons)}.",
            hint="Repeat the first command with --resume added, or start a new run with another --out.",
        )


def own_facts(recipe: Any) -> dict[str, str]:
    """What a recipe says of itself beside its config, e.g. its class list; {} where it says nothing."""
    return dict(recipe.facts()) if hasattr(recipe, "facts") else {}


def refuse_other_facts(recipe: Any, saved: Mapping[str, Any], path: Path) -> None:
    """Weights mean what they meant when they were trained: class 3 is the same organ.

    Raises:
        ConfigError: names each fact that differs.
    """
    wrong = [
        f"{name} was {saved.get(name)!r}, now {value!r}"
        for name, value in own_facts(recipe).items()
        if saved.get(name) != value
    ]
    if wrong:
        raise ConfigError(f"The weights in {path} are of another kind: {'; '.join(wrong)}.", step="load")


def build(cfg: RunConfig) -> Any:
    """The recipe's module with its first weights, which `cfg.seed` decides; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed("init", cfg.seed))
        module = registry.get(cfg.recipe)[0](recipe_config(cfg.recipe, cfg.recipe_config))
    return module


def untrained_twin(recipe: Any, seed: int = 0) -> Any:
    """A module of the same recipe and config with fresh weights, in eval mode: what training must beat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed("init", seed))
        twin = type(recipe)(recipe.cfg)
    return twin.eval()


def random_encoder(recipe: str, preset: str | None = None, seed: int = 0) -> Any:
    """The untrained module of a preset, in eval mode."""
    return build(resolve(recipe, preset).model_copy(update={"seed": seed})).eval()


def save_recipe(recipe: Any, cfg: RunConfig, out: Path, facts: Mapping[str, str]) -> Path:
    """Write OUT/recipe.safetensors: every weight, with the recipe and its config in the metadata."""
    metadata = {**facts, "recipe": cfg.recipe, "recipe_config": json.dumps(cfg.recipe_config), "config_hash": cfg.hash}
    path = out / "recipe.safetensors"
    _save_tensors(path, recipe.state_dict(), metadata)
    return path


def export_encoder(recipe: Any, cfg: RunConfig, out: Path, facts: Mapping[str, str]) -> Path:
    """Write OUT/encoder.safetensors, and prove that it loads to equal features: by timm, or else by `load_encoder`.

    Args:
        recipe: has `encoder_export()`, which gives the state dict and {"model_name", "model_args", "mean", "std", ...}.
        facts: further metadata, e.g. the cohort's hash and the code's version.

    Raises:
        UsdataError: timm refuses the file, or other features come from it.
    """
    state, meta = recipe.encoder_export()
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in meta.items()}
    metadata |= {**facts, "recipe": cfg.recipe, "config_hash": cfg.hash}
    path = out / "encoder.safetensors"
    _save_tensors(path, state, metadata)
    if meta.get("model_name"):
        check_timm_loads(path, state, meta, recipe)
    elif "model_name" in meta and meta["model_name"] is None:
        check_rebuilds(recipe, out)
    return path


def check_rebuilds(recipe: Any, out: Path) -> None:
    """The self-test of an encoder that timm cannot build: `load_encoder(out)` computes what `recipe` does.

    Raises:
        UsdataError: it computes other features (beyond 1e-3 of their scale).
    """
    stored = torch.randint(0, 256, (2, 1, 256, 256), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = _features(recipe, stored)
    if not torch.allclose(_features(load_encoder(out), stored), expected, rtol=1e-3, atol=_tolerance(expected)):
        raise UsdataError(f"The weights in {out} give other features than the encoder they are of.", step="export")


def _features(recipe: Any, stored: Tensor) -> Tensor:
    """`recipe.encode` in eval mode, on the CPU."""
    was_training = recipe.training
    recipe.eval()
    with torch.inference_mode():
        found: Tensor = recipe.encode(stored.to(next(recipe.parameters()).device)).cpu()
    recipe.train(was_training)
    return found


def _tolerance(expected: Tensor) -> float:
    return 1e-3 * float(expected.abs().max())


def check_timm_loads(path: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any], recipe: Any) -> None:
    """The self-test of an export: load the file through timm alone, and compare features.

    They must equal, bit for bit, those of a timm model given the same weights directly; and, where the recipe says by
    `network_input` what its encoder sees, those of `recipe.encode` up to rounding (1e-3 of their scale).

    Raises:
        UsdataError: the names do not fit, or a feature differs.
    """
    import timm

    args = dict(meta["model_args"])
    try:
        with torch.random.fork_rng(devices=[]):  # building models draws from the global generator
            loaded: Any = timm.create_model(meta["model_name"], **args, checkpoint_path=str(path)).eval()
            ours: Any = timm.create_model(meta["model_name"], **args).eval()
        ours.load_state_dict({key: value.detach().cpu() for key, value in state.items()}, strict=True)
    except (RuntimeError, TypeError, KeyError) as error:
        raise UsdataError(f"timm cannot load {path}: {error}", step="export") from error
    source = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        images = torch.rand(2, *meta["input_size"], generator=source)
        if not torch.equal(loaded.forward_features(images), ours.forward_features(images)):
            raise UsdataError(f"timm computes other features from {path} than the trained encoder.", step="export")
        if not hasattr(recipe, "network_input"):
            return
        stored = torch.randint(0, 256, (2, 1, 256, 256), generator=source, dtype=torch.uint8)
        expected = _features(recipe, stored)
        seen = recipe.network_input(stored.to(next(recipe.parameters()).device)).cpu().float()
        found = loaded(seen)
    if not torch.allclose(found, expected, rtol=1e-3, atol=_tolerance(expected)):
        raise UsdataError(
            f"timm computes other features from {path} than `{meta['model_name']}.encode`.", step="export"
        )


def load_encoder(directory: Path | str) -> Any:
    """The recipe module of a finished or interrupted run, in eval mode, on the CPU; it has `.encode(images)`.

    Args:
        directory: the OUT of `usdata pretrain`.

    Raises:
        UsdataError: no weights there, or the file is damaged.
        ConfigError: weights of an unknown recipe, or that do not fit it key by key.
    """
    path = Path(directory) / "recipe.safetensors"
    facts = facts_of(directory)
    state = load_file(path)
    if not {"recipe", "recipe_config"} <= facts.keys():
        raise ConfigError(f"{path} does not say which recipe made it.", step="load")
    config = recipe_config(facts["recipe"], json.loads(facts["recipe_config"]))
    with torch.random.fork_rng(devices=[]):
        recipe: Any = registry.get(facts["recipe"])[0](config)
    refuse_other_facts(recipe, facts, path)
    _load_strictly(recipe, state, path)
    return recipe.eval()


def facts_of(directory: Path | str) -> dict[str, str]:
    """What the weights of a run say of themselves: recipe, config, cohort, code version, steps.

    Raises:
        UsdataError: no weights there, or the file is damaged.
    """
    path = Path(directory) / "recipe.safetensors"
    if not path.is_file():
        raise UsdataError(
            f"No weights in {directory} (there is no recipe.safetensors).",
            hint=f"Make some:  usdata pretrain d2mae --cohort all --preset micro --out {directory}",
        )
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise UsdataError(f"{path} is damaged: {error}", step="load") from error


def _load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    wrong = [f"missing {key}" for key in own.keys() - state.keys()]
    wrong += [f"unexpected {key}" for key in state.keys() - own.keys()]
    wrong += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ConfigError(f"The weights in {path} do not fit their recipe: {shown}.", step="load")
    module.load_state_dict(dict(state))


def _save_tensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    # safetensors takes no views and no two names of one storage
    own = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    with explain_os_errors(path, step="export"), replacing(path) as file:
        file.write(serialise(own, metadata))
