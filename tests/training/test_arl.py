"""ARL as a whole: training, resuming, inference, exports, bad input, and the paper's likely mistakes (section 9)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.speckle import speckle
from fakes.training_fakes import FakeCohort
from torch import Tensor

from training import checkpoint
from training.arl_parts import acdt_options, vit_args
from training.arl_views import hidden_patches, relit
from training.config import resolve
from training.distributed import World
from training.losses_adversarial import discriminator_loss, distillation_loss, generator_loss
from training.models import deformable
from training.models.avit import AViT, drop_path_scales, load_plain
from training.models.deformable import deform_conv
from training.models.vit import patchify
from training.optimisers import Optimisers
from training.organ_condition import default_classes, one_hot, organ_slot, pack_names, unpack_names
from training.recipes.arl import ARL, VARIANTS, ARLConfig
from training.train import pretrain
from usdata.errors import ConfigError
from usdata.schema import taxonomy

ROOT = Path(__file__).parents[2]
ORGANS = ["breast", "liver", None, "heart"]
SIZE = {"image_size": 32, "width": 32, "heads": 2, "disc_width": 8}


def small(**changes: Any) -> ARL:
    torch.manual_seed(0)
    return ARL(ARLConfig(**{**ARL.presets["micro"]["recipe"], **SIZE, "source_size": 64, "adv_start": 0.0, **changes}))


def case(recipe: ARL, organs: list[str | None] = ORGANS, seed: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    draws = recipe.draw(len(organs), torch.Generator().manual_seed(seed))
    return speckle(len(organs), size=recipe.cfg.source_size), draws | recipe.conditions({"organ": organs})


def shaken(recipe: ARL) -> ARL:
    generator = torch.Generator().manual_seed(2)
    for name, p in recipe.named_parameters():
        if ".offsets.out." in name:
            p.data.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return recipe


def train(
    recipe: ARL, steps: int, images: Tensor, draws: dict[str, Tensor], lr: float = 1e-3
) -> list[dict[str, float]]:
    """Steps on one batch with the trainer's own optimisers."""
    cfg = resolve("arl", "micro", sets=[f"steps={steps}", f"lr={lr}", "warmup=0"])
    optimisers = Optimisers(recipe, cfg, World(0, 1, torch.device("cpu")))
    log = []
    for i in range(steps):
        optimisers.set_rates(i)
        terms = recipe.step(images, draws)
        optimisers.backward(terms, 1.0)
        values = optimisers.update(torch.stack([t.detach().float() for t in terms.values()]))
        recipe.after_step((i + 1) / steps)
        log.append(dict(zip([*optimisers.norms, *terms], values.tolist(), strict=True)))
    assert float(optimisers.blocked) == 0
    return log


# ---- 17: it trains


def test_check_17_20_steps_on_one_batch_lower_l_mim_and_all_terms_stay_finite():
    recipe = small(adv_start=0.2)
    log = train(recipe, 20, *case(recipe), lr=3e-3)
    assert log[-1]["mim"] < 0.7 * log[0]["mim"]
    assert all(math.isfinite(value) for record in log for value in record.values())
    assert "lambda" not in log[3] and "lambda" in log[4]


def test_check_17_the_loss_is_the_sum_of_the_logged_terms():
    recipe = small(sd_patch=True, local_crops=1, local_size=16)
    for record in train(recipe, 3, *case(recipe)):
        total = record["sd"] + record["sd_patch"] + record["mim"] + record["lambda"] * record["adv"]
        assert record["loss"] == pytest.approx(total, rel=1e-5)


def test_check_17_the_discriminator_leaves_50_percent():
    recipe = small(sd=False, disc_lr=3e-3)
    log = train(recipe, 25, *case(recipe), lr=1e-4)
    assert max(record["disc_accuracy"] for record in log) > 0.8
    assert log[-1]["loss/discriminator"] < log[0]["loss/discriminator"]


