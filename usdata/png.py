"""The canonical PNG: an ordinary PNG file that can also be read without decoding.

8-bit grey, 256 x 256, filter 0 in every row, zlib *stored* blocks: the first holds exactly 255 rows of 257 bytes
(filter byte + 256 pixels), the second the last row. So every file has 65,865 bytes, each pixel stands at a fixed
offset, and an image is two contiguous block copies away from a batch. Any PNG reader opens it.

    offset      0  signature      8 bytes
    offset      8  IHDR chunk    25 bytes
    offset     33  IDAT length and type, zlib header, header of block 1: 8 + 2 + 5 bytes
    offset     48  rows 0..254   65,535 bytes
    offset 65,583  header of block 2, 5 bytes
    offset 65,588  row 255       257 bytes
    offset 65,845  Adler-32 of the rows, CRC-32 of the IDAT chunk, IEND chunk: 4 + 4 + 12 bytes
"""

import struct

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from usdata.errors import DataError

SIDE = 256
ROW = SIDE + 1  # a filter byte, then the pixels
RAW = SIDE * ROW  # 65,792 bytes of rows
BLOCK = 65_535  # longest stored block; 255 rows exactly
FIRST = 48  # offset of row 0
SECOND = FIRST + BLOCK + 5  # offset of row 255
SIZE = 65_865
PITCH = 65_920  # distance of the files in a batch: whole cache lines, which copies a fifth faster

_IDAT = slice(37, 37 + 4 + 2 + 5 + BLOCK + 5 + ROW + 4)  # what the IDAT chunk's CRC covers: type and data

_ADLER = slice(SECOND + ROW, SECOND + ROW + 4)
_CRC = slice(SECOND + ROW + 4, SECOND + ROW + 8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", isal_zlib.crc32(kind + data))


def _template() -> NDArray[np.uint8]:
    """A whole file around black rows: encoding replaces the pixels and the two checksums."""
    ihdr = _chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0))
    blocks = b"".join(
        struct.pack("<BHH", last, size, size ^ 0xFFFF) + bytes(size) for last, size in ((0, BLOCK), (1, ROW))
    )
    data = b"\x78\x01" + blocks + struct.pack(">I", isal_zlib.adler32(bytes(RAW)))
    return np.frombuffer(b"\x89PNG\r\n\x1a\n" + ihdr + _chunk(b"IDAT", data) + _chunk(b"IEND", b""), np.uint8)


_FILE = _template()
_HEAD, _MIDDLE, _TAIL = _FILE[:FIRST].tobytes(), _FILE[SECOND - 5 : SECOND + 1].tobytes(), _FILE[-12:].tobytes()
_NO_FILTER = bytes(SIDE - 1)


def _adler(file: NDArray[np.uint8]) -> int:
    """Adler-32 of the rows of a file."""
    return isal_zlib.adler32(file[SECOND : SECOND + ROW].data, isal_zlib.adler32(file[FIRST : FIRST + BLOCK].data))


