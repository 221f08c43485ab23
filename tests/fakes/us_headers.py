"""Small ultrasound DICOM headers in memory, with elements as a file has them: undecoded bytes under any VR."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydicom import config
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

STUDY = "1.2.826.0.1.3680043.8.498.1"
CLIP = "1.2.826.0.1.3680043.8.498.2"


def raw(dataset: Dataset, tag: int, vr: str | None, value: bytes, little: bool = True) -> None:
    """Put undecoded bytes under a VR; None is implicit VR."""
    value += b" " * (len(value) % 2)
    dataset[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, vr is None, little, True)


def header(**fields: Any) -> Dataset:
    """A valid header of one patient; `fields` are set by keyword, None deletes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    start = {"PatientID": "4711-0815", "StudyInstanceUID": STUDY, "SOPInstanceUID": CLIP, "StudyDate": "20200229"}
    with config.disable_value_validation():
        for name, value in {**start, **fields}.items():
            if value is not None:
                setattr(dataset, name, value)
    return dataset


def region(**fields: Any) -> Dataset:
    """A two-dimensional region of tissue, 501 x 401 pixels of 0.2 mm."""
    item = Dataset()
    start: Mapping[str, Any] = {
        **{"RegionSpatialFormat": 1, "RegionDataType": 1, "RegionFlags": 0},
        **{
            "RegionLocationMinX0": 100,
            "RegionLocationMinY0": 50,
            "RegionLocationMaxX1": 600,
            "RegionLocationMaxY1": 450,
        },
        **{"PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3, "PhysicalDeltaX": 0.02, "PhysicalDeltaY": 0.02},
    }
    for name, value in {**start, **fields}.items():
        if value is not None:
            setattr(item, name, value)
    return item


def code(value: str, scheme: str, meaning: str = "", **more: Any) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    for name, content in more.items():
        setattr(item, name, content)
    return item


def nested(depth: int, leaf: Dataset, tag: int = 0x00081115) -> Dataset:
    """A data set whose sequence holds one that holds one ... `leaf`, `depth` levels down."""
    for _ in range(depth):
        outer = Dataset()
        outer[tag] = DataElement(tag, "SQ", Sequence([leaf]))
        leaf = outer
    return leaf


def saved(dataset: Dataset, path: Path) -> Path:
    """Write it as a file: explicit VR, little endian."""
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path
