"""The classifier on a D2MAE encoder: check 11 of the paper, the rest of checks 13 and 14."""

from typing import Any

import pytest
import torch
from fakes.speckle import speckle

from training.downstream.heads import Classifier, layer_decay_groups, layer_id
from training.recipes.d2mae import D2MAE, VARIANTS, D2MAEConfig
from usdata.errors import ConfigError


def config(**changes: Any) -> D2MAEConfig:
    return D2MAEConfig(**{**D2MAE.presets["micro"]["recipe"], **changes})


def classifier(pool: Any = "mean", **changes: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(config(**changes), classes=3, pool=pool).eval()


def test_check_11_mean_pooling_ignores_class_and_level_outputs():
    model = classifier()
    tokens = torch.randn(2, 2 + 64, 64)
    logits = model.classify(tokens)
    spoiled = tokens.clone()
    spoiled[:, :2] = 1e3
    assert torch.equal(model.classify(spoiled), logits)
    spoiled = tokens.clone()
    spoiled[:, 2] = 1e3  # the first patch does count
    assert not torch.equal(model.classify(spoiled), logits)


def test_the_class_token_can_be_pooled_instead():
    model = classifier(pool="cls")
    tokens = torch.randn(2, 2 + 64, 64)
    logits = model.classify(tokens)
    tokens[:, 1:] = 1e3
    assert torch.equal(model.classify(tokens), logits)


def test_logits_depend_on_the_image_s_level_and_start_near_0():
    model = classifier()
    sharp = model.backbone.view(speckle(2))
    with torch.no_grad():
        first = model(sharp, torch.tensor([1, 1]))
        assert first.shape == (2, 3)
        assert first.abs().max() < 1e-2  # head weights start at 2e-5
        model.head.weight.normal_()
        assert not torch.allclose(model(sharp, torch.tensor([1, 1])), model(sharp, torch.tensor([9, 9])), atol=1e-4)


def test_check_13_the_blur_vector_is_in_the_layer_0_group_without_weight_decay():
    for variant in ("sinusoid+vector", "table"):
        model = classifier(embed_variant=variant)
        groups = {group["name"]: group for group in layer_decay_groups(model)}
        level = next(model.backbone.level.parameters())
        stem = groups["layer_0_no_decay"]
        assert any(parameter is level for parameter in stem["params"])
        assert stem["weight_decay"] == 0.0
        assert stem["lr_scale"] == pytest.approx(0.65**3)  # two blocks: layers 0, 1, 2, 3


def test_check_13_layer_rates_are_those_of_a_vit_b():
    with torch.device("meta"):
        model = Classifier(D2MAEConfig(decoder_depth=1), classes=8, drop_path=0.0)
    groups = layer_decay_groups(model)
    scale = {int(group["name"].split("_")[1]): group["lr_scale"] for group in groups}
    assert scale == {layer: pytest.approx(0.65 ** (13 - layer)) for layer in range(14)}
    assert scale[13] == 1.0
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not decayed & {id(model.backbone.encoder.cls_token), id(model.backbone.encoder.pos_embed)}


def test_layers_are_told_by_name_and_an_unknown_name_is_an_error_not_the_head():
    assert layer_id("encoder.patch_embed.proj.weight", 12) == 0
    assert layer_id("level.vector", 12) == layer_id("backbone.level.table", 12) == 0
    assert layer_id("backbone.encoder.blocks.11.mlp.fc1.weight", 12) == 12
    assert layer_id("head.weight", 12) == layer_id("norm.bias", 12) == 13
    with pytest.raises(ConfigError, match="blur_token"):
        layer_id("encoder.blur_token", 12)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_check_14_a_pretrained_checkpoint_fits_but_for_head_and_pooling_norm(variant):
    torch.manual_seed(1)
    pretrained = D2MAE(config(**VARIANTS[variant]))
    model = classifier(**VARIANTS[variant])
    missing, unexpected = model.load_pretrained(pretrained.state_dict())
    assert missing == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert unexpected == ["backbone.encoder.norm.weight", "backbone.encoder.norm.bias"]
    for name, value in pretrained.encoder.blocks.state_dict().items():
        assert torch.equal(model.backbone.encoder.blocks.state_dict()[name], value)
    if variant == "d2mae":
        assert torch.equal(model.backbone.level.vector, pretrained.level.vector)


def test_check_14_with_the_class_token_pooled_only_the_head_is_fresh():
    missing, unexpected = classifier(pool="cls").load_pretrained(D2MAE(config()).state_dict())
    assert missing == ["head.weight", "head.bias"]
    assert unexpected == []


@pytest.mark.parametrize(
    "other", [{"embed": "none"}, {"image_size": 32}, {"encoder_depth": 3}, {"embed_variant": "table"}]
)
def test_weights_of_another_model_are_refused(other):
    with pytest.raises(ConfigError, match="do not fit this model"):
        classifier().load_pretrained(D2MAE(config(**other)).state_dict())


def test_drop_path_rises_to_the_last_block():
    blocks = classifier().backbone.encoder.blocks
    assert isinstance(blocks[0].drop_path1, torch.nn.Identity)
    assert blocks[1].drop_path1.drop_prob == pytest.approx(0.1)


def test_a_classifier_learns_two_images():
    model = classifier().train()
    optimiser = torch.optim.AdamW(
        [{**group, "lr": 1e-2 * group["lr_scale"]} for group in layer_decay_groups(model)], lr=1e-2
    )
    sharp, t, y = model.backbone.view(speckle(2)), torch.tensor([3, 7]), torch.tensor([0, 2])
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(model(sharp, t), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3
