"""The secret key: made once, read only where it is safe, shown nowhere."""

import copy
import hashlib
import hmac
import os
import pickle
import stat
import traceback
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ingest.deid.cli import app
from ingest.deid.identity import Identity
from ingest.deid.key import KEY_VARIABLE, Key, load_key, new_key
from usdata.errors import ConfigError

SECRET = hashlib.sha256(b"only for tests").digest()
LINE = f"usdata-deid-key-1 {SECRET.hex()}\n"


def write(path: Path, text: str | bytes = LINE, mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def everything_said_by(error: BaseException) -> str:
    """Its text, its attributes, its causes, and the local variables of every frame it passed outside this file."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:
            frames.append(repr(trace.tb_frame.f_locals))
        trace = trace.tb_next
    chain = "".join(traceback.format_exception(error))
    return " ".join([str(error), repr(error), repr(vars(error)), chain, *frames])


def test_a_new_key_is_one_line_that_only_its_owner_can_read(tmp_path):
    new_key(tmp_path / "key")
    word, digits = (tmp_path / "key").read_text().split()
    assert word == "usdata-deid-key-1" and len(bytes.fromhex(digits)) == 32
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert load_key(tmp_path / "key").fingerprint == Key(bytes.fromhex(digits)).fingerprint


def test_the_umask_does_not_matter(tmp_path):
    before = os.umask(0)
    try:
        new_key(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_two_new_keys_differ(tmp_path):
    new_key(tmp_path / "a")
    new_key(tmp_path / "b")
    assert load_key(tmp_path / "a").fingerprint != load_key(tmp_path / "b").fingerprint


def test_a_key_is_never_overwritten_not_even_through_a_link(tmp_path):
    write(tmp_path / "key")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("key", "link", "dangling"):
        with pytest.raises(ConfigError, match="never overwritten"):
            new_key(tmp_path / name)
    assert (tmp_path / "key").read_text() == LINE and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("mark", ["lake.json", ".git", ".dvc"])
def test_a_key_is_not_made_where_it_would_be_shared(tmp_path, mark):
    (tmp_path / mark).mkdir()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-link"
    elsewhere.symlink_to(tmp_path / "deep")
    for path in (tmp_path / "key", tmp_path / "deep" / "er" / "key", elsewhere / "key"):
        with pytest.raises(ConfigError, match="would lie in") as caught:
            new_key(path)
        assert "deid-key new" in str(caught.value.hint) and not path.exists()


def test_a_key_needs_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="no folder") as caught:
        new_key(tmp_path / "none" / "key")
    assert "mkdir" in str(caught.value.hint)


def test_nothing_is_left_of_a_key_that_could_not_be_written(tmp_path, monkeypatch):
    def full(file: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space"):
        new_key(tmp_path / "key")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o610, 0o601, 0o660, 0o777])
def test_a_key_file_that_others_can_reach_is_refused(tmp_path, mode):
    path = write(tmp_path / "key", mode=mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}") as caught:
        load_key(path)
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_file_of_ones_own_is_read(tmp_path, mode):
    assert load_key(write(tmp_path / "key", mode=mode)).fingerprint == Key(SECRET).fingerprint


def test_the_file_behind_a_link_is_what_counts(tmp_path):
    (tmp_path / "link").symlink_to(write(tmp_path / "open", mode=0o644))
    with pytest.raises(ConfigError, match="mode 0644"):
        load_key(tmp_path / "link")
    (tmp_path / "open").chmod(0o600)
    assert load_key(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused_by_root_too(tmp_path):
    path = write(tmp_path / "key")
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="another user"):
        load_key(path)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"regular file|another user"):
            load_key(path)


def test_a_missing_key_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for path in (tmp_path / "none", None):
        with pytest.raises(ConfigError) as caught:
            load_key(path)
        assert "usdata deid-key new" in str(caught.value.hint)
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(ConfigError, match="needs a key file"):
        load_key(None)


def test_the_environment_names_the_file_when_no_path_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, str(write(tmp_path / "key")))
    assert load_key(None).fingerprint == Key(SECRET).fingerprint


def test_a_key_in_a_lake_is_refused(tmp_path):
    (tmp_path / "lake.json").write_text("{}")
    (tmp_path / "shards").mkdir()
    with pytest.raises(ConfigError, match="lies in the lake"):
        load_key(write(tmp_path / "shards" / "key"))


DIGITS = SECRET.hex()
TYPED = b"this is a sentence that I typed!".hex()
BAD_FILES = {
    "empty": "",
    "no word": DIGITS + "\n",
    "another word": f"usdata-deid-key-2 {DIGITS}\n",
    "short": f"usdata-deid-key-1 {DIGITS[:-2]}\n",
    "long": f"usdata-deid-key-1 {DIGITS}00\n",
    "not hex": f"usdata-deid-key-1 {'g' + DIGITS[1:]}\n",
    "two lines": LINE * 2,
    "text after it": LINE + "note: the key of ward 7\n",
    "blank before it": " " + LINE,
    "byte order mark": b"\xef\xbb\xbf" + LINE.encode(),
    "utf-16": LINE.encode("utf-16"),
    "NULs": b"\0" * 4096,
    "binary": bytes(range(256)) * 8,
    "other digits": f"usdata-deid-key-1 {'٣' * 64}\n",
    "zeros": f"usdata-deid-key-1 {'0' * 64}\n",
    "one byte": f"usdata-deid-key-1 {'ab' * 32}\n",
    "fifteen bytes": f"usdata-deid-key-1 {(SECRET[:15] + SECRET[:15] + SECRET[:2]).hex()}\n",
    "counting": f"usdata-deid-key-1 {bytes(range(32)).hex()}\n",
    "a sentence": f"usdata-deid-key-1 {TYPED}\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_key_file_is_refused_without_a_word_of_its_content(tmp_path, name):
    path = write(tmp_path / "key", BAD_FILES[name])
    with pytest.raises(ConfigError) as caught:
        load_key(path)
    said = everything_said_by(caught.value)
    assert caught.value.hint and caught.value.__cause__ is None
    assert not any(part in said for part in (DIGITS[:16], DIGITS[-16:], TYPED[:16], "ward 7", "typed!", "abababab"))


def test_a_key_given_in_place_of_its_path_is_not_repeated(monkeypatch):
    for given in (DIGITS, f"usdata-deid-key-1 {DIGITS}"):
        for attempt in (lambda path: load_key(Path(path)), lambda path: new_key(Path(path))):
            with pytest.raises(ConfigError, match="looks like a key") as caught:
                attempt(given)
            assert DIGITS not in str(caught.value)
        monkeypatch.setenv(KEY_VARIABLE, given)
        with pytest.raises(ConfigError, match="looks like a key") as caught:
            load_key(None)
        assert DIGITS not in str(caught.value)


def test_weak_bytes_make_no_key_and_are_not_in_the_error():
    for weak in (b"", SECRET[:31], SECRET + b"0", bytes(32), bytes(range(32)), b"hunter2-" * 4):
        with pytest.raises(ConfigError) as caught:
            Key(weak)
        said = everything_said_by(caught.value)
        assert "hunter2" not in said and SECRET[:4].hex() not in said and repr(SECRET[:8])[2:-1] not in said


def test_sub_keys_are_hmacs_of_their_labels():
    assert Key(SECRET).derive("patient") == hmac.digest(SECRET, b"usdata-deid-1:patient", "sha256")
    assert len({Key(SECRET).derive(word) for word in ("patient", "study", "clip", "uid", "date", "sample")}) == 6


def test_the_fingerprint_is_an_hmac_under_its_own_label():
    own = hmac.digest(SECRET, b"usdata-deid-1:fingerprint", "sha256")
    assert Key(SECRET).fingerprint == hmac.new(own, b"fingerprint", "sha256").hexdigest()[:16]


def test_neither_key_nor_identity_shows_or_gives_away_the_secret():
    key = Key(SECRET)
    for holder in (key, Identity(key, "hospital"), Identity(key, "h").patient):
        with pytest.raises(TypeError):
            pickle.dumps(holder)
    for holder in (key, Identity(key, "hospital")):
        for duplicate in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                duplicate(holder)
        slots = [getattr(holder, name) for name in type(holder).__slots__]
        shown = " ".join(map(repr, [holder, str(holder), f"{holder}", *slots]))
        assert not hasattr(holder, "__dict__")
        assert SECRET.hex() not in shown and repr(SECRET)[2:-1] not in shown
    assert repr(key) == f"Key({key.fingerprint})"


def test_published_files_have_a_key_that_anyone_can_compute():
    assert Key.published("busi").fingerprint == Key.published("busi").fingerprint != Key.published("b").fingerprint


def test_the_verb_makes_a_key_and_checks_it_and_shows_only_the_fingerprint(tmp_path):
    path = tmp_path / "key"
    made = CliRunner().invoke(app, ["deid-key", "new", str(path)])
    checked = CliRunner().invoke(app, ["deid-key", "check", str(path), "--json"])
    assert made.exit_code == checked.exit_code == 0
    said = made.output + checked.output
    assert load_key(path).fingerprint in made.output and '"mode": "0600"' in checked.output
    assert path.read_text().split()[1] not in said
    path.chmod(0o644)
    refused = CliRunner().invoke(app, ["deid-key", "check", str(path)])
    assert isinstance(refused.exception, ConfigError)
