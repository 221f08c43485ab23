"""The scan area that the pixels show: candidate B. Read `fit_sector` first.

The largest solid piece of echo (`sector_echo`) gets robust edges (`sector_fit`) of one family of outlines
(`sector_shape`). The outline is believed only if it explains the piece, and, where no header vouches for the place,
only if its edges are seen: an outline that is merely the picture's border shows nothing.
Source: anonymization.md section 6, step 3. The corner geometry (four corners, or three for a phased array) is the idea
of SlicerUltrasound.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.deid.sector_echo import Echo, Looking, Mask, Pixels, background, find_echo, look_at
from ingest.deid.sector_edge import TOUCHED, Scene, tighten
from ingest.deid.sector_fit import fit_outline
from ingest.deid.sector_shape import Outline, beyond, carve, draw
from ingest.deid.summary import Summary
from ingest.deid.templates import Kind

LEAST_SCORE = 0.9  # intersection over union of outline and filled piece
LEAST_FILLED = 0.55  # solidity: share of the outline that is echo itself, before any filling; ours
# Strokes of high contrast (text, or a bright interface in the dark) that may lie in the outline's open bays; ours
STRAY, STRAY_VOUCHED = 6, 0.01  # map pixels; with a header's word, share of the area
COVERED: dict[Kind, float] = {"sector": 0.65, "trapezoid": 0.8, "rectangle": 0.8}  # least share of the rim; ours
RIM = 13  # map pixels: the rim is half as wide
LEAST_SHARE = 0.03  # of the picture
PARALLEL = 5.0  # degrees between sides that count as parallel
SKEWED = 8.0  # degrees by which the sides of a rectangle or trapezoid may lean differently; ours
# Degrees from the vertical that a side may have without a header's word: beside the flat sides of an endocavity probe's
# cropped picture stand words, and the fit has been seen to take them in (ours)
WIDEST = 60.0
CONCENTRIC = 0.1  # of an arc's radius that its centre may lie from where the sides meet; ours
BENT = 3.0  # an arc of a radius below so many times the outline's size is one; flatter is straight
STEADY = 0.92  # share of the clip's reach that every quarter of it must have; ours
LIT = 1  # grey levels by which a lit cell's mean differs from the background, at least
LEAST_SOFT = 0.45  # share of the piece's texture that must be weaker than a stroke of text; ours
RING = (11, 5)  # pixels: sides by which the mask grows to the ring around it
RINGING = (1.0, 20.0), (0.0, 0.0)  # grey levels from the background's of what rings, and of the background; ours
LEAST_RINGING, LEAST_FLAT = 0.35, 0.1  # of the ring, in a lossy picture; ours
LOOKS = (
    Looking(3, 3),
    Looking(2, 5),
    Looking(1, 7),
    Looking(6, 7),
    Looking(4, 13),
    Looking(1, 9, 50),
)  # from plain to hard; ours


@dataclass(frozen=True, slots=True, eq=False)
class Sector:
    """A believed fit. `mask` (H, W) bool is the outline's inside, not eroded."""

    mask: NDArray[np.bool_]
    score: float  # intersection over union, 0.9 to 1
    kind: Kind
    lossy: bool  # what surrounds it is no flat colour: compression rings there


def fit_sector(summary: Summary, allowed: NDArray[np.bool_] | None, vouched: bool) -> Sector | None:
    """The sector in the pixels, or None if no outline explains them.

    Args:
        summary: of the item's frames.
        allowed: (H, W), where scan area may be; None: anywhere.
        vouched: `allowed` comes from a believable header or a reviewed template, so a sector may fill it.
    """
    pixels = look_at(summary)
    looks = [(look, False) for look in LOOKS]
    looks += [(look, True) for look in LOOKS[:3]] if vouched else []
    for look, several in looks:
        echo = find_echo(pixels, look, allowed, several=several)
        if echo is None or echo.soft < LEAST_SOFT or (echo.divided and not several):
            continue
        for flipped in _orientations(echo.piece):
            sector = _fit(echo, pixels, flipped, vouched)
            if sector is not None:
                return sector
    return None


def _orientations(piece: Mask) -> tuple[bool, ...]:
    """Whether to turn the piece upside down: a sector is wider away from the probe."""
    widths = np.count_nonzero(piece, axis=1)
    widths = widths[widths > 0]
    half = len(widths) // 2
    upper, lower = float(widths[:half].sum()) + 1, float(widths[len(widths) - half :].sum()) + 1
    if upper > 1.25 * lower:
        return True, False
    return (False, True) if upper > 0.95 * lower else (False,)


