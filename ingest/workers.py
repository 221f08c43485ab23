"""Processes that build shards on one machine."""

from usdata.errors import LakeError
from usdata.workers import Pool


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


def process_pool(number: int) -> Pool:
    """`number` processes to build shards. What one is building when they end is lost; what is finished stays."""
    return Pool(number)
