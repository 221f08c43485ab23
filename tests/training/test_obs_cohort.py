"""`usdata obs`: the blur search over a cohort, its cache, and models that can't be searched."""

import itertools
import json
from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fakes.training_fakes import FakeCohort
from safetensors.torch import load_file
from typer.testing import CliRunner

from training import obs_cache
from training.checkpoint import load_encoder
from training.cli import app
from training.config import resolve
from training.obs import OneLevelWarning, Searcher, search
from training.obs_cohort import read_facts, search_cohort
from training.train import pretrain
from usdata.errors import ConfigError, LakeError, UsdataError

TINY = ["batch_size=4", "checkpoint_every=100", "image_size=32", "encoder_depth=1", "decoder_depth=1"]


def train(out, *sets: str, variant: str | None = None, steps: int = 1, **how: Any):
    cfg = resolve("d2mae", "micro", sets=[*TINY, f"steps={steps}", *sets], variant=variant)
    return pretrain(FakeCohort(), cfg, out, **how)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("obs") / "run"
    train(out)
    return out


def test_it_finds_what_the_search_in_memory_finds_and_the_sums_are_right(tmp_path, run):
    cohort, out = FakeCohort(), tmp_path / "levels.parquet"
    found = search_cohort(cohort, run, out, cache=tmp_path / "cache", batch_size=7)
    ids = cohort.table(["sample_id"])["sample_id"].to_pylist()
    expected = search(load_encoder(run), torch.from_numpy(cohort.images()), ids)
    table = pq.read_table(out)
    assert table["sample_id"].to_pylist() == ids
    assert table["t_star"].to_pylist() == expected.t_star.tolist()
    assert table["sigma"].to_pylist() == [t / 10 for t in expected.t_star.tolist()]
    np.testing.assert_allclose(np.stack(table["losses"].to_numpy()), expected.losses, rtol=1e-5)
    assert (found.rows, found.computed, found.histogram) == (40, 40, expected.histogram)
    assert found.curve == pytest.approx(expected.curve)
    facts = read_facts(out)
    assert (facts["levels"], facts["criterion"], facts["cohort_hash"]) == ([1, 3, 5, 7, 9, 11], "abs", "c0ffee")


