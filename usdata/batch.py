"""From row numbers to a batch: pixels, masks and catalog columns as tensors and lists.

The pixels are copied once, from the mapped shards into memory that is used again: fresh pages cost more than the copy.
"""

import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from usdata import png
from usdata.errors import ConfigError
from usdata.reader import Gather, ShardIndex, ShardReader, file_buffer

Batch = dict[str, Any]
_STRIDES = (png.PITCH, png.PITCH, png.ROW, 1)  # of a batch of images in its buffer
_PIXELS = png.FIRST + 1  # where they begin in it


class Assembler:
    """Makes the batches of an index, as `usdata.loader.Loader` describes them. Safe to use from several threads.

    Args:
        columns: names of columns of the index to deliver.
        mask: deliver masks.
        checksums: check each image's checksums.
        spare: how many free buffers are kept.
        pin: put the pixels into page-locked memory, from which a GPU copies by itself; by default if there is one.

    Raises:
        ConfigError: an unknown column, or masks of an index without them.
    """

    def __init__(
        self,
        index: ShardIndex,
        columns: Sequence[str] = (),
        mask: bool = False,
        checksums: bool = False,
        spare: int = 0,
        pin: bool | None = None,
    ) -> None:
        if mask and index.mask_size is None:
            raise ConfigError("mask=True, but this index has no places of masks.")
        self.reader = ShardReader(index, checksums, gather_from=gather_from)
        self.mask = mask
        self._columns = {name: column_values(index.column(name)) for name in columns}
        self._pin = torch.cuda.is_available() if pin is None else pin
        self._buffers: deque[NDArray[np.uint8]] = deque(maxlen=spare)  # free ones

    def batch(self, rows: NDArray[np.integer]) -> Batch:
        """The batch of these rows, in their order.

        Raises:
            LakeError: a shard is missing, was replaced, or is damaged.
        """
        batch: Batch = {"image": self._pinned(rows) if self._pin else self._images(rows)}
        for name, values in self._columns.items():
            batch[name] = values(rows)
        if self.mask:
            masks, known = self.reader.masks(rows)
            batch |= {"mask": torch.from_numpy(masks)[:, None], "has_mask": torch.from_numpy(known)}
        return batch

    def _images(self, rows: NDArray[np.integer]) -> Tensor:
        """uint8 (B, 1, 256, 256). Its memory comes from, and goes back to, the free buffers."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = file_buffer(len(rows))
        if len(buffer) < len(rows):
            buffer = file_buffer(len(rows))
        self.reader.images(rows, buffer)
        lent = buffer[:]  # the tensor, its views and their numpy views keep this object alive, and nothing else does
        weakref.finalize(lent, self._buffers.append, buffer).atexit = False
        return _view(torch.from_numpy(lent), len(rows))

    def _pinned(self, rows: NDArray[np.integer]) -> Tensor:
        """As `_images`. torch keeps page-locked memory itself, and waits with it for copies that are under way."""
        buffer = torch.empty(len(rows), png.PITCH, dtype=torch.uint8, pin_memory=True)
        self.reader.images(rows, buffer.numpy())
        return _view(buffer, len(rows))


def _view(buffer: Tensor, n: int) -> Tensor:
    return buffer.as_strided((n, 1, png.SIDE, png.SIDE), _STRIDES, _PIXELS)


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """A batch's images on another device, without waiting for the copy if the memory is pinned.

    torch would first gather a strided view into ordinary memory; so the whole buffer is sent, 0.6 % more bytes.

    Args:
        images: uint8 (B, 1, 256, 256), of a loader or a stretch of one's batch; any other is copied as torch does it.
    """
    if images.device == device:
        return images
    start = images.storage_offset() - _PIXELS
    ours = images.stride() == _STRIDES and images.shape[1:] == (1, png.SIDE, png.SIDE) and images.dtype == torch.uint8
    if not ours or start < 0 or start % png.PITCH:
        return images.to(device, non_blocking=True)
    buffer = images.as_strided((len(images), png.PITCH), (png.PITCH, 1), start)
    return _view(buffer.to(device, non_blocking=True), len(images))


def gather_from(words: NDArray[np.int64]) -> Gather:
    """As `usdata.reader.gather_from`: all blocks in one compiled call, without Python's lock.

    The blocks are the rows of a view in which each begins one word after the one before.
    """
    with warnings.catch_warnings():  # torch has no read-only tensors; nothing writes to this one
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        memory = torch.from_numpy(words)

    def gather(starts: NDArray[np.int64], out: NDArray[np.int64]) -> None:
        blocks = memory.as_strided((len(words) - out.shape[1] + 1, out.shape[1]), (1, 1))
        torch.index_select(blocks, 0, torch.from_numpy(starts), out=torch.from_numpy(out))

    return gather


def column_values(column: pa.Array | pa.ChunkedArray) -> Callable[[NDArray[np.integer]], Tensor | list[Any]]:
    """A function from rows to their values, as `usdata.loader.Loader` describes them."""
    kind, has_nulls = column.type, column.null_count > 0
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    truth = pa.types.is_boolean(plain)

    def numbers(rows: NDArray[np.integer]) -> Tensor:
        values = column.take(pa.array(rows)).cast(plain)
        if has_nulls:
            values = (values.cast(pa.int8()) if truth else values).cast(pa.float64(), safe=False)
        return torch.tensor(np.asarray(values))

    def words(rows: NDArray[np.integer]) -> list[Any]:
        values = column.take(pa.array(rows)).cast(plain)
        return np.asarray(values).tolist()  # several times as fast as to_pylist()

    if truth or pa.types.is_integer(plain) or pa.types.is_floating(plain):
        return numbers
    if pa.types.is_string(plain) or pa.types.is_large_string(plain):
        return words
    return lambda rows: column.take(pa.array(rows)).to_pylist()
