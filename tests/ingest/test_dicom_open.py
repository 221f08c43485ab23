"""Opening DICOM: what is an ultrasound picture, what is refused and why, and that the header is read as it stands."""

import logging
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from fakes.dicom_files import (
    NATIVE,
    SYNTAXES,
    ULTRASOUND,
    ULTRASOUND_CINE,
    echo_grey,
    echo_rgb,
    quiet_reader,
    write_dicom,
)
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence

from ingest.deid.reasons import Reason, Refusal, State
from ingest.readers import dicom_parse
from ingest.readers.dicom import open_dicom, read_frames

GREY = echo_grey(6, 8)


@pytest.fixture(autouse=True)
def quiet():
    with quiet_reader():
        yield


def reason(path):
    with pytest.raises(Refusal) as error:
        open_dicom(path)
    assert error.value.step == "read" and error.value.__context__ is None and error.value.__cause__ is None
    return error.value.reason


def nested(depth, name="Deep^Secret"):
    """A data set within a data set within ..., `depth` sequences deep."""
    dataset = Dataset()
    dataset.PatientName = name
    for _ in range(depth):
        outer = Dataset()
        outer.ReferencedImageSequence = Sequence([dataset])
        dataset = outer
    return dataset


def add_nested(depth, open_ended=False):
    def change(dataset):
        dataset.update(nested(depth))
        inner = dataset
        while open_ended and "ReferencedImageSequence" in inner:
            inner["ReferencedImageSequence"].is_undefined_length = True
            inner = inner.ReferencedImageSequence[0]
            inner.is_undefined_length_sequence_item = True

    return change


# What is ultrasound


@pytest.mark.parametrize("sop_class", [ULTRASOUND, ULTRASOUND_CINE, ULTRASOUND[:-2], ULTRASOUND_CINE[:-2]])
@pytest.mark.parametrize("modality", ["US", "IVUS", None, " us "])
def test_ultrasound_classes_are_read_old_ones_too(tmp_path, sop_class, modality):
    image = open_dicom(write_dicom(tmp_path / "a", GREY, SOPClassUID=sop_class, Modality=modality))
    assert (image.frames, image.shape, image.colour, image.photometric) == (1, (6, 8), False, "MONOCHROME2")


@pytest.mark.parametrize("meta", [True, False])
def test_a_file_without_a_class_is_ultrasound_if_its_modality_says_so(tmp_path, meta):
    path = write_dicom(tmp_path / "a", GREY, SOPClassUID="", meta=meta, syntax="implicit")
    if meta:  # the fake's meta repeats the class: empty
        assert open_dicom(path).frames == 1
    path = write_dicom(tmp_path / "a", GREY, SOPClassUID="", Modality="", meta=meta, syntax="implicit")
    assert reason(path) == "not_ultrasound"


@pytest.mark.parametrize(
    ("sop_class", "modality", "wanted"),
    [
        ("1.1.1", "SM", "not_ultrasound"),
        ("1.1.2", "CT", "not_ultrasound"),
        ("1.1.4", "MR", "not_ultrasound"),
        ("1.1.2", "US", "not_ultrasound"),  # a CT image remains one
        ("1.1.6.1", "CT", "not_ultrasound"),
        ("1.1.6.2", "US", "not_ultrasound"),  # a volume
        ("1.1.77.1.4", "XC", "not_ultrasound"),
        ("1.1.7", "OT", "screen_form"),
        ("1.1.7", None, "screen_form"),
        ("1.1.7.4", "DOC", "not_an_image"),
        ("1.1.7.2", "CT", "screen_form"),
        ("1.1.88.11", "SR", "not_an_image"),
        ("1.1.88.33", "US", "not_an_image"),
        ("1.1.88.59", "KO", "not_an_image"),
        ("1.1.104.1", "US", "not_an_image"),
        ("1.1.104.2", "DOC", "not_an_image"),
        ("1.1.11.1", "PR", "not_an_image"),
        ("1.1.66", "US", "not_an_image"),
        ("1.1.66.4", "SEG", "not_an_image"),
        ("1.1.9.1.1", "ECG", "not_an_image"),
        ("1.1.481.5", "RTPLAN", "not_an_image"),
    ],
)
def test_other_objects_are_refused_for_what_they_are(tmp_path, sop_class, modality, wanted):
    path = write_dicom(tmp_path / "a", GREY, SOPClassUID=f"1.2.840.10008.5.1.4.{sop_class}", Modality=modality)
    assert reason(path) == wanted
    path = write_dicom(
        tmp_path / "a",
        GREY,
        SOPClassUID=f"1.2.840.10008.5.1.4.{sop_class}",
        Modality=modality,
        change=lambda dataset: dataset.__delitem__("PixelData"),
    )
    assert reason(path) == wanted
    assert Reason(wanted).state == State.REJECTED


