"""A folder, or a zip or tar archive unpacked where it can do no harm.

An archive is refused as a whole, naming the member, when that member would leave its folder, is a link or a device,
comes twice, or when the archive unpacks to far more than such data can. Nothing is written outside the new folder, and
that folder is removed at the end, or at the first refusal.
"""

import lzma
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from usdata.errors import DataError

MAX_BYTES = 2 << 40  # unpacked, in all; the largest known set has a tenth of it
MAX_MEMBERS = 20_000_000
MAX_RATIO = 200  # unpacked / packed; images and volumes stay below 20, empty masks alone reach 1000
SMALL = 1 << 30  # bytes below which the ratio does not matter
MAX_NAME = 240  # bytes of one part of a path; file systems end at 255
_PIECE = 1 << 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)
_DAMAGE += (OSError, NotImplementedError, ValueError, LookupError, OverflowError, RuntimeError, struct.error)
_ARCHIVES = ".zip, .tar, .tar.gz, .tar.bz2 or .tar.xz"


@contextmanager
def open_source(path: Path, temp: Path | None = None) -> Iterator[Path]:
    """The folder to read a data set from: `path` itself, or the archive `path` unpacked for the time of the `with`.

    Args:
        path: a folder, or a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz archive (told by content, not by name).
        temp: where to unpack; the system's temporary folder if None. An unpacked copy lies there meanwhile.

    Raises:
        DataError: step unpack; reasons missing, unsupported, unreadable (damaged), unsafe_archive, no_space,
            unwritable.
    """
    if path.is_dir():
        yield path
        return
    if not path.exists():
        raise DataError("missing", f"There is no {path}.", step="unpack", hint="Check the path after --from.")
    try:
        folder = Path(tempfile.mkdtemp(prefix="usdata-unpack-", dir=temp))
    except OSError as error:
        text = f"Can't unpack below {temp or tempfile.gettempdir()}: {error.strerror}."
        raise DataError("unwritable", text, step="unpack", hint="Set TMPDIR to a folder that exists.") from error
    try:
        unpack(path, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpack(archive: Path, folder: Path) -> int:
    """Unpacks `archive` into the empty `folder`; how many files that were.

    Raises:
        DataError: see `open_source`. What was unpacked before a refusal is still in `folder`.
    """
    writer = _Writer(archive, folder)
    try:
        if zipfile.is_zipfile(archive) and not _is_tar(archive):
            _unpack_zip(archive, writer)
        elif _is_tar(archive):
            _unpack_tar(archive, writer)
        else:
            raise DataError(
                "unsupported",
                f"{archive.name} is no folder and no archive that is read here ({_ARCHIVES}).",
                step="unpack",
                hint="Unpack it with its own program and give the folder:  --from DIR",
            )
    except _DAMAGE as error:
        raise writer.explain(error) from error
    return len(writer.seen)


def _is_tar(archive: Path) -> bool:
    try:
        return tarfile.is_tarfile(archive)
    except _DAMAGE:
        return False


class _Writer:
    """Writes members below `folder`, after checking their names, and counts their bytes while it does."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        self.limit = min(MAX_BYTES, max(SMALL, MAX_RATIO * archive.stat().st_size))
        self.total = 0
        self.member = ""  # the one in work, for messages
        self.seen: set[str] = set()
        self.folders: set[str] = set()

    def refuse(self, why: str) -> DataError:
        member = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", self.member)
        member = member.encode("utf-8", "backslashreplace").decode()
        return DataError(
            "unsafe_archive",
            f"{self.archive.name} was not unpacked: its member {member!r} {why}.",
            step="unpack",
            hint="If you trust it, unpack it yourself and give the folder:  --from DIR",
        )

    def explain(self, error: Exception) -> DataError:
        """A damaged archive or a full disk, as the error to raise."""
        member = f" at its member {self.member!r}" if self.member else ""
        if isinstance(error, OSError) and error.errno in (28, 122):  # no space, quota
            return DataError("no_space", f"No space to unpack {self.archive.name}{member}.", step="unpack")
        text = " ".join(str(error).split()) or type(error).__name__
        return DataError(
            "unreadable",
            f"{self.archive.name} is damaged or incomplete{member}: {text}.",
            step="unpack",
            hint="Download it again, and compare its size or checksum with the source's.",
        )

    def begin(self, name: str) -> str:
        """The member's path below the folder, checked: relative, inside, not seen before."""
        self.member = name
        parts = name.replace("\\", "/").rstrip("/").split("/")
        while len(parts) > 1 and parts[0] == ".":
            parts = parts[1:]
        if _CONTROL.search(name):
            raise self.refuse("has control characters in its name")
        if parts[0] == "" or re.match(r"[A-Za-z]:", parts[0]):
            raise self.refuse("has an absolute path")
        if any(part in ("", ".", "..") for part in parts):
            raise self.refuse("leads out of its folder, or has an empty part")
        if any(len(part.encode("utf-8", "surrogateescape")) > MAX_NAME for part in parts):
            raise self.refuse("has too long a name")
        return "/".join(parts)

    def add_folder(self, name: str) -> None:
        if name.rstrip("/") not in (".", ""):
            self._claim_folders(self.begin(name))

    def add_file(self, name: str, size: int, content: IO[bytes]) -> None:
        """Writes one file of at most `size` bytes, counting what really comes out."""
        path = self.begin(name)
        if path in self.seen:
            raise self.refuse("comes twice")
        if path in self.folders:
            raise self.refuse("is a file and a folder at once")
        if len(self.seen) >= MAX_MEMBERS:
            raise self.refuse(f"is one of more than {MAX_MEMBERS}")
        self._expect(size)
        self.seen.add(path)
        self._claim_folders(path.rpartition("/")[0])
        with (self.folder / path).open("xb") as file:
            while piece := content.read(_PIECE):
                self.total += len(piece)
                if self.total > self.limit:
                    raise self.refuse(f"makes it unpack to more than {self.limit} bytes")
                file.write(piece)

    def _expect(self, size: int) -> None:
        if self.total + size > self.limit:
            raise self.refuse(f"makes it unpack to more than {self.limit} bytes")
        free = shutil.disk_usage(self.folder).free if size > _PIECE else size
        if size > free:
            raise DataError(
                "no_space",
                f"{self.archive.name} needs {size} bytes more in {self.folder.parent}, where {free} are free.",
                step="unpack",
                hint="Set TMPDIR to a larger disk, or unpack it there and give the folder:  --from DIR",
            )

    def _claim_folders(self, path: str) -> None:
        if not path or path in self.folders:
            return
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            part = "/".join(parts[:end])
            if part in self.seen:
                raise self.refuse("is a file and a folder at once")
            self.folders.add(part)
        (self.folder / path).mkdir(parents=True, exist_ok=True)


def _unpack_zip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:  # all names and sizes first: a refusal then has written nothing at all
            writer.begin(_zip_name(member))
            kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == 3 else 0
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.refuse("is a link or a device")
            if member.flag_bits & 1:
                raise writer.refuse("is encrypted")
        total = sum(member.file_size for member in members)
        if members and total > writer.limit:
            raise writer.refuse(f"is one of {len(members)} that unpack to {total} bytes")
        for member in members:
            if member.is_dir():
                writer.add_folder(_zip_name(member))
            else:
                with file.open(member) as content:
                    writer.add_file(_zip_name(member), member.file_size, content)


def _zip_name(member: zipfile.ZipInfo) -> str:
    """The member's name. Many programs write UTF-8 without saying so, which would then be read as code page 437.

    `orig_filename`, because `filename` ends at a NUL and so can hide what follows.
    """
    name = member.orig_filename
    if member.flag_bits & 0x800 or name.isascii():
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _unpack_tar(archive: Path, writer: _Writer) -> None:
    with tarfile.open(archive, "r:*") as file:
        for member in file:
            writer.member = member.name
            if member.isdir():
                writer.add_folder(member.name)
                continue
            content = file.extractfile(member) if member.isreg() else None
            if content is None:
                raise writer.refuse("is a link or a device")
            with content:
                writer.add_file(member.name, member.size, content)
