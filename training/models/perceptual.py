"""Frozen networks whose features say how alike two images look, and where their weights come from.

The kind is always said outright, and nothing is ever fetched or replaced by something else: weights that are not there
are an error before training starts.

Source: TUSA (Grutman et al., 2026) uses MONAI's perceptual loss with RadImageNet's ResNet-50 (Mei et al., 2022).
"""

import hashlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from training.transforms import IMAGENET_MEAN, IMAGENET_STD
from usdata.errors import ConfigError, nearest

Kind = Literal["radimagenet", "file", "random", "none"]
RADIMAGENET_FILE = "RadImageNet-ResNet50_notop.pth"
_RADIMAGENET_MEAN = (0.406, 0.456, 0.485)  # blue, green, red; nothing is divided


class PerceptualWarning(UserWarning):
    """The perceptual term is not the paper's."""


class PerceptualConfig(BaseModel):
    """Which frozen network the perceptual term uses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "radimagenet"  # radimagenet: the paper's; file: another trained one; random: frozen noise; none: off
    weights: str | None = None  # path of the weights, for radimagenet and file
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")  # what the file must hash to
    model: str | None = None  # timm's name for it (file, random); None: what the file says, or RadImageNet's ResNet-50
    seed: int = Field(default=0, ge=0)  # of the random kind


class FrozenFeatures(nn.Module):
    """A network in eval mode for good, whose parameters want no gradient.

    Args:
        net: has `forward_features`, giving (B, C, h, w) or tokens (B, N, C); or is called itself.
        mean, std: of the channels the network takes; one value: a network of grey images.
        size: side it insists on; images are resized to it. None: any.
        sha256: of the file its weights came from, "" for none.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: Sequence[float], std: Sequence[float], size: int | None = None, sha256: str = ""
    ) -> None:
        super().__init__()
        self.net, self.size, self.sha256 = net, size, sha256
        self.register_buffer("mean", torch.tensor(tuple(mean)).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).reshape(1, -1, 1, 1))
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> "FrozenFeatures":
        """Stays in eval mode: running statistics never change."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Grey images (B, 1, H, W) in [0, 1], not [-1, 1] -> features (B, N, C) at N places."""
        if self.size is not None and images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        x = (images - self.mean) / self.std  # grey becomes as many channels as the network has means
        net: Any = self.net
        features: Tensor = net.forward_features(x) if hasattr(net, "forward_features") else net(x)
        return features if features.ndim == 3 else features.flatten(2).mT


class RadImageNetResNet50(nn.Module):
    """RadImageNet's ResNet-50 up to its last map: (B, 3, H, W) -> (B, 2048, H / 32, W / 32).

    Keras's form: the stride is in the first 1 x 1 convolution of a stage, convolutions have biases, BatchNorm's eps is
    1.001e-5. torchvision's and timm's ResNet-50 have other weights and another shape, so loading is strict. Names as
    in the file that MONAI uses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.bn1 = _batch_norm(64)
        width = 64
        for i, (planes, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
            stride = 1 if i == 1 else 2
            layers = [_Bottleneck(width if j == 0 else 4 * planes, planes, stride if j == 0 else 1, j == 0)
                      for j in range(blocks)]  # fmt: skip
            self.add_module(f"layer{i}", nn.Sequential(*layers))
            width = 4 * planes

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2048, H / 32, W / 32)."""
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return x


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, first: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, stride), _batch_norm(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1), _batch_norm(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1), _batch_norm(4 * planes)
        shortcut = nn.Sequential(nn.Conv2d(inputs, 4 * planes, 1, stride), _batch_norm(4 * planes))
        self.downsample = shortcut if first else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return (self.bn3(self.conv3(x)) + shortcut).relu()


def _batch_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1.001e-5)


def build_perceptual(cfg: PerceptualConfig) -> FrozenFeatures | None:
    """The frozen network that the config names, on the CPU; None for kind "none".

    Raises:
        ConfigError: weights that are not there, not the promised ones, or of another network.
    """
    if cfg.kind == "none":
        return None
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(cfg.seed)
        if cfg.kind == "random":
            return _radimagenet() if cfg.model is None else _timm(cfg.model, {})
        path, sha256 = _weights(cfg)
        state, facts = _read(path)
        if cfg.kind == "radimagenet":
            frozen = _radimagenet()
        else:
            name = cfg.model or facts.get("model_name")
            if not name:
                raise ConfigError(
                    f"{path} does not say which network it is of.",
                    step="perceptual loss",
                    hint="Name timm's architecture:  --set lpips.model=resnet50",
                )
            args = json.loads(facts["model_args"]) if name == facts.get("model_name") else {}
            frozen = _timm(name, args, facts)
        _load(frozen.net, state, path)
        frozen.sha256 = sha256
    return frozen


def _radimagenet() -> FrozenFeatures:
    return FrozenFeatures(RadImageNetResNet50(), _RADIMAGENET_MEAN, (1.0, 1.0, 1.0))


def _timm(name: str, args: dict[str, Any], facts: dict[str, str] | None = None) -> FrozenFeatures:
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}.{nearest(name, timm.list_models())}", step="perceptual loss")
    net: Any = timm.create_model(name, **args)
    facts, known = facts or {}, net.pretrained_cfg
    mean = json.loads(facts["mean"]) if "mean" in facts else known.get("mean", IMAGENET_MEAN)
    std = json.loads(facts["std"]) if "std" in facts else known.get("std", IMAGENET_STD)
    fixed = getattr(getattr(net, "patch_embed", None), "img_size", None)  # a ViT knows one size
    return FrozenFeatures(net, mean, std, size=fixed[0] if fixed else None)


def _weights(cfg: PerceptualConfig) -> tuple[Path, str]:
    """The file of weights, and its SHA-256."""
    wanted = f"RadImageNet's ResNet-50 ({RADIMAGENET_FILE})" if cfg.kind == "radimagenet" else "a network's weights"
    hint = (
        f"Give the file of {wanted}:  --set lpips.weights=PATH   Or choose another kind:  --set lpips.kind=file (with "
        "lpips.weights=PATH and lpips.model=NAME of timm), =random (frozen, untrained), or =none (no perceptual term)"
    )
    if cfg.weights is None:
        raise ConfigError(
            f"lpips.kind is {cfg.kind!r}, but lpips.weights is not set.", step="perceptual loss", hint=hint
        )
    path = Path(cfg.weights).expanduser()
    if not path.is_file():
        raise ConfigError(f"lpips.weights: there is no file {path}.", step="perceptual loss", hint=hint)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if cfg.sha256 is not None and found != cfg.sha256:
        raise ConfigError(
            f"{path} is not the file that lpips.sha256 names: its SHA-256 is {found}.", step="perceptual loss"
        )
    return path, found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors or a .pth file; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ConfigError(f"Cannot read weights from {path}: {reason}", step="perceptual loss") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{path} is not a state dict, a mapping of names to tensors.", step="perceptual loss")
    return state, {}


def _load(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).split("\n")[1:3])[:300]
        raise ConfigError(
            f"The weights in {path} are not those of {type(net).__name__}: {reason}", step="perceptual loss"
        ) from error
