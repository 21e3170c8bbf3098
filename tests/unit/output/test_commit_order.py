"""The order of commits decides, whatever the clocks of hosts say: through compact, for every reader."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.backlog import Counts
from pipeline.output.commit_order import CommitClock, is_part, part_name, stamp_of
from pipeline.output.compacting import compact
from pipeline.output.exporting import export, view_sql
from pipeline.output.parts import encode_failures, encode_rows
from pipeline.output.schemas import VIDEO_SCHEMA
from pipeline.output.status import read_status
from pipeline.output.store import OutputStore
from pipeline.output.verify import verify_output
from pipeline.stores.storage import Storage
from tests.unit.samples import FINGERPRINT, make_failure, make_row

HOUR = 3600.0
NOW = time.time()


@pytest.fixture(autouse=True)
def quick_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.output.lock.Storage", partial(Storage, settle_seconds=0.0))


class Clock:
    """The clock of the hosts, as this process sees it; everything else goes on."""

    def __init__(self) -> None:
        self.seconds = NOW

    def time(self) -> float:
        return self.seconds

    def time_ns(self) -> int:
        return int(self.seconds * 1e9)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of the host that writes the parts; it stands still until it is set."""
    clock = Clock()
    monkeypatch.setattr("pipeline.output.commit_order.time", clock)
    return clock


def a_run(uri: str, **columns: str) -> OutputStore:
    """What a run writes to: each begins with a store of its own."""
    store = OutputStore(uri, columns=columns)
    store.storage._settle_seconds = 0.0
    store.bind(FINGERPRINT, {})
    return store


def at(seconds: float) -> int:
    return int((NOW + seconds) * 1e6)


def latest(uri: str, tmp_path: Path) -> list[tuple[str, str]]:
    """(video_id, version) of the last row of each video, by the export and by the view."""
    target = str(tmp_path / "latest.parquet")
    export(uri, "videos", target, latest=True)
    table = pq.read_table(target)
    exported = sorted(zip(table["video_id"].to_pylist(), table["version"].to_pylist(), strict=True))
    if not uri.startswith("memory://"):
        connection = duckdb.connect()
        connection.execute(view_sql(uri, "videos", latest=True))
        viewed = connection.sql("select video_id, version from videos_latest order by all").fetchall()
        assert viewed == exported
    return exported


@pytest.mark.parametrize("merging", ["not", "between", "after"])
def test_a_workers_clock_that_is_ahead(uri: str, tmp_path: Path, merging: str) -> None:
    a_run(uri).write_rows([make_row(0, version="old", indexed_at_us=at(60)), make_row(1)])
    store = a_run(uri)
    store.write_rows([make_row(2)])
    if merging == "between":
        assert compact(uri, keep_seconds=0).folders[0].rows_merged == 3
    store.write_rows([make_row(0, version="new", indexed_at_us=at(0))])
    if merging == "after":
        assert compact(uri, keep_seconds=0).folders[0].rows_merged == 4
    assert latest(uri, tmp_path) == [("video-0", "new"), ("video-1", "v1"), ("video-2", "v2")]


@pytest.mark.parametrize("merging", ["not", "between", "after"])
def test_a_second_run_on_a_host_that_is_an_hour_behind(
    uri: str, tmp_path: Path, clock: Clock, merging: str
) -> None:
    first = a_run(uri)
    for version in ("a", "b"):
        first.write_rows([make_row(0, version=version, indexed_at_us=at(0))])
        clock.seconds += 1
    clock.seconds = NOW - HOUR
    if merging == "between":
        assert compact(uri, keep_seconds=0).folders[0].rows_merged == 2
    second = a_run(uri)
    for version in ("c", "d"):
        second.write_rows([make_row(0, version=version, indexed_at_us=at(-HOUR))])
        clock.seconds += 1
    if merging == "after":
        assert compact(uri, keep_seconds=0).folders[0].rows_merged == 4
    assert [row["version"] for row in second.iter_rows(["version"])] == ["a", "b", "c", "d"]
    assert latest(uri, tmp_path) == [("video-0", "d")]


