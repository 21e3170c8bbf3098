"""Files put one behind the other: what is read of them, and that it is said."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.sections import DecodingConfig
from pipeline.decoding.pool import DecodePool
from pipeline.records import Frames
from tests import media
from tests.integration.test_decoding import REQUEST, assert_shown_when_said, decode, frames_of

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


@pytest.fixture(scope="module")
def pools() -> Iterator[list[DecodePool]]:
    with (
        DecodePool(DecodingConfig(), REQUEST) as usual,
        DecodePool(DecodingConfig(decoders=("decord", "pyav")), REQUEST) as decord_first,
    ):
        yield [usual, decord_first]


def joined(folder: Path, *parts: Path) -> Path:
    path = folder / f"joined-{parts[0].name}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {}), ("b.mp4", FRAGMENTS), ("c.mov", {}), ("d.flv", {}), ("e.ivf", {}), ("f.nut", {})],
)
def test_only_the_first_is_read_and_that_is_said(
    pools: list[DecodePool], tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    codec = "libvpx" if name.endswith("ivf") else "libx264"
    one = media.write_video(tmp_path / name, codec=codec, container_options=options)
    size = one.stat().st_size
    path = joined(tmp_path, one, one)
    for pool in pools:
        assert frames_of(decode(pool, one)).damage is None
        frames = frames_of(decode(pool, path))
        assert frames.damage == f"another file begins at byte {size}; its {size} bytes are not read"
        assert frames.source_num_frames == 48
        assert_shown_when_said(frames)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("live.webm", "libvpx-vp9", {"live": "1"}),
        ("a.avi", "mpeg4", {}),
    ],
)
def test_one_that_the_same_decoder_goes_on_with_is_read_too(
    pools: list[DecodePool], tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    one = media.write_video(tmp_path / name, codec=codec, container_options=options)
    path = joined(tmp_path, one, one)
    for pool in pools:
        assert frames_of(decode(pool, one)).damage is None
        frames = frames_of(decode(pool, path))
        at = one.stat().st_size
        assert frames.damage == f"another file begins at byte {at}, over which times run on"
        assert frames.source_num_frames == 96
        assert frames.duration_seconds == pytest.approx(12.0, abs=0.2)
        assert_shown_twice(frames)


def assert_shown_twice(frames: Frames) -> None:
    index = np.round(frames.pts_seconds * 8).astype(int) % 48
    said = np.array([media.red_of(int(i), 48) for i in index])
    assert np.abs(frames.data[:, 60, 70, 0].astype(int) - said).max() <= 12


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")])
def test_another_stream_behind_it_is_not_taken_for_the_first(
    pools: list[DecodePool], tmp_path: Path, name: str, codec: str
) -> None:
    """Its pictures are of another size: decoded by what the first says of itself they would be rubbish."""
    one = media.write_video(tmp_path / name, codec=codec)
    other = media.write_video(tmp_path / f"other-{name}", codec=codec, height=64, width=64, num_frames=16)
    for second in (other, media.write_video(tmp_path / "other.mp4")):
        path = joined(tmp_path, one, second)
        for pool in pools:
            frames = frames_of(decode(pool, path))
            assert frames.damage == (
                f"another file begins at byte {one.stat().st_size}; "
                f"its {second.stat().st_size} bytes are not read"
            )
            assert frames.source_num_frames == 48
            assert_shown_when_said(frames)


def test_what_sound_files_have_behind_their_pictures_is_no_other_file(
    pools: list[DecodePool], tmp_path: Path
) -> None:
    """Tags, padding, junk, an index; a movie in fragments that repeats its header."""
    plain = media.write_video(tmp_path / "a.mp4").read_bytes()
    inner = struct.pack(">I", 24) + b"ftypisom" + bytes(12)
    tails = {
        "free.mp4": struct.pack(">I4s", 8 + len(inner), b"free") + inner,
        "tag.mp4": b"ID3\x04" + bytes(100),
        "junk.mp4": bytes(range(256)) * 4,
        "zeros.mp4": bytes(5000),
        "short.mp4": b"\0\0\0",
    }
    for name, tail in tails.items():
        (tmp_path / name).write_bytes(plain + tail)
        for pool in pools:
            assert frames_of(decode(pool, tmp_path / name)).damage is None, name


def test_fragments_that_repeat_their_header_are_one_movie(pools: list[DecodePool], tmp_path: Path) -> None:
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    content = media.write_video(tmp_path / "a.mp4", container_options=options).read_bytes()
    header = content[: content.index(b"moof") - 4]
    third = [at - 4 for at in range(len(content)) if content.startswith(b"moof", at)][2]
    (tmp_path / "b.mp4").write_bytes(content[:third] + header + content[third:])
    frames = frames_of(decode(pools[0], tmp_path / "b.mp4"))
    assert frames.damage is None
    assert_shown_when_said(frames)
