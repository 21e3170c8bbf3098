"""Rows of a Parquet, CSV or JSONL file, one after the other: never more than a small batch in memory."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.fields import shortened
from pipeline.corpus.parquet_cells import MAX_CELL_BYTES, read_cells
from pipeline.errors import UserError
from pipeline.stores import ask_store, local_path_of, open_store, without_query

__all__ = ["MANIFEST_SUFFIXES", "Row", "Wanted", "read_rows"]

_TEXT = (".csv", ".jsonl", ".ndjson")
MANIFEST_SUFFIXES = (".parquet", *(text + packed for text in _TEXT for packed in ("", ".gz", ".zst")))
MAX_COLUMNS = 10_000
MAX_LINE_BYTES = MAX_CELL_BYTES
MAX_FOOTER_BYTES = 32 * 2**20
_BUFFER_BYTES = 2**20
_LOOK_ROWS = 100  # JSONL names its columns row by row: so many are looked at for those asked for


class Row(NamedTuple):
    """One row: its number from 1, headers not counted; its values without nulls; why it cannot be meant."""

    number: int
    values: Mapping[str, Any]
    fault: str | None = None


class Wanted(NamedTuple):
    """Names of columns: those that must be there, each with the setting that names it, and those that may."""

    needed: Mapping[str, str]
    optional: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        return self.optional | self.needed.keys()


def read_rows(uri: str, wanted: Wanted) -> Iterator[Row]:
    """The wanted columns of every row. The format goes by the suffix.

    Raises UserError where the file cannot be read, lacks a column, or has a line, a field or a number of
    columns beyond all measure.
    """
    name = without_query(uri.lower())
    if not name.endswith(MANIFEST_SUFFIXES):
        raise UserError(f"{uri!r} is no manifest: its name must end in {', '.join(MANIFEST_SUFFIXES)}")
    kind = name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[-1]
    try:
        with _opened(uri, is_random=kind == "parquet") as file:
            if kind == "parquet":
                yield from _parquet_rows(file, uri, wanted)
                return
            source = _unpacked(file, name)  # named, because it closes the file when it goes
            yield from (_csv_rows if kind == "csv" else _json_rows)(_lines(source, uri), uri, wanted)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"manifest {uri!r}: there is nothing there") from None
    except Exception as error:  # every store and every format has errors of its own
        raise UserError(f"manifest {uri!r} cannot be read: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _opened(uri: str, is_random: bool) -> Iterator[IO[bytes]]:
    path = local_path_of(uri)
    if path is not None:
        with open(path, "rb") as file:
            begun = os.fstat(file.fileno())
            yield file
            _check_same((begun.st_size, begun.st_mtime_ns), os.fstat(file.fileno()), uri)
        return
    store, place = open_store(uri)
    cache = "none" if is_random else "readahead"  # pyarrow asks for ranges that are large enough
    with ask_store(store.open, place, "rb", block_size=_BUFFER_BYTES, cache_type=cache) as file:
        yield file if is_random else io.BufferedReader(file, _BUFFER_BYTES)


def _check_same(begun: tuple[int, int], now: os.stat_result, uri: str) -> None:
    """Rows that come and go while they are read would be missed, or read in halves."""
    if begun != (now.st_size, now.st_mtime_ns):
        raise UserError(
            f"manifest {uri!r} changed while it was read: run again; put a new list in its place by renaming"
        )


def _unpacked(file: IO[bytes], name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if name.endswith(".zst"):
        return io.BufferedReader(pa.CompressedInputStream(file, "zstd"), _BUFFER_BYTES)
    return file


def _check_columns(names: Sequence[str], uri: str, wanted: Wanted, where: str = "") -> None:
    if len(names) > MAX_COLUMNS:
        raise UserError(
            f"manifest {uri!r} has {len(names)} columns, more than {MAX_COLUMNS}: keep those that are used"
        )
    for name, setting in wanted.needed.items():
        if name not in names:
            has = ", ".join(map(shortened, names[:20])) + (", …" if len(names) > 20 else "")
            raise UserError(
                f"manifest {uri!r} has no column {name!r}{where}; it has {has or 'none'}; "
                f"add it or name another in {setting}"
            )
    twice = [name for name in wanted.all if list(names).count(name) > 1]
    if twice:
        raise UserError(f"manifest {uri!r} has the column {twice[0]!r} twice: rename one")


def _parquet_rows(file: IO[bytes], uri: str, wanted: Wanted) -> Iterator[Row]:
    _check_footer(file, uri)
    checked = {"page_checksum_verification": True}  # pages that have no checksum are read as they are
    table = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False, **checked)
    names = table.schema_arrow.names
    _check_columns(names, uri, wanted)
    columns = [name for name in names if name in wanted.all]
    for number, (values, large) in enumerate(read_cells(file, table, columns), start=1):
        rule = f"the cell in {large!r} has more than {MAX_CELL_BYTES} bytes; shorten it, or leave it empty"
        yield Row(number, values, rule if large else None)


def _check_footer(file: IO[bytes], uri: str) -> None:
    """A footer describes every column of every row group, and is read whole: refuse to if it is too large."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    if size < 12 or tail[4:] != b"PAR1":
        raise UserError(f"manifest {uri!r} is no Parquet file, or is cut short")
    footer = int.from_bytes(tail[:4], "little")
    if footer > MAX_FOOTER_BYTES:
        raise UserError(
            f"manifest {uri!r} has {footer} bytes of metadata, more than {MAX_FOOTER_BYTES}: keep the "
            "columns that are used, or write larger row groups"
        )
    file.seek(0)


