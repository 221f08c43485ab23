"""The flow `ingest/private`: Prefect is told counts and closed words, nothing of a file, a folder or the key."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakes.deid_dicom import ultrasound
from fakes.deid_run import World
from fakes.deid_search import Needles, artifacts
from fakes.deid_secrets import Secret, of_key
from fakes.folders import tree_digest

from ingest import run
from ingest.deid.inputs import find_source
from ingest.deid.private import private_card
from pipelines.deployments import specs
from usdata.errors import CardError, DataError, LakeError
from usdata.lake import Lake

FOLDER, FILE = "Xaverina_Quorbeltal_8391047562", "Zwindorfer-Ophelia-1931.dcm"
NAMES = Secret("folder and file", ("Quorbeltal", "8391047562", "Zwindorfer"), "Quorbeltal")


@pytest.fixture
def private(flows: ModuleType) -> ModuleType:
    """The module `pipelines.private`, with the test's own Prefect server behind it."""
    from pipelines import private

    return private


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A site with two patients' files; the worker's environment says where they and the key are."""
    made = World(tmp_path / "world")
    site = made.source / "site_a"
    for number, name in enumerate((FILE, f"b{FILE}")):
        ultrasound(f"flow {number}").write(site / FOLDER / name)
    (site / FOLDER / "notes Quorbeltal.txt").write_text("Zwindorfer")
    monkeypatch.setenv("USDATA_PRIVATE_DIR", str(made.source))
    monkeypatch.setenv("USDATA_DEID_KEY_FILE", str(made.key))
    monkeypatch.setenv("HOME", str(made.root / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(made.root / "home" / "state"))
    return made


def needles(world: World) -> Needles:
    """Everything of the site that Prefect must not know: names, the files' own identity, the key and its path."""
    places = Secret("private paths", (str(world.source), str(world.key)), str(world.source))
    drafts = [secret for number in range(2) for secret in ultrasound(f"flow {number}").planted()]
    key = replace(of_key(world.key_bytes()), value="key")  # an empty text has a digest that is not the key's
    return Needles([NAMES, places, key, *drafts])


