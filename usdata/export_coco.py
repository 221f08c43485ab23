"""A cohort in COCO form: what pycocotools, detectron2, MMDetection, torchvision and MONAI's users read.

Boxes, areas and run-length codes are in pixels of the stored 256 x 256 image. Objects are run-length codes with plain
counts, not polygons: exact, with holes, and read by every one of these without a codec; `iscrowd` is 0. A box among an
image's marks is an object too: its `segmentation` is empty and its `area` that of the box. The folder form is

    DIR/annotations.json    images (with what the catalog knows of them), annotations, categories, licenses
    DIR/LICENCES.csv        what each data set's licence allows
    DIR/images/<sample_id>.png, DIR/masks/<sample_id>.png    byte for byte those of the shards, if asked for
"""

import csv
import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from usdata import __version__, mask_png, png
from usdata.cohort import Cohort
from usdata.errors import ConfigError, DataError, LakeError, nearest
from usdata.export import (
    Exported,
    check_columns,
    check_free,
    check_target,
    drafting,
    explained,
    is_there,
    parts,
    writing,
)
from usdata.export_objects import Per, objects_of
from usdata.files import read_json, sync_folder
from usdata.marks import CROP, box_names, boxes_of
from usdata.rights import UNKNOWN_TERMS, Purpose, Rights, check_purpose, condition
from usdata.schema import IMAGE_SIZE

_COLUMNS = (
    *("sample_id", "dataset", "organ", "view", "mode", "patient", "clip", "frame", "split"),
    *("label", "labels", "target", "targets", "has_mask", "stored_mm_x", "stored_mm_y", "shard"),
)
_OURS = {"width": "source_width", "height": "source_height"}  # COCO means the sides of the stored image by these
_BATCH = 2_000  # rows as Python objects at a time
_ANNOTATIONS = "annotations.json"
_FILES, _FOLDERS = (_ANNOTATIONS, "LICENCES.csv"), ("images", "masks")  # all that an export writes into its folder
_MEANWHILE = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)  # names that another run moved away or put there


def write_coco(
    cohort: Cohort,
    out: Path,
    *,
    images: bool = False,
    masks: bool = False,
    per: Per = "component",
    like: Path | None = None,
    columns: Sequence[str] = (),
    overwrite: bool = False,
    purpose: Purpose = "research",
) -> Exported:
    """Write a cohort in COCO form, whole or not at all.

    Args:
        out: a `.json` file, or a folder (a name without an ending). If it is a link, what it points to is written.
        images, masks: also write the PNG files; a folder only.
        per: one object for each connected piece of a class (`component`), or for all of it in an image (`class`).
        like: an earlier export whose category numbers are kept, so that train and val agree.
        columns: more catalog columns to give with each image; `width` becomes `source_width`.
        overwrite: replace an earlier export; of a folder only if it holds nothing that no export wrote.
        purpose: what it is for; research stays with whoever writes it.

    Raises:
        ConfigError: a licence that forbids the purpose, an unknown column, a class that `like` does not know, a folder
            that holds other files, or see `usdata.export.check_target`.
        LakeError: damage in the lake, a remote lake, `out` can't be written, or the catalog was replaced meanwhile.
    """
    if cohort.lake.remote:
        raise LakeError(
            f"{cohort.lake.address} is remote: an export needs the masks here.",
            step="export",
            hint="Copy the lake here:  aws s3 sync ADDRESS lake        Its rows alone:  usdata export csv",
        )
    if out.suffix not in ("", ".json"):
        raise ConfigError(f"COCO is written to a .json file or a folder without an ending, not {out.name!r}.")
    if not out.suffix:
        with explained(out):
            _put_back(Path(os.path.realpath(out)))
    place = check_target(cohort, out, overwrite)
    if not out.suffix:
        _check_ours(place)
    check_columns(cohort, columns)
    if out.suffix == ".json" and (images or masks):
        raise ConfigError("Image files need a folder.", hint=f"Give them one:  -o {out.with_suffix('')}")
    rights = check_purpose(cohort, purpose)
    job = _Job(cohort, rights, _categories(cohort, like), per, images, masks, tuple(columns))
    with explained(out):
        if out.suffix == ".json":
            with writing(place, overwrite) as file:
                job.write(file, None)
        else:
            _write_folder(job, place, overwrite)
    return Exported(out, cohort.rows, job.rights, job.notes())


