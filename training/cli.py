"""The verbs `pretrain`, `obs`, `embed` and `downstream`, each over a library call; heavy imports wait for a call.

Under torchrun:  torchrun --nproc_per_node=8 -m training.cli pretrain d2mae ...
"""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from usdata.cli import run_app

LakeOption = Annotated[
    str, typer.Option("--lake", help="The lake's folder; or, to read, an address like s3://bucket/lake.", metavar="DIR")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line, for machines.")]
CohortOption = Annotated[str, typer.Option("--cohort", help="SQL condition, saved name, or all.", metavar="EXPR")]
DEFAULT_LAKE = "lake"
VARIANT_HELP = (  # a test compares it with the recipes, which are not imported for it
    "An ablation or baseline, with any preset. "
    "arl: mim, mim_acdt, mim_acdt_adv, mim_natural; d2mae: deblurrmae, mae; "
    "tusa: softmax, no_lpips, no_logit, no_contrast, no_entropy; usfm: woS, woF, inv_sqrt, masked_l1, vit."
)

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
downstream = typer.Typer(help="What an encoder is worth on a labelled cohort.", no_args_is_help=True)
app.add_typer(downstream, name="downstream")


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="usfm, tusa, d2mae or arl")],
    cohort: CohortOption,
    out: Annotated[Path, typer.Option("--out", help="New folder for weights, log and checkpoint.", metavar="DIR")],
    preset: Annotated[str | None, typer.Option(help="micro (seconds), small (hours) or paper; default micro.")] = None,
    variant: Annotated[str | None, typer.Option(help=VARIANT_HELP, metavar="NAME")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML of settings over preset and variant.", metavar="FILE")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, may repeat.", metavar="KEY=VALUE")
    ] = None,
    lake: LakeOption = DEFAULT_LAKE,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run in --out was interrupted; a new --out starts anew.")
    ] = False,
    max_hours: Annotated[float | None, typer.Option(help="Stop with a checkpoint after so long.", min=0)] = None,
    json: JsonOption = False,
) -> None:
    """Train an encoder on a cohort by one of the recipes."""
    from training.config import resolve
    from training.distributed import is_first
    from training.progress import Progress
    from training.train import pretrain as run
    from usdata.console import print_rows, say
    from usdata.lake import Lake

    cfg, images = resolve(recipe, preset, config, set_ or [], variant), Lake(lake).cohort(cohort)
    if resume and is_first() and not (out / "checkpoint" / "last.pt").exists():
        say(f"{out} holds no checkpoint: the run starts at step 0.")
    with Progress(cfg, quiet=json or not is_first()) as progress:
        result = run(images, cfg, out, resume=resume, max_hours=max_hours, progress=progress.update)
    if not is_first():
        return
    if json:
        print_rows([result.as_dict()], as_json=True)
    if result.finished:
        say(
            f"{out}: {result.step:,} steps done ({result.seconds:,.0f} s); weights in {out / 'encoder.safetensors'}",
            "  Its score:  "
            + shlex.join(["usdata", "downstream", "probe", "--encoder", str(out), "--cohort", cohort, "--lake", lake]),
        )
        if result.probe.get("collapsed"):
            rank, size = result.probe["effective_rank"], result.probe["features"]
            say(f"  Collapse: the features use {rank:.1f} of {size} directions; see docs/recipes.md.")
    else:
        say(
            f"{out}: stopped by {result.stopped} after step {result.step:,} of {result.steps:,}; all is saved.",
            "  Go on: the same command with --resume",
        )
        if result.stopped != "max-hours":  # a limit that was asked for is no failure
            sys.exit(1)


