"""Deciding which parts ``compact`` merges: small neighbours of one job and one schema."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.parts import METADATA, map_parts, open_part
from pipeline.output.store import OutputStore
from pipeline.stores import StoredFile

__all__ = ["Footer", "Group", "plan_groups", "read_footers"]


@dataclass(frozen=True)
class Group:
    """Parts that become one, in their order, and how many rows they have."""

    entries: tuple[StoredFile, ...]
    rows: int

    @property
    def part(self) -> str:
        """A fresh name that sorts where the first of them did."""
        stem, _, _ = self.entries[0].name.rpartition("-")
        return f"{stem}-{uuid.uuid4().hex[:12]}.parquet"


@dataclass(frozen=True)
class Footer:
    """What the footer of a part says. ``kind``: fingerprint and schema; only parts of one kind are merged."""

    entry: StoredFile
    rows: int
    kind: tuple[str, bytes] | None


def plan_groups(parts: Iterable[Footer], target_rows: int, min_parts: int) -> list[Group]:
    """Which parts become one: small neighbours among those of one kind, up to ``target_rows`` together."""
    closed: list[list[Footer]] = []
    open_groups: dict[tuple[str, bytes], list[Footer]] = {}
    rows: Counter[tuple[str, bytes]] = Counter()
    for part in parts:
        if part.kind is None:
            continue
        group = open_groups.setdefault(part.kind, [])
        is_small = 2 * part.rows < target_rows
        if group and (not is_small or rows[part.kind] + part.rows > target_rows):
            closed.append(group)
            group = open_groups[part.kind] = []
            rows[part.kind] = 0
        if is_small:
            group.append(part)
            rows[part.kind] += part.rows
    groups = [group for group in (*closed, *open_groups.values()) if len(group) >= max(2, min_parts)]
    return [Group(tuple(one.entry for one in group), sum(one.rows for one in group)) for group in groups]


def read_footers(store: OutputStore, folder: str, entries: Sequence[StoredFile]) -> Iterator[Footer]:
    """What the footers of some parts say, in their order."""

    def footer(entry: StoredFile) -> Footer:
        with open_part(store.storage, folder, entry) as part:
            schema = part.schema_arrow
            fingerprint = _fingerprint(part)
            bare = schema.remove_metadata().serialize().to_pybytes()
            return Footer(entry, part.metadata.num_rows, (fingerprint, bare) if fingerprint else None)

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