# --- the folder: built beside its place, then renamed into it --------------------------------------------------------


def _write_folder(job: "_Job", out: Path, overwrite: bool) -> None:
    with drafting(out) as draft:
        if is_there(out) and os.path.lexists(_old(out)):  # by a run that was killed after the new one had its place
            _old(out).rename(draft / "older")
        new = draft / "new"
        new.mkdir()
        _write_licences(job.rights, new / "LICENCES.csv")
        with (new / _ANNOTATIONS).open("wb") as file:
            job.write(file, new)
        check_free(out, overwrite)
        _check_ours(out)
        try:
            _swap(new, out, draft / "old")
        except OSError as error:
            if error.errno not in _MEANWHILE:
                raise
            raise LakeError(
                f"Another program changed {out} meanwhile.", step="replace", hint="Run the same command again."
            ) from error
    sync_folder(out.parent)


def _swap(new: Path, out: Path, away: Path) -> None:
    """Rename `new` to `out`, and what was there to `away`; a kill in between leaves that at `.NAME.old`, whole."""
    if not is_there(out):
        new.rename(out)
        return
    old = _old(out)
    try:
        out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    with suppress(FileNotFoundError):  # another run has begun, and did it
        old.rename(away)


def _put_back(out: Path) -> None:
    """Give the earlier export its place again, if a run was killed between the two renames of `_swap`."""
    old = _old(out)
    if not os.path.lexists(out) and _exported(old):
        old.rename(out)


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


# --- what an export may replace ---------------------------------------------------------------------------------------


def _check_ours(out: Path) -> None:
    """Refuse to replace a folder with anything in it that no export wrote."""
    hint = "Choose another folder with -o."
    if (stranger := _stranger(out)) is not None:
        raise ConfigError(f"{out} holds what no export wrote: {stranger}.", hint=hint)
    old = _old(out)
    if is_there(out) and os.path.lexists(old) and not _exported(old):
        raise ConfigError(f"{old} is in the way: no export wrote it. Move it, and run the same command again.")


def _exported(folder: Path) -> bool:
    """Whether `folder` is an export and nothing else."""
    return (folder / _ANNOTATIONS).is_file() and _stranger(folder) is None


def _stranger(folder: Path) -> str | None:
    """The first thing at `folder` that no export wrote, None if there is none; a link is always a stranger."""
    if not os.path.lexists(folder):
        return None
    if folder.is_symlink() or not folder.is_dir():
        return folder.name
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        known = entry.name in _FILES and entry.is_file(follow_symlinks=False)
        if not (known or (entry.name in _FOLDERS and entry.is_dir(follow_symlinks=False))):
            return entry.name
    listed = _listed_files(folder / _ANNOTATIONS)
    if entries and listed is None:
        return _ANNOTATIONS if _ANNOTATIONS in (entry.name for entry in entries) else entries[-1].name
    for name in _FOLDERS:
        with suppress(FileNotFoundError), os.scandir(folder / name) as found:
            others = (e.name for e in found if e.name not in (listed or ()) or not e.is_file(follow_symlinks=False))
            if (first := min(others, default=None)) is not None:
                return f"{name}/{first}"
    return None


