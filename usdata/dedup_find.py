"""Copies and near-copies among the samples of a cohort: which pairs, and which groups they make.

Read `find_duplicates` first. Pixels are read of candidates only: the catalog's hashes say who they are.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from usdata.cohort import Cohort
from usdata.dedup_align import LEAST, TEXTURE, texture_correlation
from usdata.dedup_search import near_pairs, radius_for
from usdata.dedup_thumbs import Thumbnails
from usdata.errors import ConfigError
from usdata.parts import coded
from usdata.reader import ShardReader
from usdata.schema import IMAGE_SIZE
from usdata.workers import Progress, silent

THRESHOLD = 0.995  # over BUSI's 780 images, pairs above it at 32 x 32 are near-copies
_CROWD = 64  # images of one hash that take part in the search; the others are compared with leaders
_LEADERS = 64  # at most, in a crowd
_LAID = 8  # pairs of frames of two clips that are laid over each other
_AT_ONCE = 32  # pairs in one piece of work
_PAIR = 2 * IMAGE_SIZE * IMAGE_SIZE  # bytes

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Duplicates:
    """What was found; rows are places in the cohort.

    Attributes:
        first, second: shape (m,), int64: pairs of samples, first < second. A copy is paired with the first of its kind.
        correlation: shape (m,), float64, of the thumbnails; 1 for equal pixels.
        texture: shape (m,), float64: of pairs that were laid over each other, see `dedup_align`; else NaN.
        exact: shape (m,), bool: whether all pixels are equal.
        group: shape (n,), int64: smallest row of the sample's group; -1 for a sample without a duplicate.
        in_clips: exact copies and near neighbours (by hash; not looked at) inside clips, by data set.
        blank: rows of images without contrast that are copies or look-alikes of others: they are no duplicates.
        unhashed: samples without a perceptual hash: only exact copies of them are found.
        skipped: comparisons of hashes that were spared in crowded buckets, see `dedup_search.near_pairs`.
        crowded: images (one of each kind) that are near to more than 32 others by hash: the nearest were looked at.
        read: images whose pixels were read.
        laid: pairs that were laid over each other.
    """

    first: Codes
    second: Codes
    correlation: NDArray[np.float64]
    texture: NDArray[np.float64]
    exact: NDArray[np.bool_]
    group: Codes
    in_clips: dict[str, tuple[int, int]]
    blank: Codes
    unhashed: int
    skipped: int
    crowded: int
    read: int
    laid: int

    def groups(self) -> list[Codes]:
        """The rows of each group, largest group first."""
        rows = np.flatnonzero(self.group >= 0)
        rows = rows[np.argsort(self.group[rows], kind="stable")]
        cuts = np.flatnonzero(np.diff(self.group[rows])) + 1
        return sorted(np.split(rows, cuts), key=lambda group: (-len(group), int(group[0]))) if len(rows) else []


def find_duplicates(
    cohort: Cohort,
    threshold: float = THRESHOLD,
    recut: bool = True,
    workers: int = 1,
    progress: Progress = silent,
) -> Duplicates:
    """Copies and near-copies among different sources of a cohort.

    Exact: the same `pixel_xxh`. Near: perceptual hashes that differ in at most 12 bits (10 beyond a million), and
    32 x 32 thumbnails whose correlation is above the threshold. Recut: near hashes, thumbnails above 0.85, and the same
    texture once they are laid over each other (`dedup_align`), of two clips the eight most alike pairs of frames. Flips
    and quarter turns are other images; so are most crops of 10 %, whose hashes are too far apart.

    Frames of one clip (`clip`, in one data set) are neighbours anyway: they are never a pair. An image without
    contrast (the thumbnail's spread is below 1 grey level) is no duplicate either: it shows nothing that could leak,
    and would tie all patients of whom there is a black frame into one group.

    Args:
        cohort: of a lake on this machine.
        threshold: correlation in (0, 1) that a near pair must exceed.
        recut: also look for copies that were cut anew: some 5 ms for each pair that could be one.
        workers: threads; the result is the same for any number.
        progress: told of the bytes read.

    Raises:
        ConfigError: a threshold outside (0, 1).
        LakeError: the lake is remote, or damaged.
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"The threshold is a correlation between 0 and 1, not {threshold:g}.")
    facts = _Facts.of(cohort)
    copies = _exact_pairs(facts.pixels, facts.units)
    firsts = np.unique(facts.pixels, return_index=True)[1]  # one row of each kind
    known = np.sort(firsts[facts.hashed[firsts]])
    hashes, units = facts.hashes[known], facts.units[known]
    calm, crowds = _part_crowds(hashes, units)
    near = near_pairs(hashes[calm], units[calm], radius_for(len(known)), workers)
    one, other = known[calm[near.first]], known[calm[near.second]]
    crowds = [known[crowd] for crowd in crowds]
    candidates = np.unique(np.concatenate([one, other, *copies, *crowds]))
    thumbs = Thumbnails(cohort, candidates, workers, progress)
    alike = thumbs.correlations(one, other)
    above = alike > threshold
    led = [_led(thumbs, crowd, facts.units, threshold) for crowd in crowds]
    shown = ~thumbs.flat[thumbs.places(copies[0])]
    sure = _joined([(one[above], other[above], alike[above]), *led], (copies[0][shown], copies[1][shown]))
    group = _components(sure[0], sure[1], cohort.rows)
    maybe = _worth_laying(one, other, alike, facts.units, group, threshold) if recut else np.empty(0, np.int64)
    texture = _textures(cohort, one[maybe], other[maybe], workers, progress)
    same = maybe[texture > TEXTURE]
    pairs = _with_recut(sure, (one[same], other[same], alike[same], texture[texture > TEXTURE]))
    return Duplicates(
        *pairs,
        group=_components(pairs[0], pairs[1], cohort.rows),
        in_clips=facts.in_clips(),
        blank=np.flatnonzero(np.isin(facts.pixels, facts.pixels[candidates[thumbs.flat]])),
        unhashed=int((~facts.hashed).sum()),
        skipped=near.skipped,
        crowded=near.crowded,
        read=len(candidates),
        laid=len(maybe),
    )


