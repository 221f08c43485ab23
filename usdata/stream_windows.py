"""From shards to batches of a stream: whole windows are unpacked by webdataset, ahead of the batches that need them."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from usdata import mask_png, png
from usdata.batch import Batch, column_values
from usdata.errors import ConfigError, DataError, LakeError
from usdata.reader import ShardIndex
from usdata.shard_cache import Shard, ShardSource
from usdata.stream_plan import Part, Visit


@dataclass(frozen=True)
class Window:
    """The pixels of a visit, in its order."""

    images: NDArray[np.uint8]  # (n, 256, 256)
    masks: NDArray[np.uint8] | None  # (n, 256, 256), zeros where there is none
    has_mask: NDArray[np.bool_] | None  # (n,)


def samples_of(file: IO[bytes], name: str, ids: frozenset[str], mask: bool) -> Iterator[dict[str, Any]]:
    """The samples of a shard as webdataset groups them: `__key__`, `json`, and for those of `ids` `png`, `mask.png`.

    Raises:
        LakeError: not a tar file, cut short, or with two members of one name.
    """
    from webdataset import DataPipeline
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def wanted(member: str) -> bool:
        key, _, suffix = member.partition(".")
        return suffix == "json" or (key in ids and (mask or suffix != "mask.png"))

    try:
        yield from DataPipeline(
            lambda: iter([{"url": name, "stream": file}]),
            partial(tar_file_expander, select_files=wanted),
            group_by_keys,
        )
    except (tarfile.TarError, ValueError, OSError) as error:
        raise _damage(
            name, f"not a readable shard ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from error


class WindowReader:
    """Reads any rows of an index by unpacking the shards they are in. Safe to use from several threads.

    Args:
        index: where each row is; among its columns is `sample_id`.
        shards: of the index, in its order.
        source: where their files come from.
        mask: read masks too.

    Raises:
        ConfigError: masks of an index that has none.
    """

    def __init__(self, index: ShardIndex, shards: Sequence[Shard], source: ShardSource, mask: bool) -> None:
        if mask and index.mask_size is None:
            raise ConfigError("mask=True, but this index has no places of masks.")
        self.index, self.shards, self.source, self.mask = index, shards, source, mask

    def load(self, rows: NDArray[np.int64], stop: Event) -> Window:
        """The pixels of some rows, each given once, in their order.

        Raises:
            LakeError: a shard can't be had, is damaged, or does not hold what the catalog says.
            CancelledError: `stop` was set.
        """
        shape = (len(rows), png.SIDE, png.SIDE)
        masks, known = (np.zeros(shape, np.uint8), np.zeros(len(rows), bool)) if self.mask else (None, None)
        window = Window(np.empty(shape, np.uint8), masks, known)
        numbers = self.index.shard[rows]
        for number in dict.fromkeys(numbers.tolist()):
            if stop.is_set():
                raise CancelledError
            places = np.flatnonzero(numbers == number)
            ids = self.index.column("sample_id").take(rows[places]).to_pylist()
            self._unpack(self.shards[number], dict(zip(ids, places.tolist(), strict=True)), window, stop)
        return window

    def fetch(self, rows: NDArray[np.int64], stop: Event) -> None:
        """Bring the shards of these rows here, for a later `load`."""
        for number in dict.fromkeys(self.index.shard[rows].tolist()):
            self.source.fetch(self.shards[number], stop)

    def _unpack(self, shard: Shard, wanted: dict[str, int], window: Window, stop: Event) -> None:
        """Put the wanted samples of a shard in their places; every sample must be there, and no others."""
        found, missing = 0, dict(wanted)
        with self.source.lease(shard, stop) as file:
            for sample in samples_of(file, shard.name, frozenset(wanted), self.mask):
                found += 1
                key = sample["__key__"]
                if _said_id(sample.get("json")) != key:
                    raise _damage(shard.name, f"the JSON of {key} is missing, or of another sample")
                place = missing.pop(key, None)
                if place is not None:
                    _put(sample, shard.name, place, window)
        if missing:
            raise _damage(shard.name, f"it lacks {min(missing)}, which the catalog has ({len(missing)} such)")
        if found != shard.samples:
            raise _damage(shard.name, f"it holds {found} samples, not {shard.samples} as the manifest says")


def _put(sample: dict[str, Any], name: str, place: int, window: Window) -> None:
    key = sample["__key__"]
    try:
        png.read_checked(np.frombuffer(sample["png"], np.uint8), window.images[place])
    except (KeyError, DataError) as error:
        raise _damage(name, f"the image of {key} is missing or no canonical PNG") from error
    if window.masks is not None and window.has_mask is not None and "mask.png" in sample:
        try:
            window.masks[place], window.has_mask[place] = mask_png.decode(sample["mask.png"]), True
        except DataError as error:
            raise _damage(name, f"the mask of {key} can't be read: {error.message}") from error


def _said_id(data: bytes | None) -> str | None:
    """The id in a sample's JSON; None if there is none."""
    try:
        row = json.loads(data or b"null")
    except ValueError:
        return None
    return row.get("sample_id") if isinstance(row, dict) else None


