"""Shapes in XML: Pascal VOC's boxes, and DDTI's marks with outlines in JSON inside."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingest.card_parts import Annotations
from ingest.readers.shapes import Found, Read, Shape, Unusable, bad, picture_words, read_bytes
from ingest.readers.table_files import local_name, parse_json, parse_xml


def _text(parent: Any, *names: str) -> str:
    """The text of the element that a path of names leads to; empty if there is none."""
    for name in names:
        parent = next((child for child in parent if local_name(child.tag) == name), None)
        if parent is None:
            return ""
    return (parent.text or "").strip()


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text[:9]) < 10**6 else None


def read_voc(path: Path, one: Annotations, odd: "Counter[str]") -> Iterator[Found]:
    """The boxes of one picture: xmin, ymin, xmax, ymax as the file gives them. Source: the PASCAL VOC devkit."""
    root = parse_xml(read_bytes(path, one))
    if local_name(root.tag) != "annotation":
        raise ValueError("not of Pascal VOC: no element 'annotation'")
    words = picture_words(_text(root, "filename") or path.name)
    height, width = _whole(_text(root, "size", "height")), _whole(_text(root, "size", "width"))
    size = (height, width) if height and width else None
    for entry in root:
        if local_name(entry.tag) != "object":
            continue
        name = _text(entry, "name")
        corners = [_text(entry, "bndbox", side) for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            if not all(corners):
                raise Unusable("an object without its box")
            yield Found(words, Shape.of(name, "box", [corners[:2], corners[2:]], size=size))
        except Unusable as error:
            yield bad(words, f"{path.name}, {name}: {error}")


def read_svg(path: Path, one: Annotations, odd: "Counter[str]") -> Iterator[Found]:
    """The marks of one case: `image` is the number of a picture, `svg` a JSON list of outlines. A shape has no name.

    The word `image` is for the key, as in "{case}_{image}". An empty `svg` is no shape.
    """
    root = parse_xml(read_bytes(path, one))
    for mark in root.iter():
        if local_name(mark.tag) != "mark":
            continue
        words = picture_words(path.name, image=_text(mark, "image"))
        text = _text(mark, "svg")
        if not text:
            odd["marks have an empty svg: no shape"] += 1
            continue
        try:
            yield from (Found(words, Shape.of("", "polygon", points)) for points in _outlines(text))
        except Unusable as error:
            yield bad(words, f"{path.name}, image {words['image']}: {error}")


def _outlines(text: str) -> list[Any]:
    try:
        regions = parse_json(text)
    except ValueError as error:
        raise Unusable("its svg is no JSON") from error
    if not isinstance(regions, list):
        raise Unusable("its svg is no list")
    found = []
    for region in regions:
        points = region.get("points") if isinstance(region, dict) else None
        if not isinstance(points, list) or not all(isinstance(p, dict) for p in points):
            raise Unusable("an outline without points")
        found.append([(p.get("x"), p.get("y")) for p in points])
    return found


READERS: dict[str, Read] = {"voc": read_voc, "svg": read_svg}
