"""Make the pictures of docs/images from phantom lakes and micro runs; everything on them is simulated.

    python docs/make_figures.py [--work DIR] [--only overview learns loss-curves recipe-d2mae ...]

overview.png takes a run of `usdata demo` (two minutes on two cores). recipe-<name>.png are of the runs of seed 0 of
benchmarks/learns.py (six minutes more); learns.png and loss-curves.png of docs/learns.json, which that script writes.
With `--work` lakes and runs are kept and used again.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from figures.curves import loss_curves, probes
from figures.overview import overview
from figures.recipes import PICTURES
from figures.style import STYLE
from matplotlib.figure import Figure
from PIL import Image

from pipelines.demo import run_demo
from usdata.files import read_json
from usdata.lake import Lake

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "benchmarks"))
import learns  # noqa: E402  (found through the line above)

DPI = 130
COLOURS = 160  # of the palette
MANY_COLOURS = ("overview", "recipe-tusa", "recipe-arl")  # a palette would change their colours


def main() -> None:
    """Train what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep lakes and runs there")
    parser.add_argument("--out", type=Path, default=DOCS / "images", help="folder of the pictures")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of pictures, without .png")
    parser.add_argument("--steps", type=int, help="of each recipe's run, instead of its own number")
    parser.add_argument("--images", type=int, default=2000, help="simulated ones in the lake of the recipes' runs")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        known = figures(chosen.work or Path(folder), chosen.steps, chosen.images)
        if wrong := set(chosen.only or ()) - known.keys():
            parser.error(f"no picture named {', '.join(sorted(wrong))}; there are {', '.join(known)}")
        for name in chosen.only or known:
            with plt.rc_context(STYLE):
                save(known[name](), chosen.out / f"{name}.png")
            print(chosen.out / f"{name}.png")


def figures(work: Path, steps: int | None, images: int) -> dict[str, Callable[[], Figure]]:
    """Name of each picture -> what draws it; runs are trained when their picture is drawn."""
    measured = DOCS / "learns.json"
    made: dict[str, Callable[[], Figure]] = {
        "overview": lambda: _overview(work / "demo"),
        "learns": lambda: probes(read_json(measured)),
        "loss-curves": lambda: loss_curves(read_json(measured)),
    }

    def of(name: str) -> Callable[[], Figure]:
        def draw() -> Figure:
            lake = learns.phantom_lake(work / "lake", images)
            return PICTURES[name](lake, learns.UNSEEN, learns.trained(lake, work / "runs", name, 0, steps))

        return draw

    return {**made, **{f"recipe-{name}": of(name) for name in PICTURES}}


def _overview(work: Path) -> Figure:
    run_demo(work)
    with plt.rc_context({"font.size": 8}):
        return overview(Lake(work / "lake"), work / "run")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, with a palette where that is enough, without the program's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    with Image.open(path) as drawn:
        reduced = drawn.convert("RGB")
        if path.stem not in MANY_COLOURS:
            reduced = reduced.quantize(COLOURS, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)


if __name__ == "__main__":
    main()
