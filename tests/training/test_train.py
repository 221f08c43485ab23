import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.training_fakes import FakeCohort
from PIL import Image

from training import watch
from training.checkpoint import load_state
from training.config import resolve
from training.data import Feed, generator, stable_seed
from training.pictures import grid
from training.runlog import read
from training.train import pretrain
from training.watch import draw_evenly, image_groups, label_column
from usdata.errors import ConfigError, LakeError, UsdataError


def weights(out):
    return load_state(out / "checkpoint" / "last.pt")["model"]


def run(out, *sets, cohort=None, **how):
    return pretrain(cohort or FakeCohort(), resolve("tiny", "micro", sets=sets), out, **how)


def _kill_at(step, number):
    """Sends this process a signal when `step` is logged."""

    def progress(record):
        if record["kind"] == "step" and record["step"] == step:
            os.kill(os.getpid(), number)

    return progress


# --- the loop


def test_a_run_leaves_config_log_state_and_weights(tmp_path):
    result = run(tmp_path / "run")
    assert result.finished
    assert (result.step, result.stopped) == (12, "")
    files = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    expected = {
        "config.json",
        "log.jsonl",
        "checkpoint/last.pt",
        "encoder.safetensors",
        "recipe.safetensors",
        "README.md",
    }
    assert files == expected
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["config_hash"] == resolve("tiny", "micro").hash
    assert (config["cohort_hash"], config["rows"]) == ("c0ffee", 40)


def test_every_step_is_logged_once_with_every_raw_term(tmp_path):
    run(tmp_path, "log_every=5")  # 12 steps: the last two are no full stretch
    steps = read(tmp_path / "log.jsonl", "step")
    assert [record["step"] for record in steps] == list(range(1, 13))
    expected = {"kind", "step", "epoch", "lr", "grad_norm", "loss", "mse", "bias", "images_per_s", "data_wait"}
    assert set(steps[0]) == expected
    assert steps[0]["lr"] == 0.0
    assert steps[3]["lr"] == pytest.approx(1e-2)  # a quarter of 12 steps is the warm-up
    assert steps[0]["loss"] == pytest.approx(steps[0]["mse"] + 0.1 * steps[0]["bias"], rel=1e-4)
    assert [record["epoch"] for record in steps] == [0] * 5 + [1] * 5 + [2] * 2  # 40 images, batches of 8
    assert all(0 <= record["data_wait"] <= 1 and record["images_per_s"] > 0 for record in steps)


def test_the_loss_falls(tmp_path):
    run(tmp_path, "steps=150", "checkpoint_every=1000", "log_every=50")
    losses = [record["loss"] for record in read(tmp_path / "log.jsonl", "step")]
    assert losses[-1] < 0.3 * losses[0]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, f"seed={seed}")
    a, b, c = (weights(tmp_path / name)["encoder.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_training_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    run(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("pieces", [2, 8])
def test_accumulating_pieces_equals_one_large_batch(tmp_path, pieces):
    run(tmp_path / "whole", "steps=5")
    run(tmp_path / "pieces", "steps=5", f"accumulate={pieces}")
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "pieces")[name], value, rtol=1e-5, atol=1e-6)
    whole, cut = (read(tmp_path / n / "log.jsonl", "step") for n in ("whole", "pieces"))
    assert [r["mse"] for r in cut] == pytest.approx([r["mse"] for r in whole], rel=1e-4)


def test_gradients_are_clipped_to_the_norm_given_and_logged_as_they_were(tmp_path):
    run(tmp_path / "free", "steps=2", "warmup=0")
    run(tmp_path / "clipped", "steps=2", "warmup=0", "clip_grad=1e-12")
    norms = [read(tmp_path / n / "log.jsonl", "step")[0]["grad_norm"] for n in ("free", "clipped")]
    assert norms[0] == norms[1] > 1e-3
    first = weights(tmp_path / "free")["encoder.weight"] - weights(tmp_path / "clipped")["encoder.weight"]
    assert first.abs().max() > 1e-4


def test_bf16_autocast_trains_close_to_fp32(tmp_path):
    run(tmp_path / "a", "steps=4")
    run(tmp_path / "b", "steps=4", "precision=bf16")
    a, b = (read(tmp_path / n / "log.jsonl", "step") for n in "ab")
    assert [r["mse"] for r in a] != [r["mse"] for r in b]
    assert [r["mse"] for r in b] == pytest.approx([r["mse"] for r in a], rel=0.05)
    assert weights(tmp_path / "b")["encoder.weight"].dtype == torch.float32


def d2mae(out, *sets, cohort):
    return pretrain(cohort, resolve("d2mae", "micro", sets=["checkpoint_every=1000", "batch_size=8", *sets]), out)


