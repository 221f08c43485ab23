"""The benchmarks start, and the one of the loader tells the truth about who took part."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "ArgumentParser(" in path.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`benchmarks/loader.py` with 50 images, without LitData, and with an FFCV that breaks."""
    stubs = tmp_path_factory.mktemp("stubs")
    (stubs / "litdata.py").write_text("raise ImportError('no litdata here')")
    (stubs / "ffcv.py").write_text("raise RuntimeError('broken on purpose')")
    sizes = ["--images=50", "--batch=16", "--rounds=1", "--seconds=0.02", "--only", "ours", "gather", "litdata", "ffcv"]
    return subprocess.run(
        [sys.executable, BENCHMARKS / "loader.py", *sizes, "--folder", tmp_path_factory.mktemp("run")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(stubs)},
    )


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Eight images as a contender's process sees them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from rivals.contender import Source

    images = np.random.default_rng(0).integers(0, 256, (8, 256, 256), np.uint8)
    np.save(tmp_path / "images.npy", images)
    return Source(tmp_path)


def line_of(run: subprocess.CompletedProcess, start: str) -> str:
    found = [line for line in run.stdout.splitlines() if line.startswith(f"| {start}")]
    assert len(found) == 1, run.stdout + run.stderr
    return found[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_says_how_to_run_it(script):
    done = subprocess.run([sys.executable, BENCHMARKS / script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_each_contender_has_a_row_with_its_rate(run):
    for title in ("usdata |", "usdata, checksums=True |", "usdata, mask=True |", "numpy.take, from memory |"):
        rate = line_of(run, title).split("|")[3].split("(")[0]
        assert int(rate.replace(",", "")) > 0


def test_a_missing_rival_is_a_row_that_says_how_to_install_it(run):
    line = line_of(run, "LitData")
    assert "no litdata here" in line
    assert "pip install -c constraints.txt -e '.[rivals]'" in line


def test_a_rival_that_breaks_is_a_row_and_makes_the_run_fail(run):
    assert "FAILED" in line_of(run, "FFCV (")
    assert "broken on purpose" in line_of(run, "FFCV (")
    assert run.returncode == 1


def test_a_target_without_its_rival_is_not_measured(run):
    assert "not measured" in line_of(run, "FFCV, raw arrays")
    assert line_of(run, "one numpy.take").split("|")[5].split()[0] in ("reached", "missed")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--batch", "0"], "--batch must be"),
        (["--images", "8", "--batch", "9"], "--batch must be"),
        (["--python-of", "nobody=/bin/python"], "--python-of takes"),
        (["--python-of", "ffcv"], "--python-of takes"),
        (["--only", "nobody"], "invalid choice"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_built(arguments, complaint):
    done = subprocess.run([sys.executable, BENCHMARKS / "loader.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_a_contender_that_gives_other_pixels_is_refused(source):
    from rivals.__main__ import check

    batch = np.array(source.images()[[5, 2, 7, 1]])
    check(batch, source, 4, "right")
    check(batch[:, None], source, 4, "right, with a channel")
    batch[2, 100, 100] ^= 1
    with pytest.raises(ValueError, match="1 of 4 images have other pixels"):
        check(batch, source, 4, "one bit is wrong")


def test_a_contender_that_does_not_shuffle_is_refused(source):
    from rivals.__main__ import check

    with pytest.raises(ValueError, match="stored order"):
        check(np.array(source.images()[:4]), source, 4, "in order")


def test_a_contender_with_batches_of_another_form_is_refused(source):
    from rivals.__main__ import check

    with pytest.raises(ValueError, match="float32"):
        check(source.images()[[3, 1, 2]].astype(np.float32), source, 3, "floats")
    with pytest.raises(ValueError, match="uint8"):
        check(source.images()[[3, 1]], source, 3, "a smaller batch")


@pytest.mark.recipes
@pytest.mark.parametrize("recipe", ["d2mae", "usfm", "tusa", "arl"])
def test_the_plain_rival_of_a_recipe_has_its_parameters_and_its_losses(recipe, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from eager.__main__ import check

    found = check(recipe, "micro")  # raises if they differ, plain or with every remedy
    assert found["eager"]["loss"] == pytest.approx(found["ours"]["loss"], rel=2e-4)


@pytest.mark.recipes
def test_the_benchmark_of_pretraining_prints_both_tables():
    command = [sys.executable, BENCHMARKS / "pretrain.py", "--quick", "--recipes", "d2mae", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for start in ("d2mae | micro | 2 | usdata |", "d2mae | micro | 2 | eager |", "d2mae | (eager) |"):
        line_of(done, start)
