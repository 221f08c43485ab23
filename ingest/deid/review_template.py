"""From the accepted areas of one device to the draft of a template, for the person who reviews them."""

import json
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from ingest.deid.area import ScanArea
from ingest.deid.device import Device
from ingest.deid.templates import LEAST_SEEN, Kind, propose
from usdata.errors import ConfigError

HELD = 2 * LEAST_SEEN  # areas of a device that are kept for it. Ours
_COMMON = 0.9  # least share of the areas, on average, that the draft keeps: else they are not of one layout. Ours
_FULL = 0.97  # share of its own box that a rectangle fills. Ours
_STRAIGHT = 0.01  # of the outline's length: how far a trapezoid's sides may stray from straight lines. Ours


@dataclass(frozen=True, slots=True)
class Draft:
    """A template file for a person to sign, and the area that it would keep, (H, W) bool."""

    text: str
    mask: NDArray[np.bool_]


class Areas:
    """The masks of one device at one picture size, one bit per pixel."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """`shape`: height and width of the pictures."""
        self.shape = shape
        self._packed: list[NDArray[np.uint8]] = []

    def __len__(self) -> int:
        return len(self._packed)

    def add(self, mask: NDArray[np.bool_]) -> None:
        """Keep a mask, at most `HELD` of them; one that was scaled down for the page is scaled up again."""
        if len(self._packed) >= HELD:
            return
        if mask.shape != self.shape:
            size = (self.shape[1], self.shape[0])
            mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        self._packed.append(np.packbits(mask))

    def masks(self) -> Iterator[NDArray[np.bool_]]:
        """The masks, (H, W) bool each."""
        for packed in self._packed:
            yield np.unpackbits(packed, count=self.shape[0] * self.shape[1]).reshape(self.shape).astype(bool)


def draft(devices: Set[Device], areas: Areas) -> Draft | None:
    """A draft, or None: too few pictures, an unknown device, or areas that do not agree.

    Args:
        devices: of the pictures; equal but for the software. Where that differs the draft is for any.
    """
    if len(areas) < LEAST_SEEN:
        return None
    device, software = next(iter(devices)), {one.software for one in devices}
    known = not {device.manufacturer, device.model} & {"other", "unknown"}
    if not known or (device.manufacturer is None) != (device.model is None):
        return None
    chosen = Device(device.manufacturer, device.model, software.pop() if len(software) == 1 else None)
    try:
        found = propose(chosen, areas.shape, (_area(mask) for mask in areas.masks()))
    except ConfigError:  # they have nothing in common
        return None
    canvas = np.zeros(areas.shape, np.uint8)
    for polygon in found["templates"][0]["polygons"]:
        cv2.fillPoly(canvas, [np.array(polygon, np.int32)], 1)
    mask = canvas > 0
    kept = [np.count_nonzero(mask & one) / np.count_nonzero(one) for one in areas.masks()]
    if float(np.mean(kept)) < _COMMON:
        return None
    return Draft(_as_yaml(found), mask)


def _as_yaml(found: dict[str, Any]) -> str:
    """A template file with each polygon on one line."""
    entry = found["templates"][0]
    lines = yaml.safe_dump({**entry, "polygons": "POLYGONS"}, sort_keys=False, width=110).splitlines()
    polygons = f"polygons: {json.dumps(entry['polygons'])}"
    lines = [polygons if line == "polygons: POLYGONS" else line for line in lines]
    return "templates:\n  - " + "\n    ".join(lines) + "\n"


def _area(mask: NDArray[np.bool_]) -> ScanArea:
    return ScanArea(mask, (0, 0, mask.shape[1], mask.shape[0]), "fit", 0.0, kind_of(mask))


def kind_of(mask: NDArray[np.bool_]) -> Kind:
    """The shape of a mask, (H, W) bool, as a template names it; a word for the reviewer, who may change it."""
    outlines = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    hull = cv2.convexHull(max(outlines, key=cv2.contourArea))
    x0, y0, width, height = cv2.boundingRect(hull)
    if mask[y0 : y0 + height, x0 : x0 + width].mean() >= _FULL:
        return "rectangle"
    corners = cv2.approxPolyDP(hull, _STRAIGHT * cv2.arcLength(hull, True), True)
    return "trapezoid" if len(corners) <= 4 else "sector"
