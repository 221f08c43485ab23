import re
from datetime import date
from pathlib import Path

import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c
from fakes.us_headers import CLIP, STUDY, code, header, nested, raw, region, saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ingest.deid.device import Device, Region
from ingest.deid.header import Header, keep
from ingest.deid.header_fields import FIELDS, How, Reader
from ingest.deid.identity import Identity
from ingest.deid.key import load_key, new_key
from ingest.deid.reasons import Reason, Refusal
from ingest.deid.vocabulary import stored_words
from ingest.deid.walk import Action
from usdata.schema import SAMPLES

TODAY = date(2026, 6, 1)
HEX = re.compile(r"[0-9a-f]{32}")
SECRETS = ("Wolfeschlegelstein", "Bergerdorff")


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    path = tmp_path_factory.mktemp("keys") / "key"
    new_key(path)
    return Identity(load_key(path), "site")


@pytest.fixture
def row(identity: Identity):
    return lambda **fields: keep(header(**fields), identity, today=TODAY).row


def is_closed(column: str, value: object) -> bool:
    """Whether a value can carry nothing but a word of the tables, a number, a flag, a day or a keyed hash."""
    if isinstance(value, (bool, int, float)):
        return True
    if column == "study_date":
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)))
    if column in ("patient", "study", "clip"):
        return bool(HEX.fullmatch(str(value)))
    return value in stored_words()


def assert_closed(found: Header) -> None:
    assert set(found.row) <= set(SAMPLES.names)
    for column, value in found.row.items():
        assert is_closed(column, value), column
    words = (found.device.manufacturer, found.device.model)
    assert all(word is None or word in stored_words() for word in words)
    assert found.device.software is None or re.fullmatch(r"\d{1,3}", found.device.software)


# --- nothing but checked values ---------------------------------------------------------------------------------------


def test_a_name_in_every_listed_field_comes_out_nowhere(identity: Identity) -> None:
    for vr_wrong in (False, True):
        dataset = header()
        for field in FIELDS:
            vr = dictionary_VR(field.tag)
            if vr != "SQ" and field.name not in ("StudyInstanceUID", "SpecificCharacterSet"):
                raw(dataset, field.tag, "PN" if vr_wrong else vr, f"{SECRETS[0]}^{SECRETS[1]}".encode())
        found = keep(dataset, identity, today=TODAY)
        assert_closed(found)
        shown = repr(found) + str(found.row)
        assert not any(secret.lower() in shown.lower() for secret in SECRETS)


def test_a_name_in_every_field_of_regions_and_codes_comes_out_nowhere(identity: Identity) -> None:
    item = Dataset()
    for field in FIELDS:
        if dictionary_VR(field.tag) != "SQ":
            raw(item, field.tag, dictionary_VR(field.tag), SECRETS[0].encode())
    sequences = {field.name: Sequence([item]) for field in FIELDS if dictionary_VR(field.tag) == "SQ"}
    found = keep(header(**sequences), identity, today=TODAY)
    assert_closed(found)
    assert found.regions == () and found.counts[Action.REGION_SKIPPED] == 1
    assert SECRETS[0].lower() not in repr(found).lower()


_STRINGS = [f for f in FIELDS if dictionary_VR(f.tag) not in ("SQ", "US", "UL", "FD") and f.name != "StudyInstanceUID"]
_WORDS = st.sampled_from(["GE", "left", "liver", "M", "20200101", "033Y", "C5-1", "EPIQ 7C", "PLAX", "1.2.3", "33.3"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.one_of(st.text(max_size=20), _WORDS), min_size=len(_STRINGS), max_size=len(_STRINGS)),
    vr=st.sampled_from([None, None, "PN", "LO", "UN", "OB", "DA"]),
    charset=st.sampled_from(["", "ISO_IR 192", "GB18030", "ISO 2022 IR 87", "nonsense"]),
)
def test_whatever_is_typed_only_closed_values_come_out(identity: Identity, texts, vr, charset) -> None:
    dataset = header()
    for field, text in zip(_STRINGS, texts, strict=True):
        raw(dataset, field.tag, vr or dictionary_VR(field.tag), text.encode("utf-8", "replace"))
    raw(dataset, 0x00080005, "CS", charset.encode())
    assert_closed(keep(dataset, identity, today=TODAY))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=40), vr=st.sampled_from(["FD", "US", "DS", "IS", "SL", "PN", "UN", "OB"]))
