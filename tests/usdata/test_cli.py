"""The verbs: results on stdout, words on stderr, exit code 0, 1 for an expected failure, 2 for wrong usage."""

import json
import subprocess
import sys

import pytest

from usdata import cli
from usdata.lake import Lake


@pytest.fixture
def usdata(monkeypatch, capsys):
    """Run `usdata ...` in this process: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["usdata", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_sql_prints_a_table_for_people_and_lines_of_json_for_machines(usdata, phantom_lake):
    query = "select organ, count(*) as n from samples group by all order by n desc limit 1"
    code, out, _ = usdata("sql", query, "--lake", phantom_lake.root)
    assert code == 0 and "breast" in out and "32" in out
    code, out, err = usdata("sql", query, "--lake", phantom_lake.root, "--json")
    assert (code, json.loads(out), err) == (0, {"organ": "breast", "n": 32}, "")


def test_an_expected_failure_is_one_message_on_stderr_and_exit_code_1(usdata, phantom_lake):
    code, out, err = usdata("sql", "select orgn from samples", "--lake", phantom_lake.root)
    assert (code, out) == (1, "")
    assert err.startswith("usdata: ") and "orgn" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "words", [["no-such-verb"], ["sql"], ["ingest"], ["plan", "--gamma", "many"], ["cohort", "save", "x"], ["report"]]
)
def test_wrong_usage_is_exit_code_2(usdata, words):
    code, out, err = usdata(*words)
    assert code == 2 and out == "" and err


@pytest.mark.parametrize(
    "verb", ["sql", "catalog", "plan", "verify", "cohort ls", "cohort show all", "report -o x.html"]
)
def test_a_lake_that_is_not_there_names_the_command_that_makes_one(usdata, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    words = [*verb.split(), *(["select 1"] if verb == "sql" else [])]
    code, _, err = usdata(*words, "--lake", tmp_path / "none")
    assert code == 1
    assert "No lake at" in err and "usdata ingest phantom" in err


def test_the_plan_sums_to_one_and_raises_the_rare(usdata, phantom_lake):
    code, out, _ = usdata("plan", "--gamma", 0.5, "--draws", 10_000, "--lake", phantom_lake.root, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert sum(row["expected"] for row in rows) == pytest.approx(1)
    assert sum(row["drawn"] for row in rows) == pytest.approx(1)
    kidney = next(row for row in rows if row["group"] == "kidney")
    assert kidney["expected"] > 3 * kidney["share"]  # 1 of 80 images: 0.0125; weight 1 of the sum of roots


def test_ingest_verify_and_catalog_work_in_a_row(usdata, tmp_path):
    lake = tmp_path / "lake"
    code, out, err = usdata("ingest", "phantom", "--images", 16, "--lake", lake, "--json")
    assert code == 0 and err == ""
    assert json.loads(out)["samples"] == 16
    assert usdata("verify", "--lake", lake)[0] == 0
    code, out, _ = usdata("catalog", "--lake", lake, "--json")
    assert json.loads(out) | {"organs": None} == {
        "dataset": "phantom",
        "images": 16,
        "patients": json.loads(out)["patients"],
        "clips": json.loads(out)["clips"],
        "masks": 16,
        "organs": None,
        "licence": "Apache-2.0",
    }


def test_verify_of_a_damaged_lake_lists_it_and_fails(usdata, tmp_path):
    lake = tmp_path / "lake"
    usdata("ingest", "phantom", "--images", 8, "--lake", lake)
    shard = next((lake / "shards").rglob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    code, out, err = usdata("verify", "--lake", lake, "--json")
    assert code == 1 and "wrong" in err
    assert json.loads(out.splitlines()[0])["file"] == str(shard)


def test_a_lake_whose_head_is_damaged_gets_a_command_that_mends_it(usdata, tmp_path):
    root = tmp_path / "lake"
    usdata("ingest", "phantom", "--images", 8, "--lake", root)
    good = (root / "lake.json").read_text()
    (root / "lake.json").write_text(good.replace("{", "(", 1))
    code, out, _ = usdata("verify", "--lake", root, "--json")
    assert code == 1
    subprocess.run(json.loads(out.splitlines()[0])["repair"], shell=True, check=True)
    assert (root / "lake.json").read_text() == good
    assert usdata("verify", "--lake", root)[0] == 0


def test_a_dry_run_writes_nothing(usdata, tmp_path):
    code, out, _ = usdata("ingest", "phantom", "--images", 8, "--lake", tmp_path / "lake", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["items"] == 8
    assert not (tmp_path / "lake").exists()


def test_an_ingest_that_keeps_nothing_fails_and_says_where_the_reasons_are(usdata, tmp_path):
    from fakes.folders import write_folder

    folder = write_folder(tmp_path / "source", images=2)
    for path in folder.glob("images/*/*.png"):
        path.write_bytes(b"")
    code, _, err = usdata("ingest", "--card", tmp_path / "mine.yaml", "--from", folder, "--lake", tmp_path / "lake")
    assert code == 1
    assert "Not one image got in" in err and "select * from quarantine" in err
    assert Lake(tmp_path / "lake").datasets() == []


def test_datasets_lists_cards_words_and_one_card(usdata):
    rows = [json.loads(line) for line in usdata("datasets", "--json")[1].splitlines()]
    assert {"busi", "hc18", "usgra_seg", "covid_blues", "phantom"} <= {row["dataset"] for row in rows}
    assert "thyroid" in usdata("datasets", "--vocabulary", "organ")[1]
    assert "Al-Dhabyani" in usdata("datasets", "busi")[1]
    code, _, err = usdata("datasets", "bussi")
    assert code == 1 and "Did you mean 'busi'" in err


def test_a_cohort_is_saved_listed_and_shown(usdata, tmp_path):
    lake = tmp_path / "lake"
    usdata("ingest", "phantom", "--images", 16, "--lake", lake)
    assert usdata("cohort", "save", "breast", "organ = 'breast'", "--lake", lake)[0] == 0
    assert json.loads(usdata("cohort", "ls", "--lake", lake, "--json")[1])["name"] == "breast"
    assert json.loads(usdata("cohort", "show", "breast", "--lake", lake, "--json")[1])["organ"] == "breast"