@app.command()
def embed(
    encoder: Annotated[Path, typer.Option("--encoder", help="The --out of a pretraining run.", metavar="DIR")],
    cohort: CohortOption,
    out: Annotated[Path, typer.Option("-o", "--out", help="The Parquet file to write.", metavar="FILE")],
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 64,
    condition: Annotated[
        str | None,
        typer.Option(help="What an ARL encoder is told of the organ: null, label, predict or wrong.", metavar="WHAT"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Features of every image of a cohort as Parquet, to be joined with the catalog by sample_id."""
    from training.embed import embed_cohort
    from training.result_table import joining_sql
    from usdata.console import print_rows, say
    from usdata.lake import Lake

    done = embed_cohort(
        Lake(lake).cohort(cohort), encoder, out, batch_size=batch_size, device=device, condition=condition
    )
    if json:
        print_rows([done.as_dict()], as_json=True)
        return
    say(
        f"{out}: {done.rows:,} embeddings of {done.features} numbers, by the weights {done.weights_xxh[:8]}… with "
        f"condition {done.condition} ({done.speed:,.0f} images/s)",
        f"  In SQL:  {joining_sql(out, lake)}",
    )


def _below_one(share: float | None) -> float | None:
    """Typer's ranges have no open end."""
    if share is not None and share >= 1:
        raise typer.BadParameter(f"{share:g} is not below 1: something must stay visible.")
    return share


@app.command()
def obs(
    encoder: Annotated[Path, typer.Option("--encoder", help="The --out of a run of d2mae.", metavar="DIR")],
    cohort: CohortOption,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Parquet table to write.", metavar="FILE")] = None,
    step: Annotated[int | None, typer.Option(help="Every how many levels; default: the run's (2).", min=1)] = None,
    criterion: Annotated[
        Literal["abs", "rel"] | None,
        typer.Option(
            help="abs: mean squared error of the deblurred image; rel: that relative to doing nothing, so over the "
            "error of the blurred image; default: the run's (abs)."
        ),
    ] = None,
    mask_ratio: Annotated[
        float | None, typer.Option(help="Audit: hide this share of the patches, below 1.", min=0, callback=_below_one)
    ] = None,
    masks: Annotated[int | None, typer.Option(help="Masks to average over, with --mask-ratio.", min=1)] = None,
    cache: Annotated[
        Path | None, typer.Option(help="What is known of each image; default: obs in --encoder.", metavar="DIR")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time, each at every level.", min=1)] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """How much to blur each image before fine-tuning (D2MAE's optimal blurriness search), without labels."""
    from training.obs_cohort import image_bar, search_cohort
    from training.result_table import joining_sql
    from usdata.console import print_rows, say
    from usdata.lake import Lake

    chosen = {"obs_step": step, "obs_criterion": criterion, "obs_mask_ratio": mask_ratio, "obs_masks": masks}
    settings = {key: value for key, value in chosen.items() if value is not None}
    images = Lake(lake).cohort(cohort)
    with image_bar(images.rows, quiet=json) as progress:
        found = search_cohort(
            images,
            encoder,
            out,
            settings=settings,
            cache=cache,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    if json:
        print_rows([found.as_dict()], as_json=True)
    else:
        print_rows(found.table(), as_json=False)
        say(f"{found.rows:,} images: {found.computed:,} searched, {found.cached:,} from the cache {found.cache}")
        if found.path:
            say(f"  In SQL:  {joining_sql(found.path, lake)}")
    say(*found.remarks())


@downstream.command("probe")
def probe(
    encoder: Annotated[Path, typer.Option("--encoder", help="The --out of a pretraining run.", metavar="DIR")],
    cohort: CohortOption,
    label: Annotated[str | None, typer.Option(help="Catalog column; default: organ if several, else label.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: scores.json beside the weights.")] = None,
    seed: int = 0,
    split: Annotated[
        bool, typer.Option("--split", help="Test on the lake's own split (usdata split) instead of the probe's folds.")
    ] = False,
    condition: Annotated[
        str | None,
        typer.Option(
            help="What an ARL encoder is told of the organ: null, label, predict, wrong; all: side by side.",
            metavar="WHAT",
        ),
    ] = None,
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Linear probe and kNN beside a random encoder, thumbnails and the majority class, with 95 % intervals."""
    from training import model_card
    from training.downstream.classify import could_be_told, probe_cohort, rows_of
    from usdata.console import print_rows, say
    from usdata.lake import Lake

    result = probe_cohort(
        Lake(lake).cohort(cohort), encoder, label=label, out=out, seed=seed, by_split=split, condition=condition
    )
    if (encoder / "config.json").is_file():
        model_card.refresh(encoder)
    if json:
        print_rows([result], as_json=True)
        return
    sizes = ", ".join(f"{name} {n:,}" for name, n in result["classes"].items())
    print_rows(rows_of(result), as_json=False, title=f"{result['label']}: {sizes}")
    say(
        f"{result['groups']:,} groups (patients, else near-duplicates) in "
        f"{'the split' if split else 'folds'} of {result['folds']}; {result['tested']:,} images tested; "
        f"{result['left_out']:,} images without {result['label']} left out.",
        *([f"{result['leaking']:,} groups leak from training to test."] if result["leaking"] else []),
        *([f"Without {', '.join(result['circular'])}: they tell the answer."] if result["circular"] else []),
        *(["Told the organ as well, rightly and wrongly:  --condition all"] if could_be_told(result) else []),
        f"Written to {out or encoder / 'scores.json'}",
    )


def main() -> None:
    """Entry point of `python -m training.cli`, as torchrun starts it."""
    run_app(app)


if __name__ == "__main__":
    main()
