"""Look at every source once before any pixel is decoded: hash it, count its frames, refuse private formats.

The hashes make reruns cheap (what has not changed is not built again), name the samples, and find identical copies.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from ingest.card import Card
from ingest.layout import Item, Problem
from ingest.readers import sniff, video
from usdata.errors import DataError

_PIECE = 1 << 20


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


def _hash_file(path: Path) -> "xxhash.xxh3_128":
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest


def scan_item(card: Card, root: Path, item: Item) -> Source | Problem:
    """Hash one item and choose its frames; a Problem if it can't be opened.

    Raises:
        CardError: the file or one of its masks is DICOM.
    """
    path = root / item.path
    try:
        if any(sniff.is_dicom(root / part) for part in (item.path, *item.masks)):
            raise sniff.refuse_dicom(card.name)
        state = _hash_file(path)
        if path.stat().st_size == 0:
            raise DataError("empty_file", "The file has no bytes.")
        masks = tuple(_hash_file(root / mask).hexdigest() for mask in item.masks)
        n_frames, fps = None, None
        frames: tuple[int, ...] = (0,)
        if item.kind == "video":
            info = video.probe(path)
            n_frames, fps = info.n_frames, info.fps
            frames = tuple(video.choose_frames(n_frames, card.frames.stride, card.frames.max_per_clip))
    except DataError as error:
        return Problem(item.path, "scan", error.reason, error.message)
    except OSError as error:
        return Problem(item.path, "scan", "unreadable", f"{error.strerror or error}.")
    ids = tuple(sample_id(card.name, state, frame) for frame in frames)
    return Source(item, state.hexdigest(), masks, frames, ids, n_frames, fps)


def scan(
    card: Card, root: Path, items: Iterable[Item], workers: int, progress: Callable[[int], None]
) -> tuple[list[Source], list[Problem]]:
    """Scan all items with `workers` threads (hashing and reading leave Python's lock), keeping their order."""
    sources: list[Source] = []
    problems: list[Problem] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for found in pool.map(lambda item: scan_item(card, root, item), items):
            if isinstance(found, Source):
                sources.append(found)
            else:
                problems.append(found)
            progress(1)
    return tell_copies_apart(card, root, sources), problems


def tell_copies_apart(card: Card, root: Path, sources: list[Source]) -> list[Source]:
    """Give byte-identical copies ids of their own; see `sample_id`."""
    seen: dict[str, int] = {}
    out = []
    for source in sources:
        copy = seen.get(source.xxh, 0)
        seen[source.xxh] = copy + 1
        if copy:
            state = _hash_file(root / source.item.path)
            ids = tuple(sample_id(card.name, state, frame, copy) for frame in source.frames)
            source = replace(source, sample_ids=ids)
        out.append(source)
    return out
