"""The coordinator without Ray, over a real output: exactly once, nothing unaccounted for, how a run ends."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.coordination import Case, measure
from pipeline.cluster.coordination import Coordination
from pipeline.cluster.metrics import Metrics
from pipeline.cluster.protocol import LeaseReply, Message, Reply, Run, WorkerSeconds
from pipeline.cluster.report import RunReport
from pipeline.config.job import JobConfig, load_config
from pipeline.errors import Reason, UserError
from pipeline.output.lock import LockLostError, OutputLock
from pipeline.output.store import OutputStore
from pipeline.records import Failure, Problem, VideoRef, VideoRow
from pipeline.stores.storage import StorageWarning
from tests.unit.samples import FINGERPRINT, make_failure, make_ref, make_row

NO_SECONDS = WorkerSeconds()


def make_config(output: Path, *overrides: str) -> JobConfig:
    required = ("corpus.uri=/videos", f"output.uri={output}", "model.name=demo/model", "metrics.port=null")
    return load_config(None, (*required, *overrides))


def open_run(output: Path, *overrides: str, heal: tuple[str, ...] | None = None) -> Coordination:
    config = make_config(output, *overrides)
    run = Run("run-1", FINGERPRINT, "abc", os.getpid(), heal)
    output_lock = OutputLock(str(output))
    store = OutputStore(str(output), config.output.table, fence=output_lock.check)
    coordination = Coordination(config, run, store, output_lock, Metrics())
    coordination.open()
    return coordination


class _WarningLock(OutputLock):
    def acquire(self, run_id: str, driver_pid: int) -> None:
        warnings.warn("start one at a time", StorageWarning, stacklevel=1)
        super().acquire(run_id, driver_pid)


def test_what_the_store_cannot_promise_reaches_the_driver(tmp_path: Path) -> None:
    config, lock = make_config(tmp_path), _WarningLock(str(tmp_path))
    run = Run("run-1", FINGERPRINT, "abc", os.getpid())
    coordination = Coordination(config, run, OutputStore(str(tmp_path), fence=lock.check), lock, Metrics())
    coordination.open()
    assert coordination.status().warnings == ("start one at a time",)
    coordination.finish()


@pytest.mark.parametrize(("revision", "num_warnings"), [("null", 1), ("v7", 0)])
def test_an_engine_whose_weights_nobody_names_is_warned_of(
    tmp_path: Path, revision: str, num_warnings: int
) -> None:
    coordination = open_run(tmp_path, "model.engine=a.b:c", f"model.revision={revision}")
    assert len(coordination.status().warnings) == num_warnings
    assert all("without model.revision" in warning for warning in coordination.status().warnings)
    coordination.finish()


def begin(
    output: Path,
    num_videos: int,
    *overrides: str,
    workers: tuple[str, ...] = ("w",),
    heal: tuple[str, ...] | None = None,
) -> Coordination:
    coordination = open_run(output, *overrides, heal=heal)
    coordination.list_corpus(map(make_ref, range(num_videos)))
    join(coordination, *workers)
    return coordination


def join(coordination: Coordination, *workers: str) -> None:
    for worker_id in workers:
        coordination.register(worker_id)
        coordination.ready(worker_id)


def leased(reply: LeaseReply) -> list[VideoRef]:
    return [item.ref for item in reply.lease.items] if reply.lease else []


def number_of(ref: VideoRef) -> int:
    return int(ref.video_id.removeprefix("video-"))


def row_of(ref: VideoRef) -> VideoRow:
    return make_row(number_of(ref))


def failure_of(ref: VideoRef, reason: Reason) -> Failure:
    return make_failure(number_of(ref), reason=reason, is_final=False)


def rows_in(output: Path) -> list[str]:
    return sorted(row["video_id"] for row in OutputStore(str(output)).iter_rows(["video_id"]))


def failures_in(output: Path) -> list[tuple[str, str, bool]]:
    found = OutputStore(str(output)).iter_failures(["video_id", "reason", "is_final"])
    return [(row["video_id"], row["reason"], row["is_final"]) for row in found]


def test_complete_run(tmp_path: Path) -> None:
    run = begin(tmp_path, 3)
    refs = leased(run.lease("w", 3))
    assert run.push(
        "w", [row_of(refs[0]), row_of(refs[1])], [failure_of(refs[2], Reason.CORRUPT)], NO_SECONDS
    )
    assert run.lease("w", 3).done
    report = run.finish()
    assert (report.exit_status, report.error, report.closes) == (0, None, True)
    assert (report.counts.indexed, report.counts.failed) == (2, 1)
    assert rows_in(tmp_path) == sorted(ref.video_id for ref in refs[:2])
    assert failures_in(tmp_path) == [(refs[2].video_id, "corrupt", True)]
    assert (tmp_path / "_runs" / "run-1.json").exists()


def test_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    test_complete_run(tmp_path)
    again = begin(tmp_path, 3)
    assert again.status().is_done
    assert again.lease("w", 3).done
    report = again.finish()
    assert report.did_nothing
    assert (report.counts.skipped_indexed, report.counts.skipped_failed) == (2, 1)
    assert len(rows_in(tmp_path)) == 2


def test_failed_videos_are_tried_again_on_request(tmp_path: Path) -> None:
    test_complete_run(tmp_path)
    again = begin(tmp_path, 3, "limits.retry_failed=true")
    refs = leased(again.lease("w", 3))
    assert len(refs) == 1
    again.push("w", [row_of(refs[0])], [], NO_SECONDS)
    assert again.finish().exit_status == 0
    assert len(rows_in(tmp_path)) == 3


def test_new_content_is_indexed_again(tmp_path: Path) -> None:
    test_complete_run(tmp_path)
    again = open_run(tmp_path)
    again.list_corpus([make_ref(0, version="changed")])
    assert again.status().num_waiting == 1
    again.finish()


def test_row_pushed_twice_is_written_once(tmp_path: Path) -> None:
    run = begin(tmp_path, 1, workers=("w", "late"))
    (ref,) = leased(run.lease("w", 1))
    run.push("w", [row_of(ref)], [], NO_SECONDS)
    run.push("late", [row_of(ref)], [failure_of(ref, Reason.CORRUPT)], NO_SECONDS)
    assert run.finish().exit_status == 0
    assert rows_in(tmp_path) == [ref.video_id]
    assert failures_in(tmp_path) == []


def test_transient_failure_is_tried_again_until_final(tmp_path: Path) -> None:
    run = begin(tmp_path, 1, "limits.attempts=2", "limits.retry_seconds=0")
    for _ in range(2):
        (ref,) = leased(run.lease("w", 1))
        run.push("w", [], [failure_of(ref, Reason.READ_ERROR)], NO_SECONDS)
    assert run.finish().exit_status == 0
    assert [final for _, _, final in failures_in(tmp_path)] == [False, True]


def test_lost_worker_gives_everything_back_and_strikes_what_it_started(tmp_path: Path) -> None:
    run = begin(tmp_path, 2, workers=("a",))
    first, second = leased(run.lease("a", 2))
    join(run, "b")
    assert run.started("a", first.key)
    run.lost("a", "killed")
    run.lost("a", "reported twice")
    assert (run.status().counts.pending, run.status().counts.suspect) == (1, 1)
    assert not run.started("a", first.key)
    assert leased(run.lease("b", 2)) == [second]
    run.push("b", [row_of(second)], [], NO_SECONDS)
    assert leased(run.lease("b", 2)) == [first]
    run.push("b", [row_of(first)], [], NO_SECONDS)
    assert run.finish().exit_status == 0
    assert failures_in(tmp_path) == [(first.video_id, "crashed_worker", False)]


def test_poison_video_is_quarantined_after_three_strikes(tmp_path: Path) -> None:
    run = begin(tmp_path, 1, workers=("w0", "w1", "w2"))
    for worker_id in ("w0", "w1", "w2"):
        (ref,) = leased(run.lease(worker_id, 1))
        run.started(worker_id, ref.key)
        run.lost(worker_id, "signal 9")
    report = run.finish()
    assert (report.exit_status, report.counts.failed) == (0, 1)
    assert report.totals.failures_by_reason == {"crashed_worker": 1}
    assert [final for _, _, final in failures_in(tmp_path)] == [False, False, True]


def test_silent_worker_is_given_up(tmp_path: Path) -> None:
    run = begin(tmp_path, 1, "limits.worker_silence_seconds=0.000001")
    run.lease("w", 1)
    run.watch()
    status = run.status()
    assert status.lost_workers == ("w",)
    assert status.num_waiting == 1
    assert run.lease("w", 1).done, "a worker given up gets no more work"
    assert not run.push("w", [], [], NO_SECONDS)
    run.finish()


def test_nobody_is_given_up_for_the_time_the_coordinator_was_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path, 1)
    run.lease("w", 1)
    later = time.monotonic() + 100.0
    monkeypatch.setattr("pipeline.cluster.coordination.time.monotonic", lambda: later)
    run.watch()
    assert run.status().lost_workers == ()
    monkeypatch.undo()
    run.finish()


def test_worker_that_leaves_gives_back_without_suspicion(tmp_path: Path) -> None:
    run = begin(tmp_path, 2)
    for ref in leased(run.lease("w", 2)):
        run.started("w", ref.key)
    run.leave("w")
    assert (run.status().counts.pending, run.status().counts.suspect) == (2, 0)
    run.finish()


def test_sum_that_does_not_close_is_an_error(tmp_path: Path) -> None:
    run = begin(tmp_path, 2)
    refs = leased(run.lease("w", 2))
    run.push("w", [row_of(refs[0])], [], NO_SECONDS)
    report = run.finish()
    assert (report.exit_status, report.closes) == (3, False)
    assert rows_in(tmp_path) == [refs[0].video_id]


def test_interrupted_run_keeps_what_is_finished_and_resumes(tmp_path: Path) -> None:
    run = begin(tmp_path, 2)
    refs = leased(run.lease("w", 2))
    run.stop()
    assert not run.push("w", [row_of(refs[0])], [], NO_SECONDS)
    assert run.lease("w", 1).done
    assert run.finish(interrupted=True).exit_status == 130
    again = begin(tmp_path, 2)
    assert again.status().counts.skipped_indexed == 1
    again.finish()


def test_rows_that_come_after_the_end_are_not_counted(tmp_path: Path) -> None:
    """The last push of a killed worker may be under way: counted and not committed, it breaks the sum."""
    run = begin(tmp_path, 2)
    first, second = leased(run.lease("w", 2))
    assert run.push("w", [row_of(first)], [], WorkerSeconds())
    run.stop()
    assert run.finish(interrupted=True).counts.indexed == 1
    assert not run.push("w", [row_of(second)], [], WorkerSeconds())
    assert run.status().counts.indexed == run.status().totals.rows_committed == 1


def test_parts_are_committed_while_running(tmp_path: Path) -> None:
    run = begin(tmp_path, 4, "output.part_rows=2")
    refs = leased(run.lease("w", 4))
    run.push("w", [row_of(refs[0])], [], NO_SECONDS)
    run.tick()
    assert rows_in(tmp_path) == []
    run.push("w", [row_of(refs[1]), row_of(refs[2])], [], NO_SECONDS)
    run.tick()
    assert len(rows_in(tmp_path)) == 2
    run.push("w", [row_of(refs[3])], [], NO_SECONDS)
    assert run.finish().totals.rows_committed == 4


def test_failed_write_ends_the_run_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that raised may have reached the store: writing its rows again could double them."""
    run = begin(tmp_path, 2, "output.part_rows=1")
    refs = leased(run.lease("w", 2))
    write = OutputStore.write_rows

    def write_and_fail(store: OutputStore, rows: list[VideoRow]) -> None:
        write(store, rows)
        if rows:
            raise OSError("the answer got lost")

    monkeypatch.setattr(OutputStore, "write_rows", write_and_fail)
    run.push("w", [row_of(refs[0])], [], NO_SECONDS)
    run.tick()
    assert run.status().error == "the answer got lost"
    assert run.lease("w", 1).done
    run.push("w", [row_of(refs[1])], [], NO_SECONDS)
    assert run.finish().exit_status == 3
    monkeypatch.undo()
    assert rows_in(tmp_path) == [refs[0].video_id]
    again = begin(tmp_path, 2)
    assert leased(again.lease("w", 2)) == [refs[1]]
    again.finish()


