"""A PNG that shows what a recipe does to a few images: a row per image, a column per stage, names on top."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from training.run_folder import explain_disk
from usdata.files import replacing

_STRIP = 14  # pixels of the caption strip
_GAP = 2
_CELL = 112  # smaller pictures are enlarged to about this side, by whole factors


def grid(stages: dict[str, Tensor]) -> NDArray[np.uint8]:
    """Lay stages out side by side.

    Args:
        stages: name -> float (n, 1, S, S) grey or (n, 3, S, S) colour, in [0, 1]; values outside are clipped. All of
            one n; S may differ.

    Returns:
        uint8 (height, width), or (height, width, 3) if a stage is in colour; white gaps, captions in a strip above.

    Raises:
        ValueError: no stages, or stages of different n.
    """
    if not stages or len({len(value) for value in stages.values()}) != 1:
        raise ValueError(f"stages must have the same number of images: { {k: len(v) for k, v in stages.items()} }")
    columns = [_column(value) for value in stages.values()]
    height = _STRIP + max(len(column) for column in columns)
    mode = "RGB" if any(column.ndim == 3 for column in columns) else "L"
    page = Image.new(mode, (sum(c.shape[1] + _GAP for c in columns) - _GAP, height), "white")
    left = 0
    for name, column in zip(stages, columns, strict=True):
        page.paste(Image.fromarray(column), (left, _STRIP))
        ImageDraw.Draw(page).text((left + 2, 1), name, fill="black")
        left += column.shape[1] + _GAP
    return np.asarray(page)


def _column(images: Tensor) -> NDArray[np.uint8]:
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    factor = max(1, round(_CELL / pixels.shape[2]))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)  # (n, S, S, channels)
    spaced = np.pad(pixels, ((0, 0), (0, _GAP), (0, 0), (0, 0)), constant_values=255)
    column = spaced.reshape(-1, *spaced.shape[2:])  # one image below the other
    return column[:, :, 0] if column.shape[2] == 1 else column


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a picture, uint8 (height, width) or (height, width, 3), atomically; the folder is made.

    Raises:
        LakeError: no room, or no permission.
    """
    with explain_disk(path, step="pictures"), replacing(path) as file:
        Image.fromarray(pixels).save(file, format="PNG")
