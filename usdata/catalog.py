"""The catalog: DuckDB views over the Parquet parts, in a connection that can reach nothing else.

Parquet is the source of truth. A connection lives in memory and is locked down before a user's text reaches it: it may
read exactly the lake's Parquet files, can't write, attach, install or change a setting. It holds views only: there is
no table that a query could change.
"""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from usdata.errors import LakeError, QueryError
from usdata.files import file_stamp, replacing, sync_folder
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
        "organs": _organs(),
    }


def _organs() -> str:
    """SELECT of the taxonomy's organs: organ, organ_group, usfm12, tusa, arl16."""
    organs: dict[str, Any] = taxonomy()["organs"]
    columns = ("organ_group", "usfm12", "tusa", "arl16")
    rows = [[organ, *(row[column] for column in columns)] for organ, row in organs.items()]
    cells = [", ".join("null" if word is None else _literal(word) for word in row) for row in rows]
    return f"select * from (values ({'), ('.join(cells)})) organs(organ, {', '.join(columns)})"


class Catalog:
    """A locked connection to one state of a lake's catalog; it refuses to answer when another has taken its place."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._con = duckdb.connect()
        files = [*lake.catalog_files(), *self._curation()]
        self._state = {path: stamp for path in files if (stamp := file_stamp(path))}
        try:
            for name, select in _views(lake, relative=False).items():
                self._con.execute(f"create view {name} as {select}")
        except duckdb.Error as error:
            self.check_unchanged()
            raise LakeError(
                f"The catalog of {lake.root} can't be read ({_first_line(error)}).",
                hint=f"Repair:  usdata catalog --rebuild --lake {lake.root}",
            ) from error
        self._lock()

    def _curation(self) -> list[Path]:
        return [self.lake.root / "catalog" / f"{name}.parquet" for name in ("splits", "duplicates")]

    def check_unchanged(self) -> None:
        """Raise a LakeError if a part is no longer the one that was opened: rows of two states must not mix."""
        if any(file_stamp(path) != stamp for path, stamp in self._state.items()):
            raise LakeError(
                f"The catalog of {self.lake.root} changed after it was opened: data was ingested meanwhile.",
                step="query",
                hint="Open the lake and the cohort again, when the ingest has ended.",
            )

    def _lock(self) -> None:
        files = [*self.lake.catalog_files(), *(self.lake.root / "quarantine").glob("[!.]*.parquet")]
        files += self._curation()
        allowed = ", ".join(_literal(str(p.absolute())) for p in files)
        self._con.execute(f"set allowed_paths = [{allowed}]")
        self._con.execute("set temp_directory = ''")  # no spill files: a query writes nothing
        self._con.execute("set autoinstall_known_extensions = false")
        self._con.execute("set autoload_known_extensions = false")
        self._con.execute("set enable_external_access = false")
        self._con.execute("set lock_configuration = true")

    def query(self, sql: str) -> pa.Table:
        """The result of one SELECT statement; a second column of one name gets the suffix `_1`, as in duckdb's joins.

        Raises:
            QueryError: see `Lake.sql`.
            LakeError: the catalog was replaced meanwhile.
        """
        _refuse_half_characters(sql)
        try:
            kinds = self._kinds(sql)
            if kinds != ["SELECT"]:
                raise QueryError(
                    f"Only one SELECT is allowed, not {', '.join(kinds) or 'an empty query'}.",
                    hint='For example:  usdata sql "select organ, count(*) from samples group by all"',
                )
            table = self._con.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            self.check_unchanged()
            raise _refusal(error) from error
        return table.rename_columns(_distinct(table.column_names))

    def _kinds(self, sql: str) -> list[str]:
        """The kind of each statement: SELECT, DROP, ..."""
        statements = self._con.extract_statements(sql)
        try:
            return [statement.type.name for statement in statements]
        except ValueError:  # duckdb's Python side lacks words for some of its statements
            return ["a statement of another kind"]

    def select(self, condition: str, columns: list[str]) -> pa.Table:
        """`columns` of the samples for which a boolean expression holds, in the order dataset, shard, offset.

        Raises:
            QueryError: the condition is no single boolean expression, or a column is unknown.
            LakeError: the catalog was replaced after this connection was opened.
        """
        _refuse_half_characters(condition)
        wanted = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
        try:
            samples = self._con.sql("from samples")
            chosen = samples.filter(condition)  # which takes any number but 0 for true
            if (kind := str(samples.project(condition).types[0])) != "BOOLEAN":
                raise QueryError(
                    f"The condition {condition!r} is {kind}, not true or false.", hint="For example:  organ = 'breast'"
                )
            table = chosen.order('dataset, shard, "offset"').project(wanted).to_arrow_table()
        except duckdb.Error as error:
            self.check_unchanged()
            raise _refusal(error) from error
        self.check_unchanged()
        return table

    def columns(self) -> list[str]:
        """Names of the columns of the view `samples`."""
        return self.query("from samples limit 0").column_names


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _refusal(error: duckdb.Error) -> QueryError:
    text = _first_line(error)
    hint = 'The columns:  usdata sql "describe samples"'
    if isinstance(error, duckdb.PermissionException):
        hint = "A query reads the lake's catalog and nothing else: no files, no settings, no writing."
    return QueryError(f"The query was refused: {text}", hint=hint)


def _refuse_half_characters(sql: str) -> None:
    """Bytes of a command line that are no UTF-8 arrive as half characters, which duckdb can't take."""
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise QueryError("The query is not valid UTF-8 text.") from error


def _distinct(names: list[str]) -> list[str]:
    """`names` with a number behind each repeated one, so that no column hides another.

    >>> _distinct(["organ", "n", "organ"])
    ['organ', 'n', 'organ_1']
    """
    out: list[str] = []
    for name in names:
        number, free = 0, name
        while free in out:
            number += 1
            free = f"{name}_{number}"
        out.append(free)
    return out


def duckdb_is_fresh(lake: Lake) -> bool:
    """Whether `catalog.duckdb` was written whole, after every part of the catalog."""
    path = lake.root / "catalog.duckdb"
    if not path.exists() or _duckdb_draft(lake).exists():
        return False
    return all(part.stat().st_mtime_ns <= path.stat().st_mtime_ns for part in lake.catalog_files())


def _duckdb_draft(lake: Lake) -> Path:
    return lake.root / ".catalog.duckdb.tmp"


def write_duckdb(lake: Lake) -> None:
    """(Re)write `catalog.duckdb`, the views for a duckdb shell started in the lake's folder; paths are relative.

    Raises:
        LakeError: duckdb can't write it, for instance because the disk is full.
    """
    path = lake.root / "catalog.duckdb"  # the caller holds the lake's commit lock
    temporary = _duckdb_draft(lake)
    temporary.unlink(missing_ok=True)
    try:
        with duckdb.connect(str(temporary), config={"file_search_path": str(lake.root)}) as con:
            for name, select in _views(lake, relative=True).items():
                con.execute(f"create view {name} as {select}")
    except duckdb.Error as error:
        raise LakeError(
            f"Can't write {path} ({_first_line(error)}).",
            step="commit",
            hint="If the disk is full, free some space; then run the same command again.",
        ) from error
    temporary.replace(path)
    sync_folder(lake.root)
