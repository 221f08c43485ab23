"""That every item of a private source has exactly one fate, the same in lake, quarantine and audit."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import xxhash

from ingest.build import Rejected, ShardReport, build_shard
from ingest.card import Card
from ingest.deid.record import write_audit
from ingest.deid.rules import Rules
from ingest.plan import ShardJob
from ingest.scan import Source
from usdata.errors import CardError, LakeError


def check_place(card: Card, source: Path, lake: Path) -> None:
    """See that the lake does not lie among the patients' files, where the next run would take it for some of them.

    Raises:
        CardError: it does.
    """
    if lake.resolve().is_relative_to(source.resolve()):
        raise CardError(
            "The lake lies inside the folder of private files.",
            dataset=card.name,
            step="list",
            hint="Give it a place of its own:  --lake DIR",
        )


def whole_clips(jobs: Sequence[ShardJob], reports: list[ShardReport]) -> list[ShardReport]:
    """The reports, after shards were built anew without clips of which another shard's part was refused.

    A clip of more than a shard's thousand frames is judged once for each of its parts, each time by all of its frames.
    Should the verdicts differ (one process died), the clip stays out as a whole.
    """
    refused = {r.source_id for report in reports for r in report.rejected}
    out = []
    for job, report in zip(jobs, reports, strict=True):
        own = {r.source_id for r in report.rejected}
        half = {s.item.path for s in job.sources if s.clean and s.item.path in refused - own}
        if half:
            kept = tuple(source for source in job.sources if source.item.path not in half)
            text = "|".join([job.fingerprint, *sorted(half)])
            report = build_shard(replace(job, sources=kept, fingerprint=xxhash.xxh3_128_hexdigest(text.encode())))
            report = replace(report, rejected=(*report.rejected, *_again(half, reports)))
        out.append(report)
    return out


def _again(half: set[str], reports: Sequence[ShardReport]) -> list[Rejected]:
    found = {r.source_id: r for report in reports for r in report.rejected}
    return [found[key] for key in sorted(half)]


def accounted(
    card: Card,
    rules: Rules,
    sources: Sequence[Source],
    jobs: Sequence[ShardJob],
    reports: Sequence[ShardReport],
    rejected: list[Rejected],
) -> list[Rejected]:
    """The rejections, one for each item, after checking that all is accounted for and writing it into the audit.

    Raises:
        LakeError: an item has no fate, or two.
        ConfigError: the audit can't be written.
    """
    once: dict[str, Rejected] = {}
    for one in rejected:
        once.setdefault(one.source_id, one)
    reasons = {key: one.reason for key, one in once.items()}
    accepted: Counter[str] = Counter()
    for job, report in zip(jobs, reports, strict=True):
        out = {r.source_id for r in report.rejected}
        inside = {s.item.path: len(s.frames) for s in job.sources if s.item.path not in out}
        if sum(inside.values()) != report.samples:
            raise _unaccounted(
                card, f"{sum(inside.values())} images of {job.name} were expected, {report.samples} built"
            )
        accepted.update(inside)
    for source in sources:
        path = source.item.path
        if (path in accepted) == (path in reasons) or accepted.get(path, len(source.frames)) != len(source.frames):
            raise _unaccounted(card, "an item is neither in nor out, or both")
    facts = {key: (counts, shown) for report in reports for key, counts, shown in report.audit}
    write_audit(rules, accepted, reasons, facts, card.relax)
    return list(once.values())


def _unaccounted(card: Card, what: str) -> LakeError:
    return LakeError(
        f"Not everything is accounted for ({what}), so nothing was written.",
        dataset=card.name,
        step="commit",
        hint="This is a bug of usdata: please report it. The lake is as it was.",
    )
