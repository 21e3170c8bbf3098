"""Copies of remote videos: whole or not at all, only what is wanted, on bounded disk, in bounded time."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from pipeline.config.sections import DecodingConfig
from pipeline.decoding.pool import DecodePool
from pipeline.errors import Reason, Stage, VideoError
from pipeline.records import VideoRef
from pipeline.stores import downloads
from pipeline.stores.spooling import Spool
from tests import media
from tests.integration.test_decoding import REQUEST, assert_shown_when_said, frames_of
from tests.integration.test_decoding_faults import wait_for
from tests.web_server import served

CONTENT = os.urandom(300_000)
LIMIT = 2**30


class Faulty(BaseHTTPRequestHandler):
    """Serves CONTENT under any name, badly; the first part of the path says how."""

    protocol_version = "HTTP/1.1"
    cuts: ClassVar[dict[str, int]] = {}
    sent_bytes = 0
    requests: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        Faulty.requests.append(f"{self.path} {self.headers.get('Range')}")
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        how = self.path.split("/")[1]
        if how.isdigit():
            self.send_response(int(how))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        body = CONTENT
        ranged = wanted is not None and how != "plain"
        if ranged:
            first, last = wanted.removeprefix("bytes=").split("-")
            body = CONTENT[int(first) : int(last) + 1]
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(body)))
        if ranged:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(CONTENT)}")
        if how != "plain":
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if with_body:
            self._send(how, body)

    def _send(self, how: str, body: bytes) -> None:
        if how == "stall":
            self.wfile.write(body[:1])
            self.wfile.flush()
            time.sleep(20)
        if how in ("cut", "plain") and Faulty.cuts.get(self.path, 0) > 0:
            Faulty.cuts[self.path] -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        Faulty.sent_bytes += len(body)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "RESUME_SECONDS", (0.01, 0.01, 0.01))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with served(Faulty) as address:
        yield address


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(str(tmp_path / "cache"), 10.0, LIMIT)
    yield made
    made.close()


def reference(uri: str, size: int = 0) -> VideoRef:
    return VideoRef("v", uri, "1", size)


def member(archive: str, offset: int, num_bytes: int, name: str = "a.mp4") -> VideoRef:
    return VideoRef(
        "m", f"tar://{name}::{archive}", "0-0", num_bytes, archive=archive, offset=offset, num_bytes=num_bytes
    )


def copied(spool: Spool, ref: VideoRef) -> bytes:
    with spool.local_file(ref) as path:
        return Path(path).read_bytes()


def failure(spool: Spool, ref: VideoRef) -> VideoError:
    with pytest.raises(VideoError) as caught, spool.local_file(ref):
        pass
    assert caught.value.stage is Stage.READING
    assert spool.used_bytes == 0
    return caught.value


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, Reason.NOT_FOUND),
        (410, Reason.NOT_FOUND),
        (401, Reason.ACCESS_DENIED),
        (403, Reason.ACCESS_DENIED),
        (500, Reason.READ_ERROR),
    ],
)
def test_every_status_has_its_reason(spool: Spool, server: str, status: int, reason: Reason) -> None:
    assert failure(spool, reference(f"{server}/{status}/a.mp4")).reason is reason


def test_nobody_listening_is_a_read_error(spool: Spool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert failure(spool, reference(f"http://127.0.0.1:{port}/a.mp4")).reason is Reason.READ_ERROR


def test_an_unknown_protocol_is_a_read_error(spool: Spool) -> None:
    assert failure(spool, reference("carrier-pigeon://coop/a.mp4")).reason is Reason.READ_ERROR


@pytest.mark.parametrize("how", ["cut", "plain"])
def test_a_transfer_that_breaks_off_is_taken_up_again(spool: Spool, server: str, how: str) -> None:
    """``plain`` does not serve ranges: what was read is read again."""
    Faulty.cuts[f"/{how}/resumed.mp4"] = 2
    assert copied(spool, reference(f"{server}/{how}/resumed.mp4", len(CONTENT))) == CONTENT


def test_a_body_that_is_always_cut_is_a_read_error_never_half_a_video(spool: Spool, server: str) -> None:
    Faulty.cuts["/plain/never.mp4"] = 1000
    assert failure(spool, reference(f"{server}/plain/never.mp4")).reason is Reason.READ_ERROR
    assert Faulty.cuts["/plain/never.mp4"] == 1000 - 4


@pytest.mark.parametrize("how", ["good", "plain"])
@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_another_size_than_was_listed_is_said(spool: Spool, server: str, how: str, size: int) -> None:
    error = failure(spool, reference(f"{server}/{how}/changed.mp4", size))
    assert error.reason is Reason.READ_ERROR
    assert "changed while being read" in error.message


def test_a_stalled_transfer_is_given_up_in_time(tmp_path: Path, server: str) -> None:
    """One byte, then silence: the store's own timeout would be minutes."""
    spool = Spool(str(tmp_path / "cache"), 0.5, LIMIT)
    began = time.monotonic()
    error = failure(spool, reference(f"{server}/stall/a.mp4", len(CONTENT)))
    assert time.monotonic() - began < 10
    assert error.reason is Reason.READ_ERROR
    assert "stalled" in error.message
    spool.close()
    assert list((tmp_path / "cache").iterdir()) == []