def test_check_17_the_organ_classifier_says_of_how_many_images_its_loss_is():
    recipe = small(cond_dropout=0.5)
    images, draws = case(recipe)  # one organ of four is not known
    for drop, learned in (([True] * 4, 0.75), ([True, False, True, False], 0.25), ([False] * 4, 0.0)):
        terms = recipe.step(images, draws | {"drop": torch.tensor(drop)})
        assert terms["organ_learned"].item() == learned
        assert (terms["loss/organ"].item() == 0) == (learned == 0)
    whole = recipe.step(images, draws | {"drop": torch.tensor([True] * 4)})["loss/organ"]
    assert whole.item() == pytest.approx(math.log(16) * 0.75 / 0.5, rel=0.2)  # guessing among 16, over the share 0.5


def test_the_schedules_follow_the_progress_also_after_loading():
    recipe = small(adv_start=0.5, freeze_last=0.3, teacher_temp=(0.04, 0.07), temp_warmup=0.5)
    assert (recipe.judging, recipe.fixed, recipe.temperature.item()) == (False, True, pytest.approx(0.04))
    recipe.after_step(0.6)
    twin = small(adv_start=0.5, freeze_last=0.3, teacher_temp=(0.04, 0.07), temp_warmup=0.5)
    twin.load_state_dict(recipe.state_dict())
    for one in (recipe, twin):
        assert (one.judging, one.fixed, one.temperature.item()) == (True, False, pytest.approx(0.07))
    assert "temperature" not in recipe.state_dict()


@pytest.mark.recipes
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "mim_natural"])
def test_check_17_micro_overfits_one_batch(variant):
    torch.manual_seed(0)
    recipe = ARL(ARLConfig(**{**ARL.presets["micro"]["recipe"], **VARIANTS[variant]}))
    log = train(recipe, 150, *case(recipe), lr=3e-3)
    assert min(record["mim"] for record in log[-10:]) < 0.3 * log[0]["mim"]


# ---- 18: resuming


def run(out, *sets, cohort=None, **how):
    size = [f"{key}={value}" for key, value in SIZE.items()]
    fixed = ["steps=8", "batch_size=4", "checkpoint_every=4", "log_every=2", "adv_start=0.25", "freeze_last=0.5"]
    cfg = resolve("arl", "micro", sets=[*size, *fixed, "cond_dropout=0.5", "drop_path=0.2", *sets])
    return pretrain(cohort or FakeCohort(), cfg, out, **how)


@pytest.mark.recipes
@pytest.mark.parametrize("pieces", ["accumulate=1", "accumulate=2"])
def test_check_18_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, pieces):
    moving = [pieces, "teacher_temp=[0.04,0.07]", "temp_warmup=1"]
    run(tmp_path / "whole", *moving)
    run(tmp_path / "cut", *moving, max_hours=1e-9)  # stops after the first step
    assert checkpoint.load_state(tmp_path / "cut" / "checkpoint" / "last.pt")["step"] == 1
    run(tmp_path / "cut", *moving, resume=True, max_hours=1e-9)
    run(tmp_path / "cut", *moving, resume=True)
    one, two = (checkpoint.load_state(tmp_path / name / "checkpoint" / "last.pt") for name in ("whole", "cut"))
    assert {"main", "discriminator", "organ"} == set(one["optimisers"])
    names = set(one["model"])
    assert {"centres.sd.value", "progress"} <= names and any(n.startswith("teacher.encoder.") for n in names)
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name]), name
    for which, optimiser in one["optimisers"].items():
        for number, moments in optimiser["state"].items():
            for key, value in moments.items():
                assert torch.equal(value, two["optimisers"][which]["state"][number][key]), (which, number, key)
    logs = []
    for name in ("whole", "cut"):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        timed = {"images_per_s", "data_wait", "time"}
        logs.append([{k: v for k, v in x.items() if k not in timed} for x in lines if x["kind"] == "step"])
    assert [record["loss"] for record in logs[0]] == [record["loss"] for record in logs[1]]


