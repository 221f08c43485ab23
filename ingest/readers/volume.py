"""Arrays of frames or slices: NIfTI, MetaImage, NRRD, NPY, NPZ, HDF5 and MAT, as a card's `arrays` says to see them.

What a file is, its first bytes say; its name is not believed. Where a format says millimetres, they fill `pixel_mm_x`
and `pixel_mm_y` unless the card gives them; see `volume_headers` for when a unit is trusted.

A volume may lack axes at its end that have one element, or have such axes besides, where the format is NIfTI, whose
writers drop and add them at will: (i, j, 1), (i, j) and (i, j, 1, 1) fit `axes: xyf` alike.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.card_parts import Arrays
from ingest.readers import volume_headers, volume_mat, volume_named
from ingest.readers.volume_stored import Array, Opened, Unpacked, check_frames
from usdata.errors import DataError

_HEAD = 4096
_OVER = 1e-3  # by how much rounding may carry a number out of 0 to 1; ours


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """What a volume holds. A volume of one frame is a still image."""

    n_frames: int
    height: int  # pixels
    width: int
    spacing: tuple[float | None, float | None]  # millimetres per pixel along x and y; None: the file does not say


@dataclass(frozen=True, slots=True)
class _View:
    """An opened array and which of its axes is what."""

    array: Opened
    axes: str  # one letter for each axis of the array
    flip: tuple[str, ...]

    @property
    def frame_axis(self) -> int | None:
        place = self.axes.find("f")
        return None if place < 0 else place

    def size(self, letter: str) -> int:
        place = self.axes.find(letter)
        return 1 if place < 0 else self.array.shape[place]

    def frames(self, indices: Sequence[int]) -> Iterator[Array]:
        """Frames as (y, x), or (y, x, c or k), turned as the card says."""
        count = self.size("f")
        stored = [count - 1 - index for index in indices] if "f" in self.flip else list(indices)
        letters = self.axes.replace("f", "")
        kept = letters.replace("_", "")
        order = [kept.index(letter) for letter in "yxck" if letter in kept]
        for block in self.array.frames(self.frame_axis, stored):
            frame = block.reshape([size for size, letter in zip(block.shape, letters, strict=True) if letter != "_"])
            frame = frame.transpose(order)
            if "y" in self.flip:
                frame = frame[::-1]
            if "x" in self.flip:
                frame = frame[:, ::-1]
            yield frame


def is_array(path: Path) -> bool:
    """Whether a file begins as one of the formats that are read here, or as pickled objects."""
    try:
        return _kind(path) is not None
    except DataError:
        return True  # damaged or pickled, but no picture
    except OSError:
        return False


def other_files(path: Path) -> tuple[Path, ...]:
    """The files besides `path` that hold its numbers: of .mhd and .nhdr. They belong to its hash.

    Raises:
        DataError: see `probe`.
    """
    with _explained():
        kind = _kind(path)
        if kind not in ("meta", "nrrd"):
            return ()
        stored = volume_headers.meta_image(path) if kind == "meta" else volume_headers.nrrd(path)
        return () if stored.path == path else (stored.path,)


def probe(path: Path, arrays: Arrays) -> VolumeInfo:
    """Frames and size of a volume, after checking that its numbers are all there (packed ones are unpacked once).

    Raises:
        DataError: missing, empty_file, unsupported, unreadable, truncated, too_large, pickled, wrong_axes,
            array_missing (no array of that name), data_outside (its numbers lie in another folder), data_missing.
    """
    with _explained():
        view = _view(path, arrays.axes, arrays.flip, arrays.dataset)
        view.array.check(view.frame_axis)
        info = VolumeInfo(view.size("f"), view.size("y"), view.size("x"), _spacing(view))
        check_frames(info.n_frames, info.height, info.width)
        return info


def read_frames(path: Path, arrays: Arrays, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The frames `indices` (0-based, ascending) as (index, uint8 (H, W), or (H, W, 3) RGB where the axes have colours).

    Raises:
        ValueError: indices negative, or not strictly ascending.
        DataError: see `probe`; not_finite, outside_window (numbers that the card's `window` does not allow),
            frame_missing.
    """
    _check_ascending(indices)
    with _explained():
        view = _view(path, arrays.axes, arrays.flip, arrays.dataset)
        if view.size("c") not in (1, 3, 4) or "k" in view.axes:
            raise _wrong_axes(view.array.shape, arrays.axes, "c must be 1, 3 or 4 long, and k is for masks")
        _check_there(view, indices)
        window = _range(view) if arrays.window == "range" else arrays.window
        for index, frame in zip(indices, view.frames(indices), strict=True):
            grey = to_grey_levels(frame, window)
            if grey.ndim == 3:  # transparency is dropped, as that of pictures
                grey = grey[..., 0] if grey.shape[2] == 1 else grey[..., :3]
            yield index, np.ascontiguousarray(grey)


