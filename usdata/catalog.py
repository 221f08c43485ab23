"""The catalog: DuckDB views over the Parquet parts, in a connection that can reach nothing else.

Parquet is the source of truth. A connection lives in memory and is locked down before a user's text reaches it: it may
read exactly the lake's Parquet files, can't write, attach, install or change a setting.
"""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from usdata.errors import LakeError, QueryError
from usdata.files import replacing, sync_folder
from usdata.lake import Lake
from usdata.schema import DUPLICATES, QUARANTINE, SAMPLES, SPLITS, plain_type, taxonomy

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


def write_part(path: Path, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all; the same table gives the same bytes."""
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=131_072, store_schema=True)


def canonical(table: pa.Table, schema: pa.Schema, coded: bool = True) -> pa.Table:
    """`table` in one chunk with freshly made dictionaries, so that its Parquet bytes depend on its values alone.

    Args:
        schema: names and order of the columns.
        coded: False leaves dictionary columns decoded, for joining tables.
    """
    plain = pa.schema([pa.field(f.name, plain_type(f)) for f in schema])
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
    except (pa.ArrowInvalid, OSError) as error:
        raise LakeError(f"{path} is damaged ({error}).", hint="Repair:  usdata catalog --rebuild") from error


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _source(files: list[str], schema: pa.Schema) -> str:
    """A SQL relation over Parquet files, or an empty one with the columns of `schema`."""
    if files:
        return f"read_parquet([{', '.join(map(_literal, files))}], union_by_name = true, hive_partitioning = false)"
    nulls = ", ".join(f'null::{_SQL_TYPES[plain_type(f)]} as "{f.name}"' for f in schema)
    return f"(select {nulls} where false)"


def _views(lake: Lake, relative: bool) -> dict[str, str]:
    """Name -> SELECT of each view. Relative paths are for a shell started in the lake's folder."""

    def named(paths: list[Path]) -> list[str]:
        return [str(p.relative_to(lake.root) if relative else p.absolute()) for p in paths]

    samples = _source(named(lake.catalog_files()), SAMPLES)
    columns, joins = [f"s.*, {_DERIVED}"], [f"from {samples} s"]
    for alias, name, schema in (("p", "splits", SPLITS), ("d", "duplicates", DUPLICATES)):
        path = lake.root / "catalog" / f"{name}.parquet"
        added = [f.name for f in schema if f.name != "sample_id"]
        if path.exists():
            columns += [f'{alias}."{column}"' for column in added]
            joins.append(f"left join {_source(named([path]), schema)} {alias} using (sample_id)")
        else:  # curation has not run: no join to pay for
            columns += [f'null::varchar as "{column}"' for column in added]
    quarantine = sorted((lake.root / "quarantine").glob("[!.]*.parquet"))
    return {
        "samples": f"select {', '.join(columns)} {' '.join(joins)}",
        "quarantine": f"select * from {_source(named(quarantine), QUARANTINE)}",
    }


def _organs() -> pa.Table:
    """The taxonomy's organs as a table: organ, organ_group, usfm12, tusa, arl16."""
    organs: dict[str, Any] = taxonomy()["organs"]
    columns = ("organ_group", "usfm12", "tusa", "arl16")
    return pa.table({"organ": list(organs)} | {c: [row[c] for row in organs.values()] for c in columns})


class Catalog:
    """A locked connection to one state of a lake's catalog."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._con = duckdb.connect()
        organs = _organs()
        self._con.register("_organs", organs)
        self._con.execute("create table organs as from _organs")
        self._con.unregister("_organs")
        try:
            for name, select in _views(lake, relative=False).items():
                self._con.execute(f"create view {name} as {select}")
        except duckdb.Error as error:
            raise LakeError(
                f"The catalog of {lake.root} can't be read ({_first_line(error)}).",
                hint=f"Repair:  usdata catalog --rebuild --lake {lake.root}",
            ) from error
        self._lock()

    def _lock(self) -> None:
        files = [*self.lake.catalog_files(), *(self.lake.root / "quarantine").glob("[!.]*.parquet")]
        files += [self.lake.root / "catalog" / f"{name}.parquet" for name in ("splits", "duplicates")]
        allowed = ", ".join(_literal(str(p.absolute())) for p in files)
        self._con.execute(f"set allowed_paths = [{allowed}]")
        self._con.execute("set temp_directory = ''")  # no spill files: a query writes nothing
        self._con.execute("set enable_external_access = false")
        self._con.execute("set lock_configuration = true")

    def query(self, sql: str) -> pa.Table:
        """The result of one SELECT statement.

        Raises:
            QueryError: see `Lake.sql`.
        """
        try:
            statements = self._con.extract_statements(sql)
            kinds = [s.type for s in statements]
            if kinds != [duckdb.StatementType.SELECT]:
                raise QueryError(
                    f"Only one SELECT is allowed, not {', '.join(k.name for k in kinds) or 'an empty query'}.",
                    hint='For example:  usdata sql "select organ, count(*) from samples group by all"',
                )
            return self._con.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise _refusal(error) from error

    def select(self, condition: str, columns: list[str]) -> pa.Table:
        """`columns` of the samples for which a boolean expression holds, in the order dataset, shard, offset.

        Raises:
            QueryError: the condition is no single boolean expression, or a column is unknown.
        """
        wanted = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
        try:
            chosen = self._con.sql("from samples").filter(condition)
            return chosen.order('dataset, shard, "offset"').project(wanted).to_arrow_table()
        except duckdb.Error as error:
            raise _refusal(error) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _refusal(error: duckdb.Error) -> QueryError:
    text = _first_line(error)
    hint = 'The columns:  usdata sql "describe samples"'
    if isinstance(error, duckdb.PermissionException):
        hint = "A query reads the lake's catalog and nothing else: no files, no settings, no writing."
    return QueryError(f"The query was refused: {text}", hint=hint)


def duckdb_is_fresh(lake: Lake) -> bool:
    """Whether `catalog.duckdb` was written whole, after every part of the catalog."""
    path = lake.root / "catalog.duckdb"
    if not path.exists() or _duckdb_draft(lake).exists():
        return False
    return all(part.stat().st_mtime_ns <= path.stat().st_mtime_ns for part in lake.catalog_files())


def _duckdb_draft(lake: Lake) -> Path:
    return lake.root / ".catalog.duckdb.tmp"


def write_duckdb(lake: Lake) -> None:
    """(Re)write `catalog.duckdb`, the views for a duckdb shell started in the lake's folder; paths are relative."""
    path = lake.root / "catalog.duckdb"  # the caller holds the lake's commit lock
    temporary = _duckdb_draft(lake)
    temporary.unlink(missing_ok=True)
    organs = _organs()
    with duckdb.connect(str(temporary), config={"file_search_path": str(lake.root.absolute())}) as con:
        con.register("_organs", organs)
        con.execute("create table organs as from _organs")
        for name, select in _views(lake, relative=True).items():
            con.execute(f"create view {name} as {select}")
    temporary.replace(path)
    sync_folder(lake.root)
