"""verify finds each kind of damage, and only that; status tells what is there."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.backlog import Counts
from pipeline.errors import Reason, UserError
from pipeline.output.compacting import compact
from pipeline.output.lock import OutputLock
from pipeline.output.merge_records import Merge, write_merge
from pipeline.output.status import read_status
from pipeline.output.store import OutputStore
from pipeline.output.verify import verify_output
from tests.unit.samples import FINGERPRINT, make_failure, make_row


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    """A sound output: three videos listed, two rows, one failure after two attempts, one report."""
    store = OutputStore(str(tmp_path / "out"))
    store.bind(FINGERPRINT, {"frames": {"baseline": 16}})
    store.write_rows([make_row(0)])
    store.write_rows([make_row(1)])
    store.write_failures(
        [make_failure(2, is_final=False, reason=Reason.READ_ERROR), make_failure(2, attempt=2)]
    )
    write_report(store, Counts(listed=3, indexed=2, failed=1))
    return store


def write_report(store: OutputStore, counts: Counts, **more: object) -> None:
    report = {
        "run_id": "run-1",
        "fingerprint": FINGERPRINT,
        "counts": asdict(counts),
        "exit_status": 0,
        "finished_at": "2026-01-01T00:00:00+00:00",
        "config": {"output": {"table": store.table}},
    }
    store.write_run(str(more.get("run_id", "run-1")), {**report, **more})


def problems(store: OutputStore) -> str:
    return "\n".join(verify_output(store.storage.uri, store.table).problems)


def test_failures_of_another_table_are_not_this_ones(store: OutputStore) -> None:
    store.write_failures([make_failure(7, fingerprint="another", run_id="run-2")])
    report = verify_output(store.storage.uri)
    assert (report.ok, report.failures, report.attempts) == (True, 1, 3)


def test_a_sound_output_has_no_problem(store: OutputStore) -> None:
    report = verify_output(store.storage.uri)
    assert report.problems == ()
    assert report.ok
    assert (report.rows, report.parts, report.failures, report.attempts, report.runs) == (2, 2, 1, 2, 1)
    assert report.fingerprint == FINGERPRINT


def test_a_video_indexed_twice(store: OutputStore) -> None:
    store.write_rows([make_row(1, run_id="run-2")])
    assert "videos indexed more than once: video-1 (2 rows)" in problems(store)


def test_another_version_is_not_a_duplicate(store: OutputStore) -> None:
    store.write_rows([make_row(1, version="new", run_id="run-2")])
    assert problems(store) == ""


def test_a_sum_that_does_not_close(store: OutputStore) -> None:
    write_report(store, Counts(listed=4, indexed=2, failed=1))
    assert "run run-1 listed 4 videos and accounts for 3" in problems(store)


def test_a_run_that_says_it_failed_is_a_note(store: OutputStore) -> None:
    write_report(store, Counts(listed=4, indexed=2, failed=1), exit_status=3)
    report = verify_output(store.storage.uri)
    assert report.ok
    assert "listed 4" in report.notes[0]


def test_rows_that_the_report_counts_but_no_part_holds(store: OutputStore) -> None:
    (Path(store.storage.uri) / "videos" / store.parts("videos")[0].name).unlink()
    assert "reports 2 indexed videos, the parts hold 1 rows" in problems(store)


def test_failures_that_the_report_counts_but_no_part_holds(store: OutputStore) -> None:
    write_report(store, Counts(listed=4, indexed=2, failed=2))
    assert "reports 2 failed videos, the parts hold 1 final failures" in problems(store)


def test_reports_of_other_tables_are_theirs(store: OutputStore) -> None:
    write_report(store, Counts(listed=9, indexed=9), run_id="run-9", config={"output": {"table": "other"}})
    assert problems(store) == ""


def test_a_broken_report(store: OutputStore) -> None:
    store.storage.write("_runs/run-1.json", b"{half")
    assert "run-1.json" in problems(store)


def test_a_part_cut_short(store: OutputStore) -> None:
    path = Path(store.storage.uri) / "videos" / store.parts("videos")[0].name
    path.write_bytes(path.read_bytes()[:-20])
    assert f"videos/{path.name} cannot be read" in problems(store)


def test_damage_in_the_middle_of_a_part(store: OutputStore) -> None:
    """The footer is whole, a column is not."""
    path = Path(store.storage.uri) / "videos" / store.parts("videos")[0].name
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    assert f"videos/{path.name} cannot be read" in problems(store)


def test_schema_drift(store: OutputStore) -> None:
    path = Path(store.storage.uri) / "videos" / store.parts("videos")[0].name
    table = pq.read_table(path)
    drifted = table.set_column(table.schema.get_field_index("width"), "width", table["width"].cast("int64"))
    pq.write_table(drifted.drop_columns(["codec"]), path)
    text = problems(store)
    assert "width is int64, should be int32" in text
    assert "codec is absent, should be string" in text


def test_a_column_that_older_releases_did_not_write_is_a_note(store: OutputStore) -> None:
    path = Path(store.storage.uri) / "videos" / store.parts("videos")[0].name
    pq.write_table(pq.read_table(path).drop_columns(["visual_tokens_budget"]), path)
    report = verify_output(store.storage.uri)
    assert report.ok
    assert "no column visual_tokens_budget" in report.notes[0]
    assert "union_by_name=true" in report.notes[0]


def test_columns_carried_over_are_no_drift(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path), columns={"title": "string"})
    store.bind(FINGERPRINT, {})
    store.write_rows([make_row(0, extra=(("title", "A film"),))])
    assert problems(store) == ""
    OutputStore(str(tmp_path)).write_rows([make_row(1)])
    assert "title is absent, should be string" in problems(store)


def test_an_empty_part(store: OutputStore) -> None:
    path = Path(store.storage.uri) / "videos" / store.parts("videos")[0].name
    path.write_bytes(b"")
    assert f"videos/{path.name} cannot be read" in problems(store)


def merge(store: OutputStore, *replaces: str, age_seconds: float = 3000.0) -> Merge:
    """The record of a merge whose new part is not there."""
    now = time.time() - age_seconds
    made = Merge("merge-1", "videos", "part-20260101T000000Z-abcdef.parquet", replaces, 2, now, now)
    write_merge(store.storage, made)
    return made


def test_a_merge_without_its_part_and_without_what_it_replaced_is_a_hole(store: OutputStore) -> None:
    there, lost = (entry.name for entry in store.parts("videos"))
    merge(store, there, lost)
    (Path(store.storage.uri) / "videos" / lost).unlink()
    text = problems(store)
    assert "neither videos/part-20260101T000000Z-abcdef.parquet is there nor parts that it replaces" in text
    assert f"videos/{lost}" in text
    assert f"videos/{there}" not in text


def test_a_merge_that_was_cut_short_is_a_note(store: OutputStore) -> None:
    merge(store, *(entry.name for entry in store.parts("videos")))
    report = verify_output(store.storage.uri)
    assert report.ok
    assert "a compact was cut short" in report.notes[0]


def test_parts_that_wait_for_their_removal_are_a_note(store: OutputStore) -> None:
    report = compact(store.storage.uri)
    assert report.waiting == 1, "the folder as it was"
    found = verify_output(store.storage.uri)
    assert (found.ok, found.rows, found.parts) == (True, 2, 1)
    assert "1 parts or folders that compact replaced" in found.notes[0]


def test_a_table_of_the_same_job_has_failures_of_its_own(store: OutputStore) -> None:
    store.write_failures(
        [make_failure(0, run_id="run-2", details={"table": "captions"}), make_failure(8, run_id="run-2")]
    )
    report = verify_output(store.storage.uri)
    assert report.ok, "video-0 has a row here and failed there"
    assert report.failures == 2


def test_foreign_files(store: OutputStore) -> None:
    (Path(store.storage.uri) / "videos" / "copy of part.parquet").write_bytes(b"")
    assert "videos/copy of part.parquet" in problems(store)


def test_leftovers_are_a_note(store: OutputStore) -> None:
    (Path(store.storage.uri) / "videos" / ".part-1.parquet.ab.tmp").write_bytes(b"half")
    report = verify_output(store.storage.uri)
    assert report.ok
    assert "1 temporary files" in report.notes[0]


def test_a_failure_after_success(store: OutputStore) -> None:
    store.write_failures([make_failure(1, run_id="run-2")])
    assert "failed for good after they were indexed: video-1" in problems(store)


def test_a_success_after_failure_is_what_a_retry_is_for(store: OutputStore) -> None:
    store.write_rows([make_row(2, run_id="run-2")])
    report = verify_output(store.storage.uri)
    assert report.ok
    assert report.failures == 0


def test_a_final_failure_twice_in_one_run(store: OutputStore) -> None:
    store.write_failures([make_failure(2)])
    assert "failed for good twice in one run: video-2" in problems(store)


def test_rows_of_another_fingerprint(store: OutputStore) -> None:
    store.write_rows([make_row(7, fingerprint="another", run_id="run-2")])
    assert f"rows of other fingerprints than {FINGERPRINT}: another (1 rows)" in problems(store)


def test_rows_without_a_binding(store: OutputStore) -> None:
    store.storage.delete("_tables/videos.json")
    assert "bound to no fingerprint" in problems(store)


def test_many_examples_are_cut_short(store: OutputStore) -> None:
    store.write_rows([make_row(number, run_id="run-2") for number in range(9)])
    store.write_rows([make_row(number, run_id="run-2") for number in range(2, 9)])
    assert "and 4 more" in problems(store)


def test_nothing_there_is_the_users_mistake(tmp_path: Path, store: OutputStore) -> None:
    with pytest.raises(UserError, match="there is no output"):
        verify_output(str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="tables there: videos"):
        read_status(store.storage.uri, "captions")


def test_status_counts_what_is_there(store: OutputStore) -> None:
    store.write_failures([make_failure(0, failed_at_us=0), make_failure(5, reason=Reason.EMPTY_FILE)])
    found = read_status(store.storage.uri)
    assert (found.rows, found.parts, found.tables) == (2, 2, ("videos",))
    assert found.failures_by_reason == {"corrupt": 1, "empty_file": 1}
    assert found.last_run is not None
    assert found.last_run["run_id"] == "run-1"
    assert found.last_indexed_at is not None
    assert not found.is_running


def test_status_says_who_writes(store: OutputStore) -> None:
    lock = OutputLock(store.storage.uri)
    lock.acquire("run-2")
    found = read_status(store.storage.uri)
    assert found.holder is not None
    assert found.holder.run_id == "run-2"
    assert "a run is writing now" in verify_output(store.storage.uri).notes[-1]
    lock.release()
    assert not read_status(store.storage.uri).is_running


def test_an_output_of_nothing_but_failures(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    store.bind(FINGERPRINT, {})
    store.write_failures([make_failure(0)])
    report = verify_output(str(tmp_path))
    assert report.ok
    assert (report.rows, report.failures) == (0, 1)
    assert read_status(str(tmp_path)).failures_by_reason == {"corrupt": 1}


def test_status_counts_each_video_by_its_last_word(store: OutputStore) -> None:
    """Mended videos are indexed as another version; what failed before them is no failed video any more."""
    failed = [("old", 5, 1), ("new", 5, 2), ("newest", 1, 2**52)]
    store.write_failures([make_failure(n, version=v, failed_at_us=at, run_id="run-2") for v, n, at in failed])
    mended = [("mended", 2), ("newer", 0)]
    store.write_rows([make_row(number, version=version, run_id="run-2") for version, number in mended])
    found = read_status(store.storage.uri)
    assert (found.indexed, found.rows, found.earlier_rows) == (2, 4, 2), (
        "video-0 twice, video-1's old version"
    )
    assert found.failures_by_reason == {"corrupt": 2}, "video-5 once, and video-1"
    assert found.earlier_failures == 2, "of video-2 and video-5"
    report = verify_output(store.storage.uri)
    assert (report.failures, report.problems) == (2, ())
    assert any(note.startswith("2 more versions failed for good") for note in report.notes)


def test_a_part_of_another_table_of_the_same_job(store: OutputStore) -> None:
    other = OutputStore(store.storage.uri, "captions")
    other.bind(FINGERPRINT, {})
    other.write_rows([make_row(7, run_id="run-2")])
    write_report(other, Counts(listed=1, indexed=1), run_id="run-2")
    (part,) = other.storage.files("captions")
    store.storage.write(f"videos/{part.name}", other.storage.read(f"captions/{part.name}") or b"")
    assert "rows in videos/ of runs that wrote another table: run-2 (1 rows, table captions)" in problems(
        store
    )
    assert verify_output(store.storage.uri, "captions").ok


def test_what_cannot_be_known_of_a_run_without_a_report_is_said(store: OutputStore) -> None:
    store.write_rows([make_row(7, run_id="killed")])
    (note,) = verify_output(store.storage.uri).notes
    assert note.startswith("1 rows are of 1 runs that left no report (killed, or not finished), e.g. killed")


def test_a_part_removed_on_purpose_has_a_way_out(store: OutputStore) -> None:
    store.storage.delete(f"videos/{store.parts('videos')[0].name}")
    store.write_rows([make_row(0, run_id="run-2")])
    assert "the report in _runs/ may be deleted" in problems(store)
    store.storage.delete("_runs/run-1.json")
    assert verify_output(store.storage.uri).ok


@pytest.mark.parametrize(
    "report",
    ['{"run_id": "x", "counts": 3}', '{"run_id": "x", "counts": {}, "config": [1]}', '{"counts": {}}'],
)
def test_a_file_that_is_no_report_costs_only_itself(store: OutputStore, report: str) -> None:
    store.storage.write("_runs/x.json", report.encode())
    write_report(store, Counts(listed=4, indexed=3, failed=1))
    assert "_runs/x.json" in problems(store)
    assert "run run-1 reports 3 indexed videos" in problems(store), (
        "the others are still held against the rows"
    )
    with pytest.raises(UserError, match=r"_runs/x\.json"):
        read_status(store.storage.uri)


def test_a_binding_of_another_shape_is_named(store: OutputStore) -> None:
    store.storage.write("_tables/videos.json", b'{"fingerprint": "x", "columns": 7}')
    assert "columns is 7, must be a mapping" in problems(store)


def test_rows_without_an_id_or_a_time(store: OutputStore) -> None:
    (entry, *_) = store.parts("videos")
    table = pq.read_table(store.storage.path(f"videos/{entry.name}"))
    for name in ("video_id", "indexed_at"):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.nulls(len(table), table.schema.field(name).type))
    pq.write_table(table, store.storage.path(f"videos/{entry.name}"))
    assert "video_id is missing in some rows" in problems(store)
    assert "indexed_at is missing in some rows" in problems(store)


def test_parts_that_were_moved_and_linked_count(store: OutputStore, tmp_path: Path) -> None:
    for entry in store.parts("videos"):
        path = Path(store.storage.path(f"videos/{entry.name}"))
        path.rename(tmp_path / entry.name)
        path.symlink_to(tmp_path / entry.name)
    assert verify_output(store.storage.uri).rows == 2
