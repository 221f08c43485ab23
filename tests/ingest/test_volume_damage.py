"""Damaged, oversized, pickled and deceitful arrays are refused with a reason; none crashes, hangs or eats memory."""

import gzip
import io
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from fakes.volumes import counted, write

from ingest.card_parts import Arrays
from ingest.readers import volume, volume_mat, volume_named, volume_stored
from usdata.errors import DataError

CLIP = counted(4, 5, 6)
FORMATS = ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.npy", "a.npz", "a.mat", "a.h5"]


def axes_of(name: str) -> str:
    return "xyf" if ".nii" in name else "fyx"


def read_all(path: Path, arrays: Arrays) -> None:
    info = volume.probe(path, arrays)
    for _ in volume.read_frames(path, arrays, range(min(info.n_frames, 50))):
        pass


def refused(path: Path, axes: str = "fyx", **options) -> DataError:
    with pytest.raises(DataError) as caught:
        read_all(path, Arrays(axes=axes, **options))
    assert caught.value.step == "read"
    return caught.value


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_anywhere_is_refused(tmp_path, name, packed):
    content = write(
        tmp_path / name, CLIP, **({"packed": packed} if name in ("a.mha", "a.nrrd", "a.mat") else {})
    ).read_bytes()
    for length in sorted({0, 1, 3, 9, 50, 127, 200, 300, len(content) // 2, len(content) - 9, len(content) - 1}):
        if length < len(content):
            (tmp_path / name).write_bytes(content[:length])
            error = refused(tmp_path / name, axes_of(name))
            assert error.reason in ("empty_file", "truncated", "unreadable", "unsupported"), length


@pytest.mark.parametrize("name", FORMATS)
def test_mutations_give_pixels_or_a_reason(tmp_path, name):
    content = write(tmp_path / name, CLIP).read_bytes()
    rng = np.random.default_rng(5)
    arrays = Arrays(axes=axes_of(name))
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(content), int(rng.choice([400, len(content)]))), rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            read_all(tmp_path / name, arrays)
        except DataError as error:
            outcomes.add(error.reason)
    assert len(outcomes) > 1  # several reasons, and no other error


def test_a_wrong_checksum_at_the_end_of_a_gzip_file_is_noticed_before_a_frame_is_given(tmp_path):
    content = bytearray(write(tmp_path / "a.nii.gz", CLIP).read_bytes())
    content[-8] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match="damaged") as caught:
        volume.probe(tmp_path / "a.nii.gz", Arrays(axes="xyf"))
    assert caught.value.reason == "unreadable"


def nifti_header(*sizes: int) -> bytearray:
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into(f"<{1 + len(sizes)}h", head, 40, len(sizes), *sizes)
    struct.pack_into("<hh", head, 70, 2, 8)
    struct.pack_into("<f", head, 108, 352)
    head[344:348] = b"n+1\0"
    return head


def test_absurd_headers_are_refused_without_memory(tmp_path):
    tracemalloc.start()
    (tmp_path / "huge.nii").write_bytes(nifti_header(30000, 30000, 30000))
    (tmp_path / "huge.nii.gz").write_bytes(gzip.compress(nifti_header(30000, 30000, 30000)))
    (tmp_path / "none.nii").write_bytes(nifti_header(0, 5, 5))
    (tmp_path / "less.nii").write_bytes(nifti_header(-5, 5, 5))
    (tmp_path / "long.nii").write_bytes(nifti_header(1, 1, 30000, 100) + bytes(3_000_000))
    text = "ObjectType = Image\nNDims = 3\nDimSize = 99999999 99999999 99999999\nElementType = MET_UCHAR\n"
    (tmp_path / "huge.mha").write_text(text + "ElementDataFile = LOCAL\n")
    reasons = {
        path.name: refused(path, "xyf" if "nii" in path.name else "fyx").reason for path in sorted(tmp_path.iterdir())
    }
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert reasons["huge.nii"] == reasons["huge.mha"] == "too_large"
    assert reasons["huge.nii.gz"] == "too_large"
    assert reasons["none.nii"] == reasons["less.nii"] == "unreadable"
    assert reasons["long.nii"] == "wrong_axes"


