"""The command line `usdata VERB`: every verb a few lines over a library call.

The other packages bring their verbs through the entry-point group `usdata.verbs`; nothing heavy is imported before a
verb runs. Exit codes: 0 success, 1 an expected failure (one message, no traceback), 2 wrong usage.
"""

import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from usdata.errors import ConfigError, LakeError, QueryError, UsdataError

if TYPE_CHECKING:
    from usdata.finding import Finding

LakeOption = Annotated[
    str, typer.Option("--lake", help="The lake's folder; or, to read, an address like s3://bucket/lake.", metavar="DIR")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line, for machines.")]
PurposeOption = Annotated[
    Literal["research", "commercial", "redistribution"],
    typer.Option("--for", help="What it is for: refused, with the list, where a licence does not allow that."),
]
WorkersOption = Annotated[int | None, typer.Option(help="Processes at most; all cores if not given.", min=1)]
DEFAULT_LAKE = "lake"
_STOPPED: Mapping[Any, str] = {129: "SIGHUP", 130: "Ctrl-C", 143: "SIGTERM"}  # exit code -> word

LOOK: Mapping[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}

app = typer.Typer()
cohort_app = typer.Typer(help="Save, list and show cohorts: named selections of samples.", no_args_is_help=True)
app.add_typer(cohort_app, name="cohort")
export_app = typer.Typer(help="Write a cohort in a form that other programs read.", no_args_is_help=True)
app.add_typer(export_app, name="export")


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT over the views samples, quarantine, organs and schemes.")],
    lake: LakeOption = DEFAULT_LAKE,
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds.", metavar="S")] = None,
    json: JsonOption = False,
) -> None:
    """Ask the catalog: one SELECT, in a sandbox that can read nothing but the catalog."""
    from usdata.console import print_rows
    from usdata.lake import Lake

    answer = Lake(lake).sql(query, timeout)
    try:
        rows = answer.to_pylist()
    except (OverflowError, ValueError) as error:  # a date beyond the year 9999, for instance
        raise QueryError(f"A value can't be shown ({error}).", hint="Cast it:  select x::varchar") from error
    print_rows(rows, json)


