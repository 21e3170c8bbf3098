"""What an output holds, and whether it is what it should be. Reads only; needs no lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from pipeline.errors import Reason, Stage, UserError
from pipeline.lock import read_holder
from pipeline.parts import open_part
from pipeline.schemas import FAILURE_SCHEMA, VIDEO_SCHEMA
from pipeline.status import Identity, OutputStatus, existing_store, identity_of, run_reports, status
from pipeline.store import FAILURES, OutputStore, is_part

__all__ = ["OutputStatus", "VerifyReport", "status", "verify"]

_SHOWN = 5  # examples per kind of problem
_KEY_COLUMNS = ("video_id", "version", "fingerprint", "run_id")


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` found. ``problems`` break a promise; ``notes`` are harmless and worth knowing.

    rows: committed rows; failures: videos of this fingerprint whose failure is final and that have no row;
    attempts: recorded failed attempts, of all tables; runs: reports held against the rows.
    """

    uri: str
    table: str
    fingerprint: str | None
    rows: int
    parts: int
    failures: int
    attempts: int
    runs: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass
class _Findings:
    """What one pass over the parts gathers."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    indexed_at: dict[Identity, datetime] = field(default_factory=dict)
    rows_by_run: Counter[str] = field(default_factory=Counter)
    finals_by_run: Counter[tuple[str, str]] = field(default_factory=Counter)  # (run_id, fingerprint)
    failed: set[Identity] = field(default_factory=set)
    parts: int = 0
    rows: int = 0
    attempts: int = 0

    def several(self, what: str, examples: list[str]) -> None:
        if examples:
            more = f" and {len(examples) - _SHOWN} more" if len(examples) > _SHOWN else ""
            self.problems.append(f"{what}: {', '.join(examples[:_SHOWN])}{more}")


def verify(uri: str, table: str = "videos") -> VerifyReport:
    """Hold one table against every promise: no video twice, one schema, no foreign files, sums that close.

    Memory: one entry per video (about 300 bytes). A run in progress is noted, not a problem.
    Raises UserError where there is no output at all.
    """
    store = existing_store(uri, table)
    holder = read_holder(store.storage)
    found = _Findings()
    runs = _runs(store, found)  # before the parts, so that a run ending meanwhile is not missed in them
    _check_files(store, found)
    _check_rows(store, found)
    _check_failures(store, found)
    fingerprint = _check_binding(store, found)
    _check_runs(runs, found)
    if holder is not None:
        found.notes.append(f"a run is writing now: {holder}")
    return VerifyReport(
        uri=uri,
        table=table,
        fingerprint=fingerprint,
        rows=found.rows,
        parts=found.parts,
        failures=sum(key[2] == fingerprint for key in found.failed - found.indexed_at.keys()),
        attempts=found.attempts,
        runs=len(runs),
        problems=tuple(found.problems),
        notes=tuple(found.notes),
    )


def _runs(store: OutputStore, found: _Findings) -> list[dict[str, Any]]:
    try:
        return list(run_reports(store))
    except UserError as error:
        found.problems.append(str(error))
        return []


def _check_files(store: OutputStore, found: _Findings) -> None:
    for folder in (store.table, FAILURES):
        names = [entry.name for entry in store.storage.files(folder)]
        foreign = [f"{folder}/{name}" for name in names if not is_part(name)]
        found.several("files that no run wrote (DuckDB would read foreign Parquet as rows)", foreign)
        leftovers = store.storage.leftovers(folder)
        if leftovers:
            found.notes.append(
                f"{len(leftovers)} temporary files of a killed run in {folder}/; no reader sees "
                "them, the next run removes them"
            )


def _part_rows(
    store: OutputStore, folder: str, schema: pa.Schema, columns: tuple[str, ...], found: _Findings
) -> Iterator[dict[str, Any]]:
    for entry in store.parts(folder):
        try:
            part = open_part(store.storage, folder, entry)
            drift = _drift(part.schema_arrow, schema)
            found.several(f"schema of {folder}/{entry.name} differs", drift)
            if not set(columns) - set(part.schema_arrow.names):
                yield from part.read(columns=list(columns)).to_pylist()
        except (UserError, pa.ArrowException, OSError) as error:
            found.problems.append(f"{folder}/{entry.name} cannot be read: {error}")


def _drift(there: pa.Schema, expected: pa.Schema) -> list[str]:
    names = [*expected.names, *(name for name in there.names if name not in expected.names)]
    drift = []
    for name in names:
        before = there.field(name).type if name in there.names else "absent"
        after = expected.field(name).type if name in expected.names else "absent"
        if before != after:
            drift.append(f"{name} is {before}, should be {after}")
    return drift


def _check_rows(store: OutputStore, found: _Findings) -> None:
    found.parts = len(store.parts(store.table))
    twice: Counter[Identity] = Counter()
    for row in _part_rows(store, store.table, VIDEO_SCHEMA, (*_KEY_COLUMNS, "indexed_at"), found):
        found.rows += 1
        found.rows_by_run[row["run_id"]] += 1
        key = identity_of(row)
        if key in found.indexed_at:
            twice[key] += 1
        found.indexed_at[key] = row["indexed_at"]
    found.several(
        "videos indexed more than once", [f"{key[0]} ({number + 1} rows)" for key, number in twice.items()]
    )


def _check_failures(store: OutputStore, found: _Findings) -> None:
    columns = (*_KEY_COLUMNS, "stage", "reason", "is_final", "failed_at")
    reasons, stages = {reason.value for reason in Reason}, {stage.value for stage in Stage}
    unknown: set[str] = set()
    after_success, twice = [], []
    seen: set[tuple[str, Identity]] = set()
    for row in _part_rows(store, FAILURES, FAILURE_SCHEMA, columns, found):
        found.attempts += 1
        unknown |= {row["reason"]} - reasons | {row["stage"]} - stages
        if not row["is_final"]:
            continue
        key = identity_of(row)
        found.failed.add(key)
        found.finals_by_run[(row["run_id"], row["fingerprint"])] += 1
        if (row["run_id"], key) in seen:
            twice.append(key[0])
        seen.add((row["run_id"], key))
        if key in found.indexed_at and found.indexed_at[key] <= row["failed_at"]:
            after_success.append(key[0])
    found.several("failures with a stage or reason outside the closed sets", sorted(unknown))
    found.several("videos that failed for good twice in one run", twice)
    found.several("videos that failed for good after they were indexed", after_success)


def _check_binding(store: OutputStore, found: _Findings) -> str | None:
    try:
        binding = store.binding()
    except UserError as error:
        found.problems.append(str(error))
        return None
    if binding is None:
        if found.rows:
            found.problems.append(f"table {store.table!r} holds rows but is bound to no fingerprint")
        return None
    fingerprint = str(binding["fingerprint"])
    others = Counter(key[2] for key in found.indexed_at if key[2] != fingerprint)
    found.several(
        f"rows of other fingerprints than {fingerprint}",
        [f"{name} ({number} rows)" for name, number in others.items()],
    )
    return fingerprint


def _check_runs(runs: list[dict[str, Any]], found: _Findings) -> None:
    for report in runs:
        # A run that failed says so itself; only one that claims success and does not add up breaks a promise.
        said = found.notes if report.get("exit_status") else found.problems
        said.extend(f"run {report['run_id']} {text}" for text in _disagreements(report, found))


def _disagreements(report: Mapping[str, Any], found: _Findings) -> Iterator[str]:
    counts = Counter({name: int(number) for name, number in report["counts"].items()})
    accounted = sum(counts[name] for name in ("indexed", "failed", "skipped_indexed", "skipped_failed"))
    if counts["listed"] != accounted:
        yield f"listed {counts['listed']} videos and accounts for {accounted}"
    rows = found.rows_by_run[str(report["run_id"])]
    if counts["indexed"] != rows:
        yield f"reports {counts['indexed']} indexed videos, the parts hold {rows} rows"
    finals = found.finals_by_run[(str(report["run_id"]), str(report.get("fingerprint")))]
    if counts["failed"] != finals:
        yield f"reports {counts['failed']} failed videos, the parts hold {finals} final failures"
