"""What single cards must get right beyond counts: known defects, patients, turned volumes; see `fakes.cards_2`."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes.card_fakes import all_fakes, blob, save, save_array, speckle
from numpy.typing import NDArray
from PIL import Image

from ingest.card import get_card
from ingest.layout import list_items
from ingest.readers.shapes_draw import draw_mask
from ingest.run import ingest
from usdata.errors import CardError
from usdata.lake import Lake

Row = dict[str, Any]


@pytest.fixture(scope="module")
def fake_rows(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Row]]:
    """The rows of the fake of a card."""
    known: dict[str, list[Row]] = {}

    def rows(name: str) -> list[Row]:
        if name not in known:
            place = tmp_path_factory.mktemp(name)
            known[name] = ingested(name, all_fakes()[name].draw(place / "source"), place)
        return known[name]

    return rows


def ingested(name: str, source: Path, place: Path) -> list[Row]:
    """The rows of a source, each with its decoded `picture` and `mask`."""
    card, lake = get_card(name), Lake.create(place / "lake")
    ingest(card, source, lake)
    rows = pq.read_table(lake.catalog_part(name)).to_pylist()
    for row in rows:
        row["picture"] = stored(lake, row, row["offset"], row["size"])
        row["mask"] = stored(lake, row, row["mask_offset"], row["mask_size"]) if row["has_mask"] else None
    return rows


def stored(lake: Lake, row: Row, offset: int, size: int) -> NDArray[np.uint8]:
    with (lake.root / row["shard"]).open("rb") as file:
        file.seek(offset)
        return np.asarray(cv2.imdecode(np.frombuffer(file.read(size), np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)


def patients(rows: list[Row]) -> dict[str, str]:
    """Patient of each source file."""
    return {row["source_id"]: row["patient"] for row in rows}


# --- masks -------------------------------------------------------------------------------------------------------


def test_jpeg_masks_of_tg3k_have_no_fringe(fake_rows):
    disc = cv2.resize(blob(), (256, 256), interpolation=cv2.INTER_NEAREST) > 0
    for row in fake_rows("tg3k"):
        assert set(np.unique(row["mask"])) == {0, 1}
        assert np.mean((row["mask"] == 1) ^ disc) < 0.005


def test_the_split_of_tg3k_counts_positions_in_the_folder_not_numbers(fake_rows):
    splits = {row["source_id"][-8:]: row["official_split"] for row in fake_rows("tg3k")}
    assert splits == {"0000.jpg": "train", "0001.jpg": "val", "0005.jpg": "train"}


def test_a_mask_of_another_size_covers_the_same_part_of_the_picture(fake_rows):
    small, same = sorted(fake_rows("stu_hospital"), key=lambda row: row["source_id"])
    assert np.mean(small["mask"] != same["mask"]) < 0.02


def test_a_hole_in_a_mask_of_the_thyroid_clips_is_filled(fake_rows):
    for row in fake_rows("stanford_thyroid_cine"):
        assert row["mask"][128, 128] == 1


def test_outlines_of_cardiac_udc_are_filled_and_frames_that_nobody_marked_have_no_mask(fake_rows):
    rows = {(row["source_id"], row["frame"]): row for row in fake_rows("cardiac_udc")}
    outlined = [row for (path, _), row in rows.items() if "1-5" in path]
    assert len(outlined) == 6 and all(row["mask"][128, 128] == 1 for row in outlined)
    first = {frame: row["has_mask"] for (path, frame), row in rows.items() if "G_20/patient-1-4" in path}
    assert first == {0: False, 2: True, 5: False}


def test_the_needle_of_brachial_plexus_is_on_the_frame_that_its_name_says(fake_rows):
    rows = [row for row in fake_rows("brachial_plexus") if "s071" in row["source_id"]]
    assert {row["frame"]: 2 in row["mask"] for row in rows} == {0: False, 5: True}
    assert [bool((row["mask"] == 1).any()) for row in rows] == [True, True]


def test_tracings_of_echonet_pediatric_count_frames_from_1(fake_rows):
    rows = fake_rows("echonet_pediatric")
    assert {row["frame"] for row in rows if row["has_mask"]} == {1}
    assert {row["frame"] for row in rows if not row["has_mask"]} == {0, 5}
    (traced,) = (row for row in rows if row["has_mask"] and row["view"] == "PSAX")
    assert traced["mask"][100, 100] == 1 and traced["mask"][200, 200] == 0  # 10 to 40 of 64 pixels


def test_aul_draws_no_outline_because_only_some_hold_the_liver_and_nobody_says_which(fake_rows):
    rows = {row["source_id"].rpartition("/")[2]: row for row in fake_rows("aul") if "Benign" in row["source_id"]}
    assert not rows["229.jpg"]["has_mask"]
    assert set(np.unique(rows["374.jpg"]["mask"])) == {0, 2}  # the mass; its liver was never drawn


def test_pinyin_names_beside_bytes_that_are_not_utf8_are_read(fake_rows):
    (row,) = (row for row in fake_rows("ubpd") if row["source_id"] == "b/1.jpg")
    assert {row["mask_classes"][number] for number in np.unique(row["mask"])} == {"background", "vein", "fat"}


@pytest.mark.parametrize("name", ["segthy", "cardiac_udc", "echocp"])
def test_volumes_that_are_stored_upside_down_stand_upright(name, tmp_path):
    card = get_card(name)
    volume = np.full((96, 80, 2), 20, np.uint8)
    volume[-24:, -20:] = 220  # the last columns of the last rows: the picture's upper left corner
    mask = np.zeros_like(volume)
    mask[-24:, -20:] = 1
    assert card.layout is not None
    save_array(tmp_path / "source" / card.layout.example["volume"][0], volume)
    save_array(tmp_path / "source" / card.layout.example["mask"][0], mask)
    for row in ingested(name, tmp_path / "source", tmp_path):
        bright = row["picture"] > 120
        assert bright[:50, :50].all() and not bright[80:].any() and not bright[:, 80:].any()
        assert ((row["mask"] == 1) == bright).mean() > 0.98


# --- patients ----------------------------------------------------------------------------------------------------


def test_ted_has_the_patients_of_camus_that_its_table_says(fake_rows):
    found = {Path(path).parent.name: patient for path, patient in patients(fake_rows("ted_camus")).items()}
    assert found == {"patient001": "camus-patient0277", "patient002": "camus-patient0001"}


def test_ted_without_the_table_of_its_patients_is_refused(tmp_path):
    source = all_fakes()["ted_camus"].draw(tmp_path)
    (source / "ted2camus.csv").unlink()
    with pytest.raises(CardError, match=r"ted2camus\.csv"):
        list_items(get_card("ted_camus"), source)


def test_copies_of_a_kidney_image_have_one_patient_whatever_their_leading_number(fake_rows):
    rows = fake_rows("kidney_us")
    found = {path.rpartition("/")[2]: patient for path, patient in patients(rows).items()}
    assert found["132_IM-0115-17408_anon.png"] == found["405_IM-0115-17408_anon.png"]
    assert len({row["study"] for row in rows}) == 4


def test_two_nodules_of_a_patient_are_one_patient(fake_rows):
    rows = fake_rows("stanford_thyroid_cine")
    assert {row["patient"] for row in rows} == {"stanford_thyroid_cine-103", "stanford_thyroid_cine-104"}


def test_sweeps_of_a_volunteer_by_several_operators_are_one_patient(fake_rows):
    found = patients(fake_rows("segthy"))
    assert len({patient for path, patient in found.items() if "/001_" in path}) == 1


def test_both_views_of_a_child_are_one_patient(fake_rows):
    found = patients(fake_rows("echonet_pediatric"))
    assert len({patient for path, patient in found.items() if "000039" in path}) == 1


# --- marks and words ---------------------------------------------------------------------------------------------


def test_boxes_of_gbcu_are_in_pixels_of_the_source(fake_rows):
    rows = {row["source_id"][-11:]: row["marks"] for row in fake_rows("gbcu")}
    assert json.loads(rows["im00001.jpg"]) == [{"name": "nml", "box": [10, 10, 50, 60]}]


def test_points_of_unity_that_are_off_or_blurred_are_no_marks(fake_rows):
    marks = [json.loads(row["marks"] or "[]") for row in fake_rows("unity_imaging")]
    assert sorted(len(found) for found in marks) == [0, 1, 2]
    assert {"name": "lv-apex-endo", "points": [[40.5, 20]]} in marks[0]


def test_simulated_and_phantom_pictures_never_count_as_an_organ(fake_rows):
    simulated = [row for row in fake_rows("abdomen_us") if "/AUS/" in row["source_id"]]
    assert [row["organ"] for row in simulated] == ["simulated"]
    assert {get_card(name).defaults.organ for name in ("cactus", "luss_phantom")} == {"phantom"}


# --- the real labels of the kidney set ---------------------------------------------------------------------------


def real_kidney_table(real_data: Path) -> tuple[Path, list[dict[str, str]]]:
    labels = real_data / "kidneyus-labels"
    with (labels / "labels/reviewed_labels_1.csv").open(encoding="utf-8-sig", newline="") as file:
        return labels, list(csv.DictReader(file))


def test_all_names_of_the_real_kidney_table_are_images_with_a_patient(real_data, tmp_path):
    labels, rows = real_kidney_table(real_data)
    for name in {row["filename"] for row in rows}:
        (tmp_path / name).touch()
    shutil.copytree(labels, tmp_path / "kidneyUS")
    listing = list_items(get_card("kidney_us"), tmp_path)
    (refused,) = listing.problems  # two views in its rows
    assert refused.reason == "duplicate_key_in_table"
    assert len(listing.items) == 533
    assert len({item.fields["patient"] for item in listing.items}) == 513  # 514 with the refused one
    assert sum("manufacturer" in item.fields for item in listing.items) >= 513  # copies have no row
    assert {item.fields["view"] for item in listing.items} == {"longitudinal", "transverse", "other"}
    assert sum(not item.shapes for item in listing.items) == 47


def test_shapes_of_the_real_kidney_table_agree_with_the_published_masks(real_data, tmp_path):
    labels, _ = real_kidney_table(real_data)
    card = get_card("kidney_us")
    assert card.masks is not None
    shutil.copytree(labels, tmp_path / "kidneyUS")
    published = sorted((labels / "labels/reviewed_masks_1/capsule").glob("*.png"))
    for path in published:
        (tmp_path / path.name).touch()
    items = {item.path: item for item in list_items(card, tmp_path).items}
    assert len(items) == 12
    for path in published:
        capsule = np.asarray(Image.open(path))
        regions = np.asarray(Image.open(path.parents[1] / "regions" / path.name))
        drawn = draw_mask(items[path.name].shapes, card.masks, capsule.shape)
        pairs = [("kidney", capsule == 1, drawn > 0)]
        pairs += [
            (name, regions == number, drawn == card.masks.classes.index(name))
            for number, name in enumerate(("central_echo_complex", "medulla", "cortex"), start=1)
        ]
        for name, theirs, ours in pairs:
            if theirs.any() or ours.any():
                overlap = 2 * (theirs & ours).sum() / (theirs.sum() + ours.sum())
                assert overlap > (0.85 if theirs.sum() < 1000 else 0.95), (path.name, name)


def test_a_bright_disc_in_a_class_numbered_mask_is_refused_but_its_picture_stays(tmp_path):
    save(tmp_path / "source/JPEGImages/1.jpg", speckle(np.random.default_rng(0)))
    save(tmp_path / "source/SegmentationClass/1.png", blob(value=1))
    (row,) = ingested("tnscui2020", tmp_path / "source", tmp_path)
    assert not row["has_mask"] and row["patient"] == "tnscui2020-1"
