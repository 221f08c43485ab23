"""D2MAE's mistakes that no test of another file names: the search's view, the positions' types, steps and epochs."""

import warnings
from typing import Any

import numpy as np
import torch
from fakes.speckle import speckle

from training.config import resolve
from training.models import positions
from training.obs import OneLevelWarning, search
from training.recipes.d2mae import D2MAE, D2MAEConfig


def micro(**changes: Any) -> D2MAE:
    torch.manual_seed(0)
    return D2MAE(D2MAEConfig(**{**D2MAE.presets["micro"]["recipe"], "source_size": 64, **changes}))


def test_mistake_9_the_search_sees_one_fixed_view_whatever_the_random_state():
    recipe, images = micro().train(), speckle(3, size=64)
    tables = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OneLevelWarning)
            tables.append(search(recipe, images, ["a", "b", "c"]).losses)
        assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    np.testing.assert_array_equal(*tables)


def test_mistake_11_positions_need_no_type_that_numpy_has_dropped():
    assert not hasattr(np, "float")
    assert not {"np", "numpy"} & vars(positions).keys()
    table = positions.sincos_2d(768, 14, 14)
    assert table.dtype == torch.float32 and table.isfinite().all() and len(table.unique(dim=0)) == 196


def test_mistake_12_a_run_is_as_long_in_steps_whatever_its_cohort():
    cfg = resolve("d2mae", "paper")
    assert (cfg.steps, cfg.epoch_size) == (80_000, None)  # 8,000 epochs of 10 steps
    assert not any("epochs" in name for name in type(cfg).model_fields)


def test_mistake_13_the_rate_follows_the_batch_that_is_loaded():
    full, half = (resolve("d2mae", "paper", sets=[f"batch_size={n}"]) for n in (1024, 512))
    assert full.peak_lr == 1.5e-4 * 1024 / 256 and half.peak_lr == full.peak_lr / 2
    pieces = resolve("d2mae", "paper", sets=["accumulate=8"])
    assert pieces.peak_lr == full.peak_lr  # of the batch, however it is cut
