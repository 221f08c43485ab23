"""A mask as the lake stores it: an 8-bit grey PNG of 256 x 256 class indices, compressed in the usual way."""

import struct

import numpy as np
from isal import igzip_lib, isal_zlib
from numpy.typing import NDArray

from usdata.errors import DataError
from usdata.png import RAW, ROW, SIDE

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)


def decode(data: bytes) -> NDArray[np.uint8]:
    """The class indices of a mask's file, shape (256, 256), after every checksum in it.

    Raises:
        DataError: not such a PNG, a chunk that does not match its CRC, rows that do not match their Adler-32
            (reason `not_a_mask`).
    """
    raw = np.frombuffer(_rows(data), np.uint8).reshape(SIDE, ROW)
    return raw[:, 1:] if not raw[:, 0].any() else _decoded(data)  # ours have no row filter


def highest_class(data: bytes) -> int:
    """The largest class index in a mask's file.

    Raises:
        DataError: see `decode`.
    """
    return int(decode(data).max())


def _rows(data: bytes) -> bytes:
    """The rows, each behind its filter byte."""
    chunks = list(_chunks(data))
    kinds = [kind for kind, _ in chunks]
    if kinds != [b"IHDR", *[b"IDAT"] * (len(kinds) - 2), b"IEND"] or chunks[0][1] != _IHDR or chunks[-1][1]:
        raise DataError("not_a_mask", f"The mask is no 8-bit grey PNG of {SIDE} x {SIDE} pixels.")
    inflate = isal_zlib.decompressobj()
    try:
        rows: bytes = inflate.decompress(b"".join(content for _, content in chunks[1:-1]), RAW + 1)
    except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub takes the class for an instance
        raise DataError("not_a_mask", "The mask can't be decompressed.") from error
    if len(rows) != RAW or not inflate.eof or inflate.unused_data:
        raise DataError("not_a_mask", f"The mask holds {len(rows)} bytes of rows instead of {RAW}, or more than rows.")
    return rows


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    if data[:8] != _SIGNATURE:
        raise DataError("not_a_mask", "The mask is no PNG.")
    found, position = [], 8
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        end = position + 8 + size
        if end + 4 > len(data):
            raise DataError("not_a_mask", "The mask is cut short.")
        if isal_zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise DataError("not_a_mask", "A chunk of the mask does not match its CRC.")
        found.append((data[position + 4 : position + 8], data[position + 8 : end]))
        position = end + 4
    return found


def _decoded(data: bytes) -> NDArray[np.uint8]:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape != (SIDE, SIDE):
        raise DataError("not_a_mask", "The mask can't be decoded.")
    return pixels.astype(np.uint8, copy=False)
