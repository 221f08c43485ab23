"""Ingest of 800x600 grey PNGs against decode + resize + encode of the same files alone, same processes.

Run: python benchmarks/ingest_speed.py [--images 2000] [--workers 2]
"""

import argparse
import multiprocessing
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
    "layout": {"image": r"\d+/\d+\.png"},
}


def write(folder: Path, images: int) -> None:
    """Speckle images of 800x600 pixels, enlarged phantoms with fresh noise."""
    base = [cv2.resize(render(spec).image, (800, 600)) for spec in plan(max(8, len(ORGANS)))]
    for i in range(images):
        path = folder / f"{i % 10}" / f"{i:06d}.png"
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(i).normal(0, 6, (600, 800))
        cv2.imwrite(str(path), np.clip(base[i % len(base)] + noise, 0, 255).astype(np.uint8))


def alone(paths: list[Path]) -> int:
    """The least that any pipeline must do: decode, grey, resize, encode."""
    cv2.setNumThreads(1)
    return sum(png.encode(resize(to_grey(read_image(path)))[None]).nbytes for path in paths)


def main() -> None:
    """Measure both in turns, three times, and print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        write(source, options.images)
        paths = sorted(source.rglob("*.png"))
        best = {"alone": np.inf, "ingest": np.inf}
        for turn in range(3):
            pool = ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn"))
            list(pool.map(abs, range(options.workers)))  # processes are up, as a long ingest's would be
            start = time.perf_counter()
            list(pool.map(alone, [paths[i :: options.workers] for i in range(options.workers)]))
            best["alone"] = min(best["alone"], time.perf_counter() - start)
            pool.shutdown()
            start = time.perf_counter()
            report = ingest(Card(**CARD), source, Lake.create(Path(name) / f"lake{turn}"), workers=options.workers)
            best["ingest"] = min(best["ingest"], time.perf_counter() - start)
            assert report.counts.samples == options.images
    rows = [
        {"what": what, "images/s": f"{options.images / seconds:.0f}", "of alone": f"{best['alone'] / seconds:.2f}"}
        for what, seconds in best.items()
    ]
    print(f"{options.images} images, {options.workers} processes; {describe()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
