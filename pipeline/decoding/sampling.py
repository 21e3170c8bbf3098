"""Which frames of a video are looked at, and at what size. Plain arithmetic: no decoder, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from flashvid.resizing import smart_resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FrameRequest", "Span", "num_wanted", "pick_frames", "smart_resize"]


@dataclass(frozen=True)
class FrameRequest:
    """What the model wants to see of every video.

    ``uniform``: ``num_frames`` evenly over the video. ``fps``: ``fps`` per second, at most ``num_frames``
    (evenly over the whole video then). Sides come out as multiples of ``multiple`` pixels, area within
    [min_pixels, max_pixels], by ``smart_resize``.
    """

    sampling: Literal["uniform", "fps"]
    num_frames: int
    fps: float
    min_pixels: int
    max_pixels: int
    multiple: int = 28

    def __post_init__(self) -> None:
        if self.sampling not in ("uniform", "fps"):
            raise ValueError(f"{self.sampling = } must be 'uniform' or 'fps'")
        if self.num_frames < 1 or not self.fps > 0:
            raise ValueError(f"{self.num_frames = } must be >= 1 and {self.fps = } > 0")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"{self.min_pixels = } must be in (0, {self.max_pixels = }]")
        if self.max_pixels < self.multiple**2:
            raise ValueError(f"{self.max_pixels = } is less than one cell of {self.multiple}**2 pixels")

    @property
    def max_bytes(self) -> int:
        """Most bytes of RGB pixels one video can give. Very long and thin frames may exceed it slightly."""
        return self.num_frames * self.max_pixels * 3


@dataclass(frozen=True)
class Span:
    """The part of a video that frames are taken from: start <= t < end; ``end_seconds`` None: to its end."""

    start_seconds: float = 0.0
    end_seconds: float | None = None


def num_wanted(duration_seconds: float, request: FrameRequest) -> int:
    """Frames asked of a video or span of this length, before it is known how many it has."""
    if request.sampling == "uniform":
        return request.num_frames
    # A duration is whatever a file claims: infinity and NaN must not reach round().
    rate_limit = min(max(1.0, duration_seconds * request.fps), float(request.num_frames))
    return max(1, round(rate_limit))


def pick_frames(
    pts_seconds: NDArray[np.float64],
    duration_seconds: float,
    request: FrameRequest,
    span: Span = Span(),
) -> NDArray[np.int64]:
    """Indices of the frames to decode, strictly increasing, at most as many as the span has.

    pts_seconds: float64 (N,), increasing, the first >= 0. The span, from the first frame on, is cut into n
    equal intervals; the frame on screen at the middle of each is taken. With a constant frame rate exactly
    min(n, N) come out; where one frame stands still over several intervals it is taken once. Frames that were
    first shown before the span are left out, but where it shows no new one: then the one on screen is taken.
    """
    first, last = _range(pts_seconds, span)
    total = last - first
    until = duration_seconds if span.end_seconds is None else min(span.end_seconds, duration_seconds)
    begin = max(span.start_seconds, float(pts_seconds[0]))
    length = max(0.0, until - begin)
    wanted = num_wanted(length, request)
    if wanted >= total:
        return np.arange(first, last, dtype=np.int64)
    interval = length / wanted
    instants = begin + (np.arange(wanted) + 0.5) * interval
    shown = np.clip(np.searchsorted(pts_seconds, instants, side="right") - 1, first, last - 1)
    spread = first + _strictly_increasing(shown - first, total)
    # Jitter in timestamps can put two instants on one frame: a neighbour will do, one far away would lie.
    is_near = np.abs(pts_seconds[spread] - instants) <= interval
    return np.unique(np.where(is_near, spread, shown)).astype(np.int64)


def _range(pts_seconds: NDArray[np.float64], span: Span) -> tuple[int, int]:
    """The half-open range of frames that the span shows first, or the one that it begins with."""
    end = np.inf if span.end_seconds is None else span.end_seconds
    first, last = np.searchsorted(pts_seconds, [span.start_seconds, end], side="left").tolist()
    if first < last:
        return first, last
    on_screen = max(0, first - 1)
    return on_screen, on_screen + 1


def _strictly_increasing(indices: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """The nearest strictly increasing sequence at or after ``indices``, pushed back from the end."""
    steps = np.arange(len(indices))
    pushed = np.maximum.accumulate(indices - steps) + steps
    return np.asarray(np.minimum(pushed, total - len(indices) + steps), dtype=np.int64)
