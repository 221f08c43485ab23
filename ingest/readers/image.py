"""Still images: one defined result for every PNG, JPEG, BMP, TIFF and GIF, whichever library decodes it.

OpenCV decodes the plain cases (8-bit grey or RGB, PNG or JPEG), where it is fast and equal to Pillow bit for bit;
Pillow all others. Files are checked before decoding, because OpenCV fills what a cut file lacks with grey and says
nothing. What a source may hold beyond grey and RGB is settled here, once:

- a palette gives the colours it names; 1 bit gives 0 and 255; CMYK and YCbCr give RGB;
- transparency is dropped: the colour under it counts (scanners' exports write it by accident);
- 16 bits become 8 by rounding v / 257, unless no value exceeds 255: then they are 8 bits in a larger box (ours);
- an orientation tag (EXIF, TIFF) is obeyed, as every viewer does;
- three or four channels of 16 bits are refused: Pillow would keep their upper halves, and make dark ones black;
- several frames in one file are refused: such a file belongs under layout.video.
"""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from usdata.errors import DataError

MAX_PIXELS = 64_000_000  # a larger image is taken for a decompression bomb
MAX_BYTES = 1 << 30
PNG = b"\x89PNG\r\n\x1a\n"
FORMATS = {PNG: "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF"}
# What Pillow's decoders are known to raise on damaged files.
_DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)
_DAMAGE += (LookupError, ArithmeticError, TypeError, AttributeError, RuntimeError, MemoryError)


