"""Annotation files of every format give the shapes that stand in them, and damaged ones say what is wrong."""

import json
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.card_parts import Annotations
from ingest.readers.shapes import Found, Unusable, _reader
from ingest.readers.shapes_json import decode_counts

SQUARE = [[1, 1], [5, 1], [5, 5], [1, 5]]


def annotations(format: str, **more) -> Annotations:
    return Annotations.model_validate({"file": ".*", "format": format, "key": "stem", "match": "stem"} | more)


def read(folder: Path, format: str, content, odd: Counter | None = None, **more) -> list[Found]:
    path = folder / {"via": "a.csv", "tracings": "a.csv", "rle": "a.csv", "voc": "a.xml", "svg": "a.xml"}.get(
        format, "a.json"
    )
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    one = annotations(format, **more)
    return list(_reader(one)(path, one, Counter() if odd is None else odd))


def kinds(found: list[Found]) -> list[tuple[str, str]]:
    return [(one.shape.name, one.shape.kind) for one in found]


# --- COCO -------------------------------------------------------------------------------------------------------------


def coco(*entries, **picture) -> dict:
    return {
        "images": [{"id": 7, "file_name": "images/x.1.png", "height": 6, "width": 8} | picture],
        "categories": [{"id": 1, "name": "mass"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1} | entry for entry in entries],
    }


def test_coco_polygons_keep_their_points_their_class_and_the_size_of_their_picture(tmp_path):
    (found,) = read(tmp_path, "coco", coco({"segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}))
    assert (found.words["file"], found.words["stem"]) == ("images/x.1.png", "x.1")
    assert (found.shape.name, found.shape.kind, found.shape.size) == ("mass", "polygon", (6, 8))
    np.testing.assert_array_equal(found.shape.points, SQUARE)


def test_coco_boxes_become_corners(tmp_path):
    (found,) = read(tmp_path, "coco", coco({"bbox": [1, 2, 3, 4]}), becomes="marks")
    np.testing.assert_array_equal(found.shape.points, [[1, 2], [4, 6]])


def test_coco_runs_are_read_plain_and_compressed(tmp_path):
    plain = {"size": [3, 4], "counts": [1, 2, 3, 1, 5]}
    (found,) = read(tmp_path, "coco", coco({"segmentation": plain}, height=3, width=4))
    np.testing.assert_array_equal(found.shape.points, [[1, 2], [6, 1]])
    packed = plain | {"counts": compress(plain["counts"])}
    (same,) = read(tmp_path, "coco", coco({"segmentation": packed}, height=3, width=4))
    assert same.shape == found.shape


def compress(counts: list[int]) -> str:
    """pycocotools' `rleToString`, written from its description."""
    text = ""
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        while True:
            code, value = value & 31, value >> 5
            done = value == (-1 if code & 16 else 0)
            text += chr(code + (0 if done else 32) + 48)
            if done:
                break
    return text


@given(st.lists(st.integers(0, 10**6), max_size=30))
def test_compressed_run_lengths_come_back_as_they_were(counts):
    assert decode_counts(compress(counts)) == counts


def test_a_known_compressed_code_is_read_as_pycocotools_reads_it():
    assert decode_counts("52203") == [5, 2, 2, 2, 5]


@settings(max_examples=200)
@given(st.text(max_size=20))
def test_no_text_makes_run_lengths_hang_or_crash(text):
    with suppress(Unusable):
        assert all(isinstance(count, int) for count in decode_counts(text))


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({}, "no segmentation"),
        ({"segmentation": []}, "no segmentation"),
        ({"segmentation": [[1, 2, 3]]}, "odd count"),
        ({"segmentation": [[1, 2, 3, 4]]}, "2 points make no polygon"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, "no pixel of a picture|no list of points"),
        ({"segmentation": {"counts": [1]}}, "without their size"),
        ({"segmentation": {"size": [6, 8], "counts": [1, 2]}}, "3 pixels for 6 x 8"),
        ({"segmentation": {"size": [6, 8], "counts": [-1, 49]}}, "no counts"),
        ({"segmentation": {"size": [6, 8], "counts": "zzz"}}, "can't be decoded"),
        ({"segmentation": {"size": [6, 8], "counts": "P"}}, "end inside a number"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5]], "category_id": 9}, "no category 9"),
    ],
)
def test_a_bad_object_of_coco_is_a_bad_shape_of_its_picture(tmp_path, entry, why):
    import re

    (found,) = read(tmp_path, "coco", coco(entry))
    assert found.words["stem"] == "x.1" and found.shape.kind == "bad"
    assert re.search(why, found.shape.name)


