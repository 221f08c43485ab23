"""From a shard job to a finished shard: the one function that every runner calls.

read -> choose frames -> grey -> crop -> resize -> hash -> canonical PNG -> tar. A bad item is reported with its reason
and the rest goes on. The shard, its rows and its report appear in the staging folder whole or not at all.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ingest import phantom, preprocess
from ingest.deid.ask import Cleaners
from ingest.deid.identity import Identity
from ingest.deid.reasons import PASSING, Reason, Refusal
from ingest.frame_masks import FrameMasks
from ingest.frames import read
from ingest.plan import ShardJob
from ingest.readers import mask
from ingest.scan import Source, tell_internal
from ingest.supervision import supervise
from usdata import png
from usdata.catalog import write_part
from usdata.errors import DataError, LakeError
from usdata.files import explain_os_errors, file_xxh, locked, read_json, replacing, write_json
from usdata.schema import organ_group_of, table_of
from usdata.shards import ShardWriter

_BATCH = 64  # images hashed and encoded together


@dataclass(frozen=True, slots=True)
class Sample:
    """One image on its way into a shard: its row so far, its grey pixels, its mask."""

    row: dict[str, Any]
    image: NDArray[np.uint8]  # (256, 256)
    mask: NDArray[np.uint8] | None  # (256, 256), class indices


@dataclass(frozen=True, slots=True)
class Rejected:
    """One source or frame that did not get in; a row of the quarantine table."""

    source_id: str
    frame: int | None
    stage: str
    reason: str
    detail: str | None


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of a job. `reused`: an earlier run had built the same shard."""

    name: str
    fingerprint: str
    samples: int
    size: int
    xxh: str
    rejected: tuple[Rejected, ...] = field(default=())
    reused: bool = False
    # Of items that went through `ingest.deid`: their keyed id, counts of header fields, and what showed the scan area.
    audit: tuple[tuple[str, dict[str, int], str | None], ...] = field(default=())

    @classmethod
    def load(cls, path: Path) -> "ShardReport | None":
        """Read a report back from the staging folder; None if there is none, or it is damaged or of another version."""
        try:
            raw = read_json(path)
            audit = tuple((key, counts, source) for key, counts, source in raw["audit"])
            return cls(**raw | {"rejected": tuple(Rejected(**r) for r in raw["rejected"]), "audit": audit})
        except (FileNotFoundError, LakeError, TypeError, KeyError, ValueError):
            return None

    @property
    def final(self) -> bool:
        """Whether building it again would change nothing: no item was refused for what may be the machine's fault."""
        return not any(r.reason in PASSING for r in self.rejected)


def build_shard(job: ShardJob) -> ShardReport:
    """Build a job's shard in its staging folder, or find it there from an earlier, interrupted run.

    Two processes that are given one job (a cluster may think the first is lost) build it one after the other.

    Raises:
        LakeError: the disk is full or can't be written, or another run has taken over the staging folder. Bad sources
            do not raise; they are in the report.
    """
    if not job.staging.is_dir():
        raise LakeError(
            "The run that this shard was for is over: its staging folder is gone.",
            dataset=job.card.name,
            item=job.name,
            step="build",
            hint="Nothing to do if another ingest of the data set was started; else run the same command again.",
        )
    own = locked(job.staging / f".{job.name}.lock", wait=True)
    with explain_os_errors(job.staging, dataset=job.card.name, step="build"), own:
        done = _already_built(job)
        if done is not None:
            return done
        rejected: list[Rejected] = []
        rows: list[dict[str, Any]] = []
        with replacing(job.staging / f"{job.name}.tar") as file, _cleaning(job) as cleaning:
            writer = ShardWriter(file)
            for batch in _batches(_samples(job, rejected, cleaning)):
                rows += _write(job, writer, batch)
            writer.close()
        write_part(job.staging / f"{job.name}.parquet", table_of(rows))
        audit = tuple(sorted(cleaning.audit)) if cleaning else ()
        size, digest = writer.size, writer.digest
        report = ShardReport(job.name, job.fingerprint, len(rows), size, digest, tuple(rejected), audit=audit)
        write_json(job.staging / f"{job.name}.json", asdict(report))
        return report


