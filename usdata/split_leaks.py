"""Leaks: what ties images of two splits together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from usdata.split_groups import KINDS, Codes, Groups, Links

_SHOWN = 5  # sample ids of a leak per split


@dataclass(frozen=True)
class Leak:
    """One key whose images stand in more than one split.

    `kind`: patient, study, clip, duplicate (near-duplicates), pixels (equal stored pixels); or `group`: tied only by a
    chain over images that are in no split.
    """

    kind: str
    key: str
    datasets: tuple[str, ...]
    images: dict[str, int]  # split -> how many of the key's images it holds
    samples: dict[str, tuple[str, ...]]  # split -> some of their sample ids

    def row(self) -> dict[str, Any]:
        """As a row of the printed table: an example from each split."""
        return {
            "leak": self.kind,
            "key": self.key,
            "dataset": ", ".join(self.datasets),
            "images": ", ".join(f"{word} {n:,}" for word, n in self.images.items()),
            "for instance": " | ".join(ids[0] for ids in self.samples.values()),
        }

    def record(self) -> dict[str, Any]:
        """As a JSON object."""
        fields = {"kind": "leak", "leak": self.kind, "key": self.key, "datasets": list(self.datasets)}
        return fields | {"images": self.images, "samples": {word: list(ids) for word, ids in self.samples.items()}}


@dataclass(frozen=True)
class Leaks:
    """All leaks of an assignment; made one at a time, for there can be millions."""

    links: Links
    groups: Groups
    words: Sequence[str]
    codes: Codes  # (n,) place of each image's split in `words`; −1: in none
    crossing: dict[str, NDArray[np.bool_]]  # kind -> which of its keys stand in two splits

    @property
    def counts(self) -> dict[str, int]:
        """Kind -> number of leaks; kinds without any are left out."""
        found = {kind: int(crossing.sum()) for kind, crossing in self.crossing.items()}
        return {kind: number for kind, number in found.items() if number}

    def __len__(self) -> int:
        return sum(self.counts.values())

    @property
    def images(self) -> int:
        """Images that are in a leak."""
        hit = np.zeros(len(self.links), bool)
        for kind, crossing in self.crossing.items():
            hit |= np.append(crossing, False)[self._keys_of(kind)] & (self.codes >= 0)
        return int(hit.sum())

    def __iter__(self) -> Iterator[Leak]:
        for kind, crossing in self.crossing.items():
            keys = self._keys_of(kind)
            rows = np.flatnonzero(np.append(crossing, False)[keys] & (self.codes >= 0))
            rows = rows[np.argsort(keys[rows], kind="stable")]
            starts = np.flatnonzero(np.diff(keys[rows], prepend=-1))
            texts = self.groups.names if kind == "group" else self.links.keys[kind]
            for members in np.split(rows, starts[1:]) if len(rows) else []:
                yield self._leak(kind, texts[int(keys[members[0]])].as_py(), members)

    def _keys_of(self, kind: str) -> Codes:
        return self.groups.of if kind == "group" else self.links.codes[kind]

    def _leak(self, kind: str, key: str, members: NDArray[np.int64]) -> Leak:
        table, codes = self.links.table, self.codes[members]
        images, samples = {}, {}
        for code in np.unique(codes).tolist():
            rows = members[codes == code]
            images[self.words[code]] = len(rows)
            samples[self.words[code]] = tuple(table["sample_id"].take(pa.array(rows[:_SHOWN])).to_pylist())
        datasets = table["dataset"].take(pa.array(members)).cast(pa.string()).unique().drop_null().to_pylist()
        return Leak(kind, key, tuple(sorted(datasets)), images, samples)


def find_leaks(links: Links, groups: Groups, words: Sequence[str], codes: Codes) -> Leaks:
    """What of an assignment stands in two splits.

    Args:
        words: names of the splits; codes: (n,) place of each image's split in `words`, −1: in none.
    """
    crossing, told = {}, np.zeros(len(groups), bool)
    for kind in KINDS:
        crossing[kind] = _crossing(links.codes[kind], len(links.keys[kind]), codes)
        told[groups.of[np.append(crossing[kind], False)[links.codes[kind]]]] = True
    crossing["group"] = _crossing(groups.of, len(groups), codes) & ~told
    return Leaks(links, groups, words, codes, crossing)


def _crossing(keys: Codes, count: int, codes: Codes) -> NDArray[np.bool_]:
    """(count,) which keys have images of two splits."""
    rows = np.flatnonzero((keys >= 0) & (codes >= 0))
    low, high = np.full(count, np.iinfo(np.int32).max, np.int32), np.full(count, -1, np.int32)
    np.minimum.at(low, keys[rows], codes[rows])
    np.maximum.at(high, keys[rows], codes[rows])
    found: NDArray[np.bool_] = high > low
    return found
