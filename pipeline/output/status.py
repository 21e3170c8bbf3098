"""What an output holds, at a glance. Reads only; needs no lock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.output.binding import read_json
from pipeline.output.commit_order import COMMITTED_AT, Made, microseconds, sequence_of
from pipeline.output.failed_so_far import (
    FAILED_AT,
    FINAL_COLUMNS,
    Finals,
    LastWords,
    finals_of,
    last_words,
)
from pipeline.output.keyset import KeySet, SortedDigests, digests_of
from pipeline.output.lock import Holder, read_holder
from pipeline.output.parts import map_parts
from pipeline.output.store import FAILURES, RUNS, OutputStore, again_if_merged
from pipeline.stores import StoredFile, telling

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "OutputStatus",
    "Rows",
    "existing_store",
    "read_report",
    "read_status",
    "read_words",
    "report_names",
    "run_reports",
]

_ROW_COLUMNS = ("video_id", "version", "fingerprint", "indexed_at")
_INDEXED_AT = Made("indexed_at")


@dataclass(frozen=True)
class OutputStatus:
    """What ``status`` shows. A video counts once, by what was said last of it, as whichever version.

    indexed: videos of which that is a row. failures_by_reason: those of which it is a failure for good.
    earlier_rows, earlier_failures: of versions of which something was said later, as another version.
    """

    uri: str
    table: str
    tables: tuple[str, ...]
    fingerprint: str | None
    rows: int
    parts: int
    failures_by_reason: Mapping[str, int]
    last_indexed_at: datetime | None
    last_run: Mapping[str, Any] | None
    holder: Holder | None
    earlier_rows: int = 0
    earlier_failures: int = 0

    @property
    def indexed(self) -> int:
        return self.rows - self.earlier_rows

    @property
    def is_running(self) -> bool:
        return self.holder is not None


def read_status(uri: str, table: str = "videos") -> OutputStatus:
    """A summary of one table: rows, failures by reason, the last run, and who writes now.

    Raises UserError where there is no output at all, or a part cannot be read.
    """
    with telling(uri):
        return _status(uri, table)


def _status(uri: str, table: str) -> OutputStatus:
    store = existing_store(uri, table)
    binding = store.binding()
    fingerprint = binding["fingerprint"] if binding else None
    rows, words = again_if_merged(lambda: read_words(store, fingerprint))
    runs = sorted(run_reports(store), key=sequence_of)
    return OutputStatus(
        uri=uri,
        table=table,
        tables=store.tables(),
        fingerprint=fingerprint,
        rows=rows.number,
        parts=rows.parts,
        failures_by_reason={reason.value: number for reason, number in words.failed.items()},
        last_indexed_at=rows.newest,
        last_run=runs[-1] if runs else None,
        holder=read_holder(store.storage),
        earlier_rows=rows.number - words.indexed,
        earlier_failures=words.superseded,
    )


@dataclass(frozen=True)
class Rows:
    """What there is of rows; ``newest``: when the last one was made, by the clocks of workers."""

    parts: int
    number: int
    newest: datetime | None


@dataclass(frozen=True)
class _Part:
    """Of each row the digest of its id and when it was committed; and what failed keys the part makes up for.

    newest: when the last row was made, microseconds.
    """

    videos: bytes
    at: bytes
    newest: int
    made: NDArray[np.int64]


def read_words(store: OutputStore, fingerprint: str | None) -> tuple[Rows, LastWords]:
    """What was said last of each video of a table; about 250 bytes a row while it is put together."""
    finals = _finals(store, fingerprint) if fingerprint is not None else Finals()
    failed = SortedDigests(finals.keys)
    keys = KeySet(failed)

    def facts(entry: StoredFile) -> _Part:
        videos, at, newest, made = bytearray(), bytearray(), 0, [np.zeros(0, np.int64)]
        for table in store.iter_part(store.table, entry, _ROW_COLUMNS, made=_INDEXED_AT):
            videos += digests_of(table["video_id"])
            at += table[COMMITTED_AT].to_numpy().tobytes()
            newest = int(np.frombuffer(microseconds(table["indexed_at"]), np.int64).max(initial=newest))
            if len(keys):
                mine = table.filter(pc.equal(table["fingerprint"], fingerprint))
                made.append(keys.places(SortedDigests(digests_of(mine["video_id"], mine["version"]))))
        return _Part(bytes(videos), bytes(at), newest, np.unique(np.concatenate(made)))

    videos, at, newest, has_row = bytearray(), bytearray(), 0, np.zeros(len(keys) + 1, np.bool_)
    entries = store.parts(store.table)
    for part in map_parts(facts, entries):
        videos += part.videos
        at += part.at
        newest = max(newest, part.newest)
        has_row[part.made] = True  # the last place stands for keys that never failed
    made = np.zeros(len(failed), np.bool_)
    made[failed.order] = has_row[keys.places(failed)]
    last = datetime.fromtimestamp(newest / 1e6, timezone.utc) if at else None
    return Rows(len(entries), len(at) // 8, last), last_words(videos, at, finals, made.tobytes())


def _finals(store: OutputStore, fingerprint: str) -> Finals:
    def finals(entry: StoredFile) -> Finals:
        tables = store.iter_part(FAILURES, entry, FINAL_COLUMNS, made=FAILED_AT)
        return Finals.joined([finals_of(table, fingerprint, store.table) for table in tables])

    return Finals.joined(list(map_parts(finals, store.parts(FAILURES))))


def existing_store(uri: str, table: str) -> OutputStore:
    """The store of a table that exists; raises UserError naming the tables there are."""
    store = OutputStore(uri, table)
    tables = store.tables()
    if table not in tables:
        there = (
            f"tables there: {', '.join(tables)}"
            if tables
            else "there is no output; was it written elsewhere?"
        )
        raise UserError(f"no table {table!r} in {uri!r}; {there}")
    return store


def run_reports(store: OutputStore) -> Iterator[dict[str, Any]]:
    """Reports of runs that wrote this table; a report that does not say which is taken to be of it."""
    for name in report_names(store):
        table, report = read_report(store, name)
        if table == store.table:
            yield report


def report_names(store: OutputStore) -> list[str]:
    """Where the reports of all runs are."""
    return [f"{RUNS}/{entry.name}" for entry in store.storage.files(RUNS) if entry.name.endswith(".json")]


def read_report(store: OutputStore, name: str) -> tuple[str, dict[str, Any]]:
    """A report and the table it is about. Raises UserError for what is none."""
    report = read_json(store.storage, name, "run_id", "counts") or {"run_id": "", "counts": {}}
    try:
        output = (report.get("config") or {}).get("output") or {}
        numbers = {str(key): int(number) for key, number in report["counts"].items()}
        return str(output.get("table", store.table)), {**report, "counts": numbers}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{store.storage.path(name)!r} is not the report of a run ({error}); restore or delete it"
        ) from None
