"""What is looked at while training: a kNN probe, the features' effective rank, and pictures.

All on a few images that are drawn once, so that the numbers and pictures of one run can be compared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from training import inference
from training.config import RunConfig
from training.data import conditions, generator, merged, read_images, stable_seed
from training.distributed import World
from training.pictures import grid, write_png
from training.probe import effective_rank, knn_leave_group_out, metrics
from usdata.batch import column_values
from usdata.dedup import near_duplicate_groups
from usdata.errors import ConfigError

OWNERS = ("patient", "study", "clip")  # catalog columns whose equal keys no split may part


def image_groups(keys: Mapping[str, Sequence[str | None]], images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Groups that no split may cut: images with a key in common, and near-duplicates, whoever they are said to be of.

    A near-duplicate ties two patients into one group: a memory of the one would pass for knowledge of the other.

    Args:
        keys: column (patient, study, clip, ...) -> each image's key; None: unknown. As in the catalog, equal keys are
            one thing in all data sets: some data sets are of the same patients.
        images: (n, 256, 256) uint8.

    Returns:
        (n,) int64.
    """
    n = len(images)
    ties = [near_duplicate_groups(images)]
    for column in keys.values():
        names = [f"alone {i}" if key is None else f"key {key}" for i, key in enumerate(column)]
        ties.append(np.unique(np.array(names), return_inverse=True)[1])
    # A graph whose nodes are images, then sets of near-duplicates, then the keys of each column; its parts are groups.
    edges = (np.tile(np.arange(n), len(ties)), np.concatenate([(k + 1) * n + tie for k, tie in enumerate(ties)]))
    nodes = (len(ties) + 1) * n
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(nodes, nodes))
    return np.unique(connected_components(graph, directed=False)[1][:n], return_inverse=True)[1].astype(np.int64)


def label_column(cohort: Any, wanted: str | None) -> str | None:
    """The column to probe: `wanted`; else `organ` of a cohort of several, else `label` if it has two values.

    Raises:
        ConfigError: `wanted` has fewer than two values in the cohort.
    """
    for name in [wanted] if wanted else ["organ", "label"]:
        values = set(cohort.table([name])[name].to_pylist()) - {None}
        if len(values) >= 2:
            return name
        if wanted:
            raise ConfigError(
                f"Column {wanted!r} has {len(values)} values in this cohort; a probe needs two.",
                hint="Choose another column, or a wider --cohort.",
            )
    return None


def draw_evenly(labels: Sequence[str | None], limit: int, seed: int) -> NDArray[np.int64]:
    """At most `limit` places with a label, as even over the labels as they allow, ascending."""
    order = np.random.default_rng(seed).permutation(len(labels))
    taken: dict[str, int] = {}
    ranked = []
    for place in order.tolist():
        label = labels[place]
        if label is not None:
            taken[label] = taken.get(label, 0) + 1
            ranked.append((taken[label], place))
    chosen = [place for _, place in sorted(ranked, key=lambda pair: pair[0])[:limit]]
    return np.sort(np.array(chosen, dtype=np.int64))


def columns_of(cohort: Any, columns: Sequence[str], places: NDArray[np.int64]) -> dict[str, Any]:
    """Catalog columns of some images of a cohort, in the form in which a loader delivers them."""
    if not columns:
        return {}
    table = cohort.table(columns)
    return {name: column_values(table[name])(places) for name in columns}


def taken(columns: dict[str, Any], places: NDArray[np.int64]) -> dict[str, Any]:
    """Some rows of what `columns_of` gave."""
    return {
        name: values[torch.from_numpy(places)] if isinstance(values, Tensor) else [values[i] for i in places]
        for name, values in columns.items()
    }


class Watch:
    """The images to look at, and when. `last_probe` is the newest probe's record.

    A probe's record says how many directions the features use (`effective_rank`: exp of the entropy of the shares of
    the singular values of the centred features, that is of the square roots of the eigenvalues of their covariance),
    whether that is so few that the encoder has collapsed, and what the neighbours in feature space know of a label.
    """

    def __init__(self, cohort: Any, cfg: RunConfig, out: Path, peers: World, columns: tuple[str, ...] = ()) -> None:
        self.cfg, self.out, self.last_probe = cfg, out, dict[str, Any]()
        if not peers.first or not (cfg.probe_every or cfg.pictures_every):
            return
        column = label_column(cohort, cfg.probe_label)
        words = cohort.table([column])[column].to_pylist() if column else ["image"] * cohort.rows
        places = draw_evenly(words, cfg.probe_images, stable_seed("probe", cfg.seed))
        self.images = read_images(cohort, places)  # (n, 256, 256)
        self.column, names = column, sorted({str(words[place]) for place in places})
        self.classes = len(names)
        self.labels = np.array([names.index(str(words[place])) for place in places], dtype=np.int64)
        self.groups = image_groups(cohort.table(OWNERS).take(places).to_pydict(), self.images)
        self.known = columns_of(cohort, columns, places)

    def due(self, step: int, first: bool, final: bool) -> bool:
        """Whether there is anything to do after this step; always so before the first step and after the last."""
        return any(self._due(every, step, first, final) for every in (self.cfg.probe_every, self.cfg.pictures_every))

    @staticmethod
    def _due(every: int, step: int, first: bool, final: bool) -> bool:
        return bool(every) and (first or final or (step > 0 and step % every == 0))

    def look(self, recipe: Any, step: int, first: bool, final: bool) -> dict[str, Any]:
        """Draw the pictures and probe, if due; gives the probe's record, or {} without one."""
        if self._due(self.cfg.pictures_every, step, first, final):
            self._draw(recipe, step)
        if not self._due(self.cfg.probe_every, step, first, final):
            return {}
        features = inference.features(recipe, self.images)  # told nothing but the pixels
        rank = effective_rank(features)
        found: dict[str, Any] = {"step": step, "images": len(features), "features": features.shape[1]}
        found |= {"effective_rank": rank, "collapsed": rank < self.cfg.collapse_below}
        if self.column is not None and len(np.unique(self.groups)) > 1:
            scores = knn_leave_group_out(features, self.labels, self.groups, self.classes)
            found |= {
                "label": self.column,
                "knn_accuracy": float(metrics(self.labels, scores)["accuracy"][0]),
                "majority": float(np.bincount(self.labels).max() / len(self.labels)),
            }
        self.last_probe = found
        return found

    @torch.no_grad()
    def _draw(self, recipe: Any, step: int) -> None:
        spread = np.linspace(0, len(self.images) - 1, min(self.cfg.picture_images, len(self.images))).astype(int)
        device = next(recipe.parameters()).device
        images: Tensor = torch.from_numpy(self.images[spread])[:, None].to(device)
        draws = recipe.draw(len(images), generator("pictures", self.cfg.seed))
        draws = merged(draws, conditions(recipe, taken(self.known, spread), len(images)))
        recipe.eval()
        stages = recipe.pictures(images, {name: value.to(device) for name, value in draws.items()})
        recipe.train()
        write_png(self.out / "pictures" / f"step-{step:06d}.png", grid(stages))
