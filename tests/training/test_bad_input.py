"""What goes wrong at the command line: each ends with exit code 1 or 2, what happened, and what to type next."""

import errno
import json
import re
import shutil
import signal
import sys

import pytest
import torch
from fakes.training_fakes import FakeCohort, Tiny
from safetensors.torch import load_file, save_file

from training import checkpoint, train
from training.cli import app
from training.config import resolve
from training.distributed import World
from training.organ_condition import organ_slot
from training.runlog import read
from training.start import check_sizes
from usdata import lake
from usdata.cli import run_app
from usdata.errors import ConfigError

QUICK = ("batch_size=4", "steps=2", "checkpoint_every=100")


class Anatomy(FakeCohort):
    """Images of the organs named, in turns."""

    def __init__(self, *organs):
        super().__init__()
        self.organ = [organs[i % len(organs)] for i in range(self.rows)]


@pytest.fixture
def cohort(monkeypatch):
    """What --cohort finds; a test may put another one in."""
    found = {"cohort": FakeCohort()}

    class FakeLake:
        def __init__(self, root):
            self.root = root

        def cohort(self, expression):
            return found["cohort"]

    monkeypatch.setattr(lake, "Lake", FakeLake)
    return found


@pytest.fixture
def usdata(cohort, monkeypatch, capsys):
    """Run a command as a shell would: exit code and what stood on stderr, on one line."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["usdata", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            run_app(app)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return end.value.code, re.sub(r"\s+", " ", said)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def pretrain(usdata, tmp_path):
    def run(recipe, *sets, out="run", more=()):
        settings = [word for text in sets for word in ("--set", text)]
        return usdata("pretrain", recipe, "--cohort", "all", "--out", tmp_path / out, *settings, *more)

    return run


# ---- settings


@pytest.mark.parametrize(
    ("recipe", "setting", "told"),
    [
        ("d2mae", "image_size=65", "recipe d2mae config is wrong: image_size 65 is not a multiple of patch_size 8"),
        ("usfm", "image_size=72", "recipe usfm config is wrong: block_size 16 must .* divide image_size 72"),
        ("usfm", "image_size=65", "recipe usfm config is wrong: image_size = 65: .* multiple of 2, e.g. 64"),
        ("tusa", "image_size=80", "recipe tusa config is wrong: image_size = 80: .* multiple of 32, e.g. 64"),
        ("arl", "image_size=65", "recipe arl config is wrong: image_size 65 is not a multiple of patch_size 8"),
        ("tusa", "textures=1", "textures is 1: a single texture has share 1 in every pixel"),
        ("d2mae", "sigmas=[]", r"sigmas must be one or more, positive and rising, not \[\]"),
        ("d2mae", "sigmas=[0.5, 0.1]", r"sigmas must be one or more, positive and rising, not \[0.5, 0.1\]"),
        ("d2mae", "sigmas=0.5", "sigmas = 0.5: Input should be a valid tuple"),
        ("d2mae", "mask_ration=0.5", "No key 'mask_ration' in the run or in recipe 'd2mae'. Did you mean 'mask_ratio'"),
        ("tusa", "weights.ssm=1", "no key 'weights.ssm'. Did you mean 'ssim'"),
        ("usfm", "batch_size=many", "batch_size = 'many': Input should be a valid integer"),
        ("usfm", "betas=3", "betas = 3: Input should be a valid tuple"),
        ("usfm", "accumulate=3", "batch_size 32 is not a multiple of accumulate 3, but 30 is"),
        ("arl", "missing=drop", "missing = 'drop': Input should be 'null' or 'other'"),
    ],
)
def test_a_wrong_setting_names_recipe_and_key_and_what_to_change(pretrain, tmp_path, recipe, setting, told):
    code, said = pretrain(recipe, setting)
    assert code == 1
    assert re.search(told, said), said
    assert "Keys: " in said or "--set KEY=VALUE" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"steps: [1\nseed: 2\n", r"run.yaml is not YAML \(line 2: expected ',' or '\]'"),
        (b"\xff\xfe\x00", "run.yaml is no text in UTF-8"),
        (b"- steps\n", "run.yaml holds no mapping of keys to values. Write lines such as: steps: 1000"),
        (b"steps: many\nmask_ratio: [1]\n", r"mask_ratio = \[1\]: Input should be a valid number"),
        (b"recipe: usfm\n", "run.yaml is for recipe 'usfm', not 'd2mae'"),
        (b"preset: [1]\n", r"Recipe 'd2mae' has no preset \[1\]. Presets: micro, small, paper"),
        (b"variant: mea\n", r"no variant 'mea'\. Did you mean 'mae'\? Variants: d2mae, deblurrmae, mae"),
    ],
)
def test_a_wrong_config_file_is_named_with_what_is_wrong_in_it(pretrain, tmp_path, content, told):
    (tmp_path / "run.yaml").write_bytes(content)
    code, said = pretrain("d2mae", more=("--config", tmp_path / "run.yaml"))
    assert code == 1
    assert re.search(told, said), said


def test_unknown_names_are_refused_with_the_nearest_and_the_list(pretrain, usdata, tmp_path):
    for recipe, more, told in (
        ("d2mea", (), "No recipe named 'd2mea'. Did you mean 'd2mae'? Recipes: arl, d2mae"),
        ("d2mae", ("--preset", "mikro"), "no preset 'mikro'. Did you mean 'micro'? Presets: micro, small, paper"),
        ("usfm", ("--variant", "woG"), "no variant 'woG'. Did you mean 'woS' or 'woF'? Variants: usfm, woS"),
        ("d2mae", ("--config", tmp_path / "none.yaml"), "none.yaml: No such file or directory"),
    ):
        code, said = pretrain(recipe, more=more)
        assert code == 1
        assert told in said
    assert pretrain("d2mae", more=("--max-hours", "-1"))[0] == 2
    code, said = usdata("pretrain", "d2mae", "--out", "x")
    assert code == 2
    assert "Missing option '--cohort'" in said


def test_a_single_blur_level_is_legal_and_can_even_be_searched(pretrain, usdata, tmp_path):
    sets = (*QUICK, "sigmas=[0.5]", "image_size=32", "encoder_depth=1", "decoder_depth=1")
    assert pretrain("d2mae", *sets)[0] in (0, None)  # its token is constant, which is no harm
    code, said = usdata("obs", "--encoder", tmp_path / "run", "--cohort", "all")
    assert code in (0, None)
    assert "The model knows one level only" in said


# ---- images


@pytest.mark.parametrize(
    ("organs", "sets", "told"),
    [
        (("brest", "thyroid"), (), r"No organ named 'brest'\. Did you mean 'breast'\? .*--set unknown_name=null"),
        (("brest", "thyroid"), ("unknown_name=null",), ""),  # YAML's nothing is the word null here
        ((None, "phantom"), ("missing=null",), ""),
        ((None, "phantom"), ("missing=other",), ""),
    ],
)
def test_an_unknown_organ_is_an_error_or_no_class_as_arl_is_told(pretrain, cohort, organs, sets, told):
    cohort["cohort"] = Anatomy(*organs)
    small = ("width=32", "depth=1", "heads=2", "adv=false", "sd=false")
    code, said = pretrain("arl", *QUICK, *small, *sets)
    assert (code == 1) is bool(told), said
    assert re.search(told, said), said


def test_a_cohort_below_the_batch_is_told_a_batch_that_fits_whatever_it_is_cut_into(pretrain, cohort, tmp_path):
    code, said = pretrain("d2mae", "batch_size=64", "accumulate=16")
    assert code == 1
    assert "40 images are too few for a batch of 64. Lower the batch: --set batch_size=32 " in said
    cohort["cohort"].rows = 0
    assert "The cohort is empty: there is nothing to train on. What there is: usdata catalog" in pretrain("d2mae")[1]
    assert not (tmp_path / "run").exists()


def test_a_batch_that_ranks_cannot_share_is_told_one_that_they_can():
    three = World(rank=1, size=3, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="A batch of 8 does not divide among 3 ranks and 1 micro-batches") as caught:
        check_sizes(FakeCohort(), resolve("tiny", sets=["batch_size=8"]), three)
    assert caught.value.hint == "Take a multiple of 3:  --set batch_size=6"


def test_perceptual_weights_that_are_not_there_are_never_replaced(pretrain):
    for more, told in (((), "lpips.weights is not set"), (("lpips.weights=/no.pth",), "there is no file /no.pth")):
        code, said = pretrain("tusa", *QUICK, "lpips.kind=radimagenet", *more)
        assert code == 1
        assert told in said
        assert "--set lpips.weights=PATH" in said
        assert "=none (no perceptual term)" in said


# ---- weights and folders


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs: recipe -> folder. Tests only read them."""
    home = tmp_path_factory.mktemp("runs")
    small = {"d2mae": ["image_size=32", "encoder_depth=1", "decoder_depth=1"], "tiny": [], "arl": ["depth=1"]}
    small["arl"] += ["width=32", "heads=2", "adv=false", "sd=false"]
    for recipe, sets in small.items():
        train.pretrain(FakeCohort(), resolve(recipe, sets=[*QUICK, *sets]), home / recipe)
    return home


