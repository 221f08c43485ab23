"""A run killed at any moment leaves a lake that is right, or becomes right when the same command is run again.

A child is forked for each run from a process that has imported everything and started nothing. Two ways to die:
SIGKILL after a random time, and `os._exit` just before the n-th change of the file system, for every n.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from fakes.folders import tree_digest, write_folder, write_image

from ingest.card import load_card
from ingest.run import ingest
from usdata.lake import Lake

CHANGES = [(Path, "replace"), (Path, "unlink"), (os, "fsync"), (os, "unlink"), (os, "rmdir")]


def run(folder: Path, lake: Path) -> None:
    ingest(load_card(folder.parent / "mine.yaml"), folder, Lake.create(lake))


def die_before_change(number: int) -> None:
    """Let the process end, as if killed, before its `number`-th change of the file system."""
    left = [number]

    def counted(real):
        def change(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                os._exit(99)
            return real(*args, **kwargs)

        return change

    for owner, name in CHANGES:
        setattr(owner, name, counted(getattr(owner, name)))


def child(folder: Path, lake: Path, die_at: int | None) -> int:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            if die_at is not None:
                die_before_change(die_at)
            run(folder, lake)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def readable(lake: Path) -> int | None:
    """Images that a reader sees: of a whole data set, or None while there is no lake yet."""
    if not (lake / "lake.json").exists():
        return None
    opened = Lake(lake)
    cohort = opened.cohort("all")
    assert len(cohort.images()) == cohort.rows  # every image that the catalog names can be read
    return cohort.rows


def killed_at_every_step(folder: Path, work: Path) -> int:
    """Returns how many steps there were."""
    run_in_child(folder, work / "good")
    want = tree_digest(work / "good")
    for step in range(1, 1000):
        lake = work / f"lake{step}"
        code = ended(child(folder, lake, step))
        assert code in (0, 99), code
        assert in_child(readable, lake) in (None, 0, 8)
        if code == 0:
            return step - 1
        run_in_child(folder, lake)
        assert_same(lake, want, f"killed before change {step}")
    raise AssertionError("the run never ended")


def killed_while_replacing(folder: Path, work: Path) -> int:
    """As before, but an older state of the data set is in the lake: a reader sees the old one, none, or the new one."""
    write_image(folder / "images/benign/n000.png", seed=1)
    run_in_child(folder, work / "old")
    write_image(folder / "images/benign/n000.png", seed=2)
    run_in_child(folder, work / "good")
    want = tree_digest(work / "good")
    for step in range(1, 1000):
        lake = work / f"replaced{step}"
        subprocess.run(["cp", "-r", str(work / "old"), str(lake)], check=True)
        code = ended(child(folder, lake, step))
        assert in_child(readable, lake) in (0, 8)
        if code == 0:
            return step - 1
        run_in_child(folder, lake)
        assert_same(lake, want, f"killed before change {step}")
    raise AssertionError("the run never ended")


def killed_at_random_moments(folder: Path, work: Path, times: int, seed: int) -> int:
    """Returns how often the kill came before the end."""
    start = time.perf_counter()
    run_in_child(folder, work / "good")
    whole = time.perf_counter() - start
    want, early, chance = tree_digest(work / "good"), 0, random.Random(seed)
    for number in range(times):
        lake = work / f"random{number}"
        pid = child(folder, lake, None)
        time.sleep(chance.uniform(0, whole))
        os.kill(pid, signal.SIGKILL)
        early += ended(pid) == -signal.SIGKILL
        assert in_child(readable, lake) in (None, 0, 64)
        run_in_child(folder, lake)
        assert_same(lake, want, f"kill number {number}")
    return early


def assert_same(lake: Path, want: dict[str, str], when: str) -> None:
    got = tree_digest(lake)
    differ = sorted(name for name in got.keys() | want.keys() if got.get(name) != want.get(name))
    assert not differ, f"{when}: {differ}"
    shutil.rmtree(lake)


def run_in_child(folder: Path, lake: Path) -> None:
    assert ended(child(folder, lake, None)) == 0


def in_child(function, *args):
    """A small integer or None from `function`, computed in a child so that this process starts no threads."""
    pid = os.fork()
    if not pid:
        try:
            value = function(*args)
            os._exit(255 if value is None else value)
        finally:
            os._exit(254)
    code = ended(pid)
    assert code != 254, "reading failed"
    return None if code == 255 else code


def in_fresh_process(call: str, folder: Path, work: Path) -> int:
    code = (
        f"import sys, importlib.util; sys.path[:0] = {[str(Path(__file__).parents[1])]!r}; from pathlib import Path; "
        f"spec = importlib.util.spec_from_file_location('killed', {__file__!r}); "
        f"t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t); import usdata.loader; "
        f"folder, work = Path({str(folder)!r}), Path({str(work)!r}); print(t.{call})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_a_run_that_dies_before_any_change_of_the_file_system_is_finished_by_the_next(tmp_path):
    folder = write_folder(tmp_path / "source")
    assert in_fresh_process("killed_at_every_step(folder, work)", folder, tmp_path) > 20


@pytest.mark.slow
def test_a_reader_sees_the_old_data_set_or_none_or_the_new_one_while_it_is_replaced(tmp_path):
    folder = write_folder(tmp_path / "source")
    assert in_fresh_process("killed_while_replacing(folder, work)", folder, tmp_path) > 20


@pytest.mark.slow
def test_twenty_runs_killed_at_random_moments_all_end_in_the_same_bytes(tmp_path):
    folder = write_folder(tmp_path / "source", images=64)
    assert in_fresh_process("killed_at_random_moments(folder, work, 20, 7)", folder, tmp_path) >= 10
