"""Shards as local files: those of a local lake where they are, those of a remote one in a cache of limited size.

A cached shard is named after the hash of its bytes, so ranks, runs and lakes share it. The locks are those of the
system (flock), on the files themselves: whoever reads a shard holds it shared, and nobody removes what is held; a
fetch holds its draft, and a draft that nobody holds is what a killed process left. Locks go with their process.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import IO, Protocol

import xxhash

from usdata.errors import ConfigError, LakeError, describe
from usdata.files import explain_os_errors, file_stamp, locked
from usdata.lake import Lake
from usdata.remote import CHOOSE_CACHE, Remote, cache_folder, refuse_hopeless, transient_errors

CACHE_BYTES = 50 * 2**30  # limit of the cache where none is given
_HASH = re.compile(r"[0-9a-f]{32}")
_PIECE = 16 * 2**20  # bytes of one request
_ROUNDS = 3  # whole fetches of a shard whose bytes are wrong
_FULL = 600.0  # s to wait for others to let go of their shards


@dataclass(frozen=True)
class Shard:
    """A shard as the manifest of its data set describes it."""

    name: str  # path below the lake, as in the column `shard`
    size: int  # bytes
    xxh: str  # xxh3_128 of the bytes
    samples: int

    @property
    def dataset(self) -> str:
        """The data set it belongs to."""
        return self.name.split("/")[1]


def shards_of(lake: Lake, names: Sequence[str]) -> list[Shard]:
    """What the lake's manifests say of these shards.

    Raises:
        LakeError: a shard that no manifest knows.
    """
    manifests = {dataset: lake.read_manifest(dataset) for dataset in {name.split("/")[1] for name in names}}
    found = []
    for name in names:
        dataset = name.split("/")[1]
        record = (manifests[dataset] or {"shards": {}})["shards"].get(Path(name).stem)
        if record is None:
            raise LakeError(
                "The catalog names a shard that the manifest of its data set does not know.",
                dataset=dataset,
                item=name,
                step="read",
                hint=f"See what is wrong:  usdata verify --lake {lake.address}",
            )
        found.append(_checked(Shard(name, record.get("size"), record.get("xxh"), record.get("samples"))))
    return found


def _checked(shard: Shard) -> Shard:
    """A shard whose hash can be a file's name, and whose numbers are numbers."""
    numbers = all(type(n) is int and n > 0 for n in (shard.size, shard.samples))
    if not numbers or not isinstance(shard.xxh, str) or not _HASH.fullmatch(shard.xxh):
        raise LakeError(
            "What the manifest says of the shard can't be: it is damaged.",
            dataset=shard.dataset,
            item=shard.name,
            step="read",
            hint="Run the ingest again where the lake comes from.",
        )
    return shard


class ShardSource(Protocol):
    """Where shards come from."""

    def lease(self, shard: Shard, stop: Event) -> AbstractContextManager[IO[bytes]]:
        """The shard's open file."""
        ...

    def fetch(self, shard: Shard, stop: Event) -> None:
        """Bring the shard here, for a later `lease`."""
        ...

    def check_room(self, needed: int) -> None:
        """Raise a ConfigError if shards of so many bytes can't be here at the same time."""
        ...


class LocalShards:
    """The shards of a local lake, in their place; one that is replaced after this was made is refused."""

    def __init__(self, lake: Lake, shards: Sequence[Shard]) -> None:
        self._root = lake.root
        self._stamps = {shard: file_stamp(lake.root / shard.name) for shard in shards}

    @contextmanager
    def lease(self, shard: Shard, stop: Event) -> Iterator[IO[bytes]]:
        """The shard's open file.

        Raises:
            LakeError: it is missing, or was replaced.
        """
        try:
            file = (self._root / shard.name).open("rb")
        except FileNotFoundError:
            raise LakeError(
                "The shard is missing.", item=shard.name, step="read", hint="What else is wrong:  usdata verify"
            ) from None
        with file:
            if file_stamp(file.fileno()) != self._stamps[shard]:
                raise LakeError(
                    "The shard was replaced after the cohort was opened: data was ingested meanwhile.",
                    item=shard.name,
                    step="read",
                    hint="Open the lake and the cohort again.",
                )
            yield file

    def fetch(self, shard: Shard, stop: Event) -> None:
        """Nothing to do: it is here."""

    def check_room(self, needed: int) -> None:
        """There is no limit."""


