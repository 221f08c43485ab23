"""The report: one file, nothing from outside, everything escaped, the same bytes again."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from usdata.catalog import canonical, read_part, write_part
from usdata.errors import LakeError, QueryError, UsdataError
from usdata.lake import Lake
from usdata.report import command_line, write_report
from usdata.report_figures import Series, line_chart, outlines, ticks
from usdata.report_run import score_facts
from usdata.schema import QUARANTINE, SAMPLES, table_of

HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting, and collects tags, addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "tags left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def changed(lake: Lake, place: Path, **values: Any) -> Lake:
    """A copy of a lake whose rows have other values in some columns."""
    shutil.copytree(lake.root, place)
    copy = Lake(place)
    table = canonical(read_part(copy.catalog_part("phantom")), SAMPLES, coded=False)
    for name, value in values.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array([value] * len(table), table.schema.field(name).type))
    write_part(copy.catalog_part("phantom"), canonical(table, SAMPLES))
    return copy


def interval(value: float, half: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def scores_of(cohort_hash: str, gain: float = 0.2, thumbnails: float = 0.5) -> dict[str, Any]:
    """What scores.json holds, with round numbers."""

    def row(encoder: str, method: str, value: float) -> dict[str, Any]:
        return {"encoder": encoder, "method": method, **dict.fromkeys(METRICS, interval(value))}

    return {
        "label": "organ",
        "classes": {"breast": 32, HOSTILE: 8},
        "groups": 20,
        "folds": 5,
        "cohort": {"sql": "all", "hash": cohort_hash, "rows": 40},
        "scores": [
            row("trained", "linear", 0.8),
            row("random", "linear", 0.8 - gain),
            row("thumbnails", "1-nn", thumbnails),
            row("none", "majority", 0.4),
        ],
        "gain": [{"method": "linear", **dict.fromkeys(METRICS, interval(gain))}],
    }


METRICS = ("accuracy", "macro_f1", "macro_auroc")


@pytest.fixture()
def run(phantom_lake: Lake, tmp_path: Path) -> Path:
    """A run's folder as training leaves it, made by hand."""
    folder = tmp_path / "run"
    (folder / "pictures").mkdir(parents=True)
    cohort = phantom_lake.cohort("all")
    config = {"recipe": "d2mae", "preset": "micro", "steps": 300, "batch_size": 32, "recipe_config": {"blur": "levels"}}
    facts = {"cohort_sql": "all", "cohort_hash": cohort.hash, "rows": cohort.rows, "config_hash": "c0ffee"}
    (folder / "config.json").write_text(json.dumps({"config": config, "code_version": "0.1.0", **facts}))
    lines: list[dict[str, Any]] = [{"kind": "start", "step": 0, "torch": "2.99"}]
    lines += [{"kind": "step", "step": i, "lr": 1e-3, "loss": 1 / i, "mse_masked": 2 / i} for i in range(1, 301)]
    lines += [
        {"kind": "probe", "step": i, "images": 40, "label": "organ", "knn_accuracy": 0.7, "majority": 0.4}
        for i in (0, 300)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (0, 100, 300):
        Image.fromarray(np.full((20, 30), step // 2, np.uint8)).save(folder / "pictures" / f"step-{step:06d}.png")
    (folder / "scores.json").write_text(json.dumps(scores_of(cohort.hash)))
    return folder


def page_of(lake: Lake, place: Path, **options: Any) -> Page:
    out = write_report(lake, place / "report.html", **options)
    return Page(out.read_text("utf-8"))


def test_the_page_is_one_well_formed_file_that_loads_nothing(phantom_lake: Lake, run: Path, tmp_path: Path) -> None:
    page = page_of(phantom_lake, tmp_path, run=run)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    raw = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"https?:|url\(|@import", raw)
    assert "80 images" in page.text
    assert "skeletal muscle" in page.text


def test_the_same_inputs_give_the_same_bytes(phantom_lake: Lake, run: Path, tmp_path: Path) -> None:
    first = write_report(phantom_lake, tmp_path / "a" / "r.html", run=run).read_bytes()
    second = write_report(phantom_lake, tmp_path / "b" / "r.html", run=run).read_bytes()
    assert first == second
    assert str(tmp_path).encode() not in first  # a page to be shown around names no folders of its maker


def test_a_hostile_label_is_shown_and_not_run(phantom_lake: Lake, run: Path, tmp_path: Path) -> None:
    lake = changed(phantom_lake, tmp_path / "lake", label=HOSTILE, licence="<b>bold</b>", dataset="phantom")
    raw = write_report(lake, tmp_path / "r.html", run=run).read_text("utf-8")
    assert "<script" not in raw and "<b>bold" not in raw
    assert "&lt;script&gt;" in raw
    assert HOSTILE in Page(raw).text


def test_unstated_licences_are_named_and_their_images_marked_private(phantom_lake: Lake, tmp_path: Path) -> None:
    free = page_of(phantom_lake, tmp_path).text
    assert "private" not in free.lower()
    unstated = page_of(changed(phantom_lake, tmp_path / "a", licence="unstated", redistribution="unknown"), tmp_path)
    assert "phantom (licence unstated)" in unstated.text
    assert unstated.text.count("private") >= len([a for a in unstated.addresses if a.startswith("data:")])
    derived = page_of(changed(phantom_lake, tmp_path / "b", redistribution="unmodified"), tmp_path).text
    assert "Apache-2.0, redistribution: unmodified" in derived


def test_a_tile_per_image_up_to_eight_for_an_organ_and_outlines_on_half(phantom_lake: Lake, tmp_path: Path) -> None:
    page = page_of(phantom_lake, tmp_path)
    counts = phantom_lake.sql("select least(count(*), 8) as n from samples group by organ").to_pylist()
    assert page.tags.count("img") == sum(row["n"] for row in counts)
    raw = (tmp_path / "report.html").read_text("utf-8")
    assert 0.3 < raw.count('class="outline"') / page.tags.count("img") < 0.7


def test_an_empty_lake_says_what_to_type_next(tmp_path: Path) -> None:
    page = page_of(Lake.create(tmp_path / "lake"), tmp_path)
    assert "The lake is empty" in page.text
    assert "usdata ingest phantom --lake lake" in page.text


def test_a_cohort_without_images_is_no_error(phantom_lake: Lake, tmp_path: Path) -> None:
    assert "Not one image" in page_of(phantom_lake, tmp_path, cohort="organ = 'brain'").text


def test_a_cohort_reports_its_own_images_only(phantom_lake: Lake, tmp_path: Path) -> None:
    text = page_of(phantom_lake, tmp_path, cohort="organ = 'breast'").text
    assert "organ = 'breast'" in text
    assert "thyroid" not in text


def test_a_refused_cohort_leaves_the_old_page(phantom_lake: Lake, tmp_path: Path) -> None:
    out = write_report(phantom_lake, tmp_path / "r.html")
    before = out.read_bytes()
    with pytest.raises(QueryError):
        write_report(phantom_lake, out, cohort="no_such_column = 1")
    assert out.read_bytes() == before


def test_quarantined_items_are_counted_by_reason_with_examples(phantom_lake: Lake, tmp_path: Path) -> None:
    lake = changed(phantom_lake, tmp_path / "lake")
    rows = [
        {
            "dataset": "phantom",
            "source_id": f"bad-{i}{HOSTILE}",
            "stage": "read",
            "reason": "unreadable",
            "detail": "Torn.",
        }
        for i in range(5)
    ]
    write_part(lake.quarantine_part("phantom"), table_of(rows, QUARANTINE))
    text = page_of(lake, tmp_path).text
    assert "unreadable read 5" in text
    assert "bad-2" in text and "bad-3" not in text


def test_a_run_shows_its_curves_pictures_scores_and_caveats(phantom_lake: Lake, run: Path, tmp_path: Path) -> None:
    page = page_of(phantom_lake, tmp_path, run=run)
    for words in (
        "d2mae , preset micro",
        "300 of 300",
        "mse_masked",
        "kNN accuracy",
        "Untrained encoder",
        "PyTorch 2.99",
    ):
        assert words in page.text
    raw = (tmp_path / "report.html").read_text("utf-8")
    assert raw.count('class="chart"') == 3
    assert "Before the first step" in page.text and "After step 300" in page.text and "After step 100" not in page.text
    assert "pretraining raised the accuracy (+20.0 points, 95 % interval +15.0 to +25.0)" in page.text
    assert "micro is a toy" in page.text and "All training images are simulated" in page.text
    assert "The encoder saw the same images" in page.text


@pytest.mark.parametrize(("gain", "words"), [(0.01, "made no difference"), (-0.2, "lowered the accuracy (−20.0")])
def test_no_gain_is_told_as_none(phantom_lake: Lake, run: Path, tmp_path: Path, gain: float, words: str) -> None:
    (run / "scores.json").write_text(json.dumps(scores_of("another", gain, thumbnails=0.9)))
    text = page_of(phantom_lake, tmp_path, run=run).text
    assert words in text
    assert "can't show what the encoder is worth" in text
    assert "The encoder saw the same images" not in text  # scored on another lake's cohort


def test_damaged_lines_and_files_of_a_run_are_left_out_and_named(phantom_lake: Lake, run: Path, tmp_path: Path) -> None:
    log = run / "log.jsonl"
    log.write_bytes(
        log.read_bytes() + b'{"kind": "step", "st\n[1]\n\xff\xfe\n{"kind": "step", "step": 301, "loss": nul'
    )
    (run / "scores.json").write_text('{"scores": 3}')
    picture = run / "pictures" / "step-000300.png"
    picture.write_bytes(picture.read_bytes()[:-9])
    text = page_of(phantom_lake, tmp_path, run=run).text
    assert "4 damaged lines of log.jsonl left out." in text
    assert "scores.json is damaged and left out." in text
    assert "step-000300.png is no whole PNG" in text
    assert "Not scored yet" in text


def test_a_run_without_log_pictures_or_scores_still_gives_a_page(phantom_lake: Lake, run: Path, tmp_path: Path) -> None:
    (run / "log.jsonl").unlink()
    (run / "scores.json").unlink()
    shutil.rmtree(run / "pictures")
    text = page_of(phantom_lake, tmp_path, run=run).text
    assert "There is no log.jsonl" in text
    assert "not finished" in text


def test_a_run_on_other_images_is_said_to_be_one(phantom_lake: Lake, run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "cohort_hash": "0" * 32}))
    text = page_of(phantom_lake, tmp_path, run=run).text
    assert "trained on other images" in text
    assert "training images are simulated" not in text  # nothing is known of them
    assert "may show images of data sets that are not in this lake" in text


