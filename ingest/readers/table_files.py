"""Table files -> rows of stripped strings: CSV, TSV, JSON, XLSX, plain text, `key: value` lines, XML."""

import csv
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ingest.card_parts import Table

MAX_BYTES = 1 << 30
MAX_BYTES_OF_ONE = {"mapping": 256 << 10, "xml": 16 << 20}  # of a file that is one row; ours
MAX_DEPTH = 100  # elements of XML inside each other; ours
MAX_UNPACKED = 256 << 20  # bytes of all members of a spreadsheet; ours: 20 times the largest known
MAX_CELLS = 4_000_000  # of a sheet, empty ones counted; ours
PER_PICTURE = ("mapping", "xml")  # the whole file is one row
# What openpyxl may raise on a damaged file: it checks little of what it reads.
_SPREADSHEET_ERRORS = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, SyntaxError, RuntimeError),
    *(EOFError, zipfile.BadZipFile, zlib.error),
)


def read_rows(path: Path, table: Table) -> list[dict[str, str]]:
    """The rows of a table file: column -> value, both stripped of blanks; missing values are empty strings.

    Raises:
        ValueError: not of the format, too large, a row with more values than columns, a column name given twice.
        OSError, UnicodeDecodeError: can't be read.
    """
    return list(iterate_rows(path, table))


def iterate_rows(path: Path, table: Table) -> Iterator[dict[str, str]]:
    """As `read_rows`, one after the other."""
    kind = _kind(path, table)
    largest = MAX_BYTES_OF_ONE.get(kind, MAX_BYTES)
    if path.stat().st_size > largest:
        raise ValueError(f"larger than {largest >> 10} KiB")
    if kind == "xlsx":
        yield from _with_header(_spreadsheet(path, table.sheet), table, beside=True)
        return
    if kind == "xml":
        yield _strip(_elements(path.read_bytes()), table)
        return
    if kind == "csv":
        with path.open(encoding=table.encoding, newline="") as lines:
            yield from _with_header(_cells(lines, table, path), table)
        return
    text = path.read_bytes().decode(table.encoding)
    if kind == "json":
        yield from (_strip(row, table) for row in _json_rows(text, table.rows))
    elif kind == "lists":
        yield from (_strip(row, table) for row in _lists(text, table.rows))
    elif kind == "mapping":
        yield _strip(_mapping(text), table)
    else:
        yield from _with_header((line.split() for line in text.splitlines()), table)


def _kind(path: Path, table: Table) -> str:
    if table.format != "auto":
        return table.format
    return {".json": "json", ".xlsx": "xlsx", ".xml": "xml"}.get(path.suffix.lower(), "csv")


def _with_header(lines: Iterable[list[str]], table: Table, beside: bool = False) -> Iterator[dict[str, str]]:
    """Lines of cells as rows; the first that is not blank names the columns, unless the card does.

    Args:
        beside: cells under no name are somebody's notes beside the table, as in a spreadsheet, where no value shifts.
    """
    header = [name.strip() for name in table.header] if table.header else None
    missing = frozenset(table.missing)
    number = 0
    for line in lines:
        if not any(cell.strip() for cell in line):
            continue
        if header is None:
            header = [cell.strip() for cell in line]
            names = [name for name in header if name]
            if len(set(names)) < len(names):
                raise ValueError(f"a column name is given twice in {header}")
            continue
        number += 1
        if len(line) > len(header) and not beside and any(cell.strip() for cell in line[len(header) :]):
            raise ValueError(f"row {number} has {len(line)} values for {len(header)} columns")
        words = [word if (word := cell.strip()) not in missing else "" for cell in line]
        yield {name: word for name, word in zip_longest(header, words[: len(header)], fillvalue="") if name}


def _cells(lines: Iterable[str], table: Table, path: Path) -> Iterator[list[str]]:
    separator = table.separator or ("\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        yield from csv.reader(lines, delimiter=separator, strict=True)
    except csv.Error as error:
        raise ValueError(f"not a table separated by {separator!r}: {error}") from error


# --- JSON -------------------------------------------------------------------------------------------------------------


def parse_json(text: str) -> Any:
    """JSON in which no object names a key twice.

    Raises:
        ValueError: not JSON, a key given twice, nested too deeply, a number too long.
    """
    try:
        return json.loads(text, object_pairs_hook=_no_key_twice)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return found


def _inside(content: Any, rows: str | None) -> Any:
    """What a dotted path leads to."""
    for name in rows.split(".") if rows else ():
        if not isinstance(content, dict) or name not in content:
            keys = ", ".join(sorted(content)[:8]) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"rows: there is no {name!r} of {rows!r} ({keys})")
        content = content[name]
    return content


