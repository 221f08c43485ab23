"""The numbered checks of the D2MAE paper, section 9, as far as they concern the recipe.

Checks 1, 4, 5 are in test_masking.py, 10 in test_obs.py, 11 and parts of 13 and 14 in test_classifier_head.py, 15 in
test_metrics.py; the learning rate and resuming belong to the trainer's tests.
"""

from typing import Any

import pytest
import torch
from fakes.mae import mae_loss
from fakes.speckle import speckle

from training.models.positions import LevelEmbedding, sincos_2d, sinusoid
from training.models.vit import patchify, unpatchify
from training.recipes.d2mae import D2MAE, VARIANTS, D2MAEConfig

WHOLE = [0, 0, 64, 64]


def small(**changes: Any) -> D2MAE:
    """A tiny recipe on 64-pixel sources, so that the whole-image crop is the image itself."""
    torch.manual_seed(0)
    return D2MAE(D2MAEConfig(**{**D2MAE.presets["micro"]["recipe"], "source_size": 64, **changes}))


def case(recipe: D2MAE, n: int = 4, whole: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    draws = recipe.draw(n, torch.Generator().manual_seed(1))
    if whole:
        draws |= {"box": torch.tensor([WHOLE] * n), "flip": torch.zeros(n, dtype=torch.bool)}
    return speckle(n, size=recipe.cfg.source_size), draws


def train(recipe: D2MAE, images: torch.Tensor, draws: dict[str, torch.Tensor], steps: int) -> list[float]:
    optimiser = torch.optim.AdamW(recipe.param_groups(0.05), lr=1e-3, betas=(0.9, 0.95))
    losses = []
    for _ in range(steps):
        loss = recipe.step(images, draws)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


@pytest.fixture(scope="module")
def paper() -> D2MAE:
    torch.manual_seed(0)
    return D2MAE(D2MAEConfig()).eval()


def lengths(recipe: D2MAE, keep: torch.Tensor | None) -> tuple[int, int, tuple[int, ...]]:
    """Tokens in the encoder, tokens in the decoder, shape of the prediction."""
    seen: list[int] = []
    hooks = [m.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1])) for m in (recipe.encoder.blocks[0],)]
    hooks += [recipe.decoder.blocks[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))]
    with torch.no_grad():
        pred = recipe.predict(torch.rand(1, 1, 224, 224), torch.tensor([3]), keep)
    for hook in hooks:
        hook.remove()
    return seen[0], seen[1], tuple(pred.shape)


def test_check_02_sequences_are_51_and_198_tokens_long(paper):
    assert lengths(paper, torch.arange(49)[None]) == (51, 198, (1, 196, 768))
    assert lengths(paper, torch.randperm(196)[None]) == (198, 198, (1, 196, 768))  # ratio 0
    assert lengths(paper, None) == (198, 198, (1, 196, 768))


def test_check_02_unpatchify_inverts_patchify_bitwise_and_channels_run_fastest():
    x = torch.randn(2, 3, 64, 64)
    patches = patchify(x, 16)
    assert patches.shape == (2, 16, 768)
    assert torch.equal(unpatchify(patches, 16, 3), x)
    assert torch.equal(patches[0, 5, :3], x[0, :, 16, 16])  # second row, second column, first pixel
    assert torch.equal(patches[0, 5, 3:6], x[0, :, 16, 17])


