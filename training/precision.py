"""Which numbers are computed in bf16, and which never are.

Under autocast matrix products run in bf16, which keeps 8 bits of mantissa. A spectrum whose values span six decades,
the variance of a 11 x 11 window or a softmax at temperature 0.04 needs more: what computes those is decorated with
`full_precision`.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from training.config import RunConfig

P = ParamSpec("P")
R = TypeVar("R")

_HALF = (torch.bfloat16, torch.float16)


def uses_bf16(cfg: RunConfig, device: torch.device) -> bool:
    """Whether steps run under bf16 autocast: as `cfg.precision` says, "auto" where a GPU supports it."""
    if cfg.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return cfg.precision == "bf16"


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: run `function` in fp32 whatever autocast says; bf16 and fp16 tensors among its arguments become fp32.

    Tensors in lists, tuples and dicts count too; float64 stays. The device is that of the first tensor. It does not
    rule out TF32, which PyTorch allows in convolutions on a GPU by default: see
    `training.transforms.precise_matmul` for products that 10 bits of mantissa would spoil.
    """

    @wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        first = next(_tensors([args, kwargs]), None)
        with torch.autocast("cpu" if first is None else first.device.type, enabled=False):
            return function(*_raised(args), **_raised(kwargs))

    return exact


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _raised(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if isinstance(value, dict):
        return {key: _raised(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_raised(inner) for inner in value)
    return value
