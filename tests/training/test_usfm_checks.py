"""The numbered checks of the USFM paper, section 7, each against an implementation that shares no code with ours."""

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from fakes.speckle import speckle
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from training.downstream.label_subsets import label_subset, subset_hash
from training.losses_frequency import column_weights, focal_frequency, focal_weights, pixel_l1
from training.masking_frequency import band_map, band_stop, ring_edges
from training.masking_spatial import dual_mask, enlarge, lowest, masked_blocks
from training.models.beit import TABLE, build_beit, per_block_tables, resize_tables
from training.recipes.usfm import USFM, VARIANTS, USFMConfig
from usdata.sampling import BalancedSampler, group_probabilities
from usdata.schema import taxonomy

ORGANS = taxonomy()["usfm12_images_in_3m_us"]  # organ -> images, the largest first
COLUMNS = {  # gamma -> the paper's percentages, in the same order
    1.0: [91.743, 3.288, 0.932, 0.847, 0.579, 0.571, 0.509, 0.479, 0.411, 0.385, 0.185, 0.071],
    0.5: [52.751, 9.986, 5.316, 5.069, 4.192, 4.162, 3.930, 3.811, 3.530, 3.418, 2.372, 1.464],
    0.0: [8.333] * 12,
    -0.5: [0.596, 3.148, 5.913, 6.201, 7.499, 7.554, 7.998, 8.250, 8.906, 9.198, 13.256, 21.480],
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**changes: Any) -> USFM:
    torch.manual_seed(0)
    return USFM(USFMConfig(**{**USFM.presets["micro"]["recipe"], **changes}))


def still(recipe: USFM, n: int, seed: int = 1) -> dict[str, Tensor]:
    """Draws whose view is the whole image, unchanged; the masks stay as drawn."""
    size = recipe.cfg.source_size
    plain = {"angle": torch.zeros(n), "brightness": torch.ones(n), "contrast": torch.ones(n), "sigma": torch.zeros(n)}
    box = torch.tensor([[0, 0, size, size]] * n)
    return recipe.draw(n, seeded(seed)) | plain | {"box": box, "flip": torch.zeros(n, dtype=torch.bool)}


def train(recipe: USFM, images: Tensor, draws: dict[str, Tensor], steps: int) -> list[float]:
    optimiser = torch.optim.AdamW(recipe.param_groups(0.05), lr=1e-3, betas=(0.9, 0.999))
    losses = []
    for _ in range(steps):
        loss = recipe.step(images, draws)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


# ---- the band-stop, beside one on the whole complex spectrum in float64

EDGES = (5.0, 16.0, 32.0, 48.0, 64.0, 80.0, 96.0, 112.0)


def whole_rings(size: int = 224, protect: int = 5, edges: tuple[float, ...] = EDGES) -> NDArray[np.bool_]:
    """(bands, size, size) bool, zero frequency at (size / 2, size / 2): the paper's 3.2 word for word."""
    half = size // 2
    i, j = np.mgrid[:size, :size] - half
    r = np.hypot(i, j)
    safe = (abs(i) <= protect) & (abs(j) <= protect)
    return np.stack([(low < r) & (r <= high) & ~safe for low, high in pairwise(edges)])


def whole_band_stop(image: NDArray[np.float64], rings: NDArray[np.bool_]) -> NDArray[np.complex128]:
    spectrum = np.fft.fftshift(np.fft.fft2(image))
    spectrum[rings.any(axis=0)] = 0
    return np.fft.ifft2(np.fft.ifftshift(spectrum))


@pytest.fixture(scope="module")
def rings() -> Tensor:
    return band_map(224, ring_edges(224), 5)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return speckle(4, size=224).float() / 255


@pytest.fixture(scope="module")
def bands() -> Tensor:
    drawn = torch.zeros(4, 7, dtype=torch.bool)
    for row, pair in enumerate([(0, 1), (2, 5), (0, 6), (3, 4)]):
        drawn[row, list(pair)] = True
    return drawn


