"""What the fakes' counts do not show: orientations, shared patients, refused pickles, cards without a layout."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes.cards_3 import FAKES
from fakes.private_folder import make_key
from fakes.scans import draw_screen
from numpy.typing import NDArray
from PIL import Image

from ingest.card import get_card
from ingest.deid.private import rules_of
from ingest.run import ingest
from usdata.errors import CardError
from usdata.lake import Lake

WITHOUT_LAYOUT = ("iugc2025", "dfhi", "uf1990", "deepmtj", "jocohs_knee", "mouse_breast_cancer", "kwave_phantom")
PRIVATE = ("vitreous_hemorrhage", "ge4k")


@dataclass(frozen=True)
class Sample:
    """A stored image with its row and, where it has one, its mask; both (256, 256)."""

    row: dict[str, Any]
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None

    def share(self, name: str, rows: slice, columns: slice) -> float:
        """Which share of the class's pixels lies in a part of the picture."""
        assert self.mask is not None
        here = self.mask == self.row["mask_classes"].index(name)
        return float(here[rows, columns].sum() / here.sum())


def read(lake: Lake, name: str) -> list[Sample]:
    """All samples, sorted by their source and frame."""
    found = []
    for row in pq.read_table(lake.catalog_part(name)).to_pylist():
        data = (lake.root / row["shard"]).read_bytes()

        def picture(start: int | None, size: int | None, data: bytes = data) -> NDArray[np.uint8] | None:
            if start is None or size is None:
                return None
            return cv2.imdecode(np.frombuffer(data[start : start + size], np.uint8), cv2.IMREAD_UNCHANGED)

        image, mask = picture(row["offset"], row["size"]), picture(row["mask_offset"], row["mask_size"])
        assert image is not None
        found.append(Sample(row, image, mask))
    return sorted(found, key=lambda sample: (sample.row["source_id"], sample.row["frame"] or 0))


def bring(name: str, place: Path) -> list[Sample]:
    """The samples of a fake."""
    lake = Lake.create(place / "lake")
    ingest(get_card(name), FAKES[name].draw(place / "source"), lake)
    return read(lake, name)


TOP, BOTTOM, LEFT, RIGHT = slice(0, 128), slice(128, 256), slice(0, 128), slice(128, 256)


def test_the_fakes_cover_every_card_of_this_part_that_has_a_public_layout():
    for name in FAKES:
        card = get_card(name)
        assert card.layout and card.deid_profile == "public"


def test_an_array_that_fass_publishes_as_a_pickle_is_refused_and_never_loaded(tmp_path, monkeypatch):
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    source = FAKES["fass"].draw(tmp_path / "source")
    np.save(source / "ARRAY_FORMAT/scan7.npy", np.array([Runs()], dtype=object), allow_pickle=True)
    lake = Lake.create(tmp_path / "lake")
    report = ingest(get_card("fass"), source, lake)
    assert report.reasons == {"pickled": 2} and report.counts.samples == 3
    assert not (tmp_path / "ran").exists()
    assert [sample.row["has_mask"] for sample in read(lake, "fass")] == [False, True, False]


def test_fast_u_nets_head_images_share_the_patients_of_hc18(tmp_path):
    heads = [s for s in bring("fast_u_net", tmp_path) if s.row["organ"] == "fetal_head"]
    assert {sample.row["patient"] for sample in heads} == {"hc18-training-010"}


def test_jnu_ifms_videos_of_one_day_share_a_study_but_no_patient_is_made_up(tmp_path):
    samples = bring("jnu_ifm", tmp_path)
    assert {sample.row["study"] for sample in samples} == {"jnu_ifm-20190909", "jnu_ifm-20191010"}
    assert {sample.row["patient"] for sample in samples} == {None}


def test_sets_of_the_same_file_names_keep_their_own_ids(tmp_path):
    ids = [{s.row["sample_id"] for s in bring(name, tmp_path / name)} for name in ("fh_ps_aop", "psfhs")]
    assert not ids[0] & ids[1]


def test_fh_ps_aops_labels_end_where_the_sector_ends(tmp_path):
    for sample in bring("fh_ps_aop", tmp_path):
        if sample.mask is not None:
            assert not sample.mask[:, :50].any() and not sample.mask[:, -50:].any() and sample.mask[:, 60:196].all()


def test_a_turned_aponeurosis_of_fallmud_is_turned_back(tmp_path):
    turned = bring("fallmud", tmp_path)[1]
    assert turned.row["source_id"].endswith("RyanCunningham/images/1.jpg")
    assert turned.share("aponeurosis", slice(0, 110), slice(0, 128)) == 1  # drawn at (0.3, 0.2)
    assert turned.share("fascicle", BOTTOM, slice(60, 196)) == 1


