"""decord and PyAV behind one shape: a file and a request in, upright RGB frames at model size out.

Runs only inside decode children (child_main.py): either library may crash, hang or leak.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.decoding.containers import DecoderRefusedError, Header, Limits, read_header
from pipeline.decoding.damage import TOLERATED_DAMAGE, damage_note
from pipeline.decoding.plain import refuse_unless_plain
from pipeline.decoding.pyav_frames import PyavVideo, RawFrames, model_size, read_timeline
from pipeline.decoding.sampling import FrameRequest, Span, pick_frames
from pipeline.decoding.timeline import Timeline
from pipeline.errors import Reason, Stage, VideoError

try:
    import decord

    DECORD_ERRORS: tuple[type[Exception], ...] = (
        RuntimeError,
        AssertionError,
        decord.DECORDError,
        decord.DECORDLimitReachedError,
    )
except ImportError:  # there is no wheel outside x86_64
    decord = None
    DECORD_ERRORS = ()

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RawFrames", "Video", "open_video"]

# Its bundled FFmpeg is of 2018.
DECORD_LACKS = frozenset({"av1", "vvc"})
# What its H.264 decoder says of sound files after a jump, or of careless encoders.
_HARMLESS = (b"co located POCs", b"mmco:", b"number of reference frames")
_NO_PATH = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR})  # no other try will help


class Video(Protocol):
    """One open file. What it took to open it is not paid again by the next ``read``."""

    @property
    def timeline(self) -> Timeline:
        """Every frame of the file."""
        ...

    def read(self, span: Span) -> RawFrames:
        """Sampled frames of a span. Raises VideoError or DecoderRefusedError."""
        ...


def open_video(path: str, decoder: str, request: FrameRequest, limits: Limits) -> Video:
    """Open a local file by ``decoder`` ("decord" or "pyav").

    Raises VideoError where no decoder will do, DecoderRefusedError where another may.
    """
    _check_readable(path)
    if decoder == "pyav":
        return PyavVideo(path, request, limits)
    return _DecordVideo(path, request, limits)


def _check_readable(path: str) -> None:
    """Raise VideoError (stage reading) where the local file cannot be read or has no byte in it."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise VideoError(Stage.READING, Reason.INVALID_INPUT, f"{_kind(status.st_mode)}, not a file")
        if status.st_size == 0:
            raise VideoError(Stage.READING, Reason.EMPTY_FILE, "the file has zero bytes")
        with open(path, "rb") as file:
            file.read(1)
    except FileNotFoundError:
        raise VideoError(Stage.READING, Reason.NOT_FOUND, "the file is gone") from None
    except PermissionError as error:
        raise VideoError(Stage.READING, Reason.ACCESS_DENIED, str(error.strerror)) from None
    except OSError as error:
        reason = Reason.INVALID_INPUT if error.errno in _NO_PATH else Reason.READ_ERROR
        raise VideoError(Stage.READING, reason, str(error)) from None
    except ValueError as error:  # a zero byte in the name
        raise VideoError(Stage.READING, Reason.INVALID_INPUT, str(error)) from None


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"


class _DecordVideo:
    def __init__(self, path: str, request: FrameRequest, limits: Limits) -> None:
        if decord is None:
            raise DecoderRefusedError(Reason.UNSUPPORTED_CODEC, "decord is not installed")
        self._request = request
        refuse_unless_plain(path, limits)
        self._header = read_header(path, limits)
        if self._header.oddity is not None:
            message = f"decord is not asked for files with {self._header.oddity}"
            raise DecoderRefusedError(Reason.UNSUPPORTED_CODEC, message)
        self._timeline = _trusted_timeline(path, limits)
        self._log_bytes = _stderr_bytes()
        self._reader = _open_decord(path, self._header, request, limits.threads)
        try:
            spans = np.asarray(
                self._reader.get_frame_timestamp(np.arange(len(self._reader))), dtype=np.float64
            )
        except DECORD_ERRORS as error:
            raise DecoderRefusedError(Reason.CORRUPT, f"decord: {_first_line(error)}") from None
        if not _agrees(self._timeline, spans[:, 0] - spans[0, 0]):
            raise DecoderRefusedError(Reason.CORRUPT, "decord counts other frames than the container holds")

    @property
    def timeline(self) -> Timeline:
        return self._timeline

    def read(self, span: Span) -> RawFrames:
        timeline = self._timeline
        chosen = pick_frames(timeline.seconds, timeline.duration_seconds, self._request, span)
        try:
            data = self._reader.get_batch(chosen).asnumpy()
        except DECORD_ERRORS as error:
            raise DecoderRefusedError(Reason.CORRUPT, f"decord: {_first_line(error)}") from None
        if complaint := self._complaint():
            raise DecoderRefusedError(Reason.CORRUPT, f"decord: {complaint}")
        return RawFrames(
            data,
            timeline.seconds[chosen],
            len(timeline.seconds),
            timeline.start_seconds,
            timeline.duration_seconds,
            self._header,
            damage_note(self._header.claimed_end_seconds, timeline),
        )

    def _complaint(self) -> str | None:
        """What decord's own libav said of the pictures: it hands on what it made up without another word.

        It prints that on stderr, which is a file in a decode child, and nothing for a sound file.
        """
        codec = self._header.codec.encode()
        with contextlib.suppress(OSError):
            said = os.pread(2, max(0, _stderr_bytes() - self._log_bytes), self._log_bytes)
            found = re.findall(rb"^\[" + re.escape(codec) + rb" @ \w+\] (.*)", said, re.MULTILINE)
            grave = [line for line in found if not line.startswith(_HARMLESS)]
            return grave[0].decode(errors="replace")[:200] if grave else None
        return None


def _stderr_bytes() -> int:
    return os.fstat(2).st_size


def _trusted_timeline(path: str, limits: Limits) -> Timeline:
    """The timeline of a file that decord reads rightly. Raises DecoderRefusedError for any other."""
    timeline = read_timeline(path, limits)
    if timeline is None or not timeline.has_pts or timeline.has_open_gops:
        # After a seek decord miscounts the frames before the keyframe, and returns wrong ones silently.
        raise DecoderRefusedError(Reason.UNSUPPORTED_CODEC, "decord is inexact in open groups of pictures")
    return timeline


def _agrees(timeline: Timeline, seconds: NDArray[np.float64]) -> bool:
    """Whether decord's table (float32, from 0) is the container's; with several streams another's may be."""
    own = timeline.seconds - timeline.start_seconds
    return len(seconds) == len(own) and bool(np.allclose(seconds, own, rtol=1e-6, atol=1e-3))


def _open_decord(path: str, header: Header, request: FrameRequest, threads: int) -> Any:
    height, width = model_size(header, request)
    try:
        # Without a tolerance decord hides broken frames behind copies of their neighbours.
        return decord.VideoReader(
            path, width=width, height=height, num_threads=threads, fault_tol=TOLERATED_DAMAGE
        )
    except DECORD_ERRORS as error:
        reason = Reason.UNSUPPORTED_CODEC if header.codec in DECORD_LACKS else Reason.CORRUPT
        raise DecoderRefusedError(reason, f"decord: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """decord puts times and build paths before its message and a native stack trace after it."""
    lines = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