@dataclass(frozen=True, slots=True)
class MaskInfo:
    """What a mask volume holds."""

    n_frames: int
    height: int
    width: int
    planes: bool  # whether each frame has a plane per class


def probe_mask(path: Path, arrays: Arrays, same_file: bool = False) -> MaskInfo:
    """As `probe`, of the mask of a volume: a file of its own, or `arrays.mask_dataset` of the volume's."""
    with _explained():
        view = _mask_view(path, arrays, same_file)
        if not same_file:
            view.array.check(view.frame_axis)
        info = MaskInfo(view.size("f"), view.size("y"), view.size("x"), "k" in view.axes)
        check_frames(info.n_frames, info.height, info.width)
        return info


def read_mask_frames(
    path: Path, arrays: Arrays, indices: Sequence[int], same_file: bool = False
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The mask's frames `indices` as (index, numbers): uint8 or bool, (H, W), (H, W, 3) or (H, W, K).

    Raises:
        DataError: see `probe`; mask_value (numbers that are no whole numbers from 0 to 255).
    """
    _check_ascending(indices)
    with _explained():
        view = _mask_view(path, arrays, same_file)
        _check_there(view, indices)
        for index, frame in zip(indices, view.frames(indices), strict=True):
            yield index, np.ascontiguousarray(_class_numbers(frame))


def to_grey_levels(values: Array, window: str | tuple[float, float]) -> NDArray[np.uint8]:
    """Numbers as grey levels: `window` maps two numbers to 0 and 255; halves are rounded up.

    Raises:
        DataError: numbers that are not finite, or that the window does not allow; the message says what to write.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError("not_finite", "Numbers that are infinite or none (NaN).", step="read")
    if values.dtype.kind not in "buif":
        raise DataError("unsupported", f"Numbers of the type {values.dtype} are no grey levels.", step="read")
    if window == "stored":
        return _stored_levels(values)
    low, high = (0.0, 1.0) if isinstance(window, str) else window
    least, most = float(values.min()), float(values.max())
    if window == "unit" and not -_OVER <= least <= most <= 1 + _OVER:
        raise DataError(
            "outside_window",
            f"Numbers from {least:g} to {most:g}, not from 0 to 1; see arrays.window.",
            step="read",
        )
    if not high > low:
        return np.zeros(values.shape, np.uint8)  # a constant array: `range` has nothing to spread
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    return np.floor(np.clip(scaled, 0, 255) + 0.5).astype(np.uint8)


def _stored_levels(values: Array) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)  # as 1-bit pictures
    least, most = float(values.min()), float(values.max())
    if least < 0 or most > 255:
        text = f"Numbers from {least:g} to {most:g} are no grey levels; arrays.window must give two numbers, or range."
        raise DataError("outside_window", text, step="read")
    if values.dtype.kind == "f" and 0 < most <= 1 and bool((values != np.floor(values)).any()):
        text = f"Numbers from {least:g} to {most:g}: the card should say  window: unit."
        raise DataError("outside_window", text, step="read")
    if values.dtype.kind == "f":
        values = np.floor(values + 0.5)
    return values.astype(np.uint8)


def _class_numbers(values: Array) -> Array:
    if values.dtype.kind == "b" or values.dtype == np.uint8:
        return values
    with np.errstate(invalid="ignore"):
        small = values.astype(np.uint8)
    if values.dtype.kind not in "uif" or not bool((small == values).all()):
        text = "Numbers in the mask that are not whole numbers from 0 to 255."
        raise DataError("mask_value", text, step="mask")
    return small


def _range(view: _View) -> tuple[float, float]:
    """The smallest and the largest number of the whole array, in a pass of its own."""
    least, most = np.inf, -np.inf
    for frame in view.frames(range(view.size("f"))):
        if frame.dtype.kind == "f" and not np.isfinite(frame).all():
            raise DataError("not_finite", "Numbers that are infinite or none (NaN).", step="read")
        least, most = min(least, float(frame.min())), max(most, float(frame.max()))
    return least, most


