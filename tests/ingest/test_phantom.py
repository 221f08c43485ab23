"""The embedded data set `phantom`: repeatable, physically plausible, and true to its own masks and labels."""

import dataclasses
import json
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import cv2
import numpy as np
import pytest

from ingest.phantom import CONVEX, LINEAR, ORGANS, PHASED, PhantomSpec, plan, render, render_many
from ingest.phantom_scan import BEAMS, MARGIN, ROWS, display, envelope, geometry_of
from ingest.phantom_scenes import SCENES
from ingest.phantom_shapes import Blob
from usdata.errors import ConfigError, DataError, UsdataError
from usdata.schema import SAMPLES, check_word, table_of

GRID = (ROWS, BEAMS + 2 * MARGIN)


def scatterers(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*GRID, 2), np.float32).view(np.complex64)[..., 0]


def uniform_echo(probe=LINEAR, depth=40.0, mhz=9.0, echo=None, loss=None, coherent=None):
    zero = np.zeros(GRID, np.float32)
    maps = [zero if value is None else value for value in (echo, loss, coherent)]
    return envelope(*maps, geometry_of(probe, depth, mhz, 1.0), scatterers(7))


def first_of(organ: str, label: str | None = None, count: int = 1, seed: int = 11) -> list:
    """Renders the first image of `count` patients with that label."""
    found = []
    for spec in plan(count * 24, seed, [organ]):
        if spec.image == 0 and spec.frame in (None, 0) and len(found) < count:
            phantom = render(spec)
            if label in (None, phantom.fields["label"]):
                found.append(phantom)
    assert len(found) == count
    return found


