"""``compact``: many small parts become few large ones, and no reader ever sees a row twice or not at all.

How that holds while it runs, and when it is killed: merge_records.py. Rows keep their values and their order.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.output.commit_order import COMMITS, described
from pipeline.output.lock import hold
from pipeline.output.merge_plan import Group, plan_groups, read_footers
from pipeline.output.merge_records import (
    COMPACT,
    Merge,
    finish_merges,
    read_merges,
    replaced,
    retired_due_at,
    retired_folders,
    write_merge,
)
from pipeline.output.parts import METADATA, WRITING, check_no_copies, open_part, row_groups
from pipeline.output.seals import seal_file
from pipeline.output.status import existing_store
from pipeline.output.store import FAILURES, OutputStore
from pipeline.stores import exchange, stage, telling

__all__ = ["CompactReport", "FolderReport", "compact"]


@dataclass(frozen=True)
class FolderReport:
    """What became of one folder; bytes are those of the parts that count."""

    folder: str
    parts_before: int
    parts_after: int
    rows_merged: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class CompactReport:
    """What ``compact`` did. ``waiting``: replaced parts and folders kept for readers that still use them."""

    uri: str
    table: str
    folders: tuple[FolderReport, ...]
    removed: int
    waiting: int
    due_at: float | None

    def lines(self) -> list[str]:
        """Plain sentences for a console."""
        text = [_sentence(folder) for folder in self.folders]
        if self.removed:
            text.append(f"{self.removed} replaced parts or folders of earlier merges were removed.")
        if self.waiting and self.due_at is not None:
            due = datetime.fromtimestamp(self.due_at, timezone.utc).strftime("%H:%M:%S UTC")
            text.append(
                f"{self.waiting} replaced parts or folders are kept for readers that began before; the next "
                f"compact or run after {due} removes them."
            )
        return text


def compact(
    uri: str,
    table: str = "videos",
    *,
    target_rows: int = 100_000,
    min_parts: int = 2,
    keep_seconds: float = 600.0,
) -> CompactReport:
    """Merge parts of less than half of ``target_rows`` rows into parts of at most so many; also of failures/.

    min_parts: fewer small parts in a row are left as they are. keep_seconds: how long what was replaced is
    kept for readers that listed it before; the next compact or run then removes it.
    Memory: one row group of 64 MB or 10,000 rows, and the footers. Raises UserError where a run holds the
    output, where a part is damaged (it stays, and is not merged) or there twice, and where the disk is full.
    """
    with telling(uri):
        return _compact(uri, table, target_rows, min_parts, keep_seconds)


def _compact(uri: str, table: str, target_rows: int, min_parts: int, keep_seconds: float) -> CompactReport:
    existing_store(uri, table)  # refuses what is no output before it is locked
    with hold(uri, "compact") as lock:
        store = OutputStore(uri, table, fence=lock.check)
        removed = store.clean()
        due_at = time.time() + keep_seconds
        reports = [
            _compact_folder(store, folder, target_rows, min_parts, due_at) for folder in (table, FAILURES)
        ]
        if keep_seconds <= 0:
            finish_merges(store.storage, due_at)
        waiting, latest = _waiting(store)
    return CompactReport(uri, table, tuple(reports), removed, waiting, latest)


def _compact_folder(
    store: OutputStore, folder: str, target_rows: int, min_parts: int, due_at: float
) -> FolderReport:
    before = store.parts(folder)
    footers = list(read_footers(store, folder, before))
    check_no_copies(store.storage, folder, ((one.entry.name, one.commits) for one in footers))
    groups = plan_groups(footers, target_rows, min_parts, across=folder == FAILURES)
    if groups and not (store.storage.is_local and _exchange(store, folder, groups, due_at)):
        for group in groups:
            _replace(store, folder, group, due_at)
    after = store.parts(folder)
    return FolderReport(
        folder,
        len(before),
        len(after),
        sum(group.rows for group in groups),
        sum(entry.num_bytes for entry in before),
        sum(entry.num_bytes for entry in after),
    )


def _exchange(store: OutputStore, folder: str, groups: Sequence[Group], due_at: float) -> bool:
    """Local: the folder with merged parts takes the place of the folder in one step; False if it cannot.

    Not while there are records of merges in it (of a copy from object storage, say): parts that they replace
    would count again once the part that replaced them has gone without a record.
    """
    if any(merge.folder == folder for merge in read_merges(store.storage)):
        return False
    gone = {entry.name for group in groups for entry in group.entries}
    retired, is_done = f"{COMPACT}/{_fresh_id()}", False
    try:
        staged = stage(store.storage.path(folder), store.storage.path(f"{retired}/{folder}"), gone)
        if staged is not None:
            for group in groups:
                _merge(store, folder, group, os.path.join(staged.path, group.part))
            is_done = exchange(staged, store.check_fence)
    finally:
        if not is_done:  # also when the disk is full, which it would help to fill
            store.storage.delete_folder(retired)
    if is_done:
        os.rename(store.storage.path(retired), store.storage.path(f"{retired}-due-{int(due_at)}"))
    return is_done


def _replace(store: OutputStore, folder: str, group: Group, due_at: float) -> None:
    """Anywhere: the record of the merge, then the new part; what it replaces goes when it is due."""
    merges = [merge for merge in read_merges(store.storage) if merge.folder == folder]
    names = {entry.name for entry in store.storage.files(folder)}
    gone, mine = replaced(folder, names, merges), {entry.name for entry in group.entries}
    # A part that a killed compact had sent off may still arrive: it must not count beside this one.
    late = [merge.part for merge in merges if merge.part not in names | gone and mine & set(merge.replaces)]
    merge = Merge(
        _fresh_id(),
        folder,
        group.part,
        (*(entry.name for entry in group.entries), *late),
        group.rows,
        time.time(),
        due_at,
    )
    with tempfile.TemporaryDirectory(dir=_scratch(store, folder)) as scratch:
        path = os.path.join(scratch, merge.part)
        _merge(store, folder, group, path)
        write_merge(store.storage, merge, store.check_fence)
        store.storage.upload(f"{folder}/{merge.part}", path, store.check_fence)


def _scratch(store: OutputStore, folder: str) -> str | None:
    """Where a new part is put together: on the file system of its place, else where temporary files go."""
    if not store.storage.is_local:
        return None
    os.makedirs(store.storage.path(COMPACT), exist_ok=True)
    return store.storage.path(COMPACT)


def _merge(store: OutputStore, folder: str, group: Group, path: str) -> None:
    """All rows of the parts, one after the other, into one local file, on disk when this returns.

    Raises UserError for a part that is damaged, be it where no value is.
    """
    rows = 0
    with open_part(store.storage, folder, group.entries[0]) as first:
        schema = first.schema_arrow.with_metadata({**_metadata(first), COMMITS: described(group.commits)})
    tables = (table for entry in group.entries for table in store.iter_part(folder, entry, whole=True))
    with pq.ParquetWriter(path, schema, **WRITING) as writer:
        for table in row_groups(tables):
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            rows += len(table)
    if rows != group.rows:
        raise PipelineError(f"{rows} rows instead of {group.rows} came together; nothing was replaced")
    seal_file(path)


def _metadata(first: pq.ParquetFile) -> dict[bytes, bytes]:
    """What a merged part says about itself: as its first one, but not of one run."""
    said = json.loads((first.schema_arrow.metadata or {}).get(METADATA, b"{}"))
    said.pop("run_id", None)
    return {METADATA: json.dumps(said).encode()} if said else {}


def _waiting(store: OutputStore) -> tuple[int, float | None]:
    """How many replaced parts and retired folders are still there, and when the last of them is due."""
    there = {
        folder: {entry.name for entry in store.storage.files(folder)} for folder in (store.table, FAILURES)
    }
    merges = read_merges(store.storage)
    parts = [
        (merge.due_at, name)
        for merge in merges
        for name in merge.replaces
        if name in there.get(merge.folder, ())
    ]
    retired = [(retired_due_at(name), name) for name in retired_folders(store.storage)]
    waiting = {name: due_at for due_at, name in (*parts, *retired)}
    return len(waiting), max(waiting.values(), default=None)


def _sentence(folder: FolderReport) -> str:
    if not folder.rows_merged:
        return f"{folder.folder}: {folder.parts_before} parts, nothing to merge."
    return (
        f"{folder.folder}: {folder.parts_before} parts became {folder.parts_after}; {folder.rows_merged} "
        f"rows were merged, {folder.bytes_before / 1e6:.1f} MB became {folder.bytes_after / 1e6:.1f} MB."
    )


def _fresh_id() -> str:
    return f"{datetime.now(timezone.utc).strftime('%Y%m%dT%H%M%S%fZ')}-{uuid.uuid4().hex[:8]}"
