"""From an organ's name to the vector that conditions A-ViT, and back from a class list to another.

The vocabulary and its mapping from the catalog's organs live in usdata/taxonomy.yaml (scheme arl16). Names decide,
never positions alone: an edited list would silently move every organ behind the edit.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from usdata.errors import ConfigError, nearest
from usdata.schema import slot_of, taxonomy

SCHEME = "arl16"
NO_CLASS = -1  # its vector is all zeros, so that the bias of AC is the learned null class
_UNLIKELY = -16.0  # the organ classifier's bias of a new class: a logit of 0 would take a share from the known ones
NAME_BYTES = 1024  # of the buffer that carries the class list in the weights

Missing = Literal["null", "other"]
UnknownName = Literal["error", "null"]
Organ = str | Sequence[str | None] | Tensor | None


def default_classes() -> tuple[str, ...]:
    """The 16 classes in their order: the position is the index in the one-hot vector."""
    return tuple(taxonomy()["schemes"][SCHEME])


@lru_cache(maxsize=4096)
def organ_slot(
    organ: str | None, classes: tuple[str, ...], missing: Missing = "null", unknown: UnknownName = "error"
) -> int:
    """Index of an organ's class, or -1 for "no class".

    Args:
        organ: a name of the catalog's `organ`, or of a class itself; None: not known.
        classes: class names in their order.
        missing: what phantoms, animals, simulated images and "unknown" are: "null" no class (the paper's policy), or
            "other", the slot that the taxonomy gives them.
        unknown: what a name outside the vocabulary is: an error, or no class.

    Raises:
        ConfigError: a name outside the vocabulary (with the nearest).
    """
    known = taxonomy()["organs"]
    if organ in classes:
        return classes.index(organ)
    if organ is None or known.get(organ, {}).get("organ_group") in ("lab", "unknown"):
        return classes.index("other") if missing == "other" and "other" in classes else NO_CLASS
    slot = slot_of(SCHEME, organ)
    if slot in classes:
        return classes.index(slot)
    if unknown == "null":
        return NO_CLASS
    reason = (
        f"Organ {organ!r} belongs to none of the classes of organs."
        if organ in known
        else f"No organ named {organ!r}.{nearest(organ, {*known, *classes})}"
    )
    raise ConfigError(
        reason,
        hint=f"Leave it out:  --cohort \"organ <> '{organ}'\"   or train it without a class:  --set unknown_name=null"
        f"   Classes: {', '.join(classes)}",
    )


def organ_slots(
    organs: Sequence[str | None], classes: tuple[str, ...], missing: Missing, unknown: UnknownName
) -> Tensor:
    """`organ_slot` of many: (n,) int64."""
    return torch.tensor([organ_slot(organ, classes, missing, unknown) for organ in organs], dtype=torch.int64)


def one_hot(slots: Tensor, classes: int) -> Tensor:
    """(n,) int64 slots -> (n, classes) float32; all zeros for -1."""
    return F.one_hot(slots.clamp(min=0), classes).float() * (slots >= 0)[:, None]


def told(organ: Organ, slots_of: Callable[[Sequence[str | None]], Tensor], like: Tensor) -> Tensor:
    """The condition that a caller names, as (B, classes) float32 like `like`.

    Args:
        organ: one name for all; names, None where unknown; (B,) integer slots, -1 unknown; (B, classes) probabilities.
        slots_of: names -> slots.
        like: (B, classes).

    Raises:
        ConfigError: no organ, an unknown name, a slot out of range, or probabilities that are none.
    """
    size = like.shape[1]
    if organ is None:
        raise ConfigError("mode='label' needs the organ of each image.", hint="Or encode with mode='null'.")
    if not isinstance(organ, Tensor):
        organ = slots_of([organ] * len(like) if isinstance(organ, str) else organ)
    if organ.ndim == 1 and not organ.is_floating_point():
        if organ.numel() and not -1 <= int(organ.min()) <= int(organ.max()) < size:
            raise ConfigError(f"Organ slots are -1 ... {size - 1}.")
        organ = one_hot(organ, size)
    organ = organ.to(like)
    if organ.shape != like.shape or bool((organ < 0).any()) or bool((organ.sum(1) > 1 + 1e-4).any()):
        raise ConfigError(f"organ must be {tuple(like.shape)} probabilities, or one name or slot per image.")
    return organ


def organ_error(logits: Tensor, organ: Tensor, usable: Tensor, share: float) -> Tensor:
    """Cross-entropy over the usable images, divided by their expected share, so that it is a plain mean over images.

    Args:
        logits: (n, classes). organ: (n,) int64, -1 unknown. usable: (n,) bool, where it is known at least.
        share: expected share of usable ones.

    Returns:
        Scalar; 0 if none is usable. The mean over the usable ones would make some batches' images count for more.
    """
    errors = F.cross_entropy(logits.float(), organ.clamp(min=0), reduction="none")
    return (errors * usable).mean() / share


def pack_names(classes: Sequence[str]) -> Tensor:
    """The class list as (NAME_BYTES,) uint8, so that it travels with the weights.

    Raises:
        ConfigError: the list is too long, or names a class twice.
    """
    text = "\n".join(classes).encode()
    if len(text) > NAME_BYTES or len(set(classes)) != len(classes):
        raise ConfigError(f"The class list must be short and without repeats: {', '.join(classes)}.")
    return torch.tensor([*text, *bytes(NAME_BYTES - len(text))], dtype=torch.uint8)


def unpack_names(packed: Tensor) -> tuple[str, ...]:
    """The inverse of `pack_names`."""
    return tuple(bytes(packed.cpu().tolist()).rstrip(b"\0").decode(errors="replace").split("\n"))


def refuse_other_classes(stored: Sequence[str], own: Sequence[str]) -> None:
    """Weights of another class list would take one organ for another.

    Raises:
        ConfigError: the lists differ (names the first place).
    """
    if tuple(stored) == tuple(own):
        return
    pairs = [(i, *pair) for i, pair in enumerate(zip(stored, own, strict=False)) if pair[0] != pair[1]]
    where = f"class {pairs[0][0]} was {pairs[0][1]!r}, now {pairs[0][2]!r}" if pairs else "one is longer"
    raise ConfigError(
        f"These weights know {len(stored)} organ classes, this config {len(own)}: {where}.",
        step="load",
        hint="Set `classes` to the weights' list, or move them with training.organ_condition.remap_classes.",
    )


def remap_classes(
    state: Mapping[str, Tensor], new: Sequence[str], names: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Weights of one class list for another: columns follow their names, new classes start as the null class.

    The organ classifier never guesses a new class before it has been trained (a share of some 1e-7; ours).

    Args:
        state: a recipe's state dict.
        new: the class list to go to.
        names: new name -> old name, where they differ.

    Raises:
        ConfigError: a class that `names` refers to is in neither list.
    """
    old, names = unpack_names(state["class_names"]), dict(names or {})
    if wrong := [f"{a} = {b}" for a, b in names.items() if a not in new or b not in old]:
        raise ConfigError(f"Cannot map classes {', '.join(wrong)}.", hint=f"Old classes: {', '.join(old)}")
    source = [old.index(names.get(name, name)) if names.get(name, name) in old else -1 for name in new]
    found = torch.tensor(source)
    moved = dict(state)
    for key, value in state.items():
        if key.endswith("anatomy.weight"):  # (D, classes)
            moved[key] = torch.where(found >= 0, value[:, found.clamp(min=0)], 0.0)
        elif key.startswith("organ_head."):  # (classes, D) and (classes,)
            rows, unlikely = value[found.clamp(min=0)], _UNLIKELY if key.endswith("bias") else 0.0
            moved[key] = torch.where((found >= 0).view(-1, *[1] * (rows.ndim - 1)), rows, unlikely)
    moved["class_names"] = pack_names(new)
    return moved
