"""The child's side of `ingest.deid.isolate`: it alone opens private files. Run as `python -m ingest.deid.child`.

Tasks: `setup` (first; loads key, templates, card), `examine` (header, number of frames), `clean` (the samples of one
item), `decide` (one item for a person's eyes). Whatever goes wrong becomes a closed reason; this module holds the one
place of the package that catches every exception, because any other text could carry what a file says.
"""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

from ingest.deid.isolate import MEMORY, Message, pack, unpack
from ingest.deid.reasons import Reason, Refusal
from usdata.errors import DataError, UsdataError

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def main() -> None:
    """Answer questions until the other side is gone."""
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what a decoder prints goes nowhere
    first = unpack(source)
    if first is None:
        return
    _bind_to(int(first.content["parent"]))
    try:
        worker = _Worker(first.content)
    except UsdataError as error:
        _send(answers, {"kind": "failed", "message": error.message, "hint": error.hint})
        return
    except Exception as error:  # no file was opened yet, but its text might show a key file's line
        text = f"The process that reads private files does not start: {_where(error)}."
        _send(answers, {"kind": "failed", "message": text, "hint": "This is a bug of usdata: please report it."})
        return
    _limit()
    _send(answers, {"kind": "ready"})
    while (question := unpack(source)) is not None:
        for answer in _answers(worker, question):
            _send(answers, answer.content, answer.blob)


def _answers(worker: "_Worker", question: Message) -> Any:
    """The messages on one task; the last is done, refused or failed, whatever the file does to us."""
    try:
        yield from worker.work(question.content)
    except Refusal as refusal:
        yield Message({"kind": "refused", "reason": refusal.reason, "step": refusal.step})
    except DataError as error:  # of the readers for public files: its word is closed too, its message is not
        yield Message({"kind": "refused", "reason": Reason.of(error.reason), "step": "read"})
    except MemoryError:
        yield Message({"kind": "refused", "reason": Reason.TOO_MUCH_MEMORY, "step": "isolate"})
    except Exception as error:  # the item's boundary: a traceback or its text could quote the file
        yield Message({"kind": "failed", "reason": Reason.INTERNAL, "step": "isolate", "where": _where(error)})


def _where(error: Exception) -> str:
    """The kind of an exception and the last line of our own code that it passed: `KeyError at header.py:120`."""
    place, trace = "?", error.__traceback__
    home = str(Path(__file__).parents[2])
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(home) and "site-packages" not in file[len(home) :]:
            place = f"{Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}"


def _send(stream: BinaryIO, content: dict[str, Any], blob: bytes = b"") -> None:
    stream.write(pack(content, blob))
    stream.flush()


def _bind_to(parent: int) -> None:
    """End with the parent, however that ends; leave no core dump, and let nobody attach a debugger (Linux)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_DUMPABLE, 0)
        if os.getppid() != parent:  # it died before we could bind
            sys.exit()


def _limit() -> None:
    """At most `MEMORY` more private memory than now; files that are only mapped do not count (RLIMIT_DATA)."""
    used = 0
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        used = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))


class _Worker:
    """What every task needs: the card, the identity's key, the templates."""

    def __init__(self, setup: dict[str, Any]) -> None:
        from ingest.card import Card
        from ingest.deid.item import Tools
        from ingest.deid.rules import Rules
        from ingest.readers.dicom import quiet_pydicom

        quiet_pydicom()
        self.tools = Tools.load(
            Card.model_validate(setup["card"]), Rules.from_json(setup["rules"]), setup["interpolation"]
        )

    def work(self, content: dict[str, Any]) -> Any:
        from ingest.deid import item

        tasks = {"examine": item.answer_examine, "clean": item.answer_clean, "decide": item.answer_decide}
        return tasks[content["task"]](self.tools, content)


if __name__ == "__main__":
    main()
