"""Brushes for the simulated tissue: a `Canvas` under the beams, and outlines that are exact at any point.

Lengths are in mm, echoes in dB above reference tissue (liver-like), damping in dB per mm of depth beyond what the time
gain compensates. `ingest.phantom_scenes` paints the organs with them.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[Any]  # float32 throughout; OpenCV's signatures know no more than "some number"


@dataclass(frozen=True, slots=True)
class Points:
    """Where things are. x: mm right of the middle, y: mm below the middle of the probe's face, r: mm along the beam,
    u: place across the field of view (-1 left edge, 1 right edge). All float32, of one shape."""

    x: Float
    y: Float
    r: Float
    u: Float
    pitch: Float  # (rows, 1), mm between neighbours of a row
    step_mm: float  # mm between neighbours of a column

    def near(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """Rows and columns that hold every point within `reach` mm of (x, y); a corner where there is none."""
        coarse = np.abs(self.x[::4, ::4] - np.float32(x)) < np.float32(reach)
        coarse &= np.abs(self.y[::4, ::4] - np.float32(y)) < np.float32(reach)
        ends = []
        for axis in (1, 0):
            hits = np.flatnonzero(coarse.any(axis=axis))
            ends.append(slice(max(4 * int(hits[0]) - 4, 0), 4 * int(hits[-1]) + 8) if hits.size else slice(0, 8))
        return ends[0], ends[1]

    def part(self, window: tuple[slice, slice]) -> "Points":
        """Only the points of a window."""
        x, y, r, u = (array[window] for array in (self.x, self.y, self.r, self.u))
        return Points(x, y, r, u, self.pitch[window[0]], self.step_mm)


Shape = Callable[[Points], Float]  # below 0 inside, above 0 outside, roughly mm from the outline


@dataclass(frozen=True, slots=True)
class Body:
    """What a patient's images share. fat, coarseness and size run from 0 to 1; `seed` starts the patient's anatomy."""

    depth_mm: int
    gain_db: float
    dynamic_db: float
    fat: float
    coarseness: float
    size: float
    seed: int

    def rng(self) -> np.random.Generator:
        """The same numbers for every image of the patient."""
        return np.random.Generator(np.random.PCG64(self.seed))


@dataclass(frozen=True, slots=True)
class Scene:
    """The truth: `regions` in order of painting (class index, outline); `measured` classes get their area as target."""

    regions: tuple[tuple[int, Shape], ...] = ()
    target: float | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    measured: tuple[int, ...] = ()


class Canvas:
    """The tissue under the beams, painted from back to front. All maps are (rows, beams), float32."""

    def __init__(self, at: Points, rng: np.random.Generator) -> None:
        self.at, self.rng = at, rng
        self.echo_db = np.zeros_like(at.x)
        self.loss_db_mm = np.zeros_like(at.x)
        self.coherent = np.zeros_like(at.x)
        depth = float(at.r[-1, 0])
        # Interfaces are nowhere equally smooth: each echo waxes and wanes by some dB along its way
        self.patches = np.exp(np.float32(0.6) * self.noise(0.16 * depth, 0.11 * depth))

    def noise(self, cell_x: float, cell_y: float, tilt: float = 0.0, warp: Float | None = None) -> Float:
        """Smooth random field, mean 0, deviation about 1, with features of about cell_x by cell_y mm; `tilt` in mm of
        depth per mm to the right, `warp` in mm of depth."""
        at, fine = self.at, 4
        left, right = float(at.x.min()), float(at.x.max())
        slack = abs(tilt) * (right - left) / 2 + 4.0
        top, bottom = float(at.y.min()) - slack, float(at.y.max()) + slack
        cells = (int((bottom - top) / cell_y) + 4, int((right - left) / cell_x) + 4)
        lattice: Float = self.rng.standard_normal(cells, np.float32)
        lattice = cv2.resize(lattice, None, fx=fine, fy=fine, interpolation=cv2.INTER_CUBIC)
        map_x = (at.x - np.float32(left)) * np.float32(fine / cell_x) + np.float32(1.5 * fine)
        y = at.y if warp is None else at.y + warp
        map_y = (y - np.float32(top)) * np.float32(fine / cell_y) + np.float32(1.5 * fine)
        if tilt:
            map_y -= at.x * np.float32(tilt * fine / cell_y)
        return cv2.remap(lattice, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT) * np.float32(1.3)

    def near(self, blob: "Blob", slack: float = 3.0) -> "Canvas":
        """The piece of this canvas around a small thing: what is painted on the piece is painted on the whole."""
        window = self.at.near(blob.x, blob.y, blob.reach() + slack)
        piece = copy(self)
        piece.at = self.at.part(window)
        piece.echo_db, piece.loss_db_mm = self.echo_db[window], self.loss_db_mm[window]
        piece.coherent, piece.patches = self.coherent[window], self.patches[window]
        return piece

    def fill(self, level: Float, echo: Float | float, loss: float | None = None, edge: float = 0.3) -> None:
        """Paints the inside of `level` with an echogenicity and damping, softly over `edge` mm, over what was there."""
        inside = np.clip(np.float32(0.5) - level * np.float32(1 / edge), 0, 1)
        self.echo_db += inside * (echo - self.echo_db)
        self.coherent *= 1 - inside
        if loss is not None:
            self.loss_db_mm += inside * (np.float32(loss) - self.loss_db_mm)

    def strands(self, level: Float, field: Float, db: float) -> None:
        """Bright where a smooth random `field` is high, inside of `level`: fibres too thin to be seen one by one."""
        self.echo_db += np.clip(-level * np.float32(2), 0, np.float32(db)) * np.clip(field - np.float32(0.3), 0, 2)

    def net(self, level: Float, field: Float, db: float, thin: float = 0.2) -> None:
        """Bright where `field` changes its sign: thin sheets around lobules, inside of `level`."""
        sheet = np.exp(-(field**2) * np.float32(1 / thin**2)) * np.minimum(self.patches, 1.6)
        self.echo_db += np.clip(-level * np.float32(2), 0, np.float32(db)) * sheet

    def surface(self, level: Float, db: float, thick: float, power: float = 2.0) -> None:
        """A specular interface along level = 0, of `db` and `thick` mm, strongest where the beam meets it squarely."""
        slope_r: Float = cv2.Sobel(
            level, cv2.CV_32F, 0, 1, scale=1 / (8 * self.at.step_mm), borderType=cv2.BORDER_REPLICATE
        )
        slope_x = cv2.Sobel(level, cv2.CV_32F, 1, 0, scale=1 / 8, borderType=cv2.BORDER_REPLICATE) / self.at.pitch
        slope_r *= slope_r
        steep = slope_r + slope_x * slope_x + np.float32(1e-6)
        ridge = np.exp(level * level / steep * np.float32(-1 / max(thick, 0.7 * self.at.step_mm) ** 2))
        square = np.sqrt(slope_r / steep) if power == 1 else cv2.pow(slope_r / steep, power / 2)
        self.coherent += ridge * square * self.patches * np.float32(10 ** (db / 20))

    def face(self, db: float = 10.0) -> None:
        """The bright band of ringing at the face of the probe."""
        near = np.exp(-self.at.r[:, :1] * np.float32(1 / (0.022 * self.at.r[-1, 0])))
        self.echo_db += np.float32(db) * near


_TURN = 2048  # directions at which the radius of a blob is worked out


# --- outlines ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blob:
    """A closed outline around (x, y): an ellipse with half-axes a and b, turned by `angle` (radians, clockwise on the
    screen), its radius modulated by (order, strength, phase) waves."""

    x: float
    y: float
    a: float
    b: float
    angle: float = 0.0
    waves: tuple[tuple[int, float, float], ...] = ()

    def __call__(self, at: Points) -> Float:
        c, s = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        dx, dy = at.x - np.float32(self.x), at.y - np.float32(self.y)
        p, q = (dx * c + dy * s) / np.float32(self.a), (dy * c - dx * s) / np.float32(self.b)
        rho = cv2.magnitude(p, q)
        limit: Float | float = 1.0
        if self.waves:
            step = cv2.phase(p, q) * np.float32(_TURN / (2 * np.pi))
            limit = self._radii().take(step.astype(np.int32), mode="clip")
        return (rho - limit) * np.float32(min(self.a, self.b))

    def _radii(self) -> Float:
        """The radius, as a multiple of the ellipse's, at `_TURN` directions around the centre."""
        phi = np.arange(_TURN) * (2 * np.pi / _TURN)
        return (1 + sum(k * np.cos(n * phi + shift) for n, k, shift in self.waves)).astype(np.float32)

    def grown(self, mm: float) -> "Blob":
        """The same form, `mm` larger on every side."""
        return Blob(self.x, self.y, self.a + mm, self.b + mm, self.angle, self.waves)

    def reach(self) -> float:
        """No point of the outline is further than this from (x, y)."""
        return max(self.a, self.b) * (1 + sum(abs(strength) for _, strength, _ in self.waves))

    def perimeter(self) -> float:
        """Length of the plain ellipse's outline in mm (Ramanujan's second approximation, error below 1e-5 here)."""
        h = ((self.a - self.b) / (self.a + self.b)) ** 2
        return float(np.pi * (self.a + self.b) * (1 + 3 * h / (10 + np.sqrt(4 - 3 * h))))


