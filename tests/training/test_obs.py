"""The optimal blurriness search: check 10 of the D2MAE paper, its cache, and its warning."""

import warnings
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fakes.speckle import speckle
from torch import Tensor

from training.obs import (
    OneLevelWarning,
    choose,
    finetune_levels,
    level_losses,
    search,
    search_levels,
    weights_hash,
)
from training.recipes.d2mae import D2MAE, VARIANTS, D2MAEConfig
from usdata.errors import ConfigError, LakeError


def micro(**changes: Any) -> D2MAE:
    torch.manual_seed(0)
    return D2MAE(D2MAEConfig(**{**D2MAE.presets["micro"]["recipe"], "source_size": 64, **changes}))


class Oracle:
    """A model that deblurs perfectly when told each image's best level, and worse the further it is told from it."""

    def __init__(self, best: list[int], **changes: Any) -> None:
        self.real, self.best = micro(**changes), best
        self.cfg, self.training, self.calls = self.real.cfg, True, 0
        self.noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def view(self, images: Tensor) -> Tensor:
        return self.real.view(images)

    def blur(self, sharp: Tensor, t: Tensor) -> Tensor:
        self.sharp = sharp
        return self.real.blur(sharp, t)

    def target(self, sharp: Tensor) -> Tensor:
        return self.real.target(sharp)

    def predict(self, blurred: Tensor, t: Tensor, keep: Tensor | None = None) -> Tensor:
        assert not self.training
        self.calls += 1
        best = torch.tensor(self.best * (len(t) // len(self.best)))
        return self.real.target(self.sharp) + (t - best).abs()[:, None, None] * self.noise


def quiet(*args: Any, **options: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OneLevelWarning)
        return search(*args, **options)


def ids(n: int) -> list[str]:
    return [f"fake-{i:02d}" for i in range(n)]


def test_check_10_the_levels_tried_follow_the_step():
    assert search_levels(11, 1) == tuple(range(1, 12))
    assert search_levels(11, 2) == (1, 3, 5, 7, 9, 11)
    assert search_levels(11, 3) == (1, 4, 7, 10)
    with pytest.raises(ConfigError, match="step 0"):
        search_levels(11, 0)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_check_10_an_oracle_s_level_is_found_for_every_level_of_the_grid(step):
    best = list(search_levels(11, step))
    oracle = Oracle(best, obs_step=step)
    found = quiet(oracle, speckle(len(best), size=64), ids(len(best)))
    assert found.t_star.tolist() == best
    assert found.losses.shape == (len(best), len(best))
    assert oracle.calls == 1  # all levels of all images in one batch
    assert oracle.training  # its own mode came back


def test_check_10_ties_go_to_the_lowest_level():
    assert choose(torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 1.0], [3.0, 2.0, 1.0]])).tolist() == [1, 0, 2]
    assert choose(torch.tensor([[1.0 + 1e-7, 1.0]])).tolist() == [0]  # rounding is no difference
    assert choose(torch.tensor([[1.0 + 1e-5, 1.0]])).tolist() == [1]
    flat = torch.full((3, 1, 64, 64), 90, dtype=torch.uint8)  # blur changes nothing, and nobody says the level
    assert quiet(micro(embed="none"), flat, ids(3)).t_star.tolist() == [1, 1, 1]


def test_check_10_the_result_depends_on_neither_batch_size_nor_order():
    model, images = micro(), speckle(7, size=64)
    whole = quiet(model, images, ids(7), batch_size=7)
    pieces = quiet(model, images, ids(7), batch_size=2)
    order = [3, 0, 6, 2, 5, 1, 4]
    mixed = quiet(model, images[order], [ids(7)[i] for i in order], batch_size=3)
    assert pieces.t_star.tolist() == whole.t_star.tolist()
    assert mixed.t_star.tolist() == whole.t_star[order].tolist()
    np.testing.assert_allclose(pieces.losses, whole.losses, rtol=1e-5)
    np.testing.assert_allclose(mixed.losses, whole.losses[order], rtol=1e-5)


def test_check_10_a_second_run_reads_the_cache_and_gives_the_same_table(tmp_path):
    model, images = micro(), speckle(4, size=64)
    first = quiet(model, images, ids(4), cache=tmp_path)
    (table,) = tmp_path.iterdir()
    content = table.read_bytes()
    second = quiet(model, images, ids(4), cache=tmp_path)
    assert (first.computed, second.computed) == (4, 0)
    assert table.read_bytes() == content
    assert second.t_star.tolist() == first.t_star.tolist()
    np.testing.assert_array_equal(second.losses, first.losses)
    rows = pq.read_table(table).to_pylist()
    assert [row["image_id"] for row in rows] == ids(4)
    assert [row["t_star"] for row in rows] == first.t_star.tolist()
    assert {row["checkpoint_hash"] for row in rows} == {weights_hash(model)}
    assert rows[0]["levels"] == [1, 3, 5, 7, 9, 11]


def test_new_images_are_added_to_the_cache_and_changed_ones_searched_again(tmp_path):
    model, images = micro(), speckle(4, size=64)
    quiet(model, images[:2], ids(2), cache=tmp_path)
    assert quiet(model, images, ids(4), cache=tmp_path).computed == 2
    changed = images.clone()
    changed[0, 0, 5, 5] += 1
    assert quiet(model, changed, ids(4), cache=tmp_path).computed == 1  # same name, other pixels


