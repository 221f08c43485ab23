"""One process or many: `World` hides which. Under torchrun every rank runs the same `pretrain` call."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from usdata.errors import ConfigError, UsdataError

T = TypeVar("T")

_ALIVE, _DONE, _FAILED = (f"usdata/{word}" for word in ("alive", "done", "failed"))  # counters in the store
_ENDED = -2  # of the signs, which count from 0
_LOST = ("gloo", "nccl", "timed out", "timeout", "connection", "socket")  # words in messages of a broken group


@dataclass(frozen=True)
class World:
    """This process among its peers, and its device."""

    rank: int
    size: int
    device: torch.device
    signs: "Signs | None" = None  # how the others know that the first is alive; None: in a group of the caller's making

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

    def first_does(self, work: Callable[[], T]) -> T | None:
        """Run `work` on the first rank while the others wait, however long it takes; its result, there only.

        The group's timeout does not count meanwhile: the first rank gives signs of life, and the others give up when
        these stay away for that long, or when `work` fails. In a group that the caller made, its timeout counts.

        Raises:
            dist.DistError: on the others, if the first rank failed or is silent.
        """
        if self.size == 1:
            return work()
        found = None
        if self.signs is None:
            found = work() if self.first else None
        elif self.first:
            with self.signs.given():
                found = work()
        else:
            self.signs.awaited()
        self.wait()
        return found


class Signs:
    """Signs of life of the first rank, in the store through which the ranks found each other.

    Args:
        store: shared by all ranks.
        patience: seconds without a sign after which the first rank counts as lost.
    """

    def __init__(self, store: dist.Store, patience: float) -> None:
        self.store, self.patience, self.times = store, patience, 0

    @contextmanager
    def given(self) -> Iterator[None]:
        """On the first rank, around its work: a sign every quarter of the patience, and the end of the work."""
        done = threading.Event()
        thread = threading.Thread(target=self._give, args=[done], daemon=True)
        thread.start()
        ended = _FAILED
        try:
            yield
            ended = _DONE
        finally:
            done.set()
            thread.join()
            with suppress(dist.DistError):  # nobody is left to be told
                self.store.add(ended, 1)

    def _give(self, done: threading.Event) -> None:
        with suppress(dist.DistError):  # the main thread will notice at its next meeting with the others
            while not done.wait(min(self.patience / 4, 10.0)):
                self.store.add(_ALIVE, 1)

    def awaited(self) -> None:
        """On the others: return when the work is done.

        Raises:
            dist.DistError: it failed, or there was no sign for too long.
        """
        self.times += 1
        seen = queue.SimpleQueue[int | dist.DistError]()
        threading.Thread(target=self._watch, args=[self.times, seen], daemon=True).start()
        last, since = -1, time.monotonic()
        while (sign := self._next(seen)) != _ENDED:
            if isinstance(sign, dist.DistError):
                raise sign
            if sign not in (None, last):
                last, since = sign, time.monotonic()
            elif time.monotonic() - since > self.patience:
                raise dist.DistError(f"timed out: no sign of life of the first rank for {self.patience:g} s")

    def _next(self, seen: "queue.SimpleQueue[int | dist.DistError]") -> int | dist.DistError | None:
        try:
            return seen.get(timeout=self.patience / 4)
        except queue.Empty:
            return None

    def _watch(self, times: int, seen: "queue.SimpleQueue[int | dist.DistError]") -> None:
        """In a thread, as the store may be the first rank's own and never answer: its signs, then the end."""
        pause = 0.001
        try:
            while self.store.add(_DONE, 0) < times:
                if self.store.add(_FAILED, 0):
                    raise dist.DistError("the first rank failed")
                seen.put(self.store.add(_ALIVE, 0))
                time.sleep(pause)
                pause = min(2 * pause, 0.1, self.patience / 4)
            seen.put(_ENDED)
        except dist.DistError as error:
            seen.put(error)


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


def gather_ranks(x: Tensor) -> Tensor:
    """Rows of all ranks, (n, ...) -> (ranks * n, ...), with gradients; `x` itself without torchrun.

    A loss that looks across the batch is then the same on every rank, and DDP's mean of the gradients is exactly
    the gradient of the loss of the whole batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    out: Tensor = _GatherRanks.apply(x)
    return out


class _GatherRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)  # every rank's loss depends on these rows
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


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
    patience = timedelta(seconds=timeout)
    try:
        store: dist.Store = next(dist.rendezvous("env://", rank, size, timeout=patience))[0]
        backend, shared = "nccl" if place.type == "cuda" else "gloo", dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=shared, rank=rank, world_size=size, timeout=patience)
    except dist.DistError as error:
        raise UsdataError(
            f"Rank {rank} of {size} did not find the others within {timeout:g} s.",
            step="start",
            hint="Start all ranks together:  torchrun --nproc_per_node=N -m training.cli pretrain ...",
        ) from error
    try:
        yield World(rank, size, place, Signs(store, timeout))
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
                hint="On the CPU:  --device cpu        In `usdata pretrain`:  --set device=cpu",
            )
        return torch.device("cuda", index)
    return chosen
