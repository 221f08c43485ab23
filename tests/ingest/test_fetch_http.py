"""One file over HTTP from servers that fail in every way: it arrives whole and right, or the message says why not."""

import gzip
import hashlib
import json
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.http_files import HttpFiles
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import fetch_http
from ingest.fetch_answer import Patience, Wanted, shown
from ingest.fetch_http import Download
from usdata.errors import DataError

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
OTHER = CONTENT[::-1]
QUICK = Patience(connect=5, read=5, tries=3, pause=0.01, longest=0.02, slow_bytes=1000, slow_seconds=0.3)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def web():
    with HttpFiles() as server:
        yield server


def load(web: HttpFiles, folder: Path, *paths: str, name="data.bin", say=None, anew=False, patience=QUICK, **known):
    urls = tuple(path if "://" in path else web.url(path) for path in paths or ("/data.bin",))
    download = Download(Wanted(name, urls, **known), folder, patience, say=say or (lambda line: None))
    return download.run(anew)


def failure(web: HttpFiles, folder: Path, *paths: str, **known) -> DataError:
    with pytest.raises(DataError) as error:
        load(web, folder, *paths, **known)
    assert error.value.step == "fetch" and error.value.hint
    assert not (folder / known.get("name", "data.bin")).exists()
    return error.value


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_with_its_hash_and_nothing_else_is_left(web, tmp_path):
    web.put("/data.bin", CONTENT)
    arrived = load(web, tmp_path, size=len(CONTENT), sha256=sha(CONTENT), md5=hashlib.md5(CONTENT).hexdigest())
    assert arrived.path.read_bytes() == CONTENT and arrived.sha256 == sha(CONTENT)
    assert names(tmp_path) == ["data.bin"]
    assert web.asked("/data.bin")[0]["accept-encoding"] == "identity"
    assert load(web, tmp_path).url is None and len(web.log) == 1  # not asked for again


@pytest.mark.parametrize("how", [{"etag": '"x"'}, {"etag": None, "modified": "Sat, 01 Jan 2022 00:00:00 GMT"}])
def test_a_cut_download_goes_on_where_it_stopped(web, tmp_path, how):
    web.put("/data.bin", CONTENT, cuts=[4000, 1000], **how)
    assert load(web, tmp_path).path.read_bytes() == CONTENT
    asked = web.asked("/data.bin")
    assert [one.get("range") for one in asked] == [None, "bytes=4000-", "bytes=5000-"]
    assert asked[1]["if-range"] == (how["etag"] or how["modified"])


def test_the_next_run_goes_on_too(web, tmp_path):
    web.put("/data.bin", CONTENT, cuts=[4000, 0, 0])
    assert "the connection broke after 0 bytes, 3 times in a row" in failure(web, tmp_path).message
    assert names(tmp_path) == ["data.bin.part", "data.bin.part.json"]
    assert load(web, tmp_path).path.read_bytes() == CONTENT
    assert web.asked("/data.bin")[-1]["range"] == "bytes=4000-"


def test_a_part_that_was_whole_when_the_run_was_killed_is_not_asked_for_again(web, tmp_path):
    web.put("/data.bin", CONTENT, cuts=[10_000])
    load(web, tmp_path)
    (tmp_path / "data.bin").rename(tmp_path / "data.bin.part")
    note = f'{{"url": "{web.url("/data.bin")}", "total": 10240, "validator": "\\"one\\"", "packed": false}}'
    (tmp_path / "data.bin.part.json").write_text(note)
    before = len(web.log)
    assert load(web, tmp_path).path.read_bytes() == CONTENT and len(web.log) == before


def test_a_server_that_ignores_ranges_is_taken_from_the_beginning(web, tmp_path):
    web.put("/data.bin", CONTENT, cuts=[4000, 2000], ranges=False)
    said = []
    assert load(web, tmp_path, say=said.append).path.read_bytes() == CONTENT
    assert any("begins anew" in line for line in said)


def test_a_file_that_changed_in_the_middle_is_taken_from_the_beginning(web, tmp_path):
    served = web.put("/data.bin", CONTENT, cuts=[4000, 0, 0])
    failure(web, tmp_path)
    served.content, served.etag = OTHER, '"two"'
    assert load(web, tmp_path).path.read_bytes() == OTHER


def test_a_server_that_goes_on_with_another_file_is_found_out(web, tmp_path):
    """It ignores If-Range; its new ETag tells."""
    served = web.put("/data.bin", CONTENT, cuts=[4000, 0, 0])
    failure(web, tmp_path)
    served.content, served.etag = OTHER, '"two"'
    served.heeds_if_range = False
    said = []
    assert load(web, tmp_path, say=said.append).path.read_bytes() == OTHER
    assert any("does not fit" in line for line in said)


