"""Check what belongs to no single data set: lake.json, cohorts, curation, the views, and files that nobody knows."""

import fcntl
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from usdata import __version__
from usdata.catalog import duckdb_is_fresh
from usdata.cohort import Cohort
from usdata.errors import LakeError, UsdataError
from usdata.finding import Finding, again, quoted, rebuild, remove
from usdata.lake import INTERPOLATIONS, Lake
from usdata.parts import DAMAGED
from usdata.schema import DUPLICATES, FORMAT, IMAGE_SIZE, SPLITS
from usdata.seal import KEY, read_sealed, seal
from usdata.verify_dataset import no_commit

_HEAD_KEYS = {"created_by", "format", "image_size", "interpolation"}
_CREATED_BY = re.compile(r"usdata \d+(\.\w+)+")
_COHORT_KEYS = {"sql", "catalog_xxh", "rows", "ids_xxh"}
_HEX = re.compile(r"[0-9a-f]{32}")
_CURATION = {"splits": SPLITS, "duplicates": DUPLICATES}
_KNOWN = [  # every path that a lake of this version holds, below its root
    r"lake\.json",
    r"catalog\.duckdb",
    r"shards/[^/]+/[^/.][^/]*\.tar",
    r"catalog/samples/[^/.][^/]*\.parquet",
    r"catalog/samples/[^/.][^/]*/part-[^/]*\.parquet",
    r"catalog/(splits|duplicates)\.parquet",
    r"manifests/[^/.][^/]*\.json",
    r"quarantine/[^/.][^/]*\.parquet",
    r"cohorts/[^/.][^/]*\.json",
    r"\.staging/(\.commit|\.create|[^/]+)\.lock",
]
_KNOWN_PATH = re.compile("|".join(_KNOWN))


def check_lake(lake: Lake, whole: bool) -> list[Finding]:
    """What is wrong beside the data sets.

    Args:
        whole: nothing is wrong with them, so the catalog can be asked.
    """
    with no_commit(lake):
        findings = [*_check_head(lake), *_stray_files(lake)]
        if whole:
            findings += [*_check_curation(lake), *_check_cohorts(lake), *_check_views(lake)]
        else:
            findings += _check_cohorts(lake, ask=False)
    return findings


def _check_head(lake: Lake) -> Iterator[Finding]:
    path = lake.root / "lake.json"
    problem: str | None
    try:
        head = read_sealed(path)
        problem = _head_problem(head)
    except (LakeError, OSError) as error:
        problem = error.message if isinstance(error, LakeError) else str(error)
    if problem:
        known = {"format": FORMAT, "image_size": IMAGE_SIZE, "created_by": f"usdata {__version__}"}
        text = json.dumps(seal(known | {"interpolation": lake.info["interpolation"]}), indent=1, sort_keys=True)
        yield Finding("", str(path), None, problem, f"printf '%s\\n' {shlex.quote(text)} > {quoted(path)}")


def _head_problem(head: dict[str, Any]) -> str | None:
    if set(head) - {KEY} != _HEAD_KEYS:
        return f"the entries are {', '.join(sorted(head))}"
    if (head["format"], head["image_size"]) != (FORMAT, IMAGE_SIZE) or head["interpolation"] not in INTERPOLATIONS:
        return f"format {head['format']!r}, images of {head['image_size']!r}, {head['interpolation']!r}: that can't be"
    if not isinstance(head["created_by"], str) or not _CREATED_BY.fullmatch(head["created_by"]):
        return f"created_by {head['created_by']!r}: that can't be"
    return None


# --- files that nobody knows ------------------------------------------------------------------------------------------


def _stray_files(lake: Lake) -> Iterator[Finding]:
    """Notes, not damage: no reader looks at them."""
    staging = lake.root / ".staging"
    for folder in sorted(p for p in staging.glob("*") if p.is_dir()) if staging.is_dir() else []:
        if not _is_held(staging / f"{folder.name}.lock"):
            problem = f"an interrupted ingest left its work; the same ingest goes on from there, or remove it: {folder}"
            yield _note(folder.name, folder, problem, again(lake, folder.name))
    for path in sorted(lake.root.rglob("*")):
        inside = path.relative_to(lake.root).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if _KNOWN_PATH.fullmatch(inside) or re.match(r"\.staging/[^/]+/", inside):
            continue
        left = path.name.startswith(".") and path.name.endswith(".tmp")
        problem = "left by a writer that was killed" if left else "no file of a lake"
        yield _note("", path, problem, remove(path))


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _note(dataset: str, path: Path, problem: str, repair: str) -> Finding:
    return Finding(dataset, str(path), None, problem, repair, level="note")


