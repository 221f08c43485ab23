"""Splits at scale: making, extending, checking and publishing the split of a catalog of five million rows.

Run: python benchmarks/split.py [--rows 5000000] [--lake DIR]
Each case runs in a process of its own, for its memory. A lake given with --lake is made there if need be, and kept. One
image in 200 is a near-duplicate of another; patients and clips are those of `fake_catalog`, told apart by data set.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fake_catalog import tables
from machine import describe, table

from usdata.catalog import write_duckdb, write_part
from usdata.lake import Lake
from usdata.schema import DUPLICATES
from usdata.split import check_split, export_split, make_split
from usdata.split_report import distances, stratum_rows


def write_lake(root: Path, rows: int) -> Lake:
    """A catalog without shards, with duplicates and without a split."""
    lake, ids = Lake.create(root), []
    for part in tables(rows):
        name = part["dataset"][0].as_py()
        for column in ("patient", "clip"):
            own = pc.binary_join_element_wise(f"{name}-", part[column].cast(pa.string()), "")
            part = part.set_column(part.column_names.index(column), column, own)
        write_part(lake.catalog_part(name), part)
        ids.append(part["sample_id"].combine_chunks())
    every = pa.concat_arrays(ids)
    some = np.sort(np.random.default_rng(0).choice(len(every), len(every) // 200, replace=False))
    pairs = pa.array([f"d{i // 2:08d}" for i in range(len(some))])
    found = pa.table({"sample_id": every.take(pa.array(some)), "duplicate_group": pairs}, schema=DUPLICATES)
    write_part(lake.root / "catalog" / "duplicates.parquet", found)
    write_duckdb(lake)
    return lake


def _make(lake: Lake, file: Path, balanced: bool) -> str:
    made = make_split(lake, {"official": "ignore", "balanced": balanced}, anew=True)
    rows = list(stratum_rows(made.links, made.groups, made.assigned, made.settings))
    return f"{len(made.groups):,} groups; shares off by {distances(rows)[0]:.4f} on average"


def _export(lake: Lake, file: Path) -> str:
    export_split(lake, file, overwrite=True)
    return f"{file.stat().st_size / 1e6:.0f} MB"


def _check(lake: Lake, assignment: Path | str) -> str:
    return f"{len(check_split(lake, assignment).leaks):,} leaks"


CASES: dict[str, Callable[[Lake, Path], Any]] = {
    "split --balanced": lambda lake, file: _make(lake, file, True),
    "split": lambda lake, file: _make(lake, file, False),
    "split again, nothing new": lambda lake, file: (
        f"{int(make_split(lake).assigned.earlier.sum()):,} images keep theirs"
    ),
    "split --check": lambda lake, file: _check(lake, "active"),
    "split --check official": lambda lake, file: _check(lake, "official"),
    "split --export": _export,
    "split --check FILE": _check,
}


def main() -> None:
    """Print a table; or, called by itself, one case's line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--lake", type=Path)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        start = time.perf_counter()
        said = CASES[chosen.case](Lake(chosen.lake), chosen.lake.parent / "split.csv")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{time.perf_counter() - start:.1f}\t{peak:.1f}\t{said}")
        return
    with tempfile.TemporaryDirectory() as folder:
        root = chosen.lake or Path(folder) / "lake"
        if not root.exists():
            write_lake(root, chosen.rows)
        found: list[dict[str, object]] = []
        for case in CASES:
            command = [sys.executable, __file__, "--lake", str(root), "--case", case]
            line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            seconds, memory, said = line.split("\t")
            found.append({"": case, "s": seconds, "GiB": memory, "found": said})
    print(describe(), f"{chosen.rows:,} rows", table(found), sep="\n\n")


if __name__ == "__main__":
    main()
