"""The plan of a video's windows: nothing left out, nothing twice but the overlap, bounded, in order."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.config.sections import WindowsConfig
from pipeline.decoding.windows import plan_windows
from pipeline.errors import Reason, VideoError
from pipeline.records import Window

seconds = st.floats(0.01, 20_000, allow_nan=False)
shares = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.9])


def windows_of(length: float, overlap: float = 0.0, **more: int) -> WindowsConfig:
    return WindowsConfig(length_seconds=length, overlap_seconds=overlap, **more)


def spans(windows: tuple[Window, ...]) -> list[tuple[float, float]]:
    return [(window.start_seconds, window.end_seconds) for window in windows]


@given(duration=seconds, length=st.floats(0.5, 600), share=shares)
def test_the_whole_video_is_covered_in_order_and_overlaps_are_exact(
    duration: float, length: float, share: float
) -> None:
    config = windows_of(length, length * share, max_count=10**7)
    assume(duration / (length * (1 - share)) < 500)
    windows = plan_windows(duration, config)
    assert [window.number for window in windows] == list(range(len(windows)))
    assert {window.total for window in windows} == {len(windows)}
    assert (windows[0].start_seconds, windows[-1].end_seconds) == (0.0, duration)
    for before, after in pairwise(windows):
        assert before.end_seconds - before.start_seconds == pytest.approx(length)
        assert before.end_seconds - after.start_seconds == pytest.approx(length * share, abs=1e-6)
        assert after.end_seconds > before.end_seconds, "a window that holds nothing new"


@given(duration=seconds, length=st.floats(0.5, 600), share=shares)
def test_the_last_window_is_neither_a_splinter_nor_much_longer(
    duration: float, length: float, share: float
) -> None:
    config = windows_of(length, length * share, max_count=10**7)
    assume(duration / (length * (1 - share)) < 500)
    *_, last = windows = plan_windows(duration, config)
    rest = min(1.0, length / 10)
    assert last.end_seconds - last.start_seconds <= length + rest + 1e-6
    if len(windows) > 1:
        new = last.end_seconds - windows[-2].end_seconds
        assert new >= min(1.0, length * (1 - share) / 10) - 1e-6


@given(
    start=st.floats(0, 5_000, allow_nan=False),
    clip=st.floats(0.1, 5_000),
    behind=st.floats(0, 5_000),
    length=st.floats(20, 600),
)
def test_a_clip_has_the_windows_of_a_video_as_long_moved(
    start: float, clip: float, behind: float, length: float
) -> None:
    end = start + clip
    moved = plan_windows(end + behind, windows_of(length), start, end)
    alone = plan_windows(end - start, windows_of(length))
    assert spans(moved) == [
        (pytest.approx(begin + start), pytest.approx(until + start)) for begin, until in spans(alone)
    ]
    assert (moved[0].start_seconds, moved[-1].end_seconds) == (start, end)


def test_two_hours_in_minutes() -> None:
    windows = plan_windows(7200, windows_of(60))
    assert len(windows) == 120
    assert spans(windows)[:2] == [(0, 60), (60, 120)]
    assert windows[-1] == Window(119, 120, 7140.0, 7200.0)
    assert [window.is_last for window in windows].count(True) == 1


def test_overlapping_windows() -> None:
    assert spans(plan_windows(25, windows_of(10, 4))) == [(0, 10), (6, 16), (12, 22), (18, 25)]
    assert spans(plan_windows(22, windows_of(10, 4))) == [(0, 10), (6, 16), (12, 22)], (
        "18 would bring nothing"
    )


def test_a_rest_without_frames_is_no_window() -> None:
    """Containers claim a little more than there is: such a window would have no frames and fail the video."""
    assert spans(plan_windows(120.04, windows_of(60))) == [(0, 60), (60, 120.04)]
    assert spans(plan_windows(121, windows_of(60))) == [(0, 60), (60, 120), (120, 121)]
    assert spans(plan_windows(1.04, windows_of(0.5))) == [(0, 0.5), (0.5, 1.04)]


def test_a_short_video_is_one_window() -> None:
    assert spans(plan_windows(5.5, windows_of(60, 10))) == [(0, 5.5)]
    assert spans(plan_windows(0.0, windows_of(60, 10))) == [(0, 0)], "a single picture"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, (0, 90)),
        (None, 30, (0, 30)),
        (20, None, (20, 90)),
        (20.5, 30, (20.5, 30)),
        (20, 1e9, (20, 90)),
        (0, 0.001, (0, 0.001)),
    ],
)
def test_without_windows_the_clip_is_one(
    start: float | None, end: float | None, expected: tuple[float, float]
) -> None:
    assert plan_windows(90, None, start, end) == (Window(0, 1, *expected),)


@pytest.mark.parametrize(("start", "end"), [(90, None), (91, 95), (1e9, None), (30, 30), (30, 20), (-1, 5)])
@pytest.mark.parametrize("config", [None, windows_of(10)], ids=["", "windows"])
def test_a_clip_outside_the_video_is_the_inputs_fault(
    config: WindowsConfig | None, start: float, end: float | None
) -> None:
    with pytest.raises(VideoError, match=r"not within this video of 90 s") as caught:
        plan_windows(90, config, start, end)
    assert caught.value.reason is Reason.INVALID_INPUT


@pytest.mark.parametrize("duration", [1201.0, 1e9, 1e300])
def test_too_many_windows_are_refused_and_the_limit_named(duration: float) -> None:
    """A header may claim any duration: the list must not be made first."""
    with pytest.raises(VideoError, match=r"windows\.max_count=20") as caught:
        plan_windows(duration, windows_of(60, max_count=20))
    assert caught.value.reason is Reason.TOO_LARGE
    assert len(plan_windows(1200.5, windows_of(60, max_count=20))) == 20


@pytest.mark.parametrize("duration", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("config", [None, windows_of(10)], ids=["", "windows"])
def test_a_duration_that_is_no_time_is_a_corrupt_file(config: WindowsConfig | None, duration: float) -> None:
    with pytest.raises(VideoError, match="no time") as caught:
        plan_windows(duration, config)
    assert caught.value.reason is Reason.CORRUPT


@given(first=st.floats(0, 5_000), length=st.floats(1, 600), share=shares, more=st.floats(0.01, 3_000))
def test_no_window_is_over_before_the_first_picture(
    first: float, length: float, share: float, more: float
) -> None:
    """The others are those that there would be anyhow, and the one with the first picture is among them."""
    config = windows_of(length, length * share, max_count=10**7)
    assume((first + more) / (length * (1 - share)) < 500)
    every, some = (plan_windows(first + more, config, first_picture_seconds=begin) for begin in (0.0, first))
    assert spans(some) == spans(every)[len(every) - len(some) :]
    assert [(window.number, window.total) for window in some] == [
        (number, len(some)) for number in range(len(some))
    ]
    assert all(window.end_seconds > first for window in some)
    assert all(window.end_seconds <= first + 1e-6 for window in every[: len(every) - len(some)])


def test_years_of_silence_are_no_windows() -> None:
    windows = plan_windows(1e9 + 90, windows_of(60, max_count=3), first_picture_seconds=1e9)
    assert [round(window.end_seconds - 1e9) for window in windows] == [20, 80, 90]
    assert plan_windows(1e9 + 9, None, first_picture_seconds=1e9) == (Window(0, 1, 0.0, 1e9 + 9),)
    with pytest.raises(
        VideoError, match="from 5 s to 10 s is over before the first picture at 12 s"
    ) as caught:
        plan_windows(90, None, 5, 10, first_picture_seconds=12)
    assert caught.value.reason is Reason.INVALID_INPUT
