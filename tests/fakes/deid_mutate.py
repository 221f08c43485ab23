"""Files made wrong on purpose, the same for the same number: bytes flipped, cut, moved; lengths and boxes that lie.

`mutant(number)` takes one of the seed files (each with secrets of its own) and damages it in one to three ways. Some
ways know the format they damage, so that what they make gets past the first check of a reader.
"""

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fakes.deid_dicom import Draft, deep, item, raw, screen, ultrasound
from fakes.deid_media import chunk, exif, plain
from fakes.deid_pixels import encoded
from fakes.deid_secrets import Secret, name, person, word
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag

Way = Callable[[bytes, random.Random], bytes]
_VRS = [
    b"AE",
    b"AS",
    b"CS",
    b"DA",
    b"DS",
    b"DT",
    b"FD",
    b"IS",
    b"LO",
    b"OB",
    b"OW",
    b"PN",
    b"SQ",
    b"UI",
    b"UL",
    b"UN",
    b"US",
    b"UT",
]
_LENGTHS = (0, 1, 2, 3, 5, 255, 65534, 65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A damaged file."""

    name: str  # of the file
    ways: tuple[str, ...]
    content: bytes


@cache
def seeds() -> dict[str, tuple[bytes, tuple[Secret, ...]]]:
    """Well-made files with secrets in them, by name; the name's ending is the format."""
    found = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "seed.dcm"
        for label, draft in _drafts():
            draft.write(path)
            found[f"{label}.dcm"] = (path.read_bytes(), tuple(draft.planted()))
    for kind in ("png", "jpg", "tif", "bmp", "gif", "avi", "mp4"):
        place = f"fuzz/{kind}"
        content = plain(kind)
        if kind == "png":
            content = content[:33] + chunk(b"tEXt", b"n\0" + word(place).encode()) + content[33:]
        elif kind == "jpg":
            block = exif(word(place), thumbnail=True)
            content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + content[2:]
        found[f"{kind}.{kind}"] = (content, (name(place),))
    return found


def _drafts() -> list[tuple[str, Draft]]:
    rich = ultrasound("fuzz/still")
    inner = item()
    raw(inner, Tag("PersonName"), "PN", person("fuzz/nested").value)
    raw(inner, (0x0019, 0x0010), "LO", f"ACME {word('fuzz/private')}")
    deep(rich.data, 4, inner)
    rich.data.AnatomicRegionSequence = Items([item(CodeValue="T-62000", CodeMeaning="Liver")])
    raw(rich.data, Tag("StudyDescription"), "LO", f"liver {word('fuzz/description')}")
    rich.secrets += [person("fuzz/nested"), name("fuzz/private"), name("fuzz/description")]
    found = [("still", rich), ("cine", ultrasound("fuzz/cine", screen(frames=4).frames))]
    for made in encoded():
        short = next(
            (s for s in ("JPEG frame", "JPEG 2000", "RLE", "palette", "Big Endian", "Deflated") if s in made.name), ""
        )
        if short:
            made.draft.secrets += made.secrets
            found.append((short.replace(" ", ""), made.draft))
    return found


def mutant(number: int) -> Mutant:
    """Number 0, 1, 2, ...: the bombs first (see BOMBS), then random damage."""
    rng = random.Random(number)
    if number < len(BOMBS):
        label, make = list(BOMBS.items())[number]
        return Mutant(f"{number:05d}.{label.partition(' ')[0]}", (label,), make())
    label = sorted(seeds())[number % len(seeds())]
    content, kind = seeds()[label][0], label.rpartition(".")[2]
    ways = rng.sample([*ANY.items(), *OF_KIND.get(kind, {}).items()] * 2, rng.choice((1, 1, 2, 3)))
    for _, way in ways:
        content = way(content, rng) if len(content) > 64 else content
    return Mutant(f"{number:05d}.{kind}", (label, *(title for title, _ in ways)), content)


# --- any format -------------------------------------------------------------------------------------------------------


def _flip(content: bytes, rng: random.Random, first: int | None = None) -> bytes:
    made = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 64))):
        made[rng.randrange(min(len(made), first or len(made)))] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(made)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[
        : rng.choice((rng.randrange(len(content)), rng.randrange(min(4000, len(content))), len(content) - 1))
    ]


def _slice(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content) - 1)
    return start, min(len(content), start + rng.choice((1, 2, 7, 100, 5000)))


