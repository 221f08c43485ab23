"""The bench itself: it finds every secret where it was planted, and every leak of a pretended ingest."""

import itertools
import struct
from dataclasses import replace

import pytest
from fakes.deid_leaky import LEAKS, ODD_FORMS, pretend
from fakes.deid_media import stills
from fakes.deid_places import PLACES, drafts
from fakes.deid_run import World
from fakes.deid_search import Needles, odd_forms, opened
from fakes.deid_secrets import Secret, day, digests, name, number, of_key, person, uid
from fakes.deid_videos import videos


def test_each_place_has_a_name_of_its_own():
    names = [place.name for place in PLACES]
    assert len(names) == len(set(names)) > 700


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.deid)])
def test_every_secret_of_a_dicom_file_is_found_in_that_file(tmp_path, every):
    for family, draft in itertools.islice(drafts(), 0, None, every):
        draft.write(tmp_path / "one.dcm")
        content, planted = (tmp_path / "one.dcm").read_bytes(), draft.planted()
        found = {place for place, _ in Needles(planted).in_bytes(content, text=True)}
        missed = {secret.place for secret in planted} - found
        if family == "number/frequency":  # four bytes: too short to be told from chance in a lake, but here they are
            secret = next(s for s in planted if s.place in missed)
            missed -= {secret.place} if struct.pack("<I", int(secret.value)) in content else set()
        assert not missed, family


@pytest.mark.parametrize("kind", [stills, videos])
def test_every_secret_of_another_file_is_found_in_that_file(kind):
    for place, content, secret in kind():
        assert Needles([secret]).search(opened("source", content)), place.name


@pytest.fixture
def pretended(tmp_path):
    """An ingest that leaks as told, searched."""

    def search(leak: str | None, secret: Secret | None = None):
        world = World(tmp_path / "world")
        secret, source = secret or name("a/place"), b"all the bytes of a source"
        run = pretend(world, secret, source, leak)
        more = [(form, "the source's bytes", how) for form, how in digests(source, "the source")]
        left = (source, "the source's bytes", "as they are")
        needles = Needles([secret, of_key(world.key_bytes())], [*more, left])
        return needles.search(run.artifacts()), odd_forms(world.lake)

    return search


def test_a_clean_ingest_shows_no_leak(pretended):
    assert pretended(None) == ([], [])


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_caught(pretended, leak):
    leaks, odd = pretended(leak)
    assert odd if leak in ODD_FORMS else leaks, "not found"


@pytest.mark.parametrize(
    "secret", [number("p", 10), uid("p"), person("p"), day("p")], ids=["id", "uid", "name", "date"]
)
@pytest.mark.parametrize("leak", ["text in a cell", "base64 in a cell", "UTF-16 on stderr", "name of a file"])
def test_each_kind_of_secret_is_caught(pretended, leak, secret):
    assert pretended(leak, secret)[0]


def test_a_day_is_caught_in_another_notation(pretended):
    secret = day("p")
    german = replace(secret, texts=tuple(t for t in secret.texts if t[2] == "."))
    needles = Needles([secret])
    assert needles.in_bytes(f"on {german.texts[0]}".encode())
    assert not needles.in_bytes(b"on 2014-05-06")


def test_a_record_number_is_caught_as_a_number():
    secret = number("p", 10)
    for form in ("<q", ">q", "<d"):
        value = float(secret.value) if form[1] == "d" else int(secret.value)
        assert Needles([secret]).in_bytes(b"\x01" + struct.pack(form, value) + b"\x02")


def test_a_short_number_is_caught_in_text_but_not_inside_longer_words():
    needles = Needles([number("p", 4)])
    digits = number("p", 4).value
    assert needles.in_bytes(f'{{"age": {digits}}}'.encode(), text=True)
    assert not needles.in_bytes(f"a{digits}b {digits}7".encode(), text=True)
