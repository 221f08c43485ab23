"""ARL on the public code of DINO (facebookresearch/dino), SimMIM and VQGAN (taming-transformers).

DINO's choices: Pillow crops each view of each image in the loader, attention keeps its matrix of weights, the teacher's
mean is a Python loop over parameters. SimMIM's: a NumPy permutation per view, all patches are rebuilt and the loss is
masked afterwards. MoCo v3's: a pass of the network per view. Deformable attention's (DAT): all taps by `grid_sample`.
VQGAN's: lambda by two `autograd.grad` with `retain_graph` at the last layer, gradients of the adversarial loss through
the discriminator's weights too, discriminator on real and fake apart; generator first, discriminator second.
"""

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from eager.common import (
    ATTENTION,
    DEVICE,
    OPTIMISER,
    Grey,
    Sample,
    adam,
    blurred,
    decay_groups,
    pixels,
    planes,
    resized_crop,
)
from training.arl_views import relit
from training.config import RunConfig
from training.losses_adversarial import adaptive_lambda, generator_loss, layer_gradient, mim_gradient, with_gradient
from training.models.deformable import base_offsets, deform_conv
from training.models.distillation import follow
from training.models.patch_discriminator import PatchDiscriminator

REMEDIES = {
    "attention": ATTENTION,
    "device": DEVICE,
    "sampling": "deformable sampling by the fastest back-end for the device",
    "passes": "one pass of student and teacher for both views",
    "lambda": "lambda in closed form, the adversarial gradient at the pixels only",
    "ema": "the teacher follows in two calls for all parameters",
    "optimiser": OPTIMISER,
}


