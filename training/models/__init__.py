"""Neural network parts that know no recipe. The one place through which the project imports timm."""

from training._tvcompat import ensure_torchvision

ensure_torchvision()  # before timm, which vit.py imports

from training.models.decoders import MaskedDecoder
from training.models.positions import LevelEmbedding, sincos_2d, sinusoid
from training.models.vit import build_vit, encode_patches, patchify, unpatchify

__all__ = [
    "LevelEmbedding",
    "MaskedDecoder",
    "build_vit",
    "encode_patches",
    "patchify",
    "sincos_2d",
    "sinusoid",
    "unpatchify",
]
