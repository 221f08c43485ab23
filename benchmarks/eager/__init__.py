"""The recipes as a competent person would write them straight from the papers and the public MAE, SimMIM and DINO code.

Rivals of `benchmarks/pretrain.py`: the same networks under the same names of weights, the same losses (`python -m eager
check` copies the weights and compares), the same batch, precision and optimiser family. Each module says which public
code makes the choices that cost time; each choice can be switched to ours alone, by its name in `REMEDIES`.
"""

from collections.abc import Mapping

import training  # noqa: F401  before timm and MONAI: it mends a torchvision that does not fit

MODULES: Mapping[str, str] = {"d2mae": "mae", "usfm": "usfm", "tusa": "tusa", "arl": "arl"}
"""Recipe -> module of this package."""
