"""What of a DICOM header is read at all: one table, and the reader that can read nothing else.

A tag that is not in `FIELDS` is never looked at but to be counted, and to feed the self-check. Every field has its own
transformation: nothing is carried along as it is. Sources: anonymization.md sections 2, 3 and 5; PS3.6.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple, TypeVar

from pydicom.dataset import Dataset

from ingest.deid.elements import encodings_of, items_of, numbers, peek, strings, vr_of
from ingest.deid.walk import Action

_T = TypeVar("_T")


class How(StrEnum):
    """What is done to a field's value; none of these lets it through."""

    WORD = "looked up whole in a closed table; the table's word goes on"
    MAPPED = "read for whole words of anatomy; a word of the catalog or nothing goes on"
    CODE = "value and scheme of a code looked up in a closed table; its meaning is free text and not used"
    NUMBER = "parsed, range-checked, rounded"
    PSEUDONYM = "replaced by a keyed hash of 128 bits"
    DAY = "parsed, moved by the patient's secret number of days"
    AGE = "whole years, one class from 90 on"
    HELPS = "decides how others are read; nothing of it goes on"


class Field(NamedTuple):
    """One attribute that is read.

    Attributes:
        vrs: the VRs under which it is believed; a file's UN counts as the dictionary's.
        columns: of the catalog that it can fill, or `device` and `regions`.
    """

    tag: int
    name: str
    vrs: frozenset[str]
    how: How
    columns: str


_TEXT = frozenset({"CS", "SH", "LO", "ST", "LT", "UT", "UC"})  # devices swap them; a PN or DA is no description
_CODE = frozenset({"SH", "UC", "LO", "CS"})
_UID, _SQ = frozenset({"UI"}), frozenset({"SQ"})
_DATE = frozenset({"DA", "DT"})
_NUMBER = frozenset({"DS", "IS", "US", "SS", "UL", "SL", "FL", "FD", "UV", "SV"})
_PIXELS = "pixel_mm_x pixel_mm_y depth_mm"

