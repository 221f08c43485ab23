"""Small arrays in every format of volumes, written by the formats' own libraries, and cards that read them."""

from pathlib import Path
from typing import Any

import cv2
import h5py
import nibabel
import numpy as np
import scipy.io
import SimpleITK
from numpy.typing import NDArray

from ingest.card import Card
from ingest.run import IngestReport, ingest
from usdata.lake import Lake

Array = NDArray[Any]
BASE = {"name": "mine", "title": "t", "citation": "c", "licence": "MIT", "commercial_use": "yes"}
BASE |= {"redistribution": "yes", "deid_profile": "public", "defaults": {"organ": "heart"}}


def counted(*shape: int, dtype: str = "u1") -> Array:
    """0, 1, 2, ... in reading order, wrapped at 251 so that bytes suffice and rows differ."""
    return (np.arange(int(np.prod(shape))) % 251).astype(dtype).reshape(shape)


def write(path: Path, array: Array, spacing: tuple[float, ...] | None = None, **options: Any) -> Path:
    """`array` (frames, rows, columns) or (rows, columns) in the format that the name's ending stands for.

    NIfTI gets it transposed, so that its index order is x, y, f; the others as it is. `spacing`: of x, y, f.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes)
    if suffix in (".nii", ".nii.gz"):
        steps = spacing or (1.0,) * array.ndim
        picture = nibabel.Nifti1Image(array.T, np.diag([*steps[:3], *[1.0] * (4 - len(steps[:3]))]))
        nibabel.save(picture, path)
    elif suffix in (".mha", ".mhd", ".nrrd", ".nhdr"):
        image = SimpleITK.GetImageFromArray(array, isVector=options.pop("colours", False))
        image.SetSpacing(spacing or (1.0,) * image.GetDimension())
        SimpleITK.WriteImage(image, str(path), options.pop("packed", False))
    elif suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez_compressed(path, **{options.pop("name", "im"): array})
    elif suffix in (".h5", ".hdf5"):
        with h5py.File(path, "w") as file:
            file.create_dataset(options.pop("name", "im"), data=array, **options)
    elif suffix == ".mat":
        scipy.io.savemat(path, {options.pop("name", "im"): array}, do_compression=options.pop("packed", True))
    else:
        raise ValueError(suffix)
    return path


def card(**parts: Any) -> Card:
    """A card of hearts with the given parts."""
    return Card.model_validate({**BASE, **parts})


def run(source: Path, lake: Path, workers: int = 1, **parts: Any) -> tuple[IngestReport, list[dict[str, Any]]]:
    """Ingest `source` into `lake`; the report and the rows by source and frame."""
    report = ingest(card(**parts), source, Lake.create(lake), workers=workers)
    return report, rows(lake)


def rows(lake: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Lake(lake).sql("select * from samples order by source_id, frame").to_pylist()
    return found


def quarantine(lake: Path) -> list[tuple[Any, ...]]:
    """(source_id, frame, stage, reason), sorted."""
    table = Lake(lake).sql("select source_id, frame, stage, reason from quarantine order by all")
    return [tuple(row.values()) for row in table.to_pylist()]


def pixels(lake: Path) -> list[tuple[Array, Array | None]]:
    """Image and mask of each sample, in the order of `rows`; a source of 256 x 256 pixels comes back unchanged."""
    out = []
    for row in rows(lake):
        with (lake / row["shard"]).open("rb") as file:
            parts = []
            for offset, size in ((row["offset"], row["size"]), (row["mask_offset"], row["mask_size"])):
                file.seek(offset or 0)
                content = np.frombuffer(file.read(size or 0), np.uint8)
                parts.append(None if size is None else cv2.imdecode(content, cv2.IMREAD_UNCHANGED))
        out.append(tuple(parts))
    return out
