"""Ingests that are killed: in children forked from a process that has imported everything and started nothing.

A child tells through shared memory how far it is, so that a kill can be aimed: at building, at the commit's renames, at
the views. What dies is the child, or the child with its workers; then `seen` says what a reader finds.
"""

import mmap
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import duckdb
import numpy as np
import xxhash
from fakes.folders import tree_digest

from ingest import commit, run
from ingest.card import load_card
from usdata import cli
from usdata.errors import LakeError
from usdata.lake import Lake

STAGES = ("listing", "building", "renames", "views", "clearing", "ended")
CHANGES = [
    *((Path, name) for name in ("replace", "rename", "unlink", "mkdir", "rmdir")),
    *((os, name) for name in ("fsync", "unlink", "rmdir")),  # os: what shutil.rmtree and our own fsyncs use
]


# --- children -------------------------------------------------------------------------------------------------------


def warm_up() -> None:
    """Import what the children would import one by one; pyarrow imports pandas when it first meets a list."""
    for name in ("pandas", "usdata.cohort", "ingest.readers.video"):
        __import__(name)


def fork(work: Callable[..., Any], *args: Any, log: Path | None = None) -> int:
    """Run `work(*args)` in a child, the head of a process group of its own; its process id.

    Args:
        log: where the child's output and messages go.
    """
    pid = os.fork()
    if pid:
        os.setpgid(pid, pid)  # here too: a kill of the group may come before the child has run at all
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        if log is not None:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
        work(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def living(group: int) -> list[int]:
    """Processes of a group, but for those that are dead and not yet collected."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, owner = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if int(owner) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def done_in_child(work: Callable[..., Any], *args: Any) -> None:
    """Run `work(*args)` in a child to its end, which must be good."""
    assert ended(fork(work, *args)) == 0, "a child failed; its traceback is above"


def answer_of_child(work: Callable[..., Any], *args: Any) -> Any:
    """What `work(*args)` returns, computed in a child, so that this process starts no threads."""
    reader, writer = os.pipe()

    def tell() -> None:
        with os.fdopen(writer, "wb") as file:
            pickle.dump(work(*args), file)

    pid = fork(tell)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        raw = file.read()
    assert ended(pid) == 0, "a child failed; its traceback is above"
    return pickle.loads(raw)


def in_fresh_process(file: str, call: str, *paths: Path, timeout: float = 500) -> str:
    """Standard output of `call`, a function of the module `file`, in a new process, which may fork."""
    code = (
        f"import sys, importlib.util; sys.path[:0] = {[str(Path(__file__).parents[1])]!r}; from pathlib import Path; "
        f"spec = importlib.util.spec_from_file_location('fresh', {file!r}); t = importlib.util.module_from_spec(spec); "
        f"sys.modules['fresh'] = t; spec.loader.exec_module(t); from fakes import kills; kills.warm_up(); "
        f"print(t.{call}(*map(Path, {[str(path) for path in paths]!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


# --- an ingest that tells how far it is -----------------------------------------------------------------------------


class ForkedWorkers(ProcessPoolExecutor):
    """Workers forked from a child that has no threads yet: no second of imports, as `spawn` takes for each.

    Like spawned ones they have no part in the locks of their parent, and end with it.
    """

    def __init__(self, number: int) -> None:
        os.register_at_fork(after_in_child=_let_go_of_locks)
        super().__init__(number, multiprocessing.get_context("fork"), initializer=_end_with, initargs=(os.getpid(),))


def _let_go_of_locks() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number in [int(link.name) for link in Path("/proc/self/fd").iterdir()]:
        link = Path(f"/proc/self/fd/{number}")
        if link.is_symlink() and str(link.readlink()).endswith(".lock"):  # the listing's own is closed already
            os.dup2(nothing, number)


def _end_with(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.002)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


class Progress:
    """Shared memory: the stage that a child has reached, and when (monotonic clock) each one began."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * (1 + len(STAGES)))
        self.reach(0)

    def reach(self, stage: int) -> None:
        """Called by the child."""
        struct.pack_into("d", self._memory, 8 * (1 + stage), time.monotonic())
        struct.pack_into("q", self._memory, 0, stage)

    @property
    def stage(self) -> int:
        return struct.unpack_from("q", self._memory, 0)[0]

    def began(self, stage: int) -> float:
        return struct.unpack_from("d", self._memory, 8 * (1 + stage))[0]

    def announce(self, owner: Any, name: str, stage: int) -> None:
        """Let a function of a module announce a stage before it does anything."""
        real = getattr(owner, name)

        def announced(*args: Any, **kwargs: Any) -> Any:
            self.reach(stage)
            return real(*args, **kwargs)

        setattr(owner, name, announced)


def ingest(folder: Path, lake: Path, workers: int = 1, card: Path | None = None) -> run.IngestReport:
    """Ingest a folder, by the card mine.yaml beside it if none is given; several workers are forked."""
    run.process_pool = ForkedWorkers  # type: ignore[assignment]
    chosen = load_card(card or folder.parent / "mine.yaml")
    return run.ingest(chosen, folder, Lake.create(lake), workers=workers)


def command_line(folder: Path, lake: Path) -> None:
    """`usdata ingest --card .../mine.yaml --from ... --workers 2`, but for the time it takes to start."""
    run.process_pool = ForkedWorkers  # type: ignore[assignment]
    words = [
        "ingest",
        "--card",
        folder.parent / "mine.yaml",
        "--from",
        folder,
        "--lake",
        lake,
        "--workers",
        2,
        "--json",
    ]
    sys.argv = ["usdata", *map(str, words)]
    try:
        cli.main()
    except SystemExit as end:
        os._exit(int(end.code or 0))


def ingest_telling(folder: Path, lake: Path, workers: int, progress: Progress, card: Path | None = None) -> None:
    """`ingest`, with the stages announced."""
    for owner, name, stage in [
        (run, "build_all", 1),
        (commit, "_take_away", 2),
        (commit, "write_duckdb", 3),
        (commit, "_drop", 4),
    ]:
        progress.announce(owner, name, stage)
    ingest(folder, lake, workers, card)
    progress.reach(5)


def rebuild(lake: Path) -> None:
    """`usdata catalog --rebuild`."""
    from usdata.verify import rebuild_catalog

    list(rebuild_catalog(Lake(lake)))


def keep_states(work: Callable[..., Any], *args: Any, lake: Path, into: Path) -> None:
    """Run `work(*args)` in a child and copy the lake before each of its changes of the file system that left a trace.

    A copy is what a process leaves that is killed right then: no open file has bytes that are not written.
    """
    into.mkdir()

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            if lake.exists() and (now := traces(lake)) != last:
                last.clear()
                last.update(now)
                shutil.copytree(lake, into / f"state{sum(1 for _ in into.iterdir()):03d}")
            return real(*args, **kwargs)

        return change

    def watched() -> None:
        for owner, name in CHANGES:
            setattr(owner, name, before(getattr(owner, name)))
        work(*args)

    last: dict[str, tuple[int, int]] = {}
    done_in_child(watched)


def traces(lake: Path) -> dict[str, tuple[int, int]]:
    """Name, size and time of change of all files below a lake; folders have none."""
    found = {}
    for path in lake.rglob("*"):
        stat = path.stat()
        found[str(path)] = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
    return found


def kill_at(pid: int, progress: Progress, stage: int, delay: float, whole_group: bool) -> str | None:
    """SIGKILL a child `delay` seconds after it has reached a stage; the stage it died in, or None if it had ended."""
    while progress.stage < stage:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.0002)
    until = progress.began(stage) + delay
    while (rest := until - time.monotonic()) > 0:
        time.sleep(min(rest, 0.0005))
    (os.killpg if whole_group else os.kill)(pid, signal.SIGKILL)
    return STAGES[progress.stage] if ended(pid) == -signal.SIGKILL else None