def told(*words: str) -> Iterator[Any]:
    """All that Prefect has stored, after its log holds `words`: its database opened to the cells, and its home."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_HOME

    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    database = Path((url if isinstance(url, str) else url.get_secret_value()).partition("///")[2])
    assert database.is_file()
    end = time.monotonic() + 20
    found = list(artifacts(database.parent, "database"))
    while not all(any(word.encode() in one.data for one in found) for word in words):
        assert time.monotonic() < end, "the log never came"
        time.sleep(0.3)
        found = list(artifacts(database.parent, "database"))
    yield from found
    yield from artifacts(Path(PREFECT_HOME.value()), "home")


# --- a run that goes well ---------------------------------------------------------------------------------------------


@pytest.mark.deid
def test_the_flow_writes_what_the_plain_function_writes_and_tells_prefect_nothing(private, world, tmp_path, capfd):
    lake = tmp_path / "lake"
    record = private.ingest_private("site_a", lake=lake, organ="thyroid", workers=2)
    assert (record["files"], record["samples"], record["quarantined"]) == (3, 2, 1)
    assert "notes" not in record
    card, plain = private_card("site_a", "thyroid"), Lake.create(tmp_path / "plain")
    source = find_source(None, "site_a")
    run.ingest(card, source, plain, rules=private.rules_of(card, None, source=source))
    assert tree_digest(lake) == tree_digest(plain.root)
    again = private.ingest_private("site_a", lake=lake, organ="thyroid", workers=1)
    assert again["shards_built"] == 0 and not again["changed"]
    leaks = needles(world).search(told("2 images in the lake", "1 already right"))
    assert not leaks, "\n".join(map(str, leaks))
    printed = capfd.readouterr()
    assert not needles(world).in_bytes((printed.out + printed.err).encode(), text=True)


def test_no_result_is_stored_and_nothing_printed_is_logged(private):
    assert private.ingest_private.persist_result is False and private.ingest_private.log_prints is False
    for step in (private.prepare, private.build, private.finish):
        assert step.persist_result is False and step.log_prints is False
        assert step.cache_policy.compute_key(None, {}, {}) is None  # NO_CACHE


def test_the_parameters_can_hold_no_path_of_a_file_and_no_key(private):
    assert set(private.ingest_private.parameters.properties) == {"name", "lake", "organ", "workers"}


def test_the_deployment_is_called_ingest_private_and_names_its_flow():
    from pkgutil import resolve_name

    [spec] = [spec for spec in specs("lake") if spec.name == "private"]
    assert spec.flow == "ingest" and set(spec.parameters) == {"lake"}
    assert resolve_name(spec.entrypoint).name == "ingest"


def test_serve_tells_how_to_ask_for_it_where_folder_and_key_are_known(world, tmp_path, monkeypatch, capsys):
    from pipelines.serve import _welcome

    line = "prefect deployment run ingest/private -p name=FOLDER --watch"
    _welcome("http://127.0.0.1:4200/api", tmp_path / "lake", None)
    said = capsys.readouterr().err
    assert line in said and str(world.source) not in said
    assert "Without files: abdomen_us," in said and " in all (" in said
    monkeypatch.delenv("USDATA_PRIVATE_DIR")
    _welcome("http://127.0.0.1:4200/api", tmp_path / "lake", None)
    assert line not in capsys.readouterr().err


# --- runs that fail ---------------------------------------------------------------------------------------------------


@pytest.mark.deid
@pytest.mark.parametrize("variable", ["USDATA_PRIVATE_DIR", "USDATA_DEID_KEY_FILE"])
def test_a_worker_that_was_not_told_where_things_are_says_so(private, world, tmp_path, monkeypatch, variable):
    monkeypatch.delenv(variable)
    state = private.ingest_private("site_a", lake=tmp_path / "lake", return_state=True)
    assert state.is_failed() and variable in state.message


@pytest.mark.deid
def test_a_name_without_a_folder_is_told_without_the_place(private, world, tmp_path):
    state = private.ingest_private("site_b", lake=tmp_path / "lake", return_state=True)
    assert state.is_failed() and "USDATA_PRIVATE_DIR holds no folder of that name" in state.message
    assert str(world.source) not in state.message


@pytest.mark.deid
@pytest.mark.parametrize("name", ["../site_a", "/etc", "Site", "a" * 41])
def test_a_name_that_is_no_data_sets_name_is_refused_before_anything_is_opened(private, world, tmp_path, name):
    state = private.ingest_private(name, lake=tmp_path / "lake", return_state=True)
    assert state.is_failed() and not (tmp_path / "lake").exists()


@pytest.mark.deid
def test_a_key_that_others_can_read_is_refused_without_showing_where_it_lies(private, world, tmp_path):
    world.key.chmod(0o644)
    state = private.ingest_private("site_a", lake=tmp_path / "lake", return_state=True)
    assert state.is_failed() and "$USDATA_DEID_KEY_FILE" in state.message and str(world.key) not in state.message


@pytest.mark.deid
def test_an_empty_folder_fails_the_run_by_its_reason(private, world, tmp_path):
    (world.source / "empty").mkdir()
    state = private.ingest_private("empty", lake=tmp_path / "lake", return_state=True)
    assert state.is_failed() and "empty_folder" in state.message


ERRORS: list[Callable[[Path], Exception]] = [
    lambda file: ValueError(f"could not parse {file.name}: Quorbeltal"),
    lambda file: PermissionError(13, "Permission denied", str(file)),
    lambda file: KeyError("Zwindorfer"),
    lambda file: DataError("unreadable", f"{file} is damaged", item=str(file)),
    lambda file: LakeError(f"Can't write to {file} (Permission denied).", hint=f"chmod {file}"),
    lambda file: CardError("Bad.", item=f"{file}"),
]


@pytest.mark.deid
def test_no_error_brings_a_name_to_prefect(private, world, tmp_path, monkeypatch, caplog):
    found, said = needles(world), set()
    planned = [("finish", ERRORS[0]), *(("prepare", make) for make in ERRORS)]
    with caplog.at_level("DEBUG", logger="prefect"):
        for step, make in planned:
            with monkeypatch.context() as patch:
                patch.setattr(run, "prepare", lambda *args, **more: Planned())
                patch.setattr(run, step, failing(make(world.source / "site_a" / FOLDER / FILE)))
                state = private.ingest_private("site_a", lake=tmp_path / "lake", return_state=True)
            assert state.is_failed()
            said.add(state.message.splitlines()[0])
    assert not found.in_bytes(f"{said} {caplog.text}".encode(), text=True)
    assert said == {
        *(f"The run ended by a {kind}; its words could name a file." for kind in UNSPOKEN),
        "The files can't be used: unreadable.",
        "Bad.",
    }
    leaks = found.search(told(*said))
    assert not leaks, "\n".join(map(str, leaks))


UNSPOKEN = ("ValueError", "PermissionError", "KeyError", "LakeError")


def failing(error: Exception) -> Callable[..., None]:
    def fail(*args: object, **more: object) -> None:
        raise error

    return fail


class Planned:
    """A plan without jobs."""

    jobs: tuple[()] = ()
    finished: tuple[()] = ()
