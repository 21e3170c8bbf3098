"""Decode children that hang, die, leak or are orphaned: the pool answers for every video all the same."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from pipeline.config.sections import DecodingConfig
from pipeline.decoding.pool import Decoded, DecodePool
from pipeline.decoding.sampling import FrameRequest
from pipeline.errors import DecoderStartError, Reason
from tests import media
from tests.integration.test_decoding import REQUEST, decode, frames_of, reason_of, reference

HANGING_ORPHAN = """
import sys, time
from pipeline.config import DecodingConfig
from pipeline.decoding import DecodePool, FrameRequest
from pipeline.records import VideoRef
pool = DecodePool(DecodingConfig(), FrameRequest("uniform", 4, 1.0, 784, 7840))
while not pool.child_pids:
    time.sleep(0.01)
pool.submit(VideoRef("a", sys.argv[1], "1", 1))
print(pool.child_pids[0], flush=True)
time.sleep(600)
"""


SILENT_DISK = """
import builtins, os, time
real = builtins.open
def open(file, *options, **named):
    if str(file).endswith("hangs.mp4"):
        time.sleep(600)
    return real(file, *options, **named)
builtins.open = open
"""

# What foreign code does to a process, by the name of the file that it is given.
BAD_DECODER = """
import ctypes, os
class DECORDError(Exception): ...
class DECORDLimitReachedError(Exception): ...
class VideoReader:
    def __init__(self, path, **options):
        name = os.path.basename(path)
        if name == "loops.mp4":
            ctypes.PyDLL(None).sleep(600)  # and keeps Python's lock
        if name == "segfaults.mp4":
            ctypes.string_at(8)
        if name == "exits.mp4":
            os._exit(0)
        if name == "eats.mp4":
            held = []
            while True:
                held.append(bytearray(2**24))
        if name == "takes.mp4":
            take = ctypes.CDLL(None).malloc
            take.restype, take.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
            while (address := take(2**24)):
                ctypes.memset(address, 1, 2**24)
            ctypes.memset(address or 0, 1, 1)
        if name == "throws.mp4":
            raise OSError("nobody catches this")
        if name == "prints.mp4":
            while True:
                os.write(1, b"x" * 65536)
"""
BAD = {
    "loops.mp4": Reason.DECODE_TIMEOUT,
    "segfaults.mp4": Reason.DECODE_CRASHED,
    "exits.mp4": Reason.DECODE_CRASHED,
    "eats.mp4": Reason.OUT_OF_MEMORY,
    "takes.mp4": Reason.DECODE_CRASHED,
    "throws.mp4": Reason.DECODE_CRASHED,
    "prints.mp4": Reason.DECODE_CRASHED,
}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return media.write_video(tmp_path / "a.mp4")


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose reader waits for ever, as on a network disk that is gone."""
    install(monkeypatch, tmp_path, "sitecustomize.py", SILENT_DISK)
    return media.write_video(tmp_path / "hangs.mp4")


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> None:
    """Have every child of this process import a module of ours."""
    (folder / "modules").mkdir(exist_ok=True)
    (folder / "modules" / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder / "modules"))


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def child_of(pool: DecodePool) -> int:
    wait_for(lambda: pool.child_pids)
    return pool.child_pids[0]


def take(pool: DecodePool) -> Decoded:
    decoded = pool.get(60.0)
    assert decoded is not None, "no answer in time"
    return decoded


def test_a_hang_ends_at_the_deadline_and_the_next_video_is_read(hanging: Path, video: Path) -> None:
    with DecodePool(DecodingConfig(timeout_seconds=4.0), REQUEST) as pool:
        began = time.monotonic()
        hung = decode(pool, hanging)
        assert reason_of(hung) == Reason.DECODE_TIMEOUT
        assert time.monotonic() - began > 3.9
        assert "decord" in str(hung.error)
        assert "pyav" in str(hung.error)
        frames_of(decode(pool, video))