@pytest.mark.parametrize("merged", [False, True])
def test_the_last_word_on_a_video_when_the_clock_went_back(uri: str, clock: Clock, merged: bool) -> None:
    """video-0 failed as another version, then was indexed; 1 and 6 the other way round."""
    first = a_run(uri)
    first.write_rows([make_row(1, indexed_at_us=at(60)), make_row(2), make_row(4)])
    clock.seconds += 1
    first.write_failures([make_failure(0, failed_at_us=at(60)), make_failure(3), make_failure(5)])
    clock.seconds += 1
    first.write_rows([make_row(6, indexed_at_us=at(61))])
    clock.seconds = NOW - HOUR
    if merged:
        compact(uri, keep_seconds=0)
    second = a_run(uri)
    second.write_failures([make_failure(1, version="new", failed_at_us=at(-HOUR), run_id="run-2")])
    second.write_rows([make_row(0, version="new", indexed_at_us=at(-HOUR), run_id="run-2")])
    second.write_failures([make_failure(6, version="new", failed_at_us=at(-HOUR), run_id="run-2")])
    if merged:
        compact(uri, keep_seconds=0)
    found = read_status(uri)
    assert (found.rows, found.indexed) == (5, 3), "0, 2 and 4"
    assert found.failures_by_reason == {"corrupt": 4}, "1, 3, 5 and 6"
    assert found.earlier_failures == 1, "of video-0"
    assert verify_output(uri).failures == 4


@pytest.mark.parametrize("merged", [False, True])
def test_a_video_that_was_healed_when_the_clock_went_back_is_no_problem(
    uri: str, clock: Clock, merged: bool
) -> None:
    a_run(uri).write_failures([make_failure(0, failed_at_us=at(0)), make_failure(1, failed_at_us=at(0))])
    clock.seconds = NOW - HOUR
    healing = a_run(uri)
    for number in (0, 1):
        healing.write_rows([make_row(number, indexed_at_us=at(-HOUR), run_id="run-2")])
    if merged:
        compact(uri, keep_seconds=0)
    assert verify_output(uri).problems == ()
    a_run(uri).write_failures([make_failure(1, failed_at_us=at(-2 * HOUR), run_id="run-3")])
    (problem,) = verify_output(uri).problems
    assert "failed for good after they were indexed: video-1" in problem, "the positive control"


def test_the_last_run_is_the_one_that_ended_last(uri: str, clock: Clock) -> None:
    for number, hours in enumerate([0.0, -1.0, -2.0]):
        clock.seconds = NOW + hours * HOUR
        report = {"counts": asdict(Counts()), "finished_at": f"2026-01-01T0{5 + hours:.0f}:00:00+00:00"}
        a_run(uri).write_run(f"run-{number}", {"run_id": f"run-{number}", **report})
    found = read_status(uri).last_run
    assert found is not None
    assert found["run_id"] == "run-2"


def test_a_report_of_an_earlier_release_from_the_future_is_before_the_next_one(uri: str) -> None:
    store = a_run(uri)
    text = '{"run_id": "run-1", "counts": {}, "finished_at": "2999-01-01T00:00:00+00:00"}'
    store.storage.write("_runs/run-1.json", text.encode())
    store.write_run("run-2", {"run_id": "run-2", "counts": {}, "finished_at": "2026-01-01T00:00:00+00:00"})
    found = read_status(uri).last_run
    assert found is not None
    assert found["run_id"] == "run-2"


@pytest.mark.parametrize("between", ["another schema", "several jobs in one part"])
def test_compact_lets_no_row_pass_what_lies_between(uri: str, tmp_path: Path, between: str) -> None:
    """Parts before and after it are of one kind, so they would become one part, in one place."""
    store = a_run(uri)
    store.write_rows([make_row(0, version="a")])
    if between == "another schema":
        OutputStore(uri, columns={"title": "string"}).write_rows([make_row(1, version="b")])
    else:
        rows = [make_row(1, version="b"), make_row(9, fingerprint="another")]
        store.storage.write(f"videos/{part_name(int(time.time() * 1e6))}", without_origin(rows))
    later = a_run(uri)
    for version in ("c", "d"):
        later.write_rows([make_row(1, version=version)])
    compact(uri, keep_seconds=0)
    assert len(store.parts("videos")) == 3, "c and d became one"
    assert latest(uri, tmp_path)[:2] == [("video-0", "a"), ("video-1", "d")]
    assert [row["version"] for row in store.iter_rows(["version"])][-2:] == ["c", "d"]


