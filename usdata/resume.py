"""From the saved state of a loader to the batch that comes next, or the reason why there is none.

A state is the number of a draw and all that the draws follow from. Draw k of an epoch is one image whoever asks for it
(`usdata.sampling`), so a loader goes on exactly from there if the same draws follow. What may differ is therefore:

- workers, rank, columns, masks, checksums; the lake's folder, its shards and whatever the cohort does not select;
- `world` and `batch_size`, where a batch begins at that draw and epochs keep their length: the images come in the
  same order and are only cut into other batches.

All else is refused.
"""

from collections.abc import Mapping
from math import gcd
from typing import Any

from usdata.errors import ConfigError

FORMAT = 2  # number of the state's layout; a later one is refused
_HUGE = 2**63  # a number of this size is damage
_PLACE = {"epoch": 0, "batch": 0, "batch_size": 1, "world": 1}  # name -> least value
_MEANINGS = {  # of the hashes in a state, which say nothing to a person
    "order": "the cohort has other images, or the same ones in another order",
    "pixels": "the images of the cohort have other pixels: they were ingested again with other settings",
    "groups": "images changed their group",
    "layout": "the images lie elsewhere in the shards",
}


def make_state(
    identity: Mapping[str, Any], *, epoch: int, batch: int, batch_size: int, world: int
) -> dict[str, str | int | float | None]:
    """The state after `batch` batches of an epoch: plain values (JSON), the same on every rank.

    Args:
        identity: all that the sequence of images depends on, by name; hashes and numbers.
    """
    return {"format": FORMAT, "epoch": epoch, "batch": batch, "batch_size": batch_size, "world": world, **identity}


def resume(state: object, identity: Mapping[str, Any], *, batch_size: int, world: int) -> tuple[int, int]:
    """Where a loader of this identity goes on: the epoch, and how many of its batches have been.

    Args:
        state: made by `make_state`, or anything else.
        identity: of the loader that is to go on, as `make_state` takes it.

    Raises:
        ConfigError: no state, a damaged one, or one of a loader with other draws; the message says why.
    """
    saved = _checked(state)
    _check_identity(saved, identity, batch_size * world)
    draw = saved["batch"] * saved["batch_size"] * saved["world"]
    if draw >= identity["draws_per_epoch"]:
        raise ConfigError(
            f"The loader's state is damaged: it points to batch {saved['batch']} of epoch {saved['epoch']}, which does "
            "not exist."
        )
    whole = batch_size * world
    batch, rest = divmod(draw, whole)
    if rest:
        raise ConfigError(
            f"The loader can't go on from this state: it stands at draw {draw} of its epoch, where no batch begins if "
            f"batch_size · world is {whole} (it was {saved['batch_size'] * saved['world']}).",
            hint=f"Choose batch_size and world so that their product divides {draw}, e.g. {gcd(draw, whole)}.",
        )
    return saved["epoch"], batch


def _checked(state: object) -> dict[str, Any]:
    """`state` with every entry that is needed, and a place that could be one."""
    if not isinstance(state, Mapping):
        raise ConfigError(f"This is no state of a loader: it is {_shown(state)}, not a mapping of names to values.")
    if "format" in state and state["format"] != FORMAT:
        raise ConfigError(
            f"The loader's state has format {_shown(state['format'])}, this version of usdata reads {FORMAT}.",
            hint="Use the version that saved it, or start anew without the state.",
        )
    if missing := [name for name in ("format", *_PLACE) if name not in state]:
        raise ConfigError(f"This is no state of a loader: it has no {', '.join(missing)}.")
    for name, least in _PLACE.items():
        value = state[name]
        if type(value) is not int or not least <= value < _HUGE:  # True is no number here
            raise ConfigError(f"The loader's state is damaged: {name} is {_shown(value)}, not a number from {least}.")
    return {str(name): value for name, value in state.items()}


def _check_identity(saved: Mapping[str, Any], identity: Mapping[str, Any], whole: int) -> None:
    """Raise a ConfigError that names every difference."""
    reasons = [
        _MEANINGS.get(name, f"{name} was {_shown(saved[name])}, is {_shown(value)}")
        for name, value in identity.items()
        if name in saved and saved[name] != value
    ]
    missing = [name for name in identity if name not in saved]
    if not reasons and not missing:
        return
    if not reasons:
        raise ConfigError(f"This is no state of such a loader: it has no {', '.join(missing)}.")
    hint = "Start anew without the state, or go back to the settings, the cohort and the lake that it was made with."
    draws, here = saved.get("draws_per_epoch"), identity["draws_per_epoch"]
    only_draws = len(reasons) == 1 and draws != here and "epoch_size" not in identity
    if only_draws and type(draws) is int and 0 < draws < _HUGE:
        reasons = [f"an epoch had {draws} draws, with batch_size · world = {whole} it has {here}"]
        fitting = f"a batch_size · world that divides {draws}, e.g. {gcd(draws, whole)}"
        hint = f"Choose {fitting if draws % whole else f'epoch_size={draws}'}."
    raise ConfigError(f"The loader can't go on from this state: {'; '.join(reasons)}.", hint=hint)


def _shown(value: object) -> str:
    """A value of a damaged state in a few characters; a number may be too long for Python to print."""
    if isinstance(value, int) and abs(value) >= _HUGE:
        return "a huge number"
    if value is None or isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    return value if value.isprintable() and 0 < len(value) <= 64 else ascii(value[:64])
