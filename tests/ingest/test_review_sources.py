"""Cards, tables, masks and folders that want to be misread."""

import json
import random
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes.folders import tree_digest, write_folder, write_image
from PIL import Image

from ingest.card import load_card
from ingest.readers.image import read_image
from ingest.run import dry_run_record, ingest
from usdata.errors import CardError, DataError
from usdata.lake import Lake
from usdata.verify import verify

DICOM = bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\xff\xfe" + bytes(40)
BY_PATH = ("classes: [background, nodule]", "classes: [background, nodule, cyst], by_path: {_c: cyst, _n: nodule}")
TWO_MASKS = ("masks/(?P<stem>[^/]+)\\.png", "masks/(?P<stem>[^/_]+)_[cn]\\.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source")


def run(folder: Path, lake: Path, *changes: tuple[str, str]):
    card = folder.parent / "mine.yaml"
    text = card.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    card.write_text(text)
    return ingest(load_card(card), folder, Lake.create(lake))


# --- cards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("every_item: true,", "every_item: true, encoding: utf-99,", "encoding"),
        ("every_item: true,", "every_item: true, encoding: hex,", "encoding"),
        ("every_item: true,", "every_item: true, separator: ';;',", "separator"),
        ("every_item: true,", "every_item: true, separator: '\"',", "separator"),
        ("masks/(?P<stem>[^/]+)", "masks/(?P<stem>[^/]{1,99999999999999})", "regular expression"),
        ("masks/(?P<stem>[^/]+)", "masks/(?P<stem>" + "(" * 3000 + ")" * 3000 + ")", "regular expression"),
        ("probe: linear", "probe: linear, pixel_mm: !!float .inf", "pixel_mm"),
    ],
)
def test_a_setting_that_can_not_work_is_said_when_the_card_is_read(folder, old, new, word):
    card = folder.parent / "mine.yaml"
    assert old in card.read_text()
    card.write_text(card.read_text().replace(old, new))
    with pytest.raises(CardError, match=word):
        load_card(card)


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('{"a": {"file": "n000.png", "patient": "p", "size": 1}, "a": {}}', "'a' is given twice"),
        ("[" * 100_000, "deep"),
    ],
)
def test_a_json_table_that_would_lose_rows_is_refused(folder, tmp_path, content, word):
    (folder / "labels.json").write_text(content)
    (folder / "labels.csv").unlink()
    with pytest.raises(CardError, match=word):
        run(folder, tmp_path / "lake", ("labels\\.csv", "labels\\.json"))


def test_table_rows_without_a_key_are_told(folder, tmp_path):
    with (folder / "labels.csv").open("a") as file:
        file.write(",p7,1\nNA,p9,2\n")
    report = run(folder, tmp_path / "lake")
    assert "labels.csv: 2 rows have no file and belong to nothing" in report.notes


# --- masks ---------------------------------------------------------------------------------------------------------