@pytest.mark.parametrize("channels", [1, 3])
def test_check_03_without_blur_it_is_the_reference_mae(channels):
    recipe = small(**VARIANTS["mae"], channels=channels, image_size=64, patch_size=16)
    images, draws = case(recipe, whole=True)
    x = (images.float() / 255).expand(-1, channels, -1, -1)
    x = (x - recipe.mean.view(1, -1, 1, 1)) / recipe.std.view(1, -1, 1, 1)
    with torch.no_grad():
        expected = mae_loss(x, draws["noise"], recipe.state_dict(), patch=16, keep=4, heads=(4, 4))
        assert recipe.step(images, draws)["loss"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_check_03_the_encoder_at_ratio_0_is_timms_vit_base(paper):
    import timm  # after `training`, whose guard lets it load beside a CPU torch

    vit = timm.create_model("vit_base_patch16_224", num_classes=0).eval()
    vit.load_state_dict(paper.encoder.state_dict(), strict=True)
    images = speckle(1)
    with torch.no_grad():
        expected = vit(paper.network_input(images))  # the class token after the last norm
        ours = paper.tokens(paper.view(images), None)[:, 0]
    assert (ours - expected).abs().max() < 1e-4


def test_section_11_parameter_counts_are_the_papers(paper):
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    assert count(paper.encoder) == 85_647_360
    assert count(paper.level) == 768
    assert count(paper.decoder) == 26_008_320
    assert count(paper) == 85_647_360 + 768 + 26_008_320
    assert paper.encoder.pos_embed.numel() == 151_296
    with torch.device("meta"):
        grey = D2MAE(D2MAEConfig(channels=1))
    assert (count(grey.encoder), count(grey.decoder)) == (85_254_144, 25_745_664)


def test_check_06_blur_embeddings_are_distinct_and_of_one_length():
    rows = sinusoid(torch.arange(12), 768)
    assert rows[0].tolist() == [0.0] * 384 + [1.0] * 384
    assert (rows.norm(dim=1) - 19.596).abs().max() < 1e-3
    distance = torch.cdist(rows, rows) + 1e9 * torch.eye(12)
    assert distance[1:, 1:].min() >= 4.5
    assert distance.min() > 1.0
    cosine = torch.nn.functional.cosine_similarity(rows[1:2], rows[[2, 11]])
    assert cosine.tolist() == pytest.approx([0.973, 0.681], abs=2e-3)


@pytest.mark.parametrize(
    ("embed", "variant", "added"),
    [
        ("none", "sinusoid+vector", 0),
        ("token", "sinusoid+vector", 768),
        ("token", "sinusoid", 0),
        ("token", "table", 12 * 768),
        ("add", "sinusoid+vector", 768),
        ("add", "sinusoid", 0),
    ],
)
def test_check_06_the_level_adds_one_vector_to_the_encoder(embed, variant, added):
    with torch.device("meta"):
        recipe = D2MAE(D2MAEConfig(embed=embed, embed_variant=variant, decoder_depth=1))
        plain = D2MAE(D2MAEConfig(embed="none", decoder_depth=1))
    total, base = (sum(p.numel() for p in r.parameters()) for r in (recipe, plain))
    assert total - base == added
    assert recipe.prefix == (2 if embed == "token" else 1)


def test_check_06_the_learned_vector_is_added_to_every_level():
    level = LevelEmbedding(11, 64)
    t = torch.tensor([0, 5, 11])
    assert torch.equal(level(t), sinusoid(t, 64) + level.vector)


@pytest.mark.parametrize("embed", ["token", "add"])
@pytest.mark.parametrize("variant", ["sinusoid+vector", "sinusoid", "table"])
def test_check_07_the_level_alone_changes_the_output(embed, variant):
    recipe = small(embed=embed, embed_variant=variant)
    images, draws = case(recipe)
    train(recipe, images, draws, steps=5)
    blurred = recipe.view(images)
    one, nine = (recipe.predict(blurred, torch.full((4,), t)) for t in (1, 9))
    assert (one - nine).abs().max() > 1e-4


def test_check_07_without_an_embedding_the_level_cannot_change_the_output():
    recipe = small(embed="none")
    images, draws = case(recipe)
    train(recipe, images, draws, steps=5)
    blurred = recipe.view(images)
    assert torch.equal(recipe.predict(blurred, torch.full((4,), 1)), recipe.predict(blurred, torch.full((4,), 9)))


def test_check_08_at_ratio_0_the_output_does_not_depend_on_the_masks_noise():
    recipe = small(mask_ratio=0.0)
    images, draws = case(recipe)
    other = draws | {"noise": torch.rand_like(draws["noise"])}
    with torch.no_grad():
        assert abs(recipe.step(images, draws)["loss"] - recipe.step(images, other)["loss"]) < 1e-5
        blurred, order = recipe.view(images), torch.stack([torch.randperm(64) for _ in range(4)])
        pred = recipe.predict(blurred, draws["t"], order)
        assert (pred - recipe.predict(blurred, draws["t"])).abs().max() < 1e-5


def with_prediction(recipe: D2MAE, pred: torch.Tensor) -> D2MAE:
    """The recipe with its network replaced by a given answer."""
    recipe.predict = lambda *_: pred  # type: ignore[method-assign]
    return recipe


@pytest.mark.parametrize("loss_on", ["all", "masked"])
def test_check_09_gradient_reaches_visible_patches_only_when_the_loss_is_on_all(loss_on):
    recipe = small(loss_on=loss_on)
    images, draws = case(recipe)
    pred = torch.zeros(4, 64, 64, requires_grad=True)
    with_prediction(recipe, pred).step(images, draws)["loss"].backward()
    visible = draws["noise"].argsort(dim=1)[:, :16]
    strength = pred.grad.abs().sum(-1)
    assert (strength.gather(1, visible) > 0).all().item() is (loss_on == "all")
    assert (strength.gather(1, visible) == 0).all().item() is (loss_on == "masked")
    assert (strength > 0).sum(1).tolist() == [64 if loss_on == "all" else 48] * 4


def test_check_09_the_target_is_the_sharp_image():
    recipe = small()
    images, draws = case(recipe)
    draws["t"].fill_(9)
    sharp, blurred = recipe.views(images, draws)
    assert with_prediction(recipe, recipe.target(sharp)).step(images, draws)["loss"].item() == 0.0
    loss = with_prediction(recipe, recipe.target(blurred)).step(images, draws)["loss"].item()
    assert loss == pytest.approx(((blurred - sharp) / recipe.std).square().mean().item(), rel=1e-5)
    assert loss > 0.01


def test_check_12_levels_are_uniform_over_110000_draws():
    t = small(patch_size=32).draw(110_000, torch.Generator().manual_seed(0))["t"]
    counts = t.bincount(minlength=12)
    assert counts[0] == 0  # no blur is never drawn
    assert len(counts) == 12
    four_sigma = 4 * (110_000 * (1 / 11) * (10 / 11)) ** 0.5
    assert (counts[1:] - 10_000).abs().max() < four_sigma


def test_check_12_two_ranks_slices_of_the_global_draw_differ_and_the_draw_repeats():
    recipe = small()
    draws = recipe.draw(64, torch.Generator().manual_seed(5))
    again = recipe.draw(64, torch.Generator().manual_seed(5))
    later = recipe.draw(64, torch.Generator().manual_seed(6))
    assert {name: len(value) for name, value in draws.items()} == dict.fromkeys(("box", "flip", "t", "noise"), 64)
    for name, value in draws.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, later[name])
        assert not torch.equal(value[:32], value[32:])


