"""What is kept of a DICOM header: checked words, numbers and keyed hashes, rebuilt into a row; nothing is copied.

Read `keep` first, then the table in `header_fields`. Unknown is None, never a guess. Runs in the isolated process, with
pydicom silenced. Sources: anonymization.md sections 3 to 5; design.md section 4.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from pydicom.dataset import Dataset

from ingest.deid import vocabulary
from ingest.deid.device import Device, Region
from ingest.deid.header_fields import Reader
from ingest.deid.identifiers import Gathered
from ingest.deid.identity import Identity
from ingest.deid.reasons import Reason, Refusal
from ingest.deid.values import age_between, age_years, number, parse_date, sex_word
from ingest.deid.walk import Action, action_of, walk

FIRST_DAY = date(1975, 1, 1)  # of a believable study: before it a scanner's clock was not set (ours)
DEPTH = (5.0, 400.0)  # mm
FREQUENCY = (500.0, 50_000.0)  # kHz
PIXEL = (0.005, 2.0)  # mm (ours)
RATE = (0.5, 1000.0)  # frames per second (ours)
SQUARE = 4.0  # ratio of a pixel's sides up to which they are believed
STALE = 2  # pixels by which regions may reach beyond the picture: more, and they are of another size of it (ours)
SIDES = 65_535  # largest coordinate of a region
REGIONS = 64  # items of the regions sequence that are read (ours)
CENTIMETRES = 3  # PhysicalUnitsXDirection
TWO_DIMENSIONS, M_MODE, SPECTRAL = 1, 2, 3  # RegionSpatialFormat
TISSUE, FLOW = 1, 2  # RegionDataType
_DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "AcquisitionDateTime", "ContentDate")
_OF_THE_PICTURE = ("ViewName", "ImageComments", "SeriesDescription", "ProtocolName")
_OF_THE_STUDY = (
    *("PerformedProcedureStepDescription", "RequestedProcedureDescription", "StudyDescription", "ProcessingFunction"),
)
_REGION_CODES = ("AnatomicRegionSequence", "PrimaryAnatomicStructureSequence")
_SOFTWARE = re.compile(r"(?:[^\\]*[_ ])?[vVrR]?([0-9]{1,3})(?:\.[0-9A-Za-z]+)*")
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)+")
_LONGEST_UID = 128  # twice what is allowed: devices and archives append to them
# Bits of the fourth value of ImageType (PS3.3 C.8.5.6.1.1), the first that is set decides
_MODE_BITS = (
    (0x0110, "colour_doppler"),
    (0x0040, "3D"),
    (0x0001, "B-mode"),
    (0x000C, "spectral_doppler"),
    (0x22, "M-mode"),
)


@dataclass(frozen=True, slots=True)
class Header:
    """What a header yields.

    Attributes:
        row: catalog columns; only those that are known.
        device: by which templates are chosen.
        regions: as the file states them; not validated.
        identifiers: for the self-check, in memory only: never stored, never shown.
        counts: elements of the file, file meta and nested ones included, by what became of them. A sequence of which a
            number or a code is used counts as kept; what is in it counts as nested.
    """

    row: dict[str, Any]
    device: Device
    regions: tuple[Region, ...]
    identifiers: frozenset[str] = field(repr=False)
    counts: Mapping[Action, int]


def keep(dataset: Dataset, identity: Identity, *, today: date) -> Header:
    """Rebuild the catalog's columns from a data set's listed fields, and gather the source's identifiers.

    Args:
        dataset: with or without `file_meta`; values may be unconverted. It is not changed but for pydicom's own lazy
            conversion of sequences.
        today: dates after the day after it are not believed.

    Raises:
        Refusal: no_identity (neither a patient id nor a study UID), deep_nesting.
    """
    source = Reader(dataset)
    extra: Counter[Action] = Counter()
    who, patient = _who(source, identity)
    when, day = _when(source, identity, patient, today)
    regions, frequency = _regions(source, extra)
    device, what = _device(source, extra)
    row = {**who, **when, **what, **_person(source, day, today), **_anatomy(source)}
    row |= {"mode": _mode(source, regions), "fps": _fps(source), "frequency_mhz": frequency}
    row |= _lengths(source, regions)
    gathered = Gathered()
    for leaf in walk(dataset):
        gathered.add(leaf)
        known = source.outcomes.get(leaf.tag) if not leaf.depth and not leaf.meta else None
        extra[known or action_of(leaf)] += 1
    gathered.add_bytes(getattr(dataset, "preamble", None))
    return Header(
        row={column: value for column, value in row.items() if value is not None},
        device=device,
        regions=regions,
        identifiers=gathered.found(),
        counts=dict(+extra),
    )


# --- who and when -----------------------------------------------------------------------------------------------------


def _who(source: Reader, identity: Identity) -> tuple[dict[str, Any], str]:
    """Pseudonyms of patient, study and clip; and the patient's, in whose place the study's stands if there is none."""
    patient_id, study_uid, clip_uid = (
        "\\".join(source.texts("PatientID")),
        _uid(source, "StudyInstanceUID"),
        _uid(source, "SOPInstanceUID"),
    )
    study = identity.study(study_uid) if study_uid else None
    clip = identity.clip(clip_uid) if clip_uid else None
    known = not vocabulary.names_no_patient(patient_id)
    if known:
        issuer = source.text("IssuerOfPatientID")
        patient = identity.patient(patient_id, issuer or None)
        if issuer:
            source.settle("IssuerOfPatientID", issuer, Action.REPLACED)
    elif study:
        patient = study
    else:
        raise Refusal(Reason.NO_IDENTITY, step="header")
    for name, used in (("PatientID", known), ("StudyInstanceUID", study), ("SOPInstanceUID", clip)):
        if used:
            source.settle(name, True, Action.REPLACED)
    return {"patient": patient, "patient_known": known, "study": study, "clip": clip}, patient


def _uid(source: Reader, name: str) -> str | None:
    """A UID, checked to be one: digits and dots. Some are longer than 64 signs; text is none."""
    text = source.text(name)
    if not text:
        return None
    good = len(text) <= _LONGEST_UID and _UID.fullmatch(text)
    return source.settle(name, text if good else None, Action.REPLACED)


def _when(source: Reader, identity: Identity, patient: str, today: date) -> tuple[dict[str, Any], date | None]:
    """The study's day, shifted; and as it is, for the age only."""
    for name in _DATES:
        text = source.text(name)
        if text and (day := source.settle(name, _day(text, FIRST_DAY, today), Action.REPLACED)):
            return {"study_date": identity.shift(patient, day).isoformat()}, day
    return {}, None


