"""A split as a file that can be published: CSV of sample_id, group, split, under lines that say how it was made.

# usdata split 1
# seed: usdata
# ratios: train=0.8,val=0.1,test=0.1
# ...
# sha256: of the data lines, sorted, each ended by a newline
sample_id,group,split
busi-0f3c…,image:busi-0f3c…,train

Reading takes any CSV with columns sample_id and split; if it has a sha256, that must be right.
"""

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import xxhash

from usdata.errors import ConfigError, describe
from usdata.files import explain_os_errors, file_xxh, replacing
from usdata.lake import Lake

FIRST_LINE = "usdata split 1"
_ROWS = 100_000  # made into lines at a time
_HEAD = 1 << 16  # bytes that the lines of the head may have


@dataclass(frozen=True)
class SplitFile:
    """What a file of splits says."""

    path: Path
    head: dict[str, str]
    ids: pa.StringArray  # (n,) no two alike
    words: pa.StringArray  # (n,) null: in no split


def write_split_file(path: Path, table: pa.Table, head: Mapping[str, str], overwrite: bool = False) -> str:
    """Write a split whole or not at all; the same split gives the same bytes.

    Args:
        table: sample_id, group, split; rows without a split are left away.
        head: what stands above the data, in this order.
        overwrite: replace a file that is there.

    Returns:
        The SHA-256 of the sorted data lines, 64 hex digits, which stands in the head, too.

    Raises:
        ConfigError: the file is there.
        LakeError: it can't be written.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} is there already.", step="export", hint="Replace it with --overwrite.")
    lines = _sorted_lines(table)
    digest = hashlib.sha256()
    for piece in _pieces(lines):
        digest.update(piece)
    shown = [FIRST_LINE, *(f"{key}: {value}" for key, value in head.items()), f"sha256: {digest.hexdigest()}"]
    with explain_os_errors(path, step="export", elsewhere="with --export FILE"), replacing(path) as file:
        file.write("".join(f"# {line}\n" for line in shown).encode())
        file.write(b"sample_id,group,split\n")
        file.writelines(_pieces(lines))
    return digest.hexdigest()


def _sorted_lines(table: pa.Table) -> pa.ChunkedArray:
    """The lines of data by their bytes, without line ends; a group's name loses its control characters."""
    table = table.filter(pc.is_valid(table["split"]))
    comma, mark, empty = (pa.scalar(text, pa.large_string()) for text in (",", '"', ""))
    cells = []
    for name in ("sample_id", "group", "split"):
        text = pc.replace_substring_regex(table[name].cast(pa.large_string()), r"[\x00-\x1f\x7f]", "?")
        in_quotes = pc.binary_join_element_wise(mark, pc.replace_substring(text, '"', '""'), mark, empty)
        cells.append(pc.if_else(pc.match_substring_regex(text, '[,"]'), in_quotes, text))
    lines = pc.binary_join_element_wise(*cells, comma)
    return lines.take(pc.sort_indices(lines))


def _pieces(lines: pa.ChunkedArray) -> Iterator[bytes]:
    for start in range(0, len(lines), _ROWS):
        yield "".join(f"{line}\n" for line in lines.slice(start, _ROWS).to_pylist()).encode()


def catalog_fingerprint(lake: Lake) -> str:
    """xxh3_128 of the hashes of all parts of the catalog and of the table of duplicates."""
    duplicates = lake.root / "catalog" / "duplicates.parquet"
    files = [*lake.catalog_files(), *([duplicates] if duplicates.exists() else [])]
    return xxhash.xxh3_128_hexdigest("".join(map(file_xxh, files)).encode())


def read_split_file(path: Path) -> SplitFile:
    """A published split, or any CSV with columns sample_id and split.

    Raises:
        ConfigError: not there, not such a file, a sample in it twice, or its lines are not those of its sha256.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Can't read {path}: {error.strerror}.", step="split", hint=_FORM) from error
    head, start = _read_head(path, content)
    if "sha256" in head:
        _check_digest(path, content, start, head["sha256"])
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    types = pyarrow.csv.ConvertOptions(
        column_types={"sample_id": pa.string(), "split": pa.string()},
        include_columns=["sample_id", "split"],
        null_values=[""],
        strings_can_be_null=True,
    )
    try:
        source = pa.BufferReader(pa.py_buffer(content).slice(start))
        _check_names(path, content, start)
        table = pyarrow.csv.read_csv(source, parse_options=options, convert_options=types).combine_chunks()
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as a split ({describe(error)}).", step="split", hint=_FORM) from error
    columns = [pa.concat_arrays([pa.array([], pa.string()), *table[name].chunks]) for name in ("sample_id", "split")]
    ids, words = (pc.utf8_trim_whitespace(column) for column in columns)
    words = pc.if_else(pc.equal(words, ""), None, words)
    for column in (ids, words):  # a quote that is never closed swallows the lines behind it
        if pc.any(pc.match_substring_regex(column, r"[\x00-\x1f]")).as_py():
            raise ConfigError(f"{path} has a sample_id or split with a line end in it.", step="split", hint=_FORM)
    if ids.null_count:
        raise ConfigError(f"{path} has a line without a sample_id.", step="split", hint=_FORM)
    counts = ids.value_counts()
    if len(counts) < len(ids):
        twice = next(one["values"].as_py() for one in counts if one["counts"].as_py() > 1)
        raise ConfigError(f"{path} names the sample {twice!r} twice.", step="split")
    return SplitFile(path, head, ids, words)


_FORM = "It is a CSV with the columns sample_id and split, such as:  usdata split --export FILE.csv"


def _read_head(path: Path, content: bytes) -> tuple[dict[str, str], int]:
    """The `# key: value` lines and the place of the first byte behind them."""
    head, start = dict[str, str](), 3 if content.startswith(b"\xef\xbb\xbf") else 0
    while content[start : start + 1] == b"#":
        end = content.find(b"\n", start, start + _HEAD)
        if end < 0:
            raise ConfigError(f"{path} has no lines of data.", step="split", hint=_FORM)
        key, colon, value = content[start + 1 : end].decode("utf-8", "replace").strip().partition(":")
        if colon:
            head[key.strip()] = value.strip()
        start = end + 1
    return head, start


def _check_names(path: Path, content: bytes, start: int) -> None:
    """Refuse a column that is named twice: only the first one would be read."""
    line = re.split(rb"[\r\n]", content[start : start + _HEAD], maxsplit=1)[0].decode("utf-8", "replace")
    names = next(csv.reader([line]), [])
    for name in ("sample_id", "split"):
        if names.count(name) > 1:
            raise ConfigError(f"{path} has two columns {name}.", step="split", hint=_FORM)


def _check_digest(path: Path, content: bytes, start: int, wanted: str) -> None:
    body = memoryview(content)[content.find(b"\n", start) + 1 :]
    if hashlib.sha256(body).hexdigest() == wanted:  # sorted, as it was written
        return
    if hashlib.sha256(b"".join(sorted(bytes(body).splitlines(keepends=True)))).hexdigest() != wanted:
        raise ConfigError(
            f"{path} is not as it was published: its lines do not have the sha256 in its head.",
            step="split",
            hint="Take the original; or, if the change is wanted, remove the line that begins with '# sha256'.",
        )
