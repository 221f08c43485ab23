"""SIGTERM and SIGINT end a run after the step under way, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

REASONS = ["", "SIGTERM", "SIGINT", "max-hours"]  # why a run stopped; the highest number of any rank counts
LATE = 3


@dataclass
class Signals:
    """What has been received so far."""

    caught: int = 0  # index into REASONS


@contextmanager
def stop_signals() -> Iterator[Signals]:
    """SIGTERM and SIGINT only note their name, once; a second one ends the process as usual."""
    signals, numbers = Signals(), {signal.SIGTERM: 1, signal.SIGINT: 2}
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        signals.caught = numbers[signal.Signals(number)]
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
