"""From a folder to a lake: the same bytes however it is run, and nothing lost whatever is wrong with the input."""

import errno
import json
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset as wds
from fakes.folders import tree_digest, write_folder, write_image

from ingest import build, commit, plan
from ingest.card import get_card, load_card
from ingest.deid.private import private_card
from ingest.run import ingest, only_ingest
from usdata import png
from usdata.errors import CardError, LakeError, UsdataError
from usdata.files import file_xxh
from usdata.lake import Lake
from usdata.verify import verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source")


def run(folder: Path | None, lake: Path, **options):
    card = load_card(folder.parent / "mine.yaml") if folder else get_card("phantom")
    return ingest(card, folder, Lake.create(lake), **options)


def quarantined(lake: Path) -> list[dict]:
    return Lake(lake).sql("select source_id, stage, reason, detail from quarantine order by source_id").to_pylist()


# --- what a good run gives ---------------------------------------------------------------------------------------


def test_a_folder_of_classes_with_a_csv_becomes_samples_with_labels_patients_targets_and_masks(folder, tmp_path):
    report = run(folder, tmp_path / "lake")
    assert (report.counts.items, report.counts.samples, report.counts.quarantined) == (8, 8, 0)
    rows = Lake(tmp_path / "lake").sql("select * from samples order by source_id").to_pylist()
    first = rows[0]
    assert first["source_id"] == "images/benign/n000.png"
    assert (first["label"], first["patient"], first["target"]) == ("benign", "mine-p0", 5.0)
    assert json.loads(first["targets"]) == {"size_mm": 5.0}
    assert (first["width"], first["height"], first["has_mask"]) == (64, 48, True)
    assert first["mask_classes"] == ["background", "nodule"]
    assert (first["organ"], first["organ_group"], first["probe"]) == ("thyroid", "neck", "linear")
    assert first["licence"] == "CC0-1.0"
    assert first["frame"] is None and first["manufacturer"] is None  # unknown is null


def test_the_sample_id_is_the_hash_of_the_source_bytes_and_the_frame(folder, tmp_path):
    import xxhash

    run(folder, tmp_path / "lake")
    data = (folder / "images/benign/n000.png").read_bytes()
    row = Lake(tmp_path / "lake").sql("select * from samples where source_id = 'images/benign/n000.png'").to_pylist()[0]
    assert row["sample_id"] == "mine-" + xxhash.xxh3_128(data + (0).to_bytes(8, "little")).hexdigest()[:16]
    assert row["source_xxh"] == xxhash.xxh3_128(data).hexdigest()


