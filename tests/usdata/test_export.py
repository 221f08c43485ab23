"""Exports: the same values for other programs, the same bytes each time, whole or not at all, licences never silent."""

import csv
import errno
import gzip
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes.lakes import add_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ingest.card import get_card
from ingest.run import ingest
from usdata import cli, export, export_coco, png
from usdata.cohort import Cohort
from usdata.errors import ConfigError, LakeError, QueryError
from usdata.export import parts, write_table
from usdata.export_coco import write_coco
from usdata.export_objects import objects_of
from usdata.lake import Lake

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def two_lesions() -> np.ndarray:
    """Class 1 twice, one with a hole; class 2 in the corner of the last column."""
    mask = np.zeros((256, 256), np.uint8)
    mask[10:30, 20:60] = 1
    mask[15:20, 30:40] = 0
    mask[100, 100] = mask[101, 101] = 1  # touch by a corner: one object of two pixels
    mask[200:, 255] = 2
    return mask


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    """Phantoms, and a data set with odd words, whose licence says no; its images are at `lake.clinic`."""
    lake = Lake.create(tmp_path_factory.mktemp("export") / "lake")
    ingest(get_card("phantom"), None, lake, count=24)
    closed = {"licence": "custom", "commercial_use": "no", "redistribution": "no", "organ_group": "neck"}
    thyroid = closed | {"organ": "thyroid", "mask_classes": ["background", "lesion", "vessel"]}
    rows = [
        thyroid | {"label": "a,b", "phash": 2**64 - 1, "pixel_mm_x": 1 / 3, "pixel_mm_y": 0.1, "patient": "p 1"},
        thyroid | {"label": 'say "é"', "phash": 2**63 + 1, "targets": '{"size_mm": 0.30000000000000004}'},
        thyroid | {"label": "NA", "target": 5e-324, "frame": 0},
        closed | {"label": "", "target": 1e300, "organ": "thyroid"},
        closed | {"label": None, "target": 0.1 + 0.2, "labels": '{"a_lines": "yes"}'},
        closed | {"label": "two\nlines", "organ": "thyroid", "licence": None},
        closed | {"label": "\r", "organ": "thyroid", "target": 40.0},
    ]
    masks = [two_lesions(), np.zeros((256, 256), np.uint8), np.full((256, 256), 2, np.uint8)]
    add_dataset(lake, "clinic", rows, [*masks, None, None, None, None])
    return lake


@pytest.fixture
def usdata(monkeypatch, capsys, lake):
    """Run `usdata export ... --lake LAKE` in this process: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["usdata", "export", *map(str, words), "--lake", str(lake.root)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


# --- tables -----------------------------------------------------------------------------------------------------------


def expected(lake: Lake, columns: list[str] | None = None) -> pl.DataFrame:
    """What a reader should find: the catalog's own values, lists as JSON text."""
    names = columns or lake.sql("from samples limit 0").column_names
    frame = pl.DataFrame(pl.from_arrow(lake.cohort("all").table(names)))
    lists = [name for name in names if frame.schema[name] == pl.List(pl.String)]
    as_text = [
        pl.Series(name, [None if v is None else json.dumps(v, separators=(",", ":")) for v in frame[name].to_list()])
        for name in lists
    ]
    return frame.with_columns(as_text)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_polars_reads_every_column_of_the_csv_as_it_is_in_the_catalog(lake, tmp_path, ending):
    written = write_table(lake.cohort(), tmp_path / f"all{ending}")
    wanted = expected(lake)
    found = pl.read_csv(written.path, schema=wanted.schema)
    assert written.samples == len(found) == 31
    assert found["phash"].max() == 2**64 - 1
    assert found.equals(wanted)  # a null is a null, an empty text is one, floats to the last bit


def test_pandas_reads_the_same_when_told_the_types(lake, tmp_path):
    path = write_table(lake.cohort(), tmp_path / "all.csv").path
    columns = ["sample_id", "phash", "label", "target", "mask_classes", "pixel_mm_x", "has_mask"]
    wanted = expected(lake, columns)
    found = pd.read_csv(path, dtype={"phash": "UInt64"}, keep_default_na=False, na_values=[""])[columns]
    assert found["phash"].tolist() == wanted["phash"].to_list()
    assert found["has_mask"].tolist() == wanted["has_mask"].to_list()
    for name in ("target", "pixel_mm_x"):
        assert found[name].to_numpy().tobytes() == wanted[name].fill_null(float("nan")).to_numpy().tobytes()
    for name in ("sample_id", "label", "mask_classes"):  # pandas has no difference of null and empty text
        assert found[name].fillna("").tolist() == wanted[name].fill_null("").to_list()


