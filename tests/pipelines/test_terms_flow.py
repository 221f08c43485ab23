"""The flow `ingest` keeps to the switch of data sets with terms of use, as the verb does."""

import pytest
from fakes.folders import write_image

from ingest.card import Card
from ingest.fetch_terms import read_log
from usdata.errors import CardError


@pytest.fixture
def strict(monkeypatch, flows):
    content = {"name": "strict", "title": "Strict", "citation": "none", "licence": "custom", "commercial_use": "no"}
    content |= {"redistribution": "no", "deid_profile": "public", "terms": "Research only."}
    card = Card.model_validate(content | {"defaults": {"organ": "breast"}, "layout": {"image": r".*\.png"}})
    monkeypatch.setattr(flows, "get_card", lambda name: card)


def test_the_flow_refuses_a_set_with_terms_until_they_are_accepted_by_name(flows, strict, tmp_path):
    write_image(tmp_path / "photos/1.png", seed=1, side=64)
    files = {"source": tmp_path / "photos", "lake": tmp_path / "lake", "workers": 1}
    state = flows.ingest("strict", **files, return_state=True)
    assert state.is_failed() and "Research only." in state.message and not (tmp_path / "lake").exists()
    assert "prefect deployment run ingest/strict -p accept_terms=strict --watch" in state.message
    with pytest.raises(CardError, match="Did you mean 'strict'"):
        flows.ingest("strict", **files, accept_terms="strikt")
    assert flows.ingest("strict", **files, accept_terms="strict")["samples"] == 1
    [event] = read_log(tmp_path / "lake")
    assert event["by"] == "accept_terms" and event["dataset"] == "strict"
