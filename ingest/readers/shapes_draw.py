"""Shapes -> a mask of class indices, or the marks of the catalog."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.card_parts import Masks
from ingest.preprocess import nearest_neighbour
from ingest.readers.shapes import Shape
from usdata.errors import DataError

_CROSSINGS = 1 << 22  # of edges and rows at once: 100 MB
_INSIDE = 0.5  # share of a shape's box that must lie in the picture; ours: drawings overshoot by a few pixels


def draw_mask(shapes: Iterable[Shape], spec: Masks, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask that some shapes describe.

    Where shapes overlap, the class that stands later in `spec.classes` wins, as with mask files.

    Args:
        shapes: with names from `spec.classes`.
        shape: (height, width) of the picture.

    Returns:
        uint8, `shape`, each pixel the position of its class in `spec.classes`.

    Raises:
        DataError: step mask; reasons annotation_unreadable (a shape can't be used), mask_size (the annotation is of a
            picture of another size), shape_outside (nothing or little of a shape lies in the picture).
    """
    merged = np.zeros(shape, np.uint8)
    for one in shapes:
        inside = _area(one, spec, shape)
        np.maximum(merged, inside.view(np.uint8) * np.uint8(spec.classes.index(one.name)), out=merged)
    return merged


def fill_polygon(points: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres lie in a polygon, by the even-odd rule.

    Pixel (row r, column c) covers [c, c + 1) x [r, r + 1) of the plane, so its centre is (c + 1/2, r + 1/2) and the
    box (2, 3), (5, 7) has 3 x 4 pixels; a centre on a left or upper side is inside, on a right or lower one outside.
    COCO and labelme mean their coordinates so. Tools that mean the centres by whole numbers differ by half a pixel.

    Args:
        points: (n, 2), x and y in pixels; the last is joined to the first.
        shape: (height, width).

    Returns:
        bool, `shape`.
    """
    height, width = shape
    start, stop = points, np.roll(points, -1, axis=0)
    # Rows whose centres an edge passes: low <= r + 1/2 < high, so that a corner belongs to one of its two edges.
    first, last = (
        np.clip(np.ceil(side - 0.5), 0, height).astype(np.int64)
        for side in (np.minimum(start[:, 1], stop[:, 1]), np.maximum(start[:, 1], stop[:, 1]))
    )
    flips = np.zeros((height, width + 1), np.int64)
    for part in _parts(last - first):
        count = (last - first)[part]
        edge = np.repeat(np.arange(part.start, part.stop), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        (x0, y0), (x1, y1) = start[edge].T, stop[edge].T
        x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        flips += np.bincount(row * (width + 1) + column, minlength=flips.size).reshape(flips.shape)
    return np.cumsum(flips, axis=1)[:, :width] % 2 == 1


def _parts(counts: NDArray[np.int64]) -> Iterable[slice]:
    """Stretches of edges with few enough crossings to be handled at once."""
    total, start = 0, 0
    for number, count in enumerate(counts.tolist()):
        if total + count > _CROSSINGS and number > start:
            yield slice(start, number)
            total, start = 0, number
        total += count
    if total:
        yield slice(start, len(counts))


def _area(one: Shape, spec: Masks, shape: tuple[int, int]) -> NDArray[np.bool_]:
    if one.kind == "bad":
        raise _error("annotation_unreadable", f"An annotation can't be used: {one.name}.")
    other = one.size is not None and one.size != shape
    if other and (spec.other_size == "refuse" or one.size == shape[::-1]):  # one on its side is not stretched
        raise _other_size(one, shape)
    points = one.points
    if one.kind == "runs":
        area = _runs(points, one.size or shape, one.name)
        return nearest_neighbour(area.view(np.uint8), shape).view(np.bool_) if other else area
    if one.kind == "points" or (one.kind == "line" and not _closed(points)):
        raise _error("annotation_unreadable", f"{len(points)} points of {one.name} enclose no area.")
    if one.size is not None and other:
        points = points * [shape[1] / one.size[1], shape[0] / one.size[0]]
    if one.kind == "box":
        (x0, y0), (x1, y1) = points
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    x, y = points.T
    if x.max() <= 0 or y.max() <= 0 or x.min() >= shape[1] or y.min() >= shape[0] or _inside(points, shape) < _INSIDE:
        raise _outside(one, shape)
    return fill_polygon(points, shape)


def _inside(points: NDArray[np.float64], shape: tuple[int, int]) -> float:
    """The share of a shape's box that lies in the picture: little of a shape that was drawn on a larger picture."""
    low, high = points.min(axis=0), points.max(axis=0)
    within = np.clip(high, 0, shape[::-1]) - np.clip(low, 0, shape[::-1])
    whole = np.where(high > low, high - low, 1)
    return float(np.prod(np.where(high > low, within / whole, 1)))


def _other_size(one: Shape, shape: tuple[int, int]) -> DataError:
    height, width = one.size or (0, 0)
    text = f"The annotation is of {width} x {height} pixels, its image has {shape[1]} x {shape[0]}."
    return _error("mask_size", text)


def _outside(one: Shape, shape: tuple[int, int]) -> DataError:
    text = f"The shape of {one.name} lies outside the image of {shape[1]} x {shape[0]} pixels, all or most of it."
    return _error("shape_outside", text)


def _closed(points: NDArray[np.float64]) -> bool:
    """Whether a curve ends where it began."""
    return len(points) > 3 and bool((points[0] == points[-1]).all())


def _runs(runs: NDArray[np.int64], shape: tuple[int, int], name: str) -> NDArray[np.bool_]:
    """Runs down the columns as an area of `shape`."""
    height, width = shape
    ends = runs.sum(axis=1)
    if len(runs) and ends.max() > height * width:
        raise _error("shape_outside", f"A run of {name} ends beyond the image of {width} x {height} pixels.")
    change = np.zeros(height * width + 1, np.int64)
    np.add.at(change, runs[:, 0], 1)
    np.add.at(change, ends, -1)
    return np.ascontiguousarray((np.cumsum(change)[:-1] > 0).reshape(width, height).T)


def _error(reason: str, text: str) -> DataError:
    return DataError(reason, text, step="mask")


# --- marks ------------------------------------------------------------------------------------------------------------


def marks_json(shapes: Sequence[Shape], shape: tuple[int, int]) -> str | None:
    """The catalog's `marks`: a JSON list of {"name", "box": [x0, y0, x1, y1]} and {"name", "points": [[x, y], ...]}.

    Coordinates are in pixels of the source picture, before any crop.

    Args:
        shape: (height, width) of the picture.

    Raises:
        DataError: step mask; reasons annotation_unreadable (a shape can't be used), mask_size (the annotation is of a
            picture of another size), shape_outside (a whole mark lies outside the picture).
    """
    marks: list[dict[str, Any]] = []
    for one in shapes:
        if one.kind in ("bad", "runs"):
            why = one.name if one.kind == "bad" else f"run lengths of {one.name} are no mark"
            raise _error("annotation_unreadable", f"An annotation can't be used: {why}.")
        if one.size not in (None, shape):
            raise _other_size(one, shape)
        (left, top), (right, bottom) = one.points.min(axis=0), one.points.max(axis=0)
        if right < 0 or bottom < 0 or left > shape[1] or top > shape[0]:  # a point may lie on the border itself
            raise _outside(one, shape)
        if one.kind == "box":
            low, high = one.points.min(axis=0), one.points.max(axis=0)
            marks.append({"name": one.name, "box": [_short(v) for v in (*low, *high)]})
        else:
            marks.append({"name": one.name, "points": [[_short(x), _short(y)] for x, y in one.points]})
    return json.dumps(marks, separators=(",", ":")) if marks else None


def _short(value: float) -> float | int:
    """Whole numbers without a point; others to a thousandth of a pixel."""
    rounded = round(float(value), 3)
    return int(rounded) if rounded.is_integer() else rounded
