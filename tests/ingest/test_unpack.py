"""Archives: unpacked exactly, or refused whole with the member named and nothing written outside."""

import io
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from fakes.datasets import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import unpack
from ingest.card import get_card
from ingest.layout import list_items
from ingest.unpack import open_source
from usdata.errors import DataError


@pytest.fixture
def place(tmp_path):
    """A folder with an archive-to-be, a temporary folder, and a file that must not change."""
    (tmp_path / "temp").mkdir()
    (tmp_path / "precious.txt").write_text("precious")
    return tmp_path


def zipped(path: Path, members: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def tarred(path: Path, *members: tuple[str, bytes | None, dict], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, content, fields in members:
            info = tarfile.TarInfo(name)
            for key, value in fields.items():
                setattr(info, key, value)
            info.size = len(content or b"")
            file.addfile(info, io.BytesIO(content) if content is not None else None)
    return path


def refused(archive: Path, reason: str = "unsafe_archive") -> DataError:
    root = archive.parent
    before = {path for path in root.rglob("*") if (root / "temp") not in path.parents}
    with pytest.raises(DataError) as error, open_source(archive, root / "temp"):
        pytest.fail("the archive was opened")
    assert error.value.reason == reason and error.value.step == "unpack"
    assert {path for path in root.rglob("*") if (root / "temp") not in path.parents} == before
    assert not list((root / "temp").iterdir())  # nothing is left behind
    assert (root / "precious.txt").read_text() == "precious"
    return error.value


def content_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


FILES = {"a/1.png": b"one", "a/b/2 (x).png": b"", "3.csv": b"three" * 1000}


def test_a_folder_is_used_where_it_is(tmp_path):
    with open_source(tmp_path) as root:
        assert root == tmp_path
    assert tmp_path.is_dir()


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_an_archive_unpacks_to_its_files_and_the_copy_goes_away(place, ending):
    archive = place / f"data.{ending}"
    if ending == "zip":
        zipped(archive, FILES)
    else:
        members = [(f"./{name}", content, {}) for name, content in FILES.items()]
        tarred(archive, *members, mode=f"w:{ending[4:]}" if ending != "tar" else "w")
    archive.rename(place / "download")  # the name does not matter
    with open_source(place / "download", place / "temp") as root:
        assert content_of(root) == FILES
    assert not list((place / "temp").iterdir())


def test_the_copy_goes_away_when_the_work_on_it_fails(place):
    archive = zipped(place / "data.zip", FILES)
    with pytest.raises(RuntimeError), open_source(archive, place / "temp"):
        raise RuntimeError
    assert not list((place / "temp").iterdir())


EVIL = ["../precious.txt", "a/../../precious.txt", "/precious.txt", "..\\precious.txt", "C:\\x", "C:x", "a//b", "a/./b"]
EVIL += ["..", "a\nb", "a\x1bb", "x" * 300, "\\\\host\\share", "a/.."]


@pytest.mark.parametrize("name", EVIL)
def test_a_member_that_leads_out_of_the_folder_is_refused(place, name):
    error = refused(zipped(place / "data.zip", {"good.png": b"x", name: b"evil"}))
    assert "its member" in error.message and "usdata" not in error.message
    refused(tarred(place / "data.tar", ("good.png", b"x", {}), (name, b"evil", {})))


def test_a_name_that_hides_behind_a_nul_is_refused(place):
    archive = zipped(place / "data.zip", {"good.pngA../x": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"good.pngA../x", b"good.png\0../x"))
    assert "\\x00" in refused(archive).message


@pytest.mark.parametrize(
    "fields",
    [
        {"type": tarfile.SYMTYPE, "linkname": "../precious.txt"},
        {"type": tarfile.SYMTYPE, "linkname": "good.png"},
        {"type": tarfile.LNKTYPE, "linkname": "good.png"},
        {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
        {"type": tarfile.FIFOTYPE},
    ],
)
def test_links_devices_and_pipes_in_a_tar_are_refused(place, fields):
    error = refused(tarred(place / "data.tar", ("good.png", b"x", {}), ("odd.png", None, fields)))
    assert "'odd.png' is a link or a device" in error.message


def test_a_link_in_a_zip_is_refused(place):
    with zipfile.ZipFile(place / "data.zip", "w") as file:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "../precious.txt")
    assert "'link.png' is a link" in refused(place / "data.zip").message


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a/1.png", "a/1.png"), ("a/1.png", "./a/1.png"), ("a/1.png", "a\\1.png")])
def test_a_name_that_comes_twice_is_refused(place, names):
    with zipfile.ZipFile(place / "data.zip", "w") as file:
        for name in names:
            file.writestr(name, b"x")
    assert "comes twice" in refused(place / "data.zip").message
    error = refused(tarred(place / "data.tar", *[(name, b"x", {}) for name in names]))
    assert "comes twice" in error.message


@pytest.mark.parametrize("names", [("a", "a/1.png"), ("a/1.png", "a")])
def test_a_name_that_is_a_file_and_a_folder_is_refused(place, names):
    for archive in (
        zipped(place / "data.zip", dict.fromkeys(names, b"x")),
        tarred(place / "data.tar", *[(name, b"x", {}) for name in names]),
    ):
        assert "a file and a folder at once" in refused(archive).message


def test_a_bomb_is_refused_by_what_it_declares_and_by_what_comes_out(place, monkeypatch):
    monkeypatch.setattr(unpack, "SMALL", 1 << 16)
    zeros = bytes(1 << 20)  # a thousandth of it when packed
    assert "unpack to 1048576 bytes" in refused(zipped(place / "data.zip", {"zeros.bmp": zeros})).message
    refused(tarred(place / "data.tar.xz", ("zeros.bmp", zeros, {}), mode="w:xz"))
    honest = zipped(place / "data.zip", {"noise.png": os.urandom(1 << 18)})
    with open_source(honest, place / "temp") as root:
        assert (root / "noise.png").stat().st_size == 1 << 18


def test_a_zip_that_lies_about_its_sizes_is_refused(place):
    archive = zipped(place / "data.zip", {"a.png": bytes(5000)})
    content = archive.read_bytes()
    archive.write_bytes(content.replace(struct.pack("<I", 5000), struct.pack("<I", 50)))
    refused(archive, "unreadable")


def test_an_encrypted_member_is_refused(place):
    archive = zipped(place / "data.zip", {"a.png": b"x"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert "is encrypted" in refused(archive).message


def test_a_cut_archive_is_refused(place):
    whole = zipped(place / "data.zip", {"a.png": os.urandom(5000), "b.png": os.urandom(5000)}).read_bytes()
    for end in (len(whole) - 10, len(whole) // 2):
        (place / "cut.zip").write_bytes(whole[:end])
        error = refused(place / "cut.zip", "unsupported" if end else "unreadable")
        assert error.hint
    whole = tarred(place / "data.tar.gz", ("a.png", os.urandom(50_000), {}), mode="w:gz").read_bytes()
    (place / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    assert "'a.png'" in refused(place / "cut.tar.gz", "unreadable").message
    damaged = bytearray(zipped(place / "data.zip", {"a.png": os.urandom(5000)}).read_bytes())
    damaged[2000] ^= 255
    (place / "data.zip").write_bytes(damaged)
    assert "'a.png'" in refused(place / "data.zip", "unreadable").message


def test_what_is_neither_folder_nor_archive_is_refused_with_advice(place):
    (place / "data.rar").write_bytes(b"Rar!\x1a\x07\x00")
    assert "give the folder" in refused(place / "data.rar", "unsupported").hint
    with pytest.raises(DataError, match="There is no") as error, open_source(place / "none.zip"):
        pytest.fail("opened")
    assert error.value.reason == "missing"


def test_a_full_disk_is_said_before_it_is_full(place, monkeypatch):
    monkeypatch.setattr(unpack.shutil, "disk_usage", lambda _: os.terminal_size((0, 0)) and type("U", (), {"free": 10}))
    archive = zipped(place / "data.zip", {"a.png": os.urandom(2 << 20)})
    assert "10 are free" in refused(archive, "no_space").message


def test_a_place_that_can_not_be_written_is_named(place):
    archive = zipped(place / "data.zip", FILES)
    with pytest.raises(DataError, match="Can't unpack below") as error, open_source(archive, place / "none"):
        pytest.fail("opened")
    assert error.value.reason == "unwritable"


def test_utf8_names_are_read_as_such_even_if_the_archive_does_not_say_so(place):
    archive = zipped(place / "data.zip", {"Bilder/Schilddrüse (1).png": b"x", "超声/1.png": b"y"})
    content = bytearray(archive.read_bytes())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # take the UTF-8 flag away
        start = 0
        while (start := content.find(magic, start)) >= 0:
            content[start + flags + 1] &= ~8
            start += 4
    (place / "unflagged.zip").write_bytes(content)
    for name in ("data.zip", "unflagged.zip"):
        with open_source(place / name, place / "temp") as root:
            assert content_of(root) == {"Bilder/Schilddrüse (1).png": b"x", "超声/1.png": b"y"}


def test_a_packed_data_set_lists_like_its_folder(place):
    fake = draw("busi", place / "busi")
    archive = zipped(place / "Dataset_BUSI.zip", content_of(fake.root))
    with open_source(archive, place / "temp") as root:
        assert list_items(get_card("busi"), root) == list_items(get_card("busi"), fake.root)


_name = st.text(st.sampled_from("ab./\\: ~$\x00\n") | st.characters(codec="utf-8"), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(_name, min_size=1, max_size=4, unique=True), st.booleans())
def test_whatever_the_names_are_nothing_is_written_outside(tmp_path_factory, names, as_zip):
    place = tmp_path_factory.mktemp("names")
    inside = place / "one/two/inside"
    inside.mkdir(parents=True)
    archive = place / "archive"
    try:
        if as_zip:
            zipped(archive, dict.fromkeys(names, b"x"))
        else:
            tarred(archive, *[(name, b"x", {}) for name in names])
    except (ValueError, IndexError):  # a name that the archive format itself can't hold
        return
    try:
        files = unpack.unpack(archive, inside)
    except DataError as error:
        assert error.message.isprintable()
    else:
        assert len(content_of(inside)) == files
    everything = {path.relative_to(place).as_posix() for path in place.rglob("*")}
    assert all(path.startswith("one/two/inside") for path in everything - {"archive", "one", "one/two"})
