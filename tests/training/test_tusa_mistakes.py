"""TUSA's mistakes 2 and 5 as far as scores are concerned: what a classifier on frozen latents may not do."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from training.downstream.classify import score
from training.losses_contrast import nt_xent
from training.probe import Fold, knn, linear_probe


def test_mistake_2_views_of_one_image_are_never_pushed_apart():
    z = F.normalize(torch.randn(4, 2, 2, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    z.requires_grad_()
    nt_xent(z, 0.5).backward()
    step = F.normalize((z - 1e-2 * z.grad).detach(), dim=-1)
    near, far = (torch.einsum("isad,ktbd->isaktb", x, x).flatten(3).flatten(0, 2) for x in (z.detach(), step))
    same = torch.arange(16)[:, None] // 4 == torch.arange(16) // 4
    assert (far - near)[same & ~torch.eye(16, dtype=torch.bool)].mean() > 0  # attracted
    assert (far - near)[~same].mean() < 0  # repelled


def test_mistake_5_the_scaler_knows_the_training_folds_only():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 3)), np.arange(40) % 2
    x[:, 0] += 2 * y
    parts = [Fold(train=np.arange(30), test=np.arange(30, 40))]
    groups = np.arange(40)
    expected = linear_probe(x, y, groups, parts, 2, 0)[0][30]
    spoiled = x.copy()
    spoiled[31:] *= 1e4  # other images of the test fold, which nothing may be fitted to
    assert np.array_equal(linear_probe(spoiled, y, groups, parts, 2, 0)[0][30], expected)


@pytest.fixture(scope="module")
def uneven() -> tuple[dict[str, dict[str, float]], np.ndarray, np.ndarray, list[Fold]]:
    """Scores of a 5-nearest-neighbour vote on folds of 20, 6 and 4 images, of which the last has no positive."""
    random = np.random.default_rng(1)
    codes = np.array([0, 1] * 13 + [0, 0, 0, 0])
    features = random.normal(size=(30, 4)) + 0.8 * codes[:, None]
    tests = [np.arange(20), np.arange(20, 26), np.arange(26, 30)]
    parts = [Fold(train=np.setdiff1d(np.arange(30), test), test=test) for test in tests]
    images = random.integers(0, 255, (30, 256, 256)).astype(np.uint8)
    found = score(
        images,
        ["ill" if c else "healthy" for c in codes],
        np.arange(30),
        {"trained": lambda _: features},
        repeats=5,
        parts=parts,
    )
    [scores] = [s for s in found["scores"] if (s["encoder"], s["method"]) == ("trained", "knn")]
    return scores, features, codes, parts


def test_check_16_and_mistake_5_predictions_are_pooled_before_metrics(uneven):
    scores, features, codes, parts = uneven
    votes = np.concatenate([knn(features[p.train], codes[p.train], features[p.test], 2) for p in parts])
    right = votes.argmax(1) == codes
    each = [right[p.test].mean() for p in parts]
    assert codes[parts[2].test].max() == 0  # by itself that fold has no area under the curve
    assert abs(right.mean() - np.mean(each)) > 0.01
    assert scores["accuracy"]["value"] == pytest.approx(right.mean())
    assert scores["macro_auroc"]["value"] == pytest.approx(roc_auc_score(codes, votes[:, 1]))
