"""Run `usdata ingest private` as a user would, in a world of its own, and watch what it does to that world.

Home, temporary folder, private area, lake and key lie in one folder of the test. While the command runs its processes
are looked at: their arguments, their environment, their memory. What was printed, and all files, can then be searched.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fakes.deid_search import Artifact, artifacts

from ingest.deid.identity import Identity
from ingest.deid.key import load_key

SITE = "site_a"
_KEY_LINE = re.compile(rb"[0-9a-f]{64}")


@dataclass(slots=True)
class World:
    """The folders of a test. `source` holds what is ingested."""

    root: Path
    key: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in ("source", "home", "tmp", "area"):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.key = self.root / "site.key"
        if not self.key.exists():
            write_key(self.key, 1)

    @property
    def source(self) -> Path:
        """The patients' files."""
        return self.root / "source"

    @property
    def lake(self) -> Path:
        """What is shared."""
        return self.root / "lake"

    @property
    def area(self) -> Path:
        """The private area."""
        return self.root / "area"

    def identity(self) -> Identity:
        """As the run has it, so that the test knows which row is whose."""
        return Identity(load_key(self.key), SITE)

    def key_bytes(self) -> bytes:
        """The 32 secret bytes."""
        found = _KEY_LINE.search(self.key.read_bytes())
        assert found, "the key file has another form now"
        return bytes.fromhex(found[0].decode())

    def written(self) -> Iterator[Artifact]:
        """Every byte that the runs left anywhere but in the source and the key file."""
        for name in ("lake", "area", "home", "tmp"):
            if (self.root / name).exists():
                yield from artifacts(self.root / name, name)


def write_key(path: Path, seed: int) -> None:
    """A key file of the project's form, the same for the same seed."""
    import hashlib

    path.touch(0o600)
    path.chmod(0o600)
    path.write_text(f"usdata-deid-key-1 {hashlib.sha256(b'key %d' % seed).hexdigest()}\n")


@dataclass(slots=True)
class Watch:
    """What was seen of a command's processes."""

    told: set[bytes] = field(default_factory=set)  # arguments and environments
    peak: int = 0  # bytes: the largest resident memory of one process
    longest: float = 0.0  # seconds

    def artifacts(self) -> Iterator[Artifact]:
        """Arguments and environments, to be searched."""
        yield Artifact("process list", b"\n".join(sorted(self.told)))


def watch(pid: int, seen: Watch, ended: threading.Event) -> None:
    """Look at a process and all its children until `ended`."""
    while not ended.is_set():
        for process in _family(pid):
            folder = Path(f"/proc/{process}")
            for name in ("cmdline", "environ"):
                try:
                    seen.told.add((folder / name).read_bytes())
                except OSError:
                    continue
            try:
                status = (folder / "status").read_text()
            except OSError:
                continue
            if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                seen.peak = max(seen.peak, int(found[1]) * 1024)
        ended.wait(0.05)


def _family(pid: int) -> list[int]:
    """A process and its descendants (Linux)."""
    found, at = [pid], 0
    while at < len(found):
        for children in Path(f"/proc/{found[at]}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
        at += 1
    return found


@dataclass(frozen=True, slots=True)
class Run:
    """One command that ended."""

    world: World
    code: int
    stdout: bytes
    stderr: bytes
    seen: Watch
    seconds: float

    @property
    def record(self) -> dict[str, Any]:
        """What `--json` said."""
        lines = self.stdout.strip().splitlines()
        return json.loads(lines[-1]) if lines else {}

    def artifacts(self) -> Iterator[Artifact]:
        """All that came out: printed, listed among the processes, written."""
        yield Artifact("stdout", self.stdout, text=True)
        yield Artifact("stderr", self.stderr, text=True)
        yield from self.seen.artifacts()
        yield from self.world.written()


def ingest(
    world: World,
    *more: str,
    source: Path | None = None,
    workers: int = 1,
    as_json: bool = True,
    kill_after: float | None = None,
    env: dict[str, str] | None = None,
) -> Run:
    """`usdata ingest private` on a world's source.

    Args:
        more: further arguments.
        source: instead of the world's source folder.
        kill_after: seconds after which the whole process group is killed.
        env: further variables.
    """
    words = ["ingest", "private", "--from", str(source or world.source), "--name", SITE, "--key-file", str(world.key)]
    words += ["--lake", str(world.lake), "--area", str(world.area), "--workers", str(workers), *more]
    return command(world, [*words, "--json"] if as_json else words, kill_after=kill_after, env=env)


def command(
    world: World, words: Sequence[str], kill_after: float | None = None, env: dict[str, str] | None = None
) -> Run:
    """Any verb of `usdata`, watched."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "PREFECT_", "USDATA_"))}
    home, tmp = world.root / "home", world.root / "tmp"
    clean |= {"HOME": str(home), "TMPDIR": str(tmp), "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1", **(env or {})}
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "usdata.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean,
        cwd=home,
        start_new_session=True,
    )
    seen, ended = Watch(), threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, seen, ended))
    watcher.start()
    try:
        stdout, stderr = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
    finally:
        ended.set()
        watcher.join()
    return Run(world, process.returncode, stdout, stderr, seen, time.monotonic() - start)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one source file."""

    state: str  # accepted, or the reason why not
    rows: tuple[dict[str, Any], ...] = ()


def outcomes(world: World) -> dict[str, Outcome]:
    """Relative path of every source file -> its outcome, read back from the lake; `lost` for none at all.

    A file's keyed id is computed with the run's key, as only its owner can.
    """
    identity = world.identity()
    kept: dict[str, list[dict[str, Any]]] = {}
    part = world.lake / "catalog" / "samples" / f"{SITE}.parquet"
    for row in pq.read_table(part).to_pylist() if part.exists() else []:
        kept.setdefault(row["source_id"], []).append(row)
    refused = world.lake / "quarantine" / f"{SITE}.parquet"
    reasons = {r["source_id"]: r["reason"] for r in pq.read_table(refused).to_pylist()} if refused.exists() else {}
    found = {}
    for path in sorted(world.source.rglob("*")):
        if path.is_file() and not path.is_symlink():
            relative = str(path.relative_to(world.source))
            key = identity.source(relative)
            state = "accepted" if key in kept else reasons.get(key, "lost")
            found[relative] = Outcome(state, tuple(kept.get(key, ())))
    return found


def stored_png(world: World, row: dict[str, Any]) -> bytes:
    """The PNG of a catalog row, from its shard."""
    with (world.lake / row["shard"]).open("rb") as file:
        file.seek(row["offset"])
        return file.read(row["size"])
