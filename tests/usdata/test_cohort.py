"""A cohort is a condition with a fixed order and a hash; a saved one notices when the lake changed under it."""

import json

import numpy as np
import pytest
import xxhash

from ingest.card import get_card
from ingest.run import ingest
from usdata.cohort import saved
from usdata.errors import ConfigError, QueryError
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
