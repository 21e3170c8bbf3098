"""The coordinator's logic without Ray: the corpus, what workers say and get, the output, the end of a run.

The only writer of the output. All methods are quick but ``open``, ``list_corpus``, ``heartbeat``, ``tick``
and ``finish``; parts are written outside the state's lock, so that leases and metrics go on meanwhile.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pipeline.cluster.backlog import Struck
from pipeline.cluster.committing import KeptLock, Results
from pipeline.cluster.fleet import Roster
from pipeline.cluster.ledger import Ledger
from pipeline.cluster.protocol import TELL_SECONDS, LeaseReply, Message, Reply, Run, WorkerSeconds
from pipeline.cluster.report import Progress, RunReport
from pipeline.corpus import PassedOver
from pipeline.errors import Reason, Stage, UserError, VideoError
from pipeline.indexing import unknown_revision
from pipeline.output import Earlier, Key
from pipeline.records import Failure, VideoRef, VideoRow
from pipeline.stores import StorageWarning

if TYPE_CHECKING:
    from pipeline.cluster.metrics import Metrics
    from pipeline.config import JobConfig
    from pipeline.output import OutputLock, OutputStore

__all__ = ["Coordination"]


class Coordination:
    """One run: who works on what, what is committed, how it ends. Thread-safe.

    Errors that end the run are kept in ``status().error``; workers are then told that there is no more work.
    """

    def __init__(
        self, config: JobConfig, run: Run, store: OutputStore, output_lock: OutputLock, metrics: Metrics
    ) -> None:
        self._config, self._run, self._limits = config, run, config.limits
        self._store, self._lock, self._metrics = store, KeptLock(output_lock), metrics
        self._results = Results(store, config.output, metrics)
        self._ledger = Ledger(
            config.limits.attempts,
            config.limits.strikes,
            retry_seconds=config.limits.retry_seconds,
            retry_max_seconds=config.limits.retry_max_seconds,
        )
        self._roster = Roster(config.limits.worker_silence_seconds, config.limits.generation_seconds)
        self._leaving: set[str] = set()
        self._state = threading.RLock()
        self._room = threading.Condition(self._state)  # for a listing that waits
        self._listing_done = self._stopping = self._finished = False
        self._error: Exception | None = None
        self._earlier: Earlier | None = None
        self._began = datetime.now(timezone.utc)
        self._opened = self._ticked = time.monotonic()
        self.metrics_url: str | None = None
        self._warnings: tuple[str, ...] = ()
        self._passed_over = PassedOver()  # by the listing

    def open(self) -> None:
        """Take the output, check what it is bound to, and read back what earlier runs settled.

        Raises UserError where another run holds the output or the table is bound to other settings.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", StorageWarning)
            self._lock.acquire(self._run.run_id, self._run.driver_pid)
        said = [str(one.message) for one in caught if issubclass(one.category, StorageWarning)]
        unknown = unknown_revision(self._config.model)
        self._warnings = tuple([*said, unknown] if unknown else said)
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
                self._ledger.join(worker_id)

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
            self._roster.heard(worker_id, now)
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
            self._roster.heard(worker_id, time.monotonic())
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
                self._roster.heard(worker_id, time.monotonic())
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
        why = self._roster.stuck(seconds.busy_now)
        if why is not None:
            error = VideoError(Stage.GENERATION, Reason.GENERATION_TIMEOUT, why)
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
            if now - self._ticked > max(self._limits.worker_silence_seconds / 2, 5.0):
                self._roster.forgive_silence(now)
            self._ticked = now
            for worker_id, why in self._roster.silent(now).items():
                self.lost(worker_id, why)
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
                not_videos=self._passed_over.not_videos,
                unused_metadata=self._passed_over.unused_metadata,
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


def _crashed(message: str) -> VideoError:
    return VideoError(Stage.WORKER, Reason.CRASHED_WORKER, message)
