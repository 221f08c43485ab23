"""Bring one data set into a lake: list, scan, plan, build every shard, commit.

`ingest` does it on this machine; Prefect's flow calls the same `prepare`, `build_shard` and `finish` as its tasks.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest import generated
from ingest.build import Rejected, ShardReport, build_shard
from ingest.card import Card, card_digest, get_card, registered
from ingest.commit import clear_stale, commit, committed_shards, find_finished, take_staging
from ingest.deid.account import accounted, check_place, whole_clips
from ingest.deid.private import list_private
from ingest.deid.rules import DEID_VERSION, Rules
from ingest.frames import is_clip
from ingest.layout import Listing, Problem, list_items, walk
from ingest.plan import ShardJob, plan_shards
from ingest.readers import sniff
from ingest.scan import Source, scan
from ingest.workers import WorkerDied, process_pool
from usdata.errors import CardError, LakeError
from usdata.files import explain_os_errors, locked
from usdata.lake import Lake

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, slots=True)
class Counts:
    """Where every file of a source went. A video is one item and many samples."""

    files: int
    ignored: int
    items: int
    samples: int
    quarantined: int
    copies: int  # items that are byte-identical to an earlier one


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built, and what was already found wrong."""

    card: Card
    lake: Lake
    listing: Listing
    sources: list[Source]
    jobs: list[ShardJob]
    finished: dict[str, ShardReport]  # jobs whose shard is already right, by name
    problems: list[Problem]
    staging: Path
    rules: Rules | None = None  # of data that goes through `ingest.deid`


@dataclass(frozen=True, slots=True)
class IngestReport:
    """The outcome of an ingest, for people and for tests."""

    dataset: str
    counts: Counts
    reasons: dict[str, int]  # quarantine reason -> how many
    first: list[Rejected]  # a few rejections to show
    notes: list[str]
    built: int  # shards
    reused: int
    changed: bool
    organs: dict[str, int] = field(default_factory=dict)


def _silent(stage: str, done: int, total: int) -> None:
    return None


def prepare(
    card: Card,
    source: Path | None,
    lake: Lake,
    *,
    workers: int = 1,
    count: int | None = None,
    rules: Rules | None = None,
    progress: Progress = _silent,
) -> Plan:
    """List and scan the source, and divide it into shard jobs; writes nothing but the staging folder.

    Args:
        source: folder of files; None for a generated data set.
        workers: threads for scanning, and what the jobs may use.
        count: number of images of a generated data set.
        rules: of private data, from `ingest.deid.private.rules_of`.

    Raises:
        CardError: the card does not fit the files, or DICOM was found that it does not expect; private data without
            rules, or under another key than the data set in the lake.
        UsdataError: the folder is missing or empty.
    """
    if card.deid_profile == "private" and rules is not None and source is not None:
        check_place(card, source, lake.root)
    root, listing, sources = _list(card, source, count, rules)
    rules = rules or (Rules.published(card) if card.dicom == "published" or card.scan_area == "find" else None)
    _refuse_another_key(card, lake, rules)
    problems: list[Problem] = []
    if not card.generator:
        total = len(listing.items)
        counter = _counter(progress, "scan", total)
        sources, problems = scan(card, root, listing.items, workers, counter, rules, lake.info["interpolation"])
    with explain_os_errors(lake.root, dataset=card.name, step="plan"):
        staging = take_staging(lake, card.name)
        jobs = plan_shards(card, root.absolute(), staging, sources, lake.info["interpolation"], workers, rules)
        clear_stale(staging, jobs)
        known = committed_shards(lake, card.name)
        finished = {job.name: report for job in jobs if (report := find_finished(lake, job, known))}
    return Plan(card, lake, listing, sources, jobs, finished, [*listing.problems, *problems], staging, rules)


def _list(
    card: Card, source: Path | None, count: int | None, rules: Rules | None
) -> tuple[Path, Listing, list[Source]]:
    """The source's root and its items, after everything that must be refused; of a generated set also its sources."""
    needed = _needed(card, rules) if card.deid_profile == "private" else None
    _refuse_without_layout(card)
    _refuse_borrowed_name(card)
    if needed is not None:
        root = _folder(card, source)
        return root, list_private(card, root, needed), []
    if card.generator:
        return Path(), *generated.sources(card, count)
    root = _folder(card, source)
    listing = list_items(card, root)
    _refuse_dicom_among(card, root, listing.problems)
    return root, listing, []


def _needed(card: Card, rules: Rules | None) -> Rules:
    if rules is None:
        raise CardError(
            "The card says `deid_profile: private`: its patients' ids and dates need a key.",
            dataset=card.name,
            step="list",
            hint="usdata deid-key new FILE      then give it:  --key-file FILE      "
            "If the files were published by their owner, write `deid_profile: public` into the card.",
        )
    return rules