def _listed_files(path: Path) -> set[str] | None:
    """The images that an annotations file of ours lists; None if it is not one, or not whole. Read line by line."""
    try:
        with path.open("rb") as file:
            if file.readline(3) != b"{\n":
                return None
            info = json.loads(b"{" + file.readline().rstrip(b",\n") + b"}")["info"]
            if not info["version"].startswith("usdata "):
                return None
            for _ in takewhile(lambda line: line != b'"images":[\n', file):
                pass
            return {json.loads(line.rstrip(b",\n"))["file_name"] for line in takewhile(lambda x: x[:1] == b"{", file)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _write_licences(rights: list[Rights], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dataset", *UNKNOWN_TERMS, "images", "may_be_passed_on"])
        for r in rights:
            free = "yes" if r.free else "no"
            writer.writerow([r.dataset, r.licence, r.commercial_use, r.redistribution, r.images, free])


# --- the JSON ---------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """What is exported and how; the counts are known after `write`."""

    cohort: Cohort
    rights: list[Rights]
    categories: list[dict[str, Any]]
    per: Per
    images: bool
    masks: bool
    columns: tuple[str, ...]
    masks_seen: int = 0
    boxes_seen: int = 0
    annotated: int = 0  # images with a mask or a box
    objects_seen: int = 0

    def write(self, file: IO[bytes], folder: Path | None) -> None:
        """Head, images, annotations: one line each, so that memory does not grow and exports can be compared."""
        licenses = _licenses(self.rights)
        with ExitStack() as stack:
            members = _Members(self.cohort, stack)
            file.write(b'{\n"info":' + _json(self._info()) + b",\n")
            _write_list(file, "licenses", licenses, b",\n")
            _write_list(file, "categories", self.categories, b",\n")
            _write_list(file, "images", self._images(licenses, members, folder), b",\n")
            _write_list(file, "annotations", self._annotations(members, folder), b"\n}\n")

    def notes(self) -> tuple[str, ...]:
        """What a user should know about it."""
        notes = [f"{self.objects_seen:,} objects of {len(self.categories)} categories in {self.masks_seen:,} masks."]
        if self.boxes_seen:
            notes.append(f"{self.boxes_seen:,} objects are boxes from the column marks, without a segmentation.")
        if without := self.cohort.rows - self.annotated:
            nothing, wanted = ("no mask", "has_mask")
            if self.boxes_seen:
                nothing, wanted = "neither a mask nor a box", "(has_mask or marks is not null)"
            notes.append(
                f"{without:,} images have {nothing}: in COCO they look like images without objects. "
                f"Leave them out with  --cohort '(…) and {wanted}'"
            )
        return tuple(notes)

    def _info(self) -> dict[str, Any]:
        """What can be told for ever: no time, host or path, so the same cohort gives the same bytes."""
        lake = self.cohort.lake.info
        return {
            "description": "Ultrasound images, 8-bit grey, 256 x 256, from a lake of usdata",
            "version": f"usdata {__version__}",
            "lake_format": lake["format"],
            "interpolation": lake["interpolation"],
            "cohort": self.cohort.name,
            "cohort_sql": self.cohort.sql,
            "cohort_xxh": self.cohort.hash,
            "one_annotation_per": self.per,
            "not_to_be_passed_on": sorted({r.dataset for r in self.rights if not r.free}),
        }

    def _rows(self, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The cohort's rows in their order, each with `number`, from 1: the image's id."""
        number = 0
        for table in parts(self.cohort, list(dict.fromkeys(columns))):
            for batch in table.to_batches(_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield row | {"number": number}

    def _images(
        self, licenses: list[dict[str, Any]], members: "_Members", folder: Path | None
    ) -> Iterator[dict[str, Any]]:
        """COCO's `images`; on the way the PNG files are written, if wanted."""
        numbers: dict[tuple[str, ...], int] = {
            (one["name"], one["commercial_use"], one["redistribution"]): one["id"] for one in licenses
        }
        shown = list(dict.fromkeys([*_COLUMNS, *self.columns]))
        copies = _subfolder(folder, "images", self.images)
        for row in self._rows([*shown, *UNKNOWN_TERMS, "shard", "offset", "size"]):
            name = f"{row['sample_id']}.png"
            if copies is not None:
                (copies / name).write_bytes(members.image(row))
            terms = tuple(row[column] or word for column, word in UNKNOWN_TERMS.items())
            about = {_OURS.get(column, column): _plain(column, row[column]) for column in shown}
            sides = {"width": IMAGE_SIZE, "height": IMAGE_SIZE}
            yield {"id": row["number"], "file_name": name, **sides, "license": numbers[terms], **about}

    def _annotations(self, members: "_Members", folder: Path | None) -> Iterator[dict[str, Any]]:
        """COCO's `annotations`, one per object; on the way the masks are written, if wanted."""
        numbers = {one["name"]: one["id"] for one in self.categories}
        copies = _subfolder(folder, "masks", self.masks)
        places = ["shard", "mask_offset", "mask_size", "has_mask"]
        for row in self._rows(["sample_id", *places, "mask_classes", "stored_mm_x", "stored_mm_y", "marks", *CROP]):
            boxes = list(boxes_of(row))
            self.annotated += bool(boxes or row["has_mask"])
            for number, box in enumerate(boxes, self.objects_seen + 1):
                place = {"segmentation": [], "area": box.area, "bbox": list(box.box), "iscrowd": 0}
                yield {"id": number, "image_id": row["number"], "category_id": numbers[box.name], **place}
            self.boxes_seen += len(boxes)
            self.objects_seen += len(boxes)
            if not row["has_mask"]:
                continue
            data, mask = members.mask(row)
            if copies is not None:
                (copies / f"{row['sample_id']}.png").write_bytes(data)
            self.masks_seen += 1
            for one in objects_of(mask, self.per):
                self.objects_seen += 1
                annotation = {
                    "id": self.objects_seen,
                    "image_id": row["number"],
                    "category_id": numbers[_class_name(row, one.value)],
                    "segmentation": {"size": list(mask.shape), "counts": one.counts},
                    "area": one.area,
                    "bbox": list(one.box),
                    "iscrowd": 0,
                }
                if (size := _plain("area", _product(one.area, row["stored_mm_x"], row["stored_mm_y"]))) is not None:
                    annotation["area_mm2"] = size
                yield annotation


def _subfolder(folder: Path | None, name: str, wanted: bool) -> Path | None:
    if folder is None or not wanted:
        return None
    (folder / name).mkdir()
    return folder / name


def _write_list(file: IO[bytes], name: str, values: Iterable[Any], end: bytes) -> None:
    file.write(f'"{name}":['.encode())
    for i, value in enumerate(values):
        file.write((b",\n" if i else b"\n") + _json(value))
    file.write(b"\n]" + end)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _plain(column: str, value: Any) -> Any:
    """A catalog value as JSON has it: the objects in `labels` and `targets` as such, no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return json.loads(value) if column in ("labels", "targets") and value is not None else value


def _product(area: int, x: float | None, y: float | None) -> float | None:
    return None if x is None or y is None else area * x * y


def _licenses(rights: list[Rights]) -> list[dict[str, Any]]:
    """COCO's `licenses`: each set of terms, with the data sets that it holds for."""
    sets: dict[tuple[str, str, str], set[str]] = {}
    for r in rights:
        sets.setdefault((r.licence, r.commercial_use, r.redistribution), set()).add(r.dataset)
    return [
        {"id": i, "name": terms[0], "commercial_use": terms[1], "redistribution": terms[2], "datasets": sorted(names)}
        for i, (terms, names) in enumerate(sorted(sets.items()), 1)
    ]


# --- classes ----------------------------------------------------------------------------------------------------------


def _categories(cohort: Cohort, like: Path | None) -> list[dict[str, Any]]:
    """The classes of the cohort's masks, without the background, and the names of its boxes; their numbers start at 1.

    One name is one category everywhere.
    A class that no pixel has is a category too: the numbers follow from the data sets, not from their images.
    """
    found: dict[str, set[tuple[str, str]]] = {}
    for column, also in (("mask_classes", "has_mask"), ("marks", "marks is not null")):
        query = f"select distinct {column}, organ, organ_group from samples where {condition(cohort.sql)} and {also}"
        for row in cohort.lake.sql(query).to_pylist():
            names = box_names(row["marks"]) if column == "marks" else (row["mask_classes"] or [])[1:]
            for name in names:
                found.setdefault(name, set()).add((row["organ"] or "unknown", row["organ_group"] or "unknown"))
    if like is not None:
        return _known_categories(like, found)
    return [{"id": i, "name": name, **_supercategory(found[name])} for i, name in enumerate(sorted(found), 1)]


def _supercategory(places: set[tuple[str, str]]) -> dict[str, Any]:
    """The organ; or the group that all its organs are of; or `several`."""
    organs, groups = sorted({organ for organ, _ in places}), sorted({group for _, group in places})
    word = organs[0] if len(organs) == 1 else groups[0] if len(groups) == 1 else "several"
    return {"supercategory": word, "organs": organs}


def _known_categories(path: Path, found: Iterable[str]) -> list[dict[str, Any]]:
    """The categories of an earlier export, which must have all that is found now."""
    try:
        known: list[dict[str, Any]] = read_json(path)["categories"]
        ids = {str(one["name"]): int(one["id"]) for one in known}
    except (OSError, LakeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is no COCO file with categories ({type(error).__name__}).") from error
    if len(set(ids.values())) != len(known):
        raise ConfigError(f"{path}: two categories have one name or one number.")
    for name in sorted(found):
        if name not in ids:
            raise ConfigError(f"The class {name!r} is not among the categories of {path}.{nearest(name, ids)}")
    return known


def _class_name(row: dict[str, Any], value: int) -> str:
    classes: list[str] = row["mask_classes"] or []
    if value >= len(classes):
        raise LakeError(
            f"The mask has the class {value}, but mask_classes names {len(classes)}.",
            item=row["sample_id"],
            step="mask",
        )
    return classes[value]


# --- bytes of the shards ----------------------------------------------------------------------------------------------


class _Members:
    """Reads files out of a cohort's shards, in the cohort's order: one shard is open at a time."""

    def __init__(self, cohort: Cohort, stack: ExitStack) -> None:
        self._cohort, self._stack = cohort, stack
        self._catalog = cohort.lake.catalog
        cohort.table(["shard"])  # notices if the catalog changed before it was opened here
        self._name: str | None = None
        self._file: IO[bytes]

    def image(self, row: dict[str, Any]) -> bytes:
        """The canonical PNG of a row (shard, offset, size), its checksums checked."""
        data = self._read(row, row["offset"], row["size"])
        try:
            png.check(data)
        except DataError as error:
            raise self._damage(row, error.message) from error
        return data

    def mask(self, row: dict[str, Any]) -> tuple[bytes, NDArray[np.uint8]]:
        """The mask's PNG of a row (shard, mask_offset, mask_size), and its class indices of shape (256, 256)."""
        data = self._read(row, row["mask_offset"] or 0, row["mask_size"] or 0)
        try:
            return data, mask_png.decode(data)
        except DataError as error:
            raise self._damage(row, error.message) from error

    def _read(self, row: dict[str, Any], offset: int, size: int) -> bytes:
        if row["shard"] != self._name:
            self._open(row["shard"])
        self._file.seek(offset)
        return self._file.read(size)

    def _open(self, name: str) -> None:
        self._stack.close()
        try:
            self._file = self._stack.enter_context((self._cohort.lake.root / name).open("rb"))
        except OSError as error:
            self._catalog.check_unchanged()
            raise self._damage({"shard": name}, f"The shard can't be read ({error.strerror}).") from error
        self._catalog.check_unchanged()  # ingest takes the catalog part away before it moves a shard
        self._name = name

    def _damage(self, row: dict[str, Any], message: str) -> LakeError:
        where = "/".join(filter(None, (row["shard"], row.get("sample_id"))))
        hint = f"All that is wrong, and how to repair it:  usdata verify --lake {self._cohort.lake.address}"
        return LakeError(message, item=where, step="read", hint=hint)
