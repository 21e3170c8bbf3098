"""The worker's loop over the real coordination; decoding and the model are stand-ins for neighbours."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pipeline.cluster import outbox
from pipeline.cluster.backlog import LeasedVideo
from pipeline.cluster.coordination import Coordination
from pipeline.cluster.protocol import Message, Reply, Run, WorkerSeconds
from pipeline.cluster.worker import Worker
from pipeline.errors import DecoderStartError, Reason, Stage, VideoError
from pipeline.output.history import Key
from pipeline.output.store import OutputStore
from pipeline.records import Frames, Segment, VideoRef, VideoRow, Window
from tests.unit.cluster.test_coordination import begin, failures_in, open_run, rows_in
from tests.unit.samples import FINGERPRINT, make_ref, make_row

RUN = Run("run-1", FINGERPRINT, "abc", os.getpid())


@dataclass
class Decoded:
    ref: VideoRef
    frames: Frames | None = None
    error: VideoError | None = None
    window: Window | None = None


class Pool:
    """Decodes at once, two videos at a time and ``total`` windows each, a window of every video in turn.

    Refuses videos given as bad, at the given window.
    """

    def __init__(self, bad: dict[str, Reason] | None = None, total: int = 1, bad_at: int = 0) -> None:
        self.bad, self.total, self.bad_at = bad or {}, total, bad_at
        self.waiting: list[VideoRef] = []
        self.done: dict[Key, int] = {}
        self.cancelled: list[str] = []
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
        number = self.done.pop(ref.key, 0)
        reason = self.bad.get(ref.video_id)
        if reason is not None and number == self.bad_at:
            return Decoded(ref, error=VideoError(Stage.DECODING, reason, "bad"))
        if number + 1 < self.total:
            self.done[ref.key] = number + 1
            self.waiting.append(ref)
        data = np.zeros((2, 28, 28, 3), np.uint8)
        frames = Frames(data, np.array([0.0, 1.0]), 2.0, 4, 2.0, 28, 28, "h264", "pyav", 0.1)
        return Decoded(ref, frames, None, Window(number, self.total, float(number), number + 1.0))

    def cancel(self, ref: VideoRef) -> None:
        self.cancelled.append(ref.video_id)
        self.waiting.remove(ref)
        self.done.pop(ref.key)


@dataclass
class Indexer:
    """Makes a row of every window it was given, or does what it is told to do for a window of a video."""

    before: Callable[[VideoRef], None] = lambda _ref: None
    seen: list[tuple[str, int]] = field(default_factory=list)
    order: list[tuple[str, int]] = field(default_factory=list)

    def start(self, ref: VideoRef, attempt: int) -> Job:
        self.seen.append((ref.video_id, attempt))
        return Job(self, ref, attempt)


@dataclass
class Job:
    indexer: Indexer
    ref: VideoRef
    attempt: int
    windows: list[Window] = field(default_factory=list)

    def add(self, frames: Frames, window: Window) -> None:
        self.windows.append(window)
        self.indexer.order.append((self.ref.video_id, window.number))
        self.indexer.before(self.ref)

    def finish(self) -> VideoRow:
        numbers = [window.number for window in self.windows]
        assert numbers == list(range(self.windows[-1].total)), "a row of a part of a video"
        segments = tuple(Segment(one.start_seconds, one.end_seconds, "", ()) for one in self.windows)
        number = int(self.ref.video_id.removeprefix("video-"))
        return make_row(number, attempt=self.attempt, segments=segments)


def make_worker(run: Coordination, pool: Pool, indexer: Indexer) -> Worker:
    return Worker("w", RUN, run, indexer, pool, lease_videos=4, decode_ahead=2)


class Counting:
    """The real coordination, with a count of what it is asked."""

    def __init__(self, run: Coordination) -> None:
        self._run = run
        self.messages: list[Message] = []

    def register(self, worker_id: str) -> None: ...

    def ready(self, worker_id: str) -> None: ...

    def exchange(self, worker_id: str, message: Message) -> Reply:
        self.messages.append(message)
        return self._run.exchange(worker_id, message)

    def leave(self, worker_id: str) -> None:
        self._run.leave(worker_id)


class Heard(Counting):
    """And a way to wait for what the worker's heartbeats make of what they are told."""

    def __init__(self, run: Coordination, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(run)
        monkeypatch.setattr(outbox, "PUSH_SECONDS", 0.05)
        self._told, self._heard = threading.Event(), threading.Event()

    def exchange(self, worker_id: str, message: Message) -> Reply:
        if self._told.is_set():
            self._heard.set()  # the answer before this message has been looked at
        reply = super().exchange(worker_id, message)
        if not reply.go_on:
            self._told.set()
        return reply

    @property
    def said(self) -> list[WorkerSeconds]:
        return [message.seconds for message in self.messages]

    def wait_until_heard(self) -> None:
        """Until the worker knows that it was told to stop."""
        assert self._heard.wait(60)

    def worker(self, indexer: Indexer, pool: Pool) -> Worker:
        return Worker("w", RUN, self, indexer, pool, lease_videos=4, decode_ahead=2)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    run = begin(tmp_path, 1, "limits.retry_seconds=0")
    left = [VideoError(Stage.GENERATION, Reason.OUT_OF_MEMORY, "once")]

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


def test_windows_of_several_videos_interleave_and_each_is_one_row(tmp_path: Path) -> None:
    run, indexer = begin(tmp_path, 3), Indexer()
    make_worker(run, Pool(total=3), indexer).work()
    assert rows_in_finished(run, tmp_path) == ["video-0", "video-1", "video-2"]
    first = [video_id for video_id, _ in indexer.order[:4]]
    assert len(set(first)) == 2, "two videos were under way at once"
    stored = OutputStore(str(tmp_path)).iter_rows(["video_id", "segments"])
    assert all(len(row["segments"]) == 3 for row in stored)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_window_that_cannot_be_decoded_fails_the_whole_video(tmp_path: Path, at: int) -> None:
    run = begin(tmp_path, 3)
    pool, indexer = Pool({"video-1": Reason.CORRUPT}, total=3, bad_at=at), Indexer()
    make_worker(run, pool, indexer).work()
    assert run.finish().exit_status == 0
    assert rows_in(tmp_path) == ["video-0", "video-2"]
    assert failures_in(tmp_path) == [("video-1", "corrupt", True)]
    assert pool.cancelled == [], "the pool knows"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_window_that_cannot_be_answered_cancels_the_others(tmp_path: Path, at: int) -> None:
    run, pool = begin(tmp_path, 3), Pool(total=3)

    def fail(ref: VideoRef) -> None:
        if (ref.video_id, at) == ("video-1", indexer.order[-1][1]):
            raise VideoError(Stage.GENERATION, Reason.GENERATION_FAILED, "no")

    indexer = Indexer(fail)
    indexer.before = fail
    make_worker(run, pool, indexer).work()
    assert run.finish().exit_status == 0
    assert rows_in(tmp_path) == ["video-0", "video-2"]
    assert failures_in(tmp_path) == [("video-1", "generation_failed", True)]
    assert pool.cancelled == (["video-1"] if at < 2 else []), "after the last window nothing is left"
    assert [number for video_id, number in indexer.order if video_id == "video-1"] == list(range(at + 1))


def test_a_failed_summary_fails_the_video(tmp_path: Path) -> None:
    class NoSummary(Job):
        def finish(self) -> VideoRow:
            raise VideoError(Stage.GENERATION, Reason.GENERATION_FAILED, "no summary")

    run, pool, indexer = begin(tmp_path, 1), Pool(total=2), Indexer()
    indexer.start = lambda ref, attempt: NoSummary(indexer, ref, attempt)  # type: ignore[method-assign]
    make_worker(run, pool, indexer).work()
    assert run.finish().exit_status == 0
    assert failures_in(tmp_path) == [("video-0", "generation_failed", True)]
    assert pool.cancelled == []


def test_told_to_stop_in_the_middle_of_a_video_gives_it_back_without_half_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pool = begin(tmp_path, 2), Pool(total=100)
    heard = Heard(run, monkeypatch)

    def stop(_ref: VideoRef) -> None:
        if len(indexer.order) == 3:
            run.stop()
            heard.wait_until_heard()

    indexer = Indexer()
    indexer.before = stop
    heard.worker(indexer, pool).work()
    assert len(indexer.order) == 3, "the call under way was the last"
    report = run.finish(interrupted=True)
    assert (report.counts.indexed, report.counts.failed, report.counts.pending) == (0, 0, 2)
    assert rows_in(tmp_path) == []


def test_told_to_stop_while_waiting_for_frames_the_model_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Pool):
        def get(self, timeout_seconds: float) -> Decoded | None:
            run.stop()
            heard.wait_until_heard()
            return super().get(timeout_seconds)

    run, indexer = begin(tmp_path, 2), Indexer()
    heard = Heard(run, monkeypatch)
    heard.worker(indexer, Slow()).work()
    assert indexer.order == []
    assert run.finish(interrupted=True).counts.pending == 2


