"""The rows of one shard, from its JSONs and the places of its members: the work of one process at a time."""

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from usdata.row_text import table_of_texts
from usdata.schema import SAMPLES, plain_type
from usdata.shard_scan import Found, ShardScan
from usdata.verify_shard import pack_rows, parse_json, table_or_none


@dataclass(frozen=True, slots=True)
class RowsTask:
    """A shard whose rows are wanted."""

    path: Path
    name: str  # what the column `shard` says
    xxh: str | None  # as the manifest has it


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Its rows as an Arrow stream, or what is wrong with it."""

    rows: bytes
    size: int
    problem: str | None


def rows_of_shard(task: RowsTask) -> ShardRows:
    """The rows of one shard, which must have the hash that is expected, and a tar structure without a fault."""
    try:
        scan = ShardScan(task.path, pixels=False)
    except OSError as error:
        return ShardRows(b"", 0, f"can't be read ({error.strerror})")
    if task.xxh not in (None, scan.xxh):
        return ShardRows(b"", scan.size, "the bytes do not match their hash")
    if scan.faults:
        return ShardRows(b"", scan.size, f"{scan.faults[0].problem} (byte {scan.faults[0].offset})")
    table = table_of_texts([sample.json for sample in scan.samples])
    if table is None:
        table = table_or_none([row for sample in scan.samples if isinstance(row := parse_json(sample.json), dict)])
    keys = [sample.key for sample in scan.samples]
    if table is None or table["sample_id"].to_pylist() != keys:
        return ShardRows(b"", scan.size, "the JSON of a sample is damaged, or that of another")
    if other := _foreign(table, task):
        return ShardRows(b"", scan.size, other)
    return ShardRows(pack_rows(_placed(table, task.name, scan.samples)), scan.size, None)


def _foreign(table: pa.Table, task: RowsTask) -> str | None:
    """Whether a shard's name, or a row in it, is of another data set or organ than where it stands."""
    _, dataset, file = task.name.split("/")
    name = re.fullmatch(rf"{re.escape(dataset)}-(.+)-\d{{6,}}\.tar", file)
    if name is None:
        return f"no shard's name; one of this data set is {dataset}-ORGAN-000000.tar"
    for column, wanted in (("dataset", dataset), ("organ", name[1])):
        for word in pc.unique(table[column]).to_pylist():
            if word != wanted:
                return f"it holds a sample of {column} {word!r}"
    return None


def _placed(table: pa.Table, shard: str, samples: list[Found]) -> pa.Table:
    """The rows with their location columns."""
    places = {
        "shard": [shard] * len(samples),
        "offset": [sample.offset for sample in samples],
        "size": [sample.size for sample in samples],
        "mask_offset": [sample.mask_offset if sample.mask_offset >= 0 else None for sample in samples],
        "mask_size": [sample.mask_size if sample.mask_size >= 0 else None for sample in samples],
        "json_offset": [sample.json_offset for sample in samples],
    }
    for name, values in places.items():
        field = SAMPLES.field(name)
        column = pa.array(values, plain_type(field))
        table = table.set_column(table.column_names.index(name), name, column)
    return table
