"""The blur search over a whole cohort, image by image off the lake: `usdata obs`.

Read `search_cohort` first. Beside the batch under way it holds 8 bytes and the losses of each image that the cache
knows, never the images.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training import checkpoint, result_table
from training.config import recipe_config
from training.distributed import choose_device
from training.masking import visible_patches
from training.obs import DOMINANT, Searcher
from training.obs_cache import KEPT
from training.recipes import registry
from training.recipes.d2mae import D2MAE, D2MAEConfig
from usdata.errors import ConfigError
from usdata.files import explain_os_errors, replacing

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("t_star", pa.int64(), nullable=False),
        pa.field("sigma", pa.float64(), nullable=False),
        pa.field("losses", pa.list_(pa.float32()), nullable=False),
    ]
)
_GROUP = 8192  # rows that the file stores together, whatever the batch
SIGN = b"usdata.obs"  # key in the file's metadata by which such a file is known
_MEASURED = {"abs": "mean squared error", "rel": "relative to doing nothing"}  # what each criterion is, for people


@dataclass(frozen=True)
class CohortSearch:
    """What the search found.

    Attributes:
        rows: images, of which `computed` were searched now and `cached` were known.
        known: levels that the model knows, of which every `step`-th was tried.
        sigmas: pixels of blur at each level that was tried.
        histogram: images that chose each level.
        curve: mean of the criterion over all images, per level.
        level, share: the level chosen most often, and by which share of the images.
        collapsed: more than nine in ten share that level, so the search has told nothing about them.
        path: the table that was written; None: none.
    """

    rows: int
    computed: int
    cached: int
    criterion: str
    known: int
    step: int
    sigmas: dict[int, float]
    histogram: dict[int, int]
    curve: dict[int, float]
    level: int
    share: float
    collapsed: bool
    cache: Path
    path: Path | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {**asdict(self), "cache": str(self.cache), "path": None if self.path is None else str(self.path)}

    def table(self) -> list[dict[str, Any]]:
        """A row per level, for people."""
        return [
            {
                "level": level,
                "sigma": self.sigmas[level],
                "images": n,
                "share": f"{n / self.rows:.1%}",
                _MEASURED[self.criterion]: self.curve[level],
            }
            for level, n in self.histogram.items()
        ]

    def remarks(self) -> list[str]:
        """What to make of a search that has told little or nothing; no lines where it has told something."""
        if self.known == 1:
            return ["  The model knows one level only: there was nothing to choose."]
        if len(self.sigmas) == 1:
            return [f"  Step {self.step} leaves one of {self.known} levels: there was nothing to choose."]
        if not self.collapsed:
            return []
        return [
            f"usdata: Warning: {self.share:.1%} of the images share level {self.level} (sigma "
            f"{self.sigmas[self.level]:g}); the search has told next to nothing about them.",
            "  Compare:  --criterion rel   or   --mask-ratio 0.75 --masks 4   or fine-tune without: finetune_blur=none",
        ]


def search_cohort(
    cohort: Any,
    encoder: Path | str,
    out: Path | str | None = None,
    *,
    settings: dict[str, Any] | None = None,
    cache: Path | str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> CohortSearch:
    """Find the blur level of every image of a cohort, in its order.

    What is computed goes to the cache about once a minute; a search that was stopped, and another cohort with the same
    images, go on from there.

    Args:
        cohort: a `usdata.Cohort`.
        encoder: the OUT of `usdata pretrain d2mae`, with the decoder in it.
        out: the table to write: `sample_id`, `t_star`, `sigma` in pixels, `losses` at the levels that its metadata
            name. Appears whole or not at all; replaces an earlier table of this kind, and nothing else.
        settings: other values of the recipe's `obs_step`, `obs_criterion`, `obs_mask_ratio` or `obs_masks`.
        cache: folder of what is known; None: OUT/obs.
        batch_size: images at a time; the model sees as many at each level. The result does not depend on it.
        device: auto, cpu or cuda.
        progress: called with the number of images after each batch.

    Raises:
        ConfigError: weights that can't deblur, wrong settings, an empty cohort, or `out` is some other file or not
            named `.parquet`.
        UsdataError: no weights there, or an error that is not finite.
        LakeError: `out` or the cache can't be written, or images can't be read.
    """
    result_table.check_cohort(cohort, batch_size, "search")
    path, folder = None if out is None else Path(out), Path(cache or Path(encoder) / "obs")
    if path is not None:
        result_table.check_target(path, SIGN, "levels.parquet")
    model = load_deblurrer(encoder, settings or {}).to(choose_device(device))
    with Searcher(model, folder, next(model.parameters()).device) as searcher:
        counts, sums = np.zeros(len(searcher.levels), np.int64), np.zeros(len(searcher.levels))
        with _writer(path, _facts(model, searcher, cohort, encoder)) as write:
            for batch in cohort.batches(batch_size, columns=["sample_id"]):
                losses = searcher.losses(batch["image"], batch["sample_id"])
                best = searcher.best(losses)
                counts += (best[:, None] == np.array(searcher.levels)).sum(0)
                sums += losses.sum(0, dtype=np.float64)
                write(batch["sample_id"], best, [model.cfg.levels[t] for t in best], losses)
                if progress is not None:
                    progress(len(losses))
    return _found(searcher, counts, sums, folder, path)


def _found(
    searcher: Searcher, counts: NDArray[np.int64], sums: NDArray[np.float64], folder: Path, path: Path | None
) -> CohortSearch:
    """Of (L,) images and (L,) sums of the losses at the levels that were tried."""
    cfg, rows, most = searcher.model.cfg, int(counts.sum()), int(counts.argmax())
    return CohortSearch(
        rows=rows,
        computed=searcher.computed,
        cached=rows - searcher.computed,
        criterion=cfg.obs_criterion,
        known=len(cfg.levels) - 1,
        step=cfg.obs_step,
        sigmas={t: cfg.levels[t] for t in searcher.levels},
        histogram=dict(zip(searcher.levels, counts.tolist(), strict=True)),
        curve=dict(zip(searcher.levels, (sums / rows).tolist(), strict=True)),
        level=searcher.levels[most],
        share=float(counts[most] / rows),
        collapsed=len(counts) > 1 and rows > 1 and bool(counts[most] > DOMINANT * rows),
        cache=folder,
        path=path,
    )


@contextmanager
def image_bar(rows: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A callback for `progress` that draws a bar on stderr, where that is a terminal and not `quiet`."""
    columns = (TextColumn("blur search"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bars:
        bar = bars.add_task("", total=rows)
        yield lambda images: bars.advance(bar, images)


def load_deblurrer(encoder: Path | str, settings: dict[str, Any]) -> D2MAE:
    """The whole model of a run, encoder and decoder, in eval mode on the CPU, with other settings of the search.

    Raises:
        ConfigError: weights of another recipe, without the decoder, or trained without blur; wrong settings.
        UsdataError: no weights there.
    """
    folder = Path(encoder)
    if folder.is_file() or (
        (folder / "encoder.safetensors").is_file() and not (folder / "recipe.safetensors").exists()
    ):
        raise ConfigError(
            f"{folder} has no decoder, and the search must deblur.",
            step="obs",
            hint="Give the whole --out folder of `usdata pretrain d2mae`; its recipe.safetensors holds both.",
        )
    name = checkpoint.facts_of(folder).get("recipe", "")
    if name in registry.names() and not issubclass(registry.get(name)[0], D2MAE):
        raise ConfigError(
            f"The weights in {folder} are of recipe {name!r}, which does not deblur: it has no blur levels to search.",
            step="obs",
            hint="The search is for runs of:  usdata pretrain d2mae",
        )
    model: D2MAE = checkpoint.load_encoder(folder)
    if model.cfg.blur == "none":
        raise ConfigError(
            f"The weights in {folder} were trained without blur (blur=none), so they know no level to search.",
            step="obs",
            hint="Train with it:  usdata pretrain d2mae, without --variant mae",
        )
    model.cfg = D2MAEConfig.model_validate(recipe_config(name, {**model.cfg.model_dump(), **settings}))
    visible_patches(model.patches, model.cfg.obs_mask_ratio)
    if model.cfg.obs_masks > 1 and not model.cfg.obs_mask_ratio:
        raise ConfigError(
            f"obs_masks is {model.cfg.obs_masks}, but nothing is masked.", step="obs", hint="Add  --mask-ratio 0.75"
        )
    return model


def read_facts(path: Path | str) -> dict[str, Any]:
    """What a table of blur levels says of itself: levels, sigmas, criterion, checkpoint_hash, cohort_hash, ...

    Raises:
        ConfigError: it is no such file.
    """
    return result_table.read_facts(path, SIGN, "blur levels of `usdata obs`")


def _facts(model: D2MAE, searcher: Searcher, cohort: Any, encoder: Path | str) -> dict[str, Any]:
    said = checkpoint.facts_of(encoder)
    cfg = model.cfg
    return {
        **{name: said.get(name, "") for name in ("recipe", "config_hash", "steps")},
        "checkpoint_hash": searcher.checkpoint,
        "levels": list(searcher.levels),
        "sigmas": [cfg.levels[t] for t in searcher.levels],
        **{name: getattr(cfg, f"obs_{name}") for name in ("step", "criterion", "mask_ratio", "masks")},
        "cohort_hash": cohort.hash,
        "cohort_sql": cohort.sql,
        "code_version": checkpoint.code_version(),
    }


@contextmanager
def _writer(path: Path | None, facts: dict[str, Any]) -> Iterator[Callable[..., None]]:
    """A function that takes columns, for the table at `path`; one that does nothing without."""
    if path is None:
        yield lambda *_: None
        return
    schema = SCHEMA.with_metadata({SIGN: json.dumps(facts, sort_keys=True).encode()})
    with (
        explain_os_errors(path, step="obs", elsewhere="with -o FILE", kept=KEPT),
        replacing(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        held = schema.empty_table()

        def write(*columns: Any) -> None:
            nonlocal held
            held = pa.concat_tables([held, _table(columns, schema)])
            while len(held) >= _GROUP:
                writer.write_table(held.slice(0, _GROUP))
                held = held.slice(_GROUP)

        yield write
        writer.write_table(held)


def _table(columns: tuple[Any, ...], schema: pa.Schema) -> pa.Table:
    ids, best, sigmas, losses = columns
    ends = np.arange(0, losses.size + 1, losses.shape[1], dtype=np.int32)
    lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(losses.reshape(-1)))
    values = [pa.array(ids, pa.string()), pa.array(best), pa.array(sigmas, pa.float64()), lists]
    return pa.table([value.cast(field.type) for value, field in zip(values, schema, strict=True)], schema=schema)
