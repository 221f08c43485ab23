"""`usdata dedup` on lakes of made pictures and on the real samples."""

import json
import time

import cv2
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from fakes.dedup_lakes import add_pictures, pictures
from PIL import Image
from typer.testing import CliRunner

from ingest.card import get_card
from ingest.preprocess import resize
from ingest.run import ingest
from usdata import dedup_find
from usdata.cli import app
from usdata.dedup_align import texture_correlation
from usdata.dedup_find import find_duplicates
from usdata.dedup_run import search
from usdata.dedup_table import duplicates_path, require_current, why_stale
from usdata.dedup_thumbs import Thumbnails, block_sums
from usdata.errors import ConfigError, LakeError
from usdata.lake import Lake
from usdata.verify import verify

run = CliRunner()


@pytest.fixture
def lake(tmp_path):
    return Lake.create(tmp_path / "lake")


def jpeg(image, quality=60):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def scaled(image, factor):
    return resize(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR))


def cropped(image, share):
    cut = round(len(image) * share / 2)
    return resize(np.ascontiguousarray(image[cut : len(image) - cut, cut : len(image) - cut]))


def brighter(image, factor):
    return (image * factor + 0.5).clip(0, 255).astype(np.uint8)


def groups(lake):
    """sample_id -> duplicate_group, as the view tells it."""
    table = lake.sql("select sample_id, duplicate_group from samples where duplicate_group is not null")
    return dict(zip(*table.to_pydict().values(), strict=True))


def rows(outcome):
    return {(row["relation"], row["datasets"]): row for row in outcome.rows()}


# --- which copies are found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda i: jpeg(i, 90), "near"),
        (lambda i: jpeg(i, 30), "near"),
        (lambda i: scaled(i, 1.02), "near"),
        (lambda i: scaled(i, 0.98), "near"),
        (lambda i: brighter(i, 1.05), "near"),
        (lambda i: brighter(i, 0.95), "near"),
        (lambda i: cropped(i, 0.02), "recut"),
        (lambda i: cropped(i, 0.04), "recut"),
    ],
)
def test_a_copy_encoded_scaled_brightened_or_cropped_anew_is_found(lake, change, kind):
    originals = pictures(12)
    add_pictures(lake, "a", originals)
    add_pictures(lake, "b", np.stack([change(image) for image in originals]))
    outcome = search(lake)
    counted = rows(outcome)[("across_datasets", "a + b")]
    assert counted["near"] + counted["recut"] >= (12 if kind == "near" else 11)  # a crop can push the hashes apart
    assert counted[kind] >= 9
    pairs = outcome.pairs.table().to_pylist()
    assert all(pair["sample_id_a"][2:] == pair["sample_id_b"][2:] for pair in pairs)


def test_a_crop_is_found_only_by_laying_pictures_over_each_other(lake):
    originals = pictures(20)
    add_pictures(lake, "a", np.concatenate([originals, np.stack([cropped(image, 0.03) for image in originals])]))
    cohort = lake.cohort()
    assert len(find_duplicates(cohort, recut=False).first) <= 2
    assert len(find_duplicates(cohort).first) >= 18


def test_flips_and_turns_are_other_pictures(lake):
    originals = pictures(10)
    turned = [np.flip(originals, 2), np.flip(originals, 1), np.rot90(originals, 1, (1, 2))]
    add_pictures(lake, "a", np.ascontiguousarray(np.concatenate([originals, *turned])))
    assert not len(find_duplicates(lake.cohort()).first)


def test_pictures_unlike_each_other_are_in_no_group(lake):
    add_pictures(lake, "a", pictures(60))
    outcome = search(lake)
    assert outcome.rows() == []
    assert groups(lake) == {}
    assert duplicates_path(lake).exists()  # searched, and nothing found


def test_two_moments_of_one_scene_have_another_texture():
    (scene,) = pictures(1)
    speckle = pictures(2, seed=5).astype(np.float32)
    one, other = ((scene * 0.5 + grain * 0.5).astype(np.uint8) for grain in speckle)
    assert texture_correlation(one, other) < 0.85 < texture_correlation(one, cropped(one, 0.03))


