"""Divide a data set's sources into shard jobs: one organ each, at most 1,000 samples, the same for any worker count."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from ingest.card import Card, card_digest
from ingest.deid.rules import Rules
from ingest.readers.shapes import shapes_digest
from ingest.scan import Source
from usdata.shards import MAX_SAMPLES

PIPELINE = 1  # raise it when the same sources would give other bytes: then reruns build anew


@dataclass(frozen=True, slots=True)
class ShardJob:
    """All that one worker needs to build one shard, and the hash of it."""

    card: Card
    root: Path
    staging: Path
    name: str
    sources: tuple[Source, ...]
    interpolation: str
    threads: int
    fingerprint: str
    rules: Rules | None = None  # of data that goes through `ingest.deid`


def plan_shards(
    card: Card,
    root: Path,
    staging: Path,
    sources: list[Source],
    interpolation: str,
    workers: int,
    rules: Rules | None = None,
) -> list[ShardJob]:
    """The shard jobs of a data set, by organ and path (of private data, by the keyed id that stands for it)."""
    digest = rules.digest(card) if rules else card_digest(card)
    by_organ: dict[str, list[Source]] = {}
    for source in sources:
        by_organ.setdefault(source.item.organ, []).append(source)
    parts = [
        (f"{card.name}-{organ}-{number:06d}", tuple(part))
        for organ in sorted(by_organ)
        for number, part in enumerate(_fill(by_organ[organ]))
    ]
    return [
        ShardJob(card, root, staging, name, part, interpolation, threads, fingerprint, rules)
        for (name, part), threads in zip(parts, _threads(len(parts), workers), strict=True)
        for fingerprint in (_fingerprint(digest, interpolation, part),)
    ]


def _threads(jobs: int, workers: int) -> list[int]:
    """Threads of each job: the jobs of the last round, if they are fewer than the workers, share their decoding."""
    left = jobs % max(1, workers)
    return [1] * (jobs - left) + [workers // left] * left if left else [1] * jobs


def _fill(sources: list[Source]) -> Iterator[list[Source]]:
    """Parts of at most MAX_SAMPLES frames; a clip that is longer than the room left is divided."""
    part: list[Source] = []
    room = MAX_SAMPLES
    for source in sources:
        start = 0
        if source.clean and room < len(source.frames) <= MAX_SAMPLES:
            yield part  # a clip is cleaned as a whole: keep it in one shard where that is possible
            part, room = [], MAX_SAMPLES
        while start < len(source.frames):
            stop = min(start + room, len(source.frames))
            ids = source.sample_ids[start:stop]
            part.append(replace(source, frames=source.frames[start:stop], sample_ids=ids))
            room -= stop - start
            start = stop
            if not room:
                yield part
                part, room = [], MAX_SAMPLES
    if part:
        yield part


def _fingerprint(digest: str, interpolation: str, sources: tuple[Source, ...]) -> str:
    """xxh3_128 of everything that the shard's bytes depend on."""
    inputs = [
        (i.path, i.kind, sorted(i.fields.items()), i.masks, s.xxh, s.mask_xxh, s.sample_ids, repr(s.recipe))
        + ((shapes_digest(i.shapes),) if i.shapes else ())
        for s in sources
        for i in (s.item,)
    ]
    return xxhash.xxh3_128(json.dumps([PIPELINE, digest, interpolation, inputs], default=str).encode()).hexdigest()
