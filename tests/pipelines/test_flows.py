"""The flows do what the plain functions do, and say what went wrong; a real local Prefect API stands behind them."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from fakes.folders import tree_digest

from ingest.card import get_card
from ingest.plan import ShardJob
from ingest.run import ingest as plain_ingest
from ingest.run import only_ingest, open_jobs
from ingest.run import prepare as plain_prepare
from ingest.workers import WorkerDied
from pipelines.workers import Workers
from usdata.errors import CardError, ConfigError, DataError, LakeError
from usdata.lake import Lake

IMAGES = 24


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The lake that the plain function makes of a small phantom."""
    lake = Lake.create(tmp_path_factory.mktemp("plain") / "lake")
    plain_ingest(get_card("phantom"), None, lake, count=IMAGES)
    return lake


def jobs_of(lake: Lake) -> list[ShardJob]:
    return open_jobs(plain_prepare(get_card("phantom"), None, lake, count=IMAGES))


# --- ingest -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_the_flow_writes_the_same_bytes_as_the_plain_function(flows, plain, tmp_path, workers):
    record = flows.ingest("phantom", lake=tmp_path / "lake", workers=workers, images=IMAGES)
    assert record["samples"] == IMAGES and record["shards_built"] == 8
    assert tree_digest(tmp_path / "lake") == tree_digest(plain.root)


def test_a_second_run_builds_nothing(flows, plain):
    before = tree_digest(plain.root)
    record = flows.ingest("phantom", lake=plain.root, workers=1, images=IMAGES)
    assert (record["shards_built"], record["shards_reused"], record["changed"]) == (0, 8, False)
    assert tree_digest(plain.root) == before


def test_tasks_are_named_after_their_shards_and_the_report_is_an_artifact(flows, tmp_path):
    from prefect.artifacts import Artifact
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    state = flows.ingest("phantom", lake=tmp_path / "lake", workers=1, images=9, return_state=True)
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    shards = {path.stem for path in (tmp_path / "lake" / "shards" / "phantom").iterdir()}
    assert len(shards) > 3 and shards < {run.name for run in runs}
    page = Artifact.get("ingest-phantom")
    assert page is not None and page.flow_run_id == run_id
    assert "| samples | 9 |" in page.data and "| breast |" in page.data


def test_prefect_stores_no_results(flows, tmp_path):
    from prefect.settings import PREFECT_HOME

    flows.ingest("phantom", lake=tmp_path / "lake", workers=1, images=3)
    flows.ingest("bussi", lake=tmp_path / "lake", return_state=True)
    assert not list((Path(PREFECT_HOME.value()) / "storage").glob("*"))


def test_an_unknown_data_set_fails_the_run_with_the_nearest_name(flows, tmp_path):
    state = flows.ingest("bussi", lake=tmp_path / "lake", return_state=True)
    assert state.is_failed() and "Did you mean 'busi'?" in state.message
    assert not (tmp_path / "lake").exists()
    with pytest.raises(CardError, match="Did you mean 'busi'"):
        flows.ingest("bussi", lake=tmp_path / "lake")


def test_a_data_set_without_its_files_says_how_to_give_them(flows, tmp_path):
    state = flows.ingest("busi", lake=tmp_path / "lake", return_state=True)
    assert state.is_failed() and "Where are the files of 'busi'?" in state.message
    assert "prefect deployment run ingest/busi -p source=DIR" in state.message


def test_a_folder_that_is_not_there_fails_the_run(flows, tmp_path):
    with pytest.raises(DataError, match="There is no"):
        flows.ingest("busi", source=tmp_path / "nowhere", lake=tmp_path / "lake")


def test_a_private_card_is_refused_before_a_file_is_opened(flows, tmp_path, monkeypatch):
    card = get_card("busi").model_copy(update={"deid_profile": "private"})
    monkeypatch.setattr(flows, "get_card", lambda name: card)
    (tmp_path / "files").mkdir()
    state = flows.ingest("busi", source=tmp_path / "files", lake=tmp_path / "lake", return_state=True)
    assert state.is_failed() and "need a key" in state.message
    assert Lake(tmp_path / "lake").datasets() == []


def test_a_number_of_images_for_a_data_set_of_files_is_refused(flows, tmp_path):
    with pytest.raises(CardError, match="is for generated data sets"):
        flows.ingest("busi", lake=tmp_path / "lake", images=5)


def test_a_wrong_parameter_is_a_failed_task_with_its_own_message(flows, tmp_path):
    state = flows.ingest("phantom", lake=tmp_path / "lake", images=-3, return_state=True)
    assert state.is_failed() and "at least 1 image, not -3" in state.message


