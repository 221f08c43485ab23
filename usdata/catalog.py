"""The catalog: DuckDB views over the Parquet parts, in a connection that can reach nothing else.

Parquet is the source of truth. A connection lives in memory and is locked down before a user's text reaches it: it may
read exactly the lake's Parquet files, can't write, attach, install or change a setting. It holds views only: there is
no table that a query could change.

A lake keeps its connection, with the feet of the Parquet files read, for as long as no file of the catalog changes; so
a question costs its own time and no more (`Lake.catalog`).
"""

import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from shlex import quote
from threading import TIMEOUT_MAX
from typing import Any, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from usdata.errors import LakeError, QueryError, describe
from usdata.files import Stamp, file_stamp, sync_folder
from usdata.lake import Lake
from usdata.parts import (
    Part,
    are_ordered,
    canonical,
    check_alike,
    coded,
    open_part,
    read_columns,
    read_part,
    write_part,
)
from usdata.schema import SAMPLES
from usdata.views import ASKED_FOR, CURATION, all_views, literal, quoted, samples_view

__all__ = [
    "Catalog",
    "CatalogChanged",
    "ask",
    "canonical",
    "duckdb_is_fresh",
    "read_part",
    "write_duckdb",
    "write_part",
]

Answer = TypeVar("Answer")
# What names a column of curation, or could hide the error that stands in its place.
_ASKS = re.compile(r'\bsplit\b|\bduplicate_group\b|"group"|\.\s*group\b|\btry\b', re.IGNORECASE)
_TRIES = 5  # times that data sets may be replaced under a question before it gives up


class CatalogChanged(LakeError):
    """A part is no longer the one that was opened."""


def _views(lake: Lake, relative: bool) -> dict[str, str]:
    """Name -> SELECT of each view."""
    files = _stamps(lake)
    return all_views(
        lake.root, files, samples_view(lake.root, files, _open_parts(lake, files), relative=relative), relative
    )


def _stamps(lake: Lake) -> Mapping[Path, Stamp]:
    """All files of the catalog that are there, with what tells them from others of the same name."""
    files = [*lake.catalog_files(), *(lake.root / "quarantine").glob("[!.]*.parquet"), *_curation(lake)]
    return {path: stamp for path in files if (stamp := file_stamp(path))}


def _curation(lake: Lake) -> list[Path]:
    """Where splits and duplicates are, or will be."""
    return [lake.root / "catalog" / f"{name}.parquet" for name in CURATION]


def _open_parts(lake: Lake, files: Collection[Path]) -> list[Part]:
    """The catalog's parts in the order of their data sets' names, which is not that of the paths (`a-b` and `a`)."""
    folder = lake.root / "catalog" / "samples"
    places = {path: path.relative_to(folder).parts for path in files if path.is_relative_to(folder)}
    named = [(place[0].removesuffix(".parquet"), place, path) for path, place in places.items()]
    return [open_part(path, dataset) for dataset, _, path in sorted(named)]


