"""The audit of de-identification: one JSON line per item, on the private side, with no text of any source in it.

A value is a word of a closed list (an enum of ours), a whole number or hex digits of a keyed hash; anything else is a
TypeError, so that no path, tag or message can get in by mistake. Source: anonymization.md Q1 to Q3.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from ingest.deid.place import private_folder
from ingest.deid.reasons import Reason, State
from usdata.errors import ConfigError

_HASH = re.compile(r"[0-9a-f]{32}")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_HINT = "Choose a folder of your own with --area DIR; a damaged or foreign file there can be moved away."


class MaskSource(StrEnum):
    """What showed the scan area; the words of the catalog's column `mask_source`."""

    REGIONS_FIT = "regions+fit"
    FIT = "fit"
    TEMPLATE = "template"
    TEMPLATE_FIT = "template+fit"


@dataclass(frozen=True, slots=True)
class Versions:
    """By what an item was judged: stands in every line of a run."""

    deid: int  # of the rules, DEID_VERSION
    tables: int  # of the vocabularies and templates
    code: tuple[int, ...]  # of usdata: (0, 1, 0)


@dataclass(frozen=True, slots=True)
class AuditLog:
    """What `read_audit` found. `partial` lines were cut off by a crash, or are none of ours: they are not records."""

    records: tuple[dict[str, Any], ...]
    partial: int


class Audit:
    """Appends lines to an audit file; several may append to one file at a time. Use it in a `with`.

    Each line is written whole with one call, so a writer that is killed leaves at most one partial line, the last; the
    next one begins a new line after it. Closing puts everything on disk for good.

    Args:
        path: the file, made with mode 0600 in a folder with mode 0700.
        run: 32 hex digits, new in every run.
        key_fingerprint: `Key.fingerprint`, 16 hex digits.
        versions: of rules, tables and code.

    Raises:
        ConfigError: the folder is shared (in a lake, under git, open to others) or the file can't be written, is no
            regular file, belongs to somebody else or can be reached by others.
        TypeError, ValueError: an argument of another kind; the message does not show it.
    """

    def __init__(self, path: Path, run: str, key_fingerprint: str, versions: Versions) -> None:
        numbers = [versions.deid, versions.tables, *versions.code]
        self._head = {
            "run": _digits(run, _HASH),
            "key": _digits(key_fingerprint, _FINGERPRINT),
            "deid_version": _count(numbers[0]),
            "table_version": _count(numbers[1]),
            "code_version": [_count(number) for number in numbers[2:]],
        }
        self._file = _open(private_folder(path.parent) / path.name)

    def item(
        self,
        key: str,
        state: State,
        reason: Reason | None = None,
        *,
        counts: Mapping[Any, int] | None = None,
        mask_source: MaskSource | None = None,
        samples: int = 0,
        relaxed: Iterable[Enum] = (),
    ) -> None:
        """Append the line of one item.

        Args:
            key: the item's keyed id, 32 hex digits.
            state, reason: what became of it; an accepted item has no reason, every other has one of its state.
            counts: how many values were removed, replaced, kept, ...; the keys are members of an enum.
            samples: images that got in.
            relaxed: rules that were left out.

        Raises:
            TypeError, ValueError: a value that is none of the allowed kinds, or contradicts the state.
            ConfigError: the line can't be written: the disk is full.
        """
        record = self._head | {"item": _digits(key, _HASH), "state": _word(state, State), "samples": _count(samples)}
        if (reason is None) != (state is State.ACCEPTED):
            raise ValueError("a reason belongs to every item that was not accepted, and to no other")
        if reason is not None:
            record["reason"] = _word(reason, Reason)
        if mask_source is not None:
            record["mask_source"] = _word(mask_source, MaskSource)
        record["counts"] = {_word(name, Enum): _count(number) for name, number in (counts or {}).items()}
        if words := sorted(_word(rule, Enum) for rule in relaxed):
            record["relaxed"] = words
        self._append(json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        try:
            if os.write(self._file, line) == len(line):
                return
        except OSError as error:
            raise _unwritable(error.strerror) from None
        raise _unwritable("the disk is full")

    def close(self) -> None:
        """Put the lines on disk and close the file; further calls do nothing."""
        if self._file < 0:
            return
        file, self._file = self._file, -1
        try:
            os.fsync(file)
        except OSError as error:
            raise _unwritable(error.strerror) from None
        finally:
            os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an audit writer belongs to its process")


def read_audit(path: Path) -> AuditLog:
    """All whole lines of an audit file, in the order they were written, and how many are partial.

    Raises:
        ConfigError: the file can't be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"Can't read the audit file ({error.strerror}).", step="audit", hint=_HINT) from None
    last = lines.pop()  # empty after a whole line
    found = [_record(line) for line in lines if line]
    records = tuple(record for record in found if record is not None)
    return AuditLog(records, len(found) - len(records) + bool(last))


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # also what is not UTF-8
        return None
    return record if isinstance(record, dict) and {"run", "item", "state"} <= record.keys() else None


def _open(path: Path) -> int:
    """A descriptor that appends to `path`, at the start of a line."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(path, flags, 0o600)
    except OSError as error:
        raise _unwritable(error.strerror) from None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise _unwritable("it is no regular file, not yours, or open to others")
        if found.st_size and os.pread(file, 1, found.st_size - 1) != b"\n":
            os.write(file, b"\n")  # an earlier writer was killed within its line
    except BaseException:
        os.close(file)
        raise
    return file


def _unwritable(why: str | None) -> ConfigError:
    return ConfigError(f"The audit file can't be written: {why}.", step="audit", hint=_HINT)


def _digits(value: object, form: re.Pattern[str]) -> str:
    if type(value) is not str:
        raise TypeError("the audit takes a keyed hash here")
    if not form.fullmatch(value):
        raise TypeError("the audit takes no text: only hex digits of a keyed hash")
    return value


def _count(value: object) -> int:
    if type(value) is not int:
        raise TypeError("the audit takes a whole number here")
    if value < 0:
        raise ValueError("the audit takes no negative number")
    return value


def _word(value: object, kind: type[Enum]) -> str:
    """The word of an enum member. A plain string is refused though it may equal one: it could hold anything."""
    if not isinstance(value, kind) or not isinstance(value.value, str):
        raise TypeError("the audit takes no text: only words of a closed list")
    return value.value
