import errno
import json
import pickle
import random

import pytest
import torch
from fakes.training_fakes import FakeCohort
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from training import checkpoint
from training.checkpoint import (
    build,
    export_encoder,
    load_encoder,
    load_state,
    random_encoder,
    save_state,
    timm_encoder,
)
from training.config import resolve
from training.train import pretrain
from usdata.errors import ConfigError, LakeError, UsdataError


@pytest.fixture
def out(tmp_path):
    pretrain(FakeCohort(), resolve("tiny", "micro", sets=["steps=3"]), tmp_path / "run")
    return tmp_path / "run"


def unsigned(directory):
    """The facts of weights without their digest, for weights that a test makes by hand."""
    return {name: value for name, value in checkpoint.facts_of(directory).items() if name != checkpoint.DIGEST}


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


def test_a_changed_or_cut_state_is_refused(tmp_path):
    path, rng = tmp_path / "last.pt", random.Random(0)
    save_state(path, {"step": 1, "model": {"w": torch.arange(2000.0)}})
    good, refused = path.read_bytes(), 0
    at = good.index(torch.arange(2000.0).numpy().tobytes())
    broken = [good[: at + 5] + b"\xff" + good[at + 6 :], *(good[: rng.randrange(len(good))] for _ in range(20))]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(UsdataError, match="Cannot read the checkpoint"):
            load_state(path)
    for place in (rng.randrange(len(good)) for _ in range(200)):
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << rng.randrange(8))]) + good[place + 1 :])
        try:
            assert torch.equal(load_state(path)["model"]["w"], torch.arange(2000.0))  # a bit that nobody reads
        except UsdataError:
            refused += 1
    assert refused > 150


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
    facts, state = unsigned(out), load_file(path)
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


def test_the_same_weights_and_facts_give_the_same_bytes(tmp_path):
    cfg = resolve("tiny", "micro")
    facts = {name: name for name in "abcdefghij"}  # the library itself would write them in another order each time
    files = [checkpoint.save_recipe(build(cfg), cfg, tmp_path, facts).read_bytes() for _ in range(3)]
    assert files[0] == files[1] == files[2]
    assert int.from_bytes(files[0][:8], "little") % 8 == 0


@pytest.mark.parametrize("signed", [True, False])
def test_a_changed_or_cut_file_of_weights_is_an_error_or_harmless(out, signed):
    """200 bits of the head, 50 of the tensors, and cuts: never a crash, and never other weights in silence."""
    path, images = out / "recipe.safetensors", torch.from_numpy(FakeCohort().images()[:2])[:, None]
    if not signed:
        save_file(load_file(path), path, unsigned(out))
    good, expected = path.read_bytes(), load_encoder(out).encode(images)
    head, rng, refused = 8 + int.from_bytes(good[:8], "little"), random.Random(0), 0
    places = [rng.randrange(head) for _ in range(200)] + [rng.randrange(head, len(good)) for _ in range(50 * signed)]
    broken = [good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :] for at in places]
    broken += [good[:length] for length in (0, 7, 8, head - 1, head, head + 5, len(good) - 1)]
    for content in broken:
        path.write_bytes(content)
        try:
            found = load_encoder(out)
        except UsdataError:
            refused += 1
        else:
            assert not signed or torch.equal(found.encode(images), expected)
    assert refused > 240 if signed else refused > 100


def test_a_changed_bit_of_the_weights_is_refused(out):
    path = out / "recipe.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsdataError, match="is damaged: its digest"):
        load_encoder(out)


def test_whole_numbers_are_no_weights(out):
    path = out / "recipe.safetensors"
    state, facts = load_file(path), unsigned(out)
    save_file({**state, "encoder.bias": torch.ones(8, dtype=torch.int32)}, path, facts)
    with pytest.raises(ConfigError, match=r"encoder\.bias is of torch\.int32, expected torch\.float32"):
        load_encoder(out)


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


def exported(recipe, directory, **changes):
    cfg = resolve(recipe, "micro", sets=[f"{key}={value}" for key, value in changes.items()])
    module = build(cfg).eval()
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "pos" in name or "cls_token" in name:
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    directory.mkdir(exist_ok=True)
    checkpoint.save_recipe(module, cfg, directory, checkpoint.own_facts(module))
    export_encoder(module, cfg, directory, {})
    return module


