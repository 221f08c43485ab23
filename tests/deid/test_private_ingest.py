"""From a hospital's folder to a lake: what gets in, under which names, and what stays out with which reason."""

import json
import platform
from pathlib import Path
from typing import Any

import pytest
from fakes.folders import tree_digest
from fakes.private_folder import SECRETS, make_key, write_private_folder, write_screen
from fakes.scans import draw_screen

from ingest.deid.audit import read_audit
from ingest.deid.private import private_card, rules_of
from ingest.run import IngestReport, dry_run_record, ingest
from usdata.errors import CardError, UsdataError
from usdata.lake import Lake
from usdata.rebuild import rebuild_catalog
from usdata.verify import verify


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_private_folder(tmp_path_factory.mktemp("hospital") / "export")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key"))


def bring(source: Path, place: Path, key: Path, name: str = "site_a", **options: Any) -> tuple[Lake, IngestReport]:
    lake = Lake.create(place / "lake")
    card = private_card(name)
    rules = rules_of(card, key, source=source, area=place / "area")
    return lake, ingest(card, source, lake, rules=rules, **options)


@pytest.fixture(scope="module")
def done(source: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, IngestReport, Path]:
    place = tmp_path_factory.mktemp("done")
    return *bring(source, place, key), place


def rows(lake: Lake, what: str = "*") -> list[dict[str, Any]]:
    return lake.sql(f"select {what} from samples order by sample_id").to_pylist()


def test_every_file_of_the_folder_is_accounted_for(done: tuple[Lake, IngestReport, Path]) -> None:
    _, report, _ = done
    c = report.counts
    assert (c.files, c.items, c.samples, c.quarantined) == (8, 8, 10, 3)
    assert report.reasons == {"no_scan_area": 1, "truncated": 1, "unsupported": 1}


def test_nothing_of_the_patient_is_in_the_lake(done: tuple[Lake, IngestReport, Path]) -> None:
    lake, _, place = done
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        content = path.read_bytes().lower() + str(path.relative_to(place)).lower().encode()
        assert not [word for word in SECRETS if word.encode() in content or word.encode("utf-16-le") in content]
    assert "detail" not in {k for row in lake.sql("select * from quarantine").to_pylist() for k, v in row.items() if v}


def test_rows_hold_pseudonyms_and_words_of_the_vocabularies(done: tuple[Lake, IngestReport, Path]) -> None:
    lake, _, _ = done
    found = rows(lake)
    assert {row["deid_profile"] for row in found} == {"private"} and {row["deid_version"] for row in found} == {1}
    assert {row["manufacturer"] for row in found} == {"Philips", None}  # None: the exported PNG
    assert {row["organ"] for row in found} == {"heart", "liver", "unknown"}
    assert {row["mask_source"] for row in found} == {"regions+fit", "fit"}
    assert all(row["mask_score"] >= 0.9 and row["burned_in"] == "no" for row in found)
    patients = {row["patient"] for row in found if row["patient_known"]}
    assert len(patients) == 2 and all(len(p) == 32 for p in patients)
    cine = [row for row in found if row["n_frames"]]
    assert [row["n_frames"] for row in cine] == [6] * 6 and {row["fps"] for row in cine} == {25.0}
    assert len({row["clip"] for row in cine}) == 1 and sorted(row["frame"] for row in cine) == list(range(6))
    assert {row["pixel_mm_x"] for row in cine} == {0.2}


def test_the_stored_spacing_is_of_the_crop(done: tuple[Lake, IngestReport, Path]) -> None:
    lake, _, _ = done
    for row in rows(lake):
        if row["pixel_mm_x"]:
            assert row["stored_mm_x"] == pytest.approx(0.2 * (row["crop_x1"] - row["crop_x0"]) / 256)


def test_a_birth_date_gives_an_age_and_a_study_date_moves_by_the_patients_own_days(
    done: tuple[Lake, IngestReport, Path],
) -> None:
    lake, _, _ = done
    found = [row for row in rows(lake) if row["organ"] in ("heart", "liver")]
    assert {row["age"] for row in found} == {73}  # 12 May 1947 to 4 March 2021
    days = {row["study_date"] for row in found}
    assert len(days) == 1 and "2011-03-04" <= days.pop() < "2021-03-04"


@pytest.mark.deid
def test_the_same_files_and_key_give_the_same_bytes_with_two_workers(
    source: Path, key: Path, done: tuple[Lake, IngestReport, Path], tmp_path: Path
) -> None:
    lake, _ = bring(source, tmp_path, key, workers=2)
    assert tree_digest(lake.root) == tree_digest(done[0].root)


def test_a_second_run_builds_nothing(source: Path, key: Path, tmp_path: Path) -> None:
    bring(source, tmp_path, key)
    _, again = bring(source, tmp_path, key)
    assert (again.built, again.changed) == (0, False)


@pytest.mark.deid
def test_another_key_gives_other_ids_and_the_same_pixels(
    source: Path, done: tuple[Lake, IngestReport, Path], tmp_path: Path
) -> None:
    lake, _ = bring(source, tmp_path, make_key(tmp_path))
    mine, other = rows(done[0]), rows(lake)
    for column in ("sample_id", "source_id", "source_xxh", "patient", "study", "clip"):
        assert not {r[column] for r in mine if r[column]} & {r[column] for r in other if r[column]}, column
    assert sorted(r["pixel_xxh"] for r in mine) == sorted(r["pixel_xxh"] for r in other)


