"""timm's BEiT as USFM pretrains it: one table of relative positions for all blocks, and no other positions.

The module stays timm's own, keys included. For fine-tuning every block gets its own copy of the table
(`per_block_tables`), which is how timm's `beit_*` models are made: what is exported loads with
`timm.create_model(..., checkpoint_path=...)`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

import timm
import torch
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models.beit import Beit
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.attention import biased_attention
from usdata.errors import ConfigError, nearest

Positions = Literal["rel_shared", "abs"]

TABLE = "relative_position_bias_table"
_SHARED = f"rel_pos_bias.{TABLE}"


def build_beit(name: str, pos: Positions = "rel_shared", layer_scale: float | None = 0.1, **arguments: Any) -> Beit:
    """A timm BEiT with fresh weights, initialised as BEiT: truncated normals, tables zero, depth-scaled projections.

    Args:
        name: a timm model name, e.g. "beit_base_patch16_224".
        pos: "rel_shared", one table of relative positions for all blocks; or "abs", learned absolute positions.
        layer_scale: first value of the residual branches' scales; None: no scales.
        arguments: what else to override: img_size, patch_size, in_chans, embed_dim, ...

    Raises:
        ConfigError: timm has no such model, or it is no BEiT.
    """
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}.{nearest(name, timm.list_models('beit*'))}")
    if timm.model_entrypoint(name).__module__ != Beit.__module__:
        raise ConfigError(f"timm's {name!r} is no BEiT.", hint="Use beit_base_patch16_224 or another of that family.")
    beit = cast(Beit, timm.create_model(name, **beit_arguments(pos, layer_scale, **arguments)))
    if pos == "rel_shared":
        for block in beit.blocks:
            part: Any = block
            part.attn.forward = partial(_attend, part.attn)
    return beit


def _attend(attn: Any, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
    """timm's BEiT attention with the shared table alone, (B, T, D) -> (B, T, D), by `biased_attention`."""
    bias = None if attn.q_bias is None else torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    qkv = F.linear(x, attn.qkv.weight, bias).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    if shared_rel_pos_bias is None:
        mixed = F.scaled_dot_product_attention(q, k, v)
    else:
        mixed = biased_attention(q, k, v, shared_rel_pos_bias)
    return cast(Tensor, attn.proj(mixed.transpose(1, 2).flatten(2)))


def beit_arguments(
    pos: Positions, layer_scale: float | None, *, per_block: bool = False, **arguments: Any
) -> dict[str, Any]:
    """What `timm.create_model` needs for this BEiT; `per_block` with a table in each block in place of the shared one.

    The last norm is before the pooling, where the pretraining's decoder needs it.
    """
    relative = pos == "rel_shared"
    return {
        **arguments,
        "init_values": layer_scale or 0.0,  # timm leaves out arguments that are None, and the name's own 0.1 stays
        "use_abs_pos_emb": pos == "abs",
        "use_shared_rel_pos_bias": relative and not per_block,
        "use_rel_pos_bias": relative and per_block,
        "global_pool": "avg",
        "use_fc_norm": False,
    }


def per_block_tables(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """A state dict in which each of `depth` blocks has its own copy of the shared table; without one, unchanged."""
    expanded = {name: value for name, value in state.items() if name != _SHARED}
    if _SHARED in state:
        expanded |= {f"blocks.{i}.attn.{TABLE}": state[_SHARED].clone() for i in range(depth)}
    return expanded


def resize_tables(state: Mapping[str, Tensor], old: tuple[int, int], new: tuple[int, int]) -> dict[str, Tensor]:
    """A state dict for another grid of patches: tables interpolated per head, their three special rows copied.

    Args:
        state: of a BEiT, tables shared or per block.
        old, new: rows and columns of the grid; a table has (2 * rows - 1) * (2 * columns - 1) + 3 rows.

    Source: BEiT's fine-tuning code: old distances are placed in a geometric progression, as timm does.
    """
    rows = (2 * new[0] - 1) * (2 * new[1] - 1) + 3

    def resized(table: Tensor) -> Tensor:
        shape = (rows, table.shape[1])
        return resize_rel_pos_bias_table(table, new_window_size=new, new_bias_shape=shape, old_window_size=old)

    return {name: resized(value) if name.endswith(TABLE) else value for name, value in state.items()}


class DrawnDropPath(nn.Module):
    """Stochastic depth whose coins are handed in (`set_drop_path`), so that a step depends on its draws alone.

    `keep` stays until the next step sets it: gradient checkpointing computes a block a second time.
    """

    keep: Tensor | None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> the same, each image's branch zero or scaled by 1 / (1 - rate); in eval mode unchanged."""
        if not self.training or self.keep is None:
            return x
        return x * self.keep.to(x.dtype)[:, None, None]


def add_drop_path(encoder: nn.Module, rate: float) -> None:
    """Put a `DrawnDropPath` behind both branches of every block, in place; `rate` at the last, 0 at the first."""
    blocks = cast(list[Any], encoder.blocks)
    for i, block in enumerate(blocks):
        share = rate * i / max(1, len(blocks) - 1)
        block.drop_path1, block.drop_path2 = DrawnDropPath(share), DrawnDropPath(share)


def set_drop_path(encoder: nn.Module, noise: Tensor | None) -> None:
    """Throw the coins of one step, in place.

    Args:
        noise: (B, 2 * depth) uniform in [0, 1), a branch is dropped below its rate; None: no branch is dropped.
    """
    parts = [part for part in encoder.modules() if isinstance(part, DrawnDropPath)]
    columns = [None] * len(parts) if noise is None else noise.unbind(1)
    for part, column in zip(parts, columns, strict=True):
        part.keep = None if column is None else (column >= part.rate).to(torch.float32) / (1 - part.rate)
