"""Mask files -> class indices. Masks come as 1-bit, grey, palette, RGB and RGBA, filled or as outlines."""

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ingest.card_parts import Masks
from ingest.preprocess import nearest_neighbour
from ingest.readers.image import image_format, open_with_pillow, read_bytes, to_8_bits
from usdata.errors import DataError


def read_mask(
    paths: Sequence[Path], spec: Masks, shape: tuple[int, int], root: Path | None = None
) -> NDArray[np.uint8]:
    """The mask of one image, from one file or several.

    Where files overlap, the class that stands later in `spec.classes` wins; with two classes that is OR.

    Args:
        paths: the mask files of the image.
        spec: the card's `masks`.
        shape: (height, width) of the image.
        root: the source's folder; `masks.by_path` looks at what stands below it, and errors name that.

    Returns:
        uint8, `shape`, each pixel the position of its class in `spec.classes`.

    Raises:
        DataError: step mask; reasons mask_size (another size than the image), mask_value (a number or colour that the
            card does not list and does not take for background, or nothing above the threshold), mask_open_outline,
            and those of `read_image`.
    """
    merged = np.zeros(shape, np.uint8)
    for path in paths:
        below = path.relative_to(root) if root else path
        try:
            mask = classes_of(_open(path), spec, shape, below)
        except DataError as error:
            item = below.as_posix() if root else path.name
            raise DataError(error.reason, f"{path.name}: {error.message}", item=item, step="mask") from error
        merged = np.maximum(merged, mask)
    return merged


def classes_of(image: Image.Image, spec: Masks, shape: tuple[int, int], below: Path) -> NDArray[np.uint8]:
    """The mask that one opened file, or one frame of a mask volume, shows; see `read_mask`. `below`: for by_path."""
    mask = _classes(image, spec, below)
    if spec.turned and mask.shape != shape and mask.shape == shape[::-1]:
        mask = np.rot90(mask, -1)  # a square one can't be told: it stays
    if mask.shape != shape:
        mask = _fit(mask, spec, shape)
    return _filled(mask) if spec.fill and spec.kind != "outline" else mask


