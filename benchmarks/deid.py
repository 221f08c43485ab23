"""De-identification of DICOM, one core: stills and cines at 800x600, against decoding the same files alone.

Run: python benchmarks/deid.py [--stills 100] [--frames 200] [--rounds 3]

"alone" reads the header and decodes every frame with the project's own reader, in this process. "cleaned" is the whole
way of a private file in the isolated child: examine, find the scan area, look for text in every frame, cut, verify,
self-check, and hand the images back. One child is one core's worth; a run with n workers has n of them.
"""

import argparse
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

from ingest.deid.ask import Cleaners
from ingest.deid.key import new_key
from ingest.deid.private import private_card, rules_of
from ingest.readers import dicom

SIZE = (600, 800)
TARGETS = {"still": 25, "cine": 400}  # per second and core, uncompressed


def sector(rng: np.random.Generator, frames: int, colour: bool) -> NDArray[np.uint8]:
    """Speckle in a curved sector under a banner; (n, 600, 800) or (n, 600, 800, 3)."""
    height, width = SIZE
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    radius, angle = np.hypot(x - width / 2, y + 60), np.arctan2(x - width / 2, y + 60)
    inside = (radius > 190) & (radius < 610) & (abs(angle) < 0.6)
    anatomy = cv2.resize(rng.random((9, 9)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    stack = []
    for _ in range(frames):
        parts = [cv2.GaussianBlur(rng.standard_normal(SIZE, np.float32), (0, 0), 1.3) for _ in range(2)]
        echo = np.hypot(*parts) * 330 * (0.35 + 0.6 * np.clip(anatomy, 0, 1))
        frame = np.where(inside, np.clip(echo + 8, 1, 250), 0).astype(np.uint8)
        if colour:
            frame = np.stack([frame, frame, (frame * 0.94).astype(np.uint8)], axis=2)
        cv2.putText(frame, "DOE JANE 1234567", (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255,) * 3, 2)
        stack.append(frame)
    return np.stack(stack)


def write(path: Path, frames: NDArray[np.uint8], number: int, jpeg: bool) -> None:
    """A DICOM file with a calibrated region; `number` makes its identity."""
    colour, data, meta = frames.ndim == 4, Dataset(), FileMetaDataset()
    data.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{'3.1' if len(frames) > 1 else '6.1'}"
    data.SOPInstanceUID, data.StudyInstanceUID = f"2.25.1{number:08}", f"2.25.2{number:08}"
    data.PatientID, data.PatientName, data.StudyDate = f"{number:08}", f"Doe^Jane{number}", "20190315"
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
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 30, 60
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 769, 569
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
        row = {"sample_id": f"bench-{'0' * 16}", **examined.row}
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
    rng = np.random.default_rng(0)
    drawn = sector(rng, 8, colour)
    paths = []
    if kind == "still":
        for number in range(options.stills):
            paths.append(folder / f"{number:05d}.dcm")
            write(paths[-1], drawn[number % 8][None], number, jpeg)
    else:
        paths.append(folder / "cine.dcm")
        write(paths[0], drawn[np.arange(options.frames) % 8], 0, jpeg)
    count = options.stills if kind == "still" else options.frames
    plain = rate(lambda: alone(paths), count, options.rounds)
    whole = rate(lambda: cleaned(paths, cleaners), count, options.rounds)
    for path in paths:
        path.unlink()
    target = TARGETS[kind] if not jpeg else None
    return {
        "files": f"{kind}, {'RGB' if colour else 'grey'}, {'JPEG baseline' if jpeg else 'uncompressed'}",
        "decode alone, frames/s": f"{plain:,.0f}",
        "cleaned, frames/s": f"{whole:,.0f}",
        "of alone": f"{whole / plain:.2f}",
        "target": target or "-",
        "so": "-" if not target else "reached" if whole >= target else f"missed by {1 - whole / target:.0%}",
    }


if __name__ == "__main__":
    main()
