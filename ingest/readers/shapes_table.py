"""Shapes in tables: VGG Image Annotator's CSV, tracings of one point a row, run lengths as Kaggle writes them."""

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ingest.card_parts import Annotations, Table
from ingest.readers.shapes import Found, Kind, Read, Shape, Unusable, bad, ellipse, picture_words
from ingest.readers.table_files import iterate_rows, parse_json

_RUNS = ("pixels", "EncodedPixels", "rle", "runs")  # usual names of the column of run lengths


def _rows(path: Path, one: Annotations) -> Iterator[dict[str, str]]:
    table = Table(file=".*", key="file", match="path", columns={}, encoding=one.encoding)
    yield from iterate_rows(path, table)


def _name(row: Mapping[str, str], one: Annotations, word: str, *usual: str) -> str | None:
    """The column that the card gives for `word`, else the first usual one that is there."""
    if word not in one.columns:
        return next((name for name in (word, *usual) if name in row), None)
    if one.columns[word] not in row:
        raise ValueError(f"no column {one.columns[word]!r} ({', '.join(sorted(row)[:12])})")
    return one.columns[word]


def _column(row: Mapping[str, str], one: Annotations, word: str, *usual: str) -> str | None:
    """The value in the column of `word`; None if there is no such column."""
    name = _name(row, one, word, *usual)
    return None if name is None else row[name]


# --- VIA --------------------------------------------------------------------------------------------------------------


def read_via(path: Path, one: Annotations, odd: "Counter[str]") -> Iterator[Found]:
    """Regions as VIA 1 and 2 export them. `columns.name`: the region's attribute that names it; default: its only one.

    Source: robots.ox.ac.uk/~vgg/software/via.
    """
    for row in _rows(path, one):
        file = _column(row, one, "file", "filename", "#filename")
        shape, about = row.get("region_shape_attributes"), row.get("region_attributes")
        if file is None or shape is None or about is None:
            raise ValueError("not of VIA: no filename, region_shape_attributes, region_attributes")
        words = picture_words(file)
        try:
            region = _object(shape)
            if not region:
                odd["rows have no region: nothing was drawn"] += 1
                continue
            kind, pairs = _via(region)
            yield Found(words, Shape.of(_via_name(_object(about), one), kind, pairs))
        except Unusable as error:
            yield bad(words, f"region {row.get('region_id', '?')}: {error}")


def _object(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text) if text else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unusable(f"{text[:60]!r} is no JSON object")
    return found


def _via_name(about: Mapping[str, Any], one: Annotations) -> str:
    if "name" in one.columns:
        return str(about.get(one.columns["name"]) or "").strip()
    return str(next(iter(about.values())) or "").strip() if len(about) == 1 else ""


def _via(region: Mapping[str, Any]) -> tuple[Kind, Any]:
    kind = region.get("name")
    if kind in ("polygon", "polyline"):
        x, y = region.get("all_points_x"), region.get("all_points_y")
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            raise Unusable("a polygon without as many x as y")
        return ("polygon" if kind == "polygon" else "line"), list(zip(x, y, strict=True))
    if kind == "rect":
        x, y, width, height = _numbers(region, "x", "y", "width", "height")
        return "box", [(x, y), (x + width, y + height)]
    if kind == "circle":
        x, y, radius = _numbers(region, "cx", "cy", "r")
        return "polygon", ellipse(x, y, radius, radius)
    if kind == "ellipse":
        cx, cy, rx, ry = _numbers(region, "cx", "cy", "rx", "ry")
        return "polygon", ellipse(cx, cy, rx, ry, region.get("theta", 0.0))
    if kind == "point":
        return "points", [_numbers(region, "cx", "cy")]
    raise Unusable(f"regions of the kind {str(kind)[:40]!r} are not read")


def _numbers(region: Mapping[str, Any], *names: str) -> list[float]:
    values = [region.get(name) for name in names]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise Unusable(f"no numbers {', '.join(names)}")
    return [float(value) for value in values if value is not None]


# --- tracings ---------------------------------------------------------------------------------------------------------