def test_texture_of_nothing_is_no_match():
    flat = np.full((256, 256), 90, np.uint8)
    assert texture_correlation(flat, flat) == 0.0
    assert texture_correlation(flat, pictures(1)[0]) == 0.0
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    assert texture_correlation(ramp, ramp) == 0.0  # smooth: nothing fine to compare


# --- relations --------------------------------------------------------------------------------------------------------


def test_copies_with_another_label_patient_or_split_are_counted_and_told(lake):
    originals = pictures(4)
    said = [
        {"label": "benign", "patient": "1", "official_split": "train"},
        {"label": "benign", "patient": "2", "official_split": "train"},
        {"label": "benign", "patient": "3", "official_split": "train"},
        {},
    ]
    again = [
        {"label": "malignant", "patient": "1", "official_split": "train"},
        {"label": "benign", "patient": "9", "official_split": "train"},
        {"label": "benign", "patient": "3", "official_split": "test"},
        {},
    ]
    add_pictures(lake, "a", np.concatenate([originals, originals]), said + again)
    outcome = search(lake)
    same = rows(outcome)[("same_patient", "a")]
    other = rows(outcome)[("same_dataset", "a")]
    assert (same["exact"], same["other_label"], same["other_official_split"], same["other_patient"]) == (2, 1, 1, 0)
    assert (other["exact"], other["other_label"], other["other_official_split"], other["other_patient"]) == (2, 0, 0, 1)
    assert "1 groups hold images of different labels." in outcome.words()
    assert "1 groups hold images of different official splits." in outcome.words()


def test_a_patient_of_one_name_in_two_data_sets_is_not_one_patient(lake):
    (picture,) = pictures(1)
    for name in ("a", "b"):
        add_pictures(lake, name, picture[None], [{"patient": "1", "official_split": {"a": "train", "b": "test"}[name]}])
    outcome = search(lake)
    assert [(row["relation"], row["other_patient"], row["other_official_split"]) for row in outcome.rows()] == [
        ("across_datasets", 0, 0)
    ]
    totals = outcome.pairs.totals()
    assert (totals["several_datasets"], totals["several_patients"], totals["several_official_splits"]) == (1, 0, 0)


def test_five_byte_identical_test_images_are_five_pairs(lake):
    """As in USAnotAI: test/spleen--005x are the files test/spleen-005x."""
    own, doubled = pictures(30), pictures(5, seed=1)
    names = [f"test/spleen-005{k}.png" for k in range(5)] + [f"test/spleen--005{k}.png" for k in range(5)]
    said = [{"official_split": "train"}] * 30
    said += [{"official_split": "test", "label": "spleen", "source_id": name} for name in names]
    add_pictures(lake, "usanotai", np.concatenate([own, doubled, doubled]), said)
    outcome = search(lake)
    counted = rows(outcome)[("same_dataset", "usanotai")]
    assert (counted["exact"], counted["near"], counted["recut"], counted["other_official_split"]) == (5, 0, 0, 0)
    assert len(groups(lake)) == 10


def test_a_group_is_named_after_its_smallest_sample_id_whatever_chain_ties_it(lake):
    originals = pictures(3)
    add_pictures(lake, "b", np.stack([originals[0], jpeg(originals[0], 80), originals[1]]))
    add_pictures(lake, "a", np.stack([originals[2], jpeg(originals[0], 50)]))
    search(lake)
    assert groups(lake) == dict.fromkeys(
        ["a-0000000000000001", "b-0000000000000000", "b-0000000000000001"], "a-0000000000000001"
    )


# --- clips ------------------------------------------------------------------------------------------------------------


def frames(clip, n, **more):
    return [{"clip": clip, "frame": i, **more} for i in range(n)]