def relabelled(runs, tmp_path, run, **facts):
    """The weights of a run under other facts, as older files without a digest could be."""
    out = tmp_path / "relabelled"
    shutil.copytree(runs / run, out)
    said = checkpoint.facts_of(runs / run) | facts
    said.pop(checkpoint.DIGEST, None)
    save_file(load_file(out / "recipe.safetensors"), out / "recipe.safetensors", said)
    return out


def test_weights_of_another_recipe_or_class_list_are_refused_wherever_they_are_used(usdata, runs, tmp_path):
    tiny = checkpoint.facts_of(runs / "tiny")
    other = relabelled(runs, tmp_path / "a", "d2mae", recipe="tiny", recipe_config=tiny["recipe_config"])
    arl = json.loads(checkpoint.facts_of(runs / "arl")["recipe_config"])
    arl["classes"][:2] = arl["classes"][1::-1]
    swapped = relabelled(runs, tmp_path / "b", "arl", recipe_config=json.dumps(arl))
    for verb in (["downstream", "probe"], ["embed", "-o", tmp_path / "e.parquet"]):
        code, said = usdata(*verb, "--encoder", other, "--cohort", "all")
        assert code == 1
        assert "do not fit their recipe: " in said and "missing encoder.weight" in said and "one whole --out" in said
        code, said = usdata(*verb, "--encoder", swapped, "--cohort", "all")
        assert code == 1
        assert "breast" in said and "thyroid" in said and "recipe.safetensors" in said
    assert not (tmp_path / "e.parquet").exists()


