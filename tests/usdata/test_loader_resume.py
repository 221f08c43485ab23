"""A saved state leads to the batches that would have come, in any process, or is refused with the reason."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.folders import write_folder
from fakes.shards import FakeShards, make_shards
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ingest.card import load_card
from ingest.run import ingest
from usdata.errors import ConfigError
from usdata.lake import Lake
from usdata.loader import Loader
from usdata.resume import FORMAT
from usdata.sampling import BalancedSampler, EpochSampler

COLUMNS = ("sample_id", "organ", "patient", "frame", "mask_classes")
GAMMAS = pytest.mark.parametrize("gamma", [0.5, None])


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeShards:
    return make_shards(tmp_path_factory.mktemp("lake"))  # 57 images: 40 breast, 12 heart, 5 lung


def a_loader(fake: FakeShards, **settings: Any) -> Loader:
    settings = {"batch_size": 8, "columns": ("sample_id",), "fingerprint": {"order": "1", "pixels": "2"}, **settings}
    return Loader(fake.index, fake.codes, **settings)


def endless(loader: Loader) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def ids(loader: Loader, batches: int) -> list[list[str]]:
    return [batch["sample_id"] for batch, _ in zip(endless(loader), range(batches), strict=False)]


def joined(lists: list[list[str]]) -> list[str]:
    return list(chain.from_iterable(lists))


def after(loader: Loader, batches: int) -> dict[str, Any]:
    """The state after so many batches, as a file would give it back."""
    for _, _ in zip(range(batches), endless(loader), strict=False):
        pass
    return dict(json.loads(json.dumps(loader.state_dict())))


def refusal(loader: Loader, state: Any) -> str:
    """The message of the refusal, after which the loader must stand where it stood."""
    before = loader.state_dict()
    with pytest.raises(ConfigError) as caught:
        loader.load_state_dict(state)
    assert loader.state_dict() == before
    return str(caught.value)


# --- the same batches ------------------------------------------------------------------------------------------------


@GAMMAS
@pytest.mark.parametrize(("before", "later"), [(0, 2), (2, 0), (3, 1)])
def test_after_any_batch_a_new_loader_goes_on(fake: FakeShards, gamma: float | None, before: int, later: int) -> None:
    reference = ids(a_loader(fake, gamma=gamma, batch_size=15), 8)  # an epoch has 4
    for stop in range(8):
        state = after(a_loader(fake, gamma=gamma, batch_size=15, workers=before), stop)
        resumed = a_loader(fake, gamma=gamma, batch_size=15, workers=later)
        resumed.load_state_dict(state)
        assert ids(resumed, 8 - stop) == reference[stop:]


def digests(loader: Loader, batches: int) -> list[str]:
    """Hash of each batch: every pixel, mask and column."""
    found = []
    for batch, _ in zip(endless(loader), range(batches), strict=False):
        digest = hashlib.sha256()
        for name, value in sorted(batch.items()):
            part = json.dumps(value).encode() if isinstance(value, list) else value.contiguous().numpy().tobytes()
            digest.update(name.encode() + part)
        found.append(digest.hexdigest())
    return found


IN_A_NEW_PROCESS = """
import json, sys
from pathlib import Path
from fakes.shards import make_shards
sys.path.insert(0, sys.argv[2])
from test_loader_resume import a_loader, digests

fake = make_shards(Path(sys.argv[1]))
for job in json.load(sys.stdin):
    loader = a_loader(fake, **job["settings"])
    loader.load_state_dict(job["state"])
    print(json.dumps(digests(loader, job["batches"])))
