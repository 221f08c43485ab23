"""Check one shard against what the manifest and the catalog say of it: the work of one process at a time."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from usdata.row_text import row_texts, table_of_texts
from usdata.schema import LOCATION_COLUMNS, SAMPLES, plain_type, row_json, table_of
from usdata.shard_scan import Fault, Found, ShardScan
from usdata.shards import BLOCK, MAX_SAMPLES

_PLACES = tuple(name for name in LOCATION_COLUMNS if name != "shard")
NOWHERE = -1  # the offset of what is missing


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to look at, and what is said of it."""

    path: Path
    name: str  # what the column `shard` says
    dataset: str
    rows: bytes | None  # its catalog rows as an Arrow stream; None: not known


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What was found in a shard."""

    dataset: str
    shard: str  # the file's name
    xxh: str
    size: int
    samples: int
    faults: list[Fault]  # of the shard itself, by offset
    differences: list[Fault]  # between the shard and its catalog rows
    ids: NDArray[np.uint64]  # what stands behind the data set's name in each sample_id
    error: str | None = None  # the file could not be read


class Facts(NamedTuple):
    """What a row says of its sample that the sample itself can confirm."""

    sample_id: str | None
    dataset: str | None
    organ: str | None
    has_mask: bool
    classes: int  # how many names mask_classes has
    pixel_xxh: str | None

    @classmethod
    def of_table(cls, rows: pa.Table) -> list[Self]:
        """Of each row."""
        words = [rows[name].to_pylist() for name in ("sample_id", "dataset", "organ")]
        has_mask = rows["has_mask"].fill_null(False).to_pylist()
        classes = pc.list_value_length(rows["mask_classes"]).fill_null(0).to_pylist()
        columns = zip(*words, has_mask, classes, rows["pixel_xxh"].to_pylist(), strict=True)
        return [cls(*values) for values in columns]


def check_shard(task: ShardTask) -> ShardResult:
    """Read a shard once and compare it with its rows. A shard that can't be read is a result, not an error."""
    try:
        scan = ShardScan(task.path)
    except OSError as error:
        nothing = np.empty(0, np.uint64)
        return ShardResult(task.dataset, task.path.name, "", 0, 0, [], [], nothing, error.strerror or str(error))
    rows = None if task.rows is None else unpack_rows(task.rows)
    checker = _Checker(task, scan.samples)
    facts = checker.parse() if rows is None else checker.compare(rows)
    checker.look(facts)
    if len(scan.samples) > MAX_SAMPLES:
        checker.faults.append(Fault(0, f"{len(scan.samples)} samples in one shard, more than {MAX_SAMPLES}"))
    extents = _Extents(scan.samples, checker.trusted)
    return ShardResult(
        dataset=task.dataset,
        shard=task.path.name,
        xxh=scan.xxh,
        size=scan.size,
        samples=len(scan.samples),
        faults=_attributed(scan.faults + checker.faults, extents),
        differences=_attributed(checker.differences, extents),
        ids=np.array(checker.ids, np.uint64),
    )


def pack_rows(table: pa.Table) -> bytes:
    """Rows as an Arrow stream, for another process; dictionaries are taken apart, they would go along whole."""
    plain = pa.schema([pa.field(f.name, plain_type(f)) for f in table.schema])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, plain) as writer:
        writer.write_table(table.cast(plain))
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack_rows(packed: bytes) -> pa.Table:
    """What `pack_rows` packed."""
    with pa.ipc.open_stream(packed) as reader:
        return reader.read_all()


def parse_json(text: bytes) -> dict[str, Any] | str:
    """The row in a JSON member, which must be what `row_json` writes for it; or, as a text, why it is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return "the JSON can't be read"
    if not isinstance(row, dict):
        return "the JSON holds no row"
    if unknown := set(row) - set(SAMPLES.names):
        return f"the JSON has the unknown column {min(unknown)!r}"
    try:
        as_written = row_json(row) == text
    except ValueError:  # a number that JSON does not know
        as_written = False
    return row if as_written else "the JSON is not in the form in which usdata writes it"


def table_or_none(rows: list[dict[str, Any]]) -> pa.Table | None:
    """Rows as a table; None if a value is not of its column's type."""
    try:
        return table_of(rows)
    except (ValueError, TypeError, OverflowError, pa.ArrowException):
        return None


