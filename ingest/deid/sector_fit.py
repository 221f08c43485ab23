"""Robust edges of a sector from its ragged piece of echo.

Every edge is an outer one: of the boundary points, dark tissue leaves some inside the true edge, text that touches it
a few outside. So a candidate edge wins by how many points it runs through, less how many it leaves outside; points
inside cost nothing. Candidates are pairs of points taken at fixed steps: nothing is random.
"""

import numpy as np
from numpy.typing import NDArray

from ingest.deid.sector_shape import Axis, Curve, Float, Line, Outline, bisector

NEAR = 1.3  # map pixels within which a point lies on an edge
CUT = 2.0  # map pixels from the frame within which the edge is the frame's, not the sector's
OUTSIDE_COST = 1.5  # of a point outside an edge, in points on it
UPRIGHT = 0.9  # share of the best side's score from which a vertical one is preferred; ours
STEEPEST = 78.0  # degrees from the vertical that a side may have; ours
POINTS, PAIRS = 160, 26  # at most so many points are scored, and paired
LEAST_SUPPORT = 0.22  # share of an edge's points that must lie on it
LEAST_POINTS = 10
STRAIGHT = 1e5  # map pixels: the radius of a straight line

Frame = tuple[float, float, float, float]


def fit_outline(piece: NDArray[np.uint8], frame: Frame) -> Outline | None:
    """The outline around `piece` (h, w; 0 and 1), which stands upright: the probe is at the top.

    Args:
        frame: x0, y0, x1, y1 at which the sector may be cut.

    Returns:
        None if an edge is neither found nor cut by the frame.
    """
    body = piece.view(np.bool_)
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    if len(rows) < LEAST_POINTS or len(columns) < LEAST_POINTS:
        return None
    height, width = body.shape
    first = body.argmax(axis=1)[rows] - 0.5
    last = width - body[:, ::-1].argmax(axis=1)[rows] - 0.5
    top = body.argmax(axis=0)[columns] - 0.5
    bottom = height - body[::-1].argmax(axis=0)[columns] - 0.5
    middle = np.array([np.median(columns), np.median(rows)], float)
    upper = np.stack([columns, top], axis=1)
    lower = np.stack([columns, bottom], axis=1)
    free = upper[upper[:, 1] > frame[1] + CUT]
    left, left_known = _side(np.stack([first, rows], axis=1), free[free[:, 0] <= middle[0]], frame[0], 1.0)
    right, right_known = _side(np.stack([last, rows], axis=1), free[free[:, 0] >= middle[0]], frame[2], -1.0)
    if not (left_known and right_known):
        return None
    if left is None or right is None:
        axis, apex = Axis(np.array([(frame[0] + frame[2]) / 2, 0.0]), np.array([0.0, 1.0])), None
    else:
        axis, apex = bisector(left, right, middle)
    sides = [line for line in (left, right) if line is not None]
    low = _curve(lower[lower[:, 1] < frame[3] - CUT], len(columns), sides, axis, apex is not None)
    high = _curve(free, len(columns), sides, axis, None)
    return Outline(left, right, axis, high, low)


def _side(edge: Float, upper: Float, border: float, inwards: float) -> tuple[Line | None, bool]:
    """A straight side, or None where the frame cuts it; and whether it is one of the two.

    Args:
        edge: (n, 2), the outermost point of each row.
        upper: (m, 2), the uppermost point of each column on this side: a wide sector's side shows better there.
        border: the frame's x on this side.
        inwards: 1 for the left side, -1 for the right.
    """
    cut = abs(edge[:, 0] - border) <= CUT
    points = np.concatenate([edge[~cut], upper])
    line = _best_line(points, inwards) if np.count_nonzero(~cut) >= LEAST_POINTS else None
    if line is not None:
        on = abs(line.distance(edge[~cut])) <= NEAR
        far = abs(line.distance(points)) <= NEAR
        enough = np.count_nonzero(far) >= max(LEAST_POINTS, LEAST_SUPPORT * min(len(points), len(edge)))
        if enough and (np.count_nonzero(on) >= 5):
            return line, True
    return None, bool(np.count_nonzero(cut) >= 0.35 * len(edge))


