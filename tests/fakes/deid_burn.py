"""Screens with text burned into their pixels, beside the same screens without it, and the comparison of the two.

Nothing of a text may be in a stored image: outside the true sector every stored pixel must be zero, inside it must be
what the screen without text gives.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from fakes.burned_text import Style, draw_mark, draw_text, fonts
from fakes.deid_dicom import Draft, ultrasound
from fakes.deid_secrets import word
from fakes.scans import draw_screen
from numpy.typing import NDArray

from ingest import preprocess

SIZE = (480, 640)
_SPILL = 1  # source pixels beyond the true edge that a mask may reach


@dataclass(frozen=True, slots=True)
class Burned:
    """A screen, with and without text.

    Attributes:
        name: place, size, colour; the text's token is made from it.
        frames: (n, H, W) or (n, H, W, 3) uint8, with the text.
        clean: the same, without.
        truth: (H, W) bool, the sector.
        inside: whether the text lies over the tissue, so that the item must not be accepted.
        overlap: pixels of text over tissue, some by chance where text stands in a corner or beside the sector.
    """

    name: str
    frames: NDArray[np.uint8]
    clean: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    inside: bool
    overlap: int = 0

    def draft(self) -> Draft:
        """As DICOM."""
        frames = self.frames if len(self.frames) > 1 else self.frames[0]
        return ultrasound(f"burned/{self.name}", frames, regions=[self.box])


def burned(every: int = 1) -> Iterator[Burned]:
    """Text of several sizes, colours and fonts in banner, corner, at the sector's edge, over tissue, in one frame.

    Args:
        every: only each n-th; the others are not drawn.
    """
    for draw in [*_around(), *_over_tissue(), *_marks_and_frames()][::every]:
        yield draw()


def _around() -> Iterator[Callable[[], Burned]]:
    for number, (height, colour) in enumerate(
        [(8, "white"), (10, "grey"), (12, "yellow"), (16, "cyan"), (24, "orange"), (40, "white")]
    ):
        kind, style = ("curved", "phased", "linear", "steered")[number % 4], Style(height=height, colour=colour)
        yield partial(_still, f"banner/{height} px {colour}", kind, number, "banner", style)
    for number, (height, colour) in enumerate([(8, "grey"), (12, "white"), (14, "yellow"), (20, "green")]):
        kind, style = ("curved", "phased")[number % 2], Style(height=height, colour=colour)
        for place in ("corner", "edge", "beside"):
            yield partial(_still, f"{place}/{height} px {colour}", kind, 20 + number, place, style)
    yield partial(_still, "outside/every edge", "curved", 60, "edges", Style(height=10))


def _over_tissue() -> Iterator[Callable[[], Burned]]:
    number = 0
    for font in fonts()[:4]:
        for height in (7, 10, 14, 21) if font == "bitmap" else (9, 12, 18, 28):
            colour = ("white", "yellow", "cyan", "green", "orange", "white")[number % 6]
            style = Style(font=font, height=height, colour=colour, smooth=number % 3 > 0)
            label, kind = font.rpartition("/")[2], ("curved", "linear")[number % 2]
            yield partial(_still, f"inside/{height} px {colour} {label}", kind, 40 + number, "inside", style)
            number += 1
    for label, style in (
        ("dark", Style(height=16, colour="dark")),
        ("half transparent", Style(height=16, alpha=0.5)),
        ("outlined", Style(height=12, outline=True)),
        ("turned", Style(height=14, angle=30)),
        ("upright", Style(height=14, angle=90)),
        ("in a box", Style(height=12, box=True)),
        ("red", Style(height=14, colour="red")),
        ("grey", Style(height=14, colour="grey")),
    ):
        yield partial(_still, f"inside/{label}", "curved", 80 + number, "inside", style)
        number += 1
    for number, height in enumerate((14, 20, 28)):
        for gain in (0.6, 0.9):  # dim tissue and bright
            name, style = f"inside/dark {height} px, gain {gain}", Style(height=height, colour="dark")
            yield partial(_still, name, ("curved", "linear")[number % 2], 300 + number, "inside", style, gain)


def _marks_and_frames() -> Iterator[Callable[[], Burned]]:
    yield from (partial(_marked, kind) for kind in ("plus", "cross", "dotted", "body", "arrow"))
    yield from (partial(_in_one_frame, which) for which in (0, 5, 11))


def _screen(
    kind: str, seed: int, frames: int = 1, gain: float = 0.9
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[int, int, int, int]]:
    drawn = draw_screen(kind, seed, SIZE, frames, banner=("US", "2D"), colour=True, background=0, gain=gain, flank=0.0)
    region = drawn.regions[0]
    return drawn.frames, drawn.truth, (region.x0, region.y0, region.x1, region.y1)


def _still(name: str, kind: str, seed: int, place: str, style: Style, gain: float = 0.9) -> Burned:
    clean, truth, box = _screen(kind, seed, gain=gain)
    text = f"{word(f'burned/{name}')} {seed}1957"
    frame, overlap = clean[0], 0
    for at in _where(place, truth, box, style):
        frame, ink = draw_text(frame, text, at, style)
        overlap += int((ink & truth).sum())
    return Burned(name, frame[None], clean, truth, box, place in ("inside", "edge"), overlap)


def _where(place: str, truth: NDArray[np.bool_], box: tuple[int, int, int, int], style: Style) -> list[tuple[int, int]]:
    rows = np.flatnonzero(truth.any(axis=1))
    middle = int((rows.min() + rows.max()) / 2)
    across = np.flatnonzero(truth[middle])
    if place == "banner":
        return [(8, 4)]
    if place == "corner":  # of the region's rectangle, outside the sector
        return [(box[0] + 2, box[1] + 2)]
    if place == "edge":  # half over tissue
        return [(int(across[0]) - 3 * style.height, middle)]
    if place == "beside":
        return [(int(across[-1]) + 3, middle)]
    if place == "edges":
        return [
            (2, 40),
            (2, truth.shape[0] - 14),
            (truth.shape[1] - 90, 20),
            (truth.shape[1] - 90, truth.shape[0] - 14),
        ]
    return [(int(across[len(across) // 4]), middle)]


def _marked(kind: str) -> Burned:
    clean, truth, box = _screen("curved", 120)
    rows, columns = np.nonzero(truth)
    frame, _ = draw_mark(clean[0], kind, (int(np.median(columns)), int(np.median(rows))), 11, Style(colour="yellow"))
    return Burned(f"mark/{kind}", frame[None], clean, truth, box, True)


def _in_one_frame(which: int) -> Burned:
    clean, truth, box = _screen("curved", 130 + which, frames=12)
    name = f"one frame/{which} of 12"
    frames = clean.copy()
    at = _where("inside", truth, box, Style())[0]
    frames[which], _ = draw_text(clean[which], word(f"burned/{name}"), at, Style(height=14))
    return Burned(name, frames, clean, truth, box, True)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the comparison of a stored image with its clean rendering found."""

    outside: int  # stored pixels that are not zero, wholly outside the true sector
    differing: int  # stored pixels that the screen without text does not give
    lost: float  # share of the true sector, with echo, that is not stored


