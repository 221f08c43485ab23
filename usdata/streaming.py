"""Batches of a cohort out of shards that are read whole, from a remote store or a local disk, in `P(group) ∝ N^γ`.

`usdata.stream_plan` says which images come, `usdata.shard_cache` brings the shards here, `usdata.stream_windows`
unpacks them with webdataset. The batches follow from the plan alone, so that workers, a slow network and failed
requests can change when a batch comes, but never what is in it.
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from threading import Event
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from usdata.batch import Batch
from usdata.epochs import Epochs, whole_number
from usdata.errors import ConfigError
from usdata.shard_cache import Shard
from usdata.stream_plan import EpochPlan, Part, Slices, StreamPlan, Visit
from usdata.stream_windows import StreamAssembler, WindowReader, Windows

_AHEAD = 4  # batches planned ahead, whose windows are being loaded


class StreamLoader(Epochs):
    """Iterating gives the batches of one epoch; then `epoch` is one higher. The batches are as those of `Loader`.

    Which images come: see `usdata.stream_plan`. For each group one window is held in memory, 64 KiB per image: with
    shards of 1,000 images and window 2, 131 MB per group, and for a moment those of the next window too; so 1.6 GB for
    twelve organs. `by` should be a column in which shards are pure, as organ or dataset: otherwise each group unpacks
    the shards that it shares with others for itself.

    Args:
        reader: of the images, and of their masks if batches are to have them.
        codes: group number of each image, shape (n,), integers.
        names: of the groups.
        batch_size, gamma, by, seed, epoch_size, workers, rank, world, columns, fingerprint, drop_last: as for
            `usdata.loader.Loader`. The workers are threads; they have no shards of their own.
        window: shards of a group that are shuffled together.
        split: `shards`: an error if a group has fewer shards than there are ranks; `samples`: then ranks read the same
            shards and take different images of them.

    Raises:
        ConfigError: a value that makes no sense, an empty cohort, too few shards of a group, or a cache in which the
            windows have no room.
    """

    def __init__(
        self,
        reader: WindowReader,
        codes: NDArray[np.integer],
        names: Sequence[str],
        *,
        batch_size: int,
        gamma: float | None = 0.5,
        by: str = "organ",
        seed: int = 0,
        epoch_size: int | None = None,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        columns: Sequence[str] = (),
        fingerprint: Mapping[str, str] | None = None,
        drop_last: bool = False,
        window: int = 2,
        split: str = "shards",
    ) -> None:
        index = reader.index
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
        if split not in ("shards", "samples"):
            raise ConfigError(f"split is {split!r}; it can be 'shards' or 'samples'.")
        self.index, self.window, self.split = index, whole_number("window", window, least=1), split
        self._slices = Slices(self.draws, self.batch_size, self.world)
        self._plan = StreamPlan(
            codes,
            names,
            index.shard,
            gamma=self.gamma,
            seed=self.seed,
            epoch_size=self.epoch_size,
            slices=self._slices,
            window=self.window,
            split=split,
        )
        reader.source.check_room(self._room(reader.shards))
        self._reader = reader
        self._assembler = StreamAssembler(index, columns, reader.mask)

    def _identity(self) -> dict[str, Any]:
        """All that the batches depend on: unlike those of `Loader`, also on ranks and on how images lie in shards."""
        names = ("seed", "gamma", "by", "epoch_size", "window")
        same = {"loader": "stream", "images": len(self.index), "draws_per_epoch": self.draws}
        same |= {"layout": self._layout}
        ranks = {"ranks": self.world, "images_per_rank": self.batch_size}
        return same | ranks | self.fingerprint | {name: getattr(self, name) for name in names}

    @cached_property
    def _layout(self) -> str:
        """Hash of where the images are and of their groups: the same ids may come to lie or to belong elsewhere."""
        digest = xxhash.xxh3_64("\n".join(["stream", *self.index.shards]).encode())
        for part in (self.index.shard, self.index.offset, self._plan.codes):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def _room(self, shards: Sequence[Shard]) -> int:
        """Bytes of the largest window of each group: while one is in use, the next waits in the cache."""
        sizes = np.array([shard.size for shard in shards], np.int64)
        windows = sum(int(np.sort(sizes[ring.shards])[-self.window :].sum()) for ring in self._plan.rings.values())
        return min(windows, int(sizes.sum()))

    def _filled(self, epoch: int, numbers: range) -> Generator[Batch, None, None]:
        """The batches in order; the windows of the next few are loaded meanwhile."""
        plan = EpochPlan(self._plan, epoch, self.rank, numbers.start)
        waiting: deque[tuple[NDArray[np.int64], list[Part]]] = deque()
        with Windows(self._reader, self.workers) as windows:
            for number in numbers:
                rows, parts = plan.batch(number)
                for part in parts:
                    if part.first == 0:
                        windows.expect(part.visit, plan.following(part.visit))
                waiting.append((rows, parts))
                if len(waiting) > (_AHEAD if self.workers else 0):
                    yield self._assembler.batch(*waiting.popleft(), windows)
            while waiting:
                yield self._assembler.batch(*waiting.popleft(), windows)


def in_order(reader: WindowReader, columns: Sequence[str], batch_size: int, workers: int = 2) -> Iterator[Batch]:
    """Batches of all rows of the reader's index, in their order; the last may be smaller.

    Raises:
        ConfigError: a batch size below 1.
        LakeError: see `WindowReader.load`.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be 1 or more.")
    shard = reader.index.shard
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(shard)) + 1, [len(shard)]]).tolist() if len(shard) else [0]
    visits = deque(Visit(0, start, np.arange(start, stop)) for start, stop in pairwise(bounds))
    assembler = StreamAssembler(reader.index, columns, reader.mask)
    with Windows(reader, workers) as windows:
        for start in range(0, len(shard), batch_size):
            stop = min(start + batch_size, len(shard))
            parts = []
            while visits and visits[0].start < stop:
                visit = visits[0]
                windows.expect(visit, visits[1] if len(visits) > 1 else None)
                first, last = max(start, visit.start), min(stop, visit.stop)
                parts.append(Part(visit, first - visit.start, last - visit.start, np.arange(first, last) - start))
                if visit.stop > stop:
                    break
                visits.popleft()
            yield assembler.batch(np.arange(start, stop), parts, windows)


def some_images(reader: WindowReader, rows: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The pixels of some rows, in their order, shape (n, 256, 256), uint8; each shard is unpacked once.

    Raises:
        LakeError: see `WindowReader.load`.
    """
    once, where = np.unique(rows, return_inverse=True)
    images = reader.load(once.astype(np.int64), Event()).images
    return images if np.array_equal(once, rows) else images[where]
