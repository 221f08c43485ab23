"""A run killed at any moment leaves a lake that is right, or becomes right when the same command is run again.

Children are forked from a process that has imported everything and started nothing, and die by SIGKILL at a moment
aimed at; or the lake is copied before every change of the file system, which is what a death there leaves.
`benchmarks/crash.py` kills some hundred times.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import kills
from fakes.folders import tree_digest, write_folder, write_image, write_organs

from ingest import build
from ingest.card import load_card
from ingest.run import ingest, prepare
from usdata.errors import LakeError
from usdata.lake import Lake
from usdata.verify import verify

# --- run in a fresh process -----------------------------------------------------------------------------------------


def killed_at_every_step(folder: Path, work: Path) -> int:
    """Returns how many different states a killed run can leave."""
    kills.keep_states(kills.ingest, folder, work / "good", lake=work / "good", into=work / "states")
    want, known = tree_digest(work / "good"), {kills.answer_of_child(kills.seen, work / "good"): "new"}
    found = sorted((work / "states").iterdir())
    for lake in found:
        assert kills.visible(lake, known) in ("none", "new"), lake
        kills.done_in_child(kills.ingest, folder, lake)
        kills.assert_same(lake, want, lake.name)
    return len(found)


def killed_while_replacing(folder: Path, work: Path) -> int:
    """As before, but an older state of the data set is in the lake: a reader sees the old one, none, or the new one."""
    write_image(folder / "images/benign/n000.png", seed=1)
    kills.done_in_child(kills.ingest, folder, work / "old")
    write_image(folder / "images/benign/n000.png", seed=2)
    kills.copy(work / "old", work / "good")
    kills.keep_states(kills.ingest, folder, work / "good", lake=work / "good", into=work / "states")
    want, known, met = tree_digest(work / "good"), states(work), set()
    kills.done_in_child(kills.ingest, folder, work / "fresh")
    assert want == tree_digest(work / "fresh")
    found = sorted((work / "states").iterdir())
    for lake in found:
        met.add(kills.visible(lake, known))
        kills.done_in_child(kills.ingest, folder, lake)
        kills.assert_same(lake, want, lake.name)
    assert met == {"old", "none", "new"}
    return len(found)


def states(work: Path) -> dict[str, str]:
    """Hash of what a reader sees -> `old`, `new`, of the lakes work/old and work/good."""
    return {kills.answer_of_child(kills.seen, work / name): word for name, word in (("old", "old"), ("good", "new"))}


def killed_at_random_moments(folder: Path, work: Path) -> int:
    """Two workers, every stage, new lakes and old ones in turns; returns how many kills came before the end."""
    old = write_organs(work / "older" / "source", images=12, seed=1)
    kills.done_in_child(kills.ingest, old, work / "old")
    lengths = kills.measure(folder, work / "good")
    known, chance, hit = states(work), random.Random(7), []
    for number in range(12):
        lake = work / f"random{number}"
        if number % 2:
            kills.copy(work / "old", lake)
        stage, times, again = (1, 2, 2, 3)[number // 2 % 4], 1 + 2 * (number % 5 == 0), 1 + number % 3
        out = kills.kill_and_rerun(folder, lake, work / "good", known, chance, stage, lengths, times=times, again=again)
        assert out.same, (number, out)
        assert out.seen in (("old", "none", "new") if number % 2 else ("none", "new")), (number, out)
        hit.append(out.died)
    assert {"building", "renames", "views"} <= set(hit), hit
    return sum(died != "ended" for died in hit)


def rebuilt_after_each_death(folder: Path, work: Path) -> int:
    """`usdata catalog --rebuild` after a death inside the commit shows the whole data set or refuses."""
    kills.keep_states(kills.ingest, folder, work / "good", lake=work / "good", into=work / "states")
    known = {kills.answer_of_child(kills.seen, work / "good"): "new"}
    found = [lake for lake in sorted((work / "states").iterdir()) if (lake / "shards" / "mine").exists()]
    answers = [(kills.answer_of_child(refused, lake), kills.visible(lake, known)) for lake in found]
    assert set(answers) <= {(True, "none"), (False, "new")}, answers
    assert answers.count((True, "none")) >= 2  # no shard, and one of two
    return len(found)


def refused(lake: Path) -> bool:
    try:
        kills.rebuild(lake)
    except LakeError as error:
        assert "usdata ingest mine" in str(error)
        return True
    return False


def rebuild_killed(folder: Path, work: Path) -> int:
    """A killed rebuild hides nothing that was there, and the next one gives the bytes of the ingest."""
    kills.done_in_child(kills.ingest, folder, work / "good")
    want, known = tree_digest(work / "good"), {kills.answer_of_child(kills.seen, work / "good"): "new"}
    kills.keep_states(kills.rebuild, work / "good", lake=work / "good", into=work / "states")
    found = sorted((work / "states").iterdir())
    for lake in found:
        assert kills.visible(lake, known) == "new", lake
        kills.done_in_child(kills.rebuild, lake)
        kills.assert_same(lake, want, lake.name)
    return len(found)


def given_three_times(folder: Path, work: Path) -> int:
    """Returns how many different files three builders of one job left."""
    plan = prepare(load_card(folder.parent / "mine.yaml"), folder, Lake.create(work / "lake"))
    pids = [kills.fork(build.build_shard, plan.jobs[0]) for _ in range(3)]
    assert [kills.ended(pid) for pid in pids] == [0, 0, 0]
    names = sorted(p.name for p in plan.staging.iterdir() if not p.name.startswith("."))
    assert names == [f"{plan.jobs[0].name}{suffix}" for suffix in (".json", ".parquet", ".tar")]
    return len({p.stat().st_ino for p in plan.staging.glob("*.tar")})


# --- the facts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_dies_before_any_change_of_the_file_system_is_finished_by_the_next(tmp_path):
    folder = write_folder(tmp_path / "source", images=4)
    assert int(kills.in_fresh_process(__file__, "killed_at_every_step", folder, tmp_path)) > 20


@pytest.mark.study
@pytest.mark.slow
def test_a_reader_sees_the_old_data_set_or_none_or_the_new_one_while_it_is_replaced(tmp_path):
    folder = write_folder(tmp_path / "source", images=4)
    assert int(kills.in_fresh_process(__file__, "killed_while_replacing", folder, tmp_path)) > 20


@pytest.mark.study
@pytest.mark.slow
def test_runs_with_two_workers_killed_at_random_moments_all_end_in_the_same_bytes(tmp_path):
    folder = write_organs(tmp_path / "source", images=32)
    assert int(kills.in_fresh_process(__file__, "killed_at_random_moments", folder, tmp_path)) >= 7


def test_a_catalog_rebuilt_from_a_half_finished_commit_never_shows_half_a_data_set(tmp_path):
    folder = write_organs(tmp_path / "source", images=2)
    assert int(kills.in_fresh_process(__file__, "rebuilt_after_each_death", folder, tmp_path)) > 4


def test_a_killed_rebuild_hides_nothing_and_is_finished_by_the_next(tmp_path):
    folder = write_organs(tmp_path / "source", images=2)
    assert int(kills.in_fresh_process(__file__, "rebuild_killed", folder, tmp_path)) > 2


@pytest.mark.slow
def test_the_workers_of_a_killed_run_end_with_it_and_the_rerun_at_once_gives_the_right_bytes(tmp_path):
    folder = write_organs(tmp_path / "source", images=200)
    ingest(load_card(tmp_path / "mine.yaml"), folder, Lake.create(tmp_path / "good"))
    words = ["ingest", "--card", str(tmp_path / "mine.yaml"), "--from", str(folder), "--lake", str(tmp_path / "lake")]
    killed = subprocess.Popen([sys.executable, "-m", "usdata.cli", *words, "--workers", "2"], start_new_session=True)
    while not list((tmp_path / "lake/.staging").glob("mine/*/.*.tmp")):
        assert killed.poll() is None, "it ended before a worker was seen at work"
        time.sleep(0.001)
    os.kill(killed.pid, signal.SIGKILL)  # the parent alone
    killed.wait()
    ingest(load_card(tmp_path / "mine.yaml"), folder, Lake(tmp_path / "lake"))
    assert tree_digest(tmp_path / "lake") == tree_digest(tmp_path / "good")
    assert not kills.living(killed.pid)


def run(folder: Path, lake: Path):
    return ingest(load_card(folder.parent / "mine.yaml"), folder, Lake.create(lake))


@pytest.mark.parametrize("pause", ["the rerun", "the one left over"])
def test_a_worker_that_outlives_its_run_can_not_disturb_the_next(tmp_path, monkeypatch, pause):
    """The worse cases of two builders of one shard: each is stopped in the middle of it until the other is through."""
    folder = write_folder(tmp_path / "source")
    run(folder, tmp_path / "good")
    lake = Lake.create(tmp_path / "lake")
    job = prepare(load_card(folder.parent / "mine.yaml"), folder, lake).jobs[0]  # of a run that is killed now
    real, others = build.ShardWriter.close, [lambda: build.build_shard(job), lambda: run(folder, lake.root)]
    first, second = reversed(others) if pause == "the rerun" else others
    failures = []

    def close(self):
        monkeypatch.setattr(build.ShardWriter, "close", real)
        try:
            second()
        except (LakeError, OSError) as error:
            failures.append(error)
        real(self)

    monkeypatch.setattr(build.ShardWriter, "close", close)
    try:
        first()
    except (LakeError, OSError) as error:
        failures.append(error)
    assert len(failures) == 1, "the worker left over fails, and the rerun does not"
    assert tree_digest(lake.root) == tree_digest(tmp_path / "good")
    assert verify(lake) == []


def test_two_processes_given_one_job_build_it_one_after_the_other(tmp_path):
    """A cluster that takes a worker for lost gives its job to another."""
    folder = write_folder(tmp_path / "source")
    assert int(kills.in_fresh_process(__file__, "given_three_times", folder, tmp_path)) == 1


def test_a_damaged_report_in_the_staging_folder_is_built_anew(tmp_path):
    folder = write_folder(tmp_path / "source")
    lake = Lake.create(tmp_path / "lake")
    plan = prepare(load_card(folder.parent / "mine.yaml"), folder, lake)
    build.build_shard(plan.jobs[0])
    (plan.staging / f"{plan.jobs[0].name}.json").write_text('{"name": "of another version"}')
    run(folder, lake.root)
    run(folder, tmp_path / "good")
    assert tree_digest(lake.root) == tree_digest(tmp_path / "good")