def _day(text: str, first: date, today: date) -> date | None:
    return parse_date(text, last=today + timedelta(days=1), first=first)


def _person(source: Reader, day: date | None, today: date) -> dict[str, Any]:
    text = source.text("PatientAge")
    age = source.settle("PatientAge", age_years(text), Action.REPLACED) if text else None
    birth = source.text("PatientBirthDate")
    if age is None and birth and day:
        born = _day(birth, date(1850, 1, 1), today)
        age = source.settle("PatientBirthDate", age_between(born, day) if born else None, Action.REPLACED)
    if age == 90:  # with dates of two studies, an age above 89 could be computed from an age below (ours)
        return {"sex": source.word("PatientSex", sex_word), "age": age, "study_date": None}
    return {"sex": source.word("PatientSex", sex_word), "age": age}


# --- by what ----------------------------------------------------------------------------------------------------------


def _device(source: Reader, extra: Counter[Action]) -> tuple[Device, dict[str, Any]]:
    """The scanner and its probe. In the row an unknown maker or model is `other`; in `Device` it is None."""
    maker = source.word("Manufacturer", vocabulary.manufacturer_of)
    extra[Action.UNKNOWN_MANUFACTURER] += maker == vocabulary.OTHER
    model = None
    if text := source.text("ManufacturerModelName"):
        owner, model = vocabulary.model_of(text, maker if maker != vocabulary.OTHER else None)
        maker = owner if maker is None else maker
        source.settle("ManufacturerModelName", model)
    extra[Action.UNKNOWN_MODEL] += model == vocabulary.OTHER
    known = {word: word if word != vocabulary.OTHER else None for word in (maker, model)}
    device = Device(known[maker], known[model], _software(source))
    probe = _probe(source, known[model], extra)
    return device, {"manufacturer": maker, "model": model, "probe": probe}


def _software(source: Reader) -> str | None:
    """The major version, up to three digits, of the first value: "EPIQ 7C_1.7.1.24" -> "1"."""
    text = source.text("SoftwareVersions")
    match = _SOFTWARE.fullmatch(text) if len(text) <= 64 else None
    return source.settle("SoftwareVersions", str(int(match[1])) if match else None) if text else None


def _probe(source: Reader, model: str | None, extra: Counter[Action]) -> str | None:
    """The probe's class: from its type, unless its name is of a narrower class with the same picture; or codes, ..."""
    kind = source.word("TransducerType", vocabulary.probe_of_type)
    named = source.word("TransducerData", vocabulary.probe_of_name)
    extra[Action.UNKNOWN_PROBE] += named is None and bool(source.text("TransducerData"))
    preset = source.word("ImageType", vocabulary.probe_of_preset, 2)
    if kind in ("convex", "phased") and named in ("micro_convex", "endocavity", "transesophageal"):
        return named
    coded = vocabulary.probe_of_codes(
        _dcm_code(source, "TransducerGeometryCodeSequence"), _dcm_code(source, "TransducerApplicationCodeSequence")
    )
    return kind or coded or named or vocabulary.probe_of_model(model) or preset