def test_check_18_the_state_dict_alone_brings_back_teacher_centre_and_schedules():
    recipe = small(adv_start=0.5, teacher_temp=(0.04, 0.07))
    images, draws = case(recipe)
    train(recipe, 3, images, draws)
    recipe.after_step(0.6)
    twin = small(adv_start=0.5, teacher_temp=(0.04, 0.07))
    twin.load_state_dict(recipe.state_dict())
    assert twin.teacher_temp() == recipe.teacher_temp() != 0.04 and twin.momentum() == recipe.momentum()
    a, b = recipe.step(images, draws), twin.step(images, draws)
    assert a.keys() == b.keys() and "lambda" in a
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---- draws


def test_a_step_draws_nothing_by_itself():
    recipe = small(drop_path=0.5, local_crops=2, local_size=16)
    images, draws = case(recipe)
    before = torch.random.get_rng_state()
    first = recipe.step(images, draws)["loss"]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(recipe.step(images, draws)["loss"], first)


def test_two_halves_of_a_batch_have_the_mean_gradient_of_the_whole():
    recipe = small(adv_lambda=0.5, drop_path=0.3, sd_patch=True, cond_dropout=0.5)
    images, draws = case(recipe)

    def gradients(rows: slice) -> list[Tensor]:
        terms = recipe.step(images[rows], {name: value[rows] for name, value in draws.items()})
        owned = [p for p in recipe.parameters() if p.requires_grad]
        total = terms["loss"] + terms["loss/discriminator"] + terms["loss/organ"]
        return [torch.zeros(1) if g is None else g for g in torch.autograd.grad(total, owned, allow_unused=True)]

    whole, one, two = gradients(slice(0, 4)), gradients(slice(0, 2)), gradients(slice(2, 4))
    for all_, a, b in zip(whole, one, two, strict=True):
        assert torch.allclose(all_, (a + b) / 2, rtol=1e-3, atol=1e-5 * float(all_.abs().max()) + 1e-7)


def test_drop_path_keeps_the_mean_and_spares_the_first_block():
    scales = drop_path_scales(torch.rand(20_000, 3, 2, generator=torch.Generator().manual_seed(0)), 0.4)
    assert torch.equal(scales[:, 0], torch.ones(20_000, 2))
    assert scales.mean((0, 2)).tolist() == pytest.approx([1.0, 1.0, 1.0], abs=0.02)
    assert (scales[:, 2] == 0).float().mean().item() == pytest.approx(0.4, abs=0.02)


def test_blocks_of_patches_are_hidden_together_and_as_many_as_single_ones():
    noise = torch.rand(50, 2, 196, generator=torch.Generator().manual_seed(0))
    assert hidden_patches(noise, (14, 14), 0.6)[0].shape == (100, 118)  # the paper's 118 of 196
    places, mask = hidden_patches(noise, (14, 14), 0.6, block=2)
    assert places.shape == (100, 118) and mask.sum(1).unique().tolist() == [118]
    squares = mask.view(100, 7, 2, 7, 2).sum((2, 4))
    assert ((squares > 0) & (squares < 4)).sum(dim=(1, 2)).max() <= 1  # only the last square is cut


def test_views_stand_view_by_view():
    recipe = small()
    images, draws = case(recipe)
    views = recipe.views(images, draws)
    one = {name: draws[name][2:3, 1:2] for name in ("box", "flip")}
    assert torch.equal(views[4 + 2], recipe.views(images[2:3], one)[0])


# ---- inference


@pytest.fixture(scope="module")
def trained() -> ARL:
    recipe = shaken(small(cond_dropout=0.5))
    train(recipe, 3, *case(recipe))
    return recipe.eval()


