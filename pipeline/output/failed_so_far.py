"""What earlier runs recorded in failures/: what failed for good, and how often the rest was tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import Reason, UserError
from pipeline.output.commit_order import COMMITTED_AT, Made
from pipeline.output.history import History
from pipeline.output.keyset import Key, KeySet, SortedDigests, digests_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ATTEMPT_COLUMNS",
    "FAILED_AT",
    "FINAL_COLUMNS",
    "Attempts",
    "FailedSoFar",
    "Finals",
    "LastWords",
    "attempts_of",
    "finals_of",
    "last_words",
    "of_table",
]

ATTEMPT_COLUMNS = ("video_id", "version", "fingerprint", "reason", "is_final", "attempt", "details")
FINAL_COLUMNS = (*ATTEMPT_COLUMNS, "failed_at")
FAILED_AT = Made("failed_at")

_REASONS = tuple(Reason)
_NAMES = pa.array([reason.value for reason in _REASONS])
_STRIKES = [_REASONS.index(reason) for reason in (Reason.CRASHED_WORKER, Reason.GENERATION_TIMEOUT)]
_NONE = 255  # in place of a reason


@dataclass(frozen=True)
class Attempts:
    """Failed attempts in the order they were recorded, as packed columns: 22 bytes each.

    digests: 16 bytes each. reasons: uint8, places in Reason. finals: bool. numbers: int32, the attempts.
    """

    digests: bytes
    reasons: bytes
    finals: bytes
    numbers: bytes


@dataclass(frozen=True)
class Finals:
    """Final failures in the order they were recorded, as packed columns: 45 bytes each.

    keys: digests of (video_id, version). videos: digests of the id. at: int64, microseconds, the commits.
    """

    keys: bytes = b""
    videos: bytes = b""
    reasons: bytes = b""
    numbers: bytes = b""
    at: bytes = b""

    @classmethod
    def joined(cls, some: Sequence[Finals]) -> Finals:
        """Several after each other."""
        return cls(*(b"".join(getattr(one, item.name) for one in some) for item in fields(cls)))


@dataclass(frozen=True)
class LastWords:
    """What was said last of each video, as whichever version: that it was indexed, or failed for good.

    indexed, failed: numbers of videos, which add up to all that something final was said of. superseded:
    failed versions of videos of which something was said later, as another version.
    """

    indexed: int
    failed: Mapping[Reason, int]
    superseded: int


class FailedSoFar:
    """The failures of one job in earlier runs. About 40 bytes for each video that ever failed."""

    def __init__(self, attempts: Iterable[Attempts]) -> None:
        """attempts: in the order they were recorded."""
        raw, reasons, finals, numbers = bytearray(), bytearray(), bytearray(), bytearray()
        for some in attempts:
            raw += some.digests
            reasons += some.reasons
            finals += some.finals
            numbers += some.numbers
        digests = SortedDigests(raw)
        order, starts = digests.order, digests.starts()
        self._digests = digests.distinct()
        self._keys = KeySet(self._digests)
        self._finals = np.zeros(0, np.uint8)
        self._attempts = self._failures = self._strikes = np.zeros(0, np.int32)
        if len(starts):
            order = _by_attempt(order, starts, np.frombuffer(numbers, np.int32))
            reason = np.frombuffer(reasons, np.uint8)[order]
            self._count(reason, np.frombuffer(finals, np.bool_)[order], starts)
            number = np.frombuffer(numbers, np.int32)[order]
            most = np.maximum.reduceat(number, starts)
            self._attempts = np.maximum(most, np.diff(starts, append=len(order)).astype(np.int32))

    def settle(self, committed: KeySet) -> None:
        """Forget the final failures of videos that have a row by now."""
        self._finals[committed.places(self._digests) >= 0] = _NONE

    def _count(
        self, reasons: NDArray[np.uint8], finals: NDArray[np.bool_], starts: NDArray[np.int64]
    ) -> None:
        """Per video: the reason of its last final failure, and what came after that one."""
        places = np.arange(len(reasons))
        last = np.maximum.reduceat(np.where(finals, places, -1), starts)
        self._finals = np.where(last >= 0, reasons[last], _NONE).astype(np.uint8)
        after = places > np.repeat(last, np.diff(starts, append=len(reasons)))
        strikes = np.isin(reasons, _STRIKES)
        self._failures = np.add.reduceat(after & ~strikes, starts, dtype=np.int32)
        self._strikes = np.add.reduceat(after & strikes, starts, dtype=np.int32)

    @property
    def num_final(self) -> int:
        """Videos that failed for good and have no row."""
        return int(np.count_nonzero(self._finals != _NONE))

    def by_reason(self) -> dict[Reason, int]:
        """How many videos failed for good and have no row, by reason, most first."""
        counts = np.bincount(self._finals[self._finals != _NONE], minlength=len(_REASONS))
        found = {reason: int(number) for reason, number in zip(_REASONS, counts, strict=True) if number}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def final(self, key: Key) -> Reason | None:
        """Why a video failed for good; None where it did not, or has been indexed since."""
        place = self._keys.find(key)
        if place is None or self._finals[place] == _NONE:
            return None
        return _REASONS[int(self._finals[place])]

    def history(self, key: Key) -> History:
        """How often a video was tried: in all, and since it last failed for good."""
        place = self._keys.find(key)
        if place is None:
            return History()
        counts = (int(column[place]) for column in (self._attempts, self._failures, self._strikes))
        return History(*counts)


def _by_attempt(
    order: NDArray[np.int64], starts: NDArray[np.int64], numbers: NDArray[np.int32]
) -> NDArray[np.int64]:
    """``order`` with each video's attempts by their number: parts go by the clocks of hosts, which differ."""
    videos = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    return order[np.lexsort((numbers[order], videos))]