def test_check_13_every_trainable_parameter_is_in_one_group_and_1_d_ones_are_not_decayed():
    for variant in ("sinusoid+vector", "table"):
        recipe = small(embed_variant=variant)
        groups = recipe.param_groups(0.05)
        ids = [id(p) for group in groups for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in recipe.parameters() if p.requires_grad)
        free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
        assert free == {id(p) for n, p in recipe.named_parameters() if p.ndim <= 1 or n.startswith("level.")}
        assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
        assert id(recipe.encoder.pos_embed) not in ids  # fixed


def test_check_14_one_batch_is_overfitted_in_300_steps():
    recipe = small(patch_size=16)
    images, draws = case(recipe, n=8)  # levels and masks stay as drawn
    losses = train(recipe, images, draws, steps=300)
    assert losses[-1] < 0.2 * losses[0]


def test_positions_are_sines_of_column_then_row():
    table = sincos_2d(8, 2, 3)
    assert table.shape == (6, 8)
    column, row = torch.tensor(2.0), torch.tensor(1.0)  # the last patch
    assert table[5, 0].item() == pytest.approx(column.sin().item())
    assert table[5, 2].item() == pytest.approx(column.cos().item())
    assert table[5, 4].item() == pytest.approx(row.sin().item())
    assert table[5, 7].item() == pytest.approx((row / 100).cos().item())
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(6, 2, 2)
