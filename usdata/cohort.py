"""A cohort: the samples that a SQL condition selects, frozen by the hash of their ids when it is saved."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from usdata.catalog import ask
from usdata.errors import ConfigError, LakeError, QueryError, nearest
from usdata.files import explain_os_errors, file_stamp, file_xxh, read_json, write_json
from usdata.lake import Lake
from usdata.parts import coded, sorted_lines
from usdata.reader import ShardIndex, ShardReader
from usdata.schema import plain_type, slot_of, taxonomy
from usdata.seal import seal

if TYPE_CHECKING:
    from usdata.loader import Loader
    from usdata.stream_windows import WindowReader
    from usdata.streaming import StreamLoader

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
        self._where = "true" if self.sql == "all" else self.sql
        self._settled = self.sql == "all"  # whether the condition is known to select the same samples each time
        self._catalog, self._rows = ask(lake, lambda catalog: (catalog, catalog.rows_where(self._where)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, a cohort is its condition: opened again, it meets the lake as that is then."""
        return Cohort, (self.lake, self.sql, self.name)

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
                hint=f"Accept what it selects now, or give it a new name:  usdata cohort save {expression} "
                f"{shlex.quote(record['sql'])}",
            )
        return cohort

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self._rows)

    @cached_property
    def ids(self) -> pa.ChunkedArray:
        """The sample ids, in the cohort's order."""
        return self._catalog.read(["sample_id"], self._rows)["sample_id"]

    def __len__(self) -> int:
        return self.rows

    @cached_property
    def hash(self) -> str:
        """xxh3_128 of the sorted sample ids, each followed by a newline; 32 hex digits.

        Raises:
            QueryError, LakeError: see `table`.
        """
        self._check_settled()
        digest = xxhash.xxh3_128()
        for lines in sorted_lines(self.ids):
            digest.update(lines)
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of the ids in the cohort's `order` and of their `pixels`: what a loader's images depend on.

        Several times as fast as `hash`, which sorts.
        """
        pixels = self.table(["pixel_xxh"])["pixel_xxh"]
        return {"order": _words_xxh(self.ids), "pixels": _words_xxh(pixels)}

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Catalog columns of the samples, in the cohort's order.

        Raises:
            QueryError: an unknown column, or a condition that does not select the same samples each time.
            LakeError: the catalog was replaced after the cohort was opened.
        """
        table = self._table(columns)
        plain = [plain_type(field) for field in table.schema]
        return table.cast(pa.schema(zip(table.column_names, plain, strict=True)))

    def _table(self, columns: Sequence[str]) -> pa.Table:
        """`table` with words dictionary-coded: a shard's name is repeated a thousand times.

        What the parts hold is read from them by row number; what the view computes or joins is asked for.
        """
        known = set(self._catalog.schema.names)
        stored = [name for name in dict.fromkeys(columns) if name in known]
        asked = [name for name in dict.fromkeys(columns) if name not in known]
        found: dict[str, pa.ChunkedArray] = {}
        if asked:
            rows, table = self._catalog.columns_where(self._where, asked)
            self._check_same(rows)
            found |= dict(zip(asked, table.columns, strict=True))
        else:
            self._check_settled()
        if stored:
            found |= dict(zip(stored, self._catalog.read(stored, self._rows).columns, strict=True))
        return pa.table([found[name] for name in columns], names=list(columns))

    def _check_settled(self) -> None:
        """Refuse a condition that selects other samples each time; asked once."""
        if not self._settled:
            self._check_same(self._catalog.rows_where(self._where))

    def _check_same(self, rows: NDArray[np.integer]) -> None:
        if not np.array_equal(rows, self._rows):
            raise QueryError(
                f"The condition {self.sql!r} selects other samples each time it is asked.",
                hint="Choose by something that stays: a column, or a hash of sample_id instead of random().",
            )
        self._settled = True

    def save(self, name: str, overwrite: bool = False) -> Path:
        """Write `cohorts/<name>.json` and return its path.

        The same condition may be saved again: that accepts what it selects now.

        Args:
            overwrite: replace a cohort of that name that has another condition.

        Raises:
            ConfigError: not a name, or that of a cohort with another condition.
            LakeError: the cohort of that name is damaged, or the lake can't be written.
        """
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise ConfigError(f"{name!r} can't name a cohort: use lower-case letters, digits, - and _, a letter first.")
        if name in self._catalog.columns():
            raise ConfigError(f"{name!r} can't name a cohort: as a condition it means the column of that name.")
        path = self.lake.root / "cohorts" / f"{name}.json"
        catalog = xxhash.xxh3_128("".join(file_xxh(p) for p in self.lake.catalog_files()).encode()).hexdigest()
        with explain_os_errors(path, step="save the cohort"), self.lake.commit_lock():
            if not overwrite:
                self._check_name_free(name)
            record = {"sql": self.sql, "catalog_xxh": catalog, "rows": self.rows, "ids_xxh": self.hash}
            write_json(path, seal(record))
        return path

    def _check_name_free(self, name: str) -> None:
        if name in saved(self.lake) and (record := _record(self.lake, name))["sql"] != self.sql:
            raise ConfigError(
                f"{name!r} is saved already, with {record['rows']} samples and another condition: {record['sql']}",
                hint="Take another name, or replace it:  "
                f"usdata cohort save {name} {shlex.quote(self.sql)} --overwrite",
            )

    def summary(self) -> list[dict[str, Any]]:
        """Images, patients, clips and masks by data set and organ."""
        self._check_settled()
        return self._catalog.count_where(
            self._where,
            """dataset, organ, licence, count(*) as images, count(distinct patient) as patients,
            count(distinct clip) as clips, count(*) filter (has_mask) as has_mask""",
            "dataset, organ, licence",
        )

    # --- pixels -----------------------------------------------------------------------------------------------------

    def index(self, columns: Sequence[str] = (), mask: bool = False) -> ShardIndex:
        """Where each sample's bytes are, with the columns that a batch is to carry.

        Raises:
            QueryError: see `table`.
            LakeError: see `table`; or the lake is remote, and the bytes are not here.
        """
        if self.lake.remote:
            raise LakeError(
                f"{self.lake.address} is remote: its images can't be read by their place in a file.",
                step="read",
                hint="Copy the lake to this machine; or stream it: cohort.loader(…), .batches(…), .images().",
            )
        index = self._index(columns, mask)
        stamps = tuple(file_stamp(self.lake.root / path) for path in index.shards)
        self._catalog.check_unchanged()  # ingest takes the catalog part away before it moves a shard
        return replace(index, stamps=stamps)

    def _index(self, columns: Sequence[str], mask: bool) -> ShardIndex:
        """The index as the catalog tells it, whether or not the shards are here."""
        places = ["shard", "offset", *(["mask_offset", "mask_size"] if mask else [])]
        table = self._table(list(dict.fromkeys([*places, *columns])))
        shard, shards = coded(table["shard"])
        return ShardIndex(
            root=self.lake.root,
            shards=shards,
            shard=shard,
            offset=table["offset"].to_numpy(),
            mask_offset=_or_minus_one(table["mask_offset"]) if mask else None,
            mask_size=_or_minus_one(table["mask_size"]) if mask else None,
            columns={name: table[name].unify_dictionaries() for name in columns},
        )

    def groups(self, by: str) -> tuple[NDArray[np.int32], list[str]]:
        """Each sample's group as an integer code, and the names of the codes, sorted; null is the group `unknown`.

        Args:
            by: a catalog column, or a published scheme of organs (usfm12, tusa, arl16), in which an organ that has no
                class there is a group of its own.
        """
        if by in taxonomy()["schemes"] and by not in self._catalog.columns():
            organs, found = self.groups("organ")
            classes, slots = np.unique([slot_of(by, organ) for organ in found], return_inverse=True)
            return slots[organs].astype(np.int32), [str(name) for name in classes]
        column = self._table([by])[by]
        if pa.types.is_nested(column.type):
            raise ConfigError(f"{by} can't name groups: it holds a list for each sample.")
        codes, words = coded(column)
        found = [word if code >= 0 else "unknown" for code, word in [*enumerate(words), (-1, "")]]
        names = sorted({*words, *({"unknown"} if len(codes) and codes.min() < 0 else ())})
        number = {name: i for i, name in enumerate(names)}
        return np.array([number.get(word, 0) for word in found], np.int32)[codes], names

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
        streaming: Mapping[str, Any] | None = None,
    ) -> Loader | StreamLoader:
        """Batches drawn with P(group) proportional to N^gamma, uniform inside a group; see `usdata.loader.Loader`.

        From a remote lake they are streamed: see `stream`.

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
            checksums: check each image's checksums while reading: slower, finds any flipped bit. A stream checks whole
                shards anyway.
            streaming: for a remote lake, more arguments of `stream`: window, split, cache_bytes. A local one has no
                use for them.

        Raises:
            ConfigError: an empty cohort, or numbers that make no sense.
        """
        if self.lake.remote:
            return self.stream(
                batch_size,
                gamma=gamma,
                by=by,
                seed=seed,
                epoch_size=epoch_size,
                workers=workers,
                rank=rank,
                world=world,
                mask=mask,
                columns=columns,
                drop_last=drop_last,
                **(streaming or {}),
            )
        from usdata.loader import Loader

        if unknown := set(streaming or {}) - {"window", "split", "cache_bytes"}:
            raise ConfigError(f"streaming has no {min(unknown)!r}; it has window, split and cache_bytes.")
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
            fingerprint=self.fingerprint,
            drop_last=drop_last,
            checksums=checksums,
        )

    def stream(
        self,
        batch_size: int,
        *,
        gamma: float | None = 0.5,
        by: str = "organ",
        seed: int = 0,
        epoch_size: int | None = None,
        workers: int = 2,
        rank: int = 0,
        world: int = 1,
        mask: bool = False,
        columns: Sequence[str] = (),
        drop_last: bool = False,
        window: int = 2,
        split: str = "shards",
        cache_bytes: int | None = None,
    ) -> StreamLoader:
        """Batches out of shards that are read whole, one after the other; see `usdata.streaming.StreamLoader`.

        The groups of the draws are those of `loader`; inside a group each image comes once before any comes again.
        Works for local lakes too, and gives the same batches there.

        Args:
            batch_size, gamma, by, seed, epoch_size, workers, rank, world, mask, columns, drop_last: as for `loader`.
            window: shards of a group that are shuffled together; 64 KiB of memory for each of their images.
            split: `shards` refuses a group with fewer shards than ranks; `samples` lets ranks share its shards.
            cache_bytes: how much the shards that are kept on this machine may take; by default $USDATA_CACHE_BYTES or
                50 GiB. All processes share one cache.

        Raises:
            ConfigError: an empty cohort, numbers that make no sense, too few shards of a group for the ranks, or a
                cache that is too small.
            LakeError: a shard without a manifest.
        """
        from usdata.streaming import StreamLoader

        codes, names = self.groups(by)
        reader = self._windows(columns, mask, cache_bytes)
        return StreamLoader(
            reader,
            codes,
            names,
            batch_size=batch_size,
            gamma=gamma,
            by=by,
            seed=seed,
            epoch_size=epoch_size,
            workers=workers,
            rank=rank,
            world=world,
            columns=tuple(columns),
            fingerprint=self.fingerprint,
            drop_last=drop_last,
            window=window,
            split=split,
        )

    def _windows(self, columns: Sequence[str] = (), mask: bool = False, limit: int | None = None) -> WindowReader:
        """What unpacks this cohort's shards, wherever they are."""
        from usdata.shard_cache import LocalShards, ShardCache, shards_of
        from usdata.stream_windows import WindowReader

        index = self._index(list(dict.fromkeys(["sample_id", *columns])), mask)
        shards = shards_of(self.lake, index.shards)
        source = ShardCache(self.lake.remote, limit) if self.lake.remote else LocalShards(self.lake, shards)
        self._catalog.check_unchanged()
        return WindowReader(index, shards, source, mask)

    def batches(self, batch_size: int, columns: Sequence[str] = (), mask: bool = False) -> Iterator[dict[str, Any]]:
        """Every sample once, in the cohort's order; the last batch may be smaller.

        Raises:
            ConfigError: a batch size below 1.
        """
        from usdata.epochs import whole_number

        batch_size = whole_number("batch_size", batch_size, least=1)
        if self.lake.remote:
            from usdata.streaming import in_order

            return in_order(self._windows(columns, mask), columns, batch_size)
        from usdata.batch import Assembler

        assembler = Assembler(self.index(columns, mask), columns, mask, spare=2)
        starts = range(0, self.rows, batch_size)
        return (assembler.batch(np.arange(start, min(start + batch_size, self.rows))) for start in starts)

    def images(self, rows: NDArray[np.integer] | None = None) -> NDArray[np.uint8]:
        """Images in the cohort's order, or those at the places `rows`: shape (n, 256, 256), uint8; 64 KiB each."""
        rows = np.arange(self.rows) if rows is None else np.asarray(rows)
        if rows.dtype.kind not in "iu" or (rows.size and not (rows.min() >= 0 and rows.max() < self.rows)):
            raise ConfigError(f"Places in this cohort are whole numbers from 0 to {self.rows - 1}.")
        if self.lake.remote:
            from usdata.streaming import some_images

            return some_images(self._windows(), rows)
        return ShardReader(self.index()).images(rows)


def _words_xxh(column: pa.ChunkedArray) -> str:
    """Hash of a column of words, however it is cut into chunks."""
    digest = xxhash.xxh3_128()
    for chunk in column.cast(pa.large_string()).chunks:
        _, places, data = chunk.buffers()
        if len(chunk) and data is not None:  # else nothing but nulls
            ends = np.frombuffer(places, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
            digest.update(memoryview(data)[ends[0] : ends[-1]])
    for lengths in pc.fill_null(pc.binary_length(column), -1).chunks:  # so that words can't run together
        digest.update(np.ascontiguousarray(lengths.to_numpy(), np.int64).data)
    return digest.hexdigest()


def _or_minus_one(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return pc.fill_null(column, -1).to_numpy()


def saved_rows(lake: Lake, name: str) -> int | None:
    """Number of samples that a cohort was saved with; None if there is none of that name, or its file is damaged."""
    try:
        return int(_record(lake, name)["rows"]) if name in saved(lake) else None
    except (LakeError, TypeError, ValueError):
        return None


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