def test_error_while_listing_ends_the_run_but_keeps_rows(tmp_path: Path) -> None:
    def listing() -> Iterator[VideoRef]:
        yield make_ref(0)
        raise UserError("no such folder")

    run = open_run(tmp_path)
    run.list_corpus(listing())
    status = run.status()
    assert (status.error, status.is_user_error, status.is_done) == ("no such folder", True, False)
    assert run.finish().exit_status == 3


def test_output_held_by_another_run_is_refused(tmp_path: Path) -> None:
    run = begin(tmp_path, 1)
    with pytest.raises(UserError, match="run-1"):
        open_run(tmp_path)
    run.finish()
    begin(tmp_path, 1).finish()


def test_refused_settings_leave_the_output_free(tmp_path: Path) -> None:
    test_complete_run(tmp_path)
    config = make_config(tmp_path, "frames.baseline=8")
    output_lock = OutputLock(str(tmp_path))
    other = Run("run-2", "f" * 16, "abc", os.getpid())
    refused = Coordination(config, other, OutputStore(str(tmp_path)), output_lock, Metrics())
    with pytest.raises(UserError, match="made with other settings"):
        refused.open()
    begin(tmp_path, 1).finish()


def test_idle_worker_stays_while_the_queue_may_feed_it(tmp_path: Path) -> None:
    run = begin(tmp_path, 1, workers=("a", "b"))
    assert leased(run.lease("a", 1))
    assert not run.lease("b", 1).done, "the other's video may come back"


