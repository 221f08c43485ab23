"""Volumes in a lake: which frames come in, with which masks, and that reruns and workers change nothing."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes.folders import tree_digest
from fakes.volumes import card, counted, pixels, quarantine, rows, run, write

from ingest import plan
from ingest.card import CardError
from ingest.run import dry_run_record, ingest
from usdata.lake import Lake
from usdata.verify import verify

SIDE = 256  # the lake's own size: what is stored equals what was written
NIFTI = {
    "layout": {"volume": r"(?P<patient>p\d+)\.nii\.gz", "mask": r"(?P<patient>p\d+)_gt\.nii\.gz"},
    "arrays": {"axes": "xyf"},
    "masks": {"kind": "index", "classes": ["background", "lv", "myocardium"]},
}
STILL = np.arange(SIDE * SIDE, dtype=np.uint32).reshape(SIDE, SIDE) // 257


def clip(count: int, seed: int = 0) -> np.ndarray:
    """Frames that all differ."""
    return np.stack([(STILL + 7 * k + seed).astype(np.uint8) for k in range(count)])


def mask(count: int, empty: tuple[int, ...] = ()) -> np.ndarray:
    """Frame k has a square of class 1, k + 2 wide, and a line of class 2."""
    out = np.zeros((count, SIDE, SIDE), np.uint8)
    for k in range(count):
        if k not in empty:
            out[k, 10 : 12 + k, 20 : 22 + k] = 1
            out[k, 100, 30:60] = 2
    return out


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path / "source/p1.nii.gz", clip(4), spacing=(0.28, 0.31, 1))
    write(tmp_path / "source/p1_gt.nii.gz", mask(4))
    write(tmp_path / "source/p2.nii.gz", clip(1, seed=50)[0])
    write(tmp_path / "source/p2_gt.nii.gz", mask(1)[0])
    return tmp_path / "source"


def test_every_frame_becomes_a_sample_with_its_own_part_of_the_mask(source, tmp_path):
    report, found = run(source, tmp_path / "lake", **NIFTI)
    assert (report.counts.files, report.counts.items, report.counts.samples, report.counts.quarantined) == (4, 2, 5, 0)
    assert [(r["frame"], r["n_frames"], r["clip"]) for r in found] == [(k, 4, "mine-p1") for k in range(4)] + [
        (None, None, None)
    ]
    assert all((r["width"], r["height"], r["has_mask"]) == (SIDE, SIDE, True) for r in found)
    assert all(r["mask_classes"] == ["background", "lv", "myocardium"] for r in found)
    assert [(r["patient"], r["pixel_mm_x"], r["pixel_mm_y"]) for r in found][3:] == [
        ("mine-p1", 0.28, 0.31),
        ("mine-p2", None, None),
    ]
    expected = [*zip(clip(4), mask(4), strict=True), (clip(1, seed=50)[0], mask(1)[0])]
    for (image, classes), (grey, numbers) in zip(pixels(tmp_path / "lake"), expected, strict=True):
        assert (image == grey).all() and (classes == numbers).all()
    assert not verify(Lake(tmp_path / "lake"))


def test_a_volume_of_one_frame_is_a_still_image_whatever_its_axes(tmp_path):
    write(tmp_path / "source/a.npy", clip(1))
    parts = {"layout": {"volume": r"[a-z]\.npy"}, "arrays": {"axes": "fyx"}}
    _, found = run(tmp_path / "source", tmp_path / "lake", **parts)
    assert [(r["frame"], r["n_frames"], r["clip"]) for r in found] == [(None, None, None)]


def test_the_cards_pixel_size_goes_over_the_files(source, tmp_path):
    parts = NIFTI | {"defaults": {"organ": "heart", "pixel_mm": 0.5}}
    _, found = run(source, tmp_path / "lake", **parts)
    assert {(r["pixel_mm_x"], r["pixel_mm_y"]) for r in found} == {(0.5, 0.5)}


def test_frames_are_chosen_as_a_videos_are(source, tmp_path):
    _, found = run(source, tmp_path / "lake", **NIFTI, frames={"stride": 2})
    assert [r["frame"] for r in found] == [0, 2, None]
    _, found = run(source, tmp_path / "lake2", **NIFTI, frames={"max_per_clip": 1})
    assert [r["frame"] for r in found] == [0, None]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"annotated": "only"}, [(1, True), (4, True), (5, True)]),
        ({"annotated": "only", "stride": 2}, [(1, True), (5, True)]),
        ({"annotated": "only", "max_per_clip": 1}, [(1, True)]),
        ({"annotated": "also", "stride": 4}, [(0, False), (1, True), (4, True), (5, True)]),
        ({"stride": 4}, [(0, True), (4, True)]),  # the annotation is not said to be sparse: an empty mask is a mask
    ],
)
def test_annotated_frames_are_kept_alone_or_besides(tmp_path, rule, expected):
    write(tmp_path / "source/p1.nii.gz", clip(6))
    write(tmp_path / "source/p1_gt.nii.gz", mask(6, empty=(0, 2, 3)))
    _, found = run(tmp_path / "source", tmp_path / "lake", **NIFTI, frames=rule)
    assert [(r["frame"], r["has_mask"]) for r in found] == expected


def test_an_empty_mask_keeps_its_label_where_the_card_gives_the_background_one(tmp_path):
    write(tmp_path / "source/p1.nii.gz", clip(3))
    write(tmp_path / "source/p1_gt.nii.gz", mask(3, empty=(0,)))
    spec = NIFTI["masks"] | {"label": {"lv": "seen", "background": "none"}}
    parts = NIFTI | {"masks": spec, "labels": {"label": ["seen", "none"]}, "frames": {"annotated": "also"}}
    _, found = run(tmp_path / "source", tmp_path / "lake", **parts)
    assert [(r["label"], r["has_mask"]) for r in found] == [("none", True), ("seen", True), ("seen", True)]


def test_a_volume_without_any_annotated_frame_is_quarantined_where_only_those_are_wanted(tmp_path):
    for name in ("p1", "p2"):
        write(tmp_path / f"source/{name}.nii.gz", clip(3, seed=len(name)))
    write(tmp_path / "source/p1_gt.nii.gz", mask(3))
    report, _ = run(tmp_path / "source", tmp_path / "lake", **NIFTI, frames={"annotated": "only"})
    assert report.counts.samples == 3
    assert quarantine(tmp_path / "lake") == [("p2.nii.gz", None, "scan", "no_annotated_frame")]


# --- masks that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (mask(3), "mask_size"),  # another number of frames
        (mask(4)[:, :, :200], "mask_size"),
        (mask(4) * 3, "mask_value"),
        (mask(4) + 0.5, "mask_value"),
        (mask(4)[..., None].repeat(2, -1), "wrong_axes"),
        (b"no array", "unreadable"),
    ],
)
def test_an_unusable_mask_volume_is_told_once_and_its_volume_kept_without(tmp_path, content, reason):
    write(tmp_path / "source/p1.nii.gz", clip(4))
    place = tmp_path / "source/p1_gt.nii.gz"
    if isinstance(content, bytes):
        place.write_bytes(content)
        reason = "unsupported"
    else:
        write(place, content)
    report, found = run(tmp_path / "source", tmp_path / "lake", **NIFTI)
    assert [r["has_mask"] for r in found] == [False] * 4
    assert quarantine(tmp_path / "lake") == [("p1_gt.nii.gz", None, "mask", reason)]
    assert report.counts.samples == 4
    spec = NIFTI["masks"] | {"if_bad": "refuse"}
    report, found = run(tmp_path / "source", tmp_path / "lake2", **(NIFTI | {"masks": spec}))
    assert not found and {row[3] for row in quarantine(tmp_path / "lake2")} == {reason}
    assert [row[1] for row in quarantine(tmp_path / "lake2")] == [0, 1, 2, 3]


def test_a_mask_volume_damaged_in_its_middle_is_told_and_no_frame_gets_a_part_of_it(tmp_path):
    write(tmp_path / "source/p1.nii.gz", clip(4))
    content = bytearray(write(tmp_path / "source/p1_gt.nii.gz", mask(4)).read_bytes())
    content[-8] ^= 1
    (tmp_path / "source/p1_gt.nii.gz").write_bytes(content)
    _, found = run(tmp_path / "source", tmp_path / "lake", **NIFTI)
    assert [r["has_mask"] for r in found] == [False] * 4
    assert quarantine(tmp_path / "lake") == [("p1_gt.nii.gz", None, "mask", "unreadable")]


def test_a_damaged_volume_is_quarantined_and_the_others_come_in(source, tmp_path):
    whole = (source / "p1.nii.gz").read_bytes()
    (source / "p1.nii.gz").write_bytes(whole[: len(whole) // 2])
    report, found = run(source, tmp_path / "lake", **NIFTI)
    assert [r["source_id"] for r in found] == ["p2.nii.gz"]
    assert quarantine(tmp_path / "lake") == [("p1.nii.gz", None, "scan", "truncated")]
    assert report.counts.quarantined == 1


def test_planes_of_a_mask_are_classes_and_the_later_one_wins(tmp_path):
    write(tmp_path / "source/p1.nii.gz", clip(2))
    planes = np.zeros((2, 2, SIDE, SIDE), np.uint8)  # k, f, y, x
    planes[0, :, :20, :20] = 1
    planes[1, 1, 10:30, 10:30] = 1
    write(tmp_path / "source/p1_gt.nii.gz", planes)
    parts = NIFTI | {"arrays": {"axes": "xyf", "mask_axes": "xyfk"}}
    run(tmp_path / "source", tmp_path / "lake", **parts)
    (_, first), (_, second) = pixels(tmp_path / "lake")
    assert np.unique(first).tolist() == [0, 1] and first[5, 5] == 1
    assert second[5, 5] == 1 and second[15, 15] == 2 and second[25, 25] == 2
    shutil.rmtree(tmp_path / "lake")
    three = parts | {"masks": {"kind": "index", "classes": ["background", "a", "b", "c"]}}
    _, found = run(tmp_path / "source", tmp_path / "lake", **three)
    assert not any(r["has_mask"] for r in found)
    assert quarantine(tmp_path / "lake") == [("p1_gt.nii.gz", None, "mask", "mask_value")]


@pytest.mark.parametrize("name", ["a.h5", "a.npz"])
def test_the_mask_may_lie_in_the_volumes_own_file(tmp_path, name):
    (tmp_path / "source").mkdir()
    if name == "a.h5":
        import h5py

        with h5py.File(tmp_path / "source" / name, "w") as file:
            file["im"], file["gt"] = clip(3), mask(3).transpose(1, 2, 0)
    else:
        np.savez(tmp_path / "source" / name, im=clip(3), gt=mask(3).transpose(1, 2, 0))
    arrays = {"axes": "fyx", "mask_axes": "yxf", "dataset": "im", "mask_dataset": "gt"}
    parts = {"layout": {"volume": r"a\.(h5|npz)"}, "arrays": arrays, "masks": NIFTI["masks"] | {"required": True}}
    _, found = run(tmp_path / "source", tmp_path / "lake", **parts)
    assert [r["has_mask"] for r in found] == [True] * 3
    for (image, classes), grey, numbers in zip(pixels(tmp_path / "lake"), clip(3), mask(3), strict=True):
        assert (image == grey).all() and (classes == numbers).all()
    _, found = run(tmp_path / "source", tmp_path / "lake2", **parts, frames={"annotated": "only"})
    assert len(found) == 3


@pytest.mark.parametrize("kind", ["binary", "outline"])
def test_masks_of_ones_are_told_by_the_threshold_and_outlines_are_filled(tmp_path, kind):
    ring = np.zeros((2, SIDE, SIDE), np.uint8)
    cv2.rectangle(ring[1], (50, 60), (90, 100), 1, 1)
    write(tmp_path / "source/a.npy", clip(2))
    write(tmp_path / "source/a_gt.npy", ring)
    parts = {
        "layout": {"volume": r"(?P<id>a)\.npy", "mask": r"(?P<id>a)_gt\.npy"},
        "arrays": {"axes": "fyx"},
        "masks": {"kind": kind, "threshold": 0},
    }
    run(tmp_path / "source", tmp_path / "lake", **parts)
    (_, empty), (_, found) = pixels(tmp_path / "lake")
    assert not empty.any()
    assert found.sum() == (41 * 41 if kind == "outline" else 4 * 40)


def test_a_picture_may_have_a_plain_array_as_its_mask_and_a_pickled_one_is_told(tmp_path):
    (tmp_path / "source").mkdir()
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"source/{name}.png"), clip(1, seed=ord(name))[0])
    write(tmp_path / "source/a.npy", mask(1)[0])
    np.save(tmp_path / "source/b.npy", np.array({"liver": 1}, object), allow_pickle=True)
    parts = {
        "layout": {"image": r"(?P<id>[ab])\.png", "mask": r"(?P<id>[ab])\.npy"},
        "arrays": {"axes": "yx"},
        "masks": NIFTI["masks"],
    }
    _, found = run(tmp_path / "source", tmp_path / "lake", **parts)
    assert [r["has_mask"] for r in found] == [True, False]
    assert (pixels(tmp_path / "lake")[0][1] == mask(1)[0]).all()
    assert quarantine(tmp_path / "lake") == [("b.npy", None, "mask", "pickled")]


# --- one mask file per frame ---------------------------------------------------------------------------------------


def per_frame(tmp_path: Path, names: dict[str, int]) -> Path:
    """A video of five frames and mask files: name -> width of the white square."""
    folder = tmp_path / "source"
    (folder / "masks/c1").mkdir(parents=True)
    writer = cv2.VideoWriter(str(folder / "c1.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (SIDE, SIDE))
    for frame in clip(5):
        writer.write(np.repeat(frame[..., None], 3, 2))
    writer.release()
    for name, width in names.items():
        picture = np.zeros((SIDE, SIDE), np.uint8)
        picture[:4, :width] = 255
        cv2.imwrite(str(folder / "masks/c1" / name), picture)
    return folder


PER_FRAME = {"layout": {"video": r"(?P<clip>c\d)\.avi", "mask": r"masks/(?P<clip>c\d)/\D*(?P<frame>\d*)(?:_\w)?\.png"}}


@pytest.mark.parametrize(
    ("names", "spec", "expected"),
    [
        ({"m2.png": 5, "m10.png": 7}, {"frame_from": "order"}, {0: 5, 1: 7}),
        ({"m2.png": 5, "m004.png": 7}, {"frame_from": "group"}, {2: 5, 4: 7}),
        ({"m2.png": 5, "m005.png": 7}, {"frame_from": "group", "frame_base": 1}, {1: 5, 4: 7}),
        ({"m2_a.png": 5, "m2_b.png": 9}, {"frame_from": "group"}, {2: 9}),  # merged
        ({"m.png": 5}, {}, {0: 5, 1: 5, 2: 5, 3: 5, 4: 5}),  # of the whole clip
    ],
)
def test_a_mask_file_belongs_to_the_frame_that_its_name_or_rank_says(tmp_path, names, spec, expected):
    source = per_frame(tmp_path, names)
    _, found = run(source, tmp_path / "lake", **PER_FRAME, masks={"kind": "binary", **spec})
    assert {r["frame"] for r in found if r["has_mask"]} == set(expected)
    widths = {k: int(m[0].sum()) for k, (_, m) in enumerate(pixels(tmp_path / "lake")) if m is not None}
    assert widths == expected
    _, found = run(
        source,
        tmp_path / "lake2",
        **PER_FRAME,
        masks={"kind": "binary", **spec},
        frames={"annotated": "only"},
    )
    assert [r["frame"] for r in found] == sorted(expected)


def test_a_mask_file_of_no_frame_is_quarantined_and_the_rest_comes_in(tmp_path):
    source = per_frame(tmp_path, {"m1.png": 5, "m5.png": 6, "m.png": 7})
    parts = PER_FRAME | {"masks": {"kind": "binary", "frame_from": "group"}}
    report, found = run(source, tmp_path / "lake", **parts)
    assert [r["has_mask"] for r in found] == [False, True, False, False, False]
    lost = [(f"masks/c1/{name}", None, "mask", "mask_without_frame") for name in ("m.png", "m5.png")]
    assert quarantine(tmp_path / "lake") == lost
    assert report.counts.quarantined == 2
    parts["masks"]["if_bad"] = "refuse"
    _, found = run(source, tmp_path / "lake2", **parts)
    assert not found
    assert quarantine(tmp_path / "lake2") == [("c1.avi", None, "scan", "mask_without_frame")]


def test_a_bad_mask_file_of_one_frame_leaves_the_others_alone(tmp_path):
    source = per_frame(tmp_path, {"m1.png": 5, "m2.png": 6, "m3.png": 7})
    (source / "masks/c1/m2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    _, found = run(source, tmp_path / "lake", **PER_FRAME, masks={"kind": "binary", "frame_from": "group"})
    assert [r["has_mask"] for r in found] == [False, True, False, True, False]
    assert quarantine(tmp_path / "lake") == [("masks/c1/m2.png", None, "mask", "truncated")]


def test_a_volumes_frames_may_have_array_files_of_their_own(tmp_path):
    write(tmp_path / "source/p1.npy", clip(3))
    write(tmp_path / "source/p1_2.npy", mask(3)[2])
    parts = {
        "layout": {"volume": r"(?P<clip>p1)\.npy", "mask": r"(?P<clip>p1)_(?P<frame>\d)\.npy"},
        "arrays": {"axes": "fyx", "mask_axes": "yx"},
        "masks": NIFTI["masks"] | {"frame_from": "group"},
    }
    _, found = run(tmp_path / "source", tmp_path / "lake", **parts)
    assert [r["has_mask"] for r in found] == [False, False, True]
    assert (pixels(tmp_path / "lake")[2][1] == mask(3)[2]).all()


# --- reruns --------------------------------------------------------------------------------------------------------


def test_one_and_two_workers_write_the_same_bytes_and_a_rerun_builds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MAX_SAMPLES", 5)
    for k in range(4):
        write(tmp_path / f"source/p{k}.nii.gz", clip(3, seed=k))
        write(tmp_path / f"source/p{k}_gt.nii.gz", mask(3))
    report, found = run(tmp_path / "source", tmp_path / "one", **NIFTI)
    assert len(found) == 12 and report.built == 3  # p1 and p3 are divided between shards
    run(tmp_path / "source", tmp_path / "two", workers=2, **NIFTI)
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")
    before = tree_digest(tmp_path / "one")
    report, _ = run(tmp_path / "source", tmp_path / "one", **NIFTI)
    assert (report.built, report.reused, report.changed) == (0, 3, False)
    assert tree_digest(tmp_path / "one") == before
    assert not verify(Lake(tmp_path / "one"))

    write(tmp_path / "source/p3_gt.nii.gz", mask(3) * (mask(3) < 2))  # of the last two shards' clips
    report, _ = run(tmp_path / "source", tmp_path / "one", **NIFTI)
    assert (report.built, report.reused) == (2, 1)
    run(tmp_path / "source", tmp_path / "anew", **NIFTI)
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "anew")


def test_threads_that_share_a_shard_write_the_same_bytes(source, tmp_path):
    run(source, tmp_path / "one", **NIFTI)
    run(source, tmp_path / "four", workers=4, **NIFTI)
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "four")


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
def test_numbers_beside_their_header_are_part_of_its_hash(tmp_path, name):
    parts = {"layout": {"volume": r"a\.(mhd|nhdr)", "ignore": r"a\.raw"}, "arrays": {"axes": "fyx"}}
    write(tmp_path / "source" / name, clip(2))
    _, before = run(tmp_path / "source", tmp_path / "lake", **parts)
    header = (tmp_path / "source" / name).read_bytes()
    write(tmp_path / "source" / name, clip(2, seed=9))
    assert (tmp_path / "source" / name).read_bytes() == header
    report, after = run(tmp_path / "source", tmp_path / "lake", **parts)
    assert report.built == 1
    assert before[0]["source_xxh"] != after[0]["source_xxh"] and before[0]["sample_id"] != after[0]["sample_id"]


def test_identical_copies_of_a_volume_stay_two_items(tmp_path):
    for name in ("p1", "p2"):
        write(tmp_path / f"source/{name}.nii.gz", clip(2))
    report, found = run(tmp_path / "source", tmp_path / "lake", **(NIFTI | {"masks": NIFTI["masks"]}))
    assert report.counts.copies == 1 and len({r["sample_id"] for r in found}) == 4


def test_expected_counts_take_volumes_with_frames_for_videos(tmp_path):
    write(tmp_path / "source/p1.nii.gz", clip(2))
    report, _ = run(tmp_path / "source", tmp_path / "lake", **NIFTI, expect={"videos": 3})
    assert report.notes == ["1 videos found; 3 were published"]
    record = dry_run_record(card(**NIFTI), tmp_path / "source")
    assert (record["items"], record["masks"]) == (1, 0)


def test_a_folder_without_a_volume_says_which_paths_were_expected(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/other.txt").write_text("x")
    layout = NIFTI["layout"] | {"example": {"volume": "p1.nii.gz", "mask": "p1_gt.nii.gz"}}
    with pytest.raises(CardError, match=r"for example 'p1\.nii\.gz'"):
        ingest(card(**(NIFTI | {"layout": layout})), tmp_path / "source", Lake.create(tmp_path / "lake"))


def test_labels_of_tables_reach_every_frame(source, tmp_path):
    (source / "labels.csv").write_text("id,ef\np1,55\np2,40\n")
    table = {"file": r"labels\.csv", "key": "id", "match": "patient", "columns": {"targets.ef": "ef"}}
    _, found = run(source, tmp_path / "lake", **NIFTI, tables=[table], target="ef")
    assert [r["target"] for r in found] == [55, 55, 55, 55, 40]
    assert json.loads(found[0]["targets"]) == {"ef": 55.0}
    assert rows(tmp_path / "lake") == found
    assert counted(2, 2).tolist() == [[0, 1], [2, 3]]
