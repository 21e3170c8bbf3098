"""decord and PyAV behind one shape: a path and a request in, upright RGB frames at model size out.

Runs only inside decode children (decode_child.py): either library may crash, hang or leak.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.containers import (
    Damage,
    DecoderRefusedError,
    Header,
    decoded,
    describe,
    opened,
    packets_of,
    read_header,
)
from pipeline.errors import Reason, Stage, VideoError
from pipeline.sampling import FrameRequest, pick_frames, smart_resize
from pipeline.timeline import Packet, Run, Timeline, plan_runs, timeline_from_frames, timeline_from_packets

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

__all__ = ["RawFrames", "read_frames"]

# A stream with more undecodable packets than this is called corrupt; below it the good frames are used.
TOLERATED_DAMAGE = 0.05
# Where neither the frames nor the container tell the time, as in a bare H.264 stream.
ASSUMED_FPS = 25.0
# decord seeks exactly only where the container has an index; in MPEG-TS it returns wrong frames silently.
DECORD_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm", "avi"})
# Its bundled FFmpeg is of 2018.
DECORD_LACKS = frozenset({"av1", "vvc"})


class _OvershotError(Exception):
    """A seek landed behind its target; the container's index cannot be trusted."""


@dataclass(frozen=True)
class RawFrames:
    """What one decoder gave. data: uint8 (T, H, W, 3); pts_seconds: float64 (T,), first source frame at 0.

    ``damage`` says what was wrong with a file that was read all the same, else None.
    """

    data: NDArray[np.uint8]
    pts_seconds: NDArray[np.float64]
    source_num_frames: int
    duration_seconds: float
    header: Header
    damage: str | None


@dataclass
class _Taken:
    request: FrameRequest
    stamps: list[int] = field(default_factory=list)
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    damage: Damage = field(default_factory=Damage)
    header: Header | None = None

    def add(self, stamp: int, frame: Any, container: Any, stream: Any) -> None:
        if self.stamps and stamp <= self.stamps[-1]:
            return
        if self.header is None:
            self.header = describe(container, stream, frame)
        size = _model_size(self.header, self.request)
        self.stamps.append(stamp)
        self.pictures.append(_picture(frame, *size))


def _check_readable(path: str) -> None:
    """Raise VideoError (stage reading) where the local file cannot be read or has no byte in it."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            raise VideoError(Stage.READING, Reason.EMPTY_FILE, "the file has zero bytes")
        with open(path, "rb") as file:
            file.read(1)
    except FileNotFoundError:
        raise VideoError(Stage.READING, Reason.NOT_FOUND, "the file is gone") from None
    except PermissionError as error:
        raise VideoError(Stage.READING, Reason.ACCESS_DENIED, str(error.strerror)) from None
    except OSError as error:
        raise VideoError(Stage.READING, Reason.READ_ERROR, str(error)) from None


def read_frames(path: str, decoder: str, request: FrameRequest, threads: int) -> RawFrames:
    """Sampled frames of a local file by ``decoder`` ("decord" or "pyav").

    Raises VideoError where no decoder will do, DecoderRefusedError where another may.
    """
    _check_readable(path)
    read = {"decord": _read_decord, "pyav": _read_pyav}[decoder]
    return read(path, request, threads)


# ---- decord


def _read_decord(path: str, request: FrameRequest, threads: int) -> RawFrames:
    if decord is None:
        raise DecoderRefusedError(Reason.UNSUPPORTED_CODEC, "decord is not installed")
    header, timeline = read_header(path), _read_packets(path)
    if not header.containers & DECORD_CONTAINERS:
        names = "/".join(sorted(header.containers))
        raise DecoderRefusedError(Reason.UNSUPPORTED_CODEC, f"decord is not exact in {names}")
    if timeline is None or timeline.has_open_gops:
        # After a seek decord miscounts the frames before the keyframe, and returns wrong ones silently.
        raise DecoderRefusedError(Reason.UNSUPPORTED_CODEC, "decord is inexact in open groups of pictures")
    reader = _open_decord(path, header, request, threads)
    try:
        spans = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), dtype=np.float64)
        if not _agrees(timeline, spans[:, 0] - spans[0, 0]):
            raise DecoderRefusedError(Reason.CORRUPT, "decord counts other frames than the container holds")
        chosen = pick_frames(timeline.seconds, timeline.duration_seconds, request)
        data = reader.get_batch(chosen).asnumpy()
    except DECORD_ERRORS as error:
        raise DecoderRefusedError(Reason.CORRUPT, f"decord: {_first_line(error)}") from None
    notes = _describe_damage(header, timeline.duration_seconds, Damage())
    seconds = timeline.seconds[chosen]
    return RawFrames(data, seconds, len(timeline.seconds), timeline.duration_seconds, header, notes)


def _agrees(timeline: Timeline, seconds: NDArray[np.float64]) -> bool:
    """Whether decord's table (float32) is the container's; with several streams it may be another's."""
    return len(seconds) == len(timeline.seconds) and bool(
        np.allclose(seconds, timeline.seconds, rtol=1e-6, atol=1e-3)
    )


