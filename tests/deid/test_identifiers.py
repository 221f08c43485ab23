import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes.us_headers import header, nested, raw, region
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ingest.deid.identifiers import MOST, file_identifiers, of_dataset, path_identifiers, printed
from ingest.deid.walk import walk

SECRET = "Wolfeschlegelstein"


def found(dataset: Dataset) -> str:
    return "|".join(of_dataset(walk(dataset)))


# --- DICOM ------------------------------------------------------------------------------------------------------------


def test_names_ids_places_dates_and_uids_are_gathered() -> None:
    fields = {
        **{"PatientName": "Bergerdorff^Anna", "AccessionNumber": "ACC00917", "InstitutionName": "St Elsewhere"},
        **{
            "StationName": "ROOM7",
            "DeviceSerialNumber": "SN-99-12",
            "OperatorsName": "Kowalski",
            "StudyDate": "20200229",
        },
    }
    dataset = header(**fields)
    gathered = of_dataset(walk(dataset))
    assert {"4711-0815", "bergerdorff", "anna", "ACC00917", "St Elsewhere", "SN-99-12", "20200229"} <= gathered
    assert str(dataset.StudyInstanceUID) in gathered


@pytest.mark.parametrize("vr", ["LO", "PN", "UT", "OB", "UN", "DS", "IS", "DA", "UI", "FD", "SQ"])
def test_a_secret_is_gathered_under_any_vr_private_or_not(vr: str) -> None:
    for tag in (0x00104000, 0x00191010):
        dataset = header()
        raw(dataset, tag, vr, SECRET.encode())
        assert SECRET in found(nested(4, dataset))


def test_a_secret_in_region_items_curves_overlays_meta_and_preamble_is_gathered() -> None:
    item = region()
    raw(item, 0x00191001, "LO", b"secret-of-region")
    dataset = header(SequenceOfUltrasoundRegions=Sequence([item]))
    raw(dataset, 0x50002500, "LO", b"secret-of-curve")
    raw(dataset, 0x60000022, "LO", b"secret-of-overlay")
    dataset.file_meta.SourceApplicationEntityTitle = "SECRETOFMETA"
    gathered = of_dataset(walk(dataset), b"secret-of-preamble".ljust(128, b"\0"))
    assert {
        "secret-of-region",
        "secret-of-curve",
        "secret-of-overlay",
        "SECRETOFMETA",
        "secret-of-preamble",
    } <= gathered


def test_text_in_an_undeclared_character_set_is_gathered_in_its_own() -> None:
    dataset = header()
    raw(dataset, 0x00100010, "PN", "王^小东".encode("gb18030"))
    assert "王^小东" in of_dataset(walk(dataset))


def test_what_everybodys_files_say_is_not_gathered() -> None:
    dataset = header(Modality="US", FrameTime="33.333", StudyTime="101112", PhotometricInterpretation="RGB")
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    gathered = of_dataset(walk(dataset))
    assert not {"RGB", "33.333", "1.2.840.10008.5.1.4.1.1.6.1", "101112"} & gathered


def test_the_number_of_identifiers_is_bounded_and_those_of_the_patient_come_first() -> None:
    dataset = header(PatientName="Bergerdorff^Anna")
    block = dataset.private_block(0x0019, "MAKER", create=True)
    for place in range(0xFF):
        block.add_new(place, "LT", " ".join(f"{place}word{n}," for n in range(50)))
    gathered = of_dataset(walk(dataset))
    assert len(gathered) <= MOST and {"bergerdorff", "4711-0815"} <= gathered
    assert gathered == of_dataset(walk(dataset))


def test_of_private_xml_the_contents_are_gathered_and_a_table_of_numbers_is_not() -> None:
    dataset = header()
    numbers = "".join(f"<FrameOffset>{n}</FrameOffset>" for n in range(10_000, 10_200))
    text = f'<?xml version="1.0"?><Clip owner="Kowalski"><PatientNote>{SECRET}</PatientNote>{numbers}</Clip>'
    dataset.private_block(0x0019, "MAKER", create=True).add_new(0x50, "UT", text)
    gathered = of_dataset(walk(dataset))
    assert {SECRET, "Kowalski"} <= gathered
    assert "10007" not in gathered and "FrameOffset" not in "|".join(gathered)


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_paths_parts_are_identifiers() -> None:
    parts = path_identifiers("Bergerdorff_Anna/2020-02-29/IM0001 4711.dcm")
    assert {"Bergerdorff_Anna", "2020-02-29", "IM0001 4711"} <= parts
    assert path_identifiers("C:\\Patients\\Kowalski\\a.png") >= {"Patients", "Kowalski"}
    assert path_identifiers("") == frozenset()


# --- pictures and videos ----------------------------------------------------------------------------------------------


def picture() -> Image.Image:
    return Image.fromarray(np.full((48, 64), 90, np.uint8))


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x013B] = "Artist-Kowalski"
    tags[0x010E] = "Description-Bergerdorff"
    tags[0x9C9D] = "Автор-Иванов".encode("utf-16-le")
    tags.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "Comment-王小东".encode("utf-16-le")
    tags.get_ifd(0x8769)[0x9003] = "2020:02:29 10:11:12"
    tags.get_ifd(0x8825)[0x1D] = "2020:02:28"
    return tags


def text_of(path: Path) -> str:
    return "|".join(sorted(file_identifiers(path, path.name)))