def _damage(name: str, what: str) -> LakeError:
    return LakeError(f"The shard is damaged: {what}.", item=name, step="read", hint="Where the lake is:  usdata verify")


class Windows:
    """The windows that batches need, loaded by threads before their turn comes; use it in a `with`.

    Args:
        reader: of all of them.
        workers: threads that unpack, and as many that fetch what comes after; 0: nothing happens ahead.
    """

    def __init__(self, reader: WindowReader, workers: int) -> None:
        self._reader, self._stop = reader, Event()
        self._pools = [ThreadPoolExecutor(workers, f"usdata-{name}") for name in ("unpack", "fetch")] if workers else []
        self._loads: dict[Visit, Future[Window]] = {}

    def __enter__(self) -> "Windows":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        self._loads.clear()

    def expect(self, visit: Visit, following: Visit | None) -> None:
        """Begin to load a window, and to fetch the shards of the one after it, unless that is under way."""
        if self._pools and visit not in self._loads:
            self._loads[visit] = self._pools[0].submit(self._reader.load, visit.rows, self._stop)
            if following is not None:  # should this fail, then the loading tells why
                self._pools[1].submit(self._reader.fetch, following.rows, self._stop)

    def get(self, visit: Visit) -> Window:
        """A window, which is waited for.

        Raises:
            LakeError: see `WindowReader.load`.
        """
        if visit not in self._loads:
            load: Future[Window] = Future()
            load.set_result(self._reader.load(visit.rows, self._stop))
            self._loads[visit] = load
        return self._loads[visit].result()

    def drop(self, visit: Visit) -> None:
        """Give a window's memory back."""
        self._loads.pop(visit, None)


class StreamAssembler:
    """From rows, and the windows that hold them, to a batch as `usdata.loader.Loader` gives it."""

    def __init__(self, index: ShardIndex, columns: Sequence[str], mask: bool) -> None:
        self._columns = {name: column_values(index.column(name)) for name in columns}
        self._mask, self._pin = mask, torch.cuda.is_available()  # a GPU copies from page-locked memory by itself

    def batch(self, rows: NDArray[np.int64], parts: Sequence[Part], windows: Windows) -> Batch:
        """The batch of `rows`; a window whose last image is taken is dropped."""
        shape = (len(rows), png.SIDE, png.SIDE)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)
        images = pixels.numpy()
        masks, known = (np.empty(shape, np.uint8), np.empty(len(rows), bool)) if self._mask else (None, None)
        for part in parts:
            window, taken = windows.get(part.visit), slice(part.first, part.last)
            images[part.places] = window.images[taken]
            if masks is not None and known is not None and window.masks is not None and window.has_mask is not None:
                masks[part.places], known[part.places] = window.masks[taken], window.has_mask[taken]
            if part.last == len(part.visit.rows):
                windows.drop(part.visit)
        batch: Batch = {"image": pixels[:, None]}
        for name, values in self._columns.items():
            batch[name] = values(rows)
        if masks is not None and known is not None:
            batch |= {"mask": torch.from_numpy(masks)[:, None], "has_mask": torch.from_numpy(known)}
        return batch
