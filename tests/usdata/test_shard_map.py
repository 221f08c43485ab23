"""All shards at addresses of one stretch of memory: mapped when needed, dropped when too many, never while in use."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes.shards import FakeShards, make_shards

from usdata import reader as reader_module
from usdata.batch import gather_from as compiled
from usdata.errors import LakeError
from usdata.reader import ShardReader
from usdata.reader import gather_from as plain
from usdata.shard_map import ShardMap

SOME = np.array([3, 0, 3, 41, 56, 12, 55])


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeShards:
    return make_shards(tmp_path_factory.mktemp("lake"))  # 57 images in 7 shards


def open_map(fake: FakeShards, most: int | None = None) -> ShardMap:
    return ShardMap(fake.root, fake.index.shards, most=most)


def content(memory: ShardMap, number: int, size: int) -> bytes:
    start = int(memory.starts[number])
    return memory.bytes[start : start + size].tobytes()


def test_a_held_shard_reads_as_its_file_and_the_rest_as_zeros(fake: FakeShards) -> None:
    memory = open_map(fake)
    files = [(fake.root / name).read_bytes() for name in fake.index.shards]
    with memory.held(np.array([2, 5])):
        for number, file in enumerate(files):
            assert content(memory, number, len(file)) == (file if number in (2, 5) else bytes(len(file)))


def test_both_gathers_copy_the_same_blocks() -> None:
    words = np.arange(1000)
    starts = np.array([7, 0, 990, 7])
    for make in (plain, compiled):
        out = np.zeros((4, 10), np.int64)
        make(words)(starts, out)
        assert np.array_equal(out, starts[:, None] + np.arange(10))


def test_the_compiled_gather_refuses_a_block_beyond_the_memory() -> None:
    with pytest.raises(IndexError):
        compiled(np.arange(1000))(np.array([991]), np.zeros((1, 10), np.int64))


def test_mapped_shards_hold_no_file_open(fake: FakeShards) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count of what is there now
    memory = open_map(fake)
    with memory.held(np.arange(7)):
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_few_mapped_shards_give_the_same_images(fake: FakeShards) -> None:
    for most in (1, 3):
        reader = ShardReader(fake.index, most_shards=most)
        for start in range(57):  # a window of four images, so of three shards at most
            rows = np.arange(start, min(start + 4, 57))
            assert np.array_equal(reader.images(rows), fake.images[rows])
            assert reader._map._mapped.sum() <= max(most, 3)


def test_the_shard_read_longest_ago_goes_first(fake: FakeShards) -> None:
    memory = open_map(fake, most=3)
    for number in (0, 1, 2, 0, 3):
        with memory.held(np.array([number])):
            pass
    assert np.flatnonzero(memory._mapped).tolist() == [0, 2, 3]


def test_a_shard_in_use_is_never_dropped(fake: FakeShards) -> None:
    memory = open_map(fake, most=1)
    first = (fake.root / fake.index.shards[0]).read_bytes()
    with memory.held(np.array([0])):
        for number in range(1, 7):
            with memory.held(np.array([number])):
                assert content(memory, 0, len(first)) == first
    with memory.held(np.array([6])):
        assert content(memory, 0, len(first)) == bytes(len(first))


def test_threads_that_share_too_few_mappings_read_the_right_images(fake: FakeShards) -> None:
    reader = ShardReader(fake.index, most_shards=2, gather_from=compiled)

    def right(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, 57, 3)
        return np.array_equal(reader.images(rows), fake.images[rows])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(400)))


def test_a_shard_replaced_after_the_index_was_made_is_refused(tmp_path: Path) -> None:
    fake = make_shards(tmp_path, {"lung": 4}, per_shard=2)
    reader = ShardReader(fake.index)
    reader.images(np.array([0]))
    for row in (0, 2):  # the first shard is mapped, the second is not
        path = fake.path(row)
        path.with_suffix(".new").write_bytes(path.read_bytes())
        path.with_suffix(".new").replace(path)
    assert np.array_equal(reader.images(np.array([1])), fake.images[[1]])
    with pytest.raises(LakeError, match="replaced after the cohort was opened"):
        reader.images(np.array([2]))


def test_an_empty_shard_can_be_dropped_like_any_other(tmp_path: Path) -> None:
    fake = make_shards(tmp_path, {"lung": 4}, per_shard=2)
    (tmp_path / "empty.tar").write_bytes(b"")
    memory = ShardMap(tmp_path, ["empty.tar", *fake.index.shards], most=1)
    for number in (0, 1, 2, 0, 1):
        with memory.held(np.array([number])):
            pass
    assert np.flatnonzero(memory._mapped).tolist() == [1]


@pytest.mark.parametrize("shift", [1, 4, 7, 2**63 - 8 - 2**20])
def test_an_offset_that_no_tar_file_has_is_damage(tmp_path: Path, shift: int) -> None:
    fake = make_shards(tmp_path, {"lung": 2})
    fake.index.offset[1] += shift
    with pytest.raises(LakeError, match=r"Damage at byte"):
        ShardReader(fake.index).images(np.array([1]))


def test_reads_are_announced_at_first_and_whenever_they_are_slow(
    fake: FakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, told, now = ShardReader(fake.index), [], [0.0]
    monkeypatch.setattr(reader._map, "will_need", lambda starts, size: told.append(len(starts)))
    pace = [0.0]

    def clock() -> float:
        now[0] += pace[0]
        return now[0]

    monkeypatch.setattr(reader_module, "perf_counter", clock)

    def announced(calls: int) -> int:
        told.clear()
        for _ in range(calls):
            assert np.array_equal(reader.images(SOME), fake.images[SOME])
        return len(told)

    assert announced(20) == 16  # from memory: none after the first
    pace[0] = 1.0
    assert announced(5) == 4  # the first slow call tells that the next will be
    pace[0] = 0.0
    assert announced(40) == 16


def test_images_that_are_not_in_memory_are_read_from_the_disk(tmp_path: Path) -> None:
    fake = make_shards(tmp_path)
    reader = ShardReader(fake.index, gather_from=compiled)
    for name in fake.index.shards:
        with (fake.root / name).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert np.array_equal(reader.images(SOME), fake.images[SOME])


def test_addresses_for_a_hundred_million_images_cost_no_memory(tmp_path: Path) -> None:
    names = [f"shards/big/big-lung-{i:06d}.tar" for i in range(100_000)]
    memory = ShardMap(tmp_path, names, [(i, 0, 66_600_000) for i in range(100_000)])
    assert memory.words.nbytes > 6.6e12
    with pytest.raises(LakeError, match="missing"), memory.held(np.array([99_999])):
        pass


def test_a_process_that_may_not_have_the_addresses_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="GiB of addresses") as caught:
        ShardMap(tmp_path, ["shards/big/big-lung-000000.tar"], [(1, 0, 2**60)])
    assert "ulimit -v unlimited" in str(caught.value)