class _Checker:
    """Compares the samples of a shard with their rows, and each with itself."""

    def __init__(self, task: ShardTask, samples: list[Found]) -> None:
        self._task, self._samples = task, samples
        self.ids: list[int] = []  # what stands behind the data set's name in each sample_id
        self.faults: list[Fault] = []
        self.differences: list[Fault] = []
        self.trusted: pa.Table | None = None  # rows that are of this shard and not of another

    def parse(self) -> list[Facts | None]:
        """What the JSONs say; used when there are no rows."""
        table = table_of_texts([sample.json for sample in self._samples])
        if table is not None:
            return list(Facts.of_table(table))
        return [self._said(sample) for sample in self._samples]

    def _said(self, sample: Found) -> Facts | None:
        row = self._row(sample)
        return None if row is None else Facts.of_table(row)[0]

    def _row(self, sample: Found) -> pa.Table | None:
        """The row in a JSON; None, and a fault, if there is none."""
        row = parse_json(sample.json)
        table = None if isinstance(row, str) else table_or_none([row])
        if table is None:
            problem = row if isinstance(row, str) else "the JSON has a value of the wrong type"
            self.faults.append(Fault(sample.json_offset, problem, sample.key))
        return table

    def compare(self, rows: pa.Table) -> list[Facts | None]:
        """Compare with the catalog's rows; what is known of each sample, None where nothing can be."""
        ids = rows["sample_id"].fill_null("").to_pylist()
        keys = [sample.key for sample in self._samples]
        where = {key: i for i, key in enumerate(ids)}
        self.trusted = rows if where.keys() & set(keys) else None
        if ids != keys:
            self._compare_ids(ids, keys)
            rows = rows.take(pa.array([where[key] for key in keys if key in where], pa.int64()))
        known = zip(Facts.of_table(rows), row_texts(rows), _places(rows), range(len(rows)), strict=True)
        facts: list[Facts | None] = []
        for sample in self._samples:
            if sample.key not in where:
                facts.append(self._said(sample))
                continue
            fact, text, place, number = next(known)
            facts.append(fact if sample.json == text else self._compare_json(sample, rows.slice(number, 1)))
            if place != (sample.offset, sample.size, sample.mask_offset, sample.mask_size, sample.json_offset):
                self._differs(sample.start, f"the catalog's row is wrong about {_moved(sample, place)}", sample.key)
        return facts

    def _compare_ids(self, ids: list[str], keys: list[str]) -> None:
        if not set(ids) & set(keys):
            other = "the shard holds none of the samples that the catalog has there"
            self._differs(NOWHERE, other if ids else "the catalog has no row of this shard", None)
            return
        if sorted(ids) == sorted(keys):
            self._differs(NOWHERE, "the catalog has the samples in another order", None)
        for key in sorted(set(ids) - set(keys)):
            self._differs(NOWHERE, "the catalog has a row of this sample, but it is not in the shard", key)
        for sample in self._samples:
            if sample.key not in set(ids):
                self._differs(sample.start, "the catalog has no row of this sample", sample.key)
        if len(set(ids)) < len(ids):
            self._differs(NOWHERE, "the catalog has a sample twice", None)

    def _compare_json(self, sample: Found, row: pa.Table) -> Facts | None:
        """What the JSON says, where its text is not the one expected (which `25` instead of `25.0` is enough for)."""
        said = self._row(sample)
        if said is None:
            return None
        ours, theirs = said.to_pylist()[0], row.to_pylist()[0]
        differing = [name for name in ours if name not in LOCATION_COLUMNS and ours[name] != theirs[name]]
        if differing:
            text = f"the JSON and the catalog's row differ in {', '.join(differing)}"
            self._differs(sample.json_offset, text, sample.key)
        return Facts.of_table(said)[0]

    def _differs(self, offset: int, problem: str, sample: str | None) -> None:
        self.differences.append(Fault(offset, problem, sample))

    def look(self, facts: list[Facts | None]) -> None:
        """Compare each sample with what its row says."""
        dataset = self._task.dataset
        organ = self._task.path.stem[len(dataset) + 1 : -len("-000000")]
        form = re.compile(rf"{re.escape(dataset)}-([0-9a-f]{{16}})")
        for sample, row in zip(self._samples, facts, strict=True):
            match = form.fullmatch(sample.key)
            if match:
                self.ids.append(int(match[1], 16))
            else:
                text = f"a sample_id must be {dataset}- and 16 hex digits"
                self.faults.append(Fault(sample.start, text, sample.key))
            pixels = sample.pixel_xxh or (row and row.pixel_xxh)  # None: a fault of the image is told already
            here = (sample.key, dataset, organ, sample.mask_offset >= 0, pixels)
            if row is None or (here == (*row[:4], row.pixel_xxh) and sample.highest_class < row.classes):
                continue
            for offset, problem in _problems(sample, row, dataset, organ):
                self.faults.append(Fault(offset, problem, sample.key))


