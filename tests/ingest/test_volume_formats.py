"""Every format of arrays, written by its own library, gives back the numbers that went in."""

import bz2
import gzip
import zlib
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
import SimpleITK
from fakes.volumes import counted, write

from ingest.card_parts import Arrays
from ingest.readers import volume

CLIP = counted(4, 5, 6)  # f, y, x


def frames(path: Path, arrays: Arrays, indices: list[int] | None = None) -> np.ndarray:
    info = volume.probe(path, arrays)
    wanted = list(range(info.n_frames)) if indices is None else indices
    found = list(volume.read_frames(path, arrays, wanted))
    assert [index for index, _ in found] == wanted
    assert all(one.dtype == np.uint8 and one.shape[:2] == (info.height, info.width) for _, one in found)
    return np.stack([one for _, one in found])


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.mhd", "a.nrrd", "a.nhdr", "a.npy", "a.npz"])
def test_a_clip_of_bytes_comes_back_as_it_was_written(tmp_path, name):
    path = write(tmp_path / name, CLIP)
    arrays = Arrays(axes="xyf" if ".nii" in name else "fyx")
    assert (frames(path, arrays) == CLIP).all()
    assert (frames(path, arrays, [1, 3]) == CLIP[[1, 3]]).all()


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
def test_packed_numbers_are_unpacked(tmp_path, name):
    path = write(tmp_path / name, CLIP, packed=True)
    assert (frames(path, Arrays(axes="fyx")) == CLIP).all()


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 5, 6), "compression": "gzip"}, {"userblock_size": 512}])
@pytest.mark.parametrize("axes", ["fyx", "yfx", "yxf"])
def test_hdf5_is_read_by_name_in_any_order_of_axes(tmp_path, options, axes):
    array = CLIP.transpose([("fyx").index(letter) for letter in axes])
    path = tmp_path / "a.h5"
    block = options.get("userblock_size")
    with h5py.File(path, "w", **({"userblock_size": block} if block else {})) as file:
        chunks = {"chunks": True, "compression": "gzip"} if "chunks" in options else {}
        file.create_dataset("group/im", data=array, **chunks)
        file["numbers"] = np.arange(5)
    assert (frames(path, Arrays(axes=axes, dataset="group/im")) == CLIP).all()
    assert (frames(path, Arrays(axes=axes)) == CLIP).all()  # the only array of two axes or more


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f4", "f8"])
def test_mat_files_of_version_5_give_numbers_of_any_type(tmp_path, packed, dtype):
    path = write(tmp_path / "a.mat", CLIP.astype(dtype), packed=packed)
    assert (frames(path, Arrays(axes="fyx", dataset="im")) == CLIP).all()


def test_a_mat_file_holds_numbers_texts_structures_and_cells(tmp_path):
    from ingest.readers.volume_mat import Mat

    cells = np.array([[np.arange(3.0), "word"]], object)
    content = {"s": {"a": 2.5, "b": "text"}, "c": cells, "flag": np.array([[True, False]]), "n": CLIP}
    scipy.io.savemat(tmp_path / "a.mat", content)
    file = Mat(tmp_path / "a.mat")
    assert set(file.variables) == {"s", "c", "flag", "n"}
    assert file.variables["n"].shape == CLIP.shape
    assert file.read("s") == [{"a": np.array([[2.5]]), "b": "text"}]
    numbers, word = file.read("c")
    assert (numbers == [[0, 1, 2]]).all() and word == "word"
    assert file.read("flag").dtype == bool and file.read("flag").tolist() == [[True, False]]
    assert (file.read("n") == CLIP).all()


