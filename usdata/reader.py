"""Random access to images in local shards: memory-mapped, one block copy per image, nothing decoded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from usdata import mask_png, png
from usdata.errors import ConfigError, DataError, LakeError, nearest
from usdata.files import Stamp
from usdata.shard_map import WORD, ShardMap

_CACHE_LINE = 64
_SLOW = 20e-6  # seconds for one image: several times what a copy from memory takes
_HINTS = 16


@dataclass(frozen=True)
class ShardIndex:
    """Where each image of a cohort is, and the catalog columns that go with it.

    Raises:
        LakeError: parts of unequal length, or a location that can't be.
    """

    root: Path  # the lake
    shards: list[str]  # paths below the root
    shard: NDArray[np.int32]  # (n,) index into `shards`
    offset: NDArray[np.int64]  # (n,) first byte of the PNG
    mask_offset: NDArray[np.int64] | None = None  # (n,) first byte of the mask, in the same shard
    mask_size: NDArray[np.int64] | None = None  # (n,) bytes; 0 or less where there is no mask
    columns: Mapping[str, pa.Array | pa.ChunkedArray] = field(default_factory=dict)  # each of length n
    stamps: tuple[Stamp | None, ...] = ()  # of each shard when the index was made; none: not checked

    def __post_init__(self) -> None:
        parts = {"offset": self.offset, "mask_offset": self.mask_offset, "mask_size": self.mask_size, **self.columns}
        for name, part in parts.items():
            if part is not None and len(part) != len(self):
                raise LakeError(f"The index has {len(self)} images, but {len(part)} values of {name}.", step="read")
        if self.stamps and len(self.stamps) != len(self.shards):
            raise LakeError(f"The index has {len(self.shards)} shards, but {len(self.stamps)} stamps.", step="read")
        if len(self) and not (self.shard.min() >= 0 and self.shard.max() < len(self.shards) and self.offset.min() >= 0):
            raise LakeError("The index has an image outside its shards.", step="read")

    def __len__(self) -> int:
        return len(self.shard)

    def column(self, name: str) -> pa.Array | pa.ChunkedArray:
        """One of the columns.

        Raises:
            ConfigError: not among them; the message gives the nearest.
        """
        if name not in self.columns:
            raise ConfigError(f"The index has no column {name!r}.{nearest(name, self.columns)}")
        return self.columns[name]


Gather = Callable[[NDArray[np.int64], NDArray[np.int64]], None]  # starts, out


def gather_from(words: NDArray[np.int64]) -> Gather:
    """A function that does `out[i] = words[starts[i] : starts[i] + out.shape[1]]` for each i, one block copy each.

    `usdata.batch.gather_from` makes one that does it in a single call of compiled code, but needs torch.
    """

    def gather(starts: NDArray[np.int64], out: NDArray[np.int64]) -> None:
        width = out.shape[1]
        for row, start in zip(out, starts.tolist(), strict=True):
            row[:] = words[start : start + width]

    return gather


class ShardReader:
    """Reads images and masks of an index by row number. Safe to use from several threads.

    Each image's PNG structure (signature, header, stored blocks, filter bytes) is checked when it is first read.

    Args:
        index: where the images are.
        checksums: also check each image's checksums, each time: finds any flipped bit and costs more than the reading.
        most_shards: how many shards may be mapped at a time; by default more than most lakes have.
        gather_from: makes what copies the blocks.
    """

    def __init__(
        self,
        index: ShardIndex,
        checksums: bool = False,
        most_shards: int | None = None,
        gather_from: Callable[[NDArray[np.int64]], Gather] = gather_from,
    ) -> None:
        self.index, self.checksums = index, checksums
        self._map = ShardMap(index.root, index.shards, index.stamps, most_shards)
        self._gather = gather_from(self._map.words)
        self._known = np.zeros(len(index), bool)  # images whose structure was checked
        self._hints = _HINTS  # calls that will still tell the system in advance what they read

    def images(self, rows: NDArray[np.integer], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The pixels of some rows, in the order of `rows`.

        Args:
            rows: shape (n,), row numbers of the index.
            out: a buffer of `file_buffer(n)` or more, to use again; its contents are lost.

        Returns:
            Shape (n, 256, 256), uint8: a strided view of the buffer.

        Raises:
            LakeError: a shard is missing, cut short or was replaced, or an image in it is damaged.
        """
        files = (file_buffer(len(rows)) if out is None else out)[: len(rows)]
        shards = self.index.shard[rows]
        with self._map.held(shards):
            self._copy(shards, self.index.offset[rows], files)
        self._check(rows, files)
        png.close_gap(files)
        return png.pixels(files)

    def masks(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The masks of some rows: class indices of shape (n, 256, 256), uint8, and whether there is one, shape (n,).

        An image without a mask has zeros.

        Raises:
            ConfigError: the index was built without the places of the masks.
            LakeError: a mask can't be read.
        """
        index = self.index
        if index.mask_offset is None or index.mask_size is None:
            raise ConfigError("This index has no places of masks.", hint="cohort.index(mask=True) gives one that has.")
        out = np.zeros((len(rows), png.SIDE, png.SIDE), np.uint8)
        known = index.mask_size[rows] > 0
        for i in np.flatnonzero(known).tolist():
            out[i] = self._mask(index.shard[rows[i]], int(index.mask_offset[rows[i]]), int(index.mask_size[rows[i]]))
        return out, known

    def _mask(self, shard: np.integer, offset: int, size: int) -> NDArray[np.uint8]:
        if offset < 0 or offset + size > self._map.room[shard]:
            raise self._damage(int(shard), offset, "The shard ends before the mask does.")
        start = int(self._map.starts[shard]) + offset
        with self._map.held(np.array([shard])):
            data = self._map.bytes[start : start + size].tobytes()
        try:
            return mask_png.decode(data)
        except DataError as error:
            raise self._damage(int(shard), offset, error.message) from error

    def _copy(self, shards: NDArray[np.int32], offset: NDArray[np.int64], files: NDArray[np.uint8]) -> None:
        """Whole files into the rows of `files`.

        While images come from the disk, all of them are asked for before the first is waited for: four times as fast.
        """
        outside = (offset > self._map.room[shards] - png.PITCH) | (offset % WORD != 0)
        if outside.any():  # a tar file's members start at whole blocks, and end a good way before the file does
            bad = int(outside.argmax())
            raise self._damage(int(shards[bad]), int(offset[bad]), "The shard ends before the image does.")
        starts = self._map.starts[shards] + offset
        if self._hints:
            self._map.will_need(starts, png.SIZE)
        begin = perf_counter()
        self._gather(starts // WORD, files.view(np.int64))
        slow = perf_counter() - begin > _SLOW * len(files)
        self._hints = _HINTS if slow else max(0, self._hints - 1)

    def _check(self, rows: NDArray[np.integer], files: NDArray[np.uint8]) -> None:
        new = np.flatnonzero(~self._known[rows])
        if new.size:
            bad = new[~png.are_canonical(files[new])]
            if bad.size:
                raise self._damage_at(rows[bad[0]], "This is not a canonical PNG.")
            self._known[rows[new]] = True
        if self.checksums:
            wrong = np.flatnonzero(~png.crcs_fit(files))
            if wrong.size:
                raise self._damage_at(rows[wrong[0]], "The pixels do not match the file's checksums.")

    def _damage_at(self, row: np.integer, message: str) -> LakeError:
        return self._damage(int(self.index.shard[row]), int(self.index.offset[row]), message)

    def _damage(self, number: int, offset: int, message: str) -> LakeError:
        return self._map.error(number, f"Damage at byte {offset}: {message}")


def file_buffer(n: int) -> NDArray[np.uint8]:
    """Room for n PNG files, shape (n, PITCH), each at the start of a cache line, as members of a tar file are."""
    room = np.empty(n * png.PITCH + _CACHE_LINE, np.uint8)
    start = -room.ctypes.data % _CACHE_LINE
    return room[start : start + n * png.PITCH].reshape(n, png.PITCH)
