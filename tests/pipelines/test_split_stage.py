"""The split as a stage of DVC and in the flow `curate`; nothing moves when it runs again."""

import pytest
import yaml
from fakes.split_rows import write_rows

from ingest.card import get_card
from ingest.run import ingest
from pipelines import stages
from usdata.errors import ConfigError, UsdataError
from usdata.lake import Lake


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml and a lake of forty patients, in which one stands in two published splits."""
    monkeypatch.chdir(tmp_path)
    rows = [{"sample_id": f"aa-{i:04d}", "dataset": "aa", "patient": f"aa-{i // 2}"} for i in range(80)]
    rows[0]["official_split"], rows[1]["official_split"] = "train", "test"
    write_rows(Lake.create("lake"), rows)
    return tmp_path


def params(folder, **split):
    content = {"lake": "lake", "datasets": {}, "pretrain": {"recipe": "d2mae", "out": "runs/x"}, "split": split}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def words(folder):
    return Lake(folder / "lake").sql("select sample_id, split from samples order by 1").to_pylist()


def test_the_stage_splits_by_the_settings_of_params_yaml(project):
    params(project, ratios="train=0.5,test=0.5", leaks="drop")
    stages.split()
    first = words(project)
    assert {row["split"] for row in first} == {"train", "test", "left_out"}
    assert first[:2] == [{"sample_id": "aa-0000", "split": "left_out"}, {"sample_id": "aa-0001", "split": "test"}]
    params(project, ratios="train=0.5,test=0.5")
    stages.split()  # what was left out leaks no more
    assert words(project) == first


def test_a_leak_stops_the_stage_unless_params_yaml_says_what_to_do(project):
    params(project)
    with pytest.raises(UsdataError, match="1 groups stand in two splits"):
        stages.split()


def test_other_settings_need_the_word_anew(project):
    params(project, leaks="drop")
    stages.split()
    params(project, leaks="drop", folds=4)
    with pytest.raises(ConfigError, match="has a split already"):
        stages.split()
    params(project, leaks="drop", folds=4, anew=True)
    stages.split()
    assert {row["split"] for row in words(project)} == {*(f"fold{i}" for i in range(4)), "test"}


def test_an_unknown_key_of_the_split_names_the_nearest(project):
    params(project, ratio="train=0.5,test=0.5")
    with pytest.raises(ConfigError, match="Did you mean 'ratios'"):
        stages.split()


def test_the_flow_splits_after_it_looked_for_copies(flows, tmp_path):
    lake = Lake.create(tmp_path / "lake")
    ingest(get_card("phantom"), None, lake, count=16)
    record = flows.curate(lake=lake.root, workers=1)
    assert record["split"]["images"] == 16 and record["split"]["leaks"] == 0
    assert words(tmp_path)[0]["split"] in ("train", "val", "test")
