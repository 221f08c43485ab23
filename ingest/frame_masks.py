"""Which mask belongs to which frame: mask volumes, one mask file per frame, masks beside the pixels in one file.

Where the card says `frames.annotated: also` or `only`, annotation is sparse, and a frame whose mask volume is empty
counts as one without a mask, unless `masks.label` gives the background a label. Else an empty mask says that nothing is
there (ours).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ingest.card import Card
from ingest.card_parts import Masks
from ingest.layout import Item, natural
from ingest.readers import mask, volume
from ingest.readers.volume_direction import directions
from ingest.special import reader
from usdata.errors import DataError

Classes = NDArray[np.uint8]


@dataclass(slots=True)
class FrameMasks:
    """The masks of one item's frames, asked for in ascending order."""

    card: Card
    root: Path
    item: Item
    frames: Sequence[int]  # those that will be asked for
    n_frames: int | None  # of the item; None: a still
    beside: NDArray[Any] | None = None  # of a container: the numbers that came with the frame's pixels
    _by_frame: dict[int, list[str]] | None = None
    _volumes: dict[str, Iterator[tuple[int, NDArray[Any]]]] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)
    _told: set[tuple[str | None, ...]] = field(default_factory=set)

    def of(self, frame: int, shape: tuple[int, int]) -> Classes | None:
        """The class indices of a frame, uint8 `shape`; None if it has no mask.

        Raises:
            DataError: step mask, its `item` the file; see `mask.read_mask`, and mask_size when a mask volume has
                another number of frames than its volume.
        """
        if self.card.masks is None:
            return None
        read = [self._of_file(path, frame, shape) for path in self._files(frame)]
        if self.inside:
            read.append(self._of_array(self.item.place, frame, shape, same_file=True))
        if self.beside is not None:
            read.append(self._classes(self.beside, False, shape, self.item.path))
        found = [classes for classes in read if classes is not None]
        if not found:
            return None
        merged: Classes = np.maximum.reduce(found)
        return None if self._sparse() and not merged.any() else merged

    def _sparse(self) -> bool:
        """Whether an empty mask says nothing: the card wants annotated frames, and names no label for an empty one."""
        spec = self.card.masks
        if self.n_frames is None or self._by_frame or spec is None or self.card.frames.annotated == "as_others":
            return False
        return spec.classes[0] not in (spec.label or {})

    def is_new(self, *what: str | None) -> bool:
        """Whether this was not asked before: what is wrong with a whole clip is said once, not for every frame."""
        if what in self._told:
            return False
        self._told.add(what)
        return True

    @property
    def inside(self) -> bool:
        """Whether the mask lies in the volume's own file."""
        arrays = self.card.arrays
        return self.item.kind == "volume" and arrays is not None and bool(arrays.mask_dataset) and not self.item.masks

    def _files(self, frame: int) -> Sequence[str]:
        if self.card.masks is None or self.card.masks.frame_from is None or self.n_frames is None:
            return self.item.masks
        if self._by_frame is None:
            self._by_frame = mask_files(self.card, self.item, self.n_frames)[0]
        return self._by_frame.get(frame, ())

    def _of_file(self, path: str, frame: int, shape: tuple[int, int]) -> Classes | None:
        if path in self._volumes or (self.card.arrays is not None and volume.is_array(self.root / path)):
            return self._of_array(path, frame, shape, same_file=False)
        assert self.card.masks is not None
        return mask.read_mask([self.root / path], self.card.masks, shape, self.root)

    def _of_array(self, path: str, frame: int, shape: tuple[int, int], same_file: bool) -> Classes | None:
        assert self.card.arrays is not None
        if path in self._failed:
            return None  # was said once
        planes = "k" in (self.card.arrays.mask_axes or self.card.arrays.axes)
        try:
            numbers = self._numbers(path, frame, same_file)
        except DataError as error:
            self._failed.add(path)  # what follows can't be read either
            name = path.rpartition("/")[2]
            raise DataError(error.reason, f"{name}: {error.message}", item=path, step="mask") from error
        return self._classes(numbers, planes, shape, path)

    def _numbers(self, path: str, frame: int, same_file: bool) -> NDArray[Any]:
        assert self.card.masks is not None and self.card.arrays is not None
        if self.card.masks.frame_from is not None and self.n_frames is not None:
            return next(volume.read_mask_frames(self.root / path, self.card.arrays, [0]))[1]
        if path not in self._volumes:
            count = volume.probe_mask(self.root / path, self.card.arrays, same_file).n_frames
            if count != (self.n_frames or 1):
                text = f"The mask has {count} frames, its volume {self.n_frames or 1}."
                raise DataError("mask_size", text, step="mask")
            if not same_file:
                self._check_direction(self.root / path)
            wanted = [index for index in self.frames if index >= frame]
            self._volumes[path] = volume.read_mask_frames(self.root / path, self.card.arrays, wanted, same_file)
        for index, numbers in self._volumes[path]:
            if index == frame:
                return numbers
        raise DataError("frame_missing", f"The mask ends before frame {frame}.", step="mask")

    def _check_direction(self, path: Path) -> None:
        """Frames and masks are paired by index: refuse a mask whose header says that it runs another way."""
        both = directions(self.root / self.item.place), directions(path)
        if None not in both and both[0] != both[1]:
            text = "Its header says that its axes run another way than its volume's: it would lie mirrored or turned."
            raise DataError("mask_orientation", text, step="mask")

    def _classes(self, numbers: NDArray[Any], planes: bool, shape: tuple[int, int], path: str) -> Classes:
        assert self.card.masks is not None
        try:
            return class_indices(numbers, self.card.masks, planes, shape, Path(path))
        except DataError as error:
            name = path.rpartition("/")[2]
            raise DataError(error.reason, f"{name}: {error.message}", item=path, step="mask") from error


