"""`usdata verify` finds whatever is not as it was written, and names the sample."""

import io
import os
import random
import shlex
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes.damage import (
    Members,
    believe,
    damage,
    files_of,
    fill,
    flip,
    make_origin,
    members,
    owners,
    rows,
    shard,
    write_shard,
)

from ingest.readers.mask import encode_mask
from ingest.run import only_ingest
from usdata.catalog import canonical, read_part, write_part
from usdata.errors import LakeError
from usdata.lake import Lake
from usdata.schema import SAMPLES, table_of
from usdata.shard_scan import ShardScan
from usdata.shards import ShardWriter, header
from usdata.verify import verify
from usdata.verify_lake import check_head, check_lake

FLIPS = 300


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_origin(tmp_path_factory.mktemp("origin"))


@pytest.fixture
def root(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, to be damaged."""
    monkeypatch.setattr("ingest.plan.MAX_SAMPLES", 3)
    shutil.copytree(origin, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def lake(root: Path) -> Lake:
    return Lake(root / "lake")


# --- flipped bits and cut files ------------------------------------------------------------------------------------


def missed(lake: Lake, times: int, seed: int, change: Callable[[bytes, random.Random], bytes]) -> list[str]:
    """Change a file of the lake, one at a time, and give those changes that `verify` did not find in that file."""
    chance, paths, unseen = random.Random(seed), files_of(lake), []
    assert verify(lake) == []
    for number in range(times):
        path = paths[number % len(paths)]
        good = path.read_bytes()
        path.write_bytes(change(good, chance))
        try:
            mine = owners(lake, path)
            told = damage(
                verify(lake, datasets=mine) if mine else [*check_head(lake.root), *check_lake(lake, whole=False)]
            )
        finally:
            path.write_bytes(good)
        if str(path) not in {finding.file for finding in told}:
            unseen.append(f"{path.relative_to(lake.root)}: change {number}")
    return unseen


def one_bit(good: bytes, chance: random.Random) -> bytes:
    place, bit = chance.randrange(len(good)), chance.randrange(8)
    return good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :]


def one_stretch(good: bytes, chance: random.Random) -> bytes:
    """Cut off, or with a stretch that is zero, random, taken from elsewhere, left out or put in twice."""
    start, size = chance.randrange(len(good)), chance.choice([1, 512, 4096, 70_000])
    old = good[start : start + size]
    elsewhere = chance.randrange(len(good))
    new = [b"", bytes(len(old)), chance.randbytes(len(old)), good[elsewhere : elsewhere + len(old)], old * 2]
    changed = good[:start] + chance.choice(new) + chance.choice([good[start + size :], good[start + len(old) :], b""])
    return changed if changed != good else b""


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.study)])
def test_every_one_of_many_flipped_bits_is_found_in_its_file(lake, seed):
    assert missed(lake, FLIPS if seed == 1 else 30 * FLIPS, seed, one_bit) == []


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.study)])
def test_a_stretch_of_other_bytes_is_found_in_its_file(lake, seed):
    assert missed(lake, 60 if seed == 1 else 3000, seed, one_stretch) == []


def test_a_flipped_bit_in_a_shard_is_found_in_its_sample_whatever_the_manifest_says(lake):
    """Bytes all over the headers, JSON, mask and image of one sample; the manifest takes them all for right."""
    path, known = shard(lake), rows(lake)
    good, manifest = path.read_bytes(), lake.manifest("mine").read_bytes()
    second = known[1]["json_offset"] - 512
    end = known[1]["offset"] + known[1]["size"]
    chance = random.Random(3)
    for place in [*range(second, second + 512, 37), *(chance.randrange(second, end) for _ in range(25))]:
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << chance.randrange(8)]) + good[place + 1 :])
        believe(lake)
        told = damage(verify(lake, datasets=["mine"]))
        assert [(f.file, f.sample) for f in told] == [(str(path), known[1]["sample_id"])], place
        assert second <= told[0].offset <= place
        lake.manifest("mine").write_bytes(manifest)


def test_every_damaged_sample_of_a_shard_is_named_with_the_place_of_its_damage(lake):
    known = rows(lake)
    flip(shard(lake), known[0]["offset"] + 5000)
    flip(shard(lake), known[2]["mask_offset"] + 60)
    flip(shard(lake), known[1]["json_offset"] - 512 + 130)  # the size in the header of its JSON
    told = damage(verify(lake))
    assert [f.sample for f in told] == [row["sample_id"] for row in known]
    places = [known[0]["offset"], known[1]["json_offset"] - 512, known[2]["mask_offset"]]
    assert [f.offset for f in told] == places
    assert ["checksums" in told[0].problem, "header" in told[1].problem, "mask" in told[2].problem] == [True] * 3


def test_a_file_cut_at_any_length_is_found_in_its_file(lake):
    assert missed(lake, 60, 3, lambda good, chance: good[: chance.randrange(len(good))]) == []


def test_a_cut_shard_names_the_samples_that_are_gone(lake):
    path, known = shard(lake), rows(lake)
    path.write_bytes(path.read_bytes()[: known[1]["offset"] + 100])
    assert {f.sample for f in damage(verify(lake))} == {known[1]["sample_id"], known[2]["sample_id"]}


@pytest.mark.parametrize("extra", [b"x", b"x" * 512, bytes(512), bytes(10_240), b"\xff" * 300_000])
def test_bytes_behind_the_end_are_found(lake, extra):
    with shard(lake).open("ab") as file:
        file.write(extra)
    believe(lake)
    assert [("behind the end" in f.problem, f.sample) for f in damage(verify(lake))] == [(True, None)]


# --- members that are not where they belong ------------------------------------------------------------------------


def swapped(content: Members, first: int, second: int) -> Members:
    """The data of two members in each other's place."""
    (a, one), (b, two) = content[first], content[second]
    changed = list(content)
    changed[first], changed[second] = (a, two), (b, one)
    return changed


CHANGES: dict[str, Callable[[Members], Members]] = {  # members of a sample: JSON, mask, image
    "two images swapped": lambda m: swapped(m, 2, 5),
    "two JSONs swapped": lambda m: swapped(m, 0, 3),
    "two images swapped, with their names": lambda m: [*m[:2], m[5], *m[3:5], m[2], *m[6:]],
    "two JSONs swapped, with their names": lambda m: [m[3], *m[1:3], m[0], *m[4:]],
}
LOSSES: dict[str, Callable[[Members], Members]] = {
    "JSON": lambda m: [*m[:3], *m[4:]],
    "mask": lambda m: [*m[:4], *m[5:]],
    "image": lambda m: [*m[:5], *m[6:]],
    "all": lambda m: [*m[:3], *m[6:]],
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_swapped_members_are_found_in_both_samples(lake, change):
    write_shard(shard(lake), CHANGES[change](members(shard(lake))))
    for _ in range(2):
        assert {f.sample for f in damage(verify(lake))} >= {row["sample_id"] for row in rows(lake)[:2]}
        believe(lake)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_a_member_that_is_gone_is_found_in_its_sample(lake, loss):
    write_shard(shard(lake), LOSSES[loss](members(shard(lake))))
    for _ in range(2):
        assert rows(lake)[1]["sample_id"] in {f.sample for f in damage(verify(lake))}
        believe(lake)


def test_swapped_shards_are_found_in_both(lake):
    first, second = shard(lake).read_bytes(), shard(lake, 1).read_bytes()
    shard(lake).write_bytes(second)
    shard(lake, 1).write_bytes(first)
    assert {f.file for f in damage(verify(lake))} == {str(shard(lake)), str(shard(lake, 1))}
    believe(lake)
    assert damage(verify(lake))


def test_a_shard_of_another_data_set_is_found(lake):
    shutil.copy(shard(lake, 0, "other"), shard(lake))
    believe(lake)
    told = [f for f in damage(verify(lake)) if f.file == str(shard(lake))]
    assert {f.sample for f in told} == {row["sample_id"] for row in rows(lake, 0, "other")}


def test_a_sample_that_stands_in_two_shards_is_found(lake):
    shutil.copy(shard(lake), shard(lake, 1))
    believe(lake)
    twice = [f.sample for f in damage(verify(lake)) if "and in" in f.problem]
    assert twice == sorted(row["sample_id"] for row in rows(lake))


def test_a_header_that_tar_takes_but_usdata_never_writes_is_found(lake):
    with tarfile.open(shard(lake), "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members(shard(lake.__class__(lake.root), 1)):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o644, 1
            tar.addfile(info, io.BytesIO(data))
    believe(lake)
    assert any("mode, owner, time, kind" in f.problem for f in damage(verify(lake)))


# --- what the rows say ---------------------------------------------------------------------------------------------


def other(value: object, kind: pa.DataType) -> object:
    if pa.types.is_boolean(kind):
        return not value
    if pa.types.is_list(kind):
        return [*(value or []), "another"]
    return f"{value}x" if pa.types.is_string(kind) else (value or 0) + 1


@pytest.mark.parametrize("column", SAMPLES.names)
def test_a_catalog_row_that_differs_from_its_shard_in_any_column_is_found(lake, column):
    table = read_part(lake.catalog_part("mine"))
    changed = table.to_pylist()
    plain = canonical(table, SAMPLES, coded=False).schema.field(column).type
    changed[2][column] = other(changed[2][column], plain)
    write_part(lake.catalog_part("mine"), canonical(table_of(changed), SAMPLES))
    believe(lake)
    told = damage(verify(lake, datasets=["mine"]))
    assert {f.file for f in told} == {str(lake.catalog_part("mine"))}
    if column not in ("sample_id", "shard"):
        assert [f.sample for f in told] == [rows(lake)[2]["sample_id"]]
        assert column in told[0].problem


def test_orphan_rows_and_rows_that_are_gone_are_found(lake):
    table = read_part(lake.catalog_part("mine"))
    orphan = table.slice(0, 1).to_pylist()[0] | {"shard": "shards/mine/mine-thyroid-000009.tar"}
    for changed in (table.to_pylist()[1:], [*table.to_pylist(), orphan], list(reversed(table.to_pylist()))):
        write_part(lake.catalog_part("mine"), canonical(table_of(changed), SAMPLES))
        believe(lake)
        told = damage(verify(lake))
        assert {f.file for f in told} == {str(lake.catalog_part("mine"))}
        assert {f.repair for f in told} == {f"usdata catalog --rebuild --lake {lake.root}"}


def rewrite(lake: Lake, change: dict, mask: np.ndarray | None) -> dict:
    """Write shard 0 of `mine` anew, with another row and mask for its first sample; catalog and manifest follow."""
    content, known = members(shard(lake)), rows(lake)
    known[0] |= change
    with shard(lake).open("wb") as file:
        writer = ShardWriter(file)
        for i, row in enumerate(known):
            classes = content[3 * i + 1][1] if i else None if mask is None else encode_mask(mask)
            row |= writer.add(row, content[3 * i + 2][1], classes)
        writer.close()
    rest = [row for row in read_part(lake.catalog_part("mine")).to_pylist() if row["shard"] != known[0]["shard"]]
    write_part(lake.catalog_part("mine"), canonical(table_of([*known, *rest]), SAMPLES))
    believe(lake)
    return known[0]


MASK = np.ones((256, 256), np.uint8)
CONTRADICTIONS = {
    "a class that has no name": ({}, MASK * 2, "the mask has the class 2"),
    "no names at all": ({"mask_classes": None}, MASK, "mask_classes does not name"),
    "has_mask, but none": ({}, None, "has_mask"),
    "a mask, but not has_mask": ({"has_mask": False}, MASK, "has_mask is false"),
    "a smaller mask": ({}, MASK[:128], "no 8-bit grey PNG of 256 x 256"),
    "another organ": ({"organ": "breast"}, MASK, "organ 'breast'"),
    "another data set": ({"dataset": "other"}, MASK, "data set 'other'"),
    "other pixels": ({"pixel_xxh": "0" * 32}, MASK, "pixel_xxh"),
    "another form of id": ({"sample_id": "mine-1"}, MASK, "16 hex digits"),
}


@pytest.mark.parametrize("case", list(CONTRADICTIONS))
def test_a_sample_that_contradicts_itself_is_found_though_every_hash_is_right(lake, case):
    change, mask, word = CONTRADICTIONS[case]
    row = rewrite(lake, change, mask)
    told = damage(verify(lake))
    assert [(f.sample, word in f.problem) for f in told] == [(row["sample_id"], True)]


def test_a_rewritten_shard_without_contradictions_is_fine(lake):
    rewrite(lake, {"patient": 'p-ünï "quoted"'}, MASK)
    assert damage(verify(lake)) == []


@pytest.mark.parametrize("name", ["splits", "duplicates"])
def test_curation_that_points_to_no_sample_is_found(lake, name):
    column = {"splits": "split", "duplicates": "duplicate_group"}[name]
    ids = [rows(lake)[0]["sample_id"], "mine-0000000000000000"]
    table = {"sample_id": ids, column: ["a", "a"]} | ({"group": ["g", "g"]} if name == "splits" else {})
    pq.write_table(pa.table(table), lake.root / f"catalog/{name}.parquet")
    told = damage(verify(lake))
    assert [(Path(f.file).stem, "1 rows point to no sample" in f.problem) for f in told] == [(name, True)]


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_missing_shard_and_one_too_many_are_found(lake):
    shutil.move(shard(lake, 1), lake.shard_folder("mine") / "mine-thyroid-000007.tar")
    told = {Path(f.file).name: f.problem for f in damage(verify(lake))}
    assert told == {
        "mine-thyroid-000001.tar": "the shard is missing, with its 3 samples",
        "mine-thyroid-000007.tar": "not in the manifest",
    }


def test_a_shard_that_can_not_be_read_is_a_finding(lake):
    shard(lake).unlink()
    shard(lake).mkdir()
    told = damage(verify(lake))
    assert [(f.file, "can't be read" in f.problem) for f in told] == [(str(shard(lake)), True)]


def test_what_does_no_harm_is_a_note(lake):
    for name in ("shards/mine/.mine-thyroid-000000.tar.tmp", "notes.txt", ".staging/mine/mine-thyroid-000000.tar"):
        (lake.root / name).parent.mkdir(exist_ok=True)
        (lake.root / name).write_text("x")
    told = verify(lake)
    assert {f.level for f in told} == {"note"}
    assert {Path(f.file).name for f in told} == {".mine-thyroid-000000.tar.tmp", "notes.txt", "mine"}


@pytest.mark.parametrize("what", ["shards/mine", "shards", "manifests", "catalog/samples"])
def test_a_folder_that_is_a_link_to_another_disk_is_healthy(lake, tmp_path, what):
    shutil.move(lake.root / what, tmp_path / "elsewhere")
    (lake.root / what).symlink_to(tmp_path / "elsewhere")
    assert verify(lake) == []


@pytest.mark.parametrize("order", [1, -1])
def test_a_plain_copy_of_a_lake_whose_files_have_other_times_is_healthy(lake, order):
    for number, path in enumerate(sorted(lake.root.rglob("*"))[::order]):
        os.utime(path, (number, number))
    assert verify(lake) == []


def test_views_of_another_catalog_are_a_note_and_a_damaged_file_of_views_is_damage(lake):
    path = lake.root / "catalog.duckdb"
    with duckdb.connect(str(path)) as con:
        con.execute("create or replace view organs as select 1 as organ")
    assert [(f.level, f.file) for f in verify(lake)] == [("note", str(path))]
    good = path.read_bytes()
    for bad in (good[:5000], b"", good[:4200] + bytes(8000) + good[12_200:], b"x" * len(good)):
        path.write_bytes(bad)
        assert [(f.file, f.repair.split()[:3]) for f in damage(verify(lake))] == [
            (str(path), ["usdata", "catalog", "--rebuild"])
        ]


def test_a_part_too_many_is_one_finding_in_that_part(lake):
    part = lake.catalog_part("mine")
    extra = [part.with_name("mine copy.parquet"), part.parent / "mine/part-0.parquet"]
    extra[1].parent.mkdir()
    for path in extra:
        shutil.copy(part, path)
    told = damage(verify(lake))
    assert {f.file: f.repair for f in told} == {str(path): f"rm {shlex.quote(str(path))}" for path in extra}
    assert len(told) == 2


@pytest.mark.parametrize(("name", "wrong"), [("splits", "group"), ("splits", "sample_id"), ("duplicates", "sample_id")])
def test_a_column_of_curation_with_another_type_is_found(lake, name, wrong):
    columns = {"splits": ["sample_id", "group", "split"], "duplicates": ["sample_id", "duplicate_group"]}[name]
    path = lake.root / f"catalog/{name}.parquet"
    pq.write_table(pa.table({column: [1] if column == wrong else ["x"] for column in columns}), path)
    assert [(f.file, f.problem) for f in damage(verify(lake))] == [
        (str(path), f"the column {wrong!r} holds int64, not string")
    ]


@pytest.mark.parametrize("size", [8**11 - 1, 600_000_000])
def test_a_header_that_promises_a_huge_member_is_found_without_making_room_for_it(lake, size):
    path, known = shard(lake), rows(lake)
    good = path.read_bytes()
    second = known[1]["json_offset"] - 512
    head = header(f"{known[1]['sample_id']}.json".encode(), size)
    with path.open("wb") as file:
        file.write(good[:second] + head + good[second + 512 :])
        file.truncate(700_000_000 if size < 700_000_000 else len(good))  # a hole, as large as it promises
    tracemalloc.start()
    scan = ShardScan(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000
    assert any(f"{size} bytes" in fault.problem for fault in scan.faults)
    assert known[2]["sample_id"] in {sample.key for sample in scan.samples}


def test_an_ingest_under_way_is_not_even_a_note(lake):
    (lake.staging("mine") / "0123").mkdir(parents=True)
    with only_ingest(lake, "mine"):
        assert verify(lake) == []
    assert [f.level for f in verify(lake)] == ["note"]


def test_a_cohort_that_the_lake_outgrew_is_a_note_and_a_changed_one_is_damage(root, lake):
    fill(root, "third", lake.root, images=2)
    assert [(f.level, Path(f.file).name) for f in verify(lake)] == [("note", "harmless.json")]
    path = lake.root / "cohorts/harmless.json"
    path.write_text(path.read_text().replace("benign", "malignant"))
    assert [(f.level, f.file) for f in verify(lake)] == [("damage", str(path))]


def test_a_data_set_that_is_replaced_meanwhile_is_reported_as_changed_and_not_as_damaged(root, lake):
    def replace(what: str, done: int, total: int) -> None:
        if not changed:
            changed.append(what)
            (root / "mine/source/images/benign/n000.png").unlink()
            (root / "mine/source/masks/n000.png").unlink()
            fill(root, "mine", lake.root)

    changed: list[str] = []
    told = verify(lake, progress=replace)
    assert changed
    assert [(f.level, f.dataset) for f in told if f.level != "note"] == [("changed", "mine")]
    assert damage(verify(lake)) == []


def test_the_findings_are_the_same_for_any_number_of_workers(lake, monkeypatch):
    for number in range(3):
        flip(shard(lake, number), 70_000 + number)
    flip(shard(lake, 1, "other"), 300)
    alone = verify(lake)
    assert len(alone) == 4
    monkeypatch.setattr("usdata.workers._WORTH_A_PROCESS", 1)
    told: list[tuple[int, int]] = []
    assert verify(lake, workers=2, progress=lambda _, done, total: told.append((done, total))) == alone
    assert len(told) == 5 and told[-1][0] == told[-1][1]


def test_a_remote_lake_is_verified_where_it_is(lake, monkeypatch):
    monkeypatch.setattr(lake, "remote", object())
    with pytest.raises(LakeError, match="where the lake is"):
        verify(lake)
