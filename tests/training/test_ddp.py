"""Two gloo processes: equal to one, and neither hangs when the other is gone."""

import queue
import signal
import threading
import time

import pytest
import torch
from fakes import duel_recipe as _  # noqa: F401  registers "duel"
from fakes.ranks import end, free_port, start
from fakes.training_fakes import FakeCohort

from training.checkpoint import load_state
from training.config import resolve
from training.distributed import Signs
from training.runlog import read
from training.train import pretrain
from usdata.errors import UsdataError

SCRIPT = """
import os, signal, sys, time
from fakes import duel_recipe
from fakes.training_fakes import FakeCohort, FakeLoader
from training import checkpoint, data, train, watch
from training.config import resolve
from training.train import pretrain
from usdata.errors import LakeError, UsdataError

out, fault, *sets = sys.argv[1:]
first = os.environ["RANK"] == "0"


def at(where, name, number, what):  # do `what` in the number-th call of a function
    whole, calls = getattr(where, name), []

    def instead(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            what()
        return whole(*args, **kwargs)

    setattr(where, name, instead)


def kill(name):
    return lambda: os.kill(os.getpid(), getattr(signal, name))


def full():
    raise LakeError("No room on the disk.")


watch.read_images = lambda cohort, places: cohort.images()[places]
if not first and fault in ("SIGKILL", "SIGSTOP", "SIGTERM"):
    at(data.Feed, "next", 3, kill(fault))
if not first and fault == "dies at the start":
    at(train, "check_sizes", 1, kill("SIGKILL"))
if first and fault == "long probe":
    at(watch.Watch, "look", 2, lambda: time.sleep(18))
if first and fault == "killed in the probe":
    at(watch.Watch, "look", 2, kill("SIGKILL"))
if first and fault == "stopped in the probe":
    at(watch.Watch, "look", 2, kill("SIGSTOP"))
if first and fault == "full disk":
    at(checkpoint, "save_state", 2, full)
if not first and fault == "short epochs":
    FakeLoader.__len__ = lambda self: 3
try:
    done = pretrain(FakeCohort(), resolve("duel", "micro", sets=sets), out)
    print("ENDED", done.step, done.stopped, flush=True)
except UsdataError as error:
    print("REFUSED", error, error.hint, flush=True)
    sys.exit(3)
"""


def run(out, *sets, fault="", timeout=150):
    """Both ranks, each with its return code and what it printed; a hang is an error."""
    return [(code, said + error) for code, said, error in end(start(SCRIPT, out, fault, *sets), timeout)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "late",
    [pytest.param("adv_start=0", marks=pytest.mark.recipes), "adv_start=0.5"],
    ids=["at once", "one begins late"],
)
def test_two_processes_equal_one_with_two_optimisers(tmp_path, late):
    pretrain(FakeCohort(), resolve("duel", "micro", sets=[late, "clip_grad=0.05"]), tmp_path / "one")
    ended = run(tmp_path / "two", late, "clip_grad=0.05", "accumulate=2")
    assert [code for code, said in ended] == [0, 0], ended
    one, two = (load_state(tmp_path / name / "checkpoint" / "last.pt") for name in ("one", "two"))
    for name, value in one["model"].items():  # also teacher and centre
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-5)
    for name, saved in one["optimisers"].items():
        for i, moments in saved["state"].items():
            for key, value in moments.items():
                torch.testing.assert_close(two["optimisers"][name]["state"][i][key], value, rtol=1e-3, atol=1e-6)
    logs = [read(tmp_path / name / "log.jsonl", "step") for name in ("one", "two")]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"images_per_s", "data_wait", "kind"}:
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost",
    ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.recipes)],
    ids=["died", "does not answer"],
)
def test_a_lost_rank_is_a_clear_error_and_no_hang(tmp_path, lost):
    ranks = start(SCRIPT, tmp_path / "run", lost, "rank_timeout=20", "checkpoint_every=2", "log_every=1")
    try:
        said, error = ranks[0].communicate(timeout=150)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGKILL)
        ranks[1].communicate(timeout=30)
    assert ranks[0].returncode == 3, (said, error[-3000:])  # within the timeout above: it did not hang
    assert "Rank 0 of 2 lost another rank" in said
    assert "--resume" in said
    assert load_state(tmp_path / "run" / "checkpoint" / "last.pt")["step"] == 2
    resumed = pretrain(
        FakeCohort(),
        resolve("duel", "micro", sets=["rank_timeout=20", "checkpoint_every=2", "log_every=1"]),
        tmp_path / "run",
        resume=True,
    )
    assert resumed.finished


