"""The search for near hashes among millions: time, memory, and which of the planted pairs it finds.

Run: python benchmarks/dedup.py [--hashes 200000 1000000 5000000] [--workers 2] [--naive 20000]

Four sets of hashes: `random`; `crowded`, where one in ten hashes is within 3 bits of one of 1,000 centres and one in
fifty is 0, as black images are; `heaps`, where all are, 1,000 around each centre; `clips`, cines of 100 frames whose
neighbours differ in 2 bits. In each, 20,000 copies with 0 to 10 other bits are planted; a copy of what stands in a heap
may have 32 nearer ones there, and counts as not found then. `crowded`: hashes near to more than 32 others. `all pairs`
compares so many hashes block by block; its time is scaled to the largest set by the squares. `CPU s` is the process's
own time, over all threads. faiss's IndexBinaryMultiHash takes part in the smaller sets if it can be imported; nothing
else needs it:

    pip install faiss-cpu
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, table
from numpy.typing import NDArray

from usdata.dedup_find import _part_crowds
from usdata.dedup_search import near_pairs

PLANTED, BITS = 20_000, 10
Hashes = NDArray[np.uint64]
Codes = NDArray[np.int64]
Sets = tuple[Hashes, Codes, Codes, Codes]  # hashes, units, planted originals, planted copies


def random_hashes(rng: np.random.Generator, n: int) -> tuple[Hashes, Codes]:
    return rng.integers(0, 2**64, n, dtype=np.uint64), np.arange(n)


def crowded_hashes(rng: np.random.Generator, n: int) -> tuple[Hashes, Codes]:
    hashes, units = random_hashes(rng, n)
    centres = rng.integers(0, 2**64, 1000, dtype=np.uint64)
    some = rng.choice(n, n // 10, replace=False)
    hashes[some] = turned(rng, centres[rng.integers(0, 1000, len(some))], rng.integers(0, 4, len(some)))
    hashes[rng.choice(n, n // 50, replace=False)] = 0
    return hashes, units


def heap_hashes(rng: np.random.Generator, n: int) -> tuple[Hashes, Codes]:
    centres = rng.integers(0, 2**64, -(-n // 1000), dtype=np.uint64)
    return turned(rng, centres[rng.integers(0, len(centres), n)], rng.integers(0, 4, n)), np.arange(n)


def clip_hashes(rng: np.random.Generator, n: int) -> tuple[Hashes, Codes]:
    first = rng.integers(0, 2**64, -(-n // 100), dtype=np.uint64)
    steps = turned(rng, np.zeros(len(first) * 100, np.uint64), np.full(len(first) * 100, 2)).reshape(-1, 100)
    steps[:, 0] = first
    return np.bitwise_xor.accumulate(steps, axis=1).ravel()[:n], np.arange(n) // 100


def turned(rng: np.random.Generator, hashes: Hashes, bits: Codes) -> Hashes:
    """The hashes with so many of their bits turned over."""
    out = hashes.copy()
    for start in range(0, len(out), 1 << 18):
        part = slice(start, start + (1 << 18))
        order = np.argsort(rng.random((len(out[part]), 64), np.float32), axis=1)[:, : BITS + 1].astype(np.uint64)
        chosen = np.arange(BITS + 1)[None] < bits[part, None]
        out[part] ^= np.bitwise_or.reduce(np.where(chosen, np.uint64(1) << order, np.uint64(0)), axis=1)
    return out


def planted(make: Callable[[np.random.Generator, int], tuple[Hashes, Codes]], n: int) -> Sets:
    """A set with 20,000 copies (fewer in small sets), each of a hash of its own, in units of their own."""
    rng = np.random.default_rng(0)
    hashes, units = make(rng, n)
    places = rng.permutation(n)[: 2 * min(PLANTED, n // 4)]
    originals, copies = np.split(places, 2)
    hashes[copies] = turned(rng, hashes[originals], np.arange(len(copies)) % (BITS + 1))
    units = units.copy()
    units[copies] = units.max() + 1 + np.arange(len(copies))
    return hashes, units, originals, copies


def ours(data: Sets, workers: int) -> dict[str, Any]:
    hashes, units, _, _ = data
    begin = time.perf_counter()
    calm, _ = _part_crowds(hashes, units)  # the rest of a crowd goes by its leaders' pictures
    near = near_pairs(hashes[calm], units[calm], BITS, workers)
    seconds = time.perf_counter() - begin
    first, second = calm[near.first], calm[near.second]
    counts = {"pairs": len(first), "skipped": near.skipped, "crowded": near.crowded}
    return {"s": seconds} | counts | recall(data, pair_keys(first, second), calm)


def faiss_multihash(data: Sets, workers: int) -> dict[str, Any]:
    """Four tables of 16 bits, buckets up to one bit away: finds the planted pairs' originals by range search."""
    import faiss

    hashes, _, _, _ = data
    faiss.omp_set_num_threads(workers)
    begin = time.perf_counter()
    index = faiss.IndexBinaryMultiHash(64, 4, 16)
    index.nflip = 1
    index.add(hashes.view(np.uint8).reshape(-1, 8))
    limits, _, found = index.range_search(hashes.view(np.uint8).reshape(-1, 8), BITS + 1)
    seconds = time.perf_counter() - begin
    first = np.repeat(np.arange(len(hashes)), np.diff(limits.astype(np.int64)))
    other = found.astype(np.int64)
    keys = pair_keys(first[first < other], other[first < other])
    return {"s": seconds, "pairs": len(keys), "skipped": 0, "crowded": 0} | recall(data, keys, np.arange(len(hashes)))


