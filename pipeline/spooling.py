"""A local file for every video: itself where it is local, else a copy that lives as long as it is needed.

The cache holds one file per decode process at most. Its folder is locked while its owner lives, so that
what a killed process left behind is found and removed by the next.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import fsspec

from pipeline.corpus_walk import local_path_of
from pipeline.errors import Reason, Stage, VideoError
from pipeline.records import VideoRef

__all__ = ["Spool"]

CHUNK_BYTES = 4 * 2**20
# A copy may take as long as decoding may, or as long as this rate needs, whichever is longer.
SLOWEST_BYTES_PER_SECOND = 2**20
_PREFIX = "flashvid-spool-"


class Spool:
    """A private folder for copies of remote videos, made when first needed; thread-safe.

    ``cache_dir`` None takes the system's folder for temporary files.
    """

    def __init__(self, cache_dir: str | None, timeout_seconds: float) -> None:
        self._parent = Path(cache_dir or tempfile.gettempdir())
        self._timeout_seconds = timeout_seconds
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._guard = threading.Lock()

    def close(self) -> None:
        """Remove the folder with whatever is in it."""
        with self._guard:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            if self._lock is not None:
                self._lock.close()
            self._folder = self._lock = None

    @contextmanager
    def local_file(self, ref: VideoRef) -> Iterator[str]:
        """The video as a local file, for the length of the ``with``.

        Raises VideoError (stage reading): NOT_FOUND, ACCESS_DENIED, EMPTY_FILE or READ_ERROR.
        """
        path = local_path_of(ref.uri)
        if path is not None and ref.offset is None:
            yield os.path.abspath(path)  # the child has a working folder of its own
            return
        copy = self._copy(ref)
        try:
            yield str(copy)
        finally:
            copy.unlink(missing_ok=True)

    def _copy(self, ref: VideoRef) -> Path:
        folder = self._open_folder()
        handle, name = tempfile.mkstemp(suffix=Path(ref.uri).suffix[:8], dir=folder)
        try:
            with os.fdopen(handle, "wb") as target:
                _check_room(folder, ref)
                self._transfer(ref, target)
        except BaseException as error:
            os.unlink(name)
            raise _as_video_error(error, ref) from error
        return Path(name)

    def _transfer(self, ref: VideoRef, target: IO[bytes]) -> None:
        seconds = max(self._timeout_seconds, (ref.num_bytes or ref.size_bytes) / SLOWEST_BYTES_PER_SECOND)
        deadline = time.monotonic() + seconds
        left = ref.num_bytes
        filesystem, path = fsspec.core.url_to_fs(ref.uri)
        with filesystem.open(path, "rb", cache_type="readahead", block_size=CHUNK_BYTES) as source:
            source.seek(ref.offset or 0)
            while chunk := source.read(CHUNK_BYTES if left is None else min(left, CHUNK_BYTES)):
                target.write(chunk)
                left = None if left is None else left - len(chunk)
                if time.monotonic() > deadline:
                    message = f"copying took more than {seconds:.0f} s"
                    raise VideoError(Stage.READING, Reason.READ_ERROR, message)

    def _open_folder(self) -> Path:
        with self._guard:
            if self._folder is None:
                self._parent.mkdir(parents=True, exist_ok=True)
                _remove_orphans(self._parent)
                self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
                self._lock = (self._folder / "lock").open("wb")
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            return self._folder


def _remove_orphans(parent: Path) -> None:
    """Remove the folders of processes that are gone: those whose lock nobody holds."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # held by its owner, being made at this moment, or another user's


def _check_room(folder: Path, ref: VideoRef) -> None:
    needed, free = ref.num_bytes or ref.size_bytes, shutil.disk_usage(folder).free
    if needed > free:
        message = f"{needed} bytes do not fit into the {free} free in {folder}; set decoding.cache_dir"
        raise VideoError(Stage.READING, Reason.READ_ERROR, message)


def _as_video_error(error: BaseException, ref: VideoRef) -> BaseException:
    if not isinstance(error, Exception) or isinstance(error, VideoError):
        return error
    reason = Reason.READ_ERROR
    if isinstance(error, FileNotFoundError):
        reason = Reason.NOT_FOUND
    elif isinstance(error, PermissionError):
        reason = Reason.ACCESS_DENIED
    return VideoError(Stage.READING, reason, f"{ref.uri}: {type(error).__name__}: {error}"[:500])
