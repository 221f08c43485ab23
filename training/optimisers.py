"""One or several optimisers over a recipe's parameters, their schedules, and the guard that holds them all back.

Every loss reaches the parameters of its own optimiser and no others. A number that is not finite, in any loss or
gradient, blocks every later update on the device itself, without waiting for it: the weights stay those of the step
before.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from training.config import RunConfig
from training.distributed import World
from training.schedules import cosine, warmup_cosine
from usdata.errors import ConfigError

MAIN = "main"


class OptimiserSpec(BaseModel):
    """How one of a recipe's optimisers differs from the run's; what is None or left out is the run's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["adamw", "adam"] = "adamw"  # adam: weight decay as an L2 term in the gradient
    betas: tuple[float, float] | None = None
    lr: float | None = Field(None, ge=0)  # a constant rate, without warm-up; None: the run's schedule
    weight_decay: float | None = Field(None, ge=0)  # a constant; None: the run's, and its schedule
    clip_grad: float | None = Field(None, gt=0)  # largest norm of this optimiser's gradient; None: the run's
    eps: float = Field(1e-8, gt=0)


def specs_of(recipe: Any) -> dict[str, OptimiserSpec]:
    """The recipe's optimisers, "main" first; AdamW as the run says where it names none.

    Raises:
        ConfigError: a key or value that no optimiser has.
    """
    named: Mapping[str, Any] = getattr(recipe, "optimisers", {})
    specs = {}
    for name, values in {MAIN: {}, **named}.items():
        try:
            specs[name] = OptimiserSpec(**values)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ConfigError(f"The recipe's optimiser {name!r} is wrong: {wrong}.") from error
    return specs


def loss_of(optimiser: str) -> str:
    """The term that an optimiser minimises: "loss" for "main", else "loss/<optimiser>"."""
    return "loss" if optimiser == MAIN else f"loss/{optimiser}"


