"""The Parquet side of a run: bind a table, commit parts, read back what is committed.

``<output>/<table>/part-*.parquet``     one row per indexed video
``<output>/failures/part-*.parquet``    one row per failed attempt
``<output>/_runs/<run_id>.json``        the report of a run that ended
``<output>/_tables/<table>.json``       the fingerprint the table is bound to, and what it stands for
``<output>/_compact/``                  merges of small parts that readers must know of: merge_records.py
``<output>/_shards/``                   indexes of tar shards, a cache

A part that exists is committed; nothing else says so, but the record of a merge that replaces it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.output import binding
from pipeline.output.binding import TABLES, json_bytes, read_json
from pipeline.output.commit_order import CommitClock, Made, is_part, part_name, sequence_of, stamp_of
from pipeline.output.failed_so_far import ATTEMPT_COLUMNS, Attempts, FailedSoFar, attempts_of
from pipeline.output.keyset import KeySet, digests_of
from pipeline.output.merge_records import (
    COMPACT,
    drop_replaced,
    find_retired,
    finish_merges,
    is_torn,
    read_merges,
)
from pipeline.output.parts import (
    PartBuffer,
    PartGoneError,
    encode_failures,
    encode_rows,
    iter_part,
    map_parts,
)
from pipeline.output.schemas import video_schema
from pipeline.output.shard_cache import SHARDS, ShardCache
from pipeline.records import Failure, VideoRow
from pipeline.stores import Storage, StoredFile, steady_seconds

__all__ = [
    "FAILURES",
    "RUNS",
    "TABLES",
    "OutputStore",
    "PartBuffer",
    "again_if_merged",
    "read_json",
]

FAILURES = "failures"
RUNS = "_runs"

_FENCE_SECONDS = 20.0  # well under the 60 s after which a silent holder may be replaced
_LAST_REPORTS = 8  # in which the last run is looked for
_BATCH_ROWS = 1000  # rows that become Python objects at once
_TRIES = 5
_PAUSE_SECONDS = 0.1

T = TypeVar("T")


class OutputStore:
    """One table of one output, and the failures beside it. One writer at a time, held apart by OutputLock.

    fence: called before every commit; raises where this run has lost its right to write (OutputLock.check).
    A commit that took so long that the right may have lapsed meanwhile is checked again, and withdrawn.
    columns: what is carried over from a manifest, name -> type, after the columns of VIDEO_SCHEMA.

    Local and object storage alike: every method uses only list, read, one PUT, and delete.
    """

    def __init__(
        self,
        uri: str,
        table: str = "videos",
        fence: Callable[[], None] | None = None,
        columns: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.table = table
        self.storage = Storage(uri)
        self._fence = fence
        self._columns = dict(columns)
        self._schema = video_schema(self._columns)
        self._clock = CommitClock(self._last_commit)

    def bind(self, fingerprint: str, semantic: Mapping[str, Any]) -> None:
        """Tie the table to a fingerprint and its columns, or check that it is tied to these.

        ``semantic``: what the fingerprint covers, as JSON values; shown as a difference in the refusal.
        Raises UserError where the table is bound to another fingerprint or holds rows of another one. A table
        without rows is bound anew.
        """
        parts = self.parts(self.table)
        if parts and self.binding() is None:
            self._refuse_foreign_rows(fingerprint)
        binding.bind(self.storage, self.table, fingerprint, semantic, self._columns, is_empty=not parts)

    def check_binding(self, fingerprint: str, semantic: Mapping[str, Any]) -> None:
        """Raise UserError where ``bind`` would, as far as the binding tells; only reads."""
        bound, columns = self.binding(), self._columns
        if bound is None or binding.is_bound_to(bound, fingerprint, columns) or not self.parts(self.table):
            return
        wanted = {"fingerprint": fingerprint, "semantic": semantic, "columns": columns}
        raise UserError(binding.refusal(self.storage, self.table, bound, wanted))

    def binding(self) -> dict[str, Any] | None:
        """What the table is bound to: fingerprint, semantic, columns, bound_at; None where it is new."""
        return binding.read_binding(self.storage, self.table)

    def committed(self, fingerprint: str) -> KeySet:
        """The (video_id, version) of every committed row of this fingerprint; 16 bytes each."""

        def digests(entry: StoredFile) -> bytes:
            tables = self.iter_part(self.table, entry, ("video_id", "version", "fingerprint"))
            return b"".join(_digests_of_job(table, fingerprint) for table in tables)

        def read() -> KeySet:
            raw = bytearray()
            for some in map_parts(digests, self.parts(self.table)):
                raw += some
            return KeySet(raw)

        return again_if_merged(read)

    def failures_of(self, fingerprint: str, committed: KeySet | None = None) -> FailedSoFar:
        """What earlier runs recorded in failures/ for this fingerprint and table.

        ``committed``: what ``committed`` returned, which takes a while; read again where it is not given.
        """

        def attempts(entry: StoredFile) -> list[Attempts]:
            tables = self.iter_part(FAILURES, entry, ATTEMPT_COLUMNS)
            return [attempts_of(table, fingerprint, self.table) for table in tables]

        def read() -> FailedSoFar:
            found = map_parts(attempts, self.parts(FAILURES))
            return FailedSoFar(some for part in found for some in part)

        failed = again_if_merged(read)
        if failed.num_final:
            failed.settle(self.committed(fingerprint) if committed is None else committed)
        return failed

    def write_rows(self, rows: Sequence[VideoRow]) -> str | None:
        """Commit rows as one new part; its path, None for no rows.

        After an error whether the part exists is unknown: stop the run rather than write the rows again; the
        next run reads back what is there.
        """
        if not rows:
            return None
        at_us = self._clock.tick()
        return self._commit(self.table, at_us, encode_rows(rows, self._schema, at_us))

    def write_failures(self, failures: Sequence[Failure]) -> str | None:
        """Commit failed attempts as one new part; as ``write_rows``."""
        if not failures:
            return None
        at_us = self._clock.tick()
        return self._commit(FAILURES, at_us, encode_failures(failures, at_us))

    def write_run(self, run_id: str, report: Mapping[str, Any]) -> str:
        """Write, or replace, the report of a run; JSON values, with a ``counts`` mapping.

        Its ``sequence`` is later than all commits and reports before it, on whatever clock.
        """
        self.check_fence()  # nor begin a folder anew where the output was taken over, or deleted
        record = json_bytes({**report, "sequence": self._clock.tick(after=self._last_report())})
        with self._placing(RUNS):
            return self.storage.write(f"{RUNS}/{run_id}.json", record)

    def shard_cache(self) -> ShardCache:
        """Where indexes of tar shards are kept."""
        return ShardCache(self.storage)

    def iter_rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Committed rows as plain mappings, part by part in the order they were written."""
        return self._iter(self.table, columns)

    def iter_failures(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Recorded failures as plain mappings, in the order they were written."""
        return self._iter(FAILURES, columns)

    def _iter(self, folder: str, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        for entry in self.parts(folder):
            for table in self.iter_part(folder, entry, columns):
                for batch in table.to_batches(_BATCH_ROWS):
                    yield from batch.to_pylist()

    def iter_part(
        self,
        folder: str,
        entry: StoredFile,
        columns: Sequence[str] | None = None,
        *,
        whole: bool = False,
        made: Made | None = None,
    ) -> Iterator[pa.Table]:
        """The wanted columns of one part, row group by row group; also of one merged since it was listed.

        whole, made: as for ``parts.iter_part``.
        Raises PartGoneError where it is gone for good: list again. See ``again_if_merged``.
        """
        try:
            yield from iter_part(self.storage, folder, entry, columns, whole=whole, made=made)
        except PartGoneError:
            retired = find_retired(self.storage, folder, entry)
            if retired is None:
                raise
            yield from iter_part(self.storage, retired, entry, columns, whole=whole, made=made)

    def parts(self, folder: str) -> list[StoredFile]:
        """The committed parts of the table or of the failures that count, in the order of their commits."""
        for _ in range(_TRIES):
            entries = [entry for entry in self.storage.files(folder) if is_part(entry.name)]
            merges = read_merges(self.storage)  # after the listing: a record comes before its part
            if not is_torn(folder, [entry.name for entry in entries], merges):
                break
            time.sleep(_PAUSE_SECONDS)
        return drop_replaced(folder, entries, merges)

    def tables(self) -> tuple[str, ...]:
        """Names of the tables in this output, by name: folders with a part, and bound ones without."""
        bound = {entry.name.removesuffix(".json") for entry in self.storage.files(TABLES)}
        folders = {
            name for name in self.storage.folders() if name != FAILURES and not name.startswith(("_", "."))
        }
        return tuple(sorted(bound | {name for name in folders if self.parts(name)}))

    def clean(self) -> int:
        """Remove what killed writers left half written, and merged parts whose time has come.

        Call it while holding the lock. Returns how many files.
        """
        folders = (self.table, FAILURES, RUNS, TABLES, SHARDS, COMPACT)
        leftovers = [name for folder in folders for name in self.storage.leftovers(folder)]
        for name in leftovers:
            self.storage.delete(name)
        ended = self.storage.abort_uploads((self.table, FAILURES))
        return len(leftovers) + ended + finish_merges(self.storage)

    def _last_commit(self) -> int:
        names = (entry.name for folder in (self.table, FAILURES) for entry in self.storage.files(folder))
        return max(map(stamp_of, names), default=0)

    def _last_report(self) -> int:
        """The sequence of the last report; one whose clock was ahead is among those written last, too."""
        entries = sorted(self.storage.files(RUNS), key=lambda entry: entry.written_at)[-_LAST_REPORTS:]
        found = [0]
        for entry in entries:
            with suppress(UserError):  # verify tells of it
                found.append(sequence_of(read_json(self.storage, f"{RUNS}/{entry.name}") or {}))
        return max(found)

    @contextmanager
    def _placing(self, folder: str) -> Iterator[None]:
        """What this machine says of a disk does not say which."""
        try:
            yield
        except OSError as error:
            if not self.storage.is_local or error.errno is None:
                raise
            raise OSError(
                error.errno,
                f"{error.strerror}, while writing to {self.storage.path(folder)!r}; what was committed is "
                "safe, and once that place takes files again the same command goes on",
            ) from error

    def _commit(self, folder: str, at_us: int, data: bytes) -> str:
        name, checked_at = f"{folder}/{part_name(at_us)}", 0.0

        def ready() -> None:
            nonlocal checked_at
            self.check_fence()
            checked_at = steady_seconds()

        with self._placing(folder):
            path = self.storage.write(name, data, ready)
        # Local: who took over has removed the temporary file, or reads this part back.
        if not self.storage.is_local and steady_seconds() - checked_at > _FENCE_SECONDS:
            self._withdraw_if_fenced(name)
        return path

    def check_fence(self) -> None:
        """Raise where this run has lost its right to write."""
        if self._fence is not None:
            self._fence()

    def _withdraw_if_fenced(self, name: str) -> None:
        try:
            self.check_fence()
        except Exception:
            self.storage.delete(name)
            raise

    def _refuse_foreign_rows(self, fingerprint: str) -> None:
        for entry in self.parts(self.table):
            for table in self.iter_part(self.table, entry, ["fingerprint"]):
                others = set(pc.unique(table["fingerprint"]).to_pylist()) - {fingerprint}
                if others:
                    raise UserError(
                        f"table {self.table!r} in {self.storage.uri!r} holds rows of fingerprint "
                        f"{min(others)}, this job has {fingerprint}; choose another output.table or "
                        f"output.uri"
                    )


def again_if_merged(work: Callable[[], T]) -> T:
    """The result of reading many parts, begun again where they were merged into others meanwhile."""
    for _ in range(_TRIES - 1):
        try:
            return work()
        except PartGoneError:
            time.sleep(_PAUSE_SECONDS)
    return work()


def _digests_of_job(table: pa.Table, fingerprint: str) -> bytes:
    mine = pc.equal(table["fingerprint"], fingerprint)
    rows = table if pc.all(mine).as_py() else table.filter(mine)
    return digests_of(rows["video_id"], rows["version"])
