"""The contenders of `benchmarks/loader.py`, each run in a process and, if need be, with a Python of its own.

A module imports its package at the top, so that importing it tells whether the package is there, and holds
`CONTENDERS`, a tuple of `rivals.contender.Contender`. It must run without this project's packages.
"""

from types import MappingProxyType
from typing import NamedTuple


class Module(NamedTuple):
    """What is known of a module before it can be imported."""

    title: str
    packages: tuple[str, ...]  # distributions whose versions are printed
    install: str  # how to get it


MODULES = MappingProxyType(
    {
        "ours": Module("usdata", ("numpy", "torch"), "pip install -c constraints.txt -e ."),
        "gather": Module("numpy", ("numpy",), "pip install -c constraints.txt -e ."),
        "ffcv": Module(
            "FFCV",
            ("ffcv", "numba", "numpy"),
            "apt-get install libopencv-dev libturbojpeg0-dev pkg-config && "
            "pip install -c constraints.txt -e '.[rivals-ffcv]'",
        ),
        "webdataset": Module("webdataset", ("webdataset",), "pip install -c constraints.txt -e ."),
        "litdata": Module("LitData", ("litdata",), "pip install -c constraints.txt -e '.[rivals]'"),
        "mosaicml": Module(
            "MosaicML Streaming",
            ("mosaicml-streaming", "numpy", "torch"),
            "python -m venv MOSAIC && MOSAIC/bin/pip install mosaicml-streaming==0.13.0 "
            "opencv-python-headless==5.0.0.93, then benchmarks/loader.py --python-of mosaicml=MOSAIC/bin/python",
        ),
        "png_folder": Module("PNG folder", ("opencv-python-headless", "torch"), "pip install -c constraints.txt -e ."),
    }
)