def test_pythons_own_csv_module_reads_as_many_rows_and_fields(lake, tmp_path):
    path = write_table(lake.cohort(), tmp_path / "one.csv", ["duplicate_group", "label"]).path
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 31 and list(rows[0]) == ["sample_id", "duplicate_group", "label"]
    assert {"a,b", 'say "é"', "NA", "two\nlines", "\r"} <= {row["label"] for row in rows}


def test_the_parquet_file_keeps_every_type(lake, tmp_path):
    path = write_table(lake.cohort(), tmp_path / "all.parquet").path
    names = lake.sql("from samples limit 0").column_names
    assert pl.read_parquet(path).equals(pl.from_arrow(lake.cohort().table(names)))
    assert str(pq.read_schema(path).field("mask_classes").type).startswith("list<")


@pytest.mark.parametrize("ending", export.TABLES)
def test_the_same_cohort_gives_the_same_bytes(lake, tmp_path, ending):
    first = write_table(lake.cohort("organ = 'thyroid'"), tmp_path / f"a{ending}").path
    again = write_table(lake.cohort("organ = 'thyroid'"), tmp_path / f"b{ending}").path
    assert first.read_bytes() == again.read_bytes()


def test_the_csv_is_the_same_for_any_size_of_the_parts(lake, tmp_path, monkeypatch):
    whole = write_table(lake.cohort(), tmp_path / "whole.csv").path.read_bytes()
    monkeypatch.setattr(export, "PART_ROWS", 5)
    assert write_table(lake.cohort(), tmp_path / "parts.csv").path.read_bytes() == whole
    assert gzip.decompress(write_table(lake.cohort(), tmp_path / "parts.csv.gz").path.read_bytes()) == whole


@pytest.mark.parametrize("rows", [1, 4, 1000])
@pytest.mark.parametrize("condition", ["all", "organ = 'thyroid' or label is null", "has_mask -- with a remark"])
def test_parts_together_are_the_cohort_in_its_order(lake, rows, condition):
    cohort = lake.cohort(condition)
    tables = list(parts(cohort, ["organ", "sample_id", "stored_mm_x"], rows))
    assert pa.concat_tables(tables).equals(cohort.table(["organ", "sample_id", "stored_mm_x"]).combine_chunks())
    assert [i for t in tables for i in t["sample_id"].to_pylist()] == cohort.ids.to_pylist()
    assert [len(t) for t in tables[:-1]] == [rows] * (len(tables) - 1) and 0 < len(tables[-1]) <= rows


