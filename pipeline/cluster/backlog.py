"""The videos of a run that are not done: one entry each, and the queues in which they wait. No clock."""

from __future__ import annotations

import heapq
import math
import zlib
from dataclasses import dataclass
from enum import IntEnum

from pipeline.output import History, Key
from pipeline.records import VideoRef

__all__ = ["Backlog", "Counts", "Entry", "Lease", "LeasedVideo", "State", "Struck"]


@dataclass(frozen=True)
class LeasedVideo:
    """One video in a lease. ``attempt`` counts from 1, over all runs; attempts lost in crashes count too."""

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
class Struck:
    """An attempt that ended with its worker. ``is_final``: the video is quarantined, and counts as failed."""

    item: LeasedVideo
    is_final: bool


@dataclass(frozen=True)
class Counts:
    """Where all listed videos are at one instant. ``pending`` and ``suspect`` wait; ``leased`` are held.

    ``waiting`` is a part of ``pending``: retries that are not due yet.
    """

    listed: int = 0
    indexed: int = 0
    failed: int = 0
    skipped_indexed: int = 0
    skipped_failed: int = 0
    pending: int = 0
    leased: int = 0
    suspect: int = 0
    waiting: int = 0

    @property
    def accounted(self) -> int:
        """Videos with a final state: indexed, failed or skipped."""
        return self.indexed + self.failed + self.skipped_indexed + self.skipped_failed

    @property
    def closes(self) -> bool:
        """Whether every listed video has a final state: listed == indexed + failed + skipped."""
        return self.listed == self.accounted


class State(IntEnum):
    """Where a listed video is. ``WAITING``: a retry that is not due; ``SUSPECT``: waits to run alone."""

    PENDING = 0
    WAITING = 1
    SUSPECT = 2
    LEASED = 3
    INDEXED = 4
    FAILED = 5
    SKIPPED_INDEXED = 6
    SKIPPED_FAILED = 7


class Entry:
    """One video that is not done. ``attempts`` are those recorded so far, in all runs.

    ``alone``: only in a worker that holds nothing else. ``missed_at``: since when its worker has not
    named it, inf: it has. ``ticket``: of its place in the queues; another place there is void.
    """

    __slots__ = (
        "alone",
        "attempts",
        "failures",
        "leased_at",
        "missed_at",
        "ref",
        "started",
        "state",
        "strikes",
        "ticket",
        "worker_id",
    )

    def __init__(self, ref: VideoRef, history: History) -> None:
        self.ref = ref
        self.attempts = history.attempts
        self.failures = history.failures
        self.strikes = history.strikes
        self.alone = history.strikes > 0
        self.state = State.SUSPECT if self.alone else State.PENDING
        self.started = False
        self.worker_id: str | None = None
        self.leased_at = 0.0
        self.missed_at = math.inf
        self.ticket = 0

    @property
    def key(self) -> Key:
        return self.ref.key

    def leased(self) -> LeasedVideo:
        """The video as its next attempt."""
        return LeasedVideo(self.ref, self.attempts + 1)


_DRAWS = 20  # most places are good ones, unless nearly all that is left was taken out of turn

_Ranked = tuple[int, int, int, int, Entry]  # -strikes, failures, -bytes, serial; the serial is unique


class Backlog:
    """Three queues: for any worker, for a worker of its own, and not before a given time.

    Order: most strikes first, so that a poison file is done with before the next one kills a worker; then
    first attempts before retries, large before small, as listed. An entry that left its state while it waited
    (a late row settled it), or was taken out of turn, leaves a void place, dropped when its turn comes.
    """

    def __init__(self) -> None:
        self._serial = 0
        self._pending: list[_Ranked] = []
        self._suspects: list[_Ranked] = []
        self._waiting: list[tuple[float, int, Entry]] = []

    def put(self, entry: Entry, due: float = 0.0) -> None:
        """Queue an entry by its state; ``due`` says when a WAITING one may go on."""
        self._serial += 1
        entry.ticket = self._serial
        if entry.state is State.WAITING:
            heapq.heappush(self._waiting, (due, self._serial, entry))
            return
        queue = self._pending if entry.state is State.PENDING else self._suspects
        heapq.heappush(queue, (-entry.strikes, entry.failures, -entry.ref.size_bytes, self._serial, entry))

    def take(self, limit: int) -> list[Entry]:
        """Remove up to ``limit`` entries that any worker may have."""
        taken: list[Entry] = []
        while self._pending and len(taken) < limit:
            *_, serial, entry = heapq.heappop(self._pending)
            if entry.state is State.PENDING and entry.ticket == serial:
                taken.append(entry)
        return taken

    def take_any(self, turn: int) -> list[Entry]:
        """Remove one entry that any worker may have, whatever its rank; another ``turn``, another entry."""
        for draw in range(_DRAWS if self._pending else 0):
            place = zlib.crc32(f"{turn} {draw}".encode()) % len(self._pending)
            *_, serial, entry = self._pending[place]
            if entry.state is State.PENDING and entry.ticket == serial:
                entry.ticket = 0
                return [entry]
        return self.take(1)

    def take_suspect(self) -> list[Entry]:
        """Remove one entry that must run alone; an empty list where there is none."""
        while self._suspects:
            entry = heapq.heappop(self._suspects)[-1]
            if entry.state is State.SUSPECT:
                return [entry]
        return []

    def take_due(self, now: float) -> list[Entry]:
        """Remove the retries that have waited long enough."""
        due: list[Entry] = []
        while self._waiting and self._waiting[0][0] <= now:
            entry = heapq.heappop(self._waiting)[-1]
            if entry.state is State.WAITING:
                due.append(entry)
        return due
