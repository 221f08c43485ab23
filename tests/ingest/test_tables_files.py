"""Table files of every format become rows of text, and files that are damaged or too large are refused."""

import io
import json
import zipfile
from datetime import date, datetime, time
from pathlib import Path

import pytest
from openpyxl import Workbook

from ingest.card import Card
from ingest.card_parts import Table
from ingest.layout import list_items
from ingest.readers import table_files
from ingest.readers.table_files import read_rows
from usdata.errors import CardError

BASE = {
    **{"name": "mine", "title": "My images", "citation": "none", "licence": "CC0-1.0"},
    **{"commercial_use": "yes", "redistribution": "yes", "deid_profile": "public", "defaults": {"organ": "thyroid"}},
}


def table(**more) -> Table:
    return Table.model_validate({"file": ".*", "key": "a", "match": "stem", "columns": {}} | more)


def rows(folder: Path, name: str, content: str | bytes, **more) -> list[dict[str, str]]:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_rows(folder / name, table(**more))


def book(path: Path, **sheets: list[list]) -> Path:
    workbook = Workbook()
    workbook.remove(workbook.active)
    for name, lines in sheets.items():
        page = workbook.create_sheet(name)
        for line in lines:
            page.append(line)
    workbook.save(path)
    return path


# --- spreadsheets -----------------------------------------------------------------------------------------------------


def test_numbers_of_a_spreadsheet_are_as_short_as_it_shows_them_and_dates_are_iso(tmp_path):
    cells = [10, 9.86, 2.0, 0.1 + 0.2, True, "  x ", None, datetime(2020, 1, 2), datetime(2020, 1, 2, 3, 4)]
    names = list("abcdefghi")
    (row,) = read_rows(book(tmp_path / "t.xlsx", one=[names, cells]), table())
    assert list(row.values()) == ["10", "9.86", "2", "0.3", "true", "x", "", "2020-01-02", "2020-01-02T03:04:00"]
    (row,) = read_rows(book(tmp_path / "u.xlsx", one=[["a", "b"], [date(2020, 1, 2), time(3, 4)]]), table())
    assert row == {"a": "2020-01-02", "b": "03:04:00"}


def test_the_first_sheet_is_read_unless_the_card_names_one(tmp_path):
    path = book(tmp_path / "t.xlsx", one=[["a"], [1]], two=[[None], ["a", None, None], [2, None, None], [None]])
    assert read_rows(path, table()) == [{"a": "1"}]
    assert read_rows(path, table(sheet="two")) == [{"a": "2"}]
    with pytest.raises(ValueError, match="no sheet 'three', only one, two"):
        read_rows(path, table(sheet="three"))


def test_openpyxl_reads_xml_through_defusedxml():
    import openpyxl

    assert openpyxl.DEFUSEDXML