def test_a_condition_that_draws_lots_is_refused_and_leaves_nothing(lake, tmp_path):
    cohort = lake.cohort("random() < 0.5 or dataset = 'clinic'")
    with pytest.raises(QueryError, match="other samples each time"):
        write_table(cohort, tmp_path / "x.csv")
    assert not list(tmp_path.iterdir())


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["csv", "-o", "x.csv", "--cohort", "organ = 'eye'"], "is empty"),
        (["csv", "-o", "x.xlsx"], ".csv.gz, .parquet"),
        (["csv", "-o", "x.parqet"], "Did you mean '.parquet'"),
        (["csv", "-o", ".csv"], "ends in none of"),
        (["csv", "-o", "x"], "ends in none of"),
        (["csv", "-o", "x.csv", "--columns", "organ,phahs"], "Did you mean 'phash'"),
        (["csv", "-o", "x.csv", "--columns", "organ,organ"], "named twice"),
        (["csv", "-o", "none/x.csv"], "No folder"),
        (["csv", "-o", "there.csv"], "--overwrite"),
        (["coco", "-o", "x.json", "--cohort", "organ = 'eye'"], "is empty"),
        (["coco", "-o", "x.csv"], "a .json file or a folder"),
        (["coco", "-o", "x.json", "--images"], "need a folder"),
        (["coco", "-o", "x", "--columns", "orgn"], "Did you mean 'organ'"),
        (["coco", "-o", "none/x"], "No folder"),
        (["coco", "-o", ".."], "names no file"),
        (["coco", "-o", "full"], "--overwrite"),
        (["coco", "-o", "full", "--overwrite"], "no export wrote: thesis.txt"),
        (["coco", "-o", "x.json", "--like", "none.json"], "no COCO file"),
        (["coco", "-o", "x.json", "--like", "there.csv"], "no COCO file"),
    ],
)
def test_what_can_not_be_is_refused_in_one_message_and_nothing_is_touched(
    usdata, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("mine")
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("mine")
    code, out, err = usdata(*words)
    assert (code, out) == (1, "") and message in err
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["full", "there.csv", "thesis.txt"]
    assert Path("there.csv").read_text() == "mine"


@pytest.mark.parametrize("words", [["cocoa", "-o", "x"], ["coco"], ["csv"], ["coco", "-o", "x", "--per", "pixel"]])
def test_an_unknown_format_or_choice_is_wrong_usage(usdata, words):
    code, _, err = usdata(*words)
    assert code == 2 and err


def test_an_export_into_the_lake_is_refused_as_it_would_become_a_part_of_it(usdata, lake):
    code, _, err = usdata("csv", "-o", lake.root / "catalog" / "samples" / "x.parquet")
    assert code == 1 and "inside the lake" in err
    assert lake.datasets() == ["clinic", "phantom"]


@pytest.mark.parametrize("kind", ["csv", "json", "folder"])
def test_a_full_disk_leaves_the_earlier_export_as_it_was(lake, tmp_path, monkeypatch, kind):
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> Path:
        if kind == "csv":
            return write_table(lake.cohort(), tmp_path / "x.csv", overwrite=True).path
        out = tmp_path / ("x.json" if kind == "json" else "x")
        return write_coco(lake.cohort(), out, overwrite=True).path

    path = write()
    before = path.read_bytes() if path.is_file() else (path / "annotations.json").read_bytes()
    monkeypatch.setattr(export, "_write_csv", fill)
    monkeypatch.setattr(export_coco, "_write_list", fill)
    with pytest.raises(LakeError, match="No space left") as caught:
        write()
    assert "-o" in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]
    assert before == (path.read_bytes() if path.is_file() else (path / "annotations.json").read_bytes())


def test_an_empty_folder_is_no_obstacle(lake, tmp_path):
    (tmp_path / "x").mkdir()
    write_coco(lake.cohort(), tmp_path / "x", masks=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["LICENCES.csv", "annotations.json", "masks"]


# --- what is never removed --------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def earlier(lake, tmp_path) -> Path:
    """An export of the thyroids with images and masks, and nothing else in its folder."""
    (tmp_path / "out").mkdir()
    return write_coco(lake.cohort("organ = 'thyroid'"), tmp_path / "out" / "x", images=True, masks=True).path


@pytest.mark.parametrize(
    ("stranger", "named"),
    [
        ("notes.txt", "notes.txt"),
        ("images/mine.png", "images/mine.png"),
        ("masks/clinic-0000000000000000.png.txt", "masks/clinic-"),
        ("images/deeper/clinic-0000000000000000.png", "images/deeper"),
        ("masks2/a.png", "masks2"),
    ],
)
def test_overwrite_refuses_a_folder_with_one_file_that_no_export_wrote(usdata, earlier, stranger, named):
    (earlier / stranger).parent.mkdir(exist_ok=True)
    (earlier / stranger).write_text("mine")
    before = contents(earlier.parent)
    code, _, err = usdata("coco", "-o", earlier, "--overwrite")
    assert code == 1 and f"no export wrote: {named}" in err
    assert contents(earlier.parent) == before


def test_overwrite_refuses_a_users_own_images_and_masks(usdata, tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "study" / name).mkdir(parents=True)
        (tmp_path / "study" / name / "patient-1.png").write_text("mine")
    before = contents(tmp_path)
    code, _, err = usdata("coco", "-o", tmp_path / "study", "--overwrite")
    assert code == 1 and "no export wrote" in err
    (tmp_path / "study" / "annotations.json").write_text('{"info": {"version": "of mine"}, "images": []}')
    code, _, err = usdata("coco", "-o", tmp_path / "study", "--overwrite")
    assert code == 1 and "no export wrote: annotations.json" in err
    (tmp_path / "study" / "annotations.json").unlink()
    assert contents(tmp_path) == before


def test_overwrite_refuses_a_link_inside_an_export(earlier, lake, tmp_path):
    elsewhere = earlier.rename(tmp_path / "out" / "elsewhere") / "images"
    shutil.copytree(elsewhere.parent, earlier, ignore=shutil.ignore_patterns("images"))
    (earlier / "images").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="no export wrote: images"):
        write_coco(lake.cohort(), earlier, overwrite=True)
    assert list(elsewhere.iterdir())


