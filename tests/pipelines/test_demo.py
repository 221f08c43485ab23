"""The demo, small: it ends in a page, can be called again, and removes only what is its own."""

import shutil
from pathlib import Path

import pytest
from fakes.datasets import draw

from pipelines.demo import run_demo
from usdata.errors import LakeError, UsdataError
from usdata.lake import Lake

IMAGES, STEPS = 60, 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    run_demo(out, images=IMAGES, steps=STEPS)
    return out


@pytest.fixture()
def demo(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "demo"))


def test_the_demo_ends_with_a_page_weights_and_scores(finished: Path) -> None:
    text = (finished / "report.html").read_text("utf-8")
    assert "Contact sheet" in text and "Reconstructions" in text and "Untrained encoder" in text
    assert Lake(finished / "lake").cohort("all").rows == IMAGES
    assert (finished / "run" / "encoder.safetensors").is_file()
    assert {file.name for file in (finished / "run").glob("scores*.json")} >= {"scores.json"}


def test_it_tells_each_command_before_doing_it(demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_demo(demo, images=IMAGES, steps=STEPS)
    shown = capfd.readouterr().err
    verbs = [line.split()[2] for line in shown.splitlines() if line.startswith("$ usdata")]
    assert list(dict.fromkeys(verbs)) == ["ingest", "sql", "plan", "pretrain", "downstream", "report"]
    assert "report.html in a browser" in shown and "--card my.yaml" in shown


def test_a_second_call_trains_nothing_and_writes_the_same_page(demo: Path) -> None:
    page = (demo / "report.html").read_bytes()
    state = (demo / "run" / "checkpoint" / "last.pt").stat().st_mtime_ns
    scores = (demo / "run" / "scores.json").stat().st_mtime_ns
    run_demo(demo, images=IMAGES, steps=STEPS)
    assert (demo / "report.html").read_bytes() == page
    assert (demo / "run" / "checkpoint" / "last.pt").stat().st_mtime_ns == state
    assert (demo / "run" / "scores.json").stat().st_mtime_ns == scores


def test_real_images_are_used_too_and_training_starts_anew(demo: Path, tmp_path: Path) -> None:
    draw("busi", tmp_path / "real" / "busi")
    run_demo(demo, tmp_path / "real", images=IMAGES, steps=STEPS)
    assert "busi" in Lake(demo / "lake").datasets()
    text = (demo / "report.html").read_text("utf-8")
    assert "busi (licence unstated)" in text
    assert "trained on other images" not in text


def test_fresh_removes_the_demo_and_nothing_else(demo: Path) -> None:
    (demo / "notes.txt").write_text("mine")
    state = (demo / "run" / "checkpoint" / "last.pt").stat().st_ino
    run_demo(demo, fresh=True, images=IMAGES - 2, steps=STEPS)
    assert (demo / "notes.txt").read_text() == "mine"
    assert Lake(demo / "lake").cohort("all").rows == IMAGES - 2
    assert (demo / "run" / "checkpoint" / "last.pt").stat().st_ino != state


@pytest.mark.parametrize("name", ["lake", "run"])
def test_a_folder_of_another_making_is_never_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("years of work")
    with pytest.raises(LakeError):
        run_demo(tmp_path, fresh=True, images=8, steps=1)
    assert (tmp_path / name / "thesis.tex").exists()


def test_a_missing_folder_of_real_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsdataError, match="nowhere"):
        run_demo(tmp_path / "demo", tmp_path / "nowhere")
    assert not (tmp_path / "demo").exists()
