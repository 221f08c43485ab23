"""Parts of ARL that are no part of its method: from its config to layers and metadata; what each optimiser gets."""

from typing import Any

from torch import nn

from training.arl_config import ARLConfig
from training.models.avit import ACDTBlock, ACDTOptions
from training.transforms import shown_share

_NO_DECAY = ("anatomy.", "acdt.w", "pos_embed", "cls_token", "mask_token", "prototypes")
_OWNERS = {"discriminator": "discriminator", "organ_head": "organ"}


def vit_args(cfg: ARLConfig) -> dict[str, Any]:
    """The shape of the encoder, under timm's names."""
    size = {"img_size": cfg.image_size, "patch_size": cfg.patch_size, "in_chans": 1}
    return {**size, "embed_dim": cfg.width, "depth": cfg.depth, "num_heads": cfg.heads}


def acdt_options(cfg: ARLConfig) -> ACDTOptions:
    """What the deformable blocks are told."""
    names = ("taps", "base_grid", "offset_groups", "offset_range", "w_mode", "w_std", "backend")
    return ACDTOptions(classes=len(cfg.classes), **{name: getattr(cfg, name) for name in names})


def export_facts(cfg: ARLConfig) -> dict[str, Any]:
    """What the exported encoder's metadata says, as `Recipe.encoder_export` gives it."""
    arch = {"class": "training.models.avit.AViT", "acdt": cfg.acdt, "anatomy": cfg.anatomy, **vit_args(cfg)}
    return {
        "model_name": None if cfg.acdt else "vit_base_patch16_224",
        "model_args": {**vit_args(cfg), "num_classes": 0},
        "arch": {**arch, **acdt_options(cfg).__dict__} if cfg.acdt else arch,
        "classes": list(cfg.classes),
        "input_size": [1, cfg.image_size, cfg.image_size],
        "mean": [0.5],
        "std": [0.5],
        "interpolation": "bicubic",
        "crop_pct": shown_share(cfg.eval_view),
        "pool": cfg.pool,
    }


def optimisers_of(cfg: ARLConfig) -> dict[str, dict[str, Any]]:
    """The optimisers beside the main one, as `Recipe.optimisers` names them."""
    named: dict[str, dict[str, Any]] = {}
    if cfg.adv:
        named["discriminator"] = {"kind": "adam", "betas": (0.5, 0.9), "lr": cfg.disc_lr, "weight_decay": 0.0}
    if cfg.predicts:
        named["organ"] = {"kind": "adamw", "betas": (0.9, 0.999), "lr": 1e-3, "weight_decay": 0.0}
    return named


def decoder_of(cfg: ARLConfig) -> nn.Sequential:
    """Plain blocks of `decoder_width` between two ends: (B, L, width) tokens -> (B, L, decoder_width)."""
    blocks = [ACDTBlock(cfg.decoder_width, cfg.decoder_heads, qkv_bias=True) for _ in range(cfg.decoder_depth)]
    return nn.Sequential(nn.Linear(cfg.width, cfg.decoder_width), *blocks, nn.LayerNorm(cfg.decoder_width, eps=1e-6))


def groups_of(recipe: nn.Module, weight_decay: float, offset_lr: float) -> list[dict[str, Any]]:
    """Optimiser groups over the trainable parameters of an ARL, in the form of `Recipe.param_groups`.

    Decayed or not (biases, norms, positions, AC, w_k, prototypes); the offset networks at `offset_lr` times the rate;
    discriminator and organ classifier with optimisers of their own, undecayed.
    """
    found: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, p in recipe.named_parameters():
        if not p.requires_grad:
            continue
        owner = _OWNERS.get(name.split(".", 1)[0], "main")
        free = owner != "main" or p.ndim <= 1 or any(part in name for part in _NO_DECAY)
        found.setdefault((owner, free, ".acdt.offsets." in name), []).append(p)
    return [
        {
            "optimiser": owner,
            "name": f"{owner}{' offsets' if slow else ''}{' no_decay' if free else ''}",
            "params": params,
            "weight_decay": 0.0 if free else weight_decay,
            "lr_scale": offset_lr if slow else 1.0,
        }
        for (owner, free, slow), params in found.items()
    ]
