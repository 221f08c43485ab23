"""The view generator: n geometries, each in m photometric versions, from drawn parameters."""

from typing import Any

import numpy as np
import pytest
import torch
from fakes.speckle import speckle

from training.views import (
    ViewConfig,
    blur_each,
    draw_views,
    identity_photometry,
    inside_boxes,
    photometric_views,
    spatial_views,
)

NO_GEOMETRY: dict[str, Any] = {"flip": 0.0, "area": (1.0, 1.0), "aspect": (1.0, 1.0), "rotate": 0.0, "shift": 0.0}
CALM = ViewConfig(**NO_GEOMETRY, brightness=0.0, contrast=(1.0, 1.0), blur=0.0, erase=0.0)


def drawn(n: int, spatial: int = 2, colours: int = 2, seed: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
    cfg = CALM.model_copy(update=changes)
    return draw_views(n, spatial, colours, cfg, torch.Generator().manual_seed(seed))


def grey(n: int = 3, size: int = 64) -> torch.Tensor:
    return speckle(n, size=size).float() / 255


def test_every_draw_has_the_batch_first_and_repeats():
    cfg = ViewConfig()
    one, two = (draw_views(5, 2, 3, cfg, torch.Generator().manual_seed(1)) for _ in range(2))
    assert {name: tuple(value.shape) for name, value in one.items()} == {
        "affine": (5, 2, 2, 3),
        "gain": (5, 2, 3),
        "offset": (5, 2, 3),
        "sigma": (5, 2, 3),
        "box": (5, 2, 3, 4),
        "fill": (5, 2, 3),
    }
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_draws_stay_in_their_ranges():
    cfg = ViewConfig()
    d = draw_views(4000, 1, 1, cfg, torch.Generator().manual_seed(0))
    assert d["gain"].min() >= 0.75 and d["gain"].max() <= 1.3 and d["offset"].abs().max() <= 0.2
    blurred = d["sigma"][d["sigma"] > 0]
    assert len(blurred) / 4000 == pytest.approx(0.5, abs=0.04) and blurred.min() >= 0.1 and blurred.max() <= 1.5
    left, top, right, bottom = d["box"].unbind(-1)
    area = (right - left) * (bottom - top)
    erased = area[area > 0]
    assert len(erased) / 4000 == pytest.approx(0.5, abs=0.04)
    assert erased.min() > 0.0199 and erased.max() < 0.1501
    assert d["box"].min() >= 0 and d["box"].max() <= 1
    matrix = d["affine"][:, 0, :, :2]
    assert matrix.det().abs().min() > 0.599 and matrix.det().abs().max() < 1.001
    assert (matrix.det() < 0).float().mean() == pytest.approx(0.5, abs=0.04)  # mirrored
    assert d["affine"][..., 2].abs().max() <= 0.2
    assert (matrix[:, 1, 1] > 0).all()  # never upside down


def test_without_any_change_a_view_is_the_image_bit_for_bit():
    images, d = grey(), drawn(3)
    clean = spatial_views(images, d["affine"], 64)
    assert clean.shape == (3, 2, 1, 64, 64)
    assert (clean - images[:, None]).abs().max() < 1e-5
    assert torch.equal(photometric_views(clean, d, 1.5), clean[:, :, None].expand(-1, -1, 2, -1, -1, -1))


def test_shrinking_averages_and_makes_no_false_speckle():
    checkers = (torch.arange(256)[:, None] + torch.arange(256)) % 2
    small = spatial_views(checkers[None, None].float(), drawn(1)["affine"], 128)
    assert (small - 0.5).abs().max() < 1e-4


def test_mirroring_shifting_and_cropping_go_where_they_should():
    images = grey(1)
    flipped = spatial_views(images, drawn(1, flip=1.0)["affine"], 64)
    assert (flipped[:, 0] - images.flip(-1)).abs().max() < 1e-5
    affine = drawn(1)["affine"].clone()
    affine[..., 0, 2] = 2 * 8 / 64  # look 8 pixels further right
    moved = spatial_views(images, affine, 64)
    assert (moved[:, 0, :, :, :-8] - images[..., 8:]).abs().max() < 1e-5
    assert moved[:, 0, :, :, -8:].abs().max() == 0  # black beyond the edge
    half = drawn(1, area=(0.25, 0.25))["affine"]
    enlarged = spatial_views(images, half, 32)
    middle = torch.nn.functional.avg_pool2d(images, 1)[..., 16:48, 16:48]
    assert (enlarged[0, 0] - middle[0]).abs().mean() < 0.05  # the central quarter


def test_rotation_keeps_shapes_round():
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    disc = (x**2 + y**2 < 20**2).float()[None, None]
    turned = spatial_views(disc, drawn(1, rotate=90.0, seed=3)["affine"], 64)
    assert (turned[0] - disc[0]).abs().mean() < 0.02


def test_brightness_and_contrast_are_what_they_say():
    images, d = grey(), drawn(3)
    clean = spatial_views(images, d["affine"], 64) * 0.5 + 0.25
    d["gain"], d["offset"] = torch.full_like(d["gain"], 0.8), torch.full_like(d["offset"], 0.1)
    seen = photometric_views(clean, d, 1.5)
    mean = clean.mean((2, 3, 4), keepdim=True)
    assert (seen[:, :, 0] - (mean + 0.8 * (clean - mean) + 0.1)).abs().max() < 1e-5


def test_blur_is_opencv_s_and_sigma_0_changes_no_bit():
    import cv2

    images = grey(3)[:, 0]
    sigmas = torch.tensor([0.0, 0.6, 1.5])
    ours = blur_each(images, sigmas, 1.5)
    assert torch.equal(ours[0], images[0])
    for i in (1, 2):
        theirs = cv2.GaussianBlur(images[i].numpy(), (13, 13), float(sigmas[i]), borderType=cv2.BORDER_REFLECT_101)
        assert np.abs(ours[i].numpy() - theirs).max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(blur_each(images, sigmas, 1.5), ours)


def test_an_erased_box_is_black_or_the_mean_and_where_it_was_drawn():
    images, d = grey(2).clamp(min=0.05), drawn(2, spatial=1, colours=2, erase=1.0)
    d["box"] = torch.tensor([0.25, 0.5, 0.5, 0.75]).expand(2, 1, 2, 4)
    d["fill"] = torch.tensor([True, False]).expand(2, 1, 2)
    clean = spatial_views(images, d["affine"], 64)
    seen = photometric_views(clean, d, 1.5)
    hole = torch.zeros(64, 64, dtype=torch.bool)
    hole[32:48, 16:32] = True
    assert (seen[:, 0, 0, 0][:, hole] == 0).all()
    assert (seen[:, 0, 1, 0][:, hole] - clean[:, 0].mean((1, 2, 3))[:, None]).abs().max() < 1e-6
    assert torch.equal(seen[:, 0, 0, 0][:, ~hole], clean[:, 0, 0][:, ~hole])
    assert not inside_boxes(torch.zeros(1, 4), 8, 8).any()  # a box without area erases nothing


def test_colour_versions_share_the_geometry_and_geometries_differ():
    cfg = ViewConfig()
    images, d = grey(), draw_views(3, 2, 2, identity_photometry(cfg), torch.Generator().manual_seed(0))
    clean = spatial_views(images, d["affine"], 64)
    seen = photometric_views(clean, d, 1.5)
    assert torch.equal(seen[:, :, 0], seen[:, :, 1])
    assert (seen[:, 0] - seen[:, 1]).abs().mean() > 0.01
    d = draw_views(3, 2, 2, cfg, torch.Generator().manual_seed(0))
    seen = photometric_views(spatial_views(images, d["affine"], 64), d, 1.5)
    assert (seen[:, :, 0] - seen[:, :, 1]).abs().mean() > 0.01


def test_a_view_depends_on_its_own_row_of_the_draws_only():
    cfg, images = ViewConfig(), grey(4)
    d = draw_views(4, 2, 1, cfg, torch.Generator().manual_seed(0))
    together = photometric_views(spatial_views(images, d["affine"], 32), d, 1.5)
    row = {name: value[2:3] for name, value in d.items()}
    alone = photometric_views(spatial_views(images[2:3], row["affine"], 32), row, 1.5)
    assert (together[2:3] - alone).abs().max() < 1e-6
