"""Which parts count while ``compact`` replaces small ones by a large one: the record of each merge.

``<output>/_compact/<id>.json`` names the new part and those it replaces. It is written before the new part
and removed last, so whatever a killed ``compact`` left, a reader that knows the record counts every row once:
the replaced parts count until the new one is there, and never after. On local filesystems whole folders are
exchanged instead, where the kernel can; ``<output>/_compact/<id>/<folder>`` then is the folder as it was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from pipeline.errors import UserError
from pipeline.output.parts import open_part
from pipeline.stores import Storage, StoredFile

__all__ = [
    "COMPACT",
    "Merge",
    "drop_replaced",
    "find_retired",
    "finish_merges",
    "is_torn",
    "read_merges",
    "replaced",
    "retired_due_at",
    "retired_folders",
    "write_merge",
]

COMPACT = "_compact"
_FORGET_SECONDS = 3600.0  # a record outlives what it replaced by this, for readers that listed before


@dataclass(frozen=True)
class Merge:
    """One merge: ``part`` has all rows of ``replaces``; base names in ``folder``. Times are epoch seconds.

    ``rows``: how many; ``due_at``: when the replaced parts may be deleted.
    """

    merge_id: str
    folder: str
    part: str
    replaces: tuple[str, ...]
    rows: int
    written_at: float
    due_at: float

    @property
    def name(self) -> str:
        """Where its record is."""
        return f"{COMPACT}/{self.merge_id}.json"


def write_merge(storage: Storage, merge: Merge, ready: Callable[[], None] = lambda: None) -> None:
    """Announce a merge; its part must not be there yet. ``ready``: as for Storage.write."""
    storage.write(merge.name, json.dumps(asdict(merge), indent=1).encode(), ready)


def read_merges(storage: Storage) -> list[Merge]:
    """The merges on record, oldest first. Raises UserError for a record that cannot be read."""
    entries = [entry for entry in storage.files(COMPACT) if entry.name.endswith(".json")]
    found = []
    for entry in entries:
        data = storage.read(f"{COMPACT}/{entry.name}")
        if data is not None:  # else it has just been finished
            found.append(_parsed(storage, entry.name, data))
    return sorted(found, key=lambda merge: merge.written_at)


def _parsed(storage: Storage, name: str, data: bytes) -> Merge:
    try:
        values = json.loads(data)
        return Merge(**{**values, "replaces": tuple(values["replaces"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{storage.path(f'{COMPACT}/{name}')!r} is not the record of a merge ({error}); restore it: "
            "without it rows may be counted twice"
        ) from None


def drop_replaced(folder: str, entries: Sequence[StoredFile], merges: Iterable[Merge]) -> list[StoredFile]:
    """The entries without the parts whose rows another one of them has."""
    gone = replaced(folder, [entry.name for entry in entries], merges)
    return [entry for entry in entries if entry.name not in gone]


def replaced(folder: str, names: Iterable[str], merges: Iterable[Merge]) -> set[str]:
    """Parts that no longer count, given the names in the folder: those of merges whose part is there, or is
    itself replaced by one that is."""
    waiting = [merge for merge in merges if merge.folder == folder]
    there, gone = set(names), set[str]()
    while True:
        done = [merge for merge in waiting if merge.part in there or merge.part in gone]
        if not done:
            return gone
        waiting = [merge for merge in waiting if merge not in done]
        gone.update(name for merge in done for name in merge.replaces)


def is_torn(folder: str, names: Iterable[str], merges: Iterable[Merge]) -> bool:
    """Whether a listing lacks both a new part and some of those it replaces: it was read while they changed.

    Object stores list page by page. List again.
    """
    there = set(names)
    gone = replaced(folder, there, merges)
    waiting = [merge for merge in merges if merge.folder == folder and merge.part not in there | gone]
    known = there | gone | {merge.part for merge in waiting}
    return any(name not in known for merge in waiting for name in merge.replaces)


def finish_merges(storage: Storage, now: float | None = None) -> int:
    """Delete replaced parts that are due, then old records and retired folders; the output must be held.

    Returns how many parts and folders were removed.
    """
    now = time.time() if now is None else now
    removed = 0
    merges = read_merges(storage)
    for folder in sorted({merge.folder for merge in merges}):
        names = {entry.name for entry in storage.files(folder)}
        gone = replaced(folder, names, merges)
        for merge in [merge for merge in merges if merge.folder == folder]:
            if merge.due_at > now:
                continue
            due = [name for name in merge.replaces if name in gone and name in names]
            if due and merge.part in names:
                _check_whole(storage, merge)
            for name in due:
                storage.delete(f"{folder}/{name}")
            names -= set(due)
            removed += len(due)
            if merge.due_at + _FORGET_SECONDS <= now and not _is_needed(merge, merges):
                storage.delete(merge.name)
                merges.remove(merge)
    for name in retired_folders(storage):
        if retired_due_at(name) <= now:
            storage.delete_folder(f"{COMPACT}/{name}")
            removed += 1
    return removed


def _is_needed(merge: Merge, merges: Iterable[Merge]) -> bool:
    """Whether another merge counts only because this one replaced its part."""
    return any(other.part in merge.replaces for other in merges if other.folder == merge.folder)


def _check_whole(storage: Storage, merge: Merge) -> None:
    """Look into the new part before what it replaces is deleted."""
    (entry,) = (entry for entry in storage.files(merge.folder) if entry.name == merge.part)
    with open_part(storage, merge.folder, entry, whole=True) as part:
        if part.metadata.num_rows != merge.rows:
            path, rows = storage.path(f"{merge.folder}/{merge.part}"), part.metadata.num_rows
            raise UserError(
                f"{path!r} has {rows} rows instead of {merge.rows}: nothing was deleted; move it out of the "
                "folder, the parts that it replaces are still there"
            )


def retired_folders(storage: Storage) -> list[str]:
    """Names below ``_compact/`` of folders as they were before a merge."""
    return storage.folders(COMPACT) if storage.is_local else []


def find_retired(storage: Storage, folder: str, entry: StoredFile) -> str | None:
    """The retired folder that still holds a part that was merged since it was listed."""
    for name in retired_folders(storage):
        retired = f"{COMPACT}/{name}/{folder}"
        if os.path.isfile(storage.path(f"{retired}/{entry.name}")):
            return retired
    return None


def retired_due_at(name: str) -> float:
    """When a retired folder may be removed, from its name: ``<id>-due-<epoch seconds>``; at once if none.

    One without is of a compact that was killed before the folders had swapped names.
    """
    _, mark, due = name.rpartition("-due-")
    return float(due) if mark and due.isdecimal() else 0.0
