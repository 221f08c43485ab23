"""De-identification of DICOM, one core: stills and cines at 800x600, against decoding the same files alone.

Run: python benchmarks/deid.py [--stills 100] [--frames 200] [--rounds 3]

"alone" reads the header and decodes every frame with the project's own reader, in this process. "cleaned" is the whole
way of a private file in the isolated child: examine, find the scan area, look for text in every frame, cut, verify,
self-check, and hand the images back. One child is one core's worth; a run with n workers has n of them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from machine import describe, table
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fakes.scans import draw_screen

from ingest.deid.ask import Cleaners
from ingest.deid.device import Region
from ingest.deid.key import new_key
from ingest.deid.private import private_card, rules_of
from ingest.deid.reasons import Refusal
from ingest.readers import dicom

SIZE = (600, 800)
TARGETS = {"still": 25, "cine": 400}  # per second and core, uncompressed


def sector(frames: int, colour: bool) -> tuple[NDArray[np.uint8], Region]:
    """A drawn scanner screen, its sector moving, and its region; (n, 600, 800) or (n, 600, 800, 3)."""
    drawn = draw_screen("curved", 3, SIZE, frames, colour=colour, background=0, gain=1.0, flank=0.0)
    return drawn.frames, drawn.regions[0]


def write(path: Path, frames: NDArray[np.uint8], box: Region, number: int, jpeg: bool) -> None:
    """A DICOM file with a calibrated region; `number` makes its identity."""
    colour, data, meta = frames.ndim == 4, Dataset(), FileMetaDataset()
    data.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{'3.1' if len(frames) > 1 else '6.1'}"
    data.SOPInstanceUID, data.StudyInstanceUID = f"2.25.17{number:08}3", f"2.25.29{number:08}3"
    data.PatientID, data.PatientName, data.StudyDate = str(73_918_246 + number), f"Doe^Jane{number}", "20190315"
    data.Modality, data.Manufacturer, data.PatientAge = "US", "GE Healthcare", "045Y"
    data.Rows, data.Columns = SIZE
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    if len(frames) > 1:
        data.NumberOfFrames, data.FrameTime = len(frames), "33.3"
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = box.x0, box.y0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = box.x1 - 1, box.y1 - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.02
    data.SequenceOfUltrasoundRegions = Sequence([region])
    meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    if jpeg:
        data.PhotometricInterpretation = "YBR_FULL_422" if colour else "MONOCHROME2"
        streams = [
            cv2.imencode(".jpg", f[..., ::-1] if colour else f, [cv2.IMWRITE_JPEG_QUALITY, 90])[1] for f in frames
        ]
        data.PixelData = encapsulate([stream.tobytes() for stream in streams])
    else:
        data.PixelData = frames.tobytes()
    data["PixelData"].VR = "OB"
    data.file_meta = meta
    data.save_as(path, enforce_file_format=True)


def alone(paths: list[Path]) -> int:
    """Header and every frame, decoded; how many frames."""
    done = 0
    for path in paths:
        image = dicom.open_dicom(path)
        done += sum(1 for _ in dicom.read_frames(image, range(image.frames)))
    return done


def cleaned(paths: list[Path], cleaners: Cleaners) -> int:
    """The whole way; how many images may be stored."""
    done = 0
    for path in paths:
        examined = cleaners.examine(path, path.name)
        frames = range(examined.frames)
        row = {"sample_id": "bench-a1b2c3d4e5f60718", **examined.row}
        kept, _ = cleaners.clean(path, path.name, frames, dict.fromkeys(frames, row))
        done += len(kept)
    return done


def rate(work: Callable[[], int], expected: int, rounds: int) -> float:
    """Frames per second, the best of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        if work() != expected:
            raise RuntimeError("a file of the benchmark was not accepted")
        best = min(best, time.perf_counter() - start)
    return expected / best


def main() -> None:
    """Measure stills and cines, grey and colour, uncompressed and JPEG baseline, both ways in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stills", type=int, default=100, help="files with one frame")
    parser.add_argument("--frames", type=int, default=200, help="frames of a cine")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    dicom.quiet_pydicom()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        new_key(Path(name) / "bench.key")
        card = private_card("bench")
        rules = rules_of(card, Path(name) / "bench.key", area=Path(name) / "area")
        with Cleaners(card, rules, "bilinear-aa") as cleaners:
            for kind in ("still", "cine"):
                for colour in (False, True):
                    for jpeg in (False, True):
                        rows.append(measure(Path(name), kind, colour, jpeg, options, cleaners))
    print(
        f"{options.stills} stills, a cine of {options.frames} frames, 800x600, one child; {describe()}\n\n{table(rows)}"
    )


def measure(
    folder: Path, kind: str, colour: bool, jpeg: bool, options: argparse.Namespace, cleaners: Cleaners
) -> dict[str, object]:
    """One row of the table."""
    drawn, box = sector(8, colour)
    paths = []
    if kind == "still":
        for number in range(options.stills):
            paths.append(folder / f"s{number}.dcm")
            write(paths[-1], drawn[number % 8][None], box, number, jpeg)
    else:
        paths.append(folder / "cine.dcm")
        write(paths[0], drawn[np.arange(options.frames) % 8], box, 0, jpeg)
    count = options.stills if kind == "still" else options.frames
    plain = rate(lambda: alone(paths), count, options.rounds)
    try:
        whole, refused = rate(lambda: cleaned(paths, cleaners), count, options.rounds), ""
    except Refusal as refusal:  # the drawn screen was not accepted: there is no rate to speak of
        whole, refused = float("nan"), f"refused: {refusal.reason}"
    for path in paths:
        path.unlink()
    target = TARGETS[kind] if not jpeg else None
    reached = "-" if not target else "reached" if whole >= target else f"missed by {1 - whole / target:.0%}"
    return {
        "files": f"{kind}, {'RGB' if colour else 'grey'}, {'JPEG baseline' if jpeg else 'uncompressed'}",
        "decode alone, frames/s": f"{plain:,.0f}",
        "cleaned, frames/s": refused or f"{whole:,.0f}",
        "of alone": "-" if refused else f"{whole / plain:.2f}",
        "target": target or "-",
        "so": "-" if refused else reached,
    }


if __name__ == "__main__":
    main()
