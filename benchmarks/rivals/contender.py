"""What a contender is, and what all of them read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 256


@dataclass(frozen=True)
class Source:
    """The images of a run in three forms, all of the same pixels: `images.npy`, `png/*.png` and `lake` below `root`."""

    root: Path

    def images(self) -> NDArray[np.uint8]:
        """Shape (n, 256, 256), mapped from the file."""
        return np.load(self.root / "images.npy", mmap_mode="r")

    def pngs(self) -> list[Path]:
        """Ordinary PNG files in the order of `images`; every writer that stores PNG stores their bytes."""
        return sorted((self.root / "png").glob("*.png"))

    @property
    def lake(self) -> Path:
        return self.root / "lake"


def write_nothing(source: Source, folder: Path) -> None:
    """For contenders that read what `Source` holds."""


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    `write(source, folder)` stores the images in the contender's own format. `batches(source, folder, batch, workers)`
    gives batches without end, in the contender's random order: uint8 tensors or arrays whose last two sides are 256
    and whose first is `batch`. A batch need not outlive the next one. `stored` names what the size on disk is that of,
    below the source's root; None: the contender's own folder.
    """

    title: str
    batches: Callable[[Source, Path, int, int], Iterator[Any]]
    write: Callable[[Source, Path], None] = write_nothing
    stored: str | None = None


def decode(data: bytes) -> NDArray[np.uint8]:
    """The grey image of a PNG file's bytes, decoded by OpenCV."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ValueError("this is no image")
    return np.asarray(image, np.uint8)


def from_raw(data: bytes) -> NDArray[np.uint8]:
    """The image of its own bytes, without a copy."""
    return np.frombuffer(data, np.uint8).reshape(SIDE, SIDE)