class ShardCache:
    """The shards of a remote lake, fetched when they are wanted, the longest unused removed when room is needed.

    Every shard is checked against length and hash when it comes, and again whenever it is leased: reading a file twice
    costs little, training on damaged images more. Safe for several threads and processes with one folder.

    Args:
        remote: where the shards are.
        limit: bytes that the cache may hold, drafts included; by default $USDATA_CACHE_BYTES or 50 GiB.
        folder: by default `shards` in `usdata.remote.cache_folder()`; on a local disk.

    Raises:
        ConfigError: a limit that is no number.
    """

    def __init__(self, remote: Remote, limit: int | None = None, folder: Path | None = None) -> None:
        self.remote, self.limit = remote, _limit() if limit is None else limit
        self.folder = folder or cache_folder() / "shards"
        with explain_os_errors(self.folder, step="make the cache", elsewhere=CHOOSE_CACHE):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def check_room(self, needed: int) -> None:
        """Raise a ConfigError if shards of so many bytes are more than the limit."""
        if needed > self.limit:
            raise ConfigError(
                f"The cache may hold {self.limit:,} bytes, but the shards in use at the same time have {needed:,}.",
                hint="Raise cache_bytes (or USDATA_CACHE_BYTES), or lower window.",
            )

    @contextmanager
    def lease(self, shard: Shard, stop: Event) -> Iterator[IO[bytes]]:
        """The shard's open file, checked, and kept while the block runs.

        Raises:
            LakeError: it can't be had, or the lake changed.
        """
        with explain_os_errors(self.folder, step="fetch", elsewhere=CHOOSE_CACHE):
            held = self._hold(shard)
            for _ in range(_ROUNDS):
                if held:
                    break
                self.fetch(shard, stop)
                held = self._hold(shard)
        if held is None:
            raise LakeError(
                f"{self._path(shard)} does not keep what is written to it: {_ROUNDS} times.",
                item=shard.name,
                step="fetch",
                hint="Check that disk, or put the cache elsewhere with USDATA_CACHE.",
            )
        with held:
            yield held

    def fetch(self, shard: Shard, stop: Event) -> None:
        """Bring a shard here unless it is; another thread or process that is fetching it is waited for.

        Raises:
            LakeError: it can't be had, or the lake changed.
            CancelledError: `stop` was set.
        """
        path, draft = self._path(shard), self.folder / f".{shard.xxh}.tmp"
        with explain_os_errors(self.folder, step="fetch", elsewhere=CHOOSE_CACHE):
            if path.exists():
                return
            with _only(draft, stop) as file:
                if path.exists():
                    return
                self._make_room(shard, file, stop)
                self._download(shard, file, stop)
                draft.replace(path)

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.xxh}.tar"

    def _hold(self, shard: Shard) -> IO[bytes] | None:
        """The open and locked file of a shard; None if it is not here, or was not whole and so is removed."""
        path = self._path(shard)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if not _same(file, path):  # it was removed in between
            file.close()
            return None
        if os.fstat(file.fileno()).st_size != shard.size or _xxh(file) != shard.xxh:
            if _same(file, path):
                path.unlink()
            file.close()
            return None
        os.utime(file.fileno())  # used now: the last to be removed
        return file

    # --- room -------------------------------------------------------------------------------------------------------

    def _make_room(self, shard: Shard, draft: IO[bytes], stop: Event) -> None:
        """Give the draft its full length, so that others count it, once the cache has room for it."""
        self.check_room(shard.size)
        end = time.monotonic() + _FULL
        while True:
            with locked(self.folder / ".lock", wait=True):
                if self._free(shard.size):
                    draft.truncate(shard.size)
                    return
            if time.monotonic() > end:
                raise LakeError(
                    f"The cache {self.folder} is full of shards in use: no room came free in {_FULL:.0f} s.",
                    item=shard.name,
                    step="fetch",
                    hint="Raise cache_bytes (or USDATA_CACHE_BYTES): all processes of a machine share this folder.",
                )
            if stop.wait(0.05):
                raise CancelledError

    def _free(self, needed: int) -> bool:
        """Remove the longest unused shards until there is room; whether there is. The caller has the cache's lock."""
        for draft in self.folder.glob(".*.tmp"):
            _remove_free(draft)
        files = [(p, stat) for p in self.folder.iterdir() if (stat := _stat(p))]
        excess = sum(stat.st_size for _, stat in files) + needed - self.limit
        shards = [(stat.st_mtime_ns, p, stat.st_size) for p, stat in files if p.suffix == ".tar"]
        for _, path, size in sorted(shards):
            if excess <= 0:
                break
            if _remove_free(path):
                excess -= size
        return excess <= 0

    # --- fetching ---------------------------------------------------------------------------------------------------

    def _download(self, shard: Shard, file: IO[bytes], stop: Event) -> None:
        for number in range(1, _ROUNDS + 1):
            file.seek(0)
            digest = xxhash.xxh3_128()
            for start in range(0, shard.size, _PIECE):
                piece = self._piece(shard, start, min(start + _PIECE, shard.size), stop)
                file.write(piece)
                digest.update(piece)
            if digest.hexdigest() == shard.xxh:
                file.flush()
                return
            self._check_unchanged(shard)
            if number < _ROUNDS:
                self.remote.patience.pause(number, stop)
        raise LakeError(
            f"{self.remote.url}: the shard's bytes are not those that the manifest names ({_ROUNDS} fetches).",
            dataset=shard.dataset,
            item=shard.name,
            step="fetch",
            hint="The copy there is damaged: upload the shard again from the lake it came from.",
        )

    def _piece(self, shard: Shard, start: int, stop_at: int, stop: Event) -> bytes:
        """A stretch of a shard, asked for again and again with growing pauses."""
        patience = self.remote.patience
        for failures in range(1, patience.tries + 1):
            if stop.is_set():
                raise CancelledError
            try:
                data = self.remote.read(shard.name, start, stop_at)
                if len(data) == stop_at - start:
                    return data
                self._check_unchanged(shard)
                reason = f"{len(data):,} bytes came instead of {stop_at - start:,}"
            except FileNotFoundError as error:
                self._check_unchanged(shard)
                raise LakeError(
                    f"{self.remote.url} lacks a shard that its catalog names.",
                    dataset=shard.dataset,
                    item=shard.name,
                    step="fetch",
                    hint="Upload the lake again, shards before catalog, and open it again.",
                ) from error
            except transient_errors() as error:
                refuse_hopeless(error, shard.name)
                reason = describe(error)
            if failures < patience.tries:
                patience.pause(failures, stop)
        self._check_unchanged(shard)
        raise LakeError(
            f"{self.remote.url}: the shard can't be fetched: {patience.tries} tries, the last ended with: {reason}.",
            dataset=shard.dataset,
            item=shard.name,
            step="fetch",
            hint="Check the network and the server, then run the same command again (training: with --resume).",
        )

    def _check_unchanged(self, shard: Shard) -> None:
        """Raise a LakeError if the data set was replaced: what is asked for does not exist any more."""
        if self.remote.changed(f"manifests/{shard.dataset}.json"):
            raise LakeError(
                f"{self.remote.url} changed after it was opened: the data set was replaced or removed.",
                dataset=shard.dataset,
                item=shard.name,
                step="fetch",
                hint="Open the lake and the cohort again.",
            )


