"""A lake under an open reader, in odd places, and written to by several processes at once."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from fakes.folders import write_folder, write_image

from ingest.card import load_card
from ingest.run import ingest
from usdata import catalog, cli
from usdata.cohort import saved, saved_records
from usdata.console import print_rows
from usdata.errors import ConfigError, LakeError, QueryError
from usdata.lake import Lake
from usdata.sampling import group_probabilities
from usdata.verify import rebuild_catalog, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source")


def filled(folder: Path, lake: Path) -> Lake:
    opened = Lake.create(lake)
    ingest(load_card(folder.parent / "mine.yaml"), folder, opened)
    return opened


@pytest.fixture
def lake(folder: Path, tmp_path: Path) -> Lake:
    return filled(folder, tmp_path / "lake")


# --- a reader while the data set is replaced ----------------------------------------------------------------------


def test_an_open_loader_never_shows_an_image_of_a_later_ingest_with_the_row_of_an_earlier_one(folder, lake):
    loader = lake.cohort("all").loader(batch_size=4, gamma=None, columns=("pixel_xxh",))
    for name in ("n000.png", "n002.png"):  # same places in the shard, other pixels
        write_image(folder / "images/benign" / name, seed=90)
    filled(folder, lake.root)
    with pytest.raises(LakeError, match="replaced after the cohort was opened"):
        list(loader)


def test_a_loader_that_has_mapped_its_shards_goes_on_with_what_it_opened(folder, lake):
    loader = lake.cohort("all").loader(batch_size=8, gamma=None, columns=("pixel_xxh",))
    list(loader)
    write_image(folder / "images/benign/n000.png", seed=90)
    filled(folder, lake.root)
    for batch in loader:
        for image, wanted in zip(batch["image"], batch["pixel_xxh"], strict=True):
            assert xxhash.xxh3_128(np.ascontiguousarray(image[0].numpy()).tobytes()).hexdigest() == wanted


def test_an_open_cohort_refuses_rows_of_a_later_ingest(folder, lake):
    cohort = lake.cohort("all")
    (folder / "images/benign/n000.png").unlink()
    filled(folder, lake.root)
    for ask in (cohort.images, cohort.index, lambda: cohort.table(["organ"]), lambda: list(cohort.batches(4))):
        with pytest.raises(LakeError, match="changed after it was opened"):
            ask()
    assert lake.cohort("all").rows == 7


def test_an_open_cohort_does_not_mind_another_data_set(folder, lake, tmp_path):
    cohort = lake.cohort("all")
    other = write_folder(tmp_path / "more" / "source")
    card = other.parent / "mine.yaml"
    card.write_text(card.read_text().replace("name: mine", "name: other"))
    filled(other, lake.root)
    assert len(cohort.images()) == cohort.rows == 8


def test_a_condition_that_selects_other_samples_each_time_is_refused(phantom_lake):
    cohort = phantom_lake.cohort("random() < 0.5")
    with pytest.raises(QueryError, match="other samples each time"):
        cohort.index()


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["has_mask", "synthetic", "organ", "split"])
def test_a_cohort_can_not_take_the_name_of_a_column(lake, name):
    with pytest.raises(ConfigError, match="column"):
        lake.cohort("all").save(name)
    assert saved(lake) == []


def test_a_data_set_may_be_called_commit(folder, tmp_path):
    card = folder.parent / "mine.yaml"
    card.write_text(card.read_text().replace("name: mine", "name: commit"))
    code = (
        "import sys; from pathlib import Path; from ingest.card import load_card; from ingest.run import ingest; "
        "from usdata.lake import Lake; card, folder, lake = map(Path, sys.argv[1:]); "
        "ingest(load_card(card), folder, Lake.create(lake))"
    )
    words = [sys.executable, "-c", code, str(card), str(folder), str(tmp_path / "lake")]
    subprocess.run(words, check=True, timeout=60)  # it once waited for its own lock, for ever
    assert Lake(tmp_path / "lake").datasets() == ["commit"]


@pytest.mark.parametrize("content", ["{}", "[]", '{"sql": 3, "rows": 1, "ids_xxh": ""}'])
def test_a_damaged_cohort_file_is_named(lake, content):
    lake.cohort("all").save("mine").write_text(content)
    with pytest.raises(LakeError, match=r"mine\.json is damaged"):
        lake.cohort("mine")
    with pytest.raises(LakeError, match=r"mine\.json is damaged"):
        saved_records(lake)


# --- places --------------------------------------------------------------------------------------------------------


def test_a_lake_opened_by_a_relative_path_stays_the_same_lake_elsewhere(lake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = Lake("lake")
    cohort = opened.cohort("all")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert opened.sql("select count(*) as n from samples")["n"].to_pylist() == [8]
    assert len(cohort.images()) == 8
    assert cohort.save("here").is_relative_to(tmp_path / "lake")


@pytest.mark.parametrize("name", ["a*b", "a?b", "a[1]b", "a{1,2}b", "a,b", "a\\b"])
def test_a_path_that_duckdb_would_take_for_a_pattern_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(LakeError, match="pattern"):
        Lake.create(tmp_path / name / "lake")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["it's", "a b", "ünï", "a%b", "a#b", "~a", "a=b", 'a"b', "a\nb"])
def test_any_other_path_will_do(folder, tmp_path, name):
    lake = filled(folder, tmp_path / name / "lake")
    assert lake.cohort("all").images().shape == (8, 256, 256)
    assert not verify(lake)


@pytest.mark.parametrize("address", ["s3://bucket/lake", Path("s3://bucket/lake"), "memory:/x"])
def test_a_remote_address_is_refused_however_it_is_written(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LakeError, match="remote"):
        Lake.create(address)
    assert not list(tmp_path.iterdir())


# --- several writers, and a full disk ------------------------------------------------------------------------------


def test_two_processes_may_create_one_lake_at_once(tmp_path):
    code = (
        "import sys, time; from usdata.lake import Lake\n"
        "for i in range(60):\n"
        "    while time.time() < float(sys.argv[2]) + i / 50: pass\n"
        "    Lake.create(f'{sys.argv[1]}/lake{i}')\n"
    )
    import time

    start = str(time.time() + 1)
    words = [sys.executable, "-c", code, str(tmp_path), start]
    pair = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(one.communicate()[1], one.returncode) for one in pair] == [("", 0)] * 2


def test_a_rebuild_does_not_show_a_data_set_that_a_killed_ingest_left_half_replaced(folder, lake, monkeypatch):
    def killed(*_args):
        raise KeyboardInterrupt

    write_image(folder / "images/benign/n000.png", seed=90)
    with monkeypatch.context() as patch:
        patch.setattr("ingest.commit._move_shards", killed)  # the manifest is the new one by then, the shards are old
        with pytest.raises(KeyboardInterrupt):
            filled(folder, lake.root)
    assert lake.datasets() == []
    with pytest.raises(LakeError, match="do not match their hash"):
        list(rebuild_catalog(lake))
    assert lake.datasets() == []
    filled(folder, lake.root)
    assert list(rebuild_catalog(lake)) == ["mine"] and not verify(lake)


def test_a_damaged_manifest_is_a_finding(lake):
    lake.manifest("mine").write_text("{}")
    assert ["damaged" in finding.problem for finding in verify(lake)] == [True]


def test_a_disk_that_is_full_when_the_views_are_written_is_one_message(folder, tmp_path, monkeypatch):
    import duckdb

    def full(*_args, **_kwargs):
        raise duckdb.IOException("IO Error: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "_views", full)
        with pytest.raises(LakeError, match=r"(?s)catalog\.duckdb.*No space left.*same command again"):
            filled(folder, tmp_path / "lake")
    filled(folder, tmp_path / "lake")
    assert catalog.duckdb_is_fresh(Lake(tmp_path / "lake"))


# --- asking --------------------------------------------------------------------------------------------------------


def test_a_query_can_not_change_the_organs(phantom_lake):
    with pytest.raises(QueryError):
        phantom_lake.sql("with gone as (delete from organs returning *) select * from gone")


@pytest.mark.parametrize("query", ["update extensions", "select '\udcff'", "from iceberg_scan('x')"])
def test_a_statement_that_the_python_side_of_duckdb_does_not_know_is_refused(phantom_lake, query):
    with pytest.raises(QueryError):
        phantom_lake.sql(query)


def test_no_extension_is_fetched_or_loaded_for_a_query(phantom_lake):
    settings = "select name, value from duckdb_settings() where name like 'auto%_known_extensions'"
    assert set(phantom_lake.sql(settings)["value"].to_pylist()) == {"false"}


def test_a_second_column_of_one_name_does_not_hide_the_first(phantom_lake):
    assert phantom_lake.sql("select 1 as a, 2 as a, 3 as a").to_pylist() == [{"a": 1, "a_1": 2, "a_2": 3}]


def test_the_hint_of_a_refusal_is_a_query_that_works(phantom_lake):
    assert "organ" in phantom_lake.sql("describe samples")["column_name"].to_pylist()


def test_a_list_column_can_not_name_groups(phantom_lake):
    with pytest.raises(ConfigError, match="mask_classes"):
        phantom_lake.cohort("all").groups("mask_classes")


@pytest.mark.parametrize("gamma", [1e308, -1e308])
def test_an_extreme_gamma_gives_all_to_one_group(gamma):
    shares = group_probabilities([1, 10, 100], gamma)
    assert shares.tolist() == ([0, 0, 1] if gamma > 0 else [1, 0, 0])


def test_json_lines_are_json_at_any_depth(capsys):
    import json

    print_rows([{"a": [1.0, float("nan")], "b": {"c": float("inf")}}], as_json=True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": [1.0, None], "b": {"c": None}}


def test_a_table_shows_words_as_they_are_and_no_escape_sequences(capsys):
    print_rows([{"label": ":smile: [red]x[/red] \x1b[31m"}], as_json=False)
    assert r":smile: [red]x[/red] \x1b[31m" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["sql", "select 'infinity'::date"], 1),
        (["sql", "select 1", "--lake", "a" * 300], 1),
        (["ingest", "phantom", "--lake", "a" * 300], 1),
        (["ingest", "phantom", "--from", "."], 1),
        (["plan", "--draws", "0"], 1),
        (["plan", "--by", "mask_classes"], 1),
        (["plan", "--gamma", "1e308"], 0),
    ],
)
def test_an_odd_argument_ends_in_one_message(phantom_lake, tmp_path, monkeypatch, capsys, words, code):
    monkeypatch.chdir(tmp_path)
    place = [] if "--lake" in words else ["--lake", str(phantom_lake.root)]
    monkeypatch.setattr(sys, "argv", ["usdata", *words, *place])
    try:
        cli.main()
        ended = 0
    except SystemExit as end:
        ended = end.code
    err = capsys.readouterr().err
    assert (ended or 0, "Traceback" in err) == (code, False)
    assert code == 0 or err.startswith("usdata: ")
    assert not list(tmp_path.iterdir())


def test_a_copy_of_a_lake_is_a_lake(lake, tmp_path):
    shutil.copytree(lake.root, tmp_path / "copy")
    assert not verify(Lake(tmp_path / "copy"))


@pytest.mark.parametrize("condition", ["1", "width", "'true'", "null", "frame"])
def test_a_number_or_a_word_is_no_condition(phantom_lake, condition):
    with pytest.raises(QueryError):
        phantom_lake.cohort(condition)


@pytest.mark.parametrize(
    "condition", ["has_mask", "not synthetic", "organ = 'eye' -- a note", "organ like 'b%'\nand has_mask"]
)
def test_anything_true_or_false_is_a_condition(phantom_lake, condition):
    assert phantom_lake.cohort(condition).index() is not None
