"""A lake behind an fsspec address such as s3://bucket/lake: small files are mirrored here, shards fetched when wanted.

A mirror is one state of the remote catalog, whole: files are listed, fetched, and listed again; only if nothing moved
meanwhile, and every catalog part is the one that its manifest names, does the folder get its final name. It is never
changed after that: another state of the lake gets another folder. What a running process uses is not removed.
"""

import fcntl
import http.client
import os
import random
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import xxhash

from usdata.errors import LakeError, describe
from usdata.files import explain_os_errors, file_xxh, locked, read_json, write_json

_PARTS = ("catalog", "manifests", "quarantine", "cohorts")
_HIDDEN = re.compile(r"(^|/)(_|\.(?!\.))")
_NAME = re.compile(r"(\w[\w.-]*/)*\w[\w.-]*\.(json|parquet)", re.ASCII)
_STAMPS = ("ETag", "etag", "md5", "generation", "mtime", "LastModified", "last_modified", "created", "updated")
_ROUNDS = 3  # times that a catalog may change while it is being mirrored
_OPENING = 3  # tries, at most, of requests on which someone waits who opens a lake
_AT_ONCE = 8  # small files fetched at a time
_PACKAGES = {"s3": "usdata[s3]", "s3a": "usdata[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


CHOOSE_CACHE = "with USDATA_CACHE=DIR in the environment"


def cache_folder() -> Path:
    """Where mirrors and fetched shards are kept: $USDATA_CACHE, else the platform's folder for caches."""
    import platformdirs

    given = os.environ.get("USDATA_CACHE")
    return Path(given).expanduser().absolute() if given else platformdirs.user_cache_path("usdata")


@dataclass(frozen=True)
class Patience:
    """How often a failed request is repeated, and how long one may last.

    The pause before try k + 1 is drawn between half and all of min(longest, first · 2^(k − 1)) seconds.
    """

    tries: int = 8
    first: float = 0.5  # s
    longest: float = 30.0  # s
    timeout: float = 120.0  # s for one request, of 16 MiB at most

    def pause(self, failures: int, stop: Event | None = None) -> None:
        """Wait after so many failures in a row.

        Raises:
            CancelledError: `stop` was set.
        """
        seconds = min(self.longest, self.first * 2 ** (failures - 1)) * random.uniform(0.5, 1)
        if (stop or Event()).wait(seconds):
            raise CancelledError


@dataclass(frozen=True)
class _Entry:
    size: int  # bytes
    stamp: str  # whatever the file system says that changes with the content


class Remote:
    """The remote side of a lake.

    Args:
        url: `protocol://…` of the lake's folder.
        options: storage options of fsspec, e.g. `{"endpoint_url": "https://…"}`; they win over fsspec's own settings.
        patience: for all requests.

    Raises:
        LakeError: an unknown protocol, or one whose package is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, patience: Patience | None = None) -> None:
        self.url = url.rstrip("/")
        self.patience = patience or Patience()
        self._options = dict(options or {})
        self._fs, base = _connect(self.url, self._options)
        self._base = base.rstrip("/")
        self._listing: dict[str, _Entry] = {}
        self._state: Path | None = None

    # --- the mirror -------------------------------------------------------------------------------------------------

    def mirror(self) -> Path:
        """A folder with the lake's small files as they are now; kept as long as this object lives.

        Raises:
            LakeError: no lake there, it can't be reached, or it keeps changing.
        """
        key = xxhash.xxh3_64(repr((self.url, sorted(self._options.items(), key=str))).encode()).hexdigest()
        home = cache_folder() / "lakes" / key
        with explain_os_errors(home, step="mirror the catalog", elsewhere=CHOOSE_CACHE):
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(home / ".lock", wait=True):  # of several ranks, one fetches and the others find
                for draft in home.glob(".draft-*"):
                    shutil.rmtree(draft)
                state = self._fetch_state(home)
                self._keep(state)
                _remove_unused(home)
        return state / self._folder_name()

    def _fetch_state(self, home: Path) -> Path:
        reason = ""
        for number in range(1, _ROUNDS + 1):
            listing = self._list()
            text = repr(sorted((name, e.size, e.stamp) for name, e in listing.items()))
            state = home / xxhash.xxh3_64(text.encode()).hexdigest()
            if state.exists() and not self._whole(state, listing):  # a power cut, or somebody's cleaning
                _remove(home, state)
            reason = "" if state.exists() else self._try_state(home, state, listing)
            if not reason:
                self._listing = listing
                return state
            if number < _ROUNDS:
                self.patience.pause(number)
        raise LakeError(
            f"The catalog of {self.url} is being changed: {reason}.",
            step="mirror the catalog",
            hint="Open the lake again when the upload has ended; if none is under way, upload the lake again.",
        )

    def _try_state(self, home: Path, state: Path, listing: dict[str, _Entry]) -> str:
        """Make the folder of one state; the answer says why it can't be one, or is empty."""
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=home))
        folder, known = draft / self._folder_name(), self._known(home)
        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda name: self._save(name, known.get((name, listing[name])), folder / name), listing))
            unchanged = self._list() == listing
        except FileNotFoundError:  # it was listed
            unchanged = False
        write_json(draft / "listing.json", {name: [e.size, e.stamp] for name, e in listing.items()})
        reason = _mismatch(folder) if unchanged else "a file was replaced while it was being read"
        if reason:
            shutil.rmtree(draft)
        else:
            draft.rename(state)
        return reason

    def _whole(self, state: Path, listing: Mapping[str, _Entry]) -> bool:
        """Whether every listed file is there with its size."""
        folder = state / self._folder_name()
        return all(_size(folder / name) == entry.size for name, entry in listing.items())

    def _known(self, home: Path) -> dict[tuple[str, _Entry], Path]:
        """The files of other states that are here: what did not change is not fetched again."""
        known = {}
        for listing in home.glob("[!.]*/listing.json"):
            for name, entry in read_json(listing).items():
                path, wanted = listing.parent / self._folder_name() / name, _Entry(*entry)
                if _size(path) == wanted.size:
                    known[name, wanted] = path
        return known

    def _save(self, name: str, known: Path | None, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if known:
            path.hardlink_to(known)
        else:
            path.write_bytes(self._patiently(name, "cat_file", self._path(name)))

    def _list(self) -> dict[str, _Entry]:
        """Size and stamp of every file that is mirrored, by its name below the lake."""
        self._fs.invalidate_cache()
        try:
            found = {"lake.json": self._patiently("lake.json", "info", self._path("lake.json"))}
        except FileNotFoundError:
            raise LakeError(
                f"No lake at {self.url} (no lake.json there).",
                hint="Look at the address; a local lake is put there with `aws s3 sync` or any other copy.",
            ) from None
        for part in _PARTS:
            try:
                files = self._patiently(part, "find", self._path(part), detail=True)
            except FileNotFoundError:
                continue
            for path, info in files.items():
                name = self._name(path)
                if not _HIDDEN.search(name):
                    found[name] = info
        return {name: _entry(info) for name, info in found.items()}

    def _name(self, path: str) -> str:
        """A path of the file system as a name below the lake, which must be a plain one: it becomes a path here."""
        name = "/" + str(path).lstrip("/")
        name = name.removeprefix("/" + self._base.lstrip("/") + "/")
        if not _HIDDEN.search(name) and not _NAME.fullmatch(name):
            raise LakeError(f"{self.url} holds {name!r}, which is no file of a lake.", hint="Remove it there.")
        return name

    def _folder_name(self) -> str:
        """The last word of the address: reports show it as the lake's name."""
        return re.sub(r"[^\w.-]", "_", self.url.rsplit("/", 1)[-1]) or "lake"

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process: hold the state's folder there too."""
        self.__dict__ |= state
        if self._state:
            self._keep(self._state)

    def _keep(self, state: Path) -> None:
        """Hold the state's folder as long as this object lives, so that no other process removes it."""
        self._state = state
        descriptor = os.open(state, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        weakref.finalize(self, os.close, descriptor)

    # --- single files -----------------------------------------------------------------------------------------------

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop - 1` of a file below the lake, fewer if it is shorter; one try.

        Raises:
            FileNotFoundError, or any of `transient_errors()`.
        """
        data: bytes = self._ask("cat_file", self._path(name), start=start, end=stop)
        return data

    def changed(self, name: str) -> bool:
        """Whether a mirrored file in a folder is known to be another one now, or gone; False if that is not known."""
        self._fs.invalidate_cache()
        try:  # listed as before: file systems tell other stamps of a file by itself
            files = self._ask("find", self._path(name.rpartition("/")[0]), detail=True)
        except FileNotFoundError:
            return True
        except transient_errors():
            return False
        return {self._name(path): _entry(info) for path, info in files.items()}.get(name) != self._listing.get(name)

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def _patiently(self, name: str, method: str, *args: Any, **options: Any) -> Any:
        tries = min(self.patience.tries, _OPENING)
        for failures in range(1, tries + 1):
            try:
                return self._ask(method, *args, **options)
            except FileNotFoundError:
                raise
            except transient_errors() as error:
                refuse_hopeless(error, f"{self.url}/{name}")
                reason = error
            if failures < tries:
                self.patience.pause(failures)
        raise LakeError(
            f"{self.url} can't be reached: {tries} tries, the last one ended with: {describe(reason)}.",
            item=name,
            step="fetch",
            hint="Check the network, the address and its settings (AWS_ENDPOINT_URL, AWS_PROFILE, …); then try again.",
        ) from reason

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        if not self._fs.async_impl:
            return getattr(self._fs, method)(*args, **options)
        from fsspec.asyn import sync

        return sync(self._fs.loop, getattr(self._fs, f"_{method}"), *args, timeout=self.patience.timeout, **options)


def _connect(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    import fsspec

    protocol = url.split(":", 1)[0]
    try:
        fs, base = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        raise LakeError(
            f"Reading {protocol}:// needs a package that is not installed ({error}).",
            hint=f"Install it:  pip install '{package}'" if package else None,
        ) from error
    except (ValueError, OSError, TypeError, AttributeError) as error:  # file systems that want other arguments
        raise LakeError(
            f"{url} can't be opened: {describe(error)}.", hint="An address begins like s3://bucket/lake."
        ) from error
    return fs, str(base)


def _entry(info: Mapping[str, Any]) -> _Entry:
    return _Entry(int(info["size"] or 0), " ".join(f"{key}={info[key]}" for key in _STAMPS if info.get(key)))


def _mismatch(folder: Path) -> str:
    """Why the files of a mirror do not belong together; empty if they do."""
    for path in sorted((folder / "manifests").glob("*.json")):
        part = folder / "catalog" / "samples" / f"{path.stem}.parquet"
        manifest = read_json(path)
        if part.exists() and isinstance(manifest, dict) and manifest.get("catalog_xxh") != file_xxh(part):
            return f"the catalog part of {path.stem} is not the one that its manifest names"
    return ""


def _remove_unused(home: Path) -> None:
    """Remove the states that no process holds; the caller has the lock of `home` and holds the newest."""
    for state in home.glob("[!.]*"):
        descriptor = os.open(state, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(home, state)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(descriptor)


def _remove(home: Path, state: Path) -> None:
    """Remove a state. Killed meanwhile, it leaves a draft, which the next opening removes, not half a state."""
    grave = home / f".draft-{state.name}"
    state.rename(grave)
    shutil.rmtree(grave)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def transient_errors() -> tuple[type[Exception], ...]:
    """What a file system raises when network or server fail; fsspec names no common class.

    The classes of other packages are looked up among what is imported: who has not imported them does not raise them.
    """
    names = [("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError")]
    names += [
        ("aiohttp", "ClientError"),
        ("requests", "RequestException"),
        ("google.api_core.exceptions", "GoogleAPIError"),
    ]
    others = tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)
    return (OSError, TimeoutError, EOFError, http.client.HTTPException, *others)


def refuse_hopeless(error: Exception, item: str) -> None:
    """Raise a LakeError for what no repetition can mend: missing credentials, no permission."""
    if isinstance(error, PermissionError) or type(error).__name__ in ("NoCredentialsError", "ProfileNotFound"):
        raise LakeError(
            f"No permission to read it ({describe(error)}).",
            item=item,
            step="fetch",
            hint="Check the credentials, e.g. AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        ) from error
