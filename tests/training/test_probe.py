import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from training.probe import (
    effective_rank,
    group_resamples,
    grouped_folds,
    knn,
    knn_leave_group_out,
    linear_probe,
    metrics,
    with_intervals,
)
from usdata.errors import UsdataError


def blobs(n=60, classes=3, spread=0.3, dims=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(classes, dims))[labels] * 2 + spread * rng.normal(size=(n, dims)), labels


# --- effective rank


def test_equal_directions_count_as_many_and_a_collapsed_encoder_as_one():
    assert effective_rank(np.concatenate([np.eye(4), -np.eye(4)])) == pytest.approx(4.0)
    assert effective_rank(np.outer(np.arange(6.0), [1, 2, 3])) == pytest.approx(1.0)
    assert effective_rank(np.ones((6, 3), np.float32)) == 1.0


def test_two_directions_of_unequal_strength_count_less_than_two():
    points = np.array([[3, 0], [-3, 0], [0, 1], [0, -1]], dtype=float)  # singular values in the ratio 3 to 1
    assert effective_rank(points) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


# --- nearest neighbours


def test_the_nearest_neighbour_by_angle_decides_whatever_its_length():
    train = np.array([[100.0, 0], [0, 0.01]])
    scores = knn(train, np.array([0, 1]), np.array([[1.0, 0.1], [0.1, 1.0]]), classes=2, k=1)
    assert scores.tolist() == [[1, 0], [0, 1]]


def test_neighbours_vote_by_their_similarity():
    train = np.array([[1.0, 0], [0.8, 0.6], [0.8, 0.6]])  # cosines 1, 0.8, 0.8 with the test image
    scores = knn(train, np.array([0, 1, 1]), np.array([[1.0, 0]]), classes=2, k=3, temperature=0.5)
    other = 2 * np.exp(-0.2 / 0.5)
    assert scores[0].tolist() == pytest.approx([1 / (1 + other), other / (1 + other)])


def test_an_image_never_asks_its_own_group():
    features = np.array([[1.0, 0], [1.0, 0.001], [0, 1.0], [0.5, 1.0]])  # 0 and 1 alike: near-duplicates
    labels, groups = np.array([0, 0, 1, 1]), np.array([7, 7, 8, 9])
    assert metrics(labels, knn_leave_group_out(features, labels, np.arange(4), 2, k=1))["accuracy"][0] == 1.0
    kept_apart = knn_leave_group_out(features, labels, groups, 2, k=1)
    assert kept_apart.argmax(1).tolist() == [1, 1, 1, 1]  # 0 and 1 have no other of their class left
    with pytest.raises(UsdataError, match="of one group"):
        knn_leave_group_out(features, labels, np.zeros(4, int), 2)


# --- folds


def test_no_group_crosses_a_fold_and_each_image_is_tested_once():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, 200)
    labels = rng.integers(0, 3, 30)[groups]
    folds = grouped_folds(labels, groups, 5, seed=1)
    assert len(folds) == 5
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(200))
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.test])
        assert set(labels[fold.train]) == {0, 1, 2}


def test_folds_depend_on_the_seed_alone():
    labels, groups = np.arange(60) % 3, np.arange(60)
    first, again, other = (grouped_folds(labels, groups, 5, seed)[0].test.tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_a_rare_class_lowers_the_number_of_folds():
    labels = np.array([0] * 20 + [1] * 3)
    assert len(grouped_folds(labels, np.arange(23), 5, seed=0)) == 3


def test_one_class_or_a_class_of_one_group_is_refused():
    with pytest.raises(UsdataError, match="two classes"):
        grouped_folds(np.zeros(9, int), np.arange(9), 3, seed=0)
    with pytest.raises(UsdataError, match="number 1 has images of one group"):
        grouped_folds(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 3]), 3, seed=0)


# --- linear probe


def test_the_linear_probe_finds_what_is_linear_and_nothing_in_noise():
    features, labels = blobs()
    groups = np.arange(len(labels))
    folds = grouped_folds(labels, groups, 5, 0)
    scores, strengths = linear_probe(features, labels, groups, folds, 3)
    assert metrics(labels, scores)["accuracy"][0] > 0.95
    assert np.allclose(scores.sum(axis=1), 1)
    assert len(strengths) == 5
    noise, _ = linear_probe(np.random.default_rng(1).normal(size=(60, 5)), labels, groups, folds, 3)
    assert metrics(labels, noise)["macro_auroc"][0] < 0.7


