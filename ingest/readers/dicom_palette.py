"""Colour palettes (PS3.3 C.7.6.3.1.5, segmented ones C.7.9.2) as a table from container to RGB."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.deid.reasons import Reason
from ingest.readers.dicom_source import refused

_DESCRIPTORS = (0x00281101, 0x00281102, 0x00281103)
_PLAIN = (0x00281201, 0x00281202, 0x00281203)
_SEGMENTED = (0x00281221, 0x00281222, 0x00281223)


def palette_table(elements: Any, values: NDArray[np.int32], signed: bool, little: bool) -> NDArray[np.uint8]:
    """RGB of every container, uint8 (n, 3).

    Args:
        elements: tag -> raw element of the data set.
        values: int32 (n,), the sample that each container holds. Those below the first mapped value get the first
            entry, those beyond the last the last (C.7.6.3.1.5).
        signed: how the first mapped value is to be read.
        little: byte order of the data set.

    Raises:
        Refusal: photometric, when the palette is missing, cut, or differs between its colours.
    """
    descriptors = {_descriptor(elements, tag, signed) for tag in _DESCRIPTORS}
    if len(descriptors) != 1:
        raise refused(Reason.PHOTOMETRIC)
    entries, first, bits = descriptors.pop()
    tags = _PLAIN if _PLAIN[0] in elements else _SEGMENTED
    columns = [_column(elements, tag, entries, bits, little, tag in _SEGMENTED) for tag in tags]
    table = np.stack(columns, axis=1)
    if table.max() > 255:
        table >>= 8
    return table.astype(np.uint8)[np.clip(values - first, 0, entries - 1)]


def _descriptor(elements: Any, tag: int, signed: bool) -> tuple[int, int, int]:
    """(number of entries, first mapped value, bits of an entry)."""
    raw = elements.get(tag)
    value = getattr(raw, "value", None)
    if raw is None or not isinstance(value, bytes) or len(value) != 6:
        raise refused(Reason.PHOTOMETRIC)
    order = "<" if raw.is_little_endian else ">"
    entries, first, bits = np.frombuffer(value, f"{order}u2").tolist()
    if bits not in (8, 16):
        raise refused(Reason.PHOTOMETRIC)
    return entries or 1 << 16, first - (1 << 16) if signed and first >= 1 << 15 else first, bits


def _column(elements: Any, tag: int, entries: int, bits: int, little: bool, segmented: bool) -> NDArray[np.uint16]:
    """The entries of one colour, uint16 (entries,)."""
    raw = elements.get(tag)
    value = getattr(raw, "value", None)
    if raw is None or not isinstance(value, bytes):
        raise refused(Reason.PHOTOMETRIC)
    little = bool(raw.is_little_endian)
    wide = bits == 16 if segmented else len(value) == 2 * entries
    if wide:
        if len(value) % 2:
            raise refused(Reason.PHOTOMETRIC)
        numbers = np.frombuffer(value, "<u2" if little else ">u2").astype(np.uint16)
    else:  # 8-bit entries, two to a word
        swapped = not little and raw.VR != "OB" and len(value) % 2 == 0
        pairs = np.frombuffer(value, np.uint8)
        numbers = (pairs.view("u2").byteswap().view(np.uint8) if swapped else pairs).astype(np.uint16)
    if segmented:
        numbers = _expanded(numbers.tolist(), entries, 2 if wide else 1)
    elif len(numbers) == entries + 1 and not wide:  # padded to an even length
        numbers = numbers[:entries]
    if len(numbers) != entries:
        raise refused(Reason.PHOTOMETRIC)
    return numbers


def _expanded(codes: list[int], entries: int, size: int) -> NDArray[np.uint16]:
    """The entries that segments stand for; `size`: bytes of a code."""
    out: list[int] = []
    position = 0
    while position + 1 < len(codes) and len(out) < entries:
        operation, length = codes[position : position + 2]
        position += 2
        if operation == 2:  # repeat `length` segments from a place (in bytes) of the table
            words = codes[position : position + 4 // size]
            place = sum(word << 8 * size * number for number, word in enumerate(words)) // size
            position += 4 // size
            for _ in range(length):
                if place + 1 >= len(codes) or len(out) > entries:
                    raise refused(Reason.PHOTOMETRIC)
                place = _segment(codes, place + 2, codes[place], codes[place + 1], out)
        else:
            position = _segment(codes, position, operation, length, out)
    return np.array(out, np.uint16)


def _segment(codes: list[int], position: int, operation: int, length: int, out: list[int]) -> int:
    """Append one discrete (0) or linear (1) segment to `out`; returns where the next one begins."""
    if operation == 0 and 0 < length <= len(codes) - position:
        out += codes[position : position + length]
        return position + length
    if operation == 1 and out and length and position < len(codes):
        steps = np.linspace(out[-1], codes[position], length + 1)[1:]
        out += [int(value) for value in np.around(steps)]
        return position + 1
    raise refused(Reason.PHOTOMETRIC)
