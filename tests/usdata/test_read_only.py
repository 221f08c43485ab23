"""A lake on a disk that can't be written answers every question; what would write says so in one message.

Two kinds of such disks: mounted read-only (in a mount namespace of its own, which ends with the process), and without
permission to write (root first drops the capability that would let it write all the same).
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from usdata.lake import Lake

MOUNTED = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
READING = {
    "sql": ["sql", "select count(*) as n from samples", "--json"],
    "quarantine": ["sql", "select count(*) as n from quarantine", "--json"],
    "catalog": ["catalog", "--json"],
    "plan": ["plan", "--json"],
    "verify": ["verify"],
    "cohort ls": ["cohort", "ls", "--json"],
    "cohort show": ["cohort", "show", "breast-all", "--json"],
    "report": ["report", "-o", "{out}/report.html", "--cohort", "breast-all"],
    "export csv": ["export", "csv", "-o", "{out}/samples.csv"],
    "export coco": ["export", "coco", "-o", "{out}/coco", "--images", "--masks"],
}
WRITING = {
    "ingest": ["ingest", "phantom", "--images", "24"],
    "ingest anew": ["ingest", "phantom", "--images", "16"],
    "cohort save": ["cohort", "save", "all-of-it", "organ is not null"],
    "catalog --rebuild": ["catalog", "--rebuild"],
}
PROGRAM = """
import contextlib, io, json, os, sys
root, out, verbs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
try:
    open(os.path.join(root, "probe"), "w").close()
    sys.exit("the lake can be written: this tests nothing")
except OSError:
    pass

from usdata import cli
answers = {}
for name, words in verbs.items():
    printed, said = io.StringIO(), io.StringIO()
    sys.argv = ["usdata", *(word.format(out=out) for word in words), "--lake", root]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
    answers[name] = [code, printed.getvalue(), said.getvalue()]

import duckdb, torch
from usdata import Lake
lake = Lake(root)
loader = lake.cohort("breast-all").loader(batch_size=4, columns=("organ",), workers=1, mask=True, epoch_size=8)
answers["loader"] = [0, str([tuple(batch["image"].shape) for batch in loader]), ""]
answers["images"] = [0, str(lake.cohort("all").images().shape), ""]
answers["scan"] = [0, str(lake.scan().collect().height), ""]
os.chdir(root)
with duckdb.connect("catalog.duckdb", read_only=True) as con:
    answers["duckdb"] = [0, str(con.execute("select count(*) from samples").fetchall()), ""]
print("ANSWERS " + json.dumps(answers))
"""


def can_mount(folder: Path) -> bool:
    """Whether this user may make mounts in a namespace of its own; in many containers nobody may."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNTED, str(folder), "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def obey_permissions() -> None:
    """What is started from here on may not write where its permissions do not let it, even as root."""
    drop_from_bounding_set, may_override = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE of Linux
    ctypes.CDLL(None).prctl(drop_from_bounding_set, may_override, 0, 0, 0)  # of no effect for those who lack it


@pytest.fixture(scope="module", params=["mounted", "without permission"])
def answers(request, tmp_path_factory, phantom_lake) -> Iterator[dict[str, Any]]:
    """What every verb said, on each kind of disk: name -> exit code, stdout, stderr."""
    folder = tmp_path_factory.mktemp("read-only")
    lake, out = folder / "lake", folder / "out"
    shutil.copytree(phantom_lake.root, lake)
    Lake(lake).cohort("organ = 'breast'").save("breast-all")
    out.mkdir()
    prefix: list[str] = []
    if request.param == "mounted":
        shutil.rmtree(lake / ".staging")  # as in a lake that was copied here
        if not can_mount(lake):
            pytest.skip("no right to mount here; the other kind of disk is tested")
        prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNTED, str(lake)]
    else:
        for path in [lake, *lake.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(lake)
    words = [sys.executable, "-c", PROGRAM, str(lake), str(out), json.dumps(READING | WRITING)]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(out), "XDG_CACHE_HOME": str(out)}
    done = subprocess.run(
        [*prefix, *words], cwd=folder, env=settings, capture_output=True, text=True, preexec_fn=obey_permissions
    )
    assert "ANSWERS " in done.stdout, done.stderr
    assert snapshot(lake) == before
    yield json.loads(done.stdout.split("ANSWERS ", 1)[1]) | {"out": out}
    for path in [lake, *lake.rglob("*")]:
        path.chmod(0o755)  # so that pytest can clear up


def snapshot(lake: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time of change."""
    found = {str(p.relative_to(lake)): p.stat() for p in lake.rglob("*") if p.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.mark.parametrize("verb", READING)
def test_a_verb_that_reads_works_on_a_disk_that_can_not_be_written(answers, verb):
    code, out, err = answers[verb]
    assert code == 0, err
    assert "Traceback" not in err
    assert out or verb in ("verify", "report", "export csv", "export coco")


def test_the_answers_are_those_of_the_lake(answers):
    assert json.loads(answers["sql"][1]) == {"n": 80}
    assert json.loads(answers["cohort ls"][1])["name"] == "breast-all"
    assert "every byte is as it was written" in answers["verify"][2]
    assert answers["loader"][1] == "[(4, 1, 256, 256), (4, 1, 256, 256)]"
    assert (answers["images"][1], answers["scan"][1], answers["duckdb"][1]) == ("(80, 256, 256)", "80", "[(80,)]")


def test_what_goes_elsewhere_is_written_there(answers):
    out = answers["out"]
    assert (out / "report.html").stat().st_size > 10_000
    assert len((out / "samples.csv").read_text().splitlines()) == 81
    assert len(list((out / "coco" / "images").iterdir())) == 80


@pytest.mark.parametrize("verb", WRITING)
def test_a_verb_that_writes_ends_with_one_message_that_names_the_place(answers, verb):
    code, out, err = answers[verb]
    assert (code, out) == (1, "")
    lines = err.strip().splitlines()
    assert len(lines) == 2 and lines[0].startswith("usdata: Can't write to ") and "write permission" in lines[1]