def _already_built(job: ShardJob) -> ShardReport | None:
    """The report of the same job if its files are in the staging folder, whole."""
    path = job.staging / f"{job.name}.json"
    tar = job.staging / f"{job.name}.tar"
    report = ShardReport.load(path)
    if report is None or not (tar.exists() and path.with_suffix(".parquet").exists()):
        return None
    same = report.fingerprint == job.fingerprint and tar.stat().st_size == report.size and report.final
    return report if same and file_xxh(tar) == report.xxh else None


@contextmanager
def _cleaning(job: ShardJob) -> Iterator["_Cleaning | None"]:
    """The isolated children of a job whose files go through `ingest.deid`."""
    if job.rules is None:
        yield None
        return
    with Cleaners(job.card, job.rules, job.interpolation, job.threads) as cleaners:
        yield _Cleaning(cleaners, job.rules.identity() if job.rules.private else None)


@dataclass(frozen=True, slots=True)
class _Cleaning:
    cleaners: Cleaners
    identity: Identity | None  # of private files
    audit: list[tuple[str, dict[str, int], str | None]] = field(default_factory=list)


def _samples(job: ShardJob, rejected: list[Rejected], cleaning: _Cleaning | None) -> Iterator[Sample]:
    """Samples of all sources in their order; with several threads a few sources are read ahead."""
    if job.threads == 1:
        for source in job.sources:
            yield from _keep(_samples_of(job, source, cleaning), rejected)
        return
    sources = iter(job.sources)
    with ThreadPoolExecutor(job.threads) as pool:  # decoding and resizing leave Python's lock
        while ahead := list(islice(sources, 4 * job.threads)):
            for found in pool.map(lambda s: list(_samples_of(job, s, cleaning)), ahead):
                yield from _keep(iter(found), rejected)


def _keep(found: Iterator[Sample | Rejected], rejected: list[Rejected]) -> Iterator[Sample]:
    for one in found:
        if isinstance(one, Rejected):
            rejected.append(one)
        else:
            yield one


def _samples_of(job: ShardJob, source: Source, cleaning: _Cleaning | None) -> Iterator[Sample | Rejected]:
    """The samples of one source. The first thing wrong ends it, naming the frames that are missing."""
    if source.clean:
        assert cleaning is not None
        yield from _cleaned(job, source, cleaning)
        return
    done = 0
    try:
        for found in _read(job, source):
            yield found
            done += isinstance(found, Sample) or found.reason == "label_missing"  # that one is a frame of its own
    except DataError as error:
        for frame in source.frames[done:]:
            yield Rejected(
                source.item.path,
                None if source.n_frames is None else frame,
                error.step or "read",
                error.reason,
                error.message,
            )


def _cleaned(job: ShardJob, source: Source, cleaning: _Cleaning) -> Iterator[Sample | Rejected]:
    """The samples of a source that goes through `ingest.deid`: all of its frames, or one rejection."""
    place = source.item.place
    rows = {frame: _row(job, source, position, (0, 0)) for position, frame in enumerate(source.frames)}
    try:
        kept, counts = cleaning.cleaners.clean(job.root / place, place, source.frames, rows)
        if cleaning.identity is not None and cleaning.identity.content(job.root / place).hex != source.xxh:
            raise Refusal(Reason.CHANGED, "read")  # the row would be one patient's and the pixels another's
    except Refusal as error:
        tell_internal(error)
        yield Rejected(source.item.path, None, error.step or "read", error.reason, None)
        return
    cleaning.audit.append((source.item.path, counts, kept[0].row["mask_source"]))
    yield from (Sample(one.row, one.image, None) for one in kept)


