import json
import subprocess
import sys

import pytest
from fakes.training_fakes import FakeCohort
from typer.testing import CliRunner

from training.checkpoint import load_encoder
from training.cli import VARIANT_HELP, app
from training.config import variants
from training.recipes import registry
from training.runlog import read
from usdata import lake
from usdata.errors import ConfigError, UsdataError


class FakeLake:
    def __init__(self, root):
        self.root = root

    def cohort(self, expression):
        return FakeCohort()


@pytest.fixture(autouse=True)
def _fake_lake(monkeypatch):
    monkeypatch.setattr(lake, "Lake", FakeLake)


def usdata(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def pretrain(out, *more):
    return usdata("pretrain", "tiny", "--cohort", "all", "--out", out, *more)


def test_pretrain_then_probe_then_read_the_scores(tmp_path):
    done = pretrain(tmp_path / "run", "--preset", "micro", "--set", "steps=5", "--set", "width=4")
    assert done.exit_code == 0, done.output
    assert "usdata downstream probe --encoder" in done.stderr
    assert done.stdout == ""
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["recipe_config"]["width"] == 4
    assert len(read(tmp_path / "run" / "log.jsonl", "step")) == 5
    probed = usdata("downstream", "probe", "--encoder", tmp_path / "run", "--cohort", "all", "--json")
    assert probed.exit_code == 0, probed.output
    result = json.loads(probed.stdout)
    assert result["label"] == "organ"
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["classes"] == result["classes"]


def test_the_table_of_scores_names_every_method(tmp_path):
    pretrain(tmp_path / "run", "--set", "steps=2")
    out = tmp_path / "elsewhere.json"
    probed = usdata("downstream", "probe", "--encoder", tmp_path / "run", "--cohort", "all", "--out", out)
    assert probed.exit_code == 0, probed.output
    for word in ("trained", "random", "thumbnails", "majority", "macro_auroc"):
        assert word in probed.stdout
    assert out.exists()
    assert not (tmp_path / "run" / "scores.json").exists()


def test_json_gives_one_object(tmp_path):
    done = pretrain(tmp_path / "run", "--set", "steps=3", "--json")
    result = json.loads(done.stdout)
    assert (result["step"], result["finished"], result["last"]["step"]) == (3, True, 3)


def test_a_config_file_is_read_and_settings_win(tmp_path):
    (tmp_path / "run.yaml").write_text("preset: small\nsteps: 4\nseed: 2\n")
    done = pretrain(tmp_path / "run", "--config", tmp_path / "run.yaml", "--set", "steps=3")
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["preset"], config["steps"], config["seed"]) == ("small", 3, 2)


def test_a_run_that_reached_its_hours_says_how_to_go_on(tmp_path):
    first = pretrain(tmp_path / "run", "--max-hours", "0")
    assert first.exit_code == 0, first.output
    assert "stopped by max-hours after step 1 of 12" in first.stderr
    assert "--resume" in first.stderr
    assert pretrain(tmp_path / "run", "--resume").exit_code == 0
    assert len(read(tmp_path / "run" / "log.jsonl", "step")) == 12


def test_expected_failures_are_usdata_errors(tmp_path):
    assert isinstance(pretrain(tmp_path / "a", "--preset", "mikro").exception, ConfigError)
    assert isinstance(pretrain(tmp_path / "b", "--set", "stpes=3").exception, ConfigError)
    probed = usdata("downstream", "probe", "--encoder", tmp_path, "--cohort", "all")
    assert isinstance(probed.exception, UsdataError)
    pretrain(tmp_path / "run", "--set", "steps=2")
    again = pretrain(tmp_path / "run", "--set", "steps=2")
    assert "--resume" in str(again.exception)


@pytest.mark.parametrize(
    ("variant", "facts"),
    [
        ("deblurrmae", {"blur": "static", "embed": "none", "loss_on": "all"}),
        ("mae", {"blur": "none", "embed": "none", "loss_on": "masked"}),
    ],
)
def test_the_baselines_of_d2mae_train_by_their_names(tmp_path, variant, facts):
    words = ["pretrain", "d2mae", "--preset", "micro", "--cohort", "all", "--out", tmp_path / "run"]
    words += [word for text in ("steps=2", "batch_size=4", "image_size=32") for word in ("--set", text)]
    done = usdata(*words, "--variant", variant)
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["variant"], config["preset"], config["steps"]) == (variant, "micro", 2)
    cfg = load_encoder(tmp_path / "run").cfg
    assert {key: getattr(cfg, key) for key in facts} == facts
    assert f"variant was {variant!r}, now None" in str(usdata(*words, "--resume").exception)


def test_the_help_of_pretrain_lists_the_variants_of_every_recipe():
    recipes = [name for name in registry.names() if hasattr(registry.get(name)[0], "variants")]
    told = "; ".join(f"{name}: {', '.join(list(variants(name))[1:])}" for name in recipes)
    assert VARIANT_HELP.endswith(f" {told}.")
    assert "deblurrmae" in usdata("pretrain", "--help").stdout


def test_wrong_usage_exits_with_2(tmp_path):
    assert usdata("pretrain", "tiny").exit_code == 2


def test_asking_for_help_imports_no_torch_through_the_verbs():
    code = (
        "import sys, types; sys.modules['training'] = types.ModuleType('training');"
        "sys.modules['training'].__path__ = ['training'];"  # the package's own guard is not the verbs' doing
        "import training.cli;"
        "assert not {'torch', 'timm', 'sklearn', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=_root())
    assert done.returncode == 0, done.stderr


def _root():
    from pathlib import Path

    return Path(__file__).parents[2]
