"""Look at every source once before any pixel is decoded: hash it, count its frames, refuse private formats.

The hashes make reruns cheap (what has not changed is not built again), name the samples, and find identical copies.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import xxhash

from ingest.card import Card
from ingest.deid.ask import Cleaners
from ingest.deid.reasons import Refusal
from ingest.frames import choose, content, file_state, look, masks_without_frame, with_look
from ingest.layout import Item, Problem
from ingest.readers import sniff, video
from usdata.errors import DataError
from usdata.schema import organ_group_of

if TYPE_CHECKING:
    from ingest.deid.identity import Identity
    from ingest.deid.rules import Rules

_ONLY_PRIVATE = ("patient", "patient_known", "study", "clip", "study_date")  # of published files their paths say it


@dataclass(frozen=True, slots=True)
class Source:
    """An item together with what its bytes say; everything that `build_shard` needs to make its samples.

    `frames[i]` becomes the sample `sample_ids[i]`. `recipe` describes a generated image, which has no file.
    """

    item: Item
    xxh: str
    mask_xxh: tuple[str, ...]
    frames: tuple[int, ...]
    sample_ids: tuple[str, ...]
    n_frames: int | None = None
    fps: float | None = None
    recipe: Any = None
    clean: bool = False  # goes through `ingest.deid`
    problems: tuple[Problem, ...] = ()  # masks that belong to none of its frames


def sample_id(dataset: str, state: "xxhash.xxh3_128", frame: int, copy: int = 0) -> str:
    """`<dataset>-<16 hex>`: xxh3_128 of the source's bytes followed by the frame index (8 bytes, little endian).

    The second and later byte-identical copies of a file within a data set, in the order of their paths, add their copy
    number: two files stay two samples, and a file that has no twin keeps the plain id.
    """
    digest = state.copy()
    digest.update(frame.to_bytes(8, "little"))
    if copy:
        digest.update(copy.to_bytes(8, "little"))
    return f"{dataset}-{digest.hexdigest()[:16]}"


def scan_item(card: Card, root: Path, item: Item, cleaners: "Cleaners | None" = None) -> Source | Problem:
    """Hash one item and choose its frames; a Problem if it can't be opened.

    Raises:
        CardError: the file or one of its masks is DICOM, and the card does not expect it.
    """
    path = root / item.place
    try:
        dicom = card.dicom == "published" and sniff.is_dicom(path)
        if any(sniff.is_dicom(root / part) for part in (item.place, *item.masks)[dicom:]):
            raise sniff.refuse_dicom(card.name)
        if cleaners is not None and card.cleans(dicom):
            return _examined(card, item, path, cleaners)
        if path.stat().st_size == 0:
            raise DataError("empty_file", "The file has no bytes.")
        state = content(card, root, item)
        masks = tuple(file_state(card, root / mask).hexdigest() for mask in item.masks)
        seen = look(card, root, item)
        lost = masks_without_frame(card, item, seen.n_frames)
        frames = choose(card, root, item, seen.n_frames)
    except DataError as error:
        return Problem(item.path, "scan", error.reason, error.message)
    except OSError as error:
        return Problem(item.path, "scan", "unreadable", f"{error.strerror or error}.")
    ids = tuple(sample_id(card.name, state, frame) for frame in frames)
    item = with_look(card, item, seen)
    return Source(item, state.hexdigest(), masks, frames, ids, seen.n_frames, seen.fps, problems=lost)


def _examined(card: Card, item: Item, path: Path, cleaners: "Cleaners") -> Source:
    """A published file of which only the scan area is kept: its header is read as that of a private one."""
    state = file_state(card, path)
    found = cleaners.examine(path, item.path)
    frames = tuple(video.choose_frames(found.frames, card.frames.stride, card.frames.max_per_clip))
    row = {name: value for name, value in found.row.items() if name not in _ONLY_PRIVATE}
    item = with_header(card, item, row, found.clip)
    if found.clip and not item.fields.get("clip"):
        item.fields["clip"] = f"{card.name}-{PurePosixPath(item.path).with_suffix('')}"
    ids = tuple(sample_id(card.name, state, frame) for frame in frames)
    number = found.frames if found.clip else None
    return Source(item, state.hexdigest(), (), frames, ids, number, found.fps, clean=True)


def scan_private(card: Card, root: Path, item: Item, identity: "Identity", cleaners: "Cleaners") -> Source | Problem:
    """As `scan_item` for a private file: hashes are keyed, ids are pseudonyms, and no text of the file comes back."""
    try:
        content = identity.content(root / item.place)
        found = cleaners.examine(root / item.place, item.place)
    except Refusal as refusal:
        tell_internal(refusal)
        return Problem(item.path, refusal.step or "read", refusal.reason, None)
    frames = tuple(video.choose_frames(found.frames, card.frames.stride, card.frames.max_per_clip))
    item = with_header(card, item, found.row, found.clip)
    if not found.clip:
        item.fields.pop("clip", None)
    elif "clip" not in item.fields:
        item.fields["clip"] = identity.clip(item.path)
    item.fields.setdefault("patient_known", False)
    if found.row.get("patient") != item.fields.get("patient"):
        item.fields.pop("study_date", None)  # it was shifted by the days of the header's patient, not of the card's
    ids = tuple(content.sample_id(card.name, frame) for frame in frames)
    return Source(item, content.hex, (), frames, ids, found.frames if found.clip else None, found.fps, clean=True)


def with_header(card: Card, item: Item, row: dict[str, Any], clip: bool) -> Item:
    """An item with what its header says, below what its path and tables say, and above the card's defaults.

    The card's organ is meant for every file, whatever a scanner's preset was called, and goes over the header's.
    """
    defaults = card.constants()
    said = {name: value for name, value in item.fields.items() if defaults.get(name) != value}
    if said.get("organ") == "unknown":
        del said["organ"]
    if card.defaults.organ:
        row = {name: value for name, value in row.items() if name != "organ"}
    fields = {name: value for name, value in defaults.items() if value is not None} | row | said
    fields["organ"] = fields.get("organ", "unknown")
    fields["organ_group"] = organ_group_of(fields["organ"])
    return replace(item, kind="video" if clip else "image", organ=fields["organ"], fields=fields)


def tell_internal(refusal: Refusal) -> None:
    """Log where in our own code an item failed that met a bug: the log is the only place that says it."""
    if refusal.where:
        logging.getLogger(__name__).error("An item could not be read: %s. Please report this line.", refusal.where)


def scan(
    card: Card,
    root: Path,
    items: Iterable[Item],
    workers: int,
    progress: Callable[[int], None],
    rules: "Rules | None" = None,
    interpolation: str = "bilinear-aa",
) -> tuple[list[Source], list[Problem]]:
    """Scan all items with `workers` threads (hashing and reading leave Python's lock), keeping their order."""
    sources: list[Source] = []
    problems: list[Problem] = []
    workers = max(1, workers)
    identity = rules.identity() if rules and rules.private else None
    with (
        Cleaners(card, rules, interpolation, workers) if rules else nullcontext() as cleaners,
        ThreadPoolExecutor(workers) as pool,
    ):

        def one(item: Item) -> Source | Problem:
            if identity is None:
                return scan_item(card, root, item, cleaners)
            assert cleaners is not None
            return scan_private(card, root, item, identity, cleaners)

        for found in pool.map(one, items):
            if isinstance(found, Source):
                sources.append(found)
                problems += found.problems
            else:
                problems.append(found)
            progress(1)
    return tell_copies_apart(card, root, sources, identity), problems


def tell_copies_apart(
    card: Card, root: Path, sources: list[Source], identity: "Identity | None" = None
) -> list[Source]:
    """Give byte-identical copies ids of their own; see `sample_id`."""
    seen: dict[str, int] = {}
    out = []
    for source in sources:
        copy = seen.get(source.xxh, 0)
        seen[source.xxh] = copy + 1
        if copy and identity is not None:
            ids = tuple(identity.sample_id(source.xxh, card.name, frame, copy) for frame in source.frames)
            source = replace(source, sample_ids=ids)
        elif copy:
            state = content(card, root, source.item)
            ids = tuple(sample_id(card.name, state, frame, copy) for frame in source.frames)
            source = replace(source, sample_ids=ids)
        out.append(source)
    return out
