"""Writing files so that a reader sees the old one or the new one, whole, whatever happens in between."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import xxhash

from usdata.errors import LakeError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_BROKEN = {errno.EIO}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


@contextmanager
def explain_os_errors(
    where: Path,
    *,
    dataset: str | None = None,
    step: str = "write",
    elsewhere: str = "with --lake DIR",
    kept: str = "finished shards are kept",
) -> Iterator[None]:
    """Turn a full, failing, unwritable or limited disk into a LakeError that says what to do; other OSErrors pass.

    Args:
        elsewhere: how to choose another place.
        kept: what of the work need not be done again.

    Raises:
        LakeError: no space left, a file too large for a limit, no permission to write, or the disk failed.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise LakeError(
                f"No space left on the disk of {where}.",
                dataset=dataset,
                step=step,
                hint=f"Free some space and run the same command again: {kept}.",
            ) from error
        if error.errno == errno.EFBIG:
            raise LakeError(
                f"{error.filename or where} would be larger than a file may be here ({error.strerror}).",
                dataset=dataset,
                step=step,
                hint="Raise the limit (`ulimit -f unlimited`; FAT32 takes no file of 4 GiB) or choose another place "
                f"{elsewhere}; then run the same command again: {kept}.",
            ) from error
        if error.errno in _DENIED:
            raise LakeError(
                f"Can't write to {error.filename or where} ({error.strerror}).",
                dataset=dataset,
                step=step,
                hint=f"Give yourself write permission there, or choose another place {elsewhere}.",
            ) from error
        if error.errno in _BROKEN:
            raise LakeError(
                f"The disk of {error.filename or where} failed ({error.strerror}).",
                dataset=dataset,
                step=step,
                hint="Look after the disk (the system's log says more); then run the same command again.",
            ) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends without an error, and leaves no trace otherwise.

    Written under a temporary name in the same folder, flushed to the disk, then renamed. The name is always the same,
    so that what a killed run left is overwritten by the next; two writers of one path need a lock.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def locked(path: Path, wait: bool, note: str = "") -> Iterator[None]:
    """Hold the lock file `path`; it goes with the process, however that ends.

    Args:
        note: written into the file, for whoever finds it locked; taken out again at the end.

    Raises:
        BlockingIOError: another process holds it and `wait` is False.
    """
    make_folder(path.parent)
    with path.open("a") as file:  # "w" would wipe out the holder's note
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        file.truncate(0)
        file.write(note)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # who worked when is nobody's business afterwards: lakes are copied with all their files


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, so that they survive a power cut like the files put into them."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in reversed(missing):
        sync_folder(part.parent)


def sync_folder(folder: Path) -> None:
    """Make the changes of names inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """`value` as sorted, indented JSON; the same value gives the same bytes."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file of the lake.

    Raises:
        LakeError: the file is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise LakeError(f"{path} is damaged: not JSON ({error}).", hint="Restore it, or remove it.") from error


Stamp = tuple[int, int, int]  # inode, time of change in ns, bytes


def file_stamp(file: Path | int) -> Stamp | None:
    """What tells a file (path or descriptor) from the one that is renamed into its place; None if it is not there."""
    try:
        stat = os.fstat(file) if isinstance(file, int) else file.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def file_xxh(path: Path) -> str:
    """xxh3_128 of a file's bytes, 32 hex digits, read in pieces of 1 MiB."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
