"""Smaller and smaller shares of a training split, each inside the next, the same for every method compared.

Source: the label-efficiency study of USFM (Jiao et al., MedIA 2024): 20, 40, 60, 80 and 100 % of the training images,
the whole test split. How the images are chosen is ours.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from usdata.errors import ConfigError


def label_subset(
    labels: Sequence[str], share: float, seed: int = 0, groups: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Choose a share of a training split, class by class, never part of a group.

    The groups of each class are put into one random order, of which every share takes the first ones: so 20 % lie
    inside 40 %, and a class's part differs from its share by at most half a group.

    Args:
        labels: class of each image.
        share: in (0, 1].
        seed: of the order.
        groups: what may not be parted (patients), one per image; a group counts for the class of its first image.
            None: each image is alone.

    Returns:
        Places of the chosen images, ascending; at least one group of every class.

    Raises:
        ConfigError: a share outside (0, 1], or not one group per image.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}; it must be above 0 and at most 1.")
    names = np.arange(len(labels)).astype(str) if groups is None else np.asarray(groups).astype(str)
    if len(names) != len(labels):
        raise ConfigError(f"{len(labels)} labels, but {len(names)} groups.")
    first, member = np.unique(names, return_index=True, return_inverse=True)[1:]
    kind = np.asarray(labels).astype(str)[first]
    order = np.random.default_rng(seed).permutation(len(first))
    chosen = np.zeros(len(first), dtype=bool)
    for name in np.unique(kind):
        of_class = order[kind[order] == name]
        chosen[of_class[: max(1, int(len(of_class) * share + 0.5))]] = True
    return np.flatnonzero(chosen[member]).astype(np.int64)


def subset_hash(ids: Sequence[str]) -> str:
    """16 hex digits that tell whether two methods saw the same images; the order does not matter."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]