def _filled(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each class also where the mask has none but its curves enclose it; of several, the later class wins."""
    filled = np.zeros_like(mask)
    for number in np.unique(mask[mask > 0]).tolist():
        np.maximum(filled, fill_outline(mask == number).view(np.uint8) * np.uint8(number), out=filled)
    return np.where(mask > 0, mask, filled)


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """A mask as the lake stores it: 8-bit grey PNG of class indices, compressed (level 6, no row filter)."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(mask), options)
    if not done:
        raise DataError("mask_value", "The mask can't be encoded.", step="mask")
    return encoded.tobytes()


def fill_outline(curve: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A drawn closed curve together with what it encloses; an already filled shape stays as it is.

    A curve that runs out of the image is closed along the sides that it touches. Inside is what a flood from beyond
    the border (4 neighbours, so it does not slip through a diagonal step of a one-pixel line) does not reach.

    Args:
        curve: (H, W).

    Raises:
        DataError: a thin line that encloses nothing (reason mask_open_outline).
    """
    filled = np.zeros_like(curve)
    count, parts, boxes, _ = cv2.connectedComponentsWithStats(curve.astype(np.uint8), connectivity=8)
    for number in range(1, count):
        x, y, width, height = (int(edge) for edge in boxes[number, :4])
        part = np.s_[y : y + height, x : x + width]
        rows, columns = curve.shape
        at_border = (y == 0, y + height == rows, x == 0, x + width == columns)
        filled[part] |= _fill_one(parts[part] == number, at_border)
    return filled


def _fill_one(curve: NDArray[np.bool_], at_border: tuple[bool, ...]) -> NDArray[np.bool_]:
    """One connected curve, cut out by its box; `at_border`: which of top, bottom, left, right are the image's."""
    framed = np.pad(curve, 1).astype(np.uint8)
    filled = _holes_filled(framed)
    if filled.sum() > curve.sum() or cv2.erode(framed, np.ones((3, 3), np.uint8)).any():
        return filled
    sides = framed[0], framed[-1], framed[:, 0], framed[:, -1]  # views
    for side, here in zip(sides, at_border, strict=True):
        side |= np.uint8(here)  # open: close it along the border it touches
    closed = _holes_filled(framed)
    if closed.sum() <= curve.sum():
        raise DataError("mask_open_outline", f"An outline of {int(curve.sum())} pixels encloses nothing.", step="mask")
    return closed


def _holes_filled(framed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    outside = np.pad(framed, 1)
    cv2.floodFill(outside, None, (0, 0), 2, flags=4)
    return outside[2:-2, 2:-2] != 2


def _fit(mask: NDArray[np.uint8], spec: Masks, shape: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = mask.shape
    if spec.other_size == "resize" and (height, width) != shape[::-1]:  # one that lies on its side is not stretched
        return nearest_neighbour(mask, shape)
    text = f"The mask has {width} x {height} pixels, its image {shape[1]} x {shape[0]}."
    raise DataError("mask_size", text, step="mask")


def _open(path: Path) -> Image.Image:
    content = read_bytes(path)
    return open_with_pillow(content, image_format(content))


def _classes(image: Image.Image, spec: Masks, path: Path) -> NDArray[np.uint8]:
    if spec.kind == "index":
        return _look_up(_stored_numbers(image), spec)
    if spec.kind == "colour":
        return _look_up_colours(_opaque_rgb(image), spec)
    grey = _brightness(image)
    inside = grey > spec.threshold
    if grey.any() and not inside.any():
        text = f"No value exceeds the threshold {spec.threshold}; the largest is {int(grey.max())}."
        raise DataError("mask_value", text, step="mask")
    if spec.kind == "outline":
        inside = fill_outline(inside)
    name = spec.classes[1]
    if spec.by_path is not None:
        found = [name for pattern, name in spec.by_path.items() if re.search(pattern, path.as_posix())]
        if len(set(found)) != 1:
            raise DataError("mask_value", f"The file name fits {len(found)} classes of masks.by_path.", step="mask")
        name = found[0]
    return inside.astype(np.uint8) * np.uint8(spec.classes.index(name))


def _brightness(image: Image.Image) -> NDArray[np.uint8]:
    """The largest channel of each pixel: a mask in any bright colour counts, which luma would not give for blue."""
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if image.mode[0] == "I":
        return to_8_bits(np.asarray(image))
    red, green, blue = np.moveaxis(np.asarray(image) if image.mode == "RGB" else _opaque_rgb(image), 2, 0)
    return np.maximum(np.maximum(red, green), blue)


def _opaque_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """RGB of a mask, in which see-through pixels are black. Transparency that is the same everywhere says nothing.

    Raises:
        DataError: all black, and only the transparency varies: the mask may be in it, or not (reason mask_value).
    """
    if image.mode[0] == "I":
        raise DataError("mask_value", "Numbers of 16 bits where colours are expected.", step="mask")
    rgba = np.array(image.convert("RGBA"))
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    if alpha.min() < alpha.max():
        if not rgb.any():
            raise DataError("mask_value", "Everything is black and only the transparency varies.", step="mask")
        rgb[alpha < 128] = 0
    return rgb


def _stored_numbers(image: Image.Image) -> NDArray[np.uint8]:
    """The numbers in the file: palette indices, not their colours; grey levels, not scaled ones."""
    values = np.asarray(image)
    if image.mode in ("LA", "RGB", "RGBA"):
        colour = values[..., :1] if image.mode == "LA" else values[..., :3]
        if (colour != colour[..., :1]).any():
            raise DataError("mask_value", "Colours where class numbers are expected; see masks.kind.", step="mask")
        values = colour[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "biu" or values.min() < 0 or values.max() > 255:
        raise DataError("mask_value", f"Pixels of the kind {image.mode!r} are no class numbers.", step="mask")
    return values.astype(np.uint8)


def _look_up(numbers: NDArray[np.uint8], spec: Masks) -> NDArray[np.uint8]:
    values = spec.values or dict(enumerate(spec.classes))
    table = np.full(256, 255, np.uint8)
    known = np.zeros(256, bool)
    for number, name in values.items():
        table[number], known[number] = spec.classes.index(name), True
    unknown = np.flatnonzero(np.bincount(numbers.ravel(), minlength=256).astype(bool) & ~known)
    if unknown.size and spec.other == "background":
        table[unknown] = 0
    elif unknown.size:
        text = f"The numbers {', '.join(map(str, unknown[:8]))} are not on the card."
        raise DataError("mask_value", text, step="mask")
    return table[numbers]


def _look_up_colours(rgb: NDArray[np.uint8], spec: Masks) -> NDArray[np.uint8]:
    assert spec.colours is not None  # the card's own check
    codes = rgb.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    out = np.zeros(codes.shape, np.uint8)
    left = np.ones(codes.shape, bool)
    for colour, name in spec.colours.items():
        red, green, blue = map(int, colour.split(","))
        here = codes == red * 65536 + green * 256 + blue
        out[here] = spec.classes.index(name)
        left &= ~here
    if left.any() and spec.other == "refuse":
        red, green, blue = rgb[left][0]
        raise DataError("mask_value", f"The colour {red},{green},{blue} is not on the card.", step="mask")
    return out