def test_frames_of_one_clip_are_counted_but_never_a_pair(lake):
    a, b = pictures(2)
    still = np.stack([a, a, jpeg(a, 80), b])
    add_pictures(lake, "cine", still, frames("c1", 4))
    outcome = search(lake)
    assert [(row["relation"], row["exact"], row["near"]) for row in outcome.rows()] == [("same_clip", 1, 1)]
    assert groups(lake) == {}


def test_a_still_taken_from_a_clip_is_tied_to_that_frame_not_to_the_whole_clip(lake):
    images = pictures(6)
    add_pictures(lake, "cine", images, frames("c1", 6))
    add_pictures(lake, "stills", np.stack([jpeg(images[3]), *pictures(2, seed=9)]))
    search(lake)
    assert set(groups(lake)) == {"cine-0000000000000003", "stills-0000000000000000"}


def test_all_frames_that_equal_one_of_another_clip_are_in_its_group(lake):
    (a,) = pictures(1)
    add_pictures(lake, "cine", np.stack([a, a, a]), [*frames("c1", 2), {"clip": "c2", "frame": 0}])
    outcome = search(lake)
    assert len(groups(lake)) == 3
    assert len(outcome.found.first) == 2


def test_clips_of_one_name_in_two_data_sets_are_two_clips(lake):
    (a,) = pictures(1)
    add_pictures(lake, "a", a[None], frames("1", 1))
    add_pictures(lake, "b", a[None], frames("1", 1))
    search(lake)
    assert len(groups(lake)) == 2


# --- pictures of nothing, and crowds ----------------------------------------------------------------------------------


def test_pictures_of_nothing_are_no_duplicates_and_told(lake):
    flat = np.stack([np.full((256, 256), v, np.uint8) for v in (0, 0, 90, 90, 0)])
    add_pictures(lake, "a", np.concatenate([flat, pictures(3)]), [{"patient": str(i)} for i in range(8)])
    outcome = search(lake)
    assert groups(lake) == {}
    assert "5 images show nothing (no contrast): they are no duplicates." in outcome.words()


def test_a_crowd_of_one_hash_is_grouped_by_its_leaders_in_linear_time(lake, monkeypatch):
    """Three scenes of one hash, 40 noisy copies each: the search takes part of them, the leaders the rest."""
    monkeypatch.setattr(dedup_find, "_CROWD", 10)
    scenes, rng = pictures(3), np.random.default_rng(0)
    noise = rng.integers(-3, 4, (40, 1, 256, 256))
    images = (scenes[None].astype(int) + noise).clip(0, 255).astype(np.uint8).reshape(-1, 256, 256)
    add_pictures(lake, "a", images, [{"phash": 7}] * len(images))
    begin = time.perf_counter()
    found = find_duplicates(lake.cohort(), recut=False)
    assert time.perf_counter() - begin < 20
    assert [len(group) for group in found.groups()] == [40, 40, 40]
    assert len(found.first) < 600  # not all 2,340 pairs


def test_a_crowd_of_one_clip_makes_no_pair(lake, monkeypatch):
    monkeypatch.setattr(dedup_find, "_CROWD", 4)
    (scene,) = pictures(1)
    copies = np.stack([jpeg(scene, quality) for quality in range(60, 80)])
    add_pictures(lake, "a", copies, [dict(row, phash=7) for row in frames("c", 20)])
    assert not len(find_duplicates(lake.cohort()).first)


def test_a_sample_without_a_hash_is_found_by_equal_pixels_only(lake):
    (a,) = pictures(1)
    add_pictures(lake, "a", np.stack([a, a, jpeg(a)]), [{"phash": None}] * 3)
    outcome = search(lake)
    assert len(groups(lake)) == 2
    assert any("3 images have no perceptual hash" in line for line in outcome.words())


