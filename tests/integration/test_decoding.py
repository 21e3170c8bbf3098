"""DecodePool on real files: what is read, what is refused and why, and what may be killed at any moment."""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest

from pipeline.config.sections import DecodingConfig
from pipeline.corpus.listing import video_id_for
from pipeline.decoding.pool import Decoded, DecodePool
from pipeline.decoding.sampling import FrameRequest
from pipeline.errors import Reason, Stage
from pipeline.records import Frames, VideoRef
from tests import media

REQUEST = FrameRequest("uniform", 12, 2.0, 28 * 28, 40 * 28 * 28)


def reference(uri: str | Path) -> VideoRef:
    return VideoRef(video_id_for(str(uri)), str(uri), "1", 0)


def decode(pool: DecodePool, uri: str | Path, seconds: float = 60.0) -> Decoded:
    pool.submit(reference(uri))
    decoded = pool.get(seconds)
    assert decoded is not None, "no answer in time"
    return decoded


def frames_of(decoded: Decoded) -> Frames:
    assert decoded.frames is not None, decoded.error
    assert decoded.error is None
    return decoded.frames


def reason_of(decoded: Decoded) -> Reason:
    assert decoded.error is not None
    assert decoded.frames is None
    return decoded.error.reason


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(DecodingConfig(), REQUEST) as made:
        yield made


@pytest.fixture(scope="module")
def pyav_pool() -> Iterator[DecodePool]:
    with DecodePool(DecodingConfig(decoders=("pyav",)), REQUEST) as made:
        yield made


@pytest.mark.parametrize(
    ("name", "encoder", "expected"),
    [
        ("a.mp4", "libx264", "h264 by pyav"),
        ("b.mp4", "libx265", "hevc by pyav"),
        ("open.mp4", "libx265-open", "hevc by pyav"),
        ("c.mkv", "libsvtav1", "av1 by pyav"),
        ("d.avi", "mpeg4", "mpeg4 by pyav"),
        ("e.ts", "libx264", "h264 by pyav"),
        ("f.webm", "libvpx-vp9", "vp9 by pyav"),
        ("g.h264", "libx264", "h264 by pyav"),
    ],
)
def test_codecs_and_containers(
    pool: DecodePool, tmp_path: Path, name: str, encoder: str, expected: str
) -> None:
    """Each by PyAV unless somebody wants it otherwise."""
    codec = encoder.removesuffix("-open")
    if not media.has_encoder(codec):
        pytest.skip(f"this PyAV cannot write {codec}")
    path = media.write_video(tmp_path / name, codec=codec, open_gops=codec != encoder)
    frames = frames_of(decode(pool, path))
    assert f"{frames.codec} by {frames.decoder}" == expected
    assert frames.data.shape == (12, 84, 140, 3)
    assert frames.data.dtype == np.uint8
    assert (frames.width, frames.height, frames.source_num_frames) == (128, 96, 48)
    assert frames.duration_seconds == pytest.approx(6.0, abs=0.1)
    assert frames.source_fps == pytest.approx(8.0, rel=0.02)
    assert frames.damage is None
    assert_shown_when_said(frames)


def assert_shown_when_said(frames: Frames, total: int = 48, fps: float = 8.0) -> None:
    """Red tells which frame it is; its timestamp must be that frame's."""
    assert (np.diff(frames.pts_seconds) > 0).all()
    index = np.round(frames.pts_seconds * fps)
    said = np.array([media.red_of(int(i), total) for i in index])
    shown = frames.data[:, 60, 70, 0].astype(int)
    assert np.abs(shown - said).max() <= 9, (shown, said)  # one frame is 4.8 of red; lossy colours


@pytest.mark.parametrize("gop", [1, 12, 1000])
@pytest.mark.parametrize("num_frames", [3, 40])
def test_both_decoders_see_the_same(tmp_path: Path, pyav_pool: DecodePool, gop: int, num_frames: int) -> None:
    """Long and short groups of pictures, dense and sparse sampling: seeks must not shift frames."""
    path = media.write_video(tmp_path / "a.mp4", num_frames=200, gop=gop)
    request = FrameRequest("uniform", num_frames, 2.0, 28 * 28, 40 * 28 * 28)
    pair = []
    for decoders in (("decord",), ("pyav",)):
        with DecodePool(DecodingConfig(decoders=decoders), request) as pool:
            pair.append(frames_of(decode(pool, path)))
    assert np.allclose(pair[0].pts_seconds, pair[1].pts_seconds, atol=1e-3)
    assert len(pair[0].pts_seconds) == num_frames
    for frames in pair:
        assert_shown_when_said(frames, total=200)
    assert np.abs(pair[0].data.astype(int) - pair[1].data).mean() < 3


