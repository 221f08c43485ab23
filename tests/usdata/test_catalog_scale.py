"""The catalog of many parts: order without a sort, columns without a join, parts of other versions, busy readers."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import xxhash
from fakes.folders import write_folder

from benchmarks.fake_catalog import SETS, tables, write_lake
from ingest.card import load_card
from ingest.run import ingest
from usdata.catalog import Catalog, canonical, write_duckdb, write_part
from usdata.errors import LakeError, QueryError
from usdata.lake import Lake
from usdata.parts import are_ordered, coded, in_order, sorted_lines
from usdata.schema import SAMPLES

ROWS = 12_000
CONDITIONS = [
    "all",
    "organ_group = 'breast' and has_mask and not synthetic",
    "dataset = 'unity_imaging'",
    "dataset in ('busi', 'lung_sweeps') or organ = 'eye'",
    "split = 'train' and organ = 'heart'",
    "duplicate_group is not null",
    "stored_mm_x > 0.2",
    "false",
]


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> Lake:
    """Some 36 data sets with splits and duplicates, no shards. Shared: tests only read it."""
    return write_lake(tmp_path_factory.mktemp("fake") / "lake", ROWS)


@pytest.fixture
def copy(fake, tmp_path) -> Lake:
    return Lake(shutil.copytree(fake.root, tmp_path / "lake"))


def small(name: str, organs: tuple[str, ...] = ("heart", "lung"), per_shard: int = 4, n: int = 10) -> pa.Table:
    """A data set of `n` samples, in order."""
    rows = [
        {
            "sample_id": f"{name}-{xxhash.xxh3_64_hexdigest(f'{name} {i}'.encode())}",
            "dataset": name,
            "organ": organs[i * len(organs) // n],
            "has_mask": i % 2 == 0,
            "synthetic": False,
            "width": 100 + i,
            "shard": f"shards/{name}/{name}-{i // per_shard:06d}.tar",
            "offset": 512 * (1 + i % per_shard),
        }
        for i in range(n)
    ]
    columns = {f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in SAMPLES}
    return canonical(pa.table(columns, schema=SAMPLES), SAMPLES)


def lake_of(root: Path, **parts: pa.Table) -> Lake:
    """A lake whose parts are these; `x__part_0` is the file x/part-0.parquet."""
    lake = Lake.create(root)
    for name, table in parts.items():
        path = name.replace("__", "/").replace("part_", "part-") if "__" in name else name.replace("_dash_", "-")
        write_part(root / "catalog" / "samples" / f"{path}.parquet", table)
    write_duckdb(lake)
    return lake


# --- the fake itself ------------------------------------------------------------------------------------------------


def test_the_fake_catalog_is_like_a_real_one(fake):
    shards = fake.sql("select shard, count(*) as n, count(distinct organ) as organs from samples group by shard")
    assert max(shards["n"].to_pylist()) <= 1000 and set(shards["organs"].to_pylist()) == {1}
    assert fake.cohort("all").rows == ROWS and len(fake.datasets()) == len(SETS)
    assert len(set(fake.cohort("all").ids.to_pylist())) == ROWS


def test_the_fake_catalog_is_the_same_for_the_same_seed():
    one, other = list(tables(2000, seed=3)), list(tables(2000, seed=3))
    assert all(a.equals(b) for a, b in zip(one, other, strict=True))
    assert not next(tables(2000, seed=4)).equals(one[0])


# --- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_cohort_stands_in_the_order_that_an_explicit_sort_gives(fake, condition):
    where = "true" if condition == "all" else condition
    columns = '"group", stored_mm_y, sample_id, organ, mask_classes, split, phash, "offset", labels'
    wanted = fake.sql(f'select {columns} from samples where {where} order by dataset, shard, "offset"')
    cohort = fake.cohort(condition)
    assert are_ordered(fake.catalog.parts) and fake.catalog._ranks is None  # no sort was made
    assert cohort.table(wanted.column_names).cast(wanted.schema).equals(wanted)
    assert cohort.rows == len(wanted)


def test_the_order_is_that_of_the_names_and_not_of_the_files(tmp_path):
    lake = lake_of(tmp_path / "lake", a=small("a"), a_dash_b=small("a-b"), a_b=small("a_b"))
    assert lake.catalog_files()[0].name == "a-b.parquet"
    assert list(dict.fromkeys(lake.cohort("all").table(["dataset"])["dataset"].to_pylist())) == ["a", "a-b", "a_b"]


@pytest.mark.parametrize("parts", [1, 3])
def test_rows_that_are_not_in_order_are_brought_into_it(tmp_path, parts):
    table = small("b").take(pa.array(np.random.default_rng(0).permutation(10)))
    pieces = {f"b__part_{i}": table.slice(i * 10 // parts, 10 // parts + 1) for i in range(parts)}
    pieces = {name: canonical(piece, SAMPLES) for name, piece in pieces.items()}
    unique = pa.concat_tables(pieces.values()).num_rows
    lake = lake_of(tmp_path / "lake", a=small("a"), c=small("c"), **pieces)
    assert not are_ordered(lake.catalog.parts)
    wanted = lake.sql('select sample_id, width from samples order by dataset, shard, "offset", sample_id')
    assert lake.cohort("all").table(["sample_id", "width"]).equals(wanted)
    assert len(wanted) == 20 + unique
    some = lake.cohort("width > 104").table(["width"])["width"].to_pylist()
    assert some == [w for w in wanted["width"].to_pylist() if w > 104]


def test_a_large_data_set_may_come_in_several_files(tmp_path):
    table = small("b", n=12)
    pieces = {f"b__part_{i}": canonical(table.slice(4 * i, 4), SAMPLES) for i in range(3)}
    lake = lake_of(tmp_path / "lake", a=small("a"), **pieces)
    whole = lake_of(tmp_path / "whole", a=small("a"), b=table)
    assert are_ordered(lake.catalog.parts) and lake.datasets() == ["a", "b"]
    assert lake.cohort("has_mask").hash == whole.cohort("has_mask").hash
    assert lake.cohort("has_mask").table(["width"]).equals(whole.cohort("has_mask").table(["width"]))
    assert len(lake.scan().collect()) == 22


def test_a_file_says_that_it_is_in_order_only_if_it_is(tmp_path):
    table = small("a")
    assert in_order(table) and not in_order(table.take(pa.array([1, 0])))
    assert not in_order(pa.concat_tables([table, table.slice(9)]))  # one place twice
    for name, rows, said in (("sorted", table, 2), ("not", table.slice(0).take(pa.array([3, 1])), 0)):
        write_part(tmp_path / name, rows)
        assert len(pq.read_metadata(tmp_path / name).row_group(0).sorting_columns) == said


def test_a_part_of_another_data_set_than_its_name_says_is_sorted_by_what_it_holds(tmp_path):
    lake = lake_of(tmp_path / "lake", a=small("z"), b=small("b"))
    assert list(dict.fromkeys(lake.cohort("all").table(["dataset"])["dataset"].to_pylist())) == ["b", "z"]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    table = next(tables(3000))
    shuffled = pa.concat_tables([table.slice(500), table.slice(0, 500)])
    back = pa.concat_tables([shuffled.slice(len(table) - 500), shuffled.slice(0, len(table) - 500)])
    for name, rows in (("one", table), ("two", canonical(back, SAMPLES))):
        write_part(tmp_path / name, rows)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# --- hash and codes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_hash_is_that_of_the_sorted_ids(fake, condition):
    cohort = fake.cohort(condition)
    wanted = xxhash.xxh3_128("".join(f"{i}\n" for i in sorted(cohort.ids.to_pylist())).encode()).hexdigest()
    assert cohort.hash == wanted


@pytest.mark.parametrize(
    "chunks",
    [
        [["a-2", "a-1"], ["a-b-9", "a-b-0"]],  # a-1 < a-2 < a-b-0
        [["a-c", "a-a"], ["a-b-9", "a-b-0"]],  # the second lies inside the first
        [["b", "abc", "ab"], [], ["aé", "aab"]],
        [[]],
    ],
)
def test_lines_are_sorted_as_text_whatever_the_ids_are_like(chunks):
    ids = pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks])
    wanted = "".join(f"{i}\n" for i in sorted(ids.to_pylist())).encode()
    assert b"".join(bytes(lines) for lines in sorted_lines(ids)) == wanted


def test_groups_of_parts_with_different_dictionaries_are_counted_together(tmp_path):
    plain = small("c", ("heart", "eye"))
    plain = plain.set_column(plain.column_names.index("organ"), "organ", plain["organ"].cast(pa.string()))
    lake = lake_of(tmp_path / "lake", a=small("a", ("heart", "lung")), b=small("b", ("lung", "eye", "heart")), c=plain)
    codes, names = lake.cohort("all").groups("organ")
    assert names == ["eye", "heart", "lung"]
    by_sql = {
        row["organ"]: row["n"] for row in lake.sql("select organ, count(*) n from samples group by 1").to_pylist()
    }
    assert dict(zip(names, np.bincount(codes).tolist(), strict=True)) == by_sql
    counted = lake.cohort("dataset = 'b' and width < 103").groups("organ")[1]
    assert counted == ["lung"]  # and no group without an image


def test_unknown_is_one_group_whether_it_is_said_or_not(tmp_path):
    table = small("a", ("unknown", "eye"))
    organs = pa.array(["unknown", None, "eye"] * 3 + ["eye"]).dictionary_encode()
    table = table.set_column(table.column_names.index("organ"), "organ", organs)
    codes, names = lake_of(tmp_path / "lake", a=canonical(table, SAMPLES)).cohort("all").groups("organ")
    assert names == ["eye", "unknown"] and codes.tolist() == [1, 1, 0] * 3 + [0]


def test_coded_words_are_numbered_and_null_is_minus_one():
    column = pa.chunked_array(
        [pa.array(["b", None, "a"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()]
    )
    codes, words = coded(column.slice(1))
    assert [words[c] if c >= 0 else None for c in codes] == [None, "a", "c", "a"] and set(words) == {"a", "c"}
    assert coded(pa.array([None, None], pa.string()))[0].tolist() == [-1, -1]


# --- curation's columns ---------------------------------------------------------------------------------------------

PLAIN = [
    "select organ, count(*) n from samples group by organ order by organ",
    "select sample_id from samples where has_mask and organ_group = 'breast' order by 1",
    "select o.usfm12, count(*) n from samples s join organs o using (organ) group by 1 order by 1",
    "select count(s) n from samples s",
]
IMPLICIT = [
    "select * from samples order by sample_id limit 5",
    "from samples order by sample_id desc limit 5",
    "select columns('spl.*') from samples order by sample_id limit 3",
    "select count(columns(*)) from samples",
    "select max(s::varchar) m from samples s",
    "select count(*) n from (select distinct * exclude sample_id from samples)",
    "select s.split, count(*) n from samples s group by 1 order by 1",
    'select "group" from samples order by 1 limit 3',
    "select try(split) as t, count(*) n from samples group by 1 order by 1",
    "select count(*) n from samples where columns('dupl.*') is null",
]


@pytest.mark.parametrize("query", PLAIN)
def test_a_query_without_curation_s_columns_pays_for_no_join(fake, query):
    opened = Lake(fake.root)
    answer = opened.sql(query)
    assert "_joined" not in opened.catalog.__dict__
    assert answer.equals(opened.catalog._joined.sql(query).to_arrow_table())


@pytest.mark.parametrize("query", IMPLICIT)
def test_curation_s_columns_come_however_they_are_asked_for(fake, query):
    opened = Lake(fake.root)
    answer = opened.sql(query)
    assert "_joined" in opened.catalog.__dict__
    wanted = opened.catalog._joined.sql(query).to_arrow_table()
    assert answer.to_pylist() == wanted.rename_columns(answer.column_names).to_pylist()


def test_a_condition_may_name_the_view_to_ask_about_other_samples(fake):
    where = "exists(select 1 from samples s where s.patient = samples.patient and s.organ <> samples.organ)"
    wanted = fake.sql(f"select count(*) as n from samples where {where}")["n"][0].as_py()
    assert fake.cohort(where).rows == wanted
    with pytest.raises(QueryError):
        fake.cohort("samples._row = 0")


def test_splits_that_come_after_a_cohort_was_opened_are_noticed(copy):
    (copy.root / "catalog/splits.parquet").rename(copy.root / "later")
    cohort = Lake(copy.root).cohort("all")
    (copy.root / "later").rename(copy.root / "catalog/splits.parquet")
    with pytest.raises(LakeError, match="changed after it was opened"):
        cohort.table(["split"])


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_time_that_is_none_is_refused(fake, timeout):
    with pytest.raises(QueryError, match="must be more than 0"):
        fake.sql("select 1 as a", timeout=timeout)
    assert fake.sql("select 1 as a", timeout=float("inf")).to_pylist() == [{"a": 1}]


def test_the_connection_that_joins_is_locked_too(fake):
    for query in ("select split, content from samples, read_text('/etc/passwd')", 'set threads = 1; select "group"'):
        with pytest.raises(QueryError):
            fake.sql(query)


def test_a_sample_that_curation_names_twice_is_refused(copy):
    splits = copy.root / "catalog" / "splits.parquet"
    table = pq.read_table(splits)
    write_part(splits, pa.concat_tables([table, table.slice(5, 1)]))
    with pytest.raises(LakeError, match="names a sample twice"):
        copy.cohort("split is not null")
    assert copy.cohort("has_mask").rows > 0


# --- parts of other versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [["a"], ["a", "b"]])
def test_a_column_that_older_parts_lack_is_null(tmp_path, which):
    parts = {name: small(name) for name in ("a", "b")}
    for name in which:
        parts[name] = parts[name].drop_columns(["burned_in", "crop_x0", "has_mask"])
    lake = lake_of(tmp_path / "lake", **parts)
    query = "select dataset, count(has_mask) n, count(burned_in), count(stored_mm_x) from samples group by 1 order by 1"
    assert lake.sql(query)["n"].to_pylist() == [0 if name in which else 10 for name in ("a", "b")]
    assert lake.scan().collect()["has_mask"].null_count() == 10 * len(which)
    assert set(lake.scan().collect_schema().names()) == set(SAMPLES.names)
    cohort = lake.cohort("dataset = 'a' and has_mask is null")
    assert cohort.rows == 10 and cohort.groups("burned_in")[1] == ["unknown"]
    index = cohort.index(["has_mask", "burned_in"])
    assert index.columns["has_mask"].null_count == 10 and index.columns["burned_in"].null_count == 10
    assert canonical(parts["a"], SAMPLES).schema == SAMPLES


def test_a_column_of_a_later_version_stays_visible(tmp_path):
    newer = small("b").append_column("elastic_kpa", pa.array(np.arange(10) / 2))
    newer = newer.append_column("vendor", pa.array(["x", "y"] * 5).dictionary_encode())
    lake = lake_of(tmp_path / "lake", a=small("a"), b=newer, c=small("c"))
    names = lake.sql("from samples limit 0").column_names
    assert names.index("elastic_kpa") == len(SAMPLES) and "vendor" in names
    assert lake.sql("select sum(elastic_kpa) s from samples")["s"].to_pylist() == [22.5]
    assert lake.scan().select("elastic_kpa", "vendor").collect().null_count().row(0) == (20, 20)
    cohort = lake.cohort("elastic_kpa > 2 or dataset = 'a'")
    assert cohort.table(["elastic_kpa"])["elastic_kpa"].to_pylist() == [None] * 10 + [2.5, 3.0, 3.5, 4.0, 4.5]
    assert cohort.groups("vendor")[1] == ["unknown", "x", "y"]
    assert cohort.index(["vendor"]).columns["vendor"].to_pylist()[-2:] == ["x", "y"]


def test_the_shell_s_views_read_old_and_new_parts(tmp_path):
    newer = small("b").append_column("later", pa.array(range(10)))
    lake = lake_of(tmp_path / "lake", a=small("a").drop_columns(["burned_in"]), b=newer)
    code = (
        "import duckdb; con = duckdb.connect('catalog.duckdb', read_only=True);"
        "print(con.execute('select count(later), count(burned_in), count(*) from samples').fetchone())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=lake.root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(10, 0, 20)"


def test_a_column_of_another_type_is_refused_by_name(tmp_path):
    table = small("b")
    wrong = table.set_column(table.column_names.index("width"), "width", table["width"].cast(pa.string()))
    lake = lake_of(tmp_path / "lake", a=small("a"))
    write_part(lake.catalog_part("b"), wrong)
    for ask in (lambda: lake.sql("select 1"), lambda: lake.cohort("all"), lake.scan, lambda: write_duckdb(lake)):
        with pytest.raises(
            LakeError, match=r"(?s)b\.parquet.*'width' holds string, this version reads int32.*[Uu]pgrade"
        ):
            ask()


def test_two_later_parts_must_agree(tmp_path):
    lake = lake_of(tmp_path / "lake", a=small("a").append_column("later", pa.array(range(10))))
    write_part(lake.catalog_part("b"), small("b").append_column("later", pa.array(["x"] * 10)))
    with pytest.raises(LakeError, match="'later' holds int64"):
        lake.sql("select 1")


@pytest.mark.parametrize("name", ["split", "stored_mm_x"])
def test_a_part_can_not_bring_a_column_that_the_view_makes(tmp_path, name):
    lake = Lake.create(tmp_path / "lake")
    write_part(lake.catalog_part("a"), small("a").append_column(name, pa.array(["train"] * 10)))
    with pytest.raises(LakeError, match=name):
        lake.sql("select 1")


# --- a connection that is kept --------------------------------------------------------------------------------------


def test_a_lake_keeps_its_connection_until_the_catalog_changes(copy):
    first = copy.catalog
    assert copy.catalog is first and copy.sql("select count(*) n from samples")["n"].to_pylist() == [ROWS]
    write_part(copy.catalog_part("zz"), small("zz"))
    assert copy.sql("select count(*) n from samples")["n"].to_pylist() == [ROWS + 10]
    assert copy.catalog is not first
    copy.catalog_part("zz").unlink()
    assert copy.cohort("all").rows == ROWS


def test_a_part_replaced_under_a_query_is_asked_again(copy, monkeypatch):
    replaced = []
    query = Catalog.query

    def slow(self, *args):
        answer = query(self, *args)
        if not replaced:
            write_part(copy.catalog_part("busi"), small("busi"))
            replaced.append(True)
            self.check_unchanged()
        return answer

    monkeypatch.setattr(Catalog, "query", slow)
    assert copy.sql("select count(*) n from samples where dataset = 'busi'")["n"].to_pylist() == [10]


def test_a_lake_goes_to_another_process(fake):
    fake.sql("select 1")
    assert pickle.loads(pickle.dumps(fake)).cohort("has_mask").hash == fake.cohort("has_mask").hash


def test_several_threads_may_ask_one_lake(fake):
    from concurrent.futures import ThreadPoolExecutor

    opened = Lake(fake.root)
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda n: opened.cohort(f"width > {n}").rows, [600, 700, 800, 900] * 4))
    assert counts[:4] * 4 == counts


# --- a query that runs away -----------------------------------------------------------------------------------------

ENDLESS = "select count(*) from samples a, samples b, samples c where xor(xor(a.phash, b.phash), c.phash) = 3"


def test_a_query_is_given_up_when_its_time_is_over(fake):
    start = time.monotonic()
    with pytest.raises(QueryError, match=r"given up after 0\.5 s"):
        fake.sql(ENDLESS, timeout=0.5)
    assert time.monotonic() - start < 10
    assert fake.sql("select 1 as a", timeout=60).to_pylist() == [{"a": 1}]


def reads_parquet(process: int) -> bool:
    """Whether a process has one of the catalog's files open: its query has begun."""
    try:
        return any(str(link.readlink()).endswith(".parquet") for link in Path(f"/proc/{process}/fd").iterdir())
    except OSError:  # a file was closed, or the process ended, while we looked
        return False


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="sees in /proc when the query has begun")
def test_control_c_ends_a_query_with_one_line(fake):
    words = [sys.executable, "-m", "usdata.cli", "sql", ENDLESS, "--lake", str(fake.root)]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not reads_parquet(running.pid):
        time.sleep(0.05)
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == 130 and not out and len(err.splitlines()) == 1 and "Ctrl-C" in err


