"""Video syntaxes: the stream is read from a private file that is gone before the first frame."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes.dicom_files import echo_rgb, quiet_reader, write_dicom

from ingest.deid.reasons import Refusal
from ingest.readers.dicom import open_dicom, read_frames

FRAMES = 6


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with quiet_reader():
        yield
    assert not list(folder.iterdir())  # whatever happened


def pictures():
    return [np.roll(cv2.resize(echo_rgb(16, 16), (96, 64)), 5 * number, 1) for number in range(FRAMES)]


def stream(tmp_path, ending, code):
    path = tmp_path / f"v{ending}"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), 25, (96, 64))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {code}")
    for picture in pictures():
        writer.write(picture[..., ::-1])
    writer.release()
    return path.read_bytes()


def video(tmp_path, content, **tags):
    half = len(content) // 2 & ~1
    return write_dicom(
        tmp_path / "a",
        pictures(),
        syntax="h264",
        photometric="YBR_PARTIAL_420",
        fragments=[content[:half], content[half:]],
        **tags,
    )


@pytest.mark.parametrize(("ending", "code"), [(".mp4", "mp4v"), (".mpg", "mpg1"), (".mpg", "mpg2"), (".ts", "mpg2")])
def test_the_frames_of_a_stream_are_read_whatever_its_container(tmp_path, ending, code):
    path = video(tmp_path, stream(tmp_path, ending, code))
    found = list(read_frames(open_dicom(path), [0, 2, 5]))
    assert [index for index, _ in found] == [0, 2, 5]
    for index, frame in found:
        assert np.abs(frame.astype(int) - pictures()[index]).mean() < 12


def test_the_temporary_file_is_private_and_gone_before_the_first_frame(tmp_path, monkeypatch):
    seen = []
    opened = cv2.VideoCapture

    def watched(path, *rest):
        file = Path(path)
        seen.append((file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777, file))
        return opened(path, *rest)

    monkeypatch.setattr(cv2, "VideoCapture", watched)
    frames = read_frames(open_dicom(video(tmp_path, stream(tmp_path, ".mp4", "mp4v"))), range(FRAMES))
    next(frames)
    ((file, folder, path),) = seen
    assert (file, folder) == (0o600, 0o700) and not path.exists()
    frames.close()


def reason(path):
    with pytest.raises(Refusal) as error:
        image = open_dicom(path)
        list(read_frames(image, range(image.frames)))
    return error.value.reason


def test_another_number_or_size_of_frames_than_announced_is_refused(tmp_path):
    content = stream(tmp_path, ".mp4", "mp4v")
    for tags in ({"NumberOfFrames": FRAMES + 1}, {"NumberOfFrames": FRAMES - 1}, {"Rows": 62}, {"Columns": 98}):
        assert reason(video(tmp_path, content, **tags)) == "pixel_length"


def test_a_stream_that_is_a_playlist_or_nonsense_is_refused(tmp_path):
    content = stream(tmp_path, ".mp4", "mp4v")
    for wrong in (
        b"#EXTM3U\n#EXTINF:1,\n/etc/hosts\n" + bytes(100),
        b"ffconcat version 1.0\nfile /etc/hosts\n",
        bytes(1000),
        content[:60] + bytes(200),
    ):
        assert reason(video(tmp_path, wrong)) in ("unreadable", "pixel_length")
    assert reason(video(tmp_path, content[: len(content) // 3])) in ("unreadable", "pixel_length")
