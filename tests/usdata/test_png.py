"""The canonical PNG is an ordinary PNG, and nothing in it can change unseen."""

import io
import tarfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from usdata import png
from usdata.errors import DataError

Grey = NDArray[np.uint8]


@st.composite
def grey_images(draw: st.DrawFn) -> Grey:
    """Small patterns blown up and shifted, so that any value can come anywhere and shrinking stays quick."""
    tile = draw(arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8))))
    rows, columns = np.arange(256) + draw(st.integers(0, 255)), np.arange(256) + draw(st.integers(0, 255))
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 256, (256, 256), dtype=np.uint8)
    image = tile[rows[:, None] % tile.shape[0], columns[None] % tile.shape[1]]
    return image ^ noise if draw(st.booleans()) else np.ascontiguousarray(image)


def an_image(seed: int = 0) -> Grey:
    return np.random.default_rng(seed).integers(0, 256, (256, 256), dtype=np.uint8)


def a_file(seed: int = 0) -> Grey:
    return png.encode(an_image(seed)[None])[0]


@given(grey_images())
@settings(max_examples=60, deadline=None)
def test_any_grey_image_comes_back_and_pillow_and_opencv_read_the_same(image: Grey) -> None:
    file = png.encode(image[None])[0]
    assert file.shape == (65_865,)
    png.check(file)
    assert np.array_equal(png.decode(file), image)
    with Image.open(io.BytesIO(file.tobytes())) as opened:
        opened.load()  # also checks the CRC
        assert (opened.mode, opened.size) == ("L", (256, 256))
        assert np.array_equal(np.asarray(opened), image)
    assert np.array_equal(np.asarray(cv2.imdecode(file, cv2.IMREAD_UNCHANGED)), image)


@pytest.mark.parametrize("level", [0, 1, 127, 128, 255])
def test_flat_images_come_back(level: int) -> None:
    image = np.full((1, 256, 256), level, np.uint8)
    assert np.array_equal(png.decode(png.encode(image)[0]), image[0])


def test_webdataset_reads_the_same_pixels(tmp_path: Path) -> None:
    images = np.stack([an_image(i) for i in range(3)])
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, file in enumerate(png.encode(images)):
            info = tarfile.TarInfo(f"sample{i}.png")
            info.size = len(file)
            tar.addfile(info, io.BytesIO(file.tobytes()))
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("l8").to_tuple("png"))
    assert len(read) == 3
    assert all(np.array_equal(pixels, image) for (pixels,), image in zip(read, images, strict=True))


def test_the_chunks_are_ihdr_idat_iend_and_the_data_is_two_stored_blocks() -> None:
    data = a_file().tobytes()
    kinds, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kinds.append((data[at + 4 : at + 8], length))
        end = at + 8 + length
        assert zlib.crc32(data[at + 4 : end]) == int.from_bytes(data[end : end + 4], "big")
        at = end + 4
    assert kinds == [(b"IHDR", 13), (b"IDAT", 2 + 5 + 65_535 + 5 + 257 + 4), (b"IEND", 0)]
    rows = np.frombuffer(zlib.decompress(data[41:-16]), np.uint8).reshape(256, 257)
    assert not rows[:, 0].any()
    assert np.array_equal(rows[:, 1:], an_image())


def test_a_batch_encodes_as_its_images_one_by_one_and_an_empty_batch_is_empty() -> None:
    images = np.stack([an_image(i) for i in range(4)])
    assert np.array_equal(png.encode(images), np.stack([png.encode(image[None])[0] for image in images]))
    assert png.encode(images[:0]).shape == (0, 65_865)
    assert np.array_equal(png.encode(images[:, ::-1, ::-1])[0], png.encode(images[:1, ::-1, ::-1].copy())[0])


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 255, 256), np.uint8), np.zeros((1, 256, 256), np.int16), np.zeros((256, 256), np.uint8)],
    ids=["shape", "dtype", "no batch"],
)
def test_only_uint8_batches_of_256_by_256_are_encoded(images: NDArray[np.integer]) -> None:
    with pytest.raises(ValueError, match="256"):
        png.encode(images)  # type: ignore[arg-type]


@given(st.integers(0, png.SIZE * 8 - 1))
@settings(max_examples=300, deadline=None)
def test_any_flipped_bit_is_found(bit: int) -> None:
    file = a_file(1)
    file[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DataError):
        png.check(file)


def test_every_flipped_bit_outside_the_pixels_is_found() -> None:
    file = a_file()
    outside = np.ones(png.SIZE, bool)
    outside[png.FIRST : png.FIRST + png.BLOCK] = outside[png.SECOND : png.SECOND + png.ROW] = False
    outside[png.FIRST : png.FIRST + png.BLOCK : png.ROW] = outside[png.SECOND] = True
    bits = [(int(byte), bit) for byte in np.flatnonzero(outside) for bit in range(8)]
    assert len(bits) == (65_865 - 65_536) * 8
    missed = []
    for byte, bit in bits:
        file[byte] ^= 1 << bit
        try:
            png.check(file)
            missed.append((byte, bit))
        except DataError:
            pass
        file[byte] ^= 1 << bit
    png.check(file)
    assert missed == []


@pytest.mark.study
def test_every_flipped_bit_of_a_file_is_found() -> None:
    file = a_file()
    missed = 0
    for byte in range(png.SIZE):
        for bit in range(8):
            file[byte] ^= 1 << bit
            try:
                png.check(file)
                missed += 1
            except DataError:
                pass
            file[byte] ^= 1 << bit
    assert missed == 0


@pytest.mark.parametrize("cut", [0, 1, 48, 65_864])
def test_a_short_or_long_file_is_not_canonical(cut: int) -> None:
    data = a_file().tobytes()
    for wrong in (data[:cut], data + b"\0"):
        for read in (png.check, png.decode):
            with pytest.raises(DataError, match="65865") as caught:
                read(wrong)
            assert caught.value.reason == "not_canonical"


def test_an_ordinary_png_of_another_writer_is_not_canonical() -> None:
    for level in (0, 6):
        _, data = cv2.imencode(".png", an_image(), [cv2.IMWRITE_PNG_COMPRESSION, level])
        with pytest.raises(DataError):
            png.check(data.tobytes())


def test_bytes_memoryviews_and_read_only_arrays_are_read_alike() -> None:
    data = a_file().tobytes()
    for form in (data, memoryview(data), np.frombuffer(data, np.uint8)):
        png.check(form)
        assert np.array_equal(png.decode(form), an_image())


def test_a_batch_of_files_is_checked_and_read_in_place() -> None:
    images = np.stack([an_image(i) for i in range(8)])
    files = np.full((8, png.PITCH), 77, np.uint8)
    files[:, : png.SIZE] = png.encode(images)
    filters = png.FIRST, png.FIRST + 249 * png.ROW, png.SECOND
    for row, byte in enumerate([3, 47, png.SECOND - 1, png.SIZE - 1, *filters], start=1):
        files[row, byte] ^= 1
    assert png.are_canonical(files).tolist() == [True] + [False] * 7
    files[:, : png.SIZE] = png.encode(images)
    assert png.are_canonical(files).all()
    png.close_gap(files)
    pixels = png.pixels(files)
    assert np.shares_memory(pixels, files)
    assert np.array_equal(pixels, images)
