"""What a header says of its pictures: which track, which way up, what shape, which colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.config.sections import DecodingConfig, WindowsConfig
from pipeline.decoding.pool import DecodePool
from pipeline.decoding.sampling import FrameRequest, smart_resize
from pipeline.errors import Reason
from pipeline.records import Frames
from tests import media, odd_pictures
from tests.integration.test_decoding import decode, frames_of, reason_of
from tests.integration.test_decoding_windows import all_of, clip
from tests.odd_pictures import PQ_WHITE, QUARTERS, encode, patches, quarters

FEW = FrameRequest("uniform", 4, 2.0, 28 * 28, 40 * 28 * 28)
ALL = FrameRequest("uniform", 500, 2.0, 28 * 28, 40 * 28 * 28)
POOLS: dict[str, tuple[tuple[Any, ...], FrameRequest, WindowsConfig | None]] = {
    "decord": (("decord",), FEW, None),
    "pyav": (("pyav",), FEW, None),
    "either": (("decord", "pyav"), FEW, None),
    "all frames": (("decord", "pyav"), ALL, None),
    "windows": (("decord", "pyav"), FEW, WindowsConfig(length_seconds=1.0)),
}
SEI_TURN = "h264_metadata=display_orientation=insert:rotate=90"
QUICK_265 = {"x265-params": "log-level=none:crf=8"}


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, DecodePool]]:
    made = {
        name: DecodePool(DecodingConfig(decoders=decoders), request, windows)
        for name, (decoders, request, windows) in POOLS.items()
    }
    yield made
    for pool in made.values():
        pool.close()


def each_way(pools: dict[str, DecodePool], path: Path) -> Iterator[Frames]:
    """The file as every pool reads it that has PyAV to fall back on, window by window."""
    for name in ("pyav", "either", "all frames", "windows"):
        for part in all_of(pools[name], clip(path)):
            yield frames_of(part)


def corners(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, str]:
    """Which of the four colours is in each corner."""
    height, width = picture.shape[:2]
    found = {}
    for where in QUARTERS:
        y = height // 4 if "top" in where else 3 * height // 4
        x = width // 4 if "left" in where else 3 * width // 4
        is_bright = tuple(bool(value > 120) for value in picture[y, x])
        found[where] = dict(
            zip(((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)), QUARTERS.values(), strict=True)
        ).get(is_bright, "none")
    return found


@pytest.mark.parametrize(("name", "default"), [("a.mkv", 0), ("a.mkv", 1), ("a.mp4", 0), ("a.mp4", 1)])
def test_the_default_track_is_meant(
    pools: dict[str, DecodePool], tmp_path: Path, name: str, default: int
) -> None:
    """decord showed the other one, at the size of the right one."""
    path = odd_pictures.two_tracks(tmp_path / name, default)
    for frames in each_way(pools, path):
        assert (frames.width, frames.height) == ((64, 48), (128, 96))[default], frames.decoder
        assert (frames.source_num_frames, frames.duration_seconds) == (24, pytest.approx(3.0, abs=0.1))
        assert np.abs(frames.data.astype(int) - 235 * default).max() < 12


def test_a_cover_is_no_video(pools: dict[str, DecodePool], tmp_path: Path) -> None:
    film = odd_pictures.with_cover(tmp_path / "film.mp4", has_video=True, has_sound=True)
    for frames in each_way(pools, film):
        assert (frames.width, frames.height, frames.codec) == (128, 96, "h264")
        assert corners(frames.data[0]) == QUARTERS
    song = odd_pictures.with_cover(tmp_path / "song.mp4", has_video=False, has_sound=True)
    decoded = decode(pools["either"], song)
    assert reason_of(decoded) == Reason.NO_FRAMES
    assert decoded.error is not None
    assert "its only picture is a cover" in decoded.error.message
    assert "streams: audio)" in decoded.error.message


def test_what_the_first_picture_says_turns_all(pools: dict[str, DecodePool], tmp_path: Path) -> None:
    """Whether the first is sampled or not, and in every window."""
    level = encode(tmp_path / "level.mp4", quarters())
    turned = dict(zip(QUARTERS, ("green", "white", "red", "blue"), strict=True))
    for name in ("a.mp4", "a.mkv", "a.ts"):
        path = odd_pictures.filtered(level, tmp_path / name, SEI_TURN)
        for frames in each_way(pools, path):
            assert (frames.width, frames.height) == (96, 128), (name, frames.decoder)
            assert frames.data.shape[1] > frames.data.shape[2]
            assert all(corners(picture) == turned for picture in frames.data), name


def test_of_two_matrices_that_of_the_container_is_heeded(
    pools: dict[str, DecodePool], tmp_path: Path
) -> None:
    """The container's turns by half, the stream's by a quarter."""
    level = encode(tmp_path / "level.mp4", quarters())
    odd_pictures.filtered(level, tmp_path / "turned.mp4", SEI_TURN)
    path = media.with_matrix(tmp_path / "turned.mp4", (-1, 0, 0, -1))
    turned = dict(zip(QUARTERS, reversed(QUARTERS.values()), strict=True))
    for frames in each_way(pools, path):
        assert (frames.width, frames.height) == (128, 96)
        assert all(corners(picture) == turned for picture in frames.data)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_still_pictures_are_turned_as_their_exif_says(
    pools: dict[str, DecodePool], tmp_path: Path, suffix: str
) -> None:
    """PyAV has no name for EXIF among side data, which ended the decode child."""
    for orientation in range(1, 9):
        path = odd_pictures.still(tmp_path / f"{orientation}.{suffix}", orientation)
        with Image.open(path) as image:
            expected = corners(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
        frames = frames_of(decode(pools["either"], path))
        assert corners(frames.data[0]) == expected, orientation


@pytest.mark.parametrize(
    ("name", "ratio", "shown"),
    [
        ("a.mp4", Fraction(64, 45), (182, 96)),
        ("a.mkv", Fraction(64, 45), (182, 96)),
        ("a.ts", Fraction(64, 45), (182, 96)),
        ("a.h264", Fraction(8, 9), (114, 96)),
        ("b.mp4", Fraction(1, 2), (64, 96)),
        ("c.mp4", Fraction(1, 1), (128, 96)),
    ],
)
def test_pixels_need_not_be_square(
    pools: dict[str, DecodePool], tmp_path: Path, name: str, ratio: Fraction, shown: tuple[int, int]
) -> None:
    path = encode(tmp_path / name, quarters(), pixel_ratio=ratio)
    for frames in each_way(pools, path):
        assert (frames.width, frames.height) == shown
        assert frames.data.shape[1:3] == smart_resize(
            shown[1], shown[0], multiple=28, min_pixels=FEW.min_pixels, max_pixels=FEW.max_pixels
        )
        assert corners(frames.data[0]) == QUARTERS
        assert frames.damage is None


def test_the_shape_that_the_container_says_counts_and_turns_with_the_picture(
    pools: dict[str, DecodePool], tmp_path: Path
) -> None:
    wide = encode(tmp_path / "wide.mp4", quarters(), pixel_ratio=Fraction(4, 3))
    told = odd_pictures.with_pixel_ratio(wide, tmp_path / "told.mp4", 2, 1)
    odd_pictures.filtered(wide, tmp_path / "wide turned.mp4", SEI_TURN)
    turned = odd_pictures.with_pixel_ratio(tmp_path / "wide turned.mp4", tmp_path / "turned.mp4", 2, 1)
    for frames in each_way(pools, told):
        assert (frames.width, frames.height) == (256, 96)
    for frames in each_way(pools, turned):
        assert (frames.width, frames.height) == (96, 256)
        assert corners(frames.data[0])["top left"] == "green"


@pytest.mark.parametrize(("ratio", "is_said"), [((1000, 1), True), ((1, 1000), True), ((0, 1), False)])
def test_a_shape_that_cannot_be_is_not_believed(
    pools: dict[str, DecodePool], tmp_path: Path, ratio: tuple[int, int], is_said: bool
) -> None:
    wide = encode(tmp_path / "wide.mp4", quarters(), codec="mpeg4", options={}, pixel_ratio=Fraction(4, 3))
    path = odd_pictures.with_pixel_ratio(wide, tmp_path / "a.mp4", *ratio)
    for frames in each_way(pools, path):
        if is_said:
            assert (frames.width, frames.height) == (128, 96)
            assert f"{ratio[0]}:{ratio[1]}, which is not believed" in (frames.damage or "")
        else:  # what the stream says is left
            assert (frames.width, frames.height) == (171, 96)
            assert frames.damage is None


@pytest.mark.parametrize(("size", "ratio"), [((96, 128), None), ((64, 64), Fraction(4, 3))])
def test_a_change_of_shape_on_the_way_is_said(
    pools: dict[str, DecodePool], tmp_path: Path, size: tuple[int, int], ratio: Fraction | None
) -> None:
    small = encode(tmp_path / "small.h264", quarters(64, 64)).read_bytes()
    large = encode(tmp_path / "large.h264", quarters(*size), pixel_ratio=ratio).read_bytes()
    (tmp_path / "a.h264").write_bytes(small + large)
    for name in ("either", "all frames"):
        frames = frames_of(decode(pools[name], tmp_path / "a.h264"))
        assert (frames.width, frames.height) == (64, 64)
        assert "change shape on the way" in (frames.damage or "")
        assert all(corners(picture) == QUARTERS for picture in frames.data)


GREY = [(0.5, 0.5, 0.5), (0.75, 0.75, 0.75), (PQ_WHITE,) * 3, (0.0, 0.0, 0.0)]


PQ, HLG = {"transfer": 16, "primaries": 9, "matrix": 9}, {"transfer": 18, "primaries": 9, "matrix": 9}
TEN_BITS = {"form": "yuv420p10le"}
HDR: dict[str, dict[str, Any]] = {
    "a.mp4": {**PQ, **TEN_BITS},
    "a.mkv": {**PQ, **TEN_BITS, "codec": "libx265", "options": QUICK_265},
    "a.ts": {**PQ, **TEN_BITS, "codec": "libx265", "options": QUICK_265},
    "only the curve.mp4": {"transfer": 16, **TEN_BITS},
    "only the container tells.webm": {**PQ, "codec": "libvpx-vp9", "options": {"crf": "8", "b": "0"}},
    "444.mp4": {**PQ, "form": "yuv444p10le"},
    "prores.mov": {**PQ, "form": "yuv422p10le", "codec": "prores_ks", "options": {}},
    "8 bits, full.mp4": {**PQ, "is_full": True},
    "hlg.mp4": {**HLG, **TEN_BITS},
    "hlg.ts": {**HLG, **TEN_BITS, "codec": "libx265", "options": QUICK_265},
}


@pytest.mark.parametrize("name", HDR)
def test_hdr_becomes_what_an_ordinary_display_shows(
    pools: dict[str, DecodePool], tmp_path: Path, name: str
) -> None:
    """Paper white: 0.5807 of PQ, 0.75 of HLG. It came as grey 146 and 191."""
    made = HDR[name]
    if not media.has_encoder(made.get("codec", "libx264")):
        pytest.skip(f"this PyAV cannot write {made['codec']}")
    path = encode(tmp_path / name, patches(GREY), **made)
    half, three_quarters, pq_white, black = _patches(pools, path, len(GREY))
    is_pq = made["transfer"] == 16
    assert np.abs((pq_white if is_pq else three_quarters) - 230).max() <= 6
    assert black.max() <= 8
    assert np.abs(half - (182 if is_pq else 143)).max() <= 6  # 92 and 51 nits


def _patches(pools: dict[str, DecodePool], path: Path, num: int) -> list[np.ndarray[Any, Any]]:
    """The mean colour (3,) of the middle of each of the bars; the same from every pool."""
    found = []
    for frames in each_way(pools, path):
        assert frames.damage is None
        width = frames.data.shape[2] / num
        middles = [slice(int((at + 0.3) * width), int((at + 0.7) * width)) for at in range(num)]
        found.append([frames.data[0, 20:60, middle].mean(axis=(0, 1)) for middle in middles])
    assert np.abs(np.asarray(found) - found[0]).max() <= 1
    return [np.asarray(colour) for colour in found[0]]


def test_wide_gamut_keeps_its_colours(pools: dict[str, DecodePool], tmp_path: Path) -> None:
    """This light of BT.2020 is the red, green, grey and white of BT.709, by BT.2087."""
    light = np.array([(0.6274, 0.0691, 0.0164), (0.3293, 0.9195, 0.0880), (0.2, 0.2, 0.2), (1.0, 1.0, 1.0)])
    shown = [(255, 0, 0), (0, 255, 0), (130, 130, 130), (255, 255, 255)]
    stored = [(red, green, blue) for red, green, blue in light ** (1 / 2.4)]
    path = encode(tmp_path / "a.mp4", patches(stored), form="yuv444p10le", transfer=14, primaries=9, matrix=9)
    for colour, expected in zip(_patches(pools, path, len(stored)), shown, strict=True):
        assert np.abs(colour - expected).max() <= 20  # near black a code is little light


SDR = [(0.8, 0.15, 0.15), (0.15, 0.7, 0.15), (0.15, 0.15, 0.8), (0.9, 0.9, 0.9)]


@pytest.mark.parametrize("form", ["yuv420p", "yuv422p10le", "yuv444p"])
@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
def test_colours_are_read_by_the_matrix_and_range_that_are_said(
    pools: dict[str, DecodePool], tmp_path: Path, matrix: int, is_full: bool, form: str
) -> None:
    path = encode(tmp_path / "a.mp4", patches(SDR), form=form, matrix=matrix, is_full=is_full)
    for colour, expected in zip(_patches(pools, path, len(SDR)), SDR, strict=True):
        assert np.abs(colour - 255 * np.array(expected)).max() <= 5


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("matrix_coefficients=14", "ICtCp"),
        ("matrix_coefficients=8", "YCgCo"),
        ("matrix_coefficients=15", "profile 5"),
        ("transfer_characteristics=8", "linear light"),
        ("colour_primaries=9:transfer_characteristics=2", "transfer curve is not said"),
    ],
)
def test_colours_that_cannot_be_mapped_are_said(
    pools: dict[str, DecodePool], tmp_path: Path, tag: str, said: str
) -> None:
    """swscale refuses such matrices, which ended the decode child."""
    level = encode(tmp_path / "level.mp4", quarters())
    path = odd_pictures.filtered(level, tmp_path / "a.mp4", f"h264_metadata={tag}")
    for frames in each_way(pools, path):
        assert said in (frames.damage or "")


def test_an_animated_webp_is_refused_by_name(pools: dict[str, DecodePool], tmp_path: Path) -> None:
    images = [Image.fromarray(np.full((48, 64, 3), 80 * value, np.uint8)) for value in range(3)]
    images[0].save(tmp_path / "moving.webp", save_all=True, append_images=images[1:], duration=100)
    images[0].save(tmp_path / "still.webp")
    decoded = decode(pools["either"], tmp_path / "moving.webp")
    assert reason_of(decoded) == Reason.UNSUPPORTED_CODEC
    assert decoded.error is not None
    assert decoded.error.message.startswith("an animated WebP")
    assert frames_of(decode(pools["either"], tmp_path / "still.webp")).codec == "webp"


def _turned(folder: Path) -> Path:
    return odd_pictures.filtered(encode(folder / "level.mp4", quarters()), folder / "a.mp4", SEI_TURN)


MEDIA: dict[str, Callable[[Path], Path]] = {
    **{
        f"{codec} {name}": lambda folder, codec=codec, name=name: media.write_video(
            folder / name, codec=codec
        )
        for name, codec in {
            "a.mp4": "libx264",
            "b.mp4": "libx265",
            "c.mkv": "libsvtav1",
            "d.avi": "mpeg4",
            "e.ts": "libx264",
            "f.webm": "libvpx-vp9",
            "g.h264": "libx264",
            "h.flv": "libx264",
        }.items()
    },
    "open groups": lambda folder: media.write_video(folder / "a.mp4", codec="libx265", open_gops=True),
    "variable rate": lambda folder: media.write_video(
        folder / "a.mkv", pts=[40 * at + 900 * (at // 10) for at in range(48)]
    ),
    "cut short": lambda folder: media.truncated_video(folder / "a.mp4", share=0.6, index_first=True),
    "turned": lambda folder: media.rotated_video(folder / "a.mp4"),
    "turned in the stream": _turned,
    "wide pixels": lambda folder: encode(folder / "a.mp4", quarters(), pixel_ratio=Fraction(4, 3)),
    "two tracks": lambda folder: odd_pictures.two_tracks(folder / "a.mkv", 1),
    "a cover": lambda folder: odd_pictures.with_cover(folder / "a.mp4", has_video=True, has_sound=False),
    "hdr": lambda folder: encode(folder / "a.mp4", patches(GREY), form="yuv420p10le", transfer=16),
    "bt.709": lambda folder: encode(folder / "a.mp4", patches(SDR), matrix=1, primaries=1, transfer=1),
    "full range": lambda folder: encode(folder / "a.mp4", patches(SDR), matrix=6, is_full=True),
    "still": lambda folder: odd_pictures.still(folder / "a.jpg", 6),
}


PLAIN = {"libx264 a.mp4", "libx265 b.mp4", "mpeg4 d.avi", "bt.709", "full range"}


@pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed")
@pytest.mark.parametrize("kind", MEDIA)
def test_decord_says_what_pyav_says_or_nothing(
    pools: dict[str, DecodePool], tmp_path: Path, kind: str
) -> None:
    """Size, turn, track, colours and times."""
    path = MEDIA[kind](tmp_path)
    right, other = frames_of(decode(pools["pyav"], path)), decode(pools["decord"], path)
    if other.frames is None:
        assert kind not in PLAIN
        assert other.error is not None
        assert "decord" in other.error.message
        return
    told = other.frames
    assert (told.width, told.height, told.codec) == (right.width, right.height, right.codec)
    assert told.source_num_frames == right.source_num_frames
    assert (told.source_fps, told.duration_seconds) == pytest.approx(
        (right.source_fps, right.duration_seconds), rel=1e-3
    )
    assert np.allclose(told.pts_seconds, right.pts_seconds, atol=1e-3)
    assert np.abs(told.data.astype(int) - right.data).mean() < 3