def _fit(echo: Echo, pixels: Pixels, flipped: bool, vouched: bool) -> Sector | None:
    """The sector around one piece of echo, the way up that is given; None if it is not believed."""
    piece, frame = _turned(echo.piece, flipped), echo.frame
    size = (piece.shape[0], piece.shape[1])
    if flipped:
        frame = (frame[0], len(piece) - 1 - frame[3], frame[2], len(piece) - 1 - frame[1])
    outline = fit_outline(piece, frame)
    if outline is None:
        return None
    inside = draw(outline, size, (1.0, 1.0))
    body = _opened(piece & inside, 5)
    inside &= _box(body)
    kind = _kind(outline, inside)
    if kind is None or not (vouched or _seen(outline, kind)):
        return None
    kept = inside & _hull(body, size, (1.0, 1.0))
    score = _score(piece, kept if vouched else inside)
    if score < LEAST_SCORE:
        return None
    most = STRAY_VOUCHED * cv2.countNonZero(kept) if vouched else STRAY
    if _foreign(kept, piece, _turned(echo.strays, flipped)) > most:
        return None
    if not vouched and _covered(kept, _solid(piece)) < COVERED[kind]:
        return None
    shape = pixels.summary.shape
    mask = _hull(body, shape, echo.scale)
    for outside in beyond(outline, TOUCHED / echo.scale[0]):
        carve(mask, outside, echo.scale)
    away = np.asarray(cv2.absdiff(pixels.summary.mean, np.array(float(pixels.colour or 0))), np.uint8)
    tighten(outline, Scene(_turned(away, flipped), mask, echo.scale))
    mask = _turned(mask, flipped)
    return Sector(mask.view(np.bool_), score, kind, _lossy(pixels, mask))


def _lossy(pixels: Pixels, mask: Mask) -> bool:
    """Whether the brightest values in a ring around the mask are near the background's colour, but not it."""
    if pixels.colour is None:
        return False
    outer, inner = (np.asarray(cv2.dilate(mask, np.ones((side, side), np.uint8)), np.uint8) for side in RING)
    away = cv2.absdiff(pixels.summary.peak, np.array(float(pixels.colour)))
    weak, flat = (cv2.mean(cv2.inRange(away, np.array(a), np.array(b)), mask=outer - inner)[0] for a, b in RINGING)
    return weak > LEAST_RINGING * 255 and flat > LEAST_FLAT * 255


def _turned(mask: Mask, flipped: bool) -> Mask:
    return np.asarray(cv2.flip(mask, 0), np.uint8) if flipped else mask


def _opened(mask: Mask, side: int) -> Mask:
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((side, side), np.uint8)), np.uint8)


def _box(body: Mask) -> Mask:
    """The rectangle around the body: a sector may be cut by one, well inside the picture."""
    box = np.zeros_like(body)
    x, y, width, height = cv2.boundingRect(body)
    box[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1] = 1
    return box


def _hull(body: Mask, shape: tuple[int, int], scale: tuple[float, float]) -> Mask:
    """The convex hull of the body in the picture, 1 map pixel wider: beyond it nothing was shown to be echo."""
    body = np.asarray(cv2.dilate(body, np.ones((3, 3), np.uint8)), np.uint8)
    rows = np.flatnonzero(body.any(axis=1))
    first, last = body.argmax(axis=1)[rows], body.shape[1] - 1 - body[:, ::-1].argmax(axis=1)[rows]
    edge = np.concatenate([np.stack([first - 0.5, rows], 1), np.stack([last + 0.5, rows], 1)])
    half = np.array([0.0, 0.5])
    edge = np.concatenate([edge - half, edge + half])
    points = np.round(((edge + 0.5) * scale - 0.5) * 16).astype(np.int32)
    canvas = np.zeros(shape, np.uint8)
    cv2.fillConvexPoly(canvas, cv2.convexHull(points), 1, shift=4)
    return canvas


def _solid(piece: Mask) -> Mask:
    """The piece with what it encloses.

    What is enclosed by echo lies in the scan area for sure (and the text check looks there); what stands in the dark
    between the piece and its outline, in a bay of the piece, may just as well be the screen's.
    """
    outlines = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    return np.asarray(cv2.drawContours(np.zeros_like(piece), outlines, -1, 1, cv2.FILLED), np.uint8)


def _foreign(kept: Mask, piece: Mask, strays: Mask) -> int:
    """Map pixels of strokes in the open bays of what would be kept."""
    return int(cv2.countNonZero(strays & kept & (1 - _solid(piece))))


