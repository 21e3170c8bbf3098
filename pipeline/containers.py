"""Containers and streams through PyAV: what is in a file, its packets and its frames.

Only the local file itself is ever opened: no network, no playlists, no cover art taken for video.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av

from pipeline.errors import Reason, Stage, VideoError

__all__ = [
    "Damage",
    "DecoderRefusedError",
    "Header",
    "decoded",
    "describe",
    "opened",
    "packets_of",
    "read_header",
]

# Text formats that name other files or hosts. A corpus must not make a worker read anything but the video.
PLAYLISTS = frozenset({"hls", "applehttp", "concat", "dash", "sdp", "rtsp", "imf", "webm_dash_manifest"})


class DecoderRefusedError(Exception):
    """This decoder cannot, another may. ``reason`` holds where there is no other."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """What the container claims, and the upright size of a frame that was decoded."""

    codec: str
    containers: frozenset[str]
    duration_seconds: float
    width: int
    height: int


@dataclass
class Damage:
    """Packets seen and packets that could not be decoded."""

    packets: int = 0
    bad: int = 0


def read_header(path: str) -> Header:
    damage = Damage()
    with opened(path) as (container, stream):
        first = next(decoded(container, stream, damage), None)
        if first is None:
            raise DecoderRefusedError(Reason.CORRUPT, "no frame can be decoded")
        return describe(container, stream, first)


def describe(container: Any, stream: Any, frame: Any) -> Header:
    turned = round(frame.rotation / 90) % 2 == 1
    duration = (stream.duration or 0) * float(stream.time_base)
    return Header(
        codec=stream.codec_context.codec.canonical_name,
        containers=frozenset(container.format.name.split(",")),
        duration_seconds=duration,
        width=frame.height if turned else frame.width,
        height=frame.width if turned else frame.height,
    )


@contextmanager
def opened(path: str, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """A container and its main video stream (never cover art). Only the local file may be opened."""
    try:
        container = av.open(path, options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise VideoError(Stage.DECODING, Reason.CORRUPT, f"not a readable video: {said}") from None
    with container:
        if set(container.format.name.split(",")) & PLAYLISTS:
            message = f"a playlist ({container.format.name}), not a video; list the videos themselves"
            raise VideoError(Stage.DECODING, Reason.UNSUPPORTED_CODEC, message)
        stream = _main_stream(container)
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "AUTO"
        yield container, stream


def _main_stream(container: Any) -> Any:
    cover_art = av.stream.Disposition.attached_pic
    moving = [stream for stream in container.streams.video if not stream.disposition & cover_art]
    if not moving:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        raise VideoError(Stage.DECODING, Reason.NO_FRAMES, f"no video stream (streams: {kinds})")
    best = container.streams.best("video")
    stream = best if best in moving else moving[0]
    if stream.codec_context is None:
        raise VideoError(Stage.DECODING, Reason.UNSUPPORTED_CODEC, "no decoder knows this video's codec")
    return stream


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Packets up to the end of the file or of what is left of it."""
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except (StopIteration, av.error.InvalidDataError, av.error.EOFError):
            return


def decoded(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    """Frames in display order; packets that cannot be decoded are counted and passed over."""
    for packet in packets_of(container, stream):
        damage.packets += packet.size > 0
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.error.FFmpegError:
            damage.bad += 1
            continue
        yield from (frame for frame in frames if not frame.is_corrupt)
