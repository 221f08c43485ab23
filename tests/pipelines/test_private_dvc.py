"""Private data under DVC: a list of keyed hashes stands for the files, and nothing of them is in what DVC keeps."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fakes.deid_dicom import ultrasound
from fakes.deid_run import World
from fakes.deid_search import Needles, artifacts
from fakes.deid_secrets import Secret, of_key

from ingest.deid.inputs import check_inputs, find_source, inputs_of, the_card
from ingest.deid.private import private_card, rules_of
from ingest.deid.rules import Rules
from pipelines.stages import read_params
from usdata.errors import CardError, ConfigError
from usdata.files import write_json
from usdata.lake import Lake

pytestmark = pytest.mark.deid  # dvc is slow to start: `make test-deid` runs these
PROJECT = Path(__file__).resolve().parents[2]
NAMES = Secret("folders and files", ("Quorbeltal", "8391047562", "Zwindorfer"), "Quorbeltal")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world with two sites' files."""
    return populate(World(tmp_path / "world"))


def populate(world: World) -> World:
    for number, site in enumerate(("site_a", "site_b")):
        ultrasound(f"dvc {number}").write(world.source / site / "Xaverina_Quorbeltal_8391047562" / "Zwindorfer.dcm")
    return world


def needles(world: World) -> Needles:
    """What no list, lock or shard may hold."""
    places = Secret("private paths", (str(world.source), str(world.key)), str(world.source))
    drafts = [secret for number in range(3) for secret in ultrasound(f"dvc {number}").planted()]
    key = replace(of_key(world.key_bytes()), value="key")  # an empty text's digest stands in any list
    return Needles([NAMES, places, key, *drafts])


def rules(world: World, name: str = "site_a") -> Rules:
    return rules_of(private_card(name), world.key, source=world.source, area=world.area)


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_holds_keyed_ids_and_hashes_and_nothing_else(world):
    found = inputs_of(private_card("site_a"), world.source / "site_a", rules(world))
    assert set(found) == {"format", "dataset", "templates", "files"}
    [(key, content)] = found["files"].items()
    assert key == world.identity().source("Xaverina_Quorbeltal_8391047562/Zwindorfer.dcm")
    assert len(content) == 32 and int(content, 16)
    assert not needles(world).in_bytes(json.dumps(found).encode(), text=True)


def test_a_changed_renamed_new_or_lost_file_changes_the_list(world):
    card, root, how = private_card("site_a"), world.source / "site_a", rules(world)
    seen = [inputs_of(card, root, how)["files"]]
    file = next(root.rglob("*.dcm"))
    file.write_bytes(file.read_bytes() + b"\0")
    seen.append(inputs_of(card, root, how)["files"])
    file.rename(file.with_name("b.dcm"))
    seen.append(inputs_of(card, root, how)["files"])
    (root / "c.dcm").write_bytes(b"c")
    seen.append(inputs_of(card, root, how)["files"])
    assert [len(files) for files in seen] == [1, 1, 1, 2]
    assert all(seen[k] != seen[k + 1] for k in range(3))
    assert list(seen[1].values()) == list(seen[2].values())  # the content is the same, the name is not


def test_a_list_of_other_files_or_templates_is_refused_with_the_command_that_renews_it(world, tmp_path):
    card, root, how = private_card("site_a"), world.source / "site_a", rules(world)
    path = tmp_path / "site_a.json"
    with pytest.raises(ConfigError, match="usdata deid-inputs --name site_a -o"):
        check_inputs(path, card, root, how)
    path.write_text(json.dumps(inputs_of(card, root, how)))
    check_inputs(path, card, root, how)
    (root / "new.dcm").write_bytes(b"new")
    with pytest.raises(ConfigError, match=r"1 files are new, gone or changed"):
        check_inputs(path, card, root, how)
    (root / "new.dcm").unlink()
    path.write_text(path.read_text().replace('"templates": "', '"templates": "0'))
    with pytest.raises(ConfigError, match="device templates changed"):
        check_inputs(path, card, root, how)


