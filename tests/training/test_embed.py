import json

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fakes.duel_recipe import Duel
from fakes.training_fakes import FakeCohort
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from training import checkpoint
from training.checkpoint import load_encoder
from training.cli import app
from training.config import resolve
from training.embed import embed_cohort, read_facts
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
    assert str(table.schema.field("embedding").type) == "list<element: float>"
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
    assert (facts["steps"], facts["features"], facts["columns"]) == ("8", 8, [])
    assert facts["config_hash"] == resolve("duel", "micro").hash


def test_the_same_again_gives_the_same_bytes(tmp_path, run):
    for name in ("a", "b"):
        embed_cohort(FakeCohort(), run, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    embed_cohort(FakeCohort(), run, tmp_path / "a")  # an earlier file of embeddings may be replaced
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_columns_are_given_only_when_asked_for(tmp_path, run):
    cohort = FakeCohort()
    embed_cohort(cohort, run, tmp_path / "without")
    embed_cohort(cohort, run, tmp_path / "with", use_columns=True)
    assert read_facts(tmp_path / "with")["columns"] == ["organ"]
    shift = features(tmp_path / "with") - features(tmp_path / "without")
    expected = load_encoder(run).organ.weight.detach().T.numpy()[[0, 1] * 20]  # the fake's organs take turns
    np.testing.assert_allclose(shift, expected, atol=1e-5)


def test_weights_that_do_not_fit_are_refused_by_key_and_nothing_is_written(tmp_path, run):
    broken = tmp_path / "run"
    broken.mkdir()
    facts, state = checkpoint.facts_of(run), load_file(run / "recipe.safetensors")
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


def test_another_file_is_never_replaced(tmp_path, run):
    (tmp_path / "thesis.parquet").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        embed_cohort(FakeCohort(), run, tmp_path / "thesis.parquet")
    assert (tmp_path / "thesis.parquet").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a folder"):
        embed_cohort(FakeCohort(), run, tmp_path)
    with pytest.raises(ConfigError, match="1 or more"):
        embed_cohort(FakeCohort(), run, tmp_path / "e", batch_size=0)
    nothing = FakeCohort()
    nothing.rows = 0
    with pytest.raises(ConfigError, match="empty"):
        embed_cohort(nothing, run, tmp_path / "e")


def test_the_verb_says_what_it_wrote(tmp_path, d2mae, phantom_lake):
    out = tmp_path / "e.parquet"
    words = ["embed", "--encoder", d2mae, "--cohort", "organ = 'breast'", "--lake", phantom_lake.root, "-o", out]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "join samples using (sample_id)" in done.stderr
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    found = json.loads(done.stdout)
    assert (found["features"], found["path"]) == (64, str(out))
    assert found["rows"] == phantom_lake.cohort("organ = 'breast'").rows
