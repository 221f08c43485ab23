"""The numbered checks of the TUSA paper, section 7, and its likely mistakes, section 8."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from fakes.speckle import speckle
from torch.nn import functional as F

from training.losses_contrast import (
    channel_shares,
    logit_consistency,
    nt_xent,
    perceptual_distance,
    sparsemax,
    ssim,
    usage_entropy,
)
from training.models.perceptual import (
    FrozenFeatures,
    PerceptualConfig,
    PerceptualWarning,
    RadImageNetResNet50,
    build_perceptual,
)
from training.models.swin_unetr import NETWORKS, SwinUNETR2d, network_arguments
from training.models.texture import TextureHead
from training.probe import grouped_folds
from training.recipes.tusa import TUSA, TUSAConfig
from training.schedules import warmup_cosine
from training.views import ViewConfig, identity_photometry
from usdata.epochs import Epochs
from usdata.errors import ConfigError
from usdata.sampling import BalancedSampler

STILL = identity_photometry(ViewConfig()).model_dump()


def micro(**changes: Any) -> TUSA:
    """The micro preset on 64-pixel sources."""
    torch.manual_seed(0)
    return TUSA(TUSAConfig(**{**TUSA.presets["micro"]["recipe"], "source_size": 64, **changes}))


def case(recipe: TUSA, n: int = 2) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return speckle(n, size=recipe.cfg.source_size), recipe.draw(n, torch.Generator().manual_seed(1))


def groups(recipe: TUSA) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerceptualWarning)
        return recipe.param_groups(0.01)


@pytest.fixture(scope="module")
def shared() -> TUSA:
    """For tests that change no weight."""
    return micro().eval()


# ---- 1, 2: sparsemax


def by_bisection(z: torch.Tensor) -> torch.Tensor:
    """The projection by halving an interval around tau, which knows nothing of supports."""
    low, high = z.amin(1, keepdim=True) - 1, z.amax(1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        much = (z - middle).clamp(min=0).sum(1, keepdim=True) > 1
        low, high = torch.where(much, middle, low), torch.where(much, high, middle)
    return (z - low).clamp(min=0)


@pytest.mark.parametrize("k", [2, 5, 9])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_check_01_sparsemax_is_the_projection_on_the_simplex_over_channels(k, scale):
    z = scale * torch.randn(3, k, 4, 6, dtype=torch.float64)  # no two sides alike: a wrong axis shows
    p = sparsemax(z)
    assert p.min() >= 0 and (p.sum(1) - 1).abs().max() < 1e-12
    assert (p - by_bisection(z)).abs().max() < 1e-12
    assert (sparsemax(z + 3.0) - p).abs().max() < 1e-12
    order = torch.randperm(k)
    assert torch.equal(sparsemax(z[:, order]) > 0, p[:, order] > 0)
    assert (sparsemax(z[:, order]) - p[:, order]).abs().max() < 1e-12
    assert (sparsemax(p) - p).abs().max() < 1e-12  # already in the simplex
    single = sparsemax(z.float())
    assert single.dtype == torch.float32 and (single.sum(1) - 1).abs().max() < 1e-5
    assert (sparsemax(z.bfloat16()).dtype, sparsemax(z.float()).dtype) == (torch.float32, torch.float32)


def test_check_01_a_margin_of_1_gives_an_exact_one_hot_and_ties_share():
    z = torch.tensor([[3.0, 2.0, 2.0, -1.0], [0.5, 0.5, -9.0, -9.0]])
    assert sparsemax(z).tolist() == [[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]


def test_check_02_the_backward_pass_is_that_of_the_jacobian():
    z = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparsemax, (z,))
    row = torch.tensor([[0.9, 0.7, -2.0, 0.4, -0.5]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(sparsemax, row)[0, :, 0]
    s = (sparsemax(row)[0] > 0).double()
    assert s.tolist() == [1, 1, 0, 1, 0]
    assert (jacobian - (torch.diag(s) - torch.outer(s, s) / s.sum())).abs().max() < 1e-12
    assert jacobian.sum(1).abs().max() < 1e-12


# ---- 3, 4: texture head


def test_check_03_k_kernels_and_the_fused_convolution_equals_depthwise_then_1x1():
    head = TextureHead(5, 7)
    assert head.texture.weight.shape == (5, 1, 7, 7)
    assert sum(p.numel() for p in head.parameters()) == 5 * 49 + 6
    maps = torch.rand(2, 5, 20, 24)
    assert (head(maps) - head.mix(head.texture(maps)).tanh()).abs().max() < 1e-5


def test_check_03_a_kernel_acts_only_near_pixels_of_its_channel():
    head = TextureHead(3, 5)
    maps = torch.zeros(1, 3, 24, 24)
    maps[:, 0] = 1.0
    maps[:, 0, 10, 12], maps[:, 1, 10, 12] = 0.0, 1.0
    before = head(maps)
    with torch.no_grad():
        head.mix.weight[0, 1] = 0.7  # the middle channel's echo level starts at 0
        changed = head(maps)
        head.texture.weight[1] += torch.rand(1, 5, 5)
    moved = (head(maps) - changed).abs()[0, 0] > 0
    rows, columns = moved.nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 12, 10, 14)
    assert (before - changed).abs().max() > 0


def test_check_04_a_constant_map_gives_a_constant_image():
    head = TextureHead(4, 7)
    with torch.no_grad():
        head.mix.bias.fill_(0.1)
    for j in range(4):
        maps = F.one_hot(torch.full((1, 16, 16), j), 4).permute(0, 3, 1, 2).float()
        expected = torch.tanh(head.mix.weight[0, j] * head.texture.weight[j].sum() + 0.1)
        assert (head(maps) - expected).abs().max() < 1e-6  # up to the border too


# ---- 5: contrast


def naive_nt_xent(z: torch.Tensor, t: float) -> float:
    views = [(i, v) for i in range(z.shape[0]) for v in range(z.shape[1])]
    losses = []
    for i, v in views:
        s = {w: F.cosine_similarity(z[i, v], z[w], dim=0).item() / t for w in views if w != (i, v)}
        total = math.log(sum(math.exp(value) for value in s.values()))
        losses.append(np.mean([total - s[w] for w in s if w[0] == i]))
    return float(np.mean(losses))


def test_check_05_nt_xent_equals_a_double_loop():
    z = torch.randn(3, 2, 2, 8)
    assert nt_xent(z, 0.5).item() == pytest.approx(naive_nt_xent(z.flatten(1, 2), 0.5), rel=1e-5)
    images = torch.randperm(3)
    assert nt_xent(z[images], 0.5).item() == pytest.approx(nt_xent(z, 0.5).item(), rel=1e-6)
    lengths = torch.rand(3, 2, 2, 1) + 0.5
    assert nt_xent(z * lengths, 0.5).item() == pytest.approx(nt_xent(z, 0.5).item(), rel=1e-5)


def test_check_05_two_views_are_simclr():
    z = torch.randn(4, 2, 1, 8)
    unit = F.normalize(torch.cat([z[:, 0, 0], z[:, 1, 0]]), dim=1)
    logits = (unit @ unit.T / 0.2).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(8).roll(4))
    for positives in ("image", "pairwise", "spatial_only"):
        assert nt_xent(z, 0.2, positives).item() == pytest.approx(expected.item(), rel=1e-5)


def test_check_05_reference_values():
    same = torch.ones(32, 2, 2, 64)
    assert nt_xent(same, 0.5).item() == pytest.approx(math.log(127), abs=1e-4)  # 4.844: collapsed
    clusters = torch.eye(32)[:, None, None, :].expand(32, 2, 2, 32)
    assert nt_xent(clusters, 0.01).item() == pytest.approx(math.log(3), abs=1e-4)  # not 0
    assert nt_xent(clusters, 0.5).item() == pytest.approx(2.985, abs=2e-3)
    assert nt_xent(clusters, 0.01, "pairwise").item() == pytest.approx(0.0, abs=1e-4)
    assert nt_xent(clusters, 0.01, "spatial_only").item() == pytest.approx(math.log(3), abs=1e-4)


def test_check_05_images_of_one_patient_can_be_left_out_of_the_negatives():
    z = torch.randn(3, 2, 2, 8)
    pair = torch.zeros(3, 3, dtype=torch.bool)
    assert nt_xent(z, excluded=pair).item() == nt_xent(z).item()
    pair[0, 1] = pair[1, 0] = True
    without = nt_xent(z, excluded=pair).item()
    assert without < nt_xent(z).item()
    alone = nt_xent(z[[0, 2]]), nt_xent(z[[1, 2]])  # as anchors, 0 and 1 see only 2; 2 sees both
    assert min(a.item() for a in alone) < nt_xent(z).item()


# ---- 6, 7: consistency and targets


def test_check_06_consistency_is_0_without_colour_changes_and_symmetric_in_the_spatial_views(shared):
    still = micro(views=STILL)
    terms = still.step(*case(still))
    assert terms["logit"].item() < 1e-10
    images, draws = case(shared)
    assert shared.step(images, draws)["logit"].item() > 1e-8
    swapped = {name: value.flip(1) for name, value in draws.items()}
    assert shared.step(images, swapped)["logit"].item() == pytest.approx(
        shared.step(images, draws)["logit"].item(), rel=1e-4
    )


def test_check_06_and_mistake_2_only_colour_versions_of_one_geometry_are_compared():
    logits = torch.randn(3, 2, 1, 5, 4, 4).expand(-1, -1, 2, -1, -1, -1)  # alike over colours, not over geometries
    assert logit_consistency(logits).item() == 0.0
    assert logit_consistency(logits.transpose(1, 2)).item() > 0.1


def test_check_07_without_colour_changes_both_targets_are_one():
    terms = []
    for target in ("clean", "input"):
        recipe = micro(views=STILL, target=target)
        terms.append(recipe.step(*case(recipe)))
    assert all(terms[0][name].item() == pytest.approx(terms[1][name].item(), rel=1e-6) for name in terms[0])


def test_check_07_with_colour_changes_they_differ():
    losses = [micro(target=target).step(*case(micro()))["l1"].item() for target in ("clean", "input")]
    assert abs(losses[0] - losses[1]) > 1e-3


# ---- 8: channel usage


def test_check_08_usage_entropy_is_0_when_uniform_and_log_k_for_a_single_channel():
    assert usage_entropy(torch.full((5,), 0.2)).item() == pytest.approx(0.0, abs=1e-6)
    assert usage_entropy(torch.eye(5)[0]).item() == pytest.approx(math.log(5), abs=1e-6)
    one_hot = torch.eye(4).reshape(4, 4, 1, 1)  # each image all of one channel: even use, though no pixel is mixed
    assert usage_entropy(channel_shares(one_hot, one_hot, "sparsemax")).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("source", "dead"), [("sparsemax", True), ("softmax", False)])
def test_check_08_an_unused_channel_gets_gradient_only_through_the_softmax(source, dead):
    logits = torch.randn(2, 5, 4, 4)
    logits[:, 3] = -10.0
    logits.requires_grad_()
    usage_entropy(channel_shares(logits, sparsemax(logits), source)).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 3] == 0).all().item() is dead
    assert logits.grad[:, 0].abs().max() > 0


def test_mistake_4_the_entropy_s_gradient_raises_the_share_of_the_rare_channel():
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 0] = 0.4
    logits.requires_grad_()
    usage_entropy(channel_shares(logits, sparsemax(logits), "sparsemax")).backward()
    assert logits.grad[:, 0].min() > 0 and logits.grad[:, 1].max() < 0  # a step against it lowers the common one


# ---- 9: SSIM


def direct_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """By the definition: a weighted mean, variance and covariance for every window, in float64."""
    g = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    w = np.outer(g, g) / g.sum() ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return float(np.mean(values))


def test_check_09_ssim_is_the_windowed_definition_symmetric_and_1_for_itself():
    x, y = torch.rand(2, 1, 17, 20), torch.rand(2, 1, 17, 20)
    assert (ssim(x, x) - 1).abs().max() < 1e-6
    expected = [direct_ssim(x[i, 0].double().numpy(), y[i, 0].double().numpy()) for i in range(2)]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-5)
    assert (ssim(x, y) - ssim(y, x)).abs().max() < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="at least 11"):
        ssim(x[..., :10], y[..., :10])


def test_check_09_ssim_equals_monai_s():
    from monai.metrics.regression import SSIMMetric

    x, y = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    theirs = SSIMMetric(spatial_dims=2)(x, y)[:, 0]
    assert (ssim(x, y) - theirs).abs().max() < 1e-5


def test_check_09_and_mistake_3_the_step_measures_ssim_in_0_to_1(shared):
    images, draws = case(shared)
    clean, seen = shared.views(images, draws)
    maps = shared.activate(shared.network(2 * seen.flatten(0, 2) - 1)[0])
    rebuilt = (shared.texture(maps).reshape(seen.shape) + 1) / 2
    expected = 1 - ssim(rebuilt.flatten(0, 2), clean[:, :, None].expand_as(seen).flatten(0, 2)).mean()
    assert shared.step(images, draws)["ssim"].item() == pytest.approx(expected.item(), abs=1e-5)


# ---- 10: the perceptual term


class Spy(torch.nn.Module):
    """A network that notes the range of what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
        self.low, self.high = torch.inf, -torch.inf

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.low, self.high = min(self.low, x.min().item()), max(self.high, x.max().item())
        return self.norm(self.conv(x))


