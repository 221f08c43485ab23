import copy
import math

import pytest
import torch
from fakes.duel_recipe import Duel
from fakes.training_fakes import FakeCohort
from torch import nn

from training import checkpoint, watch
from training.checkpoint import build, load_encoder, load_state
from training.config import resolve
from training.distributed import World
from training.optimisers import Optimisers
from training.precision import full_precision
from training.runlog import read
from training.schedules import cosine
from training.train import pretrain
from training.wrapping import blocks_of, recompute
from usdata.errors import ConfigError, UsdataError

ALONE = World(0, 1, torch.device("cpu"))


def state(out):
    return load_state(out / "checkpoint" / "last.pt")


def duel(out, *sets, cohort=None, **how):
    return pretrain(cohort or FakeCohort(), resolve("duel", "micro", sets=sets), out, **how)


def prepared(*sets):
    """A recipe with its optimisers and the terms of one step."""
    cfg = resolve("duel", "micro", sets=sets)
    recipe = build(cfg)
    images = torch.from_numpy(FakeCohort().images()[:8])[:, None]
    draws = recipe.draw(8, torch.Generator().manual_seed(0)) | {"organ": torch.arange(8) % 2}
    return recipe, Optimisers(recipe, cfg, ALONE), lambda: recipe.step(images, draws)


# --- whose gradient goes where


def test_each_loss_reaches_the_parameters_of_its_own_optimiser_and_no_others():
    recipe, optimisers, step = prepared()
    terms = step()
    terms["adv"].backward(retain_graph=True)
    assert recipe.discriminator.weight.grad is not None  # the adversarial term does pass through the discriminator
    recipe.zero_grad()
    expected = torch.autograd.grad(terms["loss/discriminator"], recipe.discriminator.weight, retain_graph=True)[0]
    main = torch.autograd.grad(terms["loss"], recipe.encoder.weight, retain_graph=True)[0]
    optimisers.backward(terms, 1.0)
    assert torch.equal(recipe.discriminator.weight.grad, expected)
    assert torch.equal(recipe.encoder.weight.grad, main)
    assert recipe.teacher.weight.grad is None


def test_an_optimiser_without_a_loss_leaves_its_parameters_as_they_are(tmp_path):
    first = copy.deepcopy(build(resolve("duel", "micro")).state_dict())
    duel(tmp_path / "never", "adv_start=2")
    assert torch.equal(state(tmp_path / "never")["model"]["discriminator.weight"], first["discriminator.weight"])
    duel(tmp_path / "late", "adv_start=0.5", "log_every=8")
    steps = read(tmp_path / "late" / "log.jsonl", "step")
    assert ["adv" in record for record in steps] == [False] * 4 + [True] * 4
    assert [record["grad_norm/discriminator"] > 0 for record in steps] == [False] * 4 + [True] * 4
    assert not torch.equal(state(tmp_path / "late")["model"]["discriminator.weight"], first["discriminator.weight"])


def test_a_loss_of_no_optimiser_and_a_step_without_loss_are_refused():
    _, optimisers, step = prepared()
    with pytest.raises(ValueError, match="of no optimiser"):
        optimisers.backward(step() | {"loss/critic": torch.zeros(())}, 1.0)
    with pytest.raises(ValueError, match="no 'loss'"):
        optimisers.backward({"mse": torch.zeros(())}, 1.0)


def test_clipping_is_per_optimiser():
    _, optimisers, step = prepared("clip_grad=1e-3")
    terms = step()
    optimisers.backward(terms, 1.0)
    norms = [optimisers._clipped(name).item() for name in ("main", "discriminator")]
    assert min(norms) > 1e-2
    for name in ("main", "discriminator"):
        grads = [p.grad for p in optimisers.params[name] if p.grad is not None]
        assert nn.utils.get_total_norm(grads).item() == pytest.approx(1e-3, rel=1e-3)


# --- rates and decays


