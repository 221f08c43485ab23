"""Before the first step: do the sizes fit, is the folder free or this run's, what is known of the cohort."""

from pathlib import Path
from typing import Any

from training import checkpoint
from training.config import FREE_ON_RESUME, RunConfig, differences
from training.distributed import World
from training.result_table import lake_of
from training.run_folder import explain_disk
from usdata.errors import ConfigError
from usdata.files import read_json, write_json
from usdata.rights import rights_of


def check_sizes(cohort: Any, cfg: RunConfig, peers: World) -> None:
    """Enough images for a batch, and a batch that divides.

    Raises:
        ConfigError: if not.
    """
    if not cohort.rows:
        raise ConfigError(
            "The cohort is empty: there is nothing to train on.",
            hint=f"What there is:  usdata catalog{lake_of(cohort)}",
        )
    images = cohort.rows if cfg.epoch_size is None else cfg.epoch_size
    pieces = peers.size * cfg.accumulate
    fits = max(1, min(cohort.rows, images) // pieces) * pieces
    if cohort.rows < cfg.batch_size or images < cfg.batch_size:
        raise ConfigError(
            f"{min(cohort.rows, images)} images are too few for a batch of {cfg.batch_size}.",
            hint=f"Lower the batch:  --set batch_size={fits}   or choose a wider --cohort.",
        )
    if cfg.batch_size % (peers.size * cfg.accumulate):
        raise ConfigError(
            f"A batch of {cfg.batch_size} does not divide among {peers.size} ranks and {cfg.accumulate} micro-batches.",
            hint=f"Take a multiple of {pieces}:  --set batch_size={max(1, cfg.batch_size // pieces) * pieces}",
        )


def prepare(out: Path, cfg: RunConfig, cohort: Any, peers: World, resume: bool) -> dict[str, Any] | None:
    """Check the directory, write config.json, and give the state to go on from, if there is one.

    Raises:
        ConfigError: a directory in use, or another run's state.
        UsdataError: a damaged state.
        LakeError: `out` can't be written.
    """
    path = out / "checkpoint" / "last.pt"
    if not resume and peers.first and out.exists():
        _refuse_if_in_use(out, path)
    state = checkpoint.load_state(path) if resume and path.exists() else None
    if state is not None:
        checkpoint.refuse_another_run(state, cfg, cohort.hash)
    if peers.first:
        with explain_disk(out, step="start"):
            out.mkdir(parents=True, exist_ok=True)
            for litter in [*out.glob(".*.tmp"), *out.glob("*/.*.tmp")]:  # of a process that was killed while writing
                litter.unlink()
            changed = {} if state is None else _changed(out / "config.json", state, cfg)
            write_json(out / "config.json", {**_config(cfg), **facts(cohort), **_cohort(cohort), **changed})
    return state


def _refuse_if_in_use(out: Path, path: Path) -> None:
    if not out.is_dir():
        raise ConfigError(f"{out} is a file, not a folder.", hint="Name a new folder:  --out DIR")
    found = {one.name for one in out.iterdir()}
    if found <= {"config.json"}:  # of a run that could not be built: the command was mended, and is repeated
        return
    known = "a run's checkpoint" if path.exists() else "a run without a checkpoint"
    raise ConfigError(
        f"{out} already holds {known if 'config.json' in found else 'files'}.",
        hint="Go on with that run:  --resume   Or start a new one in another --out.",
    )


def facts(cohort: Any) -> dict[str, str]:
    """What weights and checkpoint say of the images and the code that made them."""
    return {
        "cohort_hash": cohort.hash,
        "cohort_sql": cohort.sql,
        "cohort_name": cohort.name or "",
        "code_version": checkpoint.code_version(),
    }


def _changed(path: Path, state: dict[str, Any], cfg: RunConfig) -> dict[str, Any]:
    """What was set anew after numbers that were not finite, and after which step, for config.json."""
    before = read_json(path).get("changed", []) if path.exists() else []
    now = differences(state["config"], cfg.model_dump(mode="json"), FREE_ON_RESUME)
    told = [*before, {"after_step": state["step"], "what": now}] if now else before
    return {"changed": told} if told else {}


def _config(cfg: RunConfig) -> dict[str, Any]:
    return {"config": cfg.model_dump(mode="json"), "config_hash": cfg.hash}


def _cohort(cohort: Any) -> dict[str, Any]:
    """Its size, and the terms of each data set in it, for the model card."""
    terms = [
        {
            "dataset": one.dataset,
            "licence": one.licence,
            "commercial_use": one.commercial_use,
            "redistribution": one.redistribution,
            "images": one.images,
        }
        for one in rights_of(cohort)
    ]
    return {"rows": cohort.rows, "datasets": terms}