def test_closing_does_not_wait_for_a_stalled_transfer(tmp_path: Path, server: str) -> None:
    pool = DecodePool(DecodingConfig(cache_dir=str(tmp_path / "cache")), REQUEST)
    pool.submit(reference(f"{server}/stall/b.mp4", len(CONTENT)))
    wait_for(lambda: "/stall/b.mp4" in "".join(Faulty.requests))
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 8


def test_members_are_read_by_range_and_nothing_more(spool: Spool, server: str) -> None:
    before = Faulty.sent_bytes
    wanted = [(0, 10_000), (123_457, 50_001), (len(CONTENT) - 777, 777)]
    for offset, num_bytes in wanted:
        got = copied(spool, member(f"{server}/good/shard.tar", offset, num_bytes))
        assert got == CONTENT[offset : offset + num_bytes]
    assert Faulty.sent_bytes - before <= 1.1 * sum(num_bytes for _, num_bytes in wanted)


def test_a_member_beyond_the_end_of_its_shard_is_said(spool: Spool, server: str) -> None:
    error = failure(spool, member(f"{server}/good/shard.tar", len(CONTENT) - 10, 11))
    assert error.reason is Reason.READ_ERROR


def test_a_server_without_ranges_serves_no_members(spool: Spool, server: str) -> None:
    assert failure(spool, member(f"{server}/plain/shard.tar", 10, 10)).reason is Reason.READ_ERROR


def test_names_of_members_do_not_reach_the_disk(spool: Spool, tmp_path: Path) -> None:
    shard = tmp_path / "a::b %20.tar"
    shard.write_bytes(CONTENT)
    for name in (
        "../../evil.mp4",
        "/etc/passwd",
        "x.mp4/../y",
        "a.p/../../b",
        "no\nend.m\np4",
        "x" * 5000 + ".mp4",
    ):
        with spool.local_file(member(str(shard), 5, 50, name)) as path:
            assert Path(path).parent.parent == tmp_path / "cache"
            assert len(Path(path).name) < 30
            assert Path(path).read_bytes() == CONTENT[5:55]
            assert sorted(item.name for item in tmp_path.iterdir()) == [shard.name, "cache"]


def test_a_video_larger_than_the_cache_is_too_large(tmp_path: Path, server: str) -> None:
    spool = Spool(str(tmp_path), 10.0, len(CONTENT) - 1)
    listed = failure(spool, reference(f"{server}/good/a.mp4", len(CONTENT)))
    unlisted = failure(spool, reference(f"{server}/plain/a.mp4"))
    for error in (listed, unlisted):
        assert error.reason is Reason.TOO_LARGE
        assert "decoding.cache_bytes" in error.message