def read_tracings(path: Path, one: Annotations, odd: "Counter[str]") -> Iterator[Found]:
    """Outlines of one point a row, or of one chord a row: (x, y) in order, then (x2, y2) backwards.

    The leading `skip_first` rows of each outline are left out: EchoNet's first chord is the ventricle's long axis. Rows
    whose frame is no number ("No Systolic") are counted and left out.
    """
    outlines: dict[tuple[str, str, str], tuple[dict[str, str], array[float]]] = {}
    names: list[str | None] | None = None
    for row in _rows(path, one):
        names = names or _tracing_columns(row, one)
        file, frame, name = ("" if column is None else row[column] for column in names[:3])
        if frame and _frame(frame, one) is None:
            odd[f"rows have the frame {frame[:40]!r}: no outline"] += 1
            continue
        key = (file, frame, name)
        if key not in outlines:
            outlines[key] = ({**row, **picture_words(file), "frame": frame}, array("d"))
        outlines[key][1].extend([_number(row[column]) if column else math.nan for column in names[3:]])
    for (_, frame, name), (words, numbers) in outlines.items():
        number = _frame(frame, one) if frame else None
        try:
            rows = np.asarray(numbers).reshape(-1, 4)[one.skip_first :]
            chords = not np.isnan(rows[:, 2:]).all()
            points = np.concatenate([rows[:, :2], rows[::-1, 2:]]) if chords else rows[:, :2]
            if number is not None and number < 0:
                raise Unusable(f"frame {frame}, where the first is {one.frame_base}")
            yield Found(words, Shape.of(name, "polygon", points, number))
        except Unusable as error:
            yield bad(words, f"frame {frame}: {error}", number)


def _frame(text: str, one: Annotations) -> int | None:
    """The frame's number from 0; None if it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) - one.frame_base if number.is_integer() and abs(number) < 1e9 else None


def _tracing_columns(row: Mapping[str, str], one: Annotations) -> list[str | None]:
    """The columns of file, frame, name, x, y, x2, y2; of the last two only if the card gives them."""
    for word in ("x", "y"):
        if _name(row, one, word) is None:
            raise ValueError(f"no column for {word}: give annotations.columns ({', '.join(sorted(row)[:12])})")
    seconds = [_name(row, one, word) if word in one.columns else None for word in ("x2", "y2")]
    return [*(_name(row, one, word) for word in ("file", "frame", "name", "x", "y")), *seconds]


def _number(text: str) -> float:
    """A coordinate; what is missing or no number is infinite, which makes its outline unusable."""
    try:
        return float(text)
    except ValueError:
        return math.inf


# --- run lengths ------------------------------------------------------------------------------------------------------


def read_rle(path: Path, one: Annotations, odd: "Counter[str]") -> Iterator[Found]:
    """Pairs of start and length, counted from 1 down the columns. An empty cell is no shape: no mask."""
    for row in _rows(path, one):
        runs = _column(row, one, "runs", *_RUNS)
        if runs is None:
            raise ValueError(f"no column of run lengths ({', '.join(sorted(row)[:12])})")
        file = _column(row, one, "file", "filename", "image") or ""
        words = {**row, **picture_words(file)} if file else row
        if not runs:
            odd["rows are empty: no mask"] += 1
            continue
        try:
            name = _column(row, one, "name") or ""
            yield Found(words, Shape.of(name, "runs", _pairs(runs)))
        except Unusable as error:
            yield bad(words, error)


def _pairs(text: str) -> Any:
    try:
        numbers = np.array([int(word) for word in text.split()], np.int64)
    except (ValueError, OverflowError) as error:
        raise Unusable(f"{text[:40]!r} are no run lengths") from error
    if len(numbers) % 2:
        raise Unusable("a start without its length")
    pairs = numbers.reshape(-1, 2)
    if (pairs < 1).any():
        raise Unusable("starts and lengths count from 1")
    return pairs - [1, 0]


READERS: dict[str, Read] = {"via": read_via, "tracings": read_tracings, "rle": read_rle}