def test_arbitrary_bytes_in_a_region_raise_nothing(data: bytes, vr: str) -> None:
    for field in FIELDS:
        if field.name.startswith(("Region", "Physical", "Transducer")) and dictionary_VR(field.tag) != "SQ":
            item = region()
            raw(item, field.tag, vr, data)
            Reader(item).number(field.name)
            Reader(item).texts(field.name)


def test_every_listed_tag_that_annex_e_polices_has_a_transformation() -> None:
    policed = set()
    for name in (
        "X_TAGS",
        "Z_TAGS",
        "D_TAGS",
        "U_TAGS",
        "Z_D_TAGS",
        "X_Z_TAGS",
        "X_D_TAGS",
        "X_Z_D_TAGS",
        "X_Z_U_STAR_TAGS",
    ):
        policed |= {(tag[0] << 16) + tag[1] for tag in getattr(dicomfields_2026c, name)}
    assert len(policed) > 500
    listed = [field for field in FIELDS if field.tag in policed]
    assert {"PatientID", "StudyDate", "StudyDescription", "StudyInstanceUID"} <= {field.name for field in listed}
    hidden = {How.PSEUDONYM, How.DAY, How.AGE, How.WORD, How.MAPPED, How.CODE}
    assert [field.name for field in listed if field.how not in hidden] == []


def test_the_table_names_its_tags_rightly_and_each_once() -> None:
    from pydicom.datadict import keyword_for_tag

    assert [field.name for field in FIELDS if keyword_for_tag(field.tag) != field.name] == []
    assert len({field.tag for field in FIELDS}) == len(FIELDS)
    columns = {column for field in FIELDS for column in field.columns.split()}
    assert columns <= {*SAMPLES.names, "device", "regions"}


def test_a_tag_that_is_not_listed_can_not_be_read() -> None:
    with pytest.raises(KeyError):
        Reader(header(PatientName="A^B")).text("PatientName")


# --- who --------------------------------------------------------------------------------------------------------------


def test_patient_study_and_clip_become_keyed_hashes(row, identity: Identity) -> None:
    found = row()
    assert found["patient"] == identity.patient("4711-0815") and found["patient_known"] is True
    assert found["study"] == identity.study(STUDY) and found["clip"] == identity.clip(CLIP)


@pytest.mark.parametrize(
    "filler",
    ["", "  ", "0", "0000000", "UNKNOWN", "anonymous", "N/A", "---", "Test", "xxxx", "123456", "未知", "Ｎ／Ａ"],
)
def test_patients_without_an_id_are_not_merged_into_one(row, identity: Identity, filler: str) -> None:
    first, second = row(PatientID=filler), row(PatientID=filler, StudyInstanceUID=STUDY + ".7")
    assert first["patient_known"] is False and second["patient_known"] is False
    assert first["patient"] == identity.study(STUDY) != second["patient"]


def test_an_item_with_neither_patient_nor_study_is_refused(identity: Identity) -> None:
    for study in (None, "", "Smith^John"):
        with pytest.raises(Refusal) as caught:
            keep(header(PatientID="unknown", StudyInstanceUID=study), identity, today=TODAY)
        assert caught.value.reason == Reason.NO_IDENTITY
        assert "Smith" not in str(caught.value)


def test_ids_that_differ_behind_a_backslash_are_two_patients(identity: Identity) -> None:
    found = set()
    for text in (b"4711\\1", b"4711\\2"):
        dataset = header()
        raw(dataset, 0x00100020, "LO", text)
        found.add(keep(dataset, identity, today=TODAY).row["patient"])
    assert len(found) == 2


def test_two_issuers_with_one_patient_id_are_two_patients(row) -> None:
    assert row(IssuerOfPatientID="north")["patient"] != row(IssuerOfPatientID="south")["patient"]