def fail_all(output: Path, reasons: dict[int, Reason], num_videos: int = 4) -> None:
    """One run in which the given videos fail, each with its reason, and the others are indexed."""
    run = begin(output, num_videos, "limits.attempts=1")
    for ref in leased(run.lease("w", num_videos)):
        reason = reasons.get(number_of(ref))
        run.push(
            "w", [] if reason else [row_of(ref)], [failure_of(ref, reason)] if reason else [], NO_SECONDS
        )
    assert run.finish().exit_status == 0


def attempts_in(output: Path) -> list[tuple[str, int, bool]]:
    rows = OutputStore(str(output)).iter_failures(["video_id", "attempt", "is_final"])
    return [(row["video_id"], row["attempt"], row["is_final"]) for row in rows]


def test_heal_lists_only_what_failed_for_good_and_counts_nothing_else(tmp_path: Path) -> None:
    fail_all(tmp_path, {1: Reason.CORRUPT, 2: Reason.READ_ERROR})
    run = begin(tmp_path, 5, heal=())
    assert sorted(ref.video_id for ref in leased(run.lease("w", 9))) == ["video-1", "video-2"]
    run.push("w", [row_of(make_ref(1)), row_of(make_ref(2))], [], NO_SECONDS)
    report = run.finish()
    assert (report.exit_status, report.counts.listed, report.counts.indexed) == (0, 2, 2)
    assert report.heal == ()
    assert begin(tmp_path, 4, heal=()).status().counts.listed == 0, "rows have made up for them"


