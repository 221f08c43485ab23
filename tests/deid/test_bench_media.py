"""Secrets in PNG, JPEG, TIFF, BMP, GIF, AVI and MP4 files, in names, links and archives: none comes out."""

import pytest
from fakes.deid_bench import Bench, left_over
from fakes.deid_media import stills
from fakes.deid_names import tar_archive, tree, zip_archive
from fakes.deid_run import World, ingest
from fakes.deid_search import Needles
from fakes.deid_secrets import Secret, word
from fakes.deid_videos import videos


def check(bench: Bench, *runs) -> None:
    leaks = bench.leaks(*runs)
    print("\n" + bench.table(leaks))
    print(dict(bench.summary()))
    assert not leaks, [str(leak) for leak in leaks[:20]]
    assert not bench.odd_forms() and not left_over(bench.world)
    assert "lost" not in bench.summary()
    assert all(b"Traceback" not in run.stderr for run in runs)


def media(world: World, every: int, cut: bool = False) -> Bench:
    bench = Bench(world)
    for number, (place, content, secret) in enumerate([*stills(), *videos()]):
        if number % every == 0:
            bench.put(place.name, content, [secret], place.suffix)
            if cut:  # and damaged, so that an error has something to quote
                bench.put(f"{place.name}, cut", content[: len(content) * 2 // 3], [secret], place.suffix)
    return bench


def test_no_secret_of_a_picture_video_or_name_comes_out(world):
    bench = media(world, every=9)
    bench.everywhere = tree(world.source / "more")
    check(bench, ingest(world, as_json=False))


@pytest.mark.deid
@pytest.mark.parametrize("as_json", [True, False])
def test_no_secret_of_any_place_in_pictures_and_videos_comes_out(world, as_json):
    bench = media(world, every=1, cut=True)
    check(bench, ingest(world, workers=2, as_json=as_json))


@pytest.mark.deid
def test_no_name_of_a_file_or_folder_comes_out(world):
    bench = Bench(world, everywhere=tree(world.source))
    runs = [ingest(world), ingest(world, "--dry-run"), ingest(world, as_json=False)]
    check(bench, *runs)


@pytest.mark.deid
@pytest.mark.parametrize(("name", "make"), [("files.zip", zip_archive), ("files.tar", tar_archive)])
def test_no_name_of_an_archive_or_its_members_comes_out(world, name, make):
    (world.root / "in").mkdir()
    archive = world.root / "in" / name
    bench = Bench(world, everywhere=make(archive))
    run = ingest(world, source=archive)
    check(bench, run)
    assert run.record["samples"] >= 1, run.stderr


@pytest.mark.deid
def test_the_name_of_the_folder_or_archive_itself_is_not_written(world):
    place = "name/root"
    folder = world.root / word(place)
    folder.mkdir()
    (world.root / f"{word(place)}.zip").write_bytes(b"PK\x03\x04 no archive")
    runs = [ingest(world, source=folder), ingest(world, source=world.root / f"{word(place)}.zip")]
    runs.append(ingest(world, source=world.root / f"{word(place)}-missing"))
    assert all(run.code == 1 for run in runs)
    needles = Needles([Secret(place, (word(place),), word(place))])
    for run in runs:
        leaks = [leak for leak in needles.search(run.artifacts()) if leak.where != "process list"]
        assert not leaks, leaks
