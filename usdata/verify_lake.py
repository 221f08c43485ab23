"""Check what belongs to no single data set: lake.json, cohorts, curation, the views, and files that nobody knows."""

import fcntl
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from usdata import __version__
from usdata.cohort import Cohort
from usdata.errors import LakeError, UsdataError, describe
from usdata.finding import Finding, elsewhere, in_place_of, quoted, rebuild, remove
from usdata.lake import INTERPOLATIONS, Lake
from usdata.manifest import head_problem, interpolation
from usdata.parts import DAMAGED
from usdata.schema import FORMAT, IMAGE_SIZE, plain_type
from usdata.seal import KEY, read_sealed, seal
from usdata.verify_dataset import no_commit
from usdata.views import CURATION, all_views, samples_view

_COHORT_KEYS = {"sql", "catalog_xxh", "rows", "ids_xxh"}
_HEX = re.compile(r"[0-9a-f]{32}")
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
    r"runs\.jsonl",
    r"\.staging/(\.commit|\.create|[^/]+)\.lock",
]
_KNOWN_PATH = re.compile("|".join(_KNOWN))
_LINKED = re.compile(r"shards(/[^/.][^/]*)?|catalog(/samples(/[^/.][^/]*)?)?|manifests|quarantine|cohorts")
_DRAFT = re.compile(r"(.*/)?\.([^/]+)\.tmp(\.wal)?")  # the name under which `files.replacing` writes, and duckdb's log


def check_lake(lake: Lake, whole: bool) -> list[Finding]:
    """What is wrong beside the data sets.

    Args:
        whole: nothing is wrong with them, so the catalog can be asked.
    """
    with no_commit(lake):
        findings = list(_stray_files(lake))
        if whole:
            findings += _check_curation(lake)
        findings += [*_check_cohorts(lake, ask=whole), *_check_views(lake, ask=whole)]
    return findings


def check_head(root: Path) -> list[Finding]:
    """What is wrong with `lake.json`, of a lake that can't be opened because of it too.

    The repair takes the interpolation from the manifests: one wrong word there would change every image that is built.
    """
    path = root / "lake.json"
    problem = head_problem(root)
    if problem is None:
        return []
    word = interpolation(root)
    head = {"format": FORMAT, "image_size": IMAGE_SIZE, "created_by": f"usdata {__version__}"}
    text = json.dumps(seal(head | {"interpolation": word or INTERPOLATIONS[0]}), indent=1, sort_keys=True)
    repair = in_place_of(path, f"printf '%s\\n' {shlex.quote(text)} > {quoted(path)}")
    if word is None:
        repair += f"  # if the lake was not made with another interpolation: {', '.join(INTERPOLATIONS[1:])}"
    return [Finding("", str(path), None, problem, repair)]


# --- files that nobody knows ------------------------------------------------------------------------------------------


def _stray_files(lake: Lake) -> Iterator[Finding]:
    """Notes, not damage: no reader looks at them."""
    staging = lake.root / ".staging"
    for folder in sorted(p for p in staging.glob("*") if p.is_dir()) if staging.is_dir() else []:
        if not _is_held(staging / f"{folder.name}.lock"):
            problem = "an interrupted ingest left its work; the same ingest goes on from there"
            yield _note(folder.name, folder, problem, remove(folder))
    for path in sorted(lake.root.rglob("*")):
        inside = path.relative_to(lake.root).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if _KNOWN_PATH.fullmatch(inside) or re.match(r"\.staging/[^/]+/", inside):
            continue
        if any(_KNOWN_PATH.fullmatch(folder.as_posix()) for folder in path.relative_to(lake.root).parents):
            continue  # in a folder that stands in the place of a file, which is a finding of its own
        if path.is_dir() and _LINKED.fullmatch(inside):  # a link: the folder lies on another disk
            continue
        draft = _DRAFT.fullmatch(inside)
        if draft and _KNOWN_PATH.fullmatch(f"{draft[1] or ''}{draft[2]}"):
            yield _note("", path, "left by a writer that was killed", remove(path))
        else:
            yield _note("", path, "no file of a lake", elsewhere(path))


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except PermissionError:  # nobody can tell
        return True
    return False


