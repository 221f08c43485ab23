"""One file over HTTP, whatever the network does: resumed, repeated, checked, from the first address that has it.

pooch is used for what it knows best, the files behind a DOI (`ingest.fetch_doi`), not for the transfer (ours): it
downloads to a new random name each time, so that nothing is resumed after a kill, undoes Content-Encoding on the way,
compares no length, and knows neither mirrors nor trust on first use.

NAME.part holds what has come, NAME.part.json from where; both stay for the next run. NAME is there when all is.
"""

import errno
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin

from ingest.fetch_answer import (
    Arrived,
    Patience,
    Progress,
    Say,
    Wanted,
    asked_wait,
    content_length,
    content_range,
    measure,
    no_progress,
    no_words,
    reason_of,
    scheme_of,
    shown,
    validator_of,
)
from ingest.unpack_kinds import HEAD, kind_of, read_head, title_of
from usdata import __version__
from usdata.errors import DataError, describe
from usdata.files import write_json

MAX_REDIRECTS = 10
SPARE = 128 << 20  # bytes of disk that stay free; ours
_PIECE = 1 << 18
_NEWS = 1 << 20  # bytes that make a failed attempt a useful one; ours
_AGAIN = {202, 408, 425, 429}  # and all from 500


class _Again(Exception):
    """A failure that may pass; `wait`: seconds that the server asked for."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class _Elsewhere(Exception):
    """This address will not do."""


class _Changed(_Elsewhere):
    """Other bytes than an earlier fetch met."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"it has other bytes than the first time (sha256 {sha256})")
        self.sha256 = sha256


