"""A bar for a command that reads much: bytes done, speed, time left. Goes to stderr, and only to a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def byte_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, bytes done, bytes in all) that draws one bar; nothing is drawn when `quiet`."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet, transient=True) as bars:
        bar = bars.add_task("", total=None)

        def update(what: str, done: int, total: int) -> None:
            bars.update(bar, description=what, completed=done, total=total)

        yield update
