"""The catalog answers SQL, and a user's text can do nothing but ask."""

import subprocess
import sys

import duckdb
import pyarrow.parquet as pq
import pytest

from usdata.catalog import Catalog
from usdata.errors import QueryError
from usdata.lake import Lake
from usdata.schema import SAMPLES, taxonomy


def test_the_view_has_every_column_of_the_schema_and_those_of_curation(phantom_lake):
    columns = set(phantom_lake.sql("from samples limit 0").column_names)
    assert columns >= {*SAMPLES.names, "split", "group", "duplicate_group", "stored_mm_x", "stored_mm_y"}


def test_counts_by_organ_add_up_to_the_catalog(phantom_lake):
    table = phantom_lake.sql("select organ, count(*) as n from samples group by all")
    assert sum(table["n"].to_pylist()) == 80
    assert len(table) == 8


def test_the_stored_spacing_is_that_of_the_crop_over_256_pixels(phantom_lake):
    row = phantom_lake.sql("select *, (crop_x1 - crop_x0) * pixel_mm_x as mm from samples limit 1").to_pylist()[0]
    assert row["stored_mm_x"] == pytest.approx(row["mm"] / 256)


def test_the_taxonomy_joins_in_sql(phantom_lake):
    table = phantom_lake.sql("select distinct s.organ, o.usfm12 from samples s join organs o using (organ)")
    assert {"organ": "gallbladder", "usfm12": "abdomen"} in table.to_pylist()


def test_every_class_that_an_organ_has_in_a_scheme_stands_in_the_table_of_schemes_with_arls_index(phantom_lake):
    for scheme, number in (("usfm12", 12), ("tusa", 12), ("arl16", 16)):
        classes = phantom_lake.sql(f"select class from schemes where scheme = '{scheme}' order by position").to_pylist()
        used = phantom_lake.sql(f"select distinct {scheme} as class from organs where {scheme} is not null").to_pylist()
        assert len(classes) == number and {row["class"] for row in used} <= {row["class"] for row in classes}
    [other] = phantom_lake.sql("select position from schemes where scheme = 'arl16' and class = 'other'").to_pylist()
    assert other["position"] == 15  # also the index of a missing label


def test_a_scheme_groups_the_organs_and_leaves_those_it_does_not_know_alone(phantom_lake):
    codes, names = phantom_lake.cohort("all").groups("usfm12")
    organs = phantom_lake.cohort("all").table(["organ"])["organ"].to_pylist()
    slots = taxonomy()["organs"]
    assert [names[code] for code in codes] == [slots[organ]["usfm12"] or organ for organ in organs]
    assert "liver" not in names and "abdomen" in names


HOSTILE_QUERIES = [
    "drop view samples",
    "select 1; drop view samples",
    "select 1; select 2",
    "",
    "-- nothing",
    "insert into organs values ('x','x','x','x','x')",
    "update organs set organ = 'x'",
    "create table t as select 1",
    "copy (select 1) to '{out}'",
    "copy organs to '{out}'",
    "attach '{out}' as x",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "reset allowed_paths",
    "pragma database_list",
    "call pragma_version()",
    "export database '{out}'",
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('/etc/passwd')",
    "select * from '/etc/passwd'",
    "select * from glob('/etc/*')",
    "select * from sniff_csv('/etc/passwd')",
    "select * from read_json('/etc/passwd')",
    "select * from parquet_scan('{secret}')",
    "select * from parquet_metadata('{secret}')",
    "select * from read_parquet('{lake}/catalog/samples/../../../secret.parquet')",
    "select * from sqlite_scan('x.db', 't')",
    "select * from 'https://example.invalid/x.parquet'",
    "select * from query('copy organs to ''{out}''')",
    "with x as (select * from read_csv('/etc/passwd')) select * from x",
    "explain analyze copy organs to '{out}'",
    "prepare p as select 1",
    "begin transaction",
]


@pytest.fixture
def places(phantom_lake, tmp_path):
    secret = phantom_lake.root.parent / "secret.parquet"
    pq.write_table(SAMPLES.empty_table(), secret)
    return {"out": str(tmp_path / "written"), "secret": str(secret), "lake": str(phantom_lake.root)}


