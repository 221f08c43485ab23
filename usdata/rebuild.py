"""Make the catalog anew from the shards alone, byte for byte as the ingest wrote it.

Manifests can't be made from shards: they hold fingerprints of sources, which no shard knows, and what was rejected. A
lost one is made again by the ingest, which finds that it must build the shards once more; so is a lost quarantine.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from usdata.catalog import canonical, write_duckdb, write_part
from usdata.errors import LakeError
from usdata.files import explain_os_errors, file_stamp, file_xxh, write_json
from usdata.finding import again, elsewhere, rebuild, remove
from usdata.lake import Lake
from usdata.manifest import interpolation, read_checked, traces, with_samples
from usdata.schema import SAMPLES
from usdata.seal import KEY, seal
from usdata.shard_rows import RowsTask, rows_of_shard
from usdata.verify_shard import unpack_rows
from usdata.workers import Progress, announced, in_order, processes_for, silent


def _unsaid(_sentence: str) -> None:
    return None


def rebuild_catalog(
    lake: Lake, workers: int = 1, progress: Progress = silent, say: Callable[[str], None] = _unsaid
) -> Iterator[str]:
    """Make every catalog part anew from its shards; yields the names of the data sets as they are done.

    A part of a data set that has no shards, and no manifest that lists any, is removed.

    A data set is replaced whole or not at all; one that must be refused does not keep the others from being made.

    Args:
        workers: processes at most; a small lake is read in this one.
        progress: called with ("rebuild", bytes read, bytes to read).
        say: called with a sentence about each part that is removed.

    Raises:
        LakeError: at the end: a shard is damaged, or not one of those that the manifest lists: an ingest was killed
            while it replaced the data set, and half of each must not be shown. Or the lake is remote.
    """
    lake.check_writable()
    names = traces(lake)
    sizes = {name: sum(_size(tar) for tar in _shards(lake, name)) for name in names}
    total, done = sum(sizes.values()), 0
    refused: list[LakeError] = []

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("rebuild", done, total)

    with explain_os_errors(lake.root, step="rebuild"):
        for name in names:
            try:
                processes = processes_for(sizes[name], workers)
                with lake.commit_lock():
                    made = _rebuild_one(lake, name, processes, advance, say)
            except LakeError as error:
                if error.dataset is None:  # no fault of the data set
                    raise
                refused.append(error)
                continue
            if made:
                yield name
        with lake.commit_lock():
            write_duckdb(lake)
    if refused:
        raise refused[0]


def _shards(lake: Lake, dataset: str) -> list[Path]:
    return sorted(path for path in lake.shard_folder(dataset).glob("*.tar") if not path.name.startswith("."))


def _size(path: Path) -> int:
    try:
        stamp = file_stamp(path)
    except OSError:  # a link to itself: refused with its data set
        return 0
    return stamp[2] if stamp else 0


def _rebuild_one(
    lake: Lake, dataset: str, workers: int, advance: Callable[[int], None], say: Callable[[str], None]
) -> bool:
    """One data set's part; False if it has no shards."""
    manifest = _manifest(lake, dataset)
    jobs = _jobs(lake, dataset, manifest)
    parts: list[pa.Table] = []
    shards = announced(jobs, lambda job: job.path)
    for job, found in zip(jobs, in_order(rows_of_shard, shards, min(workers, len(jobs)), "rebuild"), strict=True):
        if found.problem:
            raise _refusal(lake, dataset, job.path, found.problem)
        parts.append(unpack_rows(found.rows))
        advance(found.size)
    if not parts:
        _remove_stale(lake, dataset, say)
        return False
    table = pa.concat_tables(parts)
    counts = pc.value_counts(table["sample_id"])
    twice = counts.filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    if len(twice):
        problem = f"{len(twice)} samples stand in it twice, for instance {twice[0].as_py()['values']}"
        raise _refusal(lake, dataset, lake.shard_folder(dataset), problem)
    write_part(lake.catalog_part(dataset), canonical(table, SAMPLES))
    if manifest is not None:
        _correct_manifest(lake, dataset, manifest)
    return True


def _remove_stale(lake: Lake, dataset: str, say: Callable[[str], None]) -> None:
    """Rows without shards show images that are not there."""
    folder = lake.shard_folder(dataset)
    for link in (folder, folder.parent):
        if link.is_symlink() and not link.exists():
            raise _refusal(lake, dataset, link, "a link to nowhere: is the disk that it points to not mounted?")
    samples = lake.root / "catalog" / "samples"
    for part in lake.catalog_files():
        if part.relative_to(samples).parts[0].removesuffix(".parquet") != dataset:
            continue
        if part.is_dir():
            raise LakeError(
                f"{part} is a folder.", dataset=dataset, step="rebuild", hint=f"Take it away:  {elsewhere(part)}"
            )
        part.unlink()
        say(f"removed {part}: {dataset} has no shards")


def _manifest(lake: Lake, dataset: str) -> dict[str, Any] | None:
    path = lake.manifest(dataset)
    try:
        return read_checked(lake, dataset, interpolation(lake.root))
    except FileNotFoundError:
        return None
    except LakeError as error:
        raise LakeError(
            f"{path} is damaged: {error.message}.",
            dataset=dataset,
            step="rebuild",
            hint=f"Make it anew first:  {remove(path, again(lake, dataset))}",
        ) from error


def _correct_manifest(lake: Lake, dataset: str, manifest: dict[str, Any]) -> None:
    corrected = manifest | {"catalog_xxh": file_xxh(lake.catalog_part(dataset))}
    corrected = seal(corrected) if KEY in manifest else corrected
    if corrected != manifest:
        write_json(lake.manifest(dataset), corrected)


def _jobs(lake: Lake, dataset: str, manifest: dict[str, Any] | None) -> list[RowsTask]:
    folder = lake.shard_folder(dataset)
    present = {tar.name for tar in _shards(lake, dataset)}
    records = with_samples(manifest) if manifest else {}
    for name in sorted(present | set(records)):
        problem = _misplaced(folder / name, records.get(name), manifest is not None)
        if problem:
            raise _refusal(lake, dataset, folder / name, problem)
    return [
        RowsTask(folder / name, f"shards/{dataset}/{name}", records[name]["xxh"] if manifest else None)
        for name in sorted(present)
    ]


def _misplaced(shard: Path, record: dict[str, Any] | None, listed: bool) -> str | None:
    if not listed:
        return None
    if record is None:
        return "not in the manifest"
    if not shard.exists():
        return "the shard is missing"
    size = shard.stat().st_size
    return f"{size} bytes instead of {record['size']}" if size != record["size"] else None


def _refusal(lake: Lake, dataset: str, shard: Path, problem: str) -> LakeError:
    return LakeError(
        f"{shard}: {problem}.",
        dataset=dataset,
        step="rebuild",
        hint=f"Make the shards right first:  {again(lake, dataset)}\n  and then, if need be:  {rebuild(lake)}",
    )
