"""Files that nobody should have to expect, and what may become of each: one row, or one failure of a kind."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.errors import Reason
from tests import media
from tests.integration.hostile_claims import (
    huge_later,
    huge_pictures,
    huge_sequence,
    huge_still,
    many_frames,
    patched,
    remux,
)

__all__ = ["ADDRESS", "ROW", "write_hostile"]

ROW = "row"
# Discard port: nobody listens there. Tests that do listen give an address of their own.
ADDRESS = "127.0.0.1:9"

Outcomes = frozenset[str]
Maker = Callable[[Path], None]


def write_hostile(folder: Path, *, address: str = ADDRESS) -> dict[str, Outcomes]:
    """Write the hostile files into ``folder``: name -> the outcomes allowed, each a Reason value or "row".

    Playlists point to http://``address`` and to ``folder.parent / "outside.mp4"``, which is made too. Less
    than 1 MB and 2 s. No regular files are dangling.mp4, link.mp4, pipe.mp4, zero.mp4 and folder.mp4: a
    listing that goes by names passes over the last three.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outside = media.write_video(folder.parent / "outside.mp4")
    made: dict[str, Outcomes] = {}
    for name, make, *outcomes in (*_CLAIMS, *_TIMES, *_CONTENTS, *_NAMES):
        make(folder / name)
        made[name] = frozenset(outcomes)
    for name, text in _playlists(address, outside).items():
        (folder / name).write_text(text)
        made[name] = frozenset({Reason.UNSUPPORTED_CODEC.value})
    return made | _write_references(folder, outside) | _write_places(folder, outside)


# ---- times


def _years(path: Path) -> None:
    media.write_video(path, pts=[*range(0, 1880, 40), 10 * 365 * 86_400_000])


def _variable_rate(path: Path) -> None:
    media.write_video(path, pts=np.cumsum([1 + 37 * i % 900 for i in range(48)]).tolist())


def _no_rate(path: Path) -> None:
    """AVI whose stream header has a rate of 0 per second."""
    media.write_video(path, codec="mpeg4")
    patched(path, (b"vids", 20, struct.pack("<II", 0, 0)))


def _no_durations(path: Path) -> None:
    """mp4 in which every frame lasts 0 ticks."""
    media.write_video(path, codec="mpeg4")
    patched(path, (b"stts", 16, b"\0\0\0\0"))


def _retimed(times: Callable[[int], tuple[int, int]]) -> Maker:
    def make(path: Path) -> None:
        source = media.write_video(path.with_name("source.avi"), codec="mpeg4")
        remux(source, path, times)
        source.unlink()

    return make


# ---- contents


def _random(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(50_000))


def _tail_missing(path: Path) -> None:
    media.truncated_video(path, share=0.5, index_first=True)


def _index_missing(path: Path) -> None:
    media.truncated_video(path, share=0.5, index_first=False)


def _still(path: Path) -> None:
    """A PNG of 64x64."""
    picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), "rgb24")
    encoder = av.CodecContext.create("png", "w")
    encoder.width = encoder.height = 64
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1, 1)
    path.write_bytes(b"".join(bytes(packet) for packet in encoder.encode(picture)))


def _changing_size(path: Path) -> None:
    """Half of it 128x96, half 320x176."""
    halves = [
        media.write_video(path.with_name(f"half{n}.ts"), num_frames=24, height=h, width=w)
        for n, (h, w) in enumerate(((96, 128), (176, 320)))
    ]
    with av.open(str(path), "w", format="mpegts") as new:
        stream = None
        for number, half in enumerate(halves):
            with av.open(str(half)) as old:
                stream = stream or new.add_stream_from_template(old.streams.video[0])
                packets = [p for p in old.demux(video=0) if p.size]
                first = min(p.dts for p in packets)
                for packet in packets:
                    packet.pts, packet.dts = (t - first + number * 270_000 for t in (packet.pts, packet.dts))
                    packet.stream = stream
                    new.mux(packet)
            half.unlink()


def _late_stream(path: Path) -> None:
    """MPEG-TS whose last picture is said to be of a stream that nobody announced."""
    content = bytearray(media.write_video(path).read_bytes())
    last = max(at for at in range(0, len(content), 188) if content[at + 1] & 0x40)
    content[last + 2] = 0x5C
    path.write_bytes(content)


def _wrong_keyframes(path: Path) -> None:
    """An index without a keyframe at the start: libav cannot seek in it."""
    media.write_video(path, num_frames=200)
    patched(path, (b"stss", 12, struct.pack(">I", 2**20)))


def _hundred_streams(path: Path) -> None:
    source = media.write_video(path.with_name("source.avi"), codec="mpeg4", num_frames=8)
    remux(source, path, copies=100)
    source.unlink()