def test_objects_of_pictures_that_coco_does_not_list_are_counted(tmp_path):
    odd: Counter[str] = Counter()
    assert read(tmp_path, "coco", coco({"image_id": 8}), odd) == []
    assert sum(odd.values()) == 1


@pytest.mark.parametrize(
    "content", ["", "[", "[]", "{}", '{"images": 1}', '{"a": 1, "a": 2}', b"\xff\xfe", "[" * 10**5]
)
@pytest.mark.parametrize("format", ["coco", "labelme"])
def test_json_that_is_not_of_the_format_is_a_value_error(tmp_path, content, format):
    with pytest.raises(ValueError):
        read(tmp_path, format, content)


def test_two_pictures_of_one_id_are_refused(tmp_path):
    content = coco()
    content["images"] *= 2
    with pytest.raises(ValueError, match="two images have the id 7"):
        read(tmp_path, "coco", content)


# --- labelme, points --------------------------------------------------------------------------------------------------


def test_labelme_gives_polygons_boxes_circles_lines_and_points(tmp_path):
    shapes = [
        {"label": "a", "points": SQUARE, "shape_type": "polygon"},
        {"label": "b", "points": [[1, 1], [5, 5]], "shape_type": "rectangle"},
        {"label": "b4", "points": SQUARE, "shape_type": "rectangle"},
        {"label": "c", "points": [[4, 4], [7, 8]], "shape_type": "circle"},
        {"label": "d", "points": [[4, 4], [7, 8]], "shape_type": "linestrip"},
        {"label": "e", "points": [[4, 4]], "shape_type": "point"},
        {"label": "f", "points": SQUARE},
    ]
    content = {"shapes": shapes, "imagePath": "..\\b\\x.jpg", "imageHeight": 9, "imageWidth": 10, "imageData": None}
    found = read(tmp_path, "labelme", content)
    assert kinds(found) == [
        *(("a", "polygon"), ("b", "box"), ("b4", "polygon"), ("c", "polygon")),
        *(("d", "line"), ("e", "points"), ("f", "polygon")),
    ]
    assert {one.words["stem"] for one in found} == {"x"} and {one.shape.size for one in found} == {(9, 10)}
    distance = np.hypot(*(found[3].shape.points - [4, 4]).T)
    assert distance == pytest.approx(np.full(128, 5.0))  # 3, 4, 5


@pytest.mark.parametrize(
    "shape",
    [
        *(1, {}, {"points": 3}, {"points": [[1, 2]]}, {"points": SQUARE, "shape_type": "mask"}, {"points": [1, 2, 3]}),
        {"points": [[4, 4], [4, 4]], "shape_type": "circle"},
        {"points": [[1, 2, 3], [1, 2, 3]], "shape_type": "circle"},
    ],
)
def test_a_bad_shape_of_labelme_is_bad_and_the_others_are_read(tmp_path, shape):
    good = {"label": "a", "points": SQUARE}
    assert [kind for _, kind in kinds(read(tmp_path, "labelme", {"shapes": [shape, good]}))] == ["bad", "polygon"]


def test_bytes_that_are_no_utf8_are_replaced_and_counted(tmp_path):
    odd: Counter[str] = Counter()
    text = json.dumps({"shapes": [{"label": "shenjing", "points": SQUARE}], "imagePath": "@"}).encode()
    (found,) = read(tmp_path, "labelme", text.replace(b"@", b"\xb5\xda1.jpg"), odd)
    assert found.shape.name == "shenjing"
    assert odd == {"files hold bytes that are not utf-8, which were replaced": 1}


def test_points_are_one_outline_or_several(tmp_path):
    assert kinds(read(tmp_path, "points", SQUARE)) == [("", "polygon")]
    assert kinds(read(tmp_path, "points", [SQUARE, SQUARE[:3]])) == [("", "polygon")] * 2
    assert read(tmp_path, "points", []) == []
    for content in ({}, [1, 2], [[1, 2]], [[[1, 2]]], "x", [None], [[]]):
        with pytest.raises(ValueError):
            read(tmp_path, "points", content)


# --- named ------------------------------------------------------------------------------------------------------------


def test_named_points_and_curves_of_unity_imaging(tmp_path):
    odd: Counter[str] = Counter()
    labels = {
        "hinge": {"type": "point", "x": "12.5", "y": "7"},
        "endo": {"type": "curve", "x": "1 2 3", "y": "4,5,6"},
        "apex": {"type": "blurred", "x": "", "y": ""},
        "plain": {"x": 3, "y": [4]},
    }
    found = read(tmp_path, "named", {"01-ab-0000.png": {"labels": labels}}, odd, becomes="marks")
    assert kinds(found) == [("hinge", "points"), ("endo", "line"), ("plain", "points")]
    np.testing.assert_array_equal(found[1].shape.points, [[1, 4], [2, 5], [3, 6]])
    assert odd == {"names are blurred: no shape": 1}


