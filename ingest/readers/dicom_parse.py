"""The structure of a DICOM file (PS3.5 7, PS3.10 7): every length checked before it is believed.

pydicom's own reader trusts lengths, recurses as deep as a file says and guesses where one is damaged, so two readers
could see two different data sets in one file. Here one strict pass makes the data set; pydicom only converts values.
What is settled here (ours):

- a data set is read to the last byte of the file. After the pixel data only elements may follow, in ascending order,
  DataSetTrailingPadding (FFFC,FFFC) among them; anything else is `trailing_bytes`, zeros too;
- an element that occurs twice, an unknown representation (VR) or a length beyond its item is refused, not repaired;
- the representation is looked at, as pydicom does: a data set or item that is implicit where explicit was announced is
  read as what it is. UN elements that begin with an item are sequences if they can be read so, else bytes;
- values over 1 MiB are not loaded: the element stays, empty.
"""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingest.deid.reasons import Reason, Refusal
from ingest.readers.dicom_source import Source, refused
from ingest.readers.sniff import begins_dicom

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataelem import DataElement, RawDataElement

    Elements = dict[int, DataElement | RawDataElement]

MAX_DEPTH = 16  # sequences within sequences; ours
MAX_ELEMENTS = 100_000
MAX_VALUE = 1 << 20  # bytes of one value that are loaded
MAX_VALUES = 64 << 20  # of all
MAX_FRAGMENTS = 1 << 20

IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_UNDEFINED = 0xFFFFFFFF
_PIXEL_DATA, _CHARSET, _SYNTAX = 0x7FE00010, 0x00080005, 0x00020010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


@dataclass(frozen=True, slots=True, repr=False)
class PixelElement:
    """Where the pixel data is. `fragments`: (offset, length) of each, the offset table left out; None if native."""

    offset: int
    length: int
    words: bool  # written as 16-bit words (OW): bytes are swapped in big endian
    fragments: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, slots=True, repr=False)
class Parsed:
    """A file's structure. `elements` is the dict that `dataset` converts in place when somebody asks for a value."""

    dataset: "Dataset"
    elements: "Elements"
    meta: "Elements"
    syntax: str
    little: bool
    pixels: PixelElement | None


def dataset_at(source: Source) -> tuple["Elements", int]:
    """The file meta elements (group 0002) and where the data set begins; no elements if there is no meta.

    Raises:
        Refusal: unsupported when it is not DICOM; truncated, unreadable.
    """
    head = source.at(0, min(140, source.size))
    start = 132 if head[128:132] == b"DICM" else 4 if head[:4] == b"DICM" else 0
    if not start and not begins_dicom(head):
        raise refused(Reason.UNSUPPORTED)
    return _Parser(source, little=True).meta(start)


def syntax_of(meta: "Elements") -> str:
    """The transfer syntax that the meta elements state, empty if none; never shown, only compared."""
    value = getattr(meta.get(_SYNTAX), "value", None)
    return value.strip(b"\0 ").decode("latin-1") if isinstance(value, bytes) else ""


def parse(source: Source, meta: "Elements", start: int) -> Parsed:
    """Read the data set that begins at `start` of a source that is inflated already.

    Raises:
        Refusal: truncated, unreadable, trailing_bytes, deep_nesting, too_large.
    """
    syntax = syntax_of(meta)
    explicit, little = _encoding_at(source, start)
    if syntax:
        little = syntax != BIG_ENDIAN
    else:  # a bare data set: PS3.5 10.1 has it implicit; old scanners wrote what they liked
        syntax = IMPLICIT if not explicit else EXPLICIT if little else BIG_ENDIAN
    parser = _Parser(source, little)
    dataset, elements = parser.top(start, explicit)
    dataset.file_meta = _meta_dataset(meta)
    return Parsed(dataset, elements, meta, syntax, little, parser.pixels)


def _encoding_at(source: Source, start: int) -> tuple[bool, bool]:
    """(explicit, little endian) as the first element looks. Big endian group 0008 reads as 0x0800."""
    if source.size - start < 8:
        return False, True
    head = source.at(start, 6)
    explicit = all(0x41 <= byte <= 0x5A for byte in head[4:6])
    return explicit, not (explicit and struct.unpack("<H", head[:2])[0] >= 0x400)


def _meta_dataset(meta: "Elements") -> "Dataset":
    from pydicom.dataset import FileMetaDataset

    dataset = FileMetaDataset(meta)
    dataset.set_original_encoding(False, True, "iso8859")
    return dataset


