import hashlib
import itertools
import json

import pytest
from fakes import training_fakes as _  # noqa: F401  registers "tiny"

from training.config import FREE_ON_RESUME, MAY_CURE, RunConfig, cures, differences, presets, resolve, variants
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
        (["variant=mae"], "can't be set: choose it by .*--variant"),
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


# ---- variants

RECIPES = ("arl", "d2mae", "tusa", "usfm")


@pytest.mark.parametrize(("recipe", "preset"), [*itertools.product(RECIPES, ("micro", "small", "paper"))])
def test_every_variant_goes_with_every_preset_and_changes_config_and_hash(recipe, preset):
    own, *others = variants(recipe)
    plain = resolve(recipe, preset)
    assert others and plain.variant is None
    assert resolve(recipe, preset, variant=own) == plain  # the paper's own method is no change
    found = {name: resolve(recipe, preset, variant=name) for name in others}
    assert {name: cfg.variant for name, cfg in found.items()} == {name: name for name in others}
    assert len({plain.hash, *(cfg.hash for cfg in found.values())}) == 1 + len(others)
    for name, cfg in found.items():
        before, after = ({**one.model_dump(), **one.recipe_config, "variant": ""} for one in (plain, cfg))
        wanted = {**variants(recipe)[name].get("run", {}), **variants(recipe)[name].get("recipe", {})}
        changed = {key for key in after if after[key] != before[key]} - {"recipe_config"}
        assert changed and changed <= wanted.keys(), name


def test_settings_and_file_win_over_the_variant_and_the_variant_over_the_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("variant: deblurrmae\nstatic_sigma: 0.9\n")
    cfg = resolve("d2mae", "small", file, ["embed=add"])
    assert (cfg.variant, cfg.preset, cfg.recipe_config["image_size"]) == ("deblurrmae", "small", 128)
    own = [cfg.recipe_config[key] for key in ("blur", "static_sigma", "embed", "finetune_blur")]
    assert own == ["static", 0.9, "add", "fixed"]
    assert resolve("d2mae", "small", file, variant="mae").recipe_config["blur"] == "none"


def test_a_variant_may_change_the_trainer_too():
    assert resolve("usfm", "paper", variant="woS").gamma == 1.0
    mim = resolve("arl", "paper", variant="mim")
    assert (mim.betas, mim.weight_decay, mim.weight_decay_end, mim.peak_lr) == ((0.9, 0.95), 0.05, None, 6e-4)
    assert resolve("arl", "micro", variant="mim").peak_lr == 2e-3  # the preset's own rate stays


def test_an_unknown_variant_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"has no variant 'debluremae'.*Did you mean 'deblurrmae'") as caught:
        resolve("d2mae", variant="debluremae")
    assert caught.value.hint == "Variants: d2mae, deblurrmae, mae"
    with pytest.raises(ConfigError, match="has no variant 'mae'") as caught:
        resolve("tiny", variant="mae")
    assert caught.value.hint == "It has no variants at all."


def test_a_runs_own_config_keeps_its_variant_and_takes_no_other(tmp_path):
    first = resolve("d2mae", "micro", variant="mae")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": first.model_dump(mode="json")}))
    assert resolve("d2mae", None, file) == resolve("d2mae", "micro", file, variant="mae") == first
    for given in ({"variant": "deblurrmae"}, {"preset": "small"}):
        with pytest.raises(ConfigError, match=f"run with {next(iter(given))} .* would change none of its values"):
            resolve("d2mae", file=file, **given)


def test_a_config_from_before_the_variants_loads_with_its_old_hash(tmp_path):
    cfg = resolve("d2mae", "micro")
    old = {key: value for key, value in cfg.model_dump(mode="json").items() if key != "variant"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": old}))
    assert resolve("d2mae", None, file) == cfg
    canonical = json.dumps(old, sort_keys=True, separators=(",", ":"))
    assert RunConfig(**old).hash == cfg.hash == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert differences(old, cfg.model_dump(mode="json")) == []


def test_only_the_nested_keys_that_differ_are_told():
    plain, mae = (resolve("d2mae", variant=name).model_dump(mode="json") for name in (None, "mae"))
    told = differences(plain, mae, frozenset({"steps"}))
    assert [line.split(" was ")[0] for line in told] == ["recipe_config", "variant"]
    assert "'blur': 'levels'" in told[0] and "sigmas" not in told[0]
    assert told[1] == "variant was None, now 'mae'"


def test_the_nearest_key_is_looked_for_where_the_wrong_one_lies():
    with pytest.raises(ConfigError, match=r"no key 'weights\.contrst'\. Did you mean 'contrast'"):
        resolve("tusa", sets=["weights.contrst=1"])


def test_every_preset_named_in_the_help_exists():
    assert all(set(presets(recipe)) == {"micro", "small", "paper"} for recipe in RECIPES)


def test_the_cures_of_a_nan_are_settings_that_change_something_and_are_taken():
    run = resolve("usfm", "paper")  # min_lr 2e-5 is above a tenth of the rate after two cures
    once = resolve("usfm", "paper", sets=["lr=4e-5"])
    assert cures(run, ["loss"]) == "--resume --set lr=4e-05   or  --resume --set clip_grad=0.5"
    assert cures(once, ["loss"]).startswith("--resume --set lr=4e-06 --set min_lr=0   or")
    assert resolve("usfm", "paper", sets=["lr=4e-06", "min_lr=0"])
    judge = resolve("arl", "micro")
    assert cures(judge, ["loss/discriminator"]).startswith("--resume --set disc_lr=0.0001   or")
    now = resolve("arl", "micro", sets=["disc_lr=1e-4"]).model_dump(mode="json")
    assert differences(judge.model_dump(mode="json"), now)
    assert not differences(judge.model_dump(mode="json"), now, MAY_CURE)


def test_a_key_given_twice_in_a_file_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("steps: 2\nlr: 1e-4\nsteps: 3\n")
    with pytest.raises(ConfigError, match=r"run.yaml is not YAML .line 1: key 'steps' is given twice"):
        resolve("tiny", "micro", tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text("steps: 2\nlr: 1e-4\n")
    assert resolve("tiny", "micro", tmp_path / "run.yaml").lr == 1e-4