FIELDS = (
    Field(0x00080005, "SpecificCharacterSet", frozenset({"CS"}), How.HELPS, ""),
    # who: only keyed, never shown
    Field(0x00100020, "PatientID", _TEXT, How.PSEUDONYM, "patient patient_known"),
    Field(0x00100021, "IssuerOfPatientID", _TEXT, How.PSEUDONYM, "patient"),
    Field(0x0020000D, "StudyInstanceUID", _UID, How.PSEUDONYM, "study patient"),
    Field(0x00080018, "SOPInstanceUID", _UID, How.PSEUDONYM, "clip"),
    Field(0x00100030, "PatientBirthDate", _DATE, How.AGE, "age"),
    Field(0x00101010, "PatientAge", frozenset({"AS"}), How.AGE, "age"),
    Field(0x00100040, "PatientSex", _TEXT, How.WORD, "sex"),
    # when: the first that can be read
    Field(0x00080020, "StudyDate", _DATE, How.DAY, "study_date age"),
    Field(0x00080021, "SeriesDate", _DATE, How.DAY, "study_date age"),
    Field(0x00080022, "AcquisitionDate", _DATE, How.DAY, "study_date age"),
    Field(0x0008002A, "AcquisitionDateTime", _DATE, How.DAY, "study_date age"),
    Field(0x00080023, "ContentDate", _DATE, How.DAY, "study_date age"),
    # by what
    Field(0x00080070, "Manufacturer", _TEXT, How.WORD, "manufacturer device"),
    Field(0x00081090, "ManufacturerModelName", _TEXT, How.WORD, "model device probe"),
    Field(0x00181020, "SoftwareVersions", _TEXT, How.NUMBER, "device"),
    Field(0x00186031, "TransducerType", _TEXT, How.WORD, "probe"),
    Field(0x00185010, "TransducerData", _TEXT, How.WORD, "probe"),
    Field(0x0018980D, "TransducerGeometryCodeSequence", _SQ, How.CODE, "probe"),
    Field(0x0018980F, "TransducerApplicationCodeSequence", _SQ, How.CODE, "probe"),
    # of what
    Field(0x00080008, "ImageType", _TEXT, How.WORD, "mode organ probe"),
    Field(0x00082218, "AnatomicRegionSequence", _SQ, How.CODE, "organ laterality"),
    Field(0x00082228, "PrimaryAnatomicStructureSequence", _SQ, How.CODE, "organ laterality"),
    Field(0x00540220, "ViewCodeSequence", _SQ, How.CODE, "view"),
    Field(0x00180015, "BodyPartExamined", _TEXT, How.WORD, "organ"),
    Field(0x00200060, "Laterality", _TEXT, How.WORD, "laterality"),
    Field(0x00200062, "ImageLaterality", _TEXT, How.WORD, "laterality"),
    Field(0x00209072, "FrameLaterality", _TEXT, How.WORD, "laterality"),
    # descriptions, from the picture's own to the study's
    Field(0x00082127, "ViewName", _TEXT, How.MAPPED, "view organ laterality mode"),
    Field(0x00204000, "ImageComments", _TEXT, How.MAPPED, "view organ laterality mode"),
    Field(0x0008103E, "SeriesDescription", _TEXT, How.MAPPED, "view organ laterality mode"),
    Field(0x00181030, "ProtocolName", _TEXT, How.MAPPED, "view organ laterality mode"),
    Field(0x00400254, "PerformedProcedureStepDescription", _TEXT, How.MAPPED, "organ laterality"),
    Field(0x00321060, "RequestedProcedureDescription", _TEXT, How.MAPPED, "organ laterality"),
    Field(0x00081030, "StudyDescription", _TEXT, How.MAPPED, "organ laterality"),
    Field(0x00185020, "ProcessingFunction", _TEXT, How.MAPPED, "organ"),
    # the picture
    Field(0x00280008, "NumberOfFrames", _NUMBER, How.HELPS, "fps"),
    Field(0x00280010, "Rows", _NUMBER, How.HELPS, _PIXELS),
    Field(0x00280011, "Columns", _NUMBER, How.HELPS, _PIXELS),
    Field(0x00280014, "UltrasoundColorDataPresent", _NUMBER, How.NUMBER, "mode"),
    Field(0x00280030, "PixelSpacing", _NUMBER, How.NUMBER, _PIXELS),
    Field(0x00185050, "DepthOfScanField", _NUMBER, How.NUMBER, "depth_mm"),
    Field(0x00181063, "FrameTime", _NUMBER, How.NUMBER, "fps"),
    Field(0x00181065, "FrameTimeVector", _NUMBER, How.NUMBER, "fps"),
    Field(0x00180040, "CineRate", _NUMBER, How.NUMBER, "fps"),
    Field(0x00082144, "RecommendedDisplayFrameRate", _NUMBER, How.NUMBER, "fps"),
    Field(0x00186011, "SequenceOfUltrasoundRegions", _SQ, How.NUMBER, f"regions mode frequency_mhz {_PIXELS}"),
    # in an item of the regions
    Field(0x00186012, "RegionSpatialFormat", _NUMBER, How.NUMBER, "regions mode"),
    Field(0x00186014, "RegionDataType", _NUMBER, How.NUMBER, "regions mode"),
    Field(0x00186018, "RegionLocationMinX0", _NUMBER, How.NUMBER, "regions"),
    Field(0x0018601A, "RegionLocationMinY0", _NUMBER, How.NUMBER, "regions"),
    Field(0x0018601C, "RegionLocationMaxX1", _NUMBER, How.NUMBER, "regions"),
    Field(0x0018601E, "RegionLocationMaxY1", _NUMBER, How.NUMBER, "regions"),
    Field(0x00186024, "PhysicalUnitsXDirection", _NUMBER, How.HELPS, _PIXELS),
    Field(0x00186026, "PhysicalUnitsYDirection", _NUMBER, How.HELPS, _PIXELS),
    Field(0x0018602C, "PhysicalDeltaX", _NUMBER, How.NUMBER, _PIXELS),
    Field(0x0018602E, "PhysicalDeltaY", _NUMBER, How.NUMBER, _PIXELS),
    Field(0x00186030, "TransducerFrequency", _NUMBER, How.NUMBER, "frequency_mhz"),
    # in an item of a code sequence
    Field(0x00080100, "CodeValue", _CODE, How.CODE, "organ laterality view probe"),
    Field(0x00080102, "CodingSchemeDesignator", _CODE, How.CODE, "organ laterality view probe"),
    Field(0x00082220, "AnatomicRegionModifierSequence", _SQ, How.CODE, "laterality"),
    Field(0x00082230, "PrimaryAnatomicStructureModifierSequence", _SQ, How.CODE, "laterality"),
)
_BY_TAG = {field.tag: field for field in FIELDS}
_BY_NAME = {field.name: field for field in FIELDS}


