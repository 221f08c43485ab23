"""A cohort: the samples that a SQL condition selects, frozen by the hash of their ids when it is saved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from usdata.catalog import Catalog
from usdata.errors import ConfigError, LakeError, QueryError, nearest
from usdata.files import explain_os_errors, file_stamp, file_xxh, read_json, write_json
from usdata.lake import Lake
from usdata.reader import ShardIndex, ShardReader

if TYPE_CHECKING:
    from usdata.loader import Loader

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_RESERVED = {"all", "true", "false", "null"}


class Cohort:
    """A selection of samples in a fixed order: by data set, shard and offset.

    Args:
        lake: where the samples are.
        sql: a SQL boolean expression over the view `samples`; `all` selects every sample.
        name: the name it was saved under, if it was.

    Raises:
        QueryError: the expression is refused or wrong.
    """

    def __init__(self, lake: Lake, sql: str, name: str | None = None) -> None:
        self.lake, self.sql, self.name = lake, sql.strip(), name
        if not self.sql:
            raise QueryError("An empty cohort expression.", hint="All samples:  --cohort all")
        self._catalog = Catalog(lake)
        self._where = "true" if self.sql == "all" else self.sql
        self.ids: pa.ChunkedArray = self._catalog.select(self._where, ["sample_id"])["sample_id"]

    @classmethod
    def open(cls, lake: Lake, expression: str) -> Cohort:
        """A saved cohort if `expression` is the name of one, else the cohort of that expression.

        Raises:
            QueryError: the expression is refused, or the saved cohort no longer selects the samples it was saved with.
        """
        expression = expression.strip()
        names = saved(lake)
        if expression not in names:
            try:
                return cls(lake, expression)
            except QueryError as error:
                if _NAME.fullmatch(expression) and expression not in _RESERVED:
                    raise QueryError(
                        f"No cohort named {expression!r} in {lake.root}, and it is no SQL condition."
                        f"{nearest(expression, names)}",
                        hint="The saved ones:  usdata cohort ls",
                    ) from error
                raise
        record = _record(lake, expression)
        cohort = cls(lake, record["sql"], expression)
        if cohort.hash != record["ids_xxh"]:
            raise QueryError(
                f"Cohort {expression!r} was saved with {record['rows']} samples ({record['ids_xxh'][:8]}…); the lake "
                f"now gives {cohort.rows} ({cohort.hash[:8]}…).",
                hint=f"Save what it selects now under a new name:  usdata cohort save NAME {record['sql']!r}",
            )
        return cohort

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.ids)

    def __len__(self) -> int:
        return self.rows

    @cached_property
    def hash(self) -> str:
        """xxh3_128 of the sorted sample ids, each followed by a newline; 32 hex digits."""
        ids = pc.sort_indices(self.ids)
        return xxhash.xxh3_128("".join(f"{i}\n" for i in self.ids.take(ids).to_pylist()).encode()).hexdigest()

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Catalog columns of the samples, in the cohort's order.

        Raises:
            QueryError: an unknown column, or a condition that does not select the same samples each time.
            LakeError: the catalog was replaced after the cohort was opened.
        """
        wanted = list(columns)
        table = self._catalog.select(self._where, [*wanted, *({"sample_id"} - set(wanted))])
        if not table["sample_id"].equals(self.ids):
            raise QueryError(
                f"The condition {self.sql!r} selects other samples each time it is asked.",
                hint="Choose by something that stays: a column, or a hash of sample_id instead of random().",
            )
        return table.select(wanted)

    def save(self, name: str) -> Path:
        """Write `cohorts/<name>.json` and return its path.

        Raises:
            ConfigError: not a name.
        """
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise ConfigError(f"{name!r} can't name a cohort: use lower-case letters, digits, - and _, a letter first.")
        if name in self._catalog.columns():
            raise ConfigError(f"{name!r} can't name a cohort: as a condition it means the column of that name.")
        path = self.lake.root / "cohorts" / f"{name}.json"
        catalog = xxhash.xxh3_128("".join(file_xxh(p) for p in self.lake.catalog_files()).encode()).hexdigest()
        with explain_os_errors(path, step="save the cohort"), self.lake.commit_lock():
            write_json(path, {"sql": self.sql, "catalog_xxh": catalog, "rows": self.rows, "ids_xxh": self.hash})
        return path

    def summary(self) -> list[dict[str, Any]]:
        """Images, patients, clips and masks by data set and organ."""
        columns = ["dataset", "organ", "patient", "clip", "has_mask", "licence"]
        groups = (
            self.table(columns)
            .group_by(["dataset", "organ", "licence"])
            .aggregate(
                [("dataset", "count"), ("patient", "count_distinct"), ("clip", "count_distinct"), ("has_mask", "sum")]
            )
        )
        names = {"dataset_count": "images", "patient_count_distinct": "patients", "clip_count_distinct": "clips"}
        rows = groups.rename_columns([names.get(n, n.removesuffix("_sum")) for n in groups.column_names])
        return rows.sort_by([("dataset", "ascending"), ("organ", "ascending")]).to_pylist()

    # --- pixels -----------------------------------------------------------------------------------------------------

    def index(self, columns: Sequence[str] = (), mask: bool = False) -> ShardIndex:
        """Where each sample's bytes are, with the columns that a batch is to carry.

        Raises:
            QueryError, LakeError: see `table`.
        """
        places = ["shard", "offset", *(["mask_offset", "mask_size"] if mask else [])]
        table = self.table(list(dict.fromkeys([*places, *columns])))
        shards = table["shard"].combine_chunks().dictionary_encode()
        paths = shards.dictionary.to_pylist()
        stamps = tuple(file_stamp(self.lake.root / path) for path in paths)
        self._catalog.check_unchanged()  # ingest takes the catalog part away before it moves a shard
        return ShardIndex(
            root=self.lake.root,
            shards=paths,
            stamps=stamps,
            shard=shards.indices.to_numpy(zero_copy_only=False).astype(np.int32),
            offset=table["offset"].to_numpy(),
            mask_offset=_or_minus_one(table["mask_offset"]) if mask else None,
            mask_size=_or_minus_one(table["mask_size"]) if mask else None,
            columns={name: table[name] for name in columns},
        )

    def groups(self, by: str) -> tuple[NDArray[np.int32], list[str]]:
        """Each sample's group as an integer code, and the names of the codes, sorted; null is the group `unknown`."""
        column = self.table([by])[by]
        if pa.types.is_nested(column.type):
            raise ConfigError(f"{by} can't name groups: it holds a list for each sample.")
        values = pc.fill_null(pc.cast(column, pa.string()), "unknown").combine_chunks()
        coded = values.dictionary_encode()
        names = coded.dictionary.to_pylist()
        order = np.argsort(np.array(names, dtype=object)) if names else np.empty(0, np.int64)
        rank = np.empty(len(names), np.int32)
        rank[order] = np.arange(len(names), dtype=np.int32)
        return rank[coded.indices.to_numpy(zero_copy_only=False)], [names[i] for i in order]

    def loader(
        self,
        batch_size: int,
        *,
        gamma: float | None = 0.5,
        by: str = "organ",
        seed: int = 0,
        epoch_size: int | None = None,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        mask: bool = False,
        columns: Sequence[str] = (),
        drop_last: bool = False,
        checksums: bool = False,
    ) -> Loader:
        """Batches drawn with P(group) proportional to N^gamma, uniform inside a group; see `usdata.loader.Loader`.

        Args:
            batch_size: images per batch and rank.
            gamma: 1 proportional, 0.5 per-image weight 1/sqrt(N) (USFM Eq. 1), 0 uniform over groups; None: every
                image once per epoch.
            by: the catalog column that names the groups.
            epoch_size: draws per epoch over all ranks; the cohort's size if None.
            workers: threads that prepare batches ahead; the batches are the same for any number.
            mask: also deliver `mask`.
            columns: catalog columns to deliver with each batch.
            drop_last: leave out what is left of an epoch after whole batches.
            checksums: check each image's checksums while reading: slower, finds any flipped bit.

        Raises:
            ConfigError: an empty cohort, or numbers that make no sense.
        """
        from usdata.loader import Loader

        codes, _ = self.groups(by)
        return Loader(
            self.index(columns, mask),
            codes,
            batch_size=batch_size,
            gamma=gamma,
            by=by,
            seed=seed,
            epoch_size=epoch_size,
            workers=workers,
            rank=rank,
            world=world,
            mask=mask,
            columns=tuple(columns),
            fingerprint=self.hash,
            drop_last=drop_last,
            checksums=checksums,
        )

    def batches(self, batch_size: int, columns: Sequence[str] = (), mask: bool = False) -> Iterator[dict[str, Any]]:
        """Every sample once, in the cohort's order; the last batch may be smaller."""
        from usdata.loader import read_batch

        index = self.index(columns, mask)
        for start in range(0, self.rows, batch_size):
            yield read_batch(index, np.arange(start, min(start + batch_size, self.rows)), columns=columns, mask=mask)

    def images(self) -> NDArray[np.uint8]:
        """All images, shape (n, 256, 256), uint8, in the cohort's order; 64 KiB of memory each."""
        return ShardReader(self.index()).images(np.arange(self.rows))


def _or_minus_one(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return pc.fill_null(column, -1).to_numpy()


def saved_records(lake: Lake) -> list[dict[str, Any]]:
    """Name, condition, rows and hash of the saved cohorts."""
    records = {name: _record(lake, name) for name in saved(lake)}
    return [{"name": name, **{k: r[k] for k in ("sql", "rows", "ids_xxh")}} for name, r in records.items()]


def _record(lake: Lake, name: str) -> dict[str, Any]:
    path = lake.root / "cohorts" / f"{name}.json"
    record = read_json(path)
    if not (isinstance(record, dict) and {"sql", "rows", "ids_xxh"} <= set(record) and isinstance(record["sql"], str)):
        raise LakeError(f"{path} is damaged: it lacks entries.", hint="Remove it and save the cohort again.")
    return record


def saved(lake: Lake) -> list[str]:
    """Names of the cohorts saved in a lake, sorted."""
    return sorted(p.stem for p in (lake.root / "cohorts").glob("*.json"))