def without_origin(rows: list[Any]) -> bytes:
    table = pq.read_table(pa.BufferReader(encode_rows(rows, VIDEO_SCHEMA))).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_failures_of_two_jobs_in_turn_are_still_merged(uri: str) -> None:
    """Those of another job lie between, and have no say in the order of these."""
    store = a_run(uri)
    for number in range(6):
        failure = make_failure(number % 2, attempt=number, is_final=number > 3)
        store.write_failures([failure if number % 2 else make_failure(number, fingerprint="another")])
    before = list(store.iter_failures())
    compact(uri, keep_seconds=0)
    assert len(store.parts("failures")) == 2
    mine = [row["attempt"] for row in before if row["fingerprint"] == FINGERPRINT]
    assert [row["attempt"] for row in store.iter_failures() if row["fingerprint"] == FINGERPRINT] == mine


# What earlier releases wrote: names by the clock alone, no commits in the footer, merged parts named by their
# first.


def old_part(store: OutputStore, folder: str, name: str, data: bytes) -> None:
    table = pq.read_table(pa.BufferReader(data))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    store.storage.write(f"{folder}/{name}", sink.getvalue().to_pybytes())


def old_rows(store: OutputStore, seconds: float, *rows: Any) -> None:
    old_part(store, "videos", part_name(at(seconds)), encode_rows(rows, VIDEO_SCHEMA))


def old_failures(store: OutputStore, seconds: float, *failures: Any) -> None:
    old_part(store, "failures", part_name(at(seconds)), encode_failures(failures))


@pytest.mark.parametrize("merged", [False, True])
def test_an_output_of_an_earlier_release(uri: str, tmp_path: Path, merged: bool) -> None:
    """Its merged part is named by its first, so of its rows only the workers' clocks say more."""
    store = a_run(uri)
    old_failures(store, -90, make_failure(2, failed_at_us=at(-95)))
    healed = make_row(2, indexed_at_us=at(-70), run_id="run-2")
    old_rows(store, -100, make_row(0, indexed_at_us=at(-101)), healed)
    old_rows(store, -50, make_row(0, version="new", indexed_at_us=at(-55)))
    if merged:
        compact(uri, keep_seconds=0)
    assert latest(uri, tmp_path) == [("video-0", "new"), ("video-2", "v2")]
    report = verify_output(uri)
    assert report.problems == ()
    assert (report.rows, report.failures) == (3, 0)
    assert read_status(uri).indexed == 2
    a_run(uri).write_rows([make_row(0, version="newest", indexed_at_us=at(-HOUR))])
    assert latest(uri, tmp_path)[0] == ("video-0", "newest")


def test_what_comes_after_an_output_from_the_future_is_after_it(uri: str, tmp_path: Path) -> None:
    store = a_run(uri)
    old_rows(store, 5 * HOUR, make_row(0, version="old"))
    old_failures(store, 6 * HOUR, make_failure(1, version="old"))
    store.write_rows([make_row(0, version="new"), make_row(1, version="new")])
    assert latest(uri, tmp_path) == [("video-0", "new"), ("video-1", "new")]
    assert read_status(uri).failures_by_reason == {}


def test_names_say_their_time_and_are_parts_to_every_release(clock: Clock) -> None:
    ticks = CommitClock(lambda: at(0))
    times = [ticks.tick() for _ in range(5)]
    assert times == sorted(set(times))
    assert times[0] > at(0)
    names = [part_name(time) for time in times]
    assert names == sorted(names)
    assert [stamp_of(name) for name in names] == times
    assert all(is_part(name) for name in names)
    assert stamp_of("part-99999999T999999999999Z-ab.parquet") == stamp_of("copy.parquet") == 0
