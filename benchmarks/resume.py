"""Reading ten million committed ids back from made-up parts: seconds and peak memory of a fresh process.

``python -m benchmarks.resume -o benchmarks/results/resume.json``. Needs some gigabytes of scratch space.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output import FAILURE_SCHEMA, FAILURES, VIDEO_SCHEMA, FailedSoFar, OutputStore, verify_output

__all__ = ["main", "make_failures", "make_videos", "measure"]

_ROOT = Path(__file__).resolve().parent.parent
_FINGERPRINT = "0123456789abcdef"
_WORDS = ("a", "the", "red", "blue", "man", "dog", "car", "street", "walks", "turns", "opens", "left", "then")
_LOOKUPS = 100_000


def make_videos(root: Path, parts: int, rows: int) -> None:
    """A table of ``parts`` x ``rows`` made-up rows, all columns filled; only ids differ between parts."""
    template = pa.table(
        [_column(field, rows) for field in VIDEO_SCHEMA],
        schema=VIDEO_SCHEMA.with_metadata({b"flashvid": json.dumps({"fingerprint": _FINGERPRINT}).encode()}),
    )
    _write(root / "videos", template, parts, first=0)


def make_failures(root: Path, parts: int, rows: int) -> None:
    """Final failures of videos that have no row."""
    template = pa.table([_column(field, rows) for field in FAILURE_SCHEMA], schema=FAILURE_SCHEMA)
    reasons = pa.array(["corrupt" if number % 2 else "read_error" for number in range(rows)])
    place = template.schema.get_field_index("reason")
    template = template.set_column(place, FAILURE_SCHEMA.field(place), reasons)
    _write(root / FAILURES, template, parts, first=10**9)


def _write(folder: Path, template: pa.Table, parts: int, first: int) -> None:
    folder.mkdir(parents=True)
    rows = len(template)
    for part in range(parts):
        numbers = pa.array(range(first + part * rows, first + (part + 1) * rows)).cast(pa.string())
        ids = pc.binary_join_element_wise("collection/folder-17/clip-", numbers, ".mp4", "")
        versions = pc.binary_join_element_wise(numbers, "-1763720000123456789", "")
        table = template.set_column(0, template.schema.field(0), ids)
        table = table.set_column(2, template.schema.field(2), versions)
        name = f"part-20260101T{part:012d}Z-{part:012x}.parquet"
        pq.write_table(table, folder / name, compression="zstd", row_group_size=10_000)


def _column(field: pa.Field, rows: int) -> pa.Array:
    chance, kind = random.Random(field.name), field.type
    value: Callable[[int], Any]
    if field.name in ("caption", "message"):
        value = lambda _: " ".join(chance.choices(_WORDS, k=60 if field.name == "caption" else 12))  # noqa: E731
    elif pa.types.is_timestamp(kind):
        value = lambda number: 1_760_000_000_000_000 + 1000 * number  # noqa: E731
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        value = lambda _: chance.randrange(1, 3000)  # noqa: E731
    else:
        value = lambda _: _constant(field)  # noqa: E731
    return pa.array([value(number) for number in range(rows)], kind)


def _constant(field: pa.Field) -> Any:
    if field.name == "answers":
        texts = {"question_id": "q1", "question": "What colour?", "answer": "Red.", "finish_reason": "stop"}
        return [texts | {"output_tokens": 3}]
    constants = {
        "segments": [],
        "details": [("table", "videos")],
        "is_final": True,
        "fingerprint": _FINGERPRINT,
    }
    return constants.get(field.name, field.name)


def measure(root: str) -> dict[str, Any]:
    """Seconds and memory of what a run does before its first lease, and of ``verify``; in this process."""
    store = OutputStore(root)
    facts: dict[str, Any] = {"parts": len(store.parts("videos"))}
    committed = _timed(facts, "committed", lambda: store.committed(_FINGERPRINT))
    facts["ids"], facts["keyset_bytes"] = len(committed), committed.num_bytes
    began = time.perf_counter()
    asked = ((f"collection/folder-17/clip-{n}.mp4", f"{n}-1763720000123456789") for n in range(_LOOKUPS))
    found = sum(key in committed for key in asked)
    facts["lookup_microseconds"] = (time.perf_counter() - began) / _LOOKUPS * 1e6
    assert found == min(_LOOKUPS, len(committed))
    failed: FailedSoFar = _timed(facts, "failures", lambda: store.failures_of(_FINGERPRINT, committed))
    facts["failed"] = failed.num_final
    report = _timed(facts, "verify", lambda: verify_output(root))
    facts["verified_rows"] = report.rows
    return facts


def _timed(facts: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    before, began = _status_bytes("VmRSS"), time.perf_counter()
    cpu = time.process_time()
    result = work()
    facts[f"{name}_seconds"] = time.perf_counter() - began
    facts[f"{name}_cpu_seconds"] = time.process_time() - cpu
    facts[f"{name}_growth_bytes"] = _status_bytes("VmHWM") - before
    return result


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _case(parts: int, rows: int, failure_parts: int, failure_rows: int) -> dict[str, Any]:
    scratch = Path(tempfile.mkdtemp(prefix="resume-"))
    try:
        root = scratch / "out"
        make_videos(root, parts, rows)
        make_failures(root, failure_parts, failure_rows)
        command = [sys.executable, "-m", "benchmarks.resume", "--measure", str(root)]
        done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return {"rows_per_part": rows, **json.loads(done.stdout.splitlines()[-1])}
    finally:
        shutil.rmtree(scratch)


def main() -> None:
    """Make the parts, measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", type=Path, help="file for the result")
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--failed", type=int, default=1_000_000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    import torch

    from benchmarks.machine import machine_facts

    ids, failed = arguments.ids, arguments.failed
    result = {
        "machine": machine_facts(torch.device("cpu")),
        "small parts": _case(ids // 500, 500, failed // 500, 500),
        "compacted parts": _case(ids // 100_000, 100_000, failed // 100_000, 100_000),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.o:
        arguments.o.parent.mkdir(parents=True, exist_ok=True)
        arguments.o.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