def _dcm_code(source: Reader, name: str) -> str | None:
    for item in source.items(name):
        if item.text("CodingSchemeDesignator").upper() == "DCM":
            return source.settle(name, item.text("CodeValue") or None)
    return None


# --- of what ----------------------------------------------------------------------------------------------------------


def _anatomy(source: Reader) -> dict[str, Any]:
    organ = _organ(source)
    side = _side(source)
    if side is None and vocabulary.is_paired(organ):
        side = _mapped(source, (*_OF_THE_PICTURE, *_OF_THE_STUDY[:-1]), vocabulary.laterality_of_text)
    view = _coded(source, "ViewCodeSequence", vocabulary.view_of_code)
    return {
        "organ": organ,
        "laterality": side,
        "view": view or _mapped(source, _OF_THE_PICTURE, vocabulary.view_of_text),
    }


def _organ(source: Reader) -> str | None:
    """The first source that knows; a region ("abdomen") gives way to a later, narrower word of the same region."""
    found: str | None = None
    for organ in _organs(source):
        if organ and (found is None or vocabulary.narrower_organ(found, organ)):
            found = organ
    return found


def _organs(source: Reader) -> Iterator[str | None]:
    for name in _REGION_CODES:
        yield _coded(source, name, vocabulary.organ_of_code)
    yield source.word("BodyPartExamined", vocabulary.organ_of_body_part)
    for name in (*_OF_THE_PICTURE, *_OF_THE_STUDY):
        yield _mapped(source, (name,), vocabulary.organ_of_text)
    yield source.word("ImageType", vocabulary.organ_of_preset, 2)


def _side(source: Reader) -> str | None:
    for name in ("ImageLaterality", "FrameLaterality", "Laterality"):
        if found := source.word(name, vocabulary.laterality_of_letter):
            return found
    for name, inner in zip(
        _REGION_CODES, ("AnatomicRegionModifierSequence", "PrimaryAnatomicStructureModifierSequence"), strict=True
    ):
        for item in source.items(name):
            if found := _coded(item, inner, vocabulary.laterality_of_code):
                return source.settle(name, found)
    return None


def _coded(source: Reader, name: str, lookup: Callable[[str, str], str | None]) -> str | None:
    """The word of the first item whose code is in a table."""
    for item in source.items(name):
        if found := lookup(item.text("CodeValue"), item.text("CodingSchemeDesignator")):
            return source.settle(name, found)
    return None


def _mapped(source: Reader, names: tuple[str, ...], mapper: Callable[[str], str | None]) -> str | None:
    """The word of the first description that has one. What has none is free text, removed: no failed check."""
    for name in names:
        for text in source.texts(name):
            if found := mapper(text):
                return source.settle(name, found)
    return None


def _mode(source: Reader, regions: tuple[Region, ...]) -> str | None:
    """The mode of the two-dimensional part, if there is one; whether its pixels are coloured is another's question.

    From descriptions (elastography, contrast), else the regions, else ImageType's bits, else the flag that there is no
    colour data; the flag that there is some says nothing: devices set it for coloured maps of grey too.
    """
    if found := _mapped(source, _OF_THE_PICTURE, vocabulary.mode_of_text):
        return found
    kinds = {(region.spatial_format, region.data_type) for region in regions}
    formats = {region.spatial_format for region in regions}
    if (TWO_DIMENSIONS, FLOW) in kinds:
        return "colour_doppler"
    if (TWO_DIMENSIONS, TISSUE) in kinds:
        return "B-mode"
    if SPECTRAL in formats:
        return "spectral_doppler"
    if M_MODE in formats:
        return "M-mode"
    if bits := source.text("ImageType", 3):
        value = int(bits, 16) if re.fullmatch(r"[0-9A-Fa-f]{4}", bits) else 0
        if found := next((mode for mask, mode in _MODE_BITS if value & mask), None):
            return source.settle("ImageType", found)
    colour = source.number("UltrasoundColorDataPresent")
    return source.settle("UltrasoundColorDataPresent", "B-mode") if colour == 0 else None


# --- numbers ----------------------------------------------------------------------------------------------------------


def _checked(source: Reader, name: str, low: float, high: float, digits: int = 5) -> float | None:
    value = source.number(name)
    return None if value is None else source.settle(name, number(value, low, high, digits))


