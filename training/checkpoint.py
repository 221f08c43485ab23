"""What a run leaves on disk: its exact state to go on from, and its weights for others.

OUT/checkpoint/last.pt    everything a resumed run needs; plain values and tensors, loaded with `weights_only=True`
OUT/recipe.safetensors    the whole model; `load_encoder(OUT)` rebuilds it
OUT/encoder.safetensors   the encoder under timm's names; `timm.create_model(..., checkpoint_path=...)` loads it

Each file is written beside its place, brought to the disk and renamed: a reader sees the old one or the new one.
The same weights and facts give the same bytes. Weights carry a digest of themselves; a changed bit is refused.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from training import inference
from training.config import FREE_ON_RESUME, MAY_CURE, RunConfig, differences, recipe_config, resolve
from training.data import stable_seed
from training.recipes import registry
from training.run_folder import explain_disk
from usdata.errors import ConfigError, UsdataError
from usdata.files import replacing

STATE_FORMAT = 1
NOT_FINITE = "not finite"  # `stopped` in the state of the step before a loss or gradient that is not finite
DIGEST = "digest"  # key in the metadata of weights: xxh3-128 of everything else in the file
_UNREADABLE = (
    OSError,
    RuntimeError,  # NotImplementedError too: a zip file's unknown method
    EOFError,
    ValueError,
    KeyError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


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
    with explain_disk(path, step="checkpoint"), replacing(path) as file:
        torch.save({"format": STATE_FORMAT, **state}, file)


def load_state(path: Path) -> dict[str, Any]:
    """The training state saved by `save_state`, on the CPU. Nothing in the file is executed; its checksums are checked.

    Raises:
        UsdataError: the file is unreadable, damaged, or of another format.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch itself does not look at the checksums
            damaged = file.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).split("\n", 1)[0]
        raise UsdataError(
            f"Cannot read the checkpoint {path}: {reason}",
            step="resume",
            hint="Put a copy of the file back, or start a new run with another --out.",
        ) from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UsdataError(
            f"The checkpoint {path} has format {found}; this version reads {STATE_FORMAT}.", step="resume"
        )
    return state


def refuse_another_run(saved: Mapping[str, Any], cfg: RunConfig, cohort_hash: str) -> None:
    """Only the run that was interrupted may go on, or its end would be a mixture that nobody can repeat.

    After a number that was not finite the run would only meet it again: there the learning rate may change, and what
    else may cure it.

    Raises:
        ConfigError: names each config key, the cohort or the code version that differs.
    """
    free = FREE_ON_RESUME | MAY_CURE if saved.get("stopped") == NOT_FINITE else FREE_ON_RESUME
    reasons = differences(saved["config"], cfg.model_dump(mode="json"), free)
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
    metadata["conditions"] = json.dumps(inference.offered(recipe))
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
    if not torch.allclose(
        _features(load_encoder(out), stored), expected, rtol=1e-3, atol=_tolerance(expected), equal_nan=True
    ):
        raise UsdataError(f"The weights in {out} give other features than the encoder they are of.", step="export")


def _features(recipe: Any, stored: Tensor) -> Tensor:
    """`recipe.encode` in eval mode, told nothing, on the CPU."""
    was_training = recipe.training
    recipe.eval()
    with torch.inference_mode():
        found = inference.encode(recipe, stored.to(next(recipe.parameters()).device), "null").cpu()
    recipe.train(was_training)
    return found


def _tolerance(expected: Tensor) -> float:
    return 1e-3 * float(expected.nan_to_num().abs().max())


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
        theirs, expected = loaded.forward_features(images), ours.forward_features(images)
        if not torch.allclose(theirs, expected, rtol=0, atol=0, equal_nan=True):  # NaN: of weights that diverged
            raise UsdataError(f"timm computes other features from {path} than the trained encoder.", step="export")
        if not hasattr(recipe, "network_input"):
            return
        stored = torch.randint(0, 256, (2, 1, 256, 256), generator=source, dtype=torch.uint8)
        expected = _features(recipe, stored)
        seen = recipe.network_input(stored.to(next(recipe.parameters()).device)).cpu().float()
        found = loaded(seen)
    if not torch.allclose(found, expected, rtol=1e-3, atol=_tolerance(expected), equal_nan=True):
        raise UsdataError(
            f"timm computes other features from {path} than `{meta['model_name']}.encode`.", step="export"
        )


