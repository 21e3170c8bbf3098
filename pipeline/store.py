"""The Parquet side of a run: bind a table, commit parts, read back what is committed.

``<output>/<table>/part-*.parquet``     one row per indexed video
``<output>/failures/part-*.parquet``    one row per failed attempt
``<output>/_runs/<run_id>.json``        the report of a run that ended
``<output>/_tables/<table>.json``       the fingerprint the table is bound to, and what it stands for

A part that exists is committed; nothing else says so.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.parts import PART_PATTERN, PartBuffer, encode_part, read_part
from pipeline.records import Failure, VideoRow
from pipeline.schemas import FAILURE_SCHEMA, VIDEO_SCHEMA
from pipeline.storage import Entry, Storage

__all__ = ["FAILURES", "RUNS", "TABLES", "OutputStore", "PartBuffer", "is_part", "read_json"]

FAILURES = "failures"
RUNS = "_runs"
TABLES = "_tables"

_PART = re.compile(PART_PATTERN)
_READERS = 8  # parts read at once when resuming; bounds memory at eight parts
_FENCE_SECONDS = 20.0  # well under the 60 s after which a silent holder may be replaced

Key = tuple[str, str]


class OutputStore:
    """One table of one output, and the failures beside it. One writer at a time, held apart by OutputLock.

    fence: called before every commit; raises where this run has lost its right to write (OutputLock.check).
    A commit that took so long that the right may have lapsed meanwhile is checked again, and withdrawn.

    Local and object storage alike: every method uses only list, read, one PUT, and delete.
    """

    def __init__(self, uri: str, table: str = "videos", fence: Callable[[], None] | None = None) -> None:
        self.table = table
        self.storage = Storage(uri)
        self._fence = fence

    def bind(self, fingerprint: str, semantic: Mapping[str, Any]) -> None:
        """Tie the table to a fingerprint, or check that it is tied to this one.

        ``semantic``: what the fingerprint covers, as JSON values; shown as a difference in the refusal.
        Raises UserError where the table is bound to another fingerprint or holds rows of another one.
        """
        name = f"{TABLES}/{self.table}.json"
        binding = {"fingerprint": fingerprint, "semantic": dict(semantic), "bound_at": _now_text()}
        bound = self.binding()
        if bound is None:
            self._refuse_foreign_rows(fingerprint)
            if self.storage.create(name, _json_bytes(binding)):
                return
            bound = self.binding()
        if bound is not None and bound["fingerprint"] != fingerprint:
            raise UserError(self._refusal(bound.get("semantic") or {}, semantic))

    def binding(self) -> dict[str, Any] | None:
        """What the table is bound to: fingerprint, semantic, bound_at; None where it is new."""
        return read_json(self.storage, f"{TABLES}/{self.table}.json", "fingerprint")

    def committed_keys(self, fingerprint: str) -> set[Key]:
        """(video_id, version) of every committed row of this fingerprint."""
        return self._keys(self.table, pc.field("fingerprint") == fingerprint)

    def final_failures(self, fingerprint: str) -> set[Key]:
        """(video_id, version) of every final failure of this fingerprint that no row has made up for."""
        wanted = (pc.field("fingerprint") == fingerprint) & pc.field("is_final")
        failed = self._keys(FAILURES, wanted, ("is_final",))
        return failed - self.committed_keys(fingerprint) if failed else failed

    def write_rows(self, rows: Sequence[VideoRow]) -> str | None:
        """Commit rows as one new part; its path, None for no rows.

        After an error whether the part exists is unknown: stop the run rather than write the rows again; the
        next run reads back what is there.
        """
        return self._commit(self.table, [row.to_record() for row in rows], VIDEO_SCHEMA)

    def write_failures(self, failures: Sequence[Failure]) -> str | None:
        """Commit failed attempts as one new part; as ``write_rows``."""
        return self._commit(FAILURES, [failure.to_record() for failure in failures], FAILURE_SCHEMA)

    def write_run(self, run_id: str, report: Mapping[str, Any]) -> str:
        """Write, or replace, the report of a run; JSON values, with a ``counts`` mapping."""
        return self.storage.write(f"{RUNS}/{run_id}.json", _json_bytes(report))

    def iter_rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Committed rows as plain mappings, part by part in the order they were written."""
        for entry in self.parts(self.table):
            yield from read_part(self.storage, self.table, entry, columns).to_pylist()

    def iter_failures(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Recorded failures as plain mappings, in the order they were written."""
        for entry in self.parts(FAILURES):
            yield from read_part(self.storage, FAILURES, entry, columns).to_pylist()

    def parts(self, folder: str) -> list[Entry]:
        """The committed parts of the table or of the failures, oldest first."""
        return [entry for entry in self.storage.files(folder) if is_part(entry.name)]

    def tables(self) -> tuple[str, ...]:
        """Names of the tables in this output, by name: folders with a part, and bound ones without."""
        bound = {entry.name.removesuffix(".json") for entry in self.storage.files(TABLES)}
        folders = {
            name for name in self.storage.folders() if name != FAILURES and not name.startswith(("_", "."))
        }
        return tuple(sorted(bound | {name for name in folders if self.parts(name)}))

    def clean(self) -> int:
        """Remove what killed writers left half written; call it while holding the lock. Returns how many."""
        leftovers = [name for folder in self._folders() for name in self.storage.leftovers(folder)]
        for name in leftovers:
            self.storage.delete(name)
        return len(leftovers)

    def _folders(self) -> tuple[str, ...]:
        return (self.table, FAILURES, RUNS, TABLES)

    def _commit(self, folder: str, records: list[dict[str, Any]], schema: pa.Schema) -> str | None:
        if not records:
            return None
        data = encode_part(records, schema)
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
        name = f"{folder}/part-{stamp}-{uuid.uuid4().hex[:12]}.parquet"
        self._check_fence()
        checked_at = time.monotonic()
        path = self.storage.write(name, data)
        if time.monotonic() - checked_at > _FENCE_SECONDS:
            self._withdraw_if_fenced(name)
        return path

    def _check_fence(self) -> None:
        if self._fence is not None:
            self._fence()

    def _withdraw_if_fenced(self, name: str) -> None:
        try:
            self._check_fence()
        except Exception:
            self.storage.delete(name)
            raise

    def _keys(self, folder: str, wanted: pc.Expression, more: tuple[str, ...] = ()) -> set[Key]:
        columns = ("video_id", "version", "fingerprint", *more)

        def keys(entry: Entry) -> set[Key]:
            table = read_part(self.storage, folder, entry, columns).filter(wanted)
            return set(zip(table["video_id"].to_pylist(), table["version"].to_pylist(), strict=True))

        with ThreadPoolExecutor(_READERS) as readers:
            return set().union(*readers.map(keys, self.parts(folder)))

    def _refuse_foreign_rows(self, fingerprint: str) -> None:
        for row in self.iter_rows(["fingerprint"]):
            if row["fingerprint"] != fingerprint:
                raise UserError(
                    f"table {self.table!r} in {self.storage.uri!r} holds rows of fingerprint "
                    f"{row['fingerprint']}, this job has {fingerprint}; choose another output.table or "
                    f"output.uri"
                )

    def _refusal(self, bound: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
        before, after = dict(_flatten(bound)), dict(_flatten(wanted))
        names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        lines = [f"  {name}: {before.get(name)!r} there, {after.get(name)!r} here" for name in names]
        return "\n".join(
            [
                f"table {self.table!r} in {self.storage.uri!r} was made with other settings:",
                *(lines or ["  (same settings, but made by another version of this program)"]),
                f"Rows of both in one table could not be told apart. Choose another table, e.g. "
                f"output.table={self.table}_2, or another output.uri, or restore the settings.",
            ]
        )


def is_part(name: str) -> bool:
    """Whether a base name is that of a committed part."""
    return _PART.fullmatch(name) is not None


def read_json(storage: Storage, name: str, *required: str) -> dict[str, Any] | None:
    """A JSON mapping; None where there is no such file. Raises UserError for anything else."""
    data = storage.read(name)
    if data is None:
        return None
    try:
        value = json.loads(data)
        lacking = [key for key in required if key not in value]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{storage.path(name)!r} is not readable JSON ({error}); restore or delete it"
        ) from None
    if lacking or not isinstance(value, dict):
        raise UserError(f"{storage.path(name)!r} lacks {lacking or 'a mapping'}; restore or delete it")
    return value


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, default=str).encode()


def _now_text() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and value:
        for number, item in enumerate(value):
            yield from _flatten(item, f"{prefix}[{number}]")
    else:
        yield prefix, value
