"""When each frame of a stream is shown, and the cheapest way to reach some of them. No decoder, no files."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Packet", "Run", "Timeline", "plan_runs", "timeline_from_frames", "timeline_from_packets"]

# Frames that must be skippable before a seek pays for flushing and refilling the decoder.
SEEK_WORTH_FRAMES = 16
# Timestamps further apart than this are no times; the arithmetic below would overflow.
_MOST_TICKS = 2**62
_UNKNOWN = 2**63 - 1


class Packet(NamedTuple):
    """What the container says of one packet, in ticks of the stream's time base."""

    pts: int | None
    dts: int | None
    duration: int
    is_key: bool


@dataclass(frozen=True)
class Timeline:
    """Every frame of a stream in display order, the first at 0 seconds.

    stamps: int64 (N,), increasing: pts in ticks, or ordinals where ``has_pts`` is False.
    key_stamps, key_seeks: int64 (K,): pts of the keyframes, and where to seek to reach each.
    has_open_gops: some frames shown before a keyframe are stored after it.
    """

    stamps: NDArray[np.int64]
    seconds: NDArray[np.float64]
    duration_seconds: float
    has_pts: bool = True
    has_open_gops: bool = False
    key_stamps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    key_seeks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def seconds_at(self, stamps: Sequence[int]) -> NDArray[np.float64]:
        """Seconds (T,) of frames with these stamps."""
        at = np.searchsorted(self.stamps, np.asarray(stamps, dtype=np.int64))
        return np.asarray(self.seconds[np.minimum(at, len(self.seconds) - 1)], dtype=np.float64)


@dataclass(frozen=True)
class Run:
    """Decode on from ``seek`` (None: from where the decoder stands) until the last of ``targets``."""

    seek: int | None
    targets: tuple[int, ...]


def timeline_from_packets(packets: Iterable[Packet], seconds_per_tick: float) -> Timeline | None:
    """The timeline of a stream read without decoding; None where the container lacks unique timestamps.

    Takes packets one by one, in the order in which they are stored, and keeps 25 bytes of each.
    """
    columns = [array("q"), array("q"), array("q")]
    flags = bytearray()
    for packet in packets:
        if packet.pts is None:
            return None
        decoded_at = _UNKNOWN if packet.dts is None else packet.dts
        for column, value in zip(columns, (packet.pts, decoded_at, packet.duration), strict=True):
            column.append(value)
        flags.append(packet.is_key)
    if not flags:
        return None
    pts, dts, durations = (np.frombuffer(column, dtype=np.int64) for column in columns)
    is_key = np.frombuffer(flags, dtype=np.bool_)
    if int(pts.max()) - int(pts.min()) > _MOST_TICKS:
        return None
    stamps = np.sort(pts)
    if (np.diff(stamps) == 0).any():
        return None
    seconds = (stamps - stamps[0]) * seconds_per_tick
    last = float(durations[pts.argmax()]) * seconds_per_tick
    key_stamps, key_seeks = _key_places(pts[is_key], dts[is_key])
    return Timeline(
        stamps,
        seconds,
        float(seconds[-1]) + (last if last > 0 else _typical_step(seconds)),
        has_open_gops=_has_open_gops(pts, is_key),
        key_stamps=key_stamps,
        key_seeks=key_seeks,
    )


def timeline_from_frames(pts_seconds: Sequence[float | None], frames_per_second: float) -> Timeline:
    """The timeline of a stream that had to be decoded to be counted; at least one frame.

    Timestamps that are absent or not increasing are replaced by a constant rate.
    """
    known = np.array([np.nan if pts is None else pts for pts in pts_seconds], dtype=np.float64)
    usable = bool(np.isfinite(known).all() and (np.diff(known) > 0).all())
    ordinals = np.arange(len(known), dtype=np.int64)
    seconds = known - known[0] if usable else ordinals / frames_per_second
    step = _typical_step(seconds) if len(seconds) > 1 else 1.0 / frames_per_second
    return Timeline(ordinals, seconds, float(seconds[-1]) + step, has_pts=False)


def plan_runs(timeline: Timeline, chosen: NDArray[np.int64]) -> list[Run]:
    """How to reach the chosen frames (increasing indices): straight on, or by a jump where cheaper."""
    targets = timeline.stamps[chosen]
    if len(timeline.key_stamps) == 0:
        return [Run(None, tuple(targets.tolist()))]
    key_places = np.searchsorted(timeline.stamps, timeline.key_stamps)
    groups = np.maximum(np.searchsorted(timeline.key_stamps, targets, side="right") - 1, 0)
    runs: list[Run] = []
    reached = 0
    for group in np.unique(groups):
        members = tuple(targets[groups == group].tolist())
        if key_places[group] - reached > SEEK_WORTH_FRAMES:
            runs.append(Run(int(timeline.key_seeks[group]), members))
        elif runs:
            runs[-1] = Run(runs[-1].seek, runs[-1].targets + members)
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
    pts: NDArray[np.int64], dts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keyframes in the order shown, and where to seek to reach each.

    Containers index by decode time, which never lies after the pts: aiming there cannot overshoot.
    """
    order = np.argsort(pts, kind="stable")
    return pts[order], np.minimum(pts, dts)[order]


def _typical_step(seconds: NDArray[np.float64]) -> float:
    return float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0
