"""Files whose headers claim more than there is, made by changing a few bytes of sound ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av

from tests import media

__all__ = ["huge_later", "huge_pictures", "huge_sequence", "huge_still", "many_frames", "patched", "remux"]

SIDE = 16384
# What libav itself would still allocate, four times over: 256 million pixels.
ALLOWED_SIDE = 16000


def patched(path: Path, *changes: tuple[bytes, int, bytes]) -> None:
    """Overwrite bytes at an offset from where a mark is found, in every place where it is."""
    content = bytearray(path.read_bytes())
    for mark, offset, new in changes:
        at = content.find(mark)
        assert at >= 0, f"{mark!r} is not in {path.name}"
        while at >= 0:
            content[at + offset : at + offset + len(new)] = new
            at = content.find(mark, at + 1)
    path.write_bytes(content)


def _motion_jpeg(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuvj420p"
        for picture in media.pictures(24, 96, 128):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuvj420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def huge_pictures(path: Path) -> None:
    """Motion JPEG; the container and every picture say 16384x16384."""
    _motion_jpeg(path)
    size = struct.pack(">HH", SIDE, SIDE)
    patched(path, (b"\xff\xc0\x00\x11\x08", 5, size), (b"mp4v", 28, size))


def huge_later(path: Path) -> None:
    """Small pictures first; the others say 16000x16000."""
    _motion_jpeg(path)
    content, mark = bytearray(path.read_bytes()), b"\xff\xc0\x00\x11\x08"
    at = content.find(mark, len(content) // 2)
    while at >= 0:
        content[at + 5 : at + 9] = struct.pack(">HH", ALLOWED_SIDE, ALLOWED_SIDE)
        at = content.find(mark, at + 1)
    path.write_bytes(content)


def _bits(*fields: tuple[str, int]) -> bytes:
    """u(n) as ("8", value) and ue(v) as ("ue", value), closed by a stop bit."""
    text = ""
    for kind, value in fields:
        code = bin(value + 1)[2:]
        text += "0" * (len(code) - 1) + code if kind == "ue" else format(value, f"0{kind}b")
    text += "1"
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def huge_sequence(path: Path) -> None:
    """H.264 in mp4 whose sequence parameters say 1000 x 1000 macroblocks."""
    raw = media.write_video(path.with_suffix(".h264"), num_frames=8)
    units = raw.read_bytes().split(b"\0\0\1")
    sides = [("ue", ALLOWED_SIDE // 16 - 1)] * 2
    head = [("8", 66), ("8", 0), ("8", 62), ("ue", 0), ("ue", 0), ("ue", 2), ("ue", 1), ("1", 0)]
    sequence = b"\x67" + _bits(*head, *sides, ("1", 1), ("1", 1), ("1", 0), ("1", 0))
    units = [sequence if unit[:1] and unit[0] & 31 == 7 else unit for unit in units]
    raw.write_bytes(b"\0\0\1".join(units))
    remux(raw, path)
    raw.unlink()


def huge_still(path: Path) -> None:
    """A black picture of 16000x16000 pixels in 33 kB."""
    row = b"\0" * (ALLOWED_SIDE // 8 + 1)
    data = zlib.compress(row * ALLOWED_SIDE, 9)
    head = struct.pack(">IIBBBBB", ALLOWED_SIDE, ALLOWED_SIDE, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, (b"IHDR", b"IDAT", b"IEND"), (head, data, b"")))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def many_frames(path: Path) -> None:
    """48 frames; the index says 10**9, of one byte each."""
    media.write_video(path)
    many = struct.pack(">I", 10**9)
    patched(path, (b"stsz", 8, struct.pack(">I", 1) + many), (b"stts", 12, many), (b"stsc", 16, many))


def remux(
    source: Path, path: Path, times: Callable[[int], tuple[int, int]] | None = None, *, copies: int = 1
) -> None:
    """Copy packets; ``times`` gives (pts, dts) in milliseconds of each; ``copies`` of the stream."""
    reading, writing = {"skip_frame": "all"}, {"avoid_negative_ts": "disabled"}  # packets only: decode none
    with av.open(str(source), options=reading) as old, av.open(str(path), "w", options=writing) as new:
        template = old.streams.video[0]
        streams = [new.add_stream_from_template(template) for _ in range(copies)]
        for number, packet in enumerate(p for p in old.demux(template) if p.size):
            data = bytes(packet)
            for stream in streams:
                out = av.Packet(data)
                out.is_keyframe = packet.is_keyframe
                out.time_base = Fraction(1, 1000)
                out.pts, out.dts = times(number) if times else (number * 125, number * 125)
                out.stream = stream
                new.mux(out)