def test_named_boxes_of_gbcu(tmp_path):
    content = {
        "im1.jpg": {"dim": [80, 60], "bbs": [["nml", [1, 2, 3, 4]], ["abn", [5, 6, 7, 8]]]},
        "im2.jpg": {"bbs": []},
    }
    found = read(tmp_path, "named", content, becomes="marks")
    assert kinds(found) == [("nml", "box"), ("abn", "box")] and found[0].shape.size == (60, 80)
    assert kinds(read(tmp_path, "named", {"a": {"mass": [[1, 2, 3, 4]]}})) == [("mass", "box")]


@pytest.mark.parametrize(
    "entry",
    [
        *(3, {"a": 3}, {"a": {"x": 1}}, {"a": {"x": [1], "y": [1, 2]}}, {"a": {"x": "q", "y": 1}}, {"a": [[1, 2]]}),
        *({"a": [["b", 3]]}, {"a": [None]}, {"a": {"x": [], "y": []}}, {"a": {"x": [[1]], "y": [[1]]}}),
    ],
)
def test_a_bad_entry_of_named_is_bad_for_its_picture_only(tmp_path, entry):
    found = read(tmp_path, "named", {"x.png": entry, "y.png": {"b": {"x": 1, "y": 2}}})
    assert [(one.words["stem"], one.shape.kind) for one in found] == [("x", "bad"), ("y", "points")]


# --- VIA --------------------------------------------------------------------------------------------------------------


def via(*regions, about='{"Anatomy": "Capsule"}') -> str:
    def cell(text):
        return '"' + text.replace('"', '""') + '"'

    head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    return head + "".join(f"x.png,1,{{}},1,{k},{cell(json.dumps(r))},{cell(about)}\n" for k, r in enumerate(regions))


