"""The last look before anything is stored: is one of the source's own identifiers in it?

`SelfCheck` knows the identifiers of one item and searches its rows, PNG files and other bytes for them. A hit refuses
the item; that is why a search which finds something by chance all the time would be as useless as none. What is
searched where, and how often chance was met (in real pictures resized to 256 x 256, and computed):

- Text (words of the catalog, JSON, member names): every identifier of at least 4 characters, folded (`needles.fold`),
  so neither case, accents, full-width letters, separators nor the order of two names hide it. Numbers of 4 to 7 digits
  must be a whole run of digits; longer ones may stand inside one.
- Hex digits of 16 or 32 places (pseudonyms, hashes): identifiers of at least 8 characters, and unkeyed hashes of all.
  A number of 4 digits is in a random pseudonym by chance once in 2,300 (29/16^4), one of 8 once in 170 million: below
  one in 1,000 for a clip of 1,000 frames with 60 numbers.
- Dates as the catalog writes them (YYYY-MM-DD): whole days only, so that the year 2015 in a path does not refuse every
  date in 2015. The shifted date is another of the same file's days by chance once in 3,652.
- Numbers: an integer that *is* an identifier of at least 6 digits, a float whose digits hold one of at least 8.
- PNG files: rebuilt from what a decoder sees. Only IHDR, PLTE, IDAT and IEND may be there, nothing may follow or hide
  behind the pixels. Among pixels, identifiers with a letter and 8 characters, and others of 12, with 5 different ones;
  in UTF-16 those of 4. A name of 4 letters is met in 0.1 % of real pictures ("otto" in 3 %), a random number of 6
  digits in 0.1 %, of 8 in 0.0006 %: in a clip of 1,000 frames the shorter ones would mean nothing. With these rules
  130,000 searches for 29 identifiers each met none.

Known limits: text in pixel values that is shorter than that, or was resized (the scan area and the check for glyphs
answer for text that can be *seen*); identifiers below 4 characters; an identifier that is a word of the closed
vocabularies (a Mrs Young where "young" is one); one that is cut in two by a frame or a row, or encoded (base64,
reversed, encrypted); transliterations other than those of `needles.plain`; letters that only look alike (a Cyrillic A).
Source: anonymization.md Q4.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from functools import cache
from numbers import Integral, Real
from typing import Any

import numpy as np

from ingest.deid.needles import JOINED, WHOLE_RUN, Needles, fold, plain
from ingest.deid.reasons import Reason, State
from usdata.schema import QUARANTINE, SAMPLES

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})  # N1
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_LARGEST = 1 << 28  # bytes of pixels in a PNG file
_HEX = re.compile(r"(?<![0-9a-z])[0-9a-f]{16}(?:[0-9a-f]{16})?(?![0-9a-z])")
_ISO_DAY = re.compile(r"(?<![0-9])([0-9]{4})-([0-9]{2})-([0-9]{2})(?![0-9])")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_DIGITS = re.compile(r"[0-9]+")
_INSIDE_A_NUMBER = re.compile(r"(?<=[0-9]) (?=[0-9])")
_TRIPLE = re.compile(r"(?<![0-9])(?=([0-9]{1,4}) ([0-9]{1,2}) ([0-9]{1,4})(?![0-9]))")
_NOT_IN_NUMBERS = 6  # digits below which an integer may equal an identifier by chance: a frame, a width
_REMEMBERED = 4096  # cells whose answer is kept: a clip's rows hardly differ
_CASE_BITS = 0x20202020  # the bit that tells a small ASCII letter from a large one, in four bytes
_SPREAD = np.uint32(2654435761)  # Knuth's multiplicative hash
_OURS = "public private regions fit template yes no unknown male female other true false null shards tar png json"


class SelfCheck:
    """Searches outputs for the identifiers of one item. Its repr shows none of them.

    Args:
        identifiers: what the source says about whom it is of, as it says it: names, ids, dates, UIDs, institutions,
            parts of its path. Those below 4 characters are not searched.
        allowed: words and phrases of the closed vocabularies, and what the card or the operator gave (the name of the
            data set, the site, the licence): they are in every row and tell nothing about a patient. An identifier
            which consists of them alone is not searched. Our own column names and states need not be given.
    """

    __slots__ = ("_allowed", "_grams", "_needles", "_seen", "_table", "_words")

    def __init__(self, identifiers: Iterable[str], allowed: frozenset[str] = frozenset()) -> None:
        self._allowed, self._words = _folded_terms(allowed)
        self._needles = Needles.of(identifiers, self._words)
        self._grams: dict[int, list[tuple[int, bytes]]] = {}  # four bytes -> where in which needles they stand
        for needle in self._needles.in_pixels:
            for start, gram in enumerate(_grams_of(needle)):
                self._grams.setdefault(gram, []).append((start, needle))
        self._table = np.zeros(1 << 16, np.bool_)
        self._table[_hashed(np.array(list(self._grams), np.uint32))] = True
        self._seen: dict[str, bool] = {}

    def __repr__(self) -> str:
        return "SelfCheck(...)"

    def finds(self, blob: bytes) -> bool:
        """Whether an identifier is in a PNG file, or in any other bytes: JSON, text, a name.

        A PNG file that is damaged, or holds anything but a picture, counts as found.
        """
        return self._in_png(blob) if blob.startswith(_SIGNATURE) else self._in_bytes(blob)

    def finds_in_row(self, row: Mapping[str, Any]) -> bool:
        """Whether an identifier is in a value of a row, at any depth, or in a key that is no column of the catalog."""
        return any(self._in_value(v) or (k not in _columns() and self._in_cell(str(k))) for k, v in row.items())

    def _in_value(self, value: object) -> bool:
        if value is None or isinstance(value, (bool, np.bool_)):
            return False
        if isinstance(value, str):
            return self._in_cell(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self.finds(bytes(value))
        if isinstance(value, Integral):
            text = str(abs(int(value)))
            return len(text) >= _NOT_IN_NUMBERS and (text in self._needles.digits or text in self._needles.runs)
        if isinstance(value, Real):
            return self._in_float(float(value))
        if isinstance(value, Mapping):
            return any(self._in_value(part) for pair in value.items() for part in pair)
        if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
            return any(self._in_value(part) for part in value)
        if isinstance(value, (date, datetime)):
            return self._in_cell(value.isoformat())
        return self._in_cell(str(value))

    def _in_float(self, value: float) -> bool:
        if value.is_integer():
            return self._in_value(int(value))
        digits = repr(value).split("e")[0].replace(".", "").lstrip("-")
        return any(needle in digits for needle in self._needles.digits)

    def _in_cell(self, text: str) -> bool:
        """The same cells come in thousands of rows: each is searched once."""
        known = self._seen.get(text)
        if known is None:
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            known = self._seen[text] = fold(text) not in self._allowed and self._in_text(text)
        return known

    def _in_text(self, text: str) -> bool:
        text = text.replace("\0", " ")
        for token in _HEX.findall(text):
            if self._in_hex(token):
                return True
        for year, month, day in _ISO_DAY.findall(text):
            if year + month + day in self._needles.days:
                return True
        folded = fold(_ISO_DAY.sub(" ", _HEX.sub(" ", text)))
        return self._in_words(folded) or self._in_digits(folded)

    def _in_hex(self, token: str) -> bool:
        return token[:16] in self._needles.digests or any(word in token for word in self._needles.in_hex)

    def _in_words(self, folded: str) -> bool:
        needles = self._needles
        for text in (folded,) if folded.isascii() else (folded, plain(folded)):
            joined = text.replace(" ", "")
            others = " ".join(word for word in text.split() if word not in self._words)
            if others and any(word in others for word in needles.words):
                return True
            whole = others.replace(" ", "")
            if len(whole) >= JOINED and any(len(word) >= JOINED and word in whole for word in needles.words):
                return True
            if any(p in text for p in needles.phrases) or any(p in joined for p in needles.joined):
                return True
        return False

    def _in_digits(self, folded: str) -> bool:
        needles = self._needles
        for text in {folded, _INSIDE_A_NUMBER.sub("", folded)}:
            for run in _DIGITS.findall(text):
                if run in needles.runs or run.lstrip("0") in needles.runs:
                    return True
                if len(run) >= WHOLE_RUN and any(number in run for number in needles.digits):
                    return True
        triples = (" ".join(str(int(part)) for part in found) for found in _TRIPLE.findall(folded))
        return any(triple in needles.triples for triple in triples)

    def _in_bytes(self, blob: bytes) -> bool:
        lowered = blob.lower()
        if any(word in lowered for word in self._needles.raw):
            return True
        return any(self._in_text(text) for text in _readings(blob, self._needles.wide))

    def _in_png(self, blob: bytes) -> bool:
        raw = _pixels_of(blob)
        if raw is None:
            return True
        words = np.frombuffer(raw, "<u4", len(raw) // 4) | np.uint32(_CASE_BITS)
        maybe = np.flatnonzero(self._table.take(_hashed(words)))
        for place, gram in zip(maybe.tolist(), words[maybe].tolist(), strict=True):
            for start, needle in self._grams.get(gram, ()):
                begin = 4 * place - start
                if begin >= 0 and raw[begin : begin + len(needle)].lower() == needle:
                    return True
        return False


def _grams_of(needle: bytes) -> Iterator[int]:
    """The four-byte words of which one stands at an aligned place wherever the needle, of 7 bytes or more, does."""
    for start in range(4):
        yield int.from_bytes(needle[start : start + 4], "little") | _CASE_BITS


def _hashed(words: "np.ndarray[Any, np.dtype[np.uint32]]") -> "np.ndarray[Any, np.dtype[np.uint32]]":
    return (words * _SPREAD) >> np.uint32(16)


def _pixels_of(blob: bytes) -> bytes | None:
    """The decompressed rows of a PNG file, a palette before them; None if anything else is, or may be, in it."""
    at, data, palette, head = len(_SIGNATURE), [], b"", b""
    while at + 12 <= len(blob):
        (size,), kind = struct.unpack_from(">I", blob, at), blob[at + 4 : at + 8]
        body = blob[at + 8 : at + 8 + size]
        at += 12 + size
        if kind not in _CHUNKS or at > len(blob) or (kind == b"IHDR") == bool(head):
            return None
        if kind == b"IHDR":
            head = body
        elif kind == b"PLTE":
            palette += body
        elif kind == b"IDAT":
            data.append(body)
        elif size or at != len(blob):  # IEND is empty and the last
            return None
        else:
            return _inflated(head, palette, b"".join(data))
    return None


def _inflated(head: bytes, palette: bytes, data: bytes) -> bytes | None:
    if len(head) != 13:
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", head)
    expected = height * (1 + (width * depth * _CHANNELS.get(colour, 0) + 7) // 8)
    if interlaced or expected > _LARGEST or len(palette) > 768:
        return None
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, expected + 1)
    except zlib.error:
        return None
    whole = stream.eof and not stream.unused_data and not stream.unconsumed_tail and len(raw) == expected
    return palette + raw if whole else None


def _readings(blob: bytes, wide: bool) -> Iterator[str]:
    """Bytes as every text they could be: UTF-8 with JSON's escapes undone, Latin-1, UTF-16 at even and odd places."""
    text = blob.decode("utf-8", "replace")
    yield text
    if "\\" in text:
        yield _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    if not blob.isascii():
        yield blob.decode("latin-1")
    if wide or b"\0" in blob or not blob.isascii():  # UTF-16 of letters is full of zeros; of ideographs it need not be
        for charset in ("utf-16-le", "utf-16-be"):
            for start in (0, 1):
                yield blob[start:].decode(charset, "replace")


@cache
def _columns() -> frozenset[str]:
    return frozenset(SAMPLES.names)


@cache
def _own_words() -> frozenset[str]:
    """Our column names, states and reasons, whole and word by word."""
    names = [*SAMPLES.names, *QUARANTINE.names, *State, *Reason, *_OURS.split()]
    return frozenset(word for name in names for word in (fold(name), *fold(name).split()))


@cache
def _folded_terms(allowed: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Allowed terms folded: as they are, and word by word."""
    terms = frozenset(fold(term) for term in allowed) | _own_words()
    return terms, terms | frozenset(word for term in terms for word in term.split())
