"""From stored sample values to grey or RGB: what the pixel description of a data set means (PS3.3 C.7.6.3, PS3.5 8).

Each stored container of 8 or 16 bits goes through one table that takes the stored bits out (retired overlays live in
the others, anonymization.md H3), orders signed values, scales to 8 bits, inverts MONOCHROME1 or looks the palette up.
What is left open by the standard is settled here, once (ours):

- other than 8 stored bits become 8 in a straight line from the whole stored range: round(255 v / (2^stored - 1));
  no window (VOI) and no rescaling is applied;
- 16-bit palette entries give their upper byte, unless no entry of the palette exceeds 255: then they are 8 bits;
- YBR becomes RGB by PS3.3 C.7.6.3.1.2, rounded, once; the chroma of 4:2:2 is repeated;
- a padding value, an ICC profile and the pixel aspect ratio change nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.deid.reasons import Reason
from ingest.readers.dicom_palette import palette_table
from ingest.readers.dicom_parse import PixelElement
from ingest.readers.dicom_source import Source, refused

GREYS = frozenset(("MONOCHROME1", "MONOCHROME2"))
HALVED = frozenset(("YBR_FULL_422", "YBR_PARTIAL_422"))
NATIVE = GREYS | HALVED | {"PALETTE COLOR", "RGB", "YBR_FULL"}

# Columns Y, Cb, Cr and a constant; rows R, G, B. Full range; the second for Y in 16..235, Cb and Cr in 16..240.
_KR, _KG, _KB = 0.299, 0.587, 0.114
_CR = np.array([2 * (1 - _KR), -2 * _KR * (1 - _KR) / _KG, 0])
_CB = np.array([0, -2 * _KB * (1 - _KB) / _KG, 2 * (1 - _KB)])


@dataclass(frozen=True, slots=True, repr=False)
class PixelLayout:
    """How the samples of one picture are stored, checked for sense but not yet against the bytes."""

    syntax: str
    little: bool
    element: PixelElement
    frames: int
    rows: int
    columns: int
    samples: int  # 1 or 3
    photometric: str
    planar: bool  # all of one colour, then all of the next
    allocated: int  # bits of a container: 8 or 16
    stored: int  # bits of a sample in it
    high: int  # its highest bit
    signed: bool
    table: NDArray[np.uint8] | None  # (2^allocated,) or, of a palette, (2^allocated, 3); None: bytes stay as they are

    @property
    def colour(self) -> bool:
        """Whether frames are RGB."""
        return self.samples == 3 or self.photometric == "PALETTE COLOR"


def value_table(allocated: int, stored: int, high: int, signed: bool, inverted: bool) -> NDArray[np.uint8] | None:
    """8-bit grey of every possible container, uint8 (2^allocated,); None where a byte is its own grey."""
    if (allocated, stored, high, signed, inverted) == (8, 8, 7, False, False):
        return None
    values, top = stored_values(allocated, stored, high, signed)
    grey = ((values - values.min()) * 255 + top // 2) // top
    return (255 - grey if inverted else grey).astype(np.uint8)


def stored_values(allocated: int, stored: int, high: int, signed: bool) -> tuple[NDArray[np.int32], int]:
    """The sample that each possible container holds, int32 (2^allocated,), and the width of their range."""
    top = (1 << stored) - 1
    values = np.arange(1 << allocated, dtype=np.int32) >> (high + 1 - stored) & top
    if signed:
        values = np.where(values > top >> 1, values - top - 1, values).astype(np.int32)
    return values, top


def table_of(
    elements: object, photometric: str, allocated: int, stored: int, high: int, signed: bool, little: bool
) -> NDArray[np.uint8] | None:
    """The table of a layout; see `PixelLayout.table`.

    Raises:
        Refusal: photometric, when a palette is missing or makes no sense.
    """
    if photometric != "PALETTE COLOR":
        return value_table(allocated, stored, high, signed, photometric == "MONOCHROME1")
    values, _ = stored_values(allocated, stored, high, signed)
    return palette_table(elements, values, signed, little)


def frame_bytes(layout: PixelLayout) -> int:
    """Bytes of one native frame."""
    samples = 2 if layout.photometric in HALVED else layout.samples  # two pixels share their chroma
    return layout.rows * layout.columns * samples * (layout.allocated // 8)


def check_native(layout: PixelLayout) -> None:
    """Compare the length of native pixel data with what the description says; one byte of padding is allowed.

    Raises:
        Refusal: pixel_length, photometric.
    """
    if layout.photometric not in NATIVE or (layout.photometric in HALVED and layout.columns % 2):
        raise refused(Reason.PHOTOMETRIC)
    if layout.element.fragments is not None:
        raise refused(Reason.PIXEL_LENGTH)
    if layout.element.length - layout.frames * frame_bytes(layout) not in (0, 1):
        raise refused(Reason.PIXEL_LENGTH)


def native_frames(
    layout: PixelLayout, source: Source, indices: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Frames of uncompressed pixel data, each read from its own place in the file.

    Raises:
        Refusal: truncated, when the file has become shorter.
    """
    size, start = frame_bytes(layout), layout.element.offset
    swapped = not layout.little and layout.allocated == 8 and layout.element.words
    for index in indices:
        at = start + index * size
        pairs = _unswapped(source, start, at, size, layout.element.length) if swapped else None
        content = source.array(at, size) if pairs is None else pairs
        yield index, finish(layout, shaped(layout, content))


