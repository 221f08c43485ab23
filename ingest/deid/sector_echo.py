"""Where a picture holds echo rather than screen: a coarse map, and the largest solid piece of it.

Echo is never flat: neighbouring pixels differ, in the tissue by speckle and elsewhere by noise, while a console's
background is one exact colour, whatever its brightness. Text and graphics are not flat either, but thin: an opening
takes them away. In a cine that moves, what never changes is no echo.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.deid.summary import Summary

COARSE = 400  # pixels of the longer side of the map, at most (ours: the fit is exact enough, and fast)
BACKGROUND_SHARE = 0.02  # of the picture that the commonest value must have, to count as a background's colour
MOVING_FRAMES = 6  # frames from which movement is looked at
MOVING_SHARE = 0.6  # of the active pixels that must change before what does not is dropped

Mask = NDArray[np.uint8]  # 0 or 1


@dataclass(frozen=True, slots=True, eq=False)
class Echo:
    """The map at reduced size. A point of it at column x is the picture's column (x + 0.5) * scale_x - 0.5."""

    piece: Mask  # (h, w), the largest solid piece
    strays: Mask  # (h, w), active but not of the piece: text, graphics, small islands
    scale: tuple[float, float]  # x, y: picture pixels per map pixel
    frame: tuple[float, float, float, float]  # x0, y0, x1, y1 of where echo may be, in map pixels


@dataclass(frozen=True, slots=True)
class Looking:
    """How hard to look: the step that counts as structure, the gaps that are closed (map pixels)."""

    step: int
    close: int


def find_echo(active: Mask, look: Looking, allowed: NDArray[np.bool_] | None) -> Echo | None:
    """The largest solid piece of the active pixels; None if nothing solid is there."""
    height, width = active.shape
    shrink = max(1, round(max(height, width) / COARSE))
    w, h = width // shrink, height // shrink
    share = cv2.resize(active * np.uint8(255), (w, h), interpolation=cv2.INTER_AREA)
    dense = (share > 100).astype(np.uint8)
    dense = cv2.morphologyEx(dense, cv2.MORPH_CLOSE, np.ones((look.close, look.close), np.uint8))
    side = max(5, int(0.04 * min(h, w)) | 1)
    # A border counts as more of the same: else the opening would eat the sector where the picture cuts it
    core = cv2.erode(dense, np.ones((side, side), np.uint8))
    core = cv2.dilate(core, np.ones((side, side), np.uint8))
    core = _largest(core)
    if core is None:
        return None
    around = cv2.dilate(core, np.ones((side + 2, side + 2), np.uint8))
    piece = _largest(dense & around)
    if piece is None:
        return None
    near = cv2.dilate(piece, np.ones((7, 7), np.uint8))
    scale = (width / w, height / h)
    return Echo(piece, dense & (1 - near), scale, _frame(allowed, scale, (h, w)))


def active_pixels(summary: Summary, step: int, allowed: NDArray[np.bool_] | None) -> Mask:
    """1 where a pixel differs from a neighbour by more than `step`, and from the background's colour; (H, W)."""
    value = summary.peak
    square = np.ones((3, 3), np.uint8)
    ranges = cv2.subtract(cv2.dilate(value, square), cv2.erode(value, square))
    active = cv2.threshold(ranges, step, 1, cv2.THRESH_BINARY)[1]
    colour = _background(value)
    if colour is not None:
        margin = max(1, step - 1)
        active &= ~cv2.inRange(value, np.array(colour - margin), np.array(colour + margin))
    if summary.frames >= MOVING_FRAMES:
        moving = cv2.threshold(cv2.subtract(value, summary.low), step, 1, cv2.THRESH_BINARY)[1]
        if int(cv2.countNonZero(active & moving)) >= MOVING_SHARE * int(cv2.countNonZero(active)):
            active &= moving
    if allowed is not None:
        active &= allowed.view(np.uint8)
    return np.asarray(active, np.uint8)


def _background(value: NDArray[np.uint8]) -> int | None:
    counts = cv2.calcHist([value], [0], None, [256], [0, 256]).ravel()
    best = int(counts.argmax())
    return best if counts[best] >= BACKGROUND_SHARE * value.size else None


def _largest(mask: Mask) -> Mask | None:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4, ltype=cv2.CV_16U)
    if count < 2:
        return None
    best = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return np.asarray(labels == best, np.bool_).view(np.uint8)


def _frame(
    allowed: NDArray[np.bool_] | None, scale: tuple[float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The edges of where echo may be, at which a sector is cut rather than ends."""
    h, w = size
    if allowed is None:
        return -0.5, -0.5, w - 0.5, h - 0.5
    rows, columns = np.flatnonzero(allowed.any(axis=1)), np.flatnonzero(allowed.any(axis=0))
    if not len(rows):
        return -0.5, -0.5, w - 0.5, h - 0.5
    edges: NDArray[Any] = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
    x0, y0, x1, y1 = (edges / np.tile(scale, 2) - 0.5).tolist()
    return x0, y0, x1, y1
