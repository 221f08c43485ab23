"""The loader against its rivals, and against one gather of the same bytes: all in one go, on the same images.

Run: python benchmarks/loader.py [--images 5000] [--batch 256] [--workers 0] [--rounds 5] [--seconds 1.0]
     [--python-of mosaicml=MOSAIC/bin/python] [--only ours gather ffcv] [--folder DIR]

All rivals, on Debian or Ubuntu (a rival that is not there becomes a line that says how to get it):

    apt-get install libopencv-dev libturbojpeg0-dev pkg-config      # FFCV is compiled on installation
    pip install -c constraints.txt -e '.[rivals,rivals-ffcv]'
    python -m venv MOSAIC                                           # MosaicML Streaming wants numpy < 2.2, xxhash < 4
    MOSAIC/bin/pip install mosaicml-streaming==0.13.0 opencv-python-headless==5.0.0.93
    python benchmarks/loader.py --python-of mosaicml=MOSAIC/bin/python

How it is measured: simulated ultrasound images, each contender in its own format, from a warm page cache, shuffled in
its own way at the fastest setting that we found, delivering uint8 batches of which some bytes are read. One thread, or
`--workers` processes (threads for usdata and FFCV). Each contender (`benchmarks/rivals`) runs in a process of its own;
they take turns, and what one prepared while the others ran is not counted. A first batch of each is compared with the
true pixels. Figures are medians over the rounds; "usdata is faster by" is the median of the rounds' ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from machine import describe, table
from numpy.typing import NDArray
from rivals import MODULES

from ingest.card import Card
from ingest.phantom import plan, render
from ingest.run import ingest
from usdata.lake import Lake

OURS, GATHER = "usdata", "numpy.take, from memory"
DRAWN = 500  # images drawn; the others are these, shifted and mirrored
CARD = {
    "name": "benchmark",
    "title": "-",
    "citation": "-",
    "licence": "CC0-1.0",
    "commercial_use": "yes",
    "redistribution": "yes",
    "deid_profile": "public",
    "layout": {
        "image": r"png/(?P<stem>\d+)_(?P<organ>[a-z_]+)_(?P<label>even|odd)\.png",
        "mask": r"mask/(?P<stem>\d+)\.png",
    },
    "labels": {"label": ["even", "odd"]},
    "masks": {"kind": "binary", "threshold": 0},
}


class Failure(Exception):
    """A contender's process ended, or could not begin; the message holds the end of its log."""


