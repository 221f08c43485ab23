"""Ingest of 800x600 grey PNGs or JPEGs against decode + resize + encode of the same files alone, same processes.

Run: python benchmarks/ingest_speed.py [--images 5000] [--workers 2] [--kind png|jpg] [--rounds 3] [--flows]

`--flows` runs the Prefect flow too, with processes and on a local Dask cluster of as many workers, once each: what a
chunk (a shard of at most 1,000 images) costs more there than in a plain ingest stands in the last column.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from machine import describe, table

from ingest.card import Card
from ingest.phantom import ORGANS, plan, render
from ingest.preprocess import resize, to_grey
from ingest.readers.image import read_image
from ingest.run import ingest
from usdata import png
from usdata.lake import Lake

CARD = {
    "name": "generated",
    "title": "-",
    "citation": "-",
    "licence": "CC0-1.0",
    "commercial_use": "yes",
    "redistribution": "yes",
    "deid_profile": "public",
    "defaults": {"organ": "breast"},
    "layout": {"image": r"\d+/\d+\.(?:png|jpg)"},
}


def write(folder: Path, images: int, kind: str) -> None:
    """Speckle images of 800x600 pixels, enlarged phantoms with fresh noise."""
    base = [cv2.resize(render(spec).image, (800, 600)) for spec in plan(max(8, len(ORGANS)))]
    for i in range(images):
        path = folder / f"{i % 10}" / f"{i:06d}.{kind}"
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(i).normal(0, 6, (600, 800))
        cv2.imwrite(str(path), np.clip(base[i % len(base)] + noise, 0, 255).astype(np.uint8))


def alone(paths: list[Path]) -> int:
    """The least that any pipeline must do: decode, grey, resize, encode."""
    cv2.setNumThreads(1)
    return sum(png.encode(resize(to_grey(read_image(path)))[None]).nbytes for path in paths)


def main() -> None:
    """Measure in turns and print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kind", choices=("png", "jpg"), default="png")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flows", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        write(source, options.images, options.kind)
        best = measure(source, Path(name), options)
        if options.flows:
            best |= flows(source, Path(name), options)
    chunks = -(-options.images // 1000)
    rows = [
        {
            "what": what,
            "images/s": f"{options.images / seconds:.0f}",
            "of alone": f"{best['alone'] / seconds:.2f}",
            "s per chunk over ingest": f"{(seconds - best['ingest']) / chunks:.2f}" if "flow" in what else "-",
        }
        for what, seconds in best.items()
    ]
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) >> 10
    print(
        f"{options.images} {options.kind} images, {options.workers} processes, largest process {peak} MiB; "
        f"{describe()}\n\n{table(rows)}"
    )


def measure(source: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the bare work and of an ingest."""
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    best = {"alone": np.inf, "ingest": np.inf}
    for turn in range(options.rounds):
        pool = ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn"))
        list(pool.map(abs, range(options.workers)))  # processes are up, as a long ingest's would be
        start = time.perf_counter()
        list(pool.map(alone, [paths[i :: options.workers] for i in range(options.workers)]))
        best["alone"] = min(best["alone"], time.perf_counter() - start)
        pool.shutdown()
        start = time.perf_counter()
        report = ingest(Card(**CARD), source, Lake.create(folder / f"lake{turn}"), workers=options.workers)
        best["ingest"] = min(best["ingest"], time.perf_counter() - start)
        if report.counts.samples != options.images:
            raise RuntimeError("an image of the benchmark was not accepted")
    return best


def flows(source: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the Prefect flow's shards, its temporary server being up already."""
    from prefect.testing.utilities import prefect_test_harness

    from ingest.run import finish, only_ingest, open_jobs, prepare
    from pipelines import flows as pipeline

    card, found = Card(**CARD), {}
    with prefect_test_harness(server_startup_timeout=120):
        for runner in ("processes", "dask"):
            lake = Lake.create(folder / f"flow-{runner}")

            @pipeline.flow(name=f"bench {runner}", persist_result=False)
            def run(runner: str = runner, lake: str = str(lake.root)) -> None:
                opened = Lake(lake)
                with only_ingest(opened, card.name):
                    plan = prepare(card, source, opened, workers=options.workers)
                    finish(plan, pipeline._build_all(open_jobs(plan), options.workers, runner, None))

            start = time.perf_counter()
            run()
            found[f"flow, {runner}"] = time.perf_counter() - start
    return found


if __name__ == "__main__":
    main()
