"""One pass over all rows and one over all failures, for ``verify``: 24 bytes a row, whatever their number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import Reason, Stage, UserError
from pipeline.output.commit_order import COMMITTED_AT, Made
from pipeline.output.failed_so_far import of_table
from pipeline.output.keyset import KeySet, SortedDigests, digests_of
from pipeline.output.parts import PartGoneError, map_parts, open_part, tables_of
from pipeline.output.schemas import FAILURE_SCHEMA
from pipeline.output.store import FAILURES, OutputStore
from pipeline.stores import StoredFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Findings", "RowIndex", "check_failures", "check_rows"]

SHOWN = 5  # examples per kind of problem
_ROW_COLUMNS = ("video_id", "version", "fingerprint", "run_id", "indexed_at")
_FAILURE_COLUMNS = (
    "video_id",
    "version",
    "fingerprint",
    "run_id",
    "stage",
    "reason",
    "is_final",
    "failed_at",
    "details",
)
_KEY = ("video_id", "version", "fingerprint")  # what must not be there twice
_KEY_IN_RUN = (*_KEY, "run_id")
_ADDED_LATER = frozenset({"visual_tokens_budget"})  # columns that earlier releases did not write


@dataclass
class Findings:
    """What verifying gathers.

    finals_by_run: by (run_id, fingerprint). unsealed: parts that have no seal.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows_by_run: Counter[str] = field(default_factory=Counter)
    rows_by_fingerprint: Counter[str] = field(default_factory=Counter)
    finals_by_run: Counter[tuple[str, str]] = field(default_factory=Counter)
    parts: int = 0
    unsealed: int = 0
    attempts: int = 0
    failed: int = 0

    @property
    def rows(self) -> int:
        return sum(self.rows_by_fingerprint.values())

    def several(self, what: str, examples: Sequence[str], total: int | None = None) -> None:
        """A problem with a few examples of it, out of ``total``."""
        total = len(examples) if total is None else total
        if total:
            more = f" and {total - SHOWN} more" if total > SHOWN else ""
            self.problems.append(f"{what}: {', '.join(examples[:SHOWN])}{more}")


@dataclass(frozen=True)
class RowIndex:
    """Which videos have a row, and since when. committed_at: int64 (N,), microseconds, in the set's order."""

    keys: KeySet
    committed_at: NDArray[np.int64]


@dataclass(frozen=True)
class _Pass:
    """What is read of the parts of a folder, and what is gathered from it."""

    folder: str
    schema: pa.Schema
    columns: tuple[str, ...]
    made: Made
    gather: Callable[[pa.Table, _Facts], None]


@dataclass
class _Facts:
    """What one part says; packed columns, and what is wrong with it."""

    rows: int = 0
    digests: bytes = b""
    in_run: bytes = b""
    at: bytes = b""
    mine: bytes = b""
    counts: Counter[Any] = field(default_factory=Counter)
    fingerprints: Counter[str] = field(default_factory=Counter)
    unknown: set[str] = field(default_factory=set)
    drift: list[str] = field(default_factory=list)
    problem: str | None = None
    is_sealed: bool = True


def check_rows(store: OutputStore, schema: pa.Schema, found: Findings) -> RowIndex:
    """No video twice, one schema, all parts readable and undamaged; the index of what is there."""
    raw, at = bytearray(), bytearray()
    entries = store.parts(store.table)
    found.parts = len(entries)
    what = _Pass(store.table, schema, _ROW_COLUMNS, Made("indexed_at"), _row_facts)
    for facts in _read(store, what, entries, found):
        raw += facts.digests
        at += facts.at
        found.rows_by_run.update(facts.counts)
        found.rows_by_fingerprint.update(facts.fingerprints)
    digests = SortedDigests(raw)
    starts = digests.starts()
    counts = np.diff(starts, append=len(digests))
    twice = starts[counts > 1]
    if len(twice):
        numbers = dict(zip(digests.low[twice].tolist(), counts[counts > 1].tolist(), strict=True))
        wanted = _only(digests, twice)
        names = _names(store, store.table, entries, _KEY, wanted=wanted, numbers=numbers)
        found.several("videos indexed more than once", names, len(twice))
    times = np.frombuffer(at, np.int64)[digests.order]
    return RowIndex(KeySet(digests), np.maximum.reduceat(times, starts) if len(starts) else times)


def _row_facts(table: pa.Table, facts: _Facts) -> None:
    facts.rows += len(table)
    empty = [
        f"{name} is missing in some rows, should be in all" for name in _ROW_COLUMNS if table[name].null_count
    ]
    facts.drift += [text for text in empty if text not in facts.drift]
    facts.digests += digests_of(*(table[name] for name in _KEY))
    facts.at += table[COMMITTED_AT].to_numpy().tobytes()
    facts.counts.update(_counted(table["run_id"]))
    facts.fingerprints.update(_counted(table["fingerprint"]))


