"""Rows and failures on their way into parts: counted, written once and in order; and the right to write."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cluster.report import Totals
from pipeline.output import LockLostError, OutputLock, PartBuffer
from pipeline.records import Failure, VideoRow

if TYPE_CHECKING:
    from pipeline.cluster.metrics import Metrics
    from pipeline.cluster.protocol import WorkerSeconds
    from pipeline.config import OutputConfig
    from pipeline.output import OutputStore

__all__ = ["Committer", "KeptLock", "Results"]

_MAX_WAITING_PARTS = 20
_MAX_WAITING_ROWS = 10_000  # where parts are small
_PATIENCE_SECONDS = 40.0  # of the 60 after which another run may take the output over


class Committer:
    """Collects rows and failures and writes them as parts when due. Thread-safe; adding waits for nothing.

    After a failed write nothing more is written: whether that part exists is unknown, and writing its rows
    again could double them. The next run reads back what is there.
    """

    def __init__(self, store: OutputStore, config: OutputConfig) -> None:
        self._store = store
        self._rows: PartBuffer[VideoRow] = PartBuffer(config.part_rows, config.part_seconds)
        self._failures: PartBuffer[Failure] = PartBuffer(config.part_rows, config.part_seconds)
        self._most_waiting = max(_MAX_WAITING_PARTS * config.part_rows, _MAX_WAITING_ROWS)
        self._buffers, self._writing = threading.Lock(), threading.Lock()
        self._failed = False
        self.rows_committed = 0
        self.last_part_rows = 0

    @property
    def is_behind(self) -> bool:
        """Whether so much waits to be written that no more should be begun: a slow store, or none."""
        return len(self._rows) + len(self._failures) > self._most_waiting

    def add_rows(self, rows: Sequence[VideoRow]) -> None:
        with self._buffers:
            self._rows.add(rows, time.monotonic())

    def add_failure(self, failure: Failure) -> None:
        with self._buffers:
            self._failures.add([failure], time.monotonic())

    def commit(self, everything: bool = False) -> bool:
        """Write the parts that are due, or all there is; whether any part, of rows or failures, was written.

        Raises what the store raises, once; later calls do nothing.
        """
        written = False
        with self._writing:
            while not self._failed and self._write_next(everything):
                written = True
        return written

    def _write_next(self, everything: bool) -> bool:
        rows, failures = self._take(everything)
        self._failed = True  # until the write is known to have gone well
        self._store.write_rows(rows)
        self.rows_committed += len(rows)
        self.last_part_rows = len(rows) or self.last_part_rows
        self._store.write_failures(failures)
        self._failed = False
        return bool(rows or failures)

    def _take(self, everything: bool) -> tuple[list[VideoRow], list[Failure]]:
        now = time.monotonic()
        with self._buffers:
            rows = self._rows.take() if everything or self._rows.due(now) else []
            failures = self._failures.take() if everything or self._failures.due(now) else []
        return rows, failures


class Results:
    """What a run brings forth: handed to the committer, added up, and shown as metrics.

    All but ``commit`` are for one caller at a time.
    """

    def __init__(self, store: OutputStore, config: OutputConfig, metrics: Metrics) -> None:
        self._committer = Committer(store, config)
        self._metrics, self._table = metrics, config.table
        self._totals = Totals()
        self._unshown: list[VideoRow] = []  # counting many at a time costs much less
        self._unshown_wait = self._unshown_busy = 0.0

    @property
    def is_behind(self) -> bool:
        """Whether so much waits to be written that no more should be begun."""
        return self._committer.is_behind

    @property
    def totals(self) -> Totals:
        """The sums so far, as a copy."""
        committed, by_reason = self._committer.rows_committed, dict(self._totals.failures_by_reason)
        return replace(self._totals, rows_committed=committed, failures_by_reason=by_reason)

    def add_rows(self, rows: Sequence[VideoRow]) -> None:
        """Take rows of videos that have none yet."""
        if not rows:
            return
        self._committer.add_rows(rows)
        self._unshown.extend(rows)
        for row in rows:
            self._totals.add_row(row)

    def add_failure(self, failure: Failure, is_final: bool) -> None:
        """Take a failed attempt. ``failures/`` is shared by all tables, so each row says whose it is."""
        details = {**failure.details, "table": self._table}
        failure = replace(failure, is_final=is_final, details=details)
        self._committer.add_failure(failure)
        self._metrics.failure(failure)
        self._totals.add_failure(failure)

    def add_seconds(self, seconds: WorkerSeconds) -> None:
        """Take how a worker has spent its time."""
        self._totals.gpu_wait_seconds += seconds.gpu_wait
        self._totals.gpu_busy_seconds += seconds.gpu_busy
        self._unshown_wait += seconds.gpu_wait
        self._unshown_busy += seconds.gpu_busy

    def show(self) -> None:
        """Bring the metrics up to date. Call about twice a second."""
        rows, wait, busy = self._unshown, self._unshown_wait, self._unshown_busy
        self._unshown, self._unshown_wait, self._unshown_busy = [], 0.0, 0.0
        self._metrics.rows(rows)
        self._metrics.gpu_wait_seconds.inc(wait)
        self._metrics.gpu_busy_seconds.inc(busy)

    def commit(self, everything: bool = False) -> None:
        """Write what is due, or all there is. Raises what the store raises, once."""
        if self._committer.commit(everything):
            self._metrics.committed(self._committer.last_part_rows, time.time())


class KeptLock:
    """The output's lock from ``acquire`` to ``release``, kept by heartbeats from a thread of their own.

    A store that does not answer for a while is borne until ``patience_seconds`` after the last heartbeat
    that went well; by then another run may soon find the lock stale.
    """

    def __init__(self, output_lock: OutputLock, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._output_lock = output_lock
        self._patience_seconds = patience_seconds
        self._beating = threading.Lock()
        self._is_held = False
        self._kept_at = 0.0

    def acquire(self, run_id: str, driver_pid: int) -> None:
        """Take the output, or raise UserError naming who holds it."""
        self._output_lock.acquire(run_id, driver_pid)
        self._is_held, self._kept_at = True, time.monotonic()

    def heartbeat(self) -> None:
        """Keep the lock; nothing where it is not held (any more).

        Raises LockLostError after a take-over, and what the store raised once patience has run out.
        """
        with self._beating:
            if not self._is_held:
                return
            began = time.monotonic()
            try:
                self._output_lock.heartbeat()
            except LockLostError:
                raise
            except Exception:
                if time.monotonic() - self._kept_at > self._patience_seconds:
                    raise
            else:
                self._kept_at = began

    @property
    def is_held(self) -> bool:
        """Whether the output is ours, as far as is known."""
        return self._is_held

    def release(self) -> None:
        """Give the output back; a heartbeat after this does nothing."""
        with self._beating:
            self._is_held = False
            self._output_lock.release()
