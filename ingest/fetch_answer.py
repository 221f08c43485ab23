"""What is asked of a server, and what the headers of its answer say: the small parts of `ingest.fetch_http`."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from usdata.errors import describe

Progress = Callable[[str, int, int], None]  # file, bytes done, bytes in all
Say = Callable[[str], None]
_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)")
_LONGEST_WAIT = 120.0  # seconds that a server may ask for; ours
_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a server, in seconds. All ours."""

    connect: float = 20.0
    read: float = 60.0  # between two pieces
    tries: int = 5  # failures in a row that brought nothing
    pause: float = 1.0  # before the second try; doubled each time
    longest: float = 30.0
    slow_bytes: int = 64 << 10  # fewer than these ...
    slow_seconds: float = 120.0  # ... in this time is a failure


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to load: under which name, from where, and what is known of its bytes."""

    name: str
    urls: tuple[str, ...]  # the first, then its mirrors
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    trusted: str | None = None  # sha256 that an earlier fetch met
    accepted: frozenset[str] = frozenset()  # sha256s that the user accepts in its place


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file that came whole and is what it should be."""

    path: Path
    url: str | None  # None: it was there already
    size: int
    sha256: str


def no_progress(name: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def no_words(line: str) -> None:
    """Words that nobody reads."""


def shown(url: str) -> str:
    """An address as it may stand in a message: printable, and without what follows `?`, which can hold a key."""
    try:
        parts = urlsplit(url)
        text = f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:  # no proper address
        text = url.partition("?")[0].rpartition("@")[2]
    return "".join(c if c.isprintable() else "?" for c in text)[:300]


def scheme_of(url: str) -> str:
    """`https`, `http`, another one; empty if it is no proper address."""
    try:
        return urlsplit(url).scheme
    except ValueError:
        return ""


def reason_of(error: Exception) -> str:
    """Why a request failed, in a few words and without its address, which can hold a key."""
    from urllib3 import exceptions

    inner = error.args[0] if error.args else error
    inner = getattr(inner, "reason", None) or inner
    if isinstance(inner, exceptions.NameResolutionError):
        return "no such host, or no network"
    if isinstance(inner, exceptions.NewConnectionError):
        return "nobody answers there"
    text = describe(inner) if isinstance(inner, Exception) else str(inner)
    return type(inner).__name__ if "://" in text or "url" in text.lower() else text[:200]


def content_range(answer: Any) -> tuple[int | None, int | None, int | None]:
    """First byte, last byte and length of the whole file, as far as Content-Range says them."""
    found = _RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    if not found:
        return None, None, None
    begin, end, total = (None if text in (None, "*") else int(text) for text in found.groups())
    return begin, end, total


def content_length(answer: Any) -> int | None:
    """Content-Length, where it counts."""
    text = answer.headers.get("content-length", "").strip()
    chunked = "chunked" in answer.headers.get("transfer-encoding", "").lower()
    return int(text) if re.fullmatch("[0-9]{1,18}", text) and not chunked else None


def validator_of(answer: Any) -> str | None:
    """What If-Range takes: a strong ETag, else the time of the last change."""
    etag = answer.headers.get("etag", "").strip()
    return etag if etag.startswith('"') else answer.headers.get("last-modified")


def asked_wait(answer: Any) -> float:
    """Seconds that Retry-After asks for, at most two minutes; 0 if it does not say, or gives a date."""
    text = answer.headers.get("retry-after", "").strip()
    return min(float(text), _LONGEST_WAIT) if re.fullmatch("[0-9]{1,9}", text) else 0.0


def measure(path: Path, md5: bool = False) -> tuple[int, str, str | None]:
    """Size, sha256 and, if asked for, md5 of a file, read once."""
    size, sha = 0, hashlib.sha256()
    other = hashlib.md5(usedforsecurity=False) if md5 else None
    with path.open("rb") as file:
        while piece := file.read(_READ):
            size += len(piece)
            sha.update(piece)
            if other:
                other.update(piece)
    return size, sha.hexdigest(), other.hexdigest() if other else None