@dataclass(frozen=True, slots=True)
class Cut:
    """What lies in the first shape and in none of the others."""

    shape: Shape
    others: tuple[Shape, ...]

    def __call__(self, at: Points) -> Float:
        level = self.shape(at)
        for other in self.others:
            level = np.maximum(level, -other(at))
        return level


@dataclass(frozen=True, slots=True)
class Common:
    """What lies in both shapes."""

    one: Shape
    two: Shape

    def __call__(self, at: Points) -> Float:
        return np.maximum(self.one(at), self.two(at))


@dataclass(frozen=True, slots=True)
class Layer:
    """A boundary running from left to right at depth y(x) = y + slope x + waves; inside is what lies below it."""

    y: float
    slope: float = 0.0
    waves: tuple[tuple[float, float, float], ...] = ()  # (height mm, length mm, phase)

    def __call__(self, at: Points) -> Float:
        line = np.float32(self.y) + np.float32(self.slope) * at.x - at.y
        for height, length, phase in self.waves:
            line = line + np.float32(height) * np.sin(at.x * np.float32(2 * np.pi / length) + np.float32(phase))
        return line


@dataclass(frozen=True, slots=True)
class Band:
    """A strip `thick` mm to either side of the outline of a shape."""

    shape: Shape
    thick: float

    def __call__(self, at: Points) -> Float:
        return np.abs(self.shape(at)) - np.float32(self.thick)


