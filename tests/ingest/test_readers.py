"""Images, videos and the DICOM sniffer: one defined result, and no damaged file taken for a whole one."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes.datasets import echo, save, save_video
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ingest.readers import image as image_reader
from ingest.readers.image import decode_image, read_image
from ingest.readers.sniff import begins_dicom, is_dicom
from ingest.readers.video import choose_frames, probe, read_frames
from usdata.errors import DataError

GREY = echo(41, 30, 3)
RGB = np.stack([GREY, np.roll(GREY, 3, 0), 255 - GREY], axis=2)


def encoded(pixels, kind, mode=None, **options) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def reason(content: bytes) -> str:
    with pytest.raises(DataError) as error:
        decode_image(content)
    assert error.value.step == "read" and error.value.message.endswith(".")
    return error.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_grey_and_rgb_come_out_exactly_as_they_were_stored(kind):
    np.testing.assert_array_equal(decode_image(encoded(GREY, kind)), GREY)
    np.testing.assert_array_equal(decode_image(encoded(RGB, kind)), RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_a_jpeg_gives_the_pixels_that_pillow_gives(options):
    for pixels in (GREY, RGB):
        content = encoded(pixels, "JPEG", **options)
        np.testing.assert_array_equal(decode_image(content), np.asarray(Image.open(io.BytesIO(content))))


def test_a_palette_gives_its_colours_not_its_indices():
    picture = Image.fromarray(GREY % 3)
    picture.putpalette([10, 20, 30, 200, 100, 0, 255, 255, 255])
    for kind in ("PNG", "BMP", "GIF"):
        file = io.BytesIO()
        picture.save(file, kind)
        np.testing.assert_array_equal(
            decode_image(file.getvalue()),
            np.array([[10, 20, 30], [200, 100, 0], [255, 255, 255]], np.uint8)[GREY % 3],
        )


def test_transparency_is_dropped_and_the_colour_below_it_stays():
    alpha = np.where(GREY > 90, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(np.dstack([RGB, alpha]), "PNG")), RGB)
    np.testing.assert_array_equal(decode_image(encoded(np.dstack([RGB, alpha]), "TIFF")), RGB)
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    file = io.BytesIO()
    grey_alpha.save(file, "PNG")
    np.testing.assert_array_equal(decode_image(file.getvalue()), GREY)
    content = encoded(GREY, "PNG", transparency=int(GREY[0, 0]))  # a tRNS chunk
    np.testing.assert_array_equal(decode_image(content), GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight_by_rounding_and_small_values_stay(kind):
    values = np.array([[0, 128, 129, 257, 65535]], np.uint16)
    assert decode_image(encoded(values, kind)).tolist() == [[0, 0, 1, 1, 255]]
    assert decode_image(encoded(np.array([[0, 7, 255]], np.uint16), kind)).tolist() == [[0, 7, 255]]


def test_one_bit_images_are_black_and_white():
    for kind in ("PNG", "TIFF", "BMP"):
        assert set(np.unique(decode_image(encoded(GREY, kind, "1")))) == {0, 255}


def test_cmyk_becomes_rgb():
    pixels = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    shown = decode_image(encoded(pixels, "JPEG", "CMYK", quality=100))
    assert np.abs(shown.astype(int) - pixels).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_an_orientation_tag_is_obeyed(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = decode_image(encoded(GREY, kind, exif=exif))
    assert turned.shape == GREY.shape[::-1]
    assert np.abs(turned.astype(int) - np.rot90(GREY, -1)).mean() < 8


def test_a_file_is_read_by_its_content_not_its_ending(tmp_path):
    path = tmp_path / "scan.jpg"
    path.write_bytes(encoded(GREY, "PNG"))
    np.testing.assert_array_equal(read_image(path), GREY)


CUTS = {
    "png": encoded(GREY, "PNG"),
    "png_palette": encoded(GREY, "PNG", "P"),
    "png_16": encoded(GREY.astype(np.uint16) * 257, "PNG"),
    "jpeg": encoded(RGB, "JPEG"),
    "jpeg_progressive": encoded(GREY, "JPEG", progressive=True),
    "jpeg_cmyk": encoded(RGB, "JPEG", "CMYK"),
    "tiff": encoded(RGB, "TIFF"),
    "tiff_deflate": encoded(RGB, "TIFF", compression="tiff_deflate"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the tags of a cut TIFF
@pytest.mark.parametrize("name", CUTS)
def test_a_file_cut_anywhere_is_never_taken_for_a_whole_one(name):
    content = CUTS[name]
    for end in sorted({*range(1, 60), *range(60, len(content), 61), *range(len(content) - 20, len(content))}):
        with pytest.raises(DataError):
            decode_image(content[:end])


def test_a_cut_bmp_or_gif_is_refused_unless_every_pixel_is_still_there():
    for kind in ("BMP", "GIF"):
        content = encoded(GREY, kind)
        whole = decode_image(content)
        for end in range(1, len(content), 7):
            try:
                shown = decode_image(content[:end])
            except DataError:
                continue
            np.testing.assert_array_equal(shown, whole)


def test_an_interrupted_download_that_was_filled_with_zeros_is_refused():
    for content in (CUTS["png"], CUTS["jpeg"], CUTS["tiff_deflate"]):
        half = len(content) // 2
        with pytest.raises(DataError):
            decode_image(content[:half] + bytes(len(content) - half))


def test_a_flipped_bit_in_a_png_is_refused():
    content = bytearray(CUTS["png"])
    content[len(content) // 2] ^= 1
    assert reason(bytes(content)) == "unreadable"


def test_a_png_that_lacks_rows_is_refused_even_if_all_checksums_are_right():
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    for rows in (0, 3, 7):
        data = png_chunk(b"IDAT", zlib.compress(bytes(9 * rows)))
        assert reason(image_reader.PNG + header + data + png_chunk(b"IEND", b"")) in ("unreadable", "truncated")


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CUTS)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=5))
def test_damage_gives_pixels_or_a_data_error_and_nothing_else(name, changes):
    content = bytearray(CUTS[name])
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    try:
        pixels = decode_image(bytes(content))
    except DataError as error:
        assert error.reason in ("truncated", "unreadable", "unsupported", "too_large")
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim in (2, 3)


def test_a_decompression_bomb_is_refused_by_its_header():
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    bomb = image_reader.PNG + header + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    assert reason(bomb) == "too_large"
    jpeg = bytearray(CUTS["jpeg"])
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    assert reason(bytes(jpeg)) == "too_large"


def test_what_is_no_image_has_a_reason_of_its_own(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError) as empty:
        read_image(tmp_path / "empty.png")
    with pytest.raises(DataError) as missing:
        read_image(tmp_path / "none.png")
    assert (empty.value.reason, missing.value.reason) == ("empty_file", "missing")
    assert reason(b"<html>404 not found</html>") == "unsupported"
    assert reason(b"\0" * 500) == "unsupported"
    assert reason(image_reader.PNG[:5]) == "truncated"


def test_several_frames_in_one_image_file_are_refused():
    frames = [Image.fromarray(np.roll(GREY, k, 0)) for k in range(3)]
    for kind in ("GIF", "TIFF", "PNG"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        assert reason(file.getvalue()) == "unsupported"


def test_floating_point_pixels_are_refused():
    assert reason(encoded(GREY.astype(np.float32), "TIFF")) == "unsupported"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_video(tmp_path_factory.mktemp("video") / "clip.mp4", frames=12, width=64, height=48)


def test_a_video_is_probed_by_decoding_it(clip):
    info = probe(clip)
    assert (info.n_frames, info.fps, info.width, info.height) == (12, 25.0, 64, 48)


def test_chosen_frames_are_the_ones_that_reading_all_gives(clip):
    everything = dict(read_frames(clip, range(12)))
    assert [abs(float(frame[40].mean()) - 8 * (k + 1)) < 6 for k, frame in everything.items()] == [True] * 12
    chosen = list(read_frames(clip, [1, 5, 11]))
    assert [index for index, _ in chosen] == [1, 5, 11]
    for index, frame in chosen:
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
        np.testing.assert_array_equal(frame, everything[index])


def test_a_frame_beyond_the_end_is_named(clip):
    frames = read_frames(clip, [10, 12, 20])
    assert next(frames)[0] == 10
    with pytest.raises(DataError, match="before frame 12") as error:
        next(frames)
    assert error.value.reason == "frame_missing"


@pytest.mark.parametrize("indices", [[3, 3], [4, 2], [-1, 2]])
def test_frames_must_be_asked_for_in_order(clip, indices):
    with pytest.raises(ValueError, match="ascending"):
        list(read_frames(clip, indices))


def test_a_cut_video_is_refused(clip, tmp_path):
    content = clip.read_bytes()
    for share in (0.1, 0.5, 0.8, 0.97):
        path = tmp_path / "cut.mp4"
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError) as error:
            probe(path)
        assert error.value.reason == "truncated"


def test_a_cut_avi_or_gif_video_is_refused(clip, tmp_path):
    avi = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(avi), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for _, frame in read_frames(clip, range(12)):
        writer.write(frame)
    writer.release()
    assert probe(avi).n_frames == 12
    gif = tmp_path / "a.gif"
    frames = [Image.fromarray(np.roll(GREY, k, 0)) for k in range(6)]
    frames[0].save(gif, save_all=True, append_images=frames[1:])
    for path in (avi, gif):
        content = path.read_bytes()
        for share in (0.3, 0.6, 0.95):
            path.write_bytes(content[: int(share * len(content))])
            with pytest.raises(DataError) as error:
                probe(path)
            assert error.value.reason == "truncated"


def test_a_playlist_that_would_make_the_decoder_open_other_files_is_refused(clip, tmp_path):
    playlists = [f"#EXTM3U\n#EXTINF:1,\n{clip}\n", f"ffconcat version 1.0\nfile '{clip}'\n"]
    for text in playlists:
        path = tmp_path / "list.mp4"
        path.write_text(text)
        with pytest.raises(DataError) as error:
            probe(path)
        assert error.value.reason == "unsupported"


def test_a_numbered_name_is_one_file_not_a_series(tmp_path):
    for k in range(3):
        save(GREY, tmp_path / f"frame_{k:03d}.png")
    with pytest.raises(DataError) as error:
        probe(tmp_path / "frame_%03d.png")
    assert error.value.reason == "missing"


def test_missing_and_empty_videos_have_their_reasons(tmp_path):
    (tmp_path / "empty.mp4").touch()
    for name, wanted in (("empty.mp4", "empty_file"), ("none.mp4", "missing")):
        with pytest.raises(DataError) as error:
            list(read_frames(tmp_path / name, [0]))
        assert error.value.reason == wanted


def test_an_animated_gif_is_a_video(tmp_path):
    frames = [Image.fromarray(np.full((32, 32), 40 * k + 20, np.uint8)) for k in range(5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert probe(tmp_path / "a.gif").n_frames == 5
    means = [int(frame.mean()) for _, frame in read_frames(tmp_path / "a.gif", [0, 2, 4])]
    np.testing.assert_allclose(means, [20, 100, 180], atol=2)


@given(st.integers(0, 500), st.integers(1, 60), st.none() | st.integers(1, 40))
def test_chosen_frames_are_even_bounded_and_start_at_zero(n_frames, stride, most):
    chosen = choose_frames(n_frames, stride, most)
    assert chosen[:1] == [0][:n_frames]
    assert all(index % stride == 0 and index < n_frames for index in chosen)
    gaps = set(np.diff(chosen).tolist())
    assert not gaps or (min(gaps) > 0 and max(gaps) - min(gaps) <= stride)
    assert len(chosen) == min(len(range(0, n_frames, stride)), most or n_frames)


def test_dicom_is_known_by_its_content(tmp_path):
    heads = {
        "preamble": bytes(128) + b"DICM\x02\0",
        "no preamble": b"DICM\x02\0\0\0UL\x04\0",
        "bare, explicit, group 2": b"\x02\0\0\0UL\x04\0\xc0\0\0\0",
        "bare, explicit, group 8": b"\x08\0\x05\0CS\x0a\0ISO_IR 100",
        "bare, implicit": b"\x08\0\0\0\x04\0\0\0\xa4\x01\0\0",
        "bare, implicit, no group length": b"\x08\0\x08\0\x16\0\0\0ORIGINAL\\PRIMARY\\AXIAL",
        "bare, big endian": b"\0\x08\0\x05\0\0\0\x0aISO_IR 100",
    }
    for name, head in heads.items():
        assert begins_dicom(head), name
    (tmp_path / "DICOMDIR").touch()
    (tmp_path / "scan.png").write_bytes(heads["preamble"] + bytes(400))
    assert is_dicom(tmp_path / "DICOMDIR") and is_dicom(tmp_path / "scan.png")


def test_images_videos_and_tables_are_not_taken_for_dicom(clip):
    others = [*CUTS.values(), clip.read_bytes(), b"file,class\n1.png,benign\n", b"", b"\0", bytes(200), b"PK\x03\x04"]
    assert not any(begins_dicom(content[:140]) for content in others)
    assert not is_dicom(clip.with_name("none"))


@pytest.mark.real
def test_every_real_dicom_is_recognised_and_nothing_else(real_data):
    files = [path for path in real_data.rglob("*") if path.is_file()]
    assert len(files) > 400
    for path in files:
        assert is_dicom(path) == (path.suffix == ".dcm"), path


@pytest.mark.real
def test_every_real_image_reads_like_pillow_reads_it(real_data):
    paths = sorted(real_data.glob("busi/*/*/*).png"))[::5] + sorted(real_data.glob("timtrack-muscle/*/*/*/*.*"))[::4]
    assert len(paths) > 12
    for path in paths:
        pixels = read_image(path)
        with Image.open(path) as picture:
            np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB" if pixels.ndim == 3 else "L")))


@pytest.mark.real
def test_a_real_clip_has_the_frames_that_its_header_announces(real_data):
    for path in sorted(real_data.glob("covid-blues/lus_videos/*.mp4"))[:3]:
        info = probe(path)
        assert info.n_frames == cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)
        assert (info.fps, info.width, info.height) == (25.0, 350, 350)


def test_a_film_whose_box_claims_more_bytes_than_a_file_can_have_is_truncated(tmp_path):
    path = tmp_path / "huge.mp4"
    brand = (16).to_bytes(4) + b"ftypisom" + bytes(4)
    path.write_bytes(brand + (1).to_bytes(4) + b"mdat" + (2**63 + 5).to_bytes(8) + bytes(64))
    with pytest.raises(DataError, match="ends too early"):
        probe(path)
