"""The loader gives the right pixels, the same ones however it is split up, and goes on exactly where it stopped."""

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from fakes.shards import FakeShards, make_shards

from usdata import png
from usdata.batch import to_device
from usdata.errors import ConfigError, LakeError
from usdata.loader import Loader, ShardIndex, read_batch
from usdata.reader import ShardReader


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeShards:
    return make_shards(tmp_path_factory.mktemp("lake"))  # 57 images: 40 breast, 12 heart, 5 lung


def a_loader(fake: FakeShards, **settings: Any) -> Loader:
    settings = {"batch_size": 8, "columns": ("sample_id",), "fingerprint": {"order": "abc"}, **settings}
    return Loader(fake.index, fake.codes, **settings)


def ids_of(loader: Loader) -> list[list[str]]:
    """The sample ids of one epoch, batch by batch."""
    return [batch["sample_id"] for batch in loader]


def joined(lists: Iterable[list[str]]) -> list[str]:
    return list(chain.from_iterable(lists))


def loader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("usdata-loader")]


# --- what a batch holds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, None])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_masks_and_columns_belong_together(fake: FakeShards, gamma: float | None, workers: int) -> None:
    columns = ("sample_id", "organ", "patient", "width", "frame", "synthetic", "mask_classes")
    loader = a_loader(fake, gamma=gamma, mask=True, columns=columns, workers=workers)
    seen = 0
    for batch in loader:
        rows = np.array([fake.ids.index(i) for i in batch["sample_id"]])
        seen += len(rows)
        assert batch["image"].shape == batch["mask"].shape == (len(rows), 1, 256, 256)
        assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
        assert np.array_equal(batch["image"][:, 0].numpy(), fake.images[rows])
        assert np.array_equal(batch["mask"][:, 0].numpy(), fake.masks[rows])
        assert batch["has_mask"].tolist() == fake.has_mask[rows].tolist()
        assert batch["organ"] == [fake.organs[r] for r in rows]
        assert batch["patient"] == [None if r % 4 == 0 else f"p{r // 2}" for r in rows]
        assert batch["width"].dtype == torch.int32 and batch["width"].tolist() == rows.tolist()
        assert batch["frame"].dtype == torch.float64  # it has nulls somewhere
        assert batch["frame"].isnan().tolist() == (rows % 5 == 0).tolist()
        assert batch["synthetic"].dtype == torch.bool and batch["synthetic"].tolist() == (rows % 2 == 0).tolist()
        assert batch["mask_classes"] == [["lesion"] if fake.has_mask[r] else None for r in rows]
    assert seen == (57 if gamma is None else 64)


def test_read_batch_keeps_the_order_it_is_given(fake: FakeShards) -> None:
    rows = np.array([56, 0, 17, 17, 3])
    batch = read_batch(fake.index, rows, columns=["organ", "width"], mask=True)
    assert np.array_equal(batch["image"][:, 0].numpy(), fake.images[rows])
    assert np.array_equal(batch["mask"][:, 0].numpy(), fake.masks[rows])
    assert batch["width"].tolist() == rows.tolist()
    assert read_batch(fake.index, rows[:0], columns=["organ"])["image"].shape == (0, 1, 256, 256)


def test_columns_in_pieces_and_coded_numbers_come_as_plain_ones(fake: FakeShards) -> None:
    values = [1.5, None] * 28 + [2.5]
    pieces = pa.chunked_array([pa.array(values[:30]), pa.array(values[30:])])
    columns = {"depth_mm": pieces, "frame": pa.array(range(57), pa.int64()).dictionary_encode()}
    index = ShardIndex(fake.root, fake.index.shards, fake.index.shard, fake.index.offset, columns=columns)
    batch = read_batch(index, np.array([56, 1, 0]), columns=["depth_mm", "frame"])
    assert batch["depth_mm"][[0, 2]].tolist() == [2.5, 1.5] and batch["depth_mm"][1].isnan()
    assert batch["frame"].tolist() == [56, 1, 0]


