"""Shapes become masks by a rule that can be checked by hand, and marks by copying their numbers."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.card_parts import Masks
from ingest.readers.shapes import MAX_POINTS, Shape, Unusable, ellipse
from ingest.readers.shapes_draw import draw_mask, fill_polygon, marks_json
from usdata.errors import DataError

SPEC = Masks.model_validate({"kind": "drawn", "classes": ["background", "liver", "mass"]})


def by_hand(points, shape):
    """Even-odd, one pixel centre after the other: how many edges does a ray to the left cross?"""
    height, width = shape
    inside = np.zeros(shape, bool)
    for row in range(height):
        for column in range(width):
            crossings = 0
            for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
                if min(y0, y1) <= row + 0.5 < max(y0, y1):
                    crossings += x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0) <= column + 0.5
            inside[row, column] = crossings % 2
    return inside


def refused(shapes, spec=SPEC, shape=(8, 9)) -> DataError:
    with pytest.raises(DataError) as error:
        draw_mask(shapes, spec, shape)
    assert error.value.step == "mask"
    return error.value


def test_a_box_covers_as_many_pixels_as_its_sides_say():
    mask = draw_mask([Shape.of("liver", "box", [(2, 3), (5, 7)])], SPEC, (9, 8))
    assert mask.sum() == 3 * 4 and mask[3:7, 2:5].all()


def test_the_corners_of_a_box_may_come_in_any_order():
    wanted = draw_mask([Shape.of("liver", "box", [(2, 3), (5, 7)])], SPEC, (9, 8))
    np.testing.assert_array_equal(draw_mask([Shape.of("liver", "box", [(5, 3), (2, 7)])], SPEC, (9, 8)), wanted)


def test_a_pixel_is_inside_when_its_centre_is():
    triangle = np.array([(0.0, 0.0), (4.0, 0.0), (0.0, 4.0)])  # centres on the slope x + y = 4 belong to its left
    wanted = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(fill_polygon(triangle, (4, 4)), wanted)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-6, 22), st.integers(-6, 22)), min_size=3, max_size=9),
    st.sampled_from([1, 2, 4]),
)
def test_polygons_are_filled_as_a_loop_over_all_pixels_does_it(points, part):
    points = [(x / part, y / part) for x, y in points]  # a quarter of a pixel: corners and centres coincide
    np.testing.assert_array_equal(fill_polygon(np.array(points, float), (7, 9)), by_hand(points, (7, 9)))


def test_a_crossing_outline_leaves_out_what_it_encloses_twice():
    star = [(5, 0), (8, 9), (0, 3), (10, 3), (2, 9)]
    filled = fill_polygon(np.array(star, float), (9, 10))
    np.testing.assert_array_equal(filled, by_hand(star, (9, 10)))
    assert not filled[4, 5] and filled[2, 5]


def test_an_outline_of_many_long_edges_is_filled_in_parts(monkeypatch):
    points = np.random.default_rng(0).uniform(0, 40, (300, 2))
    whole = fill_polygon(points, (40, 40))
    monkeypatch.setattr("ingest.readers.shapes_draw._CROSSINGS", 50)
    np.testing.assert_array_equal(fill_polygon(points, (40, 40)), whole)


def test_the_later_class_wins_where_shapes_overlap_whatever_their_order():
    liver, mass = Shape.of("liver", "box", [(0, 0), (6, 6)]), Shape.of("mass", "box", [(2, 2), (4, 4)])
    for shapes in ([liver, mass], [mass, liver]):
        mask = draw_mask(shapes, SPEC, (8, 8))
        assert (mask == 2).sum() == 4 and (mask == 1).sum() == 36 - 4


def test_runs_go_down_the_columns():
    mask = draw_mask([Shape.of("liver", "runs", [(1, 2), (6, 1)])], SPEC, (3, 4))  # pixels 1 and 2, then 6
    np.testing.assert_array_equal(mask, [[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]])


def test_a_run_beyond_the_last_pixel_and_a_shape_beside_the_picture_are_refused():
    assert refused([Shape.of("liver", "runs", [(71, 2)])]).reason == "shape_outside"
    assert refused([Shape.of("liver", "box", [(9, 0), (12, 4)])]).reason == "shape_outside"
    assert refused([Shape.of("liver", "box", [(-5, 0), (0, 4)])]).reason == "shape_outside"


def test_what_sticks_out_of_the_picture_is_cut():
    mask = draw_mask([Shape.of("liver", "box", [(-1, 5), (4, 9)])], SPEC, (8, 9))
    assert mask.sum() == 3 * 4 and mask[5:, :4].all()


def test_points_and_open_lines_enclose_nothing_and_closed_lines_do():
    for kind, points in (("points", [(1, 1)]), ("line", [(1, 1), (5, 1), (5, 5), (1, 5)])):
        assert refused([Shape.of("liver", kind, points)]).reason == "annotation_unreadable"
    mask = draw_mask([Shape.of("liver", "line", [(1, 1), (5, 1), (5, 5), (1, 5), (1, 1)])], SPEC, (8, 9))
    assert mask.sum() == 16


def test_an_annotation_of_another_size_is_refused_or_stretched_as_the_card_says():
    shape = Shape.of("liver", "box", [(1, 1), (3, 3)], size=(4, 4))
    assert "4 x 4" in refused([shape]).message and refused([shape]).reason == "mask_size"
    stretched = Masks.model_validate({"kind": "drawn", "classes": ["background", "liver"], "other_size": "resize"})
    mask = draw_mask([shape], stretched, (8, 8))
    assert mask.sum() == 16 and mask[2:6, 2:6].all()
    runs = Shape.of("liver", "runs", [(5, 2), (9, 2)], size=(4, 4))
    np.testing.assert_array_equal(draw_mask([runs], stretched, (8, 8)), mask)


def test_a_circle_has_the_area_of_a_circle():
    mask = draw_mask([Shape.of("liver", "polygon", ellipse(50, 50, 30, 30))], SPEC, (100, 100))
    assert mask.sum() == pytest.approx(np.pi * 30**2, rel=0.005)
    turned = draw_mask([Shape.of("liver", "polygon", ellipse(50, 50, 40, 10, np.pi / 2))], SPEC, (100, 100))
    assert np.ptp(np.nonzero(turned)[0]) == 79 and np.ptp(np.nonzero(turned)[1]) == 19  # upright now


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(1, 2)],
        [(1, 2), (3, 4)],
        [(1, 2, 3)] * 4,
        [(1, float("nan")), (3, 4), (5, 6)],
        [(1, float("inf")), (3, 4), (5, 6)],
        [(1, 1e12), (3, 4), (5, 6)],
        [(1, 10**400), (3, 4), (5, 6)],
        [(1, None), (3, 4), (5, 6)],
        [(1, "a"), (3, 4), (5, 6)],
        [(1, [2]), (3, 4), (5, 6)],
        [1, 2, 3],
        "abc",
        {"x": 1},
        [(0, 0)] * (MAX_POINTS + 1),
    ],
)
def test_numbers_that_are_no_outline_are_unusable(points):
    with pytest.raises(Unusable):
        Shape.of("liver", "polygon", points)


@pytest.mark.parametrize("values", [(1, 1, 0, 1), (1, 1, -2, 1), ("a", 1, 1, 1), (1, 1, float("nan"), 1), (None,) * 4])
def test_an_ellipse_needs_radii(values):
    with pytest.raises(Unusable):
        ellipse(*values)


def test_a_shape_that_lies_mostly_outside_was_drawn_on_another_picture():
    spec = Masks(kind="drawn", classes=("background", "mass"))
    with pytest.raises(DataError) as caught:
        draw_mask([Shape.of("mass", "polygon", [(30, 30), (250, 30), (250, 190), (30, 190)])], spec, (48, 64))
    assert caught.value.reason == "shape_outside"
    assert draw_mask([Shape.of("mass", "box", [(-3, -2), (70, 50)])], spec, (48, 64)).all()  # drawn past the border


def test_marks_are_written_as_boxes_and_points_with_short_numbers():
    shapes = [Shape.of("mass", "box", [(9.0, 7.5), (2.0, 3.0)]), Shape.of("hinge", "points", [(1 / 3, 2)])]
    assert json.loads(marks_json(shapes, (20, 30))) == [
        {"name": "mass", "box": [2, 3, 9, 7.5]},
        {"name": "hinge", "points": [[0.333, 2]]},
    ]
    assert marks_json([], (20, 30)) is None
    with pytest.raises(DataError, match="run lengths"):
        marks_json([Shape.of("mass", "runs", [(1, 2)])], (20, 30))


def test_marks_of_another_picture_size_or_outside_the_picture_are_refused():
    other = Shape.of("mass", "box", [(2, 3), (9, 7)], size=(40, 60))
    with pytest.raises(DataError) as caught:
        marks_json([other], (20, 30))
    assert caught.value.reason == "mask_size"
    for points in ([(31, 3)], [(3, 21)], [(-5, 3), (-1, 9)]):
        with pytest.raises(DataError) as caught:
            marks_json([Shape.of("hinge", "points", points)], (20, 30))
        assert caught.value.reason == "shape_outside"
    assert marks_json([Shape.of("hinge", "points", [(30, 20), (-1, 0)])], (20, 30))  # a part of it is inside
