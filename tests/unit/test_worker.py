"""The worker's loop over the real coordination; decoding and the model are stand-ins for neighbours."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pipeline.coordination import Coordination
from pipeline.errors import DecoderStartError
from pipeline.ledger import Key
from pipeline.protocol import LeaseReply, Run, WorkerSeconds
from pipeline.records import Failure, Frames, Reason, Stage, VideoError, VideoRef, VideoRow
from pipeline.worker import Worker
from tests.unit.samples import FINGERPRINT, make_ref, make_row
from tests.unit.test_coordination import begin, failures_in, rows_in

RUN = Run("run-1", FINGERPRINT, "abc", os.getpid())


@dataclass
class Decoded:
    ref: VideoRef
    frames: Frames | None = None
    error: VideoError | None = None


class Pool:
    """Decodes at once, two videos at a time; refuses those given as bad."""

    def __init__(self, bad: dict[str, Reason] | None = None) -> None:
        self.bad = bad or {}
        self.waiting: list[VideoRef] = []
        self.most = 0
        self.size = 2

    @property
    def has_room(self) -> bool:
        return len(self.waiting) < self.size

    def submit(self, ref: VideoRef) -> None:
        self.waiting.append(ref)
        self.most = max(self.most, len(self.waiting))

    def get(self, timeout_seconds: float) -> Decoded | None:
        if not self.waiting:
            time.sleep(timeout_seconds)
            return None
        ref = self.waiting.pop(0)
        reason = self.bad.get(ref.video_id)
        if reason is not None:
            return Decoded(ref, error=VideoError(Stage.DECODING, reason, "bad"))
        data = np.zeros((2, 28, 28, 3), np.uint8)
        return Decoded(ref, Frames(data, np.array([0.0, 1.0]), 2.0, 4, 2.0, 28, 28, "h264", "pyav", 0.1))


@dataclass
class Indexer:
    """Makes a row, or does what it is told to do for a video."""

    before: Callable[[VideoRef], None] = lambda _ref: None
    seen: list[tuple[str, int]] = field(default_factory=list)

    def index(self, ref: VideoRef, frames: Frames, attempt: int) -> VideoRow:
        self.seen.append((ref.video_id, attempt))
        self.before(ref)
        return make_row(int(ref.video_id.removeprefix("video-")), attempt=attempt)


def make_worker(run: Coordination, pool: Pool, indexer: Indexer, max_video_bytes: int = 10**6) -> Worker:
    return Worker(
        "w", RUN, run, indexer, pool, lease_videos=4, decode_ahead=2, max_video_bytes=max_video_bytes
    )


def fail_at(video_id: str, error: Exception) -> Callable[[VideoRef], None]:
    def before(ref: VideoRef) -> None:
        if ref.video_id == video_id:
            raise error

    return before


def test_works_through_a_corpus_and_leaves(tmp_path: Path) -> None:
    run, pool = begin(tmp_path, 7), Pool(bad={"video-3": Reason.CORRUPT})
    pool.size = 9
    make_worker(run, pool, Indexer()).work()
    assert run.status().workers == {"left": 1}
    report = run.finish()
    assert report.exit_status == 0
    assert rows_in(tmp_path) == [f"video-{n}" for n in (0, 1, 2, 4, 5, 6)]
    assert failures_in(tmp_path) == [("video-3", "corrupt", True)]
    assert pool.most == 2, "decodes ahead, but no more than asked for"


def test_a_videos_error_is_its_failure_and_the_next_goes_on(tmp_path: Path) -> None:
    run = begin(tmp_path, 3)
    error = VideoError(Stage.GENERATION, Reason.GENERATION_FAILED, "ValueError: no")
    make_worker(run, Pool(), Indexer(fail_at("video-1", error))).work()
    assert run.finish().exit_status == 0
    assert failures_in(tmp_path) == [("video-1", "generation_failed", True)]
    assert rows_in(tmp_path) == ["video-0", "video-2"]


def test_transient_failure_comes_back_with_the_next_attempt(tmp_path: Path) -> None:
    run, left = begin(tmp_path, 1), [VideoError(Stage.GENERATION, Reason.OUT_OF_MEMORY, "once")]

    def once(_ref: VideoRef) -> None:
        if left:
            raise left.pop()

    indexer = Indexer(once)
    make_worker(run, Pool(), indexer).work()
    assert indexer.seen == [("video-0", 1), ("video-0", 2)]
    assert rows_in_finished(run, tmp_path) == ["video-0"]


def rows_in_finished(run: Coordination, output: Path) -> list[str]:
    assert run.finish().exit_status == 0
    return rows_in(output)


def test_too_large_video_is_not_read(tmp_path: Path) -> None:
    run, indexer = begin(tmp_path, 2), Indexer()
    make_worker(run, Pool(), indexer, max_video_bytes=1000).work()
    assert run.finish().exit_status == 0
    assert indexer.seen == [("video-0", 1)]
    assert failures_in(tmp_path) == [("video-1", "too_large", True)]


def test_broken_device_ends_the_loop(tmp_path: Path) -> None:
    """Every later video would fail too; the process must end, and the video becomes a suspect."""
    run = begin(tmp_path, 2)
    worker = make_worker(run, Pool(), Indexer(fail_at("video-1", RuntimeError("device-side assert"))))
    with pytest.raises(RuntimeError, match="device-side assert"):
        worker.work()
    run.lost("w", "died")
    assert run.status().counts.suspect == 2, "the one at the model and the one being decoded"
    run.finish()


def test_a_decoder_that_does_not_start_is_no_videos_fault(tmp_path: Path) -> None:
    """Else a broken installation would quarantine a whole corpus, video by video."""

    class Broken(Pool):
        def get(self, timeout_seconds: float) -> Decoded | None:
            raise DecoderStartError("the decode process does not start")

    run = begin(tmp_path, 3)
    with pytest.raises(DecoderStartError):
        make_worker(run, Broken(), Indexer()).work()
    run.lost("w", "worker died")
    counts = run.status().counts
    assert (counts.pending, counts.suspect, counts.leased, counts.failed) == (3, 0, 0, 0)


def test_stops_at_once_when_told_and_gives_back(tmp_path: Path) -> None:
    run = begin(tmp_path, 6)
    stop = threading.Event()

    def stop_at_first(_ref: VideoRef) -> None:
        if not stop.is_set():
            run.stop()
            stop.set()
            time.sleep(1.5)  # the outbox hears of it meanwhile

    indexer = Indexer(stop_at_first)
    make_worker(run, Pool(), indexer).work()
    assert len(indexer.seen) == 1
    report = run.finish(interrupted=True)
    assert (report.exit_status, report.counts.indexed, report.counts.pending) == (130, 1, 5)
    assert len(rows_in(tmp_path)) == 1


def test_heartbeats_and_seconds_flow_while_the_model_is_busy(tmp_path: Path) -> None:
    run = begin(tmp_path, 1, "limits.worker_silence_seconds=1.5")

    def busy(_ref: VideoRef) -> None:
        for _ in range(5):
            time.sleep(0.5)
            run.tick()

    make_worker(run, Pool(), Indexer(busy)).work()
    assert run.status().workers == {"left": 1}, "never taken for silent"
    totals = run.finish().totals
    assert totals.gpu_busy_seconds > 2.4
    assert totals.gpu_wait_seconds < 1.0


class Gone:
    """A coordinator that dies after the first lease."""

    def __init__(self, run: Coordination) -> None:
        self._run = run

    def register(self, worker_id: str) -> None: ...

    def ready(self, worker_id: str) -> None: ...

    def lease(self, worker_id: str, max_videos: int) -> LeaseReply:
        return self._run.lease(worker_id, max_videos)

    def started(self, worker_id: str, key: Key) -> bool:
        return self._run.started(worker_id, key)

    def push(
        self, worker_id: str, rows: Sequence[VideoRow], failures: Sequence[Failure], seconds: WorkerSeconds
    ) -> bool:
        if rows:
            raise ConnectionError("gone")
        return True

    def leave(self, worker_id: str) -> None:
        raise AssertionError("cannot take leave of a coordinator that is gone")


def test_lost_coordinator_ends_the_worker(tmp_path: Path) -> None:
    run = begin(tmp_path, 6)
    worker = Worker(
        "w",
        RUN,
        Gone(run),
        Indexer(lambda _ref: time.sleep(0.5)),
        Pool(),
        lease_videos=4,
        decode_ahead=2,
        max_video_bytes=10**6,
    )
    with pytest.raises(ConnectionError, match="gone"):
        worker.work()
    run.finish()


def test_sizes_decide_the_order(tmp_path: Path) -> None:
    """Large videos first, so that the tail is short."""
    run, indexer = begin(tmp_path, 0), Indexer()
    run.list_corpus([make_ref(0, size_bytes=1), make_ref(1, size_bytes=3), make_ref(2, size_bytes=2)])
    make_worker(run, Pool(), indexer).work()
    assert [video_id for video_id, _ in indexer.seen] == ["video-1", "video-2", "video-0"]
    run.finish()
