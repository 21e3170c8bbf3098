"""Rows to and from Parquet, and the buffer that decides when a part is due."""

from __future__ import annotations

import io
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from operator import itemgetter
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError, UserError
from pipeline.output.commit_order import (
    COMMITS,
    Commit,
    Made,
    commits_of,
    dated,
    described,
    stamp_of,
    stamp_text,
)
from pipeline.output.keyset import valid_text
from pipeline.output.schemas import FAILURE_SCHEMA, VIDEO_SCHEMA
from pipeline.output.seals import look_at_seal, seal_bytes
from pipeline.records import Answer, Failure, Segment, VideoRow
from pipeline.stores import Storage, StoredFile

__all__ = [
    "CHECKED",
    "METADATA",
    "WRITING",
    "Part",
    "PartBuffer",
    "PartGoneError",
    "check_no_copies",
    "encode_failures",
    "encode_rows",
    "encode_table",
    "find_damage",
    "iter_part",
    "map_parts",
    "open_part",
    "row_groups",
    "tables_of",
]

WRITING: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
CHECKED: dict[str, Any] = {"page_checksum_verification": True}  # pages read as they are where they have none
_WHOLE_BYTES = 8 * 2**20  # below this a remote part is fetched in one request, whatever columns are wanted
METADATA = b"flashvid"  # key of what a part says about itself
_ROW_GROUP_ROWS = 10_000
_ROW_GROUP_BYTES = 64 * 2**20  # whichever comes first: what a merge holds in memory
_CHANGED = {
    "footer": "its footer is not what was written",
    "body": "a header of a page, or what lies between pages, is not what was written",
}
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


def encode_rows(rows: Sequence[VideoRow], schema: pa.Schema, at_us: int | None = None) -> bytes:
    """Rows as one zstd Parquet file of exactly the given schema (``schemas.video_schema``).

    ``at_us``: when they are committed, microseconds since the epoch; None: the part does not say.
    Text that is not valid Unicode (file names on Linux may hold any bytes) is written with replacement marks.
    Raises pyarrow.ArrowInvalid for a value the schema does not take.
    """
    records = [row.__dict__ for row in rows]
    extra = schema.names[len(VIDEO_SCHEMA) :]
    if extra:
        records = [{**dict.fromkeys(extra), **record, **dict(record["extra"])} for record in records]
    names = ["indexed_at_us" if name == "indexed_at" else name for name in schema.names]
    return encode_table(_table(records, names, schema), at_us)


def encode_failures(failures: Sequence[Failure], at_us: int | None = None) -> bytes:
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
    return encode_table(_table(records, names, FAILURE_SCHEMA), at_us)


def encode_table(table: pa.Table, at_us: int | None = None) -> bytes:
    """A table as one Parquet file with checksums and seal; ``at_us`` as for ``encode_rows``.

    Fingerprint and run of its first row go into the file's metadata.
    """
    metadata = {METADATA: _origin(table)}
    if at_us is not None:
        metadata[COMMITS] = described([Commit(at_us, len(table))])
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, **WRITING)
    return seal_bytes(sink.getvalue().to_pybytes())


def _origin(table: pa.Table) -> bytes:
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


class Part(pq.ParquetFile):  # type: ignore[misc]
    """A part that is open. ``is_sealed``: its bytes can be told from others: see seals.py."""

    is_sealed = False

    def commits_of(self, entry: StoredFile) -> tuple[Commit, ...]:
        """The commits that its rows are of, in their order."""
        metadata: Any = self.metadata  # of the file: its schema takes longer to make
        return commits_of(metadata.metadata, entry.name, metadata.num_rows)


@contextmanager
def open_part(storage: Storage, folder: str, entry: StoredFile, *, whole: bool = False) -> Iterator[Part]:
    """The part, read by range where that is cheaper than whole; what is read of it is held to its checksums.

    whole: look at every byte first, not only at the footer.
    Raises UserError that names an unreadable or damaged one (also while it is read) and where the damage is,
    PartGoneError for one that is gone.
    """
    name = f"{folder}/{entry.name}"
    try:
        with _opened(storage, name, entry) as file:
            seal = look_at_seal(file, entry.num_bytes, whole or isinstance(file, io.BytesIO))
            if seal not in ("sound", "none"):
                raise pa.ArrowInvalid(_CHANGED[seal])
            part = Part(file, **CHECKED)
            part.is_sealed = seal == "sound"
            if (said := part.commits_of(entry)) and said[-1].at_us != stamp_of(entry.name):
                raise pa.ArrowInvalid(_told_renamed(said[-1].at_us))
            yield part
    except FileNotFoundError:
        raise PartGoneError(
            f"part {storage.path(name)!r} is not there any more: the parts were merged or removed while they "
            "were read; read again"
        ) from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the machine; pyarrow's own have none
            raise UserError(f"cannot read part {storage.path(name)!r}: {error}") from None
        where = None
        with suppress(OSError, PipelineError):
            where = find_damage(storage, folder, entry)
        raise _unreadable(storage.path(name), where or error) from None


