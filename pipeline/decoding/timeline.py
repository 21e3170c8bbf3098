"""When each frame of a stream is shown, and the cheapest way to reach some of them. No decoder, no files."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Clock",
    "Packet",
    "Run",
    "Timeline",
    "Told",
    "plan_runs",
    "timeline_from_frames",
    "timeline_from_packets",
]

# Frames that must be skippable before a seek pays for flushing and refilling the decoder.
SEEK_WORTH_FRAMES = 16
_SEEK_WORTH_KEYFRAMES = 5  # where all are keyframes, as in MJPEG and ProRes
# A picture that starts less than this after its container starts with it: containers round differently.
_SAME_START_SECONDS = 1e-3
# Where a clock may start anew, a step of decode times back or forward by more than this is such a place.
_JUMP_BACK_SECONDS = 0.25
_JUMP_FORWARD_SECONDS = 60.0
# Timestamps further apart than this are no times; the arithmetic below would overflow.
_MOST_TICKS = 2**62
# Of all times, as many as this may be missing, as damage leaves them, and the others still be believed.
_MOST_MENDED = 0.1
_UNKNOWN = 2**63 - 1


class Told(Enum):
    """Which times a container holds."""

    SHOWN = "when pictures are shown"
    DECODED = "when they are decoded; the demuxer may know in which order they are shown"
    DECODED_UNORDERED = "when they are decoded; what is said of showing them is known to be wrong"


class Packet(NamedTuple):
    """What the container says of one packet, in ticks of the stream's time base."""

    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    position: int | None = None  # in bytes, in the file; None: that of the packet before


class _Columns(NamedTuple):
    """The same of all packets, in the order in which they are stored: int64 (N,), is_key bool (N,)."""

    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    durations: NDArray[np.int64]
    positions: NDArray[np.int64]
    is_key: NDArray[np.bool_]


@dataclass(frozen=True)
class Clock:
    """Where the timestamps of a stream jump, as in files put one behind the other, and what mends that.

    starts: int64 (J,), increasing, bytes of the file; offsets: int64 (J,), ticks to add from there on.
    """

    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def shift(self, position: int) -> int:
        """Ticks to add to the timestamps of the packet at this byte."""
        at = int(np.searchsorted(self.starts, position, side="right"))
        return int(self.offsets[at - 1]) if at else 0


@dataclass(frozen=True)
class Timeline:
    """Every frame of a stream in display order.

    Times are those a player shows: 0 is where the container starts, be it with sound. What comes before the
    first picture is not looked at.

    stamps: int64 (N,), increasing: pts in ticks, or ordinals where ``has_pts`` is False.
    seconds: float64 (N,), the first >= 0; duration_seconds: when the last picture ends.
    key_stamps, key_seeks: int64 (K,): pts of the keyframes, and where to seek to reach each: a time in ticks,
    or a byte where there is a ``clock``, by which all stamps are mended. Without pts: which packets they are.
    has_open_gops: some frames shown before a keyframe are stored after it.
    decode_ticks: int64 (N,), increasing: when each packet is decoded, where only that is known; else empty.
    note: what is to be said of the file besides.
    """

    stamps: NDArray[np.int64]
    seconds: NDArray[np.float64]
    duration_seconds: float
    has_pts: bool = True
    has_open_gops: bool = False
    key_stamps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    key_seeks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    clock: Clock | None = None
    decode_ticks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    note: str | None = None

    @property
    def start_seconds(self) -> float:
        """When the first picture is shown."""
        return float(self.seconds[0])

    def seconds_at(self, stamps: Sequence[int]) -> NDArray[np.float64]:
        """Seconds (T,) of frames with these stamps."""
        at = np.searchsorted(self.stamps, np.asarray(stamps, dtype=np.int64))
        return np.asarray(self.seconds[np.minimum(at, len(self.seconds) - 1)], dtype=np.float64)


@dataclass(frozen=True)
class Run:
    """Decode on from ``seek`` (None: from where the decoder stands) until the last of ``targets``.

    ``key``: the stamp of the keyframe that ``seek`` leads to.
    """

    seek: int | None
    targets: tuple[int, ...]
    key: int | None = None


