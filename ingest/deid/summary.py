"""A clip in one look: what its frames have in common, gathered one frame at a time.

Read `summarise` first. The scan area is found from this alone, so memory does not grow with the length of a cine.
Source: anonymization.md section 6, step 3 (temporal maximum and variance over frames).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.preprocess import CHROMA

CELL = 8  # pixels a side of a cell of `Summary.cells`


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What the frames of one item come to. The value of a pixel is the largest of its channels."""

    frames: int  # how many were looked at
    peak: NDArray[np.uint8]  # (H, W), largest value over time
    low: NDArray[np.uint8]  # (H, W), smallest value over time; equal to `peak` for a still
    mean: NDArray[np.uint8]  # (H, W), mean value over time: unlike `peak` it does not add up what compression leaves
    colour: NDArray[np.bool_] | None  # (H, W), clearly coloured in some frame; None for grey frames
    cells: NDArray[np.uint8]  # (frames, H // CELL, W // CELL), mean value of each cell in each frame

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the frames."""
        return self.peak.shape[0], self.peak.shape[1]

    @property
    def colour_share(self) -> float:
        """Share of pixels that are clearly coloured in some frame, in [0, 1]."""
        return 0.0 if self.colour is None else float(np.count_nonzero(self.colour)) / self.colour.size


def summarise(frames: Iterable[NDArray[np.uint8]]) -> Summary:
    """What `find_area` needs of a still (one frame) or of a cine (some 64 frames, evenly spaced, are enough).

    Args:
        frames: uint8, (H, W) or (H, W, 3) RGB, all of one shape.

    Raises:
        ValueError: no frame, or frames of different shapes.
    """
    peak: NDArray[np.uint8] | None = None
    low: NDArray[np.uint8] | None = None
    colour: NDArray[np.uint8] | None = None
    total: NDArray[np.float32] | None = None
    cells: list[NDArray[np.uint8]] = []
    for frame in frames:
        value, spread = _value(frame)
        if peak is None or low is None:
            peak, low = value.copy(), value.copy()
            colour = spread if spread is None else spread.copy()
        elif value.shape != peak.shape or (spread is None) != (colour is None):
            raise ValueError("the frames of a clip must have one shape")
        else:
            total = peak.astype(np.float32) if total is None else total
            cv2.accumulate(value, total)
            cv2.max(peak, value, dst=peak)
            cv2.min(low, value, dst=low)
            if colour is not None and spread is not None:
                cv2.max(colour, spread, dst=colour)
        grid = max(1, value.shape[1] // CELL), max(1, value.shape[0] // CELL)
        cells.append(cv2.resize(value, grid, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False))
    if peak is None or low is None:
        raise ValueError("a clip has at least one frame")
    mean = peak if total is None else np.asarray(cv2.convertScaleAbs(total, alpha=1 / len(cells)), np.uint8)
    return Summary(len(cells), peak, low, mean, None if colour is None else colour >= CHROMA, np.stack(cells))


def _value(frame: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Largest channel of each pixel, and how far the channels lie apart."""
    if frame.ndim == 2:
        return frame, None
    red, green, blue = cv2.split(frame)
    most, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    return most.astype(np.uint8, copy=False), cv2.subtract(most, least).astype(np.uint8, copy=False)