def test_heal_by_reason(tmp_path: Path) -> None:
    fail_all(tmp_path, {1: Reason.CORRUPT, 2: Reason.READ_ERROR})
    run = begin(tmp_path, 4, heal=("read_error", "not_found"))
    assert leased(run.lease("w", 9)) == [make_ref(2)]
    run.finish()


def test_healed_video_has_all_its_attempts_again_and_counts_on(tmp_path: Path) -> None:
    fail_all(tmp_path, {0: Reason.READ_ERROR}, num_videos=1)
    run = begin(tmp_path, 1, "limits.attempts=2", "limits.retry_seconds=0", heal=())
    for attempt in (2, 3):
        (item,) = run.lease("w", 1).lease.items  # type: ignore[union-attr]
        assert item.attempt == attempt
        failure = make_failure(0, reason=Reason.READ_ERROR, is_final=False, attempt=item.attempt)
        run.push("w", [], [failure], NO_SECONDS)
    assert run.finish().counts.failed == 1
    assert attempts_in(tmp_path) == [("video-0", 1, True), ("video-0", 2, False), ("video-0", 3, True)]


def test_attempts_count_across_runs(tmp_path: Path) -> None:
    for is_last in (False, False, True):
        run = begin(tmp_path, 1, "limits.attempts=3", "limits.retry_seconds=60")
        (item,) = run.lease("w", 1).lease.items  # type: ignore[union-attr]
        failure = make_failure(0, reason=Reason.READ_ERROR, is_final=False, attempt=item.attempt)
        run.push("w", [], [failure], NO_SECONDS)
        assert run.finish(interrupted=True).exit_status == (0 if is_last else 130)
    assert attempts_in(tmp_path) == [("video-0", 1, False), ("video-0", 2, False), ("video-0", 3, True)]
    assert begin(tmp_path, 1).status().counts.skipped_failed == 1


