"""The edges of a fitted sector once more, at full resolution, where the picture itself steps from screen to echo.

The coarse map takes for echo what is not flat. Lossy compression rings up to 8 pixels beyond an edge (16 in colour),
differently in every frame, and the brightest value over time adds that up: such a fit lies some pixels too far out. In
the mean over time the ringing is weak, and the step stands where it is. So profiles are taken across each edge,
averaged over short pieces of it, and the edge is fitted again to where they rise. It can only narrow the first fit.
Source: anonymization.md section 6, step 3 and "lossy JPEG rings".
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.deid.sector_fit import pairs
from ingest.deid.sector_shape import Axis, Curve, Float, Line, Outline, beyond_curve, beyond_line, carve

BEHIND, AHEAD = 4, 18  # pixels outwards and inwards of the fitted edge at which the step is looked for; ours
EVERY = 2.0  # pixels from one profile to the next
MOST, LEAST = 24, 5  # pieces of an edge, at most and at least
TOGETHER = 6  # profiles of a piece, at least
BESIDE = 4.0  # pixels: an edge counts where the mask is inside of it by so much, and not outside
FAINT = 2.0  # grey levels that are not told from a background; ours
RISE, PLATEAU = 0.4, 4  # the step is at this share of the highest of the next so many pixels; ours
RINGING = 0.1  # of the profile's highest value: what is lower may be ringing; ours
TRIPLED = 16  # points of an arc that are tried in triples, at most
NEAR = 0.8  # pixels within which a piece agrees with a new edge
AGREED, ASTRAY = 0.35, 0.25  # share of the pieces that must, and that may lie beyond it; ours
FLAT = 4.0  # times the picture's diagonal: an arc of a larger radius is fitted as a straight line
TOUCHED = 1.0  # pixels: what a drawn polygon touches counts as covered by it
BLOCK = 4  # rows that are looked at together; ours
DARK = 4  # blocks without a step, one after the other, that are dark tissue; fewer are not; ours
NARROW = 0.04  # of the picture's shorter side: rows at the top or bottom that are narrower are cut off; ours

Mask = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Where edges are looked for, upright: the picture, and what the first fit comes to in it."""

    away: Mask  # (H, W), how far the mean over time is from the background's colour
    mask: Mask  # (H, W), 0 and 1
    scale: tuple[float, float]  # x, y: picture pixels per map pixel

    @property
    def pixel(self) -> float:
        """A picture pixel in map pixels."""
        return 2 / (self.scale[0] + self.scale[1])

    def values(self, image: Mask, points: Float) -> NDArray[np.float32]:
        """The image at map points (..., 2), between pixels; 0 beyond its border."""
        where = ((points + 0.5) * self.scale - 0.5).astype(np.float32)
        source = image.astype(np.float32) if image.dtype != np.uint8 else image
        found = cv2.remap(source, where[..., 0], where[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return np.asarray(found, np.float32)


def tighten(outline: Outline, scene: Scene) -> None:
    """Take from the scene's mask what lies beyond the outline's edges as the picture shows them.

    An edge along which no step is seen takes nothing.
    """
    for line in (outline.left, outline.right):
        if line is not None:
            _carve_line(scene, _again_line(_line_steps(line, scene), line.normal, scene.pixel))
    for curve, inwards in ((outline.top, 1.0), (outline.bottom, -1.0)):
        if curve is not None:
            _tighten_curve(curve, outline.axis, scene, inwards)
    _limit(scene)
    _blunt(scene.mask)


def _tighten_curve(curve: Curve, axis: Axis, scene: Scene, inwards: float) -> None:
    """The same for a top (`inwards` is 1: down) or a bottom (-1)."""
    points = _steps(*_on_curve(curve, axis, scene, inwards), scene)
    if points is None:
        return
    widest = FLAT * float(np.hypot(*scene.mask.shape)) * scene.pixel
    line = _again_line(points, axis.down * inwards, scene.pixel)
    circle = None
    if line is None or curve.radius < widest:
        circle = _again_circle(axis.to_uv(points), inwards, NEAR * scene.pixel)
    if circle is None or circle[2] > widest:
        _carve_line(scene, line)
        return
    about = Axis(axis.to_xy(circle[None, :2])[0], axis.down)
    arc = Curve(0.0, float(circle[2]))
    _carve(scene, beyond_curve(arc, about, TOUCHED * scene.pixel, top=inwards > 0))


def _blunt(mask: Mask) -> None:
    """Cut off a tip above or below: where a mask is so narrow, nothing can be measured."""
    x, y, width, height = cv2.boundingRect(mask)
    part = mask[y : y + height, x : x + width]
    if not height:
        return
    spans = width - part.argmax(axis=1) - part[:, ::-1].argmax(axis=1)
    wide = np.flatnonzero(spans >= NARROW * min(mask.shape))
    if len(wide):
        mask[: y + wide[0]] = mask[y + wide[-1] + 1 :] = 0


def _carve_line(scene: Scene, line: Line | None) -> None:
    if line is not None:
        _carve(scene, beyond_line(line, TOUCHED * scene.pixel))


def _carve(scene: Scene, outside: Float) -> None:
    """Take a polygon from the mask, unless that is more than a wrong edge could have added."""
    before = scene.mask.copy()
    carve(scene.mask, outside, scene.scale)
    gone = cv2.countNonZero(before) - cv2.countNonZero(scene.mask)
    if gone > AHEAD * max(cv2.boundingRect(before)[2:]):
        scene.mask[:] = before


def _line_steps(line: Line, scene: Scene) -> Float | None:
    """`_steps` along a straight edge."""
    along = np.array([-line.normal[1], line.normal[0]])
    reach = float(np.hypot(*scene.mask.shape)) / 2 * scene.pixel
    middle = (np.array(scene.mask.shape[::-1]) / 2) * scene.pixel
    foot = middle - line.normal * float(line.distance(middle[None])[0])
    places = foot + np.arange(-reach, reach, EVERY * scene.pixel)[:, None] * along
    return _steps(places, np.broadcast_to(line.normal, places.shape), scene)


def _on_curve(curve: Curve, axis: Axis, scene: Scene, inwards: float) -> tuple[Float, Float]:
    """Map points at equal steps across on an arc, and the directions inwards from there."""
    reach = min(curve.radius * 0.98, float(np.hypot(*scene.mask.shape)) * scene.pixel)
    v: Float = np.arange(-reach, reach, EVERY * scene.pixel)
    u = curve.centre + np.sqrt(curve.radius**2 - v**2)
    away = np.stack([u - curve.centre, v], axis=1) / curve.radius
    origin = axis.to_xy(np.zeros((1, 2)))
    return axis.to_xy(np.stack([u, v], axis=1)), (axis.to_xy(away) - origin) * inwards


def _steps(places: Float, inwards: Float, scene: Scene) -> Float | None:
    """(n, 2) map points at which the profiles across an edge rise; None if there are too few."""
    away = BESIDE * scene.pixel * inwards
    ends = scene.values(scene.mask, np.stack([places + away, places - away]))
    own = (ends[0] > 0) & (ends[1] == 0)
    places, inwards = places[own], inwards[own]
    pieces = min(MOST, len(places) // TOGETHER)
    if pieces < LEAST:
        return None
    offsets = np.arange(-BEHIND, AHEAD + 1)
    lines = places[:, None] + (offsets * scene.pixel)[:, None] * inwards[:, None]
    profiles = scene.values(scene.away, lines)
    starts = np.arange(pieces) * len(places) // pieces
    sizes = np.diff(np.append(starts, len(places)))
    rises = _rises(np.add.reduceat(profiles, starts, axis=0) / sizes[:, None].astype(np.float32))
    seen = rises > 0
    at = (starts + sizes // 2)[seen]
    found = places[at] + (rises[seen, None] - BEHIND) * scene.pixel * inwards[at]
    return found if len(found) >= LEAST else None


def _rises(profiles: NDArray[np.floating[Any]]) -> Float:
    """Where each profile (row) first steps up, in pixels from its outer end; 0: it begins high, NaN: it stays low."""
    padded = np.concatenate([profiles, np.repeat(profiles[:, -1:], PLATEAU, axis=1)], axis=1)
    high = np.lib.stride_tricks.sliding_window_view(padded, PLATEAU + 1, axis=1).max(axis=2) * RISE
    up = (profiles >= high) & (profiles >= np.maximum(FAINT, RINGING * profiles.max(axis=1))[:, None])
    at = up.argmax(axis=1)
    row, before = np.arange(len(profiles)), np.maximum(at - 1, 0)
    step = np.maximum(profiles[row, at] - profiles[row, before], 1e-6)
    back = np.clip((profiles[row, at] - high[row, at]) / step, 0, 1)
    return np.where(at > 0, at - back, np.where(up[:, 0], 0.0, np.nan))


def _limit(scene: Scene) -> None:
    """Cut corners: the convex hull of where the rows, and the columns, of the mask step from screen to echo.

    A sector that was cut by a rectangle has corners that no edge of the outline follows. Where a row shows no step its
    end stays, so what is dark is lost only where nothing around it is brighter.
    """
    x, y, width, height = cv2.boundingRect(scene.mask)
    here = slice(y, y + height), slice(x, x + width)
    around = np.pad(scene.away, BEHIND)[y : y + height + 2 * BEHIND, x : x + width + 2 * BEHIND]
    mask = np.ascontiguousarray(scene.mask[here])
    for _ in range(2):  # what the columns take shows the rows' ends better
        for turned in (False, True):
            if min(mask.shape) < 2 * AHEAD or not mask.any():
                return
            ends = _limits(np.ascontiguousarray(mask.T), around.T)[:, ::-1] if turned else _limits(mask, around)
            canvas = np.zeros_like(mask)
            if len(ends) >= LEAST:
                cv2.fillConvexPoly(canvas, cv2.convexHull(np.round(ends * 16).astype(np.int32)), 1, shift=4)
                mask &= canvas
    scene.mask[here] = mask


def _limits(mask: Mask, around: Mask) -> Float:
    """(n, 2) x, y of where rows step up, from their ends inwards. `around` has `BEHIND` pixels more on every side."""
    rows = np.flatnonzero(mask.any(axis=1))[:: int(EVERY)]
    part = mask[rows]
    first, last = part.argmax(axis=1), part.shape[1] - 1 - part[:, ::-1].argmax(axis=1)
    offsets = np.arange(-BEHIND, AHEAD + 1)
    columns = np.concatenate([first[:, None] + offsets, last[:, None] - offsets]) + BEHIND
    columns = np.clip(columns, 0, around.shape[1] - 1)
    profiles = around[np.tile(rows + BEHIND, 2)[:, None], columns].astype(np.float32)
    starts = np.arange(0, len(rows), BLOCK)
    lasts = np.append(starts[1:], len(rows)) - 1
    sums = np.add.reduceat(profiles, np.concatenate([starts, starts + len(rows)]), axis=0)
    rises = _rises(sums / np.tile(lasts - starts + 1, 2)[:, None].astype(np.float32)).reshape(2, -1)
    # A few blocks without a step are ringing beside a corner, many are dark tissue
    dark = cv2.morphologyEx(np.isnan(rises).astype(np.uint8), cv2.MORPH_OPEN, np.ones((1, DARK), np.uint8)) > 0
    moved = np.maximum(np.nan_to_num(rises, nan=0.0) - BEHIND, 0.0)
    ends = []
    for at, below in ((starts, 0.0), (lasts, EVERY - 1)):
        for edge, inwards, side in ((first, 1, 0), (last, -1, 1)):
            points = np.stack([edge[at] + inwards * moved[side], rows[at] + below], axis=1)
            ends.append(points[~np.isnan(rises[side]) | dark[side]])
    return np.concatenate(ends)


def _agreeing(inside: Float, near: float) -> int | None:
    """The candidate edge (column) with which enough of the points (rows) agree, and beyond which few lie."""
    on = np.count_nonzero(abs(inside) <= near, axis=0)
    beyond = np.count_nonzero(inside < -near, axis=0)
    score = np.where((on >= max(LEAST, AGREED * len(inside))) & (beyond <= ASTRAY * len(inside)), on - 0.5 * beyond, -1)
    best = int(score.argmax())
    return best if score[best] > 0 else None


def _again_line(points: Float | None, normal: Float, pixel: float) -> Line | None:
    """The straight edge on which most of the points lie."""
    if points is None:
        return None
    near = NEAR * pixel
    a, b = pairs(points)
    normals = np.stack([(b - a)[:, 1], (a - b)[:, 0]], axis=1)
    normals *= (np.sign(normals @ normal) / np.maximum(np.hypot(normals[:, 0], normals[:, 1]), 1e-9))[:, None]
    offsets = np.einsum("ij,ij->i", normals, a)
    best = _agreeing(points @ normals.T - offsets, near)
    if best is None:
        return None
    on = points[abs(points @ normals[best] - offsets[best]) <= near]
    centre = on.mean(axis=0)
    found = np.linalg.svd(on - centre, full_matrices=False)[2][1]
    found = found if found @ normal > 0 else -found
    return Line(found, float(found @ centre))


def _again_circle(uv: Float, inwards: float, near: float) -> Float | None:
    """(3,) u, v of the centre and the radius: the arc on which most points lie. It need not be about the axis.

    Where one side of a sector is black, the axis of what is seen is not the sector's.
    """
    some = uv[:: -(-len(uv) // TRIPLED)]
    i, j, k = np.array(list(combinations(range(len(some)), 3))).T
    ab, ac = some[j] - some[i], some[k] - some[i]
    twice = 2 * (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])
    twice = np.where(abs(twice) < 1e-6, 1e-6, twice)
    bb, cc = (ab**2).sum(axis=1), (ac**2).sum(axis=1)
    away = np.stack([ac[:, 1] * bb - ab[:, 1] * cc, ab[:, 0] * cc - ac[:, 0] * bb], axis=1) / twice[:, None]
    above = away[:, 0] < 0
    if not above.any():
        return None
    centres, radii = (some[i] + away)[above], np.hypot(away[above, 0], away[above, 1])
    distance = np.hypot(uv[:, :1] - centres[:, 0], uv[:, 1:] - centres[:, 1])
    best = _agreeing(inwards * (distance - radii), near)
    if best is None:
        return None
    on = uv[abs(distance[:, best] - radii[best]) <= near]
    u, v = centres[best]
    return np.array([u, v, np.hypot(on[:, 0] - u, on[:, 1] - v).mean()])