def test_packed_numbers_beyond_what_the_header_says_are_refused_without_memory(tmp_path):
    packer = zlib.compressobj(wbits=31)
    with (tmp_path / "bomb.nii.gz").open("wb") as file:
        file.write(packer.compress(bytes(nifti_header(5, 5, 5)) + bytes(125)))
        for _ in range(30):
            file.write(packer.compress(bytes(1 << 20)))
        file.write(packer.flush())
    tracemalloc.start()
    assert "longer than its header says" in refused(tmp_path / "bomb.nii.gz", "xyf").message
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_more_frames_or_larger_frames_than_any_clip_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(volume_stored, "MAX_FRAMES", 3)
    assert refused(write(tmp_path / "a.npy", CLIP)).reason == "too_large"
    monkeypatch.undo()
    monkeypatch.setattr(volume_stored, "MAX_PIXELS", 29)
    assert refused(write(tmp_path / "a.npy", CLIP)).reason == "too_large"


def test_an_order_that_needs_everything_in_memory_is_refused_beyond_a_limit(tmp_path, monkeypatch):
    path = write(tmp_path / "a.npy", CLIP)
    monkeypatch.setattr(volume_stored, "MAX_BYTES", CLIP.nbytes - 1)
    read_all(path, Arrays(axes="fyx"))  # a frame at a time
    error = refused(path, "yxf")
    assert error.reason == "too_large" and "memory" in error.message


@pytest.mark.parametrize("module", [volume_mat, volume_named])
def test_what_is_held_whole_is_measured_unpacked_before_it_is_kept(tmp_path, monkeypatch, module):
    name = "a.mat" if module is volume_mat else "a.npz"
    path = write(tmp_path / name, np.zeros((40, 100, 100), np.uint8))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    assert refused(path).reason == "too_large"


def test_frames_of_a_large_packed_file_are_read_one_at_a_time(tmp_path):
    path = write(tmp_path / "a.nii.gz", np.zeros((400, 200, 200), np.uint8))
    tracemalloc.start()
    for _, frame in volume.read_frames(path, Arrays(axes="xyf"), range(400)):
        assert frame.shape == (200, 200)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000  # of 16 MB
    tracemalloc.stop()


# --- what must never be loaded -------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/never-made-by-a-pickle"),))


