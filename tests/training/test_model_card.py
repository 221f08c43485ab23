import json
import re

import pytest
import torch
import yaml
from fakes.training_fakes import FakeCohort
from PIL import Image
from typer.testing import CliRunner

from training import checkpoint, start
from training.cli import app
from training.config import resolve
from training.model_card import card, hub_licence, refresh, strictest
from training.train import pretrain
from usdata.errors import UsdataError
from usdata.files import write_json
from usdata.rights import Rights


def rights(licence, use, passing, name="a", images=5):
    return Rights(name, licence, use, passing, images)


FREE = rights("CC-BY-4.0", "yes", "attribution", "free")
NC = rights("CC-BY-NC-SA-4.0", "no", "share_alike", "nc")
SILENT = rights("unstated", "unknown", "unknown", "silent")
OWN = rights("private", "no", "no", "own")


@pytest.fixture
def run(tmp_path):
    pretrain(FakeCohort(), resolve("tiny", "micro", sets=["steps=3"]), tmp_path / "run")
    return tmp_path / "run"


def parts(text):
    _begin, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_run_ends_with_a_card_in_the_hubs_form(run):
    head, body = parts((run / "README.md").read_text())
    assert head["license"] == "cc-by-4.0"
    assert head["datasets"] == ["fake"]
    assert head["tags"][-1] == "tiny"
    assert "model-index" not in head
    assert "3 of 3 steps on 40 images of 1 data set." in body
    assert "| fake | 40 | CC-BY-4.0 | yes | attribution |" in body
    assert "c0ffee" in body  # the cohort's hash
    settings = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert settings == resolve("tiny", "micro", sets=["steps=3"]).model_dump(mode="json")
    assert "None yet" in body
    assert "timm.create_model" not in body  # this toy is no ViT


def weights(recipe, cohort, out, *sets):
    """A run's folder with fresh weights that differ from their start in every part."""
    cfg = resolve(recipe, "micro", sets=["steps=2", *sets])
    module = checkpoint.build(cfg).eval()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    out.mkdir()
    facts = {**start.facts(cohort), **checkpoint.own_facts(module), "steps": "2"}
    checkpoint.save_recipe(module, cfg, out, facts)
    checkpoint.export_encoder(module, cfg, out, facts)
    write_json(out / "config.json", {**start._config(cfg), **start.facts(cohort), **start._cohort(cohort)})
    Image.fromarray(cohort.images()[0]).save(out / "image.png")
    return refresh(out).read_text()


@pytest.mark.parametrize(
    ("recipe", "sets", "codes"),
    [
        ("usfm", (), 2),
        ("d2mae", (), 2),
        ("d2mae", ("image_size=224", "patch_size=16"), 2),
        ("tusa", (), 2),
        ("arl", (), 1),  # timm has no network with organs
        ("arl", ("acdt=false", "pool=cls"), 2),
    ],
)
def test_the_code_on_the_card_runs_as_printed_and_gives_the_features_of_encode(
    tmp_path, monkeypatch, recipe, sets, codes
):
    text = weights(recipe, FakeCohort(), tmp_path / "run", *sets)
    monkeypatch.chdir(tmp_path / "run")
    images = torch.from_numpy(FakeCohort().images()[:1])[:, None]
    with torch.inference_mode():
        expected = checkpoint.load_encoder(".").encode(images)
    printed = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(printed) == codes
    for code in printed:
        space: dict[str, object] = {}
        exec(compile(code, "card", "exec"), space)
        torch.testing.assert_close(space["features"], expected, rtol=1e-5, atol=1e-5)


def test_the_hubs_own_reader_understands_the_head(run):
    hub = pytest.importorskip("huggingface_hub")
    (run / "scores.json").write_text(
        json.dumps({"label": "organ", "scores": [{"encoder": "trained", "method": "knn", "accuracy": {"value": 0.5}}]})
    )
    read = hub.ModelCard(card(run)).data
    assert (read.license, read.datasets, read.library_name) == ("cc-by-4.0", ["fake"], "usdata")
    assert (read.eval_results[0].metric_type, read.eval_results[0].metric_value) == ("accuracy", 0.5)


def test_a_card_of_weights_that_know_organs_says_what_they_can_be_told(tmp_path):
    text = weights("arl", FakeCohort(), tmp_path / "run")
    assert "with their organs and no other label" in text
    for word in ('| label | the organ: `encode(images, organ="breast")` |', "| wrong |", "| predict |", "gynecologic"):
        assert word in text
    plain = weights("arl", FakeCohort(), tmp_path / "plain", "acdt=false")
    assert "pretrained without labels" in plain
    assert "What the encoder is told" not in plain