@pytest.mark.parametrize(
    ("recipe", "sets", "more", "told"),
    [
        ("tiny", (), (), r"recipe was 'd2mae', now 'tiny'\. Repeat the first command with --resume"),
        ("d2mae", (), ("--variant", "mae"), "'blur': 'levels'.*now {'blur': 'none'.*variant was None, now 'mae'"),
        ("d2mae", ("seed=1",), (), "seed was 0, now 1"),
        ("arl", ("classes=[breast, thyroid]",), (), r"'classes'.*now {'classes': \['breast', 'thyroid'\]}"),
    ],
)
def test_another_recipe_variant_config_or_class_list_does_not_go_on_a_run(
    pretrain, runs, tmp_path, recipe, sets, more, told
):
    where = "arl" if recipe == "arl" else "d2mae"
    shutil.copytree(runs / where, tmp_path / "run")
    own = {"d2mae": ("image_size=32", "encoder_depth=1", "decoder_depth=1"), "tiny": ()}
    own["arl"] = ("depth=1", "width=32", "heads=2", "adv=false", "sd=false")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    code, said = pretrain(recipe, *QUICK, *own[recipe], *sets, more=("--resume", *more))
    assert code == 1
    assert re.search(told, said), said
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_folder_without_weights_says_how_to_make_some(usdata, runs, tmp_path):
    shutil.copy(runs / "tiny" / "config.json", tmp_path)
    for verb in (["downstream", "probe"], ["embed", "-o", tmp_path / "e.parquet"], ["obs"]):
        code, said = usdata(*verb, "--encoder", tmp_path, "--cohort", "all")
        assert code == 1
        assert f"No weights in {tmp_path} (there is no recipe.safetensors). Make some: usdata pretrain" in said


def test_an_out_that_is_in_use_or_cannot_be_written_says_what_to_choose(pretrain, runs, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert pretrain("tiny", out="file")[1].endswith("is a file, not a folder. Name a new folder: --out DIR ")
    code, said = pretrain("tiny", out="file/below")
    assert code == 1
    assert "Can't write to" in said and "choose another place with --out DIR" in said
    shutil.copytree(runs / "tiny", tmp_path / "run")
    assert "already holds a run's checkpoint. Go on with that run: --resume" in pretrain("tiny")[1]

    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "new"))

    monkeypatch.setattr("training.start.write_json", denied)  # root may write everywhere
    code, said = pretrain("tiny", out="new")
    assert code == 1
    assert "Permission denied" in said and "with --out DIR" in said


