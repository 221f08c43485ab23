"""What a person sees of one item in a review."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.deid.device import Device
from ingest.deid.reasons import Reason, State
from ingest.preprocess import Box

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Decision:
    """One item as a person reviews it, on the private side only: it holds the picture as it came."""

    key: str  # the item's keyed id, 32 hex digits
    state: State
    reason: Reason | None
    device: Device
    shape: tuple[int, int] | None  # height, width
    before: Pixels | None  # the first frame as decoded, or the one with text; None if none can be decoded
    mask: NDArray[np.bool_] | None
    mask_source: str | None
    mask_score: float | None
    text_box: Box | None
    after: Pixels | None  # (256, 256), as it would be stored
    row: dict[str, Any]  # the columns as they would be stored
