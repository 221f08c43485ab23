"""From annotation files to the lake: each shape finds its picture, and what can't be used is told, never dropped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.datasets import echo, save, save_video

from ingest.card import Card
from ingest.layout import list_items
from ingest.readers.shapes import annotated_frames
from ingest.readers.shapes_draw import draw_mask
from ingest.run import ingest
from usdata import mask_png
from usdata.errors import CardError
from usdata.export_coco import write_coco
from usdata.lake import Lake
from usdata.rebuild import rebuild_catalog
from usdata.verify import verify

BASE = {
    **{"name": "mine", "title": "My images", "citation": "none", "licence": "CC0-1.0"},
    **{"commercial_use": "yes", "redistribution": "yes", "deid_profile": "public", "defaults": {"organ": "liver"}},
}
DRAWN = {"kind": "drawn", "classes": ["background", "liver", "mass"]}
PER_PICTURE = {
    "layout": {"image": r"(?P<set>\w)/(?P<stem>\w+)\.png"},
    "masks": DRAWN,
    "annotations": [
        {"file": r"(?P<set>\w)/(?P<name>liver|mass)/(?P<stem>\w+)\.json", "format": "points"}
        | {"key": "{set}/{stem}", "match": "{set}/{stem}"}
    ],
}
BOX = [[8, 8], [40, 8], [40, 32], [8, 32]]


def card(**changes: Any) -> Card:
    return Card.model_validate(BASE | changes)


def write(root: Path, path: str, content: Any) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content if isinstance(content, str) else json.dumps(content))


def picture(root: Path, path: str, seed: int = 1) -> None:
    save(echo(64, 48, seed), root / path)


def lake_of(spec: Card, root: Path, place: Path) -> Lake:
    lake = Lake.create(place) if not place.exists() else Lake(place)
    ingest(spec, root, lake)
    return lake


def rows(lake: Lake) -> dict[str, dict]:
    return {row["source_id"]: row for row in lake.sql("select * from samples order by source_id, frame").to_pylist()}


def stored_mask(lake: Lake, row: dict) -> np.ndarray:
    with (lake.root / row["shard"]).open("rb") as file:
        file.seek(row["mask_offset"])
        return mask_png.decode(file.read(row["mask_size"]))


def quarantine(lake: Lake) -> list[tuple]:
    found = lake.sql("select source_id, frame, stage, reason from quarantine order by all").to_pylist()
    return [tuple(row.values()) for row in found]


# --- per picture ------------------------------------------------------------------------------------------------------


def per_picture(root: Path) -> Path:
    """Two sets whose pictures bear the same names: an outline of each class, one class only, none."""
    for path in ("a/1.png", "a/2.png", "b/1.png"):
        picture(root, path)
    write(root, "a/liver/1.json", BOX)
    write(root, "a/mass/1.json", [[16, 16], [24, 16], [24, 24], [16, 24]])
    write(root, "b/mass/1.json", [[0, 0], [8, 0], [8, 8], [0, 8]])
    return root


def test_outlines_become_class_indices_of_the_stored_mask(tmp_path):
    lake = lake_of(card(**PER_PICTURE), per_picture(tmp_path / "s"), tmp_path / "lake")
    found = rows(lake)
    assert [row["has_mask"] for row in found.values()] == [True, False, True]
    assert found["a/1.png"]["mask_classes"] == DRAWN["classes"]
    mask = stored_mask(lake, found["a/1.png"])  # 64 x 48 pixels stretched by 4 and 16/3
    shares = [(mask == k).mean() for k in range(3)]
    assert shares[1] == pytest.approx((32 * 24 - 64) / (64 * 48), abs=0.003)
    assert shares[2] == pytest.approx(64 / (64 * 48), abs=0.003)
    assert (mask[86:128, 64:96] == 2).all()
    assert quarantine(lake) == [] and verify(lake) == []


def test_every_annotation_file_counts_once_and_shapes_without_a_picture_are_noted(tmp_path):
    root = per_picture(tmp_path)
    write(root, "b/liver/7.json", BOX)
    listing = list_items(card(**PER_PICTURE), root)
    assert listing.files == 7 and len(listing.items) == 3 and len(listing.tables) == 4 and not listing.problems
    assert [note for note in listing.notes if "1 shapes of 1 pictures that are not here (b/7)" in note]


def test_an_unreadable_annotation_leaves_its_picture_without_a_mask_and_says_so(tmp_path):
    root = per_picture(tmp_path / "s")
    write(root, "a/mass/1.json", "[[1, 2")
    lake = lake_of(card(**PER_PICTURE), root, tmp_path / "lake")
    assert [row["has_mask"] for row in rows(lake).values()] == [False, False, True]
    assert quarantine(lake) == [("a/1.png", None, "mask", "annotation_unreadable")]
    assert "a/mass/1.json" in lake.sql("select detail from quarantine").to_pylist()[0]["detail"]
    strict = card(**PER_PICTURE | {"masks": DRAWN | {"if_bad": "refuse"}})
    lake = lake_of(strict, root, tmp_path / "strict")
    assert list(rows(lake)) == ["a/2.png", "b/1.png"]


def test_an_unreadable_annotation_that_nothing_ties_to_a_picture_is_a_problem_of_its_own(tmp_path):
    picture(tmp_path, "a/1.png")
    write(tmp_path, "a/1.json", "{")
    spec = {"file": r"a/\w+\.json", "format": "labelme", "key": "file", "match": "name"}
    listing = list_items(card(**PER_PICTURE | {"annotations": [spec]}), tmp_path)
    assert listing.files == 2 and listing.items[0].shapes == () and listing.tables == ()
    assert [(problem.path, problem.reason) for problem in listing.problems] == [("a/1.json", "table_unreadable")]


def test_an_image_without_a_shape_is_refused_if_the_card_requires_masks(tmp_path):
    root = per_picture(tmp_path)
    listing = list_items(card(**PER_PICTURE | {"masks": DRAWN | {"required": True}}), root)
    assert [(problem.path, problem.reason) for problem in listing.problems] == [("a/2.png", "image_without_mask")]


def test_a_name_that_the_card_does_not_list_is_bad_and_background_leaves_a_shape_out(tmp_path):
    picture(tmp_path, "a/1.png")
    shapes = [{"label": name, "points": BOX} for name in ("gan", "zhongliu", "outline")]
    write(tmp_path, "a/1.json", {"shapes": shapes, "imagePath": "1.png"})
    spec = {"file": r"a/(?P<stem>\w+)\.json", "format": "labelme", "key": "stem", "match": "stem"}
    names = {"gan": "liver", "zhongliu": "mass", "outline": "background"}
    listing = list_items(card(**PER_PICTURE | {"annotations": [spec | {"classes": names}]}), tmp_path)
    assert [shape.name for shape in listing.items[0].shapes] == ["liver", "mass"]
    assert [note for note in listing.notes if "1 shapes are left out" in note]
    listing = list_items(card(**PER_PICTURE | {"annotations": [spec | {"classes": {"gan": "liver"}}]}), tmp_path)
    assert [shape.kind for shape in listing.items[0].shapes] == ["polygon", "bad", "bad"]


def test_one_xml_may_be_a_table_and_hold_outlines(tmp_path):
    for k in (1, 2):
        picture(tmp_path, f"12_{k}.png", k)
    outline = json.dumps([{"points": [{"x": x, "y": y} for x, y in BOX], "regionType": "freehand"}])
    mark = "<mark><image>{}</image><svg>{}</svg></mark>"
    write(tmp_path, "12.xml", f"<case><tirads>4a</tirads>{mark.format(1, outline)}{mark.format(2, '')}</case>")
    spec = card(
        layout={"image": r"(?P<case>\d+)_(?P<k>\d)\.png"},
        labels={"tirads": ["3", "4a"]},
        masks={"kind": "drawn", "classes": ["background", "nodule"]},
        tables=[
            {"file": r"(?P<case>\d+)\.xml", "key": "case", "match": "case", "columns": {"labels.tirads": "tirads"}}
        ],
        annotations=[
            {"file": r"(?P<case>\d+)\.xml", "format": "svg", "key": "{case}_{image}", "match": "{case}_{k}"},
        ],
    )
    listing = list_items(spec, tmp_path)
    assert [len(item.shapes) for item in listing.items] == [1, 0]
    assert {item.fields["labels"] for item in listing.items} == {'{"tirads":"4a"}'}
    assert (listing.tables, listing.files) == (("12.xml",), 3)
    assert any("1 marks have an empty svg" in note for note in listing.notes)


def test_a_required_file_that_is_missing_and_a_damaged_one_of_all_pictures_stop_the_ingest(tmp_path):
    picture(tmp_path, "a/1.png")
    spec = {"file": r"all\.json", "format": "coco", "key": "file", "match": "name", "required": True}
    wrong = card(**PER_PICTURE | {"annotations": [spec]})
    with pytest.raises(CardError, match="requires are missing"):
        list_items(wrong, tmp_path)
    write(tmp_path, "all.json", "{}")
    with pytest.raises(CardError, match="Can't read the annotations: not COCO"):
        list_items(wrong, tmp_path)


# --- reruns -----------------------------------------------------------------------------------------------------------


def test_a_changed_annotation_builds_its_shard_again_and_an_unchanged_one_does_not(tmp_path):
    root = per_picture(tmp_path / "s")
    lake = Lake.create(tmp_path / "lake")
    ingest(card(**PER_PICTURE), root, lake)
    before = stored_mask(lake, rows(lake)["a/1.png"])
    assert not ingest(card(**PER_PICTURE), root, lake).changed
    write(root, "a/mass/1.json", [[16, 16], [24, 16], [24, 25], [16, 25]])
    assert ingest(card(**PER_PICTURE), root, lake).changed
    assert (stored_mask(Lake(lake.root), rows(Lake(lake.root))["a/1.png"]) != before).any()


# --- clips ------------------------------------------------------------------------------------------------------------

TRACINGS = """FileName,X1,Y1,X2,Y2,Frame
c.avi,1,1,2,2,1
c.avi,10,10,30,10,1
c.avi,10,30,30,30,1
c.avi,1,1,2,2,3
c.avi,10,10,30,10,3
c.avi,x,30,30,30,3
"""
CLIP = {
    "layout": {"video": r"(?P<stem>\w+)\.mp4"},
    "masks": {"kind": "drawn", "classes": ["background", "ventricle"]},
    "annotations": [
        {"file": r"t\.csv", "format": "tracings", "key": "stem", "match": "stem", "skip_first": 1}
        | {"columns": {"file": "FileName", "x": "X1", "y": "Y1", "x2": "X2", "y2": "Y2", "frame": "Frame"}}
    ],
}


def test_tracings_belong_to_their_frames_of_a_clip(tmp_path):
    save_video(tmp_path / "s/c.mp4", 5)
    write(tmp_path / "s", "t.csv", TRACINGS)
    (item,) = list_items(card(**CLIP), tmp_path / "s").items
    assert annotated_frames(item.shapes) == (1,)
    lake = lake_of(card(**CLIP), tmp_path / "s", tmp_path / "lake")
    found = lake.sql("select * from samples order by frame").to_pylist()
    assert [row["has_mask"] for row in found] == [False, True, False, False, False]
    assert (stored_mask(lake, found[1]) == 1).mean() == pytest.approx(400 / 64**2, abs=0.001)
    assert quarantine(lake) == [("c.mp4", 3, "mask", "annotation_unreadable")]


def test_shapes_of_frames_that_a_clip_does_not_have_are_told(tmp_path):
    save_video(tmp_path / "s/c.mp4", 3)
    write(tmp_path / "s", "t.csv", TRACINGS.replace("x,30", "10,30"))  # frames 1 and 3, the second one past the last
    lake = lake_of(card(**CLIP), tmp_path / "s", tmp_path / "lake")
    assert lake.sql("select count(*) n from samples where has_mask").to_pylist() == [{"n": 1}]
    assert quarantine(lake) == [("c.mp4", None, "mask", "mask_without_frame")]


# --- labels from masks ------------------------------------------------------------------------------------------------

LABELLED = {
    "layout": {"image": r"i/(?P<stem>\w+)\.png", "mask": r"m/(?P<stem>\w+)\.png"},
    "labels": {"label": ["normal", "benign", "malignant"]},
    "masks": {
        **{"kind": "colour", "classes": ["background", "benign", "malignant"]},
        **{"colours": {"0,0,0": "background", "0,255,0": "benign", "255,0,0": "malignant"}},
        "label": {"malignant": "malignant", "benign": "benign", "background": "normal"},
    },
}


def coloured(root: Path, name: str, *colours: tuple[int, int, int]) -> None:
    """A picture, and a mask with a block of each colour in its right half."""
    picture(root, f"i/{name}.png", len(name))
    mask = np.zeros((48, 64, 3), np.uint8)
    for k, colour in enumerate(colours):
        mask[10 + 8 * k : 16 + 8 * k, 40:50] = colour
    save(mask, root / f"m/{name}.png")


def test_a_label_comes_from_the_whole_mask_even_where_a_crop_leaves_nothing_of_it(tmp_path):
    root = tmp_path / "s"
    coloured(root, "n")
    coloured(root, "be", (0, 255, 0))
    coloured(root, "mal", (0, 255, 0), (255, 0, 0))
    lake = lake_of(card(**LABELLED, crop=[0, 0, 32, 48]), root, tmp_path / "lake")
    found = rows(lake)
    assert {path: row["label"] for path, row in found.items()} == {
        **{"i/n.png": "normal", "i/be.png": "benign", "i/mal.png": "malignant"}
    }
    assert stored_mask(lake, found["i/mal.png"]).max() == 0


def test_an_image_whose_label_hangs_on_a_bad_mask_is_refused_and_one_without_a_mask_has_none(tmp_path):
    root = tmp_path / "s"
    coloured(root, "good", (0, 255, 0))
    coloured(root, "odd", (1, 2, 3))
    picture(root, "i/none.png", 9)
    lake = lake_of(card(**LABELLED), root, tmp_path / "lake")
    assert {path: row["label"] for path, row in rows(lake).items()} == {"i/good.png": "benign", "i/none.png": None}
    assert quarantine(lake) == [("i/odd.png", None, "mask", "label_missing")]
    assert "1,2,3" in lake.sql("select detail from quarantine where source_id = 'i/odd.png'").to_pylist()[0]["detail"]


def test_colours_that_are_not_listed_may_be_background(tmp_path):
    root = tmp_path / "s"
    coloured(root, "odd", (1, 2, 3), (0, 255, 0))
    tolerant = LABELLED | {"masks": LABELLED["masks"] | {"other": "background"}}
    assert rows(lake_of(card(**tolerant), root, tmp_path / "lake"))["i/odd.png"]["label"] == "benign"


# --- mask files -------------------------------------------------------------------------------------------------------


def masked(root: Path, mask: np.ndarray, **masks: Any) -> tuple[Lake, dict]:
    picture(root / "s", "i/x.png")
    save(mask, root / "s/m/x.png")
    layout = {"image": r"i/(?P<stem>\w+)\.png", "mask": r"m/(?P<stem>\w+)\.png"}
    lake = lake_of(card(layout=layout, masks=masks), root / "s", root / "lake")
    return lake, rows(lake)["i/x.png"]


def test_a_mask_that_lies_on_its_side_is_turned_back_clockwise(tmp_path):
    upright = np.zeros((48, 64), np.uint8)
    upright[:6, :8] = 255  # the upper left corner
    lake, row = masked(tmp_path, np.rot90(upright).copy(), turned=True)
    mask = stored_mask(lake, row)
    assert mask[:32, :32].all() and mask.sum() == 32 * 32


def test_a_mask_is_background_where_there_is_no_echo(tmp_path):
    root = tmp_path / "s"
    pixels = echo(64, 48) | 1
    pixels[:24] = 0
    save(pixels, root / "i/x.png")
    save(np.full((48, 64), 255, np.uint8), root / "m/x.png")
    layout = {"image": r"i/(?P<stem>\w+)\.png", "mask": r"m/(?P<stem>\w+)\.png"}
    lake = lake_of(card(layout=layout, masks={"inside_echo": True}), root, tmp_path / "lake")
    mask = stored_mask(lake, rows(lake)["i/x.png"])
    assert not mask[:128].any() and mask[128:].all()


def test_rings_of_every_class_are_filled_and_what_lies_in_them_stays(tmp_path):
    numbers = np.zeros((48, 64), np.uint8)
    numbers[8:40, 8:40] = 2
    numbers[10:38, 10:38] = 0  # a ring of class 2
    numbers[20:24, 20:24] = 1  # class 1 inside
    lake, row = masked(tmp_path, numbers, kind="index", classes=["background", "a", "b"], fill=True)
    mask = stored_mask(lake, row)
    assert (mask == 1).mean() == pytest.approx(16 / (48 * 64), abs=0.002)
    assert (mask == 2).mean() == pytest.approx((32 * 32 - 16) / (48 * 64), abs=0.004)


# --- marks ------------------------------------------------------------------------------------------------------------

MARKED = {
    "layout": {"image": r"i/(?P<stem>\w+)\.png"},
    "annotations": [{"file": r"b\.json", "format": "named", "key": "file", "match": "name", "becomes": "marks"}],
}


def marked(root: Path) -> Path:
    for name in ("x", "y"):
        picture(root, f"i/{name}.png", ord(name))
    write(
        root,
        "b.json",
        {"x.png": {"dim": [64, 48], "bbs": [["nml", [16, 12, 32, 24]]]}, "z.png": {"a": {"x": 1, "y": 2}}},
    )
    return root


def test_marks_reach_the_catalog_the_shard_and_a_rebuilt_catalog(tmp_path):
    lake = lake_of(card(**MARKED), marked(tmp_path / "s"), tmp_path / "lake")
    found = rows(lake)
    assert json.loads(found["i/x.png"]["marks"]) == [{"name": "nml", "box": [16, 12, 32, 24]}]
    assert found["i/y.png"]["marks"] is None and not found["i/x.png"]["has_mask"]
    assert verify(lake) == []
    before = lake.catalog_part("mine").read_bytes()
    lake.catalog_part("mine").unlink()
    assert list(rebuild_catalog(lake)) == ["mine"]
    assert lake.catalog_part("mine").read_bytes() == before


def test_bad_marks_leave_the_image_without_them_and_say_so(tmp_path):
    root = marked(tmp_path / "s")
    write(root, "b.json", {"x.png": {"a": [[1, 2, 3]]}, "y.png": {"a": [[1, 2, 3, 4]]}})
    lake = lake_of(card(**MARKED), root, tmp_path / "lake")
    assert [row["marks"] is None for row in rows(lake).values()] == [True, False]
    assert quarantine(lake) == [("i/x.png", None, "mask", "annotation_unreadable")]


def test_a_lake_from_before_marks_still_opens(tmp_path):
    import pyarrow.parquet as pq

    lake = lake_of(card(**MARKED), marked(tmp_path / "s"), tmp_path / "lake")
    part = lake.catalog_part("mine")
    pq.write_table(pq.read_table(part).drop_columns(["marks"]), part)
    old = Lake(lake.root)
    assert old.sql("select marks from samples").to_pylist() == [{"marks": None}] * 2
    write_coco(old.cohort("marks is null"), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["annotations"] == []


def test_marks_become_boxes_of_the_stored_image_in_coco(tmp_path):
    lake = lake_of(card(**MARKED, crop=[0, 0, 32, 48]), marked(tmp_path / "s"), tmp_path / "lake")
    done = write_coco(lake.cohort("true"), tmp_path / "out.json")
    assert "1 objects are boxes" in done.notes[1] and "1 images have neither a mask nor a box" in done.notes[2]
    content = json.loads((tmp_path / "out.json").read_text())
    (one,) = content["annotations"]
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert names[one["category_id"]] == "nml"
    assert one["bbox"] == [128, 64, 128, 64]  # x times 256/32, y times 256/48
    assert one["area"] == 128 * 64


# --- real files -------------------------------------------------------------------------------------------------------


def test_the_real_coco_polygons_have_the_areas_that_the_file_states(real_data):
    spec = card(
        layout={"image": r"sample_images/(?P<stem>[^/]+)\.png"},
        masks={"kind": "drawn", "classes": ["background", "tumour"]},
        annotations=[
            {"file": r"sample_coco_MMOTU2D\.json", "format": "coco", "key": "file", "match": "name"}
            | {"classes": {"object": "tumour"}}
        ],
    )
    listing = list_items(spec, real_data / "mmotu-sample")
    assert len(listing.items) == 10 and listing.notes == () and listing.problems == ()
    content = json.loads((real_data / "mmotu-sample/sample_coco_MMOTU2D.json").read_text())
    stated = {one["image_id"]: (one["area"], one["bbox"]) for one in content["annotations"]}
    by_name = {one["file_name"]: (one["height"], one["width"], *stated[one["id"]]) for one in content["images"]}
    for item in listing.items:
        height, width, area, (x, y, w, h) = by_name[Path(item.path).name]
        mask = draw_mask(item.shapes, spec.masks, (height, width))
        rows, columns = np.nonzero(mask)
        assert mask.sum() == area
        assert (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1) == (x, y, w, h)


def test_the_real_via_outlines_agree_with_the_masks_published_beside_them(real_data):
    from ingest.readers.image import read_image

    others = ["Central Echo Complex", "Medulla", "Cortex"]
    spec = card(
        layout={
            "image": r"labels/reviewed_masks_1/capsule/(?P<stem>[^/]+)\.png",
            "ignore": [r".*/regions/.*", r".*\.xlsx"],
        },
        masks={"kind": "drawn", "classes": ["background", "kidney"]},
        labels={"quality": ["Unsatisfactory", "Poor", "Fair", "Good"]},
        tables=[
            {"file": r"labels/reviewed_labels_1\.csv", "key": "filename", "match": "name"}
            | {"columns": {"view": "file_attributes.View", "labels.quality": "file_attributes.Quality"}}
        ],
        annotations=[
            {"file": r"labels/reviewed_labels_1\.csv", "format": "via", "key": "file", "match": "name"}
            | {"classes": {"Capsule": "kidney"} | dict.fromkeys(others, "background")}
        ],
    )
    listing = list_items(spec, real_data / "kidneyus-labels")
    assert len(listing.items) == 12 and listing.problems == ()
    assert any("47 rows have no region" in note for note in listing.notes)
    assert {item.fields["view"] for item in listing.items} == {"Longitudinal", "Transverse"}
    for item in listing.items:
        published = read_image(real_data / "kidneyus-labels" / item.path) > 0
        drawn = draw_mask(item.shapes, spec.masks, published.shape) > 0
        assert 2 * (published & drawn).sum() / (published.sum() + drawn.sum()) > 0.985


def test_an_annotation_file_that_fits_two_pictures_is_given_to_neither(tmp_path):
    root = tmp_path / "source"
    for path in ("a/1.png", "b/1.png", "a/2.png"):
        picture(root, path)
    write(root, "a/liver/1.json", BOX)
    write(root, "a/liver/2.json", BOX)
    by_name = PER_PICTURE["annotations"][0] | {"key": "stem", "match": "stem"}
    lake = lake_of(card(**PER_PICTURE | {"annotations": [by_name]}), root, tmp_path / "lake")
    assert {path: row["has_mask"] for path, row in rows(lake).items()} == {
        "a/1.png": False,
        "a/2.png": True,
        "b/1.png": False,
    }
    unreadable = "mask", "annotation_unreadable"
    assert quarantine(lake) == [("a/1.png", None, *unreadable), ("b/1.png", None, *unreadable)]
