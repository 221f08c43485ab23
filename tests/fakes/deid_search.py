"""Search everything that a run wrote or printed for planted secrets.

`artifacts` opens each file as far as it goes: raw bytes, tar headers and members, Parquet and DuckDB and SQLite cells,
inflated streams, zip members. `Needles.search` then looks through all of it for thousands of forms at once: the first
four bytes of every position are looked up in a table of bits (numpy), and only what is left is compared.
"""

import gzip
import io
import json
import os
import re
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import duckdb
import numpy as np
import pyarrow.parquet as pq
from fakes.deid_secrets import SHORTEST, Secret, packed_numbers, shapes
from numpy.typing import NDArray

_BITS = 22
_KEYED = frozenset({"source_id", "source_xxh", "sample_id", "patient", "study", "clip", "pixel_xxh", "phash"})
_KEYED |= {"offset", "size", "json_offset", "mask_offset", "mask_size", "catalog_xxh", "quarantine_xxh"}


@dataclass(frozen=True, slots=True)
class Artifact:
    """Some bytes of the output. In a `text` nothing random stands, so that short secrets can be looked for too."""

    where: str
    data: bytes
    text: bool = False


@dataclass(frozen=True, slots=True)
class Leak:
    """A secret that came out."""

    place: str  # where it was planted
    where: str  # in which artifact it was found
    how: str  # in what form

    def __str__(self) -> str:
        return f"{self.place} -> {self.where} ({self.how})"


class Needles:
    """All forms of all secrets, ready to be looked for."""

    def __init__(self, secrets: Iterable[Secret], more: Iterable[tuple[bytes, str, str]] = ()) -> None:
        """`more`: further forms as (small-letter bytes, place, how), such as digests of the sources' bytes."""
        self.secrets = list(secrets)
        self._long: dict[bytes, tuple[str, str]] = {}
        self._short: dict[bytes, tuple[str, str]] = {}
        for secret in self.secrets:
            for form, how in shapes(secret):
                self._add(form, secret.place, how)
            for text in secret.texts:
                for form, how in packed_numbers(text):
                    self._add(form, secret.place, how)
        for form, place, how in more:
            self._add(form, place, how)
        by_head: dict[bytes, list[bytes]] = {}
        for form in self._long:
            by_head.setdefault(form[:SHORTEST], []).append(form)
        self._by_head = {head: tuple(forms) for head, forms in by_head.items()}
        heads = np.frombuffer(b"".join(self._by_head), np.uint8).reshape(-1, SHORTEST)
        self._first = _table(_grams(heads.reshape(-1))[::SHORTEST] if len(heads) else np.zeros(0, np.uint32))
        self._second = _table(_grams(heads.reshape(-1))[2::SHORTEST] if len(heads) else np.zeros(0, np.uint32))

    def _add(self, form: bytes, place: str, how: str) -> None:
        if len(form) >= SHORTEST:
            self._long.setdefault(form, (place, how))
        elif len(form) >= 3:
            self._short.setdefault(form, (place, how))

    def search(self, artifacts: Iterable[Artifact]) -> list[Leak]:
        """Leaks in all artifacts, each place, artifact and form once."""
        found: dict[Leak, None] = {}
        for artifact in artifacts:
            for place, how in self.in_bytes(artifact.data, artifact.text):
                found[Leak(place, artifact.where, how)] = None
        return list(found)

    def in_bytes(self, data: bytes, text: bool = False) -> list[tuple[str, str]]:
        """(place, how) of the secrets in some bytes, any case of ASCII letters."""
        low = data.lower()
        found: dict[tuple[str, str], None] = {}
        for start in range(0, len(low), 1 << 24):  # pieces overlap by the longest form
            piece = low[start : start + (1 << 24) + 4096]
            for form in self._candidates(piece):
                found[self._long[form]] = None
        if text:
            for form, what in self._short.items():
                if re.search(rb"(?<![0-9a-z.])" + re.escape(form) + rb"(?![0-9a-z])", low):
                    found[what] = None
        return list(found)

    def _candidates(self, piece: bytes) -> Iterator[bytes]:
        if len(piece) < SHORTEST or not self._long:
            return
        grams = _grams(np.frombuffer(piece, np.uint8))
        hits = np.flatnonzero(self._first[_slot(grams)])
        hits = hits[hits + 2 < len(grams)]
        hits = hits[self._second[_slot(grams[hits + 2])]]
        for at in hits.tolist():
            for form in self._by_head.get(piece[at : at + SHORTEST], ()):
                if piece.startswith(form, at):
                    yield form


