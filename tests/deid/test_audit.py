"""The audit: one line per item, words of closed lists and keyed digits only."""

import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from enum import IntEnum, StrEnum
from pathlib import Path

import pytest

from ingest.deid.audit import Audit, MaskSource, Versions, read_audit
from ingest.deid.reasons import Reason, State
from usdata.errors import ConfigError

RUN, KEY, ITEM = "0" * 32, "f" * 16, "ab" * 16
VERSIONS = Versions(deid=1, tables=3, code=(0, 1, 0))


class Action(StrEnum):
    """A stand-in for the walk's counts."""

    REMOVED = "removed"
    KEPT = "kept"


class Number(IntEnum):
    ONE = 1


def opened(tmp_path: Path) -> Audit:
    return Audit(tmp_path / "private" / "audit.jsonl", RUN, KEY, VERSIONS)


def test_an_item_is_one_line_of_words_and_numbers(tmp_path):
    with opened(tmp_path) as audit:
        audit.item(
            ITEM,
            State.ACCEPTED,
            counts={Action.REMOVED: 40, Action.KEPT: 7},
            mask_source=MaskSource.REGIONS_FIT,
            samples=12,
            relaxed=[Action.KEPT],
        )
        audit.item(ITEM, State.QUARANTINED, Reason.NO_SCAN_AREA)
    first, second = map(json.loads, (tmp_path / "private" / "audit.jsonl").read_text().splitlines())
    head = {"run": RUN, "key": KEY, "deid_version": 1, "table_version": 3, "code_version": [0, 1, 0], "item": ITEM}
    assert first == head | {
        **{"state": "accepted", "samples": 12, "counts": {"removed": 40, "kept": 7}},
        **{"mask_source": "regions+fit", "relaxed": ["kept"]},
    }
    assert second == head | {"state": "quarantined", "reason": "no_scan_area", "samples": 0, "counts": {}}


def test_only_the_owner_can_read_it(tmp_path):
    before = os.umask(0)
    try:
        opened(tmp_path).close()
    finally:
        os.umask(before)
    path = tmp_path / "private" / "audit.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