def test_without_etag_date_or_checksum_a_part_is_not_trusted(web, tmp_path):
    web.put("/data.bin", CONTENT, cuts=[4000], etag=None)
    assert load(web, tmp_path).path.read_bytes() == CONTENT
    assert [one.get("range") for one in web.asked("/data.bin")] == [None, None]
    weak = web.put("/weak.bin", CONTENT, cuts=[4000], etag='W/"x"')
    assert load(web, tmp_path, "/weak.bin", name="weak.bin").path.read_bytes() == weak.content
    assert [one.get("range") for one in web.asked("/weak.bin")] == [None, None]


def test_with_a_checksum_a_part_goes_on_at_a_mirror_and_is_right_or_begins_anew(web, tmp_path):
    web.put("/data.bin", CONTENT, cuts=[4000, 0, 0, 0], etag=None)
    web.put("/mirror.bin", CONTENT, etag=None)
    assert load(web, tmp_path, "/data.bin", "/mirror.bin", sha256=sha(CONTENT)).url == web.url("/mirror.bin")
    assert web.asked("/mirror.bin")[0]["range"] == "bytes=4000-"
    web.put("/wrong.bin", OTHER, cuts=[4000, 0, 0, 0])
    arrived = load(web, tmp_path, "/wrong.bin", "/mirror.bin", sha256=sha(CONTENT), anew=True)
    assert arrived.path.read_bytes() == CONTENT  # 4000 bytes of another file came first


def test_a_wrong_content_range_is_never_pasted(web, tmp_path):
    web.put("/data.bin", CONTENT, cuts=[4000], range_start=3000)
    said = []
    assert load(web, tmp_path, say=said.append).path.read_bytes() == CONTENT
    assert any("does not fit" in line for line in said)


def test_errors_that_pass_are_waited_for_and_others_are_not(web, tmp_path):
    web.put("/data.bin", CONTENT, statuses=[503, 429], headers={"Retry-After": "0"})
    said = []
    assert load(web, tmp_path, say=said.append).path.read_bytes() == CONTENT
    assert ["503" in said[0], "429" in said[1]] == [True, True] and "again in" in said[0]
    for status, word in ((404, "there is no such file (404)"), (403, "wants a login"), (418, "answers 418")):
        web.put("/bad.bin", always=status)
        before = len(web.log)
        assert word in failure(web, tmp_path, "/bad.bin", name="bad.bin").message
        assert len(web.log) == before + 1
    web.put("/busy.bin", always=500)
    assert "the server answers 500, 3 times in a row" in failure(web, tmp_path, "/busy.bin", name="b").message


def test_mirrors_come_in_their_order_and_each_failure_is_told(web, tmp_path):
    web.put("/gone.bin", always=404)
    web.put("/data.bin", CONTENT)
    said = []
    arrived = load(web, tmp_path, "/gone.bin", "http://127.0.0.1:9/x", "/data.bin", say=said.append)
    assert arrived.url == web.url("/data.bin")
    assert "/gone.bin: there is no such file (404)" in said[0] and "127.0.0.1:9/x: no connection" in said[-1]
    message = failure(web, tmp_path, "/gone.bin", "/none.bin", name="y").message
    assert "/gone.bin: there is no such file" in message and "/none.bin: there is no such file" in message


def test_a_wrong_length_is_a_cut_file(web, tmp_path):
    web.put("/long.bin", CONTENT, length=len(CONTENT) + 50, ranges=False)
    assert "the connection broke after 10240 bytes" in failure(web, tmp_path, "/long.bin").message
    web.put("/short.bin", CONTENT, length=100)
    with pytest.raises(DataError, match="the card says 10240"):
        load(web, tmp_path, "/short.bin", size=len(CONTENT))
    web.put("/size.bin", CONTENT)
    assert "it has 10240 bytes; the card says 7" in failure(web, tmp_path, "/size.bin", size=7).message
    assert not any(name == "data.bin" for name in names(tmp_path))


@pytest.mark.parametrize("how", [{"chunked": True}, {"unframed": True}])
def test_a_file_without_a_length_arrives(web, tmp_path, how):
    web.put("/data.bin", CONTENT, **how)
    assert load(web, tmp_path).path.read_bytes() == CONTENT


def test_a_cut_in_chunks_is_seen(web, tmp_path):
    web.put("/data.bin", CONTENT, chunked=True, cuts=[4000], etag=None)
    said = []
    assert load(web, tmp_path, say=said.append).path.read_bytes() == CONTENT
    assert "the connection broke" in said[0]


def test_more_than_was_announced_is_refused(web, tmp_path):
    web.put("/data.bin", CONTENT, chunked=True)
    assert "it sends more than 5000 bytes" in failure(web, tmp_path, size=5000).message
    assert names(tmp_path) == []


