"""Containers and streams through PyAV: what is in a file, its packets and its frames.

Only the local file itself is ever opened: no network, no playlists, no cover art taken for video. What a
file claims of itself is held against limits before anything of that size is allocated.
"""

from __future__ import annotations

import errno
import gc
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import av
from av.sidedata.sidedata import Type

from pipeline.decoding.colours import Painter, dolby_note
from pipeline.decoding.damage import Damage, hole_finder
from pipeline.decoding.decoder_log import DecoderLog
from pipeline.decoding.pixels import shown_size
from pipeline.decoding.rotation import Turn, side_data_of, turn_of
from pipeline.decoding.timeline import Told
from pipeline.decoding.tracks import is_animated_webp, main_stream
from pipeline.errors import Reason, Stage, VideoError

__all__ = [
    "NO_ROOM",
    "DecoderRefusedError",
    "Header",
    "Limits",
    "decoded",
    "describe",
    "head_of",
    "is_same_kind",
    "jumped",
    "may_jump",
    "opened",
    "origin_seconds",
    "packets_of",
    "read_header",
    "told_by",
]

# Formats that hold their own pictures (or sound, to say that there is no picture). Those that name other
# files or hosts are not among them: a corpus must not make a worker read anything but the video.
_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,av1,obu,ivf,vc1,vc1test,h261,h263,dirac,"
    "cavsvideo,avs2,avs3,flv,live_flv,kux,asf,ogg,nut,mxf,gxf,dv,dhav,gif,apng,rm,wtv,nsv,nuv,mjpeg,"
    "mjpeg_2000,smjpeg,mpjpeg,yuv4mpegpipe,bink,smk,swf,roq,flic,film_cpk,pva,pmp,ty,vivo,amv,cine,mlv,"
    "r3d,ser,dxa,xmv,thp,avif,png_pipe,jpeg_pipe,webp_pipe,gif_pipe,bmp_pipe,tiff_pipe,j2k_pipe,"
    "jpegxl_pipe,jpegxl_anim,ppm_pipe,wav,mp3,flac,aac,ac3,eac3,aiff,amr,au,caf,opus,w64,ape,wv,dts"
)
_PLAYLIST_STARTS = (b"#EXTM3U", b"ffconcat", b"v=0\r", b"v=0\n", b"[playlist]", b"<?xml", b"<MPD", b"<Smooth")
_HEAD_BYTES = 4096
# BlockingIOError: no thread could be started. Neither is the fault of the file.
NO_ROOM = (MemoryError, BlockingIOError)
# libav holds sides rounded up to whole blocks against its limit; the exact check is ours.
_ALIGNMENT_SLACK = 1.25
_TS_DISCONT = 0x200  # AVFMT_TS_DISCONT
_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS
_ORDER_IN_PICTURES = frozenset({"h264", "hevc", "vvc"})  # no demuxer looks that deep
_TAGGED_DURATION = re.compile(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d+)?)$")


def _nameless(cls: type[Type], value: int) -> Type:
    """PyAV lists no side data at all where FFmpeg attached a type that PyAV has no name for: the EXIF of
    still pictures, the views of spatial video."""
    member = object.__new__(cls)
    member._name_ = f"TYPE_{value}"
    member._value_ = value  # type: ignore[assignment]
    return member


Type._missing_ = classmethod(_nameless)  # type: ignore[assignment,method-assign]


# PyAV before 17 frees options for more streams than there were, where a format names them on the way.
_FREES_TOO_MUCH = int(av.__version__.split(".")[0]) < 17
_NAMES_STREAMS_LATER = (b"FLV", b"\0\0\1\xba", b".RMF", bytes.fromhex("b7d800203749da11"), b"NSV", b"DHAV")


