"""What the times of a row count from, and what is said of files that end or jump where they should not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest

from pipeline.config.sections import DecodingConfig, WindowsConfig
from pipeline.decoding.pool import DecodePool
from pipeline.errors import Reason, Stage
from pipeline.records import Frames
from tests import media
from tests.integration.test_decoding import REQUEST, decode, frames_of, reason_of
from tests.integration.test_decoding_windows import all_of, clip, window_of

FPS = 8
DECODERS: tuple[tuple[Literal["decord", "pyav"], ...], ...] = (("decord",), ("pyav",), ("decord", "pyav"))
LATE = 5.0  # seconds of sound before the first picture


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, DecodePool]]:
    """One for each decoder, and "any"."""
    with ExitStack() as closing:
        yield {
            name: closing.enter_context(DecodePool(DecodingConfig(decoders=decoders), REQUEST))
            for name, decoders in zip(("decord", "pyav", "any"), DECODERS, strict=True)
        }


def with_sound(path: Path, *, late: float = 0.0, sound_seconds: float = 11.0, num_frames: int = 48) -> Path:
    """Pictures from ``late`` seconds on, silence from 0 on."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "16"})
        video.height, video.width, video.pix_fmt, video.gop_size = 96, 128, "yuv420p", 12
        video.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=16000)
        packets = []
        for index, picture in enumerate(media.pictures(num_frames, 96, 128)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round(1000 * (late + index / FPS)), Fraction(1, 1000)
            packets += video.encode(frame)
        for index in range(int(sound_seconds * 16000 / 1024)):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 16000, index * 1024
            packets += sound.encode(silence)
        packets += [*video.encode(), *sound.encode()]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def assert_shown_when_said(frames: Frames, start: float, total: int, fps: int = FPS) -> None:
    """Red tells which frame it is; MPEG-TS moves all by the delay of its sound."""
    index = np.round((frames.pts_seconds - start) * fps - 0.01)
    said = np.array([media.red_of(int(i), total) for i in index])
    assert np.abs(frames.data[:, 60, 70, 0].astype(int) - said).max() <= 9


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("a.mkv", "decord"), ("a.mkv", "pyav"), ("a.mp4", "decord"), ("a.mp4", "pyav"), ("a.ts", "pyav")],
)
def test_sound_before_the_first_picture_counts(
    pools: dict[str, DecodePool], tmp_path: Path, name: str, decoder: str
) -> None:
    """A time is where a player shows the picture. Nothing is missing from such a file, nothing is noted."""
    frames = frames_of(decode(pools[decoder], with_sound(tmp_path / name, late=LATE)))
    assert frames.damage is None
    assert frames.pts_seconds[0] == pytest.approx(LATE + 0.25, abs=0.1)
    assert len(frames.pts_seconds) == 12
    assert frames.duration_seconds == pytest.approx(LATE + 6, abs=0.1)
    assert frames.source_fps == pytest.approx(FPS, rel=0.02), "of the pictures, not of the silence before"
    assert_shown_when_said(frames, LATE, 48)


@pytest.mark.parametrize("decoders", DECODERS[:2])
def test_windows_begin_with_the_first_picture(
    tmp_path: Path, decoders: tuple[Literal["decord", "pyav"], ...]
) -> None:
    """No window is looked at in which there is nothing to see; the others are where they would be."""
    path = with_sound(tmp_path / "a.mkv", late=LATE)
    config = WindowsConfig(length_seconds=2.0)
    with DecodePool(DecodingConfig(decoders=decoders), REQUEST, config) as pool:
        parts = all_of(pool, clip(path))
        (early,) = all_of(pool, clip(path, 1.0, 4.0))
        across = [window_of(part) for part in all_of(pool, clip(path, 1.0, 8.0))]
    windows = [window_of(part) for part in parts]
    assert [(one.number, one.total, one.start_seconds) for one in windows] == [
        (0, 4, 4.0),
        (1, 4, 6.0),
        (2, 4, 8.0),
        (3, 4, 10.0),
    ]
    for part, window in zip(parts, windows, strict=True):
        frames = frames_of(part)
        assert window.start_seconds <= frames.pts_seconds[0] < frames.pts_seconds[-1] < window.end_seconds
        assert_shown_when_said(frames, LATE, 48)
    assert reason_of(early) is Reason.INVALID_INPUT
    assert "over before the first picture" in str(early.error)
    assert [(one.start_seconds, one.end_seconds) for one in across] == [(5.0, 7.0), (7.0, 8.0)]


