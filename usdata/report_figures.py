"""The report's figures as strings of HTML: inline SVG that follows the page's colours, and images as PNG data URIs.

Nothing here depends on time, fonts or a renderer, so equal inputs give equal bytes. Colours are CSS classes (`s1`,
`s2`, ...) that the page sets to the palette of Okabe and Ito, which colour-blind readers can tell apart.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 420, 236  # of a chart, in its own units; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 10, 36
_BINS = 120  # points of a curve; longer ones show mean and range of so many pieces
_COLOURS = 5  # the page's classes s1 ... s5 of curves and o1 ... o5 of outlines


@dataclass(frozen=True)
class Series:
    """One curve: `x` rising, `y` finite, of equal length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    markers: bool = False


def png_uri(pixels: NDArray[np.uint8], side: int | None = None) -> str:
    """A grey image, shape (h, w), uint8, as a data URI; with `side` resized to a square by area averaging."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if side is not None and picture.size != (side, side):
        picture = picture.resize(
            (side, side), Image.Resampling.BOX if side < picture.width else Image.Resampling.NEAREST
        )
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return data_uri(stream.getvalue())


def data_uri(png: bytes) -> str:
    """The bytes of a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def outlines(mask: NDArray[np.uint8]) -> tuple[Markup, list[int]]:
    """The borders of a mask's classes as an SVG to lay over the image.

    Args:
        mask: (256, 256) uint8 class indices, 0 is background.

    Returns:
        The SVG, empty without a class; and the class indices in it, rising. Class k has the CSS class `o<k>`.
    """
    import cv2

    found, paths = [int(k) for k in np.unique(mask) if k], []
    for k in found:
        borders, _ = cv2.findContours((mask == k).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1)
        d = "".join(_closed(border[:, 0]) for border in borders if len(border) > 2)
        paths.append(f'<path class="halo" d="{d}"/><path class="o{colour_of(k - 1)}" d="{d}"/>')
    if not found:
        return Markup(), []
    height, width = mask.shape
    return Markup(
        f'<svg class="outline" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(paths)}</svg>"
    ), found


def colour_of(place: int) -> int:
    """Number of the colour of the curve or mask class at that place, from 0: 1 ... 5, then again from the first."""
    return place % _COLOURS + 1


def _closed(points: NDArray[np.int32]) -> str:
    return "M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in points.tolist()) + "Z"


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    reference: tuple[str, float] | None = None,
) -> Markup:
    """Curves over training steps, with a line across for comparison.

    A curve of more than 120 points is drawn as the mean of 120 pieces inside the band of their least and greatest.

    Args:
        y_range: of the axis; from 0 to the greatest value if None.
        reference: name and height of a broken line across.

    Returns:
        An SVG, or an empty string without a point to draw.
    """
    drawn = [s for s in series if len(s.x)]
    if not drawn:
        return Markup()
    x_end = max(1.0, *(float(s.x[-1]) for s in drawn))
    low, high = y_range or _range([v for s in drawn for v in s.y])
    frame = _Frame(x_end, low, high)
    parts = [frame.axes(x_label)]
    if reference is not None:
        y = frame.y(reference[1])
        parts.append(f'<path class="reference" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{WIDTH - _RIGHT}" y="{y - 5:.1f}" text-anchor="end">{escape(reference[0])}</text>')
    for i, one in enumerate(drawn):
        parts.append(_curve(frame, one, colour_of(i)))
    said = escape(f"{y_label} over {x_label}: {', '.join(s.name for s in drawn)}")
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values, 0.0), max(values)
    return (low, high) if high > low else (low, low + 1.0)


@dataclass(frozen=True)
class _Frame:
    """The plotting area and its two linear axes: x from 0 to `x_end`, y from `low` to `high`."""

    x_end: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / self.x_end

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - self.low) / (self.high - self.low)

    def axes(self, x_label: str) -> str:
        parts = []
        for value in ticks(self.low, self.high, 4):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in ticks(0, self.x_end, 5):
            x = self.x(value)
            anchor = "end" if x > WIDTH - 30 else "middle"
            parts.append(f'<path class="axis" d="M{x:.1f} {HEIGHT - _BOTTOM}v4"/>')
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="{anchor}">{value:,.10g}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>')
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from `low` to `high`, about so many.

    >>> ticks(0, 300, 5)
    [0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0]
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.75)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _curve(frame: _Frame, series: Series, number: int) -> str:
    x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
    band = ""
    if len(x) > _BINS:
        edges = np.linspace(0, len(x), _BINS + 1).astype(int)[:-1]
        sizes = np.diff([*edges, len(x)])
        above, below = np.maximum.reduceat(y, edges), np.minimum.reduceat(y, edges)
        x, y = np.add.reduceat(x, edges) / sizes, np.add.reduceat(y, edges) / sizes
        there = _points(frame, x, above)
        back = _points(frame, x[::-1], below[::-1])
        band = f'<path class="band s{number}" d="M{there}L{back}Z"/>'
    dots = ""
    if series.markers or len(x) == 1:
        dots = "".join(
            f'<circle class="dot s{number}" cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="3"/>'
            for a, b in zip(x.tolist(), y.tolist(), strict=True)
        )
    return f'{band}<path class="line s{number}" d="M{_points(frame, x, y)}"/>{dots}'


def _points(frame: _Frame, x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    return "L".join(f"{frame.x(a):.1f} {frame.y(b):.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def whisker(value: float, low: float, high: float, axis: tuple[float, float], kind: str = "") -> Markup:
    """A dot with its 95 % interval on an axis that all rows of a table share.

    Args:
        value, low, high: in the units of `axis`; what lies outside is cut off.
        axis: least and greatest value; 0 is marked if it lies inside.
        kind: an extra CSS class.
    """
    width, height = 150, 16

    def place(number: float) -> float:
        share = (number - axis[0]) / (axis[1] - axis[0])
        return round(4 + (width - 8) * min(1.0, max(0.0, share)), 1)

    zero = f'<path class="zero" d="M{place(0)} 0V{height}"/>' if axis[0] < 0 < axis[1] else ""
    return Markup(
        f'<svg class="whisker {escape(kind)}" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<path class="rail" d="M4 8H{width - 4}"/>{zero}<path class="reach" d="M{place(low)} 8H{place(high)}"/>'
        f'<circle cx="{place(value)}" cy="8" r="4"/></svg>'
    )
