"""A batch in pieces: what a loss that looks across the batch must know of the pieces it does not see.

Most losses are means over images, so the mean of the pieces' gradients is the batch's. A contrast between images, the
use of channels by a whole batch, or a ratio of gradient norms is no such mean. A recipe with one has a `survey`, which
is run over all pieces first, without gradients; its result then stands among the draws of each `step`.

Source: the idea is GradCache's (Gao et al., 2021), with the embeddings of all pieces held, not their gradients.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from training.distributed import gather_ranks, mean_over_ranks

Piece = tuple[Tensor, dict[str, Tensor]]  # images and draws of one micro-batch

WHOLE = "whole/"  # before the names of a survey's result, among the draws
PLACE = WHOLE + "place"  # (b,) int64: which rows of the whole batch a piece is


def surveyed(recipe: Any, pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """What the pieces of this rank and of all others say together; {} for a recipe without `survey`.

    Every rank must make the call. Drop path and the like come from the draws, so that the passes that follow repeat
    this one.

    Returns:
        "whole/<name>": of the rows, those of the global batch in its order; of the means, the mean over all pieces.
    """
    if not hasattr(recipe, "survey"):
        return {}
    with torch.no_grad():
        found = [recipe.survey(images, draws) for images, draws in pieces]
        whole = {}
        for name in found[0][0]:
            whole[WHOLE + name] = gather_ranks(torch.cat([rows[name] for rows, _ in found]))
        for name in found[0][1]:
            whole[WHOLE + name] = mean_over_ranks(torch.stack([means[name] for _, means in found]).mean(0))
    return whole


def placed(whole: dict[str, Tensor], start: int, n: int) -> dict[str, Tensor]:
    """What a survey adds to the draws of the piece whose first image is row `start` of the batch, of `n` rows."""
    if not whole:
        return {}
    device = next(iter(whole.values())).device
    return {**whole, PLACE: torch.arange(start, start + n, device=device)}


def among_all(own: Tensor, draws: Mapping[str, Tensor], name: str) -> Tensor:
    """The rows `name` of the whole batch, this piece's own ones with a gradient.

    That gradient is multiplied by the number of pieces, because the mean over the pieces is taken of it: a loss of
    all rows then has, over all pieces, exactly its gradient. Without a survey the whole batch is `own` of all ranks.

    Args:
        own: (b, ...) with a gradient.

    Returns:
        (B, ...) of `own`'s type.
    """
    if WHOLE + name not in draws:
        return gather_ranks(own)
    whole = draws[WHOLE + name].to(own.dtype)
    live = own.detach() + (len(whole) / len(own)) * (own - own.detach())  # the value of `own`, to the bit
    return whole.index_copy(0, draws[PLACE], live)


def rows_of_all(draws: Mapping[str, Tensor], name: str) -> Tensor:
    """The draw `name` of all images of the batch, in its order; no gradient."""
    return draws[WHOLE + name] if WHOLE + name in draws else gather_ranks(draws[name])


def mean_of_all(own: Tensor, draws: Mapping[str, Tensor], name: str) -> Tensor:
    """The mean `name` over the whole batch, without gradient. Without a survey: the mean of `own` over the ranks."""
    return draws[WHOLE + name] if WHOLE + name in draws else mean_over_ranks(own)


def in_mean(own: Tensor, draws: Mapping[str, Tensor], name: str) -> Tensor:
    """The mean `name` over the whole batch, with the gradient that this piece's own part of it has.

    Without a survey it is the mean of `own` over the ranks.

    Args:
        own: of any shape, with a gradient; equally large pieces.
    """
    if WHOLE + name not in draws:
        return gather_ranks(own[None]).mean(0)
    return draws[WHOLE + name].to(own.dtype) + (own - own.detach())