def timeline_from_packets(
    packets: Iterable[Packet],
    seconds_per_tick: float,
    *,
    origin_seconds: float | None = None,
    may_jump: bool = False,
    told: Told = Told.SHOWN,
) -> Timeline | None:
    """The timeline of a stream read without decoding; None where the container lacks unique timestamps.

    Takes packets one by one, in the order in which they are stored, and keeps 33 bytes of each.
    origin_seconds: when the container starts, on the clock of the stream; None: with the first picture.
    may_jump: the format allows its clock to start anew; times then run on over such places.
    told: which times the container holds; what else its packets carry was made up by the demuxer.
    """
    columns = _columns(packets, told)
    if columns is None:
        return None
    pts, dts, durations, positions, is_key = columns
    if told is not Told.SHOWN and dts.max() < _UNKNOWN and (np.diff(dts) > 0).all():
        return _timeline_of_decoding(columns, seconds_per_tick, origin_seconds, told)
    if told is Told.DECODED_UNORDERED:
        return None
    clock = _clock(dts, positions, seconds_per_tick) if may_jump else None
    if clock is not None:
        shifts = np.concatenate(([0], clock.offsets))[np.searchsorted(clock.starts, positions, side="right")]
        pts, dts = pts + shifts, dts + shifts
        if np.abs(pts - dts).max() * seconds_per_tick > _JUMP_FORWARD_SECONDS:
            return None  # at a jump some parsers give a picture the time of the next
    stamps = np.sort(pts)
    if (np.diff(stamps) == 0).any():
        return None
    seconds = (stamps - stamps[0]) * seconds_per_tick
    seconds = seconds + _lead(float(stamps[0]) * seconds_per_tick, origin_seconds)
    last = float(durations[pts.argmax()]) * seconds_per_tick
    seeks = np.minimum(pts, dts) if clock is None else positions
    key_stamps, key_seeks = _key_places(pts[is_key], seeks[is_key])
    return Timeline(
        stamps,
        seconds,
        float(seconds[-1]) + (last if last > 0 else _typical_step(seconds)),
        has_open_gops=_has_open_gops(pts, is_key),
        key_stamps=key_stamps,
        key_seeks=key_seeks,
        clock=clock,
    )


def _columns(packets: Iterable[Packet], told: Told) -> _Columns | None:
    """None where there is no packet, or one without a time."""
    columns = tuple(array("q") for _ in range(4))
    flags = bytearray()
    position = 0
    for packet in packets:
        shown_at = packet.dts if packet.pts is None and told is not Told.SHOWN else packet.pts
        if shown_at is None:
            return None
        decoded_at = _UNKNOWN if packet.dts is None else packet.dts
        position = position if packet.position is None else packet.position
        for column, value in zip(columns, (shown_at, decoded_at, packet.duration, position), strict=True):
            column.append(value)
        flags.append(packet.is_key)
    if not flags:
        return None
    pts, dts, durations, positions = (np.frombuffer(column, dtype=np.int64) for column in columns)
    if int(pts.max()) - int(pts.min()) > _MOST_TICKS:
        return None
    return _Columns(pts, dts, durations, positions, np.frombuffer(flags, dtype=np.bool_))


def _timeline_of_decoding(
    columns: _Columns, seconds_per_tick: float, origin_seconds: float | None, told: Told
) -> Timeline:
    """Where only decode times are stored: the k-th picture shown is shown when the k-th is decoded.

    The order in which pictures are shown is the demuxer's, where it found out, else left to the decoder.
    """
    pts, dts, durations, _, is_key = columns
    lead = _lead(float(dts[0]) * seconds_per_tick, origin_seconds)
    seconds = (dts - dts[0]) * seconds_per_tick + lead
    last = float(durations[-1]) * seconds_per_tick
    end = float(seconds[-1]) + (last if last > 0 else _typical_step(seconds))
    order = np.sort(pts)
    if told is Told.DECODED_UNORDERED or not _is_order_known(pts, dts, order):
        places = np.flatnonzero(is_key)
        return Timeline(
            np.arange(len(dts)),
            seconds,
            end,
            has_pts=False,
            key_stamps=places,
            key_seeks=dts[places],
            decode_ticks=dts.copy(),
        )
    if (np.diff(dts) == durations[:-1]).all():  # without gaps they say more, as where fields are repeated
        seconds = np.cumsum(durations[np.argsort(pts)][:-1]) * seconds_per_tick
        seconds = np.concatenate(([0.0], seconds)) + lead
    key_stamps, key_seeks = _key_places(pts[is_key], np.minimum(pts, dts)[is_key])
    return Timeline(
        order,
        seconds,
        end,
        has_open_gops=_has_open_gops(pts, is_key),
        key_stamps=key_stamps,
        key_seeks=key_seeks,
    )


def _is_order_known(pts: NDArray[np.int64], dts: NDArray[np.int64], order: NDArray[np.int64]) -> bool:
    """Whether made-up times, ``order`` when sorted, put pictures into the order in which they are shown.

    They do not where all are those of decoding, nor where libav learnt of reordering on the way: then the lag
    behind decoding changes.
    """
    lag = order - dts
    is_steady = len(dts) < 2 or np.ptp(lag) < np.median(np.diff(dts))
    is_reordered = np.ptp(pts - dts) > 0 or (pts == dts).all()
    return bool(is_steady and is_reordered and (np.diff(order) > 0).all())