class DecoderRefusedError(Exception):
    """This decoder cannot, another may. ``reason`` holds where there is no other."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """What a file may claim of itself, the threads that may decode it, the byte at which it ends."""

    max_frame_pixels: int
    max_source_frames: int
    threads: int = 1
    end_byte: int | None = None

    @property
    def codec_options(self) -> dict[str, str]:
        return {"max_pixels": str(int(self.max_frame_pixels * _ALIGNMENT_SLACK))}

    def check_size(self, width: int, height: int) -> None:
        """Raise VideoError (too_large) for a picture of more than ``max_frame_pixels``."""
        if width * height > self.max_frame_pixels:
            _too_large(
                f"pictures of {width}x{height} exceed decoding.max_frame_pixels={self.max_frame_pixels}"
            )

    def check_count(self, num_frames: int) -> None:
        """Raise VideoError (too_large) for more than ``max_source_frames``."""
        if num_frames > self.max_source_frames:
            _too_large(f"{num_frames} frames exceed decoding.max_source_frames={self.max_source_frames}")


@dataclass(frozen=True)
class Header:
    """What the container claims, and how the first picture is shown.

    ``claimed_end_seconds``: when the pictures are said to end, from the container's start on; 0: no word.
    ``width`` and ``height`` are those of the first picture as it is shown: upright, its pixels square.
    ``form``: of the first picture, as Painter.form_of tells it. ``notes``: what could not be heeded.
    ``oddity``: what an old decoder would get wrong, None where nothing.
    """

    codec: str
    containers: frozenset[str]
    claimed_end_seconds: float
    width: int
    height: int
    turn: Turn
    form: Any = None
    notes: tuple[str, ...] = ()
    oddity: str | None = None


def read_header(path: str, limits: Limits) -> Header:
    """What the file claims, and the size of its first frame. Raises as ``opened`` does."""
    damage = Damage()
    with opened(path, limits) as (container, stream):
        painter = Painter(stream)
        first = next(decoded(container, stream, damage, limits), None)
        if first is None:
            raise DecoderRefusedError(Reason.CORRUPT, "no frame can be decoded")
        header = describe(container, stream, first, painter)
    del first
    gc.collect()  # see side_data_of
    return header


def describe(container: Any, stream: Any, first: Any, painter: Painter) -> Header:
    """The header, given the first picture that can be decoded. Ask once per file: see side_data_of."""
    side_data = side_data_of(first)
    turn = turn_of(side_data)
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    shown = shown_size(first.width, first.height, ratio)
    turned = turn.num_quarters % 2 == 1
    notes = tuple(note for note in (shown.note, dolby_note(side_data)) if note)
    return Header(
        codec=stream.codec_context.codec.canonical_name,
        containers=frozenset(container.format.name.split(",")),
        claimed_end_seconds=_claimed_end(container, stream),
        width=shown.height if turned else shown.width,
        height=shown.width if turned else shown.height,
        turn=turn,
        form=painter.form_of(first),
        notes=notes,
        oddity=_oddity(turn, painter.oddity(first), notes),
    )


def _oddity(turn: Turn, colours: str | None, notes: tuple[str, ...]) -> str | None:
    return "turned pictures" if turn != Turn(False, 0) else colours or "; ".join(notes) or None


def origin_seconds(container: Any) -> float | None:
    """When the container starts, be it with sound, on the clock that its packets tell; None: no word."""
    start = container.start_time
    return None if start is None else start / float(av.time_base)


def may_jump(container: Any) -> bool:
    """Whether the format allows timestamps to start anew in the middle."""
    return bool(container.format.flags & _TS_DISCONT)


def told_by(container: Any, stream: Any) -> Told:
    """Which times the packets of a stream carry. Without reordering all are the same."""
    name = container.format.name
    made_up = container.format.flags & _NO_TIMESTAMPS or name == "avi"
    made_up = made_up or (name == "asf" and stream.codec_context.name in _ORDER_IN_PICTURES)
    return Told.DECODED if made_up and stream.codec_context.has_b_frames else Told.SHOWN


def _claimed_end(container: Any, stream: Any) -> float:
    """A whole file's duration may be the sound's; muxers of Matroska tag each stream with its own."""
    if may_jump(container):  # no claim but libav's estimate
        return 0.0
    start = origin_seconds(container) or 0.0
    tags = _duration_tags(stream.metadata)
    tagged = next((found for found in map(_TAGGED_DURATION.match, tags) if found), None)
    if tagged:  # by some muxers as the end on the file's clock
        hours, minutes, seconds = map(float, tagged.groups())
        return 3600 * hours + 60 * minutes + seconds - max(0.0, start)
    if stream.duration is not None:
        first = start if stream.start_time is None else float(stream.start_time * stream.time_base)
        # libav cuts an AVI's duration down to what there is; its header counts in the same unit.
        ticks = max(stream.duration, stream.frames if container.format.name == "avi" else 0)
        return max(0.0, first - start) + float(ticks * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration) / float(av.time_base) - max(0.0, start)
    return 0.0


def _duration_tags(tags: Mapping[str, str]) -> list[str]:
    """The muxer's own first: one with a language may be left from the file that this was made of."""
    names = [name for name in tags if name.upper().startswith("DURATION")]
    return [tags[name] for name in sorted(names, key=len)]


def head_of(path: str) -> bytes:
    """The first bytes of a file, as many as tell its format."""
    with open(path, "rb") as file:
        return file.read(_HEAD_BYTES)


@contextmanager
def opened(path: str, limits: Limits, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """A container and its main video stream (never cover art). Only the local file may be opened.

    Raises VideoError: corrupt, unsupported_codec (playlists too), no_frames, or too_large for what it claims.
    """
    head = head_of(path)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_PLAYLIST_STARTS):
        message = "a playlist or another text that names videos; list the videos themselves"
        raise VideoError(Stage.DECODING, Reason.UNSUPPORTED_CODEC, message)
    if is_animated_webp(head):
        message = "an animated WebP, which FFmpeg does not decode; convert it to mp4 or GIF"
        raise VideoError(Stage.DECODING, Reason.UNSUPPORTED_CODEC, message)
    with _open(path, limits.codec_options, end=limits.end_byte) as container:
        stream = main_stream(container)
        context = stream.codec_context
        limits.check_count(stream.frames)
        limits.check_size(*((context.width, context.height) if context.width else _claimed_size(path)))
        context.options = limits.codec_options
        context.thread_count = threads
        context.thread_type = "AUTO"
        try:
            yield container, stream
        finally:  # threads that want to log wait for the lock that closing would hold while it waits for them
            context.flush_buffers()


