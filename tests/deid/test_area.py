"""The decision which pixels are kept, on drawn screens and on the real sample files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes.scans import KINDS, Screen, draw_screen

from ingest.deid.area import ScanArea, find_area, summarise
from ingest.deid.device import Device, Region
from ingest.deid.reasons import Reason, Refusal
from ingest.deid.templates import Template, Templates
from ingest.readers.dicom import open_dicom, read_frames

NONE = Templates({}, "0" * 32)
DEVICE = Device("acme", "scan 1", "3")


def template(box: tuple[int, int, int, int], shape: tuple[int, int] = (600, 800)) -> Templates:
    made = Template(
        manufacturer="acme",
        model="scan 1",
        rows=shape[0],
        columns=shape[1],
        box=box,
        kind="rectangle",
        reviewed_by="test maker",
        reviewed_on="2026-01-01",  # type: ignore[arg-type]
        images_seen=20,
    )
    return Templates({made.key: made}, "1" * 32)


def look(screen: Screen, regions: tuple[Region, ...] | None = None, templates: Templates = NONE) -> ScanArea:
    return find_area(summarise(screen.frames), screen.regions if regions is None else regions, DEVICE, templates)


def kept_words(area: ScanArea, screen: Screen) -> int:
    """Bright pixels of words outside the sector that would be kept; ticks and bars say nothing of a patient."""
    ink = screen.frames.reshape(len(screen.frames), *screen.truth.shape, -1).max(axis=(0, 3)) > 60
    found = 0
    for text in screen.texts:
        if text.words and text.where != "inside":
            x0, y0, x1, y1 = text.box
            found += int((area.mask & ink & screen.outside)[y0:y1, x0:x1].sum())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(240, 320), (600, 800)])
def test_with_valid_regions_the_sector_is_kept_and_no_word(kind: str, size: tuple[int, int]):
    screen = draw_screen(kind, 11, size=size, touching="ANNA DOE", gain=0.9, flank=0.0, attenuation=0.2)
    area = look(screen)
    assert area.source == "regions+fit" and area.score >= 0.9 and kept_words(area, screen) == 0
    # 2 px are much of a small picture
    assert (area.mask & screen.echo).sum() > (0.97 if size[0] > 300 else 0.92) * screen.echo.sum()
    rows, columns = np.flatnonzero(area.mask.any(axis=1)), np.flatnonzero(area.mask.any(axis=0))
    assert area.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_without_regions_the_fit_alone_keeps_no_word(kind: str):
    screen = draw_screen(kind, 12, gain=0.9, flank=0.0, attenuation=0.2)
    area = look(screen, ())
    assert area.source == "fit" and kept_words(area, screen) == 0


def test_a_stale_region_is_not_clipped_but_left_aside():
    screen = draw_screen("curved", 13, gain=0.9)
    stale = Region(120, 60, 900, 700, 1, 1)
    assert look(screen, (stale,)).source == "fit"


def test_a_region_can_only_narrow_what_the_pixels_show():
    screen = draw_screen("linear", 14, gain=0.9, flank=0.0)
    x0, y0, x1, y1 = look(screen).box
    upper = Region(x0 + 20, y0 - 5, x1 - 20, (y0 + y1) // 2, 1, 1)
    area = look(screen, (upper,))
    assert area.box[0] >= x0 + 20 + 2 and area.box[2] <= x1 - 20 - 2 and area.box[3] <= (y0 + y1) // 2 - 2


def test_an_m_mode_strip_below_the_image_is_never_kept():
    screen = draw_screen("linear", 15, gain=0.9, flank=0.0)
    frame = screen.frames[0].copy()
    strip = np.random.default_rng(0).integers(0, 200, frame[500:590, 60:760].shape, dtype=np.uint8)
    frame[500:590, 60:760] = strip
    m_mode = Region(60, 500, 760, 590, 2, 1)
    image = Region(90, 60, 740, 500, 1, 1)
    area = find_area(summarise([frame]), (image, m_mode), DEVICE, NONE)
    assert not area.mask[500:590].any()
    with pytest.raises(Refusal) as refused:
        find_area(summarise([frame]), (m_mode,), DEVICE, NONE)
    assert refused.value.reason == Reason.NO_SCAN_AREA


def test_without_a_fit_only_a_reviewed_template_decides():
    black = np.zeros((600, 800), np.uint8)
    with pytest.raises(Refusal) as refused:
        find_area(summarise([black]), (Region(100, 60, 700, 520, 1, 1),), DEVICE, NONE)
    assert str(refused.value.reason) == "no_scan_area" and refused.value.step == "pixels"
    area = find_area(summarise([black]), (), DEVICE, template((100, 60, 700, 520)))
    assert (area.source, area.score, area.box) == ("template", 0.0, (102, 62, 698, 518))
    other = find_area(summarise([black]), (Region(200, 60, 700, 520, 1, 1),), DEVICE, template((100, 60, 700, 520)))
    assert other.box == (202, 62, 698, 518)  # a believable header still narrows it


def test_a_template_vouches_for_the_place_but_the_fit_decides_within():
    screen = draw_screen("curved", 16, gain=0.9, flank=0.0)
    x0, y0, x1, y1 = (screen.regions[0].x0, screen.regions[0].y0, screen.regions[0].x1, screen.regions[0].y1)
    area = look(screen, (), template((x0, y0, x1, y1)))
    assert area.source == "template+fit" and area.kind == "sector" and kept_words(area, screen) == 0


def test_the_area_is_2_pixels_smaller_but_not_at_the_picture_s_own_border():
    noise = np.random.default_rng(2).rayleigh(40, (600, 800)).clip(0, 255).astype(np.uint8)
    tissue = np.asarray(cv2.GaussianBlur(noise, (5, 5), 1.5), np.uint8)
    region = Region(0, 40, 700, 600, 1, 1)
    area = find_area(summarise([tissue]), (region,), DEVICE, NONE)
    assert area.box == (0, 42, 698, 600) and area.kind == "rectangle"


def test_a_sector_that_moves_is_refused():
    screen = draw_screen("phased", 17, size=(480, 640), frames=6, moving=True, gain=0.9)
    with pytest.raises(Refusal) as refused:
        look(screen, ())
    assert refused.value.reason in (Reason.AREA_DIFFERS, Reason.NO_SCAN_AREA)


def test_a_tiny_picture_is_refused():
    noise = np.random.default_rng(3).integers(0, 255, (60, 80), dtype=np.uint8)
    with pytest.raises(Refusal):
        find_area(summarise([noise]), (), DEVICE, NONE)


@pytest.mark.parametrize("shape", [(1, 800), (63, 800), (600, 63), (1, 1)])
def test_a_picture_that_is_a_few_rows_high_is_refused(shape: tuple[int, int]):
    noise = np.random.default_rng(4).integers(0, 255, shape, dtype=np.uint8)
    with pytest.raises(Refusal) as refused:
        find_area(summarise([noise]), (), DEVICE, NONE)
    assert refused.value.reason == Reason.NO_SCAN_AREA


@pytest.mark.parametrize("mode", ["regions", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_ringing_of_lossy_frames_is_not_taken_for_the_sector(kind: str, mode: str):
    screen = draw_screen(kind, 2006, (480, 640), 10, background=0, gain=1.0, flank=0.0, clip=False, jpeg=75)
    area = look(screen, None if mode == "regions" else ())
    assert not (area.mask & screen.outside).any()
    assert (area.mask & screen.echo).sum() > 0.94 * screen.echo.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_no_pixel_beyond_the_true_edge_is_kept(kind: str):
    screen = draw_screen(kind, 2014, (480, 640), background=0, gain=1.0, flank=0.0)
    area = look(screen)
    assert not (area.mask & screen.outside).any()
    assert (area.mask & screen.echo).sum() > 0.96 * screen.echo.sum()


@pytest.mark.deid
@pytest.mark.parametrize("mode", ["regions", "none"])
def test_yield_and_loss_over_many_screens(mode: str):
    options: list[dict[str, object]] = [{}, {"clip": True}, {"flip": True}, {"touching": "ANNA DOE"}, {"jpeg": 85}]
    options += [{"background": 40}, {"doppler": True}, {"frames": 8}, {"attenuation": 1.0}, {"flank": 0.15}]
    sizes = [(600, 800), (240, 320), (768, 1024), (480, 640), (1024, 1280)]
    tried = accepted = 0
    for number, option in enumerate(options):
        for kind in KINDS:
            for seed in range(5):
                screen = draw_screen(kind, 1000 + 10 * number + seed, size=sizes[seed], **option)
                tried += 1
                try:
                    area = look(screen, None if mode == "regions" else ())
                except Refusal:
                    continue
                accepted += 1
                assert kept_words(area, screen) == 0
    assert accepted >= (0.95 if mode == "regions" else 0.8) * tried


# Banner and furniture of the real files, as boxes that must stay out; and points of the scan that must stay in.
REAL = {
    "pydicom-data/OBXXXX1A": ([(0, 0, 800, 60), (0, 60, 200, 600), (720, 60, 800, 600)], [(460, 120)]),
    "pydicom-data/JPGLosslessP14SV1_1s_1f_8b": (
        [(0, 0, 1024, 150), (0, 0, 120, 768), (0, 690, 1024, 768)],
        [(500, 400)],
    ),
    "pydicom-data/US1_UNCR": ([(0, 0, 640, 104), (0, 345, 640, 480)], [(320, 200)]),
    "pydicom/examples_ybr_color": ([(0, 0, 36, 240), (0, 212, 320, 240), (306, 0, 320, 240)], [(160, 100)]),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_files_lose_their_banner_and_keep_their_sector(name: str, real_data: Path):
    image = open_dicom(real_data / "dicom" / f"{name}.dcm")
    frames = [frame for _, frame in read_frames(image, range(image.frames))]
    regions = tuple(
        Region(
            item.RegionLocationMinX0,
            item.RegionLocationMinY0,
            item.RegionLocationMaxX1 + 1,
            item.RegionLocationMaxY1 + 1,
            item.RegionSpatialFormat,
            item.RegionDataType,
        )
        for item in image.dataset.get("SequenceOfUltrasoundRegions", [])
    )
    area = find_area(summarise(frames), regions, Device(), NONE)
    out, within = REAL[name]
    assert not any(area.mask[y0:y1, x0:x1].any() for x0, y0, x1, y1 in out)
    assert all(area.mask[y, x] for x, y in within)