def test_strikes_count_across_runs(tmp_path: Path) -> None:
    for _ in range(2):
        run = begin(tmp_path, 1)
        (ref,) = leased(run.lease("w", 1))
        run.started("w", ref.key)
        run.lost("w", "signal 9")
        run.finish(interrupted=True)
    run = begin(tmp_path, 2)
    assert leased(run.lease("w", 2)) == [make_ref(1)], "the suspect is not given beside another"
    run.push("w", [row_of(make_ref(1))], [], NO_SECONDS)
    (ref,) = leased(run.lease("w", 2))
    run.started("w", ref.key)
    run.lost("w", "signal 9")
    assert run.finish().exit_status == 0
    assert [final for _, _, final in attempts_in(tmp_path)] == [False, False, True]


def test_failures_of_another_table_do_not_matter(tmp_path: Path) -> None:
    fail_all(tmp_path, {0: Reason.CORRUPT}, num_videos=1)
    details = [dict(row["details"]) for row in OutputStore(str(tmp_path)).iter_failures(["details"])]
    assert [each["table"] for each in details] == ["videos"]
    other = begin(tmp_path, 1, "output.table=other")
    assert leased(other.lease("w", 1)) == [make_ref(0)]
    other.finish()


def test_retry_that_waits_keeps_the_run_going(tmp_path: Path) -> None:
    run = begin(tmp_path, 1, "limits.retry_seconds=60")
    (ref,) = leased(run.lease("w", 1))
    run.push("w", [], [failure_of(ref, Reason.READ_ERROR)], NO_SECONDS)
    reply = run.lease("w", 1)
    assert (reply.lease, reply.done) == (None, False)
    status = run.status()
    assert (status.is_done, status.num_waiting, status.counts.waiting) == (False, 1, 1)
    report = run.finish(interrupted=True)
    assert (report.exit_status, report.counts.pending) == (130, 1)