def test_a_capture_whose_modality_is_ultrasound_goes_on(tmp_path):
    path = write_dicom(tmp_path / "a", GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="US")
    assert open_dicom(path).frames == 1


def test_a_vendors_own_format_is_no_image(tmp_path):
    assert reason(write_dicom(tmp_path / "a", GREY, SOPClassUID="1.3.46.670589.2.5.1.1")) == "not_an_image"


def test_a_directory_is_refused_by_name_class_and_content(tmp_path):
    assert reason(write_dicom(tmp_path / "DICOMDIR", GREY)) == "dicomdir"
    assert reason(write_dicom(tmp_path / "a", GREY, SOPClassUID="1.2.840.10008.1.3.10")) == "dicomdir"

    def listed(dataset):
        dataset.DirectoryRecordSequence = [Dataset()]

    assert reason(write_dicom(tmp_path / "a", GREY, change=listed)) == "dicomdir"


def test_a_picture_without_pixels_is_refused(tmp_path):
    assert reason(write_dicom(tmp_path / "a", GREY, change=lambda d: d.__delitem__("PixelData"))) == "no_pixels"
    assert reason(write_dicom(tmp_path / "a", GREY, pixel_data=b"")) == "no_pixels"

    def floats(dataset):
        del dataset.PixelData
        dataset.FloatPixelData = GREY.astype("<f4").tobytes()

    assert reason(write_dicom(tmp_path / "a", GREY, change=floats)) == "no_pixels"


# Files


