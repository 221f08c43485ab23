"""How the two samples of each pair are related, counted; and what the groups tie together."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from usdata.cohort import Cohort
from usdata.dedup_find import Duplicates
from usdata.parts import coded

RELATIONS = ("same_clip", "same_patient", "same_dataset", "across_datasets")
_FINDINGS = ("patient", "label", "official_split")  # a pair that differs in one of these is worth a look


class Pairs:
    """The pairs with what the catalog says of both sides.

    Attributes:
        relation: shape (m,), int: place in `RELATIONS`.
        other: patient, label, official_split -> shape (m,), bool: both sides have a word, and not the same one. A
            patient or a split is compared within a data set only; labels everywhere, though two data sets may have two
            words for one thing.
    """

    def __init__(self, cohort: Cohort, found: Duplicates) -> None:
        self.found, self._cohort = found, cohort
        self._rows, ends = np.unique(np.concatenate([found.first, found.second]), return_inverse=True)
        self._ends = ends[: len(found.first)], ends[len(found.first) :]
        names = ("dataset", *_FINDINGS)
        table = cohort.table(names)
        self._words = {name: coded(table[name].take(pa.array(self._rows))) for name in names}
        one, two = self._sides("dataset")
        together = one == two
        self.other: dict[str, NDArray[np.bool_]] = {}
        for name in _FINDINGS:
            a, b = self._sides(name)
            self.other[name] = (a >= 0) & (b >= 0) & (a != b) & (together if name != "label" else True)
        a, b = self._sides("patient")
        self.relation = np.where(together, np.where((a >= 0) & (a == b), 1, 2), 3)

    def _sides(self, name: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        codes = self._words[name][0]
        return codes[self._ends[0]], codes[self._ends[1]]

    def counts(self) -> list[dict[str, Any]]:
        """A row for each relation and data set (or two): equal, near and recut pairs, and how many differ."""
        a, b = self._sides("dataset")
        names = self._words["dataset"][1]
        recut = ~np.isnan(self.found.texture)
        rows = [_row("same_clip", name, *counts, 0) for name, counts in sorted(self.found.in_clips.items())]
        keys = np.stack([self.relation, np.minimum(a, b), np.maximum(a, b)])
        for relation, one, two in np.unique(keys, axis=1).T.tolist():
            chosen = (keys == np.array([[relation], [one], [two]])).all(axis=0)
            sets = " + ".join(sorted({names[one], names[two]}))
            exact, cut = int((chosen & self.found.exact).sum()), int((chosen & recut).sum())
            row = _row(RELATIONS[relation], sets, exact, int(chosen.sum()) - exact - cut, cut)
            rows.append(row | {f"other_{name}": int((chosen & self.other[name]).sum()) for name in _FINDINGS})
        return sorted(rows, key=lambda row: (RELATIONS.index(row["relation"]), row["datasets"]))

    def totals(self) -> dict[str, int]:
        """Groups, images in them, images of the largest; groups that hold several data sets, patients, labels, splits.

        A group counts as soon as two of its members differ, whether or not these two are a pair.
        """
        group = self.found.group[self._rows]
        kinds, member = np.unique(group, return_inverse=True)
        sizes = np.bincount(member, minlength=len(kinds))
        dataset = self._words["dataset"][0].astype(np.int64)
        totals = {"groups": len(kinds), "images": len(group), "largest": int(sizes.max(initial=0))}
        sets = dataset.max(initial=0) + 1
        for name in ("dataset", *_FINDINGS):
            codes = self._words[name][0].astype(np.int64)
            inside = name in ("patient", "official_split")  # words that mean something in their own data set only
            part = member * sets + dataset if inside else member * sets
            several = np.unique(np.stack([part, codes])[:, codes >= 0], axis=1)[0]
            parts, counts = np.unique(several, return_counts=True)
            totals[f"several_{name}s"] = len(np.unique(parts[counts > 1] // sets))
        return totals

    def table(self) -> pa.Table:
        """A row for each pair: both sample ids, how alike, how related."""
        ids = self._cohort.ids
        relation = pa.DictionaryArray.from_arrays(pa.array(self.relation, pa.int32()), list(RELATIONS))
        return pa.table(
            {
                "sample_id_a": ids.take(pa.array(self.found.first)),
                "sample_id_b": ids.take(pa.array(self.found.second)),
                "exact": self.found.exact,
                "correlation": self.found.correlation,
                "texture": pa.array(self.found.texture, from_pandas=True),
                "relation": relation.cast(pa.string()),
                **{f"other_{name}": self.other[name] for name in _FINDINGS},
            }
        )


def _row(relation: str, datasets: str, exact: int, near: int, recut: int) -> dict[str, Any]:
    row: dict[str, Any] = {"relation": relation, "datasets": datasets, "exact": exact, "near": near, "recut": recut}
    return row | {f"other_{name}": 0 for name in _FINDINGS}
