"""Balanced draws and epochs over many millions of images, against what PyTorch and NumPy offer for it.

Run: python benchmarks/sampler.py [--images 16777216 20000000 100000000] [--draws 1000000]
Each contender runs in a process of its own, from the group of each image (2 bytes) to row numbers. Memory is what the
process holds more after building than before (its resident set), and the most while building. Shares are judged by
4 x `--draws` draws: the largest error of a group's share in standard deviations of a binomial (3 is usual for 40
groups), and the p-value of a chi-square over the groups and 1,000 stretches of neighbouring images (below 0.001: the
draws do not follow the weights).
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, table
from numpy.typing import NDArray
from scipy import stats

from usdata.sampling import BalancedSampler, EpochSampler, group_probabilities
from usdata.schema import taxonomy

GAMMA = 0.5
BATCH = 256
STRETCHES = 1000
TARGETS = "Targets at 20 million images: build < 1 s, 1 million draws < 0.1 s, share error within binomial noise."

Codes = NDArray[np.int16]
Rows = NDArray[np.int64]


# --- what is drawn from ---------------------------------------------------------------------------------------------


def usfm(images: int) -> Codes:
    """The twelve organs of USFM's 3M-US, in proportion, one after the other."""
    counts = np.array(list(taxonomy()["usfm12_images_in_3m_us"].values()))
    sizes = np.maximum(1, counts * images // counts.sum())
    sizes[0] += images - sizes.sum()
    return np.repeat(np.arange(12, dtype=np.int16), sizes)


def shards(images: int) -> Codes:
    """As a catalog lists them: 72 data sets, each with a few of 40 organs; sizes span five orders of magnitude."""
    rng = np.random.default_rng(0)
    organs = np.concatenate([np.sort(rng.choice(40, rng.integers(1, 9), replace=False)) for _ in range(72)])
    organs = np.concatenate([organs, np.setdiff1d(np.arange(40), organs)])
    sizes = 10 ** (rng.uniform(0, 1, len(organs)) + 4 * rng.permutation(40)[organs] / 39)
    sizes = np.maximum(1, np.floor(sizes * images / sizes.sum())).astype(np.int64)
    sizes[sizes.argmax()] += images - sizes.sum()
    return np.repeat(organs.astype(np.int16), sizes)


def mixed(images: int) -> Codes:
    """The same in clips of 16 frames in any order, as if the groups were a label: the worst case for memory."""
    codes = shards(images)[: images // 16 * 16].reshape(-1, 16)
    return codes[np.random.default_rng(1).permutation(len(codes))].ravel()


# --- contenders -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """`build` makes whatever is needed from the group of each image; `draw` gives so many row numbers from it."""

    name: str
    build: Callable[[Codes], Any]
    draw: Callable[[Any, int], Rows | list[int]]


def image_weights(codes: Codes) -> NDArray[np.float64]:
    """1/N^(1 - gamma) of each image's group, as one gives it to a weighted sampler; sums to 1."""
    counts = np.bincount(codes)
    shares = group_probabilities(counts, GAMMA)
    weights: NDArray[np.float64] = (shares / np.maximum(counts, 1))[codes]
    return weights


def torch_weighted(codes: Codes) -> Any:
    import torch

    return torch.from_numpy(image_weights(codes))


def draw_torch_weighted(weights: Any, draws: int) -> list[int]:
    from torch.utils.data import WeightedRandomSampler

    return list(WeightedRandomSampler(weights, draws))


def torch_float32(codes: Codes) -> Any:
    return torch_weighted(codes).float()


def draw_torch_float32(weights: Any, draws: int) -> Rows:
    import torch

    return np.asarray(torch.multinomial(weights, draws, replacement=True).numpy())


def draw_numpy_choice(weights: NDArray[np.float64], draws: int) -> Rows:
    return np.random.default_rng(0).choice(len(weights), draws, p=weights)


def by_hand(codes: Codes) -> Any:
    import torch

    counts = np.bincount(codes)
    return torch.from_numpy(group_probabilities(counts, GAMMA)), counts, np.argsort(codes, kind="stable")


def draw_by_hand(parts: Any, draws: int) -> Rows:
    import torch

    shares, counts, order = parts
    group = torch.multinomial(shares, draws, replacement=True).numpy()
    inside = np.random.default_rng(0).integers(0, counts[group])
    rows: Rows = order[(np.cumsum(counts) - counts)[group] + inside]
    return rows


OURS = Contender(
    "usdata BalancedSampler", lambda codes: BalancedSampler(codes, GAMMA, 0), lambda s, draws: s.draw(0, 0, draws)
)
FLOAT32 = Contender("torch.multinomial, float32 weights", torch_float32, draw_torch_float32)
RIVALS = [
    Contender("torch WeightedRandomSampler", torch_weighted, draw_torch_weighted),
    FLOAT32,
    Contender("numpy Generator.choice(p=…)", image_weights, draw_numpy_choice),
    Contender("torch.multinomial of groups + argsort", by_hand, draw_by_hand),
]


# --- measuring -------------------------------------------------------------------------------------------------------


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory; `VmHWM`: the most since the last `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of three runs, or of one that takes longer than a second."""
    first, _ = timed(work)
    return first if first > 1 else min(first, *(timed(work)[0] for _ in range(2)))


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`work` in a process of its own, so that nothing is left in memory."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def call(pipe: Connection) -> None:
        pipe.send(work())

    process = context.Process(target=call, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return dict(ours.recv())
    except EOFError:
        return {"note": "the process was killed: out of memory"}
    finally:
        process.join()


def balanced(contender: Contender, codes: Codes, draws: int) -> dict[str, Any]:
    """Build, draw, weigh and judge."""
    if contender is not OURS:
        import torch

        torch.manual_seed(0)
    contender.build(codes[:1000].copy())  # what a first call loads is no part of the index
    forget_peak()
    before = resident()
    build, built = timed(lambda: contender.build(codes))
    found: dict[str, Any] = {
        "build, s": f"{build:.3g}",
        "bytes per image": f"{max(0, resident() - before) / len(codes):.2f}",
        "peak while building": f"{max(0, resident('VmHWM') - before) / len(codes):.2f}",
    }
    try:
        found["draws, s"] = f"{best(lambda: contender.draw(built, draws)):.3g}"
        rows = np.asarray(contender.draw(built, 4 * draws))
    except RuntimeError as error:
        return found | {"note": str(error).splitlines()[0]}
    return found | judged(codes, rows)


def judged(codes: Codes, rows: Rows) -> dict[str, Any]:
    counts = np.bincount(codes)
    shares = group_probabilities(counts, GAMMA)
    drawn = np.bincount(codes[rows], minlength=len(shares))
    some = shares > 0
    sigma = np.sqrt(len(rows) * shares * (1 - shares))[some]
    errors = np.abs(drawn - len(rows) * shares)[some] / sigma
    # each image's stretch, cut at group borders, so that all images of a cell weigh the same
    step = -(-len(codes) // STRETCHES)
    cells = np.bincount(rows // step, minlength=STRETCHES)
    weights = image_weights(codes)
    expected = np.add.reduceat(weights, np.arange(0, len(codes), step)) * len(rows)
    cells = cells[: len(expected)]
    big = expected > 5
    p_groups = stats.chisquare(drawn[some], shares[some] / shares[some].sum() * len(rows)).pvalue
    p_cells = stats.chisquare(cells[big], expected[big] * cells[big].sum() / expected[big].sum()).pvalue
    return {"largest error, σ": f"{errors.max():.1f}", "p groups": f"{p_groups:.2g}", "p images": f"{p_cells:.2g}"}


COLUMNS = ("build, s", "draws, s", "bytes per image", "peak while building", "largest error, σ", "p groups", "p images")


def balanced_row(contender: Contender, layout: str, codes: Codes, draws: int) -> dict[str, object]:
    found = apart(lambda: balanced(contender, codes, draws))
    head = {"balanced draws": contender.name, "images": f"{len(codes):,}", "groups": layout}
    return head | {name: found.get(name, "–") for name in COLUMNS} | {"note": found.get("note", "")}


# --- each image once --------------------------------------------------------------------------------------------------


def once_ours(images: int, draws: int) -> dict[str, Any]:
    before = resident()
    build, sampler = timed(lambda: EpochSampler(images, 0))
    held = resident() - before
    first, _ = timed(lambda: sampler.draw(0, 0, BATCH))
    later, _ = timed(lambda: sampler.draw(7, images - BATCH, images))
    many = best(lambda: sampler.draw(0, 0, draws))
    return once(images, held, build + first, later, many)


def once_numpy(images: int, draws: int) -> dict[str, Any]:
    before = resident()
    build, order = timed(lambda: np.random.default_rng(0).permutation(images))
    held = resident() - before
    many, _ = timed(lambda: order[:draws].copy())
    later, _ = timed(lambda: np.random.default_rng(7).permutation(images)[images - BATCH :])
    return once(images, held, build, later, many)


def once_torch(images: int, draws: int) -> dict[str, Any]:
    import torch
    from torch.utils.data import RandomSampler

    generator = torch.Generator().manual_seed(0)
    before = resident()
    rows = iter(RandomSampler(range(images), generator=generator))
    first, _ = timed(lambda: [next(rows) for _ in range(BATCH)])
    held = resident() - before
    many, _ = timed(lambda: [next(rows) for _ in range(draws)])
    rest, _ = timed(lambda: sum(1 for _ in rows))  # no way to a place but through all before it
    return once(images, held, first, first + rest, many)


def once(images: int, held: int, first: float, later: float, many: float) -> dict[str, Any]:
    return {
        "first batch, s": f"{first:.3g}",
        "resume at the last batch of an epoch, s": f"{later:.3g}",
        "draws, s": f"{many:.3g}",
        "bytes per image": f"{max(0, held) / images:.2f}",
    }


def once_row(name: str, work: Callable[[int, int], dict[str, Any]], images: int, draws: int) -> dict[str, object]:
    return {"each image once": name, "images": f"{images:,}", **apart(lambda: work(images, draws))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2**24, 20_000_000, 100_000_000])
    parser.add_argument("--draws", type=int, default=1_000_000)
    args = parser.parse_args()
    rows, once_rows = [], []
    for images in args.images:
        for layout, make in (("12 organs in a row", usfm), ("40 organs, in shards", shards), ("40, mixed", mixed)):
            codes = make(images)
            rivals = [r for r in RIVALS if r is not FLOAT32 or images <= 2**24]  # else the error of the one before
            contenders = [OURS, *rivals] if make is mixed else [OURS]
            rows += [balanced_row(contender, layout, codes, args.draws) for contender in contenders]
            del codes
    for name, work in (("usdata EpochSampler", once_ours), ("numpy permutation", once_numpy)):
        once_rows.append(once_row(name, work, max(args.images), args.draws))
    once_rows.append(once_row("torch RandomSampler", once_torch, min(args.images), args.draws))
    print(f"\n{describe()}\n{TARGETS} `draws` are {args.draws:,}.\n")
    print(table(rows) + "\n\n" + table(once_rows))


if __name__ == "__main__":
    main()
