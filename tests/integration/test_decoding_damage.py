"""What decoders conceal is counted, once per packet, and said or refused; sound files raise no alarm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest

from pipeline.config.sections import DecodingConfig, WindowsConfig
from pipeline.decoding.pool import DecodePool
from pipeline.decoding.sampling import FrameRequest
from pipeline.errors import Reason
from tests import media
from tests.integration.test_decoding import decode, frames_of, reason_of
from tests.integration.test_decoding_order import number_of, write_numbered
from tests.integration.test_decoding_windows import all_of, clip

TOTAL = 200
REQUEST = FrameRequest("uniform", 32, 2.0, 28 * 28, 40 * 28 * 28)
ORDERS: dict[str, tuple[Literal["decord", "pyav"], ...] | None] = {
    "default": None,
    "decord first": ("decord", "pyav"),
}


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, DecodePool]]:
    with ExitStack() as closing:
        yield {
            name: closing.enter_context(DecodePool(DecodingConfig(decoders=order), REQUEST))
            for name, order in ORDERS.items()
        }


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 200 busy pictures, so that noise in a packet is noise in a picture."""
    return busy_videos(tmp_path_factory.mktemp("noisy"), CODECS)


def busy_videos(folder: Path, codecs: Mapping[str, str]) -> Path:
    """A video under each name, by each codec that PyAV can write."""
    for name, codec in codecs.items():
        if media.has_encoder(codec):
            busy_video(folder / name, codec)
    return folder


CODECS = {
    "h264.mp4": "libx264",
    "mpeg4.mp4": "mpeg4",
    "mpeg2.mkv": "mpeg2video",
    "prores.mov": "prores_ks",
    "mjpeg.avi": "mjpeg",
    "hevc.mp4": "libx265",
    "av1.mp4": "libsvtav1",
    "vp9.webm": "libvpx-vp9",
    "vp8.webm": "libvpx",
}
FORMATS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}
OPTIONS = {
    "libx265": {"x265-params": "log-level=none:open-gop=1", "preset": "ultrafast"},
    "libsvtav1": {"preset": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
}


def busy_video(path: Path, codec: str, num_frames: int = TOTAL, **options: str) -> Path:
    random = np.random.default_rng(0)
    noise = random.integers(0, 128, (96, 128, 3), dtype=np.uint8)
    with media.one_stream(path, codec, rate=25, options=OPTIONS.get(codec, {}) | options) as (stream, encode):
        stream.height, stream.width, stream.gop_size = 96, 128, 25
        stream.pix_fmt = FORMATS.get(codec, "yuv420p")
        for index in range(num_frames):
            moved = np.roll(noise, (2 * index, index), axis=(0, 1))
            moved += random.integers(0, 64, (96, 128, 1), dtype=np.uint8)
            encode(av.VideoFrame.from_ndarray(moved, "rgb24"))
    return path


@pytest.mark.parametrize("name", CODECS)
def test_sound_files_raise_no_alarm(pools: dict[str, DecodePool], noisy: Path, name: str) -> None:
    if not (noisy / name).exists():
        pytest.skip("this PyAV cannot write it")
    for pool in pools.values():
        assert frames_of(decode(pool, noisy / name)).damage is None


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.mp4", "mpeg2.mkv", "prores.mov", "av1.mp4"])
def test_a_file_of_which_much_is_concealed_is_corrupt(
    pools: dict[str, DecodePool], noisy: Path, tmp_path: Path, name: str, order: str
) -> None:
    """libav raises nothing: it makes up what is missing, and only flags that."""
    if not (noisy / name).exists():
        pytest.skip("this PyAV cannot write it")
    bad = media.damaged_video(noisy / name, tmp_path / name, first=50, last=110)
    outcome = decode(pools[order], bad)
    assert reason_of(outcome) is Reason.CORRUPT
    assert "cannot be decoded, or only in parts" in str(outcome.error)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.mp4", "mpeg2.mkv", "mjpeg.avi"])
def test_a_little_that_is_concealed_is_said(
    pools: dict[str, DecodePool], noisy: Path, tmp_path: Path, name: str, order: str
) -> None:
    """MJPEG flags nothing: its decoder complains in the log."""
    bad = media.damaged_video(noisy / name, tmp_path / name, first=80, last=85, share=0.8)
    frames = frames_of(decode(pools[order], bad))
    assert frames.damage is not None
    assert f"of {TOTAL} p" in frames.damage
    assert "of 32 sampled pictures may show the damage" in frames.damage
    assert len(frames.data) == 32
    assert np.diff(frames.pts_seconds).max() < 0.6, "no second comes silently from elsewhere"


@pytest.mark.parametrize("order", ORDERS)
def test_what_a_decoder_only_complains_of_is_said(
    pools: dict[str, DecodePool], noisy: Path, tmp_path: Path, order: str
) -> None:
    """HEVC flags nothing, and notices little of what it decodes wrongly."""
    bad = media.damaged_video(noisy / "hevc.mp4", tmp_path / "a.mp4", first=50, last=110, fill=255)
    damage = frames_of(decode(pools[order], bad)).damage
    assert damage is not None
    assert f"of {TOTAL} packets were decoded with errors; " in damage


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["hevc.mp4", "vp9.webm", "vp8.webm"])
def test_holes_are_found_that_decoders_read_over(
    pools: dict[str, DecodePool], noisy: Path, tmp_path: Path, name: str, order: str
) -> None:
    few = media.damaged_video(noisy / name, tmp_path / f"few-{name}", first=80, last=85, fill=0)
    damage = frames_of(decode(pools[order], few)).damage
    assert damage is not None
    assert damage.startswith("5 of 200 pictures could be decoded only in parts; ")
    many = media.damaged_video(noisy / name, tmp_path / f"many-{name}", first=60, last=80, fill=0)
    assert reason_of(decode(pools[order], many)) is Reason.CORRUPT


