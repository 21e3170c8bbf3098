"""Bytes of a remote video to a local file: resumed when they break off, given up when they stall.

Every store's client has timeouts of its own, or none. So the reading happens in a thread that can be left
behind: what waits for it is held up no longer than it has promised.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import fsspec
from fsspec.implementations.local import LocalFileOpener

from pipeline.errors import Reason, Stage, VideoError
from pipeline.records import VideoRef
from pipeline.stores.addresses import NO_VERSION, local_path_of
from pipeline.stores.inputs import content_version, open_store, plain_error, reason_of

__all__ = ["Downloads", "Source", "read_error"]

CHUNK_BYTES = 4 * 2**20
# A copy may take as long as decoding may, or as long as this rate needs, whichever is longer.
SLOWEST_BYTES_PER_SECOND = 2**20
MAX_STUCK = 8
RESUME_SECONDS = (0.2, 0.5, 1.0)
_POLL_SECONDS = 0.05
_BY_TIME = re.compile(r"\d+-(\d+|\w{3}, .*)(~|$)")  # size and time of change, not an etag
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class Source:
    """Bytes [``offset``, ``offset`` + ``num_bytes``) of a uri; ``num_bytes`` None: all, however many.

    ``version``: of a shard, in which other bytes may lie there once it has changed.
    """

    uri: str
    offset: int
    num_bytes: int | None
    is_whole: bool
    version: str | None = None

    @staticmethod
    def of(ref: VideoRef) -> Source:
        """Where a video's bytes are: in its shard, or a file of the size that was listed (0: unknown)."""
        uri = ref.archive or ref.uri
        if ref.offset is None:
            return Source(uri, 0, ref.size_bytes or None, is_whole=True)
        version = None if ref.version.partition("~")[0] == NO_VERSION else ref.version
        return Source(uri, ref.offset, ref.num_bytes, is_whole=False, version=version)


class Downloads:
    """Copies sources to files; thread-safe. At most ``MAX_STUCK`` threads are left behind at any moment."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._stuck: list[threading.Thread] = []
        self._guard = threading.Lock()
        self._is_stopped = False

    def stop(self) -> None:
        """Make what is under way fail soon; from any thread."""
        self._is_stopped = True

    def copy(self, source: Source, path: Path, limit_bytes: int) -> int:
        """Copy into ``path``; return the number of bytes. Raises VideoError (stage reading).

        Given up without a chunk for ``timeout_seconds``, or after that time and ``SLOWEST_BYTES_PER_SECOND``.
        """
        self._check_stuck()
        download = _Download(source, path, limit_bytes)
        thread = threading.Thread(target=download.run, name="copy", daemon=True)
        thread.start()
        began = time.monotonic()
        while not download.is_done.wait(_POLL_SECONDS):
            now = time.monotonic()
            num_bytes = max(download.num_bytes_expected, download.num_bytes + CHUNK_BYTES)
            seconds = max(self._timeout_seconds, num_bytes / SLOWEST_BYTES_PER_SECOND)
            if self._is_stopped or now > min(began + seconds, download.progressed_at + self._timeout_seconds):
                download.abandon()
                with self._guard:
                    self._stuck.append(thread)
                raise read_error(f"{source.uri}: copying stalled or took more than {seconds:.3g} s")
        if download.error is not None:
            raise _as_video_error(download.error, source) from download.error
        return download.num_bytes

    def _check_stuck(self) -> None:
        with self._guard:
            self._stuck = [thread for thread in self._stuck if thread.is_alive()]
            if len(self._stuck) >= MAX_STUCK:
                raise read_error(f"{len(self._stuck)} earlier copies still wait for a store that is silent")


class _Download:
    """One copy, in a thread of its own."""

    def __init__(self, source: Source, path: Path, limit_bytes: int) -> None:
        self._source = source
        self._path = path
        self._limit_bytes = limit_bytes
        self._abandoned = threading.Event()
        self.is_done = threading.Event()
        self.error: Exception | None = None
        self.num_bytes = 0
        self.num_bytes_expected = source.num_bytes or 0
        self._version: str | None = None  # what the first attempt found
        self._has_versions = True
        self.progressed_at = time.monotonic()

    def abandon(self) -> None:
        self._abandoned.set()

    def run(self) -> None:
        try:
            with self._path.open("wb") as target:
                self._run(target)
        except Exception as error:  # handed to the thread that waits
            self.error = error
        finally:
            self.is_done.set()

    def _run(self, target: IO[bytes]) -> None:
        local = local_path_of(self._source.uri)
        if local is None:
            filesystem, path = open_store(self._source.uri)
        else:
            filesystem, path = fsspec.filesystem("file"), local
        for seconds in (*RESUME_SECONDS, None):
            try:
                self._continue(filesystem, path, target)
                return
            except Exception as error:
                if seconds is None or not _may_pass(error, self._source) or self._abandoned.wait(seconds):
                    raise

    def _continue(self, filesystem: Any, path: str, target: IO[bytes]) -> None:
        """From where the last attempt broke off. Only the bytes that are wanted are asked for."""
        source = self._source
        with closing(filesystem.open(path, "rb", cache_type="none", block_size=CHUNK_BYTES)) as file:
            size = getattr(file, "size", None)
            expected = self._expected(size)
            self.num_bytes_expected = expected or 0
            self._check_version(filesystem, path, file)
            at = source.offset + self.num_bytes
            if at and not file.seekable():  # a server without ranges
                if source.offset:
                    raise read_error(f"{source.uri}: the server does not serve parts of a file")
                target.truncate(0)
                target.seek(0)
                at = self.num_bytes = 0
            if at:
                file.seek(at)
            for chunk in self._chunks(file, expected):
                target.write(chunk)
            if expected == self.num_bytes and size is None and file.read(1):
                _refuse_changed(source, self.num_bytes + 1)
            if self._version not in (None, self._version_at_end(filesystem, path, file)):
                self._refuse_other(filesystem, path, file)
        if expected is not None and self.num_bytes != expected:
            raise EOFError(f"ends after {self.num_bytes} of {expected} bytes")

    def _check_version(self, filesystem: Any, path: str, file: Any) -> None:
        """Another content than was listed, or than the last attempt began with, must not be mixed with it."""
        source = self._source
        if source.version is None and self.num_bytes_expected <= CHUNK_BYTES:
            return  # one request brings it whole
        if not self._has_versions:
            return
        now = _version_of_local(file) or _version_of_remote(filesystem, path, file, source)
        listed = source.version if self._version is None else None
        is_other = _is_other(listed, now) if listed is not None else self._version not in (None, now)
        if is_other:
            self._refuse_other(filesystem, path, file)
        self._version = now if self._has_versions else None

    def _refuse_other(self, filesystem: Any, path: str, file: Any) -> None:
        """Raises VideoError, unless the server tells another version at every request."""
        if _version_of_local(file) is None and self._differs_always(filesystem, path):
            self._has_versions = False
            return
        _refuse_other(self._source)

    def _differs_always(self, filesystem: Any, path: str) -> bool:
        """Asked twice in a row, and once more after a second: that is how fine web servers' times are."""
        first = filesystem.info(path)
        for seconds in (0.0, 1.1) if "Last-Modified" in first else (0.0,):
            self._abandoned.wait(seconds)
            again = filesystem.info(path)
            if again.get("size") != first.get("size"):
                return False
            if _version_of(again, self._source) != _version_of(first, self._source):
                return True
        return False

    def _version_at_end(self, filesystem: Any, path: str, file: Any) -> str | None:
        """Asked again after the last byte; not of S3, which was told with every request what is meant."""
        if self._version is None or "s3" in filesystem.protocol:
            return self._version
        return _version_of_local(file) or _version_of(filesystem.info(path), self._source)

    def _expected(self, size: int | None) -> int | None:
        """Bytes that there should be; None where neither the listing nor the store says."""
        source = self._source
        if source.is_whole:
            if size is not None and source.num_bytes is not None and size != source.num_bytes:
                _refuse_changed(source, size)
            return size if source.num_bytes is None else source.num_bytes
        assert source.num_bytes is not None, "a member of a shard has a length"
        if size is not None and source.offset + source.num_bytes > size:
            _refuse_changed(source, size)
        return source.num_bytes

    def _chunks(self, file: Any, expected: int | None) -> Iterator[bytes]:
        while not self._abandoned.is_set():
            wanted = CHUNK_BYTES if expected is None else min(CHUNK_BYTES, expected - self.num_bytes)
            chunk = file.read(wanted) if wanted else b""
            if not chunk or self._abandoned.is_set():
                return
            self.num_bytes += len(chunk)
            self.progressed_at = time.monotonic()
            if self.num_bytes > self._limit_bytes:
                rule = f"{self._source.uri} is larger than decoding.cache_bytes={self._limit_bytes}"
                raise VideoError(Stage.READING, Reason.TOO_LARGE, f"{rule}; raise that to read it")
            yield chunk


