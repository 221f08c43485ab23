"""Embeddings of a cohort as a Parquet file that joins the catalog by `sample_id`."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from training import checkpoint
from training.data import conditions
from usdata.batch import to_device
from usdata.errors import ConfigError, UsdataError
from usdata.files import explain_os_errors, file_xxh, replacing

SCHEMA = pa.schema([pa.field("sample_id", pa.string(), nullable=False), pa.field("embedding", pa.list_(pa.float32()))])
SIGN = b"usdata.embeddings"  # key in the file's metadata by which such a file is known


@dataclass(frozen=True)
class Embedded:
    """What was written."""

    path: Path
    rows: int
    features: int
    weights_xxh: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {**asdict(self), "path": str(self.path)}


def embed_cohort(
    cohort: Any,
    encoder: Path | str,
    out: Path | str,
    *,
    batch_size: int = 64,
    device: str = "auto",
    use_columns: bool = False,
) -> Embedded:
    """Write the features of every image of a cohort, in its order.

    The same weights, cohort, batch size and machine give the same bytes. Encoding runs in fp32. The file's metadata
    say which weights (hash), recipe, cohort and code made it.

    Args:
        cohort: a `usdata.Cohort`.
        encoder: the OUT of `usdata pretrain`.
        out: the file: columns `sample_id` and `embedding`, a list of float32. Appears whole or not at all; replaces
            an earlier file of embeddings, and nothing else.
        batch_size: images at a time.
        device: auto, cpu or cuda.
        use_columns: give the encoder the catalog columns it was trained with, where it has such (ARL: the organ).

    Raises:
        ConfigError: weights that do not fit their recipe key by key, an empty cohort, or `out` is some other file.
        UsdataError: no weights there, or features that are not finite.
        LakeError: `out` can't be written, or images can't be read.
    """
    from training.distributed import choose_device

    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be 1 or more.")
    if not cohort.rows:
        raise ConfigError("The cohort is empty: there is nothing to embed.", hint="What there is:  usdata catalog")
    path = Path(out)
    _check_target(path)
    recipe = checkpoint.load_encoder(encoder).to(choose_device(device))
    weights = file_xxh(Path(encoder) / "recipe.safetensors")
    columns = tuple(getattr(recipe, "columns", ())) if use_columns else ()
    facts = {**_facts(cohort, encoder), "weights_xxh": weights, "columns": list(columns)}
    parts = _parts(recipe, cohort, columns, batch_size)
    first = next(parts)  # before the file is opened: most mistakes show here
    features = len(first["embedding"][0])
    schema = SCHEMA.with_metadata({SIGN: json.dumps({**facts, "features": features}, sort_keys=True).encode()})
    rows = 0
    with explain_os_errors(path, step="embed", elsewhere="with -o FILE"), replacing(path) as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for part in _chained(first, parts):
                writer.write_batch(part.cast(schema))
                rows += len(part)
        if rows != cohort.rows:
            raise UsdataError(f"{rows:,} images were read of a cohort of {cohort.rows:,}.", step="embed")
    return Embedded(path, rows, features, weights)


def read_facts(path: Path | str) -> dict[str, Any]:
    """What a file of embeddings says of itself: recipe, weights_xxh, cohort_hash, cohort_sql, features, ...

    Raises:
        ConfigError: it is no such file.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path} is no Parquet file: {error}") from error
    if SIGN not in metadata:
        raise ConfigError(f"{path} holds no embeddings of `usdata embed`.")
    return dict(json.loads(metadata[SIGN]))


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder.", hint="Name a file:  -o embeddings.parquet")
    if path.exists():
        try:
            read_facts(path)
        except ConfigError as error:
            raise ConfigError(
                f"{path} is there already and holds something else.", hint="Choose another name with -o."
            ) from error


def _facts(cohort: Any, encoder: Path | str) -> dict[str, Any]:
    """Of weights and cohort; `trained_on` is the hash of the cohort that the weights were trained on."""
    said = checkpoint.facts_of(encoder)
    return {
        **{name: said.get(name, "") for name in ("recipe", "config_hash", "steps")},
        "trained_on": said.get("cohort_hash", ""),
        "cohort_hash": cohort.hash,
        "cohort_sql": cohort.sql,
        "code_version": checkpoint.code_version(),
    }


@torch.inference_mode()
def _parts(recipe: Any, cohort: Any, columns: tuple[str, ...], batch_size: int) -> Iterator[pa.RecordBatch]:
    device = next(recipe.parameters()).device
    for batch in cohort.batches(batch_size, columns=list(dict.fromkeys(["sample_id", *columns]))):
        images, ids = batch["image"], batch["sample_id"]
        given = conditions(recipe, batch, len(images)) if columns else {}
        features = recipe.encode(to_device(images, device), **{name: value.to(device) for name, value in given.items()})
        yield _batch(ids, features.float().cpu().numpy())


def _batch(ids: list[str], features: np.ndarray[Any, np.dtype[np.float32]]) -> pa.RecordBatch:
    wrong = ~np.isfinite(features).all(axis=1)
    if wrong.any():
        raise UsdataError(
            f"{int(wrong.sum())} images have features that are not finite, the first {ids[int(wrong.argmax())]!r}.",
            step="embed",
        )
    ends = np.arange(0, features.size + 1, features.shape[1], dtype=np.int32)
    lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(features.reshape(-1)))
    return pa.RecordBatch.from_arrays([pa.array(ids, pa.string()), lists], schema=SCHEMA)


def _chained(first: pa.RecordBatch, others: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from others
