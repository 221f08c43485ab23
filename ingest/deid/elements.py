"""One DICOM element's value as checked text, numbers or bytes, decoded here so that no library quotes it in an error.

pydicom converts lazily, with warnings and exceptions that hold the value itself; here nothing raises, warns or logs for
what a value is. What is not of the VR it claims is simply not there. Source: PS3.5 section 6.2; anonymization.md H6-H8.
"""

import math
import re
import struct
from collections.abc import Iterable, Sequence
from decimal import Decimal

from pydicom import config
from pydicom.charset import decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

Element = DataElement | RawDataElement

TEXT_VRS = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
_LONG_TEXT = frozenset({"LT", "ST", "UT", "UR"})  # one value, whatever backslashes it holds
_PADDING = " \0"
_FORMATS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q", "US or SS": "H"}
_INTEGER = re.compile(r"[+-]?[0-9]{1,12}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,15}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")
_MANY = 4096  # numbers of one element that are looked at (ours); a frame time vector is the longest
_TROUBLE = (ValueError, TypeError, LookupError, AttributeError, EOFError, OSError, OverflowError, struct.error)
_PARSING = (*_TROUBLE, NotImplementedError, RecursionError, MemoryError)  # of the library, on malformed sequences
DEFAULT = ("iso8859",)  # Python's name of the codec where SpecificCharacterSet is absent


def peek(dataset: Dataset, tag: int) -> Element | None:
    """The element as it stands in the file, not converted; None if absent or if it can't be read."""
    try:
        found = dataset.get_item(tag)
    except _PARSING:
        return None
    return found if isinstance(found, (DataElement, RawDataElement)) else None


def vr_of(element: Element) -> str:
    """The VR that an element has; where its file states none or UN, the one in the standard's dictionary; else UN."""
    vr = element.VR
    if vr and vr != "UN":
        return str(vr)
    try:
        return str(dictionary_VR(element.tag))
    except KeyError:
        return "UN"


def items_of(dataset: Dataset, element: Element) -> list[Dataset] | None:
    """The items of a sequence; None if it can't be parsed as one."""
    if isinstance(element, RawDataElement):
        try:
            element = dataset[element.tag]
        except _PARSING:
            return None
    value = element.value
    if element.VR != "SQ" or value is None:
        return [] if value is None or value == b"" else None
    try:
        return [item for item in value if isinstance(item, Dataset)]
    except _PARSING:
        return None


def encodings_of(dataset: Dataset, inherited: Sequence[str] = DEFAULT) -> tuple[str, ...]:
    """Python's codecs for the terms of SpecificCharacterSet (0008,0005); unknown terms are passed over."""
    element = peek(dataset, 0x00080005)
    if element is None:
        return tuple(inherited)
    terms = [re.sub(r"[_\s]+", " ", term.strip().upper()) for term in strings(element, DEFAULT)]
    known = [codec for term in terms if (codec := _codecs().get(term))]
    if known and terms and not terms[0]:  # an empty first term: the default repertoire, then code extensions
        known.insert(0, DEFAULT[0])
    return tuple(known) or tuple(inherited)


def _codecs() -> dict[str, str]:
    """By terms with blanks for underscores, as devices mix them up; the empty term is left out."""
    return {re.sub(r"[_\s]+", " ", term): codec for term, codec in python_encoding.items() if term}


def decode(data: bytes, encodings: Sequence[str], person: bool = False) -> str:
    """Bytes as text in the declared character sets; if they are in none of these, as UTF-8, else as Latin-1."""
    if data.isascii() and b"\x1b" not in data:
        return data.decode("ascii")
    if b"\x1b" not in data:
        undeclared = encodings[0] == DEFAULT[0]  # then UTF-8, which nothing else looks like by chance (ours)
        for codec in ("utf-8", *encodings[:1]) if undeclared else (encodings[0], "utf-8"):
            try:
                return data.decode(codec)
            except (UnicodeError, LookupError):
                continue
        return data.decode("latin-1")
    with config.strict_reading():  # raises where it would warn otherwise
        try:
            return decode_bytes(data, list(encodings), set(b"\\^=" if person else b"\\"))
        except _TROUBLE:  # UnicodeError and LookupError among them
            return data.decode("iso2022_jp_2", errors="replace")


def strings(element: Element, encodings: Sequence[str]) -> tuple[str, ...]:
    """The text values of an element of any text VR, stripped of padding; () for other VRs and for unreadable ones."""
    if (vr := vr_of(element)) not in TEXT_VRS:
        return ()
    value = element.value
    if isinstance(value, bytes):
        whole = decode(value, encodings, vr == "PN")
        parts: Iterable[str] = [whole] if vr in _LONG_TEXT else whole.split("\\")
        return tuple(part.strip(_PADDING + "\r\n\t") for part in parts)
    return tuple(_plain(part).strip(_PADDING + "\r\n\t") for part in _parts(value))


def _parts(value: object) -> list[object]:
    if value is None:
        return []
    if isinstance(value, (str, bytes, int, float, Decimal, PersonName)) or not isinstance(value, Iterable):
        return [value]
    return list(value)


def _plain(value: object) -> str:
    """Text of a converted value: the string as it was read for pydicom's numbers and names."""
    if isinstance(value, bytes):
        return decode(value, DEFAULT)
    original = getattr(value, "original_string", None)
    if isinstance(original, str) and original:
        return original
    try:
        return str(value)
    except _TROUBLE:
        return ""


def numbers(element: Element) -> tuple[float, ...]:
    """The finite numbers of an element of a numeric VR; (), if one of them is no number or the VR is another one.

    DS and IS are parsed strictly: digits of ASCII, no underscores, no words for infinity.
    """
    vr, value = vr_of(element), element.value
    if vr in ("DS", "IS"):
        pattern = _INTEGER if vr == "IS" else _DECIMAL
        texts = strings(element, DEFAULT)[:_MANY]
        return tuple(map(float, texts)) if texts and all(map(pattern.fullmatch, texts)) else ()
    if vr not in _FORMATS:
        return ()
    if isinstance(value, bytes):
        value = _unpack(value, _FORMATS[vr], getattr(element, "is_little_endian", True))
    found = _parts(value)[:_MANY]
    if any(isinstance(part, bool) or not isinstance(part, (int, float)) or not math.isfinite(part) for part in found):
        return ()
    return tuple(float(part) for part in found if isinstance(part, (int, float)))


def _unpack(data: bytes, code: str, little: bool) -> tuple[float, ...]:
    size = struct.calcsize("=" + code)
    count, rest = divmod(len(data), size)
    if rest or not count:
        return ()
    return struct.unpack_from(f"{'<' if little else '>'}{min(count, _MANY)}{code}", data)
