"""What a person sees of an ingest: a bar while it runs, a few lines when it ends. All of it goes to stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ingest import run
from usdata.console import say
from usdata.lake import Lake

_WORDS = {"scan": "hashing files", "build": "building shards"}


@contextmanager
def show(dataset: str, quiet: bool) -> Iterator[run.Progress]:
    """A callback for `ingest` that draws one bar per stage; nothing is drawn when `quiet` or not at a terminal."""
    bars: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as progress:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(f"{dataset}: {_WORDS[stage]}", total=total)
            progress.update(bars[stage], completed=done, total=total)

        yield update


def tell(report: run.IngestReport, lake: Lake) -> None:
    """The outcome in a few lines: what was read, what got in, what did not and why, what to type next."""
    c = report.counts
    say(
        f"{report.dataset}: {c.files:,} files, {c.items:,} items, {c.samples:,} images in the lake {lake.root}, "
        f"{c.quarantined:,} quarantined, {c.ignored:,} ignored",
        f"  organs: {', '.join(f'{organ} {n:,}' for organ, n in report.organs.items()) or 'none'}",
        f"  shards: {report.built} built, {report.reused} already right"
        + ("" if report.changed else "; nothing to write"),
    )
    for note in report.notes:
        say(f"  note: {note}")
    if c.quarantined:
        say(f"  quarantined: {', '.join(f'{reason} {n:,}' for reason, n in report.reasons.items())}")
        for one in report.first:
            say(f"    {one.source_id}: {one.reason} ({one.stage}). {one.detail or ''}".rstrip())
        query = f"select source_id, stage, reason, detail from quarantine where dataset = '{report.dataset}'"
        say(f'  All of them:  usdata sql "{query}" --lake {lake.root}')