class Optimisers:
    """All optimisers of a run, by name.

    Raises:
        ConfigError: see `specs_of`, or parameter groups of an optimiser that the recipe does not name.
        ValueError: a trainable parameter in no group, or in two.
    """

    def __init__(self, recipe: nn.Module, cfg: RunConfig, peers: World) -> None:
        self.cfg, self.peers, self.specs = cfg, peers, specs_of(recipe)
        groups = _groups(recipe, cfg, self.specs)
        self.by_name = {name: _fused(groups[name], spec, cfg) for name, spec in self.specs.items() if groups[name]}
        self.params = {name: [p for group in groups[name] for p in group["params"]] for name in self.by_name}
        _check_owned(recipe, self.params)
        self.blocked = torch.zeros((), device=peers.device)  # 1 from the first step that is not finite
        for optimiser in self.by_name.values():  # fused optimisers change nothing where `found_inf` is 1
            optimiser.grad_scale, optimiser.found_inf = None, self.blocked  # type: ignore[attr-defined]

    @property
    def norms(self) -> list[str]:
        """Names of what `update` puts before the terms: "grad_norm", "grad_norm/discriminator", ..."""
        return [_suffixed("grad_norm", name) for name in self.by_name]

    def set_rates(self, step: int) -> dict[str, float]:
        """Set learning rates and weight decays for the update after `step` steps; gives those to log."""
        cfg = self.cfg
        lr = warmup_cosine(step, steps=cfg.steps, warmup_steps=cfg.warmup_steps, peak=cfg.peak_lr, end=cfg.min_lr)
        decay, rates = cfg.weight_decay, {"lr": lr}
        if cfg.weight_decay_end is not None:
            decay = rates["weight_decay"] = cosine(step, cfg.steps, cfg.weight_decay, cfg.weight_decay_end)
        for name, optimiser in self.by_name.items():
            rate = self.specs[name].lr
            if name != MAIN:
                rates[f"lr/{name}"] = lr if rate is None else rate
            for group in optimiser.param_groups:
                group["lr"] = (lr if rate is None else rate) * group.get("lr_scale", 1.0)
                if cfg.weight_decay_end is not None and self.specs[name].weight_decay is None:
                    group["weight_decay"] = decay * group["decay_share"]
        return rates

    def backward(self, terms: Mapping[str, Tensor], share: float) -> None:
        """Add the gradient of each optimiser's loss, times `share`, to its own parameters.

        Raises:
            ValueError: no "loss", or the loss of an optimiser that there is not.
        """
        losses = {name: terms[loss_of(name)] for name in self.by_name if loss_of(name) in terms}
        unknown = {t for t in terms if t.startswith("loss/")} - {loss_of(name) for name in losses}
        if MAIN not in losses or unknown:
            raise ValueError(f"step gave the losses {sorted(unknown)} of no optimiser, or no 'loss': {sorted(terms)}")
        if len(self.by_name) == 1:
            (losses[MAIN] * share).backward()
            return
        for name in sorted(losses, key=lambda name: name == MAIN):  # main last: its graph, the large one, is freed
            torch.autograd.backward(losses[name] * share, inputs=self.params[name], retain_graph=name != MAIN)

    def update(self, terms: Tensor) -> Tensor:
        """Clip and apply all gradients, unless a number is or was not finite.

        Args:
            terms: (k,) what the step measured.

        Returns:
            (n + k,) float32: the gradient's norm before clipping of each of n optimisers, then the terms.
        """
        values = torch.cat([*(self._clipped(name) for name in self.by_name), terms])
        self.blocked.copy_(torch.maximum(self.blocked, 1.0 - values.isfinite().all().float()))
        self.peers.share_highest(self.blocked)
        for optimiser in self.by_name.values():
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return values

    def _clipped(self, name: str) -> Tensor:
        grads = [p.grad for p in self.params[name] if p.grad is not None]
        if not grads:  # its loss was not among the terms
            return torch.zeros(1, device=self.blocked.device)
        norm = nn.utils.get_total_norm(grads)
        limit = self.cfg.clip_grad if self.specs[name].clip_grad is None else self.specs[name].clip_grad
        if limit is not None:
            nn.utils.clip_grads_with_norm_(self.params[name], limit, norm)
        return norm.detach().float().reshape(1)

    def state_dict(self) -> dict[str, Any]:
        """Moments and counts by optimiser, as a checkpoint holds them."""
        return {name: optimiser.state_dict() for name, optimiser in self.by_name.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ConfigError: the state is of other optimisers.
        """
        if state.keys() != self.by_name.keys():
            raise ConfigError(f"The checkpoint is of the optimisers {sorted(state)}, not {sorted(self.by_name)}.")
        for name, optimiser in self.by_name.items():
            optimiser.load_state_dict(state[name])


def _groups(recipe: Any, cfg: RunConfig, specs: Mapping[str, OptimiserSpec]) -> dict[str, list[dict[str, Any]]]:
    """The recipe's parameter groups by optimiser, each with its decay and its share of the run's decay."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in specs}
    for group in recipe.param_groups(cfg.weight_decay):
        name = group.get("optimiser", MAIN)
        if name not in specs:
            raise ConfigError(f"A parameter group is of optimiser {name!r}; the recipe names {', '.join(specs)}.")
        own = specs[name].weight_decay
        decay = group.get("weight_decay", cfg.weight_decay if own is None else own)
        decay = 0.0 if group.get("no_decay") else decay
        share = decay / cfg.weight_decay if cfg.weight_decay else 0.0
        if group["params"]:
            found[name].append({**group, "weight_decay": decay, "decay_share": share})
    return found


def _fused(groups: list[dict[str, Any]], spec: OptimiserSpec, cfg: RunConfig) -> torch.optim.Optimizer:
    """Fused, so that `found_inf` can hold it back."""
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[spec.kind]
    return kind(groups, lr=0.0, betas=spec.betas or cfg.betas, eps=spec.eps, fused=True)


def _check_owned(recipe: nn.Module, params: Mapping[str, list[nn.Parameter]]) -> None:
    owners = [id(p) for owned in params.values() for p in owned]
    if len(owners) != len(set(owners)):
        raise ValueError("param_groups gives a parameter twice")
    lost = [name for name, p in recipe.named_parameters() if p.requires_grad and id(p) not in set(owners)]
    if lost:
        raise ValueError(f"param_groups leaves out trainable parameters: {', '.join(lost[:5])}")


def _suffixed(word: str, optimiser: str) -> str:
    return word if optimiser == MAIN else f"{word}/{optimiser}"
