"""Pseudonyms, UIDs and date offsets: repeatable with the key, unlinkable without it."""

import hashlib
import hmac
import re
import subprocess
import sys
import uuid
from collections import Counter
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.deid.identity import ContentHash, Identity
from ingest.deid.key import Key
from ingest.deid.reasons import Reason, Refusal

SECRET = hashlib.sha256(b"only for tests").digest()
SITE = Identity(Key(SECRET), "St. Example")
OTHER = Identity(Key(hashlib.sha256(b"another").digest()), "St. Example")
HEX32 = re.compile(r"[0-9a-f]{32}")
texts = st.text(max_size=20)
names = st.text(alphabet="aA1|/^=\\ \0é", min_size=1, max_size=6)


def by_hand(purpose: str, *parts: str) -> str:
    """The same computed from hmac alone."""
    message = b"".join(len(p.encode()).to_bytes(8, "big") + p.encode() for p in parts)
    sub_key = hmac.digest(SECRET, b"usdata-deid-1:" + purpose.encode(), "sha256")
    return hmac.new(sub_key, message, "sha256").hexdigest()


def test_a_patients_pseudonym_is_a_keyed_hash_of_issuer_and_id():
    assert SITE.patient("12345") == by_hand("patient", "st. example", "12345")[:32]
    assert SITE.patient("12345", "Clinic B") == by_hand("patient", "clinic b", "12345")[:32]


def test_pseudonyms_by_purpose_have_nothing_in_common():
    found = {SITE.patient("1.2.3"), SITE.study("1.2.3"), SITE.clip("1.2.3"), SITE.source("1.2.3")}
    assert len(found) == 4 and all(HEX32.fullmatch(one) for one in found)


def test_one_id_at_two_hospitals_is_two_patients():
    assert SITE.patient("1234", "A") != SITE.patient("1234", "B")
    assert SITE.patient("1234") == SITE.patient("1234", "") == SITE.patient("1234", None) == SITE.patient("1234", "  ")


def test_two_data_sets_with_one_key_and_issuer_share_their_patients():
    assert Identity(Key(SECRET), "St. Example").patient("77") == SITE.patient("77")


@pytest.mark.parametrize("same", ["ab 12", "AB 12", " ab  12 ", "ab\t12", "ab 12\0", "ＡＢ １２", "a\u200bb 12"])
def test_how_an_id_was_typed_does_not_matter(same):
    assert SITE.patient(same) == SITE.patient("AB 12")


@pytest.mark.parametrize("other", ["0AB 12", "AB12", "AB 012", "AB 12A"])
def test_another_id_is_another_patient(other):
    assert SITE.patient(other) != SITE.patient("AB 12")


@pytest.mark.parametrize("empty", ["", " ", "\0\0", "\u200b", "\t \n"])
def test_an_empty_id_is_refused_instead_of_joining_strangers(empty):
    for make in (SITE.patient, SITE.study, SITE.clip, SITE.uid) if not empty.strip(" \0\t\n") else (SITE.patient,):
        with pytest.raises(Refusal) as caught:
            make(empty)
        assert caught.value.reason == Reason.NO_IDENTITY


@settings(deadline=None)  # the machine may be busy
@given(names, names, names, names)
def test_issuer_and_id_are_joined_without_ambiguity(a, b, c, d):
    """ "a|b" + "c" must not be "a" + "b|c": equal hashes mean equal parts."""

    def patient(issuer: str, name: str) -> str:
        try:
            return Identity(Key(SECRET), "x").patient(name, issuer)
        except Refusal:
            return f"refused {issuer!r} {name!r}"

    from ingest.deid.values import normalise

    same = (normalise(a) or "x", normalise(b)) == (normalise(c) or "x", normalise(d))
    assert (patient(a, b) == patient(c, d)) == same or not normalise(b) or not normalise(d)


@settings(deadline=None)  # the machine may be busy
@given(texts)
def test_any_path_has_an_opaque_id_and_another_key_gives_another(path):
    assert HEX32.fullmatch(SITE.source(path)) and SITE.source(path) != OTHER.source(path)


def test_a_path_that_is_not_utf_8_has_an_id_too():
    broken = b"M\xfcller.dcm".decode("utf-8", "surrogateescape")
    assert HEX32.fullmatch(SITE.source(broken)) and SITE.source(broken) != SITE.source("Müller.dcm")


def test_paths_are_taken_as_they_are():
    assert SITE.source("a/B.dcm") != SITE.source("a/b.dcm") != SITE.source("a//b.dcm")


