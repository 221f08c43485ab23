"""A pretraining step of every recipe against a straightforward implementation of the same step, and where the gain is.

Run: python benchmarks/pretrain.py [--recipes d2mae usfm tusa arl] [--sizes micro small paper] [--batch N] [--rounds 3]
     [--seconds 2] [--device auto] [--bf16] [--compile] [--threads N] [--workers 0] [--gains small] [--quick]

How it is measured: each contender is a process of its own; those of one line take turns, round by round. Ours is the
trainer's own step: images from a lake of simulated ultrasound through the loader, draws, views, network, losses,
update, a look at the numbers every ten steps. The rivals (`benchmarks/eager`; each says which public code it follows)
get their images from memory, undecoded, for nothing. Before anything is timed, the weights of each recipe are copied to
its rival, and both must give the same losses on the same draws. Sizes are the presets; "paper" is the published
network, ViT-B for all but TUSA, whose perceptual network has random weights here.

Rates are medians over rounds, ratios the median of the rounds' ratios. Parts of a step and memory are taken after that:
the peak of the process (CPU) or of what PyTorch allocated (GPU). TFLOP/s counts what the papers' networks need, at size
"paper", against a plain product of large matrices on the same device in the same precision. On a GPU: bf16, and ours
compiled as well; a rival's loader has `--workers` processes. In the second table the contenders share one process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from eager import MODULES
from loader import build
from machine import describe, table

SIZES = ("micro", "small", "paper")
BATCH = {"micro": 32, "small": 16, "paper": 4}
SMALLER = {"tusa": 4, "arl": 2}  # batches divided by so much: four views, two views
GPU_TIMES = 32  # larger on a GPU
IMAGES = 256
GFLOP = {"d2mae": 59.4, "usfm": 106.1, "tusa": 100.0, "arl": 290.0}  # per image and step at size "paper"
PARTS = ("data", "forward", "backward", "optimiser", "rest")
Rates = dict[str, list[float]]


class Process:
    """One or several contenders, running."""

    def __init__(self, recipe: str, size: str, contenders: str, root: Path, settings: Mapping[str, Any]) -> None:
        self.log = root / f"{recipe}-{size}-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "eager", "run", recipe, size, contenders, str(root), json.dumps(settings)]
        with self.log.open("w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            here = Path(__file__).parent
            self._process = subprocess.Popen(command, cwd=here, stderr=log, text=True, **pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:  # a loader's workers that do not end
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ready(self) -> Self:
        """Wait until the first steps are made."""
        self._reply()
        return self

    def ask(self, do: str, who: str, seconds: float = 0.0) -> dict[str, float]:
        """What the process measured of a contender."""
        with suppress(BrokenPipeError):  # then there is no reply, which says why
            self._process.stdin.write(json.dumps({"do": do, "who": who, "seconds": seconds}) + "\n")
            self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            said = self.log.read_text().strip().splitlines() or ["it said nothing"]
            raise SystemExit(f"{self.log.name}: ended with code {self._process.wait()}: {said[-1]}")
        return json.loads(line)


def main() -> None:
    """Check, measure, print both tables."""
    options = arguments()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usdata-pretrain-"))).resolve()
        build(root, 4 if options.quick else IMAGES)
        print(headline(options))
        for recipe in options.recipes:
            same(recipe, options.sizes)
        product = matmul_tflops(options)
        rows = [row for r in options.recipes for s in options.sizes for row in case(r, s, options, root, product)]
        print(f"\n{table(rows)}")
        for size in options.gains:
            found = [row for recipe in options.recipes for row in gains(recipe, size, options, root)]
            print(f"\nWhere the gain comes from, size {size}:\n\n{table(found)}")


def arguments() -> argparse.Namespace:
    """The command line, checked and complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batch", type=int, help="images per step; by default what the size and the device suit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contender in each round; one step at least")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="by default on a GPU")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="ours compiled too; default on a GPU")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each contender, on a CPU")
    parser.add_argument("--workers", type=int, help="of the rival's loader; default 0 on a CPU, 8 on a GPU")
    parser.add_argument("--gains", nargs="*", choices=SIZES, default=["small"], help="sizes of the second table")
    parser.add_argument("--quick", action="store_true", help="does it start? micro, one step, 4 images")
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1 or options.seconds < 0 or (options.workers or 0) < 0:
        parser.error("--rounds and --threads must be 1 or more, --seconds and --workers 0 or more")
    if options.batch is not None and not 2 <= options.batch <= IMAGES:
        parser.error(f"--batch must be 2 to {IMAGES}: the contrastive terms need other images")
    if options.quick:
        options.sizes, options.gains, options.rounds, options.seconds = ["micro"], ["micro"], 1, 0.0
        options.batch = options.batch or 2
    options.device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    gpu = options.device.startswith("cuda")
    options.gpu = gpu
    options.bf16 = gpu if options.bf16 is None else options.bf16
    options.compile = gpu if options.compile is None else options.compile
    options.workers = (8 if gpu else 0) if options.workers is None else options.workers
    options.target = 2.0 if gpu else 1.3
    return options


def headline(options: argparse.Namespace) -> str:
    """What it was measured on."""
    device = torch.cuda.get_device_name(options.device) if options.gpu else f"CPU, {options.threads} threads"
    precision = "bf16" if options.bf16 else "fp32"
    rounds = f"{options.rounds} rounds of {options.seconds:g} s"
    return f"{device}, {precision}, {rounds}, {options.workers} workers of the rivals' loaders; {describe()}"


