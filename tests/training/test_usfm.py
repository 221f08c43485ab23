"""The USFM recipe as the trainer and its users meet it, and the mistakes of official code (paper, section 8)."""

import itertools
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from fakes.speckle import speckle
from fakes.training_fakes import FakeCohort
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training import watch
from training.checkpoint import load_encoder, load_state
from training.config import resolve
from training.downstream.label_subsets import label_subset
from training.losses_frequency import focal_frequency, pixel_l1
from training.masking_frequency import band_map, band_stop, log_spectrum, removed_share, ring_edges
from training.masking_spatial import dual_mask, enlarge, lowest, masked_blocks
from training.models.beit import TABLE, beit_arguments, build_beit
from training.recipes import registry
from training.recipes.usfm import USFM, VARIANTS, USFMConfig
from training.runlog import read
from training.train import pretrain
from training.usfm_augment import relight, rotate
from usdata.errors import ConfigError
from usdata.sampling import BalancedSampler

PRESETS = ("micro", "small", "paper")
TERMS = ("loss", "l1", "focal", "l1_masked", "l1_visible", "removed")


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def micro(**changes: Any) -> USFM:
    torch.manual_seed(0)
    return USFM(USFMConfig(**{**USFM.presets["micro"]["recipe"], **changes}))


def case(recipe: USFM, n: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    return speckle(n, size=recipe.cfg.source_size), recipe.draw(n, seeded())


# ---- registry and config


def test_the_registry_finds_the_recipe_and_it_has_the_whole_interface():
    assert registry.get("usfm") == (USFM, USFMConfig)
    assert isinstance(micro(), registry.Recipe)


@pytest.mark.parametrize(("preset", "variant"), [*itertools.product(PRESETS, VARIANTS)])
def test_every_preset_builds_with_every_variant_and_steps_without_waiting_for_a_device(preset, variant, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no meta device
    changes = VARIANTS[variant].get("recipe", {})
    cfg = USFMConfig(**{**USFM.presets[preset]["recipe"], **changes})
    with torch.device("meta"):  # holds no values: anything that had to read one would fail
        recipe = USFM(cfg)
        images = torch.empty(2, 1, 256, 256, dtype=torch.uint8)
    draws = {name: value.to("meta") for name, value in recipe.draw(2, torch.Generator()).items()}
    terms = recipe.step(images, draws)
    assert {name: tuple(value.shape) for name, value in terms.items()} == dict.fromkeys(TERMS, ())


@pytest.mark.parametrize(("preset", "variant"), [*itertools.product(PRESETS, VARIANTS)])
def test_the_trainer_accepts_every_preset_with_every_variant(preset, variant):
    parts = VARIANTS[variant]
    sets = [f"{key}={'null' if value is None else value}" for part in parts.values() for key, value in part.items()]
    assert resolve("usfm", preset, sets=sets).recipe == "usfm"


def test_the_paper_preset_is_the_published_setting():
    cfg, run = USFMConfig(**USFM.presets["paper"]["recipe"]), resolve("usfm", "paper")
    assert (cfg.image_size, cfg.channels, cfg.mask_ratio, cfg.bands, cfg.bands_masked) == (224, 3, 0.4, 7, 2)
    assert (cfg.lambda_spa, cfg.lambda_freq, cfg.focal_alpha, cfg.loss_on) == (1.0, 0.4, 1.0, "all")
    assert (cfg.encoder, cfg.pos, cfg.layer_scale, cfg.protect) == ("beit_base_patch16_224", "rel_shared", 0.1, 5)
    assert run.steps == round(200 * 2_187_915 / 2048)
    assert run.peak_lr == pytest.approx(1e-4 * 2048 / 512)
    assert run.min_lr == pytest.approx(5e-6 * 2048 / 512)
    assert (run.warmup, run.weight_decay, run.betas, run.clip_grad) == (10 / 200, 0.05, (0.9, 0.999), 5.0)


def test_without_the_frequency_part_only_the_l1_and_the_blocks_are_left():
    cfg = USFMConfig(**VARIANTS["woF"]["recipe"])
    assert (cfg.bands_masked, cfg.lambda_freq, cfg.mask_ratio) == (0, 0.0, 0.4)
    recipe = micro(**VARIANTS["woF"]["recipe"])
    images, draws = case(recipe)
    sharp = recipe.views(images, draws)
    assert recipe.corrupt(sharp, draws)[0] is sharp
    assert recipe.step(images, draws)["removed"].item() == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"mask_ration": 0.5}, "mask_ration"),
        ({"image_size": 100}, "divide image_size"),
        ({"block_size": 24}, "multiple of patch_size"),
        ({"block_size": 8}, "multiple of patch_size"),  # smaller than a patch
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"bands_masked": 8}, "more than the 7 bands"),
        ({"encoder": "vit_base_patch16_224"}, "pos=abs"),
        ({"crop_area": (0.2, 1.5)}, "crop_area"),
        ({"light": (1.2, 0.8)}, "light"),
        ({"blur_sigma": (-1.0, 1.0)}, "blur_sigma"),
        ({"spacing": "log"}, "spacing"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(bad, message):
    with pytest.raises(ValidationError, match=message):
        USFMConfig(**bad)


def test_an_encoder_that_is_no_beit_or_not_known_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'beit_base_patch16_224"):
        build_beit("beit_base_patch16_22")
    with pytest.raises(ConfigError, match="no BEiT"):
        micro(encoder="deit_tiny_patch16_224", pos="abs", encoder_width=None, encoder_heads=None, encoder_depth=None)


def test_masks_that_leave_nothing_are_refused_when_the_model_is_built():
    with pytest.raises(ConfigError, match="leaves none of 16"):
        micro(mask_ratio=0.99)
    with pytest.raises(ConfigError, match="no room for 7 rings") as caught:
        micro(protect=5)
    assert "--set protect=4" in caught.value.hint
    with pytest.raises(ValueError, match="no square grid"):
        enlarge(torch.zeros(1, 3), 2)


def test_layer_scale_none_leaves_the_scales_out():
    """timm drops arguments that are None, so the model's own 0.1 would have stayed."""
    assert micro(layer_scale=None).encoder.blocks[0].gamma_1 is None
    assert micro(layer_scale=0.1).encoder.blocks[0].gamma_1.unique().tolist() == [pytest.approx(0.1)]


# ---- the masks' edges


def test_ring_edges_can_be_spaced_in_three_ways():
    assert ring_edges(224, spacing="geometric") == pytest.approx((5, 7.8, 12.2, 19.0, 29.5, 46.1, 71.8, 112), abs=0.05)
    expected = (5, 42.6, 60.0, 73.4, 84.7, 94.7, 103.7, 112)
    assert ring_edges(224, spacing="equal_area") == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("size", [64, 128, 224])
def test_rings_of_equal_area_hold_about_equally_many_bins(size):
    edges = ring_edges(size, protect=2, spacing="equal_area")
    counts = band_map(size, edges, 2).flatten().bincount(minlength=8)[:7]
    assert counts.max() < 1.2 * counts.min()


def test_the_share_taken_of_a_flat_image_is_0_and_a_pure_wave_loses_all():
    rings, one = band_map(64, ring_edges(64, protect=2), 2), torch.zeros(1, 7, dtype=torch.bool)
    one[0, 1] = True  # 4.57 < r <= 9.14
    flat = torch.full((1, 1, 64, 64), 0.5)
    assert removed_share(flat, band_stop(flat, one, rings)).item() < 1e-6
    wave = 0.5 + 0.4 * torch.cos(2 * torch.pi * 7 * torch.arange(64) / 64).expand(1, 1, 64, 64)
    assert removed_share(wave, band_stop(wave, one, rings)).item() == pytest.approx(1.0, abs=1e-5)


def test_clamping_is_an_option_and_brings_the_removed_rings_back():
    recipe, clamped = micro(), micro(clamp=True)
    images, draws = case(recipe)
    sharp = recipe.views(images, draws)
    free, cut = recipe.corrupt(sharp, draws)[0], clamped.corrupt(sharp, draws)[0]
    assert free.min() < 0
    assert (cut.min() >= 0) and (cut.max() <= 1)
    again = [(band_stop(x, draws["bands"], recipe.rings) - x).abs().max().item() for x in (free, cut)]
    assert again[0] < 1e-5 < 1e-3 < again[1]


def test_the_masked_l1_needs_its_mask():
    with pytest.raises(ValueError, match="needs the mask"):
        pixel_l1(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "masked")


# ---- augmentation


def test_a_quarter_turn_is_torchs_and_angle_0_changes_no_bit():
    images = torch.rand(3, 1, 16, 16, generator=seeded())
    turned = rotate(images, torch.tensor([0.0, torch.pi / 2, -torch.pi / 2]))
    assert torch.equal(turned[0], images[0])
    assert (turned[1] - images[1].rot90(1, (-2, -1))).abs().max() < 1e-4  # counter-clockwise
    assert (turned[2] - images[2].rot90(-1, (-2, -1))).abs().max() < 1e-4


def test_what_turns_in_from_outside_is_black():
    turned = rotate(torch.ones(1, 1, 64, 64), torch.tensor([torch.pi / 4]))
    assert turned[0, 0, 0, 0] == 0
    assert turned[0, 0, 32, 32].item() == pytest.approx(1.0)


def test_light_scales_the_image_then_its_contrast_and_factors_of_1_change_no_bit():
    images = torch.rand(2, 1, 8, 8, generator=seeded()) / 2
    assert torch.equal(relight(images, torch.ones(2), torch.ones(2)), images)
    lit = relight(images, torch.tensor([1.2, 1.0]), torch.tensor([1.0, 0.8]))
    assert torch.allclose(lit[0], images[0] * 1.2)
    assert lit[1].mean().item() == pytest.approx(images[1].mean().item(), abs=1e-6)
    assert lit[1].std().item() == pytest.approx(0.8 * images[1].std().item(), rel=1e-4)


def test_the_draws_stay_in_their_ranges_and_come_as_often_as_the_config_says():
    draws = micro(source_size=64).draw(20_000, seeded())
    turned, soft = draws["angle"] != 0, draws["sigma"] != 0
    assert draws["angle"].abs().max().item() == pytest.approx(torch.pi / 6, rel=1e-3)
    assert draws["sigma"][soft].min() >= 0.1 and draws["sigma"].max() <= 1.0
    for name in ("brightness", "contrast"):
        assert draws[name].min() >= 0.8 and draws[name].max() <= 1.2
    lit = draws["brightness"] != 1
    assert [x.float().mean().item() for x in (turned, soft, lit, draws["flip"])] == pytest.approx(
        [0.5, 0.2, 0.5, 0.5], abs=0.02
    )


def test_the_augmented_crop_is_what_must_be_rebuilt():
    recipe = micro()
    images, draws = case(recipe)
    draws["sigma"].fill_(1.0)
    answer = recipe.normalise(recipe.views(images, draws))
    recipe.predict = lambda *_: answer  # type: ignore[method-assign]
    assert recipe.step(images, draws)["loss"].item() == 0.0


# ---- step


def test_a_step_is_a_pure_function_that_leaves_the_global_random_state_alone():
    recipe = micro(drop_path=0.5)
    images, draws = case(recipe)
    state = torch.get_rng_state()
    first, second = recipe.step(images, draws), recipe.step(images, draws)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = draws | {"depth": draws["depth"].flip(0)}
    assert recipe.step(images, other)["loss"] != first["loss"]


@pytest.mark.parametrize("changes", [{}, {"loss_on": "masked"}, {"drop_path": 0.5}])
def test_the_loss_of_a_batch_is_the_mean_over_its_micro_batches(changes):
    recipe = micro(**changes)
    images, draws = case(recipe)
    halves = [recipe.step(images[h], {k: v[h] for k, v in draws.items()}) for h in (slice(0, 2), slice(2, 4))]
    for name, value in recipe.step(images, draws).items():
        assert value.item() == pytest.approx((halves[0][name] + halves[1][name]).item() / 2, rel=1e-5)


def test_a_dropped_branch_adds_nothing_and_a_kept_one_is_scaled():
    recipe = micro(drop_path=0.5)  # at the last of two blocks; 0 at the first
    block, x = recipe.encoder.blocks[1], torch.randn(2, 5, 64, generator=seeded())
    recipe.predict(torch.zeros(2, 1, 64, 64), torch.tensor([[0.0, 0.0, 0.4, 0.6], [0.0, 0.0, 0.6, 0.4]]))
    with torch.no_grad():
        attended = x[1:] + 2 * block.gamma_1 * block.attn(block.norm1(x[1:]))
        mixed = x[:1] + 2 * block.gamma_2 * block.mlp(block.norm2(x[:1]))
        assert torch.allclose(block(x), torch.cat([mixed, attended]), atol=1e-5)
        block.eval()
        assert not torch.allclose(block(x)[1:], attended, atol=1e-3)  # nothing is dropped after training


def test_three_channels_are_one_grey_image_masked_once():
    recipe = micro(channels=3)
    images, draws = case(recipe)
    sharp = recipe.views(images, draws)
    masked = recipe.normalise(recipe.corrupt(sharp, draws)[1])
    colour = recipe.normalise(sharp)  # masking each normalised channel on its own gives the same
    hidden = enlarge(draws["blocks"], 16)
    expected = dual_mask(colour, band_stop(colour, draws["bands"], recipe.rings), hidden)
    assert masked.shape == (4, 3, 64, 64)
    assert (masked - expected).abs().max() < 1e-4


def test_losses_on_0_to_1_are_the_normalised_ones_scaled():
    normalised, unit = micro(), micro(loss_units="unit")
    images, draws = case(normalised)
    one, other = normalised.step(images, draws), unit.step(images, draws)
    assert other["l1"].item() == pytest.approx(0.226 * one["l1"].item(), rel=1e-4)
    assert other["focal"].item() == pytest.approx(0.226**2 * one["focal"].item(), rel=1e-3)


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 256, 256), torch.zeros(2, 3, 256, 256, dtype=torch.uint8)])
def test_images_that_are_not_stored_ones_are_refused(images):
    with pytest.raises(ValueError, match="images must be"):
        micro().encode(images)


