"""The catalog's `marks`: named boxes and points that people drew, in pixels of the source picture before any crop."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from usdata.errors import LakeError
from usdata.schema import IMAGE_SIZE

CROP = ("crop_x0", "crop_y0", "crop_x1", "crop_y1")


@dataclass(frozen=True, slots=True)
class Box:
    """A named box of a stored image."""

    name: str
    box: tuple[float, float, float, float]  # x, y, width, height in pixels of the stored image

    @property
    def area(self) -> float:
        return _short(self.box[2] * self.box[3])


def boxes_of(row: Mapping[str, Any]) -> Iterator[Box]:
    """The boxes of a row (marks, crop_x0, ..., crop_y1), stretched as its image was.

    What the crop cut off is cut off; a box of which nothing is left, and points, are left out.

    Raises:
        LakeError: the row's `marks` are damaged.
    """
    if not row["marks"]:
        return
    x0, y0, x1, y1 = (row[side] for side in CROP)
    for name, box in _boxes(row["marks"], row.get("sample_id")):
        low_x, high_x = (min(max((x - x0) * IMAGE_SIZE / (x1 - x0), 0.0), IMAGE_SIZE) for x in box[::2])
        low_y, high_y = (min(max((y - y0) * IMAGE_SIZE / (y1 - y0), 0.0), IMAGE_SIZE) for y in box[1::2])
        if low_x < high_x and low_y < high_y:
            yield Box(name, (_short(low_x), _short(low_y), _short(high_x - low_x), _short(high_y - low_y)))


def box_names(marks: str) -> set[str]:
    """The names of the boxes among a row's marks."""
    return {name for name, _ in _boxes(marks, None)}


def _boxes(marks: str, sample_id: str | None) -> list[tuple[str, list[float]]]:
    try:
        found = [
            (str(one["name"]), [float(value) for value in one["box"]]) for one in json.loads(marks) if "box" in one
        ]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LakeError(f"The marks are damaged ({error}).", item=sample_id, step="read") from error
    if any(len(box) != 4 for _, box in found):
        raise LakeError("The marks are damaged: a box needs four numbers.", item=sample_id, step="read")
    return found


def _short(value: float) -> float:
    """To a thousandth of a pixel, whole numbers without a point."""
    rounded = round(float(value), 3)
    return int(rounded) if rounded.is_integer() else rounded
