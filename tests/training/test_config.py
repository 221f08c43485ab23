import json

import pytest
from fakes import training_fakes as _  # noqa: F401  registers "tiny"

from training.config import FREE_ON_RESUME, RunConfig, resolve
from usdata.errors import ConfigError


def test_a_preset_alone_gives_a_complete_config():
    cfg = resolve("tiny", "micro")
    assert (cfg.recipe, cfg.preset, cfg.steps, cfg.batch_size) == ("tiny", "micro", 12, 8)
    assert cfg.recipe_config == {"image_size": 16, "width": 8, "noise": 0.1, "poison_at": 0}


def test_micro_is_the_preset_when_none_is_named():
    assert resolve("tiny").preset == "micro"


def test_set_wins_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("steps: 20\nseed: 7\nrecipe_config: {width: 4}\n")
    cfg = resolve("tiny", "small", file, ["steps=30"])
    assert (cfg.steps, cfg.seed, cfg.recipe_config["width"], cfg.batch_size) == (30, 7, 4, 8)


def test_a_recipe_key_may_be_written_bare_or_in_full():
    bare, full = resolve("tiny", "micro", sets=["width=3"]), resolve("tiny", "micro", sets=["recipe_config.width=3"])
    assert bare == full
    assert bare.recipe_config["width"] == 3


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("base_lr=1e-3", "base_lr", 1e-3),
        ("clip_grad=null", "clip_grad", None),
        ("betas=[0.8, 0.9]", "betas", (0.8, 0.9)),
    ],
)
def test_values_are_read_as_yaml(text, key, value):  # YAML 1.1 takes 1e-3 for a word; it must still become a number
    assert getattr(resolve("tiny", "micro", sets=[text]), key) == value


def test_the_config_of_an_earlier_run_is_a_config_file(tmp_path):
    first = resolve("tiny", "small", sets=["seed=3", "width=5"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": first.model_dump(mode="json"), "config_hash": first.hash, "rows": 9}))
    assert resolve("tiny", None, file) == first


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["step=5"], "No key 'step'.*Did you mean 'steps'"),
        (["recipe_config.widht=5"], "no key 'widht'.*Did you mean 'width'"),
        (["widht=5"], "No key 'widht'.*Did you mean 'width'"),
        (["steps"], "Cannot read the setting 'steps'"),
        (["steps=[1"], "as YAML"),
        (["steps=many"], "steps = 'many'"),
        (["steps=0"], "steps = 0"),
        (["lr=-1"], "lr = -1"),
        (["width=wide"], "width = 'wide'"),
        (["recipe=usfm"], "can't be set"),
        (["recipe_config=3"], "must be a mapping"),
        (["accumulate=3"], "not a multiple of accumulate"),
        (["min_lr=1"], "above the peak"),
        (["precision=fp8"], "precision"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(sets, message):
    with pytest.raises(ConfigError, match=message):
        resolve("tiny", "micro", sets=sets)


def test_an_unknown_recipe_or_preset_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'tiny'"):
        resolve("tini", "micro")
    with pytest.raises(ConfigError, match="Did you mean 'micro'"):
        resolve("tiny", "mikro")


@pytest.mark.parametrize(
    ("content", "message"),
    [("- 1", "no mapping"), ("a: [", "not YAML"), ("recipe: arl", "for recipe 'arl'"), ("stpes: 3", "No key 'stpes'")],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        resolve("tiny", "micro", file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Cannot read the config file"):
        resolve("tiny", "micro", tmp_path / "none.yaml")


def test_the_peak_rate_grows_with_the_batch_unless_it_is_given():
    assert resolve("tiny", "small", sets=["base_lr=1.5e-4", "batch_size=1024"]).peak_lr == pytest.approx(6e-4)
    assert resolve("tiny", "small", sets=["base_lr=1.5e-4", "batch_size=1024", "lr=0.1"]).peak_lr == 0.1


def test_forty_of_eight_thousand_epochs_are_400_of_80_000_steps():
    assert resolve("tiny", "small", sets=["steps=80000", "warmup=0.005"]).warmup_steps == 400


def test_the_hash_changes_with_any_value_and_with_nothing_else():
    cfg = resolve("tiny", "micro")
    assert cfg.hash == resolve("tiny", "micro").hash
    assert len(cfg.hash) == 16
    assert len({cfg.hash, *(resolve("tiny", "micro", sets=[s]).hash for s in ("seed=1", "width=9", "gamma=0"))}) == 4


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        resolve("tiny", "micro").steps = 3  # type: ignore[misc]


def test_the_keys_that_are_free_on_resume_exist():
    assert RunConfig.model_fields.keys() >= FREE_ON_RESUME
