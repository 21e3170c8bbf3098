"""A local file for every video: itself where it is local, else a copy that lives as long as it is needed.

All copies together stay within a number of bytes. The cache folder is locked while its owner lives, so that
what a killed process left behind is found and removed by the next.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import Reason, Stage, VideoError
from pipeline.records import VideoRef
from pipeline.stores.addresses import local_path_of
from pipeline.stores.downloads import Downloads, Source, read_error

__all__ = ["Spool"]

_PREFIX = "flashvid-spool-"
_PLAIN_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}$")


class Spool:
    """A private folder for copies of remote videos, made when first needed; thread-safe.

    ``cache_dir`` None takes the system's folder for temporary files. ``cache_bytes``: of all copies that
    exist at one moment; who finds no room waits for another's to be given back.
    """

    def __init__(self, cache_dir: str | None, timeout_seconds: float, cache_bytes: int) -> None:
        self._parent = Path(cache_dir or tempfile.gettempdir())
        self._downloads = Downloads(timeout_seconds)
        self._cache_bytes = cache_bytes
        self._used_bytes = 0
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._guard = threading.Condition()
        self._is_stopped = False

    def stop(self) -> None:
        """Make copies under way and waits for room fail soon; from any thread."""
        self._downloads.stop()
        with self._guard:
            self._is_stopped = True
            self._guard.notify_all()

    def close(self) -> None:
        """Remove the folder with whatever is in it."""
        self.stop()
        with self._guard:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            if self._lock is not None:
                self._lock.close()
            self._folder = self._lock = None

    @property
    def used_bytes(self) -> int:
        """Bytes that copies take now, or may come to take."""
        return self._used_bytes

    @contextmanager
    def local_file(self, ref: VideoRef) -> Iterator[str]:
        """The video as a local file, for the length of the ``with``.

        Raises VideoError (stage reading): NOT_FOUND, ACCESS_DENIED, TOO_LARGE or READ_ERROR.
        """
        path = local_path_of(ref.uri)
        if path is not None and ref.offset is None:
            yield os.path.abspath(path)  # the child has a working folder of its own
            return
        source = Source.of(ref)
        taken = self._take_room(source)
        try:
            copy = self._new_file(source, _suffix_of(ref))
            try:
                num_bytes = self._downloads.copy(source, copy, self._cache_bytes)
                self._give_back(taken - num_bytes)
                taken = num_bytes
                yield str(copy)
            finally:
                copy.unlink(missing_ok=True)
        finally:
            self._give_back(taken)

    def _take_room(self, source: Source) -> int:
        """Room for the copy; all there is where nobody knows its size."""
        needed = source.num_bytes or self._cache_bytes
        if needed > self._cache_bytes:
            rule = f"{needed} bytes exceed decoding.cache_bytes={self._cache_bytes}"
            raise VideoError(Stage.READING, Reason.TOO_LARGE, f"{rule}; raise that to read it")
        with self._guard:
            self._guard.wait_for(lambda: self._is_stopped or self._used_bytes + needed <= self._cache_bytes)
            if self._is_stopped:
                raise read_error("the copy was given up: decoding ends")
            self._used_bytes += needed
        return needed

    def _give_back(self, num_bytes: int) -> None:
        with self._guard:
            self._used_bytes -= num_bytes
            self._guard.notify_all()

    def _new_file(self, source: Source, suffix: str) -> Path:
        try:
            folder = self._open_folder()
            _check_room(folder, source)
            handle, name = tempfile.mkstemp(suffix=suffix, dir=folder)
        except OSError as error:
            raise read_error(
                f"no copy can be made in {self._parent}: {error}; set decoding.cache_dir"
            ) from None
        os.close(handle)
        return Path(name)

    def _open_folder(self) -> Path:
        with self._guard:
            if self._folder is None:
                self._parent.mkdir(parents=True, exist_ok=True)
                _remove_orphans(self._parent)
                self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
                self._lock = (self._folder / "lock").open("wb")
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            return self._folder


def _suffix_of(ref: VideoRef) -> str:
    """A hint for decoders from the video's name; nothing else of the name reaches the disk."""
    name = ref.uri.removeprefix("tar://").partition("::")[0] if ref.archive else ref.uri
    found = _PLAIN_SUFFIX.search(name)
    return found[0] if found else ""


def _remove_orphans(parent: Path) -> None:
    """Remove the folders of processes that are gone: those whose lock nobody holds."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # held by its owner, being made at this moment, or another user's


def _check_room(folder: Path, source: Source) -> None:
    needed, free = source.num_bytes or 0, shutil.disk_usage(folder).free
    if needed > free:
        rule = f"{needed} bytes do not fit into the {free} free in {folder}"
        raise read_error(f"{rule}; set decoding.cache_dir to a larger disk")
