"""What lies beside the pixels of pictures and videos, as raw bytes: chunks, EXIF, comments, atoms, trailing bytes.

Only for the self-check's list of identifiers. Structures are followed as far as they hold and no further; nothing is
raised for damage, which is the decoder's to judge. Bounded in size and number of pieces. Sources: PNG, JFIF, EXIF 2.3,
TIFF 6, GIF 89a, RIFF, ISO 14496-12.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PIECE = 1 << 16  # bytes of one piece that are looked at (ours)
PIECES = 2_000  # pieces of one file (ours)
STEPS = 20_000  # structures that are stepped over in one file (ours)
_UNPACKED = 1 << 20  # bytes of a compressed text

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PICTURE = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"fdAT"})
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_JPEG_TABLES = frozenset({0xC4, 0xDB, 0xDD, *range(0xC0, 0xC4), *range(0xC5, 0xD0)})
_TIFF_TEXT = frozenset({1, 2, 6, 7})  # BYTE, ASCII, SBYTE, UNDEFINED
_TIFF_PIXELS = frozenset({273, 279, 324, 325, 347, 320})
_TIFF_INNER = frozenset(
    {330, 34665, 34853, 40965}
)  # offsets of further directories: sub-images, EXIF, GPS, interoperability
_TIFF_WIDE = frozenset(range(0x9C9B, 0x9CA0))  # XPTitle to XPSubject, UTF-16
_USER_COMMENT = 0x9286
_BOXES = frozenset(b"moov trak mdia minf udta ilst meta edts dinf moof traf mvex".split())
_TABLES = frozenset(b"mdat stts stss ctts stsc stsz stco co64 sdtp trun sidx elst stsd".split())


def texts_of_file(path: Path) -> Iterator[bytes]:
    """The pieces of a file that are not its pixels, at most `PIECES` of at most `PIECE` bytes; UTF-16 tags as UTF-8.

    Raises:
        OSError: the file can't be opened or read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        for count, piece in enumerate(_pieces(file, size)):
            if count == PIECES:
                return
            yield piece[:PIECE]


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    head = _at(file, 0, 32)
    if head.startswith(_PNG):
        yield from _png(file, size)
    elif head.startswith(b"\xff\xd8"):
        yield from _jpeg(file, size)
    elif head[:4] in (b"II*\0", b"MM\0*"):
        yield from tiff(_Window(file, 0, size))
    elif head.startswith((b"GIF87a", b"GIF89a")):
        yield from _gif(file, size)
    elif head.startswith(b"BM"):
        yield from _bmp(file, size)
    elif head.startswith(b"RIFF"):
        yield from _riff(file, size)
    elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        yield from _boxes(file, size)
    else:  # Matroska, MPEG, ASF, BigTIFF, ...: texts stand at either end
        yield _at(file, 0, PIECE)
        yield _at(file, max(0, size - PIECE), PIECE)


def _at(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)


class _Window:
    """A part of a file that is addressed from its own beginning: EXIF within JPEG or PNG."""

    __slots__ = ("_file", "_start", "size")

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self.size = file, start, size

    def at(self, place: int, length: int) -> bytes:
        """At most `length` bytes; fewer at the end."""
        return _at(self._file, self._start + place, max(0, min(length, self.size - place)))


