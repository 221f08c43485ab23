"""The catalog's Parquet parts: written so that the same table gives the same bytes, read by column and row number.

A part is one data set's file, or one of several. Its rows stand in the order shard, offset; where that holds the file
says so (Parquet's sorting columns), and a cohort needs no sort. A part of an earlier version may lack columns and one
of a later version may have more; a column of another type is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from usdata.errors import LakeError
from usdata.files import replacing
from usdata.schema import CLIMBING, CURATED, DERIVED, DISTINCT, SAMPLES, plain_type

_ROW_GROUP = 131_072
_ORDER = (("shard", "ascending"), ("offset", "ascending"))
DAMAGED = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises for a damaged file: UnicodeDecodeError, too
_REPAIR = "Repair:  usdata catalog --rebuild"


def write_part(path: Path, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all; the same table gives the same bytes."""
    with replacing(path) as file:
        pq.write_table(table, file, **_layout(table))


def _layout(table: pa.Table) -> dict[str, Any]:
    """Words by dictionary; ids and hashes, of which no two are alike, as they are; places by their differences."""
    leaves = [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in table.schema]
    climbing = [name for name in leaves if name in CLIMBING]
    return {
        "compression": "zstd",
        "row_group_size": _ROW_GROUP,
        "store_schema": True,
        "write_page_checksum": True,  # any flipped bit of a value can be found, also where no manifest has a hash
        "use_dictionary": [name for name in leaves if name not in (*DISTINCT, *climbing)],
        "column_encoding": dict.fromkeys(climbing, "DELTA_BINARY_PACKED"),
        "sorting_columns": pq.SortingColumn.from_ordering(table.schema, _ORDER) if in_order(table) else None,
    }


def in_order(table: pa.Table) -> bool:
    """Whether the rows stand in the order shard, offset, no place twice."""
    if not {"shard", "offset"} <= set(table.column_names):
        return False
    codes, names = coded(table["shard"])
    offset = table["offset"].to_numpy()
    steps = np.diff(codes)
    rising = (steps > 0) | ((steps == 0) & (np.diff(offset) > 0))
    return bool(rising.all()) and bool((codes >= 0).all()) and names == sorted(names)


def coded(column: pa.ChunkedArray | pa.Array) -> tuple[NDArray[np.int32], list[str]]:
    """A column of words as numbers, −1 for null, and the words that occur, in the order of their first appearance.

    Not in the order of first appearance if the column is dictionary-coded already: then in that of the dictionary.
    """
    column = pa.chunked_array([column]) if isinstance(column, pa.Array) else column
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    seen = np.bincount(codes + 1, minlength=len(whole.dictionary) + 1)[1:] > 0
    words = whole.dictionary.to_pylist()
    if seen.all():
        return codes, words
    number = np.concatenate([np.cumsum(seen, dtype=np.int32) - 1, np.array([-1], np.int32)])  # the last: null's −1
    return number[codes], [word for word, used in zip(words, seen, strict=True) if used]


