"""Streams of a lake on an S3 server that refuses, cuts, garbles and dies: the batches are those of the plan."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from fakes.s3 import IMPATIENT, Flaky, bucket, many_shards, s3_server, upload

from usdata.cohort import Cohort
from usdata.errors import ConfigError, LakeError
from usdata.files import locked, read_json, write_json
from usdata.lake import Lake
from usdata.remote import Patience

SOON = Patience(tries=5, first=0.01, longest=0.05, timeout=20)
BIG = "organ in ('breast', 'fetal_head')"  # organs with at least two shards


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return many_shards(tmp_path_factory.mktemp("stream") / "lake")


@pytest.fixture(scope="module")
def server(local: Lake) -> Iterator[tuple[str, Flaky]]:
    with s3_server() as (direct, proxy):
        upload(local.root, direct, "bucket/lake")
        yield direct, proxy


@pytest.fixture
def proxy(server: tuple[str, Flaky], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flaky:
    """The proxy without faults, and an empty cache."""
    monkeypatch.setenv("USDATA_CACHE", str(tmp_path / "cache"))
    server[1].reset()
    return server[1]


def far_cohort(proxy: Flaky, expression: str = "all", lake: str = "lake") -> Cohort:
    options = {"endpoint_url": proxy.url, "config_kwargs": IMPATIENT}
    opened = Lake(f"s3://bucket/{lake}", options)
    assert opened.remote is not None
    opened.remote.patience = SOON
    return opened.cohort(expression)


def summary(batches: Any) -> list[tuple[list[str], str]]:
    """Ids and a hash of the pixels of each batch."""
    return [(b["sample_id"], xxhash.xxh3_64(b["image"].numpy().tobytes()).hexdigest()) for b in batches]


def stream(cohort: Cohort, **options: Any) -> Any:
    return cohort.stream(8, **({"gamma": None, "columns": ["sample_id"], "split": "samples", "workers": 0} | options))


def ids_of(batches: list[tuple[list[str], str]]) -> list[str]:
    return [name for ids, _ in batches for name in ids]


def failing(*kinds: str | int, times: int = 1) -> Any:
    """The first `times` requests for each shard go wrong, each in another way."""
    lock, asked = threading.Lock(), Counter[str]()

    def fault(method: str, path: str) -> str | int | None:
        if method != "GET" or "/shards/" not in path:
            return None
        with lock:
            number = asked[path]
            asked[path] += 1
            return kinds[(number + len(asked)) % len(kinds)] if number < times else None

    return fault


# --- the same batches, whatever happens on the way ------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, None])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_stream_from_s3_gives_the_batches_of_a_stream_of_the_local_lake(local, proxy, workers, gamma):
    near = stream(local.cohort(), gamma=gamma, mask=True)
    far = stream(far_cohort(proxy), gamma=gamma, mask=True, workers=workers)
    for epoch in range(2):
        assert (near.epoch, far.epoch) == (epoch, epoch)
        for a, b in zip(near, far, strict=True):
            assert a.keys() == b.keys() == {"image", "mask", "has_mask", "sample_id"}
            assert a["sample_id"] == b["sample_id"]
            assert all((a[key] == b[key]).all() for key in ("image", "mask", "has_mask"))


def test_the_pixels_masks_and_columns_are_those_of_the_random_access_loader(local, proxy):
    cohort = local.cohort("organ = 'breast'")
    row = {name: i for i, name in enumerate(cohort.table(["sample_id"])["sample_id"].to_pylist())}
    columns = ["sample_id", "organ", "width", "patient"]
    whole = next(iter(cohort.batches(cohort.rows, columns, mask=True)))
    for batch in far_cohort(proxy, "organ = 'breast'").stream(8, columns=columns, mask=True):
        rows = [row[name] for name in batch["sample_id"]]
        assert batch["image"].dtype == whole["image"].dtype
        assert batch["image"].shape == (8, 1, 256, 256)
        for key in ("image", "mask", "has_mask", "width"):
            assert (batch[key] == whole[key][rows]).all()
            assert batch[key].dtype == whole[key].dtype
        assert batch["organ"] == ["breast"] * 8
        assert batch["patient"] == [whole["patient"][i] for i in rows]


@pytest.mark.parametrize(
    ("kind", "workers"), [("reset", 3), ("slow", 3), ("cut", 3), ("short", 3), ("flip", 3), (503, 3), ("cut", 0)]
)
def test_failures_change_no_batch(local, proxy, kind, workers):
    wanted = summary(stream(local.cohort()))
    cohort = far_cohort(proxy)
    proxy.fault = failing(kind)
    assert summary(stream(cohort, workers=workers)) == wanted
    assert len(proxy.applied) == len(set(proxy.fetched("/shards/"))) > 10
    assert sorted(ids_of(wanted)) == sorted(cohort.ids.to_pylist())


def test_with_all_failures_at_once_two_ranks_show_every_image_once(local, proxy):
    proxy.fault = failing("reset", "cut", "flip", "short", 500, times=3)
    shown = Counter[str]()
    for rank in range(2):
        shown.update(ids_of(summary(stream(far_cohort(proxy), rank=rank, world=2, workers=2))))
    assert shown == Counter(local.cohort().ids.to_pylist())
    assert {"reset", "cut", "flip", "short", 500} == set(proxy.applied)


def test_a_server_that_dies_for_a_while_is_waited_for(local, proxy):
    cohort = far_cohort(proxy)
    cohort.lake.remote.patience = Patience(tries=50, first=0.05, longest=0.1)
    proxy.stop()
    timer = threading.Timer(0.8, proxy.start)
    timer.start()
    start = time.perf_counter()
    assert summary(stream(cohort, workers=2)) == summary(stream(local.cohort()))
    assert time.perf_counter() - start > 0.8
    timer.join()


def test_after_the_last_try_the_error_names_shard_tries_and_reason(proxy):
    cohort = far_cohort(proxy, "organ = 'kidney'")
    proxy.fault = lambda method, path: "cut" if "/shards/" in path else None
    with pytest.raises(LakeError, match=r"5 tries, the last ended with: .+") as caught:
        list(stream(cohort, workers=1))
    assert caught.value.item == "shards/phantom/phantom-kidney-000000.tar"
    assert "same command again" in str(caught.value)
    assert len(proxy.fetched("/shards/")) == 5


def test_a_stream_goes_on_after_an_error_with_the_batch_that_failed(local, proxy):
    wanted = summary(stream(local.cohort(), window=1))
    loader = stream(far_cohort(proxy), window=1)
    got = []
    proxy.fault = lambda method, path: 503 if len(proxy.fetched("/shards/")) > 8 and "/shards/" in path else None
    with pytest.raises(LakeError):
        got += [one for batch in loader for one in summary([batch])]
    assert len(got) < len(wanted)
    proxy.reset()
    got = wanted[: loader.state_dict()["batch"]] + summary(loader)
    assert got == wanted


def test_without_permission_nothing_is_tried_again(proxy):
    cohort = far_cohort(proxy)
    proxy.fault = lambda method, path: 403 if "/shards/" in path else None
    with pytest.raises(LakeError, match="No permission"):
        list(stream(cohort))
    assert len(proxy.fetched("/shards/")) == 1


# --- a lake that is not what its manifest says ----------------------------------------------------------------------


@pytest.fixture
def copy(local: Lake, tmp_path: Path) -> Path:
    """A lake to be damaged."""
    shutil.copytree(local.root, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_flipped_pixel_of_a_local_shard_is_found(copy):
    path = sorted((copy / "shards").rglob("*.tar"))[0]
    data = bytearray(path.read_bytes())
    data[data.index(b"\x89PNG") + 30_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(LakeError, match="no canonical PNG"):
        list(stream(Lake(copy).cohort()))


def test_wrong_bytes_at_the_source_are_no_endless_loop(copy, server, proxy):
    upload(copy, server[0], "bucket/wrong")
    store, path = bucket(server[0]), "bucket/wrong/shards/phantom/phantom-breast-000000.tar"
    data = bytearray(store.cat_file(path))
    data[2000] ^= 1
    store.pipe_file(path, bytes(data))
    with pytest.raises(LakeError, match=r"not those that the manifest names \(3 fetches\)"):
        list(stream(far_cohort(proxy, "organ = 'breast'", "wrong")))
    assert len(proxy.fetched("breast-000000.tar")) == 3


@pytest.mark.parametrize("how", ["other bytes", "shorter", "gone"])
def test_a_data_set_replaced_after_opening_is_told_at_once(copy, server, proxy, how):
    upload(copy, server[0], "bucket/new")
    cohort = far_cohort(proxy, "organ = 'breast'", "new")
    store, top = bucket(server[0]), "bucket/new"
    for path in store.find(f"{top}/shards"):
        data = store.cat_file(path)
        if how == "gone":
            store.rm_file(path)
        else:
            store.pipe_file(path, data[:-512] + b"x" * 512 if how == "other bytes" else data[:3000])
    store.pipe_file(f"{top}/manifests/phantom.json", b"{}")
    with pytest.raises(LakeError, match="changed after it was opened") as caught:
        list(stream(cohort))
    assert "Open the lake" in str(caught.value)
    assert len(proxy.fetched("/shards/")) <= SOON.tries


def test_a_shard_missing_at_the_source_is_told(copy, server, proxy):
    upload(copy, server[0], "bucket/hole")
    bucket(server[0]).rm_file("bucket/hole/shards/phantom/phantom-breast-000001.tar")
    with pytest.raises(LakeError, match="lacks a shard") as caught:
        list(stream(far_cohort(proxy, "organ = 'breast'", "hole")))
    assert caught.value.item == "shards/phantom/phantom-breast-000001.tar"


def rewrite(lake: Path, change: Any) -> None:
    """Apply `change` to the members of a shard and put its new hash into the manifest: only the catalog differs."""
    import io
    import tarfile

    path, manifest = lake / "shards/phantom/phantom-breast-000000.tar", lake / "manifests/phantom.json"
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    record = read_json(manifest)
    entry = record["shards"]["phantom-breast-000000"]
    entry["xxh"], entry["size"] = xxhash.xxh3_128_hexdigest(path.read_bytes()), path.stat().st_size
    write_json(manifest, record)


def first_renamed(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    key = members[0][0].split(".")[0]
    return [(name.replace(key, "phantom-0000000000000000"), data) for name, data in members]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: [x for x in m if not x[0].startswith(m[0][0].split(".")[0])], "it lacks phantom-"),
        (lambda m: [*m, ("phantom-0000000000000000.json", b'{"sample_id": "phantom-0000000000000000"}')], "it holds 5"),
        (first_renamed, "of another sample"),
        (lambda m: [(n, b"{}" if n.endswith("json") else d) for n, d in m], "the JSON of"),
        (lambda m: [(n, d[:-1] + b"x" if n.endswith("0.png") or n.endswith("png") else d) for n, d in m], "canonical"),
        (lambda m: [x for x in m if x[0].endswith("json")], "image of"),
        (lambda m: [*m, m[-1]], "duplicate"),
    ],
)
def test_a_shard_that_does_not_hold_what_the_catalog_says_is_an_error(copy, change, words):
    rewrite(copy, change)
    with pytest.raises(LakeError, match=words) as caught:
        list(stream(Lake(copy).cohort("organ = 'breast'")))
    assert caught.value.item == "shards/phantom/phantom-breast-000000.tar"


def test_samples_that_the_cohort_does_not_select_are_left_out(local):
    breast = local.cohort("organ = 'breast'").ids.to_pylist()
    cohort = local.cohort(f"sample_id in ('{breast[0]}', '{breast[5]}', '{breast[-1]}')")
    assert sorted(ids_of(summary(stream(cohort)))) == sorted([breast[0], breast[5], breast[-1]])


def test_a_local_shard_that_was_replaced_is_refused(copy):
    cohort = Lake(copy).cohort("organ = 'breast'")
    loader = stream(cohort)
    shard = copy / "shards/phantom/phantom-breast-000000.tar"
    other = shard.with_suffix(".new")
    other.write_bytes(shard.read_bytes())
    other.replace(shard)
    with pytest.raises(LakeError, match="replaced after the cohort was opened"):
        list(loader)
    shard.unlink()
    with pytest.raises(LakeError, match="missing"):
        list(loader)


@pytest.mark.parametrize("entry", [{"xxh": "../../x"}, {"xxh": None}, {"size": -1}, {"samples": "4"}])
def test_a_manifest_that_can_not_be_is_refused_before_a_file_gets_its_name(copy, entry):
    path = copy / "manifests/phantom.json"
    manifest = read_json(path)
    manifest["shards"]["phantom-breast-000000"] |= entry
    write_json(path, manifest)
    with pytest.raises(LakeError, match="damaged") as caught:
        stream(Lake(copy).cohort("organ = 'breast'"))
    assert caught.value.item == "shards/phantom/phantom-breast-000000.tar"
    del manifest["shards"]["phantom-breast-000000"]
    write_json(path, manifest)
    with pytest.raises(LakeError, match="does not know"):
        stream(Lake(copy).cohort("organ = 'breast'"))


# --- the cache ------------------------------------------------------------------------------------------------------


def folder_bytes(cache: Path) -> int:
    """Bytes of all files, at a moment at which none comes or goes; a file that is being renamed counts once."""
    sizes = {}
    with locked(cache / ".lock", wait=True):
        for path in list(cache.iterdir()):
            with suppress(FileNotFoundError):
                stat = path.stat()
                sizes[stat.st_ino] = stat.st_size
    return sum(sizes.values())


def test_the_cache_keeps_to_its_limit_and_the_batches_stay_the_same(local, proxy, tmp_path):
    cohort = far_cohort(proxy, BIG)
    largest = max(p.stat().st_size for p in local.root.glob("shards/phantom/*.tar"))
    limit = 2 * largest + 1000
    loader = cohort.stream(4, gamma=0, columns=["sample_id"], window=1, workers=2, cache_bytes=limit)
    got, over, done = [], [], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            over.append(folder_bytes(tmp_path / "cache" / "shards"))

    thread = threading.Thread(target=watch)
    thread.start()
    for batch in loader:
        got += summary([batch])
    done.set()
    thread.join()
    assert largest < max(over) <= limit
    assert got == summary(local.cohort(BIG).stream(4, gamma=0, columns=["sample_id"], window=1))
    shards = {p.name for p in local.root.glob("shards/phantom/*.tar") if "breast" in p.name or "fetal" in p.name}
    assert len(shards) > 3  # more than have room
    assert len(set(proxy.fetched("/shards/"))) > 3


def test_a_cache_without_room_for_the_windows_is_refused_at_the_start(proxy):
    with pytest.raises(ConfigError, match=r"may hold 1,000 bytes, but .* have [\d,]+") as caught:
        stream(far_cohort(proxy), cache_bytes=1000)
    assert "cache_bytes" in str(caught.value)
    assert not proxy.fetched("/shards/")


def test_the_limit_can_come_from_the_environment(proxy, monkeypatch):
    monkeypatch.setenv("USDATA_CACHE_BYTES", "2000")
    with pytest.raises(ConfigError, match="may hold 2,000 bytes"):
        stream(far_cohort(proxy))
    monkeypatch.setenv("USDATA_CACHE_BYTES", "50 GB")
    with pytest.raises(ConfigError, match="'50 GB'"):
        stream(far_cohort(proxy))


def test_a_second_epoch_and_a_second_run_fetch_nothing(proxy):
    loader = stream(far_cohort(proxy), workers=2)
    first = summary(loader)
    fetched = proxy.fetched("/shards/")
    assert len(fetched) == len(set(fetched))
    summary(loader)
    assert summary(stream(far_cohort(proxy))) == first
    assert proxy.fetched("/shards/") == fetched


def test_a_damaged_or_cut_file_in_the_cache_is_fetched_again(proxy, tmp_path):
    wanted = summary(stream(far_cohort(proxy)))
    files = sorted((tmp_path / "cache" / "shards").glob("*.tar"))
    for i, path in enumerate(files[:6]):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if i % 2 else data[:1000])
    proxy.reset()
    assert summary(stream(far_cohort(proxy), workers=2)) == wanted
    assert len(proxy.fetched("/shards/")) == 6


def test_what_a_killed_process_left_is_removed_and_what_another_one_fetches_is_not(proxy, tmp_path):
    import fcntl

    folder = tmp_path / "cache" / "shards"
    folder.mkdir(parents=True)
    left, held = folder / f".{'0' * 32}.tmp", folder / f".{'1' * 32}.tmp"
    left.write_bytes(b"half")
    held.write_bytes(b"half")
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        summary(stream(far_cohort(proxy, "organ = 'kidney'")))
        assert not left.exists()
        assert held.exists()


PASS = """
import json, sys
from usdata.lake import Lake
loader = Lake("s3://bucket/lake").cohort().stream(
    8, gamma=None, columns=["sample_id"], split="samples", workers=2, rank=int(sys.argv[1]), world=2)
