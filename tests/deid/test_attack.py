"""Ways in which somebody who tried did get a name out, or wrong rows in; each is shut."""

import os
import resource
import signal
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fakes.private_folder import make_key, write_screen
from fakes.scans import draw_screen
from typer.testing import CliRunner

from ingest import run
from ingest.card import load_card
from ingest.deid import private
from ingest.deid.identity import ContentHash, Identity
from ingest.deid.inputs import inputs_of
from ingest.deid.private import private_card, rules_of
from ingest.deid.reasons import Reason, Refusal
from ingest.deid.rules import Rules
from usdata.cli import command_line
from usdata.errors import CardError, ConfigError, DataError, UsdataError
from usdata.lake import Lake

SIZE = (240, 320)
CARD = """
name: site_a
title: Files of a hospital
citation: none
licence: private
commercial_use: "no"
redistribution: "no"
deid_profile: private
layout:
  image: '(?P<patient>[^/]*)/.+\\.dcm'
"""


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    for number in range(2):
        screen = draw_screen("linear", number, SIZE, colour=False)
        write_screen(root / f"Mueller/{number}.dcm", screen, number, PatientID=f"111222{number}")
    return root


def rules(key: Path, tmp_path: Path, card: Any = None, **options: Any) -> Rules:
    return rules_of(card or private_card("site_a"), key, area=tmp_path / "area", **options)


def test_a_program_among_the_patients_files_is_not_executed(source: Path, key: Path, tmp_path: Path) -> None:
    seen = tmp_path / "executed"
    for name in ("yaml", "multiprocessing", "pydicom", "json"):
        (source / f"{name}.py").write_text(f"open({str(seen)!r}, 'a').write({name!r})\n")
    usdata = [sys.executable, "-P", "-m", "usdata.cli"]
    options = ["--from", ".", "--name", "site_a", "--key-file", str(key), "--area", str(tmp_path / "area")]
    done = subprocess.run(
        [*usdata, "ingest", "private", *options, "--lake", str(tmp_path / "lake"), "--workers", "2"],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 images in the lake" in done.stderr and not seen.exists()


@pytest.mark.parametrize("column", ["depth_mm", "pixel_mm", "pixel_mm_x", "targets.weight"])
def test_a_private_card_can_not_fill_a_number_from_a_path_or_table(tmp_path: Path, column: str) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(f"{CARD}fields: {{{column}: patient}}\n")
    with pytest.raises(CardError, match="from checked tags only"):
        load_card(path)


def test_an_age_above_89_can_not_be_computed_from_two_studies(key: Path, tmp_path: Path) -> None:
    root = tmp_path / "source"
    screen = draw_screen("linear", 1, SIZE, colour=False)
    for uid, day in ((1, "20100601"), (2, "20190601")):
        write_screen(root / f"{uid}.dcm", screen, uid, PatientBirthDate="19220101", StudyDate=day)
    lake, card = Lake.create(tmp_path / "lake"), private_card("site_a")
    run.ingest(card, root, lake, rules=rules(key, tmp_path))
    rows = lake.sql("select age, study_date from samples order by age").to_pylist()
    assert [row["age"] for row in rows] == [88, 90]
    assert rows[0]["study_date"] and rows[1]["study_date"] is None


def test_no_hash_in_the_lake_tells_whether_a_guessed_issuer_is_right(key: Path, tmp_path: Path) -> None:
    card = private_card("site_a")
    one, other = (rules(key, tmp_path, issuer=name) for name in ("Klinikum Musterstadt", "Klinikum"))
    assert one.digest(card) != other.digest(card)
    digests = {Rules(k, one.key_fingerprint, one.issuer, None, None, "0" * 32).digest(card) for k in (key,)}
    assert digests == {one.digest(card)}  # the key is needed to get there:
    stolen = Rules(make_key(tmp_path), one.key_fingerprint, one.issuer, None, None, "0" * 32)
    with pytest.raises(ConfigError, match="another key"):
        stolen.digest(card)


def crafted_tar(**headers: str) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.dcm")
        member.pax_headers = headers
        tar.addfile(member, BytesIO())
    return out.getvalue()


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "Mueller_Hans"},
        {"GNU.sparse.size": "Mueller"},
        {"GNU.sparse.map": "Mueller,1"},
    ],
)
def test_a_damaged_tar_is_refused_without_a_word_of_it(key: Path, tmp_path: Path, headers: dict[str, str]) -> None:
    archive, card = tmp_path / "Mueller.tar", private_card("site_a")
    archive.write_bytes(crafted_tar(**headers))
    said = ""
    try:
        with private.open_private(archive, rules(key, tmp_path)) as folder:
            private.list_private(card, folder, rules(key, tmp_path))
    except UsdataError as error:
        said = f"{error} {error.__cause__}"
    assert "ueller" not in said