def test_a_kept_batch_never_changes_and_a_dropped_one_is_used_again(fake: FakeShards) -> None:
    kept = [batch["image"][:4] for batch in a_loader(fake, workers=2)]  # views keep the memory, too
    copies = [image.clone() for image in kept]
    assert len({image.data_ptr() for image in kept}) == len(kept) == 8
    assert all(torch.equal(image, copy) for image, copy in zip(kept, copies, strict=True))
    loader, places = a_loader(fake), set()
    for batch in loader:
        places.add(batch["image"].data_ptr())
        del batch
    assert len(places) < 8


def test_a_numpy_view_keeps_the_memory_of_a_batch(fake: FakeShards) -> None:
    loader = a_loader(fake)
    batches = iter(loader)
    pixels = next(batches)["image"].numpy()
    gc.collect()
    before = pixels.copy()
    for batch in batches:
        assert not np.shares_memory(batch["image"].numpy(), pixels)
    assert np.array_equal(pixels, before)


# --- epochs, ranks, workers ----------------------------------------------------------------------------------------


def test_an_epoch_has_len_batches_and_then_the_next_one_begins(fake: FakeShards) -> None:
    loader = a_loader(fake)
    first, second = ids_of(loader), ids_of(loader)
    assert loader.epoch == 2
    assert len(first) == len(second) == len(loader) == 8  # 57 draws, made up to 64
    assert first != second
    again = a_loader(fake)
    again.epoch = 1
    assert ids_of(again) == second


def test_without_gamma_each_image_comes_once(fake: FakeShards) -> None:
    loader = Loader(fake.index, None, batch_size=8, gamma=None, columns=("sample_id",))
    for _ in range(2):
        batches = ids_of(loader)
        assert [len(b) for b in batches] == [8] * 7 + [1]
        assert sorted(joined(batches)) == fake.ids


def test_four_sub_epochs_show_each_image_once(fake: FakeShards) -> None:
    loader = a_loader(fake, gamma=None, epoch_size=19, batch_size=5)
    assert sorted(joined(batch for _ in range(3) for batch in ids_of(loader))) == fake.ids


@pytest.mark.parametrize("gamma", [0.5, None])
def test_drop_last_leaves_out_the_batch_that_is_not_full(fake: FakeShards, gamma: float | None) -> None:
    loader = a_loader(fake, gamma=gamma, drop_last=True)
    assert [len(b) for b in ids_of(loader)] == [8] * 7
    assert len(loader) == 7


@pytest.mark.parametrize("gamma", [0.5, 0.0, None])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same_batches(fake: FakeShards, gamma: float | None, workers: int) -> None:
    alone, helped = a_loader(fake, gamma=gamma), a_loader(fake, gamma=gamma, workers=workers)
    for _ in range(2):
        assert ids_of(alone) == ids_of(helped)


@pytest.mark.parametrize("gamma", [0.5, None])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_together_see_what_one_rank_sees(fake: FakeShards, gamma: float | None, world: int) -> None:
    whole = ids_of(a_loader(fake, gamma=gamma, batch_size=12, epoch_size=41))
    ranks = [
        a_loader(fake, gamma=gamma, batch_size=12 // world, epoch_size=41, rank=r, world=world) for r in range(world)
    ]
    assert {len(r) for r in ranks} == {4}
    parts = [ids_of(rank) for rank in ranks]
    assert [joined(batch) for batch in zip(*parts, strict=True)] == whole
    assert min(len(batch) for part in parts for batch in part) >= 1  # 41 = 3 · 12 + 5


def test_rare_organs_come_more_often_than_in_the_data(fake: FakeShards) -> None:
    loader = a_loader(fake, gamma=0.0, epoch_size=3000, columns=("organ",), batch_size=100)
    organs = [organ for batch in loader for organ in batch["organ"]]
    assert all(organs.count(organ) == pytest.approx(1000, abs=130) for organ in ("breast", "heart", "lung"))  # 5 sigma


# --- stopping and going on -------------------------------------------------------------------------------------------


def test_a_state_is_small_and_counts_only_what_was_delivered(fake: FakeShards) -> None:
    loader = a_loader(fake, workers=3)
    batches = iter(loader)
    next(batches), next(batches)  # by now the workers are far ahead
    state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (0, 2)
    assert len(json.dumps(state)) < 1000
    assert [len(list(batches)), loader.epoch] == [6, 1]


def test_the_state_after_the_last_batch_is_the_start_of_the_next_epoch(fake: FakeShards) -> None:
    loader = a_loader(fake)
    for _ in loader:
        state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 0)
    assert loader.state_dict() == state


