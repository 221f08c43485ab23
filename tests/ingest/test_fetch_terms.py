"""Data sets with terms of use: off until accepted by name, and what was accepted is written down."""

import json
from pathlib import Path

import pytest
import yaml
from fakes.folders import write_image
from typer.testing import CliRunner

from ingest.card import Card, get_card
from ingest.cli import app
from ingest.fetch import fetch
from ingest.fetch_terms import LOG, VARIABLE, accept_terms, accepted_before, check_names, read_log, terms_digest
from ingest.run import ingest as run
from usdata.errors import CardError
from usdata.lake import Lake

TERMS = "For research only.\nNo passing on."
CONTENT = {
    "name": "strict",
    "title": "Strict",
    "citation": "none",
    "licence": "custom",
    "commercial_use": "no",
    "redistribution": "no",
    "deid_profile": "public",
    "terms": TERMS,
    "sources": [{"page": "https://example.org"}],
    "defaults": {"organ": "breast"},
    "layout": {"image": r".*\.png"},
}
STRICT = Card.model_validate(CONTENT)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a card with terms, and one image for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(CONTENT))
    write_image(tmp_path / "photos/1.png", seed=1, side=64)
    return tmp_path


def ingest(*more: str):
    words = ["ingest", "--card", "my.yaml", "--from", "photos", "--lake", "my lake", "--workers", "1", *more]
    return CliRunner().invoke(app, words)


def test_an_ingest_is_refused_with_the_terms_and_the_exact_command(home):
    done = ingest()
    assert isinstance(done.exception, CardError) and not (home / "my lake").exists()
    assert "    For research only.\n    No passing on." in done.exception.message
    command = "usdata ingest --card my.yaml --from photos --lake 'my lake' --accept-terms strict"
    assert command in done.exception.hint and f"{VARIABLE}=strict" in done.exception.hint
    assert isinstance(ingest("--dry-run").exception, CardError)


def test_what_was_accepted_is_told_and_written_into_the_lakes_log_once(home):
    done = ingest("--accept-terms", "strict")
    assert done.exit_code == 0, done.exception
    assert "strict: its terms are accepted (--accept-terms); written into" in done.stderr
    lake = home / "my lake"
    [event] = read_log(lake)
    assert event["dataset"] == "strict" and event["terms"] == TERMS and event["by"] == "--accept-terms"
    assert event["sha256"] == terms_digest(TERMS) and event["time"].endswith("Z")
    assert ingest().exit_code == 0  # accepted for this lake
    assert ingest("--accept-terms", "strict").exit_code == 0
    assert len(read_log(lake)) == 1


def test_other_terms_are_asked_for_anew(home):
    assert ingest("--accept-terms", "strict").exit_code == 0
    (home / "my.yaml").write_text(yaml.safe_dump(CONTENT | {"terms": "Pay first."}))
    assert isinstance(ingest().exception, CardError)
    (home / "my.yaml").write_text(yaml.safe_dump(CONTENT | {"terms": " ".join(TERMS.split())}))  # only wrapped anew
    assert ingest().exit_code == 0


def test_the_environment_accepts_the_sets_it_names_and_is_named_in_the_log(home, monkeypatch):
    monkeypatch.setenv(VARIABLE, "another, stricter")
    assert isinstance(ingest().exception, CardError)
    monkeypatch.setenv(VARIABLE, "another, strict")
    assert ingest().exit_code == 0
    assert read_log(home / "my lake")[0]["by"] == VARIABLE


def test_a_name_that_the_command_is_not_about_is_a_mistake(home):
    done = ingest("--accept-terms", "strikt")
    assert isinstance(done.exception, CardError) and "Did you mean 'strict'?" in done.exception.message
    with pytest.raises(CardError, match="not about such a data set"):
        check_names(["all"], ["busi"])


def test_a_fetch_is_refused_too_and_its_record_shows_what_was_accepted(home):
    with pytest.raises(CardError, match="No passing on") as error:
        fetch(STRICT, Path("sources"))
    assert "usdata fetch strict --accept-terms strict" in error.value.hint
    assert not (home / "sources/strict/fetch.json").exists()
    said = []
    fetch(STRICT, Path("sources"), accept_terms=["strict"], say=said.append)
    record = json.loads((home / "sources/strict/fetch.json").read_text())
    assert record["terms"] == terms_digest(TERMS) and record["terms_by"] == "--accept-terms"
    assert "its terms are accepted" in said[0]
    assert fetch(STRICT, Path("sources")).instructions  # not asked again
    with pytest.raises(CardError, match="has terms of use"):  # the lake is another matter
        accept_terms(STRICT, command="", before=accepted_before(home, "strict"))


def test_a_card_without_terms_asks_for_nothing(home):
    free = Card.model_validate({key: value for key, value in CONTENT.items() if key != "terms"})
    assert accept_terms(free, command="") is None


def test_a_log_cut_by_a_power_failure_keeps_its_other_lines(home):
    lake = Lake.create(home / "my lake")
    (lake.root / LOG).write_text('{"event": "terms accepted", "dataset": "a", "sha256": "1"}\n{"event": "te')
    assert ingest("--accept-terms", "strict").exit_code == 0
    assert [event["dataset"] for event in read_log(lake.root)] == ["a", "strict"]


def test_a_stage_of_dvc_takes_the_word_of_params(home, monkeypatch):
    from pipelines.stages import ingest as stage

    params = {"lake": "lake", "datasets": {"strict": {"card": "my.yaml", "source": "photos"}}}
    params["pretrain"] = {"recipe": "d2mae", "out": "run"}
    Lake.create("lake")
    (home / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(CardError, match="has terms of use"):
        stage("strict")
    params["datasets"]["strict"]["accept_terms"] = True
    (home / "params.yaml").write_text(yaml.safe_dump(params))
    stage("strict")
    assert read_log(home / "lake")[0]["dataset"] == "strict"


def test_a_copy_of_a_registered_card_without_its_terms_is_refused_under_its_name(tmp_path):
    own = get_card("nerve_seg")
    assert own.terms
    copy = own.model_copy(update={"terms": None})
    (tmp_path / "s").mkdir()
    with pytest.raises(CardError, match="name of a registered data set"):
        run(copy, tmp_path / "s", Lake.create(tmp_path / "lake"))