class Reader:
    """Reads listed fields of a data set by name, and notes what became of each.

    `outcomes` holds, for each tag that was used or failed its check, which of both.
    """

    __slots__ = ("_dataset", "_encodings", "outcomes")

    def __init__(self, dataset: Dataset, encodings: tuple[str, ...] | None = None) -> None:
        self._dataset = dataset
        self._encodings = encodings_of(dataset, encodings) if encodings else encodings_of(dataset)
        self.outcomes: dict[int, Action] = {}

    def texts(self, name: str) -> tuple[str, ...]:
        """The text values of a field; () if it is absent, or not of a VR that is believed."""
        field = _BY_NAME[name]
        element = peek(self._dataset, field.tag)
        if element is None:
            return ()
        if vr_of(element) not in field.vrs:
            self._note(name, Action.FAILED_CHECK)
            return ()
        return strings(element, self._encodings)

    def text(self, name: str, place: int = 0) -> str:
        """One of the text values of a field; empty if there is none."""
        found = self.texts(name)
        return found[place] if place < len(found) else ""

    def numbers(self, name: str) -> tuple[float, ...]:
        """The numbers of a field; () if it is absent, or holds anything else."""
        field = _BY_NAME[name]
        element = peek(self._dataset, field.tag)
        if element is None:
            return ()
        found = numbers(element) if vr_of(element) in field.vrs else ()
        if not found and element.value:
            self._note(name, Action.FAILED_CHECK)
        return found

    def number(self, name: str) -> float | None:
        """The number of a field that must have exactly one."""
        found = self.numbers(name)
        return found[0] if len(found) == 1 else None

    def items(self, name: str) -> list["Reader"]:
        """The items of a sequence; [] if it is absent or can't be parsed."""
        field = _BY_NAME[name]
        element = peek(self._dataset, field.tag)
        if element is None or vr_of(element) not in field.vrs:
            return []
        return [Reader(item, self._encodings) for item in items_of(self._dataset, element) or ()]

    def word(self, name: str, lookup: Callable[[str], str | None], place: int = 0) -> str | None:
        """A text value as the word that `lookup` has for it; None for none."""
        text = self.text(name, place)
        return self.settle(name, lookup(text)) if text else None

    def settle(self, name: str, result: _T | None, action: Action = Action.KEPT) -> _T | None:
        """Note that a field that has a value became `result`, or failed its check if that is None."""
        self._note(name, Action.FAILED_CHECK if result is None else action)
        return result

    def _note(self, name: str, action: Action) -> None:
        """A good use outweighs a failed one."""
        tag = _BY_NAME[name].tag
        if self.outcomes.get(tag) in (None, Action.FAILED_CHECK):
            self.outcomes[tag] = action
