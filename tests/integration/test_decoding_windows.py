"""Long videos in parts, and clips: in order, in bounded memory, each frame what was on screen then."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.config.sections import DecodingConfig, WindowsConfig
from pipeline.decoding.pool import Decoded, DecodePool
from pipeline.decoding.sampling import FrameRequest
from pipeline.errors import Reason
from pipeline.records import VideoRef, Window
from tests import media
from tests.integration.test_decoding import REQUEST, assert_shown_when_said, frames_of, reason_of
from tests.integration.test_decoding_faults import child_of, wait_for

TEN = WindowsConfig(length_seconds=10.0)
SOME = FrameRequest("uniform", 4, 2.0, 28 * 28, 40 * 28 * 28)
WINDOW_BYTES = 4 * 84 * 140 * 3
TOTAL = 200  # frames at 8 per second: 25 s


def clip(path: str | Path, start: float | None = None, end: float | None = None) -> VideoRef:
    return VideoRef(str(path), str(path), "1", 0, start_seconds=start, end_seconds=end)


def all_of(pool: DecodePool, ref: VideoRef) -> list[Decoded]:
    pool.submit(ref)
    parts = []
    while not parts or not parts[-1].is_last:
        part = pool.get(60.0)
        assert part is not None, "no answer in time"
        parts.append(part)
    assert pool.pending == 0
    return parts


def window_of(part: Decoded) -> Window:
    assert part.window is not None, part.error
    return part.window


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.h264"])
def test_windows_come_in_order_and_show_what_they_say(tmp_path: Path, name: str) -> None:
    path = media.write_video(tmp_path / name, num_frames=TOTAL)
    with DecodePool(DecodingConfig(), SOME, TEN) as pool:
        parts = all_of(pool, clip(path))
    windows = [window_of(part) for part in parts]
    assert [(window.number, window.total) for window in windows] == [(0, 3), (1, 3), (2, 3)]
    assert [window.start_seconds for window in windows] == [0.0, 10.0, 20.0]
    assert windows[-1].end_seconds == pytest.approx(25.0, abs=0.2)
    for part, window in zip(parts, windows, strict=True):
        frames = frames_of(part)
        assert len(frames.data) == 4
        assert window.start_seconds <= frames.pts_seconds[0] < frames.pts_seconds[-1] < window.end_seconds
        assert_shown_when_said(frames, total=TOTAL)
        assert (frames.source_num_frames, frames.duration_seconds) == (TOTAL, windows[-1].end_seconds)


def test_both_decoders_see_the_same_in_overlapping_windows(tmp_path: Path) -> None:
    """Jumps back and forth within a long group of pictures must not shift frames."""
    path = media.write_video(tmp_path / "a.mp4", num_frames=TOTAL, gop=60)
    config = WindowsConfig(length_seconds=7.0, overlap_seconds=3.0)
    pair = []
    for decoders in (("decord",), ("pyav",)):
        with DecodePool(DecodingConfig(decoders=decoders), SOME, config) as pool:
            pair.append([frames_of(part) for part in all_of(pool, clip(path))])
    assert len(pair[0]) == len(pair[1]) > 4
    for one, other in zip(*pair, strict=True):
        assert np.allclose(one.pts_seconds, other.pts_seconds, atol=1e-3)
        assert np.abs(one.data.astype(int) - other.data).mean() < 3
        assert_shown_when_said(one, total=TOTAL)


def test_windows_of_a_stream_without_times(tmp_path: Path) -> None:
    """It is decoded straight on; where a window reaches back, from the first frame again."""
    path = media.write_video(tmp_path / "a.h264", num_frames=TOTAL)
    for config in (WindowsConfig(length_seconds=3.0), WindowsConfig(length_seconds=9.0, overlap_seconds=4.0)):
        with DecodePool(DecodingConfig(), SOME, config) as pool:
            parts = all_of(pool, clip(path))
        assert len(parts) > 3
        for part in parts:
            assert len(frames_of(part).data) == 4
            assert_shown_when_said(frames_of(part), total=TOTAL)


def test_frames_per_second_hold_in_every_window(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=TOTAL)
    request = FrameRequest("fps", 100, 2.0, 28 * 28, 40 * 28 * 28)
    with DecodePool(DecodingConfig(), request, TEN) as pool:
        parts = [frames_of(part) for part in all_of(pool, clip(path))]
    seconds = np.concatenate([part.pts_seconds for part in parts])
    assert seconds.tolist() == pytest.approx([0.25 + i / 2 for i in range(50)])


def test_without_windows_a_video_comes_once_as_window_0_of_1(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=TOTAL)
    with DecodePool(DecodingConfig(), SOME) as pool:
        (part,) = all_of(pool, clip(path))
    assert part.window == Window(0, 1, 0.0, frames_of(part).duration_seconds)


@pytest.mark.parametrize("decoders", [("decord",), ("pyav",)])
def test_a_clip_is_all_that_is_seen(tmp_path: Path, decoders: tuple[str, ...]) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=TOTAL)
    config = DecodingConfig(decoders=decoders)
    with DecodePool(config, SOME) as whole, DecodePool(config, SOME, TEN) as windows:
        (one,) = all_of(whole, clip(path, 5.0, 9.0))
        assert frames_of(one).pts_seconds.tolist() == pytest.approx([5.5, 6.5, 7.5, 8.5])
        assert window_of(one) == Window(0, 1, 5.0, 9.0)
        assert_shown_when_said(frames_of(one), total=TOTAL)
        spans = [
            (window_of(part).start_seconds, window_of(part).end_seconds)
            for part in all_of(windows, clip(path, 3.0, 18.0))
        ]
        assert spans == [(3.0, 13.0), (13.0, 18.0)]
        for pool in (whole, windows):
            (outside,) = all_of(pool, clip(path, 26.0, 30.0))
            assert reason_of(outside) is Reason.INVALID_INPUT


def test_a_window_without_a_new_frame_takes_the_one_on_screen(tmp_path: Path) -> None:
    """A slide that stands for half a minute."""
    pts = [*range(0, 2000, 125), *range(32_000, 34_000, 125)]
    path = media.write_video(tmp_path / "a.mkv", num_frames=len(pts), pts=pts)
    for decoders in (("decord", "pyav"), ("pyav",)):
        with DecodePool(DecodingConfig(decoders=decoders), SOME, TEN) as pool:
            parts = [frames_of(part) for part in all_of(pool, clip(path))]
        assert [len(part.data) for part in parts][1:] == [1, 1, 4]
        assert parts[1].pts_seconds.tolist() == parts[2].pts_seconds.tolist() == [pytest.approx(1.875)]
        assert np.array_equal(parts[1].data, parts[2].data)


def test_too_many_windows_are_refused(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=TOTAL)
    with DecodePool(DecodingConfig(), SOME, WindowsConfig(length_seconds=1.0, max_count=10)) as pool:
        (refused,) = all_of(pool, clip(path))
        assert reason_of(refused) is Reason.TOO_LARGE
        assert "windows.max_count=10" in str(refused.error)


def test_windows_wait_for_room(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=TOTAL)
    limit = SOME.max_bytes + 3 * WINDOW_BYTES  # three decoded and one coming, of 26
    config = DecodingConfig(processes=2, bytes_in_flight=limit)
    numbers: dict[str, list[int]] = {"1": [], "2": []}
    with DecodePool(config, SOME, WindowsConfig(length_seconds=2.0)) as pool:
        for name in numbers:
            pool.submit(VideoRef(name, str(path), "1", 0))
        while pool.pending:
            assert pool.bytes_in_flight <= limit
            part = pool.get(60.0)
            assert part is not None
            numbers[part.ref.video_id].append(window_of(part).number)
        assert pool.bytes_in_flight == 0
    assert numbers == {"1": list(range(13)), "2": list(range(13))}


def test_what_is_cancelled_comes_no_more(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=TOTAL)
    other = media.write_video(tmp_path / "b.mp4", num_frames=40)
    with DecodePool(DecodingConfig(bytes_in_flight=2 * SOME.max_bytes), SOME, TEN) as pool:
        pool.submit(clip(path))
        first = pool.get(60.0)
        assert first is not None
        assert window_of(first).number == 0
        pool.cancel(clip(path))
        assert pool.pending == 0
        assert pool.get(0.0) is None
        assert len(all_of(pool, clip(other))) == 1
        pool.submit(clip(path))
        pool.cancel(clip(path))  # before a child had it
        again = [window_of(part).number for part in all_of(pool, clip(path))]
        assert again == [0, 1, 2]
        wait_for(lambda: pool.bytes_in_flight == 0)


def test_a_child_killed_between_windows_costs_nothing(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=TOTAL)
    with DecodePool(DecodingConfig(bytes_in_flight=1), SOME, TEN) as pool:
        pool.submit(clip(path))
        wait_for(lambda: pool.bytes_in_flight == WINDOW_BYTES)
        pid = child_of(pool)
        os.kill(pid, signal.SIGKILL)
        parts = [pool.get(60.0) for _ in range(3)]
        assert [part and window_of(part).number for part in parts] == [0, 1, 2]
        assert child_of(pool) != pid


def test_an_error_in_the_middle_is_the_last_word(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=TOTAL)
    with DecodePool(DecodingConfig(bytes_in_flight=1), SOME, TEN) as pool:
        pool.submit(clip(path))
        wait_for(lambda: pool.bytes_in_flight == WINDOW_BYTES)
        path.unlink()
        first, second = pool.get(60.0), pool.get(60.0)
        assert first is not None
        assert second is not None
        assert (first.is_last, second.is_last, pool.pending) == (False, True, 0)
        assert reason_of(second) is Reason.NOT_FOUND
        assert pool.get(0.0) is None


def test_a_copy_lives_until_the_last_window(tmp_path: Path) -> None:
    video = media.write_video(tmp_path / "a.mp4", num_frames=TOTAL)
    fsspec.filesystem("memory").pipe("/windows/a.mp4", video.read_bytes())
    cache = tmp_path / "cache"
    config = DecodingConfig(bytes_in_flight=1, cache_dir=str(cache))
    with DecodePool(config, SOME, TEN) as pool:
        pool.submit(clip("memory://windows/a.mp4"))
        copies = []
        for _ in range(3):
            wait_for(lambda: pool.bytes_in_flight == WINDOW_BYTES)
            copies.append([file.name for file in cache.rglob("*.mp4")])
            frames_of(pool.get(60.0) or pytest.fail("no answer in time"))
        assert copies[0] == copies[1] != []
        wait_for(lambda: not list(cache.rglob("*.mp4")))


def test_a_file_that_is_written_anew_is_not_mistaken_for_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with DecodePool(DecodingConfig(), REQUEST, TEN) as pool:
        for total, number in ((40, 1), (160, 2)):
            media.write_video(path, num_frames=total)
            parts = all_of(pool, clip(path))
            assert len(parts) == number
            assert {frames_of(part).source_num_frames for part in parts} == {total}


def test_odd_times_and_windows(tmp_path: Path) -> None:
    """Windows that begin between two frames of a variable rate."""
    pts = list(itertools.accumulate([40 if i % 10 else 900 for i in range(100)]))
    path = media.write_video(tmp_path / "vfr.mkv", num_frames=100, pts=pts)
    real = (np.array(pts) - pts[0]) / 1000
    with DecodePool(DecodingConfig(), SOME, WindowsConfig(length_seconds=3.3)) as pool:
        for part in all_of(pool, clip(path)):
            frames, window = frames_of(part), window_of(part)
            nearest = np.abs(frames.pts_seconds[:, None] - real[None, :])
            assert nearest.min(axis=1).max() < 0.002
            assert window.start_seconds <= frames.pts_seconds[0]
            assert frames.pts_seconds[-1] < window.end_seconds
            said = np.array([media.red_of(int(i), 100) for i in nearest.argmin(axis=1)])
            assert np.abs(frames.data[:, 60, 70, 0].astype(int) - said).max() <= 9