def _cover_art(path: Path) -> None:
    """Sound with a picture of the cover, which is no video."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), "rgb24")
        container.mux(cover.encode(picture.reformat(format="yuvj420p")))
        for index in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, index * 1024
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


# ---- references to other places


def _playlists(address: str, outside: Path) -> dict[str, str]:
    head, tail = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n", "\n#EXT-X-ENDLIST\n"
    description = f"v=0\no=- 0 0 IN IP4 {address}\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT9S">'
        f'<Period><AdaptationSet mimeType="video/mp4"><BaseURL>http://{address}/x.mp4</BaseURL>'
        '<Representation id="1" bandwidth="1"/></AdaptationSet></Period></MPD>'
    )
    return {
        "playlist_http.mp4": f"{head}http://{address}/x.ts{tail}",
        "playlist_file.mp4": f"{head}file://{outside}{tail}",
        "playlist_bare.ts": f"{head}{outside}{tail}",
        "concat_file.mp4": f"ffconcat version 1.0\nfile '{outside}'\n",
        "concat_http.mp4": f"ffconcat version 1.0\nfile 'http://{address}/x.mp4'\n",
        "session.mp4": description,
        "dash.mp4": dash,
    }


def _write_references(folder: Path, outside: Path) -> dict[str, Outcomes]:
    """A mov whose samples are said to lie in another file."""
    path = media.write_video(folder / "alias.mov", codec="mpeg4")
    content = path.read_bytes()
    name = str(outside).encode()
    # An alias record: volume, file and depths, then the absolute path as entry 2.
    record = bytes(4) + bytes(6) + bytes([1]) + b"/".ljust(27, b"\0") + bytes(12) + bytes([11])
    record += b"outside.mp4".ljust(63, b"\0") + bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    record += struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">HH", 0xFFFF, 0)
    entry = struct.pack(">I", 12 + len(record)) + b"alis" + bytes(4) + record
    at = content.index(b"dref") - 4
    old = struct.unpack(">I", content[at : at + 4])[0]
    box = struct.pack(">I", 16 + len(entry)) + b"dref" + bytes(4) + struct.pack(">I", 1) + entry
    grown = bytearray(content[:at] + box + content[at + old :])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = grown.index(kind) - 4
        size = struct.unpack(">I", grown[place : place + 4])[0] + len(box) - old
        grown[place : place + 4] = struct.pack(">I", size)
    path.write_bytes(grown)
    return {"alias.mov": frozenset({Reason.CORRUPT.value, Reason.NO_FRAMES.value})}


def _write_places(folder: Path, outside: Path) -> dict[str, Outcomes]:
    """Links, pipes, devices and folders. A link to a good video is the user's: it is followed."""
    invalid = frozenset({Reason.INVALID_INPUT.value})
    made: dict[str, Outcomes] = {
        "link.mp4": frozenset({ROW}),
        "dangling.mp4": frozenset({Reason.NOT_FOUND.value}),
        "zero.mp4": invalid,
        "pipe.mp4": invalid,
        "folder.mp4": invalid,
    }
    for name, target in (
        ("link.mp4", outside),
        ("dangling.mp4", "/nowhere/x.mp4"),
        ("zero.mp4", "/dev/zero"),
    ):
        if not os.path.lexists(folder / name):
            (folder / name).symlink_to(target)
    if not os.path.lexists(folder / "pipe.mp4"):
        os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.mp4").mkdir(exist_ok=True)
    return made


# ---- the table: name, how it is made, what may become of it

_Entry = Sequence[object]
_LARGE = Reason.TOO_LARGE.value
_CLAIMS = (
    ("huge_pictures.mp4", huge_pictures, _LARGE, Reason.CORRUPT.value),
    ("huge_sequence.mp4", huge_sequence, _LARGE),
    ("huge_still.mp4", huge_still, _LARGE),
    ("huge_later.mp4", huge_later, _LARGE, Reason.CORRUPT.value),
    ("many_frames.mp4", many_frames, _LARGE),
)
_TIMES = (
    ("years.mkv", _years, ROW),
    ("variable_rate.mkv", _variable_rate, ROW),
    ("no_rate.avi", _no_rate, ROW),
    ("no_durations.mp4", _no_durations, ROW),
    ("negative.mp4", _retimed(lambda n: (125 * n - 3000, 125 * n - 3000)), ROW),
    ("negative.mkv", _retimed(lambda n: (125 * n - 3000, 125 * n - 3000)), ROW),
    ("back_and_forth.mkv", _retimed(lambda n: (125 * (n * 29 % 48), 125 * (n - 60))), ROW),
    ("same_time.mkv", _retimed(lambda n: (1000, n)), ROW),
)
_CONTENTS = (
    ("zero_bytes.mp4", media.empty_file, Reason.EMPTY_FILE.value),
    ("text.mp4", media.text_file, Reason.CORRUPT.value),
    ("random.mp4", _random, Reason.CORRUPT.value),
    ("tail_missing.mp4", _tail_missing, ROW),
    ("index_missing.mp4", _index_missing, Reason.CORRUPT.value),
    ("sound.mp4", media.audio_only, Reason.NO_FRAMES.value),
    ("cover.mp4", _cover_art, Reason.NO_FRAMES.value),
    ("still.mp4", _still, ROW),
    ("changing_size.ts", _changing_size, ROW),
    ("late_stream.ts", _late_stream, ROW),
    ("wrong_keyframes.mp4", _wrong_keyframes, ROW),
    ("hundred_streams.mkv", _hundred_streams, ROW),
    ("unknown_codec.mp4", media.unknown_codec_video, Reason.UNSUPPORTED_CODEC.value),
)
_NAMES = tuple(
    (name, media.write_video, ROW)
    for name in ("new\nline.mp4", "🎬 emoji.mp4", "-dash %d #1?.mp4", "quote'\".mp4", "w" * 251 + ".mp4")
)