def _note(dataset: str, path: Path, problem: str, repair: str) -> Finding:
    return Finding(dataset, str(path), None, problem, repair, level="note")


# --- what refers to samples -------------------------------------------------------------------------------------------


def _check_curation(lake: Lake) -> Iterator[Finding]:
    """Rows of splits and duplicates that point to no sample, or stand there twice."""
    for name, schema in CURATION.items():
        path = lake.root / "catalog" / f"{name}.parquet"
        if path.exists():
            problem = _curation_problem(lake, path, schema)
            if problem:
                yield Finding("", str(path), None, problem, f"{remove(path)}  # or make it anew")


def _curation_problem(lake: Lake, path: Path, schema: pa.Schema) -> str | None:
    if path.is_dir():
        return "a folder stands in its place"
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except DAMAGED as error:
        return f"can't be read ({describe(error)})"
    if missing := set(schema.names) - set(table.column_names):
        return f"it lacks the column {min(missing)!r}"
    for field in schema:
        if (kind := plain_type(table.schema.field(field.name))) not in (plain_type(field), pa.large_string()):
            return f"the column {field.name!r} holds {kind}, not {plain_type(field)}"
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
            wrong = _record_problem(record)
        except (LakeError, OSError) as error:
            wrong = error.message if isinstance(error, LakeError) else str(error)
        if wrong:
            sql = _its_condition(lake, path) if ask else None
            yield Finding("", str(path), None, f"the cohort is damaged: {wrong}", _save_again(lake, path, sql))
        elif ask:
            yield from _compare_cohort(lake, path, record)


def _its_condition(lake: Lake, path: Path) -> str | None:
    """The condition in a damaged cohort if it selects what was saved; None if it can't be read, or was hit itself."""
    try:
        record = json.loads(path.read_bytes())
        cohort = Cohort(lake, record["sql"])
        same = (cohort.rows, cohort.hash) == (record["rows"], record["ids_xxh"])
    except (ValueError, RecursionError, TypeError, KeyError, OSError, UsdataError):
        return None
    return str(record["sql"]) if same else None


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
    command = remove(path, shlex.join(words))
    return command if sql else f"{command}  # its condition is lost: give it in place of CONDITION"


# --- the views for a duckdb shell -------------------------------------------------------------------------------------


def _check_views(lake: Lake, ask: bool) -> Iterator[Finding]:
    """`catalog.duckdb` must open and, if the catalog can be asked, hold the views of this catalog and no others."""
    path = lake.root / "catalog.duckdb"
    repair = in_place_of(path, rebuild(lake))
    if not path.exists():
        if lake.catalog_files():
            yield _note("", path, "missing", repair)
        return
    try:
        there = _views_in(path)
    except (duckdb.Error, OSError) as error:
        yield Finding("", str(path), None, f"can't be read ({describe(error)})", repair)
        return
    if ask and there != _wanted_views(lake):
        yield _note("", path, "its views are not those of this catalog and this version", repair)


def _views_in(path: Path) -> dict[str, str]:
    """Name -> SQL of each view in a file of duckdb's, read from a copy: a shell that has it open would lock it."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "catalog.duckdb"
        shutil.copyfile(path, copy)
        with duckdb.connect(str(copy), read_only=True) as con:
            return _listed(con)


def _wanted_views(lake: Lake) -> dict[str, str]:
    """The same of a file that were written now."""
    root = lake.root
    curation = [path for name in CURATION if (path := root / "catalog" / f"{name}.parquet").exists()]
    files = [*lake.catalog_files(), *(root / "quarantine").glob("[!.]*.parquet"), *curation]
    samples = samples_view(root, files, lake.catalog.parts, relative=True)
    with duckdb.connect(config={"file_search_path": str(root)}) as con:
        for name, select in all_views(root, files, samples, relative=True).items():
            con.execute(f"create view {name} as {select}")
        return _listed(con)


def _listed(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    return dict(con.execute("select view_name, sql from duckdb_views() where not internal").fetchall())
