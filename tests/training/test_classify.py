import json

import numpy as np
import pyarrow as pa
import pytest
from fakes import duel_recipe  # noqa: F401 (registers the recipe)
from fakes.training_fakes import FakeCohort

from training.checkpoint import random_encoder
from training.config import resolve
from training.downstream.classify import probe_cohort, rows_of, score
from training.inference import features
from training.train import pretrain
from usdata.errors import ConfigError, UsdataError


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    out = tmp_path_factory.mktemp("classify") / "run"
    pretrain(FakeCohort(), resolve("tiny", "micro", sets=["steps=60", "checkpoint_every=100", "log_every=20"]), out)
    return out


def methods(result):
    return {(s["encoder"], s["method"]): s for s in result["scores"]}


def test_a_score_stands_beside_a_random_encoder_thumbnails_and_the_majority(encoder):
    result = probe_cohort(FakeCohort(), encoder)
    found = methods(result)
    assert set(found) == {
        ("trained", "linear"),
        ("trained", "knn"),
        ("random", "linear"),
        ("random", "knn"),
        ("thumbnails", "1-nn"),
        ("none", "majority"),
    }
    assert found["trained", "linear"]["accuracy"]["value"] == 1.0  # bright above or below: anyone can see that
    assert found["thumbnails", "1-nn"]["accuracy"]["value"] == 1.0
    assert found["none", "majority"]["macro_auroc"]["value"] == pytest.approx(0.5, abs=0.1)
    assert (result["label"], result["classes"], result["groups"]) == ("organ", {"breast": 20, "thyroid": 20}, 10)
    assert {gain["method"] for gain in result["gain"]} == {"linear", "knn"}
    assert result["encoder"]["cohort_hash"] == "c0ffee"
    assert json.loads((encoder / "scores.json").read_text())["scores"] == result["scores"]


def test_scores_depend_on_the_seed_alone(encoder, tmp_path):
    probe_cohort(FakeCohort(), encoder, out=tmp_path / "a.json", label="label", seed=3)
    probe_cohort(FakeCohort(), encoder, out=tmp_path / "b.json", label="label", seed=3)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_images_without_the_label_are_left_out_and_counted(encoder, tmp_path):
    result = probe_cohort(FakeCohort(), encoder, out=tmp_path / "s.json", label="label")
    assert result["left_out"] == 8  # each fifth of 40
    assert sum(result["classes"].values()) == 32


def test_a_number_and_its_interval_are_shown_for_each_method(encoder, tmp_path):
    rows = rows_of(probe_cohort(FakeCohort(), encoder, out=tmp_path / "s.json"))
    assert [row["encoder"] for row in rows[-2:]] == ["trained - random"] * 2
    assert rows[0]["accuracy"] == "1.000 [1.000, 1.000]"


def test_the_majority_is_that_of_the_training_part():
    images = np.zeros((10, 256, 256), np.uint8)
    labels = ["a"] * 7 + ["b"] * 3
    result = score(images, labels, np.arange(10), {}, repeats=20)
    assert methods(result)["none", "majority"]["accuracy"]["value"] == 0.7
    assert result["gain"] == []


def test_features_do_not_depend_on_the_batch_they_are_computed_in():
    recipe, images = random_encoder("tiny", "micro"), FakeCohort().images()
    np.testing.assert_allclose(
        features(recipe, images, batch_size=7), features(recipe, images, batch_size=40), rtol=1e-5, atol=1e-6
    )
    assert features(recipe, images).shape == (40, 8)


def test_a_class_of_one_patient_is_refused_by_name():
    images = np.zeros((6, 256, 256), np.uint8)
    with pytest.raises(UsdataError, match="All images of 'rare' are of one patient"):
        score(images, ["a"] * 4 + ["rare"] * 2, np.array([0, 1, 2, 3, 4, 4]), {})


def test_a_cohort_without_two_labels_is_refused(encoder):
    cohort = FakeCohort()
    cohort.organ = ["breast"] * 40
    with pytest.raises(ConfigError, match="'organ' has 1 values"):
        probe_cohort(cohort, encoder, label="organ")


