"""Which of a file's video tracks is meant: the default one, and never the picture on a record's cover."""

from __future__ import annotations

from typing import Any

from pipeline.errors import Reason, Stage, VideoError

__all__ = ["is_animated_webp", "main_stream", "moving_streams"]

_IS_DEFAULT, _IS_ATTACHED = 0x1, 0x400  # AV_DISPOSITION_
_VP8X_HAS_ANIMATION = 0x02


def moving_streams(container: Any) -> list[Any]:
    """The video tracks that are no attached picture: covers, and the thumbnails of chapters."""
    return [one for one in container.streams.video if not _flags(one) & _IS_ATTACHED]


def main_stream(container: Any) -> Any:
    """The track that players show: one marked as default; of several, or none, the one libav calls best.

    Raises VideoError: no_frames, unsupported_codec.
    """
    moving = moving_streams(container)
    if not moving:
        raise VideoError(Stage.DECODING, Reason.NO_FRAMES, _why_none(container))
    marked = [stream for stream in moving if _flags(stream) & _IS_DEFAULT] or moving
    best = container.streams.best("video")
    stream = best if best in marked else marked[0]
    if stream.codec_context is None:
        raise VideoError(Stage.DECODING, Reason.UNSUPPORTED_CODEC, "no decoder knows this video's codec")
    return stream


def _flags(stream: Any) -> int:
    """Of PyAV before 16 a disposition is no number."""
    return int(stream.disposition.value)


def _why_none(container: Any) -> str:
    kinds = [stream.type for stream in container.streams if stream.type != "video"]
    others = ", ".join(sorted(set(kinds))) or "none"
    if len(container.streams.video):
        return f"its only picture is a cover (an attached picture), not a video (other streams: {others})"
    return f"no video stream (streams: {others})"


def is_animated_webp(head: bytes) -> bool:
    """Whether a file that begins so is a WebP with more than one picture."""
    is_extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20
    return is_extended and bool(head[20] & _VP8X_HAS_ANIMATION)