def test_plain_webdataset_and_tarfile_read_the_shards(folder, tmp_path):
    run(folder, tmp_path / "lake")
    shard = tmp_path / "lake/shards/mine/mine-thyroid-000000.tar"
    samples = list(wds.WebDataset(str(shard), shardshuffle=False))
    assert len(samples) == 8
    one = samples[0]
    assert {"png", "json", "mask.png"} <= set(one)
    assert len(one["png"]) == png.SIZE
    pixels = cv2.imdecode(np.frombuffer(one["png"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert (pixels == png.decode(one["png"])).all()
    assert set(np.unique(cv2.imdecode(np.frombuffer(one["mask.png"], np.uint8), cv2.IMREAD_UNCHANGED))) == {0, 1}
    with tarfile.open(shard) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_the_json_of_a_sample_is_its_catalog_row_without_location_and_nulls(folder, tmp_path):
    run(folder, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    row = lake.sql("select * from samples limit 1").to_pylist()[0]
    with tarfile.open(lake.root / row["shard"]) as tar:
        member = tar.getmember(f"{row['sample_id']}.json")
        stored = json.loads(tar.extractfile(member).read())
    assert member.offset_data == row["json_offset"]
    derived = ("split", "group", "duplicate_group", "stored_mm_x", "stored_mm_y")
    place = ("shard", "offset", "size", "mask_offset", "mask_size", "json_offset")
    assert stored == {k: v for k, v in row.items() if v is not None and k not in (*derived, *place)}


def test_one_shard_holds_one_organ_and_at_most_1000_samples(phantom_lake):
    table = phantom_lake.sql("select shard, count(distinct organ) as organs, count(*) as n from samples group by shard")
    assert set(table["organs"].to_pylist()) == {1}
    assert max(table["n"].to_pylist()) <= 1000


def test_more_than_1000_samples_of_an_organ_fill_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.plan.MAX_SAMPLES", 5)
    folder = write_folder(tmp_path / "source", images=12)
    run(folder, tmp_path / "lake")
    table = Lake(tmp_path / "lake").sql("select shard, count(*) as n from samples group by shard order by shard")
    assert table["n"].to_pylist() == [5, 5, 2]
    assert not verify(Lake(tmp_path / "lake"))


def test_the_same_input_gives_the_same_bytes_for_one_and_two_workers(folder, tmp_path):
    for name, workers in (("one", 1), ("again", 1), ("two", 2)):
        run(folder, tmp_path / name, workers=workers)
        run(None, tmp_path / name, workers=workers, count=24)
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "again") == tree_digest(tmp_path / "two")
    assert len(tree_digest(tmp_path / "one")) > 10


def test_the_place_of_the_source_does_not_change_the_bytes(folder, tmp_path):
    run(folder, tmp_path / "one")
    shutil.copytree(folder, tmp_path / "moved" / "deep" / "source")
    shutil.copy(folder.parent / "mine.yaml", tmp_path / "moved" / "deep")
    run(tmp_path / "moved" / "deep" / "source", tmp_path / "two")
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")


# --- running again -----------------------------------------------------------------------------------------------


def test_a_second_run_builds_nothing_and_writes_nothing(folder, tmp_path):
    run(folder, tmp_path / "lake")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "lake").rglob("*") if p.is_file() and p.suffix != ".lock"}
    report = run(folder, tmp_path / "lake")
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "lake").rglob("*") if p.is_file() and p.suffix != ".lock"}
    assert (report.built, report.reused, report.changed) == (0, 1, False)
    assert before == after


def test_strange_files_beside_the_shards_are_left_and_hide_nothing(folder, tmp_path):
    run(folder, tmp_path / "lake")
    shards = tmp_path / "lake/shards/mine"
    (shards / "@eaDir").mkdir()
    (shards / "notes.md").write_text("mine")
    report = run(folder, tmp_path / "lake")
    assert (report.changed, (shards / "notes.md").read_text()) == (False, "mine")
    write_image(folder / "images/benign/n000.png", seed=99)
    assert run(folder, tmp_path / "lake").changed
    assert (shards / "notes.md").exists() and Lake(tmp_path / "lake").datasets() == ["mine"]


