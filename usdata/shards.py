"""Tar shards in WebDataset form: `<sample_id>.json`, `<sample_id>.mask.png` where there is a mask, `<sample_id>.png`.

Headers carry no time, owner or host, so the same samples give the same bytes. Members of a sample stand together, in
alphabetical order, as webdataset's own writer would put them; plain `webdataset` and `tarfile` read them.
(Written with `tarfile` headers rather than webdataset's TarWriter, whose import pulls torch into every ingest worker.)
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import xxhash

from usdata.errors import LakeError
from usdata.schema import row_json

MAX_SAMPLES = 1000  # samples in one shard
BLOCK = 512  # tar pads every member to whole blocks
END = bytes(2 * BLOCK)
SUFFIXES = (".mask.png", ".json", ".png")
_NAME, _DIGITS = 100, 12  # bytes of a tar header's fields for name and size


def _blank() -> tuple[bytes, bytes, bytes]:
    """What stands in every header of ours between name and size, size and checksum, and after the checksum."""
    info = tarfile.TarInfo()
    info.mode, info.mtime = 0o444, 0
    whole = info.tobuf(tarfile.USTAR_FORMAT)
    return whole[100:124], whole[136:148], whole[156:]


_OWNER, _TIME, _REST = _blank()
_SUM = sum(_OWNER) + sum(_TIME) + sum(_REST) + 8 * ord(" ")  # the checksum's own field counts as blanks


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a shard: its sample, its kind (`json`, `mask.png` or `png`) and where its bytes are."""

    key: str
    kind: str
    offset: int
    size: int


class ShardWriter:
    """Appends samples to an open binary file; `digest` and `size` describe what was written so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._xxh = xxhash.xxh3_128()
        self.size = 0
        self.samples = 0

    def add(self, row: dict[str, Any], image: bytes, mask: bytes | None) -> dict[str, int | None]:
        """Write one sample and give its location columns: offset, size, mask_offset, mask_size, json_offset."""
        key = row["sample_id"]
        json_offset, _ = self._member(f"{key}.json", row_json(row))
        mask_offset, mask_size = self._member(f"{key}.mask.png", mask) if mask is not None else (None, None)
        offset, size = self._member(f"{key}.png", image)
        self.samples += 1
        return {
            "offset": offset,
            "size": size,
            "mask_offset": mask_offset,
            "mask_size": mask_size,
            "json_offset": json_offset,
        }

    def close(self) -> None:
        """Write the end of the archive; the file itself stays open."""
        self._write(END)

    @property
    def digest(self) -> str:
        """xxh3_128 of all bytes written, 32 hex digits."""
        return self._xxh.hexdigest()

    def _member(self, name: str, data: bytes) -> tuple[int, int]:
        self._write(header(name.encode(), len(data)))
        offset = self.size
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return offset, len(data)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._xxh.update(data)
        self.size += len(data)


def header(name: bytes, size: int) -> bytes:
    """The 512 bytes that stand before a member: what `tarfile` writes for it, ten times faster.

    Raises:
        ValueError: a name longer than 100 bytes, or a size of 8 GiB or more.
    """
    digits = b"%011o\0" % size
    if len(name) > _NAME or len(digits) > _DIGITS:
        raise ValueError(f"no room in a tar header for the name {name!r} and {size} bytes")
    checksum = b"%06o\0 " % (_SUM + sum(name) + sum(digits))
    return b"".join((name.ljust(_NAME, b"\0"), _OWNER, digits, _TIME, checksum, _REST))


def members(path: Path) -> Iterator[Member]:
    """The members of a shard in their order.

    Raises:
        LakeError: not a tar file, cut short, or a member that is no part of a sample.
    """
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                suffix = next((s for s in SUFFIXES if info.name.endswith(s)), None)
                if suffix is None or not info.isfile():
                    raise LakeError(f"{path}: unexpected member {info.name!r}.", step="verify")
                if info.offset_data + info.size > size:
                    raise LakeError(f"{path}: cut short inside {info.name!r}.", step="verify")
                yield Member(info.name.removesuffix(suffix), suffix[1:], info.offset_data, info.size)
    except tarfile.TarError as error:
        raise LakeError(f"{path}: not a readable tar file ({error}).", step="verify") from error


def read_rows(path: Path, name: str) -> list[dict[str, Any]]:
    """The catalog rows of a shard, rebuilt from its JSON members and the places of the others.

    Args:
        path: the shard's file.
        name: what the `shard` column says, the path below the lake's root.

    Raises:
        LakeError: the shard is damaged or a sample lacks its image or its JSON.
    """
    rows: dict[str, dict[str, Any]] = {}
    with path.open("rb") as file:
        for member in members(path):
            row = rows.setdefault(member.key, {"shard": name})
            if member.kind == "json":
                file.seek(member.offset)
                row |= _json_row(file.read(member.size), path, member.key) | {"json_offset": member.offset}
            elif member.kind == "png":
                row |= {"offset": member.offset, "size": member.size}
            else:
                row |= {"mask_offset": member.offset, "mask_size": member.size}
    for key, row in rows.items():
        if "json_offset" not in row or "offset" not in row or row.get("sample_id") != key:
            raise LakeError(f"{path}: sample {key!r} is not whole.", step="verify")
    return list(rows.values())


def _json_row(text: bytes, path: Path, key: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise LakeError(f"{path}: the JSON of sample {key!r} is damaged ({error}).", step="verify") from error
    if not isinstance(row, dict):
        raise LakeError(f"{path}: the JSON of sample {key!r} holds no row.", step="verify")
    return row
