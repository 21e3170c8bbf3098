"""Small videos whose header says how to show them: which track, which way up, what shape, which colours."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from numpy.typing import NDArray

from tests import media

__all__ = [
    "PQ_WHITE",
    "QUARTERS",
    "encode",
    "filtered",
    "patches",
    "quarters",
    "still",
    "two_tracks",
    "with_cover",
    "with_pixel_ratio",
]

Pixels = NDArray[Any]
QUARTERS = {"top left": "red", "top right": "green", "bottom left": "blue", "bottom right": "white"}
_COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220), "white": (230, 230, 230)}
PQ_WHITE = 0.5807  # what SMPTE ST 2084 makes of 203 nits


def patches(colours: Sequence[tuple[float, float, float]], height: int = 96, width: int = 128) -> Pixels:
    """uint16 (height, width, 3): bars of these R'G'B', each in [0, 1], side by side."""
    bars = np.repeat(np.asarray(colours, np.float64), width // len(colours), axis=0)
    return np.broadcast_to(np.rint(bars * 65535).astype(np.uint16), (height, *bars.shape)).copy()


def quarters(height: int = 96, width: int = 128) -> Pixels:
    """uint8 (height, width, 3): red, green, blue and white, from the top left on."""
    picture = np.zeros((height, width, 3), np.uint8)
    for number, colour in enumerate(_COLOURS.values()):
        y, x = divmod(number, 2)
        part = (slice(y * height // 2, (y + 1) * height // 2), slice(x * width // 2, (x + 1) * width // 2))
        picture[part] = colour
    return picture


def encode(
    path: Path,
    picture: Pixels,
    *,
    codec: str = "libx264",
    form: str = "yuv420p",
    num_frames: int = 24,
    gop: int = 8,
    pixel_ratio: Fraction | None = None,
    matrix: int = 2,
    is_full: bool = False,
    transfer: int = 2,
    primaries: int = 2,
    options: dict[str, str] | None = None,
) -> Path:
    """Write one picture, uint8 or uint16 (H, W, 3), repeated at 8 fps, tagged with these code points."""
    with media.one_stream(path, codec, rate=8, options=options or {"crf": "8"}) as (stream, write):
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *picture.shape[:2], form, gop
        context = stream.codec_context
        if pixel_ratio is not None:
            context.sample_aspect_ratio = pixel_ratio
        context.colorspace, context.color_range = matrix, 2 if is_full else 1
        context.color_trc, context.color_primaries = transfer, primaries
        frame = _as_video(picture, form, matrix, is_full=is_full)
        for number in range(num_frames):
            frame.pts, frame.time_base = number, Fraction(1, 8)
            write(frame)
    return path


def _as_video(picture: Pixels, form: str, matrix: int, *, is_full: bool) -> av.VideoFrame:
    rgb = av.VideoFrame.from_ndarray(picture, "rgb24" if picture.dtype == np.uint8 else "rgb48le")
    swscale = {1: 1, 9: 9}.get(matrix, 5)
    frame = rgb.reformat(
        format=form,
        src_colorspace=4,
        dst_colorspace=swscale,
        src_color_range=2,
        dst_color_range=2 if is_full else 1,
    )
    frame.colorspace, frame.color_range = matrix, 2 if is_full else 1
    return frame


def filtered(source: Path, path: Path, name: str) -> Path:
    """A copy of a video through one of libav's bitstream filters."""
    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        bitstream = BitStreamFilterContext(name, stream, copy)
        for packet in before.demux(stream):
            for done in bitstream.filter(packet if packet.size else None):
                done.stream = copy
                after.mux(done)
    return path


def with_pixel_ratio(source: Path, path: Path, wide: int, high: int) -> Path:
    """A copy of an mp4 that has a ``pasp`` box, with another ratio in that: the container's word."""
    content = bytearray(source.read_bytes())
    at = content.index(b"pasp")
    content[at + 4 : at + 12] = struct.pack(">II", wide, high)
    path.write_bytes(content)
    return path


def two_tracks(path: Path, default: int) -> Path:
    """Track 0 is black and 64x48, track 1 is white and 128x96; both have 24 frames at 8 fps."""
    with av.open(str(path), "w") as container:
        sizes = ((48, 64), (96, 128))
        streams = [container.add_stream("libx264", rate=8) for _ in sizes]
        for number, stream in enumerate(streams):
            stream.height, stream.width = sizes[number]
            stream.pix_fmt = "yuv420p"
            stream.disposition = av.stream.Disposition(int(number == default))
        for number, stream in enumerate(streams):
            picture = np.full((*sizes[number], 3), 235 * number, np.uint8)
            for _ in range(24):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode())
    return path


def with_cover(path: Path, *, has_video: bool, has_sound: bool) -> Path:
    """An mp4 that begins with a cover, as music has it: marked as attached."""
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=16000) if has_sound else None
        video = container.add_stream("libx264", rate=8) if has_video else None
        if video is not None:
            video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        for stream, picture, count in ((cover, np.zeros((48, 64, 3)), 1), (video, quarters(), 24)):
            for _ in range(count if stream is not None else 0):
                frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), "rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode() if stream is not None else [])
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 16000, 0
            container.mux([*sound.encode(silence), *sound.encode()])
    return path


def still(path: Path, orientation: int) -> Path:
    """A picture in the format that the suffix names, with an orientation in its EXIF."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(quarters()).save(path, exif=exif)
    return path
