"""A made-up hospital's folder: screens with names burned in, DICOM and exports, and what else lies about there."""

from pathlib import Path
from typing import Any

import numpy as np
from fakes.dicom_files import write_dicom
from fakes.scans import Screen, draw_screen
from PIL import Image
from pydicom.dataset import Dataset

from ingest.deid.key import new_key

PATIENT = {"PatientName": "Mustermann^Erika", "PatientID": "7654321", "PatientBirthDate": "19470512"}
STUDY = {"StudyDate": "20210304", "AccessionNumber": "ACC99887", "InstitutionName": "Klinikum Musterstadt"}
DEVICE = {"Manufacturer": "Philips Medical Systems", "ManufacturerModelName": "EPIQ 7C"}
SECRETS = ("mustermann", "erika", "7654321", "19470512", "20210304", "2021-03-04", "acc99887", "musterstadt")


def make_key(folder: Path) -> Path:
    """A new key file below `folder`."""
    path = folder / "site.key"
    new_key(path)
    return path


def add_regions(dataset: Dataset, screen: Screen) -> None:
    """SequenceOfUltrasoundRegions as the screen has them, 0.2 mm a pixel."""
    items = []
    for region in screen.regions:
        item = Dataset()
        item.RegionLocationMinX0, item.RegionLocationMinY0 = region.x0, region.y0
        item.RegionLocationMaxX1, item.RegionLocationMaxY1 = region.x1 - 1, region.y1 - 1
        item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = region.spatial_format, region.data_type, 0
        item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
        item.PhysicalDeltaX = item.PhysicalDeltaY = 0.02
        items.append(item)
    dataset.SequenceOfUltrasoundRegions = items


def write_screen(path: Path, screen: Screen, uid: int = 1, regions: bool = True, **tags: Any) -> Path:
    """A screen as DICOM with a patient in its header."""

    def change(dataset: Dataset) -> None:
        if regions:
            add_regions(dataset, screen)
        dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{uid}"

    frames = screen.frames if len(screen.frames) > 1 else screen.frames[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_dicom(path, frames, change=change, **PATIENT | STUDY | DEVICE | tags)


def write_private_folder(root: Path) -> Path:
    """Two stills and a cine of one patient, a still of another, an exported PNG, and three files that must stay out.

    In all 8 files: 5 get in (4 stills, 1 cine of 6 frames: 10 images), 3 do not: a letter, a picture without a sector,
    a DICOM file cut in two.
    """
    root.mkdir(parents=True)
    small = (300, 400)
    banner = ("MUSTERMANN^ERIKA 7654321", "Klinikum Musterstadt 2021-03-04")
    for number, kind in enumerate(("curved", "linear")):
        screen = draw_screen(kind, number, small, banner=banner, colour=False)
        write_screen(root / f"Mustermann_Erika/{number}.dcm", screen, number, BodyPartExamined="LIVER")
    cine = draw_screen("phased", 3, small, frames=6, banner=banner, colour=False)
    write_screen(root / "Mustermann_Erika/cine.dcm", cine, 7, FrameTime="40", BodyPartExamined="HEART")
    other = draw_screen("curved", 5, small, banner=("OTHER^MAN 1112223",), colour=False)
    write_screen(root / "Other/1.dcm", other, 9, PatientID="1112223", PatientName="Other^Man", regions=False)
    export = draw_screen("curved", 6, small, banner=banner, colour=True)
    Image.fromarray(export.frames[0]).save(root / "Mustermann_Erika/export.png")
    (root / "letter of Erika Mustermann.txt").write_text("Dear Mrs Mustermann, ...")
    grey = np.full((300, 400), 90, np.uint8)
    Image.fromarray(grey).save(root / "Other/nothing.png")
    whole = (root / "Other/1.dcm").read_bytes()
    (root / "Other/cut.dcm").write_bytes(whole[: len(whole) // 2])
    return root
