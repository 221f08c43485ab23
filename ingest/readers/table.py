"""The rows of a card's tables, joined to items by key; `ingest.readers.table_files` reads the files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingest.card import Card
from ingest.card_parts import PLACEHOLDER, Table, Value
from ingest.fields import Found, Refused, fill_template
from ingest.readers.table_files import PER_PICTURE, iterate_rows, parse_json
from usdata.errors import CardError, nearest

SHOWN = 5  # rows that a note lists


@dataclass(slots=True)
class _Joined:
    """One table of the card with the rows of all its files, by key. A key of two differing rows leads to None.

    Of a row only the columns that the card reads are kept, and two rows differ if these do.
    """

    table: Table
    fold: bool = False  # whether keys that differ in case are one, as paths are of a card that ignores case
    rows: dict[str, dict[str, str] | None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    keyless: int = 0  # rows whose key is empty or a word for missing
    asked: int = 0  # items that were looked up
    rowless: int = 0  # of them, those without a row
    # Of a table that counts pictures (`position`): what stands before and behind the number in a key, and the folder ->
    # how many pictures are there.
    counted: dict[tuple[str, str, str], int] = field(default_factory=dict)


class Tables:
    """All tables of a card, read and ready to be joined to items."""

    def __init__(self, joined: list[_Joined], examples: tuple[str, ...] = ()) -> None:
        self.joined, self.examples = joined, examples
        self.unreadable: dict[str, str] = {}  # files of one row each that can't be read, with what is wrong

    @property
    def paths(self) -> frozenset[str]:
        """The files that were read."""
        return frozenset(path for one in self.joined for path in one.files)

    @classmethod
    def read(cls, card: Card, root: Path, files: Mapping[str, Sequence[tuple[int, Mapping[str, str]]]]) -> "Tables":
        """Reads `files` (path -> number of each table on the card that reads it, groups of its path).

        Raises:
            CardError: a required table is missing, a table is unreadable or lacks a column that the card names. (A
                file that is one row of many, of one patient say, is put among the `unreadable` instead.)
        """
        tables = cls(
            [_Joined(table, bool(card.layout and card.layout.ignore_case)) for table in card.tables],
            card.layout.example.get("table", ()) if card.layout else (),
        )
        for path, number, groups in sorted((path, *one) for path, found in files.items() for one in found):
            if number >= len(card.tables):
                continue  # an annotation
            one = tables.joined[number]
            try:
                _add(card.name, one, path, root / path, groups)
            except (OSError, ValueError) as error:
                if one.table.format not in PER_PICTURE or one.table.required:
                    text = f"Can't read the table: {error}."
                    raise CardError(text, dataset=card.name, item=path, step="list") from error
                tables.unreadable[path] = str(error)
            else:
                one.files.append(path)
        for one in tables.joined:
            if one.table.required and not one.files:
                raise CardError(
                    f"A table that the card requires is missing: {name_of(one.table.file, tables.examples)}.",
                    dataset=card.name,
                    step="list",
                    hint="Give the folder that holds it as well as the images.",
                )
        return tables

    def see(self, item: Mapping[str, str]) -> None:
        """Count an item that is there, whatever becomes of it, for the tables that name pictures by their position."""
        for one in self.joined:
            names = PLACEHOLDER.findall(one.table.match) or [one.table.match]
            if "position" in names and all(name in item for name in names):
                pattern = fill_template(one.table.match, {**item, "position": "\0"})
                before, _, after = (pattern.casefold() if one.fold else pattern).partition("\0")
                folder = item["path"].rpartition("/")[0]
                place = before, after, folder
                one.counted[place] = max(one.counted.get(place, 0), int(item["position"]) + 1)

    def check_positions(self, dataset: str) -> None:
        """Refuse a folder with fewer pictures than a table counts: behind a gap each row would be its neighbour's.

        Raises:
            CardError: a row's position lies beyond the last picture of a folder.
        """
        for one in self.joined:
            for (before, after, folder), count in one.counted.items():
                inside = [key[len(before) : len(key) - len(after)] for key in one.rows if key.startswith(before)]
                inside = [word for word in inside if f"{before}{word}{after}" in one.rows and word.isdecimal()]
                if any(int(word) >= count for word in inside):
                    raise CardError(
                        f"{_files(one)} counts the pictures of a folder up to {max(map(int, inside))}, from 0, but "
                        f"{folder or 'it'} holds {count}: behind each missing one, rows would go to a wrong picture.",
                        dataset=dataset,
                        step="join",
                        hint="Give all pictures; or, for a part of them, a card of your own without this table.",
                    )

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
            key = key.casefold() if one.fold else key
            row = one.rows.get(key, {}) if key else {}
            one.used.add(key)
            one.asked += 1
            one.rowless += key not in one.rows
            if row is None:
                raise Refused("duplicate_key_in_table", f"{one.files[0]}: differing rows for {key!r}.", "join")
            if not row and one.table.every_item:
                raise Refused("label_missing", f"{one.files[0]} has no row for {key!r}.", "join")
            for column, value in one.table.columns.items():
                word = _cell(value, row)
                if not word and one.table.every_item and not value.optional:
                    raise Refused("label_missing", f"{one.files[0]} has no {column} for {key!r}.", "join")
                yield column, value, word

    def notes(self) -> Iterator[str]:
        """What people should know: optional tables that are absent, rows without a key or without a file."""
        for one in self.joined:
            if one.keyless:
                yield f"{_files(one)}: {one.keyless} rows have no {one.table.key} and belong to nothing"
            if one.rowless and not one.table.every_item:  # of such a table each of them is refused
                columns = ", ".join(one.table.columns)
                yield f"{_files(one)}: {one.rowless} of {one.asked} items have no row, so no {columns}"
            if not one.files:
                yield f"no {name_of(one.table.file, self.examples)}: {', '.join(one.table.columns)} stay unknown"
            elif left := sorted(set(one.rows) - one.used):
                yield f"{_files(one)}: {len(left)} of {len(one.rows)} keys have no file here ({some(left)})"


def name_of(pattern: str, examples: tuple[str, ...]) -> str:
    """How to call a table that is not there: by the card's example of its path, else by its pattern."""
    return next((path for path in examples if re.fullmatch(pattern, path)), pattern)


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _files(one: _Joined) -> str:
    return some(one.files)


