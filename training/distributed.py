"""One process or many: `World` hides which. Under torchrun every rank runs the same `pretrain` call."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from usdata.errors import ConfigError, UsdataError

_LOST = ("gloo", "nccl", "timed out", "timeout", "connection", "socket")  # words in messages of a broken group


@dataclass(frozen=True)
class World:
    """This process among its peers, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True for the one rank that writes files and talks."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the ranks, element by element; every rank gets it."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
            values /= self.size
        return values

    def highest(self, value: int) -> int:
        """The largest `value` of any rank: how the ranks agree to stop at the same step."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def share_highest(self, values: Tensor) -> None:
        """Replace `values` by their maximum over the ranks, in place and without waiting for the device."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            dist.barrier()


def is_first() -> bool:
    """Whether this process is the one that talks; true without torchrun."""
    return int(os.environ.get("RANK", "0")) == 0


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of equally shaped `values` over the ranks, without a gradient; themselves without torchrun.

    For recipes: statistics of the global batch, such as a centre. Every rank must make the call.
    """
    values = values.detach()
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values / dist.get_world_size()


@contextmanager
def explain_lost_ranks(peers: World, out: Path) -> Iterator[None]:
    """Say what it means when another rank dies, or does not answer within the group's timeout.

    Raises:
        UsdataError: another rank is gone.
    """
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        ours = isinstance(error, torch.OutOfMemoryError)
        if peers.size == 1 or ours or not (isinstance(error, dist.DistError) or any(word in words for word in _LOST)):
            raise
        raise UsdataError(
            f"Rank {peers.rank} of {peers.size} lost another rank: it died or did not answer. "
            f"({str(error).splitlines()[0][:200]})",
            step="train",
            hint=f"Its own message, above or in its log, says why. Then go on from the last checkpoint in {out}: the "
            "same command with --resume. Ranks that are only slow need --set rank_timeout=SECONDS.",
        ) from error


@contextmanager
def world(device: str = "auto", timeout: float = 1800.0) -> Iterator[World]:
    """Join the process group that torchrun announces in the environment, or be alone.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        timeout: seconds after which a rank that waits for another gives up.

    Raises:
        ConfigError: a device that is unknown or not there.
        UsdataError: the other ranks did not come.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1 or dist.is_initialized():
        yield World(rank if size > 1 else 0, size, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    try:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout))
    except dist.DistError as error:
        raise UsdataError(
            f"Rank {rank} of {size} did not find the others within {timeout:g} s.",
            step="start",
            hint="Start all ranks together:  torchrun --nproc_per_node=N -m training.cli pretrain ...",
        ) from error
    try:
        yield World(rank, size, place)
    finally:
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device a config word means on this machine; "cuda" is this rank's GPU.

    Raises:
        ConfigError: unknown word, or a GPU that PyTorch cannot use.
    """
    try:
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise ConfigError(f"Unknown device {device!r}.", hint="Choose auto, cpu, cuda or cuda:N.") from error
    if chosen.type == "cuda":
        index = local_rank if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"Device {device!r} is not there: PyTorch sees {torch.cuda.device_count()} GPUs.",
                hint="Train on the CPU:  --set device=cpu",
            )
        return torch.device("cuda", index)
    return chosen
