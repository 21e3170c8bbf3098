"""The parent's end of one decode child: start it, ask it, and end it when its time is up."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import ROOT
from pipeline.decoding.child_main import LENGTH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

__all__ = ["ChildDiedError", "ChildProcess", "ChildTooLateError"]

START_SECONDS = 60.0
_LOG_TAIL_BYTES = 300
_PIPE_BYTES = 2**20
_F_SETPIPE_SZ = 1031


class ChildDiedError(Exception):
    """The child ended before it had answered; the text says how."""


class ChildTooLateError(Exception):
    """The deadline passed before the answer was complete. The child may still be busy: kill it."""


class ChildProcess:
    """One ``python -m pipeline.decoding.child_main``. Not thread-safe but for ``kill``.

    Plain Popen and pipes rather than multiprocessing: that would import the caller's ``__main__`` again,
    which inside a Ray worker starts another worker. ``limits`` are the child's options: memory_bytes,
    threads, max_frame_pixels and max_source_frames.
    """

    def __init__(self, **limits: int) -> None:
        self.num_served = 0
        self._log = tempfile.TemporaryFile(prefix="flashvid-decode-")  # noqa: SIM115  # lives as long as the child
        child_read, self._requests = os.pipe()
        self._replies, child_write = os.pipe()
        _widen(self._replies)
        numbers = {"read-fd": child_read, "write-fd": child_write, "parent": os.getpid()}
        numbers |= {name.replace("_", "-"): value for name, value in limits.items()}
        flags = [f"--{name}={value}" for name, value in numbers.items()]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.decoding.child_main", *flags],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(child_read, child_write),
                cwd=ROOT,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
                start_new_session=True,  # Ctrl-C is for the parent to handle
            )
        except BaseException:
            self._close_pipes()
            raise
        finally:
            os.close(child_read)
            os.close(child_write)
        self._is_ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Block until the child has loaded its libraries. Raises ChildDiedError or ChildTooLateError."""
        if not self._is_ready:
            self._read_reply(time.monotonic() + START_SECONDS)
            self._is_ready = True

    def ask(self, request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], Pixels | None]:
        """Send a request; return the reply and, where it has a ``shape``, uint8 pixels of that shape.

        ``deadline`` is on ``time.monotonic``. Raises ChildDiedError or ChildTooLateError.
        """
        self.num_served += 1
        self._log.truncate(0)
        body = json.dumps(request).encode()
        try:
            os.write(self._requests, LENGTH.pack(len(body)) + body)
        except BrokenPipeError:
            raise ChildDiedError(self._epitaph()) from None
        reply = self._read_reply(deadline)
        if "shape" not in reply:
            return reply, None
        pixels = np.empty(tuple(reply["shape"]), dtype=np.uint8)
        self._read_into(pixels.reshape(-1).data, deadline)
        return reply, pixels

    def kill(self) -> None:
        """SIGKILL, from any thread; works on hung and stopped processes alike."""
        self._process.kill()

    def close(self) -> None:
        """Kill, reap and free. A child stuck in the kernel is left to init rather than waited for."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5.0)
        self._close_pipes()

    def _close_pipes(self) -> None:
        os.close(self._requests)
        os.close(self._replies)
        self._log.close()

    def _read_reply(self, deadline: float) -> dict[str, Any]:
        head = bytearray(LENGTH.size)
        self._read_into(memoryview(head), deadline)
        body = bytearray(LENGTH.unpack(head)[0])
        self._read_into(memoryview(body), deadline)
        reply: dict[str, Any] = json.loads(body)
        return reply

    def _read_into(self, buffer: memoryview, deadline: float) -> None:
        at = 0
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        while at < len(buffer):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise ChildTooLateError
            count = os.readv(self._replies, [buffer[at:]])
            if count == 0:
                raise ChildDiedError(self._epitaph())
            at += count

    def _epitaph(self) -> str:
        try:
            status = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "the decode process closed its pipe"
        how = f"signal {-status}" if status < 0 else f"status {status}"
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL_BYTES))
        said = " ".join(self._log.read().decode(errors="replace").replace("\0", "").split())
        return f"the decode process ended with {how}" + (f", saying: {said}" if said else "")


def _widen(pipe: int) -> None:
    """A larger pipe saves wake-ups; refused beyond the user's quota, which is no loss."""
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            return