@pytest.mark.parametrize(
    ("charset", "codec", "name"),
    [
        ("ISO_IR 100", "latin-1", "Müller-7"),
        ("ISO_IR 144", "iso8859_5", "Иванов-7"),
        ("GB18030", "gb18030", "王小东-7"),
        ("ISO_IR 192", "utf-8", "王小东-7"),
        ("ISO 2022 IR 6\\ISO 2022 IR 87", "iso2022_jp", "山田太郎-7"),
        ("\\ISO 2022 IR 87", "iso2022_jp", "山田太郎-7"),
        ("wrong", "utf-8", "Müller-7"),
    ],
)
def test_a_patient_id_is_the_same_in_any_character_set(identity: Identity, charset, codec, name) -> None:
    dataset = header(PatientID=None)
    raw(dataset, 0x00080005, "CS", charset.encode())
    raw(dataset, 0x00100020, "LO", name.encode(codec))
    assert keep(dataset, identity, today=TODAY).row["patient"] == identity.patient(name)


# --- when and how old -------------------------------------------------------------------------------------------------


def test_days_are_shifted_by_the_patients_own_number(row, identity: Identity) -> None:
    first, second = row()["study_date"], row(StudyDate="2020.03.02")["study_date"]
    assert first == identity.shift(identity.patient("4711-0815"), date(2020, 2, 29)).isoformat() != "2020-02-29"
    assert (date.fromisoformat(second) - date.fromisoformat(first)).days == 2  # 29 February to 2 March


def test_an_unknown_patients_days_are_shifted_by_the_studys_number(row, identity: Identity) -> None:
    found = row(PatientID="")
    assert found["study_date"] == identity.shift(identity.study(STUDY), date(2020, 2, 29)).isoformat()


@pytest.mark.parametrize("text", ["2007", "200703", "20070230", "19000101", "20991231", "Smith", "20200101-20200202"])
def test_a_date_that_is_none_is_dropped(identity: Identity, text: str) -> None:
    dataset = header(StudyDate=None)
    raw(dataset, 0x00080020, "DA", text.encode())
    found = keep(dataset, identity, today=TODAY)
    assert "study_date" not in found.row and found.counts[Action.FAILED_CHECK] == 1


def test_the_series_date_stands_in_for_a_missing_study_date(row, identity: Identity) -> None:
    found = row(StudyDate="", AcquisitionDateTime="20200301101112.5+0100")
    assert found["study_date"] == identity.shift(identity.patient("4711-0815"), date(2020, 3, 1)).isoformat()


@pytest.mark.parametrize(("text", "age"), [("089Y", 89), ("090Y", 90), ("101Y", 90), ("18M", 1), ("sixty", None)])
def test_ages_from_90_on_are_one_class(identity: Identity, text: str, age: int | None) -> None:
    dataset = header()
    raw(dataset, 0x00101010, "AS", text.encode())
    assert keep(dataset, identity, today=TODAY).row.get("age") == age


@pytest.mark.parametrize(("birth", "age"), [("19800301", 39), ("19800229", 40), ("19250101", 90), ("20210101", None)])
def test_an_age_is_computed_from_the_birth_date_which_is_not_kept(row, birth: str, age: int | None) -> None:
    found = row(PatientBirthDate=birth)
    assert found.get("age") == age
    assert birth not in str(found) and f"{birth[:4]}-{birth[4:6]}" not in str(found)


@pytest.mark.parametrize(("text", "word"), [("M", "male"), ("F", "female"), ("O", "other"), ("Meyer", None)])
def test_sex_is_one_of_three_words(identity: Identity, text: str, word: str | None) -> None:
    dataset = header()
    raw(dataset, 0x00100040, "CS", text.encode())
    assert keep(dataset, identity, today=TODAY).row.get("sex") == word


# --- by what ----------------------------------------------------------------------------------------------------------


def test_a_device_is_known_by_its_own_words_only(identity: Identity) -> None:
    found = keep(
        header(
            Manufacturer="Philips Medical Systems", ManufacturerModelName="EPIQ 7C", SoftwareVersions="EPIQ 7C_1.7.1.24"
        ),
        identity,
        today=TODAY,
    )
    assert found.device == Device("Philips", "EPIQ 7", "1")
    assert found.row["manufacturer"] == "Philips" and found.row["model"] == "EPIQ 7"