def test_every_trainable_parameter_is_in_one_group_and_norms_positions_and_tables_are_not_decayed():
    for changes in ({}, {"pos": "abs"}, {"decay_tables": True}, VARIANTS["vit"]["recipe"]):
        recipe = micro(**changes)
        groups = {group["name"]: group for group in recipe.param_groups(0.05)}
        ids = [id(p) for group in groups.values() for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in recipe.parameters())
        names = {id(p): name for name, p in recipe.named_parameters()}
        free = {names[id(p)] for p in groups["no_decay"]["params"]}
        assert {"encoder.cls_token", "encoder.norm.weight", "decoder.0.bias"} <= free
        assert ("encoder.pos_embed" in free) == (recipe.cfg.pos == "abs")
        assert (f"encoder.rel_pos_bias.{TABLE}" in free) == (changes == {})
        assert [groups[name]["weight_decay"] for name in ("decay", "no_decay")] == [0.05, 0.0]


def test_every_parameter_is_trained():
    recipe = micro(drop_path=0.5)
    recipe.step(*case(recipe))["loss"].backward()
    assert [name for name, p in recipe.named_parameters() if p.grad is None or not p.grad.any()] == []


# ---- pictures, features, export


@pytest.mark.parametrize("changes", [{}, {"channels": 3, "drop_path": 0.5}])
def test_pictures_show_image_masks_rebuilt_and_their_spectra(changes):
    recipe = micro(**changes).eval()
    images, draws = case(recipe, 2)
    stages = recipe.pictures(images, draws)
    names = ["image", "band-stop", "both masks", "rebuilt"]
    assert list(stages) == [*names, "spectrum", *[f"its {name}" for name in names[1:]]]
    for value in stages.values():
        assert value.shape == (2, 1, 64, 64) and value.dtype == torch.float32
        assert (value >= 0).all() and (value <= 1).all()
    assert stages["spectrum"].amax((-2, -1)).tolist() == [[1.0], [1.0]]
    assert stages["spectrum"].flatten(1).argmax(1).tolist() == [64 * 32 + 32] * 2  # zero frequency in the middle
    dark = stages["its band-stop"] < 1e-3
    assert (dark.flatten(1).sum(1) > 100).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": 3},
        {"pos": "abs"},
        {"layer_scale": None},
        {"drop_path": 0.5, "eval_view": "centre"},
        VARIANTS["vit"]["recipe"],
    ],
)
def test_timm_loads_the_export_strictly_and_computes_the_same_features(tmp_path, changes):
    import timm

    recipe = micro(**changes)
    if changes.get("pos") != "abs":
        nn.init.normal_(recipe.encoder.rel_pos_bias.relative_position_bias_table)
    state, meta = recipe.eval().encoder_export()
    save_file(state, tmp_path / "encoder.safetensors")
    path = str(tmp_path / "encoder.safetensors")
    model: Any = timm.create_model(meta["model_name"], **meta["model_args"], checkpoint_path=path).eval()
    images = speckle(2)
    with torch.no_grad():
        x = recipe.network_input(images)
        assert list(x.shape[1:]) == meta["input_size"]
        assert torch.allclose(model(x), recipe.encode(images), atol=1e-5)


