"""Secrets to plant, each different from all others, so that a leak names the place where it came from.

A secret is made from the name of its place alone. `shapes` gives every form of bytes in which it could come out again:
other encodings, escapes, base64, hexadecimal, dates in other notations, and digests made without a key, which for a
hospital's numbers are as good as the numbers themselves.
"""

import base64
import hashlib
import json
import struct
import urllib.parse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

import xxhash

SHORTEST = 6  # bytes: what is shorter than this stands in random bytes by chance, and is looked for in text only
_CODECS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "latin-1", "cp1252")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_UNICODE = ("utf-8", "utf-16-le", "utf-16-be")


@dataclass(frozen=True, slots=True)
class Secret:
    """What was planted in one place. Any of `texts` alone gives somebody away."""

    place: str
    texts: tuple[str, ...]  # people's and places' names, record numbers, UIDs; or, of a `day`, its notations
    value: str = ""  # what a generator writes into the field; holds the texts
    codec: str = "utf-8"  # of the source; its bytes are looked for as they stand
    day: date | None = None


def _seed(place: str, use: str) -> bytes:
    return hashlib.sha256(f"planted {use} at {place}".encode()).digest()


def word(place: str, use: str = "name") -> str:
    """A surname that nobody has: ten letters that can be said aloud."""
    raw = _seed(place, use)
    return "".join("bdfgklmnprstvwxz"[raw[i] % 16] + "aeiou"[raw[i + 1] % 5] for i in range(0, 10, 2)).capitalize()


def digits(place: str, count: int = 10) -> str:
    """A record number; never begins with 0."""
    number = int.from_bytes(_seed(place, "number"))
    return str(10 ** (count - 1) + number % (9 * 10 ** (count - 1)))


def day_of(place: str) -> date:
    """A day from 1905 to 1984: decades before every examination here, so that no shifted date can meet it."""
    return date(1905, 1, 1) + timedelta(days=int.from_bytes(_seed(place, "day")[:4]) % 29_000)


def name(place: str) -> Secret:
    """One token, wrapped as people type it."""
    return Secret(place, (word(place),), word(place))


def person(place: str) -> Secret:
    """A person's name of several components."""
    family, given = word(place, "family"), word(place, "given")
    return Secret(place, (family, given), f"{family}^{given}^^Dr.")


def sentence(place: str, around: str = "liver, seen by Dr. {}, room 12") -> Secret:
    """Free text that holds a name."""
    return Secret(place, (word(place),), around.format(word(place)))


def capitals(place: str) -> Secret:
    """A code string's name: capital letters."""
    return Secret(place, (word(place),), word(place).upper())


def number(place: str, count: int = 10) -> Secret:
    """A record number."""
    return Secret(place, (digits(place, count),), digits(place, count))


def uid(place: str) -> Secret:
    """A UID of a vendor's root; its last component alone gives it away too."""
    last = digits(place, 20)
    return Secret(place, (f"1.2.826.0.1.3680043.8.{last}", last), f"1.2.826.0.1.3680043.8.{last}")


def day(place: str, notation: str = "%Y%m%d") -> Secret:
    """A date; `notation` is how the source writes it."""
    when = day_of(place)
    return Secret(place, notations(when), when.strftime(notation), day=when)


def clock(place: str) -> Secret:
    """A time of day to the microsecond."""
    raw = _seed(place, "clock")
    hour, minute, second = 1 + raw[0] % 22, 11 + raw[1] % 48, 11 + raw[2] % 48
    micro = 100_003 + int.from_bytes(raw[3:6]) % 899_000
    whole = f"{hour:02}{minute:02}{second:02}.{micro:06}"
    return Secret(place, (whole, f"{hour:02}:{minute:02}:{second:02}", whole[:9]), whole)


def notations(when: date) -> tuple[str, ...]:
    """How people and programs write a day."""
    y, m, d, month = when.year, when.month, when.day, _MONTHS[when.month - 1]
    return (
        f"{y}{m:02}{d:02}",
        f"{y}-{m:02}-{d:02}",
        f"{y}.{m:02}.{d:02}",
        f"{y}/{m:02}/{d:02}",
        f"{y}:{m:02}:{d:02}",
        f"{d:02}.{m:02}.{y}",
        f"{d:02}/{m:02}/{y}",
        f"{m:02}/{d:02}/{y}",
        f"{d:02}-{month}-{y}",
        f"{d:02} {month} {y}",
        f"date({y}, {m}, {d})",
    )


