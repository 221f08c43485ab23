"""Make a built data set visible, all of it at once.

Order: take the old catalog part away, write quarantine and manifest, move the shards, put the new catalog part last. A
reader sees the old data set, or none, or the new one, never a mixture; a run killed anywhere in between is finished by
running the same command again, because every step may be repeated. The manifest goes before the shards, so that a
catalog rebuilt from half of them is refused. Each step is on the disk before the next begins: a power cut leaves what
a kill leaves.
"""

import errno
import secrets
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingest.build import Rejected, ShardReport
from ingest.plan import ShardJob
from usdata.catalog import canonical, duckdb_is_fresh, read_part, write_duckdb, write_part
from usdata.files import explain_os_errors, file_xxh, make_folder, read_json, sync_folder, write_json
from usdata.lake import Lake
from usdata.schema import QUARANTINE, SAMPLES, table_of
from usdata.seal import seal
from usdata.shards import read_rows


def committed_shards(lake: Lake, dataset: str) -> dict[str, dict[str, Any]]:
    """What the manifest says of a data set's shards: name -> fingerprint, size, xxh, samples, rejected."""
    manifest = lake.read_manifest(dataset)
    return manifest["shards"] if manifest else {}


def take_staging(lake: Lake, dataset: str) -> Path:
    """The staging folder under a new name, known to this run only, with the shards that an interrupted run finished.

    Processes that outlive a killed run may still write: what they write goes to the old name, and is lost.
    """
    place, name = lake.staging(dataset), secrets.token_hex(8)
    make_folder(place)
    for earlier in sorted(place.iterdir()):
        if not earlier.is_dir():
            earlier.unlink()
        elif (place / name).exists():
            shutil.rmtree(earlier)
        else:
            earlier.rename(place / name)
    make_folder(place / name)
    return place / name


def clear_stale(staging: Path, jobs: list[ShardJob]) -> None:
    """Remove what an interrupted run left in the staging folder, but for shards of exactly these jobs."""
    wanted = {job.name: job.fingerprint for job in jobs}
    for path in sorted(staging.iterdir()):  # X.json before X.parquet and X.tar
        report = ShardReport.load(staging / f"{path.stem}.json")
        if path.name.startswith(".") or report is None or report.fingerprint != wanted.get(path.stem):
            path.unlink(missing_ok=True)


def find_finished(lake: Lake, job: ShardJob, known: dict[str, dict[str, Any]]) -> ShardReport | None:
    """The report of a job whose shard is already in its final place, its bytes checked against their hash."""
    record = known.get(job.name)
    staged = job.staging / f"{job.name}.json"
    report: ShardReport | None
    if record is None or record["fingerprint"] != job.fingerprint:
        report = ShardReport.load(staged)  # moved by a commit that was killed
    else:
        rejected = tuple(Rejected(**r) for r in record["rejected"])
        report = ShardReport(job.name, job.fingerprint, record["samples"], record["size"], record["xxh"], rejected)
    if report is None or report.fingerprint != job.fingerprint or not report.final:
        return None
    tar = lake.shard_folder(job.card.name) / f"{job.name}.tar"
    if report.samples and not (tar.exists() and tar.stat().st_size == report.size and file_xxh(tar) == report.xxh):
        return None
    return report


def quarantine_table(dataset: str, rejected: list[Rejected]) -> pa.Table:
    """Rejections as the quarantine's rows, sorted by source, frame, stage."""
    rows = [
        {"dataset": dataset, **asdict(r)}
        for r in sorted(rejected, key=lambda r: (r.source_id, -1 if r.frame is None else r.frame, r.stage, r.reason))
    ]
    return canonical(table_of(rows, QUARANTINE), QUARANTINE)