def _mask_view(path: Path, arrays: Arrays, same_file: bool) -> _View:
    axes = arrays.mask_axes or arrays.axes
    name = arrays.mask_dataset if same_file or arrays.mask_dataset else arrays.dataset
    return _view(path, axes, arrays.flip, name)


def _view(path: Path, axes: str, flip: Sequence[str], dataset: str | None) -> _View:
    kind = _kind(path)
    array: Opened
    if kind == "nifti":
        array = volume_headers.nifti(path)
    elif kind == "meta":
        array = volume_headers.meta_image(path)
    elif kind == "nrrd":
        array = volume_headers.nrrd(path)
    elif kind == "npy":
        array = volume_headers.npy(path)
    elif kind == "npz":
        array = volume_named.npz(path, dataset)
    elif kind == "hdf5":
        array = volume_named.Lying(path, dataset)
    elif kind == "mat5":
        array = volume_named.mat5(path, dataset)
    else:
        raise DataError("unsupported", f"No array that is read here: the file begins {_head(path)[:8]!r}.", step="read")
    found = _fitted(axes, array.shape) if kind == "nifti" else axes
    for letter, size in zip(found, array.shape, strict=False):
        if letter == "_" and size != 1:
            raise _wrong_axes(array.shape, axes, f"an axis that the card calls `_` has {size} elements")
    if len(found) != len(array.shape):
        raise _wrong_axes(array.shape, axes, f"the card names {len(axes)}")
    return _View(array, found, tuple(flip))


def _fitted(axes: str, shape: tuple[int, ...]) -> str:
    """NIfTI's axes without those at the end that the file lacks, with `_` for those of one element that it has more."""
    colours = "c" if axes.endswith("c") and len(shape) > 2 and shape[-1] in (3, 4) else ""
    body, count = axes.removesuffix(colours), len(shape) - len(colours)
    while len(body) > count and body[-1] in "f_":
        body = body[:-1]
    while len(body) < count and shape[len(body)] == 1:
        body += "_"
    return body + colours


def _wrong_axes(shape: tuple[int, ...], axes: str, what: str) -> DataError:
    text = f"The array has the axes {' x '.join(map(str, shape))}, which arrays.axes {axes!r} does not fit: {what}."
    return DataError("wrong_axes", text, step="read")


def _spacing(view: _View) -> tuple[float | None, float | None]:
    return view.array.spacing[view.axes.index("x")], view.array.spacing[view.axes.index("y")]


def _check_there(view: _View, indices: Sequence[int]) -> None:
    if indices and indices[-1] >= view.size("f"):
        text = f"The array ends after {view.size('f')} frames, before frame {indices[-1]}."
        raise DataError("frame_missing", text, step="read")


def _check_ascending(indices: Sequence[int]) -> None:
    if any(index < 0 for index in indices[:1]) or any(b <= a for a, b in pairwise(indices)):
        raise ValueError("frame indices must be 0 or more and ascending")


def _kind(path: Path) -> str | None:
    head = _head(path)
    if not head:
        raise DataError("empty_file", "The file has no bytes.", step="read")
    if head.startswith(b"\x1f\x8b"):
        with path.open("rb") as file:
            return "nifti" if volume_headers.is_nifti(Unpacked(file, "deflate").up_to(8)) else None
    magics = {b"\x93NUMPY": "npy", b"NRRD000": "nrrd", volume_named.ZIP: "npz", volume_named.HDF5: "hdf5"}
    magics |= {volume_mat.MAT5: "mat5"}
    for magic, kind in magics.items():
        if head.startswith(magic):
            return kind
    if any(head[start : start + 8] == volume_named.HDF5 for start in (512, 1024, 2048)):
        return "hdf5"  # after a block of the user's own, as MAT files of version 7.3 have it
    if volume_headers.is_nifti(head):
        return "nifti"
    if volume_headers.is_meta_image(head):
        return "meta"
    if path.suffix.lower() in (".npy", ".pkl", ".pickle") and head[:1] == b"\x80":
        raise volume_headers.pickled()
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what the system says about a file into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("missing", "The file is not there any more.", step="read") from error
    except OSError as error:
        raise DataError("unreadable", f"{error.strerror or error}.", step="read") from error
