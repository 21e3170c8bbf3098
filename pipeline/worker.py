"""A worker's loop without Ray: lease, decode ahead, run the model, hand rows over, until all work is done."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import DecoderStartError
from pipeline.ledger import Key, LeasedVideo
from pipeline.protocol import TELL_SECONDS, CoordinatorHandle, LeaseReply, Message, Reply, Run, WorkerSeconds
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
    """All that goes to the coordinator, one message at a time; results travel with the next one.

    Where the loop says nothing for a second, a thread does, also while the model works on a long video: the
    heartbeat. ``holds``: what the loop has in hand, named now and then.
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
        self._said_at = self._told_at = -inf
        self.holds: tuple[Key, ...] = ()
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

    def exchange(self, starting: tuple[Key, ...] = (), wanted: int | None = None, room: int = 0) -> Reply:
        """Hand over what there is, now, and with it what is said and asked: see Message."""
        with self._pushing:
            now = time.monotonic()
            with self._contents:
                results = tuple(self._rows), tuple(self._failures), self._seconds()
                self._rows, self._failures, self._wait, self._busy = [], [], 0.0, 0.0
            holds = self.holds if now - self._told_at > TELL_SECONDS else None
            message = Message(*results, starting, wanted, room, holds)
            reply = self._coordinator.exchange(self._worker_id, message)
            self._go_on, self._said_at = reply.go_on, now
            self._told_at = self._told_at if holds is None else now
            return reply

    def _seconds(self) -> WorkerSeconds:
        if self._working is None:
            return WorkerSeconds(self._wait, self._busy)
        since, key = self._working
        return WorkerSeconds(self._wait, self._busy, time.monotonic() - since, key)

    def _push_often(self) -> None:
        while not self._ended.wait(max(0.0, self._said_at + _PUSH_SECONDS - time.monotonic())):
            if time.monotonic() < self._said_at + _PUSH_SECONDS:
                continue  # the loop has said something meanwhile
            try:
                self.exchange()
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