@pytest.mark.parametrize("name", ["a.mkv", "a.flv", "sound.mkv"])
def test_a_file_cut_short_says_so_in_every_container(
    pools: dict[str, DecodePool], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if name == "sound.mkv":
        with_sound(path, sound_seconds=25.0, num_frames=200)
    else:
        media.write_video(path, num_frames=200)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    frames = frames_of(decode(pools["any"], path))
    assert frames.duration_seconds < 20
    assert frames.damage == f"ends at {frames.duration_seconds:.1f} s of 25.0 s"


def test_sound_that_goes_on_is_no_damage(pools: dict[str, DecodePool], tmp_path: Path) -> None:
    for name in ("a.mkv", "a.mp4"):
        frames = frames_of(decode(pools["any"], with_sound(tmp_path / name, sound_seconds=20.0)))
        assert (frames.damage, round(frames.duration_seconds, 1)) == (None, 6.0)


def part_of_stream(path: Path, first: int, start: float, codec: str = "libx264") -> bytes:
    """48 of the 96 frames of a video, whose clock begins at ``start`` seconds."""
    muxer = {"mpegts_copyts": "1"} if path.suffix == ".ts" else {}
    with av.open(str(path), "w", options=muxer) as container:
        video = container.add_stream(codec, rate=25, options={"crf": "16", "qmin": "1", "qmax": "2"})
        video.height, video.width, video.pix_fmt, video.gop_size = 96, 128, "yuv420p", 12
        for index, picture in enumerate(media.pictures(96, 96, 128)[first : first + 48]):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round(25 * start) + index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    content = path.read_bytes()
    path.unlink()
    return content


def test_recordings_put_one_behind_the_other_run_on(pools: dict[str, DecodePool], tmp_path: Path) -> None:
    """Each has a clock of its own: taken as it is, a minute is a day with two pictures in it."""
    config = WindowsConfig(length_seconds=1.5, overlap_seconds=0.5)
    with DecodePool(DecodingConfig(), REQUEST, config) as windows:
        for suffix, codec, second in (
            ("ts", "libx264", 10.0),
            ("ts", "libx264", 101.0),  # overlaps the first
            ("ts", "libx264", 100.0),
            ("ts", "libx264", 3600.0),
            ("vob", "mpeg2video", 10.0),
            ("vob", "mpeg2video", 3600.0),
        ):
            path = tmp_path / f"{second}.{suffix}"
            parts = [part_of_stream(path, first, start, codec) for first, start in ((0, 100.0), (48, second))]
            path.write_bytes(b"".join(parts))
            seen = [frames_of(decode(pools["any"], path)), *map(frames_of, all_of(windows, clip(path)))]
            assert len(seen) == 1 + 4
            for frames in seen:
                assert frames.duration_seconds == pytest.approx(3.84, abs=0.01)
                assert len(frames.data) >= 12 - (frames is seen[-1])
                assert_shown_when_said(frames, 0.0, 96, fps=25)
                if suffix == "ts":
                    assert frames.damage == "its timestamps jump in 1 place, over which times run on"


def test_names_that_lead_nowhere_are_the_inputs_fault(pools: dict[str, DecodePool], tmp_path: Path) -> None:
    """Another try would not help; nor may a name end the decode process."""
    loop = tmp_path / "loop.mp4"
    loop.symlink_to(loop)
    (tmp_path / "file").write_text("x")
    for uri in (loop, tmp_path / "file" / "a.mp4", f"{tmp_path}/{'x' * 300}.mp4", f"{tmp_path}/a\0.mp4"):
        error = decode(pools["any"], uri).error
        assert error is not None
        assert (error.stage, error.reason) == (Stage.READING, Reason.INVALID_INPUT), uri


def test_a_tag_left_from_another_file_is_no_claim(pools: dict[str, DecodePool], tmp_path: Path) -> None:
    path, stale = with_sound(tmp_path / "a.mkv"), tmp_path / "stale.mkv"
    with av.open(str(path)) as source, av.open(str(stale), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        streams[0].metadata.update({"DURATION-eng": "01:00:00.000000000"})
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    for decoder in ("decord", "pyav"):
        assert frames_of(decode(pools[decoder], stale)).damage is None
