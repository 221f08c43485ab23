"""DICOM whose secrets lie in or around the pixel data: compressed streams, spare bits, palettes, icons, wrong regions.

Two kinds of secret: text among the bytes (found by the search), and text drawn into pixels (found by comparing what was
stored with the same screen without it).
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from fakes.burned_text import Style, draw_text
from fakes.deid_burn import SIZE
from fakes.deid_dicom import Draft, item, raw, ultrasound
from fakes.deid_media import exif
from fakes.deid_secrets import Secret, name, person, word
from fakes.scans import draw_screen
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A file, and the screen that its picture shows when no text is in it."""

    name: str
    draft: Draft
    secrets: tuple[Secret, ...]
    clean: NDArray[np.uint8]  # (n, H, W) or (n, H, W, 3)
    truth: NDArray[np.bool_]


def encoded(every: int = 1) -> Iterator[Encoded]:
    """All of them, or only each n-th."""
    made: list[Callable[[], Encoded]] = [
        *(_jpeg, _extra_fragment, _jpeg_2000, _rle, _spare_bits, _palette, _icon, _inverted, _planar)
    ]
    for label, box in (
        ("full screen", (0, 0, SIZE[1], SIZE[0])),
        ("over the banner", (0, 0, SIZE[1], SIZE[0] - 60)),
        ("beyond the border", (100, 50, SIZE[1] + 300, SIZE[0] + 200)),
        ("swapped", (500, 400, 100, 60)),
        ("none", (0, 0, 0, 0)),
    ):
        made.append(partial(_wrong_region, label, box))
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        made.append(partial(_syntax, syntax))
    for make in made[::every]:
        yield make()


def _screen(
    seed: int, colour: bool, token: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_], tuple[int, ...]]:
    """(with a banner, without, sector, region)"""
    drawn = draw_screen("curved", seed, SIZE, 1, banner=("US",), colour=colour, background=0, gain=0.9, flank=0.0)
    frame, _ = draw_text(drawn.frames[0], token, (20, 4), Style(height=18, colour="yellow"))
    region = drawn.regions[0]
    return frame, drawn.frames, drawn.truth, (region.x0, region.y0, region.x1, region.y1)


def _draft(
    label: str, seed: int, colour: bool = False
) -> tuple[str, Draft, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    place = f"pixels/{label}"
    frame, clean, truth, box = _screen(seed, colour, word(place))
    return place, ultrasound(place, frame, regions=[box]), frame, clean, truth  # type: ignore[list-item]


def _put(draft: Draft, syntax: str, content: list[bytes], photometric: str = "") -> None:
    draft.meta.TransferSyntaxUID = UID(syntax)
    draft.data.PixelData = encapsulate(content)
    draft.data["PixelData"].VR = "OB"
    draft.data["PixelData"].is_undefined_length = True
    if photometric:
        draft.data.PhotometricInterpretation = photometric


def compress(draft: Draft, frames: NDArray[np.uint8], quality: int = 90) -> None:
    """Put frames, (n, H, W) or (n, H, W, 3) RGB, into a draft as JPEG baseline, the commonest form of clips."""
    streams = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        streams.append(buffer.getvalue())
    _put(draft, JPEGBaseline8Bit, streams, "YBR_FULL_422" if frames.ndim == 4 else "MONOCHROME2")


def _jpeg() -> Encoded:
    """A comment and EXIF inside the JPEG frame, and bytes behind its end."""
    place, draft, frame, clean, truth = _draft("JPEG frame's comment, EXIF, tail", 201)
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95, exif=exif(word(place)), comment=word(place).encode())
    _put(draft, JPEGBaseline8Bit, [buffer.getvalue() + word(place).encode()])
    return Encoded(place, draft, (name(place),), clean, truth)


def _extra_fragment() -> Encoded:
    place, draft, frame, clean, truth = _draft("fragment behind the last frame", 202)
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    _put(draft, JPEGBaseline8Bit, [buffer.getvalue(), word(place).encode() * 4])
    return Encoded(place, draft, (name(place),), clean, truth)


def _jpeg_2000() -> Encoded:
    """A comment marker in the main header of a JPEG 2000 codestream."""
    place, draft, frame, clean, truth = _draft("JPEG 2000 comment", 203)
    stream = cv2.imencode(".jp2", frame, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1].tobytes()
    stream = stream[stream.index(b"\xff\x4f\xff\x51") :]
    at = stream.index(b"\xff\x52")
    text = word(place).encode()
    comment = b"\xff\x64" + (len(text) + 4).to_bytes(2) + b"\0\x01" + text
    _put(draft, JPEG2000Lossless, [stream[:at] + comment + stream[at:]])
    return Encoded(place, draft, (name(place),), clean, truth)


