"""Writing into the --out folder of a run: what a full or unwritable disk means there."""

from contextlib import AbstractContextManager
from pathlib import Path

from usdata.files import explain_os_errors


def explain_disk(where: Path, step: str) -> AbstractContextManager[None]:
    """Around writing `where`, a file or folder of a run.

    Raises:
        LakeError: no space left, no permission to write, or the disk failed; says how the run goes on.
    """
    return explain_os_errors(
        where, step=step, elsewhere="with --out DIR", kept="with --resume it goes on from the last checkpoint, if any"
    )
