"""DICOM that its owner published goes the same way, but for identity: no key, and its own names."""

from pathlib import Path

import pytest
from fakes.folders import tree_digest
from fakes.private_folder import write_screen
from fakes.scans import draw_screen

from ingest.card import Card, load_card
from ingest.run import ingest
from usdata.errors import CardError
from usdata.lake import Lake

CARD = """
name: mine
title: Published cines
citation: none
licence: CC0-1.0
commercial_use: "yes"
redistribution: "yes"
deid_profile: public
dicom: published
defaults: {organ: thyroid}
layout:
  image: '(?P<patient>p\\d+)/(?P<name>[^/]+)\\.(dcm|png)'
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    write_screen(root / "p1/still.dcm", draw_screen("linear", 1, (300, 400), colour=False), 1)
    write_screen(root / "p2/cine.dcm", draw_screen("curved", 2, (300, 400), frames=3, colour=False), 2, FrameTime="50")
    return root


def card_of(tmp_path: Path, text: str = CARD) -> Card:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_card(path)


def test_published_dicom_keeps_its_paths_and_patients_and_loses_its_banner(folder: Path, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    report = ingest(card_of(tmp_path), folder, lake)
    assert (report.counts.items, report.counts.samples, report.counts.quarantined) == (2, 4, 0)
    rows = lake.sql("select * from samples order by source_id, frame").to_pylist()
    assert [row["source_id"] for row in rows] == ["p1/still.dcm", *["p2/cine.dcm"] * 3]
    assert [row["patient"] for row in rows] == ["mine-p1", *["mine-p2"] * 3]
    assert {row["clip"] for row in rows} == {None, "mine-p2/cine"} and {row["study_date"] for row in rows} == {None}
    assert {(row["deid_profile"], row["mask_source"], row["burned_in"]) for row in rows} == {
        ("public", "regions+fit", "unknown")
    }
    assert rows[1]["fps"] == 20 and rows[1]["n_frames"] == 3 and rows[0]["n_frames"] is None
    assert {row["manufacturer"] for row in rows} == {"Philips"}


def test_published_dicom_gives_the_same_bytes_twice(folder: Path, tmp_path: Path) -> None:
    first, second = (Lake.create(tmp_path / name) for name in ("a", "b"))
    ingest(card_of(tmp_path), folder, first)
    ingest(card_of(tmp_path), folder, second, workers=2)
    assert tree_digest(first.root) == tree_digest(second.root)


def test_dicom_that_a_public_card_does_not_expect_is_refused_with_both_ways_out(folder: Path, tmp_path: Path) -> None:
    card = card_of(tmp_path, CARD.replace("dicom: published\n", ""))
    with pytest.raises(CardError, match=r"DICOM files(.|\n)*usdata ingest private(.|\n)*dicom: published"):
        ingest(card, folder, Lake.create(tmp_path / "lake"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("relax: [text]", "relax: only private files"),
        ("crop: [0, 0, 9, 9]", "only the scan area is kept"),
        ("crop: [0, 0, 9, 9]\nscan_area: find\ndicom: refuse", "only the scan area is kept"),
        ("dicom: published\ndeid_profile: private", "contradict"),
        ("scan_area: keep\ndeid_profile: private\ndicom: refuse", "scan_area"),
        ("crop: [0, 0, 9, 9]\ndeid_profile: private\ndicom: refuse", "a reviewed template"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(tmp_path: Path, line: str, said: str) -> None:
    text = CARD
    for name in {one.partition(":")[0] for one in line.split("\n")} & {"dicom", "deid_profile"}:
        text = "\n".join(one for one in text.split("\n") if not one.startswith(f"{name}:"))
    with pytest.raises(CardError, match=said):
        card_of(tmp_path, f"{text}\n{line}\n")


def test_the_fields_of_a_private_card_must_list_their_words(tmp_path: Path) -> None:
    text = CARD.replace("deid_profile: public", "deid_profile: private").replace("dicom: published\n", "")
    text = text.replace("(?P<name>", "(?P<view>")
    with pytest.raises(CardError, match="give a `map` that lists every word"):
        card_of(tmp_path, text)
