"""The coordinator's logic without Ray: the ledger, the output and the metrics of one run behind one lock.

The only writer of the output. All methods are quick but ``open``, ``list_corpus``, ``tick`` and ``finish``;
parts are written outside the state's lock, so that leases and metrics go on meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

from pipeline.committing import Committer
from pipeline.ledger import Key, Ledger
from pipeline.protocol import LeaseReply, Run, WorkerSeconds
from pipeline.records import Failure, Reason, Stage, UserError, VideoError, VideoRef, VideoRow
from pipeline.report import STATUS_INCOMPLETE, STATUS_INTERRUPTED, STATUS_OK, Progress, RunReport, Totals

if TYPE_CHECKING:
    from pipeline.config import JobConfig
    from pipeline.lock import OutputLock
    from pipeline.metrics import Metrics
    from pipeline.store import OutputStore

__all__ = ["Coordination"]

_IDLE_SECONDS = 30.0  # then a worker leaves, even while others still work


class Coordination:
    """One run: who works on what, what is committed, how it ends. Thread-safe.

    Errors that end the run are kept in ``status().error``; workers are then told that there is no more work.
    """

    def __init__(
        self, config: JobConfig, run: Run, store: OutputStore, output_lock: OutputLock, metrics: Metrics
    ) -> None:
        self._config, self._run = config, run
        self._store, self._output_lock, self._metrics = store, output_lock, metrics
        self._ledger = Ledger(config.limits.attempts)
        self._committer = Committer(store, config.output)
        self._state = threading.RLock()
        self._totals = Totals()
        self._workers: dict[str, str] = {}
        self._idle_since: dict[str, float] = {}
        self._already: dict[Key, Literal["indexed", "failed"]] = {}
        self._listing_done = self._stopping = self._finished = False
        self._error: Exception | None = None
        self._started_at, self._opened = datetime.now(timezone.utc), time.monotonic()
        self._first_ready: float | None = None
        self.metrics_url: str | None = None

    def open(self) -> None:
        """Take the output, check what it is bound to, and read back what earlier runs settled.

        Raises UserError where another run holds the output or the table is bound to other settings.
        """
        self._output_lock.acquire(self._run.run_id, self._run.driver_pid)
        try:
            fingerprint = self._run.fingerprint
            self._store.clean()
            self._store.bind(fingerprint, self._config.identity(self._run.model_revision))
            if not self._config.limits.retry_failed:
                self._already.update(dict.fromkeys(self._store.final_failures(fingerprint), "failed"))
            self._already.update(dict.fromkeys(self._store.committed_keys(fingerprint), "indexed"))
            self._serve_metrics()
        except BaseException:
            self._output_lock.release()
            raise

    def _serve_metrics(self) -> None:
        wanted, run = self._config.metrics, self._run
        self._metrics.info.info(
            {"run_id": run.run_id, "fingerprint": run.fingerprint, "model": self._config.model.name}
        )
        if wanted.port is not None:
            port = self._metrics.serve(wanted.host, wanted.port)
            self.metrics_url = f"http://{wanted.host}:{port}/metrics"

    def list_corpus(self, refs: Iterable[VideoRef]) -> None:
        """Add videos as they are listed; leases go out meanwhile. An error while listing ends the run."""
        with self._kept_error():
            for ref in refs:
                if self._stopping:
                    return
                self._add(ref)
            with self._state:
                self._listing_done = True
                self._already.clear()

    def _add(self, ref: VideoRef) -> None:
        with self._state:
            already = self._already.get(ref.key)
            if self._ledger.add(ref, already) and already:
                self._metrics.skipped()

    def register(self, worker_id: str) -> None:
        """A worker has been asked for, or its process has started to load the model."""
        with self._state:
            self._workers.setdefault(worker_id, "starting")

    def ready(self, worker_id: str) -> None:
        """A worker has loaded the model."""
        with self._state:
            self._workers[worker_id] = "ready"
            self._first_ready = self._first_ready or time.monotonic()
            self._ledger.seen(worker_id, time.monotonic())

    def lease(self, worker_id: str, max_videos: int) -> LeaseReply:
        """Up to ``max_videos`` videos, or when to ask again, or that the worker can leave."""
        with self._state:
            if self._stopping or self._error or self._workers.get(worker_id) != "ready":
                return LeaseReply(None, done=True)
            lease = self._ledger.lease(worker_id, max_videos, time.monotonic())
            return LeaseReply(lease, done=lease is None and self._can_leave(worker_id))

    def _can_leave(self, worker_id: str) -> bool:
        """Whether an idle worker may go although others still work: a straggler must not hold the fleet."""
        counts = self._ledger.counts
        if not self._listing_done or counts.pending or counts.suspect:
            self._idle_since.pop(worker_id, None)
            return False
        since = self._idle_since.setdefault(worker_id, time.monotonic())
        return counts.leased == 0 or time.monotonic() - since > _IDLE_SECONDS

    def started(self, worker_id: str, key: Key) -> bool:
        """A worker is about to touch a video; False where it no longer holds it and must leave it alone."""
        with self._state:
            self._ledger.seen(worker_id, time.monotonic())
            return self._ledger.start(worker_id, key)

    def push(
        self, worker_id: str, rows: Sequence[VideoRow], failures: Sequence[Failure], seconds: WorkerSeconds
    ) -> bool:
        """Take results; also the heartbeat. A second row of one video is dropped. False: stop and leave."""
        with self._state:
            if self._finished:  # it would be counted and never committed
                return False
            is_known = self._workers.get(worker_id) == "ready"
            if is_known:
                self._ledger.seen(worker_id, time.monotonic())
            for row in rows:
                self._take_row(worker_id, row)
            for failure in failures:
                self._take_failure(worker_id, failure)
            self._totals.gpu_wait_seconds += seconds.gpu_wait
            self._totals.gpu_busy_seconds += seconds.gpu_busy
            self._metrics.gpu_wait_seconds.inc(seconds.gpu_wait)
            self._metrics.gpu_busy_seconds.inc(seconds.gpu_busy)
            return is_known and not self._stopping and self._error is None

    def leave(self, worker_id: str) -> None:
        """A worker ends of its own accord; what it still holds goes back to the queue."""
        with self._state:
            self._workers[worker_id] = "left"
            self._ledger.release(worker_id, crashed=False)

    def lost(self, worker_id: str, message: str) -> None:
        """A worker died or fell silent: what it had started is suspect, the rest goes back. Counts once."""
        with self._state:
            if self._workers.get(worker_id) in ("lost", "left"):
                return
            self._workers[worker_id] = "lost"
            started = self._ledger.started_by(worker_id)
            final = {item.key for item in self._ledger.release(worker_id, crashed=True)}
            error = VideoError(Stage.WORKER, Reason.CRASHED_WORKER, message)
            for item in started:
                self._record(self._run.failure(item, error, worker_id, is_final=item.key in final))

    def stop(self) -> None:
        """Give out no more work; workers finish the video they are at and leave."""
        self._stopping = True

    def heartbeat(self) -> None:
        """Keep the output's lock. Call every few seconds, apart from ``tick``: a store can be slow."""
        with self._kept_error():
            self._output_lock.heartbeat()

    def tick(self) -> None:
        """Commit what is due and give up on silent workers. Call about twice a second."""
        with self._kept_error():
            self._commit()
        now = time.monotonic()
        with self._state:
            silent = self._ledger.silent_workers(now, self._config.limits.worker_silence_seconds)
            for worker_id in silent:
                self.lost(worker_id, f"no sign of life for {self._config.limits.worker_silence_seconds:g} s")
            self._metrics.observe(
                self._ledger.counts, self._worker_counts(), self._ledger.oldest_lease_age(now)
            )

    def status(self) -> Progress:
        """Where the run is."""
        with self._state:
            counts, now = self._ledger.counts, time.monotonic()
            settled = counts.indexed + counts.failed
            working = now - self._first_ready if self._first_ready else 0.0
            return Progress(
                run_id=self._run.run_id,
                counts=counts,
                totals=self._copy_totals(),
                listing_done=self._listing_done,
                seconds=now - self._opened,
                videos_per_second=settled / working if working > 0 else 0.0,
                workers=self._worker_counts(),
                metrics_url=self.metrics_url,
                lost_workers=tuple(name for name, state in self._workers.items() if state == "lost"),
                error=str(self._error) or repr(self._error) if self._error else None,
                is_user_error=isinstance(self._error, UserError),
            )

    def finish(self, interrupted: bool = False, error: str | None = None) -> RunReport:
        """Commit everything, write the run's report, give the output back.

        ``error``: why the driver ends a run that is not done. The report's status says how it went.
        """
        with self._state:
            self._stopping = self._finished = True
        with self._kept_error():
            self._commit(everything=True)
        with self._kept_error():
            report = self._report(interrupted, error)
            self._store.write_run(report.run_id, report.to_record())
        with self._kept_error():
            self._output_lock.release()
        self._metrics.close()
        return self._report(interrupted, error)

    def _report(self, interrupted: bool, error: str | None) -> RunReport:
        progress, now = self.status(), datetime.now(timezone.utc)
        error = progress.error or error or _lost_rows(progress)
        return RunReport(
            run_id=self._run.run_id,
            fingerprint=self._run.fingerprint,
            model_revision=self._run.model_revision,
            config=self._config.model_dump(mode="json"),
            counts=progress.counts,
            totals=progress.totals,
            started_at=self._started_at.isoformat(timespec="seconds"),
            finished_at=now.isoformat(timespec="seconds"),
            seconds=progress.seconds,
            videos_per_second=progress.videos_per_second,
            exit_status=_exit_status(progress, interrupted, error),
            error=error,
        )

    def _take_row(self, worker_id: str, row: VideoRow) -> None:
        if not self._ledger.complete(worker_id, row.key):
            return
        self._committer.add_row(row)
        self._metrics.row(row)
        self._totals.add_row(row)

    def _take_failure(self, worker_id: str, failure: Failure) -> None:
        if self._ledger.holds(worker_id, failure.key):
            is_final = self._ledger.fail(worker_id, failure.key, failure.reason)
            self._record(replace(failure, is_final=is_final))

    def _record(self, failure: Failure) -> None:
        self._committer.add_failure(failure)
        self._metrics.failure(failure)
        self._totals.add_failure(failure)

    def _commit(self, everything: bool = False) -> None:
        if self._committer.commit(everything):
            self._totals.rows_committed = self._committer.rows_committed
            self._metrics.committed(self._committer.last_part_rows, time.time())

    @contextmanager
    def _kept_error(self) -> Iterator[None]:
        """Errors of listing and writing end the run; the driver, not a background thread, reports them."""
        try:
            yield
        except Exception as error:
            with self._state:
                self._error = self._error or error

    def _worker_counts(self) -> dict[str, int]:
        return dict(Counter(self._workers.values()))

    def _copy_totals(self) -> Totals:
        return replace(self._totals, failures_by_reason=dict(self._totals.failures_by_reason))


def _exit_status(progress: Progress, interrupted: bool, error: str | None) -> int:
    if error is None and progress.is_done:
        return STATUS_OK
    return STATUS_INTERRUPTED if interrupted else STATUS_INCOMPLETE


def _lost_rows(progress: Progress) -> str | None:
    """The second half of the sum check: what was counted as indexed has been committed."""
    indexed, committed = progress.counts.indexed, progress.totals.rows_committed
    return None if indexed == committed else f"{indexed} videos were indexed, but {committed} rows committed"
