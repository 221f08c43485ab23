"""Every place of a DICOM file that anonymization.md names: how a secret is planted there.

`PLACES` is the one list. A place has a name (which its secrets' tokens are made from), the section of anonymization.md
that asks for it, a family (places that can share a file), and a function that plants into a draft.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module

from fakes.deid_dicom import Draft, deep, item, raw, region, ultrasound
from fakes.deid_secrets import Secret, capitals, clock, day, name, number, person, sentence, uid, word
from fakes.deid_values import Place, Plant, charsets, dates, numbers, wrong_representations
from pydicom import Dataset
from pydicom.datadict import DicomDictionary, dictionary_VR, keyword_for_tag
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag

# What makes the file a picture at all: another value there is no secret but a broken file.
_STRUCTURE = frozenset(
    re.findall(
        r"\w+",
        """SpecificCharacterSet SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID PatientName PatientID
        Modality Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated BitsStored
        HighBit PixelRepresentation NumberOfFrames PixelData FloatPixelData DoubleFloatPixelData PixelAspectRatio
        LossyImageCompression DataSetTrailingPadding ExtendedOffsetTable ExtendedOffsetTableLengths
        RedPaletteColorLookupTableData""",
    )
)
_NO_DATA = (0x0000, 0x0002, 0x0004, 0x0006)  # groups of messages, file meta and DICOMDIR
_TEXTS = ("LO", "SH", "ST", "LT", "UT", "UC", "UR")


def _secret_of(place: str, vr: str) -> Secret | None:
    """A secret that a value of this representation can hold; None where a few bits are all there is."""
    if vr == "PN":
        return person(place)
    if vr in ("SH", "AE"):
        return Secret(place, (word(place),), f"Dr {word(place)}")
    if vr in _TEXTS:
        return sentence(place)
    made = {"CS": capitals, "DA": day, "TM": clock, "UI": uid, "DS": number, "IS": lambda p: number(p, 10)}
    if vr in made:
        return made[vr](place)
    if vr == "DT":
        secret = day(place)
        return Secret(place, secret.texts, f"{secret.value}101112.250000+0100", day=secret.day)
    if vr in ("OB", "UN", "OW"):
        return name(place)
    return None


def standard(tag: int, vr: str) -> Plant:
    """Plant into a standard attribute of the main data set."""

    def plant(draft: Draft, place: str) -> Secret:
        secret = _secret_of(place, vr)
        assert secret is not None
        raw(draft.data, tag, vr, secret.value)
        return secret

    return plant


def annex_e() -> Iterator[Place]:
    """All of PS3.15 Annex E's attributes with a value that can hold a secret."""
    table = import_module("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    listed = {t for key, tags in vars(table).items() if key.endswith("_TAGS") for t in tags if len(t) == 2}
    for group, element in sorted(listed):
        if group not in _NO_DATA:
            yield from _standard_place(group << 16 | element, "annex-e", "2", f"annex-e/{group:04x}")


def dictionary() -> Iterator[Place]:
    """Every attribute of the standard's dictionary with a value that can hold a secret."""
    for tag in sorted(DicomDictionary):
        if tag >> 16 not in _NO_DATA:
            yield from _standard_place(tag, "dictionary", "3 H1", f"dictionary/{tag >> 16:04x}")


def _standard_place(tag: int, prefix: str, section: str, family: str) -> Iterator[Place]:
    keyword = keyword_for_tag(tag)
    if not keyword or keyword in _STRUCTURE:
        return
    vr = dictionary_VR(tag).split(" ")[0]
    if _secret_of("any", vr) is not None:
        yield Place(f"{prefix}/{keyword}", section, family, standard(tag, vr))


def _text(keyword: str, form: str, family: str = "wanted", section: str = "5 T2") -> Place:
    """A field that the catalog wants, with a name typed into it."""

    def plant(draft: Draft, place: str) -> Secret:
        token = word(place).upper() if dictionary_VR(keyword) == "CS" else word(place)
        raw(draft.data, Tag(keyword), dictionary_VR(keyword), form.format(token))
        return Secret(place, (word(place),), form.format(token))

    return Place(f"{family}/{keyword} {form.format('*')}", section, family, plant)


def _nested(depth: int, keyword: str) -> Place:
    def plant(draft: Draft, place: str) -> Secret:
        inner, vr = Dataset(), dictionary_VR(keyword)
        secret = _secret_of(place, vr)
        assert secret is not None
        raw(inner, Tag(keyword), vr, secret.value)
        deep(draft.data, depth, inner)
        return secret

    return Place(f"nested/depth {depth}/{keyword}", "3 H1", f"nested/{depth}/{keyword}", plant)


def _code(sequence: str, keyword: str) -> Place:
    """A name in a code: its meaning, its value, its scheme."""

    def plant(draft: Draft, place: str) -> Secret:
        if sequence not in draft.data:
            setattr(draft.data, sequence, Items([Dataset()]))
        inner = draft.data[sequence].value[0]
        token = word(place)
        raw(inner, Tag(keyword), dictionary_VR(keyword), token)
        return name(place)

    return Place(f"code/{sequence}/{keyword}", "5 T2", f"code/{sequence}", plant)


def _private(label: str, family: str, put: Callable[[Dataset, Secret], None], where: str = "main") -> Place:
    """A private attribute in the main data set, in a region, or at depth 4."""

    def plant(draft: Draft, place: str) -> Secret:
        secret = sentence(place, "private note on {}")
        holder = draft.data
        if where == "region":
            holder = draft.data.SequenceOfUltrasoundRegions[0]
        elif where == "deep":
            holder = Dataset()
            put(holder, secret)
            deep(draft.data, 4, holder)
            return secret
        put(holder, secret)
        return secret

    return Place(f"private/{where}/{label}", "3 H2", f"{family}/{where}", plant)


def _owned(group: int, vr: str) -> Callable[[Dataset, Secret], None]:
    def put(data: Dataset, secret: Secret) -> None:
        raw(data, (group, 0x0010), "LO", "ACME US 1.0")
        raw(data, (group, 0x1001), vr, secret.value)

    return put


def _orphan(group: int, vr: str) -> Callable[[Dataset, Secret], None]:
    return lambda data, secret: raw(data, (group, 0x1002), vr, secret.value)


def _creator(data: Dataset, secret: Secret) -> None:
    raw(data, (0x0031, 0x0010), "LO", secret.value)


def _inside_private(data: Dataset, secret: Secret) -> None:
    raw(data, (0x0033, 0x0010), "LO", "ACME US 1.0")
    inner = Dataset()
    raw(inner, Tag("PatientName"), "PN", secret.value)
    data.add_new((0x0033, 0x1010), "SQ", Items([inner]))


def privates() -> Iterator[Place]:
    """Private attributes: with a creator, without, as creator, inside a private sequence, in odd vendors' groups."""
    for where in ("main", "region", "deep"):
        for group, vr in ((0x0009, "LO"), (0x0019, "PN"), (0x7FE1, "OB"), (0x200D, "UN"), (0x0029, "UT")):
            yield _private(f"{group:04X} {vr}, with creator", "private/owned", _owned(group, vr), where)
            yield _private(f"{group + 2:04X} {vr}, without creator", "private/orphan", _orphan(group + 2, vr), where)
        yield _private("creator's name", "private/creator", _creator, where)
        yield _private("private sequence", "private/inside", _inside_private, where)


def _raw(label: str, section: str, family: str, tag: tuple[int, int], vr: str) -> Place:
    def plant(draft: Draft, place: str) -> Secret:
        secret = sentence(place, "overlay {} ")
        raw(draft.data, tag, vr, secret.value)
        return secret

    return Place(label, section, family, plant)


def groups() -> Iterator[Place]:
    """Overlays and curves, of several groups; group lengths and unknown even groups."""
    for group in (0x6000, 0x6002, 0x601E):
        for element, vr in ((0x3000, "OW"), (0x4000, "LT"), (0x0022, "LO"), (0x1500, "LO"), (0x0040, "CS")):
            label = f"overlay/{group:04X},{element:04X}"
            yield _raw(label, "3 H3", f"overlay/{group:04x}", (group, element), vr)
    for group in (0x5000, 0x5002):
        for element, vr in ((0x3000, "OW"), (0x0022, "LO"), (0x2500, "LO"), (0x0040, "SH")):
            yield _raw(f"curve/{group:04X},{element:04X}", "3 H3", f"curve/{group:04x}", (group, element), vr)
    yield _raw("group/unknown even group", "3 H1", "group/even", (0x0066, 0xF0F0), "UN")
    yield _raw("group/unknown element of a known group", "3 H1", "group/even", (0x0018, 0xF0F1), "LT")
    yield _raw("group/retired comments 4000", "3 H1", "group/even", (0x0008, 0x4000), "LT")


def _meta(keyword: str, vr: str, tag: int) -> Place:
    def plant(draft: Draft, place: str) -> Secret:
        secret = uid(place) if vr == "UI" else name(place)
        content = secret.value + "\0" * (len(secret.value) % 2) if vr in ("UI", "OB") else secret.value
        content += " " * (len(content) % 2)
        value = content.encode() if vr == "OB" else content.rstrip("\0 ")
        draft.meta.add_new(tag, vr, value)
        if keyword == "PrivateInformation":
            draft.meta.add_new(0x00020100, "UI", "1.2.826.0.1.3680043.8.1")
        return secret

    return Place(f"meta/{keyword}", "3 H4", "meta", plant)


def metas() -> Iterator[Place]:
    """The file meta group."""
    yield _meta("SourceApplicationEntityTitle", "AE", 0x00020016)
    yield _meta("SendingApplicationEntityTitle", "AE", 0x00020017)
    yield _meta("ReceivingApplicationEntityTitle", "AE", 0x00020018)
    yield _meta("SourcePresentationAddress", "UR", 0x00020026)
    yield _meta("ImplementationVersionName", "SH", 0x00020013)
    yield _meta("ImplementationClassUID", "UI", 0x00020012)
    yield _meta("MediaStorageSOPInstanceUID", "UI", 0x00020003)
    yield _meta("PrivateInformation", "OB", 0x00020102)


def _preamble(draft: Draft, place: str) -> Secret:
    draft.preamble = f"scanned for {word(place)}".encode().ljust(128, b"\0")
    return name(place)


def _tail(draft: Draft, place: str) -> Secret:
    draft.tail = f"sent by {word(place)}".encode()
    return name(place)


def _padding(draft: Draft, place: str) -> Secret:
    raw(draft.data, (0xFFFC, 0xFFFC), "OB", f"padding {word(place)} {word(place)}")
    return name(place)


def _longer_pixels(draft: Draft, place: str) -> Secret:
    raw(draft.data, "PixelData", "OB", draft.data["PixelData"].value + f"behind the pixels {word(place)}".encode())
    return name(place)


def _region_text(draft: Draft, place: str) -> Secret:
    raw(draft.data.SequenceOfUltrasoundRegions[0], Tag("PixelComponentPhysicalUnits"), "PN", person(place).value)
    return person(place)


def _region_extra(draft: Draft, place: str) -> Secret:
    box = region(0, 0, 10, 10, spatial=5, kind=0)
    raw(box, Tag("ImageComments"), "LT", sentence(place).value)
    draft.data.SequenceOfUltrasoundRegions.append(box)
    return sentence(place)


def _transducer(draft: Draft, place: str) -> Secret:
    raw(draft.data, Tag("TransducerData"), "LO", f"C5-1,{number(place, 8).value}\\{word(place)}")
    return Secret(place, (word(place), number(place, 8).value), word(place))


def _original_attributes(draft: Draft, place: str) -> Secret:
    inner = item()
    raw(inner, Tag("PatientName"), "PN", person(place).value)
    draft.data.OriginalAttributesSequence = Items([item(ModifiedAttributesSequence=Items([inner]))])
    return person(place)


def whole_file() -> Iterator[Place]:
    """Preamble, trailing bytes, padding, and what stands beside the pixels."""
    yield Place("file/preamble", "3 H5", "file/preamble", _preamble)
    yield Place("file/trailing bytes", "3 H5", "file/tail", _tail)
    yield Place("file/DataSetTrailingPadding", "3 H5", "file/padding", _padding)
    yield Place("file/bytes behind the pixels", "6.1", "file/pixels", _longer_pixels)
    yield Place("region/PN in a region", "3 H1", "region/text", _region_text)
    yield Place("region/comments of a graphics region", "3 H1", "region/graphics", _region_extra)
    yield Place("wanted/TransducerData with serial", "5 T3", "wanted/transducer", _transducer)
    yield Place("nested/OriginalAttributesSequence", "3 H1", "nested/original", _original_attributes)


def wanted() -> Iterator[Place]:
    """Fields that the catalog wants, with names typed in."""
    for keyword, form in (
        ("Manufacturer", "GE {}"),
        ("ManufacturerModelName", "EPIQ of {}"),
        ("SoftwareVersions", "4.0 {}"),
        ("TransducerType", "CURVED {}"),
        ("BodyPartExamined", "LIVER {}"),
        ("ViewName", "A4C {}"),
        ("StageName", "rest {}"),
        ("StudyDescription", "abdomen {}"),
        ("SeriesDescription", "liver right lobe {}"),
        ("ProtocolName", "thyroid {}"),
        ("ImageComments", "breast of {}"),
        ("PerformedProcedureStepDescription", "kidney {}"),
        ("AcquisitionDeviceProcessingDescription", "B-mode {}"),
        ("ImageLaterality", "R{}"),
        ("PatientSex", "F {}"),
        ("PatientSpeciesDescription", "human {}"),
        ("ProcessingFunction", "ABDOMEN {}"),
        ("StationName", "US {}"),
    ):
        yield _text(keyword, form)
    for sequence in ("AnatomicRegionSequence", "ViewCodeSequence", "DerivationCodeSequence", "ProcedureCodeSequence"):
        for keyword in ("CodeMeaning", "CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion"):
            yield _code(sequence, keyword)
    yield _code("AnatomicRegionSequence", "PatientName")
    yield _code("SourceImageSequence", "PatientName")
    yield _code("SourceImageSequence", "ReferencedSOPInstanceUID")


def nested() -> Iterator[Place]:
    """At every depth to 4, and once at 12, of sequences that no table has as a path."""
    for depth in (1, 2, 3, 4):
        for keyword in ("PatientName", "PersonName", "TextValue", "PatientID", "PatientBirthDate", "SOPInstanceUID"):
            yield _nested(depth, keyword)
    yield _nested(12, "PatientName")


PLACES: tuple[Place, ...] = (
    *annex_e(),
    *wanted(),
    *nested(),
    *privates(),
    *groups(),
    *wrong_representations(),
    *dates(),
    *charsets(),
    *numbers(),
    *metas(),
    *whole_file(),
)


def drafts(places: tuple[Place, ...] = PLACES, each: bool = False) -> Iterator[tuple[str, Draft]]:
    """(family, file with the secrets of all its places planted); with `each`, a file for every single place."""
    by_family: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        by_family[place.name if each else place.family].append(place)
    for family, members in by_family.items():
        draft = ultrasound(family)
        draft.secrets += [place.plant(draft, place.name) for place in members]
        yield family, draft