def spied(**changes: Any) -> tuple[TUSA, Spy]:
    recipe, spy = micro(lpips={"kind": "random"}, **changes), Spy()
    recipe._frozen = [FrozenFeatures(spy, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))]
    return recipe, spy


def test_check_10_it_is_0_for_equal_images_and_its_network_is_frozen():
    frozen = build_perceptual(PerceptualConfig(kind="random"))
    assert frozen is not None
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        features = frozen(images)
    assert features.shape == (2, 4, 2048)
    assert perceptual_distance(features, features).item() == 0.0
    assert perceptual_distance(features, features.flip(0)).item() > 0.0
    assert not any(p.requires_grad for p in frozen.parameters())
    frozen.train()
    assert not any(m.training for m in frozen.modules())
    again = build_perceptual(PerceptualConfig(kind="random"))
    assert again is not None and torch.equal(again.net.layer1[0].conv1.weight, frozen.net.layer1[0].conv1.weight)


def test_check_10_a_training_step_does_not_touch_it_and_the_checkpoint_does_not_hold_it():
    recipe, spy = spied()
    recipe.train()
    before = {name: value.clone() for name, value in spy.state_dict().items()}
    terms = recipe.step(*case(recipe))
    terms["loss"].backward()
    assert all(torch.equal(value, before[name]) for name, value in spy.state_dict().items())
    assert terms["lpips"].item() > 0
    assert not any("frozen" in name or "spy" in name for name in recipe.state_dict())
    listed = {id(p) for group in groups(recipe) for p in group["params"]}
    assert not listed & {id(p) for p in spy.parameters()}


