"""What must stand in the JSON beside each image, computed for many catalog rows at once.

`schema.row_json` says what one row's JSON is; a Python call per row would take longer than reading its image.
"""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as pa_json

from usdata.schema import LOCATION_COLUMNS, SAMPLES, plain_type

_PLAIN = r"^[ !#-\[\]-~]*$"  # JSON needs no escapes for these
_PLAIN_SCHEMA = pa.schema([pa.field(f.name, plain_type(f)) for f in SAMPLES])
_NAMES = sorted(set(SAMPLES.names) - set(LOCATION_COLUMNS))


def row_texts(table: pa.Table) -> list[bytes]:
    """`row_json` of every row. A whole number in a column of floats has its `.0`, as Python writes a float.

    Args:
        table: rows with the columns of `SAMPLES`, dictionary coded or not.
    """
    pieces = [_members(name, table[name].combine_chunks()) for name in _NAMES if table[name].null_count < len(table)]
    if not pieces:
        return [b"{}"] * len(table)
    inner = pc.binary_join_element_wise(*pieces, ",", null_handling="skip")
    whole = pc.binary_join_element_wise("{", inner, "}", "")
    return whole.cast(pa.binary()).to_pylist()


def table_of_texts(texts: list[bytes]) -> pa.Table | None:
    """The rows whose `row_json` the texts are; None unless every text is exactly that of its row.

    The location columns are null.
    """
    if not texts:
        return SAMPLES.empty_table().cast(_PLAIN_SCHEMA)
    options = pa_json.ParseOptions(explicit_schema=_PLAIN_SCHEMA, unexpected_field_behavior="error")
    whole = b"\n".join(texts) + b"\n"
    try:
        reading = pa_json.ReadOptions(use_threads=False, block_size=len(whole) + 1)
        table = pa_json.read_json(io.BytesIO(whole), read_options=reading, parse_options=options)
    except pa.ArrowException:
        return None
    return table if len(table) == len(texts) and row_texts(table) == texts else None


def _members(name: str, column: pa.Array) -> pa.Array:
    """`"name":value` of each row; null where the value is."""
    return pc.binary_join_element_wise(f'"{name}":', _values(column), "")


def _values(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.dictionary).take(column.indices)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind):
        coded = column.dictionary_encode()
        return _dumped(coded.dictionary.to_pylist()).take(coded.indices)
    if pa.types.is_list(kind):
        starts = pa.array(column.offsets.to_numpy())  # a copy: those of a slice can't take a mask
        lists = pa.ListArray.from_arrays(starts, _values(column.values), mask=column.is_null())
        return pc.binary_join_element_wise("[", pc.binary_join(lists, ","), "]", "")
    if pa.types.is_string(kind) and pc.all(pc.match_substring_regex(column, _PLAIN)).as_py():
        return pc.binary_join_element_wise('"', column, '"', "")
    return _dumped(column.to_pylist())


def _dumped(values: list[Any]) -> pa.Array:
    texts = [None if v is None else json.dumps(v, ensure_ascii=True, separators=(",", ":")) for v in values]
    return pa.array(texts, pa.string())
