"""Rights: what a licence does not allow is left out of a cohort or refused in an export, with the list."""

import json
from pathlib import Path

import pytest
from fakes.lakes import add_dataset
from typer.testing import CliRunner

from usdata.cli import command_line
from usdata.errors import ConfigError, QueryError
from usdata.export import write_table
from usdata.export_coco import write_coco
from usdata.lake import Lake
from usdata.report import write_report
from usdata.rights import PURPOSES, check_purpose, only_for, rights_of

TERMS = {  # data set -> licence, commercial use, redistribution
    "open": ("CC-BY-4.0", "yes", "attribution"),
    "campus": ("CC-BY-NC-SA-4.0", "no", "share_alike"),
    "closed": ("custom", "no", "no"),
    "silent": ("unstated", "yes", "yes"),  # nobody knows its licence: the other words can't be known either
    "null": (None, None, None),
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake.create(tmp_path_factory.mktemp("rights") / "lake")
    for name, words in TERMS.items():
        row = dict(zip(("licence", "commercial_use", "redistribution"), words, strict=True))
        add_dataset(lake, name, [{"organ": "breast", "organ_group": "breast"} | row] * 2, [None] * 2)
    return lake


def datasets(lake: Lake, sql: str) -> list[str]:
    found = lake.sql(f"select distinct dataset from samples where {sql} order by 1").to_pylist()
    return [row["dataset"] for row in found]


@pytest.mark.parametrize(
    ("purpose", "allowed"),
    [
        ("research", ["campus", "closed", "null", "open", "silent"]),
        ("commercial", ["open"]),
        ("redistribution", ["campus", "open"]),
    ],
)
def test_what_is_not_stated_is_allowed_for_research_only(lake, purpose, allowed):
    assert datasets(lake, PURPOSES[purpose]) == allowed
    assert [one.dataset for one in rights_of(lake.cohort("all")) if one.allows(purpose)] == allowed


def test_a_condition_keeps_its_meaning_when_a_purpose_is_added(lake):
    assert datasets(lake, only_for("dataset = 'campus' or dataset = 'open' -- mine", "commercial")) == ["open"]
    assert only_for("all", "research") == "all"


def test_a_cohort_saved_for_a_purpose_leaves_the_others_out_and_says_which(lake):
    run = CliRunner().invoke(
        command_line(), ["cohort", "save", "free", "all", "--for", "redistribution", "--lake", str(lake.root)]
    )
    assert run.exit_code == 0, run.output
    for name in ("closed", "silent", "null"):
        assert f"left out, no redistribution allowed: {name}: 2 samples" in run.output
    assert lake.cohort("free").rows == 4
    assert json.loads((lake.root / "cohorts/free.json").read_text())["rows"] == 4


@pytest.mark.parametrize("write", [write_table, write_coco])
def test_an_export_to_be_passed_on_refuses_what_its_licence_forbids_with_the_list(lake, tmp_path: Path, write):
    out = tmp_path / ("rows.csv" if write is write_table else "coco.json")
    with pytest.raises(ConfigError, match="6 of 10 samples may not be used for passing on") as refused:
        write(lake.cohort("all"), out, purpose="redistribution")
    assert all(name in refused.value.message for name in ("closed", "silent", "null"))
    assert "campus" not in refused.value.message and not out.exists()
    assert "usdata cohort save" in (refused.value.hint or "")
    assert write(lake.cohort("dataset in ('open', 'campus')"), out, purpose="redistribution").samples == 4


def test_a_report_to_be_passed_on_refuses_the_same(lake, tmp_path: Path):
    with pytest.raises(ConfigError, match="closed"):
        write_report(lake, tmp_path / "page.html", purpose="commercial")
    assert write_report(lake, tmp_path / "page.html", "dataset = 'open'", purpose="commercial").exists()


def test_a_report_to_be_passed_on_refuses_the_pictures_of_a_run_on_other_images(lake, tmp_path: Path):
    run, whole = tmp_path / "run", lake.cohort("all")
    run.mkdir()
    facts = {"config": {"recipe": "d2mae", "preset": "micro"}, "cohort_sql": "all", "cohort_hash": whole.hash}
    (run / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="closed"):
        write_report(lake, tmp_path / "page.html", "dataset = 'open'", run, purpose="redistribution")
    (run / "config.json").write_text(json.dumps(facts | {"cohort_hash": "0" * 32}))
    with pytest.raises(ConfigError, match="nobody can tell"):
        write_report(lake, tmp_path / "page.html", "dataset = 'open'", run, purpose="redistribution")
    free = lake.cohort("dataset = 'open'")
    (run / "config.json").write_text(json.dumps(facts | {"cohort_sql": free.sql, "cohort_hash": free.hash}))
    assert write_report(lake, tmp_path / "page.html", "dataset = 'open'", run, purpose="redistribution").exists()


def test_rights_are_those_of_the_rows_that_are_exported_not_of_what_the_condition_gives_next(lake):
    with pytest.raises(QueryError, match="other samples each time"):
        for _ in range(5):  # by chance it may select the same ten twice
            rights_of(lake.cohort("random() < 0.5"))


@pytest.mark.parametrize("word", ["", " ", "None", " Unstated ", "N/A"])
def test_a_licence_that_says_nothing_allows_nothing(tmp_path: Path, word):
    lake = Lake.create(tmp_path / "lake")
    terms = {"licence": word, "commercial_use": "yes", "redistribution": "yes"}
    add_dataset(lake, "vague", [{"organ": "breast", "organ_group": "breast"} | terms], [None])
    for purpose in ("commercial", "redistribution"):
        assert datasets(lake, PURPOSES[purpose]) == []
        with pytest.raises(ConfigError, match="vague"):
            check_purpose(lake.cohort("all"), purpose)


def test_research_refuses_nothing_and_lists_all(lake):
    assert [one.dataset for one in check_purpose(lake.cohort("all"), "research")] == sorted(TERMS)