@pytest.mark.parametrize("target", ["clean", "input"])
def test_mistake_3_the_perceptual_network_sees_0_to_1_and_a_perfect_image_has_distance_0(target):
    recipe, spy = spied(target=target)
    images, draws = case(recipe)
    recipe.step(images, draws)
    assert spy.low >= 0 and spy.high <= 1 and spy.low < 0.1
    clean, seen = recipe.views(images, draws)
    goal = clean[:, :, None].expand_as(seen) if target == "clean" else seen
    wanted = clean[:, :, None] if target == "clean" else seen
    assert recipe.perceptual_term(2 * goal - 1, wanted).item() < 1e-6


@pytest.mark.parametrize("kind", ["radimagenet", "file"])
def test_check_10_missing_weights_are_an_error_that_names_key_file_and_alternatives(kind, tmp_path):
    for weights in (None, str(tmp_path / "none.pth")):
        recipe = micro(lpips={"kind": kind, "weights": weights})  # building works: features need no perceptual network
        with pytest.raises(ConfigError, match=r"lpips\.weights") as caught:
            recipe.param_groups(0.01)  # before any data is read
        text = str(caught.value)
        assert all(word in text for word in ("lpips.kind=file", "=random", "=none"))
        assert ("RadImageNet-ResNet50_notop.pth" in text) is (kind == "radimagenet")


