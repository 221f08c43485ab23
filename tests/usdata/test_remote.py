"""A lake on S3, in memory or behind file://: its catalog is mirrored whole, and nothing is written to it."""

import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fakes.s3 import IMPATIENT, Flaky, bucket, lake_files, many_shards, s3_server, upload
from typer.testing import CliRunner

from ingest.card import get_card
from ingest.run import ingest
from usdata.cli import command_line
from usdata.errors import LakeError, UsdataError
from usdata.files import file_xxh
from usdata.lake import Lake
from usdata.rebuild import rebuild_catalog
from usdata.remote import Patience, Remote, _remove

COUNTS = "select organ, count(*) as n from samples group by organ order by organ"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = many_shards(tmp_path_factory.mktemp("remote") / "lake", images=20)
    lake.cohort("organ = 'breast'").save("breasts")
    return lake


@pytest.fixture(scope="module")
def server(local: Lake) -> Iterator[tuple[str, Flaky]]:
    with s3_server() as (direct, proxy):
        upload(local.root, direct, "bucket/lake")
        yield direct, proxy


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("USDATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Patience.__init__, "__defaults__", (3, 0.01, 0.05, 20.0))
    return tmp_path / "cache"


@pytest.fixture
def proxy(server: tuple[str, Flaky]) -> Flaky:
    server[1].reset()
    return server[1]


def options(proxy: Flaky) -> dict[str, Any]:
    return {"endpoint_url": proxy.url, "config_kwargs": IMPATIENT}


def far(proxy: Flaky, name: str = "lake") -> Lake:
    return Lake(f"s3://bucket/{name}", options(proxy))


@pytest.fixture(params=["s3", "memory", "file"])
def address(request: pytest.FixtureRequest, local: Lake) -> str:
    if request.param == "s3":
        request.getfixturevalue("proxy")
        return "s3://bucket/lake"
    if request.param == "file":
        return f"file://{local.root}"
    store = fsspec.filesystem("memory")
    for name in lake_files(local.root):
        store.pipe_file(f"/remote/lake/{name}", (local.root / name).read_bytes())
    return "memory://remote/lake/"


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_remote_lake_answers_as_the_local_one(local, address):
    lake = Lake(address)
    assert lake.remote is not None
    assert lake.address == address.rstrip("/")
    assert repr(lake) == f"Lake({lake.address!r})"
    assert lake.datasets() == ["phantom"]
    assert lake.sql(COUNTS).equals(local.sql(COUNTS))
    assert lake.scan().collect().equals(local.scan().collect())
    assert lake.cohort("breasts").hash == local.cohort("breasts").hash
    assert lake.cohort("breasts").name == "breasts"
    assert lake.read_manifest("phantom") == local.read_manifest("phantom")
    assert lake.root.name == "lake"
    shown = [batch["image"] for batch in lake.cohort("breasts").stream(4, workers=0)]
    assert shown[0].shape == (4, 1, 256, 256)


def test_the_keys_and_the_endpoint_may_come_from_the_environment(proxy, local):
    assert os.environ["AWS_ENDPOINT_URL"] == proxy.url
    assert Lake("s3://bucket/lake").sql(COUNTS).equals(local.sql(COUNTS))
    assert proxy.fetched("phantom.parquet")


def test_no_shard_is_fetched_for_a_question(proxy):
    far(proxy).cohort("organ = 'breast'").summary()
    assert not proxy.fetched("/shards/")


def test_a_second_opening_fetches_no_file_again(proxy):
    first = far(proxy)
    assert len(proxy.fetched(".parquet")) == 2
    proxy.reset()
    assert far(proxy).root == first.root
    assert not proxy.fetched(".parquet")
    assert not proxy.fetched(".json")


def test_a_mirror_is_readable_by_its_owner_only(proxy, cache):
    far(proxy)
    assert [path.stat().st_mode & 0o077 for path in (cache / "lakes").iterdir()] == [0]


def add_copy(local: Lake, endpoint: str, address: str, name: str = "later") -> None:
    """Put a data set of one image, under another name, beside what is there."""
    store = bucket(endpoint)
    part = local.catalog_part("phantom")
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(part).slice(0, 1)
    table = table.set_column(table.column_names.index("dataset"), "dataset", pa.array([name]).dictionary_encode())
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    store.pipe_file(f"{address}/catalog/samples/{name}.parquet", stream.getvalue().to_pybytes())


def test_a_lake_that_is_open_stays_as_it_was_and_a_new_one_sees_what_came(local, server, proxy):
    upload(local.root, server[0], "bucket/growing")
    before = far(proxy, "growing")
    add_copy(local, server[0], "bucket/growing")
    proxy.reset()
    after = far(proxy, "growing")
    assert (before.datasets(), after.datasets()) == (["phantom"], ["later", "phantom"])
    assert before.sql("select count(*) n from samples").to_pylist() == [{"n": 20}]
    assert after.sql("select count(*) n from samples").to_pylist() == [{"n": 21}]
    assert [path.split("/")[-1] for path in proxy.fetched(".parquet")] == ["later.parquet"]  # the others were here


def test_states_that_nobody_uses_are_removed_and_others_stay(local, server, proxy):
    upload(local.root, server[0], "bucket/states")
    first = far(proxy, "states")
    add_copy(local, server[0], "bucket/states", "a")
    second = far(proxy, "states")
    assert first.root.exists()
    gone = first.root
    del first
    add_copy(local, server[0], "bucket/states", "b")
    third = far(proxy, "states")
    assert not gone.exists()
    assert second.root.exists()
    assert len({second.root, third.root}) == 2


def test_a_catalog_that_changes_while_it_is_read_is_read_again(local, server, proxy):
    upload(local.root, server[0], "bucket/moving")
    once = iter([True])

    def fault(method: str, path: str) -> None:
        if method == "GET" and "moving/catalog/samples/phantom" in path and next(once, False):
            add_copy(local, server[0], "bucket/moving")

    proxy.fault = fault
    assert far(proxy, "moving").datasets() == ["later", "phantom"]


def test_a_file_that_goes_while_the_catalog_is_read_is_a_change(local, server, proxy):
    upload(local.root, server[0], "bucket/going")
    once = iter([True])

    def fault(method: str, path: str) -> None:
        if method == "GET" and "going/" in path and "list-type" not in path and next(once, False):
            bucket(server[0]).rm_file("bucket/going/cohorts/breasts.json")

    proxy.fault = fault
    lake = far(proxy, "going")
    assert not (lake.root / "cohorts" / "breasts.json").exists()


def test_a_catalog_that_never_rests_is_refused_and_leaves_nothing(local, server, proxy, cache):
    upload(local.root, server[0], "bucket/restless")
    numbers = iter(range(100))

    def fault(method: str, path: str) -> None:
        if method == "GET" and "restless/lake.json" in path:
            bucket(server[0]).pipe_file("bucket/restless/cohorts/x.json", str(next(numbers)).encode() * 50)

    proxy.fault = fault
    with pytest.raises(LakeError, match="is being changed: a file was replaced"):
        # lake.json is fetched anew in each round, as no state was kept
        far(proxy, "restless")
    assert not [path for home in (cache / "lakes").iterdir() for path in home.iterdir() if path.name != ".lock"]


def test_a_catalog_part_that_is_not_its_manifests_is_refused(local, server, proxy):
    upload(local.root, server[0], "bucket/mixed")
    bucket(server[0]).pipe_file("bucket/mixed/catalog/samples/phantom.parquet", b"PAR1 of another ingest")
    with pytest.raises(LakeError, match="part of phantom is not the one that its manifest names") as caught:
        far(proxy, "mixed")
    assert "upload" in str(caught.value)


# --- what can't be opened -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://bucket/nothing", r"No lake at s3://bucket/nothing"),
        ("s3://no-such-bucket/lake", r"No lake at s3://no-such-bucket/lake"),
        ("memory://nothing", "No lake at memory://nothing"),
        ("file:///nothing/here", "No lake at file:///nothing/here"),
        ("nope://x/y", "nope"),
        ("s3:/bucket/lake", "two slashes"),
        (Path("s3://bucket/lake"), "two slashes"),
    ],
)
def test_an_address_without_a_lake_is_an_error_with_words(proxy, address, words):
    with pytest.raises(LakeError, match=words):
        Lake(address)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(LakeError, match="s3://") as caught:
        Lake("s3://bucket/lake")
    assert "pip install 'usdata[s3]'" in str(caught.value)