def below_and_beside(phantom, index: int) -> tuple[float, float]:
    """Mean grey in the shadow zone of a class, and at the same depth in columns well away from it (linear probes)."""
    rows, columns = np.nonzero(phantom.mask == index)
    left, right = np.quantile(columns, [0.3, 0.7]).astype(int)
    zone = slice(rows.max() + 6, min(rows.max() + 40, 256))
    width = columns.max() - columns.min()
    beside = np.ones(256, bool)
    beside[max(columns.min() - width // 4, 0) : columns.max() + width // 4] = False
    return float(phantom.image[zone, left : right + 1].mean()), float(phantom.image[zone][:, beside].mean())


# --- the plan ----------------------------------------------------------------------------------------------------


def test_the_default_set_has_a_thousand_images_in_strongly_unequal_numbers():
    counts = Counter(spec.organ for spec in plan())
    assert sum(counts.values()) == 1000
    assert counts == {name: organ.share for name, organ in ORGANS.items()}
    assert len(counts) >= 6
    assert counts["breast"] == 400
    assert counts["kidney"] == 12


@pytest.mark.parametrize("n", [100, 250, 2000])
def test_another_number_of_images_keeps_the_ratios(n):
    counts = Counter(spec.organ for spec in plan(n))
    assert sum(counts.values()) == n
    for name, organ in ORGANS.items():
        assert abs(counts[name] - n * organ.share / 1000) <= 1


def test_every_organ_is_there_as_soon_as_there_are_as_many_images_as_organs():
    assert Counter(spec.organ for spec in plan(8)) == dict.fromkeys(ORGANS, 1)
    assert [spec.organ for spec in plan(1)] == ["breast"]


def test_the_plan_is_the_same_each_time_and_another_seed_means_other_images():
    assert plan(300, 5) == plan(300, 5)
    assert {spec.source_id for spec in plan(300, 5)}.isdisjoint(spec.source_id for spec in plan(300, 6))
    one, other = render(plan(1, 5)[0]), render(plan(1, 6)[0])
    assert not np.array_equal(one.image, other.image)


def test_no_two_images_share_a_source_id():
    names = [spec.source_id for spec in plan(1000)]
    assert len(set(names)) == len(names)


def test_a_patient_shows_one_organ_with_one_label_in_several_images():
    organs, images = defaultdict(set), Counter()
    for spec in plan(1000):
        organs[spec.patient_id].add((spec.organ, spec.case))
        images[spec.patient_id] += 1
    assert {len(found) for found in organs.values()} == {1}
    assert max(images.values()) > 1
    assert plan(1)[0].patient_id == "phantom-p0001"


def test_only_the_organs_asked_for_are_planned():
    counts = Counter(spec.organ for spec in plan(112, organs=["kidney", "heart"]))
    assert counts == {"heart": 100, "kidney": 12}


@pytest.mark.parametrize("n", [0, -3])
def test_no_images_at_all_is_refused(n):
    with pytest.raises(ConfigError, match="at least 1 image"):
        plan(n)


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="0 or more"):
        plan(10, -1)


def test_an_unknown_organ_is_refused_with_the_nearest_words():
    with pytest.raises(UsdataError, match="Did you mean 'kidney'"):
        plan(10, organs=["kidny"])
    with pytest.raises(UsdataError, match="Did you mean 'breast'"):
        render(PhantomSpec("brest", 0, 1, 0, 0))
    with pytest.raises(ConfigError, match="No organ"):
        plan(10, organs=[])


@pytest.mark.parametrize("wrong", [{"frame": 99}, {"frame": None}, {"image": -1}])
def test_a_spec_of_an_image_that_cannot_be_is_refused(wrong):
    spec = PhantomSpec("heart", 0, 1, 0, 0, frame=0, n_frames=8)
    with pytest.raises(DataError, match="No such phantom"):
        render(dataclasses.replace(spec, **wrong))


# --- repeatability -----------------------------------------------------------------------------------------------


def test_an_image_is_the_same_in_another_process_and_in_another_order():
    specs = plan(16, 3)
    here = list(render_many(specs))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = list(pool.map(render, reversed(specs)))[::-1]
    for a, b in zip(here, there, strict=True):
        assert a.image.tobytes() == b.image.tobytes()
        assert a.mask.tobytes() == b.mask.tobytes()
        assert a.fields == b.fields


def test_rendering_leaves_the_global_random_numbers_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    render(plan(1)[0])
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


# --- physics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("probe", "depth", "mhz"), [(LINEAR, 40.0, 9.0), (CONVEX, 120.0, 3.5), (PHASED, 150.0, 2.5)])
def test_speckle_of_uniform_tissue_is_fully_developed(probe, depth, mhz):
    # A Rayleigh distribution has mean sigma sqrt(pi / 2) and variance (2 - pi / 2) sigma^2: their ratio is 1.913
    rayleigh = np.sqrt(np.pi / 2) / np.sqrt(2 - np.pi / 2)
    echo = uniform_echo(probe, depth, mhz)[16:-16]
    assert echo.mean() / echo.std() == pytest.approx(rayleigh, rel=0.05)
    assert np.mean(echo**2) == pytest.approx(2.0, rel=0.1)  # pulse and beam have unit energy


def test_speckle_grains_are_wider_than_they_are_high():
    echo = uniform_echo() - uniform_echo().mean()
    down = np.mean(echo[1:] * echo[:-1]) / echo.var()
    across_mm, down_mm = 40 / BEAMS, 40 / ROWS
    # Deviation of the Gaussian that the correlation follows, from its value at one step
    across = np.mean(echo[:, 1:] * echo[:, :-1]) / echo.var()
    assert across_mm / np.sqrt(-np.log(across)) > 1.5 * down_mm / np.sqrt(-np.log(down))


def test_the_beam_of_a_linear_probe_is_narrowest_at_its_focus():
    spectrum = geometry_of(LINEAR, 40.0, 9.0, 1.0).lateral
    width = (spectrum / spectrum[:, :1]).sum(axis=1)  # a wide spectrum is a narrow beam
    assert 0.4 < width.argmax() / ROWS < 0.7
    assert width[-1] < width.max()


def test_an_obstacle_damps_what_lies_below_it_by_its_thickness_times_its_loss():
    loss = np.zeros(GRID, np.float32)
    loss[64:128, 60:100] = 2.0  # 64 samples of 40 / 256 mm: 10 mm of 2 dB/mm
    echo = uniform_echo(loss=loss)
    inside, beside = echo[140:, 70:90], echo[140:, 10:50]
    decibels = 10 * np.log10(np.mean(inside**2) / np.mean(beside**2))
    assert decibels == pytest.approx(-20, abs=1.0)


def test_a_specular_interface_outshines_the_speckle_around_it():
    coherent = np.zeros(GRID, np.float32)
    coherent[128] = 10.0
    echo = uniform_echo(coherent=coherent)
    assert echo[128].mean() > 3 * echo[:100].mean()


def test_log_compression_spreads_the_dynamic_range_over_the_grey_scale():
    geometry = geometry_of(LINEAR, 40.0, 9.0, 1.0)
    low = display(np.full(GRID, 0.1, np.float32), geometry, 0.0, 60.0)
    high = display(np.full(GRID, 1.0, np.float32), geometry, 0.0, 60.0)
    assert int(high[128, 128]) - int(low[128, 128]) == pytest.approx(255 * 20 / 60, abs=1)  # 20 dB of 60


# --- pictures, masks, labels, measures ---------------------------------------------------------------------------


@pytest.mark.parametrize("organ", ORGANS)
def test_every_organ_gives_an_image_a_mask_and_vocabulary_words(organ):
    phantom = first_of(organ)[0]
    facts = phantom.fields
    for array in (phantom.image, phantom.mask):
        assert array.shape == (256, 256)
        assert array.dtype == np.uint8
    assert phantom.mask.max() < len(phantom.mask_classes)
    assert phantom.mask_classes[0] == "background"
    assert check_word("organ", facts["organ"]) == organ
    assert check_word("probe", facts["probe"]) == facts["probe"]
    assert check_word("mode", facts["mode"]) == facts["mode"]
    assert facts["synthetic"] is True
    assert set(facts) <= set(SAMPLES.names)
    assert table_of([facts]).num_rows == 1  # names and types are the catalog's
    assert 25 < phantom.image[phantom.image > 0].mean() < 150
    assert np.mean(phantom.image == 255) < 0.05  # not burnt out


def test_organs_and_scenes_are_the_same_list():
    assert set(ORGANS) == set(SCENES)


@pytest.mark.parametrize("organ", [name for name, organ in ORGANS.items() if organ.probe.word != "linear"])
def test_a_curved_probe_leaves_everything_outside_of_its_sector_black(organ):
    phantom = first_of(organ)[0]
    body = ORGANS[organ]
    outside = geometry_of(body.probe, phantom.fields["depth_mm"], body.mhz, body.crop).inside == 0
    assert 0.05 < outside.mean() < 0.6
    assert not phantom.image[outside].any()
    assert not phantom.mask[outside].any()
    assert outside[0, 0] and outside[0, -1]


def test_pixel_spacing_times_the_picture_is_the_depth():
    linear, convex = first_of("breast")[0].fields, first_of("kidney")[0].fields
    assert linear["pixel_mm_y"] * 256 == pytest.approx(linear["depth_mm"], rel=1e-4)
    assert linear["pixel_mm_x"] * 256 == pytest.approx(40.0, rel=1e-4)
    # A sector also shows how far the curved face rises at its sides, and 2 % of margin above and below
    rise = 50 * (1 - np.cos(np.deg2rad(33)))
    assert convex["pixel_mm_y"] * 256 == pytest.approx(1.04 * convex["depth_mm"] + rise, rel=1e-3)


def test_a_normal_breast_has_an_empty_mask_and_a_mass_has_not():
    assert not first_of("breast", "normal")[0].mask.any()
    assert all(p.mask.any() for p in first_of("breast", "benign", 3) + first_of("breast", "malignant", 3))


def test_a_mass_is_darker_than_the_tissue_around_it():
    for phantom in first_of("breast", "benign", 4) + first_of("breast", "malignant", 4):
        mass = phantom.mask == 1
        ring = (cv2.dilate(phantom.mask, np.ones((25, 25))) > 0) & ~(cv2.dilate(phantom.mask, np.ones((9, 9))) > 0)
        assert phantom.image[mass].mean() < 0.8 * phantom.image[ring].mean()


def test_benign_masses_are_bright_behind_and_malignant_ones_cast_a_shadow():
    for label, wanted in (("benign", 1), ("malignant", -1)):
        pairs = [below_and_beside(phantom, 1) for phantom in first_of("breast", label, 8)]
        differences = [below - beside for below, beside in pairs if np.isfinite([below, beside]).all()]
        assert len(differences) >= 6
        assert wanted * np.mean(differences) > 8


def test_benign_masses_are_smoother_than_malignant_ones():
    def roundness(phantom) -> float:
        """Share of the outline's convex hull that the mass fills."""
        outline = max(cv2.findContours(phantom.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=cv2.contourArea)
        return cv2.contourArea(outline) / cv2.contourArea(cv2.convexHull(outline))

    benign = [roundness(p) for p in first_of("breast", "benign", 5)]
    malignant = [roundness(p) for p in first_of("breast", "malignant", 5)]
    assert min(benign) > max(malignant)


def test_the_gallbladder_is_echo_free_and_the_liver_around_it_is_not():
    for phantom in first_of("gallbladder", "normal", 3):
        bile = cv2.erode((phantom.mask == 1).astype(np.uint8), np.ones((9, 9))) > 0
        around = (cv2.dilate(phantom.mask, np.ones((31, 31))) > 0) & ~(cv2.dilate(phantom.mask, np.ones((11, 11))) > 0)
        assert phantom.image[bile].mean() < 0.25 * phantom.image[around].mean()


def test_heart_muscle_is_brighter_than_the_blood_in_it():
    for phantom in first_of("heart", count=3):
        names = {name: phantom.image[phantom.mask == index].mean() for index, name in enumerate(phantom.mask_classes)}
        assert names["myocardium"] > names["left_ventricle"] + 15
        assert names["myocardium"] > names["left_atrium"] + 15


def test_b_lines_are_brighter_than_the_lung_beside_them_and_only_where_the_label_says():
    for phantom in first_of("lung", "b_lines", 3):
        rows = slice(150, 230)
        ray, rest = phantom.mask[rows] == 2, (phantom.mask[rows] == 0) & (phantom.image[rows] > 0)
        assert phantom.image[rows][ray].mean() > phantom.image[rows][rest].mean() + 10
    assert not (first_of("lung", "a_lines")[0].mask == 2).any()


def test_gallstones_are_bright_and_dark_behind():
    for phantom in first_of("gallbladder", "stones", 3):
        stones = phantom.mask == 2
        assert phantom.image[stones].mean() > phantom.image[phantom.mask == 1].mean() + 60
        rows, columns = np.nonzero(stones)
        bottom = rows[columns == int(np.median(columns))].max(initial=int(rows.max()))
        shadow = phantom.image[bottom + 6 : bottom + 30, int(np.median(columns))]
        assert shadow.mean() < 0.6 * phantom.image[stones].mean()


def test_head_circumference_equals_that_of_the_mask():
    for phantom in first_of("fetal_head", count=5):
        outline = max(cv2.findContours(phantom.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=cv2.contourArea)
        scale = np.array([phantom.fields["pixel_mm_x"], phantom.fields["pixel_mm_y"]])
        points = (outline[:, 0, :] * scale).astype(np.float32)
        long, short = cv2.fitEllipse(points)[1]
        # The outline runs through the centres of the outermost pixels: half a pixel is missing on every side
        a, b = (long + scale.mean()) / 2, (short + scale.mean()) / 2
        measured = np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b)))
        assert measured == pytest.approx(phantom.fields["target"], rel=0.02)
        assert json.loads(phantom.fields["targets"])["head_circumference_mm"] == phantom.fields["target"]
        assert 150 < phantom.fields["target"] < 400