def class_indices(numbers: NDArray[Any], spec: Masks, planes: bool, shape: tuple[int, int], below: Path) -> Classes:
    """The numbers of a mask's frame as class indices, by the rules for mask files.

    Args:
        numbers: uint8 or bool; (H, W), (H, W, 3) of colours, or (H, W, K) with a plane for each class: all that is not
            0 in plane i belongs to class i + 1, and where planes overlap the later one wins.
        planes: which of the two a third axis is.
        shape: of the frame.
        below: path of the mask, for `masks.by_path`.

    Raises:
        DataError: see `mask.read_mask`.
    """
    if planes:
        count = numbers.shape[2]
        if count != len(spec.classes) - 1:
            text = f"The mask has {count} planes, for {len(spec.classes) - 1} classes besides the background."
            raise DataError("mask_value", text, step="mask")
        ranks = np.arange(1, count + 1, dtype=np.uint8)
        merged = np.max((numbers != 0) * ranks, axis=2).astype(np.uint8)
        known = spec.model_copy(update={"kind": "index", "values": None})
        return mask.classes_of(Image.fromarray(merged), known, shape, below)
    if numbers.ndim == 3:
        numbers = numbers[..., 0] if numbers.shape[2] == 1 else numbers[..., :3]
    return mask.classes_of(Image.fromarray(np.ascontiguousarray(numbers)), spec, shape, below)


def mask_files(card: Card, item: Item, n_frames: int) -> tuple[dict[int, list[str]], list[tuple[str, str]]]:
    """The mask files of each frame of a clip, by `masks.frame_from`, and those of no frame with the reason in words.

    order: the k-th mask of a folder belongs to frame k; numbers in names count as numbers, so that _2 comes before _10.
    """
    assert card.masks is not None and card.layout is not None
    found: dict[int, list[str]] = defaultdict(list)
    lost: list[tuple[str, str]] = []
    flags = re.IGNORECASE if card.layout.ignore_case else 0
    patterns = [re.compile(pattern, flags) for pattern in card.layout.mask]
    ranks: dict[str, int] = defaultdict(int)
    for path in sorted(item.masks, key=natural):
        if card.masks.frame_from == "order":
            folder = path.rpartition("/")[0]
            number: int | None = ranks[folder]
            ranks[folder] += 1
        else:
            match = next(match for pattern in patterns if (match := pattern.fullmatch(path)))
            word = (match.groupdict().get("frame") or "").strip()
            number = int(word) - card.masks.frame_base if word.isascii() and word.isdigit() and len(word) < 10 else None
        if number is None:
            lost.append((path, "Its path has no group `frame` with a number."))
        elif not 0 <= number < n_frames:
            lost.append((path, f"It would belong to frame {number} of {n_frames}, counted from 0."))
        else:
            found[number].append(path)
    return dict(found), lost


def annotated_frames(card: Card, root: Path, item: Item, n_frames: int) -> set[int]:
    """The frames of a clip or volume that have a mask with something in it, a mask file of their own, or shapes.

    A mask or shape that is not tied to a frame annotates all of them. Mask volumes are read through.

    Raises:
        DataError: a mask volume can't be read.
    """
    found = {shape.frame for shape in item.shapes if shape.frame is not None and 0 <= shape.frame < n_frames}
    if any(shape.frame is None for shape in item.shapes):
        return set(range(n_frames))
    if card.masks is None:
        return found
    if item.masks and card.masks.frame_from is not None:
        return found | set(mask_files(card, item, n_frames)[0])
    if item.entry is not None:
        read = reader(card.reader).read(root / item.place, item.entry.key, range(n_frames))
        return found | {index for index, _, numbers in read if numbers is not None and numbers.any()}
    masks = FrameMasks(card, root, item, range(n_frames), n_frames)
    for path in item.masks:
        if card.arrays is None or not volume.is_array(root / path):
            return set(range(n_frames))
    if item.masks or masks.inside:
        shape = _mask_shape(card, root, item)
        for frame in range(n_frames):
            classes = masks.of(frame, shape)
            if classes is not None and classes.any():
                found.add(frame)
    return found


def _mask_shape(card: Card, root: Path, item: Item) -> tuple[int, int]:
    """The mask's own size: whether it fits the picture is told when the picture is there."""
    assert card.arrays is not None
    path, same_file = (item.masks[0], False) if item.masks else (item.place, True)
    info = volume.probe_mask(root / path, card.arrays, same_file)
    return info.height, info.width