def test_the_probe_does_not_care_about_scale_shift_or_a_constant_feature():
    features, labels = blobs()
    groups = np.arange(len(labels))
    folds = grouped_folds(labels, groups, 3, 0)
    plain, _ = linear_probe(features, labels, groups, folds, 3)
    moved = np.concatenate([features * 1000 + 5, np.full((60, 1), 7.0)], axis=1)
    scaled, _ = linear_probe(moved, labels, groups, folds, 3)
    np.testing.assert_allclose(plain, scaled, atol=1e-4)


def test_a_label_that_only_names_the_patient_is_not_found_across_patients():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 6)
    features = rng.normal(size=(20, 32))[groups] + 0.01 * rng.normal(size=(120, 32))  # a patient's frames are alike
    labels = (np.arange(20) % 2)[groups]  # says nothing but which patient it is
    grouped, _ = linear_probe(features, labels, groups, grouped_folds(labels, groups, 5, 0), 2)
    leaking, _ = linear_probe(features, labels, np.arange(120), grouped_folds(labels, np.arange(120), 5, 0), 2)
    assert metrics(labels, grouped)["accuracy"][0] < 0.75
    assert metrics(labels, leaking)["accuracy"][0] > 0.9  # what a careless split would have reported


# --- metrics and intervals


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_metrics_equal_those_of_sklearn(classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 80)
    scores = rng.random((80, classes)).round(1)  # rounded, so that scores tie
    scores = (scores + 0.01) / (scores + 0.01).sum(axis=1, keepdims=True)
    found = {name: value[0] for name, value in metrics(labels, scores).items()}
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, scores.argmax(1), average="macro"))
    areas = [roc_auc_score(labels == c, scores[:, c]) for c in range(classes)]
    assert found["macro_auroc"] == pytest.approx(np.mean(areas))


def test_weights_count_an_image_as_often():
    rng = np.random.default_rng(0)
    labels, scores, weights = rng.integers(0, 3, 40), rng.random((40, 3)).round(1), rng.integers(0, 4, 40)
    repeated = metrics(labels.repeat(weights), scores.repeat(weights, axis=0))
    weighted = metrics(labels, scores, weights[None])
    for name in repeated:
        assert weighted[name][0] == pytest.approx(repeated[name][0])


def test_a_class_that_is_absent_does_not_enter_the_means():
    scores = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.7, 0.3, 0]])
    found = metrics(np.array([0, 1, 0]), scores)
    assert [found[name][0] for name in ("accuracy", "macro_f1", "macro_auroc")] == [1, 1, 1]
    assert np.isnan(metrics(np.array([0, 0]), np.array([[1.0, 0], [1.0, 0]]))["macro_auroc"][0])


def test_a_resample_takes_whole_groups():
    groups = np.array([0, 0, 0, 1, 2, 2])
    weights = group_resamples(groups, 200, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, [0, 3, 4]].sum(axis=1) == 3).all()  # as many groups as there are


def test_the_interval_of_an_accuracy_is_that_of_a_proportion():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    right = rng.random(400) < 0.8
    scores = np.eye(2)[np.where(right, labels, 1 - labels)]
    found = with_intervals(labels, scores, np.arange(400))["accuracy"]
    half = 1.96 * np.sqrt(0.8 * 0.2 / 400)  # normal approximation: 0.039
    assert found["low"] == pytest.approx(found["value"] - half, abs=0.01)
    assert found["high"] == pytest.approx(found["value"] + half, abs=0.01)


def test_frames_of_few_patients_give_a_wider_interval_than_as_many_patients():
    labels = np.tile([0, 1], 100)
    right = np.repeat(np.arange(10) % 3 > 0, 20)  # each patient is all right or all wrong
    scores = np.eye(2)[np.where(right, labels, 1 - labels)]
    wide, narrow = (
        with_intervals(labels, scores, groups)["accuracy"] for groups in (np.arange(200) // 20, np.arange(200))
    )
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_a_method_gains_nothing_over_itself():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 3, 50), rng.random((50, 3))
    gain = with_intervals(labels, scores, np.arange(50), against=scores)
    assert all(gain[name] == {"value": 0.0, "low": 0.0, "high": 0.0} for name in gain)
    better = with_intervals(labels, np.eye(3)[labels], np.arange(50), against=scores)
    assert better["accuracy"]["low"] > 0