def test_micro_ultrasound_slices_stand_upright_and_end_where_the_scan_ends(tmp_path):
    for sample in bring("microseg", tmp_path):
        assert sample.image[:64].mean() > 1.3 * sample.image[-64:].mean()  # the fakes' echoes fade with depth
        assert sample.mask is not None and not sample.mask[sample.image == 0].any()


def test_transrectal_volumes_are_cut_into_upright_sagittal_slices_with_the_structures_over_the_gland(tmp_path):
    samples = bring("regpro", tmp_path)
    assert [sample.row["frame"] for sample in samples] == [0, 1, 2] * 2
    for sample in samples:
        assert sample.image[:64].mean() > 1.3 * sample.image[-64:].mean()
    assert samples[1].share("landmark_1", slice(0, 256), LEFT) == 1
    assert samples[2].share("landmark_5", slice(0, 256), RIGHT) == 1
    assert samples[0].mask is not None and not samples[0].mask.any()


def test_spine_arrays_of_numbers_from_0_to_1_become_grey_levels_and_are_turned_by_180_degrees(tmp_path):
    samples = bring("asus_spine", tmp_path)
    assert all(sample.image.max() > 120 and sample.image[:64].mean() > sample.image[-64:].mean() for sample in samples)
    assert samples[1].share("bone", TOP, LEFT) == 1


def test_every_tenth_frame_of_a_blind_sweep_and_every_marked_one_gets_in(tmp_path):
    samples = bring("acouslic", tmp_path)
    assert [sample.row["frame"] for sample in samples] == [0, 3, 7, 10, 0, 10]
    assert [sample.row["has_mask"] for sample in samples] == [False, True, True, False, False, False]
    assert {sample.row["pixel_mm_x"] for sample in samples} == {0.28}


def test_a_box_belongs_to_the_image_beside_it_whatever_name_it_gives(tmp_path):
    marks = [json.loads(sample.row["marks"] or "[]") for sample in bring("porcine_spinal_cord", tmp_path)]
    assert [len(one) for one in marks] == [0, 2, 1]  # test, train, validation
    assert {sample.row["species"] for sample in bring("porcine_spinal_cord", tmp_path / "again")} == {"porcine"}


def test_an_unknown_folder_of_radimagenet_is_refused_by_its_name(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    report = ingest(get_card("radimagenet_us"), FAKES["radimagenet_us"].draw(tmp_path / "source"), lake)
    assert "'adrenal'" in (report.first[0].detail or "")


@pytest.mark.parametrize("name", ["butterfly_grandhack", "radimagenet_us"])
def test_a_set_whose_licence_forbids_most_uses_states_its_terms(name):
    card = get_card(name)
    assert card.terms and (card.commercial_use, card.redistribution) == ("no", "no")


@pytest.mark.parametrize("name", WITHOUT_LAYOUT)
def test_a_card_without_a_layout_says_what_it_needs(name, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/1.png").write_bytes(b"")
    with pytest.raises(CardError) as caught:
        ingest(get_card(name), tmp_path / "source", Lake.create(tmp_path / "lake"))
    assert str(get_card(name).needs) in caught.value.message and "--card" in (caught.value.hint or "")


def test_simulated_and_animal_sets_never_count_as_people():
    assert get_card("kwave_phantom").constants()["synthetic"] is True
    groups = [get_card(name).constants()["organ_group"] for name in ("kwave_phantom", "mouse_breast_cancer")]
    assert groups == ["lab", "lab"] and get_card("mouse_breast_cancer").constants()["species"] == "murine"


@pytest.mark.parametrize("name", PRIVATE)
def test_a_hospitals_own_set_asks_for_a_key(name, tmp_path):
    (tmp_path / "train/0").mkdir(parents=True)
    (tmp_path / "train/0/1.png").write_bytes(b"")
    with pytest.raises(CardError, match="need a key"):
        ingest(get_card(name), tmp_path, Lake.create(tmp_path / "lake"))


def test_a_hospitals_own_folders_give_label_and_split_and_no_name(tmp_path):
    for number, place in enumerate(("train/0", "test/1")):
        (tmp_path / "source" / place).mkdir(parents=True)
        screen = draw_screen("curved", number + 1, (480, 640), colour=False)
        Image.fromarray(screen.frames[0]).save(tmp_path / f"source/{place}/Doe_Jane.png")
    key = make_key(tmp_path)
    card, lake = get_card("ge4k"), Lake.create(tmp_path / "lake")
    rules = rules_of(card, key, source=tmp_path / "source", area=tmp_path / "area")
    report = ingest(card, tmp_path / "source", lake, rules=rules)
    assert report.counts.samples == 2, report.reasons
    rows = [sample.row for sample in read(lake, "ge4k")]
    assert {(row["organ"], row["deid_profile"]) for row in rows} == {("thyroid", "private")}
    assert {(row["official_split"], row["label"]) for row in rows} == {("train", "benign"), ("test", "malignant")}
    assert not [row for row in rows if "doe" in json.dumps(row).lower()]
