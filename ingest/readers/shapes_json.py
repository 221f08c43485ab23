"""Shapes in JSON: COCO, labelme, bare lists of points, and objects of named points or boxes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ingest.card_parts import Annotations
from ingest.readers.shapes import (
    Found,
    Kind,
    Read,
    Shape,
    Unusable,
    bad,
    ellipse,
    picture_words,
    read_bytes,
    text_of,
)
from ingest.readers.table_files import parse_json

_NO_SHAPE = ("off", "blurred", "none")  # Unity Imaging: a point that was not set, or could not be seen
_LABELME: dict[str, Kind] = {
    **{"polygon": "polygon", "rectangle": "box", "linestrip": "line", "line": "line"},
    **{"point": "points", "points": "points"},
}


def _content(path: Path, one: Annotations, odd: "Counter[str]") -> Any:
    return parse_json(text_of(read_bytes(path, one), one, odd))


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width where both are given as numbers."""
    known = all(
        isinstance(side, int | float) and not isinstance(side, bool) and 0 < side < 1e6 for side in (height, width)
    )
    return (int(height), int(width)) if known else None


# --- COCO -------------------------------------------------------------------------------------------------------------


def read_coco(path: Path, one: Annotations, odd: "Counter[str]") -> Iterator[Found]:
    """Objects of COCO's detection form: masks from `segmentation`, marks from `bbox`. Source: cocodataset.org."""
    content = _content(path, one, odd)
    pictures = {}
    for picture in _objects(content, "images"):
        key = str(picture.get("id"))
        if key in pictures:
            raise ValueError(f"two images have the id {key}")
        pictures[key] = (picture.get("file_name"), _size(picture.get("height"), picture.get("width")))
    names = {str(one.get("id")): str(one.get("name")).strip() for one in _objects(content, "categories")}
    for entry in _objects(content, "annotations"):
        file, size = pictures.get(str(entry.get("image_id")), (None, None))
        if file is None:
            odd["annotations are of images that their file does not list"] += 1
            continue
        words = picture_words(file, image_id=entry.get("image_id"))
        name = names.get(str(entry.get("category_id")))
        try:
            if name is None:
                raise Unusable(f"no category {entry.get('category_id')!r}")
            shapes = [_coco_box(name, entry, size)] if one.becomes == "marks" else _coco_area(name, entry, size)
        except Unusable as error:
            yield bad(words, f"annotation {entry.get('id')}: {error}")
            continue
        yield from (Found(words, shape) for shape in shapes)


def _objects(content: Any, key: str) -> list[dict[str, Any]]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"not COCO: no list of objects {key!r}")
    return found


def _coco_box(name: str, entry: Mapping[str, Any], size: tuple[int, int] | None) -> Shape:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise Unusable("no bbox of four numbers")
    x, y, width, height = box
    return Shape.of(name, "box", [(x, y), (x + width, y + height)], size=size)


def _coco_area(name: str, entry: Mapping[str, Any], size: tuple[int, int] | None) -> list[Shape]:
    outline = entry.get("segmentation")
    if isinstance(outline, dict):
        return [_coco_runs(name, outline)]
    if not isinstance(outline, list) or not outline:
        raise Unusable("no segmentation")
    polygons = outline if isinstance(outline[0], list) else [outline]
    shapes = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise Unusable("a polygon with an odd count of numbers")
        shapes.append(Shape.of(name, "polygon", list(zip(polygon[::2], polygon[1::2], strict=True)), size=size))
    return shapes


def _coco_runs(name: str, outline: Mapping[str, Any]) -> Shape:
    """Run lengths: how many pixels of background, then foreground, and so on, column by column."""
    sides, counts = outline.get("size"), outline.get("counts")
    size = _size(*sides) if isinstance(sides, list) and len(sides) == 2 else None
    if size is None:
        raise Unusable("run lengths without their size")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, list) or not all(
        type(count) is int and 0 <= count <= size[0] * size[1] for count in counts
    ):
        raise Unusable("run lengths that are no counts")
    if sum(counts) != size[0] * size[1]:
        raise Unusable(f"run lengths of {sum(counts)} pixels for {size[0]} x {size[1]}")
    ends = np.cumsum(np.asarray(counts, np.int64))
    lengths = np.asarray(counts[1::2], np.int64)
    return Shape.of(name, "runs", np.stack([ends[1::2] - lengths, lengths], axis=1), size=size)


