"""MPEG-2, H.264 and HEVC in DICOM: the stream goes to a private temporary file, and FFmpeg reads it from there."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.deid.reasons import Reason
from ingest.readers.dicom_pixels import PixelLayout
from ingest.readers.dicom_source import Source, attempt, refused

_PIECE = 1 << 20
_LOG = "OPENCV_FFMPEG_LOGLEVEL"


def check_video(layout: PixelLayout) -> None:
    """Check what the header alone can show.

    Raises:
        Refusal: photometric, pixel_length.
    """
    if layout.samples != 3 or layout.allocated != 8 or layout.photometric == "PALETTE COLOR":
        raise refused(Reason.PHOTOMETRIC)
    if not layout.element.fragments:
        raise refused(Reason.PIXEL_LENGTH)


def video_frames(
    layout: PixelLayout, source: Source, indices: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Frames of a video stream as RGB; the stream is decoded to its end, and its frames are counted.

    Raises:
        Refusal: unsupported stream, unreadable, pixel_length when the frames or their size differ from the header's.
    """
    wanted = set(indices)
    with _capture(layout, source) as capture:
        position = 0
        while attempt(capture.grab):
            if position in wanted:
                done, frame = attempt(capture.retrieve)
                if not done or frame is None or frame.shape != (layout.rows, layout.columns, 3):
                    raise refused(Reason.PIXEL_LENGTH)
                yield position, attempt(_rgb, frame)
            position += 1
            if position > layout.frames:
                break
        if position != layout.frames:
            raise refused(Reason.PIXEL_LENGTH if position else Reason.UNREADABLE)


def _rgb(frame: NDArray) -> NDArray[np.uint8]:
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _ending(head: bytes) -> str:
    """The kind of a stream; FFmpeg would also open playlists and scripts, which make it read other files."""
    if head[4:8] == b"ftyp":
        return ".mp4"
    if head[:1] == b"\x47" and head[188:189] == b"\x47":
        return ".ts"
    if head.startswith((b"\0\0\x01\xba", b"\0\0\x01\xb3")):
        return ".mpg"
    raise refused(Reason.UNREADABLE)


@contextmanager
def _capture(layout: PixelLayout, source: Source) -> Iterator[cv2.VideoCapture]:
    """The stream, opened. The file is gone from the disk before the first frame is decoded."""
    fragments = [fragment for fragment in layout.element.fragments or () if fragment[1]]
    if not fragments:
        raise refused(Reason.PIXEL_LENGTH)
    ending = _ending(source.at(fragments[0][0], min(256, fragments[0][1])))
    folder = attempt(tempfile.mkdtemp, prefix="usdata-")  # mode 0700
    try:
        path = Path(folder) / f"stream{ending}"
        attempt(_write, path, source, fragments)
        capture = attempt(_open, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        if not capture.isOpened():
            raise refused(Reason.UNREADABLE)
        size = tuple(int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
        if size != (layout.rows, layout.columns):
            raise refused(Reason.PIXEL_LENGTH)
        yield capture
    finally:
        capture.release()


def _write(path: Path, source: Source, fragments: list[tuple[int, int]]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for place, length in fragments:
            for offset in range(0, length, _PIECE):
                file.write(source.at(place + offset, min(_PIECE, length - offset)))


def _open(path: Path) -> cv2.VideoCapture:
    os.environ.setdefault(_LOG, "-8")  # quiet: FFmpeg's messages hold paths and metadata
    # Both as in ingest.readers.video: one thread, no rotation or other guess of OpenCV's.
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