def read_image(path: Path) -> NDArray[np.uint8]:
    """The pixels of a still image: uint8, (H, W) if it is stored grey, else (H, W, 3) in the order R, G, B.

    Raises:
        DataError: with the reason missing, empty_file, truncated, unreadable, too_large or unsupported.
    """
    return decode_image(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        DataError: with the reason missing, unreadable, empty_file or too_large.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError("too_large", f"The file has {size} bytes, more than {MAX_BYTES}.", step="read")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("missing", "The file is not there any more.", step="read") from error
    except OSError as error:
        raise DataError("unreadable", f"{error.strerror}.", step="read") from error
    if not content:
        raise DataError("empty_file", "The file has no bytes.", step="read")
    return content


def decode_image(content: bytes) -> NDArray[np.uint8]:
    """`read_image` of a file's bytes."""
    kind = image_format(content)
    plain = {"PNG": _plain_png, "JPEG": _plain_jpeg}[kind](content) if kind in ("PNG", "JPEG") else None
    if plain is None:
        return _to_8_bits(open_with_pillow(content, kind))
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError("unreadable", f"{error.err or error}.", step="read") from error
    if pixels is None or pixels.shape[:2] != plain or pixels.dtype != np.uint8:
        raise DataError("unreadable", "The pixels can't be decoded.", step="read")
    pixels = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return pixels.astype(np.uint8, copy=False)


def image_format(content: bytes) -> str:
    """PNG, JPEG, BMP, TIFF or GIF, by the first bytes; a name's ending is not believed.

    Raises:
        DataError: none of them (reason unsupported).
    """
    for magic, kind in FORMATS.items():
        if content.startswith(magic):
            return kind
    if PNG.startswith(content[:8]) or content in (b"\xff", b"\xff\xd8", b"B", b"I", b"II", b"M", b"MM", b"G", b"GI"):
        raise DataError("truncated", "The file ends in its first bytes.", step="read")
    raise DataError("unsupported", f"Not a PNG, JPEG, BMP, TIFF or GIF: it begins {content[:8]!r}.", step="read")


def open_with_pillow(content: bytes, kind: str) -> Image.Image:
    """The one frame of an image, loaded and upright, in whatever mode it is stored.

    Raises:
        DataError: see `read_image`.
    """
    if kind == "PNG":
        _plain_png(content)  # for its checks
    try:
        image = Image.open(io.BytesIO(content), formats=[kind] if kind != "JPEG" else ["JPEG", "MPO"])
        _check_size(*image.size)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and kind != "JPEG":  # a JPEG's further pictures are its own thumbnails
            raise DataError("unsupported", f"{frames} frames in one image file.", step="read")
        if len(image.getbands()) > 1 and image.tile and ";16" in str(image.tile[0][3]):
            raise DataError("unsupported", "16 bits in each colour; save it with 8.", step="read")
        image.load()
        return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise DataError("too_large", f"{error}", step="read") from error
    except _DAMAGE as error:
        text = " ".join(str(error).split()) or type(error).__name__
        cut = any(word in text.lower() for word in ("truncated", "not enough", "unexpected end", "not sufficient"))
        raise DataError("truncated" if cut else "unreadable", f"{text}.", step="read") from error


def to_8_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Integers of up to 16 bits as 8: v / 257 rounded, or v itself when no value exceeds 255.

    Raises:
        DataError: negative, fractional or larger values (reason unsupported).
    """
    if not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() > 65535:
        raise DataError("unsupported", "Pixel values that are not whole numbers from 0 to 65535.", step="read")
    if values.max() > 255:
        values = (values.astype(np.uint32) + 128) // 257
    return values.astype(np.uint8)


def _to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "RGBX", "LA", "La", "RGBa"):
        channels = np.asarray(image)
        return np.ascontiguousarray(channels[..., 0] if image.mode[0] == "L" else channels[..., :3])
    if image.mode in ("CMYK", "YCbCr"):
        image = image.convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    if image.mode[0] == "I":
        return to_8_bits(np.asarray(image))
    raise DataError("unsupported", f"Pixels of the kind {image.mode!r}.", step="read")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError("too_large", f"{width} x {height} pixels, more than {MAX_PIXELS} in all.", step="read")
    if width < 1 or height < 1:
        raise DataError("unreadable", "An image without pixels.", step="read")


def _plain_png(content: bytes) -> tuple[int, int] | None:
    """Checks a PNG's chunks; (height, width) if it is 8-bit grey or RGB with nothing else to it, None otherwise.

    Raises:
        DataError: cut, a wrong checksum, or too many pixels.
    """
    position, plain, height, width = 8, True, 0, 0
    while True:
        if position + 12 > len(content):
            raise DataError("truncated", "The PNG ends before its IEND chunk.", step="read")
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content):
            raise DataError("truncated", f"The PNG ends inside its {kind.decode('latin-1')} chunk.", step="read")
        if zlib.crc32(memoryview(content)[position + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
            raise DataError("unreadable", f"Wrong checksum in the PNG's {kind.decode('latin-1')} chunk.", step="read")
        if position == 8:
            if kind != b"IHDR" or length != 13:
                raise DataError("unreadable", "The PNG does not begin with IHDR.", step="read")
            width, height, depth, colour = struct.unpack_from(">IIBB", content, 16)
            _check_size(width, height)
            plain = depth == 8 and colour in (0, 2)
        elif kind in (b"tRNS", b"acTL", b"eXIf"):
            plain = False
        elif kind == b"IEND":
            return (height, width) if plain else None
        position = end


def _plain_jpeg(content: bytes) -> tuple[int, int] | None:
    """Walks a JPEG's markers; (height, width) if it is 8-bit grey or three-channel without orientation tag.

    Raises:
        DataError: cut (no end-of-image marker after the last scan began), or too many pixels.
    """
    position, plain, size = 2, True, (0, 0)
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            raise DataError("unreadable", f"No JPEG marker at byte {position}.", step="read")
        marker = content[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        length = int.from_bytes(content[position + 2 : position + 4])
        if marker in (0xC0, 0xC1, 0xC2):
            if position + 10 > len(content):
                break
            depth, height, width, channels = struct.unpack_from(">BHHB", content, position + 4)
            _check_size(width, height)
            size, plain = (height, width), plain and depth == 8 and channels in (1, 3)
        elif 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            raise DataError("unsupported", f"A JPEG of the rare process {marker - 0xC0}.", step="read")
        elif marker in (0xE1, 0xEE):  # EXIF may turn the image, an Adobe segment may make three channels RGB
            plain = plain and not content.startswith((b"Exif", b"Adobe"), position + 4)
        elif marker == 0xDA:
            if content.find(b"\xff\xd9", position) < 0:
                break
            return size if plain else None
        position += 2 + length
    raise DataError("truncated", "The JPEG ends before its end-of-image marker.", step="read")