# --- what is there afterwards ---------------------------------------------------------------------------------------


def seen(lake: Path) -> str:
    """What a reader finds: `none`, or the hash of all ids with the pixels that are read for them.

    Raises:
        AssertionError: the pixels are not those of the catalog.
    """
    if not (lake / "lake.json").exists():
        return "none"
    cohort = Lake(lake).cohort("all")
    if not cohort.rows:
        return "none"
    return state_of(cohort)


def state_of(cohort: Any) -> str:
    """Hash of ids and pixels of a cohort, each image compared with its `pixel_xxh`."""
    table = cohort.table(["sample_id", "pixel_xxh"]).to_pydict()
    images = np.ascontiguousarray(cohort.images())
    found = [xxhash.xxh3_128(image.tobytes()).hexdigest() for image in images]
    assert found == table["pixel_xxh"], "wrong pixels"
    return xxhash.xxh3_128("".join(map(str, zip(table["sample_id"], found, strict=True))).encode()).hexdigest()


def read_on(lake: Path, condition: str, known: dict[str, str], stop: Path, met: Path) -> None:
    """Open a lake, count and read all images, again and again until `stop` is there; write what was met, and how often.

    Raises:
        AssertionError: wrong pixels, or rows of no known state.
        LakeError: another one than that the lake changed meanwhile.
    """
    counts: Counter[str] = Counter()
    while not stop.exists():
        try:
            cohort = Lake(lake).cohort(condition)
            word = known[state_of(cohort)] if cohort.rows else "none"
        except LakeError as error:
            if "again" not in (error.hint or ""):
                raise
            word = "told to open again"
        counts[word] += 1
    met.write_text("\n".join(f"{word} {n}" for word, n in sorted(counts.items())))