def test_the_perimeter_of_a_circle_is_two_pi_r():
    assert Blob(0, 0, 10, 10).perimeter() == pytest.approx(62.8319, abs=1e-3)
    assert Blob(0, 0, 5, 3).perimeter() == pytest.approx(25.5270, abs=1e-3)  # by elliptic integral


def test_areas_among_the_targets_are_those_of_the_mask():
    phantom = first_of("gallbladder", "normal")[0]
    pixels = np.count_nonzero(phantom.mask == 1)
    area = json.loads(phantom.fields["targets"])["gallbladder_area_mm2"]
    assert area == pytest.approx(pixels * phantom.fields["pixel_mm_x"] * phantom.fields["pixel_mm_y"], rel=1e-3)


def test_images_of_one_patient_share_settings_and_label_but_not_pixels():
    groups = defaultdict(list)
    for spec in plan(40, organs=["breast", "thyroid"]):
        groups[spec.patient_id].append(spec)
    several = [specs for specs in groups.values() if len(specs) > 1][:4]
    assert several
    for specs in several:
        first, *others = render_many(specs)
        for other in others:
            for column in ("patient", "organ", "probe", "depth_mm", "pixel_mm_x", "pixel_mm_y", "label"):
                assert other.fields[column] == first.fields[column]
            assert not np.array_equal(other.image, first.image)


