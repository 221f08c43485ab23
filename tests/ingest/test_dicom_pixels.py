"""DICOM pixels: the same picture in every encoding gives the same grey or RGB, converted exactly once."""

from functools import partial

import numpy as np
import pytest
from fakes.dicom_files import (
    NATIVE,
    add_palette,
    echo_grey,
    echo_rgb,
    encapsulated,
    fragments_of,
    jpeg_frame,
    native_bytes,
    quiet_reader,
    renamed_components,
    write_dicom,
)
from pydicom import dcmread
from pydicom.pixels import apply_color_lut, convert_color_space

from ingest.deid.reasons import Refusal
from ingest.readers.dicom import open_dicom, read_frames

LOSSLESS = (*NATIVE, "rle", "jpeg_lossless", "jpeg_ls", "jpeg_2000")


@pytest.fixture(autouse=True)
def quiet():
    with quiet_reader():
        yield


def frames_of(path, indices=None):
    image = open_dicom(path)
    found = list(read_frames(image, range(image.frames) if indices is None else indices))
    for _, frame in found:
        assert frame.dtype == np.uint8 and frame.shape == image.shape + ((3,) if image.colour else ())
    return [frame for _, frame in found]


def reason(path):
    with pytest.raises(Refusal) as error:
        frames_of(path)
    return error.value.reason


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_colour_cine_comes_out_exactly_in_every_lossless_syntax(tmp_path, syntax):
    pictures = [echo_rgb(seed=seed) for seed in range(3)]
    found = frames_of(write_dicom(tmp_path / "a", pictures, syntax=syntax))
    np.testing.assert_array_equal(found, pictures)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_grey_still_comes_out_exactly_in_every_lossless_syntax(tmp_path, syntax):
    found = frames_of(write_dicom(tmp_path / "a", echo_grey(), syntax=syntax))
    np.testing.assert_array_equal(found, [echo_grey()])


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_more_than_8_bits_become_8_in_a_straight_line_from_the_stored_range(tmp_path, syntax, bits):
    values = echo_grey(bits=bits)
    top = (1 << bits) - 1
    found = frames_of(write_dicom(tmp_path / "a", values, syntax=syntax, stored=bits))
    np.testing.assert_array_equal(found[0], (values.astype(int) * 255 + top // 2) // top)
    assert found[0].max() > 240


def test_single_frames_of_a_cine_are_read_from_their_own_place(tmp_path):
    pictures = [echo_rgb(seed=seed) for seed in range(5)]
    for syntax in ("explicit", "rle"):
        path = write_dicom(tmp_path / "a", pictures, syntax=syntax)
        assert [index for index, _ in read_frames(open_dicom(path), [1, 4])] == [1, 4]
        np.testing.assert_array_equal(frames_of(path, [1, 4]), [pictures[1], pictures[4]])


def test_frames_beyond_the_last_are_refused_and_wrong_orders_are_an_error(tmp_path):
    image = open_dicom(write_dicom(tmp_path / "a", [echo_grey()] * 2))
    with pytest.raises(Refusal, match="frame_missing"):
        list(read_frames(image, [0, 2]))
    for wrong in ([1, 0], [0, 0], [-1]):
        with pytest.raises(ValueError, match="ascending"):
            list(read_frames(image, wrong))


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("planar", [0, 1])
def test_planes_words_and_byte_order_do_not_change_a_picture_of_odd_size(tmp_path, syntax, words, planar):
    pictures = [echo_rgb(7, 5, seed) for seed in range(4)]  # 105 bytes a frame: every second one begins at an odd byte
    path = write_dicom(tmp_path / "a", pictures, syntax=syntax, planar=planar, words=words)
    np.testing.assert_array_equal(frames_of(path), pictures)
    greys = [echo_grey(7, 5, seed) for seed in range(3)]
    path = write_dicom(tmp_path / "a", greys, syntax=syntax, words=words)
    np.testing.assert_array_equal(frames_of(path), greys)


def test_monochrome1_is_inverted(tmp_path):
    path = write_dicom(tmp_path / "a", echo_grey(), photometric="MONOCHROME1")
    np.testing.assert_array_equal(frames_of(path)[0], 255 - echo_grey())
    wide = np.array([[0, 4095, 100, 2048]], np.uint16)
    path = write_dicom(tmp_path / "a", wide, photometric="MONOCHROME1", stored=12)
    assert frames_of(path)[0].tolist() == [[255, 0, 249, 127]]


@pytest.mark.parametrize("syntax", ["jpeg_ls", "jpeg_2000"])
@pytest.mark.parametrize("stored", [12, 16])
def test_signed_values_keep_their_order_when_compressed(tmp_path, syntax, stored):
    values = (echo_grey(bits=stored).astype(np.int32) - (1 << stored - 1)).astype(np.int16)
    wanted = frames_of(write_dicom(tmp_path / "a", values, signed=True, stored=stored))
    found = frames_of(write_dicom(tmp_path / "b", values, signed=True, stored=stored, syntax=syntax))
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(wanted, frames_of(write_dicom(tmp_path / "c", echo_grey(bits=stored), stored=stored)))


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian", "rle"])
def test_signed_values_keep_their_order(tmp_path, syntax):
    values = np.array([[-32768, -1, 0, 32767]], np.int16)
    path = write_dicom(tmp_path / "a", values, syntax=syntax, signed=True)
    assert frames_of(path)[0].tolist() == [[0, 127, 128, 255]]
    twelve = np.array([[-2048, -1, 0, 2047]], np.int16)
    path = write_dicom(tmp_path / "a", twelve, syntax=syntax, signed=True, stored=12)
    assert frames_of(path)[0].tolist() == [[0, 127, 128, 255]]
    small = np.array([[-128, -1, 0, 127]], np.int8)
    assert frames_of(write_dicom(tmp_path / "a", small, syntax=syntax, signed=True))[0].tolist() == [[0, 127, 128, 255]]


@pytest.mark.parametrize("syntax", ["explicit", "big_endian", "rle"])
def test_overlay_bits_above_the_stored_bits_are_masked_away(tmp_path, syntax):
    clean = echo_grey(bits=12)
    overlay = clean | (np.random.default_rng(1).integers(0, 16, clean.shape) << 12).astype(np.uint16)
    assert (overlay != clean).mean() > 0.9
    wanted = frames_of(write_dicom(tmp_path / "a", clean, stored=12))
    found = frames_of(write_dicom(tmp_path / "b", overlay, stored=12, syntax=syntax))
    np.testing.assert_array_equal(found, wanted)
    eight = echo_grey().astype(np.uint16)
    found = frames_of(write_dicom(tmp_path / "b", eight | 0xA500, stored=8, syntax=syntax))
    np.testing.assert_array_equal(found, [echo_grey()])


def test_stored_bits_may_lie_higher_up_with_other_bits_below(tmp_path):
    values = echo_grey(bits=12)
    wanted = frames_of(write_dicom(tmp_path / "a", values, stored=12))
    np.testing.assert_array_equal(frames_of(write_dicom(tmp_path / "b", values << 4 | 7, stored=12, high=15)), wanted)


def test_fewer_than_8_stored_bits_are_stretched(tmp_path):
    values = np.arange(16, dtype=np.uint8).reshape(2, 8)
    found = frames_of(write_dicom(tmp_path / "a", values | 0x50, stored=4))
    assert found[0].ravel().tolist() == list(range(0, 256, 17))


# Colours


def test_ybr_full_becomes_rgb_once_and_exactly_as_pydicom_does_it(tmp_path):
    ybr = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    wanted = convert_color_space(ybr, "YBR_FULL", "RGB")
    for syntax in ("explicit", "big_endian", "rle", "jpeg_lossless", "jpeg_ls"):
        for planar in (0, 1) if syntax in NATIVE else (0,):
            path = write_dicom(tmp_path / "a", ybr, photometric="YBR_FULL", syntax=syntax, planar=planar)
            np.testing.assert_array_equal(frames_of(path)[0], wanted, err_msg=syntax)


@pytest.mark.parametrize("syntax", NATIVE)
def test_ybr_full_422_shares_the_chroma_of_two_pixels(tmp_path, syntax):
    ybr = convert_color_space(echo_rgb(), "RGB", "YBR_FULL_422")
    path = write_dicom(tmp_path / "a", [ybr, ybr[::-1]], photometric="YBR_FULL_422", syntax=syntax)
    halved = ybr.copy()
    halved[:, 1::2, 1:] = halved[:, ::2, 1:]
    wanted = convert_color_space(halved, "YBR_FULL", "RGB")
    np.testing.assert_array_equal(frames_of(path), [wanted, wanted[::-1]])
    if syntax == "explicit":
        np.testing.assert_array_equal(frames_of(path), dcmread(path).pixel_array)


def test_partial_range_ybr_reaches_black_and_white(tmp_path):
    ybr = np.array([[[16, 128, 128], [16, 128, 128], [235, 128, 128], [235, 128, 128]]], np.uint8)
    path = write_dicom(tmp_path / "a", ybr, photometric="YBR_PARTIAL_422")
    assert frames_of(path)[0][0].tolist() == [[0] * 3] * 2 + [[255] * 3] * 2


def test_a_palette_gives_its_colours_in_every_syntax_and_width(tmp_path):
    index = echo_grey()
    table = np.random.default_rng(3).integers(0, 256, (256, 3)).astype(np.uint16)
    for syntax in LOSSLESS:
        for bits, entries in ((8, table), (16, table * 257), (16, table << 8)):
            path = write_dicom(
                tmp_path / "a",
                index,
                photometric="PALETTE COLOR",
                syntax=syntax,
                change=partial(_with_palette, entries=entries, bits=bits, syntax=syntax),
            )
            np.testing.assert_array_equal(frames_of(path)[0], table[index], err_msg=f"{syntax} {bits}")


def _with_palette(dataset, entries, bits, syntax):
    add_palette(dataset, entries, bits=bits)
    if syntax == "big_endian":  # pydicom writes bytes of OW as they are
        for element in (dataset[tag] for tag in (0x00281201, 0x00281202, 0x00281203)):
            element.value = np.frombuffer(element.value, "u2").byteswap().tobytes()


def test_a_palette_that_begins_at_a_later_value_repeats_its_ends(tmp_path):
    index = np.array([[0, 10, 11, 12, 13, 200]], np.uint8)
    table = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint16) * 256
    path = write_dicom(
        tmp_path / "a", index, photometric="PALETTE COLOR", change=lambda d: add_palette(d, table, first=11)
    )
    assert frames_of(path)[0][0, :, 0].tolist() == [1, 1, 1, 4, 7, 7]
    np.testing.assert_array_equal(frames_of(path)[0], apply_color_lut(index, dcmread(path)) >> 8)


def test_a_palette_of_signed_values_may_begin_below_zero(tmp_path):
    index = np.array([[-3, -2, -1, 0]], np.int16)
    table = np.array([[10] * 3, [20] * 3, [30] * 3], np.uint16) * 257
    change = partial(add_palette, table=table, first=-2)
    path = write_dicom(tmp_path / "a", index, signed=True, photometric="PALETTE COLOR", change=change)
    assert frames_of(path)[0][0, :, 0].tolist() == [10, 10, 20, 30]


def test_a_palette_of_65536_entries_is_read(tmp_path):
    index = np.array([[0, 256, 65535]], np.uint16)
    table = np.repeat(np.arange(65536, dtype=np.uint16)[:, None], 3, axis=1)
    path = write_dicom(tmp_path / "a", index, photometric="PALETTE COLOR", change=lambda d: add_palette(d, table))
    assert frames_of(path)[0][0, :, 1].tolist() == [0, 1, 255]


def test_sixteen_bit_entries_that_never_exceed_255_are_8_bits(tmp_path):
    table = np.repeat(np.arange(256, dtype=np.uint16)[:, None], 3, axis=1)
    path = write_dicom(tmp_path / "a", echo_grey(), photometric="PALETTE COLOR", change=lambda d: add_palette(d, table))
    np.testing.assert_array_equal(frames_of(path)[0][..., 2], echo_grey())


def segmented(codes, entries, bits=16):
    def change(dataset):
        add_palette(dataset, np.zeros((entries, 3), np.uint16), bits=bits)
        for colour in ("Red", "Green", "Blue"):
            del dataset[f"{colour}PaletteColorLookupTableData"]
            content = np.array(codes, "<u2" if bits == 16 else "u1").tobytes()
            setattr(dataset, f"Segmented{colour}PaletteColorLookupTableData", content)

    return change


def test_a_segmented_palette_is_expanded(tmp_path):
    index = np.arange(12, dtype=np.uint8)[None]
    # two entries; a ramp of four more up to 20; once more these two segments, which begin at byte 0
    codes = [0, 2, 8 << 8, 12 << 8, 1, 4, 20 << 8, 2, 2, 0, 0]
    path = write_dicom(tmp_path / "a", index, photometric="PALETTE COLOR", change=segmented(codes, 12))
    wanted = [8, 12, 14, 16, 18, 20] * 2
    assert frames_of(path)[0][0, :, 0].tolist() == wanted
    codes = [0, 2, 8, 12, 1, 4, 20, 2, 2, 0, 0, 0, 0, 0]
    path = write_dicom(tmp_path / "a", index, photometric="PALETTE COLOR", change=segmented(codes, 12, bits=8))
    assert frames_of(path)[0][0, :, 0].tolist() == wanted


@pytest.mark.parametrize(
    "codes",
    [
        [1, 4, 20],  # a ramp from nowhere
        [0, 9, 1, 2],  # more entries announced than there are
        [0, 2, 5, 5, 2, 9999, 0, 0],  # a segment repeated beyond the palette's end
        [0, 2, 5, 5, 2, 1, 4, 0],  # the repetition repeats itself
        [7, 1, 1],  # no such segment
        [0, 0, 0, 0],  # nothing, for ever
        [0, 2, 1, 1],  # too few
        [],
    ],
)
def test_a_segmented_palette_that_makes_no_sense_is_refused(tmp_path, codes):
    index = np.arange(12, dtype=np.uint8)[None]
    path = write_dicom(tmp_path / "a", index, photometric="PALETTE COLOR", change=segmented(codes, 12))
    assert reason(path) == "photometric"


def test_a_palette_picture_without_a_whole_palette_is_refused(tmp_path):
    def lacks(keyword):
        def change(dataset):
            add_palette(dataset, np.zeros((256, 3), np.uint16))
            delattr(dataset, keyword)

        return change

    for keyword in ("GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableDescriptor"):
        path = write_dicom(tmp_path / "a", echo_grey(), photometric="PALETTE COLOR", change=lacks(keyword))
        assert reason(path) == "photometric"
    assert reason(write_dicom(tmp_path / "a", echo_grey(), photometric="PALETTE COLOR")) == "photometric"


@pytest.mark.parametrize("photometric", ["HSV", "CMYK", "ARGB", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420", "", "RGB "])
def test_colours_that_are_not_understood_are_refused(tmp_path, photometric):
    path = write_dicom(tmp_path / "a", echo_rgb(), PhotometricInterpretation=photometric)
    if photometric.strip() == "RGB":
        np.testing.assert_array_equal(frames_of(path)[0], echo_rgb())
    else:
        assert reason(path) == "photometric"


@pytest.mark.parametrize(
    "tags",
    [
        {"SamplesPerPixel": 3},
        {"SamplesPerPixel": 4},
        {"BitsAllocated": 1},
        {"BitsAllocated": 32},
        {"BitsStored": 0},
        {"BitsStored": 9},
        {"HighBit": 8},
        {"BitsStored": 4, "HighBit": 2},
    ],
)
def test_a_grey_picture_with_an_impossible_description_is_refused(tmp_path, tags):
    assert reason(write_dicom(tmp_path / "a", echo_grey(), **tags)) == "photometric"


# Lengths and frames


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian", "deflated"])
def test_native_bytes_must_fit_but_for_one_byte_of_padding(tmp_path, syntax):
    for height, good in ((5, {36}), (6, {42})):  # 35 and 42 bytes
        content = native_bytes([echo_grey(height, 7)]) + b"\0" * 4
        for length in (2, 34, 36, 40, 42, 44):
            path = write_dicom(tmp_path / "a", echo_grey(height, 7), syntax=syntax, pixel_data=content[:length])
            assert (len(frames_of(path)) if length in good else reason(path)) in (1, "pixel_length")
        path = write_dicom(tmp_path / "a", echo_grey(height, 7), syntax=syntax, pixel_data=b"")
        assert reason(path) == "no_pixels"


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg"])
@pytest.mark.parametrize("count", ["1", "2", "4", "999999999"])
def test_another_number_of_frames_than_announced_is_refused(tmp_path, syntax, count):
    path = write_dicom(tmp_path / "a", [echo_grey(seed=s) for s in range(3)], syntax=syntax, NumberOfFrames=count)
    assert reason(path) in ("pixel_length", "too_large")


@pytest.mark.parametrize("table", ["empty", "lying", "short", "long"])
@pytest.mark.parametrize("syntax", ["jpeg", "rle", "jpeg_2000"])
def test_offset_tables_may_be_empty_or_lie(tmp_path, table, syntax):
    pictures = [echo_grey(seed=seed) for seed in range(3)]
    wanted = frames_of(write_dicom(tmp_path / "a", pictures, syntax=syntax))
    lies = {"empty": b"", "lying": b"\x07\0\0\0" * 3, "short": b"\0" * 4, "long": b"\xff" * 400}[table]

    def change(dataset):
        dataset.PixelData = encapsulated(fragments_of(dataset), lies)
        dataset.add_new(0x7FE00001, "OV", b"\x01" * 24)  # an extended table that lies
        dataset.add_new(0x7FE00002, "OV", b"\x01" * 8)

    path = write_dicom(tmp_path / "b", pictures, syntax=syntax, change=change)
    np.testing.assert_array_equal(frames_of(path), wanted)


def test_a_frame_may_be_cut_into_fragments(tmp_path):
    for syntax in ("jpeg", "jpeg_2000", "jpeg_ls"):
        pictures = [echo_grey(seed=seed) for seed in range(3)]
        whole = write_dicom(tmp_path / "a", pictures, syntax=syntax)
        frames = fragments_of(dcmread(whole))
        pieces = [frame[at : at + 100] for frame in frames for at in range(0, len(frame), 100)]
        path = write_dicom(tmp_path / "b", pictures, syntax=syntax, fragments=[*pieces, b""])
        np.testing.assert_array_equal(frames_of(path), frames_of(whole))


def test_compressed_and_native_data_are_not_taken_for_each_other(tmp_path):
    path = write_dicom(tmp_path / "a", echo_grey(), fragments=[echo_grey().tobytes()])
    assert reason(path) == "pixel_length"
    path = write_dicom(tmp_path / "a", echo_grey(), syntax="jpeg", pixel_data=jpeg_frame(echo_grey()) + b"\0")
    assert reason(path) == "pixel_length"


@pytest.mark.parametrize("syntax", ["jpeg", "jpeg_lossless", "jpeg_ls", "jpeg_2000", "rle"])
def test_a_code_stream_of_another_size_or_kind_than_the_header_says_is_refused(tmp_path, syntax):
    inside = write_dicom(tmp_path / "a", echo_grey(40, 64), syntax=syntax)
    fragments = fragments_of(dcmread(inside))
    wanted = ("unreadable", "pixel_length") if syntax == "rle" else ("pixel_length",)
    for picture in (echo_grey(64, 42), echo_grey(40, 66), echo_rgb(40, 64)):
        assert reason(write_dicom(tmp_path / "b", picture, syntax=syntax, fragments=fragments)) in wanted


# JPEG colours


def test_a_colour_jpeg_is_converted_once_whoever_wrote_its_markers(tmp_path):
    smooth = np.kron(np.random.default_rng(5).integers(40, 220, (5, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    ybr = convert_color_space(smooth, "RGB", "YBR_FULL")
    jfif = jpeg_frame(smooth)
    bare = jfif.replace(b"\xff\xe0\0\x10JFIF", b"\xff\xe9\0\x10ABCD", 1)  # no marker says anything
    plain = _jpeg_of_components(smooth)  # RGB kept as it is, components called 1, 2, 3
    adobe = {t: plain[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([t]) + plain[2:] for t in (0, 1)}
    cases = [
        (jfif, "YBR_FULL_422"),
        (jfif, "RGB"),  # the marker is believed: pydicom's rule
        (bare, "YBR_FULL"),
        (plain, "RGB"),
        (adobe[0], "YBR_FULL_422"),
        (_jpeg_of_components(ybr)[:2] + adobe[1][2:18] + _jpeg_of_components(ybr)[2:], "RGB"),
        (renamed_components(plain, b"RGB"), "YBR_FULL"),
    ]
    for content, photometric in cases:
        path = write_dicom(tmp_path / "a", smooth, syntax="jpeg", photometric=photometric, fragments=[content])
        found = frames_of(path)[0]
        assert np.abs(found.astype(int) - smooth).mean() < 2.5, (cases.index((content, photometric)), photometric)


def _jpeg_of_components(picture):
    """A JPEG whose three components are the picture's own, named 1, 2, 3, with no marker about colours."""
    content = jpeg_frame(picture, keep_rgb=True)
    start = content.index(b"\xff\xee")
    length = int.from_bytes(content[start + 2 : start + 4])
    return renamed_components(content[:start] + content[start + 2 + length :], b"\1\2\3")


def test_jpeg_2000_whose_transform_contradicts_its_header_is_refused(tmp_path):
    whole = write_dicom(tmp_path / "a", echo_rgb(), syntax="jpeg_2000")
    fragments = fragments_of(dcmread(whole))
    for photometric, wanted in (("YBR_RCT", None), ("RGB", None), ("YBR_FULL", "photometric")):
        path = write_dicom(tmp_path / "b", echo_rgb(), syntax="jpeg_2000", photometric=photometric, fragments=fragments)
        if wanted:
            assert reason(path) == wanted
        else:
            np.testing.assert_array_equal(frames_of(path)[0], echo_rgb())


# Plugins


@pytest.mark.parametrize(
    ("syntax", "wanted"),
    [
        ("jpeg_lossless", "plugin_missing_python_gdcm"),
        ("jpeg_ls", "plugin_missing_pyjpegls"),
        ("jpeg_2000", "plugin_missing_pylibjpeg_openjpeg"),
        ("rle", "plugin_missing_pylibjpeg_rle"),
    ],
)
def test_a_missing_plugin_isrenamed_components(tmp_path, monkeypatch, syntax, wanted):
    from pydicom.pixels.decoders.base import Decoder

    path = write_dicom(tmp_path / "a", echo_grey(), syntax=syntax)
    monkeypatch.setattr(Decoder, "available_plugins", ())
    assert reason(path) == wanted


def test_rle_and_jpeg_2000_are_the_same_through_whichever_plugin_is_there(tmp_path, monkeypatch):
    from pydicom.pixels.decoders.base import Decoder

    for syntax, other in (("rle", "pydicom"), ("jpeg_2000", "pillow"), ("jpeg_2000", "gdcm"), ("jpeg_ls", "gdcm")):
        for picture in (echo_rgb(), echo_grey()):
            path = write_dicom(tmp_path / "a", picture, syntax=syntax)
            with monkeypatch.context() as patch:
                patch.setattr(Decoder, "available_plugins", (other,))
                np.testing.assert_array_equal(frames_of(path), [picture], err_msg=f"{syntax} {other}")


def test_a_lossy_jpeg_of_12_bits_needs_a_decoder_that_is_not_permissive(tmp_path):
    content = bytearray(jpeg_frame(echo_grey()))
    content[content.index(b"\xff\xc0") + 4] = 12
    path = write_dicom(
        tmp_path / "a", echo_grey(bits=12), stored=12, syntax="jpeg_extended", fragments=[bytes(content)]
    )
    assert reason(path) == "transfer_syntax"


@pytest.mark.parametrize(
    "uid", ["1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.110", "1.2.840.113619.5.2", "1.2.3", "x"]
)
def test_a_syntax_that_nobody_decodes_is_refused(tmp_path, uid):
    assert reason(write_dicom(tmp_path / "a", echo_grey(), syntax=uid)) == "transfer_syntax"


# The reference, and real files


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian", "deflated"])
@pytest.mark.parametrize("kind", ["grey", "rgb", "planar", "ybr", "12_bits", "signed"])
def test_native_frames_hold_what_pydicom_decodes(tmp_path, syntax, kind):
    options = {
        "grey": {},
        "rgb": {},
        "planar": {"planar": 1},
        "ybr": {"photometric": "YBR_FULL"},
        "12_bits": {"stored": 12},
        "signed": {"signed": True},
    }[kind]
    one = echo_rgb if kind in ("rgb", "planar", "ybr") else echo_grey
    bits = {} if one is echo_rgb else {"bits": 12 if kind == "12_bits" else 16 if kind == "signed" else 8}
    pictures = [one(9, 11, seed, **bits) for seed in range(3)]
    if kind == "signed":
        pictures = [(picture.astype(np.int32) - 30000).astype(np.int16) for picture in pictures]
    path = write_dicom(tmp_path / "a", pictures, syntax=syntax, **options)
    wanted = dcmread(path).pixel_array.astype(int)
    if kind == "12_bits":
        wanted = (wanted * 255 + 2047) // 4095
    if kind == "signed":
        wanted = ((wanted + 32768) * 255 + 32767) // 65535
    np.testing.assert_array_equal(frames_of(path), wanted)


FAMILIES = [
    ("OBXXXX1A.dcm", "OBXXXX1A_expb.dcm"),
    ("OBXXXX1A.dcm", "OBXXXX1A_rle.dcm"),
    ("OBXXXX1A_2frame.dcm", "OBXXXX1A_rle_2frame.dcm"),
    ("US1_UNCR.dcm", "US1_J2KR.dcm"),
    ("color-px.dcm", "color-pl.dcm"),
]


@pytest.mark.real
@pytest.mark.parametrize(("first", "second"), FAMILIES)
def test_real_files_of_one_picture_give_the_same_pixels(real_data, first, second):
    folder = real_data / "dicom" / "pydicom-data"
    np.testing.assert_array_equal(frames_of(folder / first), frames_of(folder / second))


@pytest.mark.real
def test_every_real_file_gives_what_pydicom_decodes(real_data):
    for path in sorted((real_data / "dicom").rglob("*.dcm")):
        dataset = dcmread(path)
        wanted = dataset.pixel_array
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            if path.stem.endswith("_expb"):
                continue  # pydicom takes the palette's words for little endian
            wanted = apply_color_lut(wanted, dataset) >> 8
        wanted = wanted if len(frames_of(path)) > 1 else wanted[None]
        np.testing.assert_array_equal(frames_of(path), wanted, err_msg=path.stem)


@pytest.mark.real
def test_lossy_jpeg_2000_is_near_its_original(real_data):
    folder = real_data / "dicom" / "pydicom-data"
    lossy, original = (frames_of(folder / name)[0].astype(int) for name in ("US1_J2KI.dcm", "US1_UNCR.dcm"))
    assert np.abs(lossy - original).mean() < 1.8
