"""What an output holds, at a glance. Reads only; needs no lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.errors import UserError
from pipeline.lock import Holder, read_holder
from pipeline.store import RUNS, OutputStore, read_json

__all__ = ["Identity", "OutputStatus", "existing_store", "identity_of", "run_reports", "status"]

Identity = tuple[str, str, str]  # (video_id, version, fingerprint)


@dataclass(frozen=True)
class OutputStatus:
    """What ``status`` shows. ``failures_by_reason`` counts videos that failed for good and have no row."""

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

    @property
    def is_running(self) -> bool:
        return self.holder is not None


def status(uri: str, table: str = "videos") -> OutputStatus:
    """A summary of one table: rows, failures by reason, the last run, and who writes now.

    Raises UserError where there is no output at all, or a part cannot be read.
    """
    store = existing_store(uri, table)
    indexed: set[Identity] = set()
    newest: datetime | None = None
    rows = 0
    for row in store.iter_rows(("video_id", "version", "fingerprint", "indexed_at")):
        rows += 1
        indexed.add(identity_of(row))
        newest = max(newest, row["indexed_at"]) if newest else row["indexed_at"]
    binding = store.binding()
    fingerprint = binding["fingerprint"] if binding else None
    runs = sorted(run_reports(store), key=lambda report: str(report.get("finished_at", "")))
    return OutputStatus(
        uri=uri,
        table=table,
        tables=store.tables(),
        fingerprint=fingerprint,
        rows=rows,
        parts=len(store.parts(table)),
        failures_by_reason=_failures_by_reason(store, indexed, fingerprint),
        last_indexed_at=newest,
        last_run=runs[-1] if runs else None,
        holder=read_holder(store.storage),
    )


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


def _failures_by_reason(
    store: OutputStore, indexed: set[Identity], fingerprint: str | None
) -> dict[str, int]:
    reason_of: dict[Identity, str] = {}
    for row in store.iter_failures(("video_id", "version", "fingerprint", "is_final", "reason")):
        if row["is_final"] and row["fingerprint"] == fingerprint:
            reason_of[identity_of(row)] = row["reason"]
    return dict(Counter(reason for key, reason in reason_of.items() if key not in indexed).most_common())


def identity_of(row: Mapping[str, Any]) -> Identity:
    """What must not be there twice."""
    return (row["video_id"], row["version"], row["fingerprint"])


def run_reports(store: OutputStore) -> Iterator[dict[str, Any]]:
    """Reports of runs that wrote this table; a report that does not say which is taken to be of it."""
    for entry in store.storage.files(RUNS):
        if entry.name.endswith(".json"):
            report = read_json(store.storage, f"{RUNS}/{entry.name}", "run_id", "counts") or {}
            output = (report.get("config") or {}).get("output") or {}
            if output.get("table", store.table) == store.table:
                yield report
