"""Before the first step: do the sizes fit, is the folder free or this run's, what is known of the cohort."""

from pathlib import Path
from typing import Any

from training import checkpoint
from training.config import RunConfig
from training.distributed import World
from usdata.errors import ConfigError
from usdata.files import explain_os_errors, write_json
from usdata.rights import rights_of


def check_sizes(cohort: Any, cfg: RunConfig, peers: World) -> None:
    """Enough images for a batch, and a batch that divides.

    Raises:
        ConfigError: if not.
    """
    images = cohort.rows if cfg.epoch_size is None else cfg.epoch_size
    if cohort.rows < cfg.batch_size or images < cfg.batch_size:
        raise ConfigError(
            f"{min(cohort.rows, images)} images are too few for a batch of {cfg.batch_size}.",
            hint=f"Lower the batch:  --set batch_size={max(1, min(cohort.rows, images))}   or choose a wider --cohort.",
        )
    if cfg.batch_size % (peers.size * cfg.accumulate):
        raise ConfigError(
            f"A batch of {cfg.batch_size} does not divide among {peers.size} ranks and {cfg.accumulate} micro-batches."
        )


def prepare(out: Path, cfg: RunConfig, cohort: Any, peers: World, resume: bool) -> dict[str, Any] | None:
    """Check the directory, write config.json, and give the state to go on from, if there is one.

    Raises:
        ConfigError: a directory in use, or another run's state.
        UsdataError: a damaged state.
        LakeError: `out` can't be written.
    """
    path = out / "checkpoint" / "last.pt"
    if not resume and peers.first and out.exists() and (not out.is_dir() or any(out.iterdir())):
        known = "a run's checkpoint" if path.exists() else "files"
        raise ConfigError(
            f"{out} already holds {known}.",
            hint="Go on with that run:  --resume   Or start a new one in another --out.",
        )
    state = checkpoint.load_state(path) if resume and path.exists() else None
    if state is not None:
        checkpoint.refuse_another_run(state, cfg, cohort.hash)
    if peers.first:
        with explain_os_errors(out, step="start"):
            out.mkdir(parents=True, exist_ok=True)
            for litter in [*out.glob(".*.tmp"), *out.glob("*/.*.tmp")]:  # of a process that was killed while writing
                litter.unlink()
            write_json(out / "config.json", {**_config(cfg), **facts(cohort), **_cohort(cohort)})
    return state


def facts(cohort: Any) -> dict[str, str]:
    """What weights and checkpoint say of the images and the code that made them."""
    return {
        "cohort_hash": cohort.hash,
        "cohort_sql": cohort.sql,
        "cohort_name": cohort.name or "",
        "code_version": checkpoint.code_version(),
    }


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
