"""The audit of a run: one line for every item, whatever became of it."""

from collections.abc import Iterable, Mapping
from typing import Any

from ingest.deid.audit import Audit, MaskSource, Versions
from ingest.deid.reasons import Reason, Refusal, Relaxed, State
from ingest.deid.rules import DEID_VERSION, TABLES_VERSION, Rules
from ingest.deid.walk import Action
from ingest.layout import Problem


def open_audit(rules: Rules) -> Audit:
    """The audit file of a run; the processes that share the run may each append to it.

    Raises:
        ConfigError: it can't be written, or others can read it.
    """
    from usdata import __version__

    assert rules.area is not None
    code = tuple(int(part) for part in __version__.split(".") if part.isdigit())
    versions = Versions(deid=DEID_VERSION, tables=TABLES_VERSION, code=code)
    return Audit(rules.area / "audit" / f"{rules.run}.jsonl", rules.run, rules.key_fingerprint, versions)


def write_outcome(
    audit: Audit,
    key: str,
    refusal: Refusal | None,
    counts: Mapping[str, int],
    row: Mapping[str, Any],
    samples: int,
    relaxed: Iterable[str] = (),
) -> None:
    """The line of an item that was cleaned, or refused on the way."""
    reason = Reason(refusal.reason) if refusal else None
    source = row.get("mask_source")
    audit.item(
        key,
        reason.state if reason else State.ACCEPTED,
        reason,
        counts={Action(name): number for name, number in counts.items()},
        mask_source=MaskSource(source) if source else None,
        samples=samples,
        relaxed=[Relaxed(word) for word in relaxed],
    )


def write_problems(rules: Rules, problems: Iterable[Problem]) -> None:
    """The lines of items that were refused before their pixels were read: links, damaged headers, other modalities."""
    with open_audit(rules) as audit:
        for problem in problems:
            reason = Reason.of(problem.reason, Reason.NOT_ON_CARD)
            audit.item(problem.path, reason.state, reason)
