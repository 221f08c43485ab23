"""The folder of a fetch: one writer at a time, and files put in place so that a killed run can do it again."""

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ingest.card import Card
from usdata.errors import DataError
from usdata.files import locked, make_folder


@contextmanager
def only_fetch(card: Card, folder: Path) -> Iterator[None]:
    """Hold the lock that keeps two fetches of one data set apart."""
    make_folder(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", wait=False, note=f"process {os.getpid()}"))
        except BlockingIOError as error:
            raise DataError(
                "busy",
                f"Another process is fetching into {folder} ({(folder / '.lock').read_text() or 'just begun'}).",
                dataset=card.name,
                step="fetch",
                hint="Wait for it to end, then run the command again.",
            ) from error
        yield


def link(path: Path, target: Path) -> None:
    """The file under a second name, without copying it where the disk can do that."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def merge(folder: Path, target: Path, dataset: str, archive: str) -> None:
    """Move all that is in `folder` into `target`. A file that is there already must be the same one."""
    for entry in sorted(folder.iterdir()):
        there = target / entry.name
        if not there.exists():
            entry.rename(there)
        elif entry.is_dir() and there.is_dir():
            merge(entry, there, dataset, archive)
        elif not (entry.is_file() and there.is_file() and filecmp.cmp(entry, there, shallow=False)):
            raise DataError(
                "clash",
                f"{archive} brings {there.name!r} too, which another source brought, and it is another file.",
                dataset=dataset,
                step="fetch",
                hint="Give one of the sources an `into` folder of its own in the card.",
            )
