"""The workers: when the coordinator gives one up, and the driver's decisions which to start. Without Ray."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pipeline.cluster.report import Progress

__all__ = ["Fleet", "Roster"]

_MIN_START_FAILURES = 3
_MAX_CRASHES = 30  # in a row, none of them followed by a finished video; more than ten poison files in a row
_CRASHES_PER_WORKER = 3  # where there are many: all of them may go with their machines, or have one such file
_MAX_LOSSES = 20  # messages of different wording
_IDLE_SECONDS = 30.0  # then a worker leaves, even while others still work


class Roster:
    """The coordinator's list: who is starting, ready, left or lost, who has been idle or silent for long.

    A worker is given up that is silent for ``silence_seconds``, or at one call of the model for
    ``call_seconds``. Nobody comes back from ``left`` or ``lost``. Times are monotonic seconds.
    """

    def __init__(self, silence_seconds: float, call_seconds: float) -> None:
        self._silence_seconds, self._call_seconds = silence_seconds, call_seconds
        self._states: dict[str, str] = {}
        self._heard_at: dict[str, float] = {}  # of those that are ready
        self._idle_since: dict[str, float] = {}
        self._losses: dict[str, int] = {}
        self.first_ready: float | None = None

    def register(self, worker_id: str) -> None:
        """It has been asked for, or has begun to load the model."""
        self._states.setdefault(worker_id, "starting")

    def ready(self, worker_id: str, now: float) -> bool:
        """It has loaded the model; False where it had ended before, as far as is known."""
        if self._states.get(worker_id) in ("left", "lost"):
            return False
        self._states[worker_id] = "ready"
        self._heard_at[worker_id] = now
        self.first_ready = self.first_ready or now
        return True

    def heard(self, worker_id: str, now: float) -> None:
        """A sign of life; only of those that are ready one is expected."""
        if worker_id in self._heard_at:
            self._heard_at[worker_id] = now

    def forgive_silence(self, now: float) -> None:
        """Take every worker as heard: it was the coordinator that could not hear them."""
        self._heard_at = dict.fromkeys(self._heard_at, now)

    def silent(self, now: float) -> dict[str, str]:
        """Who is to be given up because nothing was heard of it for too long, and what is said of that."""
        why, limit = f"no sign of life for {self._silence_seconds:g} s", self._silence_seconds
        return {name: why for name, at in self._heard_at.items() if now - at > limit}

    def stuck(self, call_seconds: float) -> str | None:
        """Why to give up a worker that has been at one call of the model for so long; None: it is not."""
        limit = self._call_seconds
        is_stuck = call_seconds > limit
        return f"the model was at it for more than limits.generation_seconds={limit:g}" if is_stuck else None

    def is_ready(self, worker_id: str) -> bool:
        """Whether it may have work."""
        return self._states.get(worker_id) == "ready"

    def is_lost(self, worker_id: str) -> bool:
        """Whether it has gone, but not of its own accord."""
        return self._states.get(worker_id) == "lost"

    def end(self, worker_id: str, how: Literal["left", "lost"]) -> bool:
        """It has gone; False where that was known."""
        if self._states.get(worker_id) in ("left", "lost"):
            return False
        self._states[worker_id] = how
        self._idle_since.pop(worker_id, None)
        self._heard_at.pop(worker_id, None)
        return True

    def busy(self, worker_id: str) -> None:
        """It has got work."""
        self._idle_since.pop(worker_id, None)

    def idle_too_long(self, worker_id: str, now: float) -> bool:
        """It has asked and got nothing; whether it has been so for long."""
        return now - self._idle_since.setdefault(worker_id, now) > _IDLE_SECONDS

    def note(self, loss: str) -> None:
        """Why a worker was lost, to be told at the end."""
        if loss in self._losses or len(self._losses) < _MAX_LOSSES:
            self._losses[loss] = self._losses.get(loss, 0) + 1

    @property
    def losses(self) -> dict[str, int]:
        """How often workers were lost, by the message; only the first messages are kept."""
        return dict(self._losses)

    @property
    def counts(self) -> dict[str, int]:
        """How many are in each state."""
        return dict(Counter(self._states.values()))

    @property
    def lost(self) -> tuple[str, ...]:
        """Who was lost."""
        return tuple(name for name, state in self._states.items() if state == "lost")


class Fleet:
    """Workers by id, how many there should be, and how often they failed. Times are monotonic seconds.

    A worker that leaves of its own accord is not replaced while others live; one that dies is, while videos
    wait. Failures to start are limited in a row, and so are crashes without any video finished between them,
    unless one worker has outlived them all: it is at a long video then, and the machine of the others is bad.
    """

    def __init__(self, count: int, start_seconds: float, now: float) -> None:
        self._count = self._wanted = count
        self._start_seconds = start_seconds
        self._starting: set[str] = set()
        self._ready: dict[str, int] = {}  # with the deaths before it
        self._num_created = 0
        self._start_failures = self._crashes = self._deaths = 0
        self._settled_at_crash = 0
        self._last_error = ""
        self.has_loaded = False  # whether any worker ever has
        self._without_ready_since = now

    @property
    def alive(self) -> set[str]:
        """Workers asked for and not ended."""
        return self._starting | self._ready.keys()

    @property
    def is_starting(self) -> bool:
        """Whether some may still become ready."""
        return bool(self._starting)

    def create(self) -> str:
        """The id of one more worker."""
        self._num_created += 1
        worker_id = f"worker-{self._num_created}"
        self._starting.add(worker_id)
        return worker_id

    def ready(self, worker_id: str) -> None:
        """It has loaded the model."""
        self._starting.discard(worker_id)
        self._ready[worker_id] = self._deaths
        self._start_failures = 0
        self.has_loaded = True

    def left(self, worker_id: str) -> None:
        """It ended of its own accord."""
        self._ready.pop(worker_id, None)
        self._wanted = max(0, self._wanted - 1)

    def died(self, worker_id: str, error: str, num_settled: int, *, is_unfit: bool = False) -> None:
        """It ended otherwise; ``num_settled``: videos with a row or a final failure so far.

        ``is_unfit``: its machine would keep the next one from working too; not replaced while others live.
        """
        self._last_error = error
        if is_unfit and worker_id in self._ready:
            self._wanted = max(0, self._wanted - 1)
        if worker_id in self._starting:
            self._start_failures += 1
        else:
            self._deaths += 1
            self._crashes = self._crashes + 1 if num_settled == self._settled_at_crash else 1
            self._settled_at_crash = num_settled
            self._start_failures = 0  # this one could start, so the next may: a bad machine must not end it
        self._starting.discard(worker_id)
        self._ready.pop(worker_id, None)

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
        if self._crashes >= max(_MAX_CRASHES, _CRASHES_PER_WORKER * self._count) and not self._has_survivor:
            return f"{self._crashes} workers in a row died at their work; the last: {self._last_error}"
        if not self.alive and self._start_failures >= self._max_start_failures:
            return f"no worker could start, {self._start_failures} tries; the last: {self._last_error}"
        if now - self._without_ready_since > self._start_seconds:
            return f"no worker became ready within limits.worker_start_seconds={self._start_seconds:g}"
        return None

    @property
    def _has_survivor(self) -> bool:
        """Whether one has been at work through all the deaths in a row."""
        return any(before <= self._deaths - self._crashes for before in self._ready.values())

    @property
    def _max_start_failures(self) -> int:
        return max(_MIN_START_FAILURES, self._count)