def _lines(file: IO[bytes], uri: str) -> Iterator[bytes]:
    for number in itertools.count(1):
        line = file.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise UserError(
                f"manifest {uri!r}: line {number} is longer than {MAX_LINE_BYTES} bytes; is it a manifest, "
                "with one row per line and only the columns that are used?"
            )
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"manifest {uri!r} is UTF-16: save it as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return
        yield line


def _csv_rows(lines: Iterator[bytes], uri: str, wanted: Wanted) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)  # of its own accord it refuses a field of 128 kB
    rows = csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), strict=True)
    number = 0
    try:
        header = next(rows, [])
        _check_blanks(header, uri, wanted)
        _check_columns(header, uri, wanted)
        places = [(place, name) for place, name in enumerate(header) if name in wanted.all]
        for number, fields in enumerate((row for row in rows if row), start=1):
            if len(fields) != len(header):
                rule = "a value with a comma or a line break must stand in quotes"
                yield Row(number, {}, f"{len(fields)} fields where the header has {len(header)}: {rule}")
            else:
                yield Row(number, {name: fields[place] for place, name in places if fields[place]})
    except csv.Error as error:
        raise UserError(
            f"manifest {uri!r}: no end to the row after row {number}, or to a field in it: {error}; a quote "
            "within quotes is written twice, lines end in LF or CR LF"
        ) from None


def _check_blanks(header: Sequence[str], uri: str, wanted: Wanted) -> None:
    """A column that would be passed over for the blank in its name."""
    for name in header:
        if name.strip() in wanted.all and name.strip() not in header:
            raise UserError(f"manifest {uri!r} has a column {name!r}: write {name.strip()!r}, without blanks")


def _json_rows(lines: Iterator[bytes], uri: str, wanted: Wanted) -> Iterator[Row]:
    filled = (line for line in lines if line.strip())
    rows = (_json_row(number, line, wanted) for number, line in enumerate(filled, start=1))
    first = list(itertools.islice(rows, _LOOK_ROWS))
    if first:
        names = list(dict.fromkeys(name for _, found in first for name in found))
        where = f" in its first {len(first)} rows"
        fault = next((row.fault for row, found in first if row.fault and not names), None)
        _check_columns(names, uri, wanted, f"{where} ({fault})" if fault else where)
    yield from (row for row, _ in itertools.chain(first, rows))


def _json_row(number: int, line: bytes, wanted: Wanted) -> tuple[Row, Sequence[str]]:
    """The row and the names of what it has."""
    try:
        found = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        return Row(number, {}, f"{shortened(line)} is not JSON: {error}"), ()
    if not isinstance(found, dict):
        return Row(number, {}, f"{shortened(line)} is no JSON object"), ()
    values = {name: value for name, value in found.items() if value is not None and name in wanted.all}
    return Row(number, values), tuple(itertools.islice(found, MAX_COLUMNS + 1))