def commit(
    lake: Lake,
    dataset: str,
    staging: Path,
    reports: list[ShardReport],
    rejected: list[Rejected],
    record: dict[str, Any],
) -> bool:
    """Put a data set's finished shards, quarantine, manifest and catalog part in place.

    Args:
        staging: where the shards were built; removed at the end.
        reports: of all jobs, in their order; shards without a sample are left out of the lake.
        rejected: what did not get in, from listing, scanning and building.
        record: what else the manifest should say (card digest, interpolation, counts).

    Returns:
        False if everything was in place already and nothing was written.

    Raises:
        LakeError: the disk is full or can't be written.
    """
    kept = [report for report in reports if report.samples]
    with explain_os_errors(lake.root, dataset=dataset, step="commit"), lake.commit_lock():
        table = _catalog_table(lake, dataset, staging, kept)
        write_part(staging / "catalog.parquet", table)
        write_part(staging / "quarantine.parquet", quarantine_table(dataset, rejected))
        content = record | {
            "dataset": dataset,
            "shards": {r.name: _shard_record(r) for r in reports},
            "catalog_xxh": file_xxh(staging / "catalog.parquet"),
            "quarantine_xxh": file_xxh(staging / "quarantine.parquet"),
        }
        manifest = seal(content)
        changed = not _in_place(lake, dataset, staging, manifest)
        if changed:
            _take_away(lake.catalog_part(dataset))
            _move(staging / "quarantine.parquet", lake.quarantine_part(dataset))
            write_json(lake.manifest(dataset), manifest)
            _move_shards(lake, dataset, staging, kept)
            if kept:
                _move(staging / "catalog.parquet", lake.catalog_part(dataset))
        if changed or not duckdb_is_fresh(lake):  # not fresh: an earlier run was killed before it wrote the views
            write_duckdb(lake)
        _drop(staging)
    return changed


def _shard_record(report: ShardReport) -> dict[str, Any]:
    return {
        "fingerprint": report.fingerprint,
        "samples": report.samples,
        "size": report.size,
        "xxh": report.xxh,
        "rejected": [asdict(r) for r in report.rejected],
    }


def _catalog_table(lake: Lake, dataset: str, staging: Path, reports: list[ShardReport]) -> pa.Table:
    """The rows of all shards: from the staging folder where the shard was just built, else from the shard itself."""
    parts = []
    for report in reports:
        staged = staging / f"{report.name}.parquet"
        if staged.exists():
            parts.append(read_part(staged))
        else:
            tar = lake.shard_folder(dataset) / f"{report.name}.tar"
            parts.append(table_of(read_rows(tar, f"shards/{dataset}/{tar.name}")))
    if not parts:
        return SAMPLES.empty_table()
    return canonical(pa.concat_tables([canonical(p, SAMPLES, coded=False) for p in parts]), SAMPLES)


def _in_place(lake: Lake, dataset: str, staging: Path, manifest: dict[str, Any]) -> bool:
    """Whether the lake already holds exactly this; the shards' own bytes were checked by `find_finished`."""
    staged = list(staging.glob("*.tar"))
    part, path = lake.catalog_part(dataset), lake.manifest(dataset)
    empty = not any(r["samples"] for r in manifest["shards"].values())
    if staged or not path.exists() or read_json(path) != manifest:
        return False
    quarantine = lake.quarantine_part(dataset)
    if not quarantine.exists() or file_xxh(quarantine) != manifest["quarantine_xxh"]:
        return False
    if empty:
        return not part.exists()
    names = {f"{name}.tar" for name, r in manifest["shards"].items() if r["samples"]}
    extra = {p.name for p in lake.shard_folder(dataset).glob("*.tar")} - names
    return not extra and part.exists() and file_xxh(part) == manifest["catalog_xxh"]


def _move_shards(lake: Lake, dataset: str, staging: Path, reports: list[ShardReport]) -> None:
    folder = lake.shard_folder(dataset)
    make_folder(folder)
    for report in reports:
        staged = staging / f"{report.name}.tar"
        if staged.exists():
            staged.replace(folder / staged.name)
    names = {f"{report.name}.tar" for report in reports}
    for left_over in [p for p in folder.glob("*.tar") if p.name not in names and not p.is_dir()]:
        left_over.unlink()  # what is no shard is not ours to remove; verify tells of it
    sync_folder(folder)


def _move(source: Path, target: Path) -> None:
    make_folder(target.parent)
    source.replace(target)
    sync_folder(target.parent)


def _take_away(path: Path) -> None:
    """Remove a file for good: it must not come back after a power cut, beside what has been put in place since."""
    if path.exists():
        path.unlink()
        sync_folder(path.parent)


def _drop(staging: Path) -> None:
    """Remove the staging folder, and the one around it unless something else has come into that meanwhile."""
    shutil.rmtree(staging)
    try:
        staging.parent.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # a process of a killed run is still there; the next run clears up after it
            raise