class Process:
    """A contender, running."""

    def __init__(self, module: str, number: int, python: str, root: Path, batch: int, workers: int) -> None:
        self.module, self.log = module, root / f"{module}-{number}.log"
        command = [python, "-m", "rivals", module, *map(str, (number, root.resolve(), batch, workers))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self.log.open("w") as log:
            try:
                self._process = subprocess.Popen(command, cwd=Path(__file__).parent, stderr=log, text=True, **pipes)
            except OSError as error:
                raise Failure(f"{python} can't be run: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:  # a library's threads or workers that do not end
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def prepare(self) -> str | None:
        """Wait until it is ready; why it can't be, if its package is missing."""
        reply = self._reply()
        if "missing" in reply:
            return reply["missing"]
        self.title, self.mb = reply["title"], reply["mb"]
        self.versions, self.contenders = reply["versions"], reply["contenders"]
        return None

    def rate(self, seconds: float) -> float:
        """Images per second, now."""
        with suppress(BrokenPipeError):  # then there is no reply, which says why
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
        reply = self._reply()
        return reply["images"] / reply["seconds"]

    def _reply(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            said = self.log.read_text().strip().splitlines() or ["it said nothing"]
            raise Failure(f"it ended with code {self._process.wait()}: {said[-1]}")
        return json.loads(line)


def main() -> None:
    """Build the images, measure all contenders, print the table and the targets."""
    options = arguments()
    notes: list[str] = []  # who is not in the table, and why
    with ExitStack() as stack:
        root = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usdata-loader-")))
        root = root / f"images-{options.images}"
        build(root, options.images)
        running = start_all(stack, options, root, notes)
        rates = measure(running, options.rounds, options.seconds, notes)
    print_all(options, running, rates, notes)
    if any("FAILED" in note for note in notes):
        raise SystemExit(1)


def start_all(stack: ExitStack, options: argparse.Namespace, root: Path, notes: list[str]) -> list[Process]:
    """All contenders that can run, ready to be measured."""
    pythons = dict(pair.split("=", 1) for pair in options.python_of)
    running = []
    for module in options.only:
        number, most = 0, 1
        while number < most:
            try:
                process = Process(
                    module, number, pythons.get(module, sys.executable), root, options.batch, options.workers
                )
                missing = stack.enter_context(process).prepare()
            except Failure as failure:
                notes.append(f"{MODULES[module].title} (contender {number + 1} of its module) FAILED: {failure}")
                break
            if missing:
                notes.append(f"{MODULES[module].title}: left out, {missing}. To have it: {MODULES[module].install}")
                break
            running.append(process)
            number, most = number + 1, process.contenders
    return running


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0, help="0: the consumer's own thread")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in each round")
    parser.add_argument(
        "--only", nargs="+", choices=MODULES, default=list(MODULES), metavar="MODULE", help="%(choices)s"
    )
    parser.add_argument("--python-of", nargs="+", default=[], metavar="MODULE=PYTHON", help="its own interpreter")
    parser.add_argument("--folder", type=Path, help="keep what is built there, and use it again")
    options = parser.parse_args()
    if not 1 <= options.batch <= options.images:
        parser.error("--batch must be 1 to --images")
    if options.workers < 0 or options.rounds < 1 or options.seconds <= 0:
        parser.error("--workers must be 0 or more, --rounds 1 or more, --seconds above 0")
    if wrong := [pair for pair in options.python_of if pair.split("=", 1)[0] not in MODULES or "=" not in pair]:
        parser.error(f"--python-of takes MODULE=PYTHON, a module being one of {', '.join(MODULES)}; not {wrong[0]}")
    return options


def build(root: Path, images: int) -> None:
    """The images as one array, as PNG files with masks, and as a lake; nothing is drawn twice."""
    if not (root / "images.npy").exists():
        for name in ("png", "mask"):
            (root / name).mkdir(parents=True, exist_ok=True)
        pixels = np.empty((images, 256, 256), np.uint8)
        for i, (organ, image, mask) in enumerate(drawings(images)):
            pixels[i] = image
            cv2.imwrite(str(root / f"png/{i:08d}_{organ}_{'odd' if i % 2 else 'even'}.png"), image)
            cv2.imwrite(str(root / f"mask/{i:08d}.png"), (mask > 0).astype(np.uint8) * 255)
        np.save(root / "images.part.npy", pixels)
        (root / "images.part.npy").rename(root / "images.npy")
    lake = Lake.create(root / "lake") if not (root / "lake").exists() else Lake(root / "lake")
    ingest(Card(**CARD), root, lake, workers=len(os.sched_getaffinity(0)))


def drawings(count: int) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Organ, image and mask. Speckle compresses and decodes like ultrasound; noise and flat pictures do not."""
    specs = plan(min(count, DRAWN))
    drawn = [(spec.organ, render(spec)) for spec in specs]
    for i in range(count):
        organ, picture = drawn[i % len(drawn)]
        turn = i // len(drawn)
        step = -1 if turn % 2 else 1
        yield organ, *(np.roll(part, 5 * turn, axis=1)[:, ::step].copy() for part in (picture.image, picture.mask))


def measure(running: Sequence[Process], rounds: int, seconds: float, notes: list[str]) -> dict[str, list[float]]:
    """Images per second of each contender in each round, in turns. One that fails is noted and left out."""
    rates: dict[str, list[float]] = {process.title: [] for process in running}
    for _ in range(rounds):
        for process in [process for process in running if process.title in rates]:
            try:
                rates[process.title].append(process.rate(seconds))
            except Failure as failure:
                notes.append(f"{process.title} FAILED: {failure}")
                del rates[process.title]
    return rates


def print_all(
    options: argparse.Namespace, running: Sequence[Process], rates: Mapping[str, Sequence[float]], notes: Sequence[str]
) -> None:
    """The machine, the contenders, who is missing, and the targets."""
    sizes = {process.title: process.mb for process in running}
    versions = {
        f"{MODULES[process.module].title} with {', '.join(map(' '.join, process.versions.items()))}": None
        for process in running
    }
    what = f"{options.images} images, batch {options.batch}, {options.workers} workers"
    print(f"{what}, {options.rounds} rounds of {options.seconds:g} s; {describe()}; {'; '.join(versions)}\n")
    columns = ("what", "format on disk, MB", "images/s, median (min–max)", "usdata is faster by")
    rows = [
        (
            title,
            f"{sizes[title]:,.0f}",
            f"{statistics.median(found):,.0f} ({min(found):,.0f}–{max(found):,.0f})",
            f"{faster(rates, title):.2f}" if OURS in rates else "-",
        )
        for title, found in rates.items()
    ]
    rows += [(note, "-", "-", "-") for note in notes]
    print(table([dict(zip(columns, row, strict=True)) for row in rows]))
    if OURS in rates:
        print(f"\n{table(targets(rates))}")


def faster(rates: Mapping[str, Sequence[float]], title: str) -> float:
    """How many times as fast as a contender usdata is: the median of the rounds' ratios."""
    return statistics.median(ours / theirs for ours, theirs in zip(rates[OURS], rates[title], strict=True))


def targets(rates: Mapping[str, Sequence[float]]) -> list[dict[str, object]]:
    """What was asked of the loader, what it reached, against whom."""
    ffcv = [title for title in rates if title.startswith("FFCV")]
    rivals = [title for title in rates if not title.startswith((OURS, "numpy.take", "FFCV"))]
    asked = {
        "the fastest that reads PNG": ([title for title in rivals if "PNG" in title], 10.0),
        "the fastest of all but FFCV, raw variants too": (rivals, 10.0),
        "FFCV, raw arrays": (ffcv, 1.05),
        "one numpy.take": ([GATHER] if GATHER in rates else [], 0.8),
    }
    rows = []
    for name, (titles, least) in asked.items():
        row = {
            "usdata against": name,
            "fastest of them": "-",
            "target": f"{least:g}",
            "reached": "-",
            "so": "not measured",
        }
        if titles:
            fastest = max(titles, key=lambda title: statistics.median(rates[title]))
            ratio = faster(rates, fastest)
            so = "reached" if ratio >= least else f"missed by {1 - ratio / least:.0%}"
            row |= {"fastest of them": fastest, "reached": f"{ratio:.2f}", "so": so}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
