"""One file of many clips: each is an item of its own, with the words that the file says of it."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from fakes.folders import tree_digest
from fakes.volumes import card, pixels, quarantine, run

from ingest import special
from ingest.layout import list_items
from ingest.special import fatty_liver, stanford_thyroid
from usdata.errors import CardError, DataError
from usdata.lake import Lake
from usdata.verify import verify

SIDE = 256
THYROID = {
    "layout": {"container": r"dataset\.hdf5"},
    "reader": "stanford_thyroid",
    "masks": {"kind": "binary", "classes": ["background", "nodule"]},
    "fields": {"patient": "patient"},
    "labels": {"label": ["benign", "malignant"]},
    "tables": [{"file": r"metadata\.csv", "key": "annot_id", "match": "annot_id", "columns": {"label": "found"}}],
}
LIVER = {
    "layout": {"container": r".*\.mat"},
    "reader": "fatty_liver",
    "fields": {"patient": "id", "label": {"from": "class", "map": {"0": "normal", "1": "fatty"}}, "targets.fat": "fat"},
    "labels": {"label": ["normal", "fatty"]},
    "target": "fat",
}


def pictures(count: int) -> np.ndarray:
    """Frame k is grey k + 1, but for a row of its own."""
    out = np.repeat(np.arange(1, count + 1, dtype=np.uint8), SIDE * SIDE).reshape(count, SIDE, SIDE)
    for k in range(count):
        out[k, k] = 200
    return out


def thyroid(folder: Path, ids: list[bytes], numbers: list[int], **changes) -> np.ndarray:
    """dataset.hdf5 with one row per id; the mask of row k is its first k + 1 columns."""
    folder.mkdir(parents=True, exist_ok=True)
    image = pictures(len(ids))
    mask = np.zeros_like(image)
    for k in range(len(ids)):
        mask[k, :, : k + 1] = 1
    arrays = {"image": image, "mask": mask, "annot_id": np.array(ids), "frame_num": np.array(numbers)} | changes
    with h5py.File(folder / "dataset.hdf5", "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
    (folder / "metadata.csv").write_text("annot_id,found\n1_,benign\n2_1,malignant\n2_2,benign\n")
    return image


def liver(folder: Path, images: list[np.ndarray], ids: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = np.zeros((1, len(ids)), [(name, "O") for name in ("id", "class", "fat", "images")])
    for k, (one, key) in enumerate(zip(images, ids, strict=True)):
        data[0, k] = np.array([[key]]), np.array([[k % 2]], np.uint8), np.array([[2.5 * k]]), one
    scipy.io.savemat(folder / "data.mat", {"data": data}, do_compression=True)


def test_rows_of_one_hdf5_file_become_clips_in_the_order_of_their_frame_numbers(tmp_path):
    image = thyroid(tmp_path / "s", [b"2_2", b"1_", b"2_1", b"1_", b"1_"], [1, 3, 1, 1, 2])
    report, found = run(tmp_path / "s", tmp_path / "lake", **THYROID)
    assert (report.counts.files, report.counts.items, report.counts.samples) == (2, 3, 5)
    shown = [(r["source_id"], r["frame"], r["n_frames"], r["clip"], r["patient"], r["label"]) for r in found]
    assert shown == [
        *(("dataset.hdf5#1", k, 3, "mine-dataset#1", "mine-1", "benign") for k in range(3)),
        ("dataset.hdf5#2_1", None, None, None, "mine-2", "malignant"),
        ("dataset.hdf5#2_2", None, None, None, "mine-2", "benign"),
    ]
    for (grey, mask), row in zip(pixels(tmp_path / "lake"), [3, 4, 1, 2, 0], strict=True):
        assert (grey == image[row]).all()
        assert mask.sum() == (row + 1) * SIDE and mask[:, : row + 1].all()
    assert not verify(Lake(tmp_path / "lake"))


def test_structures_of_a_mat_file_become_clips_with_label_and_target(tmp_path):
    images = [pictures(3), pictures(4)[::-1]]
    liver(tmp_path / "s", images, [7, 12])
    report, found = run(tmp_path / "s", tmp_path / "lake", **LIVER)
    assert (report.counts.files, report.counts.items, report.counts.samples) == (1, 2, 7)
    shown = {(r["source_id"], r["n_frames"], r["clip"], r["patient"], r["label"], r["target"]) for r in found}
    assert shown == {
        ("data.mat#7", 3, "mine-data#7", "mine-7", "normal", 0.0),
        ("data.mat#12", 4, "mine-data#12", "mine-12", "fatty", 2.5),
    }
    by_source = {("data.mat#12", k): images[1][k] for k in range(4)} | {
        ("data.mat#7", k): images[0][k] for k in range(3)
    }
    for (grey, mask), row in zip(pixels(tmp_path / "lake"), found, strict=True):
        assert mask is None and (grey == by_source[row["source_id"], row["frame"]]).all()
    assert not verify(Lake(tmp_path / "lake"))


def test_one_and_two_workers_write_the_same_bytes_and_a_rerun_builds_nothing(tmp_path, monkeypatch):
    from ingest import plan

    monkeypatch.setattr(plan, "MAX_SAMPLES", 2)
    thyroid(tmp_path / "s", [b"2_2", b"1_", b"2_1", b"1_", b"1_"], [1, 3, 1, 1, 2])
    report, _ = run(tmp_path / "s", tmp_path / "one", **THYROID)
    assert report.built == 3
    run(tmp_path / "s", tmp_path / "two", workers=2, **THYROID)
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")
    report, _ = run(tmp_path / "s", tmp_path / "one", **THYROID)
    assert (report.built, report.reused, report.changed) == (0, 3, False)


def test_an_entrys_id_does_not_depend_on_the_others_and_its_pixels_and_mask_decide_what_is_built(tmp_path):
    thyroid(tmp_path / "a", [b"1_", b"1_"], [1, 2])
    _, alone = run(tmp_path / "a", tmp_path / "lake_a", **THYROID)
    image = pictures(3)[[0, 1, 2]]
    thyroid(tmp_path / "b", [b"1_", b"1_", b"2_1"], [1, 2, 1], image=image)
    _, both = run(tmp_path / "b", tmp_path / "lake_b", **THYROID)
    assert [r["sample_id"] for r in alone] == [r["sample_id"] for r in both[:2]]
    assert both[2]["sample_id"] not in {r["sample_id"] for r in alone}

    mask = np.zeros_like(image)
    thyroid(tmp_path / "b", [b"1_", b"1_", b"2_1"], [1, 2, 1], image=image, mask=mask)
    report, after = run(tmp_path / "b", tmp_path / "lake_b", **THYROID)
    assert report.built == 1 and after[0]["sample_id"] != both[0]["sample_id"]


def test_entries_of_equal_pixels_are_copies_with_ids_of_their_own(tmp_path):
    liver(tmp_path / "s", [pictures(2), pictures(2)], [1, 2])
    report, found = run(tmp_path / "s", tmp_path / "lake", **LIVER)
    assert report.counts.copies == 1
    assert len({r["sample_id"] for r in found}) == 4 and len({r["source_xxh"] for r in found}) == 1


def test_annotated_frames_of_an_entry_are_those_whose_mask_has_something(tmp_path):
    mask = np.zeros((3, SIDE, SIDE), np.uint8)
    mask[1, 5, 5] = 255
    thyroid(tmp_path / "s", [b"1_"] * 3, [1, 2, 3], mask=mask)
    _, found = run(tmp_path / "s", tmp_path / "lake", **THYROID, frames={"annotated": "only"})
    assert [(r["frame"], r["has_mask"]) for r in found] == [(1, True)]


def test_an_entry_that_the_card_refuses_is_quarantined_by_its_own_name(tmp_path):
    thyroid(tmp_path / "s", [b"1_", b"9_"], [1, 1])
    parts = THYROID | {"tables": [THYROID["tables"][0] | {"every_item": True}]}
    report, found = run(tmp_path / "s", tmp_path / "lake", **parts)
    assert [r["source_id"] for r in found] == ["dataset.hdf5#1"]
    assert quarantine(tmp_path / "lake") == [("dataset.hdf5#9", None, "join", "label_missing")]
    assert report.counts.files == 2
    listing = list_items(card(**parts), tmp_path / "s")
    assert (len(listing.items), len(listing.problems)) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mask": None}, "array_missing"),
        ({"mask": np.zeros((2, 9, 9), np.uint8)}, "wrong_axes"),
        ({"frame_num": np.arange(5)}, "wrong_axes"),
        ({"annot_id": np.array([b"", b""])}, "unreadable"),
        ({"annot_id": np.array([b"a\nb", b"a\nb"])}, "unreadable"),
        ({"annot_id": np.array([b"1_", b"1"])}, "same_key"),
    ],
)
def test_a_container_that_makes_no_sense_is_quarantined_as_a_file(tmp_path, changes, reason):
    thyroid(tmp_path / "s", [b"1_", b"1_"], [1, 2], **changes)
    report, found = run(tmp_path / "s", tmp_path / "lake", **THYROID)
    assert not found and report.counts.files == 2
    assert quarantine(tmp_path / "lake") == [("dataset.hdf5", None, "list", reason)]


def test_a_damaged_container_is_quarantined_and_another_one_comes_in(tmp_path):
    for k, content in enumerate((b"", b"words", b"MATLAB 5.0 MAT-file", None)):
        folder = tmp_path / f"s{k}"
        liver(folder, [pictures(2)], [1])
        whole = (folder / "data.mat").read_bytes()
        (folder / "z.mat").write_bytes(whole[: len(whole) - 40] if content is None else content)
        report, found = run(folder, tmp_path / f"lake{k}", **LIVER)
        assert (report.counts.files, len(found)) == (2, 2)
        ((source, *_),) = quarantine(tmp_path / f"lake{k}")
        assert source == "z.mat"


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 2)),
        {"id": 1, "class": 0, "fat": 1.0},
        {"id": 1, "class": 0, "fat": 1.0, "images": np.zeros((3, 3))},
        {"id": [1, 2], "class": 0, "fat": 1.0, "images": np.zeros((2, 3, 3))},
    ],
)
def test_a_mat_file_of_other_fields_is_refused(tmp_path, data):
    scipy.io.savemat(tmp_path / "a.mat", {"data": data})
    with pytest.raises(DataError) as caught:
        list(fatty_liver.entries(tmp_path / "a.mat"))
    assert caught.value.reason == "wrong_fields"


def test_frames_that_are_gone_are_told(tmp_path):
    thyroid(tmp_path / "s", [b"1_", b"1_"], [1, 2])
    path = tmp_path / "s/dataset.hdf5"
    for key, index in (("1", 2), ("8", 0)):
        with pytest.raises(DataError) as caught:
            list(stanford_thyroid.read(path, key, [index]))
        assert caught.value.reason == "frame_missing"


def test_a_mask_file_cannot_belong_to_a_container(tmp_path):
    liver(tmp_path / "s", [pictures(2)], [1])
    (tmp_path / "s/data_mask.png").write_bytes(b"x")
    layout = {"container": r"(?P<id>[a-z]+)\.mat", "mask": r"(?P<id>[a-z]+)_mask\.png"}
    parts = LIVER | {"layout": layout, "masks": {"kind": "binary"}, "fields": {"patient": "id"}, "labels": {}}
    del parts["target"]
    report, found = run(tmp_path / "s", tmp_path / "lake", **parts)
    assert len(found) == 2 and report.counts.files == 2
    assert quarantine(tmp_path / "lake") == [("data_mask.png", None, "list", "mask_of_container")]


def test_only_the_packages_own_readers_can_be_named(tmp_path):
    liver(tmp_path / "s", [pictures(2)], [1])
    for name in ("os", "..card", "fatty_liver2"):
        with pytest.raises(CardError, match="There is no reader"):
            run(tmp_path / "s", tmp_path / "lake", **(LIVER | {"reader": name}))
    assert set(special.READERS) == {path.stem for path in Path(special.__file__).parent.glob("[a-z]*.py")}


@pytest.mark.parametrize("layout", [{"container": r".*\.mat"}, {"volume": r".*\.mat"}])
def test_a_private_card_of_volumes_or_containers_is_refused(layout):
    how = {"arrays": {"axes": "fyx"}} if "volume" in layout else {"reader": "fatty_liver"}
    with pytest.raises(ValueError, match="volumes and containers of private files"):
        card(layout=layout, **how, deid_profile="private")


def test_entries_are_listed_without_reading_pixels(tmp_path, monkeypatch):
    thyroid(tmp_path / "s", [b"1_", b"1_"], [1, 2])
    monkeypatch.setattr(stanford_thyroid, "to_grey_levels", None)
    (item,) = list_items(card(**THYROID), tmp_path / "s").items
    assert (item.path, item.place, item.entry.frames) == ("dataset.hdf5#1", "dataset.hdf5", 2)
    assert json.dumps(item.fields)