def _covered(kept: Mask, solid: Mask) -> float:
    """Share of the rim of what would be kept that echo covers: text that is let in comes in at the rim."""
    inner = np.asarray(cv2.erode(kept, np.ones((RIM, RIM), np.uint8), borderValue=0), np.uint8)
    rim = kept & (1 - inner)
    return int(cv2.countNonZero(rim & solid)) / max(1, int(cv2.countNonZero(rim)))


def _score(piece: Mask, inside: Mask) -> float:
    """Intersection over union of outline and piece; 0 where solidity speaks against it."""
    area = int(cv2.countNonZero(inside))
    if area < LEAST_SHARE * inside.size:
        return 0.0
    if cv2.countNonZero(piece & inside) < LEAST_FILLED * area:
        return 0.0
    filled = _filled(piece)
    both = int(cv2.countNonZero(filled & inside))
    return both / (int(cv2.countNonZero(filled)) + area - both)


def _filled(piece: Mask) -> Mask:
    """Holes filled, and shadows that are open to the bottom: all between a row's ends that is below a column's top."""
    body = piece.view(np.bool_)
    height, width = body.shape
    first = body.argmax(axis=1).astype(np.int16)
    last = (width - 1 - body[:, ::-1].argmax(axis=1)).astype(np.int16)
    first[~body.any(axis=1)] = width  # an empty row has no between
    top = body.argmax(axis=0).astype(np.int16)
    top[~body.any(axis=0)] = height
    x, y = np.arange(width, dtype=np.int16), np.arange(height, dtype=np.int16)[:, None]
    filled = (x >= first[:, None]) & (x <= last[:, None]) & (y >= top)
    return filled.view(np.uint8)


def _kind(outline: Outline, inside: Mask) -> Kind | None:
    """What the outline is; None if it is like nothing a scanner draws."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return None
    size = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    bent = any(curve is not None and curve.radius < BENT * size for curve in (outline.top, outline.bottom))
    if outline.left is None or outline.right is None:
        lone = outline.left or outline.right
        return "sector" if bent or (lone is not None and abs(lone.lean) >= PARALLEL) else "rectangle"
    left, right = -outline.left.lean, outline.right.lean  # outwards as they go down
    if left + right < -2 * PARALLEL:
        return None
    if left + right < 2 * PARALLEL:
        return None if bent or abs(left - right) > SKEWED else "rectangle"
    if bent or outline.bottom is None:
        return "sector"
    return "trapezoid" if abs(left - right) <= 2 * SKEWED else None


def _seen(outline: Outline, kind: Kind) -> bool:
    """Enough edges are the sector's own, rather than the picture's border, and symmetric, or about one centre."""
    sides = [line for line in (outline.left, outline.right) if line is not None]
    ends = [curve for curve in (outline.top, outline.bottom) if curve is not None and curve.firm]
    if kind == "rectangle":
        return len(sides) + len(ends) >= 2
    about_apex = any(curve.radius < 1e4 and abs(curve.centre) <= CONCENTRIC * curve.radius for curve in ends)
    if len(sides) < 2 or max(abs(side.lean) for side in sides) > WIDEST:
        return False
    return bool(about_apex or abs(sides[0].lean + sides[1].lean) <= SKEWED)


def steady(summary: Summary, mask: NDArray[np.bool_]) -> bool:
    """Whether the echo reaches as far in every quarter of the clip as in all of it, as far as `Summary.cells` tell.

    What is compared is the convex hull of the lit cells inside `mask`, so dark tissue that moves does not count. A
    depth or layout that changes half-way does, and so does a probe that is lifted (ours: quarantine that too).

    Args:
        mask: (H, W), the fitted sector.
    """
    parts = min(4, summary.frames // 2)
    if parts < 2:
        return True
    size = (summary.cells.shape[2], summary.cells.shape[1])
    inside = cv2.resize(mask.view(np.uint8) * np.uint8(255), size, interpolation=cv2.INTER_AREA) > 127
    colour = np.int16(background(summary.peak) or 0)
    away = abs(summary.cells.astype(np.int16) - colour)
    lit = [(part.max(axis=0) > LIT) & inside for part in np.array_split(away, parts)]
    whole = _reach(np.logical_or.reduce(lit))
    return all(_reach(part) >= STEADY * whole for part in lit)


def _reach(lit: NDArray[np.bool_]) -> float:
    """Area of the convex hull of what is solid, in cells."""
    points = cv2.findNonZero(_opened(lit.view(np.uint8), 2))
    return 0.0 if points is None else float(cv2.contourArea(cv2.convexHull(points)))
