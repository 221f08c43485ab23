"""The sector in the pixels, on drawn screens whose sector is known."""

import cv2
import numpy as np
import pytest
from fakes.scans import KINDS, Screen, draw_screen
from PIL import Image, ImageDraw, ImageFont

from ingest.deid.sector import fit_sector, steady
from ingest.deid.summary import summarise

SIZES = [(240, 320), (480, 640), (600, 800)]


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def plain(kind: str, seed: int, **options: object) -> Screen:
    """A screen without black flanks or depths: what is lost of the sector is lost by the fit."""
    settings: dict[str, object] = {"flank": 0.0, "shadow": False, "attenuation": 0.3, "gain": 0.9, "clip": False}
    return draw_screen(kind, seed, **(settings | options))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_follows_the_true_sector(kind: str, size: tuple[int, int]):
    screen = plain(kind, 1, size=size)
    sector = fit_sector(summarise(screen.frames), None, False)
    assert sector is not None and sector.score >= 0.9
    assert overlap(sector.mask, screen.truth) > 0.96
    assert sector.mask.shape == size and sector.mask.dtype == np.bool_


@pytest.mark.parametrize(
    ("kind", "words"), [("curved", "sector"), ("phased", "sector"), ("linear", "rectangle"), ("steered", "trapezoid")]
)
def test_the_kind_is_told(kind: str, words: str):
    sector = fit_sector(summarise(plain(kind, 3).frames), None, False)
    assert sector is not None and sector.kind == words


@pytest.mark.parametrize("option", [{"flip": True}, {"background": 40}, {"jpeg": 85}, {"doppler": True}])
@pytest.mark.parametrize("kind", ["curved", "phased"])
def test_upside_down_on_grey_lossy_and_with_flow_the_sector_is_found(kind: str, option: dict[str, object]):
    screen = plain(kind, 5, **option)
    sector = fit_sector(summarise(screen.frames), None, False)
    assert sector is not None and overlap(sector.mask, screen.truth) > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_touch_the_sector_do_not_draw_the_fit_outwards(kind: str):
    screen = plain(kind, 2, touching="ANNA DOE 1950")
    sector = fit_sector(summarise(screen.frames), None, False)
    assert sector is not None
    (words,) = [text for text in screen.texts if text.where == "touching"]
    x0, y0, x1, y1 = words.box
    inside = cv2.erode(sector.mask.astype(np.uint8), np.ones((5, 5), np.uint8))[y0:y1, x0:x1]
    ink = (screen.frames[0].reshape(*screen.truth.shape, -1).max(axis=2) > 80)[y0:y1, x0:x1]
    assert not (inside.astype(bool) & ink & ~screen.truth[y0:y1, x0:x1]).any()


def test_a_black_flank_is_left_out_and_the_rest_is_fitted():
    screen = plain("phased", 4, flank=0.15)
    sector = fit_sector(summarise(screen.frames), None, False)
    assert sector is not None and (sector.mask & ~screen.truth).sum() < 0.01 * screen.truth.sum()
    assert (sector.mask & screen.echo).sum() > 0.9 * screen.echo.sum()


def test_a_sector_that_fills_a_stated_rectangle_is_accepted_only_when_it_is_vouched_for():
    noise = np.random.default_rng(0).rayleigh(40, (600, 800)).clip(0, 255).astype(np.uint8)
    tissue = np.asarray(cv2.GaussianBlur(noise, (5, 5), 1.5), np.uint8)
    allowed = np.zeros((600, 800), np.bool_)
    allowed[60:540, 100:700] = True
    filled = fit_sector(summarise([tissue]), allowed, True)
    assert filled is not None and filled.kind == "rectangle" and overlap(filled.mask, allowed) > 0.97
    assert fit_sector(summarise([tissue]), None, False) is None  # the picture's own border shows nothing


@pytest.mark.parametrize("quality", [None, 95, 60])
@pytest.mark.parametrize("points", [10, 14, 30])
def test_a_screen_of_words_is_no_sector_even_where_a_header_vouches_for_it(points: int, quality: int | None):
    page = Image.new("L", (800, 600))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(points)
    for y in range(4, 590, int(points * 1.2)):
        pen.text((4, y), "DOE JANE 1950-01-01 GENERAL HOSPITAL 0123456789 " * 4, fill=255, font=font)
    screen = np.asarray(page)
    if quality is not None:
        content = cv2.imencode(".jpg", screen, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        screen = np.asarray(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE), np.uint8)
    assert fit_sector(summarise([screen]), None, False) is None
    assert fit_sector(summarise([screen]), np.ones(screen.shape, np.bool_), True) is None


@pytest.mark.parametrize("level", [0, 90, 255])
def test_a_flat_picture_has_no_sector(level: int):
    assert fit_sector(summarise([np.full((480, 640), level, np.uint8)]), None, False) is None


@pytest.mark.parametrize("shape", [(64, 64), (65, 900), (900, 65), (300, 301)])
def test_pictures_of_odd_shapes_are_looked_at_without_an_error(shape: tuple[int, int]):
    noise = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    noise[: shape[0] // 3] = 0
    fit_sector(summarise([noise]), None, False)
    fit_sector(summarise([noise]), noise > 300, True)  # nothing is allowed


def test_a_cine_s_still_words_are_no_part_of_its_sector():
    screen = plain("curved", 6, frames=8, touching="ANNA DOE")
    sector = fit_sector(summarise(screen.frames), None, False)
    assert sector is not None and overlap(sector.mask, screen.truth) > 0.96


def test_the_fit_is_the_same_every_time_and_on_any_number_of_threads():
    summary = summarise(plain("curved", 7).frames)
    before = cv2.getNumThreads()
    masks = []
    try:
        for threads in (1, 2, 1):
            cv2.setNumThreads(threads)
            sector = fit_sector(summary, None, False)
            assert sector is not None
            masks.append(sector.mask.tobytes())
    finally:
        cv2.setNumThreads(before)
    assert len(set(masks)) == 1


@pytest.mark.parametrize("moving", [False, True])
def test_a_sector_that_moves_within_the_clip_is_noticed(moving: bool):
    screen = plain("curved", 8, size=(480, 640), frames=6, moving=moving)
    assert steady(summarise(screen.frames), screen.truth) is not moving


def test_the_mean_of_a_clip_is_kept_beside_its_extremes():
    dark, bright = np.zeros((64, 64), np.uint8), np.full((64, 64), 90, np.uint8)
    summary = summarise([dark, dark, bright])
    assert (summary.peak == 90).all() and (summary.low == 0).all() and (summary.mean == 30).all()


def test_a_summary_needs_frames_of_one_shape():
    with pytest.raises(ValueError, match="at least one"):
        summarise([])
    with pytest.raises(ValueError, match="one shape"):
        summarise([np.zeros((64, 64), np.uint8), np.zeros((64, 65), np.uint8)])
    with pytest.raises(ValueError, match="one shape"):
        summarise([np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.uint8)])


def test_a_summary_keeps_the_extremes_over_time_and_what_is_coloured():
    dark, bright = np.full((64, 64, 3), 10, np.uint8), np.full((64, 64, 3), 90, np.uint8)
    bright[:16, :, 0] = 200
    summary = summarise(iter([dark, bright]))
    assert summary.frames == 2 and summary.peak[0, 0] == 200 and summary.peak[40, 0] == 90
    assert (summary.low == 10).all() and summary.colour_share == 0.25
    assert summarise([dark[..., 0]]).colour_share == 0.0