def test_two_ingests_of_one_data_set_exclude_each_other(flows, tmp_path):
    lake = Lake.create(tmp_path / "lake")
    with only_ingest(lake, "phantom"), pytest.raises(LakeError, match="Another process"):
        flows.ingest("phantom", lake=lake.root, images=3)


def test_messages_hold_no_square_brackets_which_watch_would_swallow(flows):
    error = CardError("Broken [badly].", dataset="busi", step="list", hint="pip install 'x[y]'")
    assert flows._words(error) == "Broken (badly). (dataset busi, step list)\npip install 'x(y)'"


# --- workers ----------------------------------------------------------------------------------------------------------


class Deadly(SimpleNamespace):
    """A job that ends the process which unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


def test_a_worker_that_dies_is_told_and_replaced(tmp_path):
    job = jobs_of(Lake.create(tmp_path / "lake"))[0]
    with Workers(2) as workers:
        with pytest.raises(WorkerDied, match="died"):
            workers.build(Deadly(card=get_card("phantom"), name="phantom-x"))  # type: ignore[arg-type]
        assert workers.build(job).samples == len(job.sources)


def test_workers_end_with_the_process_that_started_them():
    code = """if __name__ == "__main__":
        import time
        from pipelines.workers import Workers
        pool = Workers(2)._open()
        pool.submit(abs, 1).result()
        pool.submit(time.sleep, 60), pool.submit(time.sleep, 60)
        print(*pool._processes, flush=True)
        time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        workers = parent.stdout.readline().split()
        assert workers and all(map(alive, workers))
        parent.kill()
    end = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(pid: str) -> bool:
    """Whether a process is there and more than an entry that nobody has read yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.filterwarnings("ignore:Logger .* attempted to send logs")  # the task runs outside of a flow here
@pytest.mark.parametrize("error, attempts", [(WorkerDied("It died."), 3), (LakeError("The disk is full."), 1)])
def test_only_the_death_of_a_worker_is_retried(flows, tmp_path, error, attempts):
    job, calls = jobs_of(Lake.create(tmp_path / "lake"))[0], []

    def fail(job: ShardJob) -> None:
        calls.append(job)
        raise error

    state = flows.build.with_options(retry_delay_seconds=0)(
        flows.Sealed(job), SimpleNamespace(build=fail), return_state=True
    )
    assert state.is_failed() and error.message in state.message
    assert len(calls) == attempts


# --- Dask -------------------------------------------------------------------------------------------------------------

HAS_DASK = importlib.util.find_spec("prefect_dask") is not None


@pytest.mark.skipif(HAS_DASK, reason="prefect-dask is installed")
def test_dask_without_its_package_is_a_clear_error(flows, tmp_path):
    with pytest.raises(ConfigError, match="pip install prefect-dask"):
        flows.ingest("phantom", lake=tmp_path / "lake", images=3, runner="dask")


@pytest.mark.skipif(not HAS_DASK, reason="prefect-dask is not installed")
def test_dask_writes_the_same_bytes(flows, plain, tmp_path):
    flows.ingest("phantom", lake=tmp_path / "lake", workers=2, images=IMAGES, runner="dask")
    assert tree_digest(tmp_path / "lake") == tree_digest(plain.root)


def test_an_address_without_dask_is_refused(flows, tmp_path):
    with pytest.raises(ConfigError, match="runner=dask"):
        flows.ingest("phantom", lake=tmp_path / "lake", images=3, address="tcp://localhost:8786")


# --- pretrain and downstream ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pretrain_and_downstream_leave_weights_and_scores(flows: ModuleType, phantom_lake: Lake, tmp_path: Path):
    out = tmp_path / "run"
    result = flows.pretrain(lake=phantom_lake.root, out=out, sets=["steps=2", "batch_size=8"])
    assert result["steps"] == 2 and (out / "encoder.safetensors").is_file()
    cohort = "organ in ('breast', 'thyroid')"
    scored = flows.downstream(out, cohort=cohort, lake=phantom_lake.root)
    assert scored["label"] == "organ" and (out / "scores.json").is_file()


def test_a_wrong_setting_fails_the_pretraining_with_the_nearest_key(flows, phantom_lake, tmp_path):
    state = flows.pretrain(lake=phantom_lake.root, out=tmp_path / "run", sets=["step=2"], return_state=True)
    assert state.is_failed() and "Did you mean 'steps'" in state.message
