import cv2
import numpy as np
import pytest

from usdata.dedup import near_duplicate_groups


def speckle(n, seed=0):
    """Pictures unlike each other: smooth structure with speckle on it."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((n, 6, 6)).astype(np.float32)
    smooth = np.stack([cv2.resize(c, (256, 256), interpolation=cv2.INTER_CUBIC) for c in coarse])
    return (smooth.clip(0, 1) * 200 * rng.rayleigh(0.5, (n, 256, 256)).clip(0, 1.2)).astype(np.uint8)


def test_pictures_unlike_each_other_are_groups_of_one():
    assert near_duplicate_groups(speckle(60)).tolist() == list(range(60))


def test_equal_pictures_are_one_group_whatever_stands_between():
    a, b, c = speckle(3)
    assert near_duplicate_groups(np.stack([a, b, a, c, b])).tolist() == [0, 1, 0, 2, 1]


def changed(image, how):
    if how == "jpeg":
        return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_GRAYSCALE)
    if how == "brighter":
        return (image.astype(np.float32) * 1.1 + 5).clip(0, 255).astype(np.uint8)
    if how == "resized":
        return cv2.resize(cv2.resize(image, (180, 200), interpolation=cv2.INTER_AREA), (256, 256))
    marked = image.copy()
    cv2.line(marked, (100, 100), (104, 104), 255, 1)
    return marked


@pytest.mark.parametrize("how", ["jpeg", "brighter", "resized", "calipers"])
def test_a_copy_that_was_changed_a_little_is_found(how):
    originals = speckle(20)
    copies = np.stack([changed(image, how) for image in originals])
    groups = near_duplicate_groups(np.concatenate([originals, copies]))
    assert groups.tolist() == [*range(20), *range(20)]


def test_another_picture_of_the_same_brightness_is_not():
    a, b = speckle(2)
    b = np.sort(a.ravel())[np.argsort(np.argsort(b.ravel(), kind="stable"), kind="stable")].reshape(256, 256)
    assert near_duplicate_groups(np.stack([a, b])).tolist() == [0, 1]


def test_a_chain_of_near_duplicates_is_one_group():
    a, b = speckle(2)
    mixed = [((1 - w) * a + w * b).astype(np.uint8) for w in np.linspace(0, 0.5, 30)]
    groups = near_duplicate_groups(np.stack(mixed))
    ends = near_duplicate_groups(np.stack([mixed[0], mixed[-1]]))
    assert len(set(groups.tolist())) == 1
    assert ends.tolist() == [0, 1]  # the ends alone are not alike


def test_empty_pictures_are_alike_if_equally_bright():
    flat = np.stack([np.full((256, 256), v, np.uint8) for v in (0, 0, 90)])
    assert near_duplicate_groups(np.concatenate([flat, speckle(2)])).tolist() == [0, 0, 1, 2, 3]


def test_a_lower_threshold_joins_more():
    a, b = speckle(2)
    pair = np.stack([a, (0.75 * a + 0.25 * b).astype(np.uint8)])
    assert len(set(near_duplicate_groups(pair, threshold=0.9999).tolist())) == 2
    assert len(set(near_duplicate_groups(pair, threshold=0.5).tolist())) == 1


def test_more_pictures_than_a_block_are_compared_across_blocks():
    pictures = speckle(300)
    groups = near_duplicate_groups(np.concatenate([pictures, pictures[::-1]]))
    assert groups.tolist() == [*range(300), *reversed(range(300))]


def test_no_picture_and_one_picture_are_fine_and_other_types_are_refused():
    assert near_duplicate_groups(np.empty((0, 256, 256), np.uint8)).tolist() == []
    assert near_duplicate_groups(speckle(1)).tolist() == [0]
    with pytest.raises(ValueError, match="uint8"):
        near_duplicate_groups(np.zeros((2, 8, 8), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        near_duplicate_groups(np.zeros((8, 8), np.uint8))