def _grams(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Four bytes from each position on, as a number; shape (n - 3,)."""
    if len(data) < 4:
        return np.zeros(0, np.uint32)
    wide = data.astype(np.uint32)
    return wide[:-3] | wide[1:-2] << np.uint32(8) | wide[2:-1] << np.uint32(16) | wide[3:] << np.uint32(24)


def _slot(grams: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return (grams * np.uint32(2654435761)) >> np.uint32(32 - _BITS)


def _table(grams: NDArray[np.uint32]) -> NDArray[np.bool_]:
    table = np.zeros(1 << _BITS, np.bool_)
    table[_slot(grams)] = True
    return table


# --- what there is to look through ----------------------------------------------------------------------------------


def artifacts(root: Path, label: str = "") -> Iterator[Artifact]:
    """Everything below a folder (or one file), opened as far as it goes, names and links included."""
    label = label or root.name
    paths = [root] if root.is_file() else sorted(root.rglob("*"))
    for path in paths:
        inside = os.fsencode(path.relative_to(root)) if path != root else b""
        where = f"{label}/{inside.decode('utf-8', 'backslashreplace')}"
        yield Artifact(f"{where}: its name", inside, text=not _hexed(inside))
        if path.is_symlink():
            yield Artifact(f"{where}: link", os.fsencode(path.readlink()), text=True)
        elif path.is_file():
            for name in os.listxattr(path):
                yield Artifact(f"{where}: attribute", name.encode() + b" " + os.getxattr(path, name), text=True)
            yield from opened(where, path.read_bytes(), path)


def _hexed(name: bytes) -> bool:
    return bool(re.search(rb"[0-9a-f]{12}", name))


def opened(where: str, data: bytes, path: Path | None = None, depth: int = 0) -> Iterator[Artifact]:
    """Some bytes, and what is inside them, to three levels."""
    yield Artifact(where, data, text=_is_plain(data))
    if depth > 3:
        return
    if data[:4] == b"PAR1":
        yield from _parquet(where, data)
    elif data[8:12] == b"DUCK" and path is not None:
        yield from _duckdb(where, path)
    elif data[:15] == b"SQLite format 3" and path is not None:
        yield from _sqlite(where, path)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        yield from _png(where, data, depth)
    elif data[:2] == b"\x1f\x8b":
        yield from _inflated(where, data, depth)
    elif data[:4] == b"PK\x03\x04":
        yield from _zip(where, data, depth)
    elif data[257:262] == b"ustar":
        yield from _tar(where, data, depth)
    elif data[:1] in (b"{", b"["):
        yield from _json(where, data)


def _is_plain(data: bytes) -> bool:
    """Text without long hexadecimal words: short secrets cannot stand there by chance."""
    if len(data) > 1 << 22 or b"\0" in data[:4096]:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return not re.search(rb"[0-9a-fA-F]{16}", data)


def _parquet(where: str, data: bytes) -> Iterator[Artifact]:
    table = pq.read_table(io.BytesIO(data))
    yield Artifact(f"{where}: schema", str(table.schema).encode() + repr(table.schema.metadata).encode())
    for name in table.column_names:
        cells = table.column(name).to_pylist()
        yield from _cells(f"{where}: column {name}", name, cells)


def _cells(where: str, name: str, cells: list[Any]) -> Iterator[Artifact]:
    joined = "\n".join(str(cell) for cell in cells if cell is not None)
    yield Artifact(where, joined.encode("utf-8", "surrogatepass"), text=name not in _KEYED)


def _duckdb(where: str, path: Path) -> Iterator[Artifact]:
    with duckdb.connect(str(path), read_only=True) as base:
        listed = base.sql("select table_name from information_schema.tables").fetchall()
        for view in base.sql("select sql from duckdb_views() where not internal").fetchall():
            yield Artifact(f"{where}: view", str(view[0]).encode())
        for (name,) in listed:
            try:
                rows = base.sql(f'select * from "{name}"')
            except duckdb.Error:  # a view of files that are not there: its text was looked at above
                continue
            columns, content = rows.columns, rows.fetchall()
            for at, column in enumerate(columns):
                yield from _cells(f"{where}: {name}.{column}", column, [row[at] for row in content])


def _sqlite(where: str, path: Path) -> Iterator[Artifact]:
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        for (name,) in base.execute("select name from sqlite_master where type = 'table'").fetchall():
            rows = base.execute(f'select * from "{name}"').fetchall()
            yield Artifact(f"{where}: table {name}", "\n".join(map(repr, rows)).encode("utf-8", "backslashreplace"))
            for row in rows:
                for cell in row:
                    if isinstance(cell, bytes):
                        yield from opened(f"{where}: table {name}", cell, depth=2)
    finally:
        base.close()


def _png(where: str, data: bytes, depth: int) -> Iterator[Artifact]:
    pixels = b""
    for kind, body in png_chunks(data):
        if kind == b"IDAT":
            pixels += body
        elif kind in (b"zTXt", b"iCCP", b"iTXt"):
            for at in range(1, min(len(body), 200)):
                if body[at : at + 1] == b"\x78":
                    yield from _inflate_all(f"{where}: {kind.decode()}", body[at:], depth)
        elif body:
            yield Artifact(f"{where}: chunk {kind.decode('latin-1')}", body)
    yield from _inflate_all(f"{where}: pixels", pixels, depth)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    for channel in [] if decoded is None else np.atleast_3d(decoded).transpose(2, 0, 1):
        yield Artifact(f"{where}: grey levels", channel.tobytes())


def _inflate_all(where: str, data: bytes, depth: int) -> Iterator[Artifact]:
    inflater = zlib.decompressobj()
    try:
        yield Artifact(where, inflater.decompress(data, 1 << 27))
        yield Artifact(f"{where}, after its end", inflater.unused_data)
    except zlib.error:
        return


def _inflated(where: str, data: bytes, depth: int) -> Iterator[Artifact]:
    try:
        yield from opened(f"{where}: inflated", gzip.decompress(data), depth=depth + 1)
    except (OSError, EOFError, zlib.error):
        return


def _zip(where: str, data: bytes, depth: int) -> Iterator[Artifact]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        yield Artifact(f"{where}: comment", file.comment, text=True)
        for info in file.infolist():
            yield Artifact(f"{where}: member's name", info.filename.encode() + b" " + info.comment, text=True)
            yield from opened(f"{where}: member", file.read(info), depth=depth + 1)


def _tar(where: str, data: bytes, depth: int) -> Iterator[Artifact]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            head = f"{info.uname}\n{info.gname}\n{info.linkname}\n{info.pax_headers}"
            yield Artifact(f"{where}: header of a member", head.encode("utf-8", "surrogateescape"), text=True)
            yield Artifact(f"{where}: name of a member", info.name.encode("utf-8", "surrogateescape"))
            file = tar.extractfile(info)
            if file is not None:
                kind = info.name.rpartition(".")[2]
                yield from opened(f"{where}: a member .{kind}", file.read(), depth=depth + 1)


def _json(where: str, data: bytes) -> Iterator[Artifact]:
    """Its strings without escapes; lines of JSON too. Keyed columns are no text: anything may stand there."""
    for line in data.splitlines() if b"\n{" in data else [data]:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        told: list[str] = []
        _strings(content, told)
        joined = "\n".join(told).encode("utf-8", "surrogatepass")
        yield Artifact(f"{where}: strings", joined, text=True)


def _strings(content: Any, told: list[str]) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            if not re.search("[0-9a-f]{16}", key):
                told.append(key)
            if key not in _KEYED:
                _strings(value, told)
    elif isinstance(content, list):
        for value in content:
            _strings(value, told)
    elif content is not None and not re.fullmatch("[0-9a-f.-]{16,}", str(content)):
        told.append(str(content))


# --- the form of what was written -----------------------------------------------------------------------------------


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of a PNG's chunks; what follows IEND comes as the kind b'tail'."""
    at = 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length
        if kind == b"IEND":
            break
    if data[at:]:
        yield b"tail", data[at:]


def odd_forms(lake: Path) -> list[str]:
    """What is not as it must be: owners and times in tar headers, chunks of PNGs, names of members."""
    odd = []
    for path in sorted(lake.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                where = f"{path.name}: {info.name}"
                if (info.uid, info.gid, info.uname, info.gname, info.mtime) != (0, 0, "", "", 0):
                    odd.append(f"{where}: owner or time in its header")
                if info.pax_headers or info.linkname or not info.isfile():
                    odd.append(f"{where}: more than a plain header")
                if not re.fullmatch(r"[a-z0-9_-]+-[0-9a-f]{16}\.(png|json|mask\.png)", info.name):
                    odd.append(f"{where}: a name that is not keyed")
                content = tar.extractfile(info)
                assert content is not None
                if info.name.endswith(".png"):
                    kinds = [kind for kind, _ in png_chunks(content.read())]
                    if kinds != [b"IHDR", b"IDAT", b"IEND"]:
                        odd.append(f"{where}: chunks {kinds}")
    return odd