def visible(lake: Path, known: dict[str, str]) -> str:
    """`none`, the name of a known state, or `partial`: anything else, and whatever can't be read.

    Without known states: `none`, or the state's hash.
    """
    if not list((lake / "catalog" / "samples").glob("*.parquet")):  # what makes a data set visible; spares a child
        return "none"
    try:
        state = answer_of_child(seen, lake)
    except AssertionError:
        return "partial"
    return state if state == "none" or not known else known.get(state, "partial")


def views_are_right(lake: Path) -> bool:
    """Whether `catalog.duckdb`, opened in the lake's folder, shows what the catalog holds."""
    os.chdir(lake)
    with duckdb.connect("catalog.duckdb", read_only=True) as con:
        [(rows,)] = con.sql("select count(*) from samples").fetchall()
    return bool(rows == Lake(lake).cohort("all").rows)


def differences(lake: Path, want: dict[str, str]) -> list[str]:
    """Files that are missing, too many, or of other bytes than in `want`."""
    got = tree_digest(lake)
    return sorted(name for name in got.keys() | want.keys() if got.get(name) != want.get(name))


def assert_same(lake: Path, want: dict[str, str], when: str) -> None:
    """The lake has exactly these bytes; it is removed."""
    assert not (differ := differences(lake, want)), f"{when}: {differ}"
    shutil.rmtree(lake)


def copy(lake: Path, to: Path) -> Path:
    """A copy of a lake."""
    shutil.copytree(lake, to)
    return to


@dataclass(frozen=True)
class Outcome:
    """What a kill came to: the stage it hit, what a reader saw then, and whether the rerun gave the right bytes."""

    died: str
    seen: str
    finished: bool
    same: bool


def measure(folder: Path, lake: Path) -> list[float]:
    """Seconds that each stage of an ingest into a new lake takes, with two workers: the least of three runs."""
    progress, took = Progress(), []
    for _ in range(3):
        shutil.rmtree(lake, ignore_errors=True)
        done_in_child(ingest_telling, folder, lake, 2, progress)
        took.append([after - before for before, after in pairwise(map(progress.began, range(len(STAGES))))])
    return [min(stage) for stage in zip(*took, strict=True)]


def kill_and_rerun(
    folder: Path,
    lake: Path,
    good: Path,
    known: dict[str, str],
    chance: random.Random,
    stage: int,
    lengths: list[float],
    *,
    workers: int = 2,
    times: int = 1,
    again: int = 2,
) -> Outcome:
    """Kill an ingest at a random moment of a stage, look, and run it again with `again` workers.

    Args:
        good: the lake of a clean run.
        known: hashes of the states that a reader may see, and their names.
        stage: number of the stage to aim at.
        lengths: see `measure`.
        times: how many runs are killed one after the other before the one that is not.
    """
    for _ in range(times):
        progress = Progress()
        pid = fork(ingest_telling, folder, lake, workers, progress)
        died = kill_at(pid, progress, stage, chance.uniform(0, lengths[stage]), whole_group=chance.random() < 0.5)
    found = visible(lake, known)
    code = ended(fork(ingest, folder, lake, again))
    same = not code and not differences(lake, tree_digest(good)) and answer_of_child(views_are_right, lake)
    shutil.rmtree(lake, ignore_errors=True)
    return Outcome(died or "ended", found, not code, bool(same))


def fill_disk(folder: Path, disk: Path, kilobytes: int, want: dict[str, str]) -> tuple[int, str, str, bool]:
    """An ingest on a file system of so many KiB, then, with room, once more; needs root.

    Returns:
        Exit code and words of the first run, what a reader saw then, whether the second gave the bytes `want`.
    """
    log = disk.with_suffix(f".log{kilobytes}")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk], check=True)
    try:
        code = ended(fork(command_line, folder, disk / "lake", log=log))
        found = visible(disk / "lake", {})
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        again = ended(fork(ingest, folder, disk / "lake", 2))
        return code, log.read_text().strip(), found, not again and not differences(disk / "lake", want)
    finally:
        subprocess.run(["umount", disk], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a small file system."""
    if os.geteuid() or sys.platform != "linux":
        return False
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    return not made.returncode and not subprocess.run(["umount", folder]).returncode
