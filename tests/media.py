"""Small real videos for tests, written with PyAV. Red rises with time, so that a frame tells when it is."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "audio_only",
    "damaged_video",
    "empty_file",
    "has_encoder",
    "one_stream",
    "pictures",
    "red_of",
    "rotated_video",
    "text_file",
    "truncated_video",
    "unknown_codec_video",
    "with_matrix",
    "write_video",
]


def has_encoder(codec: str) -> bool:
    """Whether PyAV can write this codec here."""
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def red_of(index: int, total: int) -> int:
    """Red of frame ``index``: evenly from 16 to 240 over the video."""
    return 16 + round(224 * index / max(1, total - 1))


def pictures(num_frames: int, height: int, width: int) -> list[NDArray[np.uint8]]:
    """RGB frames (height, width, 3): red tells the time, the top quarter is green, the rest blue."""
    frames = []
    for index in range(num_frames):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[..., 0] = red_of(index, num_frames)
        frame[: height // 4, :, 1] = 200
        frame[height // 4 :, :, 2] = 200
        frames.append(frame)
    return frames


@contextmanager
def one_stream(
    path: Path,
    codec: str,
    *,
    rate: int,
    options: dict[str, str],
    container_options: dict[str, str] | None = None,
) -> Iterator[tuple[Any, Callable[[av.VideoFrame], None]]]:
    """A new file with one video stream: the stream, to be set up, and what encodes a frame into it.

    libsvtav1 makes root's threads real-time ones, the caller's too: all that a process starts later would be
    so as well, and leave nothing to others on the machine. So the usual priority is put back.
    """
    try:
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=rate, options=options)
            yield stream, lambda frame: container.mux(stream.encode(frame))
            container.mux(stream.encode())
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def write_video(
    path: Path,
    *,
    num_frames: int = 48,
    height: int = 96,
    width: int = 128,
    fps: int = 8,
    codec: str = "libx264",
    gop: int = 12,
    open_gops: bool = False,
    pts: list[int] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video; ``pts`` (milliseconds, one per frame) makes the frame rate variable."""
    frames = pictures(num_frames, height, width)
    options = _options(codec, open_gops)
    with one_stream(path, codec, rate=fps, options=options, container_options=container_options) as (
        stream,
        encode,
    ):
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, "yuv420p", gop
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[index], Fraction(1, 1000)
            encode(frame)
    return path


def _options(codec: str, open_gops: bool) -> dict[str, str]:
    """Quiet, fast and true to colour; open groups are what x265 makes unless told otherwise."""
    x265 = "log-level=none:crf=12:open-gop=" + ("1" if open_gops else "0")
    known = {
        "libx264": {"crf": "16"},
        "libx265": {"x265-params": x265},
        "libsvtav1": {"preset": "12", "crf": "20"},
        "mpeg4": {"qmin": "1", "qmax": "2"},
    }
    return known.get(codec, {})


def rotated_video(path: Path, **options: int) -> Path:
    """An mp4 whose display matrix asks for a quarter turn clockwise, as phones write them."""
    write_video(path, **options)  # type: ignore[arg-type]
    return with_matrix(path, (0, 1, -1, 0))


def with_matrix(path: Path, numbers: tuple[int, int, int, int]) -> Path:
    """An mp4 with another display matrix (a b c d: x' = ax + cy, y' = bx + dy) in its track header."""
    a, b, c, d = (number << 16 for number in numbers)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd")
    assert content[at + 4] == 0, "version 0 of the box; the matrix is 40 bytes after its flags"
    matrix = (a, b, 0, c, d, 0, 0, 0, 0x40000000)
    content[at + 44 : at + 80] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    return path


def truncated_video(path: Path, *, share: float, index_first: bool, num_frames: int = 200) -> Path:
    """The first ``share`` of an mp4's bytes; with ``index_first`` its index survives."""
    options = {"movflags": "faststart"} if index_first else {}
    write_video(path, num_frames=num_frames, container_options=options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def damaged_video(
    source: Path, path: Path, *, first: int, last: int, share: float = 0.5, fill: int | None = None
) -> Path:
    """A copy in which the end of each packet in [first, last), a ``share`` of it, is noise, or ``fill``."""
    with av.open(str(source)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(source.read_bytes())
    noise = np.random.default_rng(5)
    for begin, size in packets[first:last]:
        assert begin is not None
        num_bytes = int(size * share)
        at = begin + size - num_bytes
        made_up = noise.integers(1, 256, num_bytes, dtype=np.uint8).tobytes()
        content[at : at + num_bytes] = made_up if fill is None else bytes([fill]) * num_bytes
    path.write_bytes(content)
    return path


def unknown_codec_video(path: Path) -> Path:
    """A sound mp4 whose sample description names a codec that does not exist."""
    write_video(path)
    content = path.read_bytes()
    assert content.count(b"avc1") >= 1
    at = content.index(b"stsd")
    path.write_bytes(content[:at] + content[at:].replace(b"avc1", b"qqqq", 1))
    return path


def audio_only(path: Path) -> Path:
    """An mp4 with half a second of silence and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for index in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def empty_file(path: Path) -> Path:
    """A file of zero bytes."""
    path.write_bytes(b"")
    return path


def text_file(path: Path) -> Path:
    """Plain text under whatever name."""
    path.write_text("This is not a video.\n" * 20)
    return path