def test_rates_by_group_and_optimiser(tmp_path):
    _, optimisers, _ = prepared("warmup=0.25")
    logged = optimisers.set_rates(1)
    main, other = (optimisers.by_name[name].param_groups for name in ("main", "discriminator"))
    assert [group["lr"] for group in main] == pytest.approx([5e-3, 5e-3, 5e-4])
    assert [group["lr"] for group in other] == [1e-3]  # a constant, without warm-up
    assert logged == {"lr": pytest.approx(5e-3), "lr/discriminator": 1e-3}
    assert isinstance(optimisers.by_name["discriminator"], torch.optim.Adam)
    assert not isinstance(optimisers.by_name["discriminator"], torch.optim.AdamW)
    assert other[0]["betas"] == (0.5, 0.9)


def test_weight_decay_moves_along_a_cosine_and_never_where_there_is_none():
    _, optimisers, _ = prepared("weight_decay=0.04", "weight_decay_end=0.4")
    for step, expected in ((0, 0.04), (4, 0.22), (8, 0.4)):
        assert optimisers.set_rates(step)["weight_decay"] == pytest.approx(expected)
        groups = optimisers.by_name["main"].param_groups
        assert [group["weight_decay"] for group in groups] == pytest.approx([expected, 0.0, expected])
        assert optimisers.by_name["discriminator"].param_groups[0]["weight_decay"] == 0.0
    _, constant, _ = prepared("weight_decay=0.04")
    assert constant.set_rates(4).keys() == {"lr", "lr/discriminator"}
    assert constant.by_name["main"].param_groups[0]["weight_decay"] == 0.04


def test_a_decay_schedule_needs_a_decay():
    with pytest.raises(ConfigError, match="weight_decay above 0"):
        resolve("duel", "micro", sets=["weight_decay=0", "weight_decay_end=0.4"])


def test_a_cosine_starts_and_ends_where_it_should():
    assert [cosine(step, 10, 0.996, 1.0) for step in (0, 5, 10, 20)] == pytest.approx([0.996, 0.998, 1.0, 1.0])
    assert cosine(1, 10, 1.0, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 10)))


# --- what a recipe may get wrong


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"discriminator": {"learning_rate": 1}}, "'discriminator' is wrong: learning_rate"),
        ({"discriminator": {"kind": "sgd"}}, "kind"),
        ({"critic": {}}, "of optimiser 'discriminator'; the recipe names main, critic"),
    ],
)
def test_a_wrong_optimiser_is_refused_by_name(monkeypatch, named, message):
    monkeypatch.setattr(Duel, "optimisers", named)
    with pytest.raises(ConfigError, match=message):
        prepared()


def test_a_parameter_in_no_group_or_in_two_is_refused(monkeypatch):
    whole = Duel.param_groups
    monkeypatch.setattr(Duel, "param_groups", lambda self, decay: whole(self, decay)[:-1])
    with pytest.raises(ValueError, match=r"leaves out trainable parameters: discriminator\.weight"):
        prepared()
    again = {"optimiser": "discriminator"}
    monkeypatch.setattr(
        Duel, "param_groups", lambda self, d: [*whole(self, d), {**again, "params": [self.encoder.weight]}]
    )
    with pytest.raises(ValueError, match="twice"):
        prepared()


# --- the run


def test_after_step_is_told_the_progress_and_the_teacher_follows(tmp_path, monkeypatch):
    seen, whole = [], Duel.after_step
    monkeypatch.setattr(Duel, "after_step", lambda self, progress: (seen.append(progress), whole(self, progress)))
    duel(tmp_path)
    assert seen == [step / 8 for step in range(1, 9)]
    model = state(tmp_path)["model"]
    assert not torch.equal(model["teacher.weight"], model["encoder.weight"])
    assert model["centre"].abs().max() > 0


