"""What the parent takes from an isolated child: known columns with closed values, whatever the child says.

The child rebuilds every value from a table or a check. But it reads hostile files, so its word is not trusted: a text
that is no listed word, no keyed hash and no day does not pass.
"""

import re
from collections.abc import Mapping
from typing import Any

from ingest.card import Card
from ingest.deid.vocabulary import stored_words
from usdata.schema import SAMPLES

CLEANED = (  # columns that cleaning decides; all others stand before
    *("width", "height", "crop_x0", "crop_y0", "crop_x1", "crop_y1", "mode"),
    *("deid_version", "mask_source", "mask_score", "burned_in"),
)
_HASH = re.compile(r"[0-9a-f]{32}")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MASKS = ("regions+fit", "fit", "template", "template+fit")
_OURS = frozenset({*_MASKS, "no", "unknown", "male", "female", "other"})


class Rows:
    """The values that may come from a child for the files of a card."""

    def __init__(self, card: Card) -> None:
        self._words = frozenset(stored_words()) | card.words() | _OURS

    def check(self, row: Mapping[str, Any]) -> None:
        """See that every column and value may be stored.

        Raises:
            ValueError: one may not; the message does not show it.
        """
        for name, value in row.items():
            if name not in SAMPLES.names:
                raise ValueError("a column that the catalog does not have")
            if value is None or isinstance(value, bool | int | float):
                continue
            if not isinstance(value, str) or not (
                value in self._words or _HASH.fullmatch(value) or (name == "study_date" and _DAY.fullmatch(value))
            ):
                raise ValueError("a text that is in no table")
