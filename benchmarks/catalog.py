"""The catalog at scale: queries and cohorts over 5.2 million rows, size on disk, an append, readers during an ingest.

Run: python benchmarks/catalog.py [--rows 5200000] [--lake DIR]
Each case runs in a process of its own: once with the files dropped from the page cache, then warm. A lake given with
--lake is made there if need be, and kept. Splits for every sample and duplicates for one in twenty are in it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
from fake_catalog import ROWS, write_lake
from machine import describe, table

from ingest import run as ingest_run
from ingest.card import get_card
from usdata.catalog import write_duckdb
from usdata.lake import Lake
from usdata.sampling import sampling_plan

HISTOGRAM = "select organ, count(*) as n from samples group by all"
THREE = "organ_group = 'breast' and has_mask and not synthetic"
SPLIT = f"{THREE} and split = 'train'"
READERS = 3
Row = dict[str, object]


def raw(lake: Lake) -> duckdb.DuckDBPyConnection:
    """DuckDB over the same files: no view, no check of types, nothing locked."""
    con = duckdb.connect()
    files = ", ".join(f"'{path}'" for path in lake.catalog_files())
    con.execute(f"create view samples as from read_parquet([{files}], union_by_name = true)")
    return con


def cases(lake: Lake) -> dict[str, tuple[str, Callable[[], Callable[[], Any]]]]:
    """Name -> (target, a function that prepares what the measured function needs and returns it)."""
    from usdata import loader  # torch: not to be counted

    assert loader.Loader

    def polars_three() -> Any:
        chosen = (pl.col("organ_group") == "breast") & pl.col("has_mask") & ~pl.col("synthetic")
        return lake.scan().filter(chosen).select("sample_id").collect()

    def of(expression: str, ask: Callable[[Any], Any]) -> Callable[[], Callable[[], Any]]:
        def prepare() -> Callable[[], Any]:
            cohort = lake.cohort(expression)
            cohort._check_settled()
            return lambda: ask(cohort)

        return prepare

    def hash_of(cohort: Any) -> str:
        cohort.__dict__.pop("hash", None)
        cohort.__dict__.pop("ids", None)
        return cohort.hash

    def bare(query: str) -> Callable[[], Callable[[], Any]]:
        def prepare() -> Callable[[], Any]:
            con = raw(lake)
            return lambda: con.sql(query).to_arrow_table()

        return prepare

    def now(function: Callable[[], Any]) -> Callable[[], Callable[[], Any]]:
        return lambda: function

    return {
        "organ histogram: raw duckdb": ("", bare(HISTOGRAM)),
        "organ histogram: lake.sql": ("50 ms", now(lambda: lake.sql(HISTOGRAM))),
        "organ histogram: lake.scan, Polars": (
            "",
            now(lambda: lake.scan().group_by("organ").agg(pl.len()).collect()),
        ),
        "three conditions, ids: raw duckdb": ("", bare(f"select sample_id from samples where {THREE}")),
        "three conditions, ids: lake.sql": (
            "150 ms",
            now(lambda: lake.sql(f"select sample_id from samples where {THREE}")),
        ),
        "three conditions: lake.cohort, rows": ("150 ms", now(lambda: lake.cohort(THREE).rows)),
        "three conditions, ids: lake.scan, Polars": ("", now(polars_three)),
        "its hash": ("", of(THREE, hash_of)),
        "its groups by organ": ("", of(THREE, lambda cohort: cohort.groups("organ"))),
        "its index": ("", of(THREE, lambda cohort: cohort.index())),
        "three conditions and a split: lake.cohort": ("", now(lambda: lake.cohort(SPLIT).rows)),
        "whole lake: lake.cohort": ("", now(lambda: lake.cohort("all").rows)),
        "its hash, all rows": ("", of("all", hash_of)),
        "its groups by organ, all rows": ("", of("all", lambda cohort: cohort.groups("organ"))),
        "its index, all rows": ("", of("all", lambda cohort: cohort.index())),
        "its plan, all rows": (
            "",
            of("all", lambda cohort: sampling_plan(*cohort.groups("organ"), gamma=0.5, draws=100_000)),
        ),
        "whole lake: cohort and loader from nothing": (
            "a few s",
            now(lambda: Lake(lake.root).cohort("all").loader(batch_size=256)),
        ),
    }


def measure_one(root: Path, name: str) -> dict[str, float]:
    """The case's first time with nothing in the page cache, the median of later ones, and memory, in this process."""
    lake = Lake(root)
    _, prepare = cases(lake)[name]
    forget(root)
    before = peak()
    times, processor = [], []
    function = prepare()
    forget(root)
    while len(times) < 4 or (sum(times) < 1.5 and len(times) < 25):
        start, used = time.perf_counter(), time.process_time()
        function()
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    warm = {"warm": sorted(times[1:]), "processor": sorted(processor[1:])}
    return {"cold": times[0], "mib": peak() - before} | {name: some[len(some) // 2] for name, some in warm.items()}


def peak() -> float:
    """The most memory that this process has had, in MiB (what `getrusage` says is inherited from the parent)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def forget(root: Path) -> None:
    """Drop the catalog's files from the page cache."""
    for path in root.glob("catalog/**/*.parquet"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def measure(root: Path) -> list[Row]:
    """All cases, one process each."""
    rows: list[Row] = []
    for name, (target, _) in cases(Lake(root)).items():
        words = [sys.executable, __file__, "--lake", str(root), "--one", name]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        numbers = {key: f"{1000 * found[key]:,.0f}" for key in ("cold", "warm", "processor")}
        rows.append({"what": name, "target": target, **{f"{k}, ms": v for k, v in numbers.items()}})
        rows[-1]["memory, MiB"] = f"{found['mib']:,.0f}"
    return rows


def sizes(lake: Lake) -> list[Row]:
    """Bytes on disk per row of the largest columns."""
    bytes_of: Counter[str] = Counter()
    rows = 0
    for path in lake.catalog_files():
        meta = pq.read_metadata(path)
        rows += meta.num_rows
        for g in range(meta.num_row_groups):
            columns = [meta.row_group(g).column(c) for c in range(meta.num_columns)]
            bytes_of.update({c.path_in_schema: c.total_compressed_size for c in columns})
    total = sum(path.stat().st_size for path in lake.catalog_files())
    found: list[Row] = [{"column": "all", "MB": f"{total / 1e6:.1f}", "bytes per row": f"{total / rows:.2f}"}]
    for name, n in bytes_of.most_common(8):
        found.append({"column": name, "MB": f"{n / 1e6:.1f}", "bytes per row": f"{n / rows:.2f}"})
    return found


# --- writing --------------------------------------------------------------------------------------------------------


def append(lake: Lake, images: int) -> list[Row]:
    """The time of the commit alone, into this lake and into an empty one; no other file may change."""
    rows: list[Row] = []
    real = ingest_run.commit
    with tempfile.TemporaryDirectory() as name:
        for where, target in (("an empty lake", Lake.create(Path(name) / "lake")), ("this lake", lake)):
            seconds = []

            def timed(*args: Any, **words: Any) -> bool:
                start = time.perf_counter()
                changed = real(*args, **words)
                seconds.append(time.perf_counter() - start)  # noqa: B023
                return changed

            before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in target.catalog_files()}
            ingest_run.commit = timed
            ingest_run.ingest(get_card("phantom"), None, target, count=images, workers=2)
            ingest_run.commit = real
            touched = [p.name for p, stamp in before.items() if (p.stat().st_ino, p.stat().st_mtime_ns) != stamp]
            start = time.perf_counter()
            write_duckdb(target)
            views = time.perf_counter() - start
            rows.append(
                {
                    "into": where,
                    "rows there": f"{target.cohort('all').rows - images:,}",
                    "commit, ms": f"{1000 * seconds[0]:.0f}",
                    "of it catalog.duckdb, ms": f"{1000 * views:.0f}",
                    "other parts touched": len(touched),
                }
            )
        remove(lake, "phantom")
    return rows


def remove(lake: Lake, dataset: str) -> None:
    """Take away the catalog part, shards and manifest of a data set that this script has added."""
    lake.catalog_part(dataset).unlink()
    lake.quarantine_part(dataset).unlink()
    lake.manifest(dataset).unlink()
    for shard in lake.shard_folder(dataset).iterdir():
        shard.unlink()
    lake.shard_folder(dataset).rmdir()
    write_duckdb(lake)


def read_loop(root: Path, stop: Path, whole: int, added: int) -> dict[str, Any]:
    """Histogram after histogram until `stop` appears: their times, and how many states were half."""
    lake, times, half = Lake(root), [], 0
    while not stop.exists():
        start = time.perf_counter()
        answer = lake.sql(HISTOGRAM)
        times.append((time.time(), time.perf_counter() - start))
        half += sum(answer["n"].to_pylist()) not in (whole, whole + added)
    return {"times": times, "half": half}


def readers(lake: Lake, images: int) -> list[Row]:
    """Latency of three readers before and while a data set is ingested."""
    whole = lake.cohort("all").rows
    with tempfile.TemporaryDirectory() as name:
        stop = Path(name) / "stop"
        words = [sys.executable, __file__, "--lake", str(lake.root), "--read", str(stop), str(whole), str(images)]
        pool = [
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(READERS)
        ]
        time.sleep(8)
        begin = time.time()
        ingest_run.ingest(get_card("phantom"), None, lake, count=images, workers=1)
        end = time.time()
        time.sleep(1)
        stop.touch()
        ended = [one.communicate() for one in pool]
    failed = [err.strip().splitlines()[-1] for (_, err), one in zip(ended, pool, strict=True) if one.returncode]
    found = [json.loads(out) for (out, _), one in zip(ended, pool, strict=True) if not one.returncode]
    rows: list[Row] = []
    for when, low, high in (("alone", 0.0, begin), ("during the ingest", begin, end)):
        times = sorted(t for one in found for at, t in one["times"][1:] if low <= at < high)
        middle, high_ = times[len(times) // 2], times[int(len(times) * 0.99)]
        rows.append(
            {
                f"{READERS} readers": when,
                "queries": len(times),
                "median, ms": f"{1000 * middle:.0f}",
                "99 %, ms": f"{1000 * high_:.0f}",
                "slowest, ms": f"{1000 * times[-1]:.0f}",
                "errors": len(failed),
                "half states": sum(one["half"] for one in found),
            }
        )
    remove(lake, "phantom")
    return rows


def main() -> None:
    """Make the lake, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--images", type=int, default=1000, help="of the data set that is added")
    parser.add_argument("--lake", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_one(options.lake, options.one)))
    elif options.read:
        stop, whole, added = options.read
        print(json.dumps(read_loop(options.lake, Path(stop), int(whole), int(added))))
    else:
        with tempfile.TemporaryDirectory() as name:
            report(options.lake or Path(name) / "lake", options.rows, options.images)


def report(root: Path, rows: int, images: int) -> None:
    """Everything, as Markdown."""
    print(f"{describe()}\n")
    if not (root / "lake.json").exists():
        start = time.perf_counter()
        write_lake(root, rows)
        print(f"{rows:,} rows made in {time.perf_counter() - start:.0f} s.\n")
    lake = Lake(root)
    for part in (measure, lambda _: sizes(lake), lambda _: append(lake, images), lambda _: readers(lake, images)):
        print(f"{table(part(root))}\n", flush=True)


if __name__ == "__main__":
    main()