def test_damage_is_counted_once_however_many_windows_read_it(noisy: Path, tmp_path: Path) -> None:
    """Each window decodes on from the keyframe before it; the third would have had too much."""
    path = busy_video(tmp_path / "long.mp4", "libx264", 400, **{"x264-params": "keyint=200:scenecut=0"})
    bad = media.damaged_video(path, tmp_path / "bad.mp4", first=210, last=218, share=1.0)
    for length in (1.0, 3.0):
        config = WindowsConfig(length_seconds=length, overlap_seconds=0.5)
        for order in ORDERS.values():
            with DecodePool(DecodingConfig(decoders=order), REQUEST, config) as pool:
                notes = [frames_of(part).damage for part in all_of(pool, clip(bad))]
            assert notes[0] is None
            assert notes[-1] is not None
            assert notes[-1].startswith("8 of 400 packets could not be decoded; ")


def test_a_stretch_that_is_damaged_throughout_is_a_row_if_the_file_is_sound(
    pools: dict[str, DecodePool], noisy: Path, tmp_path: Path
) -> None:
    """Damage is held against the packets of the file, not against those of a clip."""
    bad = media.damaged_video(noisy / "h264.mp4", tmp_path / "a.mp4", first=100, last=109, share=1.0)
    with DecodePool(DecodingConfig(), REQUEST) as pool:
        (part,) = all_of(pool, clip(bad, 4.0, 4.9))
    damage = frames_of(part).damage
    assert damage is not None
    assert damage.startswith("9 of 200 packets could not be decoded; ")


def test_what_a_recording_shows_before_its_first_keyframe_is_no_damage(
    pools: dict[str, DecodePool], tmp_path: Path
) -> None:
    path = media.write_video(tmp_path / "whole.ts", num_frames=96, gop=24)
    content = path.read_bytes()
    with av.open(str(path)) as container:
        second = [packet.pos for packet in container.demux(video=0) if packet.size][4]
    (tmp_path / "late.ts").write_bytes(content[:564] + content[second:])
    assert frames_of(decode(pools["default"], tmp_path / "late.ts")).damage is None


