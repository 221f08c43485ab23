"""A small convolutional discriminator of pixel patches: real, or made by the decoder?"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from usdata.errors import ConfigError


class PatchDiscriminator(nn.Module):
    """Strided 3x3 convolutions down to 2x2, then one logit per patch: 64, 128, 256 channels for patches of 16.

    It is fully convolutional: fed with whole images it gives a map of logits, a PatchGAN of the same weights.
    No normalisation layer, so that one patch's logit knows nothing of the others.

    Args:
        patch: side of the patches in pixels, a power of 2 from 4 on; 16 gives 370,689 parameters.
        channels: of the images.
        width: channels of the first layer; they double with each further one.
        spectral_norm: divide each weight by its largest singular value.

    Raises:
        ConfigError: `patch` is no power of 2, or below 4.

    Source: ARL says only that it "distinguishes reconstructed from real patches"; the layers are ours (paper 4.4).
    """

    def __init__(self, patch: int, channels: int = 1, width: int = 64, spectral_norm: bool = False) -> None:
        super().__init__()
        if patch < 4 or patch & (patch - 1):
            raise ConfigError(f"The discriminator needs patches of 4, 8, 16 ... pixels, not {patch}.")
        wrap: Callable[[nn.Module], nn.Module] = nn.utils.parametrizations.spectral_norm if spectral_norm else _same
        layers: list[nn.Module] = []
        inputs, outputs, side = channels, width, patch
        while side > 2:
            layers += [wrap(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            inputs, outputs, side = outputs, 2 * outputs, side // 2
        self.body = nn.Sequential(*layers)
        self.logit = wrap(nn.Conv2d(inputs, 1, 2))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, positive for "real".

        Args:
            pixels: (n, C, p, p) in [-1, 1], or larger images (n, C, S, S).

        Returns:
            (n, 1, 1, 1), or a map (n, 1, 2 S / p - 1, 2 S / p - 1).
        """
        out: Tensor = self.logit(self.body(pixels))
        return out


def _same(module: nn.Module) -> nn.Module:
    return module


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of logits on their right side of 0, a scalar without gradient; 0.5 is guessing."""
    with torch.no_grad():
        return 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
