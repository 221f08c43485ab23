"""Rules that hold for the whole tree: one direction of imports, light packages, nothing of a developer's machine."""

import ast
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("usdata", "ingest", "training", "pipelines")
FORBIDDEN = {
    "usdata": {"ingest", "training", "pipelines", "prefect"},
    "ingest": {"training", "pipelines", "prefect"},
    "training": {"ingest", "pipelines", "prefect"},
    "pipelines": set(),
}


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((PROJECT / package).rglob("*.py"))]


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, top-level package) of every import in a file, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.lineno, node.module.split(".")[0]))
    return found


def test_imports_point_one_way():
    wrong = [
        f"{path.relative_to(PROJECT)}:{line} imports {name}"
        for path in modules()
        for line, name in imports(path)
        if name in FORBIDDEN[path.relative_to(PROJECT).parts[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_torch_is_imported_only_where_tensors_are():
    wrong = [
        str(p.relative_to(PROJECT))
        for p in modules()
        if p.relative_to(PROJECT).parts[0] in ("usdata", "ingest")
        and p.name not in ("batch.py", "epochs.py", "loader.py", "stream_windows.py")
        and any(name in ("torch", "timm", "webdataset") for _, name in imports(p))
    ]
    assert not wrong


@pytest.mark.parametrize(
    "module", ["usdata", "ingest", "training", "usdata.cli", "ingest.cli", "training.cli", "pipelines.cli"]
)
def test_importing_it_imports_neither_torch_nor_prefect(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'prefect', 'duckdb', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_text_comes_in_less_than_0_4_seconds():
    command = [str(Path(sys.executable).with_name("usdata")), "--help"]
    subprocess.run(command, capture_output=True, check=True)  # warms the file cache and writes bytecode
    times = []
    for _ in range(5):
        start = time.perf_counter()
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        times.append(time.perf_counter() - start)
    assert all(verb in text for verb in ("demo", "serve", "ingest", "sql", "pretrain", "downstream"))
    assert min(times) < 0.4, times


def test_every_module_has_a_docstring_and_fewer_than_500_lines():
    wrong = []
    for path in modules():
        text = path.read_text("utf-8")
        if not ast.get_docstring(ast.parse(text)) or text.count("\n") > 500:
            wrong.append(str(path.relative_to(PROJECT)))
    assert not wrong


def test_the_wheel_holds_exactly_the_four_packages():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == set(PACKAGES)


def test_constraints_pin_torch_and_torchvision_together():
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0" and pins["torchvision"] == "0.28.0" and pins["fastapi"] == "0.150.0"
