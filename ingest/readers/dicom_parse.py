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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ingest.deid.reasons import Reason, Refusal
from ingest.readers.dicom_source import Source, refused
from ingest.readers.sniff import begins_dicom

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.dataset import Dataset, FileMetaDataset

    Elements = dict[Any, DataElement | RawDataElement]  # by tag, an int

MAX_DEPTH = 16  # sequences within sequences; ours
MAX_ELEMENTS = 20_000  # elements and items; a scanner writes some hundreds; ours
MAX_VALUE = 1 << 20  # bytes of one value that are loaded
MAX_VALUES = 64 << 20  # of all
MAX_FRAGMENTS = 1 << 18

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
    return _Parser(source).meta(start)


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
    parser = _Parser(source)
    dataset, elements = parser.top(start, explicit, little)
    dataset.file_meta = _meta_dataset(meta)
    return Parsed(dataset, elements, meta, syntax, little, parser.pixels)


def _encoding_at(source: Source, start: int) -> tuple[bool, bool]:
    """(explicit, little endian) as the first element looks. Big endian group 0008 reads as 0x0800."""
    if source.size - start < 8:
        return False, True
    head = source.at(start, 6)
    explicit = all(0x41 <= byte <= 0x5A for byte in head[4:6])
    return explicit, not (explicit and struct.unpack("<H", head[:2])[0] >= 0x400)


def _meta_dataset(meta: "Elements") -> "FileMetaDataset":
    from pydicom.dataset import FileMetaDataset

    dataset = FileMetaDataset(meta)
    dataset.set_original_encoding(False, True, "iso8859")
    return dataset


@dataclass(frozen=True, slots=True)
class _Scope:
    """How the elements of a data set or an item are written."""

    explicit: bool  # with their representation
    little: bool
    charset: str | list[str]  # Python's names of the character sets, unless (0008,0005) says otherwise
    depth: int = 0  # sequences around it


