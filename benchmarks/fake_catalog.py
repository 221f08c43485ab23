"""A catalog as large as a real one, without its images: rows for benchmarks and tests, the same for the same seed.

Run: python benchmarks/fake_catalog.py LAKE [--rows 5200000] [--seed 0] [--usfm]
It writes the Parquet parts, and with them splits and duplicates, but no shards: what asks only the catalog can't tell.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.random import Generator
from numpy.typing import NDArray

from usdata.catalog import canonical, write_duckdb, write_part
from usdata.lake import Lake
from usdata.png import SIZE
from usdata.schema import DUPLICATES, SAMPLES, SPLITS, organ_group_of, taxonomy
from usdata.shards import MAX_SAMPLES

ROWS = 5_200_000
_BLOCK = 512  # bytes of a tar block
_HEX = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), "S2")


@dataclass(frozen=True)
class Made:
    """What one data set of the fake lake is like."""

    name: str
    images: int  # in a lake of 5.2 million; scaled to others
    organs: str  # comma-separated; the n-th has 1/n of the first one's images
    probe: str
    frames: int = 1  # mean length of a clip; 1: stills
    per_patient: int = 3  # sources
    masks: float = 0.0  # share of the images
    labels: str = ""  # comma-separated
    models: str = ""  # comma-separated "manufacturer model"
    known_mm: float = 0.5  # share of sources with pixel spacing
    mode: str = "B-mode"
    licence: str = "CC-BY-4.0"
    species: str = "human"
    split: bool = False  # whether the source publishes a split


# Names and sizes follow public sets; the few giants stand for what a hospital adds. No figure here is a claim.
SETS = (
    Made("echonet_dynamic", 1_755_000, "heart", "phased", 175, 1, 0.011, models="Philips iE33,GE Vivid", split=True),
    Made("breast_sweeps", 1_310_000, "breast", "linear", 60, 4, 0.3, "benign,malignant,normal", "GE LOGIQ E9"),
    Made("echonet_pediatric", 560_000, "heart", "phased", 80, 1, 0.02, split=True),
    Made("radimagenet_us", 389_885, "liver,kidney,gallbladder,spleen,pancreas,bladder,ovary,uterus", "convex", 1, 9),
    Made("lung_sweeps", 330_000, "lung", "convex", 120, 6, 0.0, "a_lines,b_lines,consolidation", "Philips Lumify"),
    Made("acouslic", 252_000, "fetal_abdomen", "convex", 840, 1, 0.02, models="Telemed MicrUs", mode="blind sweep"),
    Made("kwave_phantom", 120_000, "simulated", "simulated", 1, 3, 1.0, mode="simulated", species=""),
    Made("deepmtj", 66_864, "tendon", "linear", 300, 2, 0.0, models="Aixplorer,Esaote MyLab 60"),
    Made("segthy", 61_000, "thyroid,carotid_artery", "3d_volumetric", 200, 2, 0.9, models="Siemens NX3"),
    Made("fetal_sweeps", 58_000, "fetal_head,fetal_abdomen,fetal_femur,placenta,fetal_heart", "convex", 90, 3),
    Made("liver_tumors_hcc", 52_000, "liver", "convex", 100, 1, 0.1, "hcc,haemangioma,none"),
    Made("brachial_plexus", 41_000, "neck_nerve", "linear", 60, 1, 0.4, models="Butterfly iQ,SonoSite X-Porte"),
    Made("butterfly_grandhack", 34_000, "heart,carotid_artery,lung,bladder,thyroid,abdomen_other", "unknown", 100, 2),
    Made("covid_blues", 31_000, "lung", "convex", 150, 6, 0.0, "0,1,2,3", "Philips Lumify"),
    Made("camus", 19_232, "heart", "phased", 20, 2, 1.0, models="GE Vivid E95", licence="CC-BY-NC-SA-4.0", split=True),
    Made("stanford_thyroid_cine", 17_412, "thyroid", "linear", 90, 1, 1.0, "benign,malignant", licence="unstated"),
    Made("covid19_ultrasound", 15_600, "lung", "convex", 60, 1, 0.0, "covid,pneumonia,regular,viral"),
    Made("fetal_planes", 12_400, "fetal_head,fetal_body,fetal_thorax,maternal_cervix", "convex", 1, 7, split=True),
    Made("lepset", 11_500, "pancreas", "endoscopic", 1, 27, 0.3, "cancer,none"),
    Made("nerve_seg", 11_143, "neck_nerve", "linear", 1, 120, 1.0, licence="unstated"),
    Made("porcine_spinal_cord", 10_223, "spinal_cord", "linear", 1, 400, 1.0, species="porcine"),
    Made("unity_imaging", 7_523, "heart", "phased", 1, 1, 0.0, licence="CC-BY-NC-SA-4.0"),
    Made("jnu_ifm", 6_224, "fetal_head", "convex", 80, 1, 1.0, "none,only_sp,only_head,sp_head"),
    Made("stmus_nda", 3_917, "skeletal_muscle", "linear", 1, 12, 0.0, models="Esaote MyLab Twice"),
    Made("tg3k", 3_585, "thyroid", "linear", 16, 1, 1.0),
    Made("tn3k", 3_493, "thyroid", "linear", 1, 1, 1.0, split=True),
    Made("microseg", 2_910, "prostate", "endocavity", 30, 1, 1.0),
    Made("usenhance2023", 2_479, "thyroid,carotid_artery,liver,breast,kidney", "linear", 1, 23),
    Made("cubs", 2_176, "carotid_artery", "linear", 1, 2, 1.0, known_mm=1.0),
    Made("busbra", 1_875, "breast", "linear", 1, 2, 1.0, "benign,malignant", "GE Logiq 5,Toshiba Aplio 300"),
    Made("vitreous_hemorrhage", 1_613, "eye", "ophthalmic", 1, 3, 0.0, "yes,no"),
    Made("mmotu", 1_469, "ovary", "endocavity", 1, 5, 1.0, "cyst,teratoma,normal", split=True),
    Made("hc18", 1_334, "fetal_head", "convex", 1, 2, 0.75, known_mm=1.0, split=True),
    Made("gbcu", 1_255, "gallbladder", "convex", 1, 6, 0.0, "normal,benign,malignant", "GE Logiq S8"),
    Made("busi", 780, "breast", "linear", 1, 1, 1.0, "benign,malignant,normal", licence="unstated"),
    Made("gist514", 514, "stomach", "endoscopic", 1, 1, 0.0, "gist,leiomyoma"),
)  # fmt: skip
# The organ of the taxonomy that stands for each of USFM's twelve.
_USFM_ORGANS = {"neck": "neck_other", "abdomen": "abdomen_other", "muscle": "skeletal_muscle"}


def write_lake(root: Path, rows: int = ROWS, seed: int = 0, curated: bool = True) -> Lake:
    """A lake of some 36 data sets of very uneven size with `rows` samples in all, and no shards.

    Args:
        rows: at least one per data set, in effect.
        curated: also write splits (every sample) and duplicates (one in twenty).
    """
    lake = Lake.create(root)
    ids = []
    for table in tables(rows, seed):
        write_part(lake.catalog_part(table["dataset"][0].as_py()), table)
        ids.append(table.select(["sample_id", "patient"]))
    if curated:
        write_curation(lake, pa.concat_tables(ids), seed)
    write_duckdb(lake)
    return lake


def write_usfm_lake(root: Path, seed: int = 0) -> Lake:
    """A lake whose catalog holds `usfm_rows`, and no shards."""
    lake = Lake.create(root)
    write_part(lake.catalog_part("usfm"), usfm_rows(seed))
    write_duckdb(lake)
    return lake


def usfm_rows(seed: int = 0) -> pa.Table:
    """The 2,187,915 images of USFM's 3M-US as rows of the catalog, by its twelve published organ counts.

    Column `organ` has twelve values (`neck`, `abdomen` and `muscle` stand as neck_other, abdomen_other and
    skeletal_muscle), each with exactly its published count.

    Source: USFM (Jiao et al., MedIA 2024), Fig. 3, kept in `usdata/taxonomy.yaml`.
    """
    counts = {_USFM_ORGANS.get(k, k): n for k, n in taxonomy()["usfm12_images_in_3m_us"].items()}
    made = Made("usfm", sum(counts.values()), ",".join(counts), "linear", 30, 2)
    return _table(made, counts, np.random.default_rng([seed, 12]))


def tables(rows: int = ROWS, seed: int = 0) -> Iterator[pa.Table]:
    """The rows of each data set, in the order of their shards."""
    total = sum(made.images for made in SETS)
    for number, made in enumerate(SETS):
        n = max(1, round(rows * made.images / total))
        if number == 0:  # the giant takes what rounding leaves
            n = max(1, rows - sum(max(1, round(rows * other.images / total)) for other in SETS[1:]))
        organs = made.organs.split(",")[:n]
        shares = 1 / np.arange(1, len(organs) + 1)
        counts = np.maximum(1, np.floor(n * shares / shares.sum())).astype(int)
        counts[0] += n - counts.sum()
        yield _table(made, dict(zip(organs, counts.tolist(), strict=True)), np.random.default_rng([seed, number]))


def write_curation(lake: Lake, rows: pa.Table, seed: int = 0) -> None:
    """splits.parquet for every row (columns sample_id, patient) and duplicates.parquet for one in twenty."""
    rng = np.random.default_rng([seed, 99])
    n = len(rows)
    ids = rows["sample_id"].combine_chunks()
    prefix = pc.binary_slice(pc.cast(ids, pa.binary()), 0, -17)
    patient = pc.fill_null(rows["patient"], "none").combine_chunks()
    group = pc.binary_join_element_wise(prefix.cast(pa.string()), patient, "/")
    coded = group.dictionary_encode()
    split = rng.choice(3, len(coded.dictionary), p=[0.8, 0.1, 0.1]).astype(np.int32)
    split = split[coded.indices.to_numpy()]
    words = pa.DictionaryArray.from_arrays(split, ["train", "val", "test"])
    write_part(
        lake.root / "catalog" / "splits.parquet",
        pa.table({"sample_id": ids, "group": group, "split": words}, schema=SPLITS),
    )
    some = np.sort(rng.choice(n, n // 20, replace=False))
    pairs = pc.binary_join_element_wise(
        "d", pc.utf8_lpad(pa.array(np.arange(len(some)) // 2).cast("string"), 8, "0"), ""
    )
    write_part(
        lake.root / "catalog" / "duplicates.parquet",
        pa.table({"sample_id": ids.take(pa.array(some)), "duplicate_group": pairs}, schema=DUPLICATES),
    )


# --- one data set ---------------------------------------------------------------------------------------------------


def _table(made: Made, counts: dict[str, int], rng: Generator) -> pa.Table:
    """The rows of one data set: by organ, then by source, then by frame."""
    organs = sorted(counts)
    organ = np.repeat(np.arange(len(organs), dtype=np.int32), [counts[o] for o in organs])
    source, frame = _sources(organ, made.frames, rng)
    columns = (
        _identity(made, source, frame, rng)
        | _anatomy(made, organ, organs, rng)
        | _acquisition(made, source, rng)
        | _grouping(made, source, frame, rng)
        | _supervision(made, source, rng)
        | _rights(made, len(organ))
    )
    columns |= _location(made, organ, organs, columns["has_mask"].to_numpy(zero_copy_only=False), rng)
    missing = {name: pa.nulls(len(organ), SAMPLES.field(name).type) for name in set(SAMPLES.names) - set(columns)}
    table = pa.table({name: (columns | missing)[name] for name in SAMPLES.names})
    return canonical(table, SAMPLES)


def _sources(organ: NDArray[np.int32], frames: int, rng: Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of each row's source, and of the frame in it; a source has one organ."""
    n = len(organ)
    lengths = 1 + rng.poisson(frames - 1, n // frames + 10 + n // (4 * frames)) if frames > 1 else np.ones(n, np.int64)
    starts = np.union1d(np.concatenate([[0], np.cumsum(lengths)]), np.flatnonzero(np.diff(organ)) + 1)
    starts = starts[starts < n]
    source = np.zeros(n, np.int64)
    source[starts[1:]] = 1
    source = np.cumsum(source)
    return source, np.arange(n) - starts[source]


def _identity(made: Made, source: NDArray[np.int64], frame: NDArray[np.int64], rng: Generator) -> dict[str, pa.Array]:
    n, sources = len(source), int(source[-1]) + 1
    number = pc.utf8_lpad(pa.array(np.arange(sources)).cast("string"), 7, "0")
    folder, suffix = ("videos/clip_", ".avi") if made.frames > 1 else ("images/img_", ".png")
    paths = pc.binary_join_element_wise(folder, number, suffix, "")
    return {
        "sample_id": _hex(rng, n, 8, f"{made.name}-"),
        "dataset": _word([made.name], np.zeros(n, np.int32)),
        "source_id": paths.take(pa.array(source)),
        "source_xxh": _hex(rng, sources, 16).take(pa.array(source)),
        "pixel_xxh": _hex(rng, n, 16),
        "phash": pa.array(rng.integers(0, 2**64, n, np.uint64)),
    }


def _anatomy(made: Made, organ: NDArray[np.int32], organs: list[str], rng: Generator) -> dict[str, pa.Array]:
    n = len(organ)
    groups = [organ_group_of(o) for o in organs]
    views = {"heart": ["a2c", "a4c", "plax"], "breast": ["radial", "antiradial"]}.get(
        organs[0], ["transverse", "sagittal"]
    )
    return {
        "organ": _word(organs, organ),
        "organ_group": _word(groups, organ),
        "organ_raw": _word([o.replace("_", " ").title() for o in organs], organ),
        "view": _word(views, rng.integers(0, len(views), n // 50 + 1, np.int32).repeat(50)[:n], rng.random() < 0.4),
        "mode": _word([made.mode], np.zeros(n, np.int32)),
        "species": _word([made.species], np.zeros(n, np.int32), not made.species),
        "synthetic": pa.array(np.full(n, made.mode == "simulated")),
    }


def _acquisition(made: Made, source: NDArray[np.int64], rng: Generator) -> dict[str, pa.Array]:
    n, sources = len(source), int(source[-1]) + 1
    models = [m.partition(" ") for m in made.models.split(",")]
    model = rng.integers(0, len(models), sources, np.int32)[source]
    known = (rng.random(sources) < made.known_mm)[source]
    spacing = np.round(rng.uniform(0.04, 0.35, sources), 4)[source]
    sides = np.array([(800, 600), (1024, 768), (640, 480), (1280, 872), (112, 112)], np.int32)
    size = sides[rng.integers(0, len(sides), sources)][source]
    x0, y0 = rng.integers(0, 12, sources, np.int32)[source], rng.integers(0, 12, sources, np.int32)[source]
    return {
        "probe": _word([made.probe], np.zeros(n, np.int32), made.probe == "unknown"),
        "manufacturer": _word([m[0] for m in models], model, not made.models),
        "model": _word([m[2] for m in models], model, not made.models),
        "pixel_mm_x": pa.array(spacing, mask=~known),
        "pixel_mm_y": pa.array(spacing, mask=~known),
        "depth_mm": pa.array(np.round(spacing * size[:, 1], 1), mask=~known),
        "width": pa.array(size[:, 0]),
        "height": pa.array(size[:, 1]),
        "crop_x0": pa.array(x0),
        "crop_y0": pa.array(y0),
        "crop_x1": pa.array(size[:, 0] - x0),
        "crop_y1": pa.array(size[:, 1] - y0),
    }


def _grouping(made: Made, source: NDArray[np.int64], frame: NDArray[np.int64], rng: Generator) -> dict[str, pa.Array]:
    n, sources = len(source), int(source[-1]) + 1
    found: dict[str, pa.Array] = {}
    if made.per_patient > 1 or made.frames > 1:  # of a set of single stills nobody knows whose they are
        patient = np.cumsum(rng.random(sources) < 1 / made.per_patient)
        names = pc.utf8_lpad(pa.array(np.arange(patient[-1] + 1)).cast("string"), 6, "0")
        found["patient"] = pc.binary_join_element_wise("p", names, "").take(pa.array(patient[source]))
    if made.frames > 1:
        clips = pc.utf8_lpad(pa.array(np.arange(sources)).cast("string"), 7, "0")
        found["clip"] = pc.binary_join_element_wise("clip_", clips, "").take(pa.array(source))
        found["frame"] = pa.array(frame.astype(np.int32))
        found["n_frames"] = pa.array(np.bincount(source)[source].astype(np.int32))
        found["fps"] = pa.array(np.round(rng.choice([25.0, 30.0, 50.0, 51.7], sources), 1)[source])
    return found | {"study": pa.nulls(n, pa.string())}


def _supervision(made: Made, source: NDArray[np.int64], rng: Generator) -> dict[str, pa.Array]:
    n, sources = len(source), int(source[-1]) + 1
    words = made.labels.split(",")
    label = rng.integers(0, len(words), sources, np.int32)[source]
    split = rng.choice(3, sources, p=[0.8, 0.1, 0.1]).astype(np.int32)[source]
    target = np.round(rng.uniform(20, 75, sources), 2)[source]
    has_mask = rng.random(n) < made.masks
    targets = pa.array([f'{{"area_mm2": {i / 10}}}' for i in range(1000)])
    birads = pa.array([f'{{"birads": "{b}", "side": "{s}"}}' for b in range(1, 6) for s in ("left", "right")])
    ends = np.concatenate([[0], np.cumsum(2 * has_mask)]).astype(np.int32)
    classes = pa.array(["background", "lesion"]).take(pa.array(np.arange(ends[-1]) % 2))
    return {
        "label": _word(words, label, not made.labels),
        "labels": birads.take(pa.array(rng.integers(0, 10, sources)[source], mask=np.full(n, not made.labels))),
        "target": pa.array(target, mask=np.full(n, not made.split)),
        "targets": targets.take(pa.array(rng.integers(0, 1000, n), mask=~has_mask)),
        "has_mask": pa.array(has_mask),
        "mask_classes": pa.ListArray.from_arrays(pa.array(ends), classes, mask=pa.array(~has_mask)),
        "official_split": _word(["train", "val", "test"], split, not made.split),
    }


def _rights(made: Made, n: int) -> dict[str, pa.Array]:
    free = made.licence in ("CC-BY-4.0", "CC0-1.0")
    words = {
        "licence": made.licence,
        "commercial_use": "yes" if free else "no",
        "redistribution": "attribution" if free else "unknown",
        "deid_profile": "public",
        "burned_in": "no",
    }
    return {name: _word([word], np.zeros(n, np.int32)) for name, word in words.items()}


def _location(
    made: Made, organ: NDArray[np.int32], organs: list[str], has_mask: NDArray[np.bool_], rng: Generator
) -> dict[str, pa.Array]:
    """Shards of one organ with up to 1,000 samples, and offsets as `ShardWriter` would give them."""
    n = len(organ)
    first = np.searchsorted(organ, np.arange(len(organs)))
    number = (np.arange(n) - first[organ]) // MAX_SAMPLES
    shards = np.concatenate([[0], np.cumsum((np.diff(organ) != 0) | (np.diff(number) != 0))]).astype(np.int32)
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    names = [f"shards/{made.name}/{made.name}-{organs[organ[i]]}-{number[i]:06d}.tar" for i in starts]
    size = np.where(has_mask, rng.integers(180, 2400, n), 0)
    json = _BLOCK + np.where(rng.random(n) < 0.2, 2, 3) * _BLOCK
    mask = np.where(has_mask, _BLOCK + -(-size // _BLOCK) * _BLOCK, 0)
    end = np.cumsum(json + mask + _BLOCK + -(-SIZE // _BLOCK) * _BLOCK)
    begin = np.concatenate([[0], end[:-1]])
    begin = begin - begin[starts][shards]
    return {
        "shard": _word(names, shards),
        "offset": pa.array(begin + json + mask + _BLOCK),
        "size": pa.array(np.full(n, SIZE)),
        "mask_offset": pa.array(begin + json + _BLOCK, mask=~has_mask),
        "mask_size": pa.array(size, mask=~has_mask),
        "json_offset": pa.array(begin + _BLOCK),
    }


def _word(words: list[str], codes: NDArray[np.int32], unknown: bool = False) -> pa.Array:
    """A column of few words; all null if unknown."""
    if unknown:
        return pa.nulls(len(codes), pa.string())
    return pa.array(words).take(pa.array(codes))


def _hex(rng: Generator, n: int, size: int, prefix: str = "") -> pa.StringArray:
    """`n` random words of 2 · `size` hex digits behind a prefix."""
    width = len(prefix) + 2 * size
    text = np.empty((n, width), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    text[:, len(prefix) :] = _HEX[np.frombuffer(rng.bytes(n * size), np.uint8)].view(np.uint8).reshape(n, 2 * size)
    offsets = np.arange(0, (n + 1) * width, width, dtype=np.int32)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))


def main() -> None:
    """Write a fake lake and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--usfm", action="store_true", help="USFM's twelve organs instead")
    options = parser.parse_args()
    start = time.perf_counter()
    if options.usfm:
        write_usfm_lake(options.lake, options.seed)
    else:
        write_lake(options.lake, options.rows, options.seed)
    size = sum(p.stat().st_size for p in options.lake.rglob("*.parquet"))
    print(f"{options.lake}: {size / 1e6:.0f} MB of Parquet in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
