"""Temporary folders in the private area: nobody removes them while they are used, and no killed run leaves them."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def temporary_folder(area: Path) -> Iterator[Path]:
    """A new folder of mode 0700 below `area`, removed with all that is in it at the end.

    Its lock file says that it is in use, to processes of other machines too; a folder whose lock is free was left by a
    process that was killed, and is removed on the way.
    """
    place = area / "temp"
    place.mkdir(mode=0o700, exist_ok=True)
    _sweep(place)
    folder, lock = _new(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
        os.close(lock)


def _new(place: Path) -> tuple[Path, int]:
    """A folder and the descriptor of its lock file, locked before the folder is there."""
    while True:
        lock, name = tempfile.mkstemp(prefix="run-", suffix=".lock", dir=place)  # mode 0600
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(name) and Path(name).stat().st_ino == os.fstat(lock).st_ino:
            break
        os.close(lock)  # somebody swept it up before it was locked
    folder = Path(name).with_suffix("")
    folder.mkdir(mode=0o700)
    return folder, lock


def _sweep(place: Path) -> None:
    for path in place.glob("run-*.lock"):
        with suppress(OSError):  # gone meanwhile, or in use
            lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink()
            finally:
                os.close(lock)
