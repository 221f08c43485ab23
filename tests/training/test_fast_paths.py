"""Every recipe in bf16, compiled, and with recomputed activations: the same training, up to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import duel_recipe
from fakes.training_fakes import FakeCohort

from training.checkpoint import build
from training.config import resolve
from training.memory import explain_no_memory
from training.runlog import read
from training.train import pretrain
from training.wrapping import blocks_of
from usdata.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::training.models.perceptual.PerceptualWarning")

assert duel_recipe.Duel  # registers "duel"
RECIPES = ["arl", "d2mae", "tusa", "usfm"]
OWN = {"arl": ["adv_start=0.3", "cond_dropout=0.5", "teacher_temp=[0.04,0.07]", "temp_warmup=1"]}
SHALLOW = {  # the compiler's time goes with the number of blocks
    "arl": ["depth=1", "adv_start=0", "freeze_last=0"],
    "d2mae": ["encoder_depth=1", "decoder_depth=1"],
    "tusa": ["batch_size=2"],
    "usfm": ["encoder_depth=1"],
}


def steps(out: Path, recipe: str, *sets: str) -> list[dict[str, Any]]:
    fixed = ["steps=3", "batch_size=4", "warmup=0", "log_every=1", "checkpoint_every=100", *OWN.get(recipe, [])]
    pretrain(FakeCohort(), resolve(recipe, "micro", sets=[*fixed, *sets]), out)
    return read(out / "log.jsonl", "step")


def assert_equal(one: list[dict[str, Any]], two: list[dict[str, Any]], rel: float) -> None:
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"images_per_s", "data_wait", "kind"}:
            assert theirs[key] == pytest.approx(ours[key], rel=rel, abs=1e-5), (key, ours["step"])


# ---- bf16


@pytest.mark.recipes
@pytest.mark.parametrize("recipe", RECIPES)
def test_bf16_begins_near_fp32_and_every_term_stays_finite(tmp_path, recipe):
    whole, half = steps(tmp_path / "fp32", recipe), steps(tmp_path / "bf16", recipe, "precision=bf16", "accumulate=2")
    assert whole[0]["loss"] != half[0]["loss"]
    assert half[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.02)
    numbers = [value for record in half for key, value in record.items() if key != "kind"]
    assert all(value is not None for value in numbers)  # null in the log: not finite


@pytest.mark.parametrize("recipe", ["arl", "d2mae", "usfm", pytest.param("tusa", marks=pytest.mark.recipes)])
def test_under_autocast_every_term_of_a_loss_is_float32(recipe):
    module = build(resolve(recipe, "micro", sets=["adv_start=0", "sd_patch=true"] if recipe == "arl" else []))
    images = torch.from_numpy(FakeCohort(2).images())[:, None]
    draws = module.draw(2, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        terms = module.step(images, draws)
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert all(value.isfinite() for value in terms.values())


# ---- torch.compile


@pytest.mark.recipes
@pytest.mark.timeout(1800)  # the compiler takes minutes on a busy machine
@pytest.mark.parametrize("recipe", RECIPES)
def test_compiled_steps_equal_eager_ones(tmp_path, recipe):
    torch._dynamo.reset()
    eager = steps(tmp_path / "eager", recipe, *SHALLOW[recipe])
    before = torch._functorch.config.donated_buffer
    compiled = steps(tmp_path / "compiled", recipe, "compile=true", *SHALLOW[recipe])
    assert torch._functorch.config.donated_buffer is before
    assert_equal(eager, compiled, rel=1e-4)


@pytest.mark.recipes
def test_progress_through_the_schedules_of_arl_compiles_nothing_anew(tmp_path, monkeypatch):
    """Temperatures move in every step: as a plain number each would be a constant of a graph of its own."""
    torch._dynamo.reset()
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: whole(self, backend="aot_eager", **how))
    frames = []

    def count(record: dict[str, Any]) -> None:
        if record["kind"] == "step":
            frames.append(torch._dynamo.utils.counters["frames"]["total"])

    sets = ["steps=6", "batch_size=4", "log_every=1", "compile=true", "adv_start=0", "freeze_last=0"]
    sets += ["teacher_temp=[0.04,0.07]", "temp_warmup=1"]
    torch._dynamo.utils.counters.clear()
    pretrain(FakeCohort(), resolve("arl", "micro", sets=sets), tmp_path, progress=count)
    assert frames[0] == frames[-1] > 0


@pytest.mark.recipes
@pytest.mark.parametrize("recipe", ["duel", "usfm"])
def test_compiled_recomputed_and_cut_together_change_nothing_but_rounding(tmp_path, monkeypatch, recipe):
    torch._dynamo.reset()
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: whole(self, backend="aot_eager", **how))
    plain = steps(tmp_path / "plain", recipe)
    sets = ["compile=true", "accumulate=2", *(["grad_checkpointing=true"] if recipe != "duel" else [])]
    assert_equal(plain, steps(tmp_path / "all", recipe, *sets), rel=1e-4)


# ---- gradient checkpointing: one switch


@pytest.mark.recipes
@pytest.mark.parametrize("recipe", RECIPES)
def test_recomputed_activations_change_nothing(tmp_path, recipe):
    assert_equal(steps(tmp_path / "kept", recipe), steps(tmp_path / "again", recipe, "grad_checkpointing=true"), 1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_blocks_to_recompute_and_one_key_for_it(recipe):
    assert len(blocks_of(build(resolve(recipe, "micro")))) >= 2
    with pytest.raises(ConfigError, match=r"No key 'grad_checkpoint'.*Did you mean 'grad_checkpointing'"):
        resolve(recipe, "micro", sets=["grad_checkpoint=true"])


# ---- out of memory


def test_a_machine_without_enough_memory_names_what_to_lower(tmp_path, monkeypatch):
    def step(self: Any, images: torch.Tensor, draws: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": torch.empty(2**58, dtype=torch.uint8).sum()}  # more than any machine has

    monkeypatch.setattr(duel_recipe.Duel, "step", step)
    with pytest.raises(ConfigError, match="This machine has too little memory for 4 images at a time") as caught:
        steps(tmp_path, "duel")
    for key in ("accumulate=2", "grad_checkpointing=true", "image_size=… (now 16)"):
        assert f"--set {key}" in caught.value.hint


def test_what_is_already_lowest_is_not_advised_and_other_errors_pass():
    cfg = resolve("duel", "micro", sets=["batch_size=6", "accumulate=2", "grad_checkpointing=true"])
    with pytest.raises(ConfigError, match="GPU has too little memory for 1") as caught, explain_no_memory(1, cfg, 1):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "accumulate" not in caught.value.hint and "grad_checkpointing" not in caught.value.hint
    with pytest.raises(ConfigError, match="3 images") as caught, explain_no_memory(3, cfg, 1):
        raise MemoryError
    assert "accumulate=6" in caught.value.hint  # 2 does not divide 3
    with pytest.raises(RuntimeError, match="shapes"), explain_no_memory(3, cfg, 1):
        raise RuntimeError("shapes do not fit")