def test_a_changed_file_rebuilds_only_its_shard_and_gives_the_bytes_of_a_fresh_run(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.plan.MAX_SAMPLES", 4)
    folder = write_folder(tmp_path / "source", images=8)
    run(folder, tmp_path / "lake")
    write_image(folder / "images/benign/n000.png", seed=99)
    report = run(folder, tmp_path / "lake")
    assert (report.built, report.reused) == (1, 1)
    run(folder, tmp_path / "fresh")
    assert tree_digest(tmp_path / "lake") == tree_digest(tmp_path / "fresh")


def test_a_removed_file_leaves_no_trace(tmp_path):
    folder = write_folder(tmp_path / "source")
    run(folder, tmp_path / "lake")
    (folder / "images/malignant/n007.png").unlink()
    (folder / "masks/n007.png").unlink()
    run(folder, tmp_path / "lake")
    run(folder, tmp_path / "fresh")
    assert tree_digest(tmp_path / "lake") == tree_digest(tmp_path / "fresh")


def test_a_damaged_shard_is_found_by_verify_and_mended_by_the_same_command(folder, tmp_path):
    run(folder, tmp_path / "lake")
    good = tree_digest(tmp_path / "lake")
    shard = tmp_path / "lake/shards/mine/mine-thyroid-000000.tar"
    data = bytearray(shard.read_bytes())
    data[50_000] ^= 4
    shard.write_bytes(data)
    findings = verify(Lake(tmp_path / "lake"))
    assert ["checksums" in f.problem for f in findings if f.file == str(shard)] == [True]
    assert "usdata ingest mine" in findings[0].repair
    run(folder, tmp_path / "lake")
    assert tree_digest(tmp_path / "lake") == good


@pytest.mark.parametrize("lost", ["catalog/samples/mine.parquet", "manifests/mine.json", "quarantine/mine.parquet"])
def test_a_lost_file_is_found_by_verify_and_made_again(folder, tmp_path, lost):
    run(folder, tmp_path / "lake")
    good = tree_digest(tmp_path / "lake")
    (tmp_path / "lake" / lost).unlink()
    assert verify(Lake(tmp_path / "lake"))
    run(folder, tmp_path / "lake")
    assert tree_digest(tmp_path / "lake") == good


def test_the_catalog_rebuilt_from_the_shards_alone_is_byte_identical(folder, tmp_path):
    from usdata.verify import rebuild_catalog

    run(folder, tmp_path / "lake")
    run(None, tmp_path / "lake", count=40)
    good = tree_digest(tmp_path / "lake")
    shutil.rmtree(tmp_path / "lake" / "catalog")
    assert list(rebuild_catalog(Lake(tmp_path / "lake"))) == ["mine", "phantom"]
    assert tree_digest(tmp_path / "lake") == good


def test_two_ingests_of_one_data_set_at_once_are_refused(folder, tmp_path):
    lake = Lake.create(tmp_path / "lake")
    with only_ingest(lake, "mine"), pytest.raises(LakeError, match="Another process"):
        run(folder, tmp_path / "lake")
    run(folder, tmp_path / "lake")  # the lock is gone with its holder


# --- bad input ---------------------------------------------------------------------------------------------------


def test_a_missing_folder_names_the_path(folder, tmp_path):
    with pytest.raises(UsdataError, match="nowhere"):
        ingest(load_card(folder.parent / "mine.yaml"), tmp_path / "nowhere", Lake.create(tmp_path / "lake"))


def test_an_empty_folder_is_an_error_that_shows_what_is_expected(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsdataError, match="mine"):
        ingest(load_card(folder.parent / "mine.yaml"), tmp_path / "empty", Lake.create(tmp_path / "lake"))


def test_a_registered_data_set_without_its_files_says_how_to_give_them(tmp_path):
    with pytest.raises(CardError, match="usdata ingest busi --from PATH"):
        ingest(get_card("busi"), None, Lake.create(tmp_path / "lake"))


def test_an_unknown_data_set_gives_the_nearest_name():
    with pytest.raises(CardError, match="Did you mean 'busi'"):
        get_card("bussi")


def test_an_unknown_organ_word_gives_the_nearest_word(folder):
    card = folder.parent / "mine.yaml"
    card.write_text(card.read_text().replace("organ: thyroid", "organ: tyroid"))
    with pytest.raises(CardError, match="Did you mean 'thyroid'"):
        load_card(card)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: p.write_bytes(b""), "empty_file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-900]), "truncated"),
        (lambda p: p.write_bytes(b"this is no picture" * 9), "unsupported"),
    ],
)
def test_a_bad_image_goes_to_quarantine_and_the_others_get_in(folder, tmp_path, spoil, reason):
    spoil(folder / "images/benign/n002.png")
    report = run(folder, tmp_path / "lake")
    assert (report.counts.samples, report.counts.quarantined) == (7, 1)
    [row] = quarantined(tmp_path / "lake")
    assert (row["source_id"], row["reason"]) == ("images/benign/n002.png", reason)
    assert row["detail"]


def test_a_mask_without_image_and_a_file_that_fits_nothing_are_quarantined(folder, tmp_path):
    (folder / "images/benign/n000.png").unlink()
    (folder / "stray.doc").write_text("?")
    report = run(folder, tmp_path / "lake")
    assert [(r["source_id"], r["reason"]) for r in quarantined(tmp_path / "lake")] == [
        ("masks/n000.png", "mask_without_image"),
        ("stray.doc", "unmatched_file"),
    ]
    assert report.counts.samples == 7


def test_an_image_without_mask_gets_in_without_one_unless_the_card_requires_it(folder, tmp_path):
    (folder / "masks/n001.png").unlink()
    assert run(folder, tmp_path / "lake").counts.samples == 8
    assert Lake(tmp_path / "lake").sql("select count(*) as n from samples where has_mask")["n"].to_pylist() == [7]
    card = folder.parent / "mine.yaml"
    card.write_text(card.read_text().replace("kind: binary", "kind: binary, required: true"))
    assert run(folder, tmp_path / "strict").counts.samples == 7
    assert quarantined(tmp_path / "strict")[0]["reason"] == "image_without_mask"


