"""Embeddings of a cohort as a Parquet file that joins the catalog by `sample_id`."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from training import checkpoint, inference
from usdata.batch import to_device
from usdata.errors import ConfigError, UsdataError
from usdata.files import explain_os_errors, file_xxh, replacing

SIGN = b"usdata.embeddings"  # key in the file's metadata by which such a file is known
ROWS = 4096  # of a row group: the same whatever the batch size, and 12 MB of ViT-B features in memory


@dataclass(frozen=True)
class Embedded:
    """What was written, and how long it took to read, encode and write it."""

    path: Path
    rows: int
    features: int
    weights_xxh: str
    condition: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {**asdict(self), "path": str(self.path)}

    @property
    def speed(self) -> float:
        """Images per second."""
        return self.rows / max(self.seconds, 1e-9)


def embed_cohort(
    cohort: Any,
    encoder: Path | str,
    out: Path | str,
    *,
    batch_size: int = 64,
    device: str = "auto",
    condition: str | None = None,
    seed: int = 0,
) -> Embedded:
    """Write the features of every image of a cohort, in its order.

    The same weights, cohort, batch size and machine give the same bytes; another batch size gives the same numbers but
    for rounding (1e-5 of their scale). Encoding runs in fp32. The file's metadata say which weights (hash), recipe,
    cohort and code made it, and what the encoder was told. Memory does not grow with the cohort's images.

    Args:
        cohort: a `usdata.Cohort`.
        encoder: the OUT of `usdata pretrain`.
        out: the file: columns `sample_id` and `embedding`, a list of float32, as long in every row. Appears whole or
            not at all, so a killed run begins again; replaces an earlier file of embeddings, and nothing else.
        batch_size: images at a time.
        device: auto, cpu or cuda.
        condition: what the encoder is told of each image's organ (ARL): null, label (the catalog's), predict (its own
            guess) or wrong; None: what the weights' config says, else null.
        seed: which organ takes which one's place with "wrong".

    Raises:
        ConfigError: weights that do not fit their recipe key by key or can't be told so, an empty cohort, or `out` is
            some other file.
        UsdataError: no weights there, damaged ones, or features that are not finite.
        LakeError: `out` can't be written, or images can't be read.
    """
    from training.distributed import choose_device

    path = Path(out)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be 1 or more.")
    if not cohort.rows:
        raise ConfigError("The cohort is empty: there is nothing to embed.", hint="What there is:  usdata catalog")
    _check_target(path)
    recipe = checkpoint.load_encoder(encoder).to(choose_device(device))
    condition = inference.chosen(recipe, condition)
    wrong = _wrong(recipe, cohort, seed) if condition == "wrong" else {}
    weights = file_xxh(Path(encoder) / "recipe.safetensors")
    facts = {**_facts(cohort, encoder), "weights_xxh": weights, "condition": condition, "batch_size": batch_size}
    if wrong:
        names = inference.class_names(recipe)
        facts["told_instead"] = {names[right]: names[false] for right, false in wrong.items()}
    started = time.monotonic()
    groups = _groups(_features(recipe, cohort, condition, wrong, batch_size))
    first = next(groups)  # before the file is opened: most mistakes show here
    size = first[1].shape[1]
    schema = _schema(size).with_metadata({SIGN: json.dumps({**facts, "features": size}, sort_keys=True).encode()})
    rows = 0
    with explain_os_errors(path, step="embed", elsewhere="with -o FILE"), replacing(path) as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for group in _chained(first, groups):
                writer.write_batch(_record_batch(*group, schema), row_group_size=ROWS)
                rows += len(group[0])
        if rows != cohort.rows:
            raise UsdataError(f"{rows:,} images were read of a cohort of {cohort.rows:,}.", step="embed")
    return Embedded(path, rows, size, weights, condition, time.monotonic() - started)


def joining_sql(out: Path | str, lake: Path | str) -> str:
    """SQL that any DuckDB runs: each row of embeddings with its image's row of the lake's catalog."""
    file, parts = (
        str(one).replace("'", "''") for one in (out, f"{str(lake).rstrip('/')}/catalog/samples/**/*.parquet")
    )
    return f"select * from '{file}' join read_parquet('{parts}', union_by_name=true) using (sample_id)"


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


def _wrong(recipe: Any, cohort: Any, seed: int) -> dict[int, int]:
    organs = cohort.table([inference.TOLD])[inference.TOLD].unique().to_pylist()
    present = inference.slots_of(recipe, organs).tolist()
    return inference.wrong_classes(present, len(inference.class_names(recipe)), seed)


Group = tuple[list[str], NDArray[np.float32]]  # sample ids and (n, D) features of some images


@torch.inference_mode()
def _features(recipe: Any, cohort: Any, condition: str, wrong: dict[int, int], batch_size: int) -> Iterator[Group]:
    device = next(recipe.parameters()).device
    columns = ["sample_id", *([inference.TOLD] if condition in inference.FROM_CATALOG else [])]
    for batch in cohort.batches(batch_size, columns=columns):
        images, ids, slots = batch["image"], batch["sample_id"], None
        if condition in inference.FROM_CATALOG:
            slots = inference.swapped(inference.slots_of(recipe, batch[inference.TOLD]), wrong)
        found = inference.encode(recipe, to_device(images, device), condition, slots).cpu().numpy()
        _check_finite(ids, found)
        yield ids, found


def _check_finite(ids: list[str], found: NDArray[np.float32]) -> None:
    wrong = ~np.isfinite(found).all(axis=1)
    if wrong.any():
        raise UsdataError(
            f"{int(wrong.sum())} images have features that are not finite, the first {ids[int(wrong.argmax())]!r}.",
            step="embed",
        )


def _groups(batches: Iterator[Group]) -> Iterator[Group]:
    """Batches of any size, put together into groups of ROWS images and a last one of the rest."""
    ids, parts = list[str](), list[NDArray[np.float32]]()
    for names, found in batches:
        ids += names
        parts.append(found)
        while len(ids) >= ROWS:
            joined = np.concatenate(parts)
            yield ids[:ROWS], joined[:ROWS]
            ids, parts = ids[ROWS:], [joined[ROWS:]]
    if ids:
        yield ids, np.concatenate(parts)


def _schema(size: int) -> pa.Schema:
    ids = pa.field("sample_id", pa.string(), nullable=False)
    return pa.schema([ids, pa.field("embedding", pa.list_(pa.float32(), size), nullable=False)])


def _record_batch(ids: list[str], found: NDArray[np.float32], schema: pa.Schema) -> pa.RecordBatch:
    values = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), found.shape[1])
    return pa.RecordBatch.from_arrays([pa.array(ids, pa.string()), values], schema=schema)


def _chained(first: Group, others: Iterator[Group]) -> Iterator[Group]:
    yield first
    yield from others
