"""Burned-in text and marks as scanners and exports leave them, drawn on a frame where a test wants them.

`draw_text` and `draw_mark` return a new frame and the ink: the pixels that were touched. Sizes are capital heights in
pixels, colours are names of `COLOURS`; on a grey frame a colour becomes its luma (Rec. 601).
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frame = NDArray[np.uint8]  # (H, W) grey or (H, W, 3) RGB
Ink = NDArray[np.bool_]  # (H, W)

COLOURS = MappingProxyType(
    {
        "white": (255, 255, 255),
        "grey": (160, 160, 160),
        "yellow": (255, 255, 0),
        "cyan": (0, 255, 255),
        "green": (0, 230, 60),
        "orange": (255, 150, 0),
        "red": (255, 40, 40),
        "dark": (0, 0, 0),
    }
)
WORDS = (
    *(
        "SMITH",
        "MULLER",
        "Ivanova",
        "O'BRIEN",
        "Garcia",
        "DOE^JANE",
        "Yamada",
        "NGUYEN",
        "patient",
        "HOSPITAL",
        "Kowalski",
    ),
    *(
        "MRN 48213907",
        "ID:7730021",
        "1974-03-02",
        "12/05/1961",
        "02.03.1974",
        "14:25:31",
        "A-1093-22",
        "LT BREAST",
        "RUQ 3",
    ),
    *("Dr. Weiss", "F 57Y", "12w4d", "SAINT ANNE", "100%", "7.5MHz", "Gn 48", "Rib"),
)
MARKS = ("plus", "cross", "dotted", "body", "arrow", "star")
SYSTEM_FONTS = (
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf",
    "/usr/share/fonts/truetype/dejavu/DejaVuSerif-Bold.ttf",
    "/usr/share/fonts/truetype/liberation/LiberationSansNarrow-Regular.ttf",
)


def fonts() -> tuple[str, ...]:
    """Names for `Style.font`: a scanner's bitmap font, Pillow's and OpenCV's own, and what this machine has of ours."""
    return ("bitmap", "pillow", "cv2", *(path for path in SYSTEM_FONTS if Path(path).exists()))


@dataclass(frozen=True, slots=True)
class Style:
    """How text looks. `alpha` below 1 is semi-transparent; `outline` puts a black rim of 1 px around each stroke."""

    font: str = "pillow"
    height: int = 16  # of a capital, in pixels
    colour: str = "white"
    smooth: bool = True  # anti-aliased
    alpha: float = 1.0
    outline: bool = False
    angle: float = 0.0  # degrees, counter-clockwise
    box: bool = False  # on a black rectangle, as many menus draw it


def cover(text: str, style: Style) -> NDArray[np.uint8]:
    """How much of each pixel the ink covers, (h, w) uint8 0..255, cropped to the ink."""
    image = _bitmap(text, style.height) if style.font == "bitmap" else _outline_font(text, style)
    if not style.smooth:
        image = np.where(image >= 110, np.uint8(255), np.uint8(0))
    if style.angle:
        image = np.asarray(Image.fromarray(image).rotate(style.angle, Image.Resampling.BILINEAR, expand=True))
    return _trim(image)


def _trim(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    ys, xs = np.nonzero(image)
    return np.ascontiguousarray(image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])


def _bitmap(text: str, height: int) -> NDArray[np.uint8]:
    """Pillow's 6x11 bitmap font; its capitals are 7 px, whole multiples are repeated pixels as old consoles do."""
    font = ImageFont.load_default_imagefont()
    image = Image.new("L", (8 * len(text) + 8, 16))
    ImageDraw.Draw(image).text((2, 2), text, fill=255, font=font)
    whole = height % 7 == 0
    size = (round(image.width * height / 7), round(image.height * height / 7))
    return np.asarray(image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR))


def _outline_font(text: str, style: Style) -> NDArray[np.uint8]:
    if style.font == "cv2":
        scale = style.height / 20.0  # of OpenCV 5's built-in font at scale 1
        canvas = np.zeros((style.height * 3, int(style.height * (len(text) + 2) * 1.2)), np.uint8)
        cv2.putText(
            canvas, text, (style.height, style.height * 2), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA
        )
        return canvas
    font = _sized(style.font, style.height)
    x0, y0, x1, y1 = font.getbbox(text)
    image = Image.new("L", (int(x1 - x0) + 8, int(y1 - y0) + 8))
    draw = ImageDraw.Draw(image)
    draw.fontmode = "L" if style.smooth else "1"
    draw.text((4 - x0, 4 - y0), text, fill=255, font=font)
    return np.asarray(image)


