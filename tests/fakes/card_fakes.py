"""Tiny fakes of the data sets that have cards, and what a right ingest of each finds.

A fake is one entry of `FAKES` in `fakes/cards_1.py`, `cards_2.py` or `cards_3.py`:

    def tn3k(root: Path, rng: Generator) -> None:
        save(root / "tn3k/test-image/0000.jpg", speckle(rng))
        save(root / "tn3k/test-mask/0000.jpg", blob())

    FAKES = {"tn3k": Fake("tn3k", tn3k, Expect(samples=1, masks=1, classes={"nodule": 1}))}

A card with several forms has several fakes: "mmotu", "mmotu:coco". Whatever an `Expect` leaves out must not be found:
no labels, no patients, nothing quarantined, all samples of the card's organ. Sizes are (width, height), as in file
headers; arrays are (height, width). Keep a fake to some three to eight files of about 96 x 80 pixels.
"""

import csv
import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

SIZE = (96, 80)
PARTS = ("cards_1", "cards_2", "cards_3")  # modules beside this one

Array = NDArray[Any]


@dataclass(frozen=True)
class Expect:
    """What an ingest of a fake must find: exactly this. Counts are of samples (frames) unless the line says other."""

    samples: int
    quarantined: Mapping[str, int] = field(default_factory=dict)  # reason -> rows
    ignored: int = 0  # files
    copies: int = 0  # byte-identical files
    masks: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)  # class -> masks with a pixel of it; not the background
    labels: Mapping[str, int] = field(default_factory=dict)  # of the column `label`
    named: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # labels.x: {"x": {"yes": 2}}
    targets: Mapping[str, Sequence[float]] = field(default_factory=dict)  # name -> its different values, sorted
    target: Sequence[float] = field(default_factory=list)  # different values of the column `target`, sorted
    marks: Mapping[str, int] = field(default_factory=dict)  # name of a mark -> how many, over all samples
    patients: int = 0  # different ones, as of studies and clips
    studies: int = 0
    clips: int = 0
    splits: Mapping[str, int] = field(default_factory=dict)
    # None: what the card's defaults say holds for all.
    organs: Mapping[str, int] | None = None
    views: Mapping[str, int] | None = None
    probes: Mapping[str, int] | None = None
    modes: Mapping[str, int] | None = None
    sites: Mapping[str, int] | None = None
    manufacturers: Mapping[str, int] | None = None

    def unlike(self, found: "Expect") -> dict[str, str]:
        """What differs: field -> "found ..., expected ..."."""
        pairs = {one.name: (getattr(found, one.name), getattr(self, one.name)) for one in fields(self)}
        return {name: f"found {is_}, expected {should}" for name, (is_, should) in pairs.items() if is_ != should}


@dataclass(frozen=True)
class Fake:
    """`build` writes the files below a folder; `name` is the card's."""

    name: str
    build: Callable[[Path, Generator], None]
    expect: Expect

    def draw(self, root: Path) -> Path:
        """Write the fake below `root`, which is made; the same bytes each time."""
        root.mkdir(parents=True, exist_ok=True)
        self.build(root, np.random.default_rng(sum(map(ord, self.name))))
        return root


@cache
def all_fakes() -> Mapping[str, Fake]:
    """Every fake of the modules in PARTS that are there, by its key: the card's name, or name:variant."""
    found: dict[str, Fake] = {}
    for part in PARTS:
        if not Path(__file__).with_name(f"{part}.py").exists():
            continue
        fakes = importlib.import_module(f"fakes.{part}").FAKES
        twice = sorted(set(fakes) & set(found))
        wrong = [key for key, fake in fakes.items() if key.partition(":")[0] != fake.name]
        if twice or wrong:
            raise ValueError(f"{part}.FAKES: given twice {twice}, key is not the card's name {wrong}")
        found |= fakes
    return found


# --- pictures ----------------------------------------------------------------------------------------------------