def test_pushes_say_how_long_the_model_has_been_at_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path, 1)
    heard = Heard(run, monkeypatch)

    def busy(_ref: VideoRef) -> None:
        wait_until(lambda: sum(bool(seconds.busy_now) for seconds in heard.said) >= 2)

    heard.worker(Indexer(busy), Pool()).work()
    during = [seconds for seconds in heard.said if seconds.busy_now]
    took = sum(seconds.gpu_busy for seconds in heard.said)
    assert during[0].busy_now < during[-1].busy_now <= took
    assert {seconds.busy_with for seconds in during} == {make_ref(0).key}
    assert (heard.said[-1].busy_now, heard.said[-1].busy_with) == (0.0, None)
    run.finish()


def test_a_model_that_hangs_is_given_up_and_the_video_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker cannot know; what it says of itself lets the coordination end it."""
    run = begin(tmp_path, 1, "limits.generation_seconds=0.5", "limits.strikes=1")

    def hang(_ref: VideoRef) -> None:
        wait_until(lambda: run.status().workers == {"lost": 1})

    Heard(run, monkeypatch).worker(Indexer(hang), Pool()).work()
    assert run.status().workers == {"lost": 1}
    run.finish()
    assert failures_in(tmp_path) == [("video-0", "generation_timeout", True)]
    assert rows_in(tmp_path) == [], "what it found in the end comes too late"


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


def test_stops_at_once_when_told_and_gives_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path, 6)
    heard = Heard(run, monkeypatch)

    def stop(_ref: VideoRef) -> None:
        run.stop()
        heard.wait_until_heard()

    indexer = Indexer(stop)
    heard.worker(indexer, Pool()).work()
    assert len(indexer.seen) == 1
    report = run.finish(interrupted=True)
    assert (report.exit_status, report.counts.indexed, report.counts.pending) == (130, 1, 5)
    assert len(rows_in(tmp_path)) == 1


def test_heartbeats_and_seconds_flow_while_the_model_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path, 1, "limits.worker_silence_seconds=2")

    def busy(_ref: VideoRef) -> None:
        for _ in range(5):
            time.sleep(0.5)
            run.watch()

    Heard(run, monkeypatch).worker(Indexer(busy), Pool()).work()
    assert run.status().workers == {"left": 1}, "never taken for silent"
    totals = run.finish().totals
    assert totals.gpu_busy_seconds > 2.4
    assert totals.gpu_wait_seconds < totals.gpu_busy_seconds


class Gone:
    """A coordinator that dies after the first lease."""

    def __init__(self, run: Coordination) -> None:
        self._run = run

    def register(self, worker_id: str) -> None: ...

    def ready(self, worker_id: str) -> None: ...

    def exchange(self, worker_id: str, message: Message) -> Reply:
        if message.rows:
            raise ConnectionError("gone")
        return self._run.exchange(worker_id, message)

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
    )
    with pytest.raises(ConnectionError, match="gone"):
        worker.work()
    run.finish()


def test_sizes_decide_the_order(tmp_path: Path) -> None:
    """Large videos first, so that the tail is short."""
    run, indexer = open_run(tmp_path), Indexer()
    run.register("w")
    run.ready("w")
    run.list_corpus([make_ref(0, size_bytes=1), make_ref(1, size_bytes=3), make_ref(2, size_bytes=2)])
    make_worker(run, Pool(), indexer).work()
    assert [video_id for video_id, _ in indexer.seen] == ["video-1", "video-2", "video-0"]
    run.finish()


def test_one_message_for_each_video(tmp_path: Path) -> None:
    run = begin(tmp_path, 40)
    counting = Counting(run)
    Worker("w", RUN, counting, Indexer(), Pool(), lease_videos=4, decode_ahead=2).work()
    assert len(rows_in_finished(run, tmp_path)) == 40
    said = [message for message in counting.messages if message.starting or message.room]
    assert len(said) <= 42, "40 videos, and that there are no more"
    assert len(counting.messages) - len(said) <= 4, "the first heartbeat, and the last rows"


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("number", [1, 2, 3, 6])
def test_what_was_touched_has_been_announced_and_nothing_else(tmp_path: Path, number: int) -> None:
    """A worker that is killed as it begins with a video is struck for all it has begun, that one included."""

    class Deadly(Pool):
        def submit(self, ref: VideoRef) -> None:
            super().submit(ref)
            touched.append(ref.video_id)
            if len(touched) == number:
                raise Killed

    run, touched = begin(tmp_path, 9), []
    with pytest.raises(Killed):
        make_worker(run, Deadly(), Indexer()).work()
    run.lost("w", "signal 9")
    report = run.finish()
    done, struck = set(rows_in(tmp_path)), {video_id for video_id, _, _ in failures_in(tmp_path)}
    assert struck | done == set(touched)
    assert touched[-1] in struck
    assert report.counts.suspect == len(struck)


def test_a_video_that_a_worker_drops_does_not_keep_the_run_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(Worker):
        def _begin_leased(self) -> LeasedVideo | None:
            if len(self._leased) == 3 and not dropped:
                dropped.append(self._leased.popleft().ref.video_id)
            return super()._begin_leased()

    monkeypatch.setattr("pipeline.cluster.outbox.TELL_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.cluster.coordination.TELL_SECONDS", 0.1)
    run, dropped = begin(tmp_path, 5, "limits.worker_silence_seconds=0.3"), []
    Forgetful("w", RUN, run, Indexer(), Pool(), lease_videos=4, decode_ahead=2).work()
    assert rows_in_finished(run, tmp_path) == [f"video-{number}" for number in range(5)]
    assert failures_in(tmp_path) == [(dropped[0], "crashed_worker", False)]