def test_the_groups_of_a_split_lake_are_those_of_its_catalog(encoder, tmp_path):
    cohort = FakeCohort()
    cohort.group = [f"g{i // 8}" for i in range(40)]  # coarser than the ten patients
    assert probe_cohort(cohort, encoder, out=tmp_path / "s.json")["groups"] == 5
    cohort.group[7] = None
    with pytest.raises(UsdataError, match=r"1 of 40 images have no group.*\n.*usdata split"):
        probe_cohort(cohort, encoder, out=tmp_path / "s.json")


@pytest.mark.parametrize("column", ["clip", "study", "duplicate_group"])
def test_without_patients_no_fold_parts_a_clip_a_study_or_a_set_of_copies(encoder, tmp_path, column):
    cohort, keys = FakeCohort(), [f"k{i // 5}" for i in range(40)]
    table = cohort.table
    unknown = {"patient": pa.nulls(40, pa.string()), column: pa.array(keys)}
    cohort.table = lambda names: pa.table({n: unknown.get(n, table([n])[n]) for n in names})
    assert probe_cohort(cohort, encoder, out=tmp_path / "s.json")["groups"] == 8


def test_a_copy_that_was_found_after_the_split_is_told_as_a_leak(encoder, tmp_path):
    cohort = FakeCohort()
    cohort.group, cohort.split = [f"g{i // 4}" for i in range(40)], [*["train"] * 20, *["test"] * 20]
    assert probe_cohort(cohort, encoder, out=tmp_path / "s.json", by_split=True)["leaking"] == 0
    table, copies = cohort.table, pa.array(["d" if i in (0, 39) else None for i in range(40)])
    cohort.table = lambda names: pa.table({n: copies if n == "duplicate_group" else table([n])[n] for n in names})
    assert probe_cohort(cohort, encoder, out=tmp_path / "s.json", by_split=True)["leaking"] == 1


def test_a_split_is_trained_on_train_and_tested_on_test(encoder, tmp_path):
    cohort = FakeCohort()
    cohort.split = [*["train"] * 20, *["val"] * 8, *["test"] * 11, None]
    result = probe_cohort(cohort, encoder, out=tmp_path / "s.json", by_split=True)
    assert (result["folds"], result["tested"], result["leaking"]) == (1, 11, 0)
    assert methods(result)["trained", "linear"]["accuracy"]["value"] == 1.0
    cohort.split = [*["train"] * 22, *["test"] * 18]  # parts the patient of images 20 to 23
    assert probe_cohort(cohort, encoder, out=tmp_path / "s.json", by_split=True)["leaking"] == 1


def test_the_folds_of_a_split_are_each_tested_once(encoder, tmp_path):
    cohort = FakeCohort()
    cohort.split = [f"fold{i // 4 % 3}" for i in range(40)]
    result = probe_cohort(cohort, encoder, out=tmp_path / "s.json", by_split=True)
    assert (result["folds"], result["tested"], result["leaking"]) == (3, 40, 0)


@pytest.mark.parametrize("words", [[None] * 40, ["train"] * 40, ["fold0"] * 40, [*["train"] * 20, *["val"] * 20]])
def test_a_split_without_a_test_part_is_refused(encoder, tmp_path, words):
    cohort = FakeCohort()
    cohort.split = words
    with pytest.raises(UsdataError, match="usdata split"):
        probe_cohort(cohort, encoder, out=tmp_path / "s.json", by_split=True)


def test_a_training_part_of_one_class_is_refused(encoder, tmp_path):
    cohort = FakeCohort()
    cohort.split = ["train" if organ == "breast" else "test" for organ in cohort.organ]
    with pytest.raises(UsdataError, match="one class only"):
        probe_cohort(cohort, encoder, out=tmp_path / "s.json", by_split=True)


# --- what the encoder is told


@pytest.fixture(scope="module")
def duel(tmp_path_factory):
    """Weights that shift the features by the organ they are told."""
    out = tmp_path_factory.mktemp("classify") / "duel"
    pretrain(FakeCohort(), resolve("duel", "micro", sets=["steps=1"]), out)
    return out


