"""One contender in a process of its own, or the proof that both compute the same. Run in benchmarks/:

    python -m eager check RECIPE SIZE [SIZE ...]            parameters and losses of rival and recipe, weights copied
    python -m eager run RECIPE SIZE CONTENDERS ROOT OPTIONS "ours", "eager", "eager+attention,eager+device,ours", ...

`run` answers in JSON, one line each: when it is ready, then for each line of standard input, {"do": ..., "who": "ours",
"seconds": s}: "rate" by images and seconds, "split" by seconds of each part of a step, "memory" by the peak of the
process in bytes. Standard input's end ends it.
"""

import argparse
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eager import MODULES
from eager.common import Loop, Stopwatch
from training import checkpoint
from training.config import RunConfig, recipe_config, resolve
from training.data import generator
from training.distributed import choose_device, world
from training.train import _Trainer  # the step that `pretrain` makes, not a copy of it
from usdata.lake import Lake

TOLERANCE = 2e-4  # relative; sums of a million float32 in another order


def main() -> None:
    """Check, or measure whenever asked."""
    parser = argparse.ArgumentParser(prog="python -m eager", description=__doc__)
    parser.add_argument("task", choices=("check", "run"))
    parser.add_argument("recipe", choices=MODULES)
    parser.add_argument("rest", nargs="+")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # a perceptual term with random weights warns
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    if options.task == "check":
        for size in options.rest:
            print(json.dumps(check(options.recipe, size)), file=replies)
        return
    size, contender, root, settings = options.rest
    serve(options.recipe, size, contender, Path(root), json.loads(settings), replies)


# ---- do both compute the same?


def check(recipe: str, size: str, device: str = "cpu", images: int = 2) -> dict[str, Any]:
    """Parameters and losses of our recipe and its rivals, plain and with every remedy, on the same draws and weights.

    Raises:
        ValueError: another number of parameters, or a loss that differs.
    """
    run = config(recipe, size, batch=images)
    torch.manual_seed(0)
    ours = checkpoint.build(run).to(device)
    ours.param_groups(0.0)  # the perceptual network is read here
    pixels = torch.from_numpy(_speckle(images)).to(device)
    draws = {name: value.to(device) for name, value in ours.draw(images, generator("check")).items()}
    if "organ" in getattr(ours, "columns", ()):
        draws["organ"] = draws["wrong"]
    ours.eval()
    wanted = {name: float(value) for name, value in ours.step(pixels, draws).items() if name.split("/")[0] == "loss"}
    found = dict[str, dict[str, float]]()
    module = import_module(f"eager.{MODULES[recipe]}")
    for remedies in (frozenset[str](), frozenset(module.REMEDIES)):
        rival = module.Rival(ours.cfg, remedies, ours).to(device)
        copy_weights(ours, rival)
        rival.eval()
        losses = {name: float(value) for name, value in rival(rival.from_ours(pixels, draws)).items()}
        found["all remedies" if remedies else "eager"] = losses
        for name, value in wanted.items():
            if abs(losses[name] - value) > TOLERANCE * max(abs(value), 1e-3):
                raise ValueError(f"{recipe} {size}: {name} is {losses[name]} in the rival, {value} in ours")
    return {"recipe": recipe, "size": size, "parameters": parameters(ours), "ours": wanted, **found}


def copy_weights(ours: nn.Module, rival: Any) -> None:
    """Every parameter by its name, and what is computed in advance.

    Raises:
        ValueError: parameters of other names, shapes or number.
    """
    own = dict(ours.named_parameters())
    theirs = dict(rival.named_parameters())
    if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in theirs.items()}:
        raise ValueError(f"other parameters: {sorted(own.keys() ^ theirs.keys())[:5]}")
    with torch.no_grad():
        for name, value in own.items():
            theirs[name].copy_(value)
    rival.fixed(ours)


def parameters(module: nn.Module) -> int:
    """How many numbers are learned or follow."""
    return sum(p.numel() for p in module.parameters())