def _refuse_another_key(card: Card, lake: Lake, rules: Rules | None) -> None:
    """A new key would replace every pseudonym: two lakes' patients could no longer be told to be the same."""
    manifest = lake.read_manifest(card.name)
    before = (manifest or {}).get("deid", {}).get("key_fingerprint")
    if rules is not None and before not in (None, rules.key_fingerprint):
        raise CardError(
            f"The data set was ingested with another key ({before}; this one is {rules.key_fingerprint}): all its "
            "pseudonyms, ids and dates would change.",
            dataset=card.name,
            step="list",
            hint="Give the first key, or another --name.",
        )


def _refuse_without_layout(card: Card) -> None:
    if card.layout is None and not card.generator and card.deid_profile == "public":
        raise CardError(
            f"The files' layout is not known: {card.needs}",
            dataset=card.name,
            step="list",
            hint="Copy the card, add a layout, and run:  usdata ingest --card my.yaml --from DIR",
        )


def _refuse_borrowed_name(card: Card) -> None:
    """A user's card must not replace a registered data set by bearing its name."""
    if card.name not in registered():
        return
    own = get_card(card.name)
    if card_digest(card) != card_digest(own) or card.terms != own.terms:  # nor switch its terms off
        raise CardError(
            f"{card.name!r} is the name of a registered data set, but this is another card.",
            dataset=card.name,
            step="list",
            hint="Give your card a `name` of its own.",
        )


def _folder(card: Card, source: Path | None) -> Path:
    if source is None:
        raise CardError(
            f"Where are the files of {card.name!r}?",
            dataset=card.name,
            step="list",
            hint=f"usdata ingest {card.name} --from PATH      What to download: usdata datasets {card.name}",
        )
    return source


def _refuse_dicom_among(card: Card, root: Path, problems: Iterable[Problem]) -> None:
    """Files that no pattern fits might be DICOM, whose very paths can name a patient: look before storing a path."""
    if card.dicom == "published":
        return
    odd = any(problem.reason == "bad_path" for problem in problems)  # shown escaped: look at the real names
    names = [name for name, _ in walk(root)] if odd else [problem.path for problem in problems]
    for name in names:
        path = root / name
        if path.is_file() and sniff.is_dicom(path):
            raise sniff.refuse_dicom(card.name)