"""


def test_a_new_process_with_other_workers_delivers_the_same_bytes(fake: FakeShards, tmp_path: Path) -> None:
    jobs, expected = [], []
    for gamma in (0.5, None):
        common: dict[str, Any] = {"gamma": gamma, "seed": 5, "mask": True, "columns": COLUMNS}
        whole = digests(a_loader(fake, **common), 18)  # an epoch has 8 batches
        assert len(set(whole)) == 18
        for stop, workers in ((3, 1), (7, 2), (8, 0), (13, 1)):  # in the middle, before and at the end, in the second
            state = after(a_loader(fake, workers=2, **common), stop)
            jobs.append({"settings": {**common, "workers": workers}, "state": state, "batches": 18 - stop})
            expected.append(whole[stop:])
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = [sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, env=env, input=json.dumps(jobs), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


def test_a_state_is_less_than_a_kilobyte(fake: FakeShards) -> None:
    for gamma in (0.5, None):
        state = after(a_loader(fake, gamma=gamma, fingerprint={"order": "0" * 32, "pixels": "1" * 32}), 3)
        assert len(json.dumps(state)) < 1000


# --- other ranks, other batches ---------------------------------------------------------------------------------


@GAMMAS
def test_a_state_of_rank_0_serves_every_rank(fake: FakeShards, gamma: float | None) -> None:
    ranks = [a_loader(fake, gamma=gamma, batch_size=4, rank=rank, world=3) for rank in range(3)]
    states = [after(rank, 2) for rank in ranks]
    assert states[0] == states[1] == states[2]
    for rank, loader in enumerate(ranks):
        resumed = a_loader(fake, gamma=gamma, batch_size=4, rank=rank, world=3)
        resumed.load_state_dict(states[0])
        assert ids(resumed, 5) == ids(loader, 5)


@given(
    st.sampled_from([0.5, None]), st.integers(1, 5), st.integers(1, 9), st.integers(20, 70), st.booleans(), st.data()
)
@settings(deadline=None, max_examples=40)
def test_for_any_world_and_batch_the_ranks_together_show_the_numbered_draws(
    fake: FakeShards, gamma: float | None, world: int, size: int, epoch_size: int, drop_last: bool, data: st.DataObject
) -> None:
    chosen = {"gamma": gamma, "epoch_size": epoch_size, "drop_last": drop_last, "seed": 3}
    assume(epoch_size >= size * world if drop_last else gamma or not 0 < epoch_size % (size * world) < world)
    workers = data.draw(st.lists(st.integers(0, 2), min_size=world, max_size=world))  # each rank its own number
    ranks = [
        a_loader(fake, batch_size=size, rank=rank, world=world, workers=w, **chosen) for rank, w in enumerate(workers)
    ]
    parts = [ids(loader, len(loader)) for loader in ranks]
    together = joined([joined(list(batch)) for batch in zip(*parts, strict=True)])
    sampler = EpochSampler(57, 3, epoch_size) if gamma is None else BalancedSampler(fake.codes, gamma, 3)
    assert together == [fake.ids[row] for row in sampler.draw(0, 0, len(together))]
    whole = size * world
    draws = {True: epoch_size // whole * whole, False: epoch_size if gamma is None else -(-epoch_size // whole) * whole}
    assert len(together) == draws[drop_last]


@given(st.sampled_from([0.5, None]), st.integers(0, 11), st.sampled_from([(8, 1), (4, 1), (2, 4), (1, 2), (3, 4)]))
@settings(deadline=None, max_examples=40)
def test_other_batches_and_ranks_go_on_at_the_same_draw_or_are_refused(
    fake: FakeShards, gamma: float | None, batches: int, shape: tuple[int, int]
) -> None:
    size, world = shape
    whole, epoch_size = size * world, 48  # batches of 6: 8 in an epoch
    images = joined(ids(a_loader(fake, gamma=gamma, batch_size=6, epoch_size=epoch_size), 16))
    state = after(a_loader(fake, gamma=gamma, batch_size=6, epoch_size=epoch_size), batches)
    ranks = [
        a_loader(fake, gamma=gamma, batch_size=size, epoch_size=epoch_size, rank=r, world=world) for r in range(world)
    ]
    if batches * 6 % whole:
        message = refusal(ranks[0], state)
        assert f"stands at draw {batches * 6 % 48} of its epoch" in message and "product divides" in message
        return
    for loader in ranks:
        loader.load_state_dict(state)
    n = (96 - batches * 6) // whole
    parts = [ids(loader, n) for loader in ranks]
    assert joined([joined(list(batch)) for batch in zip(*parts, strict=True)]) == images[batches * 6 :]


def test_other_batches_that_change_the_length_of_an_epoch_are_refused_with_what_would_fit(fake: FakeShards) -> None:
    state = after(a_loader(fake), 2)  # 57 images in batches of 8: 64 draws
    message = refusal(a_loader(fake, batch_size=4), state)
    assert "an epoch had 64 draws, with batch_size · world = 4 it has 60" in message
    assert "Choose epoch_size=64." in message
    fitting = a_loader(fake, batch_size=4, epoch_size=64)
    fitting.load_state_dict(state)
    assert joined(ids(fitting, 28)) == joined(ids(a_loader(fake), 16))[16:]
    message = refusal(a_loader(fake, batch_size=12), state)
    assert "with batch_size · world = 12 it has 60" in message and "divides 64, e.g. 4" in message


# --- what may change and what may not ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gamma", "changed"),
    [
        (0.5, {"workers": 3}),
        (0.5, {"columns": ("sample_id", "organ"), "mask": True, "checksums": True}),
        (0.5, {"epoch_size": 60}),  # 64 draws all the same
        (0.5, {"epoch_size": 64, "drop_last": True}),
        (None, {"by": "view"}),  # nothing is drawn by groups
    ],
)
def test_what_the_draws_do_not_depend_on_may_change(
    fake: FakeShards, gamma: float | None, changed: dict[str, Any]
) -> None:
    reference = ids(a_loader(fake, gamma=gamma), 12)
    other = a_loader(fake, gamma=gamma, **changed)
    other.load_state_dict(after(a_loader(fake, gamma=gamma), 3))
    assert ids(other, 9) == reference[3:]


@pytest.mark.parametrize(
    ("gamma", "changed", "word"),
    [
        (0.5, {"seed": 1}, "seed was 0, is 1"),
        (0.5, {"gamma": 0.0}, "gamma was 0.5, is 0.0"),
        (0.5, {"gamma": None}, "gamma was 0.5, is None"),
        (None, {"gamma": 0.5}, "gamma was None, is 0.5"),
        (0.5, {"by": "view"}, "by was organ, is view"),
        (0.5, {"epoch_size": 40}, "an epoch had 64 draws, with batch_size · world = 8 it has 40"),
        (0.5, {"drop_last": True}, "an epoch had 64 draws, with batch_size · world = 8 it has 56"),
        (None, {"drop_last": True}, "draws_per_epoch was 57, is 56"),
        (None, {"epoch_size": 40}, "epoch_size was 57, is 40"),
        (0.5, {"seed": 1, "gamma": 0.0}, "seed was 0, is 1; gamma was 0.5, is 0.0"),
        (0.5, {"fingerprint": {"order": "9", "pixels": "2"}}, "other images, or the same ones in another order"),
        (
            0.5,
            {"fingerprint": {"order": "1", "pixels": "9"}},
            "other pixels: they were ingested again with other settings",
        ),
    ],
)
def test_a_state_of_other_draws_is_refused_with_the_reason(
    fake: FakeShards, gamma: float | None, changed: dict[str, Any], word: str
) -> None:
    message = refusal(a_loader(fake, **{"gamma": gamma, **changed}), after(a_loader(fake, gamma=gamma), 2))
    assert word in message and "\n  " in message  # and a hint


def test_shards_cut_otherwise_do_not_matter_if_the_cohort_vouches_for_the_order(
    fake: FakeShards, tmp_path: Path
) -> None:
    cut = make_shards(tmp_path, per_shard=20)
    reference = ids(a_loader(fake), 12)
    other = a_loader(cut)
    other.load_state_dict(after(a_loader(fake), 3))
    assert ids(other, 9) == reference[3:]
    message = refusal(a_loader(cut, fingerprint=None), after(a_loader(fake, fingerprint=None), 3))
    assert "the images lie elsewhere in the shards" in message
    a_loader(make_shards(tmp_path / "copy"), fingerprint=None).load_state_dict(
        after(a_loader(fake, fingerprint=None), 3)  # the same shards in another folder
    )


def test_an_image_that_changed_its_group_is_noticed(fake: FakeShards) -> None:
    state = after(a_loader(fake), 3)
    for codes in (fake.codes[::-1].copy(), np.where(np.arange(57) == 39, 1, fake.codes)):  # the last breast: a heart
        other = Loader(fake.index, codes, batch_size=8, fingerprint={"order": "1", "pixels": "2"})
        assert "images changed their group" in refusal(other, state)
    plain = Loader(fake.index, None, gamma=None, batch_size=8, fingerprint={"order": "1", "pixels": "2"})
    plain.load_state_dict(after(a_loader(fake, gamma=None), 3))  # drawn without groups


# --- a lake that changed ---------------------------------------------------------------------------------------------


def add(lake: Lake, folder: Path, name: str, images: int = 8) -> None:
    """A data set of that name, made of images of its own."""
    write_folder(folder / "source", images)
    card = folder / "mine.yaml"
    card.write_text(card.read_text().replace("name: mine", f"name: {name}"))
    ingest(load_card(card), folder / "source", lake)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake.create(tmp_path / "lake")
    add(made, tmp_path / "mine", "mine")
    return made


def of_lake(root: Path, expression: str, gamma: float | None = 0.5) -> Loader:
    cohort = Lake(root).cohort(expression)
    return cohort.loader(batch_size=3, gamma=gamma, by="label", columns=("sample_id",), mask=True)


def goes_on(state: dict[str, Any], reference: list[str], root: Path, expression: str) -> bool:
    loader = of_lake(root, expression)
    loader.load_state_dict(state)
    return digests(loader, 4) == reference


UNCHANGED: dict[str, Callable[[Lake, Path], Path]] = {
    "nothing": lambda lake, tmp: lake.root,
    "a copy elsewhere": lambda lake, tmp: Path(shutil.copytree(lake.root, tmp / "copy")),
    "another data set added": lambda lake, tmp: (add(lake, tmp / "other", "another"), lake.root)[1],
    "ingested again": lambda lake, tmp: (add(lake, tmp / "mine", "mine"), lake.root)[1],
    "made anew": lambda lake, tmp: (
        (shutil.rmtree(lake.root), add(Lake.create(lake.root), tmp / "mine", "mine")) and lake.root
    ),
}


@pytest.mark.parametrize("change", list(UNCHANGED))
def test_a_lake_that_gives_the_cohort_the_same_images_is_accepted(lake: Lake, tmp_path: Path, change: str) -> None:
    loader = of_lake(lake.root, "dataset = 'mine'")
    state = after(loader, 2)
    reference = digests(loader, 4)
    root = UNCHANGED[change](lake, tmp_path)
    assert goes_on(state, reference, root, "dataset = 'mine'")
    assert goes_on(state, reference, root, "starts_with(dataset, 'mine')")  # another condition, the same images


def test_what_the_cohort_does_not_select_may_leave_the_lake_and_what_it_selects_may_not(
    lake: Lake, tmp_path: Path
) -> None:
    add(lake, tmp_path / "other", "another", 6)
    some, both = of_lake(lake.root, "dataset = 'mine'"), of_lake(lake.root, "all")
    states = after(some, 2), after(both, 2)
    reference = digests(some, 4)
    (lake.root / "catalog/samples/another.parquet").unlink()
    shutil.rmtree(lake.root / "shards/another")
    assert goes_on(states[0], reference, lake.root, "dataset = 'mine'")
    assert "images was 14, is 8" in refusal(of_lake(lake.root, "all"), states[1])


def remove_an_image(lake: Lake, tmp: Path) -> None:
    (tmp / "mine/source/images/benign/n000.png").unlink()
    ingest(load_card(tmp / "mine/mine.yaml"), tmp / "mine/source", lake)


def relabel(lake: Lake, tmp: Path) -> None:
    folder = tmp / "mine/source/images"
    (folder / "benign/n000.png").rename(folder / "malignant/n000.png")
    ingest(load_card(tmp / "mine/mine.yaml"), tmp / "mine/source", lake)


CHANGED: dict[str, tuple[Callable[[Lake, Path], None], str]] = {
    "a data set was added, which the cohort selects": (
        lambda lake, tmp: add(lake, tmp / "more", "more", 6),
        "images was",
    ),
    "an image was removed": (remove_an_image, "images was 8, is 7"),
    "an image has another label": (relabel, "images changed their group"),
}


@pytest.mark.parametrize("change", list(CHANGED))
def test_a_lake_that_changed_for_the_cohort_is_refused(lake: Lake, tmp_path: Path, change: str) -> None:
    state = after(of_lake(lake.root, "all"), 2)
    how, word = CHANGED[change]
    how(lake, tmp_path)
    assert word in refusal(of_lake(Lake(lake.root).root, "all"), state)


def test_images_cropped_otherwise_have_other_pixels(lake: Lake, tmp_path: Path) -> None:
    state = after(of_lake(lake.root, "all"), 2)
    card = tmp_path / "mine/mine.yaml"
    card.write_text(card.read_text() + "crop: [0, 0, 40, 40]\n")
    ingest(load_card(card), tmp_path / "mine/source", lake)
    assert "the images of the cohort have other pixels" in refusal(of_lake(lake.root, "all"), state)


def test_rows_that_only_moved_in_their_shard_go_on(lake: Lake, tmp_path: Path) -> None:
    loader = of_lake(lake.root, "all")
    state, reference = after(loader, 2), digests(loader, 4)
    card = tmp_path / "mine/mine.yaml"
    card.write_text(card.read_text().replace("licence: CC0-1.0", f"licence: {'very ' * 100}free"))  # longer JSON
    ingest(load_card(card), tmp_path / "mine/source", lake)
    assert goes_on(state, reference, lake.root, "all")


# --- what is no state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.clear(), "no state of a loader: it has no format, epoch, batch"),
        (lambda s: s.pop("batch"), "it has no batch"),
        (lambda s: s.pop("seed"), "it has no seed"),
        (lambda s: s.pop("order"), "it has no order"),
        (lambda s: s.update(format=FORMAT + 1), f"has format {FORMAT + 1}, this version of usdata reads {FORMAT}"),
        (lambda s: s.update(format=1), "Use the version that saved it"),
        (lambda s: s.update(epoch="1"), "epoch is 1, not a number from 0"),
        (lambda s: s.update(epoch=True), "epoch is True"),
        (lambda s: s.update(epoch=10**5000), "epoch is a huge number"),
        (lambda s: s.update(world=None), "world is None"),
        (lambda s: s.update(world=0), "world is 0, not a number from 1"),
        (lambda s: s.update(batch=8), "batch 8 of epoch 0"),
        (lambda s: s.update(epoch=-1), "epoch is -1"),
        (lambda s: s.update(seed=10**5000), "seed was a huge number"),
        (lambda s: s.update(by="\x1b[2J\ud800"), "by was '\\x1b[2J\\ud800'"),
        (lambda s: s.update(gamma=[10**5000]), "gamma was a list"),
    ],
)
def test_a_damaged_state_is_refused(fake: FakeShards, change: Callable[[dict[str, Any]], None], word: str) -> None:
    state = dict(a_loader(fake).state_dict())
    change(state)
    assert word in refusal(a_loader(fake), state)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
@settings(deadline=None)
def test_any_other_json_is_refused(fake: FakeShards, state: Any) -> None:
    assert "no state of a loader" in refusal(a_loader(fake), state)


@given(st.data(), JSON)
@settings(deadline=None)
def test_a_state_with_any_entry_changed_is_refused_or_means_the_same(fake: FakeShards, data: Any, value: Any) -> None:
    loader, state = a_loader(fake), dict(a_loader(fake).state_dict())
    name = data.draw(st.sampled_from(sorted(state)))
    state[name] = value
    try:
        loader.load_state_dict(state)
    except ConfigError as error:
        assert str(error)
        return
    now = loader.state_dict()
    assert now[name] == value or name in ("world", "batch_size")  # of batch 0: any
    assert 0 <= now["batch"] < len(loader)