if len(sys.argv) > 2:
    loader.load_state_dict(json.loads(sys.argv[2]))
print(json.dumps([batch["sample_id"] for batch in loader]))
"""


def in_process(*arguments: object) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", PASS, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


# --- resuming -------------------------------------------------------------------------------------------------------


def test_two_new_processes_with_other_workers_go_on_with_the_next_batches_and_share_a_cache(local, proxy):
    loaders = [stream(local.cohort(), world=2, rank=rank, workers=3) for rank in range(2)]
    shown = Counter[str]()
    for loader in loaders:
        batches = iter(loader)
        shown.update(ids_of(summary([next(batches), next(batches)])))
    states = [json.dumps(loader.state_dict()) for loader in loaders]
    assert max(map(len, states)) < 10_000
    processes = [in_process(rank, state) for rank, state in enumerate(states)]
    rest = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    for rank, batches in enumerate(rest):
        assert batches == [ids for ids, _ in summary(stream(local.cohort(), world=2, rank=rank))][2:]
        shown.update(name for ids in batches for name in ids)
    assert shown == Counter(local.cohort().ids.to_pylist())
    assert max(Counter(proxy.fetched("/shards/")).values()) == 1


@pytest.mark.parametrize("gamma", [0.5, None])
def test_after_every_batch_a_restored_stream_gives_the_rest(local, gamma):
    options = {"gamma": gamma, "epoch_size": 50, "drop_last": True}
    whole = stream(local.cohort(), **options)
    wanted = [*summary(whole), *summary(whole)]
    running = stream(local.cohort(), **options)
    for done in range(1, len(wanted)):
        batches = iter(running) if (done - 1) % len(whole) == 0 else batches  # noqa: F821
        next(batches)
        fresh = stream(local.cohort(), workers=1, **options)
        fresh.load_state_dict(json.loads(json.dumps(running.state_dict())))
        assert [*summary(fresh), *summary(fresh)][: len(wanted) - done] == wanted[done:]


def test_a_state_of_another_stream_is_refused_with_the_reason(local):
    state = stream(local.cohort()).state_dict()
    others = {
        "seed was 0, is 1": stream(local.cohort(), seed=1),
        "window was 2, is 3": stream(local.cohort(), window=3),
        "ranks was 1, is 2": stream(local.cohort(), world=2),
        "gamma was None, is 0.5": stream(local.cohort(), gamma=0.5),
        "images was 60": stream(local.cohort("organ = 'breast'")),
        "by was organ": stream(local.cohort(), by="dataset"),
        "epoch_size was 60, is 40": stream(local.cohort(), epoch_size=40),
    }
    for words, loader in others.items():
        with pytest.raises(ConfigError, match=words):
            loader.load_state_dict(state)
    with pytest.raises(ConfigError, match="loader was random access, is stream"):
        stream(local.cohort()).load_state_dict(local.cohort().loader(8).state_dict())
    with pytest.raises(ConfigError, match="loader was stream, is random access"):
        local.cohort().loader(8, gamma=None).load_state_dict(state)


def test_images_that_lie_elsewhere_make_another_stream(local):
    loader = stream(local.cohort())
    other = stream(local.cohort())
    other.index.offset[0] += 512
    with pytest.raises(ConfigError, match="lie elsewhere"):
        loader.load_state_dict(other.state_dict())


# --- ranks and settings ---------------------------------------------------------------------------------------------


def test_too_few_shards_for_the_ranks_are_refused_with_the_way_out(local):
    with pytest.raises(ConfigError, match=r"'kidney' has 1 shard\(s\) for 2 ranks") as caught:
        local.cohort("organ in ('breast', 'kidney')").stream(4, world=2)
    assert 'split="samples"' in str(caught.value)
    assert len(local.cohort("organ in ('breast', 'kidney')").stream(4, world=2, split="samples"))


def test_the_loader_of_a_remote_cohort_is_a_stream_and_takes_its_options(proxy):
    cohort = far_cohort(proxy)
    assert cohort.loader(8).window == 2
    assert cohort.loader(8, world=2, streaming={"window": 3, "split": "samples"}).window == 3
    with pytest.raises(ConfigError, match="has 1 shard"):
        cohort.loader(8, world=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window is 0"),
        ({"split": "both"}, "'both'"),
        ({"workers": -1}, "workers is -1"),
        ({"rank": 2, "world": 2}, "rank is 2"),
        ({"epoch_size": 0}, "epoch_size is 0"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"epoch_size": 5, "drop_last": True}, "has no batch"),
        ({"epoch_size": 9, "world": 2}, None),
        ({"epoch_size": 17, "world": 2}, "has 1 for 2 ranks"),
    ],
)
def test_settings_that_make_no_sense_are_refused(local, options, words):
    if words is None:
        assert len(stream(local.cohort(), **options)) == 1
        return
    with pytest.raises(ConfigError, match=words):
        stream(local.cohort(), **options)


def test_an_empty_cohort_is_refused(local):
    with pytest.raises(ConfigError, match="empty"):
        local.cohort("organ = 'none'").stream(4)


def test_leaving_the_loop_ends_all_threads(local):
    for number, _ in enumerate(stream(local.cohort(), workers=3)):
        if number == 2:
            break
    import gc

    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("usdata-")]


def test_an_old_iterator_is_over_when_a_new_one_is_made(local):
    loader = stream(local.cohort())
    old = iter(loader)
    next(old)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="over"):
        next(old)


# --- all images, in order -------------------------------------------------------------------------------------------


def test_batches_and_images_of_a_remote_cohort_are_those_of_the_local_one(local, proxy):
    near, far = local.cohort(BIG), far_cohort(proxy, BIG)
    for a, b in zip(near.batches(7, ["organ"], mask=True), far.batches(7, ["organ"], mask=True), strict=True):
        assert all((a[key] == b[key]).all() for key in ("image", "mask", "has_mask"))
        assert a["organ"] == b["organ"]
    assert (near.images() == far.images()).all()
    places = np.array([5, 3, 3, near.rows - 1])
    assert (near.images(places) == far.images(places)).all()
    with pytest.raises(ConfigError, match="batch_size is 0"):
        next(far.batches(0))


def test_images_of_a_remote_cohort_are_not_read_by_their_place(proxy):
    with pytest.raises(LakeError, match="is remote"):
        far_cohort(proxy).index()