def test_whatever_a_decoder_does_is_one_failure_and_the_next_video_is_read(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, "decord.py", BAD_DECODER)
    for name in BAD:
        shutil.copy(video, tmp_path / name)
    alone = DecodingConfig(decoders=("decord",), memory_bytes=2**28)
    with (
        DecodePool(alone, REQUEST) as bad,
        DecodePool(alone.model_copy(update={"timeout_seconds": 3.0}), REQUEST) as impatient,
        DecodePool(DecodingConfig(decoders=("decord", "pyav"), memory_bytes=2**28), REQUEST) as both,
    ):
        got = {name: reason_of(decode(bad, tmp_path / name)) for name in BAD if name != "loops.mp4"}
        got["loops.mp4"] = reason_of(decode(impatient, tmp_path / "loops.mp4"))
        assert got == BAD
        for name in ("segfaults.mp4", "eats.mp4"):
            assert frames_of(decode(both, tmp_path / name)).decoder == "pyav"


def test_a_stopped_child_is_killed_at_the_deadline(video: Path) -> None:
    with DecodePool(DecodingConfig(timeout_seconds=1.0, decoders=("pyav",)), REQUEST) as pool:
        frames_of(decode(pool, video))
        pid = child_of(pool)
        os.kill(pid, signal.SIGSTOP)
        assert reason_of(decode(pool, video)) == Reason.DECODE_TIMEOUT
        assert not is_alive(pid)


def test_a_child_killed_in_the_middle_is_replaced(hanging: Path, video: Path) -> None:
    with DecodePool(DecodingConfig(decoders=("pyav",)), REQUEST) as pool:
        frames_of(decode(pool, video))
        pid = child_of(pool)
        pool.submit(reference(hanging))
        os.kill(pid, signal.SIGKILL)
        crashed = take(pool)
        assert reason_of(crashed) == Reason.DECODE_CRASHED
        assert "signal 9" in str(crashed.error)
        frames_of(decode(pool, video))
        assert child_of(pool) != pid


def test_where_the_first_decoder_takes_the_child_down_the_second_gets_its_turn(video: Path) -> None:
    with DecodePool(DecodingConfig(), REQUEST) as pool:
        assert frames_of(decode(pool, video)).decoder == "pyav"
        pid = child_of(pool)
        os.kill(pid, signal.SIGSTOP)
        pool.submit(reference(video))
        os.kill(pid, signal.SIGKILL)
        assert frames_of(take(pool)).decoder == "decord"


def test_memory_is_limited(tmp_path: Path, video: Path) -> None:
    """300 small frames blown up to 530 kpx are 480 MB; the child may have 256 MiB."""
    path = media.write_video(tmp_path / "small.mp4", num_frames=300, height=32, width=32)
    greedy = FrameRequest("uniform", 300, 2.0, 680 * 28 * 28, 700 * 28 * 28)
    with DecodePool(DecodingConfig(memory_bytes=2**28), greedy) as pool:
        assert reason_of(decode(pool, path)) in {Reason.OUT_OF_MEMORY, Reason.DECODE_CRASHED}
    with DecodePool(DecodingConfig(memory_bytes=2**28), REQUEST) as pool:
        frames_of(decode(pool, video))