@pytest.mark.parametrize("pieces", [2, 4])
def test_pieces_equal_one_large_batch_with_two_optimisers(tmp_path, pieces):
    duel(tmp_path / "whole", "clip_grad=0.05")
    duel(tmp_path / "pieces", "clip_grad=0.05", f"accumulate={pieces}")
    whole, cut = (state(tmp_path / name)["model"] for name in ("whole", "pieces"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-4, atol=1e-5)


def test_a_run_of_two_optimisers_resumes_bit_for_bit(tmp_path):
    duel(tmp_path / "whole", "weight_decay_end=0.4")
    for _ in range(8):
        duel(tmp_path / "parts", "weight_decay_end=0.4", max_hours=0, resume=True)
    one, two = (state(tmp_path / name) for name in ("whole", "parts"))
    assert one["step"] == two["step"] == 8
    assert one["data"] == two["data"]
    assert all(torch.equal(value, two["model"][name]) for name, value in one["model"].items())
    assert one["optimisers"].keys() == {"main", "discriminator"}
    for name in one["optimisers"]:
        moments = [saved["optimisers"][name]["state"] for saved in (one, two)]
        assert all(torch.equal(moments[0][i][k], moments[1][i][k]) for i in moments[0] for k in moments[0][i])
        groups = [saved["optimisers"][name]["param_groups"] for saved in (one, two)]
        assert groups[0] == groups[1]


@pytest.mark.parametrize("log_every", [1, 3, 100])
@pytest.mark.parametrize("poison", ["loss", "loss/discriminator"])
def test_what_is_not_finite_in_either_loss_leaves_everything_as_before(tmp_path, log_every, poison):
    sets = [f"poison={poison}", "poison_at=0.5", "checkpoint_every=100"]
    with pytest.raises(UsdataError, match=rf"Step 5: {poison} is nan\.") as caught:
        duel(tmp_path / "bad", *sets, f"log_every={log_every}")
    assert "lower" in caught.value.hint
    for _ in range(4):
        duel(tmp_path / "good", "checkpoint_every=100", max_hours=0, resume=True)
    bad, good = state(tmp_path / "bad"), state(tmp_path / "good")
    assert bad["step"] == good["step"] == 4
    for name, value in good["model"].items():  # also teacher and centre, which no optimiser holds back
        assert torch.equal(bad["model"][name], value), name


def test_state_of_other_optimisers_is_refused(tmp_path):
    _, optimisers, _ = prepared()
    with pytest.raises(ConfigError, match=r"of the optimisers \['main'\], not \['discriminator', 'main'\]"):
        optimisers.load_state_dict({"main": {}})


# --- columns, facts, weights


def test_a_column_reaches_the_step_with_its_own_images(tmp_path, monkeypatch):
    seen, whole = [], Duel.step

    def step(self, images, draws):
        bright_above = images[:, 0, :64].float().mean((1, 2)) > images[:, 0, -64:].float().mean((1, 2))
        seen.append(torch.equal(draws["organ"], bright_above.long()))  # as FakeCohort draws its organs
        return whole(self, images, draws)

    monkeypatch.setattr(Duel, "step", step)
    duel(tmp_path, "accumulate=2", cohort=FakeCohort())
    assert len(seen) == 16
    assert all(seen)


def test_conditions_of_another_length_or_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Duel, "conditions", lambda self, columns: {"organ": torch.zeros(3)})
    with pytest.raises(ValueError, match="3 rows of 'organ' for 8 images"):
        duel(tmp_path / "a")
    monkeypatch.setattr(Duel, "conditions", lambda self, columns: {"noise": torch.zeros(8)})
    with pytest.raises(ValueError, match=r"draws \['noise'\]"):
        duel(tmp_path / "b")


def test_pictures_get_the_columns_of_their_images(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "read_images", lambda cohort, places: cohort.images()[places])
    duel(tmp_path, "pictures_every=8", "probe_every=8")
    assert (tmp_path / "pictures" / "step-000008.png").exists()
    probe = read(tmp_path / "log.jsonl", "probe")[-1]
    assert 1 <= probe["effective_rank"] <= probe["features"] == 8


