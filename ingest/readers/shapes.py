"""Shapes that annotation files give as numbers: outlines, boxes, points and run lengths, joined to items by key.

Read `Shapes` first. `shapes_json`, `shapes_table` and `shapes_xml` read the files; `shapes_draw` makes masks and marks.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from ingest.card import Card
from ingest.card_parts import PLACEHOLDER, Annotations, Masks
from ingest.fields import fill_template
from ingest.readers.table import name_of, some
from usdata.errors import CardError

Kind = Literal["polygon", "line", "box", "points", "runs", "bad"]
PER_PICTURE = ("labelme", "points", "voc", "svg")  # one file each: if one is unreadable, only its picture lacks shapes
MAX_BYTES = 256 << 20  # of an annotation file; ours
MAX_BYTES_OF_ONE = 32 << 20  # of one that is of a single picture, whose pixels labelme puts into it; ours
MAX_POINTS = 100_000  # of one shape; ours: a thousand times the longest known
FARTHEST = 1e6  # pixels; a coordinate beyond is no pixel of a picture; ours


class Unusable(ValueError):
    """What one shape, or all shapes of one picture, can't be used for."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One annotated shape of a picture. Hashable and picklable: numbers are kept as bytes.

    polygon: an area, closed by itself. line: a curve. box: two corners (x0, y0), (x1, y1). points: single points. runs:
    (start, length) of foreground along the columns, from 0. bad: can't be used, and `name` says why.
    """

    name: str  # class of the mask, or name of the mark
    kind: Kind
    data: bytes = field(default=b"", repr=False)  # little-endian pairs: float64 (x, y); of runs int64
    frame: int | None = None  # from 0; None: of every frame, or of a still
    size: tuple[int, int] | None = None  # height, width of the picture, where the annotation says them
    becomes: Literal["mask", "marks"] = "mask"

    @classmethod
    def of(
        cls, name: str, kind: Kind, pairs: Any, frame: int | None = None, size: tuple[int, int] | None = None
    ) -> "Shape":
        """A shape from pairs of numbers.

        Raises:
            Unusable: no pairs, not numbers, not finite, too many or too far away.
        """
        number = np.int64 if kind == "runs" else np.float64
        try:
            points = np.asarray(pairs, number)
        except (TypeError, ValueError, OverflowError) as error:
            raise Unusable(f"no list of points: {str(error)[:100]}") from error
        if points.ndim != 2 or points.shape[1] != 2:
            raise Unusable("no list of points")
        if kind == "runs":
            if len(points) and (points.min() < 0 or points.max() > FARTHEST**2):
                raise Unusable("a run lies outside the picture")
        else:
            _check_points(kind, points)
        return cls(name, kind, points.astype(np.dtype(number).newbyteorder("<")).tobytes(), frame, size)

    @property
    def points(self) -> NDArray[Any]:
        """Shape (n, 2): float64 x, y in pixels of the source; of runs int64 start, length in pixels."""
        return np.frombuffer(self.data, "<i8" if self.kind == "runs" else "<f8").reshape(-1, 2)


def _check_points(kind: Kind, points: NDArray[Any]) -> None:
    if not np.isfinite(points).all() or np.abs(points).max(initial=0) > FARTHEST:
        raise Unusable("a coordinate is no pixel of a picture")
    least = {"polygon": 3, "line": 2, "box": 2, "points": 1}[kind]
    if len(points) < least or (kind == "box" and len(points) != 2):
        raise Unusable(f"{len(points)} points make no {kind}")
    if len(points) > MAX_POINTS:
        raise Unusable(f"{len(points)} points; at most {MAX_POINTS} are read")


@dataclass(frozen=True, slots=True)
class Found:
    """A shape under the source's own name, and the words that its picture is found by."""

    words: Mapping[str, str]  # file and stem of the picture, and what the format gives
    shape: Shape


Read = Callable[[Path, Annotations, "Counter[str]"], Iterable[Found]]  # the counter: what is odd -> how often


def bad(words: Mapping[str, str], why: object, frame: int | None = None) -> Found:
    """A shape that can't be used; its picture, or its frame, keeps no mask."""
    return Found(words, Shape(f"{why}"[:300], "bad", frame=frame))


def picture_words(file: object, **more: object) -> dict[str, str]:
    """The words of a shape: `file` as the annotation names it, its `stem`, and others."""
    path = str(file).strip().replace("\\", "/") if isinstance(file, str | int) else ""
    name = path.rpartition("/")[2]
    words = {"file": path, "stem": name.rpartition(".")[0] or name}
    return words | {key: str(value).strip() for key, value in more.items()}