LOSSY = {"h264.ts": "libx264", "hevc.ts": "libx265", "vp8.mkv": "libvpx", "mpeg4.avi": "mpeg4"}


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in containers of which parts can be lost."""
    return busy_videos(tmp_path_factory.mktemp("lossy"), LOSSY)


def without(path: Path, to: Path, begin: float, end: float, *, unit: int = 1) -> Path:
    """The file less what lies between two parts of it, in whole ``unit`` bytes."""
    content = path.read_bytes()
    first, last = (int(len(content) * share) // unit * unit for share in (begin, end))
    to.write_bytes(content[:first] + content[last:])
    return to


@pytest.mark.parametrize("order", ORDERS)
def test_what_a_container_lost_is_said(
    pools: dict[str, DecodePool], lossy: Path, tmp_path: Path, order: str
) -> None:
    """Packets that never come give no error, and no picture that could be flagged."""
    for name, first, note in (
        ("hevc.ts", 0.55, "could be decoded only in parts"),
        ("vp8.mkv", 0.55, "the file cannot be read in 1 place: what was there is missing"),
        ("mpeg4.avi", 0.6, " s of 8.0 s"),
    ):
        if (lossy / name).exists():
            assert frames_of(decode(pools[order], lossy / name)).damage is None
            last = 1.0 if name.endswith("avi") else first + 0.05
            bad = without(lossy / name, tmp_path / name, first, last, unit=188 if name[-2:] == "ts" else 1)
            assert note in str(frames_of(decode(pools[order], bad)).damage)


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_of_matroska_that_are_none_are_said(
    pools: dict[str, DecodePool], noisy: Path, tmp_path: Path, order: str
) -> None:
    """With the header of one block the demuxer leaves out all that follow in its cluster."""
    if not (noisy / "vp9.webm").exists():
        pytest.skip("this PyAV cannot write it")
    bad = media.damaged_video(noisy / "vp9.webm", tmp_path / "a.webm", first=80, last=85, share=1.0, fill=255)
    assert "the file cannot be read in " in str(frames_of(decode(pools[order], bad)).damage)


def test_times_hold_where_a_few_are_missing(
    pools: dict[str, DecodePool], lossy: Path, tmp_path: Path
) -> None:
    """One packet without a time made a constant rate of all: what is lost then shifted all that follows."""
    for name in ("h264.ts", "hevc.ts"):
        if (lossy / name).exists():
            bad = without(lossy / name, tmp_path / name, 0.5, 0.6, unit=4)
            frames = frames_of(decode(pools["default"], bad))
            assert frames.damage is not None
            assert frames.duration_seconds == pytest.approx(TOTAL / 25, abs=0.1)


def test_decord_is_not_asked_where_it_is_wrong_without_a_word(
    pools: dict[str, DecodePool], noisy: Path, tmp_path: Path
) -> None:
    """It shows pictures that are not built up yet, and the last good one in place of a broken one of VP9."""
    options = {"x264-params": "intra-refresh=1:keyint=30:scenecut=0"}
    path = write_numbered(tmp_path / "a.mp4", "libx264", num_frames=200, gop=30, b_frames=0, **options)
    frames = frames_of(decode(pools["decord first"], path))
    assert [number_of(picture) / 25 for picture in frames.data] == pytest.approx(frames.pts_seconds)
    assert frames.damage is None
    if media.has_encoder("libvpx-vp9"):
        whole = busy_video(tmp_path / "whole.mp4", "libvpx-vp9")
        bad = media.damaged_video(whole, tmp_path / "b.mp4", first=50, last=110, share=0.95)
        notes = [str(frames_of(decode(pool, bad)).damage) for pool in pools.values()]
        # How many packets the log complains of varies with the decoder's threads.
        lost = {note.partition(";")[0] for note in notes}
        assert lost == {"6 of 200 packets could not be decoded"}


def test_sound_segments_put_together_are_no_damage(pools: dict[str, DecodePool], tmp_path: Path) -> None:
    """MPEG-TS numbers its packets; in segments written each by itself the numbers start anew."""
    codec = "libx265" if media.has_encoder("libx265") else "libx264"
    busy_video(tmp_path / "whole.mp4", codec, 100, **CLOSED[codec])
    with av.open(str(tmp_path / "whole.mp4")) as whole, ExitStack() as closing:
        parts: list[av.container.OutputContainer] = []
        for packet in whole.demux(video=0):
            if packet.size and packet.is_keyframe:
                path = tmp_path / f"{len(parts)}.ts"
                options = {"muxdelay": "0", "mpegts_copyts": "1"}
                part = av.open(str(path), "w", options=options)
                parts.append(closing.enter_context(part))
                part.add_stream_from_template(whole.streams.video[0])
            if packet.size:
                packet.stream = parts[-1].streams.video[0]
                parts[-1].mux(packet)
    joined = b"".join((tmp_path / f"{number}.ts").read_bytes() for number in range(len(parts)))
    (tmp_path / "joined.ts").write_bytes(joined)
    frames = frames_of(decode(pools["default"], tmp_path / "joined.ts"))
    assert len(parts) == 4
    assert frames.source_num_frames == 100
    assert frames.damage is None


CLOSED = {
    "libx265": {"x265-params": "log-level=none:open-gop=0:scenecut=0:bframes=0"},
    "libx264": {"x264-params": "scenecut=0:bframes=0"},
}
