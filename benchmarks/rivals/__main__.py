"""One contender, in a process of its own: `python -m rivals MODULE NUMBER ROOT BATCH WORKERS` in benchmarks/.

Replies are JSON, one line each: `{"missing": why}`, or when it is ready `{"title": …, "mb": …, "versions": …,
"contenders": how many the module has}`. After that each line of standard input, a number of seconds, is answered by
`{"images": …, "seconds": …}`. Standard input's end ends it.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rivals import MODULES
from rivals.contender import SIDE, Contender, Source

_STRIDE = 16  # each batch is read at every 16th row of its middle column, so that none can leave out the reading


def main() -> None:
    """Prepare, then measure whenever asked."""
    parser = argparse.ArgumentParser(prog="python -m rivals", description=__doc__)
    parser.add_argument("module", choices=MODULES)
    parser.add_argument("number", type=int)
    parser.add_argument("root", type=Path)
    parser.add_argument("batch", type=int)
    parser.add_argument("workers", type=int)
    options = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply

    def reply(**values: Any) -> None:
        print(json.dumps(values), file=replies)

    try:
        module = importlib.import_module(f"rivals.{options.module}")
        versions = {name: version(name) for name in MODULES[options.module].packages}
    except ImportError as error:  # PackageNotFoundError too
        reply(missing=str(error))
        return
    one_thread()
    source = Source(options.root)
    contender = module.CONTENDERS[options.number]
    stored = prepare(contender, source)
    batches = contender.batches(source, stored, options.batch, options.workers)
    check(next(batches), source, options.batch, contender.title)
    place = source.root / contender.stored if contender.stored else stored
    reply(title=contender.title, mb=size(place) / 1e6, versions=versions, contenders=len(module.CONTENDERS))
    for line in sys.stdin:
        images, seconds = measure(batches, float(line), skip=2 * (2 * options.workers + 2))
        reply(images=images, seconds=seconds)


def one_thread() -> None:
    """No library computes in more threads than it was given workers."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def prepare(contender: Contender, source: Source) -> Path:
    """The contender's folder, written unless it is there. It gets its name when it is complete."""
    name = "".join(c if c.isalnum() else "-" for c in contender.title.lower())
    folder = source.root / "formats" / name
    if not folder.exists():
        part = folder.with_name(f"{name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        contender.write(source, part)
        part.rename(folder)
    return folder


def check(batch: Any, source: Source, size: int, title: str) -> None:
    """The batch has the right form, each of its images is one of the true ones, and they are shuffled."""
    images = as_array(batch)
    if images.dtype != np.uint8 or images.shape != (size, SIDE, SIDE):
        raise ValueError(f"{title} gives {images.dtype} {images.shape}, not uint8 {(size, SIDE, SIDE)}")
    rows = {hash(image.tobytes()): row for row, image in enumerate(source.images())}
    found = [rows.get(hash(image.tobytes()), -1) for image in images]
    if wrong := found.count(-1):
        raise ValueError(f"{title}: {wrong} of {size} images have other pixels than the source")
    if size > 2 and found == sorted(found):
        raise ValueError(f"{title} gives the images in their stored order")


def as_array(batch: Any) -> NDArray[Any]:
    """The same memory as a numpy array of shape (B, 256, 256)."""
    images = np.asarray(batch)
    return images[:, 0] if images.ndim == 4 else images


def measure(batches: Iterator[Any], seconds: float, skip: int) -> tuple[int, float]:
    """Images and seconds of whole batches; what was prepared while the others ran is skipped and not counted."""
    for _ in range(skip):
        next(batches)
    images = total = 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        batch = as_array(next(batches))
        images += len(batch)
        total += int(batch[:, ::_STRIDE, SIDE // 2].sum())
        del batch  # done with it before the next is asked for
    if not total:
        raise ValueError("black images only")
    return images, passed


def size(place: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    return place.stat().st_size if place.is_file() else sum(p.stat().st_size for p in place.rglob("*") if p.is_file())


if __name__ == "__main__":
    main()
