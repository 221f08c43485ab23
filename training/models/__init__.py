"""Neural network parts that know no recipe."""

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
