"""Which parts of a video are looked at on their own. Pure arithmetic."""

from __future__ import annotations

import math

from pipeline.config import WindowsConfig
from pipeline.errors import Reason, Stage, VideoError
from pipeline.records import Window

__all__ = ["plan_windows"]

# A rest of the clip too short to be worth a caption is part of the window before it. Containers often claim
# a few hundredths of a second more than there are frames.
_SHORTEST_REST_SECONDS = 1.0
_SHORTEST_REST_SHARE = 0.1

_COUNTABLE = 1e15  # a file may claim any duration


def plan_windows(
    duration_seconds: float,
    config: WindowsConfig | None,
    start: float | None = None,
    end: float | None = None,
    *,
    first_picture_seconds: float = 0.0,
) -> tuple[Window, ...]:
    """The windows of a clip, in order; half-open, in seconds from the start of the video.

    The clip is [``start``, ``end``) within [0, ``duration_seconds``); None: from the start, to the end.
    Windows begin every ``length_seconds - overlap_seconds`` and are ``length_seconds`` long; the last one
    ends where the clip ends. It is shorter, or longer by a rest of less than a second and less than a tenth
    of a window. Those that are over before the first picture are left out: a file may begin with sound.
    Without a ``config`` there is one window, the clip.

    Raises VideoError: too_large beyond ``windows.max_count``, invalid_input for a clip outside the video,
    corrupt for a duration that is no time.
    """
    first, last = _clip(duration_seconds, start, end)
    if 0 < last <= first_picture_seconds:
        why = f"the clip from {first:g} s to {last:g} s is over before the first picture at"
        raise VideoError(Stage.DECODING, Reason.INVALID_INPUT, f"{why} {first_picture_seconds:g} s")
    if config is None:
        return (Window(0, 1, first, last),)
    step = config.length_seconds - config.overlap_seconds
    every = _count(last - first, config)
    too_early = min(_count_before(first_picture_seconds - first, config), every - 1)
    total = every - too_early
    if total > config.max_count:
        raise VideoError(
            Stage.DECODING,
            Reason.TOO_LARGE,
            f"{last - first - too_early * step:g} seconds make {total} windows of "
            f"{config.length_seconds:g} s every {step:g} s, more than windows.max_count={config.max_count}; "
            "make windows.length_seconds or windows.max_count larger",
        )
    begins = [first + number * step for number in range(too_early, too_early + total)]
    ends = [begin + config.length_seconds for begin in begins[:-1]] + [last]
    return tuple(
        Window(number, total, begin, until)
        for number, (begin, until) in enumerate(zip(begins, ends, strict=True))
    )


def _count(seconds: float, config: WindowsConfig) -> int:
    """How many windows it takes until the rest is too short for another."""
    length = config.length_seconds
    step = length - config.overlap_seconds
    least = min(_SHORTEST_REST_SECONDS, _SHORTEST_REST_SHARE * step)
    # A window adds what lies beyond the end of the one before, and is worth it from ``least`` seconds on.
    more = (seconds - length - least) / step
    return 1 if more < 0 else 2 + math.floor(min(more, _COUNTABLE))


def _count_before(seconds: float, config: WindowsConfig) -> int:
    """How many windows of full length end within so many seconds."""
    more = (seconds - config.length_seconds) / (config.length_seconds - config.overlap_seconds)
    return 0 if more < 0 else 1 + math.floor(min(more, _COUNTABLE))


def _clip(duration: float, start: float | None, end: float | None) -> tuple[float, float]:
    if not (math.isfinite(duration) and duration >= 0):
        raise VideoError(Stage.DECODING, Reason.CORRUPT, f"a duration of {duration} seconds is no time")
    first, last = float(start or 0.0), float(duration if end is None else min(end, duration))
    if first < 0 or (end is not None and end <= first) or (first > 0 and first >= duration):
        until = "the end" if end is None else f"{end:g} s"
        raise VideoError(
            Stage.DECODING,
            Reason.INVALID_INPUT,
            f"the clip from {first:g} s to {until} is not within this video of {duration:g} s; "
            "start_seconds must be at least 0, less than end_seconds and less than the duration",
        )
    return first, last
