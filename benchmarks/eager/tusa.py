"""TUSA on MONAI's stock SwinUNETR and the usual snippets around it.

The network is MONAI's own class, its attention and its mask of shifted windows (made again in each stage and step).
Views are drawn one by one with OpenCV in the loader (SimCLR's `GaussianBlur` is OpenCV per image), float32 to the
device; a pass of the network for each of the four (as MoCo v3's and BYOL's code does for two). Sparsemax by sorting, as
in the published snippets and entmax. SSIM by convolutions, as MONAI's. Each view's target goes through the perceptual
network, as MONAI's `PerceptualLoss(input, target)` has it. NT-Xent is the published matrix form.
"""

import math
from typing import Any

import cv2
import numpy as np
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn
from torch.nn import functional as F

from eager.common import ATTENTION, DEVICE, OPTIMISER, Grey, Sample, adam, decay_groups
from training.config import RunConfig
from training.losses_contrast import perceptual_distance, sparsemax, ssim
from training.models.perceptual import build_perceptual
from training.models.swin_unetr import SwinUNETR2d, network_arguments

REMEDIES = {
    "attention": ATTENTION + "; masks of shifted windows made once",
    "device": DEVICE,
    "passes": "one pass of the network for all four views",
    "sparsemax": "sparsemax without sorting, its gradient in closed form",
    "ssim": "SSIM by sums of shifted images",
    "target": "each clean target through the perceptual network once",
    "optimiser": OPTIMISER,
}