def test_a_folder_that_is_no_run_is_refused(phantom_lake: Lake, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsdataError, match="No run in"):
        write_report(phantom_lake, tmp_path / "r.html", run=tmp_path)
    (run / "config.json").write_text("{}")
    with pytest.raises(UsdataError, match="not the config of a run"):
        write_report(phantom_lake, tmp_path / "r.html", run=run)
    assert not (tmp_path / "r.html").exists()


def test_a_page_that_cannot_be_written_is_a_clear_error(phantom_lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "r.html").mkdir()
    with pytest.raises(LakeError, match="Can't write"):
        write_report(phantom_lake, tmp_path / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_an_outline_runs_round_its_class() -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[10:21, 30:41] = 2
    drawn, classes = outlines(mask)
    assert classes == [2]
    assert "M30.5 10.5L30.5 20.5L40.5 20.5L40.5 10.5Z" in drawn
    assert outlines(np.zeros((256, 256), np.uint8)) == ("", [])


def test_ticks_are_round_numbers_inside_the_axis() -> None:
    assert ticks(0, 1, 4) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 0.001, 4) == [0.0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]
    assert all(0 <= tick <= 7 for tick in ticks(0, 7, 5))


def test_a_long_curve_is_drawn_by_its_mean_inside_its_range() -> None:
    x = list(range(1, 12_001))
    drawn = line_chart([Series("loss", x, [float(i % 2) for i in x])], x_label="step", y_label="loss")
    assert drawn.count("L") < 400
    assert 'class="band s1"' in drawn
    assert line_chart([Series("loss", [], [])], x_label="step", y_label="loss") == ""


def test_commands_are_quoted_as_one_would_type_them() -> None:
    assert command_line("usdata", "sql", "select 'a'") == "usdata sql \"select 'a'\""
    assert command_line("x", 'a "b" $c') == "x 'a \"b\" $c'"
    assert command_line("usdata", 3, Path("lake")) == "usdata 3 lake"


def test_scores_of_an_encoder_that_was_told_the_organ_say_so() -> None:
    found = {"label": "malignant", "classes": {"no": 3, "yes": 4}, "groups": 5, "folds": 2, "scores": []}
    assert "verdicts" in score_facts(found) and not score_facts(found)["verdicts"]
    (said,) = score_facts({**found, "condition": "label"})["verdicts"]
    assert "was told the organ in the catalog" in said
