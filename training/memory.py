"""Out of memory: say what to lower, on a GPU and on the CPU alike."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from training.config import RunConfig
from usdata.errors import ConfigError

_CPU = ("DefaultCPUAllocator", "not enough memory: you tried to allocate")  # as torch says it on Linux and on Windows


@contextmanager
def explain_no_memory(images: int, cfg: RunConfig, step: int) -> Iterator[None]:
    """Around the computing on a micro-batch of `images` images.

    Raises:
        ConfigError: it did not fit; the hint names the keys to change, from the one that changes no result on.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (on_gpu or isinstance(error, MemoryError) or any(words in str(error) for words in _CPU)):
            raise
        raise ConfigError(
            f"{'The GPU' if on_gpu else 'This machine'} has too little memory for {images} images at a time.",
            step=f"train step {step}",
            hint=_hint(images, cfg),
        ) from error


def _hint(images: int, cfg: RunConfig) -> str:
    pieces = next((n for n in range(2, images + 1) if images % n == 0), None)
    ways = [] if pieces is None else [f"Cut the batch into more pieces:  --set accumulate={pieces * cfg.accumulate}"]
    if not cfg.grad_checkpointing:
        ways.append("Keep less of each:  --set grad_checkpointing=true")
    size = cfg.recipe_config.get("image_size")
    ways.append("Show the network smaller images:  --set image_size=…" + (f" (now {size})" if size else ""))
    return "   ".join(ways)
