"""Rows to and from Parquet bytes, and the buffer that decides when a part is due."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.storage import Entry, Storage

__all__ = ["PART_PATTERN", "PartBuffer", "encode_part", "open_part", "read_part"]

PART_PATTERN = r"part-[0-9TZ]+-[0-9a-f]+\.parquet"
_WHOLE_BYTES = 8 * 2**20  # below this a part is fetched in one request, whatever columns are wanted

T = TypeVar("T")


class PartBuffer(Generic[T]):
    """Rows that wait for their part: bounded in rows and in seconds.

    A crash loses at most what waits here, so ``part_seconds`` bounds the work lost. Times are seconds of one
    monotonic clock, handed in.
    """

    def __init__(self, part_rows: int, part_seconds: float) -> None:
        self._part_rows = part_rows
        self._part_seconds = part_seconds
        self._rows: list[T] = []
        self._oldest_at = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Iterable[T], now: float) -> None:
        """Append rows that became ready at ``now``."""
        if not self._rows:
            self._oldest_at = now
        self._rows.extend(rows)

    def due(self, now: float) -> bool:
        """Whether a part should be written: enough rows, or the oldest has waited long enough."""
        if not self._rows:
            return False
        return len(self._rows) >= self._part_rows or now - self._oldest_at >= self._part_seconds

    def take(self) -> list[T]:
        """Remove and return the oldest rows, at most one part of them; empty where none wait.

        What stays keeps the age of the oldest, so it can only be written too early.
        """
        taken, self._rows = self._rows[: self._part_rows], self._rows[self._part_rows :]
        return taken


def encode_part(records: Sequence[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Records as one zstd Parquet file of exactly the given schema.

    Text that is not valid Unicode (file names on Linux may hold any bytes) is written with replacement marks.
    Raises pyarrow.ArrowInvalid for a value the schema does not take.
    """
    try:
        table = pa.Table.from_pylist(list(records), schema=schema)
    except UnicodeEncodeError:
        table = pa.Table.from_pylist([_valid_text(record) for record in records], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def open_part(storage: Storage, folder: str, entry: Entry) -> pq.ParquetFile:
    """The part, held in memory; raises UserError that names an unreadable one."""
    data = storage.read(f"{folder}/{entry.name}")
    try:
        return pq.ParquetFile(io.BytesIO(data or b""))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(storage.path(f"{folder}/{entry.name}"), error) from None


def read_part(storage: Storage, folder: str, entry: Entry, columns: Sequence[str] | None = None) -> pa.Table:
    """The wanted columns of a part (None: all); large parts are read by range.

    Raises UserError that names the part where it cannot be read or lacks a column.
    """
    if entry.num_bytes <= _WHOLE_BYTES:
        return _columns(open_part(storage, folder, entry), storage.path(f"{folder}/{entry.name}"), columns)
    with storage.open(f"{folder}/{entry.name}") as file:
        return _columns(pq.ParquetFile(file), storage.path(f"{folder}/{entry.name}"), columns)


def _columns(part: pq.ParquetFile, path: str, columns: Sequence[str] | None) -> pa.Table:
    lacking = set(columns or ()) - set(part.schema_arrow.names)
    if lacking:
        raise _unreadable(path, f"it has no column {sorted(lacking)[0]!r}")
    try:
        return part.read(columns=list(columns) if columns is not None else None)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, why: object) -> UserError:
    return UserError(
        f"cannot read part {path!r} ({why}); move it out of the folder, and its videos are done again"
    )


def _valid_text(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, dict):
        return {key: _valid_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_valid_text(item) for item in value)
    return value