def _counter(progress: Progress, stage: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(step: int) -> None:
        nonlocal done
        done += step
        progress(stage, done, total)

    return advance


def open_jobs(plan: Plan) -> list[ShardJob]:
    """The jobs that are not finished yet."""
    return [job for job in plan.jobs if job.name not in plan.finished]


def build_all(jobs: list[ShardJob], workers: int) -> Generator[ShardReport, None, None]:
    """Build shards in `workers` processes (one: in this process), the largest first; reports come as they are done.

    Closing it before its end, or an error, ends the processes at once.

    Raises:
        LakeError: the disk is full, failed, or can't be written.
        WorkerDied: a worker process died.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from map(build_shard, jobs)
        return
    largest_first = sorted(jobs, key=lambda job: -sum(len(source.frames) for source in job.sources))
    with process_pool(min(workers, len(jobs))) as pool:
        try:
            yield from (done.result() for done in as_completed([pool.submit(build_shard, j) for j in largest_first]))
        except BrokenProcessPool as error:
            raise WorkerDied(jobs[0].card.name) from error


def finish(plan: Plan, built: Iterable[ShardReport]) -> IngestReport:
    """Commit the shards of a plan and say what happened to every file."""
    fresh = {report.name: report for report in built}
    reports = [plan.finished.get(job.name) or fresh[job.name] for job in plan.jobs]
    reports = whole_clips(plan.jobs, reports)
    rejected = [Rejected(p.path, None, p.stage, p.reason, p.detail) for p in plan.problems]
    rejected += [r for report in reports for r in report.rejected]
    if plan.rules is not None and plan.rules.private:
        rejected = accounted(plan.card, plan.rules, plan.sources, plan.jobs, reports, rejected)
    counts = _counts(plan, reports, rejected)
    record = {
        "card_digest": card_digest(plan.card),
        "interpolation": plan.lake.info["interpolation"],
        "counts": {name: getattr(counts, name) for name in Counts.__slots__},
    }
    if plan.rules is not None:
        own = plan.card.layout is not None  # for whoever must ingest it again
        record["deid"] = {"version": DEID_VERSION, "key_fingerprint": plan.rules.key_fingerprint, "own_card": own}
    changed = commit(plan.lake, plan.card.name, plan.staging, reports, rejected, record)
    organs: Counter[str] = Counter()
    for job, report in zip(plan.jobs, reports, strict=True):
        organs[job.sources[0].item.organ] += report.samples
    return IngestReport(
        dataset=plan.card.name,
        counts=counts,
        reasons=dict(Counter(r.reason for r in rejected).most_common()),
        first=sorted(rejected, key=lambda r: r.source_id)[:5],
        notes=[*plan.listing.notes, *_compare(plan.card, plan.listing, counts)],
        built=len(fresh),
        reused=len(plan.finished),
        changed=changed,
        organs=dict(organs),
    )


def _counts(plan: Plan, reports: list[ShardReport], rejected: list[Rejected]) -> Counts:
    items = len(plan.listing.items)
    distinct = len({source.xxh for source in plan.sources})
    return Counts(
        files=plan.listing.files,
        ignored=plan.listing.ignored,
        items=items,
        samples=sum(report.samples for report in reports),
        quarantined=len(rejected),
        copies=len(plan.sources) - distinct,
    )


def _compare(card: Card, listing: Listing, counts: Counts) -> list[str]:
    """Notes where the source differs from the published counts by more than 2 %."""
    notes = []
    kinds: Counter[str] = Counter("video" if is_clip(card, item) else "image" for item in listing.items)
    for kind, expected in (("image", card.expect.images), ("video", card.expect.videos)):
        if expected and abs(kinds[kind] - expected) > 0.02 * expected:
            notes.append(f"{kinds[kind]} {kind}s found; {expected} were published")
    labels = Counter(str(item.fields.get("label")) for item in listing.items)
    from_masks = card.masks is not None and card.masks.label is not None  # known only after every mask was read
    for label, expected in () if from_masks else card.expect.label.items():
        if abs(labels[label] - expected) > 0.02 * expected:
            notes.append(f"{labels[label]} items labelled {label!r} found; {expected} were published")
    if counts.copies:
        notes.append(f"{counts.copies} files are byte-identical copies of another one; kept, and equal in source_xxh")
    return notes


@contextmanager
def only_ingest(lake: Lake, dataset: str) -> Iterator[None]:
    """Hold the lock that keeps two ingests of one data set apart; it goes with the process, however that ends.

    Raises:
        LakeError: another process is ingesting the data set; the message says which. Or the lake is remote.
    """
    lake.check_writable()
    path = lake.root / ".staging" / f"{dataset}.lock"
    note = f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"  # no host: its name can be a hospital's
    with ExitStack() as stack:
        with explain_os_errors(lake.root, dataset=dataset, step="lock"):
            try:
                stack.enter_context(locked(path, wait=False, note=note))
            except BlockingIOError as error:
                raise LakeError(
                    f"Another process is ingesting this data set into this lake ({path.read_text() or 'just begun'}).",
                    dataset=dataset,
                    step="lock",
                    hint="Wait for it to end, then run the command again.",
                ) from error
        yield


def ingest(
    card: Card,
    source: Path | None,
    lake: Lake,
    *,
    workers: int = 1,
    count: int | None = None,
    rules: Rules | None = None,
    progress: Progress = _silent,
) -> IngestReport:
    """Bring a data set into the lake, or bring it up to date; what is already right is not built again.

    Args:
        card: what the files are.
        source: the folder that holds them; None for a generated data set.
        workers: processes that build shards; the result is the same for any number.
        count: number of images of a generated data set.
        rules: of private data, from `ingest.deid.private.rules_of`.
        progress: called with (stage, done, total).

    Raises:
        CardError, LakeError, DataError: see `prepare`, `build_all`, `finish`.
    """
    with only_ingest(lake, card.name):
        plan = prepare(card, source, lake, workers=workers, count=count, rules=rules, progress=progress)
        jobs = open_jobs(plan)
        built = []
        with closing(build_all(jobs, workers)) as reports:
            for report in reports:
                built.append(report)
                progress("build", len(built), len(jobs))
        return finish(plan, built)


def dry_run_record(
    card: Card, source: Path | None, count: int | None = None, rules: Rules | None = None
) -> dict[str, Any]:
    """What an ingest would read: counts by role, reasons and notes; nothing is opened but tables, nothing written.

    Raises:
        CardError, UsdataError: as `prepare`.
    """
    _, listing, _ = _list(card, source, count, rules)
    return {
        "dataset": card.name,
        "files": listing.files,
        "items": len(listing.items),
        "masks": sum(len(item.masks) for item in listing.items),
        "ignored": listing.ignored,
        "organs": dict(Counter(item.organ for item in listing.items)),
        "labels": dict(Counter(str(item.fields.get("label")) for item in listing.items)),
        "reasons": dict(Counter(problem.reason for problem in listing.problems)),
        "notes": list(listing.notes),
    }


def as_record(report: IngestReport) -> dict[str, Any]:
    """A report as plain numbers and words, for `--json` and for run logs."""
    counts = {name: getattr(report.counts, name) for name in Counts.__slots__}
    return {
        "dataset": report.dataset,
        **counts,
        "organs": report.organs,
        "reasons": report.reasons,
        "notes": report.notes,
        "shards_built": report.built,
        "shards_reused": report.reused,
        "changed": report.changed,
    }
