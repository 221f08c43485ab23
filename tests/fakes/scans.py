"""Drawn scanner screens with a known scan area, for tests of what is cut out of one and of what is found in it.

`draw_screen` is the one entry. A screen has a sector of moving speckle (curved, phased, linear or steered) on a black
or flat dark background, and around it what consoles show: a banner, settings, depth ticks, a grey bar, an ECG line, a
logo, a TGC curve. Everything is drawn from a seed: the same arguments give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ingest.deid.device import Region

KINDS = ("curved", "phased", "linear", "steered")
Box = tuple[int, int, int, int]
Float = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Text:
    """A drawn text or graphic: its box (x1, y1 one past the last pixel) and where it stands."""

    box: Box
    words: str
    where: str  # banner, settings, scale, bar, ecg, logo, tgc, touching, inside, callipers


@dataclass(frozen=True, slots=True)
class Screen:
    """`frames` is uint8, (n, H, W) or (n, H, W, 3); `texts` is all that is drawn beside or over the sector."""

    frames: NDArray[np.uint8]
    truth: NDArray[np.bool_]  # (H, W), the sector of the first frame
    echo: NDArray[np.bool_]  # (H, W), the part of it that shows something: not the black of lost contact or depth
    regions: tuple[Region, ...]
    texts: tuple[Text, ...]

    @property
    def outside(self) -> NDArray[np.bool_]:
        """Where nothing may be kept: (H, W) bool."""
        return ~self.truth


@dataclass(frozen=True, slots=True)
class _Sector:
    """Scan conversion: depth (0 to 1) and place across (-1 to 1) of every pixel, and where both are within."""

    depth: Float
    across: Float
    inside: NDArray[np.bool_]


def draw_screen(
    kind: str,
    seed: int,
    size: tuple[int, int] = (600, 800),
    frames: int = 1,
    *,
    banner: Sequence[str] = ("DOE^JANE 1234567", "General Hospital 2021-03-04 10:11:12"),
    colour: bool | None = None,
    flip: bool = False,
    zoom: bool = False,
    clip: bool | None = None,
    touching: str | None = None,
    inside: str | None = None,
    callipers: bool = False,
    furniture: bool = True,
    gain: float | None = None,
    flank: float | None = None,
    shadow: bool | None = None,
    attenuation: float | None = None,
    background: int | None = None,
    jpeg: int | None = None,
    doppler: bool = False,
    moving: bool = False,
) -> Screen:
    """A scanner screen. What is None is drawn by chance from the seed.

    Args:
        kind: curved, phased, linear (a rectangle) or steered (a linear array's trapezoid).
        size: (H, W) in pixels; text and sector scale with it. At least (200, 240).
        banner: lines written at the top of the screen.
        colour: RGB frames with a faint tint and coloured text; else grey frames.
        flip: the sector upside down (as in a transoesophageal view).
        zoom: the picture fills the region's rectangle: no edge of the sector is seen but the rectangle's.
        clip: the bottom arc is cut by the region's lower border.
        touching: words that begin at most 2 px beside the sector's edge.
        inside: words drawn over the tissue.
        callipers: two crosses and a dotted line over the tissue.
        furniture: settings, ticks, grey bar, ECG, logo, TGC curve; False leaves only banner and sector.
        gain: brightness of the tissue, 0.25 (dark) to 1.3.
        flank: share of the width at one side that is black for lack of contact, 0 to 0.3.
        attenuation: how much of the echo is lost at the bottom, 0 to 1.
        background: grey level around the sector (0 is the usual).
        jpeg: quality, if the frames went through lossy JPEG.
        doppler: a colour box with flow (sets `colour`).
        moving: the sector's place changes half-way through the clip.
    """
    rng = np.random.default_rng([KINDS.index(kind), seed])
    height, width = size
    draw = _choices(rng, colour, clip, gain, flank, shadow, attenuation, background)
    draw["colour"] |= doppler
    place = _place(rng, height, width)
    sector = _convert(kind, rng, place, size, flip=flip, zoom=zoom, clip=draw["clip"])
    other = _shifted(sector) if moving else sector
    ink = _Ink(size, draw["background"], draw["colour"], rng)
    ink.banner(banner)
    if furniture:
        ink.furniture(place, sector.inside)
    if touching:
        ink.touching(touching, sector.inside)
    over = _Ink(size, 0, draw["colour"], rng)
    if inside:
        over.over(inside, sector.inside)
    if callipers:
        over.callipers(sector.inside)
    speckle = _Speckle(rng, draw)
    stack = []
    for number in range(frames):
        now = other if number >= (frames + 1) // 2 else sector
        frame = np.where(now.inside[..., None], speckle.frame(number, now, draw["colour"], doppler), ink.canvas)
        frame = np.where(over.canvas.max(axis=2, keepdims=True) > 0, over.canvas, frame)
        stack.append(_lossy(frame, jpeg) if jpeg else frame)
    pixels = np.stack(stack).astype(np.uint8)
    region = Region(*place, spatial_format=1, data_type=2 if doppler else 1, mm_x=0.2, mm_y=0.2)
    texts = (*ink.texts, *over.texts)
    echo = sector.inside & (cv2.blur(pixels.max(axis=(0, 3)), (15, 15)) >= 6)
    return Screen(pixels if draw["colour"] else pixels[..., 0].copy(), sector.inside, echo, (region,), texts)


def _choices(rng: np.random.Generator, *given: Any) -> dict[str, Any]:
    """The options that were left to chance. Every one is drawn, so that fixing one does not change the others."""
    names = ("colour", "clip", "gain", "flank", "shadow", "attenuation", "background")
    drawn = (
        bool(rng.random() < 0.5),
        bool(rng.random() < 0.3),
        float(rng.uniform(0.45, 1.2)),
        float(rng.choice([0.0, 0.0, rng.uniform(0.03, 0.2)])),
        bool(rng.random() < 0.4),
        float(rng.uniform(0.0, 0.75)),
        0 if rng.random() < 0.85 else int(rng.integers(6, 50)),
    )
    return {name: d if g is None else g for name, d, g in zip(names, drawn, given, strict=True)}


def _place(rng: np.random.Generator, height: int, width: int) -> Box:
    """The region's rectangle: what the header says the 2D image lies in."""
    x0, x1 = int(width * rng.uniform(0.12, 0.18)), int(width * rng.uniform(0.84, 0.92))
    y0, y1 = int(height * rng.uniform(0.12, 0.16)), int(height * rng.uniform(0.84, 0.9))
    return x0, y0, x1, y1


def _convert(
    kind: str, rng: np.random.Generator, place: Box, size: tuple[int, int], *, flip: bool, zoom: bool, clip: bool
) -> _Sector:
    x0, y0, x1, y1 = place
    y, x = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
    if flip:
        y = y0 + y1 - y
    box = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    middle = (x0 + x1) / 2 + rng.uniform(-0.03, 0.03) * (x1 - x0)
    high, wide = float(y1 - y0), float(x1 - x0)
    if kind in ("linear", "steered"):
        half = wide * rng.uniform(0.28, 0.47)
        top, bottom = y0 + rng.uniform(0, 0.06) * high, y1 - rng.uniform(0, 0.12) * high
        if zoom:
            half, top, bottom = wide, y0 - 5, y1 + 5
        slope = 0.0
        if kind == "steered":
            half = wide * rng.uniform(0.2, 0.3)
            slope = min(float(np.tan(np.deg2rad(rng.uniform(8, 16)))), (0.48 * wide - half) / high)
        depth = (y - top) / (bottom - top)
        across = (x - middle) / (half + slope * np.maximum(y - top, 0))
    else:
        angle = np.deg2rad(rng.uniform(28, 37) if kind == "curved" else rng.uniform(36, 45))
        ratio = rng.uniform(0.18, 0.35) if kind == "curved" else rng.uniform(0.0, 0.03)  # face radius / far radius
        far = min(high / (1 - ratio * np.cos(angle)), 0.49 * wide / np.sin(angle))
        if clip:
            far *= 1.1
        near = ratio * far
        apex = y0 + 2 - near * np.cos(angle)
        if zoom:
            far, near, apex, angle = far * 2.2, near, y0 - far * 0.8, angle * 1.4
        radius, theta = np.hypot(x - middle, y - apex), np.arctan2(x - middle, y - apex)
        depth, across = (radius - near) / (far - near), theta / angle
    inside = box & (depth >= 0) & (depth <= 1) & (abs(across) <= 1)
    return _Sector(depth, across, inside)


def _shifted(sector: _Sector) -> _Sector:
    """The same sector 6 % further right and down, as after a change of depth or layout."""
    move = tuple(int(0.06 * n) for n in sector.inside.shape)
    inside = np.roll(sector.inside, move, axis=(0, 1))
    inside[: move[0]], inside[:, : move[1]] = False, False
    return _Sector(np.roll(sector.depth, move, (0, 1)), np.roll(sector.across, move, (0, 1)), inside)


class _Speckle:
    """Echo on a grid of beams: Rayleigh grain times a smooth anatomy that moves a little from frame to frame."""

    ROWS, BEAMS = 420, 256

    def __init__(self, rng: np.random.Generator, draw: dict[str, Any]) -> None:
        self.rng, self.gain = rng, draw["gain"]
        coarse = cv2.resize(
            rng.random((9, 9)).astype(np.float32), (self.BEAMS, self.ROWS), interpolation=cv2.INTER_CUBIC
        )
        self.tissue = 0.25 + 0.9 * np.clip(coarse, 0, 1)
        for _ in range(int(rng.integers(1, 4))):  # cysts and vessels: no echo
            centre = (int(rng.integers(40, self.BEAMS - 40)), int(rng.integers(60, self.ROWS - 60)))
            axes = (int(rng.integers(8, 30)), int(rng.integers(12, 50)))
            cv2.ellipse(self.tissue, centre, axes, 0, 0, 360, 0.03, -1)
        for _ in range(3):  # bright interfaces
            start = int(rng.integers(30, self.ROWS - 30))
            line = np.array([[b, start + 12 * np.sin(b / 40 + start)] for b in range(0, self.BEAMS, 8)], np.int32)
            cv2.polylines(self.tissue, [line], False, 2.2, 3)
        self.tissue = cv2.GaussianBlur(self.tissue, (0, 0), 1.5)
        self.tissue[:12] *= 1.6  # the bright skin line
        depth = np.linspace(0, 1, self.ROWS, dtype=np.float32)[:, None]
        self.damping = 1 - draw["attenuation"] * depth**1.5
        self.damping = np.repeat(self.damping, self.BEAMS, axis=1)
        dark = int(self.BEAMS * draw["flank"])
        if dark:
            ramp = np.ones(self.BEAMS, np.float32)
            ramp[:dark] = np.linspace(0, 0.4, dark) ** 2
            self.damping = self.damping * (ramp if rng.random() < 0.5 else ramp[::-1])
        if draw["shadow"]:
            at, wide, start = int(rng.integers(50, 200)), int(rng.integers(8, 24)), int(rng.integers(60, 200))
            self.damping[start:, at : at + wide] *= 0.12
        self.grain = self._grain()

    def _grain(self) -> Float:
        field = self.rng.normal(size=(2, self.ROWS, self.BEAMS)).astype(np.float32)
        real, imaginary = (cv2.GaussianBlur(part, (0, 0), sigmaX=1.3, sigmaY=1.0) for part in field)
        return np.hypot(real, imaginary) * 3.2  # mean near 1.2

    def frame(self, number: int, sector: _Sector, colour: bool, doppler: bool) -> Float:
        """(H, W, 3) grey levels of one frame; meaningful inside the sector only."""
        fresh = self._grain() if number else self.grain
        grain = self.grain * np.cos(0.35) + fresh * np.sin(0.35) if number else self.grain
        amplitude = grain * self.tissue * self.damping * self.gain + 0.004 * (1 + fresh)
        level = np.clip(72 + 44 * np.log(np.maximum(amplitude, 1e-4)), 0, 250).astype(np.float32)
        level = np.maximum(level, 1.2 * fresh * (self.damping > 0.1))  # the noise floor
        sway = 2.5 * np.sin(number * 0.7)
        rows = (sector.depth * (self.ROWS - 1) + sway).astype(np.float32)
        beams = ((sector.across + 1) / 2 * (self.BEAMS - 1)).astype(np.float32)
        picture = cv2.remap(level, beams, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        picture = cv2.GaussianBlur(picture, (3, 3), 0.8)  # a scanner's own smoothing
        tint = np.array([1.0, 0.97, 0.9]) if colour else np.ones(3)
        rgb = picture[..., None] * tint
        if doppler:
            flow = (abs(sector.across) < 0.4) & (abs(sector.depth - 0.5) < 0.2) & (picture > 70)
            red = np.stack([160 + picture * 0.3, picture * 0.4, picture * 0.1], axis=2)
            rgb = np.where(flow[..., None], red if number % 2 else red[..., ::-1], rgb)
        return np.clip(rgb, 0, 255)


class _Ink:
    """A canvas of text and graphics that remembers what it drew where."""

    def __init__(self, size: tuple[int, int], background: int, colour: bool, rng: np.random.Generator) -> None:
        self.canvas = np.full((*size, 3), background, np.uint8)
        self.texts: list[Text] = []
        self.colour, self.rng, self.back = colour, rng, background
        self.points = max(9, round(size[0] / 36))
        self.font = ImageFont.load_default(self.points)

    def _tone(self) -> tuple[int, int, int]:
        tones = ((255, 255, 255), (210, 210, 210), (255, 230, 60), (90, 220, 255), (120, 255, 120))
        return tones[int(self.rng.integers(0, len(tones) if self.colour else 2))]

    def write(self, at: tuple[int, int], words: str, where: str) -> None:
        image = Image.fromarray(self.canvas)
        tone, pen = self._tone(), ImageDraw.Draw(image)
        pen.text(at, words, fill=tone if self.colour else (tone[0],) * 3, font=self.font)
        x0, y0, x1, y1 = pen.textbbox(at, words, font=self.font)
        self.canvas = np.array(image)
        self._note((int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))), words, where)

    def _note(self, box: Box, words: str, where: str) -> None:
        height, width = self.canvas.shape[:2]
        clipped = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
        self.texts.append(Text(clipped, words, where))

    def banner(self, lines: Sequence[str]) -> None:
        if lines and self.rng.random() < 0.3:  # a filled bar behind the words
            high = int((len(lines) + 0.4) * self.points * 1.15)
            self.canvas[:high] = (24, 40, 70) if self.colour else 44
        for number, line in enumerate(lines):
            self.write((int(self.points * 0.6), int(number * self.points * 1.15)), line, "banner")

    def furniture(self, place: Box, inside: NDArray[np.bool_]) -> None:
        height, width = inside.shape
        x0, y0, x1, y1 = place
        for number, words in enumerate(("C5-1", "28Hz", "11cm", "2D", "Gn 60", "C 61")):
            at = (3, y0 + int(number * self.points * 1.3))
            if at[1] + self.points * 1.4 < y1:
                self.write(at, words, "settings")
        for number, y in enumerate(np.linspace(y0 + 4, y1 - 4, 9).astype(int)):  # depth ticks at the region's edge
            long = 8 if number % 4 == 0 else 4
            self.canvas[y : y + 2, x1 - long : x1][~inside[y : y + 2, x1 - long : x1]] = 200
        self._note((x1 - 8, y0, x1, y1), "", "scale")
        bar = slice(y0 + (y1 - y0) // 20, y0 + (y1 - y0) // 3)
        ramp = np.linspace(255, 10, bar.stop - bar.start)[:, None, None]
        self.canvas[bar, x1 + 6 : x1 + 6 + max(6, width // 70)] = ramp
        self._note((x1 + 6, bar.start, x1 + 6 + max(6, width // 70), bar.stop), "", "bar")
        time = np.arange(x0, x1)
        beat = y1 + (height - y1) * (0.55 - 0.4 * np.exp(-((((time - x0) % (width // 6) - 20) / 3.0) ** 2)))
        line = np.stack([time, beat], axis=1).astype(np.int32)
        cv2.polylines(self.canvas, [line], False, (80, 255, 80) if self.colour else (180, 180, 180), 1, cv2.LINE_AA)
        self._note((x0, y1, x1, height), "", "ecg")
        cv2.circle(self.canvas, (x0 + self.points, y0 + self.points), self.points // 2, (60, 110, 220), -1, cv2.LINE_AA)
        self.canvas[inside] = self.back
        self._note((x0, y0, x0 + 2 * self.points, y0 + 2 * self.points), "", "logo")
        curve = [(x1 + 30 + int(4 * np.sin(k)), y0 + (y1 - y0) // 2 + 6 * k) for k in range(12)]
        cv2.polylines(self.canvas, [np.array(curve, np.int32)], False, (150, 150, 150), 1, cv2.LINE_AA)
        self._note((x1 + 24, y0 + (y1 - y0) // 2, width, y1), "", "tgc")

    def touching(self, words: str, inside: NDArray[np.bool_]) -> None:
        """Words whose box ends or begins 1 px beside the sector at some height."""
        high = self.points + 4
        rows = np.flatnonzero(inside.any(axis=1))
        top = int(rows[int(len(rows) * self.rng.uniform(0.25, 0.6))])
        columns = np.flatnonzero(inside[top : top + high].any(axis=0))
        long = int(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(words, font=self.font)) + 1
        right, left = int(columns[-1]) + 2, int(columns[0]) - long - 2
        self.write((left if left > 0 and self.rng.random() < 0.5 else right, top), words, "touching")

    def over(self, words: str, inside: NDArray[np.bool_]) -> None:
        rows, columns = np.nonzero(inside)
        y = int(rows.min() + (rows.max() - rows.min()) * self.rng.uniform(0.4, 0.6))
        x = int(np.median(columns) - len(words) * self.points * 0.25)
        self.write((x, y), words, "inside")

    def callipers(self, inside: NDArray[np.bool_]) -> None:
        rows, columns = np.nonzero(inside)
        y, x = int(np.median(rows)), int(np.median(columns))
        half, tone = max(12, inside.shape[1] // 16), (255, 230, 60) if self.colour else (255, 255, 255)
        for at in (x - half, x + half):
            cv2.line(self.canvas, (at - 4, y), (at + 4, y), tone, 1)
            cv2.line(self.canvas, (at, y - 4), (at, y + 4), tone, 1)
        for at in range(x - half, x + half, 4):
            self.canvas[y, at] = tone
        self._note((x - half - 4, y - 4, x + half + 5, y + 5), "", "callipers")


def _lossy(frame: Float, quality: int) -> NDArray[np.uint8]:
    content = cv2.imencode(".jpg", frame.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)
