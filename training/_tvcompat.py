"""Lets `import timm` work when torchvision's compiled operators do not fit the installed torch.

The stock torchvision wheel is a CUDA build. Beside a CPU torch its `_C` library fails to load without a word, and
`import torchvision` then dies, because it registers fake kernels for operators that nobody declared. Declaring the two
schemas cures that; declaring them beside a healthy torchvision would abort the process (C++ terminate), so the
operators are loaded and looked for first. The operators themselves still raise when called, as they should.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Literal

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")

State = Literal["imported", "absent", "native", "patched"]


def ensure_torchvision() -> State:
    """Make `import torchvision` safe; call it before anything imports timm, torchvision or monai. Costs about 6 ms.

    Returns:
        "imported": torchvision was there already, nothing done. "absent": not installed, nothing done.
        "native": its operators load, nothing done. "patched": the missing schemas were declared.
    """
    if "torchvision" in sys.modules:
        return "imported"
    spec = importlib.util.find_spec("torchvision")  # finds without importing
    if spec is None or spec.origin is None:
        return "absent"
    _load_operators(Path(spec.origin).parent)  # must come first: see the module's text
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", _SCHEMA)
    return "patched" if missing else "native"


def _load_operators(folder: Path) -> None:
    for library in sorted([*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]):
        try:
            torch.ops.load_library(str(library))  # loading twice is harmless
        except (OSError, ImportError):  # built for another torch: the case this module is for
            continue
