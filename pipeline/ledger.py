"""Pure bookkeeping: which video is where, who holds it, how often it was tried. No I/O, no clock of its own.

Every listed video is in exactly one state at any instant, so the sum closes by construction at the end:
listed = indexed + failed + skipped. All times are seconds of one monotonic clock, handed in by the caller.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from pipeline.records import Reason, VideoRef

__all__ = ["Counts", "Key", "Lease", "LeasedVideo", "Ledger"]

Key = tuple[str, str]  # (video_id, version)


@dataclass(frozen=True)
class LeasedVideo:
    """One video in a lease. ``attempt`` counts from 1; attempts lost in crashed workers count too."""

    ref: VideoRef
    attempt: int

    @property
    def key(self) -> Key:
        return self.ref.key


@dataclass(frozen=True)
class Lease:
    """What a worker holds until it completes, fails or gives back each video. Pickles; small."""

    lease_id: str
    worker_id: str
    items: tuple[LeasedVideo, ...]


@dataclass(frozen=True)
class Counts:
    """Where all listed videos are at one instant. ``pending`` and ``suspect`` wait; ``leased`` are held."""

    listed: int = 0
    indexed: int = 0
    failed: int = 0
    skipped_indexed: int = 0
    skipped_failed: int = 0
    pending: int = 0
    leased: int = 0
    suspect: int = 0

    @property
    def accounted(self) -> int:
        """Videos with a final state: indexed, failed or skipped."""
        return self.indexed + self.failed + self.skipped_indexed + self.skipped_failed

    @property
    def closes(self) -> bool:
        """Whether every listed video has a final state: listed == indexed + failed + skipped."""
        return self.listed == self.accounted


class _State(IntEnum):
    PENDING = 0
    SUSPECT = 1
    LEASED = 2
    INDEXED = 3
    FAILED = 4
    SKIPPED_INDEXED = 5
    SKIPPED_FAILED = 6


_SKIPPED = {"indexed": _State.SKIPPED_INDEXED, "failed": _State.SKIPPED_FAILED}


class _Entry:
    """A video that is not final yet; a final one shrinks to its state."""

    __slots__ = ("failures", "ref", "started", "state", "strikes", "worker_id")

    def __init__(self, ref: VideoRef) -> None:
        self.ref = ref
        self.state = _State.PENDING
        self.failures = 0
        self.strikes = 0
        self.started = False
        self.worker_id: str | None = None

    @property
    def attempts(self) -> int:
        return self.failures + self.strikes

    def leased(self) -> LeasedVideo:
        return LeasedVideo(self.ref, self.attempts + 1)


@dataclass
class _Worker:
    seen_at: float
    held: dict[str, float] = field(default_factory=dict)  # video_id -> leased at; oldest first


class Ledger:
    """Leases, attempts, suspects, quarantine and the sum, for one run.

    attempts: how often one video may fail for a transient reason before the failure is final.
    strikes: how many workers may die with one video started before it is quarantined. Crashes are counted
    apart from failures, because the first crash also strikes innocent videos that were in the same worker.

    Order: first attempts before retries, large before small, suspects last and each alone in its worker.
    Every operation is O(log n); a million videos take well under 2 GB.
    """

    def __init__(self, attempts: int, strikes: int = 3) -> None:
        if attempts < 1 or strikes < 1:
            raise ValueError(f"{attempts = } and {strikes = } must be at least 1; 1 means no second try")
        self._attempts = attempts
        self._strikes = strikes
        self._videos: dict[str, _Entry | _State] = {}
        self._queue: list[tuple[int, int, int, str]] = []  # (failures, -bytes, serial, video_id)
        self._suspects: list[tuple[int, int, int, str]] = []
        self._workers: dict[str, _Worker] = {}
        self._in_state = [0] * len(_State)
        self._listed = 0
        self._serial = 0

    def add(self, ref: VideoRef, already: Literal["indexed", "failed"] | None = None) -> bool:
        """List one video, or one that an earlier run settled. False for an id that is already listed."""
        if ref.video_id in self._videos:
            return False
        self._listed += 1
        entry = _Entry(ref)
        state = _State.PENDING if already is None else _SKIPPED[already]
        self._in_state[state] += 1
        self._videos[ref.video_id] = entry if already is None else state
        if already is None:
            self._enqueue(entry)
        return True

    def lease(self, worker_id: str, max_videos: int, now: float) -> Lease | None:
        """Up to ``max_videos`` waiting videos, or one suspect alone; None where this worker gets nothing now.

        A worker that holds a suspect gets nothing more; a suspect goes only to a worker that holds nothing.
        """
        if max_videos < 1:
            raise ValueError(f"{max_videos = } must be at least 1; a worker with no room should not ask")
        worker = self._worker(worker_id, now)
        if any(entry.strikes for entry in self._held(worker)):
            return None
        taken = self._take(self._queue, max_videos)
        if not taken and not worker.held:
            taken = self._take(self._suspects, 1)
        if not taken:
            return None
        for entry in taken:
            self._move(entry, _State.LEASED)
            entry.worker_id = worker_id
            worker.held[entry.ref.video_id] = now
        self._serial += 1
        return Lease(f"lease-{self._serial}", worker_id, tuple(entry.leased() for entry in taken))

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
        self._finish(entry, _State.INDEXED)
        return True

    def fail(self, worker_id: str, key: Key, reason: Reason) -> bool:
        """Note a failed attempt; True if it is final, so that the caller records it as such.

        A worker that does not hold the video (any more) changes nothing: False.
        """
        entry = self._held_entry(worker_id, key)
        if entry is None:
            return False
        entry.failures += 1
        if not reason.is_transient or entry.failures >= self._attempts:
            self._finish(entry, _State.FAILED)
            return True
        self._return(entry)
        return False

    def release(self, worker_id: str, crashed: bool) -> list[LeasedVideo]:
        """Forget a worker and take back what it holds; returns the videos quarantined by that (now failed).

        After a crash the videos it had started get a strike and become suspects, the others just go back;
        after a graceful leave all just go back. For each one returned the caller writes a final Failure with
        reason ``crashed_worker`` and the attempt given. Call ``started_by`` before, to record the others.
        """
        quarantined = []
        for entry in self._held(self._workers.pop(worker_id, None)):
            attempt = entry.leased()
            entry.strikes += crashed and entry.started
            if entry.strikes >= self._strikes:
                self._finish(entry, _State.FAILED)
                quarantined.append(attempt)
            else:
                self._return(entry)
        return quarantined

    def started_by(self, worker_id: str) -> list[LeasedVideo]:
        """The videos that the worker holds and has started: what a crash of it would strike."""
        return [entry.leased() for entry in self._held(self._workers.get(worker_id)) if entry.started]

    def holds(self, worker_id: str, key: Key) -> bool:
        """Whether the worker holds the video now."""
        return self._held_entry(worker_id, key) is not None

    def seen(self, worker_id: str, now: float) -> None:
        """Note a sign of life."""
        self._worker(worker_id, now)

    def silent_workers(self, now: float, limit_seconds: float) -> list[str]:
        """Workers with no sign of life for more than the limit."""
        return [name for name, worker in self._workers.items() if now - worker.seen_at > limit_seconds]

    def oldest_lease_age(self, now: float) -> float:
        """Seconds since the oldest video still held was leased; 0 where none is."""
        oldest = (next(iter(worker.held.values())) for worker in self._workers.values() if worker.held)
        return max((now - leased_at for leased_at in oldest), default=0.0)

    @property
    def counts(self) -> Counts:
        """Where all listed videos are."""
        return Counts(self._listed, **{state.name.lower(): self._in_state[state] for state in _State})

    @property
    def is_done(self) -> bool:
        """Whether no listed video waits or is held. True for an empty ledger: list first, then ask."""
        return self.counts.closes

    def _worker(self, worker_id: str, now: float) -> _Worker:
        worker = self._workers.setdefault(worker_id, _Worker(now))
        worker.seen_at = now
        return worker

    def _held(self, worker: _Worker | None) -> list[_Entry]:
        entries = [self._videos[video_id] for video_id in worker.held] if worker else []
        return [entry for entry in entries if isinstance(entry, _Entry)]

    def _entry(self, key: Key) -> _Entry | None:
        entry = self._videos.get(key[0])
        return entry if isinstance(entry, _Entry) and entry.ref.key == key else None

    def _held_entry(self, worker_id: str, key: Key) -> _Entry | None:
        entry = self._entry(key)
        return entry if entry is not None and entry.worker_id == worker_id else None

    def _enqueue(self, entry: _Entry) -> None:
        self._serial += 1
        queue = self._queue if entry.state is _State.PENDING else self._suspects
        heapq.heappush(queue, (entry.failures, -entry.ref.size_bytes, self._serial, entry.ref.video_id))

    def _take(self, queue: list[tuple[int, int, int, str]], limit: int) -> list[_Entry]:
        taken: list[_Entry] = []
        while queue and len(taken) < limit:
            entry = self._videos[heapq.heappop(queue)[-1]]
            # A late row may have settled a waiting video; its place in the queue is then void.
            if isinstance(entry, _Entry):
                taken.append(entry)
        return taken

    def _move(self, entry: _Entry, state: _State) -> None:
        self._in_state[entry.state] -= 1
        self._in_state[state] += 1
        entry.state = state

    def _let_go(self, entry: _Entry) -> None:
        worker = self._workers.get(entry.worker_id or "")
        if worker is not None:
            worker.held.pop(entry.ref.video_id, None)
        entry.worker_id, entry.started = None, False

    def _return(self, entry: _Entry) -> None:
        self._let_go(entry)
        self._move(entry, _State.SUSPECT if entry.strikes else _State.PENDING)
        self._enqueue(entry)

    def _finish(self, entry: _Entry, state: _State) -> None:
        self._let_go(entry)
        self._move(entry, state)
        self._videos[entry.ref.video_id] = state
