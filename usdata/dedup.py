"""Near-duplicate images: pictures of one moment that were stored twice, cut or compressed anew.

They must never stand on both sides of a split, or a memory of the training part passes for knowledge.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

_NEAR = 10  # differing bits of 64; on 453 frames of lung cine 6 missed 3 of 506 pairs that correlate above 0.995
_BLOCK = 512  # rows compared at a time: 512 x n distances fit in the cache for n up to some 10,000


def near_duplicate_groups(images: NDArray[np.uint8], threshold: float = 0.995) -> NDArray[np.int64]:
    """Group images that show the same picture, directly or through a chain of near-duplicates.

    Candidates are pairs whose 64-bit perceptual hash (pHash) or difference hash (dHash) differ in at most 10 bits;
    a candidate counts if the correlation of the two 32 x 32 thumbnails is above `threshold`. Images without any
    contrast have no correlation: they count as near-duplicates of each other when their thumbnails are equal.

    Args:
        images: shape (n, H, W), uint8 grey, all of one size.
        threshold: correlation in [-1, 1] that a pair must exceed.

    Returns:
        Shape (n,), int64: the same number means the same group; groups are numbered from 0 by first appearance.

    Raises:
        ValueError: the array is not uint8 of three dimensions.

    Source: thresholds are ours; over the 780 images of BUSI, pairs above 0.995 at 32 x 32 are near-duplicates.
    """
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 (n, H, W), not {images.dtype} {images.shape}")
    if len(images) == 0:
        return np.empty(0, np.int64)
    thumbnails = thumbnails_of(images, 32)
    hashes = np.stack([_phash(thumbnails), _dhash(images)])  # (2, n)
    centred = thumbnails.reshape(len(images), -1) - thumbnails.mean(axis=(1, 2)).reshape(-1, 1)
    norms = np.linalg.norm(centred, axis=1)
    flat = norms < 1e-3
    unit = centred / np.where(flat, 1, norms)[:, None]
    parents = np.arange(len(images))
    for start in range(0, len(images), _BLOCK):
        rows, columns = _candidates(hashes, start)
        alike = np.einsum("ij,ij->i", unit[rows], unit[columns]) > threshold
        same = flat[rows] & flat[columns] & np.isclose(thumbnails[rows, 0, 0], thumbnails[columns, 0, 0])
        for a, b in zip(rows[alike | same], columns[alike | same], strict=True):
            _join(parents, int(a), int(b))
    roots = np.array([_root(parents, i) for i in range(len(images))])  # the lowest index of each group
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def thumbnails_of(images: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Each image averaged down to side x side (area interpolation), float32 (n, side, side) in [0, 255]."""
    shape = (len(images), side, side)
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images.astype(np.float32)]
    return np.asarray(small, np.float32).reshape(shape)


def _phash(thumbnails: NDArray[np.float32]) -> NDArray[np.uint64]:
    """The 8 x 8 lowest frequencies of a 32 x 32 cosine transform, each above or below their median."""
    low = np.stack([cv2.dct(thumbnail)[:8, :8] for thumbnail in thumbnails]).reshape(-1, 64)
    return _pack(low > np.median(low[:, 1:], axis=1, keepdims=True))  # the mean grey value is no structure


def _dhash(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """On 8 x 9 pixels: is each brighter than its left neighbour?"""
    small = np.stack([cv2.resize(image, (9, 8), interpolation=cv2.INTER_AREA) for image in images]).astype(np.int16)
    return _pack((small[:, :, 1:] > small[:, :, :-1]).reshape(-1, 64))


def _pack(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    packed: NDArray[np.uint64] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return packed


def _candidates(hashes: NDArray[np.uint64], start: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (i, j), i < j, with i in the block from `start`, that either hash finds near."""
    block = hashes[:, start : start + _BLOCK]
    near = np.zeros((block.shape[1], hashes.shape[1] - start), dtype=bool)
    for kind in range(len(hashes)):
        near |= np.bitwise_count(block[kind][:, None] ^ hashes[kind][None, start:]) <= _NEAR
    rows, columns = np.nonzero(np.triu(near, k=1))
    return rows + start, columns + start


def _root(parents: NDArray[np.int64], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = int(parents[i])
    return i


def _join(parents: NDArray[np.int64], a: int, b: int) -> None:
    first, second = sorted((_root(parents, a), _root(parents, b)))
    parents[second] = first