def load_encoder(
    directory: Path | str, *, classes: Sequence[str] | None = None, names: Mapping[str, str] | None = None
) -> Any:
    """The recipe module of a finished or interrupted run, in eval mode, on the CPU; it has `.encode(images)`.

    Args:
        directory: the OUT of `usdata pretrain`.
        classes: another list of organs for an ARL encoder. Known ones keep their features bit for bit wherever they
            stand (with mode "predict" to 1e-6); a new one starts as the null class and wants fine-tuning. None: the
            weights' own list.
        names: new name -> old name of classes that were renamed.

    Raises:
        UsdataError: no weights there, or the file is damaged.
        ConfigError: weights of an unknown recipe, that do not fit it key by key, that lie beside the encoder of another
            run, or that have no classes to change.
    """
    path = Path(directory) / "recipe.safetensors"
    facts, state = _read_tensors(path)
    if not {"recipe", "recipe_config"} <= facts.keys():
        raise ConfigError(f"{path} does not say which recipe made it.", step="load")
    config = recipe_config(facts["recipe"], _config_of(facts, path))
    with torch.random.fork_rng(devices=[]):
        recipe: Any = registry.get(facts["recipe"])[0](config)
    refuse_other_facts(recipe, facts, path)
    _load_strictly(recipe, state, path)
    _refuse_mixture(path, facts)
    return (recipe if classes is None else _with_classes(recipe, classes, names)).eval()


def _refuse_mixture(path: Path, facts: Mapping[str, str]) -> None:
    """One folder must not hold the recipe's weights of one run and the exported encoder of another."""
    exported = path.with_name("encoder.safetensors")
    other = _read_facts(exported) if exported.is_file() else facts
    wrong = [key for key in ("recipe", "config_hash", "cohort_hash") if other.get(key) != facts.get(key)]
    if wrong:
        raise ConfigError(
            f"{path} and {exported.name} beside it are of different runs: they differ in {', '.join(wrong)}.",
            step="load",
            hint="Put the files of one run together again.",
        )


def _config_of(facts: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        config = json.loads(facts["recipe_config"])
    except ValueError as error:
        raise ConfigError(f"{path} has a config that is no JSON: {error}", step="load") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} has a config that is no mapping of keys to values.", step="load")
    return {**config, "init": "scratch"} if "init" in config else config  # the file it began with may be gone


def _with_classes(recipe: Any, classes: Sequence[str], names: Mapping[str, str] | None) -> Any:
    """The same network for another list of organs; see `load_encoder`."""
    from training.organ_condition import remap_classes

    if "class_names" not in recipe.state_dict():
        raise ConfigError(f"A {type(recipe).__name__} encoder knows no classes of organs.", step="load")
    moved = remap_classes(recipe.state_dict(), classes, names)
    with torch.random.fork_rng(devices=[]):
        other = type(recipe)(recipe.cfg.model_copy(update={"classes": tuple(classes)}))
    other.load_state_dict(moved)
    return other


