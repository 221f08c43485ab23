"""Decide private files for review: in isolated processes, in the order of their keys, a few at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ingest.card import Card
from ingest.deid.ask import Cleaners
from ingest.deid.decision import Decision
from ingest.deid.device import Device
from ingest.deid.private import decide, list_private
from ingest.deid.reasons import Reason
from ingest.deid.review import PER_DEVICE, Review
from ingest.deid.rules import Rules
from ingest.layout import Item, Problem
from usdata.errors import ConfigError, nearest

LEAST_DIGITS = 6  # of a key that tells an item


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What `review_files` found. `seen`: items of the source, if not all of them were decided."""

    review: Review
    ignored: int
    seen: int | None


def known_reason(word: str | None) -> Reason | None:
    """The reason of that word.

    Raises:
        ConfigError: there is none; the message gives the nearest.
    """
    if word is None:
        return None
    try:
        return Reason(word)
    except ValueError:
        raise ConfigError(
            f"No reason of that name.{nearest(word, [reason.value for reason in Reason])}", step="review"
        ) from None


def review_files(
    card: Card,
    root: Path,
    rules: Rules,
    *,
    per_device: int = PER_DEVICE,
    reason: Reason | None = None,
    keys: Sequence[str] = (),
    first: int | None = None,
    show_paths: bool = False,
    workers: int = 1,
    quiet: bool = True,
) -> Reviewed:
    """Decide every file below `root` as an ingest would, keeping the pictures that the page shows.

    Args:
        keys: only these items, by their keyed ids or at least the first 6 digits.
        first: only so many items, in the order of their ids.
        show_paths: the page names the files.
        workers: isolated processes.

    Raises:
        ConfigError: no item has one of the keys.
        CardError, DataError: as `ingest.deid.private.list_private`.
    """
    listing = list_private(card, root, rules)
    entries: list[Item | Problem] = sorted((*listing.items, *listing.problems), key=lambda one: one.path)
    chosen = _chosen(entries, keys)[:first]
    review = Review(card.name, per_device=per_device, reason=reason, all_shown=bool(keys))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bars:
        bar = bars.add_task(f"{card.name}: looking at files", total=len(chosen))
        for decision, path in _decisions(card, root, rules, chosen, workers):
            review.add(decision, path if show_paths else None)
            bars.advance(bar)
    return Reviewed(review, listing.ignored, None if len(chosen) == len(entries) else len(entries))


def _chosen(entries: list[Item | Problem], keys: Sequence[str]) -> list[Item | Problem]:
    if not keys:
        return entries
    wanted = [key.strip().lower() for words in keys for key in words.split(",")]
    for key in wanted:
        if len(key) < LEAST_DIGITS or not any(one.path.startswith(key) for one in entries):
            raise ConfigError(
                "One of the keys fits no item.",
                step="review",
                hint=f"Keys are 32 digits 0-9a-f; the first {LEAST_DIGITS} are enough. They are on the review page, "
                "and in the column source_id of the lake's tables samples and quarantine.",
            )
    return [one for one in entries if one.path.startswith(tuple(wanted))]


def _decisions(
    card: Card, root: Path, rules: Rules, entries: Sequence[Item | Problem], workers: int
) -> Iterator[tuple[Decision, str | None]]:
    """The decision and the relative path of each entry, in their order; few are held at a time: they have pictures."""
    identity = rules.identity()
    with Cleaners(card, rules, "bilinear-aa", workers) as cleaners, ThreadPoolExecutor(workers) as pool:

        def one(entry: Item | Problem) -> tuple[Decision, str | None]:
            if isinstance(entry, Problem):
                return _problem(entry), None
            return decide(root / entry.place, entry.place, cleaners, identity), entry.place

        waiting = iter(entries)
        while some := list(islice(waiting, 4 * workers)):
            yield from pool.map(one, some)


def _problem(problem: Problem) -> Decision:
    """A file that is not even opened: a link, a socket, a folder that can't be entered."""
    reason = Reason.of(problem.reason)
    return Decision(problem.path, reason.state, reason, Device(), None, None, None, None, None, None, None, {})