# --- while data sets come -------------------------------------------------------------------------------------------

READER = """
import json, sys, time
from pathlib import Path
from usdata.lake import Lake
lake, whole, stop, asked, seen = Lake(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]), 0, set()
while not stop.exists():
    found = lake.sql("select dataset, count(*) n from samples group by all").to_pylist()
    counts = {row["dataset"]: row["n"] for row in found}
    wrong = {d: n for d, n in counts.items() if n not in whole[d]}
    assert lake.cohort("organ is not null").rows >= sum(counts.values()) - 8  # the last one goes and comes back
    assert not wrong, wrong
    asked += 1
    seen |= set(counts)
print(json.dumps([asked, len(seen)]))
"""


def test_readers_see_whole_data_sets_while_others_come_and_change(copy, tmp_path):
    whole = {
        row["dataset"]: [row["n"]] for row in copy.sql("select dataset, count(*) n from samples group by 1").to_pylist()
    }
    folder = write_folder(tmp_path / "source")
    text = (tmp_path / "mine.yaml").read_text()
    names = [f"mine_{i}" for i in range(4)]
    words = [sys.executable, "-c", READER, str(copy.root), json.dumps(whole | {name: [7, 8] for name in names})]
    readers = [
        subprocess.Popen([*words, str(tmp_path / "stop")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    before = {p: p.stat() for p in copy.catalog_files()}
    for name in names:
        (tmp_path / "mine.yaml").write_text(text.replace("name: mine", f"name: {name}"))
        ingest(load_card(tmp_path / "mine.yaml"), folder, copy)
    (folder / "images/benign/n000.png").unlink()
    ingest(load_card(tmp_path / "mine.yaml"), folder, copy)  # the last one again, with an image less
    (tmp_path / "stop").touch()
    ended = [reader.communicate(timeout=60) for reader in readers]
    assert [err for _, err in ended] == [""] * 3
    assert all(json.loads(out)[0] > 0 and json.loads(out)[1] >= len(whole) for out, _ in ended)
    after = {p: p.stat() for p in before}  # and no other file was touched
    assert all(
        (a.st_ino, a.st_mtime_ns, a.st_size) == (b.st_ino, b.st_mtime_ns, b.st_size)
        for a, b in zip(before.values(), after.values(), strict=True)
    )
    assert copy.cohort("all").rows == ROWS + 8 * 3 + 7


def test_an_open_cohort_still_notices_that_its_data_set_was_replaced(copy):
    cohort = copy.cohort("has_mask")
    write_part(copy.catalog_part("busi"), small("busi"))
    for ask in (lambda: cohort.table(["organ"]), lambda: cohort.table(["split"]), cohort.index, lambda: cohort.hash):
        with pytest.raises(LakeError, match="changed after it was opened"):
            ask()


def test_a_summary_counts_as_the_table_does(fake):
    rows = fake.cohort("has_mask").summary()
    table = fake.cohort("has_mask").table(["dataset", "organ", "patient"])
    assert sum(row["images"] for row in rows) == sum(row["has_mask"] for row in rows) == len(table)
    camus = table.filter(pc.equal(table["dataset"], "camus"))
    assert next(r["patients"] for r in rows if r["dataset"] == "camus") == len(set(camus["patient"].to_pylist()))