def test_features_are_class_and_mean_patch_token_of_the_teacher(trained):
    images, _ = case(trained)
    with torch.no_grad():
        tokens = trained.teacher.encoder.tokens(trained.view(images), torch.zeros(4, 16))
        assert torch.equal(trained.encode(images), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))


def test_label_null_and_predict_are_three_different_answers(trained):
    images, _ = case(trained)
    with torch.no_grad():
        null, label, predicted = (
            trained.encode(images, o, m) for o, m in ((None, None), ("breast", None), (None, "predict"))
        )
        assert (null - label).abs().max() > 1e-6 and (null - predicted).abs().max() > 1e-6
        logits = trained.organ_head(trained.teacher.encoder.tokens(trained.view(images), torch.zeros(4, 16))[:, 0])
        assert torch.equal(predicted, trained.encode(images, logits.softmax(-1)))
        assert torch.equal(trained.encode(images, "breast", "null"), null)
        assert torch.equal(trained.encode(images, [None, "unknown", "phantom", None]), null)


def test_names_slots_and_vectors_mean_the_same(trained):
    images, draws = case(trained)
    with torch.no_grad():
        by_name = trained.encode(images, ORGANS)
        assert torch.equal(trained.encode(images, organ=draws["organ"]), by_name)
        assert torch.equal(trained.encode(images, one_hot(draws["organ"], 16)), by_name)


def test_wrong_organs_are_refused(trained):
    images, _ = case(trained)
    for organ, message in (
        ("livr", "No organ named 'livr'. Did you mean 'liver'"),
        (torch.tensor([0, 1, 2, 16]), "slots are -1 ... 15"),
        (torch.ones(4, 16), "probabilities"),
        (["breast"], "probabilities"),
    ):
        with pytest.raises(ConfigError, match=message):
            trained.encode(images, organ)
    with pytest.raises(ConfigError, match="needs the organ"):
        trained.encode(images, mode="label")
    with pytest.raises(ConfigError, match="no organ classifier"):
        small(organ_head=False).encode(images, mode="predict")


def test_every_organ_of_the_catalog_has_a_slot_or_none():
    classes = default_classes()
    slots = {organ: organ_slot(organ, classes) for organ in taxonomy()["organs"]}
    assert len(classes) == 16 and set(slots.values()) == set(range(-1, 16))
    assert {organ for organ, slot in slots.items() if slot < 0} == {"phantom", "simulated", "animal", "unknown"}
    assert classes[slots["carotid_artery"]] == "neck" and classes[slots["eye"]] == "other"
    assert unpack_names(pack_names(classes)) == classes


def test_shuffled_labels_do_not_follow_the_organ_and_null_ones_are_none():
    recipe = small(condition="shuffled")
    draws = case(recipe)[1]
    assert torch.equal(recipe.labels(4, draws)[0], one_hot(draws["wrong"], 16))
    for changes in ({"condition": "null"}, {"data": "natural"}, {"acdt": False}):
        other = small(**changes)
        assert other.columns == () and other.labels(4, draws)[0].abs().sum() == 0


# ---- weights


def test_without_acdt_timm_loads_the_encoder(tmp_path):
    recipe = small(acdt=False)
    cfg = resolve("arl", "micro", sets=["acdt=false"])
    path = checkpoint.export_encoder(recipe, cfg, tmp_path, {})
    assert path.is_file() and recipe.encoder_export()[1]["model_name"] == "vit_base_patch16_224"


def test_the_run_directory_gives_the_encoder_and_its_classes_back(tmp_path):
    size = [f"{key}={value}" for key, value in SIZE.items()]
    cfg = resolve("arl", "micro", sets=size)
    recipe = shaken(checkpoint.build(cfg)).eval()
    recipe.teacher.follow(recipe.encoder, recipe.head, 0.0)
    checkpoint.save_recipe(recipe, cfg, tmp_path, recipe.facts())
    loaded = checkpoint.load_encoder(tmp_path)
    images = speckle(2)
    with torch.no_grad():
        assert torch.equal(loaded.encode(images, "heart"), recipe.encode(images, "heart"))
    assert loaded.cfg.classes == default_classes()
    state, meta = recipe.encoder_export()
    rebuilt = AViT(acdt=acdt_options(recipe.cfg), **vit_args(recipe.cfg))
    rebuilt.load_state_dict(state, strict=True)
    assert meta["model_name"] is None and meta["classes"] == list(default_classes()) and meta["arch"]["acdt"] is True


