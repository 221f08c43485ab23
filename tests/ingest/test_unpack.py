"""Archives: unpacked exactly, or refused whole with the member named and nothing written outside."""

import io
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
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
        error = refused(place / "cut.zip", "unreadable")
        assert error.hint
    whole = tarred(place / "data.tar.gz", ("a.png", os.urandom(50_000), {}), mode="w:gz").read_bytes()
    (place / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    assert "'a.png'" in refused(place / "cut.tar.gz", "unreadable").message
    damaged = bytearray(zipped(place / "data.zip", {"a.png": os.urandom(5000)}).read_bytes())
    damaged[2000] ^= 255
    (place / "data.zip").write_bytes(damaged)
    assert "'a.png'" in refused(place / "data.zip", "unreadable").message


def test_what_is_neither_folder_nor_archive_is_refused_with_advice(place):
    for name, content, command in (
        ("data.rar", b"Rar!\x1a\x07\x00", "unrar x {0} {1}/"),
        ("data.7z", b"7z\xbc\xaf\x27\x1c", "7z x {0} -o{1}"),
        ("data.tar.zst", b"\x28\xb5\x2f\xfd", "tar --zstd -xf {0} -C {1}"),
        ("data.z01", b"PK\x07\x08PK\x03\x04", "7z x {0} -o{1}"),
    ):
        (place / name).write_bytes(content + bytes(100))
        hint = refused(place / name, "unsupported").hint
        assert command.format(place / name, place / "data") in hint and f"--from {place / 'data'}" in hint
    for name, content, word in (
        ("data.zip", b"<!DOCTYPE html><html>", "is a web page"),
        ("data.zip", b"", "is empty"),
        ("data.zip", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
        ("data.tar.gz", b"\x1f\x8b" + bytes(50), "damaged .tar.gz"),
        ("data.zip", b"anything" * 99, "no archive that is read here"),
    ):
        (place / name).write_bytes(content)
        assert word in refused(place / name, "unreadable").message
    (place / "notes").write_bytes(b"anything")
    assert "give the folder" in refused(place / "notes", "unsupported").hint
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


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a/B.png", "a/b.png"), ("é.png", "e\u0301.png"), ("STRASSE.png", "straße.png")])
def test_names_that_some_disks_take_for_one_are_refused_on_all(place, names):
    for archive in (
        zipped(place / "data.zip", dict.fromkeys(names, b"x")),
        tarred(place / "data.tar", *[(name, b"x", {}) for name in names]),
    ):
        assert "differs from" in refused(archive).message
    both = {"Benign/1.png": b"1", "benign/2.png": b"2"}  # folders may: they hold different files everywhere
    with open_source(zipped(place / "data.zip", both), place / "temp") as root:
        assert content_of(root) == both


def renamed(archive: Path, names: dict[str, bytes]) -> Path:
    """Other bytes of the same length in the place of ASCII names, without the flag for UTF-8."""
    content = archive.read_bytes()
    for old, new in names.items():
        assert len(old) == len(new)
        content = content.replace(old.encode(), new)
    archive.write_bytes(content)
    return archive


def test_names_in_an_undeclared_encoding_are_read_as_the_card_says_or_always_alike(place):
    raw = "肝脏/超.png".encode("gbk")
    archive = renamed(zipped(place / "data.zip", {"X" * len(raw): b"x"}), {"X" * len(raw): raw})
    for names, expected in (("gbk", "肝脏/超.png"), (None, raw.decode("cp437"))):
        (folder := place / f"out-{names}").mkdir()
        assert unpack.unpack(archive, folder, names=names) == 1
        assert list(content_of(folder)) == [expected]
    (folder := place / "out-ascii").mkdir()
    with pytest.raises(DataError, match="has a name that is not ascii") as error:
        unpack.unpack(archive, folder, names="ascii")
    assert error.value.reason == "unsafe_archive" and not content_of(folder)


def test_a_byte_of_a_name_that_is_a_backslash_in_another_encoding_makes_no_folder(place):
    raw = "誠.png".encode("gbk")
    assert b"\\" in raw
    archive = renamed(zipped(place / "data.zip", {"X" * len(raw): b"x"}), {"X" * len(raw): raw})
    (folder := place / "out").mkdir()
    unpack.unpack(archive, folder, names="gbk")
    assert list(content_of(folder)) == ["誠.png"]


def test_the_unicode_field_of_a_zip_counts_if_it_is_of_that_name(place):
    raw, unicode = "ä.png".encode("cp437"), "ä.png".encode()
    for checked, expected in ((zlib.crc32(raw), "ä.png"), (1, raw.decode("cp437"))):
        field = struct.pack("<HHBI", 0x7075, 5 + len(unicode), 1, checked) + unicode
        with zipfile.ZipFile(place / "data.zip", "w") as file:
            member = zipfile.ZipInfo("X" * len(raw))
            member.extra = field
            file.writestr(member, b"x")
        renamed(place / "data.zip", {"X" * len(raw): raw})
        with open_source(place / "data.zip", place / "temp") as root:
            assert list(content_of(root)) == [expected]


def test_a_tar_name_that_is_not_utf8_is_refused_or_read_as_the_card_says(place):
    with tarfile.open(place / "data.tar", "w", encoding="gbk", format=tarfile.GNU_FORMAT) as file:
        info = tarfile.TarInfo("肝脏.png")
        info.size = 1
        file.addfile(info, io.BytesIO(b"x"))
    assert "not UTF-8" in refused(place / "data.tar").message
    (folder := place / "out").mkdir()
    unpack.unpack(place / "data.tar", folder, names="gbk")
    assert list(content_of(folder)) == ["肝脏.png"]


# --- bombs and damage -------------------------------------------------------------------------------------------------


def test_archives_in_an_archive_share_its_budget(place, monkeypatch):
    monkeypatch.setattr(unpack, "SMALL", 1 << 16)
    monkeypatch.setattr(unpack, "MAX_RATIO", 6)  # of each inner one 5.4, of all 6.4
    inner = zipped(place / "inner.zip", {"noise.png": os.urandom(20_000), "zeros.png": bytes(90_000)}).read_bytes()
    bomb = zipped(place / "data.zip", {f"{i}/inner.zip": inner for i in range(9)})
    (folder := place / "out").mkdir()
    with pytest.raises(DataError, match="unpack to") as error:
        unpack.unpack(bomb, folder, nested=["*/inner.zip"])
    assert error.value.reason == "unsafe_archive"
    (folder := place / "plain").mkdir()
    assert unpack.unpack(bomb, folder) == 9  # not unpacked further unasked


def test_nested_patterns_go_one_level_each_and_in_their_order(place):
    innermost = zipped(place / "x.zip", {"1.png": b"1"}).read_bytes()
    inner = tarred(place / "x.tar.gz", ("deep/x.zip", innermost, {}), mode="w:gz").read_bytes()
    (folder := place / "out").mkdir()
    patterns = ["*.tar.gz", "*/x.zip"]
    assert unpack.unpack(zipped(place / "data.zip", {"x.tar.gz": inner}), folder, nested=patterns) == 1
    assert content_of(folder) == {"x/deep/x/1.png": b"1"}
    clash = zipped(place / "data.zip", {"x.zip": innermost, "x/1.png": b""})
    (folder := place / "clash").mkdir()
    with pytest.raises(DataError, match="would unpack into a folder that exists"):
        unpack.unpack(clash, folder, nested=["x.zip"])


def test_too_many_members_are_refused_be_they_files_or_folders(place, monkeypatch):
    monkeypatch.setattr(unpack, "MAX_MEMBERS", 5)
    assert "more than 5" in refused(zipped(place / "data.zip", dict.fromkeys("abcdef", b""))).message
    folders = [(name, None, {"type": tarfile.DIRTYPE}) for name in "abcdef"]
    assert "more than 5" in refused(tarred(place / "data.tar", *folders)).message


def test_a_tar_header_that_declares_a_long_name_of_gigabytes_eats_no_memory(place):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    first = tarfile.TarInfo("good.png").tobuf()
    (place / "data.tar").write_bytes(first + header.tobuf(format=tarfile.GNU_FORMAT) + bytes(4096))
    assert "declares 8589934592 bytes" in refused(place / "data.tar", "unreadable").message


@pytest.mark.parametrize("size", [b"-512", b"-1000000"])
def test_a_tar_member_of_negative_size_does_not_send_the_reader_in_circles(place, size):
    record = b"%d size=%s\n"
    length = len(size) + 9
    content = record % (length, size)
    header = tarfile.TarInfo("PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(content)
    first = tarfile.TarInfo("good.png").tobuf()
    rest = header.tobuf() + content.ljust(512, b"\0") + tarfile.TarInfo("evil.png").tobuf() + bytes(1024)
    (place / "data.tar").write_bytes(first + rest)
    with pytest.raises(DataError) as error, open_source(place / "data.tar", place / "temp"):
        pytest.fail("opened")
    assert error.value.reason in ("unsafe_archive", "unreadable")


def test_a_damaged_header_in_the_middle_of_a_tar_is_no_end(place):
    """tarfile takes it for one: the rest of the files would be missing without a word."""
    whole = tarred(place / "data.tar", *[(f"{i}.png", bytes([i]) * 100, {}) for i in range(5)]).read_bytes()
    damaged = bytearray(whole)
    damaged[1024 + 150] ^= 255  # the checksum of the second member
    (place / "data.tar").write_bytes(damaged)
    assert "at byte 1024" in refused(place / "data.tar", "unreadable").message
    (place / "data.tar").write_bytes(whole[:2048])  # cut between two members
    assert "at byte 2048" in refused(place / "data.tar", "unreadable").message


def test_a_method_that_is_not_read_here_is_named_with_the_command_for_it(place):
    """Windows packs files of more than 2 GB by deflate64."""
    content = bytearray(zipped(place / "data.zip", {"a.png": b"x" * 100}).read_bytes())
    for magic, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(magic) + at] = 9
    (place / "data.zip").write_bytes(content)
    error = refused(place / "data.zip", "unsupported")
    assert "(deflate64)" in error.message and f"7z x {place / 'data.zip'} -o{place / 'data'}" in error.hint


def test_a_zip_in_several_volumes_is_told_as_such(place):
    content = bytearray(zipped(place / "data.zip", {"a.png": b"x"}).read_bytes())
    end = content.index(b"PK\x05\x06")
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 1, end, 3)
    (place / "data.zip").write_bytes(content[:end] + locator + content[end:])
    assert "one volume of a zip" in refused(place / "data.zip", "unsupported").message


def test_empty_folders_and_windows_paths_are_kept(place):
    archive = zipped(place / "data.zip", {"a\\b\\1.png": b"1", "c\\": b"", "d/": b""})
    with open_source(archive, place / "temp") as root:
        assert content_of(root) == {"a/b/1.png": b"1"}
        assert (root / "c").is_dir() and (root / "d").is_dir()


def whole_archives() -> list[bytes]:
    """A zip and tars of each kind, to be damaged."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz"):
            path = Path(folder) / f"x.{ending}"
            members = {"a/1.png": b"one" * 300, "a/" + "n" * 150: b"", "ü.csv": os.urandom(300)}
            if ending == "zip":
                zipped(path, members)
            else:
                mode = "w" if ending == "tar" else f"w:{ending[4:]}"
                tarred(path, *[(name, content, {}) for name, content in members.items()], mode=mode)
            made.append(path.read_bytes())
    return made


_how = st.sampled_from(["flip", "set", "cut", "insert", "copy"])
_edit = st.tuples(st.floats(0, 1, exclude_max=True), _how, st.binary())


@settings(max_examples=400, deadline=2000)
@given(st.integers(0, 4), st.lists(_edit, min_size=1, max_size=6))
def test_a_mutated_archive_unpacks_or_is_refused_and_writes_nothing_outside(tmp_path_factory, kind, edits):
    content = bytearray(_WHOLE[kind])
    for where, how, value in edits:
        at = int(where * len(content))
        if how == "flip" and content:
            content[at] ^= (value or b"\xff")[0] or 1
        elif how == "set":
            content[at : at + len(value)] = value
        elif how == "cut":
            del content[at : at + len(value) * 16]
        elif how == "insert":
            content[at:at] = value
        else:
            content[at:at] = content[max(0, at - 512) : at]
    place = tmp_path_factory.mktemp("mutated")
    (place / "archive").write_bytes(content)
    (inside := place / "one/inside").mkdir(parents=True)
    try:
        assert unpack.unpack(place / "archive", inside) == len(content_of(inside))
    except DataError as error:
        assert error.message.isprintable() and error.step == "unpack"
    outside = {path for path in place.rglob("*") if inside not in path.parents}
    assert outside == {place / "archive", place / "one", inside}


_WHOLE = whole_archives()
