"""A folder, or a zip or tar archive unpacked where it can do no harm.

An archive is refused as a whole, naming the member, when that member would leave its folder, is a link or a device,
comes twice (be it under a name that some disks take for the same), or when the archive unpacks to far more than such
data can. Nothing is written outside the new folder, and that folder is removed at the end, or at the first refusal.
"""

import fnmatch
import lzma
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

from ingest.fetch_record import fetched_files
from ingest.unpack_kinds import ENDINGS, by_hand, kind_of, read_head, without_ending, words_of
from usdata.errors import DataError

MAX_BYTES = 2 << 40  # unpacked, in all; the largest known set has a tenth of it
MAX_MEMBERS = 20_000_000  # files and folders
MAX_RATIO = 200  # unpacked / packed; images and volumes stay below 20, empty masks alone reach 1000
SMALL = 1 << 30  # bytes below which the ratio does not matter
MAX_NAME = 240  # bytes of one part of a path; file systems end at 255
MAX_PARTS = 64  # folders in each other
MAX_HEADER = 1 << 20  # bytes of one long name or of the extended header of a tar member; real ones stay below 1 kB
_PIECE = 1 << 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)
_DAMAGE += (OSError, ValueError, LookupError, OverflowError, RuntimeError, struct.error, MemoryError)
_METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz", 98: "ppmd", 99: "AES encryption"}
_LONG = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@contextmanager
def open_source(path: Path, temp: Path | None = None) -> Iterator[Path]:
    """The folder to read a data set from: `path` itself, or the archive `path` unpacked for the time of the `with`.

    Of a folder that `usdata fetch` filled it is the folder `files` inside.

    Args:
        path: a folder, or a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz archive (told by content, not by name).
        temp: where to unpack; the system's temporary folder if None. An unpacked copy lies there meanwhile.

    Raises:
        DataError: step unpack; reasons missing, unsupported, unreadable (damaged), unsafe_archive, no_space,
            unwritable. Step fetch; reason incomplete: `usdata fetch` has not ended yet.
    """
    if path.is_dir():
        yield fetched_files(path) or path
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


class Budget:
    """What an archive may still unpack to, with all archives inside it: bytes, and files and folders."""

    def __init__(self, archive: Path) -> None:
        self.limit = min(MAX_BYTES, max(SMALL, MAX_RATIO * archive.stat().st_size))
        self.total = 0
        self.members = 0


def unpack(
    archive: Path, folder: Path, *, names: str | None = None, nested: Sequence[str] = (), budget: Budget | None = None
) -> int:
    """Unpacks `archive` into the empty `folder`; how many files that were.

    Args:
        names: encoding of names that the archive does not declare. Default: UTF-8 where they are that; else code page
            437 for a zip, as its standard says, and refused for a tar.
        nested: archives inside it to unpack in turn, as paths below `folder` with `*` for any text: each becomes a
            folder of its name without the ending. In this order, so that a later pattern can name what an earlier one
            brought. They share one budget with the archive around them.
        budget: of the archive around it.

    Raises:
        DataError: see `open_source`. What was unpacked before a refusal is still in `folder`.
    """
    budget = budget or Budget(archive)
    writer = _Writer(archive, folder, budget)
    try:
        if _is_tar(archive):
            _unpack_tar(archive, writer, names)
        elif zipfile.is_zipfile(archive):
            _unpack_zip(archive, writer, names)
        else:
            raise _no_archive(archive)
    except _DAMAGE as error:
        if "multiple disks" in str(error):  # the words of zipfile
            raise _no_archive(archive, "split zip") from error
        raise writer.explain(error) from error
    count = len(writer.seen)
    for pattern in nested:
        count += _unpack_inside(folder, pattern, names, budget)
    return count


