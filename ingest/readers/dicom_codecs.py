"""Encapsulated pixel data: which fragments make a frame, which plugin decodes it, what its colours are.

Settled here (ours):

- offset tables are not read: they may be empty or lie. A frame begins where a fragment begins with the codec's own
  signature; with RLE a fragment is a frame, as PS3.5 A.4.2 has it. The count must be NumberOfFrames;
- a code stream must state the size and number of colours that the header states, before anything is decoded;
- each syntax has its plugins in a fixed order; the first that is installed decodes, no other is tried after a failure;
- the code stream decides where it and PhotometricInterpretation disagree about JPEG (component names, Adobe and JFIF
  markers: pydicom's rule, and Adobe's); in JPEG 2000 such a disagreement is refused, as `photometric`.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.deid.reasons import Reason
from ingest.readers.dicom_pixels import GREYS, PixelLayout, finish
from ingest.readers.dicom_source import Source, attempt, refused

_UID = "1.2.840.10008.1.2."
RLE, BASELINE, EXTENDED = _UID + "5", _UID + "4.50", _UID + "4.51"
_LOSSLESS = frozenset((_UID + "4.57", _UID + "4.70"))
_LS = frozenset((_UID + "4.80", _UID + "4.81"))
_J2K = frozenset((_UID + "4.90", _UID + "4.91"))
_HTJ2K = frozenset(_UID + "4." + end for end in ("201", "202", "203"))
SYNTAXES = _LOSSLESS | _LS | _J2K | _HTJ2K | {RLE, BASELINE, EXTENDED}
VIDEO = frozenset(
    [_UID + f"4.{number}{end}" for number in range(100, 107) for end in ("", ".1")] + [_UID + "4.107", _UID + "4.108"]
)

# Plugins by syntax, the first installed one decodes; and what is said when none is.
_PLUGINS: dict[str, tuple[tuple[str, ...], Reason]] = {
    RLE: (("pylibjpeg", "pydicom"), Reason.PLUGIN_MISSING_RLE),
    EXTENDED: (("pylibjpeg",), Reason.TRANSFER_SYNTAX),  # 12 bits: only a plugin under the GPL decodes them
    **dict.fromkeys(_LOSSLESS, (("gdcm", "pylibjpeg"), Reason.PLUGIN_MISSING_JPEG_LOSSLESS)),
    **dict.fromkeys(_LS, (("pyjpegls", "pylibjpeg", "gdcm"), Reason.PLUGIN_MISSING_JPEG_LS)),
    **dict.fromkeys(_J2K, (("pylibjpeg", "pillow", "gdcm"), Reason.PLUGIN_MISSING_JPEG_2000)),
    **dict.fromkeys(_HTJ2K, (("pylibjpeg",), Reason.PLUGIN_MISSING_JPEG_2000)),
}
_JPEG_COLOURS = GREYS | {"PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"}
_J2K_COLOURS = _JPEG_COLOURS | {"YBR_RCT", "YBR_ICT"}
_RLE_COLOURS = _JPEG_COLOURS - {"YBR_FULL_422"}
_JP2 = b"\x00\x00\x00\x0cjP  "
_SOI, _SOC = b"\xff\xd8", b"\xff\x4f\xff\x51"


def check_encapsulated(layout: PixelLayout) -> None:
    """Check what the header alone can show.

    Raises:
        Refusal: photometric; pixel_length, when native data stands where fragments should.
    """
    jpeg_2000 = layout.syntax in _J2K | _HTJ2K
    colours = _J2K_COLOURS if jpeg_2000 else _RLE_COLOURS if layout.syntax == RLE else _JPEG_COLOURS
    lossy_palette = layout.photometric == "PALETTE COLOR" and layout.syntax in (BASELINE, EXTENDED)
    if layout.photometric not in colours or lossy_palette:
        raise refused(Reason.PHOTOMETRIC)
    if layout.element.fragments is None:
        raise refused(Reason.PIXEL_LENGTH)


def encapsulated_frames(
    layout: PixelLayout, source: Source, indices: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Frames of compressed pixel data, decoded one by one.

    Raises:
        Refusal: pixel_length, photometric, plugin_missing_*, transfer_syntax, truncated, unreadable, too_large.
    """
    frames = _frames(layout, source)
    for index in indices:
        content = b"".join(source.at(*fragment) for fragment in frames[index])
        values, photometric = attempt(_decoded, layout, content)
        yield index, attempt(finish, layout, values, photometric)