def shapes(secret: Secret, keyless: bool = True) -> Iterator[tuple[bytes, str]]:
    """Every form in which a secret might come out: (bytes, what form). ASCII letters are small, as the search wants.

    Args:
        keyless: also its digests made without a key.
    """
    for text in secret.texts:
        for form, how in _spelled(text, secret.codec):
            yield form.lower(), how
        if keyless and secret.day is None:
            yield from _digested(text)
    if keyless and secret.value not in secret.texts and secret.day is None:
        yield from _digested(secret.value)


def _spelled(text: str, codec: str) -> Iterator[tuple[bytes, str]]:
    variants = {text, text.lower(), text.upper(), text.title()}
    for variant in variants:
        for name in dict.fromkeys((*_CODECS, codec)):
            try:
                yield variant.encode(name), name
            except UnicodeEncodeError:
                continue
        yield json.dumps(variant)[1:-1].encode(), "json"
        yield urllib.parse.quote(variant).encode(), "percent"
        yield ascii(variant)[1:-1].encode(), "repr"
        yield repr(variant.encode(codec, "replace"))[2:-1].encode(), "repr of bytes"
        yield variant[::-1].encode(), "reversed"
        for name in dict.fromkeys((*_UNICODE, codec)):
            raw = variant.encode(name, "ignore")
            if len(raw) >= SHORTEST:
                yield raw.hex().encode(), f"hex of {name}"
                yield from ((form, f"base64 of {name}") for form in _base64(raw))


def _base64(raw: bytes) -> Iterator[bytes]:
    """The middle of its base64, for each of the three ways in which it can lie between other bytes."""
    for before in range(3):
        coded = base64.b64encode(bytes(before) + raw)
        first, last = (0, 2, 3)[before], len(coded) - (0 if (before + len(raw)) % 3 == 0 else 4)
        if last - first >= 8:
            yield coded[first:last]
            yield coded[first:last].translate(bytes.maketrans(b"+/", b"-_"))


def _digested(text: str) -> Iterator[tuple[bytes, str]]:
    for variant in dict.fromkeys((text, text.lower(), text.upper())):
        yield from digests(variant.encode(), "its text")


def digests(raw: bytes, of: str) -> Iterator[tuple[bytes, str]]:
    """Digests without a key of some bytes, each in hexadecimal, base64 and as it is; the beginning is enough."""
    made = {
        "md5": hashlib.md5(raw).digest(),
        "sha1": hashlib.sha1(raw).digest(),
        "sha256": hashlib.sha256(raw).digest(),
        "sha512": hashlib.sha512(raw).digest(),
        "blake2b": hashlib.blake2b(raw).digest(),
        "blake2b-16": hashlib.blake2b(raw, digest_size=16).digest(),
        "sha3": hashlib.sha3_256(raw).digest(),
        "xxh3_128": xxhash.xxh3_128(raw).digest(),
        "xxh3_64": xxhash.xxh3_64(raw).digest(),
        "xxh64": xxhash.xxh64(raw).digest(),
    }
    for what, digest in made.items():
        how = f"{what} of {of}"
        yield digest.hex()[:12].encode(), how
        yield digest[:8].lower(), how
        yield digest[::-1][:8].lower() if len(digest) == 8 else digest[8:16].lower(), how
        yield base64.b64encode(digest)[:10].lower(), how
        if len(digest) == 8:
            yield str(int.from_bytes(digest)).encode(), how
    both = f"{zlib.crc32(raw):08x}{zlib.adler32(raw):08x}"
    yield both.encode(), f"crc32 and adler32 of {of}"


def of_key(key: bytes) -> Secret:
    """A secret key as something to look for: its bytes, not a text."""
    return Secret("the key", (key.decode("latin-1"),), codec="latin-1")


def packed_numbers(text: str) -> Iterator[tuple[bytes, str]]:
    """A record number as a binary integer or a float; only for numbers too long to come up by chance."""
    if text.isdigit() and len(text) >= 10 and int(text) < 2**63:
        yield struct.pack("<q", int(text)).lower(), "int64"
        yield struct.pack(">q", int(text)).lower(), "int64, big endian"
        yield struct.pack("<d", float(text)).lower(), "float64"