def timm_encoder(directory: Path | str, image_size: int | None = None) -> nn.Module:
    """The exported encoder as timm's own model, for images of its size or another, on the CPU in eval mode.

    For another size the positions are interpolated: absolute ones as pictures, without the class token's row, which
    stays (bicubic, timm); a BEiT's tables of relative positions in a geometric progression, without their three special
    rows.

    Args:
        directory: the OUT of `usdata pretrain`.
        image_size: pixels per side, a multiple of the patch size; None: that of the pretraining.

    Raises:
        UsdataError: no weights there, or the file is damaged.
        ConfigError: timm cannot build this encoder, or the patches do not divide the size.
    """
    import timm
    from timm.layers import resample_abs_pos_embed

    from training.models.beit import resize_tables

    path = Path(directory) / "encoder.safetensors"
    facts, state = _read_tensors(path)
    if facts.get("model_name", "null") in ("", "null"):
        raise ConfigError(
            f"timm has no network for {path}.", hint="Load it with this package: training.checkpoint.load_encoder"
        )
    args = json.loads(facts["model_args"])
    if image_size is not None and (image_size < 1 or image_size % args["patch_size"]):
        raise ConfigError(f"image_size {image_size} is not a multiple of the patch size {args['patch_size']}.")
    old = args["img_size"] // args["patch_size"]
    args["img_size"] = image_size or args["img_size"]
    new = args["img_size"] // args["patch_size"]
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = timm.create_model(facts["model_name"], **args)
    if new != old:
        state = resize_tables(state, (old, old), (new, new))
        if state.get("pos_embed") is not None:
            state["pos_embed"] = resample_abs_pos_embed(
                state["pos_embed"], new_size=[new, new], old_size=[old, old], num_prefix_tokens=1
            )
    _load_strictly(model, state, path)
    return model.eval()


def facts_of(directory: Path | str) -> dict[str, str]:
    """What the weights of a run say of themselves: recipe, config, cohort, code version, steps.

    Raises:
        UsdataError: no weights there, or the file is damaged.
    """
    return _read_facts(Path(directory) / "recipe.safetensors")


def encoder_facts(directory: Path | str) -> dict[str, str]:
    """What OUT/encoder.safetensors says of itself: model_name, model_args, mean, std, ... as JSON where no word.

    Raises:
        UsdataError: there is no such file, or it is damaged.
    """
    return _read_facts(Path(directory) / "encoder.safetensors")


def _read_facts(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UsdataError(
            f"No weights in {path.parent} (there is no {path.name}).",
            hint=f"Make some:  usdata pretrain d2mae --cohort all --preset micro --out {path.parent}",
        )
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UsdataError(f"{path} is damaged: {error}", step="load") from error


def _read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file of weights, which are those that were written.

    Raises:
        UsdataError: there is no such file, or it is damaged.
    """
    facts = _read_facts(path)
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UsdataError(f"{path} is damaged: {error}", step="load") from error
    if DIGEST in facts and facts[DIGEST] != digest(state, facts):
        raise UsdataError(
            f"{path} is damaged: its digest is of other weights or metadata.",
            step="load",
            hint="Take the file anew from where it came, or train on: the next checkpoint writes it again.",
        )
    return facts, state


def digest(state: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Hash of names, types, shapes and bytes of tensors, and of metadata but for the digest itself."""
    found = xxhash.xxh3_128()
    for name in sorted(facts.keys() - {DIGEST}):
        found.update(json.dumps([name, facts[name]]).encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    wrong = [f"missing {key}" for key in own.keys() - state.keys()]
    wrong += [f"unexpected {key}" for key in state.keys() - own.keys()]
    wrong += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    wrong += [
        f"{key} is of {state[key].dtype}, expected {own[key].dtype}"
        for key in own.keys() & state.keys()
        if own[key].dtype != state[key].dtype and not (own[key].is_floating_point() and state[key].is_floating_point())
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ConfigError(
            f"The weights in {path} do not fit their recipe: {shown}.",
            step="load",
            hint="Give one whole --out folder of `usdata pretrain`, as it was written.",
        )
    module.load_state_dict(dict(state))


def _save_tensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    # safetensors takes no views and no two names of one storage
    own = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    content = _in_order(serialise(own, {**metadata, DIGEST: digest(own, metadata)}))
    with explain_disk(path, step="export"), replacing(path) as file:
        for part in content:
            file.write(part)


def _in_order(content: bytes) -> tuple[bytes, memoryview]:
    """Head and tensors of a safetensors file, the metadata by name: the library writes them in another order each time.

    Source: the format's definition: eight bytes of length, JSON padded with blanks, then the tensors.
    """
    length = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + length])
    facts = dict(sorted(head.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": facts, **head}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(content)[8 + length :]
