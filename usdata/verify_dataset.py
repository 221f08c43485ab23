"""Check one data set: its manifest, its shards against manifest and catalog, its catalog part, its quarantine."""

import fcntl
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from usdata.errors import LakeError, describe
from usdata.files import Stamp, file_stamp, file_xxh
from usdata.finding import Finding, Level, again, elsewhere, in_place_of, quoted, rebuild, remove
from usdata.lake import Lake
from usdata.manifest import read_checked, with_samples
from usdata.parts import DAMAGED
from usdata.schema import SAMPLES, plain_type
from usdata.shard_scan import Fault
from usdata.verify_shard import NOWHERE, ShardResult, ShardTask, pack_rows

_ROWS = 65_536  # catalog rows in memory at a time
_MANY = 20  # differences of a shard from its rows that are named one by one


@contextmanager
def no_commit(lake: Lake) -> Iterator[None]:
    """While the block runs no ingest commits. Writes nothing, so that it works on a read-only disk too."""
    try:
        file = (lake.root / ".staging" / ".commit.lock").open("rb")
    except (FileNotFoundError, PermissionError):  # nobody has ever written here, or nobody who may is us
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


class DatasetCheck:
    """Looks at one data set as it is when this is made: `tasks`, a `take` for each result, then `finish`."""

    def __init__(self, lake: Lake, dataset: str, word: str | None, registered: Collection[str] | None = None) -> None:
        self._lake, self._dataset = lake, dataset
        self._folder, self._part = lake.shard_folder(dataset), lake.catalog_part(dataset)
        self._findings: list[Finding] = []
        self._ids: list[tuple[str, NDArray[np.uint64]]] = []
        self._registered = registered
        self._again = self._ingest(None)  # how many images there are is known at the end
        self._rebuild = in_place_of(self._part, rebuild(lake))
        with no_commit(lake):
            self._before = self._stamps()
            self._parts = [p for p in lake.catalog_files() if self._mine(p)]
            self._manifest = self._read_manifest(word)
        self._records = with_samples(self._manifest) if self._manifest else {}

    def _ingest(self, images: int | None) -> str:
        return again(self._lake, self._dataset, images, self._registered)

    def _mine(self, part: Path) -> bool:
        first = part.relative_to(self._lake.root / "catalog" / "samples").parts[0]
        return first.removesuffix(".parquet") == self._dataset

    def _stamps(self) -> dict[Path, Stamp | None]:
        lake, name = self._lake, self._dataset
        shards = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        parts = [part for part in lake.catalog_files() if self._mine(part)]
        return {path: file_stamp(path) for path in (lake.manifest(name), lake.quarantine_part(name), *parts, *shards)}

    def _add(
        self,
        path: Path,
        problem: str,
        repair: str,
        *,
        sample: str | None = None,
        offset: int | None = None,
        level: Level = "damage",
    ) -> None:
        self._findings.append(Finding(self._dataset, str(path), sample, problem, repair, offset, level))

    # --- the manifest -------------------------------------------------------------------------------------------------

    def _read_manifest(self, word: str | None) -> dict[str, Any] | None:
        path = self._lake.manifest(self._dataset)
        try:
            return read_checked(self._lake, self._dataset, word)
        except FileNotFoundError:
            others = set(self._before) - set(self._parts)
            if any(self._before[other] for other in others) or self._folder.is_symlink():
                self._add(path, "the manifest is missing", self._again)
            elif not self._parts:
                self._add(self._folder, "an empty folder", f"rmdir {quoted(self._folder)}", level="note")
        except (LakeError, OSError) as error:
            self._add(path, f"the manifest is damaged: {_message(error)}", remove(path, self._again))
        return None

    # --- shards and rows ----------------------------------------------------------------------------------------------

    def tasks(self) -> Iterator[ShardTask]:
        """A task for each shard that should be there and is, with its catalog rows as far as they can be trusted."""
        present = {p.name for p in self._before if p.parent == self._folder and _is_shard(p)}
        for name in sorted(set(self._records) - present):
            count = self._records[name]["samples"]
            self._add(self._folder / name, f"the shard is missing, with its {count} samples", self._again)
        if self._manifest:
            for name in sorted(present - set(self._records)):
                extra = self._folder / name
                self._add(extra, "not in the manifest", elsewhere(extra) if extra.is_dir() else remove(extra))
        wanted = sorted(present & set(self._records) if self._manifest else present)
        left = dict.fromkeys(wanted)
        known = self._catalog_is_known()
        for shard, rows in self._runs() if known else ():
            name = shard.removeprefix(f"shards/{self._dataset}/")
            if name in left:
                del left[name]
                yield self._task(name, pack_rows(rows))
            elif name in wanted:
                self._add(self._part, f"the rows of {shard} do not stand together", self._rebuild)
            elif name not in self._records:
                self._add(self._part, f"{len(rows)} rows of {shard!r}, which is not there", self._rebuild)
        for name in list(left):
            yield self._task(name, pack_rows(SAMPLES.empty_table()) if known and self._readable else None)

    def _task(self, name: str, rows: bytes | None) -> ShardTask:
        return ShardTask(self._folder / name, f"shards/{self._dataset}/{name}", self._dataset, rows)

    def _catalog_is_known(self) -> bool:
        """Whether the catalog part is there, and is the one that was written as far as the manifest can tell."""
        self._readable = True
        if self._part in self._parts:  # which is all that an ingest writes
            for extra in self._parts:
                if extra != self._part and self._part not in extra.parents:
                    self._add(extra, f"rows beside those in {self._part.name}", remove(extra))
            self._parts = [self._part]
        if self._parts and not (self._manifest or self._lake.manifest(self._dataset).exists() or self._has_shards()):
            for part in self._parts:
                self._add(part, "rows of a data set that has neither shards nor a manifest", remove(part))
            return False
        if not self._parts:
            if self._records or (not self._manifest and any(map(_is_shard, self._before))):
                self._add(self._part, "the catalog part is missing", self._rebuild)
            return False
        if self._manifest and self._parts == [self._part]:
            if not self._records:
                self._add(self._part, "rows of a data set without samples", remove(self._part))
                return False
            if _xxh(self._part) != self._manifest["catalog_xxh"]:
                self._add(self._part, "the bytes do not match the hash in the manifest", self._rebuild)
                return False  # and is not opened: its rows could say anything
        return True

    def _has_shards(self) -> bool:
        links = (self._folder, self._folder.parent)  # which may be on a disk that is not mounted
        return any(path.is_symlink() for path in links) or any(map(_is_shard, self._before))

    def _runs(self) -> Iterator[tuple[str, pa.Table]]:
        """The catalog's rows, shard by shard, in their order."""
        try:
            for part in self._parts:
                yield from _runs_of(part)
        except DAMAGED as error:
            self._readable = False
            self._add(self._part, f"can't be read ({describe(error)})", self._rebuild)

    def take(self, result: ShardResult) -> None:
        """Judge what was found in a shard."""
        shard = self._folder / result.shard
        record = self._records.get(result.shard)
        if result.error is not None:
            self._add(shard, f"the shard can't be read: {result.error}", remove(shard, self._again))
            return
        self._ids.append((result.shard, result.ids))
        damaged = record is not None and (result.xxh, result.size) != (record["xxh"], record["size"])
        told = {fault.sample for fault in result.faults if fault.sample is not None}
        differences = [one for one in result.differences if one.sample not in told]
        faults = result.faults + (differences if damaged else [])
        if record is not None and damaged and not faults:
            size = f"{result.size} bytes instead of {record['size']}"
            faults = [Fault(0, "the bytes do not match their hash" if result.size == record["size"] else size)]
        # What the manifest takes for right, the ingest would not build again.
        repair = self._again if damaged or record is None else remove(shard, self._again)
        for fault in faults:
            offset = None if fault.offset == NOWHERE else fault.offset
            self._add(shard, fault.problem, repair, sample=fault.sample, offset=offset)
        if not damaged:
            self._take_differences(result.shard, differences)
        if record is not None and not faults and result.samples != record["samples"]:
            path, problem = self._lake.manifest(self._dataset), f"{record['samples']} samples in {result.shard}"
            self._add(path, f"the manifest says {problem}; there are {result.samples}", remove(path, self._again))

    def _take_differences(self, shard: str, differences: list[Fault]) -> None:
        for one in differences[:_MANY]:
            self._add(self._part, f"{shard}: {one.problem}", self._rebuild, sample=one.sample)
        if len(differences) > _MANY:
            more = f"{shard}: {len(differences) - _MANY} more differences"
            self._add(self._part, more, self._rebuild)

    # --- the rest -----------------------------------------------------------------------------------------------------

    def finish(self) -> list[Finding]:
        """The findings, after the last result; only one if the data set was replaced meanwhile."""
        self._find_twins()
        self._check_quarantine()
        images = self._images()
        with no_commit(self._lake):
            changed = self._stamps() != self._before
        if changed:
            problem = "the data set was changed while it was read"
            command = f"usdata verify --lake {quoted(self._lake.root)}"
            return [Finding(self._dataset, str(self._folder), None, problem, command, level="changed")]
        command = self._ingest(images)
        return [replace(one, repair=one.repair.replace(self._again, command)) for one in self._findings]

    def _images(self) -> int | None:
        """How many images a generated data set has, by its manifest, or else by rows and shards if they agree."""
        if self._manifest:
            return sum(record["samples"] for record in self._records.values())
        rows, samples = [_rows(part) for part in self._parts], sum(len(ids) for _, ids in self._ids)
        if rows and None not in rows:
            return samples if samples == sum(count or 0 for count in rows) else None
        sound = samples and not any(f.level == "damage" and Path(f.file).suffix == ".tar" for f in self._findings)
        return samples if sound and not self._has_gaps() else None

    def _has_gaps(self) -> bool:
        """Whether a number is left out in the names of the shards."""
        numbers: dict[str, set[str]] = {}  # of each organ
        for name, _ in self._ids:
            organ, _, number = name.rpartition("-")
            numbers.setdefault(organ, set()).add(number)
        return any(there != {f"{n:06d}.tar" for n in range(len(there))} for there in numbers.values())

    def _find_twins(self) -> None:
        """A sample_id may stand once in the lake; it begins with the data set's name, so looking here is enough."""
        if not self._ids:
            return
        ids = np.concatenate([ids for _, ids in self._ids])
        values, counts = np.unique(ids, return_counts=True)
        for value in values[counts > 1][:_MANY]:
            shards = [name for name, mine in self._ids if value in mine]
            if len(shards) > 1:
                text = f"the sample is in {' and in '.join(shards)}"
                path = self._folder / shards[-1]
                self._add(path, text, remove(path, self._again), sample=f"{self._dataset}-{int(value):016x}")

    def _check_quarantine(self) -> None:
        path = self._lake.quarantine_part(self._dataset)
        if self._manifest is None:
            if not path.exists() and self._lake.manifest(self._dataset).exists():
                self._add(path, "missing", self._again)
            return
        if not path.exists() or _xxh(path) != self._manifest["quarantine_xxh"]:
            self._add(path, "missing, or not as it was written", in_place_of(path, self._again))
            return
        counts, manifest = self._manifest["counts"], self._lake.manifest(self._dataset)
        kept = sum(record["samples"] for record in self._manifest["shards"].values())
        for what, said, there in (
            ("samples", counts.get("samples"), kept),
            ("quarantined", counts.get("quarantined"), _rows(path)),
        ):
            if said != there:
                problem = f"the manifest counts {said} {what}; there are {there}"
                self._add(manifest, problem, remove(manifest, self._again))


