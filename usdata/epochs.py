"""What both loaders are: numbered batches, epoch after epoch, and a state that says which comes next."""

import math
import operator
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, SupportsIndex

import torch

from usdata.batch import Batch
from usdata.errors import ConfigError
from usdata.resume import make_state, resume


class Epochs:
    """Iterating gives the batches of one epoch; then `epoch` is one higher. The base of `Loader` and `StreamLoader`.

    A subclass fills the batches of an epoch (`_filled`) and names all that they depend on (`_identity`). An iterator
    belongs to one thread; making another, or loading a state, ends it.

    Args:
        images: how many there are.
        batch_size, gamma, by, seed, epoch_size, workers, rank, world, fingerprint, drop_last: see
            `usdata.loader.Loader`.

    Attributes:
        epoch: number of the epoch that comes next, or is being delivered. Setting it begins that epoch.

    Raises:
        ConfigError: a value that makes no sense, no images, or an epoch without a batch for each rank.
    """

    def __init__(
        self,
        images: int,
        *,
        batch_size: int,
        gamma: float | None,
        by: str,
        seed: int,
        epoch_size: int | None,
        workers: int,
        rank: int,
        world: int,
        fingerprint: Mapping[str, str] | None,
        drop_last: bool,
    ) -> None:
        if not images:
            raise ConfigError("The cohort is empty: there is nothing to load.", hint="What there is:  usdata catalog")
        self.images, self.by, self.drop_last = images, by, bool(drop_last)
        self.batch_size = whole_number("batch_size", batch_size, least=1)
        self.epoch_size = images if epoch_size is None else whole_number("epoch_size", epoch_size, least=1)
        self.world, self.rank = whole_number("world", world, least=1), whole_number("rank", rank)
        self.workers, self.seed = whole_number("workers", workers, least=0), whole_number("seed", seed)
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank is {rank}; among {world} ranks it must be 0 to {world - 1}.")
        self.gamma = None if gamma is None else _number("gamma", gamma)
        self.fingerprint = dict(fingerprint or {})
        self.draws = self._whole_draws()
        self._epoch = 0
        self._delivered = 0  # batches of this epoch that the consumer has
        self._turn = 0  # number of the newest iterator; older ones are dead

    @property
    def epoch(self) -> int:
        """Number of the epoch that comes next, or is being delivered."""
        return self._epoch

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._go_to(whole_number("epoch", number, least=0), 0)

    def __len__(self) -> int:
        """Batches per epoch of this rank (the same for each rank)."""
        return -(-self.draws // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ConfigError(
                "Inside a torch DataLoader every worker process would deliver every batch.",
                hint="Iterate the loader itself; its `workers` are threads that fill batches ahead.",
            )
        self._turn += 1
        return self._deliver(self._turn, os.getpid())

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, a few plain values (JSON), the same on every rank.

        What was delivered counts, never what was only prepared.
        """
        whole = self._delivered == len(self)
        epoch, batch = (self._epoch + 1, 0) if whole else (self._epoch, self._delivered)
        return make_state(self._identity(), epoch=epoch, batch=batch, batch_size=self.batch_size, world=self.world)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the loader stood that gave `state`: the next batch is the one that would have come.

        What may differ is told in `usdata.resume`; among it the number of workers, columns and masks. A refused state
        leaves the loader as it was.

        Raises:
            ConfigError: no state of such a loader, or of one that draws other images; the message says why.
        """
        self._go_to(*resume(state, self._identity(), batch_size=self.batch_size, world=self.world))

    def _go_to(self, epoch: int, delivered: int) -> None:
        self._epoch, self._delivered = epoch, delivered
        self._turn += 1

    def _identity(self) -> dict[str, Any]:
        """All that the sequence of images depends on: names and plain values."""
        raise NotImplementedError

    def _filled(self, epoch: int, numbers: range) -> Generator[Batch, None, None]:
        """The batches of these numbers, in their order."""
        raise NotImplementedError

    def _deliver(self, turn: int, process: int) -> Iterator[Batch]:
        self._check_alive(turn, process)
        if self._delivered == len(self):
            self._next_epoch()
        numbers = range(self._delivered, len(self))
        with closing(self._filled(self._epoch, numbers)) as batches:
            for number in numbers:
                self._check_alive(turn, process)
                yield self._counted(number, next(batches))  # no name here: it would keep the memory in use
        if turn == self._turn:
            self._next_epoch()

    def _check_alive(self, turn: int, process: int) -> None:
        if turn != self._turn:
            raise RuntimeError("this iterator is over: another one was made, or a state was loaded")
        if process != os.getpid():  # its threads did not come along
            raise RuntimeError("this iterator is of the process that forked this one: make a loader here")

    def _counted(self, number: int, batch: Batch) -> Batch:
        self._delivered = number + 1
        return batch

    def _next_epoch(self) -> None:
        self._epoch, self._delivered = self._epoch + 1, 0

    def _whole_draws(self) -> int:
        """Draws per epoch that are delivered, after `drop_last`."""
        whole = self.batch_size * self.world
        full, rest = divmod(self.epoch_size, whole)
        if self.drop_last and not full:
            raise ConfigError(
                f"An epoch of {self.epoch_size} images has no batch of {self.batch_size} for {self.world} rank(s).",
                hint="Lower batch_size, raise epoch_size, or leave drop_last out.",
            )
        if self.drop_last:
            return full * whole
        if self.gamma is not None:
            return math.ceil(self.epoch_size / whole) * whole
        if 0 < rest < self.world:
            raise ConfigError(
                f"The last batch of an epoch of {self.epoch_size} images has {rest} for {self.world} ranks.",
                hint="Choose another epoch_size, or drop_last=True.",
            )
        return self.epoch_size


def whole_number(name: str, value: SupportsIndex, least: int | None = None) -> int:
    """`value` as a plain int, which JSON can hold, also if it is one of numpy's.

    Raises:
        ConfigError: not a whole number, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number.") from None
    if least is not None and number < least:
        raise ConfigError(f"{name} is {number}; it must be {least} or more.")
    return number


def _number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {value!r}; it must be a number.") from None