def _png(file: BinaryIO, size: int) -> Iterator[bytes]:
    place = len(_PNG)
    for _ in range(STEPS):
        head = _at(file, place, 8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        if kind not in _PNG_PICTURE:
            data = _at(file, place + 8, min(length, PIECE))
            yield data
            yield from _unpacked(kind, data)
            if kind == b"eXIf":
                yield from tiff(_Window(file, place + 8, length))
        place += 12 + length
        if kind == b"IEND":
            yield _at(file, place, PIECE)
            return


def _unpacked(kind: bytes, data: bytes) -> Iterator[bytes]:
    """The text of zTXt, iCCP and compressed iTXt, behind a keyword, NUL and one or more bytes of method."""
    _, _, rest = data.partition(b"\0")
    if kind == b"iTXt" and rest[:1] == b"\1":
        parts = rest[2:].split(b"\0", 2)
        rest = b"\0" + (parts[2] if len(parts) == 3 else b"")
    elif kind not in (b"zTXt", b"iCCP"):
        return
    try:
        yield zlib.decompressobj().decompress(rest[1:], _UNPACKED)
    except zlib.error:
        return


def _jpeg(file: BinaryIO, size: int) -> Iterator[bytes]:
    place = 2
    for _ in range(STEPS):
        head = _at(file, place, 4)
        if len(head) < 4 or head[0] != 0xFF:
            break
        marker = head[1]
        if marker == 0xFF or marker in _JPEG_BARE:
            place += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(head[2:], "big")
        if marker == 0xDA or length < 2:
            break
        if marker not in _JPEG_TABLES:
            data = _at(file, place + 4, length - 2)
            yield data
            if data.startswith(b"Exif\0\0"):
                yield from tiff(_Window(file, place + 10, length - 8))
        place += 2 + length
    tail = _at(file, max(place, size - (1 << 20)), 1 << 20)
    end = tail.rfind(b"\xff\xd9")
    yield tail[end + 2 :] if end >= 0 else b""
    for start in _comments(tail):
        yield tail[start + 4 : start + PIECE]


def _comments(tail: bytes) -> list[int]:
    """Where comments and application data begin behind the first scan: 0xFF never stands before these inside one."""
    places: list[int] = []
    place = -1
    while len(places) < 16 and (place := tail.find(b"\xff\xfe", place + 1)) >= 0:
        places.append(place)
    return places


def tiff(window: _Window) -> Iterator[bytes]:
    """Texts and bytes of all directories of a TIFF structure; UTF-16 texts as UTF-8."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(window.at(0, 4))
    if order is None:
        return
    waiting = list(struct.unpack(order + "I", window.at(4, 4).ljust(4, b"\0")))
    seen: set[int] = set()
    while waiting and len(seen) < 256:
        place = waiting.pop(0)
        if place < 8 or place in seen or place + 2 > window.size:
            continue
        seen.add(place)
        (count,) = struct.unpack(order + "H", window.at(place, 2).ljust(2, b"\0"))
        entries = window.at(place + 2, 12 * count)
        for start in range(0, len(entries) - 11, 12):
            tag, kind, number, inline = struct.unpack(order + "HHI4s", entries[start : start + 12])
            (offset,) = struct.unpack(order + "I", inline)
            if tag in _TIFF_INNER:
                waiting += _offsets(window, order, number, offset)
            elif kind in _TIFF_TEXT and tag not in _TIFF_PIXELS:
                data = inline[:number] if number <= 4 else window.at(offset, min(number, PIECE))
                yield _as_utf8(tag, data)
        waiting += struct.unpack(order + "I", window.at(place + 2 + 12 * count, 4).ljust(4, b"\0"))


def _offsets(window: _Window, order: str, number: int, offset: int) -> list[int]:
    if number <= 1:
        return [offset]
    data = window.at(offset, 4 * min(number, 64))
    return list(struct.unpack(f"{order}{len(data) // 4}I", data[: len(data) // 4 * 4]))


def _as_utf8(tag: int, data: bytes) -> bytes:
    if tag in _TIFF_WIDE:
        return data.decode("utf-16-le", "ignore").encode("utf-8", "ignore")
    if tag == _USER_COMMENT and data.startswith(b"UNICODE\0"):
        both = (data[8:].decode(codec, "ignore") for codec in ("utf-16-le", "utf-16-be"))  # writers disagree
        return "\n".join(both).encode("utf-8", "ignore")
    if tag == _USER_COMMENT and data.startswith(b"JIS\0"):
        return data[8:].decode("iso2022_jp", "ignore").encode("utf-8", "ignore")
    return data


def _gif(file: BinaryIO, size: int) -> Iterator[bytes]:
    head = _at(file, 0, 13)
    if len(head) < 13:
        return
    place = 13 + _palette(head[10])
    for _ in range(STEPS):
        kind = _at(file, place, 2)
        if kind[:1] == b"\x21":
            data, place = _blocks(file, place + 2)
            if kind != b"\x21\xf9":
                yield data
        elif kind[:1] == b"\x2c":
            flags = _at(file, place + 9, 1)
            _, place = _blocks(file, place + 11 + _palette(flags[0] if flags else 0))
        else:
            yield _at(file, place + 1, PIECE)
            return


def _palette(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _blocks(file: BinaryIO, place: int) -> tuple[bytes, int]:
    """A chain of sub-blocks: its bytes, at most `PIECE`, and where it ends."""
    data = bytearray()
    for _ in range(1 << 20):
        length = _at(file, place, 1)
        if not length or not length[0]:
            return bytes(data), place + 1
        if len(data) < PIECE:
            data += _at(file, place + 1, length[0])
        place += 1 + length[0]
    return bytes(data), place


def _bmp(file: BinaryIO, size: int) -> Iterator[bytes]:
    head = _at(file, 0, 14)
    if len(head) < 14:
        return
    end, _, pixels = struct.unpack("<III", head[2:])
    yield _at(file, 14, min(max(pixels - 14, 0), PIECE))
    yield _at(file, min(end, size), PIECE)
    yield _at(file, max(pixels, size - 1024), 1024)  # a profile behind the pixels, within the stated size


def _riff(file: BinaryIO, size: int) -> Iterator[bytes]:
    waiting = [(0, size)]
    for _ in range(STEPS):
        if not waiting:
            return
        place, end = waiting.pop()
        head = _at(file, place, 12)
        if place + 8 > end or len(head) < 8:
            continue
        kind, length = struct.unpack("<4sI", head[:8])
        following = place + 8 + length + (length & 1)
        waiting.append((following, end))
        if kind in (b"RIFF", b"LIST"):
            if head[8:12] != b"movi":
                waiting.append((place + 12, min(place + 8 + length, end)))
        elif kind not in (b"idx1", b"indx"):
            yield _at(file, place + 8, min(length, PIECE))


def _boxes(file: BinaryIO, size: int) -> Iterator[bytes]:
    waiting = [(0, size)]
    for _ in range(STEPS):
        if not waiting:
            return
        place, end = waiting.pop()
        head = _at(file, place, 16)
        if place + 8 > end or len(head) < 8:
            continue
        length, kind = struct.unpack(">I4s", head[:8])
        start = place + 8
        if length == 1 and len(head) == 16:
            length, start = struct.unpack(">Q", head[8:])[0], place + 16
        length = length or end - place
        if length < 8:
            continue
        stop = min(place + length, end)
        waiting.append((stop, end))
        if kind in _BOXES:
            skipped = 4 if kind == b"meta" and _at(file, start, 4) == b"\0\0\0\0" else 0
            waiting.append((start + skipped, stop))
        elif kind not in _TABLES and kind != b"stbl":
            yield _at(file, start, min(stop - start, PIECE))
