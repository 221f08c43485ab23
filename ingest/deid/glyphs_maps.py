"""How steep the steps between neighbouring pixels are, cell by cell: what tells text from tissue.

An ultrasound image is band-limited: the beam blurs it, most of all across, and its grey level needs a few pixels to
rise. An overlay is drawn afterwards, on the pixel grid: its strokes rise and fall within one or two pixels. So cells of
8 x 8 pixels are described by the mean step to the next pixel, across and down, and by what remains of the steps above
12, 32 and 64 grey levels, on the picture and on its half-size copy (for smoothed letters). Tissue has many small steps
and few steep ones; letters, digits and callipers have steep ones, close together.

Dark ink on dim tissue makes no step of many grey levels. So the same is measured on the logarithm of the picture, where
dim tissue is as rough as bright; and there `valleys` too: strokes that are darker than what lies on both sides of them
and flat along themselves, as speckle's dark gaps, which are points, are not.
"""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

CELL = 8  # pixels per side of a cell; windows move by it (ours)
EXCESS = (0, 12, 32, 64)  # grey levels: a map of steps above each (ours)
GROUP = 4 * len(EXCESS)  # two scales x across, down x EXCESS
LOG, VALLEYS, CHANNELS = GROUP, 2 * GROUP, 3 * GROUP  # first channel of the maps of the logarithm; of the valleys
USUAL = tuple(c for c in range(CHANNELS) if c % len(EXCESS) < 2)  # the channels of which `reference` counts
QUICK = (0, 2)  # the channels of the screen: steps across, all and above 32
#: Those of the screen for dark ink: the same, also of the logarithm, and upright dark strokes, all and above 12
QUICK_DARK = (*QUICK, LOG, LOG + 2, VALLEYS, VALLEYS + 1)
DIM = 32  # grey levels: above it the logarithm begins to bend (ours)
SIDE = (4, 3)  # pixels, at each scale, within which a dark stroke must end on both sides (ours)
ALONG = (5, 3)  # pixels, at each scale, along which it must be flat (ours)
UNEVEN = 2  # levels that a valley loses for each grey level of unevenness along it (ours)
SHARE = 0.35  # of a window must be measured (ours)
FLOOR = 0.25  # grey levels, added before the logarithm: differences below do not matter (ours)
REACH = (2, 1)  # pixels at each scale: nothing so near to the mask's border is measured

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Steps:
    """The maps of pictures of one size under one mask. Holds its buffers, so a frame of a cine allocates little."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        """`mask`: bool (h, w), where the picture counts, at least 8 px a side."""
        self.rows, self.columns = mask.shape[0] // CELL, mask.shape[1] // CELL
        self._levels = (_Level(mask, 0), _Level(mask, 1))
        inner = self._levels[0].inner[: self.rows * CELL, : self.columns * CELL].astype(np.float32) / 255
        #: float32 (rows, columns), share of each cell that is measured, 0..1
        self.coverage: Floats = cv2.resize(inner, (self.columns, self.rows), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        self._cells = np.zeros((CHANNELS, self.rows, self.columns), np.float32)
        self._mask = mask.astype(np.uint8) * 255
        table = 255 * np.log1p(np.arange(256) / DIM) / np.log1p(255 / DIM)
        self._table = np.rint(table).astype(np.uint8)

    def quick(self, image: Bytes) -> Floats:
        """The channels of `QUICK_DARK` of `image`, uint8 (h, w): float32 (6, rows, columns), a copy."""
        level, logarithm = self._levels[0], self._logarithm(image)
        level.steps(image, 0, self._cells, (0, 2))
        level.steps(logarithm, 0, self._cells[LOG:], (0, 2))
        level.valleys(image, logarithm, 0, self._cells[VALLEYS:], (0, 1))
        return self._cells[list(QUICK_DARK)]

    def all(self, image: Bytes) -> Floats:
        """Cell means of all maps: float32 (CHANNELS, rows, columns), grey levels, overwritten by the next call."""
        pictures = (image, self._half(image))
        logarithm = self._logarithm(image)
        logarithms = (logarithm, self._half(logarithm))
        number = len(EXCESS)
        every = range(number)
        for scale, level in enumerate(self._levels):  # channels: steps, of the logarithm, valleys; by scale; by axis
            for axis in (0, 1):
                at = (2 * scale + axis) * number
                level.steps(pictures[scale], axis, self._cells[at:], every)
                level.steps(logarithms[scale], axis, self._cells[LOG + at :], every)
                level.valleys(pictures[scale], logarithms[scale], axis, self._cells[VALLEYS + at :], every)
        return self._cells

    def _half(self, image: Bytes) -> Bytes:
        return cv2.resize(image, self._levels[1].size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]

    def _logarithm(self, image: Bytes) -> Bytes:
        """0..255; zero outside of the mask, so that nothing there is the bright side of a valley."""
        return cv2.bitwise_and(cv2.LUT(image, self._table), self._mask)  # type: ignore[return-value]


def logs(cells: Floats, coverage: Floats, rows: int, columns: int) -> tuple[Floats, NDArray[np.int64]] | None:
    """Logarithms of the mean steps in windows of `rows` x `columns` cells of which enough is measured.

    Returns:
        (channels, n) float32, and (n, 2) the upper left cells (y, x) of the windows; None if there are none.
    """
    h, w = coverage.shape[0] - rows + 1, coverage.shape[1] - columns + 1
    if h < 1 or w < 1:
        return None

    def total(plane: Floats) -> Floats:
        sums = cv2.boxFilter(plane, -1, (columns, rows), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
        return sums[:h, :w]  # type: ignore[return-value]

    measured = total(coverage)
    enough = measured > SHARE * rows * columns
    if not enough.any():
        return None
    means = np.stack([total(plane)[enough] for plane in cells]) / measured[enough]
    return np.log(means + FLOOR), np.argwhere(enough)


def reference(values: Floats) -> Floats:
    """What is usual in this picture: (2, channels), median and 80th percentile of `logs` over the windows.

    Not a higher percentile: a menu of words must not pass as usual. Not of the steepest steps, for the same reason.
    """
    found = np.zeros((2, len(values)), np.float32)  # zero for the channels that do not count
    found[:, USUAL] = np.percentile(values[list(USUAL)], (50, 80), axis=1)
    return found


def grey(frame: Bytes) -> Bytes:
    """Luma (Rec. 601) of an RGB frame; a grey one as it is."""
    return frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def half_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask of a half-size picture: pixels all of whose sources are in `mask`."""
    size = (mask.shape[1] >> 1, mask.shape[0] >> 1)
    return cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) == 255