def _limit() -> int:
    given = os.environ.get("USDATA_CACHE_BYTES", str(CACHE_BYTES))
    if not given.isdecimal():
        raise ConfigError(f"USDATA_CACHE_BYTES is {given!r}; it must be a number of bytes, e.g. {CACHE_BYTES}.")
    return int(given)


@contextmanager
def _only(draft: Path, stop: Event) -> Iterator[IO[bytes]]:
    """The open and locked draft; what is left of it at the end is removed. Others wait here until it is gone."""
    while True:
        file = os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if stop.wait(0.05):
                raise CancelledError from None
            continue
        if _same(file, draft):
            break
        file.close()
    with file:
        try:
            yield file
        finally:
            if _same(file, draft):
                draft.unlink()


def _same(file: IO[bytes], path: Path) -> bool:
    """Whether `path` still leads to the open file."""
    stat = _stat(path)
    return stat is not None and os.path.samestat(stat, os.fstat(file.fileno()))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _remove_free(path: Path) -> bool:
    """Remove a file unless someone holds it; whether it is gone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return True
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if _same(file, path):
            path.unlink()
        return True


def _xxh(file: IO[bytes]) -> str:
    """xxh3_128 of an open file, which is at its beginning afterwards."""
    digest = xxhash.xxh3_128()
    while piece := file.read(1 << 20):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest()
