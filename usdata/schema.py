"""The catalog's columns and the closed vocabularies that feed them.

`SAMPLES` is the one definition of a sample's row: the Parquet part, the JSON beside each image in a shard and the SQL
view `samples` all follow it. Unknown values are null, never an empty string or a guessed word.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import pyarrow as pa
import yaml

from usdata.errors import CardError, nearest

FORMAT = 1  # number of the lake's layout on disk; a reader refuses a larger one
IMAGE_SIZE = 256  # pixels per side of every stored image

_word = pa.dictionary(pa.int32(), pa.string())  # few distinct values: stored once
_IDENTITY = [
    ("sample_id", pa.string()),
    ("dataset", _word),
    ("source_id", pa.string()),  # relative path in a public set; a keyed hash for private data
    ("source_xxh", pa.string()),  # xxh3_128 of the source's bytes, 32 hex digits; keyed for private data
    ("pixel_xxh", pa.string()),  # xxh3_128 of the stored 256 x 256 pixels
    ("phash", pa.uint64()),  # 64-bit perceptual hash of the stored pixels
]
_ANATOMY = [(name, _word) for name in ("organ", "organ_group", "organ_raw", "view", "laterality", "mode", "species")]
_ACQUISITION = [
    ("synthetic", pa.bool_()),
    *[(name, _word) for name in ("probe", "probe_raw", "manufacturer", "model", "site")],
    ("pixel_mm_x", pa.float64()),  # of the source image; the stored image's spacing is a derived column of the view
    ("pixel_mm_y", pa.float64()),
    ("depth_mm", pa.float64()),
    ("frequency_mhz", pa.float64()),  # of the transducer
    ("width", pa.int32()),  # of the source image, before the crop
    ("height", pa.int32()),
    ("crop_x0", pa.int32()),  # the part of the source that was kept; x1 and y1 lie one past its last pixel
    ("crop_y0", pa.int32()),
    ("crop_x1", pa.int32()),
    ("crop_y1", pa.int32()),
]
_GROUPING = [
    ("patient", pa.string()),
    ("patient_known", pa.bool_()),  # private data: false where `patient` stands for a study without a patient id
    ("sex", _word),  # male, female, other
    ("age", pa.int32()),  # years; 90 stands for 90 and above
    ("study_date", pa.string()),  # YYYY-MM-DD; private data: shifted by the patient's own secret number of days
    ("study", pa.string()),
    ("clip", pa.string()),
    ("frame", pa.int32()),  # 0-based index in the source
    ("n_frames", pa.int32()),  # frames of the source, not of the lake
    ("fps", pa.float64()),
]
_SUPERVISION = [
    ("label", _word),
    ("labels", pa.string()),  # JSON object of strings: {"a_lines": "yes"}
    ("target", pa.float64()),
    ("targets", pa.string()),  # JSON object of numbers: {"head_circumference_mm": 44.3}
    ("has_mask", pa.bool_()),
    ("mask_classes", pa.list_(pa.string())),  # name of each index in the mask
    # JSON list of {"name", "box": [x0, y0, x1, y1]} and {"name", "points": [[x, y], ...]}, in source pixels before crop
    ("marks", pa.string()),
    ("official_split", _word),
]
_RIGHTS = [(name, _word) for name in ("licence", "commercial_use", "redistribution")]
_DEID = [
    ("deid_profile", _word),  # public, private (strict), or private:<names of relaxed rules>
    ("deid_version", pa.int32()),  # of the rules that cleaned the item; null where nothing was cleaned
    ("mask_source", _word),  # what showed the scan area: regions+fit, fit, template, template+fit
    ("mask_score", pa.float64()),  # share of the fit and the found sector that they have in common, 0 to 1
    ("burned_in", _word),
]
_LOCATION = [
    ("shard", _word),  # path below the lake's root
    ("offset", pa.int64()),  # first byte of the PNG in the shard
    ("size", pa.int64()),
    ("mask_offset", pa.int64()),
    ("mask_size", pa.int64()),
    ("json_offset", pa.int64()),
]
LOCATION_COLUMNS = tuple(name for name, _ in _LOCATION)
SAMPLES = pa.schema(_IDENTITY + _ANATOMY + _ACQUISITION + _GROUPING + _SUPERVISION + _RIGHTS + _DEID + _LOCATION)
QUARANTINE = pa.schema(
    [
        ("dataset", _word),
        ("source_id", pa.string()),
        ("frame", pa.int32()),
        ("stage", _word),  # list, read, mask, join, preprocess
        ("reason", _word),  # a word to count by: unreadable, mask_without_image, ...
        ("detail", pa.string()),  # one sentence for a person; null for private data
    ]
)
SPLITS = pa.schema([("sample_id", pa.string()), ("group", pa.string()), ("split", _word)])
DUPLICATES = pa.schema([("sample_id", pa.string()), ("duplicate_group", pa.string())])
CURATED = ("group", "split", "duplicate_group")  # columns of the view `samples` that come from the two tables above
DERIVED = ("stored_mm_x", "stored_mm_y")  # columns of the view that are computed
DISTINCT = ("sample_id", "pixel_xxh", "phash")  # hardly a value twice: a dictionary would only cost
CLIMBING = ("offset", "mask_offset", "json_offset")  # rising inside a shard: stored by their differences

_VOCABULARIES = {"organ": "organs", "organ_group": "organ_groups", "probe": "probes", "mode": "modes"}


@cache
def taxonomy() -> Mapping[str, Any]:
    """The whole of `taxonomy.yaml`: organs with their groups and published schemes, probes, modes, species."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(files("usdata").joinpath("taxonomy.yaml").read_text("utf-8"), loader)