def test_a_mask_of_another_size_is_quarantined_and_its_image_kept_without_it(folder, tmp_path):
    assert cv2.imwrite(str(folder / "masks/n003.png"), np.zeros((20, 20), np.uint8))
    report = run(folder, tmp_path / "lake")
    assert report.counts.samples == 8
    [row] = quarantined(tmp_path / "lake")
    assert (row["source_id"], row["stage"], row["reason"]) == ("masks/n003.png", "mask", "mask_size")
    assert "kept without a mask" in row["detail"]
    query = "select has_mask from samples where source_id = 'images/malignant/n003.png'"
    assert Lake(tmp_path / "lake").sql(query)["has_mask"].to_pylist() == [False]


def test_an_image_that_the_csv_does_not_know_is_quarantined(folder, tmp_path):
    lines = (folder / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join(lines[:-1]) + "\n")
    report = run(folder, tmp_path / "lake")
    assert report.counts.samples == 7
    assert "label_missing" in {row["reason"] for row in quarantined(tmp_path / "lake")}


def test_byte_identical_files_stay_two_samples_with_ids_of_their_own_and_are_reported(folder, tmp_path):
    shutil.copy(folder / "images/benign/n000.png", folder / "images/malignant/n001.png")
    report = run(folder, tmp_path / "lake")
    assert report.counts.samples == 8 and report.counts.copies == 1
    table = Lake(tmp_path / "lake").sql(
        "select count(distinct sample_id) as ids, count(distinct source_xxh) as sources from samples"
    )
    assert table.to_pylist() == [{"ids": 8, "sources": 7}]
    assert any("byte-identical" in note for note in report.notes)


def test_a_folder_of_which_nothing_got_in_is_no_data_set_but_has_its_quarantine(folder, tmp_path):
    for path in folder.glob("images/*/*.png"):
        path.write_bytes(b"")
    report = run(folder, tmp_path / "lake")
    assert report.counts.samples == 0
    assert Lake(tmp_path / "lake").datasets() == []
    assert {row["reason"] for row in quarantined(tmp_path / "lake")} == {"empty_file"}


@pytest.mark.parametrize("name", ["images/benign/secret_name.dcm", "secret_name", "images/benign/n000.png"])
def test_dicom_anywhere_is_refused_and_no_path_of_it_is_stored_or_shown(folder, tmp_path, name):
    (folder / name).write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00" + bytes(40))
    with pytest.raises(CardError, match="DICOM") as caught:
        run(folder, tmp_path / "lake")
    assert "secret" not in str(caught.value)
    assert not any(b"secret" in p.read_bytes() for p in (tmp_path / "lake").rglob("*") if p.is_file())
    assert Lake(tmp_path / "lake").datasets() == []


def test_a_card_of_ones_own_can_not_replace_a_registered_data_set_by_its_name(folder, tmp_path):
    card = folder.parent / "mine.yaml"
    card.write_text(card.read_text().replace("name: mine", "name: busi"))
    with pytest.raises(CardError, match="name of a registered data set"):
        run(folder, tmp_path / "lake")


def test_a_private_card_with_masks_is_refused_before_a_file_is_read(folder, tmp_path):
    card = folder.parent / "mine.yaml"
    card.write_text(card.read_text().replace("deid_profile: public", "deid_profile: private"))
    with pytest.raises(CardError, match="masks, annotations, crop: not for private files"):
        run(folder, tmp_path / "lake")


def test_a_private_card_needs_a_key(tmp_path):
    with pytest.raises(CardError, match=r"need a key.*\n.*usdata deid-key new"):
        ingest(private_card("site_a"), tmp_path / "none", Lake.create(tmp_path / "lake"))


def test_every_file_is_accounted_for(folder, tmp_path):
    (folder / "stray.doc").write_text("?")
    (folder / "images/benign/n002.png").write_bytes(b"")
    c = run(folder, tmp_path / "lake").counts
    masks, tables, strays = 8, 1, 1
    assert c.files == c.items + masks + tables + strays + c.ignored == 18
    assert c.samples + c.quarantined - strays == c.items


