"""TUSA's texture head: which texture each pixel has, and what each texture looks like, make an image.

Source: TUSA (Grutman et al., 2026): depthwise convolution with one learnable kernel per channel, 1 x 1, tanh. The
kernels' size, their border and their first values are ours.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextureHead(nn.Module):
    """K channels, each convolved with its own kernel, weighted, summed, through tanh.

    Args:
        channels: K, number of textures.
        kernel_size: side of a kernel in pixels, odd (ours: 7, which covers a speckle on both sides of its centre).

    Modules: `texture`, the depthwise convolution (K, 1, k, k) without bias; `mix`, the 1 x 1 convolution with bias.
    """

    def __init__(self, channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.channels, self.border = channels, kernel_size // 2
        self.texture = nn.Conv2d(
            channels,
            channels,
            kernel_size,
            padding=self.border,
            padding_mode="reflect",
            groups=channels,
            bias=False,
        )
        self.mix = nn.Conv2d(channels, 1, 1)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Kernels: the identity and noise of 0.02; echo levels of the channels spread from -1 to 1 (ours)."""
        nn.init.normal_(self.texture.weight, std=0.02)
        self.texture.weight[:, :, self.border, self.border] += 1.0
        self.mix.weight.copy_(_levels(self.channels).reshape(self.mix.weight.shape))
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def kernels(self) -> Tensor:
        """(1, K, k, k): each texture as it enters the image; only this product of kernel and weight means anything."""
        return self.texture.weight.transpose(0, 1) * self.mix.weight

    def forward(self, maps: Tensor) -> Tensor:
        """Image of texture maps: (B, K, H, W) -> (B, 1, H, W) float32 in (-1, 1).

        One dense convolution by `kernels()`, which equals `mix(texture(maps))`; in float32 under autocast too.
        """
        with torch.autocast(maps.device.type, enabled=False):
            wide = F.pad(maps.float(), (self.border,) * 4, mode="reflect")
            return F.conv2d(wide, self.kernels(), self.mix.bias).tanh()


def _levels(channels: int) -> Tensor:
    """(K,) evenly from -1 to 1; not 0, at which a kernel would get no gradient: an odd K's middle is moved up."""
    levels = torch.linspace(-1.0, 1.0, channels)
    return torch.where(levels.abs() < 1e-6, 1.0 / (channels - 1), levels)
