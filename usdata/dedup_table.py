"""The table of near-duplicates, `catalog/duplicates.parquet`: writing it, and whether it is still of this catalog."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from usdata.catalog import write_duckdb
from usdata.cohort import Cohort
from usdata.dedup_find import Duplicates
from usdata.errors import LakeError
from usdata.files import explain_os_errors, file_xxh
from usdata.lake import Lake
from usdata.parts import DAMAGED, canonical, write_part
from usdata.schema import DUPLICATES

KEY = b"usdata.dedup"  # of the entry in the Parquet schema's metadata that says what the table was made from


def duplicates_path(lake: Lake) -> Path:
    """Where the table is, or will be."""
    return lake.root / "catalog" / "duplicates.parquet"


def catalog_state(lake: Lake) -> dict[str, str]:
    """Data set -> hash of its part of the catalog (of all its parts' hashes, if it has several)."""
    hashes: dict[str, list[str]] = {}
    folder = lake.root / "catalog" / "samples"
    for path in lake.catalog_files():
        hashes.setdefault(path.relative_to(folder).parts[0].removesuffix(".parquet"), []).append(file_xxh(path))
    return {
        name: found[0] if len(found) == 1 else xxhash.xxh3_128_hexdigest("".join(found).encode())
        for name, found in sorted(hashes.items())
    }


def write_duplicates(cohort: Cohort, found: Duplicates, settings: dict[str, Any], state: dict[str, str]) -> bool:
    """Put the groups into the lake; False if they stood there already.

    `duplicate_group` is the smallest sample id of the group. The rows stand in the order of group, sample id; the same
    lake and settings give the same bytes.

    Args:
        cohort: all samples of the lake.
        settings: of the search, noted in the table.
        state: `catalog_state` before the search.

    Raises:
        LakeError: the catalog changed during the search, or the lake can't be written.
    """
    lake = cohort.lake
    table, path = _table(cohort, found, settings, state), duplicates_path(lake)
    with explain_os_errors(path, step="dedup"), lake.commit_lock():
        if catalog_state(lake) != state:
            raise LakeError(
                f"The catalog of {lake.root} changed during the search: data was ingested meanwhile.",
                step="dedup",
                hint="Run it again:  usdata dedup",
            )
        if _stands(path, table):
            return False
        write_part(path, table)
        write_duckdb(lake)  # its view joins the table only if it is there
    return True


def _table(cohort: Cohort, found: Duplicates, settings: dict[str, Any], state: dict[str, str]) -> pa.Table:
    rows = np.flatnonzero(found.group >= 0)
    named = pa.table({"sample_id": cohort.ids.take(pa.array(rows)), "code": found.group[rows]})
    smallest = named.group_by("code").aggregate([("sample_id", "min")]).rename_columns(["code", "duplicate_group"])
    table = named.join(smallest, "code").sort_by([("duplicate_group", "ascending"), ("sample_id", "ascending")])
    made_from = {"datasets": state, **settings}
    text = json.dumps(made_from, sort_keys=True, separators=(",", ":"))
    return canonical(table, DUPLICATES).replace_schema_metadata({KEY: text.encode()})


def _stands(path: Path, table: pa.Table) -> bool:
    try:
        return bool(pq.read_table(path, partitioning=None, page_checksum_verification=True).equals(table, True))
    except (FileNotFoundError, *DAMAGED):  # what is damaged is written anew
        return False


def made_from(lake: Lake) -> dict[str, Any] | None:
    """What the table was made from: `datasets` (see `catalog_state`) and the settings; None if there is no table.

    Raises:
        LakeError: the table is damaged, or not of `usdata dedup`.
    """
    path = duplicates_path(lake)
    try:
        text = (pq.read_schema(path).metadata or {}).get(KEY)
        content = None if text is None else json.loads(text)
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        raise LakeError(f"{path} is damaged ({error}).", hint="Make it anew:  usdata dedup") from error
    if not (isinstance(content, dict) and isinstance(content.get("datasets"), dict)):
        raise LakeError(f"{path} does not say what it was made from.", hint="Make it anew:  usdata dedup")
    return content


def why_stale(lake: Lake) -> str | None:
    """Why the table is not of this catalog, in a sentence; None if it is.

    Raises:
        LakeError: see `made_from`.
    """
    made, now = made_from(lake), catalog_state(lake)
    if made is None:
        return f"{lake.address} was not searched for duplicates yet."
    then = made["datasets"]
    words = {
        "came": sorted(now.keys() - then.keys()),
        "changed": sorted(name for name in now.keys() & then.keys() if now[name] != then[name]),
        "went": sorted(then.keys() - now.keys()),
    }
    said = [f"{', '.join(names)} {word}" for word, names in words.items() if names]
    return f"The duplicates are of an earlier catalog: since then {'; '.join(said)}." if said else None


def require_current(lake: Lake) -> None:
    """For whoever builds on the groups.

    Raises:
        LakeError: the lake was not searched for duplicates, or changed since.
    """
    if reason := why_stale(lake):
        raise LakeError(reason, hint=f"Search it:  usdata dedup --lake {lake.address}")