def _fps(source: Reader) -> float | None:
    """Frames per second of a clip; a still has none."""
    if (source.number("NumberOfFrames") or 1) < 2:
        return None
    if period := _checked(source, "FrameTime", 1000 / RATE[1], 1000 / RATE[0]):
        return number(1000 / period, *RATE, 5)
    times = source.numbers("FrameTimeVector")[1:]  # the first is 0
    if times and min(times) >= 0 and (mean := sum(times) / len(times)) > 0:
        found = source.settle("FrameTimeVector", number(1000 / mean, *RATE, 5))
        if found:
            return found
    return _checked(source, "CineRate", *RATE) or _checked(source, "RecommendedDisplayFrameRate", *RATE)


def _regions(source: Reader, extra: Counter[Action]) -> tuple[tuple[Region, ...], float | None]:
    """The regions, and the transducer's frequency in MHz in the largest two-dimensional one that states it."""
    regions, frequencies = [], []
    for place, item in enumerate(source.items("SequenceOfUltrasoundRegions")):
        region = _region(item) if place < REGIONS else None
        if region is None:
            extra[Action.REGION_SKIPPED] += 1
            continue
        source.settle("SequenceOfUltrasoundRegions", True)
        regions.append(region)
        khz = _checked(item, "TransducerFrequency", *FREQUENCY)
        if khz and region.spatial_format == TWO_DIMENSIONS:
            frequencies.append((_size(region), number(khz / 1000, FREQUENCY[0] / 1000, FREQUENCY[1] / 1000, 4)))
    return tuple(regions), max(frequencies, default=(0, None), key=lambda pair: pair[0])[1]


def _region(item: Reader) -> Region | None:
    """One item; None if a coordinate or its kind is missing, negative or no whole number."""
    names = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
    found = [item.number(name) for name in (*names, "RegionSpatialFormat", "RegionDataType")]
    if any(value is None or value != int(value) or not 0 <= value <= SIDES for value in found):
        return None
    x0, y0, x1, y1, spatial_format, data_type = (int(value) for value in found if value is not None)
    mm_x, mm_y = _pixel(item)
    return Region(x0, y0, x1 + 1, y1 + 1, spatial_format, data_type, mm_x, mm_y)


def _pixel(item: Reader) -> tuple[float | None, float | None]:
    """Width and height of a region's pixel in mm; both None unless both are in centimetres and believable."""
    units = {item.number("PhysicalUnitsXDirection"), item.number("PhysicalUnitsYDirection")}
    x, y = item.number("PhysicalDeltaX"), item.number("PhysicalDeltaY")
    if units != {CENTIMETRES} or x is None or y is None:
        return None, None
    return _believable(10 * x, 10 * y)


def _believable(x: float, y: float) -> tuple[float | None, float | None]:
    width, height = number(x, *PIXEL, 5), number(y, *PIXEL, 5)
    if width is None or height is None or max(width, height) > SQUARE * min(width, height):
        return None, None
    return width, height


def _size(region: Region) -> int:
    return (region.x1 - region.x0) * (region.y1 - region.y0)


def _lengths(source: Reader, regions: tuple[Region, ...]) -> dict[str, Any]:
    """Size of a pixel and depth, in mm."""
    pictures = [r for r in regions if r.spatial_format == TWO_DIMENSIONS and r.data_type in (TISSUE, FLOW)]
    columns, rows = source.number("Columns") or math.inf, source.number("Rows") or math.inf
    fits = all(r.x1 <= columns + STALE and r.y1 <= rows + STALE for r in regions)
    scaled = [r for r in pictures if r.mm_x and r.mm_y and r.x1 > r.x0 and r.y1 > r.y0] if fits else []
    largest = max(scaled, key=_size, default=None)
    x, y = (largest.mm_x, largest.mm_y) if largest else (None, None)
    if not pictures:
        x, y = _spacing(source)
    return {"pixel_mm_x": x, "pixel_mm_y": y, "depth_mm": _depth(source, largest)}


def _spacing(source: Reader) -> tuple[float | None, float | None]:
    """PixelSpacing: first the distance of rows, then of columns."""
    values = source.numbers("PixelSpacing")
    x, y = _believable(values[1], values[0]) if len(values) == 2 else (None, None)
    if values:
        source.settle("PixelSpacing", x)
    return x, y


def _depth(source: Reader, region: Region | None) -> float | None:
    """DepthOfScanField, unless the region's height is not even near it (other units, or stale); else that height."""
    stated = _checked(source, "DepthOfScanField", *DEPTH, digits=4)
    shown = number((region.y1 - region.y0) * (region.mm_y or 0), *DEPTH, 4) if region else None
    if stated and shown and not 0.5 <= stated / shown <= 2:
        return shown
    return stated or shown