def test_a_loop_that_was_left_goes_on_with_the_next_batch_and_leaves_no_thread(fake: FakeShards) -> None:
    expected = ids_of(a_loader(fake))
    loader = a_loader(fake, workers=2)
    first = []
    for batch in loader:
        first.append(batch["sample_id"])
        if len(first) == 3:
            break
    del batch
    gc.collect()
    assert loader_threads() == []
    assert first + ids_of(loader) == expected
    assert loader_threads() == []


def test_an_old_iterator_ends_when_a_new_one_begins_or_a_state_is_loaded(fake: FakeShards) -> None:
    loader = a_loader(fake)
    old = iter(loader)
    next(old)
    iter(loader)
    with pytest.raises(RuntimeError, match="this iterator is over"):
        next(old)
    old = iter(loader)
    next(old)
    loader.load_state_dict(a_loader(fake).state_dict())
    with pytest.raises(RuntimeError, match="this iterator is over"):
        next(old)
    assert ids_of(loader) == ids_of(a_loader(fake))


def test_a_state_loaded_after_the_last_batch_is_not_advanced_by_the_old_loop(fake: FakeShards) -> None:
    loader = a_loader(fake)
    batches = iter(loader)
    for _ in range(len(loader)):
        next(batches)
    loader.load_state_dict(a_loader(fake).state_dict())
    assert list(batches) == []
    assert loader.state_dict()["epoch"] == loader.epoch == 0


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int, bits: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ bits]))