# --- what refers to samples -------------------------------------------------------------------------------------------


def _check_curation(lake: Lake) -> Iterator[Finding]:
    """Rows of splits and duplicates that point to no sample, or stand there twice."""
    for name, schema in _CURATION.items():
        path = lake.root / "catalog" / f"{name}.parquet"
        if path.exists():
            problem = _curation_problem(lake, path, schema)
            if problem:
                yield Finding("", str(path), None, problem, f"{remove(path)}  # then curate again: usdata split, dedup")


def _curation_problem(lake: Lake, path: Path, schema: pa.Schema) -> str | None:
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except DAMAGED as error:
        return f"can't be read ({_first_line(error)})"
    if missing := set(schema.names) - set(table.column_names):
        return f"it lacks the column {min(missing)!r}"
    ids, orphans, example, twice = table.select(["sample_id"]), 0, None, 0
    files = [str(p) for p in lake.catalog_files()]
    samples = pq.read_table(files, columns=["sample_id"], partitioning=None) if files else ids.slice(0, 0)
    with duckdb.connect() as con:
        con.register("ids", ids)
        con.register("samples", samples)
        query = "select count(*), min(sample_id) from ids anti join samples using (sample_id)"
        orphans, example = con.execute(query).fetchall()[0]
        twice = con.execute("select count(*) - count(distinct sample_id) from ids").fetchall()[0][0]
    if orphans:
        return f"{orphans} rows point to no sample, for instance {example!r}"
    return f"{twice} samples stand there twice" if twice else None


def _check_cohorts(lake: Lake, ask: bool = True) -> Iterator[Finding]:
    """Saved cohorts: readable, sealed, and, if the catalog can be asked, still the same samples."""
    for path in sorted((lake.root / "cohorts").glob("[!.]*.json")):
        try:
            record = read_sealed(path)
        except (LakeError, OSError) as error:
            problem = error.message if isinstance(error, LakeError) else str(error)
            yield Finding("", str(path), None, f"the cohort is damaged: {problem}", _save_again(lake, path, None))
            continue
        if wrong := _record_problem(record):
            yield Finding("", str(path), None, f"the cohort is damaged: {wrong}", _save_again(lake, path, None))
        elif ask:
            yield from _compare_cohort(lake, path, record)


def _record_problem(record: dict[str, Any]) -> str | None:
    if set(record) - {KEY} != _COHORT_KEYS:
        return f"the entries are {', '.join(sorted(record))}"
    if not isinstance(record["sql"], str) or not isinstance(record["rows"], int):
        return "sql or rows are of another kind"
    if not all(_HEX.fullmatch(str(record[key])) for key in ("catalog_xxh", "ids_xxh")):
        return "a hash in it is none"
    return None


def _compare_cohort(lake: Lake, path: Path, record: dict[str, Any]) -> Iterator[Finding]:
    """A cohort of a lake that has grown since is no damage: it refuses itself when it is opened."""
    repair = _save_again(lake, path, record["sql"])
    try:
        cohort = Cohort(lake, record["sql"])
    except UsdataError as error:
        yield Finding("", str(path), None, f"the cohort can't be asked for: {error.message}", repair)
        return
    if (cohort.rows, cohort.hash) == (record["rows"], record["ids_xxh"]):
        return
    problem = f"selects {cohort.rows} samples now; it was saved with {record['rows']}"
    if KEY in record:
        yield Finding("", str(path), None, problem, repair, level="note")
    else:  # without a seal nobody can tell whether the lake has changed or the file
        yield Finding("", str(path), None, f"{problem}, or the file was changed", repair)


def _save_again(lake: Lake, path: Path, sql: str | None) -> str:
    words = ["usdata", "cohort", "save", path.stem, sql or "CONDITION", "--lake", str(lake.root)]
    return remove(path, shlex.join(words))


# --- the views for a duckdb shell -------------------------------------------------------------------------------------


def _check_views(lake: Lake) -> Iterator[Finding]:
    path = lake.root / "catalog.duckdb"
    if lake.catalog_files() and not duckdb_is_fresh(lake):
        yield _note("", path, "missing, or older than the catalog", rebuild(lake))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
