"""A data set's manifest, read with every check it allows: what the shards were built from, their sizes and hashes."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from usdata.errors import LakeError
from usdata.lake import INTERPOLATIONS, Lake
from usdata.schema import FORMAT, IMAGE_SIZE
from usdata.seal import KEY, read_sealed, seal

_KEYS = {"card_digest", "catalog_xxh", "counts", "dataset", "interpolation", "quarantine_xxh", "shards"}
_RECORD_KEYS = {"fingerprint", "rejected", "samples", "size", "xxh"}
_HEAD_KEYS = {"created_by", "format", "image_size", "interpolation"}
_CREATED_BY = re.compile(r"usdata \d+(\.\w+)+")


def read_checked(lake: Lake, dataset: str, word: str | None) -> dict[str, Any]:
    """The manifest of a data set.

    Args:
        word: the lake's interpolation as `interpolation` gives it, not as a damaged `lake.json` does; None: any.

    Raises:
        FileNotFoundError: there is none.
        OSError: it can't be read.
        LakeError: damaged; the message says in which way.
    """
    content = read_sealed(lake.manifest(dataset))
    problem = _problem(content, dataset, word)
    if problem:
        raise LakeError(problem)
    return content


def with_samples(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name -> what the manifest says of that shard, for those that hold samples."""
    return {f"{name}.tar": record for name, record in manifest["shards"].items() if record["samples"]}


def traces(lake: Lake) -> list[str]:
    """Every data set that left a trace: a lost catalog part or manifest is a finding, not a reason to look away."""
    folders = [p.name for p in (lake.root / "shards").glob("[!.]*") if p.is_dir() or p.is_symlink()]
    manifests = [p.stem for p in (lake.root / "manifests").glob("[!.]*.json")]
    quarantines = [p.stem for p in (lake.root / "quarantine").glob("[!.]*.parquet")]
    return sorted({*lake.datasets(), *folders, *manifests, *quarantines})


# --- lake.json --------------------------------------------------------------------------------------------------------


def head_problem(root: Path) -> str | None:
    """What is wrong with a lake's `lake.json`; None if it is as it was written."""
    try:
        head = read_sealed(root / "lake.json")
    except (LakeError, OSError) as error:
        return error.message if isinstance(error, LakeError) else error.strerror or str(error)
    if set(head) - {KEY} != _HEAD_KEYS:
        return f"the entries are {', '.join(sorted(head))}"
    if (head["format"], head["image_size"]) != (FORMAT, IMAGE_SIZE) or head["interpolation"] not in INTERPOLATIONS:
        return f"format {head['format']!r}, images of {head['image_size']!r}, {head['interpolation']!r}: that can't be"
    if not isinstance(head["created_by"], str) or not _CREATED_BY.fullmatch(head["created_by"]):
        return f"created_by {head['created_by']!r}: that can't be"
    if KEY not in head and (said := _said_by_manifests(root)) not in (None, head["interpolation"]):
        return f"it says {head['interpolation']!r}; the manifests were sealed with {said!r}"
    return None


def interpolation(root: Path) -> str | None:
    """The lake's interpolation as `lake.json` says it or, where that is damaged, the manifests; None: nobody knows."""
    if head_problem(root) is None:
        return str(read_sealed(root / "lake.json")["interpolation"])
    return _said_by_manifests(root) or _that_fits_the_seal(root)


def _said_by_manifests(root: Path) -> str | None:
    """What most of the sealed manifests say; None if there are none, or as many say the other."""
    said: Counter[str] = Counter()
    for path in (root / "manifests").glob("[!.]*.json"):
        try:
            content = read_sealed(path)
        except (LakeError, OSError):
            continue  # damaged: a finding of its own
        if KEY in content and content.get("interpolation") in INTERPOLATIONS:
            said[content["interpolation"]] += 1
    first = said.most_common()
    return first[0][0] if first and (len(first) == 1 or first[0][1] > first[1][1]) else None


def _that_fits_the_seal(root: Path) -> str | None:
    """The word with which the rest of `lake.json` has the seal that stands in it."""
    try:
        head = json.loads((root / "lake.json").read_bytes())
        fitting = [word for word in INTERPOLATIONS if (whole := head | {"interpolation": word}) == seal(whole)]
    except (ValueError, RecursionError, TypeError, OSError):  # no JSON, or no object
        return None
    return fitting[0] if fitting else None


# --- manifests --------------------------------------------------------------------------------------------------------


def _problem(content: dict[str, Any], dataset: str, wanted: str | None) -> str | None:
    """What a manifest says that can't be; None if it is well formed."""
    if missing := _KEYS - set(content):
        return f"it lacks {', '.join(sorted(missing))}"
    if KEY not in content and (unknown := set(content) - _KEYS):
        return f"it has the unknown entry {min(unknown)!r}"
    shards, counts = content["shards"], content["counts"]
    if not isinstance(shards, dict) or not isinstance(counts, dict):
        return "shards or counts are no object"
    if (content["dataset"], content["interpolation"]) != (dataset, wanted or content["interpolation"]):
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