@lru_cache(maxsize=256)
def _sized(name: str, height: int) -> ImageFont.FreeTypeFont:
    """The font at the size whose capital H is `height` px."""
    size = round(height / 0.72)
    for _ in range(6):
        font = _load(name, size)
        box = font.getbbox("H")
        got = int(box[3] - box[1])
        if got == height:
            break
        size = max(size + (1 if got < height else -1), 5)
    return font


def _load(name: str, size: int) -> ImageFont.FreeTypeFont:
    if name != "pillow":
        return ImageFont.truetype(name, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow without FreeType"
    return font


def draw_text(frame: Frame, text: str, at: tuple[int, int], style: Style = Style()) -> tuple[Frame, Ink]:
    """`text` with the upper left corner of its ink at `at` = (x, y); what falls outside the frame is cut."""
    return _put(frame, cover(text, style), at, style)


def draw_mark(
    frame: Frame,
    kind: str,
    at: tuple[int, int],
    size: int = 11,
    style: Style = Style(),
) -> tuple[Frame, Ink]:
    """A graphic of `MARKS` with its upper left corner at `at`; `dotted` is a line of dots `6 x size` long."""
    return _put(frame, mark_cover(kind, size, style.smooth), at, style)


def mark_cover(kind: str, size: int, smooth: bool = False) -> NDArray[np.uint8]:
    """The cover of a mark, like `cover`."""
    line, mid, end = (cv2.LINE_AA if smooth else cv2.LINE_8), size // 2, size - 1
    image = np.zeros((size * 7, size * 7), np.uint8)

    def stroke(a: tuple[int, int], b: tuple[int, int]) -> None:
        cv2.line(image, a, b, 255, 1, line)

    if kind in ("plus", "star"):
        stroke((mid, 0), (mid, end))
        stroke((0, mid), (end, mid))
    if kind in ("cross", "star"):
        stroke((0, 0), (end, end))
        stroke((0, end), (end, 0))
    if kind == "dotted":
        for step in range(0, 6 * size, 5):
            image[step // 3, step] = 255
        image[[0, 0, 1, 2 * size], [0, 1, 0, 6 * size]] = 255
    if kind == "body":  # a torso with a probe on it
        cv2.ellipse(image, (mid * 3, mid * 4), (size, size + mid), 0, 0, 360, 255, 1, line)
        cv2.circle(image, (mid * 3, mid + 2), mid, 255, 1, line)
        cv2.line(image, (mid * 3, mid * 4), (mid * 3 + mid, mid * 5), 255, 2, line)
    if kind == "arrow":
        cv2.arrowedLine(image, (0, 0), (2 * size, size), 255, 1, line, tipLength=0.35)
    return _trim(image)


def _put(frame: Frame, ink: NDArray[np.uint8], at: tuple[int, int], style: Style) -> tuple[Frame, Ink]:
    """Blend: out = frame (1 - a) + colour a, with a = cover x alpha."""
    full, rim = np.zeros(frame.shape[:2], np.uint8), np.zeros(frame.shape[:2], np.uint8)
    x, y = at
    h, w = ink.shape
    y0, y1, x0, x1 = max(y, 0), min(y + h, full.shape[0]), max(x, 0), min(x + w, full.shape[1])
    if y1 > y0 and x1 > x0:
        full[y0:y1, x0:x1] = ink[y0 - y : y1 - y, x0 - x : x1 - x]
    if style.outline:
        rim = cv2.dilate(full, np.ones((3, 3), np.uint8))
    if style.box:
        rim[max(y - 2, 0) : y1 + 2, max(x - 2, 0) : x1 + 2] = 255
    out = frame
    for layer, colour in ((rim, "dark"), (full, style.colour)):
        a = layer.astype(np.float32) / 255.0 * style.alpha
        target = np.array(COLOURS[colour], np.float32)
        if frame.ndim == 2:
            blend = out * (1 - a) + float(target @ np.array([0.299, 0.587, 0.114], np.float32)) * a
        else:
            blend = out * (1 - a[..., None]) + target * a[..., None]
        out = np.clip(np.rint(blend), 0, 255).astype(np.uint8)
    return out, (full | rim) > 60
