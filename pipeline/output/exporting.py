"""``export``: a table as one Parquet file or as a DuckDB view, all rows or the latest of each video.

The latest is the one committed last: parts are in the order of commits, whatever the clocks of hosts said.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.output.commit_order import Commit
from pipeline.output.keyset import SortedDigests, digests_of
from pipeline.output.merge_records import read_merges, replaced
from pipeline.output.parts import WRITING, check_no_copies, map_parts, open_part, row_groups
from pipeline.output.schemas import video_schema
from pipeline.output.status import existing_store
from pipeline.output.store import FAILURES, OutputStore, again_if_merged
from pipeline.stores import Storage, StoredFile, sync_folder, telling, temporary_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ExportReport", "export", "view_sql"]


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` wrote: ``rows`` of the ``rows_read`` that the table has."""

    target: str
    rows: int
    rows_read: int


@dataclass(frozen=True)
class _Facts:
    """What the first pass learns of one part; digests: 16 bytes a row."""

    rows: int
    schema: pa.Schema
    digests: bytes
    commits: tuple[Commit, ...]


def export(uri: str, table: str, target: str, latest: bool = False) -> ExportReport:
    """Write a table as one Parquet file, local or on any fsspec address; it appears whole or not at all.

    latest: of each video_id only the row committed last.
    Memory: one row group, and about 60 bytes a row with ``latest``. Raises UserError for a target that lies
    where readers would take it for a part of the output, for a table without rows, and for a part that
    is damaged or there twice.
    """
    with telling(uri):
        store = existing_store(uri, table)
    with telling(target):
        _refuse_inside(store, target)
    if not target.endswith((".parquet", ".pq")):
        raise UserError(f"{target!r} must end in .parquet: that is what is written")
    with telling(target):
        return again_if_merged(lambda: _export(store, target, latest))


def _export(store: OutputStore, target: str, latest: bool) -> ExportReport:
    entries = _entries(store)
    facts = list(map_parts(lambda entry: _facts(store, entry, latest), entries))
    named = ((entry.name, fact.commits) for entry, fact in zip(entries, facts, strict=True))
    check_no_copies(store.storage, store.table, named)
    rows_read = sum(fact.rows for fact in facts)
    schema = _common_schema(store, [fact.schema for fact in facts])
    mask = _last(facts) if latest else np.ones(rows_read, np.bool_)
    with _appearing(target) as path, pq.ParquetWriter(path, schema, **WRITING) as writer:
        for rows in row_groups(_wanted(store, entries, mask, schema)):
            writer.write_table(rows)
    return ExportReport(target, int(mask.sum()), rows_read)


def view_sql(uri: str, table: str, latest: bool = False) -> str:
    """The statement that makes a DuckDB view of a table; with ``latest`` of the last row of each video.

    A local table is given as a pattern, so the view goes on growing; elsewhere, and while parts of a merge
    wait for their removal, as the parts that count now: print it again after the next run or compact.
    """
    with telling(uri):
        return _view_sql(existing_store(uri, table), table, latest)


def _view_sql(store: OutputStore, table: str, latest: bool) -> str:
    entries = _entries(store)
    names = {entry.name for entry in store.storage.files(table)}
    is_clean = store.storage.is_local and not replaced(table, names, read_merges(store.storage)) & names
    wanted = ["part-*.parquet"] if is_clean else [_literal(entry.name) for entry in entries]
    folder = _literal(_address(store))
    files = ",\n    ".join(_quoted(f"{folder}/{name}") for name in wanted)
    return "\n".join([*_remarks(store, is_clean, len(entries)), _statement(table, files, latest)])


def _statement(table: str, files: str, latest: bool) -> str:
    name = f"{table}_latest" if latest else table
    head = 'create or replace view "{}" as'.format(name.replace('"', '""'))
    if not latest:
        return f"{head}\nselect * from read_parquet([\n    {files}\n], union_by_name = true);"
    return (
        f"{head}\nselect * exclude (filename, file_row_number) from read_parquet([\n    {files}\n"
        "], union_by_name = true, filename = true, file_row_number = true)\n"
        "qualify row_number() over (\n"
        "    partition by video_id order by filename desc, file_row_number desc\n) = 1;"
    )


def _remarks(store: OutputStore, is_clean: bool, parts: int) -> list[str]:
    remarks = []
    if not is_clean:
        remarks.append(f"-- the {parts} parts that count now; print it again after a run or compact")
    if not store.storage.is_local:
        remarks.append("-- credentials, e.g.: create secret (type s3, provider credential_chain);")
    return remarks