class Rival(nn.Module):
    """Four views, one after another."""

    def __init__(self, cfg: Any, remedies: frozenset[str], ours: Any = None) -> None:
        super().__init__()
        self.cfg, self.remedies, self._ours = cfg, remedies, (ours,)
        changed = {name: getattr(cfg, name) for name in ("feature_size", "depths", "heads", "window", "residual")}
        args = {"heads": (3, 6, 12, 24), "residual": False, **network_arguments(cfg.network, **changed)}
        kind = SwinUNETR2d if "attention" in remedies else _Stock
        extra = {"image_size": cfg.image_size} if "attention" in remedies else {}
        self.network: Any = kind(cfg.textures, **args, **extra)
        self.texture = _Texture(cfg.textures, cfg.kernel_size)
        width = 16 * args["feature_size"]
        self.head = nn.Sequential(nn.Linear(width, cfg.proj_width), nn.GELU(), nn.Linear(cfg.proj_width, cfg.proj_out))
        self._frozen = [build_perceptual(cfg.lpips)] if cfg.perceptual else []
        x = torch.arange(11) - 5.0
        taps = torch.exp(-(x**2) / (2 * 1.5**2))
        self.register_buffer("window", torch.outer(taps / taps.sum(), taps / taps.sum())[None, None])

    def fixed(self, ours: Any) -> None:
        """The same frozen network, if there is one."""
        if self._frozen and ours._frozen:
            self._frozen = [ours._frozen[0]]

    def sample(self, image: Grey, rng: np.random.Generator) -> Sample:
        """Two clean geometries, (2, 1, S, S), and two colour versions of each, (4, 1, S, S), float32 in [0, 1]."""
        cfg, views = self.cfg, self.cfg.views
        clean, seen = [], []
        for _ in range(2):
            view = _geometry(image, rng, views, cfg.image_size)
            clean.append(view)
            seen += [_colour(view, rng, views) for _ in range(2)]
        return {"clean": np.stack(clean)[:, None], "seen": np.stack(seen)[:, None]}

    def from_ours(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same batch by our recipe."""
        clean, seen = self._ours[0].views(images, draws)
        return {"clean": clean, "seen": seen.flatten(1, 2)}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """All six terms."""
        cfg, seen = self.cfg, batch["seen"]
        n = len(seen)
        if "passes" in self.remedies:
            logits, latent = (y.unflatten(0, (n, 4)) for y in self._network(2 * seen.flatten(0, 1) - 1))
        else:
            passes = [self._network(2 * seen[:, v] - 1) for v in range(4)]
            logits, latent = (torch.stack(parts, dim=1) for parts in zip(*passes, strict=True))
        flat = logits.float().flatten(0, 1)
        maps = sparsemax(flat) if "sparsemax" in self.remedies else _sorted_sparsemax(flat)
        rebuilt = self.texture(maps)
        target = batch["clean"].repeat_interleave(2, dim=1).flatten(0, 1)
        share = maps.mean((0, 2, 3))
        terms = {
            "l1": F.l1_loss(rebuilt, 2 * target - 1),
            "ssim": 1 - self._ssim((rebuilt + 1) / 2, target).mean(),
            "logit": ((logits[:, 0::2].float() - logits[:, 1::2].float()) ** 2).mean(),
            "contrast": _nt_xent(self.head(latent).flatten(0, 1), n, cfg.temperature),
            "entropy": math.log(len(share)) + (share * torch.log(share.clamp(min=1e-6))).sum(),
        }
        if cfg.perceptual:
            terms["lpips"] = self._perceptual((rebuilt + 1) / 2, target, batch["clean"])
        weights = cfg.weights.model_dump()
        return {"loss": sum((weights[name] * value for name, value in terms.items()), torch.zeros(()).to(seen.device))}

    def optimisers(self, run: RunConfig) -> list[tuple[str, torch.optim.Optimizer, float | None]]:
        """AdamW."""
        return [("loss", adam(decay_groups(self, run.weight_decay), run, self.remedies), run.clip_grad)]

    def _network(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if "attention" in self.remedies:
            logits, encoded = self.network(x)
            return logits, encoded.latent()
        return self.network(x)

    def _ssim(self, x: Tensor, y: Tensor) -> Tensor:
        if "ssim" in self.remedies:
            return ssim(x, y)
        mx, my, xx, yy, xy = (F.conv2d(part, self.window) for part in (x, y, x * x, y * y, x * y))
        c1, c2 = 0.01**2, 0.03**2
        contrast = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
        return ((2 * mx * my + c1) / (mx**2 + my**2 + c1) * contrast).mean((1, 2, 3))

    def _perceptual(self, rebuilt: Tensor, target: Tensor, clean: Tensor) -> Tensor:
        net = self._frozen[0].to(rebuilt.device)
        if "target" not in self.remedies:
            return perceptual_distance(net(rebuilt), net(target))
        with torch.no_grad():
            wanted = net(clean.flatten(0, 1)).repeat_interleave(2, dim=0)
        return perceptual_distance(net(rebuilt), wanted)


class _Stock(nn.Module):
    """MONAI's SwinUNETR, whose `forward` is repeated to get at the encoder's last map."""

    def __init__(self, outputs: int, **args: Any) -> None:
        super().__init__()
        self.net = SwinUNETR(
            in_channels=1,
            out_channels=outputs,
            spatial_dims=2,
            feature_size=args["feature_size"],
            depths=args["depths"],
            num_heads=args["heads"],
            window_size=args["window"],
            use_v2=args["residual"],
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        hidden = net.swinViT(x, net.normalize)
        skips = [net.encoder1(x), net.encoder2(hidden[0]), net.encoder3(hidden[1]), net.encoder4(hidden[2])]
        up = net.decoder5(net.encoder10(hidden[4]), hidden[3])
        for decoder in (net.decoder4, net.decoder3, net.decoder2, net.decoder1):
            up = decoder(up, skips.pop())
        return net.out(up), hidden[4].mean((2, 3))


class _Texture(nn.Module):
    def __init__(self, k: int, size: int) -> None:
        super().__init__()
        self.texture = nn.Conv2d(k, k, size, padding=size // 2, padding_mode="reflect", groups=k, bias=False)
        self.mix = nn.Conv2d(k, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.tanh(self.mix(self.texture(maps)))


def _sorted_sparsemax(z: Tensor) -> Tensor:
    """Martins and Astudillo's Algorithm 1 over dimension 1."""
    ordered = torch.sort(z, dim=1, descending=True).values
    k = torch.arange(1, z.shape[1] + 1, device=z.device, dtype=z.dtype).view(1, -1, 1, 1)
    total = ordered.cumsum(1)
    support = (1 + k * ordered > total).sum(dim=1, keepdim=True)
    tau = (total.gather(1, support - 1) - 1) / support
    return torch.clamp(z - tau, min=0)


def _nt_xent(z: Tensor, n: int, temperature: float) -> Tensor:
    """SupCon's form of NT-Xent: the other views of the image are positives; (4 n, D), views of an image together."""
    z = F.normalize(z.float(), dim=1)
    logits = z @ z.T / temperature
    image = torch.arange(n, device=z.device).repeat_interleave(len(z) // n)
    itself = torch.eye(len(z), device=z.device, dtype=torch.bool)
    same = (image[:, None] == image[None]) & ~itself
    log_p = logits - torch.logsumexp(logits.masked_fill(itself, -math.inf), dim=1, keepdim=True)
    return -((log_p * same).sum(1) / same.sum(1)).mean()


def _geometry(image: Grey, rng: np.random.Generator, cfg: Any, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Crop, rotate, mirror and shift by one affine map; black outside; averaged down from the stored fineness."""
    share, shape = math.sqrt(rng.uniform(*cfg.area)), math.exp(rng.uniform(*np.log(cfg.aspect)) / 2)
    sign = -1.0 if rng.random() < cfg.flip else 1.0
    theta = math.radians(rng.uniform(-cfg.rotate, cfg.rotate))
    side, finer = image.shape[0], max(1, image.shape[0] // size)
    wide = size * finer
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    linear = turn @ np.diag([share * shape * sign, share / shape]) * (side / wide)
    middle = np.array([side / 2, side / 2]) * (1 + 2 * rng.uniform(-cfg.shift, cfg.shift, 2)) - 0.5
    matrix = np.column_stack([linear, middle - linear @ np.array([(wide - 1) / 2, (wide - 1) / 2])])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    view = cv2.warpAffine(image.astype(np.float32) / 255, matrix, (wide, wide), flags=how)
    return cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA)


def _colour(
    view: np.ndarray[Any, np.dtype[np.float32]], rng: np.random.Generator, cfg: Any
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Contrast, brightness, blur, one erased box."""
    gain, offset = rng.uniform(*cfg.contrast), rng.uniform(-cfg.brightness, cfg.brightness)
    x = np.clip((view - view.mean()) * gain + view.mean() + offset, 0, 1)
    if rng.random() < cfg.blur:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(*cfg.sigma))
    if rng.random() < cfg.erase:
        area, ratio = rng.uniform(*cfg.erase_area), math.exp(rng.uniform(*np.log(cfg.erase_aspect)))
        h, w = (min(len(x), round(len(x) * math.sqrt(side))) for side in (area / ratio, area * ratio))
        top, left = int(rng.integers(0, len(x) - h + 1)), int(rng.integers(0, len(x) - w + 1))
        x[top : top + h, left : left + w] = 0.0 if rng.random() < cfg.erase_fill else x.mean()
    return x.astype(np.float32)