# --- the disk ----------------------------------------------------------------------------------------------------


def test_a_lake_of_a_newer_format_is_refused_with_the_upgrade_command(folder, tmp_path):
    Lake.create(tmp_path / "lake")
    head = tmp_path / "lake/lake.json"
    head.write_text(json.dumps(json.loads(head.read_text()) | {"format": 2}))
    with pytest.raises(LakeError, match=r"format 2.*\n.*pip install"):
        run(folder, tmp_path / "lake")


def test_a_folder_that_is_no_lake_is_not_written_into(folder, tmp_path):
    with pytest.raises(LakeError, match="not empty and is no lake"):
        run(folder, folder)


def test_a_lake_keeps_to_its_interpolation(tmp_path):
    Lake.create(tmp_path / "lake", "bilinear-fast")
    with pytest.raises(LakeError, match="bilinear-fast"):
        Lake.create(tmp_path / "lake", "bilinear-aa")


def test_an_unwritable_target_is_one_clear_message(folder, tmp_path):
    (tmp_path / "lake").write_text("a file, not a folder")
    with pytest.raises(LakeError, match=r"Can.t write"):
        run(folder, tmp_path / "lake")


@pytest.mark.parametrize("step", ["tar", "parquet", "json"])
def test_a_full_disk_says_so_and_the_rerun_gives_the_right_lake(folder, tmp_path, monkeypatch, step):
    run(folder, tmp_path / "good")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if step == "tar":
            patch.setattr(build.ShardWriter, "_write", full)
        elif step == "parquet":
            patch.setattr(build, "write_part", full)
        else:
            patch.setattr(commit, "write_json", full)
        with pytest.raises(LakeError, match="No space left") as caught:
            run(folder, tmp_path / "lake")
    assert caught.value.dataset == "mine" and "same command" in str(caught.value)
    assert Lake(tmp_path / "lake").datasets() == []
    run(folder, tmp_path / "lake")
    assert tree_digest(tmp_path / "lake") == tree_digest(tmp_path / "good")


# --- the real sample ---------------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_real_busi_sample_gives_45_breast_images_with_masks_on_the_right_ones(real_data, tmp_path):
    lake = Lake.create(tmp_path / "lake")
    report = ingest(get_card("busi"), real_data / "busi", lake, workers=2)
    table = lake.sql(
        "select label, organ, count(*) as n, count(*) filter (has_mask) as masks from samples group by all"
    )
    assert sorted(table.to_pylist(), key=lambda r: r["label"]) == [
        {"label": "benign", "organ": "breast", "n": 15, "masks": 14},  # benign (4) has a mask of another picture's size
        {"label": "malignant", "organ": "breast", "n": 15, "masks": 15},
        {"label": "normal", "organ": "breast", "n": 15, "masks": 15},
    ]
    assert report.reasons == {"mask_size": 1}
    batch = next(lake.cohort("label = 'normal'").batches(15, mask=True))
    assert int(batch["mask"].max()) == 0
    for batch in lake.cohort("label <> 'normal' and has_mask").batches(8, mask=True):
        assert (batch["mask"].amax(dim=(1, 2, 3)) == 1).all()


@pytest.mark.real
def test_the_real_sample_of_covid_blues_gives_frames_of_18_clips_of_6_patients(real_data, tmp_path):
    lake = Lake.create(tmp_path / "lake")
    ingest(get_card("covid_blues"), real_data / "covid-blues", lake, workers=2)
    query = (
        "select count(distinct clip) as clips, count(distinct patient) as patients, any_value(fps) as fps from samples"
    )
    assert lake.sql(query).to_pylist() == [{"clips": 18, "patients": 6, "fps": 25.0}]
    assert file_xxh(lake.catalog_part("covid_blues"))


@pytest.mark.parametrize(
    ("jobs", "workers", "threads"),
    [(0, 2, []), (1, 4, [4]), (3, 8, [2, 2, 2]), (4, 2, [1, 1, 1, 1]), (5, 2, [1, 1, 1, 1, 2]), (3, 1, [1, 1, 1])],
)
def test_the_jobs_of_the_last_round_share_the_workers_that_would_be_idle(jobs, workers, threads):
    assert plan._threads(jobs, workers) == threads
