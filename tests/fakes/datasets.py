"""Tiny fakes of the data sets that have cards: their folders, names, file formats and tables, with drawn pixels.

`draw("busi", folder)` makes one and says what a right ingest of it finds.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Fake:
    """What a right ingest of a fake finds."""

    name: str  # of the card
    root: Path
    images: int = 0
    videos: int = 0
    frames: int = 0  # of all videos, before the card's stride
    masks: int = 0  # mask files
    ignored: int = 0
    tables: int = 0
    labels: dict[str, int] = field(default_factory=dict)  # images by the column `label`
    patients: frozenset[str] = frozenset()


def draw(name: str, root: Path) -> Fake:
    """Draw the fake of the card `name` below `root`, which is created."""
    return MAKERS[name](root)


def echo(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """A grey picture with speckle, (height, width)."""
    rng = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(rng.rayleigh(60, (height, width)), (0, 0), 0.8)
    depth = np.linspace(1.3, 0.5, height)[:, None]
    return np.clip(grain * depth, 0, 255).astype(np.uint8)


def blob(width: int, height: int, centre: tuple[float, float] = (0.5, 0.5), radius: float = 0.2) -> NDArray[np.uint8]:
    """A filled disc, 255 on 0, (height, width); `centre` (x, y) and `radius` as shares of the smaller side."""
    side = min(width, height)
    y, x = np.mgrid[:height, :width]
    inside = (x - centre[0] * width) ** 2 + (y - centre[1] * height) ** 2 <= (radius * side) ** 2
    return np.where(inside, 255, 0).astype(np.uint8)


def save(pixels: NDArray[np.uint8], path: Path, mode: str | None = None) -> Path:
    """Write pixels to `path`, in the format its name tells and Pillow's `mode`; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def save_video(path: Path, frames: int, width: int = 64, height: int = 64, fps: float = 25.0) -> Path:
    """Write an MPEG-4 video whose frame k is grey level 8 (k + 1) under a bright bar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    for k in range(frames):
        frame = np.full((height, width, 3), 8 * (k + 1) % 200, np.uint8)
        frame[: height // 4] = 230
        writer.write(frame)
    writer.release()
    return path


def busi(root: Path) -> Fake:
    """Masks of every pixel format, one image with two of them, one copied image, one empty mask."""
    top = root / "Dataset_BUSI_with_GT"
    first = save(echo(96, 80, 1), top / "benign/benign (1).png", "RGB")
    save(blob(96, 80), top / "benign/benign (1)_mask.png", "1")
    save(echo(80, 96, 2), top / "benign/benign (2).png", "RGB")
    save(blob(80, 96, (0.25, 0.3)), top / "benign/benign (2)_mask.png")
    save(blob(80, 96, (0.75, 0.7)), top / "benign/benign (2)_mask_1.png")
    (top / "malignant").mkdir()
    shutil.copy(first, top / "malignant/malignant (1).png")
    save(blob(96, 80, (0.6, 0.5)), top / "malignant/malignant (1)_mask.png", "RGBA")
    save(echo(96, 80, 4), top / "normal/normal (1).png", "RGB")
    save(np.zeros((80, 96), np.uint8), top / "normal/normal (1)_mask.png", "RGB")
    return Fake("busi", root, images=4, masks=5, labels={"benign": 2, "malignant": 1, "normal": 1})


def hc18(root: Path) -> Fake:
    """Two images of one woman, one-pixel outlines, a test set without them, tables with a row too many."""
    rows = ["filename,pixel size(mm),head circumference (mm)"]
    for number, name in enumerate(("000_HC", "010_HC", "010_2HC")):
        save(echo(100, 68, number), root / f"training_set/{name}.png")
        outline = np.zeros((68, 100), np.uint8)
        cv2.ellipse(outline, (50, 34), (30, 20), 20.0 * number, 0, 360, 255)
        save(outline, root / f"training_set/{name}_Annotation.png", "RGB")
        rows.append(f"{name}.png,{0.06 + 0.01 * number:.2f},{150.5 + number}")
    rows.append("805_HC.png,0.2,300")  # its image is not here
    (root / "training_set_pixel_size_and_HC.csv").write_text("\n".join(rows) + "\n")
    save(echo(100, 68, 9), root / "test_set/000_HC.png")
    (root / "test_set_pixel_size.csv").write_text("filename,pixel size(mm)\n000_HC.png,0.11\n")
    patients = frozenset({"hc18-training-000", "hc18-training-010", "hc18-test-000"})
    return Fake("hc18", root, images=4, masks=3, tables=2, patients=patients)


def usgra_seg(root: Path) -> Fake:
    """Palette masks whose indices, not colours, are the classes; grey and RGB images."""
    for number, mode in (("0000", "L"), ("0003", "RGB")):
        save(echo(96, 80, int(number)), root / f"dataset/images/{number}.png", mode)
        mask = Image.fromarray((blob(96, 80, (0.3, 0.5)) // 255 + blob(96, 80, (0.8, 0.5)) // 255 * 2).astype(np.uint8))
        mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        path = root / f"dataset/masks/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    return Fake("usgra_seg", root, images=2, masks=2)


def covid_blues(root: Path) -> Fake:
    """Clips of two patients, a second take, tables at the level of clips and of patients, blanks after words."""
    clips = {"patient_1_L1": "1.0,yes,no ", "patient_1_R1": "0.0,no,no", "patient_1_R1_2": "2.0,yes,yes"}
    clips |= {"patient_15_L2": "3.0,no,yes "}
    for name in clips:
        save_video(root / f"lus_videos/{name}.mp4", frames=6)
    rows = [f'{name},{values},"a comment, with a comma"' for name, values in clips.items()]
    (root / "severity.csv").write_text("\n".join(["video_file,Severity Score,A-lines,B-lines,comments", *rows]) + "\n")
    header = "patient_id,cov_test,number_video_files,oxygen_saturation_without_ox,oxygen_saturation_with_ox"
    (root / "clinical_variables.csv").write_text(f"{header}\n1,1,3,91,\n15,0,1,98,\n")
    (root / "variable_explanations.csv").write_text("variable,variable_type,unit,explanation\n")
    patients = frozenset({"covid_blues-1", "covid_blues-15"})
    return Fake("covid_blues", root, videos=4, frames=24, ignored=1, tables=2, patients=patients)


MAKERS: dict[str, Callable[[Path], Fake]] = {
    "busi": busi,
    "hc18": hc18,
    "usgra_seg": usgra_seg,
    "covid_blues": covid_blues,
}
