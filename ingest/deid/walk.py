"""Every element of a DICOM object at any depth: what is counted as removed, and what the self-check looks for.

Source: anonymization.md H1 to H4.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from pydicom.dataset import Dataset

from ingest.deid.elements import Element, encodings_of, items_of, peek, vr_of
from ingest.deid.reasons import Reason, Refusal

DEEPEST = 64  # items within items; scanners stay below ten (ours)


class Action(StrEnum):
    """What became of an element. Everything but the first two is not carried along in any form."""

    KEPT = "kept"  # on the list and good: a word of a table or a number went on
    REPLACED = "replaced"  # a keyed pseudonym, a shifted date or an age class stands for it
    REMOVED = "removed"  # not on the list
    FAILED_CHECK = "failed_check"  # on the list, but of a wrong VR, no number, out of range or in no table
    PRIVATE_REMOVED = "private_removed"  # an odd group, at any depth, with its creator
    NESTED_REMOVED = "nested_removed"  # inside a sequence
    GRAPHICS_REMOVED = "graphics_removed"  # curves 50xx and overlays 60xx
    META_REMOVED = "meta_removed"  # file meta information, group 0002
    UNREADABLE_REMOVED = "unreadable_removed"  # a sequence that can't be parsed
    REGION_SKIPPED = "region_skipped"  # an item of the regions sequence that is none
    UNKNOWN_MANUFACTURER = "unknown_manufacturer"  # stored as `other`: vocab/devices.yaml lacks it
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_PROBE = "unknown_probe"  # of a name that vocab/probes.yaml lacks


@dataclass(frozen=True, slots=True)
class Leaf:
    """An element of the tree. Neither its value nor its tag is in its repr.

    Attributes:
        depth: 0 in the object itself, 1 in an item of a sequence, ...
        private: of an odd group, or inside a private sequence.
        encodings: Python's codecs of the text around it.
    """

    element: Element = field(repr=False)
    tag: int
    vr: str
    depth: int
    private: bool
    meta: bool
    readable: bool  # False: a sequence that can't be parsed
    encodings: tuple[str, ...]

    @property
    def graphics(self) -> bool:
        """Whether it is part of a curve or an overlay."""
        return self.tag >> 24 in (0x50, 0x60)


def walk(dataset: Dataset) -> Iterator[Leaf]:
    """All elements at all depths, file meta first, each sequence before what is in it; no value is converted.

    Raises:
        Refusal: deep_nesting.
    """
    meta = getattr(dataset, "file_meta", None)
    stack: list[tuple[Dataset, int, bool, bool, tuple[str, ...]]] = [(dataset, 0, False, False, encodings_of(dataset))]
    if isinstance(meta, Dataset):
        stack.append((meta, 0, False, True, encodings_of(dataset)))
    while stack:
        content, depth, private, in_meta, encodings = stack.pop()
        for tag in sorted(content.keys()):
            element = peek(content, tag)
            if element is None:
                continue
            hidden = private or bool((int(tag) >> 16) & 1)
            vr = vr_of(element)
            items = items_of(content, element) if vr == "SQ" else []
            yield Leaf(element, int(tag), vr, depth, hidden, in_meta, items is not None, encodings)
            if items and depth == DEEPEST:
                raise Refusal(Reason.DEEP_NESTING, step="header")
            for item in reversed(items or ()):
                stack.append((item, depth + 1, hidden, in_meta, encodings_of(item, encodings)))


def action_of(leaf: Leaf) -> Action:
    """What becomes of an element that is not on the list."""
    if not leaf.readable:
        return Action.UNREADABLE_REMOVED
    if leaf.private:
        return Action.PRIVATE_REMOVED
    if leaf.graphics:
        return Action.GRAPHICS_REMOVED
    if leaf.meta:
        return Action.META_REMOVED
    return Action.NESTED_REMOVED if leaf.depth else Action.REMOVED
