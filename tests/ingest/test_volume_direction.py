"""A NIfTI mask that runs another way than its volume is not laid over it."""

import nibabel
import numpy as np
import pytest
from fakes.volumes import counted, quarantine, rows, run, write

from ingest.readers.volume_direction import directions

TURNS = [np.diag(signs) for signs in ([1, 1, 1], [-1, 1, 1], [1, -1, -1], [-1, -1, 1])]
TURNS += [np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]]), np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]])]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("by", ["sform", "qform"])
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_directions_are_those_that_nibabel_reads(tmp_path, kind, by, turn, ending):
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.2, 0.3, 1.5])
    image = kind(np.zeros((4, 5, 6), np.uint8), affine)
    getattr(image, f"set_{by}")(affine, code=1)
    getattr(image, f"set_{'qform' if by == 'sform' else 'sform'}")(None, code=0)
    nibabel.save(image, tmp_path / f"a{ending}")
    orientation = nibabel.io_orientation(nibabel.load(tmp_path / f"a{ending}").affine)
    assert directions(tmp_path / f"a{ending}") == tuple((int(axis), int(sign)) for axis, sign in orientation)


def test_a_file_that_states_no_direction_or_is_no_nifti_has_none(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "a.nii")
    (tmp_path / "short.nii").write_bytes(b"\x5c\1\0\0")
    (tmp_path / "b.mha").write_bytes(b"ObjectType = Image\n" * 40)
    assert [directions(tmp_path / name) for name in ("a.nii", "short.nii", "b.mha")] == [None] * 3


def test_a_mirrored_mask_is_refused_and_its_volume_kept_without_it(tmp_path):
    source = tmp_path / "s"
    for name, flip in (("a", 1), ("b", -1)):
        write(source / f"{name}_im.nii.gz", counted(2, 8, 10))
        mask = nibabel.Nifti1Image(np.ones((10, 8, 2), np.uint8), np.diag([flip, 1, 1, 1]))
        nibabel.save(mask, source / f"{name}_gt.nii.gz")
    volume = {"volume": r"(?P<n>[ab])_im\.nii\.gz", "mask": r"(?P<n>[ab])_gt\.nii\.gz"}
    run(source, tmp_path / "lake", layout=volume, arrays={"axes": "xyf"}, masks={"kind": "index"})
    assert {(row["source_id"], row["has_mask"]) for row in rows(tmp_path / "lake")} == {
        ("a_im.nii.gz", True),
        ("b_im.nii.gz", False),
    }
    assert {(where, reason) for where, _, _, reason in quarantine(tmp_path / "lake")} == {
        ("b_gt.nii.gz", "mask_orientation")
    }
