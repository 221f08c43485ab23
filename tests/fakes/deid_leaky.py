"""A pretended ingest that leaks in one chosen way: what the bench must catch, or it is worth nothing.

`pretend` writes a small lake and private area that are clean, then lets one secret out; `LEAKS` says how.
"""

import base64
import gzip
import hashlib
import io
import sqlite3
import tarfile
import urllib.parse
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from fakes.deid_media import chunk
from fakes.deid_run import SITE, Run, Watch, World
from fakes.deid_secrets import Secret

from usdata import png
from usdata.schema import table_of
from usdata.shards import ShardWriter


@dataclass(slots=True)
class Pretence:
    """What a run would have made, before it is written: a leak changes it."""

    secret: Secret
    source: bytes  # the bytes of the source file
    key: bytes
    row: dict[str, Any]
    png: bytes
    audit: bytes = b'{"run": "0123456789abcdef0123456789abcdef", "accepted": 1}\n'
    stdout: bytes = b'{"samples": 1}\n'
    stderr: bytes = b""
    told: bytes = b"usdata ingest private --from /data"
    schema: dict[bytes, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # further files, below the world's folder
    links: dict[str, str] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)  # of the tar's member
    member: str | None = None

    @property
    def text(self) -> str:
        return self.secret.texts[0]


def pretend(world: World, secret: Secret, source: bytes, leak: str | None) -> Run:
    """Write a run's outputs with one leak of LEAKS, or none; the run as the harness would give it."""
    image = np.full((1, 256, 256), 90, np.uint8)
    row = {
        "sample_id": f"{SITE}-0123456789abcdef",
        "dataset": SITE,
        "source_id": hashlib.sha256(b"keyed").hexdigest()[:32],
        "patient": hashlib.sha256(b"keyed too").hexdigest()[:32],
        "organ": "liver",
        "study_date": "2014-05-06",
    }
    made = Pretence(secret, source, world.key_bytes(), row, png.encode(image)[0].tobytes())
    if leak is not None:
        LEAKS[leak](made)
    _write(world, made)
    return Run(world, 0, made.stdout, made.stderr, Watch({made.told}), 1.0)


def _write(world: World, made: Pretence) -> None:
    shard = world.lake / "shards" / SITE / f"{SITE}-liver-000000.tar"
    shard.parent.mkdir(parents=True)
    with shard.open("wb") as file:
        writer = ShardWriter(file)
        writer.add(made.row, made.png, None)
        writer.close()
    if made.header or made.member:
        with tarfile.open(shard, "w") as tar:
            info = tarfile.TarInfo(made.member or f"{made.row['sample_id']}.png")
            info.size = len(made.png)
            for name, value in made.header.items():
                setattr(info, name, value)
            tar.addfile(info, io.BytesIO(made.png))
    part = world.lake / "catalog" / "samples" / f"{SITE}.parquet"
    part.parent.mkdir(parents=True)
    table = table_of([made.row])
    pq.write_table(table.replace_schema_metadata(made.schema or None), part, compression="zstd")
    with duckdb.connect(str(world.lake / "catalog.duckdb")) as base:
        base.execute("create view samples as select 1 as one")
    (world.area / "audit.jsonl").write_bytes(made.audit)
    for name, content in made.files.items():
        path = world.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, target in made.links.items():
        (world.root / name).symlink_to(target)


def _row(**values: Callable[[Pretence], Any]) -> Callable[[Pretence], None]:
    return lambda made: made.row.update({key: value(made) for key, value in values.items()})


def _audit(form: Callable[[bytes], bytes]) -> Callable[[Pretence], None]:
    def leak(made: Pretence) -> None:
        made.audit += b'{"note": "' + form(made.text.encode()) + b'"}\n'

    return leak


def _printed(stream: str, form: Callable[[Pretence], bytes]) -> Callable[[Pretence], None]:
    return lambda made: setattr(made, stream, getattr(made, stream) + form(made))


def _file(name: str, form: Callable[[Pretence], bytes]) -> Callable[[Pretence], None]:
    return lambda made: made.files.update({name: form(made)})


def _png(change: Callable[[bytes, bytes], bytes]) -> Callable[[Pretence], None]:
    return lambda made: setattr(made, "png", change(made.png, made.text.encode()))


def _pixels(file: bytes, text: bytes) -> bytes:
    """The secret as grey levels of the stored picture."""
    image = np.full((1, 256, 256), 90, np.uint8)
    image[0, 100, 20 : 20 + len(text)] = np.frombuffer(text, np.uint8)
    return png.encode(image)[0].tobytes()


def _header(**values: Callable[[str], Any]) -> Callable[[Pretence], None]:
    return lambda made: made.header.update({key: value(made.text) for key, value in values.items()})


