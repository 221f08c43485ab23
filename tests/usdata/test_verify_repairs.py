"""What `usdata verify` says repairs a lake; the catalog comes back from the shards; and the parts of both."""

import json
import shlex
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from fakes.damage import believe, fill, flip, make_origin, rows, seal_all, shard
from fakes.folders import tree_digest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.card import get_card
from ingest.readers.mask import encode_mask
from ingest.run import ingest
from usdata import cli, png
from usdata.errors import DataError, LakeError
from usdata.files import read_json, write_json
from usdata.lake import Lake
from usdata.mask_png import highest_class
from usdata.rebuild import rebuild_catalog
from usdata.row_text import row_texts
from usdata.schema import LOCATION_COLUMNS, SAMPLES, row_json, table_of
from usdata.seal import seal
from usdata.shards import header
from usdata.verify import check_head, verify
from usdata.verify_shard import pack_rows, unpack_rows


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


# --- repairs -------------------------------------------------------------------------------------------------------


def run(root: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what a finding says, in this process; PATH and the card are filled in, as a person would."""
    for one in command.split(" && "):
        words = shlex.split(one, comments=True)
        if words[0] == "rm":
            path = Path(words[-1])
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            continue
        if words[0] == "mv":
            shutil.move(words[1], root / "elsewhere")
            continue
        if words[0] == "printf":
            Path(words[-1]).write_text(words[2] + "\n")
            continue
        if words[1:3] == ["ingest", "phantom"]:
            words += ["--workers", "1"]
        elif words[1] == "ingest":
            if words[2] == "--card":
                words[3] = str(root / "mine/mine.yaml")
            else:
                words[2:3] = ["--card", str(root / words[2] / "mine.yaml")]
            words[words.index("--from") + 1] = str(Path(words[3]).parent / "source")
            words += ["--workers", "1"]
        if "CONDITION" in words:
            words[words.index("CONDITION")] = "label = 'benign'"
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code


def lose(path: str) -> Callable[[Lake], None]:
    return lambda lake: (lake.root / path).unlink()


def spoil(path: str, offset: int) -> Callable[[Lake], None]:
    return lambda lake: flip(lake.root / path, offset)


def trusted(lake: Lake) -> None:
    flip(shard(lake), 70_000)
    believe(lake)


def in_place(path: str, old: str, new: str) -> Callable[[Lake], None]:
    return lambda lake: (lake.root / path).write_text((lake.root / path).read_text().replace(old, new))


def folder(path: str) -> Callable[[Lake], None]:
    """Put a folder with a file in it in the place of a file."""

    def change(lake: Lake) -> None:
        (lake.root / path).unlink()
        (lake.root / path).mkdir()
        (lake.root / path / "x").write_text("x")

    return change


DAMAGES: dict[str, Callable[[Lake], None]] = {
    "a flipped shard": spoil("shards/mine/mine-thyroid-000000.tar", 70_000),
    "a flipped shard that the manifest takes for right": trusted,
    "a lost shard": lose("shards/mine/mine-thyroid-000001.tar"),
    "a lost catalog part": lose("catalog/samples/mine.parquet"),
    "a flipped catalog part": spoil("catalog/samples/mine.parquet", 300),
    "a lost manifest": lose("manifests/mine.json"),
    "a flipped manifest": spoil("manifests/mine.json", 30),
    "a lost quarantine": lose("quarantine/mine.parquet"),
    "an extra shard": lambda lake: shutil.copy(shard(lake), shard(lake, 9)),
    "an extra file": lambda lake: (lake.root / "it's mine.txt").write_text("x"),
    "a lost catalog.duckdb": lose("catalog.duckdb"),
    "a flipped version in lake.json": spoil("lake.json", 26),
    "a flipped cohort": spoil("cohorts/harmless.json", 30),
    "another condition in a cohort": in_place("cohorts/harmless.json", "'benign'", "'malign'"),
    "another interpolation in lake.json": in_place("lake.json", "bilinear-aa", "bilinear-fast"),
    "a cut catalog.duckdb": lambda lake: (lake.root / "catalog.duckdb").write_bytes(b"x" * 5000),
    **{
        f"a folder in place of {path}": folder(path)
        for path in ("catalog/samples/mine.parquet", "manifests/mine.json", "quarantine/mine.parquet", "catalog.duckdb")
    },
}


@pytest.mark.parametrize("case", list(DAMAGES))
def test_the_repair_that_is_offered_makes_the_lake_what_it_was(root, lake, monkeypatch, case):
    good = tree_digest(lake.root)
    DAMAGES[case](lake)
    told = verify(Lake(lake.root))
    assert told
    for command in dict.fromkeys(f.repair for f in told):
        run(root, command, monkeypatch)
    seal_all(lake)
    assert verify(lake) == []
    assert tree_digest(lake.root) == good


def test_a_wrong_word_in_lake_json_is_one_finding_and_the_manifests_know_the_right_one(lake):
    path = lake.root / "lake.json"
    good = path.read_bytes()
    for bad in (good.replace(b"bilinear-aa", b"bilinear-fast"), good.replace(b"bilinear-aa", b"x"), b"no JSON", b""):
        path.write_bytes(bad)
        (told,) = check_head(lake.root)
        assert "bilinear-aa" in told.repair and "bilinear-fast" not in told.repair
    path.write_bytes(good.replace(b"bilinear-aa", b"bilinear-fast"))
    flip(shard(lake), 70_000)
    told = verify(Lake(lake.root))
    assert [Path(f.file).name for f in told] == ["lake.json", shard(lake).name]
    for name in ("mine", "other"):
        lake.manifest(name).unlink()
    assert "bilinear-aa" in check_head(lake.root)[0].repair  # the word that fits the seal


def test_a_lake_json_without_a_seal_is_compared_with_the_manifests(lake):
    head = read_json(lake.root / "lake.json")
    del head["seal"]
    write_json(lake.root / "lake.json", head)
    assert check_head(lake.root) == []
    write_json(lake.root / "lake.json", head | {"interpolation": "bilinear-fast"})
    assert "'bilinear-aa'" in check_head(lake.root)[0].problem


def test_the_repair_of_a_data_set_is_for_a_card_of_the_package_or_for_one_of_your_own(root, lake, monkeypatch):
    lake.manifest("mine").unlink()
    place = f"--from PATH --lake {lake.root}"
    own, known = f"usdata ingest --card FILE {place}", f"usdata ingest mine {place}"
    for registered, wanted in (
        ({"other"}, own),
        ({"mine"}, known),
        (None, f"{known}  # with a card of your own: {own}"),
    ):
        assert [f.repair for f in verify(lake, registered=registered)] == [wanted]
    run(root, own, monkeypatch)
    assert verify(lake) == []


def test_a_generated_data_set_of_which_nobody_knows_the_size_is_not_drawn_by_a_default(tmp_path):
    lake = Lake.create(tmp_path / "lake")
    ingest(get_card("phantom"), None, lake, count=3)
    lake.manifest("phantom").unlink()
    part = lake.catalog_part("phantom")
    good = part.read_bytes()
    part.write_bytes(good[:-9])
    assert [f.repair for f in verify(lake) if "ingest" in f.repair] == [
        f"usdata ingest phantom --images 3 --lake {lake.root}"  # as many as are in the shards
    ]
    first = min(lake.shard_folder("phantom").iterdir())
    flip(first, 70_000)
    assert {f.repair for f in verify(lake) if "ingest" in f.repair} == {
        f"usdata ingest phantom --images N --lake {lake.root}"
    }


def test_what_usdata_did_not_write_is_moved_and_what_an_ingest_left_is_removed(lake):
    (lake.root / "my thesis").mkdir()
    (lake.root / "my thesis/.notes.tmp").write_text("x")
    (lake.shard_folder("mine") / "photos.tar").mkdir()
    (lake.staging("mine") / "0123").mkdir(parents=True)
    repairs = {Path(f.file).name: f.repair for f in verify(lake)}
    assert repairs == {
        ".notes.tmp": f"mv '{lake.root}/my thesis/.notes.tmp' ELSEWHERE",
        "photos.tar": f"mv {lake.shard_folder('mine')}/photos.tar ELSEWHERE",
        "mine": f"rm -r {lake.root}/.staging/mine",
    }


def test_the_repair_of_a_generated_data_set_draws_as_many_images_as_there_were(tmp_path, monkeypatch):
    lake = Lake.create(tmp_path / "lake")
    ingest(get_card("phantom"), None, lake, count=3)
    good = tree_digest(lake.root)
    lake.manifest("phantom").unlink()
    run(tmp_path, verify(lake)[0].repair, monkeypatch)
    assert verify(lake) == [] and tree_digest(lake.root) == good


def test_the_command_lists_findings_and_fails_only_if_something_is_wrong(lake, monkeypatch, capsys):
    def usdata(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["usdata", *words, "--lake", str(lake.root)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, capsys.readouterr().out

    (lake.root / "notes.txt").write_text("x")
    code, out = usdata("verify", "--json")
    assert (code, json.loads(out)["level"]) == (0, "note")
    flip(shard(lake), 70_000)
    code, out = usdata("verify", "mine", "--workers", "1", "--json")
    assert (code, json.loads(out)["sample"]) == (1, rows(lake)[1]["sample_id"])
    assert usdata("verify", "other")[0] == 0
    assert usdata("verify", "othr")[0] == 1


# --- the catalog from the shards alone -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_the_catalog_is_rebuilt_byte_for_byte_and_manifests_are_left_to_the_ingest(root, lake, monkeypatch, workers):
    good = tree_digest(lake.root)
    shutil.rmtree(lake.root / "catalog")
    shutil.rmtree(lake.root / "manifests")
    (lake.root / "catalog.duckdb").unlink()
    monkeypatch.setattr("usdata.workers._WORTH_A_PROCESS", 1)
    assert list(rebuild_catalog(lake, workers)) == ["mine", "other"]
    there = {name for name in good if not name.startswith("manifests")}
    assert tree_digest(lake.root) == {name: good[name] for name in there}
    assert {Path(f.file).name for f in verify(lake)} == {"mine.json", "other.json"}
    for name in ("mine", "other"):
        fill(root, name, lake.root)
    seal_all(lake)
    assert tree_digest(lake.root) == good and verify(lake) == []


def test_a_data_set_that_must_be_refused_does_not_keep_the_others_from_being_rebuilt(lake):
    good = tree_digest(lake.root)
    flip(shard(lake), 700)
    shutil.rmtree(lake.root / "catalog")
    done = []
    with pytest.raises(LakeError, match="do not match their hash"):
        for name in rebuild_catalog(lake):
            done.append(name)
    assert done == lake.datasets() == ["other"]
    assert tree_digest(lake.root)["catalog/samples/other.parquet"] == good["catalog/samples/other.parquet"]


@pytest.mark.parametrize("place", [3, 130, 700, 1500])
def test_without_a_manifest_a_damaged_header_or_json_is_still_refused(lake, place):
    lake.manifest("mine").unlink()
    lake.catalog_part("mine").unlink()
    flip(shard(lake, 1), place)
    with pytest.raises(LakeError, match="mine-thyroid-000001"):
        list(rebuild_catalog(lake))
    assert lake.datasets() == ["other"]


def test_a_part_without_shards_is_removed_and_said(lake):
    shutil.rmtree(lake.shard_folder("mine"))
    lake.manifest("mine").unlink()
    said: list[str] = []
    assert list(rebuild_catalog(lake, say=said.append)) == ["other"]
    assert lake.datasets() == ["other"]
    assert [str(lake.catalog_part("mine")) in sentence for sentence in said] == [True]


def test_a_part_whose_shards_are_gone_but_listed_is_left(lake):
    shutil.rmtree(lake.shard_folder("mine"))
    with pytest.raises(LakeError, match="the shard is missing"):
        list(rebuild_catalog(lake))
    assert lake.datasets() == ["mine", "other"]


@pytest.mark.parametrize("of", ["mine", "all"])
def test_a_part_whose_shards_are_on_a_disk_that_is_not_mounted_is_left(lake, tmp_path, of):
    link = lake.shard_folder("mine") if of == "mine" else lake.root / "shards"
    shutil.rmtree(link)
    link.symlink_to(tmp_path / "unmounted")
    lake.manifest("mine").unlink()
    assert not [f for f in verify(lake) if f.repair.startswith("rm")]
    with pytest.raises(LakeError, match=r"not mounted|is missing"):
        list(rebuild_catalog(lake))
    assert lake.datasets() == ["mine", "other"]


STRANGERS: dict[str, tuple[Callable[[Lake], object], str]] = {
    "of another data set": (lambda lake: shutil.copy(shard(lake, 0, "other"), shard(lake, 7)), "dataset 'other'"),
    "of another name": (lambda lake: shutil.copy(shard(lake), shard(lake).with_name("x.tar")), "no shard's name"),
    "of another organ": (
        lambda lake: shutil.move(shard(lake), shard(lake).with_name("mine-breast-000000.tar")),
        "organ 'thyroid'",
    ),
    "that is there already": (lambda lake: shutil.copy(shard(lake), shard(lake, 7)), "3 samples stand in it twice"),
    "a link to nowhere": (lambda lake: shard(lake, 7).symlink_to("/nowhere"), "can't be read"),
}


@pytest.mark.parametrize("case", list(STRANGERS))
def test_without_a_manifest_a_strange_shard_refuses_its_data_set_alone(lake, case):
    change, problem = STRANGERS[case]
    lake.manifest("mine").unlink()
    good = lake.catalog_part("mine").read_bytes()
    change(lake)
    done = []
    with pytest.raises(LakeError, match=problem):
        for name in rebuild_catalog(lake):
            done.append(name)
    assert done == ["other"]
    assert lake.catalog_part("mine").read_bytes() == good


@pytest.mark.parametrize("step", ["write_part", "write_json", "write_duckdb"])
def test_a_rebuild_that_is_killed_leaves_a_lake_that_the_next_one_finishes(lake, monkeypatch, step):
    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    good = tree_digest(lake.root)
    lake.catalog_part("mine").unlink()
    write_json(lake.manifest("mine"), seal(read_json(lake.manifest("mine")) | {"catalog_xxh": "0" * 32}))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"usdata.rebuild.{step}", killed)
        list(rebuild_catalog(lake))
    assert "other" in lake.datasets()
    assert list(rebuild_catalog(lake)) == ["mine", "other"]
    assert tree_digest(lake.root) == good and verify(lake) == []


# --- the parts -----------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=100).filter(lambda name: b"\0" not in name), st.integers(0, 8**11 - 1))
def test_a_header_is_what_tarfile_writes(name, size):
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.size, info.mode, info.mtime = size, 0o444, 0
    if not name.endswith(b"/") and b"/" not in name:
        assert header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [(b"x" * 101, 1), (b"x", 8**11)])
def test_a_name_or_a_size_without_room_in_a_header_is_an_error(name, size):
    with pytest.raises(ValueError, match="no room"):
        header(name, size)


def values(kind: pa.DataType) -> st.SearchStrategy[object]:
    if pa.types.is_dictionary(kind):
        return values(kind.value_type)
    if pa.types.is_list(kind):
        return st.lists(values(kind.value_type), max_size=3)
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_floating(kind):
        return st.floats(allow_nan=False, allow_infinity=False)
    if pa.types.is_string(kind):
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    low, high = (0, 2**64 - 1) if kind == pa.uint64() else (-(2**31), 2**31 - 1)
    return st.integers(low, high)


ROWS = st.lists(st.fixed_dictionaries({f.name: st.none() | values(f.type) for f in SAMPLES}), max_size=4)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_the_texts_of_many_rows_are_those_of_each(given_rows):
    table = table_of(given_rows)
    assert row_texts(table) == [row_json(row) for row in given_rows]
    assert row_texts(unpack_rows(pack_rows(table))) == row_texts(table)
    assert row_texts(table.slice(1)) == row_texts(table)[1:]


def test_the_location_is_not_part_of_a_text():
    row = {"sample_id": "x", "organ": "eye"}
    places = dict.fromkeys(LOCATION_COLUMNS, 1) | {"shard": "s"}
    assert row_texts(table_of([row | places])) == [b'{"organ":"eye","sample_id":"x"}']


@given(st.integers(0, png.SIZE - 1), st.integers(0, 7))
def test_reading_an_image_with_checks_agrees_with_the_check_alone(place, bit):
    file = png.encode(np.arange(65_536, dtype=np.uint32).astype(np.uint8).reshape(1, 256, 256) ** 2)[0]
    out = np.zeros((256, 256), np.uint8)
    png.read_checked(file, out)
    assert (out == png.decode(file)).all()
    file[place] ^= 1 << bit
    with pytest.raises(DataError) as slow:
        png.check(file)
    with pytest.raises(DataError) as quick:
        png.read_checked(file, out)
    assert quick.value.reason == slow.value.reason


@pytest.mark.parametrize("filtered", [cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_FILTER_PAETH])
def test_the_highest_class_of_a_mask_is_read_with_and_without_row_filters(filtered):
    mask = np.zeros((256, 256), np.uint8)
    mask[30:90, 7:80] = 3
    encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_FILTER, filtered])[1].tobytes()
    assert highest_class(encoded) == 3


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flipped_bit_of_a_mask_is_found_in_the_mask(data):
    good = encode_mask(np.eye(256, dtype=np.uint8))
    place, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    with pytest.raises(DataError):
        highest_class(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])
    with pytest.raises(DataError):
        highest_class(good[:place])