def _speckle(n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(0)
    coarse = rng.random((n, 1, 32, 32)).repeat(8, 2).repeat(8, 3)
    return (255 * coarse * rng.random((n, 1, 256, 256))).astype(np.uint8)


# ---- how fast?


def config(recipe: str, size: str, batch: int, **settings: Any) -> RunConfig:
    """The preset at this batch; a perceptual network with random weights, whose cost is the trained one's."""
    sets = [f"batch_size={batch}", "min_lr=0.0", *(f"{name}={value}" for name, value in settings.items())]
    if recipe == "tusa" and size == "paper":
        sets.append("lpips.kind=random")
    if recipe == "arl":  # as it is after the first hundredths of a run
        sets += ["adv_start=0.0", "freeze_last=0.0"]
    return resolve(recipe, size, None, sets)


def serve(recipe: str, size: str, contenders: str, root: Path, settings: dict[str, Any], replies: Any) -> None:
    """Build the contenders, make their first steps, then answer."""
    threads, workers = settings.pop("threads"), settings.pop("workers")
    torch.set_num_threads(threads)
    run = config(recipe, size, **settings)
    device = choose_device(run.device)
    with world(run.device, 60.0) as peers:

        def built(contender: str) -> Any:
            if contender == "ours":
                out = root / "runs" / f"{recipe}-{size}-{os.getpid()}"
                out.mkdir(parents=True)
                return _Ours(_Trainer(Lake(root / "lake").cohort("all"), run, out, peers, None, None), device)
            module, remedies = import_module(f"eager.{MODULES[recipe]}"), frozenset(contender.split("+")[1:])
            ours = checkpoint.build(run).to(device) if "device" in remedies else None
            rival = module.Rival(recipe_config(recipe, run.recipe_config), remedies, ours)
            return Loop(rival, ours, np.load(root / "images.npy", mmap_mode="r"), run, device, workers)

        loops = {contender: built(contender) for contender in contenders.split(",")}
        for loop in loops.values():
            for _ in range(2):  # allocators, thread pools, compilation
                loop.step()
        _wait(device)
        print(json.dumps({"ready": len(loops)}), file=replies)
        for line in sys.stdin:
            task = json.loads(line)
            print(json.dumps(_answer(loops[task["who"]], task, run.batch_size, device)), file=replies)


def _answer(loop: Any, task: dict[str, Any], batch: int, device: torch.device) -> dict[str, float]:
    if task["do"] == "memory":
        if device.type == "cuda":
            return {"bytes": float(torch.cuda.max_memory_allocated(device))}
        return {"bytes": 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    loop.watch.on = task["do"] == "split"
    loop.watch.restart()
    _wait(device)
    start, steps, spent = time.perf_counter(), 0, 0.0
    while spent < task["seconds"]:
        loop.step()
        steps += 1
        if (
            steps % 4 == 0 or device.type != "cuda"
        ):  # a look at the clock waits for the GPU; ours has no other reason to
            _wait(device)
            spent = time.perf_counter() - start
    if task["do"] == "rate":
        return {"images": float(steps * batch), "seconds": spent}
    return {name: seconds / steps for name, seconds in loop.watch.seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Ours:
    """The trainer's own step, with a stopwatch at the calls that divide it."""

    def __init__(self, trainer: Any, device: torch.device) -> None:
        self.trainer, self.watch = trainer, Stopwatch(device)
        trainer.module = self._timed(trainer.module, "forward")
        trainer.feed.next = self._timed(trainer.feed.next, "data")
        trainer.optimisers.backward = self._timed(trainer.optimisers.backward, "backward")
        trainer.optimisers.update = self._timed(trainer.optimisers.update, "optimiser")

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.watch.lap("rest")
            result = function(*args, **kwargs)
            self.watch.lap(name)
            return result

        return call

    def step(self) -> None:
        """One step; what it measured is fetched every `log_every`, as in a run."""
        self.trainer.train_step()
        if self.trainer.step % self.trainer.cfg.log_every == 0:
            self.trainer.meter.fetch()
        self.watch.lap("rest")


if __name__ == "__main__":
    main()
