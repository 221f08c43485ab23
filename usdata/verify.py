"""Check a lake byte by byte: shards, catalog, manifests and everything else that stands in its folder.

Every byte of a shard is read once; hash, tar structure, images, masks and rows are checked while it is in the cache.
One shard is the work of one process at a time; the findings are the same for any number of processes.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from usdata.errors import LakeError, nearest
from usdata.files import file_stamp
from usdata.finding import Finding
from usdata.lake import Lake
from usdata.manifest import interpolation, traces
from usdata.rebuild import rebuild_catalog
from usdata.verify_dataset import DatasetCheck
from usdata.verify_lake import check_head, check_lake
from usdata.verify_shard import ShardTask, check_shard
from usdata.workers import Progress, announced, in_order, processes_for, silent

__all__ = ["Finding", "check_head", "rebuild_catalog", "verify"]


def verify(
    lake: Lake,
    workers: int = 1,
    progress: Progress = silent,
    datasets: Sequence[str] | None = None,
    registered: Collection[str] | None = None,
) -> list[Finding]:
    """All that is wrong in a lake; an empty list if every byte is as it was written.

    An ingest may go on meanwhile: a data set that it replaces is reported as changed, not as damaged.

    Args:
        workers: processes at most; a small lake is read in this one.
        progress: called with ("verify", bytes read, bytes to read).
        datasets: look at these only, and of the rest at `lake.json` alone; None: everything.
        registered: names of the data sets whose cards are in the package, for the repairs; see `finding.again`.

    Returns:
        Findings of level `damage`, `changed` (run it again) and `note` (harmless): of `lake.json`, which is to be
        repaired first, as an ingest goes by it; then by data set, then of the whole lake.

    Raises:
        LakeError: the lake is remote, has no such data set, or a process died.
    """
    if lake.remote:
        raise LakeError(
            f"{lake.address} is remote: verify reads every byte, so it runs where the lake is.",
            step="verify",
            hint="There:  usdata verify --lake DIR",
        )
    names = _chosen(lake, datasets)
    sizes = {name: _bytes(lake.shard_folder(name)) for name in names}
    total, done = sum(sizes.values()), 0
    checks: dict[str, DatasetCheck] = {}
    findings = check_head(lake.root)
    finished, word = 0, interpolation(lake.root)

    def tasks() -> Iterator[ShardTask]:
        for name in names:
            checks[name] = DatasetCheck(lake, name, word, registered)
            yield from checks[name].tasks()

    shards = announced(tasks(), lambda task: task.path)
    for result in in_order(check_shard, shards, processes_for(total, workers), "verify"):
        while names[finished] != result.dataset:  # results come in order: what stands before is complete
            findings += checks.pop(names[finished]).finish()
            finished += 1
        checks[result.dataset].take(result)
        done += result.size
        progress("verify", done, total)
    for name in names[finished:]:
        findings += checks.pop(name).finish()
    if datasets is None:
        findings += check_lake(lake, whole=not any(f.level == "damage" for f in findings))
    return findings


def _chosen(lake: Lake, datasets: Sequence[str] | None) -> list[str]:
    names = traces(lake)
    for name in datasets or ():
        if name not in names:
            raise LakeError(f"{lake.root} holds nothing of a data set {name!r}.{nearest(name, names)}", step="verify")
    return names if datasets is None else sorted(set(datasets))


def _bytes(folder: Path) -> int:
    stamps = [file_stamp(path) for path in folder.glob("*.tar")] if folder.is_dir() else []
    return sum(stamp[2] for stamp in stamps if stamp)  # an ingest may take one away meanwhile