def _duckdb_table(made: Pretence) -> bytes:
    path = Path("/dev/shm") / f"deid-{xxhash.xxh3_64_hexdigest(made.text.encode())}.duckdb"
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as base:
        base.execute("create table t as select ? as a", [base64.b64encode(f"x{made.text}".encode()).decode()])
    content = path.read_bytes()
    path.unlink()
    return content


def _sqlite(made: Pretence) -> bytes:
    base = sqlite3.connect(":memory:")
    base.execute("create table logs (message blob)")
    base.execute("insert into logs values (?)", [gzip.compress(f"could not parse {made.text}".encode())])
    base.commit()
    return base.serialize()


def _parquet(made: Pretence) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"detail": [f"could not parse {made.text.upper()}"] * 3}), buffer, compression="zstd")
    return buffer.getvalue()


LEAKS: dict[str, Callable[[Pretence], None]] = {
    "text in a cell": _row(organ_raw=lambda m: f"seen by {m.text}"),
    "capitals in a cell": _row(view=lambda m: m.text.upper()),
    "base64 in a cell": _row(site=lambda m: base64.b64encode(f"..{m.text}!".encode()).decode()),
    "md5 as pseudonym": _row(patient=lambda m: hashlib.md5(m.text.encode()).hexdigest()),
    "sha256, cut, as pseudonym": _row(patient=lambda m: hashlib.sha256(m.text.encode()).hexdigest()[:32]),
    "xxh3 as pseudonym": _row(clip=lambda m: xxhash.xxh3_128_hexdigest(m.text.encode())),
    "xxh64 of the source": _row(source_xxh=lambda m: xxhash.xxh64_hexdigest(m.source)),
    "xxh3 of the source": _row(source_xxh=lambda m: xxhash.xxh3_128_hexdigest(m.source)),
    "sha1 of the source": _row(study=lambda m: hashlib.sha1(m.source).hexdigest()),
    "JSON escapes in the audit": _audit(lambda t: b"".join(b"\\u%04x" % c for c in t)),
    "hex in the audit": _audit(lambda t: t.hex().encode()),
    "reversed in the audit": _audit(lambda t: t[::-1]),
    "text on stdout": _printed("stdout", lambda m: m.text.encode()),
    "percent on stdout": _printed("stdout", lambda m: urllib.parse.quote(f"/data/{m.text}").encode()),
    "repr on stderr": _printed("stderr", lambda m: f"invalid value {m.text!r}".encode()),
    "UTF-16 on stderr": _printed("stderr", lambda m: m.text.encode("utf-16-be")),
    "text among the arguments": _printed("told", lambda m: m.text.encode()),
    "UTF-32 in a file": _file("area/cache.bin", lambda m: bytes(3) + m.text.encode("utf-32-le")),
    "left in the temporary folder": _file("tmp/usdata-1/part", lambda m: m.source),
    "gzip in the home": _file("home/.cache/x.gz", lambda m: gzip.compress(m.text.encode())),
    "name of a file": lambda m: m.files.update({f"area/{m.text}.png": b"x"}),
    "target of a link": lambda m: m.links.update({"area/last": f"/data/{m.text}/1.dcm"}),
    "table of DuckDB": _file("lake/x.duckdb", _duckdb_table),
    "packed blob in SQLite": _file("home/.prefect/prefect.db", _sqlite),
    "a quarantine's detail": _file("lake/quarantine/x.parquet", _parquet),
    "metadata of Parquet": lambda m: m.schema.update({b"origin": m.text.encode()}),
    "tEXt of a PNG": _png(lambda file, text: file[:33] + chunk(b"tEXt", b"a\0" + text) + file[33:]),
    "zTXt of a PNG": _png(lambda file, text: file[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(text)) + file[33:]),
    "behind IEND": _png(lambda file, text: file + text),
    "pixels": _png(_pixels),
    "tar's uname": _header(uname=lambda t: t),
    "tar's PAX header": _header(pax_headers=lambda t: {"comment": t}),
    "tar's member": lambda m: setattr(m, "member", f"{m.text}.png"),
    "the key, raw": _file("area/state", lambda m: b"x" + m.key),
    "the key, hex": _printed("stdout", lambda m: m.key.hex().encode()),
    "the key, base64": _file("lake/manifests/k.json", lambda m: base64.b64encode(m.key)),
}
ODD_FORMS: dict[str, Callable[[Pretence], None]] = {
    "a time in the tar": _header(mtime=lambda t: 1_600_000_000),
    "an owner in the tar": _header(uid=lambda t: 1000),
    "a pHYs chunk": _png(lambda file, text: file[:33] + chunk(b"pHYs", bytes(9)) + file[33:]),
    "a name by hand": lambda m: setattr(m, "member", "image1.png"),
}
LEAKS |= ODD_FORMS
