"""The lake: one folder of shards, catalog, quarantine and cohorts (format 1).

lake.json                        format, image size, interpolation, version that created it
shards/<dataset>/*.tar           images, masks, rows as JSON
catalog/samples/<dataset>.parquet
catalog/splits.parquet, catalog/duplicates.parquet
manifests/<dataset>.json         what the shards were built from, their sizes and hashes
quarantine/<dataset>.parquet
cohorts/<name>.json
runs.jsonl                       what was done when, and which terms were accepted; nothing else in a lake has a time
catalog.duckdb                   views for the duckdb shell, started in the lake's folder
.staging/<dataset>/              an ingest under way; no reader looks there
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usdata import __version__
from usdata.errors import LakeError
from usdata.files import explain_os_errors, locked, read_json, write_json
from usdata.schema import FORMAT, IMAGE_SIZE
from usdata.seal import seal

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from usdata.catalog import Catalog
    from usdata.cohort import Cohort
    from usdata.remote import Remote

INTERPOLATIONS = ("bilinear-aa", "bilinear-fast")
_REMOTE = re.compile(r"[a-z][a-z0-9+]+:/", re.IGNORECASE)  # one slash: what a Path leaves of s3://bucket
_URL = re.compile(r"[a-z][a-z0-9+]+://.", re.IGNORECASE)
_JOKERS = "*?[{,\\"  # duckdb takes a path with one of these for a pattern or a list, and may read another lake


class Lake:
    """A lake, opened for reading; `Lake.create` makes a new one or opens what is there.

    Args:
        root: the lake's folder; or its address `s3://bucket/lake`, `gs://…`, any that fsspec knows, as text. A remote
            lake is read-only: its catalog is mirrored to this machine and answers as a local one does; its images are
            streamed (see `Cohort.stream`).
        storage_options: for a remote lake, what fsspec is to know, e.g. `{"endpoint_url": "https://…"}`. It also heeds
            its own settings and the environment (AWS_PROFILE, AWS_ENDPOINT_URL, …).

    Attributes:
        root: the folder of catalog and manifests; of a remote lake, its mirror.
        remote: the remote side; None if the lake is local.
        address: what to give to `--lake`.

    Raises:
        LakeError: no lake there, a newer format, a damaged lake.json, an address that can't be reached, or a path that
            duckdb would take for a pattern.
    """

    def __init__(self, root: str | Path, storage_options: Mapping[str, Any] | None = None) -> None:
        self.remote: Remote | None = None
        if isinstance(root, str) and _URL.match(root):
            from usdata.remote import Remote

            self.remote = Remote(root, storage_options)
        self.root = _checked_root(self.remote.mirror() if self.remote else root)
        self.address = self.remote.url if self.remote else str(self.root)
        if not self._head.is_file():
            raise LakeError(
                f"No lake at {self.root} (no lake.json there).",
                hint=f"Make one with some data in it:  usdata ingest phantom --lake {self.root}",
            )
        self._catalog: Catalog | None = None
        self.info: dict[str, Any] = read_json(self._head)
        self._check_format()

    @classmethod
    def create(cls, root: str | Path, interpolation: str | None = None) -> Lake:
        """Open the lake at `root`, or make an empty one there.

        Args:
            interpolation: `bilinear-aa` (default) or `bilinear-fast`; a lake keeps to the one it was created with.

        Raises:
            LakeError: the folder holds something else, can't be written, has another interpolation, or is remote.
        """
        if isinstance(root, str) and _URL.match(root):
            raise _read_only(root)
        folder = _checked_root(root)
        if interpolation not in (None, *INTERPOLATIONS):
            raise LakeError(f"Unknown interpolation {interpolation!r}; known: {', '.join(INTERPOLATIONS)}.")
        with explain_os_errors(folder, step="create the lake"):
            if not (folder / "lake.json").exists():
                _make(folder, interpolation or INTERPOLATIONS[0])
        lake = cls(folder)
        if interpolation not in (None, lake.info["interpolation"]):
            raise LakeError(
                f"{folder} was created with {lake.info['interpolation']}, not {interpolation}.",
                hint="One lake has one interpolation: make another lake for the other.",
            )
        return lake

    def _check_format(self) -> None:
        known = isinstance(self.info, dict) and isinstance(self.info.get("format"), int)
        if not known or self.info.get("interpolation") not in INTERPOLATIONS:
            raise LakeError(f"{self._head} is damaged: no format number or interpolation in it.", hint="Restore it.")
        if self.info["format"] > FORMAT:
            raise LakeError(
                f"{self.address} has lake format {self.info['format']}; "
                f"this usdata ({__version__}) reads up to {FORMAT}.",
                hint="Upgrade:  pip install --upgrade usdata",
            )

    @property
    def _head(self) -> Path:
        return self.root / "lake.json"

    # --- where things are -------------------------------------------------------------------------------------------

    def shard_folder(self, dataset: str) -> Path:
        """Folder of a data set's shards."""
        return self.root / "shards" / dataset

    def catalog_part(self, dataset: str) -> Path:
        """A data set's rows; the data set is in the lake if and only if this file is."""
        return self.root / "catalog" / "samples" / f"{dataset}.parquet"

    def quarantine_part(self, dataset: str) -> Path:
        """What of a data set did not get in, and why."""
        return self.root / "quarantine" / f"{dataset}.parquet"

    def manifest(self, dataset: str) -> Path:
        """What a data set's shards were built from."""
        return self.root / "manifests" / f"{dataset}.json"

    def read_manifest(self, dataset: str) -> dict[str, Any] | None:
        """The content of a data set's manifest; None if there is none.

        Raises:
            LakeError: damaged.
        """
        path = self.manifest(dataset)
        if not path.exists():
            return None
        content = read_json(path)
        if not (isinstance(content, dict) and {"shards", "catalog_xxh", "quarantine_xxh"} <= set(content)):
            raise LakeError(f"{path} is damaged: it lacks entries.", hint="Remove it and run the ingest again.")
        return content

    def staging(self, dataset: str) -> Path:
        """Where an ingest of a data set collects its work before the commit.

        Raises:
            LakeError: the lake is remote.
        """
        self.check_writable()
        return self.root / ".staging" / dataset

    def catalog_files(self) -> list[Path]:
        """All Parquet parts of the catalog, sorted: `<dataset>.parquet` and `<dataset>/part-*.parquet`."""
        folder = self.root / "catalog" / "samples"
        return sorted(p for p in folder.glob("**/*.parquet") if not p.name.startswith("."))

    def datasets(self) -> list[str]:
        """Names of the data sets in the lake, sorted."""
        folder = self.root / "catalog" / "samples"
        return sorted({p.relative_to(folder).parts[0].removesuffix(".parquet") for p in self.catalog_files()})

    def commit_lock(self) -> AbstractContextManager[None]:
        """Held while a catalog part, saved cohort or `catalog.duckdb` changes: one writer at a time, others wait.

        Raises:
            LakeError: the lake is remote.
        """
        self.check_writable()
        return locked(self.root / ".staging" / ".commit.lock", wait=True)  # the dot: no data set has such a name

    def check_writable(self) -> None:
        """Raise a LakeError if the lake is remote: nothing is ever written to it, and its mirror is only a copy."""
        if self.remote:
            raise _read_only(self.address)

    # --- asking it --------------------------------------------------------------------------------------------------

    def sql(self, query: str, timeout: float | None = None) -> pa.Table:
        """Answer one SELECT over the views `samples`, `quarantine`, `organs` and `schemes`, in a sandbox.

        Args:
            timeout: seconds after which the query is given up; None: never. Ctrl-C stops it at any time.

        Raises:
            QueryError: not one SELECT, a mistake in it, an attempt to reach a file, or out of time.
        """
        from usdata.catalog import ask

        return ask(self, lambda catalog: catalog.query(query, timeout))

    @property
    def catalog(self) -> Catalog:
        """The connection that answers questions; a new one when a file of the catalog came, went or changed.

        Raises:
            LakeError: a part of the catalog is damaged.
        """
        from usdata.catalog import Catalog

        if self._catalog is None or not self._catalog.is_current():
            self._catalog = Catalog(self)
        return self._catalog

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_catalog": None}  # a connection can't go to another process

    def scan(self) -> pl.LazyFrame:
        """The catalog's stored columns as a Polars LazyFrame, for what is easier to say there than in SQL.

        Words are Categorical. A column that a part of an earlier version lacks is null; those of a later one come last.

        Raises:
            LakeError: there is no data set in the lake yet, or a part is damaged.
        """
        import polars as pl

        parts = self.catalog.parts
        if not parts:
            raise LakeError(f"{self.address} holds no data set yet.", hint="Bring one in:  usdata ingest phantom")
        columns = pl.DataFrame(self.catalog.schema.empty_table()).schema
        files = [part.path for part in parts]
        return pl.scan_parquet(files, schema=columns, missing_columns="insert", hive_partitioning=False)

    def cohort(self, expression: str = "all") -> Cohort:
        """The samples for which a SQL boolean expression holds; or a saved cohort by its name; or `all`.

        Raises:
            QueryError: not one boolean expression, an unknown column, or an attempt to reach a file.
        """
        from usdata.cohort import Cohort

        return Cohort.open(self, expression)

    def __repr__(self) -> str:
        return f"Lake({self.address!r})"


