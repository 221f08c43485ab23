import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fakes.duel_recipe import Duel
from fakes.training_fakes import FakeCohort
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from training import checkpoint, inference
from training import embed as embed_module
from training.checkpoint import load_encoder
from training.cli import app
from training.config import resolve
from training.distributed import choose_device
from training.embed import embed_cohort, read_facts
from training.inference import wrong_classes
from training.train import pretrain
from usdata.errors import ConfigError, LakeError, UsdataError
from usdata.files import file_xxh


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("embed") / "run"
    pretrain(FakeCohort(), resolve("duel", "micro"), out)
    return out


@pytest.fixture(scope="module")
def d2mae(tmp_path_factory, phantom_lake):
    out = tmp_path_factory.mktemp("embed") / "d2mae"
    sets = ["steps=2", "batch_size=8", "checkpoint_every=100"]
    pretrain(phantom_lake.cohort("all"), resolve("d2mae", "micro", sets=sets), out)
    return out


def features(path):
    return np.stack(pq.read_table(path)["embedding"].to_numpy())


def test_a_row_per_image_in_the_cohorts_order_with_the_encoders_features(tmp_path, run):
    cohort = FakeCohort()
    done = embed_cohort(cohort, run, tmp_path / "e.parquet", batch_size=7)
    table = pq.read_table(tmp_path / "e.parquet")
    assert table["sample_id"].to_pylist() == cohort.table(["sample_id"])["sample_id"].to_pylist()
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[8]"
    assert not table.schema.field("embedding").nullable
    with torch.inference_mode():
        expected = load_encoder(run).encode(torch.from_numpy(cohort.images())[:, None])
    np.testing.assert_allclose(features(tmp_path / "e.parquet"), expected, rtol=1e-5, atol=1e-6)
    assert (done.rows, done.features) == (40, 8)


def test_it_joins_the_catalog_in_sql(tmp_path, d2mae, phantom_lake):
    out = tmp_path / "e.parquet"
    cohort = phantom_lake.cohort("organ in ('breast', 'thyroid')")
    embed_cohort(cohort, d2mae, out)
    samples = phantom_lake.sql("select sample_id, organ from samples")  # as any client reads the catalog
    joined = duckdb.sql(
        f"select organ, count(*), avg(list_dot_product(embedding, embedding)) from '{out}' join samples "
        "using (sample_id) group by organ order by organ"
    ).fetchall()
    counts = phantom_lake.sql(
        "select organ, count(*) as n from samples where organ in ('breast', 'thyroid') group by organ order by organ"
    ).to_pylist()
    assert samples.num_rows == 80
    assert [(organ, n) for organ, n, _ in joined] == [(row["organ"], row["n"]) for row in counts]
    assert all(square > 0 for _, _, square in joined)


def test_the_file_says_which_weights_recipe_and_cohort_made_it(tmp_path, run):
    embed_cohort(FakeCohort(hash="beef"), run, tmp_path / "e.parquet")
    facts = read_facts(tmp_path / "e.parquet")
    assert facts["weights_xxh"] == file_xxh(run / "recipe.safetensors")
    assert (facts["recipe"], facts["cohort_hash"], facts["trained_on"]) == ("duel", "beef", "c0ffee")
    assert (facts["steps"], facts["features"], facts["condition"]) == ("8", 8, "null")
    assert facts["config_hash"] == resolve("duel", "micro").hash