@dataclass(slots=True)
class Download:
    """Loads one file into `folder`. `say` hears of each failure as it happens."""

    wanted: Wanted
    folder: Path
    patience: Patience = field(default_factory=Patience)
    progress: Progress = no_progress
    say: Say = no_words
    failures: list[str] = field(default_factory=list)
    newest: str | None = None  # sha256 of bytes that were refused because they differ from the first time's
    _session: Any = None
    _resumed: bool = False  # the part was put together from several answers

    @property
    def target(self) -> Path:
        return self.folder / self.wanted.name

    @property
    def part(self) -> Path:
        return self.folder / f"{self.wanted.name}.part"

    @property
    def note(self) -> Path:
        return self.folder / f"{self.wanted.name}.part.json"

    @property
    def changed(self) -> Path:
        """Where bytes wait that differ from the first time's."""
        return self.folder / f"{self.wanted.name}.changed"

    def run(self, anew: bool = False) -> Arrived:
        """The file, in place.

        Args:
            anew: load it even if it is there.

        Raises:
            DataError: step fetch; reasons not_loaded (no address has it; the message says what each of them did),
                changed_bytes, bad_checksum (of a file that lies there), no_space.
        """
        there = self._accepted_now() or (None if anew else self._what_is_there())
        if there:
            return there
        import requests

        with requests.Session() as self._session:
            for url in self.wanted.urls:
                try:
                    return self._load(url)
                except _Elsewhere as error:
                    self.newest = error.sha256 if isinstance(error, _Changed) else self.newest
                    self.failures.append(f"{shown(url)}: {error}")
                    self.say(self.failures[-1])
        if self.newest:
            raise self._refuse_changed(self.newest)
        raise DataError(
            "not_loaded",
            f"{self.wanted.name} could not be loaded: {'; '.join(self.failures)}.",
            step="fetch",
            hint="Run the same command again later: it goes on from what has come so far.",
        )

    def _accepted_now(self) -> Arrived | None:
        """Bytes that were refused before and are accepted now."""
        if not (self.wanted.accepted and self.changed.is_file()):
            return None
        size, sha256, _ = measure(self.changed)
        return self._take(self.changed, None, size, sha256) if sha256 in self.wanted.accepted else None

    def _what_is_there(self) -> Arrived | None:
        """The file, if it came whole before."""
        if not self.target.is_file():
            return None
        size, sha256, md5 = measure(self.target, self.wanted.md5 is not None)
        if problem := self._problem(size, sha256, md5):
            raise DataError(
                "bad_checksum",
                f"{self.target.name}: {problem}.",
                step="fetch",
                hint=f"rm {self.target}      then run the same command again",
            )
        return Arrived(self.target, None, size, sha256)

    def _take(self, path: Path, url: str | None, size: int, sha256: str) -> Arrived:
        path.replace(self.target)
        for left in (self.part, self.note, self.changed):
            left.unlink(missing_ok=True)
        return Arrived(self.target, url, size, sha256)

    def _refuse_changed(self, sha256: str) -> DataError:
        return DataError(
            "changed_bytes",
            f"{self.wanted.name} has other bytes than when it was first fetched: sha256 {sha256} instead of "
            f"{self.wanted.trusted}. Its publisher may have replaced it; or somebody else did.",
            step="fetch",
            hint=f"When you have found out that the new file is right, add:  --accept-bytes {sha256}",
        )

    def _problem(self, size: int, sha256: str, md5: str | None) -> str | None:
        """How a whole file differs from what the card says."""
        want = self.wanted
        for name, found, expected in (
            ("size", size, want.size),
            ("sha256", sha256, want.sha256),
            ("md5", md5, want.md5),
        ):
            if expected is not None and found != expected:
                return f"its {name} is {found}; the card says {expected}"
        return None

    # --- one address ------------------------------------------------------------------------------------------------

    def _load(self, url: str) -> Arrived:
        """The file from one address, however many attempts it takes."""
        if scheme_of(url) not in ("http", "https"):
            raise _Elsewhere("only http and https addresses are loaded")
        failed, best = 0, self._so_far()
        while True:
            try:
                self._attempt(url)
                return self._check(url)
            except _Again as error:
                if self._so_far() - best >= _NEWS:
                    failed, best = 0, self._so_far()
                failed += 1
                if failed >= self.patience.tries:
                    raise _Elsewhere(f"{error}, {failed} times in a row") from error
                pause = max(error.wait, min(self.patience.longest, self.patience.pause * 2 ** (failed - 1)))
                self.say(f"{shown(url)}: {error}; again in {pause:g} s")
                time.sleep(pause)

    def _so_far(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self._resumed = False

    def _check(self, url: str) -> Arrived:
        """A part that is whole, against all that is known of the file."""
        size, sha256, md5 = measure(self.part, self.wanted.md5 is not None)
        want = self.wanted
        problem = self._problem(size, sha256, md5) or (None if size or want.size == 0 else "it sends an empty file")
        trusted = None if want.sha256 or want.md5 else want.trusted
        other = trusted is not None and sha256 != trusted and sha256 not in want.accepted
        if (problem or other) and self._resumed:  # pieces of two files, perhaps
            self._drop()
            raise _Again("the pieces do not add up to the right file; it begins anew")
        if problem:
            self._drop()
            raise _Elsewhere(problem)
        if other:
            self.part.replace(self.changed)
            self._drop()
            raise _Changed(sha256)
        return self._take(self.part, url, size, sha256)

    def _attempt(self, url: str) -> None:
        """One request; what comes is added to the part. Returns when the part is whole as far as the server says."""
        note = self._read_note()
        offset, validator = self._resume_point(url, note)
        self._resumed = offset > 0
        if offset and offset == note.get("total"):
            return  # all came, and then the run was killed
        headers = {"User-Agent": f"usdata/{__version__}", "Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": validator} if validator else {})
        with self._get(url, headers) as answer:
            _refuse_status(answer)
            if answer.status_code in (206, 416) and not self._fits(answer, offset, note):
                self._drop()
                raise _Again("what it sends does not fit to what is here; it begins anew")
            if answer.status_code == 416:
                return
            if answer.status_code == 200 and offset:
                self.say(f"{shown(url)}: begins anew (the file changed, or the server can't go on in the middle)")
                offset, self._resumed = 0, False
            self._receive(url, answer, offset)

    def _read_note(self) -> dict[str, Any]:
        import json

        try:
            note = json.loads(self.note.read_bytes())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _resume_point(self, url: str, note: dict[str, Any]) -> tuple[int, str | None]:
        """From which byte on to ask, and under which condition. 0: from the beginning.

        A part goes on at the same address if the server can tell that the file is still the same one; and anywhere if
        its checksum is known, which in the end tells.
        """
        validator = note.get("validator") if note.get("url") == url else None
        known = self.wanted.sha256 or self.wanted.md5 or self.wanted.trusted
        if not note or note.get("packed") or not (validator or known):
            return 0, None
        return self._so_far(), validator

    def _fits(self, answer: Any, offset: int, note: dict[str, Any]) -> bool:
        """Whether the rest of a file (206), or that there is no rest (416), continues the part."""
        begin, _, total = content_range(answer)
        if answer.status_code == 416:
            return bool(offset) and total == offset
        same = validator_of(answer) in (None, note.get("validator")) or not note.get("validator")
        return begin == offset and note.get("total") in (None, total) and (same or bool(self.wanted.sha256))

    @contextmanager
    def _get(self, url: str, headers: dict[str, str]) -> Iterator[Any]:
        """The answer to a GET after its redirects, each of which must lead to another http(s) address."""
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._ask(url, headers)
            with answer:
                if not answer.is_redirect:
                    yield answer
                    return
                url = self._redirected(url, answer.headers["location"])  # as bytes of latin-1, where it is not ASCII
        raise _Elsewhere(f"it leads on and on (more than {MAX_REDIRECTS} redirects)")

    def _ask(self, url: str, headers: dict[str, str]) -> Any:
        from requests import exceptions

        patience = (self.patience.connect, self.patience.read)
        try:
            return self._session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=patience)
        except exceptions.SSLError as error:
            raise _Elsewhere(f"its certificate is not accepted ({reason_of(error)})") from error
        except ValueError as error:  # of requests, urllib3 and Python: a host, port or path that can't be
            raise _Elsewhere(f"it is no proper address ({describe(error)})") from error
        except exceptions.Timeout as error:
            raise _Again("no answer in time") from error
        except exceptions.RequestException as error:
            raise _Again(f"no connection ({reason_of(error)})") from error

    def _redirected(self, url: str, location: str) -> str:
        try:
            to = urljoin(url, location)
        except ValueError as error:
            raise _Elsewhere(f"it leads to no proper address ({describe(error)})") from error
        scheme = scheme_of(to)
        if scheme not in ("http", "https"):
            raise _Elsewhere(f"it leads to {shown(to)}: only http and https addresses are loaded")
        if scheme_of(url) == "https" and scheme == "http" and not self.wanted.sha256:
            raise _Elsewhere(f"it leads from https to {shown(to)}, where anybody could change the file on its way")
        return to

    # --- its bytes --------------------------------------------------------------------------------------------------

    def _receive(self, url: str, answer: Any, offset: int) -> None:
        packed = self._is_packed(answer)
        total = content_range(answer)[2] if answer.status_code == 206 else content_length(answer)
        total = None if packed else total
        if total is not None and self.wanted.size not in (None, total):
            raise _Elsewhere(f"it has {total} bytes; the card says {self.wanted.size}")
        room = self._room(offset, total or self.wanted.size)
        if not offset:
            self.part.unlink(missing_ok=True)  # never a note beside a part of another file
            write_json(self.note, {"url": url, "total": total, "validator": validator_of(answer), "packed": packed})
        limit = total or self.wanted.size or room
        known = self.wanted.sha256 or self.wanted.md5 or self.wanted.trusted or self.wanted.size
        if total is None and not packed and not known and "chunked" not in answer.headers.get("transfer-encoding", ""):
            self.say(f"{shown(url)}: does not say how long the file is, so if it is cut nothing will tell: look at it")
        with self.part.open("ab" if offset else "wb") as file:
            done = self._write(file, answer, offset, limit, packed, total or self.wanted.size)
        if done != (total if total is not None else done):
            raise _Again(f"cut after {done} of {total} bytes")

    def _is_packed(self, answer: Any) -> bool:
        """Whether the server compressed the file for the way, though it was asked not to.

        Many call a .gz file `Content-Encoding: gzip` that they send as it is.
        """
        encoding = answer.headers.get("content-encoding", "").strip().lower()
        if encoding in ("", "identity") or self.wanted.name.lower().endswith((".gz", ".tgz")):
            return False
        if encoding not in ("gzip", "x-gzip"):
            raise _Elsewhere(f"it is sent as {encoding!r}, which was not asked for")
        return True

    def _room(self, offset: int, total: int | None) -> int:
        """Bytes that may come."""
        free = shutil.disk_usage(self.folder).free - SPARE
        if (total or offset) - offset > free:
            raise DataError(
                "no_space",
                f"{self.wanted.name} needs {(total or 0) - offset} bytes more in {self.folder}, where {max(free, 0)} "
                "may be used.",
                step="fetch",
                hint="Free some space, or choose another place with --to DIR; then run the same command again.",
            )
        return offset + free

    def _write(self, file: IO[bytes], answer: Any, offset: int, limit: int, packed: bool, total: int | None) -> int:
        """What the answer brings, to the part; the part's size then."""
        unpacker = zlib.decompressobj(47) if packed else None
        done, looked = offset, offset > 0
        for piece in self._watched(answer):
            data = unpacker.decompress(piece, max(1, limit + 1 - done)) if unpacker else piece
            done += len(data)
            if done > limit:
                self._drop()
                raise _Elsewhere(f"it sends more than {limit} bytes")
            self._put(file, data)
            self.progress(self.wanted.name, done, max(total or 0, done))
            if not looked and done >= HEAD:
                file.flush()
                looked = self._refuse_web_page()
        file.flush()
        if unpacker and not unpacker.eof:
            raise _Again(f"cut after {done} bytes")
        if not looked:
            self._refuse_web_page()
        return done

    def _put(self, file: IO[bytes], data: bytes) -> None:
        try:
            file.write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DataError(
                "no_space",
                f"No space left for {self.wanted.name} in {self.folder}.",
                step="fetch",
                hint="Free some space and run the same command again: it goes on where it stopped.",
            ) from error

    def _watched(self, answer: Any) -> Iterator[bytes]:
        """The pieces of an answer, as they come over the wire; a server that all but stops is a failure."""
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        since, came, whole = time.monotonic(), 0, 0
        while True:
            try:
                piece = answer.raw.read1(_PIECE, decode_content=False)
            except ReadTimeoutError as error:
                raise _Again(f"nothing came for {self.patience.read:g} s") from error
            except (HTTPError, HTTPException, OSError) as error:
                raise _Again(f"the connection broke after {whole} bytes") from error
            if not piece:
                return
            yield piece
            came, whole = came + len(piece), whole + len(piece)
            if time.monotonic() - since > self.patience.slow_seconds:
                if came < self.patience.slow_bytes:
                    raise _Again(f"only {came} bytes came in {self.patience.slow_seconds:g} s")
                since, came = time.monotonic(), 0

    def _refuse_web_page(self) -> bool:
        """True; unless a page came where a file should, as from Google Drive: a login, a warning, a quota."""
        head = read_head(self.part)
        if kind_of(head) != "web" or self.wanted.name.lower().endswith((".html", ".htm", ".xml", ".svg")):
            return True
        self._drop()
        title = title_of(head)
        raise _Elsewhere(
            f"it sends a web page{f' ({title!r})' if title else ''} instead of the file: open it in a browser"
        )


def _refuse_status(answer: Any) -> None:
    status = answer.status_code
    if status in _AGAIN or status >= 500:
        raise _Again(f"the server answers {status}", asked_wait(answer))
    if status in (401, 403):
        raise _Elsewhere(f"the server wants a login, or lets nobody in ({status})")
    if status in (404, 410):
        raise _Elsewhere(f"there is no such file ({status})")
    if status not in (200, 206, 416):
        raise _Elsewhere(f"the server answers {status}")
