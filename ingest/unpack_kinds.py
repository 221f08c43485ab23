"""What a file that was meant to be an archive is instead, and what to type to unpack it by hand."""

import re
import shlex
from pathlib import Path

HEAD = 1024  # bytes that `kind_of` looks at
# Endings of what is unpacked; .xlsx, .npz and .docx are zip archives too, and stay as they are.
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
FOREIGN = (".7z", ".rar", ".tar.zst", ".zst", ".001", ".z01")  # archives that are not read here
_MAGIC = (
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"PK\x07\x08PK\x03\x04", "split zip"),
    (b"PK", "cut zip"),  # asked only of what is no whole zip
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"\x1f\x8b", "gz"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"version https://git-lfs.github.com/spec/", "lfs"),
)
_READ = ".zip, .tar, .tar.gz, .tar.bz2 or .tar.xz"
_WEB = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|script|body)\b", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]*>\s*([^<]{1,120})", re.IGNORECASE)
_WORDS = {
    "empty": "is empty",
    "7z": "is a 7z archive, which is not read here",
    "rar": "is a rar archive, which is not read here",
    "split zip": "is one volume of a zip archive in several files",
    "cut zip": "begins as a zip archive and has no end: it is cut, or the first of several volumes",
    "zst": "is compressed by zstd, which is not read here",
    "gz": "is one file compressed by gzip, or a damaged .tar.gz, not a whole archive",
    "bz2": "is one file compressed by bzip2, or a damaged .tar.bz2, not a whole archive",
    "xz": "is one file compressed by xz, or a damaged .tar.xz, not a whole archive",
    "lfs": "is a pointer of Git LFS, not the file itself",
    "web": "is a web page, not an archive",
}


def kind_of(head: bytes) -> str | None:
    """A key of what no whole zip or tar archive is, by its first bytes: 7z, rar, web, lfs, ...; None: unknown."""
    if not head:
        return "empty"
    if _WEB.match(head):
        return "web"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def title_of(head: bytes) -> str:
    """The title of a web page that begins so, as printable text; empty if there is none."""
    found = _TITLE.search(head)
    text = " ".join(found[1].decode("utf-8", "replace").split()) if found else ""
    return "".join(c for c in text if c.isprintable())


def read_head(path: Path) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(HEAD)


def words_of(kind: str | None) -> str:
    """`NAME ...`: what is wrong with such a file, for a message."""
    return _WORDS.get(kind or "", f"is no folder and no archive that is read here ({_READ})")


def by_hand(path: Path, folder: Path, kind: str | None) -> str | None:
    """The shell command that unpacks `path` into `folder` with another program; None where none would help."""
    archive, place = shlex.quote(str(path)), shlex.quote(str(folder))
    if kind == "rar":
        return f"mkdir -p {place} && unrar x {archive} {place}/"
    if kind == "zst":
        return f"mkdir -p {place} && tar --zstd -xf {archive} -C {place}"
    if kind in ("7z", "split zip", "method"):
        return f"7z x {archive} -o{place}"
    if kind == "lfs":
        return "git lfs pull"
    return None


def is_archive_name(name: str) -> bool:
    """Whether a file of this name is to be unpacked when a card does not say so."""
    return name.lower().endswith(ENDINGS + FOREIGN)


def without_ending(path: str) -> str:
    """`a/b.tar.gz` -> `a/b`: the folder into which an archive inside an archive is unpacked."""
    lower = path.lower()
    ending = max((e for e in ENDINGS + FOREIGN if lower.endswith(e)), key=len, default="")
    return path[: len(path) - len(ending)] if ending else f"{path}.d"