@pytest.mark.parametrize(
    ("reason", "stage"), [(Reason.TOO_LARGE, "reading"), (Reason.INVALID_INPUT, "listing")]
)
def test_input_with_a_problem_fails_at_once(tmp_path: Path, reason: Reason, stage: str) -> None:
    run = open_run(tmp_path)
    run.list_corpus([make_ref(0, problem=Problem(reason, "row 7 has no number"))])
    assert run.status().is_done
    report = run.finish()
    assert (report.exit_status, report.counts.listed, report.counts.failed) == (0, 1, 1)
    (row,) = OutputStore(str(tmp_path)).iter_failures()
    assert (row["stage"], row["reason"], row["is_final"]) == (stage, reason.value, True)
    assert (row["message"], row["attempt"]) == ("row 7 has no number", 1)
    again = open_run(tmp_path)
    again.list_corpus([make_ref(0, problem=Problem(reason, "row 7 has no number"))])
    assert again.finish().counts.skipped_failed == 1


def test_id_listed_twice_ends_the_run(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.list_corpus([make_ref(0), make_ref(0, uri="elsewhere")])
    status = run.status()
    assert "'video-0' is listed twice, now as 'elsewhere'" in str(status.error)
    run.finish()


def test_listing_waits_while_enough_is_queued_and_goes_on(tmp_path: Path) -> None:
    run = open_run(tmp_path, "limits.queue_videos=2")
    lister = threading.Thread(target=lambda: run.list_corpus(map(make_ref, range(5))))
    lister.start()
    run.ready("w")
    num_indexed = 0
    while num_indexed < 5:
        refs = leased(run.lease("w", 1))
        assert run.status().counts.listed <= num_indexed + 2
        run.push("w", [row_of(ref) for ref in refs], [], NO_SECONDS)
        num_indexed += len(refs)
    lister.join(10.0)
    assert run.status().is_done
    assert run.finish().counts.indexed == 5


def test_stop_ends_the_wait_of_the_listing(tmp_path: Path) -> None:
    run = open_run(tmp_path, "limits.queue_videos=1")
    lister = threading.Thread(target=lambda: run.list_corpus(map(make_ref, range(9))))
    lister.start()
    run.stop()
    lister.join(10.0)
    assert not lister.is_alive()
    assert run.finish(interrupted=True).exit_status == 130


def test_stopped_run_starts_nothing_and_takes_back_what_is_held(tmp_path: Path) -> None:
    run = begin(tmp_path, 3)
    first, second, _ = leased(run.lease("w", 3))
    assert run.started("w", first.key)
    run.stop()
    assert not run.started("w", second.key)
    assert not run.push("w", [row_of(first)], [], NO_SECONDS)
    counts = run.finish(interrupted=True).counts
    assert (counts.indexed, counts.pending, counts.leased) == (1, 2, 0)


def test_stuck_model_ends_in_timeouts_and_at_last_in_a_final_failure(tmp_path: Path) -> None:
    run = begin(tmp_path, 2, "limits.generation_seconds=5", "limits.strikes=2", workers=("a",))
    stuck, other = leased(run.lease("a", 2))
    join(run, "b")
    run.started("a", stuck.key)
    run.started("a", other.key)
    assert run.push("a", [], [], WorkerSeconds(busy_now=4.9, busy_with=stuck.key))
    assert not run.push("a", [], [], WorkerSeconds(busy_now=5.1, busy_with=stuck.key))
    assert run.status().lost_workers == ("a",)
    assert (run.status().counts.pending, run.status().counts.suspect) == (1, 1), "the other is innocent"
    run.push("b", [row_of(ref) for ref in leased(run.lease("b", 2))], [], NO_SECONDS)
    (ref,) = leased(run.lease("b", 2))
    run.started("b", ref.key)
    run.push("b", [], [], WorkerSeconds(busy_now=6.0))
    assert run.finish().exit_status == 0
    assert failures_in(tmp_path) == [(stuck.video_id, "generation_timeout", final) for final in (False, True)]
    (row, _) = OutputStore(str(tmp_path)).iter_failures()
    assert "limits.generation_seconds=5" in row["message"]


def test_worker_that_was_lost_does_not_come_back(tmp_path: Path) -> None:
    run = begin(tmp_path, 1)
    run.lost("w", "killed")
    run.ready("w")
    assert run.lease("w", 1).done
    assert not run.started("w", make_ref(0).key)
    run.finish()


def test_error_of_the_store_in_a_heartbeat_is_borne_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path, 1)

    def failing(_: OutputLock) -> None:
        raise OSError("503 slow down")

    monkeypatch.setattr(OutputLock, "heartbeat", failing)
    run.heartbeat()
    assert run.status().error is None
    later = time.monotonic() + 41.0
    monkeypatch.setattr("pipeline.cluster.committing.time.monotonic", lambda: later)
    run.heartbeat()
    assert run.status().error == "503 slow down"
    monkeypatch.undo()
    run.finish()


