"""What `usdata split` prints: tables and sentences for people, an object per line for machines."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from usdata.console import print_rows, say
from usdata.errors import UsdataError
from usdata.split import Checked, Split
from usdata.split_leaks import Leaks
from usdata.split_report import dataset_rows, distances, for_people, stratum_rows

_LEAKS = {
    "refuse": "leaks of words that are fixed",
    "drop": "leaks of words that are fixed, mended: images are left out",
    "keep": "leaks of words that are fixed, kept",
}
_FAR = 0.05  # share from which --balanced is worth a word
_LINES = 60  # of a table for people; --json has all


def tell_split(split: Split, as_json: bool) -> None:
    """A split that was made: data sets, organs and labels, leaks.

    Raises:
        UsdataError: its leaks were refused, so that nothing was written.
    """
    parts = (split.links, split.groups, split.assigned, split.settings)
    strata = list(stratum_rows(*parts))
    if as_json:
        rows: Iterable[Mapping[str, Any]] = (
            *({"kind": "settings", **row} for row in [split.settings.record()]),
            *({"kind": "dataset", **row} for row in dataset_rows(*parts)),
            *({"kind": "stratum", **row} for row in strata),
        )
        print_rows(rows, as_json=True)
        print_rows((leak.record() for leak in split.leaks), as_json=True)
        print_rows(
            [{"kind": "split", "counts": counts_of(split), "stale": split.stale, "written": bool(split.written)}], True
        )
        _say_stale(split.stale)
    else:
        _table(map(for_people, dataset_rows(*parts)), "data sets: images in groups, by split")
        _table(map(for_people, strata), "organs and labels: share of the images got (expected)")
        _table((leak.row() for leak in split.leaks), _LEAKS[split.on_leaks])
        _notes(split, strata)
    if split.refused:
        raise refuse(split)


def _notes(split: Split, strata: list[dict[str, Any]]) -> None:
    assigned = split.assigned
    images = len(split.links)
    mean, most = distances(strata)
    largest = int(np.bincount(split.groups.of).max())
    nearer = "; nearer, at a price:  --balanced" if most > _FAR and not split.settings.balanced else ""
    say(
        f"{images:,} images in {len(split.groups):,} groups, the largest of {largest:,}.",
        f"The shares of an organ's label are {mean:.3f} off on average over the images, {most:.3f} at most{nearer}",
    )
    if kept := int(assigned.earlier.sum()):
        say(f"{kept:,} images keep the word of an earlier split, {images - kept:,} are new.")
    if left := int(assigned.left_out.sum()):
        say(f"{left:,} images are left out (split 'left_out'): in any split they would leak.")
    if split.overruled:
        say(f"{split.overruled:,} images keep an earlier word that is not the published one.")
    _say_stale(split.stale)
    if split.written:
        say(f"{split.written} written.", "  Publish it:  usdata split --export FILE.csv")


def _say_stale(reason: str | None) -> None:
    if reason:
        say(reason, "  So only equal pixels and the copies noted so far tie images. First:  usdata dedup")


def counts_of(split: Split) -> dict[str, int]:
    """The split in numbers: groups, images of each part, leaks."""
    codes = np.bincount(split.assigned.codes, minlength=len(split.assigned.words))
    parts = {word: int(n) for word, n in zip(split.assigned.words, codes, strict=True)}
    return {"images": len(split.links), "groups": len(split.groups), **parts, "leaks": len(split.leaks)}


def refuse(split: Split) -> UsdataError:
    """The error of a split whose leaks are not to be: how many there are, and what can be done."""
    parted = int(split.assigned.parted.sum())
    return UsdataError(
        f"{parted:,} groups stand in two splits by words that are fixed: {_counted(split.leaks)}. Nothing was written.",
        step="split",
        hint="Leave their images out of all splits but the most precious, test before val:  --leaks drop\n"
        "  Keep the words as they are, leaks and all:  --leaks keep",
    )


def tell_check(checked: Checked, as_json: bool) -> None:
    """The leaks of an assignment.

    Raises:
        UsdataError: there are some.
    """
    leaks = checked.leaks
    if as_json:
        print_rows((leak.record() for leak in leaks), as_json=True)
        summary = {"leaks": leaks.counts, "images": checked.images_by_split(), "unassigned": checked.unassigned}
        print_rows([{"kind": "check", **summary, "unknown": checked.unknown, "stale": checked.stale}], as_json=True)
    elif leaks:
        _table((leak.row() for leak in leaks), "leaks")
    _say_stale(checked.stale)
    if checked.unassigned:
        say(f"{checked.unassigned:,} images of the lake are in no split.")
    if checked.unknown:
        say(f"{checked.unknown:,} lines name no sample of the lake.")
    found = ", ".join(f"{word} {n:,}" for word, n in checked.images_by_split().items())
    if leaks:
        raise UsdataError(f"{_counted(leaks)}: {leaks.images:,} of {checked.images:,} images.", step="check")
    say(f"No leak among {checked.images:,} images ({found}).")


def _counted(leaks: Leaks) -> str:
    counts = ", ".join(f"{kind} {number:,}" for kind, number in leaks.counts.items())
    return f"{len(leaks):,} leak{'s' if len(leaks) > 1 else ''} ({counts})"


def _table(rows: Iterable[Mapping[str, Any]], title: str) -> None:
    """The first lines of a table, and how many there are besides."""
    lines: Iterator[Mapping[str, Any]] = iter(rows)
    if first := list(islice(lines, _LINES)):
        print_rows(first, as_json=False, title=title)
        if more := sum(1 for _ in lines):
            say(f"... and {more:,} more: --json lists all.")
