"""Every card with a known layout reads a fake of its data set as it should; see `fakes.card_fakes`."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes.card_fakes import all_fakes, observe

from ingest.card import Card, get_card, registered
from ingest.run import ingest
from usdata.lake import Lake
from usdata.verify import verify

FAKES = all_fakes()
WITH_LAYOUT = [name for name in registered() if get_card(name).layout]
VERIFIED = ("busi", "ddti", "echonet_dynamic", "mmotu")  # whose lakes `usdata verify` reads too; all would take long


def test_every_card_with_a_known_layout_has_a_fake():
    known = {name for name in WITH_LAYOUT if get_card(name).verified != "unverified"}
    assert sorted(known - {fake.name for fake in FAKES.values()}) == []


def test_every_fake_is_of_a_registered_card():
    assert sorted({fake.name for fake in FAKES.values()} - set(registered())) == []


@pytest.mark.parametrize("key", sorted(FAKES))
def test_a_fake_is_ingested_as_it_was_drawn(key, tmp_path):
    fake = FAKES[key]
    card = get_card(fake.name)
    lake = Lake.create(tmp_path / "lake")
    report = ingest(card, fake.draw(tmp_path / "source"), lake)
    refused = [(one.source_id, one.reason, one.detail) for one in report.first]
    assert fake.expect.unlike(observe(lake, card, report)) == {}, refused
    assert "unmatched_file" not in report.reasons
    if key in VERIFIED:
        assert list(verify(lake)) == []


def roles(card: Card) -> list[tuple[str, str]]:
    """(role, pattern) in the order in which they are tried."""
    assert card.layout is not None
    layout = card.layout
    read = [*(table.file for table in card.tables), *(one.file for one in card.annotations)]
    by_role = {"ignore": layout.ignore, "table": read, "mask": layout.mask, "video": layout.video}
    by_role |= {"volume": layout.volume, "container": layout.container, "image": layout.image}
    return [(role, pattern) for role, patterns in by_role.items() for pattern in patterns]


def fitting(card: Card, path: str) -> list[tuple[str, str]]:
    """The (role, pattern)s that fit a path; the first one's role is what the file is."""
    assert card.layout is not None
    flags = re.IGNORECASE if card.layout.ignore_case else 0
    return [one for one in roles(card) if re.fullmatch(one[1], path, flags)]


@pytest.mark.parametrize("name", WITH_LAYOUT)
def test_every_example_path_fits_its_role_and_every_pattern_of_pictures_masks_and_tables_has_one(name):
    card = get_card(name)
    assert card.layout is not None
    fits = {path: (role, fitting(card, path)) for role, paths in card.layout.example.items() for path in paths}
    assert {path: found for path, (role, found) in fits.items() if not found or found[0][0] != role} == {}
    shown = {one for role, found in fits.values() for one in found if one[0] == role}
    assert [one for one in roles(card) if one[0] != "ignore" and one not in shown] == []


@pytest.mark.parametrize("name", registered())
def test_a_card_says_its_rights_its_source_and_what_to_do_where_a_download_can_not_be_made(name):
    card = get_card(name)
    assert card.citation and card.licence
    if card.generator or card.deid_profile == "private":
        return
    assert card.sources, "a source"
    for source in card.sources:
        assert source.url or source.page or source.steps
        assert source.how not in ("registration", "request", "private") or source.steps, "steps a person follows"
    assert card.verified != "unverified" or card.needs, "what a user must supply"


def test_a_fake_is_drawn_with_the_same_bytes_each_time(tmp_path: Path):
    fake = FAKES["busi"]
    first, second = (fake.draw(tmp_path / name) for name in ("one", "two"))
    files = sorted(path.relative_to(first) for path in first.rglob("*.png"))
    assert files and all((first / path).read_bytes() == (second / path).read_bytes() for path in files)


# --- what is peculiar to a set, and must not get lost --------------------------------------------------------------

