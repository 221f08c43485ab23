"""A cohort for other programs: its catalog rows as CSV or Parquet; what every export has in common.

The same lake and cohort give the same bytes: no time, host or path is written. An export appears whole or not at all.
What its images' licences allow is said each time: `Exported.rights`. COCO is in `usdata.export_coco`.
"""

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from usdata.cohort import Cohort
from usdata.errors import ConfigError, LakeError, QueryError, nearest
from usdata.files import explain_os_errors, sync_folder
from usdata.rights import Purpose, Rights, check_purpose, condition
from usdata.schema import CURATED, DERIVED, plain_type

PART_ROWS = 100_000  # rows in memory at a time
TABLES = (".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True)
class Exported:
    """What was written, and what a user must be told about it."""

    path: Path
    samples: int
    rights: list[Rights]
    notes: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The report for a person: what was written, one line per licence, one warning per restricted data set."""
        lines = [f"{self.path} written: {self.samples:,} samples.", *self.notes]
        for r in self.rights:
            advice = "" if r.free else "\n    Do not pass these on: the licence does not allow it, or does not say so."
            lines.append(f"  {r.words()}{advice}")
        return lines


def parts(cohort: Cohort, columns: Sequence[str], rows: int = PART_ROWS) -> Iterator[pa.Table]:
    """Catalog columns of a cohort in its order, `rows` rows at a time: few of its texts are in memory at once.

    Raises:
        QueryError: an unknown column, or a condition that does not select the same samples each time.
        LakeError: the catalog was replaced after the cohort was opened.
    """
    catalog = cohort.lake.catalog
    computed = [name for name in columns if name in (*CURATED, *DERIVED)]  # by the view: split, group, spacing
    beside = cohort.table(computed or ["has_mask"])  # notices what changed before the catalog was asked for
    numbers = catalog.rows_where(condition(cohort.sql))
    stored = list(dict.fromkeys(["sample_id", *(name for name in columns if name not in computed)]))
    for start in range(0, cohort.rows, rows):
        table = catalog.read(stored, numbers[start : start + rows])
        if len(numbers) != cohort.rows or not table["sample_id"].equals(cohort.ids.slice(start, rows)):
            raise QueryError(
                f"The condition {cohort.sql!r} selects other samples each time it is asked.",
                hint="Choose by something that stays: a column, or a hash of sample_id instead of random().",
            )
        plain = table.cast(pa.schema([(field.name, plain_type(field)) for field in table.schema]))
        found = {name: plain[name] for name in stored}
        found |= {name: beside[name].slice(start, rows) for name in computed}
        yield pa.table({name: found[name] for name in columns})


def check_target(cohort: Cohort, out: Path, overwrite: bool) -> Path:
    """Where `out` is, links followed; refuses what can't or shouldn't be written, before any work is done.

    Raises:
        ConfigError: an empty cohort, something there already, no folder to write into, a place inside the lake, or a
            folder that the lake is in.
    """
    if not cohort.rows:
        raise ConfigError(
            f"The cohort {cohort.sql!r} is empty: there is nothing to export.",
            hint='What is there:  usdata sql "select organ, count(*) from samples group by all"',
        )
    if out.name in ("", ".."):
        raise ConfigError(f"{str(out)!r} names no file or folder that could be made.", hint="For example:  -o export")
    place, root = Path(os.path.realpath(out)), cohort.lake.root.resolve()
    if not place.parent.is_dir():
        raise ConfigError(f"No folder {place.parent} to write {out.name} into.", hint="Make it with mkdir -p.")
    if place == root or root in place.parents:
        raise ConfigError(f"{out} is inside the lake {root}; a file there would be taken for a part of it.")
    if place in root.parents:
        raise ConfigError(
            f"The lake {root} is inside {out}, which an export would replace.", hint="Choose another place with -o."
        )
    check_free(place, overwrite)
    return place


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse to replace what is at `out`, unless `overwrite`; asked again when an export is about to appear there.

    Raises:
        ConfigError: a file, or a folder with something in it, is there.
    """
    if is_there(out) and not overwrite:
        raise ConfigError(f"{out} is there already.", hint="Replace it with --overwrite, or choose another name.")


def is_there(out: Path) -> bool:
    """Whether a file, or a folder with something in it, is at `out`."""
    return any(out.iterdir()) if out.is_dir() else os.path.lexists(out)


def check_columns(cohort: Cohort, columns: Sequence[str]) -> list[str]:
    """All columns of the view `samples`; a ConfigError if one of `columns` is not among them, or named twice."""
    known = cohort.lake.catalog.columns()
    for name in columns:
        if name not in known:
            hint = "The columns:  usdata sql 'describe samples'"
            raise ConfigError(f"No column {name!r}.{nearest(name, known)}", hint=hint)
        if list(columns).count(name) > 1:
            raise ConfigError(f"The column {name!r} is named twice.")
    return known


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable place into a LakeError that says what to do about an export.

    Raises:
        LakeError: no space left, or no permission to write.
    """
    try:
        with explain_os_errors(out, step="export"):
            yield
    except LakeError as error:
        if error.step == "export":
            error.hint = "Nothing was left there. Choose another place with -o, or make this one fit."
        raise


@contextmanager
def drafting(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write an export in; what is still in it at the end is removed.

    Nobody else has its name: exports to one place at once do not meet before the last rename, and a user's file,
    whatever it is called, is never taken for a draft. Only a killed run leaves one: `.usdata-export-…`.
    """
    folder = Path(tempfile.mkdtemp(prefix=".usdata-export-", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(out: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """A binary file that appears at `out` when the block ends without an error, and leaves no trace otherwise.

    Raises:
        ConfigError: without `overwrite`, something appeared there meanwhile.
    """
    with drafting(out) as folder:
        new = folder / "new"  # opened as any file, so that the user's umask says who may read it
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        check_free(out, overwrite)
        new.replace(out)
        sync_folder(out.parent)


def write_table(
    cohort: Cohort,
    out: Path,
    columns: Sequence[str] = (),
    overwrite: bool = False,
    purpose: Purpose = "research",
) -> Exported:
    """One row per sample, in the cohort's order, to a `.csv`, `.csv.gz` or `.parquet` file.

    In CSV a null is an empty field and an empty text is `""`; lists become JSON text; floats have all digits that
    tell them apart. Parquet keeps every type. `sample_id` is always there: it names the row, and no line is blank.

    Args:
        out: the file; its ending chooses the format. If it is a link, what it points to is written.
        columns: of the view `samples`, after `sample_id`; all if empty.
        overwrite: replace what is there.
        purpose: what the file is for; research stays with whoever writes it.

    Raises:
        ConfigError: another ending, an unknown column, a licence that forbids the purpose, or see `check_target`.
        LakeError: `out` can't be written, or the catalog was replaced meanwhile.
    """
    ending = next((e for e in reversed(TABLES) if out.name.endswith(e) and out.name != e), None)
    if ending is None:
        near = nearest(out.suffix, TABLES)
        raise ConfigError(f"{out.name!r} ends in none of {', '.join(TABLES)}.{near}")
    place = check_target(cohort, out, overwrite)
    known = check_columns(cohort, columns)
    wanted = list(columns) or known
    if "sample_id" not in wanted:
        wanted = ["sample_id", *wanted]
    rights = check_purpose(cohort, purpose)
    with explained(out), writing(place, overwrite) as file:
        _write(parts(cohort, wanted, PART_ROWS), file, ending)
    return Exported(out, cohort.rows, rights)


def _write(tables: Iterator[pa.Table], file: IO[bytes], ending: str) -> None:
    if ending == ".parquet":
        _write_parquet(tables, file)
    elif ending == ".csv":
        _write_csv(tables, file)
    else:  # no name and no time in the head: the same rows, the same bytes
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
            _write_csv(tables, packed)


def _write_csv(tables: Iterator[pa.Table], file: Any) -> None:
    import polars as pl  # whose floats keep their point (40.0), so that a reader that guesses types guesses right

    for i, table in enumerate(tables):
        frame = pl.DataFrame(pl.from_arrow(_flat(table)))
        frame.write_csv(file, include_header=i == 0)


def _write_parquet(tables: Iterator[pa.Table], file: IO[bytes]) -> None:
    writer = None
    for table in tables:
        writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _flat(table: pa.Table) -> pa.Table:
    """`table` with JSON text in place of lists."""
    for i, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = pa.array(_json_texts(table[i].to_pylist()), pa.string())
            table = table.set_column(i, field.name, texts)
    return table


def _json_texts(lists: list[list[str] | None]) -> Iterator[str | None]:
    known: dict[tuple[str, ...], str] = {}  # few distinct ones
    for one in lists:
        if one is not None and (key := tuple(one)) not in known:
            known[key] = json.dumps(one, ensure_ascii=False, separators=(",", ":"))
        yield None if one is None else known[key]
