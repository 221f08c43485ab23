"""Processes that share a command's work on one machine, and end with it."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import RLock, Thread
from types import TracebackType
from typing import ParamSpec, TypeVar

from usdata.errors import LakeError

Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all
_STARTING = RLock()
_WORTH_A_PROCESS = 1 << 30  # bytes: a process is up after about the time in which another has read these
P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class Pool(ProcessPoolExecutor):
    """Fresh processes (a forked copy of Arrow's and OpenCV's threads would hang) that end with their parent.

    Each holds the reading end of one pipe, and only the parent the writing end: the pipe closes when the parent closes
    it or dies, whatever kills it. They end at once when a `with` fails.
    """

    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        leash, self._hold = context.Pipe(duplex=False)
        super().__init__(number, context, initializer=_end_with, initargs=(leash,))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the executor's, which starts processes here: they inherit what is blocked, and none is half started."""
        with _blocked({signal.SIGINT, signal.SIGTERM}), _safe_path():
            return super().submit(fn, *args, **kwargs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # a failure or an interruption: don't wait for what nobody will use
            self._hold.close()
        self.shutdown(wait=True, cancel_futures=True)
        self._hold.close()


@contextmanager
def _safe_path() -> Iterator[None]:
    """Processes that start meanwhile import nothing from the folder we stand in: its files may be anybody's."""
    with _STARTING:  # threads that start processes at once would restore what another has set
        before = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = before


@contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    """Keep signals waiting while something must not be interrupted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(leash: Connection) -> None:
    """End this worker when its pipe closes. Ctrl-C, sent to all processes of a terminal, stays blocked here."""

    def watch() -> None:
        leash.poll(None)  # nothing is ever sent: this returns when the other end is closed
        os._exit(1)

    Thread(target=watch, name="parent-watch", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that tells nobody."""


def processes_for(size: int, workers: int) -> int:
    """How many processes, `workers` at most, are worth starting to read `size` bytes."""
    return min(workers, 1 + size // _WORTH_A_PROCESS)


def announced(tasks: Iterable[T], path: Callable[[T], Path]) -> Iterator[T]:
    """The tasks; while one is at work, the system reads the file of the next from the disk."""
    held: list[T] = []
    for task in tasks:
        if hasattr(os, "posix_fadvise"):  # not on macOS
            with suppress(OSError), path(task).open("rb") as file:  # only a hint: the task itself tells what is wrong
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        yield from held
        held = [task]
    yield from held


def in_order(function: Callable[[T], R], tasks: Iterable[T], workers: int, step: str) -> Iterator[R]:
    """`map` over `workers` processes (one: in this process): results in the order of the tasks, few of them waiting.

    Raises:
        LakeError: a process died.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    waiting: deque[Future[R]] = deque()
    with Pool(workers) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise LakeError(
                "A worker process died (killed, or out of memory).",
                step=step,
                hint="Run the same command again; fewer --workers need less memory. "
                'In a script, call it under `if __name__ == "__main__":`.',
            ) from error
