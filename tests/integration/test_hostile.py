"""Every hostile file ends as one row or one failure of the right kind, whoever decodes, in parts or whole."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import pytest

from pipeline.config.sections import DecodingConfig, WindowsConfig
from pipeline.decoding.pool import DecodePool
from pipeline.decoding.sampling import FrameRequest
from pipeline.errors import Reason
from pipeline.records import VideoRef
from tests import media
from tests.integration.hostile import ROW, write_hostile

REQUEST = FrameRequest("uniform", 6, 2.0, 28 * 28, 40 * 28 * 28)
SECONDS = 20.0


class Host:
    """A port of this machine that counts who comes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.num_visits = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = self._socket.accept()
                self.num_visits += 1
                visitor.close()

    def close(self) -> None:
        self._socket.close()


class World(NamedTuple):
    folder: Path
    allowed: dict[str, frozenset[str]]
    host: Host


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    host = Host()
    folder = tmp_path_factory.mktemp("hostile") / "videos"
    yield World(folder, write_hostile(folder, address=host.address), host)
    host.close()


def outcome(pool: DecodePool, path: Path) -> str:
    """ "row" or the reason; fails where a video is not brought to its end, or goes on after it."""
    pool.submit(VideoRef(path.name, str(path), "1", 0))
    numbers = []
    while True:
        decoded = pool.get(3 * SECONDS)
        assert decoded is not None, f"no answer for {path.name!r}"
        if decoded.error is not None:
            break
        assert decoded.frames is not None
        assert decoded.window is not None
        assert 1 <= len(decoded.frames.data) <= REQUEST.num_frames
        numbers.append(decoded.window.number)
        if decoded.is_last:
            break
    assert numbers == list(range(len(numbers)))
    assert (pool.pending, pool.bytes_in_flight) == (0, 0)
    return ROW if decoded.error is None else decoded.error.reason.value


def tree(folder: Path) -> set[tuple[str, int, int]]:
    found = set()
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            status = os.lstat(os.path.join(place, name))
            found.add((os.path.join(place, name), status.st_size, status.st_mtime_ns))
    return found


@pytest.mark.parametrize(
    ("decoders", "windows"),
    [
        (("decord", "pyav"), None),
        (("pyav",), None),
        (("decord", "pyav"), WindowsConfig(length_seconds=2.0, overlap_seconds=0.5, max_count=200)),
    ],
    ids=["whole", "whole-pyav", "windows"],
)
def test_each_is_one_row_or_one_failure(
    world: World, decoders: tuple[str, ...], windows: WindowsConfig | None
) -> None:
    before = tree(world.folder.parent)
    config = DecodingConfig(timeout_seconds=SECONDS, decoders=decoders)
    with DecodePool(config, REQUEST, windows) as pool:
        got = {name: outcome(pool, world.folder / name) for name in world.allowed}
    allowed = dict(world.allowed)
    if windows is not None:  # years of it are more windows than anyone wants
        allowed["years.mkv"] = frozenset({Reason.TOO_LARGE.value})
    assert {name: reason for name, reason in got.items() if reason not in allowed[name]} == {}
    assert ROW in got.values()
    assert tree(world.folder.parent) == before
    assert world.host.num_visits == 0


def test_decord_never_sees_what_names_other_places(world: World) -> None:
    """It opens files by itself, with a libav of 2018 that knows of no protection."""
    texts = [name for name, reasons in world.allowed.items() if reasons == {Reason.UNSUPPORTED_CODEC.value}]
    assert len(texts) > 7
    with DecodePool(DecodingConfig(timeout_seconds=SECONDS, decoders=("decord",)), REQUEST) as pool:
        assert {outcome(pool, world.folder / name) for name in texts} == {Reason.UNSUPPORTED_CODEC.value}
    assert world.host.num_visits == 0


def test_the_host_counts() -> None:
    """Positive control: who does go there is seen."""
    host = Host()
    with pytest.raises(av.error.FFmpegError):
        av.open(f"http://{host.address}/x.ts")
    host.close()
    assert host.num_visits > 0


@pytest.mark.parametrize("decoders", [("decord", "pyav"), ("pyav",)])
@pytest.mark.parametrize(
    ("limits", "rule"),
    [({"max_frame_pixels": 100 * 100}, "max_frame_pixels"), ({"max_source_frames": 47}, "max_source_frames")],
)
def test_claims_are_held_against_limits(
    tmp_path: Path, decoders: tuple[str, ...], limits: dict[str, int], rule: str
) -> None:
    """128x96 pixels and 48 frames; streams that do not say how many they have are counted."""
    with (
        DecodePool(DecodingConfig(decoders=decoders, **limits), REQUEST) as strict,
        DecodePool(
            DecodingConfig(decoders=decoders, max_frame_pixels=128 * 96, max_source_frames=48), REQUEST
        ) as fits,
    ):
        for name in ("a.mp4", "a.mkv", "a.ts", "a.h264"):
            path = media.write_video(tmp_path / name)
            strict.submit(VideoRef(name, str(path), "1", 0))
            refused = strict.get(SECONDS)
            assert refused is not None
            assert refused.error is not None
            assert refused.error.reason is Reason.TOO_LARGE
            assert f"decoding.{rule}=" in refused.error.message
            assert outcome(fits, path) == ROW
