"""One local file at a time through one decode child: deadlines, fallback between decoders, recycling."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import DecodingConfig
from pipeline.decoding.child_process import ChildDiedError, ChildProcess, ChildTooLateError
from pipeline.decoding.sampling import FrameRequest, Span
from pipeline.errors import DecoderStartError, Reason, Stage, VideoError
from pipeline.records import Frames

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FileDecoder"]

_Answer = tuple[dict[str, Any], "NDArray[np.uint8] | None", str, float]  # reply, pixels, decoder, seconds

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
        self._measured = ("", "")  # a file and the decoder that could
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
                    self._child = self._new_child()
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

    def measure(self, path: str) -> tuple[float, float]:
        """When the first picture is shown and when the last one ends, in seconds. Raises VideoError.

        The file stays open in the child for ``decode`` with a span, and the same decoder is asked first.
        """
        reply, _, decoder, _ = self._ask_each(path, {"measure": True})
        self._measured = (path, decoder)
        first, end = map(float, reply["shown"])
        return first, end

    def decode(self, path: str, span: Span | None = None) -> Frames:
        """Sampled frames of the file, or of a span of it, by the first of the decoders that can.

        Each decoder may use an equal share of the time that is left. Raises VideoError.
        """
        reply, pixels, decoder, seconds = self._ask_each(path, {"span": span and astuple(span)})
        assert pixels is not None, "a reply without pixels is a refusal"
        return _frames(reply, pixels, decoder, seconds)

    def _ask_each(self, path: str, question: dict[str, Any]) -> _Answer:
        left_seconds = self._config.timeout_seconds
        refusals: dict[str, VideoError] = {}
        decoders = self._decoders_for(path)
        for number, decoder in enumerate(decoders):
            share = max(0.0, left_seconds) / (len(decoders) - number)
            started = time.monotonic()
            try:
                return self._ask(path, decoder, question, share)
            except _RefusedError as refused:
                refusals[decoder] = refused.error
                if refused.is_final:
                    break
            left_seconds -= time.monotonic() - started
        message = "; ".join(dict.fromkeys(error.message for error in refusals.values()))
        # PyAV knows what is wrong with a file; decord may only be the wrong one to ask.
        told = refusals.get("pyav") or list(refusals.values())[-1]
        raise VideoError(told.stage, told.reason, message)

    def _decoders_for(self, path: str) -> list[str]:
        """Those configured; for a file that was measured, the one that could before the others."""
        decoders: list[str] = list(self._config.decoder_order)
        measured_path, able = self._measured
        return sorted(decoders, key=lambda decoder: measured_path == path and decoder != able)

    def _ask(self, path: str, decoder: str, question: dict[str, Any], seconds: float) -> _Answer:
        self.start()
        assert self._child is not None, "start() leaves a child or raises"
        defaults = {"path": path, "decoder": decoder, "request": asdict(self._request)}
        started = time.monotonic()
        try:
            reply, pixels = self._child.ask(
                {"measure": False, "span": None, **defaults, **question}, started + seconds
            )
        except ChildTooLateError:
            self.close()
            raise _refused(Reason.DECODE_TIMEOUT, f"{decoder} took more than {seconds:.3g} s") from None
        except ChildDiedError as error:
            self.close()
            raise _refused(Reason.DECODE_CRASHED, f"{decoder}: {error}") from None
        except BaseException:  # half an answer may be left in the pipe: the next video must not read it
            self.close()
            raise
        if "reason" in reply:
            refusal = VideoError(Stage(reply["stage"]), Reason(reply["reason"]), reply["message"])
            raise _RefusedError(refusal, is_final=reply["is_final"])
        return reply, pixels, decoder, time.monotonic() - started

    def _new_child(self) -> ChildProcess:
        return ChildProcess(
            memory_bytes=self._config.memory_bytes,
            threads=self._threads,
            max_frame_pixels=self._config.max_frame_pixels,
            max_source_frames=self._config.max_source_frames,
        )


def _refused(reason: Reason, message: str) -> _RefusedError:
    return _RefusedError(VideoError(Stage.DECODING, reason, message), is_final=False)


def _frames(reply: dict[str, Any], pixels: NDArray[np.uint8], decoder: str, seconds: float) -> Frames:
    duration = float(reply["duration_seconds"])
    shown_seconds = duration - reply["start_seconds"]
    return Frames(
        data=pixels,
        pts_seconds=np.asarray(reply["pts_seconds"], dtype=np.float64),
        source_fps=reply["source_num_frames"] / shown_seconds if shown_seconds > 0 else 0.0,
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