@dataclass(frozen=True)
class _Facts:
    """What the catalog says of each sample, as numbers."""

    dataset: NDArray[np.int32]
    datasets: list[str]
    pixels: Codes  # equal: the same pixels
    hashes: NDArray[np.uint64]
    hashed: NDArray[np.bool_]
    units: Codes  # equal: frames of one clip
    frame: Codes

    @classmethod
    def of(cls, cohort: Cohort) -> "_Facts":
        def column(name: str) -> pa.ChunkedArray:
            return cohort.table([name])[name]

        dataset, datasets = coded(column("dataset"))
        pixels = column("pixel_xxh").combine_chunks().dictionary_encode().indices
        hashes = column("phash")
        return cls(
            dataset,
            datasets,
            _alone(np.asarray(pixels.fill_null(-1), np.int64)),
            np.asarray(hashes.fill_null(0), np.uint64),
            np.asarray(hashes.is_valid(), bool),
            clip_units(dataset, column("clip")),
            np.asarray(column("frame").fill_null(0), np.int64),
        )

    def in_clips(self) -> dict[str, tuple[int, int]]:
        """Exact copies, and neighbours with near hashes, inside clips: data set -> numbers of both."""
        order = np.lexsort((self.frame, self.units))
        same = self.units[order[1:]] == self.units[order[:-1]]
        bits = np.bitwise_count(self.hashes[order[1:]] ^ self.hashes[order[:-1]])
        equal = self.pixels[order[1:]] == self.pixels[order[:-1]]
        near = order[1:][same & ~equal & (bits <= radius_for(len(order)))]
        by_pixels = np.lexsort((self.units, self.pixels))
        again = (np.diff(self.pixels[by_pixels]) == 0) & (np.diff(self.units[by_pixels]) == 0)
        number = len(self.datasets)
        counts = [np.bincount(self.dataset[rows], minlength=number) for rows in (by_pixels[1:][again], near)]
        return {
            name: (int(exact), int(close))
            for name, exact, close in zip(self.datasets, *counts, strict=True)
            if exact or close
        }


def clip_units(dataset: NDArray[np.int32], clip: pa.ChunkedArray) -> Codes:
    """A number for each clip of a data set, and one for each sample without a clip."""
    clips, words = coded(clip)
    named = dataset.astype(np.int64) * max(1, len(words)) + clips
    return _alone(np.where(clips >= 0, named, -1))


def _alone(codes: Codes) -> Codes:
    """The codes; each -1 becomes a code of its own."""
    return np.where(codes >= 0, codes, codes.max(initial=0) + 1 + np.arange(len(codes)))


def _exact_pairs(pixels: Codes, units: Codes) -> tuple[Codes, Codes]:
    """Samples of equal pixels in different units: each with the first of its kind, or the first of another unit."""
    order = np.argsort(pixels, kind="stable")
    starts = np.flatnonzero(np.diff(pixels[order], prepend=-1))
    kind = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    first = order[starts][kind]  # the first row of the kind
    strange = units[order] != units[first]
    second = np.full(len(starts), -1)
    second[kind[strange][::-1]] = order[strange][::-1]  # the first row of another unit; the last write counts
    partner = np.where(strange, first, second[kind])
    chosen = (order != first) & (partner >= 0)
    return np.minimum(order, partner)[chosen], np.maximum(order, partner)[chosen]