@pytest.mark.recipes
def test_a_rank_that_dies_at_the_start_is_a_clear_error(tmp_path):
    (code, said), other = run(tmp_path / "run", "rank_timeout=60", fault="dies at the start", timeout=50)
    assert code == 3 and "Rank 0 of 2 lost another rank" in said, other


@pytest.mark.recipes
def test_a_refusal_of_the_first_rank_ends_the_others_too(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    (code, said), (other, told) = run(tmp_path, "rank_timeout=60", timeout=50)
    assert code == other == 3
    assert "already holds files" in said and "Rank 1 of 2 lost another rank" in told


@pytest.mark.recipes
def test_a_probe_may_take_longer_than_the_patience_of_the_ranks(tmp_path):
    ended = run(tmp_path / "run", "rank_timeout=12", "probe_every=2", fault="long probe")
    assert [code for code, said in ended] == [0, 0], ended
    assert [record["step"] for record in read(tmp_path / "run" / "log.jsonl", "probe")] == [0, 2, 4, 6, 8]


@pytest.mark.recipes
@pytest.mark.parametrize("fault", ["killed in the probe", "stopped in the probe"])
def test_others_do_not_wait_for_ever_for_a_first_rank_that_is_gone(tmp_path, fault):
    ranks = start(SCRIPT, tmp_path / "run", fault, "rank_timeout=15", "probe_every=2")
    try:
        said, error = ranks[1].communicate(timeout=100)
    finally:
        ranks[0].send_signal(signal.SIGKILL)
        ranks[0].communicate(timeout=30)
    assert ranks[1].returncode == 3, error[-3000:]
    assert "Rank 1 of 2 lost another rank" in said


@pytest.mark.recipes
def test_a_full_disk_of_the_first_rank_ends_all_with_the_last_checkpoint_whole(tmp_path):
    (code, said), (other, told) = run(tmp_path / "run", "rank_timeout=60", fault="full disk", timeout=50)
    assert code == other == 3
    assert "No room on the disk" in said and "Rank 1 of 2 lost another rank" in told
    assert load_state(tmp_path / "run" / "checkpoint" / "last.pt")["step"] == 4


@pytest.mark.recipes
def test_sigterm_to_one_rank_stops_both_after_the_same_step_with_a_checkpoint(tmp_path):
    ended = run(tmp_path / "run", fault="SIGTERM")
    assert [code for code, said in ended] == [0, 0], ended
    assert all("ENDED 4 SIGTERM" in said for code, said in ended)  # the ranks ask each other every second step
    assert load_state(tmp_path / "run" / "checkpoint" / "last.pt")["step"] == 4


@pytest.mark.recipes
def test_ranks_may_end_their_epochs_at_different_steps(tmp_path):
    ended = run(tmp_path / "run", fault="short epochs")
    assert all("ENDED 8" in said for code, said in ended), ended


# ---- signs of life


def waiting(store, patience):
    """Runs `awaited` of another rank in a thread; gives a function that returns what it ended with."""
    ended = queue.Queue()

    def wait():
        try:
            Signs(store, patience).awaited()
            ended.put(None)
        except torch.distributed.DistError as error:
            ended.put(error)

    threading.Thread(target=wait, daemon=True).start()
    return lambda: ended.get(timeout=20)


def test_work_may_take_longer_than_the_patience_as_long_as_there_are_signs():
    store = torch.distributed.HashStore()
    ended = waiting(store, patience=0.4)
    with Signs(store, 0.4).given():
        time.sleep(1.2)
    assert ended() is None


def test_work_that_fails_and_a_rank_that_is_silent_end_the_waiting():
    store = torch.distributed.HashStore()
    ended = waiting(store, patience=30)
    with pytest.raises(OSError, match="full"), Signs(store, 30).given():
        raise OSError("full")
    assert "failed" in str(ended())
    assert "no sign of life" in str(waiting(torch.distributed.HashStore(), patience=0.2)())


def test_a_rank_that_is_alone_says_so(monkeypatch):
    from training.distributed import world

    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UsdataError, match="Rank 1 of 2 did not find the others within 1 s"), world("cpu", timeout=1):
        pass