def check_failures(store: OutputStore, rows: RowIndex, fingerprint: str | None, found: Findings) -> None:
    """Closed sets of reasons and stages, no final failure twice in a run, none after its video had a row."""
    raw, in_run, at, mine, unknown = bytearray(), bytearray(), bytearray(), bytearray(), set[str]()
    entries = store.parts(FAILURES)
    gather = partial(_final_facts, name=store.table, fingerprint=fingerprint)
    failed = Made("failed_at", earliest=True)  # commits that are not known: in case of doubt, no problem
    what = _Pass(FAILURES, FAILURE_SCHEMA, _FAILURE_COLUMNS, failed, gather)
    for facts in _read(store, what, entries, found):
        raw += facts.digests
        in_run += facts.in_run
        at += facts.at
        mine += facts.mine
        unknown |= facts.unknown
        found.attempts += facts.rows
        found.finals_by_run.update(facts.counts)
    found.several("failures with a stage or reason outside the closed sets", sorted(unknown))
    within = SortedDigests(in_run)
    starts = within.starts()
    twice = _only(within, starts[np.diff(starts, append=len(within)) > 1])
    names = _names(store, FAILURES, entries, _KEY_IN_RUN, wanted=twice)
    found.several("videos that failed for good twice in one run", names, len(twice))
    finals = SortedDigests(raw)
    places = rows.keys.places(finals)
    since = np.where(places >= 0, rows.committed_at[places] if len(rows.keys) else 0, np.iinfo(np.int64).max)
    late = _only(finals, np.flatnonzero(since <= np.frombuffer(at, np.int64)[finals.order]))
    names = _names(store, FAILURES, entries, _KEY, wanted=late)
    found.several("videos that failed for good after they were indexed", names, len(late))
    is_mine = np.frombuffer(mine, np.bool_)[finals.order]
    found.failed = len(_only(finals, np.flatnonzero(is_mine & (places < 0))))


def _final_facts(table: pa.Table, facts: _Facts, *, name: str, fingerprint: str | None) -> None:
    facts.rows += len(table)
    reasons, stages = {reason.value for reason in Reason}, {stage.value for stage in Stage}
    facts.unknown |= set(_counted(table["reason"])) - reasons | set(_counted(table["stage"])) - stages
    finals = table.filter(table["is_final"])
    pairs = finals.group_by(["run_id", "fingerprint"]).aggregate([([], "count_all")])
    columns = (pairs[column].to_pylist() for column in ("run_id", "fingerprint", "count_all"))
    facts.counts.update({(run_id, said): count for run_id, said, count in zip(*columns, strict=True)})
    facts.in_run += digests_of(*(finals[column] for column in _KEY_IN_RUN))
    mine = finals.filter(of_table(finals, name))
    facts.digests += digests_of(*(mine[column] for column in _KEY))
    facts.at += mine[COMMITTED_AT].to_numpy().tobytes()
    is_mine = pc.equal(mine["fingerprint"], fingerprint or "")
    facts.mine += is_mine.to_numpy().astype(np.bool_).tobytes()


def _read(
    store: OutputStore, what: _Pass, entries: Sequence[StoredFile], found: Findings
) -> Iterator[_Facts]:
    """What each part says, as it is read; damaged parts and other schemas go to the findings.

    All bytes are looked at: by the seal, and where a part has none by reading every column.
    """
    drifted: dict[str, list[str]] = {}

    def read(entry: StoredFile) -> _Facts:
        facts = _Facts()
        try:
            with open_part(store.storage, what.folder, entry, whole=True) as part:
                facts.is_sealed, there = part.is_sealed, part.schema_arrow
                facts.drift = _drift(there, what.schema)
                is_complete = not set(what.columns) - set(there.names)
                columns = what.columns if part.is_sealed and is_complete else None
                for table in tables_of(part, entry, columns, what.made if is_complete else None):
                    if is_complete:
                        what.gather(table, facts)
        except PartGoneError:
            raise
        except UserError as error:
            facts.problem = f"{what.folder}/{entry.name} cannot be read: {error}"
        return facts

    for entry, facts in zip(entries, map_parts(read, entries), strict=True):
        if facts.problem is not None:
            found.problems.append(facts.problem)
        for text in facts.drift:
            drifted.setdefault(text, []).append(entry.name)
        found.unsealed += not facts.is_sealed
        yield facts
    for text, names in drifted.items():
        _tell_drift(what.folder, text, names, found)


def _tell_drift(folder: str, text: str, names: Sequence[str], found: Findings) -> None:
    where = f"{folder}/{names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    column, _, what = text.partition(" is ")
    if column in _ADDED_LATER and what.startswith("absent"):
        found.notes.append(
            f"{where}: no column {column}, which releases before it did not write; the rows are whole; read "
            "with union_by_name=true in DuckDB, or index into a new output.table"
        )
    else:
        found.problems.append(f"schema of {where} differs: {text}")


def _drift(there: pa.Schema, expected: pa.Schema) -> list[str]:
    names = [*expected.names, *(name for name in there.names if name not in expected.names)]
    drift = []
    for name in names:
        before = there.field(name).type if name in there.names else "absent"
        after = expected.field(name).type if name in expected.names else "absent"
        if before != after:
            drift.append(f"{name} is {before}, should be {after}")
    return drift


def _names(
    store: OutputStore,
    folder: str,
    entries: Sequence[StoredFile],
    columns: tuple[str, ...],
    *,
    wanted: SortedDigests,
    numbers: dict[int, int] | None = None,
) -> list[str]:
    """Ids of a few of the wanted videos, found by reading again; with their numbers of rows if given."""
    keys, found = KeySet(wanted), dict[str, None]()
    for entry in entries if len(wanted) else ():
        try:
            for table in store.iter_part(folder, entry, columns):
                digests = SortedDigests(digests_of(*(table[name] for name in columns)))
                hits = np.flatnonzero(keys.places(digests) >= 0)
                hits = hits[np.argsort(digests.order[hits])]
                for hit in hits[: SHOWN + 1].tolist():
                    name = table["video_id"][int(digests.order[hit])].as_py()
                    number = f" ({numbers.get(int(digests.low[hit]), 2)} rows)" if numbers else ""
                    found[name + number] = None
        except UserError:
            continue  # told already
        if len(found) >= SHOWN:
            break
    return list(found)[:SHOWN]


def _only(digests: SortedDigests, places: NDArray[np.int64]) -> SortedDigests:
    pairs = np.stack([digests.high[places], digests.low[places]], axis=1)
    return SortedDigests(pairs.tobytes()).distinct()


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    counts = pc.value_counts(column)
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
