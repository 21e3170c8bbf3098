"""Hostile files through the whole pipeline: each ends as allowed, nothing else is written, nobody called."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.chaos.checks import problems_at_the_end, problems_of_verify, read_output
from tests.chaos.corpus import Expected, colour_number, write_good
from tests.chaos.jobs import Driver, end_tree, settings
from tests.chaos.stub_engine import write_model
from tests.integration.hostile import write_hostile

pytestmark = pytest.mark.chaos

PASSED_OVER = {"zero.mp4", "pipe.mp4", "folder.mp4"}  # a listing of files does not list these
OWN = ("out",)
STUBS = ".answering"  # the stub engine's sign
RAYS = ("ray", "session_")  # how Ray's folders begin, beside those and in the folder for temporary files


class Listener:
    """A server that nobody should call; counts who does."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._socket.getsockname())
        self.calls = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.calls += 1
            connection.close()


@contextmanager
def listener() -> Iterator[Listener]:
    running = Listener()
    try:
        yield running
    finally:
        running.close()


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder but those of the run itself and of Ray: size and time of change."""
    found = {}
    for folder, folders, names in os.walk(root):
        relative = os.path.relpath(folder, root)
        if relative in (".", "tmp"):
            folders[:] = [name for name in folders if not (name in OWN or name.startswith(RAYS))]
        for name in set(names) - {STUBS}:
            status = os.lstat(os.path.join(folder, name))
            found[os.path.join(relative, name)] = (status.st_size, status.st_mtime_ns)
    return found


def test_each_ends_as_allowed_and_touches_nothing_else(
    scratch: Path, environment: dict[str, str], say: Callable[[str], None]
) -> None:
    folder = scratch / "world" / "videos"
    (scratch / "cwd").mkdir()
    with listener() as server:
        allowed = write_hostile(folder, address=server.address)
        job = settings(folder, scratch / "out", write_model(scratch / "model", 0.0))
        report = _run_watched(scratch, job, environment, say)
        assert server.calls == 0, "a playlist made the decoder call out"
        socket.create_connection(server.address.split(":")).close()  # type: ignore[arg-type]
        _wait_for_call(server)
    expected = Expected(hostile={name: ends for name, ends in allowed.items() if name not in PASSED_OVER})
    assert report["listed"] == len(expected.hostile)
    output = read_output(str(scratch / "out"))
    assert problems_at_the_end(output, expected, str(folder)) == []
    assert problems_of_verify(str(scratch / "out")) == []


def test_tar_members_with_names_that_lead_elsewhere(
    scratch: Path, environment: dict[str, str], say: Callable[[str], None]
) -> None:
    absolute = scratch / "absolute.mp4"
    names = ["../escape.mp4", str(absolute), "a/../../b.mp4", "new\nline.mp4", "\N{CLAPPER BOARD}.mp4"]
    (scratch / "cwd").mkdir()
    _write_tar(scratch / "world" / "evil.tar", names, scratch / "source.mp4")
    job = settings(scratch / "world" / "evil.tar", scratch / "out", write_model(scratch / "model", 0.0))
    report = _run_watched(scratch, job, environment, say)
    output = read_output(str(scratch / "out"))
    assert report["listed"] == len(output.rows) + len(output.final)
    members = {unquote(row["uri"].removeprefix("tar://").partition("::")[0]) for row in output.rows}
    assert members == set(names), "each good member is one row, under its own name"
    assert not output.final or {row["reason"] for row in output.final} <= {"invalid_input", "corrupt"}
    assert problems_of_verify(str(scratch / "out")) == []
    assert not absolute.exists()
    for base in ("", "cwd", "tmp", "out", "world", "home"):
        there = [name for name in names if (scratch / base / name).resolve().exists()]
        assert there == [], f"members were unpacked in {base or scratch}"


def _run_watched(
    scratch: Path, job: dict[str, object], environment: dict[str, str], say: Callable[[str], None]
) -> dict[str, int]:
    """The run's counts, once it is known that it wrote nowhere else."""
    before, began = tree(scratch), time.monotonic()
    with Driver(job, environment, cwd=scratch / "cwd") as driver:
        assert driver.wait(240) == 0, driver.tail()
        assert end_tree(driver.descendants(), 20.0) == []
        report = driver.last("report")
    assert report is not None
    assert report["closes"]
    say(f"{report['counts']['listed']} files in {time.monotonic() - began:.1f} s")
    assert tree(scratch) == before, "nothing is written elsewhere, and what was cached is removed"
    counts: dict[str, int] = report["counts"]
    return counts


def _wait_for_call(server: Listener) -> None:
    """Control: a call is seen."""
    deadline = time.monotonic() + 5
    while not server.calls and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.calls == 1


def _write_tar(path: Path, names: list[str], source: Path) -> None:
    """One good video under each name; a link and a device, which are no videos, in between."""
    write_good(source, colour_number(100))
    data = source.read_bytes()
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind in (("link.mp4", tarfile.SYMTYPE), ("device.mp4", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            tar.addfile(member)