def _problems(sample: Found, row: Facts, dataset: str, organ: str) -> Iterator[tuple[int, str]]:
    if row.sample_id != sample.key:
        yield sample.json_offset, f"the JSON is that of {row.sample_id!r}"
    if (row.dataset, row.organ) != (dataset, organ):
        said = f"{row.dataset!r}, organ {row.organ!r}"
        yield sample.json_offset, f"the row says data set {said}; the shard's name {dataset!r}, {organ!r}"
    if row.has_mask != (sample.mask_offset >= 0):
        yield sample.start, "the row says has_mask, but there is none" if row.has_mask else "has_mask is false"
    if sample.highest_class >= row.classes and sample.highest_class >= 0:
        yield sample.mask_offset, f"the mask has the class {sample.highest_class}, which mask_classes does not name"
    if sample.pixel_xxh not in (None, row.pixel_xxh):
        yield sample.offset, "the pixels do not match pixel_xxh"


def _moved(sample: Found, place: tuple[int, ...]) -> str:
    here = (sample.offset, sample.size, sample.mask_offset, sample.mask_size, sample.json_offset)
    return ", ".join(name for name, a, b in zip(_PLACES, here, place, strict=True) if a != b)


def _places(rows: pa.Table) -> list[tuple[int, ...]]:
    columns = [rows[name].fill_null(-1).to_pylist() for name in _PLACES]
    return list(zip(*columns, strict=True))


class _Extents:
    """Which sample a byte of a shard belongs to: by the catalog, or else by the shard's own words."""

    def __init__(self, samples: list[Found], rows: pa.Table | None) -> None:
        starts = [(s.start, s.key) for s in samples]
        if rows is not None and rows.num_rows:
            starts = [
                (offset - BLOCK, key)
                for offset, key in zip(rows["json_offset"].to_pylist(), rows["sample_id"].to_pylist(), strict=True)
                if offset is not None
            ]
            self._end = max(max(_ends(rows)), 0)
        else:
            self._end = max([s.offset + s.size for s in samples], default=0)
        starts.sort()
        self._starts = np.array([start for start, _ in starts], np.int64)
        self._keys = [key for _, key in starts]

    def at(self, offset: int, said: str | None) -> str | None:
        """The sample of the byte at `offset`, which says itself that it is of `said`; None between the samples."""
        if said in self._keys:
            return said
        number = int(np.searchsorted(self._starts, offset, "right")) - 1
        inside = number >= 0 and offset < self._end + -self._end % BLOCK
        return self._keys[number] if inside else said


def _ends(rows: pa.Table) -> list[int]:
    pairs = zip(rows["offset"].to_pylist(), rows["size"].to_pylist(), strict=True)
    return [offset + size for offset, size in pairs if offset is not None and size is not None] or [0]


def _attributed(faults: list[Fault], extents: _Extents) -> list[Fault]:
    """By offset; of each sample only the first: what follows is mostly its consequence."""
    found: dict[tuple[str | None, int], Fault] = {}
    for fault in sorted(faults, key=lambda fault: fault.offset):
        sample = extents.at(fault.offset, fault.sample)
        key = (sample, fault.offset if sample is None else NOWHERE)
        found.setdefault(key, Fault(fault.offset, fault.problem, sample))
    return list(found.values())