def of_table(rows: pa.Table, table: str) -> pa.ChunkedArray:
    """For each row of failures whether it is of that table; one that does not say which counts as such."""
    named = pc.map_lookup(rows["details"], pa.scalar("table"), "first")
    return pc.fill_null(pc.equal(named, table), True)


def attempts_of(rows: pa.Table, fingerprint: str, table: str) -> Attempts:
    """The attempts among rows of failures (ATTEMPT_COLUMNS) that are of one job and table.

    Raises UserError for a reason that this version does not know.
    """
    mine = rows.filter(pc.and_(pc.equal(rows["fingerprint"], fingerprint), of_table(rows, table)))
    return Attempts(
        digests_of(mine["video_id"], mine["version"]),
        _reasons(mine),
        mine["is_final"].to_numpy().astype(np.bool_).tobytes(),
        mine["attempt"].to_numpy().astype(np.int32).tobytes(),
    )


def finals_of(rows: pa.Table, fingerprint: str, table: str) -> Finals:
    """The final failures among dated rows of failures (FINAL_COLUMNS) that are of one job and table."""
    mine = rows.filter(pc.and_(pc.equal(rows["fingerprint"], fingerprint), of_table(rows, table)))
    mine = mine.filter(mine["is_final"])
    return Finals(
        digests_of(mine["video_id"], mine["version"]),
        digests_of(mine["video_id"]),
        _reasons(mine),
        mine["attempt"].to_numpy().astype(np.int32).tobytes(),
        mine[COMMITTED_AT].to_numpy().tobytes(),
    )


def last_words(videos: bytes | bytearray, at: bytes | bytearray, finals: Finals, made: bytes) -> LastWords:
    """Put rows and final failures of a table together, video by video.

    videos, at: of each row the digest of its id, and when it was committed (int64, microseconds). made: for
    each final failure whether its very version has a row; then it is forgotten.
    """
    keys = SortedDigests(finals.keys)
    order = _by_attempt(keys.order, keys.starts(), np.frombuffer(finals.numbers, np.int32))
    last = order[np.append(keys.starts()[1:], len(keys)) - 1] if len(keys) else order
    last = last[~np.frombuffer(made, np.bool_)[last]]
    failing = np.frombuffer(finals.videos, np.uint64).reshape(-1, 2)[last]
    digests = SortedDigests(b"".join((videos, failing.tobytes())))
    failed_at = np.frombuffer(finals.at, np.int64)[last]
    number = np.concatenate([np.full(len(at) // 8, _NONE), np.frombuffer(finals.reasons, np.uint8)[last]])
    number = number[digests.order]
    when = np.concatenate([np.frombuffer(at, np.int64), failed_at])[digests.order]
    starts = digests.starts()
    if not len(starts):
        return LastWords(0, {}, 0)
    rank = 2 * when + (number == _NONE)  # of two at once, which old outputs may have, the row counts
    newest = np.repeat(np.maximum.reduceat(rank, starts), np.diff(starts, append=len(rank)))
    said = number[np.maximum.reduceat(np.where(rank == newest, np.arange(len(rank)), -1), starts)]
    counts = np.bincount(said[said != _NONE], minlength=len(_REASONS))
    by_reason = {reason: int(count) for reason, count in zip(_REASONS, counts, strict=True) if count}
    failed = dict(sorted(by_reason.items(), key=lambda item: -item[1]))
    return LastWords(len(starts) - int(counts.sum()), failed, len(last) - int(counts.sum()))


def _reasons(rows: pa.Table) -> bytes:
    places = pc.index_in(rows["reason"], value_set=_NAMES)
    if places.null_count:
        unknown = rows["reason"].filter(pc.is_null(places))[0]
        raise UserError(
            f"failures/ holds the reason {unknown!s}, which this version does not know; use the version that "
            "wrote it, or a newer one"
        )
    return bytes(places.to_numpy().astype(np.uint8).tobytes())