def test_via_gives_all_kinds_of_regions(tmp_path):
    polygon = {"name": "polygon", "all_points_x": [1, 5, 5, 1], "all_points_y": [1, 1, 5, 5]}
    odd: Counter[str] = Counter()
    found = read(
        tmp_path,
        "via",
        via(
            polygon,
            polygon | {"name": "polyline"},
            {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
            {"name": "circle", "cx": 4, "cy": 4, "r": 2.5},
            {"name": "ellipse", "cx": 4, "cy": 4, "rx": 2, "ry": 3, "theta": 0.5},
            {"name": "point", "cx": 4, "cy": 5},
            {},
        ),
        odd,
    )
    assert [kind for _, kind in kinds(found)] == ["polygon", "line", "box", "polygon", "polygon", "points"]
    assert {name for name, _ in kinds(found)} == {"Capsule"} and sum(odd.values()) == 1
    np.testing.assert_array_equal(found[0].shape.points, SQUARE)
    np.testing.assert_array_equal(found[2].shape.points, [[1, 2], [4, 6]])


def test_the_attribute_that_names_a_region_of_via_can_be_chosen(tmp_path):
    text = via({"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}, about='{"Anatomy": "Capsule", "Sure": "no"}')
    assert kinds(read(tmp_path, "via", text, columns={"name": "Anatomy"})) == [("Capsule", "box")]
    assert kinds(read(tmp_path, "via", text)) == [("", "box")]


@pytest.mark.parametrize(
    "region",
    [
        *(
            {"name": "polygon"},
            {"name": "polygon", "all_points_x": [1], "all_points_y": []},
            {"name": "rect", "x": "1"},
        ),
        *({"name": "spiral"}, {"name": "circle", "cx": 1, "cy": 1, "r": -1}, [1], {"x": 1}),
    ],
)
def test_a_bad_region_of_via_is_bad(tmp_path, region):
    ((_, kind),) = kinds(read(tmp_path, "via", via(region)))
    assert kind == "bad"


@pytest.mark.parametrize("content", ["a,b\n1,2\n", b"\xff\xfe\x00", 'filename,"x\n'])
def test_a_table_that_is_not_of_via_is_a_value_error(tmp_path, content):
    with pytest.raises(ValueError):
        read(tmp_path, "via", content)


# --- tracings ---------------------------------------------------------------------------------------------------------

ECHONET = {"file": "FileName", "x": "X1", "y": "Y1", "x2": "X2", "y2": "Y2", "frame": "Frame"}
CHORDS = """FileName,X1,Y1,X2,Y2,Frame
0X1.avi,9,9,0,0,46
0X1.avi,1,1,5,1,46
0X1.avi,1,5,5,5,46
0X1.avi,9,9,0,0,61
0X1.avi,2,2,6,2,61
0X1.avi,2,6,6,6,61
"""


def test_chords_go_down_on_one_side_and_up_on_the_other_without_the_long_axis(tmp_path):
    found = read(tmp_path, "tracings", CHORDS, columns=ECHONET, skip_first=1)
    assert [one.shape.frame for one in found] == [46, 61] and {one.words["stem"] for one in found} == {"0X1"}
    np.testing.assert_array_equal(found[0].shape.points, [[1, 1], [1, 5], [5, 5], [5, 1]])


def test_points_in_rows_are_one_closed_outline_and_frames_may_count_from_one(tmp_path):
    odd: Counter[str] = Counter()
    rows = "FileName,X,Y,Frame\n" + "".join(f"a.avi,{x},{y},3\n" for x, y in SQUARE)
    rows += "a.avi,,,No Systolic\na.avi,1,2,No Diastolic\n"
    columns = {"file": "FileName", "x": "X", "y": "Y", "frame": "Frame"}
    (found,) = read(tmp_path, "tracings", rows, odd, columns=columns, frame_base=1)
    assert found.shape.frame == 2
    np.testing.assert_array_equal(found.shape.points, SQUARE)
    assert odd == {f"rows have the frame 'No {word}stolic': no outline": 1 for word in ("Sy", "Dia")}


@pytest.mark.parametrize("cell", ["", "x", "nan", "inf", "1e400"])
def test_an_outline_with_a_cell_that_is_no_number_is_bad_for_its_frame_only(tmp_path, cell):
    text = CHORDS.replace("0X1.avi,1,5,", f"0X1.avi,{cell},5,")
    found = read(tmp_path, "tracings", text, columns=ECHONET, skip_first=1)
    assert {one.shape.frame: one.shape.kind for one in found} == {46: "bad", 61: "polygon"}


def test_a_frame_before_the_first_and_an_outline_of_an_axis_alone_are_bad(tmp_path):
    text = "FileName,X1,Y1,X2,Y2,Frame\na.avi,1,1,2,2,0\n"
    ((_, kind),) = kinds(read(tmp_path, "tracings", text, columns=ECHONET, frame_base=1))
    assert kind == "bad"
    ((_, kind),) = kinds(read(tmp_path, "tracings", CHORDS[:43] + "\n", columns=ECHONET, skip_first=1))
    assert kind == "bad"


def test_a_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no column 'X9'"):
        read(tmp_path, "tracings", CHORDS, columns=ECHONET | {"x": "X9"})
    with pytest.raises(ValueError, match="no column for x"):
        read(tmp_path, "tracings", CHORDS)


# --- run lengths in tables --------------------------------------------------------------------------------------------


def test_run_lengths_count_from_one_and_an_empty_cell_is_no_mask(tmp_path):
    odd: Counter[str] = Counter()
    (found,) = read(tmp_path, "rle", "subject,img,pixels\n1,1,2 2 7 1\n1,2,\n", odd)
    assert (found.words["subject"], found.words["img"]) == ("1", "1")
    np.testing.assert_array_equal(found.shape.points, [[1, 2], [6, 1]])
    assert odd == {"rows are empty: no mask": 1}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=12, max_size=12))
def test_run_lengths_come_back_as_the_mask_they_were_made_of(tmp_path_factory, pixels):
    from ingest.card_parts import Masks
    from ingest.readers.shapes import Shape
    from ingest.readers.shapes_draw import draw_mask

    mask = np.array(pixels).reshape(3, 4)
    flat = [False, *mask.T.ravel().tolist(), False]
    edges = [k for k in range(1, 14) if flat[k] != flat[k - 1]]  # from 1, as Kaggle counts
    runs = " ".join(f"{start} {stop - start}" for start, stop in zip(edges[::2], edges[1::2], strict=True))
    found = read(tmp_path_factory.mktemp("rle"), "rle", f"img,pixels\n1,{runs}\n")
    shapes = [Shape("liver", "runs", one.shape.data) for one in found]
    drawn = draw_mask(shapes, Masks.model_validate({"kind": "drawn", "classes": ["background", "liver"]}), (3, 4))
    np.testing.assert_array_equal(drawn, mask)


@pytest.mark.parametrize("cell", ["1", "0 3", "1 0", "a b", "1 2 3", "1.5 2", "-4 2", "9" * 30 + " 1"])
def test_bad_run_lengths_are_bad(tmp_path, cell):
    ((_, kind),) = kinds(read(tmp_path, "rle", f"img,pixels\n1,{cell}\n"))
    assert kind == "bad"


# --- XML --------------------------------------------------------------------------------------------------------------

VOC = """<annotation><filename>p1_001.png</filename><size><width>80</width><height>60</height><depth>1</depth></size>
<object><name>injury</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3.5</xmax><ymax>4</ymax></bndbox></object>
</annotation>"""


def test_boxes_of_pascal_voc(tmp_path):
    (found,) = read(tmp_path, "voc", VOC, becomes="marks")
    assert (found.words["stem"], found.shape.name, found.shape.size) == ("p1_001", "injury", (60, 80))
    np.testing.assert_array_equal(found.shape.points, [[1, 2], [3.5, 4]])
    ((_, kind),) = kinds(read(tmp_path, "voc", VOC.replace("<ymax>4</ymax>", "")))
    assert kind == "bad"


DDTI = """<?xml version="1.0" encoding="UTF-8"?><case><number>12</number><tirads>4a</tirads>
<mark><image>1</image><svg>[{"points": [{"x": 1, "y": 1}, {"x": 5, "y": 1}, {"x": 5, "y": 5}], "annotation": {},
"regionType": "freehand"}]</svg></mark><mark><image>2</image><svg></svg></mark></case>"""


def test_marks_of_ddti_name_the_picture_by_its_number_and_an_empty_one_is_counted(tmp_path):
    odd: Counter[str] = Counter()
    (found,) = read(tmp_path, "svg", DDTI, odd)
    assert found.words["image"] == "1" and found.shape.kind == "polygon" and len(found.shape.points) == 3
    assert odd == {"marks have an empty svg: no shape": 1}


@pytest.mark.parametrize("svg", ["x", "{}", "[3]", '[{"points": 3}]', '[{"points": [{"x": 1}]}]', '[{"points": []}]'])
def test_a_bad_svg_is_bad_for_its_picture_only(tmp_path, svg):
    found = read(tmp_path, "svg", DDTI.replace("<svg></svg>", f"<svg>{svg}</svg>"))
    assert [(one.words["image"], one.shape.kind) for one in found] == [("1", "polygon"), ("2", "bad")]


@pytest.mark.parametrize(
    "content",
    [
        *("", "<a", "<b/>", b"\xff", "<?xml version='1.0' encoding='nonsense'?><annotation/>", "<a>" * 100_000),
        '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><annotation>&d;</annotation>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
    ],
)
def test_xml_that_is_damaged_or_refers_to_other_files_is_a_value_error(tmp_path, content):
    with pytest.raises(ValueError):
        read(tmp_path, "voc", content)


# --- damage -----------------------------------------------------------------------------------------------------------

WHOLE = {
    "coco": json.dumps(
        coco({"segmentation": [[1, 1, 5, 1, 5, 5]]}, {"segmentation": {"size": [6, 8], "counts": "52203"}})
    ),
    "labelme": json.dumps({"shapes": [{"label": "a", "points": SQUARE}], "imagePath": "x.jpg", "imageHeight": 9}),
    "points": json.dumps(SQUARE),
    "named": json.dumps({"x.png": {"dim": [8, 6], "bbs": [["n", [1, 2, 3, 4]]]}, "y": {"a": {"x": "1 2", "y": "3 4"}}}),
    "via": via({"name": "ellipse", "cx": 4, "cy": 4, "rx": 2, "ry": 3}),
    "tracings": CHORDS,
    "rle": "img,pixels\n1,2 2 7 1\n",
    "voc": VOC,
    "svg": DDTI,
}
SPLINTERS = [b"null", b"-1", b"1e999", b"[]", b"{}", b'"', b"<", b"&", b",", b"\n", b"9" * 20, b"\xff", b"\x00"]


@pytest.mark.parametrize("format", WHOLE)
def test_a_damaged_file_is_a_value_error_or_is_read(tmp_path, format):
    chance = random.Random(1)
    for _ in range(80):
        content = bytearray(WHOLE[format].encode())
        for _ in range(chance.choice([1, 1, 3])):
            at = chance.randrange(len(content))
            content[at : at + chance.choice([0, 1, 9])] = chance.choice([*SPLINTERS, bytes([chance.randrange(256)])])
        with suppress(ValueError):
            for found in read(tmp_path, format, bytes(content), columns=ECHONET if format == "tracings" else {}):
                assert found.shape.kind == "bad" or np.isfinite(found.shape.points).all()
