"""Is a file DICOM? Asked of every file before anything else, because DICOM may name a patient."""

import struct
from pathlib import Path

from usdata.errors import CardError

_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_HEAD = 140


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content or by the name DICOMDIR. A file that can't be read is not."""
    if path.name.upper() == "DICOMDIR":
        return True
    try:
        with path.open("rb") as file:
            return begins_dicom(file.read(_HEAD))
    except OSError:
        return False


def begins_dicom(head: bytes) -> bool:
    """Whether the first 140 bytes of a file begin DICOM: with `DICM` at byte 128, or with a bare data set.

    Bare data sets (no preamble, as old scanners and network dumps write them) start with an element of group 0002 or
    0008, in either byte order, whose representation or length makes sense.
    """
    if head[128:132] == b"DICM" or head[:4] == b"DICM":
        return True
    if len(head) < 8:
        return False
    for order in "<>":
        group, element, length = struct.unpack_from(f"{order}HHI", head)
        if group not in (0x0002, 0x0008):
            continue
        if head[4:6] in _VRS:
            return True
        # implicit representation: the first element is the group's length (4 bytes) or a short text
        if element == 0 and length == 4:
            return True
        if group == 0x0008 and element in (0x0001, 0x0005, 0x0008, 0x0012, 0x0016, 0x0018, 0x0020) and length < 256:
            return True
    return False


def refuse_dicom(dataset: str) -> CardError:
    """The error for DICOM that a card does not expect: it may name a patient, in its very path."""
    return CardError(
        "The source holds DICOM files. They can name a patient, and the card does not say that they were published; "
        "nothing was read into the lake.",
        dataset=dataset,
        step="scan",
        hint="Of a hospital:  usdata ingest private --from DIR --name SITE --key-file KEY      "
        "Published by their owner: write  dicom: published  into the card.",
    )