def _unswapped(source: Source, start: int, at: int, size: int, length: int) -> NDArray[np.uint8]:
    """Bytes that were written as big-endian words: each pair, counted from the first byte of all, changes places."""
    begin = at - (at - start) % 2
    end = at + size + (at + size - start) % 2
    if end > start + length:  # an odd number of bytes can't have been words
        raise refused(Reason.PIXEL_LENGTH)
    pairs = source.array(begin, end - begin).view("u2").byteswap().view(np.uint8)
    return pairs[at - begin : at - begin + size]


def shaped(layout: PixelLayout, content: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The containers of one native frame as uint8 or uint16 (H, W) or (H, W, 3)."""
    height, width = layout.rows, layout.columns
    values: NDArray = content
    if layout.allocated == 16:
        values = content.view("<u2" if layout.little else ">u2").astype(np.uint16, copy=False)
    if layout.photometric in HALVED:
        return _doubled(values.reshape(height, width // 2, 4))
    if layout.samples == 1:
        return values.reshape(height, width)
    if layout.planar:
        return cv2.merge(list(values.reshape(3, height, width)))
    return values.reshape(height, width, 3)


def _doubled(quads: NDArray) -> NDArray:
    """(H, W/2, 4) of Y, Y, Cb, Cr to (H, W, 3)."""
    luma = np.ascontiguousarray(quads[..., :2]).reshape(len(quads), -1)
    return cv2.merge([luma, *(np.repeat(quads[..., channel], 2, axis=1) for channel in (2, 3))])


def finish(layout: PixelLayout, values: NDArray, photometric: str | None = None) -> NDArray[np.uint8]:
    """Grey or RGB of one frame of containers; `photometric` when a decoder has changed it."""
    table = layout.table
    if table is not None:
        values = _looked_up(values, table)
    ybr = photometric or layout.photometric
    if layout.samples == 3 and ybr.startswith("YBR"):
        return to_rgb(values, partial="PARTIAL" in ybr)
    return values


def _looked_up(values: NDArray, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if values.dtype != np.uint8:
        return np.take(table, values, axis=0)
    if table.ndim == 2:  # a palette; three equal channels through three tables is OpenCV's quick way
        return np.asarray(cv2.LUT(cv2.merge([values] * 3), table.reshape(1, 256, 3)), np.uint8)
    return np.asarray(cv2.LUT(values, table), np.uint8)


def to_rgb(ybr: NDArray[np.uint8], partial: bool = False) -> NDArray[np.uint8]:
    """RGB of YBR_FULL, or of YBR_PARTIAL, pixels: uint8 (H, W, 3)."""
    luma, chroma, black = (255 / 219, 255 / 224, 16) if partial else (1, 1, 0)
    matrix = np.empty((3, 4))
    matrix[:, 0], matrix[:, 1], matrix[:, 2] = luma, chroma * _CB, chroma * _CR
    matrix[:, 3] = -luma * black - 128 * (matrix[:, 1] + matrix[:, 2])
    # In floats: OpenCV's way with bytes is coarser, and one level off in 4 % of all values.
    rgb: NDArray = cv2.transform(ybr.astype(np.float32), matrix.astype(np.float32))
    np.clip(rgb, 0, 255, out=rgb)
    rgb += 0.5
    return rgb.astype(np.uint8)