def test_d2mae_in_pieces_equals_one_large_batch(tmp_path):
    for name, pieces in (("whole", 1), ("pieces", 4)):
        d2mae(tmp_path / name, "steps=3", f"accumulate={pieces}", cohort=FakeCohort())
    whole, cut = (read(tmp_path / n / "log.jsonl", "step") for n in ("whole", "pieces"))
    for term in ("loss", "mse_masked", "mse_visible", "grad_norm"):
        assert [r[term] for r in cut] == pytest.approx([r[term] for r in whole], rel=1e-3)


def test_the_loss_of_d2mae_falls_on_eight_images(tmp_path):
    d2mae(tmp_path, "steps=80", "warmup=0.1", cohort=FakeCohort(8))
    losses = [record["loss"] for record in read(tmp_path / "log.jsonl", "step")]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])


# --- stopping


def test_max_hours_stops_after_a_step_with_a_checkpoint(tmp_path):
    result = run(tmp_path, max_hours=0)
    assert (result.step, result.stopped, result.finished) == (1, "max-hours", False)
    assert load_state(tmp_path / "checkpoint" / "last.pt")["step"] == 1


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path, number, name):
    before = signal.getsignal(number)

    result = run(tmp_path, progress=_kill_at(4, number))
    assert (result.step, result.stopped) == (4, name)
    assert load_state(tmp_path / "checkpoint" / "last.pt")["step"] == 4
    assert signal.getsignal(number) is before


def test_a_run_in_a_thread_works_without_signals(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert results[0].finished


@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_a_loss_that_is_not_finite_names_step_and_term_and_leaves_the_weights_before(tmp_path, log_every):
    with pytest.raises(UsdataError, match=r"Step 6: mse is nan.") as caught:
        run(tmp_path / "bad", "poison_at=6", f"log_every={log_every}", "checkpoint_every=100")
    assert "lower" in caught.value.hint
    state = load_state(tmp_path / "bad" / "checkpoint" / "last.pt")
    assert state["step"] == 5
    healthy = run(tmp_path / "good", "checkpoint_every=100", "log_every=1", progress=_kill_at(5, signal.SIGTERM))
    assert healthy.step == 5
    for name, value in weights(tmp_path / "good").items():
        assert torch.equal(state["model"][name], value)
    assert [r["step"] for r in read(tmp_path / "bad" / "log.jsonl", "step")] == [1, 2, 3, 4, 5]
    assert state["data"] == load_state(tmp_path / "good" / "checkpoint" / "last.pt")["data"]


# --- two processes


def test_two_gloo_processes_equal_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\n"
        "from fakes.training_fakes import FakeCohort\n"
        "from training.config import resolve\n"
        "from training.train import pretrain\n"
        "if __name__ == '__main__':\n"
        "    sets = ['steps=5', 'accumulate=2', 'clip_grad=0.05']\n"
        "    pretrain(FakeCohort(), resolve('tiny', 'micro', sets=sets), sys.argv[1])\n"
    )
    run(tmp_path / "one", "steps=5", "clip_grad=0.05")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, tmp_path / "two"],
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-5, atol=1e-6)
    one, two = (read(tmp_path / n / "log.jsonl", "step") for n in ("one", "two"))
    assert [r["step"] for r in two] == [1, 2, 3, 4, 5]  # one rank writes
    assert [r["mse"] for r in two] == pytest.approx([r["mse"] for r in one], rel=1e-4)
    assert [r["grad_norm"] for r in two] == pytest.approx([r["grad_norm"] for r in one], rel=1e-4)


# --- bad input


def test_too_few_images_for_a_batch_are_refused_with_a_batch_that_fits(tmp_path):
    with pytest.raises(ConfigError, match="5 images are too few for a batch of 8") as caught:
        run(tmp_path / "run", cohort=FakeCohort(5))
    assert "batch_size=5" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_directory_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="already holds files") as caught:
        run(tmp_path)
    assert "--resume" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_finished_run_is_not_overwritten(tmp_path):
    run(tmp_path)
    with pytest.raises(ConfigError, match="already holds a run's checkpoint"):
        run(tmp_path)


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeError, match="Can't write"):
        run(tmp_path / "file" / "run")


def test_an_unknown_device_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Unknown device 'gpu9'"):
        run(tmp_path / "a", "device=gpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees 0 GPUs"):
            run(tmp_path / "b", "device=cuda")


def test_a_loader_without_batches_is_refused():
    class Empty:
        epoch = 0

        def __iter__(self):
            return iter(())

    with pytest.raises(ConfigError, match="no full batch"):
        Feed(Empty(), 4).next()


# --- seeds