def test_a_wrong_checksum_is_refused_and_the_right_one_of_a_mirror_taken(web, tmp_path):
    web.put("/data.bin", OTHER)
    for known in ({"sha256": sha(CONTENT)}, {"md5": hashlib.md5(CONTENT).hexdigest()}):
        assert "the card says" in failure(web, tmp_path, **known).message
        assert names(tmp_path) == []
    web.put("/mirror.bin", CONTENT)
    assert load(web, tmp_path, "/data.bin", "/mirror.bin", sha256=sha(CONTENT)).path.read_bytes() == CONTENT


def test_a_file_that_lies_there_with_a_wrong_checksum_is_not_used(web, tmp_path):
    (tmp_path / "data.bin").write_bytes(OTHER)
    with pytest.raises(DataError, match="its sha256 is") as error:
        load(web, tmp_path, sha256=sha(CONTENT))
    assert error.value.reason == "bad_checksum" and "rm " in error.value.hint


def test_other_bytes_than_the_first_time_are_refused_kept_and_taken_when_accepted(web, tmp_path):
    web.put("/data.bin", OTHER)
    error = failure(web, tmp_path, trusted=sha(CONTENT))
    assert error.reason == "changed_bytes" and f"--accept-bytes {sha(OTHER)}" in error.hint
    assert names(tmp_path) == ["data.bin.changed"]
    before = len(web.log)
    assert load(web, tmp_path, trusted=sha(CONTENT), accepted=frozenset([sha(OTHER)])).sha256 == sha(OTHER)
    assert len(web.log) == before and names(tmp_path) == ["data.bin"]


def test_a_mirror_with_the_trusted_bytes_saves_the_day(web, tmp_path):
    web.put("/data.bin", OTHER)
    web.put("/mirror.bin", CONTENT)
    assert load(web, tmp_path, "/data.bin", "/mirror.bin", trusted=sha(CONTENT)).sha256 == sha(CONTENT)
    assert names(tmp_path) == ["data.bin"]


def test_redirects_are_followed_but_not_in_circles_and_not_to_files(web, tmp_path):
    web.put("/data.bin", CONTENT)
    web.put("/moved", redirect="/data.bin")
    assert load(web, tmp_path, "/moved").path.read_bytes() == CONTENT
    web.put("/loop", redirect="/loop")
    assert "redirects" in failure(web, tmp_path, "/loop", name="l").message
    assert len(web.asked("/loop")) == fetch_http.MAX_REDIRECTS + 1
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"):
        web.put("/evil", redirect=target)
        assert "only http and https" in failure(web, tmp_path, "/evil", name="e").message
    assert "only http and https" in failure(web, tmp_path, "file:///etc/passwd", name="f").message


def test_a_redirect_from_https_to_http_needs_a_checksum():
    download = Download(Wanted("x", ()), Path())
    with pytest.raises(Exception, match="anybody could change"):
        download._redirected("https://a.org/x", "http://b.org/x")
    assert Download(Wanted("x", (), sha256="0" * 64), Path())._redirected("https://a.org/x", "http://b.org/x")
    assert download._redirected("https://a.org/x/y", "../z?k=1") == "https://a.org/z?k=1"


def test_a_page_instead_of_a_file_is_told_as_such(web, tmp_path):
    """Google Drive answers so when a file is large, or too many people have loaded it."""
    page = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head>" + b" " * 3000
    for content in (page, page[:90]):
        web.put("/data.zip", content, headers={"Content-Type": "text/html; charset=utf-8"})
        error = failure(web, tmp_path, "/data.zip", name="data.zip")
        assert "a web page ('Google Drive - Virus scan warning') instead of the file" in error.message
        assert names(tmp_path) == [] and len(web.asked("/data.zip")) <= 2
    web.put("/page.html", page)
    assert load(web, tmp_path, "/page.html", name="page.html").path.read_bytes() == page