def _read(job: ShardJob, source: Source) -> Iterator[Sample | Rejected]:
    if source.recipe is not None:
        drawn = phantom.render(source.recipe)
        yield Sample(_row(job, source, 0, drawn.image.shape) | _drawn_row(drawn), drawn.image, drawn.mask)
        return
    masks = FrameMasks(job.card, job.root, source.item, source.frames, source.n_frames)
    frames = read(job.card, job.root, source.item, source.frames, masks)
    for position, (_, pixels) in enumerate(frames):
        yield from _sample(job, source, position, pixels, masks)


def _sample(
    job: ShardJob, source: Source, position: int, pixels: NDArray[np.uint8], masks: FrameMasks
) -> Iterator[Sample | Rejected]:
    """The sample of one decoded frame; before it, a rejection of its mask, if only that is bad and the card allows."""
    card, (height, width) = job.card, pixels.shape[:2]
    item, frame = source.item, None if source.n_frames is None else source.frames[position]
    try:
        found = supervise(card, job.root, item, frame, pixels, masks)
    except DataError as error:
        if error.reason != "label_missing" or frame is None:
            raise
        yield Rejected(item.path, frame, "mask", error.reason, error.message)  # other frames may have one
        return
    of_frames = any(shape.frame is not None for shape in item.shapes)
    for problem in found.problems:
        if not masks.is_new(problem.item, problem.reason, problem.message, str(frame) if of_frames else None):
            continue
        detail = f"{problem.message} Its image was kept without {'a mask' if found.classes is None else 'marks'}."
        yield Rejected(problem.item or item.path, frame if of_frames else None, "mask", problem.reason, detail)
    row = _row(job, source, position, (height, width)) | found.columns
    if preprocess.colour_share(pixels) > card.colour_limit:
        row["mode"] = "colour_doppler"
    box = card.crop_of(item.path) or (0, 0, width, height)
    row |= dict(zip(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), box, strict=True))
    grey = preprocess.resize(preprocess.to_grey(preprocess.crop(pixels, box)), job.interpolation)
    classes = found.classes
    if classes is not None and card.masks:
        classes = preprocess.resize_mask(preprocess.crop(classes, box))
        row |= {"has_mask": True, "mask_classes": list(card.masks.classes)}
    yield Sample(row, grey, classes)


def _row(job: ShardJob, source: Source, position: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """The columns that are known without the pixels; an item's own fields go over the card's."""
    item = source.item
    row: dict[str, Any] = {
        **job.card.constants(),
        **item.fields,
        "sample_id": source.sample_ids[position],
        "source_id": item.path,
        "source_xxh": source.xxh,
        "organ": item.organ,
        "organ_group": organ_group_of(item.organ),
        "height": shape[0],
        "width": shape[1],
        "has_mask": False,
    }
    if source.n_frames is not None:
        row |= {"frame": source.frames[position], "n_frames": source.n_frames, "fps": source.fps}
    return row


def _drawn_row(drawn: phantom.Phantom) -> dict[str, Any]:
    size = drawn.image.shape[0]
    mask_columns = {"has_mask": drawn.mask is not None, "mask_classes": list(drawn.mask_classes) or None}
    return {**drawn.fields, **mask_columns, "crop_x0": 0, "crop_y0": 0, "crop_x1": size, "crop_y1": size}


def _batches(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while batch := list(islice(samples, _BATCH)):
        yield batch


def _write(job: ShardJob, writer: ShardWriter, batch: list[Sample]) -> Iterator[dict[str, Any]]:
    """Hash, encode and append a batch; give the finished rows."""
    pixels = np.stack([sample.image for sample in batch])
    hashes = preprocess.phash(pixels)
    for sample, file, phash in zip(batch, png.encode(pixels), hashes, strict=True):
        row = sample.row | {"pixel_xxh": xxhash.xxh3_128(sample.image.tobytes()).hexdigest(), "phash": int(phash)}
        encoded = None if sample.mask is None else mask.encode_mask(sample.mask)
        place = writer.add(row, file.tobytes(), encoded)
        yield row | place | {"shard": f"shards/{job.card.name}/{job.name}.tar"}