def encode(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Canonical PNG files of a batch.

    Args:
        images: shape (n, 256, 256), uint8 grey levels.

    Returns:
        Shape (n, 65865), uint8: row i holds the bytes of file i.

    Raises:
        ValueError: another shape or dtype.
    """
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"canonical PNGs hold uint8 (n, {SIDE}, {SIDE}), not {images.dtype} {images.shape}")
    out = np.tile(_FILE, (len(images), 1))
    rows = out[:, FIRST : FIRST + BLOCK].reshape(-1, SIDE - 1, ROW)
    rows[:, :, 1:] = images[:, :-1]
    out[:, SECOND + 1 : SECOND + ROW] = images[:, -1]
    for file in out:  # the CRC covers the Adler-32, so that must be there first
        file[_ADLER] = np.frombuffer(struct.pack(">I", _adler(file)), np.uint8)
        file[_CRC] = np.frombuffer(struct.pack(">I", isal_zlib.crc32(file[_IDAT])), np.uint8)
    return out


def is_canonical(file: NDArray[np.uint8]) -> bool:
    """Whether `file` (uint8 bytes) has the canonical structure. Cheap: looks at fixed offsets, not at checksums."""
    return file.size == SIZE and (
        file[:FIRST].tobytes() == _HEAD
        and file[SECOND - 5 : SECOND + 1].tobytes() == _MIDDLE
        and file[SIZE - 12 :].tobytes() == _TAIL
        and file[FIRST : FIRST + BLOCK : ROW].tobytes() == _NO_FILTER
    )


def decode(data: bytes | memoryview | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels of one canonical PNG, shape (256, 256), uint8.

    Raises:
        DataError: not canonical (reason `not_canonical`).
    """
    file = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    if not is_canonical(file):
        raise DataError("not_canonical", f"Not a canonical {SIDE} x {SIDE} PNG of {SIZE} bytes.")
    out = np.empty((SIDE, SIDE), np.uint8)
    out[:-1] = file[FIRST : FIRST + BLOCK].reshape(SIDE - 1, ROW)[:, 1:]
    out[-1] = file[SECOND + 1 : SECOND + ROW]
    return out


def are_canonical(files: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """`is_canonical` for a batch of files, shape (n, 65865 or wider), one per row: shape (n,), bool."""
    fine: NDArray[np.bool_] = (files[:, :FIRST] == _FILE[:FIRST]).all(1)
    fine &= (files[:, SECOND - 5 : SECOND + 1] == _FILE[SECOND - 5 : SECOND + 1]).all(1)
    fine &= (files[:, SIZE - 12 : SIZE] == _FILE[-12:]).all(1)
    fine &= ~files[:, FIRST : FIRST + BLOCK : ROW].any(1)
    return fine


def close_gap(files: NDArray[np.uint8]) -> None:
    """Move row 255 of each file of a batch up to the others, so that `pixels` can show them all in place.

    The files, shape (n, 65865 or wider), are no PNGs any more then. The caller has checked them.
    """
    files[:, SECOND - 5 : SECOND - 5 + ROW] = files[:, SECOND : SECOND + ROW]


def pixels(files: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels of files whose gap is closed: shape (n, 256, 256), uint8, a strided view."""
    shape, strides = (len(files), SIDE, SIDE), (files.strides[0], ROW, 1)
    return np.lib.stride_tricks.as_strided(files[:, FIRST + 1 :], shape, strides)


def crcs_fit(files: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each of a batch of canonical files, (n, 65865 or wider), matches its CRC-32: shape (n,), bool.

    The CRC covers all that can differ between canonical files, so any single flipped bit is found.
    """
    stored = files[:, _CRC].copy().view(">u4")[:, 0]
    return np.array([isal_zlib.crc32(file[_IDAT]) for file in files], np.uint32) == stored


def check(data: bytes | memoryview | NDArray[np.uint8]) -> None:
    """Check structure, Adler-32 and CRC-32: any single flipped bit is found.

    Raises:
        DataError: reason `not_canonical` or `checksum`.
    """
    file = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    if not is_canonical(file):
        raise DataError("not_canonical", f"Not a canonical {SIDE} x {SIDE} PNG of {SIZE} bytes.")
    stored = struct.unpack(">II", file[_ADLER.start : _CRC.stop].tobytes())
    if stored != (_adler(file), isal_zlib.crc32(file[_IDAT])):
        raise DataError("checksum", "The pixels do not match the file's checksums.")


def read_checked(file: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """`check` and `decode` in one: the pixels into `out`, shape (256, 256).

    Raises:
        DataError: reason `not_canonical` or `checksum`.
    """
    check(file)
    out[:-1] = file[FIRST : FIRST + BLOCK].reshape(SIDE - 1, ROW)[:, 1:]
    out[-1] = file[SECOND + 1 : SECOND + ROW]
