"""The TUSA recipe as the trainer and its users meet it: config, draws, views, terms, pictures, features, export."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.speckle import speckle
from fakes.training_fakes import FakeCohort
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from training.checkpoint import load_encoder, load_state
from training.config import resolve
from training.models.perceptual import PerceptualConfig, PerceptualWarning, build_perceptual
from training.models.texture import TextureHead
from training.recipes import registry
from training.recipes.tusa import TUSA, TUSAConfig
from training.runlog import read
from training.train import pretrain
from training.wrapping import recompute
from usdata.errors import ConfigError

ROOT = Path(__file__).parents[2]
TERMS = {"l1", "ssim", "logit", "contrast", "entropy"}
OFF = dict.fromkeys(("l1", "ssim", "lpips", "logit", "contrast", "entropy"), 0.0)

pytestmark = pytest.mark.filterwarnings("ignore::training.models.perceptual.PerceptualWarning")


def micro(**changes: Any) -> TUSA:
    torch.manual_seed(0)
    return TUSA(TUSAConfig(**{**TUSA.presets["micro"]["recipe"], "source_size": 64, **changes}))


def case(recipe: TUSA, n: int = 2) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return speckle(n, size=recipe.cfg.source_size), recipe.draw(n, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def shared() -> TUSA:
    """For tests that change no weight."""
    return micro().eval()


# ---- registry and config


def test_the_registry_finds_the_recipe_and_it_has_the_whole_interface(shared):
    assert "tusa" in registry.names()
    assert registry.get("tusa") == (TUSA, TUSAConfig)
    assert isinstance(shared, registry.Recipe)


def test_asking_for_the_recipes_names_imports_no_monai():
    code = "import sys; from training.recipes import registry; registry.names(); print('monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "False", done.stderr[-2000:]


def test_the_paper_preset_is_the_published_setting():
    cfg, run = TUSAConfig(**TUSA.presets["paper"]["recipe"]), TUSA.presets["paper"]["run"]
    assert (cfg.image_size, cfg.textures, cfg.activation, cfg.network) == (128, 5, "sparsemax", "paper")
    assert (cfg.kernel_size, cfg.target, cfg.positives, cfg.temperature) == (7, "clean", "image", 0.5)
    assert (cfg.lpips.kind, cfg.entropy_source, cfg.latent, cfg.proj_head) == ("radimagenet", "sparsemax", "gap", "mlp")
    assert cfg.weights.model_dump() == {
        "l1": 1.0,
        "ssim": 1.0,
        "lpips": 0.5,
        "logit": 0.1,
        "contrast": 0.1,
        "entropy": 0.01,
    }
    assert (run["batch_size"], run["lr"], run["min_lr"], run["warmup"]) == (32, 1e-4, 1e-6, 0.0)
    assert (run["gamma"], run["epoch_size"], run["clip_grad"], run["weight_decay"]) == (0.0, 10_000, 1.0, 0.01)


@pytest.mark.parametrize("preset", ["micro", "small", "paper"])
def test_every_preset_resolves_and_nested_keys_can_be_set(preset):
    cfg = resolve("tusa", preset, sets=["lpips.kind=random", "weights.entropy=0", "textures=3", "views.rotate=5"])
    own = TUSAConfig(**cfg.recipe_config)
    assert (own.lpips.kind, own.weights.entropy, own.weights.l1, own.textures) == ("random", 0.0, 1.0, 3)
    assert (own.views.rotate, own.views.flip) == (5.0, 0.5)
    assert json.loads(json.dumps(cfg.recipe_config)) == cfg.recipe_config


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"textures": 1}, "same flat grey"),
        ({"kernel": 3}, "kernel"),
        ({"kernel_size": 4}, "odd"),
        ({"image_size": 100}, "multiple of 32"),
        ({"image_size": 32}, "greater than or equal to 64"),
        ({"network": "papr"}, "Did you mean 'paper'"),
        ({"weights": OFF}, "all terms of the loss are off"),
        ({"weights": {"l2": 1.0}}, "l2"),
        ({"weights": {"l1": -1.0}}, "greater than or equal to 0"),
        ({"lpips": {"kind": "vgg"}}, "kind"),
        ({"lpips": {"sha256": "abc"}}, "sha256"),
        ({"temperature": 0.0}, "temperature"),
        ({"views": {"area": (0.5, 1.5)}}, "shares of the image"),
        ({"views": {"sigma": (2.0, 1.0)}}, "smallest, largest"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(bad, message):
    with pytest.raises(ValidationError, match=message):
        TUSAConfig(**bad)


def test_sizes_that_the_network_cannot_have_are_refused():
    with pytest.raises(ConfigError, match="feature_size 20"):
        micro(feature_size=20)
    with pytest.raises(ConfigError, match="heads"):
        micro(heads=(5, 6, 12, 24))


# ---- step


def test_a_step_is_a_pure_function_that_leaves_the_global_random_state_alone(shared):
    images, draws = case(shared)
    state = torch.get_rng_state()
    first, second = shared.step(images, draws), shared.step(images, draws)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_term_is_logged_raw_and_weighted_and_the_loss_is_their_sum(shared):
    terms = shared.step(*case(shared))
    weighted = {f"weighted/{name}" for name in TERMS}
    assert terms.keys() == {"loss", "textures_used", "support"} | TERMS | weighted
    for name in TERMS:
        weight = getattr(shared.cfg.weights, name)
        assert terms[f"weighted/{name}"].item() == pytest.approx(weight * terms[name].item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx(sum(terms[name].item() for name in weighted), rel=1e-5)
    assert [name for name, value in terms.items() if value.requires_grad and name not in TERMS] == ["loss"]
    assert 1 <= terms["textures_used"] <= 5 and 1 <= terms["support"] <= 5


def test_at_first_all_channels_are_in_use_and_the_terms_have_the_expected_size(shared):
    terms = shared.step(*case(shared, n=4))
    assert terms["textures_used"] > 4.5 and terms["support"] > 4.5  # none is born dead
    assert terms["contrast"].item() == pytest.approx(torch.tensor(15.0).log().item(), abs=0.2)
    assert terms["logit"] < 0.1


@pytest.mark.parametrize("term", sorted(TERMS))
def test_each_term_alone_can_be_trained_and_reaches_every_parameter_that_is_offered(term):
    """A parameter without a gradient would stop DDP."""
    recipe = micro(weights={**OFF, term: 1.0})
    terms = recipe.step(*case(recipe))
    assert TERMS & terms.keys() == {term}
    terms["loss"].backward()
    listed = [p for group in recipe.param_groups(0.01) for p in group["params"]]
    assert len(listed) > 10 and all(p.grad is not None for p in listed)
    assert all(p.grad is None for p in recipe.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    "changes",
    [
        {"textures": 2},
        {"textures": 8},
        {"kernel_size": 3},
        {"kernel_size": 11},
        {"activation": "softmax"},
        {"positives": "pairwise"},
        {"positives": "spatial_only"},
        {"target": "input"},
        {"proj_head": "none"},
        {"entropy_source": "softmax"},
        {"latent": "gap_max"},
        {"latent": "multi"},
        {"residual": True},
        {"window": 8},
        {"depths": (2, 1, 1, 1)},
    ],
    ids=str,
)
def test_every_ablation_steps(changes):
    recipe = micro(**changes)
    images, draws = case(recipe)
    terms = recipe.step(images, draws)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert recipe.encode(images).shape == (2, recipe.network.latent_width(recipe.cfg.latent))
    assert len(recipe.texture.texture.weight) == recipe.cfg.textures


def test_gradient_checkpointing_changes_no_gradient():
    grads = []
    for on in (False, True):
        recipe = micro()
        assert len(recipe.checkpointed()) == 4 + 10  # Swin blocks; MONAI's encoder1 to 10, decoder1 to 5
        if on:
            recompute(recipe.checkpointed())
        recipe.step(*case(recipe))["loss"].backward()
        grads.append([p.grad for p in recipe.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_all_views_go_through_the_network_in_one_pass(shared, monkeypatch):
    seen = []
    shared.network.net.swinViT.patch_embed.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    shared.step(*case(shared, n=3))
    assert seen == [12]


def test_images_of_one_patient_are_no_negatives_where_that_is_asked_for(shared):
    recipe = micro(same_patient="ignore")
    assert (recipe.columns, shared.columns) == (("patient",), ())
    images, draws = case(recipe, n=3)
    names = {"patient": ["a", None, "a"]}
    code = recipe.conditions(names)["patient"]
    assert code[0] == code[2] >= 0 and code[1] == -1 and code.dtype == torch.int64
    known = recipe.step(images, draws | recipe.conditions(names))["contrast"]
    unknown = recipe.step(images, draws | recipe.conditions({"patient": [None, None, None]}))["contrast"]
    assert unknown.item() == recipe.step(images, draws)["contrast"].item()
    assert known.item() < unknown.item()
    assert torch.equal(recipe.encode(images, **recipe.conditions(names)), recipe.encode(images))


def test_images_that_are_not_as_stored_are_refused(shared):
    draws = case(shared)[1]
    with pytest.raises(ValueError, match="64, 64"):
        shared.step(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), draws)
    with pytest.raises(ValueError, match="uint8"):
        shared.step(torch.zeros(2, 1, 64, 64), draws)


def test_every_trainable_parameter_is_in_one_group_and_kernels_and_tables_are_not_decayed(shared):
    groups = shared.param_groups(0.01)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in shared.parameters() if p.requires_grad)
    free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    names = {n for n, p in shared.named_parameters() if id(p) in free}
    assert {"texture.texture.weight", "texture.mix.weight", "texture.mix.bias"} <= names
    assert sum("relative_position_bias_table" in name for name in names) == 4
    assert not any(p.ndim <= 1 and id(p) not in free for p in shared.parameters())


# ---- perceptual networks from files


def test_a_network_pretrained_by_this_project_can_be_the_perceptual_one(tmp_path):
    from training.recipes.d2mae import D2MAE, D2MAEConfig

    state, meta = D2MAE(D2MAEConfig(**D2MAE.presets["micro"]["recipe"])).encoder_export()
    path = tmp_path / "encoder.safetensors"
    save_file(state, path, {k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()})
    frozen = build_perceptual(PerceptualConfig(kind="file", weights=str(path)))
    assert frozen is not None and frozen.size == 64 and frozen.mean.numel() == 1
    assert frozen(torch.rand(2, 1, 96, 96)).shape == (2, 65, 64)
    recipe = micro(lpips={"kind": "file", "weights": str(path)})
    recipe.step(*case(recipe))["loss"].backward()
    assert len(recipe.encoder_export()[1]["perceptual_sha256"]) == 64


def test_weights_that_cannot_be_read_or_do_not_say_what_they_are_of_are_refused(tmp_path):
    import timm

    junk, odd, nameless = tmp_path / "junk.pth", tmp_path / "odd.pth", tmp_path / "nameless.pth"
    junk.write_bytes(b"no archive")
    torch.save([1, 2], odd)
    torch.save(timm.create_model("resnet18").state_dict(), nameless)
    for path, message in ((junk, "Cannot read"), (odd, "not a state dict"), (nameless, "does not say")):
        with pytest.raises(ConfigError, match=message):
            build_perceptual(PerceptualConfig(kind="file", weights=str(path)))
    with pytest.raises(ConfigError, match="Did you mean 'resnet18'"):
        build_perceptual(PerceptualConfig(kind="file", weights=str(nameless), model="resnet188"))
    frozen = build_perceptual(PerceptualConfig(kind="file", weights=str(nameless), model="resnet18"))
    assert frozen is not None and frozen(torch.rand(1, 1, 64, 64)).shape == (1, 4, 512)


# ---- pictures, features, export


def test_pictures_show_the_map_in_colour_and_every_channel(shared):
    stages = shared.pictures(*case(shared))
    assert list(stages) == ["clean", "view", "map", "rebuilt", *[f"texture {k}" for k in range(1, 6)]]
    for name, picture in stages.items():
        assert picture.shape == (2, 3 if name == "map" else 1, 64, 64) and picture.dtype == torch.float32
        assert picture.min() >= 0 and picture.max() <= 1 and not picture.requires_grad
    total = sum(stages[f"texture {k}"] for k in range(1, 6))
    assert (total - 1).abs().max() < 1e-5


def test_the_map_shows_a_pixel_of_one_texture_in_that_texture_s_hue(shared, monkeypatch):
    one_hot = torch.zeros(2, 5, 64, 64)
    one_hot[:, 0, :, :32], one_hot[:, 3, :, 32:] = 1.0, 1.0
    monkeypatch.setattr(TUSA, "activate", lambda *_: one_hot)
    colours = shared.pictures(*case(shared))["map"][0]
    assert colours[:, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert colours[2, 0, 63].item() == 1.0 and colours[0, 0, 63].item() < 0.7  # blue leads


def test_features_are_deterministic_and_each_image_has_its_own(shared):
    images = speckle(3, size=64)
    with torch.no_grad():
        together = shared.encode(images)
        alone = torch.cat([shared.encode(images[i : i + 1]) for i in range(3)])
        maps = shared.feature_maps(images)
    assert together.shape == (3, 192) and together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.equal(maps[-1].mean((2, 3)), together)
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 2]


def test_monai_loads_the_export_strictly_and_computes_the_same_features(shared):
    from importlib import import_module

    state, meta = shared.encoder_export()
    assert meta["model_name"] is None
    module, name = meta["arch"].rsplit(".", 1)
    net = getattr(import_module(module), name)(**json.loads(json.dumps(meta["arch_args"])))
    encoder = getattr(net, meta["arch_part"])
    encoder.load_state_dict(state, strict=True)
    images = speckle(2, size=64)
    with torch.no_grad():
        x = shared.network_input(images)
        assert x.min() >= -1 and x.max() <= 1 and list(x.shape[1:]) == meta["input_size"]
        assert torch.allclose(encoder.eval()(x)[-1].mean((2, 3)), shared.encode(images), atol=1e-4)
    before = state["patch_embed.proj.bias"].clone()
    with torch.no_grad():
        shared.network.net.swinViT.patch_embed.proj.bias.add_(1.0)
        assert torch.equal(state["patch_embed.proj.bias"], before)  # no memory in common
        shared.network.net.swinViT.patch_embed.proj.bias.sub_(1.0)


# ---- with the trainer


def run(out: Path, *sets: str, **how: Any) -> Any:
    small = ["steps=4", "batch_size=2", "log_every=2", "checkpoint_every=100", *sets]
    return pretrain(FakeCohort(), resolve("tusa", "micro", sets=small), out, **how)


def test_a_run_leaves_weights_that_load_encoder_rebuilds(tmp_path):
    run(tmp_path, "steps=1")
    recipe = load_encoder(tmp_path)
    assert isinstance(recipe, TUSA) and not recipe.training
    images = speckle(2)
    with torch.no_grad(), safe_open(tmp_path / "encoder.safetensors", framework="pt") as file:
        assert recipe.encode(images).shape == (2, 192)
        assert json.loads(file.metadata()["model_name"]) is None
        assert file.metadata()["arch"] == "monai.networks.nets.SwinUNETR"
        assert file.metadata()["perceptual"] == "none"
        saved = file.get_tensor("layers4.0.downsample.reduction.weight")
        assert torch.equal(saved, recipe.network.net.swinViT.layers4[0].downsample.reduction.weight)


def test_features_can_be_had_where_the_perceptual_weights_are_not(tmp_path):
    """A run made with RadImageNet's file elsewhere: only training needs it."""
    recipe = micro(lpips={"kind": "radimagenet", "weights": "/nowhere/else.pth"})
    assert recipe.encode(speckle(1, size=64)).shape == (1, 192)