SECRET = "Mueller^Anna"
REFUSED = {
    "a name as the item": {"key": SECRET},
    "a path as the item": {"key": "ward/Mueller.dcm"},
    "31 digits": {"key": "a" * 31},
    "33 digits": {"key": "a" * 33},
    "digits and a line end": {"key": "a" * 32 + "\n"},
    "upper case": {"key": "A" * 32},
    "other digits": {"key": "٣" * 32},
    "bytes": {"key": b"a" * 32},
    "a word as state": {"state": "accepted"},
    "a reason as state": {"state": Reason.INTERNAL},
    "text as state": {"state": SECRET},
    "a word as reason": {"state": State.QUARANTINED, "reason": "internal"},
    "text as reason": {"state": State.QUARANTINED, "reason": SECRET},
    "a state as reason": {"state": State.QUARANTINED, "reason": State.REJECTED},
    "text as a count's name": {"counts": {SECRET: 1}},
    "a number as a count's name": {"counts": {1: 1}},
    "a numbered enum": {"counts": {Number.ONE: 1}},
    "text as a count": {"counts": {Action.KEPT: SECRET}},
    "a fraction as a count": {"counts": {Action.KEPT: 1.5}},
    "a flag as a count": {"counts": {Action.KEPT: True}},
    "an enum as a count": {"counts": {Action.KEPT: Number.ONE}},
    "text as mask source": {"mask_source": "fit"},
    "text as samples": {"samples": "12"},
    "text as a rule": {"relaxed": ["text"]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_free_value_is_a_type_error_that_does_not_show_it(tmp_path, name):
    with opened(tmp_path) as audit, pytest.raises(TypeError) as caught:
        audit.item(**{"key": ITEM, "state": State.ACCEPTED} | REFUSED[name])  # type: ignore[arg-type]
    assert SECRET not in str(caught.value) and "Mueller" not in str(caught.value)
    assert (tmp_path / "private" / "audit.jsonl").read_bytes() == b""


def test_the_head_takes_no_text_either(tmp_path):
    for run, key, versions in (
        (SECRET, KEY, VERSIONS),
        (RUN, SECRET, VERSIONS),
        (RUN, KEY, Versions(1, 1, ("0.1",))),  # type: ignore[arg-type]
        (RUN, KEY, Versions(SECRET, 1, ())),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError) as caught:
            Audit(tmp_path / "a", run, key, versions)
        assert SECRET not in str(caught.value)


def test_state_and_reason_go_together(tmp_path):
    with opened(tmp_path) as audit:
        for state, reason in ((State.ACCEPTED, Reason.INTERNAL), (State.QUARANTINED, None), (State.REJECTED, None)):
            with pytest.raises(ValueError):
                audit.item(ITEM, state, reason)
        with pytest.raises(ValueError):
            audit.item(ITEM, State.ACCEPTED, samples=-1)


def test_a_second_run_appends(tmp_path):
    for _ in range(2):
        with opened(tmp_path) as audit:
            audit.item(ITEM, State.ACCEPTED)
    assert len(read_audit(tmp_path / "private" / "audit.jsonl").records) == 2


def test_a_partial_line_is_told_and_the_next_writer_begins_a_new_one(tmp_path):
    path = tmp_path / "private" / "audit.jsonl"
    with opened(tmp_path) as audit:
        audit.item(ITEM, State.ACCEPTED)
        audit.item(ITEM, State.ACCEPTED)
    os.truncate(path, path.stat().st_size - 20)
    log = read_audit(path)
    assert (len(log.records), log.partial) == (1, 1)
    with opened(tmp_path) as audit:
        audit.item(ITEM, State.REJECTED, Reason.DICOMDIR)
    log = read_audit(path)
    assert ([r["state"] for r in log.records], log.partial) == (["accepted", "rejected"], 1)


def test_lines_that_are_no_records_are_counted_not_read(tmp_path):
    path = tmp_path / "audit"
    path.write_bytes(b'[]\n{"run":1}\nnull\n\xff\xfe\n{"run":1,"item":2,"state":3}\n\n{"run":1')
    log = read_audit(path)
    assert (log.records, log.partial) == (({"run": 1, "item": 2, "state": 3},), 5)


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError):
        read_audit(tmp_path / "none")


WRITER = """
import sys; from pathlib import Path; from ingest.deid.audit import *; from ingest.deid.reasons import State
audit = Audit(Path(sys.argv[1]), "0" * 32, "f" * 16, Versions(1, 1, (0, 1, 0)))
print("ready", flush=True)
for n in range(int(sys.argv[2])): audit.item(f"{n:032x}", State.ACCEPTED)
"""


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    path = tmp_path / "private" / "audit.jsonl"
    command = [sys.executable, "-c", WRITER, str(path), "100000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.3)
        writer.send_signal(signal.SIGKILL)
    log = read_audit(path)
    assert log.records and log.partial <= 1
    assert [int(r["item"], 16) for r in log.records] == list(range(len(log.records)))


def test_two_writers_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "private" / "audit.jsonl"
    command = [sys.executable, "-c", WRITER, str(path), "3000"]
    writers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    log = read_audit(path)
    assert (len(log.records), log.partial) == (6000, 0)


@pytest.mark.parametrize("mark", ["lake.json", ".git"])
def test_an_audit_is_not_written_where_it_would_be_shared(tmp_path, mark):
    (tmp_path / mark).mkdir()
    with pytest.raises(ConfigError):
        opened(tmp_path)


def test_a_file_or_folder_that_others_can_open_is_refused(tmp_path):
    opened(tmp_path).close()
    path = tmp_path / "private" / "audit.jsonl"
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="open to others"):
        opened(tmp_path)
    path.chmod(0o600)
    path.parent.chmod(0o755)
    with pytest.raises(ConfigError):
        opened(tmp_path)


def test_a_link_a_pipe_or_a_folder_in_its_place_is_refused(tmp_path):
    opened(tmp_path).close()
    path = tmp_path / "private" / "audit.jsonl"
    for make in (lambda: path.symlink_to(tmp_path / "x"), lambda: os.mkfifo(path, 0o600), lambda: path.mkdir(0o700)):
        path.unlink()
        make()
        with pytest.raises(ConfigError):
            opened(tmp_path)
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def none(file: int, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    with opened(tmp_path) as audit:
        monkeypatch.setattr(os, "write", none)
        with pytest.raises(ConfigError, match="No space"):
            audit.item(ITEM, State.ACCEPTED)
        monkeypatch.setattr(os, "write", lambda file, data: len(data) // 2)
        with pytest.raises(ConfigError, match="full"):
            audit.item(ITEM, State.ACCEPTED)
        monkeypatch.undo()


def test_a_writer_stays_in_its_process_and_closes_once(tmp_path):
    audit = opened(tmp_path)
    with pytest.raises(TypeError):
        pickle.dumps(audit)
    audit.close()
    audit.close()
    with pytest.raises(ConfigError):
        audit.item(ITEM, State.ACCEPTED)
