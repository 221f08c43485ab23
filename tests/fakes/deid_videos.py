"""AVI and MP4 files with secrets in their containers: lists, boxes, further tracks, gaps, behind the end."""

import struct
from collections.abc import Callable, Iterator

from fakes.deid_media import MediaPlace, named, plain
from fakes.deid_secrets import Secret, day

# --- AVI --------------------------------------------------------------------------------------------------------------


def riff(kind: bytes, data: bytes) -> bytes:
    """A RIFF chunk, padded."""
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _avi_add(file: bytes, more: bytes) -> bytes:
    """Append chunks to the outer list, in which they count."""
    size = struct.unpack_from("<I", file, 4)[0]
    whole = file[: 8 + size + size % 2] + more
    return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]


def _avi(make: Callable[[bytes], bytes]) -> Callable[[bytes, str], bytes]:
    return lambda file, text: _avi_add(file, make(text.encode()))


def _info(kind: bytes) -> Callable[[bytes], bytes]:
    return lambda text: riff(b"LIST", b"INFO" + riff(kind, text + b"\0"))


def _avi_stream(handler: bytes, kind: bytes) -> Callable[[bytes, str], bytes]:
    """A further stream (subtitles, sound) whose header, name and one chunk hold the text."""

    def put(file: bytes, text: str) -> bytes:
        raw = text.encode()
        head = handler + bytes(4) + struct.pack("<IHHIIIIIIIIHHHH", 0, 0, 0, 0, 1, 20, 0, 1, 4096, 0, 0, 0, 0, 0, 0)
        form = struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8) if handler == b"auds" else b""
        stream = riff(b"LIST", b"strl" + riff(b"strh", head) + riff(b"strf", form) + riff(b"strn", raw + b"\0"))
        at = file.index(b"LIST", 12)  # hdrl
        size = struct.unpack_from("<I", file, at + 4)[0]
        streams = file.index(b"avih") + 8 + 24
        file = file[:streams] + struct.pack("<I", 2) + file[streams + 4 :]
        file = (
            file[: at + 4]
            + struct.pack("<I", size + len(stream))
            + file[at + 8 : at + 8 + size]
            + stream
            + file[at + 8 + size :]
        )
        movi = file.index(b"movi") - 8
        moved, size = riff(kind, raw), struct.unpack_from("<I", file, movi + 4)[0]
        end = movi + 8 + size
        file = file[: movi + 4] + struct.pack("<I", size + len(moved)) + file[movi + 8 : end] + moved + file[end:]
        return file[:4] + struct.pack("<I", len(file) - 8) + file[8:]

    return put


# --- MP4 --------------------------------------------------------------------------------------------------------------


def box(kind: bytes, *content: bytes) -> bytes:
    """An MP4 box."""
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + kind + data


def _in_moov(make: Callable[[bytes], bytes]) -> Callable[[bytes, str], bytes]:
    """Append a box inside moov, which stands last in the file: no offset of the pictures changes."""

    def put(file: bytes, text: str) -> bytes:
        at = file.rindex(b"moov") - 4
        size = struct.unpack_from(">I", file, at)[0]
        more = make(text.encode())
        return file[:at] + struct.pack(">I", size + len(more)) + file[at + 4 : at + size] + more + file[at + size :]

    return put


def _ilst(text: bytes) -> bytes:
    hdlr = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    value = box(b"\xa9nam", box(b"data", struct.pack(">II", 1, 0), text))
    return box(b"udta", box(b"meta", bytes(4), hdlr, box(b"ilst", value)))


def _track(handler: bytes, entry: bytes) -> Callable[[bytes], bytes]:
    """A track without samples: its handler's name, its language, its sample entry; text or sound."""

    def make(text: bytes) -> bytes:
        tkhd = box(b"tkhd", struct.pack(">IIIII", 3, 0, 0, 9, 0), bytes(64))
        mdhd = box(b"mdhd", struct.pack(">IIIIIHH", 0, 0, 0, 1000, 0, 0x55C4, 0))
        hdlr = box(b"hdlr", bytes(8), handler, bytes(12), text + b"\0")
        stsd = box(b"stsd", struct.pack(">II", 0, 1), box(entry, bytes(6), struct.pack(">H", 1), text))
        empty = [box(kind, bytes(8)) for kind in (b"stts", b"stsc", b"stco")] + [box(b"stsz", bytes(12))]
        dinf = box(b"dinf", box(b"dref", struct.pack(">II", 0, 1), box(b"url ", struct.pack(">I", 1))))
        minf = box(b"minf", box(b"nmhd", bytes(4)), dinf, box(b"stbl", stsd, *empty))
        return box(b"trak", tkhd, box(b"mdia", mdhd, hdlr, minf))

    return make


def _created(file: bytes, text: str) -> bytes:
    """The day in mvhd's creation time (seconds since 1904), and once more as text, to be found."""
    from datetime import date

    when = date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    at = file.rindex(b"mvhd") + 8
    seconds = struct.pack(">I", (when - date(1904, 1, 1)).days * 86400)
    file = file[:at] + seconds * 2 + file[at + 8 :]
    return _in_moov(lambda raw: box(b"udta", box(b"\xa9day", struct.pack(">HH", len(raw), 0), raw)))(file, text)


_XMP_ID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
VIDEO = (
    MediaPlace("avi/INFO INAM", _avi(_info(b"INAM"))),
    MediaPlace("avi/INFO IART", _avi(_info(b"IART"))),
    MediaPlace("avi/INFO ICRD", _avi(_info(b"ICRD")), day),
    MediaPlace("avi/JUNK", _avi(lambda raw: riff(b"JUNK", raw))),
    MediaPlace("avi/IDIT", _avi(lambda raw: riff(b"IDIT", raw))),
    MediaPlace("avi/unknown chunk", _avi(lambda raw: riff(b"hosp", raw))),
    MediaPlace("avi/subtitle stream", _avi_stream(b"txts", b"01tx")),
    MediaPlace("avi/sound stream", _avi_stream(b"auds", b"01wb")),
    MediaPlace("avi/behind the end", lambda file, text: file + text.encode()),
    MediaPlace(
        "mp4/udta name", _in_moov(lambda raw: box(b"udta", box(b"\xa9nam", struct.pack(">HH", len(raw), 0), raw)))
    ),
    MediaPlace("mp4/udta loci", _in_moov(lambda raw: box(b"udta", box(b"loci", bytes(6), raw + b"\0", bytes(14))))),
    MediaPlace("mp4/ilst", _in_moov(_ilst)),
    MediaPlace("mp4/subtitle track", _in_moov(_track(b"text", b"tx3g"))),
    MediaPlace("mp4/sound track", _in_moov(_track(b"soun", b"mp4a"))),
    MediaPlace("mp4/creation time", _created, day),
    MediaPlace("mp4/free box", lambda file, text: file + box(b"free", text.encode())),
    MediaPlace("mp4/uuid XMP box", lambda file, text: file + box(b"uuid", _XMP_ID, text.encode())),
    MediaPlace("mp4/second mdat", lambda file, text: file + box(b"mdat", text.encode())),
    MediaPlace("mp4/behind the end", lambda file, text: file + text.encode()),
)


def videos() -> Iterator[tuple[MediaPlace, bytes, Secret]]:
    """Every place of the video formats: (place, file, secret)."""
    for place in VIDEO:
        secret = named(place)
        yield place, place.put(plain(place.suffix), secret.value), secret