@pytest.mark.parametrize("query", HOSTILE_QUERIES)
def test_a_query_that_wants_more_than_to_ask_is_refused(phantom_lake, places, query, tmp_path):
    with pytest.raises(QueryError):
        phantom_lake.sql(query.format(**places))
    assert not (tmp_path / "written").exists()


HOSTILE_CONDITIONS = [
    "true; drop view samples",
    "true) union all (select * from samples",
    "true limit 1",
    "true order by 1",
    "organ in (select content from read_text('/etc/passwd'))",
    "exists (select * from read_csv('/etc/passwd'))",
    "exists (select * from glob('/etc/*'))",
    "exists (select * from '{secret}')",
    "1 = 1) --",
    "no_such_column = 3",
    "organ",
    "",
    "   ",
    "breast",
]


@pytest.mark.parametrize("condition", HOSTILE_CONDITIONS)
def test_a_condition_that_is_no_single_boolean_expression_is_refused(phantom_lake, places, condition):
    with pytest.raises(QueryError):
        phantom_lake.cohort(condition.format(**places))


def test_python_variables_are_not_visible_to_a_query(phantom_lake):
    secret = SAMPLES.empty_table()
    assert secret.num_rows == 0
    with pytest.raises(QueryError):
        phantom_lake.sql("select * from secret")


def test_a_query_leaves_no_file_behind(phantom_lake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phantom_lake.sql("select * from samples a, samples b order by a.sample_id, b.phash")
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_explained_in_one_line_with_a_next_command(phantom_lake):
    with pytest.raises(QueryError, match="orgn") as caught:
        phantom_lake.sql("select orgn from samples")
    assert "usdata sql" in str(caught.value)


def test_a_lake_whose_path_has_a_quote_answers_too(phantom_lake, tmp_path):
    odd = tmp_path / "it's a lake"
    odd.symlink_to(phantom_lake.root)
    assert Lake(odd).sql("select count(*) as n from samples")["n"].to_pylist() == [80]


def test_an_empty_lake_has_the_columns_and_no_rows(tmp_path):
    table = Lake.create(tmp_path / "lake").sql("select * from samples")
    assert table.num_rows == 0
    assert set(SAMPLES.names) <= set(table.column_names)


def test_the_duckdb_file_works_in_a_shell_started_in_the_lake_wherever_it_was_moved(phantom_lake, tmp_path):
    import shutil

    moved = tmp_path / "elsewhere"
    shutil.copytree(phantom_lake.root, moved)
    code = (
        "import duckdb; con = duckdb.connect('catalog.duckdb', read_only=True);"
        "print(con.execute('select count(*) from samples').fetchone()[0],"
        " con.execute('select count(*) from organs').fetchone()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=moved, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["80", "42"]


def test_a_damaged_catalog_part_names_the_command_that_repairs_it(phantom_lake, tmp_path):
    import shutil

    from usdata.errors import LakeError

    broken = tmp_path / "lake"
    shutil.copytree(phantom_lake.root, broken)
    (broken / "catalog/samples/phantom.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(LakeError, match="catalog --rebuild"):
        Lake(broken).sql("select 1 from samples")


def test_an_open_catalog_does_not_lock_out_a_writer(phantom_lake):
    Catalog(phantom_lake)
    with duckdb.connect() as other:
        part = str(phantom_lake.catalog_part("phantom"))
        assert other.execute("select count(*) from read_parquet(?)", [part]).fetchone() == (80,)


def test_polars_reads_the_parts_with_the_same_counts(phantom_lake):
    import polars as pl

    counts = phantom_lake.scan().group_by("organ").agg(pl.len()).collect()
    by_sql = phantom_lake.sql("select organ, count(*) as n from samples group by all").to_pylist()
    assert {row["organ"]: row["n"] for row in by_sql} == dict(counts.iter_rows())


def test_polars_says_what_to_do_about_an_empty_lake(tmp_path):
    from usdata.errors import LakeError

    with pytest.raises(LakeError, match="usdata ingest"):
        Lake.create(tmp_path / "lake").scan()