class _Parser:
    """One pass over one data set, with its budgets of elements and loaded bytes."""

    def __init__(self, source: Source) -> None:
        from pydicom.datadict import dictionary_VR
        from pydicom.dataelem import DataElement, RawDataElement, empty_value_for_VR
        from pydicom.dataset import Dataset
        from pydicom.sequence import Sequence
        from pydicom.tag import BaseTag

        self.source = source
        self.pixels: PixelElement | None = None
        self._count = self._loaded = 0
        self._raw, self._tag, self._element = RawDataElement, BaseTag, DataElement
        self._dataset, self._sequence, self._dictionary_vr = Dataset, Sequence, dictionary_VR
        self._empty = empty_value_for_VR

    def meta(self, start: int) -> tuple["Elements", int]:
        """The elements of group 0002 and where they end."""
        scope = _Scope(_encoding_at(self.source, start)[0], True, "iso8859")
        return self._elements(start, self.source.size, scope, group=2)[:2]

    def top(self, start: int, explicit: bool, little: bool) -> tuple["Dataset", "Elements"]:
        """The data set that begins at `start`, and the dict that it is made of."""
        scope = _Scope(explicit, little, "iso8859")
        elements, _, charset = self._elements(start, self.source.size, scope, top=True)
        return self._made(elements, scope, charset), elements

    def _made(self, elements: "Elements", scope: _Scope, charset: str | list[str]) -> "Dataset":
        dataset = self._dataset(elements, parent_encoding=scope.charset)
        dataset.set_original_encoding(not scope.explicit, scope.little, charset)
        return dataset

    def _cut(self, end: int) -> Refusal:
        """What it means that something reaches beyond `end`."""
        if self.pixels is not None:
            return refused(Reason.TRAILING_BYTES)
        return refused(Reason.TRUNCATED if end == self.source.size else Reason.UNREADABLE)

    def _junk(self) -> Refusal:
        """What it means that something is no element."""
        return refused(Reason.UNREADABLE if self.pixels is None else Reason.TRAILING_BYTES)

    def _spend(self) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS:
            raise refused(Reason.TOO_LARGE)

    def _elements(
        self,
        position: int,
        end: int,
        scope: _Scope,
        *,
        group: int | None = None,  # stop before another group
        top: bool = False,  # the data set itself: here is the pixel data
        delimited: bool = False,  # an item of undefined length: it ends with a delimiter
    ) -> tuple["Elements", int, str | list[str]]:
        """Elements from `position` to `end`, where they end, and their character set."""
        found: Elements = {}
        last = -1
        while position < end:
            tag, vr, length, value_at = self._head(position, end, scope)
            if group is not None and tag >> 16 != group:
                break
            if delimited and tag == _ITEM_END:
                return found, value_at, scope.charset
            self._spend()
            twice = tag in found or (top and self.pixels is not None and tag <= last)
            if vr is None or twice or tag >> 16 == 0xFFFE:
                raise self._junk()
            last = tag
            if length != _UNDEFINED and value_at + length > end:
                raise self._cut(end)
            if top and tag == _PIXEL_DATA:
                position = self._pixel_data(value_at, end, length, vr, scope.little)
                continue
            position = self._add(found, tag, vr, length, value_at, end, scope)
            if tag == _CHARSET:
                scope = replace(scope, charset=_charset(found[tag].value))
        if delimited:
            raise self._cut(end)
        return found, position, scope.charset

    def _head(self, position: int, end: int, scope: _Scope) -> tuple[int, bytes | None, int, int]:
        """(tag, representation, length of the value, its place). Implicit: empty; None: it is none that exists."""
        if end - position < 8:
            raise self._cut(end)
        order = "<" if scope.little else ">"
        head = self.source.at(position, min(12, end - position))
        number, element, length = struct.unpack_from(f"{order}HHI", head)
        tag, vr = number << 16 | element, head[4:6]
        if not scope.explicit or number == 0xFFFE:
            return tag, b"", length, position + 8
        if vr in _SHORT:
            return tag, vr, struct.unpack_from(f"{order}H", head, 6)[0], position + 8
        if vr in _LONG:
            if len(head) < 12:
                raise self._cut(end)
            return tag, vr, struct.unpack_from(f"{order}I", head, 8)[0], position + 12
        return tag, None, 0, position + 8

    def _add(self, found: "Elements", tag: int, vr: bytes, length: int, value_at: int, end: int, scope: _Scope) -> int:
        """Add an element other than the pixel data; returns where it ends."""
        unknown = vr in (b"UN", b"")
        name = self._vr(tag) if unknown else vr.decode()
        if name == "SQ" or (length == _UNDEFINED and name == "UN"):
            return self._add_sequence(found, tag, value_at, end, length, scope)
        key = self._tag(tag)
        if length == _UNDEFINED:
            if not name.startswith("O"):
                raise self._junk()
            end = self._fragments(value_at, end, scope.little)[1]  # the pixels of an icon: walked over, not kept
            found[key] = self._raw(key, name, 0, None, value_at, not scope.explicit, scope.little)
            return end
        end = value_at + length
        if name == "UN" and length >= 8 and self._begins_item(value_at):
            try:
                return self._add_sequence(found, tag, value_at, end, length, scope)
            except Refusal as refusal:
                if refusal.reason in (Reason.DEEP_NESTING, Reason.TOO_LARGE):
                    raise
        value = self._value(value_at, length)
        little = scope.little or unknown  # UN holds what a little-endian writer had written (PS3.5 6.2.2)
        shown = value or self._empty(name, raw=True)
        found[key] = self._raw(key, name, len(value), shown, value_at, not scope.explicit, little)  # type: ignore[arg-type]
        return end

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

    def _add_sequence(self, found: "Elements", tag: int, position: int, end: int, length: int, scope: _Scope) -> int:
        """Add a sequence whose value begins at `position`; returns where it ends."""
        if scope.depth >= MAX_DEPTH:
            raise refused(Reason.DEEP_NESTING)
        open_ended = length == _UNDEFINED
        end = end if open_ended else position + length
        little = self._item_order(position, end, scope.little)
        items: list[Dataset] = []
        while position < end:
            mark, size = self._mark(position, end, little)
            position += 8
            if open_ended and mark == _SEQUENCE_END:
                open_ended = False
                break
            inside = size == _UNDEFINED
            item_end = end if inside else position + size
            if mark != _ITEM:
                raise self._junk()
            if item_end > end:
                raise self._cut(end)
            self._spend()
            explicit = self._item_explicit(position, item_end, scope.explicit)
            own = _Scope(explicit, little, scope.charset, scope.depth + 1)
            content, position, charset = self._elements(position, item_end, own, delimited=inside)
            items.append(self._made(content, own, charset))
        if open_ended:
            raise self._cut(end)
        key = self._tag(tag)
        found[key] = self._element(key, "SQ", self._sequence(items))
        return position

    def _mark(self, position: int, end: int, little: bool) -> tuple[int, int]:
        """(tag, length) of an item or delimiter."""
        if end - position < 8:
            raise self._cut(end)
        number, element, length = struct.unpack("<HHI" if little else ">HHI", self.source.at(position, 8))
        return number << 16 | element, length

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
        found: list[tuple[int, int]] = []
        while True:
            mark, length = self._mark(position, end, little)
            position += 8
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


def _charset(value: Any) -> str | list[str]:
    """Python's names of the character sets in (0008,0005); the default for what is no DICOM character set."""
    from pydicom.charset import convert_encodings, python_encoding

    if not isinstance(value, bytes):  # absent, or a sequence
        return "iso8859"
    words = [word.strip() for word in value.rstrip(b"\0 ").decode("latin-1").split("\\")]
    try:
        found = convert_encodings(words)
    except (LookupError, ValueError):
        return "iso8859"
    return found if all(name in python_encoding.values() for name in found) else "iso8859"
