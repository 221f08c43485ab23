"""What is to be learned from one frame: its mask, the label that a mask gives, its marks.

The mask comes from files, from annotated shapes, or from both; everything is in pixels of the source, before any crop.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.card import Card
from ingest.card_parts import Masks
from ingest.frame_masks import FrameMasks
from ingest.layout import Item
from ingest.readers.shapes_draw import draw_mask, marks_json
from usdata.errors import DataError


@dataclass(frozen=True, slots=True)
class Supervision:
    """Of one frame. `problems`: what is bad although the card lets the image in without it."""

    classes: NDArray[np.uint8] | None = None  # (H, W) of the source, class indices
    columns: dict[str, Any] = field(default_factory=dict)  # label, marks
    problems: tuple[DataError, ...] = ()


def supervise(
    card: Card,
    root: Path,
    item: Item,
    frame: int | None,
    pixels: NDArray[np.uint8],
    masks: FrameMasks | None = None,
) -> Supervision:
    """The supervision of one decoded frame.

    Args:
        root: the source's folder.
        frame: its number in a clip or volume; None for a still.
        pixels: uint8, (H, W) or (H, W, 3).
        masks: of a clip, which are read frame by frame; None: those of a still.

    Raises:
        DataError: step mask. An unusable mask or mark of a card that refuses images then; or no label, of a card whose
            labels come from masks (reason label_missing).
    """
    problems = []
    classes, columns = None, {}
    try:
        classes = _classes(card, masks or FrameMasks(card, root, item, (frame or 0,), None), item, frame, pixels)
    except DataError as error:
        problems.append(error)
    try:
        if marks := marks_json([s for s in item.shapes_of(frame) if s.becomes == "marks"], pixels.shape[:2]):
            columns["marks"] = marks
    except DataError as error:
        problems.append(error)
    if problems and card.masks and card.masks.if_bad == "refuse":
        raise problems[0]
    if card.masks and card.masks.label and (classes is not None or problems):
        columns["label"] = _label(classes, card.masks, problems)  # without any mask nobody has labelled it
    return Supervision(classes, columns, tuple(problems))


def _classes(
    card: Card, masks: FrameMasks, item: Item, frame: int | None, pixels: NDArray[np.uint8]
) -> NDArray[np.uint8] | None:
    """The merged mask of files and shapes; None if there is neither."""
    if card.masks is None:
        return None
    (height, width), spec = pixels.shape[:2], card.masks
    found = []
    stored = masks.of(frame or 0, (height, width))
    if stored is not None:
        found.append(stored)
    if shapes := [shape for shape in item.shapes_of(frame) if shape.becomes == "mask"]:
        found.append(draw_mask(shapes, spec, (height, width)))
    if not found:
        return None
    classes = np.maximum.reduce(found)
    if spec.inside_echo:
        echo = pixels.any(axis=2) if pixels.ndim == 3 else pixels > 0
        classes = classes * echo.view(np.uint8)
    return classes


def _label(classes: NDArray[np.uint8] | None, spec: Masks, problems: list[DataError]) -> str:
    """The label of the first class in `masks.label` that has a pixel; `problems`: why there are no classes, if so."""
    if classes is None:
        raise DataError("label_missing", f"The label comes from the mask. {problems[0].message}", step="mask")
    present = np.bincount(classes.ravel(), minlength=len(spec.classes))
    for name, label in (spec.label or {}).items():
        if present[spec.classes.index(name)]:
            return label
    raise DataError("label_missing", "No class that gives a label has a pixel in the mask.", step="mask")