class Rival(nn.Module):
    """DINO with masks, pixels and a discriminator."""

    def __init__(self, cfg: Any, remedies: frozenset[str], ours: Any = None) -> None:
        super().__init__()
        self.cfg, self.remedies, self._ours = cfg, remedies, (ours,)
        self.patches = (cfg.image_size // cfg.patch_size) ** 2
        self.encoder, self.head = _Encoder(cfg, remedies, cfg.drop_path), _Head(cfg)
        self.mask_token = nn.Parameter(torch.zeros(cfg.width))
        self.pred = nn.Linear(cfg.width, cfg.patch_size**2)
        self.organ_head = nn.Linear(cfg.width, len(cfg.classes))
        self.discriminator = PatchDiscriminator(cfg.patch_size, 1, cfg.disc_width)  # plain convolutions either way
        self.teacher = nn.ModuleDict({"encoder": _Encoder(cfg, remedies, 0.0), "head": copy.deepcopy(self.head)})
        self.teacher.requires_grad_(False).eval()
        self.register_buffer("centre", torch.zeros(cfg.prototypes))

    def fixed(self, ours: Any) -> None:
        """Nothing is computed in advance."""

    def train(self, mode: bool = True) -> "Rival":
        """The teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def sample(self, image: Grey, rng: np.random.Generator) -> Sample:
        """Two views (2, 1, S, S) float32 in [-1, 1], re-lit for the teacher too, their masks, an organ."""
        cfg, picture = self.cfg, Image.fromarray(image)
        views, lit, masks = [], [], []
        for _ in range(2):
            x = pixels(resized_crop(picture, rng, cfg, cfg.image_size, cfg.flip))
            views.append(planes(2 * x - 1))
            if rng.random() < cfg.photometric:
                bright, contrast = rng.uniform(1 - cfg.photometric_range, 1 + cfg.photometric_range, 2)
                x = x * bright
                x = np.clip((x - x.mean()) * contrast + x.mean(), 0, 1).astype(np.float32)
            x = blurred(x, rng.uniform(*cfg.blur_sigma)) if rng.random() < cfg.blur else x
            lit.append(planes(2 * x - 1))
            mask = np.ones(self.patches, bool)
            mask[rng.permutation(self.patches)[: int(self.patches * (1 - cfg.mask_ratio))]] = False
            masks.append(mask)
        label = np.zeros(len(cfg.classes), np.float32)
        label[rng.integers(len(label))] = 1
        drop = np.float32(rng.random() < cfg.cond_dropout)
        return {"views": np.stack(views), "lit": np.stack(lit), "mask": np.stack(masks), "label": label, "drop": drop}

    def from_ours(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same batch by our recipe."""
        ours, n = self._ours[0], len(images)
        if "organ" not in draws:
            draws = draws | {"organ": draws["wrong"]}
        sharp = ours.views(images, draws)
        both = {
            "views": sharp,
            "lit": relit(sharp, draws["light"], draws["sigma"], self.cfg.blur_sigma[1]),
            "mask": ours.masks(draws["noise"])[1],
        }
        paired = {name: value.unflatten(0, (2, n)).transpose(0, 1) for name, value in both.items()}
        return {**paired, "label": ours.labels(n, draws)[0], "drop": draws["drop"].float()}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """DINO's two networks, SimMIM's loss, VQGAN's weight; the losses of discriminator and organ classifier."""
        cfg, label = self.cfg, batch["label"]
        seen = label * (1 - batch["drop"][:, None])
        with torch.no_grad():
            guide = [self.teacher["head"](y[:, 0]) for y in self._views(self.teacher["encoder"], batch["lit"], label)]
        tokens = self._views(self.encoder, batch["views"], seen, batch["mask"])
        logits = [self.head(y[:, 0]) for y in tokens]
        pred = self.pred(torch.cat(tokens)[:, 1:])  # all patches
        p, images = cfg.patch_size, batch["views"].transpose(0, 1).flatten(0, 1)
        side = images.shape[-1] // p
        target = images.reshape(-1, side, p, side, p).transpose(2, 3).reshape(pred.shape)
        mask = batch["mask"].transpose(0, 1).flatten(0, 1)
        mim = (((pred.float() - target) ** 2).sum(-1) * mask).sum() / mask.sum()
        real, fake = target[mask].reshape(-1, 1, p, p), pred[mask].reshape(-1, 1, p, p).float()
        rebuilt = self._closed(tokens, real, fake, mask, mim) if "lambda" in self.remedies else self._plain(fake, mim)
        sd = _dino_loss(logits, guide, self.centre, cfg.student_temp, cfg.teacher_temp[0])
        self._seen = torch.cat(guide)
        d_real, d_fake = self.discriminator(real.detach()), self.discriminator(fake.detach())
        cls = torch.cat([y[:, 0] for y in tokens]).detach()
        unseen = batch["drop"].repeat(2).bool()
        organs = F.cross_entropy(self.organ_head(cls).float(), label.argmax(1).repeat(2), reduction="none")
        return {
            "loss": sd + rebuilt,
            "loss/discriminator": 0.5 * (F.softplus(-d_real.float()).mean() + F.softplus(d_fake.float()).mean()),
            "loss/organ": (organs * unseen).mean() / cfg.cond_dropout,
        }

    def _plain(self, fake: Tensor, mim: Tensor) -> Tensor:
        adv = F.softplus(-self.discriminator(fake).float()).mean()
        if not torch.is_grad_enabled():
            return mim
        last = self.pred.weight
        d_mim = torch.autograd.grad(mim, last, retain_graph=True)[0]
        d_adv = torch.autograd.grad(adv, last, retain_graph=True)[0]
        weight = (d_mim.norm() / (d_adv.norm() + self.cfg.lambda_eps)).clamp(0.0, self.cfg.lambda_max).detach()
        return mim + weight * adv

    def _closed(self, tokens: list[Tensor], real: Tensor, fake: Tensor, mask: Tensor, mim: Tensor) -> Tensor:
        leaf = fake.detach().requires_grad_()
        adv = generator_loss(self.discriminator(leaf))
        (d_adv,) = torch.autograd.grad(adv, leaf)
        inputs = torch.cat(tokens)[:, 1:][mask].detach()
        d_mim = mim_gradient(fake.detach().flatten(1)[None], real.flatten(1)[None])[0]
        d_adv = d_adv.flatten(1)
        norms = [layer_gradient(d, inputs) for d in (d_mim, d_adv)]
        weight = adaptive_lambda(norms[0], norms[1], self.cfg.lambda_eps, self.cfg.lambda_max)
        pixels_ = fake.flatten(1)
        return with_gradient(mim.detach() + weight * adv.detach(), pixels_, d_mim + weight * d_adv)

    def _views(self, encoder: nn.Module, views: Tensor, label: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Tokens of each of the views (B, 2, 1, S, S)."""
        if "passes" in self.remedies:
            flat = None if mask is None else mask.transpose(0, 1).flatten(0, 1)
            return list(
                encoder(views.transpose(0, 1).flatten(0, 1), label.repeat(2, 1), flat, self.mask_token).chunk(2)
            )
        masks = [None, None] if mask is None else mask.unbind(1)
        return [encoder(x, label, m, self.mask_token) for x, m in zip(views.unbind(1), masks, strict=True)]

    @torch.no_grad()
    def after_step(self) -> None:
        """The teacher and its centre."""
        pairs = [(self.teacher["encoder"], self.encoder), (self.teacher["head"], self.head)]
        m = self.cfg.teacher_momentum
        for old, new in pairs:
            if "ema" in self.remedies:
                follow(old.parameters(), new.parameters(), m)
                continue
            for a, b in zip(old.parameters(), new.parameters(), strict=True):
                a.data.mul_(m).add_((1 - m) * b.detach().data)
        mean = self._seen.float().mean(0)
        self.centre = self.centre * self.cfg.centre_momentum + mean * (1 - self.cfg.centre_momentum)

    def optimisers(self, run: RunConfig) -> list[tuple[str, torch.optim.Optimizer, float | None]]:
        """The generator's AdamW, the discriminator's Adam, the classifier's AdamW."""
        main = nn.ModuleList([self.encoder, self.head, self.pred])
        groups = decay_groups(main, run.weight_decay)
        groups[0]["params"].append(self.mask_token)
        fused = True if "optimiser" in self.remedies else None
        judge = torch.optim.Adam(self.discriminator.parameters(), self.cfg.disc_lr, betas=(0.5, 0.9), fused=fused)
        organs = torch.optim.AdamW(self.organ_head.parameters(), 1e-3, weight_decay=0.0, fused=fused)
        return [
            ("loss", adam(groups, run, self.remedies), run.clip_grad),
            ("loss/discriminator", judge, run.clip_grad),
            ("loss/organ", organs, run.clip_grad),
        ]


class _Encoder(nn.Module):
    """A ViT with deformable keys and values."""

    def __init__(self, cfg: Any, remedies: frozenset[str], drop_path: float) -> None:
        super().__init__()
        self.side, patch = cfg.image_size // cfg.patch_size, cfg.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.side**2, cfg.width) * 0.02)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, cfg.width, patch, stride=patch)})
        rates = torch.linspace(0, drop_path, cfg.depth).tolist()
        self.blocks = nn.ModuleList(_Block(cfg, rate, remedies) for rate in rates)
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)

    def forward(self, x: Tensor, label: Tensor, mask: Tensor | None, token: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        if mask is not None:  # SimMIM
            w = mask.unsqueeze(-1).type_as(x)
            x = x * (1 - w) + token * w
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, label)
        return self.norm(x)


class _Block(Block):
    def __init__(self, cfg: Any, rate: float, remedies: frozenset[str]) -> None:
        super().__init__(cfg.width, cfg.heads, qkv_bias=True, norm_layer=nn.LayerNorm)
        self.norm1, self.norm2 = (nn.LayerNorm(cfg.width, eps=1e-6) for _ in range(2))
        self.acdt, self.drop, self.fused = _Deformable(cfg, remedies), DropPath(rate), "attention" in remedies

    def forward(self, x: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        y = self.norm1(x)
        x = x + self.drop(self._attend(y, torch.cat([y[:, :1], self.acdt(y[:, 1:], label)], dim=1)))
        return x + self.drop(self.mlp(self.norm2(x)))

    def _attend(self, y: Tensor, source: Tensor) -> Tensor:
        attn: Any = self.attn
        b, n, width = y.shape
        wq, wkv = attn.qkv.weight.split([width, 2 * width])
        bq, bkv = attn.qkv.bias.split([width, 2 * width])
        q = F.linear(y, wq, bq).reshape(b, n, attn.num_heads, -1).transpose(1, 2)
        k, v = F.linear(source, wkv, bkv).reshape(b, n, 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q @ k.transpose(-2, -1)) * attn.scale).softmax(dim=-1) @ v
        return attn.proj(x.transpose(1, 2).reshape(b, n, width))


class _Deformable(nn.Module):
    """Nine taps for each place, moved by what patch and organ say; one weight per channel and tap."""

    def __init__(self, cfg: Any, remedies: frozenset[str]) -> None:
        super().__init__()
        self.side, self.remedies = cfg.image_size // cfg.patch_size, remedies
        self.anatomy = nn.Linear(len(cfg.classes), cfg.width)
        self.offsets = nn.Module()
        self.offsets.depthwise = nn.Conv2d(cfg.width, cfg.width, 3, padding=1, groups=cfg.width)
        self.offsets.norm, self.offsets.out = nn.LayerNorm(cfg.width, eps=1e-6), nn.Linear(cfg.width, 18)
        self.w = nn.Parameter(torch.eye(9)[4].repeat(cfg.width, 1))
        nn.init.zeros_(self.offsets.out.weight)
        nn.init.zeros_(self.offsets.out.bias)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        b, n, d = x.shape
        s, part = self.side, self.offsets
        y = (x + self.anatomy(label)[:, None]).transpose(1, 2).reshape(b, d, s, s)
        y = part.out(F.gelu(part.norm(part.depthwise(y).flatten(2).transpose(1, 2)))).float()
        moved = y.reshape(b, s, s, 9, 2)  # dy, dx
        if "sampling" in self.remedies:
            out = deform_conv(x.reshape(b, s, s, d), moved[:, :, :, None], self.w)
            return out.flatten(1, 2).to(x.dtype)
        place = torch.stack(torch.meshgrid(torch.arange(s), torch.arange(s), indexing="ij"), -1).to(moved)
        place = place[:, :, None] + base_offsets(9, "3x3").to(moved) + moved
        grid = ((2 * place + 1) / s - 1).flip(-1).reshape(b, s, s * 9, 2)
        found = F.grid_sample(x.float().transpose(1, 2).reshape(b, d, s, s), grid, align_corners=False)
        return torch.einsum("bdnk,dk->bnd", found.reshape(b, d, n, 9), self.w).to(x.dtype)


class _Head(nn.Module):
    """DINO's head; the rows of its last layer have norm 1."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        layers = [nn.Linear(cfg.width, cfg.head_hidden), nn.GELU(), nn.Linear(cfg.head_hidden, cfg.head_hidden)]
        self.mlp = nn.Sequential(*layers, nn.GELU(), nn.Linear(cfg.head_hidden, cfg.head_bottleneck))
        self.prototypes = nn.Parameter(torch.randn(cfg.prototypes, cfg.head_bottleneck))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.mlp(x), dim=-1)
        return x @ F.normalize(self.prototypes, dim=-1).to(x.dtype).T


def _dino_loss(student: list[Tensor], teacher: list[Tensor], centre: Tensor, ts: float, tt: float) -> Tensor:
    total, terms = torch.zeros((), device=centre.device), 0
    for i, t in enumerate(teacher):
        q = F.softmax((t.float() - centre) / tt, dim=-1)
        for j, s in enumerate(student):
            if i != j:
                total = total - (q * F.log_softmax(s.float() / ts, dim=-1)).sum(-1).mean()
                terms += 1
    return total / terms
