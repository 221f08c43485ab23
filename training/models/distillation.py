"""Parts of self-distillation: projection head, centre, and the teacher that follows its student."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.distributed import mean_over_ranks
from training.losses_adversarial import updated_centre


class DistillationHead(nn.Module):
    """Three-layer MLP, L2-normalised, then prototypes: a Linear whose rows have norm 1 (weight norm with g = 1).

    Args:
        inputs: width of the tokens.
        hidden, bottleneck: widths of the MLP (DINO: 2048, 256).
        prototypes: N, how many outputs.

    Source: DINO's head (Caron et al., 2021), official code.
    """

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for part in self.mlp:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        nn.init.normal_(self.prototypes)

    def forward(self, tokens: Tensor, frozen: bool = False) -> Tensor:
        """(..., inputs) -> raw logits (..., prototypes) in [-1, 1].

        `frozen` keeps the prototypes as they are: their gradient is zero (not missing, which DDP would wait for).
        """
        weight = self.prototypes.detach() + 0.0 * self.prototypes if frozen else self.prototypes
        return F.linear(F.normalize(self.mlp(tokens), dim=-1), F.normalize(weight, dim=-1).to(tokens.dtype))


class Centre(nn.Module):
    """The running mean of the teacher's raw logits: used first, updated after the optimiser's step.

    `value` (prototypes,) starts at 0. What the passes since the last update saw is kept apart until `update`.
    """

    value: Tensor
    total: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(prototypes))
        self.register_buffer("total", torch.zeros(prototypes), persistent=False)
        self.passes = 0  # micro-batches that `total` is over

    @torch.compiler.disable
    @torch.no_grad()
    def note(self, logits: Tensor) -> None:
        """Remember a batch's raw teacher logits (..., prototypes)."""
        self.total.add_(logits.float().flatten(0, -2).mean(0))
        self.passes += 1

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """value <- momentum * value + (1 - momentum) * mean over all that was noted, on all ranks."""
        if self.passes:
            self.value.copy_(updated_centre(self.value, mean_over_ranks(self.total / self.passes), momentum))
        self.total.zero_()
        self.passes = 0


@torch.no_grad()
def follow(teacher: Iterable[Tensor], student: Iterable[Tensor], momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, in place, for parameters in the same order."""
    old = list(teacher)
    torch._foreach_mul_(old, momentum)
    torch._foreach_add_(old, list(student), alpha=1.0 - momentum)


class Teacher(nn.Module):
    """A copy of encoder and head that gets no gradient, stays in eval mode, and follows the student.

    Args:
        encoder, head: the student's, as they are initialised.
    """

    def __init__(self, encoder: nn.Module, head: DistillationHead) -> None:
        super().__init__()
        self.encoder: Any = copy.deepcopy(encoder)
        self.head = copy.deepcopy(head)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Eval mode, whatever is asked."""
        super().train(False)
        return self

    def follow(self, encoder: nn.Module, head: nn.Module, momentum: float) -> None:
        """Every parameter: momentum * own + (1 - momentum) * student's."""
        follow(self.encoder.parameters(), encoder.parameters(), momentum)
        follow(self.head.parameters(), head.parameters(), momentum)
