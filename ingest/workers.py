"""Processes that build shards on one machine."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from threading import Thread

from usdata.errors import LakeError


class WorkerDied(LakeError):
    """A worker process was killed or ran out of memory; the same job may succeed when it is tried again."""

    def __init__(self, dataset: str, item: str | None = None) -> None:
        super().__init__(
            "A worker process died (killed, or out of memory).",
            dataset=dataset,
            item=item,
            step="build",
            hint="Run the same command again: finished shards are kept. Fewer workers need less memory. "
            'In a script, call ingest under `if __name__ == "__main__":`.',
        )


def process_pool(number: int) -> ProcessPoolExecutor:
    """Fresh processes (a forked copy of Arrow's and OpenCV's threads would hang) that end with their parent."""
    return ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), initializer=_die_with_parent)


def _die_with_parent() -> None:
    """End this worker when the process that started it is gone: a killed run must leave nothing that works on."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, name="parent-watch", daemon=True).start()
