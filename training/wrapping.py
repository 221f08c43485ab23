"""What stands between the recipe's `step` and the loop: recomputed activations, torch.compile, DDP."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from training.config import RunConfig
from training.distributed import World
from usdata.errors import ConfigError

_NAMES = signature(DistributedDataParallel.__init__).parameters
_SYNC = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"  # its name up to torch 2.12


class Step(nn.Module):
    """The recipe's `step` as a forward pass, which is what DDP and torch.compile wrap."""

    def __init__(self, recipe: Any) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of one micro-batch."""
        terms: dict[str, Tensor] = self.recipe.step(images, draws)
        return terms


def wrapped(recipe: Any, cfg: RunConfig, peers: World, optimisers: int = 1) -> nn.Module:
    """The recipe's step as the config wants it run.

    With several optimisers DDP looks for parameters without a gradient: a discriminator that starts late has none.

    Raises:
        ConfigError: `grad_checkpointing` of a recipe without blocks.
    """
    if cfg.grad_checkpointing:
        recompute(blocks_of(recipe))
    module: nn.Module = Step(recipe)
    if compiles(cfg, peers.device):
        module.compile(dynamic=False)
    if peers.size == 1:
        return module
    options: dict[str, Any] = {_SYNC: False, "gradient_as_bucket_view": True, "find_unused_parameters": optimisers > 1}
    return DistributedDataParallel(
        module, device_ids=[peers.device.index] if peers.device.type == "cuda" else None, **options
    )


@contextmanager
def kept_buffers(needed: bool) -> Iterator[None]:
    """Around a compiled forward pass and all its backward passes: no pass may write over what the next one reads.

    A compiled backward pass takes the memory of saved activations for its own, and torch refuses to run it again. There
    is no public switch for it; this one is set for the time of the block, and put back.
    """
    if not needed:
        yield
        return
    with torch._functorch.config.patch(donated_buffer=False):
        yield


def compiles(cfg: RunConfig, device: torch.device) -> bool:
    """Whether the step is compiled: as `cfg.compile` says, "auto" on a GPU."""
    return cfg.compile is True or (cfg.compile == "auto" and device.type == "cuda")


def blocks_of(recipe: Any) -> list[nn.Module]:
    """The modules whose activations are computed again in the backward pass instead of kept.

    The recipe's own `checkpointed()`, else every member of a container named `blocks`, as timm's ViTs have it.

    Raises:
        ConfigError: there is none.
    """
    if hasattr(recipe, "checkpointed"):
        found: Iterable[nn.Module] = recipe.checkpointed()
    else:
        found = [
            block
            for name, part in recipe.named_modules()
            if name.rpartition(".")[2] == "blocks" and isinstance(part, nn.Sequential | nn.ModuleList)
            for block in part
        ]
    blocks = list(found)
    if not blocks:
        raise ConfigError("This recipe has no blocks to recompute.", hint="Leave out  --set grad_checkpointing=true")
    return blocks


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Let these modules keep their input alone and compute the rest again in the backward pass, in place.

    Costs one more forward pass through them; gradients are the same. Without gradients nothing changes.
    """
    for block in blocks:
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
