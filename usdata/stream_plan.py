"""Which images a stream shows, and which shards it needs for them: a pure function of seed, epoch, rank and world.

Draw k of an epoch names a group, by the same rule as the random-access loader. Inside a group images come without
replacement, in endless *passes*. A pass puts the group's shards in random order, takes `window` of them at a time,
shuffles the images of such a window, and begins this ring of all images at a random place. So an image is as likely at
any position as any other, however uneven the shards; a pass shows each exactly once; and going on needs one window.

The images of a group are handed out in order: the draws of rank 0 in an epoch take the first stretch of the group's
passes, those of rank 1 the next, and so on. So ranks read different shards, but for the windows in which one rank's
stretch ends and the next begins: those are read by both, each for images of its own.

Without `gamma` the groups of the draws are those of a random permutation of all images, so that every image comes
exactly once per pass, over all ranks; its passes go on from epoch to epoch, as those of `EpochSampler`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from usdata.errors import ConfigError
from usdata.sampling import BalancedSampler, EpochSampler, GroupIndex, _scale, _words

_CHUNK = 1 << 20  # draws counted at a time


@dataclass(frozen=True, eq=False)
class Visit:
    """A stretch of one window, in the order in which its images are drawn."""

    group: int
    start: int  # position of the first image in the endless row of the group's passes
    rows: NDArray[np.int64]  # (n,) row numbers

    @property
    def stop(self) -> int:
        """Position after the last image."""
        return self.start + len(self.rows)


@dataclass(frozen=True)
class Part:
    """Images `first` to `last - 1` of a visit, and their places in a batch."""

    visit: Visit
    first: int
    last: int
    places: NDArray[np.int64]  # (last - first,)


@dataclass(frozen=True)
class Slices:
    """How an epoch's draws are dealt out: batch b of rank r takes an equal part of the b-th `batch_size · world`."""

    draws: int  # of an epoch, over all ranks
    batch_size: int  # of one rank
    world: int

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-self.draws // (self.batch_size * self.world))

    def span(self, number: int, rank: int) -> tuple[int, int]:
        """First draw, and draw after the last, of a rank in a batch."""
        start = number * self.batch_size * self.world
        n = min(self.batch_size * self.world, self.draws - start)
        return start + n * rank // self.world, start + n * (rank + 1) // self.world


