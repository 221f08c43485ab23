"""Data sets that a program draws instead of reading: the embedded `phantom`."""

import xxhash

from ingest import phantom
from ingest.card import Card
from ingest.layout import Item, Listing
from ingest.scan import Source, sample_id
from usdata.errors import CardError

DEFAULT_COUNT = 1000
DRAWING = 1  # raise it when `ingest.phantom` draws the same spec otherwise: its images are then other sources


def sources(card: Card, count: int | None) -> tuple[Listing, list[Source]]:
    """The items of a generated data set. A drawing's description takes the place of a source file's bytes.

    Args:
        count: number of images; DEFAULT_COUNT if None.

    Raises:
        CardError: the card names a generator that does not exist.
        UsdataError: the count is not positive.
    """
    if card.generator != "phantom":
        raise CardError(f"No generator named {card.generator!r}.", dataset=card.name, step="list")
    found = []
    for spec in phantom.plan(DEFAULT_COUNT if count is None else count):
        state = xxhash.xxh3_128(f"{DRAWING} {spec!r}".encode())
        item = Item(path=spec.source_id, kind="image", organ=spec.organ, fields={}, masks=())
        found.append(Source(item, state.hexdigest(), (), (0,), (sample_id(card.name, state, 0),), recipe=spec))
    found.sort(key=lambda source: source.item.path)
    items = [source.item for source in found]
    return Listing(items=items, problems=[], ignored=0, notes=[], files=len(items)), found
