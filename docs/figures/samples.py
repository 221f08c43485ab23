"""Images for the pictures of the recipes: of patients that the pretraining never saw, whole and unmirrored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.data import generator
from usdata.lake import Lake
from usdata.reader import ShardReader


@dataclass(frozen=True)
class Sample:
    """Stored images (n, 1, 256, 256) uint8, and the organ of each."""

    images: Tensor
    organs: list[str]


def samples(lake: Lake, where: str, organs: Sequence[str]) -> Sample:
    """One image of each organ, by a fixed rule: the first by id that is not labelled normal."""
    cohort = lake.cohort(where)
    table = cohort.table(["organ", "sample_id", "label"]).to_pylist()
    ranks = [(row["label"] in ("normal", None), row["sample_id"], place) for place, row in enumerate(table)]
    best = [min(rank for rank, row in zip(ranks, table, strict=True) if row["organ"] == organ) for organ in organs]
    images = ShardReader(cohort.index()).images(np.array([place for _, _, place in best]))
    return Sample(torch.from_numpy(np.ascontiguousarray(images))[:, None], list(organs))


def draws(recipe: Any, n: int, **chosen: Tensor) -> dict[str, Tensor]:
    """A step's random numbers, but the central 7/8 of each image, unmirrored, and what is `chosen`."""
    drawn: dict[str, Tensor] = recipe.draw(n, generator("figure", 0))
    box = torch.tensor([16, 16, 224, 224])
    drawn["box"] = box.expand_as(drawn["box"]).clone()
    drawn["flip"] = torch.zeros_like(drawn["flip"])
    return {**drawn, **chosen}


def grey(pictures: Tensor) -> Any:
    """(n, 1, S, S) -> numpy (n, S, S)."""
    return pictures[:, 0].numpy()