def _json_rows(text: str, rows: str | None) -> Iterator[dict[str, Any]]:
    """A list of objects, or an object of objects whose keys become the column `key`."""
    content = _inside(parse_json(text), rows)
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        yield from ({"key": key, **value} for key, value in content.items())
    elif isinstance(content, list) and all(isinstance(row, dict) for row in content):
        yield from content
    else:
        raise ValueError("expected a list of objects, or an object of objects")


def _lists(text: str, rows: str | None) -> Iterator[dict[str, Any]]:
    """An object of lists: each entry of each list is a row."""
    content = _inside(parse_json(text), rows)
    if not isinstance(content, dict) or not all(isinstance(entries, list) for entries in content.values()):
        raise ValueError("expected an object of lists")
    for name, entries in content.items():
        for entry in entries:
            if isinstance(entry, dict | list) or entry is None:
                raise ValueError(f"the list {name!r} holds something else than words and numbers")
            yield {"list": name, "value": entry}


# --- one row a file ---------------------------------------------------------------------------------------------------


def _mapping(text: str) -> dict[str, str]:
    """Lines of `key: value` (YAML without nesting), every value as it is written."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"no lines of `key: value`: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("no lines of `key: value`")
    found: dict[str, str] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
            raise ValueError("expected one value for each key")
        if key.value in found:
            raise ValueError(f"the key {key.value!r} is given twice")
        found[key.value] = value.value
    return found


def parse_xml(content: bytes) -> Any:
    """The root of an XML document (xml.etree.ElementTree.Element). Entities and references to other files are refused.

    Raises:
        ValueError: not XML, or refused.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        return fromstring(content, forbid_dtd=False)
    except (ParseError, DefusedXmlException, LookupError, RecursionError) as error:
        text = str(error) if isinstance(error, ParseError | LookupError) else type(error).__name__
        raise ValueError(f"no XML that can be read: {text[:200]}") from error


def local_name(tag: Any) -> str:
    """An element's name without its namespace; empty for comments."""
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _elements(content: bytes) -> dict[str, str]:
    """The texts of the elements that hold no other, by their path below the root (`size/width`).

    An element that is there more than once is no column: which of them a card means can't be said.
    """
    found: dict[str, str] = {}
    twice: set[str] = set()
    pending = [("", parse_xml(content))]
    while pending:
        prefix, parent = pending.pop()
        if prefix.count("/") > MAX_DEPTH:
            raise ValueError("nested too deeply")
        for child in parent:
            name = prefix + local_name(child.tag)
            if len(child):
                pending.append((f"{name}/", child))
            elif name in found:
                twice.add(name)
            else:
                found[name] = child.text or ""
    return {name: text for name, text in found.items() if name not in twice}


# --- spreadsheets -----------------------------------------------------------------------------------------------------


def _spreadsheet(path: Path, sheet: str | None) -> Iterator[list[str]]:
    """The rows of one sheet: numbers as their shortest decimal, dates as ISO, formulas as the values last computed."""
    from openpyxl import load_workbook

    try:
        _check_unpacked(path)
        with path.open("rb") as file:
            book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
            names = [one.title for one in book.worksheets]
            if sheet is not None and sheet not in names:
                raise ValueError(f"no sheet {sheet!r}, only {', '.join(names)}")
            if not names:
                raise ValueError("no sheet with cells")
            page = book[sheet or names[0]]
            page.reset_dimensions()  # what the file says of its size may be wrong
            yield from _limited(page.iter_rows(values_only=True))
    except ValueError:
        raise
    except _SPREADSHEET_ERRORS as error:
        raise ValueError(f"no spreadsheet that can be read ({type(error).__name__}: {str(error)[:200]})") from error


def _check_unpacked(path: Path) -> None:
    """Refuse a file whose members unpack to more than a table can hold; `zipfile` reads no more than they declare."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_UNPACKED:
        raise ValueError(f"its parts unpack to {size >> 20} MiB; at most {MAX_UNPACKED >> 20} are read")


def _limited(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[str]]:
    cells = 0
    for row in rows:
        cells += len(row) + 1  # a row that is left out counts too: a file may claim billions of them
        if cells > MAX_CELLS:
            raise ValueError(f"more than {MAX_CELLS:,} cells")
        yield [_cell_text(value) for value in row]


def _cell_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15g}"  # the digits that a spreadsheet shows; 2.0 is stored for 2
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return f"{value.total_seconds():.15g}" if isinstance(value, timedelta) else str(value)


# --- values -----------------------------------------------------------------------------------------------------------


def _strip(row: Mapping[str, Any], table: Table) -> dict[str, str]:
    return {str(name).strip(): _text(value, table) for name, value in row.items() if str(name).strip()}


def _text(value: Any, table: Table) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else str(value).strip() if isinstance(value, str | int | float) else json.dumps(value)
    return "" if text in table.missing else text
