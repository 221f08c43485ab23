"""What the Parquet tables of `usdata embed` and `usdata obs` share: their target, their metadata, their SQL."""

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from usdata.errors import ConfigError

SUFFIX = ".parquet"


def joining_sql(table: Path | str, lake: Path | str) -> str:
    """SQL that any DuckDB runs: each row of a table by `sample_id` with its image's row of the lake's catalog.

    Args:
        table: the Parquet file.
        lake: the lake's folder, or an address like s3://bucket/lake.
    """
    file, parts = (
        str(one).replace("'", "''") for one in (table, f"{str(lake).rstrip('/')}/catalog/samples/**/*.parquet")
    )
    return f"select * from '{file}' join read_parquet('{parts}', union_by_name=true) using (sample_id)"


def read_facts(path: Path | str, sign: bytes, what: str) -> dict[str, Any]:
    """What a table says of itself.

    Args:
        path: the file.
        sign: the key in its metadata by which a table of this kind is known.
        what: what such a table holds, for people.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path} is no Parquet file: {error}") from error
    if sign not in metadata:
        raise ConfigError(f"{path} holds no {what}.")
    return dict(json.loads(metadata[sign]))


def check_target(path: Path, sign: bytes, example: str) -> None:
    """Refuse a target that is not a new `.parquet` file or an earlier table with the same `sign`; before hours of work.

    Args:
        path: the file to be written.
        sign: see `read_facts`.
        example: a name to suggest.

    Raises:
        ConfigError: a folder, another suffix, or a file of something else.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder.", hint=f"Name a file:  -o {example}")
    if path.suffix.lower() != SUFFIX:
        raise ConfigError(
            f"{path} would be a Parquet file, but its name does not end in {SUFFIX}.",
            hint=f"Name it so:  -o {shlex.quote(str(path.with_suffix(SUFFIX)))}",
        )
    if path.exists():
        try:
            read_facts(path, sign, "such table")
        except ConfigError as error:
            raise ConfigError(
                f"{path} is there already and holds something else.", hint="Choose another name with -o."
            ) from error


def check_cohort(cohort: Any, batch_size: int, verb: str) -> None:
    """Refuse a cohort without images, and a batch without any.

    Args:
        cohort: a `usdata.Cohort`.
        batch_size: images at a time.
        verb: what is to be done with them: "embed", "search".

    Raises:
        ConfigError: either of them.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be 1 or more.")
    if not cohort.rows:
        raise ConfigError(
            f"The cohort is empty: there is nothing to {verb}.", hint=f"What there is:  usdata catalog{lake_of(cohort)}"
        )


def lake_of(cohort: Any) -> str:
    """` --lake DIR` for a command that is printed; nothing where the cohort's lake is the verbs' default, ./lake."""
    lake = getattr(cohort, "lake", None)  # a cohort in memory has none
    if lake is None or lake.address == str(Path("lake").absolute()):
        return ""
    return f" --lake {shlex.quote(lake.address)}"
