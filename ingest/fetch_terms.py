"""The switch of data sets with terms of use: off until the user has said, for each one by name, that they are accepted.

By `--accept-terms ID`, by the environment's USDATA_ACCEPT_TERMS (names with commas between), or in params.yaml. Who
has accepted a text for a lake, or for a folder of files, is not asked again about the same text. What was accepted is
written down: in the lake's `runs.jsonl`, or in the folder's fetch.json.
"""

import hashlib
import json
import os
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.card import Card, registered
from ingest.fetch_answer import Say, no_words
from usdata.errors import CardError, nearest
from usdata.files import explain_os_errors
from usdata.lake import Lake

VARIABLE = "USDATA_ACCEPT_TERMS"
LOG = "runs.jsonl"  # in the lake: one JSON object per event


@dataclass(frozen=True, slots=True)
class Accepted:
    """Terms that a user accepted: of which data set, their sha256, and by which means."""

    dataset: str
    digest: str
    by: str


def check_names(given: Sequence[str], asked: Sequence[str]) -> None:
    """A name after --accept-terms that is none of the command's data sets is a mistake, never passed over.

    Raises:
        CardError: with the nearest name.
    """
    for name in given:
        if name not in asked:
            near = nearest(name, [*asked, *registered()])
            raise CardError(f"--accept-terms {name!r}: the command is not about such a data set.{near}")


def accept_terms(
    card: Card, given: Sequence[str] = (), by: str = "--accept-terms", *, command: str, before: str | None = None
) -> Accepted | None:
    """How the terms of a card were accepted; None if it has none.

    Args:
        given: names of data sets whose terms the user accepts.
        by: where `given` comes from, for the log.
        command: what to type to accept them.
        before: digest of terms that were accepted here earlier.

    Raises:
        CardError: they were not; the message shows them and the command.
    """
    if card.terms is None:
        return None
    digest = terms_digest(card.terms)
    if card.name in given:
        return Accepted(card.name, digest, by)
    if card.name in [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]:
        return Accepted(card.name, digest, VARIABLE)
    if before == digest:
        return Accepted(card.name, digest, "earlier")
    lines = card.terms.strip().splitlines()
    raise CardError(
        f"{card.name!r} has terms of use; nothing is done before you accept them:\n\n"
        + "\n".join(textwrap.fill(line, 110, initial_indent="    ", subsequent_indent="    ") for line in lines)
        + "\n\n ",
        dataset=card.name,
        step="terms",
        hint=f"If you do:  {command}      or set {VARIABLE}={card.name}",
    )


def terms_digest(terms: str) -> str:
    """sha256 of a text of terms, whatever its line breaks: 64 hex digits."""
    return hashlib.sha256(" ".join(terms.split()).encode()).hexdigest()


def open_terms(
    card: Card, lake: str | Path, given: Sequence[str] = (), by: str = "--accept-terms", *, command: str
) -> Accepted | None:
    """`accept_terms` for an ingest into `lake`, of which the log may say that they were accepted before.

    Raises:
        CardError: they were not accepted.
    """
    before = accepted_before(Path(lake), card.name) if card.terms else None
    return accept_terms(card, given, by, command=command, before=before)


def accepted_before(root: Path, dataset: str) -> str | None:
    """The digest of the terms of `dataset` that the lake's log shows as accepted last; None if it shows none."""
    found = None
    for record in read_log(root):
        if record.get("event") == "terms accepted" and record.get("dataset") == dataset:
            found = str(record.get("sha256"))
    return found


def read_log(root: Path) -> list[dict[str, Any]]:
    """The events in a lake's log, in their order; a line cut by a power failure is left out."""
    try:
        lines = (root / LOG).read_text("utf-8", "replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def write_accepted(lake: Lake, card: Card, accepted: Accepted | None, say: Say = no_words) -> None:
    """Write into the lake's log that terms were accepted, with their whole text; nothing if it stands there already.

    Args:
        say: hears that it was written.

    Raises:
        LakeError: the log can't be written.
    """
    if accepted is None or accepted_before(lake.root, card.name) == accepted.digest:
        return
    event = {
        "event": "terms accepted",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "dataset": card.name,
        "by": accepted.by,
        "sha256": accepted.digest,
        "terms": card.terms,
    }
    say(f"{card.name}: its terms are accepted ({accepted.by}); written into {lake.root / LOG}")
    with explain_os_errors(lake.root, dataset=card.name, step="terms"), lake.commit_lock():
        path = lake.root / LOG
        cut = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut else "") + json.dumps(event, sort_keys=True, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