@app.command()
def catalog(
    lake: LakeOption = DEFAULT_LAKE,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the catalog anew from the shards alone.")] = False,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """What the lake holds: images, patients, organs and licence of each data set."""
    from usdata.bars import byte_bar
    from usdata.console import print_rows, say
    from usdata.lake import Lake
    from usdata.rebuild import rebuild_catalog

    opened = Lake(lake)
    if rebuild:
        with byte_bar(quiet=json) as progress:
            for name in rebuild_catalog(opened, workers or cores(), progress, say):
                say(f"rebuilt {name}")
    query = """select dataset, count(*) as images, count(distinct patient) as patients,
        count(distinct clip) as clips, count(*) filter (has_mask) as masks,
        string_agg(distinct organ, ', ' order by organ) as organs, any_value(licence) as licence
        from samples group by dataset order by dataset"""
    print_rows(opened.sql(query).to_pylist(), json)


@app.command()
def plan(
    cohort: Annotated[str, typer.Option("--cohort", help="SQL condition, saved name, or all.")] = "all",
    gamma: Annotated[
        list[float] | None,
        typer.Option(
            help="P(group) ~ N^gamma: 1 proportional, 0.5 = 1/sqrt(N) per image (default), 0 all groups alike. "
            "May repeat: side by side."
        ),
    ] = None,
    by: Annotated[
        str, typer.Option(help="The catalog column that names the groups, or usfm12, tusa, arl16.")
    ] = "organ",
    draws: Annotated[int | None, typer.Option(help="Images per epoch; the cohort's size if not given.")] = None,
    seed: Annotated[int, typer.Option(help="The loader's, for the shares that are drawn.")] = 0,
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Show how often each group will be drawn: expected against drawn shares, and repeats per image."""
    from usdata.console import print_rows, say
    from usdata.lake import Lake
    from usdata.plan_table import legend, print_plans
    from usdata.sampling import sampling_plan

    codes, names = Lake(lake).cohort(cohort).groups(by)
    plans = [sampling_plan(codes, names, gamma=g, draws=draws, seed=seed) for g in gamma or [0.5]]
    if json:
        numbers = [{"gamma": p.gamma, "effective_groups": p.effective_groups} for p in plans]
        print_rows([{**n, **row} for n, p in zip(numbers, plans, strict=True) for row in p.rows()], as_json=True)
        return
    print_plans(plans, by)
    say(*legend(plans, by))


@app.command()
def verify(
    dataset: Annotated[list[str] | None, typer.Argument(help="Only these data sets; everything if not given.")] = None,
    workers: WorkersOption = None,
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Read every byte: shards against their hashes, PNGs, rows; list what is wrong and how to repair it."""
    from usdata.bars import byte_bar
    from usdata.console import print_rows, say
    from usdata.lake import Lake
    from usdata.verify import verify as check
    from usdata.verify_lake import check_head

    def tell(findings: "Sequence[Finding]") -> None:
        if findings or json:
            print_rows([finding.row() for finding in findings], json)
        if wrong := sum(finding.level != "note" for finding in findings):
            raise UsdataError(f"{wrong} things are wrong in {lake}.", hint="The column repair says what to do.")

    try:
        opened = Lake(lake)
    except LakeError:
        if (Path(lake) / "lake.json").is_file():
            tell(check_head(Path(lake).absolute()))
        raise
    with byte_bar(quiet=json) as progress:
        findings = check(opened, workers or cores(), progress, dataset or None)
    tell(findings)
    say(f"{opened.root}: every byte is as it was written.")


@app.command()
def dedup(
    cohort: Annotated[
        str, typer.Option("--cohort", help="Look only at these samples, and write nothing.", metavar="EXPR")
    ] = "all",
    threshold: Annotated[float, typer.Option(help="Correlation of thumbnails that near-copies exceed.")] = 0.995,
    recut: Annotated[bool, typer.Option(help="Lay look-alikes over each other: finds copies cut anew.")] = True,
    sheet: Annotated[
        Path | None, typer.Option(help="A .html or .png file: the largest groups as pictures.", metavar="FILE")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="A .csv or .parquet file: every pair found.", metavar="FILE")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look; write nothing to the lake.")] = False,
    workers: WorkersOption = None,
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Find copies and near-copies, within and across data sets, and note which samples belong together."""
    from usdata.bars import byte_bar
    from usdata.console import print_rows, say
    from usdata.dedup_run import search
    from usdata.lake import Lake

    with byte_bar(quiet=json) as progress:
        outcome = search(
            Lake(lake),
            cohort,
            threshold,
            recut=recut,
            write=not dry_run,
            sheet=sheet,
            pairs=pairs,
            workers=workers or cores(),
            progress=progress,
        )
    print_rows(outcome.rows(), json)
    say(*outcome.words(), *[f"{path} written." for path in (pairs, sheet) if path is not None])


@app.command()
def report(
    out: Annotated[Path, typer.Option("-o", "--out", help="The HTML file to write.", metavar="FILE")],
    cohort: Annotated[str, typer.Option("--cohort", help="SQL condition, saved name, or all.", metavar="EXPR")] = "all",
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of a pretraining run to show too.", metavar="DIR")
    ] = None,
    purpose: PurposeOption = "research",
    lake: LakeOption = DEFAULT_LAKE,
) -> None:
    """One HTML page: what the lake holds, a contact sheet, the balance, the quarantine, and how a run went."""
    from usdata.console import say
    from usdata.lake import Lake
    from usdata.report import write_report

    say(f"{write_report(Lake(lake), out, cohort, run, purpose)} written: open it in a browser.")


@app.command()
def split(
    file: Annotated[
        str | None, typer.Argument(help="With --check: a CSV of sample_id and split, or `official`.", metavar="FILE")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="List every leak of FILE, or of the lake's own split.")
    ] = False,
    ratios: Annotated[
        str | None, typer.Option(help="Default: train=0.8,val=0.1,test=0.1", metavar="NAME=SHARE,...")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="K equal parts fold0, fold1, ... instead.", metavar="K")] = None,
    seed: Annotated[str | None, typer.Option(help="Key of the hash; default: usdata.")] = None,
    official: Annotated[
        Literal["keep", "ignore"] | None, typer.Option(help="Splits as they were published; default: keep.")
    ] = None,
    balanced: Annotated[
        bool | None,
        typer.Option(help="Meet the shares in each data set's organ and label; a place then depends on these, too."),
    ] = None,
    leaks: Annotated[
        Literal["refuse", "drop", "keep"],
        typer.Option(help="Groups in two splits by fixed words: write nothing, leave images out, or let them leak."),
    ] = "refuse",
    like: Annotated[Path | None, typer.Option(help="Keep the words of this published file.", metavar="FILE")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Forget the lake's split: images may move.")] = False,
    export: Annotated[
        Path | None, typer.Option(help="Only write the lake's split as a CSV to publish.", metavar="FILE")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the exported file.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Split the images so that no patient, study, clip or near-duplicate stands in two parts; check; publish."""
    from usdata.console import say
    from usdata.lake import Lake
    from usdata.split import asked_for, check_split, export_split, make_split
    from usdata.split_tell import tell_check, tell_split

    if check:
        return tell_check(check_split(Lake(lake), file or "active"), json)
    if file:
        raise ConfigError(
            "A FILE is for --check.", hint="To keep its words:  --like FILE    To write one:  --export FILE"
        )
    if export:
        images, digest = export_split(Lake(lake), export, overwrite)
        return say(f"{export} written: {images:,} images, sha256 {digest}")
    changes = asked_for(ratios=ratios, folds=folds, seed=seed, official=official, balanced=balanced)
    made = make_split(Lake(lake), changes, on_leaks=leaks, like=like, anew=anew, dry_run=dry_run)
    tell_split(made, json)


@cohort_app.command("save")
def cohort_save(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, - and _.")],
    expression: Annotated[str, typer.Argument(help="SQL condition over the view samples, or all.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace one with another condition.")] = False,
    purpose: Annotated[
        Literal["research", "commercial", "redistribution"],
        typer.Option("--for", help="Leave out the samples whose licence does not allow it, and list them."),
    ] = "research",
    lake: LakeOption = DEFAULT_LAKE,
) -> None:
    """Save a selection by its condition, with the hash of the samples it selects today."""
    from usdata.cohort import Cohort, saved_rows
    from usdata.console import say
    from usdata.lake import Lake
    from usdata.rights import only_for, rights_of

    whole = Cohort(Lake(lake), expression)
    cohort = whole if purpose == "research" else Cohort(whole.lake, only_for(whole.sql, purpose))
    left_out = [one.words() for one in rights_of(whole) if not one.allows(purpose)]
    say(*[f"left out, no {purpose} allowed: {line}" for line in left_out])
    before = saved_rows(cohort.lake, name)
    path = cohort.save(name, overwrite)
    was = "" if before is None else f" (it was saved before, with {before:,})"
    say(f"{path}: {cohort.rows:,} samples{was}, {cohort.hash}")


@cohort_app.command("ls")
def cohort_ls(lake: LakeOption = DEFAULT_LAKE, json: JsonOption = False) -> None:
    """List the saved cohorts."""
    from usdata.cohort import saved_records
    from usdata.console import print_rows
    from usdata.lake import Lake

    print_rows(saved_records(Lake(lake)), json)


@cohort_app.command("show")
def cohort_show(
    name: Annotated[str, typer.Argument(help="A saved name, or a SQL condition.")],
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Show what a cohort selects: images, patients and masks by data set and organ."""
    from usdata.console import print_rows
    from usdata.lake import Lake

    print_rows(Lake(lake).cohort(name).summary(), json)


@export_app.command("csv")
def export_csv(
    out: Annotated[Path, typer.Option("-o", "--out", help="A .csv, .csv.gz or .parquet file.", metavar="FILE")],
    cohort: Annotated[str, typer.Option("--cohort", help="SQL condition, saved name, or all.", metavar="EXPR")] = "all",
    columns: Annotated[str, typer.Option(help="Columns with commas between, after sample_id; all if not given.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    purpose: PurposeOption = "research",
    lake: LakeOption = DEFAULT_LAKE,
) -> None:
    """One row per sample with its catalog columns."""
    from usdata.console import say
    from usdata.export import write_table
    from usdata.lake import Lake

    say(*write_table(Lake(lake).cohort(cohort), out, _listed(columns), overwrite, purpose).words())


@export_app.command("coco")
def export_coco(
    out: Annotated[Path, typer.Option("-o", "--out", help="A folder, or a .json file.", metavar="DIR|FILE")],
    cohort: Annotated[str, typer.Option("--cohort", help="SQL condition, saved name, or all.", metavar="EXPR")] = "all",
    images: Annotated[bool, typer.Option("--images", help="Write DIR/images/<sample_id>.png too.")] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Write DIR/masks/<sample_id>.png too.")] = False,
    per: Annotated[
        Literal["component", "class"],
        typer.Option(help="One object for each connected piece of a class, or for all of it in an image."),
    ] = "component",
    like: Annotated[
        Path | None, typer.Option(help="Keep the category numbers of this earlier export.", metavar="FILE")
    ] = None,
    columns: Annotated[str, typer.Option(help="More catalog columns for each image, with commas between.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    purpose: PurposeOption = "research",
    lake: LakeOption = DEFAULT_LAKE,
) -> None:
    """Images, boxes and run-length masks in COCO form; what is known of an image stands beside its file name."""
    from usdata.console import say
    from usdata.export_coco import write_coco
    from usdata.lake import Lake

    written = write_coco(
        Lake(lake).cohort(cohort),
        out,
        images=images,
        masks=masks,
        per=per,
        like=like,
        columns=_listed(columns),
        overwrite=overwrite,
        purpose=purpose,
    )
    say(*written.words())


def _listed(columns: str) -> list[str]:
    """The names in `a,b`."""
    return [name.strip() for name in columns.split(",") if name.strip()]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def command_line() -> typer.Typer:
    """All verbs: those of this file, then those of every package that brings some."""
    whole = typer.Typer(**LOOK, help="A data lake for medical ultrasound, and the pretraining recipes that feed on it.")
    whole.add_typer(app)
    for entry in sorted(entry_points(group="usdata.verbs"), key=lambda e: e.name):
        whole.add_typer(entry.load())
    return whole


def main() -> None:
    """Entry point of the `usdata` command."""
    run_app(command_line())


def run_app(verbs: typer.Typer) -> None:
    """Run a command line; an expected failure becomes one message on stderr and exit code 1, without a traceback.

    Ctrl-C and SIGTERM end it with one line, and the exit codes 130 and 143.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else nohup asked for it to be ignored
        signal.signal(signal.SIGHUP, _terminate)
    warnings.formatwarning = _warning
    try:
        verbs()
    except SystemExit as end:
        if word := _STOPPED.get(end.code):
            typer.echo(f"usdata: Stopped by {word}. The same command can be run again.", err=True)
        raise
    except UsdataError as error:
        typer.echo(f"usdata: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # `usdata sql ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # the system's word on a file: a path too long, no permission to read, a broken disk
        typer.echo(f"usdata: {error.strerror or error}: {error.filename or 'a file'}", err=True)
        sys.exit(1)


def _warning(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as a person reads it, without the line of code that it came from."""
    return f"usdata: Warning: {message}\n"


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End as after Ctrl-C: every `with` is left as it should be."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