def canonical(table: pa.Table, schema: pa.Schema, coded: bool = True) -> pa.Table:
    """`table` in one chunk with freshly made dictionaries, so that its Parquet bytes depend on its values alone.

    A column that the table lacks, being of an earlier version, is null.

    Args:
        schema: names and order of the columns.
        coded: False leaves dictionary columns decoded, for joining tables.
    """
    plain = pa.schema([pa.field(f.name, plain_type(f)) for f in schema])
    for field in plain:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    table = table.select(schema.names).cast(plain).combine_chunks()
    if not coded:
        return table
    columns = [
        table[f.name].combine_chunks().dictionary_encode() if pa.types.is_dictionary(f.type) else table[f.name]
        for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def read_part(path: Path) -> pa.Table:
    """Read a Parquet file of the lake.

    Raises:
        LakeError: damaged; the message says how to repair it.
    """
    try:
        return pq.read_table(path, partitioning=None)
    except DAMAGED as error:
        raise LakeError(f"{path} is damaged ({error}).", hint=_REPAIR) from error


# --- many parts as one table ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What the foot of a part says: its rows, columns and order."""

    path: Path
    dataset: str
    schema: pa.Schema
    groups: NDArray[np.int64]  # (n_groups + 1,) first row of each row group, and the number of rows
    span: tuple[str, str] | None  # first and last shard, if the rows are in order and all of this data set

    @property
    def rows(self) -> int:
        """Number of samples."""
        return int(self.groups[-1])


def open_part(path: Path, dataset: str) -> Part:
    """Read the foot of a part.

    Raises:
        LakeError: damaged, or a column of another type than this version's.
        FileNotFoundError: it is not there, or not any more.
    """
    try:
        meta = pq.read_metadata(path)
        schema = meta.schema.to_arrow_schema()
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise LakeError(f"{path} is damaged ({error}).", hint=_REPAIR) from error
    for field in schema:
        _check_column(path, dataset, field)
    sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    return Part(path, dataset, schema, np.cumsum([0, *sizes]), _span(meta, dataset))


def _check_column(path: Path, dataset: str, field: pa.Field) -> None:
    if field.name in (*CURATED, *DERIVED):
        raise LakeError(
            f"{path} has a column {field.name!r}, which is curation's or computed, not stored.",
            dataset=dataset,
            hint="It was written by another program or a later version:  pip install --upgrade usdata",
        )
    if field.name in SAMPLES.names and plain_type(field) != (wanted := plain_type(SAMPLES.field(field.name))):
        raise LakeError(
            f"{path}: the column {field.name!r} holds {plain_type(field)}, this version reads {wanted}.",
            dataset=dataset,
            hint="Upgrade:  pip install --upgrade usdata        Or ingest the data set anew with this version.",
        )


def _span(meta: pq.FileMetaData, dataset: str) -> tuple[str, str] | None:
    """First and last shard, if every row group is declared sorted and holds this data set alone."""
    names = (
        {meta.row_group(0).column(i).path_in_schema: i for i in range(meta.num_columns)} if meta.num_row_groups else {}
    )
    if not {"dataset", "shard", "offset"} <= set(names):
        return None
    wanted = (names["shard"], names["offset"])
    bounds: list[tuple[str, str]] = []
    for i in range(meta.num_row_groups):
        group = meta.row_group(i)
        order = tuple(c.column_index for c in group.sorting_columns if not c.descending)
        of, shard = group.column(names["dataset"]).statistics, group.column(names["shard"]).statistics
        if order[:2] != wanted or of is None or shard is None or not (of.has_min_max and shard.has_min_max):
            return None
        if (of.min, of.max) != (dataset, dataset):
            return None
        bounds.append((shard.min, shard.max))
    return bounds[0][0], bounds[-1][1]


def check_alike(parts: Sequence[Part]) -> list[pa.Field]:
    """The columns that this version does not know, in the order of their first appearance.

    Raises:
        LakeError: two parts give one of them different types.
    """
    found: dict[str, tuple[pa.Field, Path]] = {}
    for part in parts:
        for field in part.schema:
            if field.name in SAMPLES.names:
                continue
            first, where = found.setdefault(field.name, (field, part.path))
            if plain_type(first) != plain_type(field):
                raise LakeError(
                    f"The column {field.name!r} holds {plain_type(first)} in {where}, but {plain_type(field)} in "
                    f"{part.path}.",
                    dataset=part.dataset,
                    hint="Both come from a later version:  pip install --upgrade usdata",
                )
    return [field.remove_metadata() for field, _ in found.values()]


def are_ordered(parts: Sequence[Part]) -> bool:
    """Whether the rows of all parts, one after the other, stand in the order dataset, shard, offset."""
    spans = [(p.dataset, *p.span) for p in parts if p.span is not None and p.rows]
    full = [p for p in parts if p.rows]
    return len(spans) == len(full) and all(a[0] < b[0] or (a[0] == b[0] and a[2] < b[1]) for a, b in pairwise(spans))


def read_columns(parts: Sequence[Part], names: Sequence[str], rows: NDArray[np.integer]) -> pa.Table:
    """Columns of some rows of all parts laid end to end; words stay dictionary-coded.

    Args:
        names: of stored columns; where a part lacks one, it is null.
        rows: shape (n,), row numbers in [0, all rows).

    Raises:
        LakeError: a part is damaged.
        FileNotFoundError: a part is gone.
    """
    if not (np.diff(rows.astype(np.int64, copy=False)) > 0).all():
        order = np.argsort(rows, kind="stable")
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return read_columns(parts, names, rows[order]).take(pa.array(back))
    wanted = _types(parts, names)
    starts = np.cumsum([0, *(part.rows for part in parts)])
    bounds = np.searchsorted(rows, starts)
    tables = [
        _read_rows(part, wanted, rows[low:high] - start)
        for part, start, (low, high) in zip(parts, starts, pairwise(bounds), strict=False)
        if high > low
    ]
    return pa.concat_tables([pa.schema(list(wanted.items())).empty_table(), *tables])


def _types(parts: Sequence[Part], names: Sequence[str]) -> dict[str, pa.DataType]:
    known = {f.name: f.type for f in (*SAMPLES, *check_alike(parts))}
    return {name: known[name] for name in names}


def _read_rows(part: Part, wanted: Mapping[str, pa.DataType], rows: NDArray[np.integer]) -> pa.Table:
    """Columns of some rows of a part, ascending; only the row groups that hold one are read."""
    present = [name for name in wanted if name in part.schema.names]
    ends = np.searchsorted(rows, part.groups)
    groups = np.flatnonzero(np.diff(ends))
    try:
        with pq.ParquetFile(part.path, memory_map=True) as file:
            table = file.read_row_groups(groups.tolist(), columns=present)
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise LakeError(f"{part.path} is damaged ({error}).", dataset=part.dataset, hint=_REPAIR) from error
    read = np.diff(part.groups)[groups]
    if len(rows) < read.sum():
        skipped = part.groups[groups] - np.concatenate([[0], np.cumsum(read)[:-1]])
        table = (
            table.unify_dictionaries().combine_chunks().take(pa.array(rows - np.repeat(skipped, np.diff(ends)[groups])))
        )
    columns = [_as(table[n], t) if n in present else pa.nulls(len(rows), t) for n, t in wanted.items()]
    return pa.table(dict(zip(wanted, columns, strict=True)))


def _as(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    """A column as the type that the catalog has it in; only the coding may differ."""
    if column.type == wanted:
        return column
    return column.cast(wanted.value_type).dictionary_encode() if pa.types.is_dictionary(wanted) else column.cast(wanted)


def sorted_lines(ids: pa.ChunkedArray) -> Iterator[bytes | memoryview]:
    """The bytes of the ids in sorted order, each followed by a newline, in pieces.

    Data set by data set where that gives the order of all, which it does unless one's name begins another's.
    """
    pieces = [np.sort(_as_bytes(chunk)) for chunk in ids.chunks if len(chunk)]
    pieces.sort(key=lambda piece: piece[0])
    if any(before[-1] >= after[0] for before, after in pairwise(pieces)):
        width = max(piece.dtype.itemsize for piece in pieces)
        pieces = [np.sort(np.concatenate([piece.astype(f"S{width}") for piece in pieces]))]
    for piece in pieces:
        yield _lines(piece)


def _as_bytes(ids: pa.StringArray) -> NDArray[np.bytes_]:
    """Shape (n,), bytes of equal length, shorter ids padded with zeros, which sorts them as text."""
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1]
    widths = np.diff(offsets)
    text = np.frombuffer(ids.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    width = int(widths.max())
    if (widths == width).all():
        return text.view(f"S{width}")
    padded = np.zeros((len(ids), width), np.uint8)
    padded[np.arange(width) < widths[:, None]] = text
    return padded.view(f"S{width}").ravel()


def _lines(ids: NDArray[np.bytes_]) -> memoryview:
    width = ids.dtype.itemsize
    lines = np.empty((len(ids), width + 1), np.uint8)
    lines[:, :width] = ids.view(np.uint8).reshape(-1, width)
    lines[:, width] = ord("\n")
    flat = lines.ravel()
    return (flat if (flat != 0).all() else flat[flat != 0]).data
