"""Random access to images in local shards: memory-mapped, one block copy per image, nothing decoded."""

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from usdata import png
from usdata.errors import ConfigError, DataError, LakeError, nearest
from usdata.files import Stamp, file_stamp

_CACHE_LINE = 64
_STRETCH = 128  # images read between two looks at the open shards
_MOST_SHARDS = 4096  # mapped at a time, if the process may open that many files


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


class ShardReader:
    """Reads images and masks of an index by row number. Safe to use from several threads.

    Each image's PNG structure is checked (signature, header, stored blocks, every eighth filter byte): a few per cent
    of the time. The shards stay mapped, at most `most_shards` of them. A shard in use must not be cut short in place;
    ingest never does that, it renames whole files into place.

    Args:
        index: where the images are.
        checksums: also check each image's Adler-32 and CRC-32, which finds any flipped bit and costs more than the
            reading itself.
        most_shards: how many shards may be mapped at a time; by default what the process may open, with a margin.
    """

    def __init__(self, index: ShardIndex, checksums: bool = False, most_shards: int | None = None) -> None:
        self.index, self.checksums = index, checksums
        self._most = _open_limit() if most_shards is None else most_shards
        self._maps: dict[int, NDArray[np.uint8]] = {}  # the last used shard is the last
        self._lock = Lock()

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
        for start in range(0, len(rows), _STRETCH):
            part = slice(start, start + _STRETCH)
            self._copy(rows[part], files[part])
        self._check(rows, files)
        return png.close_gap(files)

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
        sizes = index.mask_size[rows]
        for i in np.flatnonzero(sizes > 0).tolist():
            shard, offset = int(index.shard[rows[i]]), int(index.mask_offset[rows[i]])
            mask = _decode_mask(self._shards([shard])[shard][offset : offset + int(sizes[i])])
            if mask is None:
                raise self._damage(shard, offset, "The mask is not an 8-bit grey PNG of 256 x 256.")
            out[i] = mask
        return out, sizes > 0

    def _copy(self, rows: NDArray[np.integer], files: NDArray[np.uint8]) -> None:
        shard, offset = self.index.shard[rows], self.index.offset[rows].tolist()
        maps = self._shards(np.unique(shard).tolist())
        for file, s, at in zip(files[:, : png.SIZE], shard.tolist(), offset, strict=True):
            try:
                file[:] = maps[s][at : at + png.SIZE]
            except ValueError:  # numpy cuts the slice short at the end of the map
                raise self._damage(s, at, "The shard ends before the image does.") from None

    def _check(self, rows: NDArray[np.integer], files: NDArray[np.uint8]) -> None:
        bad = np.flatnonzero(~png.are_canonical(files))
        if bad.size:
            raise self._damage_at(rows[bad[0]], "This is not a canonical PNG.")
        if not self.checksums:
            return
        for row, file in zip(rows, files, strict=True):
            try:
                png.check(file[: png.SIZE])
            except DataError as error:
                raise self._damage_at(row, error.message) from error

    def _shards(self, numbers: Iterable[int]) -> dict[int, NDArray[np.uint8]]:
        """The bytes of these shards. A shard that is dropped here stays mapped while another thread reads it."""
        found = {}
        with self._lock:
            for number in numbers:
                mapped = self._maps.pop(number, None)
                found[number] = self._maps[number] = self._map(number) if mapped is None else mapped
                while len(self._maps) > self._most:
                    del self._maps[next(iter(self._maps))]
        return found

    def _map(self, number: int) -> NDArray[np.uint8]:
        path = self.index.root / self.index.shards[number]
        try:
            with path.open("rb") as file:
                self._check_same(number, file.fileno())
                return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except FileNotFoundError:
            raise self._error(number, "The shard is missing.") from None
        except (OSError, ValueError) as error:  # ValueError: mmap's word for an empty file
            raise self._error(number, f"The shard can't be read ({error}).") from error

    def _check_same(self, number: int, descriptor: int) -> None:
        """The offsets of an index fit the shard it was made from: in a later one they lead to other images."""
        known = self.index.stamps[number] if self.index.stamps else None
        if known is not None and file_stamp(descriptor) != known:
            raise LakeError(
                "The shard was replaced after the cohort was opened: data was ingested meanwhile.",
                item=self.index.shards[number],
                step="read",
                hint="Open the lake and the cohort again.",
            )

    def _damage_at(self, row: np.integer, message: str) -> LakeError:
        return self._damage(int(self.index.shard[row]), int(self.index.offset[row]), message)

    def _damage(self, number: int, offset: int, message: str) -> LakeError:
        return self._error(number, f"Damage at byte {offset}: {message}")

    def _error(self, number: int, message: str) -> LakeError:
        hint = f"All that is wrong, and how to repair it:  usdata verify --lake {self.index.root}"
        return LakeError(message, item=self.index.shards[number], step="read", hint=hint)


def file_buffer(n: int) -> NDArray[np.uint8]:
    """Room for n PNG files, shape (n, PITCH), each at the start of a cache line, as members of a tar file are."""
    room = np.empty(n * png.PITCH + _CACHE_LINE, np.uint8)
    start = -room.ctypes.data % _CACHE_LINE
    return room[start : start + n * png.PITCH].reshape(n, png.PITCH)


def _decode_mask(data: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    import cv2  # here, because most cohorts are read without masks

    mask = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    fine = mask is not None and mask.dtype == np.uint8 and mask.shape == (png.SIDE, png.SIDE)
    return np.asarray(mask, np.uint8) if fine else None


def _open_limit() -> int:
    """A quarter of the files that this process may open: a map holds one open, and others need some too."""
    try:
        import resource
    except ImportError:  # Windows
        return _STRETCH
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_SHARDS if soft == resource.RLIM_INFINITY else max(1, min(_MOST_SHARDS, soft // 4))
