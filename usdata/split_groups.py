"""Which images must never be parted: connected groups over patients, studies, clips, near-duplicates and equal pixels.

A group is named by one of its members, chosen by a hash of the members' names alone. What that means for a lake that
grows stands in docs/splits.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from usdata.schema import IMAGE_SIZE

# What ties images to each other -> the catalog's column that says so.
KINDS = {
    "patient": "patient",
    "study": "study",
    "clip": "clip",
    "duplicate": "duplicate_group",
    "pixels": "pixel_xxh",
}
# Whose an image is: the first of these that is known, else it stands for itself.
_OWNERS = ("patient", "study", "clip")
NAMED = (*_OWNERS, "image")
COLUMNS = ("sample_id", "dataset", "organ", "label", "official_split", "patient_known", *KINDS.values(), "split")
_CHUNK = 1 << 18  # texts that are Python objects at a time
_RANK_BITS = 2  # of 64: four kinds of names

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Links:
    """Images and the keys that tie them together."""

    table: pa.Table  # columns `COLUMNS`, a row per image
    codes: dict[str, Codes]  # kind -> (n,) number of each image's key; −1: none, or a key of no other image (pixels)
    keys: dict[str, pa.StringArray]  # kind -> the keys' texts

    def __len__(self) -> int:
        return len(self.table)


@dataclass(frozen=True)
class Groups:
    """The connected groups of some images."""

    of: Codes  # (n,) group of each image, numbered by first appearance
    names: pa.StringArray  # (g,) "patient:ID", "study:ID", "clip:ID" or "image:SAMPLE"; no two alike

    def __len__(self) -> int:
        return len(self.names)


def links_of(table: pa.Table) -> Links:
    """The links of a catalog's rows; a column of `COLUMNS` that the table lacks is null.

    Images of a single grey value are no copies of each other, however equal: any two dark frames would tie patients.
    """
    for name in COLUMNS:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), pa.string()))
    codes, keys = {}, {}
    for kind, column in KINDS.items():
        codes[kind], keys[kind] = numbered(table[column])
    shared = np.bincount(codes["pixels"] + 1, minlength=len(keys["pixels"]) + 1)[1:] > 1
    shared &= ~np.asarray(pc.is_in(keys["pixels"], value_set=pa.array(blank_pixels())))
    codes["pixels"] = _kept(codes["pixels"], shared)
    return Links(table.select(COLUMNS), codes, keys)


def _kept(codes: Codes, wanted: NDArray[np.bool_]) -> Codes:
    """`codes` with −1 for those that are not wanted."""
    return np.where((codes >= 0) & np.append(wanted, False)[codes], codes, -1).astype(np.int32)


@cache
def blank_pixels() -> tuple[str, ...]:
    """`pixel_xxh` of the images of one grey value, 0 to 255."""
    size = IMAGE_SIZE * IMAGE_SIZE
    return tuple(xxhash.xxh3_128_hexdigest(bytes([grey]) * size) for grey in range(256))


def numbered(column: pa.ChunkedArray) -> tuple[Codes, pa.StringArray]:
    """A column as numbers, −1 for null, and the texts they stand for; no Python object is made."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string())
        whole = column.combine_chunks()  # to unify the chunks' dictionaries is slow; 2 GB of text are left in chunks
        column = (column if isinstance(whole, pa.ChunkedArray) else pa.chunked_array([whole])).dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # of no chunk at all
        whole = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string()))
    numbers = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return numbers, whole.dictionary.cast(pa.string())


# --- groups -----------------------------------------------------------------------------------------------------------


