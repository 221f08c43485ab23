"""From a source's text to a checked value: dates, ages, sexes, numbers. What does not parse is None, never passed on.

Pure functions: no clock, no key. Nothing here quotes what it was given. Source: anonymization.md H6, H8, I5, I6, T4.
"""

import math
import re
import unicodedata
from datetime import date
from decimal import Decimal
from numbers import Real

OLDEST_CLASS = 90  # HIPAA Safe Harbor: ages above 89 are one class
OLDEST = 130  # years; what is older is a filler such as 999Y (ours)
FIRST_DAY = date(1900, 1, 1)
_DAY = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})|([0-9]{4})\.([0-9]{2})\.([0-9]{2})")  # DA; ACR-NEMA with dots
_TIME = re.compile(
    r"(?P<hour>[01][0-9]|2[0-3])(?:[0-5][0-9](?:(?:[0-5][0-9]|60)(?:\.[0-9]{1,6})?)?)?(?P<zone>[+-][0-9]{4})?"
    r"|(?P<bare>[+-][0-9]{4})"
)
_AGE = re.compile(r"([0-9]{1,3})([DWMY])")
_PER_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")
_SEXES = {"m": "male", "male": "male", "f": "female", "female": "female", "o": "other", "other": "other"}
_PADDING = " \0"


def parse_date(text: object, last: date = date.max, first: date = FIRST_DAY) -> date | None:
    """The day of a DICOM DA or DT value, or of an ACR-NEMA date with dots; None for anything else.

    Partial dates ("2007", "200703"), ranges, several values, impossible days and digits that are not ASCII are None. A
    DT's day is the local one it states: its time is checked and dropped, as is its zone.

    Args:
        text: a string; anything else is None.
        last: latest day that is believed; a caller gives the day after today.
        first: earliest day that is believed.

    Source: PS3.5 section 6.2.
    """
    if not isinstance(text, str):
        return None
    text = text.strip(_PADDING)
    match = _DAY.match(text)
    if match is None or not _good_time(text[match.end() :]):
        return None
    year, month, day = (int(part) for part in match.groups() if part is not None)
    try:
        found = date(year, month, day)
    except ValueError:
        return None
    return found if first <= found <= last else None


def _good_time(text: str) -> bool:
    """Whether what follows the day is nothing, or the rest of a DT: HH[MM[SS[.F]]] and a zone of -1200 to +1400."""
    if not text:
        return True
    match = _TIME.fullmatch(text)
    if match is None:
        return False
    zone = match["zone"] or match["bare"]
    return zone is None or (int(zone[3:]) < 60 and -1200 <= int(zone) <= 1400)


def age_class(years: float) -> int | None:
    """Whole years from 0 to 89; 90 stands for 90 and above; None below 0 or beyond what people reach (I6)."""
    if not 0 <= years <= OLDEST:
        return None
    return min(int(years), OLDEST_CLASS)


def age_years(text: object) -> int | None:
    """The age class of a DICOM AS value: "034Y" -> 34, "018M" -> 1, "006W" -> 0, "101Y" -> 90; None if it is none.

    One or two digits are read too ("18M"), since devices write them (ours).
    """
    match = _AGE.fullmatch(text.strip(_PADDING)) if isinstance(text, str) else None
    return None if match is None else age_class(int(match[1]) / _PER_YEAR[match[2]])


def age_between(birth: date, day: date) -> int | None:
    """The age class on `day` of who was born on `birth`; None if that is before the birth or beyond belief.

    Who was born on 29 February is a year older on 1 March of a common year.
    """
    return age_class(day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day)))


def sex_word(text: object) -> str | None:
    """`male`, `female` or `other` for DICOM's M, F and O or these words in any case; None for anything else."""
    return _SEXES.get(normalise(text)) if isinstance(text, str) else None


def number(value: object, low: float, high: float, digits: int) -> float | None:
    """A number within [low, high], rounded to so many *significant* digits; None for anything else.

    Significant digits bound what a value can carry: with 5 of them a record number of 6 does not fit. Refused: nan,
    infinities, booleans, lists, bytes, underscores, hexadecimal, digits that are not ASCII, and integers of 10 digits
    or more, whatever the range.

    Args:
        value: int, float, Decimal, numpy's or pydicom's kinds of these, or the text of one.
        low, high: what is believed, both inclusive.
        digits: at least 1.

    Source: anonymization.md T4.
    """
    if isinstance(value, str):
        text = value.strip(_PADDING)
        if not _NUMBER.fullmatch(text):
            return None
        value = float(text)
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):  # Decimal's signalling nan; an int beyond any float
        return None
    if not math.isfinite(found) or not low <= found <= high:
        return None
    rounded = float(f"{found:.{digits - 1}e}") + 0.0  # + 0.0: no negative zero
    return rounded if low <= rounded <= high else None


def normalise(text: str) -> str:
    """Text as it is hashed and searched: NFKC, case folded, no control or invisible characters, single blanks.

    A control character (a tab, a line end, NUL) separates words; an invisible one (zero width, soft hyphen, direction)
    is taken out. Applying it twice changes nothing. Source: anonymization.md H8.
    """
    if text.isascii():
        return " ".join(re.sub(r"[\x00-\x20\x7f]+", " ", text).lower().split())
    while (folded := _fold(text)) != text:  # taking out a character can bring two together that compose: 2-3 rounds
        text = folded
    return text


def _fold(text: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kinds = ((char, unicodedata.category(char)) for char in text)
    return " ".join("".join(" " if kind == "Cc" else char for char, kind in kinds if kind != "Cf").split())


def name_components(text: str) -> list[str]:
    """What of a person's name can stand alone, normalised, each once, in order: the parts, then their words.

    A PN value has up to three groups (letters, ideographs, sounds) with "=" between them, each of five components with
    "^" between: "Garcia Lopez^Ana=..." gives "garcia lopez", "ana", "garcia", "lopez", ...

    Source: PS3.5 section 6.2.1.
    """
    parts = [normalise(part) for part in re.split(r"[=^\\]", text)]
    words = [word for part in parts for word in re.split(r"[\W_]+", part)]
    return list(dict.fromkeys(part for part in [*parts, *words] if part))
