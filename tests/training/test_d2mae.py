"""The D2MAE recipe as the trainer and its users meet it: config, draws, views, pictures, features, export."""

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fakes.speckle import speckle
from pydantic import ValidationError
from safetensors.torch import save_file

from training.masking import gaussian_blur
from training.models.decoders import MaskedDecoder
from training.models.vit import build_vit, unpatchify
from training.recipes import registry
from training.recipes.d2mae import D2MAE, VARIANTS, D2MAEConfig
from usdata.errors import ConfigError

PRESETS = ("micro", "small", "paper")


def micro(**changes: Any) -> D2MAE:
    torch.manual_seed(0)
    return D2MAE(D2MAEConfig(**{**D2MAE.presets["micro"]["recipe"], **changes}))


def case(recipe: D2MAE, n: int = 4) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return speckle(n, size=recipe.cfg.source_size), recipe.draw(n, torch.Generator().manual_seed(1))


# ---- registry and config


def test_the_registry_finds_the_recipe_by_name_and_suggests_the_nearest():
    assert "d2mae" in registry.names()
    assert registry.get("d2mae") == (D2MAE, D2MAEConfig)
    with pytest.raises(ConfigError, match="Did you mean 'd2mae'"):
        registry.get("d2ma")


def test_two_recipes_cannot_share_a_name():
    with pytest.raises(ValueError, match="two recipes"):
        registry.recipe("d2mae", D2MAEConfig)(type("Other", (), {}))


def test_the_recipe_has_the_whole_interface():
    assert isinstance(micro(), registry.Recipe)