def test_a_thread_that_cannot_be_had_is_not_the_files_fault(video: Path) -> None:
    """A sound file is not corrupt because there is no room for its decoder's threads: it is tried again."""
    code = (
        "import io, sys; import pipeline.decoding.decoders\n"
        "from pipeline.decoding.containers import Limits\n"
        "from pipeline.decoding.child_main import _limit_memory, _Server, read_message\n"
        "wanted = {'sampling': 'uniform', 'num_frames': 4, 'fps': 2, 'min_pixels': 784, 'max_pixels': 7840}\n"
        "ask = {'path': sys.argv[1], 'decoder': 'pyav', 'span': None, 'measure': False, 'request': wanted}\n"
        "_limit_memory(2**23)\n"
        "replies = io.BytesIO()\n"
        "_Server(Limits(2**26, 10**7, 4)).serve(ask, replies)\n"
        "replies.seek(0)\n"
        "print(read_message(replies)['reason'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(video)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [Reason.OUT_OF_MEMORY.value]


def test_children_die_with_a_parent_that_is_killed(hanging: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", HANGING_ORPHAN, str(hanging)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not is_alive(pid))


def test_what_decoders_print_does_not_reach_the_answers(tmp_path: Path) -> None:
    """decord complains on stderr about every read beyond the end of this file."""
    path = media.write_video(tmp_path / "cut.mkv", num_frames=200)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with DecodePool(DecodingConfig(decoders=("decord",)), REQUEST) as pool:
        assert len(frames_of(decode(pool, path)).data) == 12


def test_children_are_recycled(video: Path) -> None:
    with DecodePool(DecodingConfig(videos_per_process=2), REQUEST) as pool:
        pids = []
        for _ in range(4):
            frames_of(decode(pool, video))
            pids.append(child_of(pool))
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert not any(is_alive(pid) for pid in pids)


def test_decoded_bytes_are_bounded_and_every_video_comes_back(video: Path) -> None:
    limit = 2 * REQUEST.max_bytes
    with DecodePool(DecodingConfig(processes=2, bytes_in_flight=limit), REQUEST) as pool:
        assert pool.has_room
        for _ in range(6):
            pool.submit(reference(video))
        assert not pool.has_room
        for left in range(6, 0, -1):
            assert pool.pending == left
            assert pool.bytes_in_flight <= limit
            frames_of(take(pool))
        assert (pool.pending, pool.bytes_in_flight) == (0, 0)
        assert pool.has_room
        assert pool.get(60.0) is None


def test_one_video_always_fits(video: Path) -> None:
    with DecodePool(DecodingConfig(bytes_in_flight=1), REQUEST) as pool:
        pool.submit(reference(video))
        pool.submit(reference(video))
        assert not pool.has_room
        frames_of(take(pool))
        frames_of(take(pool))


def test_closing_does_not_wait_for_a_hang(hanging: Path) -> None:
    pool = DecodePool(DecodingConfig(), REQUEST)
    pid = child_of(pool)
    pool.submit(reference(hanging))
    began = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - began < 8
    assert not is_alive(pid)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(reference(hanging))


def test_children_start_from_any_folder(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus folder may hold a numpy.py; relative addresses still mean the caller's folder."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported the wrong module')")
    monkeypatch.chdir(tmp_path)
    with DecodePool(DecodingConfig(), REQUEST) as pool:
        frames_of(decode(pool, video.name))


def test_a_broken_installation_is_no_videos_fault(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with DecodePool(DecodingConfig(), REQUEST) as pool:
        pool.submit(reference(video))
        with pytest.raises(DecoderStartError, match="status 1"):
            pool.get(60.0)


def test_a_machine_without_processes_to_spare_is_told(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    """Else the pool's thread would die alone, and the worker wait for ever."""

    def none_left(*_arguments: object, **_options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", none_left)
    with DecodePool(DecodingConfig(), REQUEST) as pool:
        pool.submit(reference(video))
        with pytest.raises(DecoderStartError, match="temporarily unavailable"):
            pool.get(20.0)


def test_copies_left_by_a_killed_process_are_removed(tmp_path: Path, video: Path) -> None:
    fsspec.filesystem("memory").pipe("/faults/a.mp4", video.read_bytes())
    cache = tmp_path / "cache"
    for name in ("dead", "live"):
        (cache / f"flashvid-spool-{name}").mkdir(parents=True)
        (cache / f"flashvid-spool-{name}" / "lock").touch()
        (cache / f"flashvid-spool-{name}" / "old.mp4").write_bytes(b"x")
    with (cache / "flashvid-spool-live" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with DecodePool(DecodingConfig(cache_dir=str(cache)), REQUEST) as pool:
            frames_of(decode(pool, "memory://faults/a.mp4"))
    assert [folder.name for folder in cache.iterdir()] == ["flashvid-spool-live"]