def _frames(layout: PixelLayout, source: Source) -> list[list[tuple[int, int]]]:
    """The fragments of each frame."""
    frames: list[list[tuple[int, int]]] = []
    for place, length in layout.element.fragments or ():
        if not length:
            continue
        begins = layout.syntax == RLE or _begins(source.at(place, min(8, length)))
        if begins:
            frames.append([])
        elif not frames:
            raise refused(Reason.UNREADABLE)
        frames[-1].append((place, length))
    if len(frames) != layout.frames:
        raise refused(Reason.PIXEL_LENGTH)
    return frames


def _begins(head: bytes) -> bool:
    return head.startswith((_SOI, _SOC, _JP2))


def _decoded(layout: PixelLayout, content: bytes) -> tuple[NDArray, str]:
    """Containers of one frame and the photometric interpretation that they have now."""
    if layout.syntax in _J2K | _HTJ2K:
        _check_jpeg_2000(layout, content)
    elif layout.syntax != RLE:
        stream = jpeg_header(content)
        if (stream.height, stream.width, len(stream.names)) != (layout.rows, layout.columns, layout.samples):
            raise refused(Reason.PIXEL_LENGTH)
        if stream.bits > layout.allocated:
            raise refused(Reason.PIXEL_LENGTH)
        if layout.syntax in (BASELINE, EXTENDED) and stream.bits == 8:
            return _jpeg(layout, content, stream)
    return _by_plugin(layout, content)


def plugin_for(syntax: str) -> str:
    """The decoding plugin of pydicom that is installed for a syntax.

    Raises:
        Refusal: plugin_missing_*, or transfer_syntax when no permissive plugin decodes it.
    """
    from pydicom.pixels import get_decoder

    names, reason = _PLUGINS.get(syntax, ((), Reason.TRANSFER_SYNTAX))
    available = get_decoder(syntax).available_plugins if names else ()
    for name in names:
        if name in available:
            return name
    raise refused(reason)


def _by_plugin(layout: PixelLayout, content: bytes) -> tuple[NDArray, str]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    plugin = plugin_for(layout.syntax)
    if plugin == "gdcm":
        _quiet_gdcm()
    options: dict[str, Any] = {
        "number_of_frames": 1,
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        # gdcm ends the process when it is told of a palette and given none
        "photometric_interpretation": layout.photometric if layout.samples == 3 else "MONOCHROME2",
        "planar_configuration": int(layout.planar),
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
        "pixel_keyword": "PixelData",
        "correct_unused_bits": False,  # the table does it, and knows HighBit
    }
    decoder = get_decoder(layout.syntax)
    values, description = decoder.as_array(encapsulate([content]), index=0, raw=True, decoding_plugin=plugin, **options)
    expected = (layout.rows, layout.columns) + ((3,) if layout.samples == 3 else ())
    if values.shape != expected or values.dtype.itemsize * 8 != layout.allocated:
        raise refused(Reason.PIXEL_LENGTH)
    photometric = layout.photometric
    if layout.samples == 3:
        photometric = str(description["photometric_interpretation"])
        if photometric in ("YBR_RCT", "YBR_ICT"):  # undone by every decoder of JPEG 2000
            photometric = "RGB"
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}"), photometric


def _quiet_gdcm() -> None:
    import gdcm

    for off in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        off()


@dataclass(frozen=True, slots=True, repr=False)
class JpegHeader:
    """What a JPEG or JPEG-LS code stream says of itself."""

    bits: int
    height: int
    width: int
    names: tuple[int, ...]  # of its components
    jfif: bool
    adobe: int | None  # Adobe's colour transform: 0 none, 1 YCbCr

    @property
    def has_rgb_names(self) -> bool:
        """Whether the components are called R, G, B."""
        return bytes(self.names) in (b"RGB", b"rgb")


