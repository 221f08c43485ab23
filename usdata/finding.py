"""What `usdata verify` says: one thing that is wrong, where, and the command that repairs it."""

import shlex
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from usdata.errors import LakeError
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


def again(lake: Lake, dataset: str, images: int | None = None, registered: Collection[str] | None = None) -> str:
    """The ingest that makes a data set anew; what is right of it is not built again. PATH and FILE are for a person.

    Args:
        images: how many a generated data set has; None: not known, so that a person must say it. (Without a number the
            ingest would draw as many as it draws by default, and the lake would grow or shrink.)
        registered: names of the data sets that have a card in the package; None: not known, so both commands are given.
    """
    place = f"--lake {quoted(lake.root)}"
    if dataset in _GENERATED:
        return f"usdata ingest {dataset} --images {'N' if images is None else images} {place}"
    deid = _deid(lake, dataset)
    if deid.get("key_fingerprint", "published") != "published":
        what = "--card FILE" if deid.get("own_card") else f"private --name {shlex.quote(dataset)}"
        return f"usdata ingest {what} --from PATH --key-file FILE {place}"
    known = f"usdata ingest {shlex.quote(dataset)} --from PATH {place}"
    own = f"usdata ingest --card FILE --from PATH {place}"
    if registered is None:
        return f"{known}  # with a card of your own: {own}"
    return known if dataset in registered else own


def _deid(lake: Lake, dataset: str) -> dict[str, Any]:
    """How a data set was de-identified, as its manifest says, if that can be read and says so."""
    try:
        deid = (lake.read_manifest(dataset) or {}).get("deid")
    except (LakeError, OSError):
        deid = None
    return deid if isinstance(deid, dict) else {}


def rebuild(lake: Lake) -> str:
    """The command that makes the catalog from the shards."""
    return f"usdata catalog --rebuild --lake {quoted(lake.root)}"


def remove(path: Path, then: str = "") -> str:
    """The command that removes a file or folder, and another after it."""
    first = f"rm {'-r ' if path.is_dir() and not path.is_symlink() else ''}{quoted(path)}"
    return f"{first} && {then}" if then else first


def in_place_of(path: Path, command: str) -> str:
    """A command that writes the file `path`, behind one that takes away the folder that stands there, if one does."""
    return remove(path, command) if path.is_dir() else command


def elsewhere(path: Path) -> str:
    """The command for what usdata did not write: only a person knows where it belongs."""
    return f"mv {quoted(path)} ELSEWHERE"


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))
