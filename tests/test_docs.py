"""What the documents say is run: commands in order, the card as printed, the generated pages as generated."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.folders import write_image

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text("utf-8")
BIN = Path(sys.executable).parent
_BLOCK = re.compile(r"(?:<!-- (not run: [^>]+?) -->\n)?```(\w+)\n(.*?)```", re.S)


def blocks(language: str) -> list[str]:
    """Code blocks of the README in their order, without those that say why they are not run."""
    return [text for skipped, kind, text in _BLOCK.findall(README) if kind == language and not skipped]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory) -> Path:
    """A folder as the README supposes it: photos in class folders, patients.csv, and my.yaml as printed."""
    home = tmp_path_factory.mktemp("newcomer")
    lines = ["file,patient,size_mm"]
    for i in range(24):
        label = ("benign", "malignant")[i % 2]
        write_image(home / "photos" / label / f"n{i:02d}.png", seed=i, side=64)
        lines.append(f"n{i:02d}.png,p{i // 2},{4 + i / 10}")
    (home / "photos" / "patients.csv").write_text("\n".join(lines) + "\n")
    [card] = blocks("yaml")
    (home / "my.yaml").write_text(card)
    return home


def run(command: str, folder: Path) -> str:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_printed(newcomer):
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("usdata ")]
    assert len(commands) >= 10
    for command in commands:
        run(command, newcomer)
    assert (newcomer / "report.html").stat().st_size > 10_000
    assert (newcomer / "runs/first/scores.json").exists()

    [code] = blocks("python")
    (newcomer / "first.py").write_text(code + "    break\nprint(tuple(images.shape))\n")
    assert "(4, 1, 256, 256)" in run(f"{sys.executable} first.py", newcomer)


def test_the_make_targets_of_the_readme_exist():
    makefile = (PROJECT / "Makefile").read_text()
    named = {
        target
        for page in ("README.md", "CONTRIBUTING.md")
        for target in re.findall(r"^make (\w+)", (PROJECT / page).read_text(), re.M)
    }
    assert named >= {"demo", "test", "lint"}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in named)


PAGES = [
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *(f"docs/{name}.md" for name in ("datasets", "dedup", "fetch", "formats", "private", "splits", "streaming")),
]


@pytest.mark.parametrize("page", PAGES)
def test_every_local_link_and_named_file_exists(page):
    text = (PROJECT / page).read_text("utf-8")
    here = (PROJECT / page).parent
    links = [str(here / link) for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"`((?:usdata|ingest|training|pipelines|tests|docs)/[\w./-]+\.\w+)`", text)
    missing = [name for name in [*links, *files] if not (PROJECT / name).exists()]
    assert not missing


def test_the_generated_pages_are_as_the_program_would_write_them(tmp_path):
    run(f"{sys.executable} {PROJECT / 'docs' / 'make_pages.py'} {tmp_path}", PROJECT)
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md"))
    pages = [page for page in (PROJECT / "docs").rglob("*.md") if page.read_text().startswith("<!-- Generated")]
    assert made == sorted(str(page.relative_to(PROJECT / "docs")) for page in pages)
    for name in made:
        assert (PROJECT / "docs" / name).read_text() == (tmp_path / name).read_text(), f"docs/{name}: run `make docs`"


def test_the_card_of_the_five_steps_brings_in_pictures_with_the_outlines_drawn_on_them(tmp_path):
    card = re.findall(r"```yaml\n(.*?)```", (PROJECT / "CONTRIBUTING.md").read_text("utf-8"), re.S)[0]
    (tmp_path / "my.yaml").write_text(card)
    for number, label in enumerate(("healthy", "swollen")):
        path = tmp_path / "knees" / label / f"p0{number}_1.png"
        write_image(path, seed=number, side=64)
        outline = {"label": "effusion", "shape_type": "polygon", "points": [[10, 10], [50, 10], [50, 40], [10, 40]]}
        content = {"imagePath": path.name, "imageWidth": 80, "imageHeight": 64, "shapes": [outline] * number}
        path.with_suffix(".json").write_text(json.dumps(content))
    run("usdata ingest --card my.yaml --from knees --lake lake", tmp_path)
    query = "select label, patient, has_mask from samples order by label"
    said = run(f"usdata sql {shlex.quote(query)} --lake lake --json", tmp_path)
    rows = [json.loads(line) for line in said.splitlines()]
    assert [(row["label"], row["patient"]) for row in rows] == [("healthy", "my_knees-00"), ("swollen", "my_knees-01")]
    assert rows[1]["has_mask"] and not rows[0]["has_mask"]
