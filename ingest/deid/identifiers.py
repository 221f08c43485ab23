"""What a source says about whom it is of: gathered in memory for the self-check, never stored, never shown.

From a DICOM object: every text at any depth, in standard and private elements, file meta and preamble. From other
files: what is written beside the pixels. From both: the path. `needles` makes words and spellings of it.
Source: anonymization.md Q4, N2, N3; H8.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ingest.deid import elements
from ingest.deid.file_texts import texts_of_file
from ingest.deid.values import name_components
from ingest.deid.walk import Leaf

SHORTEST = 4  # signs; needles counts ideographs double
LONGEST = 120  # signs of one identifier; longer texts are taken apart at their lines and sentences (ours)
MOST = 500  # identifiers of one item: those of named fields first (ours; every one costs about 30 us to search for)
TABLE = 32  # numbers in one text above which they are a table of measurements, not somebody's (ours)
_BINARY = 1 << 16  # bytes of one value without text VR in which text is looked for (ours)
_TECHNICAL = re.compile(r"1\.2\.840\.10008\.[0-9.]+|[\W_]*")
_MEASURE = re.compile(r"[+-]?[0-9]{0,6}(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_BREAK = re.compile(r"[\r\n\t\0\x1b<>{}|;\\^=]+|\. |, ")
_CONTENT = re.compile(r">([^<>]+)<|=\"([^\"<>]*)\"")
_RUN = re.compile(rb"(?:[\x20-\x7e]|[\xc2-\xf4][\x80-\xbf]+){4,}")
_WIDE = re.compile(rb"(?:[\x20-\x7e]\0){4,}")
_PRINTED = re.compile(r"[^\W\d_].*[^\W\d_].*[^\W\d_]|[0-9]{4}")  # three letters or four digits: text, not noise
# Defined terms and technical text of the standard: the same in everybody's files.
_COMMON_VRS = frozenset({"AT", "DS", "IS", "TM"})
_COMMON_TAGS = frozenset(
    {0x00080005, 0x00080060, 0x00080016, 0x00020002, 0x00020010, 0x00280004, 0x00280009, 0x00281054, 0x20500020}
)
_FIRST = (0x0010, 0x0008, 0x0032, 0x0038, 0x0040, 0x0020)  # groups that name people, places and requests


class Gathered:
    """Collects identifiers of one object; `found` gives at most `MOST`, the same ones on any machine."""

    __slots__ = ("_by_rank",)

    def __init__(self) -> None:
        self._by_rank: tuple[dict[str, None], ...] = ({}, {}, {}, {})

    def add(self, leaf: Leaf) -> None:
        """What an element of a DICOM object says."""
        if leaf.tag in _COMMON_TAGS:
            return
        rank = 2 if leaf.private else 0 if leaf.tag >> 16 in _FIRST else 1
        for text in _texts(leaf):
            self._put(text, rank, person=leaf.vr == "PN")
        if leaf.vr not in elements.TEXT_VRS:
            value = leaf.element.value
            self.add_bytes(value if isinstance(value, bytes) else None)

    def add_bytes(self, data: bytes | None) -> None:
        """Text that is printed in bytes of no known meaning."""
        for text in printed(data[:_BINARY]) if data else ():
            self._put(text, 3)

    def add_texts(self, texts: Iterable[str], rank: int = 1) -> None:
        """Texts that are known to be such."""
        for text in texts:
            self._put(text, rank)

    def found(self) -> frozenset[str]:
        """The identifiers."""
        ordered = dict.fromkeys(text for rank in self._by_rank for text in rank)
        return frozenset(list(ordered)[:MOST])

    def _put(self, text: str, rank: int, person: bool = False) -> None:
        into = self._by_rank[rank]
        if len(into) > MOST:
            return
        parts = [text] if len(text) <= LONGEST else _parts(text)
        if sum(map(str.isdecimal, parts)) > TABLE:
            parts = [part for part in parts if not part.isdecimal()]
        for part in parts:
            part = part.strip()[:LONGEST]
            if len(part) * 2 >= SHORTEST and not _TECHNICAL.fullmatch(part):
                into[part] = None
                into.update(dict.fromkeys(name_components(part) if person else ()))


def _parts(text: str) -> list[str]:
    """A long text in pieces; of XML what its tags hold, not their names."""
    if "</" in text:
        return [content or value for content, value in _CONTENT.findall(text)]
    return _BREAK.split(text)


def _texts(leaf: Leaf) -> Iterator[str]:
    """The text values of an element. Numbers are none, unless what stands there is no number."""
    found = elements.strings(leaf.element, leaf.encodings)
    value = leaf.element.value
    for text in found:
        if leaf.vr in _COMMON_VRS and _MEASURE.fullmatch(text.replace(":", "")):
            continue
        yield text
    if isinstance(value, bytes) and not value.isascii() and leaf.vr in elements.TEXT_VRS:
        yield from _other_readings(value)


def _other_readings(data: bytes) -> Iterator[str]:
    """Text beyond ASCII as other character sets read it: files often declare the wrong one."""
    for codec in ("utf-8", "gb18030", "shift_jis", "cp1251"):
        try:
            yield data.decode(codec).strip(" \0")
        except UnicodeError:
            continue


def printed(data: bytes) -> Iterator[str]:
    """Runs of at least four printed signs, in ASCII, UTF-8 or UTF-16, that look like text."""
    for match in _RUN.finditer(data):
        text = match[0].decode("utf-8", errors="ignore").strip()
        if _PRINTED.search(text):
            yield text
    for shift in (0, 1) if b"\0" in data else ():
        for match in _WIDE.finditer(data[shift:]):
            text = match[0].decode("utf-16-le", errors="ignore").strip()
            if _PRINTED.search(text):
                yield text


def of_dataset(leaves: Iterable[Leaf], preamble: bytes | None = None) -> frozenset[str]:
    """The identifiers in a DICOM object's elements (from `walk`) and its preamble."""
    gathered = Gathered()
    for leaf in leaves:
        gathered.add(leaf)
    gathered.add_bytes(preamble)
    return gathered.found()


def path_identifiers(relative: str) -> frozenset[str]:
    """The parts of a path: names of folders and of the file, without its extension."""
    gathered = Gathered()
    gathered.add_texts(_path_parts(relative), rank=0)
    return gathered.found()


def _path_parts(relative: str) -> Iterator[str]:
    path = PurePosixPath(relative.replace("\\", "/"))
    yield from path.parts[:-1]
    yield path.name
    yield path.stem


def file_identifiers(path: Path, relative: str) -> frozenset[str]:
    """What a picture or video that is not DICOM says beside its pixels, and its path. Damage is not its business.

    PNG chunks, EXIF, XMP, IPTC, comments, colour profiles, RIFF INFO, MP4 atoms; bounded in size.

    Raises:
        OSError: the file can't be opened.
    """
    gathered = Gathered()
    gathered.add_texts(_path_parts(relative), rank=0)
    for blob in texts_of_file(path):
        gathered.add_texts(printed(blob), rank=1)
    return gathered.found()