class _Parser:
    """One pass over one data set, with its budgets of elements and loaded bytes."""

    def __init__(self, source: Source, little: bool) -> None:
        from pydicom.datadict import dictionary_VR
        from pydicom.dataelem import DataElement, RawDataElement, empty_value_for_VR
        from pydicom.dataset import Dataset
        from pydicom.sequence import Sequence
        from pydicom.tag import BaseTag

        self.source, self.little = source, little
        self.pixels: PixelElement | None = None
        self._count = self._loaded = 0
        self._raw, self._tag, self._element = RawDataElement, BaseTag, DataElement
        self._dataset, self._sequence, self._dictionary_vr = Dataset, Sequence, dictionary_VR
        self._empty = empty_value_for_VR

    def meta(self, start: int) -> tuple["Elements", int]:
        explicit = _encoding_at(self.source, start)[0]
        return self._elements(start, self.source.size, explicit, True, "iso8859", 0, group=2)[:2]

    def top(self, start: int, explicit: bool) -> tuple["Dataset", "Elements"]:
        elements, _, charset = self._elements(start, self.source.size, explicit, self.little, "iso8859", 0, top=True)
        return self._made(elements, explicit, self.little, charset, "iso8859"), elements

    def _made(
        self, elements: "Elements", explicit: bool, little: bool, charset: str | list[str], parent: str | list[str]
    ) -> "Dataset":
        dataset = self._dataset(elements, parent_encoding=parent)
        dataset.set_original_encoding(not explicit, little, charset)
        return dataset

    def _cut(self, end: int) -> Refusal:
        """What it means that something reaches beyond `end`."""
        if self.pixels is not None:
            return refused(Reason.TRAILING_BYTES)
        return refused(Reason.TRUNCATED if end == self.source.size else Reason.UNREADABLE)

    def _junk(self) -> Refusal:
        """What it means that something is no element."""
        return refused(Reason.UNREADABLE if self.pixels is None else Reason.TRAILING_BYTES)

    def _elements(
        self,
        position: int,
        end: int,
        explicit: bool,
        little: bool,
        charset: str | list[str],
        depth: int,
        *,
        group: int | None = None,  # stop before another group
        top: bool = False,
        delimited: bool = False,  # an item of undefined length: it ends with a delimiter
    ) -> tuple["Elements", int, str | list[str]]:
        """Elements from `position` to `end`, where they end, and their character set."""
        short = struct.Struct("<HHI" if little else ">HHI").unpack_from
        found: Elements = {}
        last = -1
        while position < end:
            if end - position < 8:
                raise self._cut(end)
            head = self.source.at(position, min(12, end - position))
            number, element, length = short(head)
            tag = number << 16 | element
            if group is not None and number != group:
                break
            if delimited and tag == _ITEM_END:
                return found, position + 8, charset
            self._count += 1
            if self._count > MAX_ELEMENTS:
                raise refused(Reason.TOO_LARGE)
            if number == 0xFFFE or tag in found or (top and self.pixels is not None and tag <= last):
                raise self._junk()
            last = tag
            vr, size = b"", 8
            if explicit:
                vr = head[4:6]
                if vr in _LONG:
                    if len(head) < 12:
                        raise self._cut(end)
                    size, length = 12, struct.unpack_from("<I" if little else ">I", head, 8)[0]
                elif vr in _SHORT:
                    length = struct.unpack_from("<H" if little else ">H", head, 6)[0]
                else:
                    raise self._junk()
            value_at = position + size
            if length != _UNDEFINED and value_at + length > end:
                raise self._cut(end)
            if top and tag == _PIXEL_DATA:
                position = self._pixel_data(value_at, end, length, vr, little)
                continue
            name = vr.decode() if explicit and vr != b"UN" else self._vr(tag)
            if name == "SQ" or (length == _UNDEFINED and name not in ("OB", "OW", "OB or OW")):
                if name not in ("SQ", "UN"):
                    raise self._junk()
                position = self._add_sequence(found, tag, value_at, end, length, explicit, little, charset, depth)
                continue
            if length == _UNDEFINED:  # encapsulated pixels of an icon: walked over, not kept
                _, position = self._fragments(value_at, end, little)
                found[self._tag(tag)] = self._raw(self._tag(tag), name, 0, b"", value_at, not explicit, little)
                continue
            position = value_at + length
            if name == "UN" and length >= 8 and self._begins_item(value_at):
                try:
                    self._add_sequence(found, tag, value_at, position, length, explicit, little, charset, depth)
                    continue
                except Refusal as refusal:
                    if refusal.reason in (Reason.DEEP_NESTING, Reason.TOO_LARGE):
                        raise
            value = self._value(value_at, length)
            order = little or vr == b"UN"  # UN holds what the little-endian writer before it wrote
            found[self._tag(tag)] = self._raw(
                self._tag(tag), name, len(value), value or self._empty(name, raw=True), value_at, not explicit, order
            )
            if tag == _CHARSET:
                charset = _charset(value)
        if delimited:
            raise self._cut(end)
        return found, position, charset

    def _vr(self, tag: int) -> str:
        """The representation by the dictionary (PS3.6); UN for what it does not know."""
        if tag >> 16 & 1:
            return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
        if not tag & 0xFFFF:
            return "UL"
        try:
            return str(self._dictionary_vr(tag))
        except KeyError:
            return "UN"

    def _value(self, position: int, length: int) -> bytes:
        if length > MAX_VALUE:
            return b""
        self._loaded += length
        if self._loaded > MAX_VALUES:
            raise refused(Reason.TOO_LARGE)
        return self.source.at(position, length)

    def _begins_item(self, position: int) -> bool:
        return self.source.at(position, 4) in (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")

    def _add_sequence(
        self,
        found: "Elements",
        tag: int,
        position: int,
        end: int,
        length: int,
        explicit: bool,
        little: bool,
        charset: str | list[str],
        depth: int,
    ) -> int:
        """Add a sequence that begins at `position`; returns where it ends."""
        if depth >= MAX_DEPTH:
            raise refused(Reason.DEEP_NESTING)
        open_ended = length == _UNDEFINED
        end = end if open_ended else position + length
        items: list[Dataset] = []
        little = self._item_order(position, end, little)
        unpack = struct.Struct("<HHI" if little else ">HHI").unpack
        while position < end:
            if end - position < 8:
                raise self._cut(end)
            number, element, size = unpack(self.source.at(position, 8))
            mark = number << 16 | element
            position += 8
            if open_ended and mark == _SEQUENCE_END:
                open_ended = False
                break
            if mark != _ITEM:
                raise self._junk()
            inside = size == _UNDEFINED
            if not inside and position + size > end:
                raise self._cut(end)
            self._count += 1
            item_explicit = self._item_explicit(position, end if inside else position + size, explicit)
            content, position, own = self._elements(
                position,
                end if inside else position + size,
                item_explicit,
                little,
                charset,
                depth + 1,
                delimited=inside,
            )
            items.append(self._made(content, item_explicit, little, own, charset))
        if open_ended:
            raise self._cut(end)
        key = self._tag(tag)
        found[key] = self._element(key, "SQ", self._sequence(items))
        return position

    def _item_order(self, position: int, end: int, little: bool) -> bool:
        """Byte order of a sequence's items: that of the file, but little endian in UN (PS3.5 6.2.2), as it looks."""
        if end - position >= 4 and self._begins_item(position):
            return self.source.at(position, 2) == b"\xfe\xff"
        return little

    def _item_explicit(self, position: int, end: int, explicit: bool) -> bool:
        """Whether an item's elements carry representations; sequences of unknown kind have none (PS3.5 6.2.2)."""
        if not explicit or end - position < 8:
            return explicit
        return all(0x41 <= byte <= 0x5A for byte in self.source.at(position, 6)[4:6])

    def _pixel_data(self, position: int, end: int, length: int, vr: bytes, little: bool) -> int:
        words = vr in (b"OW", b"")
        if length != _UNDEFINED:
            self.pixels = PixelElement(position, length, words, None)
            return position + length
        fragments, after = self._fragments(position, end, little)
        self.pixels = PixelElement(position, after - position, words, fragments)
        return after

    def _fragments(self, position: int, end: int, little: bool) -> tuple[tuple[tuple[int, int], ...], int]:
        """The items of encapsulated pixel data (PS3.5 A.4) without the first, its offset table; and where they end."""
        unpack = struct.Struct("<HHI" if little else ">HHI").unpack
        found: list[tuple[int, int]] = []
        while end - position >= 8:
            number, element, length = unpack(self.source.at(position, 8))
            position += 8
            mark = number << 16 | element
            if mark == _SEQUENCE_END:
                return tuple(found[1:]), position
            if mark != _ITEM or length == _UNDEFINED:
                raise self._junk()
            if position + length > end:
                raise self._cut(end)
            found.append((position, length))
            position += length
            if len(found) > MAX_FRAGMENTS:
                raise refused(Reason.TOO_LARGE)
        raise self._cut(end)


def _charset(value: bytes) -> str | list[str]:
    """Python's names of the character sets in (0008,0005); the default for what is no DICOM character set."""
    from pydicom.charset import convert_encodings, python_encoding

    words = [word.strip() for word in value.rstrip(b"\0 ").decode("latin-1").split("\\")]
    try:
        found = convert_encodings(words)
    except (LookupError, ValueError):
        return "iso8859"
    return found if all(name in python_encoding.values() for name in found) else "iso8859"
