import errno
import json
import pickle

import pytest
import torch
from fakes.training_fakes import FakeCohort
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from training import checkpoint
from training.checkpoint import build, export_encoder, load_encoder, load_state, random_encoder, save_state
from training.config import resolve
from training.train import pretrain
from usdata.errors import ConfigError, LakeError, UsdataError


@pytest.fixture
def out(tmp_path):
    pretrain(FakeCohort(), resolve("tiny", "micro", sets=["steps=3"]), tmp_path / "run")
    return tmp_path / "run"


def test_a_state_holds_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"format": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UsdataError, match="Cannot read the checkpoint"):
        load_state(tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"format": 1}))
    with pytest.raises(UsdataError, match="Cannot read the checkpoint"):
        load_state(tmp_path / "plain.pt")


def test_a_state_of_another_format_is_refused(tmp_path):
    torch.save({"format": 2}, tmp_path / "new.pt")
    with pytest.raises(UsdataError, match="has format 2; this version reads 1"):
        load_state(tmp_path / "new.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(UsdataError, match="has format list"):
        load_state(tmp_path / "list.pt")


def test_a_full_disk_leaves_the_old_state_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_state(path, {"step": 1})

    def full(state, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(LakeError, match="No space left"):
        save_state(path, {"step": 2})
    assert load_state(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_the_loaded_encoder_gives_the_trained_features(out):
    loaded = load_encoder(out)
    images = torch.from_numpy(FakeCohort().images()[:4])[:, None]
    state = load_state(out / "checkpoint" / "last.pt")["model"]
    expected = loaded.view(images) @ state["encoder.weight"].T + state["encoder.bias"]
    assert not loaded.training
    torch.testing.assert_close(loaded.encode(images), expected)


def test_the_weights_say_where_they_come_from(out):
    for name in ("encoder.safetensors", "recipe.safetensors"):
        with safe_open(out / name, framework="pt") as file:
            facts = file.metadata()
        assert facts["recipe"] == "tiny"
        assert facts["cohort_hash"] == "c0ffee"
        assert facts["steps"] == "3"
        assert facts["code_version"]
        assert facts["config_hash"] == resolve("tiny", "micro", sets=["steps=3"]).hash
    assert json.loads(checkpoint.facts_of(out)["recipe_config"])["width"] == 8


def test_weights_that_do_not_fit_are_refused_by_name(out):
    path = out / "recipe.safetensors"
    facts, state = checkpoint.facts_of(out), load_file(path)
    state["encoder.weigth"] = state.pop("encoder.weight")
    state["decoder.weight"] = state["decoder.weight"][:3].clone()
    save_file(state, path, facts)
    with pytest.raises(ConfigError) as caught:
        load_encoder(out)
    for part in ("missing encoder.weight", "unexpected encoder.weigth", "decoder.weight is (3, 8), expected (256, 8)"):
        assert part in str(caught.value)


def test_weights_of_an_unknown_recipe_are_refused(out):
    state = load_file(out / "recipe.safetensors")
    save_file(state, out / "recipe.safetensors", {"recipe": "tinny", "recipe_config": "{}"})
    with pytest.raises(ConfigError, match="No recipe named 'tinny'"):
        load_encoder(out)
    save_file(state, out / "recipe.safetensors")
    with pytest.raises(ConfigError, match="does not say which recipe"):
        load_encoder(out)


def test_missing_or_damaged_weights_are_refused(tmp_path):
    with pytest.raises(UsdataError, match="No weights in") as caught:
        load_encoder(tmp_path)
    assert "usdata pretrain" in caught.value.hint
    (tmp_path / "recipe.safetensors").write_bytes(b"junk")
    with pytest.raises(UsdataError, match="is damaged"):
        load_encoder(tmp_path)


def test_a_random_encoder_depends_on_the_seed_alone():
    a, b, c = (random_encoder("tiny", "micro", seed).encoder.weight for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(build(resolve("tiny", "micro")).encoder.weight, a)
    assert torch.equal(checkpoint.untrained_twin(random_encoder("tiny", "micro", 1), 0).encoder.weight, a)


# --- the self-test of an export, on a ViT


@pytest.fixture(scope="module")
def vit():
    return build(resolve("d2mae", "micro"))


def test_timm_loads_the_exported_vit_to_equal_features(vit, tmp_path):
    import timm

    cfg = resolve("d2mae", "micro")
    path = export_encoder(vit, cfg, tmp_path, {"cohort_hash": "c0ffee"})
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    assert {"model_name", "model_args", "mean", "std", "recipe", "cohort_hash", "config_hash"} <= facts.keys()
    model = timm.create_model(facts["model_name"], **json.loads(facts["model_args"]), checkpoint_path=str(path)).eval()
    images = torch.randint(0, 256, (3, 1, 256, 256), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(model(vit.network_input(images)), vit.eval().encode(images), rtol=1e-4, atol=1e-4)


def test_an_export_that_timm_refuses_is_refused_on_saving(vit, tmp_path, monkeypatch):
    state, meta = vit.encoder_export()
    state["blocks.0.norm1.wait"] = state.pop("blocks.0.norm1.weight")
    monkeypatch.setattr(vit, "encoder_export", lambda: (state, meta), raising=False)
    with pytest.raises(UsdataError, match="timm cannot load"):
        export_encoder(vit, resolve("d2mae", "micro"), tmp_path, {})


def test_an_export_of_other_weights_is_refused_on_saving(vit, tmp_path, monkeypatch):
    state, meta = vit.encoder_export()
    state["blocks.0.mlp.fc1.weight"] = 3 * state["blocks.0.mlp.fc1.weight"]
    monkeypatch.setattr(vit, "encoder_export", lambda: (state, meta), raising=False)
    with pytest.raises(UsdataError, match="other features"):
        export_encoder(vit, resolve("d2mae", "micro"), tmp_path, {})
