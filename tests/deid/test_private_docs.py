"""docs/private.md and the example: commands run as printed; reasons, verbs and files that they name exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.deid_dicom import ultrasound

from ingest.deid.reasons import Reason
from ingest.deid.review_words import WORDS

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "private.md").read_text("utf-8")
BIN = Path(sys.executable).parent
_BLOCK = re.compile(r"(?:<!-- (not run: [^>]+?) -->\n)?```(\w+)\n(.*?)```", re.S)


def shell(line: str, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """A line of the page as typed in a shell whose home is a folder of the test."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "USDATA_"))}
    clean |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=clean, capture_output=True, text=True)


@pytest.mark.deid
@pytest.mark.slow
def test_the_commands_of_the_page_run_as_printed(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for number in range(2):
        ultrasound(f"docs {number}").write(tmp_path / "scans" / f"patient {number}" / "IM1.dcm")
    (tmp_path / "scans" / "list.txt").write_text("names")
    whole = (tmp_path / "scans" / "patient 0" / "IM1.dcm").read_bytes()
    (tmp_path / "scans" / "patient 0" / "IM2.dcm").write_bytes(whole[: len(whole) // 2])
    blocks = [text for skip, kind, text in _BLOCK.findall(PAGE) if kind == "bash" and not skip]
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 7
    for line in lines:
        done = shell(line, tmp_path, home)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "patient 0" not in done.stdout + done.stderr
    [review] = home.rglob("review.html")
    assert review.stat().st_mode & 0o777 == 0o600
    assert (home / "site_a.key").stat().st_mode & 0o777 == 0o600


def test_every_reason_stands_in_the_table_with_the_words_of_the_review_page():
    for reason in Reason:
        line = f"| `{reason}` | {reason.state} | {WORDS[reason].found} | {WORDS[reason].do} |"
        assert line in PAGE, f"docs/private.md lacks this line:\n{line}"


def test_every_verb_and_option_of_the_page_exists():
    import typer

    from usdata.cli import command_line

    verbs = typer.main.get_command(command_line()).commands
    for line in re.findall(r"`?usdata ([^`\n]+)", PAGE):
        words = line.split()
        found = verbs[words[0]]
        if hasattr(found, "commands") and len(words) > 1 and words[1] in found.commands:
            found = found.commands[words[1]]
        known = {name for parameter in getattr(found, "params", ()) for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_every_file_that_the_page_names_exists():
    named = re.findall(r"`((?:usdata|ingest|tests|docs)/[\w./-]+\.\w+)`", PAGE)
    assert all((PROJECT / name).exists() for name in named)
    assert list((PROJECT / "ingest" / "deid" / "vocab").glob("*.yaml"))


@pytest.mark.deid
@pytest.mark.slow
def test_the_example_finds_nothing_of_the_patient_it_made_up(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    done = shell(f"{sys.executable} {PROJECT / 'examples' / '05_private.py'} out", tmp_path, home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing of the patient" in done.stdout