@pytest.mark.parametrize(
    ("maker", "model"), [("GE Bergerdorff", "EPIQ of Bergerdorff"), ("Bergerdorff", "LOGIQ E9 Bergerdorff")]
)
def test_a_name_beside_a_device_makes_it_other_and_is_counted(identity: Identity, maker: str, model: str) -> None:
    found = keep(header(Manufacturer=maker, ManufacturerModelName=model), identity, today=TODAY)
    assert (found.row["manufacturer"], found.row["model"]) == ("other", "other")
    assert found.device == Device()
    assert found.counts[Action.UNKNOWN_MANUFACTURER] == found.counts[Action.UNKNOWN_MODEL] == 1


@pytest.mark.parametrize(
    ("fields", "probe"),
    [
        ({"TransducerType": "CURVED LINEAR"}, "convex"),
        ({"TransducerData": ["C5-1", "01234567", ""]}, "convex"),
        ({"TransducerData": "C5-1,01234567"}, "convex"),
        ({"TransducerType": "CURVED LINEAR", "TransducerData": "C10-3v"}, "endocavity"),
        ({"TransducerType": "LINEAR", "TransducerData": "Bergerdorff"}, "linear"),
        ({"TransducerData": "Bergerdorff"}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TEE", "0011"]}, "transesophageal"),
        ({"Manufacturer": "Clarius", "ManufacturerModelName": "L7 HD3"}, "linear"),
        ({"TransducerGeometryCodeSequence": Sequence([code("125252", "DCM")])}, "linear"),
        ({"TransducerGeometryCodeSequence": Sequence([code("125252", "99BERGERDORFF")])}, None),
    ],
)
def test_the_probes_class(row, fields, probe: str | None) -> None:
    assert row(**fields).get("probe") == probe


# --- of what ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "organ"),
    [
        ({"BodyPartExamined": "THYROID"}, "thyroid"),
        ({"AnatomicRegionSequence": Sequence([code("T-62000", "SRT", "Bergerdorff")])}, "liver"),
        ({"AnatomicRegionSequence": Sequence([code("10200004", "SCT", "Heart")])}, "liver"),
        ({"AnatomicRegionSequence": Sequence([code("10200004", "99LOCAL", "Liver")])}, None),
        ({"StudyDescription": "US ABDOMEN COMPLETE", "SeriesDescription": "Leber Bergerdorff"}, "liver"),
        ({"BodyPartExamined": "ABDOMEN", "SeriesDescription": "right kidney"}, "kidney"),
        ({"BodyPartExamined": "CHEST", "ImageType": ["ORIGINAL", "PRIMARY", "EPICARDIAL"]}, "heart"),
        ({"BodyPartExamined": "LIVER", "SeriesDescription": "kidney"}, "liver"),
        ({"StudyDescription": "Echo of Mrs Bergerdorff"}, None),
    ],
)
def test_the_organ_is_a_word_of_the_catalog(row, fields, organ: str | None) -> None:
    assert row(**fields).get("organ") == organ


def test_left_in_a_description_counts_for_paired_organs_only(row) -> None:
    assert row(SeriesDescription="LEFT BREAST trans").get("laterality") == "left"
    assert "laterality" not in row(SeriesDescription="echocardiogram left ventricle")
    assert row(Laterality="R")["laterality"] == "right"
    modifier = Sequence([code("G-A101", "SRT")])
    region_code = code("T-04000", "SRT", AnatomicRegionModifierSequence=modifier)
    assert row(AnatomicRegionSequence=Sequence([region_code]))["laterality"] == "left"


def test_views_come_from_names_and_codes(row) -> None:
    assert row(ViewName="Apical 4 Chamber")["view"] == "A4C"
    assert row(ViewCodeSequence=Sequence([code("399214001", "SCT")]))["view"] == "A4C"
    assert "view" not in row(ViewName="Bergerdorff")
    assert "view" not in row(StudyDescription="transverse")  # a study is of many views