def put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def other_png(_: FakeShards, path: Path, at: int) -> None:
    """An ordinary PNG of the same length as far as anyone sees: level 0, but row filters."""
    parameters = [cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    put(path, at, cv2.imencode(".png", np.arange(65536, dtype=np.uint8).reshape(256, 256), parameters)[1].tobytes())


DAMAGE: dict[str, tuple[Callable[[FakeShards, Path, int], object], str]] = {
    "missing": (lambda _, path, at: path.unlink(), "The shard is missing"),
    "empty": (lambda _, path, at: path.write_bytes(b""), "The shard ends before the image"),
    "cut inside the image": (lambda _, path, at: os.truncate(path, at + 60_000), "The shard ends before the image"),
    "cut before the image": (lambda _, path, at: os.truncate(path, at - 512), "The shard ends before the image"),
    "cut after one byte": (lambda _, path, at: os.truncate(path, at + 1), "The shard ends before the image"),
    "signature": (lambda _, path, at: flip(path, at + 1), "not a canonical PNG"),
    "second block": (lambda _, path, at: flip(path, at + png.SECOND - 3), "not a canonical PNG"),
    "another writer's PNG": (other_png, "not a canonical PNG"),
    "zeros": (lambda _, path, at: put(path, at, bytes(png.SIZE)), "not a canonical PNG"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_shard_is_named_with_the_command_that_tells_more(tmp_path: Path, damage: str, workers: int) -> None:
    fake = make_shards(tmp_path, {"breast": 6, "lung": 3}, per_shard=3)
    row = 5  # the last of its shard
    change, word = DAMAGE[damage]
    change(fake, fake.path(row), int(fake.index.offset[row]))
    loader = Loader(fake.index, fake.codes, batch_size=2, gamma=None, workers=workers)
    with pytest.raises(LakeError) as caught:
        list(loader)
    text = str(caught.value)
    assert word in text
    assert "fake-breast-000001.tar" in text
    assert f"usdata verify --lake {tmp_path}" in text
    if damage not in ("missing", "empty", "cut before the image"):
        assert f"byte {fake.index.offset[row]}" in text
    assert loader_threads() == []


def test_a_flipped_pixel_bit_is_found_when_checksums_are_asked_for(tmp_path: Path) -> None:
    fake = make_shards(tmp_path, {"lung": 3})
    flip(fake.path(1), int(fake.index.offset[1]) + 30_000)
    sizes = [len(b["image"]) for b in Loader(fake.index, fake.codes, batch_size=3, gamma=None)]
    assert sizes == [3]
    with pytest.raises(LakeError, match=f"byte {fake.index.offset[1]}: The pixels do not match"):
        list(Loader(fake.index, fake.codes, batch_size=3, gamma=None, checksums=True))


@pytest.mark.parametrize("data", [b"", b"no PNG at all", cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()])
def test_a_mask_that_is_no_mask_is_named(tmp_path: Path, data: bytes) -> None:
    fake = make_shards(tmp_path, {"lung": 3})
    assert fake.index.mask_offset is not None and fake.index.mask_size is not None
    fake.index.mask_size[0] = max(1, len(data))
    put(fake.path(0), int(fake.index.mask_offset[0]), data or b"\0")
    with pytest.raises(LakeError, match=f"byte {fake.index.mask_offset[0]}: The mask"):
        read_batch(fake.index, np.array([0, 1]), mask=True)


# --- wrong settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epoch_size": 0}, "epoch_size is 0"),
        ({"world": 0}, "world is 0"),
        ({"rank": 1}, "must be 0 to 0"),
        ({"rank": -1, "world": 2}, "must be 0 to 1"),
        ({"workers": -1}, "workers is -1"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"columns": ("organn",)}, "Did you mean 'organ'?"),
        ({"batch_size": 60, "drop_last": True}, "An epoch of 57 images has no batch of 60"),
        ({"batch_size": 11, "world": 5, "gamma": None}, "has 2 for 5 ranks"),
    ],
)
def test_a_setting_without_sense_is_refused(fake: FakeShards, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        a_loader(fake, **settings)
    assert word in str(caught.value)


def test_an_empty_cohort_is_refused(fake: FakeShards) -> None:
    index = ShardIndex(fake.root, [], np.empty(0, np.int32), np.empty(0, np.int64))
    with pytest.raises(ConfigError, match="cohort is empty"):
        Loader(index, np.empty(0, np.int16), batch_size=1)


def test_groups_must_fit_the_images(fake: FakeShards) -> None:
    with pytest.raises(ConfigError, match="57 images, but 56 groups"):
        Loader(fake.index, fake.codes[1:], batch_size=1)
    with pytest.raises(ConfigError, match="the organ of each image"):
        Loader(fake.index, None, batch_size=1)


def test_masks_of_an_index_without_them_are_refused(fake: FakeShards) -> None:
    index = ShardIndex(fake.root, fake.index.shards, fake.index.shard, fake.index.offset)
    with pytest.raises(ConfigError, match="no places of masks"):
        Loader(index, fake.codes, batch_size=1, mask=True)
    with pytest.raises(ConfigError, match="no places of masks"):
        ShardReader(index).masks(np.array([0]))


@pytest.mark.parametrize(
    "parts",
    [
        {"offset": np.zeros(1, np.int64)},
        {"columns": {"organ": pa.array(["lung"])}},
        {"shard": np.array([0, 9], np.int32)},
        {"shard": np.array([0, -1], np.int32)},
        {"offset": np.array([0, -512], np.int64)},
    ],
)
def test_an_index_that_contradicts_itself_is_refused(parts: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"shard": np.zeros(2, np.int32), "offset": np.zeros(2, np.int64)}
    with pytest.raises(LakeError, match="The index has"):
        ShardIndex(Path("lake"), ["a.tar"], **(whole | parts))


def test_reading_and_sampling_do_not_import_torch() -> None:
    code = "import sys, usdata.reader, usdata.sampling, usdata.png; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# --- to a GPU --------------------------------------------------------------------------------------------------------


def test_a_batch_goes_to_another_device_with_its_memory_as_it_lies(fake: FakeShards) -> None:
    images = read_batch(fake.index, np.arange(12))["image"]
    for part in (images, images[4:8], images[11:]):
        sent = to_device(part, torch.device("meta"))  # has shapes and strides, but no memory
        assert (sent.shape, sent.stride(), sent.device.type) == (part.shape, part.stride(), "meta")
        assert sent.untyped_storage().nbytes() == len(part) * png.PITCH


def test_a_part_of_the_pixels_goes_to_a_device_as_torch_does_it(fake: FakeShards) -> None:
    images = read_batch(fake.index, np.arange(12))["image"]
    for part in (images[..., :128], images[:, :, :100], images[:2, :, 16:]):
        assert to_device(part, torch.device("meta")).shape == part.shape


def test_a_batch_of_another_kind_goes_to_a_device_as_torch_does_it(fake: FakeShards) -> None:
    images = read_batch(fake.index, np.arange(3))["image"].contiguous()
    sent = to_device(images, torch.device("meta"))
    assert sent.shape == images.shape
    assert sent.is_contiguous()


def test_a_batch_that_is_there_already_is_not_copied(fake: FakeShards) -> None:
    images = read_batch(fake.index, np.arange(3))["image"]
    assert to_device(images, torch.device("cpu")) is images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches_arrive_on_the_gpu_whole(fake: FakeShards) -> None:
    for batch in Loader(fake.index, fake.codes, batch_size=8, gamma=None, columns=("width",)):
        assert batch["image"].is_pinned()
        sent = to_device(batch["image"], torch.device("cuda"))
        assert np.array_equal(sent[:, 0].cpu().numpy(), fake.images[batch["width"].numpy()])


# --- where batches would come twice, or not at all -------------------------------------------------------------------


def test_inside_a_dataloader_with_several_processes_it_refuses(fake: FakeShards) -> None:
    class Wrapped(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return iter(Loader(fake.index, fake.codes, batch_size=8))

    with pytest.raises(ConfigError, match="every worker process would deliver every batch"):
        next(iter(torch.utils.data.DataLoader(Wrapped(), batch_size=None, num_workers=2)))
    assert len(list(torch.utils.data.DataLoader(Wrapped(), batch_size=None, num_workers=0))) == 8


def test_an_iterator_that_is_over_changes_no_epoch(fake: FakeShards) -> None:
    loader = Loader(fake.index, fake.codes, batch_size=8)
    over, current = iter(loader), iter(loader)
    for _ in range(len(loader)):
        next(current)
    with pytest.raises(RuntimeError, match="this iterator is over"):
        next(over)
    assert list(current) == []
    assert loader.epoch == 1


def test_setting_the_epoch_begins_it(fake: FakeShards) -> None:
    loader, other = (Loader(fake.index, fake.codes, batch_size=8, columns=("sample_id",)) for _ in range(2))
    for _ in range(5):
        list(other)
    next(iter(loader))
    loader.epoch = 5
    assert [b["sample_id"] for b in loader] == [b["sample_id"] for b in other]


def test_numbers_of_numpy_make_a_state_of_plain_ones(fake: FakeShards) -> None:
    sizes = {"batch_size": np.int64(8), "world": np.int32(1), "seed": np.uint8(3), "epoch_size": np.int64(40)}
    loader = Loader(fake.index, fake.codes, gamma=np.float32(0.5), **sizes)
    next(iter(loader))
    loader.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    plain = Loader(fake.index, fake.codes, batch_size=8, seed=3, epoch_size=40)
    plain.load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    "setting", [{"batch_size": 2.5}, {"epoch_size": 10.5}, {"seed": "x"}, {"gamma": "x"}, {"workers": 1.5}]
)
def test_what_is_no_number_is_refused(fake: FakeShards, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is "):
        Loader(fake.index, fake.codes, **{"batch_size": 8, **setting})


def test_an_iterator_does_not_go_on_in_a_forked_process(fake: FakeShards) -> None:
    batches = iter(Loader(fake.index, fake.codes, batch_size=8, workers=2))
    next(batches)
    child = os.fork()
    if not child:
        try:
            next(batches)
        except RuntimeError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
