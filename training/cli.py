"""The verbs `pretrain`, `embed` and `downstream`, a few lines over a library call each; heavy imports wait for a call.

Under torchrun:  torchrun --nproc_per_node=8 -m training.cli pretrain d2mae ...
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from usdata.cli import run_app

LakeOption = Annotated[
    str, typer.Option("--lake", help="The lake's folder; or, to read, an address like s3://bucket/lake.", metavar="DIR")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line, for machines.")]
CohortOption = Annotated[str, typer.Option("--cohort", help="SQL condition, saved name, or all.", metavar="EXPR")]
DEFAULT_LAKE = "lake"

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
downstream = typer.Typer(help="What an encoder is worth on a labelled cohort.", no_args_is_help=True)
app.add_typer(downstream, name="downstream")


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="usfm, tusa, d2mae or arl")],
    cohort: CohortOption,
    out: Annotated[Path, typer.Option("--out", help="New folder for weights, log and checkpoint.", metavar="DIR")],
    preset: Annotated[str | None, typer.Option(help="micro (seconds), small (hours) or paper; default micro.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of settings over the preset.", metavar="FILE")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, may repeat.", metavar="KEY=VALUE")
    ] = None,
    lake: LakeOption = DEFAULT_LAKE,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in --out was interrupted.")] = False,
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

    cfg = resolve(recipe, preset, config, set_ or [])
    with Progress(cfg, quiet=json or not is_first()) as progress:
        result = run(Lake(lake).cohort(cohort), cfg, out, resume=resume, max_hours=max_hours, progress=progress.update)
    if not is_first():
        return
    if json:
        print_rows([result.as_dict()], as_json=True)
    if result.finished:
        say(
            f"{out}: {result.step:,} steps done ({result.seconds:,.0f} s); weights in {out / 'encoder.safetensors'}",
            f"  Its score:  usdata downstream probe --encoder {out} --cohort {cohort!r} --lake {lake}",
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
    use_columns: Annotated[
        bool,
        typer.Option("--use-columns", help="Give the encoder the columns it was trained with (ARL: organ)."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Features of every image of a cohort as Parquet, to be joined with the catalog by sample_id."""
    from training.embed import embed_cohort
    from usdata.console import print_rows, say
    from usdata.lake import Lake

    done = embed_cohort(
        Lake(lake).cohort(cohort), encoder, out, batch_size=batch_size, device=device, use_columns=use_columns
    )
    if json:
        print_rows([done.as_dict()], as_json=True)
        return
    say(
        f"{out}: {done.rows:,} embeddings of {done.features} numbers, by the weights {done.weights_xxh[:8]}…",
        f"  In SQL:  select * from '{out}' join samples using (sample_id)",
    )


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
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Linear probe and kNN beside a random encoder, thumbnails and the majority class, with 95 % intervals."""
    from training import model_card
    from training.downstream.classify import probe_cohort, rows_of
    from usdata.console import print_rows, say
    from usdata.lake import Lake

    result = probe_cohort(Lake(lake).cohort(cohort), encoder, label=label, out=out, seed=seed, by_split=split)
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
        f"Written to {out or encoder / 'scores.json'}",
    )


def main() -> None:
    """Entry point of `python -m training.cli`, as torchrun starts it."""
    run_app(app)


if __name__ == "__main__":
    main()