def test_the_same_again_gives_the_same_bytes(tmp_path, run):
    for name in ("a.parquet", "b.parquet"):
        embed_cohort(FakeCohort(), run, tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    embed_cohort(FakeCohort(), run, tmp_path / "a.parquet")  # an earlier file of embeddings may be replaced
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_the_organ_is_told_only_when_asked_for(tmp_path, run):
    cohort, organ = FakeCohort(), load_encoder(run).organ.weight.detach().T.numpy()
    files = {name: tmp_path / f"{name}.parquet" for name in (None, "null", "label", "wrong")}
    for name, file in files.items():
        done = embed_cohort(cohort, run, file, condition=name)
        assert done.condition == read_facts(file)["condition"] == (name or "null")
    assert features(files[None]).tobytes() == features(files["null"]).tobytes()
    plain, turns = features(files["null"]), [0, 1] * 20  # the fake's organs take turns
    np.testing.assert_allclose(features(files["label"]) - plain, organ[turns], atol=1e-5)
    np.testing.assert_allclose(features(files["wrong"]) - plain, organ[turns[::-1]], atol=1e-5)
    assert read_facts(files["wrong"])["told_instead"] == {"breast": "thyroid", "thyroid": "breast"}


def test_conditions_that_the_weights_do_not_know_are_refused(tmp_path, run, d2mae):
    with pytest.raises(ConfigError, match=r"condition 'predict': they have no organ classifier.\n.*null \| label"):
        embed_cohort(FakeCohort(), run, tmp_path / "e.parquet", condition="predict")
    with pytest.raises(ConfigError, match="condition 'label': they see nothing but the pixels"):
        embed_cohort(FakeCohort(), d2mae, tmp_path / "e.parquet", condition="label")
    with pytest.raises(ConfigError, match=r"No condition 'lable'\. Did you mean 'label'"):
        embed_cohort(FakeCohort(), run, tmp_path / "e.parquet", condition="lable")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_organ_is_another_one_of_the_cohort_and_the_same_each_time():
    for seed in range(20):
        wrong = wrong_classes([-1, 3, 0, 7, 3], 16, seed)
        assert wrong == wrong_classes([7, 0, 3], 16, seed)
        assert sorted(wrong) == sorted(wrong.values()) == [0, 3, 7]
        assert all(right != false for right, false in wrong.items())
        alone = wrong_classes([5], 16, seed)
        assert alone[5] != 5 and 0 <= alone[5] < 16
    assert len({wrong_classes([5], 16, seed)[5] for seed in range(20)}) > 5
    with pytest.raises(ConfigError, match="one organ only"):
        wrong_classes([0], 1)


def test_arl_encodes_with_nothing_its_organ_its_guess_or_a_wrong_organ():
    arl = checkpoint.random_encoder("arl", "micro")
    with torch.no_grad():
        for name, value in arl.named_parameters():
            if ".acdt." in name or "anatomy" in name or "organ_head" in name:
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        images = torch.from_numpy(FakeCohort().images()[:2])[:, None]
        assert inference.offered(arl) == ("null", "label", "predict", "wrong")
        slots = inference.slots_of(arl, ["breast", "thyroid"])
        found = {one: inference.encode(arl, images, one, slots) for one in inference.offered(arl)}
        assert torch.equal(found["null"], arl.encode(images, mode="null"))
        assert torch.equal(found["label"], arl.encode(images, ["breast", "thyroid"]))
        assert torch.equal(found["predict"], arl.encode(images, mode="predict"))
    assert not torch.equal(found["null"], found["label"])
    assert not torch.equal(found["null"], found["predict"])
    plain = checkpoint.build(resolve("arl", "micro", sets=["acdt=false"]))
    assert inference.offered(plain) == ("null",)
    with pytest.raises(ConfigError, match="see nothing but the pixels"):
        inference.chosen(plain, "predict")


def test_row_groups_and_order_do_not_depend_on_the_batch_size(tmp_path, run, monkeypatch):
    monkeypatch.setattr(embed_module, "ROWS", 16)
    paths = [tmp_path / f"{size}.parquet" for size in (7, 16, 40)]
    for path, size in zip(paths, (7, 16, 40), strict=True):
        embed_cohort(FakeCohort(), run, path, batch_size=size)
    files = [pq.ParquetFile(path) for path in paths]
    for file in files:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [16, 16, 8]
        assert file.read()["sample_id"].equals(files[0].read()["sample_id"])
    rows = [features(path) for path in paths]
    for other in rows[1:]:
        np.testing.assert_allclose(other, rows[0], rtol=1e-5, atol=1e-5)


def test_no_more_than_a_row_group_and_a_batch_is_held(monkeypatch):
    monkeypatch.setattr(embed_module, "ROWS", 10)
    read = []

    def batches():
        for number in range(50):
            read.append(number)
            yield [f"{number}"] * 3, np.zeros((3, 4), np.float32)

    for number, (ids, found) in enumerate(embed_module._groups(batches())):
        assert len(ids) == len(found) == 10
        assert 3 * len(read) < 10 * (number + 1) + 3


@pytest.mark.recipes
def test_a_kill_half_way_leaves_the_earlier_file_and_the_next_run_clears_up(tmp_path, run):
    out = tmp_path / "e.parquet"
    embed_cohort(FakeCohort(), run, out)
    before = out.read_bytes()
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from fakes import duel_recipe
from fakes.training_fakes import FakeCohort
from training import embed
embed.ROWS = 8
class Killed(FakeCohort):
    def batches(self, batch_size, columns=()):
        for number, batch in enumerate(super().batches(batch_size, columns)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
embed.embed_cohort(Killed(), {str(run)!r}, {str(out)!r}, batch_size=8, condition="label")
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == -signal.SIGKILL
    assert out.read_bytes() == before
    embed_cohort(FakeCohort(), run, out)
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


def test_weights_that_do_not_fit_are_refused_by_key_and_nothing_is_written(tmp_path, run):
    broken = tmp_path / "run"
    broken.mkdir()
    facts, state = checkpoint.facts_of(run), load_file(run / "recipe.safetensors")
    del facts[checkpoint.DIGEST]
    state["encoder.weigth"] = state.pop("encoder.weight")
    save_file(state, broken / "recipe.safetensors", facts)
    with pytest.raises(ConfigError, match=r"missing encoder\.weight; unexpected encoder\.weigth"):
        embed_cohort(FakeCohort(), broken, tmp_path / "e.parquet")
    with pytest.raises(UsdataError, match="No weights in"):
        embed_cohort(FakeCohort(), tmp_path, tmp_path / "e.parquet")
    assert not (tmp_path / "e.parquet").exists()


def test_a_failure_half_way_leaves_what_stood_there(tmp_path, run, monkeypatch):
    out = tmp_path / "e.parquet"
    embed_cohort(FakeCohort(), run, out)
    before = out.read_bytes()

    class Torn(FakeCohort):
        def batches(self, batch_size, columns=()):
            for number, batch in enumerate(super().batches(batch_size, columns)):
                if number == 2:
                    raise LakeError("a shard is damaged")
                yield batch

    with pytest.raises(LakeError, match="damaged"):
        embed_cohort(Torn(), run, out, batch_size=8)
    monkeypatch.setattr(Duel, "encode", lambda self, images: torch.full((len(images), 8), float("nan")))
    with pytest.raises(UsdataError, match="not finite, the first 'fake/000'"):
        embed_cohort(FakeCohort(), run, out)
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["e.parquet"]


def test_a_file_beyond_the_limit_is_named_with_what_to_do(tmp_path, run):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = tmp_path / "e.parquet"
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(LakeError, match="would be larger than a file may be here") as caught:
            embed_cohort(FakeCohort(), run, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.message.startswith(str(out))
    assert "ulimit -f" in caught.value.hint and "with -o FILE" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_told_with_the_option_of_every_verb():
    with pytest.raises(ConfigError, match="not there") as caught:
        choose_device("cuda:99")
    assert "--device cpu" in caught.value.hint and "--set device=cpu" in caught.value.hint


def test_another_file_is_never_replaced(tmp_path, run):
    (tmp_path / "thesis.parquet").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        embed_cohort(FakeCohort(), run, tmp_path / "thesis.parquet")
    assert (tmp_path / "thesis.parquet").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a folder"):
        embed_cohort(FakeCohort(), run, tmp_path)
    with pytest.raises(ConfigError, match="1 or more"):
        embed_cohort(FakeCohort(), run, tmp_path / "e.parquet", batch_size=0)
    with pytest.raises(ConfigError, match=r"does not end in \.parquet.\n  Name it so:  -o .*table\.parquet"):
        embed_cohort(FakeCohort(), run, tmp_path / "table.csv")
    nothing = FakeCohort()
    nothing.rows = 0
    with pytest.raises(ConfigError, match=r"empty.*\n.*usdata catalog$"):
        embed_cohort(nothing, run, tmp_path / "e.parquet")
    nothing.lake = SimpleNamespace(address=str(Path("lake").absolute()))  # the verbs' default
    with pytest.raises(ConfigError, match=r"usdata catalog$"):
        embed_cohort(nothing, run, tmp_path / "e.parquet")
    nothing.lake = SimpleNamespace(address="/data/my lake")
    with pytest.raises(ConfigError, match="usdata catalog --lake '/data/my lake'"):
        embed_cohort(nothing, run, tmp_path / "e.parquet")


def test_the_verb_says_what_it_wrote(tmp_path, d2mae, phantom_lake):
    out = tmp_path / "e.parquet"
    words = ["embed", "--encoder", d2mae, "--cohort", "organ = 'breast'", "--lake", phantom_lake.root, "-o", out]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert re.search(r"with condition null \([\d,]+ images/s\)", done.stderr)
    printed = done.stderr.split("In SQL:  ")[1].strip()
    joined = duckdb.sql(printed).to_arrow_table()
    assert set(joined["organ"].to_pylist()) == {"breast"}
    assert joined.num_rows == phantom_lake.cohort("organ = 'breast'").rows
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    found = json.loads(done.stdout)
    assert (found["features"], found["path"]) == (64, str(out))
    assert found["rows"] == phantom_lake.cohort("organ = 'breast'").rows