def test_a_plain_rgb_vit_can_be_the_start(tmp_path):
    import timm
    from safetensors.torch import save_file

    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    rgb = timm.create_model("vit_base_patch16_224", **shape, num_classes=5).eval()
    save_file(rgb.state_dict(), tmp_path / "vit.safetensors")
    recipe = small(init=str(tmp_path / "vit.safetensors")).eval()
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        expected = rgb.forward_features(grey.expand(-1, 3, -1, -1))
        assert torch.allclose(recipe.encoder.tokens(grey, torch.eye(16)[:2]), expected, atol=1e-5)
    with pytest.raises(ConfigError, match=r"not the weights of this ViT: .*expected"):
        load_plain(recipe.encoder, {**rgb.state_dict(), "cls_token": torch.zeros(1, 1, 48)})
    with pytest.raises(ConfigError, match="Cannot read the weights"):
        small(init=str(tmp_path / "nothing.safetensors"))


def test_pictures_are_grey_values_and_show_moved_taps():
    recipe = shaken(small()).eval()
    images, draws = case(recipe)
    stages = recipe.pictures(images, draws)
    assert list(stages) == ["view", "masked", "reconstruction", "offsets"]
    for picture in stages.values():
        assert picture.shape == (4, 1, 32, 32) and 0 <= picture.min() <= picture.max() <= 1
    assert stages["offsets"].std() > 0
    hidden = patchify(stages["masked"], 8).std(-1) == 0
    assert hidden.sum(1).tolist() == [10] * 4
    shown = patchify(stages["reconstruction"], 8)[~hidden]
    assert torch.equal(shown, patchify(stages["view"], 8)[~hidden])


# ---- presets and bad input