def test_lost_lock_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path, 1)

    def taken_over(_: OutputLock) -> None:
        raise LockLostError("taken over")

    monkeypatch.setattr(OutputLock, "heartbeat", taken_over)
    run.heartbeat()
    assert run.status().error == "taken over"
    run.finish()


def test_heartbeat_after_the_end_is_no_error(tmp_path: Path) -> None:
    run = begin(tmp_path, 0)
    assert run.finish().exit_status == 0
    run.heartbeat()
    run.tick()
    run.lost("w", "killed by the driver")
    assert run.status().error is None
    begin(tmp_path, 0).finish()


def test_no_more_work_is_given_out_while_the_store_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.committing._MAX_WAITING_ROWS", 1)
    monkeypatch.setattr("pipeline.cluster.committing._MAX_WAITING_PARTS", 1)
    run = begin(tmp_path, 3, "output.part_rows=1")
    run.push("w", [row_of(ref) for ref in leased(run.lease("w", 2))], [], NO_SECONDS)
    reply = run.lease("w", 1)
    assert (reply.lease, reply.done) == (None, False)
    run.tick()
    assert run.lease("w", 1).lease is not None
    run.finish()


def test_spare_workers_leave_in_time_and_as_many_stay_as_videos_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cluster.fleet._IDLE_SECONDS", -1.0)
    run = begin(tmp_path, 1, "limits.retry_seconds=60", workers=("a", "b"))
    (ref,) = leased(run.lease("a", 1))
    run.push("a", [], [failure_of(ref, Reason.READ_ERROR)], NO_SECONDS)
    assert run.lease("a", 1).done, "two are idle, one video waits"
    run.leave("a")
    assert not run.lease("b", 1).done
    run.finish()


def test_a_crowd_of_workers_leaves_no_video_behind() -> None:
    """Retries, crashes, commits and a listing that has to wait, all at once; the sum closes."""
    settings = ("limits.retry_seconds=0.01", "limits.queue_videos=500", "metrics.port=null")
    figures = measure(Case(3000, 20, pickled=True, crash_share=0.02), settings)
    assert figures["indexed"] + figures["failed"] == 3000
    assert figures["transient_failures"] > 0
    assert figures["crashed_workers"] > 0


def test_metrics_follow(tmp_path: Path) -> None:
    run = begin(tmp_path, 2, "metrics.port=0")
    ref, _ = leased(run.lease("w", 2))
    run.push("w", [row_of(ref)], [], WorkerSeconds(gpu_wait=1.0, gpu_busy=3.0))
    run.watch()
    from urllib.request import urlopen

    assert run.metrics_url is not None
    text = urlopen(run.metrics_url, timeout=10).read().decode()
    assert 'flashvid_videos_total{status="indexed"} 1.0' in text
    assert 'flashvid_queue_videos{state="leased"} 1.0' in text
    assert "flashvid_gpu_wait_seconds_total 1.0" in text
    assert run.finish().totals.gpu_wait_share == 0.25


