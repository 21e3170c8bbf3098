"""Pure bookkeeping: which video is where, who holds it, how often it was tried. No I/O, no clock of its own.

Every listed video is in exactly one state at any instant, so the sum closes by construction at the end:
listed = indexed + failed + skipped. All times are seconds of one monotonic clock, handed in by the caller.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Container, Iterable
from typing import Literal

from pipeline.cluster.backlog import Backlog, Counts, Entry, Lease, LeasedVideo, State, Struck
from pipeline.errors import Reason
from pipeline.output import NEVER_TRIED, History, Key
from pipeline.records import VideoRef

__all__ = ["MANY_CRASHES", "Counts", "History", "Key", "Lease", "LeasedVideo", "Ledger", "Struck"]

_JITTER = 0.25  # a retry comes up to this share earlier: what failed together does not return together
MANY_CRASHES = 5  # in a row, without a row or a final failure between them


class Ledger:
    """Leases, attempts, suspects, quarantine and the sum, for one run.

    attempts: how often one video may fail for a transient reason before the failure is final.
    strikes: how many workers may die with one video started before it is quarantined. Crashes are counted
    apart from failures, because the first crash also strikes innocent videos that were in the same worker.
    retry_seconds, retry_max_seconds: a retry waits that long, twice as long each time, at most the second.

    Order: first attempts before retries, large before small; last, and each alone in its worker, the
    suspects, most strikes first: videos with a strike, and those that ran out of memory, which is no strike,
    but may go well with the memory of the others. After MANY_CRASHES, one at a time from anywhere in the
    order: it may be its first thousand videos that kill workers. Every operation is O(log n). A video that is
    done leaves only a count: ids must be unique, and memory goes with what is not done.
    """

    def __init__(
        self, attempts: int, strikes: int = 3, *, retry_seconds: float = 0.0, retry_max_seconds: float = 60.0
    ) -> None:
        if attempts < 1 or strikes < 1:
            raise ValueError(f"{attempts = } and {strikes = } must be at least 1; 1 means no second try")
        self._attempts, self._strikes = attempts, strikes
        self._retry_seconds, self._retry_max_seconds = retry_seconds, retry_max_seconds
        self._videos: dict[str, Entry] = {}
        self._backlog = Backlog()
        self._held: dict[str, dict[str, Entry]] = {}  # worker -> by video id, oldest first
        self._in_state = [0] * len(State)
        self._listed = 0
        self._num_leases = 0
        self._crashes = 0

    def add(
        self,
        ref: VideoRef,
        already: Literal["indexed", "failed"] | None = None,
        history: History = NEVER_TRIED,
    ) -> bool:
        """List one video, or one that an earlier run settled. False for an id that is listed and not done."""
        if ref.video_id in self._videos:
            return False
        self._listed += 1
        if already is not None:
            self._in_state[State.SKIPPED_INDEXED if already == "indexed" else State.SKIPPED_FAILED] += 1
            return True
        entry = self._videos[ref.video_id] = Entry(ref, history)
        self._in_state[entry.state] += 1
        self._backlog.put(entry)
        return True

    def reject(self, ref: VideoRef) -> bool:
        """List a video that cannot be tried at all, as failed. False for an id listed and not done."""
        if ref.video_id in self._videos:
            return False
        self._listed += 1
        self._in_state[State.FAILED] += 1
        return True

    def join(self, worker_id: str) -> dict[str, Entry]:
        """Count a worker, from now until it leaves or dies; what it holds, by video id."""
        return self._held.setdefault(worker_id, {})

    def lease(self, worker_id: str, max_videos: int, now: float) -> Lease | None:
        """Up to ``max_videos`` waiting videos, or one suspect alone; None where this worker gets nothing now.

        A worker that holds a suspect gets nothing more; a suspect goes only to a worker that holds nothing.
        """
        if max_videos < 1:
            raise ValueError(f"{max_videos = } must be at least 1; a worker with no room should not ask")
        for entry in self._backlog.take_due(now):
            self._queue(entry)
        held = self.join(worker_id)
        if any(entry.alone for entry in held.values()):
            return None
        is_crisis = self._crashes >= MANY_CRASHES
        taken = self._backlog.take_any(self._num_leases) if is_crisis else self._backlog.take(max_videos)
        if not taken and not held:
            taken = self._backlog.take_suspect()
        if not taken:
            return None
        for entry in taken:
            self._move(entry, State.LEASED)
            entry.worker_id, entry.leased_at, entry.missed_at = worker_id, now, math.inf
            held[entry.ref.video_id] = entry
        self._num_leases += 1
        return Lease(f"lease-{self._num_leases}", worker_id, tuple(entry.leased() for entry in taken))

    def start(self, worker_id: str, key: Key) -> bool:
        """Note that the worker is about to touch the video; False if it no longer holds it: leave it."""
        entry = self._held_entry(worker_id, key)
        if entry is None:
            return False
        entry.started = True
        return True

    def complete(self, worker_id: str, key: Key) -> bool:
        """Settle a video as indexed. True only once: a second row of the same video must be dropped.

        A row from a worker that lost its lease still counts if it is the first to arrive.
        """
        entry = self._entry(key)
        if entry is None:
            return False
        self._crashes = 0
        self._finish(entry, State.INDEXED)
        return True

    def fail(self, worker_id: str, key: Key, reason: Reason, now: float) -> bool:
        """Note a failed attempt; True if it is final, so that the caller records it as such.

        Transient reasons (``Reason.is_transient``) are tried again. A worker that does not hold the video
        (any more) changes nothing: False.
        """
        entry = self._held_entry(worker_id, key)
        if entry is None:
            return False
        entry.attempts += 1
        entry.failures += 1
        entry.alone |= reason is Reason.OUT_OF_MEMORY
        if not reason.is_transient or entry.failures >= self._attempts:
            self._crashes = 0
            self._finish(entry, State.FAILED)
            return True
        self._let_go(entry)
        self._move(entry, State.WAITING)
        self._backlog.put(entry, due=now + self._backoff_seconds(entry))
        return False

    def release(self, worker_id: str) -> None:
        """Forget a worker that leaves of its own accord; what it holds goes back, without suspicion."""
        for entry in self._forget(worker_id):
            self._give_back(entry)

    def release_all(self) -> None:
        """Take everything back, as from workers that leave: the run ends."""
        for worker_id in list(self._held):
            self.release(worker_id)

    def crash(self, worker_id: str, culprit: Key | None = None) -> list[Struck]:
        """Forget a worker that died; returns the attempts that this ended, for the caller to record.

        What it had started gets a strike and becomes suspect, or is quarantined; the others just go back.
        ``culprit``: the one video that is to blame, where that is known and the worker holds it.
        """
        held = self._forget(worker_id)
        suspected = [entry for entry in held if entry.started]
        blamed = [entry for entry in suspected if entry.key == culprit] or suspected
        for entry in held:
            if entry not in blamed:
                self._give_back(entry)
        self._crashes += bool(blamed)
        return [self._strike(entry) for entry in blamed]

    def forget(self, worker_id: str, known: Iterable[Key], now: float, limit_seconds: float) -> list[Struck]:
        """Take back what the worker holds but does not know of; returns the attempts that this ended.

        ``known``: all that it says it has. Forgotten is what that lacks time after time, for longer than the
        limit: one list may be older than the lease. It is a strike, so that there is an end to it.
        """
        held, names = self.join(worker_id), set(known)
        for entry in held.values():
            entry.missed_at = min(entry.missed_at, now) if entry.key not in names else math.inf
        forgotten = [entry for entry in held.values() if now - entry.missed_at > limit_seconds]
        return [self._strike(entry) for entry in forgotten]

    def holds(self, worker_id: str, key: Key) -> bool:
        """Whether the worker holds the video now."""
        return self._held_entry(worker_id, key) is not None

    def oldest_lease_age(self, now: float) -> float:
        """Seconds since the oldest video still held was leased; 0 where none is."""
        oldest = (next(iter(held.values())) for held in self._held.values() if held)
        return max((now - entry.leased_at for entry in oldest), default=0.0)

    def num_idle_workers(self, besides: Container[str] = ()) -> int:
        """Workers that hold nothing, not counting those named."""
        return sum(not held and name not in besides for name, held in self._held.items())

    @property
    def num_workers(self) -> int:
        """Workers that have joined and are not gone."""
        return len(self._held)

    @property
    def num_pending(self) -> int:
        """Videos that any worker may have now; retries that have just become due may be missing."""
        return self._in_state[State.PENDING]

    @property
    def num_open(self) -> int:
        """Listed videos that are not done."""
        return len(self._videos)

    @property
    def counts(self) -> Counts:
        """Where all listed videos are."""
        counts = {state.name.lower(): self._in_state[state] for state in State}
        return Counts(self._listed, **{**counts, "pending": counts["pending"] + counts["waiting"]})

    @property
    def is_done(self) -> bool:
        """Whether no listed video waits or is held. True for an empty ledger: list first, then ask."""
        return not self._videos

    def _forget(self, worker_id: str) -> list[Entry]:
        return list(self._held.pop(worker_id, {}).values())

    def _entry(self, key: Key) -> Entry | None:
        entry = self._videos.get(key[0])
        return entry if entry is not None and entry.ref.version == key[1] else None

    def _held_entry(self, worker_id: str, key: Key) -> Entry | None:
        entry = self._entry(key)
        return entry if entry is not None and entry.worker_id == worker_id else None

    def _backoff_seconds(self, entry: Entry) -> float:
        doubled = self._retry_seconds * 2.0 ** min(entry.failures - 1, 60)
        share = zlib.crc32(f"{entry.failures} {entry.ref.video_id}".encode("utf-8", "surrogatepass")) / 2**32
        return min(doubled, self._retry_max_seconds) * (1.0 - _JITTER * share)

    def _move(self, entry: Entry, state: State) -> None:
        self._in_state[entry.state] -= 1
        self._in_state[state] += 1
        entry.state = state

    def _queue(self, entry: Entry) -> None:
        self._move(entry, State.SUSPECT if entry.alone else State.PENDING)
        self._backlog.put(entry)

    def _let_go(self, entry: Entry) -> None:
        self._held.get(entry.worker_id or "", {}).pop(entry.ref.video_id, None)
        entry.worker_id, entry.started = None, False

    def _give_back(self, entry: Entry) -> None:
        self._let_go(entry)
        self._queue(entry)

    def _strike(self, entry: Entry) -> Struck:
        item = entry.leased()
        entry.attempts += 1
        entry.strikes += 1
        entry.alone = True
        if entry.strikes < self._strikes:
            self._give_back(entry)
            return Struck(item, is_final=False)
        self._finish(entry, State.FAILED)
        return Struck(item, is_final=True)

    def _finish(self, entry: Entry, state: State) -> None:
        self._let_go(entry)
        self._move(entry, state)
        del self._videos[entry.ref.video_id]