def test_a_run_without_its_perceptual_weights_stops_before_it_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"lpips\.weights is not set"):
        run(tmp_path, "lpips.kind=radimagenet")
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.recipes
def test_one_batch_is_overfitted(tmp_path):
    recipe = micro()
    images, draws = case(recipe, n=4)
    optimiser = torch.optim.AdamW(recipe.param_groups(0.01), lr=1e-3)
    seen = []
    for _ in range(40):
        terms = recipe.step(images, draws)
        optimiser.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(recipe.parameters(), 1.0)
        optimiser.step()
        seen.append({name: value.item() for name, value in terms.items()})
    first, last = seen[0], seen[-1]
    assert last["loss"] < 0.3 * first["loss"]
    assert last["l1"] < 0.2 * first["l1"] and last["ssim"] < 0.2 * first["ssim"]
    assert last["contrast"] < first["contrast"] - 0.5  # the images are told apart
    assert last["textures_used"] > 3


@pytest.mark.recipes
def test_stopped_and_resumed_it_has_the_uninterrupted_weights_bit_for_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole)
    run(parts, max_hours=0)
    run(parts, max_hours=0, resume=True)
    assert run(parts, resume=True).finished
    one, two = (load_state(out / "checkpoint" / "last.pt") for out in (whole, parts))
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    moments = [state["optimisers"]["main"]["state"] for state in (one, two)]
    assert all(torch.equal(moments[0][i][k], moments[1][i][k]) for i in moments[0] for k in moments[0][i])
    assert [record["step"] for record in read(parts / "log.jsonl", "step")] == [1, 2, 3, 4]


def test_the_warning_names_the_kind():
    with pytest.warns(PerceptualWarning, match="'none'"):
        micro().param_groups(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        micro(weights={**OFF, "l1": 1.0}).param_groups(0.01)  # the term is off: nothing to warn of


@pytest.mark.parametrize("textures", [2, 3, 5, 8])
def test_every_kernel_gets_a_gradient_from_the_first_step(textures):
    head = TextureHead(textures)
    head(torch.rand(2, textures, 16, 16).softmax(1)).mean().backward()
    assert (head.texture.weight.grad.abs().amax((1, 2, 3)) > 1e-3).all()