def speckle(rng: Generator, size: tuple[int, int] = SIZE, *, tint: bool = False) -> NDArray[np.uint8]:
    """A grey picture with speckle, (height, width); with `tint` RGB with a red and blue patch like colour Doppler."""
    width, height = size
    grain = cv2.GaussianBlur(rng.rayleigh(60, (height, width)), (0, 0), 0.8)
    grey = np.clip(grain * np.linspace(1.3, 0.5, height)[:, None], 1, 255).astype(np.uint8)
    if not tint:
        return grey
    rgb = np.repeat(grey[..., None], 3, axis=2)
    rgb[height // 3 : height // 2, width // 4 : width // 2] = (220, 30, 20)
    rgb[height // 2 : 2 * height // 3, width // 4 : width // 2] = (20, 40, 220)
    return rgb


def blob(
    size: tuple[int, int] = SIZE, centre: tuple[float, float] = (0.5, 0.5), radius: float = 0.25, value: int = 255
) -> NDArray[np.uint8]:
    """A filled disc of `value` on 0, (height, width); `centre` and `radius` as shares of the sides."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    inside = (x - centre[0] * width) ** 2 + (y - centre[1] * height) ** 2 <= (radius * min(size)) ** 2
    return np.where(inside, value, 0).astype(np.uint8)


def outline(size: tuple[int, int] = SIZE, value: int = 255, thickness: int = 1) -> NDArray[np.uint8]:
    """A closed ellipse drawn as a line, (height, width)."""
    width, height = size
    drawn = np.zeros((height, width), np.uint8)
    cv2.ellipse(drawn, (width // 2, height // 2), (width // 4, height // 4), 20.0, 0, 360, value, thickness)
    return drawn


def classes(*values: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """An index mask: 0, and one upright bar of each value from left to right, (height, width)."""
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    step = width // (len(values) + 1)
    for k, value in enumerate(values):
        mask[height // 4 : 3 * height // 4, step // 2 + k * step : step // 2 + (k + 1) * step] = value
    return mask


def colours(*values: tuple[int, int, int], size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A colour mask: black, and one upright bar of each RGB colour, (height, width, 3)."""
    return np.array([(0, 0, 0), *values], np.uint8)[classes(*range(1, len(values) + 1), size=size)]


def empty(size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A mask without a pixel set, (height, width)."""
    return np.zeros(size[::-1], np.uint8)


def save(path: Path, pixels: NDArray[np.uint8], mode: str | None = None, **options: Any) -> Path:
    """Write (height, width[, 3]) as PNG, JPEG, BMP, TIFF or GIF, by name; `mode` is Pillow's ("RGBA", "1", "P")."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def save_palette(
    path: Path, numbers: NDArray[np.uint8], palette: Sequence[int] = (0, 0, 0, 128, 0, 0, 0, 128, 0)
) -> Path:
    """Write class numbers as a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers)
    image.putpalette(list(palette))
    image.save(path)
    return path


# --- clips and volumes -------------------------------------------------------------------------------------------


def save_clip(path: Path, rng: Generator, frames: int = 4, size: tuple[int, int] = (64, 64), fps: float = 25.0) -> Path:
    """Write a clip of speckle whose bright bar sinks frame by frame: AVI (MJPG), MP4, MOV, M4V, MPEG or GIF by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [speckle(rng, size) for _ in range(frames)]
    for k, picture in enumerate(pictures):
        picture[(k + 1) * size[1] // (frames + 2) :][:4] = 250
    suffix = path.suffix.lower()
    if suffix == ".gif":
        first, *rest = (Image.fromarray(picture) for picture in pictures)
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
        return path
    code = {".avi": "MJPG", ".mpeg": "PIM1", ".mpg": "PIM1"}.get(suffix, "mp4v")
    lower = path.with_name(f"writing{suffix}")  # OpenCV takes the container from a lower-case ending
    writer = cv2.VideoWriter(str(lower), cv2.VideoWriter.fourcc(*code), fps, size)
    for picture in pictures:
        writer.write(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
    writer.release()
    lower.rename(path)
    return path


def stack(rng: Generator, frames: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Frames of speckle, (frames, height, width)."""
    return np.stack([speckle(rng, size) for _ in range(frames)])


def save_array(path: Path, array: Array | Mapping[str, Array], spacing: Sequence[float] | None = None) -> Path:
    """Write an array as the name says; the axes as `ingest.card_parts.Arrays` counts them.

    .nii, .nii.gz: index order (i first); .mha, .mhd, .nrrd: slowest first; .npy: as it is; .npz, .h5, .hdf5, .mat: a
    mapping of names. `spacing` in the file's own order of axes: of NIfTI i, j, k; of MetaImage x, y, z.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lower()
    if isinstance(array, Mapping):
        if name.endswith(".npz"):
            np.savez_compressed(path, **array)
        elif name.endswith(".mat"):
            from scipy.io import savemat

            savemat(path, dict(array))
        else:
            import h5py

            with h5py.File(path, "w") as file:
                for key, value in array.items():
                    file[key] = value
    elif name.endswith((".nii", ".nii.gz")):
        import nibabel

        image = nibabel.nifti1.Nifti1Image(array, np.eye(4))
        if spacing:
            image.header.set_zooms(tuple(spacing))
        nibabel.save(image, path)
    elif name.endswith(".npy"):
        np.save(path, array, allow_pickle=False)
    else:
        import SimpleITK

        image = SimpleITK.GetImageFromArray(array)
        if spacing:
            image.SetSpacing([float(x) for x in spacing])
        SimpleITK.WriteImage(image, str(path))
    return path


# --- tables ------------------------------------------------------------------------------------------------------


def save_csv(
    path: Path, header: Sequence[str], *rows: Sequence[Any], separator: str = ",", encoding: str = "utf-8"
) -> Path:
    """Write rows; values are quoted where they must be. No header: an empty sequence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows] if header else rows)
    return path


def save_xlsx(path: Path, header: Sequence[str], *rows: Sequence[Any], sheet: str = "Sheet1") -> Path:
    """Write rows as the first sheet of a workbook."""
    from openpyxl import Workbook

    path.parent.mkdir(parents=True, exist_ok=True)
    book = Workbook()
    page = book.active
    page.title = sheet
    for row in (header, *rows):
        page.append(list(row))
    book.save(path)
    return path


def save_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def save_text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def coco(
    images: Iterable[tuple[str, tuple[int, int]]], shapes: Iterable[tuple[int, str, Sequence[float]]]
) -> dict[str, Any]:
    """COCO JSON of pictures (file name, size) and shapes (picture's position, category, numbers).

    The numbers are a polygon x y x y ..., or, when there are four, a box x y width height.
    """
    shapes = list(shapes)
    names = list(dict.fromkeys(category for _, category, _ in shapes))
    annotations = []
    for number, (picture, category, numbers) in enumerate(shapes, start=1):
        one: dict[str, Any] = {
            "id": number,
            "image_id": picture + 1,
            "category_id": names.index(category) + 1,
            "iscrowd": 0,
        }
        if len(numbers) == 4:
            one |= {"bbox": list(numbers), "area": numbers[2] * numbers[3]}
        else:
            xs, ys = numbers[::2], numbers[1::2]
            one |= {"segmentation": [list(numbers)], "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]}
        annotations.append(one)
    pictures = [
        {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        for number, (name, size) in enumerate(images, start=1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    return {"images": pictures, "annotations": annotations, "categories": categories}


# --- what an ingest found ----------------------------------------------------------------------------------------


def observe(lake: Any, card: Any, report: Any) -> Expect:
    """What is in `lake` of the card's data set, in the words of an `Expect`."""
    import pyarrow.parquet as pq

    rows = pq.read_table(lake.catalog_part(card.name)).to_pylist() if report.counts.samples else []
    own = card.constants()

    def count(column: str, default: str | None) -> Mapping[str, int] | None:
        """None where every row has the card's default."""
        found = _count(row[column] for row in rows)
        same = {own[default]: len(rows)} if default and own.get(default) is not None else {}
        return None if found == same else found

    return Expect(
        samples=len(rows),
        quarantined=report.reasons,
        ignored=report.counts.ignored,
        copies=report.counts.copies,
        masks=sum(row["has_mask"] for row in rows),
        classes=_mask_classes(lake.root, rows),
        labels=_count(row["label"] for row in rows),
        named=_named(rows),
        targets=_targets(rows),
        target=sorted({row["target"] for row in rows} - {None}),
        marks=_marks(rows),
        patients=len({row["patient"] for row in rows} - {None}),
        studies=len({row["study"] for row in rows} - {None}),
        clips=len({row["clip"] for row in rows} - {None}),
        splits=_count(row["official_split"] for row in rows),
        organs=count("organ", "organ"),
        views=count("view", "view"),
        probes=count("probe", "probe"),
        modes=count("mode", "mode"),
        sites=count("site", "site"),
        manufacturers=count("manufacturer", "manufacturer"),
    )


def _count(words: Iterable[Any]) -> dict[str, int]:
    return dict(Counter(word for word in words if word is not None))


def _named(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for row in rows:
        for name, word in json.loads(row["labels"] or "{}").items():
            found.setdefault(name, Counter())[word] += 1
    return {name: dict(words) for name, words in found.items()}


def _targets(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, set[float]] = {}
    for row in rows:
        for name, number in json.loads(row["targets"] or "{}").items():
            found.setdefault(name, set()).add(number)
    return {name: sorted(numbers) for name, numbers in found.items()}


def _marks(rows: list[dict[str, Any]]) -> dict[str, int]:
    marks = (mark for row in rows for mark in json.loads(row.get("marks") or "[]"))
    return _count(mark.get("name") for mark in marks)


def _mask_classes(root: Path, rows: list[dict[str, Any]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for row in rows:
        if row["has_mask"]:
            with (root / row["shard"]).open("rb") as file:
                file.seek(row["mask_offset"])
                data = np.frombuffer(file.read(row["mask_size"]), np.uint8)
            numbers = np.unique(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))
            found.update(row["mask_classes"][number] for number in numbers if number)
    return dict(found)
