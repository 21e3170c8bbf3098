"""A worker's loop without Ray: lease, decode ahead, run the model, hand rows over, until all work is done."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import DecoderStartError
from pipeline.ledger import Key, LeasedVideo
from pipeline.protocol import CoordinatorHandle, Run, WorkerSeconds
from pipeline.records import Failure, Frames, Reason, Stage, VideoError, VideoRef, VideoRow, Window

if TYPE_CHECKING:
    from pipeline.decoding import Decoded

__all__ = ["BuildsRow", "DecodesVideos", "IndexesVideos", "Outbox", "Worker", "use_threads"]

_PUSH_SECONDS = 1.0  # also the heartbeat
_POLL_SECONDS = 0.1


class DecodesVideos(Protocol):
    """What the loop needs of a DecodePool."""

    @property
    def has_room(self) -> bool:
        """Whether another video may be submitted within the bound on decoded bytes."""
        ...

    def submit(self, ref: VideoRef) -> None:
        """Begin to decode."""

    def get(self, timeout_seconds: float) -> Decoded | None:
        """The next decoded window, those of one video in their order; None where none is ready in time.

        A video ends with its last window, or with an error.
        """
        ...

    def cancel(self, ref: VideoRef) -> None:
        """Drop what is left of a video that is of no use any more, and free its memory."""


class BuildsRow(Protocol):
    """What the loop needs of a VideoJob: one video that is under way."""

    def add(self, frames: Frames, window: Window) -> None:
        """Answer the next window. Raises VideoError; anything else means that the process is of no use."""

    def finish(self) -> VideoRow:
        """The row, after the last window. Raises as ``add`` does."""
        ...


class IndexesVideos(Protocol):
    """What the loop needs of a VideoIndexer."""

    def start(self, ref: VideoRef, attempt: int) -> BuildsRow:
        """Begin a video; several may be under way at once."""
        ...


class Outbox:
    """Results on their way to the coordinator, pushed about once a second from a thread of its own.

    A push without results is the heartbeat, so it also goes out while the model works on a long video.
    """

    def __init__(self, coordinator: CoordinatorHandle, worker_id: str) -> None:
        self._coordinator, self._worker_id = coordinator, worker_id
        self._rows: list[VideoRow] = []
        self._failures: list[Failure] = []
        self._wait = self._busy = 0.0
        self._working: tuple[float, Key] | None = None
        self._contents, self._pushing = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._go_on = True
        self._thread = threading.Thread(target=self._push_often, name="outbox", daemon=True)

    def __enter__(self) -> Outbox:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def add(self, result: VideoRow | Failure) -> None:
        """Queue one row or failure."""
        with self._contents:
            if isinstance(result, VideoRow):
                self._rows.append(result)
            else:
                self._failures.append(result)

    def add_seconds(self, wait: float = 0.0, busy: float = 0.0) -> None:
        """Add to what the next push reports."""
        with self._contents:
            self._wait, self._busy = self._wait + wait, self._busy + busy

    @contextmanager
    def working_on(self, key: Key) -> Iterator[None]:
        """Inside the ``with`` the model works for that video; pushes meanwhile say for how long it has."""
        began = time.monotonic()
        with self._contents:
            self._working = (began, key)
        try:
            yield
        finally:
            with self._contents:
                self._working = None
            self.add_seconds(busy=time.monotonic() - began)

    def should_go_on(self) -> bool:
        """False once the coordinator has said to stop. Raises what a push raised: the coordinator is gone."""
        if self._error is not None:
            raise self._error
        return self._go_on

    def push(self) -> None:
        """Hand over what there is, now."""
        with self._pushing:
            with self._contents:
                rows, failures = self._rows, self._failures
                seconds = self._seconds()
                self._rows, self._failures, self._wait, self._busy = [], [], 0.0, 0.0
            self._go_on = self._coordinator.push(self._worker_id, rows, failures, seconds)

    def _seconds(self) -> WorkerSeconds:
        if self._working is None:
            return WorkerSeconds(self._wait, self._busy)
        since, key = self._working
        return WorkerSeconds(self._wait, self._busy, time.monotonic() - since, key)

    def _push_often(self) -> None:
        while not self._ended.wait(_PUSH_SECONDS):
            try:
                self.push()
            except Exception as error:
                self._error = error
                return


@dataclass
class _Held:
    """A video that is being decoded, and its job once the first window is there."""

    item: LeasedVideo
    job: BuildsRow | None = None


class Worker:
    """One worker from its first lease to its leave.

    Holds at most one lease that is not being decoded yet. While the model works, decodes ``decode_ahead``
    videos, within the pool's bound on bytes; not more, because a crash makes suspects of all it has started.
    Windows are answered as they come, those of several videos in turn; a video is handed over as one row, or
    as one failure: of the first window that has an error, and the others are dropped. Told to stop, the loop
    ends after the call of the model that is under way, and what has no row yet goes back. Anything but a
    VideoError (a broken device, a coordinator that died) ends the loop too, and should end the process.
    """

    def __init__(
        self,
        worker_id: str,
        run: Run,
        coordinator: CoordinatorHandle,
        indexer: IndexesVideos,
        pool: DecodesVideos,
        *,
        lease_videos: int,
        decode_ahead: int,
    ) -> None:
        self._worker_id, self._run, self._coordinator = worker_id, run, coordinator
        self._indexer, self._pool = indexer, pool
        self._lease_videos, self._decode_ahead = lease_videos, decode_ahead
        self._outbox = Outbox(coordinator, worker_id)
        self._leased: deque[LeasedVideo] = deque()
        self._decoding: dict[Key, _Held] = {}
        self._ask_at = 0.0
        self._done = False

    def work(self) -> None:
        """Until the coordinator has no more work."""
        try:
            self._loop()
        except DecoderStartError:
            # No video's fault: what is held goes back without a strike.
            self._outbox.push()
            self._coordinator.leave(self._worker_id)
            raise
        self._outbox.push()
        self._coordinator.leave(self._worker_id)

    def _loop(self) -> None:
        with self._outbox:
            while self._outbox.should_go_on() and not self._is_idle_and_done():
                self._top_up()
                self._take_decoded()

    def _is_idle_and_done(self) -> bool:
        return self._done and not self._leased and not self._decoding

    def _top_up(self) -> None:
        """Lease where there is nothing left to submit, and submit while there is room."""
        while len(self._decoding) < self._decode_ahead and self._pool.has_room:
            if not self._leased and not self._lease():
                return
            self._submit(self._leased.popleft())

    def _lease(self) -> bool:
        if self._done or time.monotonic() < self._ask_at:
            return False
        self._outbox.push()  # what is finished must not count as held: suspects go to empty hands only
        reply = self._coordinator.lease(self._worker_id, self._lease_videos)
        self._done = reply.done
        self._ask_at = 0.0 if reply.lease else time.monotonic() + reply.wait_seconds
        self._leased.extend(reply.lease.items if reply.lease else ())
        return bool(self._leased)

    def _submit(self, item: LeasedVideo) -> None:
        if not self._coordinator.started(self._worker_id, item.key):
            return
        self._decoding[item.key] = _Held(item)
        self._pool.submit(item.ref)

    def _take_decoded(self) -> None:
        if not self._decoding:
            self._pause()
            return
        began = time.monotonic()
        decoded = self._pool.get(_POLL_SECONDS)
        self._outbox.add_seconds(wait=time.monotonic() - began)
        held = self._decoding.get(decoded.ref.key) if decoded is not None else None
        if decoded is not None and held is not None and self._outbox.should_go_on():
            self._answer(held, decoded)

    def _pause(self) -> None:
        """Nothing to decode: until the coordinator may be asked again."""
        if not self._done:
            time.sleep(max(0.0, min(self._ask_at - time.monotonic(), _PUSH_SECONDS)))

    def _answer(self, held: _Held, decoded: Decoded) -> None:
        """One more window; after the last one the video's row."""
        if decoded.frames is None:
            self._fail(held, decoded.error or VideoError(Stage.DECODING, Reason.NO_FRAMES, "no frames"))
            return
        window = decoded.window or Window(0, 1, 0.0, decoded.frames.duration_seconds)
        try:
            with self._outbox.working_on(held.item.key):
                row = self._add(held, decoded.frames, window)
        except VideoError as error:
            if not window.is_last:
                self._pool.cancel(held.item.ref)
            self._fail(held, error)
            return
        if row is not None:
            del self._decoding[held.item.key]
            self._outbox.add(row)

    def _add(self, held: _Held, frames: Frames, window: Window) -> VideoRow | None:
        if held.job is None:
            held.job = self._indexer.start(held.item.ref, held.item.attempt)
        held.job.add(frames, window)
        return held.job.finish() if window.is_last else None

    def _fail(self, held: _Held, error: VideoError) -> None:
        del self._decoding[held.item.key]
        self._outbox.add(self._run.failure(held.item, error, self._worker_id))


def use_threads(num_threads: int) -> None:
    """Bound the threads of this process's tensor operations: workers share a machine."""
    import torch

    torch.set_num_threads(num_threads)