class Catalog:
    """A locked connection to one state of a lake's catalog; it refuses to answer when another has taken its place.

    Safe to use from several threads.

    Raises:
        LakeError: a part is damaged, or has a column of another type than this version's.
    """

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._process = os.getpid()
        self._files = _stamps(lake)  # all that follows is about these files
        self._curated = any(path in self._files for path in _curation(lake))
        try:
            self.parts = _open_parts(lake, self._files)
        except FileNotFoundError:
            self.check_unchanged()
            raise
        self._plain = self._connect(curated=False)

    def _connect(self, curated: bool) -> duckdb.DuckDBPyConnection:
        """A locked connection with the views; see `_samples` for `curated`."""
        con = duckdb.connect()
        samples = samples_view(self.lake.root, self._files, self.parts, curated=curated)
        try:
            con.execute("select 1")  # loads the Parquet reader, which knows the next setting
            con.execute("set global parquet_metadata_cache = true")
            for name, select in all_views(self.lake.root, self._files, samples).items():
                con.execute(f"create view {name} as {select}")
        except duckdb.Error as error:
            self.check_unchanged()
            raise LakeError(
                f"The catalog of {self.lake.root} can't be read ({describe(error)}).",
                hint=f"What is wrong, and how to repair it:  usdata verify --lake {quote(str(self.lake.root))}",
            ) from error
        self.check_unchanged()
        con.execute(f"set allowed_paths = [{', '.join(literal(str(path)) for path in self._files)}]")
        con.execute("set temp_directory = ''")  # no spill files: a query writes nothing
        con.execute("set autoinstall_known_extensions = false")
        con.execute("set autoload_known_extensions = false")
        con.execute("set enable_external_access = false")
        con.execute("set lock_configuration = true")
        return con

    @cached_property
    def _joined(self) -> duckdb.DuckDBPyConnection:
        return self._connect(curated=True)

    def is_current(self) -> bool:
        """Whether no file of the catalog came, went or changed since (and no fork took duckdb's threads away)."""
        return self._process == os.getpid() and self._files == _stamps(self.lake)

    def check_unchanged(self) -> None:
        """Raise CatalogChanged if a part is no longer the one that was opened: rows of two states must not mix."""
        new = any(path.exists() for path in _curation(self.lake) if path not in self._files)
        if new or any(file_stamp(path) != stamp for path, stamp in self._files.items()):
            raise CatalogChanged(
                f"The catalog of {self.lake.root} changed after it was opened: data was ingested meanwhile.",
                step="query",
                hint="Open the lake and the cohort again, when the ingest has ended.",
            )

    def query(self, sql: str, timeout: float | None = None) -> pa.Table:
        """The result of one SELECT statement; a second column of one name gets the suffix `_1`, as in duckdb's joins.

        Args:
            timeout: seconds after which the query is given up.

        Raises:
            QueryError: see `Lake.sql`.
            CatalogChanged: the catalog was replaced meanwhile.
        """
        table = self._ask(sql, lambda con, _: _answer(con, sql), timeout)
        return table.rename_columns(_distinct(table.column_names))

    def _ask(
        self, text: str, question: Callable[[duckdb.DuckDBPyConnection, bool], Answer], timeout: float | None = None
    ) -> Answer:
        """The answer of a cursor without curation's columns or, if the text asks for them, of one with them.

        Raises:
            QueryError: duckdb refused it, or out of time.
            CatalogChanged: the catalog was replaced after this connection was opened.
        """
        _refuse_half_characters(text)
        if timeout is not None and not timeout > 0:
            raise QueryError(f"timeout is {timeout:g} s; it must be more than 0.")
        end = None if timeout is None else time.monotonic() + min(timeout, TIMEOUT_MAX / 2)
        curated = self._curated and _ASKS.search(text) is not None
        try:
            try:
                answer = _within(self._joined if curated else self._plain, end, lambda con: question(con, curated))
            except duckdb.Error as error:
                if curated or ASKED_FOR not in str(error):
                    raise
                answer = _within(self._joined, end, lambda con: question(con, True))
        except duckdb.InterruptException as error:
            raise QueryError(
                f"The query was given up after {timeout:g} s." if timeout is not None else "The query was interrupted.",
                hint="Ask for less, or give it more time (timeout).",
            ) from error
        except duckdb.Error as error:
            self.check_unchanged()
            raise _refusal(error) from error
        self.check_unchanged()
        return answer

    # --- what a condition selects -----------------------------------------------------------------------------------

    def rows_where(self, condition: str) -> NDArray[np.integer]:
        """Row numbers, in all parts laid end to end, of the samples for which a boolean expression holds.

        Returns:
            Shape (n,), uint32 (uint64 beyond 2^32 rows), in the order dataset, shard, offset.

        Raises:
            QueryError: the condition is no single boolean expression.
            CatalogChanged: the catalog was replaced after this connection was opened.
        """
        if condition == "true":
            return self._in_order(np.arange(self._starts[-1], dtype=self._starts.dtype))
        found = self._ask(
            condition,
            lambda con, curated: self._chosen(con, condition, curated).project("_part, _row").to_arrow_table(),
        )
        return self._in_order(self._numbers(found))

    def columns_where(self, condition: str, columns: Sequence[str]) -> tuple[NDArray[np.integer], pa.Table]:
        """What `rows_where` gives, and any columns of the view for these rows.

        Raises:
            QueryError: also if a column is unknown.
            CatalogChanged: the catalog was replaced after this connection was opened.
        """
        wanted = ", ".join([*map(quoted, columns), "_part", "_row"])
        found = self._ask(
            f"{condition}\n{wanted}",
            lambda con, curated: self._chosen(con, condition, curated).project(wanted).to_arrow_table(),
        )
        numbers = self._numbers(found)
        order = self._order(numbers)
        table = found.select(range(len(columns))).rename_columns(list(columns))
        return (numbers, table) if order is None else (numbers[order], table.take(pa.array(order)))

    def count_where(self, condition: str, aggregates: str, groups: str) -> list[dict[str, Any]]:
        """Aggregates of the samples for which a boolean expression holds, by groups and in their order."""

        def count(con: duckdb.DuckDBPyConnection, curated: bool) -> list[dict[str, Any]]:
            counted = self._chosen(con, condition, curated).aggregate(aggregates, groups)
            return counted.order(groups).to_arrow_table().to_pylist()

        return self._ask(f"{condition}\n{aggregates}", count)

    def select(self, condition: str, columns: Sequence[str]) -> pa.Table:
        """`columns` of the samples for which a boolean expression holds, in the order dataset, shard, offset.

        Raises:
            QueryError: the condition is no single boolean expression, or a column is unknown.
            CatalogChanged: the catalog was replaced after this connection was opened.
        """
        return self.columns_where(condition, columns)[1]

    def read(self, names: Sequence[str], rows: NDArray[np.integer]) -> pa.Table:
        """Stored columns of some rows, straight from the parts; words stay dictionary-coded.

        Raises:
            CatalogChanged: the catalog was replaced after this connection was opened.
        """
        try:
            table = read_columns(self.parts, names, rows)
        except FileNotFoundError:
            self.check_unchanged()
            raise
        self.check_unchanged()
        return table

    @cached_property
    def schema(self) -> pa.Schema:
        """The stored columns, which `read` can give: this version's, then those of a later one."""
        return pa.schema([*SAMPLES, *check_alike(self.parts)])

    def columns(self) -> list[str]:
        """Names of the columns of the view `samples`."""
        return self.query("from samples limit 0").column_names

    def _chosen(self, con: duckdb.DuckDBPyConnection, condition: str, curated: bool) -> duckdb.DuckDBPyRelation:
        samples = con.sql("from samples").set_alias("samples")  # has no columns of ours that a condition could name
        samples.filter(condition)
        if (kind := str(samples.project(condition).types[0])) != "BOOLEAN":  # a filter takes any number but 0 for true
            raise QueryError(
                f"The condition {condition!r} is {kind}, not true or false.", hint="For example:  organ = 'breast'"
            )
        placed = samples_view(self.lake.root, self._files, self.parts, curated=curated, place=True)
        return con.sql(placed).set_alias("samples").filter(condition)

    @cached_property
    def _starts(self) -> NDArray[np.integer]:
        """First row of each part, and the number of all rows."""
        starts = np.cumsum([0, *(part.rows for part in self.parts)])
        return starts.astype(np.uint32 if starts[-1] < 2**32 else np.uint64)

    def _numbers(self, found: pa.Table) -> NDArray[np.integer]:
        part, row = found["_part"].to_numpy(), found["_row"].to_numpy()
        return self._starts[part.astype(np.intp)] + row.astype(self._starts.dtype)

    def _in_order(self, numbers: NDArray[np.integer]) -> NDArray[np.integer]:
        order = self._order(numbers)
        return numbers if order is None else numbers[order]

    def _order(self, numbers: NDArray[np.integer]) -> NDArray[np.integer] | None:
        """What brings rows into the order dataset, shard, offset; None if they are in it."""
        keys = numbers if self._ranks is None else self._ranks[numbers]
        if bool((keys[1:] > keys[:-1]).all()):
            return None
        order = np.argsort(keys, kind="stable")
        if bool((keys[order[1:]] == keys[order[:-1]]).any()):
            raise LakeError(
                f"A table of curation in {self.lake.root}/catalog names a sample twice.",
                hint="Make splits.parquet and duplicates.parquet anew, or remove them.",
            )
        return order

    @cached_property
    def _ranks(self) -> NDArray[np.integer] | None:
        """Place of each row in the order dataset, shard, offset; None where the parts say that they are in it."""
        if are_ordered(self.parts):
            return None
        table = read_columns(self.parts, ["dataset", "shard", "offset"], np.arange(self._starts[-1]))
        order = np.lexsort((table["offset"].to_numpy(), *(_alphabetical(table[name]) for name in ("shard", "dataset"))))
        ranks = np.empty(len(order), self._starts.dtype)
        ranks[order] = np.arange(len(order))
        return ranks