EXIF_SECRETS = ("Artist-Kowalski", "Description-Bergerdorff", "Автор-Иванов", "Comment-王小东", "2020:02:29 10:11:12")


def test_png_chunks_are_read(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "text-Kowalski")
    info.add_text("Comment", "ztxt-Bergerdorff", zip=True)
    info.add_itxt("Title", "itxt-王小东")
    info.add_itxt("Description", "itxt-Иванов", zip=True)
    path = tmp_path / "IM1.png"
    picture().save(path, pnginfo=info, exif=exif())
    path.write_bytes(path.read_bytes() + b"behind-the-end")
    text = text_of(path)
    for secret in ("text-Kowalski", "ztxt-Bergerdorff", "itxt-王小东", "itxt-Иванов", "behind-the-end", *EXIF_SECRETS):
        assert secret in text


def test_jpeg_segments_are_read(tmp_path: Path) -> None:
    path = tmp_path / "IM1.jpg"
    picture().save(path, comment="com-Bergerdorff", exif=exif(), icc_profile=b"\0" * 128 + b"icc-Kowalski\0")
    data = path.read_bytes()
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x12\x1c\x02\x50\0\x0diptc-Kowalski"
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><dc:creator>xmp-Kowalski</dc:creator></x:xmpmeta>"
    extra = b"".join(
        struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body for kind, body in ((0xED, iptc), (0xE1, xmp))
    )
    path.write_bytes(data[:2] + extra + data[2:] + b"behind-the-end")
    text = text_of(path)
    for secret in ("com-Bergerdorff", "icc-Kowalski", "iptc-Kowalski", "xmp-Kowalski", "behind-the-end", *EXIF_SECRETS):
        assert secret in text


def test_tiff_tags_are_read(tmp_path: Path) -> None:
    path = tmp_path / "IM1.tif"
    picture().save(path, tiffinfo=exif(), description="Description-Bergerdorff", artist="Artist-Kowalski")
    text = text_of(path)
    assert "Artist-Kowalski" in text and "Description-Bergerdorff" in text


def test_gif_comments_and_bmp_remainders_are_read(tmp_path: Path) -> None:
    gif, bmp = tmp_path / "a.gif", tmp_path / "b.bmp"
    picture().save(gif, comment=b"gif-Kowalski")
    picture().save(bmp)
    bmp.write_bytes(bmp.read_bytes() + b"bmp-Bergerdorff")
    assert "gif-Kowalski" in text_of(gif) and "bmp-Bergerdorff" in text_of(bmp)


def test_avi_info_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    info = b"INFO" + b"".join(
        k + struct.pack("<I", len(t)) + t for k, t in ((b"INAM", b"inam-Kowalski1"), (b"IDIT", b"SAT FEB 29 2020\n"))
    )
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", len(info)) + info)
    text = text_of(path)
    assert "inam-Kowalski1" in text and "SAT FEB 29 2020" in text


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def test_mp4_atoms_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    name = box(b"\xa9nam", box(b"data", b"\0\0\0\1\0\0\0\0nam-Kowalski"))
    meta = box(b"udta", box(b"meta", b"\0\0\0\0" + box(b"ilst", name)) + box(b"\xa9cmt", b"\0\x0f\0\0cmt-Bergerdorff"))
    content = (
        box(b"ftyp", b"isom") + box(b"mdat", b"not-looked-at" * 9) + box(b"moov", meta) + box(b"uuid", b"uuid-Kowalski")
    )
    path.write_bytes(content)
    text = text_of(path)
    assert "nam-Kowalski" in text and "cmt-Bergerdorff" in text and "uuid-Kowalski" in text
    assert "not-looked-at" not in text


def test_a_compressed_text_that_unpacks_without_end_is_bounded(tmp_path: Path) -> None:
    bomb = b"Comment\0\0" + zlib.compress(b"A" * (64 << 20), 9)
    chunk = struct.pack(">I", len(bomb)) + b"zTXt" + bomb + b"\0" * 4
    path = tmp_path / "a.png"
    picture().save(path)
    data = path.read_bytes()
    path.write_bytes(data[:33] + chunk + data[33:])
    assert len(file_identifiers(path, "a.png")) < 100


@settings(max_examples=60, deadline=None)
@given(
    head=st.sampled_from(
        [b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"II*\0", b"MM\0*", b"GIF89a", b"BM", b"RIFF", b"\0\0\0\x18ftyp"]
    ),
    data=st.binary(max_size=300),
)
def test_damage_raises_nothing(tmp_path_factory: pytest.TempPathFactory, head: bytes, data: bytes) -> None:
    path = tmp_path_factory.mktemp("d") / "a"
    path.write_bytes(head + data)
    file_identifiers(path, "a")


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "gif", "bmp"])
def test_pictures_with_flipped_bytes_raise_nothing(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    picture().save(path)
    data, random = path.read_bytes(), np.random.default_rng(7)
    for _ in range(60):
        damaged = bytearray(data[: random.integers(1, len(data) + 1)])
        for place in random.integers(0, len(damaged), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(bytes(damaged))
        file_identifiers(path, "a")


def test_printed_finds_text_in_three_codings_and_no_noise() -> None:
    data = (
        b"\0\1\2Kowalski\0"
        + "王小东 Иванов".encode()
        + b"\0\xff"
        + "Bergerdorff".encode("utf-16-le")
        + b"\x01##.,!\x01"
    )
    assert {"Kowalski", "Bergerdorff"} <= set(printed(data)) and "##.,!" not in set(printed(data))
