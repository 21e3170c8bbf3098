"""DecodePool: videos in, sampled frames out, decoded ahead in child processes that may be killed any time."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from pipeline.config import DecodingConfig
from pipeline.errors import DecoderStartError, Reason, Stage, VideoError
from pipeline.file_decoder import FileDecoder
from pipeline.records import Frames, VideoRef
from pipeline.sampling import FrameRequest
from pipeline.spooling import Spool

__all__ = ["DecodePool", "Decoded", "FrameRequest"]

CLOSE_SECONDS = 10.0


@dataclass(frozen=True)
class Decoded:
    """What became of one submitted video: ``frames``, or the ``error`` that says why there are none."""

    ref: VideoRef
    frames: Frames | None
    error: VideoError | None


class DecodePool:
    """Decodes ahead in ``config.processes`` children; a context manager.

    Memory is bounded: pixels decoded and not yet taken, plus the most that running decodes may give, stay
    within ``config.bytes_in_flight`` (one video is always let through). Every submitted video comes back once
    from ``get``, in the order in which they finish.
    """

    def __init__(self, config: DecodingConfig, request: FrameRequest) -> None:
        self._config = config
        self._request = request
        self._changed = threading.Condition()
        self._waiting: deque[VideoRef] = deque()
        self._done: deque[tuple[Decoded, int]] = deque()
        self._num_pending = 0
        self._reserved_bytes = 0
        self._is_closed = False
        self._broken: DecoderStartError | None = None
        self._spool = Spool(config.cache_dir, config.timeout_seconds)
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
        """Videos submitted and not yet taken."""
        return self._num_pending

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
            return self._num_pending == 0 or fits

    def submit(self, ref: VideoRef) -> None:
        """Queue a video. Returns at once; without room it waits its turn inside."""
        with self._changed:
            if self._is_closed:
                raise RuntimeError("this DecodePool is closed")
            self._waiting.append(ref)
            self._num_pending += 1
            self._changed.notify_all()

    def get(self, timeout_seconds: float) -> Decoded | None:
        """The next finished video, or None after the timeout, or at once where nothing is pending.

        Raises DecoderStartError where no child can be started: that is no video's fault.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._done or self._broken or not self._num_pending, timeout_seconds
            )
            if self._broken is not None:
                raise self._broken
            if not self._done:
                return None
            decoded, num_bytes = self._done.popleft()
            self._num_pending -= 1
            self._reserved_bytes -= num_bytes
            self._changed.notify_all()
            return decoded

    def close(self) -> None:
        """Kill the children and drop what is pending. May be called twice."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for decoder in self._decoders:
            decoder.interrupt()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        self._done.clear()
        self._num_pending = self._reserved_bytes = 0
        self._spool.close()

    @property
    def child_pids(self) -> list[int]:
        """Process ids of the children now alive."""
        return [pid for pid in (decoder.child_pid for decoder in self._decoders) if pid is not None]

    def _serve(self, decoder: FileDecoder) -> None:
        """One thread for one child. The kernel kills the child when the thread that started it ends."""
        try:
            decoder.start()
            while (ref := self._take()) is not None:
                self._finish(self._decode(ref, decoder))
        except DecoderStartError as error:
            with self._changed:
                self._broken = None if self._is_closed else error
                self._changed.notify_all()
        finally:
            decoder.close()

    def _decode(self, ref: VideoRef, decoder: FileDecoder) -> Decoded:
        try:
            with self._spool.local_file(ref) as path:
                return Decoded(ref, decoder.decode(path), None)
        except VideoError as error:
            return Decoded(ref, None, error)
        except DecoderStartError:
            raise
        except Exception as error:  # a video is never lost to a fault of ours
            message = f"{type(error).__name__}: {error}"
            return Decoded(ref, None, VideoError(Stage.DECODING, Reason.DECODE_CRASHED, message))

    def _take(self) -> VideoRef | None:
        """The next video for a slot, once it fits; None when the pool is closed. Blocks."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or (self._waiting and self._fits()))
            if self._is_closed:
                return None
            self._reserved_bytes += self._request.max_bytes
            return self._waiting.popleft()

    def _fits(self) -> bool:
        after = self._reserved_bytes + self._request.max_bytes
        return self._reserved_bytes == 0 or after <= self._config.bytes_in_flight

    def _finish(self, decoded: Decoded) -> None:
        num_bytes = decoded.frames.num_bytes if decoded.frames is not None else 0
        with self._changed:
            self._reserved_bytes += num_bytes - self._request.max_bytes
            self._done.append((decoded, num_bytes))
            self._changed.notify_all()
