"""USFM's augmentation of the pretraining image: rotation and light; batched on the images' device.

Each function takes one parameter per image; none draws random numbers, and the parameter that means "unchanged" (angle
0, factors 1) leaves an image exactly as it is. Scaling and cropping are `training.transforms.crop`, blur is
`training.views.blur_each`.

Source: the paper names the operations (USFM, Jiao et al., MedIA 2024) but gives no ranges: those are the recipe's.
"""

import torch
from torch import Tensor

from training.transforms import uncompiled


@uncompiled
def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Turn each square image about its centre, bilinear, black outside.

    Args:
        images: (B, C, S, S) float32 in [0, 1].
        angle: (B,) float32, radians, positive counter-clockwise as seen; 0 leaves the image untouched.

    Returns:
        (B, C, S, S) float32 in [0, 1].
    """
    if images.device.type == "cpu":  # a GPU would wait for the number of them
        turning = angle.nonzero()[:, 0]
        return images.index_copy(0, turning, _turned(images[turning], angle[turning]))
    return torch.where((angle == 0)[:, None, None, None], images, _turned(images, angle))


def _turned(images: Tensor, angle: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        size = images.shape[-1]
        centres = (torch.arange(size, device=images.device, dtype=torch.float32) * 2 + 1) / size - 1
        y, x = centres[:, None], centres[None, :]
        sine, cosine = (f(angle.float())[:, None, None] for f in (torch.sin, torch.cos))
        places = images.new_empty((len(angle), size, size, 2))  # x, y to read at; half the time of a stack
        places[..., 0], places[..., 1] = cosine * x - sine * y, sine * x + cosine * y
        return torch.nn.functional.grid_sample(images, places, padding_mode="zeros", align_corners=False)


def relight(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Multiply each image by `brightness`, then its distance from its mean by `contrast`, and cut off at 0 and 1.

    Args:
        images: (B, C, S, S) float32 in [0, 1]. brightness, contrast: (B,) factors, 1 for no change.

    Returns:
        (B, C, S, S) float32 in [0, 1].
    """
    brighter = images * brightness[:, None, None, None]
    mean = brighter.mean((-3, -2, -1), keepdim=True)
    factor = contrast[:, None, None, None]
    return (brighter * factor + mean * (1 - factor)).clamp(0.0, 1.0)
