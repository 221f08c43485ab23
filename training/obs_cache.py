"""The losses of a blur search on disk: added part by part, each whole or not there, found again by image and pixels.

FOLDER/obs-<weights>-<settings>-<rows>.parquet    a part; its name says of which weights, settings and rows

A search that is killed leaves the parts it had written. Two searches at a time add parts of different names.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from usdata.errors import LakeError
from usdata.files import explain_os_errors, replacing

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("view_hash", pa.string()),
        ("checkpoint_hash", pa.string()),
        ("t_star", pa.int64()),
        ("levels", pa.list_(pa.int64())),
        ("losses", pa.list_(pa.float32())),
    ]
)
_PART_ROWS, _PART_SECONDS = 16_384, 60.0  # a part is written at the first of the two
_ELSEWHERE = "with --cache DIR"
KEPT = "images searched so far are kept"


class Cache:
    """Losses by (image id, view hash), of one model and one setting of the search.

    In memory it holds 8 bytes and the losses of each image, so millions of images are no matter.

    Args:
        folder: where the parts are, made when there is something to write; None: remember nothing.
        checkpoint: hash of the weights.
        settings: hash of everything else that the losses depend on.
        levels: the L levels tried.

    Raises:
        LakeError: a part can't be read, or `folder` is none or can't be written.
    """

    def __init__(self, folder: Path | None, checkpoint: str, settings: str, levels: Sequence[int]) -> None:
        self.folder, self.checkpoint, self.levels = folder, checkpoint, list(levels)
        self.prefix = f"obs-{checkpoint}-{settings}"
        self._pending: list[tuple[str, str, int, NDArray[np.float32]]] = []
        self._begun = time.monotonic()
        if folder:
            _check_folder(folder)
        parts = [_read(path, len(levels)) for path in sorted(folder.glob(f"{self.prefix}-*.parquet"))] if folder else []
        keys = np.concatenate([keys for keys, _ in parts] or [np.empty(0, np.uint64)])
        losses = np.concatenate([losses for _, losses in parts] or [np.empty((0, len(levels)), np.float32)])
        order = np.argsort(keys, kind="stable")
        self._keys, self._losses = keys[order], losses[order]

    def find(self, ids: Sequence[str], views: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which of the images are known, (n,) bool, and their losses, (n, L) float32, NaN where they are not."""
        losses = np.full((len(ids), len(self.levels)), np.nan, np.float32)
        if not len(self._keys):
            return np.zeros(len(ids), bool), losses
        wanted = _keys(ids, views)
        places = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        known = self._keys[places] == wanted
        losses[known] = self._losses[places[known]]
        return known, losses

    def add(self, ids: Sequence[str], views: Sequence[str], best: Sequence[int], losses: NDArray[np.float32]) -> None:
        """Take in the levels chosen, (n,), and the losses, (n, L), of n images; writes them once in a while."""
        if self.folder is None:
            return
        self._pending += zip(ids, views, best, losses, strict=True)
        if len(self._pending) >= _PART_ROWS or time.monotonic() - self._begun > _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was taken in since the last part.

        Raises:
            LakeError: no room, or no permission.
        """
        if self.folder is None or not self._pending:
            return
        rows = sorted(self._pending, key=lambda row: row[:2])
        columns = [
            [row[0] for row in rows],
            [row[1] for row in rows],
            [self.checkpoint] * len(rows),
            [row[2] for row in rows],
            [self.levels] * len(rows),
            [row[3].tolist() for row in rows],
        ]
        names = xxhash.xxh3_64_hexdigest("\n".join(f"{row[0]} {row[1]}" for row in rows).encode())
        path = self.folder / f"{self.prefix}-{names}.parquet"
        with explain_os_errors(path, step="obs", elsewhere=_ELSEWHERE, kept=KEPT), replacing(path) as file:
            pq.write_table(pa.table(columns, schema=SCHEMA), file)
        self._pending, self._begun = [], time.monotonic()


def _check_folder(folder: Path) -> None:
    """Before hours of computing."""
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "no permission" if nearest.is_dir() else f"{nearest} is a file"
        raise LakeError(f"Can't write to {folder} ({reason}).", step="obs", hint=f"Choose another place {_ELSEWHERE}.")


def _keys(ids: Sequence[str], views: Sequence[str]) -> NDArray[np.uint64]:
    """A number for each pair. 64 bits: among 5 million images the chance that any two share one is 1 in a million."""
    pairs = zip(ids, views, strict=True)
    return np.array([xxhash.xxh3_64_intdigest(f"{i}\0{view}".encode()) for i, view in pairs], np.uint64)


def _read(path: Path, levels: int) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise LakeError(
            f"Cannot read the blur search in {path}: {error}", hint="Delete the file to search again"
        ) from error
    losses = table["losses"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return _keys(table["image_id"].to_pylist(), table["view_hash"].to_pylist()), losses.reshape(-1, levels)
