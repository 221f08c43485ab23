"""The processes in which the flow `ingest` builds shards on one machine."""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Lock
from types import TracebackType

from ingest.build import ShardReport, build_shard
from ingest.plan import ShardJob
from ingest.workers import WorkerDied, process_pool


class Workers:
    """Builds shards in `number` processes, called from as many threads; one process: in this one.

    When a process dies, its pool is lost with the jobs in it; the next job starts a new pool.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock = Lock()
        self._pool: ProcessPoolExecutor | None = None

    def build(self, job: ShardJob) -> ShardReport:
        """The report of one job; waits until a process has built it.

        Raises:
            WorkerDied: a process died before the job was done.
            LakeError: as `build_shard`.
        """
        if self.number <= 1:
            return build_shard(job)
        pool = self._open()
        try:
            return pool.submit(build_shard, job).result()
        except BrokenProcessPool as error:
            self._drop(pool)
            raise WorkerDied(job.card.name, job.name) from error

    def _open(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = process_pool(self.number)
            return self._pool

    def _drop(self, pool: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is pool:
                self._pool = None
        pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