# ---- while it trains


def test_a_full_disk_while_saving_leaves_the_checkpoint_before_and_the_run_goes_on_from_it(
    pretrain, tmp_path, monkeypatch
):
    real, saved = torch.save, []

    def full(*words, **how):
        if saved:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(real(*words, **how))

    sets = ("steps=4", "checkpoint_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        code, said = pretrain("tiny", *sets)
    assert code == 1
    assert "No space left on the disk of" in said and "with --resume it goes on from the last checkpoint" in said
    assert checkpoint.load_state(tmp_path / "run" / "checkpoint" / "last.pt")["step"] == 2
    assert pretrain("tiny", *sets, more=("--resume",))[0] in (0, None)


@pytest.mark.parametrize("words", ["[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"])
def test_too_little_memory_says_what_to_lower(pretrain, monkeypatch, words):
    def large(*_):
        raise RuntimeError(words)

    monkeypatch.setattr(Tiny, "step", large)
    code, said = pretrain("tiny")
    assert code == 1
    assert "too little memory for 8 images at a time" in said and "--set accumulate=2" in said


def test_a_nan_names_step_and_term_and_its_run_goes_on_with_a_lower_rate(pretrain, tmp_path, monkeypatch):
    real, seen = Tiny.step, []

    def poisoned(self, images, draws):
        terms = real(self, images, draws)
        seen.append(1)
        return {**terms, "loss": terms["loss"] * float("nan")} if len(seen) == 3 else terms

    with monkeypatch.context() as patch:
        patch.setattr(Tiny, "step", poisoned)
        code, said = pretrain("tiny", "log_every=1")
    out = tmp_path / "run"
    assert code == 1
    assert "Step 3: loss is nan." in said and "--resume --set lr=0.001" in said and "weights of step 2" in said
    assert checkpoint.load_state(out / "checkpoint" / "last.pt")["step"] == 2
    assert "seed was 0, now 1" in pretrain("tiny", "log_every=1", "seed=1", more=("--resume",))[1]  # not everything may
    assert pretrain("tiny", "log_every=1", "lr=0.001", more=("--resume", "--max-hours", "0"))[0] in (0, None)
    assert "lr was 0.001, now 0.01" in pretrain("tiny", "log_every=1", more=("--resume",))[1]  # the cure stays
    assert pretrain("tiny", "log_every=1", "lr=0.001", more=("--resume",))[0] in (0, None)
    assert [record["step"] for record in read(out / "log.jsonl", "step")] == list(range(1, 13))
    changed = json.loads((out / "config.json").read_text())["changed"]
    assert changed == [{"after_step": 2, "what": ["lr was 0.01, now 0.001"]}]


def test_a_run_that_diverges_still_leaves_its_last_weights(pretrain, tmp_path):
    """The features of such weights may be NaN, which must not stop the guard from saving them."""
    sets = (*QUICK, "steps=6", "lr=1e30", "warmup=0", "image_size=32", "encoder_depth=1", "decoder_depth=1")
    code, said = pretrain("d2mae", *sets)
    assert code == 1
    assert re.search(r"Step \d: .*is (nan|inf)", said), said
    assert (tmp_path / "run" / "checkpoint" / "last.pt").is_file()


def test_fixed_blur_of_no_level_is_refused_before_the_training() -> None:
    with pytest.raises(ConfigError, match=r"fixed_sigma 0.55 is the sigma of no blur level"):
        resolve("d2mae", "micro", sets=["finetune_blur=fixed", "fixed_sigma=0.55"])
    deblurr = checkpoint.build(resolve("d2mae", "micro", variant="deblurrmae", sets=["static_sigma=0.8"]))
    assert deblurr.level_of(deblurr.cfg.finetune_sigma) == 1


def test_an_organ_without_a_class_in_this_run_is_not_called_unknown() -> None:
    with pytest.raises(ConfigError, match="Organ 'fetal_head' belongs to none of the classes"):
        organ_slot("fetal_head", ("breast",), "null", "error")