def decode_counts(text: str) -> list[int]:
    """COCO's compressed run lengths as numbers: five bits a character, from the third on differences to two before.

    Raises:
        Unusable: a character that none of them has, or an end inside a number.

    Source: `rleFrString` of pycocotools.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 40:
            raise Unusable("run lengths that can't be decoded")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise Unusable("run lengths that end inside a number")
    return counts


# --- labelme, points --------------------------------------------------------------------------------------------------


def read_labelme(path: Path, one: Annotations, odd: "Counter[str]") -> Iterator[Found]:
    """The shapes of one picture, as labelme writes them. Source: github.com/wkentaro/labelme."""
    content = _content(path, one, odd)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise ValueError("not of labelme: no list 'shapes'")
    words = picture_words(content.get("imagePath") or path.name)
    size = _size(content.get("imageHeight"), content.get("imageWidth"))
    for number, entry in enumerate(content["shapes"]):
        try:
            kind, pairs = _labelme(entry)
            yield Found(words, Shape.of(str(entry.get("label") or "").strip(), kind, pairs, size=size))
        except Unusable as error:
            yield bad(words, f"{path.name}, shape {number}: {error}")


def _labelme(entry: Any) -> tuple[Kind, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("points"), list):
        raise Unusable("no points")
    kind, points = str(entry.get("shape_type") or "polygon"), entry["points"]
    if kind == "rectangle" and len(points) == 4:  # as later versions write it
        return "polygon", points
    if kind in _LABELME:
        return _LABELME[kind], points
    if kind == "circle" and len(points) == 2:
        (cx, cy), (x, y) = Shape.of("", "points", points).points.tolist()
        radius = float(np.hypot(x - cx, y - cy))
        return "polygon", ellipse(cx, cy, radius, radius)
    raise Unusable(f"shapes of the type {kind[:40]!r} are not read")


def read_points(path: Path, one: Annotations, odd: "Counter[str]") -> Iterator[Found]:
    """One outline: a list of [x, y], or several such lists."""
    content = _content(path, one, odd)
    if not isinstance(content, list):
        raise ValueError("expected a list of [x, y]")
    nested = bool(content) and all(isinstance(x, list) and x and isinstance(x[0], list) for x in content)
    for outline in content if nested else [content] if content else []:
        yield Found(picture_words(path.name), Shape.of("", "polygon", outline))


# --- named ------------------------------------------------------------------------------------------------------------


def read_named(path: Path, one: Annotations, odd: "Counter[str]") -> Iterator[Found]:
    """An object of pictures, each an object of names: points {x, y}, or lists of boxes.

    x and y are numbers, lists of numbers, or texts of numbers (Unity Imaging; there the names may stand under `labels`,
    and a `type` of off or blurred means no shape). A box is [x0, y0, x1, y1], or [name, [x0, y0, x1, y1]] (GBCU, where
    `dim` is [width, height]).
    """
    content = _content(path, one, odd)
    if not isinstance(content, dict):
        raise ValueError("expected an object of pictures")
    for file, entry in content.items():
        words = picture_words(file)
        if not isinstance(entry, dict):
            yield bad(words, "expected an object of names")
            continue
        named = entry["labels"] if isinstance(entry.get("labels"), dict) else entry
        dim = entry.get("dim")
        size = _size(dim[1], dim[0]) if isinstance(dim, list) and len(dim) == 2 else None
        for name, value in named.items():
            if name == "dim" and size is not None:
                continue
            try:
                yield from (Found(words, shape) for shape in _named(name.strip(), value, size, odd))
            except Unusable as error:
                yield bad(words, f"{name}: {error}")


def _named(name: str, value: Any, size: tuple[int, int] | None, odd: "Counter[str]") -> Iterable[Shape]:
    if isinstance(value, list):
        return [_box(name, box, size) for box in value]
    if not isinstance(value, dict):
        raise Unusable("neither x and y nor boxes")
    word = str(value.get("type") or "").lower()
    if word in _NO_SHAPE:
        odd[f"names are {word}: no shape"] += 1
        return []
    x, y = _numbers(value.get("x")), _numbers(value.get("y"))
    if len(x) != len(y):
        raise Unusable(f"{len(x)} x for {len(y)} y")
    return [Shape.of(name, "line" if len(x) > 1 else "points", list(zip(x, y, strict=True)), size=size)]


def _box(name: str, box: Any, size: tuple[int, int] | None) -> Shape:
    if isinstance(box, list) and len(box) == 2 and isinstance(box[0], str):
        name, box = box[0].strip(), box[1]
    if not isinstance(box, list) or len(box) != 4:
        raise Unusable("no box of four numbers")
    return Shape.of(name, "box", [box[:2], box[2:]], size=size)


def _numbers(value: Any) -> list[float]:
    parts = value.replace(",", " ").split() if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        return [float(part) for part in parts]
    except (TypeError, ValueError, OverflowError) as error:
        raise Unusable(f"{str(value)[:60]!r} are no numbers") from error


READERS: dict[str, Read] = {
    "coco": read_coco,
    "labelme": read_labelme,
    "points": read_points,
    "named": read_named,
}
