"""Secrets in every place of a DICOM header: none comes out, whatever becomes of the file."""

import pytest
from fakes.deid_bench import Bench, left_over
from fakes.deid_places import PLACES, dictionary, drafts
from fakes.deid_run import World, ingest, outcomes

# What may keep a file out: these are damaged, or not what is read, by what was planted.
REFUSED = {
    "file/preamble": {"accepted", "trailing_bytes"},
    "file/tail": {"trailing_bytes"},
    "file/padding": {"accepted", "trailing_bytes"},
    "file/pixels": {"pixel_length"},
}


def planted(world: World, every: int = 1, places=PLACES, each: bool = False) -> Bench:
    """A bench with the files of every n-th family of places."""
    bench = Bench(world)
    for number, (family, draft) in enumerate(drafts(tuple(places), each)):
        if number % every == 0:
            bench.put(family, draft)
    return bench


def check(bench: Bench, *runs) -> None:
    """The gate: no leak, nothing left over, every file accounted for, no traceback."""
    leaks = bench.leaks(*runs)
    print("\n" + bench.table(leaks))
    print(dict(bench.summary()))
    assert not leaks, [str(leak) for leak in leaks[:20]]
    assert not bench.odd_forms()
    assert not left_over(bench.world)
    assert "lost" not in bench.summary()
    for run in runs:
        assert b"Traceback" not in run.stderr, run.stderr.decode()[-2000:]
        assert run.seen.peak < 2 << 30


def test_no_secret_of_a_header_comes_out_and_dates_are_shifted(world):
    bench = planted(world, every=14)
    check(bench, ingest(world))
    assert bench.summary()["accepted"] > 0.7 * len(bench.planted)
    stored, found = outcomes(world), 0
    for relative, when in source_dates(bench).items():
        for row in stored[relative].rows:
            found += row["study_date"] is not None
            assert row["study_date"] is None or "2009-01-01" < row["study_date"] < when, "one day to ten years earlier"
    assert found > 0.5 * len(bench.planted)


@pytest.mark.deid
@pytest.mark.parametrize("workers", [1, 2])
def test_no_secret_of_any_place_comes_out(world, workers):
    bench = planted(world)
    run = ingest(world, workers=workers, as_json=workers == 1)
    check(bench, run)
    states = bench.states()
    odd = {label: state for label, state in states.items() if state not in REFUSED.get(label, {"accepted"})}
    assert len(odd) < 0.05 * len(states), odd


@pytest.mark.deid
def test_no_secret_of_any_attribute_of_the_standard_comes_out(world):
    bench = planted(world, places=dictionary())
    check(bench, ingest(world, workers=2))


@pytest.mark.deid
@pytest.mark.timeout(1800)
def test_no_secret_comes_out_when_it_stands_alone_in_its_file(world):
    bench = planted(world, places=[p for p in PLACES if not p.name.startswith("annex-e/")], each=True)
    check(bench, ingest(world, workers=2))


def source_dates(bench: Bench) -> dict[str, str]:
    """Relative path -> the study's date in the file, as the catalog would write it."""
    import pydicom

    found = {}
    for relative in bench.planted:
        text = str(pydicom.dcmread(bench.world.source / relative, stop_before_pixels=True).get("StudyDate", ""))
        found[relative] = f"{text[:4]}-{text[4:6]}-{text[6:]}"
    return found
