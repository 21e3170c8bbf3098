"""Frames through PyAV: any container, any codec, frame by frame. Runs only inside decode children."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.decoding.colours import Painter
from pipeline.decoding.containers import (
    Damage,
    DecoderRefusedError,
    Header,
    Limits,
    decoded,
    describe,
    jumped,
    may_jump,
    opened,
    origin_seconds,
    packets_of,
)
from pipeline.decoding.sampling import FrameRequest, Span, pick_frames, smart_resize
from pipeline.decoding.timeline import (
    Packet,
    Run,
    Timeline,
    plan_runs,
    timeline_from_frames,
    timeline_from_packets,
)
from pipeline.errors import Reason, Stage, VideoError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TOLERATED_DAMAGE", "PyavVideo", "RawFrames", "damage_note", "model_size", "read_timeline"]

# A stream with more undecodable packets than this is called corrupt; below it the good frames are used.
TOLERATED_DAMAGE = 0.05
# Where neither the frames nor the container tell the time, as in a bare H.264 stream.
ASSUMED_FPS = 25.0


class _OvershotError(Exception):
    """A seek failed or landed behind its target; the container's index cannot be trusted."""


@dataclass(frozen=True)
class RawFrames:
    """What one decoder gave. data: uint8 (T, H, W, 3); pts_seconds: float64 (T,), as a player shows them.

    The file shows pictures from ``start_seconds`` to ``duration_seconds``.
    ``damage`` says what was wrong with a file that was read all the same, else None.
    """

    data: NDArray[np.uint8]
    pts_seconds: NDArray[np.float64]
    source_num_frames: int
    start_seconds: float
    duration_seconds: float
    header: Header
    damage: str | None


class PyavVideo:
    """One file. What is known of its packets is kept between reads; the file is opened for each."""

    def __init__(self, path: str, request: FrameRequest, limits: Limits) -> None:
        self._path = path
        self._request = request
        self._limits = limits
        self._walk: _Walk | None = None
        self._header: Header | None = None
        self._num_bad = 0  # in all spans so far
        self._timeline = read_timeline(path, limits) or _decode_timeline(path, limits)

    @property
    def timeline(self) -> Timeline:
        return self._timeline

    def read(self, span: Span) -> RawFrames:
        """Sampled frames of a span. Raises VideoError or DecoderRefusedError."""
        timeline = self._timeline
        chosen = pick_frames(timeline.seconds, timeline.duration_seconds, self._request, span)
        straight = Run(None, tuple(timeline.stamps[chosen].tolist()))
        try:
            taken = self._take(plan_runs(timeline, chosen)) if timeline.has_pts else self._take_on(straight)
        except _OvershotError:
            taken = self._take([straight])
        self._refuse(taken, span)
        header = taken.header
        assert header is not None, "a picture was taken, so the first was seen"
        if self._header is None:
            self._header = header
            gc.collect()  # see side_data_of
        return RawFrames(
            np.stack(taken.pictures),
            timeline.seconds_at(taken.stamps),
            len(timeline.stamps),
            timeline.start_seconds,
            timeline.duration_seconds,
            header,
            damage_note(header, timeline, taken.damage, taken.painter.notes),
        )

    def _refuse(self, taken: _Taken, span: Span) -> None:
        """In spans as much may be broken as in the whole: the last packet of a file cut short is no ruin."""
        self._num_bad += taken.damage.bad
        if span == Span():
            _refuse_ruins(taken.damage, len(taken.pictures))
        else:
            _refuse_ruins(Damage(len(self._timeline.stamps), self._num_bad), len(taken.pictures))

    def _take(self, runs: list[Run]) -> _Taken:
        """Decode along ``runs``; convert only the targets."""
        with opened(self._path, self._limits, self._limits.threads) as (container, stream):
            taken = _Taken(self._request, Painter(stream), self._header)
            frames = taken.begun(self._stamped(container, stream, taken.damage), container, stream)
            for run in runs:
                if run.seek is not None:
                    is_byte = self._timeline.clock is not None
                    if not jumped(container, stream, run.seek, is_byte=is_byte):
                        raise _OvershotError
                    frames = self._stamped(container, stream, taken.damage, run.seek)
                for stamp, frame in _on_target(frames, run):
                    taken.add(stamp, frame)
        return taken

    def _take_on(self, run: Run) -> _Taken:
        """Decode on from where the last span ended: frames without times can only be counted."""
        if self._walk is None or self._walk.position > run.targets[0]:
            self._walk = _Walk(self._path, self._limits)
        walk = self._walk
        taken = _Taken(self._request, walk.painter, self._header)
        bad_before = walk.damage.bad
        for stamp, frame in _on_target(taken.begun(walk.frames, walk.container, walk.stream), run):
            taken.add(stamp, frame)
        taken.damage = Damage(walk.damage.packets, walk.damage.bad - bad_before)
        return taken

    def _stamped(
        self, container: Any, stream: Any, damage: Damage, seek: int = 0
    ) -> Iterator[tuple[int, Any]]:
        for frame in decoded(
            container, stream, damage, self._limits, clock=self._timeline.clock, position=seek
        ):
            if frame.pts is not None:
                yield int(frame.pts), frame