def test_features_do_not_depend_on_the_class_tokens_output_nor_on_the_mode():
    recipe = micro(drop_path=0.5)
    images = speckle(2)
    recipe.step(*case(recipe))  # leaves its coins behind
    with torch.no_grad():
        training, features = recipe.train().encode(images), recipe.eval().encode(images)
        tokens = recipe.encoder.forward_features(recipe.network_input(images))
    assert features.shape == (2, 64)
    assert torch.allclose(features, tokens[:, 1:].mean(1))
    assert torch.equal(training, features)  # and no coin is left over from the step's batch of four


def test_the_export_shares_no_memory_with_the_model():
    recipe = micro()
    state = recipe.encoder_export()[0]
    tables = [value for name, value in state.items() if name.endswith(TABLE)]
    before = state["cls_token"].clone()
    with torch.no_grad():
        recipe.encoder.cls_token.add_(1.0)
    assert torch.equal(state["cls_token"], before)
    assert len({table.data_ptr() for table in tables}) == 2


# ---- with the trainer


def run(out, *sets, **how):
    sets = ("steps=4", "batch_size=8", "log_every=2", "checkpoint_every=100", *sets)
    return pretrain(FakeCohort(), resolve("usfm", "micro", sets=sets), out, **how)


def test_a_run_leaves_log_weights_and_pictures_that_can_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "read_images", lambda cohort, places: cohort.images()[places])
    assert run(tmp_path / "run", "pictures_every=4", "drop_path=0.2", "optimiser=adam", "weight_decay=0").finished
    assert {*TERMS, "grad_norm", "lr"} <= read(tmp_path / "run" / "log.jsonl", "step")[-1].keys()
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 2
    images = speckle(2)
    recipe = load_encoder(tmp_path / "run")
    assert recipe.cfg.optimiser == "adam"
    with torch.no_grad():
        assert recipe.encode(images).isfinite().all()
    assert any(name.endswith(TABLE) for name in load_file(tmp_path / "run" / "encoder.safetensors"))


