"""Decoded pixels -> what the lake stores: grey, cropped, 256 x 256; and the perceptual hash of that.

Every function is pure and its integer results are the same on all machines, because shards must be byte-identical.
"""

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from usdata.errors import ConfigError, DataError
from usdata.schema import IMAGE_SIZE

Box = tuple[int, int, int, int]

CHROMA = 40  # grey levels between a pixel's largest and smallest channel from which it is seen as coloured; ours


def to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma of an RGB image; a grey image is returned as it is.

    Y = (19595 R + 38470 G + 7471 B + 32768) >> 16: Rec. 601's 0.299, 0.587, 0.114 in 16-bit fixed point, rounded half
    up. The weights sum to 65536, so R = G = B = v gives exactly v. Pillow's convert("L") computes the same.

    Args:
        image: uint8, (H, W) or (H, W, 3) in the order R, G, B.

    Returns:
        uint8, (H, W).
    """
    if image.ndim == 2:
        return image
    return np.asarray(Image.fromarray(image).convert("L"))


def colour_share(image: NDArray[np.uint8]) -> float:
    """Share of clearly coloured pixels, in [0, 1]: colour Doppler has many, a grey image stored as RGB none.

    A pixel counts when its largest channel exceeds its smallest by at least `CHROMA` levels. The tint of a scanner's
    grey map and JPEG noise stay below that; yellow callipers and one line of text stay below 1 % of the pixels.

    Args:
        image: uint8, (H, W) or (H, W, 3).
    """
    if image.ndim == 2:
        return 0.0
    red, green, blue = cv2.split(image)
    spread = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    return int(np.count_nonzero(spread >= CHROMA)) / spread.size


def crop(image: NDArray[np.uint8], box: Box | None) -> NDArray[np.uint8]:
    """The part of `image` inside `box` (x0, y0, x1, y1; x1 and y1 lie one past the last pixel); a view.

    Raises:
        DataError: the box reaches outside the image (reason crop_outside).
    """
    if box is None:
        return image
    x0, y0, x1, y1 = box
    height, width = image.shape[:2]
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        text = f"The crop {box} reaches outside the image of {width} x {height} pixels."
        raise DataError("crop_outside", text, step="preprocess")
    return image[y0:y1, x0:x1]


def resize(grey: NDArray[np.uint8], interpolation: str = "bilinear-aa", size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """`grey` stretched to `size` x `size` (the aspect ratio is not kept, as in the papers).

    "bilinear-aa" is Pillow's BILINEAR: a triangle filter as wide as the reduction, so speckle does not alias; it works
    in fixed point and gives the same bytes everywhere. "bilinear-fast" is OpenCV's INTER_LINEAR: four neighbours only.

    Args:
        grey: uint8, (H, W).

    Raises:
        ConfigError: another word for `interpolation`.
    """
    if interpolation == "bilinear-aa":
        return np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BILINEAR))
    if interpolation == "bilinear-fast":
        fast = cv2.resize(np.ascontiguousarray(grey), (size, size), interpolation=cv2.INTER_LINEAR)
        return fast.astype(np.uint8, copy=False)
    raise ConfigError(f"Unknown interpolation {interpolation!r}: bilinear-aa or bilinear-fast.")


def nearest_neighbour(mask: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """`mask` (H, W) at another `shape` (height, width), by the rule of `resize_mask` in each direction."""
    rows, columns = (((2 * np.arange(new) + 1) * old) // (2 * new) for new, old in zip(shape, mask.shape, strict=True))
    return mask[rows[:, None], columns]


def resize_mask(mask: NDArray[np.uint8], size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Nearest neighbour with pixel centres aligned, as in `resize`: no class appears that was not there.

    Output pixel i shows source pixel floor((i + 1/2) * n / size), n being the source's side. In integers:
    ((2 i + 1) * n) // (2 size). OpenCV's INTER_NEAREST would take the pixel half a step up and to the left.

    Args:
        mask: uint8 class indices, (H, W).

    Returns:
        uint8, (size, size).
    """
    return nearest_neighbour(mask, (size, size))


def phash(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """64-bit perceptual hash of each image: copies that were re-encoded, rescaled or brightened get near hashes.

    The image is averaged to 32 x 32, its cosine transform taken, and the 8 x 8 lowest frequencies without the mean
    (rows and columns 1 to 8) compared with their median. Bit 63 is the lowest frequency; bit order is row by row.
    The number of differing bits tells how unlike two images are: below about 6 they are near-copies.

    The cosine weights are rounded to 1/4096, so that all sums are exact integers (in float64) and the hash is the same
    on every machine and for every batch size. A constant image hashes to 0.

    Args:
        images: uint8, (n, 256, 256).

    Returns:
        uint64, (n,).
    """
    n, side, _ = images.shape
    bands = images.reshape(n, 32, side // 32, side).sum(axis=2, dtype=np.uint16)
    blocks = bands.reshape(n, 32, 32, side // 32).sum(axis=3, dtype=np.uint16)  # at most 64 * 255
    weights = _cosines()  # (8, 32)
    low = (weights @ blocks.astype(np.float64) @ weights.T).reshape(n, 64)  # |sums| < 2^53: exact
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(n)


@cache
def _cosines() -> NDArray[np.float64]:
    """DCT-II rows 1 to 8 of length 32, times 4096 and rounded; (8, 32)."""
    angles = np.pi * np.arange(1, 9)[:, None] * (2 * np.arange(32) + 1) / 64
    return np.round(4096 * np.cos(angles))
