"""Masking and blur: checks 1, 4 and 5 of the D2MAE paper, and the mistakes seen in official code."""

import cv2
import numpy as np
import pytest
import torch
from fakes.speckle import speckle

from training.losses import norm_pix, patch_mse
from training.masking import (
    blur_bank,
    blur_radius,
    gather_patches,
    gaussian_blur,
    gaussian_kernel,
    random_keep,
    shuffle,
    visible_patches,
)
from training.transforms import split_tf32
from usdata.errors import ConfigError

SIGMAS = [t / 10 for t in range(12)]  # level 0 is no blur


def noise(batch: int = 4, patches: int = 196, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed))


def blurred_levels(image: torch.Tensor) -> torch.Tensor:
    """(12, 1, S, S): one (1, S, S) image at every level."""
    return gaussian_blur(image.expand(12, -1, -1, -1), blur_bank(SIGMAS, image.shape[-1]), torch.arange(12))


def test_check_01_restore_inverts_shuffle_exactly():
    x = torch.randn(4, 196)
    ids_shuffle, ids_restore = shuffle(noise())
    assert torch.equal(x.gather(1, ids_shuffle).gather(1, ids_restore), x)
    assert not torch.equal(x.gather(1, ids_shuffle), x)


def test_check_01_the_mask_has_147_ones_and_is_the_complement_of_the_kept():
    keep, mask = random_keep(noise(), 0.75)
    assert keep.shape == (4, 49)
    assert mask.sum(1).tolist() == [147] * 4
    for row in range(4):
        assert set(keep[row].tolist()) == set((~mask[row]).nonzero().flatten().tolist())


def test_the_kept_patches_are_those_with_the_smallest_noise():
    keep, _ = random_keep(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 0.5)
    assert keep.tolist() == [[1, 3]]


def test_the_number_of_visible_patches_is_cut_off_not_rounded():
    assert visible_patches(196, 0.4) == 117  # 117.6
    assert visible_patches(196, 0.75) == 49
    assert visible_patches(196, 0.0) == 196


@pytest.mark.parametrize("ratio", [0.999, 1.0, -0.1])
def test_a_ratio_that_leaves_nothing_visible_is_refused(ratio):
    with pytest.raises(ConfigError, match="mask_ratio"):
        visible_patches(196, ratio)


def test_ratio_0_masks_nothing_and_the_masked_loss_is_0_not_nan():
    keep, mask = random_keep(noise(2, 16), 0.0)
    assert keep.sort(dim=1).values.tolist() == [list(range(16))] * 2
    assert not mask.any()
    assert patch_mse(torch.ones(2, 16, 3), torch.zeros(2, 16, 3), "masked", mask).item() == 0.0


def test_gathered_patches_are_those_at_the_given_places():
    patches = torch.arange(12.0).reshape(1, 4, 3)
    assert gather_patches(patches, torch.tensor([[2, 0]])).tolist() == [[[6, 7, 8], [0, 1, 2]]]


@pytest.mark.parametrize("level", range(1, 12))
def test_check_04_blur_bank_equals_opencv_float_per_level(level):
    image = speckle(1, size=96)[0].float() / 255
    expected = cv2.GaussianBlur(image[0].numpy(), (0, 0), SIGMAS[level], borderType=cv2.BORDER_REFLECT_101)
    ours = gaussian_blur(image[None], blur_bank(SIGMAS, 96), torch.tensor([level]))[0, 0].numpy()
    assert np.abs(ours - expected).max() < 1e-5
    edge = np.s_[:, :6]
    assert np.abs(ours[edge] - expected[edge]).max() < 1e-5  # the border is reflect-101


def test_check_04_kernels_sum_to_1_and_constant_images_stay():
    assert all(gaussian_kernel(sigma, 5).sum().item() == pytest.approx(1, abs=1e-12) for sigma in SIGMAS)
    bank = blur_bank(SIGMAS, 32)
    assert (bank.sum(-1) - 1).abs().max() < 1e-6
    assert (blurred_levels(torch.full((1, 32, 32), 0.7)) - 0.7).abs().max() < 1e-6


def test_check_04_blur_commutes_with_normalising():
    image, mean, std = speckle(1)[0].float() / 255, 0.449, 0.226
    after = (blurred_levels(image) - mean) / std
    before = blurred_levels((image - mean) / std)
    assert (after - before).abs().max() < 1e-5


