"""What an output holds, at a glance. Reads only; needs no lock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.lock import Holder, read_holder
from pipeline.parts import map_parts
from pipeline.storage import Entry
from pipeline.store import RUNS, OutputStore, again_if_merged, read_json

__all__ = ["OutputStatus", "existing_store", "run_reports", "status"]


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
    binding = store.binding()
    fingerprint = binding["fingerprint"] if binding else None
    parts, rows, newest = again_if_merged(lambda: _rows(store))
    runs = sorted(run_reports(store), key=lambda report: str(report.get("finished_at", "")))
    return OutputStatus(
        uri=uri,
        table=table,
        tables=store.tables(),
        fingerprint=fingerprint,
        rows=rows,
        parts=parts,
        failures_by_reason=_failures_by_reason(store, fingerprint),
        last_indexed_at=newest,
        last_run=runs[-1] if runs else None,
        holder=read_holder(store.storage),
    )


def _rows(store: OutputStore) -> tuple[int, int, datetime | None]:
    """Numbers of parts and rows, and when the last row was made."""

    def facts(entry: Entry) -> tuple[int, datetime | None]:
        tables = list(store.iter_part(store.table, entry, ("indexed_at",)))
        newest = [pc.max(table["indexed_at"]).as_py() for table in tables if len(table)]
        return sum(map(len, tables)), max(newest, default=None)

    found = list(map_parts(facts, store.parts(store.table)))
    times = [newest for _, newest in found if newest is not None]
    return len(found), sum(rows for rows, _ in found), max(times, default=None)


def _failures_by_reason(store: OutputStore, fingerprint: str | None) -> dict[str, int]:
    failed = store.failures_of(fingerprint).by_reason() if fingerprint is not None else {}
    return {reason.value: number for reason, number in failed.items()}


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
    for entry in store.storage.files(RUNS):
        if entry.name.endswith(".json"):
            report = read_json(store.storage, f"{RUNS}/{entry.name}", "run_id", "counts") or {}
            output = (report.get("config") or {}).get("output") or {}
            if output.get("table", store.table) == store.table:
                yield report