def test_a_file_that_a_user_adds_while_an_export_runs_is_not_removed(earlier, lake, monkeypatch):
    write = export_coco._Job.write

    def add(*words: Any) -> None:
        write(*words)
        (earlier / "images" / "mine.png").write_text("mine")

    monkeypatch.setattr(export_coco._Job, "write", add)
    before = contents(earlier.parent)
    with pytest.raises(ConfigError, match=r"images/mine\.png"):
        write_coco(lake.cohort(), earlier, images=True, overwrite=True)
    assert contents(earlier.parent) == before | {"x/images/mine.png": b"mine"}


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_that_the_lake_is_in_is_refused(tmp_path, lake, link):
    home = tmp_path / "home"
    shutil.copytree(lake.root, home / "images" / "lake")
    (home / "annotations.json").write_text("{}")
    if link:
        (tmp_path / "link").symlink_to(home)
    before = contents(home)
    with pytest.raises(ConfigError, match=r"The lake .* is inside"):
        write_coco(Lake(home / "images" / "lake").cohort(), tmp_path / "link" if link else home, overwrite=True)
    assert contents(home) == before


@pytest.mark.parametrize("kind", ["csv", "json", "folder"])
def test_a_users_file_with_the_name_of_a_draft_stays(lake, tmp_path, kind):
    out = tmp_path / {"csv": "x.csv", "json": "x.json", "folder": "x"}[kind]
    for ending in ("tmp", "old"):
        (tmp_path / f".{out.name}.{ending}").mkdir()
        (tmp_path / f".{out.name}.{ending}" / "thesis.txt").write_text("mine")
    before = contents(tmp_path)
    (write_table if kind == "csv" else write_coco)(lake.cohort(), out)
    after = contents(tmp_path)
    assert before.items() < after.items()
    assert all(name.split("/")[0] == out.name for name in after.keys() - before.keys())


def test_a_folder_in_the_way_of_the_earlier_export_is_refused_before_any_work(earlier, lake):
    (earlier.parent / ".x.old").mkdir()
    (earlier.parent / ".x.old" / "thesis.txt").write_text("mine")
    before = contents(earlier.parent)
    with pytest.raises(ConfigError, match=r"\.x\.old is in the way"):
        write_coco(lake.cohort(), earlier, overwrite=True)
    assert contents(earlier.parent) == before


# --- two at once, and kills -------------------------------------------------------------------------------------------


def run_inside(monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, other: Callable[[], Any]) -> None:
    """The next call of `holder.name` has `other` run from begin to end when it is through, but for its file."""
    whole = getattr(holder, name)

    def both(*words: Any) -> None:
        monkeypatch.setattr(holder, name, whole)
        whole(*words)
        other()

    monkeypatch.setattr(holder, name, both)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["csv", "json", "folder"])
def test_two_exports_to_one_path_at_once_leave_one_of_them_whole(lake, tmp_path, monkeypatch, kind, overwrite):
    name = {"csv": "x.csv", "json": "x.json", "folder": "x"}[kind]
    few, many = lake.cohort("organ = 'thyroid'"), lake.cohort()

    def write(cohort: Cohort, out: Path, again: bool = False) -> None:
        if kind == "csv":
            write_table(cohort, out, overwrite=again)
        else:
            write_coco(cohort, out, images=kind == "folder", overwrite=again)

    wanted = {}
    for key, cohort in (("few", few), ("many", many)):
        (tmp_path / key).mkdir()
        write(cohort, tmp_path / key / name)
        wanted[key] = contents(tmp_path / key)
    (tmp_path / "out").mkdir()
    place = (export, "_write_csv") if kind == "csv" else (export_coco._Job, "write")
    run_inside(monkeypatch, *place, lambda: write(few, tmp_path / "out" / name, overwrite))
    if overwrite:
        write(many, tmp_path / "out" / name, overwrite)
        assert contents(tmp_path / "out") == wanted["many"]  # the last to end
    else:
        with pytest.raises(ConfigError, match="there already"):
            write(many, tmp_path / "out" / name)
        assert contents(tmp_path / "out") == wanted["few"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]


