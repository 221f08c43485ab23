"""Pictures and videos that are no DICOM, with secrets in every chunk, tag, box and gap that their formats have.

Each function takes the plain file's bytes and a text, and gives the bytes with the text in one more place.
"""

import io
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from fakes.deid_dicom import screen
from fakes.deid_secrets import Secret, day, name, sentence
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

Put = Callable[[bytes, str], bytes]


@dataclass(frozen=True, slots=True)
class MediaPlace:
    """A place in a file that is no DICOM."""

    name: str  # begins with the format: `png/tEXt`
    put: Put
    secret: Callable[[str], Secret] = sentence

    @property
    def suffix(self) -> str:
        """What its files' names end in."""
        return self.name.partition("/")[0]


def plain(kind: str, pixels: NDArray[np.uint8] | None = None) -> bytes:
    """A drawn screen in a format, nothing else in it.

    Args:
        kind: png, jpg, tif, bmp, gif, avi or mp4.
        pixels: (H, W) or (H, W, 3) RGB; of a video (n, H, W) or (n, H, W, 3). None is a small drawn screen.
    """
    if kind in ("avi", "mp4"):
        return _video(kind, screen(frames=8).frames if pixels is None else pixels)
    buffer = io.BytesIO()
    image = Image.fromarray(screen().frames[0] if pixels is None else pixels)
    options = {"quality": 95} if kind == "jpg" else {}
    image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()), **options)
    return buffer.getvalue()


def _video(kind: str, frames: NDArray[np.uint8]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v.{kind}"
        code = cv2.VideoWriter.fourcc(*("MJPG" if kind == "avi" else "mp4v"))
        writer = cv2.VideoWriter(str(path), code, 20.0, (frames.shape[2], frames.shape[1]))
        for frame in frames:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR if frame.ndim == 2 else cv2.COLOR_RGB2BGR))
        writer.release()
        return path.read_bytes()


# --- PNG --------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(make: Callable[[str], bytes], late: bool = False) -> Put:
    """Insert chunks behind IHDR, or before IEND."""

    def put(file: bytes, text: str) -> bytes:
        at = len(file) - 12 if late else 33
        return file[:at] + make(text) + file[at:]

    return put


def _xmp(text: str) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{text}</dc:creator></x:xmpmeta>'.encode()


def exif(text: str, thumbnail: bool = False, orientation: int = 1, wide: bool = False) -> bytes:
    """An EXIF block: artist, description, comment, maker note, GPS, dates; perhaps with a thumbnail."""
    content = Image.Exif()
    content[0x0112] = orientation
    content[0x010E], content[0x013B], content[0x0132] = text, text, "1957:03:21 10:11:12"
    inner = content.get_ifd(0x8769)
    inner[0x927C] = f"maker {text}".encode("utf-16-le" if wide else "utf-8")
    inner[0x9286] = b"UNICODE\0" + text.encode("utf-16-le")
    inner[0xA420] = text
    gps = content.get_ifd(0x8825)
    gps[0x001B] = text.encode()
    raw = content.tobytes()
    return raw + (b"\xff\xd8" + text.encode() + b"\xff\xd9" if thumbnail else b"")


def _itxt(text: str, packed: bool) -> bytes:
    body = zlib.compress(text.encode()) if packed else text.encode()
    return chunk(b"iTXt", b"Comment\0" + bytes([packed, 0]) + b"en\0Kommentar\0" + body)


def _behind_pixels(file: bytes, text: str) -> bytes:
    """More bytes in the last IDAT chunk, behind the end of the zlib stream."""
    at = file.rindex(b"IDAT") - 4
    length = int.from_bytes(file[at : at + 4])
    data = file[at + 8 : at + 8 + length] + text.encode()
    return file[:at] + chunk(b"IDAT", data) + file[at + 12 + length :]


