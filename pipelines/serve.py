"""`usdata serve`: a Prefect server of its own, or the one that is there, and a runner that serves all deployments.

After it, `prefect deployment run ingest/busi --watch` works in any second shell that knows PREFECT_API_URL.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.deployments import runner_deployments, specs
from usdata.console import say
from usdata.errors import ConfigError, UsdataError
from usdata.files import explain_os_errors
from usdata.lake import Lake

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

SHOWN = 5  # data sets that the welcome names
_START = 180.0  # seconds that a server may take to answer: on a busy machine its first start has taken 60
_POLL = 3.0  # seconds between two looks for new runs; Prefect's default of 10 feels slow on one's own machine
_AT_ONCE = 2  # runs; each ingest uses all cores anyway
_SETTINGS = {  # of the server: no telemetry; the runs' logs to those who --watch
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
    "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(data: Path | None, lake: Path, port: int) -> None:
    """Serve all deployments until SIGINT or SIGTERM; a server that this call started ends with it.

    Args:
        data: folder in which the data sets lie, each in a folder or archive of its name.
        lake: the lake that the runs write to; made if it is not there.
        port: of the server to start, unless one answers at PREFECT_API_URL.

    Raises:
        ConfigError: no folder `data`, or PREFECT_API_URL names a server elsewhere that does not answer.
        LakeError: `lake` is something else or can't be written.
        UsdataError: the port is taken, or the server does not start.
    """
    if data is not None and not data.is_dir():
        raise ConfigError(f"There is no folder {data}.", step="serve", hint="Check the path after --data.")
    Lake.create(lake)
    os.environ["DO_NOT_TRACK"] = "1"  # before Prefect is imported
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends `with` blocks, unlike the default
    try:
        with server(port) as url:
            _run(url, lake, data)
    except KeyboardInterrupt:  # before the runner had started
        pass
    say("Stopped.")


def _run(url: str, lake: Path, data: Path | None) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):  # reaches the processes of the runs, too
        asyncio.run(_serve(runner_deployments(lake, data), lambda: _welcome(url, lake, data)))


async def _serve(deployments: list["RunnerDeployment"], ready: Callable[[], None]) -> None:
    """Register the deployments, then run what is asked for until a signal comes; `ready` is called in between."""
    from prefect.runner import Runner

    runner = Runner(name="usdata", pause_on_shutdown=False, limit=_AT_ONCE, query_seconds=_POLL)
    for deployment in deployments:
        await runner.aadd_deployment(deployment)
    serving = asyncio.ensure_future(runner.start())
    while not runner.started and not serving.done():
        await asyncio.sleep(0.05)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after `start`, which puts a handler of its own there
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ready()
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        stopping.cancel()
        serving.result()  # raises what ended it
        return
    say("Stopping: runs under way are ended; a rerun goes on with the shards that are finished.")
    await runner.astop()
    await asyncio.wait([serving])


def _welcome(url: str, lake: Path, data: Path | None) -> None:
    """What to type in the second shell."""
    ingests = [spec for spec in specs(str(lake), data) if spec.flow == "ingest" and "dataset" in spec.parameters]
    found = [spec.name for spec in ingests if "source" in spec.parameters]
    others = [spec.name for spec in ingests if "source" not in spec.parameters and spec.name != "phantom"]
    example = f"ingest/{found[0] if found else 'phantom'}"
    say(
        f"Serving into the lake {lake.absolute()}; pages at {url.removesuffix('/api')}. Ctrl-C ends it.",
        "In a second shell:",
        f"  export PREFECT_API_URL={url}",
        f"  prefect deployment run {example} --watch",
        f"Files found for: {', '.join(found) or 'none'}",
    )
    if others:
        where = f"no folder of that name in {data}" if data else "start with --data DIR"
        shown = ", ".join(others[:SHOWN]) + (f", ... {len(others)} in all" if len(others) > SHOWN else "")
        say(
            f"Without files: {shown} ({where}), or tell each run:",
            f"  prefect deployment run ingest/{others[0]} -p source=DIR --watch",
        )
    private = os.environ.get("USDATA_PRIVATE_DIR")
    if private and os.environ.get("USDATA_DEID_KEY_FILE"):
        say("Private files:  prefect deployment run ingest/private -p name=FOLDER --watch")


# --- the server -------------------------------------------------------------------------------------------------------


@contextmanager
def server(port: int) -> Iterator[str]:
    """The API address of a server that answers; one that had to be started is stopped at the end.

    Raises:
        ConfigError, UsdataError: as `serve`.
    """
    asked = _asked_for()
    url = asked or f"http://127.0.0.1:{port}/api"
    if healthy(url):
        say(f"Using the Prefect server at {url}")
        yield url
        return
    place = urlsplit(url)
    if asked and place.hostname not in _LOOPBACK:
        raise ConfigError(
            f"No Prefect server answers at PREFECT_API_URL={url}.",
            step="serve",
            hint="Start that server, or  unset PREFECT_API_URL  to have one started here.",
        )
    port = place.port or port
    if _taken(port):
        raise UsdataError(
            f"Port {port} is taken by another program.", step="serve", hint=f"usdata serve --port {port + 1}"
        )
    log = _home() / "usdata-server.log"
    with explain_os_errors(log, step="serve"):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    with file:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        # a session of its own: Ctrl-C must not end the server before the runner has said goodbye to it
        child = subprocess.Popen(
            command,
            env={**os.environ, **_SETTINGS},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        say(f"Starting a Prefect server (up to a minute the first time); its log: {log}")
        _wait(child, url, log)
        yield url
    finally:
        _end(child)


def _asked_for() -> str | None:
    """PREFECT_API_URL, from the environment or the active Prefect profile."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


def _home() -> Path:
    from prefect.settings import PREFECT_HOME

    return Path(PREFECT_HOME.value())


def healthy(url: str) -> bool:
    """Whether a Prefect server answers at this API address."""
    proxies: dict[str, str] | None = (
        {} if urlsplit(url).hostname in _LOOPBACK else None
    )  # a proxy can't reach this machine's own ports
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        with opener.open(f"{url}/health", timeout=5) as answer:
            return bool(answer.read(100).strip() == b"true")
    except (OSError, ValueError):  # URLError is an OSError; ValueError: not an address
        return False


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(child: "subprocess.Popen[Any]", url: str, log: Path) -> None:
    end = time.monotonic() + _START
    while not healthy(url):
        if child.poll() is not None:
            raise UsdataError(f"The Prefect server ended at its start (exit {child.returncode}).", hint=f"See {log}")
        if time.monotonic() > end:
            raise UsdataError(f"The Prefect server did not answer within {_START:.0f} s.", hint=f"See {log}")
        time.sleep(0.3)


def _end(child: "subprocess.Popen[Any]") -> None:
    """Ask the server to stop, and after ten seconds make it."""
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