@pytest.mark.parametrize(
    ("regions", "more", "mode"),
    [
        ([region()], {}, "B-mode"),
        ([region(), region(RegionDataType=2)], {}, "colour_doppler"),
        ([region(), region(RegionSpatialFormat=3, RegionDataType=3)], {"UltrasoundColorDataPresent": 1}, "B-mode"),
        ([region(RegionSpatialFormat=3, RegionDataType=4)], {}, "spectral_doppler"),
        ([region(RegionSpatialFormat=2)], {}, "M-mode"),
        ([], {"ImageType": ["ORIGINAL", "PRIMARY", "TEE", "0011"]}, "colour_doppler"),
        ([], {"ImageType": ["ORIGINAL", "PRIMARY", "TEE", "0001"]}, "B-mode"),
        ([], {"UltrasoundColorDataPresent": 0}, "B-mode"),
        ([], {"UltrasoundColorDataPresent": 1}, None),
        ([region()], {"SeriesDescription": "Elasto breast"}, "elastography"),
        ([], {}, None),
    ],
)
def test_the_mode(row, regions, more, mode: str | None) -> None:
    assert row(SequenceOfUltrasoundRegions=Sequence(regions), **more).get("mode") == mode


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_regions_are_read_as_they_stand_with_one_past_the_last_pixel(identity: Identity) -> None:
    found = keep(header(SequenceOfUltrasoundRegions=Sequence([region()])), identity, today=TODAY)
    assert found.regions == (Region(100, 50, 601, 451, 1, 1, 0.2, 0.2),)
    assert (found.row["pixel_mm_x"], found.row["depth_mm"]) == (0.2, 80.2)  # 401 rows of 0.2 mm


def test_a_broken_region_is_skipped_and_counted_and_the_others_stay(identity: Identity) -> None:
    wrong_vr, text, missing = region(), region(), region(RegionLocationMinX0=None)
    raw(wrong_vr, 0x00186018, "LO", b"100")
    raw(text, 0x0018601A, "IS", b"Smith")
    negative = region()
    raw(negative, 0x0018601C, "SL", (-5).to_bytes(4, "little", signed=True))
    items = [wrong_vr, text, missing, negative, region()]
    found = keep(header(SequenceOfUltrasoundRegions=Sequence(items)), identity, today=TODAY)
    assert len(found.regions) == 1 and found.counts[Action.REGION_SKIPPED] == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"PhysicalUnitsXDirection": 4},
        {"PhysicalDeltaX": -0.02},
        {"PhysicalDeltaX": 0.2, "PhysicalDeltaY": 0.02},  # ratio of 10
        {"PhysicalDeltaX": 0.5, "PhysicalDeltaY": 0.5},  # 5 mm
        {"PhysicalDeltaX": float("nan")},
    ],
)
def test_a_spacing_that_can_not_be_is_none(row, fields) -> None:
    found = row(SequenceOfUltrasoundRegions=Sequence([region(**fields)]))
    assert "pixel_mm_x" not in found and "pixel_mm_y" not in found


def test_regions_of_another_size_of_the_picture_give_no_spacing(row) -> None:
    regions = Sequence([region()])
    assert "pixel_mm_x" not in row(SequenceOfUltrasoundRegions=regions, Rows=240, Columns=320)
    assert row(SequenceOfUltrasoundRegions=regions, Rows=450, Columns=600)["pixel_mm_x"] == 0.2  # one past: off by one


def test_pixel_spacing_is_rows_first_and_only_without_regions(row) -> None:
    found = row(PixelSpacing=["0.3", "0.2"])
    assert (found["pixel_mm_x"], found["pixel_mm_y"]) == (0.2, 0.3)


def test_a_depth_in_other_units_gives_way_to_the_regions_height(row) -> None:
    regions = Sequence([region()])
    assert row(DepthOfScanField="80", SequenceOfUltrasoundRegions=regions)["depth_mm"] == 80
    assert row(DepthOfScanField="8", SequenceOfUltrasoundRegions=regions)["depth_mm"] == 80.2  # written in cm
    assert "depth_mm" not in row(DepthOfScanField="4711081")


def test_frequency_is_of_the_largest_region_in_mhz(row) -> None:
    small = region(RegionLocationMaxX1=150, TransducerFrequency=9000)
    assert row(SequenceOfUltrasoundRegions=Sequence([small, region(TransducerFrequency=3500)]))["frequency_mhz"] == 3.5
    assert "frequency_mhz" not in row(SequenceOfUltrasoundRegions=Sequence([region(TransducerFrequency=99_999_999)]))


