"""What `usdata fetch` left in a data set's folder: `fetch.json`, beside the folder `files` that an ingest reads.

sources/<id>/fetch.json    what came from where, with its sha256: the first fetch's word, which later ones are held to
sources/<id>/files/        the files, unpacked
sources/<id>/archives/     downloads under way (.part), and finished archives until they are unpacked
sources/<id>/<name>        an archive that a person put there

No dates and no machine in the record: the same bytes give the same record.
"""

import os
import shlex
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ingest.card_parts import Model
from usdata.errors import DataError
from usdata.files import write_json

DEFAULT = Path("sources")
RECORD, FILES, ARCHIVES = "fetch.json", "files", "archives"
MARK: Literal["usdata fetch 1"] = "usdata fetch 1"


class Loaded(Model):
    """One file that came in and was put in its place."""

    source: str  # the card's address, or `by hand`
    url: str | None = None  # the address that gave it, a mirror perhaps
    size: int
    sha256: str
    files: int  # how many it unpacked to
    in_place: bool = True  # False: to be put in place again; its sha256 still holds


class Record(Model):
    """All of fetch.json."""

    format: Literal["usdata fetch 1"] = MARK
    dataset: str
    complete: bool = False
    sources: dict[str, Loaded] = Field(default_factory=dict)  # file name -> what came
    by_hand: tuple[str, ...] = ()  # parts whose files a person put into `files`
    files: int = 0  # in `files`, when the fetch was complete
    bytes: int = 0
    terms: str | None = None  # sha256 of the terms that were accepted
    terms_by: str | None = None  # how they were accepted


def read_record(folder: Path) -> Record | None:
    """The record in a data set's folder; None if there is none, or the file is something else's.

    Raises:
        DataError: step fetch, reason unreadable: it is ours and damaged.
    """
    path = folder / RECORD
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    if MARK.encode() not in raw:
        return None
    try:
        return Record.model_validate_json(raw)
    except ValidationError as error:
        raise DataError(
            "unreadable",
            f"{path} is damaged: it is no record of `usdata fetch`.",
            step="fetch",
            hint="Remove it and fetch again; what was trusted on first use is then trusted anew.",
        ) from error


def write_record(folder: Path, record: Record) -> None:
    """Put the record in place, the old one or the new one, whole."""
    write_json(folder / RECORD, record.model_dump(mode="json", exclude_defaults=True) | {"format": MARK})


def fetched_files(folder: Path) -> Path | None:
    """The folder `files` of a folder that `usdata fetch` filled; None if it is any other folder.

    Raises:
        DataError: step fetch; reason incomplete, or unreadable (see `read_record`).
    """
    record = read_record(folder)
    if record is None:
        return None
    if not record.complete or not (folder / FILES).is_dir():
        raise DataError(
            "incomplete",
            f"Not all files of {record.dataset} are there yet.",
            dataset=record.dataset,
            step="fetch",
            hint=f"{fetch_command(record.dataset, folder)}      goes on, or says what to do",
        )
    return folder / FILES


def fetch_command(dataset: str, folder: Path) -> str:
    """The command that goes on with a data set's own folder."""
    return f"usdata fetch {dataset}" + ("" if folder.parent == DEFAULT else f" --to {shlex.quote(str(folder.parent))}")


def count_files(folder: Path) -> tuple[int, int]:
    """How many files are below `folder`, and their bytes."""
    files = size = 0
    pending = [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    files, size = files + 1, size + entry.stat(follow_symlinks=False).st_size
    return files, size
