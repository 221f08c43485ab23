"""USFM's mistake 5: distances of borders, classes and inputs in the scores of a segmentation."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from training.metrics import segmentation_scores
from usdata.errors import ConfigError

Mask = NDArray[np.int64]


def box(top: int, left: int, height: int, width: int, value: int = 1, side: int = 48) -> Mask:
    mask = np.zeros((side, side), np.int64)
    mask[top : top + height, left : left + width] = value
    return mask


def border(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.argwhere(mask & ~binary_erosion(mask, border_value=0))


def naive_hd95(y: NDArray[np.bool_], p: NDArray[np.bool_]) -> float:
    """Every border pixel against every other: both directed 95th percentiles, the larger of them."""
    distance = cdist(border(y), border(p))
    return float(max(np.percentile(distance.min(1), 95), np.percentile(distance.min(0), 95)))


def test_mistake_5_hd95_is_euclidean_from_border_to_border_and_no_distance_of_rows():
    y, p = box(10, 10, 12, 12), box(13, 14, 12, 12)
    scores = segmentation_scores(y, p)
    assert scores["hd95"] == pytest.approx(naive_hd95(y > 0, p > 0), abs=1e-5)
    assert scores["hd95"] <= 5.0 < 7.0  # moved by 3 down and 4 right: 5 at most; 7 in Manhattan's measure
    spot = y.copy()
    spot[45, 45] = 1  # one wrong pixel of many is beyond the 95th percentile: no full Hausdorff distance
    assert segmentation_scores(y, spot)["hd95"] == 0.0
    assert segmentation_scores(spot, y)["hd95"] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_mistake_5_hd95_of_ragged_masks_equals_a_loop_over_their_borders(seed):
    random = np.random.default_rng(seed)
    y, p = ((random.random((12, 12)) < 0.4).repeat(4, 0).repeat(4, 1) for _ in range(2))
    assert segmentation_scores(y, p)["hd95"] == pytest.approx(naive_hd95(y, p), abs=1e-5)
    assert segmentation_scores(p, y)["hd95"] == segmentation_scores(y, p)["hd95"]


def test_mistake_5_classes_are_scored_apart_and_the_inputs_stay_as_they_are():
    y, swapped = box(4, 4, 8, 8) + box(24, 24, 16, 16, 2), box(4, 4, 8, 8, 2) + box(24, 24, 16, 16)
    kept = y.copy(), swapped.copy()
    y.flags.writeable = swapped.flags.writeable = False
    assert segmentation_scores(y, swapped, classes=3)["dice"] == 0.0  # merged into one, they would be perfect
    assert segmentation_scores(y > 0, swapped > 0)["dice"] == 1.0
    half = segmentation_scores(y, box(4, 4, 8, 8), classes=3)
    assert (half["dice"], half["iou"], half["sensitivity"], half["one_empty"]) == (0.5, 0.5, 0.5, 1.0)
    assert half["hd95"] == (0 + 48) / 2
    assert np.array_equal(y, kept[0]) and np.array_equal(swapped, kept[1])


def test_dice_iou_sensitivity_and_accuracy_are_the_papers_ratios_of_counts():
    y, p = box(0, 0, 10, 10), box(0, 5, 10, 10)  # 50 in both, 50 in each alone, of 2,304
    scores = segmentation_scores(y, p)
    assert scores["dice"] == pytest.approx(100 / 200)
    assert scores["iou"] == pytest.approx(50 / 150)
    assert scores["sensitivity"] == pytest.approx(50 / 100)
    assert scores["accuracy"] == pytest.approx(1 - 100 / 48**2)


def test_empty_masks_count_as_agreed_and_a_missing_one_as_the_images_side():
    nothing, something = box(0, 0, 0, 0), box(8, 8, 8, 8)
    both = segmentation_scores(nothing, nothing)
    assert (both["dice"], both["iou"], both["hd95"], both["one_empty"]) == (1.0, 1.0, 0.0, 0.0)
    assert np.isnan(both["sensitivity"])
    for y, p in ((nothing, something), (something, nothing)):
        one = segmentation_scores(y, p)
        assert (one["dice"], one["iou"], one["hd95"], one["one_empty"]) == (0.0, 0.0, 48.0, 1.0)


@pytest.mark.parametrize(
    ("y", "p", "classes", "message"),
    [
        (box(0, 0, 2, 2), box(0, 0, 2, 2, side=32), 2, "one shape"),
        (box(0, 0, 2, 2, 255), box(0, 0, 2, 2), 2, "hold 0 ... 1"),  # a mask of 0 and 255
        (box(0, 0, 2, 2), box(0, 0, 2, 2), 1, "Masks of 1 classes"),
    ],
)
def test_masks_that_make_no_sense_are_refused(y, p, classes, message):
    with pytest.raises(ConfigError, match=message):
        segmentation_scores(y, p, classes)
