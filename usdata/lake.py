"""The lake: one folder of shards, catalog, quarantine and cohorts (format 1).

lake.json                        format, image size, interpolation, version that created it
shards/<dataset>/*.tar           images, masks, rows as JSON
catalog/samples/<dataset>.parquet
catalog/splits.parquet, catalog/duplicates.parquet
manifests/<dataset>.json         what the shards were built from, their sizes and hashes
quarantine/<dataset>.parquet
cohorts/<name>.json
catalog.duckdb                   views for the duckdb shell, started in the lake's folder
.staging/<dataset>/              an ingest under way; no reader looks there
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usdata import __version__
from usdata.errors import LakeError
from usdata.files import explain_os_errors, locked, read_json, write_json
from usdata.schema import FORMAT, IMAGE_SIZE

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from usdata.cohort import Cohort

INTERPOLATIONS = ("bilinear-aa", "bilinear-fast")
_REMOTE = re.compile(r"[a-z][a-z0-9+]+:/", re.IGNORECASE)  # one slash: what a Path leaves of s3://bucket
_JOKERS = "*?[{,\\"  # duckdb takes a path with one of these for a pattern or a list, and may read another lake


class Lake:
    """A lake on a local disk, opened for reading; `Lake.create` makes a new one or opens what is there.

    Args:
        root: the lake's folder.

    Raises:
        LakeError: no lake there, a newer format, a damaged lake.json, a remote address, or a path that duckdb would
            take for a pattern.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = _checked_root(root)
        if not self._head.is_file():
            raise LakeError(
                f"No lake at {self.root} (no lake.json there).",
                hint=f"Make one with some data in it:  usdata ingest phantom --lake {self.root}",
            )
        self.info: dict[str, Any] = read_json(self._head)
        self._check_format()

    @classmethod
    def create(cls, root: str | Path, interpolation: str | None = None) -> Lake:
        """Open the lake at `root`, or make an empty one there.

        Args:
            interpolation: `bilinear-aa` (default) or `bilinear-fast`; a lake keeps to the one it was created with.

        Raises:
            LakeError: the folder holds something else, can't be written, or has another interpolation.
        """
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
                f"{self.root} has lake format {self.info['format']}; this usdata ({__version__}) reads up to {FORMAT}.",
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
        """Where an ingest of a data set collects its work before the commit."""
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
        """Held while a catalog part, saved cohort or `catalog.duckdb` changes: one writer at a time, others wait."""
        return locked(self.root / ".staging" / ".commit.lock", wait=True)  # the dot: no data set has such a name

    # --- asking it --------------------------------------------------------------------------------------------------

    def sql(self, query: str) -> pa.Table:
        """Answer one SELECT over the views `samples`, `quarantine` and `organs`, in a sandbox.

        Raises:
            QueryError: not one SELECT, a mistake in it, or an attempt to reach a file.
        """
        from usdata.catalog import Catalog

        return Catalog(self).query(query)

    def scan(self) -> pl.LazyFrame:
        """The catalog's stored columns as a Polars LazyFrame, for what is easier to say there than in SQL.

        Raises:
            LakeError: there is no data set in the lake yet.
        """
        import polars as pl

        files = self.catalog_files()
        if not files:
            raise LakeError(f"{self.root} holds no data set yet.", hint="Bring one in:  usdata ingest phantom")
        return pl.scan_parquet(files, missing_columns="insert", extra_columns="ignore")

    def cohort(self, expression: str = "all") -> Cohort:
        """The samples for which a SQL boolean expression holds; or a saved cohort by its name; or `all`.

        Raises:
            QueryError: not one boolean expression, an unknown column, or an attempt to reach a file.
        """
        from usdata.cohort import Cohort

        return Cohort.open(self, expression)

    def __repr__(self) -> str:
        return f"Lake({str(self.root)!r})"


def _checked_root(root: str | Path) -> Path:
    """The lake's folder as an absolute path, so that it stays the same when the working directory changes."""
    if _REMOTE.match(str(root)):
        raise LakeError(
            f"{root} is a remote address; this version reads lakes on local disks only.",
            hint="Copy the lake to a local folder first.",
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
            write_json(folder / "lake.json", head | {"interpolation": interpolation})