class _Level:
    """One scale: 0 is the picture, 1 its half."""

    def __init__(self, mask: NDArray[np.bool_], scale: int) -> None:
        inner = mask.astype(np.uint8) * 255
        self.size = (mask.shape[1] >> scale, mask.shape[0] >> scale)  # (w, h), as OpenCV has it
        if scale:
            inner = (cv2.resize(inner, self.size, interpolation=cv2.INTER_AREA) == 255).astype(np.uint8) * 255
        side = 2 * REACH[scale] + 1
        self.inner = cv2.erode(inner, np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        self._scale, self._halvings = scale, 3 - scale
        self._used = (mask.shape[0] // CELL * CELL >> scale, mask.shape[1] // CELL * CELL >> scale)
        self._step, self._rest = np.zeros(inner.shape, np.uint8), np.zeros(inner.shape, np.uint8)

    def steps(self, image: Bytes, axis: int, out: Floats, which: Iterable[int]) -> None:
        """Steps across (axis 0) or down (1), pooled over cells, to `out[k]` for k, an index of `EXCESS`, in `which`."""
        step = self._step
        if axis == 0:
            step[:, 0] = 0
            cv2.absdiff(image[:, 1:], image[:, :-1], dst=step[:, 1:])
        else:
            step[0] = 0
            cv2.absdiff(image[1:], image[:-1], dst=step[1:])
        self._excesses(out, which)

    def valleys(self, image: Bytes, logarithm: Bytes, axis: int, out: Floats, which: Iterable[int]) -> None:
        """How deep dark strokes lie, upright ones (axis 0) or level ones (1): pooled as `steps`.

        The depth is that of a pixel's `logarithm` below the brightest on either side within `SIDE`, the less bright of
        the two, less `UNEVEN` times the span of `image` along the stroke.
        """
        far, along, step = SIDE[self._scale], ALONG[self._scale], self._step
        lines = np.ones((along, 1) if axis == 0 else (1, along), np.uint8)
        uneven = cv2.subtract(cv2.dilate(image, lines), cv2.erode(image, lines))
        sides = np.ones((1, far) if axis == 0 else (far, 1), np.uint8)
        last = (far - 1, 0) if axis == 0 else (0, far - 1)
        before = cv2.dilate(logarithm, sides, anchor=last)  # the brightest of the pixel and those before it
        step[:] = 0
        if axis == 0:
            cv2.min(before[:, : -far - 1], before[:, far + 1 :], dst=step[:, 1:-far])
        else:
            cv2.min(before[: -far - 1], before[far + 1 :], dst=step[1:-far])
        cv2.subtract(step, logarithm, dst=step)
        for _ in range(UNEVEN):
            cv2.subtract(step, uneven, dst=step)
        self._excesses(out, which)

    def _excesses(self, out: Floats, which: Iterable[int]) -> None:
        """The map at hand within the mask, above each of `EXCESS`, pooled."""
        step, rest = self._step, self._rest
        cv2.bitwise_and(step, self.inner, dst=step)
        for k in which:
            if EXCESS[k]:
                cv2.subtract(step, float(EXCESS[k]), dst=rest)  # type: ignore[call-overload]
            out[k] = self._pool(rest if EXCESS[k] else step)

    def _pool(self, values: Bytes) -> Bytes:
        """Means over cells, by halving: each rounds to whole grey levels, so that a lone small step vanishes."""
        cells = values[: self._used[0], : self._used[1]]
        for _ in range(self._halvings):
            size = (cells.shape[1] // 2, cells.shape[0] // 2)
            cells = cv2.resize(cells, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        return cells
