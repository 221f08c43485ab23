"""CSV, TSV, JSON and plain-text tables: rows of stripped strings, joined to items by key."""

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest.card import Card
from ingest.card_parts import PLACEHOLDER, Table, Value
from ingest.fields import Found, Refused, fill_template
from usdata.errors import CardError, nearest

MAX_BYTES = 1 << 30
SHOWN = 5  # rows that a note lists


def read_rows(path: Path, table: Table) -> list[dict[str, str]]:
    """The rows of a table file: column -> value, both stripped of blanks; missing values are empty strings.

    Raises:
        ValueError: not of the format, a row with more values than columns, a column name given twice.
        OSError, UnicodeDecodeError: can't be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
    text = path.read_bytes().decode(table.encoding)
    kind = table.format
    if kind == "auto":
        kind = "json" if path.suffix.lower() == ".json" else "csv"
    if kind == "json":
        return [_strip(row, table) for row in _json_rows(text)]
    lines = list(_cells(text, table, path) if kind == "csv" else (line.split() for line in text.splitlines()))
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    header = list(table.header) if table.header else [cell.strip() for cell in lines.pop(0)] if lines else []
    names = [name for name in header if name]
    if len(set(names)) < len(names):
        raise ValueError(f"a column name is given twice in {header}")
    rows = []
    for number, line in enumerate(lines, start=1):
        if len(line) > len(header) and any(cell.strip() for cell in line[len(header) :]):
            raise ValueError(f"row {number} has {len(line)} values for {len(header)} columns")
        rows.append(_strip(dict(zip(header, line + [""] * len(header), strict=False)), table))
    return rows


def _cells(text: str, table: Table, path: Path) -> Iterator[list[str]]:
    separator = table.separator or ("\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    except csv.Error as error:
        raise ValueError(f"not a table separated by {separator!r}: {error}") from error


def _json_rows(text: str) -> Iterator[dict[str, Any]]:
    """A list of objects, or an object of objects whose keys become the column `key`."""
    try:
        content = json.loads(text, object_pairs_hook=_no_key_twice)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        yield from ({"key": key, **value} for key, value in content.items())
    elif isinstance(content, list) and all(isinstance(row, dict) for row in content):
        yield from content
    else:
        raise ValueError("expected a list of objects, or an object of objects")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return found


def _strip(row: Mapping[str, Any], table: Table) -> dict[str, str]:
    return {str(name).strip(): _text(value, table) for name, value in row.items() if str(name).strip()}


def _text(value: Any, table: Table) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else str(value).strip() if isinstance(value, str | int | float) else json.dumps(value)
    return "" if text in table.missing else text


@dataclass(slots=True)
class _Joined:
    """One table of the card with the rows of all its files, by key. A key of two differing rows leads to None."""

    table: Table
    rows: dict[str, dict[str, str] | None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    columns: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    keyless: int = 0  # rows whose key is empty or a word for missing


class Tables:
    """All tables of a card, read and ready to be joined to items."""

    def __init__(self, joined: list[_Joined], examples: tuple[str, ...] = ()) -> None:
        self.joined, self.examples = joined, examples
        self.paths: tuple[str, ...] = tuple(sorted(path for one in joined for path in one.files))

    @classmethod
    def read(cls, card: Card, root: Path, files: Mapping[str, tuple[int, Mapping[str, str]]]) -> "Tables":
        """Reads `files` (path -> number of the table on the card, groups of its path).

        Raises:
            CardError: a required table is missing, a table is unreadable or lacks a column that the card names.
        """
        joined = [_Joined(table) for table in card.tables]
        examples = card.layout.example.get("table", ()) if card.layout else ()
        for path, (number, groups) in sorted(files.items()):
            one = joined[number]
            one.files.append(path)
            try:
                rows = read_rows(root / path, one.table)
            except (OSError, ValueError) as error:
                raise CardError(f"Can't read the table: {error}.", dataset=card.name, item=path, step="list") from error
            _add(card.name, one, path, [{**row, **groups} for row in rows])
        for one in joined:
            if one.table.required and not one.files:
                raise CardError(
                    f"A table that the card requires is missing: {_name(one.table, examples)}.",
                    dataset=card.name,
                    step="list",
                    hint="Give the folder that holds it as well as the images.",
                )
        return cls(joined, examples)

    def words_of(self, item: Mapping[str, str]) -> Iterator[Found]:
        """(column, how, the table's word) of the rows that belong to the item with these path words.

        Raises:
            Refused: the item's key has two differing rows, or a table that covers every item lacks its row or a value.
        """
        for one in self.joined:
            if not one.files:
                continue
            names = PLACEHOLDER.findall(one.table.match) or [one.table.match]
            key = fill_template(one.table.match, item) if all(name in item for name in names) else ""
            row = one.rows.get(key, {}) if key else {}
            if row is None:
                raise Refused("duplicate_key_in_table", f"{one.files[0]}: differing rows for {key!r}.", "join")
            if not row and one.table.every_item:
                raise Refused("label_missing", f"{one.files[0]} has no row for {key!r}.", "join")
            one.used.add(key)
            for column, value in one.table.columns.items():
                word = _cell(value, row)
                if not word and one.table.every_item and not value.optional:
                    raise Refused("label_missing", f"{one.files[0]} has no {column} for {key!r}.", "join")
                yield column, value, word

    def notes(self) -> Iterator[str]:
        """What people should know: optional tables that are absent, rows without a key or without a file."""
        for one in self.joined:
            if one.keyless:
                yield f"{', '.join(one.files)}: {one.keyless} rows have no {one.table.key} and belong to nothing"
            if not one.files:
                yield f"no {_name(one.table, self.examples)}: {', '.join(one.table.columns)} stay unknown"
            elif left := sorted(set(one.rows) - one.used):
                shown = ", ".join(left[:SHOWN]) + (", ..." if len(left) > SHOWN else "")
                yield f"{', '.join(one.files)}: {len(left)} of {len(one.rows)} keys have no file here ({shown})"


def _name(table: Table, examples: tuple[str, ...]) -> str:
    """How to call a table that is not there: by the card's example of its path, else by its pattern."""
    return next((path for path in examples if re.fullmatch(table.file, path)), table.file)


def _cell(value: Value, row: Mapping[str, str]) -> str:
    return fill_template(value.source, row) if all(name in row for name in value.names()) else ""


def _add(dataset: str, one: _Joined, path: str, rows: list[dict[str, str]]) -> None:
    needed = {name for value in one.table.columns.values() if not value.optional for name in value.names()}
    needed |= set(PLACEHOLDER.findall(one.table.key) or [one.table.key])
    present = {name for row in rows for name in row}
    for name in sorted(needed - present) if rows else ():
        raise CardError(
            f"The table has no column {name!r}.{nearest(name, present)}",
            dataset=dataset,
            item=path,
            step="list",
            hint=f"Its columns: {', '.join(sorted(present))}",
        )
    grouped: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if key := fill_template(one.table.key, row):
            grouped[key].append(row)
        else:
            one.keyless += 1
    for key, same in grouped.items():
        first = one.rows.get(key, same[0])
        one.rows[key] = first if all(row == first for row in same) else None
