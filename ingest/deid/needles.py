"""What to look for: the source's identifiers in every spelling that could have got into an output.

Read `Needles.of` first. All of it lives in the memory of the isolated process only, and no repr shows it.
Source: anonymization.md Q4 and H8.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date

import xxhash

from ingest.deid.values import normalise, parse_date

SHORTEST = 4  # characters of an identifier that is searched
WHOLE_RUN = 8  # digits below which a number must be the whole run of digits that it is found in
JOINED = 8  # characters that two words need to have together to be looked for as one, and any to be so in hex digits
IN_PIXELS = 8  # characters with a letter among them that are not met by chance in pixels, see `selfcheck`
IN_PIXELS_DIGITS = 12  # the same without a letter
_DISTINCT = 5  # different characters: a flat region spells "66666666"
_WIDE = re.compile(r"[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]")
_SEPARATORS = re.compile(r"[^a-z0-9]+")
_ESCAPED = re.compile(r"[\udc80-\udcff]")  # how Python shows bytes of a name that are not UTF-8
_HEX = re.compile(r"[0-9a-f]+")
_UID = re.compile(r"[0-9]+(?:\.[0-9]+){3,}")
_DAY_FIRST = re.compile(r"([0-9]{1,2})([./-])([0-9]{1,2})\2([0-9]{4})")
_YEAR_FIRST = re.compile(r"([0-9]{4})[-:/]([0-9]{2})[-:/]([0-9]{2})(?:[ tT].*)?")
_DAY_INSIDE = re.compile(
    r"(?<![0-9])(?:[0-9]{8}|[0-9]{4}([-:/._])[0-9]{2}\1[0-9]{2}|[0-9]{1,2}([._/-])[0-9]{1,2}\2[0-9]{4})(?![0-9])"
)
_CHARSETS = (  # of DICOM (PS3.3 C.12.1.1.2) and of the systems that write paths
    *("latin-1", "iso8859_2", "iso8859_5", "cp1251", "koi8_r", "iso8859_6", "iso8859_7", "iso8859_8", "iso8859_9"),
    *("tis_620", "gb18030", "big5", "shift_jis", "euc_jp", "iso2022_jp", "euc_kr"),
)
_LATIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})
_MONTHS = "january february march april may june july august september october november december"
_MONTHS_DE = "januar februar märz april mai juni juli august september oktober november dezember"


def fold(text: str) -> str:
    """Normalised text with every run of what is neither letter nor digit made one blank: how text is compared.

    Marks belong to their letter (vowels of many scripts are marks); decimal digits of all scripts become ASCII.
    """
    text = normalise(text)
    if text.isascii():
        return _SEPARATORS.sub(" ", text).strip()
    return " ".join("".join(map(_folded, text)).split())


def _folded(char: str) -> str:
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    return char if char.isalnum() or unicodedata.category(char).startswith("M") else " "


def plain(text: str) -> str:
    """Folded text without accents: "müller" -> "muller"."""
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFD", text.translate(_LATIN))
    return "".join(char for char in apart if unicodedata.category(char) != "Mn")


def weight(text: str) -> int:
    """Letters and digits of a text; an ideograph, kana or syllable of Hangul counts two (two of them are a name)."""
    letters = text.replace(" ", "")
    return len(letters) if letters.isascii() else len(letters) + len(_WIDE.findall(letters))


def unkeyed_digests(text: str) -> Iterator[str]:
    """The first 16 hex digits of what somebody might take for a pseudonym: plain hashes of an identifier."""
    data = text.encode("utf-8", "surrogatepass")
    for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256):
        yield digest(data, usedforsecurity=False).hexdigest()[:16]
    yield xxhash.xxh3_128_hexdigest(data)[:16]


@dataclass(frozen=True, slots=True, repr=False)
class Needles:
    """Identifiers by how they are searched."""

    words: frozenset[str]  # folded, with a letter: looked for anywhere in the words that are not allowed ones
    phrases: frozenset[str]  # of several words: looked for anywhere in folded text
    joined: frozenset[str]  # phrases without their blanks, at least 8: looked for in text without its own
    digits: frozenset[str]  # digits only, at least 8: looked for in runs of digits
    runs: frozenset[str]  # digits only, 4 to 7, leading zeros off: must be a whole run of digits
    days: frozenset[str]  # YYYYMMDD
    triples: frozenset[str]  # days as three numbers in the usual orders, "31 1 2020"
    in_hex: frozenset[str]  # without blanks, at least 8: looked for in hex digits
    digests: frozenset[str]  # the first 16 hex digits of unkeyed hashes
    raw: frozenset[bytes]  # not ASCII, in old character sets: looked for in bytes
    in_pixels: frozenset[bytes]  # lower-cased bytes that chance does not spell in pixels
    wide: bool  # ideographs among them: two take four bytes of UTF-16, which may all look like ASCII

    @classmethod
    def of(cls, identifiers: Iterable[str], allowed: frozenset[str]) -> "Needles":
        """All spellings of all identifiers.

        Args:
            identifiers: names, numbers, dates, UIDs, institutions, parts of paths, as the source has them.
            allowed: folded words that every row may hold; what consists of them alone is not searched.
        """
        words: set[str] = set()
        days: set[date] = set()
        plains: set[str] = set()  # as the source has them, even the short ones: a hash of one may be anywhere
        kept: set[str] = set()
        for identifier in {spelled for text in identifiers for spelled in (text, _as_latin(text))}:
            plains |= {identifier, identifier.strip(" \0"), normalise(identifier)} - {""}
            folded = fold(identifier)
            if not folded or all(word in allowed for word in folded.split()):
                continue
            kept |= {identifier, identifier.strip(" \0")}
            if _UID.fullmatch(identifier.strip(" \0")):
                words |= set() if identifier.startswith("1.2.840.10008.") else {folded}
            elif (day := day_of(identifier)) is not None:
                days.add(day)
                words.add(folded)  # a time of day may follow
            else:
                days |= set(_days_in(identifier))
                words |= set(_spellings(folded, allowed))
        pixels = frozenset(data for word in words | kept for data in _pixel_bytes(word))
        return cls._sorted(words, days, plains, pixels)

    @classmethod
    def _sorted(cls, words: set[str], days: set[date], plains: set[str], in_pixels: frozenset[bytes]) -> "Needles":
        words = {word for word in words.union(*map(_notations, days)) if weight(word) >= SHORTEST}
        lettered = {word for word in words if not word.replace(" ", "").isdecimal()}
        phrases = {word for word in lettered if " " in word}
        numbers = {word.replace(" ", "") for word in words - lettered}
        short = {n for n in numbers if len(n) < WHOLE_RUN}
        compact = {word.replace(" ", "") for word in words}
        return cls(
            words=frozenset(lettered - phrases),
            phrases=frozenset(phrases),
            joined=frozenset(j for phrase in phrases if len(j := phrase.replace(" ", "")) >= JOINED),
            digits=frozenset(numbers - short),
            runs=frozenset(short | {n.lstrip("0") for n in short if len(n.lstrip("0")) >= SHORTEST}),
            days=frozenset(f"{day.year:04}{day.month:02}{day.day:02}" for day in days),
            triples=frozenset(triple for day in days for triple in _triples(day)),
            in_hex=frozenset(word for word in compact if len(word) >= JOINED and _HEX.fullmatch(word)),
            digests=frozenset(digest for text in plains for digest in unkeyed_digests(text)),
            raw=frozenset(data for word in lettered | plains if not word.isascii() for data in _old_bytes(word)),
            in_pixels=in_pixels,
            wide=any(_WIDE.search(word) for word in lettered),
        )


def _as_latin(text: str) -> str:
    """A name on disk that is not UTF-8, as Latin-1; other text as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape" if _ESCAPED.search(text) else "replace").decode("latin-1")
    return text


