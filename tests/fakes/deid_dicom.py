"""DICOM files to plant secrets in: an ultrasound picture that is well made, and a draft that lets anything be written.

pydicom refuses to write what is not valid; real scanners do not. A `Draft` takes raw elements (any bytes under any
representation), any preamble, any file meta group and any bytes behind the data set.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from fakes.deid_secrets import Secret, digits, number, person, uid
from fakes.scans import Screen, draw_screen
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

SINGLE, MULTI = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
_TEXTS = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"))
SMALL = (240, 320)  # pixels, (H, W) of the screens behind header secrets


@cache
def screen(kind: str = "curved", seed: int = 1, size: tuple[int, int] = SMALL, frames: int = 1) -> Screen:
    """A grey scanner screen whose banner names nobody."""
    return draw_screen(kind, seed, size, frames, banner=("US", "2D"), colour=False, background=0, gain=1.0, flank=0.0)


@dataclass(slots=True)
class Draft:
    """A DICOM file on its way to the disk."""

    data: Dataset
    meta: FileMetaDataset
    preamble: bytes = bytes(128)
    tail: bytes = b""
    secrets: list[Secret] = field(default_factory=list)
    base: dict[str, Secret] = field(default_factory=dict)  # the good file's own identity, by keyword

    def planted(self) -> list[Secret]:
        """All secrets in the file: those of its places, and what they have left of its own identity."""
        own = [s for keyword, s in self.base.items() if s.texts[0] in str(self.data.get_item(keyword))]
        return [*self.secrets, *own]

    def write(self, path: Path) -> None:
        """Write it as it stands, valid or not."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.data.file_meta, self.data.preamble = self.meta, self.preamble
        syntax = UID(self.meta.TransferSyntaxUID)
        with path.open("wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that values are not valid is the point
            dcmwrite(
                file,
                self.data,
                implicit_vr=syntax == ImplicitVRLittleEndian,
                little_endian=syntax != "1.2.840.10008.1.2.2",
                force_encoding=True,
            )
            file.write(self.tail)


def raw(data: Dataset, tag: int | tuple[int, int] | str, vr: str, value: str | bytes, codec: str = "utf-8") -> None:
    """Put bytes under a tag and a representation, whatever both say; padded to an even length."""
    content = value.encode(codec) if isinstance(value, str) else value
    width = {"FD": 8, "FL": 4, "UL": 4, "SL": 4}.get(vr, 2)
    content += (b" " if vr in _TEXTS else b"\0") * (-len(content) % width)
    place: BaseTag = Tag(tag)
    data[place] = RawDataElement(place, vr, len(content), content, 0, False, True)


def item(**values: object) -> Dataset:
    """A sequence's item from keywords; texts are written raw, so that they need not be valid."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def ultrasound(
    place: str,
    pixels: NDArray[np.uint8] | None = None,
    *,
    regions: Sequence[tuple[int, int, int, int]] | None = None,
    syntax: str = ExplicitVRLittleEndian,
) -> Draft:
    """A good picture of a patient of its own; its identity is made of secrets, too.

    Args:
        place: what the secrets are named after.
        pixels: (H, W), (n, H, W), (H, W, 3) or (n, H, W, 3) uint8; None is a small drawn still.
        regions: calibrated regions (x0, y0, x1, y1), last pixel excluded; None for those of the drawn screen.
    """
    drawn = screen()
    if pixels is None:
        pixels = drawn.frames[0]
    if regions is None:
        regions = [(r.x0, r.y0, r.x1, r.y1) for r in drawn.regions]
    colour = pixels.shape[-1] == 3
    frames = pixels.shape[0] if pixels.ndim == (4 if colour else 3) else 0
    data, meta = Dataset(), FileMetaDataset()
    found: dict[str, Secret] = {}

    def planted(keyword: str, secret: Secret) -> None:
        found[keyword] = secret
        setattr(data, keyword, secret.value)

    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = MULTI if frames else SINGLE
    planted("SOPInstanceUID", uid(f"{place}/base/SOPInstanceUID"))
    planted("StudyInstanceUID", uid(f"{place}/base/StudyInstanceUID"))
    planted("SeriesInstanceUID", uid(f"{place}/base/SeriesInstanceUID"))
    planted("PatientName", person(f"{place}/base/PatientName"))
    planted("PatientID", number(f"{place}/base/PatientID", 9))
    data.StudyDate, data.StudyTime = f"2019{1 + int(digits(place, 2)) % 12:02}15", "101112"
    data.PatientSex, data.PatientAge = "F", "045Y"
    data.Modality, data.Manufacturer = "US", "GE Healthcare"
    data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    if frames:
        data.NumberOfFrames, data.FrameTime = frames, "40.0"
        data.FrameIncrementPointer = 0x00181063
    data.SequenceOfUltrasoundRegions = Items([region(*box) for box in regions])
    content = pixels.tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2)
    data["PixelData"].VR = "OB"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = UID("1.2.826.0.1.3680043.8.498.1")
    return Draft(data, meta, base=found)


def region(x0: int, y0: int, x1: int, y1: int, spatial: int = 1, kind: int = 1) -> Dataset:
    """A calibrated region; the file's own corner lies inside it."""
    return item(
        RegionSpatialFormat=spatial,
        RegionDataType=kind,
        RegionFlags=3,
        RegionLocationMinX0=x0,
        RegionLocationMinY0=y0,
        RegionLocationMaxX1=x1 - 1,
        RegionLocationMaxY1=y1 - 1,
        PhysicalUnitsXDirection=3,
        PhysicalUnitsYDirection=3,
        PhysicalDeltaX=0.02,
        PhysicalDeltaY=0.02,
    )


def deep(data: Dataset, depth: int, inner: Dataset) -> None:
    """Hang `inner` into `data` at a depth, below standard sequences that no table of attributes has as a path."""
    chain = (
        "DerivationCodeSequence",
        "SourceImageSequence",
        "PurposeOfReferenceCodeSequence",
        "ReferencedSeriesSequence",
    )
    for level in range(depth):
        keyword = chain[level % 4]
        if keyword not in data:
            setattr(data, keyword, Items([Dataset()]))
        data = data[keyword].value[0]
    data.update(inner)
