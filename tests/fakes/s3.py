"""A real S3 server on loopback (moto), a proxy before it that fails as told, and a lake of many small shards."""

import http.client
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ingest.card import get_card
from ingest.run import ingest
from usdata.lake import Lake

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
IMPATIENT = {"retries": {"max_attempts": 0}, "connect_timeout": 2, "read_timeout": 2}  # of botocore
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


def many_shards(root: Path, images: int = 60, per_shard: int = 4) -> Lake:
    """A lake of phantom images, a few to a shard: the breast has 24 of 60, in six shards; the kidney has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.plan.MAX_SAMPLES", per_shard)
        lake = Lake.create(root)
        ingest(get_card("phantom"), None, lake, count=images)
    return lake


def lake_files(root: Path) -> list[str]:
    """The files of a lake that a remote copy needs, below `root`."""
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not path.parts[0].startswith(".") and path.suffix != ".duckdb")


class Flaky:
    """A proxy for HTTP/1.1 on a port of its own.

    Attributes:
        fault: called with method and path of each request; it names what goes wrong with the answer: `reset`, `cut`
            (the connection ends after half of the body), `short` (half of the body, said to be all), `flip` (one bit),
            `slow`, a number (an answer with that status), or None.
        seen: method and path of all requests.
        applied: the faults there were.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.fault: Callable[[str, str], str | int | None] = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        self.applied: list[str | int] = []
        self._connections: list[socket.socket] = []
        self._server = self._listen(0)
        self.port = self._server.server_port

    @property
    def url(self) -> str:
        """What to give as endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def fetched(self, part: str) -> list[str]:
        """The paths with `part` in them that were read."""
        return [path for method, path in self.seen if method == "GET" and part in path]

    def reset(self) -> None:
        """Forget what was, and fail no more."""
        self.fault = lambda method, path: None
        self.seen.clear()
        self.applied.clear()

    def stop(self) -> None:
        """Connections are refused from now on, and those there are end."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def start(self) -> None:
        """Take connections again, on the same port."""
        self._server = self._listen(self.port)

    def _listen(self, port: int) -> ThreadingHTTPServer:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                proxy._answer(self)

            def setup(self) -> None:
                super().setup()
                proxy._connections.append(self.request)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is no error here."""

        server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.seen.append((handler.command, handler.path))
        fault = self.fault(handler.command, handler.path)
        if fault is not None:
            self.applied.append(fault)
        if fault == "reset":
            handler.close_connection = True
            return
        if isinstance(fault, int):
            _send(handler, fault, {}, b"")
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=20)
        upstream.request(handler.command, handler.path, body, dict(handler.headers))
        answer = upstream.getresponse()
        data, headers = answer.read(), {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
        length = answer.getheader("Content-Length")
        upstream.close()
        if handler.command == "HEAD":
            _send(handler, answer.status, headers | {"Content-Length": length or "0"}, b"")
        else:
            _send_badly(handler, answer.status, headers, data, fault)


def _send_badly(
    handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], data: bytes, fault: str | None
) -> None:
    half = len(data) // 2
    if fault == "cut":
        _send(handler, status, {**headers, "Content-Length": str(len(data))}, data[:half])
        handler.close_connection = True
    elif fault == "short":
        _send(handler, status, headers, data[:half])
    elif fault == "flip":
        silent = {name: value for name, value in headers.items() if "checksum" not in name.lower()}
        _send(handler, status, silent, data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
    else:
        _send(handler, status, headers, data, pause=0.02 if fault == "slow" else 0)


def _send(
    handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], data: bytes, pause: float = 0
) -> None:
    handler.send_response_only(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    step = max(1, len(data) // 5) if pause else max(1, len(data))
    for start in range(0, len(data), step):
        time.sleep(pause)
        handler.wfile.write(data[start : start + step])
    handler.wfile.flush()


@contextmanager
def s3_server() -> Iterator[tuple[str, Flaky]]:
    """A server with the empty bucket `bucket`: its own address, and the proxy before it.

    While it runs, the environment holds keys, the proxy as endpoint, and the patience of s3fs is short.
    """
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    proxy = Flaky(port)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        direct = f"http://{host}:{port}"
        urllib.request.urlopen(f"{direct}/moto-api/reset", data=b"").close()  # moto's memory is the process's
        bucket(direct).mkdir("bucket")
        yield direct, proxy
    proxy.stop()
    server.stop()


def bucket(endpoint: str) -> Any:
    """A file system for the server at `endpoint`."""
    import fsspec

    return fsspec.filesystem("s3", endpoint_url=endpoint, config_kwargs=IMPATIENT)


def upload(root: Path, endpoint: str, address: str) -> None:
    """Copy a lake to `bucket/folder`."""
    store = bucket(endpoint)
    for name in lake_files(root):
        store.pipe_file(f"{address}/{name}", (root / name).read_bytes())
