"""Which files are so plain that decord, whose FFmpeg is of 2018, reads them as PyAV does."""

from __future__ import annotations

from typing import Any

from pipeline.decoding.containers import DecoderRefusedError, Limits, head_of, opened, packets_of
from pipeline.decoding.damage import hole_finder
from pipeline.decoding.decoder_log import ContainerLog
from pipeline.decoding.joined import next_file
from pipeline.errors import Reason

__all__ = ["refuse_unless_plain"]

# decord seeks exactly only where the container has an index; in MPEG-TS it returns wrong frames silently.
_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm", "avi"})
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"styp", b"moof", b"sidx")
_PICTURES = frozenset({"yuv420p", "yuvj420p"})


def refuse_unless_plain(path: str, limits: Limits) -> None:
    """Raise DecoderRefusedError for a file that decord might read otherwise than it is meant.

    It chooses a track by itself, and knows no shape of pixels. What its first picture tells is in
    ``Header.oddity``. Raises as ``opened`` does, too.
    """
    with opened(path, limits) as (container, stream), ContainerLog(container) as log:
        why = _what_is_odd(container, stream)
        if why is None and any(map(hole_finder(stream), packets_of(container, stream, limits))):
            why = "holes"
        if why is None and log.num_lost:
            why = "parts that cannot be read"
    if why is None and not _starts_as_such(head_of(path)):
        why = "an odd beginning"
    if why is None and next_file(path) is not None:
        why = "another behind them"
    if why is not None:
        raise DecoderRefusedError(Reason.UNSUPPORTED_CODEC, f"decord is not asked for files with {why}")


def _what_is_odd(container: Any, stream: Any) -> str | None:
    context = stream.codec_context
    names = container.format.name.split(",")
    shapes = (stream.sample_aspect_ratio, context.sample_aspect_ratio)
    oddities = {
        f"the container {'/'.join(names)}": not _CONTAINERS & set(names),
        "several video streams": len(container.streams.video) != 1,
        f"pictures in {context.pix_fmt}": context.pix_fmt not in _PICTURES,
        "pixels that are not square": any(shape and shape != 1 for shape in shapes),
    }
    return next((name for name, is_so in oddities.items() if is_so), None)


def _starts_as_such(head: bytes) -> bool:
    """Whether no FFmpeg takes this for a playlist: decord's is older, and opens what those name."""
    is_container = head[4:8] in _BOXES or head[:4] == b"\x1a\x45\xdf\xa3" or head[:4] == b"RIFF"
    return is_container and b"<mpd" not in head.lower() and b"c=in ip" not in head.lower()