def day_of(text: str) -> date | None:
    """The day that a whole text names: DICOM's forms, 2020-01-31, 2020:01:31 10:15:00 (EXIF), 31.01.2020."""
    text = text.strip(" \0")
    if (day := parse_date(text)) is not None:
        return day
    if match := _YEAR_FIRST.fullmatch(text):
        return parse_date("".join(match.groups()))
    if match := _DAY_FIRST.fullmatch(text):
        first, _, second, year = match.groups()
        return parse_date(f"{year}{second:0>2}{first:0>2}") or parse_date(f"{year}{first:0>2}{second:0>2}")
    return None


def _days_in(text: str) -> Iterator[date]:
    """Days within a longer text, such as the name of a folder: 20200131_Mueller."""
    for found in _DAY_INSIDE.finditer(text):
        if (day := day_of(found[0].replace("_", "-"))) is not None:
            yield day


def _spellings(folded: str, allowed: frozenset[str]) -> Iterator[str]:
    """A folded identifier, its words, its first two words swapped; each also without accents and with ae for ä."""
    words = folded.split()
    found = [folded, " ".join(words[1:] + words[:1]), *(word for word in words if word not in allowed)]
    for text in found:
        yield text
        if not text.isascii():
            yield plain(text)
            yield plain(text.translate(_UMLAUTS))


def _notations(day: date) -> Iterator[str]:
    """A day as people and programs write it in one run of digits, or with the name of its month, folded."""
    year, month, number = f"{day.year:04}", f"{day.month:02}", f"{day.day:02}"
    for y in (year, year[2:]):
        yield from (y + month + number, number + month + y, month + number + y)
    for months in (_MONTHS.split(), _MONTHS_DE.split()):
        name = months[day.month - 1]
        for spelled in {name, name[:3], plain(name), plain(name[:3])}:
            for of_month in {number, str(day.day)}:
                yield from (f"{of_month} {spelled} {year}", f"{spelled} {of_month} {year}")
                yield from (f"{of_month}{spelled}{year}", f"{year} {spelled} {of_month}")


def _triples(day: date) -> Iterator[str]:
    for year in {day.year, day.year % 100}:
        yield from (f"{year} {day.month} {day.day}", f"{day.day} {day.month} {year}", f"{day.month} {day.day} {year}")


def _old_bytes(text: str) -> Iterator[bytes]:
    """Text beyond ASCII in the character sets that old devices write, at least 4 bytes, ASCII letters lower-cased."""
    for charset in _CHARSETS:
        for spelled in {text, text.upper(), text.title()}:
            try:
                data = spelled.encode(charset)
            except UnicodeEncodeError:
                continue
            if len(data) >= SHORTEST:
                yield data.lower()


def _pixel_bytes(text: str) -> Iterator[bytes]:
    """The bytes of a text that is long and varied enough to be looked for in pixels."""
    compact = text.replace(" ", "")
    enough = IN_PIXELS if any(char.isalpha() for char in compact) else IN_PIXELS_DIGITS
    varied = len(set(compact)) >= _DISTINCT
    if len(compact) < SHORTEST and compact.isascii():
        return
    spellings = (
        {text, compact} if text.isascii() else {text, compact, text.upper(), text.title()}
    )  # bytes.lower is ASCII's
    for spelled in spellings:
        if varied and len(data := spelled.encode("utf-8", "surrogatepass")) >= enough:
            yield data.lower()
        if weight(spelled) < SHORTEST or len(set(spelled)) < 2:
            continue
        for charset in ("utf-16-le", "utf-16-be"):
            yield spelled.encode(charset, "surrogatepass").lower()