class _Walk:
    """One pass over a file from its first frame on, that can be halted anywhere."""

    def __init__(self, path: str, limits: Limits) -> None:
        self._limits = limits
        self._closing = ExitStack()
        self.container, self.stream = self._closing.enter_context(opened(path, limits, limits.threads))
        self.painter = Painter(self.stream)
        self.damage = Damage()
        self.position = 0  # of the frame that comes next
        self.frames = self._numbered()

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        for frame in decoded(self.container, self.stream, self.damage, self._limits):
            self.position += 1
            yield self.position - 1, frame


@dataclass
class _Taken:
    request: FrameRequest
    painter: Painter
    header: Header | None
    stamps: list[int] = field(default_factory=list)
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    damage: Damage = field(default_factory=Damage)

    def begun(
        self, frames: Iterator[tuple[int, Any]], container: Any, stream: Any
    ) -> Iterator[tuple[int, Any]]:
        """The frames from the file's first on, which says how all are shown, whichever are wanted."""
        first = next(frames, None) if self.header is None else None
        if first is None:
            return frames
        self.header = describe(container, stream, first[1], self.painter)
        return chain([first], frames)

    def add(self, stamp: int, frame: Any) -> None:
        if self.stamps and stamp <= self.stamps[-1]:
            return
        assert self.header is not None, "the first frame came before"
        self.stamps.append(stamp)
        height, width = model_size(self.header, self.request)
        self.pictures.append(_picture(frame, height, width, self.header, self.painter))


def read_timeline(path: str, limits: Limits) -> Timeline | None:
    """The timeline without decoding, where the container gives every frame a time."""
    with opened(path, limits) as (container, stream):
        packets = (
            Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, packet.pos)
            for packet in packets_of(container, stream, limits)
            if packet.size and not packet.is_discard
        )
        return timeline_from_packets(
            packets,
            float(stream.time_base),
            origin_seconds=origin_seconds(container),
            may_jump=may_jump(container),
        )


def _decode_timeline(path: str, limits: Limits) -> Timeline:
    """The timeline of a stream that has to be decoded to be counted."""
    damage = Damage()
    with opened(path, limits, limits.threads) as (container, stream):
        pts = [frame.time for frame in decoded(container, stream, damage, limits)]
        rate = float(stream.guessed_rate or stream.average_rate or ASSUMED_FPS)
        origin, jumps = origin_seconds(container), may_jump(container)
    _refuse_ruins(damage, len(pts))
    return timeline_from_frames(pts, rate, origin_seconds=origin, may_jump=jumps)


def _refuse_ruins(damage: Damage, num_frames: int) -> None:
    if damage.bad > TOLERATED_DAMAGE * damage.packets:
        message = f"{damage.bad} of {damage.packets} packets cannot be decoded"
        raise DecoderRefusedError(Reason.CORRUPT, message)
    if num_frames == 0:
        raise DecoderRefusedError(Reason.CORRUPT, "no frame can be decoded")


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


def model_size(header: Header, request: FrameRequest) -> tuple[int, int]:
    """(height, width) at which the model sees the pictures. Raises VideoError (unsupported_codec)."""
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


def _picture(frame: Any, height: int, width: int, header: Header, painter: Painter) -> NDArray[np.uint8]:
    """One frame as RGB uint8 (height, width, 3), brought upright after the (cheaper) resize."""
    is_mirrored, turns = header.turn
    if turns % 2:
        height, width = width, height
    if (frame.width, frame.height) != header.stored_size:
        painter.say("its pictures change size on the way: all are shown in the shape of the first")
    picture = painter.picture(frame, height, width)
    return np.rot90(np.fliplr(picture) if is_mirrored else picture, turns)


def damage_note(
    header: Header, timeline: Timeline, damage: Damage, of_pictures: Sequence[str] = ()
) -> str | None:
    """What was wrong with a file that was read all the same, or None."""
    notes = list(dict.fromkeys((*header.notes, *of_pictures)))
    if damage.bad:
        notes.append(f"{damage.bad} of {damage.packets} packets could not be decoded")
    end, claimed = timeline.duration_seconds, header.claimed_end_seconds
    if timeline.clock is not None:
        num = len(timeline.clock.starts)
        notes.append(f"its timestamps jump in {num} place{'s' if num > 1 else ''}, over which times run on")
    elif claimed > end * 1.05 + 1.0:
        notes.append(f"ends at {end:.1f} s of {claimed:.1f} s")
    return "; ".join(notes) or None