class Killed(BaseException):
    """The process ended here."""


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_kill_between_the_renames_loses_nothing(earlier, lake, tmp_path, monkeypatch, step):
    before = contents(earlier)
    rename, done = Path.rename, []

    def rename_or_die(path: Path, target: Path) -> Path:
        done.append(path)
        if len(done) >= step:
            raise Killed  # nothing more is renamed: not even by what cleans up
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", rename_or_die)
        write_coco(lake.cohort(), earlier, overwrite=True)
    left = sorted(p.name for p in earlier.parent.iterdir())
    assert left == {1: ["x"], 2: [".x.old"], 3: [".x.old", "x"]}[step]
    assert contents(earlier.parent / left[0]) == before
    if step < 3:  # what comes next finds the earlier export in its place, even if it does not get far
        with pytest.raises(ConfigError, match="there already"):
            write_coco(lake.cohort(), earlier)
        assert contents(earlier) == before
    write_coco(lake.cohort("dataset = 'phantom'"), earlier, overwrite=True)
    assert [p.name for p in earlier.parent.iterdir()] == ["x"]
    assert len(json.loads((earlier / "annotations.json").read_bytes())["images"]) == 24


def test_a_second_rename_that_fails_puts_the_earlier_export_back(earlier, lake, monkeypatch):
    before = contents(earlier)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(LakeError, match="No space left"):
        write_coco(lake.cohort(), earlier, overwrite=True)
    assert contents(earlier) == before
    assert [p.name for p in earlier.parent.iterdir()] == ["x"]


def test_another_program_that_takes_the_place_in_the_last_moment_is_told(lake, tmp_path, monkeypatch):
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "thesis.txt").write_text("mine")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(LakeError, match="meanwhile"):
        write_coco(lake.cohort(), tmp_path / "x")
    assert contents(tmp_path) == {"x/thesis.txt": b"mine"}


@pytest.mark.parametrize("kind", ["csv", "json", "folder"])
def test_a_link_stays_a_link_and_what_it_points_to_is_written(lake, tmp_path, kind):
    name = {"csv": "x.csv", "json": "x.json", "folder": "x"}[kind]
    write: Callable[..., Any] = write_table if kind == "csv" else write_coco
    (tmp_path / "disk").mkdir()
    link = tmp_path / name
    link.symlink_to(tmp_path / "disk" / name)
    write(lake.cohort(), link)  # it points to nothing yet
    first = contents(tmp_path / "disk")
    write(lake.cohort("organ = 'thyroid'"), link, overwrite=True)
    assert link.is_symlink() and link.readlink() == tmp_path / "disk" / name
    assert contents(tmp_path / "disk").keys() == first.keys() and contents(tmp_path / "disk") != first
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["disk", name])
    assert [p.name for p in (tmp_path / "disk").iterdir()] == [name]


def test_an_export_may_be_read_by_whom_the_umask_lets(lake, tmp_path):
    (tmp_path / "plain").touch()
    (tmp_path / "plain-folder").mkdir()
    write_table(lake.cohort(), tmp_path / "x.csv")
    write_coco(lake.cohort(), tmp_path / "x")
    assert (tmp_path / "x.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain-folder").stat().st_mode


# --- licences ---------------------------------------------------------------------------------------------------------


def test_a_licence_that_forbids_passing_on_is_named_on_stderr_in_the_json_and_in_a_table(usdata, tmp_path):
    code, _, err = usdata("coco", "-o", tmp_path / "x", "--cohort", "organ = 'thyroid'")
    assert code == 0
    assert "clinic: 5 samples, licence custom, redistribution no, commercial use no" in err
    assert err.count("Do not pass these on") == 2  # custom, and the one that states none
    rows = pl.read_csv(tmp_path / "x" / "LICENCES.csv").to_dicts()
    assert {(r["dataset"], r["licence"], r["may_be_passed_on"]) for r in rows} >= {
        ("clinic", "custom", "no"),
        ("clinic", "unstated", "no"),
    }
    info = json.loads((tmp_path / "x" / "annotations.json").read_text())["info"]
    assert info["not_to_be_passed_on"] == ["clinic"]