def same(recipe: str, sizes: Sequence[str]) -> None:
    """Rival and recipe compute the same, or the run ends."""
    command = [sys.executable, "-m", "eager", "check", recipe, *sizes]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit((done.stderr.strip().splitlines() or ["the check said nothing"])[-1])
    for line in done.stdout.splitlines():
        fact = json.loads(line)
        apart = max(
            abs(fact[who][name] - value) / max(abs(value), 1e-3)
            for who in ("eager", "all remedies")
            for name, value in fact["ours"].items()
        )
        text = f"{recipe} {fact['size']}: {fact['parameters']:,} parameters in both, losses equal to {apart:.0e}"
        print(text, flush=True)


def batch_of(recipe: str, size: str, options: argparse.Namespace) -> int:
    """Images per step."""
    if options.batch:
        return int(options.batch)
    own = BATCH[size] * (GPU_TIMES if options.gpu else 1) // SMALLER.get(recipe, 1)
    return min(IMAGES, max(2, own))


def settings(recipe: str, size: str, options: argparse.Namespace, compiled: bool = False) -> dict[str, Any]:
    """What a contender's process is told."""
    return {
        "batch": batch_of(recipe, size, options),
        "device": options.device,
        "precision": "bf16" if options.bf16 else "fp32",
        "compile": str(compiled).lower(),
        "threads": options.threads,
        "workers": options.workers,
    }


def measure(running: Mapping[str, tuple[Process, str]], options: argparse.Namespace) -> Rates:
    """Images per second of each contender in each round, in turns."""
    for process in {id(process): process for process, _ in running.values()}.values():
        process.ready()
    rates: Rates = {title: [] for title in running}
    for _ in range(options.rounds):
        for title, (process, who) in running.items():
            reply = process.ask("rate", who, max(options.seconds, 1e-3))
            rates[title].append(reply["images"] / reply["seconds"])
    return rates


def case(recipe: str, size: str, options: argparse.Namespace, root: Path, product: float) -> list[dict[str, object]]:
    """The rows of one recipe at one size."""
    plans = {"usdata": ("ours", False), "eager": ("eager", False)}
    if options.compile:
        plans["usdata, compiled"] = ("ours", True)
    with ExitStack() as stack:
        running = {
            title: (stack.enter_context(Process(recipe, size, who, root, settings(recipe, size, options, comp))), who)
            for title, (who, comp) in plans.items()
        }
        rates, seconds = measure(running, options), max(options.seconds, 1e-3)
        parts = {title: process.ask("split", who, seconds) for title, (process, who) in running.items()}
        memory = {title: process.ask("memory", who)["bytes"] for title, (process, who) in running.items()}
    return [
        {
            "recipe": recipe,
            "size": size,
            "batch": batch_of(recipe, size, options),
            "what": title,
            "images/s, median (min–max)": spread(rates[title]),
            **{f"{part}, ms": f"{1000 * parts[title].get(part, 0.0):,.1f}" for part in PARTS},
            "peak, MiB": f"{memory[title] / 2**20:,.0f}",
            **utilisation(recipe, size, rates[title], product),
            **verdict(ratio(rates, title, "eager"), options.target if title != "eager" else None),
        }
        for title in running
    ]


def gains(recipe: str, size: str, options: argparse.Namespace, root: Path) -> list[dict[str, object]]:
    """The plain step with one remedy at a time, with all, and ours."""
    remedies: Mapping[str, str] = import_module(f"eager.{MODULES[recipe]}").REMEDIES
    plans = {"eager": "eager"} | {text: f"eager+{name}" for name, text in remedies.items()}
    plans |= {"all of these": "+".join(["eager", *remedies]), "usdata": "ours"}
    with Process(recipe, size, ",".join(plans.values()), root, settings(recipe, size, options)) as process:
        running = {title: (process, who) for title, who in plans.items()}
        rates = measure(running, options)
    return [
        {
            "recipe": recipe,
            "the eager step with": title if title not in ("eager", "usdata") else f"({title})",
            "images/s, median (min–max)": spread(rates[title]),
            "of eager": f"{ratio(rates, title, 'eager'):.2f}",
        }
        for title in running
    ]


def spread(found: Sequence[float]) -> str:
    """Median and range."""
    digits = 1 if statistics.median(found) < 100 else 0
    return f"{statistics.median(found):,.{digits}f} ({min(found):,.{digits}f}–{max(found):,.{digits}f})"


def ratio(rates: Rates, title: str, against: str) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(rates[title], rates[against], strict=True))


def verdict(reached: float, target: float | None) -> dict[str, object]:
    """Ratio and target."""
    if target is None:
        return {"of eager": "1.00", "target": "-", "so": "-"}
    so = "reached" if reached >= target else f"missed by {1 - reached / target:.0%}"
    return {"of eager": f"{reached:.2f}", "target": f"{target:g}", "so": so}


def utilisation(recipe: str, size: str, found: Sequence[float], product: float) -> dict[str, object]:
    """What of the device's matrix products the network uses."""
    if size != "paper":
        return {"TFLOP/s": "-", "of a matrix product": "-"}
    reached = statistics.median(found) * GFLOP[recipe] / 1000
    return {"TFLOP/s": f"{reached:.3g}", "of a matrix product": f"{reached / product:.0%}"}


def matmul_tflops(options: argparse.Namespace) -> float:
    """TFLOP/s of a product of large square matrices in the precision of the run: the best of some."""
    torch.set_num_threads(options.threads)
    n = 8192 if options.gpu else 2048
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    a = torch.randn(n, n, device=options.device).to(dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        b = a @ a
        float(b[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    print(f"a product of {n} x {n} matrices: {2 * n**3 / best / 1e12:.3g} TFLOP/s")
    return 2 * n**3 / best / 1e12


if __name__ == "__main__":
    main()