def _remove(content: bytes, rng: random.Random) -> bytes:
    start, end = _slice(content, rng)
    return content[:start] + content[end:]


def _double(content: bytes, rng: random.Random) -> bytes:
    start, end = _slice(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 2, 50)) + content[end:]


def _noise(content: bytes, rng: random.Random) -> bytes:
    start, end = _slice(content, rng)
    return content[:start] + rng.randbytes(end - start) + content[end:]


def _number(content: bytes, rng: random.Random) -> bytes:
    """A 2- or 4-byte number anywhere in the first 2,000 bytes becomes an extreme one."""
    at = rng.randrange(min(len(content) - 4, 2000))
    form = rng.choice(("<I", ">I", "<H", ">H"))
    value = rng.choice(_LENGTHS) & (0xFFFFFFFF if form[1] == "I" else 0xFFFF)
    return content[:at] + struct.pack(form, value) + content[at + struct.calcsize(form) :]


ANY: dict[str, Way] = {
    "flip": _flip,
    "flip in the header": lambda c, r: _flip(c, r, 1500),
    "cut": _cut,
    "remove": _remove,
    "double": _double,
    "noise": _noise,
    "extreme number": _number,
    "tail": lambda c, r: c + r.randbytes(r.choice((1, 3, 1000))),
}

# --- DICOM ------------------------------------------------------------------------------------------------------------


@cache
def _elements(content: bytes) -> tuple[int, ...]:
    """Offsets of what look like explicit elements' headers (tag, VR, length) in the first 6,000 bytes."""
    return tuple(
        at
        for at in range(132, min(len(content) - 8, 6000), 2)
        if content[at + 4 : at + 6] in _VRS and content[at + 1] < 0x60
    )


def _in_header(change: Callable[[bytearray, int, random.Random], None]) -> Way:
    def way(content: bytes, rng: random.Random) -> bytes:
        places = _elements(content)
        made = bytearray(content)
        if places:
            change(made, rng.choice(places), rng)
        return bytes(made)

    return way


def _vr(made: bytearray, at: int, rng: random.Random) -> None:
    made[at + 4 : at + 6] = rng.choice((*_VRS, b"??", b"\0\0"))


def _tag(made: bytearray, at: int, rng: random.Random) -> None:
    group = rng.choice((0x0002, 0x0008, 0x0010, 0x0018, 0x0028, 0x5000, 0x6000, 0x7FE0, 0xFFFE, rng.randrange(65536)))
    made[at : at + 4] = struct.pack("<HH", group, rng.choice((0x0010, 0x0020, 0xE000, 0xE00D, rng.randrange(65536))))


