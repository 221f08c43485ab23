"""Pictures of the review page: a frame as it came, what is cut from it, and what would be stored."""

import base64
import io
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from ingest.preprocess import Box

LONGEST = 960  # pixels of a picture's longer side on the page: burned-in letters of 8 pixels stay readable. Ours
_QUALITY = 82  # of WebP: about a fifth of a PNG's bytes for speckle, and no letter is lost


def before_uri(frame: NDArray[np.uint8]) -> str:
    """A frame, (H, W) grey or (H, W, 3) RGB, as a data URI; scaled down to `LONGEST` if it is larger."""
    picture = Image.fromarray(np.ascontiguousarray(frame))
    if max(picture.size) > LONGEST:
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def cut(mask: NDArray[np.bool_]) -> Markup:
    """What is removed as a tint, and the border of what is kept, to lay over the frame.

    Args:
        mask: (H, W), true where pixels are kept; of the frame's proportions.
    """
    height, width = mask.shape
    borders, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    lines = "".join(_closed(border[:, 0]) for border in borders if len(border) > 2)
    return _layer(
        (height, width),
        f'<path class="gone" fill-rule="evenodd" d="M0 0H{width}V{height}H0Z{lines}"/>'
        f'<path class="halo" d="{lines}"/><path class="edge" d="{lines}"/>',
    )


def mark(box: Box, shape: tuple[int, int]) -> Markup:
    """A frame around what was taken for writing; `box` is x0, y0, x1, y1 in a picture of `shape` (height, width)."""
    x0, y0, x1, y1 = box
    room = 0.006 * max(shape)  # so that the line does not cover the letters
    where = (
        f'x="{x0 - room:.1f}" y="{y0 - room:.1f}" width="{x1 - x0 + 2 * room:.1f}" height="{y1 - y0 + 2 * room:.1f}"'
    )
    return _layer(shape, f'<rect class="halo" {where}/><rect class="text" {where}/>')


def _layer(shape: tuple[int, int], content: str) -> Markup:
    view = f'viewBox="0 0 {shape[1]} {shape[0]}" preserveAspectRatio="none"'
    return Markup(f'<svg class="layer" {view} aria-hidden="true">{content}</svg>')


def _closed(points: NDArray[Any]) -> str:
    return "M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in points.tolist()) + "Z"
