"""`usdata serve` as a user runs it: a server of its own, a deployment run through Prefect's command, a clean end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.folders import tree_digest

from ingest.card import get_card
from ingest.run import ingest
from pipelines.serve import healthy, serve, server
from usdata.errors import ConfigError, LakeError, UsdataError
from usdata.lake import Lake

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def api_url(url: str | None) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if url is None:
        with temporary_settings(restore_defaults={PREFECT_API_URL}):
            yield
    else:
        with temporary_settings({PREFECT_API_URL: url}):
            yield


@pytest.mark.slow
def test_a_deployment_run_ingests_and_ctrl_c_leaves_nothing_behind(tmp_path):
    port = free_port()
    lake, url = tmp_path / "lake", f"http://127.0.0.1:{port}/api"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(tmp_path / "home")}
    command = [BIN / "usdata", "serve", "--lake", lake, "--data", tmp_path, "--port", str(port)]
    said = tmp_path / "serve.log"
    with said.open("wb") as log:
        serving = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for("Ctrl-C ends it", said, serving)
        run = [BIN / "prefect", "deployment", "run", "ingest/phantom", "-p", "images=24", "--watch"]
        done = subprocess.run(
            [*run, "--watch-timeout", "120"],
            cwd=tmp_path,
            env=env | {"PREFECT_API_URL": url},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr + said.read_text()
        assert "24 images in the lake" in " ".join(done.stdout.split())  # the run's log reaches the one who watches
        serving.send_signal(signal.SIGINT)
        assert serving.wait(30) == 0
    finally:
        if serving.poll() is None:
            os.killpg(serving.pid, signal.SIGKILL)
    assert "Traceback" not in said.read_text()
    assert not healthy(url)
    by_hand = Lake.create(tmp_path / "by_hand")
    ingest(get_card("phantom"), None, by_hand, count=24)
    assert tree_digest(lake) == tree_digest(by_hand.root)


def wait_for(words: str, log: Path, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 200
    while words not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)


def test_a_port_that_is_taken_is_told_with_another_one():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with api_url(None), pytest.raises(UsdataError, match=f"usdata serve --port {port + 1}"), server(port):
            pytest.fail("nothing is served")


def test_a_server_elsewhere_that_does_not_answer_is_not_replaced_by_one_here():
    url = "http://prefect.invalid:4200/api"
    with api_url(url), pytest.raises(ConfigError, match="unset PREFECT_API_URL"), server(4200):
        pytest.fail("nothing is served")


def test_a_server_that_answers_is_used_and_left_running(flows, capsys):
    from prefect.settings import PREFECT_API_URL

    with server(free_port()) as url:
        assert url == PREFECT_API_URL.value()
    assert healthy(url) and "Using the Prefect server" in capsys.readouterr().err


def test_a_data_folder_that_is_not_there_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="There is no folder"):
        serve(tmp_path / "nowhere", tmp_path / "lake", 4200)
    assert not (tmp_path / "lake").exists()


def test_a_folder_that_is_no_lake_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(LakeError, match="is no lake"):
        serve(None, tmp_path, 4200)