def test_a_mat_file_in_the_other_byte_order_is_read(tmp_path):
    """Written by hand: scipy writes only the machine's own order."""
    import struct

    def part(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    numbers = np.arange(6, dtype=">i2").tobytes()
    inner = part(6, struct.pack(">II", 10, 0)) + part(5, struct.pack(">2i", 3, 2)) + part(1, b"im") + part(3, numbers)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    (tmp_path / "a.mat").write_bytes(head + part(14, inner))
    assert frames(tmp_path / "a.mat", Arrays(axes="yx")).tolist() == [[[0, 3], [1, 4], [2, 5]]]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", "<>")
def test_nifti_of_every_type_and_byte_order_equals_nibabels_reading(tmp_path, kind, dtype, order):
    numbers = (CLIP % 120).astype(dtype).T
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(kind(numbers, np.eye(4), header), tmp_path / name)
        expected = np.asarray(nibabel.load(tmp_path / name).dataobj).T
        assert (frames(tmp_path / name, Arrays(axes="xyf")) == expected).all()


def test_niftis_slope_and_intercept_are_applied(tmp_path):
    image = nibabel.Nifti1Image(CLIP.T.astype("i2"), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "a.nii")
    raw = nibabel.load(tmp_path / "a.nii")
    assert (raw.dataobj.slope, raw.dataobj.inter) == (0.5, 10)
    values = np.asarray(raw.dataobj).T
    assert (frames(tmp_path / "a.nii", Arrays(axes="xyf")) == np.floor(values + 0.5)).all()


def test_coloured_nifti_gives_colours_as_its_last_axis(tmp_path):
    numbers = counted(6, 5, 4, 3)  # x, y, f, c
    coloured = np.ascontiguousarray(numbers).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(coloured, np.eye(4)), tmp_path / "a.nii.gz")
    assert (frames(tmp_path / "a.nii.gz", Arrays(axes="xyfc")) == numbers.transpose(2, 1, 0, 3)).all()


@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 6), (1, 1, 5, 6)])
def test_nifti_may_lack_its_last_axis_or_have_one_more_of_a_single_element(tmp_path, shape):
    path = write(tmp_path / "a.nii.gz", CLIP[0].reshape(shape))
    assert volume.probe(path, Arrays(axes="xyf")).n_frames == 1
    assert (frames(path, Arrays(axes="xyf")) == CLIP[:1]).all()


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_colours_of_metaimage_and_nrrd_are_the_last_axis(tmp_path, name):
    numbers = counted(4, 5, 6, 3)
    path = write(tmp_path / name, numbers, colours=True)
    assert (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) == numbers).all()
    assert (frames(path, Arrays(axes="fyxc")) == numbers).all()


def test_a_plane_per_colour_in_front_is_a_colour_picture(tmp_path):
    numbers = counted(3, 5, 6)  # as PSFHS stores its stills
    path = write(tmp_path / "a.mha", numbers)
    info = volume.probe(path, Arrays(axes="cyx"))
    assert (info.n_frames, info.height, info.width) == (1, 5, 6)
    assert (frames(path, Arrays(axes="cyx"))[0] == numbers.transpose(1, 2, 0)).all()


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_metaimage_and_nrrd_of_every_type_equal_simpleitks_reading(tmp_path, dtype, name):
    path = write(tmp_path / name, (CLIP % 120).astype(dtype), packed=True)
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    assert (frames(path, Arrays(axes="fyx")) == expected).all()


@pytest.mark.parametrize(
    ("header", "content"),
    [
        ("BinaryDataByteOrderMSB = True\n", CLIP.astype(">u2").tobytes()),
        ("ElementByteOrderMSB = True\nCompressedData = True\n", zlib.compress(CLIP.astype(">u2").tobytes())),
        ("HeaderSize = -1\n", b"other things" + CLIP.astype("<u2").tobytes()),
    ],
)
def test_metaimage_headers_of_other_programs_are_understood(tmp_path, header, content):
    text = (
        f"ObjectType = Image\nNDims = 3\n{header}DimSize = 6 5 4\nElementType = MET_USHORT\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(text.encode() + content)
    assert (frames(tmp_path / "a.mha", Arrays(axes="fyx")) == CLIP).all()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("raw", bytes), ("gzip", gzip.compress), ("gz", gzip.compress), ("bzip2", bz2.compress)],
)
def test_nrrd_in_each_encoding_and_byte_order_is_read(tmp_path, encoding, pack):
    text = "NRRD0004\n# by hand\ntype: unsigned short\ndimension: 3\nsizes: 6 5 4\n"
    text += f"endian: big\nencoding: {encoding}\nkey:=value\n\n"
    (tmp_path / "a.nrrd").write_bytes(text.encode() + pack(CLIP.astype(">u2").tobytes()))
    assert (frames(tmp_path / "a.nrrd", Arrays(axes="fyx")) == CLIP).all()


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<f4", ">f8", "i8"])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_npy_of_every_type_and_order_is_read(tmp_path, dtype, order, name):
    path = write(tmp_path / name, np.asarray(CLIP.astype(dtype), order=order))
    assert (frames(path, Arrays(axes="fyx")) == CLIP).all()


