"""The SQL of the catalog's views over Parquet files."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from usdata.parts import Part, check_alike
from usdata.schema import DUPLICATES, QUARANTINE, SAMPLES, SPLITS, plain_type, taxonomy

ASKED_FOR = "curation's columns are asked for"  # the error of a query on a view without them
_SQL_TYPES = {
    pa.string(): "varchar",
    pa.bool_(): "boolean",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.uint64(): "ubigint",
    pa.float64(): "double",
    pa.list_(pa.string()): "varchar[]",
}
# The stored image is the crop stretched to 256 x 256, so its spacing differs between the axes.
_DERIVED = """
    s.pixel_mm_x * (s.crop_x1 - s.crop_x0) / 256 as stored_mm_x,
    s.pixel_mm_y * (s.crop_y1 - s.crop_y0) / 256 as stored_mm_y"""
CURATION = {"splits": SPLITS, "duplicates": DUPLICATES}


def all_views(root: Path, files: Collection[Path], samples: str, relative: bool = False) -> dict[str, str]:
    """Name -> SELECT of each view; `samples` is that of the view `samples`.

    Args:
        files: all files of the catalog.
        relative: paths for a shell started in the lake's folder.
    """
    quarantine = sorted(path for path in files if path.parent == root / "quarantine")
    listed = _source(_shown(root, quarantine, relative), QUARANTINE)
    return {"samples": samples, "quarantine": f"select * from {listed}", "organs": _organs(), "schemes": _schemes()}


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def quoted(text: str) -> str:
    """A column's name as SQL writes it."""
    return '"' + text.replace('"', '""') + '"'


def _source(files: Sequence[str], schema: pa.Schema, absent: Sequence[pa.Field] = (), place: bool = False) -> str:
    """A SQL relation over Parquet files, or an empty one with the columns of `schema`.

    Args:
        absent: columns that no file has: null.
        place: also file_index and file_row_number, where each row stands.
    """
    if not files:
        nulls = ["0::ubigint as file_index", "0::bigint as file_row_number"] if place else []
        return f"(select {', '.join([*map(_null, schema), *nulls])} where false)"
    read = f"read_parquet([{', '.join(map(literal, files))}], union_by_name = true, hive_partitioning = false)"
    added = [*(("file_index", "file_row_number") if place else ()), *map(_null, absent)]
    return f"(select *, {', '.join(added)} from {read})" if added else read


def _null(field: pa.Field) -> str:
    return f"null::{_SQL_TYPES[plain_type(field)]} as {quoted(field.name)}"


def samples_view(
    root: Path,
    files: Collection[Path],
    parts: Sequence[Part],
    *,
    curated: bool = True,
    place: bool = False,
    relative: bool = False,
) -> str:
    """SELECT of the view `samples`: this version's columns, those of a later one, the computed ones, curation's.

    Args:
        curated: False puts an error in place of curation's columns: a query that finishes has not asked for them, so
            it need not pay for the joins, which at five million rows take seconds. (DuckDB leaves out a join that no
            column is asked of in few cases only, and never looks at a value that no one asks for.)
        place: also `_part` and `_row`, where a row stands.
    """
    later = [field.name for field in check_alike(parts)]
    stored = {name for part in parts for name in part.schema.names}
    absent = [f for f in SAMPLES if f.name not in stored]
    columns = [f"s.{quoted(name)}" for name in (*SAMPLES.names, *later)] + [_DERIVED]
    paths = _shown(root, [part.path for part in parts], relative)
    joins = [f"from {_source(paths, SAMPLES, absent, place)} s"]
    for name, schema in CURATION.items():
        path = root / "catalog" / f"{name}.parquet"
        added = [f.name for f in schema if f.name != "sample_id"]
        if path not in files:
            columns += [f"null::varchar as {quoted(column)}" for column in added]
        elif not curated:
            columns += [f"error({literal(ASKED_FOR)})::varchar as {quoted(column)}" for column in added]
        else:
            columns += [f"{name}.{quoted(column)}" for column in added]
            joins.append(f"left join {_source(_shown(root, [path], relative), schema)} {name} using (sample_id)")
    columns += ["s.file_index as _part", "s.file_row_number as _row"] if place else []
    return f"select {', '.join(columns)} {' '.join(joins)}"


def _shown(root: Path, paths: Sequence[Path], relative: bool) -> list[str]:
    """Relative paths are for a shell started in the lake's folder."""
    return [str(path.relative_to(root) if relative else path) for path in paths]


def _organs() -> str:
    """SELECT of the taxonomy's organs: organ, organ_group, usfm12, tusa, arl16."""
    organs: dict[str, Any] = taxonomy()["organs"]
    columns = ("organ_group", "usfm12", "tusa", "arl16")
    rows = [[organ, *(row[column] for column in columns)] for organ, row in organs.items()]
    cells = [", ".join("null" if word is None else literal(word) for word in row) for row in rows]
    return f"select * from (values ({'), ('.join(cells)})) organs(organ, {', '.join(columns)})"


def _schemes() -> str:
    """SELECT of the published schemes' classes: scheme, class, position."""
    schemes: dict[str, list[str]] = taxonomy()["schemes"]
    rows = [f"{literal(s)}, {literal(word)}, {i}" for s, words in schemes.items() for i, word in enumerate(words)]
    return f"select * from (values ({'), ('.join(rows)})) schemes(scheme, class, position)"
