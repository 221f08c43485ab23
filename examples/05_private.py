"""A made-up patient's DICOM files into a lake, de-identified. Run: python examples/05_private.py [FOLDER]

The files are drawn here: a simulated sector on a scanner's screen, with a name burned in above it and a name, a number
and dates in the header. The example then searches the lake for all of that.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter

from ingest.deid.key import new_key
from ingest.deid.private import private_card, rules_of
from ingest.deid.review import write_page
from ingest.deid.review_run import review_files
from ingest.run import ingest
from usdata import Lake

NAME, NUMBER, BORN, DAY = "Quennerstedt^Annabel", "4711081500", "19610523", "20240229"
ROWS, COLUMNS = 480, 640
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"


def screen(seed: int) -> np.ndarray:
    """A linear probe's picture, (480, 640) uint8: speckle in a rectangle, and a banner that names the patient."""
    rng = np.random.default_rng(seed)
    real, imaginary = (gaussian_filter(rng.normal(size=(ROWS, COLUMNS)), 1.5) for _ in range(2))
    echo = np.hypot(real, imaginary)  # its grain is speckle: Rayleigh distributed
    depth, across = np.linspace(0, 1, ROWS)[:, None], np.linspace(0, 1, COLUMNS)
    tissue = 80 + 35 * np.sin(9 * depth + 2 * across + seed) - 20 * depth
    grey = tissue + 20 * np.log(echo / echo.mean())  # scanners show the logarithm,
    grey = np.clip(gaussian_filter(grey, 1.0), 6, 255)  # and interpolate it onto the screen
    picture = np.zeros((ROWS, COLUMNS), np.uint8)
    box = (slice(70, 440), slice(120, 520))
    picture[box] = grey[box]
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((8, 8), f"{NAME.replace('^', ' ')}  {NUMBER}  General Hospital", fill=255, font_size=20)
    return np.array(image)


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    """An ultrasound picture as a scanner exports it."""
    data, meta, region = Dataset(), FileMetaDataset(), Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.StudyInstanceUID = ULTRASOUND, generate_uid(), generate_uid()
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = NAME, NUMBER, BORN, "F"
    data.StudyDate, data.Modality, data.Manufacturer = DAY, "US", "GE Healthcare"
    data.StudyDescription = f"Thyroid, referred by Dr. {NAME.partition('^')[0]}"
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 120, 70
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 519, 439  # the last pixel inside
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # centimetres
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.01
    data.SequenceOfUltrasoundRegions = [region]
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PixelData = pixels.tobytes()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def main() -> None:
    """The whole example."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    scans = folder / "scans"
    for number in range(6):
        write_dicom(scans / NAME / f"IM{number}.dcm", screen(number))
    key, area = folder / "site_a.key", folder / "area"
    if not key.exists():
        new_key(key)

    # usdata ingest private --from scans --name site_a --organ thyroid --key-file site_a.key --lake lake
    card = private_card("site_a", organ="thyroid")
    rules = rules_of(card, key, source=scans, area=area)
    lake = Lake.create(folder / "lake")
    report = ingest(card, scans, lake, rules=rules)
    print(f"{report.counts.items} files: {report.counts.samples} images, not taken: {report.reasons or 'none'}")
    columns = "sample_id, patient, study_date, sex, age, manufacturer, pixel_mm_x, mask_source"
    print(lake.sql(f"select {columns} from samples limit 1").to_pylist())

    # usdata deid-review --from scans --name site_a --key-file site_a.key
    seen = review_files(card, scans, rules)
    print(f"Look at it: {write_page(seen.review, area / 'site_a' / 'review', scans)}")

    written = b"".join(path.read_bytes() for path in sorted(lake.root.rglob("*")) if path.is_file()).lower()
    secrets = (*NAME.split("^"), NUMBER, BORN, DAY, "General Hospital")
    found = [word for word in secrets if word.lower().encode() in written]
    print(f"Found in the lake: {found or 'nothing of the patient'}")
    sys.exit(1 if found or not report.counts.samples else 0)


if __name__ == "__main__":  # worker processes import this file anew
    main()
