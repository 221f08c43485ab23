"""Masks as COCO objects: run-length codes, areas and boxes of a class, or of each connected piece of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Per = Literal["component", "class"]


@dataclass(frozen=True, slots=True)
class MaskObject:
    """One object of a mask."""

    value: int  # class index in the mask
    counts: list[int]  # lengths of the runs in column-major order, background first (0 if an object begins there)
    area: int  # pixels
    box: tuple[int, int, int, int]  # x, y of the first pixel, width, height


def objects_of(mask: NDArray[np.uint8], per: Per = "component") -> list[MaskObject]:
    """The objects of a mask, by class and then by their first pixel in column-major order; index 0 is no object.

    Together they cover every pixel of the mask that is not 0, and no pixel twice.

    Args:
        mask: (H, W), class indices.
        per: `component`: pixels of one class that touch, diagonally too, are one object; `class`: all of a class are.
    """
    labels = mask if per == "class" else _components(mask)
    return sorted(_encode(mask, labels), key=lambda one: (one.value, one.counts[0]))


def _components(mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Each connected piece of each class by a number of its own, from 1."""
    labels, known = np.zeros(mask.shape, np.int32), 0
    for value in np.flatnonzero(np.bincount(mask.ravel())[1:]) + 1:
        count, pieces = cv2.connectedComponents((mask == value).astype(np.uint8), connectivity=8)
        np.copyto(labels, pieces + known, where=pieces > 0)
        known += count - 1
    return labels


def _encode(mask: NDArray[np.uint8], labels: NDArray[np.integer]) -> Iterator[MaskObject]:
    """All objects from one pass over the image: a maximal run of equal labels is a run of exactly one object."""
    flat, height = labels.ravel(order="F"), labels.shape[0]
    start = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1))  # the first pixel always starts a run
    end = np.append(start[1:], flat.size)
    inside = np.flatnonzero(flat[start])
    inside = inside[np.argsort(flat[start[inside]], kind="stable")]  # by label, each one's runs in their order
    start, end = start[inside], end[inside]
    for runs in np.split(np.arange(len(inside)), np.flatnonzero(np.diff(flat[start])) + 1):
        if len(runs):
            s, e = start[runs], end[runs]
            value = int(mask[s[0] % height, s[0] // height])
            yield MaskObject(value, _counts(s, e, flat.size), int((e - s).sum()), _box(s, e, height))


def _counts(start: NDArray[np.intp], end: NDArray[np.intp], size: int) -> list[int]:
    edges = np.stack([start, end], 1).ravel()
    counts = np.diff(edges, prepend=0, append=size)
    return (counts if counts[-1] else counts[:-1]).tolist()


def _box(start: NDArray[np.intp], end: NDArray[np.intp], height: int) -> tuple[int, int, int, int]:
    first, last = start // height, (end - 1) // height
    x, width = int(first[0]), int(last[-1] - first[0]) + 1
    if (first != last).any():  # a run that goes on in the next column touches the bottom and the top
        return x, 0, width, height
    y = int((start % height).min())
    return x, y, width, int(((end - 1) % height).max()) + 1 - y
