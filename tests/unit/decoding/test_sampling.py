"""Which frames are picked, and at what size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decoding.sampling import FrameRequest, Span, num_wanted, pick_frames
from pipeline.decoding.timeline import Packet, plan_runs, timeline_from_frames, timeline_from_packets


def request(sampling: str = "uniform", num_frames: int = 16, fps: float = 2.0) -> FrameRequest:
    return FrameRequest(sampling, num_frames, fps, 4 * 28 * 28, 200 * 28 * 28)  # type: ignore[arg-type]


def constant_rate(total: int, fps: float = 10.0) -> tuple[np.ndarray, float]:
    return np.arange(total) / fps, total / fps


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.5, 120))
def test_constant_rate_gives_what_is_asked_or_all_there_is(total: int, wanted: int, fps: float) -> None:
    seconds, duration = constant_rate(total, fps)
    chosen = pick_frames(seconds, duration, request(num_frames=wanted))
    assert len(chosen) == min(total, wanted)
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < total


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 30), min_size=1, max_size=200), st.integers(1, 64))
def test_variable_rate_stays_true_to_time(gaps: list[float], wanted: int) -> None:
    """A picked frame is within an interval of the instant it stands for, or is what the screen showed."""
    seconds = np.concatenate([[0.0], np.cumsum(gaps)])
    duration = float(seconds[-1]) + 0.04
    chosen = pick_frames(seconds, duration, request(num_frames=wanted))
    assert (np.diff(chosen) > 0).all()
    if wanted >= len(seconds):
        assert len(chosen) == len(seconds)
        return
    interval = duration / wanted
    instants = (np.arange(wanted) + 0.5) * interval
    shown = set((np.searchsorted(seconds, instants, side="right") - 1).tolist())
    for index in chosen:
        assert int(index) in shown or np.abs(instants - seconds[index]).min() <= interval + 1e-9


def test_frames_are_those_on_screen_at_the_middle_of_each_interval() -> None:
    seconds, duration = constant_rate(100, fps=10.0)
    assert pick_frames(seconds, duration, request(num_frames=4)).tolist() == [12, 37, 62, 87]


def test_a_still_is_taken_once_and_what_moves_is_not_pulled_into_it() -> None:
    """One slide for 60 s, then 30 frames within 3 s: 16 instants must not turn into 16 frames of the end."""
    seconds = np.concatenate([[0.0], 60.0 + np.arange(30) / 10])
    chosen = pick_frames(seconds, 63.0, request(num_frames=16))
    assert chosen[0] == 0
    assert len(chosen) <= 4


@settings(deadline=None)
@given(
    st.lists(st.floats(0.001, 30), max_size=200),
    st.integers(1, 64),
    st.floats(0, 200),
    st.floats(0.01, 100),
)
def test_a_span_shows_its_own_frames_or_the_one_on_screen(
    gaps: list[float], wanted: int, start: float, length: float
) -> None:
    seconds = np.concatenate([[0.0], np.cumsum(gaps)])
    duration = float(seconds[-1]) + 0.04
    chosen = pick_frames(seconds, duration, request(num_frames=wanted), Span(start, start + length))
    inside = np.flatnonzero((seconds >= start) & (seconds < start + length))
    assert 1 <= len(chosen) <= wanted
    assert (np.diff(chosen) > 0).all()
    if len(inside):
        assert set(chosen) <= set(inside)
        assert len(chosen) == len(inside) or wanted < len(inside) or set(chosen) == set(inside)
    else:
        assert chosen.tolist() == [max(0, np.searchsorted(seconds, start, side="right") - 1)]


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.floats(0.5, 60))
def test_the_span_of_everything_is_the_whole_video(total: int, wanted: int, fps: float) -> None:
    seconds, duration = constant_rate(total, fps)
    whole = pick_frames(seconds, duration, request(num_frames=wanted))
    assert (
        pick_frames(seconds, duration, request(num_frames=wanted), Span(0.0, duration)).tolist()
        == whole.tolist()
    )


def test_a_span_is_sampled_by_its_own_length() -> None:
    seconds, duration = constant_rate(1000)
    assert pick_frames(seconds, duration, request(num_frames=4), Span(20.0, 28.0)).tolist() == [
        210,
        230,
        250,
        270,
    ]
    at_rate = pick_frames(seconds, duration, request("fps", num_frames=100), Span(95.0, 120.0))
    assert at_rate.tolist() == [952, 957, 962, 967, 972, 977, 982, 987, 992, 997]


@pytest.mark.parametrize("duration", [float("inf"), float("nan"), 1e300, -5.0, 0.0])
def test_a_claimed_duration_cannot_ask_for_too_much(duration: float) -> None:
    assert 1 <= num_wanted(duration, request("fps", num_frames=16)) <= 16


def test_times_too_far_apart_are_no_times() -> None:
    """Their difference does not fit into 64 bits; the frames are counted by decoding instead."""
    far = [Packet(-(2**63) + 1, 0, 1, True), Packet(2**63 - 1, 1, 1, False)]
    assert timeline_from_packets(far, 0.01) is None


@pytest.mark.parametrize(("duration", "expected"), [(0.1, 1), (5.0, 10), (60.0, 16)])
def test_fps_is_a_rate_with_a_cap(duration: float, expected: int) -> None:
    assert num_wanted(duration, request("fps", num_frames=16, fps=2.0)) == expected


def test_a_capped_rate_still_covers_the_whole_video() -> None:
    seconds, duration = constant_rate(1000)
    chosen = pick_frames(seconds, duration, request("fps", num_frames=10, fps=5.0))
    assert chosen.tolist() == list(range(50, 1000, 100))


@pytest.mark.parametrize(
    "change",
    [{"num_frames": 0}, {"fps": 0.0}, {"min_pixels": 10**9}, {"sampling": "random"}, {"max_pixels": 5}],
)
def test_impossible_requests_are_refused(change: dict[str, object]) -> None:
    fields = {"sampling": "uniform", "num_frames": 4, "fps": 1.0, "min_pixels": 1, "max_pixels": 10**6}
    with pytest.raises(ValueError, match=r"must be|less than"):
        FrameRequest(**{**fields, **change})  # type: ignore[arg-type]


def packets(total: int, gop: int) -> list[Packet]:
    return [Packet(100 + 10 * i, 80 + 10 * i, 10, i % gop == 0) for i in range(total)]


def test_sparse_frames_are_reached_by_seeking_dense_ones_without() -> None:
    timeline = timeline_from_packets(packets(1000, gop=50), 0.01)
    assert timeline is not None
    sparse = plan_runs(timeline, np.array([10, 510, 515]))
    assert [run.seek for run in sparse] == [None, 80 + 5000]
    assert [len(run.targets) for run in sparse] == [1, 2]
    dense = plan_runs(timeline, np.arange(0, 1000, 10))
    assert [run.seek for run in dense] == [None]


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.data())
def test_runs_reach_every_frame_once_and_in_order(total: int, gop: int, data: st.DataObject) -> None:
    timeline = timeline_from_packets(packets(total, gop), 0.01)
    assert timeline is not None
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1))))
    runs = plan_runs(timeline, chosen)
    assert [target for run in runs for target in run.targets] == timeline.stamps[chosen].tolist()
    assert all(run.seek is None or run.seek <= run.targets[0] for run in runs)


def test_packets_in_decode_order_or_without_times() -> None:
    reordered = [
        Packet(0, -2, 1, True),
        Packet(3, -1, 1, False),
        Packet(1, 0, 1, False),
        Packet(2, 1, 1, False),
    ]
    timeline = timeline_from_packets(reordered, 0.5)
    assert timeline is not None
    assert timeline.seconds.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert timeline.duration_seconds == 2.0
    assert timeline_from_packets([Packet(None, 0, 1, True)], 0.5) is None
    assert timeline_from_packets([Packet(7, 0, 1, True), Packet(7, 1, 1, False)], 0.5) is None
    assert timeline_from_packets([], 0.5) is None


def test_frames_without_times_are_timed_by_the_rate() -> None:
    assert timeline_from_frames([None, None, None], 4.0).seconds.tolist() == [0.0, 0.25, 0.5]
    assert timeline_from_frames([5.0, 5.1, 5.4], 4.0).seconds.tolist() == pytest.approx([0.0, 0.1, 0.4])
    assert timeline_from_frames([0.0, 0.0], 4.0).seconds.tolist() == [0.0, 0.25]


@pytest.mark.parametrize("place", [0, 7, 19])
@pytest.mark.parametrize("told", [None, -5.0, 90.0])
def test_a_time_that_is_missing_or_wrong_lies_between_its_neighbours(place: int, told: float | None) -> None:
    """A late last one and an early first one look right by themselves."""
    true = [i / 10 if i < 12 else 3.0 + i / 10 for i in range(20)]
    seconds: list[float | None] = [told if i == place else value for i, value in enumerate(true)]
    timeline = timeline_from_frames(seconds, 10.0)
    if (place, told) not in {(0, -5.0), (19, 90.0)}:
        assert timeline.seconds.tolist() == pytest.approx(true)


def test_what_is_sampled_begins_with_the_first_picture() -> None:
    """Sound comes first for 100 s: the intervals are those of the 10 s that show something."""
    seconds = 100.0 + np.arange(100) / 10
    assert pick_frames(seconds, 110.0, request(num_frames=4)).tolist() == [12, 37, 62, 87]
    at_rate = pick_frames(seconds, 110.0, request("fps", num_frames=100, fps=1.0), Span(90.0, 105.0))
    assert at_rate.tolist() == [5, 15, 25, 35, 45]


@pytest.mark.parametrize(
    ("origin", "first"),
    [(None, 0.0), (0.0, 1.0), (0.9995, 0.0), (1.0, 0.0), (7.0, 0.0), (-2.0, 3.0)],
)
def test_times_count_from_where_the_container_starts(origin: float | None, first: float) -> None:
    """Never from after the first picture, and not from a rounding before it."""
    timeline = timeline_from_packets(packets(50, gop=10), 0.01, origin_seconds=origin)
    assert timeline is not None
    assert timeline.start_seconds == first
    assert timeline.duration_seconds == pytest.approx(first + 5.0)
    decoded = timeline_from_frames([1.0, 1.1], 10.0, origin_seconds=origin)
    assert decoded.seconds.tolist() == pytest.approx([first, first + 0.1])
    assert timeline_from_frames([1.0, None], 10.0, origin_seconds=origin).start_seconds == 0.0


def after_each_other(*starts: int, places: bool = True) -> list[Packet]:
    """Recordings of 50 packets, 0.1 s apart in ticks of 10 ms, each with a clock of its own."""
    return [
        Packet(
            start + 10 * index + 20,
            start + 10 * index,
            10,
            index % 10 == 0,
            1000 * (50 * number + index) if places else None,
        )
        for number, start in enumerate(starts)
        for index in range(50)
    ]


@pytest.mark.parametrize("starts", [(9000, 100, 500_000), (0, 0, 0), (0, 300, 100)])
def test_times_run_on_where_a_clock_starts_anew(starts: tuple[int, ...]) -> None:
    stored = after_each_other(*starts)
    timeline = timeline_from_packets(stored, 0.01, may_jump=True)
    assert timeline is not None
    assert timeline.seconds.tolist() == pytest.approx([index / 10 for index in range(150)])
    assert timeline.duration_seconds == pytest.approx(15.0)
    assert timeline.clock is not None
    assert timeline.clock.starts.tolist() == [50_000, 100_000]
    mended = [(packet.pts or 0) + timeline.clock.shift(packet.position or 0) for packet in stored]
    assert mended == timeline.stamps.tolist()
    assert [run.seek for run in plan_runs(timeline, np.array([5, 75]))] == [None, 70_000], "bytes, not times"


def test_clocks_that_run_on_or_cannot_be_placed_are_left_alone() -> None:
    still = [Packet(pts, pts, 10, True, pts) for pts in (0, 10, 20, 3000, 3010)]
    for stored, may_jump in (
        (still, True),  # half a minute of one picture
        (after_each_other(0, 50_000), False),  # no such thing in this format
        (after_each_other(0, 50_000, places=False), True),
    ):
        timeline = timeline_from_packets(stored, 0.01, may_jump=may_jump)
        assert timeline is not None
        assert timeline.clock is None
        assert timeline.stamps.tolist() == [packet.pts for packet in stored]


def test_packets_without_a_place_lie_where_the_one_before_does() -> None:
    """In program streams only the first packet of a pack has one."""
    stored = [
        packet._replace(position=packet.position if number % 5 == 0 else None)
        for number, packet in enumerate(after_each_other(9000, 100))
    ]
    timeline = timeline_from_packets(stored, 0.01, may_jump=True)
    assert timeline is not None
    assert timeline.clock is not None
    assert timeline.clock.starts.tolist() == [50_000]
    assert timeline.duration_seconds == pytest.approx(10.0)


def test_a_picture_with_the_time_of_the_next_recording_leaves_only_counting() -> None:
    """As a parser gives it to the last picture before a jump: it would be shown an hour after the others."""
    stored = after_each_other(0, 400_000)
    stored[48] = stored[48]._replace(pts=400_000)
    assert timeline_from_packets(stored, 0.01, may_jump=True) is None
    forward = [0.0, 0.1, 0.2, 4000.0, 4000.1]
    assert timeline_from_frames(forward, 10.0).seconds.tolist() == pytest.approx(forward)
    counted = timeline_from_frames(forward, 10.0, may_jump=True)
    assert counted.seconds.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
