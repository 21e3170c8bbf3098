"""A worker's loop without Ray: lease, decode ahead, run the model, hand rows over, until all work is done."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.cluster.backlog import LeasedVideo
from pipeline.cluster.outbox import PUSH_SECONDS, Outbox
from pipeline.cluster.protocol import CoordinatorHandle, LeaseReply, Run
from pipeline.errors import DecoderStartError, Reason, Stage, VideoError
from pipeline.output import Key
from pipeline.records import Frames, VideoRef, VideoRow, Window

if TYPE_CHECKING:
    from pipeline.decoding import Decoded

__all__ = ["BuildsRow", "DecodesVideos", "IndexesVideos", "Worker", "use_threads"]

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
            self._outbox.exchange()
            self._coordinator.leave(self._worker_id)
            raise
        self._outbox.exchange()
        self._coordinator.leave(self._worker_id)

    def _loop(self) -> None:
        with self._outbox:
            while self._outbox.should_go_on() and not self._is_idle_and_done():
                self._top_up()
                self._outbox.holds = (*self._decoding, *(item.key for item in self._leased))
                self._take_decoded()

    def _is_idle_and_done(self) -> bool:
        return self._done and not self._leased and not self._decoding

    def _top_up(self) -> None:
        """Lease where there is nothing left to submit, and submit while there is room."""
        while len(self._decoding) < self._decode_ahead and self._pool.has_room:
            item = self._begin_leased() or self._lease()
            if item is None:
                return
            self._decoding[item.key] = _Held(item)
            self._pool.submit(item.ref)

    def _begin_leased(self) -> LeasedVideo | None:
        """The next of those leased that may still be touched, which the coordinator then knows."""
        while self._leased:
            item = self._leased.popleft()
            if not self._outbox.exchange(starting=(item.key,)).refused:
                return item
        return None

    def _lease(self) -> LeasedVideo | None:
        """The first of some more videos; that it is begun is said in the same message."""
        if self._done or time.monotonic() < self._ask_at:
            return None
        work = self._outbox.exchange(wanted=self._lease_videos, room=1).work or LeaseReply(None)
        self._done = work.done
        self._ask_at = 0.0 if work.lease else time.monotonic() + work.wait_seconds
        self._leased.extend(work.lease.items if work.lease else ())
        return self._leased.popleft() if self._leased else None

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
            time.sleep(max(0.0, min(self._ask_at - time.monotonic(), PUSH_SECONDS)))

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
