"""Frames through PyAV: any container, any codec, frame by frame. Runs only inside decode children."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.decoding.colours import Painter
from pipeline.decoding.containers import (
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
    told_by,
)
from pipeline.decoding.counted import CountedFrames, OvershotError
from pipeline.decoding.damage import Damage, damage_note, refuse_ruins
from pipeline.decoding.decoder_log import ContainerLog
from pipeline.decoding.joined import ONE_FILE, Extent, extent_of, note_of_rest
from pipeline.decoding.sampling import FrameRequest, Span, pick_frames, smart_resize
from pipeline.decoding.timeline import (
    Clock,
    Packet,
    Run,
    Timeline,
    Told,
    plan_runs,
    timeline_from_frames,
    timeline_from_packets,
)
from pipeline.errors import Reason, Stage, VideoError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PyavVideo", "RawFrames", "model_size", "read_timeline"]

# Where neither the frames nor the container tell the time, as in a bare H.264 stream.
ASSUMED_FPS = 25.0


# Pictures that come in another order than their times: a few are slips, so many of those read are a rule.
_SLIPS = 2
_MOST_SLIPS = 0.05


class _MisorderedError(Exception):
    """The times of the packets are not those at which pictures are shown."""


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
    """One file. What is known of its packets is kept between reads, and where the last one ended."""

    def __init__(self, path: str, request: FrameRequest, limits: Limits) -> None:
        self._path = path
        self._request = request
        self._extent = extent_of(path, limits)
        self._limits = limits = replace(limits, end_byte=self._extent.end)
        self._counted: CountedFrames | None = None
        self._pass: _Pass | None = None
        self._header: Header | None = None
        self._damage = Damage()  # in all spans so far
        timeline = read_timeline(path, limits, self._extent, self._damage)
        if timeline is None:
            timeline = _decode_timeline(path, limits, self._extent, self._damage)
            self._damage.packets = self._damage.seen
        else:
            self._damage.packets = len(timeline.stamps)
        self._timeline = timeline

    @property
    def timeline(self) -> Timeline:
        return self._timeline

    def read(self, span: Span) -> RawFrames:
        """Sampled frames of a span. Raises VideoError or DecoderRefusedError."""
        try:
            return self._read(span)
        except _MisorderedError:
            self._leave()
            self._damage = damage = Damage(len(self._timeline.stamps))
            timeline = read_timeline(self._path, self._limits, self._extent, damage, is_misordered=True)
            if timeline is None:
                timeline = _decode_timeline(self._path, self._limits, self._extent, damage)
            self._timeline = timeline
            return self._read(span)

    def _read(self, span: Span) -> RawFrames:
        timeline = self._timeline
        chosen = pick_frames(timeline.seconds, timeline.duration_seconds, self._request, span)
        straight = Run(None, tuple(timeline.stamps[chosen].tolist()))
        touched_before = self._damage.touched
        try:
            taken = self._take(self._plan(chosen)) if timeline.has_pts else self._take_on(straight)
        except OvershotError:
            self._leave()
            taken = self._take([straight]) if timeline.has_pts else self._take_on(straight, may_jump=False)
        self._damage.sampled += len(taken.stamps)
        refuse_ruins(
            self._damage,
            num_pictures=len(taken.stamps),
            num_touched=self._damage.touched - touched_before,
            is_whole=span == Span(),
        )
        header = taken.header
        if header is None or not taken.pictures:
            raise DecoderRefusedError(Reason.CORRUPT, "no frame can be decoded")
        if self._header is None:
            self._header = header
            gc.collect()  # see side_data_of
        if span == Span():
            self._leave()
        return RawFrames(
            np.stack(taken.pictures),
            timeline.seconds_at(taken.stamps),
            len(timeline.stamps),
            timeline.start_seconds,
            timeline.duration_seconds,
            header,
            _joined(
                *header.notes,
                *taken.painter.notes,
                damage_note(header.claimed_end_seconds, timeline, self._damage),
            ),
        )

    def _plan(self, chosen: NDArray[np.int64]) -> list[Run]:
        """From where the last read ended, if what is wanted can be reached from there."""
        reached = 0 if self._pass is None else self._pass.reached(self._timeline)
        runs = plan_runs(self._timeline, chosen, reached)
        if runs[0].seek is None and chosen[0] < reached:
            self._leave()
        return runs

    def _leave(self) -> None:
        """Let go of the file; the next read begins at its beginning."""
        if self._pass is not None:
            self._pass.close()
            self._pass = None

    def _take(self, runs: list[Run]) -> _Taken:
        """Decode along ``runs``; convert only the targets."""
        if self._pass is None:
            self._pass = _Pass(self._path, self._timeline, self._damage, self._limits)
        way = self._pass
        taken = _Taken(self._request, way.painter, self._header)
        way.frames = taken.begun(way.frames, way.container, way.stream)
        for run in runs:
            if run.seek is not None:
                way.jump(run)
            for stamp, frame in _on_target(way.frames, run, self._damage):
                taken.add(stamp, frame)
        return taken

    def _take_on(self, run: Run, *, may_jump: bool = True) -> _Taken:
        """Decode on from where the last span ended: frames without times can only be counted."""
        if self._counted is None or not may_jump or self._counted.is_past(run.targets[0]):
            if self._counted is not None:
                self._counted.close()
            self._counted = CountedFrames(
                self._path, self._timeline, self._damage, self._limits, may_jump=may_jump
            )
        counted = self._counted
        taken = _Taken(self._request, counted.painter, self._header)
        targets = deque(run.targets)
        while targets:
            frames = counted.from_place(0 if taken.header is None else targets[0])
            for place, frame in taken.begun(frames, counted.container, counted.stream):
                is_wanted = _takes(targets, place, frame, self._damage)
                if is_wanted:
                    taken.add(place, frame)
                if is_wanted or place == 0:  # from there on it may jump
                    break
            else:
                break
        return taken


class _Pass:
    """An open file, halted behind the last frame that was wanted."""

    def __init__(self, path: str, timeline: Timeline, damage: Damage, limits: Limits) -> None:
        self._clock, self._damage, self._limits = timeline.clock, damage, limits
        self._closing = ExitStack()
        self.container, self.stream = self._closing.enter_context(opened(path, limits, limits.threads))
        self.painter = Painter(self.stream)
        self._last_stamp: int | None = None
        self.frames = self._stamped(None)

    def close(self) -> None:
        self.frames = iter(())
        self._closing.close()

    def reached(self, timeline: Timeline) -> int:
        """The index of the frame that comes next."""
        if self._last_stamp is None:
            return 0
        return int(np.searchsorted(timeline.stamps, self._last_stamp, side="right"))

    def jump(self, run: Run) -> None:
        """Go where a run begins. Raises OvershotError where that fails."""
        assert run.seek is not None, "a run without a place to go goes straight on"
        if not jumped(self.container, self.stream, run.seek, is_byte=self._clock is not None):
            raise OvershotError
        self.frames = self._stamped(run)

    def _stamped(self, run: Run | None) -> Iterator[tuple[int, Any]]:
        """(pts, frame); from a run's jump on where there is one. May raise _MisorderedError."""
        seek, key = (None, None) if run is None else (run.seek, run.key)
        mend = None if self._clock is None else _Mender(self._clock, seek or 0)
        last, slips, number = None, 0, 0
        for frame in decoded(
            self.container, self.stream, self._damage, self._limits, mend=mend, shown_from=key
        ):
            if frame.pts is None:
                continue
            stamp = int(frame.pts)
            number += 1
            slips += last is not None and stamp < last
            if slips > _SLIPS and slips > _MOST_SLIPS * number:
                raise _MisorderedError
            last = self._last_stamp = stamp
            yield stamp, frame