@pytest.fixture(scope="module")
def filtered(images: Tensor, bands: Tensor, rings: Tensor) -> Tensor:
    return band_stop(images, bands, rings)


def shifted(images: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.fft2(images[:, 0], norm="ortho"), dim=(-2, -1))


def test_check_01_spectrum_is_kept_outside_the_drawn_bands_and_gone_inside(images, bands, filtered):
    before, after = shifted(images), shifted(filtered)
    drawn = torch.stack([torch.from_numpy(whole_rings()[b].any(axis=0)) for b in bands.numpy()])
    assert (before - after)[~drawn].abs().max() < 1e-4
    assert after[drawn].abs().max() < 1e-5
    square = (slice(None), slice(107, 118), slice(107, 118))  # |u|, |v| <= 5
    assert (before - after)[square].abs().max() < 1e-4


def test_check_02_bands_have_the_papers_edges_and_bins_and_no_bin_twice(rings):
    assert ring_edges(224) == EDGES
    whole = whole_rings()
    assert whole.sum((1, 2)).tolist() == [676, 2412, 4004, 5640, 7228, 8836, 10462]
    assert whole.sum(0).max() == 1
    i, j = np.mgrid[:224, :224] - 112
    assert (np.hypot(i, j) > 112).sum() == 10797
    ours = torch.full((224, 224), 7)  # the whole map from our half: bin (-u, -v) belongs where (u, v) does
    ours[:, :113] = rings
    mirror = -torch.arange(224) % 224
    ours[:, 113:] = rings[mirror][:, torch.arange(111, 0, -1)]
    expected = np.where(whole.any(0), whole.argmax(0), 7)
    assert torch.equal(torch.fft.fftshift(ours), torch.from_numpy(expected))


def test_check_02_each_band_is_its_own_point_mirror_so_the_result_is_real(images):
    image = images[0, 0].double().numpy()
    for ring in whole_rings():
        unshifted = np.fft.ifftshift(ring)
        mirror = -np.arange(224) % 224
        assert (unshifted == unshifted[mirror][:, mirror]).all()
        assert abs(whole_band_stop(image, ring[None]).imag).max() < 1e-6


def test_check_03_mean_stays_and_a_second_pass_changes_nothing(images, bands, rings, filtered):
    assert (filtered.mean((-2, -1)) - images.mean((-2, -1))).abs().max() < 1e-6
    assert (band_stop(filtered, bands, rings) - filtered).abs().max() < 1e-6


def test_check_03_the_half_spectrum_gives_what_the_whole_complex_one_gives(images, bands, filtered):
    for image, drawn, ours in zip(images, bands, filtered, strict=True):
        expected = whole_band_stop(image[0].double().numpy(), whole_rings()[drawn.numpy()]).real
        assert abs(ours[0].numpy() - expected).max() < 1e-6


def test_check_04_the_energy_taken_is_that_of_the_removed_bins(images, bands, filtered):
    for image, drawn, ours in zip(images, bands, filtered, strict=True):
        spectrum = np.fft.fftshift(np.fft.fft2(image[0].double().numpy()))
        removed = (abs(spectrum[whole_rings()[drawn.numpy()].any(axis=0)]) ** 2).sum() / 224**2
        assert (image - ours).double().square().sum().item() == pytest.approx(removed, rel=1e-5)