def _length(made: bytearray, at: int, rng: random.Random) -> None:
    long = made[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    value = rng.choice(_LENGTHS)
    made[at + (8 if long else 6) : at + (12 if long else 8)] = struct.pack(
        "<I" if long else "<H", value & (0xFFFFFFFF if long else 0xFFFF)
    )


def _twice(made: bytearray, at: int, rng: random.Random) -> None:
    long = made[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    size = struct.unpack_from("<I" if long else "<H", made, at + (8 if long else 6))[0] + (12 if long else 8)
    whole = made[at : at + min(size, 400)]
    made[at:at] = whole * rng.choice((1, 3, 400))


def _value(keyword_tag: int, values: tuple[int, ...]) -> Way:
    """Set a US attribute of the main data set."""
    head = struct.pack("<HH", keyword_tag >> 16, keyword_tag & 0xFFFF) + b"US\x02\0"

    def way(content: bytes, rng: random.Random) -> bytes:
        at = content.find(head)
        return content if at < 0 else content[: at + 8] + struct.pack("<H", rng.choice(values)) + content[at + 10 :]

    return way


def _frames(content: bytes, rng: random.Random) -> bytes:
    """NumberOfFrames before the rows, as an IS of 10 digits."""
    at = content.find(struct.pack("<HH", 0x0028, 0x0010) + b"US")
    text = rng.choice((b"2147483647", b"-000000001", b"0000000000", b"0000010000", b"9999999999", b"1e9       "))
    return content if at < 0 else content[:at] + struct.pack("<HH", 0x0028, 0x0008) + b"IS\x0a\0" + text + content[at:]


def _pixel_damage(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped only in the pixel data: streams that are damaged behind a good header."""
    at = content.rfind(struct.pack("<HH", 0x7FE0, 0x0010))
    return (
        content
        if at < 0
        else content[:at] + content[at : at + 12] + _flip(content[at + 12 :] or b"\0", rng, rng.choice((200, None)))
    )


def _nest(content: bytes, rng: random.Random) -> bytes:
    """Sequences within sequences, thousands deep, before the patient's group."""
    at = content.find(b"\x10\0\x10\0PN")
    depth = rng.choice((20, 200, 5000))
    opening = struct.pack("<HH2sHI", 0x0008, 0x2112, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return (
        content
        if at < 0
        else content[:at] + opening * depth + (closing * depth if rng.random() < 0.7 else b"") + content[at:]
    )


DICOM: dict[str, Way] = {
    "VR": _in_header(_vr),
    "tag": _in_header(_tag),
    "length": _in_header(_length),
    "element doubled": _in_header(_twice),
    "rows": _value(0x00280010, (0, 1, 239, 241, 480, 65535)),
    "columns": _value(0x00280011, (0, 1, 319, 321, 640, 65535)),
    "samples": _value(0x00280002, (0, 2, 3, 4, 65535)),
    "bits allocated": _value(0x00280100, (0, 1, 7, 12, 16, 32, 64)),
    "bits stored": _value(0x00280101, (0, 1, 9, 16, 255)),
    "sign": _value(0x00280103, (1, 2)),
    "frames": _frames,
    "pixels": _pixel_damage,
    "nesting": _nest,
}

# --- PNG, JPEG, TIFF, BMP, AVI, MP4 -----------------------------------------------------------------------------------


def _png_header(content: bytes, rng: random.Random) -> bytes:
    """Another IHDR with a right checksum."""
    sides = (0, 1, 320, 321, 8000, 65535, 0x7FFFFFFF)
    head = struct.pack(
        ">IIBBBBB",
        rng.choice(sides),
        rng.choice(sides),
        rng.choice((1, 8, 16, 3)),
        rng.choice((0, 2, 3, 4, 6, 7)),
        0,
        0,
        rng.choice((0, 1, 2)),
    )
    return content[:8] + chunk(b"IHDR", head) + content[33:]


def _png_chunk(content: bytes, rng: random.Random) -> bytes:
    kind = rng.choice(
        (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"iCCP", b"eXIf", b"IEND", b"IDAT", b"zTXt", b"gAMA")
    )
    return content[:33] + chunk(kind, rng.randbytes(rng.choice((0, 1, 13, 300)))) + content[33:]


def _marker(content: bytes, rng: random.Random) -> bytes:
    """Damage behind a random JPEG marker, most often its length."""
    places = [at for at in range(2, len(content) - 4) if content[at] == 0xFF and content[at + 1] not in (0, 255)]
    at = rng.choice(places) if places else 0
    return content[: at + 2] + struct.pack(">H", rng.choice(_LENGTHS) & 0xFFFF) + content[at + 4 :]


def _jpeg_size(content: bytes, rng: random.Random) -> bytes:
    at = content.find(b"\xff\xc0")
    sides = struct.pack(">HH", rng.choice((0, 1, 65535, 241)), rng.choice((0, 1, 65535, 321)))
    return content if at < 0 else content[: at + 5] + sides + content[at + 9 :]


def _ifd(content: bytes, rng: random.Random) -> bytes:
    """A TIFF directory whose entries or successor lie; a successor may be the directory itself."""
    at = struct.unpack_from("<I", content, 4)[0]
    if at + 14 > len(content):
        return content
    count = struct.unpack_from("<H", content, at)[0]
    made = bytearray(content)
    if rng.random() < 0.4:
        end = min(at + 2 + 12 * count, len(made) - 4)
        made[end : end + 4] = struct.pack("<I", rng.choice((at, 8, len(made) - 2, 0xFFFFFFF0)))
    else:
        entry = at + 2 + 12 * rng.randrange(max(count, 1))
        where = entry + rng.choice((0, 2, 4, 8))
        made[where : where + 4] = struct.pack("<I", rng.choice((*_LENGTHS, at, 259, 273)))
    return bytes(made)


def _boxes(names: tuple[bytes, ...], order: str, before: bool) -> Way:
    """The size of a random box or chunk becomes another."""

    def way(content: bytes, rng: random.Random) -> bytes:
        places = [at for found in names if (at := content.find(found)) >= 4]
        at = rng.choice(places) if places else 8
        place = at - 4 if before else at + 4
        size = rng.choice((*_LENGTHS, 7, 8, 9, len(content)))
        return content[:place] + struct.pack(order, size) + content[place + 4 :]

    return way


OF_KIND: dict[str, dict[str, Way]] = {
    "dcm": DICOM,
    "png": {"IHDR": _png_header, "chunk": _png_chunk},
    "jpg": {"marker": _marker, "size": _jpeg_size},
    "tif": {"directory": _ifd},
    "bmp": {"header": lambda c, r: _number(c[:54], r)[:54] + c[54:]},
    "gif": {"header": lambda c, r: _flip(c, r, 60)},
    "avi": {"chunk": _boxes((b"RIFF", b"LIST", b"avih", b"strh", b"strf", b"movi", b"00dc", b"idx1"), "<I", False)},
    "mp4": {
        "box": _boxes(
            (b"ftyp", b"moov", b"mvhd", b"trak", b"mdia", b"stsd", b"stts", b"stsz", b"stco", b"mdat"), ">I", True
        )
    },
}

# --- bombs ------------------------------------------------------------------------------------------------------------


@cache
def zeros(megabytes: int, wbits: int = 15) -> bytes:
    """So many zeros, deflated: a thousandth of their size."""
    packer = zlib.compressobj(9, wbits=wbits)
    piece = bytes(1 << 20)
    return b"".join([*(packer.compress(piece) for _ in range(megabytes)), packer.flush()])


def _png_bomb() -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zeros(900)) + chunk(b"IEND", b"")


def _png_text_bomb() -> bytes:
    content = plain("png")
    return content[:33] + chunk(b"zTXt", b"n\0\0" + zeros(900)) + chunk(b"iCCP", b"n\0\0" + zeros(900)) + content[33:]


def _deflated_bomb() -> bytes:
    content = seeds()["Deflated.dcm"][0]
    at = content.find(b"1.2.840.10008.1.2.1.99") + 22  # the meta group ends a few elements later
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    return content[: max(at, start)] + zeros(2500, -15)


def _dicom(rows: int, columns: int, frames: int, label: str = "still.dcm") -> bytes:
    content = seeds()[label][0]
    for tag, value in ((0x00280010, rows), (0x00280011, columns)):
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + b"US\x02\0"
        at = content.find(head)
        content = content[: at + 8] + struct.pack("<H", value) + content[at + 10 :]
    at = content.find(struct.pack("<HH", 0x0028, 0x0010) + b"US")
    return content[:at] + struct.pack("<HH", 0x0028, 0x0008) + b"IS\x0a\0" + b"%010d" % frames + content[at:]


def _j2k_size() -> bytes:
    content = bytearray(seeds()["JPEG2000.dcm"][0])
    at = content.find(b"\xff\x4f\xff\x51")
    content[at + 8 : at + 16] = struct.pack(">II", 60000, 60000)
    return bytes(content)


def _tiff_loop() -> bytes:
    content = bytearray(plain("tif"))
    at = struct.unpack_from("<I", content, 4)[0]
    end = at + 2 + 12 * struct.unpack_from("<H", content, at)[0]
    content[end : end + 4] = struct.pack("<I", at)
    return bytes(content)


BOMBS: dict[str, Callable[[], bytes]] = {
    "dcm deflate bomb": _deflated_bomb,
    "dcm huge rows and columns": lambda: _dicom(65535, 65535, 1),
    "dcm huge number of frames": lambda: _dicom(240, 320, 2_000_000_000),
    "dcm huge JPEG frames": lambda: _dicom(65535, 65535, 9999, "JPEGframe.dcm"),
    "dcm huge RLE": lambda: _dicom(65535, 65535, 1, "RLE.dcm"),
    "dcm J2K says 60,000 squared": _j2k_size,
    "dcm nested 5,000 deep": lambda: _nest(seeds()["still.dcm"][0], random.Random(2)),
    "png bomb": _png_bomb,
    "png text bomb": _png_text_bomb,
    "tif directory loop": _tiff_loop,
    "dcm preamble only": lambda: bytes(128) + b"DICM",
    "mp4 one box without end": lambda: struct.pack(">I", 0) + b"ftypisom" + bytes(100),
}
