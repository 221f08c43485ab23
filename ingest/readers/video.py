"""Videos: AVI, MP4, MOV, MKV, WebM, MPEG and animated GIF through OpenCV's FFmpeg, one frame in memory at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.readers.image import MAX_PIXELS
from usdata.errors import DataError

_FARTHEST = 1 << 62  # bytes: beyond, a file can't be and a system can't seek


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video holds. `n_frames` was counted by decoding, not taken from the header."""

    n_frames: int
    fps: float | None  # None: the file gives no believable rate
    width: int  # pixels
    height: int


def probe(path: Path) -> VideoInfo:
    """Count the frames of a video by decoding it once.

    Raises:
        DataError: with the reason missing, empty_file, unsupported, unreadable, too_large, or truncated when the header
            announces at least two frames more than there are.
    """
    with _opened(path) as capture:
        announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        count = 0
        while capture.grab():
            count += 1
    if not count:
        raise DataError("unreadable", "The video has no frame that can be decoded.", step="read")
    if announced > count + 1:
        raise DataError("truncated", f"{count} of {announced} frames are there; {count} is missing.", step="read")
    return VideoInfo(count, fps if 0.1 <= fps <= 1000 else None, width, height)


def read_frames(path: Path, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The frames `indices` (0-based, ascending) as (index, uint8 (H, W, 3) RGB), read in one pass from the start.

    Raises:
        ValueError: indices negative, or not strictly ascending.
        DataError: see `probe`; frame_missing when the video ends before a wanted frame, naming the first one.
    """
    wanted = list(indices)
    if any(index < 0 for index in wanted[:1]) or any(b <= a for a, b in pairwise(wanted)):
        raise ValueError("frame indices must be 0 or more and ascending")
    with _opened(path) as capture:
        position = 0
        for index in wanted:
            while position <= index and capture.grab():
                position += 1
            done, frame = capture.retrieve() if position == index + 1 else (False, None)
            if not done or frame is None:
                raise DataError("frame_missing", f"The video ends before frame {index}.", step="read")
            yield index, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def choose_frames(n_frames: int, stride: int = 1, max_per_clip: int | None = None) -> list[int]:
    """Every `stride`-th frame from frame 0; if those are too many, `max_per_clip` of them, evenly spread.

    The k-th of m out of n is number floor(k * n / m): the first frame is always in, and none twice.

    >>> choose_frames(10, 2)
    [0, 2, 4, 6, 8]
    >>> choose_frames(10, 1, 3)
    [0, 3, 6]
    """
    if stride < 1 or (max_per_clip is not None and max_per_clip < 1):
        raise ValueError("stride and max_per_clip must be at least 1")
    frames = range(0, max(n_frames, 0), stride)
    if max_per_clip is None or len(frames) <= max_per_clip:
        return list(frames)
    return [frames[k * len(frames) // max_per_clip] for k in range(max_per_clip)]


def is_video(head: bytes) -> bool:
    """Whether a file begins as one of the containers we read.

    FFmpeg itself would also open playlists and concatenation scripts, which make it read other files.
    """
    return (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or head.startswith((b"\x1a\x45\xdf\xa3", b"GIF87a", b"GIF89a", b"\0\0\x01\xba", b"\0\0\x01\xb3"))
    )


def _check_whole(path: Path, head: bytes) -> None:
    """Refuses an MP4, MOV, AVI or GIF file whose own structure says that its end is missing."""
    size = path.stat().st_size
    cut = False
    with path.open("rb") as file:
        if head[4:8] == b"ftyp":
            cut = _boxes_end(file) > size
        elif head[:4] == b"RIFF":
            cut = int.from_bytes(head[4:8], "little") + 8 > size
        elif head[:4] == b"GIF8":
            file.seek(max(0, size - 64))
            cut = not file.read().rstrip(b"\0").endswith(b";")
    if cut:
        raise DataError("truncated", f"The file ends too early, after {size} bytes.", step="read")


def _boxes_end(file: BinaryIO) -> int:
    """Where the last of an MP4 file's boxes ends; beyond the end of the file if that was cut."""
    position = 0
    while True:
        file.seek(position)
        header = file.read(16)
        if not header:
            return position
        length = int.from_bytes(header[:4])
        if length == 1:  # the length follows, in 8 bytes
            length = int.from_bytes(header[8:16])
        if length == 0:  # to the end of the file
            return position
        position += max(length, 8)
        if position > _FARTHEST:
            return position


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise DataError("missing", "The file is not there any more.", step="read") from error
    except OSError as error:
        raise DataError("unreadable", f"{error.strerror}.", step="read") from error
    if not head:
        raise DataError("empty_file", "The file has no bytes.", step="read")
    _check_whole(path, head)
    if not is_video(head):
        raise DataError("unsupported", f"Not a video that is read here: it begins {head!r}.", step="read")
    # One thread: frames come out the same, and shards are built in parallel already.
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise DataError(
                "unreadable", "The video can't be opened (cut, damaged, or no decoder for it).", step="read"
            )
        width, height = (capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > MAX_PIXELS:
            raise DataError("too_large", f"Frames of {width:.0f} x {height:.0f} pixels.", step="read")
        yield capture
    finally:
        capture.release()