def _alphabetical(column: pa.ChunkedArray) -> NDArray[np.integer]:
    """Words as numbers in alphabetical order; null comes last, as in duckdb."""
    codes, words = coded(column)
    rank = np.empty(len(words) + 1, np.int64)
    rank[np.argsort(np.array(words, object))] = np.arange(len(words))
    rank[-1] = len(words)  # what the code −1 of null finds
    return rank[codes]


def ask(lake: Lake, question: Callable[[Catalog], Answer]) -> Answer:
    """The answer of the lake as it is now; asked again if a data set was replaced meanwhile.

    Raises:
        CatalogChanged: data sets were replaced each time.
    """
    for _ in range(_TRIES - 1):
        try:
            return question(lake.catalog)
        except CatalogChanged:
            continue
    return question(lake.catalog)


def _within(
    con: duckdb.DuckDBPyConnection, end: float | None, question: Callable[[duckdb.DuckDBPyConnection], Answer]
) -> Answer:
    """Ask a cursor of `con`; interrupt it at the time `end`, or by Ctrl-C, which duckdb itself does not hear."""
    with ThreadPoolExecutor(1, thread_name_prefix="usdata-query") as thread, con.cursor() as cursor:
        running = thread.submit(question, cursor)
        try:
            return running.result(None if end is None else max(0.0, end - time.monotonic()))
        except BaseException as stop:
            while not running.done():
                cursor.interrupt()  # again and again: one that comes between two steps of a query is lost
                wait([running], 0.05)
            if isinstance(stop, TimeoutError):
                return running.result()
            raise


