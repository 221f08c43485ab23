"""DICOM ultrasound: the header as a checked data set, the frames one at a time as grey or RGB.

Everything here runs in a child process of one thread that works on one file at a time; call `quiet_pydicom` in it
first. No message, repr or exception holds anything of a file: see dicom_source.py. How a file is taken apart, and what
is refused, is said in dicom_parse.py (structure), dicom_kind.py (objects), dicom_pixels.py and dicom_palette.py
(samples and colours), dicom_codecs.py and dicom_video.py (compression).
"""

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ingest.deid.reasons import Reason
from ingest.readers import dicom_codecs, dicom_kind, dicom_parse, dicom_pixels, dicom_video
from ingest.readers.dicom_pixels import PixelLayout
from ingest.readers.dicom_source import Source, attempt, opened, refused

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_PIXELS = 1 << 24  # of a frame; the largest screens have half as many; ours
MAX_DECODED = 64 << 30  # bytes of all frames together; ours
_NATIVE = frozenset((dicom_parse.IMPLICIT, dicom_parse.EXPLICIT, dicom_parse.BIG_ENDIAN, dicom_parse.DEFLATED))
_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg", "libjpeg", "rle", "jpeg_ls", "gdcm", "PIL")


@dataclass(frozen=True, slots=True, repr=False)
class DicomImage:
    """An ultrasound picture or cine whose header was read and found whole; its pixels are still in the file."""

    path: Path
    dataset: "Dataset"  # everything but the pixel data; `.file_meta` too. Values over 1 MiB are empty
    transfer_syntax: str  # one of those that are read
    frames: int
    shape: tuple[int, int]  # (H, W)
    colour: bool  # frames are (H, W, 3) RGB, else (H, W) grey
    photometric: str  # one of those that are read
    layout: PixelLayout


def quiet_pydicom() -> None:
    """Silence pydicom and the decoders in this process: their warnings, logs and errors quote values.

    Values that do not fit their representation are then converted as far as they go instead of raising.
    """
    from pydicom import config

    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
    warnings.simplefilter("ignore")
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE
    config.convert_wrong_length_to_UN = True
    config.replace_un_with_known_vr = False  # dicom_parse has looked them up; pydicom would make sequences of them
    config.INVALID_KEYWORD_BEHAVIOR = config.INVALID_KEY_BEHAVIOR = "IGNORE"


def open_dicom(path: Path) -> DicomImage:
    """Read the header of an ultrasound picture; the pixel data is found and measured, not loaded.

    Raises:
        Refusal: step "read"; missing, empty_file, unsupported (not DICOM), truncated, unreadable, trailing_bytes,
            deep_nesting, too_large; dicomdir, not_an_image, screen_form, not_ultrasound, no_pixels; transfer_syntax,
            photometric, pixel_length. Nothing else is raised, whatever the bytes.
    """
    return attempt(_open, Path(path))