def _rle() -> Encoded:
    place, draft, frame, clean, truth = _draft("RLE segment's tail", 204)
    options = {"rows": frame.shape[0], "columns": frame.shape[1], "samples_per_pixel": 1, "bits_allocated": 8}
    options |= {"bits_stored": 8, "pixel_representation": 0, "number_of_frames": 1, "encoding_plugin": "pydicom"}
    stream = RLELosslessEncoder.encode(frame.tobytes(), photometric_interpretation="MONOCHROME2", **options)
    _put(draft, RLELossless, [stream + word(place).encode() * 2])
    return Encoded(place, draft, (name(place),), clean, truth)


def _spare_bits() -> Encoded:
    """16 bits allocated, 8 stored; a retired overlay, with text over the tissue, in bit 12."""
    place, draft, frame, clean, truth = _draft("overlay in the bits above BitsStored", 205)
    text, ink = draw_text(np.zeros_like(frame), word(place), (250, 240), Style(height=24))
    del text
    wide = frame.astype("<u2") | (ink.astype("<u2") << 12)
    draft.data.BitsAllocated = 16
    raw(draft.data, "PixelData", "OW", wide.tobytes())
    raw(draft.data, (0x6000, 0x0102), "US", (12).to_bytes(2, "little"))
    return Encoded(place, draft, (), clean, truth)


def _palette() -> Encoded:
    """A name in palette entries that no pixel uses."""
    place, draft, frame, clean, truth = _draft("unused palette entries", 206)
    half, text = (frame // 2).astype(np.uint8), word(place).encode()
    levels = np.repeat(np.arange(128, dtype="<u2") * 2 * 257, 1)
    spare = np.frombuffer(text.ljust(256, b" "), "<u2")
    draft.data.PhotometricInterpretation = "PALETTE COLOR"
    raw(draft.data, "PixelData", "OW", half.tobytes())
    for colour in ("Red", "Green", "Blue"):
        raw(draft.data, f"{colour}PaletteColorLookupTableDescriptor", "US", np.array([256, 0, 16], "<u2").tobytes())
        raw(draft.data, f"{colour}PaletteColorLookupTableData", "OW", np.concatenate([levels, spare]).tobytes())
    return Encoded(place, draft, (name(place),), clean // 2 * 2, truth)


def _icon() -> Encoded:
    """A thumbnail of the picture with its banner, and a name as its grey levels."""
    place, draft, frame, clean, truth = _draft("icon", 207)
    small = cv2.resize(frame, (64, 64)).astype(np.uint8)
    text = np.frombuffer(word(place).encode(), np.uint8)
    small[0, : len(text)] = text
    icon = item(Rows=64, Columns=64, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=8)
    icon.BitsStored, icon.HighBit, icon.PixelRepresentation = 8, 7, 0
    raw(icon, Tag("PixelData"), "OB", small.tobytes())
    draft.data.IconImageSequence = Items([icon])
    return Encoded(place, draft, (name(place),), clean, truth)


def _inverted() -> Encoded:
    """MONOCHROME1: zero is white, so that a blank would shine."""
    place, draft, frame, clean, truth = _draft("MONOCHROME1 with a banner", 208)
    draft.data.PhotometricInterpretation = "MONOCHROME1"
    raw(draft.data, "PixelData", "OB", (255 - frame).tobytes())
    return Encoded(place, draft, (), clean, truth)


def _planar() -> Encoded:
    place, draft, frame, clean, truth = _draft("RGB by planes with a banner", 209, colour=True)
    draft.data.PlanarConfiguration = 1
    raw(draft.data, "PixelData", "OB", frame.transpose(2, 0, 1).tobytes())
    return Encoded(place, draft, (), clean, truth)


def _wrong_region(label: str, box: tuple[int, int, int, int]) -> Encoded:
    """A banner and a region that would let it through."""
    place = f"pixels/region {label}"
    frame, clean, truth, _ = _screen(220, False, word(place))
    return Encoded(place, ultrasound(place, frame, regions=[box] if any(box) else []), (), clean, truth)


def _syntax(syntax: str) -> Encoded:
    """Names in the header under another encoding of the data set."""
    place = f"pixels/names under {UID(syntax).name}"
    frame, clean, truth, box = _screen(230, False, word(place))
    draft = ultrasound(place, frame, regions=[box], syntax=syntax)  # type: ignore[list-item]
    draft.data.OperatorsName = person(place).value
    draft.data.DerivationDescription = f"by {word(place)}"
    return Encoded(place, draft, (person(place), Secret(f"{place}, text", (word(place),), word(place))), clean, truth)