def _unpack_inside(folder: Path, pattern: str, names: str | None, budget: Budget) -> int:
    """Replaces the archives below `folder` that fit `pattern` by their content; how many files more there are then."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    found = sorted(path for path in paths if fnmatch.fnmatchcase(path, pattern))
    if not found:
        raise DataError(
            "missing",
            f"The archive has no {pattern!r} in it, which its card says is to be unpacked too.",
            step="unpack",
            hint="The publisher may have changed it: look into it, and correct `nested` in the card.",
        )
    more = 0
    for path in found:
        target = folder / without_ending(path)
        if target.exists():
            raise DataError("unsafe_archive", f"{path!r} would unpack into a folder that exists.", step="unpack")
        target.mkdir()
        more += unpack(folder / path, target, names=names, budget=budget) - 1
        (folder / path).unlink()
    return more


def _no_archive(archive: Path, kind: str | None = None) -> DataError:
    kind = kind or kind_of(read_head(archive))
    other = Path(f"{archive}.d" if "." not in archive.name else without_ending(str(archive)))
    command = by_hand(archive, other, kind)
    hint = f"{command}        then give the folder:  --from {other}" if command else None
    named = kind is None and archive.name.lower().endswith(ENDINGS)
    damaged = named or kind in ("empty", "cut zip", "gz", "bz2", "xz", "web", "lfs")
    return DataError(
        "unreadable" if damaged else "unsupported",
        f"{archive.name} {words_of(kind)}.",
        step="unpack",
        hint=hint
        or ("Download it again." if damaged else "Unpack it with its own program and give the folder:  --from DIR"),
    )


class _Header(tarfile.TarInfo):
    """A tar header that can neither eat memory nor pass for the archive's end when it is damaged.

    tarfile itself reads a long name of any declared length at once, and takes a broken header for the end.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _LONG and header.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header that declares {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _BROKEN_HEADER as error:
            if tarfile.offset == 0:  # opening: another kind of archive is tried next
                raise
            raise _ReadError(f"{error} at byte {tarfile.offset}, where a member or the end mark should be") from error


_ReadError = tarfile.ReadError
_BROKEN_HEADER: tuple[type[Exception], ...] = tuple(
    getattr(tarfile, name) for name in ("EmptyHeaderError", "TruncatedHeaderError", "InvalidHeaderError")
)


def _open_tar(archive: Path, names: str | None = None) -> tarfile.TarFile:
    return tarfile.open(archive, "r:*", tarinfo=_Header, encoding=names or "utf-8", errors="surrogateescape")


def _is_tar(archive: Path) -> bool:
    try:
        with _open_tar(archive):
            return True
    except _DAMAGE:
        return False


class _Writer:
    """Writes members below `folder`, after checking their names, and counts their bytes while it does."""

    def __init__(self, archive: Path, folder: Path, budget: Budget) -> None:
        self.archive, self.folder, self.budget = archive, folder, budget
        self.member = ""  # the one in work, for messages
        self.seen: set[str] = set()
        self.folders: set[str] = set()
        self.folded: dict[str, str] = {}  # what file systems may take for the same name -> the name, where they differ

    def refuse(self, why: str, hint: str | None = None) -> DataError:
        return DataError(
            "unsafe_archive",
            f"{self.archive.name} was not unpacked: its member {self.shown()!r} {why}.",
            step="unpack",
            hint=hint or "If you trust it, unpack it yourself and give the folder:  --from DIR",
        )

    def shown(self) -> str:
        """The member's name as printable text."""
        member = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", self.member)
        return member.encode("utf-8", "backslashreplace").decode()

    def explain(self, error: Exception) -> DataError:
        """A damaged archive or a full disk, as the error to raise."""
        member = f" at its member {self.shown()!r}" if self.member else ""
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
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise self.refuse("has a name that is not UTF-8", "Give its encoding as `names` of the card's source.")
        if parts[0] == "" or re.match(r"[A-Za-z]:", parts[0]):
            raise self.refuse("has an absolute path")
        if any(part in ("", ".", "..") for part in parts):
            raise self.refuse("leads out of its folder, or has an empty part")
        if len(parts) > MAX_PARTS or any(len(part.encode()) > MAX_NAME for part in parts):
            raise self.refuse("has too long a name")
        return "/".join(parts)

    def add_folder(self, name: str) -> None:
        if name.rstrip("/") not in (".", ""):
            path = self.begin(name)
            self._count()
            self._claim_folders(path)

    def add_file(self, name: str, size: int, content: IO[bytes]) -> None:
        """Writes one file of at most `size` bytes, counting what really comes out."""
        path = self.begin(name)
        if path in self.seen:
            raise self.refuse("comes twice")
        if path in self.folders:
            raise self.refuse("is a file and a folder at once")
        self._refuse_lookalike(path)
        self._count()
        self._expect(size)
        self.seen.add(path)
        self._claim_folders(path.rpartition("/")[0])
        with (self.folder / path).open("xb") as file:
            while piece := content.read(_PIECE):
                self.budget.total += len(piece)
                if self.budget.total > self.budget.limit:
                    raise self.refuse(f"makes it unpack to more than {self.budget.limit} bytes")
                file.write(piece)

    def _refuse_lookalike(self, path: str) -> None:
        """Two names that differ in case or in how accents are written are one file on some disks: refused on all."""
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        other = self.folded.setdefault(key, path)
        if other != path:
            raise self.refuse(f"differs from {other!r} only in case or in how its accents are written")

    def _count(self) -> None:
        self.budget.members += 1
        if self.budget.members > MAX_MEMBERS:
            raise self.refuse(f"is one of more than {MAX_MEMBERS}")

    def _expect(self, size: int) -> None:
        if self.budget.total + size > self.budget.limit:
            raise self.refuse(f"makes it unpack to more than {self.budget.limit} bytes")
        if size > _PIECE:
            self.need(size)

    def need(self, size: int) -> None:
        """Refuse now what the disk can't take."""
        free = shutil.disk_usage(self.folder).free
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


# --- zip --------------------------------------------------------------------------------------------------------------


def _unpack_zip(archive: Path, writer: _Writer, names: str | None) -> None:
    with zipfile.ZipFile(archive) as file:
        members = [(_zip_name(member, writer, names), member) for member in file.infolist()]
        for name, member in members:  # all names and sizes first: a refusal then has written nothing at all
            _check_zip_member(writer, name, member)
        total = sum(member.file_size for _, member in members)
        if members and writer.budget.total + total > writer.budget.limit:
            raise writer.refuse(f"is one of {len(members)} that unpack to {total} bytes")
        writer.need(total)
        for name, member in members:
            if not member.file_size and name.endswith(("/", "\\")):
                writer.add_folder(name.replace("\\", "/"))
            else:
                with file.open(member) as content:
                    writer.add_file(name, member.file_size, content)


def _check_zip_member(writer: _Writer, name: str, member: zipfile.ZipInfo) -> None:
    writer.begin(name)
    kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == 3 else 0
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise writer.refuse("is a link or a device")
    if member.flag_bits & 1:
        raise writer.refuse("is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        method = _METHODS.get(member.compress_type, f"number {member.compress_type}")
        other = Path(without_ending(str(writer.archive)))
        raise DataError(
            "unsupported",
            f"{writer.archive.name}: its member {writer.shown()!r} is packed by a method not read here ({method}).",
            step="unpack",
            hint=f"{by_hand(writer.archive, other, 'method')}        then give the folder:  --from {other}",
        )


def _zip_name(member: zipfile.ZipInfo, writer: _Writer, names: str | None) -> str:
    """The member's name. Many programs write UTF-8 without saying so, which would then be read as code page 437.

    Tried in this order: the archive's own word for it (the UTF-8 flag, or the field for Unicode names), the card's
    `names`, UTF-8, code page 437. `orig_filename`, because `filename` ends at a NUL and so can hide what follows.
    """
    name = member.orig_filename
    if member.flag_bits & 0x800 or name.isascii():
        return name
    raw = name.encode("cp437")
    declared = _unicode_field(member.extra, raw)
    if declared is not None:
        return declared
    for encoding in (names,) if names else ("utf-8", "cp437"):
        try:
            return raw.decode(encoding)
        except UnicodeError:
            writer.member = name
    raise writer.refuse(f"has a name that is not {names}", "Correct `names` of the card's source.")


def _unicode_field(extra: bytes, raw: bytes) -> str | None:
    """The name in a zip's extra field 0x7075, if it is there and was made for this very name."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == 0x7075 and len(field) > 5 and field[0] == 1 and field[1:5] == struct.pack("<I", zlib.crc32(raw)):
            return field[5:].decode("utf-8")
    return None


# --- tar --------------------------------------------------------------------------------------------------------------


def _unpack_tar(archive: Path, writer: _Writer, names: str | None) -> None:
    with _open_tar(archive, names) as file:
        while (member := file.next()) is not None:
            file.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all: memory for nothing
            writer.member = member.name
            if member.size < 0:  # by an extended header; the next member would be looked for before this one
                raise writer.refuse("has a negative size")
            if member.isdir():
                writer.add_folder(member.name)
                continue
            content = file.extractfile(member) if member.isreg() else None
            if content is None:
                raise writer.refuse("is a link or a device")
            with content:
                writer.add_file(member.name, member.size, content)