def test_check_10_none_has_no_such_network_and_says_so(shared):
    recipe = micro()
    with pytest.warns(PerceptualWarning, match="'none'"):
        recipe.param_groups(0.01)
    assert recipe._frozen == [] and "lpips" not in recipe.step(*case(recipe))
    assert build_perceptual(PerceptualConfig(kind="none")) is None
    assert shared.encoder_export()[1]["perceptual"] == "none"


@pytest.fixture(scope="module")
def radimagenet_file(tmp_path_factory):
    """Weights of the right form; their values are noise."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "RadImageNet-ResNet50_notop.pth"
    torch.save(RadImageNetResNet50().state_dict(), path)
    return path


def test_check_10_weights_of_the_right_form_load_and_their_hash_is_kept(radimagenet_file):
    import hashlib

    sha256 = hashlib.sha256(radimagenet_file.read_bytes()).hexdigest()
    recipe = micro(lpips={"kind": "radimagenet", "weights": str(radimagenet_file), "sha256": sha256})
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerceptualWarning)
        recipe.param_groups(0.01)
    assert recipe.encoder_export()[1]["perceptual_sha256"] == sha256
    state = recipe.state_dict()
    recipe.load_state_dict(state)
    state["perceptual_sha256"] = torch.ones(32, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="perceptual weights had SHA-256"):
        recipe.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"lpips\.sha256"):
        micro(lpips={"kind": "radimagenet", "weights": str(radimagenet_file), "sha256": "0" * 64}).param_groups(0.01)


def test_mistake_7_an_ordinary_resnet_50_is_not_taken_for_radimagenet_s(tmp_path, radimagenet_file):
    import timm

    torch.save(timm.create_model("resnet50").state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(ConfigError, match="not those of RadImageNetResNet50"):
        build_perceptual(PerceptualConfig(kind="radimagenet", weights=str(tmp_path / "resnet50.pth")))
    with pytest.raises(ConfigError, match="not those of ResNet"):
        build_perceptual(PerceptualConfig(kind="file", weights=str(radimagenet_file), model="resnet50"))
    net = RadImageNetResNet50()
    assert net.layer2[0].conv1.stride == (2, 2) and net.layer2[0].conv2.stride == (1, 1)  # timm: the other way round
    assert net.conv1.bias is not None and net.bn1.eps == 1.001e-5
    assert sum(p.numel() for p in net.parameters()) == 23_534_592 == 23_508_032 + 26_560  # torchvision's, and biases


# ---- 11, 12, 13: the network


def test_check_11_shapes_of_hidden_states_and_logits():
    torch.manual_seed(0)
    net = SwinUNETR2d(5, **{**NETWORKS["tiny"]}).eval()
    with torch.no_grad():
        logits, encoded = net(torch.rand(1, 1, 128, 128))
        assert [tuple(h.shape[1:]) for h in encoded.hidden] == [
            (12, 64, 64),
            (24, 32, 32),
            (48, 16, 16),
            (96, 8, 8),
            (192, 4, 4),
        ]
        assert logits.shape == (1, 5, 128, 128)
        assert net(torch.rand(1, 1, 96, 96))[0].shape == (1, 5, 96, 96)
        assert [encoded.latent(k).shape[1] for k in ("gap", "gap_max", "multi")] == [192, 384, 360]
        assert [net.latent_width(k) for k in ("gap", "gap_max", "multi")] == [192, 384, 360]
    with pytest.raises(ValueError, match="multiple of 32"):
        net(torch.rand(1, 1, 100, 100))


@pytest.mark.parametrize(
    ("name", "total", "encoder"),
    [
        ("paper", 19_694_975, 9_102_222),
        ("stock48", 25_138_127, 6_306_810),
        ("stock48v2", 28_663_247, 9_831_930),
        ("tiny", 1_435_862, 258_765),
    ],
)
def test_check_12_parameter_counts(name, total, encoder):
    net = SwinUNETR2d(5, **network_arguments(name))
    assert sum(p.numel() for p in net.parameters()) == total
    assert sum(p.numel() for p in net.net.swinViT.parameters()) == encoder


def test_check_12_the_paper_preset_with_its_projection_head_is_nearly_the_published_size():
    recipe = TUSA(TUSAConfig())
    count = sum(p.numel() for p in recipe.parameters())
    assert count == 19_694_975 + 251 + (576 * 2048 + 2048) + (2048 * 512 + 512)
    assert count == pytest.approx(22e6, rel=0.01)


@pytest.mark.parametrize(
    ("window", "residual", "depths"), [(8, False, (2, 1, 2, 1)), (7, False, (2, 2, 1, 1)), (8, True, (1, 2, 1, 1))]
)
def test_check_13_the_wrapper_computes_what_monai_s_network_does(window, residual, depths):
    from monai.networks.nets.swin_unetr import SwinUNETR

    torch.manual_seed(0)
    ours = SwinUNETR2d(5, feature_size=12, depths=depths, window=window, residual=residual).eval()
    theirs = SwinUNETR(1, 5, depths=depths, window_size=window, feature_size=12, spatial_dims=2, use_v2=residual)
    theirs.load_state_dict(ours.net.state_dict(), strict=True)
    x = torch.rand(2, 1, 128, 128)
    with torch.no_grad():
        logits, encoded = ours(x)
        assert (logits - theirs.eval()(x)).abs().max() < 1e-5 * logits.abs().max()
        for mine, his in zip(encoded.hidden, theirs.swinViT(x), strict=True):
            assert (mine - his).abs().max() < 1e-4
        assert torch.equal(ours.encode(x).latent(), encoded.latent())


def test_check_13_gradients_are_monai_s_too():
    from monai.networks.nets.swin_unetr import SwinUNETR

    torch.manual_seed(0)
    ours = SwinUNETR2d(3, feature_size=12, depths=(2, 1, 1, 1), window=4, image_size=64)
    theirs = SwinUNETR(1, 3, depths=(2, 1, 1, 1), window_size=4, feature_size=12, spatial_dims=2)
    theirs.load_state_dict(ours.net.state_dict(), strict=True)
    x = torch.rand(1, 1, 64, 64)
    ours(x)[0].square().mean().backward()
    theirs(x).square().mean().backward()
    grads = dict(theirs.named_parameters())
    for name, p in ours.net.named_parameters():
        scale = grads[name].grad.abs().max() + 1e-6
        assert (p.grad - grads[name].grad).abs().max() < 2e-3 * scale, name


def test_mistake_8_a_small_window_has_the_relative_positions_of_its_own_tokens():
    """Bias of a pair depends on nothing but the offset between its tokens, whatever part of the window is there."""
    torch.manual_seed(0)
    net = SwinUNETR2d(3, feature_size=12, depths=(1, 1, 1, 1), window=8, image_size=64)
    attention = net.net.swinViT.layers4[0].blocks[0].attn  # 4 x 4 tokens, table of 15 x 15 offsets
    table = attention.relative_position_bias_table
    bias = attention.bias(16)
    for i in range(16):
        for j in range(16):
            dy, dx = i // 4 - j // 4, i % 4 - j % 4
            assert torch.equal(bias[:, i, j], table[(dy + 7) * 15 + dx + 7])
    whole = net.net.swinViT.layers1[0].blocks[0].attn
    assert torch.equal(whole.index, whole.relative_position_index)  # a full window: Swin's own index
    assert not torch.equal(attention.index, attention.relative_position_index[:16, :16])  # MONAI's


# ---- 14, 15, 16: sampling, schedule, downstream


def test_check_14_groups_are_drawn_uniformly_whatever_their_size():
    sizes = [33_047, 19_955, 1469, 50, 7]
    rows = np.repeat(np.arange(len(sizes)), sizes)
    run = TUSA.presets["paper"]["run"]
    draws = BalancedSampler(rows, gamma=run["gamma"], seed=0).draw(0, 0, 50_000)
    counts = np.bincount(rows[draws], minlength=len(sizes))
    assert np.abs(counts - 10_000).max() < 3 * math.sqrt(50_000 * 0.2 * 0.8)
    assert run["epoch_size"] == 10_000 and run["steps"] == math.ceil(10_000 / 32) * 1000


@pytest.mark.parametrize(("batch", "batches"), [(50, 200), (32, 313)])
def test_check_14_an_epoch_is_10_000_images_however_many_there_are(batch, batches):
    for images in (700, 99_247):
        loader = Epochs(
            images,
            batch_size=batch,
            gamma=0.0,
            by="organ",
            seed=0,
            epoch_size=TUSA.presets["paper"]["run"]["epoch_size"],
            workers=0,
            rank=0,
            world=1,
            fingerprint=None,
            drop_last=False,
        )
        assert (loader.epoch_size, len(loader)) == (10_000, batches)
        assert loader.draws == batch * batches  # 10,000, or the last batch is filled up


def test_check_15_the_learning_rate_falls_from_1e_4_to_1e_6():
    run = TUSA.presets["paper"]["run"]
    how = {"steps": run["steps"], "warmup_steps": round(run["warmup"] * run["steps"]), "peak": run["lr"]}
    assert warmup_cosine(0, **how, end=run["min_lr"]) == pytest.approx(1e-4)
    assert warmup_cosine(run["steps"], **how, end=run["min_lr"]) == pytest.approx(1e-6)


def test_check_15_a_head_on_frozen_features_leaves_the_encoder_bit_identical():
    recipe = micro().eval()
    before = {name: value.clone() for name, value in recipe.state_dict().items()}
    with torch.no_grad():
        features = recipe.encode(speckle(4, size=64))
    head = torch.nn.Linear(features.shape[1], 2)
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.1)
    F.cross_entropy(head(features), torch.tensor([0, 1, 0, 1])).backward()
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in recipe.state_dict().items())
    assert not features.requires_grad


def test_check_16_folds_share_no_patient_and_equal_frames_have_the_mean_latent_of_one(shared):
    patients = np.repeat(np.arange(12), 5)
    labels = (patients % 3 == 0).astype(np.int64)
    for fold in grouped_folds(labels, patients, 5, seed=0):
        assert not set(patients[fold.train]) & set(patients[fold.test])
    frame = speckle(1, size=64)
    with torch.no_grad():
        one, many = shared.encode(frame), shared.encode(frame.expand(20, -1, -1, -1))
    assert (many.mean(0, keepdim=True) - one).abs().max() < 1e-5


# ---- 17: it trains


def test_check_17_ten_steps_on_one_batch_reduce_the_reconstruction_loss():
    recipe = micro()
    images, draws = case(recipe)
    optimiser = torch.optim.AdamW(groups(recipe), lr=1e-3, betas=(0.9, 0.999))
    seen = []
    for _ in range(10):
        terms = recipe.step(images, draws)
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        seen.append((terms["l1"].item(), terms["ssim"].item()))
    assert seen[-1][0] < 0.7 * seen[0][0] and seen[-1][1] < 0.8 * seen[0][1]


def test_check_17_all_terms_are_float32_and_finite_under_autocast(shared):
    recipe, _ = spied()
    images, draws = case(recipe)
    expected = recipe.step(images, draws)
    with torch.autocast("cpu", torch.bfloat16):
        terms = recipe.step(images, draws)
    terms["loss"].backward()
    for name, value in terms.items():
        assert value.dtype == torch.float32 and value.isfinite(), name
    assert terms["loss"].item() == pytest.approx(expected["loss"].item(), rel=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in recipe.parameters())


# ---- the other likely mistakes


def test_mistake_1_maps_are_sparse_and_sum_to_1_over_channels(shared):
    logits = 3 * torch.randn(2, 5, 8, 12)
    maps = shared.activate(logits)
    assert (maps.sum(1) - 1).abs().max() < 1e-5 and (maps == 0).float().mean() > 0.3
    assert torch.equal(maps, sparsemax(logits))  # no softmax in front


def test_mistake_5_the_latent_comes_from_neither_head_nor_decoder(shared):
    recipe = micro().eval()
    images = speckle(2, size=64)
    with torch.no_grad():
        before = recipe.encode(images)
        for name, p in recipe.named_parameters():
            if "swinViT" not in name:
                p.add_(1.0)
        assert torch.equal(recipe.encode(images), before)
        recipe.network.net.swinViT.patch_embed.proj.weight.add_(0.1)
        assert not torch.equal(recipe.encode(images), before)


def test_mistake_6_two_colour_versions_do_not_share_the_hole(shared):
    views = {**STILL, "erase": 1.0, "erase_fill": 1.0}
    recipe = micro(views=views)
    images, draws = case(recipe, n=8)
    clean, seen = recipe.views(images.clamp(min=20), draws)
    holes = (seen == 0) & (clean[:, :, None] > 0)
    assert (holes.flatten(3).sum(-1) > 0).all()
    assert not torch.equal(holes[:, :, 0], holes[:, :, 1])
    assert ((holes[:, :, 0] != holes[:, :, 1]).flatten(2).sum(-1) > 0).all()
