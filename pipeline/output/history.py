"""What earlier runs left behind about a video: indexed, failed for good, or tried so and so often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.errors import Reason

__all__ = ["NEVER_TRIED", "Earlier", "FailedVideos", "History", "IndexedVideos", "Key", "Verdict"]

Key = tuple[str, str]  # (video_id, version)
Verdict = Literal["new", "indexed", "failed", "unwanted"]

# Told by the worker's end, not by the worker: such an attempt is a strike.
_STRIKES = frozenset({Reason.CRASHED_WORKER, Reason.GENERATION_TIMEOUT})


@dataclass(frozen=True, slots=True)
class History:
    """How often one video was tried before this run.

    ``attempts``: all that are recorded. ``failures`` and ``strikes``: those since the last final failure,
    because only a user's wish (heal, retry_failed) brings a video back after one, and that is a new start.
    """

    attempts: int = 0
    failures: int = 0
    strikes: int = 0

    def after(self, reason: Reason, is_final: bool) -> History:
        """The history once one more failed attempt is recorded."""
        if is_final:
            return History(self.attempts + 1)
        struck = reason in _STRIKES
        return History(self.attempts + 1, self.failures + (not struck), self.strikes + struck)


NEVER_TRIED = History()


class IndexedVideos(Protocol):
    """Keys of committed rows."""

    def __contains__(self, key: Key, /) -> bool:
        """Whether the video has a row."""
        ...


class FailedVideos(Protocol):
    """Failures of earlier runs, by key."""

    def final(self, key: Key) -> Reason | None:
        """Why the video failed for good; None where it has not."""
        ...

    def history(self, key: Key) -> History:
        """How often it was tried."""
        ...


class Earlier:
    """Which listed videos a run works on, given what earlier runs settled.

    heal: None for an ordinary run; else only videos that failed for good, for one of these reasons, or for
    any where it is empty. retry_failed: an ordinary run also tries what failed for good.
    """

    def __init__(
        self,
        indexed: IndexedVideos,
        failed: FailedVideos,
        *,
        heal: tuple[str, ...] | None = None,
        retry_failed: bool = False,
    ) -> None:
        self._indexed, self._failed = indexed, failed
        self._heal, self._retry_failed = heal, retry_failed

    def verdict(self, key: Key) -> Verdict:
        """``new``: to be worked on; ``indexed`` and ``failed``: skipped; ``unwanted``: not this run's."""
        if key in self._indexed:
            return "indexed" if self._heal is None else "unwanted"
        reason = self._failed.final(key)
        if self._heal is not None:
            return "new" if reason is not None and self._heals(reason) else "unwanted"
        return "failed" if reason is not None and not self._retry_failed else "new"

    def history(self, key: Key) -> History:
        """How often earlier runs tried the video."""
        return self._failed.history(key)

    def _heals(self, reason: Reason) -> bool:
        return not self._heal or reason.value in self._heal
