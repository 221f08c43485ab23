"""The verb `fetch`."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from usdata.errors import UsdataError

if TYPE_CHECKING:
    from ingest.card import Card
    from ingest.fetch import FetchReport

app = typer.Typer()


@app.command()
def fetch(
    dataset: Annotated[list[str], typer.Argument(help="Registered data sets; see `usdata datasets`.")],
    to: Annotated[
        Path, typer.Option("--to", help="Folder that gets a folder for each data set.", metavar="DIR")
    ] = Path("sources"),
    accept_terms: Annotated[
        list[str] | None,
        typer.Option("--accept-terms", help="A data set whose terms you accept. May repeat.", metavar="ID"),
    ] = None,
    accept_bytes: Annotated[
        list[str] | None,
        typer.Option("--accept-bytes", help="sha256 of a new file that may replace the first one.", metavar="SHA256"),
    ] = None,
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="Keep archives after unpacking them.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Load everything anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be loaded.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per data set, for machines.")] = False,
) -> None:
    """Download data sets, or say how to get them. Exit code 0: all files are there."""
    from ingest.card import get_card
    from ingest.fetch import fetch as run
    from ingest.fetch_terms import check_names
    from ingest.fetch_words import fetch_rows
    from usdata.bars import byte_bar
    from usdata.console import print_rows, say

    cards = [get_card(name) for name in dict.fromkeys(dataset)]
    check_names(accept_terms or (), dataset)
    for digest in accept_bytes or ():
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise typer.BadParameter(f"--accept-bytes takes a sha256, 64 digits from 0-9a-f, not {digest!r}")
    if dry_run:
        print_rows([row for card in cards for row in fetch_rows(card, to)], json)
        return
    whole = True
    for card in cards:
        try:
            with byte_bar(quiet=json or not sys.stderr.isatty()) as progress:
                report = run(
                    card,
                    to,
                    accept_terms=accept_terms or (),
                    accept_bytes=accept_bytes or (),
                    keep_archive=keep_archive,
                    again=again,
                    progress=progress,
                    say=say,
                )
        except UsdataError as error:
            if len(cards) == 1 and not json:
                raise
            _tell_failure(card, error, json)
            whole = False
            continue
        whole = whole and report.complete
        _tell(card, report, json)
    if not whole:
        raise typer.Exit(1)


def _tell(card: "Card", report: "FetchReport", json: bool) -> None:
    """The outcome: on stdout what a person must do, or where the files are."""
    from ingest.fetch_words import ingest_command
    from usdata.console import print_rows

    if json:
        print_rows([_record(report)], as_json=True)
    elif report.instructions:
        sys.stdout.write(report.instructions + "\n")
    else:
        came = f"loaded {', '.join(report.loaded)}; " if report.loaded else ""
        came += f"took {', '.join(report.taken)}; " if report.taken else ""
        came = came or "nothing to do; "
        elsewhere = None if report.folder.parent == Path("sources") else report.folder
        sys.stdout.write(
            f"{report.dataset}: {came}{report.files:,} files, {report.bytes:,} bytes in {report.folder / 'files'}\n"
            f"  Next:  {ingest_command(card, None, elsewhere)}\n"
        )


def _tell_failure(card: "Card", error: UsdataError, json: bool) -> None:
    """A failure of one data set among several: the others are fetched all the same."""
    from usdata.console import print_rows, say

    if json:
        told = {"reason": getattr(error, "reason", None), "message": error.message, "hint": error.hint}
        print_rows([{"dataset": card.name, "complete": False, "error": told}], as_json=True)
    else:
        say(f"usdata: {error}")


def _record(report: "FetchReport") -> dict[str, Any]:
    return {
        "dataset": report.dataset,
        "complete": report.complete,
        "folder": str(report.folder),
        "files": report.files,
        "bytes": report.bytes,
        "loaded": report.loaded,
        "taken": report.taken,
        "instructions": report.instructions,
    }