def _open(path: str, options: dict[str, str], *, begin: int = 0, end: int | None = None) -> Any:
    """The options go to the container, and to the decoders that libav uses to find out what is in it.

    Of a file that others are joined to, only what lies from ``begin`` to ``end`` is seen.
    """
    own = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    if _FREES_TOO_MUCH and head_of(path).startswith(_NAMES_STREAMS_LATER):
        options = {}
    url = path
    if begin or end is not None:
        own["protocol_whitelist"] = "file,subfile"
        url = f"subfile,,start,{begin},end,{end or 0},,:{path}"
    try:
        return av.open(url, options=options, container_options=own, metadata_errors="replace")
    except NO_ROOM:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise VideoError(Stage.DECODING, Reason.CORRUPT, f"not a readable video: {said}") from None


def is_same_kind(path: str, byte: int, container: Any, stream: Any) -> bool:
    """Whether the file that begins at a byte of this one is such that its stream can be decoded on."""
    try:
        with _open(path, {}, begin=byte) as behind:
            own, other = stream.codec_context, main_stream(behind).codec_context
            alike = ("name", "width", "height", "pix_fmt", "extradata")
            is_alike = all(getattr(own, name) == getattr(other, name) for name in alike)
            return is_alike and bool(behind.format.name == container.format.name)
    except VideoError:
        return False


def _claimed_size(path: str) -> tuple[int, int]:
    """What the headers say where libav refused it; no picture is decoded, so none is allocated."""
    with _open(path, {"skip_frame": "all"}) as container:
        context = main_stream(container).codec_context
        return context.width, context.height


def packets_of(container: Any, stream: Any, limits: Limits, damage: Damage | None = None) -> Iterator[Any]:
    """Packets up to the end of the file or of what is left of it, which ``damage`` then tells.

    Raises VideoError for too many.
    """
    packets = container.demux(stream)
    number = 0
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):  # IndexError: PyAV's, where streams came up on the way
            return
        except NO_ROOM:
            raise
        except av.error.FFmpegError as error:
            if error.errno == errno.EIO:
                raise VideoError(Stage.READING, Reason.READ_ERROR, f"reading the file: {error}") from None
            if damage is not None:
                damage.lost_places += 1
            return
        number += 1
        limits.check_count(number - 1)  # the last one is empty: it flushes the decoder
        yield packet


def jumped(container: Any, stream: Any, at: int, *, is_byte: bool = False) -> bool:
    """Go to the last keyframe at or before ``at``, in ticks of the stream, or to a byte; False: it fails."""
    try:
        if is_byte:
            container.seek(at, unsupported_byte_offset=True)
        else:
            container.seek(at, stream=stream, backward=True)
    except NO_ROOM:
        raise
    except (av.error.FFmpegError, OverflowError):
        return False
    return True


def decoded(
    container: Any,
    stream: Any,
    damage: Damage,
    limits: Limits,
    *,
    mend: Callable[[Any], None] | None = None,
    shown_from: int | None = None,
) -> Iterator[Any]:
    """Frames in display order; what is damaged is counted in ``damage``.

    Packets that cannot be decoded are passed over. Pictures decoded only in parts are given all the same, as
    it was their turn. What a stream shows before its first keyframe, or before ``shown_from`` (ticks) where
    decoding begins after a jump, is no damage: those that are incomplete are left out. ``mend`` may change a
    packet's times before it is decoded.
    """
    damage.restart()
    log = DecoderLog(stream.codec_context)
    has_hole = hole_finder(stream, damage.incomplete)
    is_settled = False
    place = 0  # of the next picture
    for number, packet in enumerate(packets_of(container, stream, limits)):
        damage.seen += packet.size > 0
        if mend is not None and packet.size:
            mend(packet)
        if has_hole(packet):
            damage.add_hole(packet, number)
        try:
            frames = packet.decode()
        except NO_ROOM:
            raise
        except av.error.FFmpegError:
            damage.add_failed(packet, number)
            continue
        finally:
            if log.complained() and is_settled:
                damage.add_complaint(packet, number)
        for frame in frames:
            limits.check_size(frame.width, frame.height)
            is_early = shown_from is not None and frame.pts is not None and frame.pts < shown_from
            is_settled = is_settled or (not is_early and (frame.key_frame or not frame.is_corrupt))
            if is_settled:
                damage.add_picture(frame, place)
            if is_settled or not frame.is_corrupt:
                yield frame
            place += 1


def _too_large(message: str) -> NoReturn:
    raise VideoError(Stage.DECODING, Reason.TOO_LARGE, f"{message}; raise that to read it")
