"""Which files are so plain that decord, whose FFmpeg is of 2018, reads them as PyAV does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
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
_PASSED_OVER = frozenset({"vp8", "vp9"})  # decord says nothing of packets that it cannot decode
_IDR = 5
_UNIT = re.compile(b"\0\0\1(.)", re.DOTALL)


def refuse_unless_plain(path: str, limits: Limits) -> None:
    """Raise DecoderRefusedError for a file that decord might read otherwise than it is meant.

    It chooses a track by itself, and knows no shape of pixels. What its first picture tells is in
    ``Header.oddity``. Raises as ``opened`` does, too.
    """
    with opened(path, limits) as (container, stream), ContainerLog(container) as log:
        why = _what_is_odd(container, stream)
        if why is None:
            why = _odd_packet(stream, packets_of(container, stream, limits))
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
        f"{context.name}, whose damage it does not tell": context.name in _PASSED_OVER,
        f"pictures in {context.pix_fmt}": context.pix_fmt not in _PICTURES,
        "pixels that are not square": any(shape and shape != 1 for shape in shapes),
    }
    return next((name for name, is_so in oddities.items() if is_so), None)


def _odd_packet(stream: Any, packets: Iterator[Any]) -> str | None:
    has_hole, is_gradual = hole_finder(stream), _gradual_finder(stream)
    for packet in packets:
        if has_hole(packet):
            return "holes"
        if is_gradual(packet):
            return "pictures that build up one by one"
    return None


def _gradual_finder(stream: Any) -> Callable[[Any], bool]:
    """Whether a packet of H.264 counts as a keyframe and is none.

    With intra refresh a picture is built up over those that follow; decord shows what there is after a jump.
    """
    context = stream.codec_context
    if context.name != "h264":
        return lambda packet: False
    extradata = context.extradata or b""
    length_bytes = (extradata[4] & 3) + 1 if extradata[:1] == b"\x01" and len(extradata) > 4 else 0
    return lambda packet: packet.is_keyframe and _IDR not in _unit_types(bytes(packet), length_bytes)


def _unit_types(packet: bytes, length_bytes: int) -> Iterator[int]:
    """Types of the NAL units of H.264: behind its length each, or behind a mark for ``length_bytes`` 0."""
    if not length_bytes:
        yield from (mark[1][0] & 31 for mark in _UNIT.finditer(packet))
        return
    at = 0
    while at + length_bytes < len(packet):
        yield packet[at + length_bytes] & 31
        at += length_bytes + int.from_bytes(packet[at : at + length_bytes], "big")


def _starts_as_such(head: bytes) -> bool:
    """Whether no FFmpeg takes this for a playlist: decord's is older, and opens what those name."""
    is_container = head[4:8] in _BOXES or head[:4] == b"\x1a\x45\xdf\xa3" or head[:4] == b"RIFF"
    return is_container and b"<mpd" not in head.lower() and b"c=in ip" not in head.lower()
