"""A child process that misbehaves as asked: what a crashing, hanging or hostile decoder does to its parent."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO

from ingest.deid.child import _limit
from ingest.deid.isolate import pack, unpack


def main() -> None:
    """Answer as `ingest.deid.child` does, and do what the task's name says."""
    source, answers = sys.stdin.buffer, sys.stdout.buffer
    first = unpack(source)
    if first is None or first.content.get("start") == "never":
        return
    if first.content.get("start") == "refused":
        say(answers, {"kind": "failed", "message": "No key.", "hint": "Make one."})
        return
    if first.content.get("limited"):
        _limit()
    say(answers, {"kind": "ready"})
    while (question := unpack(source)) is not None:
        TASKS[question.content["task"]](answers)


def say(stream: BinaryIO, content: dict[str, object], blob: bytes = b"") -> None:
    """Send one message."""
    stream.write(pack(content, blob))
    stream.flush()


def well(stream: BinaryIO) -> None:
    """Two pictures and the end."""
    for number in range(2):
        say(stream, {"kind": "sample", "number": number}, bytes([number]) * 10)
    say(stream, {"kind": "done", "process": os.getpid(), "temp": os.environ["TMPDIR"]})


def crash(stream: BinaryIO) -> None:
    """As a decoder that writes where it must not."""
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(stream: BinaryIO) -> None:
    """As a decoder in an endless loop, after a first picture."""
    say(stream, {"kind": "sample"})
    time.sleep(60)


def slow(stream: BinaryIO) -> None:
    """Slow, but alive."""
    for _ in range(5):
        time.sleep(0.2)
        say(stream, {"kind": "beat"})
    say(stream, {"kind": "done"})


def greedy(stream: BinaryIO) -> None:
    """As a decoder that believes a header of four gigabytes."""
    try:
        taken = bytearray(4 << 30)
        say(stream, {"kind": "done", "taken": len(taken)})
    except MemoryError:
        say(stream, {"kind": "refused", "reason": "too_much_memory", "step": "isolate"})


def lie(stream: BinaryIO) -> None:
    """A message that announces more than there may be."""
    stream.write(b"\xff" * 8)
    stream.flush()
    time.sleep(60)


def nonsense(stream: BinaryIO) -> None:
    """No JSON."""
    stream.write(b"\0\0\0\4\0\0\0\0\xff\xfe{{")
    stream.flush()


def a_list(stream: BinaryIO) -> None:
    """JSON, but no message."""
    stream.write(b"\0\0\0\2\0\0\0\0[]")
    stream.flush()


def own_reason(stream: BinaryIO) -> None:
    """A reason that is in no list: it could be a name."""
    say(stream, {"kind": "refused", "reason": "MUSTERMANN", "step": "read"})


def no_reason(stream: BinaryIO) -> None:
    """A refusal that gives none."""
    say(stream, {"kind": "refused"})


def deaf(stream: BinaryIO) -> None:
    """Answers, and then reads nothing any more."""
    say(stream, {"kind": "done"})
    time.sleep(60)


def leave_file(stream: BinaryIO) -> None:
    """Die with a temporary file lying around."""
    Path(os.environ["TMPDIR"], "frame").write_bytes(b"pixels")
    os._exit(1)


def chatter(stream: BinaryIO) -> None:
    """Print what was read, as libraries do when they meet an error."""
    print("PATIENT^NAME", file=sys.stderr)
    say(stream, {"kind": "done"})


TASKS = {f.__name__: f for f in (well, crash, hang, slow, greedy, lie, leave_file, chatter)}
TASKS |= {f.__name__: f for f in (nonsense, a_list, own_reason, no_reason, deaf)}

if __name__ == "__main__":
    main()