@pytest.mark.parametrize("decoders", [("decord", "pyav"), ("pyav",)])
def test_rotated_clips_come_upright(tmp_path: Path, decoders: tuple[str, ...]) -> None:
    path = media.rotated_video(tmp_path / "phone.mp4")
    with DecodePool(DecodingConfig(decoders=decoders), REQUEST) as pool:  # type: ignore[arg-type]
        frames = frames_of(decode(pool, path))
    assert (frames.width, frames.height) == (96, 128)
    assert frames.data.shape[1:] == (140, 84, 3)
    assert frames.decoder == "pyav"  # decord goes by the container alone
    # A clockwise quarter turn brings the green band from the top to the right.
    assert frames.data[0, 70, 80, 1] > 150
    assert frames.data[0, 70, 4, 1] < 60
    assert frames.data[0, 4, 4, 2] > 150


# The display matrix (a b c d: x' = ax + cy, y' = bx + dy), and where it brings what is top left.
MATRICES = {
    "as it is": (1, 0, 0, 1, "top left"),
    "clockwise": (0, 1, -1, 0, "top right"),
    "upside down": (-1, 0, 0, -1, "bottom right"),
    "counter-clockwise": (0, -1, 1, 0, "bottom left"),
    "mirrored": (-1, 0, 0, 1, "top right"),
    "mirrored downwards": (1, 0, 0, -1, "bottom left"),
    "transposed": (0, 1, 1, 0, "top left"),
    "transposed and upside down": (0, -1, -1, 0, "bottom right"),
    "nothing": (0, 0, 0, 0, "top left"),
}


