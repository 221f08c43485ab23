"""`dvc repro` in a fresh clone: makes shards, weights and scores once, then only what changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fakes.folders import write_folder, write_image

from pipelines.stages import Params, interrupted, read_params
from usdata.errors import ConfigError
from usdata.lake import Lake

PROJECT = Path(__file__).resolve().parents[2]
FILES = ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
PACKAGES = ("usdata", "ingest", "training", "pipelines")


def clone(to: Path) -> Path:
    """The files of the project that DVC's stages need."""
    for name in FILES:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, to / name)
    for name in PACKAGES:
        shutil.copytree(PROJECT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    return to


def call(folder: Path, *command: str) -> str:
    """What a command says, run in `folder` as in a user's shell with the environment activated."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "PYTHON"))}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    env |= {f"DVC_{kind}_DIR": str(folder.parent / "dvc") for kind in ("GLOBAL_CONFIG", "SYSTEM_CONFIG", "SITE_CACHE")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def change(folder: Path, **values: object) -> None:
    """Set keys of params.yaml, given as section__key."""
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for name, value in values.items():
        *parts, last = name.split("__")
        place = params
        for part in parts:
            place = place[part]
        place[last] = value
    path.write_text(yaml.safe_dump(params))


def shards(folder: Path, dataset: str) -> dict[str, int]:
    """Shard -> inode: a shard that is written anew has another one."""
    return {path.name: path.stat().st_ino for path in (folder / "lake" / "shards" / dataset).iterdir()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a small phantom and a user's own folder of images, after its first `dvc repro`."""
    folder = clone(tmp_path_factory.mktemp("dvc") / "project")
    call(folder, "git", "init", "--quiet")
    write_folder(folder / "mine")
    change(
        folder,
        datasets__phantom__images=40,
        datasets__mine={"card": "mine.yaml", "source": "mine"},
        pretrain__sets=["steps=2", "batch_size=8"],
        downstream__cohort="organ in ('breast', 'thyroid')",
        downstream__split=False,  # of so few images none may be for the test
    )
    call(folder, "dvc", "repro")
    return folder


@pytest.mark.slow
def test_repro_makes_shards_weights_and_scores(project):
    counts = Lake(project / "lake").sql("select dataset, count(*) as n from samples group by dataset order by dataset")
    assert counts.to_pylist() == [{"dataset": "mine", "n": 8}, {"dataset": "phantom", "n": 40}]
    assert (project / "runs" / "d2mae" / "encoder.safetensors").is_file()
    scores = json.loads((project / "scores.json").read_text())
    assert 0 <= scores["trained"]["linear"]["accuracy"] <= 1 and "random" in scores
    assert "linear.accuracy" in call(project, "dvc", "metrics", "show")


@pytest.mark.slow
def test_a_second_repro_does_nothing(project):
    before = shards(project, "phantom") | shards(project, "mine")
    said = call(project, "dvc", "repro")
    assert "Data and pipelines are up to date." in said and "Running stage" not in said
    assert shards(project, "phantom") | shards(project, "mine") == before


@pytest.mark.slow
def test_a_changed_parameter_of_one_data_set_rebuilds_only_its_shards(project):
    mine, phantom = shards(project, "mine"), shards(project, "phantom")
    change(project, datasets__phantom__images=44)
    said = call(project, "dvc", "repro", "ingest")
    assert "Running stage 'ingest@phantom'" in said and "Stage 'ingest@mine' didn't change" in said
    assert shards(project, "mine") == mine and shards(project, "phantom") != phantom
    assert Lake(project / "lake").sql("select count(*) as n from samples").to_pylist() == [{"n": 52}]


@pytest.mark.slow
def test_a_changed_file_of_one_data_set_rebuilds_only_its_shards(project):
    phantom = shards(project, "phantom")
    write_image(project / "mine" / "images" / "benign" / "n000.png", seed=99)
    said = call(project, "dvc", "repro", "ingest")
    assert "Running stage 'ingest@mine'" in said and "Stage 'ingest@phantom' didn't change" in said
    assert shards(project, "phantom") == phantom


@pytest.mark.slow
def test_git_sees_the_lock_and_the_scores_but_no_data(project):
    seen = call(project, "git", "status", "--short", "--untracked-files=all")
    assert "dvc.lock" in seen and "scores.json" in seen and "lake/" not in seen and "runs/" not in seen


def test_without_git_one_command_makes_dvc_work(tmp_path):
    folder = clone(tmp_path / "project")
    assert "dvc config --local core.no_scm true" in (folder / "dvc.yaml").read_text()
    call(folder, "dvc", "config", "--local", "core.no_scm", "true")
    assert "lake" in call(folder, "dvc", "stage", "list")


# --- params.yaml ------------------------------------------------------------------------------------------------------


def test_the_projects_params_are_read():
    params = read_params(PROJECT / "params.yaml")
    assert list(params.datasets) == ["phantom"] and params.pretrain.recipe == "d2mae"


def test_the_commented_examples_in_params_are_right_when_uncommented(tmp_path):
    text = (PROJECT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("\n  # ", "\n  "))
    assert list(read_params(tmp_path / "params.yaml").datasets) == ["phantom", "busi", "mine"]


def test_an_unknown_key_names_the_nearest(tmp_path):
    text = (PROJECT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("preset:", "presett:"))
    with pytest.raises(ConfigError, match=r"pretrain\.presett: unknown key\. Did you mean 'preset'"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "content, message", [("a: [", "is not YAML"), ("lake: l", "Field required"), ("- 1", "dictionary")]
)
def test_params_that_are_no_params_are_told(tmp_path, content, message):
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_params(tmp_path / "params.yaml")


def test_missing_params_are_told(tmp_path):
    with pytest.raises(ConfigError, match="Can't read"):
        read_params(tmp_path / "params.yaml")


def test_a_card_under_another_name_is_refused(tmp_path):
    folder = tmp_path
    content = Params.model_validate(yaml.safe_load((PROJECT / "params.yaml").read_text())).model_dump(mode="json")
    content["datasets"]["ghost"] = content["datasets"]["phantom"] | {"card": str(PROJECT / "ingest/cards/phantom.yaml")}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "pipelines.stages", "ingest", "ghost"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and "is of 'phantom', not 'ghost'" in done.stderr


def test_only_the_beginning_of_the_same_run_is_gone_on_with(phantom_lake, tmp_path):
    from training.config import resolve
    from training.train import pretrain

    cohort, out = phantom_lake.cohort("all"), tmp_path / "run"
    cfg = resolve("d2mae", "micro", None, ["steps=3", "batch_size=8"])
    assert not interrupted(out, cfg, cohort)  # nothing there
    pretrain(cohort, cfg, out, max_hours=1e-9)
    assert interrupted(out, cfg, cohort)
    assert not interrupted(out, resolve("d2mae", "micro", None, ["steps=4", "batch_size=8"]), cohort)
    assert not interrupted(out, cfg, phantom_lake.cohort("organ = 'breast'"))
    pretrain(cohort, cfg, out, resume=True)
    assert not interrupted(out, cfg, cohort)  # finished