def _open_decord(path: str, header: Header, request: FrameRequest, threads: int) -> Any:
    height, width = _model_size(header, request)
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


# ---- PyAV


def _read_pyav(path: str, request: FrameRequest, threads: int) -> RawFrames:
    timeline = _read_packets(path) or _decode_timeline(path, threads)
    chosen = pick_frames(timeline.seconds, timeline.duration_seconds, request)
    try:
        taken = _take(path, timeline, plan_runs(timeline, chosen), request, threads)
    except _OvershotError:
        straight = [Run(None, tuple(timeline.stamps[chosen].tolist()))]
        taken = _take(path, timeline, straight, request, threads)
    _refuse_ruins(taken.damage, len(taken.pictures))
    assert taken.header is not None, "a picture was taken, so its size is known"
    data, seconds, duration = (
        np.stack(taken.pictures),
        timeline.seconds_at(taken.stamps),
        timeline.duration_seconds,
    )
    notes = _describe_damage(taken.header, duration, taken.damage)
    return RawFrames(data, seconds, len(timeline.stamps), duration, taken.header, notes)


def _refuse_ruins(damage: Damage, num_frames: int) -> None:
    if damage.bad > TOLERATED_DAMAGE * damage.packets:
        message = f"{damage.bad} of {damage.packets} packets cannot be decoded"
        raise DecoderRefusedError(Reason.CORRUPT, message)
    if num_frames == 0:
        raise DecoderRefusedError(Reason.CORRUPT, "no frame can be decoded")


def _read_packets(path: str) -> Timeline | None:
    """The timeline without decoding, where the container gives every frame a time."""
    with opened(path) as (container, stream):
        packets = [
            Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe)
            for packet in packets_of(container, stream)
            if packet.size and not packet.is_discard
        ]
        return timeline_from_packets(packets, float(stream.time_base))


def _decode_timeline(path: str, threads: int) -> Timeline:
    """The timeline of a stream that has to be decoded to be counted."""
    damage = Damage()
    with opened(path, threads) as (container, stream):
        pts = [frame.time for frame in decoded(container, stream, damage)]
        rate = float(stream.guessed_rate or stream.average_rate or ASSUMED_FPS)
    _refuse_ruins(damage, len(pts))
    return timeline_from_frames(pts, rate)


def _take(path: str, timeline: Timeline, runs: list[Run], request: FrameRequest, threads: int) -> _Taken:
    """Decode along ``runs``; convert only the targets."""
    taken = _Taken(request)
    with opened(path, threads) as (container, stream):
        frames = _stamped(decoded(container, stream, taken.damage), timeline)
        for run in runs:
            if run.seek is not None:
                container.seek(run.seek, stream=stream, backward=True)
                frames = _stamped(decoded(container, stream, taken.damage), timeline)
            for stamp, frame in _on_target(frames, run):
                taken.add(stamp, frame, container, stream)
    return taken


def _on_target(frames: Iterator[tuple[int, Any]], run: Run) -> Iterator[tuple[int, Any]]:
    """The wanted frames; in place of one that cannot be decoded, the next that can."""
    targets = list(reversed(run.targets))
    for number, (stamp, frame) in enumerate(frames):
        if number == 0 and run.seek is not None and stamp > targets[-1]:
            raise _OvershotError
        if stamp >= targets[-1]:
            yield stamp, frame
        while targets and targets[-1] <= stamp:
            targets.pop()
        if not targets:
            return


def _stamped(frames: Iterator[Any], timeline: Timeline) -> Iterator[tuple[int, Any]]:
    for ordinal, frame in enumerate(frames):
        if not timeline.has_pts:
            yield ordinal, frame
        elif frame.pts is not None:
            yield int(frame.pts), frame


def _model_size(header: Header, request: FrameRequest) -> tuple[int, int]:
    try:
        return smart_resize(
            header.height,
            header.width,
            multiple=request.multiple,
            min_pixels=request.min_pixels,
            max_pixels=request.max_pixels,
        )
    except ValueError as error:
        raise VideoError(Stage.DECODING, Reason.UNSUPPORTED_CODEC, str(error)) from None


def _picture(frame: Any, height: int, width: int) -> NDArray[np.uint8]:
    """One frame as RGB uint8 (height, width, 3), rotated upright after the (cheaper) resize."""
    turns = round(frame.rotation / 90) % 4
    if turns % 2:
        height, width = width, height
    resized = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    return np.rot90(resized.to_ndarray(), turns)


def _describe_damage(header: Header, duration_seconds: float, damage: Damage) -> str | None:
    notes = []
    if damage.bad:
        notes.append(f"{damage.bad} of {damage.packets} packets could not be decoded")
    if header.duration_seconds > duration_seconds * 1.05 + 1.0:
        notes.append(f"ends at {duration_seconds:.1f} s of {header.duration_seconds:.1f} s")
    return "; ".join(notes) or None
