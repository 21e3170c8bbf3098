"""What must hold of an output, looked at with pyarrow alone, and at the end what verify says of it."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.parquet as pq

from pipeline.verify import verify
from tests.chaos.corpus import Expected
from tests.chaos.stub_engine import colour_of
from tests.integration.hostile import ROW

__all__ = [
    "Output",
    "blameless_victims",
    "problems_at_any_time",
    "problems_at_the_end",
    "problems_of_verify",
    "read_output",
]

_TOLERANCE = 14  # h264 and resizing move a colour by a few steps; colours differ by 36 in some channel
_STRIKES = 3  # crashes or failed attempts that a good video must have had before it may fail for good


@dataclass(frozen=True)
class Output:
    """All rows and failures of an output. ``unreadable``: parts that are there and cannot be read."""

    rows: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    unreadable: list[str]

    @property
    def final(self) -> list[dict[str, Any]]:
        return [row for row in self.failures if row["is_final"]]


def read_output(uri: str, options: dict[str, Any] | None = None) -> Output:
    """Every part of videos/ and failures/."""
    unreadable: list[str] = []
    files, root = fsspec.core.url_to_fs(uri, **(options or {}))
    files.invalidate_cache()
    rows, failures = (_read_folder(files, f"{root}/{name}", unreadable) for name in ("videos", "failures"))
    return Output(rows, failures, unreadable)


def _read_folder(files: Any, folder: str, unreadable: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    names = files.ls(folder, detail=False) if files.exists(folder) else []
    for name in sorted(names):
        base = name.rsplit("/", 1)[-1]
        if base.startswith((".", "_")) or not base.endswith(".parquet"):
            continue  # as DuckDB's videos/*.parquet and its like
        try:
            rows += pq.read_table(io.BytesIO(files.cat_file(name))).to_pylist()
        except Exception as error:  # whatever is wrong with it, a reader could not read it
            unreadable.append(f"{name}: {type(error).__name__}: {error}")
    return rows


def problems_at_any_time(output: Output) -> list[str]:
    """What no reader may ever see, whenever it looks."""
    keys = Counter((row["video_id"], row["version"], row["fingerprint"]) for row in output.rows)
    twice = [f"{key[0]} {key[1]} has {count} rows" for key, count in keys.items() if count > 1]
    return [*twice, *output.unreadable]


def problems_at_the_end(output: Output, expected: Expected, corpus: str) -> list[str]:
    """Every input exactly once, as itself, with an outcome that is allowed for it."""
    prefix = corpus.rstrip("/") + "/"
    rows = Counter(_relative(row["uri"], prefix) for row in output.rows)
    final = {_relative(row["uri"], prefix): row["reason"] for row in output.final}
    problems = problems_at_any_time(output)
    problems += [f"{name!r} is in no corpus" for name in (rows.keys() | final.keys()) - expected.names]
    problems += [f"{name!r} has {count} rows" for name, count in rows.items() if count > 1]
    for name in expected.good:
        if not rows[name]:
            problems.append(f"{name!r} is lost: no row; final failure {final.get(name)}")
    for name, allowed in expected.hostile.items():
        outcome = ROW if rows[name] else final.get(name)
        if outcome not in allowed:
            problems.append(f"{name!r} ended as {outcome}, allowed: {', '.join(sorted(allowed))}")
    return problems + _mixed_up(output, expected, prefix)


def _mixed_up(output: Output, expected: Expected, prefix: str) -> list[str]:
    problems = []
    for row in output.rows:
        name = _relative(row["uri"], prefix)
        colour = expected.good.get(name) or expected.maybe.get(name)
        texts = [row["caption"], *(answer["answer"] for answer in row["answers"])]
        for text in texts if colour else ():
            seen = colour_of(text)
            if seen is None or any(abs(a - b) > _TOLERANCE for a, b in zip(seen, colour or (), strict=True)):
                problems.append(f"{name!r} is {colour}, its row says {text!r}")
    return problems


def blameless_victims(output: Output, expected: Expected, corpus: str) -> list[str]:
    """Good videos that failed for good without as many crashes or failed attempts as the limits demand."""
    prefix = corpus.rstrip("/") + "/"
    attempts = Counter(_relative(row["uri"], prefix) for row in output.failures)
    wronged = []
    for row in output.final:
        name = _relative(row["uri"], prefix)
        if name in expected.good and attempts[name] < _STRIKES:
            wronged.append(f"{name!r} failed for good ({row['reason']}) after {attempts[name]} attempts")
    return wronged


def problems_of_verify(uri: str) -> list[str]:
    """What ``flashvid verify`` objects to, and runs whose sum does not close."""
    found = list(verify(uri).problems)
    files, root = fsspec.core.url_to_fs(uri)
    for name in files.glob(f"{root}/_runs/*.json"):
        report = json.loads(files.cat_file(name))
        if report["exit_status"] == 0 and not report["closes"]:
            found.append(f"{name}: {report['counts']} does not close")
    return found


def _relative(uri: str, prefix: str) -> str:
    return uri.removeprefix("file://").removeprefix(prefix)