def test_files_that_are_no_dicom_are_refused(tmp_path):
    path = tmp_path / "a"
    assert reason(path) == "missing"
    for content, wanted in (
        (b"", "empty_file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "unsupported"),
        (b"x", "unsupported"),
        (b"Smith^John " * 40, "unsupported"),
        (bytes(400), "unsupported"),
    ):
        path.write_bytes(content)
        assert reason(path) == wanted
    assert reason(tmp_path) in ("unsupported", "unreadable")
    os.mkfifo(tmp_path / "pipe")
    assert reason(tmp_path / "pipe") == "unsupported"


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big_endian"])
def test_files_without_preamble_or_meta_are_read(tmp_path, syntax):
    pictures = [echo_rgb(6, 8, seed) for seed in range(2)]
    for options in ({"preamble": False}, {"meta": False, "preamble": False}):
        image = open_dicom(write_dicom(tmp_path / "a", pictures, syntax=syntax, **options))
        np.testing.assert_array_equal([frame for _, frame in read_frames(image, range(2))], pictures)
        assert image.transfer_syntax == SYNTAXES[syntax]
    path = tmp_path / "a"
    path.write_bytes(write_dicom(path, GREY).read_bytes()[128:])  # begins with DICM
    assert open_dicom(path).frames == 1


def test_compressed_pixels_of_an_unknown_syntax_are_refused(tmp_path):
    path = write_dicom(tmp_path / "a", GREY, fragments=[b"12"], meta=False, preamble=False)
    assert reason(path) == "pixel_length"


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian", "deflated", "rle"])
def test_bytes_after_the_data_set_are_refused(tmp_path, syntax):
    pixels = echo_grey()
    for tail in (b"\0", b"\0" * 8, b"\0" * 512, b"Smith^John", b"Smith^John" * 100, b"PK\3\4" + bytes(60)):
        path = write_dicom(tmp_path / "a", pixels, syntax=syntax, tail=tail)
        if syntax == "deflated" and tail == b"\0":  # one zero byte makes a compressed length even
            continue
        assert reason(path) == "trailing_bytes"


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian", "deflated"])
def test_elements_after_the_pixels_are_legal_and_kept(tmp_path, syntax):
    def padded(dataset):
        dataset.add_new(0xFFFCFFFC, "OB", bytes(100))
        dataset.add_new(0x7FE10010, "LO", "SOMEBODY")

    image = open_dicom(write_dicom(tmp_path / "a", GREY, syntax=syntax, change=padded))
    assert 0xFFFCFFFC in image.dataset and 0x7FE10010 in image.dataset


def test_an_element_that_comes_twice_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a", GREY)
    content = path.read_bytes()
    name = content.index(b"\x10\0\x10\0PN")
    path.write_bytes(content[:name] + content[name : name + 20] + content[name:])
    assert reason(path) == "unreadable"
    pixels = content.index(b"\xe0\x7f\x10\0")
    path.write_bytes(content + content[pixels:])
    assert reason(path) == "trailing_bytes"


# Nesting and bombs


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("open_ended", [True, False])
def test_sequences_are_read_to_16_levels_and_refused_beyond(tmp_path, syntax, open_ended):
    for depth, good in ((4, True), (16, True), (17, False)):
        path = write_dicom(tmp_path / "a", GREY, syntax=syntax, change=add_nested(depth, open_ended))
        if not good:
            assert reason(path) == "deep_nesting"
            continue
        inner = open_dicom(path).dataset
        for _ in range(depth):
            inner = inner.ReferencedImageSequence[0]
        assert inner.PatientName == "Deep^Secret"


@pytest.mark.parametrize("kind", ["sequence", "unknown", "private", "unknown_in_big_endian"])
def test_a_million_levels_end_neither_in_a_crash_nor_in_a_wait(tmp_path, kind):
    big = kind == "unknown_in_big_endian"
    order = ">" if big else "<"
    head = {
        "sequence": struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF),
        "unknown": struct.pack("<HH2sHI", 8, 0x1140, b"UN", 0, 0xFFFFFFFF),
        "private": struct.pack("<HH2sHI", 9, 0x1001, b"UN", 0, 0xFFFFFFFF),
        "unknown_in_big_endian": struct.pack(">HH2sHI", 8, 0x1140, b"UN", 0, 0xFFFFFFFF),
    }[kind]
    level = head + struct.pack(f"{order}HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path = write_dicom(tmp_path / "a", GREY, syntax="big_endian" if big else "explicit")
    content = path.read_bytes()
    study = content.index(struct.pack(f"{order}HH", 0x0010, 0x0010))
    path.write_bytes(content[:study] + level * 1_000_000)
    assert reason(path) == "deep_nesting"


def test_a_value_of_unknown_kind_that_only_looks_like_a_sequence_stays_as_it_is(tmp_path):
    value = b"\xfe\xff\x00\xe0\xff\xff\x00\x00Smith^John"

    def change(dataset):
        dataset.add_new(0x00090010, "LO", "VENDOR")
        dataset.add_new(0x00091001, "UN", value)
        dataset.add_new(0x00091002, "UN", b"\xfe\xff\x00\xe0\x12\0\0\0" + b"\x10\0\x10\0\x0a\0\0\0Smith^John")

    for syntax in NATIVE:
        dataset = open_dicom(write_dicom(tmp_path / "a", GREY, syntax=syntax, change=change)).dataset
        assert dataset[0x00091001].value == value
        assert dataset[0x00091002].VR == "SQ" and dataset[0x00091002][0].PatientName == "Smith^John"


def test_deflated_bombs_are_refused(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a", GREY, syntax="deflated")
    image = open_dicom(path)
    np.testing.assert_array_equal(next(read_frames(image, [0]))[1], GREY)
    content = path.read_bytes()
    start = content.index(b"1.2.840.10008.1.2.1.99")
    start = content.index(b"\x02\0\x12\0UI", start)
    start += 8 + content[start + 6]
    packer = zlib.compressobj(9, wbits=-15)
    monkeypatch.setattr("ingest.readers.dicom_source.MAX_INFLATED", 20 << 20)
    path.write_bytes(content[:start] + packer.compress(bytes(40 << 20)) + packer.flush())
    assert len(path.read_bytes()) < 60_000
    assert reason(path) == "too_large"
    path.write_bytes(content[:start] + content[start:-6])
    assert reason(path) == "truncated"
    path.write_bytes(content[:start] + b"\xff" * 100)
    assert reason(path) == "unreadable"


def test_giant_lengths_and_sizes_are_refused_before_anything_is_loaded(tmp_path):
    path = write_dicom(tmp_path / "a", GREY, ImageComments="x" * 20)
    content = bytearray(path.read_bytes())
    pixels = content.index(b"\xe0\x7f\x10\0")
    content[pixels + 8 : pixels + 12] = b"\xfe\xff\xff\xff"
    path.write_bytes(content)
    assert reason(path) == "truncated"
    for tags in ({"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 999_999_999, "Rows": 8000, "Columns": 8000}):
        assert reason(write_dicom(tmp_path / "a", GREY, **tags)) == "too_large"
    assert reason(write_dicom(tmp_path / "a", GREY, NumberOfFrames=99999999)) == "pixel_length"


def test_a_flood_of_elements_values_or_fragments_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_parse, "MAX_ELEMENTS", 200)

    def many(dataset):
        dataset.ReferencedImageSequence = [nested(0) for _ in range(300)]

    assert reason(write_dicom(tmp_path / "a", GREY, change=many)) == "too_large"
    monkeypatch.setattr(dicom_parse, "MAX_VALUES", 1000)
    assert reason(write_dicom(tmp_path / "a", GREY, ImageComments="x" * 1001)) == "too_large"
    monkeypatch.setattr(dicom_parse, "MAX_VALUES", 1 << 20)
    monkeypatch.setattr(dicom_parse, "MAX_FRAGMENTS", 10)
    assert reason(write_dicom(tmp_path / "a", GREY, fragments=[b"xx"] * 11)) == "too_large"


def test_values_over_one_megabyte_are_left_out(tmp_path):
    def blob(dataset):
        dataset.add_new(0x00090010, "LO", "VENDOR")
        dataset.add_new(0x00091001, "OB", bytes(2 << 20))

    dataset = open_dicom(write_dicom(tmp_path / "a", GREY, change=blob)).dataset
    assert 0x00091001 in dataset and not dataset[0x00091001].value


@pytest.mark.parametrize(
    "tags",
    [
        {"Rows": 0},
        {"Columns": 0},
        {"Rows": None},
        {"BitsAllocated": None},
        {"PixelRepresentation": 2},
        {"NumberOfFrames": "0"},
    ],
)
def test_a_picture_without_a_size_is_refused(tmp_path, tags):
    assert reason(write_dicom(tmp_path / "a", GREY, **tags)) == "unreadable"


def test_numbers_in_the_wrong_representation_are_refused(tmp_path):
    path = write_dicom(tmp_path / "a", GREY, NumberOfFrames=1)
    content = path.read_bytes()
    for old, new in (
        (b"\x28\0\x10\0US", b"\x28\0\x10\0IS"),
        (b"\x28\0\x10\0US\2\0\6\0", b"\x28\0\x10\0US\4\0\6\0\6\0"),
        (b"\x28\0\x08\0IS\2\0001 ", b"\x28\0\x08\0IS\2\0x "),
        (b"\x28\0\x08\0IS\2\0001 ", b"\x28\0\x08\0IS\2\0-1"),
        (b"\x28\0\x10\0US", b"\x28\0\x10\0ZZ"),
    ):
        assert old in content
        path.write_bytes(content.replace(old, new, 1))
        assert reason(path) == "unreadable"


# The header is read as it stands


def rich(dataset):
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "Müller^Ærø=山田^太郎"
    dataset.ReferencedImageSequence = [nested(2), Dataset(), nested(0, "Günther^A")]
    dataset["ReferencedImageSequence"].is_undefined_length = True
    dataset.add_new(0x00090010, "LO", "VENDOR 1.0")
    dataset.add_new(0x00091001, "LO", "Hidden^Name")
    dataset.add_new(0x00091002, "SQ", [nested(1)])
    region = Dataset()
    region.RegionSpatialFormat, region.RegionLocationMinX0, region.PhysicalDeltaX = 1, 17, 0.05
    dataset.SequenceOfUltrasoundRegions = [region]
    dataset.TransducerData = ["C5-1", "01234"]
    dataset.FrameTime, dataset.StudyDate = "33.3", ""
    dataset.add_new(0x60003000, "OW", b"\1\2\3\4")


@pytest.mark.parametrize("syntax", NATIVE)
def test_the_header_holds_what_pydicom_reads(tmp_path, syntax):
    path = write_dicom(tmp_path / "a", GREY, syntax=syntax, change=rich)
    found, wanted = open_dicom(path).dataset, dcmread(path)
    del wanted.PixelData
    if syntax == "implicit":  # private values without a representation are bytes, unless they are a sequence
        assert found[0x00091001].value == b"Hidden^Name "
        assert wanted[0x00091001].value == b"Hidden^Name "
        del found[0x00091002], wanted[0x00091002]
    assert found == wanted and found.file_meta == wanted.file_meta
    assert str(found.PatientName.ideographic) == "山田^太郎"
    assert found.ReferencedImageSequence[2].PatientName == "Günther^A"
    assert found.SequenceOfUltrasoundRegions[0].PhysicalDeltaX == 0.05


@pytest.mark.real
def test_real_headers_hold_what_pydicom_reads(real_data):
    for path in sorted((real_data / "dicom").rglob("*.dcm")):
        found, wanted = open_dicom(path).dataset, dcmread(path)
        del wanted.PixelData
        assert [element.tag for element in found] == [element.tag for element in wanted], path.stem
        for element in wanted:
            assert found[element.tag].value == element.value, (path.stem, element.tag)


def test_items_that_are_implicit_in_an_explicit_file_are_read(tmp_path):
    path = write_dicom(tmp_path / "a", GREY)
    content = path.read_bytes()
    item = b"\x10\0\x10\0\x0c\0\0\0Anna^Phantom"
    value = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item
    sequence = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, len(value)) + value
    name = content.index(b"\x10\0\x10\0PN")
    path.write_bytes(content[:name] + sequence + content[name:])
    assert open_dicom(path).dataset.ReferencedImageSequence[0].PatientName == "Anna^Phantom"


def test_unknown_representations_are_looked_up(tmp_path):
    path = write_dicom(tmp_path / "a", GREY)
    content = path.read_bytes()
    name = content.index(b"\x10\0\x10\0PN")
    length = content[name + 6]
    unknown = struct.pack("<HH2sHI", 0x10, 0x10, b"UN", 0, length)
    path.write_bytes(content[:name] + unknown + content[name + 8 :])
    assert open_dicom(path).dataset.PatientName == "Phantom^Anna"


@pytest.mark.parametrize("charset", ["zlib", "rot13", "unicode_escape", "ISO_IR 999", "\\\\\\", "utf8", "idna"])
def test_strange_character_sets_are_taken_for_the_default(tmp_path, charset):
    path = write_dicom(tmp_path / "a", GREY)
    content = path.read_bytes()
    start = content.index(b"\x08\0\x16\0UI")
    element = struct.pack("<HH2sH", 8, 5, b"CS", len(charset)) + charset.encode()
    path.write_bytes(content[:start] + element + content[start:])
    dataset = open_dicom(path).dataset
    assert dataset.PatientName == "Phantom^Anna"


# Privacy


def test_a_reader_image_shows_nothing_of_its_file(tmp_path):
    image = open_dicom(write_dicom(tmp_path / "Smith-John.dcm", GREY, PatientName="Smith^John"))
    for text in (repr(image), str(image), repr(image.layout), repr(image.layout.element)):
        assert "Smith" not in text and "1.2.840" not in text


def test_pydicom_says_nothing_about_bad_values(tmp_path, caplog, capfd):
    path = write_dicom(tmp_path / "a", GREY)
    content = path.read_bytes().replace(b"20200102", b"Smith^Jo")
    path.write_bytes(content.replace(b"US\2\0\6\0", b"US\2\0\6\0"))
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        dataset = open_dicom(path).dataset
        _ = dataset.StudyDate, str(dataset)
    assert "Smith" not in caplog.text and not caught
    assert "Smith" not in "".join(capfd.readouterr())
