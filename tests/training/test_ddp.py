"""Two gloo processes: equal to one, and neither hangs when the other is gone."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import duel_recipe as _  # noqa: F401  registers "duel"
from fakes.training_fakes import FakeCohort

from training.checkpoint import load_state
from training.config import resolve
from training.runlog import read
from training.train import pretrain
from usdata.errors import UsdataError

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, signal, sys
from fakes import duel_recipe
from fakes.training_fakes import FakeCohort
from training import data
from training.config import resolve
from training.train import pretrain
from usdata.errors import UsdataError

out, lost, *sets = sys.argv[1:]
if lost and os.environ["RANK"] == "1":  # in its third step: killed, or stopped so that it never answers
    whole, calls = data.Feed.next, []
    def next(self):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), getattr(signal, lost))
        return whole(self)
    data.Feed.next = next
try:
    pretrain(FakeCohort(), resolve("duel", "micro", sets=sets), out)
except UsdataError as error:
    print("REFUSED", error, flush=True)
    sys.exit(3)
"""


def start(out, *sets, lost=""):
    """Both ranks, as torchrun starts them but without its own watch over them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    known = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    known |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, out, lost, *sets],
            env={**known, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "late",
    [pytest.param("adv_start=0", marks=pytest.mark.recipes), "adv_start=0.5"],
    ids=["at once", "one begins late"],
)
def test_two_processes_equal_one_with_two_optimisers(tmp_path, late):
    pretrain(FakeCohort(), resolve("duel", "micro", sets=[late, "clip_grad=0.05"]), tmp_path / "one")
    ranks = start(tmp_path / "two", late, "clip_grad=0.05", "accumulate=2")
    ended = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], ended
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
    ranks = start(tmp_path / "run", "rank_timeout=20", "checkpoint_every=2", "log_every=1", lost=lost)
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


def test_a_rank_that_is_alone_says_so(monkeypatch):
    from training.distributed import world

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UsdataError, match="Rank 1 of 2 did not find the others within 1 s"), world("cpu", timeout=1):
        pass