@dataclass(frozen=True, slots=True)
class Arc:
    """The boundary at depth r along every beam; inside is what lies beyond it."""

    r: float
    bend: float = 0.0  # mm further at both edges of the field of view

    def __call__(self, at: Points) -> Float:
        return np.float32(self.r) + np.float32(self.bend) * at.u**2 - at.r


@dataclass(frozen=True, slots=True)
class Ray:
    """The beams around place u of the field of view, out to half-width w."""

    u: float
    w: float

    def __call__(self, at: Points) -> Float:
        return (np.abs(at.u - np.float32(self.u)) - np.float32(self.w)) * 60


def wavy(rng: np.random.Generator, height: float, length: float) -> tuple[tuple[float, float, float], ...]:
    """Three waves of falling height for a `Layer`."""
    return tuple(
        (height * rng.uniform(0.5, 1.0) / k, length * rng.uniform(0.8, 1.3) / k, rng.uniform(0, 6.3)) for k in (1, 2, 3)
    )


def lumps(rng: np.random.Generator, orders: tuple[int, ...], strength: float) -> tuple[tuple[int, float, float], ...]:
    """Waves for a `Blob`, weaker as the order rises."""
    return tuple((n, strength * rng.uniform(0.5, 1.0) / n**0.5, rng.uniform(0, 6.3)) for n in orders)


