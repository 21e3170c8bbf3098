"""Rows of a Parquet file, a bounded piece at a time: 13 kB of it may hold a text of 400 MB, or many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["MAX_CELL_BYTES", "read_cells"]

MAX_CELL_BYTES = 4 * 2**20
_BATCH_ROWS = 1024
_BATCH_BYTES = 256 * 2**20
_PAGE_HEADER_BYTES = 16  # of its beginning: kind and size


def read_cells(
    file: IO[bytes], table: pq.ParquetFile, columns: Sequence[str]
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The values of every row, nulls left out; and the name of a cell above 4 MiB, which is left out too.

    ``table`` reads ``file``. What the footer tells of such a cell is not even unpacked where it is a row
    group's only one; else no more rows are unpacked at a time than make up some 256 MB at the most.
    """
    for number in range(table.num_row_groups):
        group = _Group(file, table.metadata.row_group(number), columns)
        left = [name for name in columns if name not in group.unread]
        first = next(iter(group.unread), None)
        if not left:
            yield {}, first
            continue
        for batch in table.iter_batches(
            group.batch_rows, row_groups=[number], columns=left, use_threads=False
        ):
            for values, large in _rows(batch):
                yield values, first or large


class _Group:
    """What the footer and the dictionaries tell of a row group: cells not to read, rows to read at once."""

    def __init__(self, file: IO[bytes], group: Any, columns: Sequence[str]) -> None:
        sizes = dict.fromkeys(columns, 0)
        largest = 1
        for place in range(group.num_columns):
            chunk = group.column(place)
            name = _name_of(chunk.path_in_schema, columns)
            if name is not None:
                sizes[name] += chunk.total_uncompressed_size
                largest = max(largest, _dictionary_bytes(file, chunk))
        self.unread = [name for name, size in sizes.items() if group.num_rows == 1 and size > MAX_CELL_BYTES]
        per_row = max(largest, sum(sizes.values()) // max(1, group.num_rows))
        self.batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // per_row))


def _name_of(path: str, columns: Sequence[str]) -> str | None:
    """The column that a leaf belongs to: ``questions.list.element`` to ``questions``; names may have dots."""
    return next((name for name in columns if path == name or path.startswith(f"{name}.")), None)


def _dictionary_bytes(file: IO[bytes], chunk: Any) -> int:
    """How large a chunk's dictionary is unpacked: each of its rows may be all of that.

    parquet.thrift: a page begins with two numbers, kind and size, as fields 1 and 2 (0x15) in zigzag varints.
    """
    if not chunk.has_dictionary_page or chunk.dictionary_page_offset is None:
        return 0
    file.seek(chunk.dictionary_page_offset)
    head = file.read(_PAGE_HEADER_BYTES)
    if head[:1] != b"\x15" or head[2:3] != b"\x15":
        return int(chunk.total_uncompressed_size)
    size = shift = 0
    for byte in head[3:]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return size >> 1


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Row by row where one cell may be too large, else all at once."""
    if batch.nbytes <= MAX_CELL_BYTES:
        columns = [_plain(column) for column in batch.columns]
        names = batch.schema.names
        for row in zip(*columns, strict=True):
            yield _filled(zip(names, row, strict=True)), None
        return
    for place in range(batch.num_rows):
        cells = {name: batch.column(name).slice(place, 1) for name in batch.schema.names}
        large = [name for name, cell in cells.items() if _num_bytes(cell) > MAX_CELL_BYTES]
        values = {name: _plain(cell)[0] for name, cell in cells.items() if name not in large}
        yield _filled(values.items()), next(iter(large), None)


def _filled(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in values if value is not None}


def _num_bytes(cell: pa.Array) -> int:
    if pa.types.is_dictionary(cell.type):  # else it has the bytes of all that the column may say
        cell = cell.dictionary_decode()
    return int(cell.nbytes)


def _plain(column: pa.Array) -> list[Any]:
    """Python values. Times in microseconds, with a zone in UTC; text not UTF-8 is bytes, far-off times ints.

    Arrow would ask the machine for its list of zones, which may lack one; what it stores is UTC.
    """
    zone = None
    if pa.types.is_timestamp(column.type):
        zone, unit = column.type.tz, column.type.unit
        column = column.cast(pa.int64()).cast(pa.timestamp(unit))
        column = column.cast(pa.timestamp("us"), safe=False) if unit == "ns" else column
    try:
        values = list(column.to_pylist())
    except (ValueError, OverflowError):
        values = [_plain_scalar(scalar) for scalar in column]
    if zone is None:
        return values
    return [one.replace(tzinfo=timezone.utc) if isinstance(one, datetime) else one for one in values]


def _plain_scalar(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError) as error:
        if not isinstance(error, UnicodeDecodeError):
            return getattr(scalar, "value", None) or str(error)  # a moment beyond what Python has
        buffer = scalar.as_buffer() if hasattr(scalar, "as_buffer") else None
        return buffer.to_pybytes() if buffer is not None else b"\xff"