def test_bits_are_black_and_white(tmp_path):
    path = write(tmp_path / "a.npy", CLIP > 50)
    assert (frames(path, Arrays(axes="fyx")) == np.where(CLIP > 50, 255, 0)).all()


def test_several_gzip_streams_in_a_row_are_one_file(tmp_path):
    content = write(tmp_path / "a.nii", CLIP).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    assert (frames(tmp_path / "b.nii.gz", Arrays(axes="xyf")) == CLIP).all()


def test_a_file_is_known_by_its_first_bytes_not_by_its_name(tmp_path):
    path = write(tmp_path / "a.nii.gz", CLIP)
    assert (frames(path.rename(tmp_path / "a.mha"), Arrays(axes="xyf")) == CLIP).all()
    assert volume.is_array(tmp_path / "a.mha")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    assert not volume.is_array(tmp_path / "a.png") and not volume.is_array(tmp_path / "none")


# --- millimetres ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.mhd", "a.nrrd"])
def test_headers_give_millimetres_per_pixel_along_x_and_y(tmp_path, name):
    path = write(tmp_path / name, CLIP, spacing=(0.28, 0.31, 7.0))
    axes = "xyf" if ".nii" in name else "fyx"
    assert volume.probe(path, Arrays(axes=axes)).spacing == (0.28, 0.31)
    assert volume.probe(path, Arrays(axes=axes[::-1])).spacing == (7.0, 0.31)  # x is the axis that the card calls so


def test_niftis_own_unit_of_length_counts(tmp_path):
    for unit, expected in (("micron", 0.28), ("mm", None), ("unknown", None)):
        image = nibabel.Nifti1Image(CLIP.T, np.diag([280.0, 280.0, 1, 1]))
        image.header.set_xyzt_units(xyz=unit)
        nibabel.save(image, tmp_path / "a.nii")
        assert volume.probe(tmp_path / "a.nii", Arrays(axes="xyf")).spacing == (expected, expected)


def test_a_spacing_of_one_zero_or_nonsense_is_unknown(tmp_path):
    for steps in ((1.0, 1.0, 1.0), (0.0, np.nan, 1.0), (1e-9, 1e9, 1.0)):
        image = nibabel.Nifti1Image(CLIP.T, np.eye(4))
        image.header["pixdim"][1:4] = steps
        nibabel.save(image, tmp_path / "a.nii")
        content = bytearray((tmp_path / "a.nii").read_bytes())
        content[80:92] = np.array(steps, "<f4").tobytes()  # nibabel mends what is not positive
        (tmp_path / "a.nii").write_bytes(content)
        assert volume.probe(tmp_path / "a.nii", Arrays(axes="xyf")).spacing == (None, None)


def test_nrrd_without_a_space_and_arrays_without_header_say_no_millimetres(tmp_path):
    text = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 6 5 4\nspacings: 0.2 0.3 1\nencoding: raw\n"
    for extra, expected in (("", (None, None)), ('units: "mm" "mm" ""\n', (0.2, 0.3))):
        (tmp_path / "a.nrrd").write_bytes((text + extra + "\n").encode() + CLIP.tobytes())
        assert volume.probe(tmp_path / "a.nrrd", Arrays(axes="fyx")).spacing == expected
    for name in ("a.npy", "a.npz", "a.h5", "a.mat"):
        assert volume.probe(write(tmp_path / name, CLIP), Arrays(axes="fyx")).spacing == (None, None)