def read_error(message: str) -> VideoError:
    return VideoError(Stage.READING, Reason.READ_ERROR, message[:500])


def _refuse_changed(source: Source, size: int) -> NoReturn:
    raise read_error(
        f"{source.uri} changed while being read: {size} bytes or more now, "
        f"{source.offset + (source.num_bytes or 0)} when it was listed"
    )


def _refuse_other(source: Source) -> NoReturn:
    raise read_error(f"{source.uri} changed since it was listed: run again, to list what is there now")


def _version_of_local(file: Any) -> str | None:
    """As the listing has it; None where the file is not local."""
    if not isinstance(file, LocalFileOpener):
        return None
    status = os.fstat(file.fileno())
    return f"{status.st_size}-{status.st_mtime_ns}"


def _version_of_remote(filesystem: Any, path: str, file: Any, source: Source) -> str:
    """As the listing has it. What a store told on opening is not asked again; web servers' is not kept."""
    info = getattr(file, "details", None) or {}
    return _version_of(info if content_version(info, 0) != NO_VERSION else filesystem.info(path), source)


def _version_of(info: Mapping[str, Any], source: Source) -> str:
    """Several web servers behind one name have etags of their own, but mostly one time of change."""
    moment = {name: info[name] for name in ("Last-Modified",) if source.version is None and info.get(name)}
    return content_version(moment or info, int(info.get("size") or 0))


def _is_other(listed: str, now: str) -> bool:
    """Whether two versions differ that can be compared: some stores tell more of one file than in a list."""
    if now == listed or listed.startswith(f"{now}~"):
        return False
    return (_BY_TIME.match(listed) is None) == (_BY_TIME.match(now) is None)


def _may_pass(error: Exception, source: Source) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, VideoError | ValueError | TypeError | ImportError | NotImplementedError):
        return False
    known = _as_video_error(error, source)
    return known.reason is Reason.READ_ERROR and getattr(error, "errno", None) not in _DISK_FULL


def _as_video_error(error: Exception, source: Source) -> VideoError:
    if isinstance(error, VideoError):
        return error
    plain = plain_error(error)
    text = f"{source.uri}: {type(plain).__name__}: {plain}"[:500]
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        text = (
            f"no room for a copy of {source.uri} ({error.strerror}); set decoding.cache_dir to a larger disk"
        )
    return VideoError(Stage.READING, reason_of(error), text)
