"""Which pixels of an item are scan area, or a refusal: the decision of anonymization.md section 6, steps 2 to 4.

Read `find_area` first. Candidate A is what the header states (`regions`), candidate B what the pixels show (`sector`);
what is kept is both, a little smaller. Nothing is kept because of a statement alone, except by a reviewed template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.deid.device import Device, Region
from ingest.deid.reasons import Reason, Refusal
from ingest.deid.regions import LEAST_SIDE, Stated, check_regions
from ingest.deid.sector import fit_sector, steady
from ingest.deid.summary import Summary, summarise
from ingest.deid.templates import Kind, Template, Templates

__all__ = ["ScanArea", "Source", "Summary", "find_area", "summarise"]

EROSION, EROSION_LOSSY = 2, 3  # pixels; ours: 3 loses more than 3 % of a small sector; a lossy edge is less sure
LEAST_SHARE = 0.025  # of the picture that the kept area must cover; ours

Source = Literal["regions+fit", "fit", "template", "template+fit"]


@dataclass(frozen=True, slots=True, eq=False)
class ScanArea:
    """What is kept of every frame. `box` is x0, y0, x1, y1 of the mask, x1 and y1 one past its last pixel."""

    mask: NDArray[np.bool_]  # (H, W)
    box: tuple[int, int, int, int]
    source: Source  # what has decided
    score: float  # intersection over union of the fitted shape and the echo; 0 if a template alone decided
    kind: Kind


def find_area(summary: Summary, regions: Sequence[Region], device: Device, templates: Templates) -> ScanArea:
    """The scan area of an item: the header's regions and the fit of the pixels, where both agree, less 2 px
    (3 px where lossy compression rings around the sector).

    Without believable regions a template and the fit, or the fit alone; without a fit only a template, of this device.

    Args:
        summary: of the item's frames.
        regions: of its header, unchecked; none for other files than DICOM.
        device: of its header.
        templates: those in force.

    Raises:
        Refusal: NO_SCAN_AREA if it cannot be shown; AREA_DIFFERS if it is not the same in all frames.
    """
    if min(summary.shape) < LEAST_SIDE:
        raise Refusal(Reason.NO_SCAN_AREA, "pixels")
    stated = check_regions(regions, summary.shape)
    if stated.only_other:
        raise Refusal(Reason.NO_SCAN_AREA, "pixels")
    template = templates.find(device, summary.shape)
    allowed = _allowed(stated, template if stated.area is None else None)
    sector = fit_sector(summary, allowed, stated.area is not None or template is not None)
    if sector is None:
        if template is None or template.manufacturer is None:  # of no device: any picture of that size would pass
            raise Refusal(Reason.NO_SCAN_AREA, "pixels")
        kept = template.mask() if allowed is None else template.mask() & allowed
        return _area(kept, "template", 0.0, template.kind, EROSION)
    if not steady(summary, sector.mask):
        raise Refusal(Reason.AREA_DIFFERS, "pixels")
    kept = sector.mask if allowed is None else sector.mask & allowed
    erosion = EROSION_LOSSY if sector.lossy else EROSION
    return _area(kept, _source(stated, template), sector.score, sector.kind, erosion)


def _allowed(stated: Stated, template: Template | None) -> NDArray[np.bool_] | None:
    """Where scan area may be at all, before looking at a pixel; None is everywhere."""
    if stated.area is not None:
        return stated.area
    allowed = None if template is None else template.mask()
    if stated.barred is None:
        return allowed
    return ~stated.barred if allowed is None else allowed & ~stated.barred


def _source(stated: Stated, template: Template | None) -> Source:
    if stated.area is not None:
        return "regions+fit"
    return "fit" if template is None else "template+fit"


def _area(kept: NDArray[np.bool_], source: Source, score: float, kind: Kind, erosion: int) -> ScanArea:
    """The area after erosion. The picture's own border does not erode: nothing lies behind it."""
    kernel = np.ones((2 * erosion + 1, 2 * erosion + 1), np.uint8)
    eroded = cv2.erode(kept.view(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    mask = eroded.view(np.bool_)
    x, y, width, height = cv2.boundingRect(eroded)
    if np.count_nonzero(mask) < LEAST_SHARE * mask.size or min(width, height) < LEAST_SIDE - 2 * erosion:
        raise Refusal(Reason.NO_SCAN_AREA, "pixels")
    return ScanArea(mask, (x, y, x + width, y + height), source, round(score, 4), kind)
