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
LEAST_PIECE = 0.05  # of the largest piece's area, for another one to count; ours
DIVIDED = 0.15  # of the largest piece's area, from which another one may be a part of the same image; ours
GROWTH = 5  # map pixels: side of the square by which the opened piece may grow back over strokes
STROKE = 40  # grey levels between neighbours from which they may be a stroke of text; ours
STROKE_SHARE = 60  # of 255: how much of a map pixel must be such
MOVING_FRAMES = 6  # frames from which movement is looked at
MOVING_SHARE = 0.6  # of the active pixels that must change before what does not is dropped

Mask = NDArray[np.uint8]  # 0 or 1


@dataclass(frozen=True, slots=True, eq=False)
class Echo:
    """The map at reduced size. A point of it at column x is the picture's column (x + 0.5) * scale_x - 0.5."""

    piece: Mask  # (h, w), the largest solid piece
    strays: Mask  # (h, w), strokes of high contrast that are not of the piece: text, graphics
    soft: float  # share of the piece's active pixels that are no strokes: near 0 for a block of text
    divided: bool  # there is another piece that is not much smaller
    scale: tuple[float, float]  # x, y: picture pixels per map pixel
    frame: tuple[float, float, float, float]  # x0, y0, x1, y1 of where echo may be, in map pixels


@dataclass(frozen=True, slots=True)
class Looking:
    """How hard to look: the step that counts as structure, and the gaps that are closed (map pixels)."""

    step: int
    close: int
    share: int = 100  # of 255: how much of a map pixel must be active


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """What every look at a picture needs: (H, W) uint8 each."""

    summary: Summary
    ranges: Mask  # largest less smallest value of the 3 x 3 neighbourhood
    colour: int | None  # the background's


def find_echo(
    pixels: Pixels, look: Looking, allowed: NDArray[np.bool_] | None, *, several: bool = False
) -> Echo | None:
    """The largest solid piece of the active pixels; None if nothing solid is there.

    With `several`, all pieces of at least `LEAST_PIECE` of the largest: a shadow may cut a sector in two, and a header
    may state two images side by side.
    """
    height, width = pixels.ranges.shape
    shrink = max(1, round(max(height, width) / COARSE))
    w, h = width // shrink, height // shrink
    active = _active(pixels, look.step, allowed)
    activity = _shrunk(active, (w, h))
    dense = _dilated(_above(activity, look.share), look.close)
    dense = _eroded(dense, look.close)
    strokes = _shrunk(_above(pixels.ranges, STROKE, 255) & active, (w, h))
    stroke = _dilated(_above(strokes, STROKE_SHARE), 3)
    side = max(5, int(0.04 * min(h, w)) | 1)
    least = LEAST_PIECE if several else 1.0
    core, divided = _largest(_dilated(_eroded(dense, side), side), least)
    if core is None:
        return None
    # The opening keeps straight edges in place. What is ragged grows back, but not over strokes: text that touches
    grown = _dilated(core, GROWTH) | (_dilated(core, side + 2) & (1 - stroke))
    piece = _largest(dense & grown, least)[0]
    if piece is None:
        return None
    soft = 1 - cv2.mean(strokes, mask=piece)[0] / max(cv2.mean(activity, mask=piece)[0], 1e-6)
    scale = (width / w, height / h)
    return Echo(piece, stroke & (1 - _dilated(piece, 5)), soft, divided, scale, _frame(allowed, scale, (h, w)))


def look_at(summary: Summary) -> Pixels:
    """The parts of `find_echo` that do not depend on how hard one looks."""
    value = summary.peak
    ranges = cv2.subtract(_dilated(value, 3), _eroded(value, 3))
    return Pixels(summary, np.asarray(ranges, np.uint8), background(value))


def _active(pixels: Pixels, step: int, allowed: NDArray[np.bool_] | None) -> Mask:
    """255 where a pixel differs from a neighbour by more than `step`, and from the background's colour; (H, W)."""
    summary = pixels.summary
    active = _above(pixels.ranges, step, 255)
    if pixels.colour is not None:
        margin = max(1, step - 1)
        low, high = np.array(pixels.colour - margin), np.array(pixels.colour + margin)
        active &= np.asarray(cv2.bitwise_not(cv2.inRange(summary.peak, low, high)), np.uint8)
    if summary.frames >= MOVING_FRAMES:
        moving = active & _above(np.asarray(cv2.subtract(summary.peak, summary.low), np.uint8), step, 255)
        if cv2.countNonZero(moving) >= MOVING_SHARE * cv2.countNonZero(active):
            active = moving
    if allowed is not None:
        active &= allowed.view(np.uint8) * np.uint8(255)
    return active


def _above(image: Mask, level: int, one: int = 1) -> Mask:
    return np.asarray(cv2.threshold(image, level, one, cv2.THRESH_BINARY)[1], np.uint8)


def _shrunk(image: Mask, size: tuple[int, int]) -> Mask:
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _dilated(image: Mask, side: int) -> Mask:
    return np.asarray(cv2.dilate(image, np.ones((side, side), np.uint8)), np.uint8)


def _eroded(image: Mask, side: int) -> Mask:
    return np.asarray(cv2.erode(image, np.ones((side, side), np.uint8)), np.uint8)


def background(value: NDArray[np.uint8]) -> int | None:
    """The background's colour: the commonest value of every second row and column, None if it is not common."""
    some = np.ascontiguousarray(value[::2, ::2])
    counts = np.bincount(some.ravel(), minlength=256)
    best = int(counts.argmax())
    return best if counts[best] >= BACKGROUND_SHARE * some.size else None


def _largest(mask: Mask, least: float) -> tuple[Mask | None, bool]:
    """The connected piece of the largest outline, and those of at least `least` of its area; whether others are big."""
    outlines = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    areas = [cv2.contourArea(outline) for outline in outlines]
    if not areas or max(areas) == 0:
        return None, False
    kept = [outline for outline, area in zip(outlines, areas, strict=True) if area >= least * max(areas)]
    solid = np.asarray(cv2.drawContours(np.zeros_like(mask), kept, -1, 1, cv2.FILLED), np.uint8)
    left_out = [area for area in areas if area < least * max(areas)]
    return solid & mask, bool(left_out) and max(left_out) >= DIVIDED * max(areas)


def _frame(
    allowed: NDArray[np.bool_] | None, scale: tuple[float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The edges of where echo may be, at which a sector is cut rather than ends."""
    h, w = size
    if allowed is None:
        return -0.5, -0.5, w - 0.5, h - 0.5
    x, y, width, height = cv2.boundingRect(allowed.view(np.uint8))
    if not width:
        return -0.5, -0.5, w - 0.5, h - 0.5
    edges: NDArray[Any] = np.array([x, y, x + width, y + height], float)
    x0, y0, x1, y1 = (edges / np.tile(scale, 2) - 0.5).tolist()
    return x0, y0, x1, y1