def test_a_server_that_can_not_be_reached_is_told_after_a_few_tries(proxy):
    gone = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": IMPATIENT}
    with pytest.raises(LakeError, match=r"can't be reached: 3 tries, the last one ended with: .*connect") as caught:
        Lake("s3://bucket/lake", gone)
    assert "AWS_ENDPOINT_URL" in str(caught.value)


def test_a_short_failure_at_opening_is_survived(proxy, local):
    once = iter([503, "cut"])
    proxy.fault = lambda method, path: next(once, None) if method == "GET" else None
    assert far(proxy).sql(COUNTS).equals(local.sql(COUNTS))
    assert proxy.applied == [503, "cut"]


def test_missing_permission_is_told_as_such(proxy):
    proxy.fault = lambda method, path: 403
    with pytest.raises(LakeError, match="No permission") as caught:
        far(proxy)
    assert "AWS_PROFILE" in str(caught.value)
    assert len(proxy.seen) == 1


def test_a_later_format_is_refused(local, server, proxy):
    store = bucket(server[0])
    store.pipe_file("bucket/later/lake.json", b'{"format": 99, "interpolation": "bilinear-aa"}')
    with pytest.raises(LakeError, match="s3://bucket/later has lake format 99"):
        far(proxy, "later")


@pytest.mark.parametrize("name", ["catalog/../../../evil.json", "catalog/samples/a b.parquet", "catalog/samples/x.exe"])
def test_a_name_that_is_no_lake_file_is_refused(local, monkeypatch, name, cache):
    store = fsspec.filesystem("memory")
    for file in lake_files(local.root):
        store.pipe_file(f"/odd/{file}", (local.root / file).read_bytes())
    find = type(store).find
    odd = {f"/odd/{name}": {"name": f"/odd/{name}", "size": 2, "type": "file"}}
    monkeypatch.setattr(type(store), "find", lambda *a, **k: find(*a, **k) | odd)
    with pytest.raises(LakeError, match="no file of a lake"):
        Lake("memory://odd")
    assert not list(cache.rglob("*evil*"))


