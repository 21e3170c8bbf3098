"""The coordinator without Ray, over a real output: exactly once, nothing unaccounted for, how a run ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import JobConfig, load_config
from pipeline.coordination import Coordination
from pipeline.lock import OutputLock
from pipeline.metrics import Metrics
from pipeline.protocol import LeaseReply, Run, WorkerSeconds
from pipeline.records import Failure, Reason, UserError, VideoRef, VideoRow
from pipeline.store import OutputStore
from tests.unit.samples import FINGERPRINT, make_failure, make_ref, make_row

NO_SECONDS = WorkerSeconds()


def make_config(output: Path, *overrides: str) -> JobConfig:
    required = ("corpus.uri=/videos", f"output.uri={output}", "model.name=demo/model", "metrics.port=null")
    return load_config(None, (*required, *overrides))


def open_run(output: Path, *overrides: str) -> Coordination:
    config = make_config(output, *overrides)
    run = Run("run-1", FINGERPRINT, "abc", os.getpid())
    output_lock = OutputLock(str(output))
    store = OutputStore(str(output), config.output.table, fence=output_lock.check)
    coordination = Coordination(config, run, store, output_lock, Metrics())
    coordination.open()
    return coordination


def begin(output: Path, num_videos: int, *overrides: str, workers: tuple[str, ...] = ("w",)) -> Coordination:
    coordination = open_run(output, *overrides)
    coordination.list_corpus(map(make_ref, range(num_videos)))
    for worker_id in workers:
        coordination.register(worker_id)
        coordination.ready(worker_id)
    return coordination


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
    run = begin(tmp_path, 1, "limits.attempts=2")
    for _ in range(2):
        (ref,) = leased(run.lease("w", 1))
        run.push("w", [], [failure_of(ref, Reason.READ_ERROR)], NO_SECONDS)
    assert run.finish().exit_status == 0
    assert [final for _, _, final in failures_in(tmp_path)] == [False, True]


def test_lost_worker_gives_everything_back_and_strikes_what_it_started(tmp_path: Path) -> None:
    run = begin(tmp_path, 2, workers=("a", "b"))
    first, second = leased(run.lease("a", 2))
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
    run.tick()
    status = run.status()
    assert status.lost_workers == ("w",)
    assert status.num_waiting == 1
    assert run.lease("w", 1).done, "a worker given up gets no more work"
    assert not run.push("w", [], [], NO_SECONDS)
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
    begin(tmp_path, 1).finish()
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


def test_metrics_follow(tmp_path: Path) -> None:
    run = begin(tmp_path, 2, "metrics.port=0")
    ref, _ = leased(run.lease("w", 2))
    run.push("w", [row_of(ref)], [], WorkerSeconds(gpu_wait=1.0, gpu_busy=3.0))
    run.tick()
    from urllib.request import urlopen

    assert run.metrics_url is not None
    text = urlopen(run.metrics_url, timeout=10).read().decode()
    assert 'flashvid_videos_total{status="indexed"} 1.0' in text
    assert 'flashvid_queue_videos{state="leased"} 1.0' in text
    assert "flashvid_gpu_wait_seconds_total 1.0" in text
    assert run.finish().totals.gpu_wait_share == 0.25
