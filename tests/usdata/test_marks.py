"""Boxes among the marks of a row are stretched as its image was."""

import pytest

from usdata.errors import LakeError
from usdata.marks import box_names, boxes_of


def row(marks: str | None, crop: tuple[int, int, int, int] = (0, 0, 512, 128)) -> dict:
    return dict(zip(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), crop, strict=True)) | {"marks": marks}


def test_a_box_is_stretched_in_each_direction_by_its_own_factor():
    (one,) = boxes_of(row('[{"name":"mass","box":[100,20,200,60]}]'))
    assert (one.name, one.box, one.area) == ("mass", (50, 40, 50, 80), 4000)


def test_what_a_crop_cut_off_is_cut_off_and_a_box_beside_it_is_gone():
    marks = '[{"name":"in","box":[90,20,110,60]},{"name":"out","box":[0,0,99,99]}]'
    (one,) = boxes_of(row(marks, (100, 0, 356, 256)))
    assert (one.name, one.box) == ("in", (0, 20, 10, 40))


def test_points_are_no_boxes():
    assert list(boxes_of(row('[{"name":"hinge","points":[[1,2]]}]'))) == [] == list(boxes_of(row(None)))
    assert box_names('[{"name":"a","points":[[1,2]]},{"name":"b","box":[1,2,3,4]}]') == {"b"}


@pytest.mark.parametrize("marks", ["x", "3", "[3]", '[{"box":[1,2,3,4]}]', '[{"name":"a","box":[1]}]', "[" * 10**5])
def test_damaged_marks_are_an_error_of_the_lake(marks):
    with pytest.raises(LakeError, match="marks are damaged"):
        list(boxes_of(row(marks)))
