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
_BLOCK = 512  # tar pads every member to whole blocks
_END = bytes(2 * _BLOCK)
_SUFFIXES = (".mask.png", ".json", ".png")


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
        self._write(_END)

    @property
    def digest(self) -> str:
        """xxh3_128 of all bytes written, 32 hex digits."""
        return self._xxh.hexdigest()

    def _member(self, name: str, data: bytes) -> tuple[int, int]:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o444, 0
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        return offset, len(data)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._xxh.update(data)
        self.size += len(data)


def members(path: Path) -> Iterator[Member]:
    """The members of a shard in their order.

    Raises:
        LakeError: not a tar file, cut short, or a member that is no part of a sample.
    """
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                suffix = next((s for s in _SUFFIXES if info.name.endswith(s)), None)
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
                row |= json.loads(file.read(member.size)) | {"json_offset": member.offset}
            elif member.kind == "png":
                row |= {"offset": member.offset, "size": member.size}
            else:
                row |= {"mask_offset": member.offset, "mask_size": member.size}
    for key, row in rows.items():
        if "json_offset" not in row or "offset" not in row or row.get("sample_id") != key:
            raise LakeError(f"{path}: sample {key!r} is not whole.", step="verify")
    return list(rows.values())