def _best_line(points: Float, inwards: float) -> Line | None:
    few = points[:: -(-len(points) // POINTS)]
    a, b = pairs(few)
    along = b - a
    along = along * np.where(along[:, 1:] < 0, -1.0, 1.0)  # downwards
    length = np.hypot(along[:, 0], along[:, 1])
    steep = (length > 6) & (abs(along[:, 0]) <= np.tan(np.radians(STEEPEST)) * along[:, 1])
    if not steep.any():
        return None
    along, a = along[steep] / length[steep, None], a[steep]
    normals = np.stack([along[:, 1], -along[:, 0]], axis=1) * inwards
    offsets = np.einsum("ij,ij->i", normals, a)
    scores = _scores(few @ normals.T - offsets)
    best = int(scores.argmax())
    upright = inwards * few[:: max(1, len(few) // 60), 0]  # most sides of rectangles are exactly vertical
    straight = _scores(inwards * few[:, :1] - upright)
    if straight.max() >= UPRIGHT * scores[best]:
        offset = float(upright[straight.argmax()])
        on = inwards * points[:, 0]
        return Line(np.array([inwards, 0.0]), float(np.median(on[abs(on - offset) <= NEAR])))
    normal, offset = normals[best], float(offsets[best])
    for near in (2 * NEAR, NEAR, 0.8 * NEAR):  # least squares on what lies near, then nearer
        on = points[abs(points @ normal - offset) <= near]
        if len(on) < LEAST_POINTS:
            return Line(normal, offset)
        centre = on.mean(axis=0)
        refined = np.linalg.svd(on - centre, full_matrices=False)[2][1]
        normal = refined if refined @ normal > 0 else -refined
        offset = float(normal @ centre)
    return Line(normal, offset)


def _curve(points: Float, columns: int, sides: list[Line], axis: Axis, fan: bool | None) -> Curve | None:
    """Top or bottom: an arc about a point of the axis; None if the frame cuts it or the sides meet.

    Args:
        points: (n, 2), the extreme point of each column that is not cut by the frame.
        columns: how many columns the piece has.
        fan: None for the top; for the bottom, whether the axis begins where the sides meet.
    """
    outwards = -1.0 if fan is None else 1.0
    for side in sides:
        points = points[abs(side.distance(points)) > 2 * NEAR]
    if len(points) < max(LEAST_POINTS, 0.12 * columns):
        return None
    uv = axis.to_uv(points)
    few = uv[:: -(-len(uv) // POINTS)]
    if not sides or len(sides) == 1:
        return _level(few, outwards)
    a, b = pairs(few)
    centres, radii = arcs(a, b)
    away = np.hypot(few[:, :1] - centres, few[:, 1:]) * np.sign(radii) - radii
    scores = _scores(-outwards * away)
    best = int(scores.argmax())
    curve = _refined(Curve(float(centres[best]), float(radii[best])), uv)
    on = np.count_nonzero(abs(curve.beyond(uv)) <= NEAR)
    if on >= LEAST_SUPPORT * len(uv):
        return curve
    if fan:  # the echo fades out: the end of a beam is as far from where the beams meet as any other's
        return Curve(0.0, float(np.quantile(np.hypot(few[:, 0], few[:, 1]), 0.95)), firm=False)
    return _level(few, outwards)


def _level(uv: Float, outwards: float) -> Curve:
    """Straight across where nothing better fits: at the extreme of nine tenths of the points."""
    u = float(np.quantile(uv[:, 0], 0.9 if outwards > 0 else 0.1))
    return Curve(u - STRAIGHT, STRAIGHT, firm=False)


def arcs(a: Float, b: Float) -> tuple[Float, Float]:
    """Centre (u) and radius of the arc about a point of the axis through two points each; straight if it is hollow."""
    gap = a[:, 0] - b[:, 0]
    gap = np.where(abs(gap) < 1e-9, 1e-9, gap)
    centres = ((a**2).sum(axis=1) - (b**2).sum(axis=1)) / (2 * gap)
    mean = (a[:, 0] + b[:, 0]) / 2
    centres = np.where((centres > mean) | (centres < mean - STRAIGHT), mean - STRAIGHT, centres)
    return centres, np.hypot(a[:, 0] - centres, a[:, 1])


def _refined(curve: Curve, uv: Float) -> Curve:
    """Least squares on the points near the arc: u^2 + v^2 = 2 c u + (r^2 - c^2) is linear in c and r^2 - c^2."""
    for near in (2 * NEAR, NEAR):
        on = uv[abs(curve.beyond(uv)) <= near]
        if len(on) < LEAST_POINTS:
            return curve
        if curve.radius > 0.2 * STRAIGHT:
            u = float(on[:, 0].mean())
            curve = Curve(u - STRAIGHT, STRAIGHT)
            continue
        middle = on[:, 0].mean()
        system = np.stack([2 * (on[:, 0] - middle), np.ones(len(on))], axis=1)
        solution = np.linalg.lstsq(system, ((on - [middle, 0.0]) ** 2).sum(axis=1), rcond=None)[0]
        centre, square = float(solution[0]), float(solution[1] + solution[0] ** 2)
        if square <= 0 or centre > 0:
            return curve
        curve = Curve(centre + middle, float(np.sqrt(square)))
    return curve


def pairs(points: Float) -> tuple[Float, Float]:
    """All pairs of some points taken at equal steps."""
    some = points[:: -(-len(points) // PAIRS)]
    i, j = np.triu_indices(len(some), 1)
    return some[i], some[j]


def _scores(inside: Float) -> Float:
    """Of each candidate (columns), from how far inside of it each point (rows) lies."""
    on = np.count_nonzero(abs(inside) <= NEAR, axis=0)
    return on - OUTSIDE_COST * np.count_nonzero(inside < -NEAR, axis=0)