def test_a_free_licence_is_named_without_a_warning(usdata, tmp_path):
    code, _, err = usdata("csv", "-o", tmp_path / "x.csv", "--cohort", "dataset = 'phantom'")
    assert code == 0
    assert "phantom: 24 samples, licence Apache-2.0, redistribution yes" in err and "Do not" not in err


# --- objects ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)),
    st.sampled_from(["component", "class"]),
)
def test_objects_agree_with_pycocotools_and_cover_the_mask_once(mask, per):
    found = objects_of(mask, per)
    again = np.zeros_like(mask)
    for one in found:
        rle = coco_mask.frPyObjects({"size": list(mask.shape), "counts": one.counts}, *mask.shape)
        pixels = coco_mask.decode(rle).astype(bool)
        assert coco_mask.encode(np.asfortranarray(pixels, np.uint8))["counts"] == rle["counts"]
        assert coco_mask.toBbox(rle).tolist() == list(one.box)
        assert coco_mask.area(rle) == one.area == pixels.sum()
        assert not again[pixels].any()
        again[pixels] = one.value
    assert (again == mask).all()
    if per == "class":
        assert [one.value for one in found] == [v for v in np.unique(mask) if v]


def test_the_counts_of_a_small_mask_by_hand():
    mask = np.array([[1, 0, 2], [1, 1, 0]], np.uint8)  # columns: 1 1 | 0 1 | 2 0
    one, two = objects_of(mask)
    assert (one.value, one.counts, one.area, one.box) == (1, [0, 2, 1, 1, 2], 3, (0, 0, 2, 2))
    assert (two.value, two.counts, two.area, two.box) == (2, [4, 1, 1], 1, (2, 0, 1, 1))


def test_pieces_that_touch_by_a_corner_are_one_and_classes_that_touch_are_two():
    mask = np.array([[1, 0, 0, 1], [0, 1, 2, 0]], np.uint8)
    assert [(one.value, one.area) for one in objects_of(mask)] == [(1, 2), (1, 1), (2, 1)]
    assert [(one.value, one.area) for one in objects_of(mask, "class")] == [(1, 3), (2, 1)]


# --- COCO -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco(lake, tmp_path_factory) -> tuple[COCO, Path]:
    """The whole lake, read back by pycocotools."""
    folder = tmp_path_factory.mktemp("coco") / "whole"
    write_coco(lake.cohort(), folder, images=True, masks=True)
    return COCO(str(folder / "annotations.json")), folder


def test_pycocotools_gives_back_every_mask(lake, coco):
    api, _ = coco
    numbers = {c["name"]: c["id"] for c in api.loadCats(api.getCatIds())}
    cohort = lake.cohort()
    facts = cohort.table(["sample_id", "mask_classes", "has_mask"]).to_pylist()
    masks = np.concatenate([batch["mask"][:, 0] for batch in cohort.batches(16, mask=True)])
    assert api.getImgIds() == list(range(1, 32))
    for number, (fact, mask) in enumerate(zip(facts, np.asarray(masks), strict=True), 1):
        assert api.loadImgs([number])[0]["sample_id"] == fact["sample_id"]
        for k, name in enumerate(fact["mask_classes"] or [], 0):
            own = api.loadAnns(api.getAnnIds([number], [numbers[name]])) if name in numbers else []
            pixels = sum((api.annToMask(one).astype(int) for one in own), np.zeros((256, 256), int))
            assert (pixels == (mask == k)).all() or name == "background"


def test_areas_boxes_and_pieces_of_a_known_mask(coco):
    api, _ = coco
    first = next(i for i in api.loadImgs(api.getImgIds()) if i["sample_id"] == "clinic-" + "0" * 16)
    found = [(one["category_id"], one["area"], one["bbox"]) for one in api.loadAnns(api.getAnnIds([first["id"]]))]
    lesion, vessel = (api.getCatIds(catNms=[name])[0] for name in ("lesion", "vessel"))
    assert found == [
        (lesion, 20 * 40 - 5 * 10, [20, 10, 40, 20]),
        (lesion, 2, [100, 100, 2, 2]),
        (vessel, 56, [255, 200, 1, 56]),
    ]
    assert api.loadAnns(api.getAnnIds([first["id"]]))[2]["area_mm2"] == pytest.approx(56 * (1 / 3) * 0.1)


