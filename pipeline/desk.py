"""What workers say to the coordinator, and what it makes of it: leases, results, losses. Without Ray or I/O.

All methods are quick. The output and the run as a whole: coordination.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pipeline.fleet import Roster
from pipeline.ledger import Key, Ledger, Struck
from pipeline.protocol import TELL_SECONDS, LeaseReply, Message, Reply, Run, WorkerSeconds
from pipeline.records import Failure, Reason, Stage, VideoError, VideoRow

if TYPE_CHECKING:
    from pipeline.committing import Results
    from pipeline.config_sections import LimitsConfig

__all__ = ["Desk"]


class Desk:
    """Who works on what, behind one lock. Thread-safe."""

    def __init__(self, run: Run, limits: LimitsConfig, results: Results) -> None:
        self._run, self._limits, self._results = run, limits, results
        self._ledger = Ledger(
            limits.attempts,
            limits.strikes,
            retry_seconds=limits.retry_seconds,
            retry_max_seconds=limits.retry_max_seconds,
        )
        self._roster = Roster()
        self._leaving: set[str] = set()
        self._state = threading.RLock()
        self._room = threading.Condition(self._state)  # for a listing that waits
        self._listing_done = self._stopping = self._finished = False
        self._error: Exception | None = None

    @property
    def _is_ending(self) -> bool:
        return self._stopping or self._error is not None

    def register(self, worker_id: str) -> None:
        """A worker has been asked for, or its process has started to load the model."""
        with self._state:
            self._roster.register(worker_id)

    def ready(self, worker_id: str) -> None:
        """A worker has loaded the model."""
        with self._state:
            if self._roster.ready(worker_id, time.monotonic()):
                self._ledger.seen(worker_id, time.monotonic())

    def exchange(self, worker_id: str, message: Message) -> Reply:
        """All that a worker says at a time: its results first, so that its hands are empty for a suspect."""
        with self._state:
            go_on = self.push(worker_id, message.rows, message.failures, message.seconds, message.holds)
            refused = tuple(key for key in message.starting if not self.started(worker_id, key))
            if message.wanted is None:
                return Reply(go_on, refused)
            work = self.lease(worker_id, message.wanted)
            for item in work.lease.items[: message.room] if work.lease else ():
                self._ledger.start(worker_id, item.key)
            return Reply(go_on, refused, work)

    def lease(self, worker_id: str, max_videos: int) -> LeaseReply:
        """Up to ``max_videos`` videos, or when to ask again, or that the worker can leave."""
        with self._state:
            now = time.monotonic()
            if self._is_ending or not self._roster.is_ready(worker_id):
                return LeaseReply(None, done=True)
            self._ledger.seen(worker_id, now)
            if self._results.is_behind:
                return LeaseReply(None)
            lease = self._ledger.lease(worker_id, self._fair_share(max_videos), now)
            if lease is None:
                return LeaseReply(None, done=self._can_leave(worker_id, now))
            self._roster.busy(worker_id)
            return LeaseReply(lease)

    def _fair_share(self, max_videos: int) -> int:
        """Fewer at a time towards the end: what one worker keeps for later, the others cannot take."""
        if not self._listing_done:
            return max_videos
        return min(max_videos, max(1, self._ledger.num_pending // self._ledger.num_workers))

    def _can_leave(self, worker_id: str, now: float) -> bool:
        """Whether an idle worker may go although others still work: a straggler must not hold the fleet.

        As many stay as videos wait, be it for their time or for a worker of their own.
        """
        if not self._listing_done:
            self._roster.busy(worker_id)
            return False
        counts = self._ledger.counts
        if counts.closes:
            return True
        # Those that were told to go and have not said farewell yet do not stay.
        num_idle = self._ledger.num_idle_workers(besides=self._leaving - {worker_id})
        is_spare = num_idle > counts.pending + counts.suspect
        if is_spare and self._roster.idle_too_long(worker_id, now):
            self._leaving.add(worker_id)
        return worker_id in self._leaving

    def started(self, worker_id: str, key: Key) -> bool:
        """A worker is about to touch a video; False where it must leave it alone.

        That is where it no longer holds it, or the run ends.
        """
        with self._state:
            if self._is_ending or not self._roster.is_ready(worker_id):
                return False
            self._ledger.seen(worker_id, time.monotonic())
            return self._ledger.start(worker_id, key)

    def push(
        self,
        worker_id: str,
        rows: Sequence[VideoRow],
        failures: Sequence[Failure],
        seconds: WorkerSeconds,
        holds: Sequence[Key] | None = None,
    ) -> bool:
        """Take results; also the heartbeat. A second row of one video is dropped. False: stop and leave.

        ``holds``: all that the worker has in hand; what it has not named for long goes to another.
        """
        with self._state:
            if self._finished:  # it would be counted and never committed
                return False
            self._results.add_rows([row for row in rows if self._ledger.complete(worker_id, row.key)])
            for failure in failures:
                self._take_failure(worker_id, failure)
            self._results.add_seconds(seconds)
            if self._roster.is_ready(worker_id):
                self._ledger.seen(worker_id, time.monotonic())
                self._take_back_forgotten(worker_id, holds)
                self._end_if_stuck(worker_id, seconds)
            self._room.notify_all()
            return self._roster.is_ready(worker_id) and not self._is_ending

    def _take_failure(self, worker_id: str, failure: Failure) -> None:
        if self._ledger.holds(worker_id, failure.key):
            is_final = self._ledger.fail(worker_id, failure.key, failure.reason, time.monotonic())
            self._results.add_failure(failure, is_final)

    def _take_back_forgotten(self, worker_id: str, known: Sequence[Key] | None) -> None:
        """Else a worker that drops a video and lives on would keep the run from ending."""
        if known is not None:
            limit = max(self._limits.worker_silence_seconds, 3 * TELL_SECONDS)
            error = _crashed(f"its worker lives, but has not named it for {limit:g} s")
            self._record(self._ledger.forget(worker_id, known, time.monotonic(), limit), error, worker_id)

    def _record(self, ended: Iterable[Struck], error: VideoError, worker_id: str) -> None:
        for struck in ended:
            self._results.add_failure(self._run.failure(struck.item, error, worker_id), struck.is_final)

    def _end_if_stuck(self, worker_id: str, seconds: WorkerSeconds) -> None:
        limit = self._limits.generation_seconds
        if seconds.busy_now > limit:
            text = f"the model was at it for more than limits.generation_seconds={limit:g}"
            error = VideoError(Stage.GENERATION, Reason.GENERATION_TIMEOUT, text)
            self._give_up(worker_id, error, seconds.busy_with)

    def leave(self, worker_id: str) -> None:
        """A worker ends of its own accord; what it still holds goes back to the queue."""
        with self._state:
            self._leaving.discard(worker_id)
            self._roster.end(worker_id, "left")
            self._ledger.release(worker_id)

    def lost(self, worker_id: str, message: str) -> None:
        """A worker died or fell silent: what it had started is suspect, the rest goes back. Counts once."""
        self._give_up(worker_id, _crashed(message))

    def _give_up(self, worker_id: str, error: VideoError, culprit: Key | None = None) -> None:
        with self._state:
            if not self._finished and not self._roster.is_lost(worker_id):
                self._roster.note(error.message)  # also of one that said farewell because it cannot work
            if self._finished or not self._roster.end(worker_id, "lost"):
                return
            self._leaving.discard(worker_id)
            self._record(self._ledger.crash(worker_id, culprit), error, worker_id)
            self._room.notify_all()


def _crashed(message: str) -> VideoError:
    return VideoError(Stage.WORKER, Reason.CRASHED_WORKER, message)