def rename_masks(folder: Path) -> None:
    for path in sorted((folder / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_n.png"))


def classes_of(lake: Path) -> dict[str, int]:
    """Path of the image -> the highest class in its mask."""
    cohort = Lake(lake).cohort("all")
    batch = next(cohort.batches(100, columns=("source_id",), mask=True))
    return dict(zip(batch["source_id"], batch["mask"].amax(dim=(1, 2, 3)).tolist(), strict=True))


def test_a_mask_that_is_renamed_to_another_class_is_built_anew(folder, tmp_path):
    rename_masks(folder)
    run(folder, tmp_path / "lake", TWO_MASKS, BY_PATH)
    assert classes_of(tmp_path / "lake")["images/malignant/n001.png"] == 1
    (folder / "masks/n001_n.png").rename(folder / "masks/n001_c.png")
    run(folder, tmp_path / "lake")
    assert classes_of(tmp_path / "lake")["images/malignant/n001.png"] == 2
    run(folder, tmp_path / "fresh")
    assert tree_digest(tmp_path / "lake") == tree_digest(tmp_path / "fresh")


def test_the_name_of_the_folder_that_holds_the_source_does_not_tell_a_masks_class(tmp_path):
    folder = write_folder(tmp_path / "my_cases" / "source")  # `_c` is in the path above the source
    rename_masks(folder)
    report = run(folder, tmp_path / "lake", TWO_MASKS, BY_PATH)
    assert report.counts.quarantined == 0
    assert set(classes_of(tmp_path / "lake").values()) == {1}


def test_the_mask_that_is_wrong_is_the_one_that_is_named(folder, tmp_path):
    for side in ("left", "right"):
        (folder / "masks" / side).mkdir()
        shutil.copy(folder / "masks/n001.png", folder / "masks" / side / "n001.png")
    (folder / "masks/n001.png").unlink()
    (folder / "masks/right/n001.png").write_bytes(b"")
    run(folder, tmp_path / "lake", ("masks/(?P<stem>", "masks/(?:left/|right/)?(?P<stem>"))
    found = Lake(tmp_path / "lake").sql("select source_id, reason from quarantine").to_pylist()
    assert found == [{"source_id": "masks/right/n001.png", "reason": "empty_file"}]


def test_sixteen_bits_in_three_colours_are_refused_instead_of_turning_black(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint16)
    for name in ("dark.png", "dark.tiff"):
        assert cv2.imwrite(str(tmp_path / name), pixels)
        with pytest.raises(DataError, match="16 bits") as caught:
            read_image(tmp_path / name)
        assert caught.value.reason == "unsupported"


def test_a_bad_mask_of_a_video_is_told_once(tmp_path):
    folder = write_folder(tmp_path / "source", images=1)
    frames = [Image.fromarray(np.full((48, 64), 20 * i, np.uint8)) for i in range(5)]
    frames[0].save(folder / "images/benign/n000.gif", save_all=True, append_images=frames[1:])
    (folder / "images/benign/n000.png").unlink()
    (folder / "masks/n000.png").write_bytes(b"")
    changes = (("  image:", "  video:"), ("(?:png|jpg)", "gif"), (", every_item: true", ""))
    report = run(folder, tmp_path / "lake", *changes)
    assert report.counts.samples == 5
    assert report.reasons == {"empty_file": 1}


def test_videos_without_an_ending_are_clips_of_their_own(tmp_path):
    folder = write_folder(tmp_path / "source", images=2)
    for name in ("one", "two"):
        still = Image.fromarray(np.full((48, 64), 9, np.uint8))
        still.save(folder / "images/benign" / name, "GIF", save_all=True, append_images=[Image.new("L", (64, 48), 99)])
    for path in folder.glob("images/*/*.png"):
        path.unlink()
    changes = (("  image:", "  video:"), ("\\.(?:png|jpg)", ""), (", every_item: true", ""))
    run(folder, tmp_path / "lake", *changes)
    clips = Lake(tmp_path / "lake").sql("select distinct clip from samples order by clip")["clip"].to_pylist()
    assert clips == ["mine-images/benign/one", "mine-images/benign/two"]


# --- DICOM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["masks/n000.png", "labels.csv"])
def test_dicom_in_the_place_of_a_mask_or_a_table_is_refused(folder, tmp_path, name):
    (folder / name).write_bytes(DICOM)
    with pytest.raises(CardError, match="holds DICOM"):
        run(folder, tmp_path / "lake")
    assert Lake(tmp_path / "lake").datasets() == []
    assert not list((tmp_path / "lake").rglob("*.parquet"))


def test_a_folder_of_nothing_but_dicom_is_refused_without_showing_a_name(folder, tmp_path):
    shutil.rmtree(folder)
    (folder / "DOE_JOHN").mkdir(parents=True)
    (folder / "DOE_JOHN" / "DOE^JOHN").write_bytes(DICOM)
    card = load_card(folder.parent / "mine.yaml")
    for attempt in (lambda: run(folder, tmp_path / "lake"), lambda: dry_run_record(card, folder)):
        with pytest.raises(CardError, match="holds DICOM") as caught:
            attempt()
        assert "DOE" not in str(caught.value)


# --- whatever happens to a folder ----------------------------------------------------------------------------------


def change(folder: Path, chance: random.Random) -> None:
    """One change that a person might make to the folder."""
    images, masks = sorted((folder / "images").rglob("*.png")), sorted((folder / "masks").glob("*.png"))
    image, mask = chance.choice(images), chance.choice(masks)
    new = folder / "images" / chance.choice(["benign", "malignant"]) / f"n{chance.randint(0, 12):03d}.png"
    renamed = mask.with_name(f"{mask.stem[:4]}{chance.choice(['_n', '_c'])}.png")
    table = folder / "labels.csv"
    patients = f"p{chance.randint(0, 2)}", f"p{chance.randint(0, 5)}"
    chance.choice(
        [
            lambda: write_image(new, seed=chance.randint(0, 99)),
            lambda: write_image(image, seed=chance.randint(0, 99)),
            lambda: image.unlink() if len(images) > 1 else None,
            lambda: shutil.copy(image, folder / "images/benign" / f"copy{chance.randint(0, 9)}.png"),
            lambda: image.rename(folder / "images/benign" / f"other{chance.randint(0, 9)}.png"),
            lambda: image.write_bytes(image.read_bytes()[:-50]),
            lambda: mask.rename(renamed),
            lambda: mask.unlink() if len(masks) > 1 else None,
            lambda: table.write_text(table.read_text().replace(*patients)),
        ]
    )()


@pytest.mark.parametrize("seed", range(3))
def test_a_lake_kept_up_to_date_through_any_changes_equals_a_fresh_one(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("ingest.plan.MAX_SAMPLES", 3)
    folder, chance = write_folder(tmp_path / "source", images=6), random.Random(seed)
    rename_masks(folder)
    changes = [TWO_MASKS, BY_PATH, (", every_item: true", "")]
    for step in range(5):
        for _ in range(chance.randint(1, 3)):
            change(folder, chance)
        report = run(folder, tmp_path / "lake", *changes)
        changes = []
        run(folder, tmp_path / f"fresh{step}")
        assert tree_digest(tmp_path / "lake") == tree_digest(tmp_path / f"fresh{step}")
        assert not verify(Lake(tmp_path / "lake"))
        rows = Lake(tmp_path / "lake").sql("select count(*) as n from samples")["n"].to_pylist()
        assert rows == [report.counts.samples]
        manifest = json.loads(Lake(tmp_path / "lake").manifest("mine").read_text())
        assert manifest["counts"]["samples"] == report.counts.samples
