"""Files are read in a process that may crash, hang or take all memory without harm to the run."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.deid.isolate import Child
from ingest.deid.reasons import Reason, Refusal
from usdata.errors import ConfigError

MODULE = "fakes.bad_child"


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    with Child({}, tmp_path, MODULE) as one:
        yield one


def reason_of(child: Child, task: str, patience: float = 5.0) -> str:
    with pytest.raises(Refusal) as caught:
        list(child.ask(task, patience))
    return caught.value.reason


def test_a_child_answers_several_questions_in_one_process(child: Child) -> None:
    first, second = list(child.ask("well")), list(child.ask("well"))
    assert [m.blob for m in first] == [b"\0" * 10, b"\1" * 10, b""]
    assert first[-1].content["process"] == second[-1].content["process"] != os.getpid()


@pytest.mark.parametrize("task", ["crash", "leave_file", "lie", "nonsense", "a_list", "own_reason", "no_reason"])
def test_a_child_that_dies_or_lies_costs_one_item_and_the_next_gets_a_new_child(child: Child, task: str) -> None:
    before = list(child.ask("well"))[-1].content["process"]
    assert reason_of(child, task) == Reason.DECODER_DIED
    assert list(child.ask("well"))[-1].content["process"] != before


def test_a_silent_child_is_ended_after_its_patience(child: Child) -> None:
    list(child.ask("well"))
    start = time.monotonic()
    assert reason_of(child, "hang", patience=0.5) == Reason.TOO_SLOW
    assert time.monotonic() - start < 5
    assert len(list(child.ask("well"))) == 3


def test_a_child_that_does_not_read_is_ended_too(child: Child) -> None:
    list(child.ask("deaf"))
    with pytest.raises(Refusal) as caught:
        list(child.ask("well", 0.5, much="x" * 1_000_000))  # more than a pipe holds
    assert caught.value.reason == Reason.TOO_SLOW


def test_a_slow_child_that_shows_life_is_waited_for(child: Child) -> None:
    list(child.ask("well"))  # it has started
    assert [m.kind for m in child.ask("slow", patience=0.6)] == ["done"]  # takes 1 s in all


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux only")
def test_a_file_that_asks_for_four_gigabytes_is_refused(tmp_path: Path) -> None:
    with Child({"limited": True}, tmp_path, MODULE) as child:
        assert reason_of(child, "greedy") == Reason.TOO_MUCH_MEMORY
        assert len(list(child.ask("well"))) == 3


def test_temporary_files_go_with_the_child_that_died(child: Child, tmp_path: Path) -> None:
    reason_of(child, "leave_file")
    assert list(tmp_path.iterdir()) == []
    folder = Path(list(child.ask("well"))[-1].content["temp"])
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700


def test_nothing_is_left_after_the_with(tmp_path: Path) -> None:
    with Child({}, tmp_path, MODULE) as child:
        process = list(child.ask("well"))[-1].content["process"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_what_a_decoder_prints_is_seen_by_nobody(child: Child, capfd: pytest.CaptureFixture[str]) -> None:
    list(child.ask("chatter"))
    assert capfd.readouterr() == ("", "")


def test_a_child_that_can_not_start_says_why(tmp_path: Path) -> None:
    with Child({"start": "refused"}, tmp_path, MODULE) as child, pytest.raises(ConfigError, match="No key") as caught:
        list(child.ask("well"))
    assert caught.value.hint == "Make one."
    with Child({"start": "never"}, tmp_path, MODULE) as child, pytest.raises(ConfigError, match="does not start"):
        list(child.ask("well"))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_the_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from ingest.deid import child as real\n"
        "parent, (bound, told) = os.getpid(), os.pipe()\n"
        "process = os.fork()\n"
        "if not process:\n"
        "    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\n"
        "    real._bind_to(parent)\n"
        "    os.write(told, b'x')\n"
        "    time.sleep(60)\n"
        "os.read(bound, 1)\n"
        "print(process, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    process = int(done.stdout)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child outlived its parent")
