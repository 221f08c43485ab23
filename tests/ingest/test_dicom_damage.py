"""Damaged DICOM: cut anywhere, bytes changed, representations exchanged. It is refused or read, never anything else."""

import random
import time

import numpy as np
import pytest
from fakes.dicom_files import add_palette, echo_grey, echo_rgb, quiet_reader, write_dicom
from pydicom import Dataset

from ingest.deid.reasons import Reason, Refusal
from ingest.readers.dicom import open_dicom, read_frames

REASONS = frozenset(Reason)
SECRET = "Zebulon^Quux"
# lossless JPEG is left out: gdcm may end the process, which is what the isolated child is for
FUZZED = ("explicit", "implicit", "big_endian", "deflated", "rle", "jpeg", "jpeg_ls", "jpeg_2000")


@pytest.fixture(autouse=True)
def quiet():
    with quiet_reader():
        yield


def outcome(path):
    """What became of a file: the reason it was refused for, or "read"."""
    began = time.monotonic()
    try:
        image = open_dicom(path)
        for _, frame in read_frames(image, range(image.frames)):
            assert frame.dtype == np.uint8 and frame.shape[:2] == image.shape
        found = "read"
    except Refusal as refusal:
        assert refusal.reason in REASONS and refusal.step == "read"
        assert refusal.__context__ is None and refusal.__cause__ is None
        assert SECRET not in str(refusal) + repr(refusal) + repr(refusal.__dict__)
        found = str(refusal.reason)
    assert time.monotonic() - began < 5
    return found


def small(path, syntax):
    def change(dataset):
        inner = Dataset()
        inner.PatientName, inner.PatientID = SECRET, "0815"
        dataset.ReferencedImageSequence = [inner, Dataset()]
        dataset.add_new(0x00090010, "LO", "VENDOR")
        dataset.add_new(0x00091001, "UN", b"\xfe\xff\x00\xe0\x08\0\0\0\x10\0\x10\0\0\0\0\0")
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            add_palette(dataset, np.zeros((8, 3), np.uint16))

    colour = syntax in ("jpeg", "jpeg_2000", "implicit")
    pictures = [(echo_rgb if colour else echo_grey)(32, 32, seed) for seed in range(2)]
    photometric = "PALETTE COLOR" if syntax in ("explicit", "rle") else None
    return write_dicom(path, pictures, syntax=syntax, photometric=photometric, change=change, PatientName=SECRET)


@pytest.mark.parametrize("syntax", FUZZED)
def test_a_file_cut_anywhere_is_refused(tmp_path, syntax):
    path = small(tmp_path / "a", syntax)
    content = path.read_bytes()
    step = 1 if syntax == "explicit" else 13
    places = [*range(0, 1100, step), *range(1100, len(content), 29), len(content) - 1]
    for place in places:
        path.write_bytes(content[:place])
        # A compressed byte of padding may be missing; so may what was the end of the pixels of an old length.
        assert outcome(path) != "read" or (syntax == "deflated" and place == len(content) - 1), place


@pytest.mark.parametrize("syntax", FUZZED)
def test_mutated_files_are_refused_or_read(tmp_path, syntax):
    path = small(tmp_path / "a", syntax)
    content = path.read_bytes()
    draw = random.Random(syntax)
    seen = set()
    for number in range(150):
        mutated = _mutated(content, draw, number)
        path.write_bytes(mutated)
        seen.add(outcome(path))
    assert len(seen) > 2


def _mutated(content, draw, number):
    data = bytearray(content)
    kind = number % 6
    if kind == 0:  # bits anywhere
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 1:  # bytes of the header, where structure is
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(132, min(len(data), 1100))] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
    elif kind == 2:  # another representation
        known = (b"US", b"UI", b"IS", b"CS", b"SQ", b"OW")
        places = [at for at in range(132, len(data) - 2) if data[at : at + 2] in known]
        if places:
            at = draw.choice(places)
            data[at : at + 2] = draw.choice((b"SQ", b"UN", b"OB", b"DS", b"FD", b"UT", b"PN", b"XX", b"\0\0", b"AT"))
    elif kind == 3:  # a length
        at = draw.randrange(132, min(len(data), 1100) - 4)
        data[at : at + 4] = draw.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\0\0", b"\xfe\xff\xff\x7f"))
    elif kind == 4:  # a piece doubled or left out
        at, length = draw.randrange(len(data)), draw.randint(1, 64)
        data[at : at + length] = data[at : at + length] * 2 if draw.random() < 0.5 else b""
    else:  # pixels or code stream
        for _ in range(draw.randint(1, 20)):
            data[draw.randrange(min(1100, len(data) // 2), len(data))] = draw.randrange(256)
    return bytes(data)
