"""What is said of a split: by data set whose patients are known, by organ and label how near its shares are."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from usdata.split_assign import Assigned, Settings
from usdata.split_groups import Codes, Groups, Links, numbered


def dataset_rows(links: Links, groups: Groups, assigned: Assigned, settings: Settings) -> Iterator[dict[str, Any]]:
    """For each data set: images, whose patients are known, groups, groups and images of each split.

    A group counts in each data set that it has images of.
    """
    number, names = numbered(links.table["dataset"])
    shown = _shown(assigned)
    whose = (links.codes["patient"] >= 0) & ~_stand_ins(links)
    for code, name in sorted(enumerate(names.to_pylist()), key=lambda pair: str(pair[1])):
        rows = np.flatnonzero(number == code)
        known = whose[rows]
        patients = len(np.unique(links.codes["patient"][rows][known]))
        row: dict[str, Any] = {"dataset": name, "images": len(rows), "patients": patients}
        row |= {"without": int((~known).sum()), "groups": len(np.unique(groups.of[rows]))}
        for word in shown:
            mine = rows[assigned.codes[rows] == assigned.words.index(word)]
            row[word] = {"groups": len(np.unique(groups.of[mine])), "images": len(mine)}
        official = int(assigned.official[rows].sum())
        yield row | {"official": official, "note": _note(links, rows, known, official, settings)}


def _stand_ins(links: Links) -> NDArray[np.bool_]:
    """(n,) private images whose `patient` stands for a study without a patient id."""
    told = links.table["patient_known"].cast(pa.string())
    return np.asarray(pc.fill_null(pc.equal(told, "false"), False))


def _note(links: Links, rows: NDArray[np.int64], known: NDArray[np.bool_], official: int, settings: Settings) -> str:
    tied = links.codes["duplicate"][rows] >= 0
    words = []
    if not known.any():
        words.append("no patient ids: grouped by clip and copies, else alone")
    elif not known.all():
        words.append("some images without a patient: grouped by clip and copies, else alone")
    if not known.all() and not tied.any():
        words.append("no near-duplicates noted")
    if official == len(rows):
        words.append("split as published")
    elif official:
        words.append("partly split as published")
    return "; ".join(words)


def stratum_rows(
    links: Links, groups: Groups, assigned: Assigned, settings: Settings, by: Sequence[str] = ("organ", "label")
) -> Iterator[dict[str, Any]]:
    """For each organ and label: images, groups, and each split's share of the images, expected and got.

    Expected are the shares asked for, and the published words where they are kept.
    """
    stratum, names = _strata(links, by)
    places = [assigned.words.index(word) for word in settings.words]
    shares = np.zeros(len(assigned.words))
    shares[places] = [share for _, share in settings.shares]
    for code, name in enumerate(names):
        rows = np.flatnonzero(stratum == code)
        official = assigned.official[rows]
        fixed = np.bincount(assigned.codes[rows][official], minlength=len(shares))
        expected = (fixed + shares * (~official).sum()) / len(rows)
        got = np.bincount(assigned.codes[rows], minlength=len(shares)) / len(rows)
        row: dict[str, Any] = dict(zip(by, name, strict=True))
        row |= {"images": len(rows), "groups": len(np.unique(groups.of[rows]))}
        for word in _shown(assigned):
            place = assigned.words.index(word)
            row[word] = {"expected": round(float(expected[place]), 6), "got": round(float(got[place]), 6)}
        yield row


def _strata(links: Links, by: Sequence[str]) -> tuple[Codes, list[tuple[str | None, ...]]]:
    """Number of each image's stratum, by name, and the names."""
    code, names = np.zeros(len(links), np.int64), [tuple[str | None, ...]()]
    for column in by:
        numbers, texts = numbered(links.table[column])
        listed: list[str | None] = [None, *texts.to_pylist()]
        pairs, code = np.unique(code * len(listed) + numbers + 1, return_inverse=True)
        names = [(*names[pair // len(listed)], listed[pair % len(listed)]) for pair in pairs.tolist()]
    order = sorted(range(len(names)), key=lambda i: tuple(word or "" for word in names[i]))
    rank = np.empty(len(names), np.int32)
    rank[order] = np.arange(len(names))
    return rank[code], [names[i] for i in order]


def _shown(assigned: Assigned) -> list[str]:
    """The words that have a column: all but `left_out`, which has one only if it has an image."""
    return [*assigned.words[:-1], *(assigned.words[-1:] if assigned.left_out.any() else ())]


def for_people(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its inner objects as short texts: `600 in 123` images in groups, `0.12 (0.10)` got and expected."""
    return {key: _text(value) if isinstance(value, dict) else value for key, value in row.items()}


def _text(cell: dict[str, Any]) -> str:
    if "got" in cell:
        return f"{cell['got']:.3f} ({cell['expected']:.3f})"
    return f"{cell['images']:,} in {cell['groups']:,}"


def distances(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """How far the shares of `stratum_rows` are from the expected ones: on average over the images, and at most."""
    far = [
        (row["images"], max(abs(cell["got"] - cell["expected"]) for cell in row.values() if isinstance(cell, dict)))
        for row in rows
    ]
    images = sum(number for number, _ in far)
    return sum(number * off for number, off in far) / max(1, images), max((off for _, off in far), default=0.0)