def text_of(content: bytes, one: Annotations, odd: "Counter[str]") -> str:
    """A file's text; bytes that are not of the encoding are replaced and counted."""
    try:
        return content.decode(one.encoding)
    except UnicodeDecodeError:
        odd[f"files hold bytes that are not {one.encoding.removesuffix('-sig')}, which were replaced"] += 1
        return content.decode(one.encoding, "replace")


def read_bytes(path: Path, one: Annotations) -> bytes:
    """The bytes of an annotation file; a ValueError if it is too large."""
    largest = MAX_BYTES_OF_ONE if one.format in PER_PICTURE else MAX_BYTES
    if path.stat().st_size > largest:
        raise ValueError(f"larger than {largest >> 20} MiB")
    return path.read_bytes()


def ellipse(cx: Any, cy: Any, rx: Any, ry: Any, angle: Any = 0.0) -> list[tuple[float, float]]:
    """An ellipse as a polygon of 128 points (ours: an area 0.04 % too small); radii in pixels, angle in radians.

    Raises:
        Unusable: no numbers, or a radius that is not above zero.
    """
    try:
        cx, cy, rx, ry, angle = (float(value) for value in (cx, cy, rx, ry, angle))
    except (TypeError, ValueError, OverflowError) as error:
        raise Unusable("an ellipse without centre and radii") from error
    if not (0 < rx <= FARTHEST and 0 < ry <= FARTHEST and math.isfinite(angle)):
        raise Unusable("an ellipse without radii")
    cos, sin = math.cos(angle), math.sin(angle)
    around = [(rx * math.cos(t), ry * math.sin(t)) for t in (math.pi * k / 64 for k in range(128))]
    return [(cx + x * cos - y * sin, cy + x * sin + y * cos) for x, y in around]


