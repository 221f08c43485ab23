"""How sharp, thin and straight the strokes of a picture are, cell by cell: what text has and tissue has not.

An ultrasound image is band-limited: the beam blurs it, most of all across. An overlay is drawn afterwards, on the pixel
grid, so its strokes rise and fall within one or two pixels and stay exactly as sharp over a run of pixels. Eight maps
measure that, on the picture and on its half-size copy (for large or smoothed letters), and are averaged over cells of
8 x 8 pixels. All are non-negative grey levels, uint8:

    bright |, bright -, dark |, dark -   a stroke at most 3 px wide, over a run of 4 px: the lowest rise above both sides
    step |, step -                       an edge: the step between neighbours
    run |, run -                         the lowest step along a run of 4 px
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CELL = 8  # pixels per side of a cell (ours); windows move by it
SCALES = 2
MAPS = 8  # per scale
EXCESS = 32  # grey levels; steps above it are pooled once more, so that few strong ones count (ours)
CHANNELS = SCALES * (MAPS + 2)
REACH = 4  # pixels that a map looks to each side: nothing so near to the mask's border is measured

Bytes = NDArray[np.uint8]


class Strokes:
    """The maps of pictures of one size. Holds the buffers, so that a frame of a cine allocates next to nothing."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        """`mask`: bool (h, w), where the picture counts; at least 16 px a side is needed for one cell."""
        self.height, self.width = mask.shape
        self.rows, self.columns = self.height // CELL, self.width // CELL
        self._levels = [_Level(mask, scale, self.rows, self.columns) for scale in range(SCALES)]
        whole = self._levels[0].inner.astype(np.float32) / 255
        size = (self.columns, self.rows)
        #: float32 (rows, columns), share of each cell that is measured, 0..1
        self.coverage = cv2.resize(whole[: self.rows * CELL, : self.columns * CELL], size, interpolation=cv2.INTER_AREA)

    def measure(self, image: Bytes, out: NDArray[np.float32]) -> None:
        """Cell means of all maps of `image`, uint8 (h, w), into `out`, float32 (CHANNELS, rows, columns)."""
        half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        step = MAPS + 2
        self._levels[0].measure(image, out[:step])
        self._levels[1].measure(half, out[step:])


class _Level:
    """One scale: 0 is the picture, 1 its half."""

    def __init__(self, mask: NDArray[np.bool_], scale: int, rows: int, columns: int) -> None:
        inner = mask.astype(np.uint8) * 255
        if scale:
            size = (round(inner.shape[1] / 2), round(inner.shape[0] / 2))
            inner = (cv2.resize(inner, size, interpolation=cv2.INTER_AREA) == 255).astype(np.uint8) * 255
        side = 2 * (REACH if scale == 0 else REACH - 1) + 1
        self.inner = cv2.erode(inner, np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        self._halvings = 3 - scale
        self._used = (rows * CELL >> scale, columns * CELL >> scale)
        self._buffers: list[Any] = [np.zeros(inner.shape, np.uint8) for _ in range(6)]

    def measure(self, image: Bytes, out: NDArray[np.float32]) -> None:
        # The maps are written inside of a frame of zeros which is never touched: no value is made up at the border.
        left, right, stroke, run, step, spare = self._buffers
        for polarity in range(2):
            for axis in range(2):  # 0: vertical strokes, looked at sideways
                a, b = (image, 2) if polarity == 0 else (image, 2)
                _sides(a, b, axis, dark=polarity == 1, left=left, right=right)
                cv2.min(left, right, dst=stroke)
                _least_of_four(stroke, axis, spare, run)
                self._pool(run, spare, out[2 * polarity + axis])
        for axis in range(2):
            _step(image, axis, step)
            self._pool(step, spare, out[4 + axis])
            _least_of_four(step, axis, spare, run)
            self._pool(run, spare, out[6 + axis])
            cv2.subtract(step, np.full(1, EXCESS, np.float64), dst=run)
            self._pool(run, spare, out[8 + axis])

    def _pool(self, values: Bytes, spare: Bytes, out: NDArray[np.float32]) -> None:
        cv2.bitwise_and(values, self.inner, dst=spare)
        cells = spare[: self._used[0], : self._used[1]]
        for _ in range(self._halvings):
            cells = cv2.resize(cells, (cells.shape[1] // 2, cells.shape[0] // 2), interpolation=cv2.INTER_AREA)
        out[...] = cells


def _sides(image: Bytes, far: int, axis: int, *, dark: bool, left: Bytes, right: Bytes) -> None:
    """How much a pixel exceeds (dark: falls below) the ones `far` pixels to either side; 0 where it does not."""
    inner, low, high = _slices(axis, far)
    here = image[inner]
    if dark:
        cv2.subtract(image[low], here, dst=left[inner])
        cv2.subtract(image[high], here, dst=right[inner])
    else:
        cv2.subtract(here, image[low], dst=left[inner])
        cv2.subtract(here, image[high], dst=right[inner])


def _slices(axis: int, far: int) -> tuple[tuple[slice, slice], ...]:
    """Where the middle and its two sides are, for shifts of `far` along x (axis 0) or y (axis 1)."""
    whole, middle, low, high = slice(None), slice(far, -far), slice(None, -2 * far), slice(2 * far, None)
    return tuple((whole, part) if axis == 0 else (part, whole) for part in (middle, low, high))


def _step(image: Bytes, axis: int, out: Bytes) -> None:
    if axis == 0:
        cv2.absdiff(image[:, 1:], image[:, :-1], dst=out[:, 1:])
    else:
        cv2.absdiff(image[1:], image[:-1], dst=out[1:])


def _least_of_four(values: Bytes, axis: int, spare: Bytes, out: Bytes) -> None:
    """The least of a pixel and its next three along the stroke (y for axis 0, x for axis 1)."""
    if axis == 0:
        cv2.min(values[1:], values[:-1], dst=spare[:-1])
        cv2.min(spare[2:-1], spare[:-3], dst=out[:-3])
    else:
        cv2.min(values[:, 1:], values[:, :-1], dst=spare[:, :-1])
        cv2.min(spare[:, 2:-1], spare[:, :-3], dst=out[:, :-3])
