"""Batches of a cohort, drawn at random by place: the same for any number of workers, resumed exactly.

Position p of an epoch is one image, whoever asks for it (`usdata.sampling`). Global batch b holds positions
b·G to (b + 1)·G − 1, where G = batch_size · world, and rank r has the r-th equal part of it. So two ranks with
batches of 128 see together what one rank with batches of 256 sees, and the state of a loader is one number per epoch.
"""

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from usdata.batch import Assembler, Batch
from usdata.epochs import Epochs
from usdata.errors import ConfigError
from usdata.reader import ShardIndex
from usdata.sampling import BalancedSampler, EpochSampler, GroupIndex, Sampler

__all__ = ["Loader", "ShardIndex", "read_batch"]

_AHEAD = 1 << 14  # draws made at once: a draw costs little, starting a stretch of them much


class Loader(Epochs):
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
        fingerprint: hashes of the images by name (`Cohort.fingerprint`): a state of others is refused. Without
            them, the places of the images are compared.
        drop_last: what happens to an epoch that is no multiple of the global batch. False: with `gamma`, it is drawn
            out to whole batches; without, its last batch is smaller, shared out among the ranks. True: the rest is
            left out.
        checksums: check each image's checksums, not only its structure: slower, finds any flipped bit.

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
        fingerprint: Mapping[str, str] | None = None,
        drop_last: bool = False,
        checksums: bool = False,
    ) -> None:
        super().__init__(
            len(index),
            batch_size=batch_size,
            gamma=gamma,
            by=by,
            seed=seed,
            epoch_size=epoch_size,
            workers=workers,
            rank=rank,
            world=world,
            fingerprint=fingerprint,
            drop_last=drop_last,
        )
        self.index = index
        self._sampler = self._make_sampler(groups)
        self._drawn: tuple[int, int, NDArray[np.int64]] = (-1, -1, np.empty(0, np.int64))  # epoch, stretch, rows
        self._drawing = Lock()
        self._assembler = Assembler(index, columns, mask, checksums, spare=self.workers + 2)

    def _identity(self) -> dict[str, Any]:
        """All that the sequence of images depends on; where they lie is no part of it, if the cohort vouches for them.

        With `gamma`, draws follow from the groups and do not know `epoch_size`, only how many are delivered. Without,
        it is the other way round.
        """
        same: dict[str, Any] = {"loader": "random access", "images": len(self.index), "draws_per_epoch": self.draws}
        same |= {"seed": self.seed, "gamma": self.gamma}
        if isinstance(self._sampler, BalancedSampler):
            same |= {"by": self.by, "groups": self._sampler.index.digest}
        else:
            same |= {"epoch_size": self.epoch_size}
        return same | (self.fingerprint or {"layout": self._layout})

    @cached_property
    def _layout(self) -> str:
        """Hash of where the images are: the same ids may come to lie elsewhere, in another order."""
        digest = xxhash.xxh3_64("\n".join(self.index.shards).encode())
        for part in (self.index.shard, self.index.offset):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def _make_sampler(self, groups: NDArray[np.integer] | GroupIndex | None) -> Sampler:
        if self.gamma is None:
            return EpochSampler(len(self.index), self.seed, self.epoch_size)
        if groups is None:
            raise ConfigError(f"Balanced draws need the groups: the {self.by} of each image.")
        sampler = BalancedSampler(groups, self.gamma, self.seed)
        if len(sampler.index.order) != len(self.index):
            raise ConfigError(f"{len(self.index)} images, but {len(sampler.index.order)} groups.")
        return sampler

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
                if len(waiting) > self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the consumer leaves its loop
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, epoch: int, number: int) -> Batch:
        whole = self.batch_size * self.world
        ahead = max(1, _AHEAD // whole)  # batches drawn at once
        group, place = divmod(number, ahead)
        start = group * ahead * whole
        with self._drawing:
            if self._drawn[:2] != (epoch, group):
                stop = min(start + ahead * whole, self.draws)
                self._drawn = epoch, group, self._sampler.draw(epoch, start, stop)
            rows = self._drawn[2][place * whole : (place + 1) * whole]
        first, last = (len(rows) * rank // self.world for rank in (self.rank, self.rank + 1))
        return self._assembler.batch(rows[first:last])


def read_batch(
    index: ShardIndex, rows: NDArray[np.integer], *, columns: Sequence[str] = (), mask: bool = False
) -> Batch:
    """The batch of these rows, in their order; keys as `Loader` gives them.

    Raises:
        ConfigError: an unknown column, or masks of an index without them.
        LakeError: a shard is missing or damaged.
    """
    return Assembler(index, columns, mask, checksums=False, spare=0).batch(rows)