class _Mender:
    """Moves the times of packets by a clock, from the byte ``position`` on."""

    def __init__(self, clock: Clock, position: int) -> None:
        self._clock = clock
        self._position = position

    def __call__(self, packet: Any) -> None:
        self._position = self._position if packet.pos is None else packet.pos
        if packet.pts is not None:
            packet.pts += self._clock.shift(self._position)


@dataclass
class _Taken:
    request: FrameRequest
    painter: Painter
    header: Header | None
    stamps: list[int] = field(default_factory=list)
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)

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


def _joined(*notes: str | None) -> str | None:
    return "; ".join(dict.fromkeys(note for note in notes if note)) or None


def read_timeline(
    path: str,
    limits: Limits,
    extent: Extent = ONE_FILE,
    damage: Damage | None = None,
    *,
    is_misordered: bool = False,
) -> Timeline | None:
    """The timeline without decoding, where the container gives every frame a time.

    damage: where to count what the container says is not whole.
    is_misordered: the times at which pictures are said to be shown have proved to be wrong.
    """
    damage = Damage() if damage is None else damage
    last_byte = 0

    def packets(container: Any, stream: Any) -> Iterator[Packet]:
        nonlocal last_byte
        for packet in packets_of(container, stream, limits, damage):
            if packet.size and not packet.is_discard:
                last_byte = max(last_byte, packet.pos or 0)
                damage.walk_over(packet)
                yield Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, packet.pos)

    with opened(path, limits) as (container, stream), ContainerLog(container) as log:
        walk = packets(container, stream)
        timeline = timeline_from_packets(
            walk,
            float(stream.time_base),
            origin_seconds=origin_seconds(container),
            may_jump=may_jump(container) or extent.runs_on,
            told=Told.DECODED_UNORDERED if is_misordered else told_by(container, stream),
        )
        deque(walk, maxlen=0)  # to hear all of it, also where one packet without a time was enough
        damage.end_walk(log.num_lost)
        names = frozenset(container.format.name.split(","))
    return timeline and replace(timeline, note=extent.note or note_of_rest(path, names, last_byte + 1))