def read_frames(image: DicomImage, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The frames `indices` (0-based, ascending) as (index, uint8 (H, W) grey or (H, W, 3) RGB), one at a time.

    Raises:
        ValueError: indices negative, or not strictly ascending.
        Refusal: step "read"; frame_missing for an index beyond the last frame; pixel_length, photometric, truncated,
            unreadable, too_large, transfer_syntax, or plugin_missing_* which names what to install.
    """
    wanted = list(indices)
    if any(index < 0 for index in wanted[:1]) or any(b <= a for a, b in pairwise(wanted)):
        raise ValueError("frame indices must be 0 or more and ascending")
    if wanted and wanted[-1] >= image.frames:
        raise refused(Reason.FRAME_MISSING)
    frames = _frames(image, wanted)
    while (found := attempt(next, frames, None)) is not None:
        yield found


def _frames(image: DicomImage, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    layout = image.layout
    with opened(image.path) as source:
        if layout.syntax == dicom_parse.DEFLATED:
            source = source.inflated(dicom_parse.dataset_at(source)[1])
        if layout.syntax in _NATIVE:
            yield from dicom_pixels.native_frames(layout, source, indices)
        elif layout.syntax in dicom_codecs.VIDEO:
            yield from dicom_video.video_frames(layout, source, indices)
        else:
            yield from dicom_codecs.encapsulated_frames(layout, source, indices)


def _open(path: Path) -> DicomImage:
    if path.name.upper() == "DICOMDIR":
        raise refused(Reason.DICOMDIR)
    with opened(path) as source:
        meta, start = dicom_parse.dataset_at(source)
        content: Source = source
        if dicom_parse.syntax_of(meta) == dicom_parse.DEFLATED:
            content = source.inflated(start)
            start = 0
        parsed = dicom_parse.parse(content, meta, start)
    elements = parsed.elements
    sop_class = _word(elements, 0x00080016) or _word(meta, 0x00020002)
    reason = dicom_kind.refuse_kind(sop_class, _word(elements, 0x00080060), 0x00041220 in elements)
    if reason:
        raise refused(reason)
    layout = _layout(parsed)
    return DicomImage(
        path=path,
        dataset=parsed.dataset,
        transfer_syntax=layout.syntax,
        frames=layout.frames,
        shape=(layout.rows, layout.columns),
        colour=layout.colour,
        photometric=layout.photometric,
        layout=layout,
    )


def _layout(parsed: dicom_parse.Parsed) -> PixelLayout:
    """The pixel description (PS3.3 C.7.6.3), checked for sense, and against the bytes as far as the header goes."""
    elements, syntax = parsed.elements, parsed.syntax
    if parsed.pixels is None or not parsed.pixels.length:
        raise refused(Reason.NO_PIXELS)
    if syntax not in _NATIVE | dicom_codecs.SYNTAXES | dicom_codecs.VIDEO:
        raise refused(Reason.TRANSFER_SYNTAX)
    photometric = _word(elements, 0x00280004)
    samples = _number(elements, 0x00280002, 1 if photometric in {*dicom_pixels.GREYS, "PALETTE COLOR"} else 3)
    rows, columns = _number(elements, 0x00280010), _number(elements, 0x00280011)
    frames = _count(elements, 0x00280008)
    allocated = _number(elements, 0x00280100)
    stored = _number(elements, 0x00280101, allocated)
    high, signed = _number(elements, 0x00280102, stored - 1), _number(elements, 0x00280103, 0)
    planar = _number(elements, 0x00280006, 0)
    if not rows or not columns or not frames or signed > 1 or planar > 1:
        raise refused(Reason.UNREADABLE)
    grey = photometric in dicom_pixels.GREYS or photometric == "PALETTE COLOR"
    if samples != (1 if grey else 3) or (signed and not grey):
        raise refused(Reason.PHOTOMETRIC)
    if allocated not in (8, 16) or not (0 < stored <= allocated) or not (stored <= high + 1 <= allocated):
        raise refused(Reason.PHOTOMETRIC)
    if rows * columns > MAX_PIXELS or frames * rows * columns * samples * allocated // 8 > MAX_DECODED:
        raise refused(Reason.TOO_LARGE)
    if syntax not in _NATIVE and syntax != dicom_codecs.RLE:
        high = stored - 1  # a decoder gives samples, not containers
    layout = PixelLayout(
        syntax=syntax,
        little=parsed.little,
        element=parsed.pixels,
        frames=frames,
        rows=rows,
        columns=columns,
        samples=samples,
        photometric=photometric,
        planar=planar == 1 and samples == 3,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=signed == 1,
        table=None,
    )
    check = (
        dicom_pixels.check_native
        if syntax in _NATIVE
        else dicom_video.check_video
        if syntax in dicom_codecs.VIDEO
        else dicom_codecs.check_encapsulated
    )
    check(layout)
    table = dicom_pixels.table_of(elements, photometric, allocated, stored, high, signed == 1, parsed.little)
    return replace(layout, table=table)


def _bytes(elements: Any, tag: int) -> bytes:
    """The value of an element as it is in the file; empty if it is absent, empty, or a sequence."""
    value = getattr(elements.get(tag), "value", None)
    return value if isinstance(value, bytes) else b""


def _word(elements: Any, tag: int) -> str:
    return " ".join(_bytes(elements, tag).replace(b"\0", b" ").decode("latin-1").upper().split())


def _number(elements: Any, tag: int, default: int | None = None) -> int:
    """An unsigned 16-bit value.

    Raises:
        Refusal: unreadable, when it is no such value, or absent and there is no default.
    """
    raw, value = elements.get(tag), _bytes(elements, tag)
    if not value and default is not None and getattr(raw, "VR", "US") != "SQ":
        return default
    if len(value) != 2 or raw.VR not in ("US", "SS", "US or SS"):
        raise refused(Reason.UNREADABLE)
    return int.from_bytes(value, "little" if raw.is_little_endian else "big")


def _count(elements: Any, tag: int) -> int:
    """A number of frames; 1 if it is absent or empty.

    Raises:
        Refusal: unreadable, when it is no whole number.
    """
    text = _bytes(elements, tag).strip(b"\0 ")
    if not text:
        return 1
    if not re.fullmatch(rb"\+?\d{1,9}", text):
        raise refused(Reason.UNREADABLE)
    return int(text)