def _address(store: OutputStore) -> str:
    if store.storage.is_local:
        return os.path.abspath(store.storage.path(store.table))
    return re.sub("^s3a://", "s3://", store.storage.address(store.table))


def _literal(path: str) -> str:
    """A path that DuckDB takes for no pattern."""
    return re.sub(r"([\[*?])", r"[\1]", path)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _entries(store: OutputStore) -> list[StoredFile]:
    entries = store.parts(store.table)
    if not entries:
        raise UserError(f"table {store.table!r} in {store.storage.uri!r} has no rows yet; nothing to export")
    return entries


def _facts(store: OutputStore, entry: StoredFile, latest: bool) -> _Facts:
    with open_part(store.storage, store.table, entry, whole=store.storage.is_local) as part:
        rows, schema = part.metadata.num_rows, part.schema_arrow.remove_metadata()
        commits = part.commits_of(entry)
    tables = store.iter_part(store.table, entry, ("video_id",)) if latest else ()
    return _Facts(rows, schema, b"".join(digests_of(table["video_id"]) for table in tables), commits)


def _last(facts: Sequence[_Facts]) -> NDArray[np.bool_]:
    """For each row, in the order of the parts, whether it is the last of its video: bool (rows,)."""
    digests = SortedDigests(b"".join(fact.digests for fact in facts))
    mask: NDArray[np.bool_] = np.zeros(len(digests), np.bool_)
    mask[digests.order[np.append(digests.starts()[1:], len(digests)) - 1]] = True
    return mask


def _wanted(
    store: OutputStore, entries: Sequence[StoredFile], mask: NDArray[np.bool_], schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows that the mask picks, part by part, all of one schema."""
    first = 0
    for entry in entries:
        for table in store.iter_part(store.table, entry):
            picked = mask[first : first + len(table)]
            first += len(table)
            if picked.any():
                yield _fitted(table if picked.all() else table.filter(pa.array(picked)), schema)


def _common_schema(store: OutputStore, schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The columns of all parts; one that some parts lack may be empty. UserError where types differ."""
    found = list(dict.fromkeys(schemas))
    columns = (store.binding() or {}).get("columns") or {}
    order = dict.fromkeys(name for schema in (video_schema(columns), *found) for name in schema.names)
    fields = []
    for name in order:
        there = [schema.field(name) for schema in found if name in schema.names]
        if len({field.type for field in there}) > 1:
            kinds = ", ".join(sorted({str(field.type) for field in there}))
            raise UserError(
                f"column {name!r} has several types in {store.table}/: {kinds}; flashvid verify "
                f"{store.storage.uri} --table {store.table} says in which parts"
            )
        if there:
            fields.append(there[0] if len(there) == len(found) else there[0].with_nullable(True))
    return pa.schema(fields)


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[field.name] if field.name in table.schema.names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _refuse_inside(store: OutputStore, target: str) -> None:
    parent, name = _split(target)
    if not name:
        raise UserError(f"{target!r} is a folder; name the file to write, e.g. {target}latest.parquet")
    for folder in (store.table, FAILURES):
        inside = _resolved(store.storage, folder)
        where = _resolved(Storage(parent), "")
        if where == inside or where.startswith(f"{inside}/"):
            raise UserError(
                f"{target!r} lies in {folder}/ of the output, where readers would count its rows again; "
                "choose a place outside"
            )


def _resolved(storage: Storage, folder: str) -> str:
    path = storage.path(folder).rstrip("/")
    return os.path.realpath(path) if storage.is_local else storage.address(folder).rstrip("/")


def _split(target: str) -> tuple[str, str]:
    """The address of the folder, and the name in it."""
    parent, slash, name = target.rpartition("/")
    return (parent or slash or os.curdir), name


@contextmanager
def _appearing(target: str) -> Iterator[str]:
    """A local path to write to; what was written is at the target when the ``with`` ends well."""
    parent, name = _split(target)
    storage = Storage(parent)
    if not storage.is_local:
        with tempfile.TemporaryDirectory() as scratch:
            yield os.path.join(scratch, name)
            storage.upload(name, os.path.join(scratch, name))
        return
    path = os.path.abspath(storage.path(name))
    if os.path.isdir(path):
        raise UserError(f"{target!r} is a folder; name the file to write")
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
        sync_folder(os.path.dirname(path))
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