def _part_crowds(hashes: NDArray[np.uint64], units: Codes) -> tuple[Codes, list[Codes]]:
    """Places that take part in the search, and the crowds: more than 64 images of one hash, of more than one unit.

    Of a crowd, 64 take part: the first of each unit, then the others.
    """
    _, kind, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    heavy = np.flatnonzero((counts > _CROWD)[kind])
    if not len(heavy):
        return np.arange(len(hashes)), []
    heavy = heavy[np.argsort(kind[heavy], kind="stable")]
    calm, crowds = np.ones(len(hashes), bool), []
    for crowd in np.split(heavy, np.flatnonzero(np.diff(kind[heavy])) + 1):
        firsts = np.zeros(len(crowd), bool)
        firsts[np.unique(units[crowd], return_index=True)[1]] = True
        order = np.concatenate([crowd[firsts], crowd[~firsts]])
        calm[order[_CROWD:]] = False
        if firsts.sum() > 1:
            crowds.append(order)
    return np.flatnonzero(calm), crowds


def _led(thumbs: Thumbnails, crowd: Codes, units: Codes, threshold: float) -> tuple[Codes, Codes, NDArray[np.float64]]:
    """Pairs of a crowd's images with leaders: the first image leads those like it, the first of the rest leads again.

    At most 64 leaders, so the work is linear; what no leader takes is left to the search.
    """
    left = crowd[~thumbs.flat[thumbs.places(crowd)]]
    found: list[tuple[Codes, Codes, NDArray[np.float64]]] = []
    for _ in range(_LEADERS):
        if len(left) < 2:
            break
        leader, left = np.full(len(left) - 1, left[0]), left[1:]
        alike = thumbs.correlations(leader, left)
        led = (alike > threshold) & (units[left] != units[leader])
        found.append((np.minimum(leader, left)[led], np.maximum(leader, left)[led], alike[led]))
        left = left[alike <= threshold]
    none = np.empty(0, np.int64)
    firsts, seconds, values = zip(*found, strict=True) if found else ((none,), (none,), (np.empty(0),))
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(values)


def _joined(
    near: list[tuple[Codes, Codes, NDArray[np.float64]]], copies: tuple[Codes, Codes]
) -> tuple[Codes, Codes, NDArray[np.float64], NDArray[np.bool_]]:
    """All pairs sorted, each once: first, second, correlation, whether equal."""
    parts = [*near, (*copies, np.ones(len(copies[0])))]
    first, second, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    exact = np.arange(len(first)) >= len(first) - len(copies[0])
    order = np.lexsort((second, first))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(first[order]) != 0) | (np.diff(second[order]) != 0)  # a leader's pair may be a found one
    kept = order[new]
    return first[kept], second[kept], values[kept], exact[kept]


def _worth_laying(
    first: Codes, second: Codes, alike: NDArray[np.float64], units: Codes, group: Codes, threshold: float
) -> Codes:
    """Places of the pairs that could be recut copies: not of one group yet; of two units the eight most alike."""
    joined = (group[first] >= 0) & (group[first] == group[second])
    places = np.flatnonzero((alike > LEAST) & (alike <= threshold) & ~joined)
    one, two = np.minimum(units[first], units[second])[places], np.maximum(units[first], units[second])[places]
    order = np.lexsort((places, -alike[places], two, one))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(one[order]) != 0) | (np.diff(two[order]) != 0)
    starts = np.flatnonzero(new)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.sort(places[order[rank < _LAID]])


def _textures(cohort: Cohort, first: Codes, second: Codes, workers: int, progress: Progress) -> NDArray[np.float64]:
    """`texture_correlation` of each pair, shape (m,)."""
    if not len(first):
        return np.empty(0)
    reader = ShardReader(cohort.index())

    def compare(start: int) -> list[float]:
        sides = [reader.images(side[start : start + _AT_ONCE]) for side in (first, second)]
        return [texture_correlation(a, b) for a, b in zip(*sides, strict=True)]

    found: list[float] = []
    with ThreadPoolExecutor(max(1, workers)) as threads:
        for part in threads.map(compare, range(0, len(first), _AT_ONCE)):
            found += part
            progress("lay over", len(found) * _PAIR, len(first) * _PAIR)
    return np.array(found)


def _with_recut(
    sure: tuple[Codes, Codes, NDArray[np.float64], NDArray[np.bool_]],
    recut: tuple[Codes, Codes, NDArray[np.float64], NDArray[np.float64]],
) -> tuple[Codes, Codes, NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """All pairs sorted: first, second, correlation, texture, whether equal."""
    first, second, alike = (np.concatenate([a, b]) for a, b in zip(sure[:3], recut[:3], strict=True))
    texture = np.concatenate([np.full(len(sure[0]), np.nan), recut[3]])
    exact = np.concatenate([sure[3], np.zeros(len(recut[0]), bool)])
    order = np.lexsort((second, first))
    return first[order], second[order], alike[order], texture[order], exact[order]


def _components(first: Codes, second: Codes, number: int) -> Codes:
    """The smallest row of each row's group, -1 without one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, ends = np.unique(np.concatenate([first, second]), return_inverse=True)
    links = (np.ones(len(first), bool), (ends[: len(first)], ends[len(first) :]))
    labels = connected_components(coo_array(links, shape=(len(rows), len(rows))), directed=False)[1]
    smallest = rows[np.unique(labels, return_index=True)[1]]
    group = np.full(number, -1, np.int64)
    group[rows] = smallest[labels]
    return group