def test_check_05_blur_grows_strictly_from_level_3_and_level_1_changes_nothing():
    image = speckle(1)[0].float() / 255
    error = (blurred_levels(image) - image).square().mean(dim=(1, 2, 3)).double()
    assert torch.equal(blurred_levels(image)[0], image)
    assert (blurred_levels(image)[1] - image).abs().max() < 1e-7
    assert (error[4:] > error[3:-1]).all()
    assert error[3] > error[2]


def test_the_first_levels_differ_although_8_bits_could_not_tell_them_apart():
    image = speckle(1)[0]
    levels = blurred_levels(image.float() / 255)
    in_8_bits = (levels * 255).round()
    assert torch.equal(in_8_bits[1], in_8_bits[2])  # why nothing is ever rounded after blurring
    assert (in_8_bits[3] - image).abs().max() <= 1
    assert (levels[2] - levels[1]).abs().max() > 1e-7
    assert (levels[3] - levels[2]).abs().max() > 1e-4


def test_each_image_is_blurred_by_its_own_level():
    images = speckle(3, size=64).float() / 255
    bank = blur_bank(SIGMAS, 64)
    together = gaussian_blur(images, bank, torch.tensor([0, 11, 5]))
    alone = [gaussian_blur(images[i : i + 1], bank, torch.tensor([t])) for i, t in enumerate((0, 11, 5))]
    assert (together - torch.cat(alone)).abs().max() < 1e-6


def test_the_radius_is_opencvs_for_float_images():
    taps = [2 * blur_radius(sigma) + 1 for sigma in SIGMAS[1:]]
    assert taps == [3, 3, 3, 5, 5, 7, 7, 7, 9, 9, 11]  # the paper's table


def test_a_wider_range_of_levels_gets_a_wider_kernel():
    image = speckle(1, size=64)[0].float() / 255
    expected = cv2.GaussianBlur(image[0].numpy(), (0, 0), 1.6, borderType=cv2.BORDER_REFLECT_101)
    ours = gaussian_blur(image[None], blur_bank([0.1, 1.6], 64), torch.tensor([1]))[0, 0].numpy()
    assert np.abs(ours - expected).max() < 1e-5


@pytest.mark.parametrize("sigmas", [[-0.1], [0.0, 10.0]])
def test_a_blur_that_does_not_fit_the_image_is_refused(sigmas):
    with pytest.raises(ConfigError, match="do not fit images of 32"):
        blur_bank(sigmas, 32)


def test_blur_keeps_its_precision_under_autocast():
    image = speckle(1)[:1].float() / 255
    bank, level = blur_bank(SIGMAS, 256), torch.tensor([2])
    expected = gaussian_blur(image, bank, level)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gaussian_blur(image, bank, level)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, expected)


def test_products_of_split_factors_survive_tf32():
    def tf32(x):  # what the hardware does to each factor: 10 bits of mantissa, rounded
        return ((x.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)

    image, a = speckle(1)[0, 0].float() / 255, blur_bank(SIGMAS, 256)[7]
    exact = (a.double() @ image.double()).float()
    (a_high, a_low), (x_high, x_low) = split_tf32(a), split_tf32(image)
    assert torch.equal(a_high + a_low, a)
    assert torch.equal(tf32(a_high), a_high)
    ours = a_high @ x_high + (a_high @ tf32(x_low) + tf32(a_low) @ x_high)
    assert (ours - exact).abs().max() < 2e-6
    assert (tf32(a) @ tf32(image) - exact).abs().max() > 5e-5  # without the split: as large as a blur level


def test_normalised_patches_have_mean_0_and_unbiased_variance_1():
    patches = norm_pix(torch.randn(2, 5, 64) * 7 + 3)
    assert patches.mean(-1).abs().max() < 1e-5
    assert (patches.var(-1) - 1).abs().max() < 1e-4
    assert torch.isfinite(norm_pix(torch.ones(1, 1, 16))).all()  # a flat patch


def test_the_masked_loss_counts_hidden_patches_only_and_needs_the_mask():
    pred, target = torch.tensor([[[1.0, 1.0], [3.0, 3.0]]]), torch.zeros(1, 2, 2)
    assert patch_mse(pred, target).item() == 5.0  # (1 + 9) / 2
    assert patch_mse(pred, target, "masked", torch.tensor([[False, True]])).item() == 9.0
    with pytest.raises(ValueError, match="mask"):
        patch_mse(pred, target, "masked")