@contextmanager
def _opened(storage: Storage, name: str, entry: StoredFile) -> Iterator[Any]:
    if storage.is_local or entry.num_bytes > _WHOLE_BYTES:
        with storage.open(name, entry.num_bytes) as file:
            yield file
    else:
        yield io.BytesIO(storage.read_range(name, 0, entry.num_bytes))


def find_damage(storage: Storage, folder: str, entry: StoredFile) -> str | None:
    """Which row group and column of a part cannot be read, or what else is damaged; None where nothing is.

    Reads all of it. Raises what reading the store raises.
    """
    with _opened(storage, f"{folder}/{entry.name}", entry) as file:
        seal = look_at_seal(file, entry.num_bytes, whole=True)
        if seal == "footer":
            return _CHANGED[seal]
        try:
            part = pq.ParquetFile(file, **CHECKED)
        except (pa.ArrowException, OSError):
            return None  # no Parquet at all: pyarrow's own words say more
        places = ((group, name) for group in range(part.num_row_groups) for name in part.schema_arrow.names)
        for group, column in places:
            try:
                part.read_row_group(group, columns=[column])
            except (pa.ArrowException, OSError) as error:
                return f"row group {group}, column {column!r} is damaged: {error}"
    return _CHANGED.get(seal)


def iter_part(
    storage: Storage,
    folder: str,
    entry: StoredFile,
    columns: Sequence[str] | None = None,
    *,
    whole: bool = False,
    made: Made | None = None,
) -> Iterator[pa.Table]:
    """The wanted columns of a part (None: all), one row group after the other.

    whole: as for ``open_part``. made: with a column more that says when each row was committed.
    Raises UserError that names the part where it cannot be read or lacks a column.
    """
    with open_part(storage, folder, entry, whole=whole) as part:
        there = part.schema_arrow.names
        lacking = [name for name in columns or () if name not in there]
        if lacking:
            path = storage.path(f"{folder}/{entry.name}")
            raise _unreadable(path, f"it has no column {lacking[0]!r}")
        yield from tables_of(part, entry, columns, made)


def tables_of(
    part: Part, entry: StoredFile, columns: Sequence[str] | None = None, made: Made | None = None
) -> Iterator[pa.Table]:
    """As ``iter_part``, of a part that is open and has the columns."""
    tables = _row_groups_of(part, columns)
    if made is None:
        return tables
    return dated(tables, part.commits_of(entry), made)


def _row_groups_of(part: pq.ParquetFile, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Each row group, with as many rows as the footer says."""
    left = part.metadata.num_rows
    for number in range(part.num_row_groups):
        table = part.read_row_group(number, columns=list(columns) if columns is not None else None)
        left -= len(table)
        if len(table) != part.metadata.row_group(number).num_rows or left < 0:
            raise pa.ArrowInvalid(f"row group {number} has {len(table)} rows: the footer says otherwise")
        yield table
    if left:
        raise pa.ArrowInvalid(f"{left} rows that the footer counts are in no row group")


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


def check_no_copies(storage: Storage, folder: str, parts: Iterable[tuple[str, Sequence[Commit]]]) -> None:
    """Refuse what would count rows twice for good: parts, by name, that are of the same commit.

    Raises UserError with the names of two.
    """
    names: dict[int, str] = {}
    for name, commits in parts:
        for commit in commits:
            if commit.is_sure and (other := names.setdefault(commit.at_us, name)) != name:
                raise UserError(
                    f"{other} and {name} in {storage.path(folder)!r} both hold the rows that were committed "
                    f"at {stamp_text(commit.at_us)}: one is a copy of the other, or was merged into it; move "
                    "the one that was put there by hand out of the folder"
                )


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


def _told_renamed(at_us: int) -> str:
    return (
        f"its last rows were committed at {stamp_text(at_us)}, and its name says otherwise: it was renamed, "
        "or lies in the place of another part, and what is latest goes by the names"
    )


def _unreadable(path: str, why: object) -> UserError:
    words = " ".join("".join(sign if sign.isprintable() else " " for sign in str(why)).split())
    return UserError(
        f"cannot read part {path!r} ({words}); move it out of the folder, and its videos are done again"
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