@pytest.mark.deid
def test_another_key_is_refused_where_the_data_set_is(source: Path, key: Path, tmp_path: Path) -> None:
    bring(source, tmp_path, key)
    with pytest.raises(CardError, match="with another key"):
        bring(source, tmp_path, make_key(tmp_path))


def test_two_data_sets_of_one_key_share_their_patients(source: Path, key: Path, tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    for name in ("site_a", "site_b"):
        card = private_card(name)
        rules = rules_of(card, key, source=source, area=tmp_path / "area")
        ingest(card, source, lake, rules=rules)
    found = lake.sql("select dataset, patient from samples where patient_known group by all").to_pylist()
    assert len({row["patient"] for row in found}) == 2 and len(found) == 4


def test_the_audit_has_a_line_for_every_item_and_no_name(done: tuple[Lake, IngestReport, Path]) -> None:
    _, _, place = done
    logs = [read_audit(path) for path in (place / "area/site_a/audit").iterdir()]
    records = [record for log in logs for record in log.records]
    assert len(records) == 8 and not sum(log.partial for log in logs)
    assert sum(record["samples"] for record in records) == 10
    states = sorted(record["state"] for record in records)
    assert states == ["accepted"] * 5 + ["quarantined"] * 2 + ["rejected"]
    assert not list((place / "area/site_a/temp").iterdir())


def test_no_trace_of_the_machine_or_the_time_stays_in_the_lake(done: tuple[Lake, IngestReport, Path]) -> None:
    lake, _, _ = done
    locks = list(lake.root.rglob("*.lock"))
    assert locks and not [path for path in locks if path.read_bytes()]
    for path in lake.root.rglob("*"):
        if path.is_file():
            assert platform.node().encode() not in path.read_bytes() or len(platform.node()) < 4


def test_shards_are_not_in_the_order_of_names(done: tuple[Lake, IngestReport, Path]) -> None:
    lake, _, _ = done
    ids = [row["source_id"] for row in lake.sql('select source_id from samples order by shard, "offset"').to_pylist()]
    by_shard = lake.sql('select source_id, shard from samples order by shard, "offset"').to_pylist()
    assert all(len(one) == 32 for one in ids)
    for shard in {row["shard"] for row in by_shard}:
        inside = [row["source_id"] for row in by_shard if row["shard"] == shard]
        assert inside == sorted(inside)


@pytest.mark.deid
def test_a_private_lake_verifies_and_is_rebuilt_from_its_shards(source: Path, key: Path, tmp_path: Path) -> None:
    lake, _ = bring(source, tmp_path, key)
    assert not list(verify(lake))
    before = tree_digest(lake.root)
    list(rebuild_catalog(lake))
    assert tree_digest(lake.root) == before


def test_a_dry_run_counts_and_names_nothing(source: Path, key: Path, tmp_path: Path) -> None:
    card = private_card("site_a", "liver")
    found = dry_run_record(card, source, rules=rules_of(card, key, source=source, area=tmp_path / "area"))
    assert (found["files"], found["items"], found["organs"]) == (8, 8, {"liver": 8})
    assert not [word for word in SECRETS if word in json.dumps(found).lower()]


def test_the_operators_organ_goes_over_the_scanners_preset(source: Path, key: Path, tmp_path: Path) -> None:
    lake, card = Lake.create(tmp_path / "lake"), private_card("site_a", "gallbladder")
    ingest(card, source, lake, rules=rules_of(card, key, source=source, area=tmp_path / "area"))
    assert {row["organ"] for row in rows(lake)} == {"gallbladder"}


@pytest.mark.parametrize(("name", "organ"), [("Site A", None), ("../x", None), ("site_a", "livr"), ("x" * 41, None)])
def test_a_name_or_organ_that_can_not_be_is_refused(name: str, organ: str | None) -> None:
    with pytest.raises(CardError):
        private_card(name, organ)


def test_no_message_on_a_missing_folder_shows_its_path(key: Path, tmp_path: Path) -> None:
    card = private_card("site_a")
    rules = rules_of(card, key, area=tmp_path / "area")
    with pytest.raises(UsdataError) as caught:
        ingest(card, tmp_path / "Mustermann", Lake.create(tmp_path / "lake"), rules=rules)
    assert "ustermann" not in str(caught.value)


def test_text_over_the_tissue_keeps_a_clip_out_unless_the_rule_is_relaxed_which_the_catalog_shows(
    key: Path, tmp_path: Path
) -> None:
    screen = draw_screen("curved", 1, (480, 640), inside="MUSTERMANN 7654321", colour=False)
    write_screen(tmp_path / "source/1.dcm", screen)
    _, strict = bring(tmp_path / "source", tmp_path, key)
    assert strict.reasons == {"text_in_scan_area": 1}
    lake, card = Lake.create(tmp_path / "other"), private_card("site_a", relax=("text",))
    rules = rules_of(card, key, area=tmp_path / "area")
    relaxed = ingest(card, tmp_path / "source", lake, rules=rules)
    assert relaxed.counts.samples == 1
    assert lake.sql("select deid_profile, burned_in from samples").to_pylist() == [
        {"deid_profile": "private:text", "burned_in": "unknown"}
    ]
