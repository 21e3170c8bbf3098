"""What must hold of an output, looked at with pyarrow alone, and at the end what verify says of it."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.parquet as pq

from pipeline.output.verify import verify_output
from tests.chaos.corpus import Colour, Expected
from tests.chaos.stub_engine import colour_of
from tests.integration.hostile import ROW

__all__ = [
    "Output",
    "Witness",
    "blameless_victims",
    "problems_at_any_time",
    "problems_at_the_end",
    "problems_of_verify",
    "read_output",
    "watched",
]

_TOLERANCE = 14  # h264 and resizing move a colour by a few steps; colours differ by 36 in some channel
_LOOK_SECONDS = 1.0
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


_Parts = dict[tuple[str, int], list[dict[str, Any]]]


def read_output(uri: str, known: _Parts | None = None) -> Output:
    """Every part of videos/ and failures/; those ``known`` by name and size are not read again."""
    unreadable: list[str] = []
    files, root = fsspec.core.url_to_fs(uri)
    files.invalidate_cache()
    known = {} if known is None else known
    folders = (f"{root}/videos", f"{root}/failures")
    rows, failures = (_read_folder(files, folder, unreadable, known) for folder in folders)
    return Output(rows, failures, unreadable)


def _read_folder(files: Any, folder: str, unreadable: list[str], known: _Parts) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    infos = files.ls(folder, detail=True) if files.exists(folder) else []
    for info in sorted(infos, key=lambda info: str(info["name"])):
        name = info["name"]
        base = name.rsplit("/", 1)[-1]
        if base.startswith((".", "_")) or not base.endswith(".parquet"):
            continue  # as DuckDB's videos/*.parquet and its like
        part = (name, info["size"])
        try:
            if part not in known:
                known[part] = pq.read_table(io.BytesIO(files.cat_file(name))).to_pylist()
            rows += known[part]
        except Exception as error:  # whatever is wrong with it, a reader could not read it
            unreadable.append(f"{name}: {type(error).__name__}: {error}")
    return rows


class Witness:
    """A reader who looks at one output again and again, and forgets nothing that it has seen."""

    def __init__(self, uri: str) -> None:
        self.problems: list[str] = []
        self.num_looks = 0
        self._uri = uri
        self._parts: _Parts = {}
        self._seen: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()

    def look(self) -> list[str]:
        """All that was ever wrong, now included: what no reader may see, and rows that are gone."""
        with self._lock:
            output = read_output(self._uri, self._parts)
            keys = {_key(row) for row in output.rows}
            self.problems += problems_at_any_time(output)
            self.problems += [f"the row of {key[0]} {key[1]} is gone" for key in self._seen - keys]
            self._seen |= keys
            self.num_looks += 1
            return self.problems


@contextmanager
def watched(uri: str) -> Iterator[Witness]:
    """A witness who looks about once a second while runs go on, and whenever it is told."""
    witness, done = Witness(uri), threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            try:
                witness.look()
            except Exception as error:  # the test must hear of it
                witness.problems.append(f"the output cannot be listed: {type(error).__name__}: {error}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield witness
    finally:
        done.set()
        thread.join()


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["video_id"], row["version"], row["fingerprint"])


def problems_at_any_time(output: Output) -> list[str]:
    """What no reader may ever see, whenever it looks."""
    keys = Counter(map(_key, output.rows))
    twice = [f"{key[0]} {key[1]} has {count} rows" for key, count in keys.items() if count > 1]
    return [*twice, *output.unreadable]


def problems_at_the_end(output: Output, expected: Expected, corpus: str) -> list[str]:
    """Every input exactly once, as itself, with an outcome that is allowed for it."""
    prefix = corpus.rstrip("/") + "/"
    rows = Counter(_relative(row["uri"], prefix) for row in output.rows)
    final = {_relative(row["uri"], prefix): row["reason"] for row in output.final}
    problems = problems_at_any_time(output)
    problems += [f"{name!r} is in no corpus" for name in (rows.keys() | final.keys()) - expected.names]
    twice = {name: count for name, count in rows.items() if count > 1 and name not in expected.replaced}
    problems += [f"{name!r} has {count} rows" for name, count in twice.items()]
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
    replaced: dict[str, list[str]] = {name: [] for name in expected.replaced}
    for row in output.rows:
        name = _relative(row["uri"], prefix)
        if name in replaced:
            replaced[name].append(row["caption"])
        colour = expected.good.get(name) or expected.maybe.get(name)
        for text in _texts(row) if colour else ():
            if not _shows(text, colour):
                problems.append(f"{name!r} is {colour}, its row says {text!r}")
    for name, captions in replaced.items():
        old, new = expected.replaced[name]
        num_old, num_new = (sum(_shows(text, colour) for text in captions) for colour in (old, new))
        if num_new != 1 or num_old > 1 or num_old + num_new != len(captions):
            problems.append(f"{name!r} was {old} and is {new}, its rows say {captions}")
    return problems


def _texts(row: dict[str, Any]) -> list[str]:
    """All that a row says of its video, and of each of its parts."""
    parts = [row, *row.get("segments", ())]
    return [text for part in parts for text in (part["caption"], *(a["answer"] for a in part["answers"]))]


def _shows(text: str, colour: Colour | None) -> bool:
    seen = colour_of(text)
    near = zip(seen or (), colour or (), strict=False)
    return seen is not None and all(abs(a - b) <= _TOLERANCE for a, b in near)


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
    found = list(verify_output(uri).problems)
    files, root = fsspec.core.url_to_fs(uri)
    for name in files.glob(f"{root}/_runs/*.json"):
        report = json.loads(files.cat_file(name))
        if report["exit_status"] == 0 and not report["closes"]:
            found.append(f"{name}: {report['counts']} does not close")
    return found


def _relative(uri: str, prefix: str) -> str:
    return uri.removeprefix("file://").removeprefix(prefix)