def test_other_facts_are_refused_by_name(tmp_path, monkeypatch):
    duel(tmp_path, max_hours=0)
    assert load_encoder(tmp_path).encode(torch.zeros(1, 1, 256, 256, dtype=torch.uint8)).shape == (1, 8)
    assert checkpoint.facts_of(tmp_path)["classes"] == '["breast", "thyroid"]'
    monkeypatch.setattr(Duel, "facts", lambda self: {"classes": '["heart"]'})
    with pytest.raises(ConfigError, match=r"classes was .*breast.*now .*heart"):
        load_encoder(tmp_path)
    with pytest.raises(ConfigError, match="classes was"):
        duel(tmp_path, resume=True)


def test_an_encoder_that_timm_cannot_build_is_proved_by_rebuilding(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_encoder", lambda out: build(resolve("duel", "micro", sets=["seed=9"])))
    with pytest.raises(UsdataError, match="other features"):
        duel(tmp_path)


# --- memory and precision


def test_recomputed_blocks_give_equal_weights(tmp_path):
    sets = ["steps=3", "batch_size=8", "checkpoint_every=100"]
    for name, on in (("kept", "false"), ("again", "true")):
        cfg = resolve("d2mae", "micro", sets=[*sets, f"grad_checkpointing={on}"])
        pretrain(FakeCohort(), cfg, tmp_path / name)
    kept, again = (state(tmp_path / name)["model"] for name in ("kept", "again"))
    assert all(torch.equal(value, again[name]) for name, value in kept.items())


def test_a_recomputed_block_runs_twice_with_gradients_and_once_without():
    class Block(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x.square()

    block = Block()
    recompute([block])
    block(torch.ones(2, requires_grad=True)).sum().backward()
    assert block.calls == 2
    with torch.no_grad():
        block(torch.ones(2))
    assert block.calls == 3


def test_a_recipe_without_blocks_can_recompute_none(tmp_path):
    with pytest.raises(ConfigError, match="no blocks"):
        duel(tmp_path, "grad_checkpointing=true")
    assert len(blocks_of(build(resolve("d2mae", "micro")))) == 4  # encoder and decoder, two each


def test_full_precision_raises_what_comes_in_and_keeps_autocast_out():
    @full_precision
    def product(a, both, *, scale):
        return a @ both[0] * scale, both[1]["c"]

    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        found, c = product(x.bfloat16(), (x, {"c": x.half()}), scale=1.0)
        wide = product(x.double(), (x.double(), {"c": x}), scale=1.0)[0]
    assert found.dtype == c.dtype == torch.float32
    assert torch.equal(found, x.bfloat16().float() @ x)
    assert wide.dtype == torch.float64
    assert product.__name__ == "product"


# --- TensorBoard


def test_tensorboard_gets_the_numbers_where_it_is_installed(tmp_path, monkeypatch):
    import sys
    import types

    from training import board

    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append(("open", folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append(("close",))

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr(board, "find_spec", lambda name: object())
    duel(tmp_path)
    assert written[0] == ("open", str(tmp_path / "tensorboard"), 1)
    assert written[-1] == ("close",)
    curve = [(entry[1], entry[2]) for entry in written if entry[0] == "step/mse"]
    assert curve == [(record["mse"], record["step"]) for record in read(tmp_path / "log.jsonl", "step")]
    written.clear()
    duel(tmp_path / "off", "tensorboard=false")
    assert not written


def test_tensorboard_that_is_wanted_but_not_there_is_refused(tmp_path, monkeypatch):
    from training import board

    monkeypatch.setattr(board, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        duel(tmp_path, "tensorboard=true")
    duel(tmp_path / "auto")
    assert not (tmp_path / "auto" / "tensorboard").exists()
