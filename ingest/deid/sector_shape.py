"""The outline of a sector: two straight sides, and a top and a bottom that are arcs or straight.

One family covers what scanners draw: a curved array (two arcs), a phased array (its top is a point), a rectangle, a
steered trapezoid, and any of them cut by the picture. An edge that is cut is None. Everything is drawn as polygons, at
whatever scale, by the same few lines.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

_FAR = 1e4  # pixels: beyond any picture's border
_SHIFT = 4  # sub-pixel bits of the drawn polygons


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """Points p with normal . p >= offset are inside; the normal has length 1 and points inwards."""

    normal: Float  # (2,): x, y
    offset: float

    def distance(self, points: Float) -> Float:
        """How far inside of the line each of `points` (n, 2) lies."""
        return points @ self.normal - self.offset

    @property
    def lean(self) -> float:
        """Degrees from the vertical; positive where the line runs to the right as it goes down."""
        along = np.array([-self.normal[1], self.normal[0]])
        along = along if along[1] > 0 else -along
        return float(np.degrees(np.arctan2(along[0], along[1])))


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """The sector's own frame: u runs down along the bisector of its sides, v across."""

    origin: Float  # (2,)
    down: Float  # (2,), of length 1

    def to_uv(self, points: Float) -> Float:
        """(n, 2) picture points as (u, v)."""
        away = points - self.origin
        return np.stack([away @ self.down, away @ np.array([self.down[1], -self.down[0]])], axis=1)

    def to_xy(self, points: Float) -> Float:
        """The inverse of `to_uv`."""
        across = np.array([self.down[1], -self.down[0]])
        return self.origin + points[:, :1] * self.down + points[:, 1:] * across


@dataclass(frozen=True, slots=True)
class Curve:
    """An arc about the point (centre, 0) of the axis; a straight line across is an arc of very large radius."""

    centre: float  # u
    radius: float
    firm: bool = True  # enough points lie on it; else it is only how far the echo reaches

    def beyond(self, points: Float) -> Float:
        """How far below the arc each of `points` (n, 2: u, v) lies."""
        away = np.hypot(points[:, 0] - self.centre, points[:, 1])
        return away - self.radius


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What was fitted, in map pixels of the upright picture."""

    left: Line | None
    right: Line | None
    axis: Axis
    top: Curve | None
    bottom: Curve | None


def draw(outline: Outline, shape: tuple[int, int], scale: tuple[float, float]) -> NDArray[np.uint8]:
    """The outline's inside as 0 and 1, (H, W) uint8, at `scale` picture pixels per map pixel.

    Args:
        outline: fitted to a map.
        shape: (H, W) of the result.
        scale: x, y.
    """
    mask = np.ones(shape, np.uint8)
    for polygon in _polygons(outline):
        points = (polygon + 0.5) * scale - 0.5
        canvas = np.zeros(shape, np.uint8)
        cv2.fillPoly(canvas, [np.round(points * (1 << _SHIFT)).astype(np.int32)], 1, shift=_SHIFT)
        mask &= canvas
    return mask


def carve(mask: NDArray[np.uint8], outside: Float, scale: tuple[float, float]) -> None:
    """Set to 0 what a polygon (n, 2) of map points covers or touches of a mask at `scale` picture pixels per point."""
    points = (outside + 0.5) * scale - 0.5
    cv2.fillPoly(mask, [np.round(points * (1 << _SHIFT)).astype(np.int32)], 0, shift=_SHIFT)


def beyond_line(line: Line, slack: float) -> Float:
    """A polygon of what lies more than `slack` outside of a side."""
    return _half_plane(Line(-line.normal, slack - line.offset))


def beyond_curve(curve: Curve, axis: Axis, slack: float, *, top: bool) -> Float:
    """A polygon of what lies more than `slack` above a top, or below a bottom."""
    radius = max(curve.radius + (-slack if top else slack), slack)
    return axis.to_xy(_side_of(Curve(curve.centre, radius), below=not top))


def beyond(outline: Outline, slack: float) -> list[Float]:
    """Polygons, in map pixels, of what lies more than `slack` beyond each edge."""
    found = [beyond_line(line, slack) for line in (outline.left, outline.right) if line is not None]
    if outline.bottom is not None:
        found.append(beyond_curve(outline.bottom, outline.axis, slack, top=False))
    if outline.top is not None:
        found.append(beyond_curve(outline.top, outline.axis, slack, top=True))
    return found


def _polygons(outline: Outline) -> list[Float]:
    """Polygons, in map pixels, whose intersection is the outline's inside."""
    found = [_half_plane(line) for line in (outline.left, outline.right) if line is not None]
    if outline.bottom is not None:
        found.append(outline.axis.to_xy(_side_of(outline.bottom, below=False)))
    if outline.top is not None:
        found.append(outline.axis.to_xy(_side_of(outline.top, below=True)))
    return found


def _half_plane(line: Line) -> Float:
    along = np.array([-line.normal[1], line.normal[0]])
    foot = line.normal * line.offset
    far = line.normal * _FAR
    return np.stack([foot - along * _FAR, foot + along * _FAR, foot + along * _FAR + far, foot - along * _FAR + far])


def _side_of(curve: Curve, *, below: bool) -> Float:
    """(n, 2) u, v: what lies above the arc, or below it. Above a real arc also means within its width."""
    reach = min(curve.radius, _FAR)
    v: Float = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 181)) * reach
    sag = np.sqrt(np.maximum(curve.radius**2 - v**2, 0.0))
    u = curve.centre + sag
    arc = np.stack([u, v], axis=1)
    if not below:
        ends: list[list[float]] = [[-_FAR, reach], [-_FAR, -reach]]
    else:
        ends = [[u[-1], _FAR], [_FAR, _FAR], [_FAR, -_FAR], [u[0], -_FAR]]
    return np.concatenate([arc, np.array(ends)])


def bisector(left: Line, right: Line, middle: Float) -> tuple[Axis, Float | None]:
    """The axis between two sides, and the point (2,) where they meet; None if they are parallel within 2 degrees.

    Args:
        middle: (2,) a point near the sector's middle.
    """
    directions: list[Float] = []
    for line in (left, right):
        along: Float = np.array([-line.normal[1], line.normal[0]])
        directions.append(along if along[1] > 0 else -along)
    down = directions[0] + directions[1]
    down = down / np.hypot(*down)
    cross = float(directions[0][0] * directions[1][1] - directions[0][1] * directions[1][0])
    if abs(cross) < np.sin(np.radians(2)):
        gap = (float(left.distance(middle[None])[0]) - float(right.distance(middle[None])[0])) / 2
        return Axis(middle - left.normal * gap, down), None
    system: NDArray[Any] = np.stack([left.normal, right.normal])
    apex = np.linalg.solve(system, np.array([left.offset, right.offset]))
    return Axis(apex, down), apex