def test_positions_of_another_size_are_resized_as_a_picture_without_the_class_token_s_row(tmp_path):
    exported("d2mae", tmp_path)
    own, larger = timm_encoder(tmp_path), timm_encoder(tmp_path, 96)
    assert larger.pos_embed.shape == (1, 1 + 12 * 12, 64)
    assert torch.equal(larger.pos_embed[:, 0], own.pos_embed[:, 0])
    grid = own.pos_embed[0, 1:].T.reshape(1, 64, 8, 8)
    wanted = torch.nn.functional.interpolate(grid, (12, 12), mode="bicubic", antialias=True)
    torch.testing.assert_close(larger.pos_embed[0, 1:], wanted.flatten(2)[0].T, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        assert larger(torch.zeros(1, 1, 96, 96)).shape == (1, 64)


def test_usfm_of_224_pixels_goes_to_256_and_512(tmp_path):
    module = exported("usfm", tmp_path, image_size=224, patch_size=16, block_size=32)
    shared = module.encoder.rel_pos_bias.relative_position_bias_table
    for size, rows in ((224, 732), (256, 964), (512, 3972)):
        model = timm_encoder(tmp_path, size)
        tables = [block.attn.relative_position_bias_table for block in model.blocks]
        assert [len(table) for table in tables] == [rows, rows]
        assert torch.equal(tables[0][-3:], shared[-3:])
    with torch.inference_mode():
        assert timm_encoder(tmp_path, 256)(torch.zeros(1, 1, 256, 256)).shape == (1, 64)


def test_a_size_that_the_patches_do_not_divide_or_weights_that_timm_cannot_build_are_refused(tmp_path):
    exported("d2mae", tmp_path)
    with pytest.raises(ConfigError, match="100 is not a multiple of the patch size 8"):
        timm_encoder(tmp_path, 100)
    exported("arl", tmp_path / "arl")
    with pytest.raises(ConfigError, match=r"no network for .*\n.*load_encoder"):
        timm_encoder(tmp_path / "arl")


def test_a_new_organ_is_appended_as_the_null_class_and_the_others_stay_bit_for_bit(tmp_path):
    module = exported("arl", tmp_path)
    known = module.cfg.classes
    with torch.no_grad():
        for name, value in module.named_parameters():
            if ".acdt." in name or "anatomy" in name:
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    checkpoint.save_recipe(module, resolve("arl", "micro"), tmp_path, checkpoint.own_facts(module))
    old, new = load_encoder(tmp_path), load_encoder(tmp_path, classes=[*known, "eye"])
    moved = load_encoder(tmp_path, classes=known[::-1], names={})
    images = torch.from_numpy(FakeCohort().images()[:2])[:, None]
    with torch.inference_mode():
        for organ in ("breast", "heart"):
            assert torch.equal(new.encode(images, organ), old.encode(images, organ))
            assert torch.equal(moved.encode(images, organ), old.encode(images, organ))
        assert torch.equal(new.encode(images, "eye"), old.encode(images))
        assert not torch.equal(old.encode(images, "breast"), old.encode(images))
    with pytest.raises(ConfigError, match="without repeats"):
        load_encoder(tmp_path, classes=["breast", "breast"])


def test_a_run_that_starts_from_another_list_of_organs_finds_them_by_name(tmp_path):
    module = exported("arl", tmp_path)
    known = module.cfg.classes
    with torch.no_grad():
        for name, value in module.teacher.encoder.named_parameters():
            if ".acdt." in name or "anatomy" in name:
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    checkpoint.save_recipe(module, resolve("arl", "micro"), tmp_path, checkpoint.own_facts(module))
    path = export_encoder(module, resolve("arl", "micro"), tmp_path, {})
    cfg = module.cfg.model_copy(update={"init": str(path), "classes": (*known[::-1], "eye")})
    begun = type(module)(cfg)
    condition = torch.zeros(1, 17)
    images = torch.rand(1, 1, 64, 64)
    for organ in ("breast", "heart", "eye"):
        there = torch.zeros(1, 16)
        if organ in known:
            there[0, known.index(organ)] = 1
        condition.zero_()[0, cfg.classes.index(organ)] = 1
        with torch.inference_mode():
            assert torch.equal(begun.encoder.tokens(images, condition), module.trained.tokens(images, there))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="Cannot read the weights to start from"):
        type(module)(cfg)


def test_only_an_encoder_that_knows_organs_can_be_given_others(out):
    with pytest.raises(ConfigError, match="Tiny encoder knows no classes"):
        load_encoder(out, classes=["breast"])


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


def test_the_encoder_of_another_run_beside_the_weights_is_noticed(out, tmp_path):
    other = tmp_path / "other"
    pretrain(FakeCohort(), resolve("tiny", "micro", sets=["steps=2", "seed=1"]), other)
    (out / "encoder.safetensors").write_bytes((other / "encoder.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="are of different runs: they differ in config_hash"):
        load_encoder(out)
    (out / "encoder.safetensors").unlink()
    assert load_encoder(out)