def test_check_05_exactly_20_of_49_blocks_hold_the_images_mean(images, filtered):
    assert [masked_blocks(49, 0.4), masked_blocks(196, 0.4), masked_blocks(196, 0.4, "round")] == [20, 79, 78]
    blocks = lowest(torch.rand(4, 49, generator=seeded()), 20)
    assert torch.equal(blocks, lowest(torch.rand(4, 49, generator=seeded()), 20))
    assert blocks.sum(1).tolist() == [20] * 4
    assert len({tuple(row) for row in blocks.tolist()}) == 4
    hidden = enlarge(blocks, 32)
    three = torch.cat([images, 2 * images, images - 1], dim=1)  # channels with means of their own
    painted = dual_mask(three, filtered.expand(-1, 3, -1, -1), hidden)
    for row in range(4):
        for block in range(49):
            y, x = 32 * (block // 7), 32 * (block % 7)
            part = (row, slice(None), slice(y, y + 32), slice(x, x + 32))
            mean = three[row].mean((-2, -1), keepdim=True)
            expected = mean.expand(3, 32, 32) if blocks[row, block] else filtered[row].expand(3, -1, -1)[part[1:]]
            assert torch.equal(painted[part], expected)


def test_check_06_two_distinct_bands_always_and_all_pairs_alike():
    bands = small(source_size=64).draw(21_000, seeded())["bands"]
    assert bands.shape == (21_000, 7)
    assert (bands.sum(1) == 2).all()
    codes = (bands.long() * 2 ** torch.arange(7)).sum(1)
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 21
    assert (counts - 1000).abs().max() < 4 * (21_000 / 21 * 20 / 21) ** 0.5


# ---- the losses


def whole_focal(pred: NDArray[np.float64], target: NDArray[np.float64], alpha: float = 1.0) -> float:
    """Focal frequency loss from two whole complex spectra in float64, image by image, as its authors print it."""
    values = []
    for one, other in zip(pred.reshape(-1, *pred.shape[-2:]), target.reshape(-1, *pred.shape[-2:]), strict=True):
        difference = np.fft.fft2(one, norm="ortho") - np.fft.fft2(other, norm="ortho")
        weights = abs(difference) ** alpha
        weights = np.nan_to_num(weights / weights.max()) if weights.max() else weights
        values.append((weights.clip(0, 1) * (difference.real**2 + difference.imag**2)).mean())
    return float(np.mean(values))


@pytest.mark.parametrize("size", [64, 63])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_check_07_focal_loss_equals_the_one_on_two_whole_complex_spectra(size, alpha):
    pred, target = torch.randn(2, 3, 2, size, size, generator=seeded())
    expected = whole_focal(pred.double().numpy(), target.double().numpy(), alpha)
    assert focal_frequency(pred, target, alpha).item() == pytest.approx(expected, rel=1e-5)


def test_check_07_column_weights_make_the_half_spectrum_whole():
    assert column_weights(224).shape == (113,)
    assert column_weights(224)[[0, 1, 111, 112]].tolist() == [1, 2, 2, 1]
    assert column_weights(224).sum() == 224
    assert column_weights(63).sum() == 63


def test_check_07_weights_are_shares_of_the_largest_and_carry_no_gradient():
    modulus = torch.rand(3, 2, 16, 9, generator=seeded()).requires_grad_()
    weights = focal_weights(modulus)
    assert not weights.requires_grad
    assert weights.min() >= 0
    assert (weights.amax((-2, -1)) == 1).all()
    assert torch.equal(focal_weights(torch.zeros(1, 4, 3)), torch.zeros(1, 4, 3))


def test_check_07_no_error_no_loss_and_a_finite_gradient():
    x = torch.rand(2, 1, 32, 32, generator=seeded())
    pred = x.clone().requires_grad_()
    loss = focal_frequency(pred, x)
    loss.backward()
    assert loss.item() == 0
    assert pred.grad.abs().max() == 0


def test_check_07_the_loss_is_at_most_the_mse_and_quadratic():
    d = torch.randn(2, 1, 32, 32, generator=seeded())
    zero, loss = torch.zeros_like(d), focal_frequency(d, torch.zeros_like(d)).item()
    assert 0 < loss < F.mse_loss(d, zero).item()
    assert focal_frequency(d, zero, alpha=0).item() == pytest.approx(F.mse_loss(d, zero).item(), rel=1e-5)  # Parseval
    assert focal_frequency(3 * d, zero).item() == pytest.approx(9 * loss, rel=1e-5)


def test_check_08_masked_l1_reaches_masked_pixels_only_and_focal_reaches_all():
    hidden = enlarge(lowest(torch.rand(2, 16, generator=seeded()), 7), 8)
    target = torch.rand(2, 1, 32, 32, generator=seeded())
    strength = {}
    losses = {
        "masked": partial(pixel_l1, region="masked", hidden=hidden),
        "all": pixel_l1,
        "focal": focal_frequency,
    }
    for name, loss in losses.items():
        pred = torch.zeros_like(target).requires_grad_()
        loss(pred, target).backward()
        strength[name] = pred.grad.abs()
    assert (strength["masked"][~hidden] == 0).all()
    assert (strength["masked"][hidden] > 0).all()
    assert (strength["all"] > 0).all()
    assert (strength["focal"] > 0).all()
    expected = (target * hidden).sum() / hidden.sum()
    assert pixel_l1(torch.zeros_like(target), target, "masked", hidden).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("loss_on", ["all", "masked"])
def test_check_08_the_recipe_takes_the_region_it_is_told(loss_on):
    recipe = small(loss_on=loss_on)
    terms = recipe.step(speckle(2), recipe.draw(2, seeded()))
    share = 7 / 16
    mixed = share * terms["l1_masked"] + (1 - share) * terms["l1_visible"]
    expected = mixed if loss_on == "all" else terms["l1_masked"]
    assert terms["l1"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((terms["l1"] + 0.4 * terms["focal"]).item(), rel=1e-6)


# ---- sampling


@pytest.mark.parametrize("gamma", list(COLUMNS))
def test_check_09_organs_are_drawn_as_the_papers_column_says(gamma):
    counts = np.array(list(ORGANS.values()))
    assert counts.sum() == 2_187_915
    shares = group_probabilities(counts, gamma)
    assert abs(shares - counts**gamma / (counts**gamma).sum()).max() < 1e-6
    assert (100 * shares).tolist() == pytest.approx(COLUMNS[gamma], abs=6e-4)  # printed with three digits
    codes = np.repeat(np.arange(12), counts)
    rows = BalancedSampler(codes, gamma, seed=0).draw(0, 0, 200_000)
    assert (rows == BalancedSampler(codes, gamma, seed=0).draw(0, 0, 200_000)).all()
    drawn = np.bincount(codes[rows], minlength=12)
    assert (abs(drawn - 200_000 * shares) < 4 * np.sqrt(200_000 * shares * (1 - shares))).all()


def test_check_09_the_variants_choose_the_sampling():
    assert USFM.presets["paper"]["run"]["gamma"] == 0.5
    assert VARIANTS["woS"]["run"]["gamma"] == 1.0
    assert VARIANTS["inv_sqrt"]["run"]["gamma"] == -0.5


# ---- the encoder


@pytest.mark.parametrize("size", ["tiny", pytest.param("base", marks=pytest.mark.recipes)])
def test_check_10_a_beit_with_absolute_positions_and_a_vits_weights_is_that_vit(size):
    import timm  # after `training`, whose guard lets it load beside a CPU torch

    torch.manual_seed(0)
    vit: Any = timm.create_model(f"vit_{size}_patch16_224", num_classes=0).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.05)
    changed = {"embed_dim": vit.embed_dim, "num_heads": vit.embed_dim // 64, "num_classes": 0}
    beit: Any = build_beit("beit_base_patch16_224", pos="abs", layer_scale=None, **changed).eval()
    state = {}
    for name, value in vit.state_dict().items():
        if name.endswith("qkv.bias"):  # softmax does not see the key's bias: it adds the same to all of a row
            q, _, v = value.chunk(3)
            state |= {name.replace("qkv.bias", "q_bias"): q, name.replace("qkv.bias", "v_bias"): v}
        else:
            state[name] = value
    beit.load_state_dict(state, strict=True)
    x = torch.randn(1, 3, 224, 224, generator=seeded())
    with torch.no_grad():
        assert (beit.forward_features(x) - vit.forward_features(x)).abs().max() < 1e-4


def with_random_tables(recipe: USFM) -> USFM:
    table = recipe.encoder.rel_pos_bias.relative_position_bias_table
    nn.init.normal_(table, generator=seeded())
    return recipe.eval()


def test_check_10_attention_with_the_shared_bias_is_an_explicit_softmax():
    encoder = with_random_tables(small(image_size=32, block_size=8)).encoder
    attention, x = encoder.blocks[0].attn, torch.randn(2, 17, 64, generator=seeded())
    table, index = encoder.rel_pos_bias.relative_position_bias_table, torch.zeros(17, 17, dtype=torch.int64)
    for a in range(16):  # a 4 x 4 grid has 7 x 7 offsets; then class -> patch, patch -> class, class -> class
        for b in range(16):
            index[a + 1, b + 1] = 7 * (a // 4 - b // 4 + 3) + (a % 4 - b % 4 + 3)
    index[0, 1:], index[1:, 0], index[0, 0] = 49, 50, 51
    bias = table[index].permute(2, 0, 1)  # (heads, 17, 17)
    q, k, v = (attention.qkv.weight @ x.mT).mT.unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
    q, v = q + attention.q_bias.view(4, 1, 16), v + attention.v_bias.view(4, 1, 16)
    mixed = (q @ k.mT / 4 + bias).softmax(-1) @ v
    expected = attention.proj(mixed.transpose(1, 2).flatten(2))
    with torch.no_grad():
        ours = attention(x, shared_rel_pos_bias=encoder.rel_pos_bias())
        assert (ours - expected).abs().max() < 1e-5


def test_check_11_a_table_in_every_block_computes_what_the_shared_one_does():
    import timm

    recipe = with_random_tables(small())
    state, meta = recipe.encoder_export()
    assert sum(name.endswith(TABLE) for name in state) == 2
    other: Any = timm.create_model(meta["model_name"], **meta["model_args"]).eval()
    other.load_state_dict(state, strict=True)
    x = recipe.network_input(speckle(2))
    with torch.no_grad():
        assert (other.forward_features(x) - recipe.encoder.forward_features(x)).abs().max() < 1e-6
        assert recipe.encoder.rel_pos_bias().std() > 0.5  # the tables do something


def test_check_11_tables_for_the_same_grid_stay_and_for_a_larger_one_grow():
    state = per_block_tables({f"rel_pos_bias.{TABLE}": torch.randn(732, 12, generator=seeded())}, depth=12)
    assert len(state) == 12
    same = resize_tables(state, (14, 14), (14, 14))
    assert all(torch.equal(same[name], value) for name, value in state.items())
    for size, rows in ((16, 964), (32, 3972)):
        larger = resize_tables(dict(list(state.items())[:1]), (14, 14), (size, size))
        old, new = next(iter(state.values())), next(iter(larger.values()))
        assert new.shape == (rows, 12)
        assert torch.equal(new[-3:], old[-3:])
        assert new[(rows - 4) // 2].tolist() == pytest.approx(old[364].tolist(), abs=1e-5)  # no offset stays none


def test_section_9_parameter_counts_are_the_papers():
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        colour, grey = USFM(USFMConfig()), USFM(USFMConfig(channels=1))
        vit = USFM(USFMConfig(**VARIANTS["vit"]["recipe"]))
    assert (count(colour.encoder), count(grey.encoder)) == (85_665_360, 85_272_144)
    assert (count(colour.decoder), count(grey.decoder)) == (590_592, 196_864)
    assert count(vit.encoder) == 85_798_656
    tables = 12 * 732 * 12 - 732 * 12
    assert count(colour.encoder) + tables == 85_761_984


# ---- learning


def test_check_12_one_batch_is_overfitted_in_300_steps(monkeypatch):
    recipe = small()
    images, draws = speckle(8), still(recipe, 8)  # masks stay as drawn
    view = recipe.views(images, draws)
    monkeypatch.setattr(recipe, "views", lambda *_: view)  # the same every time
    losses = train(recipe, images, draws, steps=300)
    assert losses[-1] < 0.2 * losses[0]


def mean_fill_simmim(weights: USFM, images: Tensor, blocks: Tensor, steps: int) -> list[float]:
    """SimMIM that paints blocks with the mean: written from its paper, by hand, on the same first weights."""
    encoder, head = weights.encoder, weights.decoder[0]
    optimiser = torch.optim.AdamW(weights.param_groups(0.05), lr=1e-3, betas=(0.9, 0.999))
    x, seen = (images - 0.449) / 0.226, images.clone()
    for i, row in enumerate(blocks):
        for block in row.nonzero().flatten().tolist():
            y, z = 16 * (block // 4), 16 * (block % 4)
            seen[i, 0, y : y + 16, z : z + 16] = images[i].mean()
    losses = []
    for _ in range(steps):
        tokens = encoder.forward_features((seen - 0.449) / 0.226)[:, 1:]  # (B, 64, D)
        patches = tokens @ head.weight[:, :, 0, 0].T + head.bias
        grid = patches.reshape(-1, 8, 8, 8, 8).permute(0, 1, 3, 2, 4).reshape(-1, 1, 64, 64)
        loss = (grid - x).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def test_check_12_without_the_frequency_part_it_is_a_mean_fill_simmim():
    changes = VARIANTS["woF"]["recipe"]
    images, draws = speckle(4), still(small(**changes), 4)
    ours = train(small(**changes), images, draws, steps=8)
    sharp = small(**changes).views(images, draws)
    assert ours == pytest.approx(mean_fill_simmim(small(**changes), sharp, draws["blocks"], steps=8), rel=1e-4)
    assert ours[-1] < 0.9 * ours[0]


# ---- afterwards


def test_check_13_a_frozen_side_branch_stays_bit_identical_and_gets_no_gradient():
    import timm

    state, meta = small(drop_path=0.5).encoder_export()
    branch: Any = timm.create_model(meta["model_name"], **meta["model_args"])
    branch.load_state_dict(state, strict=True)
    branch.requires_grad_(False).eval()
    generator = nn.Conv2d(1 + 64, 1, 3, padding=1)
    optimiser = torch.optim.Adam(generator.parameters(), lr=1e-2)
    x = torch.rand(2, 1, 64, 64, generator=seeded())
    grid = branch.forward_features(x)[:, 1:].mT.unflatten(2, (8, 8))
    side = F.interpolate(grid, size=(64, 64), mode="bilinear")
    F.l1_loss(generator(torch.cat([x, side], dim=1)), x).backward()
    optimiser.step()
    assert all(torch.equal(value, branch.state_dict()[name]) for name, value in state.items())
    assert all(p.grad is None for p in branch.parameters())
    assert generator.weight.grad[:, 1:].abs().max() > 0  # the branch does feed the generator


@pytest.mark.parametrize("grouped", [False, True])
def test_check_14_label_subsets_lie_in_one_another_and_keep_the_classes_shares(grouped):
    rng = np.random.default_rng(0)
    labels = rng.choice(["benign", "malignant", "normal"], 437, p=[0.6, 0.3, 0.1]).tolist()
    patients = [f"{label} {i // 3}" for i, label in enumerate(labels)] if grouped else None
    subsets = [label_subset(labels, share / 100, 7, patients) for share in (20, 40, 60, 80, 100)]
    for smaller, larger in pairwise(subsets):
        assert set(smaller) < set(larger)
    assert subsets[-1].tolist() == list(range(437))
    for share, chosen in zip((0.2, 0.4, 0.6, 0.8), subsets, strict=False):
        units = [patients[i] for i in chosen] if patients else chosen.tolist()
        for name in set(labels):
            of_class = {p for p, label in zip(patients or range(437), labels, strict=True) if label == name}
            taken = len({unit for unit in units if unit in of_class})
            assert abs(taken - share * len(of_class)) <= 1
    if patients:
        left = {patients[i] for i in set(range(437)) - set(subsets[0].tolist())}
        assert not left & {patients[i] for i in subsets[0]}
    again = label_subset(labels, 0.2, 7, patients)
    ids = [f"busi/{i}" for i in range(437)]
    assert subset_hash([ids[i] for i in again]) == subset_hash([ids[i] for i in subsets[0][::-1]])
    other = label_subset(labels, 0.2, 8, patients)
    assert subset_hash([ids[i] for i in other]) != subset_hash([ids[i] for i in subsets[0]])
