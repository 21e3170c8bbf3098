"""Which workers to start and when to give up: the driver's decisions, without Ray."""

from __future__ import annotations

from pipeline.report import Progress

__all__ = ["Fleet"]

_MIN_START_FAILURES = 3
_MAX_CRASHES = 30  # in a row, none of them followed by a finished video; more than ten poison files in a row


class Fleet:
    """Workers by id, how many there should be, and how often they failed. Times are monotonic seconds.

    A worker that leaves of its own accord is not replaced while others live; one that dies is, while videos
    wait. Failures to start are limited in a row, and so are crashes without any video finished between them.
    """

    def __init__(self, count: int, start_seconds: float, now: float) -> None:
        self._count = self._wanted = count
        self._start_seconds = start_seconds
        self._starting: set[str] = set()
        self._ready: set[str] = set()
        self._num_created = 0
        self._start_failures = self._crashes = 0
        self._settled_at_crash = 0
        self._last_error = ""
        self._without_ready_since = now

    @property
    def alive(self) -> set[str]:
        """Workers asked for and not ended."""
        return self._starting | self._ready

    def create(self) -> str:
        """The id of one more worker."""
        self._num_created += 1
        worker_id = f"worker-{self._num_created}"
        self._starting.add(worker_id)
        return worker_id

    def ready(self, worker_id: str) -> None:
        """It has loaded the model."""
        self._starting.discard(worker_id)
        self._ready.add(worker_id)
        self._start_failures = 0

    def left(self, worker_id: str) -> None:
        """It ended of its own accord."""
        self._ready.discard(worker_id)
        self._wanted = max(0, self._wanted - 1)

    def died(self, worker_id: str, error: str, num_settled: int) -> None:
        """It ended otherwise; ``num_settled``: videos with a row or a final failure so far."""
        self._last_error = error
        if worker_id in self._starting:
            self._start_failures += 1
        else:
            self._crashes = self._crashes + 1 if num_settled == self._settled_at_crash else 1
            self._settled_at_crash = num_settled
        self._starting.discard(worker_id)
        self._ready.discard(worker_id)

    def num_missing(self, progress: Progress) -> int:
        """How many workers to start now."""
        if not progress.num_waiting or self._start_failures >= self._max_start_failures:
            return 0
        wanted = max(1, self._wanted)
        if progress.listing_done:
            wanted = min(wanted, progress.num_waiting + progress.counts.leased)
        return max(0, wanted - len(self.alive))

    def verdict(self, progress: Progress, now: float) -> str | None:
        """Why the run cannot go on; None while it can."""
        if self._ready or not progress.num_waiting:
            self._without_ready_since = now
        if self._crashes >= _MAX_CRASHES:
            return f"{self._crashes} workers in a row died at their work; the last: {self._last_error}"
        if not self.alive and self._start_failures >= self._max_start_failures:
            return f"no worker could start, {self._start_failures} tries; the last: {self._last_error}"
        if now - self._without_ready_since > self._start_seconds:
            return f"no worker became ready within limits.worker_start_seconds={self._start_seconds:g}"
        return None

    @property
    def _max_start_failures(self) -> int:
        return max(_MIN_START_FAILURES, self._count)