def test_a_zip_with_a_name_that_is_not_its_encoding_is_refused_without_a_traceback(key: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("Müller.dcm", b"x")
    archive.write_bytes(archive.read_bytes().replace("ü".encode(), b"\xfc\xfc"))
    with pytest.raises(DataError, match="damaged, or not safe"), private.open_private(archive, rules(key, tmp_path)):
        pass


def test_the_process_leaves_no_core_dump(key: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    rules(key, tmp_path)
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0, before


def test_a_broken_template_is_not_quoted(key: Path, tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    for text in ("templates: [{note: 'seen by Dr Mueller'", "templates: [{Mueller: 1}]", "Mueller", "{[Mueller"):
        (folder / "Mueller.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            rules(key, tmp_path, templates=folder)
        assert "ueller" not in str(caught.value)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals to close")
def test_a_closed_terminal_leaves_no_unpacked_file(source: Path, key: Path, tmp_path: Path) -> None:
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in source.rglob("*.dcm"):
            for copy in range(40):
                file.write(path, f"{copy}/{path.relative_to(source)}")
    options = ["--from", str(archive), "--name", "site_a", "--key-file", str(key), "--area", str(tmp_path / "area")]
    command = [sys.executable, "-m", "usdata.cli", "ingest", "private", *options, "--lake", str(tmp_path / "lake")]
    temp = tmp_path / "area/site_a/temp"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(temp.glob("*/usdata-unpack-*/*")):
        pass
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 129 and "SIGHUP" in said
    assert list(temp.iterdir()) == []


def test_a_file_that_was_exchanged_after_the_first_look_stays_out(source: Path, key: Path, tmp_path: Path) -> None:
    lake, card = Lake.create(tmp_path / "lake"), private_card("site_a")
    plan = run.prepare(card, source, lake, rules=rules(key, tmp_path))
    one, other = source / "Mueller/0.dcm", source / "Mueller/1.dcm"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    report = run.finish(plan, run.build_all(run.open_jobs(plan), 1))
    assert report.reasons == {"changed": 2} and report.counts.samples == 0


def test_placeholders_in_a_path_do_not_make_one_patient_of_many(source: Path, key: Path, tmp_path: Path) -> None:
    (source / "Mueller").rename(source / "unknown")
    (source / "\u200b").mkdir()
    (source / "unknown/1.dcm").rename(source / "\u200b/1.dcm")
    path = tmp_path / "card.yaml"
    path.write_text(CARD)
    lake, card = Lake.create(tmp_path / "lake"), load_card(path)
    report = run.ingest(card, source, lake, rules=rules(key, tmp_path, card))
    assert report.counts.samples == 2
    rows = lake.sql("select patient, patient_known from samples").to_pylist()
    assert len({row["patient"] for row in rows}) == 2  # as the headers tell them apart


def test_a_patient_of_the_path_has_no_date_that_was_shifted_for_another(
    source: Path, key: Path, tmp_path: Path
) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(CARD)
    lake, card = Lake.create(tmp_path / "lake"), load_card(path)
    run.ingest(card, source, lake, rules=rules(key, tmp_path, card))
    rows = lake.sql("select patient, study_date from samples").to_pylist()
    assert len(rows) == 2 and len({row["patient"] for row in rows}) == 1
    assert {row["study_date"] for row in rows} == {None}


def test_a_file_that_can_not_be_read_is_null_in_the_list_for_dvc(
    source: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Identity.content

    def content(self: Identity, path: Path) -> ContentHash:
        if path.name == "0.dcm":
            raise Refusal(Reason.UNREADABLE, "read")
        return real(self, path)

    monkeypatch.setattr(Identity, "content", content)
    card = private_card("site_a")
    assert sorted(map(bool, inputs_of(card, source, rules(key, tmp_path))["files"].values())) == [False, True]


def test_no_path_after_from_is_shown(key: Path, tmp_path: Path) -> None:
    loop = tmp_path / "Mueller_loop"
    loop.symlink_to(loop)
    pipe = tmp_path / "Mueller_pipe"
    os.mkfifo(pipe)
    for place in (loop, pipe, tmp_path / "Mueller", tmp_path / ("Mueller" * 60), tmp_path / "Mueller\0"):
        with pytest.raises((UsdataError, ValueError)) as caught:
            rules(key, tmp_path, source=place)
        assert "ueller" not in str(caught.value)


def test_a_dicom_name_in_a_wrong_option_is_not_repeated(key: Path, tmp_path: Path) -> None:
    options = ["ingest", "private", "--from", str(tmp_path / "Mueller"), "--name", "site_a", "--key-file", str(key)]
    done = CliRunner().invoke(command_line(), [*options, "--area", str(tmp_path / "area")])
    assert isinstance(done.exception, UsdataError) and "ueller" not in str(done.exception)