def test_the_folder_comes_from_the_environment_and_is_never_shown(monkeypatch, tmp_path):
    monkeypatch.delenv("USDATA_PRIVATE_DIR", raising=False)
    with pytest.raises(ConfigError, match="USDATA_PRIVATE_DIR is not set"):
        find_source(None, "site_a")
    monkeypatch.setenv("USDATA_PRIVATE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="holds no folder of that name") as caught:
        find_source(None, "site_a")
    assert str(tmp_path) not in str(caught.value)
    (tmp_path / "site_a").mkdir()
    assert find_source(None, "site_a") == tmp_path / "site_a"
    assert find_source(tmp_path, "site_a") == tmp_path


def test_a_card_of_public_files_is_no_private_data_set():
    with pytest.raises(CardError, match="of public files"):
        the_card(None, PROJECT / "ingest" / "cards" / "busi.yaml")
    for given in ((None, None), ("site_a", PROJECT / "ingest" / "cards" / "busi.yaml")):
        with pytest.raises(ConfigError, match="either --name SITE or --card FILE"):
            the_card(*given)


# --- dvc repro --------------------------------------------------------------------------------------------------------


class Clone:
    """The project's stages for private data in a folder of their own, and a shell that knows folder and key."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        folder.mkdir()
        for name in ("usdata", "ingest", "training", "pipelines", "dvc.yaml", ".dvcignore"):
            (folder / name).symlink_to(PROJECT / name)
        (folder / ".dvc").mkdir()
        (folder / ".dvc" / "config").write_text(
            "[core]\n    no_scm = true\n    analytics = false\n[cache]\n    type = hardlink\n"
        )
        params = yaml.safe_load((PROJECT / "params.yaml").read_text())
        params["private"] = {"site_a": {"organ": "thyroid"}, "site_b": {}}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "PYTHON"))}
        clean |= {f"DVC_{kind}_DIR": str(folder.parent / "dvc") for kind in ("GLOBAL_CONFIG", "SYSTEM_CONFIG")}
        clean |= {"DVC_SITE_CACHE_DIR": str(folder.parent / "dvc"), "DVC_NO_ANALYTICS": "1"}
        clean |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        clean |= {"HOME": str(world.root / "home"), "USDATA_PRIVATE_DIR": str(world.source)}
        self.env = clean | {"USDATA_DEID_KEY_FILE": str(world.key)}

    def call(self, *command: str) -> str:
        """What a command says."""
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def list_inputs(self, name: str) -> None:
        """What the verb does, without starting a process."""
        found = inputs_of(private_card(name), self.world.source / name, rules(self.world, name))
        write_json(self.folder / "inputs" / f"{name}.json", found)

    def shards(self, name: str) -> dict[str, int]:
        """Shard -> inode: a shard that is written anew has another one."""
        return {path.name: path.stat().st_ino for path in (self.folder / "lake" / "shards" / name).iterdir()}


@pytest.mark.slow
def test_repro_builds_once_and_then_only_the_data_set_whose_files_changed(tmp_path):
    world = populate(World(tmp_path / "world"))
    project = Clone(tmp_path / "project", world)
    project.list_inputs("site_b")
    told = project.call("usdata", "deid-inputs", "--name", "site_a", "-o", "inputs/site_a.json")
    said = project.call("dvc", "repro", "private")
    lake = Lake(project.folder / "lake")
    counts = lake.sql("select dataset, count(*) as n from samples group by all order by all").to_pylist()
    assert counts == [{"dataset": "site_a", "n": 1}, {"dataset": "site_b", "n": 1}]
    a, b = project.shards("site_a"), project.shards("site_b")

    again = project.call("dvc", "repro", "private")
    assert "Data and pipelines are up to date." in again and "Running stage" not in again

    ultrasound("dvc 2").write(world.source / "site_a" / "Xaverina_Quorbeltal_8391047562" / "later.dcm")
    project.list_inputs("site_a")
    later = project.call("dvc", "repro", "private")
    assert "Running stage 'private@site_a'" in later and "Stage 'private@site_b' didn't change" in later
    assert project.shards("site_a") != a and project.shards("site_b") == b

    leaks = needles(world).search(artifacts_of_dvc(project))
    assert not leaks, "\n".join(map(str, leaks))
    assert not needles(world).in_bytes((told + said + again + later).encode(), text=True)


def artifacts_of_dvc(project: Clone):
    """Everything in the project but the program itself: lock, lists, cache, lake, DVC's own state."""
    for name in ("dvc.lock", "params.yaml", "inputs", "lake", ".dvc"):
        yield from artifacts(project.folder / name)
    yield from artifacts(project.folder.parent / "dvc")


# --- params.yaml ------------------------------------------------------------------------------------------------------


def test_the_example_in_params_is_right(tmp_path):
    text = (PROJECT / "params.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("private:"))
    example = line[line.index("{site_a") : line.index("}}") + 2]
    (tmp_path / "params.yaml").write_text(text.replace(line, f"private: {example}"))
    found = read_params(tmp_path / "params.yaml").private
    assert found["site_a"].organ == "thyroid" and not read_params(PROJECT / "params.yaml").private


def test_a_path_or_a_key_in_params_is_an_unknown_key(tmp_path):
    text = (PROJECT / "params.yaml").read_text()
    for key in ("source", "key_file"):
        (tmp_path / "params.yaml").write_text(text.replace("private: {}", f"private: {{site_a: {{{key}: /x}}}}"))
        with pytest.raises(ConfigError, match=rf"private\.site_a\.{key}: unknown key"):
            read_params(tmp_path / "params.yaml")


def test_dvc_knows_no_private_file_as_a_dependency():
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    deps = stages["private"]["do"]["deps"]
    assert "inputs/${key}.json" in deps and not any("PRIVATE" in dep or "source" in dep for dep in deps)