def compare(stored: NDArray[np.uint8], row: dict[str, Any], clean: NDArray[np.uint8], truth: NDArray[np.bool_]) -> Seen:
    """Compare a stored (256, 256) image with the frame without text.

    Args:
        clean: (H, W) or (H, W, 3), the frame that it was made from, without the text.
        truth: (H, W) bool.
    """
    box = slice(row["crop_y0"], row["crop_y1"]), slice(row["crop_x0"], row["crop_x1"])
    near = cv2.dilate(truth.astype(np.uint8), np.ones((2 * _SPILL + 1,) * 2, np.uint8))
    full = preprocess.to_grey(clean)
    given = preprocess.resize(np.ascontiguousarray((full * near)[box]))
    allowed = preprocess.resize(np.ascontiguousarray((near * np.uint8(255))[box]))
    around = np.ones((3, 3), np.uint8)
    highest, lowest = cv2.dilate(given, around).astype(int), cv2.erode(given, around).astype(int)
    kept = cv2.morphologyEx((stored > 0).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5)))
    kept = np.pad(kept, 4)  # what lies beyond the image is not kept
    inner = (cv2.erode(allowed, np.ones((7, 7))) == 255) & (cv2.erode(kept, np.ones((9, 9)))[4:-4, 4:-4] > 0)
    differing = (stored.astype(int) > highest + 8) | (inner & (stored.astype(int) < lowest - 8))
    echo = truth & (full > 20)
    inside = np.zeros_like(echo)
    inside[box] = True
    sure = preprocess.resize(np.ascontiguousarray((echo * np.uint8(255))[box])) > 200
    gone = (sure & (stored == 0)).sum() / max(sure.sum(), 1) * (echo & inside).sum() + (echo & ~inside).sum()
    return Seen(int(((allowed == 0) & (stored > 0)).sum()), int(differing.sum()), float(gone / max(echo.sum(), 1)))
