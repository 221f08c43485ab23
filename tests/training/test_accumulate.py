"""A batch is the same batch however it is cut: into micro-batches, among ranks, or both."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.ranks import PRETRAIN, end, start
from fakes.speckle import speckle
from fakes.training_fakes import FakeCohort
from torch import Tensor

from training.accumulate import PLACE, among_all, in_mean, mean_of_all, placed, rows_of_all, surveyed
from training.checkpoint import build, load_state
from training.config import resolve
from training.data import rows
from training.optimisers import Optimisers
from training.runlog import read
from training.train import pretrain

pytestmark = pytest.mark.filterwarnings("ignore::training.models.perceptual.PerceptualWarning")

SMALL = ["batch_size=8", "steps=3", "warmup=0", "log_every=1", "checkpoint_every=100"]
RECIPES = {
    "d2mae": ["d2mae"],
    "usfm": ["usfm", "drop_path=0.3"],
    "tusa": ["tusa"],
    "tusa, patients and pairs": ["tusa", "same_patient=ignore", "positives=pairwise", "entropy_source=softmax"],
    "arl": ["arl", "adv_start=0.3", "cond_dropout=0.5", "drop_path=0.2", "freeze_last=0.4", "teacher_temp=[0.04,0.07]"],
    "arl, every option": ["arl", "adv_start=0", "sd_patch=true", "disc_input=composite", "local_crops=1"],
}


# ---- the parts


def whole_loss(z: Tensor, shares: Tensor) -> Tensor:
    """Looks across all rows, and at a mean, in no linear way."""
    return (z @ z.T).softmax(1).diagonal().log().mean() + (shares.mean(0) + 1).log().square().sum()


def test_pieces_with_the_rows_and_means_of_all_have_the_gradient_of_the_whole_batch():
    source = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    z = source @ weight
    value = whole_loss(z, z.square())
    (expected,) = torch.autograd.grad(value, weight)
    for pieces in (1, 2, 4, 8):
        n = 8 // pieces
        whole = {"whole/z": z.detach(), "whole/shares": z.detach().square().mean(0)}
        total = torch.zeros_like(expected)
        for start_ in range(0, 8, n):
            draws = placed(whole, start_, n)
            own = source[start_ : start_ + n] @ weight
            loss = whole_loss(among_all(own, draws, "z"), in_mean(own.square().mean(0), draws, "shares")[None])
            assert loss.item() == pytest.approx(value.item(), rel=1e-12)
            total += torch.autograd.grad(loss, weight)[0] / pieces
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-14)


def test_without_a_survey_a_batch_is_its_own_whole():
    own = torch.arange(6.0).reshape(3, 2)
    assert among_all(own, {}, "z") is own
    assert torch.equal(in_mean(own, {}, "z"), own)
    assert torch.equal(mean_of_all(own, {}, "z"), own)
    assert torch.equal(rows_of_all({"patient": own}, "patient"), own)
    assert surveyed(build(resolve("d2mae", "micro")), []) == {}  # a recipe whose losses are means over images
    assert placed({}, 0, 3) == {}


def test_a_survey_has_rows_in_the_order_of_the_batch_and_the_mean_of_the_means():
    class Counts:
        def survey(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            assert not torch.is_grad_enabled()
            return {"pixel": images.flatten(1)[:, 0]}, {"mean": draws["noise"].mean()}

    images, noise = torch.arange(6)[:, None], torch.arange(6.0)
    whole = surveyed(Counts(), [(images[cut], {"noise": noise[cut]}) for cut in (slice(0, 3), slice(3, 6))])
    assert whole["whole/pixel"].tolist() == [0, 1, 2, 3, 4, 5]
    assert whole["whole/mean"].item() == 2.5
    assert placed(whole, 3, 3)[PLACE].tolist() == [3, 4, 5]


def test_a_survey_of_arl_costs_nothing_before_the_discriminator_begins():
    recipe = build(resolve("arl", "micro", sets=["adv_start=0.5", "source_size=64"]))
    images, draws = speckle(4, size=64), recipe.draw(4, torch.Generator().manual_seed(0))
    assert recipe.survey(images, draws) == ({}, {})
    recipe.after_step(0.5)
    cuts = [(images[cut], rows(draws, cut.start, cut.stop)) for cut in (slice(0, 2), slice(2, 4))]
    layer, whole = surveyed(recipe, cuts)["whole/layer"], surveyed(recipe, [(images, draws)])["whole/layer"]
    assert layer.shape == (2, 64, 64)  # of two terms, pixels of a patch, width
    torch.testing.assert_close(layer, whole, rtol=1e-3, atol=1e-5 * whole.abs().max().item())


# ---- the recipes


def run(out: Path, name: str, *sets: str) -> Any:
    recipe, *own = RECIPES[name]
    return pretrain(FakeCohort(), resolve(recipe, "micro", sets=[*SMALL, *own, *sets]), out)


def assert_same_run(one: Path, two: Path) -> None:
    """Every term of every step to 1e-5; and the weights, of which Adam makes steps of lr out of rounding noise."""
    logs = [read(out / "log.jsonl", "step") for out in (one, two)]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"images_per_s", "data_wait", "kind"}:
            rel = 1e-4 if key.startswith("grad_norm") else 1e-5
            assert theirs[key] == pytest.approx(ours[key], rel=rel, abs=1e-6), (key, ours["step"])
    states = [load_state(out / "checkpoint" / "last.pt")["model"] for out in (one, two)]
    for name, value in states[0].items():
        assert (states[1][name].double() - value.double()).abs().mean() < 1e-5, name


@pytest.mark.recipes
@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_in_2_or_4_pieces_is_the_same_batch(tmp_path, name):
    for pieces in (1, 2, 4):
        run(tmp_path / str(pieces), name, f"accumulate={pieces}")
    for pieces in (2, 4):
        assert_same_run(tmp_path / "1", tmp_path / str(pieces))


@pytest.mark.recipes
@pytest.mark.parametrize(
    ("name", "pieces"),
    [("d2mae", 2), ("usfm", 2), *((name, n) for name in ("tusa, patients and pairs", "arl") for n in (1, 2))],
)
def test_a_batch_of_two_processes_is_the_same_batch(tmp_path, name, pieces):
    recipe, *own = RECIPES[name]
    ended = end(start(PRETRAIN, tmp_path / "two", recipe, *SMALL, *own, f"accumulate={pieces}"))
    assert [code for code, *_ in ended] == [0, 0], ended
    run(tmp_path / "one", name)
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.recipes
@pytest.mark.parametrize("name", ["tusa", "arl, every option"])
def test_the_first_gradient_of_a_cut_batch_is_that_of_the_whole_one(tmp_path, monkeypatch, name):
    """A direct look, before Adam: also at what is small among other parameters' gradients."""
    found: list[dict[str, Tensor]] = []

    def update(self: Optimisers, terms: Tensor) -> Tensor:
        found.append({k: torch.cat([p.grad.flatten() for p in v]).clone() for k, v in self.params.items()})
        return whole(self, terms)

    whole = Optimisers.update
    monkeypatch.setattr(Optimisers, "update", update)
    for pieces in (1, 4):
        weighty = ["weights.contrast=10", "weights.entropy=10"] if name == "tusa" else []
        run(tmp_path / str(pieces), name, f"accumulate={pieces}", "steps=1", *weighty)
    for optimiser, one in found[0].items():
        assert (found[1][optimiser] - one).norm() < 1e-5 * one.norm(), optimiser