def naive(data: Sets, workers: int) -> dict[str, Any]:
    hashes, units, _, _ = data
    begin, found = time.perf_counter(), []
    for start in range(0, len(hashes), 512):
        block = hashes[start : start + 512]
        near = np.bitwise_count(block[:, None] ^ hashes[None, start:]) <= BITS
        near &= units[start : start + 512, None] != units[None, start:]
        rows, columns = np.nonzero(np.triu(near, 1))
        found.append(pair_keys(rows + start, columns + start))
    keys = np.concatenate(found)
    seconds = time.perf_counter() - begin
    return {"s": seconds, "pairs": len(keys), "skipped": 0, "crowded": 0} | recall(data, keys, np.arange(len(hashes)))


def pair_keys(first: Codes, second: Codes) -> Hashes:
    low, high = np.minimum(first, second).astype(np.uint64), np.maximum(first, second).astype(np.uint64)
    return (low << np.uint64(32)) | high


def recall(data: Sets, keys: Hashes, searched: Codes) -> dict[str, Any]:
    """Share of the planted pairs found, of those with up to 6, and with 8 and 10 bits; in `searched` hashes."""
    hashes, _, originals, copies = data
    bits = np.bitwise_count(hashes[originals] ^ hashes[copies])
    there = np.isin(originals, searched) & np.isin(copies, searched)
    hit = np.isin(pair_keys(originals, copies), keys)
    shares = {"to 6 bits": bits <= 6, "8 bits": bits == 8, "10 bits": bits == 10}
    return {name: float(hit[there & chosen].mean()) for name, chosen in shares.items()}


def apart(work: Callable[[Sets, int], dict[str, Any]], data: Sets, workers: int) -> dict[str, Any]:
    """`work` in a process of its own, with the memory that it took beyond the hashes."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def call(pipe: Connection) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        before, begin = memory("VmRSS"), time.process_time()
        found = work(data, workers)
        pipe.send(found | {"CPU s": time.process_time() - begin, "MB": (memory("VmHWM") - before) / 1e6})

    process = context.Process(target=call, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return dict(ours.recv())
    except EOFError:
        return {}
    finally:
        process.join()


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def row(name: str, kind: str, n: int, found: dict[str, Any], scale: float = 1.0) -> dict[str, object]:
    if not found:
        return {"search": name, "hashes": f"{n:,} {kind}", **dict.fromkeys(HEAD, "–")}
    scaled = "" if scale == 1 else f" (all: {found['s'] * scale:,.0f})"
    values = (
        f"{found['s']:.1f}{scaled}",
        f"{found['CPU s']:.1f}",
        f"{found['MB']:,.0f}",
        f"{found['pairs']:,}",
        f"{found['skipped']:,}",
        f"{found['crowded']:,}",
    )
    return {
        "search": name,
        "hashes": f"{n:,} {kind}",
        **dict(zip(HEAD, [*values, *(f"{found[key]:.3f}" for key in HEAD[6:])], strict=True)),
    }


HEAD = ("s", "CPU s", "MB", "pairs", "spared", "crowded", "to 6 bits", "8 bits", "10 bits")
KINDS = {"random": random_hashes, "crowded": crowded_hashes, "heaps": heap_hashes, "clips": clip_hashes}


def has_faiss() -> bool:
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hashes", type=int, nargs="+", default=[200_000, 1_000_000, 5_000_000])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--naive", type=int, default=20_000, help="hashes whose pairs are all compared")
    parser.add_argument("--faiss", type=int, default=200_000, help="faiss takes part in sets of at most so many")
    args = parser.parse_args()
    rows = []
    for kind in args.kinds:
        for n in args.hashes:
            data = planted(KINDS[kind], n)
            rows.append(row("usdata", kind, n, apart(ours, data, args.workers)))
            if n <= args.faiss and has_faiss():
                rows.append(row("faiss MultiHash", kind, n, apart(faiss_multihash, data, args.workers)))
            print(rows[-1], flush=True)
        small = planted(KINDS[kind], args.naive)
        rows.append(row("usdata", kind, args.naive, apart(ours, small, args.workers)))
        scale = (max(args.hashes) / args.naive) ** 2
        rows.append(row("all pairs", kind, args.naive, apart(naive, small, 1), scale))
    print(f"\n{describe()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
