"""Which deployments there are, where they look for files, and that prefect.yaml keeps in step with the cards."""

from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from ingest.card import get_card, registered
from pipelines.deployments import find_source, prefect_yaml, specs

PROJECT = Path(__file__).resolve().parents[2]


def test_every_card_has_a_deployment_and_private_data_one_more():
    names = [spec.name for spec in specs("lake") if spec.flow == "ingest"]
    assert names == [*registered(), "private"] and "phantom" in names


def test_prefect_yaml_is_the_one_that_the_cards_make():
    assert (PROJECT / "prefect.yaml").read_text() == prefect_yaml(), "python -m pipelines.deployments > prefect.yaml"


def test_prefect_yaml_names_flows_and_parameters_that_exist():
    entries = yaml.safe_load(prefect_yaml())["deployments"]
    for entry, spec in zip(entries, specs("lake"), strict=True):
        flow = resolve_name(entry["entrypoint"])
        assert (flow.name, entry["name"]) == (spec.flow, spec.name)
        assert set(entry["parameters"]) <= set(flow.parameters.properties)


def test_a_worker_does_not_write_the_lake_into_its_temporary_folder():
    (step,) = yaml.safe_load(prefect_yaml())["pull"]
    directory = step["prefect.deployments.steps.set_working_directory"]["directory"]
    assert directory == "{{ $PWD }}"  # a relative one would start in the folder that the worker removes after the run


@pytest.mark.parametrize(
    "dataset, place",
    [("usgra_seg", "usgra_seg"), ("usgra_seg", "usgra-seg"), ("hc18", "hc18.tar.gz"), ("busi", "busi.zip")],
)
def test_files_are_found_in_a_folder_or_archive_of_the_data_sets_name(tmp_path, dataset, place):
    (tmp_path / place).touch()
    assert find_source(get_card(dataset), tmp_path) == tmp_path / place
    spec = next(s for s in specs("lake", tmp_path) if s.name == dataset)
    assert spec.parameters["source"] == str(tmp_path / place)


def test_files_are_found_in_the_archive_as_it_is_published(tmp_path):
    (tmp_path / "Dataset_BUSI.zip").touch()
    assert find_source(get_card("busi"), tmp_path) == tmp_path / "Dataset_BUSI.zip"


def test_a_data_set_that_is_not_there_gets_no_source(tmp_path):
    (tmp_path / "busi2").mkdir()
    assert find_source(get_card("busi"), tmp_path) is None
    assert find_source(get_card("busi"), None) is None


def test_a_generated_data_set_needs_no_source(tmp_path):
    (tmp_path / "phantom").mkdir()
    assert find_source(get_card("phantom"), tmp_path) is None