@pytest.mark.parametrize(("preset", "variant"), [*itertools.product(PRESETS, VARIANTS)])
def test_every_preset_builds_with_every_variant_and_steps_without_waiting_for_a_device(preset, variant, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no meta device
    cfg = D2MAEConfig(**{**D2MAE.presets[preset]["recipe"], **VARIANTS[variant]})
    with torch.device("meta"):  # holds no values: anything that had to read one would fail
        recipe = D2MAE(cfg)
        images = torch.empty(2, 1, 256, 256, dtype=torch.uint8)
    draws = {name: value.to("meta") for name, value in recipe.draw(2, torch.Generator()).items()}
    terms = recipe.step(images, draws)
    assert {name: tuple(value.shape) for name, value in terms.items()} == dict.fromkeys(
        ("loss", "mse_masked", "mse_visible"), ()
    )


def test_the_paper_preset_is_the_published_setting():
    cfg, run = D2MAEConfig(**D2MAE.presets["paper"]["recipe"]), D2MAE.presets["paper"]["run"]
    assert (cfg.image_size, cfg.channels, cfg.mask_ratio, cfg.loss_on, cfg.norm_pix) == (224, 3, 0.75, "all", False)
    assert (cfg.blur, cfg.embed, cfg.finetune_blur, cfg.obs_step, cfg.decoder_blur) == (
        "levels",
        "token",
        "obs",
        2,
        "keep",
    )
    assert cfg.sigmas == tuple(pytest.approx(0.1 * t) for t in range(1, 12))
    assert (cfg.decoder_width, cfg.decoder_depth, cfg.decoder_heads) == (512, 8, 16)
    assert (run["steps"], run["batch_size"]) == (80_000, 1024)  # steps, not epochs
    assert run["warmup"] * run["steps"] == 400  # 40 epochs of 10 steps


def test_the_baselines_are_the_paper_s():
    deblurr, mae = (D2MAEConfig(**VARIANTS[name]) for name in ("deblurrmae", "mae"))
    assert (deblurr.blur, deblurr.embed, deblurr.loss_on, deblurr.levels) == ("static", "none", "all", (0.0, 1.1))
    assert deblurr.finetune_sigma == deblurr.static_sigma and deblurr.finetune_blur == "fixed"
    assert (mae.blur, mae.embed, mae.loss_on, mae.levels) == ("none", "none", "masked", (0.0,))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"mask_ration": 0.5}, "mask_ration"),
        ({"image_size": 100}, "multiple of patch_size"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"sigmas": (0.3, 0.2)}, "rising"),
        ({"sigmas": ()}, "rising"),
        ({"crop_area": (0.2, 1.5)}, "crop_area"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"decoder_width": 500}, "decoder_heads"),
        ({"blur": "motion"}, "blur"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(bad, message):
    with pytest.raises(ValidationError, match=message):
        D2MAEConfig(**bad)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        D2MAEConfig().mask_ratio = 0.5  # type: ignore[misc]


def test_an_unknown_encoder_is_refused_with_the_nearest_and_one_that_is_no_plain_vit_too():
    with pytest.raises(ConfigError, match="Did you mean 'vit_base_patch16_224"):
        build_vit("vit_base_patch16_22")
    with pytest.raises(ConfigError, match="not a plain ViT"):
        build_vit("resnet18")
    with pytest.raises(ConfigError, match="not a plain ViT"):
        build_vit("vit_small_patch14_reg4_dinov2", img_size=28)


def test_a_mask_that_hides_everything_is_refused_when_the_model_is_built():
    with pytest.raises(ConfigError, match="leaves none of 64"):
        micro(mask_ratio=0.99)


# ---- step


def test_a_step_is_a_pure_function_that_leaves_the_global_random_state_alone():
    recipe = micro()
    images, draws = case(recipe)
    state = torch.get_rng_state()
    first, second = recipe.step(images, draws), recipe.step(images, draws)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_of_a_batch_is_the_mean_over_its_micro_batches():
    recipe = micro(loss_on="masked")
    images, draws = case(recipe)
    halves = [recipe.step(images[h], {k: v[h] for k, v in draws.items()}) for h in (slice(0, 2), slice(2, 4))]
    for name, value in recipe.step(images, draws).items():
        assert value.item() == pytest.approx((halves[0][name] + halves[1][name]).item() / 2, rel=1e-5)


def test_the_loss_is_made_of_its_two_parts():
    recipe = micro()
    terms = recipe.step(*case(recipe))
    assert terms["loss"].item() == pytest.approx(
        0.75 * terms["mse_masked"].item() + 0.25 * terms["mse_visible"].item(), rel=1e-5
    )
    assert terms["loss"].requires_grad and not terms["mse_masked"].requires_grad


def test_the_blurred_view_is_the_sharp_one_blurred_not_a_second_crop():
    recipe = micro()
    images, draws = case(recipe)
    sharp, blurred = recipe.views(images, draws)
    assert torch.equal(blurred, gaussian_blur(sharp, recipe.bank, draws["t"]))


def test_a_level_means_the_same_blur_whatever_the_zoom():
    """Blurred before the crop (an option), the sigma that the network sees grows with the zoom."""
    images, draws = case(micro(source_size=64), n=1)
    draws["t"].fill_(9)
    wide, tight = (draws | {"box": torch.tensor([box])} for box in ([0, 0, 64, 64], [16, 16, 32, 32]))
    changed = {}
    for place in ("crop", "source"):
        recipe = micro(source_size=64, blur_at=place)
        for name, view in (("wide", wide), ("tight", tight)):
            sharp, blurred = recipe.views(images, view)
            again = gaussian_blur(sharp, recipe.bank, view["t"])
            changed[place, name] = (blurred - again).abs().mean().item()
    assert changed["crop", "wide"] == changed["crop", "tight"] == 0.0
    assert changed["source", "wide"] < 1e-6
    assert changed["source", "tight"] > 1e-3


def test_without_blur_the_network_sees_the_sharp_image_and_level_0():
    recipe = micro(**VARIANTS["mae"])
    images, draws = case(recipe)
    sharp, blurred = recipe.views(images, draws)
    assert torch.equal(sharp, blurred)
    assert draws["t"].tolist() == [0] * 4


def test_static_blur_has_one_level():
    recipe = micro(**VARIANTS["deblurrmae"])
    assert case(recipe)[1]["t"].tolist() == [1] * 4
    assert recipe.level_of(1.1) == 1


def test_normalised_targets_have_mean_0_and_variance_1_per_patch():
    recipe = micro(norm_pix=True)
    target = recipe.target(recipe.view(speckle(2)))
    assert target.mean(-1).abs().max() < 1e-4
    assert (target.var(-1) - 1).abs().max() < 1e-2


def test_the_decoder_gets_the_level_token_or_not():
    keep, drop = micro(), micro(decoder_blur="drop")
    assert (keep.decoder.prefix, drop.decoder.prefix) == (2, 1)
    images, draws = case(drop)
    assert drop.predict(drop.view(images), draws["t"]).shape == (4, 64, 64)
    assert torch.isfinite(drop.step(images, draws)["loss"])


def test_a_prediction_belongs_to_its_own_patch_not_to_a_neighbour():
    """One prefix token too few taken away would shift all patches by one."""
    decoder = MaskedDecoder(8, (3, 3), 5, width=16, depth=0, heads=2, prefix=2)  # no attention: each token for itself
    keep = torch.tensor([[7, 2, 4]])
    tokens = torch.randn(1, 5, 8)
    before = decoder(tokens, keep)
    tokens[0, 2 + 1] += 1.0  # the second visible patch, whose place is 2
    changed = (decoder(tokens, keep) - before).abs().sum(-1)[0]
    assert before.shape == (1, 9, 5)
    assert changed.nonzero().flatten().tolist() == [2]


def test_images_that_are_not_as_stored_are_refused():
    recipe = micro()
    draws = case(recipe)[1]
    with pytest.raises(ValueError, match="256, 256"):
        recipe.step(torch.zeros(4, 1, 64, 64, dtype=torch.uint8), draws)
    with pytest.raises(ValueError, match="uint8"):
        recipe.step(torch.zeros(4, 1, 256, 256), draws)


def test_half_precision_autocast_keeps_the_loss_in_float32():
    recipe = micro()
    images, draws = case(recipe)
    expected = recipe.step(images, draws)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = recipe.step(images, draws)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


# ---- pictures


@pytest.mark.parametrize("changes", [{}, {"channels": 3}, {"norm_pix": True}, VARIANTS["mae"]])
def test_pictures_show_every_stage_in_0_to_1(changes):
    recipe = micro(**changes)
    stages = recipe.pictures(*case(recipe))
    assert list(stages) == ["sharp", "blurred", "masked", "reconstruction"]
    for picture in stages.values():
        assert picture.shape == (4, 1, 64, 64) and picture.dtype == torch.float32
        assert picture.min() >= 0 and picture.max() <= 1 and not picture.requires_grad


@pytest.mark.parametrize("changes", [{"channels": 1}, {"channels": 3}, {"channels": 3, "norm_pix": True}])
def test_a_perfect_prediction_is_drawn_as_the_sharp_image(changes):
    recipe = micro(**changes)
    images, draws = case(recipe)
    sharp = recipe.views(images, draws)[0]
    recipe.predict = lambda *_: recipe.target(sharp)  # type: ignore[method-assign]
    stages = recipe.pictures(images, draws)
    assert (stages["reconstruction"] - sharp).abs().max() < 1e-4


def test_hidden_patches_are_mid_grey_and_three_quarters_of_all():
    recipe = micro()
    stages = recipe.pictures(*case(recipe))
    assert (stages["masked"] == 0.5).float().mean().item() == pytest.approx(0.75, abs=0.01)


# ---- features and export


def test_features_are_the_mean_over_patch_outputs():
    recipe = micro().eval()
    images = speckle(3)
    with torch.no_grad():
        tokens = recipe.tokens(recipe.blur(recipe.view(images), torch.full((3,), 5)), torch.full((3,), 5))
        assert tokens.shape == (3, 2 + 64, 64)
        assert torch.allclose(recipe.encode(images, t=5), tokens[:, 2:].mean(1), atol=1e-6)


def test_features_depend_on_the_level_and_each_image_has_its_own():
    recipe = micro().eval()
    images = speckle(3)
    with torch.no_grad():
        together = recipe.encode(images, t=torch.tensor([1, 5, 11]))
        alone = torch.cat([recipe.encode(images[i : i + 1], t=t) for i, t in enumerate((1, 5, 11))])
        assert torch.allclose(together, alone, atol=1e-5)
        assert not torch.allclose(recipe.encode(images, t=11), recipe.encode(images, t=1), atol=1e-4)


@pytest.mark.parametrize("t", [-1, 12])
def test_a_level_that_does_not_exist_is_refused(t):
    with pytest.raises(ConfigError, match=r"0 \.\.\. 11"):
        micro().encode(speckle(1), t=t)
    with pytest.raises(ConfigError, match="No blur level has sigma"):
        micro().level_of(0.55)


@pytest.mark.parametrize("changes", [{}, {"channels": 3}, {"embed": "add"}, {"eval_view": "whole"}, VARIANTS["mae"]])
def test_timm_loads_the_export_strictly_and_computes_the_same_features(tmp_path, changes):
    import timm

    recipe = micro(**changes).eval()
    state, meta = recipe.encoder_export()
    assert not any("level" in name for name in state)  # the level embedding is not a ViT's
    path = tmp_path / "encoder.safetensors"
    save_file(state, path)
    vit = timm.create_model(meta["model_name"], **meta["model_args"], checkpoint_path=str(path)).eval()
    images = speckle(2)
    with torch.no_grad():
        x = recipe.network_input(images)
        assert list(x.shape[1:]) == meta["input_size"]
        assert torch.allclose(vit(x), recipe.encode(images), atol=1e-5)
        assert torch.allclose(vit.forward_features(x)[:, 0], recipe.tokens(recipe.view(images), None)[:, 0], atol=1e-5)


def test_an_export_with_a_key_missing_does_not_load(tmp_path):
    import timm

    state, meta = micro().encoder_export()
    state.pop("pos_embed")
    save_file(state, tmp_path / "encoder.safetensors")
    with pytest.raises(RuntimeError, match="pos_embed"):
        timm.create_model(
            meta["model_name"], **meta["model_args"], checkpoint_path=str(tmp_path / "encoder.safetensors")
        )


def test_the_export_shares_no_memory_with_the_model():
    recipe = micro()
    state = recipe.encoder_export()[0]
    before = state["cls_token"].clone()
    with torch.no_grad():
        recipe.encoder.cls_token.add_(1.0)
    assert torch.equal(state["cls_token"], before)


def test_the_level_token_has_no_position_so_the_encoder_keeps_n_plus_1_rows():
    recipe = micro()
    assert recipe.encoder.pos_embed.shape == (1, 1 + 64, 64)
    assert recipe.encoder.pos_embed[0, 0].abs().max() == 0
    assert not recipe.encoder.pos_embed.requires_grad


def test_weights_load_back_strictly_and_not_into_another_size():
    recipe, twin = micro(), micro(mask_ratio=0.5)
    twin.load_state_dict(recipe.state_dict(), strict=True)
    assert not any(name.startswith(("bank", "mean", "std")) for name in recipe.state_dict())
    with pytest.raises(RuntimeError, match="pos_embed"):
        micro(image_size=32).load_state_dict(recipe.state_dict(), strict=True)


def test_the_first_weights_are_maes():
    recipe = micro(encoder_width=64)
    qkv = recipe.encoder.blocks[0].attn.qkv.weight
    assert qkv.abs().max().item() == pytest.approx((6 / (64 + 192)) ** 0.5, rel=0.02)  # Xavier-uniform
    patch = recipe.encoder.patch_embed.proj.weight
    assert patch.abs().max().item() == pytest.approx((6 / (64 + 64)) ** 0.5, rel=0.02)  # as a Linear of 8 * 8 -> 64
    assert recipe.encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.4)
    assert recipe.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.4)
    assert all(p.abs().max() == 0 for n, p in recipe.named_parameters() if n.endswith(".bias"))


def test_unpatchify_refuses_a_number_that_is_no_square():
    with pytest.raises(ValueError, match="no square grid"):
        unpatchify(torch.zeros(1, 3, 4), 2, 1)
