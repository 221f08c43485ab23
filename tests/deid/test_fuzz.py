"""Damaged files through the real ingest: no crash, no hang, no flood of memory, no quote, every file accounted for."""

import itertools

import pytest
from fakes.deid_bench import Bench, left_over
from fakes.deid_mutate import BOMBS, mutant, seeds
from fakes.deid_run import Run, World, ingest

MEMORY = 2 << 30  # bytes, the most that any process may take
PATIENCE = 10  # seconds that one file may take
FOLDER = 250


def fuzz(world: World, numbers: range, workers: int = 1) -> tuple[Bench, Run, dict[str, str]]:
    """Ingest a folder of mutants; the states by file, with how each was damaged."""
    bench, known = Bench(world), {secret.place: secret for _, found in seeds().values() for secret in found}
    bench.everywhere = list(known.values())
    for number in numbers:
        made = mutant(number)
        bench.put(f"{number}: {', '.join(made.ways)}", made.content, suffix=made.name.rpartition(".")[2])
    run = ingest(world, workers=workers)
    return bench, run, bench.states()


def check(bench: Bench, run: Run, states: dict[str, str]) -> None:
    summary = bench.summary()
    print(dict(summary), f"{run.seconds:.0f} s, peak {run.seen.peak >> 20} MiB")
    for state in ("internal", "decoder_died", "too_slow", "too_much_memory"):
        print(state, [label for label, found in states.items() if found == state])
    assert run.code in (0, 1) and b"Traceback" not in run.stderr, run.stderr.decode()[-3000:]
    assert "lost" not in summary and sum(summary.values()) == len(bench.planted)
    assert summary["internal"] == 0, "a bug of ours met these files"
    assert summary["too_slow"] == 0, f"longer than {PATIENCE} s"
    assert run.seen.peak < MEMORY
    leaks = bench.leaks(run)
    assert not leaks, [str(leak) for leak in leaks[:20]]
    assert not bench.odd_forms() and not left_over(bench.world)


def test_damaged_files_are_kept_out_without_a_word(world):
    check(*fuzz(world, range(len(BOMBS), len(BOMBS) + 150)))


@pytest.mark.deid
def test_bombs_are_kept_out(world):
    bench, run, states = fuzz(world, range(len(BOMBS)))
    check(bench, run, states)
    print(states)
    kept = {label.partition(": ")[2] for label, state in states.items() if state == "accepted"}
    assert kept <= {"png text bomb", "tif directory loop"}, kept  # their pictures are whole


@pytest.mark.deid
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(20))
def test_5000_damaged_files_are_kept_out_without_a_word(world, part):
    first = len(BOMBS) + 150 + part * FOLDER
    check(*fuzz(world, range(first, first + FOLDER), workers=2))


def test_a_mutant_is_the_same_for_the_same_number():
    for number in itertools.chain(range(len(BOMBS), 40), (4000,)):
        assert mutant(number) == mutant(number)