def _under_alpha(file: bytes, text: str) -> bytes:
    """Text as grey levels of wholly transparent pixels of the picture's first rows."""
    pixels = np.asarray(Image.open(io.BytesIO(file)).convert("L")).copy()
    alpha = np.full_like(pixels, 255)
    raw = np.frombuffer(text.encode(), np.uint8)
    pixels[0, : len(raw)], alpha[0, : len(raw)] = raw, 0
    buffer = io.BytesIO()
    Image.merge("LA", [Image.fromarray(pixels), Image.fromarray(alpha)]).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _palette(file: bytes, text: str) -> bytes:
    """Text as colours of a palette that no pixel uses."""
    image = Image.open(io.BytesIO(file)).convert("L").point(lambda v: v // 2)
    raw = text.encode().ljust(96, b" ")
    made = Image.fromarray(np.asarray(image), mode="L").convert("P")
    made.putpalette([v for level in range(128) for v in (2 * level,) * 3] + list(raw))
    buffer = io.BytesIO()
    made.save(buffer, "PNG")
    return buffer.getvalue()


def _second_frame(file: bytes, text: str) -> bytes:
    """An animated PNG whose second frame is another picture, with the text behind its pixels."""
    body = zlib.compress(bytes(10 * 11), 0) + text.encode()
    control = struct.pack(">IIIIIHHBB", 0, 320, 240, 0, 0, 1, 10, 0, 0)
    more = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 1, 10, 10, 0, 0, 1, 10, 0, 0)) + chunk(b"fdAT", b"\0\0\0\2" + body)
    head = file[:33] + chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", control)
    return head + file[33:-12] + more + file[-12:]


def _time(text: str) -> bytes:
    year, month, date = int(text[:4]), int(text[4:6]), int(text[6:8])
    return chunk(b"tIME", struct.pack(">HBBBBB", year, month, date, 10, 11, 12)) + chunk(b"tEXt", f"t\0{text}".encode())


def _profile(text: str) -> bytes:
    return chunk(b"iCCP", text.encode()[:70] + b"\0\0" + zlib.compress(b"desc" + text.encode() * 3))


PNG = (
    MediaPlace("png/tEXt", _png(lambda t: chunk(b"tEXt", b"Patient\0" + t.encode()))),
    MediaPlace("png/tEXt keyword", _png(lambda t: chunk(b"tEXt", t.encode()[:70] + b"\0x")), name),
    MediaPlace("png/zTXt", _png(lambda t: chunk(b"zTXt", b"Comment\0\0" + zlib.compress(t.encode())))),
    MediaPlace("png/iTXt", _png(lambda t: _itxt(t, False))),
    MediaPlace("png/iTXt packed", _png(lambda t: _itxt(t, True))),
    MediaPlace("png/XMP", _png(lambda t: chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _xmp(t)))),
    MediaPlace("png/eXIf", _png(lambda t: chunk(b"eXIf", exif(t)[6:]))),
    MediaPlace("png/eXIf late, with thumbnail", _png(lambda t: chunk(b"eXIf", exif(t, thumbnail=True)[6:]), late=True)),
    MediaPlace("png/iCCP", _png(_profile), name),
    MediaPlace("png/tIME", _png(_time), day),
    MediaPlace("png/sPLT", _png(lambda t: chunk(b"sPLT", t.encode()[:70] + b"\0\x08" + bytes(6))), name),
    MediaPlace("png/private chunk", _png(lambda t: chunk(b"hoSp", t.encode()))),
    MediaPlace("png/private chunk late", _png(lambda t: chunk(b"viEw", t.encode()), late=True)),
    MediaPlace("png/behind IEND", lambda f, t: f + t.encode()),
    MediaPlace("png/behind the zlib stream", _behind_pixels),
    MediaPlace("png/under alpha", _under_alpha),
    MediaPlace("png/unused palette entries", _palette),
    MediaPlace("png/second frame", _second_frame),
)


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _segment(marker: int, make: Callable[[str], bytes]) -> Put:
    def put(file: bytes, text: str) -> bytes:
        body = make(text)
        return file[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body + file[2:]

    return put


def iptc(text: str) -> bytes:
    """Photoshop's block with an IPTC caption."""
    record = b"\x1c\x02\x78" + struct.pack(">H", len(text.encode())) + text.encode()
    return b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(record)) + record + b"\0" * (len(record) % 2)


def _second_picture(file: bytes, text: str) -> bytes:
    return file + _segment(0xFE, lambda t: t.encode())(plain("jpg"), text)