def test_every_display_matrix_is_heeded_by_both_decoders(
    pool: DecodePool, pyav_pool: DecodePool, tmp_path: Path
) -> None:
    """Front cameras mirror; a plain rotation would turn that upside down."""
    content = bytearray(_one_bright_quarter(tmp_path / "a.mp4").read_bytes())
    at = content.index(b"tkhd") + 44
    for name, (a, b, c, d, expected) in MATRICES.items():
        numbers = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 0x40000000 if a or b else 0)
        content[at : at + 36] = struct.pack(">9i", *numbers)
        (tmp_path / "a.mp4").write_bytes(content)
        for decoding in (pool, pyav_pool):
            frames = frames_of(decode(decoding, tmp_path / "a.mp4"))
            assert (frames.width, frames.height) == ((128, 96) if a or not b else (96, 128)), name
            height, width = frames.data.shape[1:3]
            assert (width > height) == (frames.width > frames.height)
            bright = {
                f"{row} {column}"
                for row, y in (("top", height // 4), ("bottom", 3 * height // 4))
                for column, x in (("left", width // 4), ("right", 3 * width // 4))
                if frames.data[0, y, x, 1] > 120
            }
            assert bright == {expected}, (name, frames.decoder)


def _one_bright_quarter(path: Path) -> Path:
    """White at the top left, black elsewhere."""
    picture = np.zeros((96, 128, 3), np.uint8)
    picture[:48, :64] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("decoders", [("decord", "pyav"), ("pyav",)])
def test_variable_rate_keeps_real_timestamps(tmp_path: Path, decoders: tuple[str, ...]) -> None:
    pts = list(itertools.accumulate([40 if i % 10 else 900 for i in range(48)]))
    path = media.write_video(tmp_path / "vfr.mkv", pts=pts)
    with DecodePool(DecodingConfig(decoders=decoders), REQUEST) as pool:  # type: ignore[arg-type]
        frames = frames_of(decode(pool, path))
    real = (np.array(pts) - pts[0]) / 1000
    nearest = np.abs(frames.pts_seconds[:, None] - real[None, :])
    assert nearest.min(axis=1).max() < 0.002
    said = np.array([media.red_of(int(i), 48) for i in nearest.argmin(axis=1)])
    assert np.abs(frames.data[:, 60, 70, 0].astype(int) - said).max() <= 9


def test_never_more_frames_than_there_are(pool: DecodePool, tmp_path: Path) -> None:
    frames = frames_of(decode(pool, media.write_video(tmp_path / "short.mp4", num_frames=5)))
    assert frames.pts_seconds.tolist() == pytest.approx([i / 8 for i in range(5)])


def test_fps_sampling(tmp_path: Path) -> None:
    request = FrameRequest("fps", 100, 2.0, 28 * 28, 40 * 28 * 28)
    with DecodePool(DecodingConfig(), request) as pool:
        frames = frames_of(decode(pool, media.write_video(tmp_path / "a.mp4")))
    assert frames.pts_seconds.tolist() == pytest.approx([0.25 + i / 2 for i in range(12)])


def test_every_refusal_has_its_reason(pool: DecodePool, tmp_path: Path) -> None:
    cut = media.truncated_video(tmp_path / "cut.mp4", share=0.6, index_first=False)
    playlist = tmp_path / "list.mp4"
    playlist.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"
    )
    expected = {
        media.empty_file(tmp_path / "empty.mp4"): (Stage.READING, Reason.EMPTY_FILE),
        media.text_file(tmp_path / "text.mp4"): (Stage.DECODING, Reason.CORRUPT),
        media.audio_only(tmp_path / "song.mp4"): (Stage.DECODING, Reason.NO_FRAMES),
        media.unknown_codec_video(tmp_path / "new.mp4"): (Stage.DECODING, Reason.UNSUPPORTED_CODEC),
        cut: (Stage.DECODING, Reason.CORRUPT),
        tmp_path / "absent.mp4": (Stage.READING, Reason.NOT_FOUND),
        tmp_path: (Stage.READING, Reason.INVALID_INPUT),
    }
    got = {}
    for path in expected:
        error = decode(pool, path).error
        assert error is not None, path
        got[path] = (error.stage, error.reason)
    assert got == expected
    assert reason_of(decode(pool, playlist)) in {Reason.CORRUPT, Reason.UNSUPPORTED_CODEC}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_files(pool: DecodePool, tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "mine.mp4")
    path.chmod(0)
    assert reason_of(decode(pool, path)) == Reason.ACCESS_DENIED


def test_what_is_left_of_a_truncated_file_is_used_and_said(pool: DecodePool, tmp_path: Path) -> None:
    path = media.truncated_video(tmp_path / "cut.mp4", share=0.6, index_first=True)
    frames = frames_of(decode(pool, path))
    assert frames.damage is not None
    assert "of 25.0 s" in frames.damage
    assert frames.duration_seconds < 24
    assert_shown_when_said(frames, total=200)


def test_ruins_are_corrupt(pool: DecodePool, tmp_path: Path) -> None:
    """Sound index, noise for pictures."""
    path = media.write_video(
        tmp_path / "noise.mp4", num_frames=100, container_options={"movflags": "faststart"}
    )
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 8
    noise = np.random.default_rng(0).integers(0, 256, len(content) - start, dtype=np.uint8)
    content[start:] = noise.tobytes()
    path.write_bytes(content)
    assert reason_of(decode(pool, path)) == Reason.CORRUPT


def test_odd_names(pool: DecodePool, tmp_path: Path) -> None:
    for name in ("new\nline.mp4", "🎬 a::b 50%d #1?.mp4", "-x.mp4"):
        frames_of(decode(pool, media.write_video(tmp_path / name, num_frames=4)))
    raw = os.fsencode(media.write_video(tmp_path / "a.mp4", num_frames=4))
    os.rename(raw, raw.replace(b"/a.mp4", b"/caf\xe9.mp4"))
    frames_of(decode(pool, "file://" + str(tmp_path) + "/caf%E9.mp4"))


def test_remote_files_are_copied_and_the_copy_removed(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4")
    fsspec.filesystem("memory").pipe("/decoding/a.mp4", path.read_bytes())
    cache = tmp_path / "cache"
    with DecodePool(DecodingConfig(cache_dir=str(cache)), REQUEST) as pool:
        assert len(frames_of(decode(pool, "memory://decoding/a.mp4")).data) == 12
        deadline = time.monotonic() + 60  # the pictures may be there a moment before the copy has gone
        while any(file.suffix == ".mp4" for file in cache.rglob("*")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        gone = decode(pool, "memory://decoding/b.mp4")
    assert reason_of(gone) == Reason.NOT_FOUND
    assert list(cache.iterdir()) == []


def test_members_of_shards_are_cut_out(tmp_path: Path) -> None:
    video = media.write_video(tmp_path / "a.mp4").read_bytes()
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"x" * 1000 + video + b"y" * 1000)
    ref = VideoRef("m", str(shard), "1", len(video), offset=1000, num_bytes=len(video))
    with DecodePool(DecodingConfig(cache_dir=str(tmp_path / "cache")), REQUEST) as pool:
        pool.submit(ref)
        decoded = pool.get(60.0)
        assert decoded is not None
        assert_shown_when_said(frames_of(decoded))


def test_real_files_of_others() -> None:
    folder = os.environ.get("FLASHVID_TEST_VIDEOS")
    if not folder:
        pytest.skip("set FLASHVID_TEST_VIDEOS to a folder of real videos to try them")
    paths = sorted(path for path in Path(folder).iterdir() if path.is_file())
    with DecodePool(DecodingConfig(), REQUEST) as pool:
        outcomes = {path.name: decode(pool, path) for path in paths}
    assert outcomes
    assert any(outcome.frames is not None for outcome in outcomes.values())
    for outcome in outcomes.values():
        assert (outcome.frames is None) != (outcome.error is None)


def test_media_are_written_without_becoming_a_real_time_process(tmp_path: Path) -> None:
    media.write_video(tmp_path / "a.mkv", codec="libsvtav1", num_frames=2)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