def test_a_correlation_is_that_of_the_thumbnails_and_exact(lake):
    images = pictures(5)
    add_pictures(lake, "a", images)
    thumbs = Thumbnails(lake.cohort(), np.array([0, 2, 3]))
    small = images[[0, 3]].reshape(2, 32, 8, 32, 8).mean(axis=(2, 4)).reshape(2, -1)
    expected = np.corrcoef(small)[0, 1]
    assert thumbs.correlations(np.array([0]), np.array([3]))[0] == pytest.approx(expected, abs=1e-12)
    assert block_sums(np.full((1, 256, 256), 255, np.uint8)).max() == 64 * 255


# --- the table --------------------------------------------------------------------------------------------------------


def two_sets(lake):
    originals = pictures(30)
    add_pictures(lake, "a", originals)
    add_pictures(lake, "b", np.stack([*[jpeg(i) for i in originals[:10]], *originals[10:15]]))


def test_the_same_lake_gives_the_same_bytes_for_any_number_of_workers_and_is_not_written_twice(lake):
    two_sets(lake)
    assert search(lake, workers=1).wrote is True
    path, first = duplicates_path(lake), duplicates_path(lake).read_bytes()
    stamp = path.stat().st_mtime_ns
    assert search(lake, workers=3).wrote is False
    assert path.stat().st_mtime_ns == stamp
    path.unlink()
    search(lake, workers=3)
    assert path.read_bytes() == first


def test_a_lake_with_duplicates_is_whole_and_its_table_readable_without_us(lake):
    two_sets(lake)
    search(lake)
    table = pl.read_parquet(duplicates_path(lake))
    assert table.columns == ["sample_id", "duplicate_group"]
    assert table["duplicate_group"].n_unique() == 15
    assert table.group_by("duplicate_group").len()["len"].min() == 2
    assert (table["sample_id"] >= table["duplicate_group"]).all()
    problems = [f for f in verify(lake, 1) if f.file.endswith("duplicates.parquet")]
    assert problems == []


def test_a_table_of_an_earlier_catalog_is_known_as_stale(lake):
    add_pictures(lake, "a", pictures(5))
    assert "not searched" in why_stale(lake)
    search(lake)
    assert why_stale(lake) is None
    require_current(lake)
    add_pictures(lake, "b", pictures(2, seed=3))
    assert "b came" in why_stale(lake)
    with pytest.raises(LakeError, match="usdata dedup"):
        require_current(lake)
    outcome = search(lake)
    assert "b came" in outcome.words()[0]
    add_pictures(lake, "a", pictures(6))
    lake.catalog_part("b").unlink()
    assert "a changed; b went" in why_stale(lake)


def test_a_table_that_does_not_say_what_it_was_made_from_or_is_damaged_is_replaced(lake):
    two_sets(lake)
    search(lake)
    path = duplicates_path(lake)
    good = path.read_bytes()
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(LakeError, match="does not say"):
        why_stale(lake)
    assert search(lake).wrote is True
    assert path.read_bytes() == good
    for damaged in (b"", good[:200], bytes(len(good))):
        path.write_bytes(damaged)
        with pytest.raises(LakeError, match="usdata dedup"):
            require_current(lake)
        assert search(lake).wrote is True
        assert path.read_bytes() == good


def test_an_ingest_during_the_search_is_noticed_and_nothing_is_written(lake, monkeypatch):
    two_sets(lake)
    monkeypatch.setattr(
        "usdata.dedup_run.find_duplicates",
        lambda *args: (find_duplicates(*args), add_pictures(lake, "c", pictures(1, seed=4)))[0],
    )
    with pytest.raises(LakeError, match="changed"):
        search(lake)
    assert not duplicates_path(lake).exists()


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan"), 99.5])
def test_a_threshold_that_is_no_correlation_is_refused(lake, threshold):
    with pytest.raises(ConfigError, match="correlation"):
        search(lake, threshold=threshold)


def test_an_empty_lake_has_no_duplicates(lake):
    assert search(lake).rows() == []
    assert pq.read_table(duplicates_path(lake)).num_rows == 0