# --- it is only read ------------------------------------------------------------------------------------------------


def test_nothing_can_be_written_to_a_remote_lake(proxy, local):
    lake = far(proxy)
    before = {path: file_xxh(path) for path in lake.root.rglob("*") if path.is_file()}
    attempts = [
        lambda: lake.cohort("organ = 'breast'").save("mine"),
        lambda: list(rebuild_catalog(lake)),
        lambda: ingest(get_card("phantom"), None, lake, count=3),
        lambda: Lake.create("s3://bucket/other"),
        lambda: lake.staging("x"),
        lambda: lake.commit_lock(),
    ]
    proxy.seen.clear()
    for attempt in attempts:
        with pytest.raises(UsdataError, match="only reads remote lakes") as caught:
            attempt()
        assert "local lake" in str(caught.value)
    assert not [method for method, _ in proxy.seen if method in ("PUT", "POST", "DELETE")]
    assert {path: file_xxh(path) for path in before} == before


def test_a_remote_lake_can_go_to_another_process_and_keeps_its_state_there(local, server, proxy):
    upload(local.root, server[0], "bucket/sent")
    lake = far(proxy, "sent")
    sent = pickle.loads(pickle.dumps(lake))
    add_copy(local, server[0], "bucket/sent")
    root = lake.root
    del lake
    assert far(proxy, "sent").root != root
    assert sent.root == root
    assert sent.sql(COUNTS).equals(local.sql(COUNTS))


def test_a_remote_object_tells_whether_a_file_changed(local):
    store = fsspec.filesystem("memory")
    for file in lake_files(local.root):
        store.pipe_file(f"/told/{file}", (local.root / file).read_bytes())
    remote = Remote("memory://told")
    remote.mirror()
    assert not remote.changed("manifests/phantom.json")
    store.pipe_file("/told/manifests/phantom.json", b"{}")
    assert remote.changed("manifests/phantom.json")
    store.rm_file("/told/manifests/phantom.json")
    assert remote.changed("manifests/phantom.json")


# --- on the command line --------------------------------------------------------------------------------------------


def usdata(*words: str) -> Any:
    return CliRunner().invoke(command_line(), list(words))


@pytest.mark.parametrize(
    "words",
    [
        ("sql", COUNTS, "--json"),
        ("catalog", "--json"),
        ("plan", "--gamma", "0.5", "--json"),
        ("cohort", "show", "breasts", "--json"),
        ("cohort", "ls", "--json"),
    ],
)
def test_reading_verbs_take_an_address(proxy, local, words):
    near, remote = usdata(*words, "--lake", str(local.root)), usdata(*words, "--lake", "s3://bucket/lake")
    assert near.exit_code == remote.exit_code == 0
    assert near.stdout == remote.stdout
    assert near.stdout.count("\n") >= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ingest", "phantom", "--images", "3"), "only reads remote lakes"),
        (("cohort", "save", "mine", "true"), "only reads remote lakes"),
        (("catalog", "--rebuild"), "only reads remote lakes"),
        (("verify",), "is remote: verify reads every byte"),
    ],
)
def test_other_verbs_refuse_an_address(proxy, words, said):
    result = usdata(*words, "--lake", "s3://bucket/lake")
    assert isinstance(result.exception, UsdataError)
    assert said in str(result.exception)
    assert "s3://bucket/lake" in str(result.exception)


def test_a_mirror_on_a_read_only_disk_is_told(proxy, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("USDATA_CACHE", str(blocked))
    with pytest.raises(LakeError, match="Can't write"):
        far(proxy)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


# --- a mirror that lost something ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["lake.json", "catalog/samples", "manifests", "listing.json"])
def test_a_mirror_of_which_files_are_gone_is_fetched_again(local, cache, lost):
    address = f"file://{local.root}"
    folder = Lake(address).root.parent
    gone = [p for p in folder.rglob("*") if lost in str(p.relative_to(folder)) and p.is_file()]
    assert gone
    for path in gone:
        path.unlink()
    again = Lake(address)
    assert again.sql(COUNTS).equals(local.sql(COUNTS))
    assert again.datasets() == local.datasets()


def test_a_state_whose_removal_was_killed_is_no_state(local, cache, monkeypatch):
    address = f"file://{local.root}"
    folder = Lake(address).root.parent

    def killed(path: Path) -> None:
        next(path.rglob("*.parquet")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("usdata.remote.shutil.rmtree", killed)
        _remove(folder.parent, folder)
    assert not folder.exists()
    assert Lake(address).sql(COUNTS).equals(local.sql(COUNTS))
    assert not list(folder.parent.glob(".draft-*"))
