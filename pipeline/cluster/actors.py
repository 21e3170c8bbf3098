"""What runs in the actors' processes: the coordinator with its threads, a worker with its model. No Ray."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator

from pipeline.cluster.coordination import Coordination
from pipeline.cluster.metrics import Metrics
from pipeline.cluster.protocol import CoordinatorHandle, Run
from pipeline.cluster.report import RunReport
from pipeline.cluster.worker import Worker, use_threads
from pipeline.config import JobConfig
from pipeline.corpus import list_videos
from pipeline.errors import PipelineError, UserError
from pipeline.output import OutputLock, OutputStore
from pipeline.records import VideoRef

__all__ = ["TICK_SECONDS", "Coordinator", "GpuWorker"]

TICK_SECONDS = 0.5
_HEARTBEAT_SECONDS = 5.0  # the output's lock lapses after 60


class Coordinator(Coordination):
    """Coordination with its listing and its clock in threads. ``folder``: where relative addresses start."""

    def __init__(self, config: JobConfig, run: Run, folder: str) -> None:
        _enter(folder)
        output_lock = OutputLock(config.output.uri)
        output, columns = config.output, config.corpus.columns
        store = OutputStore(output.uri, output.table, fence=output_lock.check, columns=columns)
        super().__init__(config, run, store, output_lock, Metrics())
        self._ended = threading.Event()

    def open(self) -> None:
        """As Coordination.open; then list, commit and keep the lock in the background."""
        # From the start: to read back millions of ids takes longer than the lock lasts.
        self._in_background(lambda: self._every(_HEARTBEAT_SECONDS, self.heartbeat))
        try:
            super().open()
        except PipelineError:
            self._ended.set()
            raise
        except Exception as error:  # every store has its own: no permission, no credentials, no disk
            self._ended.set()
            uri, what = self._config.output.uri, f"{type(error).__name__}: {error}"
            raise UserError(
                f"output.uri={uri!r} cannot be used: {what}; make it writable or choose another"
            ) from error
        self._in_background(lambda: self.list_corpus(self._listing()))
        self._in_background(lambda: self._every(TICK_SECONDS, self.tick))
        self._in_background(lambda: self._every(TICK_SECONDS, self.watch))

    def finish(self, interrupted: bool = False, error: str | None = None) -> RunReport:
        """As Coordination.finish."""
        try:
            return super().finish(interrupted, error)
        finally:
            self._ended.set()  # not before: the last parts may take longer than the lock lasts

    def _listing(self) -> Iterator[VideoRef]:
        """The corpus, without what this run itself writes where that lies within it."""
        config, cache = self._config, self._store.shard_cache()
        skip = config.written_folders
        return list_videos(config.corpus, index_cache=cache, skip=skip, passed_over=self._passed_over)

    def _every(self, seconds: float, call: Callable[[], None]) -> None:
        while not self._ended.wait(seconds):
            call()

    def _in_background(self, call: Callable[[], None]) -> None:
        threading.Thread(target=call, daemon=True).start()


class GpuWorker:
    """One model on one GPU, a share of one, or the CPU; the loop is worker.py's."""

    def __init__(
        self, worker_id: str, config: JobConfig, run: Run, coordinator: CoordinatorHandle, folder: str
    ) -> None:
        _enter(folder)
        self._worker_id, self._config, self._run = worker_id, config, run
        self._coordinator = coordinator

    def load(self) -> None:
        """Load the model and try it out. Raises what that raises; UserError for the user's mistakes."""
        from pipeline.indexing import load_indexer

        workers = self._config.workers
        self._coordinator.register(self._worker_id)
        if self._config.model.engine is None:  # another engine need not know torch at all
            use_threads(workers.threads or max(1, int(workers.num_cpus)))
        indexer = load_indexer(self._config, run_id=self._run.run_id, model_revision=self._run.model_revision)
        indexer.try_out()
        self._indexer = indexer
        self._coordinator.ready(self._worker_id)

    def work(self) -> None:
        """Until there is no more work."""
        from pipeline.decoding import DecodePool

        config = self._config
        with DecodePool(config.decoding, self._indexer.frame_request, config.windows) as pool:
            Worker(
                self._worker_id,
                self._run,
                self._coordinator,
                self._indexer,
                pool,
                lease_videos=config.workers.lease_videos,
                decode_ahead=config.decoding.processes + 1,
            ).work()


def _enter(folder: str) -> None:
    """Work where the driver works, so that relative addresses mean the same; hosts may lack the folder.

    Last in line for imports too: an engine of the user's own may lie there, but nothing of ours is shadowed.
    """
    if os.path.isdir(folder):
        os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)
