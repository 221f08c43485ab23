"""Crops: drawn as torchvision draws them, resampled as Pillow and torch resample."""

import math

import numpy as np
import pytest
import torch
from fakes.speckle import speckle
from PIL import Image

from training.transforms import centre_box, crop, draw_crops, to_float


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def box(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float32)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(200, 180, 224), (256, 256, 224), (120, 150, 32), (250, 230, 64)]
)
def test_a_crop_equals_torchs_antialiased_bicubic_of_the_cut_out_box(height, width, size):
    image = to_float(speckle(1))
    cut = image[:, :, 3 : 3 + height, 5 : 5 + width] if height < 256 else image
    top, left = (3, 5) if height < 256 else (0, 0)
    expected = torch.nn.functional.interpolate(
        cut, (size, size), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    assert (crop(image, box(top, left, height, width), size) - expected).abs().max() < 1e-5


def test_a_crop_equals_pillows_bicubic_up_to_its_rounding():
    image = speckle(1)
    cut = Image.fromarray(image[0, 0].numpy()).crop((20, 10, 20 + 150, 10 + 170))
    expected = np.asarray(cut.resize((64, 64), Image.Resampling.BICUBIC), np.float32)
    ours = crop(to_float(image), box(10, 20, 170, 150), 64)[0, 0].numpy() * 255
    assert np.abs(ours - expected).max() < 1.01  # Pillow rounds to 8 bits after each axis


def test_every_image_gets_its_own_box_and_flip():
    images = to_float(speckle(3))
    boxes = torch.tensor([[0, 0, 256, 256], [10, 20, 100, 120], [100, 90, 130, 110]])
    flips = torch.tensor([False, True, False])
    together = crop(images, boxes, 64, flips)
    for i in range(3):
        alone = crop(images[i : i + 1], boxes[i : i + 1], 64)
        alone = alone.flip(3) if flips[i] else alone
        assert (together[i : i + 1] - alone).abs().max() < 1e-5


def test_the_whole_image_at_its_own_size_is_unchanged():
    image = to_float(speckle(1))
    assert (crop(image, box(0, 0, 256, 256), 256) - image).abs().max() < 1e-6


def test_crops_stay_in_0_to_1_although_bicubic_overshoots():
    edge = torch.zeros(1, 1, 256, 256)
    edge[..., 128:] = 1.0
    out = crop(edge, box(0, 100, 60, 60), 224)
    assert out.min() == 0 and out.max() == 1


def test_the_deterministic_view_at_224_is_the_exact_centre():
    image = to_float(speckle(1))
    assert centre_box(256).tolist() == [[16, 16, 224, 224]]
    assert (crop(image, centre_box(256), 224, inside=False) - image[:, :, 16:240, 16:240]).abs().max() < 1e-6


def test_the_deterministic_view_equals_resizing_and_then_cutting_out_the_centre():
    image = to_float(speckle(1))
    resized = torch.nn.functional.interpolate(image, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    ours = crop(image, centre_box(256), 56, inside=False)  # 256 -> 64, then the central 56
    assert (ours - resized[:, :, 4:60, 4:60]).abs().max() < 1e-5


def test_boxes_are_distributed_as_torchvisions():
    boxes = draw_crops(20_000, 256, seeded()).double()
    top, left, height, width = boxes.unbind(1)
    assert ((top >= 0) & (left >= 0) & (top + height <= 256) & (left + width <= 256)).all()
    share, ratio = height * width / 256**2, width / height
    assert share.min() > 0.19 and share.max() <= 1
    assert ratio.min() > 0.73 and ratio.max() < 1.37
    assert abs(ratio.log().mean().item()) < 0.01  # wide and tall boxes alike
    assert abs((top / (256 - height).clamp(min=1)).mean().item() - 0.5) < 0.02
    reference = torchvision_boxes(5_000)
    assert abs(share.mean().item() - reference[0]) < 0.01
    assert abs(ratio.mean().item() - reference[1]) < 0.01


def torchvision_boxes(n: int) -> tuple[float, float]:
    """Mean share and mean ratio by the loop of torchvision's RandomResizedCrop.get_params, square image of 256."""
    random = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(n):
        h = w = 256
        for _ in range(10):
            area = 256 * 256 * random.uniform(0.2, 1.0)
            aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < width <= 256 and 0 < height <= 256:
                h, w = height, width
                break
        shares.append(h * w / 256**2)
        ratios.append(w / h)
    return float(np.mean(shares)), float(np.mean(ratios))


def test_boxes_come_from_the_generator_alone():
    assert torch.equal(draw_crops(50, 256, seeded(3)), draw_crops(50, 256, seeded(3)))
    assert not torch.equal(draw_crops(50, 256, seeded(3)), draw_crops(50, 256, seeded(4)))


def test_a_box_that_never_fits_becomes_the_whole_image():
    boxes = draw_crops(5, 256, seeded(), area=(1.0, 1.0), ratio=(1.2, 1.3))
    assert boxes.tolist() == [[0, 0, 256, 256]] * 5


def test_images_that_are_not_uint8_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        to_float(torch.rand(1, 1, 8, 8))
