"""The numbered checks of the ARL paper, section 8. Training loops and resuming are in test_arl.py."""

import math
from typing import Any

import pytest
import torch
from fakes.speckle import speckle
from torch import Tensor
from torch.nn import functional as F

from training.config import resolve
from training.distributed import World
from training.losses_adversarial import (
    adaptive_lambda,
    distillation_loss,
    generator_loss,
    layer_gradient,
    mim_gradient,
    mim_loss,
    reference_lambda,
    updated_centre,
)
from training.models.avit import ACDTBlock, ACDTOptions, AViT
from training.models.deformable import Backend, choose_backend, deform_conv, fused_works, sample_places
from training.models.distillation import Centre
from training.models.vit import patchify
from training.optimisers import Optimisers
from training.organ_condition import default_classes, one_hot, remap_classes
from training.recipes.arl import ARL, VARIANTS, ARLConfig
from usdata.errors import ConfigError

BACKENDS: tuple[Backend, ...] = ("grid_sample", "bag", "dense")
ORGANS = ["breast", "liver", None, "heart"]
TINY = {"img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2}


def small(**changes: Any) -> ARL:
    """A recipe of milliseconds: 32 pixels of 64, 16 patches, the adversarial term on from the first step."""
    torch.manual_seed(0)
    size = {"image_size": 32, "source_size": 64, "width": 32, "heads": 2, "disc_width": 8, "adv_start": 0.0}
    return ARL(ARLConfig(**{**ARL.presets["micro"]["recipe"], **size, **changes}))


def case(recipe: ARL, organs: list[str | None] = ORGANS) -> tuple[Tensor, dict[str, Tensor]]:
    draws = recipe.draw(len(organs), torch.Generator().manual_seed(1))
    return speckle(len(organs), size=recipe.cfg.source_size), draws | recipe.conditions({"organ": organs})


def shaken(module: torch.nn.Module, std: float = 0.5) -> None:
    """Random numbers where the offset networks start at zero, so that the organ matters."""
    generator = torch.Generator().manual_seed(2)
    for name, p in module.named_parameters():
        if ".offsets.out." in f".{name}":
            p.data.copy_(std * torch.randn(p.shape, generator=generator))


def a_map(rows: int = 4, columns: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A map that is not square and fractional offsets: swapped axes would show."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, rows, columns, 6, generator=generator, dtype=torch.float64)
    offsets = 0.1 + 0.8 * torch.rand(2, rows, columns, 1, 9, 2, generator=generator, dtype=torch.float64)
    offsets = offsets + torch.randint(-2, 2, offsets.shape, generator=generator)
    return x.to(dtype), offsets.to(dtype)


# ---- 1, 2: deformable sampling


@pytest.mark.parametrize("backend", BACKENDS)
def test_check_1_zero_offsets_are_an_ordinary_convolution(backend):
    x, offsets = a_map()
    image = x.permute(0, 3, 1, 2)
    depthwise, full = torch.randn(6, 9).double(), torch.randn(6, 6, 9).double()
    for weight, kernel, groups in ((depthwise, depthwise.view(6, 1, 3, 3), 6), (full, full.view(6, 6, 3, 3), 1)):
        expected = F.conv2d(image, kernel, padding=1, groups=groups)
        found = deform_conv(x, 0 * offsets, weight, backend=backend).permute(0, 3, 1, 2)
        assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_check_1_offset_0_1_is_the_convolution_one_column_to_the_right(backend):
    x, offsets = a_map()
    weight = torch.randn(6, 9).double()
    wide = F.conv2d(F.pad(x.permute(0, 3, 1, 2), (1, 2, 1, 1)), weight.view(6, 1, 3, 3), groups=6)
    right = torch.zeros_like(offsets)
    right[..., 1] = 1.0
    found = deform_conv(x, right, weight, backend=backend).permute(0, 3, 1, 2)
    assert (found - wide[..., 1:]).abs().max() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_check_1_half_a_patch_down_is_the_mean_of_two_neighbours(backend):
    x, offsets = a_map()
    half = torch.zeros_like(offsets)[..., :1, :]
    half[..., 0] = 0.5
    found = deform_conv(x, half, torch.ones(1).double(), backend=backend)
    assert torch.allclose(found[:, :-1], (x[:, :-1] + x[:, 1:]) / 2, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("mode", ["depthwise", "scalar", "full"])
def test_check_2_back_ends_agree_in_values_and_gradients(mode, groups):
    shape = {"depthwise": (6, 9), "scalar": (9,), "full": (6, 6, 9)}[mode]
    for dtype, values, gradients in ((torch.float64, 1e-13, 1e-12), (torch.float32, 4e-6, 4e-6)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
        found: list[list[Tensor]] = []
        for backend in BACKENDS:
            x, offsets = (t.clone() for t in a_map(dtype=dtype))
            leaves = [x, offsets.expand(-1, -1, -1, groups, -1, -1).clone(), weight.clone()]
            leaves[1][..., -1, :, :] *= 0.97 if groups > 1 else 1.0  # groups with offsets of their own
            for leaf in leaves:
                leaf.requires_grad_()
            y = deform_conv(leaves[0], leaves[1], leaves[2], backend=backend)
            found.append([y.detach(), *torch.autograd.grad((y * y).sum() / 2, leaves)])
        for other in found[1:]:
            assert (other[0] - found[0][0]).abs().max() < values
            for a, b in zip(other[1:], found[0][1:], strict=True):
                assert (a - b).abs().max() < gradients * b.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_check_2_outside_is_0_and_half_a_patch_outside_is_half_the_border(backend):
    x, offsets = a_map()
    one = torch.ones(1).double()
    for way, axis, edge in ((-1, 0, (slice(None), 0)), (1, 1, (slice(None), slice(None), -1))):
        away = torch.zeros_like(offsets)[..., :1, :]
        away[..., axis] = 50.0 * way
        assert deform_conv(x, away, one, backend=backend).abs().max() == 0
        away[..., axis] = 0.5 * way
        found = deform_conv(x, away, one, backend=backend)
        assert torch.allclose(found[edge], x[edge] / 2, atol=1e-12)


def test_check_2_auto_takes_the_fused_operator_only_where_a_call_works():
    expected = "fused" if fused_works("cpu") else "bag"
    assert choose_backend("auto", "cpu") == expected
    if not fused_works("cpu"):
        with pytest.raises(ConfigError, match="does not work here"):
            choose_backend("fused", "cpu")
    with pytest.raises(ConfigError, match="Did you mean 'bag'"):
        choose_backend("bagg", "cpu")


@pytest.mark.skipif(not fused_works("cpu"), reason="torchvision's operators do not fit this torch")
@pytest.mark.parametrize("base", ["3x3", "none"])
@pytest.mark.parametrize("groups", [1, 3])
def test_check_2_the_fused_operator_agrees_too(base, groups):
    x, offsets = a_map(dtype=torch.float32)
    offsets = offsets.repeat(1, 1, 1, groups, 1, 1)
    weight = torch.randn(6, 9)
    fused = deform_conv(x, offsets, weight, base=base, backend="fused")
    assert torch.allclose(fused, deform_conv(x, offsets, weight, base=base, backend="bag"), atol=1e-5)


def test_places_stay_float32_under_autocast():
    x, offsets = a_map(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert sample_places(offsets.bfloat16(), "3x3").dtype == torch.float32
        assert deform_conv(x.bfloat16(), offsets, torch.ones(9), backend="bag").dtype == torch.float32


# ---- 3 to 6: the block


def plain_and_acdt(**options: Any) -> tuple[AViT, AViT]:
    torch.manual_seed(0)
    plain = AViT(acdt=None, **TINY).eval()
    acdt = AViT(acdt=ACDTOptions(**options), **TINY).eval()
    acdt.load_state_dict(plain.state_dict(), strict=False)
    return plain, acdt


@pytest.mark.parametrize("options", [{}, {"w_mode": "scalar"}, {"w_mode": "full"}, {"taps": 1}, {"base_grid": "none"}])
def test_check_3_at_initialisation_a_block_equals_the_plain_one(options):
    plain, acdt = plain_and_acdt(**options)
    x, organ = torch.randn(2, 1, 32, 32), torch.eye(16)[[0, 5]]
    with torch.no_grad():
        expected, found = plain.tokens(x, organ), acdt.tokens(x, organ)
        assert (found - expected).abs().max() < 1e-6
        plain, acdt = plain.double(), acdt.double()
        difference = (acdt.tokens(x.double(), organ.double()) - plain.tokens(x.double(), organ.double())).abs().max()
    assert difference < 1e-14


def test_check_3_at_initialisation_the_default_block_is_bit_equal_on_a_cpu():
    plain, acdt = plain_and_acdt(backend="bag")
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(acdt.tokens(x, torch.eye(16)[:2]), plain.tokens(x, torch.eye(16)[:2]))


def test_check_3_without_acdt_it_is_timms_vit_bit_for_bit():
    import timm  # after `training`, whose guard lets it load beside a CPU torch

    plain, _ = plain_and_acdt()
    reference = timm.create_model("vit_base_patch16_224", **TINY, num_classes=0).eval()
    reference.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.tokens(x, torch.zeros(2, 16)), reference.forward_features(x))


def block(**options: Any) -> tuple[ACDTBlock, Tensor]:
    torch.manual_seed(0)
    part = AViT(acdt=ACDTOptions(**options), **TINY).eval().blocks[0]
    return part, torch.randn(1, 17, 32, generator=torch.Generator().manual_seed(4)).expand(2, -1, -1)


def run(part: ACDTBlock, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    record: list[Tensor] = []
    with torch.no_grad():
        return part(x, condition, (4, 4), None, record), record[0]


def test_check_4_the_organ_changes_offsets_and_output():
    part, x = block()
    shaken(part)
    out, offsets = run(part, x, torch.eye(16)[[0, 5]])
    assert (offsets[0] - offsets[1]).abs().max() > 1e-3
    assert (out[0] - out[1]).abs().max() > 1e-4


def test_check_4_with_a_zero_ac_weight_the_output_is_the_same_for_all_organs():
    part, x = block()
    shaken(part)
    part.acdt.anatomy.weight.data.zero_()
    out, _ = run(part, x, torch.eye(16)[[0, 5]])
    assert torch.equal(out[0], out[1])


def test_check_4_no_organ_means_ac_is_the_bias():
    part, x = block()
    shaken(part)
    part.acdt.anatomy.bias.data.normal_()
    assert torch.equal(part.acdt.anatomy(torch.zeros(2, 16))[0], part.acdt.anatomy.bias)
    null, _ = run(part, x, torch.zeros(2, 16))
    part.acdt.anatomy.weight.data.zero_()
    assert torch.equal(run(part, x, torch.eye(16)[[0, 5]])[0], null)


def test_check_5_ac_reaches_neither_values_nor_queries():
    part, x = block()
    before, _ = run(part, x, torch.eye(16)[[0, 5]])  # the offset network's last layer is zero
    part.acdt.anatomy.bias.data.add_(100.0)
    assert torch.equal(run(part, x, torch.eye(16)[[0, 5]])[0], before)


def test_check_6_the_organs_effect_on_offsets_varies_with_the_place():
    part, x = block()
    shaken(part)
    part.acdt.anatomy.weight.data.normal_(std=0.5)
    _, offsets = run(part, x, torch.eye(16)[[0, 5]])
    inner = (offsets[0] - offsets[1])[1:-1, 1:-1].flatten(0, 1)  # away from the border
    assert inner.std(dim=0).mean() > 0.05 * inner.abs().mean()


# ---- 7 to 10: pixels and the adversary


def test_check_7_l_mim_is_the_naive_loop_over_hidden_patches():
    recipe = small(adv=False, sd=False)
    images, draws = case(recipe)
    sharp = recipe.views(images, draws)
    hidden = recipe.masks(draws["noise"])[1]
    label = recipe.labels(len(images), draws)[1]
    tokens = recipe.encoder.tokens(sharp, label, hidden=hidden, mask_token=recipe.mask_token)
    every, target = recipe.pred(tokens[:, 1:]), patchify(sharp, 8)
    total, count = 0.0, 0
    for b in range(len(images)):
        for i in range(16):
            if hidden[b, i]:
                total, count = total + float((every[b, i] - target[b, i]).square().sum().detach()), count + 1
    assert count == 4 * 10  # int(16 * 0.4) = 6 stay visible
    assert recipe.step(images, draws)["mim"].item() == pytest.approx(total / count, rel=1e-5)


def test_check_7_sum_is_256_times_mean_at_patch_16_and_visible_pixels_have_no_gradient():
    pred, target = torch.randn(2, 5, 256), torch.randn(2, 5, 256)
    assert mim_loss(pred, target, "sum").item() == pytest.approx(256 * mim_loss(pred, target, "mean").item(), rel=1e-5)
    recipe = small(adv=False, sd=False)
    images, draws = case(recipe)
    sharp = recipe.views(images, draws)
    places, hidden = recipe.masks(draws["noise"])
    tokens = torch.randn(4, 17, 32, requires_grad=True)
    recipe.rebuild(tokens, sharp, places)["pixels"].backward()
    assert tokens.grad is not None
    assert tokens.grad[:, 1:][~hidden].abs().max() == 0 and tokens.grad[:, 1:][hidden].abs().min() > 0
    assert (sharp.shape, places.shape) == ((4, 1, 32, 32), (4, 10))


def test_check_7_the_closed_gradient_is_autograds():
    for reduction in ("sum", "mean"):
        pred, target = torch.randn(2, 5, 64, requires_grad=True), torch.randn(2, 5, 64)
        (expected,) = torch.autograd.grad(mim_loss(pred, target, reduction), pred)
        assert torch.allclose(mim_gradient(pred, target, reduction), expected, atol=1e-7)


def test_check_8_lambda_of_3_w_over_half_w_is_6():
    weight = torch.randn(4, 5, requires_grad=True)
    found = reference_lambda(3 * weight.norm(), 0.5 * weight.norm(), weight)
    assert found.item() == pytest.approx(6.0, rel=1e-4)
    assert found.grad_fn is None and not found.requires_grad


def test_check_8_lambda_is_clamped_and_never_nan():
    one, none, nan = torch.ones(3, 3), torch.zeros(3, 3), torch.full((3, 3), math.nan)
    assert adaptive_lambda(one, none).item() == 1e4
    assert adaptive_lambda(one, none, highest=7.0).item() == 7.0
    assert adaptive_lambda(nan, one).item() == adaptive_lambda(one, nan).item() == 0.0
    assert adaptive_lambda(one * math.inf, one).item() == 0.0


def both_ways(recipe: ARL, scale_adv: float = 1.0, scale_mim: float = 1.0) -> tuple[Tensor, Tensor, list[Tensor]]:
    """lambda, its reference by autograd, and the reference's gradients of L_MIM + lambda * L_adv for all weights."""
    images, draws = case(recipe)
    sharp = recipe.views(images, draws)
    places, hidden = recipe.masks(draws["noise"])
    tokens = recipe.encoder.tokens(
        sharp, recipe.labels(len(images), draws)[1], hidden=hidden, mask_token=recipe.mask_token
    )
    pred = recipe.pred(recipe._before_pixels(tokens, places))
    target = torch.gather(patchify(sharp, 8), 1, places[:, :, None].expand(-1, -1, 64))
    mim = scale_mim * mim_loss(pred, target)
    adv = scale_adv * generator_loss(recipe.discriminator(recipe._judged(pred, sharp, places)))
    weight = reference_lambda(mim, adv, recipe.pred.weight)
    owned = [p for n, p in recipe.named_parameters() if n.startswith(("encoder.", "pred.", "mask_token"))]
    return weight, adv, list(torch.autograd.grad(mim + weight * adv, owned, allow_unused=True))


@pytest.mark.parametrize("disc_input", ["patch", "composite"])
def test_check_8_the_single_pass_gives_the_same_lambda_and_gradients(disc_input):
    recipe = small(sd=False, disc_input=disc_input)
    shaken(recipe.encoder)
    images, draws = case(recipe)
    expected, _, gradients = both_ways(recipe)
    terms = recipe.step(images, draws)
    assert terms["lambda"].item() == pytest.approx(expected.item(), rel=1e-5)
    owned = [p for n, p in recipe.named_parameters() if n.startswith(("encoder.", "pred.", "mask_token"))]
    found = torch.autograd.grad(terms["loss"], owned, allow_unused=True)
    for a, b in zip(found, gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-7


def test_check_8_scaling_l_adv_changes_nothing():
    recipe = small(sd=False)
    weight, adv, gradients = both_ways(recipe)
    scaled_weight, scaled_adv, scaled = both_ways(recipe, scale_adv=7.0)
    assert (scaled_weight * scaled_adv).item() == pytest.approx((weight * adv).item(), rel=1e-4)
    for a, b in zip(scaled, gradients, strict=True):
        assert a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def test_check_8_the_weighted_adversarial_gradient_is_as_long_as_that_of_mim():
    d_mim, d_adv, h = torch.randn(4, 10, 64), 1e-3 * torch.randn(4, 10, 64), torch.randn(4, 10, 32)
    a, b = layer_gradient(d_mim, h), layer_gradient(d_adv, h)
    assert (adaptive_lambda(a, b) * b).norm().item() == pytest.approx(a.norm().item(), rel=1e-4)


def counted(recipe: ARL) -> list[tuple[int, ...]]:
    calls: list[tuple[int, ...]] = []
    recipe.discriminator.register_forward_pre_hook(lambda _, x: calls.append(tuple(x[0].shape)))
    return calls


def test_check_9_before_adv_start_neither_lambda_nor_the_discriminator_is_computed():
    recipe = small(adv_start=0.5)
    images, draws = case(recipe)
    calls = counted(recipe)
    terms = recipe.step(images, draws)
    assert not calls and not {"lambda", "adv", "loss/discriminator"} & terms.keys()
    recipe.after_step(0.5)
    assert {"lambda", "adv", "loss/discriminator"} <= recipe.step(images, draws).keys()
    assert calls == [(2 * 4 * 10, 1, 8, 8), (2 * 2 * 4 * 10, 1, 8, 8)]  # the fakes; then real and fake together


def test_check_9_adv_off_has_no_discriminator():
    recipe = small(adv=False)
    assert recipe.discriminator is None and "discriminator" not in recipe.optimisers
    assert not any(name.startswith("discriminator") for name in recipe.state_dict())
    assert "lambda" not in recipe.step(*case(recipe))


def test_check_10_each_loss_reaches_its_own_parameters_only():
    recipe = small()
    images, draws = case(recipe)
    terms = recipe.step(images, draws)
    disc = list(recipe.discriminator.parameters())
    assert all(p.grad is None for p in recipe.parameters())  # autograd inside the step leaves nothing behind
    terms["loss"].backward(retain_graph=True)
    assert all(p.grad is None for p in disc)
    for p in recipe.parameters():
        p.grad = None
    terms["loss/discriminator"].backward()
    assert all(p.grad is not None for p in disc)
    assert all(p.grad is None for n, p in recipe.named_parameters() if not n.startswith("discriminator"))


def optimisers(recipe: ARL) -> Optimisers:
    cfg = resolve("arl", "micro", sets=["steps=2", "lr=1e-3", "warmup=0"])
    found = Optimisers(recipe, cfg, World(0, 1, torch.device("cpu")))
    found.set_rates(0)
    return found


def copies(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(module: torch.nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


def test_check_9_the_discriminators_parameters_stay_until_it_begins():
    recipe = small(adv_start=0.5)
    images, draws = case(recipe)
    steps, disc, encoder = optimisers(recipe), copies(recipe.discriminator), copies(recipe.encoder)
    for progress, moves in ((0.5, False), (1.0, True)):
        terms = recipe.step(images, draws)
        steps.backward(terms, 1.0)
        steps.update(torch.stack([term.detach().float() for term in terms.values()]))
        recipe.after_step(progress)
        assert same(recipe.discriminator, disc) is not moves
    assert not same(recipe.encoder, encoder)


def test_check_10_the_discriminator_moves_in_its_own_step_only():
    recipe = small()
    steps, disc = optimisers(recipe), copies(recipe.discriminator)
    steps.backward(recipe.step(*case(recipe)), 1.0)
    steps.by_name["main"].step()
    assert same(recipe.discriminator, disc)
    encoder = copies(recipe.encoder)
    steps.by_name["discriminator"].step()
    assert same(recipe.encoder, encoder) and not same(recipe.discriminator, disc)


# ---- 11, 12: teacher and centre


def test_check_11_the_teacher_has_no_gradient_and_is_a_moving_average():
    recipe = small(teacher_momentum=0.9)
    images, draws = case(recipe)
    recipe.step(images, draws)["loss"].backward()
    assert all(not p.requires_grad and p.grad is None for p in recipe.teacher.parameters())
    old = [p.clone() for p in recipe.teacher.encoder.parameters()]
    with torch.no_grad():
        for p in recipe.encoder.parameters():
            p.add_(torch.randn_like(p))
    recipe.after_step(0.0)
    pairs = zip(recipe.teacher.encoder.parameters(), old, recipe.encoder.parameters(), strict=True)
    for now, before, student in pairs:
        assert torch.allclose(now, 0.9 * before + 0.1 * student, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_check_11_momentum_1_freezes_and_0_copies(momentum):
    recipe = small(teacher_momentum=momentum)
    old = [p.clone() for p in recipe.teacher.encoder.parameters()]
    with torch.no_grad():
        for p in recipe.encoder.parameters():
            p.add_(1.0)
    recipe.after_step(0.0)
    expected = old if momentum else list(recipe.encoder.parameters())
    assert all(torch.equal(a, b) for a, b in zip(recipe.teacher.encoder.parameters(), expected, strict=True))


def test_check_11_the_teacher_sees_whole_views_and_the_full_label():
    recipe = small(cond_dropout=0.9)
    images, draws = case(recipe)
    draws["drop"][:] = True
    seen: dict[str, tuple[Tensor, Any]] = {}

    def spy(name: str, module: AViT) -> None:
        tokens = module.tokens

        def noted(images: Tensor, condition: Tensor, **how: Any) -> Tensor:
            seen[name] = (condition, how.get("hidden"))
            return tokens(images, condition, **how)

        module.tokens = noted

    spy("student", recipe.encoder)
    spy("teacher", recipe.teacher.encoder)
    recipe.train()
    recipe.step(images, draws)
    assert seen["student"][0].abs().sum() == 0 and seen["student"][1].sum() == 8 * 10
    assert torch.equal(seen["teacher"][0], one_hot(draws["organ"], 16).repeat(2, 1)) and seen["teacher"][1] is None
    assert not recipe.teacher.training and recipe.training


def test_check_12_the_centre_starts_at_0_and_moves_by_a_tenth_after_its_use():
    recipe = small()
    images, draws = case(recipe)
    centre = recipe.centres["sd"]
    logits: list[Tensor] = []
    recipe.teacher.head.register_forward_hook(lambda _, x, y: logits.append(y))
    assert centre.value.abs().max() == 0
    first = recipe.step(images, draws)["sd"]
    assert centre.value.abs().max() == 0  # not before the update
    recipe.after_step(0.01)
    assert torch.allclose(centre.value, 0.1 * logits[0].mean(0), atol=1e-6)
    wanted = logits[0].unflatten(0, (2, 4))
    ours: list[Tensor] = []
    recipe.head.register_forward_hook(lambda _, x, y: ours.append(y))
    recipe.step(images, draws)
    zero = torch.zeros(64)
    old = distillation_loss(ours[0].unflatten(0, (2, 4)), wanted, zero, student_temp=0.1, teacher_temp=0.04)
    assert old.item() == pytest.approx(first.item(), rel=1e-5)


def test_check_12_micro_batches_move_the_centre_once_by_their_mean():
    centre = Centre(3)
    centre.note(torch.tensor([[1.0, 0.0, 0.0]]))
    centre.note(torch.tensor([[3.0, 2.0, 0.0], [3.0, 2.0, 0.0]]))
    centre.update(0.9)
    assert torch.allclose(centre.value, torch.tensor([0.2, 0.1, 0.0]))
    centre.update(0.9)  # nothing noted since
    assert torch.allclose(centre.value, torch.tensor([0.2, 0.1, 0.0]))
    nan = updated_centre(centre.value, torch.full((3,), math.nan))
    assert torch.equal(nan, centre.value)


def sd(student: Tensor, teacher: Tensor) -> float:
    centre = torch.zeros(student.shape[-1])
    return distillation_loss(student, teacher, centre, student_temp=0.1, teacher_temp=0.04).item()


def test_check_12_uniform_outputs_give_ln_n_and_equal_sharp_ones_about_0():
    assert sd(torch.zeros(2, 3, 8192), torch.zeros(2, 3, 8192)) == pytest.approx(math.log(8192), abs=1e-4)
    sharp = F.one_hot(torch.tensor([3, 5, 7]), 64).float().repeat(2, 1, 1)
    assert sd(3 * sharp, 3 * sharp) < 1e-3 + 63 * math.exp(-30)


def test_check_12_views_are_paired_crosswise_only():
    a, b = torch.randn(2, 1, 3, 64).unbind(0)
    student, teacher = torch.cat([a, b]), torch.cat([b, a])  # each teacher's view is the student's *other* one
    good, bad = sd(20 * student, 20 * teacher), sd(20 * student, 20 * student)
    assert good < bad
    alone = distillation_loss(student, student, torch.zeros(64), student_temp=0.1, teacher_temp=0.04, same=True)
    naive = [
        -(F.softmax(teacher[t] / 0.04, -1) * F.log_softmax(student[s] / 0.1, -1)).sum(-1).mean().item()
        for t, s in ((0, 1), (1, 0))
    ]
    assert sd(student, teacher) == pytest.approx(sum(naive) / 2, rel=1e-5)
    assert alone.item() != pytest.approx(sd(student, student), rel=1e-3)


def test_check_12_local_crops_meet_both_teachers():
    student, teacher = torch.randn(5, 3, 64), torch.randn(2, 3, 64)
    pairs = [(t, s) for t in range(2) for s in range(5) if s != t]
    naive = [-(F.softmax(teacher[t] / 0.04, -1) * F.log_softmax(student[s] / 0.1, -1)).sum(-1).mean() for t, s in pairs]
    assert len(pairs) == 8
    assert sd(student, teacher) == pytest.approx(float(sum(naive)) / 8, rel=1e-5)


# ---- 13 to 16: condition, sizes, classes


def test_check_13_the_label_is_dropped_at_its_rate_and_in_all_blocks_alike():
    recipe = small()
    n = 4000
    drop = recipe.draw(n, torch.Generator().manual_seed(3))["drop"]
    assert abs(drop.float().mean().item() - 0.1) < 3 * math.sqrt(0.1 * 0.9 / n)
    images, draws = case(recipe)
    draws["drop"] = torch.tensor([True, False, False, False])
    seen: list[Tensor] = []
    for part in recipe.encoder.blocks:
        part.acdt.anatomy.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    recipe.step(images, draws)
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])
    assert seen[0].sum(1).tolist() == [0, 1, 0, 1] * 2  # dropped; liver; unknown; heart; in both views


def test_check_13_nothing_is_dropped_when_encoding():
    recipe = small(cond_dropout=0.99).eval()
    shaken(recipe.teacher.encoder)
    images, _ = case(recipe)
    seen: list[Tensor] = []
    recipe.teacher.encoder.blocks[0].acdt.anatomy.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        recipe.encode(images, "breast")
    assert torch.equal(seen[0], torch.eye(16)[:1].expand(4, -1))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_check_14_parameter_counts():
    size = {"img_size": 224, "patch_size": 16, "in_chans": 1, "num_heads": 12}
    with torch.device("meta"):
        assert count(AViT(acdt=None, **size)) == 85_405_440
        assert count(AViT(acdt=ACDTOptions(), **size)) == 85_921_752  # AC 156,672; g 276,696; w 82,944
        assert count(AViT(acdt=ACDTOptions(w_mode="full"), **size)) == 149_539_800
        cfg = ARLConfig()
        from training.models.distillation import DistillationHead
        from training.models.patch_discriminator import PatchDiscriminator

        assert count(PatchDiscriminator(16)) == 370_689
        assert count(DistillationHead(768, cfg.head_hidden, cfg.head_bottleneck, 8192)) == 8_392_960
        assert count(DistillationHead(768, cfg.head_hidden, cfg.head_bottleneck, 65_536)) == 23_073_024


def test_check_14_what_is_off_is_in_no_optimiser():
    def owners(**changes: Any) -> tuple[set[str], int]:
        recipe = small(**changes)
        groups = recipe.param_groups(0.04)
        names = {id(p): n.split(".")[0] for n, p in recipe.named_parameters()}
        assert {id(p) for p in recipe.parameters() if p.requires_grad} == {id(p) for g in groups for p in g["params"]}
        return {names[id(p)] for g in groups for p in g["params"]}, sum(p.numel() for g in groups for p in g["params"])

    base = {"encoder", "mask_token", "pred"}
    found = {name: owners(**changes) for name, changes in VARIANTS.items()}
    assert found["mim"][0] == found["mim_natural"][0] == base
    assert found["mim_acdt"][0] == base | {"organ_head"}
    assert found["mim_acdt_adv"][0] == base | {"organ_head", "discriminator"}
    assert found["full"][0] == base | {"organ_head", "discriminator", "head"}
    assert found["mim"][1] < found["mim_acdt"][1] < found["mim_acdt_adv"][1] < found["full"][1]


def test_check_15_one_state_dict_takes_96_and_224_pixels():
    torch.manual_seed(0)
    vit = AViT(acdt=ACDTOptions(), **{**TINY, "img_size": 224, "patch_size": 16}).eval()
    shaken(vit)
    with torch.no_grad():
        assert vit.tokens(torch.randn(1, 1, 224, 224), torch.eye(16)[:1]).shape == (1, 197, 32)
        assert vit.tokens(torch.randn(1, 1, 96, 96), torch.eye(16)[:1]).shape == (1, 37, 32)
        with pytest.raises(ConfigError, match="can't be cut"):
            vit.tokens(torch.randn(1, 1, 100, 96), torch.eye(16)[:1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_check_15_rows_and_columns_are_not_swapped_on_a_4_by_7_map(backend):
    x = torch.arange(28.0).view(1, 4, 7, 1)  # 7 rows down is +7 each, 1 column right is +1
    step = torch.zeros(1, 4, 7, 1, 1, 2)
    step[..., 0], step[..., 1] = 1.0, 2.0
    found = deform_conv(x, step, torch.ones(1), backend=backend)
    assert torch.allclose(found[0, :3, :5, 0], x[0, :3, :5, 0] + 7 + 2, atol=1e-5)
    assert found[0, 3].abs().max() < 1e-5 and found[0, :, 5:].abs().max() < 1e-5


def test_check_16_weights_of_another_class_list_are_refused():
    recipe = small()
    other = small(classes=(*default_classes()[1:], "breast"))
    with pytest.raises(ConfigError, match="class 0 was 'breast', now 'thyroid'"):
        other.load_state_dict(recipe.state_dict())
    moved = remap_classes(recipe.state_dict(), other.cfg.classes)
    other.load_state_dict(moved)
    images, _ = case(recipe)
    with torch.no_grad():
        assert torch.equal(other.eval().encode(images, "liver"), recipe.eval().encode(images, "liver"))


def test_check_16_a_new_organ_starts_as_the_null_class():
    recipe = small().eval()
    shaken(recipe.teacher.encoder)
    wider = small(classes=(*default_classes(), "eye")).eval()
    wider.load_state_dict(remap_classes(recipe.state_dict(), wider.cfg.classes))
    images, _ = case(recipe)
    with torch.no_grad():
        assert torch.equal(wider.encode(images, "eye"), recipe.encode(images))
        assert torch.equal(wider.encode(images, "breast"), recipe.encode(images, "breast"))
        assert not torch.equal(wider.encode(images, "breast"), wider.encode(images))


def test_check_16_images_without_a_class_get_the_zero_vector_and_are_counted():
    recipe = small(drop_path=0.0)
    images, draws = case(recipe, ["breast", "phantom", "unknown", None])
    assert draws["organ"].tolist() == [0, -1, -1, -1]
    assert recipe.labels(4, draws)[0].sum(1).tolist() == [1, 0, 0, 0]
    assert recipe.step(images, draws)["unknown_organ"].item() == 0.75
    other = small(missing="other")
    assert other.conditions({"organ": ["phantom", None, "eye", "tendon"]})["organ"].tolist() == [15, 15, 15, 14]


def test_check_16_a_name_outside_the_vocabulary_is_an_error_with_the_nearest():
    recipe = small()
    with pytest.raises(ConfigError, match=r"No organ named 'brest'\. Did you mean 'breast'"):
        recipe.conditions({"organ": ["brest"]})
    assert small(unknown_name="null").conditions({"organ": ["brest", "breast"]})["organ"].tolist() == [-1, 0]
