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
from usdata.files import explain_os_errors, file_xxh, write_json
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
    again = _again(lake, dataset)
    rebuild = f"usdata catalog --rebuild --lake {lake.root}"
    path = str(lake.manifest(dataset))
    try:
        manifest = lake.read_manifest(dataset)
    except LakeError as error:
        yield Finding(dataset, path, None, error.message, f"rm {path}; {again}")
        return
    if manifest is None:
        yield Finding(dataset, path, None, "the manifest is missing", again)
        return
    records = _shard_records(manifest)
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
        LakeError: a shard is damaged, or not one of those that the manifest lists: an ingest was killed while it
            replaced the data set, and half of each must not be shown.
    """
    with explain_os_errors(lake.root, step="rebuild"), lake.commit_lock():
        for folder in sorted(p for p in (lake.root / "shards").glob("*") if p.is_dir()):
            dataset = folder.name
            shards = sorted(folder.glob("*.tar"))
            manifest = lake.read_manifest(dataset)
            if manifest is not None:
                _check_shards(lake, dataset, shards, manifest)
            rows = [row for tar in shards for row in read_rows(tar, f"shards/{dataset}/{tar.name}")]
            if not rows:
                continue
            write_part(lake.catalog_part(dataset), _table(rows))
            if manifest is not None:
                write_json(lake.manifest(dataset), manifest | {"catalog_xxh": file_xxh(lake.catalog_part(dataset))})
            yield dataset
        write_duckdb(lake)


def _check_shards(lake: Lake, dataset: str, shards: list[Path], manifest: dict[str, Any]) -> None:
    records = _shard_records(manifest)
    for name in sorted({shard.name for shard in shards} | set(records)):
        shard = lake.shard_folder(dataset) / name
        problem = _shard_problem(shard, records[name]) if name in records else "not in the manifest"
        if problem:
            raise LakeError(
                f"{shard}: {problem}.",
                dataset=dataset,
                step="rebuild",
                hint=f"Make the shards right first:  {_again(lake, dataset)}",
            )


def _shard_records(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name -> what the manifest says of that shard, for those that hold samples."""
    return {f"{name}.tar": record for name, record in manifest["shards"].items() if record["samples"]}


def _again(lake: Lake, dataset: str) -> str:
    return f"usdata ingest {dataset} --from PATH --lake {lake.root}"
