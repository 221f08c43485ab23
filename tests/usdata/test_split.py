"""A lake's split: made, kept as the lake grows, checked for leaks, published."""

import hashlib
import json
import re
import shlex
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes.datasets import echo, save
from fakes.folders import write_image
from fakes.split_rows import write_duplicates, write_rows

from ingest.card import get_card, load_card
from ingest.run import ingest
from usdata import cli, split, split_tell
from usdata.catalog import duckdb_is_fresh
from usdata.dedup import near_duplicate_groups
from usdata.errors import ConfigError, LakeError, UsdataError
from usdata.lake import Lake
from usdata.split import asked_for, check_split, export_split, make_split, splits_path
from usdata.split_file import read_split_file
from usdata.verify import verify

PROJECT = Path(__file__).resolve().parents[2]


def people(name, patients, images=3, **more):
    """`images` rows of each of some patients."""
    return [
        {"sample_id": f"{name}-{p:04d}{i}", "dataset": name, "patient": f"{name}-{p}", **more}
        for p in range(patients)
        for i in range(images)
    ]


def words(lake):
    table = lake.sql("select sample_id, split from samples")
    return dict(zip(table["sample_id"].to_pylist(), table["split"].to_pylist(), strict=True))


def by_patient(lake):
    table = lake.sql("select patient, split from samples group by all")
    found = dict(zip(table["patient"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert len(found) == len(table)
    return found


@pytest.fixture
def lake(tmp_path) -> Lake:
    """Sixty patients of three images, of two data sets."""
    lake = Lake.create(tmp_path / "lake")
    write_rows(lake, people("aa", 40) + people("bb", 20, label="benign"))
    return lake


@pytest.fixture
def usdata(monkeypatch, capsys):
    """Run `usdata ...` in this process: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["usdata", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


# --- made -------------------------------------------------------------------------------------------------------------


def test_every_image_gets_a_split_and_a_patient_has_one(lake):
    made = make_split(lake)
    assert made.written == splits_path(lake) and not made.leaks
    assert lake.sql('select count(*) n from samples where split is null or "group" is null')["n"].to_pylist() == [0]
    by_patient = lake.sql(
        'select patient, count(distinct split) n, count(distinct "group") g from samples group by all'
    )
    assert set(by_patient["n"].to_pylist()) == set(by_patient["g"].to_pylist()) == {1}
    assert set(words(lake).values()) == {"train", "val", "test"}


def test_the_same_lake_gives_the_same_bytes(lake):
    make_split(lake)
    first = splits_path(lake).read_bytes()
    assert make_split(lake).assigned.earlier.all()
    assert splits_path(lake).read_bytes() == first
    make_split(lake, anew=True)
    assert splits_path(lake).read_bytes() == first


def test_verify_and_the_shell_s_views_know_the_split(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    ingest(get_card("phantom"), None, lake, count=16)
    make_split(lake)
    assert verify(lake, 1) == []
    with duckdb.connect(
        str(lake.root / "catalog.duckdb"), read_only=True, config={"file_search_path": str(lake.root)}
    ) as c:
        assert c.sql("select count(*) from samples where split is null").fetchall() == [(0,)]


def test_a_split_killed_before_the_shell_s_views_were_written_is_seen_and_made_whole(lake, monkeypatch):
    def killed(lake):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(split, "write_duckdb", killed)
        make_split(lake)
    assert not duckdb_is_fresh(lake)
    before = words(lake)
    make_split(lake)
    assert duckdb_is_fresh(lake) and words(lake) == before


def test_what_comes_later_is_placed_and_nothing_else_moves(lake):
    make_split(lake, {"seed": "7"})
    before = words(lake)
    write_rows(lake, people("cc", 30) + people("aa", 50))
    assert [w for i, w in words(lake).items() if i not in before] == [None] * 120
    made = make_split(lake)
    assert made.settings.seed == "7"  # what is not asked for is as it was
    after = words(lake)
    assert {i: after[i] for i in before} == before and None not in after.values()


def test_other_settings_are_refused_unless_the_old_split_is_to_be_forgotten(lake):
    make_split(lake)
    before = words(lake)
    for changes in ({"seed": "2"}, asked_for(ratios="train=0.9,test=0.1"), asked_for(folds=4), {"official": "ignore"}):
        with pytest.raises(ConfigError, match="--anew"):
            make_split(lake, changes)
    assert words(lake) == before
    make_split(lake, asked_for(folds=4), anew=True)
    assert set(words(lake).values()) == {"fold0", "fold1", "fold2", "fold3"}


@pytest.mark.parametrize("changes", [{"balanced": True}, {"seed": "other"}, {}])
def test_a_data_set_read_anew_under_other_sample_ids_keeps_each_patient_where_it_was(lake, changes):
    published = [row | {"official_split": "test"} for row in people("cc", 20)]  # later versions don't say it
    write_rows(lake, published)
    make_split(lake, changes)
    before = by_patient(lake)
    for name, patients in (("aa", 40), ("cc", 20)):
        rows = [*people(name, patients), *people(name, patients + 1)[-3:]]
        write_rows(lake, [row | {"sample_id": f"{row['sample_id']}v2"} for row in rows])
    make_split(lake)
    after = by_patient(lake)
    assert {patient: after[patient] for patient in before} == before and len(after) == len(before) + 2
    assert len(check_split(lake).leaks) == 0


def test_a_patient_left_out_or_in_two_splits_gives_new_images_no_word(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    rows = people("cc", 1, images=4)
    write_rows(lake, [row | {"official_split": word} for row, word in zip(rows, ["train", "test"] * 2, strict=True)])
    make_split(lake, on_leaks="keep")
    write_rows(lake, [rows[0], rows[1], rows[2] | {"sample_id": "cc-new"}])
    make_split(lake, on_leaks="keep")
    assert words(lake) == {"cc-00000": "train", "cc-00001": "test", "cc-new": "left_out"}


def test_the_words_of_a_file_take_the_place_of_a_split_only_if_that_is_to_be_forgotten(lake, tmp_path):
    make_split(lake, {"seed": "one"})
    before = words(lake)
    (tmp_path / "one.csv").write_text("sample_id,split\naa-00000,train\n")
    with pytest.raises(ConfigError, match="may move"):
        make_split(lake, like=tmp_path / "one.csv")
    assert words(lake) == before
    assert make_split(lake, like=tmp_path / "one.csv", anew=True).settings.seed == "usdata"


def test_a_split_that_usdata_did_not_make_is_not_replaced_unasked(lake):
    make_split(lake)
    table = pq.read_table(splits_path(lake)).replace_schema_metadata(None)
    pq.write_table(table, splits_path(lake))
    with pytest.raises(ConfigError, match="not made by usdata split"):
        make_split(lake)
    make_split(lake, anew=True)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(50) + b"PAR1"])
def test_a_damaged_split_is_an_expected_error(lake, content):
    splits_path(lake).write_bytes(content)
    with pytest.raises(LakeError, match="damaged"):
        make_split(lake)


@pytest.mark.parametrize("note", ["[]", "{}", '{"shares": 1}', "nonsense", '{"shares": {"a": "x"}}'])
def test_a_damaged_note_of_the_settings_is_an_expected_error(lake, note):
    make_split(lake)
    table = pq.read_table(splits_path(lake)).replace_schema_metadata({"usdata.split": note})
    pq.write_table(table, splits_path(lake))
    with pytest.raises(LakeError, match="damaged"):
        make_split(lake)


def test_an_empty_lake_is_refused(tmp_path):
    with pytest.raises(LakeError, match="holds no image"):
        make_split(Lake.create(tmp_path / "lake"))


def test_a_dry_run_writes_nothing(lake):
    assert make_split(lake, dry_run=True).written is None
    assert not splits_path(lake).exists()


def test_near_duplicates_of_two_data_sets_stay_together(lake):
    write_duplicates(lake, {"aa-00000": "d1", "bb-00050": "d1", "bb-00060": "d2", "aa-00390": "d2"})
    make_split(lake)
    got = words(lake)
    assert got["aa-00000"] == got["bb-00052"] and got["bb-00061"] == got["aa-00391"]


# --- leaks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def leaky(tmp_path) -> Lake:
    """A published split that parts patient 3, a clip and two near-copies, and holds a byte-equal copy on both sides."""
    lake = Lake.create(tmp_path / "lake")
    rows = people("cc", 20, images=2)
    for i, row in enumerate(rows):
        row["official_split"] = "train" if i < 30 else "test"
        row["pixel_xxh"] = f"{i:032x}"
    rows[7]["official_split"] = "test"  # patient 3's second image
    rows[0] |= {"clip": "cc-clip"}
    rows[39] |= {"clip": "cc-clip"}
    rows[35]["pixel_xxh"] = rows[11]["pixel_xxh"]
    write_rows(lake, rows)
    write_duplicates(lake, {"cc-00100": "d", "cc-00180": "d", "cc-00040": "same side", "cc-00051": "same side"})
    return lake


PLANTED = {("patient", "cc-3"), ("clip", "cc-clip"), ("pixels", f"{11:032x}"), ("duplicate", "d")}


def test_planted_leaks_of_a_published_split_are_all_listed_and_no_others(leaky):
    checked = check_split(leaky, "official")
    assert {(leak.kind, leak.key) for leak in checked.leaks} == PLANTED
    patient = next(leak for leak in checked.leaks if leak.kind == "patient")
    assert patient.images == {"test": 1, "train": 1}
    assert patient.samples == {"test": ("cc-00031",), "train": ("cc-00030",)}
    assert checked.leaks.counts == {"patient": 1, "clip": 1, "duplicate": 1, "pixels": 1}
    assert checked.leaks.images == 8


def test_a_leaky_published_split_is_refused_then_kept_or_mended_as_asked(leaky):
    assert make_split(leaky).refused and not splits_path(leaky).exists()

    make_split(leaky, on_leaks="keep")
    official = dict(zip(*leaky.sql("select sample_id, official_split from samples").to_pydict().values(), strict=True))
    assert words(leaky) == official
    assert {(leak.kind, leak.key) for leak in check_split(leaky).leaks} == PLANTED

    mended = make_split(leaky, on_leaks="drop", anew=True)
    assert not check_split(leaky).leaks
    after = words(leaky)
    assert {i for i, word in official.items() if word == "test"} == {i for i, word in after.items() if word == "test"}
    assert set(after.values()) == {"train", "test", "left_out"}
    assert int(mended.assigned.left_out.sum()) == sum(word == "left_out" for word in after.values())
    assert not make_split(leaky).refused  # what was left out stays out


def test_two_published_groups_that_turn_out_to_be_one_are_said_and_not_moved(lake):
    make_split(lake)
    before = words(lake)
    train = next(i for i, word in before.items() if word == "train")
    test = next(i for i, word in before.items() if word == "test")
    write_duplicates(lake, {train: "d", test: "d"})
    made = make_split(lake)
    assert made.refused and [leak.kind for leak in made.leaks] == ["duplicate"]
    assert words(lake) == before
    make_split(lake, on_leaks="keep")
    assert words(lake) == before
    make_split(lake, on_leaks="drop")
    after = words(lake)
    assert after[test] == "test" and after[train] == "left_out"
    assert {i for i in before if before[i] != after[i]} == {i for i in before if i[:-1] == train[:-1]}


def test_a_chain_over_an_image_of_no_split_is_a_leak_of_the_group(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    write_rows(lake, people("aa", 2, images=2))
    write_duplicates(lake, {"aa-00001": "d", "aa-00010": "d"})
    path = tmp_path / "split.csv"
    path.write_text("sample_id,split\naa-00000,train\naa-00010,test\naa-00001,\n")
    [leak] = check_split(lake, path).leaks
    assert (leak.kind, leak.images) == ("group", {"test": 1, "train": 1})
    assert leak.key in ("patient:aa-0", "patient:aa-1")
    assert check_split(lake, path).unassigned == 2


# --- real and drawn pictures ------------------------------------------------------------------------------------------


def dedup(lake):
    """Near-duplicates by pixels, as the table of curation has them."""
    cohort = lake.cohort("all")
    groups = near_duplicate_groups(cohort.images())
    sizes = np.bincount(groups)
    ids = cohort.ids.to_pylist()
    write_duplicates(lake, {i: f"d{g}" for i, g in zip(ids, groups.tolist(), strict=True) if sizes[g] > 1})
    return dict(zip(ids, groups.tolist(), strict=True))


CARD = """
name: copies
title: A fake with planted copies
citation: none
licence: CC0-1.0
commercial_use: "yes"
redistribution: "yes"
deid_profile: public
defaults: {organ: breast, probe: linear}
layout:
  image: '(?P<split>train|test)/(?P<label>benign|malignant)/(?P<stem>[^/]+)\\.png'
labels: {label: [benign, malignant]}
"""


def test_planted_copies_in_drawn_files_stay_together_and_are_found_in_the_published_split(tmp_path):
    files = tmp_path / "files"
    for i in range(24):
        place = files / ("train", "test")[i % 4 == 3] / ("benign", "malignant")[i % 2] / f"n{i:02d}.png"
        save(np.repeat(np.repeat(echo(16, 16, seed=i), 16, 0), 16, 1), place)
    noise = np.random.default_rng(0).integers(-2, 3, (256, 256))
    picture = np.repeat(np.repeat(echo(16, 16, seed=4), 16, 0), 16, 1)
    save(picture, files / "test/benign/copy.png")  # byte-equal
    save((picture + noise).clip(0, 255).astype(np.uint8), files / "test/malignant/near.png")  # a near-copy, other label
    (tmp_path / "copies.yaml").write_text(CARD)
    lake = Lake.create(tmp_path / "lake")
    ingest(load_card(tmp_path / "copies.yaml"), files, lake)
    same = dedup(lake)

    leaks = list(check_split(lake, "official").leaks)
    assert sorted(leak.kind for leak in leaks) == ["duplicate", "pixels"]
    [leak] = [leak for leak in leaks if leak.kind == "duplicate"]
    assert leak.images == {"test": 2, "train": 1}

    make_split(lake, {"official": "ignore"})
    got = words(lake)
    for number in set(same.values()):
        assert len({got[i] for i in same if same[i] == number}) == 1
    assert not check_split(lake).leaks


def test_busi_s_sample_is_split_by_near_duplicates_for_it_has_no_patients(real_data, tmp_path, capsys):
    lake = Lake.create(tmp_path / "lake")
    ingest(get_card("busi"), real_data / "busi", lake)
    same = dedup(lake)
    made = make_split(lake)
    got = words(lake)
    assert len(got) == 45 and len(made.groups) == len(set(same.values()))
    for number in set(same.values()):
        assert len({got[i] for i in same if same[i] == number}) == 1
    assert not check_split(lake).leaks
    split_tell.tell_split(made, as_json=True)
    [row] = [r for r in map(json.loads, capsys.readouterr().out.splitlines()) if r["kind"] == "dataset"]
    assert row["patients"] == 0 and row["without"] == 45 and "no patient ids" in row["note"]


# --- published --------------------------------------------------------------------------------------------------------


def test_a_published_split_says_how_it_was_made_and_has_the_hash_of_its_lines(lake, tmp_path):
    make_split(lake, {"seed": "paper 1"})
    images, digest = export_split(lake, tmp_path / "split.csv")
    text = (tmp_path / "split.csv").read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[:3] == ["# usdata split 1", "# seed: paper 1", "# ratios: train=0.8,val=0.1,test=0.1"]
    data = text.split("sample_id,group,split\n")[1]
    assert hashlib.sha256(data.encode()).hexdigest() == digest and f"# sha256: {digest}" in head
    assert data.splitlines() == sorted(data.splitlines()) and images == 180
    with pytest.raises(ConfigError, match="there already"):
        export_split(lake, tmp_path / "split.csv")
    before = (tmp_path / "split.csv").read_bytes()
    export_split(lake, tmp_path / "split.csv", overwrite=True)
    assert (tmp_path / "split.csv").read_bytes() == before


def test_a_published_split_is_taken_over_by_another_lake_and_extended(lake, tmp_path):
    make_split(lake, asked_for(ratios="train=0.5,test=0.5", seed="old"))
    export_split(lake, tmp_path / "split.csv")
    before = words(lake)
    other = Lake.create(tmp_path / "other")
    write_rows(other, people("aa", 60) + people("cc", 5))
    made = make_split(other, like=tmp_path / "split.csv")
    assert made.settings.seed == "old"
    got = words(other)
    assert all(got[i] == before[i] for i in got if i in before) and None not in got.values()


def test_a_file_with_other_parts_than_the_ratios_is_refused(lake, tmp_path):
    (tmp_path / "mine.csv").write_text("sample_id,split\naa-00000,teaching\naa-00010,exam\n")
    with pytest.raises(ConfigError, match="--ratios exam=SHARE,teaching=SHARE"):
        make_split(lake, like=tmp_path / "mine.csv")
    make_split(lake, asked_for(ratios="teaching=0.9,exam=0.1"), like=tmp_path / "mine.csv")
    assert words(lake)["aa-00012"] == "exam"


def test_a_changed_line_of_a_published_split_is_found(lake, tmp_path):
    make_split(lake)
    export_split(lake, tmp_path / "split.csv")
    text = (tmp_path / "split.csv").read_text()
    (tmp_path / "split.csv").write_text(text.replace(",val\n", ",train\n", 1))
    with pytest.raises(ConfigError, match="not as it was published"):
        check_split(lake, tmp_path / "split.csv")


def test_names_with_commas_and_quotes_come_back(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    rows = people("aa", 3)
    for row in rows:
        row["patient"] = f'a "{row["patient"]}", \n and more'
    write_rows(lake, rows)
    make_split(lake)
    export_split(lake, tmp_path / "split.csv")
    assert len(read_split_file(tmp_path / "split.csv").ids) == 9
    assert not check_split(lake, tmp_path / "split.csv").leaks


BAD = {
    "no such column": "a,b\n1,2\n",
    "empty": "",
    "only a head": "# usdata split 1",
    "a sample twice": "sample_id,split\naa-00000,train\naa-00000,test\n",
    "a line without a sample": "sample_id,split\n,train\n",
    "too many cells": "sample_id,split\naa-00000,train,test\n",
    "other samples": "sample_id,split\nzz,train\n",
    "no words": "sample_id,split\naa-00000,\n",
    "two columns of words": "sample_id,split,split\naa-00000,train,test\n",
    "a quote that swallows lines": 'sample_id,split\naa-00000,"train\naa-00001,test\n',
    "not text": b"sample_id,split\n\xff\xfe,train\n",
    "zeros": bytes(300),
    "a wrong hash": "# sha256: 12\nsample_id,split\naa-00000,train\n",
    "open quotes": 'sample_id,split\n"aa-00000,train\n',
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_file_that_is_no_split_is_refused(lake, tmp_path, case):
    content = BAD[case]
    (tmp_path / "bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError):
        check_split(lake, tmp_path / "bad.csv")


@pytest.mark.parametrize(
    "text",
    [
        "sample_id,split\naa-00000,train\naa-00001,test\n",
        "\ufeffsample_id,split\r\naa-00000,train\r\naa-00001,test\r\n",
        "split,note,sample_id\ntrain,,aa-00000\ntest,x,aa-00001\n",
        "sample_id, split\naa-00000, train\naa-00001 ,test\n".replace(", split", ",split"),
        '"sample_id","split"\n"aa-00001","test"\n\n"aa-00000","train"\n',
    ],
)
def test_a_leak_is_found_however_the_file_is_written(lake, tmp_path, text):
    (tmp_path / "x.csv").write_text(text, newline="")
    checked = check_split(lake, tmp_path / "x.csv")
    assert checked.leaks.counts == {"patient": 1} and checked.unknown == 0


def test_spaces_around_a_word_are_no_leak(lake, tmp_path):
    (tmp_path / "x.csv").write_text("sample_id,split\naa-00000, train\naa-00001,train \naa-00002, \n")
    assert len(check_split(lake, tmp_path / "x.csv").leaks) == 0


def test_a_split_by_other_means_needs_no_head(lake, tmp_path):
    lines = ["split,note,sample_id", *(f"{'test' if i % 2 else 'train'},x,aa-000{i % 10}0" for i in range(10))]
    (tmp_path / "mine.csv").write_text("\ufeff" + "\r\n".join(lines))
    checked = check_split(lake, tmp_path / "mine.csv")
    assert not checked.leaks and checked.images == 10 and checked.unassigned == 170 and checked.unknown == 0


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_the_verb_splits_checks_and_publishes(usdata, lake, tmp_path):
    where = ("--lake", str(lake.root))
    code, out, err = usdata("split", *where)
    assert code == 0 and "aa" in out and "First:  usdata dedup" in err
    code, out, err = usdata("split", "--check", *where)
    assert code == 0 and "No leak among 180 images" in err
    code, out, err = usdata("split", "--export", str(tmp_path / "s.csv"), *where)
    assert code == 0 and "sha256" in err
    code, out, err = usdata("split", "--check", str(tmp_path / "s.csv"), "--json", *where)
    assert code == 0 and json.loads(out)["leaks"] == {}
    assert "not searched for duplicates" in json.loads(out)["stale"]
    code, out, err = usdata("split", "--json", *where)
    last = json.loads(out.splitlines()[-1])
    assert last["written"] and "not searched for duplicates" in last["stale"] and "First:  usdata dedup" in err
    code, out, err = usdata("split", str(tmp_path / "s.csv"), *where)
    assert code == 1 and "--check" in err


def test_the_verb_ends_with_1_when_there_are_leaks(usdata, leaky):
    where = ("--lake", str(leaky.root))
    code, out, err = usdata("split", *where, "--json")
    assert code == 1 and "Nothing was written" in err and "--leaks drop" in err
    rows = [json.loads(line) for line in out.splitlines()]
    assert {(row["leak"], row["key"]) for row in rows if row["kind"] == "leak"} == PLANTED
    code, out, err = usdata("split", "--check", "official", *where)
    assert code == 1 and "cc-00031" in out and "4 leaks" in err
    code, out, err = usdata("split", "--leaks", "drop", *where)
    assert code == 0 and "left out" in err
    code, out, err = usdata("split", "--check", *where)
    assert code == 0


def test_a_check_without_a_split_says_how_to_make_one(lake):
    with pytest.raises(ConfigError, match="usdata split"):
        check_split(lake)
    with pytest.raises(ConfigError, match="published"):
        check_split(lake, "official")
    with pytest.raises(ConfigError, match="usdata split"):
        export_split(lake, lake.root / "x.csv")
    with pytest.raises(ConfigError, match="Folds are equal"):
        asked_for(ratios="a=0.5,b=0.5", folds=3)


def test_of_each_data_set_the_report_says_whose_patients_are_known(lake, capsys):
    rows = [{"sample_id": f"nn-{i}", "dataset": "nn"} for i in range(5)]
    strays = [{"sample_id": "pp-x", "dataset": "pp"}, {"sample_id": "pp-y", "dataset": "pp"}]
    strays[1] |= {"patient": "pp-of a study", "patient_known": False}
    write_rows(lake, rows + people("pp", 4) + strays)
    split_tell.tell_split(make_split(lake), as_json=True)
    told = {r["dataset"]: r for r in map(json.loads, capsys.readouterr().out.splitlines()) if r["kind"] == "dataset"}
    assert (told["aa"]["patients"], told["aa"]["without"], told["aa"]["note"]) == (40, 0, "")
    assert (told["nn"]["patients"], told["nn"]["groups"]) == (0, 5) and "no patient ids" in told["nn"]["note"]
    assert (told["pp"]["patients"], told["pp"]["without"]) == (4, 2) and "some images" in told["pp"]["note"]
    assert sum(told["aa"][word]["groups"] for word in ("train", "val", "test")) == 40


def test_a_remote_or_read_only_lake_is_not_written(lake):
    lake.remote = object()
    with pytest.raises(UsdataError, match="remote"):
        make_split(lake)


def test_copies_within_one_folder_are_no_leak_of_their_own(tmp_path):
    for i in range(6):
        write_image(tmp_path / "files" / "images" / "breast" / f"{i}.png", seed=i % 3)
    lake = Lake.create(tmp_path / "lake")
    card = tmp_path / "o.yaml"
    card.write_text(
        CARD.replace("(?P<split>train|test)/(?P<label>benign|malignant)", "images/breast").split("labels:")[0]
    )
    ingest(load_card(card), tmp_path / "files", lake)
    made = make_split(lake)
    assert len(made.groups) == 3 and not made.leaks


def test_the_commands_of_the_page_run_as_printed(usdata, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(Lake.create("lake"), people("aa", 30, official_split="train") + people("bb", 8))
    [block] = re.findall(r"```bash\n(.*?)```", (PROJECT / "docs" / "splits.md").read_text("utf-8"), re.S)
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        assert usdata(*command[1:])[0] == 0, command
