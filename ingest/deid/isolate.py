"""A process of its own for reading files that may be damaged or hostile.

Decoders of compressed images are written in C: a bad file can crash one, hang it, or make it take all memory. So each
file is worked on in a child process with limits. When the child dies or falls silent, that one file is refused with
its reason, a fresh child takes the next, and the run goes on.

The two sides speak in messages of JSON, with pixels as raw bytes beside it: nothing that the child sends is unpickled.
The child's own output and error streams are thrown away, since decoders print what they read.
"""

import json
import os
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ingest.deid.reasons import Reason, Refusal
from usdata.errors import ConfigError

PATIENCE = 10.0  # seconds without a sign of life after which a child is taken to hang
CEILING = 3600.0  # seconds in all for one file, however many signs of life it gives
STARTING = 60.0  # seconds for its start: imports from a cold disk
MEMORY = 3 << 29  # bytes of its own, 1.5 GiB, beyond what the child has after its start
_HEAD = struct.Struct(">II")  # bytes of JSON, bytes of pixels
_MAX_JSON = 8 << 20
_MAX_BLOB = 256 << 20


@dataclass(frozen=True, slots=True)
class Message:
    """One message between the two sides: a JSON object, and pixels or nothing."""

    content: dict[str, Any]
    blob: bytes = b""

    @property
    def kind(self) -> str:
        """What it is about: of the child ready, beat, sample, done, refused or failed."""
        return str(self.content.get("kind"))


def pack(content: Mapping[str, Any], blob: bytes = b"") -> bytes:
    """A message as bytes. Names of files that are not UTF-8 pass through: JSON escapes their surrogates."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False).encode()
    return _HEAD.pack(len(text), len(blob)) + text + blob


def unpack(stream: BinaryIO) -> Message | None:
    """The next message of a blocking stream; None at its end."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    size, pixels = _HEAD.unpack(head)
    return Message(json.loads(stream.read(size)), stream.read(pixels))


class Child:
    """One child process, started at the first question and again after each that it did not survive.

    Not for several threads at once: give each its own. Use it in a `with`: nothing then outlives it, neither the
    process nor its folder of temporary files.
    """

    def __init__(self, setup: Mapping[str, Any], temp: Path | None = None, module: str = "ingest.deid.child") -> None:
        """`setup` is the first message to every child (see `ingest.deid.child`); `temp`: where temporary files go."""
        self._setup = dict(setup)
        self._temp = temp
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def ask(self, task: str, patience: float = PATIENCE, **content: Any) -> Iterator[Message]:
        """The child's messages on one task; the last is its `done`.

        Raises:
            Refusal: the child refused the item; or died of it, was silent for `patience` seconds, or took too much
                memory.
            ConfigError: the child can't start (for instance the key file is gone).
        """
        process = self._running()
        last = time.monotonic() + CEILING
        try:
            self._send(process, {"task": task, **content}, patience)
            while time.monotonic() < last:
                message = self._next(process, patience)
                if message.kind == "beat":
                    continue
                if message.kind in ("refused", "failed"):
                    raise self._refusal(message)
                yield message
                if message.kind == "done":
                    return
            raise TimeoutError
        except (BrokenPipeError, EOFError, ValueError, KeyError, TypeError):  # dead, or what it says is no message
            self._end()
            raise Refusal(Reason.DECODER_DIED, "isolate") from None
        except TimeoutError:
            self._end()
            raise Refusal(Reason.TOO_SLOW, "isolate") from None
        except GeneratorExit:  # nobody wants the rest
            self._end()
            raise

    def _refusal(self, message: Message) -> Refusal:
        reason = Reason(message.content["reason"])
        refusal = Refusal(reason, str(message.content["step"]))
        refusal.where = message.content.get("where")
        if reason is Reason.TOO_MUCH_MEMORY:
            self._end()  # what it still holds would count against the next file
        return refusal

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self._folder = Path(tempfile.mkdtemp(prefix="usdata-", dir=self._temp))  # mode 0700
        own = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FFMPEG_THREADS"), "1")
        own["PYTHONSAFEPATH"] = "1"  # the folder we stand in may hold somebody's yaml.py: nothing is imported from it
        own |= {"TMPDIR": str(self._folder), "PYTHONPATH": os.pathsep.join(_import_path())}
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            process_group=0,  # Ctrl-C is for the parent, which then ends it
            env=os.environ | own,
        )
        try:
            self._send(self._process, {"task": "setup", "parent": os.getpid(), **self._setup}, STARTING)
            message = self._next(self._process, STARTING)
        except (BrokenPipeError, EOFError, TimeoutError, ValueError, KeyError, TypeError):
            self._end()
            raise ConfigError("The process that reads private files does not start.", step="isolate") from None
        if message.kind != "ready":
            self._end()
            raise ConfigError(str(message.content.get("message")), step="isolate", hint=message.content.get("hint"))
        return self._process

    def _next(self, process: subprocess.Popen[bytes], patience: float) -> Message:
        assert process.stdout is not None
        until = time.monotonic() + patience
        size, pixels = _HEAD.unpack(_read(process.stdout.fileno(), _HEAD.size, until))
        if size > _MAX_JSON or pixels > _MAX_BLOB:
            self._end()
            raise EOFError
        content = json.loads(_read(process.stdout.fileno(), size, until))
        if not isinstance(content, dict):
            raise EOFError
        return Message(content, bytes(_read(process.stdout.fileno(), pixels, until)))

    def _send(self, process: subprocess.Popen[bytes], content: dict[str, Any], patience: float) -> None:
        """Write a message, giving up on a child that does not read it."""
        assert process.stdin is not None
        _write(process.stdin.fileno(), pack(content), time.monotonic() + patience)

    def _end(self) -> None:
        """End the process, whatever it does, and remove its temporary files."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    stream.close()  # type: ignore[union-attr]
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _import_path() -> list[str]:
    """Where this process imports from, but for the folder it stands in: that may be the patients' files."""
    here, ours = Path.cwd(), Path(__file__).parents[2]
    places = [Path(place).absolute() for place in sys.path if place]
    return [str(place) for place in places if place != here or place == ours]


def _write(file: int, content: bytes, until: float) -> None:
    """All of `content` into a pipe.

    Raises:
        BrokenPipeError: nobody reads it any more.
        TimeoutError: the time `until` (monotonic) came first.
    """
    os.set_blocking(file, False)
    rest = memoryview(content)
    poll = select.poll()
    poll.register(file, select.POLLOUT | select.POLLERR)
    while rest:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError
        with suppress(BlockingIOError):
            rest = rest[os.write(file, rest) :]


def _read(file: int, size: int, until: float) -> bytearray:
    """Exactly `size` bytes of a pipe.

    Raises:
        EOFError: it ended before.
        TimeoutError: the time `until` (monotonic) came first.
    """
    content = bytearray(size)
    view, done = memoryview(content), 0
    poll = select.poll()
    poll.register(file, select.POLLIN | select.POLLHUP)
    while done < size:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError
        count = os.readv(file, [view[done:]])
        if not count:
            raise EOFError
        done += count
    return content
