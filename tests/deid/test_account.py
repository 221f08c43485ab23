"""Each item has one fate, whatever machine, clip length or child may do; and what passes is tried again."""

import fcntl
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.private_folder import make_key, write_screen
from fakes.scans import draw_screen

from ingest import plan
from ingest.deid import account
from ingest.deid.ask import Cleaners
from ingest.deid.audit import read_audit
from ingest.deid.item import LAST_DAY, Tools, answer_clean
from ingest.deid.private import private_card, rules_of
from ingest.deid.reasons import Reason, Refusal
from ingest.deid.rows import Rows
from ingest.deid.temporary import temporary_folder
from ingest.run import IngestReport, ingest
from usdata.errors import CardError, LakeError
from usdata.lake import Lake

SIZE = (240, 320)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cine of six frames and a still."""
    root = tmp_path_factory.mktemp("source")
    write_screen(root / "cine.dcm", draw_screen("curved", 3, SIZE, frames=6, colour=False), 1)
    write_screen(root / "still.dcm", draw_screen("linear", 1, SIZE, colour=False), 2)
    return root


def bring(source: Path, place: Path, key: Path) -> tuple[Lake, IngestReport]:
    lake, card = Lake.create(place / "lake"), private_card("site_a")
    return lake, ingest(card, source, lake, rules=rules_of(card, key, source=source, area=place / "area"))


def quarantined(lake: Lake) -> list[dict[str, Any]]:
    return lake.sql("select frame, stage, reason, detail from quarantine").to_pylist()


def audit_of(place: Path) -> list[dict[str, Any]]:
    (path,) = (place / "area/site_a/audit").iterdir()
    return list(read_audit(path).records)


# --- what passes is tried again --------------------------------------------------------------------------------------


def test_an_item_that_was_too_slow_once_gets_in_at_the_second_try(
    source: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = Cleaners._clean, []

    def clean(self: Cleaners, *args: Any) -> Any:
        tries.append(args)
        if len(tries) == 1:
            raise Refusal(Reason.TOO_SLOW, "isolate")
        return real(self, *args)

    monkeypatch.setattr(Cleaners, "_clean", clean)
    _, report = bring(source, tmp_path, key)
    assert (report.counts.samples, report.counts.quarantined, len(tries)) == (7, 0, 3)


@pytest.mark.parametrize("reason", [Reason.TOO_SLOW, Reason.MISSING])
def test_what_the_machine_may_be_to_blame_for_is_built_anew_in_the_next_run(
    source: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: Reason
) -> None:
    def never(self: Cleaners, *args: Any) -> Any:
        raise Refusal(reason, "isolate")

    with monkeypatch.context() as patched:
        patched.setattr(Cleaners, "_clean", never)
        _, first = bring(source, tmp_path, key)
    assert first.reasons == {reason.value: 2}
    _, second = bring(source, tmp_path, key)
    assert (second.counts.samples, second.reasons) == (7, {})


def test_a_file_that_is_refused_for_its_own_sake_is_not_read_again(source: Path, key: Path, tmp_path: Path) -> None:
    root = tmp_path / "source"
    write_screen(root / "text.dcm", draw_screen("curved", 1, (480, 640), inside="MUSTERMANN 7654321", colour=False))
    _, first = bring(root, tmp_path, key)
    assert first.reasons == {"text_in_scan_area": 1}
    _, second = bring(root, tmp_path, key)
    assert (second.built, second.reused, second.reasons) == (0, 1, {"text_in_scan_area": 1})


# --- clips that are longer than a shard ------------------------------------------------------------------------------


def refuse_second_part(monkeypatch: pytest.MonkeyPatch, both: bool = False) -> None:
    real = Cleaners.clean

    def clean(self: Cleaners, path: Path, relative: str, frames: Sequence[int], rows: Any) -> Any:
        if frames[0] > 0 or (both and len(frames) > 1):
            raise Refusal(Reason.TEXT_IN_SCAN_AREA, "pixels")
        return real(self, path, relative, frames, rows)

    monkeypatch.setattr(Cleaners, "clean", clean)
    monkeypatch.setattr(plan, "MAX_SAMPLES", 4)


@pytest.mark.deid
def test_a_clip_longer_than_a_shard_is_divided_and_is_one_item(
    source: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MAX_SAMPLES", 4)
    lake, report = bring(source, tmp_path, key)
    assert (report.built, report.counts.samples, report.counts.quarantined) == (2, 7, 0)
    assert sorted(record["samples"] for record in audit_of(tmp_path)) == [1, 6]
    clips = lake.sql("select clip, count(*) n from samples where n_frames is not null group by all").to_pylist()
    assert [row["n"] for row in clips] == [6]


@pytest.mark.parametrize("both", [False, True])
def test_a_clip_of_which_one_part_is_refused_stays_out_whole(
    source: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    refuse_second_part(monkeypatch, both)
    lake, report = bring(source, tmp_path, key)
    assert (report.counts.samples, report.counts.quarantined) == (1, 1)
    assert quarantined(lake) == [{"frame": None, "stage": "pixels", "reason": "text_in_scan_area", "detail": None}]
    assert lake.sql("select n_frames from samples").to_pylist() == [{"n_frames": None}]
    states = sorted((record["state"], record["samples"]) for record in audit_of(tmp_path))
    assert states == [("accepted", 1), ("quarantined", 0)]


@pytest.mark.deid
def test_a_cine_of_more_frames_than_are_sampled_comes_in_whole(key: Path, tmp_path: Path) -> None:
    root = tmp_path / "source"
    screen = draw_screen("curved", 3, SIZE, frames=70, colour=False)
    write_screen(root / "cine.dcm", screen)
    lake, report = bring(root, tmp_path, key)
    assert (report.counts.samples, report.counts.quarantined) == (70, 0)
    found = lake.sql("select count(distinct pixel_xxh) n, max(frame) last from samples").to_pylist()
    assert found == [{"n": 70, "last": 69}]


# --- nothing is unaccounted for --------------------------------------------------------------------------------------


def test_an_item_without_a_fate_stops_the_commit(
    source: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = account.accounted

    def lose_one(card: Any, rules: Any, sources: Any, jobs: Any, reports: Any, rejected: Any) -> Any:
        return real(card, rules, [*sources, sources[0]], jobs[:-1], reports[:-1], rejected)

    monkeypatch.setattr("ingest.run.accounted", lose_one)
    with pytest.raises(LakeError, match="Not everything is accounted for"):
        two_organs = tmp_path / "source"
        write_screen(two_organs / "1.dcm", draw_screen("linear", 1, SIZE, colour=False), 1, BodyPartExamined="LIVER")
        write_screen(two_organs / "2.dcm", draw_screen("linear", 2, SIZE, colour=False), 2, BodyPartExamined="HEART")
        bring(two_organs, tmp_path, key)
    assert Lake(tmp_path / "lake").datasets() == []


def test_a_lake_among_the_patients_files_is_refused(key: Path, tmp_path: Path) -> None:
    root, card = tmp_path / "source", private_card("site_a")
    lake = Lake.create(root / "lake")
    with pytest.raises(CardError, match="inside the folder of private files"):
        ingest(card, root, lake, rules=rules_of(card, key, source=root, area=tmp_path / "area"))


# --- the last check, and what the parent takes -----------------------------------------------------------------------


def test_a_row_that_holds_a_name_of_the_file_is_refused_by_the_self_check(
    source: Path, key: Path, tmp_path: Path
) -> None:
    card = private_card("site_a")
    tools = Tools.load(card, rules_of(card, key, area=tmp_path / "area"), "bilinear-aa")
    question = {"path": str(source / "still.dcm"), "relative": "a/still.dcm", "frames": [0]}
    clean = {"0": {"sample_id": "site_a-0123456789abcdef", "view": "transverse"}}
    assert [m.kind for m in answer_clean(tools, question | {"rows": clean})][-2:] == ["sample", "done"]
    with pytest.raises(Refusal) as caught:
        list(answer_clean(tools, question | {"rows": {"0": {**clean["0"], "view": "seen by Erika MUSTERMANN"}}}))
    assert caught.value.reason == Reason.SELF_CHECK


@pytest.mark.parametrize("word", ["Mustermann", "7654321", "1947-05-12 ", "A" * 32, "", "g" * 32])
def test_the_parent_takes_no_text_from_a_child_that_is_in_no_table(word: str) -> None:
    with pytest.raises(ValueError, match="in no table"):
        Rows(private_card("site_a")).check({"view": word})
    with pytest.raises(ValueError, match="does not have"):
        Rows(private_card("site_a")).check({word: "liver"})


def test_the_parent_takes_words_numbers_hashes_and_days_from_a_child() -> None:
    row = {"organ": "liver", "model": "EPIQ 7", "patient": "0" * 31 + "a", "age": 90, "study_date": "2001-02-03"}
    Rows(private_card("site_a")).check({**row, "depth_mm": 120.5, "patient_known": False, "view": None})


def test_flags_of_the_source_change_nothing(source: Path, key: Path, tmp_path: Path) -> None:
    root = tmp_path / "source"
    text = draw_screen("curved", 1, (480, 640), inside="MUSTERMANN 7654321", colour=False)
    clean = draw_screen("curved", 2, SIZE, colour=False)
    for number, flags in enumerate(({}, {"BurnedInAnnotation": "NO", "PatientIdentityRemoved": "YES"})):
        write_screen(root / f"text{number}.dcm", text, 10 + number, **flags)
        write_screen(root / f"clean{number}.dcm", clean, 20 + number, **flags)
    lake, report = bring(root, tmp_path, key)
    assert (report.counts.samples, report.reasons) == (2, {"text_in_scan_area": 2})
    columns = "patient, pixel_xxh, mask_score, burned_in, study_date"
    assert len({tuple(row.values()) for row in lake.sql(f"select {columns} from samples").to_pylist()}) == 1


def test_believable_dates_do_not_depend_on_the_day_of_the_run() -> None:
    assert date(2099, 12, 31) == LAST_DAY


# --- temporary folders -----------------------------------------------------------------------------------------------


def test_a_temporary_folder_is_private_and_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep/patient.dcm").write_bytes(b"x")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "temp").iterdir()) == []


def test_what_a_killed_run_left_is_removed_and_what_another_uses_is_not(tmp_path: Path) -> None:
    place = tmp_path / "temp"
    place.mkdir()
    for name in ("run-dead", "run-alive"):
        (place / name).mkdir()
        (place / name / "patient.dcm").write_bytes(b"x")
        (place / f"{name}.lock").touch()
    lock = os.open(place / "run-alive.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with temporary_folder(tmp_path):
        assert not (place / "run-dead").exists() and (place / "run-alive/patient.dcm").exists()
    os.close(lock)
    assert sorted(path.name for path in place.iterdir()) == ["run-alive", "run-alive.lock"]


def test_pixels_outside_the_area_are_zero_in_what_is_stored(source: Path, key: Path, tmp_path: Path) -> None:
    lake, _ = bring(source, tmp_path, key)
    images = lake.cohort("organ = 'unknown'").images()
    assert images.shape[0] == 7 and images.dtype == np.uint8
    assert (images == 0).mean() > 0.1  # the corners beside a sector, wherever it stands