JPEG = (
    MediaPlace("jpg/EXIF", _segment(0xE1, lambda t: exif(t))),
    MediaPlace("jpg/EXIF turned, with thumbnail", _segment(0xE1, lambda t: exif(t, thumbnail=True, orientation=3))),
    MediaPlace("jpg/EXIF UTF-16 maker note", _segment(0xE1, lambda t: exif(t, wide=True))),
    MediaPlace("jpg/XMP", _segment(0xE1, lambda t: b"http://ns.adobe.com/xap/1.0/\0" + _xmp(t))),
    MediaPlace("jpg/JFXX", _segment(0xE0, lambda t: b"JFXX\0\x10" + t.encode())),
    MediaPlace("jpg/ICC", _segment(0xE2, lambda t: b"ICC_PROFILE\0\x01\x01" + b"desc" + t.encode())),
    MediaPlace("jpg/IPTC", _segment(0xED, iptc)),
    MediaPlace("jpg/COM", _segment(0xFE, lambda t: t.encode())),
    MediaPlace("jpg/APP7", _segment(0xE7, lambda t: b"SONO\0" + t.encode("utf-16-le"))),
    MediaPlace("jpg/APP15", _segment(0xEF, lambda t: t.encode())),
    MediaPlace("jpg/behind EOI", lambda f, t: f + t.encode()),
    MediaPlace("jpg/second picture behind EOI", _second_picture),
)


# --- TIFF, BMP, GIF ---------------------------------------------------------------------------------------------------


def _tiff(tag: int, kind: int = 2) -> Put:
    def put(file: bytes, text: str) -> bytes:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info.tagtype[tag] = kind
        info[tag] = text if kind == 2 else text.encode()
        buffer = io.BytesIO()
        Image.open(io.BytesIO(file)).save(buffer, "TIFF", tiffinfo=info)
        return buffer.getvalue()

    return put


def _pages(file: bytes, text: str) -> bytes:
    """A second page: a thumbnail of the picture, described."""
    image = Image.open(io.BytesIO(file))
    small = image.resize((80, 60))
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270] = text
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", save_all=True, append_images=[small], tiffinfo=info)
    return buffer.getvalue()


def _bmp_gap(file: bytes, text: str) -> bytes:
    """Bytes between the header and the pixels."""
    offset, extra = int.from_bytes(file[10:14], "little"), text.encode().ljust(256, b"\0")
    head = file[:2] + struct.pack("<I", len(file) + 256) + file[6:10] + struct.pack("<I", offset + 256)
    return head + file[14:offset] + extra + file[offset:]


def _gif_comment(file: bytes, text: str) -> bytes:
    return file[:-1] + b"\x21\xfe" + bytes([len(text.encode())]) + text.encode() + b"\0" + file[-1:]


OTHERS = (
    MediaPlace("tif/ImageDescription", _tiff(270)),
    MediaPlace("tif/Artist", _tiff(315)),
    MediaPlace("tif/HostComputer", _tiff(316)),
    MediaPlace("tif/DocumentName", _tiff(269)),
    MediaPlace("tif/DateTime", _tiff(306), lambda p: day(p, "%Y:%m:%d 10:11:12")),
    MediaPlace("tif/XMP", _tiff(700, 1)),
    MediaPlace("tif/IPTC", _tiff(33723, 7)),
    MediaPlace("tif/private tag", _tiff(65000, 7)),
    MediaPlace("tif/second page", _pages),
    MediaPlace("tif/behind the end", lambda f, t: f + t.encode()),
    MediaPlace("bmp/gap before the pixels", _bmp_gap),
    MediaPlace("bmp/behind the end", lambda f, t: f + t.encode()),
    MediaPlace("gif/comment", _gif_comment),
    MediaPlace("gif/behind the end", lambda f, t: f + t.encode()),
)


def named(place: MediaPlace) -> Secret:
    """The secret of a place."""
    return place.secret(place.name)


def stills() -> Iterator[tuple[MediaPlace, bytes, Secret]]:
    """Every place of the still formats: (place, file, secret)."""
    for place in (*PNG, *JPEG, *OTHERS):
        secret = named(place)
        yield place, place.put(plain(place.suffix), secret.value), secret
