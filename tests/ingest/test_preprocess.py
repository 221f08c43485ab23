"""Grey, crop, resize, hash: definitions that can be checked by hand, and that give the same bytes everywhere."""

import cv2
import numpy as np
import pytest
from fakes.datasets import echo
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from ingest.preprocess import CHROMA, colour_share, crop, nearest_neighbour, phash, resize, resize_mask, to_grey
from ingest.readers.image import read_image
from usdata.errors import ConfigError, DataError


def bits_apart(first, second) -> int:
    return int(first ^ second).bit_count()


def pixels(*shape):
    return arrays(np.uint8, st.tuples(*shape))


@given(pixels(st.integers(1, 9), st.integers(1, 9), st.just(3)))
def test_grey_is_the_documented_integer_formula(rgb):
    red, green, blue = rgb.astype(np.int64).transpose(2, 0, 1)
    np.testing.assert_array_equal(to_grey(rgb), (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)


def test_a_grey_picture_stored_as_rgb_keeps_its_values():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(to_grey(np.repeat(grey[..., None], 3, axis=2)), grey)
    np.testing.assert_array_equal(to_grey(grey), grey)


def test_only_clearly_coloured_pixels_count_as_coloured():
    grey = np.repeat(echo(50, 40)[..., None], 3, axis=2)
    assert colour_share(grey) == colour_share(grey[..., 0]) == 0.0
    bluish = np.array([0, 5, 15])  # as the grey maps of some scanners
    tinted = np.clip(grey + bluish, 0, 255).astype(np.uint8)
    assert colour_share(tinted) == 0.0
    doppler = grey.copy()
    doppler[:10, :25] = (200, 30, 20)  # 250 of 2000 pixels
    assert colour_share(doppler) == 0.125
    edge = np.array([[[CHROMA - 1, 0, 0], [CHROMA, 0, 0]]], np.uint8)
    assert colour_share(edge) == 0.5


def test_a_crop_keeps_the_box_and_refuses_one_that_reaches_outside():
    image = echo(60, 40)
    np.testing.assert_array_equal(crop(image, (10, 5, 30, 40)), image[5:40, 10:30])
    assert crop(image, None) is image
    assert crop(np.dstack([image] * 3), (0, 0, 1, 1)).shape == (1, 1, 3)
    for box in ((0, 0, 61, 40), (0, 0, 60, 41), (-1, 0, 5, 5), (5, 5, 5, 9)):
        with pytest.raises(DataError) as error:
            crop(image, box)
        assert error.value.reason == "crop_outside"


def test_bilinear_aa_is_pillows_and_averages_what_bilinear_fast_skips():
    stripes = np.tile(np.array([[0, 255]], np.uint8), (512, 512))  # one pixel wide: finer than 256 x 256 can show
    np.testing.assert_array_equal(
        resize(stripes), np.asarray(Image.fromarray(stripes).resize((256, 256), Image.Resampling.BILINEAR))
    )
    wide = np.tile(np.array([[0, 0, 0, 255]], np.uint8), (1024, 256))
    averaged, sampled = resize(wide), resize(wide, "bilinear-fast")
    assert np.abs(averaged[:, 1:-1].astype(int) - 64).max() < 16
    assert sampled.std() == 0 and sampled[0, 0] == 0


def test_both_interpolations_agree_when_enlarging_and_do_nothing_at_256():
    small = echo(160, 120)
    assert np.abs(resize(small).astype(int) - resize(small, "bilinear-fast").astype(int)).max() <= 1
    same = echo(256, 256)
    for way in ("bilinear-aa", "bilinear-fast"):
        np.testing.assert_array_equal(resize(same, way), same)
        assert resize(echo(3, 1), way).shape == (256, 256)


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ConfigError, match="bicubic"):
        resize(echo(9, 9), "bicubic")


def test_nearest_takes_the_pixel_under_the_centre():
    row = np.arange(4, dtype=np.uint8)[None]
    assert nearest_neighbour(row, (1, 2)).tolist() == [[1, 3]]  # centres 1 and 3 of four pixels: floor((i + 1/2) 4 / 2)
    assert nearest_neighbour(row, (1, 8)).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]
    assert nearest_neighbour(row, (1, 3)).tolist() == [[0, 2, 3]]


@given(pixels(st.integers(1, 40), st.integers(1, 40)))
def test_a_resized_mask_has_no_class_that_was_not_there(mask):
    assert set(np.unique(resize_mask(mask, 16))) <= set(np.unique(mask))
    assert resize_mask(mask, 16).shape == (16, 16)


def test_mask_and_image_stay_on_each_other():
    disc = np.zeros((300, 400), np.uint8)
    cv2.circle(disc, (230, 130), 70, 255, -1)
    image, mask = resize(disc), resize_mask(disc)
    assert ((image > 127) != (mask > 0)).mean() < 0.003
    rows, columns = np.nonzero(mask)
    assert rows.mean() == pytest.approx(130.5 / 300 * 256 - 0.5, abs=0.3)
    assert columns.mean() == pytest.approx(230.5 / 400 * 256 - 0.5, abs=0.3)


PICTURES = np.stack([resize(echo(300, 200, seed)) for seed in range(12)])


def test_a_hash_does_not_depend_on_the_batch_it_is_made_in():
    together = phash(PICTURES)
    assert together.dtype == np.uint64 and together.shape == (12,)
    for k in range(12):
        assert phash(PICTURES[k : k + 1])[0] == together[k]
    assert phash(PICTURES[:0]).shape == (0,)


def test_the_hash_is_the_documented_one():
    image = PICTURES[0].astype(np.float64).reshape(32, 8, 32, 8).mean(axis=(1, 3))
    low = cv2.dct(image)[1:9, 1:9].ravel()
    bits = "".join("1" if value > np.median(low) else "0" for value in low)
    assert bits_apart(int(bits, 2), int(phash(PICTURES[:1])[0])) <= 2  # rounded weights may move a value at the median


def test_near_copies_have_near_hashes_and_other_pictures_far_ones():
    scene = cv2.GaussianBlur(np.random.default_rng(5).normal(size=(12, 256, 256)).transpose(1, 2, 0), (0, 0), 20)
    scene = (127 + 100 * scene / np.abs(scene).max()).astype(np.uint8).transpose(2, 0, 1)
    own = phash(scene)
    brighter = np.clip(scene * 0.8 + 30, 0, 255).astype(np.uint8)
    noisy = np.clip(scene + np.random.default_rng(1).normal(0, 4, scene.shape), 0, 255).astype(np.uint8)
    smaller = np.stack([resize(np.asarray(Image.fromarray(image).resize((180, 140)))) for image in scene])
    for copies in (brighter, noisy, smaller):
        assert max(bits_apart(int(a), int(b)) for a, b in zip(own, phash(copies), strict=True)) <= 6
    apart = [bits_apart(int(own[i]), int(own[j])) for i in range(12) for j in range(i)]
    assert min(apart) > 12 and 26 < np.mean(apart) < 38


@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_a_constant_image_hashes_to_zero(level):
    assert phash(np.full((1, 256, 256), level, np.uint8))[0] == 0


@pytest.mark.real
def test_no_real_b_mode_image_is_taken_for_colour_doppler(real_data):
    paths = sorted(real_data.glob("busi/*/*/*).png")) + sorted(real_data.glob("usgra-seg/dataset/images/*.png"))[::4]
    shares = [colour_share(read_image(path)) for path in paths]
    assert len(shares) > 55 and max(shares) < 0.01  # the largest has yellow callipers