def test_breast_labels_come_in_the_order_of_busi():
    labels = Counter(p.fields["label"] for p in render_many(s for s in plan(150, organs=["breast"]) if s.image == 0))
    assert labels["benign"] > labels["malignant"] > labels["normal"] > 0


def test_frames_of_a_clip_are_a_beating_heart():
    clip = [spec for spec in plan(16, organs=["heart"]) if spec.image == 0 and spec.patient == 1]
    frames = list(render_many(clip))
    facts = [frame.fields for frame in frames]
    assert [f["frame"] for f in facts] == list(range(8))
    assert {(f["clip"], f["n_frames"], f["fps"]) for f in facts} == {("phantom-p0001-c0", 8, 10.0)}
    areas = [np.count_nonzero(frame.mask == 1) for frame in frames]
    assert min(areas) < 0.85 * areas[0]
    assert 2 <= int(np.argmin(areas)) <= 4  # systole takes about 0.4 of a beat
    near = np.corrcoef(frames[0].image.ravel(), frames[1].image.ravel())[0, 1]
    stranger = render(next(spec for spec in plan(40, organs=["heart"]) if spec.patient == 2))
    assert near > 0.8 > np.corrcoef(frames[0].image.ravel(), stranger.image.ravel())[0, 1]


def test_a_still_has_no_clip_and_a_shortened_clip_says_how_long_it_is():
    still = render(plan(1)[0]).fields
    assert [still[column] for column in ("clip", "frame", "n_frames", "fps")] == [None] * 4
    assert [(spec.frame, spec.n_frames) for spec in plan(3, organs=["heart"])] == [(0, 3), (1, 3), (2, 3)]