def _checked_root(root: str | Path) -> Path:
    """The lake's folder as an absolute path, so that it stays the same when the working directory changes."""
    if _REMOTE.match(str(root)):
        raise LakeError(
            f"{root} is no folder, and no remote address either: one begins with two slashes, like s3://bucket/lake.",
            hint="Give an address as text; a pathlib.Path takes one of its slashes away.",
        )
    folder = Path(root).absolute()
    if jokers := set(str(folder)) & set(_JOKERS):
        raise LakeError(
            f"{folder}: a lake's path can't have {min(jokers)} in it; duckdb would take it for a pattern.",
            hint=f"Choose a folder without {' '.join(_JOKERS)} with --lake DIR.",
        )
    return folder


def _make(folder: Path, interpolation: str) -> None:
    """Write the head of a new lake, unless another process was faster."""
    known = {"lake.json", ".lake.json.tmp", ".staging"}  # a creation under way, or one that was killed
    strangers = {p.name for p in folder.iterdir()} - known if folder.exists() else set()
    if strangers and not (folder / "lake.json").exists():
        raise LakeError(
            f"{folder} is not empty and is no lake (it holds {min(strangers)!r}).",
            hint="Choose an empty or new folder with --lake DIR.",
        )
    with locked(folder / ".staging" / ".create.lock", wait=True):
        if not (folder / "lake.json").exists():
            head = {"format": FORMAT, "image_size": IMAGE_SIZE, "created_by": f"usdata {__version__}"}
            write_json(folder / "lake.json", seal(head | {"interpolation": interpolation}))


def _read_only(address: str) -> LakeError:
    return LakeError(
        f"{address} is remote, and usdata only reads remote lakes.",
        step="write",
        hint="Do it in a local lake, and copy that there (docs/streaming.md).",
    )