def _cell(value: Value, row: Mapping[str, str]) -> str:
    return fill_template(value.source, row) if all(name in row for name in value.names()) else ""


def _add(dataset: str, one: _Joined, path: str, place: Path, groups: Mapping[str, str]) -> None:
    """Take in the rows of one file; `a.b` is the entry `b` of the JSON object in column `a`."""
    key_names = PLACEHOLDER.findall(one.table.key) or [one.table.key]
    needed = {name for value in one.table.columns.values() if not value.optional for name in value.names()}
    needed |= set(key_names)
    kept = needed | {name for value in one.table.columns.values() for name in value.names()}
    present: set[str] = set()
    known: set[str] = set()  # of `kept`, those that some row has
    for read in iterate_rows(place, one.table):
        row = {**read, **groups}
        present |= row.keys()
        words = {name: word for name in kept if (word := _word(row, name)) is not None}
        known |= words.keys()
        key = fill_template(one.table.key, words) if all(name in words for name in key_names) else ""
        key = key.casefold() if one.fold else key
        if not key:
            one.keyless += 1
        elif one.rows.setdefault(key, words) != words:
            one.rows[key] = None
    for name in sorted(needed - known) if present else ():
        raise CardError(
            f"The table has no column {name!r}.{nearest(name, present)}",
            dataset=dataset,
            item=path,
            step="list",
            hint=f"Its columns: {', '.join(sorted(present))}",
        )


def _word(row: Mapping[str, str], name: str) -> str | None:
    """A row's value of a column; None if it has none."""
    head, dot, entry = name.partition(".")
    if name in row or not dot or head not in row:
        return row.get(name)
    try:
        inside = parse_json(row[head]) if row[head] else {}
    except ValueError:
        inside = None
    if not isinstance(inside, dict):
        raise ValueError(f"{name}: {row[head][:80]!r} is not a JSON object")
    value = inside.get(entry)
    return value.strip() if isinstance(value, str) else None if value is None else str(value)