def test_a_score_that_was_told_the_organ_says_so(run):
    line = {"encoder": "trained", "method": "knn", "accuracy": {"value": 0.5, "low": 0.1, "high": 0.9}}
    told = {"condition": "wrong", "method": "knn", "accuracy": {"value": -0.25, "low": -0.5, "high": 0.0}}
    scores = {"label": "label", "condition": "label", "scores": [line], "told": [told]}
    (run / "scores.json").write_text(json.dumps(scores))
    head, body = parts(card(run))
    assert head["model-index"][0]["results"][0]["task"]["name"] == "label, knn (told the organ: label)"
    assert "label (told the organ: label) on" in body
    assert "| wrong - label | knn | -0.250 [-0.500, 0.000] |" in body


def test_every_card_says_no_clinical_use(run):
    assert "No clinical use" in (run / "README.md").read_text()


def test_a_vits_card_shows_how_timm_loads_it(tmp_path, phantom_lake):
    sets = ["steps=1", "batch_size=4"]
    pretrain(phantom_lake.cohort("organ = 'breast'"), resolve("d2mae", "micro", sets=sets), tmp_path)
    head, body = parts((tmp_path / "README.md").read_text())
    assert "timm.create_model" in body
    assert "organ = 'breast'" in body
    assert head["datasets"] == ["phantom"]


def test_a_stopped_run_has_a_card_that_says_how_far_it_came(tmp_path):
    cfg = resolve("tiny", "micro")
    pretrain(FakeCohort(), cfg, tmp_path, max_hours=0)
    assert "1 of 12 steps" in (tmp_path / "README.md").read_text()
    pretrain(FakeCohort(), cfg, tmp_path, resume=True)
    assert "12 of 12 steps" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("found", "use", "passing"),
    [
        ([FREE], "yes", "attribution"),
        ([FREE, NC], "no", "share_alike"),
        ([FREE, SILENT], "unknown", "unknown"),
        ([NC, SILENT], "no", "unknown"),
        ([FREE, NC, SILENT, OWN], "no", "no"),
        ([rights("unstated", "yes", "yes")], "unknown", "unknown"),  # a permission of no known licence is none
        ([rights("CC-BY-NC-ND-4.0", "no", "unmodified"), NC], "no", "unmodified"),
        ([rights("custom", "yes", "a new word")], "yes", "unknown"),
        ([], "unknown", "unknown"),
    ],
)
def test_the_strictest_terms_of_all_sets_count(found, use, passing):
    assert strictest(found) == {"commercial_use": use, "redistribution": passing}
    assert strictest(found[::-1]) == strictest(found)


def test_the_hub_is_told_a_licence_only_if_all_images_have_it():
    assert hub_licence([NC, rights("CC-BY-NC-SA-4.0", "no", "share_alike", "b")]) == "cc-by-nc-sa-4.0"
    assert hub_licence([FREE, NC]) == "other"
    assert hub_licence([SILENT]) == hub_licence([OWN]) == hub_licence([]) == "other"


def test_restricted_sets_are_named(run):
    facts = json.loads((run / "config.json").read_text())
    facts["datasets"] = [
        {key: getattr(one, key) for key in ("dataset", "licence", "commercial_use", "redistribution", "images")}
        for one in (FREE, NC, SILENT)
    ]
    (run / "config.json").write_text(json.dumps(facts))
    head, body = parts(card(run))
    assert (head["license"], head["license_name"]) == ("other", "terms-of-the-training-images")
    assert "commercial use: **forbidden** by nc" in body
    assert "does not say whether its images may be passed on" in body
    assert "without a stated licence: silent" in body


def test_scores_enter_the_card_when_they_come(run, monkeypatch):
    from usdata import lake

    monkeypatch.setattr(lake, "Lake", lambda root: type("Fake", (), {"cohort": lambda self, sql: FakeCohort()})())
    done = CliRunner().invoke(app, ["downstream", "probe", "--encoder", str(run), "--cohort", "all"])
    assert done.exit_code == 0, done.output
    head, body = parts((run / "README.md").read_text())
    scores = json.loads((run / "scores.json").read_text())["scores"][0]
    assert (scores["encoder"], scores["method"]) == ("trained", "linear")
    assert f"{scores['accuracy']['value']:.3f} [{scores['accuracy']['low']:.3f}" in body
    assert "| random | knn |" in body
    first = head["model-index"][0]["results"][0]
    assert first["metrics"][0] == {"type": "accuracy", "value": pytest.approx(scores["accuracy"]["value"], abs=1e-4)}
    assert refresh(run).read_text() == card(run)


def test_scores_of_another_kind_are_shown_or_left_out(run):
    (run / "scores-dice.json").write_text(json.dumps({"label": "mask", "scores": [{"method": "upernet", "dice": {}}]}))
    (run / "scores-odd.json").write_text(json.dumps({"anything": 1}))
    body = card(run)
    assert "scores-dice.json" in body
    assert "scores-odd.json" not in body


def test_a_folder_without_a_run_has_no_card(tmp_path, run):
    with pytest.raises(UsdataError, match="No weights"):
        refresh(tmp_path)
    (run / "config.json").unlink()
    with pytest.raises(UsdataError, match=r"no config\.json"):
        refresh(run)
