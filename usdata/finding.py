"""What `usdata verify` says: one thing that is wrong, where, and the command that repairs it."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from usdata.lake import Lake

Level = Literal["damage", "changed", "note"]
_GENERATED = {"phantom"}  # drawn by usdata itself: no --from


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: where, what, and the command that repairs it.

    `level`: `damage`; `changed`, a data set that was replaced while it was read: run it again; `note`, harmless.
    """

    dataset: str
    file: str
    sample: str | None
    problem: str
    repair: str
    offset: int | None = None  # of the byte in the file from which on something is wrong
    level: Level = "damage"

    def row(self) -> dict[str, Any]:
        """As a row of the printed table."""
        names = ("level", "dataset", "file", "sample", "offset", "problem", "repair")
        values = asdict(self)
        return {name: values[name] for name in names}


def again(lake: Lake, dataset: str, images: int | None = None) -> str:
    """The ingest that makes a data set anew; what is right of it is not built again."""
    place = f"--lake {quoted(lake.root)}"
    if dataset in _GENERATED:
        return f"usdata ingest {dataset}{f' --images {images}' if images else ''} {place}"
    return f"usdata ingest {dataset} --from PATH {place}  # a card of your own: --card FILE instead of {dataset}"


def rebuild(lake: Lake) -> str:
    """The command that makes the catalog from the shards."""
    return f"usdata catalog --rebuild --lake {quoted(lake.root)}"


def remove(path: Path, then: str = "") -> str:
    """The command that removes a file or folder, and another after it."""
    first = f"rm {'-r ' if path.is_dir() else ''}{quoted(path)}"
    return f"{first} && {then}" if then else first


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))
