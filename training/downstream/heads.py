"""A classifier on a pretrained D2MAE encoder, and the learning rate of each of its layers.

Source: D2MAE, "fine-tuned as MAE"; numbers from MAE's official fine-tuning code.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from timm.layers import DropPath
from torch import Tensor, nn

from training.models.vit import position_rows
from training.recipes.d2mae import D2MAE, D2MAEConfig
from usdata.errors import ConfigError

_STEM = re.compile(r"(backbone\.)?(encoder\.(cls_token|pos_embed|patch_embed\.)|level\.)")
_BLOCK = re.compile(r"(backbone\.)?encoder\.blocks\.(\d+)\.")
_TOP = re.compile(r"(backbone\.encoder\.)?norm\.|head\.")


class Classifier(nn.Module):
    """Encoder on all patches of an image blurred by its own level, and told so; pooled; a Linear to classes.

    Args:
        cfg: config of the pretraining; its blur, level embedding and encoder are used, its decoder is not built in.
        classes: number of classes.
        pool: "mean" over the patch outputs, then LayerNorm (in the place of the encoder's last norm, as MAE), or
            "cls", the class token after the encoder's last norm.
        drop_path: rate of stochastic depth at the last block, rising linearly from 0 at the first.
    """

    def __init__(
        self, cfg: D2MAEConfig, classes: int, pool: Literal["mean", "cls"] = "mean", drop_path: float = 0.1
    ) -> None:
        super().__init__()
        self.pool = pool
        self.backbone = D2MAE(cfg)
        del self.backbone.decoder
        encoder = self.backbone.encoder
        position_rows(encoder).requires_grad_(True)  # MAE fine-tunes its positions
        width, depth = encoder.embed_dim, len(encoder.blocks)
        for i, block in enumerate(encoder.blocks):
            rate = drop_path * i / max(1, depth - 1)
            if rate > 0:
                block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
        if pool == "mean":
            encoder.norm = nn.Identity()
        self.norm = nn.LayerNorm(width, eps=1e-6) if pool == "mean" else nn.Identity()
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, sharp: Tensor, t: Tensor) -> Tensor:
        """Logits (B, classes) of crops (B, 1, S, S) float32 in [0, 1], not blurred yet, and their levels t (B,)."""
        return self.classify(self.backbone.tokens(self.backbone.blur(sharp, t), t))

    def classify(self, tokens: Tensor) -> Tensor:
        """Logits from the encoder's outputs (B, prefix + N, D); the level token's output is never used."""
        pooled = tokens[:, self.backbone.prefix :].mean(dim=1) if self.pool == "mean" else tokens[:, 0]
        return self.head(self.norm(pooled))

    def load_pretrained(self, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
        """Take over encoder and level embedding from a pretraining state dict (`D2MAE.state_dict()`).

        Returns:
            Names that stayed fresh (head and pooling norm) and names that were not wanted (the encoder's last norm,
            if the mean is pooled). The decoder is dropped without mention.

        Raises:
            ConfigError: anything else is missing, left over or of another shape: the weights are of another model.
        """
        wanted = {f"backbone.{name}": value for name, value in state.items() if not name.startswith("decoder.")}
        try:
            missing, unexpected = self.load_state_dict(wanted, strict=False)
        except RuntimeError as error:
            raise ConfigError(f"The pretrained weights do not fit this model: {error}") from error
        wrong = [name for name in missing if not name.startswith(("norm.", "head."))]
        last_norm = "backbone.encoder.norm." if self.pool == "mean" else None
        wrong += [name for name in unexpected if not (last_norm and name.startswith(last_norm))]
        if wrong:
            raise ConfigError(
                f"The pretrained weights do not fit this model: {', '.join(wrong[:5])} missing or left over.",
                hint="Build the classifier from the config that the pretraining run saved.",
            )
        return list(missing), list(unexpected)


def layer_id(name: str, depth: int) -> int:
    """Which layer a parameter of a `Classifier` or `D2MAE` encoder belongs to, by its name.

    0: patch layer, class token, positions and the level embedding; 1 ... depth: the blocks; depth + 1: last norm, head.

    Raises:
        ConfigError: a name that no rule knows. (A default would give a new token the head's learning rate.)
    """
    if _STEM.match(name):
        return 0
    if block := _BLOCK.match(name):
        return int(block[2]) + 1
    if _TOP.match(name):
        return depth + 1
    raise ConfigError(f"No rule says to which layer the parameter {name!r} belongs.")


def layer_decay_groups(model: Classifier, weight_decay: float = 0.05, decay: float = 0.65) -> list[dict[str, Any]]:
    """Optimiser groups with a rate that falls from the head to the stem.

    Args:
        model: the classifier.
        weight_decay: of all but 1-D parameters, class token, positions and level embedding.
        decay: layer l of L blocks learns at decay ** (L + 1 - l) of the full rate.

    Returns:
        Groups "layer_<l>_decay" and "layer_<l>_no_decay" with "params", "weight_decay" and "lr_scale" (to be
        multiplied into the rate), from the stem up.
    """
    depth = len(model.backbone.encoder.blocks)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_id(name, depth)
        free = parameter.ndim <= 1 or name.endswith(("cls_token", "pos_embed")) or ".level." in name
        group = groups.setdefault(
            (layer, free),
            {
                "name": f"layer_{layer}_{'no_decay' if free else 'decay'}",
                "params": [],
                "weight_decay": 0.0 if free else weight_decay,
                "lr_scale": decay ** (depth + 1 - layer),
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