def _decode_timeline(path: str, limits: Limits, extent: Extent, damage: Damage) -> Timeline:
    """The timeline of a stream that has to be decoded to be counted."""
    with opened(path, limits, limits.threads) as (container, stream):
        pts = [frame.time for frame in decoded(container, stream, damage, limits)]
        rate = float(stream.guessed_rate or stream.average_rate or ASSUMED_FPS)
        origin, jumps = origin_seconds(container), may_jump(container) or extent.runs_on
    refuse_ruins(damage, num_pictures=len(pts), num_touched=0, is_whole=False)
    if not pts:
        raise DecoderRefusedError(Reason.CORRUPT, "no frame can be decoded")
    timeline = timeline_from_frames(pts, rate, origin_seconds=origin, may_jump=jumps)
    return replace(timeline, note=extent.note)


def _on_target(frames: Iterator[tuple[int, Any]], run: Run, damage: Damage) -> Iterator[tuple[int, Any]]:
    """The wanted frames; in place of one that cannot be decoded, the next that can."""
    targets = deque(run.targets)
    for number, (stamp, frame) in enumerate(frames):
        if number == 0 and run.seek is not None and stamp > targets[0]:
            raise OvershotError
        if _takes(targets, stamp, frame, damage):
            yield stamp, frame
        if not targets:
            return


def _takes(targets: deque[int], stamp: int, frame: Any, damage: Damage) -> bool:
    """Whether a frame is wanted; those of ``targets`` (increasing) that it stands for are removed."""
    is_wanted = False
    while targets and targets[0] <= stamp:
        is_wanted = True
        is_missing = targets.popleft() < stamp and damage.is_any
        damage.touched += is_missing or damage.touches(frame)
    return is_wanted


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
    if painter.form_of(frame) != header.form:
        painter.say("its pictures change shape on the way: all are shown in that of the first")
    picture = painter.picture(frame, height, width)
    return np.rot90(np.fliplr(picture) if is_mirrored else picture, turns)