def _answer(con: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    kinds = _kinds(con, sql)
    if kinds != ["SELECT"]:
        raise QueryError(
            f"Only one SELECT is allowed, not {', '.join(kinds) or 'an empty query'}.",
            hint='For example:  usdata sql "select organ, count(*) from samples group by all"',
        )
    return con.sql(sql).to_arrow_table()


def _kinds(con: duckdb.DuckDBPyConnection, sql: str) -> list[str]:
    """The kind of each statement: SELECT, DROP, ..."""
    statements = con.extract_statements(sql)
    try:
        return [statement.type.name for statement in statements]
    except ValueError:  # duckdb's Python side lacks words for some of its statements
        return ["a statement of another kind"]


def _refusal(error: duckdb.Error) -> QueryError:
    text = describe(error)
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
    """Whether `catalog.duckdb` was written whole, after every part of the catalog and curation's tables."""
    path = lake.root / "catalog.duckdb"
    if not path.exists() or _duckdb_draft(lake).exists():
        return False
    parts = [*lake.catalog_files(), *(table for table in _curation(lake) if table.exists())]
    return all(part.stat().st_mtime_ns <= path.stat().st_mtime_ns for part in parts)


def _duckdb_draft(lake: Lake) -> Path:
    return lake.root / ".catalog.duckdb.tmp"


def write_duckdb(lake: Lake) -> None:
    """(Re)write `catalog.duckdb`, the views for a duckdb shell started in the lake's folder; paths are relative.

    Raises:
        LakeError: duckdb can't write it, for instance because the disk is full.
    """
    path = lake.root / "catalog.duckdb"  # the caller holds the lake's commit lock
    temporary = _duckdb_draft(lake)
    log = temporary.with_name(f"{temporary.name}.wal")
    for left_over in (log, temporary):  # the log first: a new file must not find that of an older one
        left_over.unlink(missing_ok=True)
    try:
        with duckdb.connect(str(temporary), config={"file_search_path": str(lake.root)}) as con:
            for name, select in _views(lake, relative=True).items():
                con.execute(f"create view {name} as {select}")
            con.execute("checkpoint")  # closing would do it too, but says nothing when the disk is full
    except duckdb.Error as error:
        raise LakeError(
            f"Can't write {path} ({describe(error)}).",
            step="commit",
            hint="If the disk is full, free some space; then run the same command again.",
        ) from error
    temporary.replace(path)
    sync_folder(lake.root)