def test_cocoeval_gives_the_export_itself_as_a_prediction_the_full_score(coco, capsys):
    api, _ = coco
    predictions = [
        {key: one[key] for key in ("image_id", "category_id", "segmentation", "bbox")} | {"score": 1.0}
        for one in api.dataset["annotations"]
    ]
    for one in predictions:
        one["segmentation"] = api.annToRLE(one)
    score = COCOeval(api, api.loadRes(predictions), "segm")
    score.evaluate()
    score.accumulate()
    score.summarize()
    assert score.stats[0] == pytest.approx(1.0)


def test_images_carry_what_the_catalog_knows_of_them(coco):
    api, _ = coco
    clinic = [one for one in api.loadImgs(api.getImgIds()) if one["dataset"] == "clinic"]
    first, second, third, _, fifth, _, last = clinic
    assert (first["width"], first["height"], first["organ"], first["patient"]) == (256, 256, "thyroid", "p 1")
    assert (first["stored_mm_x"], first["stored_mm_y"]) == (1 / 3, 0.1)  # nothing was cropped off
    assert second["targets"] == {"size_mm": 0.30000000000000004} and fifth["labels"] == {"a_lines": "yes"}
    assert (third["label"], third["frame"], third["split"]) == ("NA", 0, None)
    assert last["target"] == 40.0
    names = {one["id"]: one["name"] for one in api.dataset["licenses"]}
    assert [names[one["license"]] for one in clinic] == ["custom"] * 5 + ["unstated", "custom"]


def test_an_image_without_a_mask_differs_from_one_whose_mask_is_empty(usdata, tmp_path, coco):
    api, _ = coco
    clinic = [one for one in api.loadImgs(api.getImgIds()) if one["dataset"] == "clinic"]
    assert [one["has_mask"] for one in clinic] == [True] * 3 + [False] * 4
    assert api.getAnnIds([clinic[1]["id"]]) == api.getAnnIds([clinic[3]["id"]]) == []
    assert "4 images have no mask" in usdata("coco", "-o", tmp_path / "x.json")[2]


def test_one_class_name_is_one_category_and_its_organs_are_told(coco):
    api, _ = coco
    categories = {one["name"]: one for one in api.dataset["categories"]}
    assert [one["id"] for one in api.dataset["categories"]] == list(range(1, len(categories) + 1))
    assert "background" not in categories
    assert categories["lesion"]["organs"] == ["breast", "thyroid"]
    assert categories["lesion"]["supercategory"] == "several"
    assert categories["vessel"]["supercategory"] == "thyroid"


