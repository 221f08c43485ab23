"""ARL's mistakes 3, 5 and 6: a weight without a graph, what the pixels to rebuild are, and what moves when."""

from typing import Any

import torch
from fakes.speckle import speckle
from torch import Tensor

from training.losses_adversarial import adaptive_lambda
from training.models.vit import patchify
from training.recipes.arl import ARL, ARLConfig


def small(**changes: Any) -> ARL:
    torch.manual_seed(0)
    size = {"image_size": 32, "source_size": 64, "width": 32, "heads": 2, "disc_width": 8, "adv_start": 0.0}
    return ARL(ARLConfig(**{**ARL.presets["micro"]["recipe"], **size, **changes}))


def case(recipe: ARL) -> tuple[Tensor, dict[str, Tensor]]:
    draws = recipe.draw(4, torch.Generator().manual_seed(1))
    return speckle(4, size=64), draws | recipe.conditions({"organ": ["breast", "liver", None, "heart"]})


def test_mistake_5_the_discriminators_real_patches_are_raw_pixels_of_the_view():
    recipe = small(photometric=1.0, blur=1.0)
    images, draws = case(recipe)
    seen: list[Tensor] = []
    recipe.discriminator.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    recipe.step(images, draws)
    real = seen[-1].chunk(2)[0].flatten(1)  # real and fake together come last
    sharp = patchify(recipe.views(images, draws), 8)
    places = recipe.masks(draws["noise"])[0]
    assert torch.equal(real, sharp.gather(1, places[:, :, None].expand(-1, -1, 64)).flatten(0, 1))
    assert real.mean(1).std() > 0.01  # not normalised patch by patch


def test_mistake_6_the_teacher_follows_the_student_after_its_step_not_before():
    recipe = small(teacher_momentum=0.5)
    images, draws = case(recipe)
    old = [p.clone() for p in recipe.teacher.encoder.parameters()]
    recipe.step(images, draws)["loss"].backward()
    assert all(torch.equal(a, b) for a, b in zip(recipe.teacher.encoder.parameters(), old, strict=True))
    with torch.no_grad():
        for p in recipe.encoder.parameters():
            p.add_(0.0 if p.grad is None else -0.1 * p.grad)
    recipe.after_step(0.0)
    weight = next(i for i, (n, _) in enumerate(recipe.encoder.named_parameters()) if n == "patch_embed.proj.weight")
    now, student = list(recipe.teacher.encoder.parameters())[weight], list(recipe.encoder.parameters())[weight]
    assert torch.allclose(now, 0.5 * old[weight] + 0.5 * student) and not torch.allclose(now, old[weight])


def test_mistake_3_lambda_has_no_graph_though_its_gradients_have_one():
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = adaptive_lambda(2 * weight, weight)
    assert found.grad_fn is None and not found.requires_grad
    assert abs(found.item() - 2) < 1e-4