def test_copies_together_stay_within_the_cache(tmp_path: Path) -> None:
    """Eight threads, room for two and a half."""
    fsspec.filesystem("memory").pipe("/spooling/a.mp4", CONTENT)
    spool = Spool(str(tmp_path), 10.0, len(CONTENT) * 5 // 2)
    most = 0

    def use(size: int) -> None:
        nonlocal most
        with spool.local_file(reference("memory://spooling/a.mp4", size)) as path:
            on_disk = sum(file.stat().st_size for file in Path(path).parent.glob("*.mp4"))
            most = max(most, on_disk, spool.used_bytes)
            time.sleep(0.02)

    threads = [threading.Thread(target=use, args=(size,)) for size in [len(CONTENT), 0] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert len(CONTENT) <= most <= len(CONTENT) * 5 // 2
    assert spool.used_bytes == 0
    spool.close()


def test_a_full_disk_says_what_to_do(spool: Spool) -> None:
    fsspec.filesystem("memory").pipe("/spooling/a.mp4", CONTENT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        error = failure(spool, reference("memory://spooling/a.mp4", len(CONTENT)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.reason is Reason.READ_ERROR
    assert "decoding.cache_dir" in error.message


def test_a_disk_without_room_is_not_begun_on(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), 10.0, 2**62)
    error = failure(spool, reference("memory://spooling/a.mp4", 2**61))
    assert error.reason is Reason.READ_ERROR
    assert "decoding.cache_dir" in error.message


def test_a_cache_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spool = Spool(str(tmp_path / "file" / "cache"), 10.0, LIMIT)
    error = failure(spool, reference("memory://spooling/a.mp4", 1))
    assert error.reason is Reason.READ_ERROR
    assert "decoding.cache_dir" in error.message


class _Counting:
    """A door to a server that counts the bytes that come out of it."""

    def __init__(self, port: int) -> None:
        self._inner = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.num_bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                outer, _ = self._socket.accept()
            except OSError:
                return
            inner = socket.create_connection(("127.0.0.1", self._inner))
            for one, other, is_answer in ((outer, inner, False), (inner, outer, True)):
                threading.Thread(target=self._pass_on, args=(one, other, is_answer), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, is_answer: bool) -> None:
        try:
            while data := one.recv(65536):
                self.num_bytes += len(data) if is_answer else 0
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Callable[[str, bytes], None], _Counting]]:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    door = _Counting(server.get_host_and_port()[1])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{door.port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield lambda key, body: client.put_object(Bucket="shards", Key=key, Body=body), door
    door.close()
    server.stop()


def test_members_of_a_shard_on_s3(tmp_path: Path, s3: tuple[Callable[[str, bytes], None], _Counting]) -> None:
    put, door = s3
    videos = [
        media.write_video(tmp_path / f"{n}.mkv", codec="mpeg4", num_frames=48).read_bytes() for n in (1, 2)
    ]
    filler = os.urandom(3_000_000)
    put("a.tar", filler + videos[0] + filler + videos[1] + filler)
    offsets = [len(filler), 2 * len(filler) + len(videos[0])]
    cache = tmp_path / "cache"
    before = door.num_bytes
    with DecodePool(DecodingConfig(cache_dir=str(cache)), REQUEST) as pool:
        for video, offset in zip(videos, offsets, strict=True):
            pool.submit(member("s3://shards/a.tar", offset, len(video)))
            decoded = pool.get(60.0)
            assert decoded is not None
            assert_shown_when_said(frames_of(decoded))
        fetched = door.num_bytes - before
        pool.submit(member("s3://shards/b.tar", 0, 100))
        absent = pool.get(60.0)
    assert absent is not None
    assert absent.error is not None
    assert absent.error.reason is Reason.NOT_FOUND
    headers = 4096
    assert fetched <= 1.1 * sum(map(len, videos)) + headers
