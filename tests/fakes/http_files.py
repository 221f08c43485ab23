"""A web server on loopback that serves files as badly as real ones do: each path says how.

with HttpFiles() as web:
    web.put("/data.zip", content, cuts=[1000])  # the first answer ends after 1000 bytes
    web.url("/data.zip")
    web.asked("/data.zip")  # the headers of the requests that came for it
"""

import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Served:
    """What a path gives. Lists are used up, one entry per request; then it behaves."""

    content: bytes = b""
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True  # False: Range is ignored
    statuses: list[int] = field(default_factory=list)  # answers before the file
    always: int | None = None  # this status, whatever comes
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # bytes after which the connection ends
    length: int | None = None  # a wrong Content-Length
    chunked: bool = False
    unframed: bool = False  # neither a length nor chunks: the end of the connection is the end of the file
    range_start: int | None = None  # a wrong beginning in Content-Range
    heeds_if_range: bool = True
    redirect: str | None = None
    pause: tuple[int, float] | None = None  # after so many bytes each, wait so many seconds
    gate: threading.Event | None = None  # waits for it in the middle of the file
    reached: threading.Event = field(default_factory=threading.Event)  # set when it waits


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that goes away in the middle is what these tests are about."""


class HttpFiles:
    """The server; on a port of its own."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.log: list[tuple[str, dict[str, str]]] = []
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for served in self.files.values():
            if served.gate:
                served.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def put(self, path: str, content: bytes = b"", **how: Any) -> Served:
        """Serve `content` at `path`; `how`: see `Served`."""
        self.files[path] = Served(content, **how)
        return self.files[path]

    def url(self, path: str) -> str:
        """The address of a path."""
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of each request for `path`, in order, names in lower case."""
        return [headers for asked, headers in self.log if asked == path]


def _handler(web: HttpFiles) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return None

        def do_GET(self) -> None:
            web.log.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            served = web.files.get(self.path)
            if served is None:
                self.plain(404)
            elif served.statuses:
                self.plain(served.statuses.pop(0), served.headers)
            elif served.always:
                self.plain(served.always, served.headers)
            elif served.redirect:
                self.plain(302, {"Location": served.redirect})
            else:
                self.file(served)

        def plain(self, status: int, headers: dict[str, str] | None = None) -> None:
            body = f"<html><title>Error {status}</title></html>".encode()
            self.send_response(status)
            for name, value in {
                **(headers or {}),
                "Content-Length": str(len(body)),
                "Content-Type": "text/html",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def file(self, served: Served) -> None:
            start = self.start_of(served)
            total = len(served.content)
            if start is not None and start >= total:
                return self.plain(416, {"Content-Range": f"bytes */{total}"})
            body = served.content[start or 0 :]
            self.send_response(200 if start is None else 206)
            if start is not None:
                begin = start if served.range_start is None else served.range_start
                self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
            for name, value in (("ETag", served.etag), ("Last-Modified", served.modified)):
                if value:
                    self.send_header(name, value)
            for name, value in served.headers.items():
                self.send_header(name, value)
            if served.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif served.unframed:
                self.send_header("Connection", "close")
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(served.length if served.length is not None else len(body)))
            self.end_headers()
            self.body(served, body)

        def start_of(self, served: Served) -> int | None:
            """Where a Range that counts begins."""
            found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            condition = self.headers.get("If-Range")
            if (
                not found
                or not served.ranges
                or (condition and served.heeds_if_range and condition not in (served.etag, served.modified))
            ):
                return None
            return int(found[1])

        def body(self, served: Served, body: bytes) -> None:
            cut = served.cuts.pop(0) if served.cuts else None
            sent = body if cut is None else body[:cut]
            size = served.pause[0] if served.pause else max(1, len(sent) // 2)
            try:
                for at in range(0, len(sent), size):
                    if at and served.gate:
                        served.reached.set()
                        served.gate.wait(60)
                    if at and served.pause:
                        time.sleep(served.pause[1])
                    piece = sent[at : at + size]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if served.chunked else piece)
                    self.wfile.flush()
                if served.chunked and cut is None:
                    self.wfile.write(b"0\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            if cut is not None or served.length is not None:
                self.close_connection = True

    return Handler
