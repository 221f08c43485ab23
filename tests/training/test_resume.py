import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes.training_fakes import FakeCohort

from training import checkpoint, train
from training.checkpoint import load_state
from training.config import resolve
from training.runlog import RunLog, read
from training.train import pretrain
from usdata.errors import ConfigError, UsdataError

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from fakes.training_fakes import FakeCohort
from training import checkpoint
from training.config import resolve
from training.train import pretrain

out, where, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
if where == "checkpoint":  # the at-th state is written in full, but dies before it is renamed
    whole, calls = checkpoint.torch.save, []
    def save(state, file):
        whole(state, file)
        calls.append(state)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.torch.save = save
cohort = FakeCohort(kill_at=at if where == "step" else 0)
pretrain(cohort, resolve("tiny", "micro"), out)
"""


def run(out, *sets, cohort=None, **how):
    return pretrain(cohort or FakeCohort(), resolve("tiny", "micro", sets=sets), out, **how)


def same_state(a, b):
    one, two = (load_state(out / "checkpoint" / "last.pt") for out in (a, b))
    moments = [state["optimisers"]["main"]["state"] for state in (one, two)]
    return (
        all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
        and all(torch.equal(moments[0][i][k], moments[1][i][k]) for i in moments[0] for k in moments[0][i])
        and one["data"] == two["data"]
        and one["step"] == two["step"]
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(out)
    return out


@pytest.mark.parametrize(
    ("where", "at"),
    [("step", random.Random().randint(5, 12)), ("checkpoint", 2)],  # any step after the first checkpoint
    ids=["at a random step", "while writing the second checkpoint"],
)
def test_a_killed_run_resumed_equals_the_uninterrupted_one_bit_for_bit(tmp_path, uninterrupted, where, at):
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, out, where, str(at)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -9, f"killed at {where} {at}: {done.stderr[-2000:]}"
    assert load_state(out / "checkpoint" / "last.pt")["step"] in (4, 8)
    assert bool(list(out.rglob(".*.tmp"))) == (where == "checkpoint")
    result = run(out, resume=True)
    assert result.finished
    assert same_state(out, uninterrupted), f"killed at {where} {at}"
    steps = [record["step"] for record in read(out / "log.jsonl", "step")]
    assert steps == list(range(1, 13)), f"killed at {where} {at}"
    assert not list(out.rglob(".*.tmp"))  # the half of a file that the killed process left is swept away
    drop = {"images_per_s", "data_wait"}
    for ours, theirs in zip(read(out / "log.jsonl", "step"), read(uninterrupted / "log.jsonl", "step"), strict=True):
        assert {k: v for k, v in ours.items() if k not in drop} == {k: v for k, v in theirs.items() if k not in drop}


def test_stopping_after_every_step_changes_nothing(tmp_path, uninterrupted):
    out = tmp_path / "run"
    results = [run(out, resume=True, max_hours=0) for _ in range(12)]  # each call does one step
    assert [result.step for result in results] == list(range(1, 13))
    assert results[-1].finished
    assert same_state(out, uninterrupted)


def test_resuming_a_finished_run_does_nothing(tmp_path):
    out = tmp_path / "run"
    run(out)
    before = (out / "checkpoint" / "last.pt").read_bytes()
    result = run(out, resume=True)
    assert result.finished
    assert (out / "checkpoint" / "last.pt").read_bytes() == before
    assert len(read(out / "log.jsonl", "step")) == 12


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path, uninterrupted):
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.jsonl").write_text('{"kind": "step", "step": 1}\n')  # killed before the first checkpoint
    run(out, resume=True)
    assert same_state(out, uninterrupted)
    assert [record["step"] for record in read(out / "log.jsonl", "step")] == list(range(1, 13))


def test_keys_that_do_not_touch_the_weights_may_change(tmp_path, uninterrupted):
    out = tmp_path / "run"
    run(out, max_hours=0)
    run(out, "log_every=3", "checkpoint_every=100", resume=True)
    assert same_state(out, uninterrupted)


@pytest.mark.parametrize(
    ("sets", "message"),
    [(["steps=13"], "steps was 12, now 13"), (["lr=1"], "lr was 0.01, now 1.0"), (["width=4"], "recipe_config was")],
)
def test_another_config_is_refused_with_the_keys_that_differ(tmp_path, sets, message):
    run(tmp_path, max_hours=0)
    with pytest.raises(ConfigError, match=message) as caught:
        run(tmp_path, *sets, resume=True)
    assert "--out" in caught.value.hint


def test_another_cohort_is_refused(tmp_path):
    run(tmp_path, max_hours=0)
    with pytest.raises(ConfigError, match=r"images changed [(]hash c0ffee, now beef[)]"):
        run(tmp_path, cohort=FakeCohort(hash="beef"), resume=True)


def test_another_version_of_the_code_is_refused(tmp_path, monkeypatch):
    run(tmp_path, max_hours=0)
    monkeypatch.setattr(checkpoint, "code_version", lambda: "99.0")
    with pytest.raises(ConfigError, match=r"usdata was .*, now 99\.0"):
        run(tmp_path, resume=True)


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path):
    run(tmp_path, max_hours=0)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError):
        run(tmp_path, "seed=9", resume=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("content", [b"", b"junk that is no archive", b"PK\x03\x04 torn"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    run(tmp_path, max_hours=0)
    (tmp_path / "checkpoint" / "last.pt").write_bytes(content)
    with pytest.raises(UsdataError, match="Cannot read the checkpoint"):
        run(tmp_path, resume=True)


def test_a_failing_step_leaves_a_log_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(train.Feed, "next", lambda self: (_ for _ in ()).throw(UsdataError("unreadable shard")))
    with pytest.raises(UsdataError, match="unreadable shard"):
        run(tmp_path)
    assert [record["kind"] for record in read(tmp_path / "log.jsonl")] == ["start"]


# --- the log


def test_a_log_is_cut_to_the_step_of_the_checkpoint_and_a_torn_line_goes(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    for step in range(1, 6):
        log.write("step", step=step, loss=1 / step)
    log.close()
    with path.open("a") as file:
        file.write('{"kind": "step", "st')  # killed while writing
    RunLog(path, keep_to=3).close()
    assert [record["step"] for record in read(path)] == [1, 2, 3]


def test_what_json_cannot_hold_becomes_null(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.write("step", step=1, loss=float("nan"), lr=float("inf"))
    log.close()
    assert read(tmp_path / "log.jsonl") == [{"kind": "step", "step": 1, "loss": None, "lr": None}]


# --- the real recipe


def d2mae(out, **how):
    sets = ["steps=6", "batch_size=8", "log_every=2", "checkpoint_every=100", "clip_grad=1"]
    return pretrain(FakeCohort(), resolve("d2mae", "micro", sets=sets), out, **how)


def test_d2mae_stopped_and_resumed_has_the_uninterrupted_weights(tmp_path):
    d2mae(tmp_path / "whole")
    d2mae(tmp_path / "parts", max_hours=0)
    d2mae(tmp_path / "parts", max_hours=0, resume=True)
    assert d2mae(tmp_path / "parts", resume=True).finished
    assert same_state(tmp_path / "parts", tmp_path / "whole")
    assert [record["step"] for record in read(tmp_path / "parts" / "log.jsonl", "step")] == [1, 2, 3, 4, 5, 6]
