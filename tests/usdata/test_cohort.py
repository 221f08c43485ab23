"""A cohort is a condition with a fixed order and a hash; a saved one notices when the lake changed under it."""

import json
import pickle
import sys

import numpy as np
import pytest
import xxhash

from ingest.card import get_card
from ingest.run import ingest
from usdata import cli
from usdata.cohort import saved
from usdata.errors import ConfigError, LakeError, QueryError
from usdata.lake import Lake


@pytest.fixture
def lake(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    ingest(get_card("phantom"), None, lake, count=24)
    return lake


def test_all_selects_every_sample_in_the_order_of_the_shards(phantom_lake):
    cohort = phantom_lake.cohort("all")
    places = cohort.table(["dataset", "shard", "offset"]).to_pylist()
    assert len(places) == cohort.rows == 80
    assert places == sorted(places, key=lambda row: (row["dataset"], row["shard"], row["offset"]))


def test_the_hash_is_that_of_the_sorted_ids_by_an_independent_count(phantom_lake):
    cohort = phantom_lake.cohort("organ = 'breast'")
    ids = phantom_lake.sql("select sample_id from samples where organ = 'breast'")["sample_id"].to_pylist()
    assert cohort.hash == xxhash.xxh3_128("".join(f"{i}\n" for i in sorted(ids)).encode()).hexdigest()


def test_images_come_in_the_order_of_the_table(phantom_lake):
    cohort = phantom_lake.cohort("organ = 'kidney' or organ = 'lung'")
    hashes = [xxhash.xxh3_128(image.tobytes()).hexdigest() for image in cohort.images()]
    assert hashes == cohort.table(["pixel_xxh"])["pixel_xxh"].to_pylist()


def test_batches_deliver_each_sample_once_with_its_columns_and_mask(phantom_lake):
    cohort = phantom_lake.cohort("all")
    batches = list(cohort.batches(32, columns=("organ", "target"), mask=True))
    assert [len(b["organ"]) for b in batches] == [32, 32, 16]
    assert [organ for b in batches for organ in b["organ"]] == cohort.table(["organ"])["organ"].to_pylist()
    assert batches[0]["mask"].shape == (32, 1, 256, 256)


def test_a_saved_cohort_is_found_by_its_name(lake):
    cohort = lake.cohort("organ = 'breast'")
    path = cohort.save("breast-all")
    assert json.loads(path.read_text())["rows"] == cohort.rows
    assert saved(lake) == ["breast-all"]
    again = lake.cohort("breast-all")
    assert (again.hash, again.name, again.sql) == (cohort.hash, "breast-all", "organ = 'breast'")


def test_a_saved_cohort_refuses_a_lake_that_gives_other_samples(lake):
    lake.cohort("organ = 'breast'").save("mine")
    ingest(get_card("phantom"), None, lake, count=40)
    with pytest.raises(QueryError, match="was saved with"):
        lake.cohort("mine")


def test_the_name_of_a_cohort_with_another_condition_is_refused_unless_it_is_to_be_replaced(lake):
    path = lake.cohort("organ = 'breast'").save("mine")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="another condition: organ = 'breast'") as caught:
        lake.cohort("organ = 'liver'").save("mine")
    assert "usdata cohort save mine 'organ = '\"'\"'liver'\"'\"'' --overwrite" in str(caught.value)
    assert path.read_bytes() == before
    lake.cohort("organ = 'liver'").save("mine", overwrite=True)
    assert lake.cohort("mine").sql == "organ = 'liver'"


def test_the_same_condition_saved_again_accepts_what_it_selects_now(lake):
    lake.cohort("organ = 'breast'").save("mine")
    ingest(get_card("phantom"), None, lake, count=40)
    now = lake.cohort("organ = 'breast'")
    now.save("mine")
    assert lake.cohort("mine").hash == now.hash


