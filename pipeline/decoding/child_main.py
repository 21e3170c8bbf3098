"""The process that decodes: started by child_process.py, killed by it at will, never outliving it.

A request names a file, a decoder and which frames are wanted; ``span`` [start, end] in seconds, or null
for the whole video; ``measure`` asks only from when to when it has pictures. A file asked for by span or
measure stays open for the next such request, so that the hundredth window costs no more than the first: one
file at most.

Requests and replies go through two pipes of their own, so that whatever a decoder prints on stdout or
stderr cannot be mistaken for a reply. One message is a length (4 bytes, big endian), JSON of that length, and
for frames the raw bytes of uint8 (T, H, W, 3).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import signal
import struct
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.errors import Reason, Stage, VideoError

if TYPE_CHECKING:
    from pipeline.decoding.containers import Limits
    from pipeline.decoding.decoders import Video
    from pipeline.decoding.pyav_frames import RawFrames

__all__ = ["main", "read_message", "write_message"]

LENGTH = struct.Struct(">I")
MAX_LOG_BYTES = 2**20
_PR_SET_PDEATHSIG = 1


def read_message(file: BinaryIO) -> dict[str, Any] | None:
    """The next message's JSON, or None at the end of the pipe. Blocks."""
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    body = file.read(LENGTH.unpack(head)[0])
    message: dict[str, Any] = json.loads(body)
    return message


def write_message(file: BinaryIO, message: dict[str, Any], payload: Any = b"") -> None:
    """Write one message with the bytes that follow it, and flush."""
    body = json.dumps(message).encode()
    file.write(LENGTH.pack(len(body)) + body)
    if len(payload):
        file.write(payload)
    file.flush()


def main(arguments: list[str]) -> int:
    """Serve requests until the pipe ends. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.decoding.child_main")
    numbers = (
        "read-fd",
        "write-fd",
        "parent",
        "memory-bytes",
        "threads",
        "max-frame-pixels",
        "max-source-frames",
    )
    for name in numbers:
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args(arguments)
    _die_with(options.parent)
    import pipeline.decoding.decoders  # noqa: F401  # loaded before the limit: its libraries are not the video's fault
    from pipeline.decoding.containers import Limits

    limits = Limits(options.max_frame_pixels, options.max_source_frames, options.threads)
    server = _Server(limits)
    _limit_memory(options.memory_bytes)
    with os.fdopen(options.read_fd, "rb") as requests, os.fdopen(options.write_fd, "wb") as replies:
        write_message(replies, {"ready": True})
        while (request := read_message(requests)) is not None:
            server.serve(request, replies)
    return 0


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _limit_memory(memory_bytes: int) -> None:
    """At most ``memory_bytes`` of address space on top of the interpreter, and no flood of log lines."""
    limit = _address_space_bytes() + memory_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_LOG_BYTES, MAX_LOG_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return 2**30


class _Server:
    """Answers requests; remembers the one file that is asked for in parts."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: tuple[Any, Video] | None = None

    def serve(self, request: dict[str, Any], replies: BinaryIO) -> None:
        from pipeline.decoding.containers import NO_ROOM, DecoderRefusedError

        try:
            reply, pixels = self._answer(request)
        except VideoError as error:
            _refuse(replies, error, is_final=True)
        except DecoderRefusedError as error:
            _refuse(replies, VideoError(Stage.DECODING, error.reason, str(error)), is_final=False)
        except NO_ROOM:
            self._kept = None
            message = (
                "decoding needs more memory than decoding.memory_bytes allows, or a thread it cannot have"
            )
            _refuse(replies, VideoError(Stage.DECODING, Reason.OUT_OF_MEMORY, message), is_final=False)
        else:
            write_message(replies, reply, pixels)

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        from pipeline.decoding.sampling import Span

        video = self._open(request)
        if request["measure"]:
            shown = video.timeline
            return {"shown": [shown.start_seconds, shown.duration_seconds]}, b""
        raw = video.read(Span(*(request["span"] or ())))
        return _described(raw), raw.data.reshape(-1).data

    def _open(self, request: dict[str, Any]) -> Video:
        from pipeline.decoding.decoders import open_video
        from pipeline.decoding.sampling import FrameRequest

        identity = _identity(request)
        if self._kept is not None and self._kept[0] == identity and not request["measure"]:
            return self._kept[1]
        self._kept = None  # never two at once
        wanted = FrameRequest(**request["request"])
        video = open_video(request["path"], request["decoder"], wanted, self._limits)
        if request["measure"] or request["span"]:
            self._kept = (identity, video)
        return video


def _identity(request: dict[str, Any]) -> Any:
    """What must be the same for an open file to be the one that is asked for."""
    try:
        status = os.stat(request["path"])
    except (OSError, ValueError):
        return None
    times = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return (request["path"], request["decoder"], request["request"], times)


def _described(raw: RawFrames) -> dict[str, Any]:
    return {
        "shape": raw.data.shape,
        "pts_seconds": raw.pts_seconds.tolist(),
        "source_num_frames": raw.source_num_frames,
        "start_seconds": raw.start_seconds,
        "duration_seconds": raw.duration_seconds,
        "width": raw.header.width,
        "height": raw.header.height,
        "codec": raw.header.codec,
        "damage": raw.damage,
    }


def _refuse(replies: BinaryIO, error: VideoError, *, is_final: bool) -> None:
    reply = {"stage": error.stage.value, "reason": error.reason.value, "message": error.message}
    write_message(replies, {**reply, "is_final": is_final})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