def rasterise(shape: Shape, at: Points) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Where a shape is: a window of the points that holds it, and which points of the window lie inside."""
    blob = _bounding(shape)
    window = (slice(None), slice(None)) if blob is None else at.near(blob.x, blob.y, blob.reach() + 1)
    return window, shape(at.part(window)) < 0


def _bounding(shape: Shape) -> Blob | None:
    """A blob that holds the shape, if it is known."""
    if isinstance(shape, Blob):
        return shape
    if isinstance(shape, Common):
        return _bounding(shape.one) or _bounding(shape.two)
    return _bounding(shape.shape) if isinstance(shape, Cut) else None


# --- tissues that several organs share ---------------------------------------------------------------------------


def everywhere(c: Canvas) -> Float:
    """The level of a region without an outline."""
    return np.full_like(c.at.x, -10)


def fat_layer(c: Canvas, level: Float, echo: float, coarseness: float) -> None:
    """Fat: dark lobules in a net of bright septa."""
    net = c.noise(11 + 6 * coarseness, 2.4 + 1.6 * coarseness)
    c.fill(level, echo + 1.5 * net, edge=0.8)
    c.net(level, net, 13)
    c.strands(level, c.noise(6, 0.8), 4)


def muscle(c: Canvas, level: Float, echo: float, tilt: float = 0.0, db: float = 8.0) -> None:
    """Muscle: dark, with bright nearly parallel strands of perimysium at `tilt` mm of depth per mm."""
    unit = float(c.at.r[-1, 0]) / 40
    bundles = c.noise(13 * unit, 1.5 * unit, tilt)
    c.fill(level, echo + 2 * bundles, edge=0.5)
    c.strands(level, c.noise(9 * unit, 0.75 * unit, tilt), db)
    c.net(level, bundles, db)


def vessels(c: Canvas, rng: np.random.Generator, box: tuple[float, float, float, float], n: int, within: Shape) -> None:
    """Cut vessels: echo-free tubes and rounds, those of the portal tree with bright walls; box is x0, x1, y0, y1."""
    for index in range(n):
        a = rng.uniform(1.0, 3.0)
        waves = ((1, 0.2, rng.uniform(0, 6.3)), (3, 0.12, rng.uniform(0, 6.3)))
        x, y, length = rng.uniform(*box[:2]), rng.uniform(*box[2:]), a * rng.choice([1.2, 3.0, 7.0])
        tube = Blob(x, y, length, a, rng.uniform(-0.9, 0.9), waves)
        piece = c.near(tube)
        level = np.maximum(tube(piece.at), within(piece.at))
        if index % 2 == 0:
            piece.fill(level - 1.0, 4, edge=2.5)
        piece.fill(level, -20, edge=2.5)


def skin_layer(c: Canvas) -> None:
    """Two bright lines with a band between them, under the ringing face of the probe."""
    skin = Layer(1.5, 0, wavy(c.rng, 0.15, 30))(c.at)
    c.fill(-skin, 4 + 2 * c.noise(12, 0.5), edge=0.4)
    c.surface(skin, 8, 0.15, 1)
    c.face(11)


def edge_shadow(c: Canvas, level: Float, strength: float) -> None:
    """Refraction at the flanks of a smooth round thing casts two thin shadows."""
    across = np.abs(cv2.Sobel(level, cv2.CV_32F, 1, 0, scale=1 / 8) / c.at.pitch)
    c.loss_db_mm += np.float32(strength) * np.exp(-((level - 0.2) ** 2) * 4) * np.clip(across - 0.7, 0, 0.5)
