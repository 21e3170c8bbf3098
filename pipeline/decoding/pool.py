"""DecodePool: videos in, sampled frames out, decoded ahead in child processes that may be killed any time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import DecodingConfig, WindowsConfig
from pipeline.decoding.file_decoder import FileDecoder
from pipeline.decoding.sampling import FrameRequest, Span
from pipeline.decoding.windows import plan_windows
from pipeline.errors import DecoderStartError, Reason, Stage, VideoError
from pipeline.records import Frames, VideoRef, Window
from pipeline.stores import Spool

__all__ = ["DecodePool", "Decoded", "FrameRequest"]

CLOSE_SECONDS = 10.0


@dataclass(frozen=True)
class Decoded:
    """What became of one submitted video, or of one ``window`` of it: ``frames``, or the ``error`` that says
    why there are none."""

    ref: VideoRef
    frames: Frames | None
    error: VideoError | None
    window: Window | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing more of this video comes."""
        return self.error is not None or self.window is None or self.window.is_last


@dataclass(eq=False)
class _Job:
    """One submitted video. ``has_room``: bytes are set aside for a window of it that is not yet decoded."""

    ref: VideoRef
    has_room: bool = False
    is_dropped: bool = False


class DecodePool:
    """Decodes ahead in ``config.processes`` children; a context manager.

    Memory is bounded: pixels decoded and not yet taken, plus the most that running decodes may give, stay
    within ``config.bytes_in_flight`` (one window is always let through). Every submitted video comes back
    from ``get`` once per window, in order of number (without ``windows``: one, the whole clip), or, at any
    point, with an error, after which nothing more of it comes. Videos come in the order in which they finish.
    """

    def __init__(
        self, config: DecodingConfig, request: FrameRequest, windows: WindowsConfig | None = None
    ) -> None:
        self._config = config
        self._request = request
        self._windows = windows
        self._changed = threading.Condition()
        self._pending: list[_Job] = []
        self._waiting: deque[_Job] = deque()
        self._done: deque[tuple[_Job, Decoded, int]] = deque()
        self._reserved_bytes = 0
        self._is_closed = False
        self._broken: DecoderStartError | None = None
        self._spool = Spool(config.cache_dir, config.timeout_seconds, config.cache_bytes)
        self._decoders = [FileDecoder(config, request) for _ in range(config.processes)]
        self._threads = [
            threading.Thread(target=self._serve, args=(decoder,), name="decode", daemon=True)
            for decoder in self._decoders
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """Videos submitted and not yet taken to their end."""
        return len(self._pending)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of pixels decoded and not yet taken, plus what the decodes under way may give."""
        return self._reserved_bytes

    @property
    def has_room(self) -> bool:
        """Whether another video could be decoded at once within the bound on bytes."""
        with self._changed:
            coming = (len(self._waiting) + 1) * self._request.max_bytes
            fits = self._reserved_bytes + coming <= self._config.bytes_in_flight
            return not self._pending or fits

    def submit(self, ref: VideoRef) -> None:
        """Queue a video. Returns at once; without room it waits its turn inside."""
        with self._changed:
            if self._is_closed:
                raise RuntimeError("this DecodePool is closed")
            job = _Job(ref)
            self._pending.append(job)
            self._waiting.append(job)
            self._changed.notify_all()

    def get(self, timeout_seconds: float) -> Decoded | None:
        """The next finished video or window, or None after the timeout, or at once where nothing is pending.

        Raises DecoderStartError where no child can be started: that is no video's fault.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._done or self._broken or not self._pending, timeout_seconds)
            if self._broken is not None:
                raise self._broken
            if not self._done:
                return None
            job, decoded, num_bytes = self._done.popleft()
            if decoded.is_last:
                self._pending.remove(job)
            self._reserved_bytes -= num_bytes
            self._changed.notify_all()
            return decoded

    def cancel(self, ref: VideoRef) -> None:
        """Drop what is left of a video: nothing more of it comes. A decode under way is thrown away."""
        with self._changed:
            for job in [job for job in self._pending if job.ref.key == ref.key]:
                job.is_dropped = True
                self._pending.remove(job)
            self._waiting = deque(job for job in self._waiting if not job.is_dropped)
            self._reserved_bytes -= sum(num_bytes for job, _, num_bytes in self._done if job.is_dropped)
            self._done = deque(item for item in self._done if not item[0].is_dropped)
            self._changed.notify_all()

    def close(self) -> None:
        """Kill the children and drop what is pending. May be called twice."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._spool.stop()
        for decoder in self._decoders:
            decoder.interrupt()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        self._done.clear()
        self._pending.clear()
        self._reserved_bytes = 0
        self._spool.close()

    @property
    def child_pids(self) -> list[int]:
        """Process ids of the children now alive."""
        return [pid for pid in (decoder.child_pid for decoder in self._decoders) if pid is not None]

    def _serve(self, decoder: FileDecoder) -> None:
        """One thread for one child. The kernel kills the child when the thread that started it ends."""
        try:
            decoder.start()
            while (job := self._take()) is not None:
                for decoded in self._decode(job, decoder):
                    self._finish(job, decoded)
        except DecoderStartError as error:
            with self._changed:
                self._broken = None if self._is_closed else error
                self._changed.notify_all()
        finally:
            decoder.close()

    def _decode(self, job: _Job, decoder: FileDecoder) -> Iterator[Decoded]:
        """The windows of a video, each decoded when there is room for it; an error ends them."""
        ref = job.ref
        try:
            with self._spool.local_file(ref) as path:
                if self._windows is None and ref.start_seconds is None and ref.end_seconds is None:
                    frames = decoder.decode(path)
                    yield Decoded(ref, frames, None, Window(0, 1, 0.0, frames.duration_seconds))
                    return
                first, end = decoder.measure(path)
                for window in plan_windows(
                    end, self._windows, ref.start_seconds, ref.end_seconds, first_picture_seconds=first
                ):
                    if not self._make_room(job):
                        return
                    frames = decoder.decode(path, Span(window.start_seconds, window.end_seconds))
                    yield Decoded(ref, frames, None, window)
        except VideoError as error:
            yield Decoded(ref, None, error)
        except DecoderStartError:
            raise
        except Exception as error:  # a video is never lost to a fault of ours
            message = f"{type(error).__name__}: {error}"
            yield Decoded(ref, None, VideoError(Stage.DECODING, Reason.DECODE_CRASHED, message))

    def _take(self) -> _Job | None:
        """The next video for a slot, once it fits; None when the pool is closed. Blocks."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or (self._waiting and self._fits()))
            if self._is_closed:
                return None
            job = self._waiting.popleft()
            self._reserve(job)
            return job

    def _make_room(self, job: _Job) -> bool:
        """Wait until a window fits; False where nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or job.is_dropped or job.has_room or self._fits())
            if self._is_closed or job.is_dropped:
                self._release(job)
                return False
            self._reserve(job)
            return True

    def _fits(self) -> bool:
        after = self._reserved_bytes + self._request.max_bytes
        return self._reserved_bytes == 0 or after <= self._config.bytes_in_flight

    def _reserve(self, job: _Job) -> None:
        if not job.has_room:
            self._reserved_bytes += self._request.max_bytes
            job.has_room = True

    def _release(self, job: _Job) -> None:
        if job.has_room:
            self._reserved_bytes -= self._request.max_bytes
            job.has_room = False

    def _finish(self, job: _Job, decoded: Decoded) -> None:
        num_bytes = decoded.frames.num_bytes if decoded.frames is not None else 0
        with self._changed:
            self._release(job)
            if not job.is_dropped:
                self._reserved_bytes += num_bytes
                self._done.append((job, decoded, num_bytes))
            self._changed.notify_all()
