"""What an output holds, and whether it is what it should be. Reads only; needs no lock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.output.commit_order import is_part
from pipeline.output.lock import Holder, read_holder
from pipeline.output.merge_records import Merge, read_merges, replaced, retired_folders
from pipeline.output.parts import PartGoneError
from pipeline.output.row_checks import Findings, check_failures, check_rows
from pipeline.output.schemas import video_schema
from pipeline.output.status import existing_store, read_report, read_words, report_names
from pipeline.output.store import FAILURES, OutputStore, again_if_merged
from pipeline.stores import telling

__all__ = ["VerifyReport", "verify_output"]

_WAY_OUT = (
    "where a part was removed on purpose, flashvid index does its videos again, and the report in _runs/ may "
    "be deleted"
)


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` found. ``problems`` break a promise; ``notes`` are harmless and worth knowing.

    rows: committed rows; failures: videos whose last word is that they failed for good, as ``status`` counts;
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


def verify_output(uri: str, table: str = "videos") -> VerifyReport:
    """Hold one table against every promise: no video twice, one schema, no foreign files, sums that close.

    Memory: about 110 bytes per row. A run in progress is noted, not a problem.
    Raises UserError where there is no output at all.
    """
    with telling(uri):
        store = existing_store(uri, table)
        return again_if_merged(lambda: _verify(store))


def _verify(store: OutputStore) -> VerifyReport:
    holder = read_holder(store.storage)
    found = Findings()
    runs = _runs(store, found)  # before the parts, so that a run ending meanwhile is not missed in them
    mine = [report for table, report in runs.values() if table == store.table]
    _check_files(store, found)
    _check_merges(store, found)
    bound = _binding(store, found)
    fingerprint = str(bound["fingerprint"]) if bound else None
    rows = check_rows(store, video_schema((bound or {}).get("columns") or {}), found)
    check_failures(store, rows, fingerprint, found)
    _count_failed(store, fingerprint, found)
    _check_fingerprints(store, fingerprint, found)
    _check_runs(mine, found)
    _check_origin(store.table, runs, holder, found)
    if found.unsealed:
        found.notes.append(
            f"{found.unsealed} parts have no checksums, which earlier releases did not write: damage in them "
            "shows only where it makes them unreadable; parts that flashvid compact merges have checksums"
        )
    if holder is not None:
        found.notes.append(f"a run is writing now: {holder}")
    return VerifyReport(
        uri=store.storage.uri,
        table=store.table,
        fingerprint=fingerprint,
        rows=found.rows,
        parts=found.parts,
        failures=found.failed,
        attempts=found.attempts,
        runs=len(mine),
        problems=tuple(found.problems),
        notes=tuple(found.notes),
    )


def _runs(store: OutputStore, found: Findings) -> dict[str, tuple[str, dict[str, Any]]]:
    """By run: the table it wrote, and its report."""
    runs = {}
    for name in report_names(store):
        try:
            table, report = read_report(store, name)
            runs[str(report["run_id"])] = (table, report)
        except UserError as error:
            found.problems.append(str(error))
    return runs


def _check_files(store: OutputStore, found: Findings) -> None:
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


def _check_merges(store: OutputStore, found: Findings) -> None:
    try:
        merges = [merge for merge in read_merges(store.storage) if merge.folder in (store.table, FAILURES)]
    except UserError as error:
        found.problems.append(str(error))
        return
    waiting = len(retired_folders(store.storage))
    for folder in (store.table, FAILURES):
        names = {entry.name for entry in store.storage.files(folder)}
        mine = [merge for merge in merges if merge.folder == folder]
        gone = replaced(folder, names, mine)
        waiting += len(gone & names)
        for merge in mine:
            if merge.part not in names | gone:
                _tell_unfinished(merge, names | gone | {other.part for other in mine}, found)
    if waiting:
        found.notes.append(
            f"{waiting} parts or folders that compact replaced are kept for readers that began before; the "
            "next compact or run removes them once they are due"
        )


def _tell_unfinished(merge: Merge, known: set[str], found: Findings) -> None:
    """A merge on record whose part is not there: nothing happened yet, or rows are lost."""
    lost = [f"{merge.folder}/{name}" for name in merge.replaces if name not in known]
    if lost:
        what = f"neither {merge.folder}/{merge.part} is there nor parts that it replaces ({merge.name})"
        found.several(what, lost)
    elif merge.written_at < time.time() - 60.0:
        found.notes.append(
            f"a compact was cut short ({merge.name}); nothing is lost, the next one does it again"
        )


def _binding(store: OutputStore, found: Findings) -> dict[str, Any] | None:
    try:
        return store.binding()
    except UserError as error:
        found.problems.append(str(error))
        return None


def _count_failed(store: OutputStore, fingerprint: str | None, found: Findings) -> None:
    """Of the failed versions without a row only those of which nothing was said later are failed videos."""
    if not found.failed:
        return
    try:
        _, words = read_words(store, fingerprint)
    except PartGoneError:
        raise
    except UserError:
        return  # told already
    found.failed = sum(words.failed.values())
    if words.superseded:
        found.notes.append(
            f"{words.superseded} more versions failed for good, of videos that were indexed or failed later "
            "as another version"
        )


def _check_fingerprints(store: OutputStore, fingerprint: str | None, found: Findings) -> None:
    if fingerprint is None:
        if found.rows:
            found.problems.append(f"table {store.table!r} holds rows but is bound to no fingerprint")
        return
    others = {name: number for name, number in found.rows_by_fingerprint.items() if name != fingerprint}
    found.several(
        f"rows of other fingerprints than {fingerprint}",
        [f"{name} ({number} rows)" for name, number in others.items()],
    )


def _check_origin(
    table: str, runs: Mapping[str, tuple[str, dict[str, Any]]], holder: Holder | None, found: Findings
) -> None:
    """Rows that a run of another table made, and those of which no report says how many there were."""
    counted = found.rows_by_run.items()
    elsewhere = [(run_id, *runs[run_id][:1], rows) for run_id, rows in counted if run_id in runs]
    found.several(
        f"rows in {table}/ of runs that wrote another table",
        [f"{run_id} ({rows} rows, table {other})" for run_id, other, rows in elsewhere if other != table],
    )
    silent = [run_id for run_id in found.rows_by_run if run_id not in runs]
    if holder is not None and holder.run_id in silent:
        silent.remove(holder.run_id)
    if silent:
        rows = sum(found.rows_by_run[run_id] for run_id in silent)
        found.notes.append(
            f"{rows} rows are of {len(silent)} runs that left no report (killed, or not finished), e.g. "
            f"{silent[0]}: whether a part of theirs was removed since cannot be known; flashvid index on the "
            "same corpus does again what is missing"
        )


def _check_runs(runs: list[dict[str, Any]], found: Findings) -> None:
    for report in runs:
        # A run that failed says so itself; only one that claims success and does not add up breaks a promise.
        said = found.notes if report.get("exit_status") else found.problems
        said.extend(f"run {report['run_id']} {text}" for text in _disagreements(report, found))


def _disagreements(report: Mapping[str, Any], found: Findings) -> Iterator[str]:
    counts = Counter({name: int(number) for name, number in report["counts"].items()})
    accounted = sum(counts[name] for name in ("indexed", "failed", "skipped_indexed", "skipped_failed"))
    if counts["listed"] != accounted:
        yield f"listed {counts['listed']} videos and accounts for {accounted}"
    rows = found.rows_by_run[str(report["run_id"])]
    if counts["indexed"] != rows:
        text = f"reports {counts['indexed']} indexed videos, the parts hold {rows} rows"
        yield text if rows > counts["indexed"] else f"{text}; {_WAY_OUT}"
    finals = found.finals_by_run[(str(report["run_id"]), str(report.get("fingerprint")))]
    if counts["failed"] != finals:
        yield f"reports {counts['failed']} failed videos, the parts hold {finals} final failures"
