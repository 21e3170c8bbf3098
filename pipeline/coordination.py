"""The coordinator's logic without Ray: the corpus, the output, the end of a run. What workers say: desk.py.

The only writer of the output. All methods are quick but ``open``, ``list_corpus``, ``heartbeat``, ``tick``
and ``finish``; parts are written outside the state's lock, so that leases and metrics go on meanwhile.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pipeline.committing import KeptLock, Results
from pipeline.desk import Desk
from pipeline.history import Earlier
from pipeline.protocol import Run
from pipeline.records import UserError, VideoRef
from pipeline.report import Progress, RunReport
from pipeline.storage import StorageWarning

if TYPE_CHECKING:
    from pipeline.config import JobConfig
    from pipeline.lock import OutputLock
    from pipeline.metrics import Metrics
    from pipeline.store import OutputStore

__all__ = ["Coordination"]


class Coordination(Desk):
    """One run: who works on what, what is committed, how it ends. Thread-safe.

    Errors that end the run are kept in ``status().error``; workers are then told that there is no more work.
    """

    def __init__(
        self, config: JobConfig, run: Run, store: OutputStore, output_lock: OutputLock, metrics: Metrics
    ) -> None:
        self._config = config
        self._store, self._lock, self._metrics = store, KeptLock(output_lock), metrics
        super().__init__(run, config.limits, Results(store, config.output, metrics))
        self._earlier: Earlier | None = None
        self._began = datetime.now(timezone.utc)
        self._opened = self._ticked = time.monotonic()
        self.metrics_url: str | None = None
        self._warnings: tuple[str, ...] = ()

    def open(self) -> None:
        """Take the output, check what it is bound to, and read back what earlier runs settled.

        Raises UserError where another run holds the output or the table is bound to other settings.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", StorageWarning)
            self._lock.acquire(self._run.run_id, self._run.driver_pid)
        self._warnings = tuple(str(one.message) for one in caught if issubclass(one.category, StorageWarning))
        try:
            if self._finished:  # while it waited for the lock
                raise UserError("stopped before the output was taken")
            fingerprint = self._run.fingerprint
            self._store.clean()
            self._store.bind(fingerprint, self._config.identity(self._run.model_revision))
            indexed = self._store.committed(fingerprint)
            failed, again = self._store.failures_of(fingerprint, indexed), self._limits.retry_failed
            self._earlier = Earlier(indexed, failed, heal=self._run.heal, retry_failed=again)
            names = {"run_id": self._run.run_id, "fingerprint": fingerprint}
            names["model"] = self._config.model.name
            self.metrics_url = self._metrics.open(names, self._config.metrics)
        except BaseException:
            self._lock.release()
            raise

    def list_corpus(self, refs: Iterable[VideoRef]) -> None:
        """Add videos as they are listed; leases go out meanwhile. An error while listing ends the run.

        Waits while ``limits.queue_videos`` are not done, or more waits to be written than should.
        """
        with self._kept_error():
            for ref in refs:
                if not self._may_list():
                    return
                self._list(ref)
            with self._state:
                self._listing_done, self._earlier = True, None

    def _may_list(self) -> bool:
        """Wait until there is room for one more; False where the run ends instead."""
        with self._room:
            limit = self._limits.queue_videos
            while not self._is_ending and (self._ledger.num_open >= limit or self._results.is_behind):
                self._room.wait(0.1)  # nobody tells when the writing has caught up
            return not self._is_ending

    def _list(self, ref: VideoRef) -> None:
        earlier = self._earlier
        assert earlier is not None  # open() has been called
        verdict, history = earlier.verdict(ref.key), earlier.history(ref.key)
        with self._state:
            if verdict == "unwanted" or self._is_ending:
                return
            already = None if verdict == "new" else verdict
            rejected = ref.problem if already is None else None
            is_new = self._ledger.reject(ref) if rejected else self._ledger.add(ref, already, history)
            if not is_new:
                raise UserError(f"{ref.video_id!r} is listed twice, now as {ref.uri!r}; ids must differ")
            if already:
                self._metrics.skipped()
            if rejected:
                failure = self._run.rejection(ref, history.attempts + 1, rejected)
                self._results.add_failure(failure, is_final=True)

    def stop(self) -> None:
        """Give out no more work; workers finish the video they are at and leave."""
        with self._state:
            self._stopping = True
            self._room.notify_all()

    def heartbeat(self) -> None:
        """Keep the output's lock. Call every few seconds, apart from ``tick``: a store can be slow."""
        with self._kept_error():
            self._lock.heartbeat()

    def tick(self) -> None:
        """Commit what is due. Call about twice a second; apart from ``watch``: a store can be slow."""
        with self._kept_error():
            self._results.commit()

    def watch(self) -> None:
        """Give up on silent workers, and bring the metrics up to date. Call about twice a second.

        Where that has not happened for long, it may be this process that was out, so nobody is given up yet.
        """
        now = time.monotonic()
        with self._state:
            limit = self._limits.worker_silence_seconds
            if now - self._ticked > max(limit / 2, 5.0):
                self._ledger.forgive_silence(now)
            self._ticked = now
            for worker_id in self._ledger.silent_workers(now, limit):
                self.lost(worker_id, f"no sign of life for {limit:g} s")
            counts, age = self._ledger.counts, self._ledger.oldest_lease_age(now)
            self._results.show()
            self._metrics.observe(counts, self._roster.counts, age, self._listing_done)

    def status(self) -> Progress:
        """Where the run is."""
        with self._state:
            counts, now = self._ledger.counts, time.monotonic()
            working = now - (self._roster.first_ready or now)
            return Progress(
                run_id=self._run.run_id,
                counts=counts,
                totals=self._results.totals,
                listing_done=self._listing_done,
                seconds=now - self._opened,
                videos_per_second=(counts.indexed + counts.failed) / working if working > 0 else 0.0,
                workers=self._roster.counts,
                metrics_url=self.metrics_url,
                lost_workers=self._roster.lost,
                worker_losses=self._roster.losses,
                warnings=self._warnings,
                error=str(self._error) or repr(self._error) if self._error else None,
                is_user_error=isinstance(self._error, UserError),
            )

    def finish(self, interrupted: bool = False, error: str | None = None) -> RunReport:
        """Take back what is held, commit everything, write the run's report, give the output back.

        ``error``: why the driver ends a run that is not done. The report's status says how it went.
        """
        with self._state:
            self._stopping = self._finished = True
            self._ledger.release_all()
            self._results.show()
            self._room.notify_all()
        with self._kept_error():
            self._results.commit(everything=True)
        with self._kept_error():
            report = self._report(interrupted, error)
            if self._lock.is_held:  # else it is another's output
                self._store.write_run(report.run_id, report.to_record())
        with self._kept_error():
            self._lock.release()
        self._metrics.close()
        return self._report(interrupted, error)

    def _report(self, interrupted: bool, error: str | None) -> RunReport:
        at = (self._run, self._config.model_dump(mode="json"), self.status(), self._began)
        return RunReport.of(*at, interrupted=interrupted, error=error)

    @contextmanager
    def _kept_error(self) -> Iterator[None]:
        """Errors of listing and writing end the run; the driver, not a background thread, reports them."""
        try:
            yield
        except Exception as error:
            with self._state:
                self._error = self._error or error