def changed(path: Path, member: str, old: bytes, new: bytes) -> Path:
    """A spreadsheet with something in one of its parts replaced."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert old in parts[member]
    parts[member] = parts[member].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


SHEET = "xl/worksheets/sheet1.xml"


@pytest.mark.parametrize(
    ("member", "old", "new"),
    [
        (SHEET, b"<worksheet", b'<!DOCTYPE a [<!ENTITY b "cccccc">]><worksheet'),
        (SHEET, b"</sheetData>", b""),
        (SHEET, b'r="A2"', b'r="2A2"'),
        (SHEET, b'<row r="2"', b'<row r="x"'),
        (SHEET, b'<row r="2"', b'<row r="99999999999"'),
        (SHEET, b"<v>5</v>", b"<v>five</v>"),
        ("xl/workbook.xml", b"sheetId", b"sheetId2"),
        ("[Content_Types].xml", b"worksheet", b"workshit"),
    ],
)
def test_a_damaged_spreadsheet_is_a_value_error_or_is_read(tmp_path, monkeypatch, member, old, new):
    monkeypatch.setattr(table_files, "MAX_CELLS", 10_000)
    path = changed(book(tmp_path / "t.xlsx", one=[["a"], [5]]), member, old, new)
    try:
        assert read_rows(path, table()) in ([{"a": "5"}], [{"a": "five"}])
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("at", [0, 10, 100, 1000, 3000])
def test_a_spreadsheet_that_is_cut_or_flipped_is_a_value_error_or_is_read(tmp_path, at):
    whole = book(tmp_path / "t.xlsx", one=[["a"], [5]]).read_bytes()
    for content in (whole[:at], whole[:at] + b"\xff\xff\xff" + whole[at + 3 :]):
        (tmp_path / "t.xlsx").write_bytes(content)
        try:
            assert read_rows(tmp_path / "t.xlsx", table()) == [{"a": "5"}]
        except ValueError as error:
            assert str(error)


def test_a_spreadsheet_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", bytes(1 << 20))
    monkeypatch.setattr(table_files, "MAX_UNPACKED", 1 << 19)
    with pytest.raises(ValueError, match="unpack to 1 MiB"):
        rows(tmp_path, "t.xlsx", packed.getvalue())


def test_a_spreadsheet_that_claims_billions_of_rows_ends_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "MAX_CELLS", 10_000)
    path = changed(book(tmp_path / "t.xlsx", one=[["a"], [5]]), SHEET, b'<row r="2"', b'<row r="1048576"')
    with pytest.raises(ValueError, match="more than 10,000 cells"):
        read_rows(path, table())


# --- JSON, lists ------------------------------------------------------------------------------------------------------


def test_json_rows_may_stand_deep_inside_the_file(tmp_path):
    content = json.dumps({"a": {"b": [{"x": 1, "y": {"z": 2}}]}, "other": 3})
    assert rows(tmp_path, "t.json", content, rows="a.b") == [{"x": "1", "y": '{"z": 2}'}]
    with pytest.raises(ValueError, match=r"no 'c' of 'a\.c'"):
        rows(tmp_path, "t.json", content, rows="a.c")
    with pytest.raises(ValueError, match="list of objects"):
        rows(tmp_path, "t.json", content, rows="other")


def test_each_entry_of_each_list_is_a_row(tmp_path):
    found = rows(tmp_path, "t.json", '{"train": [0, 2], "val": ["b"]}', format="lists")
    assert found == [{"list": "train", "value": "0"}, {"list": "train", "value": "2"}, {"list": "val", "value": "b"}]
    for content in ("[]", '{"a": 1}', '{"a": [[1]]}', '{"a": [null]}', "x", "[" * 10**5):
        with pytest.raises(ValueError):
            rows(tmp_path, "t.json", content, format="lists")


# --- one row a file ---------------------------------------------------------------------------------------------------

CAMUS = "ED: 1\nES: 19\nNbFrame: 19\nSex: F\nAge: 063\nImageQuality: Good\nEF: 56.0\nFrameRate: 48.4\nOpen: no\n"


def test_lines_of_key_and_value_are_one_row_as_they_are_written(tmp_path):
    (row,) = rows(tmp_path, "Info_2CH.cfg", CAMUS, format="mapping")
    assert (row["ED"], row["Age"], row["EF"], row["Open"]) == ("1", "063", "56.0", "no")


@pytest.mark.parametrize(
    "content",
    ["", "a", "- a", "a: 1\na: 2", "a: {b: 1}", "a: &x [1]\nb: *x", "a: [", "[" * 2000, "? [a]\n: b", "a: *b"],
)
def test_other_yaml_is_refused(tmp_path, content):
    with pytest.raises(ValueError):
        rows(tmp_path, "t.cfg", content, format="mapping")


def test_the_texts_of_xml_are_one_row_without_what_is_there_twice(tmp_path):
    content = (
        "<case><tirads> 4a </tirads><age/><size><w>3</w></size><mark><image>1</image></mark><mark><image>2</image>"
    )
    (row,) = rows(tmp_path, "1.xml", content + "</mark></case>")
    assert row == {"tirads": "4a", "age": "", "size/w": "3"}


def test_xml_with_entities_is_refused(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]><a><d>&c;</d></a>'
    with pytest.raises(ValueError, match="EntitiesForbidden"):
        rows(tmp_path, "1.xml", bomb)


def test_xml_that_is_nested_too_deeply_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nested too deeply"):
        rows(tmp_path, "1.xml", "<a>" * 20_000 + "</a>" * 20_000)


def test_one_row_files_are_small(tmp_path, monkeypatch):
    monkeypatch.setitem(table_files.MAX_BYTES_OF_ONE, "xml", 10)
    with pytest.raises(ValueError, match="larger than"):
        rows(tmp_path, "1.xml", "<a><b>1234567</b></a>")


# --- joined to items --------------------------------------------------------------------------------------------------


def listing(root: Path, *paths: str, tables: list[dict], **more):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    card = Card.model_validate(
        BASE | {"layout": {"image": r"(?P<folder>\w+)/(?P<stem>\w+)\.png"}, "tables": tables} | more
    )
    return list_items(card, root)


def test_folds_by_position_are_joined_by_the_rank_in_the_folder(tmp_path):
    (tmp_path / "folds.json").write_text('{"train": [0, 2], "val": [1]}')
    found = listing(
        *(tmp_path, "a/9.png", "a/10.png", "a/11.png"),
        tables=[
            {"file": "folds.json", "format": "lists", "key": "value", "match": "position"}
            | {"columns": {"official_split": "list"}}
        ],
    )
    splits = {item.path: item.fields.get("official_split") for item in found.items}
    assert splits == {"a/9.png": "train", "a/10.png": "val", "a/11.png": "train"}  # 9 before 10


def test_a_folder_that_lacks_a_picture_is_not_joined_by_position(tmp_path):
    (tmp_path / "folds.json").write_text('{"train": [0, 2], "val": [1], "note": ["x", "-1"]}')
    table = {"file": "folds.json", "format": "lists", "key": "a-{value}", "match": "{folder}-{position}"}
    with pytest.raises(CardError, match="up to 2, from 0, but a holds 2") as error:
        listing(tmp_path, "a/9.png", "a/11.png", tables=[table | {"columns": {"official_split": "list"}}])
    assert "all pictures" in (error.value.hint or "")


def test_a_card_that_ignores_case_joins_rows_whatever_the_case_of_their_keys(tmp_path):
    (tmp_path / "t.csv").write_text("file,who\ncov-a,Atlas\nCov-B,Atlas\nx,1\nX,2\n")
    table = {"file": r"t\.csv", "key": "file", "match": "stem", "columns": {"patient": "who"}}
    layout = {"image": r"(?P<folder>\w+)/(?P<stem>[\w-]+)\.png"}
    paths = "a/Cov-A.png", "a/cov-b.png", "a/x.png"
    found = listing(tmp_path, *paths, tables=[table], layout=layout | {"ignore_case": True})
    assert {item.fields["patient"] for item in found.items} == {"mine-Atlas"} and len(found.items) == 2
    assert [(problem.path, problem.reason) for problem in found.problems] == [("a/x.png", "duplicate_key_in_table")]
    assert not found.notes
    exact = listing(tmp_path, *paths, tables=[table], layout=layout)
    assert [item.fields.get("patient") for item in exact.items] == [None, None, "mine-1"]


def test_items_that_an_optional_table_has_no_row_for_are_counted(tmp_path):
    (tmp_path / "t.csv").write_text("file,who\nx,1\n")
    table = {"file": r"t\.csv", "key": "file", "match": "stem", "columns": {"patient": "who"}}
    assert listing(tmp_path, "a/x.png", tables=[table]).notes == ()
    assert listing(tmp_path, "a/y.png", tables=[table]).notes == ("t.csv: 1 of 2 items have no row, so no patient",)


def test_two_sheets_of_one_file_are_two_tables_and_the_file_counts_once(tmp_path):
    book(tmp_path / "t.xlsx", one=[["k", "v"], ["x", 1.5]], two=[["k", "v"], ["x", 2.5]])
    columns = [{"targets.first": "v"}, {"targets.second": "v"}]
    tables = [
        {"file": r"t\.xlsx", "sheet": sheet, "key": "k", "match": "stem", "columns": values}
        for sheet, values in zip(("one", "two"), columns, strict=True)
    ]
    found = listing(tmp_path, "a/x.png", tables=tables)
    assert json.loads(found.items[0].fields["targets"]) == {"first": 1.5, "second": 2.5}
    assert (found.tables, found.files) == (("t.xlsx",), 2)


def test_an_entry_of_a_json_cell_is_a_column(tmp_path):
    text = 'file,about,region\nx,"{""View"": "" Long "", ""n"": 3}",1\nx,"{""View"": "" Long "", ""n"": 3}",2\ny,,1\n'
    (tmp_path / "t.csv").write_text(text)
    tables = [{"file": r"t\.csv", "key": "file", "match": "stem", "columns": {"view": "about.View"}}]
    found = listing(tmp_path, "a/x.png", "a/y.png", tables=tables)
    assert [item.fields.get("view") for item in found.items] == ["Long", None]  # and the two regions are one row
    with pytest.raises(CardError, match=r"no column 'about\.Viw'"):
        listing(tmp_path, tables=[tables[0] | {"columns": {"view": "about.Viw"}}])
    (tmp_path / "t.csv").write_text("file,about\nx,{\n")
    with pytest.raises(CardError, match="is not a JSON object"):
        listing(tmp_path, tables=tables)


def test_rows_that_differ_in_what_the_card_reads_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("file,v\nx,1\nx,2\n")
    tables = [{"file": r"t\.csv", "key": "file", "match": "stem", "columns": {"targets.v": "v"}}]
    found = listing(tmp_path, "a/x.png", tables=tables)
    assert [problem.reason for problem in found.problems] == ["duplicate_key_in_table"]


def test_a_patients_file_that_is_unreadable_is_a_problem_and_leaves_the_others_alone(tmp_path):
    (tmp_path / "1.cfg").write_text("EF: 50\n")
    (tmp_path / "2.cfg").write_text("EF 50\n")
    tables = [
        {
            "file": r"(?P<case>\d)\.cfg",
            "format": "mapping",
            "key": "case",
            "match": "stem",
            "columns": {"targets.ef": "EF"},
        }
    ]
    found = listing(tmp_path, "a/1.png", "a/2.png", tables=tables)
    assert [item.fields.get("targets") for item in found.items] == ['{"ef":50.0}', None]
    assert [(problem.path, problem.reason) for problem in found.problems] == [("2.cfg", "table_unreadable")]
    assert found.files == 4
    required = [tables[0] | {"required": True}]
    with pytest.raises(CardError, match="Can't read the table"):
        listing(tmp_path, tables=required)


def test_the_real_spreadsheets_are_read(real_data):
    path = real_data / "kidneyus-labels/OpenKidneyUltrasoundDataSet_TransducerInfo.xlsx"
    found = read_rows(path, table())
    assert len(found) == 514 and found[0]["Filename"] == "1_IM-0001-0059"
    assert {row["Physical Delta X"] for row in found} > {"1", "0.01673", "0.026135"}
    muscle = real_data / "timtrack-muscle/TimTrack paper/dataset 1/dataset1_for_manual_estimation.xlsx"
    counts = {sheet: len(read_rows(muscle, table(sheet=sheet))) for sheet in ("TZ", "EM", "BH")}
    assert counts == {"TZ": 162, "EM": 162, "BH": 162}  # EM has notes beside the table
    assert read_rows(muscle, table(sheet="TZ"))[0]["alpha"] == "9.86"
