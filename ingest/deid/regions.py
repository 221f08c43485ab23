"""What a header says about where the image lies, after checking: candidate A of the scan area.

SequenceOfUltrasoundRegions (0018,6011) is optional and often stale: copies that were resized keep the numbers of the
old size. So a statement is used only if it can be true of the picture at hand, and it can only narrow what is kept.
Source: anonymization.md section 6, step 2; PS3.3 C.8.5.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.deid.device import Region

LEAST_SHARE, MOST_SHARE = 0.05, 0.98  # of the picture's area
LEAST_SIDE = 64  # pixels
IMAGE_TYPES = (1, 2)  # tissue, colour flow: with spatial format 1 the only regions that hold an image we keep


@dataclass(frozen=True, slots=True, eq=False)
class Stated:
    """What the header's regions come to. `only_other` tells of a picture without any 2D image: M-mode or a spectrum."""

    area: NDArray[np.bool_] | None  # (H, W), candidate A; None: absent
    barred: NDArray[np.bool_] | None  # (H, W), where the header says that something else is; None: nowhere
    only_other: bool


def check_regions(regions: Sequence[Region], shape: tuple[int, int]) -> Stated:
    """Candidate A: the union of the 2D regions that pass validation, less what other regions claim.

    A 2D region has spatial format 1 and data type 1 or 2. It passes if min < max, it lies in the picture, covers 5 % to
    98 % of it and is at least 64 px a side. Choices of ours:

    - a region, of whatever type, that ends more than 1 px beyond the picture shows that the numbers belong to another
      size: none of the file's regions is believed then. 1 px is forgiven, and cut off, because some writers give the
      corner outside of the region where the standard wants the one inside;
    - a 2D region that fails otherwise counts alone as absent; a colour box inside a B-mode region, or two images side
      by side, are a union;
    - every other believable region (M-mode, spectrum, ECG, grey bar, graphics) is barred, from A as from the whole
      picture, even where it overlaps a 2D region: better a notch in the image than a graphic in the lake.

    Args:
        regions: as read from the header; none is normal.
        shape: (H, W) of the picture.
    """
    height, width = shape
    if any(_beyond(region, shape) for region in regions):
        return Stated(None, None, False)
    area = np.zeros(shape, np.bool_)
    barred = np.zeros(shape, np.bool_)
    stated = False
    for region in regions:
        if region.x0 >= region.x1 or region.y0 >= region.y1:
            continue
        window = (slice(region.y0, min(region.y1, height)), slice(region.x0, min(region.x1, width)))
        if not _is_image(region):
            barred[window] = True
        elif _plausible(region, shape):
            area[window] = stated = True
    others = any(region.spatial_format in (2, 3) for region in regions)
    images = any(_is_image(region) for region in regions)
    return Stated(
        area=area & ~barred if stated else None,
        barred=barred if barred.any() else None,
        only_other=others and not images,
    )


def _is_image(region: Region) -> bool:
    return region.spatial_format == 1 and region.data_type in IMAGE_TYPES


def _beyond(region: Region, shape: tuple[int, int]) -> bool:
    return region.x0 < 0 or region.y0 < 0 or region.x1 > shape[1] + 1 or region.y1 > shape[0] + 1


def _plausible(region: Region, shape: tuple[int, int]) -> bool:
    height, width = min(region.y1, shape[0]) - region.y0, min(region.x1, shape[1]) - region.x0
    share = height * width / (shape[0] * shape[1])
    return min(height, width) >= LEAST_SIDE and LEAST_SHARE <= share <= MOST_SHARE
