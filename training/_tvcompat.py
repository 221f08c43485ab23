"""Lets `import timm` work when torchvision's compiled operators do not fit the installed torch.

The stock torchvision wheel is a CUDA build. Beside a CPU torch its `_C` library fails to load without a word, and
`import torchvision` then dies, because it registers fake kernels for operators that nobody declared. Declaring the two
schemas cures that; declaring them beside a healthy torchvision would abort the process (C++ terminate), so the
operators are loaded and looked for first. The operators themselves still raise when called, as they should.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")

State = Literal["imported", "absent", "native", "patched"]


class _Guard:
    """A finder that finds nothing, but sees that torchvision is about to be imported, and mends it first."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            ensure_torchvision()


def guard_torchvision() -> None:
    """Have `ensure_torchvision` called when torchvision is first imported, by whomever; costs nothing until then.

    (Calling it at once would import torch into every `usdata --help`.)
    """
    if not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())


def ensure_torchvision() -> State:
    """Make `import torchvision` safe; call it before anything imports timm, torchvision or monai. Costs about 6 ms.

    Returns:
        "imported": torchvision was there already, nothing done. "absent": not installed, nothing done.
        "native": its operators load, nothing done. "patched": the missing schemas were declared.
    """
    if "torchvision" in sys.modules:
        return "imported"
    import torch

    spec = importlib.util.find_spec("torchvision")  # finds without importing
    if spec is None or spec.origin is None:
        return "absent"
    _load_operators(Path(spec.origin).parent)  # must come first: see the module's text
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", _SCHEMA)
    return "patched" if missing else "native"


def _load_operators(folder: Path) -> None:
    import torch

    for library in sorted([*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]):
        try:
            torch.ops.load_library(str(library))  # loading twice is harmless
        except (OSError, ImportError):  # built for another torch: the case this module is for
            continue