def test_other_weights_and_other_settings_have_their_own_cache(tmp_path):
    images = speckle(2, size=64)
    quiet(micro(), images, ids(2), cache=tmp_path)
    trained = micro()
    with torch.no_grad():
        trained.decoder.mask_token.add_(1.0)
    assert quiet(trained, images, ids(2), cache=tmp_path).computed == 2
    assert quiet(micro(eval_view="whole"), images, ids(2), cache=tmp_path).computed == 2
    assert quiet(micro(obs_criterion="rel"), images, ids(2), cache=tmp_path).computed == 2
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_cache_is_reported_with_its_cure(tmp_path):
    model, images = micro(), speckle(2, size=64)
    quiet(model, images, ids(2), cache=tmp_path)
    (table,) = tmp_path.iterdir()
    table.write_bytes(table.read_bytes()[:-10])
    with pytest.raises(LakeError, match="Delete the file"):
        quiet(model, images, ids(2), cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_reported(tmp_path):
    place = tmp_path / "file"
    place.touch()
    with pytest.raises(LakeError, match="is a file"):
        quiet(micro(), speckle(2, size=64), ids(2), cache=place)


def test_the_search_runs_in_eval_mode_and_float32_whatever_surrounds_it():
    model, images = micro(), speckle(3, size=64)
    for block in model.encoder.blocks:
        block.mlp.drop1.p = 0.5  # would show if the model stayed in train mode
    expected = quiet(model.eval(), images, ids(3)).losses
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quiet(model, images, ids(3)).losses
    np.testing.assert_array_equal(found, expected)
    assert model.training


def test_the_losses_are_those_of_deblurring_each_level_with_nothing_masked():
    model, images = micro().eval(), speckle(2, size=64)
    found = quiet(model, images, ids(2))
    view = model.view(images)
    with torch.no_grad():
        for column, level in enumerate(found.levels):
            t = torch.full((2,), level)
            error = (model.predict(model.blur(view, t), t) - model.target(view)).square().mean(dim=(1, 2))
            np.testing.assert_allclose(found.losses[:, column], error, rtol=1e-5)


def test_the_relative_criterion_divides_by_the_error_of_doing_nothing():
    plain, relative = micro().eval(), micro(obs_criterion="rel").eval()
    view = plain.view(speckle(2, size=64))
    levels = search_levels(11, 2)
    with torch.no_grad():
        absolute, found = level_losses(plain, view, levels), level_losses(relative, view, levels)
        nothing = ((plain.blur(view, torch.full((2,), 11)) - view) / plain.std).square().mean(dim=(1, 2, 3))
    assert torch.allclose(found[:, -1], absolute[:, -1] / nothing, rtol=1e-4)
    assert torch.allclose(found[:, 0], absolute[:, 0] / 1e-5, rtol=1e-4)  # level 1 blurs nothing: the floor


def test_masks_of_an_audit_belong_to_the_image_not_to_its_place():
    model, images = micro(obs_mask_ratio=0.75, obs_masks=2), speckle(5, size=64)
    whole = quiet(model, images, ids(5))
    alone = quiet(model, images[3:4], ids(5)[3:4])
    np.testing.assert_allclose(alone.losses[0], whole.losses[3], rtol=1e-5)
    assert not np.allclose(whole.losses, quiet(micro(), images, ids(5)).losses, rtol=1e-3)


def test_a_warning_comes_when_more_than_nine_in_ten_share_one_level():
    best = [5] * 19 + [9]
    with pytest.warns(OneLevelWarning, match="19 of 20 images chose blur level 5"):
        found = search(Oracle(best), speckle(20, size=64), ids(20))
    assert found.histogram == {1: 0, 3: 0, 5: 19, 7: 0, 9: 1, 11: 0}
    assert min(found.curve, key=lambda t: found.curve[t]) == 5


def test_no_warning_comes_when_levels_are_spread():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = search(Oracle([5] * 18 + [9] * 2), speckle(20, size=64), ids(20))
    assert found.histogram[5] == 18  # exactly nine in ten


def test_images_may_come_as_a_plain_array():
    images = speckle(3, size=64)
    array, tensor = quiet(micro(), images[:, 0].numpy(), ids(3)), quiet(micro(), images, ids(3))
    assert array.losses.tolist() == tensor.losses.tolist()


def test_no_images_give_an_empty_result():
    found = search(micro(), speckle(1, size=64)[:0], [])
    assert found.t_star.shape == (0,) and found.losses.shape == (0, 6)


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_every_image_needs_its_own_name(names):
    with pytest.raises(ConfigError, match="one name per image"):
        search(micro(), speckle(2, size=64), names)


def test_models_whose_output_is_no_image_or_that_know_no_blur_are_refused():
    with pytest.raises(ConfigError, match="norm_pix"):
        search(micro(norm_pix=True), speckle(1, size=64), ["a"])
    with pytest.raises(ConfigError, match="blur levels"):
        search(micro(**VARIANTS["mae"]), speckle(1, size=64), ["a"])


def test_levels_for_fine_tuning_follow_the_setting():
    images = speckle(3, size=64)
    assert finetune_levels(micro(finetune_blur="none"), images, ids(3)).tolist() == [0, 0, 0]
    assert finetune_levels(micro(finetune_blur="fixed"), images, ids(3)).tolist() == [5, 5, 5]  # sigma 0.5
    assert finetune_levels(micro(**VARIANTS["deblurrmae"]), images, ids(3)).tolist() == [1, 1, 1]  # its one sigma
    assert finetune_levels(micro(**VARIANTS["mae"]), images, ids(3)).tolist() == [0, 0, 0]
    model = micro()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OneLevelWarning)
        assert finetune_levels(model, images, ids(3)).tolist() == search(model, images, ids(3)).t_star.tolist()
    with pytest.raises(ConfigError, match="No blur level has sigma"):
        model.level_of(0.55)
    with pytest.raises(ValueError, match="is the sigma of no blur level"):
        micro(finetune_blur="fixed", fixed_sigma=0.55)
