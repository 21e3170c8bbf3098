"""Rows to and from Parquet, and the buffer that decides when a part is due."""

from __future__ import annotations

import io
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.output.keyset import valid_text
from pipeline.output.schemas import FAILURE_SCHEMA, VIDEO_SCHEMA
from pipeline.records import Answer, Failure, Segment, VideoRow
from pipeline.stores import Storage, StoredFile

__all__ = [
    "COMPRESSION",
    "METADATA",
    "PART_PATTERN",
    "PartBuffer",
    "PartGoneError",
    "encode_failures",
    "encode_rows",
    "encode_table",
    "iter_part",
    "map_parts",
    "open_part",
    "row_groups",
]

COMPRESSION = "zstd"
PART_PATTERN = r"part-[0-9TZ]+-[0-9a-f]+\.parquet"
_WHOLE_BYTES = 8 * 2**20  # below this a remote part is fetched in one request, whatever columns are wanted
METADATA = b"flashvid"  # key of what a part says about itself
_ROW_GROUP_ROWS = 10_000
_ROW_GROUP_BYTES = 64 * 2**20  # whichever comes first: what a merge holds in memory
_READERS = 8  # parts read at once; bounds memory at that many row groups

T = TypeVar("T")


class PartGoneError(UserError):
    """A part that was listed is not there any more: it has been merged into another one, or removed."""


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


def encode_rows(rows: Sequence[VideoRow], schema: pa.Schema) -> bytes:
    """Rows as one zstd Parquet file of exactly the given schema (``schemas.video_schema``).

    Text that is not valid Unicode (file names on Linux may hold any bytes) is written with replacement marks.
    Raises pyarrow.ArrowInvalid for a value the schema does not take.
    """
    records = [row.__dict__ for row in rows]
    extra = schema.names[len(VIDEO_SCHEMA) :]
    if extra:
        records = [{**dict.fromkeys(extra), **record, **dict(record["extra"])} for record in records]
    names = ["indexed_at_us" if name == "indexed_at" else name for name in schema.names]
    return encode_table(_table(records, names, schema))


def encode_failures(failures: Sequence[Failure]) -> bytes:
    """Failed attempts as one zstd Parquet file of FAILURE_SCHEMA; as ``encode_rows``."""
    records = [
        {
            **failure.__dict__,
            "stage": failure.stage.value,
            "reason": failure.reason.value,
            "details": list(failure.details.items()),
        }
        for failure in failures
    ]
    names = ["failed_at_us" if name == "failed_at" else name for name in FAILURE_SCHEMA.names]
    return encode_table(_table(records, names, FAILURE_SCHEMA))


def encode_table(table: pa.Table) -> bytes:
    """A table as one Parquet file; fingerprint and run of its first row go into the file's metadata."""
    described = table.replace_schema_metadata({METADATA: _described(table)})
    sink = pa.BufferOutputStream()
    pq.write_table(described, sink, compression=COMPRESSION)
    return bytes(sink.getvalue())


def _described(table: pa.Table) -> bytes:
    first = table.select([name for name in ("fingerprint", "run_id") if name in table.schema.names]).slice(
        0, 1
    )
    return json.dumps(dict(first.to_pylist()[0]) if len(first) else {}).encode()


def _table(records: list[dict[str, Any]], names: Sequence[str], schema: pa.Schema) -> pa.Table:
    try:
        columns = _columns_of(records, names, list(schema))
    except UnicodeEncodeError:
        columns = _columns_of([_valid_texts(record) for record in records], names, list(schema))
    return pa.Table.from_arrays(columns, schema=schema)


def _columns_of(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], fields: Sequence[pa.Field]
) -> list[pa.Array]:
    """One array for each field, built column by column: half the time that row by row takes."""
    if not records:
        return [pa.array([], field.type) for field in fields]
    columns = zip(*map(itemgetter(*names), records), strict=True)
    return [_column(values, field.type) for values, field in zip(columns, fields, strict=True)]


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
        return pa.array(values, kind)
    ends = itertools.accumulate(map(len, values), initial=0)
    items = [item if isinstance(item, dict) else item.__dict__ for items in values for item in items]
    fields = [kind.value_type.field(number) for number in range(kind.value_type.num_fields)]
    members = _columns_of(items, [field.name for field in fields], fields)
    for member, field in zip(members, fields, strict=True):
        if member.null_count and not field.nullable:
            raise pa.ArrowInvalid(f"{field.name} must not be missing")
    structs = pa.StructArray.from_arrays(members, fields=fields)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs, type=kind)


@contextmanager
def open_part(storage: Storage, folder: str, entry: StoredFile) -> Iterator[pq.ParquetFile]:
    """The part, read by range where that is cheaper than whole.

    Raises UserError that names an unreadable one (also while it is read), PartGoneError for one that is gone.
    """
    name = f"{folder}/{entry.name}"
    try:
        if storage.is_local or entry.num_bytes > _WHOLE_BYTES:
            with storage.open(name, entry.num_bytes) as file:
                yield pq.ParquetFile(file)
        else:
            yield pq.ParquetFile(io.BytesIO(storage.read_range(name, 0, entry.num_bytes)))
    except FileNotFoundError:
        raise PartGoneError(
            f"part {storage.path(name)!r} is not there any more: the parts were merged or removed while they "
            "were read; read again"
        ) from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the machine; pyarrow's own have none
            raise UserError(f"cannot read part {storage.path(name)!r}: {error}") from None
        raise _unreadable(storage.path(name), error) from None


def iter_part(
    storage: Storage, folder: str, entry: StoredFile, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The wanted columns of a part (None: all), one row group after the other.

    Raises UserError that names the part where it cannot be read or lacks a column.
    """
    with open_part(storage, folder, entry) as part:
        lacking = [name for name in columns or () if name not in part.schema_arrow.names]
        if lacking:
            path = storage.path(f"{folder}/{entry.name}")
            raise _unreadable(path, f"it has no column {lacking[0]!r}")
        for number in range(part.num_row_groups):
            yield part.read_row_group(number, columns=list(columns) if columns is not None else None)


def row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of about a row group: 10,000 rows or 64 MB, whichever comes first."""
    waiting: list[pa.Table] = []
    rows = num_bytes = 0
    for table in tables:
        waiting.append(table)
        rows, num_bytes = rows + len(table), num_bytes + table.nbytes
        if rows >= _ROW_GROUP_ROWS or num_bytes >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, rows, num_bytes = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def map_parts(work: Callable[[StoredFile], T], entries: Sequence[StoredFile]) -> Iterator[T]:
    """What ``work`` makes of each part, in their order; several are read at once, few ahead of the caller."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(_READERS) as readers:
        try:
            for entry in entries:
                waiting.append(readers.submit(work, entry))
                if len(waiting) > 2 * _READERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _unreadable(path: str, why: object) -> UserError:
    return UserError(
        f"cannot read part {path!r} ({why}); move it out of the folder, and its videos are done again"
    )


def _valid_texts(value: Any) -> Any:
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {key: _valid_texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_valid_texts(item) for item in value)
    if isinstance(value, Answer | Segment):
        return _valid_texts(value.__dict__)
    return value