def timeline_from_frames(
    pts_seconds: Sequence[float | None],
    frames_per_second: float,
    *,
    origin_seconds: float | None = None,
    may_jump: bool = False,
) -> Timeline:
    """The timeline of a stream that had to be decoded to be counted; at least one frame.

    A few that are absent or lie before one that comes sooner are laid between their neighbours. Timestamps
    that are mostly so, or jump forward where ``may_jump``, are replaced by a constant rate, from 0 on.
    """
    known = np.array([np.nan if pts is None else pts for pts in pts_seconds], dtype=np.float64)
    known = _mended(known, 1.0 / frames_per_second)
    most = _JUMP_FORWARD_SECONDS if may_jump else np.inf
    steps = np.diff(known)
    usable = bool(np.isfinite(known).all() and (steps > 0).all() and (steps <= most).all())
    ordinals = np.arange(len(known), dtype=np.int64)
    lead = _lead(float(known[0]), origin_seconds) if usable else 0.0
    seconds = known - known[0] + lead if usable else ordinals / frames_per_second
    step = _typical_step(seconds) if len(seconds) > 1 else 1.0 / frames_per_second
    return Timeline(ordinals, seconds, float(seconds[-1]) + step, has_pts=False)


def _mended(seconds: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Those that are missing or out of order, if few, between the others; beyond these ``step`` apart."""
    places = _longest_increasing(seconds)
    if len(places) == len(seconds) or len(places) < (1 - _MOST_MENDED) * len(seconds):
        return seconds
    ordinals = np.arange(len(seconds))
    mended = np.interp(ordinals, places, seconds[places]) - np.maximum(0, places[0] - ordinals) * step
    return np.asarray(mended + np.maximum(0, ordinals - places[-1]) * step)


def _longest_increasing(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of the longest increasing subsequence of what is finite."""
    ends: list[float] = []  # the least last time of the sequences of each length, and where it is
    at: list[int] = []
    before = np.full(len(seconds), -1)
    for place in np.flatnonzero(np.isfinite(seconds)).tolist():
        length = bisect_left(ends, seconds[place])
        before[place] = at[length - 1] if length else -1
        ends[length : length + 1], at[length : length + 1] = [seconds[place]], [place]
    places = at[-1:]
    while places and before[places[-1]] >= 0:
        places.append(int(before[places[-1]]))
    return np.asarray(places[::-1], dtype=np.int64)


def plan_runs(timeline: Timeline, chosen: NDArray[np.int64], reached: int = 0) -> list[Run]:
    """How to reach the chosen frames (increasing indices): straight on, or by a jump where cheaper.

    reached: the index of the frame that the decoder gives next.
    """
    targets = timeline.stamps[chosen]
    if len(timeline.key_stamps) == 0:
        return [Run(None, tuple(targets.tolist()))]
    key_places = np.searchsorted(timeline.stamps, timeline.key_stamps)
    groups = np.maximum(np.searchsorted(timeline.key_stamps, targets, side="right") - 1, 0)
    is_intra = len(timeline.key_stamps) == len(timeline.stamps)
    worth = _SEEK_WORTH_KEYFRAMES if is_intra else SEEK_WORTH_FRAMES
    runs: list[Run] = []
    for group in np.unique(groups):
        members = tuple(targets[groups == group].tolist())
        is_behind = int(chosen[groups == group][0]) < reached
        if is_behind or key_places[group] - reached > worth:
            runs.append(Run(int(timeline.key_seeks[group]), members, int(timeline.key_stamps[group])))
        elif runs:
            runs[-1] = replace(runs[-1], targets=runs[-1].targets + members)
        else:
            runs.append(Run(None, members))
        reached = int(chosen[groups == group][-1]) + 1
    return runs


def _has_open_gops(pts: NDArray[np.int64], is_key: NDArray[np.bool_]) -> bool:
    """Whether a frame stored after a keyframe is shown before it."""
    places = np.where(is_key, np.arange(len(pts)), -1)
    latest_key = np.maximum.accumulate(places)
    return bool((~is_key & (latest_key >= 0) & (pts < pts[latest_key])).any())


def _key_places(
    pts: NDArray[np.int64], seeks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keyframes in the order shown, and where to seek to reach each.

    Containers index by decode time, which never lies after the pts: aiming there cannot overshoot.
    """
    order = np.argsort(pts, kind="stable")
    return pts[order], seeks[order]


def _lead(first_seconds: float, origin_seconds: float | None) -> float:
    """From where the container starts to the first picture, in seconds."""
    lead = 0.0 if origin_seconds is None else first_seconds - origin_seconds
    return lead if lead > _SAME_START_SECONDS else 0.0


def _clock(dts: NDArray[np.int64], positions: NDArray[np.int64], seconds_per_tick: float) -> Clock | None:
    """How to let decode times run on where they jump; None where they do not, or nobody could tell where."""
    if dts.max() == _UNKNOWN or int(dts.max()) - int(dts.min()) > _MOST_TICKS:
        return None
    steps = np.diff(dts)
    is_jump = (steps * seconds_per_tick < -_JUMP_BACK_SECONDS) | (
        steps * seconds_per_tick > _JUMP_FORWARD_SECONDS
    )
    jumps = np.flatnonzero(is_jump) + 1
    moves = np.diff(positions)
    if len(jumps) == 0 or is_jump.all() or (moves < 0).any() or (moves[is_jump] == 0).any():
        return None
    usual = int(np.median(steps[~is_jump]))
    return Clock(positions[jumps], np.cumsum(usual - steps[jumps - 1]))


def _typical_step(seconds: NDArray[np.float64]) -> float:
    return float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0