def test_a_server_that_compresses_unasked_gives_the_file_itself(web, tmp_path):
    packed = gzip.compress(CONTENT)
    web.put("/data.bin", packed, headers={"Content-Encoding": "gzip"})
    assert load(web, tmp_path, sha256=sha(CONTENT)).path.read_bytes() == CONTENT
    web.put("/cut.bin", packed, headers={"Content-Encoding": "gzip"}, cuts=[len(packed) // 2])
    assert load(web, tmp_path, "/cut.bin", name="cut.bin").path.read_bytes() == CONTENT
    web.put("/data.tar.gz", packed, headers={"Content-Encoding": "x-gzip"})  # Apache says so of any .gz
    assert load(web, tmp_path, "/data.tar.gz", name="data.tar.gz").path.read_bytes() == packed
    web.put("/br.bin", CONTENT, headers={"Content-Encoding": "br"})
    assert "sent as 'br'" in failure(web, tmp_path, "/br.bin", name="br.bin").message


def test_a_bomb_in_the_encoding_stops_at_the_size_that_may_come(web, tmp_path):
    web.put("/data.bin", gzip.compress(bytes(50 << 20)), headers={"Content-Encoding": "gzip"})
    assert "more than 1000 bytes" in failure(web, tmp_path, size=1000).message
    assert names(tmp_path) == []


def test_a_server_that_stops_talking_is_given_up_and_asked_again(web, tmp_path):
    served = web.put("/data.bin", CONTENT, gate=threading.Event())
    said = []

    def again(line):
        said.append(line)
        served.gate.set()

    assert load(web, tmp_path, say=again, patience=replace(QUICK, read=0.5)).path.read_bytes() == CONTENT
    assert "nothing came for 0.5 s" in said[0]
    assert web.asked("/data.bin")[1]["range"] == "bytes=5120-"


def test_a_server_that_drips_is_a_failure(web, tmp_path):
    web.put("/data.bin", CONTENT, pause=(5, 0.05), etag=None)
    with pytest.raises(DataError, match="bytes came in"):
        load(web, tmp_path)


def test_a_full_disk_is_said_before_anything_is_loaded(web, tmp_path, monkeypatch):
    web.put("/data.bin", CONTENT)
    free = type("Usage", (), {"free": fetch_http.SPARE + 5000})
    monkeypatch.setattr(fetch_http.shutil, "disk_usage", lambda _: free)
    error = failure(web, tmp_path)
    assert (
        error.reason == "no_space" and "needs 10240 bytes more" in error.message and "5000 may be used" in error.message
    )


def test_progress_ends_at_the_size(web, tmp_path):
    web.put("/data.bin", os.urandom(1 << 20))
    seen = []
    urls = (web.url("/data.bin"),)
    Download(Wanted("data.bin", urls), tmp_path, QUICK, lambda *step: seen.append(step)).run()
    assert seen[-1] == ("data.bin", 1 << 20, 1 << 20) and len(seen) > 1


def test_keys_in_an_address_are_not_shown():
    assert shown("https://user:secret@a.org/x.zip?token=secret#y") == "https://a.org/x.zip"


def test_an_empty_answer_is_no_file(web, tmp_path):
    web.put("/data.bin", b"")
    assert "it sends an empty file" in failure(web, tmp_path).message


NONSENSE = ["http://[::1/x", "http://a:99999999/x", "http://" + "a" * 70 + "/", "//", "http://", "\xe4"]


@pytest.mark.parametrize("location", NONSENSE)
def test_a_redirect_to_nonsense_is_a_failure_like_others(web, tmp_path, location):
    web.put("/data.bin", redirect=location)
    assert failure(web, tmp_path).reason == "not_loaded"


ANSWER = (
    b'HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\nETag: "one"\r\n'
    b"Content-Type: application/zip\r\nTransfer-Encoding: identity\r\nContent-Encoding: identity\r\nRetry-After: 0\r\n"
    b"Location: /elsewhere\r\nLast-Modified: Sat, 01 Jan 2022 00:00:00 GMT\r\nConnection: close\r\n\r\n56789"
)
WORDS = [b"200 OK", b"302 Found", b"416 X", b"chunked", b"gzip", b"-1", b"9" * 30, b"*", b"\r\n", b"\xff", b""]
PLACES = [b"206 Partial Content", b"identity", b"5-9/10", b"10", b"5", b"/elsewhere", b'"one"', b"56789", b":", b"/1.1"]


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(WORDS)), min_size=1, max_size=4), st.booleans())
def test_whatever_a_server_says_it_is_a_file_or_a_failure(tmp_path_factory, edits, resumed):
    answer = ANSWER
    for place, word in edits:
        answer = answer.replace(place, word, 1)
    folder = tmp_path_factory.mktemp("odd")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/data.bin"

        def serve():
            try:
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(answer)
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        if resumed:
            (folder / "data.bin.part").write_bytes(b"01234")
            note = {"url": url, "total": 10, "validator": '"one"', "packed": False}
            (folder / "data.bin.part.json").write_text(json.dumps(note))
        patience = Patience(connect=1, read=1, tries=2, pause=0, longest=0)
        try:
            arrived = Download(Wanted("data.bin", (url,), sha256=sha(b"0123456789")), folder, patience).run()
        except DataError as error:
            assert error.message.isprintable() and not (folder / "data.bin").exists()
        else:
            assert arrived.path.read_bytes() == b"0123456789"
        server.shutdown(socket.SHUT_RDWR)
    assert set(names(folder)) <= {"data.bin", "data.bin.part", "data.bin.part.json"}