PECULIAR = (
    *("busi", "camus", "covid19_ultrasound", "covid_blues", "ddti", "echonet_dynamic", "hc18", "mmotu", "nerve_seg"),
    *("tn3k", "usanotai", "usenhance2023"),
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """One lake with the fakes in PECULIAR; tests only read it."""
    place = tmp_path_factory.mktemp("peculiar")
    lake = Lake.create(place / "lake")
    for key in PECULIAR:
        ingest(get_card(key), FAKES[key].draw(place / key), lake)
    return lake


def answer(lake: Lake, query: str) -> list[tuple]:
    return [tuple(row.values()) for row in lake.sql(query).to_pylist()]


def pixels(lake: Lake, condition: str, mask: bool = False) -> np.ndarray:
    """(height, width) of the one sample, or of its mask, for which a condition holds."""
    column = "mask_" if mask else ""
    query = f'select shard, "{column}offset", {column}size from samples where {condition}'
    [(shard, offset, size)] = answer(lake, query)
    data = (lake.root / shard).read_bytes()[offset : offset + size]
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


FACTS = {
    "an image of BUSI with two mask files has both lesions, and a copy under another class stays a sample": (
        "select label, count(*) as n, count(distinct source_xxh) as files from samples where dataset = 'busi' "
        "group by all order by all",
        [("benign", 2, 2), ("malignant", 1, 1), ("normal", 1, 1)],
    ),
    "copies can be found by the hash of their source": (
        "select dataset, count(*) - count(distinct source_xxh) as copies from samples "
        "where dataset in ('busi', 'usanotai', 'mmotu') group by all order by all",
        [("busi", 1), ("mmotu", 0), ("usanotai", 1)],
    ),
    "equal numbers in TN3K's two parts stay two images with ids of their own": (
        "select count(distinct sample_id) as n from samples where dataset = 'tn3k' and source_id like '%/0000.jpg'",
        [(2,)],
    ),
    "DDTI's original form has its case as the patient, its other form has none": (
        "select patient, count(*) as n from samples where dataset = 'ddti' group by all order by n, patient nulls last",
        [("ddti-12", 2), (None, 2)],
    ),
    "DDTI's marks become a mask, an empty one does not": (
        "select source_id, has_mask from samples where dataset = 'ddti' and patient is not null order by all",
        [("ddti_original/12_1.jpg", True), ("ddti_original/12_2.jpg", False)],
    ),
    "frames of EchoNet-Dynamic's tracings count from 0, and only a clip with two of them serves for segmentation": (
        "select clip[-4:] as clip, list(frame order by frame) filter (has_mask) as traced from samples "
        "where dataset = 'echonet_dynamic' group by clip having bool_or(has_mask) order by all",
        [("D7FC", [2, 7]), ("C65B", [0])],
    ),
    "the end of CAMUS's diastole is the number in its file, not the first frame": (
        "select distinct view, targets ->> 'ed_frame' as ed, targets ->> 'es_frame' as es from samples "
        "where dataset = 'camus' order by all",
        [("A2C", "1.0", "4.0"), ("A4C", "3.0", "1.0")],
    ),
    "near-copies with contradictory masks in nerve_seg both get in, with their own masks": (
        "select count(*) as n, count(*) filter (has_mask) as masks, count(distinct phash) as looks from samples "
        "where dataset = 'nerve_seg' and patient = 'nerve_seg-1'",
        [(2, 2, 1)],
    ),
    "nerve_seg's test images have neither mask nor patient": (
        "select has_mask, patient from samples where dataset = 'nerve_seg' and official_split = 'test'",
        [(False, None)],
    ),
    "a pair of USenhance has one study, and equal names of two organs are two": (
        "select images, count(*) as studies from (select study, count(*) as images from samples "
        "where dataset = 'usenhance2023' group by study) group by images order by images",
        [(1, 1), (2, 3)],
    ),
    "POCOVID counts files by label and probe whatever the case of their names": (
        "select label, probe, count(distinct source_id) as files from samples "
        "where dataset = 'covid19_ultrasound' group by all order by all",
        [("covid", "convex", 1), ("covid", "linear", 1), ("pneumonia", "convex", 2), ("regular", "convex", 2)],
    ),
    "COVID-BLUES has one positive and one negative patient": (
        "select labels ->> 'covid' as covid, count(distinct patient) as n from samples "
        "where dataset = 'covid_blues' group by all order by all",
        [("no", 1), ("yes", 1)],
    ),
}


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_of_a_set_survives_the_ingest(fact, lake):
    query, expected = FACTS[fact]
    assert sorted(answer(lake, query), key=str) == sorted(expected, key=str)


def test_the_class_in_a_mask_of_mmotu_is_the_number_in_its_class_file_plus_one(lake):
    for label, number in (("chocolate_cyst", 0), ("high_grade_serous", 7)):
        mask = pixels(lake, f"dataset = 'mmotu' and label = '{label}'", mask=True)
        assert set(np.unique(mask)) == {0, number + 1}


def test_the_noise_of_jpeg_masks_is_gone(lake):
    mask = pixels(lake, "dataset = 'tn3k' and official_split = 'test'", mask=True)
    assert set(np.unique(mask)) == {0, 1}
    disc = np.pi * 0.25**2 * 90 / 120  # share of the picture
    assert np.mean(mask) == pytest.approx(disc, rel=0.05)


def test_an_outline_one_pixel_wide_becomes_an_area(lake):
    mask = pixels(lake, "dataset = 'hc18' and official_split = 'train' and source_id like '%000_HC.png'", mask=True)
    assert np.mean(mask) == pytest.approx(np.pi * 30 * 20 / (100 * 68), rel=0.05)


def test_the_long_axis_is_no_part_of_the_traced_ventricle(lake):
    mask = pixels(lake, "dataset = 'echonet_dynamic' and has_mask and official_split = 'test'", mask=True)
    rows = np.flatnonzero(mask.any(axis=1)) * 112 / 256
    assert rows[0] > 29 and rows[-1] < 69  # chords lie on rows 30 to 68; the axis goes from row 5 to row 108


def test_a_frame_of_camus_stands_upright_and_unmirrored_and_its_mask_ends_with_the_echo(lake):
    where = "dataset = 'camus' and view = 'A2C' and frame = 0"
    picture, mask = pixels(lake, where), pixels(lake, where, mask=True)
    assert picture[:40, :200].max() < 20  # ten of fifty rows without echo are at the top
    assert picture[60:, -2:].min() > 150 > picture[60:, :2].mean()  # the bright column is the last
    assert not mask[:50].any() and mask[60:100, :45].all()


REAL = {  # folder of the sample data -> what is in it
    "hc18": ("hc18", {"samples": 54, "masks": 54, "patients": 44}),
    "mmotu-sample": ("mmotu", {"samples": 10, "masks": 10, "classes": {"lesion": 10}}),
    "timtrack-muscle": ("timtrack_muscle", {"samples": 39, "masks": 0, "patients": 11, "clips": 19}),
    "usgra-seg": ("usgra_seg", {"samples": 68, "masks": 68, "patients": 0}),
}


@pytest.mark.real
@pytest.mark.parametrize("folder", sorted(REAL))
def test_a_real_sample_is_ingested_whole(folder, real_data, tmp_path):
    name, expected = REAL[folder]
    lake = Lake.create(tmp_path / "lake")
    report = ingest(get_card(name), real_data / folder, lake)
    found = observe(lake, get_card(name), report)
    assert {field: getattr(found, field) for field in expected} == expected
    assert report.reasons == {}
