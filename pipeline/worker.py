"""A worker's loop without Ray: lease, decode ahead, run the model, hand rows over, until all work is done."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import DecoderStartError
from pipeline.ledger import Key, LeasedVideo
from pipeline.protocol import CoordinatorHandle, Run, WorkerSeconds
from pipeline.records import Failure, Frames, Reason, Stage, VideoError, VideoRef, VideoRow

if TYPE_CHECKING:
    from pipeline.decoding import Decoded

__all__ = ["DecodesVideos", "IndexesVideos", "Outbox", "Worker", "use_threads"]

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
        """The next decoded video, in whatever order; None where none is ready in time."""
        ...


class IndexesVideos(Protocol):
    """What the loop needs of a VideoIndexer."""

    def index(self, ref: VideoRef, frames: Frames, attempt: int) -> VideoRow:
        """One row. Raises VideoError; anything else means that this process can serve no other video."""
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
                seconds = WorkerSeconds(self._wait, self._busy)
                self._rows, self._failures, self._wait, self._busy = [], [], 0.0, 0.0
            self._go_on = self._coordinator.push(self._worker_id, rows, failures, seconds)

    def _push_often(self) -> None:
        while not self._ended.wait(_PUSH_SECONDS):
            try:
                self.push()
            except Exception as error:
                self._error = error
                return


class Worker:
    """One worker from its first lease to its leave.

    Holds at most one lease that is not being decoded yet. While the model works, decodes ``decode_ahead``
    videos, within the pool's bound on bytes; not more, because a crash makes suspects of all it has started.
    A VideoError is handed over as that video's failure. Anything else (a broken device, a coordinator that
    died) ends the loop, and should end the process.
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
        max_video_bytes: int,
    ) -> None:
        self._worker_id, self._run, self._coordinator = worker_id, run, coordinator
        self._indexer, self._pool = indexer, pool
        self._lease_videos, self._decode_ahead = lease_videos, decode_ahead
        self._max_video_bytes = max_video_bytes
        self._outbox = Outbox(coordinator, worker_id)
        self._leased: deque[LeasedVideo] = deque()
        self._decoding: dict[Key, LeasedVideo] = {}
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
        limit, size = self._max_video_bytes, item.ref.size_bytes
        if size > limit:
            rule = f"{size} bytes exceed corpus.max_video_bytes={limit}"
            text = f"{rule}; to index it, raise that and set limits.retry_failed=true"
            self._fail(item, VideoError(Stage.READING, Reason.TOO_LARGE, text))
            return
        self._decoding[item.key] = item
        self._pool.submit(item.ref)

    def _take_decoded(self) -> None:
        if not self._decoding:
            self._pause()
            return
        began = time.monotonic()
        decoded = self._pool.get(_POLL_SECONDS)
        self._outbox.add_seconds(wait=time.monotonic() - began)
        item = self._decoding.pop(decoded.ref.key, None) if decoded else None
        if decoded is not None and item is not None:
            self._finish(item, decoded)

    def _pause(self) -> None:
        """Nothing to decode: until the coordinator may be asked again."""
        if not self._done:
            time.sleep(max(0.0, min(self._ask_at - time.monotonic(), _PUSH_SECONDS)))

    def _finish(self, item: LeasedVideo, decoded: Decoded) -> None:
        if decoded.frames is None:
            self._fail(item, decoded.error or VideoError(Stage.DECODING, Reason.NO_FRAMES, "no frames"))
            return
        began = time.monotonic()
        try:
            self._outbox.add(self._indexer.index(item.ref, decoded.frames, item.attempt))
        except VideoError as error:
            self._fail(item, error)
        self._outbox.add_seconds(busy=time.monotonic() - began)

    def _fail(self, item: LeasedVideo, error: VideoError) -> None:
        self._outbox.add(self._run.failure(item, error, self._worker_id))


def use_threads(num_threads: int) -> None:
    """Bound the threads of this process's tensor operations: workers share a machine."""
    import torch

    torch.set_num_threads(num_threads)
