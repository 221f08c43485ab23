"""Runs as a whole: the same key gives the same bytes, another key nothing in common, a killed run leaves no secret."""

import itertools
import os
import shutil

import pyarrow.parquet as pq
import pytest
from fakes.deid_bench import Bench, left_over
from fakes.deid_dicom import screen, ultrasound
from fakes.deid_media import plain
from fakes.deid_mutate import mutant, seeds
from fakes.deid_names import tree
from fakes.deid_places import PLACES, drafts
from fakes.deid_run import SITE, World, ingest, outcomes, write_key
from fakes.folders import tree_digest

KEYED = ("sample_id", "source_id", "source_xxh", "patient", "study", "clip")


def mixed(world: World, number: int = 10) -> Bench:
    """Stills, a cine, pictures, and damaged files; some of one patient."""
    bench = Bench(world)
    for family, draft in itertools.islice(drafts(PLACES), 3, None, max(1, 168 // number)):
        bench.put(family, draft)
    bench.put("cine", ultrasound("runs/cine", screen(frames=4).frames))
    bench.put("png", plain("png"), suffix="png")
    for count in (13, 17, 20):
        made = mutant(count)
        bench.put(f"mutant {count}", made.content, suffix=made.name.rpartition(".")[2])
    return bench


def columns(world: World, name: str) -> list:
    return pq.read_table(world.lake / "catalog" / "samples" / f"{SITE}.parquet").column(name).to_pylist()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """One run of one worker, to which others are compared: only read."""
    world = World(tmp_path_factory.mktemp("first"))
    bench = mixed(world)
    return bench, ingest(world)


def again(first, tmp_path, **how):
    """Another run over the same files, in a world of its own."""
    world = World(tmp_path / "again")
    shutil.copytree(first[0].world.source, world.source, dirs_exist_ok=True)
    if "key" in how:
        world.key.unlink()
        write_key(world.key, how.pop("key"))
    return world, ingest(world, **how)


def test_a_run_leaves_no_secret_and_accounts_for_every_file(first):
    bench, run = first
    assert run.code == 0, run.stderr
    assert not bench.leaks(run) and not left_over(bench.world)
    assert sum(bench.summary().values()) == len(bench.planted) and "lost" not in bench.summary()
    counts = run.record
    assert counts["items"] + sum(counts["reasons"].values()) >= counts["files"] - counts["ignored"]


def test_two_workers_write_the_same_bytes_as_one(first, tmp_path):
    world, run = again(first, tmp_path, workers=2)
    assert run.code == 0, run.stderr
    assert tree_digest(world.lake) == tree_digest(first[0].world.lake)


@pytest.mark.deid
def test_a_second_run_changes_nothing_and_says_nothing(first, tmp_path):
    world, _ = again(first, tmp_path)
    before = tree_digest(world.lake)
    run = ingest(world, as_json=False)
    assert run.code == 0 and tree_digest(world.lake) == before
    first[0].world, kept = world, first[0].world
    try:
        assert not first[0].leaks(run)
    finally:
        first[0].world = kept


@pytest.mark.deid
def test_with_another_key_no_identity_is_the_same(first, tmp_path):
    world, run = again(first, tmp_path, key=2)
    assert run.code == 0, run.stderr
    for name in KEYED:
        ours, theirs = set(columns(first[0].world, name)), set(columns(world, name))
        assert not (ours & theirs) - {None}, name
    dates = [dict(zip(columns(w, "pixel_xxh"), columns(w, "study_date"), strict=True)) for w in (world, first[0].world)]
    same = [key for key in dates[0] if dates[0][key] and dates[0][key] == dates[1].get(key)]
    assert len(same) <= 1, "days are shifted by the key"


def test_the_order_in_the_lake_is_not_that_of_names(first):
    world = first[0].world
    kept = outcomes(world)
    by_name = [row["sample_id"] for name in sorted(kept) for row in kept[name].rows]
    assert len(by_name) > 8 and columns(world, "sample_id") != by_name


def test_the_key_is_in_no_argument_variable_file_or_message(first):
    bench, run = first
    assert not [leak for leak in bench.leaks(run) if leak.place == "the key"]
    assert len(run.seen.told) > 2, "no process was seen"


@pytest.mark.deid
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_file_that_others_can_read_is_refused(world, mode):
    Bench(world).put("one", ultrasound("runs/key"))
    world.key.chmod(mode)
    run = ingest(world)
    assert run.code == 1 and b"chmod" in run.stderr
    assert not (world.lake / "shards").exists()


@pytest.mark.deid
def test_without_a_key_nothing_is_read(world):
    Bench(world).put("one", ultrasound("runs/no key"))
    world.key.unlink()
    run = ingest(world)
    assert run.code == 1 and not (world.lake / "shards").exists()


@pytest.mark.deid
@pytest.mark.parametrize("seconds", [2.0, 4.0, 6.0, 9.0])
def test_a_killed_run_leaves_no_secret_and_is_finished_by_the_next(world, seconds):
    bench = mixed(world, 40)
    bench.everywhere = tree(world.source / "more")
    killed = ingest(world, workers=2, kill_after=seconds)
    leaks = [leak for leak in bench.leaks(killed) if not leak.where.startswith("area/")]
    assert not leaks, [str(leak) for leak in leaks[:10]]
    last = ingest(world, workers=2)
    assert last.code == 0, last.stderr
    leaks = bench.leaks(killed, last)
    assert not leaks, [str(leak) for leak in leaks[:10]]
    assert not left_over(world) and "lost" not in bench.summary()


@pytest.mark.deid
def test_what_fails_quotes_nothing_in_any_form_of_output(world):
    bench = Bench(world)
    for number in range(12, 132):
        made = mutant(number)
        bench.put(f"{number} {made.ways[0]}", made.content, seeds().get(made.ways[0], (b"", ()))[1], made.name[-3:])
    runs = [ingest(world, as_json=False), ingest(world), ingest(world, "--dry-run")]
    runs.append(ingest(world, env={"PYTHONVERBOSE": "", "PYTHONDEVMODE": "1", "PYTHONFAULTHANDLER": "1"}))
    leaks = bench.leaks(*runs)
    assert not leaks, [str(leak) for leak in leaks[:10]]


@pytest.mark.deid
def test_a_full_or_closed_lake_quotes_nothing(world):
    bench = mixed(world)
    world.lake.mkdir()
    world.lake.chmod(0o500)
    run = ingest(world)
    world.lake.chmod(0o700)
    if os.geteuid() != 0:  # root may write anywhere
        assert run.code == 1
    assert not bench.leaks(run)