@pytest.mark.parametrize(
    ("fields", "fps"),
    [
        ({"FrameTime": "33.333"}, 30.0),
        ({"FrameTimeVector": ["0", "20", "30"]}, 40.0),
        ({"CineRate": "25"}, 25.0),
        ({"FrameTime": "0", "RecommendedDisplayFrameRate": "50"}, 50.0),
        ({"CineRate": "471108"}, None),
    ],
)
def test_frames_per_second_of_a_clip(row, fields, fps: float | None) -> None:
    assert row(NumberOfFrames="30", **fields).get("fps") == fps
    assert "fps" not in row(NumberOfFrames="1", **fields)


def test_digits_beyond_what_is_measured_are_rounded_away(row) -> None:
    found = row(
        SequenceOfUltrasoundRegions=Sequence([region(PhysicalDeltaX=0.0247110815, PhysicalDeltaY=0.0247110815)])
    )
    assert found["pixel_mm_x"] == 0.24711


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_same_in_explicit_and_implicit_vr(tmp_path: Path, identity: Identity) -> None:
    dataset = header(
        **{
            "Manufacturer": "GE Healthcare",
            "ManufacturerModelName": "LOGIQ E9",
            "PatientName": "A^B",
            "Rows": 600,
            "Columns": 800,
        },
        SequenceOfUltrasoundRegions=Sequence([region()]),
    )
    path = saved(dataset, tmp_path / "explicit.dcm")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
    dataset.save_as(tmp_path / "implicit.dcm", enforce_file_format=True, implicit_vr=True)
    first = keep(dcmread(path), identity, today=TODAY)
    second = keep(dcmread(tmp_path / "implicit.dcm"), identity, today=TODAY)
    assert first.row == second.row and first.regions == second.regions and first.counts == second.counts
    assert first.row["model"] == "LOGIQ E9"


def test_every_element_of_a_file_is_counted_once(identity: Identity) -> None:
    dataset = header(PatientName="A^B", Manufacturer="GE")
    inner = nested(3, header())
    dataset.update(inner)
    dataset.private_block(0x0019, "BERGERDORFF", create=True).add_new(1, "LO", "x")
    found = keep(dataset, identity, today=TODAY)
    assert sum(found.counts.values()) == sum(1 for _ in dataset.iterall())
    assert found.counts[Action.PRIVATE_REMOVED] == 2 and found.counts[Action.REPLACED] == 4
    assert found.counts[Action.NESTED_REMOVED] == 4 + 2  # four fields at depth 3, two sequences on the way


@pytest.mark.real
def test_real_files_give_the_rows_that_a_person_found_right(real_data: Path, identity: Identity) -> None:
    expected = {
        "pydicom-data/OBXXXX1A.dcm": {
            "manufacturer": "Philips",
            "model": "CX50",
            "probe": "convex",
            "pixel_mm_x": 0.26229,
        },
        "pydicom-data/US1_UNCR.dcm": {"manufacturer": "GE", "model": "LOGIQ 700", "sex": "male"},
        "pydicom-data/JPGLosslessP14SV1_1s_1f_8b.dcm": {"probe": "phased", "organ": "heart", "patient_known": False},
        "pydicom-data/color-pl.dcm": {"probe": "transesophageal", "organ": "heart", "mode": "colour_doppler"},
        "pydicom/examples_ybr_color.dcm": {"model": "M-Turbo", "fps": 30.0, "organ": "heart", "mode": "B-mode"},
        "pydicom/ExplVR_BigEnd.dcm": {"manufacturer": "GE", "patient_known": False, "organ": "heart"},
    }
    for name, words in expected.items():
        found = keep(dcmread(real_data / "dicom" / name, stop_before_pixels=True), identity, today=TODAY)
        assert_closed(found)
        assert {k: found.row.get(k) for k in words} == words
    stale = keep(dcmread(real_data / "dicom/pydicom/examples_palette.dcm"), identity, today=TODAY)
    assert "pixel_mm_x" not in stale.row  # its regions are of a larger picture