def _runs_of(part: Path) -> Iterator[tuple[str, pa.Table]]:
    """Consecutive rows of one shard, read a piece at a time."""
    held: list[pa.Table] = []
    name: str | None = None
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(batch_size=_ROWS, use_threads=False):
            table = _aligned(pa.Table.from_batches([batch]))
            shards = table["shard"].combine_chunks()
            bounds = _bounds(shards)
            for start, stop in pairwise(bounds):
                here = shards[start].as_py() or ""
                if here != name and held:
                    yield name or "", pa.concat_tables(held)
                    held = []
                name = here
                held.append(table.slice(start, stop - start))
    if held:
        yield name or "", pa.concat_tables(held)


def _bounds(shards: pa.Array) -> list[int]:
    """Where the value changes, with both ends."""
    if len(shards) == 0:
        return [0]
    codes = shards.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]


def _aligned(table: pa.Table) -> pa.Table:
    """Rows with exactly the columns of `SAMPLES`, uncoded; one that an earlier version did not have is null."""
    columns = []
    for field in SAMPLES:
        kind = plain_type(field)
        there = field.name in table.column_names
        columns.append(pc.cast(table[field.name], kind) if there else pa.nulls(len(table), kind))
    return pa.Table.from_arrays(columns, names=SAMPLES.names)


def _is_shard(path: Path) -> bool:
    return path.suffix == ".tar" and not path.name.startswith(".")


def _xxh(path: Path) -> str | None:
    try:
        return file_xxh(path)
    except OSError:
        return None


def _rows(path: Path) -> int | None:
    try:
        return int(pq.read_metadata(path).num_rows)
    except DAMAGED:
        return None


def _message(error: LakeError | OSError) -> str:
    return error.message if isinstance(error, LakeError) else error.strerror or str(error)