def test_all_conditions_stand_side_by_side_with_their_differences(duel, tmp_path):
    result = probe_cohort(FakeCohort(), duel, out=tmp_path / "s.json", label="label", condition="all")
    names = [name for name, _ in methods(result)]
    for name in ("trained", "trained, label", "trained, wrong", "random", "told alone"):
        assert name in names
    assert (result["condition"], result["circular"]) == ("null", [])
    assert result["told_instead"] == {"breast": "thyroid", "thyroid": "breast"}
    found, told = methods(result), {(s["condition"], s["method"]): s for s in result["told"]}
    assert set(told) == {(c, m) for c in ("label", "wrong") for m in ("linear", "knn")}
    difference = found["trained, label", "knn"]["accuracy"]["value"] - found["trained", "knn"]["accuracy"]["value"]
    assert told["label", "knn"]["accuracy"]["value"] == pytest.approx(difference)
    assert rows_of(result)[-1]["encoder"] == "wrong - null"


def test_the_condition_of_a_score_stands_in_it(duel, tmp_path):
    result = probe_cohort(FakeCohort(), duel, out=tmp_path / "s.json", label="label", condition="wrong")
    assert json.loads((tmp_path / "s.json").read_text())["condition"] == result["condition"] == "wrong"
    assert {name for name, _ in methods(result)} == {"trained", "random", "thumbnails", "none", "told alone"}
    assert result["told"] == []


@pytest.mark.parametrize("label", ["organ", "split"])
def test_an_encoder_is_not_asked_for_what_it_was_told(duel, tmp_path, label):
    cohort = FakeCohort()
    cohort.split = ["a" if organ == "breast" else "b" for organ in cohort.organ]  # a label that follows from the organ
    for one in ("label", "wrong"):
        with pytest.raises(ConfigError, match=f"Condition '{one}' tells the encoder the organ, and '{label}' follows"):
            probe_cohort(cohort, duel, out=tmp_path / "s.json", label=label, condition=one)
    assert not (tmp_path / "s.json").exists()
    result = probe_cohort(cohort, duel, out=tmp_path / "s.json", label=label, condition="all")
    assert result["circular"] == ["label", "wrong"]
    assert ("trained, label", "knn") not in methods(result)


def test_an_encoder_that_sees_only_pixels_has_no_other_condition(encoder, tmp_path):
    with pytest.raises(ConfigError, match="see nothing but the pixels"):
        probe_cohort(FakeCohort(), encoder, out=tmp_path / "s.json", label="label", condition="label")
    result = probe_cohort(FakeCohort(), encoder, out=tmp_path / "s.json", label="label", condition="all")
    assert (result["condition"], result["told"]) == ("null", [])


def test_told_alone_is_the_majority_of_the_images_told_the_same():
    images = np.zeros((12, 256, 256), np.uint8)
    labels, told = ["a", "b"] * 6, np.array([0, 1] * 6)
    found = methods(score(images, labels, np.arange(12), {}, repeats=20, told=told))
    assert found["told alone", "majority"]["accuracy"]["value"] == 1.0


def test_a_missing_encoder_is_refused(tmp_path):
    with pytest.raises(UsdataError, match="No weights in"):
        probe_cohort(FakeCohort(), tmp_path)


@pytest.mark.real
def test_a_random_vit_on_busi_is_scored_within_bounds(real_data):
    from PIL import Image

    files = sorted(p for p in (real_data / "busi").rglob("*.png") if "_mask" not in p.name)
    images = np.stack([np.asarray(Image.open(p).convert("L").resize((256, 256))) for p in files])
    recipe = random_encoder("d2mae", "micro")
    result = score(images, [p.parent.name for p in files], np.arange(45), {"random": lambda x: features(recipe, x)})
    assert result["classes"] == {"benign": 15, "malignant": 15, "normal": 15}
    found = methods(result)["random", "linear"]["accuracy"]
    assert found["low"] < found["value"] < found["high"] < 0.9  # 45 images say little, and the interval admits it
    assert found["high"] - found["low"] > 0.2
