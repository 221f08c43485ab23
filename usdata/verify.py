"""Check a lake byte by byte against its manifests, and make its catalog anew from the shards."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from usdata import png
from usdata.catalog import canonical, read_part, write_duckdb, write_part
from usdata.errors import DataError, LakeError
from usdata.files import file_xxh, read_json, write_json
from usdata.lake import Lake
from usdata.schema import SAMPLES, table_of
from usdata.shards import read_rows


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: where, what, and the command that repairs it."""

    dataset: str
    file: str
    sample: str | None
    problem: str
    repair: str

    def row(self) -> dict[str, Any]:
        """As a row of the printed table."""
        return asdict(self)


def verify(lake: Lake) -> list[Finding]:
    """All that is wrong in a lake; an empty list if every byte is as it was written."""
    return [finding for dataset in _all_datasets(lake) for finding in _verify_dataset(lake, dataset)]


def _all_datasets(lake: Lake) -> list[str]:
    """Every data set that left a trace: a lost catalog part or manifest is a finding, not a reason to look away."""
    folders = [p.name for p in (lake.root / "shards").glob("*") if p.is_dir()]
    manifests = [p.stem for p in (lake.root / "manifests").glob("[!.]*.json")]
    return sorted({*lake.datasets(), *folders, *manifests})


def _verify_dataset(lake: Lake, dataset: str) -> Iterator[Finding]:
    again = f"usdata ingest {dataset} --from PATH --lake {lake.root}"
    rebuild = f"usdata catalog --rebuild --lake {lake.root}"
    path = lake.manifest(dataset)
    if not path.exists():
        yield Finding(dataset, str(path), None, "the manifest is missing", again)
        return
    manifest = read_json(path)
    records = {f"{name}.tar": r for name, r in manifest["shards"].items() if r["samples"]}
    rows: list[dict[str, Any]] = []
    for name, record in records.items():
        shard = lake.shard_folder(dataset) / name
        problem = _shard_problem(shard, record)
        if problem:
            yield Finding(dataset, str(shard), None, problem, again)
            continue
        found = read_rows(shard, f"shards/{dataset}/{name}")
        rows += found
        yield from _verify_images(dataset, shard, found, again)
    present = {p.name for p in lake.shard_folder(dataset).glob("*")}
    for name in sorted(present - set(records)):
        yield Finding(dataset, str(lake.shard_folder(dataset) / name), None, "not in the manifest", again)
    yield from _verify_tables(lake, dataset, manifest, rows if records else None, again, rebuild)


def _shard_problem(shard: Path, record: dict[str, Any]) -> str | None:
    if not shard.exists():
        return "the shard is missing"
    if shard.stat().st_size != record["size"]:
        return f"{shard.stat().st_size} bytes instead of {record['size']}"
    return None if file_xxh(shard) == record["xxh"] else "the bytes do not match their hash"


def _verify_images(dataset: str, shard: Path, rows: list[dict[str, Any]], repair: str) -> Iterator[Finding]:
    data = np.memmap(shard, np.uint8, "r")
    for row in rows:
        file = data[row["offset"] : row["offset"] + row["size"]]
        try:
            png.check(file)
            if xxhash.xxh3_128(png.decode(file).tobytes()).hexdigest() != row["pixel_xxh"]:
                raise DataError("pixel_xxh", "the pixels do not match pixel_xxh")
        except DataError as error:
            yield Finding(dataset, str(shard), row["sample_id"], error.message, repair)


def _verify_tables(
    lake: Lake, dataset: str, manifest: dict[str, Any], rows: list[dict[str, Any]] | None, again: str, rebuild: str
) -> Iterator[Finding]:
    part, quarantine = lake.catalog_part(dataset), lake.quarantine_part(dataset)
    if not quarantine.exists() or file_xxh(quarantine) != manifest["quarantine_xxh"]:
        yield Finding(dataset, str(quarantine), None, "missing, or not as it was written", again)
    if rows is None:
        return
    if not part.exists():
        yield Finding(dataset, str(part), None, "the catalog part is missing", rebuild)
        return
    try:
        table = read_part(part)
    except LakeError as error:
        yield Finding(dataset, str(part), None, error.message, rebuild)
        return
    if file_xxh(part) != manifest["catalog_xxh"] or not canonical(table, SAMPLES).equals(_table(rows)):
        yield Finding(dataset, str(part), None, "differs from what the shards say", rebuild)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return canonical(table_of(rows), SAMPLES)


def rebuild_catalog(lake: Lake) -> Iterator[str]:
    """Make every catalog part anew from its shards; yields the names of the data sets as they are done.

    Raises:
        LakeError: a shard is damaged.
    """
    for folder in sorted(p for p in (lake.root / "shards").glob("*") if p.is_dir()):
        dataset = folder.name
        rows = [row for tar in sorted(folder.glob("*.tar")) for row in read_rows(tar, f"shards/{dataset}/{tar.name}")]
        if not rows:
            continue
        write_part(lake.catalog_part(dataset), _table(rows))
        if lake.manifest(dataset).exists():
            manifest = read_json(lake.manifest(dataset)) | {"catalog_xxh": file_xxh(lake.catalog_part(dataset))}
            write_json(lake.manifest(dataset), manifest)
        yield dataset
    write_duckdb(lake)
