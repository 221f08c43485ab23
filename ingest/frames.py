"""The frames of an item, of whatever kind it is: how many, which become images, and their pixels.

An item is a picture, a video, a volume (`ingest.readers.volume`) or an entry of a container (`ingest.special`). A
volume or entry of a single frame is a still image: its row has no frame number and no clip.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import xxhash
from numpy.typing import NDArray

from ingest.card import Card
from ingest.frame_masks import FrameMasks, annotated_frames, mask_files
from ingest.layout import Item, Problem
from ingest.readers import image, video, volume
from ingest.readers.shapes import frames_beyond
from ingest.special import reader
from usdata.errors import DataError

_PIECE = 1 << 20
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Look:
    """What a file says of itself. `n_frames`, `fps` are None of stills."""

    n_frames: int | None = None
    fps: float | None = None
    spacing: tuple[float | None, float | None] = (None, None)  # millimetres per pixel along x and y


def look(card: Card, root: Path, item: Item) -> Look:
    """Open an item without keeping pixels: videos are decoded and packed arrays unpacked once, to see them whole.

    Raises:
        DataError: see `video.probe`, `volume.probe`.
    """
    path = root / item.place
    if item.kind == "video":
        seen = video.probe(path)
        return Look(seen.n_frames, seen.fps)
    if item.kind == "volume":
        assert card.arrays is not None  # the card's own check
        info = volume.probe(path, card.arrays)
        return Look(info.n_frames if info.n_frames > 1 else None, None, info.spacing)
    if item.entry is not None:
        return Look(item.entry.frames if item.entry.frames > 1 else None)
    return Look()


def with_look(card: Card, item: Item, seen: Look) -> Item:
    """An item with what its file says, below what the card, its path and its tables say."""
    if item.kind not in ("volume", "container"):
        return item
    fields = dict(item.fields)
    for name, value in zip(("pixel_mm_x", "pixel_mm_y"), seen.spacing, strict=True):
        if value is not None:
            fields.setdefault(name, value)
    if seen.n_frames is not None and not fields.get("clip"):
        place = PurePosixPath(item.place)
        stem = place.name.removesuffix(".gz").rpartition(".")[0] or place.name  # of scan.nii.gz: scan
        entry = "" if item.entry is None else f"#{item.entry.key}"
        fields["clip"] = f"{card.name}-{place.with_name(stem)}{entry}"
    return replace(item, fields=fields)


def choose(card: Card, root: Path, item: Item, n_frames: int | None) -> tuple[int, ...]:
    """The frames that become images, as `Card.frames` says.

    Raises:
        DataError: only annotated frames are wanted and there is none (no_annotated_frame); the mask that would tell
            them can't be read.
    """
    rule = card.frames
    count = 1 if n_frames is None else n_frames
    chosen = video.choose_frames(count, rule.stride, rule.max_per_clip)
    if rule.annotated == "as_others" or n_frames is None:
        return tuple(chosen)
    annotated = sorted(annotated_frames(card, root, item, count))
    if rule.annotated == "also":
        return tuple(sorted({*chosen, *annotated}))
    if not annotated:
        raise DataError("no_annotated_frame", "No frame has a mask or marks, and the card wants no others.")
    return tuple(annotated[k] for k in video.choose_frames(len(annotated), rule.stride, rule.max_per_clip))


def is_clip(card: Card, item: Item) -> bool:
    """Whether an item counts as a video in `expect`, before it was opened: a volume does if its axes name frames."""
    if item.kind == "volume":
        return card.arrays is not None and "f" in card.arrays.axes
    return item.kind == "video" or (item.entry is not None and item.entry.frames > 1)


def masks_without_frame(card: Card, item: Item, n_frames: int | None) -> tuple[Problem, ...]:
    """The mask files of a clip, and its annotations, that belong to none of its frames.

    Raises:
        DataError: there are some, and the card refuses items with bad masks (reason mask_without_frame).
    """
    if n_frames is None:
        return ()
    by_frame = card.masks is not None and card.masks.frame_from is not None
    lost = list(mask_files(card, item, n_frames)[1]) if by_frame else []
    if text := frames_beyond(item.shapes, n_frames):
        lost.append((item.path, text))
    if lost and card.masks is not None and card.masks.if_bad == "refuse":
        path, text = lost[0]
        raise DataError("mask_without_frame", f"{path}: {text}", step="mask")
    return tuple(Problem(path, "mask", "mask_without_frame", text) for path, text in lost)


def read(card: Card, root: Path, item: Item, frames: Sequence[int], masks: FrameMasks) -> Iterator[tuple[int, Pixels]]:
    """The pixels of frames (ascending) as (frame, uint8 (H, W) or (H, W, 3) RGB); `masks` gets what lies beside them.

    Raises:
        DataError: see the readers.
    """
    path = root / item.place
    if item.kind == "video":
        yield from video.read_frames(path, frames)
    elif item.kind == "volume":
        assert card.arrays is not None
        yield from volume.read_frames(path, card.arrays, frames)
    elif item.entry is not None:
        for index, pixels, numbers in reader(card.reader).read(path, item.entry.key, frames):
            masks.beside = numbers
            yield index, pixels
    else:
        yield 0, image.read_image(path)


def content(card: Card, root: Path, item: Item) -> xxhash.xxh3_128:
    """The hash that names an item's samples: of its file's bytes, and of a header's data file after it.

    Of a container's entry: of its own pictures and masks, so that the other entries of the file do not matter; the
    file is read through once either way.
    """
    if item.entry is None:
        return file_state(card, root / item.place)
    state = xxhash.xxh3_128()
    for _, pixels, numbers in reader(card.reader).read(root / item.place, item.entry.key, range(item.entry.frames)):
        for array in (pixels, numbers):
            shape = () if array is None else array.shape
            state.update(repr(shape).encode())
            state.update(b"" if array is None else array.tobytes())
    return state


def file_state(card: Card, path: Path) -> xxhash.xxh3_128:
    """xxh3_128 of a file, followed by that of the file that holds its numbers, where that is another (.mhd, .nhdr)."""
    digest = xxhash.xxh3_128()
    for one in (path, *(volume.other_files(path) if card.arrays is not None else ())):
        with one.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest
