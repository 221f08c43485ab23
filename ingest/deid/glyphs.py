"""Is something written on the tissue? Step 5 of the decision procedure of anonymization.md, section 6.

`TextCheck` looks at every frame of a clip inside the scan area: letters, digits, callipers, arrows, body marks. It can
only reject; a clip that passes is not thereby free of text: tests/deid/test_glyphs.py has what it finds. On pictures
that were not used for fitting it finds all of 970 drawn words, bright, faint or black, of 7 px and more, two letters of
which differ by 40 grey levels from the tissue beside them. Of black ones it finds all of 448 from 30 levels on, and 93
in 100 between 20 and 30; of faint white ones 77 in 100 between 30 and 40, and few below. In one frame of a cine, where
the quick tests come first, it finds dark and faint words a little less often.

Four tests, each enough to reject:

* steps between neighbouring pixels that are steeper than the tissue of the same picture has them, close together
  (`glyphs_maps`): a linear score of windows of 16 x 16 and 16 x 32 pixels, three of them: for marks and short
  words, for words, for dark words;
* the same on copies of half and quarter size, where letters with soft edges (blurred, or enlarged after drawing) have
  steep ones;
* thin strokes of colour on a picture that is grey or tinted and shows no colour flow;
* at the end of a cine the first test once more, on the darkest and the brightest value that each pixel ever had: there
  moving tissue is smooth, and what stands still stands out.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.deid.glyphs_maps import (
    CELL,
    CHANNELS,
    QUICK,
    QUICK_DARK,
    USUAL,
    Bytes,
    Floats,
    Steps,
    grey,
    half_mask,
    logs,
    reference,
)
from ingest.deid.glyphs_weights import DARK, SCREEN, SCREEN_DARK, SMALL, WORD

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the frame, the last two one past the end

#: Windows in cells, and the weights of their score
HEADS = (((2, 2), SMALL), ((2, 4), WORD), ((2, 4), DARK))
#: By how much the picture is made smaller, and the score of each head from which a window is text (ours: of 281 clean
#: real pictures 3 alarm at full size, 6 with the copies; of white words of 22 px under a blur of 1.5 px 82 in 100 are
#: found at full size alone, 99 with the copies; of 32 px under 2.5 px 5, and 86)
SCALES = ((1, (3.0, 3.0, 3.0)), (2, (4.0, 3.0, 7.0)), (4, (9.0, 8.0, 15.0)))
#: The same of the quick tests, each on the first so many channels of `Steps.quick`, and the score from which the whole
#: test is made (ours: 1 of 20 clean pictures)
SCREENS = ((QUICK, SCREEN, 0.0), (QUICK_DARK, SCREEN_DARK, 1.2))
WINDOWS = ((2, 2), (2, 4))
SCREEN_WINDOW = (2, 4)
EVERY = 16  # frames of a cine from one whole test to the next, whatever the quick test says (ours)
LEAST_FRAMES = 8  # below it nothing is said about what stands still (ours)
MOVED = 6.0  # mean grey levels between a pixel's darkest and brightest: below, the picture stood still (ours)
LEAST_SIDE = 4 * CELL  # pixels
LEAST_COPY = 14 * CELL  # pixels a side of a smaller copy: of fewer, too few are left to tell what is usual (ours)
COLOURED = (40, 0.3)  # levels plus share of the brightest of R, G, B by which it exceeds the least: no tint does (ours)
FLOW_WIDTH, FLOW_PIXELS = 5, 40  # at half size: what is wider, in all more than so many pixels, is colour flow, no ink
BLUE, BLUE_PIXELS = 60, 12  # so much bluer than red and green is flow too, however thin: no console writes in it (ours)
COLOURED_PIXELS = 5  # at half size, within 8 x 16 of them


class TextCheck:
    """Looks for text inside the scan area of one clip. Holds state: one instance per clip, frames in their order."""

    def __init__(self, mask: NDArray[np.bool_], box: Box) -> None:
        """
        Args:
            mask: bool (H, W), the scan area.
            box: the part of the frame that holds the mask; at least 32 px a side.

        Raises:
            ValueError: the box is smaller, or lies not in the frame.
        """
        x0, y0, x1, y1 = box
        if x0 < 0 or y0 < 0 or y1 > mask.shape[0] or x1 > mask.shape[1] or min(x1 - x0, y1 - y0) < LEAST_SIDE:
            raise ValueError("the box of the scan area is too small or lies outside of the frame")
        self._shape = mask.shape
        # Whole cells: the box grows to the right and downwards, where the frame ends the rest is filled up
        self._x, self._y = x0, y0
        self._size = (-(-(y1 - y0) // CELL) * CELL, -(-(x1 - x0) // CELL) * CELL)
        self._mask = self._cut(mask.astype(np.uint8), fill=True) > 0
        outside = np.ones(mask.shape, bool)
        outside[y0:y1, x0:x1] = False
        self._mask &= self._cut((~outside).astype(np.uint8), fill=True) > 0
        self._steps = Steps(self._mask)
        self._copies = [copy for copy in (_Copy(self._mask, *scale) for scale in SCALES) if copy.steps is not None]
        self._half = half_mask(self._mask).astype(np.uint8)
        self._usual: Floats | None = None  # of the screen's window, from the last whole test
        self._frames = 0
        self._dark: Bytes | None = None
        self._bright: Bytes | None = None

    def look(self, frame: NDArray[np.uint8]) -> Box | None:
        """Where text is on a frame, uint8 (H, W) or (H, W, 3) RGB; None if none was found.

        Raises:
            ValueError: a frame of another size than the mask.
        """
        if frame.shape[:2] != self._shape:
            raise ValueError("the frame's size is not the mask's")
        part = self._cut(frame)
        image = grey(part)
        self._remember(image)
        whole = self._frames % EVERY == 0 or self._usual is None
        self._frames += 1
        if whole or self._suspicious(image):
            found = self._search(image, keep=True)
            if found is not None:
                return found
        return self._coloured(part) if part.ndim == 3 else None

    def end(self) -> Box | None:
        """After the last frame: where something stood still and sharp while the tissue moved. None for stills."""
        if self._frames < LEAST_FRAMES or self._dark is None or self._bright is None:
            return None
        moved = cv2.mean(cv2.subtract(self._bright, self._dark), mask=self._mask.astype(np.uint8))[0]
        if moved < MOVED:
            return None  # as one frame, and that was looked at
        # Not on smaller copies: there the extremes of moving tissue are as sharp as soft letters
        return self._search(self._dark, 1) or self._search(self._bright, 1)

    def _cut(self, frame: NDArray[np.uint8], *, fill: bool = False) -> NDArray[np.uint8]:
        """The box of `frame` in whole cells; repeats the last row and column where the frame ends (`fill`: zeros)."""
        height, width = self._size
        part = frame[self._y : self._y + height, self._x : self._x + width]
        lacking = (height - part.shape[0], width - part.shape[1])
        if any(lacking):
            how = cv2.BORDER_CONSTANT if fill else cv2.BORDER_REPLICATE
            part = cv2.copyMakeBorder(part, 0, lacking[0], 0, lacking[1], how)  # type: ignore[assignment]
        return part

    def _remember(self, image: Bytes) -> None:
        if self._dark is None or self._bright is None:
            self._dark, self._bright = image.copy(), image.copy()
        else:
            cv2.min(self._dark, image, dst=self._dark)
            cv2.max(self._bright, image, dst=self._bright)

    def _suspicious(self, image: Bytes) -> bool:
        """The quick tests: may be wrong in either direction, more often in the one that costs only time."""
        if self._usual is None:
            return True
        found = logs(self._steps.quick(image), self._steps.coverage, *SCREEN_WINDOW)
        if found is None:
            return True
        for channels, weights, alarm in SCREENS:
            scores = _scores(found[0][: len(channels)], self._usual[:, list(channels)], weights, channels)
            if scores.max() > alarm:
                return True
        return False

    def _search(self, image: Bytes, scales: int = len(SCALES), *, keep: bool = False) -> Box | None:
        """The whole test on one grey picture, at the first so many `SCALES`. `keep`: what is usual in it serves the
        quick tests of the next ones."""
        for copy in self._copies[:scales]:
            boxes, usual = copy.search(image)
            if keep and copy.smaller == 1:
                self._usual = usual
            if boxes:
                return self._box(np.array(boxes))
        return None

    def _coloured(self, part: Bytes) -> Box | None:
        """Coloured ink on a picture that is grey or tinted; where colour flow is shown the first test alone decides."""
        size = (self._half.shape[1], self._half.shape[0])
        red, green, blue = cv2.split(cv2.resize(part, size, interpolation=cv2.INTER_AREA))
        most = cv2.max(cv2.max(red, green), blue)
        span = cv2.subtract(most, cv2.min(cv2.min(red, green), blue))
        excess = cv2.subtract(span, cv2.convertScaleAbs(most, alpha=COLOURED[1]))
        ink = cv2.threshold(excess, COLOURED[0], 1, cv2.THRESH_BINARY)[1]
        ink = cv2.bitwise_and(ink, self._half)
        if cv2.countNonZero(ink) < COLOURED_PIXELS:
            return None
        wide = cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((FLOW_WIDTH, FLOW_WIDTH), np.uint8))
        blueness = cv2.bitwise_and(cv2.subtract(blue, cv2.max(red, green)), self._half * 255)
        bluest = cv2.countNonZero(cv2.threshold(blueness, BLUE, 1, cv2.THRESH_BINARY)[1])
        if cv2.countNonZero(wide) > FLOW_PIXELS or bluest >= BLUE_PIXELS:
            return None
        near = cv2.boxFilter(ink, cv2.CV_16U, (16, 8), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
        hits = np.argwhere(near >= COLOURED_PIXELS)
        if not len(hits):
            return None
        y0, x0 = hits.min(axis=0) * 2
        y1, x1 = (hits.max(axis=0) + np.array((8, 16))) * 2
        return self._box(np.array([(x0, y0, x1, y1)]))

    def _box(self, boxes: NDArray[np.int64]) -> Box:
        """The union of boxes of the cut, as a box of the frame."""
        x0, y0 = boxes[:, 0].min() + self._x, boxes[:, 1].min() + self._y
        x1, y1 = boxes[:, 2].max() + self._x, boxes[:, 3].max() + self._y
        return int(x0), int(y0), min(int(x1), self._shape[1]), min(int(y1), self._shape[0])


class _Copy:
    """The scan area at one of `SCALES`, and the whole test there."""

    def __init__(self, mask: NDArray[np.bool_], smaller: int, alarms: tuple[float, ...]) -> None:
        """`mask`: bool (h, w), whole cells. `steps` is None where too little is left of it."""
        self.smaller, self.alarms = smaller, alarms
        self._size = mask.shape[1] // smaller, mask.shape[0] // smaller
        self._lacking = -self._size[1] % CELL, -self._size[0] % CELL
        self.steps: Steps | None = None
        if min(self._size) >= (LEAST_SIDE if smaller == 1 else LEAST_COPY):
            inside = self._shrunk(mask.astype(np.uint8) * 255, cv2.BORDER_CONSTANT) == 255
            self.steps = Steps(inside) if inside.any() else None

    def _shrunk(self, image: Bytes, border: int) -> Bytes:
        """Of this size, in whole cells."""
        small = image if self.smaller == 1 else cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        below, right = self._lacking
        return cv2.copyMakeBorder(small, 0, below, 0, right, border) if below or right else small  # type: ignore[return-value]

    def search(self, image: Bytes) -> tuple[list[Box], Floats | None]:
        """Boxes of text in a picture of the mask's size, and what is usual in the windows of the quick tests."""
        assert self.steps is not None
        cells = self.steps.all(self._shrunk(image, cv2.BORDER_REPLICATE))
        boxes: list[Box] = []
        kept: Floats | None = None
        for size in WINDOWS:
            found = logs(cells, self.steps.coverage, *size)
            if found is None:
                continue
            values, places = found
            usual = reference(values)
            kept = usual if size == SCREEN_WINDOW else kept
            for (window, weights), alarm in zip(HEADS, self.alarms, strict=True):
                if window != size:
                    continue
                hits = places[_scores(values, usual, weights, range(CHANNELS)) > alarm]
                if len(hits):
                    pixels = CELL * self.smaller
                    y0, x0 = hits.min(axis=0) * pixels
                    y1, x1 = (hits.max(axis=0) + np.array(size)) * pixels
                    boxes.append((int(x0), int(y0), int(x1), int(y1)))
        return boxes, kept


def _scores(values: Floats, usual: Floats, weights: tuple[float, ...], channels: Sequence[int]) -> Floats:
    """The score of each window: weights of its `logs`, then of what is usual, then the constant."""
    number = len(channels)
    kept = [k for k, channel in enumerate(channels) if channel in USUAL]
    table = np.array(weights, np.float32)
    return table[:number] @ values + (table[number:-1] @ usual[:, kept].ravel() + table[-1])
