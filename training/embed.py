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

from training import checkpoint, inference, result_table
from usdata.batch import to_device
from usdata.errors import UsdataError
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
            some other file or not named `.parquet`.
        UsdataError: no weights there, damaged ones, or features that are not finite.
        LakeError: `out` can't be written, or images can't be read.
    """
    from training.distributed import choose_device

    path = Path(out)
    result_table.check_cohort(cohort, batch_size, "embed")
    result_table.check_target(path, SIGN, "embeddings.parquet")
    recipe = checkpoint.load_encoder(encoder).to(choose_device(device))
    condition = inference.chosen(recipe, condition)
    wrong = _wrong(recipe, cohort, seed) if condition == "wrong" else {}
    weights = file_xxh(Path(encoder) / "recipe.safetensors")
    facts = {**_facts(cohort, encoder), "weights_xxh": weights, "condition": condition, "batch_size": batch_size}
    if wrong:
        names = inference.class_names(recipe)
        facts["told_instead"] = {names[right]: names[false] for right, false in wrong.items()}
    started = time.monotonic()
    size = _write(path, _groups(_features(recipe, cohort, condition, wrong, batch_size)), facts, cohort.rows)
    return Embedded(path, cohort.rows, size, weights, condition, time.monotonic() - started)


def read_facts(path: Path | str) -> dict[str, Any]:
    """What a file of embeddings says of itself: recipe, weights_xxh, cohort_hash, cohort_sql, features, ...

    Raises:
        ConfigError: it is no such file.
    """
    return result_table.read_facts(path, SIGN, "embeddings of `usdata embed`")


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


def _write(path: Path, groups: Iterator[Group], facts: dict[str, Any], expected: int) -> int:
    """The file, whole or not at all; how many numbers an embedding has."""
    first = next(groups)  # before the file is opened: most mistakes show here
    size, rows = first[1].shape[1], 0
    schema = _schema(size).with_metadata({SIGN: json.dumps({**facts, "features": size}, sort_keys=True).encode()})
    with (
        explain_os_errors(path, step="embed", elsewhere="with -o FILE", kept="the images are encoded anew"),
        replacing(path) as file,
    ):
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for group in _chained(first, groups):
                writer.write_batch(_record_batch(*group, schema), row_group_size=ROWS)
                rows += len(group[0])
        if rows != expected:
            raise UsdataError(f"{rows:,} images were read of a cohort of {expected:,}.", step="embed")
    return size


def _schema(size: int) -> pa.Schema:
    ids = pa.field("sample_id", pa.string(), nullable=False)
    return pa.schema([ids, pa.field("embedding", pa.list_(pa.float32(), size), nullable=False)])


def _record_batch(ids: list[str], found: NDArray[np.float32], schema: pa.Schema) -> pa.RecordBatch:
    values = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), found.shape[1])
    return pa.RecordBatch.from_arrays([pa.array(ids, pa.string()), values], schema=schema)


def _chained(first: Group, others: Iterator[Group]) -> Iterator[Group]:
    yield first
    yield from others
