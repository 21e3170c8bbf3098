"""What a table is tied to: a fingerprint, what it stands for, and the columns taken from a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from pipeline.errors import UserError
from pipeline.stores import Storage

__all__ = ["TABLES", "bind", "is_bound_to", "json_bytes", "read_binding", "read_json", "refusal"]

TABLES = "_tables"


def bind(
    storage: Storage,
    table: str,
    fingerprint: str,
    semantic: Mapping[str, Any],
    columns: Mapping[str, str],
    *,
    is_empty: bool,
) -> None:
    """Tie a table to a fingerprint and columns, or check that it is tied to these.

    ``semantic``: what the fingerprint covers, as JSON values; shown as a difference in the refusal.
    ``is_empty``: whether the table has no rows; what it was tied to then does not matter.
    Raises UserError where it is tied to others. Call it while holding the output.
    """
    wanted: dict[str, Any] = {
        "fingerprint": fingerprint,
        "semantic": dict(semantic),
        "columns": dict(columns),
        "bound_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    bound = read_binding(storage, table)
    if bound is None and storage.create(_name(table), json_bytes(wanted)):
        return
    bound = bound or read_binding(storage, table) or wanted
    if is_bound_to(bound, fingerprint, columns):
        return
    if is_empty:
        storage.write(_name(table), json_bytes(wanted))
        return
    raise UserError(refusal(storage, table, bound, wanted))


def is_bound_to(bound: Mapping[str, Any], fingerprint: str, columns: Mapping[str, str]) -> bool:
    """Whether that is what a table is tied to."""
    same_columns = dict(bound.get("columns") or {}) == dict(columns)  # not there: from before there were any
    return bool(bound["fingerprint"] == fingerprint) and same_columns


def refusal(storage: Storage, table: str, bound: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs, where a table is tied to something else; both as ``read_binding`` gives it."""
    if bound["fingerprint"] != wanted["fingerprint"]:
        return _refusal(storage, table, bound.get("semantic") or {}, wanted["semantic"])
    return _column_refusal(storage, table, bound.get("columns") or {}, wanted["columns"])


def read_binding(storage: Storage, table: str) -> dict[str, Any] | None:
    """What the table is tied to: fingerprint, semantic, columns, bound_at; None where it is new."""
    bound = read_json(storage, _name(table), "fingerprint")
    for key in ("semantic", "columns"):
        if bound is not None and not isinstance(bound.get(key) or {}, dict):
            path = storage.path(_name(table))
            raise UserError(f"{path!r}: {key} is {bound[key]!r}, must be a mapping; restore or delete it")
    return bound


def _name(table: str) -> str:
    return f"{TABLES}/{table}.json"


def _refusal(storage: Storage, table: str, bound: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    before, after = dict(_flatten(bound)), dict(_flatten(wanted))
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    lines = [f"  {name}: {before.get(name)!r} there, {after.get(name)!r} here" for name in names]
    return "\n".join(
        [
            f"table {table!r} in {storage.uri!r} was made with other settings:",
            *(lines or ["  (same settings, but made by another version of this program)"]),
            f"Rows of both in one table could not be told apart. Choose another table, e.g. "
            f"output.table={table}_2, or another output.uri, or restore the settings.",
        ]
    )


def _column_refusal(storage: Storage, table: str, bound: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    names = sorted(name for name in bound.keys() | wanted.keys() if bound.get(name) != wanted.get(name))
    lines = [
        f"  {name}: {bound.get(name, 'no such column')} there, {wanted.get(name, 'no such column')} here"
        for name in names
    ]
    return "\n".join(
        [
            f"table {table!r} in {storage.uri!r} was made with other corpus.columns:",
            *lines,
            f"One table has one schema. Restore corpus.columns, or choose another table, e.g. "
            f"output.table={table}_2, or another output.uri.",
        ]
    )


def read_json(storage: Storage, name: str, *required: str) -> dict[str, Any] | None:
    """A JSON mapping; None where there is no such file. Raises UserError for anything else."""
    data = storage.read(name)
    if data is None:
        return None
    try:
        value = json.loads(data)
        lacking = [key for key in required if key not in value]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{storage.path(name)!r} is not readable JSON ({error}); restore or delete it"
        ) from None
    if lacking or not isinstance(value, dict):
        raise UserError(f"{storage.path(name)!r} lacks {lacking or 'a mapping'}; restore or delete it")
    return value


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A mapping as readable JSON; what JSON does not know as its text."""
    return json.dumps(value, indent=1, sort_keys=True, default=str).encode()


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and value:
        for number, item in enumerate(value):
            yield from _flatten(item, f"{prefix}[{number}]")
    else:
        yield prefix, value
