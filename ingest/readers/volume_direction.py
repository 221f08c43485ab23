"""Which way the axes of a NIfTI file run, as its header says; to tell a mask that is mirrored against its image.

Pixels are paired by their index (see `ingest.readers.volume`): right as long as both files run the same way. Source:
the NIfTI-1 and NIfTI-2 standards, methods 2 (quaternion) and 3 (affine matrix).
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.readers.volume_headers import nifti_head

# version (size of the header) -> places of qform_code and sform_code, of the quaternion, of the matrix, of pixdim[0]
_PLACES = {348: ("2h", 252, "3f", 256, "12f", 280, "f", 76), 540: ("2i", 344, "3d", 352, "12d", 400, "d", 104)}

Signs = tuple[tuple[int, int], ...]


def directions(path: Path) -> Signs | None:
    """For each of the first three axes the axis of the patient that it follows most (0 to 2) and its sign.

    None: no NIfTI file, or a header that states none.
    """
    head = nifti_head(path)
    for order in "<>":
        size = struct.unpack_from(f"{order}i", head)[0] if len(head) >= 348 else 0
        if size in _PLACES and len(head) >= size:
            return _signs(head, order, size)
    return None


def _signs(head: bytes, order: str, size: int) -> Signs | None:
    codes, at, three, quaternion, twelve, affine, one, pixdim = _PLACES[size]
    by_quaternion, by_matrix = struct.unpack_from(order + codes, head, at)
    if by_matrix > 0:
        matrix = np.array(struct.unpack_from(order + twelve, head, affine)).reshape(3, 4)[:, :3]
    elif by_quaternion > 0:
        matrix = _rotation(np.array(struct.unpack_from(order + three, head, quaternion)))
        if struct.unpack_from(order + one, head, pixdim)[0] < 0:
            matrix[:, 2] *= -1
    else:
        return None
    if not np.isfinite(matrix).all() or not abs(matrix).max(axis=0).all():
        return None
    along = abs(matrix).argmax(axis=0)
    return tuple((int(axis), int(np.sign(matrix[axis, column]))) for column, axis in enumerate(along))


def _rotation(bcd: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation matrix of a unit quaternion a + bi + cj + dk, of which the header holds b, c, d."""
    b, c, d = bcd
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