@pytest.mark.parametrize("preset", ["micro", "small", "paper"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_fits_every_preset(preset, variant):
    sets = [f"{key}={json.dumps(value)}" for key, value in VARIANTS[variant].items()]
    cfg = resolve("arl", preset, sets=sets)
    assert cfg.recipe_config["acdt"] is VARIANTS[variant]["acdt"]
    rising = None if preset == "micro" else 0.4
    assert (cfg.weight_decay, cfg.weight_decay_end, cfg.clip_grad, cfg.betas) == (0.04, rising, 3.0, (0.9, 0.999))


def test_the_paper_preset_is_the_papers():
    run_config = resolve("arl", "paper")
    cfg = ARLConfig(**run_config.recipe_config)
    assert (cfg.image_size, cfg.patch_size, cfg.width, cfg.depth, cfg.heads) == (224, 16, 768, 12, 12)
    assert (cfg.mask_ratio, cfg.cond_dropout, cfg.prototypes, cfg.teacher_momentum) == (0.6, 0.1, 8192, 0.996)
    assert run_config.peak_lr == pytest.approx(5e-4 * 1024 / 256) and run_config.gamma == 0.5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("image_size=60", "image_size 60 is not a multiple of patch_size 8"),
        ("mask_ratio=1", "mask_ratio"),
        ("heads=3", "width 64 is not a multiple of heads 3"),
        ("offset_groups=5", "offset_groups 5"),
        ("acdtt=false", "Did you mean 'acdt'"),
        ("adv_lambda=adaptiv", "adv_lambda"),
        ("crop_area=[0.5, 1.5]", "crop_area"),
        ("teacher_temp=[0.0, 0.1]", "teacher_temp"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        resolve("arl", "micro", sets=[setting])


def test_patches_too_odd_for_the_discriminator_and_masks_of_everything_are_refused():
    with pytest.raises(ConfigError, match="patch_size of 4, 8, 16"):
        resolve("arl", "micro", sets=["image_size=60", "patch_size=6"])
    with pytest.raises(ConfigError, match="none of 16 patches visible"):
        small(mask_ratio=0.99)


def test_only_stored_uint8_images_are_taken():
    recipe = small()
    images, draws = case(recipe)
    with pytest.raises(ValueError, match="uint8"):
        recipe.step(images.float(), draws)
    with pytest.raises(ValueError, match=r"must be \(B, 1, 64, 64\)"):
        recipe.encode(images[..., :32])


# ---- section 9: likely mistakes


def naive_fused(x: Tensor, offset: Tensor, weight: Tensor, padding: int) -> Tensor:
    """torchvision's documented deform_conv2d by loops: channel 2 (g K + k) of the offsets is dy, the next one dx."""
    batch, width, rows, columns = x.shape
    side, taps = weight.shape[-1], weight.shape[-1] ** 2
    groups = offset.shape[1] // (2 * taps)
    out = torch.zeros(batch, weight.shape[0], rows, columns, dtype=x.dtype)
    for b, d, r, c in torch.cartesian_prod(*(torch.arange(n) for n in (batch, width, rows, columns))).tolist():
        for k in range(taps):
            channel = 2 * ((d // (width // groups)) * taps + k)
            y = r - padding + k // side + float(offset[b, channel, r, c])
            z = c - padding + k % side + float(offset[b, channel + 1, r, c])
            for i in (math.floor(y), math.floor(y) + 1):
                for j in (math.floor(z), math.floor(z) + 1):
                    if 0 <= i < rows and 0 <= j < columns:
                        share = (1 - abs(y - i)) * (1 - abs(z - j)) * x[b, d, i, j]
                        if weight.shape[1] == 1:
                            out[b, d, r, c] += share * weight[d, 0, k // side, k % side]
                        else:
                            out[b, :, r, c] += share * weight[:, d, k // side, k % side]
    return out


@pytest.mark.parametrize("base", ["3x3", "none"])
@pytest.mark.parametrize("mode", ["depthwise", "full"])
def test_mistake_1_the_fused_operator_gets_axes_groups_and_kernel_in_its_own_order(monkeypatch, base, mode):
    import torchvision.ops

    monkeypatch.setattr(torchvision.ops, "deform_conv2d", naive_fused)
    monkeypatch.setattr(deformable, "fused_works", lambda device: True)
    x = torch.randn(1, 2, 3, 4).double()
    offsets = torch.randn(1, 2, 3, 2, 9, 2).double()
    weight = torch.randn(4, 9).double() if mode == "depthwise" else torch.randn(4, 4, 9).double()
    fused = deform_conv(x, offsets, weight, base=base, backend="fused")
    assert torch.allclose(fused, deform_conv(x, offsets, weight, base=base, backend="bag"), atol=1e-12)


def test_mistake_2_the_label_reaches_the_output_by_the_offsets_alone():
    recipe = small(offset_range=1e-12)  # offsets switched off: whatever the organ adds must not show
    shaken(recipe)
    for part in recipe.encoder.blocks:
        part.acdt.anatomy.weight.data.normal_(std=10.0)
    x = torch.randn(1, 1, 32, 32).expand(2, -1, -1, -1)
    with torch.no_grad():
        out = recipe.encoder.tokens(x, torch.eye(16)[[0, 5]])
    assert (out[0] - out[1]).abs().max() < 1e-5


def test_mistake_3_lambda_is_a_number_of_the_last_layer():
    recipe = small(sd=False)
    images, draws = case(recipe)
    terms = recipe.step(images, draws)
    assert terms["lambda"].grad_fn is None and terms["adv"].grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        half = recipe.step(images, draws)
    assert half["lambda"].dtype == torch.float32
    assert half["lambda"].item() == pytest.approx(terms["lambda"].item(), rel=0.1)


def test_mistake_4_sure_discriminators_give_large_losses_not_nan():
    sure = torch.tensor([-200.0, -1000.0])
    assert generator_loss(sure).item() == pytest.approx(600.0)  # -log sigmoid(-200) = 200
    assert discriminator_loss(-sure, sure).item() == 0.0
    assert discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(2))
    logits = torch.tensor([-200.0], requires_grad=True)
    generator_loss(logits).backward()
    assert logits.grad.item() == -1.0  # not saturated where the fakes are found out


def test_mistake_5_light_and_blur_reach_the_teacher_only():
    recipe = small(photometric=1.0, blur=1.0, blur_sigma=(1.0, 1.0))
    images, draws = case(recipe)
    plain = {**draws, "light": torch.ones_like(draws["light"]), "sigma": torch.zeros_like(draws["sigma"])}
    assert (draws["sigma"] > 0).all() and (draws["light"] != 1).all()
    one, two = recipe.step(images, draws), recipe.step(images, plain)
    assert torch.equal(one["mim"], two["mim"]) and torch.equal(one["adv"], two["adv"])
    assert not torch.equal(one["sd"], two["sd"])
    sharp = recipe.views(images, draws)
    assert torch.allclose(relit(sharp, plain["light"], plain["sigma"], 1.0), sharp, atol=1e-6)


def test_mistake_6_temperatures_and_axes_of_the_distillation_loss():
    student, teacher, centre = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.randn(5)
    found = distillation_loss(student, teacher, centre, student_temp=0.1, teacher_temp=0.04)
    total = 0.0
    for t, s in ((0, 1), (1, 0)):
        for b in range(3):
            wanted = ((teacher[t, b] - centre) / 0.04).softmax(0)
            total -= float((wanted * (student[s, b] / 0.1).log_softmax(0)).sum()) / 6
    assert found.item() == pytest.approx(total, rel=1e-5)


def test_mistake_7_the_whole_grid_goes_through_the_encoder():
    recipe = small()
    images, draws = case(recipe)
    lengths: list[int] = []
    recipe.encoder.blocks[0].register_forward_pre_hook(lambda _, x: lengths.append(x[0].shape[1]))
    recipe.step(images, draws)
    assert lengths == [17]  # class token and all 16 patches, hidden ones as the mask embedding


def test_mistake_7_hidden_pixels_do_not_reach_the_student():
    recipe = small(adv=False, sd=False)
    images, draws = case(recipe)
    sharp = recipe.views(images, draws)
    hidden = recipe.masks(draws["noise"])[1]
    label = recipe.labels(4, draws)[1]
    spoiled = sharp.clone()
    spoiled[hidden.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)] = 7.0
    how = {"hidden": hidden, "mask_token": recipe.mask_token}
    with torch.no_grad():
        assert torch.equal(recipe.encoder.tokens(sharp, label, **how), recipe.encoder.tokens(spoiled, label, **how))


def test_mistake_8_the_weights_carry_names_not_only_ids():
    state = small().state_dict()
    assert unpack_names(state["class_names"]) == default_classes()
    assert json.loads(small().facts()["classes"]) == list(default_classes())


def test_mistake_9_offsets_and_taps_learn_from_the_first_steps():
    recipe = small(adv=False, sd=False)
    images, draws = case(recipe)
    recipe.step(images, draws)["loss"].backward()
    for part in recipe.encoder.blocks:
        assert torch.equal(part.acdt.w.data[:, 4], torch.ones(32)) and part.acdt.w.data[:, 0].abs().max() == 0
        assert part.acdt.w.grad.abs().min() > 0  # every tap
        assert part.acdt.offsets.out.weight.grad.abs().max() > 0