def jpeg_header(content: bytes) -> JpegHeader:
    """Walk the segments up to the first scan.

    Raises:
        Refusal: unreadable; truncated, when there is no end-of-image marker behind it.
    """
    frame: tuple[int, int, int, tuple[int, ...]] | None = None
    jfif, adobe, position = False, None, 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4])
        if marker == 0xFF:  # padding
            position += 1
            continue
        body = content[position + 4 : position + 2 + length]
        if marker == 0xDA:
            if frame is None:
                break
            if content.rfind(b"\xff\xd9", position) < 0:
                raise refused(Reason.TRUNCATED)
            return JpegHeader(*frame, jfif=jfif, adobe=adobe)
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            if frame is not None or len(body) < 6 or len(body) < 6 + 3 * body[5]:
                break
            names = tuple(body[6 + 3 * number] for number in range(body[5]))
            frame = (body[0], int.from_bytes(body[1:3]), int.from_bytes(body[3:5]), names)
        jfif |= marker == 0xE0 and body.startswith(b"JFIF")
        if marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        position += 2 + length
    raise refused(Reason.UNREADABLE)


def _jpeg(layout: PixelLayout, content: bytes, stream: JpegHeader) -> tuple[NDArray, str]:
    """Baseline and 8-bit extended JPEG through Pillow, its components as they are stored."""
    from PIL import Image

    picture: Any = Image.open(io.BytesIO(content), formats=["JPEG"])
    if picture.size != (layout.columns, layout.rows):
        raise refused(Reason.PIXEL_LENGTH)
    if layout.samples == 1:
        if picture.mode != "L":
            raise refused(Reason.PHOTOMETRIC)
        return _contained(np.asarray(picture), layout), layout.photometric
    if picture.mode != "RGB":
        raise refused(Reason.PHOTOMETRIC)
    # libjpeg converts YCbCr unless the stream says RGB; asked for YCbCr it converts nothing.
    plain = not stream.jfif and (stream.adobe == 0 or (stream.adobe is None and stream.has_rgb_names))
    if not plain:
        picture.draft("YCbCr", picture.size)
    values = np.asarray(picture)
    return _contained(values, layout), jpeg_colours(stream, layout.photometric)


def _contained(values: NDArray, layout: PixelLayout) -> NDArray:
    return values.astype(f"u{layout.allocated // 8}", copy=False)


def jpeg_colours(stream: JpegHeader, photometric: str) -> str:
    """RGB or YBR_FULL: what the components of a colour JPEG are, before any conversion."""
    if stream.has_rgb_names:
        return "RGB"
    if stream.adobe is not None:
        return "YBR_FULL" if stream.adobe else "RGB"
    return "YBR_FULL" if stream.jfif or photometric.startswith("YBR") else "RGB"


def _check_jpeg_2000(layout: PixelLayout, content: bytes) -> None:
    """Compare the SIZ and COD segments (ISO 15444-1 A.5.1, A.6.1) with the header."""
    start = 0 if content.startswith(_SOC) else content.find(_SOC, 0, 4096)
    siz = content[start + 8 : start + 43]
    if start < 0 or len(siz) < 35:
        raise refused(Reason.UNREADABLE)
    width, height, left, top = (int.from_bytes(siz[at : at + 4]) for at in (0, 4, 8, 12))
    components = int.from_bytes(siz[32:34])
    if (height - top, width - left, components) != (layout.rows, layout.columns, layout.samples):
        raise refused(Reason.PIXEL_LENGTH)
    if (siz[34] & 0x7F) + 1 > layout.allocated:
        raise refused(Reason.PIXEL_LENGTH)
    position = start + 2
    while position + 10 <= len(content) and content[position] == 0xFF and content[position + 1] not in (0x52, 0x90):
        position += 2 + int.from_bytes(content[position + 2 : position + 4])
    if content[position : position + 2] != b"\xff\x52" or position + 9 > len(content):
        raise refused(Reason.UNREADABLE)
    transformed, announced = content[position + 8] == 1, layout.photometric in ("YBR_RCT", "YBR_ICT")
    if layout.samples == 3 and layout.photometric != "RGB" and transformed != announced:
        raise refused(Reason.PHOTOMETRIC)