def test_the_second_run_reads_the_cache_computes_nothing_and_writes_the_same_bytes(tmp_path, run, monkeypatch):
    first = search_cohort(FakeCohort(), run, tmp_path / "a.parquet", cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("training.obs.level_losses", lambda *_: pytest.fail("it computes again"))
        second = search_cohort(FakeCohort(), run, tmp_path / "b.parquet", cache=tmp_path / "cache", batch_size=3)
    assert (first.computed, second.computed, second.cached) == (40, 0, 40)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    wider = search_cohort(FakeCohort(44), run, cache=tmp_path / "cache")  # four more of the same
    assert (wider.computed, wider.cached) == (4, 40)
    assert search_cohort(FakeCohort(), run, cache=tmp_path / "cache", settings={"obs_step": 5}).computed == 40


@pytest.mark.parametrize("end", ["an error", "a kill"])
def test_what_was_searched_before_the_end_is_kept(tmp_path, run, monkeypatch, end):
    class Torn(FakeCohort):
        def batches(self, batch_size, columns=()):
            yield from itertools.islice(super().batches(batch_size, columns), 4)
            raise LakeError("a shard is damaged")

    monkeypatch.setattr(obs_cache, "_PART_ROWS", 8)
    if end == "a kill":  # after which nothing more is written
        monkeypatch.setattr(Searcher, "__exit__", lambda *_: None)
    out = tmp_path / "levels.parquet"
    with pytest.raises(LakeError, match="damaged"):
        search_cohort(Torn(), run, out, cache=tmp_path / "cache", batch_size=6)
    assert not out.exists()
    again = search_cohort(FakeCohort(), run, out, cache=tmp_path / "cache")
    assert (again.computed, again.cached) == (16, 24)  # four batches of 6, in parts of at least 8
    expected = search_cohort(FakeCohort(), run, cache=tmp_path / "other")
    assert again.histogram == expected.histogram


def test_a_part_that_was_torn_while_it_was_written_is_not_there(tmp_path, run, monkeypatch):
    def torn(table, file):
        file.write(b"PAR1 half a part")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(obs_cache.pq, "write_table", torn)
        search_cohort(FakeCohort(8), run, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert search_cohort(FakeCohort(8), run, cache=tmp_path / "cache").computed == 8


def test_the_images_of_a_cohort_are_never_held_together(tmp_path, run):
    class Counted(FakeCohort):
        def images(self):
            return pytest.fail("all images at a time")

    assert search_cohort(Counted(), run, cache=tmp_path).rows == 40


def test_one_level_for_all_is_called_a_collapse_and_one_level_to_choose_from_is_not(tmp_path, run, monkeypatch):
    monkeypatch.setattr("training.obs.level_losses", lambda _, sharp, levels, __: torch.ones(len(sharp), len(levels)))
    found = search_cohort(FakeCohort(), run, cache=tmp_path)
    assert (found.collapsed, found.level, found.share) == (True, 1, 1.0)
    alone = search_cohort(FakeCohort(), run, cache=tmp_path, settings={"obs_step": 20})
    assert not alone.collapsed
    assert alone.remarks() == ["  Step 20 leaves one of 11 levels: there was nothing to choose."]
    assert "knows one level only" in replace(alone, known=1).remarks()[0]
    monkeypatch.setattr("training.obs.level_losses", lambda _, sharp, levels, __: torch.full((len(sharp), 6), np.nan))
    with pytest.raises(UsdataError, match="error on image 'fake/000' is not finite"):
        search_cohort(FakeCohort(), run, cache=tmp_path / "nan")
    assert not (tmp_path / "nan").exists()


def test_the_verb_prints_the_histogram_and_its_table_joins_the_catalog(tmp_path, run, phantom_lake):
    out = tmp_path / "levels.parquet"
    words = ["obs", "--encoder", run, "--cohort", "organ = 'breast'", "--lake", phantom_lake.root, "-o", out]
    words = [*map(str, words), "--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    rows = phantom_lake.cohort("organ = 'breast'").rows
    assert "mean squared error" in done.stdout and "0.1" in done.stdout
    assert f"{rows} images: {rows} searched, 0 from the cache" in done.stderr
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (found["cached"], sum(found["histogram"].values()), found["path"]) == (rows, rows, str(out))
    joined = duckdb.connect().sql(done.stderr.split("In SQL:  ")[1].strip()).to_arrow_table()
    assert (joined.num_rows, set(joined["organ"].to_pylist())) == (rows, {"breast"})
    assert "t_star" in joined.column_names
    relative = CliRunner().invoke(app, [*words, "--criterion", "rel", "--step", "5", "--json"])
    assert list(json.loads(relative.stdout)["histogram"]) == ["1", "6", "11"]
    assert "relative to doing nothing" in CliRunner().invoke(app, [*words, "--criterion", "rel"]).stdout
    audit = CliRunner().invoke(app, [*words, "--mask-ratio", "0.75", "--masks", "2", "--json"])
    assert json.loads(audit.stdout)["computed"] == rows


def test_the_verb_warns_when_one_level_takes_nearly_all(tmp_path, run, phantom_lake, monkeypatch):
    monkeypatch.setattr("training.obs.level_losses", lambda _, sharp, levels, __: torch.ones(len(sharp), len(levels)))
    words = ["obs", "--encoder", run, "--cohort", "all", "--lake", phantom_lake.root, "--cache", tmp_path]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "Warning: 100.0% of the images share level 1 (sigma 0.1)" in done.stderr
    assert "--criterion rel" in done.stderr


@pytest.mark.parametrize("more", [("--criterion", "foo"), ("--mask-ratio", "1"), ("--mask-ratio", "-0.1")])
def test_options_out_of_range_are_wrong_usage_and_named(more):
    done = CliRunner().invoke(app, ["obs", "--encoder", "run", "--cohort", "all", *more])
    assert done.exit_code == 2
    assert more[0] in done.stderr and "--set" not in done.stderr


def test_models_that_cannot_deblur_are_refused_with_the_reason(tmp_path, run):
    train(tmp_path / "mae", variant="mae")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "encoder.safetensors").write_bytes((run / "encoder.safetensors").read_bytes())
    pretrain(FakeCohort(), resolve("tiny", "micro", sets=["steps=1"]), tmp_path / "tiny")
    for encoder, message in (
        (tmp_path / "mae", "trained without blur"),
        (tmp_path / "tiny", "recipe 'tiny', which does not deblur"),
        (tmp_path / "half", "half has no decoder"),
        (run / "encoder.safetensors", "has no decoder"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            search_cohort(FakeCohort(), encoder)
        assert "usdata pretrain d2mae" in caught.value.hint
    with pytest.raises(UsdataError, match="No weights in"):
        search_cohort(FakeCohort(), tmp_path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"settings": {"obs_criterion": "best"}}, "obs_criterion = 'best': Input should be 'abs' or 'rel'"),
        ({"settings": {"obs_masks": 3}}, "obs_masks is 3, but nothing is masked"),
        ({"settings": {"obs_mask_ratio": 0.99}}, "leaves none of 16 patches visible"),
        ({"batch_size": 0}, "1 or more"),
        ({"device": "tpu9"}, "device"),
        ({"out": "."}, "is a folder"),
        ({"out": "levels.csv"}, r"does not end in \.parquet.\n  Name it so:  -o levels\.parquet"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, run, how, message):
    with pytest.raises(ConfigError, match=message):
        search_cohort(FakeCohort(8), run, cache=tmp_path, **how)


def test_another_file_is_never_replaced_and_a_cache_must_be_a_folder(tmp_path, run):
    (tmp_path / "thesis.parquet").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        search_cohort(FakeCohort(), run, tmp_path / "thesis.parquet")
    with pytest.raises(LakeError, match=r"is a file[\s\S]*--cache DIR"):
        search_cohort(FakeCohort(), run, cache=tmp_path / "thesis.parquet")
    nothing = FakeCohort()
    nothing.rows = 0
    with pytest.raises(ConfigError, match="empty"):
        search_cohort(nothing, run)
    assert (tmp_path / "thesis.parquet").read_text() == "mine"


# ---- every way to tell the network the level

TOLD = [*itertools.product(("none", "add", "token"), ("keep", "drop"), ("sinusoid+vector", "sinusoid", "table"))]
QUICK = {("none", "keep", "sinusoid+vector"), ("add", "drop", "sinusoid"), ("token", "drop", "table")}


@pytest.mark.parametrize(
    ("embed", "decoder_blur", "variant"),
    [pytest.param(*told, marks=[] if told in QUICK else pytest.mark.recipes, id="-".join(told)) for told in TOLD],
)
@pytest.mark.filterwarnings(f"ignore::{OneLevelWarning.__module__}.OneLevelWarning")
def test_every_way_to_tell_the_level_trains_resumes_exports_and_is_searched(tmp_path, embed, decoder_blur, variant):
    sets = [f"embed={embed}", f"decoder_blur={decoder_blur}", f"embed_variant={variant}"]
    train(tmp_path, *sets, steps=2, max_hours=0)  # stops after the first step
    done = train(tmp_path, *sets, steps=2, resume=True)
    assert done.finished and np.isfinite(done.last["loss"])
    assert not any("level" in name for name in load_file(tmp_path / "encoder.safetensors"))  # which timm has loaded
    model, images = load_encoder(tmp_path), torch.from_numpy(FakeCohort(4).images())[:, None]
    assert search_cohort(FakeCohort(4), tmp_path, settings={"obs_step": 5}).rows == 4
    view, first, last = model.view(images), torch.ones(4, dtype=torch.int64), torch.full((4,), 11)
    with torch.inference_mode():
        told = not torch.allclose(model.predict(view, first), model.predict(view, last), atol=1e-6)
    assert told is (embed != "none")  # the same image, told another level
