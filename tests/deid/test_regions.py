"""What a header's regions come to."""

import numpy as np
import pytest

from ingest.deid.device import Region
from ingest.deid.regions import check_regions

SHAPE = (600, 800)
IMAGE = Region(100, 60, 700, 520, 1, 1)


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_a_plausible_2d_region_is_candidate_a():
    stated = check_regions([IMAGE], SHAPE)
    assert stated.area is not None and box(stated.area) == (100, 60, 700, 520)
    assert stated.barred is None and not stated.only_other


def test_no_regions_mean_that_nothing_is_stated():
    stated = check_regions([], SHAPE)
    assert stated.area is None and stated.barred is None and not stated.only_other


@pytest.mark.parametrize(
    "region",
    [
        Region(0, 0, 800, 600, 1, 1),  # the whole screen
        Region(2, 2, 799, 599, 1, 1),  # nearly: 99 %
        Region(700, 60, 100, 520, 1, 1),  # swapped
        Region(100, 60, 100, 520, 1, 1),  # no width
        Region(100, 100, 163, 500, 1, 1),  # 63 px wide
        Region(100, 100, 220, 220, 1, 1),  # 3 % of the picture
        Region(100, 60, 700, 520, 1, 3),  # data type: pulsed Doppler
        Region(100, 60, 700, 520, 5, 1),  # graphics
        Region(0, 0, 0, 0, 0, 0),
    ],
)
def test_an_implausible_region_counts_as_absent(region: Region):
    assert check_regions([region], SHAPE).area is None


@pytest.mark.parametrize(
    "stale",
    [Region(120, 60, 802, 519, 1, 1), Region(-1, 0, 700, 500, 1, 1), Region(176, 522, 744, 602, 4, 10)],
)
def test_one_region_beyond_the_picture_makes_all_of_them_suspect(stale: Region):
    stated = check_regions([IMAGE, stale], SHAPE)
    assert stated.area is None and stated.barred is None


def test_one_pixel_beyond_the_picture_is_forgiven_and_cut_off():
    stated = check_regions([Region(120, 60, 801, 519, 1, 1)], SHAPE)
    assert stated.area is not None and box(stated.area) == (120, 60, 800, 519)


def test_the_smallest_allowed_side_is_64_pixels():
    assert check_regions([Region(10, 10, 74, 400, 1, 1)], (400, 500)).area is not None


def test_two_images_side_by_side_are_a_union_and_a_colour_box_inside_changes_nothing():
    left, right = Region(20, 60, 380, 520, 1, 1), Region(420, 60, 780, 520, 1, 1)
    area = check_regions([left, right], SHAPE).area
    assert area is not None and area[300, 200] and area[300, 600] and not area[300, 400]
    with_colour = check_regions([IMAGE, Region(300, 200, 500, 400, 1, 2)], SHAPE).area
    assert with_colour is not None and np.array_equal(with_colour, check_regions([IMAGE], SHAPE).area)


def test_a_bad_2d_region_beside_a_good_one_counts_alone_as_absent():
    area = check_regions([IMAGE, Region(5, 5, 5, 5, 1, 1)], SHAPE).area
    assert area is not None and box(area) == (100, 60, 700, 520)


@pytest.mark.parametrize(("form", "data"), [(2, 1), (3, 3), (4, 10), (5, 13), (1, 14)])
def test_what_another_region_claims_is_barred_even_inside_the_image(form: int, data: int):
    stated = check_regions([IMAGE, Region(100, 400, 700, 590, form, data)], SHAPE)
    assert stated.area is not None and box(stated.area) == (100, 60, 700, 400)
    assert stated.barred is not None and stated.barred[500, 300]


def test_a_spectrum_without_a_2d_image_is_told():
    assert check_regions([Region(0, 60, 800, 560, 3, 3)], SHAPE).only_other
    assert not check_regions([IMAGE, Region(0, 520, 800, 590, 3, 3)], SHAPE).only_other
