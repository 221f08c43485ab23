"""Stanford thyroid ultrasound cine-clips: `dataset.hdf5` with all frames of all clips one below the other.

image, mask: (N, H, W); annot_id: (N,) bytes such as "103_", equal within a clip; frame_num: (N,). The file has 36 GB,
so rows are read one at a time. A patient with several nodules has several ids with one number ("103_1", "103_2").
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ingest.readers.volume import to_grey_levels
from ingest.readers.volume_named import hdf5_array, opened_hdf5
from ingest.special import Entry, Read
from usdata.errors import DataError

_ROWS = 10_000_000  # more is an absurd header


def entries(path: Path) -> Iterator[Entry]:
    """One entry per clip; words: `annot_id` as stored, `nodule` (without the last underscore), `patient` (its number).

    Raises:
        DataError: see `ingest.readers.volume_named`; wrong_axes when the arrays do not belong together.
    """
    with opened_hdf5(path) as file:
        clips = _clips(file)
    for stored, rows in clips.items():
        nodule = stored.rstrip("_")
        yield Entry(nodule, len(rows), {"annot_id": stored, "nodule": nodule, "patient": nodule.partition("_")[0]})


def read(path: Path, key: str, indices: Sequence[int]) -> Read:
    """Frames of a clip in the order of their frame_num; masks are 255 inside and 0 outside."""
    with opened_hdf5(path) as file:
        rows = next((rows for stored, rows in _clips(file).items() if stored.rstrip("_") == key), None)
        if rows is None:
            raise DataError("frame_missing", f"There is no clip {key!r} any more.", step="read")
        image, mask = hdf5_array(file, "image"), hdf5_array(file, "mask")
        for index in indices:
            if index >= len(rows):
                raise DataError("frame_missing", f"Clip {key!r} ends before frame {index}.", step="read")
            pixels = to_grey_levels(np.asarray(image[rows[index]]), "stored")
            yield index, pixels, np.where(np.asarray(mask[rows[index]]) != 0, 255, 0).astype(np.uint8)


def _clips(file: Any) -> dict[str, list[int]]:
    """annot_id -> its rows, by frame number; sorted."""
    image, mask, ids, numbers = (hdf5_array(file, name) for name in ("image", "mask", "annot_id", "frame_num"))
    count = int(ids.shape[0]) if ids.ndim else 0
    if image.ndim != 3 or mask.shape != image.shape or count != image.shape[0] or numbers.size != count:
        shapes = f"image {image.shape}, mask {mask.shape}, annot_id {ids.shape}, frame_num {numbers.shape}"
        raise DataError("wrong_axes", f"The arrays do not belong together: {shapes}.", step="read")
    if count > _ROWS:
        raise DataError("too_large", f"{count} rows.", step="read")
    found: dict[str, list[tuple[float, int]]] = {}
    pairs = zip(np.asarray(ids[()]).ravel().tolist(), np.asarray(numbers[()], np.float64).ravel().tolist(), strict=True)
    for row, (word, number) in enumerate(pairs):
        text = word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
        found.setdefault(text.strip(), []).append((number, row))
    return {word: [row for _, row in sorted(found[word])] for word in sorted(found)}