@dataclass(slots=True)
class _Joined:
    """One entry of `Card.annotations` with the shapes of all its files, by key."""

    one: Annotations
    shapes: dict[str, list[Shape]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    odd: "Counter[str]" = field(default_factory=Counter)
    pictures: "Counter[str]" = field(default_factory=Counter)  # key -> how many have it, of a file for each picture


class Shapes:
    """All shapes of a card's annotation files, ready to be joined to items."""

    def __init__(self, joined: list[_Joined], examples: tuple[str, ...] = ()) -> None:
        self.joined, self.examples = joined, examples
        self.unreadable: dict[str, str] = {}  # files of one picture that nothing ties to it, with what is wrong

    @property
    def paths(self) -> frozenset[str]:
        """The files that were read, or whose picture knows that they can't be."""
        return frozenset(path for one in self.joined for path in one.files)

    @classmethod
    def read(cls, card: Card, root: Path, files: Mapping[str, Sequence[tuple[int, Mapping[str, str]]]]) -> "Shapes":
        """Reads `files` (path -> number of the annotation after the card's tables, groups of its path).

        Raises:
            CardError: a required file is missing; a file that holds all pictures' shapes is unreadable.
        """
        examples = card.layout.example.get("table", ()) if card.layout else ()
        shapes = cls([_Joined(one) for one in card.annotations], examples)
        for path, number, groups in sorted((path, *one) for path, found in files.items() for one in found):
            if number >= len(card.tables):
                shapes._add(card, shapes.joined[number - len(card.tables)], path, root / path, groups)
        for joined in shapes.joined:
            if joined.one.required and not joined.files:
                raise CardError(
                    f"Annotations that the card requires are missing: {name_of(joined.one.file, examples)}.",
                    dataset=card.name,
                    step="list",
                    hint="Give the folder that holds them as well as the images.",
                )
        return shapes

    def _add(self, card: Card, to: _Joined, path: str, place: Path, groups: Mapping[str, str]) -> None:
        one = to.one
        try:
            for found in _reader(one)(place, one, to.odd):
                _put(to, found, groups, card.masks)
        except (OSError, ValueError) as error:
            if one.format not in PER_PICTURE:
                text = f"Can't read the annotations: {error}."
                raise CardError(text, dataset=card.name, item=path, step="list") from error
            # Which picture the file names is inside it: only its path, or for bare points its name, still tells.
            words = picture_words(place.name) if one.format == "points" else {}
            if not _put(to, bad(words, f"{path}: {error}"), groups, card.masks):
                self.unreadable[path] = str(error)
                return
        to.files.append(path)

    def see(self, words: Mapping[str, str]) -> None:
        """Count a picture that is there, so that `of` can tell which annotation fits several."""
        for to in self.joined:
            if to.one.format in PER_PICTURE and (key := _key(to.one, words)):
                to.pictures[key] += 1

    def of(self, words: Mapping[str, str]) -> tuple[Shape, ...]:
        """The shapes of the item with these path words, without repetitions, in the order of card and files.

        A file of one picture that fits several pictures is a bad shape of each of them.
        """
        found: dict[Shape, None] = {}
        for to in self.joined:
            key = _key(to.one, words)
            if not key or key not in to.shapes:
                continue
            to.used.add(key)
            if to.pictures[key] > 1:
                why = f"its file fits {to.pictures[key]} pictures, all of the key {key!r}"
                found[Shape(why, "bad", becomes=to.one.becomes)] = None
            else:
                found |= dict.fromkeys(to.shapes[key])
        return tuple(found)

    def notes(self) -> Iterator[str]:
        """What people should know: absent files, oddities with their counts, shapes without a picture."""
        for to in self.joined:
            name = some(to.files) if len(to.files) < 4 else f"{len(to.files)} files such as {to.files[0]}"
            if not to.files:
                yield f"no {name_of(to.one.file, self.examples)}: no {to.one.becomes} from it"
            for what, count in sorted(to.odd.items()):
                yield f"{name}: {count} {what}"
            if left := sorted(set(to.shapes) - to.used):
                lost = sum(len(to.shapes[key]) for key in left)
                yield f"{name}: {lost} shapes of {len(left)} pictures that are not here ({some(left)})"


def _reader(one: Annotations) -> Read:
    """The function that reads the files of a format; heavy imports come with the first use."""
    if one.format in ("voc", "svg"):
        from ingest.readers import shapes_xml

        return shapes_xml.READERS[one.format]
    if one.format in ("via", "tracings", "rle"):
        from ingest.readers import shapes_table

        return shapes_table.READERS[one.format]
    from ingest.readers import shapes_json

    return shapes_json.READERS[one.format]


def _key(one: Annotations, words: Mapping[str, str]) -> str:
    """The key of an item; empty if its path does not say all of it."""
    names = PLACEHOLDER.findall(one.match) or [one.match]
    return fill_template(one.match, words) if all(name in words for name in names) else ""


def _put(to: _Joined, found: Found, groups: Mapping[str, str], masks: Masks | None) -> bool:
    """Keep a shape under its key and its name on the card; False if its words give no key."""
    words = {**found.words, **groups}
    names = PLACEHOLDER.findall(to.one.key) or [to.one.key]
    key = fill_template(to.one.key, words) if all(name in words for name in names) else ""
    if not key:
        if found.shape.kind != "bad":
            to.odd[f"shapes have no {to.one.key} and belong to nothing"] += 1
        return False
    shape = _on_card(found.shape, groups.get("name") or found.shape.name, to.one, masks)
    if shape is None:
        to.odd["shapes are left out, as the card says"] += 1
    else:
        to.shapes.setdefault(key, []).append(shape)
    return True


def _on_card(shape: Shape, name: str, one: Annotations, masks: Masks | None) -> Shape | None:
    """A shape under the card's name for it; None if the card leaves such shapes out (as background, or "")."""
    if shape.kind == "bad":
        return Shape(shape.name, "bad", frame=shape.frame, becomes=one.becomes)
    listed = set(one.classes.values())
    if name in one.classes:
        word = one.classes[name]
        if not word or (masks and one.becomes == "mask" and word == masks.classes[0]):
            return None
    elif not name and not listed and one.becomes == "mask" and masks and len(masks.classes) == 2:
        word = masks.classes[1]
    elif not name and len(listed) == 1:
        (word,) = listed
    else:
        word = "" if one.classes else name
    if not word or (one.becomes == "mask" and masks and word not in masks.classes):
        why = f"the shape {name!r} is not in annotations.classes"
        return Shape(why, "bad", frame=shape.frame, becomes=one.becomes)
    return Shape(word, shape.kind, shape.data, shape.frame, shape.size, one.becomes)


def annotated_frames(shapes: Iterable[Shape]) -> tuple[int, ...]:
    """The frames of a clip that have shapes of their own, sorted; bad ones are none."""
    return tuple(sorted({s.frame for s in shapes if s.frame is not None and s.kind != "bad"}))


def frames_beyond(shapes: Iterable[Shape], n_frames: int) -> str | None:
    """A sentence about shapes of frames that a clip does not have; None if there are none."""
    beyond = sorted({str(s.frame) for s in shapes if s.frame is not None and s.frame >= n_frames}, key=int)
    return f"Shapes of the frames {some(beyond)}, but there are {n_frames}, from 0." if beyond else None


def shapes_digest(shapes: Iterable[Shape]) -> str:
    """xxh3_128 (32 hex digits) of everything in some shapes."""
    state = xxhash.xxh3_128()
    for shape in shapes:
        state.update(repr((shape.name, shape.kind, len(shape.data), shape.frame, shape.size, shape.becomes)).encode())
        state.update(shape.data)
    return state.hexdigest()
