"""Several ingests at once, readers meanwhile, disks that are full or fail, and signals: the lake is right afterwards.

What forks is run in a fresh process; see `fakes/kills.py`.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import kills
from fakes.folders import tree_digest, write_folder, write_image, write_organs

from ingest import build, commit
from ingest.card import load_card
from ingest.run import ingest, only_ingest
from usdata import files
from usdata.errors import LakeError
from usdata.lake import Lake


def several(work: Path, number: int, images: int = 12) -> list[Path]:
    """Sources of the data sets set0, set1, ..., each with its card beside it."""
    return [write_organs(work / f"s{i}" / "source", images, seed=i, name=f"set{i}") for i in range(number)]


def ingest_named(folder: Path, lake: Path, workers: int = 1) -> None:
    """Ingest what `several` wrote."""
    [card] = folder.parent.glob("*.yaml")
    kills.ingest(folder, lake, workers, card)


def one_after_the_other(folders: list[Path], lake: Path) -> dict[str, str]:
    for folder in folders:
        kills.done_in_child(ingest_named, folder, lake)
    return tree_digest(lake)


# --- several writers --------------------------------------------------------------------------------------------------


def two_at_once(work: Path) -> int:
    """Returns how many rows the two data sets have together in catalog.duckdb."""
    folders = several(work, 2)
    want = one_after_the_other(folders, work / "good")
    for turn in range(2):  # the lake itself is new too: both make it
        lake = work / f"lake{turn}"
        pids = [kills.fork(ingest_named, folder, lake, 2) for folder in folders]
        assert [kills.ended(pid) for pid in pids] == [0, 0]
        assert kills.answer_of_child(kills.views_are_right, lake)
        kills.assert_same(lake, want, f"turn {turn}")
    return 24


@pytest.mark.slow
def test_two_data_sets_ingested_at_once_into_a_new_lake_give_the_bytes_of_one_after_the_other(tmp_path):
    assert int(kills.in_fresh_process(__file__, "two_at_once", tmp_path)) == 24


def four_at_once_with_kills(work: Path) -> int:
    folders, killed = several(work, 4), 0
    want = one_after_the_other(folders, work / "good")
    lake = work / "lake"
    for turn in range(2):
        pids = [kills.fork(ingest_named, folder, lake, 2) for folder in folders]
        time.sleep(0.15 + 0.2 * turn)
        for pid in pids[turn % 2 :: 2]:
            os.killpg(pid, signal.SIGKILL)
        codes = [kills.ended(pid) for pid in pids]
        assert set(codes) <= {0, -signal.SIGKILL}, codes  # nobody is hurt by the death of another
        killed += codes.count(-signal.SIGKILL)
        kills.answer_of_child(kills.seen, lake)
    for folder in folders:
        kills.done_in_child(ingest_named, folder, lake)
    assert kills.answer_of_child(kills.views_are_right, lake)
    kills.assert_same(lake, want, "at the end")
    return killed


@pytest.mark.slow
def test_of_four_ingests_at_once_two_are_killed_and_the_others_come_through(tmp_path):
    assert int(kills.in_fresh_process(__file__, "four_at_once_with_kills", tmp_path)) >= 2


def same_twice(work: Path) -> str:
    [folder] = several(work, 1)
    want, lake, progress = one_after_the_other([folder], work / "good"), work / "lake", kills.Progress()
    first = kills.fork(kills.ingest_telling, folder, lake, 2, progress, folder.parent / "set0.yaml")
    while progress.stage < 1:
        time.sleep(0.001)
    os.kill(first, signal.SIGSTOP)  # in the middle of its work
    second = kills.fork(ingest_named, folder, lake, 2, log=work / "log")
    assert kills.ended(second) == 1
    os.kill(first, signal.SIGCONT)
    assert kills.ended(first) == 0
    kills.assert_same(lake, want, "both through")
    assert f"process {first}, since " in (work / "log").read_text()
    return "refused"


def test_the_same_data_set_twice_at_once_is_refused_naming_the_process_that_is_at_it(tmp_path):
    assert kills.in_fresh_process(__file__, "same_twice", tmp_path) == "refused"


def test_the_note_in_a_lock_file_is_that_of_its_last_holder_and_hinders_nobody(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    path = lake.root / ".staging" / "mine.lock"
    path.write_text("process 1 on nowhere, since long ago; it was killed")
    with only_ingest(lake, "mine"):
        assert path.read_text().startswith(f"process {os.getpid()}, since ")
        with pytest.raises(LakeError, match=f"process {os.getpid()}, since 20"), only_ingest(lake, "mine"):
            pass
    with only_ingest(lake, "mine"), only_ingest(lake, "other"):
        pass


# --- a reader meanwhile -----------------------------------------------------------------------------------------------


def read_while_writing(work: Path) -> str:
    """A reader looks without pause while one data set changes to and fro and another comes in; what it met."""
    sources = [write_organs(work / f"v{i}" / "source", 12, seed=i) for i in range(2)]
    other = write_organs(work / "o" / "source", 8, seed=9, name="other")
    known = {}
    for source in sources:
        lake = work / f"lake-{source.parent.name}"
        kills.done_in_child(kills.ingest, source, lake)
        known[kills.answer_of_child(kills.seen, lake)] = source.parent.name
    lake, stop = kills.copy(work / "lake-v0", work / "lake"), work / "stop"
    reader = kills.fork(kills.read_on, lake, "dataset = 'mine'", known, stop, work / "met")
    for turn in range(1, 7):
        kills.done_in_child(kills.ingest, sources[turn % 2], lake, 1 + turn % 2)
        kills.done_in_child(ingest_named, other, lake)
    stop.touch()
    assert kills.ended(reader) == 0, "the reader met something that it must not meet"
    return (work / "met").read_text()


@pytest.mark.slow
def test_a_reader_during_ingests_meets_one_state_or_none_or_is_told_to_open_again(tmp_path):
    met = eval_counts(kills.in_fresh_process(__file__, "read_while_writing", tmp_path))
    assert set(met) <= {"v0", "v1", "none", "told to open again"}, met
    assert met["v0"] and met["v1"]


def eval_counts(text: str) -> dict[str, int]:
    return {word: int(n) for word, n in (line.rsplit(" ", 1) for line in text.splitlines())}


def test_a_loader_held_open_over_a_replacement_gives_the_old_images_or_says_to_open_again(tmp_path):
    folder = write_organs(tmp_path / "source", 8)
    card = load_card(tmp_path / "mine.yaml")
    ingest(card, folder, Lake.create(tmp_path / "lake"))
    used, fresh = (Lake(tmp_path / "lake").cohort("all").loader(8, gamma=None, seed=3) for _ in range(2))
    before = next(iter(used))["image"].clone()
    for path in folder.rglob("*.png"):
        write_image(path, seed=500 + int(path.stem[1:]))
    ingest(card, folder, Lake(tmp_path / "lake"))
    used.load_state_dict({**used.state_dict(), "epoch": 0, "batch": 0})
    assert (next(iter(used))["image"] == before).all()  # its shards stay mapped
    with pytest.raises(LakeError, match="Open the lake and the cohort again"):
        next(iter(fresh))


# --- the disk ---------------------------------------------------------------------------------------------------------


class Failing:
    """Lets the n-th writing call on the file system fail: of data, of names, or the flush to the disk."""

    def __init__(self, number: int, code: int, patch: pytest.MonkeyPatch) -> None:
        self.left, self.code, self.last = number, code, ""
        patch.setattr(files.os, "fsync", self.counted(os.fsync, "fsync"))
        for name in ("replace", "rename", "mkdir", "unlink"):
            patch.setattr(Path, name, self.counted(getattr(Path, name), name))
        patch.setattr(build.ShardWriter, "_write", self.counted(build.ShardWriter._write, "write a shard"))
        for module in (build, commit):
            patch.setattr(module, "write_part", self.counted(module.write_part, "write a table"))

    def counted(self, real: Any, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.last = name
                raise OSError(self.code, os.strerror(self.code))
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("older", [False, True])
def test_wherever_the_disk_fails_the_message_is_clear_and_the_rerun_gives_the_right_bytes(tmp_path, code, older):
    folder = write_folder(tmp_path / "source", images=2)
    card, lake = load_card(tmp_path / "mine.yaml"), tmp_path / "lake"
    known = {}
    if older:
        ingest(card, folder, Lake.create(lake))
        known[kills.seen(lake)] = "old"
        write_image(folder / "images/benign/n000.png", seed=7)
    ingest(card, folder, Lake.create(tmp_path / "good"))
    known[kills.seen(tmp_path / "good")] = "new"
    kills.copy(lake, tmp_path / "old") if older else Lake.create(tmp_path / "old")
    met = set()
    for number in range(1 + older, 200, {errno.ENOSPC: 5, errno.EROFS: 11, errno.EIO: 7}[code]):
        kills.shutil.rmtree(lake, ignore_errors=True)
        kills.copy(tmp_path / "old", lake)
        with pytest.MonkeyPatch.context() as patch:
            disk = Failing(number, code, patch)
            try:
                ingest(card, folder, Lake(lake))
            except LakeError as error:
                assert error.hint and error.dataset == "mine" and error.step, error
                met.add(disk.last)
        if disk.left > 0:
            break
        state = kills.seen(lake)
        assert state == "none" or state in known, (number, disk.last)
        ingest(card, folder, Lake(lake))
        assert not kills.differences(lake, tree_digest(tmp_path / "good")), (number, disk.last)
    assert disk.left > 0 and len(met) >= 3, met


def full_disk(work: Path) -> int:
    """On a real, small file system; the command line as a user meets it. Returns how often the disk was full."""
    folder = write_organs(work / "source", 12)
    kills.done_in_child(kills.ingest, folder, work / "good")
    want, new, full = tree_digest(work / "good"), kills.answer_of_child(kills.seen, work / "good"), 0
    (work / "disk").mkdir()
    for size in (4, 64, 300, 900, 1000, 1100, 4000):  # KiB
        code, told, found, same = kills.fill_disk(folder, work / "disk", size, want)
        assert same, size
        if code:
            full += 1
            assert code == 1 and told.startswith("usdata: ") and "Traceback" not in told, told
            assert "space" in told and "same command again" in told, told
            assert found == "none" or (found == new and "catalog.duckdb" in told), (size, found, told)
        else:
            assert found == new, size
    return full


@pytest.mark.slow
def test_a_really_full_disk_gives_exit_code_1_and_one_message_and_the_rerun_the_right_bytes(tmp_path):
    if not kills.can_mount(tmp_path):
        pytest.skip("a small file system can be mounted by root only")
    assert int(kills.in_fresh_process(__file__, "full_disk", tmp_path)) >= 4


# --- what a power cut may undo ----------------------------------------------------------------------------------------


def test_every_step_of_a_commit_is_on_the_disk_before_the_next_so_a_power_cut_leaves_what_a_kill_leaves(
    tmp_path, monkeypatch
):
    folder = write_organs(tmp_path / "source", 8)
    card, lake = load_card(tmp_path / "mine.yaml"), Lake.create(tmp_path / "lake")
    ingest(card, folder, lake)
    (folder / "images/lung/n006.png").unlink()
    write_image(folder / "images/heart/n001.png", seed=77)
    synced: set[Path] = set()  # files whose bytes are on the disk
    pending: dict[Path, str] = {}  # folder -> a change of names in it that is not on the disk yet
    real_sync, real_replace, real_unlink = os.fsync, Path.replace, Path.unlink

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.add(path)
        pending.pop(path, None)
        real_sync(descriptor)

    def changes(path: Path, what: str) -> None:
        if ".staging" in path.parts or path.name.startswith("."):
            return
        before = {place: change for place, change in pending.items() if place != path.parent}
        assert not before, f"{what} {path.name} while the disk may not know of {before}"
        pending[path.parent] = f"{what} {path.name}"

    def replace(self: Path, target: Path) -> Path:
        assert self in synced or self.name == ".catalog.duckdb.tmp", f"{self} is renamed, but not on the disk"
        changes(target, "rename to")
        synced.discard(self)
        synced.add(target)
        return real_replace(self, target)

    def unlink(self: Path, missing_ok: bool = False) -> None:
        changes(self, "unlink")
        real_unlink(self, missing_ok=missing_ok)

    for owner, name, value in ((os, "fsync", fsync), (Path, "replace", replace), (Path, "unlink", unlink)):
        monkeypatch.setattr(owner, name, value)
    assert ingest(card, folder, lake).changed
    assert not pending


def test_a_new_folder_is_on_the_disk_before_anything_is_put_into_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_signal_ends_an_ingest_and_its_workers_with_one_line_and_the_rerun_goes_on(tmp_path, number, code, word):
    folder = write_organs(tmp_path / "source", 200)
    words = ["ingest", "--card", str(tmp_path / "mine.yaml"), "--from", str(folder), "--lake", str(tmp_path / "lake")]
    stopped = subprocess.Popen(
        [sys.executable, "-m", "usdata.cli", *words, "--workers", "2", "--json"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list((tmp_path / "lake/.staging").glob("mine/*/.*.tmp")):
        assert stopped.poll() is None, "it ended before a worker was seen at work"
        time.sleep(0.001)
    os.killpg(stopped.pid, number)  # a terminal sends Ctrl-C to all processes of the command
    assert stopped.communicate(timeout=20)[1] == f"usdata: Stopped by {word}. The same command can be run again.\n"
    assert stopped.returncode == code
    assert kills.seen(tmp_path / "lake") == "none"
    until = time.monotonic() + 5
    while kills.living(stopped.pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not kills.living(stopped.pid)
    ingest(load_card(tmp_path / "mine.yaml"), folder, Lake(tmp_path / "lake"))
    assert Lake(tmp_path / "lake").cohort("all").rows == 200