def test_pickled_objects_are_refused_with_what_to_do_and_never_run(tmp_path):
    made = Path("/tmp/never-made-by-a-pickle")
    np.save(tmp_path / "a.npy", np.array({"structures": Bomb()}, object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("im.npy", (tmp_path / "a.npy").read_bytes())
    for path in sorted(tmp_path.iterdir()):
        error = refused(path)
        assert error.reason == "pickled", path.name
        assert "numpy.save" in error.message
        assert volume.is_array(path) or path.suffix == ".npz"
    assert not made.exists()


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret.raw", "sub/secret.raw", "..", "C:secret.raw", "a\\b.raw"])
def test_a_header_that_points_out_of_its_folder_is_refused(tmp_path, name):
    (tmp_path / "secret.raw").write_bytes(CLIP.tobytes())
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/secret.raw").write_bytes(CLIP.tobytes())
    text = f"ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\nElementDataFile = {name}\n"
    (folder / "a.mhd").write_text(text)
    (folder / "a.nhdr").write_text(
        f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 6 5 4\nencoding: raw\ndata file: {name}\n"
    )
    for header in ("a.mhd", "a.nhdr"):
        assert refused(folder / header).reason == "data_outside"


@pytest.mark.parametrize("name", ["LIST", "a%03d.raw 1 4 1"])
def test_numbers_in_several_files_are_refused(tmp_path, name):
    text = f"ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\nElementDataFile = {name}\n"
    (tmp_path / "a.mhd").write_text(text)
    assert refused(tmp_path / "a.mhd").reason == "unsupported"


def test_a_header_whose_data_file_is_missing_or_a_link_is_refused(tmp_path):
    path = write(tmp_path / "set/a.mhd", CLIP)
    (tmp_path / "set/a.raw").rename(tmp_path / "b.raw")
    assert refused(path).reason == "data_missing"
    (tmp_path / "set/a.raw").symlink_to(tmp_path / "b.raw")
    assert refused(path).reason == "data_missing"


def test_hdf5_that_leads_to_other_files_is_refused(tmp_path):
    write(tmp_path / "other.h5", CLIP)
    (tmp_path / "numbers.raw").write_bytes(CLIP.tobytes())
    layout = h5py.VirtualLayout(CLIP.shape, "u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "im", CLIP.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["linked"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "im")
        file["soft"] = h5py.SoftLink("/linked")
        file["group"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", CLIP.shape, "u1", external=[(str(tmp_path / "numbers.raw"), 0, CLIP.nbytes)])
    for name in ("linked", "soft", "virtual", "raw", "group/im"):
        assert refused(tmp_path / "a.h5", dataset=name).reason == "data_outside", name
    assert refused(tmp_path / "a.h5", dataset="nowhere").reason == "array_missing"


def test_hdf5_without_numbers_or_with_absurd_sizes_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("never", (4, 5, 6), "u1")
        file.create_dataset("huge", (1 << 20, 1 << 20, 1 << 20), "u1", chunks=(1, 64, 64))
        file.create_dataset("block", (4, 40000, 40000), "u1", chunks=(4, 40000, 40000))
        file["texts"] = np.array([[b"a", b"b"]])
    reasons = {name: refused(tmp_path / "a.h5", dataset=name).reason for name in ("never", "huge", "block")}
    assert reasons == {"never": "truncated", "huge": "too_large", "block": "too_large"}
    assert refused(tmp_path / "a.h5", "yx", dataset="texts").reason == "unsupported"


def test_a_mat_file_of_nested_structures_is_refused_not_followed_to_the_end_of_the_stack(tmp_path):
    def part(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)

    inner = b""
    for _ in range(3000):
        inner = part(14, part(6, struct.pack("<II", 1, 0)) + part(5, struct.pack("<2i", 1, 1)) + part(1, b"c") + inner)
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + inner)
    assert refused(tmp_path / "a.mat").reason == "unsupported"


def test_mat_files_of_no_grey_levels_are_refused(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"z": CLIP[0] * 1j, "s": {"a": 1}, "t": "text"})
    for name in ("z", "s", "t"):
        assert refused(tmp_path / "a.mat", "yx", dataset=name).reason == "unsupported", name
    scipy.io.savemat(tmp_path / "b.mat", {"im": CLIP[0]}, format="4")
    assert refused(tmp_path / "b.mat", "yx").reason == "unsupported"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"just words", "unsupported"),
        (gzip.compress(b"no array in here", mtime=0), "unsupported"),
        (b"\x93NUMPY\x09\x00", "unreadable"),
        (b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 6 5\nencoding: raw\n\n", "unreadable"),
        (b"NRRD0004\ntype: block\ndimension: 1\nsizes: 6\nencoding: raw\n\n", "unsupported"),
        (b"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 6 5\nencoding: hex\n\n", "unsupported"),
        (b"ObjectType = Image\nNDims = x\n", "unreadable"),
        (
            b"ObjectType = Image\nNDims = 2\nDimSize = 2 2\nElementType = MET_STRING\nElementDataFile = LOCAL\n",
            "unsupported",
        ),
        (bytes(nifti_header(5, 5)[:344]) + b"ni1\0" + bytes(100), "unsupported"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, content, reason):
    (tmp_path / "a").write_bytes(content)
    assert refused(tmp_path / "a").reason == reason


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert refused(tmp_path / "none.nii").reason == "missing"
    assert refused(tmp_path).reason == "unreadable"


def test_an_npz_whose_member_is_damaged_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, im=CLIP)
    content = bytearray(buffer.getvalue())
    content[200] ^= 255  # the zip's checksum tells
    (tmp_path / "a.npz").write_bytes(content)
    assert refused(tmp_path / "a.npz").reason == "unreadable"
