"""What a person does where `usdata fetch` can't: step by step, from the card's sources, to the next command."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ingest.card import Card
from ingest.card_parts import Source
from ingest.fetch_record import ARCHIVES, FILES, fetch_command

_KAGGLE = re.compile(r"https?://(?:www\.)?kaggle\.com/(?:datasets/([\w-]+/[\w-]+)|(?:c|competitions)/([\w-]+))")
_GIT_HOSTS = ("github.com", "gitlab.com", "huggingface.co", "bitbucket.org", "codeberg.org")


def instructions(card: Card, parts: Sequence[str], folder: Path, found: Sequence[str] = ()) -> str:
    """How to get the files of these parts of a card by hand.

    Args:
        folder: the data set's own, which the files go into.
        found: archives that lie there and that the card does not name.
    """
    lines = [f"{card.name} ({card.title}) can't be loaded by this program alone."]
    for part in parts:
        ways = [source for source in card.sources if source.part == part]
        if len(parts) > 1 or part != "files":
            lines.append(f"Needed: {part}.")
        for number, source in enumerate(ways):
            lines += _way(source, folder, "Or: " if number else "")
    if not any(source.part in parts for source in card.sources):
        lines.append(f"  {card.needs or 'The card names no place to get it.'}")
    for path in misplaced(folder):
        lines.append(f"{path} lies beside the folder of files; if it belongs there:  ")
        lines[-1] += f"mkdir -p {quoted(folder / FILES)} && mv {quoted(path)} {quoted(folder / FILES)}/"
    if found:
        named = ", ".join(source.archive for source in card.sources if source.archive)
        lines.append(f"{folder} holds {', '.join(found)}, but not {named}: if it is that file, give it that name.")
    lines.append("When the files are there:")
    lines.append(f"  {fetch_command(card.name, folder)}")
    return "\n".join(lines)


def ingest_command(card: Card, file: Path | None, source: Path | None, lake: str = "lake") -> str:
    """The command that brings files into a lake.

    Args:
        file: the card's, if it is a user's own.
        source: the files' folder or archive; None: where `usdata fetch` puts them.
    """
    words = ["usdata ingest", f"--card {quoted(file)}" if file else card.name]
    words.append(f"--from {quoted(source)}" if source else "")
    words.append(f"--lake {shlex.quote(lake)}" if lake != "lake" else "")
    return " ".join(word for word in words if word)


def misplaced(folder: Path) -> list[Path]:
    """Folders that a person unpacked beside the folder `files` instead of into it."""
    ours = (FILES, ARCHIVES)
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name not in ours and not p.name.startswith("."))


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def _way(source: Source, folder: Path, before: str) -> list[str]:
    """The lines for one source."""
    page = f" at {source.page}" if source.page else ""
    what = source.archive or "the files"
    place = folder / FILES / source.into if source.into != "." else folder / FILES
    first = {
        "direct": f"Download {what}{page.replace(' at ', ' from ', 1)}.",
        "git": f"Clone it{page.replace(' at ', ' from ', 1)}.",
        "kaggle": f"Sign in{page}, accept the rules if it asks, and download {what}.",
        "drive": f"Open it in a browser{page}, and download {what}.",
        "registration": f"Register{page}, accept what its owner asks, and download {what}.",
        "request": f"Ask its owner{page or ' (see the citation)'} for {what}.",
        "private": "It was never published: only its owner can give it.",
        "generate": f"It is made by a program, not downloaded{': see ' + source.page if source.page else ''}.",
        "unknown": f"No sure place is known{'; look' + page if page else ''}.",
    }[source.how]
    lines = [f"  {before}{first}"]
    command = _command(source, folder, place)
    if source.steps and not (source.how == "git" and command):
        lines += [f"    {line.strip()}" for line in source.steps.strip().splitlines()]
    lines += [f"    {command}"] if command else []
    if source.note:
        lines.append(f"    Note: {' '.join(source.note.split())}")
    checks = [f"{source.size:,} bytes" if source.size is not None else "", f"md5 {source.md5}" if source.md5 else ""]
    checks.append(f"sha256 {source.sha256}" if source.sha256 else "")
    if any(checks):
        lines.append(f"    It has {', '.join(check for check in checks if check)}; that is checked.")
    if source.how == "git":
        return lines
    if source.archive:
        lines.append(f"    Put {source.archive} into {folder}/ as it is, or what it unpacks to into {place}/")
    else:
        lines.append(f"    Put the archive into {folder}/ as it is, or the files into {place}/")
    return lines


def clone_of(source: Source, place: Path) -> Path | None:
    """The folder that the command for a source in git clones into; None for other sources."""
    parts = urlsplit(source.page or "")
    if source.how != "git" or parts.hostname not in _GIT_HOSTS or not parts.path.strip("/"):
        return None
    return place / parts.path.rstrip("/").rpartition("/")[2]


def _command(source: Source, folder: Path, place: Path) -> str | None:
    """A command that does it, for who has the tool."""
    page = source.page or ""
    if clone := clone_of(source, place):
        return f"git clone --depth 1 {shlex.quote(page)} {quoted(clone)} && rm -rf {quoted(clone / '.git')}"
    if source.how == "kaggle" and (found := _KAGGLE.match(page)):
        name = f"datasets download {found[1]}" if found[1] else f"competitions download -c {found[2]}"
        return f"with Kaggle's own program:  kaggle {name} -p {quoted(folder)}"
    return None


def fetch_rows(card: Card, dest: Path) -> list[dict[str, object]]:
    """What a fetch would do, a row for each source; asks no server."""
    if card.generator:
        return [{"dataset": card.name, "file": None, "how": "generate", "from": None, "bytes": None, "into": None}]
    return [
        {
            "dataset": card.name,
            "file": source.archive,
            "how": "loaded" if source.url else source.how,
            "from": source.url or source.page,
            "bytes": source.size,
            "into": str(dest / card.name / FILES / source.into),
        }
        for source in card.sources
    ]