@pytest.mark.recipes
@pytest.mark.parametrize("sets", [(), ("drop_path=0.5", "channels=3")])
def test_a_run_stopped_and_resumed_has_the_uninterrupted_weights_bit_for_bit(tmp_path, sets):
    run(tmp_path / "whole", "steps=6", *sets)
    for _ in range(6):  # each call does one step
        last = run(tmp_path / "parts", "steps=6", *sets, max_hours=0, resume=True)
    assert last.finished
    one, two = (load_state(tmp_path / name / "checkpoint" / "last.pt") for name in ("whole", "parts"))
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    moments = [state["optimisers"]["main"]["state"] for state in (one, two)]
    assert all(torch.equal(moments[0][i][k], moments[1][i][k]) for i in moments[0] for k in moments[0][i])
    losses = [[r["loss"] for r in read(tmp_path / name / "log.jsonl", "step")] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.recipes
@pytest.mark.parametrize("setting", ["grad_checkpointing=true", "accumulate=4"])
def test_recomputing_and_accumulating_change_nothing_but_rounding(tmp_path, setting):
    run(tmp_path / "a", "drop_path=0.5", "warmup=0")
    run(tmp_path / "b", "drop_path=0.5", "warmup=0", setting)
    losses = [[r["loss"] for r in read(tmp_path / name / "log.jsonl", "step")] for name in "ab"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# ---- mistakes seen in official code, or likely (paper, section 8)


def test_mistake_1_the_real_part_is_kept_not_the_modulus():
    """Of normalised images nearly all pixels are negative: their modulus would flip them."""
    rings, bands = band_map(64, ring_edges(64, protect=2), 2), lowest(torch.rand(2, 7, generator=seeded()), 2)
    x = (speckle(2, size=64).float() / 255 - 0.449) / 0.226
    filtered = band_stop(x, bands, rings)
    assert (x < 0).float().mean() > 0.5
    assert ((filtered < 0) == (x < 0)).float().mean() > 0.75
    grey = band_stop(x * 0.226 + 0.449, bands, rings)
    assert torch.allclose(filtered * 0.226 + 0.449, grey, atol=1e-5)  # linear; a modulus is not


def test_mistake_2_the_protected_centre_is_symmetric_and_holds_the_papers_10_by_10():
    rings = band_map(224, ring_edges(224), 5)
    rows, columns = torch.arange(-6, 7), torch.arange(7)
    kept = rings[rows % 224][:, columns] == 7
    assert kept.equal(kept.flip(0))
    assert kept[1:12, :6].all()  # |u| <= 5 and |v| <= 5; a disc of radius 5 would lose 21 of the 10 x 10
    assert not kept[0].any() and not kept[:, 6].any()


def test_mistake_3_nothing_is_shifted_over_the_batch():
    images, bands = speckle(3, size=64).float() / 255, lowest(torch.rand(3, 7, generator=seeded()), 2)
    rings = band_map(64, ring_edges(64, protect=2), 2)
    together = band_stop(images, bands, rings)
    assert not bands[0].equal(bands[1])
    for i in range(3):
        assert torch.allclose(together[i], band_stop(images[i : i + 1], bands[i : i + 1], rings)[0], atol=1e-6)
        assert torch.allclose(log_spectrum(images)[i], log_spectrum(images[i : i + 1])[0], atol=1e-6)


def test_mistakes_4_and_8_a_groups_scale_acts_and_acts_once(tmp_path, monkeypatch):
    plain = USFM.param_groups

    def scaled(self: USFM, weight_decay: float) -> list[dict[str, Any]]:
        assert not any({"lr", "lr_scale"} & group.keys() for group in plain(self, weight_decay))
        slow = list(self.decoder.parameters())
        fast = [p for p in self.parameters() if all(p is not s for s in slow)]
        return [
            {"name": "slow", "params": slow, "weight_decay": 0.0, "lr_scale": 0.25},
            {"name": "fast", "params": fast, "weight_decay": 0.0},
        ]

    monkeypatch.setattr(USFM, "param_groups", scaled)
    run(tmp_path / "none", "steps=1", "warmup=0", "lr=0")
    run(tmp_path / "one", "steps=1", "warmup=0", "lr=0.01")
    before, after = (load_file(tmp_path / name / "recipe.safetensors") for name in ("none", "one"))
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert moved["encoder.norm.weight"] == pytest.approx(0.01, rel=1e-2)  # Adam's first step is the rate itself
    assert moved["decoder.0.weight"] == pytest.approx(0.0025, rel=1e-2)


def test_mistake_4_timm_gives_the_exported_blocks_the_papers_scales_and_no_rates():
    import timm
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        model: Any = timm.create_model("beit_base_patch16_224", **beit_arguments("rel_shared", 0.1, per_block=True))
    groups = param_groups_layer_decay(model, layer_decay=0.65)
    assert not any("lr" in group for group in groups)
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales == pytest.approx([0.65 ** (13 - layer) for layer in range(14)])
    names = {id(p): name for name, p in model.named_parameters()}
    lowest_names = {names[id(p)] for group in groups if group["lr_scale"] == scales[0] for p in group["params"]}
    assert lowest_names == {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_mistake_6_images_come_shuffled_and_an_accumulation_of_0_is_refused():
    rows = BalancedSampler(np.zeros(1000, np.int64), 0.5, seed=0).draw(0, 0, 1000)
    assert (np.diff(rows) < 0).mean() > 0.4
    with pytest.raises(ConfigError, match="accumulate"):
        resolve("usfm", "micro", sets=["accumulate=0"])


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_mistake_7_weights_that_fit_only_in_part_are_refused(tmp_path, change):
    import timm

    state, meta = micro().encoder_export()
    if change == "missing":
        state.pop(f"blocks.1.attn.{TABLE}")
    else:
        state["blocks.1.attn.k_bias"] = torch.zeros(64)
    save_file(state, tmp_path / "encoder.safetensors")
    with pytest.raises(RuntimeError, match=r"blocks\.1\.attn"):
        timm.create_model(
            meta["model_name"], **meta["model_args"], checkpoint_path=str(tmp_path / "encoder.safetensors")
        )


def test_mistake_9_masks_come_from_the_generator_alone_and_differ_between_images_steps_and_ranks():
    recipe = micro(drop_path=0.5)
    state = torch.get_rng_state()
    draws, again, later = (recipe.draw(64, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert {len(value) for value in draws.values()} == {64}
    for name, value in draws.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, later[name])
        assert not torch.equal(value[:32], value[32:])  # two ranks' rows


def test_mistake_10_transforms_and_losses_stay_in_float32_under_autocast():
    recipe = micro()
    images, draws = case(recipe)
    sharp = recipe.views(images, draws)
    pred = recipe.predict(recipe.normalise(sharp)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(recipe.views(images, draws), sharp)
        assert torch.equal(recipe.corrupt(sharp, draws)[1], recipe.corrupt(sharp, draws)[1].float())
        low, rough = recipe.predict(recipe.normalise(sharp)), recipe.step(images, draws)
        focal = focal_frequency(low, recipe.normalise(sharp))
    assert low.dtype == torch.bfloat16 and focal.dtype == torch.float32
    assert torch.equal(recipe.corrupt(sharp, draws)[0], band_stop(sharp, draws["bands"], recipe.rings))
    assert focal.item() == pytest.approx(focal_frequency(low.float(), recipe.normalise(sharp)).item(), rel=1e-6)
    assert rough["loss"].item() == pytest.approx(recipe.step(images, draws)["loss"].item(), rel=0.02)
    assert (low.float() - pred).abs().max() < 0.1


# ---- label subsets


def test_a_share_that_makes_no_sense_is_refused_and_a_rare_class_keeps_one_image():
    assert len(label_subset(["a"] * 100 + ["b"], 0.01)) == 2
    with pytest.raises(ConfigError, match="share is 0"):
        label_subset(["a"], 0.0)
    with pytest.raises(ConfigError, match="2 labels, but 1 groups"):
        label_subset(["a", "b"], 0.5, groups=["p"])


def test_counting_blocks_is_not_fooled_by_rounding_errors():
    assert [masked_blocks(100, 0.07), masked_blocks(25, 0.4), masked_blocks(49, 0.0)] == [7, 10, 0]
