"""Containers that store no time at which pictures are shown: all are reached, each when it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config.sections import DecodingConfig, WindowsConfig
from pipeline.decoding.pool import DecodePool
from pipeline.decoding.sampling import FrameRequest
from pipeline.records import Frames
from tests import media
from tests.integration.test_decoding import decode, frames_of
from tests.integration.test_decoding_windows import all_of, clip, window_of

FPS = 25
NUM_BITS = 9
PIXELS = 112 * 112
ALL = FrameRequest("uniform", 1000, 2.0, 28 * 28, PIXELS)
FEW = FrameRequest("uniform", 5, 2.0, 28 * 28, PIXELS)


@pytest.fixture(scope="module")
def pools() -> Iterator[tuple[DecodePool, DecodePool, DecodePool]]:
    """All frames, a few, and all of them in windows."""
    config = DecodingConfig()
    windows = WindowsConfig(length_seconds=1.3, overlap_seconds=0.4)
    with (
        DecodePool(config, ALL) as every,
        DecodePool(config, FEW) as few,
        DecodePool(config, ALL, windows) as parts,
    ):
        yield every, few, parts


def numbered(index: int) -> NDArray[np.uint8]:
    """A picture (112, 112, 3) of nine stripes, black or white, that spell its number."""
    bits = [index >> bit & 1 for bit in range(NUM_BITS)]
    line = np.repeat(np.array(bits, np.uint8) * 219 + 16, 12)
    return np.broadcast_to(np.pad(line, (0, 112 - len(line)))[None, :, None], (112, 112, 3)).copy()


def number_of(picture: NDArray[np.uint8]) -> int:
    columns = picture[40:70].mean(axis=(0, 2))
    stripes = [columns[12 * bit + 3 : 12 * bit + 9].mean() > 127 for bit in range(NUM_BITS)]
    return sum(1 << bit for bit, is_white in enumerate(stripes) if is_white)


def write_numbered(
    path: Path, codec: str, *, num_frames: int = 100, gop: int = 25, b_frames: int = 2, **options: str
) -> Path:
    with media.one_stream(path, codec, rate=FPS, options=options) as (stream, encode):
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 112, 112, "yuv420p", gop
        stream.codec_context.max_b_frames = b_frames
        for index in range(num_frames):
            encode(av.VideoFrame.from_ndarray(numbered(index), "rgb24"))
    return path


def assert_right(frames: Frames, num_frames: int) -> None:
    numbers = np.array([number_of(picture) for picture in frames.data])
    assert np.allclose(frames.pts_seconds, numbers / FPS, atol=0.002), (numbers, frames.pts_seconds)
    assert frames.source_num_frames == num_frames
    assert frames.duration_seconds == pytest.approx(num_frames / FPS, abs=0.002)
    assert frames.damage is None


OPEN = {"x264-params": "open-gop=1:scenecut=0"}


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "libx264", {}),
        ("open.avi", "libx264", OPEN),
        ("b.avi", "mpeg4", {}),
        ("c.avi", "mpeg2video", {}),
        ("d.asf", "libx264", {}),
        ("e.m1v", "mpeg1video", {}),
        ("f.m2v", "mpeg2video", {}),
        ("g.m4v", "mpeg4", {}),
        ("h.h264", "libx264", {}),
        ("i.mpg", "mpeg2video", {}),
    ],
)
def test_every_picture_is_reached_and_shown_when_it_is(
    pools: tuple[DecodePool, DecodePool, DecodePool],
    tmp_path: Path,
    name: str,
    codec: str,
    options: dict[str, str],
) -> None:
    """libav makes up times of showing that are those of decoding: one picture in three was dropped."""
    path = write_numbered(tmp_path / name, codec, **options)
    every, few, parts = pools
    whole = frames_of(decode(every, path))
    assert len(whole.data) == 100
    assert_right(whole, 100)
    assert_right(frames_of(decode(few, path)), 100)
    for part in all_of(parts, clip(path)):
        window = window_of(part)
        frames = frames_of(part)
        assert_right(frames, 100)
        assert window.start_seconds <= frames.pts_seconds[0] + 0.001
        assert len(frames.data) >= 25


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.avi", "libx264", {}), ("open.avi", "libx264", OPEN), ("b.avi", "mpeg4", {})],
)
def test_a_few_pictures_of_many_are_reached_by_jumps(
    pools: tuple[DecodePool, DecodePool, DecodePool],
    tmp_path: Path,
    name: str,
    codec: str,
    options: dict[str, str],
) -> None:
    path = write_numbered(tmp_path / name, codec, num_frames=500, gop=50, **options)
    assert_right(frames_of(decode(pools[1], path)), 500)


def test_pictures_packed_two_to_a_packet(
    pools: tuple[DecodePool, DecodePool, DecodePool], tmp_path: Path
) -> None:
    """As DivX wrote B-frames into AVI: behind what they build upon, and an empty one in their place."""
    path = packed(write_numbered(tmp_path / "a.avi", "mpeg4", b_frames=1), tmp_path / "packed.avi")
    for pool in pools[:2]:
        assert_right(frames_of(decode(pool, path)), 100)


def packed(source: Path, path: Path) -> Path:
    start_of_picture = b"\0\0\1\xb6"
    with av.open(str(source)) as container:
        stored = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    kinds = [packet[packet.rfind(start_of_picture) + 4] >> 6 for packet in stored]  # 0: I, 1: P, 2: B
    packets: list[bytes] = []
    for packet, kind in zip(stored, kinds, strict=True):
        if kind == 2:
            packets[-1] += packet
            packets.append(start_of_picture + bytes([0b01010000, 0b00100111]))  # P, not coded; 5 bits of time
        else:
            packets.append(packet)
    at = packets[0].find(start_of_picture)
    packets[0] = packets[0][:at] + b"\0\0\1\xb2DivX503b1393p" + packets[0][at:]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 112, 112, "yuv420p"
        container.start_encoding()
        for index, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.duration = stream, index, index, 1
            packet.time_base = Fraction(1, FPS)
            at = content.find(start_of_picture)
            packet.is_keyframe = content[at + 4] >> 6 == 0
            container.mux(packet)
    return path


def test_a_picture_that_is_lost_moves_no_other(
    pools: tuple[DecodePool, DecodePool, DecodePool], tmp_path: Path
) -> None:
    """Frames are counted, so one that cannot be decoded must be counted too."""
    path = write_numbered(tmp_path / "a.avi", "libx264", num_frames=150)
    bad = media.damaged_video(path, tmp_path / "bad.avi", first=40, last=42, share=1.0, fill=255)
    frames = frames_of(decode(pools[0], bad))
    assert frames.damage is not None
    after = [(number_of(p), t) for p, t in zip(frames.data, frames.pts_seconds, strict=True) if t > 2.1]
    assert len(after) > 90
    assert all(abs(number / FPS - seconds) < 0.002 for number, seconds in after)
