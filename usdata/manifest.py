"""A data set's manifest, read with every check it allows: what the shards were built from, their sizes and hashes."""

from typing import Any

from usdata.errors import LakeError
from usdata.lake import Lake
from usdata.seal import KEY, read_sealed

_KEYS = {"card_digest", "catalog_xxh", "counts", "dataset", "interpolation", "quarantine_xxh", "shards"}
_RECORD_KEYS = {"fingerprint", "rejected", "samples", "size", "xxh"}


def read_checked(lake: Lake, dataset: str) -> dict[str, Any]:
    """The manifest of a data set.

    Raises:
        FileNotFoundError: there is none.
        OSError: it can't be read.
        LakeError: damaged; the message says in which way.
    """
    content = read_sealed(lake.manifest(dataset))
    problem = _problem(content, dataset, lake.info["interpolation"])
    if problem:
        raise LakeError(problem)
    return content


def with_samples(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name -> what the manifest says of that shard, for those that hold samples."""
    return {f"{name}.tar": record for name, record in manifest["shards"].items() if record["samples"]}


def _problem(content: dict[str, Any], dataset: str, interpolation: str) -> str | None:
    """What a manifest says that can't be; None if it is well formed."""
    if missing := _KEYS - set(content):
        return f"it lacks {', '.join(sorted(missing))}"
    if KEY not in content and (unknown := set(content) - _KEYS):
        return f"it has the unknown entry {min(unknown)!r}"
    shards, counts = content["shards"], content["counts"]
    if not isinstance(shards, dict) or not isinstance(counts, dict):
        return "shards or counts are no object"
    if (content["dataset"], content["interpolation"]) != (dataset, interpolation):
        return f"it is of data set {content['dataset']!r}, interpolation {content['interpolation']!r}"
    if not all(isinstance(n, int) and n >= 0 for n in counts.values()):
        return "a count is no number"
    for name, record in shards.items():
        if not (isinstance(record, dict) and set(record) >= _RECORD_KEYS and name.startswith(f"{dataset}-")):
            return f"the record of {name!r} lacks entries"
        if not all(isinstance(record[key], int) and record[key] >= 0 for key in ("samples", "size")):
            return f"a number in the record of {name!r} is none"
        if not all(isinstance(record[key], str) for key in ("fingerprint", "xxh")):
            return f"a hash in the record of {name!r} is none"
    return None