def test_one_message_hands_over_asks_and_begins(tmp_path: Path) -> None:
    """Results count first, so that a suspect finds empty hands; of what it gets, only ``room`` is begun."""
    run = begin(tmp_path, 3, workers=("a", "b"))
    first = leased(run.lease("a", 1))
    run.started("a", first[0].key)
    run.lost("a", "killed")
    got = leased(run.exchange("b", Message(wanted=2, room=1)).work or LeaseReply(None))
    assert len(got) == 2
    reply = run.exchange("b", Message(rows=tuple(map(row_of, got)), wanted=2, room=1))
    assert reply.go_on
    assert leased(reply.work or LeaseReply(None)) == first, "the suspect"
    run.lost("b", "killed")
    join(run, "c")
    again = leased(run.exchange("c", Message(wanted=1)).work or LeaseReply(None))
    run.lost("c", "killed")
    assert again == first, "the one it had begun"
    run.finish()
    strikes = [video_id for video_id, _, _ in failures_in(tmp_path)]
    assert strikes == [first[0].video_id] * 2, "c had it, but had not begun it"


def test_a_message_may_begin_only_what_the_worker_holds(tmp_path: Path) -> None:
    run = begin(tmp_path, 2, workers=("a", "b"))
    (ref,) = leased(run.lease("a", 1))
    assert run.exchange("a", Message(starting=(ref.key,))) == Reply(True)
    assert run.exchange("b", Message(starting=(ref.key,))) == Reply(True, refused=(ref.key,))
    run.stop()
    assert run.exchange("a", Message(starting=(ref.key,), wanted=1)) == Reply(
        False, refused=(ref.key,), work=LeaseReply(None, done=True)
    )
    run.finish(interrupted=True)


def test_a_video_that_its_worker_has_not_named_for_long_goes_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path, 2, workers=("a",))
    dropped, kept = leased(run.lease("a", 2))
    join(run, "b")
    now = time.monotonic()
    for seconds in (50.0, 70.0, 115.0):
        assert run.status().counts.leased == 2, "a list may be older than the lease, and long under way"
        monkeypatch.setattr("pipeline.cluster.coordination.time.monotonic", lambda at=now + seconds: at)
        assert run.push("a", [], [], NO_SECONDS, [kept.key])
    assert (run.status().counts.leased, run.status().counts.suspect) == (1, 1)
    assert leased(run.lease("b", 2)) == [dropped]
    monkeypatch.undo()
    run.finish()
    assert failures_in(tmp_path) == [(dropped.video_id, "crashed_worker", False)]


def test_of_spare_workers_that_ask_at_once_as_many_stay_as_videos_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has been told to go does not count as one that stays, though its farewell is on its way."""
    monkeypatch.setattr("pipeline.cluster.fleet._IDLE_SECONDS", -1.0)
    run = begin(tmp_path, 1, "limits.retry_seconds=60", workers=("a", "b", "c"))
    (ref,) = leased(run.lease("a", 1))
    run.push("a", [], [failure_of(ref, Reason.READ_ERROR)], NO_SECONDS)
    assert [run.lease(name, 1).done for name in ("a", "b", "c")] == [True, True, False]
    assert run.lease("a", 1).done, "it stays with that"
    run.finish()


def test_why_workers_were_lost_is_told_in_the_report(tmp_path: Path) -> None:
    run = begin(tmp_path, 0, workers=("a", "b", "c"))
    run.lost("a", "no checkpoint here")
    run.lost("b", "no checkpoint here")
    run.lost("b", "told twice")
    report = run.finish()
    assert report.worker_losses == {"no checkpoint here": 2}
    assert RunReport.from_json(report.to_json()) == report


def test_the_last_videos_are_shared_out(tmp_path: Path) -> None:
    """What a worker keeps for later, nobody else can take, however long the one takes that it is at."""
    run = begin(tmp_path, 6, workers=("a", "b"))
    assert [len(leased(run.lease(name, 4))) for name in ("a", "b", "a", "b")] == [3, 1, 1, 1]
    run.finish()
