"""The evidence that recipes learn: its comparison is fair, its page says what was measured, its scripts start."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[2]
BENCHMARKS, DOCS = PROJECT / "benchmarks", PROJECT / "docs"


@pytest.fixture
def learns(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learns

    return learns


@pytest.fixture
def task(learns):
    """Forty patients with two images each, in two classes."""
    groups = np.repeat(np.arange(40), 2)
    labels = (groups % 2).astype(np.int64)
    return learns.Task(np.zeros((80, 256, 256), np.uint8), ["a", "b"], labels, groups, [], [])


def probed(task, *, random: float, trained: float, seed: int) -> dict:
    """Class scores that are right in so many of ten images, before and after training."""
    chance = np.random.default_rng(seed).random((2, 80))
    found = {}
    for kind, share, drawn in (("random", random, chance[0]), ("trained", trained, chance[1])):
        said = np.where(drawn < share, task.labels, 1 - task.labels)
        found[f"{kind}/t/linear"] = np.eye(2)[said]
    return found


def test_encoders_that_did_not_change_have_no_gain_and_no_interval(learns, task):
    same = probed(task, random=0.7, trained=0.7, seed=0)
    same["trained/t/linear"] = same["random/t/linear"]
    found = learns.compare(task, "t", "linear", [same, same])
    assert found["gain"]["macro_f1"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["random"]["macro_f1"]["low"] < found["random"]["macro_f1"]["high"]


def test_the_gain_is_the_mean_over_the_seeds_and_its_interval_holds_it(learns, task):
    runs = [probed(task, random=0.5, trained=0.95, seed=seed) for seed in (0, 1)]
    found = learns.compare(task, "t", "linear", runs)
    gain = found["gain"]["accuracy"]
    assert gain["value"] == pytest.approx(np.mean(found["seeds"]["accuracy"]), abs=1e-4)
    assert 0 < gain["low"] < gain["value"] < gain["high"]


def test_no_patient_of_the_probes_is_seen_in_pretraining(learns):
    assert learns.SEEN.replace("<", ">=") == learns.UNSEEN


def test_the_page_agrees_with_the_measured_results(learns):
    results = json.loads((DOCS / "learns.json").read_text("utf-8"))
    assert (DOCS / "learns.md").read_text("utf-8") == learns.page(results), "python benchmarks/learns.py --page"


def test_the_pictures_of_the_page_exist_and_are_small_together():
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (DOCS / "learns.md").read_text("utf-8"))
    assert len(named) == 6
    assert all((DOCS / name).is_file() for name in named)
    assert sum(path.stat().st_size for path in (DOCS / "images").glob("*.png")) < 1_500_000


@pytest.mark.recipes
@pytest.mark.timeout(600)
def test_the_scripts_of_results_and_pictures_start(tmp_path):
    tiny = ["--steps", "2", "--images", "300", "--work", tmp_path / "work"]
    measure = ["--recipes", "d2mae", "--seeds", "1", "--out", tmp_path / "learns.json"]
    draw = ["--out", tmp_path / "images", "--only", *(f"recipe-{name}" for name in ("d2mae", "usfm", "tusa", "arl"))]
    for script, arguments in ((BENCHMARKS / "learns.py", measure), (DOCS / "make_figures.py", draw)):
        done = subprocess.run([sys.executable, script, *tiny, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "learns.json").read_text("utf-8"))
    assert results["scores"]["d2mae"]["organ"]["linear"]["gain"]["macro_f1"]["low"] <= 1
    assert "# It learns" in (tmp_path / "learns.md").read_text("utf-8")
    assert len(list((tmp_path / "images").glob("recipe-*.png"))) == 4
