"""`usdata fetch`: files come into their folder whole, go on after any end, and what can't be loaded is told exactly."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import yaml
from fakes.http_files import HttpFiles
from typer.testing import CliRunner

from ingest import fetch as fetching
from ingest import fetch_cli, fetch_doi
from ingest.card import Card, get_card, registered
from ingest.cli import app
from ingest.fetch import default_source, fetch
from ingest.fetch_answer import Patience
from ingest.fetch_words import fetch_rows, instructions
from ingest.unpack import open_source
from usdata.errors import CardError, DataError, LakeError

QUICK = Patience(connect=2, read=5, tries=2, pause=0.01, longest=0.02)
FILES = {"a/1.png": b"one", "a/2.png": b"two" * 500, "table.csv": b"x"}


def zipped(files: dict[str, bytes]) -> bytes:
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(name, content)
        return buffer.getvalue()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def web():
    with HttpFiles() as server:
        yield server


def card(*sources: dict, **more) -> Card:
    content = {"name": "mine", "title": "Mine", "citation": "none", "licence": "CC0-1.0", "deid_profile": "public"}
    content |= {"commercial_use": "yes", "redistribution": "yes", "sources": sources, "defaults": {"organ": "breast"}}
    return Card.model_validate(content | {"layout": {"image": r".*\.png"}} | more)


def get(chosen: Card, dest: Path, **options):
    return fetch(chosen, dest, patience=QUICK, **options)


def content_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def record_of(dest: Path) -> dict:
    return json.loads((dest / "mine/fetch.json").read_text())


# --- over the network -------------------------------------------------------------------------------------------------


def test_an_archive_is_loaded_unpacked_written_down_and_removed(web, tmp_path):
    content = zipped(FILES)
    web.put("/data.zip", content)
    report = get(card({"url": web.url("/data.zip")}), tmp_path)
    assert report.complete and report.files == 3 and report.loaded == ["data.zip"] and report.instructions is None
    assert content_of(tmp_path / "mine/files") == FILES
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [".lock", "fetch.json", "files"]
    assert record_of(tmp_path)["sources"]["data.zip"] == {
        "source": web.url("/data.zip"),
        "url": web.url("/data.zip"),
        "size": len(content),
        "sha256": sha(content),
        "files": 3,
    }
    before = (tmp_path / "mine/fetch.json").read_bytes()
    again = get(card({"url": web.url("/data.zip")}), tmp_path)
    assert again.complete and not again.loaded and len(web.log) == 1
    assert (tmp_path / "mine/fetch.json").read_bytes() == before


def test_the_same_bytes_give_the_same_record(web, tmp_path):
    web.put("/data.zip", zipped(FILES))
    for place in ("a", "b"):
        get(card({"url": web.url("/data.zip")}), tmp_path / place)
    assert (tmp_path / "a/mine/fetch.json").read_bytes() == (tmp_path / "b/mine/fetch.json").read_bytes()


def test_several_sources_come_together_each_below_its_folder(web, tmp_path):
    web.put("/one.zip", zipped({"1.png": b"1", "LICENSE": b"same"}))
    web.put("/two.zip", zipped({"1.png": b"2"}))
    web.put("/three.zip", zipped({"3.png": b"3", "LICENSE": b"same"}))
    web.put("/labels.csv?version=2", b"a,b")
    web.put("/book", zipped({"xl/sheet.xml": b"x"}))
    chosen = card(
        {"url": web.url("/one.zip")},
        {"url": web.url("/two.zip"), "into": "deep/two"},
        {"url": web.url("/three.zip")},
        {"url": web.url("/labels.csv?version=2")},
        {"url": web.url("/book"), "archive": "book.xlsx"},
    )
    report = get(chosen, tmp_path, keep_archive=True)
    found = content_of(tmp_path / "mine/files")
    assert set(found) == {"1.png", "deep/two/1.png", "3.png", "LICENSE", "labels.csv", "book.xlsx"}
    assert report.files == 6 and found["deep/two/1.png"] == b"2"
    kept = {path.name for path in (tmp_path / "mine/archives").iterdir()}
    assert kept == {"one.zip", "two.zip", "three.zip", "labels.csv", "book.xlsx"}


def test_two_sources_that_bring_different_files_of_one_name_are_refused(web, tmp_path):
    web.put("/one.zip", zipped({"a/1.png": b"1"}))
    web.put("/two.zip", zipped({"a/1.png": b"2"}))
    with pytest.raises(DataError, match=r"two\.zip brings '1\.png' too") as error:
        get(card({"url": web.url("/one.zip")}, {"url": web.url("/two.zip")}), tmp_path)
    assert error.value.reason == "clash" and "`into`" in error.value.hint
    web.put("/x/one.zip", zipped(FILES))
    with pytest.raises(CardError, match=r"Two sources bring a file 'one\.zip'"):
        get(card({"url": web.url("/one.zip")}, {"url": web.url("/x/one.zip")}), tmp_path / "b")


def test_an_archive_in_the_archive_is_unpacked_where_the_card_says_so(web, tmp_path):
    inner = zipped({"1_or_data/1.PNG": b"x"})
    web.put("/t.zip", zipped({"DDTI dataset/DDTI.zip": inner, "tn3k/1.jpg": b"y"}))
    get(card({"url": web.url("/t.zip"), "nested": ["*/DDTI.zip"]}), tmp_path)
    assert set(content_of(tmp_path / "mine/files")) == {"DDTI dataset/DDTI/1_or_data/1.PNG", "tn3k/1.jpg"}
    get(card({"url": web.url("/t.zip")}), tmp_path / "plain")
    assert content_of(tmp_path / "plain/mine/files")["DDTI dataset/DDTI.zip"] == inner
    with pytest.raises(DataError, match=r"has no 'other\.zip' in it"):
        get(card({"url": web.url("/t.zip"), "nested": "other.zip"}), tmp_path / "wrong")


def test_mirrors_and_checksums_of_the_card_are_used(web, tmp_path):
    content = zipped(FILES)
    web.put("/data.zip", zipped({"evil.png": b"x"}))
    web.put("/mirror.zip", content)
    chosen = card({"url": web.url("/data.zip"), "mirrors": [web.url("/mirror.zip")], "sha256": sha(content)})
    said = []
    report = get(chosen, tmp_path, say=said.append)
    assert report.complete and content_of(tmp_path / "mine/files") == FILES
    assert any("/data.zip: its sha256 is" in line for line in said)


def test_when_no_address_has_it_the_message_says_what_each_did_and_how_to_go_on(web, tmp_path):
    with pytest.raises(DataError) as error:
        get(card({"url": web.url("/data.zip"), "page": "https://example.org/data"}), tmp_path / "x")
    assert "/data.zip: there is no such file (404)" in error.value.message and error.value.dataset == "mine"
    assert f"usdata fetch mine --to {tmp_path / 'x'}" in error.value.hint
    assert "by hand: load data.zip from https://example.org/data, put it into " in error.value.hint
    (tmp_path / "x/mine/data.zip").write_bytes(zipped(FILES))  # as the message says
    report = get(card({"url": web.url("/data.zip"), "page": "https://example.org/data"}), tmp_path / "x")
    assert report.complete and report.taken == ["data.zip"] and (tmp_path / "x/mine/data.zip").exists()
    assert get(card({"url": web.url("/data.zip")}), tmp_path / "x").complete and len(web.log) == 1


def test_other_bytes_than_the_first_time_are_refused_until_accepted(web, tmp_path):
    chosen = card({"url": web.url("/data.zip")})
    web.put("/data.zip", zipped(FILES))
    get(chosen, tmp_path)
    other = zipped({"new.png": b"new"})
    web.put("/data.zip", other)
    with pytest.raises(DataError, match="other bytes than when it was first fetched") as error:
        get(chosen, tmp_path, again=True)
    assert f"usdata fetch mine --to {tmp_path} --again --accept-bytes {sha(other)}" in error.value.hint
    assert content_of(tmp_path / "mine/files") == FILES and get(chosen, tmp_path).complete  # all as it was
    get(chosen, tmp_path, again=True, accept_bytes=[sha(other)])
    assert content_of(tmp_path / "mine/files") == {"new.png": b"new"}
    assert record_of(tmp_path)["sources"]["data.zip"]["sha256"] == sha(other)


def test_lost_files_are_noticed_and_loaded_again_on_demand(web, tmp_path):
    chosen = card({"url": web.url("/data.zip")})
    web.put("/data.zip", zipped(FILES))
    get(chosen, tmp_path)
    (tmp_path / "mine/files/a/1.png").unlink()
    with pytest.raises(DataError, match="has lost something: 2 files") as error:
        get(chosen, tmp_path)
    assert error.value.hint.endswith("--again")
    get(chosen, tmp_path, again=True)
    assert content_of(tmp_path / "mine/files") == FILES


def test_a_new_source_in_the_card_is_loaded_besides(web, tmp_path):
    web.put("/data.zip", zipped(FILES))
    web.put("/more.zip", zipped({"more.png": b"m"}))
    get(card({"url": web.url("/data.zip")}), tmp_path)
    report = get(card({"url": web.url("/data.zip")}, {"url": web.url("/more.zip")}), tmp_path)
    assert report.loaded == ["more.zip"] and report.files == 4


def test_an_unsafe_or_damaged_archive_leaves_nothing_in_place(web, tmp_path):
    for number, content in enumerate((zipped({"../evil.png": b"x"}), zipped(FILES)[:-30], b"not an archive" * 100)):
        web.put("/data.zip", content)
        with pytest.raises(DataError) as error:
            get(card({"url": web.url("/data.zip")}), tmp_path / str(number))
        assert error.value.dataset == "mine" and error.value.hint
        assert not (tmp_path / str(number) / "mine/files").exists()
        assert not (tmp_path / str(number) / "mine/.unpacking").exists()
        with pytest.raises(DataError, match="Not all files"), open_source(tmp_path / str(number) / "mine"):
            pytest.fail("opened")
    assert not list(tmp_path.rglob("evil.png"))


def test_a_foreign_archive_is_kept_and_the_command_to_unpack_it_told(web, tmp_path):
    web.put("/data.7z", b"7z\xbc\xaf\x27\x1c" + bytes(500))
    chosen = card({"url": web.url("/data.7z")})
    report = get(chosen, tmp_path)
    assert not report.complete
    assert f"7z x {tmp_path}/mine/archives/data.7z -o{tmp_path}/mine/files" in report.instructions
    (tmp_path / "mine/files").mkdir()
    (tmp_path / "mine/files/1.png").write_bytes(b"1")  # as that command would
    report = get(chosen, tmp_path)
    assert report.complete and report.taken == ["data.7z"] and len(web.log) == 1
    assert content_of(tmp_path / "mine/files") == {"1.png": b"1"}


def test_a_doi_is_resolved_to_its_files_by_pooch(web, tmp_path, monkeypatch):
    content = zipped(FILES)
    web.put("/1/data.zip", content)
    web.put("/1/labels.csv", b"a")

    class Repository:
        def populate_registry(self, registry):
            registry.registry["data.zip"] = f"md5:{hashlib.md5(content).hexdigest()}"
            registry.registry["labels.csv"] = ""

        def download_url(self, name):
            if name not in ("data.zip", "labels.csv"):
                raise ValueError(f"File '{name}' not found in data archive")
            return web.url(f"/1/{name}")

    asked = []
    monkeypatch.setattr("pooch.downloaders.doi_to_repository", lambda doi, **_: asked.append(doi) or Repository())
    one = card({"url": "doi:10.5281/zenodo.1/data.zip"})
    assert get(one, tmp_path / "a").files == 3 and asked == ["10.5281/zenodo.1"]
    assert get(card({"url": "doi:10.5281/zenodo.1"}), tmp_path / "b").loaded == ["data.zip", "labels.csv"]
    assert get(one, tmp_path / "a").complete and len(asked) == 2  # complete: nobody is asked
    with pytest.raises(DataError, match="not found in data archive") as error:
        get(card({"url": "doi:10.5281/zenodo.1/none.zip"}), tmp_path / "c")
    assert error.value.dataset == "mine" and "put it into" in error.value.hint
    with pytest.raises(DataError, match="holds 2 files"):
        get(card({"url": "doi:10.5281/zenodo.1", "archive": "all.zip"}), tmp_path / "c")
    web.put("/1/data.zip", zipped({"evil.png": b"x"}))
    with pytest.raises(DataError, match="its md5 is"):
        get(one, tmp_path / "d")


@pytest.mark.parametrize("name", ["../evil", ".hidden", "a\\b", "a\nb"])
def test_a_repository_can_not_name_a_file_outside_the_folder(monkeypatch, name):
    class Repository:
        def populate_registry(self, registry):
            registry.registry[name] = "md5:0"

        def download_url(self, _):
            return "http://127.0.0.1:9/x"

    monkeypatch.setattr("pooch.downloaders.doi_to_repository", lambda doi, **_: Repository())
    with pytest.raises(DataError, match="a file with the name"):
        fetch_doi.resolve("doi:10.5281/zenodo.1", QUICK)


@pytest.mark.parametrize(
    "source",
    [
        {"url": "ftp://a.org/x.zip"},
        {"url": "file:///etc/passwd"},
        {"url": "https://a.org"},
        {"url": "https://a.org/x.zip", "mirrors": ["file:///x"]},
        {"url": "https://a.org/x.zip", "into": "../up"},
        {"url": "https://a.org/x.zip", "into": "/etc"},
        {"url": "https://a.org/x.zip", "archive": "../x.zip"},
        {"url": "https://a.org/x.zip", "archive": ".fetch"},
        {"url": "https://a.org/x.zip", "nested": ["../x.zip"]},
        {"url": "https://a.org/x.zip", "names": "klingon"},
    ],
)
def test_a_card_can_not_lead_elsewhere(source):
    with pytest.raises(ValueError, match="sources"):
        card(source)


# --- ended in the middle, and two at once -----------------------------------------------------------------------------

CHILD = """
import sys; from pathlib import Path
from ingest.card import Card; from ingest.fetch import fetch
report = fetch(Card.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
print(report.loaded, report.files)
"""


def start(chosen: Card, dest: Path) -> subprocess.Popen:
    dest.mkdir(exist_ok=True)
    (dest / "card.json").write_text(chosen.model_dump_json(by_alias=True, exclude_defaults=True))
    command = [sys.executable, "-c", CHILD, str(dest / "card.json"), str(dest)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_fetch_that_is_killed_goes_on_and_a_second_one_meanwhile_is_refused(web, tmp_path):
    content = zipped({"big.png": os.urandom(200_000)})
    served = web.put("/data.zip", content, gate=threading.Event())
    chosen = card({"url": web.url("/data.zip")})
    child = start(chosen, tmp_path)
    assert served.reached.wait(60)
    part = tmp_path / "mine/archives/data.zip.part"
    while not part.exists() or part.stat().st_size < 50_000:  # the rest comes only when the gate opens
        pass
    with pytest.raises(DataError, match=rf"Another process is fetching .*process {child.pid}") as error:
        get(chosen, tmp_path)
    assert error.value.reason == "busy"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    served.gate.set()
    size = part.stat().st_size
    assert 0 < size < len(content)
    report = get(chosen, tmp_path)
    assert report.complete and (tmp_path / "mine/files/big.png").stat().st_size == 200_000
    assert web.asked("/data.zip")[-1]["range"] == f"bytes={size}-"


@pytest.mark.parametrize("moment", ["unpacking", "merged", "written", "removed"])
def test_a_fetch_killed_while_it_puts_files_in_place_goes_on(web, tmp_path, monkeypatch, moment):
    web.put("/one.zip", zipped(FILES))
    web.put("/two.zip", zipped({"two.png": b"2", "a/3.png": b"3"}))
    chosen = card({"url": web.url("/one.zip")}, {"url": web.url("/two.zip")})
    names = {"unpacking": "unpack", "merged": "merge", "written": "write_record", "removed": "count_files"}
    original = getattr(fetching, names[moment])

    class Killed(BaseException):
        pass

    def dies(*args, **options):
        result = original(*args, **options)
        if moment != "written" or args[1].sources:
            monkeypatch.setattr(fetching.shutil, "rmtree", lambda *_, **__: None)  # a kill cleans nothing up
            raise Killed
        return result

    monkeypatch.setattr(fetching, names[moment], dies)
    with pytest.raises(Killed):
        get(chosen, tmp_path)
    monkeypatch.undo()
    with pytest.raises(DataError, match="Not all files"), open_source(tmp_path / "mine"):
        pytest.fail("opened")
    assert get(chosen, tmp_path).complete
    assert content_of(tmp_path / "mine/files") == FILES | {"two.png": b"2", "a/3.png": b"3"}
    assert not (tmp_path / "mine/archives").exists()


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_what_can_not_be_loaded_is_told_step_by_step_and_taken_in_when_it_is_there(tmp_path):
    chosen = card(
        {
            "page": "https://example.org/form",
            "how": "registration",
            "archive": "Data.zip",
            "steps": "Fill it in.",
        },
        {"page": "https://www.kaggle.com/datasets/me/data-1", "how": "kaggle"},
    )
    report = get(chosen, tmp_path)
    told = report.instructions
    assert not report.complete
    for words in (
        "Register at https://example.org/form",
        "Fill it in.",
        "kaggle datasets download me/data-1",
        f"Put Data.zip into {tmp_path}/mine/ as it is",
        f"usdata fetch mine --to {tmp_path}",
    ):
        assert words in told, told
    (tmp_path / "mine/Data.zip").write_bytes(zipped(FILES))
    report = get(chosen, tmp_path)
    assert report.complete and report.taken == ["Data.zip"] and content_of(tmp_path / "mine/files") == FILES
    assert (tmp_path / "mine/Data.zip").exists()  # not ours to remove
    assert record_of(tmp_path)["sources"]["Data.zip"]["source"] == "by hand"


def test_files_that_a_person_unpacked_are_taken_as_they_are(tmp_path):
    chosen = card({"page": "https://example.org/form", "how": "request"})
    get(chosen, tmp_path)
    (tmp_path / "mine/files/a").mkdir(parents=True)
    (tmp_path / "mine/files/a/1.png").write_bytes(b"1")
    report = get(chosen, tmp_path)
    assert report.complete and report.taken == ["files"]
    with pytest.raises(DataError, match="files that you put there"):
        get(chosen, tmp_path, again=True)


def test_an_archive_under_another_name_is_pointed_out_or_taken_where_no_name_is_known(tmp_path):
    named = card({"page": "https://example.org", "archive": "Data.zip"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/archive (1).zip").write_bytes(zipped(FILES))
    (tmp_path / "mine/Data").mkdir()
    told = get(named, tmp_path).instructions
    assert (
        "holds archive (1).zip, but not Data.zip" in told and f"mv {tmp_path}/mine/Data {tmp_path}/mine/files/" in told
    )
    assert get(card({"page": "https://example.org", "how": "kaggle"}), tmp_path).taken == ["archive (1).zip"]


def test_all_archives_of_one_page_are_needed_and_other_pages_are_other_ways(tmp_path):
    page = "https://example.org"
    chosen = card({"page": page, "archive": "A.zip"}, {"page": page, "archive": "B.zip"}, {"page": "https://b.org/x"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/A.zip").write_bytes(zipped({"a.png": b"a"}))
    assert not get(chosen, tmp_path).complete
    (tmp_path / "mine/B.zip").write_bytes(zipped({"b.png": b"b"}))
    assert get(chosen, tmp_path).complete and len(content_of(tmp_path / "mine/files")) == 2


def test_a_part_that_can_be_loaded_does_not_stand_in_for_one_that_can_not(web, tmp_path):
    """KidneyUS: the labels lie in a repository, the images come after a registration."""
    web.put("/labels.zip", zipped({"labels/1.csv": b"x"}))
    chosen = card(
        {"page": "https://example.org/form", "how": "registration", "part": "images", "into": "images"},
        {"url": web.url("/labels.zip"), "part": "labels"},
    )
    report = get(chosen, tmp_path)
    assert report.loaded == ["labels.zip"] and not report.complete and "Needed: images." in report.instructions
    (tmp_path / "mine/images.zip").write_bytes(zipped({"1.png": b"1"}))
    report = get(chosen, tmp_path)
    assert report.complete and set(content_of(tmp_path / "mine/files")) == {"labels/1.csv", "images/1.png"}


def test_a_clone_does_not_stand_in_for_the_images_either(tmp_path):
    chosen = card(
        {"page": "https://example.org/form", "how": "registration", "part": "images"},
        {"page": "https://github.com/someone/kidney", "how": "git", "part": "labels"},
    )
    told = get(chosen, tmp_path).instructions
    clone = tmp_path / "mine/files/kidney"
    assert f"git clone --depth 1 https://github.com/someone/kidney {clone} && rm -rf {clone}/.git" in told
    clone.mkdir(parents=True)
    (clone / "labels.csv").write_text("x")
    told = get(chosen, tmp_path).instructions
    assert "Needed: images." in told and "labels" not in told
    (tmp_path / "mine/files/1.png").write_bytes(b"1")
    assert get(chosen, tmp_path).complete


def test_a_wrong_archive_put_there_by_hand_is_refused(tmp_path):
    chosen = card({"page": "https://example.org", "archive": "Data.zip", "md5": "0" * 32})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/Data.zip").write_bytes(zipped(FILES))
    with pytest.raises(DataError, match="its md5 is") as error:
        get(chosen, tmp_path)
    assert error.value.reason == "bad_checksum" and not (tmp_path / "mine/files").exists()


def test_another_archive_than_the_first_time_is_refused_by_hand_too(tmp_path):
    chosen = card({"page": "https://example.org", "archive": "Data.zip"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/Data.zip").write_bytes(zipped(FILES))
    get(chosen, tmp_path)
    other = zipped({"new.png": b"n"})
    (tmp_path / "mine/Data.zip").write_bytes(other)
    with pytest.raises(DataError, match="other bytes than when it was first taken") as error:
        get(chosen, tmp_path, again=True)
    assert sha(other) in error.value.hint
    assert get(chosen, tmp_path, again=True, accept_bytes=[sha(other)]).complete
    assert content_of(tmp_path / "mine/files") == {"new.png": b"n"}


@pytest.mark.parametrize("name", registered())
def test_every_card_says_how_to_get_its_files(name, tmp_path):
    chosen = get_card(name)
    rows = fetch_rows(chosen, tmp_path)
    if chosen.generator:
        with pytest.raises(CardError, match="nothing to fetch"):
            fetch(chosen, tmp_path)
        return
    assert rows or chosen.needs, f"{name}: give the card sources, or say what it needs"
    (tmp_path / name).mkdir()
    parts = list(dict.fromkeys(source.part for source in chosen.sources)) or ["files"]
    told = instructions(chosen, parts, tmp_path / name)
    assert f"usdata fetch {name} --to {tmp_path}" in told and "None" not in told
    assert all(source.page in told or source.url for source in chosen.sources if source.page)


# --- the folder and the verbs -----------------------------------------------------------------------------------------


def test_a_fetched_folder_is_read_like_the_files_in_it(web, tmp_path, monkeypatch):
    web.put("/data.zip", zipped(FILES))
    chosen = card({"url": web.url("/data.zip")})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CardError, match="Where are the files of 'mine'") as error:
        default_source(chosen)
    assert "usdata fetch mine" in error.value.hint
    get(chosen, Path("sources"))
    with open_source(default_source(chosen)) as folder:
        assert content_of(folder) == FILES
    (tmp_path / "sources/mine/fetch.json").write_text('{"format": "usdata fetch 1", "sources": 3}')
    with pytest.raises(DataError, match="damaged"):
        default_source(chosen)
    (tmp_path / "sources/mine/fetch.json").write_text('{"mine": 1}')  # somebody else's file of that name
    with open_source(Path("sources/mine")) as folder:
        assert folder == Path("sources/mine")


def test_a_place_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LakeError, match="Can't write") as error:
        get(card({"page": "https://example.org"}), tmp_path / "file")
    assert "--to DIR" in error.value.hint


@pytest.fixture
def verb(monkeypatch, tmp_path):
    """The command line, with cards of our own in the place of the registered ones."""
    cards: dict[str, Card] = {}
    monkeypatch.setattr("ingest.card.get_card", lambda name: cards.get(name) or get_card(name))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **chosen: Card):
        cards.update(chosen)
        return CliRunner().invoke(app, list(arguments))

    return run


def test_the_verb_ends_with_0_only_when_the_files_are_there(web, verb, tmp_path):
    web.put("/data.zip", zipped(FILES))
    by_hand = card({"page": "https://example.org", "archive": "Data.zip"}, name="hand")
    done = verb("fetch", "mine", mine=card({"url": web.url("/data.zip")}), hand=by_hand)
    assert done.exit_code == 0 and "mine: loaded data.zip; 3 files" in done.stdout
    assert "Next:  usdata ingest mine\n" in done.stdout
    done = verb("fetch", "hand")
    assert done.exit_code == 1 and "Put Data.zip into sources/hand/" in done.stdout
    done = verb("fetch", "mine", "hand", "--json")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert done.exit_code == 1 and first["complete"] and first["files"] == 3
    assert not second["complete"] and "usdata fetch hand" in second["instructions"]


def test_one_failure_does_not_keep_the_others(web, verb):
    web.put("/data.zip", zipped(FILES))
    bad = card({"url": web.url("/none.zip")}, name="bad")
    done = verb("fetch", "bad", "mine", "--json", mine=card({"url": web.url("/data.zip")}), bad=bad)
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert done.exit_code == 1 and first["error"]["reason"] == "not_loaded" and second["complete"]


def test_a_dry_run_asks_no_server_and_writes_nothing(web, verb, tmp_path):
    done = verb("fetch", "mine", "--dry-run", "--json", mine=card({"url": web.url("/data.zip"), "size": 7}))
    row = json.loads(done.stdout)
    assert done.exit_code == 0 and row["from"] == web.url("/data.zip") and row["bytes"] == 7
    assert not web.log and not (tmp_path / "sources").exists()


def test_the_module_of_the_verb_imports_nothing_heavy():
    code = (
        "import sys, ingest.cli; print([m for m in ('requests', 'pooch', 'numpy', 'ingest.fetch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert fetch_cli.app


def test_every_error_names_a_command_that_exists(verb):
    told = verb("fetch", "--help").stdout
    for option in re.findall(r"--[a-z][a-z-]+", Path(fetching.__file__).read_text()):
        assert option in told + "--from --card --lake --accept-terms"


# --- docs/fetch.md ----------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs/fetch.md").read_text()


def test_the_commands_of_the_page_are_right(verb):
    """Each is run up to the place where it would ask a server or a person."""
    commands = re.findall(r"^usdata (\w+ .*?)(?: +#.*)?$", PAGE, re.M)
    assert len(commands) == 5
    for command in commands:
        words = command.split()
        dry = verb(*words, "--dry-run")
        if words[0] == "fetch":
            assert dry.exit_code == 0, dry.output
        else:  # nothing was fetched here
            assert isinstance(dry.exception, CardError) and "Where are the files" in dry.exception.message


def test_the_card_of_the_page_is_one():
    [text] = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    sources = card(*yaml.safe_load(text)["sources"]).sources
    assert len(sources) == 3 and {source.part for source in sources} == {"files", "raw"}


def test_the_steps_of_the_page_are_what_the_program_prints(verb):
    done = verb("fetch", "busi")
    assert done.exit_code == 1 and "sources/busi/" in done.stdout and "sources/busi/files/" in done.stdout