def test_the_command_line_tells_how_many_samples_a_cohort_had_before(lake, monkeypatch, capsys):
    def save(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["usdata", "cohort", "save", "mine", *words, "--lake", str(lake.root)])
        with pytest.raises(SystemExit) as end:
            cli.main()
            raise SystemExit(0)
        return int(end.value.code or 0), capsys.readouterr().err

    code, said = save("organ = 'breast'")
    before = lake.cohort("mine").rows
    assert code == 0 and f"{before} samples, " in said and "before" not in said
    ingest(get_card("phantom"), None, lake, count=40)
    code, said = save("organ = 'breast'")
    after = lake.cohort("mine").rows
    assert code == 0 and after > before and f"{after} samples (it was saved before, with {before})" in said
    assert save("all")[0] == 1
    code, said = save("all", "--overwrite")
    assert code == 0 and f"40 samples (it was saved before, with {after})" in said


def test_a_damaged_cohort_is_replaced_only_on_demand(lake):
    path = lake.cohort("all").save("mine")
    path.write_text("{}")
    with pytest.raises(LakeError, match="damaged"):
        lake.cohort("all").save("mine")
    lake.cohort("all").save("mine", overwrite=True)
    assert lake.cohort("mine").rows == 24


def test_an_unknown_name_gives_the_nearest_saved_one(lake):
    lake.cohort("all").save("thyroid-train")
    with pytest.raises(QueryError, match="Did you mean 'thyroid-train'"):
        lake.cohort("thyroid-trian")


@pytest.mark.parametrize("name", ["", "All", "all", "../x", "a b", "x" * 80, "é", "1st", ".hidden"])
def test_a_name_that_is_no_name_is_refused(lake, name):
    with pytest.raises(ConfigError):
        lake.cohort("all").save(name)
    assert saved(lake) == []


def test_an_empty_cohort_exists_but_can_not_be_loaded(phantom_lake):
    cohort = phantom_lake.cohort("organ = 'eye'")
    assert cohort.rows == 0
    assert cohort.images().shape == (0, 256, 256)
    with pytest.raises(ConfigError, match="empty"):
        cohort.loader(batch_size=4)


def test_groups_are_numbered_by_name_and_null_is_unknown(phantom_lake):
    codes, names = phantom_lake.cohort("all").groups("label")
    assert names == sorted(names)
    assert "unknown" in names
    labels = phantom_lake.cohort("all").table(["label"])["label"].to_pylist()
    assert [names[c] for c in codes] == [label or "unknown" for label in labels]


def test_the_loader_draws_the_rare_organ_more_often_than_its_share(phantom_lake):
    loader = phantom_lake.cohort("all").loader(batch_size=50, epoch_size=2000, gamma=0.0, columns=("organ",))
    organs = np.array([organ for batch in loader for organ in batch["organ"]])
    assert (organs == "kidney").mean() == pytest.approx(1 / 8, abs=0.03)  # 1 of 80 images


def test_the_summary_counts_images_patients_and_masks(phantom_lake):
    rows = phantom_lake.cohort("organ = 'breast'").summary()
    assert rows[0]["images"] == rows[0]["has_mask"] == 32
    assert rows[0]["patients"] > 1


@pytest.mark.parametrize("size", [0, -5, 2.5])
def test_batches_of_no_size_are_refused_at_once(phantom_lake, size):
    with pytest.raises(ConfigError, match="batch_size is"):
        phantom_lake.cohort().batches(size)


@pytest.mark.parametrize("places", [[-1], [10**6], [True, False], [0.5]])
def test_images_are_asked_for_by_their_places(phantom_lake, places):
    with pytest.raises(ConfigError, match="whole numbers from 0"):
        phantom_lake.cohort().images(places)


def test_a_pickled_cohort_is_its_condition(phantom_lake):
    cohort = phantom_lake.cohort("organ = 'breast'")
    assert pickle.loads(pickle.dumps(cohort)).hash == cohort.hash


def test_a_setting_that_no_stream_has_is_refused(phantom_lake):
    with pytest.raises(ConfigError, match="streaming has no 'wndow'"):
        phantom_lake.cohort().loader(4, streaming={"wndow": 3})