def test_another_key_changes_everything(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    for make in (
        lambda i: i.patient("1"),
        lambda i: i.study("1.2"),
        lambda i: i.clip("1.2"),
        lambda i: i.uid("1.2"),
        lambda i: i.content(tmp_path / "f").hex,
        lambda i: i.content(tmp_path / "f").sample_id("site", 0),
        lambda i: [i.shift(f"{n:032x}", date(2020, 1, 1)) for n in range(5)],
    ):
        assert make(SITE) != make(OTHER)


def test_another_process_finds_the_same():
    code = (
        "import hashlib; from ingest.deid.identity import Identity; from ingest.deid.key import Key\n"
        "i = Identity(Key(hashlib.sha256(b'only for tests').digest()), 'St. Example')\n"
        "print(i.patient('1'), i.uid('1.2'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [SITE.patient("1"), SITE.uid("1.2")]


@settings(deadline=None)  # the machine may be busy
@given(texts.filter(lambda t: t.strip(" \0\t\r\n")))
def test_a_replaced_uid_is_valid(uid):
    found = SITE.uid(uid)
    value = uuid.UUID(int=int(found.removeprefix("2.25.")))
    assert re.fullmatch(r"2\.25\.(0|[1-9][0-9]*)", found) and len(found) <= 44
    assert value.version == 4 and value.variant == uuid.RFC_4122


def test_a_uid_is_computed_as_written():
    value = int(by_hand("uid", "1.2.3")[:32], 16)
    bits = uuid.UUID(int=value, version=4)  # sets the same bits
    assert SITE.uid("1.2.3") == f"2.25.{bits.int}"


def test_padding_of_a_uid_does_not_matter():
    assert SITE.uid("1.2.3\0") == SITE.uid("1.2.3 ") == SITE.uid("1.2.3")
    assert SITE.study("1.2.3\0") == SITE.study("1.2.3") and SITE.clip("1.2.3 ") == SITE.clip("1.2.3")


def test_uids_of_the_standard_stay_but_not_what_only_looks_like_one():
    assert SITE.uid("1.2.840.10008.1.2.1") == "1.2.840.10008.1.2.1"
    for own in ("1.2.840.10008.1.2.1.19600504", "1.2.840.10008.19600504", "1.2.840.10008", "1.2.840.100080.1"):
        assert SITE.uid(own).startswith("2.25.")


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 2**64), st.dates(date(1900, 1, 1), date(2100, 1, 1)), st.integers(-9000, 9000))
def test_a_patients_dates_move_together_by_one_to_3652_days(number, day, later):
    patient = SITE.patient(str(number))
    moved = SITE.shift(patient, day)
    assert timedelta(days=1) <= day - moved <= timedelta(days=3652)
    assert SITE.shift(patient, day + timedelta(days=later)) - moved == timedelta(days=later)


def test_the_offset_is_computed_as_written():
    patient = SITE.patient("1")
    offset = int(by_hand("date", patient), 16) % 3652 + 1
    assert SITE.shift(patient, date(2020, 1, 1)) == date(2020, 1, 1) - timedelta(days=offset)


def test_all_offsets_are_equally_likely():
    day = date(2020, 1, 1)
    offsets = [(day - SITE.shift(f"{n:032x}", day)).days for n in range(20_000)]
    assert min(offsets) >= 1 and max(offsets) <= 3652 and len(set(offsets)) > 3600
    tenths = Counter((offset - 1) * 10 // 3652 for offset in offsets)  # 2,000 each, standard deviation 42
    assert all(abs(tenths[i] - 2000) < 5 * 43 for i in range(10))


def test_dates_are_shifted_for_pseudonyms_only():
    for wrong in ("12345", "", "Mueller", "A" * 32, "0" * 31):
        with pytest.raises(ValueError) as caught:
            SITE.shift(wrong, date(2020, 1, 1))
        assert wrong not in str(caught.value) or not wrong


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 20) + 7])
def test_the_content_hash_is_a_keyed_hash_of_all_bytes(tmp_path, size):
    data = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "f").write_bytes(data[:size])
    sub_key = hmac.digest(SECRET, b"usdata-deid-1:content", "sha256")
    assert SITE.content(tmp_path / "f").hex == hmac.new(sub_key, data[:size], "sha256").hexdigest()[:32]


def test_a_samples_id_comes_from_the_content_through_another_sub_key(tmp_path):
    (tmp_path / "f").write_bytes(b"pixels")
    content = SITE.content(tmp_path / "f")
    assert content.sample_id("site_a", 3) == "site_a-" + by_hand("sample", content.hex, "3", "0")[:16]
    assert content.sample_id("site_a", 3) == SITE.sample_id(content.hex, "site_a", 3)
    ids = {content.sample_id("s", frame, copy) for frame in range(13) for copy in range(13)}
    assert len(ids) == 169 and content.hex[:16] not in " ".join(ids)


def test_a_content_hash_takes_only_hex_digits():
    with pytest.raises(ValueError):
        ContentHash(SITE, "Mueller.dcm")


def test_a_file_that_cannot_be_read_is_refused_without_its_name(tmp_path):
    for path, reason in ((tmp_path / "Mueller", Reason.MISSING), (tmp_path, Reason.UNREADABLE)):
        with pytest.raises(Refusal) as caught:
            SITE.content(path)
        assert caught.value.reason == reason and caught.value.__cause__ is None and caught.value.__context__ is None
        assert "Mueller" not in repr(vars(caught.value)) + str(caught.value)
