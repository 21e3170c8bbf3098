"""Deciding which parts ``compact`` merges: small neighbours of one job and one schema.

No row may pass one that it competes with, because the order of parts is the order of commits: see ``across``.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.commit_order import Commit
from pipeline.output.parts import METADATA, map_parts, open_part
from pipeline.output.store import OutputStore
from pipeline.stores import StoredFile

__all__ = ["Footer", "Group", "plan_groups", "read_footers"]


@dataclass(frozen=True)
class Group:
    """Parts that become one, in their order, how many rows they have, and when those were committed."""

    entries: tuple[StoredFile, ...]
    rows: int
    commits: tuple[Commit, ...] = ()

    @property
    def part(self) -> str:
        """A fresh name that sorts where the last of them did: what is committed next must come after it."""
        stem, _, _ = self.entries[-1].name.rpartition("-")
        return f"{stem}-{uuid.uuid4().hex[:12]}.parquet"


@dataclass(frozen=True)
class Footer:
    """What the footer of a part says. ``kind``: fingerprint and schema; only parts of one kind are merged."""

    entry: StoredFile
    rows: int
    kind: tuple[str, bytes] | None
    commits: tuple[Commit, ...] = ()


def plan_groups(
    parts: Iterable[Footer], target_rows: int, min_parts: int, *, across: bool = False
) -> list[Group]:
    """Which parts become one: small neighbours among those of one kind, up to ``target_rows`` together.

    across: whether what lies between neighbours may be of another job: rows of a table compete with each
    other, failures only with those of their own job. What is of no one job is never passed.
    """
    closed: list[list[Footer]] = []
    open_groups: dict[tuple[str, bytes], list[Footer]] = {}
    rows: Counter[tuple[str, bytes]] = Counter()
    for part in parts:
        passed = [kind for kind in open_groups if kind != part.kind and not (across and _apart(kind, part))]
        closed.extend(open_groups.pop(kind) for kind in passed)
        if part.kind is None:
            continue
        group = open_groups.setdefault(part.kind, [])
        is_small = 2 * part.rows < target_rows
        if group and (not is_small or rows[part.kind] + part.rows > target_rows):
            closed.append(group)
            group = open_groups[part.kind] = []
        if is_small:
            rows[part.kind] = part.rows + (rows[part.kind] if group else 0)
            group.append(part)
    groups = [group for group in (*closed, *open_groups.values()) if len(group) >= max(2, min_parts)]
    return [_group(group) for group in groups]


def _apart(kind: tuple[str, bytes], part: Footer) -> bool:
    """Whether a part is of another job than those of a kind."""
    return part.kind is not None and part.kind[0] != kind[0]


def _group(parts: Sequence[Footer]) -> Group:
    commits = tuple(commit for one in parts for commit in one.commits)
    return Group(tuple(one.entry for one in parts), sum(one.rows for one in parts), commits)


def read_footers(store: OutputStore, folder: str, entries: Sequence[StoredFile]) -> Iterator[Footer]:
    """What the footers of some parts say, in their order."""

    def footer(entry: StoredFile) -> Footer:
        with open_part(store.storage, folder, entry) as part:
            schema = part.schema_arrow
            fingerprint = _fingerprint(part)
            bare = schema.remove_metadata().serialize().to_pybytes()
            kind = (fingerprint, bare) if fingerprint else None
            return Footer(entry, part.metadata.num_rows, kind, part.commits_of(entry))

    return map_parts(footer, entries)


def _fingerprint(part: pq.ParquetFile) -> str | None:
    """The one fingerprint of a part's rows; None where there are several, or none."""
    said = (part.schema_arrow.metadata or {}).get(METADATA)
    if said is not None:
        return json.loads(said).get("fingerprint") or None
    if "fingerprint" not in part.schema_arrow.names:
        return None
    found = pc.unique(part.read(columns=["fingerprint"])["fingerprint"]).to_pylist()
    return found[0] if len(found) == 1 else None
