"""What a card's `arrays` says about axes, directions and grey levels is what is seen."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from fakes.volumes import counted, write
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.card_parts import Arrays
from ingest.readers import volume
from usdata.errors import DataError


def frames(path: Path, arrays: Arrays) -> np.ndarray:
    info = volume.probe(path, arrays)
    return np.stack([one for _, one in volume.read_frames(path, arrays, range(info.n_frames))])


AXES = ["".join(order) for letters in ("yx", "fyx", "yxc", "fyxc", "fyx_") for order in permutations(letters)]


@settings(deadline=None, max_examples=60)
@given(
    axes=st.sampled_from(AXES),
    flip=st.sets(st.sampled_from(["f", "y", "x"])),
    name=st.sampled_from(["a.npy", "f.npy", "a.nii", "a.nii.gz", "a.h5", "a.mat"]),
    sizes=st.tuples(st.integers(2, 4), st.integers(2, 4), st.integers(2, 4)),
)
def test_every_order_of_axes_and_every_flip_equals_numpys(tmp_path_factory, axes, flip, name, sizes):
    length = dict(zip("fyx", sizes, strict=True)) | {"c": 3, "_": 1}
    array = counted(*(length[letter] for letter in axes))
    folder = tmp_path_factory.mktemp("axes")
    stored = np.asfortranarray(array) if name == "f.npy" else array
    path = write(folder / name, stored.T if ".nii" in name else stored)  # `write` turns it for NIfTI
    found = frames(path, Arrays(axes=axes, flip=tuple(flip)))

    kept = axes.replace("_", "")
    expected = array.reshape([length[letter] for letter in kept])
    expected = expected.transpose([kept.index(letter) for letter in "fyxc" if letter in kept])
    expected = expected if "f" in kept else expected[None]
    for place, letter in enumerate("fyx"):
        if letter in flip:
            expected = np.flip(expected, place)
    assert (found == expected).all()


def test_frames_may_be_asked_for_in_parts_forwards_only(tmp_path):
    path = write(tmp_path / "a.nii.gz", counted(5, 3, 4))
    arrays = Arrays(axes="xyf", flip=("f",))
    assert [index for index, _ in volume.read_frames(path, arrays, [1, 4])] == [1, 4]
    for wrong in ([3, 1], [-1], [2, 2]):
        with pytest.raises(ValueError, match="ascending"):
            next(volume.read_frames(path, arrays, wrong))
    with pytest.raises(DataError, match="before frame 5") as caught:
        list(volume.read_frames(path, arrays, [5]))
    assert caught.value.reason == "frame_missing"


@pytest.mark.parametrize(
    ("window", "given", "expected"),
    [
        ("stored", [0, 12.4, 12.5, 255], [0, 12, 13, 255]),
        ("unit", [0, 0.5, 1, 0.1], [0, 128, 255, 26]),
        ("range", [-100, 100, 0, 300], [0, 128, 64, 255]),
        ("range", [7, 7, 7, 7], [0, 0, 0, 0]),
        ((-50, 50), [-60, -50, 0, 60], [0, 0, 128, 255]),
    ],
)
def test_a_window_maps_numbers_to_grey_levels(tmp_path, window, given, expected):
    path = write(tmp_path / "a.npy", np.array(given, np.float64).reshape(2, 2))
    assert frames(path, Arrays(axes="yx", window=window)).ravel().tolist() == expected


def test_the_range_is_that_of_all_frames_not_of_the_ones_asked_for(tmp_path):
    path = write(tmp_path / "a.npy", np.array([[[0, 10]], [[20, 100]]], np.int16))
    arrays = Arrays(axes="fyx", window="range")
    (_, first), *_ = volume.read_frames(path, arrays, [0])
    assert first.tolist() == [[0, 26]]


@pytest.mark.parametrize(
    ("window", "numbers", "reason", "advice"),
    [
        ("stored", [0, 256], "outside_window", "two numbers, or range"),
        ("stored", [-1, 3], "outside_window", "two numbers, or range"),
        ("stored", [0.25, 0.5], "outside_window", "window: unit"),
        ("unit", [0, 255], "outside_window", "arrays.window"),
        ("stored", [0, np.nan], "not_finite", "NaN"),
        ("range", [0, np.inf], "not_finite", "NaN"),
    ],
)
def test_numbers_that_the_window_does_not_allow_are_refused_with_advice(tmp_path, window, numbers, reason, advice):
    path = write(tmp_path / "a.npy", np.array([numbers, numbers], np.float64))
    with pytest.raises(DataError, match=advice) as caught:
        frames(path, Arrays(axes="yx", window=window))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("axes", "shape"),
    [("fyx", (4, 5)), ("yx", (4, 5, 6)), ("fyx_", (4, 5, 6, 2)), ("yxc", (4, 5, 2)), ("fyxk", (2, 4, 5, 3))],
)
def test_axes_that_do_not_fit_are_refused_and_the_message_shows_both(tmp_path, axes, shape):
    path = write(tmp_path / "a.npy", counted(*shape))
    with pytest.raises(DataError, match=f"'{axes}'") as caught:
        frames(path, Arrays(axes=axes))
    assert caught.value.reason == "wrong_axes"
    assert " x ".join(map(str, shape)) in caught.value.message


def test_an_array_that_is_not_named_must_be_the_only_one(tmp_path):
    np.savez(tmp_path / "a.npz", one=counted(3, 4), two=counted(3, 4))
    for name, message in ((None, "holds 2 arrays"), ("three", "no array 'three'")):
        with pytest.raises(DataError, match=message) as caught:
            frames(tmp_path / "a.npz", Arrays(axes="yx", dataset=name))
        assert caught.value.reason == "array_missing"
        assert "'one', 'two'" in caught.value.message


@pytest.mark.parametrize("numbers", [[0, 256], [0, 0.5], [-1, 0], [np.nan, 1]])
def test_a_masks_numbers_are_whole_and_fit_a_byte(tmp_path, numbers):
    path = write(tmp_path / "a.npy", np.array([numbers], np.float64))
    with pytest.raises(DataError) as caught:
        list(volume.read_mask_frames(path, Arrays(axes="yx"), [0]))
    assert caught.value.reason == "mask_value"