class Ring:
    """The endless passes over one group's images.

    Args:
        rows: shape (n,), the group's rows, ascending; those of a shard lie together.
        shard: shape (n,), shard number of each.
        window: shards that are shuffled together.
    """

    def __init__(self, index: GroupIndex, group: int, shard: NDArray[np.int32], window: int) -> None:
        self._index, self._first, self.images = index, int(index.starts[group]), int(index.counts[group])
        self.group, self._window = group, window
        shards = shard[self._rows(0, self.images)]
        self._bounds = np.concatenate([[0], np.flatnonzero(np.diff(shards)) + 1, [self.images]])  # of shards
        self.shards = shards[self._bounds[:-1]]  # (n_shards,) their numbers
        self._layout: tuple[str, NDArray[np.int64], NDArray[np.int64], int] | None = None

    def _rows(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.asarray(self._index.order[np.arange(self._first + start, self._first + stop)], np.int64)

    def visit(self, stream: str, position: int, stop: int) -> Visit:
        """What follows from `position` on in the ring of that name, up to the end of its window or to `stop`."""
        number, inside = divmod(position, self.images)
        key = f"{stream} {self.group} {number}"
        order, ends, turn = self._laid_out(key)
        place = (inside + turn) % self.images
        w = int(np.searchsorted(ends, place, side="right"))
        begin = int(ends[w - 1]) if w else 0
        # up to the end of the window, of the pass (which ends where the ring began), or of what is wanted
        n = min(int(ends[w]) - place, self.images - inside, stop - position)
        units = order[w * self._window : (w + 1) * self._window]
        rows = np.concatenate([self._rows(int(self._bounds[u]), int(self._bounds[u + 1])) for u in units])
        shuffled = rows[np.argsort(_words(f"stream window {key} {w}", 0, len(rows)), kind="stable")]
        return Visit(self.group, position, shuffled[place - begin : place - begin + n])

    def _laid_out(self, key: str) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Of one pass: the order of the shards, the ends of the windows, and the place where the ring begins."""
        if self._layout is None or self._layout[0] != key:
            words = _words(f"stream shards {key}", 0, len(self.shards) + 1)
            order = np.argsort(words[1:], kind="stable")
            last = np.append(np.arange(self._window, len(order), self._window), len(order)) - 1
            ends = np.cumsum(np.diff(self._bounds)[order])[last]
            turn = int(_scale(words[:1], np.uint64(self.images))[0]) if len(ends) > 1 else 0  # one window: all shuffled
            self._layout = key, order, ends, turn
        return self._layout[1:]


class StreamPlan:
    """The draws of a stream.

    Args:
        codes: group number of each row, shape (n,), integers.
        names: of the groups.
        shard: shard number of each row, shape (n,); the rows of a shard lie together.
        gamma, seed, epoch_size: as for `usdata.loader.Loader`.
        slices: how the draws are dealt out to batches and ranks.
        window: shards of a group that are shuffled together.
        split: `shards`: each group must have a shard for every rank; `samples`: ranks may share its shards.

    Raises:
        ConfigError: nothing to draw from, or fewer shards of a group than ranks.
    """

    def __init__(
        self,
        codes: NDArray[np.integer],
        names: Sequence[str],
        shard: NDArray[np.int32],
        *,
        gamma: float | None,
        seed: int,
        epoch_size: int,
        slices: Slices,
        window: int,
        split: str,
    ) -> None:
        index = GroupIndex.of(codes)
        self.codes, self.slices, self.seed, self.epoch_size, self.balanced = (
            codes,
            slices,
            seed,
            epoch_size,
            gamma is not None,
        )
        self._sampler = (
            EpochSampler(len(codes), seed, epoch_size) if gamma is None else BalancedSampler(index, gamma, seed)
        )
        self._pass = EpochSampler(len(codes), seed)
        self.sizes = index.counts
        self.rings = {g: Ring(index, g, shard, window) for g in np.flatnonzero(index.counts).tolist()}
        if split == "shards":
            self._check_shards(names, slices.world)

    def _check_shards(self, names: Sequence[str], world: int) -> None:
        short = [g for g, ring in self.rings.items() if len(ring.shards) < world]
        if not short:
            return
        g = min(short, key=lambda g: (len(self.rings[g].shards), g))
        others = f" (and {len(short) - 1} more groups have too few)" if len(short) > 1 else ""
        raise ConfigError(
            f"The group {names[g]!r} has {len(self.rings[g].shards)} shard(s) for {world} ranks{others}: "
            "each rank needs a shard of its own.",
            hint="Let ranks share shards and take different images of them, at the price of fetching them more than "
            'once:  cohort.stream(…, split="samples")',
        )

    def labels(self, epoch: int, start: int, stop: int) -> NDArray[np.integer]:
        """The group of draws `start` to `stop - 1` of an epoch, shape (stop - start,)."""
        return self.codes[self._sampler.draw(epoch, start, stop)]

    def stretches(self, epoch: int, rank: int, batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where a rank stands in each ring before a batch of an epoch, and where it ends: two of shape (n_groups,).

        Counts an epoch's draws: about a tenth of a second per million.
        """
        before = self._counted(epoch, 0, batch)
        drawn = before + self._counted(epoch, batch, len(self.slices))
        begin = self._before(epoch) + drawn[:rank].sum(0)
        return begin + before[rank], begin + drawn[rank]

    def _counted(self, epoch: int, first: int, last: int) -> NDArray[np.int64]:
        """How often each rank draws each group in batches `first` to `last - 1`: shape (world, n_groups)."""
        world, groups = self.slices.world, len(self.sizes)
        counts = np.zeros(world * groups, np.int64)
        step = max(1, _CHUNK // (self.slices.batch_size * world))
        for begin in range(first, last, step):
            end = min(begin + step, last)
            spans = [self.slices.span(number, rank) for number in range(begin, end) for rank in range(world)]
            labels = self.labels(epoch, spans[0][0], spans[-1][1]).astype(np.int64)
            ranks = np.repeat(np.tile(np.arange(world), end - begin), [stop - start for start, stop in spans])
            counts += np.bincount(labels + groups * ranks, minlength=len(counts))
        return counts.reshape(world, groups)

    def _before(self, epoch: int) -> NDArray[np.int64]:
        """How far the passes have come before an epoch: balanced draws begin anew, plain epochs go on."""
        if self.balanced:
            return np.zeros(len(self.sizes), np.int64)
        passes, rest = divmod(epoch * self.epoch_size, len(self.codes))
        counts = passes * self.sizes
        for start in range(0, rest, _CHUNK):
            labels = self.codes[self._pass.draw(passes, start, min(start + _CHUNK, rest))]
            counts = counts + np.bincount(labels, minlength=len(self.sizes))
        return counts

    def stream(self, epoch: int) -> str:
        """The name of the random numbers behind the passes of an epoch."""
        return f"{self.seed} {epoch}" if self.balanced else f"{self.seed}"


class EpochPlan:
    """One rank's batches of one epoch, from some batch on, one after the other."""

    def __init__(self, plan: StreamPlan, epoch: int, rank: int, batch: int) -> None:
        self._plan, self._epoch, self._rank = plan, epoch, rank
        self._next, self._stops = plan.stretches(epoch, rank, batch)
        self._stream = plan.stream(epoch)
        self._visits: dict[int, Visit] = {}  # the present one of each group

    def batch(self, number: int) -> tuple[NDArray[np.int64], list[Part]]:
        """The rows of a batch, shape (B,), and the visits they come from. Numbers are asked for in their order."""
        labels = self._plan.labels(self._epoch, *self._plan.slices.span(number, self._rank))
        rows, parts = np.empty(len(labels), np.int64), list[Part]()
        if not len(labels):
            return rows, parts
        order = np.argsort(labels, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
            for part in self._take(int(labels[places[0]]), places):
                rows[part.places] = part.visit.rows[part.first : part.last]
                parts.append(part)
        return rows, parts

    def _take(self, group: int, places: NDArray[np.int64]) -> Iterator[Part]:
        while len(places):
            position = int(self._next[group])
            visit = self._visits.get(group)
            if visit is None or position == visit.stop:
                visit = self._visits[group] = self._visit(group, position)
            first = position - visit.start
            n = min(len(places), len(visit.rows) - first)
            yield Part(visit, first, first + n, places[:n])
            self._next[group] += n
            places = places[n:]

    def _visit(self, group: int, position: int) -> Visit:
        return self._plan.rings[group].visit(self._stream, position, int(self._stops[group]))

    def following(self, visit: Visit) -> Visit | None:
        """What comes after a visit in its group; None at the end of the rank's stretch."""
        return self._visit(visit.group, visit.stop) if visit.stop < self._stops[visit.group] else None
