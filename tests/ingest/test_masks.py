"""Masks of every pixel format become class indices, and a mask in doubt is refused instead of guessed."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes.datasets import blob, draw, save
from PIL import Image

from ingest.card import get_card
from ingest.card_parts import Masks
from ingest.layout import list_items
from ingest.readers.image import read_image
from ingest.readers.mask import encode_mask, fill_outline, read_mask
from usdata.errors import DataError

SHAPE = (40, 60)
DISC = blob(60, 40)
BINARY = Masks(classes=("background", "lesion"))


def spec(**changes) -> Masks:
    return Masks.model_validate(changes)


def refused(paths, masks, shape=SHAPE) -> DataError:
    with pytest.raises(DataError) as error:
        read_mask(paths, masks, shape)
    assert error.value.step == "mask" and paths[0].name in error.value.message
    return error.value


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_a_binary_mask_is_the_same_in_every_pixel_format(tmp_path, mode):
    path = save(DISC, tmp_path / "m.png", mode)
    np.testing.assert_array_equal(read_mask([path], BINARY, SHAPE), DISC // 255)


def test_a_binary_mask_survives_jpeg_noise(tmp_path):
    path = save(DISC, tmp_path / "m.jpg")
    assert (read_mask([path], BINARY, SHAPE) != DISC // 255).mean() < 0.005


def test_several_binary_masks_are_merged_by_or(tmp_path):
    left, right = blob(60, 40, (0.25, 0.5)), blob(60, 40, (0.4, 0.5))
    paths = [save(left, tmp_path / "m.png", "1"), save(right, tmp_path / "m_1.png", "RGBA")]
    np.testing.assert_array_equal(read_mask(paths, BINARY, SHAPE), (left | right) // 255)


def test_an_empty_mask_is_a_mask_without_foreground(tmp_path):
    path = save(np.zeros(SHAPE, np.uint8), tmp_path / "m.png", "RGB")
    assert read_mask([path], BINARY, SHAPE).max() == 0


def test_a_colour_too_dark_for_grey_still_counts(tmp_path):
    path = save(DISC[..., None] * np.array([0, 0, 1], np.uint8), tmp_path / "m.png")  # pure blue: luma 29
    np.testing.assert_array_equal(read_mask([path], BINARY, SHAPE), DISC // 255)


def test_see_through_pixels_are_background_when_transparency_varies(tmp_path):
    white = np.full((*SHAPE, 3), 255, np.uint8)
    path = save(np.dstack([white, DISC]), tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask([path], BINARY, SHAPE), DISC // 255)
    invisible = save(np.dstack([np.repeat(DISC[..., None], 3, 2), np.zeros(SHAPE, np.uint8)]), tmp_path / "n.png")
    np.testing.assert_array_equal(read_mask([invisible], BINARY, SHAPE), DISC // 255)  # the same everywhere: no matter


def test_a_mask_that_lives_only_in_its_transparency_is_refused(tmp_path):
    path = save(np.dstack([np.zeros((*SHAPE, 3), np.uint8), DISC]), tmp_path / "m.png")
    assert refused([path], BINARY).reason == "mask_value"


def test_class_numbers_under_the_threshold_are_refused_instead_of_vanishing(tmp_path):
    path = save(DISC // 255, tmp_path / "m.png")
    error = refused([path], BINARY)
    assert error.reason == "mask_value" and "the largest is 1" in error.message


def test_a_mask_on_its_side_is_refused_where_other_sizes_are_resized(tmp_path):
    path = save(DISC.T, tmp_path / "m.png")
    assert refused([path], spec(other_size="resize")).reason == "mask_size"
    assert read_mask([path], spec(other_size="resize", turned=True), SHAPE).any()


def test_a_mask_of_another_size_is_refused_or_resized_as_the_card_says(tmp_path):
    path = save(DISC, tmp_path / "m.png")
    error = refused([path], BINARY, (80, 120))
    assert error.reason == "mask_size" and "60 x 40" in error.message and "120 x 80" in error.message
    larger = read_mask([path], spec(other_size="resize"), (80, 120))
    np.testing.assert_array_equal(larger, np.kron(DISC // 255, np.ones((2, 2), np.uint8)))


def test_palette_masks_keep_their_indices_whatever_the_colours(tmp_path):
    numbers = (DISC // 255 * 2).astype(np.uint8)
    for palette in ([0, 0, 0, 0, 0, 0, 0, 0, 0], [9, 9, 9, 255, 0, 0, 200, 200, 0]):
        picture = Image.fromarray(numbers)
        picture.putpalette(palette)
        picture.save(tmp_path / "m.png")
        mask = read_mask([tmp_path / "m.png"], spec(kind="index", classes=["background", "nerve", "vessel"]), SHAPE)
        np.testing.assert_array_equal(mask, numbers)


def test_stored_numbers_are_mapped_to_the_classes_of_the_card(tmp_path):
    path = save(np.where(DISC > 0, 8, 7).astype(np.uint8), tmp_path / "m.png")
    masks = spec(kind="index", classes=["background", "pubis", "head"], values={0: "background", 7: "pubis", 8: "head"})
    np.testing.assert_array_equal(read_mask([path], masks, SHAPE), np.where(DISC > 0, 2, 1))


def test_a_number_that_the_card_does_not_list_is_refused(tmp_path):
    path = save(np.where(DISC > 0, 3, 0).astype(np.uint8), tmp_path / "m.png")
    error = refused([path], spec(kind="index", classes=["background", "nerve", "vessel"]))
    assert error.reason == "mask_value" and "3" in error.message


def test_one_bit_and_grey_rgb_masks_hold_class_numbers_too(tmp_path):
    masks = spec(kind="index", classes=["background", "a"])
    np.testing.assert_array_equal(read_mask([save(DISC, tmp_path / "1.png", "1")], masks, SHAPE), DISC // 255)
    np.testing.assert_array_equal(read_mask([save(DISC // 255, tmp_path / "2.png", "RGB")], masks, SHAPE), DISC // 255)
    colours = save(DISC[..., None] * np.array([1, 0, 0], np.uint8), tmp_path / "3.png")
    assert refused([colours], masks).reason == "mask_value"


def test_colours_are_looked_up_exactly(tmp_path):
    pixels = np.zeros((*SHAPE, 3), np.uint8)
    pixels[DISC > 0] = (64, 0, 0)
    pixels[:5] = (0, 64, 0)
    colours = {"0,0,0": "background", "64,0,0": "cyst", "0,64,0": "cystadenoma"}
    masks = spec(kind="colour", classes=["background", "cyst", "cystadenoma"], colours=colours)
    mask = read_mask([save(pixels, tmp_path / "m.png")], masks, SHAPE)
    np.testing.assert_array_equal(mask, np.where(pixels[..., 0] > 0, 1, np.where(pixels[..., 1] > 0, 2, 0)))
    pixels[-1, -1] = (65, 0, 0)
    error = refused([save(pixels, tmp_path / "n.png")], masks)
    assert "65,0,0" in error.message


def test_the_name_of_a_file_can_tell_its_class_and_later_classes_lie_on_top(tmp_path):
    tumour, other = blob(60, 40, (0.4, 0.5)), blob(60, 40, (0.6, 0.5))
    paths = [save(tumour, tmp_path / "c_tumor.png"), save(other, tmp_path / "c_other1.png")]
    by_path = {r"_tumor\.png$": "tumor", r"_other\d\.png$": "other"}
    masks = spec(classes=["background", "tumor", "other"], by_path=by_path)
    wanted = np.where(other > 0, 2, np.where(tumour > 0, 1, 0))
    np.testing.assert_array_equal(read_mask(paths, masks, SHAPE), wanted)
    np.testing.assert_array_equal(read_mask(paths[::-1], masks, SHAPE), wanted)
    assert refused([save(other, tmp_path / "c_else.png")], masks).reason == "mask_value"


@pytest.mark.parametrize("thickness", [1, 3])
@pytest.mark.parametrize("angle", [0, 23, 45, 80])
def test_a_drawn_ellipse_is_filled(thickness, angle):
    outline = np.zeros((120, 160), np.uint8)
    cv2.ellipse(outline, (80, 60), (50, 30), angle, 0, 360, 1, thickness)
    filled = fill_outline(outline.astype(bool))
    assert filled[60, 80] and not filled[0, 0] and filled[outline > 0].all()
    outer = np.pi * (50 + thickness / 2) * (30 + thickness / 2)  # pixels
    assert filled.sum() == pytest.approx(outer, rel=0.06)
    np.testing.assert_array_equal(fill_outline(filled), filled)  # what is filled stays


def test_two_outlines_are_filled_each_and_a_ring_inside_changes_nothing():
    curves = np.zeros((60, 120), np.uint8)
    for centre, radius in (((30, 30), 20), ((90, 30), 15), ((30, 30), 8)):
        cv2.circle(curves, centre, radius, 1, 1)
    filled = fill_outline(curves.astype(bool))
    assert filled[30, 30] and filled[30, 90] and not filled[2, 60]
    assert cv2.connectedComponents(filled.astype(np.uint8))[0] == 3


@pytest.mark.parametrize("centre", [(80, 5), (80, 115), (4, 60), (155, 60), (5, 8)])
def test_an_outline_that_leaves_the_image_is_closed_along_its_border(centre):
    outline, solid = (np.zeros((120, 160), np.uint8) for _ in range(2))
    cv2.circle(outline, centre, 40, 1, 1)
    cv2.circle(solid, centre, 40, 1, -1)
    filled = fill_outline(outline.astype(bool))
    assert (filled != solid.astype(bool)).mean() < 0.002


def test_a_line_that_encloses_nothing_is_refused(tmp_path):
    line = np.zeros(SHAPE, np.uint8)
    cv2.ellipse(line, (30, 20), (20, 12), 0, 0, 300, 255)  # a gap of 60 degrees
    path = save(line, tmp_path / "m.png")
    assert refused([path], spec(kind="outline", classes=["background", "head"])).reason == "mask_open_outline"


def test_a_damaged_mask_is_refused_with_its_name(tmp_path):
    path = save(DISC, tmp_path / "m.png")
    path.write_bytes(path.read_bytes()[:-30])
    assert refused([path], BINARY).reason == "truncated"
    path.write_bytes(b"")
    assert refused([path], BINARY).reason == "empty_file"
    assert refused([tmp_path / "none.png"], BINARY).reason == "missing"


def test_a_stored_mask_is_a_grey_png_of_its_indices():
    mask = np.zeros((256, 256), np.uint8)
    mask[40:90, 30:200] = 2
    content = encode_mask(mask)
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(picture), mask)
    assert content == encode_mask(mask.copy()) and len(content) < 2000


@pytest.mark.parametrize(("name", "wanted"), [("busi", 2), ("hc18", 2), ("usgra_seg", 3)])
def test_the_masks_of_every_fake_read_as_their_card_says(tmp_path, name, wanted):
    fake, card = draw(name, tmp_path), get_card(name)
    seen = set()
    for item in list_items(card, fake.root).items:
        if item.masks:
            shape = read_image(fake.root / item.path).shape[:2]
            mask = read_mask([fake.root / path for path in item.masks], card.masks, shape)
            seen |= set(np.unique(mask).tolist())
    assert seen == set(range(wanted))


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "folder", "bad"), [("busi", "busi", 1), ("hc18", "hc18", 0), ("usgra_seg", "usgra-seg", 0)]
)
def test_real_masks_lie_where_their_structures_are(real_data: Path, name, folder, bad):
    card, root = get_card(name), real_data / folder
    shares, refusals = [], []
    for item in list_items(card, root).items:
        try:
            mask = read_mask([root / path for path in item.masks], card.masks, read_image(root / item.path).shape[:2])
        except DataError as error:
            refusals.append((item.path, error.reason))
            continue
        shares.append((item.fields.get("label"), float((mask > 0).mean())))
    assert len(refusals) == bad
    if name == "busi":  # the copy's image 4 was cut out of the original, one of its two masks was not
        assert refusals[0][0].endswith("benign (4).png") and refusals[0][1] == "mask_size"
        assert all((share == 0) == (label == "normal") for label, share in shares)
    if name == "hc18":
        assert all(0.02 < share < 0.6 for _, share in shares)  # filled: an outline would cover less than 1 %