def vocabulary(kind: str) -> frozenset[str]:
    """The allowed words of `kind`: organ, organ_group, probe, mode or species."""
    return frozenset(taxonomy()[_VOCABULARIES.get(kind, kind)])


def slot_of(scheme: str, organ: str) -> str:
    """The class of an organ in a published scheme (usfm12, tusa, arl16); the organ itself where the scheme has none."""
    return str(taxonomy()["organs"].get(organ, {}).get(scheme) or organ)


def check_word(kind: str, word: str) -> str:
    """`word` as the catalog spells it.

    Raises:
        CardError: not in the vocabulary; the message gives the nearest words.
    """
    words = vocabulary(kind)
    word = taxonomy()["aliases"].get(kind, {}).get(word.lower(), word)
    if word not in words:
        raise CardError(
            f"Unknown {kind} {word!r}.{nearest(word, words)}",
            hint=f"The {len(words)} known words: usdata datasets --vocabulary {kind}",
        )
    return word


def organ_group_of(organ: str) -> str:
    """The coarse group of an organ: `organ_group_of("thyroid") == "neck"`."""
    return taxonomy()["organs"][check_word("organ", organ)]["organ_group"]


def plain_type(field: pa.Field) -> pa.DataType:
    """The type of a column with dictionary coding taken away: what a reader sees."""
    return field.type.value_type if pa.types.is_dictionary(field.type) else field.type


def row_json(row: Mapping[str, Any]) -> bytes:
    """A catalog row as the JSON stored beside its image: known values only, sorted keys, no location.

    The location is left out because it follows from the shard itself; so the catalog can be rebuilt from shards alone.
    """
    kept = {k: v for k, v in row.items() if v is not None and k not in LOCATION_COLUMNS}
    return json.dumps(kept, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()


def table_of(rows: list[dict[str, Any]], schema: pa.Schema = SAMPLES) -> pa.Table:
    """Rows as an Arrow table with exactly the columns of `schema`; a missing key is null.

    Raises:
        KeyError: a row has a key that is no column.
        pyarrow.ArrowInvalid, pyarrow.ArrowTypeError: a value of the wrong type.
    """
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise KeyError(f"no such catalog column: {', '.join(sorted(unknown))}")
    return pa.Table.from_pydict(
        {field.name: pa.array([row.get(field.name) for row in rows], type=field.type) for field in schema},
        schema=schema,
    )
