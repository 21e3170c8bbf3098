"""In which order parts were committed, whatever the clocks of hosts say.

The name of a part holds a time that is later than that of every part before it: the clock's, where the clock
agrees, else the last one and a microsecond. So names in their order are the order of commits, and within a
part the order of its rows. A part also says in its footer when each of its rows was committed, because a
merged one has rows of several commits. Parts of releases before this say nothing: their names hold what the
writer's clock said, and a merged one that of its first.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "COMMITS",
    "COMMITTED_AT",
    "Commit",
    "CommitClock",
    "Made",
    "commits_of",
    "dated",
    "described",
    "is_part",
    "microseconds",
    "part_name",
    "sequence_of",
    "stamp_of",
    "stamp_text",
]

# Key of file metadata: "<microseconds>:<rows>" and so on, with "?" behind what is not sure.
COMMITS = b"flashvid-commits"
COMMITTED_AT = "_committed_at"
_PART = re.compile(r"part-([0-9TZ]+)-[0-9a-f]+\.parquet")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_STAMP = "%Y%m%dT%H%M%S%fZ"


def is_part(name: str) -> bool:
    """Whether a base name is that of a committed part."""
    return _PART.fullmatch(name) is not None


def part_name(at_us: int) -> str:
    """A fresh base name of a part that is committed at a time; parts sort by it."""
    return f"part-{stamp_text(at_us)}-{uuid.uuid4().hex[:12]}.parquet"


def stamp_text(at_us: int) -> str:
    """A time, microseconds since the epoch, as the names of parts have it."""
    return (_EPOCH + at_us * _MICROSECOND).strftime(_STAMP)


def stamp_of(name: str) -> int:
    """The time in the name of a part, microseconds since the epoch; 0 where it holds none."""
    found = _PART.fullmatch(name)
    try:
        at = datetime.strptime(found.group(1) if found else "", _STAMP).replace(tzinfo=timezone.utc)
    except ValueError:
        return 0
    return (at - _EPOCH) // _MICROSECOND


class CommitClock:
    """Times of commits, each later than all before it; one writer, one call at a time.

    last: the time of the last commit that there is, microseconds; asked once, before the first commit.
    """

    def __init__(self, last: Callable[[], int]) -> None:
        self._ask, self._last = last, -1

    def tick(self, after: int = 0) -> int:
        """The time of the next commit: microseconds since the epoch, on a clock that never goes back.

        ``after``: later than that, too.
        """
        if self._last < 0:
            self._last = self._ask()
        self._last = max(time.time_ns() // 1000, self._last + 1, after + 1)
        return self._last


def sequence_of(report: Mapping[str, Any]) -> int:
    """The place of a run's report among the others; of an earlier release, when it said that it had ended."""
    sequence = report.get("sequence")
    if isinstance(sequence, int):
        return sequence
    try:
        return (datetime.fromisoformat(str(report.get("finished_at"))) - _EPOCH) // _MICROSECOND
    except (ValueError, TypeError):
        return 0


@dataclass(frozen=True)
class Commit:
    """Some rows after each other, committed at one time. Not ``is_sure``: at that time or after it."""

    at_us: int
    rows: int
    is_sure: bool = True

    def __str__(self) -> str:
        return f"{self.at_us}:{self.rows}{'' if self.is_sure else '?'}"


def described(commits: Iterable[Commit]) -> bytes:
    """Commits as the text that a part has below COMMITS; those of one time are put together."""
    told: list[Commit] = []
    for commit in commits:
        if told and (told[-1].at_us, told[-1].is_sure) == (commit.at_us, commit.is_sure):
            told[-1] = replace(commit, rows=told[-1].rows + commit.rows)
        else:
            told.append(commit)
    return " ".join(map(str, told)).encode()


def commits_of(metadata: Mapping[bytes, bytes] | None, name: str, rows: int) -> tuple[Commit, ...]:
    """The commits that the rows of a part are of, in their order; from its file metadata, else its name."""
    try:
        told = tuple(_parsed(text) for text in (metadata or {}).get(COMMITS, b"").decode().split())
    except ValueError:
        told = ()
    if sum(commit.rows for commit in told) == rows:
        return told
    return (Commit(stamp_of(name), rows, is_sure=False),)


def _parsed(text: str) -> Commit:
    at_us, _, rows = text.partition(":")
    return Commit(int(at_us), int(rows.removesuffix("?")), not rows.endswith("?"))


@dataclass(frozen=True)
class Made:
    """The column that says when a row was made, on its worker's clock.

    It counts only where the commit is not known: not before what the part's name says, or with ``earliest``
    not after it.
    """

    column: str
    earliest: bool = False


def dated(tables: Iterable[pa.Table], commits: Iterable[Commit], made: Made) -> Iterator[pa.Table]:
    """The tables of one part with a column more, COMMITTED_AT: int64, when each row was committed."""
    known = tuple(commits)
    rows = [commit.rows for commit in known]
    at = np.repeat(np.array([commit.at_us for commit in known], np.int64), rows)
    is_sure = np.repeat(np.array([commit.is_sure for commit in known], np.bool_), rows)
    first = 0
    for table in tables:
        here = slice(first, first + len(table))
        first += len(table)
        times = at[here]
        if not is_sure[here].all():
            said = np.frombuffer(microseconds(table[made.column]), np.int64)
            guess = (np.minimum if made.earliest else np.maximum)(times, said)
            times = np.where(is_sure[here], times, guess)
        yield table.append_column(COMMITTED_AT, pa.array(times))


def microseconds(column: pa.ChunkedArray) -> bytes:
    """Times as int64, microseconds since the epoch; 0 where there is none."""
    numbers = pc.fill_null(column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()), 0)
    return bytes(numbers.to_numpy().tobytes())