def test_image_and_mask_files_are_those_of_the_shard_byte_for_byte(lake, coco):
    _, folder = coco
    seen = 0
    for shard in lake.root.glob("shards/*/*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                kind = "masks" if member.name.endswith(".mask.png") else "images"
                if not member.name.endswith(".json"):
                    name = member.name.replace(".mask.png", ".png")
                    assert (folder / kind / name).read_bytes() == tar.extractfile(member).read()
                    seen += 1
    assert seen == 31 + 24 + 3 == sum(1 for _ in folder.glob("*/*.png"))


def test_file_names_are_those_of_the_images_and_the_shard_members(coco):
    api, folder = coco
    for one in api.loadImgs(api.getImgIds()):
        with Image.open(folder / "images" / one["file_name"]) as image:
            assert image.size == (one["width"], one["height"]) and image.mode == "L"


def test_the_same_cohort_gives_the_same_json_in_a_file_and_in_a_folder(lake, tmp_path, coco):
    _, folder = coco
    path = write_coco(lake.cohort(), tmp_path / "x.json").path
    assert path.read_bytes() == (folder / "annotations.json").read_bytes()
    assert str(lake.root) not in path.read_text()


def test_like_keeps_the_numbers_of_an_earlier_export(lake, tmp_path, coco):
    _, folder = coco
    whole = json.loads((folder / "annotations.json").read_text())["categories"]
    alone = write_coco(lake.cohort("dataset = 'clinic'"), tmp_path / "a.json").path
    assert [one["name"] for one in json.loads(alone.read_text())["categories"]] == ["lesion", "vessel"]
    alike = write_coco(lake.cohort("dataset = 'clinic'"), tmp_path / "b.json", like=folder / "annotations.json").path
    found = json.loads(alike.read_text())
    assert found["categories"] == whole
    lesion = next(one["id"] for one in whole if one["name"] == "lesion")
    assert found["annotations"][0]["category_id"] == lesion
    with pytest.raises(ConfigError, match="is not among the categories"):
        write_coco(lake.cohort(), tmp_path / "c.json", like=alone)


def test_per_class_gives_one_object_for_each_class_of_an_image(usdata, tmp_path):
    where = "sample_id = 'clinic-0000000000000000'"
    assert usdata("coco", "-o", tmp_path / "x.json", "--per", "class", "--cohort", where)[0] == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert [one["area"] for one in found["annotations"]] == [752, 56]
    assert found["info"]["one_annotation_per"] == "class"


def test_more_columns_do_not_take_cocos_own_names(lake, tmp_path):
    path = write_coco(lake.cohort("dataset = 'phantom'"), tmp_path / "x.json", columns=["probe", "width"]).path
    one = json.loads(path.read_text())["images"][0]
    assert one["probe"] and one["source_width"] == 256 and one["width"] == 256


def test_overwrite_takes_the_files_of_the_earlier_export_away(lake, tmp_path):
    write_coco(lake.cohort(), tmp_path / "x", images=True)
    with pytest.raises(ConfigError, match="--overwrite"):
        write_coco(lake.cohort("organ = 'thyroid'"), tmp_path / "x", images=True)
    write_coco(lake.cohort("organ = 'thyroid'"), tmp_path / "x", images=True, overwrite=True)
    kept = {p.stem for p in (tmp_path / "x" / "images").iterdir()}
    assert kept == set(lake.cohort("organ = 'thyroid'").ids.to_pylist())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


@pytest.fixture
def damaged(lake, tmp_path) -> Lake:
    """A copy, to be broken."""
    shutil.copytree(lake.root, tmp_path / "broken")
    return Lake(tmp_path / "broken")


@pytest.mark.parametrize("column", ["offset", "mask_offset"])
def test_a_damaged_image_or_mask_is_named_and_nothing_is_left(damaged, tmp_path, column):
    row = damaged.sql(f'select sample_id, shard, "{column}" as at from samples where has_mask limit 1').to_pylist()[0]
    with (damaged.root / row["shard"]).open("r+b") as file:
        file.seek(row["at"] + 20)
        file.write(b"\xff\xff")
    with pytest.raises(LakeError, match="usdata verify") as caught:
        write_coco(damaged.cohort(), tmp_path / "x", images=True)
    assert row["sample_id"] in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]


def test_a_mask_with_a_class_that_has_no_name_is_refused(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    add_dataset(lake, "odd", [{"mask_classes": ["background", "lesion"]}], [np.full((256, 256), 2, np.uint8)])
    with pytest.raises(LakeError, match="class 2, but mask_classes names 2"):
        write_coco(lake.cohort(), tmp_path / "x.json")


def test_a_missing_shard_is_named(damaged, tmp_path):
    next((damaged.root / "shards/clinic").glob("*.tar")).unlink()
    with pytest.raises(LakeError, match="No such file"):
        write_coco(damaged.cohort(), tmp_path / "x", images=True)


def test_a_cohort_opened_before_an_ingest_is_not_exported_after_it(damaged, tmp_path):
    cohort = damaged.cohort("dataset = 'phantom'")
    ingest(get_card("phantom"), None, damaged, count=32)
    for write, name in ((write_table, "x.csv"), (write_coco, "x.json")):
        with pytest.raises(LakeError, match="changed after it was opened"):
            write(cohort, tmp_path / name)


def test_the_exported_png_is_canonical(coco):
    _, folder = coco
    data = next((folder / "images").iterdir()).read_bytes()
    png.check(data)
    with Image.open(io.BytesIO(data)) as image:
        assert (np.asarray(image) == png.decode(data)).all()