def group_images(links: Links) -> Groups:
    """The connected groups: images that share a key, directly or through others, are of one group.

    A group's name is that of its first member by (kind, xxh3 of the name): a patient before a study, a clip or an
    image. So an image without a patient never renames the group of the patient whose picture it copies.
    """
    of, count = connect(links)
    owner, texts, ranks = _owners(links)
    order = _digests(texts, ranks)  # (owners,)
    best = np.full(count, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(best, of, order[owner])
    deciding = np.zeros(count, np.int64)
    rows = np.flatnonzero(order[owner] == best[of])[::-1]  # reversed: the first row of each group is written last
    deciding[of[rows]] = owner[rows]
    return Groups(of, _named(deciding, texts, ranks))


def owner_names(links: Links) -> pa.StringArray:
    """(n,) whose each image is, as `Groups.names` has it: "patient:ID", "study:ID", "clip:ID" or "image:SAMPLE"."""
    return _named(*_owners(links))


def _named(owner: NDArray[np.int64], texts: pa.StringArray, ranks: NDArray[np.int8]) -> pa.StringArray:
    """The names of some owners: their kind and their own text."""
    prefix = pa.DictionaryArray.from_arrays(pa.array(ranks[owner]), pa.array([f"{kind}:" for kind in NAMED]))
    return pc.binary_join_element_wise(prefix.cast(pa.string()), texts.take(pa.array(owner)), "").cast(pa.string())


def connect(links: Links) -> tuple[Codes, int]:
    """Number of the connected group of each image, by first appearance, and how many there are."""
    of, count = np.arange(len(links), dtype=np.int32), len(links)
    for kind in KINDS:
        of, count = _join(of, count, links.codes[kind], len(links.keys[kind]))
    first = np.full(count, len(of), np.int64)
    np.minimum.at(first, of, np.arange(len(of)))
    rank = np.empty(count, np.int32)
    rank[np.argsort(first, kind="stable")] = np.arange(count, dtype=np.int32)
    return rank[of], count


def _join(of: Codes, count: int, codes: Codes, keys: int) -> tuple[Codes, int]:
    """The groups after those that share a key are made one; each member is tied to the key's first, not to all."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = np.flatnonzero(codes >= 0)[::-1]
    first = np.zeros(keys, np.int32)
    first[codes[rows]] = of[rows]
    a, b = of[rows], first[codes[rows]]
    differ = a != b
    if not differ.any():
        return of, count
    edges = (a[differ], b[differ])
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(count, count))
    number, labels = connected_components(graph, directed=False)
    return labels.astype(np.int32, copy=False)[of], int(number)


def _owners(links: Links) -> tuple[NDArray[np.int64], pa.StringArray, NDArray[np.int8]]:
    """Each image's owner as a number, the owners' names, and their kind as a place in `NAMED`."""
    owner = np.full(len(links), -1, np.int64)
    texts: list[pa.StringArray] = []
    ranks: list[NDArray[np.int8]] = []
    start = 0
    for rank, kind in enumerate(_OWNERS):
        codes = links.codes[kind]
        owner = np.where((owner < 0) & (codes >= 0), codes + start, owner)
        texts.append(links.keys[kind])
        ranks.append(np.full(len(links.keys[kind]), rank, np.int8))
        start += len(links.keys[kind])
    alone = np.flatnonzero(owner < 0)
    owner[alone] = np.arange(len(alone)) + start
    texts.append(links.table["sample_id"].take(pa.array(alone)).combine_chunks().cast(pa.string()))
    ranks.append(np.full(len(alone), len(_OWNERS), np.int8))
    whole = pa.concat_arrays([chunk for text in texts for chunk in _chunks(text)])
    return owner, whole, np.concatenate(ranks)


def _chunks(text: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return text.chunks if isinstance(text, pa.ChunkedArray) else [text]


def _digests(texts: pa.StringArray, ranks: NDArray[np.int8]) -> NDArray[np.uint64]:
    """What orders names inside a group: the kind in the upper bits, then a hash that no seed changes."""
    digest = np.fromiter(_hashes(texts, b""), np.uint64, len(texts))
    return (digest >> np.uint64(_RANK_BITS)) | (ranks.astype(np.uint64) << np.uint64(64 - _RANK_BITS))


def _hashes(texts: pa.StringArray, key: bytes) -> Iterator[int]:
    for start in range(0, len(texts), _CHUNK):
        for text in texts.slice(start, _CHUNK).cast(pa.binary()).to_pylist():
            yield xxhash.xxh3_64_intdigest(key + text)


def places(names: pa.StringArray, seed: str) -> NDArray[np.float64]:
    """Where each name stands on the line from 0 to 1: the upper 53 bits of xxh3_64(seed, a zero byte, name), over 2^53.

    A place depends on nothing but the seed and the name.
    """
    found = np.fromiter(_hashes(names, seed.encode() + b"\0"), np.uint64, len(names))
    return (found >> np.uint64(11)).astype(np.float64) / 2.0**53
