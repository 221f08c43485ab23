"""Values that are not what their field is for: names under wrong representations, odd dates, scripts, record numbers.

`Place` is what one planted secret is told by; `fakes.deid_places` lists all of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fakes.deid_dicom import Draft, raw
from fakes.deid_secrets import Secret, day, notations, number, person
from pydicom.datadict import dictionary_VR
from pydicom.tag import Tag

Plant = Callable[[Draft, str], Secret]  # plants in a draft the secret of the place so named, and gives it


@dataclass(frozen=True, slots=True)
class Place:
    """A place for a secret."""

    name: str
    section: str  # of anonymization.md
    family: str
    plant: Plant


def _wrong(keyword: str, vr: str) -> Place:
    """A person's name under a representation that can't hold one."""

    def plant(draft: Draft, place: str) -> Secret:
        secret = person(place)
        raw(draft.data, Tag(keyword), vr, secret.value)
        return secret

    return Place(f"wrong-vr/{keyword} as {vr}", "3 H6", f"wrong-vr/{keyword}", plant)


def wrong_representations() -> Iterator[Place]:
    """Fields that are read, with a name in them."""
    for keyword, vr in (
        ("StudyDate", "DA"),
        ("AcquisitionDateTime", "DT"),
        ("StudyTime", "TM"),
        ("PatientAge", "AS"),
        ("PatientSex", "CS"),
        ("PatientBirthDate", "DA"),
        ("DepthOfScanField", "IS"),
        ("PixelSpacing", "DS"),
        ("FrameTime", "DS"),
        ("CineRate", "IS"),
        ("RecommendedDisplayFrameRate", "IS"),
        ("TransducerFrequency", "UL"),
        ("FrameOfReferenceUID", "UI"),
        ("StudyInstanceUID", "UI"),
        ("SeriesInstanceUID", "UI"),
        ("PatientID", "OB"),
        ("StudyDescription", "UN"),
        ("Manufacturer", "DS"),
        ("ViewName", "OB"),
        ("BodyPartExamined", "DA"),
        ("UltrasoundColorDataPresent", "US"),
        ("TransducerType", "PN"),
        ("HeartRate", "FD"),
    ):
        yield _wrong(keyword, vr)


def _date(keyword: str, notation: str, label: str) -> Place:
    def plant(draft: Draft, place: str) -> Secret:
        secret = day(place, notation)
        assert secret.day is not None
        texts = (*notations(secret.day), secret.value) if "%d" in notation else (secret.value,)
        secret = Secret(place, texts, secret.value, day=secret.day)
        raw(draft.data, Tag(keyword), dictionary_VR(keyword), secret.value)
        return secret

    return Place(f"date/{keyword} as {label}", "4 I5", f"date/{keyword} {label}", plant)


def dates() -> Iterator[Place]:
    """Dates that are malformed, partial, of old notations, with time zones, as ranges."""
    for notation, label in (
        ("%Y.%m.%d", "dotted"),
        ("%Y-%m-%d", "ISO"),
        ("%d.%m.%Y", "German"),
        ("%m/%d/%Y", "US"),
        ("%d %b %Y", "words"),
        ("%Y%m", "month only"),
        ("%Y", "year only"),
        ("%Y%m%d-%Y%m%d", "range"),
        ("%Y%m%dX", "with a letter"),
        ("%d%m%Y", "day first"),
    ):
        yield _date("StudyDate", notation, label)
    yield _date("AcquisitionDateTime", "%Y%m%d101112.123456+0100", "with time zone")
    yield _date("AcquisitionDateTime", "%Y.%m.%d 10:11", "dotted")
    yield _date("PatientBirthDate", "%Y%m%d", "birth date")
    yield _date("StudyDescription", "%d.%m.%Y", "date in a description")


_PEOPLE = {
    "Latin-1, several components": ("ISO_IR 100", "latin-1", "Müller-Lüdenscheidt^Hans-Jürgen^Graf^Dr.^MD"),
    "Latin-1, no charset stated": ("", "latin-1", "Größwänger^Jörg"),
    "Cyrillic": ("ISO_IR 144", "iso8859_5", "Люкcембург^Сергей"),
    "Greek": ("ISO_IR 126", "iso8859_7", "Διονυσιος^Παύλος"),
    "Japanese IR 87": ("\\ISO 2022 IR 87", "iso2022_jp", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Korean IR 149": ("\\ISO 2022 IR 149", "euc_kr", "Honggil^Gildong=洪吉洞^길동^홍길동"),
    "GB18030": ("GB18030", "gb18030", "Wangxiao^Xiaodong=王小东^小东大人"),
    "UTF-8, three groups": ("ISO_IR 192", "utf-8", "Wangfu^Daming=王大明^先生大人=わんぐ^だいめい"),
    "UTF-8 under Latin-1": ("ISO_IR 100", "utf-8", "Übermütig^Käthchen"),
    "decomposed": ("ISO_IR 192", "utf-8", "Bru\u0308ckenha\u0308user^Zoe\u0308lle"),
    "full width": ("ISO_IR 192", "utf-8", "ＺＷＥＩＦＥＬＤ^ＭＡＲＴＨＡ"),
}


def _charset(label: str, keyword: str) -> Place:
    charset, codec, text = _PEOPLE[label]

    def plant(draft: Draft, place: str) -> Secret:
        draft.data.SpecificCharacterSet = charset.split("\\") if charset else ""
        content = text.encode(codec) if codec != "euc_kr" else _korean(text)
        raw(draft.data, Tag(keyword), dictionary_VR(keyword), content)
        parts = [p for group in text.split("=") for p in group.split("^") if len(p.encode()) >= 6]
        return Secret(place, tuple(parts), text, codec=codec if codec != "euc_kr" else "utf-8")

    return Place(f"charset/{keyword}/{label}", "3 H8", f"charset/{label}/{keyword}", plant)


def _korean(text: str) -> bytes:
    """Escapes before the two-byte characters of each group, as PS3.5 Annex I writes them."""
    return b"=".join(g.encode("ascii") if g.isascii() else b"\x1b$)C" + g.encode("euc_kr") for g in text.split("="))


def _count(keyword: str, length: int, factor: str = "") -> Place:
    def plant(draft: Draft, place: str) -> Secret:
        secret = number(place, length)
        raw(draft.data, Tag(keyword), dictionary_VR(keyword), secret.value + factor)
        return secret

    return Place(f"number/{keyword}, {length} digits{factor}", "5 T4", f"number/{keyword} {length}{factor}", plant)


def numbers() -> Iterator[Place]:
    """Record numbers in identities, and in the numbers that the catalog wants."""
    yield from (_count("PatientID", length) for length in (4, 6, 8, 10))
    for keyword in ("DepthOfScanField", "FrameTime", "CineRate", "RecommendedDisplayFrameRate", "HeartRate"):
        yield _count(keyword, 10)
    yield _count("PixelSpacing", 10, "\\0.1")
    yield _count("PixelSpacing", 12, ".5\\0.1")
    yield Place("number/region's PhysicalDeltaX", "5 T4", "number/delta", _delta)
    yield Place("number/TransducerFrequency", "5 T4", "number/frequency", _frequency)


def _delta(draft: Draft, place: str) -> Secret:
    secret = number(place)
    draft.data.SequenceOfUltrasoundRegions[0].PhysicalDeltaX = float(secret.value)
    return secret


def _frequency(draft: Draft, place: str) -> Secret:
    secret = Secret(place, (f"{number(place, 9).value}",), number(place, 9).value)
    draft.data.TransducerFrequency = int(secret.value)
    return secret


def charsets() -> Iterator[Place]:
    """Real-looking names of many scripts, in a name's field and in descriptions."""
    for label in _PEOPLE:
        yield _charset(label, "PatientName")
        yield _charset(label, "StudyDescription")
