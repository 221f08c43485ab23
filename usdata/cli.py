"""The command line `usdata VERB`: every verb a few lines over a library call.

The other packages bring their verbs through the entry-point group `usdata.verbs`; nothing heavy is imported before a
verb runs. Exit codes: 0 success, 1 an expected failure (one message, no traceback), 2 wrong usage.
"""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from usdata.errors import QueryError, UsdataError

LakeOption = Annotated[Path, typer.Option("--lake", help="The lake's folder.", metavar="DIR")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line, for machines.")]
DEFAULT_LAKE = Path("lake")

LOOK: Mapping[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}

app = typer.Typer()
cohort_app = typer.Typer(help="Save, list and show cohorts: named selections of samples.", no_args_is_help=True)
app.add_typer(cohort_app, name="cohort")


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT over the views samples, quarantine and organs.")],
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Ask the catalog: one SELECT, in a sandbox that can read nothing but the catalog."""
    from usdata.console import print_rows
    from usdata.lake import Lake

    answer = Lake(lake).sql(query)
    try:
        rows = answer.to_pylist()
    except (OverflowError, ValueError) as error:  # a date beyond the year 9999, for instance
        raise QueryError(f"A value can't be shown ({error}).", hint="Cast it:  select x::varchar") from error
    print_rows(rows, json)


@app.command()
def catalog(
    lake: LakeOption = DEFAULT_LAKE,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the catalog anew from the shards alone.")] = False,
    json: JsonOption = False,
) -> None:
    """What the lake holds: images, patients, organs and licence of each data set."""
    from usdata.console import print_rows, say
    from usdata.lake import Lake
    from usdata.verify import rebuild_catalog

    opened = Lake(lake)
    if rebuild:
        for name in rebuild_catalog(opened):
            say(f"rebuilt {name}")
    query = """select dataset, count(*) as images, count(distinct patient) as patients,
        count(distinct clip) as clips, count(*) filter (has_mask) as masks,
        string_agg(distinct organ, ', ' order by organ) as organs, any_value(licence) as licence
        from samples group by dataset order by dataset"""
    print_rows(opened.sql(query).to_pylist(), json)


@app.command()
def plan(
    cohort: Annotated[str, typer.Option("--cohort", help="SQL condition, saved name, or all.")] = "all",
    gamma: Annotated[float, typer.Option(help="P(group) ~ N^gamma: 1 proportional, 0.5 = 1/sqrt(N) per image.")] = 0.5,
    by: Annotated[str, typer.Option(help="The catalog column that names the groups.")] = "organ",
    draws: Annotated[int | None, typer.Option(help="Images per epoch; the cohort's size if not given.")] = None,
    seed: int = 0,
    lake: LakeOption = DEFAULT_LAKE,
    json: JsonOption = False,
) -> None:
    """Show how often each group will be drawn: expected against drawn shares, and repeats per image."""
    from usdata.console import print_rows, say
    from usdata.lake import Lake
    from usdata.sampling import sampling_plan

    chosen = Lake(lake).cohort(cohort)
    codes, names = chosen.groups(by)
    result = sampling_plan(codes, names, gamma=gamma, draws=chosen.rows if draws is None else draws, seed=seed)
    print_rows(result.rows(), json)
    if not json:
        say(f"effective number of groups: {result.effective_groups:.2f} of {len(names)}")


@app.command()
def verify(lake: LakeOption = DEFAULT_LAKE, json: JsonOption = False) -> None:
    """Read every byte: shards against their hashes, PNGs, rows; list what is wrong and how to repair it."""
    from usdata.console import print_rows, say
    from usdata.lake import Lake
    from usdata.verify import verify as check

    opened = Lake(lake)
    findings = check(opened)
    print_rows([finding.row() for finding in findings], json)
    if findings:
        raise UsdataError(
            f"{len(findings)} things are wrong in {opened.root}.", hint="The column repair says what to do."
        )
    say(f"{opened.root}: every byte is as it was written.")


@app.command()
def report(
    out: Annotated[Path, typer.Option("-o", "--out", help="The HTML file to write.", metavar="FILE")],
    cohort: Annotated[str, typer.Option("--cohort", help="SQL condition, saved name, or all.", metavar="EXPR")] = "all",
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of a pretraining run to show too.", metavar="DIR")
    ] = None,
    lake: LakeOption = DEFAULT_LAKE,
) -> None:
    """One HTML page: what the lake holds, a contact sheet, the balance, the quarantine, and how a run went."""
    from usdata.console import say
    from usdata.lake import Lake
    from usdata.report import write_report

    say(f"{write_report(Lake(lake), out, cohort, run)} written: open it in a browser.")


@cohort_app.command("save")
def cohort_save(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, - and _.")],
    expression: Annotated[str, typer.Argument(help="SQL condition over the view samples, or all.")],
    lake: LakeOption = DEFAULT_LAKE,
) -> None:
    """Save a selection by its condition, with the hash of the samples it selects today."""
    from usdata.cohort import Cohort
    from usdata.console import say
    from usdata.lake import Lake

    cohort = Cohort(Lake(lake), expression)
    path = cohort.save(name)
    say(f"{path}: {cohort.rows:,} samples, {cohort.hash}")


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
    """Run a command line; an expected failure becomes one message on stderr and exit code 1, without a traceback."""
    try:
        verbs()
    except UsdataError as error:
        typer.echo(f"usdata: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # `usdata sql ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # the system's word on a file: a path too long, no permission to read, a broken disk
        typer.echo(f"usdata: {error.strerror or error}: {error.filename or 'a file'}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