def test_seeds_are_stable_and_purposes_apart():
    assert stable_seed("draw", 0, 1) == 354163005025824734  # must never change: resumed runs rely on it
    assert len({stable_seed("draw", s, t) for s in range(20) for t in range(20)}) == 400
    assert stable_seed("draw", 1, 11) != stable_seed("draw", 11, 1)
    assert torch.equal(torch.rand(3, generator=generator("a", 1)), torch.rand(3, generator=generator("a", 1)))


# --- probe and pictures while training


@pytest.fixture
def _memory_images(monkeypatch):
    monkeypatch.setattr(watch, "read_images", lambda cohort, places: cohort.images()[places])


@pytest.mark.usefixtures("_memory_images")
def test_the_probe_sees_before_during_and_after_and_changes_nothing(tmp_path):
    run(tmp_path / "plain")
    result = run(tmp_path / "probed", "probe_every=5", "pictures_every=10")
    probes = read(tmp_path / "probed" / "log.jsonl", "probe")
    assert [p["step"] for p in probes] == [0, 5, 10, 12]
    assert all(p["label"] == "organ" and p["majority"] == 0.5 and p["effective_rank"] >= 1 for p in probes)
    assert probes[-1]["knn_accuracy"] > 0.9  # one organ is dark, the other bright
    assert result.probe["step"] == 12
    for name, value in weights(tmp_path / "plain").items():
        assert torch.equal(weights(tmp_path / "probed")[name], value)


@pytest.mark.usefixtures("_memory_images")
@pytest.mark.parametrize(("limit", "collapsed"), [(1000, True), (1.0, False)])
def test_a_probe_says_when_the_features_use_too_few_directions(tmp_path, limit, collapsed):
    probe = run(tmp_path, "probe_every=12", f"collapse_below={limit}").probe
    assert (probe["collapsed"], probe["features"]) == (collapsed, 8)


@pytest.mark.usefixtures("_memory_images")
def test_pictures_show_a_row_per_image_and_a_column_per_stage(tmp_path):
    run(tmp_path, "pictures_every=6", "picture_images=3")
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [
        f"step-0000{n}.png" for n in ("00", "06", "12")
    ]
    picture = np.asarray(Image.open(tmp_path / "pictures" / "step-000012.png"))
    assert picture.shape == (14 + 3 * 114, 3 * 114 - 2)  # 16 pixels enlarged sevenfold, gaps of 2, a strip of 14
    assert picture[:14].min() < 100  # captions


def test_a_grid_keeps_the_pixels():
    stages = {"a": torch.zeros(1, 1, 112, 112), "b": torch.full((1, 1, 112, 112), 2.0)}
    page = grid(stages)
    assert (page[14:-2, :112] == 0).all()
    assert (page[14:-2, 114:] == 255).all()  # clipped to white
    with pytest.raises(ValueError, match="same number"):
        grid({"a": torch.zeros(1, 1, 8, 8), "b": torch.zeros(2, 1, 8, 8)})


def test_images_are_drawn_evenly_over_labels_and_never_without_one():
    labels = ["a"] * 90 + ["b"] * 10 + [None] * 50
    chosen = draw_evenly(labels, 20, seed=0)
    assert [labels[i] for i in chosen].count("b") == 10
    assert len(chosen) == 20
    assert (chosen < 100).all()
    assert len(draw_evenly(labels, 1000, seed=0)) == 100


def test_patients_group_images_and_strangers_group_by_likeness():
    images = np.random.default_rng(0).integers(0, 255, (5, 64, 64)).astype(np.uint8)
    images[4] = images[3]
    groups = image_groups({"patient": ["p", "p", "q", None, None]}, images)
    assert groups[0] == groups[1] != groups[2]
    assert groups[3] == groups[4] not in groups[:3]


def test_a_near_duplicate_ties_two_patients_into_one_group():
    images = np.random.default_rng(0).integers(0, 255, (4, 64, 64)).astype(np.uint8)
    images[2] = images[1]
    groups = image_groups({"patient": ["p", "p", "q", "r"]}, images)
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_a_clip_or_study_groups_images_without_a_patient_and_a_text_is_a_key_of_its_own_column():
    images = np.random.default_rng(0).integers(0, 255, (6, 64, 64)).astype(np.uint8)
    keys = {"patient": [None, None, None, "p", "q", "c"], "clip": ["c", "c", "d", "d", None, None]}
    groups = image_groups(keys, images)
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert len({groups[0], groups[2], groups[4], groups[5]}) == 4


def test_the_probe_tells_organs_apart_and_else_labels():
    cohort = FakeCohort()
    assert label_column(cohort, None) == "organ"
    assert label_column(cohort, "label") == "label"
    cohort.organ = ["breast"] * 40
    assert label_column(cohort, None) == "label"
    with pytest.raises(ConfigError, match="'organ' has 1 values"):
        label_column(cohort, "organ")
