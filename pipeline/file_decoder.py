"""One local file at a time through one decode child: deadlines, fallback between decoders, recycling."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import DecodingConfig
from pipeline.decode_process import ChildDiedError, ChildProcess, ChildTooLateError
from pipeline.errors import DecoderStartError, Reason, Stage, VideoError
from pipeline.records import Frames
from pipeline.sampling import FrameRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FileDecoder"]

MAX_THREADS_PER_CHILD = 4
START_ATTEMPTS = 3


class _RefusedError(Exception):
    """One decoder gave no frames; ``is_final`` where no other need be asked."""

    def __init__(self, error: VideoError, *, is_final: bool) -> None:
        super().__init__(error)
        self.error = error
        self.is_final = is_final


class FileDecoder:
    """Decodes local files, each within ``config.timeout_seconds``. For one thread, but for ``interrupt``."""

    def __init__(self, config: DecodingConfig, request: FrameRequest) -> None:
        self._config = config
        self._request = request
        self._child: ChildProcess | None = None
        self._is_interrupted = False
        self._threads = max(1, min(MAX_THREADS_PER_CHILD, _num_cpus() // config.processes))

    @property
    def child_pid(self) -> int | None:
        child = self._child
        return None if child is None else child.pid

    def start(self) -> None:
        """Have a child ready. Raises DecoderStartError."""
        if self._child is not None and self._child.num_served >= self._config.videos_per_process:
            self.close()
        problem: Exception | None = None
        for _ in range(START_ATTEMPTS):
            try:
                if self._child is None:
                    self._child = ChildProcess(self._config.memory_bytes, self._threads)
                if self._is_interrupted:
                    break
                self._child.wait_until_ready()
                return
            except (ChildDiedError, ChildTooLateError, OSError) as error:  # OSError: no process, pipe or disk
                problem = error
                self.close()
        self.close()
        raise DecoderStartError(f"the decode process does not start: {problem or 'it was interrupted'}")

    def interrupt(self) -> None:
        """Make a decode under way fail at once; from any thread, before ``close``."""
        self._is_interrupted = True
        child = self._child
        if child is not None:
            child.kill()

    def close(self) -> None:
        """End the child. The next ``decode`` starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def decode(self, path: str) -> Frames:
        """Sampled frames of the file, by the first of ``config.decoders`` that can.

        Each decoder may use an equal share of the time that is left. Raises VideoError.
        """
        left_seconds = self._config.timeout_seconds
        refusals: list[VideoError] = []
        for number, decoder in enumerate(self._config.decoders):
            share = max(0.0, left_seconds) / (len(self._config.decoders) - number)
            started = time.monotonic()
            try:
                return self._ask(path, decoder, share)
            except _RefusedError as refused:
                refusals.append(refused.error)
                if refused.is_final:
                    break
            left_seconds -= time.monotonic() - started
        message = "; ".join(dict.fromkeys(error.message for error in refusals))
        raise VideoError(refusals[-1].stage, refusals[-1].reason, message)

    def _ask(self, path: str, decoder: str, seconds: float) -> Frames:
        self.start()
        assert self._child is not None, "start() leaves a child or raises"
        question = {"path": path, "decoder": decoder, "request": asdict(self._request)}
        started = time.monotonic()
        try:
            reply, pixels = self._child.ask(question, started + seconds)
        except ChildTooLateError:
            self.close()
            raise _refused(Reason.DECODE_TIMEOUT, f"{decoder} took more than {seconds:.3g} s") from None
        except ChildDiedError as error:
            self.close()
            raise _refused(Reason.DECODE_CRASHED, f"{decoder}: {error}") from None
        except BaseException:  # half an answer may be left in the pipe: the next video must not read it
            self.close()
            raise
        if pixels is None:
            refusal = VideoError(Stage(reply["stage"]), Reason(reply["reason"]), reply["message"])
            raise _RefusedError(refusal, is_final=reply["is_final"])
        return _frames(reply, pixels, decoder, time.monotonic() - started)


def _refused(reason: Reason, message: str) -> _RefusedError:
    return _RefusedError(VideoError(Stage.DECODING, reason, message), is_final=False)


def _frames(reply: dict[str, Any], pixels: NDArray[np.uint8], decoder: str, seconds: float) -> Frames:
    duration = float(reply["duration_seconds"])
    return Frames(
        data=pixels,
        pts_seconds=np.asarray(reply["pts_seconds"], dtype=np.float64),
        source_fps=reply["source_num_frames"] / duration if duration > 0 else 0.0,
        source_num_frames=reply["source_num_frames"],
        duration_seconds=duration,
        width=reply["width"],
        height=reply["height"],
        codec=reply["codec"],
        decoder=decoder,
        decode_seconds=seconds,
        damage=reply["damage"],
    )


def _num_cpus() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