def test_a_missing_shard_ends_the_search_with_its_name(lake):
    two_sets(lake)
    next(lake.shard_folder("b").glob("*.tar")).unlink()
    with pytest.raises(LakeError, match="b-mixed-000000"):
        search(lake)
    assert not duplicates_path(lake).exists()


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_the_verb_prints_counts_writes_pairs_and_a_sheet(lake, tmp_path):
    two_sets(lake)
    files = [tmp_path / name for name in ("sheet.html", "sheet.png", "pairs.csv", "pairs.parquet")]
    for sheet, pairs in ((files[0], files[2]), (files[1], files[3])):
        told = ["dedup", "--lake", str(lake.root), "--sheet", str(sheet), "--pairs", str(pairs), "--json"]
        result = run.invoke(app, told)
        assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [(line["datasets"], line["exact"], line["near"]) for line in lines] == [("a + b", 5, 10)]
    page = files[0].read_text()
    assert "15 groups of duplicates" in page
    assert page.count("<figure>") == 30
    assert "Stays on this machine" not in page  # both may be passed on
    assert Image.open(files[1]).width > 400
    assert pl.read_csv(files[2]).height == pl.read_parquet(files[3]).height == 15


def test_a_cohort_or_a_dry_run_is_only_looked_at(lake):
    two_sets(lake)
    for more in (["--cohort", "dataset = 'a'"], ["--dry-run"]):
        result = run.invoke(app, ["dedup", "--lake", str(lake.root), *more])
        assert result.exit_code == 0, result.output
        assert "Nothing was written to the lake." in result.output
    assert not duplicates_path(lake).exists()


def test_another_kind_of_sheet_is_refused_before_the_work(lake, tmp_path):
    two_sets(lake)
    with pytest.raises(ConfigError, match=r"\.html or \.png"):
        search(lake, sheet=tmp_path / "sheet.pdf")
    assert not duplicates_path(lake).exists()


def test_a_sheet_with_images_that_must_not_be_passed_on_says_so_and_escapes_what_data_says(lake, tmp_path):
    (a,) = pictures(1)
    row = {"redistribution": "no", "label": "<script>x</script>", "source_id": "ä" * 300}
    add_pictures(lake, "closed", np.stack([a, a]), [row, row | {"label": "b"}])
    for name in ("sheet.html", "sheet.png"):
        search(lake, write=False, sheet=tmp_path / name)
    page = (tmp_path / "sheet.html").read_text()
    assert "Stays on this machine" in page
    assert "<script>" not in page
    assert "more than one label" in page


def test_a_sheet_without_a_group_says_so(lake, tmp_path):
    add_pictures(lake, "a", pictures(3))
    search(lake, write=False, sheet=tmp_path / "sheet.html")
    search(lake, write=False, sheet=tmp_path / "sheet.png")
    assert "No two samples" in (tmp_path / "sheet.html").read_text()


# --- real pictures ----------------------------------------------------------------------------------------------------


def test_the_real_sample_of_busi_holds_two_pairs_of_one_picture_cut_twice(real_data, lake):
    ingest(get_card("busi"), real_data / "busi", lake)
    counted = rows(search(lake))
    assert list(counted) == [("same_dataset", "busi")]
    busi = counted[("same_dataset", "busi")]
    assert (busi["exact"], busi["near"], busi["recut"], busi["other_label"]) == (0, 0, 2, 0)
    named = lake.sql("select source_id from samples where duplicate_group is not null order by 1")["source_id"]
    assert [name.split("/")[-1] for name in named.to_pylist()] == [f"normal ({k}).png" for k in (40, 45, 46, 49)]


@pytest.mark.slow
def test_neighbours_in_real_lung_clips_are_of_one_clip_and_no_clip_is_a_copy(real_data, lake):
    ingest(get_card("covid_blues"), real_data / "covid-blues", lake)
    counted = rows(search(lake))
    assert list(counted) == [("same_clip", "covid_blues")]
    assert counted[("same_clip", "covid_blues")]["near"] > 300  # of 369 frames, 5 a second
    assert groups(lake) == {}
