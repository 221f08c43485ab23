"""The audit of a run: one line for every item, whatever became of it."""

from collections.abc import Iterable, Mapping

from ingest.deid.audit import Audit, MaskSource, Versions
from ingest.deid.reasons import Reason, Relaxed, State
from ingest.deid.rules import DEID_VERSION, TABLES_VERSION, Rules
from ingest.deid.walk import Action

# Counts of header fields by what became of them; what showed the scan area.
Facts = tuple[Mapping[str, int], str | None]


def write_audit(
    rules: Rules,
    accepted: Mapping[str, int],
    refused: Mapping[str, str],
    facts: Mapping[str, Facts],
    relaxed: Iterable[str] = (),
) -> None:
    """Write the audit file of a run, in the order of the items' keys.

    Args:
        accepted: keyed id of each item that got in -> how many images.
        refused: keyed id of every other one -> its reason.
        facts: of accepted items; those of shards that an earlier run has built have none.

    Raises:
        ConfigError: it can't be written, or others can read it.
    """
    rules_out = [Relaxed(word) for word in relaxed]
    with _open(rules) as audit:
        for key in sorted({**accepted, **refused}):
            if key in refused:
                reason = Reason.of(refused[key], Reason.NOT_ON_CARD)
                audit.item(key, reason.state, reason, relaxed=rules_out)
                continue
            counts, source = facts.get(key, ({}, None))
            audit.item(
                key,
                State.ACCEPTED,
                counts={Action(name): number for name, number in counts.items()},
                mask_source=MaskSource(source) if source else None,
                samples=accepted[key],
                relaxed=rules_out,
            )


def _open(rules: Rules) -> Audit:
    from usdata import __version__

    assert rules.area is not None
    code = tuple(int(part) for part in __version__.split(".") if part.isdigit())
    versions = Versions(deid=DEID_VERSION, tables=TABLES_VERSION, code=code)
    return Audit(rules.area / "audit" / f"{rules.run}.jsonl", rules.run, rules.key_fingerprint, versions)
