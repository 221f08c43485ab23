"""Batches of a cohort, drawn at random by place: the same for any number of workers, resumed exactly.

Position p of an epoch is one image, whoever asks for it (`usdata.sampling`). Global batch b holds positions
b·G to (b + 1)·G − 1, where G = batch_size · world, and rank r has the r-th equal part of it. So two ranks with
batches of 128 see together what one rank with batches of 256 sees, and the state of a loader is one number per epoch.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from usdata import png
from usdata.errors import ConfigError
from usdata.reader import ShardIndex, ShardReader, file_buffer
from usdata.sampling import BalancedSampler, EpochSampler, GroupIndex, Sampler

__all__ = ["Loader", "ShardIndex", "read_batch"]

Batch = dict[str, Any]
_STATE_FORMAT = 1


class Loader:
    """Iterating gives the batches of one epoch; then `epoch` is one higher.

    A batch holds `image`, uint8 (B, 1, 256, 256), a strided view of memory that is used again only after you have let
    go of it; with `mask`, also `mask` (class indices of the same shape, zeros where there is none) and `has_mask`,
    bool (B,); and each requested column: a tensor of shape (B,) for numbers and truth values (float64 with NaN for
    null if the column has nulls anywhere in the cohort), else a list with None for null.

    Stopping in the middle of an epoch and iterating again goes on with the next batch.

    Args:
        index: where the images are.
        groups: group number of each image, shape (n,), integers, or a `GroupIndex`; None is enough without `gamma`.
        batch_size: images per batch of one rank.
        gamma: `P(group) ∝ N^gamma`, drawn with replacement: 1 proportional, 0.5 = weight 1/√N per image (USFM Eq. 1),
            0 all groups alike. None: each image once per epoch, in random order.
        by: what the groups are, for the state and messages.
        seed: of the draws.
        epoch_size: draws per epoch over all ranks; by default as many as there are images.
        workers: threads that fill batches ahead. The batches are the same for any number.
        rank, world: this process among how many.
        mask: deliver masks.
        columns: names of columns of the index to deliver.
        fingerprint: hash of the cohort; a state of another cohort is refused.
        drop_last: what happens to an epoch that is no multiple of the global batch. False: with `gamma`, it is drawn
            out to whole batches; without, its last batch is smaller, shared out among the ranks. True: the rest is
            left out.
        checksums: check each image's checksums, not only its structure: slower, finds any flipped bit.

    Attributes:
        epoch: number of the epoch that comes next, or is being delivered.

    Raises:
        ConfigError: a value that makes no sense, an empty cohort, or an epoch without a batch for each rank.
    """

    def __init__(
        self,
        index: ShardIndex,
        groups: NDArray[np.integer] | GroupIndex | None,
        *,
        batch_size: int,
        gamma: float | None = 0.5,
        by: str = "organ",
        seed: int = 0,
        epoch_size: int | None = None,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        mask: bool = False,
        columns: Sequence[str] = (),
        fingerprint: str = "",
        drop_last: bool = False,
        checksums: bool = False,
    ) -> None:
        if not len(index):
            raise ConfigError("The cohort is empty: there is nothing to load.", hint="What there is:  usdata catalog")
        epoch_size = len(index) if epoch_size is None else epoch_size
        for name, value in {"batch_size": batch_size, "epoch_size": epoch_size, "world": world}.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more.")
        if not 0 <= rank < world:
            raise ConfigError(f"rank is {rank}; among {world} ranks it must be 0 to {world - 1}.")
        if workers < 0:
            raise ConfigError(f"workers is {workers}; it must be 0 or more.")
        self.index, self.batch_size, self.gamma, self.by, self.seed = index, batch_size, gamma, by, int(seed)
        self.epoch_size, self.workers, self.rank, self.world = epoch_size, workers, rank, world
        self.fingerprint, self.drop_last = fingerprint, drop_last
        self.epoch = 0
        self._delivered = 0  # batches of this epoch that the consumer has
        self._turn = 0  # number of the newest iterator; older ones are dead
        self._draws = self._whole_draws()
        self._sampler = self._make_sampler(groups)
        self._assembler = _Assembler(index, columns, mask, checksums, spare=2 * workers + 2)

    def __len__(self) -> int:
        """Batches per epoch of this rank (the same for each rank)."""
        return -(-self._draws // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[Batch]:
        self._turn += 1
        return self._deliver(self._turn)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, a few plain values (JSON): what was delivered, never what was only prepared."""
        whole = self._delivered == len(self)
        position = {"epoch": self.epoch + whole, "batch": 0 if whole else self._delivered}
        return {"format": _STATE_FORMAT, **position, **self._identity(), "world": self.world, "rank": self.rank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the loader stood that gave `state`: the next batch is the one that would have come.

        The number of workers may differ, and so may rank, world and batch_size as long as
        batch_size · world is the same.

        Raises:
            ConfigError: no state of a loader, or of one that draws other batches; the message says why.
        """
        wanted = {"format", "epoch", "batch", "world", "rank", *self._identity()}
        if missing := sorted(wanted - set(state)):
            raise ConfigError(f"This is no state of a loader: it has no {', '.join(missing)}.")
        if state["format"] != _STATE_FORMAT:
            raise ConfigError(f"The loader's state has format {state['format']}, this version reads {_STATE_FORMAT}.")
        numbers = ("epoch", "batch", "batch_size", "world")
        if wrong := [name for name in numbers if not isinstance(state[name], int)]:
            raise ConfigError(f"The loader's state is damaged: {wrong[0]} is {state[wrong[0]]!r}, not a whole number.")
        here, there = self._identity(), dict(state)
        for side, world in ((here, self.world), (there, state["world"])):
            side["batch_size · world"] = side.pop("batch_size") * world
        if other := [f"{name} was {there[name]}, is {here[name]}" for name in here if there[name] != here[name]]:
            raise ConfigError(
                f"The loader can't go on from this state: {'; '.join(other)}.",
                hint="Start anew without the state, or with the settings and the cohort it was made with.",
            )
        epoch, batch = state["epoch"], state["batch"]
        if not (epoch >= 0 and 0 <= batch < len(self)):
            raise ConfigError(f"The loader's state points to batch {batch} of epoch {epoch}, which does not exist.")
        self.epoch, self._delivered = epoch, batch
        self._turn += 1

    def _identity(self) -> dict[str, Any]:
        """All that the sequence of batches depends on."""
        names = ("fingerprint", "seed", "gamma", "by", "epoch_size", "drop_last", "batch_size")
        return {"images": len(self.index), "layout": self._layout} | {name: getattr(self, name) for name in names}

    @cached_property
    def _layout(self) -> str:
        """Hash of where the images are and of their groups: the same ids may come to lie or to belong elsewhere."""
        digest = xxhash.xxh3_64("\n".join(self.index.shards).encode())
        groups = (self._sampler.index.order,) if isinstance(self._sampler, BalancedSampler) else ()
        for part in (self.index.shard, self.index.offset, *groups):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

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

    def _make_sampler(self, groups: NDArray[np.integer] | GroupIndex | None) -> Sampler:
        if self.gamma is None:
            return EpochSampler(len(self.index), self.seed, self.epoch_size)
        if groups is None:
            raise ConfigError(f"Balanced draws need the groups: the {self.by} of each image.")
        sampler = BalancedSampler(groups, self.gamma, self.seed)
        if len(sampler.index.order) != len(self.index):
            raise ConfigError(f"{len(self.index)} images, but {len(sampler.index.order)} groups.")
        return sampler

    def _deliver(self, turn: int) -> Iterator[Batch]:
        if self._delivered == len(self):
            self._next_epoch()
        numbers = range(self._delivered, len(self))
        with closing(self._filled(self.epoch, numbers)) as batches:
            for number, batch in zip(numbers, batches, strict=True):
                if turn != self._turn:
                    raise RuntimeError("this iterator is over: another one was made, or a state was loaded")
                self._delivered = number + 1
                yield batch
        if turn == self._turn:
            self._next_epoch()

    def _next_epoch(self) -> None:
        self.epoch, self._delivered = self.epoch + 1, 0

    def _filled(self, epoch: int, numbers: range) -> Generator[Batch, None, None]:
        """The batches in order, filled by threads a few ahead of the consumer."""
        if not self.workers:
            yield from (self._fill(epoch, number) for number in numbers)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="usdata-loader")
        waiting: deque[Future[Batch]] = deque()
        try:
            for number in numbers:
                waiting.append(pool.submit(self._fill, epoch, number))
                if len(waiting) > 2 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the consumer leaves its loop
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, epoch: int, number: int) -> Batch:
        start = number * self.batch_size * self.world
        n = min(self.batch_size * self.world, self._draws - start)
        first, last = (start + n * rank // self.world for rank in (self.rank, self.rank + 1))
        return self._assembler.batch(self._sampler.draw(epoch, first, last))


def read_batch(
    index: ShardIndex, rows: NDArray[np.integer], *, columns: Sequence[str] = (), mask: bool = False
) -> Batch:
    """The batch of these rows, in their order; keys as `Loader` gives them.

    Raises:
        ConfigError: an unknown column, or masks of an index without them.
        LakeError: a shard is missing or damaged.
    """
    return _Assembler(index, columns, mask, checksums=False, spare=0).batch(rows)


class _Assembler:
    """From row numbers to a batch."""

    def __init__(self, index: ShardIndex, columns: Sequence[str], mask: bool, checksums: bool, spare: int) -> None:
        if mask and index.mask_size is None:
            raise ConfigError("mask=True, but this index has no places of masks.")
        self.reader = ShardReader(index, checksums)
        self.mask = mask
        self._columns = {name: _column(index.column(name)) for name in columns}
        self._buffers: deque[NDArray[np.uint8]] = deque(maxlen=spare)  # free ones

    def batch(self, rows: NDArray[np.integer]) -> Batch:
        batch: Batch = {"image": self._images(rows)}
        for name, values in self._columns.items():
            batch[name] = values(rows)
        if self.mask:
            masks, known = self.reader.masks(rows)
            batch |= {"mask": torch.from_numpy(masks)[:, None], "has_mask": torch.from_numpy(known)}
        return batch

    def _images(self, rows: NDArray[np.integer]) -> Tensor:
        """uint8 (B, 1, 256, 256). Its memory comes from, and goes back to, the free buffers: fresh pages are slow."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = file_buffer(len(rows))
        if len(buffer) < len(rows):
            buffer = file_buffer(len(rows))
        self.reader.images(rows, buffer)
        lent = buffer[:]  # the tensor, its views and their numpy views keep this object alive, and nothing else does
        weakref.finalize(lent, self._buffers.append, buffer).atexit = False
        strides = (png.PITCH, png.PITCH, png.ROW, 1)
        return torch.from_numpy(lent).as_strided((len(rows), 1, png.SIDE, png.SIDE), strides, png.FIRST + 1)


def _column(column: pa.Array | pa.ChunkedArray) -> Callable[[NDArray[np.integer]], Tensor | list[Any]]:
    """A function from rows to their values, as `Loader` describes them."""
    kind, has_nulls = column.type, column.null_count > 0
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    truth = pa.types.is_boolean(plain)

    def numbers(rows: NDArray[np.integer]) -> Tensor:
        values = column.take(pa.array(rows)).cast(plain)
        if has_nulls:
            values = (values.cast(pa.int8()) if truth else values).cast(pa.float64(), safe=False)
        return torch.tensor(np.asarray(values))

    def words(rows: NDArray[np.integer]) -> list[Any]:
        values = column.take(pa.array(rows)).cast(plain)
        return np.asarray(values).tolist()  # several times as fast as to_pylist()

    if truth or pa.types.is_integer(plain) or pa.types.is_floating(plain):
        return numbers
    if pa.types.is_string(plain) or pa.types.is_large_string(plain):
        return words
    return lambda rows: column.take(pa.array(rows)).to_pylist()
