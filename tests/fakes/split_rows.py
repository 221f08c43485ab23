"""Rows of a catalog as far as a split looks at them, and lakes that hold such rows."""

from typing import Any

import pyarrow as pa

from usdata.catalog import canonical, write_duckdb, write_part
from usdata.lake import Lake
from usdata.schema import DUPLICATES, SAMPLES, table_of
from usdata.split_groups import COLUMNS, Links, links_of


def links(rows: list[dict[str, Any]]) -> Links:
    """The links of rows; `id` stands for sample_id, and what a row does not say is null."""
    named = [{"sample_id": row["id"]} | {k: v for k, v in row.items() if k != "id"} for row in rows]
    return links_of(pa.table({name: pa.array([row.get(name) for row in named], pa.string()) for name in COLUMNS}))


def write_rows(lake: Lake, rows: list[dict[str, Any]]) -> None:
    """Write rows into a lake's catalog, without shards; those of other data sets stay. With `duplicate_group`, too."""
    done = [{"organ": "breast", "licence": "CC0-1.0"} | row for row in rows]
    for dataset in {row["dataset"] for row in done}:
        mine = [{k: v for k, v in row.items() if k != "duplicate_group"} for row in done if row["dataset"] == dataset]
        places = [row | {"shard": f"shards/{dataset}/a.tar", "offset": i} for i, row in enumerate(mine)]
        write_part(lake.catalog_part(dataset), canonical(table_of(places), SAMPLES))
    write_duckdb(lake)


def write_duplicates(lake: Lake, groups: dict[str, str]) -> None:
    """Write the table of near-duplicates: sample_id -> group."""
    table = pa.table({"sample_id": list(groups), "duplicate_group": list(groups.values())}, schema=DUPLICATES)
    write_part(lake.root / "catalog" / "duplicates.parquet", table)
