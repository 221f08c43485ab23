"""The torchvision guard: timm imports beside a CPU torch, and a healthy torchvision is left alone."""

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest
import torch

from training import _tvcompat


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_timm_imports_after_training_in_a_fresh_process_and_a_second_call_does_nothing():
    out = run(
        "import training, sys; assert 'torchvision' not in sys.modules and 'timm' not in sys.modules;"
        "import timm, torchvision; from training._tvcompat import ensure_torchvision; print(ensure_torchvision())"
    )
    assert out.strip() == "imported"


def test_operators_that_exist_are_not_declared_again_because_that_would_abort_the_process():
    out = run(
        "import torch; s = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor';"
        "[torch.library.define('torchvision::' + n, s) for n in ('nms', 'qnms')];"  # as a healthy library does
        "from training._tvcompat import ensure_torchvision as e; print(e()); import torchvision"
    )
    assert out.strip() == "native"


def test_without_torchvision_nothing_is_declared(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _tvcompat.ensure_torchvision() == "absent"


def test_the_operators_are_loaded_before_any_is_declared(monkeypatch, tmp_path):
    (tmp_path / "_C.so").touch()
    (tmp_path / "__init__.py").touch()
    calls: list[str] = []
    spec = ModuleSpec("torchvision", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(_tvcompat, "_OPERATORS", ("usdata_test_operator",))
    monkeypatch.setattr(torch.library, "define", lambda name, schema: calls.append(f"define {name}"))

    def load(path: str) -> None:
        calls.append(f"load {path}")
        raise OSError("built for another torch")

    monkeypatch.setattr(torch.ops, "load_library", load)
    assert _tvcompat.ensure_torchvision() == "patched"
    assert calls == [f"load {tmp_path / '_C.so'}", "define torchvision::usdata_test_operator"]


def test_other_failures_of_the_library_are_not_swallowed(monkeypatch, tmp_path):
    (tmp_path / "_C.so").touch()

    def load(path: str) -> None:
        raise MemoryError

    monkeypatch.setattr(torch.ops, "load_library", load)
    with pytest.raises(MemoryError):
        _tvcompat._load_operators(tmp_path)
